"""Memory, seconds and dollars of one configuration on one card. Call `forecast`.

A forecast, not a measurement: `train.fit.calibration` corrects it by what the card has done before.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from alpasift.train.fit.cards import Card
from alpasift.train.fit.memory import MemoryParts, peak
from alpasift.train.fit.model_dims import ModelDims
from alpasift.train.fit.seconds import loading_seconds, saving_seconds, training_flops, training_seconds
from alpasift.train.fit.train_config import TrainConfig
from alpasift.train.fit.workload import Layout, Workload, lay_out

_MARGIN = 0.10
_UNMEASURED_QLORA = {True: 0.15, False: 0.20}
"""By checkpointing: what allocators reserved beside NF4 varied twice as much as beside 16-bit weights."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """One configuration of one model on one card. Seconds are None where the card's speed is unknown.

    training_seconds  of all steps; training_fast and training_slow at the highest and the lowest share of its rate that
                      the card may reach
    loading_seconds   until the first step
    saving_seconds    of all checkpoints and of the model
    seconds           of the whole training: the sum of the three, as seconds_fast and seconds_slow are
    calibration       which measurement corrected it, "" where none did
    memory_measured   the peak of this method and precision was measured on this card, perhaps with other micro-batches
    """

    dims: ModelDims
    config: TrainConfig
    card: Card
    parts: MemoryParts
    layout: Layout
    flops: float
    training_seconds: float | None
    training_fast: float | None
    training_slow: float | None
    loading_seconds: float
    saving_seconds: float
    usd_per_hour: Decimal | None = None
    calibration: str = ""
    memory_measured: bool = False

    @property
    def peak_bytes(self) -> int:
        return self.parts.total

    @property
    def margin(self) -> float:
        """Share of the peak that must stay free: 10 %; for QLoRA, until measured, 15 %, without checkpointing 20 %."""
        if self.config.method == "qlora" and not self.memory_measured:
            return _UNMEASURED_QLORA[self.config.checkpointing]
        return _MARGIN

    @property
    def needed_bytes(self) -> int:
        """The peak and its margin."""
        return round(self.peak_bytes * (1 + self.margin))

    @property
    def fits(self) -> bool:
        return self.needed_bytes <= self.card.usable_bytes

    @property
    def seconds(self) -> float | None:
        return self._with_loading_and_saving(self.training_seconds)

    @property
    def seconds_fast(self) -> float | None:
        return self._with_loading_and_saving(self.training_fast)

    @property
    def seconds_slow(self) -> float | None:
        return self._with_loading_and_saving(self.training_slow)

    def _with_loading_and_saving(self, training: float | None) -> float | None:
        return None if training is None else self.loading_seconds + training + self.saving_seconds

    @property
    def effort(self) -> float:
        """What configurations are compared by: seconds of steps, or operations where the card's speed is unknown."""
        return self.flops if self.training_seconds is None else self.training_seconds

    @property
    def tokens_per_second(self) -> float | None:
        """Real tokens, without padding, of all cards together, while steps are done."""
        return self.layout.tokens / self.training_seconds if self.training_seconds else None

    @property
    def computes_in(self) -> str:
        """The precision of the computation."""
        return "float32" if self.config.dtype == "fp32" else self.config.dtype

    @property
    def minutes(self) -> float | None:
        return None if self.seconds is None else self.seconds / 60

    @property
    def usd(self) -> Decimal | None:
        """Dollars for the whole training; None where the machine's hourly price or its speed is unknown."""
        if self.usd_per_hour is None or self.seconds is None:
            return None
        return (Decimal(str(self.seconds)) / 3600 * self.usd_per_hour).quantize(Decimal("0.0001"))


def forecast(
    dims: ModelDims,
    workload: Workload,
    config: TrainConfig,
    card: Card,
    *,
    layout: Layout | None = None,
    save_every: int | None = None,
    usd_per_hour: Decimal | None = None,
) -> Forecast:
    """Memory, time and dollars of a configuration, uncalibrated.

    `save_every` is steps between checkpoints, a tenth of the training if None. `layout` is what
    `lay_out(workload, config)` gave, if at hand. `usd_per_hour` is the machine's, with all its cards.
    """
    layout = lay_out(workload, config) if layout is None else layout
    share = 1.0 if card.is_cpu else workload.lengths.trained_share  # there the head computes every position
    fast = slow = middle = None
    if card.flops is not None:
        low, high = card.mfu
        slow, middle, fast = (
            training_seconds(dims, config, card, layout, share, mfu) for mfu in (low, (low + high) / 2, high)
        )
    return Forecast(
        dims,
        config,
        card,
        parts=peak(dims, config, layout.max_tokens, processor=card.is_cpu),
        layout=layout,
        flops=training_flops(dims, config, layout, share),
        training_seconds=middle,
        training_fast=fast,
        training_slow=slow,
        loading_seconds=loading_seconds(dims),
        saving_seconds=saving_seconds(dims, config, layout.steps, save_every),
        usd_per_hour=usd_per_hour,
    )
