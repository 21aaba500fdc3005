"""Rows of a file on their way into the tables: in batches, column by column, with the rows that are skipped.

Knows rows and the columns of tables; nothing of databases. `ImportCounts.batches` yields the batches and counts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import orjson
import pyarrow as pa

from alpasift.batcher.data.data_file import DataFile, none_usable
from alpasift.batcher.data.files.file_row import DatasetError, FileRow
from alpasift.batcher.data.row_formats.row import REASONS, Notes, Parts, Unusable
from alpasift.batcher.data.row_formats.rows import reader

_BATCH_ROWS = 25_000
_BATCH_BYTES = 32 * 2**20
_KEPT_OF_SKIPPED_ROW = 10_000  # characters


@dataclass(slots=True)
class Batch:
    """Columns of `examples` and `dataset_rows`, and rows of `set_aside`: the skipped ones."""

    example_id: list[str] = field(default_factory=list)
    system: list[str] = field(default_factory=list)
    turns: list[str] = field(default_factory=list)
    instruction: list[str] = field(default_factory=list)
    input: list[str] = field(default_factory=list)
    output: list[str] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    category: list[str | None] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    skipped: list[tuple[int, int | None, str, str]] = field(default_factory=list)

    def table(self) -> pa.Table:
        """The usable rows."""
        names = [n for n in self.__slots__ if n != "skipped"]
        types = [pa.int64() if n == "position" else pa.string() for n in names]
        arrays = [pa.array(getattr(self, n), type=t) for n, t in zip(names, types, strict=True)]
        return pa.Table.from_arrays(arrays, names=names)


@dataclass(slots=True)
class ImportCounts:
    """One import under way: turns the rows of a file into batches, and counts them."""

    file: DataFile
    strict: bool
    progress: Callable[[int], None] | None
    read: int = 0
    usable: int = 0
    new_examples: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    notes: Notes = field(default_factory=Notes)

    def batches(self) -> Iterator[Batch]:
        """The rows of the file in their order. With `strict` the first unusable row raises DatasetError.

        A row that holds several examples takes as many positions.
        """
        batch, size, position = Batch(), 0, 0
        read = reader(self.file.row_format, self.notes, others=self.file.others)
        for number, one in enumerate(self.file.rows):
            try:
                found = read(_object(one))
            except Unusable as error:
                found = [error]
            for parts in found:
                try:
                    if isinstance(parts, Unusable):
                        raise parts
                    size += _take(batch, position, parts)
                except Unusable as error:
                    size += self._skip(batch, position, number, one, error.reason)
                position += 1
            if (number + 1) % _BATCH_ROWS == 0 or size > _BATCH_BYTES:
                self._count(batch, number + 1)
                yield batch
                batch, size = Batch(), 0
        if batch.position or batch.skipped:
            self._count(batch, number + 1)
            yield batch

    def _count(self, batch: Batch, read: int) -> None:
        self.read = read
        self.usable += len(batch.position)
        if self.progress:
            self.progress(read)

    def check_usable(self) -> None:
        """Raise DatasetError when no row could be used."""
        if not self.usable:
            raise DatasetError(none_usable(self.file.source.path, self.reasons))

    def _skip(self, batch: Batch, position: int, number: int, row: FileRow, reason: str) -> int:
        if self.strict:
            path = self.file.source.path
            where = f"{path}:{row.line}" if row.line else f"{path}, row {number + 1:,}"
            raise DatasetError(f"{where}: {reason}, {REASONS[reason]}; without --strict such rows are skipped")
        text = _as_it_stood(row)
        batch.skipped.append((position, row.line, reason, text))
        self.reasons[reason] += 1
        return len(text)


def _object(row: FileRow) -> dict[str, Any]:
    if row.reason:
        raise Unusable(row.reason)
    if type(row.row) is not dict:
        raise Unusable("not_an_object")
    return row.row


def _take(batch: Batch, position: int, parts: Parts) -> int:
    """Add an example to the batch and return its size. Raises Unusable."""
    system, turns, instruction, text, output, category, other = parts
    try:
        content = orjson.dumps([system, turns, instruction, text, output])
    except TypeError:
        raise Unusable("bad_unicode") from None
    batch.example_id.append(sha256(len(content).to_bytes(8, "big") + content).hexdigest()[:32])
    batch.system.append(system)
    batch.turns.append(orjson.dumps(turns).decode("utf-8") if turns else "")
    batch.instruction.append(instruction)
    batch.input.append(text)
    batch.output.append(output)
    batch.position.append(position)
    batch.category.append(category)
    batch.other.append(other)
    return len(content) + len(other)


def _as_it_stood(row: FileRow) -> str:
    if isinstance(row.text, bytes):
        return row.text[: 4 * _KEPT_OF_SKIPPED_ROW].decode("utf-8", "replace").rstrip("\r\n")[:_KEPT_OF_SKIPPED_ROW]
    if row.text is not None:
        return row.text[:_KEPT_OF_SKIPPED_ROW]
    try:
        text = json.dumps(row.row, ensure_ascii=False, default=str)[:_KEPT_OF_SKIPPED_ROW]
    except RecursionError:
        text = ""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
