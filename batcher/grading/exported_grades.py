"""Grades that are written with exported rows: which of their figures, by which grader, under which keys.

Knows grades and rows; writes no file. A figure goes under its own name, or under alpasift_NAME where some row has a key
of that name already: nothing of a user's row is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from alpasift.batcher.data.stored_rows import keys_of_rows
from alpasift.batcher.grading.lookup import Grading, GradingError, find_grading, split_label
from alpasift.batcher.store import Store
from alpasift.graders import did_you_mean

FIGURES = (
    "score",
    "expected_score",
    "reason",
    "explanation",
    "reply",
    "grader",
    "rubric",
    "model",
    "samples",
    "spread",
    "usd",
)
"""What of a grade can be written with its row: columns of the view `graded`."""


@dataclass(frozen=True, slots=True)
class Added:
    """The figures to write with each row, as `of(position, example_id)`, and what they are called; none by default."""

    of: Callable[[int, str], Mapping[str, Any]] | None = None
    names: tuple[str, ...] = ()


def check_figures(figures: Sequence[str]) -> None:
    """Raise GradingError for a name that is no figure of a grade."""
    for name in figures:
        if name not in FIGURES:
            there = f"choose from {', '.join(FIGURES)}"
            raise GradingError(f"unknown figure {name!r}{did_you_mean(name, FIGURES, there)}")


def grading_to_export(
    store: Store, version_id: str, manifest: Mapping[str, Any] | None, grader: str | None, rubric: str | None
) -> Grading:
    """The grading whose figures are written: the one named, else that of the selection's manifest, else the only one.

    Raises GradingError.
    """
    if grader is None and manifest and manifest.get("grader"):
        grader = _exact(manifest["grader"]["label"])
        rubric = rubric or _exact(manifest["rubric"]["label"])
    return find_grading(store, version_id, grader, rubric)


def added_grades(
    store: Store,
    version_id: str,
    positions: Sequence[int] | None,
    row_format: str | None,
    figures: Sequence[str],
    grading: Grading,
) -> Added:
    """The figures of a grading for the rows at these positions; null where a row has no grade."""
    taken = keys_of_rows(store, version_id, positions, row_format)
    names = {figure: f"alpasift_{figure}" if figure in taken else figure for figure in dict.fromkeys(figures)}
    found = store.query("grades_at", version_id=version_id, grader_id=grading.grader_id, rubric_id=grading.rubric_id)
    grades = {row["position"]: tuple(_plain(row[figure]) for figure in names) for row in found}
    nothing = (None,) * len(names)

    def of(position: int, _example_id: str) -> dict[str, Any]:
        return dict(zip(names.values(), grades.get(position, nothing), strict=True))

    return Added(of, tuple(names.values()))


def _exact(label: str) -> str:
    """The label that names this very version: NAME alone would be the newest."""
    return label if split_label(label)[1] else f"{label}@1"


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, Decimal) else value
