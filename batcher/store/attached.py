"""A database file attached to a DuckDB that stays in memory between calls.

Starting DuckDB takes some 15 ms, attaching a file to one that runs 4 ms. So this process keeps one running for each of
the last few files, with nothing attached between calls: the file is closed, checkpointed and unlocked, as it is after
`duckdb.connect(path)` and `close()`. One that has taken more than a few megabytes is stopped instead.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakSet

import duckdb

from alpasift.batcher.store.opening import CONFIG, MEMORY, in_use, waiting
from alpasift.batcher.store.rows import Connection

_NAME = "alpasift"
_KEPT = 2
_KEPT_BYTES = 8_000_000
_lock = threading.Lock()
_running: dict[str, _Running] = {}


class _Use:
    """One block that works with an attached file. Held weakly: what an interrupt skips is no use for long."""


@dataclass(eq=False)
class _Running:
    """A DuckDB in memory, and who of this process works with the file that is attached to it."""

    root: Connection
    uses: WeakSet[_Use] = field(default_factory=WeakSet)
    attached: bool = False
    read_only: bool = False
    memory: str = MEMORY
    failed: bool = False
    """After an error nothing more is begun with it: DuckDB may have given up the whole instance."""


@contextlib.contextmanager
def attached(path: Path, read_only: bool, wait: float, memory: str = MEMORY) -> Iterator[Connection]:
    """A connection to the database at `path`, closed and unlocked at the end of the block.

    Threads of one process share it when all read or all write, as with `duckdb.connect`; else, and while another
    process has the file, the call waits. `memory` is what DuckDB may take; where threads share, the first one's counts.
    Raises StoreBusy after `wait` seconds, StoreError for what is no database.
    """
    use = _Use()
    key = str(path.absolute())
    try:
        running = waiting(path, read_only, wait, lambda: _join(key, read_only, use, memory))
        try:
            with contextlib.closing(running.root.cursor()) as con:
                con.execute(f"use {_NAME}")
                yield con
        except BaseException:
            running.failed = True
            raise
    finally:
        _leave(key, use)


def second_cursor(con: Connection) -> Connection:
    """One more connection to what `con` has open. Close it first."""
    cursor = con.cursor()
    cursor.execute(f"use {_NAME}")
    return cursor


def close_idle() -> None:
    """Stop every DuckDB that nobody works with, and its threads."""
    with _lock:
        for key in [key for key, running in _running.items() if not running.uses]:
            _running.pop(key).root.close()


def _join(key: str, read_only: bool, use: _Use, memory: str) -> _Running:
    """Take part in what is attached, or attach. Raises DuckDB's error where the file is in use in another way."""
    with _lock:
        running = _running.pop(key, None)
        if running is not None and not running.uses and running.failed:
            running.root.close()
            running = None
        if running is None:
            running = _Running(_start(key))
        _running[key] = running  # the last one that was used stands last
        if not running.uses:
            _detach(running)
            if running.memory != memory:
                running.root.execute(f"set memory_limit = '{memory}'")
                running.memory = memory
            mode = ", read_only" if read_only else ""
            running.root.execute(f"attach '{key.replace(chr(39), chr(39) * 2)}' as {_NAME} (type duckdb{mode})")
            running.attached, running.read_only = True, read_only
        elif running.failed or running.read_only != read_only:
            raise in_use(key)
        running.uses.add(use)
        return running


def _leave(key: str, use: _Use) -> None:
    with _lock:
        running = _running.get(key)
        if running is None or use not in running.uses:
            return
        running.uses.discard(use)
        if running.uses:
            return
        if running.failed or _holds_much(running):
            _running.pop(key).root.close()
            return
        try:
            _detach(running)
        except duckdb.Error:  # a full disk: what was committed is in the log beside the file, and the next one reads it
            _running.pop(key).root.close()
        for other in [k for k, r in _running.items() if not r.uses][:-_KEPT]:
            _running.pop(other).root.close()


def _holds_much(running: _Running) -> bool:
    """Whether DuckDB has so much memory that it is better stopped: detaching alone does not give all of it back."""
    try:
        found = running.root.execute("select sum(memory_usage_bytes) from duckdb_memory()").fetchone()
    except duckdb.Error:
        return True
    return found is None or (found[0] or 0) > _KEPT_BYTES


def _detach(running: _Running) -> None:
    if running.attached:
        running.attached = False
        running.root.execute(f"detach {_NAME}")


def _start(key: str) -> Connection:
    return duckdb.connect(":memory:", config={**CONFIG, "memory_limit": MEMORY, "temp_directory": key + ".tmp"})


def _forget() -> None:
    """In a fork: what the parent has open is not this process's, and its threads do not run here."""
    global _lock
    _lock = threading.Lock()
    _parents.extend(_running.values())
    _running.clear()


_parents: list[_Running] = []
"""Kept and never touched: closing them would wait for threads that do not exist."""
os.register_at_fork(after_in_child=_forget)
