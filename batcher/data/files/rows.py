"""Rows of a data file as plain dicts: json, jsonl, csv, parquet, or a folder written by `save_to_disk`.

Knows bytes and line numbers; nothing of instructions, messages or databases. Everything is streamed, so memory does
not grow with the file. A row that cannot be read beside rows that can is yielded with its reason. What ruins the file
as a whole (broken JSON in a .json, another encoding, a cut archive, a first line that is not JSON) raises DatasetError.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from alpasift.batcher.data.files.csv_rows import read_csv
from alpasift.batcher.data.files.file_row import FileRow
from alpasift.batcher.data.files.json_lines import read_jsonl
from alpasift.batcher.data.files.json_list import read_json_list, read_objects
from alpasift.batcher.data.files.source import Source, errors_explained
from alpasift.batcher.data.files.text import check_expansion, open_content
from alpasift.batcher.data.ticks import needs_ticks, with_ticks


def read_rows(source: Source) -> Iterator[FileRow]:
    """Every row of the file in its order, the unreadable ones with their reason."""
    kind = source.format.partition(".")[0]
    with errors_explained(source.path):
        if kind == "parquet":
            for file in source.files:
                yield from _read_parquet(file)
        elif kind == "save_to_disk":
            for file in source.files:
                yield from _read_arrow(file)
        else:
            read = {"json": read_json_list, "objects": read_objects, "jsonl": read_jsonl, "csv": read_csv}[kind]
            for file in source.files:
                with open_content(file, source.packing) as stream:
                    yield from read(file, stream)


def _read_parquet(path: Path) -> Iterator[FileRow]:
    with pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)]
        check_expansion(path, sum(groups), path.stat().st_size)
        for batch in file.iter_batches(batch_size=256):  # few rows: one value may stand in many of them
            yield from _rows_of(batch)


def _read_arrow(path: Path) -> Iterator[FileRow]:
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as batches:
        for batch in batches:
            batch.validate(full=True)  # offsets of a damaged file point anywhere, and the process would die of them
            for start in range(0, batch.num_rows, 256):
                yield from _rows_of(batch.slice(start, 256))


def _rows_of(batch: pa.RecordBatch) -> Iterator[FileRow]:
    columns = [_values(column) for column in batch.columns]
    for row in zip(*columns, strict=True):
        yield FileRow(None, dict(zip(batch.schema.names, row, strict=True)))


def _values(column: pa.Array) -> list[Any]:
    """The values of a column; times that Python cannot hold as Ticks."""
    if needs_ticks(column.type):
        return with_ticks(column)
    try:
        return cast("list[Any]", column.to_pylist())
    except (OverflowError, ValueError):
        return with_ticks(column)
