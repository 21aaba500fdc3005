"""Metrics of a training: one line per optimizer step in metrics.jsonl, and the speed of this machine.

`MetricsLog.step` is called after each step; it writes the line, passes it on, and measures steps MEASURED_FROM to
MEASURED_TO for the next forecast.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from alpasift.train.prepare import Prepared

MEASURED_FROM, MEASURED_TO = 5, 20
"""Steps between which speed is measured: after warming up, early enough to be useful."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """One optimizer step. The field names are the keys in metrics.jsonl.

    tokens             real tokens of this step, without padding
    seconds            that the training has taken so far, earlier parts included, and loading and saving
    loading_seconds, saving_seconds   of these: until the first step of each part; for checkpoints and the model
    tokens_per_second  of this step
    peak_bytes         the most that a card's allocator has reserved; on the CPU, that this process has used
    seconds_left       at the speed of this part of the training
    """

    step: int
    steps: int
    epoch: int
    loss: float
    learning_rate: float
    grad_norm: float
    examples: int
    tokens: int
    seconds: float
    tokens_per_second: float
    peak_bytes: int
    seconds_left: float
    loading_seconds: float = 0.0
    saving_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class TimeTaken:
    """The seconds of a training, all its parts together, and which of them were loading and saving.

    The time that steps took which had to be repeated is in it. `loading` and `saving` are None where the training is of
    a release that did not count them.
    """

    seconds: float
    loading: float | None = None
    saving: float | None = None

    @property
    def training(self) -> float | None:
        """What is neither loading nor saving: steps, and the loss on held-out rows."""
        return None if self.loading is None or self.saving is None else self.seconds - self.loading - self.saving


@dataclass(frozen=True, slots=True)
class Measured:
    """What this machine did in steps MEASURED_FROM to MEASURED_TO, for the forecast of the next training.

    `saving_seconds` is of the whole training, None where it was not done in one part.
    """

    device: str
    steps: int
    tokens_per_second: float
    peak_bytes: int
    loading_seconds: float
    saving_seconds: float | None = None


class MetricsLog:
    """Writes a line per step and keeps the time. Opening it drops the lines of steps that will be repeated.

    Its clock runs from here, loading included, to `close`, which brings the last line's seconds up to date.
    """

    def __init__(
        self, path: Path, prepared: Prepared, done: int, observe: Callable[[Metrics], None] | None, writes: bool
    ) -> None:
        self._plan, self._observe, self._done = prepared.plan, observe, done
        self._lengths = prepared.data.lengths
        self._path, before = path, time_taken(path)
        self._before = before.seconds if before else 0.0
        self._loading, self._saving = (before.loading or 0.0, before.saving or 0.0) if before else (0.0, 0.0)
        kept = [line for line in _complete_lines(path) if line["step"] <= done]
        self.loss: float | None = float(kept[-1]["loss"]) if kept else None
        self.measured: Measured | None = None
        self._file = None
        if writes:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, kept)
            self._file = path.open("a", encoding="utf-8")
        self._began = self._steps_began = self._last = time.monotonic()
        self._ended: float | None = None
        self._tokens_timed, self._seconds_timed = 0, 0.0
        self._excluded = 0.0

    def begin(self) -> None:
        """All is loaded: from here on it is steps."""
        self._steps_began = self._last = time.monotonic()
        self._loading += self._steps_began - self._began

    @property
    def took(self) -> TimeTaken:
        """What the training has taken until now."""
        now = time.monotonic() if self._ended is None else self._ended
        return TimeTaken(self._before + now - self._began, self._loading, self._saving)

    @contextlib.contextmanager
    def untimed(self) -> Iterator[None]:
        """Exclude what happens inside from the speed; it still counts in the hours."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._excluded += time.monotonic() - began

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """The same, and count it as saving."""
        began = time.monotonic()
        try:
            with self.untimed():
                yield
        finally:
            self._saving += time.monotonic() - began

    def step(self, number: int, logs: dict[str, float]) -> None:
        """Record step `number`, from 1, with its loss, learning_rate and grad_norm."""
        now = time.monotonic()
        step = self._plan.steps[number - 1]
        tokens = sum(self._lengths[n] for group in step.microbatches for pack in group for n in pack)
        self.loss = logs["loss"]
        took = max(now - self._last - self._excluded, 1e-9)
        self._last, self._excluded = now, 0.0
        steps, done_here = len(self._plan.steps), number - self._done
        metrics = Metrics(
            step=number,
            steps=steps,
            epoch=step.epoch,
            loss=logs["loss"],
            learning_rate=logs["learning_rate"],
            grad_norm=logs["grad_norm"],
            examples=step.examples,
            tokens=tokens,
            seconds=self._before + now - self._began,
            tokens_per_second=tokens / took,
            peak_bytes=peak_bytes(),
            seconds_left=(steps - number) * (now - self._steps_began) / done_here,
            loading_seconds=self._loading,
            saving_seconds=self._saving,
        )
        self._measure(done_here, took, tokens)
        if self._file:
            self._file.write(json.dumps(asdict(metrics)) + "\n")
            self._file.flush()
        if self._observe:
            with self.untimed():
                self._observe(metrics)

    def _measure(self, done_here: int, took: float, tokens: int) -> None:
        if MEASURED_FROM < done_here <= MEASURED_TO:
            self._tokens_timed += tokens
            self._seconds_timed += took
        if done_here == MEASURED_TO:
            speed = self._tokens_timed / self._seconds_timed
            loading = self._steps_began - self._began
            self.measured = Measured(device_name(), done_here, speed, peak_bytes(), loading)

    def close(self) -> None:
        """Close the file. Its last line gets the time that has gone since: for a checkpoint, for the model."""
        self._ended = time.monotonic()
        if self.measured is not None and self._before == 0:
            self.measured = replace(self.measured, saving_seconds=self._saving)
        if not self._file:
            return
        self._file.close()
        took, lines = self.took, list(_complete_lines(self._path))
        if lines:
            ended = {"seconds": took.seconds, "loading_seconds": took.loading, "saving_seconds": took.saving}
            _write(self._path, [*lines[:-1], {**lines[-1], **ended}])


def time_taken(path: Path) -> TimeTaken | None:
    """What a training has taken, by the last line of its metrics; None where there is none."""
    last = max(_complete_lines(path), key=lambda line: float(line["seconds"]), default=None)
    if last is None:
        return None
    loading, saving = last.get("loading_seconds"), last.get("saving_seconds")
    return TimeTaken(float(last["seconds"]), loading, saving)


def _write(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write a metrics file, complete or not at all."""
    draft = path.with_name(f"{path.name}.partial")
    draft.write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
    draft.replace(path)


def _complete_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics file, up to one that a dying process left half-written."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                return
            if isinstance(line, dict) and {"step", "seconds", "loss"} <= set(line):
                yield line


def peak_bytes() -> int:
    """The most that this process's card allocator has reserved; without a card the most memory it has used."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    return process_peak_bytes()


def process_peak_bytes() -> int:
    """The most memory that this program has used.

    On Linux VmHWM of /proc/self/status: getrusage's figure survives exec, so it starts with the peak of whatever large
    process started this one.
    """
    with contextlib.suppress(OSError, StopIteration, ValueError, IndexError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    import resource
    import sys

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def device_name() -> str:
    """The card's name as its driver gives it, or the processor's as "cpu:NAME"."""
    import torch

    from alpasift.graders.local.processor import cpu_name

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"cpu:{cpu_name()}"
