"""The text that a chat completion's message answers with, however its content is laid out.

Knows JSON of the API; nothing of scores or money. Content is one text, or parts with a type each: text parts are the
answer, joined; what a part thinks, shows or refuses is none. Servers that call a tool in place of answering give the
call's arguments, a JSON object.
"""

from __future__ import annotations

import json
from typing import Any

_TEXT = ("text", "output_text")
MOST_PARTS = 1000


def text_of(message: dict[str, Any]) -> tuple[str | None, bool]:
    """The text of a message, None where it has none, and whether it is a refusal."""
    content = message.get("content")
    if isinstance(content, str):
        return content, False
    text, refused = _of_parts(content if isinstance(content, list) else [content])
    if text is not None:
        return text, False
    refusal = message.get("refusal")
    if isinstance(refusal, str):
        return refusal, True
    return (refused, True) if refused is not None else (_of_call(message), False)


def _of_parts(parts: list[Any]) -> tuple[str | None, str | None]:
    """The text of the parts that are text, and that of a refusal among them."""
    texts, refusals = list[str](), list[str]()
    for part in parts[:MOST_PARTS]:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict) and part.get("type", "text") in _TEXT:
            text = part.get("text")
            text = text.get("value") if isinstance(text, dict) else text  # as the Assistants API nests it
            if isinstance(text, str):
                texts.append(text)
        elif isinstance(part, dict) and part.get("type") == "refusal" and isinstance(part.get("refusal"), str):
            refusals.append(part["refusal"])
    return ("".join(texts) if texts else None), ("\n".join(refusals) if refusals else None)


def _of_call(message: dict[str, Any]) -> str | None:
    """The arguments of the only tool that is called, where they are a JSON object."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list) or len(calls) != 1 or not isinstance(calls[0], dict):
        return None
    function = calls[0].get("function")
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if isinstance(arguments, dict):
        return json.dumps(arguments)
    return arguments if isinstance(arguments, str) and arguments.strip().startswith("{") else None
