"""Settle what is unresolved, and take a settlement or a refunded charge back.

Knows money; nothing of prompts or scores. Whatever a person books is an entry more, never a change of one, and carries
the reason. Reservations are not a person's to move: they end with the work they were made for. Call `list_unresolved`
to see what there is, then `settle`; `reverse` undoes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import ROUND_FLOOR, Decimal, localcontext
from typing import Any

from alpasift.batcher.money.dollars import ZERO
from alpasift.batcher.money.manual_entries import book_act, check_reason, manual_entry
from alpasift.batcher.store import Connection, Store, named_query, rows, scalar
from alpasift.batcher.store.lock import run_lock
from alpasift.graders import AlpaSiftError
from alpasift.graders.api.prices import QUANTUM


class NothingToSettle(AlpaSiftError):
    """What was named has no unresolved money, or names nothing, or too much."""


class NotReversible(AlpaSiftError):
    """The entry is not a person's to take back, or was reversed already."""


@dataclass(frozen=True, slots=True)
class Unresolved:
    """An attempt of which something was sent and never seen. `open`: evidence may yet come."""

    attempt_id: str
    run_id: str
    batch_id: str
    backend: str
    model: str
    open: bool
    lines: int
    usd: Decimal
    since: datetime
    why: str


def list_unresolved(store: Store) -> list[Unresolved]:
    """What is unresolved, attempt by attempt, oldest first."""
    with store.reader() as con:
        return _unresolved(con)


def _unresolved(con: Connection) -> list[Unresolved]:
    found = rows(con, named_query("unresolved").text).rows
    return [Unresolved(str(a), str(r), *rest) for a, r, *rest in found]


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a person settled: `unresolved_usd` is no longer held, `spent_usd` of it was charged.

    `still_open` attempts have not ended: what they may yet bring is booked on top, and stops all sending.
    """

    act_id: str
    attempts: int
    lines: int
    unresolved_usd: Decimal
    spent_usd: Decimal
    still_open: int


def settle(store: Store, what: Sequence[str] | date | None, usd: Decimal | None, reason: str) -> Settlement:
    """End what is unresolved: nothing was charged for it, or `usd` in all was.

    `what` names attempts, batches or runs, each by its id or a beginning of it; a date is all that has been unresolved
    since before that UTC day; None is everything. Dollars for several attempts are booked on them in the proportion of
    what each leaves unresolved, adding up exactly. Takes the run lock. Raises NothingToSettle, and writes nothing then.
    """
    note, charged = check_reason(reason), ZERO if usd is None else usd
    if not charged.is_finite() or not 0 <= charged <= 10**9 or charged != charged.quantize(QUANTUM):
        raise AlpaSiftError(f"{charged} is not an amount of dollars that was charged; write 0.50")
    with run_lock(store.path), store.transaction() as con:
        chosen = _named(con, what)
        text = named_query("unresolved_lines").text
        lines = rows(con, text, {"attempts": [one.attempt_id for one in chosen]}).rows
        entries = [
            manual_entry("settled", (run, attempt, key), note, unresolved=-owed) for run, attempt, key, owed in lines
        ]
        for one, share in zip(chosen, _shares(charged, [one.usd for one in chosen]), strict=True):
            if share:
                entries.append(manual_entry("settled", (one.run_id, one.attempt_id, None), note, spent=share))
        act = book_act(con, entries, [None] * len(entries))
    back = sum((one.usd for one in chosen), ZERO)
    return Settlement(act, len(chosen), len(lines), back, charged, sum(one.open for one in chosen))


def _shares(usd: Decimal, weights: Sequence[Decimal]) -> list[Decimal]:
    """Dollars divided in proportion to the weights, to the last decimal; the last one takes the rounding."""
    with localcontext(prec=80):
        total = sum(weights, ZERO)
        shares = [(usd * weight / total).quantize(QUANTUM, rounding=ROUND_FLOOR) for weight in weights[:-1]]
        return [*shares, usd - sum(shares, ZERO)]


def _named(con: Connection, what: Sequence[str] | date | None) -> list[Unresolved]:
    there = _unresolved(con)
    if not there:
        raise NothingToSettle("nothing is unresolved")
    if what is None:
        return there
    if isinstance(what, date):
        chosen = [one for one in there if one.since.date() < what]
        if not chosen:
            raise NothingToSettle(
                f"nothing has been unresolved since before {what}; the oldest dates from {there[0].since.date()}"
            )
        return chosen
    names = [what] if isinstance(what, str) else list(what)
    wanted = {one.attempt_id for name in names for one in _called(con, name, there)}
    if not wanted:
        raise NothingToSettle("give an attempt, a batch or a run; `alpasift ledger unresolved` lists them")
    return [one for one in there if one.attempt_id in wanted]


def _called(con: Connection, name: str, there: Sequence[Unresolved]) -> list[Unresolved]:
    """The attempts that a name stands for: one attempt, or all of one batch or one run."""
    if len(name) < 4:
        raise NothingToSettle(f"{name!r} is too short for the id of an attempt, a batch or a run; give more of the id")
    found: dict[str, list[Unresolved]] = {}
    for one in there:
        for called in {one.attempt_id, one.batch_id, one.run_id}:
            if called.startswith(name):
                found.setdefault(called, []).append(one)
    if name in found:
        return found[name]
    if len(found) > 1:
        raise NothingToSettle(f"{name!r} matches {' and '.join(sorted(found)[:4])}; give more of the id")
    if found:
        return next(iter(found.values()))
    text = (
        "select 1 from paid_attempts where starts_with(attempt_id::varchar, $name) or starts_with(run_id::varchar, "
        "$name) or starts_with(batch_id, $name)"
    )
    if scalar(con, text, {"name": name}):
        raise NothingToSettle(f"{name} has nothing unresolved; `alpasift ledger unresolved` lists what is")
    raise NothingToSettle(f"no attempt, batch or run has the id {name!r}; `alpasift ledger unresolved` lists them")


@dataclass(frozen=True, slots=True)
class Reversal:
    """What was taken back: how many entries, and how spent and unresolved changed."""

    act_id: str
    entries: int
    spent_usd: Decimal
    unresolved_usd: Decimal


def reverse(store: Store, what: str, reason: str) -> Reversal:
    """Take back a settlement, or one entry, by its id or a beginning of it: the opposite is booked.

    Of a charge it is the dollars that are taken back (the provider refunded them); its reservation has ended all the
    same. A settlement of which a part was taken back before loses the rest. Takes the run lock. Raises NotReversible.
    """
    note = check_reason(reason)
    with run_lock(store.path), store.transaction() as con:
        entries, taken_back = [], []
        for entry_id, kind, run, attempt, key, spent, unresolved in _to_reverse(con, what):
            moved = {"spent": -spent} if kind == "charge" else {"spent": -spent, "unresolved": -unresolved}
            entries.append(manual_entry("reversed", (run, attempt, key), note, **moved))
            taken_back.append(entry_id)
        act = book_act(con, entries, taken_back)
    return Reversal(act, len(entries), sum((e[7] for e in entries), ZERO), sum((e[8] for e in entries), ZERO))


def _to_reverse(con: Connection, what: str) -> list[tuple[Any, ...]]:
    """The entries that a name stands for and that may be taken back."""
    if len(what) < 4:
        raise NotReversible(f"{what!r} is too short for the id of an entry or a settlement; give more of the id")
    found = rows(con, named_query("reversible").text, {"name": what}).dicts()
    names = {row["name"] for row in found}
    if not found:
        raise NotReversible(f"no entry or settlement has the id {what!r}; `alpasift ledger entries` lists them")
    if len(names) > 1:
        raise NotReversible(f"{what!r} matches {' and '.join(sorted(map(str, names))[:4])}; give more of the id")
    name, kinds = names.pop(), {row["kind"] for row in found}
    if "reversed" in kinds:
        raise NotReversible(f"{name} is a reversal itself; settle the amount again instead of reversing it")
    if not kinds <= {"settled", "charge"}:
        raise NotReversible(
            f"{name} is an entry of the kind {kinds.pop()}, which is automatic; only settlements and charges can "
            "be reversed. `alpasift ledger settle` resolves what is unresolved"
        )
    if any(row["inherited"] for row in found):
        raise NotReversible(f"{name} belongs to the ledger that this one was forked from, not to this one")
    left = [row for row in found if not row["taken_back"] and (row["kind"] == "settled" or row["spent_usd"])]
    if not left:
        raise NotReversible(f"{name} was reversed already")
    columns = ("entry_id", "kind", "run_id", "attempt_id", "key", "spent_usd", "unresolved_usd")
    return [tuple(row[c] for c in columns) for row in left]
