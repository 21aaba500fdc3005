"""A file of JSON lines: one object a line. A broken line is yielded with its reason."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import orjson

from alpasift.batcher.data.files.file_row import LONGEST_ROW, READABLE, DatasetError, FileRow
from alpasift.batcher.data.files.text import decode_line

_BOM = b"\xef\xbb\xbf"
_LONG_NUMBER = re.compile(rb"[0-9]{19}")  # orjson turns integers beyond 64 bits into floats
_ONLY_TEXT = {str}


def read_jsonl(path: Path, stream: BinaryIO) -> Iterator[FileRow]:
    number = offset = rows = 0
    loads = orjson.loads
    while line := stream.readline(LONGEST_ROW):
        number += 1
        try:
            row = loads(line)
            if type(row) is dict and set(map(type, row.values())) != _ONLY_TEXT and _LONG_NUMBER.search(line):
                row = json.loads(line)
            yield FileRow(number, row, line)
        except orjson.JSONDecodeError as error:
            if len(line) == LONGEST_ROW and not line.endswith(b"\n"):
                offset += _skip_line(stream)
                yield FileRow(number, None, line[:10_000], "too_large")
            elif line := line.removeprefix(_BOM).strip() if number == 1 else line.strip():
                found = _second_try(path, number, offset, line)
                if found.reason and not rows:
                    raise DatasetError(_not_json_lines(path, number, line, error)) from error
                yield found
            else:
                rows -= 1
        rows += 1
        offset += len(line)


def _second_try(path: Path, number: int, offset: int, line: bytes) -> FileRow:
    """What orjson refuses may still be JSON to others: NaN, numbers beyond a double, half a surrogate pair."""
    try:
        return FileRow(number, json.loads(decode_line(path, number, offset, line)), line)
    except (ValueError, RecursionError):
        return FileRow(number, None, line, "broken_json")


def _skip_line(stream: BinaryIO) -> int:
    skipped = 0
    while rest := stream.readline(LONGEST_ROW):
        skipped += len(rest)
        if rest.endswith(b"\n"):
            break
    return skipped


def _not_json_lines(path: Path, number: int, line: bytes, error: ValueError) -> str:
    if line.startswith(b"{") and not line.endswith(b"}"):
        return (
            f"{path}:{number}: an object over several lines that is not valid JSON ({error}); expected a list "
            f"of objects, or one object after another"
        )
    return f"{path}:{number}: the first line is not valid JSON ({error}); give a file of {READABLE}"
