"""One query of the user's, answered in a process of its own, by `query_process`: a fork, or this file as a program.

A query can take all memory, or work on inside one function that hears no interrupt. Here it may: the kernel refuses
this process more address space than it was given, and whoever started it (`query_process`) kills it at the deadline.

Request on stdin, pickled; answer on stdout in frames, each a kind, the length of its content and the content:

    O  the database is open: from here on the time counts
    C  the column names, JSON
    R  rows, pickled tuples of plain values       A  rows, an Arrow stream
    D  done: what was cut, JSON                    E  an error, JSON: its kind and its text
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import resource
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import duckdb

from alpasift.batcher.store.errors import QueryError, StoreBusy, StoreError
from alpasift.batcher.store.rows import Connection
from alpasift.batcher.store.store import Store
from alpasift.batcher.store.user_sql import only_statement

HEAD = struct.Struct(">cQ")
OVERHEAD_BYTES = 1_300_000_000
"""Address space beside what the process has at its start and what DuckDB may take: stacks and arenas of threads."""
ROWS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Limits:
    """What an answer may hold: rows, bytes in all, and characters of a text in one cell."""

    rows: int
    bytes: int
    cell: int


def main() -> None:
    request = pickle.loads(sys.stdin.buffer.read())  # noqa: S301  of the process that started this one
    with os.fdopen(os.dup(1), "wb") as out:
        print_nothing()
        answer(request, out)
    os._exit(0)  # what DuckDB has begun need not be ended


def print_nothing() -> None:
    """Nothing that a library prints gets among the frames: DuckDB has a progress bar."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)


def answer(request: Mapping[str, Any], out: BinaryIO) -> None:
    """Write the frames of the answer. The memory of this process is limited from here on."""
    _limit_memory(request["memory_bytes"])
    try:
        store = Store(request["path"], wait=request["wait"])
        with store.locked(f"{request['memory_bytes'] // 1_000_000}MB") as con:
            frame(out, b"O")
            limits = Limits(*request["limits"])
            if request["arrow"]:
                from alpasift.batcher.store.query_arrow import write_arrow

                write_arrow(con, request["text"], request["parameters"], limits, partial(frame, out))
            else:
                _write_rows(con, request["text"], request["parameters"], limits, out)
    except (StoreBusy, StoreError) as error:
        frame(out, b"E", [type(error).__name__, str(error)])
    except QueryError as error:
        frame(out, b"E", ["QueryError", str(error)])
    except (MemoryError, duckdb.OutOfMemoryException):
        frame(out, b"E", ["memory", ""])
    except (duckdb.Error, RuntimeError) as error:
        text = str(error).strip()
        frame(out, b"E", ["memory", ""] if "bad_alloc" in text else ["QueryError", text[:20_000]])
    out.flush()


def _limit_memory(memory_bytes: int) -> None:
    most = _address_space() + memory_bytes + OVERHEAD_BYTES
    with contextlib.suppress(ValueError, OSError):  # a system that has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _address_space() -> int:
    """What this process has now, in bytes: first field of /proc/self/statm, in pages (proc(5))."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def frame(out: BinaryIO, kind: bytes, content: Any = b"") -> None:
    data = content if isinstance(content, bytes | memoryview) else json.dumps(content).encode()
    out.write(HEAD.pack(kind, len(data)))
    out.write(data)
    out.flush()


def _write_rows(con: Connection, text: str, parameters: Mapping[str, Any], limits: Limits, out: BinaryIO) -> None:
    statement = only_statement(con, text)
    cursor = con.execute(statement, dict(parameters)) if parameters else con.execute(statement)
    frame(out, b"C", [d[0] for d in cursor.description or ()])
    left, room, cells = limits.rows, limits.bytes, 0
    cut: str | None = None
    while cut is None:
        found = cursor.fetchmany(min(ROWS_AT_ONCE, left + 1))
        if not found:
            break
        if len(found) > left:
            found, cut = found[:left], "rows"
        for at, row in enumerate(found):
            if any(isinstance(v, str | bytes) and len(v) > limits.cell for v in row):
                cells += 1
                found[at] = tuple(v[: limits.cell] if isinstance(v, str | bytes) else v for v in row)
        data = _pickled(found)
        while len(data) > room and found:
            found, cut = found[: len(found) // 2], "bytes"
            data = _pickled(found)
        room -= len(data)
        left -= len(found)
        if found:
            frame(out, b"R", data)
    frame(out, b"D", {"cut": cut, "cells": cells})


def _pickled(rows: list[tuple[Any, ...]]) -> bytes:
    sink = io.BytesIO()
    _Pickler(sink, pickle.HIGHEST_PROTOCOL).dump(rows)
    return sink.getvalue()


class _Pickler(pickle.Pickler):
    """Writes a time with a zone by its offset: DuckDB's zones are objects of another package."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, datetime) and value.tzinfo is not None and not isinstance(value.tzinfo, timezone):
            offset = value.utcoffset() or timedelta()
            return datetime, (*value.timetuple()[:6], value.microsecond, timezone(offset))
        return NotImplemented


if __name__ == "__main__":
    main()
