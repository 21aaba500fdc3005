"""Consent: what a run that costs money is about to spend, in one line, before anything is sent.

Knows estimates and backends; asks nobody. A command shows `SpendingOffer` and asks; a program decides by its numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from alpasift.batcher.money.dollars import show_usd
from alpasift.graders import AlpaSiftError, Backend, Estimate


class NotConfirmed(AlpaSiftError):
    """The run costs money and nobody agreed to it. Nothing was sent and no budget was set."""


@dataclass(frozen=True, slots=True)
class SpendingOffer:
    """What a run is about to spend: dollars expected, and at most.

    requests         questions that it will ask
    leaves_machine   what is sent, and to whom
    """

    grader: str
    requests: int
    usd: Decimal
    ceiling_usd: Decimal
    leaves_machine: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return (
            f"{self.requests:,} requests to {self.grader}: {show_usd(self.usd)} expected, at most "
            f"{show_usd(self.ceiling_usd)}; sent off this machine: {self.leaves_machine}"
        )


def spending_offer(backend: Backend, estimate: Estimate) -> SpendingOffer:
    """The offer that an estimate makes."""
    return SpendingOffer(
        grader=backend.name,
        requests=estimate.requests,
        usd=estimate.usd,
        ceiling_usd=estimate.ceiling_usd,
        leaves_machine=backend.leaves_machine,
        notes=tuple(estimate.notes),
    )
