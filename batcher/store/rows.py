"""Rows out of the database and into it, in plain Python values."""

from __future__ import annotations

import contextlib
import json
import math
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import duckdb

if TYPE_CHECKING:
    import pyarrow as pa

Connection = duckdb.DuckDBPyConnection


@dataclass(frozen=True, slots=True)
class Rows:
    """The answer to a query: column names, rows as tuples, whether it was cut, and at what beside the row limit."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    cut: bool = False
    why_cut: str = ""

    def dicts(self) -> list[dict[str, Any]]:
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def rows(con: Connection, text: str, parameters: Mapping[str, Any] | None = None) -> Rows:
    """All rows of one of our own queries."""
    cursor = con.execute(text, dict(parameters)) if parameters else con.execute(text)
    return Rows(tuple(d[0] for d in cursor.description or ()), cursor.fetchall())


def scalar(con: Connection, text: str, parameters: Mapping[str, Any] | None = None) -> Any:
    """The first value of the first row, None when there is no row."""
    found = rows(con, text, parameters).rows
    return found[0][0] if found else None


def append(
    con: Connection, table: str, columns: Sequence[str], values: Sequence[Sequence[Any]], unique: bool = False
) -> int:
    """Add rows to a table and return how many were new; with `unique`, rows whose key is there already are passed over.

    `values` are rows in the order of `columns`, of plain Python values; a few thousand at a time.
    """
    import pyarrow as pa  # with numpy, which it loads, it takes as long to import as all the rest of a query

    if not values:
        return 0
    columns_sql = ", ".join(columns)
    types = _column_types(con, table)
    arrays = [_column(cells, types[c]) for cells, c in zip(zip(*values, strict=True), columns, strict=True)]
    staged = pa.Table.from_arrays(arrays, names=list(columns))
    con.register("staged_rows", staged)
    try:
        select = ", ".join(f"cast({c} as {types[c]})" for c in columns)
        conflict = " on conflict do nothing" if unique else ""
        added = con.execute(
            f"insert into {table} ({columns_sql}) select {select} from staged_rows{conflict}"
        ).fetchone()
    finally:
        with contextlib.suppress(duckdb.Error):  # an interrupted transaction refuses this too
            con.unregister("staged_rows")
    return int(added[0]) if added else 0


def stored_text(text: str | None) -> str | None:
    """Text as the database can hold it: a lone surrogate, which is no Unicode, is written out as \\udc80."""
    if text is None or text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode()


def stored_json(value: Any) -> str:
    """A value as JSON that DuckDB reads: without lone surrogates, NUL, and numbers that are none (NaN, infinity)."""
    return json.dumps(_plain(value))


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return (stored_text(value) or "").replace("\0", "")
    if isinstance(value, Mapping):
        return {_plain(str(name)): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextlib.contextmanager
def these_keys(con: Connection, keys: Iterable[str]) -> Iterator[None]:
    """Ids as a table `wanted` with the column key for the queries of the block: a list of thousands binds slowly."""
    import pyarrow as pa

    con.register("wanted_texts", pa.table({"key": pa.array(list(keys), type=pa.string())}))
    con.execute("create or replace temp view wanted as select key::uuid as key from wanted_texts")
    try:
        yield
    finally:
        with contextlib.suppress(duckdb.Error):
            con.execute("drop view wanted")
            con.unregister("wanted_texts")


_TYPES: dict[str, dict[str, str]] = {}


def _column_types(con: Connection, table: str) -> dict[str, str]:
    if table not in _TYPES:  # one look at the catalogue serves every table of this process
        for name, column, kind in con.execute(
            "select table_name, column_name, data_type from duckdb_columns()"
        ).fetchall():
            _TYPES.setdefault(name, {})[column] = kind
    return _TYPES[table]


def _column(cells: Sequence[Any], sql_type: str) -> pa.Array:
    import pyarrow as pa

    if sql_type == "UUID":
        cells = [str(cell) if isinstance(cell, uuid.UUID) else cell for cell in cells]
    return pa.array(cells, type=_arrow_type(sql_type))


def _arrow_type(sql_type: str) -> pa.DataType:
    import pyarrow as pa

    if sql_type.startswith("DECIMAL"):
        precision, scale = re.findall(r"\d+", sql_type)
        return pa.decimal128(int(precision), int(scale))
    plain = {
        "BIGINT": pa.int64(),
        "INTEGER": pa.int32(),
        "DOUBLE": pa.float64(),
        "BOOLEAN": pa.bool_(),
        "TIMESTAMP": pa.timestamp("us"),
    }
    return plain.get(sql_type, pa.string())
