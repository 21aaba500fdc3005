"""Making a database, and bringing one of an earlier release up to date.

`sql/migrations` is applied once, in order; `sql/views` is created again when the folder's hash differs from the one
stored. A migration is tried on a copy first, and then done in one transaction: whatever interrupts it, the file is as
it was or up to date. The file as it was stays beside it, DATABASE.before_MIGRATION.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import itertools
import os
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import duckdb

from alpasift.batcher.store.copying import copy_file
from alpasift.batcher.store.errors import StoreError
from alpasift.batcher.store.ids import new_id, utc_now
from alpasift.batcher.store.opening import CONFIG, first_line, open_database
from alpasift.batcher.store.rows import Connection, scalar
from alpasift.batcher.store.sql_files import SqlText, sql_texts


def make(con: Connection) -> None:
    """Make all tables and views in an empty database, which gets an identity of its own."""
    con.execute("begin")
    con.execute("create table migrations (name varchar primary key, recorded_at timestamp not null)")
    con.execute("create table views_state (views_hash varchar not null, recorded_at timestamp not null)")
    _apply(con, sql_texts("migrations"))
    facts = {"id": new_id(), "now": str(utc_now())}
    con.execute("insert into meta values ('ledger', $id), ('created_at', $now)", facts)
    _write_views(con)
    con.execute("commit")
    con.execute("checkpoint")


def is_current(con: Connection, path: Path) -> bool:
    """Whether a database has all migrations and views of this release. Raises StoreError where it is none of ours."""
    if len(_applied(con, path)) < len(sql_texts("migrations")):
        return False
    return bool(scalar(con, "select arg_max(views_hash, rowid) from views_state") == _views_hash())


def migrate(con: Connection, path: Path) -> None:
    """Bring the database at `path`, which `con` has open, up to date. Raises StoreError, with the file as it was."""
    applied = _applied(con, path)
    if not applied:  # an empty DuckDB file
        make(con)
        return
    missing = [m for m in sql_texts("migrations") if m.name not in applied]
    if missing:
        con.execute("checkpoint")
        _delete_leftovers(path)
        _try_on_a_copy(path, _keep(path, missing[0].name), missing)
    con.execute("begin")
    _apply(con, missing)
    _write_views(con)
    con.execute("commit")
    con.execute("checkpoint")


def _keep(path: Path, migration: str) -> Path:
    """Keep the file as it is beside it, whole or not at all. What a person has there stays."""
    before = path.with_name(f"{path.name}.before_{migration}")
    for number in itertools.count(2):
        if not before.exists():
            break
        before = path.with_name(f"{path.name}.before_{migration}.{number}")
    draft = _draft_of(path)
    copy_file(path, draft)
    draft.rename(before)
    return before


def _draft_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def _delete_leftovers(path: Path) -> None:
    """Delete copies that a process which was killed in a migration left. Call with the run lock held."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        if left.name.removeprefix(f".{path.name}.").removesuffix(".wal").isdigit():
            left.unlink(missing_ok=True)


def _try_on_a_copy(path: Path, before: Path, missing: Sequence[SqlText]) -> None:
    """Migrate a copy of `before` and compare the rows of every table. Raises StoreError where that does not work."""
    copy = _draft_of(path)
    try:
        shutil.copy2(before, copy)
        with contextlib.closing(open_database(copy, False, 0, CONFIG)) as con:
            rows_before = _row_counts(con)
            con.execute("begin")
            _apply(con, missing)
            _write_views(con)
            con.execute("commit")
            rows_after = _row_counts(con)
    except duckdb.Error as error:
        raise StoreError(
            f"{path} could not be upgraded ({first_line(str(error))}); it is unchanged. Use the "
            "release that wrote it, and report this"
        ) from error
    finally:
        for left in (copy, copy.with_name(copy.name + ".wal")):
            left.unlink(missing_ok=True)
    changed = [table for table, count in rows_before.items() if rows_after.get(table) != count]
    if changed:
        raise StoreError(f"{path} was not upgraded: that would change rows of {', '.join(changed)}; report this")


def _row_counts(con: Connection) -> dict[str, int]:
    text = "select table_name from duckdb_tables() where table_name not in ('migrations', 'views_state')"
    return {name: int(scalar(con, f"select count(*) from {name}")) for (name,) in con.execute(text).fetchall()}


def _applied(con: Connection, path: Path) -> list[str]:
    """The migrations that a database has. Raises StoreError for a database of another program, or a newer release."""
    tables = {r[0] for r in con.execute("select table_name from duckdb_tables()").fetchall()}
    if not tables:
        return []
    if "migrations" not in tables:
        raise StoreError(f"{path} is a DuckDB database, but not of alpasift; give another --db")
    applied = [r[0] for r in con.execute("select name from migrations order by name").fetchall()]
    unknown = sorted(set(applied) - {m.name for m in sql_texts("migrations")})
    if unknown:
        raise StoreError(
            f"{path} was written by a newer alpasift (it has {unknown[-1]}); upgrade with `pip install -U alpasift`"
        )
    return applied


def _apply(con: Connection, migrations: Sequence[SqlText]) -> None:
    for migration in migrations:
        con.execute(migration.text)
        con.execute("insert into migrations values ($name, $now)", {"name": migration.name, "now": utc_now()})


def _write_views(con: Connection) -> None:
    for view in sql_texts("views"):
        con.execute(view.text)
    con.execute("insert into views_state values ($hash, $now)", {"hash": _views_hash(), "now": utc_now()})


@cache
def _views_hash() -> str:
    return hashlib.sha256("\0".join(v.name + "\0" + v.text for v in sql_texts("views")).encode()).hexdigest()
