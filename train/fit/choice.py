"""Which configuration to train in on a card, and why. Call `choose`; when none fits, `NothingFits` has the advice.

    configurations --forecasts on a sample--> choose --the fastest, on all examples--> Choice | NothingFits

Knows forecasts and cards; reads no file but the presets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Literal

from alpasift.train.artifacts import TrainError
from alpasift.train.fit.cards import GIB, Card, usable_bytes
from alpasift.train.fit.forecast import Forecast, forecast
from alpasift.train.fit.model_dims import PRESETS, ModelDims, read_dims
from alpasift.train.fit.train_config import METHODS, OPTIMIZERS, Method, TrainConfig
from alpasift.train.fit.workload import Lengths, Workload, lay_out

MICRO_BATCHES = (1, 2, 4, 8, 16)
PACK_LENGTHS = (512, 1024, 2048, 4096)
ANY_METHOD = TrainConfig("lora")
"""Nothing asked for but the defaults: rank 16 on all linear layers, no dropout, one card."""
_SAMPLE = 2_560  # examples that configurations are compared on
_SOLD_GB = (8, 12, 16, 24, 32, 40, 48, 80, 141)
_TITLE = {"full": "a full fine-tune", "lora": "LoRA", "qlora": "QLoRA"}

Correct = Callable[[Forecast], Forecast]
"""What a calibration makes of a forecast."""


class NothingFits(TrainError):
    """No configuration fits the card (exit code 3). `nearest` is the smallest; the message names what would fit."""

    def __init__(self, message: str, nearest: Forecast, card_gb: int | None, smaller_model: str | None) -> None:
        super().__init__(message)
        self.nearest = nearest
        self.card_gb = card_gb
        self.smaller_model = smaller_model


@dataclass(frozen=True, slots=True)
class Choice:
    """The configuration to take, why, and all that were compared, on a sample of the examples."""

    chosen: Forecast
    reason: str
    considered: tuple[Forecast, ...] = field(repr=False)


def choose(
    dims: ModelDims,
    workload: Workload,
    card: Card,
    *,
    methods: Sequence[Method] = ("lora", "qlora"),
    shared: TrainConfig = ANY_METHOD,
    usd_per_hour: Decimal | None = None,
    correct: Correct = lambda one: one,
    considered: Sequence[Forecast] | None = None,
) -> Choice:
    """The first of `methods` that fits the card, in its fastest configuration.

    Among those within 2 % of the fastest, the one with the smallest peak. Fitting means that the peak and its margin
    are within the card's usable memory. A full fine-tune gives up Adam's 32-bit moments before its 32-bit weights.
    `shared` holds what is not chosen: rank, targets, dropout, head, cards. `considered` is what `configurations` gave
    for the same arguments, if at hand. Raises NothingFits.
    """
    if considered is None:
        considered = configurations(
            dims, workload, card, methods, shared=shared, usd_per_hour=usd_per_hour, correct=correct
        )
    considered = tuple(one for one in considered if one.config.method in methods)
    left = [one for one in considered if one.fits]
    while left:
        first = min(_preference(one, methods) for one in left)
        preferred = [one for one in left if _preference(one, methods) == first]
        best = min(one.effort for one in preferred)
        close = [one for one in preferred if one.effort <= 1.02 * best]
        quick = min(close, key=lambda one: (one.peak_bytes, one.effort))
        exact = correct(forecast(dims, workload, quick.config, card, usd_per_hour=usd_per_hour))
        if exact.fits:
            return Choice(exact, _reason(exact, considered, methods), considered)
        left.remove(quick)
        considered = tuple(exact if one is quick else one for one in considered)
    raise _nothing_fits(dims, workload, card, methods, considered, shared)


def configurations(
    dims: ModelDims,
    workload: Workload,
    card: Card,
    methods: Sequence[Method] = METHODS,
    *,
    shared: TrainConfig = ANY_METHOD,
    usd_per_hour: Decimal | None = None,
    correct: Correct = lambda one: one,
) -> tuple[Forecast, ...]:
    """A forecast of each method, with and without checkpointing, over micro-batches and row lengths.

    Laid out from a sample where there are many examples: 2,560, or four steps.
    """
    sample = max(_SAMPLE, 4 * workload.batch)
    made = []
    for pack_length in pack_lengths(dims, workload.lengths):
        for micro_batch in MICRO_BATCHES:
            rows = replace(shared, micro_batch=micro_batch, pack_length=pack_length)
            layout = lay_out(workload, rows, sample)
            for config in _variants(methods, card, rows):
                made.append(correct(forecast(dims, workload, config, card, layout=layout, usd_per_hour=usd_per_hour)))
    return tuple(made)


def pack_lengths(dims: ModelDims, lengths: Lengths) -> tuple[int, ...]:
    """Row lengths that hold the longest example and for which the model has positions. Raises TrainError if none."""
    longest = max(lengths.tokens)
    if longest > dims.max_positions:
        raise TrainError(
            f"the longest example has {longest:,} tokens and {dims.name} has {dims.max_positions:,} positions; "
            f"truncate examples with --max-length {dims.max_positions}"
        )
    # The tokenizer may count more than the forecast did, so a row must hold max_length.
    held = max(longest, min(lengths.max_length, dims.max_positions))
    usual = tuple(size for size in PACK_LENGTHS if held <= size <= dims.max_positions)
    return usual or (min(-(-held // 512) * 512, dims.max_positions),)


def best_of_each(considered: Sequence[Forecast]) -> list[Forecast]:
    """Of each method, with and without checkpointing, the fastest that fits, else the smallest."""

    def rank(one: Forecast) -> tuple[bool, bool, float, int]:
        config = one.config
        return not config.master_weights, config.optimizer != "adamw", one.effort, one.peak_bytes

    groups: dict[tuple[str, bool], list[Forecast]] = {}
    for one in considered:
        groups.setdefault((one.config.method, one.config.checkpointing), []).append(one)
    best = []
    for group in groups.values():
        fitting = [one for one in group if one.fits]
        best.append(min(fitting, key=rank) if fitting else min(group, key=lambda one: one.needed_bytes))
    return best


def _variants(methods: Sequence[Method], card: Card, shared: TrainConfig) -> list[TrainConfig]:
    """Each method with and without checkpointing, a full fine-tune also by optimizer and precision.

    Without bf16 a card computes in fp16, and trained parameters are float32: fp16 would lose small updates. On a
    processor all is float32, as `train` has it there, so that its measurements are found again.
    """
    dtype: Literal["bf16", "fp16", "fp32"] = "fp32" if card.is_cpu else "bf16" if card.bf16 else "fp16"
    shared = replace(shared, dtype=dtype, adapter_dtype="bf16" if dtype == "bf16" else "fp32")
    made = []
    for method in methods:
        kinds = [replace(shared, method=method)]
        if method == "full":
            float32 = replace(shared, method=method, adapter_dtype="fp32")
            kinds = [replace(kind, optimizer=name) for kind in dict.fromkeys([float32, *kinds]) for name in OPTIMIZERS]
        made += [replace(kind, checkpointing=recompute) for kind in kinds for recompute in (False, True)]
    return made


def _preference(one: Forecast, methods: Sequence[Method]) -> tuple[int, int, int]:
    """What counts before speed, the lowest first: the order of the methods, 32-bit weights, 32-bit moments."""
    config = one.config
    return (
        methods.index(config.method),
        int(config.method == "full" and not config.master_weights),
        int(config.optimizer != "adamw"),
    )


def _reason(chosen: Forecast, considered: Sequence[Forecast], methods: Sequence[Method]) -> str:
    """Why this one: the method, checkpointing, then what the alternatives would take."""
    config, card = chosen.config, chosen.card
    reasons = []
    before = methods[: methods.index(config.method)]
    if before:
        least = min((one for one in considered if one.config.method in before), key=lambda one: one.needed_bytes)
        reasons.append(f"{_TITLE[least.config.method]} would need {_gib(least.needed_bytes)} with its margin")
    elif config.method == "lora" and "qlora" in methods:
        reasons.append(f"the {'32' if card.is_cpu else '16'}-bit weights fit, so 4-bit quantisation is not needed")
    if config.method == "full" and not config.master_weights:
        reasons.append("only pure bf16 weights fit, which lose small updates (--pure)")
    if config.optimizer == "adamw_8bit":
        reasons.append("only 8-bit AdamW moments fit")
    same = [one for one in considered if _preference(one, methods) == _preference(chosen, methods)]
    other = [one for one in same if one.config.checkpointing != config.checkpointing]
    if config.checkpointing and not any(one.fits for one in other):
        least = min(other, key=lambda one: one.needed_bytes)
        reasons.append(f"without checkpointing it would need {_gib(least.needed_bytes)} with its margin")
    elif not config.checkpointing:
        reasons.append("it fits without checkpointing, which would recompute every layer")
    reasons.append(
        f"of {sum(one.fits for one in same)} such configurations that fit in {_gib(card.usable_bytes)}, this is the "
        "smallest within 2 % of the fastest"
    )
    return "; ".join(reasons)


def _nothing_fits(
    dims: ModelDims,
    workload: Workload,
    card: Card,
    methods: Sequence[Method],
    considered: Sequence[Forecast],
    shared: TrainConfig,
) -> NothingFits:
    """The smallest configuration, and what would fit: another method, a larger card, a smaller model."""
    nearest = min(considered, key=lambda one: (one.needed_bytes, one.effort))
    card_gb = next((size for size in _SOLD_GB if nearest.needed_bytes <= usable_bytes(size)), None)
    smaller = next(
        (
            model.name
            for model in sorted(map(read_dims, PRESETS), key=lambda model: -model.parameters)
            if model.parameters < dims.parameters and _smallest_fits(model, workload, card, methods, shared)
        ),
        None,
    )
    ways = []
    if "qlora" not in methods and _smallest_fits(dims, workload, card, ("qlora",), shared):
        ways.append("--method qlora fits")
    ways.append(f"a {card_gb} GB GPU is enough" if card_gb else "no single GPU is large enough")
    if smaller:
        ways.append(f"{smaller} fits")
    message = (
        f"nothing fits: {dims.name} on {card.label} with {_gib(card.usable_bytes)} usable; the smallest configuration, "
        f"{nearest.config.describe()}, needs {_gib(nearest.needed_bytes)} ({_gib(nearest.peak_bytes)} plus "
        f"{nearest.margin:.0%}); {', '.join(ways)}"
    )
    return NothingFits(message, nearest, card_gb, smaller)


def _smallest_fits(
    dims: ModelDims, workload: Workload, card: Card, methods: Sequence[Method], shared: TrainConfig
) -> bool:
    """Whether a micro-batch of one row fits by one of the methods."""
    if max(workload.lengths.tokens) > dims.max_positions:
        return False
    row = replace(shared, micro_batch=1, pack_length=pack_lengths(dims, workload.lengths)[0])
    layout = lay_out(replace(workload, epochs=1), row, _SAMPLE)
    variants = _variants(methods, card, row)
    return any(forecast(dims, workload, config, card, layout=layout).fits for config in variants)


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
