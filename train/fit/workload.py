"""What is trained on, as a forecast sees it: the lengths of the examples, and how they are laid out in steps.

    lengths_of -> Lengths -> Workload --lay_out--> Layout

Arithmetic on token counts; knows nothing of models or cards.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from alpasift.train.artifacts import TrainError
from alpasift.train.fit.train_config import TrainConfig
from alpasift.train.packing import Plan, plan

EXACT_EXAMPLES = 10_000
"""More examples than these are laid out from a sample of as many."""
_EXACT_ROWS = 40_000  # examples x epochs


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of each example, prompt and response together, cut to `max_length`.

    trained     tokens of responses, the only ones that count in the loss
    truncated   examples that were longer, `dropped` ones included
    counted_by  where the counts come from, for the user
    dropped     examples whose prompt alone was longer, so that nothing of them is trained on
    """

    tokens: tuple[int, ...]
    trained: int
    truncated: int
    max_length: int
    counted_by: str
    dropped: int = 0

    @property
    def total(self) -> int:
        return sum(self.tokens)

    @property
    def trained_share(self) -> float:
        return self.trained / self.total if self.total else 0.0


def lengths_of(prompt: Sequence[int], response: Sequence[int], max_length: int, counted_by: str) -> Lengths:
    """Lengths as the training will see them; examples with no room left for a response are dropped and counted.

    Raises TrainError when none is left.
    """
    pairs = [(p, min(p + r, max_length)) for p, r in zip(prompt, response, strict=True) if p < max_length]
    if not pairs:
        raise TrainError(f"none of {len(prompt):,} examples has a prompt below --max-length {max_length}")
    return Lengths(
        tuple(total for _, total in pairs),
        trained=sum(total - p for p, total in pairs),
        truncated=sum(p + r > max_length for p, r in zip(prompt, response, strict=True)),
        max_length=max_length,
        counted_by=counted_by,
        dropped=len(prompt) - len(pairs),
    )


@dataclass(frozen=True, slots=True)
class Workload:
    """The examples of a training and how often they are seen. `batch` is examples per optimizer step, on all cards."""

    lengths: Lengths
    batch: int = 128
    epochs: float = 3
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """What the plan of a whole training amounts to; estimated from a sample of the examples where `sampled`.

    microbatches   of each step on each card: the gradient accumulation
    rows           packed rows of the whole training, on all cards
    max_tokens     padded tokens of the largest micro-batch; `longest_row` those of the longest row
    """

    steps: int
    microbatches: int
    rows: int
    tokens: int
    padded_tokens: int
    max_tokens: int
    longest_row: int
    sampled: bool


def lay_out(workload: Workload, config: TrainConfig, sample: int = EXACT_EXAMPLES) -> Layout:
    """Lay out the training; where there are many examples, from one epoch of `sample` of them.

    The sample is drawn with the workload's seed and includes the longest example.
    """
    tokens, epochs = workload.lengths.tokens, workload.epochs
    if len(tokens) <= sample and len(tokens) * epochs <= _EXACT_ROWS:
        exact = _plan(tokens, epochs, workload, config)
        return _layout(exact, config, steps=len(exact.steps), tokens=exact.tokens, sampled=False)
    drawn = list(tokens)
    if len(tokens) > sample:
        drawn = [*random.Random(workload.seed).sample(drawn, sample - 1), max(tokens)]
    one_epoch = _plan(drawn, 1, workload, config)
    per_epoch = -(-len(tokens) // workload.batch)
    steps = max(1, round(epochs * per_epoch))
    total = round(workload.lengths.total * steps / per_epoch)
    return _layout(one_epoch, config, steps=steps, tokens=total, sampled=True)


def _plan(tokens: Sequence[int], epochs: float, workload: Workload, config: TrainConfig) -> Plan:
    return plan(
        tokens,
        pack_length=config.pack_length,
        micro_batch=config.micro_batch,
        batch=workload.batch,
        epochs=epochs,
        seed=workload.seed,
        cards=config.cards,
    )


def _layout(planned: Plan, config: TrainConfig, *, steps: int, tokens: int, sampled: bool) -> Layout:
    padded = round(tokens * planned.padded_tokens / planned.tokens) if sampled else planned.padded_tokens
    rows = steps * planned.microbatches * config.micro_batch * config.cards
    return Layout(steps, planned.microbatches, rows, tokens, padded, planned.max_tokens, planned.longest_row, sampled)
