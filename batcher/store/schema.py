"""What a database holds: its views and tables, with their columns and what one row of each is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources
from typing import Literal

from alpasift.batcher.store.errors import QueryError
from alpasift.batcher.store.rows import rows
from alpasift.batcher.store.sql_files import relation_texts, sql_texts
from alpasift.batcher.store.store import Store


@dataclass(frozen=True, slots=True)
class Column:
    """A column with its type as DuckDB writes it, and what it holds ("" where no comment says so)."""

    name: str
    type: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Relation:
    """A view or a table. `internal` ones serve the program and may change; the others are for people's queries."""

    name: str
    kind: Literal["table", "view"]
    doc: str
    internal: bool
    columns: tuple[Column, ...]


def relations(store: Store, *, internal: bool = False) -> list[Relation]:
    """The views for people's queries; with `internal`, also the views and tables that the program uses itself."""
    meanings, of_tables = column_meanings(), _table_meanings()
    with store.reader() as con:
        text = "select table_name, column_name, data_type from duckdb_columns() order by table_name, column_index"
        columns: dict[str, list[Column]] = {}
        for name, column, kind in rows(con, text).rows:
            meaning = of_tables.get(f"{name}.{column}") or meanings.get(f"{name}.{column}") or meanings.get(column, "")
            columns.setdefault(name, []).append(Column(column, kind, meaning))
    return [
        Relation(found.name, found.kind, found.doc, found.internal, tuple(columns[found.name]))
        for found in relation_texts()
        if found.name in columns and (internal or not found.internal)
    ]


def relation(store: Store, name: str) -> Relation:
    """The view or table of that name. Raises QueryError with the names that are like it."""
    known = {found.name: found for found in relations(store, internal=True)}
    if name not in known:
        close = get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise QueryError(f"no view or table named {name!r}; {hint}`alpasift schema` lists them")
    return known[name]


def column_meanings() -> dict[str, str]:
    """The lines of sql/columns.sql: what NAME, or VIEW.NAME, holds."""
    text = resources.files("alpasift.sql").joinpath("columns.sql").read_text("utf-8")
    return dict(re.findall(r"^-- ([a-z0-9_.]+): (.+)$", text, re.M))


def _table_meanings() -> dict[str, str]:
    """What TABLE.NAME holds: the comments beside the columns in the migrations."""
    return {
        f"{table}.{column}": meaning
        for migration in sql_texts("migrations")
        for table, body in re.findall(r"create table (\w+) \(\n(.*?)\n\);", migration.text, re.S)
        for column, meaning in re.findall(r"^    (\w+) [^\n]*?-- (.+)$", body, re.M)
    }
