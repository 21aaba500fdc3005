"""The user's own SQL condition of `select --where`, evaluated for every row on the locked connection.

Knows sql/queries/pool.sql, whose columns the expression may name, and how to refuse what is not one repeatable
expression.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from alpasift.batcher.grading.condition import SelectError
from alpasift.batcher.grading.lookup import Grading
from alpasift.batcher.store import QueryError, Store, named_query

MEMORY_BYTES = 1_000_000_000
WHERE_SECONDS = 300.0
_CLOCKS = {"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"}
"""Functions that are written without brackets, as columns are."""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Positions of the rows for which an expression is true, and of those for which it is null."""

    true: array[int]
    unknown: array[int]


def rows_where(store: Store, version_id: str, expression: str, grading: Grading | None) -> Verdicts:
    """Evaluate the user's expression for every row, on the locked connection. Raises SelectError.

    The expression must be one expression of its own: it is read once between round and once between square brackets,
    which a text that closes our bracket and opens another cannot both survive.
    """
    if not expression.strip() or len(expression) > 20_000 or "\0" in expression:
        raise SelectError(
            "--where needs an SQL expression of at most 20,000 characters, `score >= 4 and length(output) < 2000`"
        )
    parameters = {
        "version_id": version_id,
        "grader_id": grading.grader_id if grading else None,
        "rubric_id": grading.rubric_id if grading else None,
    }
    pool = f"with pool as ({named_query('pool').text.rstrip().rstrip(';')})"
    try:
        checked = _refuse_volatile(store, expression)
        for open_, close in (("(", ")"), ("[", "]")):  # the newline ends a comment at the end of the expression
            head = store.locked_query(
                f"describe {pool} select {open_}{expression}\n{close} as kept from pool", parameters
            )
            if open_ == "(" and (len(head.rows) != 1 or head.rows[0][1] != "BOOLEAN"):
                kinds = ", ".join(str(r[1]) for r in head.rows)
                raise SelectError(f"--where must be true or false for each row; {expression!r} gives {kinds}")
        if not checked:
            raise SelectError(f"--where {expression!r} cannot be checked for non-deterministic functions")
        found = store.user_query(
            f"""{pool}, judged as (select position, ({expression}\n) as kept from pool)
            select list(position) filter (where kept), list(position) filter (where kept is null) from judged""",
            parameters,
            max_rows=1,
            seconds=WHERE_SECONDS,
            memory_bytes=MEMORY_BYTES,
        )
    except QueryError as error:
        raise SelectError(f"--where {expression!r}: {_short(str(error))}") from error
    if found.cut or not found.rows:
        raise SelectError(f"--where {expression!r}: the result is too large")
    true, unknown = found.rows[0]
    return Verdicts(array("q", true or ()), array("q", unknown or ()))


def _refuse_volatile(store: Store, expression: str) -> bool:
    """Refuse what answers differently each time: it would make a selection that nobody can repeat.

    The expression is looked at as DuckDB parses it, so that no spelling hides a call. Returns whether it could be.
    """
    text = "select json_serialize_sql($statement)"
    parsed = store.locked_query(text, {"statement": f"select ({expression}\n) as kept from pool"}).rows[0][0]
    tree = json.loads(parsed)
    if tree.get("error"):
        return False
    volatile = store.locked_query(
        "select distinct lower(function_name) from duckdb_functions() "
        "where stability <> 'CONSISTENT' and function_type = 'scalar'"
    )
    names = {name for (name,) in volatile.rows}
    for node in _nodes(tree):
        called, columns = str(node.get("function_name") or "").lower(), node.get("column_names") or [""]
        if called in names:
            raise SelectError(
                f"--where may not call {called}(): it is not deterministic; --random N --seed S samples at random"
            )
        if node.get("sample"):
            raise SelectError(
                "--where may not draw a sample: it is not deterministic; --random N --seed S samples at random"
            )
        if len(columns) == 1 and str(columns[0]).lower() in _CLOCKS:
            raise SelectError(f"--where may not use {str(columns[0]).lower()}: it is not deterministic")
        if node.get("class") == "WINDOW" and not node.get("orders"):
            if not node.get("partitions"):
                raise SelectError("--where may not use over (): it is not deterministic")
            if node.get("type") != "WINDOW_AGGREGATE":
                raise SelectError(
                    f"--where may not use {called}() over rows without an order: it is not deterministic; write "
                    "order by position"
                )
    return True


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object of a parsed statement."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


def _short(message: str) -> str:
    """DuckDB's message without the excerpt of the statement, which the user did not write."""
    return " ".join(message.split("\n\nLINE ")[0].split())
