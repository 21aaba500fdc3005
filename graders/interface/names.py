"""Names that a user gives to datasets, selections, labels and rubrics, and numbers as a user types them."""

from __future__ import annotations

import re

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
NAME_RULE = "use 1 to 64 of the characters A-Z a-z 0-9 . _ -, not dots alone"


_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d{1,3})?", re.I | re.ASCII)


def is_plain_number(text: str) -> bool:
    """Whether a text is a decimal number as people write one: Python also reads 1_0, infinity and digits of other
    scripts, in which a slip goes unseen.
    """
    return _NUMBER.fullmatch(text) is not None


def is_name(text: str) -> bool:
    """Whether a text can be a name; "." and ".." cannot, since names become those of files."""
    return _NAME.fullmatch(text) is not None and bool(text.strip("."))
