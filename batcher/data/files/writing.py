"""Rows of plain dicts -> a file: json, jsonl and csv (also .gz and .zst) and parquet, all or nothing.

Knows how values are written; nothing of row formats or databases. `alpasift.batcher.data.files.rows` reads every such
file back with the same keys and values, as far as the format has them: csv has only text, and parquet gives each row
all the columns.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import io
import itertools
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from alpasift.batcher.data.files.csv_rows import guard, marked_header
from alpasift.batcher.data.files.file_row import DatasetError
from alpasift.batcher.data.files.names import format_of
from alpasift.batcher.data.files.text import PACKED
from alpasift.batcher.data.ticks import Ticks, without_ticks
from alpasift.batcher.store import users_umask

Rows = Callable[[], Iterable[Mapping[str, Any]]]


def writable_format(path: Path, name: str | None) -> str:
    """The format to write: `name` ("jsonl", "json.gz", ...), or what the suffix of the path says."""
    kind, packing = format_of(f"x.{name}" if name else path.name)
    if kind is None or (kind == "parquet" and packing):
        choices = "json, jsonl, csv (also with .gz or .zst) or parquet"
        raise DatasetError(f"{name or path} cannot be written; the formats are {choices}")
    return kind + (f".{packing}" if packing else "")


def write_rows(path: Path, format_name: str, rows: Rows, columns: pa.Schema | None = None) -> int:
    """Write the rows to `path`, all or nothing, readable as the user's umask says. Returns how many there were.

    `rows` may be called twice: csv and parquet need all keys before the first row. `columns` are the types of those
    columns of a parquet file that are known; the others are found from the values.
    """
    kind, _, packing = format_name.partition(".")
    path = path.resolve()  # a link stays a link
    if path.exists() and not path.is_file() and not path.is_dir():
        raise DatasetError(f"{path} is not a regular file; give another")
    if path.is_dir():
        raise DatasetError(f"{path} is a folder; give the name of a file in it")
    count = 0

    def counted() -> Iterator[Mapping[str, Any]]:
        nonlocal count
        for row in rows():
            count += 1
            yield row

    try:
        with _replacing(path) as temporary:
            if kind == "parquet":
                _write_parquet(temporary, counted(), _parquet_columns(rows, columns))
            else:
                chunks = (
                    _csv_chunks(counted(), *_csv_form(rows))
                    if kind == "csv"
                    else _json_chunks(counted(), kind == "json")
                )
                with _sink(temporary, packing) as sink:
                    for chunk in chunks:
                        sink.write(chunk)
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from error
    return count


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, for its owner only, that takes its place when the block ends well."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:80]}.", dir=path.parent)
    temporary = Path(name)
    os.close(handle)
    try:
        yield temporary
        temporary.chmod(mode_for(path))
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def mode_for(path: Path) -> int:
    """The permissions of a file that is written for the user: those that it has, else what the umask leaves."""
    return path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~users_umask()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _sink(path: Path, packing: str) -> Iterator[Any]:
    if not packing:
        with path.open("wb") as file:
            yield file
    else:
        with pa.OSFile(str(path), "wb") as raw, pa.CompressedOutputStream(raw, PACKED[packing][1]) as packed:
            yield packed


def dump_json(value: Any) -> bytes:
    """Compact UTF-8 JSON. Numbers that JSON lacks are written as Python writes them (NaN), dates as ISO text."""
    try:
        text = orjson.dumps(value, default=_json_value)
    except TypeError:  # integers beyond 64 bits
        return _dump_slowly(value)
    return _dump_slowly(value) if b"null" in text and _has_no_number(value) else text


def _dump_slowly(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_json_value).encode("utf-8")


def _has_no_number(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_no_number, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_no_number, value))
    return isinstance(value, float) and not math.isfinite(value)


def _json_value(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value)


def _json_chunks(rows: Iterable[Mapping[str, Any]], as_list: bool) -> Iterator[bytes]:
    if as_list:
        yield b"["
    between = b"\n"
    for row in rows:
        yield between + dump_json(row) if as_list else dump_json(row) + b"\n"
        between = b",\n"
    if as_list:
        yield b"\n]\n"


def _names(rows: Rows) -> list[str]:
    names: dict[str, None] = {}
    for row in rows():
        names.update(dict.fromkeys(row))
    return list(names)


def _csv_form(rows: Rows) -> tuple[list[str], bool]:
    """The columns of all rows, and whether some cell is guarded."""
    names: dict[str, None] = {}
    guarded = False
    for row in rows():
        names.update(dict.fromkeys(row))
        guarded = guarded or any(isinstance(cell, str) and guard(cell) != cell for cell in row.values())
    return list(names), guarded or any(guard(name) != name for name in names)


def _csv_chunks(rows: Iterable[Mapping[str, Any]], names: Sequence[str], guarded: bool) -> Iterator[bytes]:
    text = io.StringIO()
    writer = csv.writer(text)
    if guarded:
        text.write(marked_header([guard(n) for n in names]))
    else:
        writer.writerow(names)
    for row in rows:
        writer.writerow([_cell(row.get(n)) for n in names])
        yield text.getvalue().encode("utf-8")
        text.seek(0)
        text.truncate()
    yield text.getvalue().encode("utf-8")


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return guard(value)
    return "" if value is None else dump_json(value).decode("utf-8")


_CHUNK = 5_000


def _parquet_columns(rows: Rows, known: pa.Schema | None) -> pa.Schema:
    """The columns of all rows; those of mixed types become text, with JSON in it."""
    names = _names(rows)
    types: dict[str, pa.DataType] = {f.name: f.type for f in known} if known is not None else {}
    missing = [n for n in names if n not in types]
    found: dict[str, pa.DataType] = dict.fromkeys(missing, pa.null())
    stream = iter(rows())
    while missing and (chunk := list(itertools.islice(stream, _CHUNK))):
        for name in missing:
            try:
                seen = pa.schema([(name, pa.array([row.get(name) for row in chunk]).type)])
                both = [pa.schema([(name, found[name])]), seen]
                found[name] = pa.unify_schemas(both, promote_options="permissive").field(0).type
            except (pa.ArrowException, OverflowError):
                found[name] = pa.string()
                missing = [n for n in missing if n != name]
    types.update({n: pa.string() if t == pa.null() else t for n, t in found.items()})
    kept = names or list(types)
    return pa.schema([(n, types[n]) for n in kept])


def _write_parquet(path: Path, rows: Iterable[Mapping[str, Any]], columns: pa.Schema) -> None:
    stream = iter(rows)
    with pq.ParquetWriter(str(path), columns) as writer:
        while chunk := list(itertools.islice(stream, _CHUNK)):
            arrays = [pa.array([_fitting(row.get(f.name), f.type) for row in chunk], type=f.type) for f in columns]
            writer.write_table(pa.Table.from_arrays(arrays, schema=columns))


def _fitting(value: Any, kind: pa.DataType) -> Any:
    if value is None or isinstance(value, str):
        return value
    if pa.types.is_string(kind):
        return str(value) if isinstance(value, Ticks) else dump_json(value).decode("utf-8")
    if pa.types.is_map(kind):
        return [tuple(without_ticks(pair)) for pair in value]
    if pa.types.is_interval(kind):
        return tuple(value)
    return without_ticks(value)
