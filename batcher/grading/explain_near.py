"""Buy explanations only near a threshold: which rows those are, and how many got another score when asked again."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from alpasift.batcher.engine.setups import setup_of
from alpasift.batcher.store import Store
from alpasift.batcher.tasks.grade import Grade
from alpasift.graders import Backend


def rows_near(store: Store, version_id: str, task: Grade, backend: Backend, score: Decimal) -> dict[int, Decimal]:
    """Position and score of the rows that this grader has scored within one step of the rubric of `score`."""
    step = task.rubric.step
    return _scored_between(store, version_id, task, backend, score - step, score + step)


def count_changed(store: Store, version_id: str, task: Grade, backend: Backend, before: Mapping[int, Decimal]) -> int:
    """How many of these rows have another score by now, because the grader is not repeatable. The newest counts."""
    now = _scored_between(store, version_id, task, backend, task.rubric.low, task.rubric.high)
    return sum(now.get(position) != score for position, score in before.items())


def _scored_between(
    store: Store, version_id: str, task: Grade, backend: Backend, low: Decimal, high: Decimal
) -> dict[int, Decimal]:
    setup = setup_of(task, backend)
    found = store.query(
        "scored_between",
        version_id=version_id,
        grader_id=setup.grader_id,
        rubric_id=setup.rubric_id,
        low=low,
        high=high,
    )
    return {row["position"]: row["score"] for row in found}
