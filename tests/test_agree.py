"""Two graders side by side: the comparison as a whole, from counted cells, from the database and by the command."""

from __future__ import annotations

import json
import math
import random
import warnings
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from alpasift.batcher.data.importing import import_file
from alpasift.batcher.data.versions import resolve
from alpasift.batcher.grading.agree import (
    AgreeError,
    agree,
    compare,
)
from alpasift.batcher.grading.labels import import_labels, own_rubric
from alpasift.batcher.grading.lookup import Grading, find_grading
from alpasift.batcher.statistics import Figure, Table
from alpasift.batcher.store import Store
from conftest import Ran, some_rows, write_rows

Call = Callable[..., Ran]
D = Decimal

halves = st.integers(0, 10).map(lambda i: i / 2)
tables = st.lists(st.tuples(halves, halves, st.integers(1, 5)), min_size=1, max_size=25)
"""Counted cells of two graders on the scale 0 to 5 by half points."""


def grading(name: str, threshold: str = "4.5", low: str = "0", high: str = "5") -> Grading:
    return Grading(name, "r", name, "accuracy", "accuracy", D(low), D(high), D("0.5"), D(threshold))


def spread(cells: list[tuple[float, float, int]]) -> tuple[list[float], list[float]]:
    """The two columns, a row for each counted example."""
    a = [x for x, _, count in cells for _ in range(count)]
    b = [y for _, y, count in cells for _ in range(count)]
    return a, b


def close(found: Figure, expected: float) -> bool:
    return found.value is not None and math.isclose(found.value, expected, rel_tol=1e-9, abs_tol=1e-9)


# -- against scikit-learn ------------------------------------------------------------------------------------------


@given(tables)
def test_the_table_at_the_threshold_is_that_of_scikit_learn(cells: list[tuple[float, float, int]]) -> None:
    a, b = spread(cells)
    kept_a, kept_b = [x >= 4.5 for x in a], [y >= 4.5 for y in b]
    found = compare(grading("a"), grading("b"), "score", [(x, y, 10, count) for x, y, count in cells])
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
    found = compare(grading("a"), grading("b"), "score", [(x, y, int(x * 7 + y) % 4, count) for x, y, count in cells])
    for figure in [
        *(getattr(one, name) for one in (found.grader, found.length) for name in one.__slots__),
        *(getattr(found, name) for name in found.__slots__),
    ]:
        if isinstance(figure, Figure):
            assert (figure.value is None) == (figure.reason is not None)
            assert all(x is None or math.isfinite(x) for x in (figure.value, figure.low, figure.high))


# -- the comparison -----------------------------------------------------------------------------------------------


def test_length_is_taken_in_its_better_direction_and_keeps_as_many_rows() -> None:
    cells = [(5.0 if i % 4 == 0 else 1.0, 5.0 if i < 10 else 1.0, 10 + i, 1) for i in range(40)]
    found = compare(grading("a"), grading("b"), "score", cells)
    assert found.length.what == "shortest" and found.length.cut == 19
    assert found.length.table == Table(10, 0, 0, 30)
    assert found.length.auc.value == 1.0
    assert found.grader.table.first == found.length.table.first == 10
    assert any("output length alone is better than a" in line for line in found.messages)


def test_raw_agreement_is_set_beside_that_of_dropping_everything() -> None:
    found = compare(
        grading("a"), grading("b"), "score", [(1.0, 1.0, 5, 85), (1.0, 5.0, 6, 5), (5.0, 1.0, 7, 5), (5.0, 5.0, 8, 5)]
    )
    assert (found.grader.agreement.value, found.drop_everything, found.keep_everything) == (0.9, 0.9, 0.1)
    assert "raw agreement is 90.0 %, no better than dropping every row, which agrees on 90.0 %" in found.messages


def test_other_scales_have_no_common_mean_and_no_weighted_kappa() -> None:
    other = grading("b", "1", "0", "1")
    found = compare(grading("a"), other, "score", [(5.0, 1.0, 5, 8), (1.0, 0.0, 6, 4)])
    assert found.weighted_kappa.value is None and "the scales differ" in str(found.weighted_kappa.reason)
    assert found.mean_shift.value is None
    assert found.grader.kappa.value == 1.0
    by_expected = compare(grading("a"), grading("b"), "expected_score", [(4.7, 5.0, 5, 8), (1.2, 0.0, 6, 4)])
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
    found = compare(grading("a"), grading("b"), "score", cells)
    assert found.grader.spearman.value is None and found.grader.spearman.reason
    assert found.grader.auc.value is None and found.grader.auc.reason
    assert found.messages
    json.dumps(found.grader.auc.reason)


def said(cells: list[tuple[float, float, int, int]], threshold_b: str = "4.5") -> str:
    return "\n".join(compare(grading("a"), grading("b", threshold_b), "score", cells).messages)


def test_the_words_for_an_order_go_by_the_size_of_its_auc_and_its_interval() -> None:
    chance = random.Random(0)
    perfect = said([(5.0 if i % 2 else 1.0, 5.0 if i % 2 else 1.0, chance.randint(1, 900), 1) for i in range(300)])
    assert "a ranks rows that b keeps above the rest perfectly (lower end of the interval: very well)" in perfect
    assert "AUC 1.00 (.99 to 1.00)" in perfect and "a is better than output length alone" in perfect
    rows = [(i % 2, chance.gauss(0.75 * (i % 2), 1), chance.randint(1, 900)) for i in range(2000)]  # planted AUC .70
    fairly = said([(round(4 * score) / 4, 5.0 * kept, chars, 1) for kept, score, chars in rows])
    assert "above the rest fairly well" in fairly or "above the rest weakly" in fairly
    upside_down = said([(5.0 if i % 3 else 1.0, 1.0 if i % 3 else 5.0, chance.randint(1, 900), 1) for i in range(90)])
    assert "a ranks rows that b drops above the rest perfectly" in upside_down and "a is better than" not in upside_down
    near = said([(5.0, 5.0, 9, 597), (1.0, 5.0, 8, 403), (5.0, 1.0, 7, 0), (1.0, 1.0, 6, 1000)])  # AUC .7985
    assert "above the rest well (lower end of the interval: fairly well): AUC .80 (.78 to" in near


def test_nothing_is_said_of_an_order_whose_interval_holds_chance_or_that_rests_on_few_rows() -> None:
    chance = random.Random(1)
    noise = said(
        [(chance.randint(0, 10) / 2, chance.choice([1.0, 5.0]), chance.randint(1, 900), 1) for _ in range(200)]
    )
    assert "no relation found, or hardly any: AUC" in noise
    assert "a is not shown to be better than" in noise
    short = said([(chance.randint(0, 10) / 2, chance.choice([1.0, 5.0]), chance.randint(1, 900), 1) for _ in range(40)])
    assert "no relation found, and these rows are too few to rule out an AUC of ." in short
    few = said([(5.0 if i < 4 else 1.0, 5.0 if i < 4 else 1.0, chance.randint(1, 900), 1) for i in range(80)])
    assert "b keeps only 4 of these rows; at least 10 are needed to judge the ranking" in few and "above" not in few


def test_where_the_reference_keeps_all_rows_the_order_over_the_scale_is_told_by_its_rank_correlation() -> None:
    chance = random.Random(2)
    steps = [chance.randint(0, 5) for _ in range(100)]
    follows = said([(float(x), x / 2 + 2, chance.randint(1, 900), 1) for x in steps], "0")
    assert "over the whole scale a follows the order of b perfectly" in follows
    noise = said([(float(x), chance.randint(0, 5), chance.randint(1, 900), 1) for x in steps], "0")
    assert "over the whole scale no relation found" in noise


def test_raw_agreement_is_called_better_only_where_its_interval_says_so() -> None:
    cells = [(5.0, 5.0, 8, 3), (5.0, 1.0, 7, 1), (1.0, 5.0, 6, 17), (1.0, 1.0, 5, 79)]
    assert "raw agreement is 82.0 %, no better than dropping every row, which agrees on 80.0 %" in said(cells)
    more = [(a, b, chars, 100 * count) for a, b, chars, count in cells]
    assert "raw agreement is 82.0 %, better than dropping every row" in said(more)


def labelled(store: Store, tmp_path: Path, name: str, labels: list[float | None], rubric: str = "quality") -> Grading:
    """A grader labels:NAME on the scale 0 to 5 by half points, keeping from 4.5."""
    rows = [{"index": i, "label": label} for i, label in enumerate(labels)]
    found = import_labels(
        store,
        write_rows(tmp_path / f"{name}.jsonl", rows),
        name,
        resolve(store, None),
        own_rubric(rubric, "0", "5", "0.5", "4.5"),
    )
    return find_grading(store, resolve(store, None).version_id, found.grader_id, found.rubric_id)


def test_a_comparison_counts_distinct_examples_and_says_who_has_no_grade(store: Store, tmp_path: Path) -> None:
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
    with pytest.raises(AgreeError, match="is both A and B"):
        agree(store, version.version_id, a, a)
    without = "none of the 5 rows that labels:a has scored has an expected score; it never has any, and without --by"
    with pytest.raises(AgreeError, match=without):
        agree(store, version.version_id, a, b, "expected_score")


def test_the_command_prints_a_table_and_the_same_as_json(alpasift: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "d.jsonl", some_rows(60))
    rows = [{"index": i, "a": i % 5, "b": (i + i // 20) % 5} for i in range(60)]
    write_rows(tmp_path / "l.jsonl", rows)
    alpasift("import", "d.jsonl")
    for name in "ab":
        done = alpasift("labels", "l.jsonl", "--as", name, "--field", name, "--scale", "0:5:1", "--threshold", 4)
        assert done.code == 0, done.err
    ran = alpasift("agree", "labels:a", "labels:b")
    assert ran.code == 0, ran.err
    assert "60 of 60 distinct rows have both grades" in ran.out
    assert "kappa, quadratic weights  none" not in ran.out
    assert "next: alpasift calibrate --cheap labels:a --reference labels:b" in ran.err
    found = alpasift("agree", "labels:a", "labels:b", "--json", "--threshold", 3).json
    assert found["compared"] == 60 and found["a"]["threshold"] == 3
    assert found["grader"]["table"] == {"both": 8, "first_only": 16, "b_only": 4, "neither": 32}
    former = alpasift("agree", "labels:a", "labels:b", "--by", "expected", "--json")
    assert former.code == 1 and "none of the 60 rows that labels:a has scored has an expected score" in former.err
    assert "--by expected is deprecated, use --by expected_score" in former.err
    refused = alpasift("agree", "labels:a", "labels:c")
    assert refused.code == 1
    assert (
        "labels:c has not graded this dataset; did you mean labels:b? These have: labels:a --rubric-b a (60 rows"
        in refused.err
    )
