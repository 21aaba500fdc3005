"""The meter that backends are handed: their only way to money.

Knows the ledger and the writer through which everything is committed; nothing of prompts or scores.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

from alpasift.batcher.money.attempts import mark_unconfirmed, settle_attempt, step
from alpasift.batcher.money.dollars import ZERO
from alpasift.batcher.money.ledger import alarm, balance, run_committed
from alpasift.batcher.money.reservations import AttemptLines, reserve_many
from alpasift.batcher.store import Connection, Store, named_query, rows, scalar
from alpasift.graders import OpenAttempt
from alpasift.graders.api.server_text import safe_text, safe_value


class Writer(Protocol):
    """Who commits for the meter: the engine's writer, which also holds the replies that are not yet committed."""

    closing: list[str]
    """attempts to be closed with the next commit, after the replies that were yielded before"""

    def commit(self, work: Callable[[Connection], None]) -> None:
        """Commit the replies in hand and, in the same transaction, this piece of work."""
        ...

    def register_questions(self, con: Connection, keys: Sequence[str]) -> None:
        """Write, with the attempt that is being opened, what its questions are about."""
        ...

    def opened(self, keys: Sequence[str]) -> None:
        """The attempt with these questions is committed."""
        ...

    def check_useful(self, *, batch: bool) -> None:
        """Raise SendingStopped when hardly any of the first answers could be read."""
        ...

    @property
    def any_usable(self) -> bool:
        """Whether an answer so far answers its question."""
        ...


class LedgerMeter:
    """Reserve, note, close and settle the attempts of one run of one setup, as `graders.Meter` describes it.

    Whatever is done here goes through the writer, in a transaction with the replies that it holds: the order on disk is
    the order in which things happened, in as few openings of the database as can be.
    """

    def __init__(
        self,
        store: Store,
        writer: Writer,
        *,
        run_id: str,
        setup_id: str,
        backend: str,
        grader_id: str,
        ledger: str,
        run_budget: Decimal | None,
    ) -> None:
        self.store, self.writer, self.run_id, self.setup_id = store, writer, run_id, setup_id
        self.backend, self.grader_id, self.ledger, self.run_budget = backend, grader_id, ledger, run_budget

    @property
    def folder(self) -> Path:
        """The folder DATABASE.batches, for its owner only."""
        path = batch_folder(self.store.path)
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
        self.writer.check_useful(batch=outlives)

        def work(con: Connection) -> None:
            made.extend(
                self._reserve(con, [AttemptLines(keys, ceilings)], price, {**(facts or {}), "outlives": outlives})
            )

        self.writer.commit(work)
        self.writer.opened(keys)
        return made[-1]

    def open_many(
        self,
        calls: Sequence[tuple[str, Decimal]],
        price: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> list[str]:
        made: list[str] = []
        self.writer.check_useful(batch=False)

        def work(con: Connection) -> None:
            parts = [AttemptLines([key], [ceiling]) for key, ceiling in calls]
            made.extend(self._reserve(con, parts, price, {**(facts or {}), "outlives": False}))

        self.writer.commit(work)
        self.writer.opened([key for key, _ in calls[: len(made)]])
        return made

    def _reserve(
        self, con: Connection, parts: Sequence[AttemptLines], price: Mapping[str, Any] | None, facts: Mapping[str, Any]
    ) -> list[str]:
        attempts = reserve_many(
            con,
            run_id=self.run_id,
            backend=self.backend,
            grader_id=self.grader_id,
            parts=parts,
            price=price,
            facts=facts,
            run_budget=self.run_budget,
        )
        self.writer.register_questions(con, [key for part in parts[: len(attempts)] for key in part.keys])
        return attempts

    @property
    def any_usable(self) -> bool:
        return self.writer.any_usable

    def note(self, attempt: str, state: str, facts: Mapping[str, Any] | None = None) -> None:
        kept = safe_value(facts or {}, 2000)  # a server's words are among them
        self.writer.commit(lambda con: step(con, attempt, state, kept))

    def open_attempts(self) -> list[OpenAttempt]:
        parameters = {"grader_id": self.grader_id, "setup_id": self.setup_id}
        with self.store.reader() as con:
            found = rows(con, named_query("in_flight").text, parameters).rows
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

        self.writer.commit(work)
        return found[-1]

    def noted(self, fact: str) -> Any:
        with self.store.reader() as con:
            found = scalar(con, named_query("noted_fact").text, {"grader_id": self.grader_id, "path": f"$.{fact}"})
        return None if found is None else json.loads(found)

    def close(self, attempt: str) -> None:
        self.writer.closing.append(attempt)

    def settle(self, attempt: str, usd: Decimal, why: str) -> None:
        self.writer.commit(lambda con: settle_attempt(con, attempt, usd, safe_text(why, 2000)))

    def mark_unconfirmed(self, attempt: str, why: str) -> None:
        self.writer.commit(lambda con: mark_unconfirmed(con, attempt, safe_text(why, 2000)))

    def alarm(self, attempt: str, kind: str, why: str) -> None:
        def work(con: Connection) -> None:
            if not scalar(
                con, "select 1 from open_alarms where attempt_id = $a and kind = $k", {"a": attempt, "k": kind}
            ):
                alarm(con, kind, safe_text(why, 2000), attempt)

        self.writer.commit(work)


def batch_folder(database: Path) -> Path:
    """The folder for the files of batches that belong to a database."""
    return database.with_name(database.name + ".batches")


def delete_leftovers(store: Store) -> None:
    """Delete files that a process which died left in the batch folder; those that open attempts are to send stay."""
    folder = batch_folder(store.path)
    if not folder.is_dir():
        return
    text = "select facts::json ->> 'file' from batches where not closed and phase <> 'unconfirmed'"
    with store.reader() as con:
        named = {name for (name,) in rows(con, text).rows}
    for pattern in ("draft-*", "requests-*", "*.part"):
        for path in folder.glob(pattern):
            if path.name not in named:
                path.unlink(missing_ok=True)
