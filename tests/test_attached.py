"""A DuckDB that runs between calls: nobody outside can tell it from one that is started for each."""

from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import duckdb
import pytest

from alpasift.batcher.store import Store, StoreBusy, StoreError
from alpasift.batcher.store.attached import close_idle
from conftest import new_store

WRITE = "import duckdb, sys; con = duckdb.connect(sys.argv[1]); con.execute(sys.argv[2]); con.close()"


def other_process(store: Store, statement: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", WRITE, store.path, statement], capture_output=True, text=True)


def set_meta(store: Store, value: str) -> None:
    with store.transaction() as con:
        con.execute("insert or replace into meta values ('note', $value)", {"value": value})


def meta(store: Store) -> str | None:
    with store.reader() as con:
        found = con.execute("select value from meta where key = 'note'").fetchone()
    return found[0] if found else None


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_between_calls_the_file_is_closed_whole_and_free(store: Store) -> None:
    for n in range(3):
        set_meta(store, f"mine {n}")
        assert not store.path.with_name(store.path.name + ".wal").exists(), "a commit stays outside the file"
        there = other_process(store, f"update meta set value = 'theirs {n}' where key = 'note'")
        assert there.returncode == 0, there.stderr
        assert meta(store) == f"theirs {n}"
        there = other_process(store, f"update meta set value = 'again {n}' where key = 'note'")
        assert there.returncode == 0, there.stderr
        assert meta(store) == f"again {n}", "an old page was read"


def test_inside_a_block_another_process_is_kept_out(store: Store) -> None:
    with store.transaction():
        assert "Could not set lock" in other_process(store, "select 1").stderr
    with store.reader():
        assert "Could not set lock" in other_process(store, "select 1").stderr
    assert other_process(store, "select 1").returncode == 0


def test_readers_of_one_process_share_and_a_writer_waits_for_them(store: Store) -> None:
    set_meta(store, "old")
    inside, go, seen = threading.Barrier(3), threading.Event(), []

    def read() -> None:
        with store.reader() as con:
            inside.wait(10)
            go.wait(10)
            seen.append(con.execute("select value from meta where key = 'note'").fetchone())

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    inside.wait(10)  # both are inside at once
    with pytest.raises(StoreBusy), store.transaction(wait=0.1):
        pass
    writer = threading.Thread(target=set_meta, args=(store, "new"))
    writer.start()
    time.sleep(0.1)
    go.set()
    for thread in (*readers, writer):
        thread.join(10)
    assert seen == [("old",), ("old",)]
    assert meta(store) == "new"


def test_a_reader_inside_a_reader_sees_the_same_database(store: Store) -> None:
    set_meta(store, "here")
    with store.reader() as con:
        assert meta(store) == "here"
        assert con.execute("select count(*) from run_list").fetchone() == (0,)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, duckdb.FatalException])
def test_an_error_rolls_back_and_lets_the_file_go(store: Store, error: type[BaseException]) -> None:
    set_meta(store, "before")
    with pytest.raises((error, StoreError)), store.transaction() as con:
        con.execute("update meta set value = 'lost' where key = 'note'")
        raise error("in the middle")
    assert other_process(store, "select 1").returncode == 0
    assert meta(store) == "before"
    set_meta(store, "after")
    assert meta(store) == "after"


def test_an_error_of_one_thread_leaves_the_other_at_work(store: Store) -> None:
    inside, failed = threading.Event(), threading.Event()
    seen = []

    def read() -> None:
        with store.reader() as con:
            inside.set()
            failed.wait(10)
            seen.append(con.execute("select count(*) from run_list").fetchone())

    reader = threading.Thread(target=read)
    reader.start()
    inside.wait(10)
    with pytest.raises(ValueError), store.reader():
        raise ValueError("here")
    failed.set()
    reader.join(10)
    assert seen == [(0,)]
    set_meta(store, "and on")
    assert other_process(store, "select 1").returncode == 0


def test_a_block_that_is_dropped_half_way_holds_nothing(store: Store) -> None:
    block = store.reader()
    block.__enter__()
    del block
    gc.collect()
    store._mine.reader = None
    set_meta(store, "free")
    assert meta(store) == "free"


def test_a_fork_opens_the_file_for_itself(store: Store) -> None:
    set_meta(store, "parent")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            seen = meta(store)
            set_meta(store, "child")
            code = 0 if seen == "parent" else 2
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert meta(store) == "child"


def test_what_is_idle_is_stopped_with_its_threads(tmp_path: Path) -> None:
    close_idle()
    before = threads()
    stores = [new_store(tmp_path / f"{n}.duckdb") for n in range(6)]
    few = threads()
    for store in stores * 3:
        assert meta(store) is None
    assert threads() <= few, "every database that was ever opened keeps threads"
    close_idle()
    assert threads() <= before


def test_a_name_with_quotes_is_a_name(tmp_path: Path) -> None:
    store = new_store(tmp_path / 'it\'s "mine"; drop.duckdb')
    set_meta(store, "quoted")
    assert meta(store) == "quoted"


def test_what_does_not_fit_in_memory_lies_beside_the_database(store: Store) -> None:
    with store.reader() as con:
        assert con.execute("select current_setting('temp_directory')").fetchone() == (f"{store.path}.tmp",)


def test_a_limit_of_memory_ends_with_its_transaction(store: Store) -> None:
    limit = "select current_setting('memory_limit')"
    with store.reader() as con:
        usual = con.execute(limit).fetchone()
    with store.transaction(memory="750MB") as con:
        assert con.execute(limit).fetchone() != usual
    with store.transaction() as con:
        assert con.execute(limit).fetchone() == usual


def test_a_database_that_was_moved_away_is_named_and_no_blank_one_takes_its_place(store: Store) -> None:
    set_meta(store, "kept")
    away = store.path.rename(store.path.with_name("away.duckdb"))
    with pytest.raises(StoreError, match="is gone: moved or deleted"):
        set_meta(store, "lost")
    assert not store.path.exists()
    away.rename(store.path)
    set_meta(store, "again")
    assert meta(store) == "again"


def test_a_commit_whose_file_may_not_grow_is_kept_and_the_next_call_works(store: Store) -> None:
    """The commit goes to the log beside the file; moving it into the file, between calls, is what fails."""
    set_meta(store, "before")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            most = store.path.stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            set_meta(store, "".join(f"{n:x}" for n in range(100_000)))
            set_meta(store, "small")
            code = 0 if meta(store) == "small" else 2
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert meta(store) == "small"
    set_meta(store, "after")
    assert meta(store) == "after"


def test_a_database_that_was_cut_short_is_called_damaged(store: Store) -> None:
    for n in range(20):
        with store.transaction() as con:
            con.execute(
                "insert into meta select 'k' || $n || '-' || i, repeat(md5(i::text), 20) from range(400) t(i)", {"n": n}
            )
    size = store.path.stat().st_size
    os.truncate(store.path, size - 300_000)
    with pytest.raises(StoreError, match="is damaged"), store.reader() as con:
        con.execute("select sum(length(value)), max(key) from meta").fetchone()


def test_what_has_taken_much_memory_is_stopped(store: Store) -> None:
    close_idle()
    before = threads()
    with store.transaction() as con:
        con.execute("create table large as select range as n, md5(range::varchar) as text from range(500000)")
    assert threads() <= before, "it still runs, and keeps what it took"
    assert meta(store) is None
    assert threads() > before, "it runs on where little was taken"
