"""The ledger as a person keeps it: what is unresolved, settling it, taking a mistake back, adopting or forking a copy,
and holding our books against the provider's.

Knows money; nothing of prompts or scores. Whatever a person books is an entry more, never a change of one, and carries the
reason. Reservations are not a person's to move: they end with the work they were made for.

Reconciling reads an export of the provider and books nothing. Formats: OpenAI's usage and costs API (/v1/organization/
usage/completions and /v1/organization/costs, pages of buckets) and CSV with a header, as its dashboard writes.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_FLOOR, Decimal, InvalidOperation, localcontext
from pathlib import Path
from typing import Any

from batcher import identity, spool
from batcher.ledger import ZERO, ingest, run_lock, set_budget, show_usd, step, stored_text
from batcher.store import Connection, Store, append, named_query, new_id, rows, scalar, utc_now
from graders import AlpaSiftError
from graders.prices import QUANTUM, Price, thaw


class NothingToSettle(AlpaSiftError):
    """What was named has no unresolved money, or names nothing, or too much."""


class NotReversible(AlpaSiftError):
    """The entry is not a person's to take back, or was taken back already."""


class UsageFileError(AlpaSiftError):
    """An export of the provider's that cannot be read; the message says where and why."""


_ENTRY = (
    "entry_id", "kind", "run_id", "attempt_id", "key", "request_id", "reserved_usd", "spent_usd", "unresolved_usd",
    "note", "recorded_at",
)  # fmt: skip
_ACT = ("entry_id", "act_id", "reverses")


def _entry(
    kind: str,
    where: tuple[Any, Any, Any],
    note: str,
    *,
    reserved: Decimal = ZERO,
    spent: Decimal = ZERO,
    unresolved: Decimal = ZERO,
) -> tuple[Any, ...]:
    """A row of the ledger; `where` is its run, attempt and key."""
    return (new_id(), kind, *where, None, reserved, spent, unresolved, stored_text(note), utc_now())


def _reason(text: str) -> str:
    if not text.strip():
        raise AlpaSiftError("the reason is empty; say what you found, it stays on the record")
    return text.strip()


# -- settling ---------------------------------------------------------------------------------------------------


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
    note, charged = _reason(reason), ZERO if usd is None else usd
    if not charged.is_finite() or not 0 <= charged <= 10**9 or charged != charged.quantize(QUANTUM):
        raise AlpaSiftError(f"{charged} is no amount of dollars that was charged; write 0.50")
    with run_lock(store.path), store.transaction() as con:
        chosen = _chosen(con, what)
        text = named_query("unresolved_lines").text
        lines = rows(con, text, {"attempts": [one.attempt_id for one in chosen]}).rows
        entries = [_entry("settled", (run, attempt, key), note, unresolved=-owed) for run, attempt, key, owed in lines]
        for one, share in zip(chosen, _shares(charged, [one.usd for one in chosen]), strict=True):
            if share:
                entries.append(_entry("settled", (one.run_id, one.attempt_id, None), note, spent=share))
        act = new_id()
        append(con, "ledger", _ENTRY, entries)
        append(con, "ledger_acts", _ACT, [(entry[0], act, None) for entry in entries])
    back = sum((one.usd for one in chosen), ZERO)
    return Settlement(act, len(chosen), len(lines), back, charged, sum(one.open for one in chosen))


def _shares(usd: Decimal, weights: Sequence[Decimal]) -> list[Decimal]:
    """Dollars divided in the proportion of the weights, to the last decimal; the last one takes what rounding leaves."""
    with localcontext(prec=80):
        total = sum(weights, ZERO)
        shares = [(usd * weight / total).quantize(QUANTUM, rounding=ROUND_FLOOR) for weight in weights[:-1]]
        return [*shares, usd - sum(shares, ZERO)]


def _chosen(con: Connection, what: Sequence[str] | date | None) -> list[Unresolved]:
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
        raise NothingToSettle("name an attempt, a batch or a run; `alpasift ledger unresolved` lists them")
    return [one for one in there if one.attempt_id in wanted]


def _called(con: Connection, name: str, there: Sequence[Unresolved]) -> list[Unresolved]:
    """The attempts that a name stands for: one attempt, or all of one batch or one run."""
    if len(name) < 4:
        raise NothingToSettle(f"{name!r} is too short to name an attempt, a batch or a run; write more of the id")
    found: dict[str, list[Unresolved]] = {}
    for one in there:
        for called in {one.attempt_id, one.batch_id, one.run_id}:
            if called.startswith(name):
                found.setdefault(called, []).append(one)
    if name in found:
        return found[name]
    if len(found) > 1:
        raise NothingToSettle(f"{name!r} may be {' or '.join(sorted(found)[:4])}; write more of the id")
    if found:
        return next(iter(found.values()))
    text = (
        "select 1 from paid_attempts where starts_with(attempt_id::varchar, $name) or starts_with(run_id::varchar, $name) "
        "or starts_with(batch_id, $name)"
    )
    if scalar(con, text, {"name": name}):
        raise NothingToSettle(f"{name} has nothing unresolved; `alpasift ledger unresolved` lists what has")
    raise NothingToSettle(
        f"no attempt, batch or run is called {name!r}; `alpasift ledger unresolved` lists what there is"
    )


@dataclass(frozen=True, slots=True)
class Reversal:
    """What was taken back: how many entries, and how spent and unresolved changed."""

    act_id: str
    entries: int
    spent_usd: Decimal
    unresolved_usd: Decimal


def reverse(store: Store, what: str, reason: str) -> Reversal:
    """Take back a settlement, or one entry, by its id or a beginning of it: the opposite is booked.

    Of a charge it is the dollars that are taken back (the provider refunded them); its reservation has ended all the same.
    A settlement of which a part was taken back before loses the rest. Takes the run lock. Raises NotReversible.
    """
    note = _reason(reason)
    with run_lock(store.path), store.transaction() as con:
        entries, pairs = [], []
        for entry_id, kind, run, attempt, key, spent, unresolved in _to_reverse(con, what):
            moved = {"spent": -spent} if kind == "charge" else {"spent": -spent, "unresolved": -unresolved}
            entries.append(_entry("reversed", (run, attempt, key), note, **moved))
            pairs.append((entries[-1][0], entry_id))
        act = new_id()
        append(con, "ledger", _ENTRY, entries)
        append(con, "ledger_acts", _ACT, [(mine, act, its) for mine, its in pairs])
    return Reversal(act, len(entries), sum((e[7] for e in entries), ZERO), sum((e[8] for e in entries), ZERO))


def _to_reverse(con: Connection, what: str) -> list[tuple[Any, ...]]:
    """The entries that a name stands for and that may be taken back."""
    if len(what) < 4:
        raise NotReversible(f"{what!r} is too short to name an entry or a settlement; write more of the id")
    found = rows(con, named_query("reversible").text, {"name": what}).dicts()
    names = {row["name"] for row in found}
    if not found:
        raise NotReversible(f"no entry or settlement is called {what!r}; `alpasift ledger entries` lists them")
    if len(names) > 1:
        raise NotReversible(f"{what!r} may be {' or '.join(sorted(map(str, names))[:4])}; write more of the id")
    name, kinds = names.pop(), {row["kind"] for row in found}
    if "reversed" in kinds:
        raise NotReversible(
            f"{name} took something back itself; what was right all the same is settled again, not reversed again"
        )
    if not kinds <= {"settled", "charge"}:
        raise NotReversible(
            f"{name} is an entry of the kind {kinds.pop()}, which follows from what happened; only settlements and charges are "
            "taken back by hand. `alpasift ledger settle` ends what is unresolved"
        )
    if any(row["inherited"] for row in found):
        raise NotReversible(f"{name} belongs to the ledger that this one was forked from; nothing of it is held here")
    left = [row for row in found if not row["taken_back"] and (row["kind"] == "settled" or row["spent_usd"])]
    if not left:
        raise NotReversible(f"{name} was taken back already")
    columns = ("entry_id", "kind", "run_id", "attempt_id", "key", "spent_usd", "unresolved_usd")
    return [tuple(row[c] for c in columns) for row in left]


# -- copies -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Forked:
    """A ledger of its own: its id, the one it came from, and what stayed with that one."""

    ledger_id: str
    came_from: str
    spent_usd: Decimal
    reserved_usd: Decimal
    unresolved_usd: Decimal
    closed: int


def adopt(store: Store, reason: str) -> str:
    """Let the ledger go on in this file, the copy; returns its id. Takes the run lock.

    The other file must be gone, or never be used again: nothing here can see it.
    """
    note = _reason(reason)
    with run_lock(store.path), store.transaction() as con:
        _must_be_a_copy(con, store.path, "adopt")
        ledger = identity.ledger_id(con)
        identity.move_in(con, store.path, ledger, note)
    return ledger


def fork(store: Store, reason: str) -> Forked:
    """Make this file, a copy, a ledger of its own. Takes the run lock.

    What the original has spent, reserved and left unresolved stays with it: here it is taken off by entries of the kind
    "forked", its open attempts are closed, and the budget is 0 until it is set anew. Replies stay, they are knowledge.
    The dollars of each line stay readable; they are taken off attempt by attempt.
    """
    note = _reason(reason)
    waiting = spool.spool_of(store.path)
    with run_lock(store.path), store.transaction() as con:
        _must_be_a_copy(con, store.path, "fork")
        if waiting.exists():  # replies that were copied with the database: their charges are the original's too
            ingest(con, spool.read(waiting))
        came_from, ledger = identity.ledger_id(con), new_id()
        left = rows(con, named_query("committed").text).rows
        why = f"belongs to ledger {came_from}: {note}"
        append(con, "ledger", _ENTRY, [
            _entry("forked", (run, attempt, key), why, reserved=-held, spent=-spent, unresolved=-owed)
            for run, attempt, key, held, owed, spent in left
        ])  # fmt: skip
        still = rows(con, "select attempt_id from open_attempts order by opened_at, attempt_id").rows
        for (attempt,) in still:
            step(con, str(attempt), "closed", {"why": f"belongs to ledger {came_from}"})
        set_budget(con, ZERO)
        identity.move_in(con, store.path, ledger, note)
    waiting.unlink(missing_ok=True)
    held, owed, spent = (sum((row[i] for row in left), ZERO) for i in (3, 4, 5))
    return Forked(ledger, came_from, spent, held, owed, len(still))


def _must_be_a_copy(con: Connection, path: Path, verb: str) -> None:
    if identity.at_home(con, path):
        raise AlpaSiftError(
            f"{path} is the file in which its ledger is kept, not a copy; there is nothing to {verb}. To {verb} a copy, name "
            "it with --db"
        )


# -- the provider's books ---------------------------------------------------------------------------------------

MAX_BYTES = 64 * 2**20
LATE_DAYS = {True: 2, False: 1}
"""How many days after it was sent the provider may count something: a batch has a day and overruns, a call passes midnight."""
BOOKED_DAYS = 3
"""Within how many days the same dollars may stand on different days here and there."""
_COUNTS = ("requests", "input_tokens", "cached_tokens", "output_tokens")


@dataclass(frozen=True, slots=True)
class Bucket:
    """One line of the provider's: what it counted on a day. None where the file does not say."""

    day: date
    model: str | None = None
    batch: bool | None = None
    project: str | None = None
    requests: int | None = None
    input_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    usd: Decimal | None = None
    slack: Decimal = ZERO

    @property
    def empty(self) -> bool:
        return all(getattr(self, name) is None for name in (*_COUNTS, "usd"))


@dataclass(frozen=True, slots=True)
class Usage:
    """A whole export: its lines, the days that it covers, what it counts, and remarks on it."""

    buckets: tuple[Bucket, ...]
    days: tuple[date, ...]
    measures: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Compared:
    """One day x model x batch: what the provider counts, what we have, and a verdict. None where the file does not say.

    verdict  equal          all that the file says is what our replies say
             other_day      so it is, together with a neighbouring day: we booked it when it was collected
             settled        the provider counts more, and a person settled it, or it was charged as a whole
             explained      the provider counts more, at most what we still hold as unresolved
             not_explained  the provider counts more than that: somebody else's work, or work nobody asked for
             ours_more      we have more: the provider's data lag, or are of another project
    """

    day: date | None
    model: str | None
    batch: bool | None
    provider: dict[str, Any]
    ours: dict[str, Any]
    slack: Decimal = ZERO
    settled_usd: Decimal = ZERO
    unresolved_usd: Decimal = ZERO
    verdict: str = ""

    def difference(self, name: str) -> Any:
        """The provider's number less ours, None where the file has none."""
        its = self.provider.get(name)
        return None if its is None else its - self.ours[name]

    @property
    def counted(self) -> list[str]:
        return [name for name in (*_COUNTS, "usd") if self.provider.get(name) is not None]

    def row(self) -> dict[str, Any]:
        """Flat, for JSON and CSV: provider_x, our_x and x_difference for each measure."""
        flat: dict[str, Any] = {"day": self.day, "model": self.model, "batch": self.batch}
        for name in (*_COUNTS, "usd"):
            flat[f"provider_{name}"] = self.provider.get(name)
            flat[f"our_{name}"] = self.ours[name]
            flat["difference_usd" if name == "usd" else f"{name}_difference"] = self.difference(name)
        return {**flat, "settled_usd": self.settled_usd, "unresolved_usd": self.unresolved_usd, "verdict": self.verdict}


@dataclass(frozen=True, slots=True)
class Reconciled:
    """The comparison line by line, its totals, commands that would settle what it explains, and remarks."""

    lines: tuple[Compared, ...]
    total: Compared
    suggestions: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(slots=True)
class _Unseen:
    """An attempt of ours that may explain that the provider counts more."""

    attempt: str
    run: str
    day: date
    model: str
    batch: bool
    unresolved: Decimal
    settled: Decimal
    left: Decimal = ZERO
    credit: Decimal = ZERO
    lines: list[Compared] = field(default_factory=list)


def reconcile(store: Store, path: Path, project: str | None = None, now: datetime | None = None) -> Reconciled:
    """Hold an export of the provider's against our books, by UTC day, model and batch as far as the file tells them apart.

    Books nothing. `project` picks one of several in the file. Raises UsageFileError.
    """
    usage = _of_project(read_usage(path), project, path)
    ours, unseen = store.query("usage_by_day"), store.query("unseen_by_attempt")
    prices = {(r["model"], r["batch"]): thaw(json.loads(r["price"])) for r in store.query("latest_prices")}
    by_model = bool(usage.buckets) and all(b.model is not None for b in usage.buckets)
    by_batch = bool(usage.buckets) and all(b.batch is not None for b in usage.buckets)
    seen: dict[tuple[date, str, bool], Compared] = {}

    def line(day: date, model: str | None, batch: bool | None) -> Compared:
        model, batch = (model if by_model else None), (batch if by_batch else None)
        place = (day, model or "", bool(batch))
        if place not in seen:
            seen[place] = Compared(day, model, batch, {}, dict.fromkeys((*_COUNTS, "usd"), 0) | {"usd": ZERO})
        return seen[place]

    for bucket in usage.buckets:
        one = line(bucket.day, bucket.model, bucket.batch)
        one.slack += bucket.slack
        for name in usage.measures:
            one.provider[name] = one.provider.get(name, 0) + getattr(bucket, name)
    days, outside = set(usage.days), ZERO
    for row in ours:
        if row["day"] in days:
            one = line(row["day"], row["model"], row["batch"])
            one.ours = {name: one.ours[name] + row[name] for name in one.ours}
        else:
            outside += row["usd"]
    pool = [_Unseen(str(r["attempt_id"]), str(r["run_id"]), r["day"], r["model"], r["batch"], r["unresolved_usd"], r["settled_usd"]) for r in unseen]  # fmt: skip
    for attempt in pool:
        attempt.left, attempt.credit = attempt.unresolved, attempt.settled
        if attempt.day in days:
            one = line(attempt.day, attempt.model, attempt.batch)
            one.unresolved_usd += attempt.unresolved
            one.settled_usd += attempt.settled
    lines = [seen[place] for place in sorted(seen)]
    for one in lines:  # a day that the file covers without a word of a model has none of it
        one.provider = {name: one.provider.get(name, ZERO if name == "usd" else 0) for name in usage.measures}
    _judge(lines, pool, prices)
    today = (now or datetime.now(UTC)).date()
    notes = [*usage.notes, *_remarks(lines, usage.days, outside, today)]
    return Reconciled(tuple(lines), _total(lines), tuple(_suggest(lines, pool, days, today)), tuple(notes))


def _of_project(usage: Usage, project: str | None, path: Path) -> Usage:
    there = sorted({b.project for b in usage.buckets if b.project is not None})
    if project is not None:
        if project not in there:
            raise UsageFileError(f"{path} has no project {project!r}; it has {', '.join(there) or 'none'}")
        return replace(usage, buckets=tuple(b for b in usage.buckets if b.project == project))
    if len(there) > 1:
        note = f"the file holds {len(there)} projects; --project {there[0]} looks at one"
        return replace(usage, notes=(*usage.notes, note))
    return usage


def _judge(lines: Sequence[Compared], pool: Sequence[_Unseen], prices: Mapping[tuple[str, bool], Price]) -> None:
    for one in lines:
        if all(_small(one, name, one.difference(name)) for name in one.counted):
            one.verdict = "equal"
    _pair_days([one for one in lines if one.verdict != "equal"])
    for one in lines:
        near = [a for a in pool if _may_be(a, one)]
        for attempt in near:
            attempt.lines.append(one)
        if one.verdict:
            continue
        more = _more_usd(one, prices)
        if more is None:
            one.verdict = "not_explained" if any(one.difference(name) > 0 for name in one.counted) else "ours_more"
        elif more < -one.slack:
            one.verdict = "ours_more"
        else:
            more -= _take(near, "credit", max(more, ZERO))
            if more > one.slack:
                taken = _take(near, "left", more)
                one.verdict = "explained" if more - taken <= one.slack else "not_explained"
            else:
                one.verdict = "settled"


def _small(one: Compared, name: str, difference: Any) -> bool:
    return bool(abs(difference) <= (one.slack if name == "usd" else 0))


def _pair_days(lines: Sequence[Compared]) -> None:
    """Find neighbouring days whose differences cancel: the same work, booked here on the day on which it was collected."""
    series: dict[tuple[str | None, bool | None], list[Compared]] = {}
    for one in lines:
        series.setdefault((one.model, one.batch), []).append(one)
    for days in series.values():
        start = 0
        while start < len(days):
            end = start + 1
            while end < len(days) and _days_between(days[start], days[end]) <= BOOKED_DAYS:
                some = days[start : end + 1]
                slack = sum((one.slack for one in some), ZERO)
                sums = {name: sum(one.difference(name) for one in some) for name in some[0].counted}
                if all(abs(v) <= (slack if name == "usd" else 0) for name, v in sums.items()):
                    for one in some:
                        one.verdict = "other_day"
                    break
                end += 1
            start = end + 1 if days[start].verdict else start + 1


def _days_between(one: Compared, other: Compared) -> int:
    assert one.day is not None and other.day is not None
    return (other.day - one.day).days


def _may_be(attempt: _Unseen, one: Compared) -> bool:
    """Whether something of this attempt may stand in this line."""
    if (one.model is not None and attempt.model != one.model) or (one.batch is not None and attempt.batch != one.batch):
        return False
    assert one.day is not None
    return 0 <= (one.day - attempt.day).days <= LATE_DAYS[attempt.batch]


def _more_usd(one: Compared, prices: Mapping[tuple[str, bool], Price]) -> Decimal | None:
    """Dollars that the provider has and we have not; tokens without dollars at our dearest price, None without a price."""
    more: Decimal | None = one.difference("usd")
    if more is not None:
        return more
    fitting = [p for (m, b), p in prices.items() if one.model in (None, m) and one.batch in (None, b)]
    if not fitting or "input_tokens" not in one.counted or "output_tokens" not in one.counted:
        return None
    price = max(fitting, key=lambda p: (p.input, p.output))
    cached = one.difference("cached_tokens") or 0
    plain, output = one.difference("input_tokens") - cached, one.difference("output_tokens")
    return Decimal(plain * price.input + cached * price.cached_input + output * price.output)


def _take(near: Sequence[_Unseen], what: str, usd: Decimal) -> Decimal:
    """Take up to so many dollars from what these attempts can explain; returns what was found."""
    found = ZERO
    for attempt in near:
        part = min(max(getattr(attempt, what), ZERO), usd - found)
        setattr(attempt, what, getattr(attempt, what) - part)
        found += part
    return found


def _total(lines: Sequence[Compared]) -> Compared:
    names = lines[0].counted if lines else []
    total = Compared(
        None, None, None,
        {name: sum((one.provider[name] for one in lines), ZERO if name == "usd" else 0) for name in names},
        {name: sum((one.ours[name] for one in lines), ZERO if name == "usd" else 0) for name in (*_COUNTS, "usd")},
        sum((one.slack for one in lines), ZERO),
        sum((one.settled_usd for one in lines), ZERO),
        sum((one.unresolved_usd for one in lines), ZERO),
    )  # fmt: skip
    verdicts = {one.verdict for one in lines}
    ranked = ("not_explained", "ours_more", "explained", "settled", "other_day", "equal")
    total.verdict = next((v for v in ranked if v in verdicts), "equal")
    return total


def _remarks(lines: Sequence[Compared], days: Sequence[date], outside: Decimal, today: date) -> Iterator[str]:
    yield f"days are UTC; the file covers {days[0]} to {days[-1]}" if days else "the file covers no day"
    if days and days[-1] >= today - timedelta(days=1):
        yield "the provider's data lag: what it says of today and yesterday may still grow, so look again in a day"
    if outside:
        yield f"{show_usd(outside)} was charged here on days that the file does not cover"
    if any(one.verdict == "not_explained" for one in lines):
        yield "the provider counts more than this ledger can explain; is the project used by somebody else?"


def _suggest(lines: Sequence[Compared], pool: Sequence[_Unseen], days: set[date], today: date) -> Iterator[str]:
    """The settlements that the comparison bears out: all days on which the provider may have counted it are in, and told."""
    waiting = [a for a in pool if a.unresolved > 0 and not _told(a, days, today)]
    unclear = {id(one) for a in waiting for one in a.lines}  # it may be theirs
    ready = [
        a for a in pool
        if a.unresolved > 0 and _told(a, days, today)
        and not any(one.verdict == "explained" and id(one) in unclear for one in a.lines)
    ]  # fmt: skip
    for group in _together(ready):
        usd = sum((a.unresolved - a.left for a in group), ZERO)
        first, last = min(a.day for a in group), max(a.day for a in group)
        when = f"{first}" if first == last else f"{first} to {last}"
        names = " ".join(_short_names(group, pool))
        charged = f" --usd {_trimmed(usd)}" if usd else ""
        yield f'alpasift ledger settle {names}{charged} --reason "usage of {when} as the provider counts it"'


def _told(attempt: _Unseen, days: set[date], today: date) -> bool:
    wanted = {attempt.day + timedelta(days=n) for n in range(LATE_DAYS[attempt.batch] + 1)}
    settled = all(one.verdict in ("equal", "other_day", "settled", "explained") for one in attempt.lines)
    return wanted <= days and max(wanted) < today - timedelta(days=1) and settled


def _together(ready: Sequence[_Unseen]) -> list[list[_Unseen]]:
    """Attempts between which the provider's dollars cannot be told apart: those that share an explained line."""
    groups: list[list[_Unseen]] = []
    for attempt in ready:
        shared = [one for one in attempt.lines if one.verdict == "explained"]
        mine = [g for g in groups if shared and any(one is other for a in g for other in a.lines for one in shared)]
        if not shared:  # nothing was charged for it: it goes with the others of its day
            mine = [g for g in groups if g[0].day == attempt.day and not _has_charge(g)][:1]
        groups = [g for g in groups if not any(g is m for m in mine)]
        groups.append([*(a for g in mine for a in g), attempt])
    return groups


def _has_charge(group: Sequence[_Unseen]) -> bool:
    return any(one.verdict == "explained" for attempt in group for one in attempt.lines)


def _short_names(group: Sequence[_Unseen], pool: Sequence[_Unseen]) -> list[str]:
    """Names for a command: whole runs by the run, else attempts."""
    mine = {a.attempt for a in group}
    names = []
    for run in dict.fromkeys(a.run for a in group):
        whole = [a.attempt for a in pool if a.run == run and a.unresolved > 0]
        own = [a.attempt for a in group if a.run == run]
        names += [run] if len(whole) > 1 and set(whole) <= mine else own
    return names


def _trimmed(usd: Decimal) -> str:
    text = format(usd.quantize(QUANTUM), "f")
    return text.rstrip("0").rstrip(".")


# -- reading an export ------------------------------------------------------------------------------------------

_COLUMNS = {
    "day": ("date", "day", "start_time_iso", "start_time", "timestamp", "usage_date"),
    "end": ("end_time_iso", "end_time"),
    "model": ("model", "line_item", "model_name"),
    "batch": ("batch", "is_batch"),
    "project": ("project_id", "project"),
    "requests": ("num_model_requests", "num_requests", "requests"),
    "input_tokens": ("input_tokens", "prompt_tokens"),
    "cached_tokens": ("input_cached_tokens", "cached_tokens", "cached_input_tokens"),
    "output_tokens": ("output_tokens", "completion_tokens"),
    "usd": ("amount_value", "cost_usd", "amount_usd", "usd", "cost", "amount"),
    "currency": ("amount_currency", "currency"),
}


def read_usage(path: Path) -> Usage:
    """Read an export: JSON pages of OpenAI's usage or costs API (one, a list, or one a line), or CSV with a header."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageFileError(f"{path} is larger than {MAX_BYTES >> 20} MiB; export fewer days")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageFileError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageFileError(f"{path} is not text in UTF-8") from error
    if not text.strip():
        raise UsageFileError(f"{path} is empty")
    if text.lstrip()[0] in "[{":
        return _read_pages(_json_pages(text, path), path)
    return _read_csv(text, path)


def _json_pages(text: str, path: Path) -> list[Any]:
    try:
        try:
            found = json.loads(text, parse_float=Decimal, parse_constant=_no_number)
        except json.JSONDecodeError as error:
            lines = text.splitlines()
            if len(lines) < 2 or not lines[0].rstrip().endswith("}"):
                raise UsageFileError(f"{path}:{error.lineno}: this is no JSON: {error.msg}") from error
            found = [json.loads(line, parse_float=Decimal, parse_constant=_no_number) for line in lines if line.strip()]
    except (ValueError, RecursionError, InvalidOperation) as error:
        raise UsageFileError(f"{path}: this is no JSON ({str(error)[:100]})") from error
    return found if isinstance(found, list) else [found]


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _read_pages(pages: Sequence[Any], path: Path) -> Usage:
    buckets: list[Bucket] = []
    days: set[date] = set()
    notes: list[str] = []
    for number, page in enumerate(pages, 1):
        if not isinstance(page, Mapping) or not isinstance(page.get("data"), list):
            raise UsageFileError(
                f"{path}: page {number} is no page of OpenAI's usage or costs API (an object with `data`)"
            )
        if page.get("has_more") and number == len(pages):
            notes.append("the file is one page of several (has_more is true): days are missing after its last")
        for place, bucket in enumerate(page["data"], 1):
            where = f"{path}: page {number}, bucket {place}"
            if not isinstance(bucket, Mapping):
                raise UsageFileError(f"{where} is no object")
            start = _day(bucket.get("start_time"), where)
            end = _last_day(start, bucket.get("end_time"), where)
            _add_days(days, start, end, where)
            results = bucket.get("results", bucket.get("result"))
            if not isinstance(results, list):
                raise UsageFileError(f"{where} has no list of results")
            buckets += [_result(result, start, f"{where}, result {i}") for i, result in enumerate(results, 1)]
    return _whole(buckets, days, notes, path)


def _result(result: Any, day: date, where: str) -> Bucket:
    if not isinstance(result, Mapping):
        raise UsageFileError(f"{where} is no object")
    amount = result.get("amount")
    usd = None
    if amount is not None:
        if not isinstance(amount, Mapping):
            raise UsageFileError(f"{where}: amount is no object with value and currency")
        _check_currency(amount.get("currency"), where)
        usd = amount.get("value")
    return _bucket(
        day, where, result.get("model") or result.get("line_item"), result.get("batch"), result.get("project_id"), usd,
        requests=result.get("num_model_requests"), input_tokens=result.get("input_tokens"),
        cached_tokens=result.get("input_cached_tokens"), output_tokens=result.get("output_tokens"),
    )  # fmt: skip


def _read_csv(text: str, path: Path) -> Usage:
    buckets: list[Bucket] = []
    days: set[date] = set()
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = [cell.strip().lower() for cell in next(reader)]
        column = {
            name: next((header.index(known) for known in names if known in header), None)
            for name, names in _COLUMNS.items()
        }
        if column["day"] is None or all(column[name] is None for name in (*_COUNTS, "usd")):
            raise UsageFileError(
                f"{path}: the header {', '.join(header)[:160]} names no day (date, start_time) or nothing to compare "
                "(input_tokens, output_tokens, requests, cost)"
            )
        for cells in reader:
            where = f"{path}:{reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise UsageFileError(f"{where}: {len(cells)} cells under a header of {len(header)}")
            row = {name: cells[i].strip() or None if i is not None else None for name, i in column.items()}
            day = _day(row["day"], where)
            _add_days(days, day, _last_day(day, row["end"], where), where)
            if row["usd"] is not None:
                _check_currency(row["currency"] or "usd", where)
            counts = {name: row[name] for name in _COUNTS}
            bucket = _bucket(day, where, row["model"], row["batch"], row["project"], row["usd"], **counts)
            if not bucket.empty:  # an empty day
                buckets.append(bucket)
    except csv.Error as error:
        raise UsageFileError(f"{path}: this is neither JSON nor CSV ({error})") from error
    return _whole(buckets, days, [], path, [name for name in (*_COUNTS, "usd") if column[name] is not None])


def _whole(
    buckets: Sequence[Bucket], days: set[date], notes: Sequence[str], path: Path, named: Sequence[str] = _COUNTS
) -> Usage:
    """`named` are the measures that a file without a single line would have had."""
    if not days:
        raise UsageFileError(f"{path} covers no day")
    given = {name: sum(getattr(b, name) is not None for b in buckets) for name in (*_COUNTS, "usd")}
    for name, count in given.items():
        if name != "cached_tokens" and 0 < count < len(buckets):
            raise UsageFileError(
                f"{path}: only {count} of {len(buckets)} lines say {name}; export usage and costs to files of their own"
            )
    measures = [name for name, count in given.items() if count == len(buckets)] if buckets else list(named)
    if not measures:
        raise UsageFileError(
            f"{path} counts nothing that can be compared (input_tokens, output_tokens, requests, cost)"
        )
    return Usage(tuple(buckets), tuple(sorted(days)), tuple(measures), tuple(notes))


def _bucket(day: date, where: str, model: Any, batch: Any, project: Any, usd: Any, **counts: Any) -> Bucket:
    if model is not None and not isinstance(model, str):
        raise UsageFileError(f"{where}: the model is {model!r:.60}")
    if project is not None and not isinstance(project, str):
        raise UsageFileError(f"{where}: the project is {project!r:.60}")
    amount, slack = (None, ZERO) if usd is None else _dollars(usd, where)
    return Bucket(
        day, None if model is None else family(model.split(",")[0].strip().lower()), _truth(batch, where), project,
        usd=amount, slack=slack, **{name: None if value is None else _count(value, name, where) for name, value in counts.items()},
    )  # fmt: skip


def family(model: str) -> str:
    """A model's name without the date of its snapshot: gpt-4.1-nano-2025-04-14 is gpt-4.1-nano."""
    return re.sub(r"-\d{4}-\d{2}-\d{2}$", "", model)


def _day(value: Any, where: str) -> date:
    """The UTC day of a time: seconds since 1970, 2026-11-20, or an ISO time (UTC where it names no zone)."""
    try:
        if isinstance(value, int) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC).date()
        if isinstance(value, str) and re.fullmatch(r"\d{9,11}", value):
            return datetime.fromtimestamp(int(value), UTC).date()
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            return (moment.astimezone(UTC) if moment.tzinfo else moment).date()
    except (ValueError, OverflowError, OSError):
        pass
    raise UsageFileError(f"{where}: {value!r:.60} is no day; 2026-11-20 or seconds since 1970 are")


def _last_day(start: date, end: Any, where: str) -> date:
    """The last day of a bucket whose end is not part of it."""
    if end is None:
        return start
    if isinstance(end, int) and not isinstance(end, bool):
        return max(start, _day(end - 1, where))
    found = _day(end, where)
    return max(start, found - timedelta(days=1)) if found > start else start


def _add_days(days: set[date], start: date, end: date, where: str) -> None:
    if (end - start).days > 366:
        raise UsageFileError(f"{where}: a bucket of {(end - start).days} days; export by day")
    days |= {start + timedelta(days=n) for n in range((end - start).days + 1)}


def _count(value: Any, name: str, where: str) -> int:
    if isinstance(value, str) and re.fullmatch(r"\d{1,15}(\.0+)?", value):
        value = int(value.partition(".")[0])
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 10**15:
        raise UsageFileError(f"{where}: {name} is {str(value)[:40]!r}, no count")
    return value


def _dollars(value: Any, where: str) -> tuple[Decimal, Decimal]:
    """Dollars, and by how much they may have been rounded: half of the last decimal written, at most half a cent."""
    usd = Decimal("NaN")
    if isinstance(value, str | int | Decimal) and not isinstance(value, bool):
        try:
            usd = Decimal(str(value).strip().removeprefix("$"))
        except (InvalidOperation, ValueError):
            usd = Decimal("NaN")
    if not usd.is_finite() or abs(usd) > 10**9:
        raise UsageFileError(f"{where}: the amount is {str(value)[:40]!r}, no dollars")
    places = usd.as_tuple().exponent
    assert isinstance(places, int)
    slack = QUANTUM if places < -15 else min(Decimal(5).scaleb(places - 1), Decimal("0.005"))
    return usd.quantize(QUANTUM), slack


def _check_currency(currency: Any, where: str) -> None:
    if not isinstance(currency, str) or currency.lower() != "usd":
        raise UsageFileError(f"{where}: the currency is {currency!r:.20}; only usd can be compared")


def _truth(value: Any, where: str) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    words = {"true": True, "1": True, "yes": True, "batch": True, "false": False, "0": False, "no": False}
    found = words.get(str(value).strip().lower())
    if found is None:
        raise UsageFileError(f"{where}: batch is {str(value)[:40]!r}; true or false")
    return found
