"""Two graders side by side: how far the grades of A agree with those of B, with intervals, and what length alone would do.

Knows counts of pairs of grades and the statistics of a table; nothing of models, money or printing. The database counts
(`grade_pairs`), and all that follows is exact arithmetic over the counts, so that a million rows cost what their distinct
pairs cost. What cannot be computed is a `Figure` without a value that says why; nothing here is ever NaN.

Everything counts distinct examples. A grader taken by its expected score is cut to the thousandth, the scale of all scores. B stands for the truth only where precision and recall are named.

Sources: interval of a share, Wilson 1927 (JASA 22:209). Kappa, Cohen 1960 (Educ. Psychol. Meas. 20:37), its standard error,
Fleiss, Cohen & Everitt 1969 (Psychol. Bull. 72:323); weighted kappa, Cohen 1968 (Psychol. Bull. 70:213). Tau-b, Kendall 1945
(Biometrika 33:239). AUC with its variance and the difference of two, DeLong, DeLong & Clarke-Pearson 1988 (Biometrics
44:837), on the logit scale; where that variance is 0, the score interval of Hanley & McNeil's variance (1982, Radiology
143:29) in the form of Newcombe 2006 (Stat. Med. 25:559, method 5). Difference of two paired shares, Agresti & Min 2005
(Stat. Med. 24:729).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby
from typing import Any, Literal

from batcher.store import Store
from graders import AlpaSiftError

Z95 = 1.959964
"""The standard normal deviate of a two-sided 95 % interval."""

By = Literal["score", "expected"]
Pair = tuple[float, float, int]
"""One cell of a table: a value of A, a value of B, and how many examples have both."""
Ranked = tuple[float, int, int]
"""One value of a grader, and how many of the rows that have it are positive and negative."""


class AgreeError(AlpaSiftError):
    """Two graders that cannot be compared."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with the ends of its 95 % interval, where it has one; or no number, and the reason why."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None


def missing(reason: str) -> Figure:
    return Figure(None, reason=reason)


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two: a grader and rubric, the rubric's scale, and the score from which it keeps a row."""

    grader_id: str
    rubric_id: str
    grader: str
    rubric: str
    rubric_name: str
    low: Decimal
    high: Decimal
    step: Decimal
    threshold: Decimal

    def same_scale(self, other: Side) -> bool:
        return (self.low, self.high) == (other.low, other.high)

    @property
    def scale(self) -> str:
        low, high, step = (format(number.normalize(), "f") for number in (self.low, self.high, self.step))
        return f"{low} to {high} by {step}"


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


@dataclass(frozen=True, slots=True)
class Against:
    """How one order of the rows, a grader's or that of the output's length, does against B.

    what       "score", "expected", "longest" or "shortest": rows at the head of the order are kept
    cut        the value from which a row is kept; for shortest, up to which
    precision  of the rows it keeps, the share that B keeps; recall: of the rows B keeps, the share that it keeps
    auc        the chance that of a row kept by B and one not kept, the first stands higher; ties count half
    """

    what: str
    cut: float | None
    table: Table
    precision: Figure
    recall: Figure
    agreement: Figure
    kappa: Figure
    jaccard: Figure
    auc: Figure
    spearman: Figure
    kendall: Figure


@dataclass(frozen=True, slots=True)
class Agreement:
    """What comparing A with B found. Counts are distinct examples of one dataset version.

    without          how many examples were left out, by A's and B's reason (None for the one that has a grade)
    drop_everything  the raw agreement with B of keeping nothing; keep_everything, of keeping all
    flip_rate        the share of rows on which the two decide differently
    weighted_kappa   quadratic weights; only on one scale
    mean_shift       mean of A less mean of B, only on one scale; kept_shift: kept share of A less that of B
    length           output length alone, in the direction that does better here, keeping as many rows as A
    auc_lead         A's AUC less that of length, on the same rows
    says             the same in plain words
    """

    a: Side
    b: Side
    by: By
    examples: int
    compared: int
    without: list[dict[str, Any]]
    grader: Against
    length: Against
    drop_everything: float | None
    keep_everything: float | None
    flip_rate: Figure
    weighted_kappa: Figure
    mean_shift: Figure
    kept_shift: Figure
    auc_lead: Figure
    says: list[str]


# -- shares -------------------------------------------------------------------------------------------------------


def wilson(hits: float, of: float) -> Figure:
    """A share with its score interval; `of` may be an effective number, no whole one. Source: Wilson 1927."""
    if of <= 0:
        return missing("of no rows")
    share = hits / of
    centre = share + Z95 * Z95 / (2 * of)
    reach = Z95 * math.sqrt(max(0.0, share * (1 - share)) / of + Z95 * Z95 / (4 * of * of))
    shrink = 1 + Z95 * Z95 / of
    low, high = (centre - reach) / shrink, (centre + reach) / shrink
    return Figure(share, 0.0 if hits == 0 else max(0.0, low), 1.0 if hits == of else min(1.0, high))


def paired_difference(first_only: int, b_only: int, of: int) -> Figure:
    """Share of the first less share of the second, over the same rows. Interval: Agresti & Min 2005, half a row added a cell."""
    if of == 0:
        return missing("of no rows")
    x, y, n = first_only + 0.5, b_only + 0.5, of + 2
    centre = (x - y) / n
    reach = Z95 * math.sqrt((x + y) - (x - y) ** 2 / n) / n
    return Figure((first_only - b_only) / of, max(-1.0, centre - reach), min(1.0, centre + reach))


# -- kappa --------------------------------------------------------------------------------------------------------


def cohen_kappa(table: Table) -> Figure:
    """Agreement beyond chance of two yes-or-no decisions, with its large-sample interval."""
    n = table.rows
    if n == 0:
        return missing("no row has both grades")
    if table.first in (0, n) and table.b == table.first:
        return missing("both decide alike about every row")
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

    With these weights what chance would give is var(a) + var(b) + (mean(a) - mean(b))^2.
    """
    n = sum(count for _, _, count in pairs)
    if n == 0:
        return missing("no row has both grades")
    mean_a = math.fsum(a * count for a, _, count in pairs) / n
    mean_b = math.fsum(b * count for _, b, count in pairs) / n
    apart = math.fsum((a - b) ** 2 * count for a, b, count in pairs) / n
    variance_a = math.fsum((a - mean_a) ** 2 * count for a, _, count in pairs) / n
    variance_b = math.fsum((b - mean_b) ** 2 * count for _, b, count in pairs) / n
    by_chance = variance_a + variance_b + (mean_a - mean_b) ** 2
    if not by_chance:
        return missing("both give every row the same one score")
    return Figure(1 - apart / by_chance)


# -- ranks --------------------------------------------------------------------------------------------------------


def _constant(pairs: Sequence[Pair]) -> Figure | None:
    """Why an order of these rows means nothing, None where it does."""
    if sum(count for _, _, count in pairs) < 2:
        return missing("fewer than two rows have both grades")
    if len({a for a, _, _ in pairs}) == 1:
        return missing("it gives every row the same")
    if len({b for _, b, _ in pairs}) == 1:
        return missing("B gives every row the same score")
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
    """Rank correlation, ties at their middle rank."""
    if why := _constant(pairs):
        return why
    count_a, count_b = _margins(pairs)
    rank_a, rank_b = _doubled_ranks(count_a), _doubled_ranks(count_b)
    together = sum(rank_a[a] * rank_b[b] * count for a, b, count in pairs)
    alone_a = sum(rank_a[a] ** 2 * count for a, count in count_a.items())
    alone_b = sum(rank_b[b] ** 2 * count for b, count in count_b.items())
    return Figure(_at_most_1(together / (math.sqrt(alone_a) * math.sqrt(alone_b))))


def _margins(pairs: Iterable[Pair]) -> tuple[dict[float, int], dict[float, int]]:
    count_a: dict[float, int] = defaultdict(int)
    count_b: dict[float, int] = defaultdict(int)
    for a, b, count in pairs:
        count_a[a] += count
        count_b[b] += count
    return count_a, count_b


def kendall(pairs: Sequence[Pair]) -> Figure:
    """Tau-b: concordant less discordant pairs, over those not tied in A and those not tied in B. B has few values."""
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
    """By value: the share of negatives that a positive there stands above, and of positives that stand above a negative there."""
    positives, negatives = _totals(order)
    above, below, found = positives, 0, {}
    for value, positive, negative in order:
        above -= positive
        found[value] = ((below + negative / 2) / negatives, (above + positive / 2) / positives)
        below += negative
    return found


def auc(order: Sequence[Ranked]) -> Figure:
    """The area under the ROC curve of an ascending order, with its interval; see the head of this module."""
    positives, negatives = _totals(order)
    if why := _no_auc(positives, negatives, len(order)):
        return why
    placed = _placements(order)
    area = math.fsum(placed[value][0] * positive for value, positive, _ in order) / positives
    variance = _variance([placed[v][0] - area for v, _, _ in order], [p for _, p, _ in order], positives)
    variance += _variance([placed[v][1] - area for v, _, _ in order], [q for _, _, q in order], negatives)
    low, high = auc_interval(area, variance, positives, negatives)
    return Figure(area, low, high)


def _no_auc(positives: int, negatives: int, values: int) -> Figure | None:
    if not positives:
        return missing("B keeps no row")
    if not negatives:
        return missing("B keeps every row")
    return missing("it gives every row the same") if values < 2 else None


def _variance(apart: Sequence[float], counts: Sequence[int], n: int) -> float:
    """Variance of the mean of n values, given as differences from it and their counts; 0 for one value."""
    return math.fsum(x * x * count for x, count in zip(apart, counts, strict=True)) / (n - 1) / n if n > 1 else 0.0


def auc_interval(area: float, variance: float, positives: float, negatives: float) -> tuple[float, float]:
    """The 95 % interval of an area: on the logit scale from its variance, or by Newcombe's method 5 where that is 0."""
    if variance > 0 and 0 < area < 1:
        logit = math.log(area / (1 - area))
        reach = Z95 * math.sqrt(variance) / (area * (1 - area))
        return _expit(logit - reach), _expit(logit + reach)
    mean = (positives + negatives) / 2 - 1

    def off(true: float) -> float:
        """How many standard errors the area lies from a true one, less 1.96."""
        spread = 1 + mean * (1 - true) / (2 - true) + mean * true / (1 + true)
        return abs(area - true) - Z95 * math.sqrt(true * (1 - true) * spread / (positives * negatives))

    return _boundary(off, 0.0, area), _boundary(off, 1.0, area)


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def _boundary(off: Any, outside: float, inside: float) -> float:
    """Where `off` turns from above 0 to below, between a point outside and one inside; the outside where it never does."""
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
    """AUC of the first value less that of the second, on the same rows, with DeLong's interval for correlated areas.

    A cell is a first value, a second value, whether these rows are positive, and how many they are.
    """
    orders = [ranked((cell[at], cell[2], cell[3]) for cell in cells) for at in (0, 1)]
    positives, negatives = _totals(orders[0])
    for order in orders:
        if why := _no_auc(positives, negatives, len(order)):
            return why
    if positives < 2 or negatives < 2:
        return missing("fewer than two rows of a kind")
    first, second = (_placements(order) for order in orders)
    apart = {True: [0.0, 0.0], False: [0.0, 0.0]}
    for one, other, positive, count in cells:
        side = 0 if positive else 1
        x = first[one][side] - second[other][side]
        apart[positive][0] += x * count
        apart[positive][1] += x * x * count
    lead = apart[True][0] / positives
    variance = sum(
        max(0.0, squares - total * total / n) / (n - 1) / n
        for (total, squares), n in ((apart[True], positives), (apart[False], negatives))
    )
    reach = Z95 * math.sqrt(variance)
    return Figure(lead, max(-1.0, lead - reach), min(1.0, lead + reach))


# -- the comparison -----------------------------------------------------------------------------------------------


def side_of(store: Store, grader_id: str, rubric_id: str, threshold: Decimal | None = None) -> Side:
    """A grader and rubric by their ids, keeping at a threshold, the rubric's own if not given. Raises AgreeError."""
    found = store.query("graded_by", grader_id=grader_id, rubric_id=rubric_id)
    if not found:
        raise AgreeError(f"the grader {grader_id} or the rubric {rubric_id} is not in {store.path}")
    one = found[0]
    at = one["threshold"] if threshold is None else threshold
    return Side(
        grader_id, rubric_id, one["grader"], one["rubric"], one["rubric_name"], one["low"], one["high"], one["step"], at
    )


def named_side(
    store: Store, version_id: str, grader: str, rubric: str | None = None, threshold: Decimal | None = None
) -> Side:
    """The side of a grader and rubric that have been asked about this dataset version, by their labels. Raises AgreeError.

    NAME is the newest version of that name that was asked, NAME@2 its second.
    """
    there = store.query("setups_of", version_id=version_id)
    found = _newest(_newest(there, "grader", grader), "rubric", rubric)
    if not there:
        raise AgreeError("no grader has been asked about this dataset; run `alpasift grade` or `alpasift labels` first")
    if len(found) != 1:
        what = f"{grader} by {rubric}" if rubric else grader
        choice = "; ".join(f"{row['grader']} by {row['rubric']}" for row in found or there)
        says = (
            "has graded this dataset by several rubrics, name one"
            if found
            else "has not graded this dataset; these have"
        )
        raise AgreeError(f"{what} {says}: {choice}")
    return side_of(store, found[0]["grader_id"], found[0]["rubric_id"], threshold)


def _newest(found: list[dict[str, Any]], part: str, wanted: str | None) -> list[dict[str, Any]]:
    if wanted is None:
        return found
    named = [row for row in found if row[f"{part}_name"] == wanted]
    if named:
        newest = max(row[f"{part}_version"] for row in named)
        return [row for row in named if row[f"{part}_version"] == newest]
    return [row for row in found if wanted in (row[part], f"{row[f'{part}_name']}@{row[f'{part}_version']}")]


def agree(store: Store, version_id: str, a: Side, b: Side, by: By = "score") -> Agreement:
    """Compare A with B on the distinct rows of a dataset version that both have graded. Raises AgreeError."""
    if (a.grader_id, a.rubric_id) == (b.grader_id, b.rubric_id) and by == "score":
        raise AgreeError(f"{a.grader} with rubric {a.rubric} stands on both sides; name another grader, or --rubric-b")
    found = store.query(
        "grade_pairs", version_id=version_id, grader_a=a.grader_id, rubric_a=a.rubric_id, by=by, grader_b=b.grader_id,
        rubric_b=b.rubric_id,
    )  # fmt: skip
    cells = [(r["value_a"], r["value_b"], r["output_chars"], r["examples"]) for r in found if r["value_a"] is not None]
    without = [
        {"reason_a": r["reason_a"], "reason_b": r["reason_b"], "examples": r["examples"]}
        for r in found
        if r["value_a"] is None
    ]
    del found
    return compare(a, b, by, cells, sorted(without, key=lambda one: -int(one["examples"])))


def compare(
    a: Side, b: Side, by: By, cells: Sequence[tuple[float, float, int, int]], without: Sequence[dict[str, Any]] = ()
) -> Agreement:
    """The comparison of two sides from counted cells: A's value, B's score, length of the output, how many examples."""
    keep_a, keep_b = float(a.threshold), float(b.threshold)
    pairs = _added((x, y, count) for x, y, _, count in cells)
    grader = _against(by, keep_a, pairs, keep_b)
    positive = [(x, float(chars), y >= keep_b, count) for x, y, chars, count in cells]
    length = _length(cells, positive, keep_b, grader.table.first)
    sign = 1 if length.what == "longest" else -1
    table = grader.table
    n = table.rows
    same = a.same_scale(b)
    shift = (
        missing(f"the scales differ: {a.scale} and {b.scale}")
        if not same
        else (missing("no row has both grades") if not n else _mean_shift(pairs, n))
    )
    if by == "expected":
        weighted = missing("kappa compares scores; A is taken by its expected score")
    else:
        weighted = weighted_kappa(pairs) if same else missing(f"the scales differ: {a.scale} and {b.scale}")
    result = Agreement(
        a, b, by, n + sum(int(one["examples"]) for one in without), n, list(without), grader, length,
        (n - table.b) / n if n else None, table.b / n if n else None, wilson(table.first_only + table.b_only, n), weighted,
        shift, paired_difference(table.first_only, table.b_only, n),
        auc_difference([(x, sign * chars, kept, count) for x, chars, kept, count in positive]), [],
    )  # fmt: skip
    result.says.extend(_says(result))
    return result


def _added(pairs: Iterable[Pair]) -> list[Pair]:
    """The cells in order, each once."""
    merged: list[Pair] = []
    x0 = y0 = math.nan
    for x, y, count in sorted(pairs):
        if x == x0 and y == y0:
            merged[-1] = (x, y, merged[-1][2] + count)
        else:
            merged.append((x, y, count))
            x0, y0 = x, y
    return merged


def _mean_shift(pairs: Sequence[Pair], n: int) -> Figure:
    mean = math.fsum((x - y) * count for x, y, count in pairs) / n
    if n < 2:
        return Figure(mean)
    variance = math.fsum((x - y - mean) ** 2 * count for x, y, count in pairs) / (n - 1)
    reach = Z95 * math.sqrt(variance / n)
    return Figure(mean, mean - reach, mean + reach)


def _against(what: str, cut: float | None, pairs: Sequence[Pair], keep_b: float) -> Against:
    """All that one order says about B. Rows whose value is `cut` or more are kept; None keeps none."""
    counts = [[0, 0], [0, 0]]
    for x, y, count in pairs:
        counts[cut is not None and x >= cut][y >= keep_b] += count
    table = Table(counts[1][1], counts[1][0], counts[0][1], counts[0][0])
    union = table.both + table.first_only + table.b_only
    return Against(
        what,
        cut,
        table,
        precision=wilson(table.both, table.first) if table.first else missing("it keeps no row"),
        recall=wilson(table.both, table.b) if table.b else missing("B keeps no row"),
        agreement=wilson(table.both + table.neither, table.rows) if table.rows else missing("no row has both grades"),
        kappa=cohen_kappa(table),
        jaccard=Figure(table.both / union) if union else missing("neither keeps a row"),
        auc=auc(ranked((x, y >= keep_b, count) for x, y, count in pairs)),
        spearman=spearman(pairs),
        kendall=kendall(pairs),
    )


def _length(
    cells: Sequence[tuple[float, float, int, int]],
    positive: Sequence[tuple[float, float, bool, int]],
    keep_b: float,
    keeps: int,
) -> Against:
    """Output length alone against B: longest or shortest first, whichever orders these rows better, keeping about `keeps` rows."""
    area = auc(ranked((chars, kept, count) for _, chars, kept, count in positive)).value
    what, sign = ("longest", 1) if area is None or area >= 0.5 else ("shortest", -1)
    counts: dict[tuple[float, float], int] = defaultdict(int)
    for _, y, chars, count in cells:
        counts[float(sign * chars), y] += count
    pairs = sorted((chars, y, count) for (chars, y), count in counts.items())
    by_length: dict[float, int] = defaultdict(int)
    for at, _, count in pairs:
        by_length[at] += count
    best, cut, so_far = keeps, None, 0  # best: by how many rows the cut is off
    for at in sorted(by_length, reverse=True):
        so_far += by_length[at]
        if abs(so_far - keeps) < best:
            best, cut = abs(so_far - keeps), at
    found = _against(what, cut, pairs, keep_b)
    fields = {name: getattr(found, name) for name in Against.__dataclass_fields__}
    return Against(**{**fields, "cut": None if cut is None else abs(cut)})


# -- in words -----------------------------------------------------------------------------------------------------


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _says(found: Agreement) -> list[str]:
    """What the numbers mean, in sentences. Nothing is said that the intervals do not carry."""
    a, b, table = found.a.grader, found.b.grader, found.grader.table
    if a == b:
        a, b = f"{a} ({found.a.rubric})", f"{b} ({found.b.rubric})"
    if not table.rows:
        return [f"{a} and {b} have graded no row in common"]
    lines = [
        f"{a} keeps {percent(table.first / table.rows)} of the {table.rows:,} rows, {b} {percent(table.b / table.rows)}; "
        f"both keep {table.both:,}"
    ]
    if found.grader.precision.value is not None and found.grader.recall.value is not None:
        lines.append(
            f"of what {a} keeps {b} keeps {percent(found.grader.precision.value)}; of what {b} keeps {a} finds "
            f"{percent(found.grader.recall.value)}"
        )
    agreement = found.grader.agreement.value or 0.0
    for share, what in ((found.drop_everything, "dropping"), (found.keep_everything, "keeping")):
        if share is not None and share >= 0.5:
            gained = (agreement - share) / (1 - share) if share < 1 else 0.0
            verdict = "no better than that" if gained <= 0 else "little more" if gained < 0.2 else "more than that"
            lines.append(
                f"raw agreement is {percent(agreement)}; {what} every row would agree on {percent(share)}: {verdict}"
            )
            break
    return [*lines, *_order_says(found, a, b)]


def _order_says(found: Agreement, a: str, b: str) -> list[str]:
    area, length, lead = found.grader.auc, found.length.auc, found.auc_lead
    if area.value is None or area.low is None or area.high is None:
        return [f"whether {a} orders the rows as {b} keeps them cannot be said: {area.reason}"]
    lines = []
    if area.low <= 0.5 <= area.high:
        lines.append(f"no relation is seen: AUC {_short(area)} holds .5, which is what chance gives")
    elif area.high < 0.5:
        lines.append(f"{a} runs against {b}: AUC {_short(area)} is below .5; its best rows are those that {b} drops")
    else:
        lines.append(f"{a} orders the rows somewhat as {b} keeps them: AUC {_short(area)}, chance is .5")
    if length.value is None or lead.value is None or lead.low is None or lead.high is None:
        return lines
    against = f"AUC {_point(area.value)} against {_point(length.value)} for keeping the {found.length.what} outputs"
    if lead.high < 0:
        lines.append(f"output length alone does better than {a}: {against}")
    elif lead.low <= 0:
        lines.append(f"{a} tells no more than output length alone would: {against}")
    else:
        lines.append(f"{a} tells more than output length alone: {against}")
    return lines


def _point(value: float) -> str:
    text = f"{value:.2f}"
    return text[1:] if text.startswith("0") else text


def _short(figure: Figure) -> str:
    assert figure.value is not None and figure.low is not None and figure.high is not None
    return f"{_point(figure.value)} ({_point(figure.low)} to {_point(figure.high)})"
