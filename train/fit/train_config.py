"""One configuration of a training, as far as it decides memory and speed.

`train.recipes.Settings` holds every setting of a training; this holds the ones that a forecast needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Method = Literal["full", "lora", "qlora"]
METHODS: tuple[Method, ...] = ("lora", "qlora", "full")
Optimizer = Literal["adamw", "adamw_8bit"]
OPTIMIZERS: tuple[Optimizer, ...] = ("adamw", "adamw_8bit")
Head = Literal["fused", "vanilla"]
Targets = str | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One configuration of a training.

    micro_batch    rows that one card takes at once, of `pack_length` tokens at most (None: one example a row, padded)
    dropout        of the adapter
    adapter_dtype  of the trained parameters: the adapter's, or all weights where method is "full"
    head           "fused" computes the loss in tiles and never holds all logits; "vanilla" holds them
    logit_bytes    bytes per logit of a "vanilla" head: logits, softmax and gradient together
    double_quant   whether the scales of NF4 weights are quantised too
    dtype          of the computation and of frozen weights; "fp32" on a processor
    upcast         what is not quantised (embedding, head, norms) is float32, and with it what passes between layers:
                   peft's prepare_model_for_kbit_training does so, trl 1.16 does not
    attention      "sdpa" needs a mask that keeps documents apart; "flash" needs none
    cards          data-parallel cards, each with the whole model
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
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"
    upcast: bool = False
    attention: Literal["sdpa", "flash"] = "sdpa"
    cards: int = 1

    @property
    def master_weights(self) -> bool:
        """Whether all weights are trained and kept in float32: fp16 alone would lose small updates."""
        return self.method == "full" and (self.dtype != "bf16" or self.adapter_dtype == "fp32")

    @property
    def trains_in_float32(self) -> bool:
        """Whether the trained parameters, their gradients and moments are float32."""
        return self.master_weights or (self.method != "full" and self.adapter_dtype == "fp32")

    def describe(self) -> str:
        """In words: "qlora, micro-batch 4 x 1024, with checkpointing"."""
        rows = f"{self.micro_batch} x {self.pack_length}" if self.pack_length else f"{self.micro_batch} examples"
        precision = ", pure bf16" if self.method == "full" and not self.master_weights else ""
        optimizer = ", 8-bit AdamW" if self.optimizer == "adamw_8bit" else ""
        checkpointing = "with" if self.checkpointing else "without"
        return f"{self.method}, micro-batch {rows}, {checkpointing} checkpointing{precision}{optimizer}"
