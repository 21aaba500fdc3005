"""Graders whose scores hardly tell the rows apart: named, with the figures of the view `score_entropy`.

Knows that view; nothing of commands. What counts as degenerate is decided there.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from alpasift.batcher.store import Store
from alpasift.graders import AlpaSiftError
from alpasift.graders.prompts.rubric import spell


class DegenerateGrader(AlpaSiftError):
    """A grader's scores hardly tell the rows apart, so that a default threshold means nothing."""


@dataclass(frozen=True, slots=True)
class Degenerate:
    """A grading whose scores hardly tell the rows of a dataset apart; as text, the sentence that says so."""

    dataset: str
    grader: str
    rubric: str
    scored: int
    commonest_score: Decimal
    commonest_share: float
    entropy_bits: float
    has_expected_scores: bool

    def __str__(self) -> str:
        expected = (
            "`select --by expected_score`" if self.has_expected_scores else "`grade --answer-format expected_score`"
        )
        return (
            f"{self.grader}, rubric {self.rubric}: {_share(self.commonest_share)} of the {self.scored:,} scored rows "
            f"of {self.dataset} have the score {spell(self.commonest_score)} ({self.entropy_bits:.2f} bits of "
            f"information in a score), which hardly tells them apart. What may help: {expected}, another model; "
            f"`alpasift audit {self.grader}` measures what it can tell apart"
        )


def degenerate_gradings(
    store: Store, *, dataset: str | None = None, grader: str | None = None, rubric: str | None = None
) -> list[Degenerate]:
    """The degenerate gradings among those with these labels, None for all."""
    return [
        Degenerate(
            row["dataset"],
            row["grader"],
            row["rubric"],
            row["scored"],
            row["commonest_score"],
            row["commonest_share"],
            row["entropy_bits"],
            row["has_expected_scores"],
        )
        for row in store.query("score_entropy", dataset=dataset, grader=grader, rubric=rubric)
        if row["degenerate"]
    ]


def _share(share: float) -> str:
    """A share in per cent, never rounded to all of it."""
    return "all" if share == 1 else f"{min(share, 0.9994):.1%}"
