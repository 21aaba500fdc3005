"""The threshold at which a calibration says to select, and what it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from alpasift.batcher.grading.calibrate import calibration_of, stale_calibration
from alpasift.batcher.grading.condition import Condition, SelectError
from alpasift.batcher.grading.lookup import By, find_grading
from alpasift.batcher.store import Store


@dataclass(frozen=True, slots=True)
class CalibratedThreshold:
    """A threshold, the reference it was calibrated to, what it reaches with its interval beside keeping all rows, and
    all of it as a manifest has it."""

    threshold: Decimal
    reference: str
    reaches: str
    facts: dict[str, Any]


def calibrated_threshold(
    store: Store, version_id: str, grader: str | None, rubric: str | None, by: By, precision: float | None
) -> CalibratedThreshold:
    """The threshold of the newest calibration of a grader: the one that keeps the reference's share, or reaches
    `precision`.

    Raises SelectError where there is none to use: never calibrated, stale, without a claim, or the precision out of
    reach.
    """
    grading = find_grading(store, version_id, grader, rubric)
    found = calibration_of(store, grading.grader_id, grading.rubric_id, by)
    whose = f"{grading.grader} by {grading.rubric} (--by {by})"
    if found is None:
        names = grading.grader.partition("@")[0], grading.rubric.partition("@")[0]
        stale = stale_calibration(store, *names, grader_id=grading.grader_id, rubric_id=grading.rubric_id)
        if stale is not None:
            raise SelectError(
                f"the calibration of {stale.recorded_at:%Y-%m-%d} is stale: it was made for {stale.grader} by "
                f"{stale.rubric}, and these grades are of {whose}; the model or the rubric has changed; run "
                f"`alpasift calibrate` again"
            )
        raise SelectError(f"{whose} was never calibrated; run `alpasift calibrate`")
    if found.verdict != "calibrated":
        raise SelectError(f"the calibration of {whose} makes no claim: {'; '.join(found.reasons)}")
    if precision is None:
        what, point = "same_share", found.same_share
    else:
        what, point = f"precision {precision:g}", found.threshold_precision(precision)
    reaches = what.replace("_", " ")
    if point is None:
        raise SelectError(
            f"no threshold of {whose} shown to do better than keeping all rows reaches {reaches} by the "
            f"calibration to {found.reference}"
        )
    threshold, reached, share = point.threshold, point.precision, found.facts["share"]["value"]
    assert reached.value is not None and reached.low is not None and reached.high is not None
    facts = {
        "id": found.calibration_id,
        "reference": found.reference,
        "rubric": found.reference_rubric,
        "what": what,
        "sample": found.sample,
        "precision": {"value": reached.value, "low": reached.low, "high": reached.high},
        "reference_share": share,
        "recorded_at": found.recorded_at.isoformat(timespec="seconds") + "Z",
    }
    shown = (
        f"{reaches} is at {threshold:g}; the precision there is {reached.value:.2f} ({reached.low:.2f} to "
        f"{reached.high:.2f}), that of keeping all rows {share:.2f}"
    )
    return CalibratedThreshold(Decimal(str(threshold)), found.reference, shown, facts)


def calibrated_condition(
    store: Store,
    version_id: str,
    condition: Condition,
    graders: Sequence[str],
    rubric: str | None,
    precision: float | None,
) -> tuple[Condition, CalibratedThreshold]:
    """A condition with the threshold of a calibration as its min_score. Raises SelectError, as
    `calibrated_threshold`."""
    if len(graders) > 1:
        raise SelectError("--calibrated needs one grader; give it with --grader")
    at = calibrated_threshold(store, version_id, graders[0] if graders else None, rubric, condition.by, precision)
    return replace(condition, min_score=at.threshold, calibration=at.facts), at
