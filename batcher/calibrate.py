"""Calibration: what a cheap grader's score says about what a reference would keep, from a sample graded by both.

Knows samples, weights and the fit; nothing of backends or money: whoever calls buys the reference's grades of the rows that
were drawn. The drawn rows follow from dataset, cheap grades, seed and size alone, so that a command that is run again
draws the same rows and pays for none of them twice.

    draw          rows the cheap grader would keep make up about half the sample, however rare they are; the others the rest.
                  Every row has a chance above 0, and weighs 1 / chance in all that is said about the whole
    fit           P(the reference keeps | cheap score), never falling in the score
    held out      its error on rows that it was not fitted to, beside that of the share alone
    verdict       `calibrated`, or `no_claim` with the reasons: then no threshold is offered

Sources: weights, Horvitz & Thompson 1952 (JASA 47:663), their ratio, Hajek 1971. Isotonic fit by pooling adjacent violators,
Ayer et al. 1955 (Ann. Math. Stat. 26:641), as a calibration of scores, Zadrozny & Elkan 2002 (KDD). AUC: DeLong's placements
(1988), weighted, with the variance of a stratified total of them. Shares, precision and recall at a threshold: rows are
counted by stratum and side of the threshold, the size of each such cell being known for the whole dataset; their intervals are
the 2.5th and 97.5th percentile of seeded draws from each cell's posterior with Jeffreys' prior (Brown, Cai & DasGupta 2001,
Stat. Sci. 16:101), those rows that were not drawn being predicted. Resampling the rows instead would give an interval without
width wherever the sample happens to hold no counterexample.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import Decimal
from importlib import metadata
from typing import Any, Literal

from batcher.agree import Z95, By, Figure, Side, auc_interval, missing
from batcher.store import Store, append, new_id, utc_now
from graders import AlpaSiftError

LEAST = 10
"""Fewer rows of a kind seen, and nothing is claimed; fewer rows of the sample kept at a threshold, and it is not offered."""
FOLDS = 10
DRAWS = 2000
MOST_CUTS = 50
_NEAR = 1e-9

Verdict = Literal["calibrated", "no_claim"]


class CalibrateError(AlpaSiftError):
    """A calibration that cannot be made as asked."""


# -- the types ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be calibrated to what, and how the sample is drawn.

    reference_given   its grades are there already: the sample is of rows that have one, and nothing is bought
    """

    version_id: str
    cheap: Side
    by: By
    reference_grader_id: str
    reference_rubric_id: str
    reference_threshold: Decimal
    reference_given: bool
    sample: int = 500
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Level:
    """One value of the cheap grader: how many distinct rows of the dataset have it, and how many rows of the file."""

    value: float
    examples: int
    rows: int


@dataclass(frozen=True, slots=True)
class Pool:
    """The rows that are spoken about, by ascending value; and how many distinct rows are left out, by reason."""

    levels: tuple[Level, ...]
    left_out: Mapping[str, int]

    @property
    def examples(self) -> int:
        return sum(level.examples for level in self.levels)


@dataclass(frozen=True, slots=True)
class Stratum:
    """Rows that are drawn alike: `examples` of the pool, of which `drawn` were drawn and `answered` have a reference score."""

    name: str
    examples: int
    drawn: int
    answered: int

    @property
    def weight(self) -> float:
        """How many rows of the pool one answered row stands for: 1 / its chance."""
        return self.examples / self.answered if self.answered else 0.0


@dataclass(frozen=True, slots=True)
class Seen:
    """One row of the sample with a reference score. `stratum` is 1 for rows the cheap grader keeps, 0 for the others."""

    value: float
    keeps: bool
    stratum: int
    chars: int
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Drawn:
    """The sample: positions of its rows, the two strata (others, keepers), the rows answered so far, and why others are not."""

    positions: tuple[int, ...]
    strata: tuple[Stratum, Stratum]
    seen: tuple[Seen, ...]
    unanswered: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Knot:
    """A corner of the fit: between two of them P is a straight line, beyond the outermost it stays."""

    score: float
    p: float


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
class HeldOut:
    """Mean error on folds that the fit had not seen, and of the share of the other folds alone."""

    folds: int
    brier: float
    base_brier: float
    log_loss: float
    base_log_loss: float


@dataclass(frozen=True, slots=True)
class Findings:
    """All that a sample says. `reasons` are why nothing is claimed; none where the verdict is `calibrated`."""

    verdict: Verdict
    reasons: tuple[str, ...]
    share: Figure
    auc: Figure
    length: str
    length_auc: Figure
    length_lead: Figure
    held_out: HeldOut | None
    fit: tuple[Knot, ...]
    curve: tuple[Point, ...]
    same_share: float | None
    same_share_low: float | None
    same_share_high: float | None
    keepers: int
    others: int


# -- isotonic regression ------------------------------------------------------------------------------------------


def isotonic(points: Sequence[tuple[float, float, float]]) -> tuple[Knot, ...]:
    """The non-decreasing function with the least weighted squared error over (score, y, weight), by its corners.

    Points of one score are taken together. Pool adjacent violators: Ayer et al. 1955.
    """
    sums: dict[float, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for score, y, weight in points:
        if weight > 0:
            sums[score][0] += y * weight
            sums[score][1] += weight
    blocks: list[list[float]] = []  # sum, weight, lowest score, highest score
    for score in sorted(sums):
        blocks.append([*sums[score], score, score])
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] >= blocks[-1][0] * blocks[-2][1]:
            last = blocks.pop()
            blocks[-1] = [blocks[-1][0] + last[0], blocks[-1][1] + last[1], blocks[-1][2], last[3]]
    knots = []
    for total, weight, low, high in blocks:
        knots += [Knot(end, total / weight) for end in ((low,) if low == high else (low, high))]
    return tuple(knots)


def predict(knots: Sequence[Knot], score: float) -> float:
    """The fit at a score: a straight line between two corners, the outermost value beyond them."""
    at = bisect_left(knots, score, key=lambda knot: knot.score)
    if at == len(knots):
        return knots[-1].p
    right = knots[at]
    if at == 0 or right.score == score:
        return right.p
    left = knots[at - 1]
    return left.p + (right.p - left.p) * (score - left.score) / (right.score - left.score)


def held_out(seen: Sequence[Seen], seed: int, folds: int = FOLDS) -> HeldOut:
    """Weighted Brier score and log loss of the fit, and of the share alone, over seeded folds that stratum and verdict divide evenly.

    A prediction of 0 or 1 is taken as 1 / (2n + 2) or its complement: no sample shows that a thing never happens.
    """
    chance = random.Random(f"folds {seed}")
    groups: dict[tuple[int, bool], list[int]] = defaultdict(list)
    for i, one in enumerate(seen):
        groups[one.stratum, one.keeps].append(i)
    fold_of, turn = [0] * len(seen), 0
    for key in sorted(groups):
        chance.shuffle(groups[key])
        for i in groups[key]:
            fold_of[i] = turn % folds
            turn += 1
    errors = [0.0] * 4
    for fold in range(folds):
        train = [one for i, one in enumerate(seen) if fold_of[i] != fold]
        knots = isotonic([(one.value, float(one.keeps), one.weight) for one in train])
        base = sum(one.weight for one in train if one.keeps) / sum(one.weight for one in train)
        least = 1 / (2 * len(train) + 2)
        for i, one in enumerate(seen):
            if fold_of[i] != fold:
                continue
            for at, raw in ((0, predict(knots, one.value)), (1, base)):
                p = min(max(raw, least), 1 - least)
                errors[at] += one.weight * (p - one.keeps) ** 2
                errors[2 + at] -= one.weight * math.log(p if one.keeps else 1 - p)
    total = sum(one.weight for one in seen)
    return HeldOut(folds, *(error / total for error in errors))


# -- weighted AUC -------------------------------------------------------------------------------------------------


def weighted_auc(seen: Sequence[Seen], value: Callable[[Seen], float]) -> Figure:
    """The AUC in the whole pool of an order of rows, with its interval."""
    areas = _linear(seen, value)
    if isinstance(areas, Figure):
        return areas
    area, parts = areas
    sizes = [_kish([one.weight for one in seen if one.keeps is keeps]) for keeps in (True, False)]
    low, high = auc_interval(area, _stratified_variance(seen, parts), *sizes)
    return Figure(area, low, high)


def weighted_lead(seen: Sequence[Seen], one: Callable[[Seen], float], other: Callable[[Seen], float]) -> Figure:
    """AUC of one order less that of another, over the same rows, with its interval."""
    first, second = _linear(seen, one), _linear(seen, other)
    if isinstance(first, Figure):
        return first
    if isinstance(second, Figure):
        return second
    lead = first[0] - second[0]
    parts = [x - y for x, y in zip(first[1], second[1], strict=True)]
    reach = Z95 * math.sqrt(_stratified_variance(seen, parts))
    return Figure(lead, max(-1.0, lead - reach), min(1.0, lead + reach))


def _linear(seen: Sequence[Seen], value: Callable[[Seen], float]) -> Figure | tuple[float, list[float]]:
    """The weighted area, and what each row adds to its error: weight * (placement - area) / weight of its kind."""
    by_value: dict[float, list[float]] = defaultdict(lambda: [0.0, 0.0])
    totals = [0.0, 0.0]
    for one in seen:
        by_value[value(one)][one.keeps] += one.weight
        totals[one.keeps] += one.weight
    if not totals[1]:
        return missing("the reference keeps no row of the sample")
    if not totals[0]:
        return missing("the reference keeps every row of the sample")
    if len(by_value) < 2:
        return missing("all rows of the sample have one value")
    below, above, placed = 0.0, totals[1], {}
    for at in sorted(by_value):
        others, keepers = by_value[at]
        above -= keepers
        placed[at] = ((above + keepers / 2) / totals[1], (below + others / 2) / totals[0])
        below += others
    area = sum(one.weight * placed[value(one)][1] for one in seen if one.keeps) / totals[1]
    parts = [one.weight * (placed[value(one)][one.keeps] - area) / totals[one.keeps] for one in seen]
    return min(1.0, max(0.0, area)), parts


def _stratified_variance(seen: Sequence[Seen], parts: Sequence[float]) -> float:
    """The variance of a sum over a stratified sample; a stratum of one row counts with its square."""
    groups: dict[int, list[float]] = defaultdict(list)
    for one, part in zip(seen, parts, strict=True):
        groups[one.stratum].append(part)
    total = 0.0
    for group in groups.values():
        n, mean = len(group), sum(group) / len(group)
        total += n / (n - 1) * sum((x - mean) ** 2 for x in group) if n > 1 else group[0] ** 2
    return total if total > 1e-18 else 0.0


def _kish(weights: Sequence[float]) -> float:
    """How many equally weighted rows these are worth."""
    squares = sum(w * w for w in weights)
    return sum(weights) ** 2 / squares if squares else 0.0


# -- cells: counts of a stratum on one side of a threshold ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Cell:
    """`examples` rows of the pool, of which `sampled` were seen and `kept` kept by the reference; `rate` stands in for none seen."""

    examples: int
    sampled: int
    kept: int
    rate: float

    @property
    def expected(self) -> float:
        """How many of its rows the reference keeps, as far as the sample says."""
        return self.examples * (self.kept / self.sampled if self.sampled else self.rate)

    def draw(self, chance: random.Random) -> float:
        """How many it may be: those seen, and a prediction of the others from the posterior with Jeffreys' prior."""
        left = self.examples - self.sampled
        if left <= 0:
            return float(self.kept)
        p = chance.betavariate(self.kept + 0.5, self.sampled - self.kept + 0.5)
        more = left * p + chance.gauss() * math.sqrt(left * p * (1 - p))
        return self.kept + min(max(more, 0.0), float(left))


def _interval(value: float, draws: list[float]) -> Figure:
    draws.sort()
    low, high = draws[int(0.025 * len(draws))], draws[math.ceil(0.975 * len(draws)) - 1]
    return Figure(value, min(low, value), max(high, value))


def _cells(pool: Pool, seen: Sequence[Seen], keep_from: float, cut: float) -> list[list[_Cell]]:
    """The cells below a cut and those at it or above, of both strata; those without rows left out."""
    sizes, counts = defaultdict[tuple[int, bool], int](int), defaultdict[tuple[int, bool], list[int]](lambda: [0, 0])
    for level in pool.levels:
        sizes[int(level.value >= keep_from), level.value >= cut] += level.examples
    totals = [[0, 0], [0, 0]]
    for one in seen:
        for count in (counts[one.stratum, one.value >= cut], totals[one.stratum]):
            count[0] += 1
            count[1] += one.keeps
    rates = [kept / n if n else 0.0 for n, kept in totals]
    return [
        [
            _Cell(n, counts[stratum, above][0], counts[stratum, above][1], rates[stratum])
            for (stratum, above), n in sorted(sizes.items())
            if above is side
        ]
        for side in (False, True)
    ]


def reference_share(pool: Pool, seen: Sequence[Seen], keep_from: float, seed: int) -> Figure:
    """The share of the pool that the reference keeps."""
    below, above = _cells(pool, seen, keep_from, keep_from)
    cells, chance = below + above, random.Random(f"share {seed}")
    value = sum(cell.expected for cell in cells) / pool.examples
    return _interval(value, [sum(cell.draw(chance) for cell in cells) / pool.examples for _ in range(DRAWS)])


def point_at(pool: Pool, seen: Sequence[Seen], keep_from: float, cut: float, seed: int) -> Point:
    """What keeping the rows of the pool at a cut or above would do."""
    below, above = _cells(pool, seen, keep_from, cut)
    examples = sum(cell.examples for cell in above)
    hits, misses = sum(cell.expected for cell in above), sum(cell.expected for cell in below)
    chance = random.Random(f"point {seed} {cut!r}")
    precisions, recalls = [], []
    for _ in range(DRAWS):
        hit, miss = sum(cell.draw(chance) for cell in above), sum(cell.draw(chance) for cell in below)
        precisions.append(hit / examples if examples else 0.0)
        recalls.append(hit / (hit + miss) if hit + miss else 0.0)
    return Point(
        threshold=cut,
        rows=sum(level.rows for level in pool.levels if level.value >= cut),
        examples=examples,
        share=examples / pool.examples,
        sampled=sum(one.value >= cut for one in seen),
        precision=_interval(hits / examples, precisions) if examples else missing("it keeps no row"),
        recall=_interval(hits / (hits + misses), recalls) if hits + misses else missing("the reference keeps no row"),
    )


# -- the findings -------------------------------------------------------------------------------------------------


def weighted(seen: Sequence[Seen], strata: Sequence[Stratum]) -> list[Seen]:
    """The rows with the weights of their strata."""
    return [Seen(one.value, one.keeps, one.stratum, one.chars, strata[one.stratum].weight) for one in seen]


def cut_for_share(pool: Pool, share: float) -> float | None:
    """The value of the pool from which the share kept comes nearest to one wanted; of two as near, the one that keeps less."""
    best, so_far = None, 0
    for level in reversed(pool.levels):
        so_far += level.examples
        off = abs(so_far / pool.examples - share)
        if best is None or off < best[0] - _NEAR:
            best = (off, level.value)
    return best[1] if best else None


def _cuts(pool: Pool, also: Sequence[float | None]) -> list[float]:
    """The thresholds that are looked at: every value there is, or where they are many, one for each 2 % of the rows."""
    values = [level.value for level in pool.levels]
    if len(values) > MOST_CUTS:
        cuts = [cut_for_share(pool, i / MOST_CUTS) for i in range(1, MOST_CUTS)]
        values = sorted({cut for cut in [*cuts, *also] if cut is not None})
    return values


def find(pool: Pool, drawn: Drawn, keep_from: float, seed: int) -> Findings:
    """All that a sample says about the pool. Pure: the same sample and seed, the same findings."""
    seen = weighted(drawn.seen, drawn.strata)
    keepers = sum(one.keeps for one in seen)
    others = len(seen) - keepers
    share = (
        reference_share(pool, seen, keep_from, seed) if seen else missing("no row of the sample has a reference score")
    )
    area = weighted_auc(seen, lambda one: one.value)
    longest = weighted_auc(seen, lambda one: one.chars)
    sign = -1 if longest.value is not None and longest.value < 0.5 else 1
    length = weighted_auc(seen, lambda one: sign * one.chars)
    lead = weighted_lead(seen, lambda one: one.value, lambda one: sign * one.chars)
    enough = keepers >= 2 and others >= 2
    error = held_out(seen, seed, min(FOLDS, keepers, others)) if enough else None
    same, same_low, same_high = (
        None if at is None or not pool.levels else cut_for_share(pool, at)
        for at in (share.value, share.high, share.low)
    )
    cuts = _cuts(pool, (same, same_low, same_high)) if seen else []
    curve = tuple(point_at(pool, seen, keep_from, cut, seed) for cut in cuts)
    reasons = _no_claim(keepers, others, area, error, curve, share)
    return Findings(
        "no_claim" if reasons else "calibrated",
        tuple(reasons),
        share,
        area,
        "longest" if sign > 0 else "shortest",
        length,
        lead,
        error,
        isotonic([(one.value, float(one.keeps), one.weight) for one in seen]),
        curve,
        same,
        same_low,
        same_high,
        keepers,
        others,
    )


def _no_claim(
    keepers: int, others: int, area: Figure, error: HeldOut | None, curve: Sequence[Point], share: Figure
) -> list[str]:
    """Why nothing may be claimed; nothing where something may."""
    reasons = []
    for count, what in ((keepers, "keeps"), (others, "drops")):
        if count < LEAST:
            reasons.append(f"only {count} rows of the sample are such as the reference {what}; {LEAST} are the least")
    if area.value is None or area.low is None:
        reasons.append(f"the AUC cannot be computed: {area.reason}")
    elif area.low <= 0.5:
        reasons.append(f"the AUC is {area.value:.2f} ({area.low:.2f} to {area.high:.2f}), and .5 is what chance gives")
    if error is not None and error.brier >= error.base_brier:
        reasons.append(
            f"on rows that it was not fitted to, the fit errs by {error.brier:.4f} and the share alone by "
            f"{error.base_brier:.4f} (Brier score)"
        )
    if not any(one.sampled >= LEAST and (one.precision.low or 0) > (share.value or 0) for one in curve):
        reasons.append(
            f"no threshold is sure to keep a better set than chance would, of which the reference keeps {share.value or 0:.1%}"
        )
    return reasons


def threshold_for(curve: Sequence[Point], precision: float) -> Point | None:
    """The lowest threshold whose precision is estimated at `precision` or more, from LEAST sampled rows or more; None for none."""
    for point in sorted(curve, key=lambda one: one.threshold):
        if point.sampled >= LEAST and point.precision.value is not None and point.precision.value >= precision - _NEAR:
            return point
    return None


# -- drawing ------------------------------------------------------------------------------------------------------


def allocate(keepers: int, others: int, sample: int) -> tuple[int, int]:
    """How many rows to draw of those the cheap grader keeps and of the others: half each, more of one where the other is short."""
    of_keepers = min(keepers, sample // 2)
    of_others = min(others, sample - of_keepers)
    return min(keepers, sample - of_others), of_others


def read_pool(store: Store, job: Job) -> Pool:
    """The rows that a calibration speaks about. Raises CalibrateError where the cheap grader has no values to fit."""
    found = store.query("calibration_pool", **_who(job))
    left_out: dict[str, int] = defaultdict(int)
    levels = []
    for row in found:
        if row["value"] is None:
            left_out[row["reason"]] += row["examples"]
            continue
        examples = row["referenced"] if job.reference_given else row["examples"]
        if examples < row["examples"]:
            left_out["no_reference"] += row["examples"] - examples
        levels.append(Level(row["value"], examples, row["rows"]))
    pool = Pool(tuple(levels), dict(left_out))
    if not pool.examples:
        told = ", ".join(f"{count:,} {reason}" for reason, count in sorted(left_out.items()))
        raise CalibrateError(
            f"no row of this dataset has what is needed: {job.by} by {job.cheap.grader}, rubric {job.cheap.rubric}"
            + (", and a reference score" if job.reference_given else "")
            + f" ({told})"
        )
    return pool


def _who(job: Job) -> dict[str, Any]:
    return {
        "version_id": job.version_id, "grader_id": job.cheap.grader_id, "rubric_id": job.cheap.rubric_id, "by": job.by,
        "reference_grader_id": job.reference_grader_id, "reference_rubric_id": job.reference_rubric_id,
    }  # fmt: skip


def draw(store: Store, job: Job, pool: Pool) -> Drawn:
    """The sample, with the reference's grades that are there by now. Writes nothing; the same job draws the same rows."""
    keep_from = float(job.cheap.threshold)
    sizes = [0, 0]
    for level in pool.levels:
        sizes[level.value >= keep_from] += level.examples
    keepers, others = allocate(sizes[1], sizes[0], job.sample)
    found = store.query(
        "calibration_sample", **_who(job), threshold=keep_from, referenced=job.reference_given, seed=job.seed,
        keepers=keepers, others=others,
    )  # fmt: skip
    keep_at = float(job.reference_threshold)
    seen, unanswered, answered = [], defaultdict[str, int](int), [0, 0]
    for row in found:
        if row["reference_score"] is None:
            unanswered[row["reference_reason"]] += 1
            continue
        answered[row["keeper"]] += 1
        seen.append(Seen(row["value"], row["reference_score"] >= keep_at, int(row["keeper"]), row["output_chars"]))
    strata = (
        Stratum("others", sizes[0], others, answered[0]),
        Stratum("keepers", sizes[1], keepers, answered[1]),
    )
    return Drawn(tuple(row["position"] for row in found), strata, tuple(seen), dict(unanswered))


# -- the stored calibration ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Calibration:
    """A stored calibration of a grader and rubric to a reference. Under `no_claim` it offers no threshold."""

    calibration_id: str
    grader_id: str
    rubric_id: str
    grader: str
    rubric: str
    by: By
    reference: str
    reference_rubric: str
    reference_grader_id: str
    reference_rubric_id: str
    reference_threshold: Decimal
    version_id: str
    verdict: Verdict
    facts: Mapping[str, Any]
    recorded_at: datetime

    @property
    def asked(self) -> tuple[str, str, str, Decimal]:
        """To what it was fitted: the reference, its rubric and threshold, and the dataset version."""
        return (self.reference_grader_id, self.reference_rubric_id, self.version_id, self.reference_threshold)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why nothing is claimed."""
        return tuple(self.facts["reasons"])

    @property
    def sample(self) -> int:
        """How many rows it rests on."""
        return int(self.facts["sample"]["answered"])

    @property
    def curve(self) -> tuple[Point, ...]:
        """What each threshold would do; nothing under `no_claim`."""
        return _curve(self.facts) if self.verdict == "calibrated" else ()

    @property
    def threshold_same_share(self) -> float | None:
        """The threshold that keeps about the share that the reference would keep; None under `no_claim`."""
        at = self.facts["same_share"]["threshold"]
        return float(at) if self.verdict == "calibrated" and at is not None else None

    def threshold_precision(self, wanted: float) -> Point | None:
        """The lowest threshold that is estimated to reach a precision, with what it does; None where none does."""
        return threshold_for(self.curve, wanted)

    def at(self, threshold: float) -> Point | None:
        """What is known about a threshold: the point of the curve that keeps the same rows, None where none does."""
        for one in sorted(self.curve, key=lambda point: point.threshold):
            if one.threshold >= threshold:
                return one if self.facts["every_value"] or one.threshold == threshold else None
        return None

    def p_keep(self, score: float) -> float:
        """The chance that the reference keeps a row of that score; under `no_claim` the share it keeps, whatever the score."""
        if self.verdict == "no_claim" or not self.facts["fit"]:
            return float(self.facts["share"]["value"] or 0.0)
        return predict([Knot(score, p) for score, p in self.facts["fit"]], score)


def _curve(facts: Mapping[str, Any]) -> tuple[Point, ...]:
    return tuple(
        Point(**{**one, "precision": Figure(**one["precision"]), "recall": Figure(**one["recall"])})
        for one in facts["curve"]
    )


def facts_of(job: Job, pool: Pool, drawn: Drawn, found: Findings) -> dict[str, Any]:
    """What is kept of a calibration, as plain values."""
    positions = "\n".join(map(str, drawn.positions))
    return {
        "seed": job.seed,
        "cheap_threshold": float(job.cheap.threshold),
        "reference_given": job.reference_given,
        "pool": {"examples": pool.examples, "left_out": dict(pool.left_out)},
        "sample": {
            "wanted": job.sample, "drawn": len(drawn.positions), "answered": len(drawn.seen),
            "unanswered": dict(drawn.unanswered), "keepers": found.keepers, "others": found.others,
            "positions_sha256": hashlib.sha256(positions.encode()).hexdigest(),
        },
        "strata": [{**asdict(stratum), "weight": stratum.weight} for stratum in drawn.strata],
        "reasons": list(found.reasons),
        "share": asdict(found.share),
        "auc": asdict(found.auc),
        "length": {"direction": found.length, "auc": asdict(found.length_auc), "lead": asdict(found.length_lead)},
        "held_out": asdict(found.held_out) if found.held_out else None,
        "fit": [[knot.score, knot.p] for knot in found.fit],
        "same_share": {"threshold": found.same_share, "low": found.same_share_low, "high": found.same_share_high},
        "curve": [asdict(point) for point in found.curve],
        "every_value": len(found.curve) == len(pool.levels),
        "draws": DRAWS,
        "alpasift": _installed_version(),
    }  # fmt: skip


def _installed_version() -> str:
    try:
        return metadata.version("alpasift")
    except metadata.PackageNotFoundError:
        return "not installed"


def calibrate(store: Store, job: Job, pool: Pool | None = None, drawn: Drawn | None = None) -> Calibration:
    """Fit the cheap grader to the reference on the rows of the sample that have both grades, and write it down.

    `pool` and `drawn` save reading them again where nothing was bought since. What equals the newest calibration of the same
    grades is not written again. Raises CalibrateError.
    """
    with store.reader():
        pool = pool or read_pool(store, job)
        drawn = drawn or draw(store, job, pool)
    if not drawn.seen:
        told = ", ".join(f"{count:,} {reason}" for reason, count in drawn.unanswered.items())
        raise CalibrateError(
            f"the reference has given none of the {len(drawn.positions):,} rows of the sample a score ({told})"
        )
    found = find(pool, drawn, float(job.cheap.threshold), job.seed)
    facts = json.loads(json.dumps(facts_of(job, pool, drawn, found)))
    newest = calibration_of(store, job.cheap.grader_id, job.cheap.rubric_id, job.by)
    asked = (job.reference_grader_id, job.reference_rubric_id, job.version_id, job.reference_threshold)
    if newest is not None and newest.facts == facts and newest.asked == asked:
        return newest
    columns = (
        "calibration_id", "grader_id", "rubric_id", "scored", "reference_grader_id", "reference_rubric_id", "version_id",
        "reference_threshold", "verdict", "facts", "recorded_at",
    )  # fmt: skip
    row = (
        new_id(), job.cheap.grader_id, job.cheap.rubric_id, job.by, job.reference_grader_id, job.reference_rubric_id,
        job.version_id, job.reference_threshold, found.verdict, json.dumps(facts), utc_now(),
    )  # fmt: skip
    with store.transaction() as con:
        append(con, "calibrations", columns, [row])
    written = calibration_of(store, job.cheap.grader_id, job.cheap.rubric_id, job.by)
    assert written is not None
    return written


def calibration_of(store: Store, grader_id: str, rubric_id: str, by: By = "score") -> Calibration | None:
    """The newest calibration of a grader's very version, rubric and scored column; None where there is none."""
    found = store.query(
        "calibrations", grader_id=grader_id, rubric_id=rubric_id, scored=by, grader_name=None, rubric_name=None
    )
    return _read(found[0]) if found else None


def stale_calibration(
    store: Store,
    grader_name: str,
    rubric_name: str,
    *,
    grader_id: str | None = None,
    rubric_id: str | None = None,
) -> Calibration | None:
    """The newest calibration of another version of this grader or rubric, where the version in use has none; else None.

    The version in use is the one of these ids, or the newest of the name.
    """
    newest = store.query("newest_version", grader_name=grader_name, rubric_name=rubric_name)[0]
    used = (grader_id or newest["grader_id"], rubric_id or newest["rubric_id"])
    found = store.query(
        "calibrations", grader_id=None, rubric_id=None, scored=None, grader_name=grader_name, rubric_name=rubric_name
    )
    if not found or any((row["grader_id"], row["rubric_id"]) == used for row in found):
        return None
    return _read(found[0])


def _read(row: Mapping[str, Any]) -> Calibration:
    return Calibration(
        row["calibration_id"], row["grader_id"], row["rubric_id"], row["grader"], row["rubric"], row["scored"],
        row["reference"], row["reference_rubric"], row["reference_grader_id"], row["reference_rubric_id"],
        row["reference_threshold"], row["version_id"], row["verdict"], json.loads(row["facts"]), row["recorded_at"],
    )  # fmt: skip
