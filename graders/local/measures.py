"""What the probabilities of an answer's tokens say about its row: IFD, S-IFD and fit.

    ifd     ppl(answer | instruction) / ppl(answer)  =  exp(mean_t(alone_t - with_t))
    s-ifd   the same mean, over the tokens whose |alone_t - with_t| is largest: the upper half of them
    fit     mean_t(with_t), after the model's chat template

where with_t and alone_t are the natural log-probabilities of the answer's token t after the instruction, and without
it. IFD: Li et al., arXiv 2308.12032, by a small model in 2402.00530 (Superfiltering), whose plain layout of the prompt
is used: the texts, a line each. 1 means that the instruction does not help to predict the answer, more that it
misleads; rows of 1 and more are left out by the papers, of the others those of the highest figure are kept. S-IFD: Fu
et al., arXiv 2506.01317 (T-SHIRT), with one difference: there the half is taken of all tokens of the dataset, here of
the row's, so that a row's figure depends on nothing but the row and the model. Its second step, which adds noise to the
embeddings and prefers rows whose figure stays, is not here. Fit: Zhang et al., arXiv 2502.04194 (GRAPE).

Knows numbers and examples; nothing of models or tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from alpasift.graders import Example

VERSION = "1"
"""Raise it when any row would be measured differently: it is part of every question's identity."""
SHARE = 0.5
"""The share of a row's tokens that S-IFD keeps; the paper's choice for GPT-2 as the model that measures."""

MeasureName = Literal["ifd", "s-ifd", "fit"]


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured, and in words how it came about."""

    value: float
    detail: str


def measured(measure: MeasureName, with_prompt: Sequence[float], alone: Sequence[float] = ()) -> Figure | None:
    """The figure from the log-probabilities of the answer's tokens, the same tokens in both; None if not finite."""
    count = len(with_prompt)
    mean_with = math.fsum(with_prompt) / count
    if measure == "fit":
        value, detail = min(mean_with, 0.0), f"{_tokens(count)}, perplexity {_power(-mean_with):.4g}"
    else:
        shifts = [a - w for a, w in zip(alone, with_prompt, strict=True)]
        used = shifts if measure == "ifd" else largest(shifts, math.ceil(SHARE * count))
        value = _power(math.fsum(used) / len(used))
        detail = (
            f"{_tokens(count)}, mean log-probability {mean_with:.4f} after the instruction and "
            f"{math.fsum(alone) / count:.4f} alone"
        )
        if measure == "s-ifd":
            detail += f"; measured over the {len(used)} that change most"
    return Figure(value, detail) if math.isfinite(value) else None


def largest(shifts: Sequence[float], count: int) -> list[float]:
    """Those of the numbers that are farthest from 0; of equal ones the first."""
    return sorted(shifts, key=lambda shift: -abs(shift))[:count]


def _power(exponent: float) -> float:
    try:
        return math.exp(exponent)
    except OverflowError:
        return math.inf


def _tokens(count: int) -> str:
    return f"{count:,} token{'' if count == 1 else 's'} of the output"


# -- texts --------------------------------------------------------------------------------------------------------


def plain_prompt(example: Example) -> str:
    """Everything before the answer, a line each, as Superfiltering lays it out; it ends in a line break."""
    parts = [example.system, *(turn.content for turn in example.turns), example.instruction, example.input]
    return "".join(f"{part}\n" for part in parts if part)


def chat_messages(example: Example) -> tuple[tuple[str, str], ...]:
    """(role, text) of all messages before the answer, as training lays them out."""
    request = f"{example.instruction}\n\n{example.input}" if example.input.strip() else example.instruction
    system = (("system", example.system),) if example.system else ()
    return (*system, *((turn.role, turn.content) for turn in example.turns), ("user", request))
