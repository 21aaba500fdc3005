"""Conversations written as texts: one text with marks such as "### Human:", or a list of texts that alternate.

transcript  {"text": "### Human: Hi ### Assistant: Hello."}, also with ChatML's or Llama 2's marks
ultrachat   {"data": ["Hi", "Hello."]}: user and assistant by turns
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from alpasift.batcher.data.row_formats.conversation import Said, alternating, as_list, content_of
from alpasift.batcher.data.row_formats.other_keys import keep_whole
from alpasift.batcher.data.row_formats.row import Notes, Parts, RowFormat, Unusable

_HEADINGS = re.compile(r"(?<!#)###[ \t]*(Human|User|Assistant|System|Instruction|Input|Response)[ \t]*:", re.I)
_PARAGRAPHS = re.compile(r"(?:^|\n\n)\s*(Human|Assistant|System):", re.I)
_CHATML = re.compile(r"<\|im_start\|>[ \t]*(user|assistant|system)[ \t]*\n", re.I)
_LLAMA = re.compile(r"\[INST\](.*?)\[/INST\](.*?)(?=\[INST\]|\Z)", re.S)
_LLAMA_SYSTEM = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>", re.S)
_ROLES = {"human": "user", "user": "user", "assistant": "assistant", "system": "system"}
_TASK = {"instruction": "user", "input": "user", "response": "assistant"}


def said_in_text(text: str) -> Said:
    """What a transcript says; [] for a text that is none."""
    for marks in (_CHATML, _HEADINGS, _PARAGRAPHS):
        found = list(marks.finditer(text))
        if len(found) < 2 or (marks is _PARAGRAPHS and text[: found[0].start()].strip()):
            continue
        ends = [*(mark.start() for mark in found[1:]), len(text)]
        said: Said = []
        for mark, end in zip(found, ends, strict=True):
            name = mark[1].lower()
            words = text[mark.end() : end].replace("<|im_end|>", "").strip()
            role = _ROLES.get(name) or _TASK[name]
            if name == "input" and said:
                said[-1] = (role, f"{said[-1][1]}\n\n{words}" if words else said[-1][1])
            else:
                said.append((role, words))
        before = text[: found[0].start()].strip()
        return [("system", before), *said] if before else said
    said = []
    for asked, answered in _LLAMA.findall(text):
        if not said and (system := _LLAMA_SYSTEM.match(asked)):
            said.append(("system", system[1].strip()))
            asked = asked[system.end() :]
        said += [("user", asked.strip()), ("assistant", answered.replace("</s>", "").replace("<s>", "").strip())]
    return said


def read_transcript(row_format: RowFormat, notes: Notes, row: Mapping[Any, Any]) -> list[Parts | Unusable]:
    """The conversation of such a row. Raises Unusable."""
    value = row.get(row_format.output)
    if value is None:
        raise Unusable("no_messages")
    if row_format.name == "ultrachat":
        said = alternating(as_list(value) or [])
    else:
        said = said_in_text(value) if isinstance(value, str) else []
    if not said:
        raise Unusable("no_messages")
    content = content_of(said, notes)
    return [Parts(*content, *keep_whole(row_format, row, (row_format.output,)))]
