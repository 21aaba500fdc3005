"""The rows of a user's query as Arrow, each column with the type that DuckDB has for it; see `query_child`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from alpasift.batcher.store.errors import QueryError
from alpasift.batcher.store.rows import Connection
from alpasift.batcher.store.user_sql import only_statement

if TYPE_CHECKING:
    from alpasift.batcher.store.query_child import Limits

ARROW_ROWS = 4096
Send = Callable[[bytes, Any], None]
"""Sends a frame: its kind and its content."""


def write_arrow(con: Connection, text: str, parameters: Mapping[str, Any], limits: Limits, send: Send) -> None:
    """Write the frames of an answer. Raises QueryError, MemoryError."""
    try:
        _write(con, text, parameters, limits, send)
    except pa.ArrowMemoryError as error:
        raise MemoryError from error
    except pa.ArrowException as error:
        raise QueryError(str(error).strip()[:20_000]) from error


def _write(con: Connection, text: str, parameters: Mapping[str, Any], limits: Limits, send: Send) -> None:
    only_statement(con, text)
    relation = con.sql(text, params=dict(parameters)) if parameters else con.sql(text)
    if relation is None:
        raise QueryError("this statement returns no rows")
    reader = relation.to_arrow_reader(min(ARROW_ROWS, limits.rows + 1))
    send(b"A", _stream(reader.schema, []))
    left, room, cells = limits.rows, limits.bytes, 0
    cut: str | None = None
    while cut is None and (batch := next(reader, None)) is not None:
        if batch.num_rows > left:
            batch, cut = batch.slice(0, left), "rows"
        batch, shortened = _short_cells(batch, limits.cell)
        cells += shortened
        while batch.nbytes > room and batch.num_rows:
            batch, cut = batch.slice(0, batch.num_rows // 2), "bytes"
        room -= batch.nbytes
        left -= batch.num_rows
        if batch.num_rows:
            send(b"A", _stream(reader.schema, [batch]))
    send(b"D", {"cut": cut, "cells": cells})


def _stream(schema: pa.Schema, batches: list[pa.RecordBatch]) -> memoryview:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return memoryview(sink.getvalue())


def _short_cells(batch: pa.RecordBatch, most: int) -> tuple[pa.RecordBatch, int]:
    """The batch with texts of at most so many characters, and how many were longer."""
    columns, shortened = [], 0
    for column in batch.columns:
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            longer = pc.sum(pc.greater(pc.utf8_length(column), most)).as_py() or 0
            if longer:
                shortened += longer
                column = pc.utf8_slice_codeunits(column, 0, most)
        columns.append(column)
    return (pa.RecordBatch.from_arrays(columns, schema=batch.schema), shortened) if shortened else (batch, 0)
