"""A data file opened for its examples: its rows, and the row format that its first rows show. No database.

Call `read_examples` for the examples of a file, or `open_data_file` for its rows one by one, as an import does.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from alpasift.batcher.data.files.file_row import DatasetError, FileRow
from alpasift.batcher.data.files.rows import read_rows
from alpasift.batcher.data.files.source import Source, inspect, inspect_files
from alpasift.batcher.data.row_formats.detect import (
    choose_row_format,
    detected_row_format,
    rival_answers,
    row_format_of,
)
from alpasift.batcher.data.row_formats.other_keys import is_rejected
from alpasift.batcher.data.row_formats.row import REASONS, Notes, Parts, RowFormat, RowFormatError, Unusable
from alpasift.batcher.data.row_formats.rows import reader
from alpasift.graders import Example

_FIRST_ROWS = 100  # that decide the row format


@dataclass(frozen=True, slots=True)
class DataFile:
    """An opened data file. `rows` may be read once; `stamp` and `sha256` are from before they are read.

    `rivals` are other keys of the first rows that might hold the answer. With `others` rows that lack the keys of the
    file's row format are read by their own. `overruled` is the row format that the keys show, where another was asked
    for.
    """

    source: Source
    stamp: list[tuple[int, int]]
    sha256: str
    row_format: RowFormat
    rows: Iterator[FileRow]
    rivals: tuple[str, ...] = ()
    others: bool = False
    overruled: str | None = None


@dataclass(frozen=True, slots=True)
class ReadFile:
    """The usable rows of a file in order, and how many were skipped, by reason. `rows` counts both.

    `rejected` are the numbers of the examples that the file calls rejected.
    """

    examples: list[Example]
    rows: int
    skipped: dict[str, int]
    row_format: str
    sha256: str
    rejected: tuple[int, ...] = ()


def open_data_file(
    path: Path | Sequence[Path],
    row_format: str = "auto",
    mapping: Mapping[str, str] | None = None,
    split: str | None = None,
) -> DataFile:
    """Open a file, or several that make one dataset, and find the row format by the first rows. Raises DatasetError.

    `split` says which part of a folder is meant, where it holds several.
    """
    paths = [path] if isinstance(path, Path) else list(path)
    path = paths[0]
    if split is not None and (len(paths) > 1 or not path.is_dir()):
        raise DatasetError(f"{path} is not a folder, and only folders have splits; remove --split {split}")
    source = inspect(path, split) if len(paths) == 1 else inspect_files(paths)
    stamp, digest = source.stamp(), source.sha256()
    found = read_rows(source)
    first = list(itertools.islice(found, _FIRST_ROWS))
    if not first:
        raise DatasetError(f"{source.path} contains no rows")
    if len(first) == 1 and not mapping:
        first = _rows_of_table(first[0])
    objects = [f.row for f in first if isinstance(f.row, dict)]
    try:
        chosen = choose_row_format(row_format, mapping, objects, _is_usable)
    except RowFormatError as error:
        raise DatasetError(f"{path}: {error}") from error
    rivals = tuple(dict.fromkeys(key for row in objects for key in rival_answers(chosen, row)))
    others = row_format == "auto" and not mapping
    detected = None if row_format in ("auto", "mapped") or mapping else detected_row_format(objects, _is_usable)
    overruled = None if detected == chosen.name else detected
    return DataFile(source, stamp, digest, chosen, itertools.chain(first, found), rivals, others, overruled)


def _rows_of_table(only: FileRow) -> list[FileRow]:
    """The only row of a file, or the rows of a table where it holds one by its columns, as pandas writes them.

    {"instruction": {"0": "a", "1": "b"}, "output": {...}}, or lists in the place of the inner objects, or the names
    apart from the cells: {"columns": ["instruction", "output"], "data": [["a", "b"]]}.
    """
    table = only.row
    if not isinstance(table, dict) or len(table) < 2:
        return [only]
    names, lines = table.get("columns"), table.get("data")
    if set(table) <= {"columns", "index", "data"} and isinstance(names, list) and isinstance(lines, list):
        if all(isinstance(line, list) and len(line) == len(names) == len(set(map(str, names))) for line in lines):
            return [FileRow(only.line, dict(zip(map(str, names), line, strict=True))) for line in lines] or [only]
        return [only]
    fits = row_format_of(table)
    if fits is not None and _is_usable(fits, table):
        return [only]
    columns = list(table.values())
    if all(isinstance(c, list) for c in columns) and len({len(c) for c in columns}) == 1:
        cells = columns
    elif all(isinstance(c, dict) for c in columns) and all(list(c) == list(columns[0]) for c in columns):
        cells = [list(c.values()) for c in columns]
    else:
        return [only]
    return [FileRow(only.line, dict(zip(table, row, strict=True))) for row in zip(*cells, strict=True)] or [only]


def _is_usable(row_format: RowFormat, row: Mapping[str, Any]) -> bool:
    try:
        return any(isinstance(parts, Parts) for parts in reader(row_format, Notes())(row))
    except Unusable:
        return False


def read_examples(path: str | Path, *, row_format: str = "auto", mapping: Mapping[str, str] | None = None) -> ReadFile:
    """The usable rows of a file, the same that an import takes. Raises DatasetError when there is none."""
    path = Path(path)
    file = open_data_file(path, row_format, mapping)
    read, examples, reasons = reader(file.row_format, Notes(), others=file.others), [], Counter[str]()
    rejected: list[int] = []
    for one in file.rows:
        try:
            if one.reason or type(one.row) is not dict:
                raise Unusable(one.reason or "not_an_object")
            found = read(one.row)
        except Unusable as error:
            found = [error]
        for parts in found:
            if isinstance(parts, Unusable):
                reasons[parts.reason] += 1
                continue
            try:
                orjson.dumps(parts[:5])
                examples.append(parts.example())
                if is_rejected(parts.other):
                    rejected.append(len(examples) - 1)
            except TypeError:
                reasons["bad_unicode"] += 1
    if not examples:
        raise DatasetError(none_usable(path, reasons))
    count = len(examples) + reasons.total()
    skipped = dict(reasons.most_common())
    return ReadFile(examples, count, skipped, file.row_format.name, file.sha256, tuple(rejected))


def none_usable(path: Path, reasons: Counter[str]) -> str:
    """What to say of a file whose rows were all skipped."""
    counts = "; ".join(f"{count:,} x {reason} ({REASONS[reason]})" for reason, count in reasons.most_common())
    return f"{path}: none of its {reasons.total():,} rows is usable: {counts}; see --row-format and --map"
