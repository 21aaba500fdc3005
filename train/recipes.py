"""Recipes and methods: how long and how evenly a paper trains, and which weights are trained, chosen apart.

A recipe is epochs (or steps), examples a step, longest length and schedule, as its paper has them. A method is what is
trained: all weights, or an adapter beside frozen ones; it sets the learning rate. Every value of the two is printed before
a training and can be given by hand. Arithmetic only; no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from train.artifacts import TrainError
from train.memory import METHODS, Method

Schedule = Literal["cosine", "linear", "constant"]
ALL_LINEAR = "all-linear"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a paper fixes. `rates` holds the learning rate of each method; `remarks` is what a user should know.

    steps_by_examples  steps of an optimizer by the number of examples, where the paper trains so instead of by epochs
    small              (below this many examples, so many a step), where the paper has it
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
            "humpback", "Li et al. 2023, arXiv 2308.06259, section 3.1 and Table 18", _HALF,
            batch=32, small=(3_000, 8),
            steps_by_examples={
                100: 30, 800: 300, 1_600: 600, 3_200: 500, 6_400: 600, 12_800: 600, 25_600: 1_200, 51_200: 1_600,
            },
            max_length=1_024, schedule="linear", final_rate_share=0.9, warmup_share=0.0, weight_decay=0.1, beta2=0.95,
            attention_dropout=0.1,
            remarks=(
                "longest length, warm-up and beta2 are not in the paper: 1,024, none and .95 (of its public reimplementation)",
                "the paper's dropout of .1 is that of attention, the only place where a Llama has one",
            ),
        ),
        Recipe(
            "ag2-qlora", "the public QLoRA settings of AlpaGasus2 (README, 7B)", {"full": 2e-5, "lora": 2e-5, "qlora": 2e-5},
            rank=8, alpha=32, lora_dropout=0.05, targets="q_proj,v_proj",
            remarks=(
                "a learning rate of 2e-5 is that of full fine-tuning, a tenth of what suits an adapter: --learning-rate 2e-4",
                "its table says a longest length of 256, its command 512: 512 is taken",
                "its script left out the end of text and trained on prompts too: neither is repeated here",
            ),
        ),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """One training, settled: nothing here is "as the recipe has it" any more.

    `steps` None trains `epochs`; `pack_length` None pads instead of packing. `precision` is that of the computation: bf16,
    fp16 or fp32; `master_weights` keeps trained weights of method full in 32 bits beside it. `adapter_precision` is bf16 or
    fp32. `targets` is "all-linear" or names joined by commas.
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
    template: str = "alpaca"
    seed: int = 0
    micro_batch: int = 1
    pack_length: int | None = 2_048
    checkpointing: bool = True
    precision: str = "bf16"
    adapter_precision: str = "bf16"
    master_weights: bool = True
    optimizer: str = "adamw"
    max_grad_norm: float = 1.0
    attention: str = "sdpa"
    remarks: tuple[str, ...] = field(default=(), compare=False)

    def facts(self) -> dict[str, Any]:
        """Everything that can change what is trained, as JSON has it."""
        return {k: v for k, v in asdict(self).items() if k != "remarks"}

    @property
    def target_names(self) -> str | tuple[str, ...]:
        return ALL_LINEAR if self.targets == ALL_LINEAR else tuple(self.targets.split(","))


def settle(recipe: str, method: Method, examples: int, **given: Any) -> Settings:
    """A recipe with a method for so many examples; what is `given` and not None goes before both.

    Raises TrainError for an unknown recipe or method and for values that cannot be.
    """
    if recipe not in RECIPES:
        raise TrainError(f"there is no recipe {recipe!r}; there are {', '.join(RECIPES)}")
    if method not in METHODS:
        raise TrainError(f"there is no method {method!r}; there are {', '.join(METHODS)}")
    r = RECIPES[recipe]
    batch = r.small[1] if r.small and examples < r.small[0] else r.batch
    remarks = list(r.remarks)
    found = Settings(
        recipe, method, r.epochs, _steps(r, examples), batch, r.max_length, r.rates[method], r.final_rate_share, r.schedule,
        r.warmup_share, r.weight_decay, r.beta2, r.attention_dropout, r.rank, r.alpha, r.lora_dropout, r.targets,
    )  # fmt: skip
    chosen = {name: value for name, value in given.items() if value is not None or name == "pack_length"}
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
    """Steps by the entry of the paper's table that is nearest in ratio."""
    if recipe.steps_by_examples is None:
        return None
    nearest = min(recipe.steps_by_examples, key=lambda n: abs(math.log(n / max(1, examples))))
    return recipe.steps_by_examples[nearest]


def _check(settings: Settings) -> None:
    for name in ("epochs", "batch", "max_length", "learning_rate", "rank", "alpha", "micro_batch"):
        value = getattr(settings, name)
        if not (value > 0 and math.isfinite(value)):
            raise TrainError(f"{name} is {value}; it must be above 0")
    if settings.pack_length is not None and settings.pack_length < settings.max_length:
        raise TrainError(
            f"rows of {settings.pack_length} tokens cannot hold an example of {settings.max_length}; raise --pack-length or "
            "lower --max-length"
        )
    if settings.steps is not None and settings.steps < 1:
        raise TrainError(f"steps is {settings.steps}; it must be 1 or more")
    if not 0 <= settings.seed < 2**32:
        raise TrainError(f"seed is {settings.seed}; it must be from 0 to 4,294,967,295")
    if settings.precision == "fp16" and settings.method != "full" and settings.adapter_precision != "fp32":
        raise TrainError(
            "fp16 needs adapters in 32 bits, its small gradients are lost otherwise: --adapter-precision fp32"
        )
    if settings.precision == "fp16" and settings.method == "full" and not settings.master_weights:
        raise TrainError("fp16 needs its trained weights in 32 bits beside it; leave out --pure")


def rate_at(step: int, steps: int, settings: Settings) -> float:
    """The learning rate of step `step`, counted from 0, of `steps`.

    Rises linearly over the first warmup_share of the steps, then falls as the schedule says: cosine to 0 (Loshchilov and
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
