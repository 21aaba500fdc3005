"""What the grades of a random sample show about the whole: kept rows, cost and time.

Knows samples of graded rows and their projection; sends nothing. `draw_rows` draws the sample, `findings` says what it
shows once it is graded. Shares have the interval of Wilson (1927), costs two standard errors; neither is given as
exact.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from statistics import stdev
from typing import Any, NamedTuple

from alpasift.batcher.engine.history import as_decimal
from alpasift.batcher.engine.questions import pending
from alpasift.batcher.engine.setups import setup_of
from alpasift.batcher.engine.task import Task
from alpasift.batcher.planning.offers import listed_prices
from alpasift.batcher.sampling import draw, margin
from alpasift.batcher.statistics import wilson
from alpasift.batcher.store import Store
from alpasift.graders import Backend
from alpasift.graders.api.prices import QUANTUM, Price, UsageError, charge


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class UsdInterval:
    """Dollars, and how low and how high they may well turn out."""

    usd: Decimal
    usd_low: Decimal
    usd_high: Decimal


class Sample(NamedTuple):
    """The positions of the rows that were drawn, and of how many distinct rows."""

    positions: list[int]
    rows: int


@dataclass(frozen=True, slots=True)
class Sampled:
    """One row of a sample: its grade and what asking about it has cost.

    reason          why there is no score; not_graded where there is no answer yet
    usages          what the usage that each answer reported
    unresolved_usd  what may still come to `usd`
    """

    position: int
    score: Decimal | None
    reason: str | None
    usd: Decimal = Decimal(0)
    unresolved_usd: Decimal = Decimal(0)
    usages: tuple[Mapping[str, Any], ...] = ()

    @property
    def answered(self) -> bool:
        """Whether a grader has answered, readably or not. A call that failed is no answer and will be made again."""
        return self.score is not None or self.reason not in ("not_graded", "backend_error")


@dataclass(frozen=True, slots=True)
class Projection:
    """What a sample shows about the whole: of `rows` rows `sample` were drawn and `answered` have an answer.

    share      the part of all rows that is kept, with Wilson's interval
    kept_rows  the same as rows of the whole, whole numbers: never fewer than were found, nor more than are left
    """

    rows: int
    sample: int
    answered: int
    kept: int
    unread: int
    share: Interval
    kept_rows: Interval


def draw_rows(store: Store, version_id: str, count: int, seed: int) -> Sample:
    """A sample of the distinct rows of a dataset version."""
    rows = store.query("distinct_rows", version_id=version_id)
    return Sample(draw([(row["position"], row["example_id"]) for row in rows], count, seed), len(rows))


def sampled_rows(store: Store, task: Task, backend: Backend, version_id: str, sample: Sample) -> list[Sampled]:
    """The rows of a sample as a grader has graded them by a task's rubric so far."""
    setup = setup_of(task, backend)
    found = store.query(
        "sampled",
        version_id=version_id,
        grader_id=setup.grader_id,
        rubric_id=setup.rubric_id,
        positions=sample.positions,
    )
    return [Sampled(**{**row, "usages": tuple(json.loads(text) for text in row["usages"])}) for row in found]


def project(sampled: Sequence[Sampled], rows: int, threshold: Decimal) -> Projection:
    """What the answered rows of a uniform sample show about the `rows` distinct rows of the whole, at a threshold.

    A row whose answer could not be read is not kept, in the sample as in the whole.
    """
    answered = [one for one in sampled if one.answered]
    kept = sum(one.score is not None and one.score >= threshold for one in answered)
    unread = sum(one.score is None for one in answered)
    share = _share(kept, len(answered), rows)
    low = max(kept, math.floor(share.low * rows + 1e-9))
    high = min(rows - (len(answered) - kept), math.ceil(share.high * rows - 1e-9))
    kept_rows = Interval(round(share.value * rows), low, high)
    return Projection(rows, len(sampled), len(answered), kept, unread, share, kept_rows)


def _share(kept: int, answered: int, rows: int) -> Interval:
    """The share of rows kept; anything from none to all where nothing is answered yet."""
    found = wilson(kept, answered, rows)
    if found.value is None or found.low is None or found.high is None:
        return Interval(0.0, 0.0, 1.0)
    return Interval(found.value, found.low, found.high)


def histogram(sampled: Sequence[Sampled]) -> list[dict[str, Any]]:
    """The scores of a sample, highest first, then the reasons for none, in the columns of sql/queries/scores.sql."""
    asked = sum(one.reason != "not_graded" for one in sampled)
    counted: list[dict[str, Any]] = []
    so_far = 0
    for score in sorted({one.score for one in sampled if one.score is not None}, reverse=True):
        for reason in sorted({one.reason for one in sampled if one.score == score}, key=str):
            found = sum(one.score == score and one.reason == reason for one in sampled)
            so_far += found
            counted.append({"score": score, "reason": reason, "rows": found})
        for row in counted:
            if row["score"] == score:
                row["cumulative_share"] = so_far / asked
    for reason in sorted({str(one.reason) for one in sampled if one.score is None}):
        found = sum(one.score is None and str(one.reason) == reason for one in sampled)
        counted.append({"score": None, "reason": reason, "rows": found, "cumulative_share": None})
    return counted


def costs_of(sampled: Sequence[Sampled], price: Price | None = None) -> list[Decimal]:
    """What each answered row of a sample has cost, or would cost at a price. Rows of unknown cost are left out."""
    found: list[Decimal] = []
    for one in sampled:
        if not one.answered or one.unresolved_usd:
            continue
        if price is None:
            found.append(one.usd)
            continue
        with contextlib.suppress(UsageError):
            found.append(sum((charge(price, usage) for usage in one.usages), Decimal(0)))
    return found


def project_usd(costs: Sequence[Decimal], rows: int) -> UsdInterval | None:
    """What `rows` further rows should cost, from the costs of a sample: mean times rows, with the interval of `margin`.

    None where no cost is known; a single row shows no spread, so its interval is from 0 to twice.
    """
    if not costs:
        return None
    total = sum(costs, Decimal(0))
    mean = total / len(costs)
    if rows == 0 or not total:
        return UsdInterval(Decimal(0), Decimal(0), Decimal(0))
    spread = float(stdev(costs) / mean) if len(costs) > 1 else math.inf
    off = as_decimal(min(1.0, margin(spread, len(costs), rows)))
    usd = mean * rows
    return UsdInterval(*(amount.quantize(QUANTUM) for amount in (usd, usd * (1 - off), usd * (1 + off))))


@dataclass(frozen=True, slots=True)
class Findings:
    """What a probe found. `left` rows of the whole are not graded yet.

    usd    spent by the probe's run
    to_go  what the rows that are left should cost, by the way of asking: "batch", "calls", "as asked"; empty when free
    way    the way that was meant, None when free
    """

    projection: Projection
    histogram: list[dict[str, Any]]
    threshold: Decimal
    left: int
    usd: Decimal
    to_go: dict[str, UsdInterval]
    way: str | None

    @property
    def whole_usd(self) -> Decimal | None:
        """The probe and the rows that are left, the way that was meant; None where no cost is known to go by."""
        return self.usd + self.to_go[self.way].usd if self.way in self.to_go else None


def findings(
    store: Store, task: Task, backend: Backend, version_id: str, run_id: str, sample: Sample, meant: str
) -> Findings:
    """What a probe's sample shows about the whole, whenever its grades were paid for. Writes nothing.

    Where the model has a price by "batch" and one by "calls", what the answers took is priced both ways; `meant` is the
    way in which the rest would be asked.
    """
    sampled = sampled_rows(store, task, backend, version_id, sample)
    left = len(pending(store, task, backend, version_id).questions)
    prices: dict[str, Price | None] = dict(listed_prices(backend))
    if backend.paid and not prices:
        prices = {"as asked": None}
    projected = {way: project_usd(costs_of(sampled, price), left) for way, price in prices.items()}
    to_go = {way: usd for way, usd in projected.items() if usd is not None}
    way = meant if meant in to_go else next(iter(to_go), None)
    usd = store.query("run_spent", run_id=run_id)[0]["spent_usd"]
    assert task.identity.scale is not None, "a probe needs scores"
    threshold = task.identity.scale.threshold
    return Findings(project(sampled, sample.rows, threshold), histogram(sampled), threshold, left, usd, to_go, way)
