"""The keys of a row that are no content: kept as JSON text, so that the row can be written again exactly.

`split_other` makes this text when a row is read, and `decode` reads it when a row is written. Under "$form" stands what
else is needed to write the row: an order of keys unlike the first row's, a null, the spelling of a role, the parts of a
message. What JSON cannot say is marked: {"$date": "2026-11-21"}.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import orjson

from alpasift.batcher.data.row_formats.row import RowFormat, Unusable, check_length
from alpasift.batcher.data.ticks import Ticks

REST_OF_ROW = {name: f'{{"$form":{{"rest":true,"answer":"{name}"}}}}' for name in ("more", "rejected")}
"""The other keys of an example whose row is written with the example before it."""

REJECTED = '"answer":"rejected"'
"""Stands in the other keys of an answer that its file calls rejected."""


def is_rejected(other: str) -> bool:
    """Whether these are the other keys of a rejected answer."""
    return REJECTED in other and decode(other)[1].get("answer") == "rejected"


def split_other(
    row_format: RowFormat, row: Mapping[str, Any], consumed: tuple[str | None, ...], form: dict[str, Any]
) -> tuple[str | None, str]:
    """The category, and all else of the row as JSON."""
    extras = {k: v for k, v in row.items() if k not in consumed}
    category = extras.get(row_format.category) if row_format.category is not None else None
    if type(category) is str and category:
        del extras[row_format.category]  # type: ignore[arg-type]
        check_length(category)
    else:
        category = None
    if tuple(row) != row_format.keys:
        form["keys"] = list(row)
    if not extras and not form:
        if category is not None:
            _check_unicode(category)
        return category, "{}"
    try:
        other = _encode(extras, form, category)
    except RecursionError:
        raise Unusable("nested_too_deeply") from None
    except UnicodeEncodeError:
        raise Unusable("bad_unicode") from None
    check_length(other)
    return category, other


def keep_whole(
    row_format: RowFormat, row: Mapping[str, Any], consumed: tuple[str | None, ...], **form: Any
) -> tuple[str | None, str]:
    """Category and other keys of a row whose content is not written back from its parts, but as it stood.

    `consumed` are the keys that hold the content; `form` is noted beside them.
    """
    was = {k: row[k] for k in consumed if k is not None and k in row}
    return split_other(row_format, row, consumed, {"whole": True, "was": was, **form})


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise Unusable("bad_unicode") from None


def _encode(extras: dict[str, Any], form: dict[str, Any], category: str | None) -> str:
    """`other` as JSON text. What JSON cannot say (bytes, dates, NaN) is marked: {"$date": "2026-11-21"}."""
    if category is not None:
        category.encode("utf-8")
    if "$form" in extras:
        form["own"] = extras.pop("$form")
    value = {**extras, "$form": form} if form else extras
    try:
        text = orjson.dumps(value, option=orjson.OPT_PASSTHROUGH_DATETIME)
        if text.count(b'"$') == bool(form) and not (b"null" in text and _has_marked(value)):
            return text.decode("utf-8")
    except TypeError:  # a value that is marked, an integer beyond 64 bits, half a surrogate pair
        pass
    value = {k: _mark(v) for k, v in value.items()}
    written = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    written.encode("utf-8")
    return written


def _has_marked(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_marked, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_marked, value))
    return isinstance(value, float) and not math.isfinite(value)


def _mark(value: Any) -> Any:
    if isinstance(value, dict):
        marked = {k: _mark(v) for k, v in value.items()}
        return {"$dict": marked} if len(marked) == 1 and next(iter(marked)).startswith("$") else marked
    if isinstance(value, list | tuple):
        return [_mark(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode("ascii")}
    if isinstance(value, Decimal):
        return {"$decimal": str(value)}
    if isinstance(value, Ticks):
        return {"$ticks": [value.count, value.unit]}
    if isinstance(value, timedelta):
        return {"$microseconds": value // timedelta(microseconds=1)}
    for kind in (datetime, date, time):  # a datetime is a date too
        if isinstance(value, kind):
            return {f"${kind.__name__}": value.isoformat()}
    return value


def _unmark(value: Any) -> Any:
    if isinstance(value, list):
        return [_unmark(v) for v in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        mark, inner = next(iter(value.items()))
        if mark == "$dict":
            return {k: _unmark(v) for k, v in inner.items()}
        if mark in _READERS:
            return _READERS[mark](inner)
    return {k: _unmark(v) for k, v in value.items()}


_READERS: dict[str, Any] = {
    "$float": float,
    "$bytes": base64.b64decode,
    "$decimal": Decimal,
    "$ticks": lambda pair: Ticks(*pair),
    "$microseconds": lambda n: timedelta(microseconds=n),
    "$datetime": datetime.fromisoformat,
    "$date": date.fromisoformat,
    "$time": time.fromisoformat,
}


def decode(other: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys beside the content, and the form."""
    if other == "{}":
        return {}, {}
    extras: dict[str, Any] = json.loads(other)
    if '"$' in other:
        extras = {k: _unmark(v) for k, v in extras.items()}
    form = extras.pop("$form", {})
    if "own" in form:
        extras["$form"] = form["own"]
    return extras, form
