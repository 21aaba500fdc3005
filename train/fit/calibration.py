"""Measured speed and memory of trainings on a card, kept between trainings, and how they correct a forecast.

A training measures its first steps and `record`s them; `apply` corrects the next forecast. Stored in one JSON file, by
default ~/.local/share/alpasift/cards.json ($XDG_DATA_HOME and ALPASIFT_CALIBRATION move it), replaced as a whole under
a lock. One row per card, model dimensions, method, checkpointing, variant and number of cards; a newer one replaces it.

    speed    x measured / forecast tokens per second, of the nearest row: the same card, dimensions, method and
             checkpointing; else the same card and method; else the same card. The newest wins among equals.
    memory   only of the same card, dimensions, method, checkpointing and variant. What depends on tokens is scaled
             by 0.5 to 2 so that the measured peak comes out; what remains beyond that is added as a constant.

Speed carries over because most of a formula's error is the card's. Memory does not: its error belongs to the layers and
what they keep. How fast a processor multiplies changes with what else it does, so that a row of the same kind gives
its measured tokens per second directly; its peak is the process's without the libraries.

A file that cannot be read is an error where a forecast would use it; a training that has a measurement to record moves
it aside as cards.json.broken and starts a new one.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alpasift.train.artifacts import TrainError
from alpasift.train.fit.forecast import Forecast
from alpasift.train.fit.train_config import TrainConfig

_FORM = 1
_SCALE = (0.5, 2.0)
_NEWER = ("loading_seconds", "saving_seconds", "forecast_saving_seconds")
"""What rows of release 0.1 do not have."""
_NUMBERS = ("forecast_fixed_bytes", "forecast_moving_bytes", "forecast_reserved_bytes")


class CalibrationError(TrainError):
    """The file of corrections cannot be read."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What the first steps of a training measured, beside the uncorrected forecast of the same configuration.

    The field names are the keys of a row in the file.

    card                train.fit.cards.Card.name: "h200", the driver's own name, or "cpu:" and the processor's
    shape               train.fit.model_dims.ModelDims.digest
    variant             what else changes the memory: "bf16", "fp16, float32 trained, dropout, adamw_8bit"
    tokens_per_second   real tokens, without padding, of all cards together; the forecast's may be None on a processor
    peak_bytes          of the allocator, torch.cuda.max_memory_reserved(); on a processor of the process, without the
                        libraries; None in rows of release 0.1 there
    loading_seconds     until the first step; None in rows of earlier releases
    saving_seconds      of checkpoints and model of a training that was done in one part, beside its forecast
    forecast_*_bytes    of the forecast's parts: fixed, moving (both without fragmentation) and reserved
    versions            {"torch": "2.11.0", ...}
    measured_at         ISO 8601, UTC
    """

    card: str
    shape: str
    model: str
    method: str
    checkpointing: bool
    variant: str
    cards: int
    micro_batch: int
    pack_length: int | None
    steps: int
    tokens_per_second: float
    forecast_tokens_per_second: float | None
    peak_bytes: int | None
    forecast_fixed_bytes: int
    forecast_moving_bytes: int
    forecast_reserved_bytes: int
    versions: Mapping[str, str] = field(default_factory=dict)
    measured_at: str = ""
    loading_seconds: float | None = None
    saving_seconds: float | None = None
    forecast_saving_seconds: float | None = None

    @property
    def key(self) -> tuple[str, str, str, bool, str, int]:
        return self.card, self.shape, self.method, self.checkpointing, self.variant, self.cards


def measured_against(
    forecast: Forecast,
    *,
    tokens_per_second: float,
    peak_bytes: int | None,
    steps: int,
    versions: Mapping[str, str],
    loading_seconds: float | None = None,
    saving_seconds: float | None = None,
) -> Measured:
    """What was measured, beside a forecast that no calibration has corrected. `steps` is how many were measured."""
    config = forecast.config
    return Measured(
        card=forecast.card.name,
        shape=forecast.dims.digest,
        model=forecast.dims.name,
        method=config.method,
        checkpointing=config.checkpointing,
        variant=_variant(config),
        cards=config.cards,
        micro_batch=config.micro_batch,
        pack_length=config.pack_length,
        steps=steps,
        tokens_per_second=tokens_per_second,
        forecast_tokens_per_second=forecast.tokens_per_second,
        peak_bytes=peak_bytes,
        forecast_fixed_bytes=forecast.parts.fixed,
        forecast_moving_bytes=forecast.parts.moving,
        forecast_reserved_bytes=forecast.parts.reserved,
        versions=dict(versions),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        loading_seconds=loading_seconds,
        saving_seconds=saving_seconds,
        forecast_saving_seconds=None if saving_seconds is None else forecast.saving_seconds,
    )


# -- the file ----------------------------------------------------------------------------------------------------------


def calibration_file() -> Path:
    """Where measurements are stored."""
    named = os.environ.get("ALPASIFT_CALIBRATION")
    if named:
        return Path(named)
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "alpasift" / "cards.json"


def corrections(path: Path | None = None) -> list[Measured]:
    """Every recorded measurement, newest first; none where file not found:. Raises CalibrationError."""
    path = path or calibration_file()
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f"{path} cannot be read: {error}; {_REMEDY}") from error
    try:
        found = json.loads(text)
        if found["form"] != _FORM:
            raise CalibrationError(f"{path} has format {found['form']}, this version reads {_FORM}; {_REMEDY}")
        rows = [_checked(row) for row in found["corrections"]]
    except (ValueError, KeyError, TypeError) as error:
        raise CalibrationError(
            f"{path} is not a calibration file ({type(error).__name__}: {error}); {_REMEDY}"
        ) from error
    return sorted(rows, key=lambda row: row.measured_at, reverse=True)


_REMEDY = "delete it to continue without corrections, or set another file with ALPASIFT_CALIBRATION"


def _checked(row: Any) -> Measured:
    """A row of the file. Raises ValueError, KeyError or TypeError where it is not a valid one."""
    names = {one.name for one in fields(Measured)} - set(_NEWER)
    made = Measured(**{name: row[name] for name in names}, **{name: row.get(name) for name in _NEWER})
    numbers = [made.tokens_per_second, made.forecast_tokens_per_second, made.peak_bytes]
    numbers += [getattr(made, name) for name in _NEWER]
    for value in (*numbers, *(getattr(made, name) for name in _NUMBERS)):
        if value is not None and not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
            raise ValueError(f"{value!r} is not a measurement")
    if not made.tokens_per_second or made.forecast_tokens_per_second == 0:
        raise ValueError("the speed is 0")
    if not isinstance(made.measured_at, str):
        raise TypeError("measured_at is not a string")
    return made


def record(measured: Measured, path: Path | None = None) -> Path:
    """Store a measurement, replacing an older one of the same kind, and return the file's path.

    Safe beside other processes that do the same. A file that cannot be read is moved aside as NAME.broken. Raises
    TrainError when the measurement itself is invalid.
    """
    path = path or calibration_file()
    try:
        _checked(asdict(measured))
    except (ValueError, TypeError) as error:
        raise TrainError(f"this measurement cannot be stored: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        try:
            kept = [row for row in corrections(path) if row.key != measured.key]
        except CalibrationError:
            path.replace(path.with_name(f"{path.name}.broken"))
            kept = []
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with draft.open("w", encoding="utf-8") as out:
                rows = [asdict(row) for row in (measured, *kept)]
                json.dump({"form": _FORM, "corrections": rows}, out, indent=1, ensure_ascii=False)
                out.flush()
                os.fsync(out.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    return path


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock file beside the file: the file itself is replaced, so a lock on it would exclude nobody."""
    with path.with_name(f"{path.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# -- correcting a forecast ---------------------------------------------------------------------------------------------


def apply(forecast: Forecast, measurements: Sequence[Measured]) -> Forecast:
    """The forecast as measurements correct it; `calibration` names which. Unchanged where none is of this card."""
    of_card = (row for row in measurements if row.card == forecast.card.name)
    newest_first = sorted(of_card, key=lambda row: row.measured_at, reverse=True)
    exact = [row for row in newest_first if _same_kind(row, forecast)]
    return _with_memory(_with_loading(_with_speed(forecast, newest_first, exact), exact), exact)


def _same_kind(row: Measured, forecast: Forecast) -> bool:
    config = forecast.config
    return (row.shape, row.method, row.checkpointing, row.variant) == (
        forecast.dims.digest,
        config.method,
        config.checkpointing,
        _variant(config),
    )


def _variant(config: TrainConfig) -> str:
    float32 = "float32 trained" if config.trains_in_float32 else ""
    optimizer = config.optimizer if config.optimizer != "adamw" else ""
    return ", ".join(part for part in (config.dtype, float32, "dropout" if config.dropout else "", optimizer) if part)


def _with_speed(forecast: Forecast, of_card: Sequence[Measured], exact: Sequence[Measured]) -> Forecast:
    if forecast.training_seconds is None or (forecast.card.is_cpu and exact):
        if not exact:
            return forecast
        row = exact[0]
        seconds = forecast.layout.tokens / row.tokens_per_second
        return replace(
            forecast,
            training_seconds=seconds,
            training_fast=seconds,
            training_slow=seconds,
            calibration=f"speed as measured on {row.measured_at[:10]}, {_described(row)}",
        )
    usable = [row for row in of_card if row.forecast_tokens_per_second]
    same_method = [row for row in usable if row.method == forecast.config.method]
    nearest = next((row for group in (exact, same_method, usable) for row in group if row in usable), None)
    if nearest is None or not nearest.forecast_tokens_per_second:
        return forecast
    assert forecast.training_fast is not None and forecast.training_slow is not None
    ratio = nearest.forecast_tokens_per_second / nearest.tokens_per_second
    seconds = forecast.training_seconds * ratio
    measured = nearest in exact  # then the card's share of its rate is known and not a range
    return replace(
        forecast,
        training_seconds=seconds,
        training_fast=seconds if measured else forecast.training_fast * ratio,
        training_slow=seconds if measured else forecast.training_slow * ratio,
        calibration=f"time x {ratio:.2f} as measured on {nearest.measured_at[:10]}, {_described(nearest)}",
    )


def _with_loading(forecast: Forecast, exact: Sequence[Measured]) -> Forecast:
    """Loading as it was measured, saving times what it took of its own forecast."""
    row = next((row for row in exact if row.loading_seconds is not None), None)
    if row is None or row.loading_seconds is None:
        return forecast
    ratio = 1.0
    if row.saving_seconds is not None and row.forecast_saving_seconds:
        ratio = row.saving_seconds / row.forecast_saving_seconds
    return replace(forecast, loading_seconds=row.loading_seconds, saving_seconds=forecast.saving_seconds * ratio)


def _with_memory(forecast: Forecast, exact: Sequence[Measured]) -> Forecast:
    row = next((row for row in exact if row.peak_bytes is not None and row.forecast_moving_bytes > 0), None)
    if row is None or row.peak_bytes is None:
        return forecast
    fragmentation = row.forecast_reserved_bytes / (row.forecast_fixed_bytes + row.forecast_moving_bytes)
    ratio = (row.peak_bytes / fragmentation - row.forecast_fixed_bytes) / row.forecast_moving_bytes
    ratio = min(max(ratio, _SCALE[0]), _SCALE[1])
    rest = row.peak_bytes - fragmentation * (row.forecast_fixed_bytes + ratio * row.forecast_moving_bytes)
    correction = (
        f"peak as measured on {row.measured_at[:10]}: what depends on tokens x {ratio:.2f}, {rest / 1024**3:+.2f} GiB"
    )
    return replace(
        forecast,
        parts=forecast.parts.with_moving(ratio, fragmentation - 1, round(rest)),
        memory_measured=True,
        calibration="; ".join(part for part in (forecast.calibration, correction) if part),
    )


def _described(row: Measured) -> str:
    checkpointing = "with" if row.checkpointing else "without"
    return f"{row.model} by {row.method} {checkpointing} checkpointing, {row.steps} steps"
