"""Peak memory of a training, by part: arithmetic on a model's dimensions and a configuration. Call `peak`.

h hidden size, q heads x head size (h in most models), kv key heads x head size, i intermediate size, L layers,
V vocabulary, r rank, N tokens of a micro-batch, padding included.

    linear      L(2hq + 2h kv + 3hi)                  embedding = head = Vh; norms (2L + 1)h
    adapters    rL(2(h + q) + 2(h + kv) + 3(h + i))   on all linear layers
    weights     2 bytes a parameter; NF4 0.5159 bytes a linear one with quantised scales (4.127 bits), 0.5625 without
    kept        bytes of a token in a layer, from its forward to its backward pass
                  all weights trained                       20h + 4kv + 8i
                  16-bit adapters without dropout           16h + 4kv + 8i + 14r
                  with dropout, or adapters in float32      36h + 4kv + 10i + 28r     both: 60h + 4kv + 14i + 28r
    moving      with checkpointing     2hLN + max(head, 1.3 x kept x N)      only one layer is kept at a time
                without                kept x L x N + max(head, 0.3 x kept x N)
    head        16VN bytes of logits, their softmax and gradient; in tiles 2 min(N, 4096) min(V, 32768); both + 6hN
    peak        weights + trained + moving + 4hi of unpacked NF4 + 3N^2/rows of attention mask, of all that 6 % more
                with 16-bit weights and 10 % with NF4 for fragmentation, + 0.5 GB of CUDA

In float32 frozen weights take 4 bytes, and so does each of NF4's unpacked; kept is 40h + 16i where all weights are
trained, 32h + 16i + 28r with adapters, 72h + 20i + 28r with dropout. On a processor

    kept        4N more for the mask of the layer, and 1.8 times as much in all: malloc gives back little of it
    head        33 bytes a logit of a tile, 31 in 16 bits: trl's tiles are computed by torch there, not in place
    inputs      10 times as much with checkpointing: each lies between the freed tensors of two layers
    libraries   0.66 GB in place of CUDA's; nothing is added for fragmentation

Kept, parameters and adapters were measured: exact on the CPU (transformers 5.23, peft 0.21). The factors 1.3 and 0.3
and the 0.5 GB reproduce published peaks: docs/fitting.md has the table, and what it misses.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from alpasift.train.fit.model_dims import ModelDims
from alpasift.train.fit.train_config import TrainConfig

_FRAGMENTED = {"qlora": 0.10, "lora": 0.06, "full": 0.06}
"""What the allocator reserves beyond what tensors take. Published ratios: on a T4 1.04 to 1.09 with 16-bit weights and
1.06 to 1.25 with NF4, 1.06 and 1.12 in the middle; on an A100 of 2024 1.17 to 1.32 (docs/fitting.md). All of them
without segments that grow, which `train` asks for."""
_CONTEXT_BYTES = 500_000_000
_NF4_BYTES = {True: 4.127 / 8, False: 4.5 / 8}  # per weight, by whether the scales are quantised too
_LIBRARIES_BYTES = 660_000_000
"""Of a process that has imported torch, transformers, peft, trl and bitsandbytes: 530 MiB, and 100 once it trains."""
_MALLOC, _MALLOC_INPUTS = 1.8, 10
"""glibc's memory over what tensors take: 1.7 to 2.5 times what is kept was measured, and with checkpointing 8 to 10
times the layers' inputs, between which a layer's own tensors come and go (docs/fitting.md)."""
_TILE_BYTES = {"fp32": 33, "bf16": 31, "fp16": 31}
_TOKEN_PARTS = ("activations", "head", "dequantisation", "attention_mask")


@dataclass(frozen=True, slots=True)
class MemoryParts:
    """Peak memory of a card, or of a process without one, in bytes, by part; `total` is what there must be.

    activations    kept for the backward pass, and the layer that is being computed
    head           what the head needs beyond that layer, as the two are not computed at the same time
    libraries      of the process, where a processor trains; a card has `context` instead
    measured       what a calibration found beyond all others; below 0 where the formulas are too high
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
    libraries: int = 0
    measured: int = 0

    def by_name(self) -> dict[str, int]:
        """Bytes of every part that is not 0."""
        return {part.name: size for part in fields(self) if (size := getattr(self, part.name))}

    @property
    def total(self) -> int:
        return sum(self.by_name().values())

    @property
    def fixed(self) -> int:
        """What does not depend on the tokens: weights and trained parameters."""
        return self.weights + self.adapter_or_gradients + self.optimizer

    @property
    def moving(self) -> int:
        """What depends on the micro-batch."""
        return self.activations + self.head + self.dequantisation + self.attention_mask

    @property
    def allocated(self) -> int:
        """What tensors take at the peak: torch.cuda.max_memory_allocated()."""
        return self.fixed + self.moving + self.measured

    @property
    def reserved(self) -> int:
        """What the allocator takes of the card: torch.cuda.max_memory_reserved()."""
        return self.allocated + self.fragmentation

    def with_moving(self, ratio: float, fragmented: float, measured: int) -> MemoryParts:
        """The same with all that depends on tokens scaled, this share of fragmentation, and a measured remainder."""
        scaled = replace(self, measured=measured, **{name: round(getattr(self, name) * ratio) for name in _TOKEN_PARTS})
        return replace(scaled, fragmentation=round(fragmented * (scaled.fixed + scaled.moving)))


def peak(dims: ModelDims, config: TrainConfig, tokens: int, *, processor: bool = False) -> MemoryParts:
    """Bytes by part with micro-batches of at most `tokens` tokens, padding included: rows x the longest row.

    `processor` is whether the memory is the machine's and not a card's.
    """
    trained = trained_parameters(dims, config)
    size = 4 if config.trains_in_float32 else 2
    own = 0 if config.method == "full" else size  # an adapter's own weights; a full fine-tune's are `weights`
    moments = 2.03 if config.optimizer == "adamw_8bit" else 2 * size  # bytes of Adam's two
    number = 4 if config.dtype == "fp32" else 2
    passed = 4 if config.upcast else number
    kept, inputs = kept_per_token(dims, config) * tokens, passed * dims.hidden * dims.layers * tokens
    mask = 0 if config.attention == "flash" else tokens * tokens / config.micro_batch
    if processor:
        kept, inputs = round(_MALLOC * (kept + number * mask)), _MALLOC_INPUTS * inputs
    held, layer = (inputs, 1.3 * kept) if config.checkpointing else (dims.layers * kept, 0.3 * kept)
    parts = MemoryParts(
        weights=round(_weight_bytes(dims, config)),
        adapter_or_gradients=round((own + size) * trained),
        optimizer=round(moments * trained),
        activations=round(held + layer),
        head=round(max(0, _head_bytes(dims, config, tokens, processor) - layer)),
        dequantisation=2 * number * dims.hidden * dims.intermediate if config.method == "qlora" else 0,
        attention_mask=round((1 + number) * mask),
        fragmentation=0,
        context=0 if processor else _CONTEXT_BYTES,
        libraries=_LIBRARIES_BYTES if processor else 0,
    )
    share = 0.0 if processor else _FRAGMENTED[config.method]
    return replace(parts, fragmentation=round(share * (parts.fixed + parts.moving)))


def trained_parameters(dims: ModelDims, config: TrainConfig) -> int:
    """How many parameters get gradients: all, or the adapter's."""
    return dims.parameters if config.method == "full" else dims.adapters(config.rank, config.targets)


def kept_per_token(dims: ModelDims, config: TrainConfig) -> int:
    """Bytes that one layer keeps of one token for its backward pass."""
    h, kv, i, r = dims.hidden, dims.kv, dims.intermediate, config.rank
    if config.dtype == "fp32":
        if config.method == "full":
            return 40 * h + 16 * i
        return (72 * h + 20 * i if config.dropout else 32 * h + 16 * i) + 28 * r
    if config.method == "full":
        return 20 * h + 4 * kv + 8 * i
    float32 = config.adapter_dtype == "fp32"
    if config.dropout and float32:
        return 60 * h + 4 * kv + 14 * i + 28 * r
    if config.dropout or float32:
        return 36 * h + 4 * kv + 10 * i + 28 * r
    return 16 * h + 4 * kv + 8 * i + 14 * r


def _weight_bytes(dims: ModelDims, config: TrainConfig) -> float:
    number = 4 if config.master_weights or config.dtype == "fp32" or config.upcast else 2
    if config.method == "qlora":
        rest = dims.embedding + dims.head + dims.norms + dims.biases
        return _NF4_BYTES[config.double_quant] * dims.linear + number * rest
    return number * dims.parameters


def _head_bytes(dims: ModelDims, config: TrainConfig, tokens: int, processor: bool) -> float:
    if config.head == "fused":
        number = _TILE_BYTES[config.dtype] if processor else 4 if config.dtype == "fp32" else 2
        return number * min(tokens, 4096) * min(dims.vocab, 32768) + 6 * dims.hidden * tokens
    return config.logit_bytes * dims.vocab * tokens + 6 * dims.hidden * tokens
