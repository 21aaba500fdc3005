"""Operations and seconds of a training: arithmetic on dimensions, a layout and a card's rates.

    operations of a token's forward pass   F = 2 linear + 2Vh x share trained + 4 q L x tokens of its row
    passes                                 forward, gradient of the activations, of the weights too where they are
                                           trained (2F, 3F), and one more to recompute what checkpointing did not keep
    NF4                                    2.516 bytes a linear weight are moved in each pass of each micro-batch
    loading                                20 s and 16-bit weights at 0.65 GB/s
    saving                                 checkpoints (trained weights, Adam's moments) and the model at 0.65 GB/s

The letters are those of `train.fit.memory`.
"""

from __future__ import annotations

from alpasift.train.fit.cards import Card
from alpasift.train.fit.model_dims import ModelDims
from alpasift.train.fit.train_config import TrainConfig
from alpasift.train.fit.workload import Layout

_WARM_UP_SECONDS = 20.0
_DISK_BYTES_PER_SECOND = 0.65e9
"""Assumed: a 7B's 13 GB are read, and quantised, in 20 s from a fast disk (10 to 30 s), and are written as fast."""
_NF4_MOVED = 2.516  # bytes: 0.516 read and 2 written
_LAYER_SECONDS = 0.001
"""The least that a layer's pass takes on any card, as its kernels are launched one by one. Assumed; LitGPT's 13B on an
A100 took 2.4 ms in micro-batches of 110 tokens. Without it micro-batches of 512 tokens would look as fast as larger
ones on every card."""


def flops_per_token(dims: ModelDims, *, trained_share: float, pairs: float) -> float:
    """Operations of the forward pass of one token that attends to `pairs` others. Leaves out adapters, below 1 %."""
    return 2 * dims.linear + 2 * dims.embedding * trained_share + 4 * pairs * dims.q * dims.layers


def passes(config: TrainConfig) -> int:
    """Passes through all layers: forward, one or two backward, and one to recompute with checkpointing."""
    return (3 if config.method == "full" else 2) + (1 if config.checkpointing else 0)


def training_flops(dims: ModelDims, config: TrainConfig, layout: Layout, trained_share: float) -> float:
    """Operations of the whole training on all cards. Attention is computed over whole rows, masked parts included."""
    share = 1.0 if config.head == "vanilla" else trained_share
    forward = flops_per_token(dims, trained_share=share, pairs=layout.padded_tokens / layout.rows)
    return passes(config) * forward * layout.padded_tokens


def training_seconds(
    dims: ModelDims, config: TrainConfig, card: Card, layout: Layout, trained_share: float, mfu: float
) -> float:
    """Seconds of all steps where the card reaches `mfu` of its rate, which must be known."""
    assert card.flops is not None
    count = layout.steps * layout.microbatches
    at_rate = training_flops(dims, config, layout, trained_share) / config.cards / count / (card.flops * mfu)
    least = _LAYER_SECONDS * dims.layers * passes(config)
    return count * (max(at_rate, least) + dequantisation_seconds(dims, config, card))


def usual_save_every(steps: int) -> int:
    """Steps between two checkpoints where nobody says otherwise."""
    return max(1, steps // 10)


def loading_seconds(dims: ModelDims) -> float:
    """Seconds until the first step: importing, reading the weights, warming up."""
    return _WARM_UP_SECONDS + 2 * dims.parameters / _DISK_BYTES_PER_SECOND


def saving_seconds(dims: ModelDims, config: TrainConfig, steps: int, save_every: int | None) -> float:
    """Seconds for all checkpoints, the last at the last step, and for the model."""
    size = 4 if config.trains_in_float32 else 2
    trained = dims.parameters if config.method == "full" else dims.adapters(config.rank, config.targets)
    moments = 2.03 if config.optimizer == "adamw_8bit" else 2 * size
    checkpoints = -(-steps // (save_every or usual_save_every(steps)))
    model = 2 * trained if config.method == "full" else size * trained
    return (checkpoints * (size + moments) * trained + model) / _DISK_BYTES_PER_SECOND


def dequantisation_seconds(dims: ModelDims, config: TrainConfig, card: Card) -> float:
    """Seconds per micro-batch spent on unpacking NF4 weights."""
    if config.method != "qlora" or card.dequant_bytes_per_second is None:
        return 0.0
    return _NF4_MOVED * dims.linear * (3 if config.checkpointing else 2) / card.dequant_bytes_per_second
