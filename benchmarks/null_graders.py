"""How often calibrations and comparisons claim what is not there, and how often they find what is.

python -m benchmarks.null_graders [--each 125] [--power-each 50] [--seed 0] [--kind WORDS] [--agree-only]

Graders whose scores carry nothing (one value, chance, output length in disguise) meet labels that depend on length a
little, as real ones do. Every one goes through `analyse`, which `alpasift calibrate` calls, and `compare`, which
`alpasift agree` calls. A false claim is the verdict `calibrated`, or that A orders the rows or agrees more than one
decision for all rows does; for what is length in disguise, or as good as length, that A is better than length. The
power is that of graders with a planted AUC and labels that ignore length. Rates have Wilson's 95 % interval.
"""

from __future__ import annotations

import argparse
import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from statistics import NormalDist

from alpasift.batcher.grading.agree import compare
from alpasift.batcher.grading.agreement_words import better_than_length, better_than_one_decision, order_shown
from alpasift.batcher.grading.calibration_fit import analyse
from alpasift.batcher.grading.calibration_sample import Drawn, Level, Pool, Seen, Stratum, allocate
from alpasift.batcher.grading.lookup import Grading
from alpasift.batcher.statistics import wilson

Row = tuple[float, bool, int]
"""The grader's score, whether the reference keeps the row, and the length of its output in characters."""
Score = Callable[[random.Random, int], float]
"""A score from chance and the length of the output."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of grader without knowledge. `rows` are in the pool, `sample` of them labelled; the reference keeps
    `share`; the grader keeps its highest fifth.

    length      it knows as much as length does, so that only "better than length" is a false claim
    own_source  its knowledge is as much as that of length and independent of it: `score` is not called
    """

    name: str
    score: Score
    rows: int = 800
    sample: int = 200
    share: float = 0.3
    length: bool = False
    own_source: bool = False


def disguised(levels: float, noise: float) -> Score:
    """The logarithm of the length, cut to levels, with noise in units of its spread."""
    return lambda chance, chars: math.floor((math.log(chars) + noise * chance.gauss()) * levels) / levels


KINDS = (
    Kind("one value", lambda chance, chars: 3.0),
    Kind("97 % one value, the rest by chance", lambda chance, chars: 3.0 if chance.random() < 0.97 else 4.5),
    Kind("chance, 20 values", lambda chance, chars: float(chance.randint(1, 20))),
    Kind("chance, 5 values", lambda chance, chars: float(chance.randint(1, 5))),
    Kind("chance, 2 values", lambda chance, chars: float(chance.random() < 0.3)),
    Kind("chance, 60 rows", lambda chance, chars: float(chance.randint(1, 10)), 600, 60),
    Kind("chance, reference keeps 6 %", lambda chance, chars: float(chance.randint(1, 10)), 1200, 400, 0.06),
    Kind("chance, reference keeps 94 %", lambda chance, chars: float(chance.randint(1, 10)), 1200, 400, 0.94),
    Kind("chance, 2 values, reference keeps 3 %", lambda chance, chars: float(chance.randint(1, 2)), 1200, 400, 0.03),
    Kind("chance, reference keeps half", lambda chance, chars: float(chance.randint(1, 10)), 800, 200, 0.5),
    Kind("chance, all 150 rows labelled", lambda chance, chars: float(chance.randint(1, 10)), 150, 150),
    Kind("chance, all 600 labelled, 6 % kept", lambda chance, chars: float(chance.randint(1, 5)), 600, 600, 0.06),
    Kind("97 % one value, all 150 labelled", lambda chance, chars: 3.0 if chance.random() < 0.97 else 2.0, 150, 150),
    Kind("length itself", disguised(8, 0.0), length=True),
    Kind("length in 5 levels", disguised(2, 0.0), length=True),
    Kind("length with noise", disguised(4, 0.5), length=True),
    Kind("length with noise, all 150 labelled", disguised(4, 0.3), 150, 150, length=True),
    Kind("shortness with noise", lambda chance, chars: -disguised(4, 0.3)(chance, chars), length=True),
    Kind("as good as length, independent of it", lambda chance, chars: 0.0, length=True, own_source=True),
)


def null_rows(kind: Kind, chance: random.Random) -> list[Row]:
    """Rows whose labels depend on the length of the output (its AUC is about .64), and never on the grader."""
    bound = NormalDist(0.0, math.sqrt(1.5 if kind.own_source else 1.25)).inv_cdf(1 - kind.share)
    rows = []
    for _ in range(kind.rows):
        z = chance.gauss()
        chars = max(1, round(math.exp(5.5 + 0.8 * z)))
        own = chance.gauss() if kind.own_source else 0.0
        score = own if kind.own_source else kind.score(chance, chars)
        rows.append((score, 0.5 * (z + own) + chance.gauss() > bound, chars))
    return rows


def planted_rows(area: float, count: int, share: float, chance: random.Random) -> list[Row]:
    """Rows whose scores, on a scale of half points, have this AUC; their lengths say nothing."""
    shift = math.sqrt(2) * NormalDist().inv_cdf(area)
    rows = []
    for _ in range(count):
        keeps = chance.random() < share
        rows.append((round(4 * chance.gauss(shift * keeps, 1)) / 4, keeps, round(math.exp(chance.gauss(5.5, 0.8))) + 1))
    return rows


def threshold_of(rows: Sequence[Row]) -> float:
    """The score from which the highest fifth of the rows is kept."""
    return sorted(score for score, _, _ in rows)[int(0.8 * len(rows))]


def claims_calibration(rows: list[Row], sample: int, seed: int) -> bool:
    """Whether `calibrate` would say CALIBRATED of these rows, a sample of which has the reference's grades."""
    chance, threshold = random.Random(f"sample {seed}"), threshold_of(rows)
    groups = [[row for row in rows if (row[0] >= threshold) is keeper] for keeper in (False, True)]
    keepers, others = allocate(len(groups[1]), len(groups[0]), sample)
    sizes = (others, keepers)
    taken = [chance.sample(group, n) for group, n in zip(groups, sizes, strict=True)]
    strata = [Stratum(str(at), len(groups[at]), sizes[at], sizes[at]) for at in (0, 1)]
    seen = tuple(Seen(score, keeps, at, chars) for at in (0, 1) for score, keeps, chars in taken[at])
    counts: dict[float, int] = defaultdict(int)
    for score, _, _ in rows:
        counts[score] += 1
    pool = Pool(tuple(Level(value, counts[value], counts[value]) for value in sorted(counts)), {})
    return analyse(pool, Drawn((), (strata[0], strata[1]), seen, {}), threshold, seed).verdict == "calibrated"


def claims_order(rows: Sequence[Row], beyond_length: bool) -> bool:
    """Whether `agree` would say that A orders the rows, either way round, or agrees more than one decision for all
    rows does; or, beyond length, that it is better than length."""
    low, high = min(score for score, _, _ in rows), max(score for score, _, _ in rows)
    a = Grading(
        "a", "r", "a", "x", "x", Decimal(str(low)), Decimal(str(high)), Decimal(1), Decimal(str(threshold_of(rows)))
    )
    b = Grading("b", "r", "b", "y", "y", Decimal(0), Decimal(1), Decimal(1), Decimal(1))
    found = compare(a, b, "score", [(score, float(keeps), chars, 1) for score, keeps, chars in rows])
    if beyond_length:
        return better_than_length(found)
    return order_shown(found) is not None or better_than_one_decision(found)


def false_claims(kind: Kind, each: int, seed: int, agree_only: bool = False) -> tuple[int, int]:
    """How many of `each` graders of a kind are said to be calibrated, and how many to agree with the reference."""
    calibrated = agreed = 0
    for i in range(each):
        chance = random.Random(f"{kind.name} {seed} {i}")
        rows = null_rows(kind, chance)
        calibrated += not agree_only and claims_calibration(rows, kind.sample, i)
        agreed += claims_order(chance.sample(rows, kind.sample), kind.length)
    return calibrated, agreed


def power(area: float, count: int, share: float, each: int, seed: int, agree_only: bool = False) -> tuple[int, int]:
    """How many of `each` graders with a planted AUC are said to be calibrated, and to agree; all rows are labelled."""
    calibrated = agreed = 0
    for i in range(each):
        rows = planted_rows(area, count, share, random.Random(f"planted {area} {count} {share} {seed} {i}"))
        calibrated += not agree_only and claims_calibration(rows, count, i)
        agreed += claims_order(rows, False)
    return calibrated, agreed


def line(name: str, found: tuple[int, int], of: int, agree_only: bool) -> str:
    """One line of a table: two counts as rates with their intervals, the first left out where it was not counted."""
    cells = [name]
    for hits in found[1:] if agree_only else found:
        rate = wilson(hits, of)
        cells.append(f"{rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%})")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--each", type=int, default=125, help="graders of each kind")
    parser.add_argument("--power-each", type=int, default=50, help="graders with a planted AUC, for each AUC and size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", default="", help="only the kinds whose name holds these words")
    parser.add_argument("--agree-only", action="store_true", help="leave `calibrate` out, which takes nearly all time")
    given = parser.parse_args()
    only = given.agree_only
    titles = "agree claims something |\n|---|---|" if only else "CALIBRATED | agree claims something |\n|---|---|---|"
    kinds = [kind for kind in KINDS if given.kind in kind.name]
    if given.each:
        print(f"| grader without knowledge ({given.each:,} of each) | {titles}", flush=True)
    sums = (0, 0)
    for kind in kinds if given.each else ():
        found = false_claims(kind, given.each, given.seed, only)
        sums = (sums[0] + found[0], sums[1] + found[1])
        print(line(kind.name, found, given.each, only), flush=True)
    total = given.each * len(kinds)
    if total:
        print(line(f"all {total:,}", sums, total, only) + "\n")
    if given.kind or not given.power_each:
        return
    print(f"| planted AUC, rows, share kept | {titles}")
    for area in (0.6, 0.7, 0.8):
        for count in (100, 300):
            for share in (0.5, 0.2):
                found = power(area, count, share, given.power_each, given.seed, only)
                print(line(f"{area:.2f}, {count}, {share:.0%}", found, given.power_each, only), flush=True)


if __name__ == "__main__":
    main()
