"""What a server sends, before it is kept or shown: text without the key, and values of the types they should have.

Knows characters, sizes and the key; nothing of replies or money. A server may send anything: half of a surrogate pair,
which is no Unicode and at which a strict reader of JSON stops, NUL, numbers of 400 digits, a megabyte where a name
belongs, or the key of the very request. All that is kept or shown of an answer passes through here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from alpasift.graders.api.keys import without_key, without_secret

MAX_NAME = 200
"""Characters of a name that a server gives: an id, a model, the reason why an answer ended."""
MAX_TEXT = 1_000_000
"""Characters of an answer: far more than any request allows."""
MAX_PARTS, MAX_DEPTH = 100, 4
"""Parts of a list or object, and how deep they nest: the rest is left out."""
_LARGEST = 2**63 - 1


def safe_text(text: str, most: int = MAX_TEXT) -> str:
    """Text of a server's as it may be kept: without the key, NUL and halves of surrogate pairs (written as \\ud83d)."""
    return without_key(_unicode(text[: most + 1000]))[:most]


def safe_answer(text: str) -> str:
    """The text of an answer: as `safe_text`, but what merely looks like a key stays, and words that stand for one."""
    return without_secret(_unicode(text[: MAX_TEXT + 1000]), least=8)[:MAX_TEXT]


def safe_name(value: object) -> str | None:
    """A name that a server gives, None for what is no text."""
    return safe_text(value, MAX_NAME) if isinstance(value, str) else None


def safe_value(value: Any, most: int = MAX_NAME, depth: int = MAX_DEPTH) -> Any:
    """A JSON value of a server's as it may be kept. Numbers that no 64 bits hold become their first digits as text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return safe_text(value, most)
    if isinstance(value, int):
        return value if -_LARGEST <= value <= _LARGEST else f"a number of {value.bit_length()} bits"
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth == 0:
        return None
    if isinstance(value, Mapping):
        some = list(value.items())[:MAX_PARTS]
        return {safe_text(str(name), MAX_NAME): safe_value(part, most, depth - 1) for name, part in some}
    if isinstance(value, Sequence):
        return [safe_value(part, most, depth - 1) for part in list(value)[:MAX_PARTS]]
    return safe_text(str(value), most)


def _unicode(text: str) -> str:
    if text.isascii() and "\0" not in text:
        return text
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "")
