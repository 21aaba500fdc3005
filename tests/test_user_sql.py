"""SQL of the user's: whatever a statement does, time, memory and size are bounded, and the next query works."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pytest

import alpasift
from alpasift.batcher.store import QueryError, Rows, Store
from alpasift.batcher.store.query_process import MAX_BYTES, MAX_CELL
from conftest import Ran, cli_environment

Call = Callable[..., Ran]
GIGABYTE = 1_000_000_000


def test_rows_come_as_the_values_that_they_are(store: Store) -> None:
    text = """
        select 1 as a, 1.50::decimal(4, 2) as b, null as c, 'x' as d, true as e, [1, 2] as f, {'k': 'v'} as g,
            date '2026-01-02' as h, timestamp '2026-01-02 03:04:05' as i,
            uuid '00000000-0000-0000-0000-000000000001' as j,
            timestamptz '2026-01-02 03:04:05+00' as k, '\\xAA'::blob as l, $given as m
    """
    found = store.user_query(text, {"given": Decimal("2.5")})
    one = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert found.columns == tuple("abcdefghijklm")
    first = (1, Decimal("1.50"), None, "x", True, [1, 2], {"k": "v"}, date(2026, 1, 2), one.replace(tzinfo=None))
    assert found.rows == [(*first, UUID(int=1), one, b"\xaa", Decimal("2.5"))]
    assert (found.cut, found.why_cut) == (False, "")
    assert store.user_arrow("select 1 as a, 'x' as b").dicts() == [{"a": 1, "b": "x"}]
    assert store.user_arrow("select 1 as a where false").dicts() == []
    assert store.user_query("select 1 as a where false") == Rows(("a",), [])


def test_so_many_rows_and_no_more(store: Store) -> None:
    assert store.user_query("select * from range(10)", max_rows=3) == Rows(("range",), [(0,), (1,), (2,)], cut=True)
    assert store.user_query("select * from range(3)", max_rows=3).cut is False
    assert store.user_query("select * from range(5000)", max_rows=5000).rows == [(i,) for i in range(5000)]
    arrow = store.user_arrow("select * from range(9000)", max_rows=5000)
    assert (len(arrow), arrow.cut) == (5000, True)
    assert store.user_arrow("select * from range(5000)", max_rows=5000).cut is False


@pytest.mark.parametrize("ask", [Store.user_query, Store.user_arrow])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("selec 1", "syntax error"),
        ("select 1; select 2", "one statement"),
        ("", "one statement"),
        ("create table t (a integer)", "read-only"),
        ("select * from read_csv('/etc/passwd')", "disabled|Permission"),
        ("select no_such_column from meta", "no_such_column"),
        ("select 'a'::integer", "Could not convert"),
        ("set threads = 1", "locked"),
    ],
)
def test_what_is_wrong_or_not_allowed_is_said(store: Store, ask: Callable[..., object], text: str, says: str) -> None:
    with pytest.raises(QueryError, match=says):
        ask(store, text)


@pytest.mark.parametrize(
    "text",
    [
        "select range(300000000)",
        "select count(*) from range(1000000) a, range(1000000) b where a.range + b.range = -1",
        "select list_sum(list_transform(range(100000000), lambda x: x * 2))",
    ],
)
def test_a_query_ends_at_its_deadline_whatever_it_is_at(store: Store, text: str) -> None:
    with pytest.raises(QueryError, match=r"stopped after 0.5 s|more than 2 GB"):
        store.user_query(text, seconds=0.5)
    assert store.user_query("select 1").rows == [(1,)]


@pytest.mark.parametrize("ask", [Store.user_query, Store.user_arrow])
def test_a_query_that_wants_more_memory_than_it_may_have_is_refused_it(
    store: Store, ask: Callable[..., object]
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(QueryError, match=r"more than 0.5 GB of memory"):
        ask(store, "select repeat('x', 1000000) from range(20000)", memory_bytes=GIGABYTE // 2)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_an_answer_is_cut_at_its_bytes_and_says_so(store: Store) -> None:
    found = store.user_query("select repeat('x', 50000) as text from range(10000)")
    assert 1000 < len(found.rows) <= MAX_BYTES // 50_000
    assert found.cut and found.why_cut == "the result is truncated at 64 MB; ask for fewer columns or rows"


def test_a_long_cell_is_cut_and_says_so(store: Store) -> None:
    text = f"select repeat('\u00e9', {MAX_CELL + 5}) as text, 1 as other"
    found, arrow = store.user_query(text), store.user_arrow(text)
    assert found.rows == [("\u00e9" * MAX_CELL, 1)]
    assert arrow.dicts() == [{"text": "\u00e9" * MAX_CELL, "other": 1}]
    assert (
        found.why_cut
        == arrow.why_cut
        == "texts are truncated at 1,000,000 characters; left(column, 1000) selects a part"
    )


def test_a_query_of_a_database_that_another_thread_reads_is_answered(store: Store) -> None:
    answers: list[object] = []
    with store.reader():
        thread = threading.Thread(target=lambda: answers.append(store.user_query("select 1").rows))
        thread.start()
        thread.join()
    assert answers == [[(1,)]]


def test_a_file_of_the_users_folder_is_taken_for_no_module(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "duckdb", "alpasift", "pickle"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken for a module')\n")
    monkeypatch.chdir(tmp_path)
    assert store.user_query("select 1").rows == [(1,)]


ONE_THREAD = """
import sys
from pathlib import Path
from alpasift.batcher.store import QueryError, Store

store, threads = Store(sys.argv[1]), Path("/proc/self/task")
print("printed once", end=", ")
assert len(list(threads.iterdir())) == 1
print(store.user_query("select 'a' as x, $y as y", {"y": None}).rows)
for text, seconds, memory in (
    ("select count(*) from range(1000000) a, range(1000000) b where a.range + b.range = -1", 0.3, 2_000_000_000),
    ("select repeat('x', 1000000) from range(20000)", 60, 500_000_000),
    ("select no_such_column from meta", 60, 2_000_000_000),
):
    try:
        store.user_query(text, seconds=seconds, memory_bytes=memory)
    except QueryError as error:
        print(str(error).splitlines()[0][:60])
print(store.user_arrow("select 1 as a").dicts())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are counted on Linux only")
def test_a_fork_of_a_process_with_one_thread_answers_under_the_same_limits(store: Store) -> None:
    command = [sys.executable, "-c", ONE_THREAD, str(store.path)]
    done = subprocess.run(command, capture_output=True, text=True, env=cli_environment(), timeout=120)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == "printed once, [('a', None)]"
    assert lines[1].startswith("the query was stopped after 0.3 s")
    assert lines[2].startswith("the query needs more than 0.5 GB of memory")
    assert "no_such_column" in lines[3]
    assert lines[4] == "[{'a': 1}]"


def test_the_command_and_the_api_are_bounded_alike(store: Store, alpasift: Call) -> None:
    forever = "select count(*) from range(1000000) a, range(1000000) b where a.range + b.range = -1"
    ran = alpasift("--db", store.path, "sql", forever, "--seconds", "0.3")
    assert (ran.code, ran.out) == (1, "")
    assert "the query was stopped after 0.3 s" in ran.err
    ran = alpasift("--db", store.path, "sql", "select repeat('x', 50000) as t from range(10000)", "--json")
    assert "truncated at 64 MB" in ran.err
    assert len(ran.out) < 1.1 * MAX_BYTES
    assert len(json.loads(ran.out)) > 1000


def test_the_api_is_bounded_too(store: Store) -> None:
    db = alpasift.open(store.path)
    with pytest.raises(QueryError, match="stopped after"):
        db.sql("select count(*) from range(1000000) a, range(1000000) b where a.range + b.range = -1", seconds=0.3)
    assert db.sql("select 1 as a").dicts() == [{"a": 1}]
