"""What a fine-tune takes: bytes by part, operations, seconds and dollars, and the configuration that fits a card.

Arithmetic on a model's config.json, the lengths of the examples and a card's figures; no torch, no file but the configs.
A forecast, not a measurement; `train.calibration` corrects it by what a card has done.

h hidden size, q heads x head_dim (h in most models), kv key heads x head_dim, i intermediate size, L layers, V vocabulary,
r rank, N tokens of a micro-batch, padding included.

    linear      L(2hq + 2h kv + 3hi)                  embedding = head = Vh; norms (2L + 1)h
    adapters    rL(2(h + q) + 2(h + kv) + 3(h + i))   on all linear layers
    weights     2 bytes a parameter; NF4 0.5159 bytes a linear one, its scales quantised too (4.127 bits), 0.5625 if not
    kept        bytes of a token in a layer, from its forward to its backward pass
                  all weights trained                       20h + 4kv + 8i
                  16-bit adapters without dropout           16h + 4kv + 8i + 14r
                  with dropout, or adapters in float32      36h + 4kv + 10i + 28r     both: 60h + 4kv + 14i + 28r
    moving      with checkpointing     2hLN + max(head, 1.3 x kept x N)      only one layer is kept at a time
                without                kept x L x N + max(head, 0.3 x kept x N)
    head        16VN bytes of logits, their softmax and gradient; in tiles 2 min(N, 4096) min(V, 32768); both + 6hN
    peak        1.04 (weights + trained + moving + 4hi of unpacked NF4 + 3N^2/rows of attention mask) + 0.5 GB of CUDA

    operations of a token's forward pass   F = 2 linear + 2Vh x share trained + 4 q L x tokens of its row
    passes                                 forward, gradient of the activations, of the weights too where they are trained
                                           (2F, 3F), and one more to compute again what checkpointing did not keep
    NF4                                    2.516 bytes a linear weight are moved in each pass of each micro-batch

Kept, parameters and adapters were measured: exact on the CPU (transformers 5.23, peft 0.21). The factors 1.04, 1.3 and 0.3 and the
0.5 GB reproduce published peaks: docs/fitting.md has the table, and what it misses.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from train.artifacts import TrainError
from train.cards import GIB, Card, usable_bytes
from train.packing import Plan, plan

Method = Literal["full", "lora", "qlora"]
Optimizer = Literal["adamw", "adamw_8bit"]
OPTIMIZERS: tuple[Optimizer, ...] = ("adamw", "adamw_8bit")
Head = Literal["fused", "vanilla"]
Targets = str | tuple[str, ...]
METHODS: tuple[Method, ...] = ("lora", "qlora", "full")
MICRO_BATCHES = (1, 2, 4, 8, 16)
PACK_LENGTHS = (512, 1024, 2048, 4096)
PRESETS = (
    "llama-7b", "llama-13b", "llama-2-7b", "llama-2-13b", "llama-3.1-8b", "mistral-7b", "qwen2.5-7b", "qwen2.5-14b",
)  # fmt: skip
LOAD_SECONDS = 40
"""Reading and quantising 13 GB from a fast disk (10 to 30 s) and warming up (20 s): beside the minutes of training."""
_FRAGMENTED = 0.04
_CONTEXT_BYTES = 500_000_000
_NF4_BYTES = {True: 4.127 / 8, False: 4.5 / 8}  # a weight, by whether the scales are quantised as well
_NF4_MOVED = 2.516  # bytes: 0.516 read and 2 written
_LAYER_SECONDS = 0.001
"""A layer's pass takes this long on any card, its kernels being started one by one. Assumed; LitGPT's 13B on an A100 took 2.4 ms
in micro-batches of 110 tokens. Without it a forecast would call micro-batches of 512 tokens as fast as larger ones everywhere."""
_MARGIN, _UNSURE_MARGIN = 0.10, 0.20
_QUICK_EXAMPLES = 2_560  # that configurations are compared by
_EXACT_EXAMPLES = 10_000
_EXACT_ROWS = 40_000
_SIZES_GB = (8, 12, 16, 24, 32, 40, 48, 80, 141)
_TARGETS = {"q_proj": "hq", "k_proj": "hk", "v_proj": "hk", "o_proj": "qh", "gate_proj": "hi", "up_proj": "hi", "down_proj": "ih"}  # fmt: skip


class NothingFits(TrainError):
    """No configuration fits the card (exit code 3). `nearest` is the smallest; the message says what would take it."""

    def __init__(self, message: str, nearest: Forecast, card_gb: int | None, smaller_model: str | None) -> None:
        super().__init__(message)
        self.nearest = nearest
        self.card_gb = card_gb
        self.smaller_model = smaller_model


# -- a model -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a decoder of Llama's kind. `biases` are all of them, in the whole model; `tied` has no head of its own."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_positions: int
    tied: bool = False
    biases: int = 0
    head_norms: bool = False

    @property
    def q(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def linear(self) -> int:
        """Weights of the matrices that NF4 quantises."""
        return self.layers * self.hidden * (2 * self.q + 2 * self.kv + 3 * self.intermediate)

    @property
    def embedding(self) -> int:
        return self.vocab * self.hidden

    @property
    def head(self) -> int:
        return 0 if self.tied else self.embedding

    @property
    def norms(self) -> int:
        return (2 * self.layers + 1) * self.hidden + (2 * self.head_dim * self.layers if self.head_norms else 0)

    @property
    def parameters(self) -> int:
        return self.linear + self.embedding + self.head + self.norms + self.biases

    @property
    def digest(self) -> str:
        """Names the sizes, whatever the model is called: models of one shape share what was measured of one of them."""
        sizes = {key: value for key, value in asdict(self).items() if key not in ("name", "max_positions")}
        return hashlib.sha256(json.dumps(sizes, sort_keys=True).encode()).hexdigest()[:16]

    def adapters(self, rank: int, targets: str | Sequence[str] = "all-linear") -> int:
        """Parameters of LoRA at this rank on "all-linear" or on layers by name ("q_proj", "v_proj"). Raises TrainError."""
        names = (
            tuple(_TARGETS) if targets == "all-linear" else (targets,) if isinstance(targets, str) else tuple(targets)
        )
        unknown = sorted(set(names) - set(_TARGETS))
        if unknown or not names:
            raise TrainError(
                f"LoRA has no target {unknown[0] if unknown else ''!r}; there are all-linear, {', '.join(_TARGETS)}"
            )
        size = {"h": self.hidden, "q": self.q, "k": self.kv, "i": self.intermediate}
        return rank * self.layers * sum(size[side] for name in names for side in _TARGETS[name])


def shape_of(config: Mapping[str, Any], name: str = "the model") -> Shape:
    """The sizes in a config.json. Raises TrainError that names what is missing, or what the formulas do not cover."""
    kind = str(config.get("model_type", ""))
    experts = next((key for key in ("num_local_experts", "num_experts", "n_routed_experts") if config.get(key)), None)
    if experts:
        raise TrainError(
            f"{name} is a mixture of experts ({experts} {config[experts]}), which the forecast does not cover"
        )
    needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    missing = [key for key in needed if key not in config]
    if missing:
        raise TrainError(
            f"the config of {name}{f', a {kind},' if kind else ''} has no {', '.join(missing)}; the forecast knows models "
            "of Llama's kind: llama, mistral, qwen2 and others with the same keys"
        )
    given = {**config, "num_key_value_heads": config.get("num_key_value_heads") or config["num_attention_heads"]}
    wrong = [key for key in (*needed, "num_key_value_heads") if type(given[key]) is not int or given[key] < 1]
    if wrong:
        raise TrainError(
            f"the config of {name} says {wrong[0]} {given[wrong[0]]!r}; a whole number above 0 belongs there"
        )
    hidden, heads, kv_heads = given["hidden_size"], given["num_attention_heads"], given["num_key_value_heads"]
    layers, intermediate = given["num_hidden_layers"], given["intermediate_size"]
    head_dim = int(config.get("head_dim") or hidden // heads)
    q, kv = heads * head_dim, kv_heads * head_dim
    biases = 0
    if config.get("attention_bias", kind == "qwen2"):
        biases += q + 2 * kv + (0 if kind == "qwen2" else hidden)
    if config.get("mlp_bias"):
        biases += 2 * intermediate + hidden
    return Shape(
        name, hidden, intermediate, layers, heads, kv_heads, head_dim, given["vocab_size"],
        int(config.get("max_position_embeddings") or 2048), bool(config.get("tie_word_embeddings", False)), biases * layers,
        kind == "qwen3",
    )  # fmt: skip


def read_shape(model: str | Path) -> Shape:
    """The shape of a preset by name, or of a folder with a config.json. Raises TrainError."""
    if str(model) in PRESETS:
        text = (resources.files("train") / "presets" / f"{model}.json").read_text("utf-8")
        return shape_of(json.loads(text), str(model))
    path = Path(model)
    file = path / "config.json" if path.is_dir() else path
    if file.name != "config.json" or not file.is_file():
        what = f"{path} has no config.json" if path.is_dir() else f"there is no model folder {model}"
        raise TrainError(f"{what}; give a folder with a config.json, or one of {', '.join(PRESETS)}")
    try:
        config = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TrainError(f"{file} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise TrainError(f"{file} holds no JSON object")
    return shape_of(config, path.absolute().name if path.is_dir() else path.absolute().parent.name)


# -- memory ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Setup:
    """One configuration of a training.

    micro_batch  rows that one card takes at once, of `pack_length` tokens at most (None: one example a row, not packed)
    head         "fused" computes the loss in tiles and never holds all logits; "vanilla" holds them, `logit_bytes` for each
    attention    "sdpa" with a mask that keeps documents apart; "flash" needs none
    dtype        of the computation and the frozen weights; adapter_dtype of what is trained beside them
    cards        that share the examples of a step, each with the whole model
    """

    method: Method
    micro_batch: int = 1
    pack_length: int | None = 512
    checkpointing: bool = True
    rank: int = 16
    targets: Targets = "all-linear"
    dropout: float = 0.0
    adapter_dtype: Literal["bf16", "fp32"] = "bf16"
    optimizer: Optimizer = "adamw"
    head: Head = "fused"
    logit_bytes: float = 16
    double_quant: bool = True
    dtype: Literal["bf16", "fp16"] = "bf16"
    attention: Literal["sdpa", "flash"] = "sdpa"
    cards: int = 1

    @property
    def masters(self) -> bool:
        """Whether all weights are trained and held in float32: fp16 alone would lose small updates."""
        return self.method == "full" and (self.dtype == "fp16" or self.adapter_dtype == "fp32")


@dataclass(frozen=True, slots=True)
class Parts:
    """Peak memory of a card in bytes, by part; `total` is their sum and what a card must have.

    activations    kept for the backward pass, and the layer that is worked on
    head           what the head needs beyond that layer, which is not worked on at the same time
    measured       what a calibration found beside all others; below 0 where the formulas say too much
    """

    weights: int
    adapter_or_gradients: int
    optimizer: int
    activations: int
    head: int
    dequantisation: int
    attention_mask: int
    fragmentation: int
    context: int
    measured: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, part.name) for part in fields(self))

    @property
    def fixed(self) -> int:
        """What does not depend on the tokens: weights and what is trained."""
        return self.weights + self.adapter_or_gradients + self.optimizer

    @property
    def moving(self) -> int:
        return self.activations + self.head + self.dequantisation + self.attention_mask

    @property
    def allocated(self) -> int:
        """What tensors take at the peak: torch.cuda.max_memory_allocated()."""
        return self.fixed + self.moving + self.measured

    @property
    def reserved(self) -> int:
        """What the allocator takes of the card: torch.cuda.max_memory_reserved()."""
        return self.allocated + self.fragmentation

    def with_moving(self, ratio: float, measured: int) -> Parts:
        """The same with all that depends on tokens scaled, the fragmentation with it, and a measured remainder."""
        moving = ("activations", "head", "dequantisation", "attention_mask")
        scaled = replace(self, measured=measured, **{name: round(getattr(self, name) * ratio) for name in moving})
        return replace(scaled, fragmentation=round(_FRAGMENTED * (scaled.fixed + scaled.moving)))


def kept_per_token(shape: Shape, setup: Setup) -> int:
    """Bytes that one layer keeps of one token for its backward pass."""
    h, kv, i, r = shape.hidden, shape.kv, shape.intermediate, setup.rank
    if setup.method == "full":
        return 20 * h + 4 * kv + 8 * i
    wide = setup.adapter_dtype == "fp32"
    if setup.dropout and wide:
        return 60 * h + 4 * kv + 14 * i + 28 * r
    if setup.dropout or wide:
        return 36 * h + 4 * kv + 10 * i + 28 * r
    return 16 * h + 4 * kv + 8 * i + 14 * r


def trained_parameters(shape: Shape, setup: Setup) -> int:
    return shape.parameters if setup.method == "full" else shape.adapters(setup.rank, setup.targets)


def peak(shape: Shape, setup: Setup, tokens: int) -> Parts:
    """Bytes by part with micro-batches of at most `tokens` tokens, padding included: rows x the longest row."""
    trained = trained_parameters(shape, setup)
    rest = shape.embedding + shape.head + shape.norms + shape.biases
    if setup.method == "qlora":
        weights = _NF4_BYTES[setup.double_quant] * shape.linear + 2 * rest
    else:
        weights = (4 if setup.masters else 2) * shape.parameters
    wide = setup.masters or (setup.method != "full" and setup.adapter_dtype == "fp32")
    size = 4 if wide else 2
    own = 0 if setup.method == "full" else size  # an adapter's own weights; a full fine-tune's are `weights`
    states = 2.03 if setup.optimizer == "adamw_8bit" else 2 * size  # the two moments of Adam
    kept, per_layer = kept_per_token(shape, setup) * tokens, 2 * shape.hidden * shape.layers * tokens
    head: float
    held, layer = (per_layer, 1.3 * kept) if setup.checkpointing else (shape.layers * kept, 0.3 * kept)
    if setup.head == "fused":
        head = 2 * min(tokens, 4096) * min(shape.vocab, 32768) + 6 * shape.hidden * tokens
    else:
        head = setup.logit_bytes * shape.vocab * tokens + 6 * shape.hidden * tokens
    mask = 0 if setup.attention == "flash" else 3 * tokens * tokens / setup.micro_batch
    parts = Parts(
        weights=round(weights), adapter_or_gradients=round((own + size) * trained), optimizer=round(states * trained),
        activations=round(held + layer), head=round(max(0, head - layer)),
        dequantisation=4 * shape.hidden * shape.intermediate if setup.method == "qlora" else 0,
        attention_mask=round(mask), fragmentation=0, context=_CONTEXT_BYTES,
    )  # fmt: skip
    return replace(parts, fragmentation=round(_FRAGMENTED * (parts.fixed + parts.moving)))


# -- time --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of each example, prompt and response together, cut to `max_length`.

    trained   tokens of responses, which alone count in the loss
    cut       examples that were longer; `emptied` those whose prompt alone was, so that nothing of them is trained on
    how       where the counts are from, for the user
    """

    tokens: tuple[int, ...]
    trained: int
    cut: int
    max_length: int
    how: str
    emptied: int = 0

    @property
    def total(self) -> int:
        return sum(self.tokens)

    @property
    def trained_share(self) -> float:
        return self.trained / self.total if self.total else 0.0


def lengths_of(prompt: Sequence[int], response: Sequence[int], max_length: int, how: str) -> Lengths:
    """Lengths as the training will see them; examples with no room left for a response are dropped and counted.

    Raises TrainError when none is left.
    """
    pairs = [(p, min(p + r, max_length)) for p, r in zip(prompt, response, strict=True) if p < max_length]
    if not pairs:
        raise TrainError(f"none of {len(prompt):,} examples has a prompt below --max-length {max_length}")
    return Lengths(
        tuple(whole for _, whole in pairs), sum(whole - p for p, whole in pairs),
        sum(p + r > max_length for p, r in zip(prompt, response, strict=True)), max_length, how, len(prompt) - len(pairs),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layout:
    """What a plan of the whole training amounts to. From a sample of the examples where `sampled`."""

    steps: int
    microbatches: int
    rows: int
    tokens: int
    padded_tokens: int
    max_tokens: int
    longest_row: int
    sampled: bool


def lay_out(
    lengths: Lengths, pack_length: int | None, micro_batch: int, *, batch: int = 128, epochs: float = 3, seed: int = 0,
    cards: int = 1, sample: int = _EXACT_EXAMPLES,
) -> Layout:  # fmt: skip
    """Lay the training out; from one epoch of `sample` seeded examples, the longest among them, where there are many."""
    tokens = lengths.tokens
    whole = len(tokens) <= sample and len(tokens) * epochs <= _EXACT_ROWS
    if whole:
        laid = plan(
            tokens, pack_length=pack_length, micro_batch=micro_batch, batch=batch, epochs=epochs, seed=seed, cards=cards
        )
        return _amounts(laid, len(laid.steps), laid.tokens, micro_batch * cards, sampled=False)
    drawn = list(tokens)
    if len(tokens) > sample:
        drawn = [*random.Random(seed).sample(drawn, sample - 1), max(tokens)]
    laid = plan(drawn, pack_length=pack_length, micro_batch=micro_batch, batch=batch, epochs=1, seed=seed, cards=cards)
    per_epoch = -(-len(tokens) // batch)
    steps = max(1, round(epochs * per_epoch))
    return _amounts(laid, steps, round(lengths.total * steps / per_epoch), micro_batch * cards, sampled=True)


def _amounts(laid: Plan, steps: int, tokens: int, at_once: int, *, sampled: bool) -> Layout:
    padded = laid.padded_tokens if not sampled else round(tokens * laid.padded_tokens / laid.tokens)
    rows = steps * laid.microbatches * at_once
    return Layout(steps, laid.microbatches, rows, tokens, padded, laid.max_tokens, laid.longest_row, sampled)


def flops_per_token(shape: Shape, *, trained_share: float, pairs: float) -> float:
    """Operations of one forward pass of one token that looks at `pairs` others. Adapters, below 1 % of it, are left out."""
    return 2 * shape.linear + 2 * shape.embedding * trained_share + 4 * pairs * shape.q * shape.layers


def passes(setup: Setup) -> int:
    """How often all layers are gone through: forward, backward once or, where they are trained, twice, and again."""
    return (3 if setup.method == "full" else 2) + (1 if setup.checkpointing else 0)


def dequantisation_seconds(shape: Shape, setup: Setup, card: Card) -> float:
    """Seconds of each micro-batch that go into unpacking NF4 weights."""
    if setup.method != "qlora" or card.dequant_bytes_per_second is None:
        return 0.0
    return _NF4_MOVED * shape.linear * (3 if setup.checkpointing else 2) / card.dequant_bytes_per_second


def training_seconds(shape: Shape, setup: Setup, card: Card, laid: Layout, trained_share: float, mfu: float) -> float:
    """Seconds of all steps where the card reaches `mfu` of its rate; the card's rate must be known."""
    assert card.flops is not None
    count = laid.steps * laid.microbatches
    at_work = training_flops(shape, setup, laid, trained_share) / setup.cards / count / (card.flops * mfu)
    least = _LAYER_SECONDS * shape.layers * passes(setup)
    return count * (max(at_work, least) + dequantisation_seconds(shape, setup, card))


def training_flops(shape: Shape, setup: Setup, laid: Layout, trained_share: float) -> float:
    """Operations of the whole training on all cards. A masked row computes its attention in full, also between documents."""
    share = 1.0 if setup.head == "vanilla" else trained_share
    forward = flops_per_token(shape, trained_share=share, pairs=laid.padded_tokens / laid.rows)
    return passes(setup) * forward * laid.padded_tokens


# -- a forecast --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Forecast:
    """One configuration of one model on one card. Seconds are None where the card's speed is unknown.

    seconds           of the training steps alone; loading and warming up take about LOAD_SECONDS more
    seconds_fast, seconds_slow   at the highest and the lowest share of its rate that the card may reach
    calibration       which measurement corrected it, "" where none did
    memory_measured   this very combination's peak was measured on this card, with perhaps other micro-batches
    """

    shape: Shape
    setup: Setup
    card: Card
    parts: Parts
    layout: Layout
    flops: float
    seconds: float | None
    seconds_fast: float | None
    seconds_slow: float | None
    usd_per_hour: Decimal | None = None
    calibration: str = ""
    memory_measured: bool = False

    @property
    def peak_bytes(self) -> int:
        return self.parts.total

    @property
    def margin(self) -> float:
        """What must be left above the peak: 20 % for QLoRA without checkpointing until it was measured, else 10 %."""
        unsure = self.setup.method == "qlora" and not self.setup.checkpointing and not self.memory_measured
        return _UNSURE_MARGIN if unsure else _MARGIN

    @property
    def needed_bytes(self) -> int:
        return round(self.peak_bytes * (1 + self.margin))

    @property
    def fits(self) -> bool:
        return self.needed_bytes <= self.card.usable_bytes

    @property
    def tokens_per_second(self) -> float | None:
        """Real tokens, without padding, of all cards together."""
        return self.layout.tokens / self.seconds if self.seconds else None

    @property
    def minutes(self) -> float | None:
        return None if self.seconds is None else self.seconds / 60

    @property
    def usd(self) -> Decimal | None:
        """Dollars for the training steps; None where the hourly rate of the machine or its speed is unknown."""
        if self.usd_per_hour is None or self.seconds is None:
            return None
        return (Decimal(str(self.seconds)) / 3600 * self.usd_per_hour).quantize(Decimal("0.0001"))


def forecast(
    shape: Shape, lengths: Lengths, setup: Setup, card: Card, *, batch: int = 128, epochs: float = 3, seed: int = 0,
    usd_per_hour: Decimal | None = None, laid: Layout | None = None,
) -> Forecast:  # fmt: skip
    """Memory, time and dollars of a configuration. `usd_per_hour` is the machine's, with all its cards.

    `laid` saves laying the examples out."""
    if laid is None:
        laid = lay_out(
            lengths, setup.pack_length, setup.micro_batch, batch=batch, epochs=epochs, seed=seed, cards=setup.cards
        )
    share = lengths.trained_share
    fast = slow = middle = None
    if card.flops is not None:
        low, high = card.mfu
        slow, middle, fast = (
            training_seconds(shape, setup, card, laid, share, mfu) for mfu in (low, (low + high) / 2, high)
        )
    return Forecast(
        shape, setup, card, peak(shape, setup, laid.max_tokens), laid, training_flops(shape, setup, laid, share), middle,
        fast, slow, usd_per_hour,
    )  # fmt: skip


# -- the choice --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Choice:
    """The configuration to take, why, and all that were compared, on a sample of the examples."""

    chosen: Forecast
    reason: str
    considered: tuple[Forecast, ...] = field(repr=False)


def choose(
    shape: Shape, lengths: Lengths, card: Card, *, methods: Sequence[Method] = ("lora", "qlora"), batch: int = 128,
    epochs: float = 3, seed: int = 0, rank: int = 16, targets: Targets = "all-linear", dropout: float = 0.0, cards: int = 1,
    usd_per_hour: Decimal | None = None, head: Head = "fused", correct: Callable[[Forecast], Forecast] | None = None,
    considered: Sequence[Forecast] | None = None,
) -> Choice:  # fmt: skip
    """The first of `methods` that fits the card, in the configuration with the fewest minutes.

    Among those within 2 % of the fastest the one with the smallest peak is taken. Fitting means that the peak and its
    margin are within what the card has to give. A full fine-tune rather gives up Adam's 32-bit moments than its 32-bit
    weights. `correct` is what a calibration makes of a forecast; `considered` what `configurations` gave for these values, if
    that is at hand. Raises NothingFits.
    """
    if considered is None:
        considered = configurations(
            shape, lengths, card, methods, batch=batch, epochs=epochs, seed=seed, rank=rank, targets=targets, dropout=dropout,
            cards=cards, usd_per_hour=usd_per_hour, head=head, correct=correct,
        )  # fmt: skip
    considered = tuple(one for one in considered if one.setup.method in methods)
    left = [one for one in considered if one.fits]
    while left:
        first = min(_tier(one, methods) for one in left)
        tier = [one for one in left if _tier(one, methods) == first]
        best = min(_effort(one) for one in tier)
        close = [one for one in tier if _effort(one) <= 1.02 * best]
        quick = min(close, key=lambda one: (one.peak_bytes, _effort(one)))
        exact = forecast(
            shape, lengths, quick.setup, card, batch=batch, epochs=epochs, seed=seed, usd_per_hour=usd_per_hour
        )
        exact = correct(exact) if correct else exact
        if exact.fits:
            return Choice(exact, _reason(exact, considered, methods), considered)
        left.remove(quick)
        considered = tuple(exact if one is quick else one for one in considered)
    like = Setup("lora", rank=rank, targets=targets, dropout=dropout, head=head, cards=cards)
    raise _nothing(shape, lengths, card, methods, considered, like, batch=batch)


def configurations(
    shape: Shape, lengths: Lengths, card: Card, methods: Sequence[Method] = METHODS, *, batch: int = 128, epochs: float = 3,
    seed: int = 0, rank: int = 16, targets: Targets = "all-linear", dropout: float = 0.0, cards: int = 1,
    usd_per_hour: Decimal | None = None, head: Head = "fused", correct: Callable[[Forecast], Forecast] | None = None,
) -> tuple[Forecast, ...]:  # fmt: skip
    """A forecast of each method, with and without checkpointing, over micro-batches and lengths of a row.

    From a sample of the examples where there are many: 2,560, or four steps.
    """
    like = Setup("lora", rank=rank, targets=targets, dropout=dropout, head=head, cards=cards)
    made = []
    for pack_length in pack_lengths(shape, lengths):
        for micro_batch in MICRO_BATCHES:
            laid = lay_out(
                lengths, pack_length, micro_batch, batch=batch, epochs=epochs, seed=seed, cards=cards,
                sample=max(_QUICK_EXAMPLES, 4 * batch),
            )  # fmt: skip
            for setup in _setups(methods, card, replace(like, micro_batch=micro_batch, pack_length=pack_length)):
                one = forecast(shape, lengths, setup, card, usd_per_hour=usd_per_hour, laid=laid)
                made.append(correct(one) if correct else one)
    return tuple(made)


def pack_lengths(shape: Shape, lengths: Lengths) -> tuple[int, ...]:
    """Rows that hold the longest example and that the model has positions for. Raises TrainError when there are none."""
    longest = max(lengths.tokens)
    held = max(
        longest, min(lengths.max_length, shape.max_positions)
    )  # the tokenizer may count more than the forecast did
    if longest > shape.max_positions:
        raise TrainError(
            f"the longest example has {longest:,} tokens and {shape.name} has {shape.max_positions:,} positions; "
            f"cut them with --max-length {shape.max_positions}"
        )
    usual = tuple(size for size in PACK_LENGTHS if held <= size <= shape.max_positions)
    return usual or (min(-(-held // 512) * 512, shape.max_positions),)


def _setups(methods: Sequence[Method], card: Card, like: Setup) -> list[Setup]:
    """What is left to choose of a configuration: method, checkpointing, and of a full fine-tune its precision.

    Without bf16 a card computes in fp16, and what it trains is kept in float32: fp16 would lose small updates.
    """
    like = replace(like, dtype="bf16" if card.bf16 else "fp16", adapter_dtype="bf16" if card.bf16 else "fp32")
    made = []
    for method in methods:
        kinds = [replace(like, method=method)]
        if method == "full":
            wide = replace(like, method=method, adapter_dtype="fp32")
            kinds = [replace(kind, optimizer=name) for kind in dict.fromkeys([wide, *kinds]) for name in OPTIMIZERS]
        made += [replace(kind, checkpointing=recompute) for kind in kinds for recompute in (False, True)]
    return made


def _tier(one: Forecast, methods: Sequence[Method]) -> tuple[int, int, int]:
    """What goes before speed: the method in the order asked for, then 32-bit weights, then 32-bit moments."""
    setup = one.setup
    return (
        methods.index(setup.method),
        int(setup.method == "full" and not setup.masters),
        int(setup.optimizer != "adamw"),
    )


def _effort(one: Forecast) -> float:
    return one.flops if one.seconds is None else one.seconds


def _reason(chosen: Forecast, considered: Sequence[Forecast], methods: Sequence[Method]) -> str:
    """Why this one: the method, checkpointing, then what it costs to do otherwise."""
    setup, card = chosen.setup, chosen.card
    said = []
    before = methods[: methods.index(setup.method)]
    if before:
        least = min((one for one in considered if one.setup.method in before), key=lambda one: one.needed_bytes)
        said.append(f"{_TITLE[least.setup.method]} would need {_gib(least.needed_bytes)} with its margin")
    elif setup.method == "lora" and "qlora" in methods:
        said.append("the 16-bit weights fit, so nothing is lost to 4 bits or to unpacking them")
    if setup.method == "full" and not setup.masters:
        said.append("its weights fit only in bf16, which loses small updates (--pure)")
    if setup.optimizer == "adamw_8bit":
        said.append("AdamW's moments fit only in 8 bits")
    same = [one for one in considered if _tier(one, methods) == _tier(chosen, methods)]
    other = [one for one in same if one.setup.checkpointing != setup.checkpointing]
    fitting = [one for one in other if one.fits]
    if setup.checkpointing and not fitting:
        least = min(other, key=lambda one: one.needed_bytes)
        said.append(f"without checkpointing it would need {_gib(least.needed_bytes)} with its margin")
    elif not setup.checkpointing:
        said.append("without checkpointing, which computes every layer once more, it fits")
    said.append(
        f"of {sum(one.fits for one in same)} such configurations that fit {_gib(card.usable_bytes)} the smallest within 2 % of "
        "the fastest"
    )
    return "; ".join(said)


_TITLE = {"full": "a full fine-tune", "lora": "LoRA", "qlora": "QLoRA"}


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def _nothing(
    shape: Shape, lengths: Lengths, card: Card, methods: Sequence[Method], considered: Sequence[Forecast],
    like: Setup, *, batch: int,
) -> NothingFits:  # fmt: skip
    """The smallest configuration, and what would take it: another method, a larger card, a smaller model."""

    def smallest(model: Shape, among: Sequence[Method]) -> Forecast | None:
        if max(lengths.tokens) > model.max_positions:
            return None
        pack = pack_lengths(model, lengths)[0]
        laid = lay_out(lengths, pack, 1, batch=batch, epochs=1, cards=like.cards, sample=_QUICK_EXAMPLES)
        setups = _setups(among, card, replace(like, micro_batch=1, pack_length=pack))
        made = [forecast(model, lengths, setup, card, laid=laid) for setup in setups]
        return min(made, key=lambda one: one.needed_bytes)

    nearest = min(considered, key=lambda one: (one.needed_bytes, _effort(one)))
    card_gb = next((size for size in _SIZES_GB if nearest.needed_bytes <= usable_bytes(size)), None)
    smaller = None
    for name in sorted(PRESETS, key=lambda preset: -read_shape(preset).parameters):
        model = read_shape(name)
        least = smallest(model, methods) if model.parameters < shape.parameters else None
        if least is not None and least.fits:
            smaller = name
            break
    ways = []
    easier = smallest(shape, ("qlora",)) if "qlora" not in methods else None
    if easier is not None and easier.fits:
        ways.append("--method qlora fits")
    ways.append(f"a card of {card_gb} GB takes it" if card_gb else "no single card is large enough")
    if smaller:
        ways.append(f"{smaller} fits")
    setup = nearest.setup
    message = (
        f"nothing fits: {shape.name} on {card.label} with {_gib(card.usable_bytes)} to give; the nearest is {describe(setup)}, "
        f"which needs {_gib(nearest.needed_bytes)} ({_gib(nearest.peak_bytes)} and {nearest.margin:.0%}); {', '.join(ways)}"
    )
    return NothingFits(message, nearest, card_gb, smaller)


def describe(setup: Setup) -> str:
    """A configuration in words: "qlora, micro-batch 4 x 1024, with checkpointing"."""
    rows = f"{setup.micro_batch} x {setup.pack_length}" if setup.pack_length else f"{setup.micro_batch} examples"
    pure = ", pure bf16" if setup.method == "full" and not setup.masters else ""
    eight = f"{pure}, AdamW in 8 bits" if setup.optimizer == "adamw_8bit" else pure
    return f"{setup.method}, micro-batch {rows}, {'with' if setup.checkpointing else 'without'} checkpointing{eight}"
