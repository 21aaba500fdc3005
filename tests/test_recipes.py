"""Recipes are the papers' figures, methods set the learning rate, and the rate moves as the schedule message."""

from __future__ import annotations

import math
from typing import Any

import pytest

from alpasift.train.artifacts import TrainError
from alpasift.train.recipes import RECIPES, rate_at, settle


@pytest.mark.parametrize(
    ("recipe", "method", "epochs", "batch", "length", "rate"),
    [  # AlpaGasus Table 5 and its code; Stanford Alpaca; AlpaGasus2's README
        ("alpagasus-7b", "full", 3, 128, 512, 2e-5),
        ("alpagasus-13b", "full", 5, 128, 512, 1e-5),
        ("alpaca", "full", 3, 128, 512, 2e-5),
        ("alpagasus-7b", "lora", 3, 128, 512, 2e-4),
        ("alpagasus-13b", "qlora", 5, 128, 512, 1e-4),
        ("ag2-qlora", "qlora", 3, 128, 512, 2e-5),
    ],
)
def test_recipes_are_the_papers(recipe: str, method: Any, epochs: int, batch: int, length: int, rate: float) -> None:
    s = settle(recipe, method, 9_229)
    assert (s.epochs, s.batch, s.max_length, s.learning_rate, s.steps) == (epochs, batch, length, rate, None)
    assert (s.schedule, s.warmup_share, s.weight_decay) == ("cosine", 0.03, 0.0)


def test_adapters_are_as_the_methods_have_them() -> None:
    s = settle("alpagasus-7b", "qlora", 9_229)
    assert (s.rank, s.alpha, s.lora_dropout, s.target_names) == (16, 32, 0.0, "all-linear")
    old = settle("ag2-qlora", "qlora", 9_229)
    assert (old.rank, old.alpha, old.lora_dropout, old.target_names) == (8, 32, 0.05, ("q_proj", "v_proj"))
    assert any("tenth of the usual rate" in remark for remark in old.remarks)


@pytest.mark.parametrize(
    ("examples", "steps", "batch"),
    [(100, 30, 8), (1_600, 600, 8), (2_999, 500, 8), (3_200, 500, 32), (50_000, 1_600, 32)],
)
def test_humpback_trains_by_steps(examples: int, steps: int, batch: int) -> None:
    """Humpback's Table 18, and a batch of 8 below 3,000 examples."""
    s = settle("humpback", "full", examples)
    assert (s.steps, s.batch, s.weight_decay, s.attention_dropout) == (steps, batch, 0.1, 0.1)
    assert rate_at(0, steps, s) == 1e-5
    assert math.isclose(rate_at(steps, steps, s), 9e-6)


def test_what_is_given_goes_first() -> None:
    s = settle("humpback", "lora", 100, epochs=2, learning_rate=3e-4, pack_length=None, rank=None)
    assert (s.epochs, s.steps, s.learning_rate, s.pack_length, s.rank) == (2, None, 3e-4, None, 16)
    assert settle("alpaca", "lora", 100, steps=7).steps == 7


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pack_length": 256}, "rows of 256 tokens cannot hold an example of 512"),
        ({"steps": 0}, "steps is 0"),
        ({"learning_rate": 0}, "learning_rate is 0"),
        ({"precision": "fp16", "master_weights": False}, "fp16 needs float32 master weights"),
        ({"epochs": float("inf")}, "epochs is inf"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        settle("alpaca", "full", 100, **given)


def test_in_fp16_adapters_are_kept_in_32_bits() -> None:
    """The scaler of gradients cannot take those of bf16 adapters on a card."""
    assert settle("alpaca", "lora", 100, precision="fp16").adapter_precision == "fp32"
    with pytest.raises(TrainError, match="fp16 needs float32 adapters"):
        settle("alpaca", "lora", 100, precision="fp16", adapter_precision="bf16")


def test_unknown_recipes_and_methods_are_named() -> None:
    with pytest.raises(TrainError, match=f"unknown recipe 'x'; choose from {', '.join(RECIPES)}"):
        settle("x", "full", 1)
    with pytest.raises(TrainError, match="unknown method 'dpo'"):
        settle("alpaca", "dpo", 1)  # type: ignore[arg-type]


def test_the_rate_warms_up_and_falls_along_a_cosine() -> None:
    s = settle("alpagasus-7b", "full", 9_229)
    rates = [rate_at(step, 100, s) for step in range(101)]
    assert rates[:3] == pytest.approx([0.5e-5, 1e-5, 1.5e-5])  # 3 steps of warm-up
    assert rates[3] == 2e-5 == max(rates)
    assert rates[3 + 97 // 2] == pytest.approx(2e-5 * 0.5 * (1 + math.cos(math.pi * (97 // 2) / 97)))
    assert rates[100] == pytest.approx(0, abs=1e-12)
    assert rates[3:] == sorted(rates[3:], reverse=True)
