"""From the reply of a grader that measures to its figure: the first line is the number, the rest how it came about.

Knows text and scales; what is measured, and how, is `graders.local.measures`'s.
"""

from __future__ import annotations

import math
from decimal import ROUND_HALF_EVEN, Decimal

from alpasift.graders.prompts.reading import Reading
from alpasift.graders.prompts.rubric import Rubric

NO_FIGURE = ("empty_output", "too_short", "not_finite")
"""Reasons why a row has no figure, beside too_long: asking again gives the same."""


def read_figure(text: str | None, rubric: Rubric) -> Reading:
    """The figure of a reply: in full as the expected score, rounded to the rubric's step as the score."""
    first, _, detail = (text or "").partition("\n")
    try:
        figure = float(first)
    except ValueError:
        return Reading(None, "unreadable", text)
    if not math.isfinite(figure):
        return Reading(None, "not_finite", text)
    if not float(rubric.low) <= figure <= float(rubric.high):
        return Reading(None, "out_of_range", text)
    return Reading(Decimal(first).quantize(rubric.step, ROUND_HALF_EVEN), None, detail or None, figure)
