"""The store: opening, migrating, locking, and what user SQL may not do."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from pathlib import Path

import duckdb
import pytest

from alpasift.batcher.store import QueryError, Rows, Store, StoreError, append, hash_id, named_query, sql_texts
from conftest import new_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Made by `create` itself, which is tested here, and not copied as elsewhere."""
    return Store(tmp_path / "test.duckdb").create()


def test_the_copy_that_other_tests_start_from_is_what_create_makes(store: Store, tmp_path: Path) -> None:
    copied = new_store(tmp_path / "copied.duckdb")
    assert stat.S_IMODE(copied.path.stat().st_mode) == stat.S_IMODE(store.path.stat().st_mode)
    columns = (
        "select table_name, column_name, data_type, is_nullable, column_default from duckdb_columns() order by all"
    )
    tables = "select table_name from duckdb_tables() order by all"
    for schema in (columns, tables, "select constraint_text, table_name from duckdb_constraints() order by all"):
        assert copied.locked_query(schema).rows == store.locked_query(schema).rows != []
    for table in ("migrations", "views_state"):
        content = f"select * exclude (recorded_at) from {table} order by all"
        assert copied.locked_query(content).rows == store.locked_query(content).rows != []
    for (table,) in store.locked_query(tables).rows:
        count = f"select count(*) from {table}"
        assert copied.locked_query(count).rows == store.locked_query(count).rows
    identities = [
        dict(one.locked_query("select key, value from meta").rows) for one in (store, copied, new_store(tmp_path / "2"))
    ]
    assert {tuple(sorted(one)) for one in identities} == {("created_at", "ledger")}
    assert len({one["ledger"] for one in identities}) == len({one["created_at"] for one in identities}) == 3


def test_a_new_database_is_readable_by_its_owner_only(store: Store) -> None:
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600


def test_making_it_again_changes_nothing(store: Store) -> None:
    before = store.locked_query("select * from meta order by key").rows
    store.create()
    assert store.locked_query("select * from meta order by key").rows == before
    assert store.locked_query("select count(*) from migrations").rows == [(len(sql_texts("migrations")),)]


def test_a_transaction_that_fails_writes_nothing(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.transaction() as con:
        append(con, "meta", ("key", "value"), [("a", "b")])
        _ = 1 / 0
    assert store.locked_query("select count(*) from meta where key = 'a'").rows == [(0,)]


def test_append_passes_over_keys_that_are_there(store: Store) -> None:
    with store.transaction() as con:
        assert append(con, "meta", ("key", "value"), [("a", "1"), ("b", "2")]) == 2
        assert append(con, "meta", ("key", "value"), [("b", "3"), ("c", "4")], unique=True) == 1
    assert store.locked_query("select value from meta where key in ('a', 'b', 'c') order by key").rows == [
        ("1",),
        ("2",),
        ("4",),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "insert into meta values ('x', 'y')",
        "delete from meta",
        "create table t (i int)",
        "drop view graded",
        "copy (select 1) to 'out.csv'",
        "copy meta to 'out.parquet'",
        "select * from read_csv('/etc/passwd')",
        "select * from '/etc/passwd'",
        "select * from read_text('/etc/passwd')",
        "select * from glob('/*')",
        "attach 'other.duckdb'",
        "export database 'd'",
        "import database 'd'",
        "install httpfs",
        "load httpfs",
        "set threads = 1",
        "set enable_external_access = true",
        "reset lock_configuration",
        "select 1; select 2",
        "",
        "selec 1",
        "select nothing",
        "checkpoint",
        "pragma enable_profiling",
        "use memory",
    ],
)
def test_user_sql_can_neither_write_nor_reach_a_file_nor_change_a_setting(
    store: Store, tmp_path: Path, text: str
) -> None:
    before = sorted(p.name for p in tmp_path.iterdir())
    tables = store.locked_query("select table_name from duckdb_tables() order by 1").rows
    try:
        store.locked_query(text)
    except QueryError as error:
        assert str(error)
    else:
        assert text in ("checkpoint", "use memory", "pragma enable_profiling"), "it was allowed"
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert store.locked_query("select table_name from duckdb_tables() order by 1").rows == tables
    assert store.locked_query("select count(*) from meta").rows == [(2,)]


def test_a_runaway_query_is_stopped(store: Store) -> None:
    with pytest.raises(QueryError, match=r"stopped after 0.5 s"):
        store.locked_query(
            "select count(*) from range(10000000) a, range(10000000) b where a.range % 7 = b.range % 11", seconds=0.5
        )


def test_a_long_answer_is_cut_and_says_so(store: Store) -> None:
    assert store.locked_query("select * from range(10)", max_rows=3) == Rows(("range",), [(0,), (1,), (2,)], cut=True)
    assert store.locked_query("select * from range(3)", max_rows=3).cut is False


def test_a_local_python_variable_is_not_a_table(store: Store) -> None:
    secret = [1]
    with pytest.raises(QueryError, match="does not exist"):
        store.locked_query("select * from secret")
    assert secret


def test_a_writer_waits_for_a_reader_and_the_other_way_round(store: Store) -> None:
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            store.query("ledger")

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for i in range(15):
            with store.transaction() as con:
                append(con, "meta", ("key", "value"), [(f"k{i}", "v")])
    finally:
        done.set()
        thread.join()
    assert store.locked_query("select count(*) from meta where key like 'k%'").rows == [(15,)]


# -- files that are not what they should be ---------------------------------------------------------------------


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"
    path.write_text("this is a letter, not a database\n" * 400)
    with pytest.raises(StoreError, match="not a DuckDB database"):
        Store(path).create()
    assert path.read_text().startswith("this is a letter")


def test_an_empty_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(StoreError, match="empty file"):
        Store(tmp_path / "empty").create()
    with pytest.raises(StoreError, match="is a folder"):
        Store(tmp_path).create()
    with pytest.raises(StoreError, match="does not exist"):
        Store(tmp_path / "no" / "x.duckdb").create()


def test_somebody_elses_duckdb_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.duckdb"
    with duckdb.connect(str(path)) as con:
        con.execute("create table cows (name varchar)")
    with pytest.raises(StoreError, match="not of alpasift"):
        Store(path).create()
    with duckdb.connect(str(path), read_only=True) as con:
        assert con.execute("select table_name from duckdb_tables()").fetchall() == [("cows",)]


def test_a_database_of_a_newer_version_is_refused(store: Store) -> None:
    with store.transaction() as con:
        con.execute("insert into migrations values ('999_from_the_future', now()::timestamp)")
    with pytest.raises(StoreError, match=r"newer alpasift \(it has 999_from_the_future\)"):
        Store(store.path).existing()


def test_there_is_no_database_yet(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="alpasift import FILE"):
        Store(tmp_path / "no.duckdb").existing()
    assert list(tmp_path.iterdir()) == []


def test_views_are_made_again_when_the_folder_of_views_differs(store: Store) -> None:
    with store.transaction() as con:
        con.execute("create or replace view balance as select 1 as wrong")
        con.execute("insert into views_state values ('an older hash', now()::timestamp + interval 1 hour)")
    Store(store.path).existing()
    assert "budget_usd" in store.query("ledger")[0]


def test_a_failed_creation_leaves_no_file(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        full = tmp_path / "proc"
        full.symlink_to("/proc")
        with pytest.raises(StoreError):
            Store(full / "x.duckdb").create()
    else:
        tmp_path.chmod(0o500)
        with pytest.raises(StoreError, match="cannot be written"):
            Store(tmp_path / "x.duckdb").create()
        tmp_path.chmod(0o700)


# -- ids, queries -----------------------------------------------------------------------------------------------


def test_an_id_depends_on_where_one_part_ends_and_the_next_begins() -> None:
    assert hash_id("ab", "c") != hash_id("a", "bc")
    digest = hashlib.sha256(b"\0\0\0\0\0\0\0\x02ab" + b"\0\0\0\0\0\0\0\x01c").hexdigest()
    assert hash_id("ab", "c").replace("-", "") == digest[:32]


def test_every_query_and_view_says_what_it_is() -> None:
    for folder in ("queries", "views", "select"):
        for text in sql_texts(folder):
            assert text.doc.endswith((".", ")")) or "." in text.doc, text.name
            assert len(text.doc) > 30, text.name
    for folder, query in [(where, found) for where in ("queries", "select") for found in sql_texts(where)]:
        assert named_query(query.name, folder) == query
        named = query.doc.partition("Parameters:")[2]
        assert named, f"{query.name} does not list its parameters"
        assert all(p in named for p in query.parameters), query.name
        if not query.parameters:
            assert "none" in named, query.name


def test_every_named_query_runs_on_an_empty_database(store: Store) -> None:
    for query in sql_texts("queries"):
        parameters: dict[str, object] = dict.fromkeys(query.parameters)
        if "positions" in parameters:
            parameters["positions"] = [0]
        store.locked_query(query.text, parameters)


def test_an_unknown_query_says_what_is_like_it_and_where_the_names_are() -> None:
    with pytest.raises(QueryError, match=r"no query named 'score'; did you mean scores.*`alpasift query` lists them"):
        named_query("score")
