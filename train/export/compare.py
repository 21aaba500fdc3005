"""How far an export is from the model that was trained: both read the same texts, and their logits are compared.

`reference` computes the trained model's logits, `difference` compares another model's with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alpasift.train.artifacts import TrainError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TEXTS = (
    ("Which river flows through Vienna?", "The Danube flows through Vienna."),
    ("Put these numbers in order: 12, 3, 45, 7.", "3, 7, 12, 45"),
    ("Write one sentence about rain.", "Rain fell on the roof all night and filled the barrels by the door."),
    ("Explain in a few words why bread rises.", "Yeast makes gas, and the dough holds it as bubbles."),
    ("Give the plural of: leaf, mouse, city.", "leaves, mice, cities"),
    ("How would you thank a neighbour who lent you a ladder?", "Thank you for the ladder, it saved my afternoon!"),
)
"""Question and answer; the answer is read too, token by token."""
LONGEST = 256
"""Tokens of such a text at most."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Token ids of the texts, and the trained model's logits (T, V) float32 after each of their tokens."""

    rows: list[list[int]]
    logits: list[NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Difference:
    """Between the logits of two models after each of `tokens` tokens: maximum, mean, KL divergence in nats per token.

    The divergence is that of the second model's distribution from the first's. `of` names the models.
    """

    of: str
    max_abs: float
    mean_abs: float
    mean_kl: float
    tokens: int


def reference(tokenizer: Any, model: Any) -> Reference:
    """What the texts are compared with; as many tokens of each as the model has positions for."""
    longest = int(model.config.max_position_embeddings)
    rows = [row[:longest] for row in compared_texts(tokenizer)]
    return Reference(rows, list(logits(model, rows)))


def compared_texts(tokenizer: Any) -> list[list[int]]:
    """TEXTS as token ids: each asked under the tokenizer's chat template, and answered."""
    rows = []
    for question, answer in TEXTS:
        if tokenizer.chat_template:
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
            )
        else:
            prompt = f"{question}\n"
        ids = tokenizer(f"{prompt}{answer}", add_special_tokens=False)["input_ids"]
        rows.append(ids[:LONGEST])
    return rows


def logits(model: Any, rows: Sequence[Sequence[int]]) -> Iterator[NDArray[np.float32]]:
    """Logits (T, V) float32 of each row, one row at a time."""
    import torch

    with torch.inference_mode():
        for row in rows:
            yield model(torch.tensor([list(row)], device=model.device)).logits[0].float().cpu().numpy()


def difference(of: str, expected: Sequence[NDArray[np.float32]], found: Iterator[NDArray[np.float32]]) -> Difference:
    """Of two models' logits (T, V) over the same rows. KL = sum p (log p - log q), Kullback and Leibler 1951."""
    import numpy as np

    greatest = total = divergence = 0.0
    tokens = 0
    for one, other in zip(expected, found, strict=True):
        width = min(one.shape[1], other.shape[1])
        left, right = one[:, :width].astype(np.float64), other[:, :width].astype(np.float64)
        if not (np.isfinite(left).all() and np.isfinite(right).all()):
            raise TrainError("a logit of the exported model is not finite; train or export in bf16 or fp32")
        distance = np.abs(left - right)
        greatest, total = max(greatest, float(distance.max())), total + float(distance.mean(1).sum())
        p, q = (x - np.logaddexp.reduce(x, axis=1, keepdims=True) for x in (left, right))
        divergence += float((np.exp(p) * (p - q)).sum())
        tokens += len(one)
    return Difference(of, greatest, total / tokens, max(divergence / tokens, 0.0), tokens)
