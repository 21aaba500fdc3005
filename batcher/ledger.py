"""The ledger: what was reserved, charged, released and is still unresolved. Every API dollar is a row here.

Knows money and attempts; nothing of prompts, scores or files. Three accounts (reserved, spent, unresolved) are sums
over the table `ledger`, whose rows are signed movements and are never changed. Free is what the cap leaves:

    spent + reserved + unresolved + free = budget        always, to the last decimal

The cap belongs to the database, not to a run. A reservation is committed before a byte is sent; a charge is what the
reply's usage says at the price frozen with the attempt, never rounded; what was sent and never seen stays unresolved
at its worst case until evidence or a person settles it. Lines that can cost nothing leave no rows.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from batcher.store import Connection, Store, append, new_id, rows, scalar, utc_now
from graders import AlpaSiftError, BudgetExceeded, OpenAttempt, Reply
from graders.prices import QUANTUM, UsageError, charge, thaw

ZERO = Decimal(0)


class NoBudget(AlpaSiftError):
    """A paid backend and no cap: consent is missing."""


class LedgerAlarm(AlpaSiftError):
    """Something was charged that must not have been. It is booked; all sending has stopped until a person looked."""


class UnknownAttempt(AlpaSiftError):
    """A reply to an attempt that this ledger never opened."""


class AnotherRun(AlpaSiftError):
    """Another process is at work on this database; the message names it."""


@dataclass(frozen=True, slots=True)
class Balance:
    """Dollars. `budget` and `free` are None where no budget was ever set."""

    budget: Decimal | None
    spent: Decimal
    reserved: Decimal
    unresolved: Decimal

    @property
    def free(self) -> Decimal | None:
        return None if self.budget is None else self.budget - self.committed

    @property
    def committed(self) -> Decimal:
        return self.spent + self.reserved + self.unresolved


def parse_usd(text: str) -> Decimal:
    """Dollars as a person types them: "5", "0.50", "$5". Raises AlpaSiftError for anything else, and below 0."""
    try:
        usd = Decimal(text.strip().removeprefix("$"))
    except InvalidOperation:
        usd = Decimal("NaN")
    if not usd.is_finite() or usd < 0 or usd > 10**9 or usd != usd.quantize(QUANTUM):
        raise AlpaSiftError(f"{text!r} is no amount of dollars; write 5 or 0.50")
    return usd


def show_usd(usd: Decimal, places: int = 4) -> str:
    """Dollars for a person: at least `places` decimals, more when the amount is smaller than they can show."""
    text = f"{usd:.{places}f}"
    if usd and not Decimal(text):
        text = f"{usd:.2g}"
        text = format(Decimal(text), "f")
    return f"-${text[1:]}" if text.startswith("-") else f"${text}"


@contextlib.contextmanager
def run_lock(database: Path) -> Iterator[None]:
    """Hold the lock file beside the database for as long as the block runs; it holds our process id.

    The DuckDB lock is not this lock: we close the database between commits. Raises AnotherRun.
    """
    path = database.with_name(database.name + ".lock")
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not _locked(handle):
            holder = os.pread(handle, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise AnotherRun(
                f"process {holder} is already grading into {database}; wait for it (alpasift status), or stop it with `kill {holder}`"
            )
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            os.close(handle)


def _locked(handle: int, tries: int = 5) -> bool:
    """Take the lock; a few tries, since somebody who only looks (`alpasift status`) holds it for a moment."""
    for _ in range(tries):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.03)
        else:
            return True
    return False


def holder_of_run_lock(database: Path) -> int | None:
    """The id of the process that is at work on this database, None when there is none."""
    path = database.with_name(database.name + ".lock")
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(handle, 32).strip()
        return int(holder) if holder.isdigit() else None
    finally:
        os.close(handle)
    return None


# -- balances ---------------------------------------------------------------------------------------------------


def balance(con: Connection) -> Balance:
    """The accounts of this database, now."""
    found = rows(con, "select budget_usd, spent_usd, reserved_usd, unresolved_usd from balance").rows[0]
    return Balance(found[0], found[1], found[2], found[3])


def run_committed(con: Connection, run_id: str) -> Decimal:
    """What one run has spent, reserved and left unresolved: what --run-budget caps."""
    total = scalar(
        con, "select sum(spent_usd + reserved_usd + unresolved_usd) from ledger where run_id = $run", {"run": run_id}
    )
    return total or ZERO


def run_spent(con: Connection, run_id: str) -> Decimal:
    """What one run has spent so far."""
    total: Decimal | None = scalar(con, "select sum(spent_usd) from ledger where run_id = $run", {"run": run_id})
    return total or ZERO


def set_budget(con: Connection, usd: Decimal) -> None:
    """Set the cap of this database. Setting what stands already writes nothing."""
    if balance(con).budget != usd:
        number = (scalar(con, "select max(entry_id) from budgets") or 0) + 1
        append(con, "budgets", ("entry_id", "budget_usd", "recorded_at"), [(number, usd, utc_now())])


def alarm(con: Connection, kind: str, note: str, attempt_id: str | None = None, usd: Decimal | None = None) -> None:
    number = (scalar(con, "select max(alarm_id) from alarms") or 0) + 1
    columns = ("alarm_id", "kind", "attempt_id", "usd", "note", "recorded_at")
    append(con, "alarms", columns, [(number, kind, attempt_id, usd, note, utc_now())])


def open_alarms(con: Connection) -> list[str]:
    """The notes of alarms that nobody has acknowledged yet, oldest first."""
    return [r[0] for r in rows(con, "select note from open_alarms order by alarm_id").rows]


def check_alarms(con: Connection) -> None:
    """Raise LedgerAlarm while an alarm stands."""
    notes = open_alarms(con)
    if notes:
        raise LedgerAlarm(
            f"{notes[-1]}. It is booked, and nothing more is sent from this database. Look at `alpasift ledger`, "
            "then clear it with `alpasift ledger acknowledge --reason TEXT`"
        )


# -- movements --------------------------------------------------------------------------------------------------

_ENTRY = (
    "entry_id", "kind", "run_id", "attempt_id", "key", "request_id", "reserved_usd", "spent_usd", "unresolved_usd",
    "note", "recorded_at",
)  # fmt: skip


class _Book:
    """Movements of one attempt collected for one insert."""

    def __init__(self, run_id: str | None, attempt_id: str) -> None:
        self.run_id, self.attempt_id, self.now = run_id, attempt_id, utc_now()
        self.entries: list[tuple[Any, ...]] = []

    def move(
        self,
        kind: str,
        key: str | None,
        *,
        reserved: Decimal = ZERO,
        spent: Decimal = ZERO,
        unresolved: Decimal = ZERO,
        request_id: str | None = None,
        note: str | None = None,
    ) -> None:
        if reserved or spent or unresolved:
            where = (self.run_id, self.attempt_id, key, stored_text(request_id))
            amounts = (reserved, spent, unresolved)
            self.entries.append((new_id(), kind, *where, *amounts, stored_text(note), self.now))

    def write(self, con: Connection) -> None:
        append(con, "ledger", _ENTRY, self.entries)


def reserve(
    con: Connection,
    *,
    run_id: str,
    backend: str,
    grader_id: str,
    keys: Sequence[str],
    ceilings: Sequence[Decimal],
    price: Mapping[str, Any] | None,
    facts: Mapping[str, Any],
    run_budget: Decimal | None,
) -> str:
    """Open an attempt and reserve its worst case. Raises BudgetExceeded (nothing written), NoBudget or LedgerAlarm."""
    if len(set(keys)) != len(keys):
        raise AlpaSiftError("an attempt may ask each question once; a key stands in it twice")
    if len(ceilings) != len(keys) or any(not c.is_finite() or c < 0 for c in ceilings):
        raise AlpaSiftError("every line of an attempt needs a ceiling of 0 dollars or more")
    rounded = [c.quantize(QUANTUM, rounding=ROUND_CEILING) for c in ceilings]
    total = sum(rounded, ZERO)
    if total > 0:
        check_alarms(con)
        _check_caps(con, total, len(keys), run_id, run_budget)
    attempt_id = new_id()
    columns = ("attempt_id", "run_id", "backend", "grader_id", "lines", "ceiling_usd", "price", "facts", "opened_at")
    frozen = json.dumps(dict(price)) if price is not None else None
    row = (attempt_id, run_id, backend, grader_id, len(keys), total, frozen, json.dumps(dict(facts)), utc_now())
    append(con, "attempts", columns, [row])
    lines = [(attempt_id, key, usd) for key, usd in zip(keys, rounded, strict=True)]
    append(con, "attempt_lines", ("attempt_id", "key", "ceiling_usd"), lines)
    book = _Book(run_id, attempt_id)
    book.move("reserve", None, reserved=total)
    book.write(con)
    return attempt_id


def _check_caps(con: Connection, usd: Decimal, lines: int, run_id: str, run_budget: Decimal | None) -> None:
    now = balance(con)
    if now.budget is None or now.free is None:
        raise NoBudget(
            "this costs money and no budget is set; name one with --budget 5 (dollars, for all this database's life)"
        )
    what = f"the next {lines} question{'s' if lines != 1 else ''} may cost up to {show_usd(usd)}"
    if usd > now.free:
        raise BudgetExceeded(
            f"{what} and {show_usd(now.free)} of the {show_usd(now.budget, 2)} budget is free ({show_usd(now.spent)} spent, "
            f"{show_usd(now.reserved)} reserved, {show_usd(now.unresolved)} unresolved); raise --budget, or take fewer rows with --limit"
        )
    if run_budget is not None:
        left = run_budget - run_committed(con, run_id)
        if usd > left:
            raise BudgetExceeded(
                f"{what} and {show_usd(left)} of this run's {show_usd(run_budget, 2)} is left; raise --run-budget"
            )


_REPLY = (
    "attempt_id", "key", "request_id", "outcome", "text", "finish_reason", "model", "usage", "logprobs", "error",
    "raw", "recorded_at",
)  # fmt: skip


def ingest(con: Connection, replies: Sequence[Reply]) -> list[Reply]:
    """Write replies and what they cost, and return those that were new. Replies that stand already change nothing."""
    fresh = _unknown_replies(con, replies)
    now = utc_now()
    append(con, "replies", _REPLY, [_reply_row(r, now) for r in fresh])
    by_attempt: dict[str, list[Reply]] = {}
    for reply in fresh:
        by_attempt.setdefault(reply.attempt, []).append(reply)
    for attempt_id, group in by_attempt.items():
        _charge(con, attempt_id, group)
    return fresh


def _unknown_replies(con: Connection, replies: Sequence[Reply]) -> list[Reply]:
    known: set[tuple[str, str, str]] = set()
    for attempt in sorted({r.attempt for r in replies}):
        parameters = {"attempt": attempt, "keys": sorted({r.key for r in replies if r.attempt == attempt})}
        text = "select key, request_id from replies where attempt_id = $attempt and key in (select unnest($keys)::uuid)"
        known |= {(attempt, str(k), r) for k, r in rows(con, text, parameters).rows}
    fresh = []
    for reply in replies:
        identity = (reply.attempt, reply.key, reply.request_id)
        if identity not in known:
            known.add(identity)
            fresh.append(reply)
    return fresh


def stored_text(text: str | None) -> str | None:
    """Text as the database can hold it: a lone surrogate, which is no Unicode, is written out as \\udc80."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()


def _reply_row(reply: Reply, now: Any) -> tuple[Any, ...]:
    usage = None if reply.usage is None else json.dumps(dict(reply.usage))
    logprobs = None if reply.logprobs is None else json.dumps(dict(reply.logprobs))
    texts = (reply.text, reply.finish_reason, reply.model, usage, logprobs, reply.error, reply.raw)
    return (reply.attempt, reply.key, stored_text(reply.request_id), reply.outcome, *map(stored_text, texts), now)


def _charge(con: Connection, attempt_id: str, replies: Sequence[Reply]) -> None:
    found = rows(con, "select run_id, price, ceiling_usd from attempts where attempt_id = $a", {"a": attempt_id}).rows
    if not found:
        raise UnknownAttempt(f"a reply names the attempt {attempt_id}, which this ledger never opened")
    run_id, frozen, total = found[0]
    if frozen is None and total == 0:
        return
    price = thaw(json.loads(frozen)) if frozen is not None else None
    held, unresolved, ceilings = _lines(con, attempt_id, [reply.key for reply in replies])
    book = _Book(str(run_id), attempt_id)
    for reply in replies:
        key = reply.key
        hold, owed = held.pop(key, ZERO), unresolved.pop(key, ZERO)
        where: dict[str, Any] = {"request_id": reply.request_id}
        if reply.outcome == "rejected_free":
            book.move("release", key, reserved=-hold, unresolved=-owed, note=reply.error, **where)
            continue
        note = reply.error
        usd: Decimal | None = None
        if reply.outcome == "answered" and price is not None:
            try:
                usd = charge(price, reply.usage)
            except UsageError as error:
                note = str(error)
        if usd is None:
            book.move("unresolved", key, reserved=-hold, unresolved=hold, note=note, **where)
            if hold or owed:
                unresolved[key] = hold + owed  # for what may still come in this chunk
            continue
        book.move("charge", key, reserved=-hold, unresolved=-owed, spent=usd, note=note, **where)
        ceiling = ceilings.get(key)
        if usd and (ceiling is None or not (hold or owed)):
            alarm(
                con,
                "unasked_work",
                f"{show_usd(usd)} was charged for an answer that was not asked for or had been paid before",
                attempt_id,
                usd,
            )
        elif ceiling is not None and usd > ceiling:
            alarm(
                con,
                "ceiling_broken",
                f"an answer cost {show_usd(usd)}, above its ceiling of {show_usd(ceiling)}",
                attempt_id,
                usd,
            )
    book.write(con)


def _lines(
    con: Connection, attempt_id: str, keys: Sequence[str] | None = None
) -> tuple[dict[str, Decimal], dict[str, Decimal], dict[str, Decimal]]:
    """What lines of an attempt (all of them, or those with these keys) still hold, what is unresolved, their ceilings."""
    text = "select key, held_usd, unresolved_usd, ceiling_usd from line_money where attempt_id = $attempt"
    parameters: dict[str, Any] = {"attempt": attempt_id}
    if keys is not None:
        text += " and key in (select unnest($keys)::uuid)"
        parameters["keys"] = sorted(set(keys))
    found = rows(con, text, parameters).rows
    held = {str(k): h for k, h, _, _ in found if h}
    unresolved = {str(k): u for k, _, u, _ in found if u}
    return held, unresolved, {str(k): c for k, _, _, c in found}


def close_attempt(con: Connection, attempt_id: str, why: str = "closed") -> None:
    """End an attempt: what its lines still hold becomes unresolved. Ending it again changes nothing."""
    if not scalar(con, "select 1 from open_attempts where attempt_id = $a", {"a": attempt_id}):
        return
    run_id, total = rows(con, "select run_id, ceiling_usd from attempts where attempt_id = $a", {"a": attempt_id}).rows[
        0
    ]
    if total:
        book = _Book(str(run_id), attempt_id)
        held, _, _ = _lines(con, attempt_id)
        for key, usd in held.items():
            book.move("unresolved", key, reserved=-usd, unresolved=usd, note=why)
        book.write(con)
    step(con, attempt_id, "closed", {"why": why})


def step(con: Connection, attempt_id: str, state: str, facts: Mapping[str, Any] | None = None) -> None:
    number = scalar(con, "select count(*) + 1 from attempt_steps where attempt_id = $a", {"a": attempt_id})
    columns = ("attempt_id", "step", "state", "facts", "recorded_at")
    append(con, "attempt_steps", columns, [(attempt_id, number, state, json.dumps(dict(facts or {})), utc_now())])


def close_the_dead(con: Connection, why: str = "the process ended before the answer came") -> int:
    """Close what dead processes left open, but for work that outlives a process. Call with the run lock held."""
    found = rows(con, "select attempt_id from open_attempts where not outlives order by opened_at").rows
    for (attempt_id,) in found:
        close_attempt(con, str(attempt_id), why)
    return len(found)


def acknowledge(store: Store, reason: str) -> int:
    """Clear the alarms that stand, with a person's reason. Returns how many there were."""
    with store.transaction() as con:
        count = len(open_alarms(con))
        if count:
            alarm(con, "acknowledged", reason)
    return count


class LedgerMeter:
    """The Meter that backends are handed: their only way to money.

    `flush` writes what the engine holds and is called before every commit here, so that the order on disk is the
    order in which things happened. `closing` collects attempts to be closed with the engine's next write.
    """

    def __init__(
        self,
        store: Store,
        *,
        run_id: str,
        backend: str,
        grader_id: str,
        outlives: bool,
        run_budget: Decimal | None,
        flush: Callable[[], None],
        asked: Callable[[Connection, Sequence[str]], None],
        opened: Callable[[Sequence[str]], None],
    ) -> None:
        self.store, self.run_id, self.backend, self.grader_id = store, run_id, backend, grader_id
        self.outlives, self.run_budget, self.flush, self.asked, self.opened = outlives, run_budget, flush, asked, opened
        self.closing: list[str] = []

    def open(
        self,
        keys: Sequence[str],
        ceiling_each: Decimal | Sequence[Decimal],
        price: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> str:
        ceilings = [ceiling_each] * len(keys) if isinstance(ceiling_each, Decimal) else list(ceiling_each)
        self.flush()
        with self.store.transaction() as con:
            self.asked(con, keys)
            attempt = reserve(
                con, run_id=self.run_id, backend=self.backend, grader_id=self.grader_id, keys=keys, ceilings=ceilings,
                price=price, facts={**(facts or {}), "outlives": self.outlives}, run_budget=self.run_budget,
            )  # fmt: skip
        self.opened(keys)
        return attempt

    def note(self, attempt: str, state: str, facts: Mapping[str, Any] | None = None) -> None:
        self.flush()
        with self.store.transaction() as con:
            step(con, attempt, state, facts)

    def open_attempts(self) -> list[OpenAttempt]:
        with self.store.reader() as con:
            text = "select attempt_id, state, facts from open_attempts where grader_id = $g order by opened_at"
            found = rows(con, text, {"g": self.grader_id}).rows
        return [OpenAttempt(str(a), s, json.loads(f)) for a, s, f in found]

    def close(self, attempt: str) -> None:
        self.closing.append(attempt)
