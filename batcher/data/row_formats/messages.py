"""Rows that hold a conversation: messages ({"role", "content"}) and sharegpt ({"from", "value"}).

A conversation as most files have it is kept as its parts and what else its messages hold; whatever is spelled
otherwise is read by `conversation` and kept as it stood.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from alpasift.batcher.data.row_formats.conversation import as_list, calls_of, content_of, role_of, said_in
from alpasift.batcher.data.row_formats.other_keys import keep_whole, split_other
from alpasift.batcher.data.row_formats.row import Notes, Parts, RowFormat, Unusable, check_length

_SPELLING = {"from": {"user": "human", "assistant": "gpt"}, "role": {}}


def read_messages(row_format: RowFormat, notes: Notes, row: Mapping[str, Any]) -> Parts:
    """Split such a row into content, category and other keys. Raises Unusable with the reason."""
    try:
        return _read_usual(row_format, row)
    except Unusable as error:
        if error.reason in ("too_large", "bad_unicode", "no_messages"):
            raise
    messages = as_list(row[row_format.messages])
    if messages is None:
        raise Unusable("bad_message")
    counted = Notes()
    system = row.get("system")
    content = content_of(said_in(messages, counted), counted, system if isinstance(system, str) else "")
    consumed = (row_format.messages, "system") if isinstance(system, str) else (row_format.messages,)
    parts = Parts(*content, *keep_whole(row_format, row, consumed))
    notes.update(counted)
    return parts


def _read_usual(row_format: RowFormat, row: Mapping[str, Any]) -> Parts:
    given = row.get(row_format.messages)
    messages = as_list(given)
    form: dict[str, Any] = {}
    if given is None or messages == []:
        raise Unusable("no_messages")
    if messages is None or isinstance(given, dict):
        raise Unusable("bad_message")
    if isinstance(given, str):
        form["text"] = True if _compact(messages) == given else given
    turns: list[tuple[str, str]] = []
    patches: dict[str, Any] = {}
    spelling = _SPELLING.get(row_format.role, {})
    for number, message in enumerate(messages):
        role, text, patch = _read_message(row_format, message, number >= len(messages) - 2)
        turns.append((role, text))
        if patch is not None or message[row_format.role] != spelling.get(role, role):
            patches[str(number)] = patch or {**message, row_format.text: True}
    if patches:
        form["messages"] = patches
    system = ""
    consumed: tuple[str | None, ...] = (row_format.messages,)
    if turns[0][0] == "system":
        system = turns.pop(0)[1]
        if not system:
            form["system"] = "empty"
    elif isinstance(row.get("system"), str):
        system, form["system"] = row["system"], "key"
        consumed = (row_format.messages, "system")
    if [role for role, _ in turns[-2:]] != ["user", "assistant"]:
        raise Unusable("no_question")
    instruction, output = turns[-2][1], turns[-1][1]
    check_length(system, *(text for _, text in turns))
    category, other = split_other(row_format, row, consumed, form)
    return Parts(system, turns[:-2], instruction, "", output, category, other)


def _read_message(row_format: RowFormat, message: Any, graded: bool) -> tuple[str, str, dict[str, Any] | None]:
    """Role and text of a message, and what else it holds: None, or the message with True in the place of its text."""
    if type(message) is not dict or row_format.role not in message:
        raise Unusable("bad_message")
    role, content = role_of(message[row_format.role]), message.get(row_format.text)
    patch = None
    if type(content) is str:
        text = content
        if len(message) > 2:
            patch = {**message, row_format.text: True}
    else:
        text, patch = _read_parts(content), dict(message)
        if content and len(content) == 1:
            patch[row_format.text] = [{**content[0], "text": True}]
    if not text.strip() and role in ("user", "assistant"):
        has_more = any(v is not None for k, v in message.items() if k not in (row_format.role, row_format.text))
        if graded or not has_more or calls_of(message):
            raise Unusable("empty_message")
    return role, text, patch


def _read_parts(content: Any) -> str:
    """The text of a list of text parts, one a paragraph; a missing content is "" (a call of a tool has none)."""
    if content is None:
        return ""
    if not isinstance(content, list):
        raise Unusable("not_text")
    texts = [p.get("text") if isinstance(p, dict) and p.get("type", "text") == "text" else None for p in content]
    if not all(isinstance(t, str) for t in texts):
        raise Unusable("not_text")
    return "\n\n".join(t for t in texts if t is not None)


def restore_messages(row_format: RowFormat, parts: Parts, form: Mapping[str, Any]) -> Any:
    """The messages as they were read."""
    has_system = form.get("system") == "empty" or (parts.system and form.get("system") != "key")
    messages = as_messages(row_format.role, row_format.text, parts, bool(has_system))
    for number, patch in form.get("messages", {}).items():
        text = messages[int(number)][row_format.text]
        content = patch.get(row_format.text)
        if content is True:
            patch = {**patch, row_format.text: text}
        elif isinstance(content, list) and len(content) == 1 and content[0].get("text") is True:
            patch = {**patch, row_format.text: [{**content[0], "text": text}]}
        messages[int(number)] = patch
    if "text" in form:
        return _compact(messages) if form["text"] is True else form["text"]
    return messages


def as_messages(role_key: str, text_key: str, parts: Parts, with_system: bool) -> list[dict[str, Any]]:
    """The content as messages, with the role and the text under these keys."""
    question = f"{parts.instruction}\n\n{parts.input}" if parts.input else parts.instruction
    turns: Sequence[tuple[str, str]] = [("system", parts.system)] if with_system else []
    said = [*turns, *parts.turns, ("user", question), ("assistant", parts.output)]
    spelling = _SPELLING.get(role_key, {})
    return [{role_key: spelling.get(role, role), text_key: text} for role, text in said]


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
