"""Recipes and methods: how long a paper trains and by which schedule, and, separately, which weights are trained.

A recipe is epochs (or steps), examples per step, maximum length and schedule, as its paper has them. A method is what
is trained: all weights, or an adapter beside frozen ones; it sets the learning rate. Call `settle` for the settings of
a training; every value is printed before it begins and can be given as an option. Arithmetic only; no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from alpasift.train.artifacts import TrainError
from alpasift.train.data import Template
from alpasift.train.fit.train_config import METHODS, Method
from alpasift.train.held_out import usual_rows
from alpasift.train.models import Precision

Schedule = Literal["cosine", "linear", "constant"]
ALL_LINEAR = "all-linear"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a paper fixes.

    rates              the learning rate of each method
    small              (below this many examples, this batch), where the paper has it
    steps_by_examples  optimizer steps by the number of examples, where the paper trains by steps instead of epochs
    final_rate_share   of the peak learning rate, at the end of a linear schedule
    remarks            what a user should know
    """

    name: str
    source: str
    rates: Mapping[Method, float]
    epochs: float = 3
    batch: int = 128
    small: tuple[int, int] | None = None
    steps_by_examples: Mapping[int, int] | None = None
    max_length: int = 512
    schedule: Schedule = "cosine"
    final_rate_share: float = 0.0
    warmup_share: float = 0.03
    weight_decay: float = 0.0
    beta2: float = 0.999
    attention_dropout: float = 0.0
    rank: int = 16
    alpha: int = 32
    lora_dropout: float = 0.0
    targets: str = ALL_LINEAR
    remarks: tuple[str, ...] = ()


_RATES: dict[Method, float] = {"full": 2e-5, "lora": 2e-4, "qlora": 2e-4}
_HALF: dict[Method, float] = {"full": 1e-5, "lora": 1e-4, "qlora": 1e-4}

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("alpagasus-7b", "Chen et al. 2023, arXiv 2307.08701, Table 5 and its code", _RATES),
        Recipe("alpagasus-13b", "Chen et al. 2023, arXiv 2307.08701, Table 5 and its code", _HALF, epochs=5),
        Recipe("alpaca", "Taori et al. 2023, Stanford Alpaca, 7B", _RATES),
        Recipe(
            "humpback",
            "Li et al. 2023, arXiv 2308.06259, section 3.1 and Table 18",
            _HALF,
            batch=32,
            small=(3_000, 8),
            steps_by_examples={
                100: 30,
                800: 300,
                1_600: 600,
                3_200: 500,
                6_400: 600,
                12_800: 600,
                25_600: 1_200,
                51_200: 1_600,
            },
            max_length=1_024,
            schedule="linear",
            final_rate_share=0.9,
            warmup_share=0.0,
            weight_decay=0.1,
            beta2=0.95,
            attention_dropout=0.1,
            remarks=(
                "maximum length, warm-up and beta2 are not in the paper: 1,024, none and .95 (from a public "
                "reimplementation) are used",
                "the paper's dropout of .1 is applied to attention, the only dropout of a Llama model",
            ),
        ),
        Recipe(
            "ag2-qlora",
            "the public QLoRA settings of AlpaGasus2 (README, 7B)",
            {"full": 2e-5, "lora": 2e-5, "qlora": 2e-5},
            rank=8,
            alpha=32,
            lora_dropout=0.05,
            targets="q_proj,v_proj",
            remarks=(
                "a learning rate of 2e-5 is that of full fine-tuning, a tenth of the usual rate for "
                "an adapter: --learning-rate 2e-4",
                "its table has a maximum length of 256, its command 512: 512 is used",
                "its script left out the end of text and trained on prompts too: neither is done here",
            ),
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting of one training. The field names are the keys of "settings" in run.json.

    steps              None trains `epochs`
    targets            of the adapter: "all-linear" or layer names joined by commas
    pack_length        tokens of a packed row; None pads each example to a row of its own
    precision          of the computation
    adapter_precision  of the adapter's weights: bf16 or fp32
    master_weights     method full keeps float32 weights beside the computation
    held_out           rows that are not trained on, on which the loss is measured
    """

    recipe: str
    method: Method
    epochs: float
    steps: int | None
    batch: int
    max_length: int
    learning_rate: float
    final_rate_share: float
    schedule: Schedule
    warmup_share: float
    weight_decay: float
    beta2: float
    attention_dropout: float
    rank: int
    alpha: int
    lora_dropout: float
    targets: str
    template: Template = "alpaca"
    seed: int = 0
    micro_batch: int = 1
    pack_length: int | None = 2_048
    checkpointing: bool = True
    precision: Precision = "bf16"
    adapter_precision: Precision = "bf16"
    master_weights: bool = True
    optimizer: str = "adamw"
    max_grad_norm: float = 1.0
    attention: str = "sdpa"
    held_out: int = 0
    remarks: tuple[str, ...] = field(default=(), compare=False)

    def facts(self) -> dict[str, Any]:
        """Everything that can change what is trained, as JSON has it. Without held-out rows they are not named, as in
        trainings of earlier releases."""
        unnamed = ("remarks",) if self.held_out else ("remarks", "held_out")
        return {k: v for k, v in asdict(self).items() if k not in unnamed}

    @property
    def target_names(self) -> str | tuple[str, ...]:
        return ALL_LINEAR if self.targets == ALL_LINEAR else tuple(self.targets.split(","))


def settle(recipe: str, method: Method, examples: int, **given: Any) -> Settings:
    """The settings of a recipe with a method for this many examples; `given` values that are not None override both.

    `pack_length` None is a value too: no packing. `held_out` is rows, or below 1 the share of the rows. Raises
    TrainError for an unknown recipe or method and for values that cannot be used.
    """
    if recipe not in RECIPES:
        raise TrainError(f"unknown recipe {recipe!r}; choose from {', '.join(RECIPES)}")
    if method not in METHODS:
        raise TrainError(f"unknown method {method!r}; choose from {', '.join(METHODS)}")
    r = RECIPES[recipe]
    batch = r.small[1] if r.small and examples < r.small[0] else r.batch
    remarks = list(r.remarks)
    found = Settings(
        recipe,
        method,
        epochs=r.epochs,
        steps=_steps(r, examples),
        batch=batch,
        max_length=r.max_length,
        learning_rate=r.rates[method],
        final_rate_share=r.final_rate_share,
        schedule=r.schedule,
        warmup_share=r.warmup_share,
        weight_decay=r.weight_decay,
        beta2=r.beta2,
        attention_dropout=r.attention_dropout,
        rank=r.rank,
        alpha=r.alpha,
        lora_dropout=r.lora_dropout,
        targets=r.targets,
    )
    chosen = {name: value for name, value in given.items() if value is not None or name == "pack_length"}
    chosen["held_out"] = _held_out(chosen.get("held_out"), examples)
    if "epochs" in chosen and "steps" not in chosen:
        chosen["steps"] = None
    if chosen.get("precision") == "fp16" and method != "full":
        chosen.setdefault("adapter_precision", "fp32")
    found = replace(found, **chosen)
    _check(found)
    if found.method != "full" and found.learning_rate < 5e-5 and not any("learning rate" in text for text in remarks):
        remarks.append(f"a learning rate of {found.learning_rate:g} is low for an adapter; 1e-4 to 2e-4 is usual")
    return replace(found, remarks=tuple(remarks))


def _steps(recipe: Recipe, examples: int) -> int | None:
    """Steps of the entry of the paper's table whose number of examples is nearest in ratio."""
    if recipe.steps_by_examples is None:
        return None
    nearest = min(recipe.steps_by_examples, key=lambda n: abs(math.log(n / max(1, examples))))
    return recipe.steps_by_examples[nearest]


def _held_out(wanted: float | None, examples: int) -> int:
    """How many rows are held out: as many as asked for, or that share of them, or by default."""
    if wanted is None:
        return usual_rows(examples)
    if not 0 <= wanted < math.inf or (wanted >= 1 and wanted != int(wanted)):
        raise TrainError(f"--hold-out {wanted:g}: give a number of rows, or below 1 a share of them; 0 is none")
    return int(wanted) if wanted >= 1 else math.ceil(wanted * examples)


def _check(settings: Settings) -> None:
    """Raise TrainError for a value that cannot be used."""
    for name, allowed in (("template", Template), ("precision", Precision), ("adapter_precision", Precision)):
        value = getattr(settings, name)
        if value not in get_args(allowed):
            raise TrainError(f"{name} is {value!r}; choose from {', '.join(get_args(allowed))}")
    for name in ("epochs", "batch", "max_length", "learning_rate", "rank", "alpha", "micro_batch"):
        value = getattr(settings, name)
        if not (value > 0 and math.isfinite(value)):
            raise TrainError(f"{name} is {value}; must be above 0")
    if settings.pack_length is not None and settings.pack_length < settings.max_length:
        raise TrainError(
            f"rows of {settings.pack_length} tokens cannot hold an example of {settings.max_length}; raise "
            "--pack-length or lower --max-length"
        )
    if settings.steps is not None and settings.steps < 1:
        raise TrainError(f"steps is {settings.steps}; must be 1 or more")
    if not 0 <= settings.seed < 2**32:
        raise TrainError(f"seed is {settings.seed}; must be from 0 to 4,294,967,295")
    if settings.precision == "fp16" and settings.method != "full" and settings.adapter_precision != "fp32":
        raise TrainError(
            "fp16 needs float32 adapters, as small gradients underflow otherwise: --adapter-precision fp32"
        )
    if settings.precision == "fp16" and settings.method == "full" and not settings.master_weights:
        raise TrainError("fp16 needs float32 master weights; remove --pure")


def rate_at(step: int, steps: int, settings: Settings) -> float:
    """The learning rate of step `step`, counted from 0, of `steps`.

    Rises linearly over the first warmup_share of the steps, then falls by the schedule: cosine to 0 (Loshchilov and
    Hutter 2017, arXiv 1608.03983), linear to final_rate_share of the peak, or not at all.
    """
    warmup = math.ceil(settings.warmup_share * steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    along = (step - warmup) / max(1, steps - warmup)
    share = {
        "cosine": 0.5 * (1 + math.cos(math.pi * along)),
        "linear": 1 - along * (1 - settings.final_rate_share),
        "constant": 1.0,
    }[settings.schedule]
    return settings.learning_rate * share
