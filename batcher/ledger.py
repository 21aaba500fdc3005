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

import orjson

from batcher.store import Connection, Store, append, as_id, named_query, new_id, rows, scalar, these_keys, utc_now
from graders import AlpaSiftError, BudgetExceeded, OpenAttempt, Reply, SendingStopped
from graders.prices import QUANTUM, Price, UsageError, charge, thaw

ZERO = Decimal(0)


class NoBudget(AlpaSiftError):
    """A paid backend and no cap: consent is missing."""


class LedgerAlarm(SendingStopped):
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
    """Movements collected for one insert."""

    def __init__(self) -> None:
        self.now = utc_now()
        self.entries: list[tuple[Any, ...]] = []

    def move(
        self,
        kind: str,
        run_id: str | None,
        attempt_id: str,
        key: str | None,
        *,
        reserved: Decimal = ZERO,
        spent: Decimal = ZERO,
        unresolved: Decimal = ZERO,
        request_id: str | None = None,
        note: str | None = None,
    ) -> None:
        if reserved or spent or unresolved:
            where = (run_id, attempt_id, key, stored_text(request_id))
            amounts = (reserved, spent, unresolved)
            self.entries.append((kind, *where, *amounts, stored_text(note), self.now))

    def write(self, con: Connection) -> None:
        ids = os.urandom(16 * len(self.entries)).hex()
        numbered = [(as_id(ids[32 * i : 32 * i + 32]), *entry) for i, entry in enumerate(self.entries)]
        append(con, "ledger", _ENTRY, numbered)


@dataclass(frozen=True, slots=True)
class Lot:
    """What one attempt asks: its questions, and the most that each may cost."""

    keys: Sequence[str]
    ceilings: Sequence[Decimal]


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
    return reserve_many(
        con, run_id=run_id, backend=backend, grader_id=grader_id, lots=[Lot(keys, ceilings)], price=price, facts=facts,
        run_budget=run_budget,
    )[0]  # fmt: skip


def reserve_many(
    con: Connection,
    *,
    run_id: str,
    backend: str,
    grader_id: str,
    lots: Sequence[Lot],
    price: Mapping[str, Any] | None,
    facts: Mapping[str, Any],
    run_budget: Decimal | None,
) -> list[str]:
    """Open an attempt for each of the first lots that fit, at least one, and reserve the worst case of each.

    Raises BudgetExceeded when not even the first fits (nothing is written), NoBudget or LedgerAlarm.
    """
    rounded = [_rounded(lot) for lot in lots]
    totals = [sum(ceilings, ZERO) for ceilings in rounded]
    if any(totals):
        check_alarms(con)
    fit = _fitting(con, totals, run_id, run_budget)
    if fit == 0:
        _check_caps(con, totals[0], len(lots[0].keys), run_id, run_budget)
    ids = [new_id() for _ in range(fit)]
    frozen = json.dumps(dict(price)) if price is not None else None
    about, now = json.dumps(dict(facts)), utc_now()
    attempts, lines, book = [], [], _Book()
    for attempt_id, lot, ceilings, total in zip(ids, lots, rounded, totals, strict=False):
        attempts.append((attempt_id, run_id, backend, grader_id, len(lot.keys), total, frozen, about, now))
        lines += [(attempt_id, key, usd) for key, usd in zip(lot.keys, ceilings, strict=True)]
        book.move("reserve", run_id, attempt_id, None, reserved=total)
    columns = ("attempt_id", "run_id", "backend", "grader_id", "lines", "ceiling_usd", "price", "facts", "opened_at")
    append(con, "attempts", columns, attempts)
    append(con, "attempt_lines", ("attempt_id", "key", "ceiling_usd"), lines)
    book.write(con)
    return ids


def _rounded(lot: Lot) -> list[Decimal]:
    if len(set(lot.keys)) != len(lot.keys):
        raise AlpaSiftError("an attempt may ask each question once; a key stands in it twice")
    if len(lot.ceilings) != len(lot.keys) or any(not c.is_finite() or c < 0 for c in lot.ceilings):
        raise AlpaSiftError("every line of an attempt needs a ceiling of 0 dollars or more")
    return [c.quantize(QUANTUM, rounding=ROUND_CEILING) for c in lot.ceilings]


def _fitting(con: Connection, totals: Sequence[Decimal], run_id: str, run_budget: Decimal | None) -> int:
    """How many of the first totals the caps hold together. What costs nothing always fits."""
    if not any(totals):
        return len(totals)
    room = balance(con).free
    if room is None:
        return 0
    if run_budget is not None:
        room = min(room, run_budget - run_committed(con, run_id))
    for i, total in enumerate(totals):
        if total > 0 and total > room:
            return i
        room -= total
    return len(totals)


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
    if fresh:
        _charge(con, fresh)
    return fresh


def _unknown_replies(con: Connection, replies: Sequence[Reply]) -> list[Reply]:
    text = """
        select attempt_id::varchar, key::varchar, request_id from replies
        where attempt_id in (select unnest($attempts)::uuid) and key in (select key from wanted)
    """
    with these_keys(con, {r.key for r in replies}):
        known = set(rows(con, text, {"attempts": sorted({r.attempt for r in replies})}).rows)
    fresh = []
    for reply in replies:
        identity = (reply.attempt, reply.key, reply.request_id)
        if identity not in known:
            known.add(identity)
            fresh.append(reply)
    return fresh


def stored_text(text: str | None) -> str | None:
    """Text as the database can hold it: a lone surrogate, which is no Unicode, is written out as \\udc80."""
    if text is None or text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode()


def _reply_row(reply: Reply, now: Any) -> tuple[Any, ...]:
    usage = None if reply.usage is None else _as_json(reply.usage)
    logprobs = None if reply.logprobs is None else _as_json(reply.logprobs)
    texts = (reply.text, reply.finish_reason, reply.model, usage, logprobs, reply.error, reply.raw)
    return (reply.attempt, reply.key, stored_text(reply.request_id), reply.outcome, *map(stored_text, texts), now)


def _as_json(value: Mapping[str, Any]) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # what came in is hostile data: numbers without end, lone surrogates
        return json.dumps(dict(value))


@dataclass(frozen=True, slots=True)
class _Opened:
    """An attempt as it was opened: its run, the price frozen with it, its ceiling."""

    run_id: str
    price: Price | None
    total: Decimal


def _opened(con: Connection, attempts: Sequence[str]) -> dict[str, _Opened]:
    text = """
        select attempt_id::varchar, run_id::varchar, price, ceiling_usd from attempts
        where attempt_id in (select unnest($a)::uuid)
    """
    prices: dict[str, Price] = {}  # calls that were opened together share theirs
    found = {}
    for attempt, run_id, frozen, total in rows(con, text, {"a": list(attempts)}).rows:
        if frozen is not None and frozen not in prices:
            prices[frozen] = thaw(json.loads(frozen))
        found[attempt] = _Opened(run_id, prices[frozen] if frozen is not None else None, total)
    return found


def _charge(con: Connection, replies: Sequence[Reply]) -> None:
    opened = _opened(con, sorted({r.attempt for r in replies}))
    unknown = next((r.attempt for r in replies if r.attempt not in opened), None)
    if unknown is not None:
        raise UnknownAttempt(f"a reply names the attempt {unknown}, which this ledger never opened")
    costly = [r for r in replies if opened[r.attempt].price is not None or opened[r.attempt].total != 0]
    if not costly:
        return
    held, unresolved, ceilings = _lines(con, sorted({r.attempt for r in costly}), {r.key for r in costly})
    book = _Book()
    for reply in costly:
        attempt = opened[reply.attempt]
        line = (reply.attempt, reply.key)
        hold, owed = held.pop(line, ZERO), unresolved.pop(line, ZERO)
        where: dict[str, Any] = {"request_id": reply.request_id}
        if reply.outcome == "rejected_free":
            book.move("release", attempt.run_id, *line, reserved=-hold, unresolved=-owed, note=reply.error, **where)
            continue
        note = reply.error
        usd: Decimal | None = None
        if reply.outcome == "answered" and attempt.price is not None:
            try:
                usd = charge(attempt.price, reply.usage)
            except UsageError as error:
                note = str(error)
        if usd is None:
            book.move("unresolved", attempt.run_id, *line, reserved=-hold, unresolved=hold, note=note, **where)
            if hold or owed:
                unresolved[line] = hold + owed  # for what may still come in this chunk
            continue
        book.move("charge", attempt.run_id, *line, reserved=-hold, unresolved=-owed, spent=usd, note=note, **where)
        ceiling = ceilings.get(line)
        if usd and (ceiling is None or not (hold or owed)):
            alarm(
                con,
                "unasked_work",
                f"{show_usd(usd)} was charged for an answer that was not asked for or had been paid before",
                reply.attempt,
                usd,
            )
        elif ceiling is not None and usd > ceiling:
            alarm(
                con,
                "ceiling_broken",
                f"an answer cost {show_usd(usd)}, above its ceiling of {show_usd(ceiling)}",
                reply.attempt,
                usd,
            )
    book.write(con)


_Line = tuple[str, str]
"""attempt, key"""


def _lines(
    con: Connection, attempts: Sequence[str], keys: set[str] | None = None
) -> tuple[dict[_Line, Decimal], dict[_Line, Decimal], dict[_Line, Decimal]]:
    """What lines of some attempts (all of them, or those with these keys) still hold, what is unresolved, their ceilings.

    The view line_money, with the attempts named before anything is added up.
    """
    which = "attempt_id in (select unnest($attempts)::uuid)"
    which += "" if keys is None else " and key in (select key from wanted)"
    text = f"""
        with moved as (
            select attempt_id, key, sum(reserved_usd) as reserved_usd, sum(unresolved_usd) as unresolved_usd
            from ledger where {which} and key is not null group by all
        )
        select
            attempt_id::varchar, key::varchar, (ceiling_usd + coalesce(reserved_usd, 0))::decimal(38, 15),
            coalesce(unresolved_usd, 0)::decimal(38, 15), ceiling_usd
        from (select attempt_id, key, ceiling_usd from attempt_lines where ceiling_usd > 0 and {which})
        left join moved using (attempt_id, key)
        order by all
    """
    with these_keys(con, keys or ()):
        found = [((a, k), h, u, c) for a, k, h, u, c in rows(con, text, {"attempts": list(attempts)}).rows]
    held = {line: h for line, h, _, _ in found if h}
    unresolved = {line: u for line, _, u, _ in found if u}
    return held, unresolved, {line: c for line, _, _, c in found}


def close_attempt(con: Connection, attempt_id: str, why: str = "closed") -> None:
    """End an attempt: what its lines still hold becomes unresolved. Ending it again changes nothing."""
    close_attempts(con, [attempt_id], why)


def close_attempts(con: Connection, attempts: Sequence[str], why: str = "closed") -> None:
    """End attempts: what their lines still hold becomes unresolved. Ending one again changes nothing."""
    if not attempts:
        return
    text = """
        select attempt_id::varchar, run_id::varchar, ceiling_usd from attempts
        where attempt_id in (select unnest($a)::uuid)
          and attempt_id not in (select attempt_id from attempt_steps where state = 'closed' and attempt_id in (select unnest($a)::uuid))
    """
    found = {a: (r, total) for a, r, total in rows(con, text, {"a": list(attempts)}).rows}
    ending = [a for a in dict.fromkeys(attempts) if a in found]
    costly = [a for a in ending if found[a][1]]
    if costly:
        book = _Book()
        for (attempt, key), usd in _lines(con, costly)[0].items():
            book.move("unresolved", found[attempt][0], attempt, key, reserved=-usd, unresolved=usd, note=why)
        book.write(con)
    steps(con, [(a, "closed", {"why": why}) for a in ending])


def settle_attempt(con: Connection, attempt_id: str, usd: Decimal, why: str) -> None:
    """End an attempt as a whole at `usd` dollars: what its lines hold or leave unresolved is given back.

    A cost that no single line can be told to have caused is one charge without a key. Ending it again changes nothing.
    """
    found = rows(
        con, "select run_id, ceiling_usd, state from open_attempts where attempt_id = $a", {"a": attempt_id}
    ).rows
    if not found:
        return
    run_id, total, _ = found[0]
    if total:
        book = _Book()
        held, owed, _ = _lines(con, [attempt_id])
        for line in held | owed:
            back, free = held.get(line, ZERO), owed.get(line, ZERO)
            book.move("release", str(run_id), *line, reserved=-back, unresolved=-free, note=why)
        book.move("charge", str(run_id), attempt_id, None, spent=usd, note=why)
        book.write(con)
        back = sum(held.values(), ZERO) + sum(owed.values(), ZERO)
        if usd > back:
            alarm(
                con,
                "ceiling_broken",
                f"{why}: it cost {show_usd(usd)} and {show_usd(back)} was held for it",
                attempt_id,
                usd,
            )
    step(con, attempt_id, "closed", {"why": why})


def doubt_attempt(con: Connection, attempt_id: str, why: str) -> None:
    """What the lines of an open attempt hold becomes unresolved; the attempt stays open, in the state "doubted"."""
    found = rows(con, "select run_id, ceiling_usd from open_attempts where attempt_id = $a", {"a": attempt_id}).rows
    if not found:
        return
    if found[0][1]:
        book = _Book()
        for line, usd in _lines(con, [attempt_id])[0].items():
            book.move("unresolved", str(found[0][0]), *line, reserved=-usd, unresolved=usd, note=why)
        book.write(con)
    step(con, attempt_id, "doubted", {"why": why})


def step(con: Connection, attempt_id: str, state: str, facts: Mapping[str, Any] | None = None) -> None:
    steps(con, [(attempt_id, state, facts or {})])


def steps(con: Connection, taken: Sequence[tuple[str, str, Mapping[str, Any]]]) -> None:
    """Write down steps: attempt (each at most once), state and facts."""
    text = """
        select attempt_id::varchar, count(*) from attempt_steps
        where attempt_id in (select unnest($a)::uuid) group by attempt_id
    """
    before: dict[str, int] = dict(rows(con, text, {"a": [a for a, _, _ in taken]}).rows) if taken else {}
    columns, now = ("attempt_id", "step", "state", "facts", "recorded_at"), utc_now()
    values = [(a, before.get(a, 0) + 1, state, json.dumps(dict(facts)), now) for a, state, facts in taken]
    append(con, "attempt_steps", columns, values)


def close_the_dead(con: Connection, why: str = "the process ended before the answer came") -> int:
    """Close what dead processes left open, but for work that outlives a process. Call with the run lock held."""
    found = rows(con, "select attempt_id from open_attempts where not outlives order by opened_at").rows
    close_attempts(con, [str(attempt_id) for (attempt_id,) in found], why)
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

    `write` commits what the engine holds together with whatever is done in the transaction it is given, so that the
    order on disk is the order in which things happened, in as few openings of the database as can be. `closing`
    collects attempts to be closed with the engine's next write.
    """

    def __init__(
        self,
        store: Store,
        *,
        run_id: str,
        setup_id: str,
        backend: str,
        grader_id: str,
        ledger: str,
        run_budget: Decimal | None,
        write: Callable[[Callable[[Connection], None]], None],
        asked: Callable[[Connection, Sequence[str]], None],
        opened: Callable[[Sequence[str]], None],
    ) -> None:
        self.store, self.run_id, self.setup_id, self.backend, self.grader_id = (
            store,
            run_id,
            setup_id,
            backend,
            grader_id,
        )
        self.ledger, self.run_budget, self.write, self.asked, self.opened = ledger, run_budget, write, asked, opened
        self.closing: list[str] = []

    @property
    def folder(self) -> Path:
        """The folder DATABASE.batches, for its owner only."""
        path = batches_of(self.store.path)
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    def open(
        self,
        keys: Sequence[str],
        ceiling_each: Decimal | Sequence[Decimal],
        price: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
        *,
        outlives: bool = False,
    ) -> str:
        ceilings = [ceiling_each] * len(keys) if isinstance(ceiling_each, Decimal) else list(ceiling_each)
        made: list[str] = []

        def work(con: Connection) -> None:
            made.extend(self._reserve(con, [Lot(keys, ceilings)], price, {**(facts or {}), "outlives": outlives}))

        self.write(work)
        self.opened(keys)
        return made[-1]

    def open_many(
        self,
        calls: Sequence[tuple[str, Decimal]],
        price: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> list[str]:
        made: list[str] = []

        def work(con: Connection) -> None:
            lots = [Lot([key], [ceiling]) for key, ceiling in calls]
            made.extend(self._reserve(con, lots, price, {**(facts or {}), "outlives": False}))

        self.write(work)
        self.opened([key for key, _ in calls[: len(made)]])
        return made

    def _reserve(
        self, con: Connection, lots: Sequence[Lot], price: Mapping[str, Any] | None, facts: Mapping[str, Any]
    ) -> list[str]:
        attempts = reserve_many(
            con, run_id=self.run_id, backend=self.backend, grader_id=self.grader_id, lots=lots, price=price, facts=facts,
            run_budget=self.run_budget,
        )  # fmt: skip
        self.asked(con, [key for lot in lots[: len(attempts)] for key in lot.keys])
        return attempts

    def note(self, attempt: str, state: str, facts: Mapping[str, Any] | None = None) -> None:
        self.write(lambda con: step(con, attempt, state, facts))

    def open_attempts(self) -> list[OpenAttempt]:
        parameters = {"grader_id": self.grader_id, "setup_id": self.setup_id}
        with self.store.reader() as con:
            found = rows(con, named_query("out").text, parameters).rows
        merged: dict[str, OpenAttempt] = {}
        for attempt, state, facts in found:
            before = merged[attempt].facts if attempt in merged else {}
            merged[attempt] = OpenAttempt(str(attempt), state, {**before, **json.loads(facts)})
        return list(merged.values())

    def lines(self, attempt: str) -> dict[str, Decimal]:
        with self.store.reader() as con:
            text = "select key::varchar, ceiling_usd from attempt_lines where attempt_id = $attempt"
            return dict(rows(con, text, {"attempt": attempt}).rows)

    def free(self) -> Decimal:
        found: list[Decimal] = []

        def work(con: Connection) -> None:  # with a commit: what is in hand may give money back
            free = balance(con).free or ZERO
            cap = self.run_budget
            found.append(free if cap is None else min(free, cap - run_committed(con, self.run_id)))

        self.write(work)
        return found[-1]

    def learned(self, fact: str) -> Any:
        with self.store.reader() as con:
            found = scalar(con, named_query("learned").text, {"grader_id": self.grader_id, "path": f"$.{fact}"})
        return None if found is None else json.loads(found)

    def close(self, attempt: str) -> None:
        self.closing.append(attempt)

    def settle(self, attempt: str, usd: Decimal, why: str) -> None:
        self.write(lambda con: settle_attempt(con, attempt, usd, why))

    def doubt(self, attempt: str, why: str) -> None:
        self.write(lambda con: doubt_attempt(con, attempt, why))

    def alarm(self, attempt: str, kind: str, why: str) -> None:
        def work(con: Connection) -> None:
            if not scalar(
                con, "select 1 from open_alarms where attempt_id = $a and kind = $k", {"a": attempt, "k": kind}
            ):
                alarm(con, kind, why, attempt)

        self.write(work)


def batches_of(database: Path) -> Path:
    """The folder for the files of batches that belong to a database."""
    return database.with_name(database.name + ".batches")
