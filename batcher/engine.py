"""The one sentence: render prompts, have a backend answer them under a budget, keep every reply, read the replies.

Knows tasks, backends and money through their protocols only. A task says what to ask and how to read an answer; a
backend answers; the engine writes. A question's key is the hash of all that can change its answer, so stopping and
running again is the whole recovery: what has been answered is not asked again, and what was in flight when a process
died is closed (its money unresolved) before anything else is sent.

Writing: replies of attempts that cost money are committed, each with its charge, in chunks of at most 200 or one
second. Free replies wait up to a second whatever their number: all that a crash can lose is a second of work. While
another program holds the database, finished replies go to a spool file beside it and are ingested as soon as it is
free.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

from batcher import ledger, spool
from batcher.ledger import LedgerMeter, NoBudget, run_lock, show_usd
from batcher.questions import Questions, Task, pending, setup_of, write_setup
from batcher.store import Connection, Store, StoreBusy, append, named_query, new_id, rows, utc_now
from graders import (
    AlpaSiftError,
    Backend,
    BackendError,
    BackendUnavailable,
    BudgetExceeded,
    Collects,
    Estimate,
    Reply,
)
from graders.reading import READER, Reading

CHUNK_REPLIES = 200
CHUNK_SECONDS = 1.0


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Put off Ctrl-C and SIGTERM until the block has ended: what is being written is written whole."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda found, frame: came.append(found)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


@dataclass(slots=True)
class Progress:
    """How far a run is: questions, replies, dollars spent by this run."""

    total: int
    replied: int = 0
    scored: int = 0
    usd: Decimal = Decimal(0)
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended. `outcome`: done, partial (budget or work still out) or interrupted."""

    run_id: str
    outcome: str
    asked: int
    replied: int
    scored: int
    already: int
    usd: Decimal
    seconds: float
    left: int = 0
    message: str | None = None


class Run:
    """One run of a task over a dataset version with a backend. A context manager: the run lock is held inside.

    with Run(store, task, backend, version_id, limit=None, budget=None, run_budget=None) as run:
        run.estimate()          # what it will take
        summary = run.go(show)  # ask, keep, read
    """

    def __init__(
        self,
        store: Store,
        task: Task,
        backend: Backend,
        version_id: str,
        *,
        command: str = "grade",
        limit: int | None = None,
        budget: Decimal | None = None,
        run_budget: Decimal | None = None,
        retry: bool = False,
    ) -> None:
        self.store, self.task, self.backend, self.version_id = store, task, backend, version_id
        self.setup = setup_of(task, backend)
        self.command, self.limit, self.budget, self.run_budget, self.retry = command, limit, budget, run_budget, retry
        self.run_id = new_id()
        self.about: dict[str, str] = {}
        self.buffer: list[Reply] = []
        self.flushed = time.monotonic()
        self.spool = spool.spool_of(store.path)
        self.meter: LedgerMeter | None = None
        self._exit = contextlib.ExitStack()
        self.alarmed = False
        rate = os.environ.get("ALPASIFT_USD_PER_HOUR")
        self.usd_per_hour = ledger.parse_usd(rate) if rate else None
        self.progress = Progress(0)

    # -- before -------------------------------------------------------------------------------------------------

    def __enter__(self) -> Run:
        if isinstance(self.backend, Collects):
            raise BackendUnavailable(
                f"{self.backend.name} answers in batches that outlive a run, and runs cannot collect them yet"
            )
        refusal = self.backend.refuses(self.task.rubric.name)
        if refusal:
            raise BackendUnavailable(refusal)
        self._exit.enter_context(run_lock(self.store.path))
        try:
            self._prepare()
        except BaseException:
            self._exit.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._exit.close()

    def _prepare(self) -> None:
        self._ingest_spool()
        with self.store.transaction() as con:
            ledger.close_the_dead(con)
            write_setup(con, self.task, self.backend, self.setup)
            self._read_again(con)
            if self.backend.paid:
                ledger.check_alarms(con)
                if self.budget is None and ledger.balance(con).budget is None:
                    raise NoBudget(
                        f"{self.backend.name} costs money and no budget is set; name one with --budget 5 "
                        "(dollars, for all this database's life)"
                    )
        self.questions, self.already = pending(self.store, self.task, self.backend, self.version_id, retry=self.retry)
        self.matching = len(self.questions) + self.already
        if self.limit is not None:
            self.questions.positions = self.questions.positions[: self.limit]
        self.progress = Progress(len(self.questions))

    def _unreadable(self) -> array[int]:
        """Positions of the rows that this run asked about once and whose answer could not be read."""
        parameters = {"version_id": self.version_id, "setup_id": self.setup.setup_id, "run_id": self.run_id}
        with self.store.reader() as con:
            found = rows(con, named_query("to_ask_again").text, parameters).rows
        return array("q", (position for (position,) in found))

    def estimate(self) -> Estimate:
        """What the questions of this run should take. Sends nothing."""
        return self.backend.estimate(self.questions)

    def check_affordable(self, estimate: Estimate) -> None:
        """Raise BudgetExceeded when the expected cost does not fit and the user did not ask for a part."""
        if not self.backend.paid or not estimate.requests:
            return
        with self.store.reader() as con:
            now = ledger.balance(con)
        budget = self.budget if self.budget is not None else now.budget
        free = (budget or Decimal(0)) - now.committed
        free = free if self.run_budget is None else min(free, self.run_budget)
        if estimate.usd <= free or self.limit is not None:
            return
        each = estimate.usd / estimate.requests
        fits = int(max(free, Decimal(0)) / each) if each else estimate.requests
        advice = f"--limit {fits} grades what fits" if fits else "not even one row fits"
        raise BudgetExceeded(
            f"grading {estimate.requests} rows should cost {show_usd(estimate.usd)} and {show_usd(free)} is free; nothing was sent. "
            f"{advice}, or raise --budget"
        )

    # -- the sentence -------------------------------------------------------------------------------------------

    def go(self, show: Callable[[Progress], None] | None = None) -> Summary:
        """Ask, keep, read. Raises BackendError, LedgerAlarm, StoreBusy; what was answered before is kept.

        KeyboardInterrupt ends the run as interrupted, with the replies in hand committed, and is raised again.
        """
        self.show = show or (lambda progress: None)
        self.started = time.monotonic()
        with uninterrupted():
            self._begin_run()
        outcome, message = "failed", None
        try:
            if self.questions:
                self._ask(self.questions)
                again = self._unreadable() if self._may_lack(len(self.questions)) else None
                if again:
                    self.progress.total += len(again)
                    self._ask(Questions(self.store, self.task, self.setup, self.version_id, again))
            outcome, message = self._outcome()
        except BudgetExceeded as error:
            outcome, message = "partial", str(error)
        except KeyboardInterrupt:
            outcome, message = "interrupted", "interrupted"
            raise
        except AlpaSiftError as error:
            message = str(error)
            raise
        except MemoryError as error:
            message = "out of memory"
            raise BackendError(
                f"{self.backend.name} ran out of memory; what was answered is kept, run again to go on"
            ) from error
        finally:  # whatever happened, a second Ctrl-C too: the answers in hand are kept
            ended = False
            while not ended:
                try:
                    self._end_run(outcome, message)
                    ended = True
                except KeyboardInterrupt:
                    outcome, message = "interrupted", "interrupted"
        if outcome == "interrupted":
            raise KeyboardInterrupt
        left = self.matching - self.already - len(self.questions)
        return Summary(
            self.run_id, outcome, self.progress.total, self.progress.replied, self.progress.scored, self.already,
            self.progress.usd, time.monotonic() - self.started, left, message,
        )  # fmt: skip

    def _outcome(self) -> tuple[str, str | None]:
        """ "done", or "partial" when some of the rows of this run still have to be asked about."""
        asked = set(self.questions.positions)
        if asked and self._may_lack(len(asked)):
            still, _ = pending(self.store, self.task, self.backend, self.version_id)
            without = sum(position in asked for position in still.positions)
            if without:
                return (
                    "partial",
                    f"{without:,} rows got no answer (`alpasift scores` tells why); run again to ask about them",
                )
        left = self.matching - self.already - len(asked)
        return "done", f"{left:,} rows are left; run again without --limit {self.limit}" if left else None

    def _may_lack(self, rows: int) -> bool:
        """Whether some of these rows may be without a score. A server may answer one twice: there only a query tells."""
        return self.backend.paid or self.progress.scored < rows

    def _begin_run(self) -> None:
        facts = {"backend": dict(self.backend.facts), "limit": self.limit, "rows": len(self.questions)}
        row = (
            self.run_id,
            self.command,
            self.setup.setup_id,
            self.version_id,
            os.getpid(),
            json.dumps(facts),
            utc_now(),
        )
        with self.store.transaction() as con:
            if self.budget is not None:  # only now: a command that was not agreed to changes nothing
                ledger.set_budget(con, self.budget)
            append(con, "runs", ("run_id", "command", "setup_id", "version_id", "pid", "facts", "started_at"), [row])

    def _end_run(self, outcome: str, message: str | None) -> None:
        with uninterrupted(), contextlib.suppress(StoreBusy):  # the spool file holds what could not be written
            self._flush()
            facts = {"replied": self.progress.replied, "scored": self.progress.scored, "message": message}
            seconds = time.monotonic() - self.started
            row = (self.run_id, outcome, json.dumps(facts), seconds, self.usd_per_hour, utc_now())
            mine = "select attempt_id from open_attempts where run_id = $run and not outlives"
            with self.store.transaction() as con:
                if not self.spool.exists():
                    for (attempt,) in rows(con, mine, {"run": self.run_id}).rows:
                        ledger.close_attempt(con, str(attempt), f"the run ended: {outcome}")
                append(
                    con,
                    "run_ends",
                    ("run_id", "outcome", "facts", "seconds", "usd_per_hour", "ended_at"),
                    [row],
                    unique=True,
                )

    def _ask(self, questions: Questions) -> None:
        self.about.clear()
        questions.about = self.about
        meter = LedgerMeter(
            self.store, run_id=self.run_id, backend=self.backend.name, grader_id=self.setup.grader_id,
            outlives=isinstance(self.backend, Collects), run_budget=self.run_budget, flush=self._flush, asked=self._asked, opened=self._opened,
        )  # fmt: skip
        self.meter = meter
        answers = self.backend.answer(questions, meter)
        try:
            for replies in answers:
                self.buffer.extend(replies)
                self.progress.replied += len(replies)
                if self._due():
                    self._flush()
                self._stop_on_alarm()
                self._tick()
            self._flush()
            self._stop_on_alarm()
        finally:
            close = getattr(answers, "close", None)
            if close is not None:
                close()
        self._tick()

    def _stop_on_alarm(self) -> None:
        if self.alarmed:
            with self.store.reader() as con:
                ledger.check_alarms(con)

    def _tick(self) -> None:
        self.progress.seconds = time.monotonic() - self.started
        self.show(self.progress)

    def _asked(self, con: Connection, keys: Sequence[str]) -> None:
        """Write down, with the attempt that is being opened, which example each of its questions is about."""
        known = [(key, self.setup.setup_id, self.about[key], 0) for key in keys]
        append(con, "questions", ("key", "setup_id", "example_id", "sample"), known, unique=True)

    def _opened(self, keys: Sequence[str]) -> None:
        for key in keys:  # only now that the attempt is committed: one that was refused may come again, smaller
            del self.about[key]

    # -- writing ------------------------------------------------------------------------------------------------

    def _due(self) -> bool:
        waited = time.monotonic() - self.flushed
        if waited >= CHUNK_SECONDS:
            return bool(self.buffer or (self.meter is not None and self.meter.closing))
        return self.backend.paid and len(self.buffer) >= CHUNK_REPLIES

    def _flush(self) -> None:
        """Commit the replies in hand with their charges and readings, and close the attempts that ended."""
        with uninterrupted():
            while self.buffer or (self.meter is not None and self.meter.closing) or self.spool.exists():
                chunk = self.buffer[:CHUNK_REPLIES] if self.backend.paid else self.buffer[:]
                try:
                    self._commit(chunk)
                except Exception as error:  # whatever it was, what is in hand may be paid for: keep it
                    if chunk:
                        spool.add(self.spool, chunk)
                        del self.buffer[: len(chunk)]
                    if not isinstance(error, StoreBusy):
                        raise
                    break
            self.flushed = time.monotonic()

    def _commit(self, chunk: list[Reply]) -> None:
        """One transaction: what was spooled, these replies, and the closings if these are the last replies in hand."""
        closing = list(self.meter.closing) if self.meter is not None and len(chunk) == len(self.buffer) else []
        spent, alarms = Decimal(0), list[str]()
        with self.store.transaction(wait=2.0) as con:
            if self.spool.exists():
                self._write(con, spool.read(self.spool))
            self._write(con, chunk)
            for attempt in closing:
                ledger.close_attempt(con, attempt)
            if self.backend.paid:
                spent, alarms = ledger.run_spent(con, self.run_id), ledger.open_alarms(con)
        self.spool.unlink(missing_ok=True)
        del self.buffer[: len(chunk)]
        if self.meter is not None:
            del self.meter.closing[: len(closing)]
        self.progress.usd, self.alarmed = spent, self.alarmed or bool(alarms)

    def _write(self, con: Connection, replies: Sequence[Reply]) -> None:
        fresh = ledger.ingest(con, replies)
        self.progress.scored += write_readings(con, [(reply, self._read(reply)) for reply in fresh])

    def _read(self, reply: Reply) -> Reading:
        """The task's reading of a reply; a reader that fails on a text must not keep its charge from being booked."""
        try:
            return self.task.read(reply)
        except Exception as error:  # noqa: BLE001  see above
            return Reading(None, "unreadable", f"the reader failed: {type(error).__name__}: {error}")

    def _ingest_spool(self) -> None:
        """Replies that an earlier run could not write because the database was held."""
        if self.spool.exists():
            try:
                with self.store.transaction() as con:
                    ledger.ingest(con, spool.read(self.spool))
            except ledger.UnknownAttempt as error:
                raise ledger.UnknownAttempt(
                    f"{self.spool} holds replies that were waiting for another copy of {self.store.path} ({error}); "
                    "bring that database back, or move the file away"
                ) from error
            self.spool.unlink()

    def _read_again(self, con: Connection) -> None:
        """Read stored replies of this setup that the present parser has not read yet. Asks nobody."""
        found = rows(con, named_query("unread").text, {"setup_id": self.setup.setup_id, "reader": READER}).rows
        again = [
            Reply(str(a), str(k), r, outcome, text=body, finish_reason=finish, error=error)
            for a, k, r, outcome, body, finish, error in found
        ]
        for start in range(0, len(again), 5000):
            write_readings(con, [(reply, self._read(reply)) for reply in again[start : start + 5000]])


def write_readings(con: Connection, pairs: Sequence[tuple[Reply, Reading]]) -> int:
    """Write how replies were read. Returns how many have a score."""
    now = utc_now()
    table = [
        (
            r.attempt,
            r.key,
            ledger.stored_text(r.request_id),
            READER,
            x.score,
            x.reason,
            ledger.stored_text(x.explanation),
            now,
        )
        for r, x in pairs
    ]
    columns = ("attempt_id", "key", "request_id", "reader", "score", "reason", "explanation", "recorded_at")
    append(con, "readings", columns, table, unique=True)
    return sum(reading.score is not None for _, reading in pairs)
