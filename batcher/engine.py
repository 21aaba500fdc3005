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
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any, Protocol

from batcher import ledger
from batcher.ledger import LedgerMeter, NoBudget, run_lock, show_usd
from batcher.store import Connection, Store, StoreBusy, append, hash_id, named_query, new_id, rows, scalar, utc_now
from graders import (
    AlpaSiftError,
    Backend,
    BackendError,
    BackendUnavailable,
    BudgetExceeded,
    Collects,
    Estimate,
    Example,
    Reply,
    Request,
    Turn,
)
from graders.reading import READER, Reading
from graders.rubric import Rubric

CHUNK_REPLIES = 200
CHUNK_SECONDS = 1.0
PAGE_ROWS = 2000


class Task(Protocol):
    """What to ask about an example, and how to read the answer."""

    name: str

    @property
    def rubric(self) -> Rubric: ...

    @property
    def decoding(self) -> Mapping[str, Any]: ...

    def request(self, example_id: str, example: Example, setup_id: str, sample: int) -> Request: ...

    def read(self, reply: Reply) -> Reading: ...


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


@dataclass(frozen=True, slots=True)
class Setup:
    """Who answers which rubric and how: the ids under which questions and grades are kept."""

    setup_id: str
    grader_id: str
    rubric_id: str
    fingerprint: str
    decoding: str


def setup_of(task: Task, backend: Backend) -> Setup:
    """The ids of a task put to a backend: hashes of all that can change an answer. Writes nothing."""
    fingerprint = json.dumps(dict(backend.fingerprint), sort_keys=True)
    decoding = json.dumps(dict(task.decoding), sort_keys=True)
    grader_id = hash_id("grader", backend.name, fingerprint)
    rubric_id = hash_id("rubric", task.rubric.digest())
    return Setup(
        hash_id("setup", task.name, grader_id, rubric_id, decoding), grader_id, rubric_id, fingerprint, decoding
    )


def _write_setup(con: Connection, task: Task, backend: Backend, setup: Setup) -> None:
    rubric = task.rubric
    _register(con, "graders", "grader_id", setup.grader_id, backend.name, {"fingerprint": setup.fingerprint})
    scale = {
        "scale_low": rubric.low,
        "scale_high": rubric.high,
        "scale_step": rubric.step,
        "threshold": rubric.threshold,
    }
    content = {**scale, "content": json.dumps(rubric.content())}
    _register(con, "rubrics", "rubric_id", setup.rubric_id, rubric.name, content)
    columns = ("setup_id", "task", "grader_id", "rubric_id", "decoding")
    row = (setup.setup_id, task.name, setup.grader_id, setup.rubric_id, setup.decoding)
    append(con, "setups", columns, [row], unique=True)


def _register(con: Connection, table: str, id_column: str, identity: str, name: str, extra: Mapping[str, Any]) -> None:
    if scalar(con, f"select 1 from {table} where {id_column} = $id", {"id": identity}):
        return
    version = (scalar(con, f"select max(version) from {table} where name = $name", {"name": name}) or 0) + 1
    columns = (id_column, "name", "version", *extra, "first_seen")
    append(con, table, columns, [(identity, name, version, *extra.values(), utc_now())])


class Questions:
    """What a setup still has to ask about a dataset version, rendered page by page: memory does not grow with it.

    Can be gone through again. `about` remembers, where one is given, which example each rendered key is about.
    """

    def __init__(
        self,
        store: Store,
        task: Task,
        setup: Setup,
        version_id: str,
        positions: array[int],
        about: dict[str, str] | None = None,
    ) -> None:
        self.store, self.task, self.setup, self.version_id = store, task, setup, version_id
        self.positions, self.about = positions, about

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[Request]:
        for start in range(0, len(self.positions), PAGE_ROWS):
            for example_id, example in self._page(self.positions[start : start + PAGE_ROWS]):
                request = self.task.request(example_id, example, self.setup.setup_id, 0)
                if self.about is not None:
                    self.about[request.key] = example_id
                yield request

    def _page(self, positions: array[int]) -> list[tuple[str, Example]]:
        parameters = {
            "version_id": self.version_id,
            "low": positions[0],
            "high": positions[-1],
            "positions": list(positions),
        }
        with self.store.reader() as con:
            found = rows(con, named_query("examples_at").text, parameters).rows
        return [
            (
                str(i),
                Example(
                    instruction, input_, output, system, tuple(Turn(*t) for t in json.loads(turns)) if turns else ()
                ),
            )
            for i, system, turns, instruction, input_, output in found
        ]


def pending(
    store: Store, task: Task, backend: Backend, version_id: str, *, retry: bool = False
) -> tuple[Questions, int]:
    """The questions that are still to be asked, and how many rows are answered already. Writes nothing."""
    setup = setup_of(task, backend)
    parameters = {"version_id": version_id, "setup_id": setup.setup_id, "retry": retry}
    with store.reader() as con:
        found = rows(con, named_query("to_ask").text, parameters).rows
    ask = array("q", (position for position, wanted in found if wanted))
    return Questions(store, task, setup, version_id, ask), len(found) - len(ask)


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
        self.spool = store.path.with_name(store.path.name + ".spool")
        self._exit = contextlib.ExitStack()
        self.alarmed = False
        rate = os.environ.get("ALPASIFT_USD_PER_HOUR")
        self.usd_per_hour = ledger.parse_usd(rate) if rate else None
        self.progress = Progress(0)

    # -- before -------------------------------------------------------------------------------------------------

    def __enter__(self) -> Run:
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
            _write_setup(con, self.task, self.backend, self.setup)
            if self.backend.paid:
                ledger.check_alarms(con)
                if self.budget is None and ledger.balance(con).budget is None:
                    raise NoBudget(
                        f"{self.backend.name} costs money and no budget is set; name one with --budget 5 "
                        "(dollars, for all this database's life)"
                    )
        self._read_again()
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
        self._begin_run()
        outcome, message = "failed", None
        try:
            if self.questions:
                self._ask(self.questions)
                again = self._unreadable()
                if again:
                    self.progress.total += len(again)
                    self._ask(Questions(self.store, self.task, self.setup, self.version_id, again))
            outcome = "done"
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
        finally:  # whatever happened: the answers in hand are kept
            self._end_run(outcome, message)
        left = self.matching - self.already - len(self.questions)
        if outcome == "done" and left:
            message = f"{left:,} rows are left; run again without --limit {self.limit}"
        return Summary(
            self.run_id, outcome, self.progress.total, self.progress.replied, self.progress.scored, self.already,
            self.progress.usd, time.monotonic() - self.started, left, message,
        )  # fmt: skip

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
        with contextlib.suppress(StoreBusy):  # the spool file holds what could not be written
            self._flush()
            facts = {"replied": self.progress.replied, "scored": self.progress.scored, "message": message}
            row = (
                self.run_id,
                outcome,
                json.dumps(facts),
                time.monotonic() - self.started,
                self.usd_per_hour,
                utc_now(),
            )
            with self.store.transaction() as con:
                for (attempt,) in rows(
                    con, "select attempt_id from open_attempts where run_id = $r and not outlives", {"r": self.run_id}
                ).rows:
                    ledger.close_attempt(con, str(attempt), f"the run ended: {outcome}")
                append(con, "run_ends", ("run_id", "outcome", "facts", "seconds", "usd_per_hour", "ended_at"), [row])

    def _ask(self, questions: Questions) -> None:
        self.about.clear()
        questions.about = self.about
        meter = LedgerMeter(
            self.store, run_id=self.run_id, backend=self.backend.name, grader_id=self.setup.grader_id,
            outlives=isinstance(self.backend, Collects), run_budget=self.run_budget, flush=self._flush, asked=self._asked,
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
        known = [(key, self.setup.setup_id, self.about.pop(key), 0) for key in keys if key in self.about]
        append(con, "questions", ("key", "setup_id", "example_id", "sample"), known, unique=True)

    # -- writing ------------------------------------------------------------------------------------------------

    def _due(self) -> bool:
        waited = time.monotonic() - self.flushed
        if waited >= CHUNK_SECONDS:
            return bool(self.buffer or self.meter.closing)
        return self.backend.paid and len(self.buffer) >= CHUNK_REPLIES

    def _flush(self) -> None:
        """Commit the replies in hand with their charges and readings, and close the attempts that ended."""
        meter = getattr(self, "meter", None)
        while self.buffer or (meter is not None and meter.closing) or self.spool.exists():
            chunk = self.buffer[:CHUNK_REPLIES] if self.backend.paid else self.buffer[:]
            last = len(chunk) == len(self.buffer)
            closing = list(meter.closing) if meter is not None and last else []
            try:
                with self.store.transaction(wait=2.0) as con:
                    if self.spool.exists():
                        self._write(con, _read_spool(self.spool))
                    self._write(con, chunk)
                    for attempt in closing:
                        ledger.close_attempt(con, attempt)
                    spent = ledger.run_spent(con, self.run_id) if self.backend.paid else Decimal(0)
                    alarms = ledger.open_alarms(con) if self.backend.paid else []
            except StoreBusy:
                if chunk:
                    _add_to_spool(self.spool, chunk)
                    del self.buffer[: len(chunk)]
                self.flushed = time.monotonic()
                return
            self.spool.unlink(missing_ok=True)
            del self.buffer[: len(chunk)]
            if meter is not None:
                del meter.closing[: len(closing)]
            self.progress.usd, self.alarmed = spent, self.alarmed or bool(alarms)
        self.flushed = time.monotonic()

    def _write(self, con: Connection, replies: Sequence[Reply]) -> None:
        fresh = ledger.ingest(con, replies)
        self.progress.scored += write_readings(con, [(reply, self.task.read(reply)) for reply in fresh])

    def _ingest_spool(self) -> None:
        """Replies that an earlier run could not write because the database was held."""
        if self.spool.exists():
            try:
                with self.store.transaction() as con:
                    ledger.ingest(con, _read_spool(self.spool))
            except ledger.UnknownAttempt as error:
                raise ledger.UnknownAttempt(
                    f"{self.spool} holds replies that were waiting for another copy of {self.store.path} ({error}); "
                    "bring that database back, or move the file away"
                ) from error
            self.spool.unlink()

    def _read_again(self) -> None:
        """Read stored replies of this setup that the present parser has not read yet. Asks nobody."""
        text = named_query("unread").text
        with self.store.transaction() as con:
            found = rows(con, text, {"setup_id": self.setup.setup_id, "reader": READER}).rows
            again = [
                Reply(str(a), str(k), r, outcome, text=body, finish_reason=finish, error=error)
                for a, k, r, outcome, body, finish, error in found
            ]
            for start in range(0, len(again), 5000):
                write_readings(con, [(reply, self.task.read(reply)) for reply in again[start : start + 5000]])


def write_readings(con: Connection, pairs: Sequence[tuple[Reply, Reading]]) -> int:
    """Write how replies were read. Returns how many have a score."""
    now = utc_now()
    table = [(r.attempt, r.key, r.request_id, READER, x.score, x.reason, x.explanation, now) for r, x in pairs]
    columns = ("attempt_id", "key", "request_id", "reader", "score", "reason", "explanation", "recorded_at")
    append(con, "readings", columns, table, unique=True)
    return sum(reading.score is not None for _, reading in pairs)


def _read_spool(path: Any) -> list[Reply]:
    replies = []
    for line in path.read_text("utf-8").splitlines():
        with contextlib.suppress(ValueError, TypeError):  # a line cut by a crash was never acknowledged
            replies.append(Reply(**json.loads(line)))
    return replies


def _add_to_spool(path: Any, replies: Sequence[Reply]) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(handle, "".join(json.dumps(asdict(r)) + "\n" for r in replies).encode())
        os.fsync(handle)
    finally:
        os.close(handle)
