"""What some requests are for a local model: rows, tokens, and which of the tokens are worked out for each row anew.

The fixed text stands first in every prompt and is worked out once, so time goes by what follows it. Tokens are counted
as four characters each. Knows requests; nothing of engines.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from decimal import Decimal

from alpasift.graders.interface.types import Estimate, Request

CHARACTERS_PER_TOKEN = 4
_COMPARED = 16
"""Requests by which the fixed text is found."""


def free_estimate(requests: Iterable[Request], notes: tuple[str, ...]) -> Estimate:
    """The estimate of a model that costs no dollars; how long it takes is for others to say."""
    count = characters = row_characters = answers = 0
    prompts: list[str] = []
    for request in requests:
        count += 1
        characters += sum(len(text) for _, text in request.messages)
        answers += request.expected_output_tokens or request.max_tokens
        if request.want_logprobs:  # the probabilities of all choices are read besides
            answers += len(request.choices or ()) // 2 + 1
        if request.example is not None:
            e = request.example
            row_characters += len(e.instruction) + len(e.input) + len(e.output)
        if len(prompts) < _COMPARED:
            prompts.append("".join(text for _, text in request.messages))
    fixed = len(os.path.commonprefix(prompts)) if len(prompts) > 1 else 0  # noqa: RUF071  letters, not paths
    free = Decimal(0)
    return Estimate(
        count,
        free,
        free,
        free,
        free,
        None,
        characters // CHARACTERS_PER_TOKEN,
        answers,
        own_tokens=(characters - count * fixed) // CHARACTERS_PER_TOKEN,
        row_characters=row_characters,
        notes=notes,
    )
