"""What a sample graded by a cheap grader and a reference shows about the whole: the fit, each threshold, the verdict.

Knows pools and samples; nothing of the database, backends or money. `analyse` is pure: the same sample and seed, the
same findings.

    fit           P(the reference keeps | cheap score), never falling in the score
    held out      its error on rows that it was not fitted to, beside that of the share alone
    curve         what keeping the rows from a threshold on would do: share, precision, recall; empty under no claim
    verdict       `calibrated`, or `no_claim` with the reasons (calibration_verdict.py)

Precision, recall and share are counted by stratum and side of the threshold, the size of each such cell being known for
the whole dataset; their intervals are percentiles of seeded draws from the cells' posteriors. The share is that of the
rows of the dataset, and is known where all of them were graded. What a threshold does is said of rows like these, so
that its interval keeps its width in a small pool whose rows are all labelled.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from alpasift.batcher.grading.calibration_sample import Drawn, Pool
from alpasift.batcher.grading.calibration_verdict import Evidence, Point, Verdict, no_claim, threshold_for
from alpasift.batcher.sampling import (
    Cell,
    HeldOut,
    Knot,
    Weighted,
    held_out,
    isotonic,
    percentiles,
    weighted_auc,
    weighted_auc_difference,
)
from alpasift.batcher.statistics import Figure, undefined

FOLDS = 10
DRAWS = 2000
MOST_CUTS = 50
_NEAR = 1e-9

__all__ = ["DRAWS", "Findings", "Point", "Verdict", "analyse", "cut_for_share", "point_at", "threshold_for"]


@dataclass(frozen=True, slots=True)
class Findings:
    """All that a sample shows. `reasons` are why nothing is claimed; none where the verdict is `calibrated`."""

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


def analyse(pool: Pool, drawn: Drawn, threshold: float, seed: int) -> Findings:
    """All that a sample shows about the pool; `threshold` is that of the cheap grader."""
    sample = drawn.weighted()
    keepers = sum(row.positive for row in sample)
    others = len(sample) - keepers
    share = (
        reference_share(pool, sample, threshold, seed) if sample else undefined("no sampled row has a reference score")
    )
    area = weighted_auc(sample)
    direction, length, lead = _length(drawn, sample)
    enough = keepers >= 2 and others >= 2
    error = held_out(sample, seed, min(FOLDS, keepers, others)) if enough else None
    same, same_low, same_high = (
        None if at is None or not pool.levels else cut_for_share(pool, at)
        for at in (share.value, share.high, share.low)
    )
    evidence = Evidence(keepers, others, area, direction, length, lead, error, share, ())
    curve: tuple[Point, ...] = ()
    if not no_claim(evidence):  # else no threshold is offered, whatever it would do
        cuts = _cuts(pool, (same, same_low, same_high))
        curve = tuple(point_at(pool, sample, threshold, cut, seed) for cut in cuts)
    reasons = no_claim(replace(evidence, curve=curve))
    return Findings(
        verdict="no_claim" if reasons else "calibrated",
        reasons=reasons,
        share=share,
        auc=area,
        length=direction,
        length_auc=length,
        length_lead=lead,
        held_out=error,
        fit=isotonic([(row.value, float(row.positive), row.weight) for row in sample]),
        curve=curve,
        same_share=same,
        same_share_low=same_low,
        same_share_high=same_high,
        keepers=keepers,
        others=others,
    )


def _length(drawn: Drawn, sample: Sequence[Weighted]) -> tuple[str, Figure, Figure]:
    """Output length alone, "longest" or "shortest" first, as does better; its AUC; the cheap grader's AUC less that."""
    lengths = [float(one.chars) for one in drawn.seen]
    longest = weighted_auc([replace(row, value=chars) for row, chars in zip(sample, lengths, strict=True)])
    if longest.value is not None and longest.value < 0.5:
        lengths = [-chars for chars in lengths]
        shortest = weighted_auc([replace(row, value=chars) for row, chars in zip(sample, lengths, strict=True)])
        return "shortest", shortest, weighted_auc_difference(sample, lengths)
    return "longest", longest, weighted_auc_difference(sample, lengths)


# -- thresholds -----------------------------------------------------------------------------------------------------


def reference_share(pool: Pool, sample: Sequence[Weighted], threshold: float, seed: int) -> Figure:
    """The share of the pool that the reference keeps."""
    below, above = _cells(pool, sample, threshold, threshold)
    cells, chance = below + above, random.Random(f"share {seed}")
    value = sum(cell.mean for cell in cells) / pool.examples
    return percentiles(value, [sum(cell.draw(chance) for cell in cells) / pool.examples for _ in range(DRAWS)])


def point_at(pool: Pool, sample: Sequence[Weighted], threshold: float, cut: float, seed: int) -> Point:
    """What keeping the rows of the pool at a cut or above would do; `threshold` divides the strata."""
    below, above = _cells(pool, sample, threshold, cut)
    examples = sum(cell.rows for cell in above)
    hits, misses = sum(cell.mean for cell in above), sum(cell.mean for cell in below)
    chance = random.Random(f"point {seed} {cut!r}")
    precisions, recalls = [], []
    for _ in range(DRAWS):
        hit, miss = (sum(cell.draw_like(chance) for cell in side) for side in (above, below))
        precisions.append(hit / examples if examples else 0.0)
        recalls.append(hit / (hit + miss) if hit + miss else 0.0)
    return Point(
        threshold=cut,
        rows=sum(level.rows for level in pool.levels if level.value >= cut),
        examples=examples,
        share=examples / pool.examples,
        sampled=sum(one.value >= cut for one in sample),
        precision=percentiles(hits / examples, precisions)
        if examples
        else undefined("no row is kept at this threshold"),
        recall=percentiles(hits / (hits + misses), recalls)
        if hits + misses
        else undefined("the reference keeps no row"),
    )


def _cells(pool: Pool, sample: Sequence[Weighted], threshold: float, cut: float) -> list[list[Cell]]:
    """The cells below a cut and those at it or above, of both strata; those without rows left out."""
    sizes, counts = defaultdict[tuple[int, bool], int](int), defaultdict[tuple[int, bool], list[int]](lambda: [0, 0])
    for level in pool.levels:
        sizes[int(level.value >= threshold), level.value >= cut] += level.examples
    totals = [[0, 0], [0, 0]]
    for one in sample:
        for count in (counts[one.stratum, one.value >= cut], totals[one.stratum]):
            count[0] += 1
            count[1] += one.positive
    rates = [kept / n if n else 0.0 for n, kept in totals]
    return [
        [
            Cell(n, counts[stratum, above][0], counts[stratum, above][1], rates[stratum])
            for (stratum, above), n in sorted(sizes.items())
            if above is side
        ]
        for side in (False, True)
    ]


def cut_for_share(pool: Pool, share: float) -> float | None:
    """The value of the pool from which the share kept comes nearest to `share`; of two as near, the higher one."""
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
