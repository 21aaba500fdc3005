"""What a sample shows about the whole it was drawn from: how rows are drawn, weighted and counted, and fitted.

Knows numbers and samples; nothing of graders, rows or the database. `draw` is a uniform sample. A stratified one is
drawn more densely where it matters: each of its rows is a `Weighted`, each count of them a `Cell`. All intervals are
of 95 %.

    draw, margin                             a uniform sample, and how far a cost projected from it may be off
    weighted_auc, weighted_auc_difference    an order of the rows of a stratified sample
    Cell, percentiles                        how many rows of the whole are positive
    isotonic, predict, held_out              P(positive | value), never falling in the value, and its error
"""

from __future__ import annotations

import hashlib
import math
import random
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from alpasift.batcher.statistics import Figure, auc_interval, freedom_of, no_auc, student

LEAST_MARGIN = 0.02
"""No projected cost is given more exactly than this share of itself, however large the sample."""


# -- a uniform sample ----------------------------------------------------------------------------------------------


def draw(rows: Iterable[tuple[int, str]], count: int, seed: int, purpose: str = "probe") -> list[int]:
    """The positions of `count` of these (position, example_id) pairs, uniformly without replacement; ascending.

    Those whose md5("PURPOSE SEED EXAMPLE_ID 1") is the smallest, the rule of `alpasift.batcher.grading.select`: the
    same on every machine, in any order of the file, and the sample of a smaller count lies inside that of a larger one.
    """

    def drawn(pair: tuple[int, str]) -> str:
        return hashlib.md5(f"{purpose} {seed} {pair[1]} 1".encode(), usedforsecurity=False).hexdigest()

    return sorted(position for position, _ in sorted(rows, key=drawn)[:count])


def margin(spread: float, sample: int, rows: int, between: float = 0.0) -> float:
    """How far the total cost of `rows` rows may be off, as a share of it, when the mean is that of `sample` others.

    Two standard errors of the difference of two means, 2 * spread * sqrt(1/sample + 1/rows), plus what runs differ by
    among themselves; never below LEAST_MARGIN. `spread` is the standard deviation of one row's cost, in means.
    """
    return max(LEAST_MARGIN, 2 * spread * math.sqrt(1 / sample + 1 / max(rows, 1)) + between)


def weighted_mean(values: Sequence[tuple[int, float]]) -> float:
    """The mean of (weight, value) pairs."""
    return sum(n * x for n, x in values) / sum(n for n, _ in values)


def weighted_spread(values: Sequence[tuple[int, float]]) -> float:
    """The standard deviation of (weight, value) pairs, as one of len(values) - 1 degrees; 0 for a single pair."""
    if len(values) < 2:
        return 0.0
    mean = weighted_mean(values)
    variance = weighted_mean([(n, (x - mean) ** 2) for n, x in values])
    return math.sqrt(variance * len(values) / (len(values) - 1))


# -- a stratified sample ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Weighted:
    """One row of a stratified sample: its value, whether it is positive, the stratum it was drawn from, and its weight.

    The weight is how many rows of the whole it stands for, 1 / its chance to be drawn: Horvitz & Thompson 1952, JASA
    47:663; ratios of weighted totals, Hajek 1971.
    """

    value: float
    positive: bool
    stratum: int
    weight: float = 1.0


def weighted_auc(sample: Sequence[Weighted]) -> Figure:
    """The AUC in the whole of what a sample was drawn from, with its interval.

    DeLong's placements (1988), weighted, with the variance of their stratified total, and Student's deviate as in
    `alpasift.batcher.statistics.auc`.
    """
    found = _influences(sample)
    if isinstance(found, Figure):
        return found
    area, parts = found
    sizes = [_kish([row.weight for row in sample if row.positive is kind]) for kind in (True, False)]
    variance, deviate = _stratified_variance(sample, parts), _deviate(sample, parts)
    return Figure(area, *auc_interval(area, variance, sizes[0], sizes[1], deviate))


def weighted_auc_difference(sample: Sequence[Weighted], other_values: Sequence[float]) -> Figure:
    """The AUC of the sample's values less that of other values of the same rows, with its interval."""
    others = [replace(row, value=value) for row, value in zip(sample, other_values, strict=True)]
    first, second = _influences(sample), _influences(others)
    if isinstance(first, Figure):
        return first
    if isinstance(second, Figure):
        return second
    lead = first[0] - second[0]
    parts = [x - y for x, y in zip(first[1], second[1], strict=True)]
    reach = _deviate(sample, parts) * math.sqrt(_stratified_variance(sample, parts))
    return Figure(lead, max(-1.0, lead - reach), min(1.0, lead + reach))


def _influences(sample: Sequence[Weighted]) -> Figure | tuple[float, list[float]]:
    """The weighted area, and what each row adds to its error: weight * (placement - area) / weight of its kind."""
    by_value: dict[float, list[float]] = defaultdict(lambda: [0.0, 0.0])
    totals = [0.0, 0.0]
    for row in sample:
        by_value[row.value][row.positive] += row.weight
        totals[row.positive] += row.weight
    if why := no_auc(totals[1], totals[0], len(by_value)):
        return why
    below, above, placed = 0.0, totals[1], {}
    for at in sorted(by_value):
        negatives, positives = by_value[at]
        above -= positives
        placed[at] = ((above + positives / 2) / totals[1], (below + negatives / 2) / totals[0])
        below += negatives
    area = sum(row.weight * placed[row.value][1] for row in sample if row.positive) / totals[1]
    parts = [row.weight * (placed[row.value][row.positive] - area) / totals[row.positive] for row in sample]
    return min(1.0, max(0.0, area)), parts


def _stratified_variance(sample: Sequence[Weighted], parts: Sequence[float]) -> float:
    """The variance of a sum over a stratified sample; a stratum of one row counts with its square."""
    groups: dict[int, list[float]] = defaultdict(list)
    for row, part in zip(sample, parts, strict=True):
        groups[row.stratum].append(part)
    total = 0.0
    for group in groups.values():
        n, mean = len(group), sum(group) / len(group)
        total += n / (n - 1) * sum((x - mean) ** 2 for x in group) if n > 1 else group[0] ** 2
    return total if total > 1e-18 else 0.0


def _deviate(sample: Sequence[Weighted], parts: Sequence[float]) -> float:
    """Student's deviate of such a sum: each kind of row in each stratum is a part of its variance."""
    groups: dict[tuple[int, bool], list[float]] = defaultdict(list)
    for row, part in zip(sample, parts, strict=True):
        groups[row.stratum, row.positive].append(part)
    return student(freedom_of((sum(x * x for x in group), len(group)) for group in groups.values()))


def _kish(weights: Sequence[float]) -> float:
    """How many equally weighted rows these are worth."""
    squares = sum(w * w for w in weights)
    return sum(weights) ** 2 / squares if squares else 0.0


@dataclass(frozen=True, slots=True)
class Cell:
    """Rows of one stratum: `rows` in the whole, `sampled` of them in the sample, `positive` of those positive.

    `rate` is the share of positives that is assumed where none was sampled.
    """

    rows: int
    sampled: int
    positive: int
    rate: float

    @property
    def mean(self) -> float:
        """How many of its rows are positive, estimated from the sample."""
        return self.rows * (self.positive / self.sampled if self.sampled else self.rate)

    def draw(self, chance: random.Random) -> float:
        """How many may be positive: those seen, and a prediction of the others from the posterior with Jeffreys' prior.

        Source: Brown, Cai & DasGupta 2001, Stat. Sci. 16:101. Resampling the rows instead would give an interval
        without width wherever the sample happens to hold no counterexample.
        """
        left = self.rows - self.sampled
        if left <= 0:
            return float(self.positive)
        p = chance.betavariate(self.positive + 0.5, self.sampled - self.positive + 0.5)
        more = left * p + chance.gauss() * math.sqrt(left * p * (1 - p))
        return self.positive + min(max(more, 0.0), float(left))

    def draw_like(self, chance: random.Random) -> float:
        """How many would be positive among as many rows like these, whatever is known of the rows themselves."""
        return self.rows * chance.betavariate(self.positive + 0.5, self.sampled - self.positive + 0.5)


def percentiles(value: float, draws: Sequence[float]) -> Figure:
    """A value with the 2.5th and 97.5th percentile of draws of it, widened where the value lies outside them."""
    ordered = sorted(draws)
    low, high = ordered[int(0.025 * len(ordered))], ordered[math.ceil(0.975 * len(ordered)) - 1]
    return Figure(value, min(low, value), max(high, value))


# -- a fit ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Knot:
    """A corner of the fit: between two of them P is a straight line, beyond the outermost it stays."""

    score: float
    p: float


def isotonic(points: Sequence[tuple[float, float, float]]) -> tuple[Knot, ...]:
    """The non-decreasing function with the least weighted squared error over (score, y, weight), by its corners.

    Points of one score are taken together. Pool adjacent violators: Ayer et al. 1955, Ann. Math. Stat. 26:641; as a
    calibration of scores, Zadrozny & Elkan 2002, KDD.
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


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Mean error on folds that the fit had not seen, and of the share of the other folds alone."""

    folds: int
    brier: float
    base_brier: float
    log_loss: float
    base_log_loss: float


def held_out(sample: Sequence[Weighted], seed: int, folds: int) -> HeldOut:
    """Weighted Brier score and log loss of the isotonic fit, and of the share alone, over seeded folds.

    Stratum and kind are divided evenly among the folds. A prediction of 0 or 1 is taken as 1 / (2n + 2) or its
    complement: no sample shows that a thing never happens.
    """
    fold_of = _folds(sample, seed, folds)
    errors = [0.0] * 4
    for fold in range(folds):
        train = [row for row, own in zip(sample, fold_of, strict=True) if own != fold]
        knots = isotonic([(row.value, float(row.positive), row.weight) for row in train])
        base = sum(row.weight for row in train if row.positive) / sum(row.weight for row in train)
        least = 1 / (2 * len(train) + 2)
        for row, own in zip(sample, fold_of, strict=True):
            if own != fold:
                continue
            for at, raw in ((0, predict(knots, row.value)), (1, base)):
                p = min(max(raw, least), 1 - least)
                errors[at] += row.weight * (p - row.positive) ** 2
                errors[2 + at] -= row.weight * math.log(p if row.positive else 1 - p)
    total = sum(row.weight for row in sample)
    return HeldOut(folds, *(error / total for error in errors))


def _folds(sample: Sequence[Weighted], seed: int, folds: int) -> list[int]:
    """The fold of each row."""
    chance = random.Random(f"folds {seed}")
    groups: dict[tuple[int, bool], list[int]] = defaultdict(list)
    for i, row in enumerate(sample):
        groups[row.stratum, row.positive].append(i)
    fold_of, turn = [0] * len(sample), 0
    for key in sorted(groups):
        chance.shuffle(groups[key])
        for i in groups[key]:
            fold_of[i] = turn % folds
            turn += 1
    return fold_of
