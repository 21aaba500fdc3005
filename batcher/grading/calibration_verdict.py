"""What a calibration may claim: `calibrated`, or `no_claim` with the reasons; then no threshold is offered.

Knows figures and points of a curve; nothing of the database, samples or printing. One rule for a fresh sample and for a
stored calibration, which is judged again when it is read, so that what is printed, stored and selected by agree.

A claim needs all of these, each with its 95 % interval:

    order      the AUC lies above .5 by more than its rounding, and above that of output length on the same rows
    fit        held-out rows are predicted better than by the share alone
    threshold  one that tells: neither nearly all rows nor nearly none are kept, and the precision there lies above the
               share that the reference keeps of all rows
    rows       LEAST or more that the reference keeps, and as many that it drops
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from alpasift.batcher.sampling import HeldOut
from alpasift.batcher.statistics import Figure, beyond, short_of

LEAST = 10
"""Fewer rows of a kind seen, and nothing is claimed; fewer sampled rows kept at a threshold, and it is not offered."""
TRIVIAL = 0.1
"""A threshold that keeps less than this part of the share that the reference keeps, or drops less than this part of the
share that it drops, keeps nearly none or nearly all rows."""
_NEAR = 1e-9

Verdict = Literal["calibrated", "no_claim"]


@dataclass(frozen=True, slots=True)
class Point:
    """What keeping the rows at `threshold` or above would do. `sampled` of them were in the sample.

    precision   of the rows kept, the share that the reference keeps; recall: of those it keeps, the share that is kept
    """

    threshold: float
    rows: int
    examples: int
    share: float
    sampled: int
    precision: Figure
    recall: Figure


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a verdict rests on. `length` is "longest" or "shortest", the direction that does better on these rows.

    length_lead   the cheap grader's AUC minus that of length
    share         the share that the reference keeps of all rows
    curve         empty where the rest carries no claim, and no threshold was looked at
    """

    keepers: int
    others: int
    auc: Figure
    length: str
    length_auc: Figure
    length_lead: Figure
    held_out: HeldOut | None
    share: Figure
    curve: Sequence[Point]


def no_claim(of: Evidence) -> tuple[str, ...]:
    """Why nothing may be claimed, in sentences; nothing where something may."""
    reasons = [
        f"the reference {what} only {count} sampled rows; at least {LEAST} are needed"
        for count, what in ((of.keepers, "keeps"), (of.others, "drops"))
        if count < LEAST
    ]
    reasons += _of_the_order(of)
    if of.held_out is not None and of.held_out.brier >= of.held_out.base_brier:
        reasons.append(
            f"on held-out rows the fit has a Brier score of {of.held_out.brier:.4f}, no better than "
            f"{of.held_out.base_brier:.4f} for a constant prediction"
        )
    if of.curve and not any(tells(point, of.share.value) for point in of.curve):
        reasons.append(_no_threshold(of.curve, of.share.value or 0.0))
    return tuple(reasons)


def _of_the_order(of: Evidence) -> list[str]:
    """Why the order of the rows carries no claim: no better than chance, or than output length alone."""
    area, lead = of.auc, of.length_lead
    if area.value is None:
        return [f"the AUC cannot be computed: {area.reason}"]
    if short_of(area, 0.5):
        return [f"the AUC is {_with_interval(area)}, below .5: it ranks what the reference drops above what that keeps"]
    if not beyond(area, 0.5):
        return [f"the AUC is {_with_interval(area)}, and chance level is .5: the sample shows no relation"]
    if of.length_auc.value is None:  # all outputs are of one length: there is nothing to beat but chance
        return []
    against = f"the AUC of ranking the {of.length} outputs first is {_with_interval(of.length_auc)}"
    if lead.value is None:
        return [f"{against}, and whether {area.value:.2f} is better cannot be computed: {lead.reason}"]
    if not beyond(lead, 0.0):
        return [f"{against}, and the grader's minus that is {_with_interval(lead)}: not shown to be better"]
    return []


def _no_threshold(curve: Sequence[Point], share: float) -> str:
    precise = [point for point in curve if _precise(point, share)]
    if precise:
        nearest = min(precise, key=lambda point: abs(point.share - share))
        return (
            f"the threshold {nearest.threshold:g} keeps {nearest.share:.1%} of the rows, "
            f"nearly {'all' if nearest.share > share else 'none'} of them, where the reference keeps {share:.1%}; no "
            "other threshold has a precision above that share"
        )
    return (
        "no threshold has a precision whose interval lies above the share that the reference keeps of all rows, "
        f"{share:.1%}"
    )


def trivial(share: float, reference_share: float) -> bool:
    """Whether keeping this share of the rows is keeping nearly all or nearly none, beside what the reference keeps."""
    return share < TRIVIAL * reference_share or 1 - share < TRIVIAL * (1 - reference_share)


def tells(point: Point, reference_share: float | None) -> bool:
    """Whether keeping the rows from this threshold on is shown to do better than keeping all."""
    at = reference_share or 0.0
    return _precise(point, at) and not trivial(point.share, at)


def _precise(point: Point, reference_share: float) -> bool:
    """Whether the precision lies above the share, with its interval, which must have a width: where the reference has
    graded every row, a count is no estimate for rows like these."""
    figure = point.precision
    if figure.value is None or figure.low is None or figure.high is None or figure.high - figure.low < _NEAR:
        return False
    return point.sampled >= LEAST and figure.low > reference_share


def threshold_for(curve: Iterable[Point], precision: float, reference_share: float | None = None) -> Point | None:
    """The lowest threshold whose precision is estimated at `precision` or more, from LEAST sampled rows or more; of
    those that tell, where the reference's share is given."""
    for point in sorted(curve, key=lambda one: one.threshold):
        if reference_share is not None and not tells(point, reference_share):
            continue
        if point.sampled >= LEAST and point.precision.value is not None and point.precision.value >= precision - _NEAR:
            return point
    return None


def _with_interval(figure: Figure) -> str:
    assert figure.value is not None and figure.low is not None and figure.high is not None
    value, low, high = (round(x, 2) + 0.0 for x in (figure.value, figure.low, figure.high))
    return f"{value:.2f} ({low:.2f} to {high:.2f})"
