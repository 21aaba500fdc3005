"""Trainings: the rows they train on, how they are planned and run, and their curve and hours in the database.

    find_rows --> plan_training --> run_training, which writes through a Recorder

A training may run beside anything else, so it holds no lock. A database that cannot be written now, because another
process has it open or its disk is full, never stops one: rows wait in memory, in order, and `Recorder.end` says whether
all of them arrived. How a model is trained is in `alpasift.train`; no torch is imported here.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpasift.batcher.data.data_file import read_examples
from alpasift.batcher.data.identity import example_id
from alpasift.batcher.data.stored_rows import positions_of, rejected_answers, stored_examples
from alpasift.batcher.data.versions import resolve
from alpasift.batcher.grading.selections import kept_positions, resolve_selection
from alpasift.batcher.store import Store, StoreError, append, hash_id, new_id, utc_now
from alpasift.graders import AlpaSiftError, Example
from alpasift.graders.offline.guard import SWITCHES
from alpasift.train.allocator import use_expandable_segments
from alpasift.train.artifacts import TrainError
from alpasift.train.fit.calibration import calibration_file, measured_against, record

if TYPE_CHECKING:
    from alpasift.train.fit.forecast import Forecast
    from alpasift.train.fit.train_config import Method
    from alpasift.train.held_out import HeldOutLoss
    from alpasift.train.machine_settings import MachineSettings
    from alpasift.train.metrics import Metrics
    from alpasift.train.prepare import Prepared
    from alpasift.train.sft import Hooks, Trained

FLUSH_SECONDS = 2.0
LAST_SECONDS = 10.0
"""How long the end of a training waits for a database that another process has open."""
_OF_THE_METHOD = {"master_weights": "--pure"}
_STEP = (
    "part_id",
    "step",
    "epoch",
    "loss",
    "learning_rate",
    "grad_norm",
    "examples",
    "tokens",
    "tokens_per_second",
    "peak_bytes",
    "seconds",
    "recorded_at",
)
_TAKEN = _STEP[1:-2]
_TRAINING = (
    "training_id",
    "folder",
    "base",
    "recipe",
    "method",
    "version_id",
    "selection_id",
    "facts",
    "recorded_at",
)
_PART = ("part_id", "training_id", "pid", "device", "cards", "usd_per_hour", "from_step", "started_at")
_HELD_OUT = ("part_id", "step", "loss", "rows", "tokens", "recorded_at")
_END = ("part_id", "outcome", "message", "seconds", "ended_at")


@dataclass(frozen=True, slots=True)
class Rows:
    """What is trained on, and where it came from in the database, if it did. `skipped` rows cannot be used."""

    examples: list[Example]
    source: str
    skipped: int = 0
    version_id: str | None = None
    selection_id: str | None = None


def find_rows(db: str, *, data: str | None = None, dataset: str | None = None, selection: str | None = None) -> Rows:
    """The examples of a file, of a selection, or of a dataset in the database; at most one of them is named.

    Answers that their file calls rejected are skipped: nobody is to learn them.
    """
    if data is not None:
        read = read_examples(data)
        rejected = set(read.rejected)
        wanted = [e for number, e in enumerate(read.examples) if number not in rejected]
        return Rows(wanted, data, sum(read.skipped.values()) + len(read.rejected))
    store = Store(db).existing()
    if selection is not None:
        found = resolve_selection(store, selection)
        positions = kept_positions(store, found.selection_id)
        kept, skipped = _not_rejected(store, found.version_id, positions)
        return Rows(kept, f"selection {found.label}", skipped, found.version_id, found.selection_id)
    version = resolve(store, dataset)
    examples, skipped = _not_rejected(store, version.version_id, None)
    return Rows(examples, f"dataset {version.label}", skipped, version.version_id)


def _not_rejected(store: Store, version_id: str, positions: Sequence[int] | None) -> tuple[list[Example], int]:
    """The examples at these positions without the rejected answers, and how many these were."""
    rejected = rejected_answers(store, version_id)
    if not rejected:
        return stored_examples(store, version_id, positions), 0
    there = positions_of(store, version_id) if positions is None else positions
    kept = [position for position in there if position not in rejected]
    return stored_examples(store, version_id, kept), len(there) - len(kept)


# -- planning and running ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """A training as it was asked for. `given` are settings by name (train.recipes.Settings), None where left open."""

    base: Path
    out: Path
    recipe: str
    method: Method | None
    given: Mapping[str, Any]
    fresh: bool = False
    save_every: int | None = None
    usd_per_hour: Decimal | None = None


@dataclass(frozen=True, slots=True)
class PlannedTraining:
    """A training that can begin: its request and rows, settled settings, planned steps, and the forecast, if any.

    `corrected` is the forecast as past trainings correct it.
    """

    request: TrainRequest
    rows: Rows
    machine: MachineSettings
    prepared: Prepared
    forecast: Forecast | None
    corrected: Forecast | None

    def usd(self, seconds: float) -> Decimal | None:
        """Dollars of machine time; None without an hourly price."""
        rate = self.request.usd_per_hour
        return None if rate is None else round(rate * Decimal(str(seconds)) / 3600, 4)


def plan_training(rows: Rows, request: TrainRequest, report: Callable[[str], None]) -> PlannedTraining:
    """Check the base, settle the settings for this machine and lay out every step. Loads no weights.

    Raises TrainError, also for a setting that the method does not use, and BackendUnavailable.
    """
    os.environ.update({name: value for name, value in SWITCHES.items() if name != "WANDB_MODE"})
    use_expandable_segments()  # before anything below imports torch
    from alpasift.train.machine_settings import corrector, settings_for_machine, slow_precision, without_effect
    from alpasift.train.models import find_base
    from alpasift.train.prepare import forecast_of, prepare
    from alpasift.train.run_folder import check_folder, started_settings

    check_folder(request.out)
    find_base(request.base)
    cards = int(os.environ.get("WORLD_SIZE", "1"))  # torchrun's
    machine = settings_for_machine(
        request.base,
        rows.examples,
        request.recipe,
        request.method,
        request.given,
        started=None if request.fresh else started_settings(request.out, request.recipe),
        cards=cards,
    )
    for name in without_effect(machine.settings, request.given):
        option = _OF_THE_METHOD.get(name, f"--{name.replace('_', '-')}")
        raise TrainError(f"{option} has no effect with method {machine.settings.method}; remove it")
    report(f"tokenising {len(rows.examples):,} rows of {rows.source}")
    if remark := slow_precision(machine):
        report(f"  note: {remark}")
    ids = [example_id(example) for example in rows.examples] if machine.settings.held_out else None
    prepared = prepare(rows.examples, request.base, machine.settings, ids=ids, cards=cards)
    forecast = None
    if machine.dims is not None:
        forecast = forecast_of(prepared, machine.dims, machine.card, request.save_every)
    corrected = None if forecast is None else corrector()(forecast)
    return PlannedTraining(request, rows, machine, prepared, forecast, corrected)


def run_training(db: str, planned: PlannedTraining, hooks: Hooks) -> Trained:
    """Train, write the curve and the hours to the database where there is one, and record the measured speed.

    Raises what `train.sft.train` raises; the part is then recorded as failed, or stopped where it was interrupted.
    """
    from alpasift.train.run_folder import is_first_process, versions
    from alpasift.train.sft import train

    request, forecast, recorder = planned.request, planned.forecast, None
    first = is_first_process()

    def on_start(step: int) -> None:
        nonlocal recorder
        recorder = _recorder(db, planned, step) if first else None
        hooks.on_start(step)

    def on_step(metrics: Metrics) -> None:
        if hooks.on_step:
            hooks.on_step(metrics)
        if recorder:
            recorder.step(asdict(metrics))

    def on_held_out(loss: HeldOutLoss) -> None:
        if hooks.on_held_out:
            hooks.on_held_out(loss)
        if recorder:
            recorder.held_out(loss)

    outcome, message = "failed", None
    try:
        trained = train(
            planned.prepared,
            request.out,
            replace(hooks, on_start=on_start, on_step=on_step, on_held_out=on_held_out),
            save_every=request.save_every,
            forecast_bytes=forecast.peak_bytes if forecast else None,
            fresh=request.fresh,
        )
        outcome = "done" if trained.finished else "stopped"
    except (Exception, KeyboardInterrupt) as error:
        message = f"{type(error).__name__}: {error}"
        outcome = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        raise
    finally:
        if recorder and not recorder.end(outcome, message):
            hooks.report(
                f"{db} could not be written: its training curve and hours are incomplete, "
                f"{request.out / 'metrics.jsonl'} has all of them"
            )
    if first and forecast and trained.measured and trained.facts.get("steps"):
        measured = measured_against(
            forecast,
            tokens_per_second=trained.measured.tokens_per_second,
            peak_bytes=max(0, trained.measured.peak_bytes - forecast.parts.libraries),
            steps=trained.measured.steps,
            versions=versions(),
            loading_seconds=trained.measured.loading_seconds,
            saving_seconds=trained.measured.saving_seconds if trained.finished else None,
        )
        try:
            record(measured)
        except OSError as error:  # the training itself is done and safe
            hooks.report(
                f"{calibration_file()} could not be written ({error.strerror or error}): the next forecast is not "
                "corrected by this training; free some space, or set another file with ALPASIFT_CALIBRATION"
            )
    return trained


def _recorder(db: str, planned: PlannedTraining, step: int) -> Recorder | None:
    """Writes metrics to the database; None where there is none."""
    from alpasift.train.metrics import device_name

    if not Path(db).exists():
        return None
    store = Store(db, wait=2.0)
    with suppress(StoreError):  # another process has it open: the recorder tries again later
        store.existing()
    prepared, settings = planned.prepared, planned.machine.settings
    part = TrainingPart(
        folder=planned.request.out,
        base=prepared.base.folder,
        recipe=settings.recipe,
        method=settings.method,
        facts={**prepared.facts, "settings": settings.facts(), "base_sha256": prepared.base.sha256()},
        device=device_name(),
        from_step=step,
        cards=prepared.facts["cards"],
        usd_per_hour=planned.request.usd_per_hour,
        version_id=planned.rows.version_id,
        selection_id=planned.rows.selection_id,
    )
    return Recorder(store, part)


# -- the database ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TrainingPart:
    """One process's part of a training, from its start or a checkpoint to its end.

    facts         must hold "steps" and identify the training: the same folder and facts are the same training
    from_step     the step it resumes after
    usd_per_hour  of all its cards together
    """

    folder: Path
    base: Path
    recipe: str
    method: str
    facts: Mapping[str, Any]
    device: str
    from_step: int = 0
    cards: int = 1
    usd_per_hour: Decimal | None = None
    version_id: str | None = None
    selection_id: str | None = None


class Recorder:
    """Writes one part of a training: its start, each step, its end."""

    def __init__(self, store: Store, part: TrainingPart) -> None:
        text = json.dumps(part.facts, sort_keys=True, ensure_ascii=False)
        where = str(part.folder.resolve())
        self.training_id, self.part_id = hash_id("training", where, text), new_id()
        self._store, self._began = store, time.monotonic()
        self._waiting: list[tuple[str, Sequence[str], tuple[Any, ...]]] = []
        self._next_try, self._pause = 0.0, FLUSH_SECONDS
        source = (part.version_id, part.selection_id)
        training = (self.training_id, where, str(part.base), part.recipe, part.method, *source, text, utc_now())
        self._waiting.append(("trainings", _TRAINING, training))
        machine = (os.getpid(), part.device, part.cards, part.usd_per_hour)
        started = (self.part_id, self.training_id, *machine, part.from_step, utc_now())
        self._waiting.append(("training_parts", _PART, started))
        self._flush()

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Record one optimizer step: the columns of training_steps by name. Written at most every FLUSH_SECONDS."""
        seconds = time.monotonic() - self._began
        row = (self.part_id, *(metrics[name] for name in _TAKEN), seconds, utc_now())
        self._waiting.append(("training_steps", _STEP, row))
        if time.monotonic() >= self._next_try:
            self._flush()

    def held_out(self, loss: HeldOutLoss) -> None:
        """Record the loss on the held-out rows after a step; it is written with the next one."""
        row = (self.part_id, loss.step, loss.loss, loss.rows, loss.tokens, utc_now())
        self._waiting.append(("training_held_out_losses", _HELD_OUT, row))

    def end(self, outcome: str, message: str | None = None) -> bool:
        """Record how the part ended: done, stopped or failed. False where the database could not be written."""
        row = (self.part_id, outcome, message, time.monotonic() - self._began, utc_now())
        self._waiting.append(("training_part_ends", _END, row))
        return self._flush(wait=LAST_SECONDS)

    def _flush(self, wait: float = 0.05) -> bool:
        """Write what waits, in one transaction. Where that fails it is retried later, at growing intervals."""
        waiting = list(self._waiting)
        tables = list(dict.fromkeys(table for table, _, _ in waiting))
        try:
            with self._store.transaction(wait=wait) as con:
                for table in tables:
                    columns = next(names for name, names, _ in waiting if name == table)
                    together = [row for name, _, row in waiting if name == table]
                    append(con, table, columns, together, unique=table in ("trainings", "training_part_ends"))
        except AlpaSiftError:
            self._pause = min(60.0, 2 * self._pause)
            self._next_try = time.monotonic() + self._pause
            return False
        del self._waiting[: len(waiting)]
        self._pause = FLUSH_SECONDS
        self._next_try = time.monotonic() + self._pause
        return True
