r"""The batch attempts that are in flight: how far each got, its steps on the ledger, and how it ends.

Knows the meter and the attempt's file; nothing of the network. An attempt is one request file:

    opened -> (upload) -> creating -> created -> in_batch -> collected -> closed
                                \-> unknown -> created (adopted)  or  fenced -> unconfirmed -> closed

Each step is committed before the next is taken, so that another process can resume after the last one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from alpasift.graders import Meter
from alpasift.graders.api.result_files import ResultsFound

UNCONFIRMED = "unconfirmed"
"""A create that was never found on the server: its money is unresolved until its window has passed. Databases of
earlier versions call this state "doubted"."""


@dataclass(slots=True)
class BatchAttempt:
    """One attempt in flight: its batches, which of them have ended and are read (`done`), what their files held."""

    attempt: str
    facts: dict[str, Any]
    state: str
    found: ResultsFound | None = None
    done: set[str] = field(default_factory=set)
    polls_without_output: int = 0
    not_found: int = 0
    status: str = ""
    reported_late: bool = False
    cancelled: bool = False
    was_unconfirmed: bool = False

    @property
    def batches(self) -> list[str]:
        return list(self.facts.get("batch_ids", []))

    @property
    def file_ids(self) -> list[str]:
        """Its input file at the server: one, once it is uploaded."""
        return [str(i) for i in self.facts.get("file_ids", [])]

    @property
    def tokens(self) -> int:
        """Prompt tokens of its file."""
        return int(self.facts.get("input_tokens", 0))

    @property
    def ended(self) -> dict[str, dict[str, Any]]:
        """How each of its batches ended: batch id -> status, completed, counted (whether the server gave counts)."""
        return dict(self.facts.get("ended", {}))


class Attempts:
    """The attempts in flight of one meter."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.in_flight: dict[str, BatchAttempt] = {}

    def load(self) -> None:
        """Take over what the ledger says is in flight. What was lost from sight is looked for again."""
        again = {"lost": "in_batch", "doubted": UNCONFIRMED}
        self.in_flight = {
            a.attempt: BatchAttempt(a.attempt, dict(a.facts), again.get(a.state, a.state))
            for a in self.meter.open_attempts()
            if a.facts.get("kind") == "batch"  # files that a person carries are not looked after here
        }

    def add(self, attempt: str, facts: dict[str, Any]) -> BatchAttempt:
        self.in_flight[attempt] = BatchAttempt(attempt, facts, "opened")
        return self.in_flight[attempt]

    def at_provider(self) -> list[BatchAttempt]:
        """Those with a batch at the server that has not been collected."""
        return [a for a in self.in_flight.values() if a.batches and a.state != "lost"]

    def worth_waiting(self) -> list[BatchAttempt]:
        """Those of them whose window has not passed: what is stuck is asked after by a later run."""
        return [a for a in self.at_provider() if not a.reported_late]

    def note(self, one: BatchAttempt, state: str, facts: Mapping[str, Any]) -> None:
        """Commit a step."""
        self.meter.note(one.attempt, state, facts)
        one.state = state
        one.facts.update(facts)

    def note_message(self, one: BatchAttempt, text: str) -> None:
        """Commit what a person should know of it, once."""
        if one.facts.get("message") != text:
            self.note(one, one.state, {"message": text})

    def mark_unconfirmed(self, one: BatchAttempt, why: str) -> None:
        """Its money becomes unresolved, and its questions may be asked again; it stays in flight."""
        self.meter.mark_unconfirmed(one.attempt, why)
        one.state = UNCONFIRMED

    def settle(self, one: BatchAttempt, usd: Decimal, why: str, *, keep_file: bool = False) -> None:
        """End an attempt as a whole: it cost `usd`, and what else it held is free."""
        self.meter.settle(one.attempt, usd, why)
        self.in_flight.pop(one.attempt, None)
        if not keep_file:
            self.drop_file(one)

    def file_of(self, one: BatchAttempt) -> Path:
        """Its request file, here; the folder where the ledger names none."""
        return self.meter.folder / str(one.facts.get("file", ""))

    def drop_file(self, one: BatchAttempt) -> None:
        if one.facts.get("file"):
            self.file_of(one).unlink(missing_ok=True)

    def results(self, one: BatchAttempt) -> ResultsFound:
        """What its result files held so far."""
        if one.found is None:
            one.found = ResultsFound(self.meter.lines(one.attempt))
        return one.found
