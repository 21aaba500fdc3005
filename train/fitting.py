"""What fits a card: the forecast of a fine-tune on given rows, before anything is bought or loaded. Call `fit`.

Reads a config.json and the lengths of the rows; opens no model and imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from alpasift.graders import Example
from alpasift.train.fit.calibration import apply, corrections
from alpasift.train.fit.cards import Card
from alpasift.train.fit.choice import Choice, NothingFits, choose, configurations
from alpasift.train.fit.forecast import Forecast
from alpasift.train.fit.model_dims import ModelDims, read_dims
from alpasift.train.fit.train_config import METHODS, Method, TrainConfig
from alpasift.train.fit.workload import Lengths, Workload, lengths_of
from alpasift.train.token_counts import estimate_tokens


@dataclass(frozen=True, slots=True)
class FitRequest:
    """A fine-tune whose configuration is open.

    model         a preset's name, or a folder with a config.json
    cards         such cards in the machine
    method        None is LoRA, or QLoRA where LoRA does not fit
    tokenizer     a folder with tokenizer.json; the model's if None
    usd_per_hour  of the machine, with all its cards
    """

    model: str
    card: Card
    cards: int = 1
    method: Method | None = None
    epochs: float = 3
    batch: int = 128
    max_length: int = 512
    rank: int = 16
    tokenizer: str | None = None
    usd_per_hour: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Fit:
    """What was found: every configuration considered, and the choice, or the error where nothing fits."""

    dims: ModelDims
    lengths: Lengths
    considered: tuple[Forecast, ...]
    choice: Choice | None
    error: NothingFits | None

    @property
    def shown(self) -> Forecast:
        """The chosen configuration, or the smallest where nothing fits."""
        if self.choice is not None:
            return self.choice.chosen
        assert self.error is not None
        return self.error.nearest


def fit(examples: Sequence[Example], request: FitRequest) -> Fit:
    """Compare all configurations and choose. Raises TrainError, of which CalibrationError."""
    dims, measurements = read_dims(request.model), corrections()

    def correct(forecast: Forecast) -> Forecast:
        return apply(forecast, measurements)

    folder = Path(request.tokenizer or request.model)
    counts = estimate_tokens(examples, folder if folder.is_dir() else None)
    lengths = lengths_of(counts.prompt, counts.response, request.max_length, counts.counted_by)
    workload = Workload(lengths, request.batch, request.epochs)
    shared = TrainConfig("lora", rank=request.rank, cards=request.cards)
    usd = request.usd_per_hour
    methods: Sequence[Method] = (request.method,) if request.method else ("lora", "qlora")
    considered = configurations(dims, workload, request.card, METHODS, shared=shared, usd_per_hour=usd, correct=correct)
    try:
        choice = choose(
            dims,
            workload,
            request.card,
            methods=methods,
            shared=shared,
            usd_per_hour=usd,
            correct=correct,
            considered=considered,
        )
    except NothingFits as error:
        return Fit(dims, lengths, considered, None, error)
    return Fit(dims, lengths, considered, choice, None)
