"""The settings of a training on this machine: the recipe, what was given, and for the rest what fits its card.

Call `settings_for_machine`. No torch is imported: the card is asked by `nvidia-smi`, lengths come from tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpasift.graders import Example
from alpasift.train.artifacts import TrainError
from alpasift.train.fit.calibration import CalibrationError, apply, corrections
from alpasift.train.fit.cards import Card, NoCard, cpu_has_bf16, found_card, this_cpu
from alpasift.train.fit.choice import choose
from alpasift.train.fit.forecast import Forecast
from alpasift.train.fit.model_dims import ModelDims, read_dims
from alpasift.train.fit.train_config import Method, TrainConfig
from alpasift.train.fit.workload import Workload, lengths_of
from alpasift.train.recipes import RECIPES, Settings, settle
from alpasift.train.token_counts import count_tokens

CPU_PACK_LENGTH = 512
"""On a processor the mask of longer rows costs more than they save: benchmarks/packing.py."""
_CHOSEN = ("micro_batch", "checkpointing", "precision", "adapter_precision", "optimizer", "master_weights")
"""What is chosen by what fits, with pack_length, where it is not given."""


@dataclass(frozen=True, slots=True)
class MachineSettings:
    """Settled settings, the card they were chosen for, the model's dimensions, and why.

    dims   None for a model that the forecast does not cover: it is trained as given, without a forecast
    """

    settings: Settings
    card: Card
    dims: ModelDims | None
    reason: str


def settings_for_machine(
    base: Path,
    examples: Sequence[Example],
    recipe: str,
    method: Method | None,
    given: Mapping[str, Any],
    *,
    started: Mapping[str, Any] | None = None,
    cards: int = 1,
) -> MachineSettings:
    """The settings to train with.

    `given` are settings by name; None leaves one open, `pack_length` 0 means no packing. `started` are the settings of
    the training that is resumed: what was chosen for it stays chosen. Raises TrainError, of which NothingFits.
    """
    dims, uncovered = _dims_if_covered(base)
    try:
        card = found_card()
    except NoCard:
        card = this_cpu()
    given = _without_open(given)
    if started is not None:
        chosen = {name: started.get(name) for name in (*_CHOSEN, "pack_length")}
        chosen["held_out"] = started.get("held_out", 0)
        settings = settle(recipe, method or started["method"], len(examples), **{**chosen, **given})
        return MachineSettings(settings, card, dims, "as this training started")
    if card.is_cpu:
        longest = given.get("max_length") or RECIPES[recipe].max_length
        fallback = {
            "checkpointing": False,
            "precision": "fp32",
            "adapter_precision": "fp32",
            "pack_length": max(CPU_PACK_LENGTH, longest),
        }
        settings = settle(recipe, method or "lora", len(examples), **{**fallback, **given})
        return MachineSettings(settings, card, dims, "on the processor: nothing was chosen by memory")
    if method is not None and {"pack_length", "micro_batch", "checkpointing"} <= set(given):
        precision = {
            "precision": "bf16" if card.bf16 else "fp16",
            "adapter_precision": "bf16" if card.bf16 else "fp32",
        }
        settings = settle(recipe, method, len(examples), **{**precision, **given})
        return MachineSettings(settings, card, dims, "as given")
    if dims is None:
        raise TrainError(
            f"{uncovered}. To train it anyway, give --method, --micro-batch, --pack-length and --checkpointing "
            "or --no-checkpointing"
        )
    return _chosen_by_memory(base, examples, recipe, method, given, card, dims, cards)


def _dims_if_covered(base: Path) -> tuple[ModelDims | None, str]:
    """The model's dimensions, or why the forecast does not cover it."""
    try:
        return read_dims(base), ""
    except TrainError as error:
        return None, str(error)


def _without_open(given: Mapping[str, Any]) -> dict[str, Any]:
    """Only the settings that were given; a `pack_length` of 0 becomes None, which is no packing."""
    found = {name: value for name, value in given.items() if value is not None}
    if found.get("pack_length") == 0:
        found["pack_length"] = None
    return found


def _chosen_by_memory(
    base: Path,
    examples: Sequence[Example],
    recipe: str,
    method: Method | None,
    given: Mapping[str, Any],
    card: Card,
    dims: ModelDims,
    cards: int,
) -> MachineSettings:
    """The fastest configuration that fits the card, with what was given on top."""
    plain = settle(recipe, method or "lora", len(examples), **{"pack_length": 4_096, **given})
    counts = count_tokens(examples, base)
    lengths = lengths_of(counts.prompt, counts.response, plain.max_length, counts.counted_by)
    choice = choose(
        dims,
        Workload(lengths, plain.batch, plain.epochs, plain.seed),
        card,
        methods=(method,) if method else ("lora", "qlora"),
        shared=TrainConfig(
            "lora", rank=plain.rank, targets=plain.target_names, dropout=plain.lora_dropout, cards=cards
        ),
        correct=corrector(),
    )
    config = choice.chosen.config
    fitting = {
        "micro_batch": config.micro_batch,
        "pack_length": config.pack_length,
        "checkpointing": config.checkpointing,
        "precision": config.dtype,
        "adapter_precision": config.adapter_dtype,
        "optimizer": config.optimizer,
        "master_weights": config.master_weights if config.method == "full" else None,
    }
    settings = settle(recipe, config.method, len(examples), **{**fitting, **given})
    return MachineSettings(settings, card, dims, choice.reason)


def corrector() -> Callable[[Forecast], Forecast]:
    """How past trainings correct a forecast; not at all where their file cannot be read, which stops no training."""
    try:
        measurements = corrections()
    except CalibrationError:
        measurements = []
    return lambda forecast: apply(forecast, measurements)


def without_effect(settings: Settings, given: Mapping[str, Any]) -> list[str]:
    """The names of given settings that the method does not use."""
    unused = (
        ["master_weights"]
        if settings.method != "full"
        else ["rank", "alpha", "lora_dropout", "targets", "adapter_precision"]
    )
    return [name for name in unused if given.get(name) is not None]


def slow_precision(machine: MachineSettings) -> str | None:
    """What to know before 16-bit arithmetic on a processor without units for it; None where all is well."""
    s = machine.settings
    if not machine.card.is_cpu or s.precision == "fp32":
        return None
    if s.precision == "bf16" and cpu_has_bf16():
        return None
    return (
        f"{machine.card.label} has no hardware support for {s.precision}, which is then several times slower than "
        f"float32; remove --precision, or give --precision fp32"
    )
