"""Two graders side by side: how far the grades of A agree with those of B, and what output length alone would do.

Knows the store's pairs of grades and which measures a comparison is made of; the formulas are in
`alpasift.batcher.statistics`. Call `agree` with two gradings. B is taken as the reference: precision and recall take it
for the truth. Everything counts distinct examples. A grader taken by its expected score is cut to the thousandth, the
scale of all scores.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from alpasift.batcher.grading.agreement_words import sentences
from alpasift.batcher.grading.lookup import By, Grading, no_expected_scores
from alpasift.batcher.statistics import (
    Figure,
    Pair,
    Table,
    auc,
    auc_difference,
    cohen_kappa,
    kendall,
    mean_difference,
    paired_difference,
    ranked,
    spearman,
    undefined,
    weighted_kappa,
    wilson,
)
from alpasift.batcher.store import Store
from alpasift.graders import AlpaSiftError

Cell = tuple[float, float, int, int]
"""A's value, B's score, the length of the output in characters, and how many examples have all three."""


class AgreeError(AlpaSiftError):
    """Two graders that cannot be compared."""


@dataclass(frozen=True, slots=True)
class Measures:
    """How one order of the rows, a grader's or that of the output's length, does against the reference.

    what       "score", "expected_score", "longest" or "shortest": rows at the head of the order are kept
    cut        the value from which a row is kept; for shortest, up to which
    precision  of the rows it keeps, the share that the reference keeps
    recall     of the rows the reference keeps, the share that it keeps
    auc        the chance that of a row the reference keeps and one it drops, the first stands higher; ties count half
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
    grader           A's grades against B
    length           output length alone against B, in the direction that does better here, keeping as many rows as A
    drop_everything  the raw agreement with B of keeping nothing; keep_everything, of keeping all
    flip_rate        the share of rows on which the two decide differently
    weighted_kappa   quadratic weights; only on one scale
    mean_shift       mean of A less mean of B, only on one scale; kept_shift: kept share, A minus B
    auc_lead         A's AUC minus that of length, on the same rows
    messages         the same in sentences (agreement_words.py)
    """

    a: Grading
    b: Grading
    by: By
    examples: int
    compared: int
    without: list[dict[str, Any]]
    grader: Measures
    length: Measures
    drop_everything: float | None
    keep_everything: float | None
    flip_rate: Figure
    weighted_kappa: Figure
    mean_shift: Figure
    kept_shift: Figure
    auc_lead: Figure
    messages: list[str]


# -- the comparison -----------------------------------------------------------------------------------------------


def agree(store: Store, version_id: str, a: Grading, b: Grading, by: By = "score") -> Agreement:
    """Compare A with B on the distinct rows of a dataset version that both have graded. Raises AgreeError."""
    if (a.grader_id, a.rubric_id) == (b.grader_id, b.rubric_id) and by == "score":
        raise AgreeError(f"{a.grader} with rubric {a.rubric} is both A and B; give another grader, or --rubric-b")
    found = store.query(
        "grade_pairs",
        version_id=version_id,
        grader_a=a.grader_id,
        rubric_a=a.rubric_id,
        by=by,
        grader_b=b.grader_id,
        rubric_b=b.rubric_id,
    )
    cells = [(r["value_a"], r["value_b"], r["output_chars"], r["examples"]) for r in found if r["value_a"] is not None]
    without = [
        {"reason_a": r["reason_a"], "reason_b": r["reason_b"], "examples": r["examples"]}
        for r in found
        if r["value_a"] is None
    ]
    unmeasured = sum(int(one["examples"]) for one in without if one["reason_a"] == "no_expected")
    if unmeasured and not cells and all(one["reason_a"] for one in without):
        raise AgreeError(no_expected_scores(a, unmeasured))
    return compare(a, b, by, cells, sorted(without, key=lambda one: -int(one["examples"])))


def compare(a: Grading, b: Grading, by: By, cells: Sequence[Cell], without: Sequence[dict[str, Any]] = ()) -> Agreement:
    """The comparison of two gradings from counted cells."""
    keep_b = float(b.threshold)
    pairs = _merged((x, y, count) for x, y, _, count in cells)
    grader = _measures(by, float(a.threshold), pairs, keep_b)
    length = _length_baseline(cells, keep_b, grader.table.first)
    sign = 1 if length.what == "longest" else -1
    n, table = grader.table.rows, grader.table
    scales = None if a.same_scale(b) else undefined(f"the scales differ: {a.scale} and {b.scale}")
    kappa = scales or weighted_kappa(pairs)
    if by != "score":
        kappa = undefined("kappa compares scores; A uses its expected score")
    found = Agreement(
        a=a,
        b=b,
        by=by,
        examples=n + sum(int(one["examples"]) for one in without),
        compared=n,
        without=list(without),
        grader=grader,
        length=length,
        drop_everything=(n - table.b) / n if n else None,
        keep_everything=table.b / n if n else None,
        flip_rate=wilson(table.first_only + table.b_only, n),
        weighted_kappa=kappa,
        mean_shift=scales or mean_difference(pairs),
        kept_shift=paired_difference(table.first_only, table.b_only, n),
        auc_lead=auc_difference([(x, float(sign * chars), y >= keep_b, count) for x, y, chars, count in cells]),
        messages=[],
    )
    return replace(found, messages=sentences(found))


def _merged(pairs: Iterable[Pair]) -> list[Pair]:
    """The cells in order, each once."""
    counts: dict[tuple[float, float], int] = defaultdict(int)
    for x, y, count in pairs:
        counts[x, y] += count
    return [(x, y, counts[x, y]) for x, y in sorted(counts)]


def _measures(what: str, cut: float | None, pairs: Sequence[Pair], keep_b: float) -> Measures:
    """All measures of one order against B. Rows whose value is `cut` or more are kept; None keeps none."""
    counts = [[0, 0], [0, 0]]
    for x, y, count in pairs:
        counts[cut is not None and x >= cut][y >= keep_b] += count
    table = Table(counts[1][1], counts[1][0], counts[0][1], counts[0][0])
    union = table.both + table.first_only + table.b_only
    return Measures(
        what,
        cut,
        table,
        precision=wilson(table.both, table.first) if table.first else undefined("it keeps no row"),
        recall=wilson(table.both, table.b) if table.b else undefined("the reference keeps no row"),
        agreement=wilson(table.both + table.neither, table.rows) if table.rows else undefined("no row has both grades"),
        kappa=cohen_kappa(table),
        jaccard=Figure(table.both / union) if union else undefined("neither keeps a row"),
        auc=auc(ranked((x, y >= keep_b, count) for x, y, count in pairs)),
        spearman=spearman(pairs),
        kendall=kendall(pairs),
    )


def _length_baseline(cells: Sequence[Cell], keep_b: float, keeps: int) -> Measures:
    """Output length alone against B: longest or shortest first, whichever is better, keeping about `keeps` rows."""
    area = auc(ranked((chars, y >= keep_b, count) for _, y, chars, count in cells)).value
    what, sign = ("longest", 1) if area is None or area >= 0.5 else ("shortest", -1)
    pairs = _merged((float(sign * chars), y, count) for _, y, chars, count in cells)
    by_length: dict[float, int] = defaultdict(int)
    for at, _, count in pairs:
        by_length[at] += count
    best, cut, so_far = keeps, None, 0  # best: by how many rows the cut is off
    for at in sorted(by_length, reverse=True):
        so_far += by_length[at]
        if abs(so_far - keeps) < best:
            best, cut = abs(so_far - keeps), at
    found = _measures(what, cut, pairs, keep_b)
    return replace(found, cut=None if cut is None else abs(cut))
