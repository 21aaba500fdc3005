"""What is said in a conversation: lists of messages in any of the field's spellings -> the content that is graded.

A conversation is graded by its last answer. The last message of the user before it is the instruction; what stands
between the two (calls of tools and their results) is shown as the instruction's input; what comes before are turns.
Knows messages; nothing of rows, their other keys or how a row is written again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from alpasift.batcher.data.row_formats.row import Notes, Unusable, check_length
from alpasift.batcher.data.row_formats.texts import as_text

_ROLES = {
    "user": "human user prompter customer person student question",
    "assistant": "assistant gpt chatgpt model bing bard claude ai bot chatbot llama mistral gemini palm agent teacher "
    "gpt-3.5 gpt-3.5-turbo gpt-4 gpt4 answer function_call tool_call tool_calls",
    "system": "system developer",
    "tool": "tool function observation tool_response tool_result tool_output function_response ipython environment",
}
_ROLE_OF = {spelled: role for role, all_spelled in _ROLES.items() for spelled in all_spelled.split()}
ROLE_KEYS = ("from", "role", "speaker", "sender", "author")
TEXT_KEYS = ("value", "content", "text", "message", "utterance")
_ASKED = ("user", "human", "question", "instruction", "prompt", "query")
_ANSWERED = ("assistant", "gpt", "answer", "response", "output", "bot", "model")
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
_MEDIA = ("image", "audio", "video", "file", "document")
Said = list[tuple[str, str]]
"""Who said what, in order: ("user", "Hi")."""


class Content(NamedTuple):
    """A conversation taken apart, as `Parts` holds it."""

    system: str
    turns: Said
    instruction: str
    input: str
    output: str


def role_of(spelled: Any) -> str:
    """user, assistant, system or tool. Raises Unusable for what is none of them."""
    role = _ROLE_OF.get(spelled.strip().lower()) if isinstance(spelled, str) else None
    if role is None:
        raise Unusable("unknown_role")
    return role


def as_list(value: Any) -> list[Any] | None:
    """The messages: a list, a dictionary of equal lists, or JSON text of one of them as a csv cell holds it."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if isinstance(value, dict) and all(isinstance(v, list) for v in value.values()):
        if len({len(v) for v in value.values()}) == 1:
            return [dict(zip(value, one, strict=True)) for one in zip(*value.values(), strict=True)]
        return None
    return value if isinstance(value, list) else None


def message_keys(message: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Which keys of a message hold its role and its text, whatever their case."""
    names = {str(key).strip().lower(): key for key in reversed(list(message))}
    role = next((names[key] for key in ROLE_KEYS if key in names), None)
    texts = TEXT_KEYS if role is None or str(role).lower() == "from" else ("content", *TEXT_KEYS)
    return role, next((names[key] for key in texts if key in names), None)


def said_in(messages: Sequence[Any], notes: Notes) -> Said:
    """What the messages say. Raises Unusable where one of them is no message of text."""
    said: Said = []
    for message in messages:
        if not isinstance(message, dict):
            raise Unusable("bad_message")
        role_key, text_key = message_keys(message)
        if role_key is None:
            raise Unusable("bad_message")
        role = role_of(message[role_key])
        text = _text(message.get(text_key), notes) if text_key is not None else ""
        if not text.strip() and (calls := calls_of(message)):
            notes["calls_as_text"] += 1
            text = calls
        said.append((role, text))
    return said


def content_of(said: Said, notes: Notes, system: str = "") -> Content:
    """The conversation by its last answer. Raises Unusable where it has none. `system` counts where none is said."""
    said = list(said)
    if said and said[0][0] == "system":
        system = said.pop(0)[1]
    emptied = ""
    while said and (said[-1][0] == "system" or (said[-1][0] != "tool" and not said[-1][1].strip())):
        role, text = said.pop()
        notes["trailing_system_left_out" if role == "system" else "empty_last_turns_left_out"] += 1
        emptied = emptied or ("" if text.strip() else role)
    roles = [role for role, _ in said]
    if "assistant" not in roles:
        raise Unusable("empty_message" if emptied in ("user", "assistant") else "no_answer")
    if roles[-1] == "user":
        raise Unusable("empty_message" if emptied == "assistant" else "ends_with_user")
    if roles[-1] != "assistant":
        raise Unusable("no_answer")
    if "user" not in roles:
        raise Unusable("no_question")
    asked = len(roles) - 1 - roles[::-1].index("user")
    if any(role in ("user", "assistant") and not text.strip() for role, text in said):
        raise Unusable("empty_message")
    between = "\n\n".join(f"{role}: {text}" for role, text in said[asked + 1 : -1])
    check_length(system, between, *(text for _, text in said))
    return Content(system, said[:asked], said[asked][1], between, said[-1][1])


def past_turns(value: Any, notes: Notes) -> Said:
    """Earlier turns as rows with an instruction keep them: messages, or pairs of question and answer."""
    items = as_list(value)
    if not items:
        return []
    said: Said = []
    try:
        for item in items:
            if isinstance(item, list | tuple) and len(item) == 2 and all(isinstance(t, str) for t in item):
                said += [("user", item[0]), ("assistant", item[1])]
            elif isinstance(item, dict) and message_keys(item)[0] is not None:
                said += said_in([item], notes)
            elif isinstance(item, dict):
                said += _exchange(item)
            else:
                raise Unusable("bad_message")
    except Unusable:
        notes["turns_not_read"] += 1
        return []
    return said


def alternating(texts: Sequence[Any]) -> Said:
    """Texts that user and assistant say by turns, the user first."""
    if not all(isinstance(text, str) for text in texts):
        raise Unusable("not_text")
    return [(("user", "assistant")[number % 2], text) for number, text in enumerate(texts)]


def _exchange(item: Mapping[str, Any]) -> Said:
    asked = next((item[key] for key in _ASKED if key in item), None)
    answered = next((item[key] for key in _ANSWERED if key in item), None)
    if not isinstance(asked, str) or not isinstance(answered, str):
        raise Unusable("bad_message")
    return [("user", asked), ("assistant", answered)]


def _text(content: Any, notes: Notes) -> str:
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        return as_text(content, notes) or ""
    texts = [_part(part, notes) for part in content]
    return "\n\n".join(text for text in texts if text is not None)


def _part(part: Any, notes: Notes) -> str | None:
    """The text of a part of a message; None for what is left out. Raises Unusable for what is no text."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise Unusable("not_text")
    kind = part.get("type") or ""
    if not isinstance(kind, str):
        raise Unusable("not_text")
    if kind in ("thinking", "redacted_thinking", "reasoning"):
        notes["thinking_left_out"] += 1
        return None
    if kind == "tool_use":
        return _json({"name": part.get("name"), "arguments": part.get("input")})
    if kind == "tool_result":
        return _text(part.get("content"), notes)
    if any(word in kind for word in _MEDIA) or any(f"{word}_url" in part or word in part for word in _MEDIA):
        raise Unusable("has_media")
    found = part.get("refusal" if kind == "refusal" else "text")
    if isinstance(found, str) and kind in ("", *_TEXT_PARTS):
        return found
    if found is None and "text" in part and kind in ("", "text"):  # Parquet gives every part all keys
        return None
    raise Unusable("not_text")


def calls_of(message: Mapping[str, Any]) -> str:
    """The calls of tools that a message makes, one a line as JSON; "" where it makes none."""
    calls = message.get("tool_calls") or message.get("function_call")
    if not calls:
        return ""
    lines = []
    for call in calls if isinstance(calls, list) else [calls]:
        called = call.get("function", call) if isinstance(call, dict) else call
        if isinstance(called, dict) and "name" in called:
            arguments = called.get("arguments")
            if isinstance(arguments, str):
                with contextlib.suppress(ValueError, RecursionError):
                    arguments = json.loads(arguments)
            called = {"name": called["name"], "arguments": arguments}
        lines.append(_json(called))
    return "\n".join(lines)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
