"""What cards have really done: measured speed and memory, kept between trainings, and what they make of a forecast.

A training measures its first steps and `record`s them; `apply` corrects the next forecast. Kept in one JSON file, by default
~/.local/share/alpasift/cards.json ($XDG_DATA_HOME and ALPASIFT_CALIBRATION move it), written whole under a lock. One row
for each card, shape of model, method, checkpointing, variant and number of cards; a newer one takes its place.

    speed    x measured / forecast tokens per second, of the nearest row there is: the same card, shape, method and
             checkpointing; else the same card and method; else the same card. Among equals the newest.
    memory   only of the same card, shape, method, checkpointing and variant. What depends on the tokens is scaled so
             that the measured peak comes out, by 0.5 to 2; what is left beyond that is added as a constant.

Speed carries over because most of what a formula gets wrong is the card's. Memory does not: what is wrong there belongs to the
layers and what they keep. A processor has no forecast speed: a row of the same kind gives its measured tokens per second as they are.

A file that cannot be read is an error that names it where a forecast would use it; a training that has something to record
puts it aside as cards.json.broken and starts anew.
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

from train.artifacts import TrainError
from train.memory import Forecast, Setup

_FORM = 1
_SCALE = (0.5, 2.0)
_NUMBERS = ("forecast_fixed_bytes", "forecast_moving_bytes", "forecast_reserved_bytes")


class CalibrationError(TrainError):
    """The file of corrections cannot be read."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What the first steps of a training took, beside what had been forecast for exactly that configuration.

    card                train.cards.Card.name: "h200", the driver's own name, or "cpu:" and the processor's
    shape               train.memory.Shape.digest
    variant             what else changes the memory: "bf16", "fp16, float32 trained, dropout, adamw_8bit"
    tokens_per_second   real tokens, without padding, of all cards together; of the forecast None on a processor
    peak_bytes          of the allocator, torch.cuda.max_memory_reserved(); None where nothing counts it
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

    @property
    def key(self) -> tuple[str, str, str, bool, str, int]:
        return self.card, self.shape, self.method, self.checkpointing, self.variant, self.cards


def measured_against(
    told: Forecast, *, tokens_per_second: float, peak_bytes: int | None, steps: int, versions: Mapping[str, str]
) -> Measured:
    """What was measured, beside a forecast that no calibration has corrected. `steps` is how many were measured."""
    setup = told.setup
    return Measured(
        told.card.name, told.shape.digest, told.shape.name, setup.method, setup.checkpointing, _variant(setup), setup.cards,
        setup.micro_batch, setup.pack_length, steps, tokens_per_second, told.tokens_per_second, peak_bytes,
        told.parts.fixed, told.parts.moving, told.parts.reserved, dict(versions),
        datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip


# -- the file ----------------------------------------------------------------------------------------------------------


def calibration_file() -> Path:
    """Where the corrections are kept."""
    named = os.environ.get("ALPASIFT_CALIBRATION")
    if named:
        return Path(named)
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "alpasift" / "cards.json"


def corrections(path: Path | None = None) -> list[Measured]:
    """Everything that is recorded, newest first; nothing where there is no file. Raises CalibrationError."""
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
            raise CalibrationError(f"{path} is of form {found['form']}, this program knows {_FORM}; {_REMEDY}")
        rows = [_checked(row) for row in found["corrections"]]
    except (ValueError, KeyError, TypeError) as error:
        raise CalibrationError(
            f"{path} is no file of corrections ({type(error).__name__}: {error}); {_REMEDY}"
        ) from error
    return sorted(rows, key=lambda row: row.measured_at, reverse=True)


_REMEDY = "delete it to go on without corrections, or name another with ALPASIFT_CALIBRATION"


def _checked(row: Any) -> Measured:
    """A row of the file. Raises ValueError, KeyError or TypeError for anything that is none."""
    names = {one.name for one in fields(Measured)}
    made = Measured(**{name: row[name] for name in names})
    numbers = [made.tokens_per_second, made.forecast_tokens_per_second, made.peak_bytes]
    for value in (*numbers, *(getattr(made, name) for name in _NUMBERS)):
        if value is not None and not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
            raise ValueError(f"{value!r} is no measurement")
    if not made.tokens_per_second or made.forecast_tokens_per_second == 0:
        raise ValueError("a speed of 0")
    if not isinstance(made.measured_at, str):
        raise TypeError("measured_at is no text")
    return made


def record(measured: Measured, path: Path | None = None) -> Path:
    """Keep a measurement, in the place of an older one of the same kind, and return the file's path.

    Safe beside other processes that do the same. A file that cannot be read is put aside as NAME.broken. Raises
    TrainError when the measurement itself makes no sense.
    """
    path = path or calibration_file()
    try:
        _checked(asdict(measured))
    except (ValueError, TypeError) as error:
        raise TrainError(f"this measurement cannot be kept: {error}") from error
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
    """Hold the lock file beside the file: the file itself is replaced, so a lock on it would hold nobody up."""
    with path.with_name(f"{path.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# -- what they make of a forecast --------------------------------------------------------------------------------------


def apply(told: Forecast, known: Sequence[Measured]) -> Forecast:
    """The forecast as measurements correct it, and `calibration` says by which; unchanged where none is of this card."""
    here = sorted((row for row in known if row.card == told.card.name), key=lambda row: row.measured_at, reverse=True)
    exact = [row for row in here if _same(row, told)]
    return _with_memory(_with_speed(told, here, exact), exact)


def _same(row: Measured, told: Forecast) -> bool:
    setup = told.setup
    return (row.shape, row.method, row.checkpointing, row.variant) == (
        told.shape.digest, setup.method, setup.checkpointing, _variant(setup),
    )  # fmt: skip


def _variant(setup: Setup) -> str:
    wide = setup.masters or (setup.method != "full" and setup.adapter_dtype == "fp32")
    said = [setup.dtype, "float32 trained" if wide else "", "dropout" if setup.dropout else ""]
    return ", ".join(part for part in (*said, setup.optimizer if setup.optimizer != "adamw" else "") if part)


def _with_speed(told: Forecast, here: Sequence[Measured], exact: Sequence[Measured]) -> Forecast:
    if told.seconds is None:
        if not exact:
            return told
        row = exact[0]
        seconds = told.layout.tokens / row.tokens_per_second
        return replace(
            told, seconds=seconds, seconds_fast=seconds, seconds_slow=seconds,
            calibration=f"the speed is that measured on {row.measured_at[:10]}, {_whose(row)}",
        )  # fmt: skip
    known = [row for row in here if row.forecast_tokens_per_second]
    nearest = next(
        (
            row
            for fits in (
                lambda row: row in exact,
                lambda row: row.method == told.setup.method,
                lambda row: True,
            )
            for row in known
            if fits(row)
        ),
        None,
    )
    if nearest is None:
        return told
    assert nearest.forecast_tokens_per_second is not None
    assert told.seconds_fast is not None and told.seconds_slow is not None
    ratio = nearest.forecast_tokens_per_second / nearest.tokens_per_second
    seconds = told.seconds * ratio
    sure = nearest in exact  # the card's share of its rate is known then, not a range any more
    return replace(
        told, seconds=seconds,
        seconds_fast=seconds if sure else told.seconds_fast * ratio,
        seconds_slow=seconds if sure else told.seconds_slow * ratio,
        calibration=f"the time is x {ratio:.2f} as measured on {nearest.measured_at[:10]}, {_whose(nearest)}",
    )  # fmt: skip


def _with_memory(told: Forecast, exact: Sequence[Measured]) -> Forecast:
    row = next((row for row in exact if row.peak_bytes is not None and row.forecast_moving_bytes > 0), None)
    if row is None or row.peak_bytes is None:
        return told
    around = row.forecast_reserved_bytes / (row.forecast_fixed_bytes + row.forecast_moving_bytes)  # fragmentation
    ratio = (row.peak_bytes / around - row.forecast_fixed_bytes) / row.forecast_moving_bytes
    ratio = min(max(ratio, _SCALE[0]), _SCALE[1])
    left = row.peak_bytes - around * (row.forecast_fixed_bytes + ratio * row.forecast_moving_bytes)
    said = f"the peak as measured on {row.measured_at[:10]}: what depends on tokens x {ratio:.2f}, {left / 1024**3:+.2f} GiB"
    return replace(
        told, parts=told.parts.with_moving(ratio, round(left)), memory_measured=True,
        calibration="; ".join(part for part in (told.calibration, said) if part),
    )  # fmt: skip


def _whose(row: Measured) -> str:
    checkpointing = "with" if row.checkpointing else "without"
    return f"{row.model} by {row.method} {checkpointing} checkpointing, {row.steps} steps"
