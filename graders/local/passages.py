"""From a row to the token sequences whose probabilities are measured: the answer after its prompt, and alone.

The answer is encoded apart and its tokens are joined to the prompt's, so that they are the same tokens in both,
whatever stands before them. Where the model begins its texts with a token of its own (BOS) both sequences begin with
it, and every token of the answer counts. Where it has none, nothing comes before the answer's first token when it
stands alone: it has no probability there, and counts in neither.

Knows texts and token ids; what encodes and what decodes is a `Scorer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from alpasift.graders import Example
from alpasift.graders.local.measures import MeasureName, chat_messages, plain_prompt


@dataclass(frozen=True, slots=True)
class Passage:
    """A token sequence of which the tokens from `start` (1 or more) on are measured."""

    tokens: Sequence[int]
    start: int


class Scorer(Protocol):
    """A model that tells how likely tokens are. Used by one thread at a time, but for `stop`."""

    path: Path
    context: int
    fingerprint: dict[str, str]
    facts: dict[str, str]
    template: str
    begin: list[int]
    """the tokens that every text begins with: BOS, or none"""

    def encode(self, text: str, *, within: bool) -> Sequence[int]:
        """The tokens of a row's text, special tokens off. `within`: other text goes before it."""
        ...

    def chat(self, messages: Sequence[tuple[str, str]]) -> Sequence[int]:
        """The tokens of messages in the model's chat template, up to where the answer begins."""
        ...

    def logprobs(self, passages: Sequence[Passage]) -> list[list[float] | str]:
        """Natural log-probabilities of each passage's measured tokens, or "backend_error: ..."."""
        ...

    def stop(self) -> None:
        """End the decode under way."""
        ...

    def close(self) -> None: ...


def passages_of(scorer: Scorer, measure: MeasureName, example: Example) -> list[Passage] | str:
    """What has to be read for a row's figure: after the prompt, and for all but fit alone; or why there is nothing."""
    if not example.output.strip():
        return "empty_output: there is no output to measure"
    messages = chat_messages(example)
    size = len(example.output) + sum(len(text) for _, text in messages)
    if size > 64 * scorer.context:  # no need to encode it, and some tokenizers overflow the stack on such texts
        return f"too_long: {size} characters, and the context is {scorer.context} tokens"
    answer = list(scorer.encode(example.output, within=True))
    if measure == "fit":
        prompt = list(scorer.chat(messages))
        found = [Passage(prompt + answer, len(prompt))]
    else:
        begin = list(scorer.begin)
        prompt = begin + list(scorer.encode(plain_prompt(example), within=False))
        first = 0 if begin else 1
        if len(answer) <= first:
            return "too_short: the output is a single token, and this model gives none to the first of a text"
        found = [
            Passage(prompt + answer, len(prompt) + first),
            Passage(begin + answer, len(begin) + first),
        ]
    longest = len(found[0].tokens)
    if longest > scorer.context:
        return f"too_long: {longest} tokens, and the context is {scorer.context}"
    return found
