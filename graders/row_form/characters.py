"""Control characters where no text has them."""

from __future__ import annotations

import re

from alpasift.graders import Example

_JUNK = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufffd\ud800-\udfff]"
)
_JOINERS = "\u200c\u200d"
_DIRECTIONS = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")


def control_characters(example: Example) -> str | None:
    """Characters that no reader sees and no writer typed: control codes, replacement marks, zero-width junk.

    Joiners are kept inside emoji and in scripts that are written with them, direction marks in texts that hold a
    script written from right to left.
    """
    for field, text in (("instruction", example.instruction), ("input", example.input), ("output", example.output)):
        if text.isascii() and text.isprintable():
            continue
        for match in _JUNK.finditer(text):
            sign = match[0]
            if sign in _JOINERS and _joins(text, match.start()):
                continue
            if sign in _DIRECTIONS and _RIGHT_TO_LEFT.search(text):
                continue
            return f"the {field} holds U+{ord(sign):04X} at character {match.start()}"
    return None


def _joins(text: str, at: int) -> bool:
    before, after = text[at - 1 : at] if at else "", text[at + 1 : at + 2]
    if before >= "\U00002000" and not before.isspace() and text[at] == "\u200d":
        return after > "\u2000"  # between the parts of one emoji
    return any(
        "\u0590" <= sign <= "\u1cff" for sign in (before, after)
    )  # Arabic, the scripts of India, Khmer, Mongolian
