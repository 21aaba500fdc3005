"""The DuckDB file: the only package that imports duckdb.

DuckDB lets one process hold a file, and while one writes no other can even read it. So nothing here stays open:
a transaction opens, commits and closes; a reader opens for one query. Whoever finds the file taken tries again for
`wait` seconds and then names the process that holds it. Tables only grow; the current state of a thing is a view.

    store = Store("lab.duckdb").create()
    with store.transaction() as con:
        append(con, "budgets", ("entry_id", "budget_usd", "recorded_at"), [(1, Decimal(5), utc_now())])
    store.query("ledger")       # a file of sql/queries
"""

from alpasift.batcher.store.errors import QueryError, StoreBusy, StoreError
from alpasift.batcher.store.ids import ID_VERSION, as_id, hash_id, new_id, utc_now
from alpasift.batcher.store.opening import users_umask
from alpasift.batcher.store.query_result import MissingPackage, QueryResult
from alpasift.batcher.store.rows import Connection, Rows, append, rows, scalar, stored_json, stored_text, these_keys
from alpasift.batcher.store.schema import Column, Relation, column_meanings, relation, relations
from alpasift.batcher.store.sql_files import SqlText, named_query, relation_texts, sql_texts
from alpasift.batcher.store.store import Store

__all__ = [
    "ID_VERSION",
    "Column",
    "Connection",
    "MissingPackage",
    "QueryError",
    "QueryResult",
    "Relation",
    "Rows",
    "SqlText",
    "Store",
    "StoreBusy",
    "StoreError",
    "append",
    "as_id",
    "column_meanings",
    "hash_id",
    "named_query",
    "new_id",
    "relation",
    "relation_texts",
    "relations",
    "rows",
    "scalar",
    "sql_texts",
    "stored_json",
    "stored_text",
    "these_keys",
    "users_umask",
    "utc_now",
]
