"""Values that stand where text belongs: a number is read as its text, NaN as absent, bytes as UTF-8."""

from __future__ import annotations

import json
import math
from datetime import date, time
from decimal import Decimal
from typing import Any

from alpasift.batcher.data.row_formats.row import Notes, Unusable
from alpasift.batcher.data.ticks import Ticks


def as_text(value: Any, notes: Notes) -> str | None:
    """The text that a value stands for, None where it is absent. Counts what was no text. Raises Unusable."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float | Decimal) and math.isnan(value):
        notes["nan_as_absent"] += 1
        return None
    if isinstance(value, bool | int | float):
        notes["number_as_text"] += 1
        return json.dumps(value)
    if isinstance(value, Decimal | date | time | Ticks):
        notes["number_as_text"] += 1
        return str(value)
    if isinstance(value, bytes):
        try:
            text = value.decode("utf-8")
        except UnicodeDecodeError:
            raise Unusable("not_text") from None
        notes["bytes_as_text"] += 1
        return text
    raise Unusable("not_text")
