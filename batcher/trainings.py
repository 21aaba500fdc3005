"""Trainings in the store: what was trained, its curve, and its hours on the machine account.

Knows tables; nothing of torch or of how a model is trained: `Recorder.step` is handed numbers. A training may run beside
anything else, so it holds no lock, and a database that cannot be written now, because somebody has it open or its disk is full,
never stops one: what is to be written waits in memory, in order, and `end` says whether all of it arrived.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from batcher.store import Store, append, hash_id, new_id, utc_now
from graders import AlpaSiftError

FLUSH_SECONDS = 2.0
LAST_SECONDS = 10.0
"""How long the end of a training waits for a database that somebody else holds."""
_STEP = (
    "part_id", "step", "epoch", "loss", "learning_rate", "grad_norm", "examples", "tokens", "tokens_per_second",
    "peak_bytes", "seconds", "recorded_at",
)  # fmt: skip
_TAKEN = _STEP[1:-2]
_TRAINING = (
    "training_id", "folder", "base", "recipe", "method", "version_id", "selection_id", "facts", "recorded_at",
)  # fmt: skip
_PART = ("part_id", "training_id", "pid", "device", "cards", "usd_per_hour", "from_step", "started_at")
_END = ("part_id", "outcome", "message", "seconds", "ended_at")


class Recorder:
    """Writes one part of a training: its begin, each step, its end."""

    def __init__(
        self, store: Store, *, folder: Path, base: Path, recipe: str, method: str, facts: Mapping[str, Any], device: str,
        from_step: int = 0, cards: int = 1, usd_per_hour: Decimal | None = None, version_id: str | None = None,
        selection_id: str | None = None,
    ) -> None:  # fmt: skip
        """Begin a part of a training, which goes on after `from_step`.

        `usd_per_hour` is the price of all its cards together; `facts` must hold "steps" and make the training what it
        is: the same folder and facts are the same training.
        """
        text = json.dumps(facts, sort_keys=True, ensure_ascii=False)
        where = str(folder.resolve())
        self.training_id, self.part_id = hash_id("training", where, text), new_id()
        self._store, self._began = store, time.monotonic()
        self._waiting: list[tuple[str, Sequence[str], tuple[Any, ...]]] = []
        self._next_try, self._pause = 0.0, FLUSH_SECONDS
        training = (self.training_id, where, str(base), recipe, method, version_id, selection_id, text, utc_now())
        self._waiting.append(("trainings", _TRAINING, training))
        part = (self.part_id, self.training_id, os.getpid(), device, cards, usd_per_hour, from_step, utc_now())
        self._waiting.append(("training_parts", _PART, part))
        self._flush()

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Keep one optimizer step: the columns of training_steps by name. Written at most every FLUSH_SECONDS."""
        seconds = time.monotonic() - self._began
        row = (self.part_id, *(metrics[name] for name in _TAKEN), seconds, utc_now())
        self._waiting.append(("training_steps", _STEP, row))
        if time.monotonic() >= self._next_try:
            self._flush()

    def end(self, outcome: str, message: str | None = None) -> bool:
        """Keep how the part ended: done, stopped or failed. False where the database could not be written."""
        row = (self.part_id, outcome, message, time.monotonic() - self._began, utc_now())
        self._waiting.append(("training_part_ends", _END, row))
        return self._flush(wait=LAST_SECONDS)

    def _flush(self, wait: float = 0.05) -> bool:
        """Write what waits, in one transaction. Where that fails it is tried again later, more and more seldom."""
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
