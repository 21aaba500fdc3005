"""What reading a data file gives: its rows, each with its line, or an error that names the file and the remedy."""

from __future__ import annotations

from typing import Any, NamedTuple

from alpasift.graders import AlpaSiftError

FORMATS = ("json", "jsonl", "csv", "parquet")
READABLE = "json, jsonl, csv or tsv (each also with .gz or .zst), parquet, or a folder of them"
LONGEST_ROW = 64 * 2**20  # bytes of one row; a longer line of a jsonl is skipped, elsewhere it ends the import


class DatasetError(AlpaSiftError):
    """A file cannot be read or written as a dataset, or a dataset is not in the database."""


class FileRow(NamedTuple):
    """One row of a file. `row` is whatever JSON value stood there; `reason` says why it cannot be read, if so."""

    line: int | None  # 1-based line where the row begins; None where lines mean nothing
    row: Any
    text: str | bytes | None = None  # as it stood, where that is at hand
    reason: str | None = None
