"""The statistics of two columns of grades, in exact arithmetic over counts: each formula stands here once.

Knows numbers and counts; nothing of graders, rows or the database. Pairs of grades come counted, so that a million rows
cost what their distinct pairs cost. A number that cannot be computed is a `Figure` without a value that says why;
nothing here is ever NaN. Intervals are of 95 %. A row is positive where the reference keeps it.

    shares and means     wilson, paired_difference, mean_difference
    agreement            cohen_kappa (of a `Table`), weighted_kappa
    ranks                spearman, kendall
    an order of rows     ranked, then auc or auc_difference

`alpasift.batcher.sampling` has what a sample shows about the whole. numpy, scipy and scikit-learn would do part of this
and take longer to import than the rest of AlpaSift; the tests compare the results with theirs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

Z95 = 1.959964
"""The standard normal deviate of a two-sided 95 % interval."""

Pair = tuple[float, float, int]
"""One cell of a table: a value of A, a value of B, and how many rows have both."""
ROUNDING = 0.005
"""Figures are printed with two decimals: what is nearer than this to a bound looks like it."""
Ranked = tuple[float, int, int]
"""One value of an order, and how many of the rows that have it are positive and negative."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with the ends of its 95 % interval, where it has one; or no number, and the reason why."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None


def beyond(figure: Figure, bound: float) -> bool:
    """Whether the whole interval lies above a bound, by more than the rounding in which both are printed."""
    return figure.low is not None and figure.low > bound + ROUNDING


def short_of(figure: Figure, bound: float) -> bool:
    """Whether the whole interval lies below a bound, by more than that rounding."""
    return figure.high is not None and figure.high < bound - ROUNDING


def student(freedom: float) -> float:
    """The deviate of a two-sided 95 % interval of Student's t; `freedom` need not be whole.

    Source: Abramowitz & Stegun 1964, 26.7.5. Right to three digits from 4 degrees of freedom on.
    """
    z = Z95
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * freedom**4)
    )


def freedom_of(parts: Iterable[tuple[float, int]]) -> float:
    """The degrees of freedom of a variance that is the sum of independent parts, each estimated from so many rows.

    Source: Satterthwaite 1946, Biometrics Bull. 2:110. Infinite where no part has a variance.
    """
    varying = [(variance, rows) for variance, rows in parts if variance > 0 and rows > 1]
    of_all = sum(variance * variance / (rows - 1) for variance, rows in varying)
    return sum(variance for variance, _ in varying) ** 2 / of_all if of_all > 0 else math.inf


def undefined(reason: str) -> Figure:
    """The figure of what cannot be computed."""
    return Figure(None, reason=reason)


@dataclass(frozen=True, slots=True)
class Table:
    """The 2x2 at the threshold: kept by both, by the first only, by B only, by neither."""

    both: int
    first_only: int
    b_only: int
    neither: int

    @property
    def rows(self) -> int:
        return self.both + self.first_only + self.b_only + self.neither

    @property
    def first(self) -> int:
        return self.both + self.first_only

    @property
    def b(self) -> int:
        return self.both + self.b_only


# -- shares -------------------------------------------------------------------------------------------------------


def wilson(hits: float, of: float, population: int | None = None) -> Figure:
    """A share with its score interval. Source: Wilson 1927, JASA 22:209.

        (p + z^2/2n -+ z * sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)

    Both may be effective numbers, no whole ones. Drawn without replacement from a `population`, `of` counts as
    of * (population - 1) / (population - of), which is the finite population correction of the variance: when all of it
    was drawn, the share is what it is. Raises ValueError unless 0 <= hits <= of.
    """
    if not 0 <= hits <= of:
        raise ValueError(f"{hits} hits of {of}")
    if of == 0:
        return undefined("of no rows")
    share = hits / of
    if population is not None and population <= of:
        return Figure(share, share, share)
    n = float(of) if population is None else of * (population - 1) / (population - of)
    centre = share + Z95 * Z95 / (2 * n)
    reach = Z95 * math.sqrt(share * (1 - share) / n + Z95 * Z95 / (4 * n * n))
    shrink = 1 + Z95 * Z95 / n
    low, high = (centre - reach) / shrink, (centre + reach) / shrink
    return Figure(share, 0.0 if hits == 0 else max(0.0, low), 1.0 if hits == of else min(1.0, high))


def paired_difference(first_only: int, b_only: int, of: int) -> Figure:
    """Share of the first less share of the second, over the same rows.

    Interval: Agresti & Min 2005, Stat. Med. 24:729, half a row added to each cell.
    """
    if of == 0:
        return undefined("of no rows")
    x, y, n = first_only + 0.5, b_only + 0.5, of + 2
    centre = (x - y) / n
    reach = Z95 * math.sqrt((x + y) - (x - y) ** 2 / n) / n
    return Figure((first_only - b_only) / of, max(-1.0, centre - reach), min(1.0, centre + reach))


def mean_difference(pairs: Sequence[Pair]) -> Figure:
    """Mean of A less mean of B over the same rows, with the normal interval of paired differences."""
    n = sum(count for _, _, count in pairs)
    if n == 0:
        return undefined("no row has both grades")
    mean = math.fsum((a - b) * count for a, b, count in pairs) / n
    if n < 2:
        return Figure(mean)
    variance = math.fsum((a - b - mean) ** 2 * count for a, b, count in pairs) / (n - 1)
    reach = Z95 * math.sqrt(variance / n)
    return Figure(mean, mean - reach, mean + reach)


# -- kappa --------------------------------------------------------------------------------------------------------


def cohen_kappa(table: Table) -> Figure:
    """Agreement beyond chance of two yes-or-no decisions, with its large-sample interval.

    Kappa: Cohen 1960, Educ. Psychol. Meas. 20:37. Its error: Fleiss, Cohen & Everitt 1969, Psychol. Bull. 72:323.
    """
    n = table.rows
    if n == 0:
        return undefined("no row has both grades")
    if table.first in (0, n) and table.b == table.first:
        return undefined("both decide alike about every row")
    p = ((table.both / n, table.first_only / n), (table.b_only / n, table.neither / n))
    first, b = (table.first / n, 1 - table.first / n), (table.b / n, 1 - table.b / n)
    observed = p[0][0] + p[1][1]
    by_chance = first[0] * b[0] + first[1] * b[1]
    kappa = (observed - by_chance) / (1 - by_chance)
    diagonal = sum(p[i][i] * (1 - (first[i] + b[i]) * (1 - kappa)) ** 2 for i in (0, 1))
    off = (1 - kappa) ** 2 * (p[0][1] * (b[0] + first[1]) ** 2 + p[1][0] * (b[1] + first[0]) ** 2)
    variance = (diagonal + off - (kappa - by_chance * (1 - kappa)) ** 2) / (n * (1 - by_chance) ** 2)
    reach = Z95 * math.sqrt(max(0.0, variance))
    return Figure(kappa, max(-1.0, kappa - reach), min(1.0, kappa + reach))


def weighted_kappa(pairs: Sequence[Pair]) -> Figure:
    """Kappa with quadratic weights: 1 - E(a - b)^2 over the same with a and b independent. The step does not matter.

    With these weights what chance would give is var(a) + var(b) + (mean(a) - mean(b))^2. Source: Cohen 1968, Psychol.
    Bull. 70:213.
    """
    n = sum(count for _, _, count in pairs)
    if n == 0:
        return undefined("no row has both grades")
    mean_a = math.fsum(a * count for a, _, count in pairs) / n
    mean_b = math.fsum(b * count for _, b, count in pairs) / n
    apart = math.fsum((a - b) ** 2 * count for a, b, count in pairs) / n
    variance_a = math.fsum((a - mean_a) ** 2 * count for a, _, count in pairs) / n
    variance_b = math.fsum((b - mean_b) ** 2 * count for _, b, count in pairs) / n
    by_chance = variance_a + variance_b + (mean_a - mean_b) ** 2
    if not by_chance:
        return undefined("both give every row the same one score")
    return Figure(1 - apart / by_chance)


# -- ranks --------------------------------------------------------------------------------------------------------


def _constant(pairs: Sequence[Pair]) -> Figure | None:
    """Why an order of these rows means nothing, None where it does."""
    if sum(count for _, _, count in pairs) < 2:
        return undefined("fewer than two rows have both grades")
    if len({a for a, _, _ in pairs}) == 1:
        return undefined("all rows have one value")
    if len({b for _, b, _ in pairs}) == 1:
        return undefined("the reference gives every row the same score")
    return None


def _at_most_1(correlation: float) -> float:
    """Roots are rounded: 1.0000000000000002 is 1."""
    return max(-1.0, min(1.0, correlation))


def _doubled_ranks(counts: Mapping[float, int]) -> dict[float, int]:
    """Twice the middle rank of each value, less n + 1: whole numbers whose mean is 0."""
    n, below, ranks = sum(counts.values()), 0, {}
    for value in sorted(counts):
        ranks[value] = 2 * below + counts[value] - n
        below += counts[value]
    return ranks


def spearman(pairs: Sequence[Pair]) -> Figure:
    """Rank correlation, ties at their middle rank, with its interval from four rows on."""
    if why := _constant(pairs):
        return why
    count_a, count_b = _margins(pairs)
    rank_a, rank_b = _doubled_ranks(count_a), _doubled_ranks(count_b)
    together = sum(rank_a[a] * rank_b[b] * count for a, b, count in pairs)
    alone_a = sum(rank_a[a] ** 2 * count for a, count in count_a.items())
    alone_b = sum(rank_b[b] ** 2 * count for b, count in count_b.items())
    found = _at_most_1(together / (math.sqrt(alone_a) * math.sqrt(alone_b)))
    return Figure(found, *_correlation_interval(found, sum(count_a.values())))


def _correlation_interval(found: float, n: int) -> tuple[float | None, float | None]:
    """On Fisher's scale with the variance (1 + r^2 / 2) / (n - 3): Bonett & Wright 2000, Psychometrika 65:23.

    A perfect order has no end on that scale; it is taken as one in which two neighbours have changed places.
    """
    if n < 4:
        return None, None
    most = 1 - 12 / (n * (n * n - 1))
    at = math.atanh(max(-most, min(most, found)))
    reach = Z95 * math.sqrt((1 + found * found / 2) / (n - 3))
    return min(found, math.tanh(at - reach)), max(found, math.tanh(at + reach))


def _margins(pairs: Iterable[Pair]) -> tuple[dict[float, int], dict[float, int]]:
    count_a: dict[float, int] = defaultdict(int)
    count_b: dict[float, int] = defaultdict(int)
    for a, b, count in pairs:
        count_a[a] += count
        count_b[b] += count
    return count_a, count_b


def kendall(pairs: Sequence[Pair]) -> Figure:
    """Tau-b: concordant less discordant pairs, over those not tied in A and those not tied in B. B has few values.

    Source: Kendall 1945, Biometrika 33:239.
    """
    if why := _constant(pairs):
        return why
    count_a, count_b = _margins(pairs)
    place = {value: i for i, value in enumerate(sorted(count_b))}
    seen = [0] * len(place)  # rows with a lower a, by the place of their b
    n = sum(seen_b for seen_b in count_b.values())
    so_far = lead = 0
    for _, group in groupby(sorted(pairs), key=lambda pair: pair[0]):
        cells = [(place[b], count) for _, b, count in group]
        for at, count in cells:
            below = sum(seen[:at])
            lead += count * (2 * below + seen[at] - so_far)
        for at, count in cells:
            seen[at] += count
            so_far += count

    def not_tied(counts: Mapping[float, int]) -> int:
        return n * (n - 1) // 2 - sum(count * (count - 1) // 2 for count in counts.values())

    return Figure(_at_most_1(lead / (math.sqrt(not_tied(count_a)) * math.sqrt(not_tied(count_b)))))


# -- AUC ----------------------------------------------------------------------------------------------------------


def ranked(values: Iterable[tuple[float, bool, int]]) -> list[Ranked]:
    """Values with what they are (positive or not) and their count, added up by value and in ascending order."""
    counts: dict[float, list[int]] = {}
    for value, positive, count in values:
        counts.setdefault(value, [0, 0])[not positive] += count
    return [(value, counts[value][0], counts[value][1]) for value in sorted(counts)]


def _totals(order: Sequence[Ranked]) -> tuple[int, int]:
    return sum(positive for _, positive, _ in order), sum(negative for _, _, negative in order)


def _placements(order: Sequence[Ranked]) -> dict[float, tuple[float, float]]:
    """By value: the share of negatives below a positive that has it, and of positives above a negative that has it."""
    positives, negatives = _totals(order)
    above, below, found = positives, 0, {}
    for value, positive, negative in order:
        above -= positive
        found[value] = ((below + negative / 2) / negatives, (above + positive / 2) / positives)
        below += negative
    return found


def auc(order: Sequence[Ranked]) -> Figure:
    """The area under the ROC curve of an ascending order, with its interval.

    Its variance: DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44:837; the interval: see `auc_interval`. The
    variance rests on the rows of the rarer kind, of which there may be few: Student's deviate in place of the normal
    one, with the degrees of freedom of Brunner & Munzel 2000, Biom. J. 42:17.
    """
    positives, negatives = _totals(order)
    if why := no_auc(positives, negatives, len(order)):
        return why
    placed = _placements(order)
    area = math.fsum(placed[value][0] * positive for value, positive, _ in order) / positives
    of_positives = _variance([placed[v][0] - area for v, _, _ in order], [p for _, p, _ in order], positives)
    of_negatives = _variance([placed[v][1] - area for v, _, _ in order], [q for _, _, q in order], negatives)
    deviate = student(freedom_of([(of_positives, positives), (of_negatives, negatives)]))
    low, high = auc_interval(area, of_positives + of_negatives, positives, negatives, deviate)
    return Figure(area, low, high)


def no_auc(positives: float, negatives: float, values: int) -> Figure | None:
    """Why there is no AUC; None where there is one."""
    if not positives:
        return undefined("the reference keeps no row")
    if not negatives:
        return undefined("the reference keeps every row")
    return undefined("all rows have one value") if values < 2 else None


def _variance(apart: Sequence[float], counts: Sequence[int], n: int) -> float:
    """Variance of the mean of n values, given as differences from it and their counts; 0 for one value."""
    return math.fsum(x * x * count for x, count in zip(apart, counts, strict=True)) / (n - 1) / n if n > 1 else 0.0


def auc_interval(
    area: float, variance: float, positives: float, negatives: float, deviate: float = Z95
) -> tuple[float, float]:
    """The interval of an area: on the logit scale from its variance, or where that is 0, by Newcombe's method 5.

    The latter is the score interval of Hanley & McNeil's variance (1982, Radiology 143:29) in the form of Newcombe
    2006, Stat. Med. 25:559.
    """
    if variance > 0 and 0 < area < 1:
        logit = math.log(area / (1 - area))
        reach = deviate * math.sqrt(variance) / (area * (1 - area))
        return _expit(logit - reach), _expit(logit + reach)
    mean = (positives + negatives) / 2 - 1

    def off(true: float) -> float:
        """How many standard errors the area lies from a true one, less 1.96."""
        spread = 1 + mean * (1 - true) / (2 - true) + mean * true / (1 + true)
        return abs(area - true) - Z95 * math.sqrt(true * (1 - true) * spread / (positives * negatives))

    return _boundary(off, 0.0, area), _boundary(off, 1.0, area)


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def _boundary(off: Callable[[float], float], outside: float, inside: float) -> float:
    """Where `off` turns from above 0 to below, between two points; `outside` where it never does."""
    if inside == outside:
        return outside
    for _ in range(60):
        middle = (outside + inside) / 2
        if off(middle) > 0:
            outside = middle
        else:
            inside = middle
    return inside


def auc_difference(cells: Sequence[tuple[float, float, bool, int]]) -> Figure:
    """AUC of the first value less that of the second, on the same rows, with DeLong's interval for correlated areas,
    and Student's deviate as in `auc`.

    A cell is a first value, a second value, whether these rows are positive, and how many they are.
    """
    orders = [ranked((cell[at], cell[2], cell[3]) for cell in cells) for at in (0, 1)]
    positives, negatives = _totals(orders[0])
    for order in orders:
        if why := no_auc(positives, negatives, len(order)):
            return why
    if positives < 2 or negatives < 2:
        return undefined("fewer than two rows of a kind")
    first, second = (_placements(order) for order in orders)
    apart = {True: [0.0, 0.0], False: [0.0, 0.0]}
    for one, other, positive, count in cells:
        side = 0 if positive else 1
        x = first[one][side] - second[other][side]
        apart[positive][0] += x * count
        apart[positive][1] += x * x * count
    lead = apart[True][0] / positives
    parts = [
        (max(0.0, squares - total * total / n) / (n - 1) / n, n)
        for (total, squares), n in ((apart[True], positives), (apart[False], negatives))
    ]
    reach = student(freedom_of(parts)) * math.sqrt(sum(variance for variance, _ in parts))
    return Figure(lead, max(-1.0, lead - reach), min(1.0, lead + reach))
