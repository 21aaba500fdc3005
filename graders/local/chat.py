"""A chat template around messages, taken apart, so that a row's text is never read as part of the template.

Knows roles and texts; a template's language and the tokenizer are the caller's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

Layout = list[str | int]
"""The template's own texts, and the numbers of the messages whose texts stand between them."""


def layout_of(roles: Sequence[str], render: Callable[[list[tuple[str, str]]], str]) -> Layout:
    """The layout of messages of these roles. `render` applies the template to (role, text) pairs, "" where it refuses.

    A template that refuses or drops the system message gets it at the head of the message after it; one that cannot
    be used at all, or none, is replaced by plain text.
    """
    slots = [f"[[alpasift {number}]]" for number in range(len(roles))]
    attempts = [list(zip(roles, slots, strict=True))]
    if len(roles) > 1 and roles[0] == "system":
        attempts.append([(roles[1], f"{slots[0]}\n\n{slots[1]}"), *attempts[0][2:]])
    pattern = "|".join(re.escape(slot) for slot in slots)
    rendered = (render(messages) for messages in attempts)
    plain = "\n\n".join([*slots, "### Response:\n"])
    text = next((text for text in rendered if re.findall(pattern, text) == slots), plain)
    layout: Layout = []
    for number, piece in enumerate(re.split(pattern, text)):
        layout += [piece, number]
    return [piece for piece in layout[:-2] if piece != ""] + [layout[-2]]
