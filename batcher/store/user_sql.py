"""SQL of the user's: one statement, with a limit of time and rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

import duckdb

from alpasift.batcher.store.errors import QueryError
from alpasift.batcher.store.opening import first_line
from alpasift.batcher.store.rows import Connection, Rows

_T = TypeVar("_T")


def limited_query(con: Connection, text: str, parameters: Mapping[str, Any], max_rows: int, seconds: float) -> Rows:
    statement = only_statement(con, text)
    found, columns = _in_time(con, lambda: _fetch(con, statement, parameters, max_rows + 1), seconds)
    return Rows(columns, found[:max_rows], cut=len(found) > max_rows)


def only_statement(con: Connection, text: str) -> Any:
    """The one statement of a text. Raises QueryError."""
    try:
        statements = con.extract_statements(text)
    except duckdb.Error as error:
        raise QueryError(first_line(str(error))) from error
    if len(statements) != 1:
        raise QueryError(f"give one statement; this has {len(statements)}")
    return statements[0]


def _fetch(
    con: Connection, statement: Any, parameters: Mapping[str, Any], count: int
) -> tuple[list[Any], tuple[str, ...]]:
    cursor = con.execute(statement, dict(parameters)) if parameters else con.execute(statement)
    found = cursor.fetchmany(count)
    return found, tuple(d[0] for d in cursor.description or ())


def _in_time(con: Connection, work: Callable[[], _T], seconds: float) -> _T:
    """Do the work in a thread; interrupt it after so many seconds, or at Ctrl-C, which DuckDB may not notice."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        task, deadline = pool.submit(work), time.monotonic() + seconds
        try:
            while not task.done() and time.monotonic() < deadline:
                wait([task], timeout=0.1)
        finally:
            late = not task.done()
            while not task.done():  # again and again: an interrupt before the query has begun is lost
                con.interrupt()
                wait([task], timeout=0.1)
    if late:
        raise QueryError(f"the query was stopped after {seconds:g} s; make it narrower, or raise --seconds")
    try:
        return task.result()
    except duckdb.Error as error:
        raise QueryError(str(error).strip()) from error
