"""What a sample shows about the whole: the fit against scikit-learn, the weighted AUC against DeLong, the draws."""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics
from sklearn.isotonic import IsotonicRegression

from alpasift.batcher.sampling import (
    Cell,
    Weighted,
    draw,
    held_out,
    isotonic,
    margin,
    percentiles,
    predict,
    weighted_auc,
    weighted_auc_difference,
    weighted_mean,
    weighted_spread,
)
from alpasift.batcher.statistics import Figure, auc, auc_difference, ranked


def sample(seed: int, rows: int) -> list[Weighted]:
    """Rows of one stratum whose chance to be positive rises with their value."""
    chance = random.Random(seed)
    values = chance.choices([0.0, 1.0, 2.0, 3.0, 4.0, 4.5, 5.0], [5, 10, 20, 30, 20, 10, 5], k=rows)
    return [Weighted(x, chance.random() < 1 / (1 + math.exp(-1.2 * (x - 4.2))), 0) for x in values]


# -- a uniform sample ---------------------------------------------------------------------------------------------


def test_a_draw_is_the_smallest_hashes_whatever_the_order_of_the_rows() -> None:
    examples = [(i, f"id-{i}") for i in range(50)]
    hashed = sorted(range(50), key=lambda i: hashlib.md5(f"probe 7 id-{i} 1".encode()).hexdigest())
    assert draw(examples, 10, 7) == sorted(hashed[:10])
    assert draw(examples[::-1], 10, 7) == draw(examples, 10, 7) != draw(examples, 10, 8)
    assert draw(examples, 99, 7) == list(range(50))


def test_a_smaller_sample_lies_inside_the_larger_one_of_its_seed() -> None:
    examples = [(i, f"id-{i}") for i in range(50)]
    assert set(draw(examples, 10, 3)) < set(draw(examples, 20, 3))


def test_every_row_is_drawn_about_equally_often() -> None:
    """1,000 draws of 5 out of 20: 250 each. Chi-square with 19 degrees stays below 43.8, its 0.999 quantile."""
    drawn = Counter(p for seed in range(1000) for p in draw([(i, f"id-{i}") for i in range(20)], 5, seed))
    assert sum((drawn[i] - 250) ** 2 / 250 for i in range(20)) < 43.8


def test_a_margin_is_two_standard_errors_and_never_below_two_percent() -> None:
    assert margin(0.5, 100, 400, 0.01) == pytest.approx(math.sqrt(1 / 100 + 1 / 400) + 0.01)
    assert margin(0.0, 100, 100) == 0.02


def test_weighted_means_and_spreads_by_hand() -> None:
    """0.8 of 300 and 1.2 of 100: mean 0.9, variance 2 * (0.75 * 0.01 + 0.25 * 0.09)."""
    runs = [(300, 0.8), (100, 1.2)]
    assert weighted_mean(runs) == pytest.approx(0.9)
    assert weighted_spread(runs) == pytest.approx(math.sqrt(0.06))
    assert weighted_spread(runs[:1]) == 0.0


# -- a stratified sample ------------------------------------------------------------------------------------------

points = st.lists(
    st.tuples(st.integers(0, 10).map(lambda i: i / 2), st.sampled_from([0.0, 1.0]), st.sampled_from([0.5, 1.0, 3.0])),
    min_size=1,
    max_size=40,
)


@given(points)
def test_the_fit_is_scikit_learns_isotonic_regression(rows: list[tuple[float, float, float]]) -> None:
    scores, kept, weights = (list(column) for column in zip(*rows, strict=True))
    oracle = IsotonicRegression(out_of_bounds="clip").fit(scores, kept, sample_weight=weights)
    knots = isotonic(rows)
    asked = [i / 4 for i in range(-2, 44)]
    assert [predict(knots, score) for score in asked] == pytest.approx(list(oracle.predict(asked)), abs=1e-9)
    assert all(a.p <= b.p for a, b in pairwise(knots))


def test_the_weighted_auc_is_scikit_learns() -> None:
    rows = [Weighted(row.value, row.positive, i % 2, 1 + 5 * (i % 2)) for i, row in enumerate(sample(3, 300))]
    oracle = metrics.roc_auc_score(
        [row.positive for row in rows], [row.value for row in rows], sample_weight=[row.weight for row in rows]
    )
    assert weighted_auc(rows).value == pytest.approx(oracle)


def test_with_equal_weights_the_interval_of_the_auc_is_nearly_delongs() -> None:
    rows = sample(4, 400)
    found = weighted_auc(rows)
    delong = auc(ranked((row.value, row.positive, 1) for row in rows))
    assert found.value == pytest.approx(delong.value)
    assert found.low == pytest.approx(delong.low, abs=2e-3)


def test_with_equal_weights_the_difference_of_two_orders_is_nearly_delongs() -> None:
    rows = sample(5, 400)
    chance = random.Random(0)
    others = [row.value + chance.gauss() for row in rows]
    found = weighted_auc_difference(rows, others)
    delong = auc_difference([(row.value, other, row.positive, 1) for row, other in zip(rows, others, strict=True)])
    assert found.value == pytest.approx(delong.value)
    assert (found.low, found.high) == (pytest.approx(delong.low, abs=2e-3), pytest.approx(delong.high, abs=2e-3))


def test_held_out_error_is_that_of_rows_not_fitted_to() -> None:
    rows = [Weighted(float(i), bool(i % 2), 0) for i in range(40)]  # the fit can only learn that half are kept
    found = held_out(rows, 0, 10)
    assert found.base_brier == pytest.approx(0.25, abs=0.01)
    assert found.brier > found.base_brier
    assert held_out(rows, 0, 10) == found and math.isfinite(found.log_loss)


def test_a_cell_that_was_all_sampled_is_known_and_one_never_sampled_takes_the_rate_of_its_stratum() -> None:
    chance = random.Random(0)
    assert Cell(10, 10, 4, 0.9).mean == Cell(10, 10, 4, 0.9).draw(chance) == 4
    assert Cell(10, 0, 0, 0.25).mean == 2.5
    draws = [Cell(100, 10, 0, 0.0).draw(chance) for _ in range(500)]
    assert min(draws) >= 0 and max(draws) > 5, "none of ten seen does not mean that there is none"


def test_percentiles_hold_the_value_itself() -> None:
    assert percentiles(50.0, [float(i) for i in range(100)]) == Figure(50.0, 2.0, 97.0)
    assert percentiles(-1.0, [0.0, 1.0]) == Figure(-1.0, -1.0, 1.0)
