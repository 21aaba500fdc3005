"""From examples to what a model is trained on: prompt, token ids, where the loss counts, rows without padding.

Loss counts on the response and the token that ends it, nowhere else. Prompt and response are tokenised as one text, and
the prompt's own tokens must come first in it: that is what the model will be given when it is asked. Where a token
spans the boundary, the two are tokenised apart and the row is counted. Text of a row is never read as a special token.

    Example -> Prompted(prompt, response) -> ids | prompt_tokens -> packs (train/packing.py) -> collate

Knows templates and tokenizers; nothing of models. Imports torch only to build a batch.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from graders import Example
from graders.chat import layout_of
from train.artifacts import TrainError
from train.packing import Microbatch

if TYPE_CHECKING:
    import torch

Template = Literal["alpaca", "chat"]
IGNORED = -100
"""A label where the loss does not count, as torch's cross-entropy has it."""
CHARS_PER_TOKEN = 4.28
"""Characters a token of Alpaca's rows under a vocabulary of 32,000, measured over 9,229 rows."""
BATCH_ROWS = 2_000

SENTENCE = "Here is a task, perhaps with an input. Write the answer."
"""One sentence, with input and without: what renders a chat template for a model that is served does not see the texts."""
CHAT_TEMPLATE = (
    "{% set rest = messages %}"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% set rest = messages[1:] %}"
    "{% else %}" + SENTENCE + "{% endif %}"
    "{% for message in rest %}"
    "{% if message['role'] == 'assistant' %}{{ '\\n\\n### Response:\\n' }}{% else %}{{ '\\n\\n### Instruction:\\n' }}{% endif %}"
    "{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\n### Response:\\n' }}{% endif %}"
)
"""The Alpaca layout as a chat template, so that whoever serves the trained model asks it as it was trained. A row's input
is part of the user's message there, as `user_text` writes it."""


@dataclass(frozen=True, slots=True)
class Prompted:
    """What a model is shown, up to where it answers, what it should answer, and the template's own end of an answer.

    `end` "" stands for the tokenizer's end-of-text token.
    """

    prompt: str
    response: str
    end: str = ""


def alpaca_prompt(example: Example) -> str:
    """The Alpaca layout (Taori et al. 2023) in our own words: a sentence, the task, its input where it has one.

    Ends in a line break, which no tokenizer joins with the answer's first word. Earlier turns stand above as tasks and
    answers of their own; a system text takes the place of the sentence.
    """
    blocks = [example.system or SENTENCE]
    for turn in example.turns:
        blocks.append(f"### {'Response' if turn.role == 'assistant' else 'Instruction'}:\n{turn.content}")
    blocks.append(f"### Instruction:\n{example.instruction}")
    if example.input.strip():
        blocks.append(f"### Input:\n{example.input}")
    return "\n\n".join([*blocks, "### Response:\n"])


def user_text(example: Example) -> str:
    """A row's task and input as one message of a user, so that CHAT_TEMPLATE gives what `alpaca_prompt` does."""
    return f"{example.instruction}\n\n### Input:\n{example.input}" if example.input.strip() else example.instruction


def messages_of(example: Example) -> list[tuple[str, str]]:
    """(role, text) of all that stands before the answer."""
    asked = f"{example.instruction}\n\n{example.input}" if example.input.strip() else example.instruction
    system = [("system", example.system)] if example.system else []
    return [*system, *((turn.role, turn.content) for turn in example.turns), ("user", asked)]


# -- token ids --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Examples as token ids.

    ids             of each kept example, prompt, response and end, at most `max_length`
    prompt_tokens   of each: where the loss begins
    rows            of each: its number among the examples given
    truncated       how many lost the end of their response, with the token that ends it, to `max_length`
    apart           how many had a token across the boundary, or a special token's name in their text, and were
                    tokenised in pieces
    dropped         how many could not be used, by reason
    """

    ids: list[array[int]]
    prompt_tokens: array[int]
    rows: array[int]
    truncated: int
    apart: int
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.ids]

    @property
    def trained_tokens(self) -> int:
        """Tokens the loss counts on, in one pass over the examples."""
        return sum(len(ids) - start for ids, start in zip(self.ids, self.prompt_tokens, strict=True))


DROPPED = {
    "empty_output": "without an output to learn",
    "prompt_too_long": "whose prompt leaves no room for an output below the longest length",
}


def tokenize(
    examples: Sequence[Example],
    tokenizer: Any,
    *,
    template: Template = "alpaca",
    max_length: int = 512,
    progress: Callable[[int], None] | None = None,
) -> Tokenized:
    """Token ids of examples under a transformers tokenizer. Raises TrainError when no example can be used."""
    render = _renderer(tokenizer, template)
    special = _special_pattern(tokenizer) if template == "chat" else None
    ids: list[array[int]] = []
    prompt_tokens, rows, dropped = array("i"), array("q"), Counter[str]()
    truncated = apart = 0
    begin = _begins_with(tokenizer) if template == "alpaca" else []
    ends: dict[str, list[int]] = {"": [tokenizer.eos_token_id]}
    for start in range(0, len(examples), BATCH_ROWS):
        page = examples[start : start + BATCH_ROWS]
        prompted = [render(example) for example in page]
        prompts = _encode(tokenizer, [p.prompt for p in prompted], plain=special is None)
        wholes = _encode(tokenizer, [p.prompt + p.response + p.end for p in prompted], plain=special is None)
        for number, (example, text, prompt, whole) in enumerate(zip(page, prompted, prompts, wholes, strict=True)):
            if not example.output.strip():
                dropped["empty_output"] += 1
                continue
            if text.end not in ends:
                ends[text.end] = _end_ids(tokenizer, text.end)
            hostile = special is not None and special.search(_row_text(example)) is not None
            if hostile:
                prompt = _in_pieces(tokenizer, example)
            if hostile or whole[: len(prompt)] != prompt:
                apart += 1
                answer = _encode(tokenizer, [text.response], plain=True)[0] + ends[text.end]
            else:
                answer = whole[len(prompt) :] + ([] if text.end else ends[""])
            joined = array("i", [*begin, *prompt, *answer])
            first = len(begin) + len(prompt)
            if first >= max_length:
                dropped["prompt_too_long"] += 1
                continue
            truncated += len(joined) > max_length
            ids.append(joined[:max_length])
            prompt_tokens.append(first)
            rows.append(start + number)
        if progress:
            progress(start + len(page))
    if not ids:
        why = ", ".join(f"{count:,} {DROPPED[reason]}" for reason, count in dropped.items())
        raise TrainError(f"none of the {len(examples):,} rows can be trained on{': ' + why if why else ''}")
    return Tokenized(ids, prompt_tokens, rows, truncated, apart, dict(dropped))


def _renderer(tokenizer: Any, template: Template) -> Callable[[Example], Prompted]:
    if template == "alpaca":
        return lambda example: Prompted(alpaca_prompt(example), example.output)
    if not tokenizer.chat_template:
        raise TrainError("this model has no chat template; --template alpaca asks in the form of Alpaca")
    ends = _special_pattern(tokenizer)

    def render(example: Example) -> Prompted:
        if not example.output.strip():
            return Prompted("", "")  # dropped by the caller
        said = [{"role": role, "content": text} for role, text in messages_of(example)]
        answer = example.output.strip()
        try:
            prompt = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
            whole = tokenizer.apply_chat_template([*said, {"role": "assistant", "content": answer}], tokenize=False)
        except Exception as error:  # whatever a template's own text makes jinja raise
            raise TrainError(f"the model's chat template refuses {[m['role'] for m in said]}: {error}") from error
        if not whole.startswith(prompt):
            raise TrainError(
                "the model's chat template begins an answer otherwise than it writes one down (one that opens a thought "
                "does): what would be trained is not what would be asked; take --template alpaca"
            )
        at = whole.find(answer, len(prompt))
        if at < 0:
            raise TrainError("the model's chat template does not repeat the answer as it is; take --template alpaca")
        tail = whole[at + len(answer) :]
        found = ends.search(tail)
        return Prompted(prompt, whole[len(prompt) : at] + answer, tail[: found.end()] if found else "")

    return render


def _end_ids(tokenizer: Any, end: str) -> list[int]:
    """The tokens of what ends an answer, as they come after text."""
    before, whole = _encode(tokenizer, ["x", "x" + end], plain=False)
    return whole[len(before) :] if whole[: len(before)] == before else _encode(tokenizer, [end], plain=False)[0]


def _special_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Finds the name of a special token; one that never matches where there is none."""
    names = {str(token.content) for token in tokenizer.added_tokens_decoder.values()} | set(
        tokenizer.all_special_tokens
    )
    return re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True) if name) or "(?!)")


def _row_text(example: Example) -> str:
    return "\n".join([*(text for _, text in messages_of(example)), example.output])


def _in_pieces(tokenizer: Any, example: Example) -> list[int]:
    """The prompt of a row that writes out a special token's name: the template's texts and the row's tokenised apart."""
    said = messages_of(example)

    def render(messages: list[tuple[str, str]]) -> str:
        form = [{"role": role, "content": text} for role, text in messages]
        return str(tokenizer.apply_chat_template(form, tokenize=False, add_generation_prompt=True))

    prompt: list[int] = []
    for piece in layout_of([role for role, _ in said], render):
        own = isinstance(piece, str)
        prompt += _encode(tokenizer, [piece if isinstance(piece, str) else said[piece][1]], plain=not own)[0]
    return prompt


def _encode(tokenizer: Any, texts: list[str], plain: bool) -> list[list[int]]:
    """Token ids of texts, nothing added; with `plain` the name of a special token is text like any other."""
    found = tokenizer(texts, add_special_tokens=False, split_special_tokens=plain, verbose=False)["input_ids"]
    return [list(ids) for ids in found]


def _begins_with(tokenizer: Any) -> list[int]:
    """The token that this tokenizer puts before a text, if it does."""
    ids = tokenizer("x")["input_ids"]
    return (
        [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id] else []
    )


def serving_template(tokenizer: Any, template: Template) -> str:
    """The chat template under which a model trained with `template` should be asked."""
    if template == "chat":
        return str(tokenizer.chat_template)
    begins = "{{ bos_token }}" if _begins_with(tokenizer) else ""
    return begins + CHAT_TEMPLATE


# -- batches ----------------------------------------------------------------------------------------------------------


def collate(microbatch: Microbatch, data: Tokenized, pad_id: int) -> dict[str, torch.Tensor]:
    """The rows of a micro-batch side by side.

    Returns input_ids (B, T) int64, labels (B, T) with IGNORED where the loss does not count, and position_ids (B, T) that
    restart with each example, from which transformers keeps the examples of a row from seeing each other. T is the
    longest row; a shorter one ends in an example of its own, of `pad_id`, on which no loss counts. Where each row holds
    one example, positions run on into the tail: no token looks ahead, so none sees it, and no mask is needed.
    """
    import torch

    fills = [sum(len(data.ids[n]) for n in pack) for pack in microbatch]
    width = max(1, *fills)
    shape = (len(microbatch), width)
    ids = torch.full(shape, pad_id, dtype=torch.int64)
    labels = torch.full(shape, IGNORED, dtype=torch.int64)
    positions = torch.arange(width).repeat(len(microbatch), 1)
    apart = any(len(pack) > 1 for pack in microbatch)
    for row, pack in enumerate(microbatch):
        at = 0
        for n in pack:
            tokens, start = data.ids[n], data.prompt_tokens[n]
            end = at + len(tokens)
            ids[row, at:end] = torch.tensor(tokens, dtype=torch.int64)
            labels[row, at + max(start, 1) : end] = ids[row, at + max(start, 1) : end]
            if apart:
                positions[row, at:end] = torch.arange(len(tokens))
            at = end
        if apart:
            positions[row, at:] = torch.arange(width - at)
    return {"input_ids": ids, "labels": labels, "position_ids": positions}


# -- lengths for a forecast -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Counts:
    """Tokens of each example's prompt and response, the tokens that begin and end it included; `how` they were counted."""

    prompt: list[int]
    response: list[int]
    how: str


def token_counts(examples: Sequence[Example], tokenizer_folder: Path | None, template: Template = "alpaca") -> Counts:
    """How long examples are: by the folder's tokenizer.json where there is one, else by characters.

    Without torch and transformers. A chat template is counted as the Alpaca frame, which is about as long.
    """
    prompts = [alpaca_prompt(example) for example in examples]
    file = tokenizer_folder / "tokenizer.json" if tokenizer_folder else None
    if file is not None and file.is_file():
        try:
            from tokenizers import Tokenizer
        except ImportError:
            how = f"characters / {CHARS_PER_TOKEN}: the package tokenizers is not installed (pip install 'alpasift[train]')"
        else:
            try:
                tokenizer = Tokenizer.from_file(str(file))
            except Exception as error:  # the package raises plain exceptions
                raise TrainError(f"{file} cannot be read as a tokenizer: {error}") from error
            tokenizer.no_truncation()
            tokenizer.no_padding()
            sizes = []
            for texts in (prompts, [example.output for example in examples]):
                encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
                sizes.append([len(one) + 1 for one in encoded])  # begin, end
            return Counts(sizes[0], sizes[1], f"the tokenizer {file}")
    else:
        where = f"{tokenizer_folder} has no tokenizer.json" if tokenizer_folder else "no tokenizer was given"
        how = f"characters / {CHARS_PER_TOKEN}: {where}"
    by_characters = [
        [max(1, round(len(text) / CHARS_PER_TOKEN)) + 1 for text in texts]
        for texts in (prompts, [example.output for example in examples])
    ]
    return Counts(by_characters[0], by_characters[1], how)


def composition(data: Tokenized, given: int) -> Mapping[str, int]:
    """The counts that a person is told, as they stand in the facts of a training."""
    return {
        "rows": given, "examples": len(data.ids), "tokens": sum(data.lengths), "trained_tokens": data.trained_tokens,
        "truncated": data.truncated, "tokenised_apart": data.apart, **{f"dropped_{k}": v for k, v in data.dropped.items()},
    }  # fmt: skip
