"""The one sentence: render prompts, have a backend answer them under a budget, keep every reply, read the replies.

Knows tasks, backends and money through their protocols only. A task says what to ask and how to read an answer; a
backend answers; the engine writes. A question's key is the hash of all that can change its answer, so stopping and
running again is the whole recovery: what has been answered is not asked again, and what was in flight when a process
died is closed (its money unresolved) before anything else is sent.

Writing: replies of attempts that cost money are committed, each with its charge, in chunks of at most 200 or one
second. Free replies wait up to a second whatever their number: all that a crash can lose is a second of work. What
was collected from a batch stands in a file already, and goes in chunks of 10,000. While another program holds the
database, finished replies go to a spool file beside it and are ingested as soon as it is free.

Work that outlives a process (a batch at a provider) is collected before anything else is asked, and its questions are
left out of what is asked until it has ended.
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
from dataclasses import asdict, dataclass, replace
from decimal import Decimal

from batcher import ledger, spool
from batcher.identity import check_home, claim, ledger_id
from batcher.ledger import LedgerMeter, NoBudget, run_lock, show_usd
from batcher.questions import Questions, Setup, Task, pending, setup_of, write_setup
from batcher.store import Connection, Store, StoreBusy, append, named_query, new_id, rows, scalar, utc_now
from graders import (
    AlpaSiftError,
    Backend,
    BackendError,
    BackendUnavailable,
    BudgetExceeded,
    Collects,
    Estimate,
    Reply,
    SendingStopped,
)
from graders.reading import READER, Reading

CHUNK_REPLIES = 200
CHUNK_COLLECTED = 10_000
CHUNK_SECONDS = 1.0
SAMPLED_FROM = 5000
SAMPLE_ROWS = 2500
"""Above so many rows a run's estimate, shown before it starts, is counted on so many of them."""


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
        setup: Setup | None = None,
        positions: Sequence[int] | None = None,
        collecting: bool = False,
    ) -> None:
        self.store, self.task, self.backend, self.version_id = store, task, backend, version_id
        self.setup = setup or setup_of(task, backend)
        self.chunk = CHUNK_COLLECTED if isinstance(backend, Collects) else CHUNK_REPLIES
        self.command, self.limit, self.budget, self.run_budget, self.retry = command, limit, budget, run_budget, retry
        self.only = None if positions is None else set(positions)
        self.collecting = collecting
        self.planned: Estimate | None = None
        self.run_id = new_id()
        self.about: dict[str, tuple[str, int]] = {}
        self.buffer: list[Reply] = []
        self.flushed = time.monotonic()
        self.spool = spool.spool_of(store.path)
        self._exit = contextlib.ExitStack()
        self.alarmed = False
        rate = os.environ.get("ALPASIFT_USD_PER_HOUR")
        self.usd_per_hour = ledger.parse_usd(rate) if rate else None
        self.progress = Progress(0)
        self.show: Callable[[Progress], None] = lambda progress: None
        self.started = time.monotonic()

    # -- before -------------------------------------------------------------------------------------------------

    def __enter__(self) -> Run:
        refusal = self.backend.refuses(self.task.rubric.name)
        if refusal is None and not self.collecting:
            refusal = self.backend.cannot(self.task.probe())
        if refusal:
            raise BackendUnavailable(f"{self.backend.name}: {refusal}")
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
        if self.backend.paid:
            with self.store.reader() as con:  # before anything is written: a copy may be somebody's backup
                check_home(con, self.store.path)
        self._ingest_spool()
        with self.store.transaction() as con:
            ledger.close_the_dead(con)
            write_setup(con, self.task, self.backend, self.setup)
            self._read_again(con)
            if self.backend.paid:
                claim(con, self.store.path)
                if self.budget is None and ledger.balance(con).budget is None:
                    raise NoBudget(
                        f"{self.backend.name} costs money and no budget is set; name one with --budget 5 "
                        "(dollars, for all this database's life)"
                    )
            self.spent_before = ledger.balance(con).spent
            identity = ledger_id(con)
        self.meter = LedgerMeter(
            self.store, run_id=self.run_id, setup_id=self.setup.setup_id, backend=self.backend.name,
            grader_id=self.setup.grader_id, ledger=identity, run_budget=self.run_budget, write=self._write_now,
            asked=self._asked, opened=self._opened,
        )  # fmt: skip
        self._sweep()
        self.since = utc_now()
        self.progress = Progress(0)
        if isinstance(self.backend, Collects) and self.meter.open_attempts():
            self._take(self.backend.collect(self.meter))
        if self.backend.paid and not self.collecting:  # an alarm stops sending; what is out is collected, or cancelled
            with self.store.reader() as con:
                ledger.check_alarms(con)
        if self.collecting:
            self.questions = Questions(self.store, self.task, self.setup, self.version_id, array("q"))
            return
        self.questions, self.already = pending(self.store, self.task, self.backend, self.version_id, retry=self.retry)
        if self.only is not None:
            self.questions = self.questions.only(self.only)
        self.matching = len(self.questions) + self.already
        if self.limit is not None:
            self.questions = self.questions.first(self.limit)
        self.asked = len(self.questions)
        self.progress = Progress(self.asked + self._out())

    def _sweep(self) -> None:
        """Delete files that a process which died left behind; those that open attempts are still to send stay."""
        folder = ledger.batches_of(self.store.path)
        if not folder.is_dir():
            return
        with self.store.reader() as con:
            found = rows(con, "select facts::json ->> 'file' from batches where not closed and phase <> 'doubted'").rows
        named = {name for (name,) in found}
        for pattern in ("draft-*", "requests-*", "*.part"):
            for path in folder.glob(pattern):
                if path.name not in named:
                    path.unlink(missing_ok=True)

    def _again(self) -> array[int]:
        """The questions whose newest answer, which came in this run, is of no use though another may be."""
        parameters = {
            "version_id": self.version_id, "setup_id": self.setup.setup_id, "since": self.since,
            "samples": self.task.samples,
        }  # fmt: skip
        with self.store.reader() as con:
            found = rows(con, named_query("to_ask_again").text, parameters).rows
        return array("q", (a for (a,) in found if self.only is None or a // self.task.samples in self.only))

    def estimate(self) -> Estimate:
        """What the questions of this run should take; it is kept with the run, beside what it took. Sends nothing.

        Of a great many rows a sample spread evenly over them is counted: no reservation rests on this figure, each counts
        its own rows.
        """
        rows_to_ask = len(self.questions)
        if rows_to_ask <= SAMPLED_FROM or not self.backend.paid:
            self.planned = self.backend.estimate(self.questions)
            return self.planned
        every = rows_to_ask / SAMPLE_ROWS
        sample = array("q", (self.questions.asks[int(i * every)] for i in range(SAMPLE_ROWS)))
        counted = self.backend.estimate(Questions(self.store, self.task, self.setup, self.version_id, sample))
        self.planned = _scaled(counted, rows_to_ask)
        return self.planned

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
        advice = f"--limit {fits} grades what fits, or" if fits else "Not even one row fits;"
        raise BudgetExceeded(
            f"grading {estimate.requests} rows should cost {show_usd(estimate.usd)} and {show_usd(free)} is free; nothing was sent. "
            f"{advice} raise --budget"
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
            if self.questions or isinstance(self.backend, Collects):
                self._ask(self.questions)
                again = self._again() if self._may_lack(len(self.questions)) else None
                if again and not self._out():
                    self.progress.total += len(again)
                    self.asked += len(again)
                    self._ask(Questions(self.store, self.task, self.setup, self.version_id, again))
                self._stop_on_alarm()
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
        left = 0 if self.only is not None else self.matching - self.already - len(self.questions)
        return Summary(
            self.run_id, outcome, self.asked, self.progress.replied, self.progress.scored, self.already,
            self.progress.usd, time.monotonic() - self.started, left, message,
        )  # fmt: skip

    def _outcome(self) -> tuple[str, str | None]:
        """ "done", or "partial" when some of the rows of this run still have to be asked about."""
        asked = set(self.questions.asks)
        out = self._out()
        if out:
            return "partial", f"{out:,} rows are out with batches; `alpasift collect` brings what has come"
        if asked and self._may_lack(len(asked)):
            still, _ = pending(self.store, self.task, self.backend, self.version_id)
            without = sum(ask in asked for ask in still.asks)
            if without:
                return (
                    "partial",
                    f"{without:,} rows got no answer (`alpasift scores` tells why); run again to ask about them",
                )
        left = 0 if self.only is not None else self.matching - self.already - len(asked)
        return "done", f"{left:,} rows are left; run again without --limit {self.limit}" if left else None

    def _out(self) -> int:
        """How many questions are out with batches that have not ended."""
        if not isinstance(self.backend, Collects):
            return 0
        with self.store.reader() as con:
            text = "select count(*) from questions_out where setup_id = $setup"
            return int(scalar(con, text, {"setup": self.setup.setup_id}))

    def _may_lack(self, rows: int) -> bool:
        """Whether some of these rows may be without a score. A server may answer one twice: there only a query tells."""
        return self.backend.paid or self.progress.scored < rows

    def _begin_run(self) -> None:
        facts: dict[str, object] = {
            "backend": dict(self.backend.facts),
            "limit": self.limit,
            "rows": len(self.questions),
        }
        if self.planned is not None:
            facts["estimate"] = {k: str(v) if isinstance(v, Decimal) else v for k, v in asdict(self.planned).items()}
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
                    open_still = [str(attempt) for (attempt,) in rows(con, mine, {"run": self.run_id}).rows]
                    ledger.close_attempts(con, open_still, f"the run ended: {outcome}")
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
        self._take(self.backend.answer(questions, self.meter))

    def _take(self, answers: Iterator[list[Reply]]) -> None:
        """Keep every reply. After an alarm no reservation is given, so that only what is in flight still comes."""
        sends = not isinstance(self.backend, Collects)
        try:
            for replies in answers:
                self.buffer.extend(replies)
                self.progress.replied += len(replies)
                if self._due():
                    self._flush()
                self._tick()
            self._flush()
            if sends:
                self._stop_on_alarm()
        finally:
            close = getattr(answers, "close", None)
            if close is not None:
                close()
        self._tick()

    def gather(self, show: Callable[[Progress], None] | None = None, *, wait: bool = False) -> int:
        """Collect what is out of this setup, with `wait` until nothing is. Returns how many questions are still out."""
        assert isinstance(self.backend, Collects)
        self.show = show or (lambda progress: None)
        try:
            if wait:
                self._take(self.backend.collect(self.meter, wait=True))
        finally:
            self._flush()
        return self._out()

    def cancel(self, attempt: str) -> None:
        """Stop one attempt that is out and keep what was done of it."""
        assert isinstance(self.backend, Collects)
        try:
            self._take(self.backend.cancel(attempt, self.meter))
        finally:
            self._flush()

    def _stop_on_alarm(self) -> None:
        if self.alarmed:
            with self.store.reader() as con:
                ledger.check_alarms(con)

    def _tick(self) -> None:
        self.progress.seconds = time.monotonic() - self.started
        self.show(self.progress)

    def _asked(self, con: Connection, keys: Sequence[str]) -> None:
        """Write down, with the attempt that is being opened, which example each of its questions is about."""
        known = [(key, self.setup.setup_id, *self.about[key]) for key in keys if key in self.about]
        append(con, "questions", ("key", "setup_id", "example_id", "sample"), known, unique=True)

    def _opened(self, keys: Sequence[str]) -> None:
        for key in keys:  # only now that the attempt is committed: one that was refused may come again, smaller
            self.about.pop(key, None)

    def out_of(self, attempts: Sequence[str]) -> int:
        """How many questions of these attempts are still out."""
        with self.store.reader() as con:
            text = "select count(*) from questions_out where attempt_id in (select unnest($attempts)::uuid)"
            return int(scalar(con, text, {"attempts": list(attempts)}))

    def take_by_hand(self, replies: Iterator[list[Reply]]) -> None:
        """Keep replies that a person brought."""
        try:
            self._take(replies)
        finally:
            self._flush()

    def go_by_hand(self, carry: Callable[[Questions, LedgerMeter], Iterator[list[Reply]]]) -> None:
        """A run whose questions are written out to be carried by hand; `carry` opens the attempts and writes the files."""
        outcome, message = "failed", None
        with uninterrupted():
            self._begin_run()
        try:
            self.about.clear()
            self.questions.about = self.about
            self.take_by_hand(carry(self.questions, self.meter))
            outcome = "partial"
        except AlpaSiftError as error:
            message = str(error)
            raise
        finally:
            self._end_run(outcome, message)

    # -- writing ------------------------------------------------------------------------------------------------

    def _due(self) -> bool:
        waited = time.monotonic() - self.flushed
        if waited >= CHUNK_SECONDS and self.chunk == CHUNK_REPLIES:
            return bool(self.buffer or self.meter.closing)
        return bool(self.meter.closing) or (self.backend.paid and len(self.buffer) >= self.chunk)

    def _flush(self) -> None:
        """Commit the replies in hand with their charges and readings, and close the attempts that ended."""
        with uninterrupted():
            while self.buffer or self.meter.closing or self.spool.exists():
                try:
                    self._commit(self._next_chunk())
                except StoreBusy:  # kept in the spool file
                    break
            self.flushed = time.monotonic()

    def _write_now(self, work: Callable[[Connection], None]) -> None:
        """Commit the replies in hand and, in the transaction of the last of them, this piece of work."""
        with uninterrupted():
            while len(self.buffer) > self.chunk:
                self._commit(self._next_chunk(), wait=self.store.wait)
            self._commit(self.buffer[:], work, wait=self.store.wait)
            self.flushed = time.monotonic()

    def _next_chunk(self) -> list[Reply]:
        return self.buffer[: self.chunk] if self.backend.paid else self.buffer[:]

    def _commit(self, chunk: list[Reply], work: Callable[[Connection], None] | None = None, wait: float = 2.0) -> None:
        """One transaction: what was spooled, these replies, the closings if these are the last replies in hand, the work.

        Whatever goes wrong, what is in hand may be paid for: unless only the work was refused, it goes to the spool file.
        """
        closing = list(self.meter.closing) if len(chunk) == len(self.buffer) else []
        spent, alarms, scored = Decimal(0), list[str](), 0
        try:
            with self.store.transaction(wait=wait) as con:
                if self.spool.exists():
                    scored += self._write(con, spool.read(self.spool))
                scored += self._write(con, chunk)
                ledger.close_attempts(con, closing)
                if work is not None:
                    work(con)
                if self.backend.paid:
                    spent, alarms = ledger.balance(con).spent - self.spent_before, ledger.open_alarms(con)
        except (BudgetExceeded, SendingStopped, NoBudget):
            raise  # the work was refused: the replies stay in hand
        except Exception:
            if chunk:
                spool.add(self.spool, chunk)
                del self.buffer[: len(chunk)]
            raise
        self.spool.unlink(missing_ok=True)
        del self.buffer[: len(chunk)]
        del self.meter.closing[: len(closing)]
        self.progress.usd, self.alarmed = spent, bool(alarms)
        self.progress.scored += scored

    def _write(self, con: Connection, replies: Sequence[Reply]) -> int:
        """Write replies, their charges and readings; returns how many of them have a score."""
        fresh = ledger.ingest(con, replies)
        return write_readings(con, [(reply, self._read(reply)) for reply in fresh])

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
            Reply(
                str(a),
                str(k),
                r,
                outcome,
                text=body,
                finish_reason=finish,
                error=error,
                logprobs=json.loads(logprobs) if logprobs else None,
            )
            for a, k, r, outcome, body, finish, error, logprobs in found
        ]
        for start in range(0, len(again), 5000):
            write_readings(con, [(reply, self._read(reply)) for reply in again[start : start + 5000]])


def _scaled(sample: Estimate, rows_to_ask: int) -> Estimate:
    """The estimate of all rows from that of some of them. Two per cent are added on either side for what was not counted."""
    share = Decimal(rows_to_ask) / sample.requests
    note = f"counted on {sample.requests:,} of the {rows_to_ask:,} rows; each reservation counts every row of its own"

    def seconds(value: float | None) -> float | None:
        return None if value is None else value * float(share)

    return replace(
        sample, requests=rows_to_ask, usd=sample.usd * share, usd_low=sample.usd_low * share * Decimal("0.98"),
        usd_high=sample.usd_high * share * Decimal("1.02"), ceiling_usd=sample.ceiling_usd * share * Decimal("1.02"),
        seconds=seconds(sample.seconds), seconds_low=seconds(sample.seconds_low), seconds_high=seconds(sample.seconds_high),
        sync_usd=None if sample.sync_usd is None else sample.sync_usd * share,
        input_tokens=int(sample.input_tokens * share), output_tokens=int(sample.output_tokens * share),
        rounds=None if sample.rounds is None else max(1, round(sample.rounds * share)), notes=(*sample.notes, note),
    )  # fmt: skip


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
            x.expected,
            x.reason,
            ledger.stored_text(x.explanation),
            now,
        )
        for r, x in pairs
    ]
    columns = ("attempt_id", "key", "request_id", "reader", "score", "expected", "reason", "explanation", "recorded_at")
    append(con, "readings", columns, table, unique=True)
    return sum(reading.score is not None for _, reading in pairs)
