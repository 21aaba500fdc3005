"""The writer of a run: what is committed, together with what, and when.

Replies of attempts that cost money are committed, each with its charge and reading, in chunks of at most 200 or one
second. Free replies wait up to a second whatever their number: all that a crash can lose is a second of work. What was
collected from a batch stands in a file already, and goes in chunks of 10,000. While another program holds the database,
finished replies go to a spool file beside it and are ingested as soon as it is free.

Knows the task only as the reader of its replies; nothing of backends or of the course of a run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from decimal import Decimal

from alpasift.batcher.engine.early_stop import EarlyStop
from alpasift.batcher.engine.interrupts import uninterrupted
from alpasift.batcher.engine.questions import Subject
from alpasift.batcher.engine.readings import parser_of, read_each_by_its_task, read_reply, write_readings
from alpasift.batcher.engine.task import Task
from alpasift.batcher.money import attempts, charges, ledger, spool
from alpasift.batcher.money.ledger import NoBudget
from alpasift.batcher.store import Connection, Store, StoreBusy, append
from alpasift.graders import BudgetExceeded, Reply, SendingStopped

CHUNK_REPLIES = 200
CHUNK_COLLECTED = 10_000
CHUNK_SECONDS = 1.0


class Writer:
    """Commits replies with their charges and readings, and what the meter does in the same transactions.

    about        the subjects of the questions that were rendered and are not yet part of an attempt, by key
    closing      attempts to be closed with the commit of the last reply in hand
    stored       replies committed by this writer that were new, `usable` of them answer their question
    spent        dollars spent in this database since `spent_before`
    alarmed      whether an alarm stood at the last commit
    early_stop   counts how many of the first answers can be read; None while nothing is asked
    """

    def __init__(self, store: Store, task: Task, setup_id: str, *, paid: bool, collected: bool) -> None:
        self.store, self.task, self.setup_id, self.paid = store, task, setup_id, paid
        self.chunk = CHUNK_COLLECTED if collected else CHUNK_REPLIES
        self.about: dict[str, Subject] = {}
        self.closing: list[str] = []
        self.spool = spool.spool_of(store.path)
        self.spent_before = self.spent = Decimal(0)
        self.usable = self.stored = 0
        self.alarmed = False
        self.early_stop: EarlyStop | None = None
        self._buffer: list[Reply] = []
        self._flushed = time.monotonic()

    def count_anew(self) -> None:
        """Count dollars and usable replies from here on."""
        self.spent_before += self.spent
        self.spent, self.usable, self.stored = Decimal(0), 0, 0

    # -- what comes in ------------------------------------------------------------------------------------------

    def add(self, replies: Sequence[Reply]) -> None:
        """Take replies in, and commit when it is time to."""
        self._buffer.extend(replies)
        for reply in replies:
            if self.early_stop is None or not self.early_stop.looks:
                break
            if reply.outcome == "answered":
                self.early_stop.add(reply, read_reply(self.task, reply))
        if self._due():
            self.flush()

    def _due(self) -> bool:
        waited = time.monotonic() - self._flushed
        if waited >= CHUNK_SECONDS and self.chunk == CHUNK_REPLIES:
            return bool(self._buffer or self.closing)
        return bool(self.closing) or (self.paid and len(self._buffer) >= self.chunk)

    def flush(self) -> None:
        """Commit the replies in hand and close the attempts that ended. Replies that cannot be written are spooled."""
        with uninterrupted():
            while self._buffer or self.closing or self.spool.exists():
                try:
                    self._commit(self._next_chunk(), wait=2.0)
                except StoreBusy:  # kept in the spool file
                    break
            self._flushed = time.monotonic()

    # -- for the meter ------------------------------------------------------------------------------------------

    def commit(self, work: Callable[[Connection], None]) -> None:
        """Commit the replies in hand and, in the transaction of the last of them, this piece of work."""
        with uninterrupted():
            while len(self._buffer) > self.chunk:
                self._commit(self._next_chunk(), wait=self.store.wait)
            self._commit(self._buffer[:], work, wait=self.store.wait)
            self._flushed = time.monotonic()

    def register_questions(self, con: Connection, keys: Sequence[str]) -> None:
        """Write, with the attempt that is being opened, what each of its questions is about."""
        known = [(key, self.setup_id, *self.about[key]) for key in keys if key in self.about]
        columns = ("key", "setup_id", "subject_id", "example_id", "sample")
        append(con, "questions", columns, known, unique=True)

    def check_useful(self, *, batch: bool) -> None:
        """Raise SendingStopped when hardly any of the first answers could be read: no other is to be paid for."""
        if self.early_stop is not None:
            self.early_stop.check(before_batch=batch)

    @property
    def any_usable(self) -> bool:
        """Whether an answer of this grader by this rubric could be read."""
        return self.early_stop is None or self.early_stop.usable > 0

    def opened(self, keys: Sequence[str]) -> None:
        """Forget the subjects of questions whose attempt is committed; one that was refused may come again, smaller."""
        for key in keys:
            self.about.pop(key, None)

    # -- transactions -------------------------------------------------------------------------------------------

    def _next_chunk(self) -> list[Reply]:
        return self._buffer[: self.chunk] if self.paid else self._buffer[:]

    def _commit(self, chunk: list[Reply], work: Callable[[Connection], None] | None = None, *, wait: float) -> None:
        """One transaction: what was spooled, these replies, the closings if these are the last in hand, the work.

        Whatever goes wrong, replies in hand may be paid for: unless only the work was refused, they go to the spool.
        """
        closing = list(self.closing) if len(chunk) == len(self._buffer) else []
        spent, alarms, usable = Decimal(0), list[str](), 0
        try:
            with self.store.transaction(wait=wait) as con:
                if self.spool.exists():
                    usable += self._write(con, spool.read(self.spool))
                usable += self._write(con, chunk)
                attempts.close_attempts(con, closing)
                if work is not None:
                    work(con)
                if self.paid:
                    spent, alarms = ledger.balance(con).spent - self.spent_before, ledger.open_alarms(con)
        except (BudgetExceeded, SendingStopped, NoBudget):
            raise  # the work was refused: the replies stay in hand
        except Exception:
            if chunk:
                spool.add(self.spool, chunk)
                del self._buffer[: len(chunk)]
            raise
        self.spool.unlink(missing_ok=True)
        del self._buffer[: len(chunk)]
        del self.closing[: len(closing)]
        self.spent, self.alarmed = spent, bool(alarms)
        self.usable += usable

    def _write(self, con: Connection, replies: Sequence[Reply]) -> int:
        fresh = charges.ingest(con, replies)
        self.stored += len(fresh)
        return write_readings(con, parser_of(self.task), [(reply, read_reply(self.task, reply)) for reply in fresh])

    def ingest_spool(self) -> None:
        """Take in replies that an earlier run could not write because the database was held. Raises UnknownAttempt."""
        if not self.spool.exists():
            return
        try:
            with self.store.transaction() as con:
                replies = spool.read(self.spool)
                charges.ingest(con, replies)
                read_each_by_its_task(con, replies)
        except ledger.UnknownAttempt as error:
            raise ledger.UnknownAttempt(
                f"{self.spool} holds replies for another copy of {self.store.path} ({error}); restore that database, "
                "or move the file away"
            ) from error
        self.spool.unlink()
