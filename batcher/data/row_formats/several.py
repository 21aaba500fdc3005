"""Rows that hold several examples: trees of messages (OpenAssistant) and seed tasks (Self-Instruct).

    oasst      {"prompt": {"text", "role": "prompter", "replies": [{"text", "role": "assistant", "replies"}]}}: an
               example for each reply of the assistant, the messages above it are its turns
    seed_task  {"instruction", "instances": [{"input", "output"}]}: an example for each instance

The keys of the row stand with the first of its examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from alpasift.batcher.data.row_formats.conversation import Content, Said, content_of, role_of
from alpasift.batcher.data.row_formats.other_keys import REST_OF_ROW, keep_whole
from alpasift.batcher.data.row_formats.row import Notes, Parts, RowFormat, Unusable, check_length
from alpasift.batcher.data.row_formats.texts import as_text


def read_tree(row_format: RowFormat, notes: Notes, row: Mapping[Any, Any]) -> list[Parts | Unusable]:
    """Every reply of the assistant in the tree, best first as it stands. Raises Unusable where there is none."""
    found = [_content(said, notes) for said in _threads(row.get(row_format.instruction))]
    return _as_parts(row_format, row, (row_format.instruction,), found)


def read_seed_task(row_format: RowFormat, notes: Notes, row: Mapping[Any, Any]) -> list[Parts | Unusable]:
    """Every instance of the task. Raises Unusable where there is none."""
    instances = row.get(row_format.output)
    if not isinstance(instances, list) or not instances:
        raise Unusable("no_answer")
    instruction = as_text(row.get(row_format.instruction), notes) or ""
    found = [_instance(instruction, instance, notes) for instance in instances]
    return _as_parts(row_format, row, (row_format.instruction, row_format.output), found)


def _as_parts(
    row_format: RowFormat, row: Mapping[Any, Any], consumed: tuple[str | None, ...], found: list[Content | Unusable]
) -> list[Parts | Unusable]:
    usable = [number for number, content in enumerate(found) if not isinstance(content, Unusable)]
    if not usable:
        raise next((error for error in found if isinstance(error, Unusable)), Unusable("no_answer"))
    category, other = keep_whole(row_format, row, consumed)
    parts: list[Parts | Unusable] = []
    for number, content in enumerate(found):
        if isinstance(content, Unusable):
            parts.append(content)
        else:
            parts.append(Parts(*content, category, other if number == usable[0] else REST_OF_ROW["more"]))
    return parts


def _instance(instruction: str, instance: Any, notes: Notes) -> Content | Unusable:
    try:
        if not isinstance(instance, dict):
            raise Unusable("not_text")
        text, output = as_text(instance.get("input"), notes) or "", as_text(instance.get("output"), notes)
        if output is None:
            raise Unusable("no_answer")
        if not (instruction.strip() or text.strip()):
            raise Unusable("no_instruction")
        check_length(instruction, text, output)
    except Unusable as error:
        return error
    return Content("", [], instruction, text, output)


def _threads(root: Any) -> Iterator[Said]:
    """The messages from the root to each reply of the assistant, depth first."""
    waiting: list[tuple[Any, Said]] = [(root, [])]
    while waiting:
        message, above = waiting.pop()
        if not isinstance(message, dict) or not isinstance(message.get("text"), str):
            raise Unusable("bad_message")
        said = [*above, (role_of(message.get("role", "prompter")), message["text"])]
        if len(said) > 1000:
            raise Unusable("nested_too_deeply")
        if said[-1][0] == "assistant":
            yield said
        replies = message.get("replies") or []
        if not isinstance(replies, list):
            raise Unusable("bad_message")
        waiting += [(reply, said) for reply in reversed(replies)]


def _content(said: Said, notes: Notes) -> Content | Unusable:
    try:
        if not said[-1][1].strip():
            raise Unusable("empty_message")
        return content_of(said, notes)
    except Unusable as error:
        return error
