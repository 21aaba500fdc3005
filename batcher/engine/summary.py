"""What a run says of itself: how far it is, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal


@dataclass(slots=True)
class Progress:
    """How far a run is: questions, replies and how many of them are usable, dollars spent by this run.

    waiting   the batches at the provider that it waits for, in words; empty when it waits for none
    """

    total: int
    replied: int = 0
    usable: int = 0
    usd: Decimal = Decimal(0)
    seconds: float = 0.0
    waiting: str = ""


@dataclass(frozen=True, slots=True)
class Brought:
    """What batches of an earlier run brought before this one asked anything: replies, usable ones, dollars."""

    replies: int = 0
    usable: int = 0
    usd: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended. `outcome`: done, partial (budget or work in flight) or interrupted.

    asked     questions of this run
    replied   replies that came, `usable` of them answer their question
    already   questions that were answered before
    left      questions that a limit left out
    brought   what batches of earlier runs brought first; `replied` and `usd` are this run's own
    """

    run_id: str
    outcome: str
    asked: int
    replied: int
    usable: int
    already: int
    usd: Decimal
    seconds: float
    left: int = 0
    message: str | None = None
    brought: Brought = Brought()
