"""Laying examples out: every example once an epoch, 128 of them a step, rows that hold them, and no card that waits."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpasift.train.packing import best_fit, orders, plan, spread

LENGTHS = st.lists(st.integers(1, 512), min_size=1, max_size=300)


@given(LENGTHS)
def test_best_fit_puts_each_example_into_one_row_that_holds_it(lengths: list[int]) -> None:
    bins = best_fit(lengths, 512)
    assert sorted(n for members in bins for n in members) == list(range(len(lengths)))
    assert all(sum(lengths[n] for n in members) <= 512 for members in bins)


@given(LENGTHS)
def test_no_two_rows_of_best_fit_could_be_one(lengths: list[int]) -> None:
    fills = sorted(sum(lengths[n] for n in members) for members in best_fit(lengths, 512))
    assert len(fills) < 2 or fills[0] + fills[1] > 512


@given(st.lists(st.integers(1, 12), min_size=1, max_size=7))
def test_best_fit_is_within_its_proven_bound(lengths: list[int]) -> None:
    """Best-fit decreasing needs at most 11/9 of the best + 1 (Johnson 1973); the best by trying everything."""

    def least(rest: tuple[int, ...], bins: tuple[int, ...], best: int) -> int:
        if len(bins) >= best:
            return best
        if not rest:
            return len(bins)
        for at in range(len(bins)):
            if bins[at] + rest[0] <= 12:
                best = least(rest[1:], (*bins[:at], bins[at] + rest[0], *bins[at + 1 :]), best)
        return least(rest[1:], (*bins, rest[0]), best)

    assert len(best_fit(lengths, 12)) <= 11 / 9 * least(tuple(lengths), (), len(lengths) + 1) + 1


def test_best_fit_takes_the_fullest_row_that_has_room() -> None:
    # 6 and 5 open two rows of 10; 4 fits both and goes to the fuller; 3 goes where room is left
    assert best_fit([6, 5, 4, 3], 10) == [[0, 2], [1, 3]]


def test_an_example_longer_than_a_row_is_an_error() -> None:
    with pytest.raises(ValueError, match="example 1 has 600 tokens, more than the 512"):
        best_fit([5, 600], 512)


@given(LENGTHS, st.integers(0, 5))
def test_spreading_uses_just_the_rows_it_is_given(lengths: list[int], more: int) -> None:
    rows = len(best_fit(lengths, 512)) + more
    bins = spread(lengths, rows, 512)
    assert len(bins) == rows
    assert sorted(n for members in bins for n in members) == list(range(len(lengths)))
    assert all(sum(lengths[n] for n in members) <= 512 for members in bins)


@settings(max_examples=50)
@given(
    LENGTHS,
    st.sampled_from([None, 512, 1024]),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(1, 3),
)
def test_a_plan_trains_every_example_once_an_epoch(
    lengths: list[int], pack_length: int | None, micro_batch: int, cards: int, batch: int, epochs: int
) -> None:
    laid = plan(lengths, pack_length=pack_length, micro_batch=micro_batch, cards=cards, batch=batch, epochs=epochs)
    seen = Counter(
        (step.epoch, n) for step in laid.steps for microbatch in step.microbatches for pack in microbatch for n in pack
    )
    assert seen == Counter({(epoch, n): 1 for epoch in range(epochs) for n in range(len(lengths))})
    assert all(len(step.microbatches) == laid.microbatches * cards for step in laid.steps)
    assert all(len(microbatch) == micro_batch for step in laid.steps for microbatch in step.microbatches)
    full, left = divmod(len(lengths), batch)
    assert [step.examples for step in laid.steps] == ([batch] * full + [left] * bool(left)) * epochs
    if pack_length:
        assert laid.longest_row <= pack_length
        assert laid.max_tokens <= pack_length * micro_batch


def test_a_step_is_so_many_examples_whatever_the_row_length() -> None:
    lengths = [100 + n % 50 for n in range(300)]
    for pack_length in (None, 512, 2048):
        laid = plan(lengths, pack_length=pack_length, batch=128, epochs=2)
        assert [step.examples for step in laid.steps] == [128, 128, 44, 128, 128, 44]
    packed = plan(lengths, pack_length=512, batch=128, epochs=2)
    padded = plan(lengths, pack_length=None, batch=128, epochs=2)
    members = [{n for group in step.microbatches for pack in group for n in pack} for step in packed.steps]
    assert members == [{n for group in step.microbatches for pack in group for n in pack} for step in padded.steps]


def test_steps_match_two_arms_whatever_their_size() -> None:
    small = plan([100] * 50, pack_length=512, batch=16, steps=10)
    large = plan([100] * 500, pack_length=512, batch=16, steps=10)
    assert len(small.steps) == len(large.steps) == 10
    assert small.steps[-1].epoch == 2  # 4 steps an epoch


def test_an_order_depends_on_the_seed_and_the_epoch_alone() -> None:
    first, again, other = (list(orders(10, 4, seed, 2, None)) for seed in (0, 0, 1))
    assert first == again != other
    assert [n for _, numbers in first[:3] for n in numbers] != [n for _, numbers in first[3:] for n in numbers]


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="no example"):
        plan([], pack_length=512)


def test_four_cards_in_lock_step_wait_for_little() -> None:
    """Lengths drawn like Alpaca's: padding four examples a card wastes a third, packed rows are equally long."""
    import random

    draw = random.Random(0)
    lengths = [min(512, max(20, round(draw.lognormvariate(4.66, 0.5)))) for _ in range(2_000)]
    padded = plan(lengths, pack_length=None, micro_batch=4, cards=4)
    packed = plan(lengths, pack_length=2048, micro_batch=1, cards=4)
    assert padded.padded_tokens / padded.tokens > 1.3
    assert packed.padded_tokens == packed.tokens

    def lock_step(laid: object) -> int:
        total = 0
        for step in laid.steps:  # type: ignore[attr-defined]
            for at in range(0, len(step.microbatches), 4):
                sizes = [
                    len(group) * max(sum(lengths[n] for n in pack) for pack in group)
                    for group in step.microbatches[at : at + 4]
                ]
                total += 4 * max(sizes)
        return total

    assert lock_step(packed) < 1.1 * packed.tokens
