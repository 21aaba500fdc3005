"""The content of a row and the row formats: what is read from a row, and which of its keys hold it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from alpasift.graders import AlpaSiftError, Example, Turn

ROW_FORMATS = ("alpaca", "dolly", "sharegpt", "messages")
"""The row formats that any row can be written in."""
READ_FORMATS = (
    *ROW_FORMATS,
    "prompt_completion",
    "question_answer",
    "preference",
    "kto",
    "seed_task",
    "oasst",
    "ultrachat",
    "transcript",
)
TARGETS = ("instruction", "input", "output", "system", "category")
LONGEST_TEXT = 1_000_000  # characters of one text

REASONS = {
    "bad_message": "a message is not an object with a role and content, or the messages are not a list",
    "bad_unicode": "a text contains an unpaired surrogate, which is not a character",
    "broken_json": "the line is not valid JSON",
    "empty_message": "a message of the user or the assistant is empty",
    "ends_with_user": "the conversation ends with a user message, so there is no answer to grade",
    "has_media": "a message contains an image, audio or a file, which a text grader cannot read",
    "nested_too_deeply": "lists or objects are nested too deeply",
    "no_answer": "the output is missing",
    "no_instruction": "the instruction is missing",
    "no_label": "the label is neither true nor false",
    "no_messages": "the conversation has no messages",
    "no_pair": "the chosen or the rejected answer is missing",
    "no_question": "no user message precedes the last answer",
    "not_an_object": "the row is not a JSON object",
    "not_text": "a list or an object instead of text",
    "too_large": f"a text is longer than {LONGEST_TEXT:,} characters",
    "unknown_role": "a message has an unknown role",
    "wrong_columns": "the line has more or fewer cells than the header",
}

NOTES = {
    "bytes_as_text": "bytes instead of text were decoded as UTF-8",
    "calls_as_text": "a message without text calls a tool; the call was read as its text",
    "empty_last_turns_left_out": "the conversation ended with empty messages, which were dropped",
    "nan_as_absent": "NaN instead of text was read as missing",
    "number_as_text": "a number or boolean instead of text was converted to text",
    "thinking_left_out": "a thinking part of a message was dropped",
    "trailing_system_left_out": "the conversation ended with a system message, which was dropped",
    "turns_not_read": "the row's history or turns have an unknown form and were not shown to the grader",
}
"""What was read otherwise than it stood, and how; `read_as_NAME` counts rows of another row format than the file's."""


def note_sentence(name: str) -> str:
    """What a note of an import means."""
    if name.startswith("read_as_"):
        return f"a row in another format than the file's was read as {name.removeprefix('read_as_')}"
    return NOTES[name]


class RowFormatError(AlpaSiftError):
    """The keys of the rows fit no known row format, or not the one that was asked for."""


class Unusable(Exception):
    """This row cannot be graded; `reason` is a key of REASONS."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Parts(NamedTuple):
    """A row taken apart. `turns` are (role, text) pairs."""

    system: str
    turns: list[tuple[str, str]]
    instruction: str
    input: str
    output: str
    category: str | None
    other: str

    def example(self) -> Example:
        """The content, which is what is graded."""
        turns = tuple(Turn(role, text) for role, text in self.turns)
        return Example(self.instruction, self.input, self.output, self.system, turns)


Reader = Callable[[Mapping[str, Any]], "list[Parts | Unusable]"]
"""The examples of one row of a file, mostly one. Raises Unusable where it holds none."""
Notes = Counter[str]
"""How often what stands in NOTES happened."""


@dataclass(frozen=True, slots=True)
class RowFormat:
    """Which key holds what. `keys` are those of the first usable row, in its order; other rows note theirs."""

    name: str
    keys: tuple[str, ...]
    instruction: str | None = None
    input: str | None = None
    output: str | None = None
    system: str | None = "system"
    category: str | None = "category"
    messages: str = ""
    role: str = "role"
    text: str = "content"
    rejected: str | None = None
    label: str | None = None

    @property
    def flat(self) -> tuple[str | None, ...]:
        """The keys of system, instruction, input and output, in this order."""
        return (self.system, self.instruction, self.input, self.output)

    @property
    def asked_and_answered(self) -> tuple[str | None, str | None]:
        return (self.instruction, self.output)

    @property
    def columns(self) -> dict[str, str]:
        """Which key of the file holds what, of those that its first usable row has."""
        output = "chosen" if self.rejected else "output"
        named = {"messages": self.messages, "system": self.system, "instruction": self.instruction}
        named |= {"input": self.input, output: self.output, "rejected": self.rejected, "label": self.label}
        return {part: key for part, key in (named | {"category": self.category}).items() if key in self.keys and key}


def check_length(*texts: str) -> None:
    """Raise Unusable when one of the texts is too long."""
    if sum(map(len, texts)) > LONGEST_TEXT and max(map(len, texts)) > LONGEST_TEXT:
        raise Unusable("too_large")
