"""Rows that are held out of a training, and the loss on them: the same rows and the same loss mask at every point.

The loss of a step is over other rows each time, so it shows no progress; that of the held-out rows does. Which rows
they are follows from the hashes of their ids alone: neither order nor seed moves it, more rows hold the fewer, and rows
of equal content are held out together. Knows token ids and a trainer; nothing of files, but for HeldOutLog's one.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from alpasift.train.artifacts import TrainError
from alpasift.train.data import IGNORED, Tokenized, collate
from alpasift.train.packing import Microbatch, best_fit

POINTS = 10
"""The loss is taken before the first step, at the end of each tenth of the steps, and after the last step."""
USUAL_ROWS, USUAL_SHARE = 64, 0.02
"""Held out where nobody says otherwise: so many rows, if they are no more than this share of all; else none."""


class Split(NamedTuple):
    """The rows to train on, those held out (None where there are none), and the ids of those."""

    data: Tokenized
    held_out: Tokenized | None
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HeldOutLoss:
    """The mean loss over the trained tokens of the held-out rows after a step; step 0 is before the first.

    The field names are the keys of a line in held_out.jsonl.
    """

    step: int
    loss: float
    rows: int
    tokens: int


def usual_rows(examples: int) -> int:
    """How many rows of a training on so many are held out unless something else is asked for."""
    return USUAL_ROWS if USUAL_SHARE * examples >= USUAL_ROWS else 0


def split(data: Tokenized, ids: Sequence[str], count: int) -> Split:
    """Hold out `count` distinct rows. `ids` are those of all given examples, as Tokenized.rows numbers them.

    Raises TrainError where no row would be left to train on.
    """
    if not count:
        return Split(data, None, ())
    by_id: dict[str, list[int]] = {}
    for number, row in enumerate(data.rows):
        by_id.setdefault(ids[row], []).append(number)
    if count >= len(by_id):
        raise TrainError(
            f"--hold-out {count:,} leaves nothing to train on: {len(by_id):,} distinct rows can be used; hold out fewer"
        )
    chosen = sorted(by_id, key=lambda one: hashlib.sha256(f"held out {one}".encode()).digest())[:count]
    apart = {number for one in chosen for number in by_id[one]}
    kept = [number for number in range(len(data.ids)) if number not in apart]
    return Split(_some(data, kept), _some(data, [by_id[one][0] for one in chosen]), tuple(chosen))


def _some(data: Tokenized, numbers: Sequence[int]) -> Tokenized:
    """These examples; the counts of what was cut or dropped stay those of all."""
    return Tokenized(
        [data.ids[n] for n in numbers],
        array("i", (data.prompt_tokens[n] for n in numbers)),
        array("q", (data.rows[n] for n in numbers)),
        data.truncated,
        data.in_pieces,
        data.dropped,
    )


def points(steps: int) -> frozenset[int]:
    """The steps after which the loss is taken, 0 for before the first."""
    return frozenset({*range(0, steps, -(-steps // POINTS)), steps})


def layout(data: Tokenized, pack_length: int | None, micro_batch: int) -> list[Microbatch]:
    """The held-out rows as the training lays its rows out: packed, or one in a row, so many rows at once."""
    if pack_length is None:
        longest_first = sorted(range(len(data.ids)), key=lambda n: (-len(data.ids[n]), n))
        packs: list[tuple[int, ...]] = [(n,) for n in longest_first]
    else:
        packs = [tuple(pack) for pack in best_fit(data.lengths, pack_length)]
    return [tuple(packs[at : at + micro_batch]) for at in range(0, len(packs), micro_batch)]


def loss_on(trainer: Any, data: Tokenized, microbatches: Sequence[Microbatch], pad_id: int) -> float:
    """The mean over all trained tokens of the held-out rows, by the forward pass that the training takes (trl's, whose
    head never holds all logits).

    Of several processes each takes its share of the micro-batches, and all get the same number.
    """
    import torch

    accelerator = trainer.accelerator
    model = trainer.model
    was_training = model.training
    model.eval()
    total = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    try:
        with torch.no_grad(), trainer.compute_loss_context_manager():
            for microbatch in microbatches[accelerator.process_index :: accelerator.num_processes]:
                batch = {k: v.to(accelerator.device) for k, v in collate(microbatch, data, pad_id).items()}
                log_probs = model(**batch, use_cache=False, fused_lm_head=True).log_probs  # 0 where no loss counts
                total[0] -= log_probs.double().sum()
                total[1] += (batch["labels"] != IGNORED).sum()
    finally:
        model.train(was_training)
    loss, tokens = accelerator.reduce(total, "sum").tolist()
    return float(loss / tokens)


class HeldOutLog:
    """The losses of a training's held-out rows in held_out.jsonl; those of steps that will be repeated are dropped."""

    def __init__(self, path: Path, done: int, observe: Callable[[HeldOutLoss], None] | None, writes: bool) -> None:
        self._path, self._observe, self._writes = path, observe, writes
        resumed = done > 0
        self.losses = [one for one in read_losses(path) if resumed and one.step <= done]
        if writes and path.exists():
            self._write()

    def add(self, loss: HeldOutLoss) -> None:
        self.losses = [*(one for one in self.losses if one.step < loss.step), loss]
        if self._writes:
            self._write()
        if self._observe:
            self._observe(loss)

    def _write(self) -> None:
        draft = self._path.with_name(f"{self._path.name}.partial")
        draft.write_text("".join(f"{json.dumps(asdict(one))}\n" for one in self.losses), "utf-8")
        draft.replace(self._path)


def read_losses(path: Path) -> list[HeldOutLoss]:
    """The losses in a held_out.jsonl, none where there is no such file."""
    if not path.is_file():
        return []
    return [HeldOutLoss(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]
