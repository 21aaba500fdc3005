"""From examples to what a model is trained on: prompt, token ids, where the loss counts, batches.

    Example --template--> Prompted(prompt, response) --tokenize--> Tokenized --packing--> packs --collate--> batch

Loss counts on the response and the token that ends it, nowhere else. Prompt and response are tokenised as one text, and
the prompt's own tokens must come first in it: that is what the model is given when it is prompted. Where a token spans
the boundary, the two are tokenised separately and the row is counted. Text of a row is never read as a special token.

Knows templates and tokenizers; nothing of models. Imports torch only to build a batch.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from alpasift.graders import Example
from alpasift.graders.local.chat import layout_of
from alpasift.train.artifacts import TrainError
from alpasift.train.packing import Microbatch

if TYPE_CHECKING:
    import torch

Template = Literal["alpaca", "chat"]
IGNORED = -100
"""A label where the loss does not count, as torch's cross-entropy has it."""
BATCH_ROWS = 2_000

SENTENCE = "Here is a task, perhaps with an input. Write the answer."
"""The same with and without an input: whoever renders a chat template for a served model does not see the texts."""
CHAT_TEMPLATE = (
    "{% set rest = messages %}"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% set rest = messages[1:] %}"
    "{% else %}" + SENTENCE + "{% endif %}"
    "{% for message in rest %}"
    "{% if message['role'] == 'assistant' %}{{ '\\n\\n### Response:\\n' }}"
    "{% else %}{{ '\\n\\n### Instruction:\\n' }}{% endif %}"
    "{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\n### Response:\\n' }}{% endif %}"
)
"""The Alpaca layout as a chat template, so that whoever serves the trained model prompts it as it was trained. A row's
input is part of the user's message there, as `user_text` writes it."""


@dataclass(frozen=True, slots=True)
class Prompted:
    """The text up to where the model answers, the answer, and what the template ends an answer with.

    `end` "" stands for the tokenizer's end-of-text token.
    """

    prompt: str
    response: str
    end: str = ""


def alpaca_prompt(example: Example) -> str:
    """The Alpaca layout (Taori et al. 2023) in our own words: a sentence, the instruction, its input if it has one.

    Ends in a line break, which no tokenizer joins with the answer's first word. Earlier turns come first, as
    instructions and responses of their own; a system text replaces the sentence.
    """
    blocks = [example.system or SENTENCE]
    for turn in example.turns:
        blocks.append(f"### {'Response' if turn.role == 'assistant' else 'Instruction'}:\n{turn.content}")
    blocks.append(f"### Instruction:\n{example.instruction}")
    if example.input.strip():
        blocks.append(f"### Input:\n{example.input}")
    return "\n\n".join([*blocks, "### Response:\n"])


def user_text(example: Example) -> str:
    """A row's instruction and input as one user message, so that CHAT_TEMPLATE gives what `alpaca_prompt` does."""
    return f"{example.instruction}\n\n### Input:\n{example.input}" if example.input.strip() else example.instruction


def messages_of(example: Example) -> list[tuple[str, str]]:
    """(role, text) of all messages before the answer."""
    request = f"{example.instruction}\n\n{example.input}" if example.input.strip() else example.instruction
    system = [("system", example.system)] if example.system else []
    return [*system, *((turn.role, turn.content) for turn in example.turns), ("user", request)]


# -- token ids --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Examples as token ids.

    ids             of each kept example, prompt, response and end, at most `max_length`
    prompt_tokens   of each: where the loss begins
    rows            of each: its number among the given examples
    truncated       how many lost the end of their response, with the token that ends it, to `max_length`
    in_pieces       how many had a token across the boundary, or a special token's name in their text, and were
                    tokenised in pieces
    dropped         how many could not be used, by reason
    """

    ids: list[array[int]]
    prompt_tokens: array[int]
    rows: array[int]
    truncated: int
    in_pieces: int
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.ids]

    @property
    def trained_tokens(self) -> int:
        """Tokens the loss counts on, in one pass over the examples."""
        return sum(len(ids) - start for ids, start in zip(self.ids, self.prompt_tokens, strict=True))


DROPPED = {
    "empty_output": "without an output",
    "prompt_too_long": "whose prompt alone exceeds the maximum length",
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
    truncated = in_pieces = 0
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
                in_pieces += 1
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
        raise TrainError(f"none of the {len(examples):,} rows can be used for training{': ' + why if why else ''}")
    return Tokenized(ids, prompt_tokens, rows, truncated, in_pieces, dict(dropped))


def _renderer(tokenizer: Any, template: Template) -> Callable[[Example], Prompted]:
    if template == "alpaca":
        return lambda example: Prompted(alpaca_prompt(example), example.output)
    if not tokenizer.chat_template:
        raise TrainError("this model has no chat template; use --template alpaca")
    ends = _special_pattern(tokenizer)

    def render(example: Example) -> Prompted:
        if not example.output.strip():
            return Prompted("", "")  # dropped by the caller
        messages = [{"role": role, "content": text} for role, text in messages_of(example)]
        answer = example.output.strip()
        try:
            prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            whole = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": answer}], tokenize=False)
        except Exception as error:  # jinja raises whatever a template's text makes it raise
            raise TrainError(f"the model's chat template refuses {[m['role'] for m in messages]}: {error}") from error
        if not whole.startswith(prompt):
            raise TrainError(
                "the model's chat template starts an answer differently in the generation prompt (as templates "
                "with thinking do), "
                "so training would not match inference; use --template alpaca"
            )
        at = whole.find(answer, len(prompt))
        if at < 0:
            raise TrainError("the model's chat template changes the text of an answer; use --template alpaca")
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
    """The prompt of a row whose text has a special token's name: the template's and the row's texts separately."""
    messages = messages_of(example)

    def render(texts: list[tuple[str, str]]) -> str:
        given = [{"role": role, "content": text} for role, text in texts]
        return str(tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=True))

    prompt: list[int] = []
    for piece in layout_of([role for role, _ in messages], render):
        from_template = isinstance(piece, str)
        text = piece if isinstance(piece, str) else messages[piece][1]
        prompt += _encode(tokenizer, [text], plain=not from_template)[0]
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
    """The chat template with which a model trained with `template` should be served."""
    if template == "chat":
        return str(tokenizer.chat_template)
    begins = "{{ bos_token }}" if _begins_with(tokenizer) else ""
    return begins + CHAT_TEMPLATE


def composition(data: Tokenized, given: int) -> Mapping[str, int]:
    """The counts that are printed, and stored in the facts of a training under these keys."""
    return {
        "rows": given,
        "examples": len(data.ids),
        "tokens": sum(data.lengths),
        "trained_tokens": data.trained_tokens,
        "truncated": data.truncated,
        "tokenised_apart": data.in_pieces,
        **{f"dropped_{k}": v for k, v in data.dropped.items()},
    }


# -- batches ----------------------------------------------------------------------------------------------------------


def collate(microbatch: Microbatch, data: Tokenized, pad_id: int) -> dict[str, torch.Tensor]:
    """The rows of a micro-batch side by side.

    Returns input_ids (B, T) int64, labels (B, T) with IGNORED where the loss does not count, and position_ids (B, T)
    that restart with each example, by which transformers keeps the examples of a row from attending to each other. T is
    the longest row; a shorter one ends in an example of its own, of `pad_id`, on which no loss counts. Where each row
    holds one example, positions continue into the tail: no token looks ahead, so none sees it, and no mask is needed.
    """
    import torch

    fills = [sum(len(data.ids[n]) for n in pack) for pack in microbatch]
    width = max(1, *fills)
    shape = (len(microbatch), width)
    ids = torch.full(shape, pad_id, dtype=torch.int64)
    labels = torch.full(shape, IGNORED, dtype=torch.int64)
    positions = torch.arange(width).repeat(len(microbatch), 1)
    packed = any(len(pack) > 1 for pack in microbatch)
    for row, pack in enumerate(microbatch):
        at = 0
        for n in pack:
            tokens, start = data.ids[n], data.prompt_tokens[n]
            end = at + len(tokens)
            ids[row, at:end] = torch.tensor(tokens, dtype=torch.int64)
            labels[row, at + max(start, 1) : end] = ids[row, at + max(start, 1) : end]
            if packed:
                positions[row, at:end] = torch.arange(len(tokens))
            at = end
        if packed:
            positions[row, at:] = torch.arange(width - at)
    return {"input_ids": ids, "labels": labels, "position_ids": positions}
