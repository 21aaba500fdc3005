"""One run: render prompts, have a backend answer them under a budget, store every reply, read the replies.

Knows tasks, backends and money through their protocols only. A question's key is the hash of all that can change its
answer, so stopping and running again is the whole recovery: what has been answered is not asked again, and what was in
flight when a process died is closed (its money unresolved) before anything else is sent.

Work that outlives a process (a batch at a provider) is collected before anything else is asked, and its questions are
left out of what is asked until it has ended. What is committed together, and when, is in `writer`.
"""

from __future__ import annotations

import contextlib
import os
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from decimal import Decimal

from alpasift.batcher.engine.early_stop import LOOKED_AT, EarlyStop
from alpasift.batcher.engine.estimates import check_affordable, estimate
from alpasift.batcher.engine.history import recall_queue_limit
from alpasift.batcher.engine.in_flight import counted, interrupted
from alpasift.batcher.engine.interrupts import Interrupts, noted, uninterrupted
from alpasift.batcher.engine.questions import Questions, pending
from alpasift.batcher.engine.readings import read_again
from alpasift.batcher.engine.setups import PromptSetup, setup_of, write_setup
from alpasift.batcher.engine.summary import Brought, Progress, Summary
from alpasift.batcher.engine.task import Source, Task
from alpasift.batcher.engine.waiting import waiting_for
from alpasift.batcher.engine.writer import Writer
from alpasift.batcher.money import attempts, dollars, ledger
from alpasift.batcher.money.copies import check_not_a_copy, ledger_id, register
from alpasift.batcher.money.ledger import NoBudget
from alpasift.batcher.money.meter import LedgerMeter, delete_leftovers
from alpasift.batcher.store import Store, StoreBusy, append, named_query, new_id, rows, scalar, stored_json, utc_now
from alpasift.batcher.store.lock import run_lock
from alpasift.graders import (
    AlpaSiftError,
    Backend,
    BackendError,
    BackendUnavailable,
    BudgetExceeded,
    Collects,
    Estimate,
    Replies,
    Reply,
)

LOOK_SECONDS = 2.0
"""Seconds between two looks at what is waited for."""


class Run:
    """One run of a task over a dataset version with a backend. A context manager: the run lock is held inside.

    with Run(store, task, backend, version_id, limit=None, budget=None, run_budget=None) as run:
        run.estimate()          # what it will take
        summary = run.go(show)  # ask, store, read

    limit        ask about so many rows at most
    budget       set the cap of the database, once the run begins
    run_budget   cap this run on top of it
    retry        ask again what was given up
    keep_going   ask on though hardly any answer can be read; what was answered so is not asked about again
    setup        the ids of the task and backend, where they are known already
    positions    ask about the rows at these positions only
    numbers      ask these questions only: position * samples + sample
    collecting   ask nothing: only collect, cancel or take in what is in flight
    """

    def __init__(  # the settings of a run, each of its own kind
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
        keep_going: bool = False,
        setup: PromptSetup | None = None,
        positions: Sequence[int] | None = None,
        numbers: Sequence[int] | None = None,
        collecting: bool = False,
    ) -> None:
        self.store, self.task, self.backend, self.version_id = store, task, backend, version_id
        self.setup = setup or setup_of(task, backend)
        self.command, self.limit, self.budget, self.run_budget, self.retry = command, limit, budget, run_budget, retry
        self.only = None if numbers is None else set(numbers)
        if positions is not None:
            self.only = {at * task.samples + sample for at in positions for sample in range(task.samples)}
        self.keep_going, self.collecting = keep_going, collecting
        self.early_stop = EarlyStop(backend.name, off=keep_going)
        self.planned: Estimate | None = None
        self.expected_usd: Decimal | None = None  # the estimate corrected by past runs, as it was shown
        self.run_id = new_id()
        self.writer = Writer(
            store, task, self.setup.setup_id, paid=backend.paid, collected=isinstance(backend, Collects)
        )
        self._exit = contextlib.ExitStack()
        rate = os.environ.get("ALPASIFT_USD_PER_HOUR")
        self.usd_per_hour = dollars.parse_usd(rate) if rate else None
        self.progress = Progress(0)
        self.brought = Brought()
        self.show: Callable[[Progress], None] = lambda progress: None
        self.started = time.monotonic()
        self._looked_at = -LOOK_SECONDS

    # -- before -------------------------------------------------------------------------------------------------

    def __enter__(self) -> Run:
        reason = None if self.collecting else self.backend.cannot(self.task.probe())
        if reason:
            raise BackendUnavailable(f"{self.backend.name}: {reason}")
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
        """Put the database in order, collect what is in flight, and find out what is still to be asked."""
        if self.backend.paid:
            with self.store.reader() as con:  # before anything is written: a copy may be somebody's backup
                check_not_a_copy(con, self.store.path)
        self.writer.ingest_spool()
        self.meter = self._open_ledger()
        delete_leftovers(self.store)
        self.since = utc_now()
        if isinstance(self.backend, Collects) and self.meter.open_attempts():
            self._take(self.backend.collect(self.meter))
            if not self.collecting:  # what the batches of an earlier run brought is counted apart
                self.brought = Brought(self.progress.replied, self.writer.usable, self.writer.spent)
                self.writer.count_anew()
        if self.backend.paid and not self.collecting:  # an alarm stops sending; what is in flight is still collected
            with self.store.reader() as con:
                ledger.check_alarms(con)
        if self.collecting:
            nothing = Source(self.version_id, self.version_id)
            self.questions = Questions(self.store, self.task, self.setup, nothing, array("q"))
            return
        self._find_questions()
        if self.only is not None:
            self.questions = self.questions.only(self.only)
        self.matching = len(self.questions) + self.already
        if self.limit is not None:
            self.questions = self.questions.first(self.limit)
        self.asked = len(self.questions)
        self.progress = Progress(self.asked + self._in_flight())

    def _find_questions(self) -> None:
        """What is still to be asked. Raises GraderUnreadable where what was answered before could not be read."""
        found = pending(
            self.store,
            self.task,
            self.backend,
            self.version_id,
            retry=self.retry,
            most_answers=1 if self.keep_going else 2,
        )
        self.questions, self.already = found.questions, found.already
        self.lost = self.questions.lost
        if self.retry:
            unread: list[tuple[str, str]] = []
        else:
            unread = self._unread_answers(min(found.unread, LOOKED_AT)) if found.unread else []
            self.early_stop.remember(found.usable, unread)
        self.writer.early_stop = self.early_stop
        if len(self.questions):
            self.early_stop.check()
            if len(self.questions) <= found.unread:
                self.early_stop.check_at_end()

    def _unread_answers(self, count: int) -> list[tuple[str, str]]:
        """Why the newest answers that could not be read could not, and what they say."""
        parameters = {"setup_id": self.setup.setup_id, "row_limit": count}
        with self.store.reader() as con:
            found = rows(con, named_query("unread_answers").text, parameters).rows
        return [(str(reason), str(text)) for reason, text in found]

    def _open_ledger(self) -> LedgerMeter:
        """Close what dead processes left open and read stored replies anew, in one transaction."""
        with self.store.transaction() as con:
            attempts.close_orphaned_attempts(con)
            read_again(con, self.task, self.setup.setup_id)
            if self.backend.paid:
                register(con, self.store.path)
                if self.budget is None and ledger.balance(con).budget is None:
                    raise NoBudget(
                        f"{self.backend.name} costs money and no budget is set; set one with --budget 5 "
                        "(dollars, a cap on the total of this database)"
                    )
            self.writer.spent_before = ledger.balance(con).spent
            identity = ledger_id(con)
        return LedgerMeter(
            self.store,
            self.writer,
            run_id=self.run_id,
            setup_id=self.setup.setup_id,
            backend=self.backend.name,
            grader_id=self.setup.grader_id,
            ledger=identity,
            run_budget=self.run_budget,
        )

    def estimate(self) -> Estimate:
        """What the questions of this run should take; it is kept with the run, beside what it took. Sends nothing."""
        recall_queue_limit(self.store, self.task, self.backend)
        self.planned = estimate(self.backend, self.questions)
        return self.planned

    def check_affordable(self, estimate: Estimate) -> None:
        """Raise BudgetExceeded when the expected cost does not fit and the user did not ask for a part."""
        if self.backend.paid and estimate.requests and self.limit is None:
            check_affordable(self.store, estimate, self.budget, self.run_budget, self.task.samples)

    # -- asking -------------------------------------------------------------------------------------------------

    def go(self, show: Callable[[Progress], None] | None = None) -> Summary:
        """Ask, store, read. Raises BackendError, LedgerAlarm, StoreBusy; what was answered before is kept.

        KeyboardInterrupt ends the run as interrupted, with the replies in hand committed, and is raised again.
        """
        self.show = show or (lambda progress: None)
        self.started = time.monotonic()
        with uninterrupted():
            self._begin()
        outcome, message = "failed", None
        try:
            if self.questions or isinstance(self.backend, Collects):
                self._ask_all()
            outcome, message = self._outcome()
        except BudgetExceeded as error:
            outcome, message = "partial", str(error)
        except KeyboardInterrupt:
            outcome, message = "interrupted", "interrupted"
        except AlpaSiftError as error:
            message = str(error)
            raise
        except MemoryError as error:
            message = "out of memory"
            raise BackendError(
                f"{self.backend.name} ran out of memory; answers so far are kept, run again to resume"
            ) from error
        finally:  # whatever happened, a second Ctrl-C too: the answers in hand are kept
            ended = False
            while not ended:
                try:
                    self._end(outcome, message)
                    ended = True
                except KeyboardInterrupt:
                    outcome, message = "interrupted", "interrupted"
        if outcome == "interrupted":
            raise interrupted(self.store)
        return Summary(
            self.run_id,
            outcome,
            self.asked,
            self.progress.replied,
            self.progress.usable,
            self.already,
            self.progress.usd,
            time.monotonic() - self.started,
            self.left(),
            message,
            self.brought,
        )

    def _ask_all(self) -> None:
        """Ask every question, and once more those whose answer was of no use though another may be."""
        self._ask(self.questions)
        self.early_stop.check_at_end()
        again = self._to_retry() if self._may_lack(len(self.questions)) and not self.early_stop.useless else None
        if again and not self._in_flight():
            self.progress.total += len(again)
            self.asked += len(again)
            self._ask(self.questions.some(again))
        self._stop_on_alarm()

    def _ask(self, questions: Questions) -> None:
        self.writer.about.clear()
        questions.about = self.writer.about
        self._take(self.backend.answer(questions, self.meter))

    def _to_retry(self) -> array[int]:
        """The questions whose newest answer, which came in this run, is of no use though another may be."""
        parameters = {
            "source_id": self.questions.source.source_id,
            "setup_id": self.setup.setup_id,
            "since": self.since,
            "samples": self.task.samples,
        }
        with self.store.reader() as con:
            found = rows(con, named_query("questions_to_retry").text, parameters).rows
        return array("q", (n for (n,) in found if self.only is None or n in self.only))

    def _take(self, answers: Replies) -> None:
        """Store every reply. After an alarm no reservation is given, so that only what is in flight still comes."""
        sends = not isinstance(self.backend, Collects)
        with noted(self.backend.paid) as interrupts, contextlib.closing(answers):
            for replies in _told(answers, interrupts):
                self.progress.replied += len(replies)
                self.writer.add(replies)
                if not replies and not sends:
                    self._look_at_batches()
                self._tick()
                if not self.backend.paid:  # what costs money asks the meter, and takes in what is in flight
                    self.early_stop.check()
            self.writer.flush()
            if sends:
                self._stop_on_alarm()
        self._tick()

    def _look_at_batches(self) -> None:
        """Bring up to date what a run waits for, some seconds apart. A database that is held now is no matter."""
        if time.monotonic() - self._looked_at >= LOOK_SECONDS:
            self._looked_at = time.monotonic()
            with contextlib.suppress(StoreBusy):
                self.progress.waiting = waiting_for(self.store, self.setup.setup_id)

    def _tick(self) -> None:
        self.progress.usd, self.progress.usable = self.writer.spent, self.writer.usable
        self.progress.seconds = time.monotonic() - self.started
        with contextlib.suppress(OSError):  # a terminal that is gone ends no run
            self.show(self.progress)

    def _stop_on_alarm(self) -> None:
        if self.writer.alarmed:
            with self.store.reader() as con:
                ledger.check_alarms(con)

    # -- how it ended -------------------------------------------------------------------------------------------

    def _outcome(self) -> tuple[str, str | None]:
        """ "done", or "partial" when some of the questions of this run still have to be asked."""
        asked = set(self.questions.numbers)
        in_flight = self._in_flight()
        if in_flight:
            return "partial", (
                f"{counted(in_flight, 'row')} in flight in batches; `alpasift collect` fetches finished results"
            )
        if asked and self._may_lack(len(asked)):
            still = pending(self.store, self.task, self.backend, self.version_id).questions
            without = sum(number in asked for number in still.numbers)
            if without:
                return (
                    "partial",
                    f"{without:,} rows got no answer (`alpasift scores` shows why); run again to grade them",
                )
        left = self.left()
        said = [f"{left:,} rows are not graded yet; run again without --limit {self.limit}"] if left else []
        if self.lost:
            rows_were = "row was" if self.lost == 1 else "rows were"
            said.append(
                f"{self.lost:,} {rows_were} sent twice, may have been paid for, and never "
                "answered (`alpasift ledger unresolved`); --retry sends again"
            )
        return "done", "; ".join(said) or None

    def left(self) -> int:
        """How many questions a limit leaves out."""
        return 0 if self.only is not None else self.matching - self.already - len(self.questions)

    def _in_flight(self) -> int:
        """How many questions are in flight with batches that have not ended."""
        if not isinstance(self.backend, Collects):
            return 0
        with self.store.reader() as con:
            text = "select count(*) from questions_in_flight where setup_id = $setup"
            return int(scalar(con, text, {"setup": self.setup.setup_id}))

    def _may_lack(self, count: int) -> bool:
        """Whether some of these questions may lack an answer. A server may answer one twice; a query shows it."""
        return self.backend.paid or self.progress.usable < count

    # -- what is in flight --------------------------------------------------------------------------------------

    def gather(self, show: Callable[[Progress], None] | None = None, *, wait: bool = False) -> int:
        """Collect what is in flight of this setup, with `wait` until nothing is. Returns how many still are."""
        assert isinstance(self.backend, Collects)
        self.show = show or (lambda progress: None)
        try:
            if wait:
                self._take(self.backend.collect(self.meter, wait=True))
        finally:
            self.writer.flush()
        return self._in_flight()

    def cancel(self, attempt: str) -> None:
        """Stop one attempt that is in flight and keep what was done of it."""
        assert isinstance(self.backend, Collects)
        self.take(self.backend.cancel(attempt, self.meter))

    def in_flight_of(self, attempts: Sequence[str]) -> int:
        """How many questions of these attempts are still in flight."""
        with self.store.reader() as con:
            text = "select count(*) from questions_in_flight where attempt_id in (select unnest($attempts)::uuid)"
            return int(scalar(con, text, {"attempts": list(attempts)}))

    def take(self, replies: Replies) -> None:
        """Store replies that came by another way than asking."""
        try:
            self._take(replies)
        finally:
            self.writer.flush()

    def export(self, carry: Callable[[Questions, LedgerMeter], Replies]) -> None:
        """A run whose questions are written to files to be carried; `carry` opens the attempts and writes the files."""
        outcome, message = "failed", None
        with uninterrupted():
            self._begin()
        try:
            self.writer.about.clear()
            self.questions.about = self.writer.about
            self.take(carry(self.questions, self.meter))
            outcome = "partial"
        except AlpaSiftError as error:
            message = str(error)
            raise
        finally:
            self._end(outcome, message)

    # -- its rows -----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        facts: dict[str, object] = {
            "backend": dict(self.backend.facts),
            "limit": self.limit,
            "rows": len(self.questions),
        }
        if self.planned is not None:
            facts["estimate"] = {k: str(v) if isinstance(v, Decimal) else v for k, v in asdict(self.planned).items()}
        if self.expected_usd is not None:
            facts["expected_usd"] = str(self.expected_usd)
        row = (
            self.run_id,
            self.command,
            self.setup.setup_id,
            self.version_id,
            os.getpid(),
            stored_json(facts),
            utc_now(),
        )
        with self.store.transaction() as con:
            if self.budget is not None:  # only now: a command that was not agreed to changes nothing
                ledger.set_budget(con, self.budget)
            write_setup(con, self.setup, self.task.name, self.task.identity, self.backend.name)
            append(con, "runs", ("run_id", "command", "setup_id", "version_id", "pid", "facts", "started_at"), [row])

    def _end(self, outcome: str, message: str | None) -> None:
        with uninterrupted(), contextlib.suppress(StoreBusy):  # the spool file holds what could not be written
            self.writer.flush()
            self.progress.usd, self.progress.usable = self.writer.spent, self.writer.usable
            facts = {"replied": self.progress.replied, "usable": self.progress.usable, "message": message}
            seconds = time.monotonic() - self.started
            row = (self.run_id, outcome, stored_json(facts), seconds, self.usd_per_hour, utc_now())
            columns = ("run_id", "outcome", "facts", "seconds", "usd_per_hour", "ended_at")
            mine = "select attempt_id from open_attempts where run_id = $run and not outlives"
            with self.store.transaction() as con:
                if not self.writer.spool.exists():
                    open_still = [str(attempt) for (attempt,) in rows(con, mine, {"run": self.run_id}).rows]
                    attempts.close_attempts(con, open_still, f"the run ended: {outcome}")
                append(con, "run_ends", columns, [row], unique=True)


def _told(answers: Replies, interrupts: Interrupts) -> Iterator[list[Reply]]:
    """The answers of a backend, which is told of a signal where it waits: it may still take in what is in flight."""
    while True:
        try:
            if interrupts.due:
                interrupts.told = True
                replies = answers.throw(KeyboardInterrupt())
            else:
                replies = next(answers)
        except StopIteration:
            return
        yield replies
