"""Two graders side by side: the statistics against scipy, scikit-learn and hand calculations, and the comparison as a whole."""

from __future__ import annotations

import json
import math
import random
import warnings
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from conftest import Ran, some_rows, write_rows
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from batcher.agree import (
    AgreeError,
    Figure,
    Side,
    Table,
    agree,
    auc,
    auc_difference,
    auc_interval,
    cohen_kappa,
    compare,
    kendall,
    paired_difference,
    ranked,
    side_of,
    spearman,
    weighted_kappa,
    wilson,
)
from batcher.datasets import import_file, resolve
from batcher.labels import import_labels, own_rubric
from batcher.store import Store

Call = Callable[..., Ran]
D = Decimal

halves = st.integers(0, 10).map(lambda i: i / 2)
tables = st.lists(st.tuples(halves, halves, st.integers(1, 5)), min_size=1, max_size=25)
"""Counted cells of two graders on the scale 0 to 5 by half points."""


def side(name: str, threshold: str = "4.5", low: str = "0", high: str = "5") -> Side:
    return Side(name, "r", name, "accuracy", "accuracy", D(low), D(high), D("0.5"), D(threshold))


def spread(cells: list[tuple[float, float, int]]) -> tuple[list[float], list[float]]:
    """The two columns, a row for each counted example."""
    a = [x for x, _, count in cells for _ in range(count)]
    b = [y for _, y, count in cells for _ in range(count)]
    return a, b


def close(found: Figure, expected: float) -> bool:
    return found.value is not None and math.isclose(found.value, expected, rel_tol=1e-9, abs_tol=1e-9)


# -- against other implementations --------------------------------------------------------------------------------


@given(tables)
def test_quadratic_kappa_is_that_of_scikit_learn(cells: list[tuple[float, float, int]]) -> None:
    a, b = spread(cells)
    found = weighted_kappa(cells)
    if len(set(a)) == len(set(b)) == 1 and a[0] == b[0]:
        assert found.value is None and found.reason
        return
    steps = [[int(x * 2) for x in column] for column in (a, b)]
    assert close(found, metrics.cohen_kappa_score(*steps, weights="quadratic", labels=list(range(11))))


@given(tables)
def test_rank_correlations_are_those_of_scipy(cells: list[tuple[float, float, int]]) -> None:
    a, b = spread(cells)
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert spearman(cells).value is None and spearman(cells).reason
        assert kendall(cells).value is None and kendall(cells).reason
        return
    assert close(spearman(cells), stats.spearmanr(a, b).statistic)
    assert close(kendall(cells), stats.kendalltau(a, b).statistic)


@given(tables, st.integers(0, 10))
def test_auc_counts_ties_half_as_scikit_learn_does(cells: list[tuple[float, float, int]], cut: int) -> None:
    a, b = spread(cells)
    positive = [y >= cut / 2 for y in b]
    found = auc(ranked((x, y >= cut / 2, count) for x, y, count in cells))
    if len(set(positive)) == 1 or len(set(a)) == 1:
        assert found.value is None and found.reason
        return
    assert close(found, metrics.roc_auc_score(positive, a))
    assert found.low is not None and found.high is not None and found.value is not None
    assert 0 <= found.low <= found.value <= found.high <= 1


@given(tables)
def test_the_table_at_the_threshold_is_that_of_scikit_learn(cells: list[tuple[float, float, int]]) -> None:
    a, b = spread(cells)
    kept_a, kept_b = [x >= 4.5 for x in a], [y >= 4.5 for y in b]
    found = compare(side("a"), side("b"), "score", [(x, y, 10, count) for x, y, count in cells])
    assert found.compared == len(a)
    tn, fp, fn, tp = metrics.confusion_matrix(kept_b, kept_a, labels=[False, True]).ravel()
    assert found.grader.table == Table(int(tp), int(fp), int(fn), int(tn))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kappa = metrics.cohen_kappa_score(kept_a, kept_b)
    for figure, kept, expected in (
        (found.grader.precision, any(kept_a), metrics.precision_score(kept_b, kept_a, zero_division=0)),
        (found.grader.recall, any(kept_b), metrics.recall_score(kept_b, kept_a, zero_division=0)),
        (found.grader.jaccard, any(kept_a) or any(kept_b), metrics.jaccard_score(kept_b, kept_a, zero_division=0)),
        (found.grader.agreement, True, metrics.accuracy_score(kept_b, kept_a)),
        (found.grader.kappa, not math.isnan(kappa), kappa),
    ):
        if kept:
            assert close(figure, expected)
        else:
            assert figure.value is None and figure.reason


@given(tables)
def test_nothing_is_ever_nan(cells: list[tuple[float, float, int]]) -> None:
    found = compare(side("a"), side("b"), "score", [(x, y, int(x * 7 + y) % 4, count) for x, y, count in cells])
    for figure in [
        *(getattr(one, name) for one in (found.grader, found.length) for name in one.__slots__),
        *(getattr(found, name) for name in found.__slots__),
    ]:
        if isinstance(figure, Figure):
            assert (figure.value is None) == (figure.reason is not None)
            assert all(x is None or math.isfinite(x) for x in (figure.value, figure.low, figure.high))


def placements(positive: list[float], negative: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """DeLong's structural components straight from their definition."""
    wins = (np.subtract.outer(positive, negative) > 0) + 0.5 * (np.subtract.outer(positive, negative) == 0)
    return wins.mean(axis=1), wins.mean(axis=0)


@given(st.integers(0, 1000))
def test_the_interval_of_the_auc_is_delongs_on_the_logit_scale(seed: int) -> None:
    chance = random.Random(seed)
    positive = [chance.randint(2, 8) / 2 for _ in range(15)]
    negative = [chance.randint(0, 7) / 2 for _ in range(25)]
    ten, one = placements(positive, negative)
    area, variance = ten.mean(), np.var(ten, ddof=1) / 15 + np.var(one, ddof=1) / 25
    assume(0 < area < 1)
    reach = 1.959964 * math.sqrt(variance) / (area * (1 - area))
    found = auc(ranked([(x, True, 1) for x in positive] + [(x, False, 1) for x in negative]))
    logit = math.log(area / (1 - area))
    assert close(found, area)
    assert found.low == pytest.approx(1 / (1 + math.exp(reach - logit)))
    assert found.high == pytest.approx(1 / (1 + math.exp(-reach - logit)))


@given(st.integers(0, 1000))
def test_the_difference_of_two_areas_is_delongs_for_paired_rows(seed: int) -> None:
    chance = random.Random(seed)
    rows = [(chance.randint(0, 6), chance.randint(0, 900), i < 12) for i in range(40)]
    first = placements([x for x, _, p in rows if p], [x for x, _, p in rows if not p])
    second = placements([y for _, y, p in rows if p], [y for _, y, p in rows if not p])
    lead = first[0].mean() - second[0].mean()
    variance = np.var(first[0] - second[0], ddof=1) / 12 + np.var(first[1] - second[1], ddof=1) / 28
    found = auc_difference([(x, y, p, 1) for x, y, p in rows])
    assert close(found, lead)
    assert found.high == pytest.approx(min(1.0, lead + 1.959964 * math.sqrt(variance)))


# -- against hand calculations ------------------------------------------------------------------------------------


def test_wilsons_interval_is_the_root_of_its_equation() -> None:
    found = wilson(8, 10)  # (p - x)^2 = z^2 x (1 - x) / n has the ends of the interval as its roots
    for x in (found.low, found.high):
        assert x is not None
        assert (0.8 - x) ** 2 == pytest.approx(1.959964**2 * x * (1 - x) / 10)
    assert (wilson(0, 5).low, wilson(5, 5).high) == (0.0, 1.0)
    assert wilson(0, 0) == Figure(None, reason="of no rows")


def test_kappa_and_its_error_are_those_of_fleiss_cohen_and_everitt() -> None:
    found = cohen_kappa(
        Table(20, 5, 10, 15)
    )  # the textbook table: kappa .4; its error worked out from their formula 13
    assert found.value == pytest.approx(0.4)
    p, rows, columns, chance = ((0.4, 0.1), (0.2, 0.3)), (0.5, 0.5), (0.6, 0.4), 0.5
    one = sum(p[i][i] * ((1 - chance) - (columns[i] + rows[i]) * (1 - 0.7)) ** 2 for i in (0, 1))
    two = (1 - 0.7) ** 2 * sum(p[i][1 - i] * (columns[i] + rows[1 - i]) ** 2 for i in (0, 1))
    error = math.sqrt((one + two - (0.7 * chance - 2 * chance + 0.7) ** 2) / (50 * (1 - chance) ** 4))
    assert found.low == pytest.approx(0.4 - 1.959964 * error)
    assert cohen_kappa(Table(7, 0, 0, 0)).value is None


def test_a_perfect_order_of_few_rows_has_an_interval_all_the_same() -> None:
    found = auc([(1.0, 0, 4), (2.0, 3, 0)])
    assert found.value == found.high == 1.0
    assert found.low is not None and 0.3 < found.low < 0.8
    low, _ = auc_interval(1.0, 0.0, 300, 300)
    assert low > 0.98


def test_the_difference_of_paired_shares_adds_half_a_row_to_each_cell() -> None:
    found = paired_difference(12, 4, 50)
    centre, reach = 8 / 52, 1.959964 * math.sqrt(17 - 64 / 52) / 52
    assert found == Figure(8 / 50, pytest.approx(centre - reach), pytest.approx(centre + reach))


# -- the comparison -----------------------------------------------------------------------------------------------


def test_length_is_taken_in_its_better_direction_and_keeps_as_many_rows() -> None:
    cells = [(5.0 if i % 4 == 0 else 1.0, 5.0 if i < 10 else 1.0, 10 + i, 1) for i in range(40)]
    found = compare(side("a"), side("b"), "score", cells)
    assert found.length.what == "shortest" and found.length.cut == 19
    assert found.length.table == Table(10, 0, 0, 30)
    assert found.length.auc.value == 1.0
    assert found.grader.table.first == found.length.table.first == 10
    assert any("output length alone does better than a" in line for line in found.says)


def test_raw_agreement_is_set_beside_that_of_dropping_everything() -> None:
    found = compare(
        side("a"), side("b"), "score", [(1.0, 1.0, 5, 85), (1.0, 5.0, 6, 5), (5.0, 1.0, 7, 5), (5.0, 5.0, 8, 5)]
    )
    assert (found.grader.agreement.value, found.drop_everything, found.keep_everything) == (0.9, 0.9, 0.1)
    assert "raw agreement is 90.0 %; dropping every row would agree on 90.0 %: no better than that" in found.says


def test_other_scales_have_no_common_mean_and_no_weighted_kappa() -> None:
    other = side("b", "1", "0", "1")
    found = compare(side("a"), other, "score", [(5.0, 1.0, 5, 8), (1.0, 0.0, 6, 4)])
    assert found.weighted_kappa.value is None and "the scales differ" in str(found.weighted_kappa.reason)
    assert found.mean_shift.value is None
    assert found.grader.kappa.value == 1.0
    by_expected = compare(side("a"), side("b"), "expected", [(4.7, 5.0, 5, 8), (1.2, 0.0, 6, 4)])
    assert "expected" in str(by_expected.weighted_kappa.reason)
    assert by_expected.mean_shift.value == pytest.approx((8 * -0.3 + 4 * 1.2) / 12)


@pytest.mark.parametrize(
    "cells",
    [
        [],
        [(5.0, 5.0, 3, 1)],
        [(1.0, 1.0, 3, 9)],
        [(5.0, 1.0, 3, 4), (5.0, 5.0, 9, 4)],
        [(1.0, 5.0, 3, 2), (2.0, 5.0, 4, 2)],
    ],
)
def test_degenerate_comparisons_give_reasons(cells: list[tuple[float, float, int, int]]) -> None:
    found = compare(side("a"), side("b"), "score", cells)
    assert found.grader.spearman.value is None and found.grader.spearman.reason
    assert found.grader.auc.value is None and found.grader.auc.reason
    assert found.says
    json.dumps(found.grader.auc.reason)


def labelled(store: Store, tmp_path: Path, name: str, labels: list[float | None], rubric: str = "quality") -> Side:
    """A grader labels:NAME on the scale 0 to 5 by half points, keeping from 4.5."""
    rows = [{"index": i, "label": label} for i, label in enumerate(labels)]
    found = import_labels(
        store, write_rows(tmp_path / f"{name}.jsonl", rows), name, resolve(store, None), own_rubric(rubric, "0", "5", "0.5", "4.5")
    )  # fmt: skip
    return side_of(store, found.grader_id, found.rubric_id)


def test_a_comparison_counts_distinct_examples_and_tells_who_has_no_grade(store: Store, tmp_path: Path) -> None:
    rows = some_rows(6)
    import_file(store, write_rows(tmp_path / "d.jsonl", [*rows, rows[0]]))
    version = resolve(store, None)
    a = labelled(store, tmp_path, "a", [5, 5, 1, 1, 3, None])
    b = labelled(store, tmp_path, "b", [5, 1, 5, 1, None, None])
    found = agree(store, version.version_id, a, b)
    assert (found.examples, found.compared, found.grader.table) == (6, 4, Table(1, 1, 1, 1))
    assert found.without == [
        {"reason_a": "not_graded", "reason_b": "not_graded", "examples": 1},
        {"reason_a": None, "reason_b": "not_graded", "examples": 1},
    ]
    assert found.flip_rate.value == 0.5
    with pytest.raises(AgreeError, match="stands on both sides"):
        agree(store, version.version_id, a, a)
    nothing = agree(store, version.version_id, a, b, "expected")
    assert nothing.compared == 0 and nothing.without[0]["reason_a"] == "no_expected"


def test_the_command_prints_a_table_and_the_same_as_json(alpasift: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "d.jsonl", some_rows(40))
    rows = [{"index": i, "a": i % 5, "b": (i + i // 20) % 5} for i in range(40)]
    write_rows(tmp_path / "l.jsonl", rows)
    alpasift("import", "d.jsonl")
    for name in "ab":
        done = alpasift("labels", "l.jsonl", "--as", name, "--field", name, "--scale", "0:5:1", "--threshold", 4)
        assert done.code == 0, done.err
    told = alpasift("agree", "labels:a", "labels:b")
    assert told.code == 0, told.err
    assert "40 of 40 distinct rows have both grades" in told.out
    assert "kappa, quadratic weights  none" not in told.out
    assert "next: alpasift calibrate --cheap labels:a --reference labels:b" in told.err
    found = alpasift("agree", "labels:a", "labels:b", "--json", "--threshold", 3).json
    assert found["compared"] == 40 and found["a"]["threshold"] == 3
    assert found["grader"]["table"] == {"both": 8, "first_only": 8, "b_only": 0, "neither": 24}
    refused = alpasift("agree", "labels:a", "labels:c")
    assert refused.code == 1 and "has not graded this dataset" in refused.err
