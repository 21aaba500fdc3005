"""Forecasts of memory, time and money, held against what others have published, and what is chosen for which card."""

from __future__ import annotations

import json
import runpy
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpasift.train.artifacts import TrainError
from alpasift.train.fit.calibration import CalibrationError, apply, corrections, measured_against, record
from alpasift.train.fit.cards import (
    GIB,
    NoCard,
    card_named,
    card_of_size,
    cards,
    found_card,
    recognise,
    this_cpu,
    usable_bytes,
    with_memory,
)
from alpasift.train.fit.choice import NothingFits, choose, configurations, pack_lengths
from alpasift.train.fit.forecast import Forecast, forecast
from alpasift.train.fit.memory import MemoryParts, peak
from alpasift.train.fit.model_dims import PRESETS, dims_from_config, read_dims
from alpasift.train.fit.seconds import flops_per_token, passes, training_flops
from alpasift.train.fit.train_config import Method, TrainConfig
from alpasift.train.fit.workload import Lengths, Workload, lay_out, lengths_of
from conftest import ROOT

BENCH: Mapping[str, Any] = runpy.run_path(str(ROOT / "benchmarks" / "fit_published.py"))
PUBLISHED = BENCH["published"]()
SMALL, LARGE, LLAMA_3 = (read_dims(name) for name in ("llama-2-7b", "llama-2-13b", "llama-3.1-8b"))
LENGTHS: Lengths = BENCH["alpaca_like"](1_500)
ALPACA = Workload(LENGTHS)


# -- shapes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "linear"),
    [  # counted on models without weights: transformers on the meta device; Mistral and Qwen as their cards say
        ("llama-7b", 6_738_415_616, 6_476_005_376),
        ("llama-2-7b", 6_738_415_616, 6_476_005_376),
        ("llama-13b", 13_015_864_320, 12_687_769_600),
        ("llama-2-13b", 13_015_864_320, 12_687_769_600),
        ("llama-3.1-8b", 8_030_261_248, 6_979_321_856),
        ("mistral-7b", 7_241_732_096, 6_979_321_856),
        ("qwen2.5-7b", 7_615_616_512, 6_525_288_448),
        ("qwen2.5-14b", 14_770_033_664, 13_212_057_600),
    ],
)
def test_a_preset_has_exactly_the_parameters_of_its_model(name: str, parameters: int, linear: int) -> None:
    dims = read_dims(name)
    assert (dims.parameters, dims.linear) == (parameters, linear)


def test_every_preset_is_a_config_that_comes_with_the_package() -> None:
    folder = resources.files("alpasift.train.fit") / "presets"
    assert {file.name for file in folder.iterdir()} == {f"{name}.json" for name in PRESETS}
    assert (read_dims("llama-7b").max_positions, read_dims("llama-2-7b").max_positions) == (2048, 4096)
    assert read_dims("llama-7b").digest == read_dims("llama-2-7b").digest != LARGE.digest


def test_adapters_are_counted_as_peft_counts_them() -> None:
    # 40.0, 62.6, 41.9 million of rank 16 on all linear layers; 4,194,304 is LitGPT's and peft's count for r=8 on q, v
    assert [dims.adapters(16) for dims in (SMALL, LARGE, LLAMA_3)] == [39_976_960, 62_586_880, 41_943_040]
    assert SMALL.adapters(8, ("q_proj", "v_proj")) == 8 * 32 * 2 * (4096 + 4096) == 4_194_304
    with pytest.raises(TrainError, match="unknown LoRA target 'lm_head'"):
        SMALL.adapters(8, ("lm_head",))


def test_a_config_is_read_from_a_folder_with_its_own_head_size_biases_and_tied_head(tmp_path: Path) -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 100,
        "tie_word_embeddings": True,
        "attention_bias": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    dims = read_dims(tmp_path)
    assert dims.name == tmp_path.name and (dims.q, dims.kv, dims.head) == (128, 64, 0)
    assert dims.linear == 2 * (2 * 64 * 128 + 2 * 64 * 64 + 3 * 64 * 96)
    assert dims.biases == 2 * (128 + 2 * 64 + 64)
    assert read_dims(tmp_path / "config.json") == dims


def test_what_the_formulas_do_not_cover_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="has no intermediate_size, num_attention_heads; the forecast supports"):
        dims_from_config({"model_type": "gpt2", "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 9})
    whole = json.loads((resources.files("alpasift.train.fit") / "presets" / "mistral-7b.json").read_text("utf-8"))
    with pytest.raises(TrainError, match="mixture of experts"):
        dims_from_config({**whole, "num_local_experts": 8})
    with pytest.raises(TrainError, match="hidden_size '4096'; it must be a whole number above 0"):
        dims_from_config({**whole, "hidden_size": "4096"})
    with pytest.raises(
        TrainError, match=r"model folder not found: meta-llama/Llama-2-7b; give a folder .* llama-7b, llama-13b"
    ):
        read_dims("meta-llama/Llama-2-7b")
    with pytest.raises(TrainError, match=r"has no config\.json"):
        read_dims(tmp_path)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(TrainError, match="cannot be read"):
        read_dims(tmp_path)


# -- memory, against what was published --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "one", [p for p in PUBLISHED if not p.miss], ids=lambda one: f"{one.group} {one.what} {one.counts}"
)
def test_a_published_peak_is_forecast_within_its_tolerance(one: Any) -> None:
    wanted = {
        "LLaMA-Factory": 0.07,
        "LitGPT": 0.05,
        "Qwen": 0.10,
        "fitcheck T4": 0.12 if one.counts == "reserved" else 0.035,
        "fms-acceleration A100": 0.025,
    }
    assert wanted[one.group] == one.within
    assert abs(one.error) <= one.within, f"{one.forecast_gb:.2f} GB, published {one.gb}"


@pytest.mark.parametrize(
    ("group", "what", "error", "reason"),
    [
        ("LitGPT", "7B NF4, 1 x 1304, no checkpointing", -0.184, "bitsandbytes 0.41"),
        ("LitGPT", "13B NF4, 1 x 1304, no checkpointing", -0.167, "bitsandbytes 0.41"),
        ("axolotl", "7B, 2 x 4096", -0.203, "not published"),
        ("LLaMA-Factory", "7B 16-bit, 4 x 1024, FA2", 0.094, "whole GB"),
    ],
)
def test_a_known_miss_is_as_far_off_as_recorded_and_has_its_reason(
    group: str, what: str, error: float, reason: str
) -> None:
    (one,) = (p for p in PUBLISHED if (p.group, p.what) == (group, what))
    assert one.error == pytest.approx(error, abs=0.005) and reason in one.miss


def test_nothing_published_is_left_out_of_both_tests() -> None:
    assert len(PUBLISHED) == 18 + 2 * 14 + 6 and sum(bool(p.miss) for p in PUBLISHED) == 4


def test_what_the_allocator_reserves_is_between_what_was_published_of_a_t4() -> None:
    """Below its middle for NF4 by 2 %, as those runs had no segments that grow; the margin covers all of them."""
    for method in ("lora", "qlora"):
        ratios = sorted(r.ratio for r in BENCH["reserved_ratios"]() if (r.group, r.method) == ("fitcheck T4", method))
        parts = peak(SMALL, TrainConfig(method), 1024)
        ours = parts.reserved / parts.allocated
        assert ratios[0] < ours < ratios[-1]
        assert ours == pytest.approx(ratios[len(ratios) // 2], abs=0.03)
        one = forecast(SMALL, ALPACA, TrainConfig(method), card_named("t4"))
        assert ratios[-1] <= ours * (1 + one.margin)
    assert {row[-1] - row[-2] for row in BENCH["_T4_ROWS"]} == {141}, "MiB of the CUDA context"


def test_what_explains_the_published_figures_is_what_their_trainers_did() -> None:
    """Without float32 beside NF4, or with another number of bytes a logit, the forecast is off by 6 % and more."""
    upcast = [p for p in PUBLISHED if p.config.upcast and p.counts == "allocated"]
    assert len(upcast) == 12
    for one in upcast:
        plain = peak(one.dims, replace(one.config, upcast=False), one.tokens).allocated / 1e9
        assert plain < 0.94 * one.gb, one.what
    for one in (p for p in PUBLISHED if p.group == "fitcheck T4" and p.config.method == "lora"):
        assert one.config.logit_bytes == 14


def test_four_bit_weights_take_the_bytes_of_their_quantisation() -> None:
    # 3.866, 7.202 and 5.703 GB with the 16-bit embedding, head and norms; litgpt's inference peaks are W + 0.4 GB
    sizes = [peak(dims, TrainConfig("qlora"), 512).weights / 1e9 for dims in (SMALL, LARGE, LLAMA_3)]
    assert sizes == pytest.approx([3.866, 7.202, 5.703], abs=0.001)
    plain = (
        peak(SMALL, TrainConfig("qlora", double_quant=False), 512).weights
        - peak(SMALL, TrainConfig("qlora"), 512).weights
    )
    assert plain == pytest.approx(SMALL.linear * (4.5 - 4.127) / 8, abs=2)


@pytest.mark.parametrize(
    ("method", "dims", "checkpointing", "gib"),
    [  # the worked table of peaks at 1, 4 and 8 rows of 512 tokens that the formulas were derived with
        ("qlora", SMALL, True, (4.9, 5.7, 6.6)),
        ("qlora", SMALL, False, (7.4, 15.7, 26.7)),
        ("lora", SMALL, True, (14.1, 14.8, 15.7)),
        ("lora", SMALL, False, (16.6, 24.8, 35.8)),
        ("full", SMALL, True, (52.9, 53.7, 54.7)),
        ("qlora", LARGE, True, (8.5, 9.6, 10.9)),
        ("qlora", LARGE, False, (12.5, 25.3, 42.4)),
        ("lora", LARGE, True, (26.5, 27.5, 28.9)),
        ("lora", LARGE, False, (30.4, 43.3, 60.4)),
        ("qlora", LLAMA_3, True, (6.8, 7.5, 8.5)),
    ],
)
def test_peaks_are_those_of_the_worked_table(
    method: Method, dims: Any, checkpointing: bool, gib: tuple[float, ...]
) -> None:
    made = [peak(dims, TrainConfig(method, rows, checkpointing=checkpointing), 512 * rows) for rows in (1, 4, 8)]
    assert [worked(parts) for parts in made] == pytest.approx(gib, abs=0.11)


def worked(parts: MemoryParts) -> float:
    """GiB with 4 % for fragmentation, as the table was worked out."""
    return (1.04 * parts.allocated + parts.context) / GIB


def test_adam_in_8_bits_and_32_bit_weights_take_what_they_should() -> None:
    def full(**changes: Any) -> float:
        return worked(peak(SMALL, TrainConfig("full", **changes), 512))

    assert full(optimizer="adamw_8bit") == pytest.approx(40.1, abs=0.1)
    assert full(adapter_dtype="fp32") == pytest.approx(105, abs=0.5)  # 16 bytes a parameter
    assert full(dtype="fp16") == full(adapter_dtype="fp32"), "fp16 alone would lose small updates"
    wide = peak(SMALL, TrainConfig("lora", adapter_dtype="fp32"), 512)
    assert wide.adapter_or_gradients + wide.optimizer == 16 * SMALL.adapters(16)
    narrow = peak(SMALL, TrainConfig("lora"), 512)
    assert narrow.adapter_or_gradients + narrow.optimizer == 8 * SMALL.adapters(16)


def test_dropout_and_wide_adapters_keep_more_of_every_token() -> None:
    # 170, 274 and 417 KB a token and layer of 7B, measured on the CPU
    kept = {
        (dropout, dtype): peak(
            SMALL, TrainConfig("lora", checkpointing=False, dropout=dropout, adapter_dtype=dtype), 1
        ).activations
        / 32.3
        for dropout in (0.0, 0.05)
        for dtype in ("bf16", "fp32")
    }
    assert kept[0.0, "bf16"] == pytest.approx(170_096, rel=0.002)
    assert kept[0.0, "fp32"] == kept[0.05, "bf16"] == pytest.approx(274_368, rel=0.002)
    assert kept[0.05, "fp32"] == pytest.approx(416_768, rel=0.002)


def test_the_mask_of_rows_side_by_side_grows_with_the_row_not_with_the_batch() -> None:
    one_row, four_rows = TrainConfig("lora", 1), TrainConfig("lora", 4)
    assert peak(SMALL, one_row, 4096).attention_mask == 3 * 4096**2
    assert peak(SMALL, four_rows, 4096).attention_mask == 4 * 3 * 1024**2
    assert peak(SMALL, replace(one_row, attention="flash"), 4096).attention_mask == 0


@given(
    st.sampled_from(["full", "lora", "qlora"]),
    st.booleans(),
    st.integers(1, 16),
    st.integers(1, 4096),
    st.sampled_from(["adamw", "adamw_8bit"]),
    st.sampled_from(["bf16", "fp16"]),
    st.sampled_from(["fused", "vanilla"]),
)
def test_parts_add_up_and_more_tokens_never_take_less(
    method: Method, checkpointing: bool, rows: int, tokens: int, optimizer: Any, dtype: Any, head: Any
) -> None:
    config = TrainConfig(method, rows, checkpointing=checkpointing, optimizer=optimizer, dtype=dtype, head=head)
    here, more = peak(SMALL, config, tokens), peak(SMALL, config, tokens + 64)
    assert here.total == here.fixed + here.moving + here.fragmentation + here.context
    assert here.reserved == here.total - here.context and here.allocated == here.fixed + here.moving
    share = 0.10 if method == "qlora" else 0.06
    assert here.fragmentation == pytest.approx(share * (here.fixed + here.moving), abs=1)
    assert more.total > here.total and more.fixed == here.fixed


# -- time and money ----------------------------------------------------------------------------------------------------


def test_operations_are_those_of_the_worked_example() -> None:
    # 3.364 M tokens of 7B: 8.8e16 without checkpointing, 1.32e17 with; 13B 1.72e17 and 2.58e17
    for dims, without, with_ in ((SMALL, 8.8e16, 1.32e17), (LARGE, 1.72e17, 2.58e17)):
        forward = flops_per_token(dims, trained_share=0.52, pairs=77)
        assert 3.364e6 * forward * passes(TrainConfig("lora", checkpointing=False)) == pytest.approx(without, rel=0.01)
        assert 3.364e6 * forward * passes(TrainConfig("lora")) == pytest.approx(with_, rel=0.01)
    assert [passes(TrainConfig("full", checkpointing=c)) for c in (False, True)] == [3, 4]


def test_a_row_of_2048_masked_tokens_costs_7b_about_8_percent_more() -> None:
    long = flops_per_token(SMALL, trained_share=0.0, pairs=2048)
    assert long / flops_per_token(SMALL, trained_share=0.0, pairs=0) == pytest.approx(1.08, abs=0.005)


@pytest.mark.parametrize(
    ("card", "fast", "slow"),
    [
        ("h200", 3.4, 4.7),
        ("a100-80", 9.4, 12.4),
        ("rtx-4090", 16, 22),
    ],  # minutes of 8.8e16 operations, worked out before
)
def test_minutes_span_the_shares_of_its_rate_that_a_card_may_reach(card: str, fast: float, slow: float) -> None:
    config = TrainConfig("lora", 4, 2048, checkpointing=False)
    one = forecast(SMALL, ALPACA, config, card_named(card))
    scale = 8.8e16 / one.flops / 60
    assert one.training_fast is not None and one.training_slow is not None and one.training_seconds is not None
    assert one.training_fast * scale == pytest.approx(fast, rel=0.03)
    assert one.training_slow * scale == pytest.approx(slow, rel=0.03)
    assert one.training_fast < one.training_seconds < one.training_slow


def test_four_bit_weights_cost_time_in_each_micro_batch() -> None:
    card = card_named("a100-80")
    for micro_batch, low, high in ((1, 0.2, 0.6), (16, 0.0, 0.05)):
        plain = forecast(SMALL, ALPACA, TrainConfig("lora", micro_batch), card)
        unpacked = forecast(SMALL, ALPACA, TrainConfig("qlora", micro_batch), card)
        assert plain.training_seconds is not None and unpacked.training_seconds is not None
        more = unpacked.training_seconds - plain.training_seconds
        assert more == pytest.approx(
            plain.layout.steps * plain.layout.microbatches * 2.516 * SMALL.linear * 3 / 0.75e12
        )
        assert low < more / plain.training_seconds < high
    assert training_flops(SMALL, TrainConfig("lora"), plain.layout, 0.5) == training_flops(
        SMALL, TrainConfig("qlora"), plain.layout, 0.5
    )


def test_tokens_per_second_are_real_ones_and_dollars_follow_from_seconds() -> None:
    one = forecast(SMALL, ALPACA, TrainConfig("lora", 2, 1024), card_named("rtx-4090"), usd_per_hour=Decimal("0.60"))
    assert one.training_seconds is not None and one.usd is not None and one.tokens_per_second is not None
    assert one.layout.tokens == 3 * LENGTHS.total <= one.layout.padded_tokens
    assert one.tokens_per_second * one.training_seconds == pytest.approx(one.layout.tokens)
    assert float(one.usd) == pytest.approx(0.60 * one.seconds / 3600, abs=1e-4)
    assert forecast(SMALL, ALPACA, TrainConfig("lora", 2, 1024), card_named("rtx-4090")).usd is None


def test_two_cards_share_the_time_and_each_holds_the_whole_model() -> None:
    card = card_named("a100-80")
    one = forecast(SMALL, ALPACA, TrainConfig("lora", 1, 1024), card)
    two = forecast(SMALL, ALPACA, TrainConfig("lora", 1, 1024, cards=2), card)
    assert one.training_seconds is not None and two.training_seconds is not None
    assert two.training_seconds == pytest.approx(one.training_seconds / 2, rel=0.06)
    assert two.parts.fixed == one.parts.fixed


def test_lengths_are_cut_and_what_has_no_room_for_an_answer_is_counted() -> None:
    lengths = lengths_of([10, 10, 600], [5, 900, 5], 512, "counted manually")
    assert (lengths.tokens, lengths.trained, lengths.truncated, lengths.dropped) == ((15, 512), 5 + 502, 2, 1)
    with pytest.raises(TrainError, match="none of 1 examples has a prompt below --max-length 512"):
        lengths_of([600], [5], 512, "counted manually")


def test_many_examples_are_laid_out_from_a_sample_and_counted_in_full() -> None:
    rows = TrainConfig("lora", 2, 1024)
    whole = lay_out(ALPACA, rows)
    sampled = lay_out(ALPACA, rows, sample=500)
    assert (whole.sampled, sampled.sampled) == (False, True)
    assert sampled.steps == whole.steps and sampled.tokens == whole.tokens == 3 * LENGTHS.total
    assert sampled.padded_tokens == pytest.approx(whole.padded_tokens, rel=0.01)
    assert sampled.max_tokens == pytest.approx(whole.max_tokens, rel=0.05)


def test_rows_hold_the_longest_example_and_no_more_than_the_model_has_positions_for() -> None:
    short = Lengths((500,), 100, 0, 512, "counted manually")
    assert pack_lengths(read_dims("llama-7b"), short) == (512, 1024, 2048)
    assert pack_lengths(SMALL, replace(short, tokens=(513,))) == (1024, 2048, 4096)
    assert pack_lengths(LLAMA_3, replace(short, tokens=(5000,))) == (5120,)
    with pytest.raises(
        TrainError, match="has 3,000 tokens and llama-7b has 2,048 positions; truncate examples with --max-length 2048"
    ):
        pack_lengths(read_dims("llama-7b"), replace(short, tokens=(3000,)))


# -- the choice --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "memory_gb", "method", "checkpointing"),
    [
        ("llama-2-7b", 16, "qlora", False),
        ("llama-2-7b", 24, "lora", False),
        ("llama-2-7b", 40, "lora", False),
        ("llama-2-7b", 80, "lora", False),
        ("llama-2-13b", 16, "qlora", True),
        ("llama-2-13b", 24, "qlora", False),
        ("llama-2-13b", 40, "lora", False),
        ("llama-2-13b", 80, "lora", False),
    ],
)
def test_the_usual_cards_get_the_fastest_method_that_fits(
    name: str, memory_gb: int, method: str, checkpointing: bool
) -> None:
    choice = choose(read_dims(name), ALPACA, card_of_size(memory_gb))
    one = choice.chosen
    assert (one.config.method, one.config.checkpointing) == (method, checkpointing)
    assert one.peak_bytes * (1 + one.margin) <= one.card.usable_bytes
    assert one.margin == (0.1 if method != "qlora" else 0.15 if checkpointing else 0.2)
    rivals = [other for other in choice.considered if other.fits and other.config.method == method]
    assert one.training_seconds is not None
    assert one.training_seconds <= 1.03 * min(
        other.training_seconds or 0 for other in rivals
    )  # the choice is laid out exactly, rivals by a sample
    assert choice.reason and (method == "lora" or "LoRA would need" in choice.reason)


def test_13b_by_qlora_with_checkpointing_fits_a_card_of_16_gb_at_8_rows() -> None:
    one = forecast(LARGE, ALPACA, TrainConfig("qlora", 8, 512), card_of_size(16))
    full_rows = peak(LARGE, one.config, 8 * 512)
    assert one.fits and one.peak_bytes <= full_rows.total and full_rows.total / GIB == pytest.approx(11.5, abs=0.1)
    assert full_rows.total * 1.15 <= one.card.usable_bytes


def test_a_card_without_bf16_never_computes_in_it_and_trains_in_float32() -> None:
    for name in ("t4", "v100-16"):
        for method in ("lora", "qlora", "full"):
            made = configurations(read_dims("llama-2-7b"), ALPACA, card_named(name), (method,))
            assert {one.config.dtype for one in made} == {"fp16"}
            assert {one.config.adapter_dtype for one in made} == {"fp32"}
    assert {one.config.dtype for one in configurations(SMALL, ALPACA, card_named("l4"))} == {"bf16"}
    assert not card_of_size(16).bf16 and "fp16" in card_of_size(16).remark


def test_the_requested_method_is_used_and_a_full_fine_tune_keeps_what_precision_it_can() -> None:
    def full(memory_gb: float) -> TrainConfig:
        return choose(SMALL, ALPACA, card_of_size(memory_gb), methods=("full",)).chosen.config

    assert choose(SMALL, ALPACA, card_of_size(80), methods=("qlora",)).chosen.config.method == "qlora"
    large, middle, small = full(141), full(80), full(48)
    assert (large.master_weights, large.optimizer) == (True, "adamw")
    assert (middle.master_weights, middle.optimizer) == (True, "adamw_8bit")
    assert (small.master_weights, small.optimizer) == (False, "adamw_8bit")


def test_dropout_and_targets_given_are_reckoned_with() -> None:
    plain = choose(SMALL, ALPACA, card_of_size(40)).chosen
    asked = TrainConfig("lora", dropout=0.05, targets=("q_proj", "v_proj"), rank=8)
    dropout = choose(SMALL, ALPACA, card_of_size(40), shared=asked).chosen
    assert (dropout.config.dropout, dropout.config.targets) == (0.05, ("q_proj", "v_proj"))
    assert dropout.parts.activations > plain.parts.activations and dropout.parts.optimizer < plain.parts.optimizer


def test_where_nothing_fits_the_nearest_is_named_with_the_card_that_takes_it() -> None:
    with pytest.raises(NothingFits) as caught:
        choose(LARGE, ALPACA, card_of_size(8))
    error = caught.value
    assert (error.nearest.config.method, error.nearest.config.micro_batch, error.nearest.config.checkpointing) == (
        "qlora",
        1,
        True,
    )
    assert error.nearest.peak_bytes / GIB == pytest.approx(9.6, abs=0.1)
    assert (error.card_gb, error.smaller_model) == (12, "mistral-7b")
    assert "a 12 GB GPU is enough" in str(error) and "mistral-7b fits" in str(error) and "\n" not in str(error)
    with pytest.raises(NothingFits, match="--method qlora fits"):
        choose(LARGE, ALPACA, card_of_size(24), methods=("lora",))
    with pytest.raises(NothingFits) as caught:
        choose(LARGE, ALPACA, card_of_size(2))
    assert caught.value.smaller_model is None


# -- cards -------------------------------------------------------------------------------------------------------------


def test_usable_memory_is_what_was_measured_and_between_sizes_in_proportion() -> None:
    known = {16: 15.6, 24: 23.5, 40: 39.4, 80: 79.1, 141: 139.8}
    assert {size: round(usable_bytes(size) / GIB, 1) for size in known} == known
    assert 48 - 0.9 < usable_bytes(48) / GIB < 48 - 0.5
    assert usable_bytes(8) / GIB == pytest.approx(7.6)


def test_a_card_is_recognised_by_what_its_driver_calls_it() -> None:
    names = {
        "NVIDIA A100-SXM4-40GB": "a100-40",
        "NVIDIA A100 80GB PCIe": "a100-80",
        "Tesla T4": "t4",
        "NVIDIA L4": "l4",
        "NVIDIA GeForce RTX 3090": "rtx-3090",
        "NVIDIA GeForce RTX 4090": "rtx-4090",
        "NVIDIA H200": "h200",
        "NVIDIA H100 80GB HBM3": "h100",
        "Tesla V100-SXM2-16GB": "v100-16",
        "NVIDIA A10G": "a10g",
        "NVIDIA RTX A6000": "a6000",
    }
    assert {name: recognise(name, 200 * GIB, 8.0).name for name in names} == names
    assert set(names.values()) == set(cards())
    assert recognise("NVIDIA H100 NVL", 93 * GIB, 9.0).usable_bytes == round(92.5 * GIB)
    assert recognise("Tesla T4", 15 * GIB, 7.5).usable_bytes == card_named("t4").usable_bytes
    other = recognise("NVIDIA L40S", 45 * GIB, 8.9)
    assert other.name == "NVIDIA L40S" and other.bf16 and "not in train/fit/cards.toml" in other.remark
    old = recognise("Quadro RTX 6000", 24 * GIB, 7.5)
    assert not old.bf16
    assert recognise("NVIDIA GeForce RTX 3060", 12 * GIB, 8.6).bf16
    assert with_memory(card_named("rtx-3090"), 40).usable_bytes == usable_bytes(40)
    with pytest.raises(TrainError, match="no GPU named 'rtx-9090'; choose from t4, v100-16"):
        card_named("rtx-9090")


def test_nvidia_smi_names_the_card_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoCard, match="nvidia-smi is not on this machine; give one with --gpu-memory"):
        found_card()
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA GeForce RTX 4090, 24564 MiB, 8.9'\n")
    program.chmod(0o755)
    assert found_card().name == "rtx-4090"
    program.write_text("#!/bin/sh\nexit 9\n")
    with pytest.raises(NoCard, match="nvidia-smi failed"):
        found_card()


# -- calibration -------------------------------------------------------------------------------------------------------

CONFIG = TrainConfig("qlora", 4, 1024, checkpointing=False)


def uncorrected(config: TrainConfig = CONFIG, card: str = "rtx-4090", dims: Any = SMALL) -> Forecast:
    return forecast(dims, ALPACA, config, card_named(card))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "cards.json"


@given(speed=st.floats(0.2, 5), memory=st.floats(0.7, 1.6))
def test_a_measured_configuration_is_forecast_as_it_was_measured(speed: float, memory: float) -> None:
    plain = uncorrected()
    assert plain.tokens_per_second is not None
    peak_bytes = round(plain.parts.reserved * memory)
    row = measured_against(
        plain, tokens_per_second=plain.tokens_per_second * speed, peak_bytes=peak_bytes, steps=20, versions={}
    )
    after = apply(plain, [row])
    assert after.tokens_per_second == pytest.approx(plain.tokens_per_second * speed)
    assert after.parts.reserved == pytest.approx(peak_bytes, abs=10)
    assert after.memory_measured and (plain.margin, after.margin) == (0.2, 0.1)
    assert after.training_fast == after.training_slow == after.training_seconds


def test_speed_carries_over_to_the_same_card_and_memory_only_to_the_same_kind() -> None:
    plain = uncorrected()
    assert plain.tokens_per_second is not None
    row = measured_against(
        plain,
        tokens_per_second=plain.tokens_per_second / 2,
        peak_bytes=round(1.2 * plain.parts.reserved),
        steps=20,
        versions={},
    )
    larger = uncorrected(replace(CONFIG, micro_batch=8))
    after = apply(larger, [row])
    assert after.memory_measured and after.peak_bytes > larger.peak_bytes
    for other in (
        uncorrected(replace(CONFIG, checkpointing=True)),
        uncorrected(dims=LARGE),
        uncorrected(replace(CONFIG, method="lora")),
    ):
        after = apply(other, [row])
        assert other.training_seconds is not None and after.training_seconds == pytest.approx(
            2 * other.training_seconds
        )
        assert after.parts == other.parts and not after.memory_measured
        assert (
            after.training_fast is not None
            and after.training_slow is not None
            and after.training_fast < after.training_slow
        )
        assert "llama-2-7b by qlora without checkpointing, 20 steps" in after.calibration
    elsewhere = uncorrected(card="rtx-3090")
    assert apply(elsewhere, [row]) == elsewhere and apply(elsewhere, []) == elsewhere


def test_the_nearest_measurement_counts_and_among_equals_the_newest() -> None:
    def row(config: TrainConfig, factor: float, day: int) -> Any:
        plain = uncorrected(config)
        assert plain.tokens_per_second is not None
        made = measured_against(
            plain, tokens_per_second=plain.tokens_per_second * factor, peak_bytes=None, steps=20, versions={}
        )
        return replace(made, measured_at=f"2026-11-{day:02d}T00:00:00+00:00")

    lora = replace(CONFIG, method="lora")
    rows = [row(CONFIG, 0.5, 1), row(CONFIG, 0.8, 2), row(lora, 0.9, 9)]
    plain = uncorrected()
    assert plain.tokens_per_second is not None
    assert apply(plain, rows).tokens_per_second == pytest.approx(0.8 * plain.tokens_per_second)
    recomputed = uncorrected(replace(CONFIG, checkpointing=True))
    assert recomputed.tokens_per_second is not None
    assert apply(recomputed, rows).tokens_per_second == pytest.approx(0.8 * recomputed.tokens_per_second), (
        "the same method"
    )
    full = uncorrected(replace(CONFIG, method="full"))
    assert full.tokens_per_second is not None
    assert apply(full, rows).tokens_per_second == pytest.approx(0.9 * full.tokens_per_second), "the same card"


def test_a_processor_that_cannot_be_asked_has_no_speed_until_it_was_measured() -> None:
    cpu = replace(this_cpu(), flops=None)
    plain = forecast(SMALL, ALPACA, CONFIG, cpu, usd_per_hour=Decimal(1))
    assert cpu.is_cpu and (plain.seconds, plain.tokens_per_second, plain.minutes, plain.usd) == (None, None, None, None)
    row = measured_against(plain, tokens_per_second=12.5, peak_bytes=None, steps=20, versions={"torch": "2.11"})
    after = apply(plain, [row])
    assert after.tokens_per_second == pytest.approx(12.5) and after.parts == plain.parts
    assert apply(replace(plain, config=replace(CONFIG, method="lora")), [row]).seconds is None


def test_a_measured_speed_of_a_processor_counts_more_than_how_fast_it_multiplies_now() -> None:
    cpu = replace(this_cpu(), flops=80e9, mfu=(0.15, 0.75))
    plain = forecast(SMALL, ALPACA, CONFIG, cpu)
    assert plain.training_seconds == pytest.approx(plain.flops / 36e9, rel=0.01)
    assert plain.training_slow == pytest.approx(5 * plain.training_fast, rel=0.01)
    row = measured_against(plain, tokens_per_second=12.5, peak_bytes=None, steps=20, versions={})
    for flops in (40e9, 160e9):
        now = apply(forecast(SMALL, ALPACA, CONFIG, replace(cpu, flops=flops)), [row])
        assert now.tokens_per_second == pytest.approx(12.5)


@pytest.mark.parametrize(
    ("method", "checkpointing"), [("lora", False), ("lora", True), ("qlora", False), ("full", True)]
)
def test_a_process_takes_float32_its_libraries_and_what_malloc_keeps(method: Method, checkpointing: bool) -> None:
    dims, tokens = read_dims("llama-7b"), 512
    config = TrainConfig(method, checkpointing=checkpointing, adapter_dtype="fp32", dtype="fp32")
    parts = peak(dims, config, tokens, processor=True)
    assert (parts.context, parts.fragmentation, parts.libraries) == (0, 0, 660_000_000)
    rest = dims.parameters - dims.linear
    assert parts.weights == pytest.approx(4 * rest + (4.127 / 8 if method == "qlora" else 4) * dims.linear, abs=1)
    trained = dims.parameters if method == "full" else dims.adapters(16)
    assert parts.adapter_or_gradients + parts.optimizer == (12 if method == "full" else 16) * trained
    h, i = dims.hidden, dims.intermediate
    kept = (40 * h + 16 * i if method == "full" else 32 * h + 16 * i + 28 * 16) + 4 * tokens
    held = 10 * 4 * h * dims.layers + 1.3 * 1.8 * kept if checkpointing else (dims.layers + 0.3) * 1.8 * kept
    assert parts.activations == pytest.approx(held * tokens, rel=1e-6)
    head = 33 * 32_000 * tokens + 6 * h * tokens
    assert parts.head == pytest.approx(max(0, head - (1.3 if checkpointing else 0.3) * 1.8 * kept * tokens), rel=1e-6)
    assert parts.total == sum(parts.by_name().values())


def test_a_peak_that_was_measured_of_a_process_comes_out_again() -> None:
    cpu = this_cpu()
    config = TrainConfig("lora", checkpointing=False, adapter_dtype="fp32", dtype="fp32")
    plain = forecast(read_dims("llama-7b"), ALPACA, config, cpu)
    measured = round(1.2 * plain.peak_bytes) - plain.parts.libraries
    row = measured_against(plain, tokens_per_second=9.0, peak_bytes=measured, steps=20, versions={})
    after = apply(plain, [row])
    assert after.memory_measured and after.peak_bytes == pytest.approx(1.2 * plain.peak_bytes, abs=10)
    assert after.parts.libraries == plain.parts.libraries and after.computes_in == "float32"


def test_measurements_are_kept_newest_first_one_of_each_kind(file: Path) -> None:
    assert corrections(file) == []
    first = measured_against(
        uncorrected(), tokens_per_second=1000, peak_bytes=10**10, steps=20, versions={"torch": "2.11"}
    )
    other = measured_against(
        uncorrected(replace(CONFIG, method="lora")), tokens_per_second=900, peak_bytes=None, steps=20, versions={}
    )
    again = replace(first, tokens_per_second=1100, measured_at="2099-01-01T00:00:00+00:00")
    for one in (first, other, again):
        assert record(one, file) == file
    assert corrections(file) == [again, other]
    assert sorted(path.name for path in file.parent.iterdir()) == ["cards.json", "cards.json.lock"]


def test_the_environment_sets_where_measurements_are_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = measured_against(uncorrected(), tokens_per_second=1000, peak_bytes=None, steps=20, versions={})
    monkeypatch.delenv("ALPASIFT_CALIBRATION", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert record(one) == tmp_path / "alpasift" / "cards.json"
    monkeypatch.setenv("ALPASIFT_CALIBRATION", str(tmp_path / "mine.json"))
    assert corrections() == [] and record(one) == tmp_path / "mine.json" and corrections() == [one]


def test_measurements_of_release_0_1_correct_the_forecast_of_the_same_kind() -> None:
    """Its cards.json is in tests/data/release_0_1_0: dimensions, method and variant are still named as in it."""
    (row,) = corrections(ROOT / "tests" / "data" / "release_0_1_0" / "training" / "cards.json")
    config = TrainConfig("qlora", 4, 1024, checkpointing=False, dropout=0.05, optimizer="adamw_8bit")
    workload = Workload(lengths_of([60] * 500, [60] * 500, 512, "counted manually"))
    plain = forecast(SMALL, workload, config, card_named("rtx-4090"))
    assert plain.tokens_per_second == row.forecast_tokens_per_second
    after = apply(plain, [row])
    assert after.tokens_per_second == pytest.approx(2_500)
    assert after.memory_measured and after.parts.reserved == pytest.approx(21_000_000_000, abs=10)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"form": 2, "corrections": []}', '{"form": 1, "corrections": [{"card": "t4"}]}']
)
def test_a_file_that_cannot_be_read_is_named_and_a_new_measurement_puts_it_aside(file: Path, text: str) -> None:
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(CalibrationError, match=r"cards\.json (is|has) .*; delete it to continue") as caught:
        corrections(file)
    assert "\n" not in str(caught.value)
    one = measured_against(uncorrected(), tokens_per_second=1000, peak_bytes=None, steps=20, versions={})
    record(one, file)
    assert corrections(file) == [one] and file.with_name("cards.json.broken").read_text() == text


def test_a_measurement_that_makes_no_sense_is_not_kept(file: Path) -> None:
    one = measured_against(uncorrected(), tokens_per_second=float("nan"), peak_bytes=None, steps=20, versions={})
    for bad in (one, replace(one, tokens_per_second=0.0)):
        with pytest.raises(TrainError, match="cannot be stored"):
            record(bad, file)
    assert not file.exists()
