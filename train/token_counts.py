"""How many tokens examples have, for a forecast: by a tokenizer.json, or by characters where there is none.

Call `count_tokens`, or `estimate_tokens` where there may be many rows. Without torch and transformers. A chat template
is counted as the Alpaca layout, which is about as long.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alpasift.graders import Example
from alpasift.train.artifacts import TrainError
from alpasift.train.data import alpaca_prompt

CHARS_PER_TOKEN = 4.28
"""Characters per token of Alpaca's rows under a vocabulary of 32,000, measured over 9,229 rows."""
SAMPLE = 2_000
"""Examples that `estimate_tokens` tokenises; 52,000 would take twenty seconds."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Tokens of each example's prompt and response, begin and end tokens included, and where the counts come from."""

    prompt: list[int]
    response: list[int]
    counted_by: str


def count_tokens(examples: Sequence[Example], tokenizer_folder: Path | None) -> Counts:
    """Tokens of each example, by the folder's tokenizer.json where it has one, else by characters."""
    prompts, responses = [alpaca_prompt(example) for example in examples], [example.output for example in examples]
    file = tokenizer_folder / "tokenizer.json" if tokenizer_folder else None
    if file is None or not file.is_file():
        reason = f"{tokenizer_folder} has no tokenizer.json" if tokenizer_folder else "no tokenizer was given"
        return _by_characters(prompts, responses, reason)
    try:
        from tokenizers import Tokenizer
    except ImportError:
        reason = "the package tokenizers is not installed (pip install 'alpasift[train]')"
        return _by_characters(prompts, responses, reason)
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises plain exceptions
        raise TrainError(f"{file} cannot be read as a tokenizer: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    prompt, response = (
        [len(one) + 1 for one in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        for texts in (prompts, responses)
    )
    return Counts(prompt, response, f"the tokenizer {file}")


def estimate_tokens(examples: Sequence[Example], tokenizer_folder: Path | None) -> Counts:
    """Tokens of each example: of more than SAMPLE rows a sample is tokenised, the others are estimated from it.

    The others are counted by characters, scaled by how far characters were off on the sample.
    """
    has_tokenizer = tokenizer_folder is not None and (tokenizer_folder / "tokenizer.json").is_file()
    if not has_tokenizer or len(examples) <= SAMPLE:
        return count_tokens(examples, tokenizer_folder)
    drawn = sorted(random.Random(0).sample(range(len(examples)), SAMPLE))
    exact = count_tokens([examples[n] for n in drawn], tokenizer_folder)
    rough = count_tokens(examples, None)
    if exact.counted_by.startswith("characters"):  # the package that reads tokenizer.json is missing
        return Counts(rough.prompt, rough.response, exact.counted_by)
    return Counts(
        _scaled(drawn, exact.prompt, rough.prompt),
        _scaled(drawn, exact.response, rough.response),
        f"{exact.counted_by} on {SAMPLE:,} examples, the others estimated from their characters",
    )


def _by_characters(prompts: Sequence[str], responses: Sequence[str], reason: str) -> Counts:
    prompt, response = (
        [max(1, round(len(text) / CHARS_PER_TOKEN)) + 1 for text in texts] for texts in (prompts, responses)
    )
    return Counts(prompt, response, f"characters / {CHARS_PER_TOKEN}: {reason}")


def _scaled(drawn: Sequence[int], exact: Sequence[int], rough: Sequence[int]) -> list[int]:
    """The exact counts of drawn examples; for the others the rough ones times the sample's ratio."""
    ratio = sum(exact) / sum(rough[n] for n in drawn)
    counts = [max(1, round(size * ratio)) for size in rough]
    for number, tokens in zip(drawn, exact, strict=True):
        counts[number] = tokens
    return counts
