"""What past runs say about a grader's estimates, and the estimate that is corrected by it.

Knows predictions beside what they turned out to be; nothing of offers or limits. A run keeps the backend's own
estimate, never the corrected one, so that the ratio of actual to predicted does not feed on itself. Means have an
interval of two standard errors; none is given as exact.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from alpasift.batcher.engine.setups import setup_of
from alpasift.batcher.engine.task import Task
from alpasift.batcher.sampling import margin, weighted_mean, weighted_spread
from alpasift.batcher.store import Store
from alpasift.graders import Backend, Estimate, QueueLimited
from alpasift.graders.api.prices import QUANTUM

LEAST_ANSWERS = 20
"""A past run with fewer answers says nothing."""


@dataclass(frozen=True, slots=True)
class Correction:
    """What to correct a grader's estimates by: actual / predicted over past runs, weighted by their answers.

    own_rubric  whether those runs were by the very rubric; if not, by any
    spread      standard deviation of one answer's cost, in means
    between     standard deviation of the runs' ratios of dollars, in their mean; 0 for a single run
    """

    answers: int
    runs: int
    usd: float
    input_tokens: float
    output_tokens: float
    spread: float
    between: float
    own_rubric: bool = True

    def __str__(self) -> str:
        whose = "" if self.own_rubric else " by other rubrics"
        return (
            f"corrected by {self.answers:,} past answers{whose}: {self.usd:.2f} times the estimate in dollars, "
            f"{self.input_tokens:.2f} in input tokens, {self.output_tokens:.2f} in output tokens"
        )


def correction_for(store: Store, task: Task, backend: Backend) -> Correction | None:
    """How a grader's estimates have turned out in this database: of runs by this rubric, else by any; None for none."""
    rubric_id = setup_of(task, backend).rubric_id
    past = store.query(
        "past_predictions", task=task.name, grader=backend.name, rubric_id=rubric_id, least=LEAST_ANSWERS
    )
    return correction_from(past)


def recall_queue_limit(store: Store, task: Task, backend: Backend) -> None:
    """Have a grader's estimates go by the queue limit that its provider stated when it last refused a batch, if any."""
    if not isinstance(backend, QueueLimited):
        return
    for row in store.query("noted_fact", grader_id=setup_of(task, backend).grader_id, path="$.enqueued_limit"):
        tokens = json.loads(row["value"])
        if isinstance(tokens, int) and tokens > 0:
            backend.recall_queue_limit(tokens, row["recorded_at"])


def correction_from(runs: Sequence[Mapping[str, Any]]) -> Correction | None:
    """The ratios of some past runs (rows of sql/queries/past_predictions.sql), weighted by their answers."""
    own = [run for run in runs if run["same_rubric"]]
    used = own or list(runs)
    if not used:
        return None

    def mean(name: str) -> float:
        known = [(run["answers"], run[name]) for run in used if run[name] is not None]
        return weighted_mean(known) if known else 1.0

    answers = sum(run["answers"] for run in used)
    usd = mean("usd_ratio")
    relative = [(run["answers"], (run["answer_usd_sd"] / run["answer_usd"]) ** 2) for run in used if run["answer_usd"]]
    spread = math.sqrt(weighted_mean(relative)) if relative else 0.0
    ratios = [(run["answers"], run["usd_ratio"]) for run in used if run["usd_ratio"] is not None]
    between = weighted_spread(ratios) / usd if usd else 0.0
    return Correction(
        answers, len(used), usd, mean("input_ratio"), mean("output_ratio"), spread, between, own_rubric=bool(own)
    )


def corrected(raw: Estimate, correction: Correction | None) -> Estimate:
    """An estimate corrected by past runs. The ceiling stays: it is what is reserved, whatever past runs have cost."""
    if correction is None or not raw.requests:
        return raw
    off = as_decimal(margin(correction.spread, correction.answers, raw.requests, correction.between))
    ratio = as_decimal(correction.usd)
    usd = (raw.usd * ratio).quantize(QUANTUM)
    return replace(
        raw,
        usd=usd,
        usd_low=max(Decimal(0), usd * (1 - off)).quantize(QUANTUM),
        usd_high=max(usd, min(raw.ceiling_usd, usd * (1 + off))).quantize(QUANTUM),
        sync_usd=None if raw.sync_usd is None else (raw.sync_usd * ratio).quantize(QUANTUM),
        input_tokens=round(raw.input_tokens * correction.input_tokens),
        output_tokens=round(raw.output_tokens * correction.output_tokens),
    )


def as_decimal(number: float) -> Decimal:
    return Decimal(f"{number:.9f}")
