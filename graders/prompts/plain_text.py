"""Text in plain characters: digits and marks of every script as ASCII, nothing invisible, no emphasis.

Pure functions over text; knows nothing of scores. What is read is read from this form; what is stored stays as it came.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_MARKS = {
    "\u066b": ".",  # Arabic decimal separator
    "\u060c": ",",
    "\u3001": ", ",
    "\u3002": ". ",
    "\uff61": ". ",
    "\u2044": "/",
    "\u2215": "/",
    "\u2212": "-",  # the minus sign
    "\u2010": "-",
    "\u2011": "-",
    "\u2192": "->",
    "\uff1a": ": ",
    "\u20e3": "",  # the frame of a keycap
}
_WIDE = 0xFEE0
"""How far the full-width forms of ASCII are from ASCII."""
_HALF = re.compile(r"(\d?)\u00bd")
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_TWICE = re.compile(rf"\b({'|'.join(_WORDS)})\s?\((\d{{1,2}})\)", re.I)
"""A number in a word and in digits, as in a contract: "four (4)"."""
_TERMINAL = re.compile(r"\x1b\[[\d;]{0,20}[A-Za-z]")
_EMPHASIS = re.compile(r"\*+|`+|(?<!\w)_{1,3}|_{1,3}(?!\w)")
_ORNAMENT = {"So", "Sk"}
"""Categories of signs that say nothing: check marks, stars, pictures."""


@lru_cache(maxsize=4096)
def _plain(character: str) -> str:
    if character in _MARKS:
        return _MARKS[character]
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.decimal(character))
    if "\uff01" <= character <= "\uff5e":
        return chr(ord(character) - _WIDE)
    if category == "Zs":
        return " "
    if category in ("Cf", "Cc") and character != "\t":  # a byte order mark, a space of no width
        return ""
    if category == "Mn" and "\ufe00" <= character <= "\ufe0f":  # how the sign before it is drawn
        return ""
    return " " if category in _ORNAMENT and character not in "^`\u00b0" else character


def plain_line(line: str) -> str:
    """One line in plain characters, without emphasis and ornaments."""
    if "\x1b" in line:
        line = _TERMINAL.sub("", line)
    if not line.isascii():
        line = "".join(map(_plain, _HALF.sub(lambda found: (found[1] or "0") + ".5", line)))
    line = _EMPHASIS.sub("", line).strip()
    return _TWICE.sub(_in_digits, line) if "(" in line else line


def _in_digits(found: re.Match[str]) -> str:
    return found[2] if _WORDS.index(found[1].lower()) == int(found[2]) else found[0]


def is_blank(text: str) -> bool:
    """Whether nothing of a text is visible."""
    return not text.strip() or all(
        character.isspace() or unicodedata.category(character) in ("Cf", "Cc") for character in text.strip()
    )
