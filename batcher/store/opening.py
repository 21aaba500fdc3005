"""Opening a DuckDB file: settings, waiting for whoever holds it, and what DuckDB's errors mean."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import duckdb

from alpasift.batcher.store.errors import StoreBusy, StoreError
from alpasift.batcher.store.holders import SAY_AFTER, holder, say_waiting
from alpasift.batcher.store.rows import Connection
from alpasift.graders import AlpaSiftError

_T = TypeVar("_T")

CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "python_enable_replacements": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}

NEW_FILE: dict[str, str] = {"default_block_size": "65536"}
"""Blocks of a new file: a small commit takes whole blocks, and with DuckDB's own size, 256 KB, files grew large."""

MEMORY = "1400MB"
"""What DuckDB may take: a million graded rows stay below 2 GB in all. The rest goes to a folder beside the database."""

_HELD = (
    "Could not set lock",  # another process has it
    "different configuration",  # another thread of this process has it, for reading or for writing
    "Unique file handle conflict",  # likewise
)


def open_database(path: Path, read_only: bool, wait: float, config: Mapping[str, Any]) -> Connection:
    """The database at `path` in a DuckDB of its own, with settings of its own. Close it."""
    settings = {"memory_limit": MEMORY, **config}
    return waiting(path, read_only, wait, lambda: duckdb.connect(str(path.absolute()), read_only, settings))


def waiting(path: Path, read_only: bool, wait: float, attempt: Callable[[], _T]) -> _T:
    """What `attempt` opens, tried again while somebody else has the file. Raises StoreBusy, StoreError."""
    if read_only and not path.exists():
        raise StoreError(f"no database {path} yet; create it with `alpasift import FILE`")
    check_path(path)
    began = time.monotonic()
    while True:
        try:
            return attempt()
        except duckdb.Error as error:
            if not any(sign in str(error) for sign in _HELD):
                raise explain(error, path) from error
            waited = time.monotonic() - began
            if waited >= min(SAY_AFTER, wait):
                say_waiting(path, str(error))
            if waited >= wait:
                raise StoreBusy(_who_holds(path, str(error), wait)) from error
        time.sleep(random.uniform(0.005, 0.03))


def in_use(path: str) -> duckdb.Error:
    """The error of DuckDB for a file that this process has open in another way."""
    return duckdb.ConnectionException(f"{path} is open in this process with a different configuration")


def check_path(path: Path) -> None:
    """Raise StoreError for a path that DuckDB cannot be given: it takes UTF-8, and a name on a disk is any bytes."""
    try:
        str(path.absolute()).encode("utf-8")
    except UnicodeEncodeError as error:
        shown = str(path.absolute()).encode("utf-8", "replace").decode()
        raise StoreError(
            f"the path {shown} is not UTF-8, and DuckDB cannot open it; rename the folder, or give another --db"
        ) from error


def _who_holds(path: Path, message: str, wait: float) -> str:
    return (
        f"{path} is locked by {holder(message)} for more than {wait:.0f} s; close that "
        "program (a `duckdb` shell?) and run again"
    )


_umask_lock = threading.Lock()
_umasks: list[int] = []  # what the umask was, once for each thread inside `private_files`


@contextlib.contextmanager
def private_files() -> Iterator[None]:
    """New files of this process are readable by their owner only for as long as a block of any thread runs."""
    with _umask_lock:
        _umasks.append(os.umask(0o077))
    try:
        yield
    finally:
        with _umask_lock:
            first = _umasks[0]
            _umasks.pop()
            if not _umasks:
                os.umask(first)


def users_umask() -> int:
    """The umask that the user has set, also while a block of `private_files` runs."""
    with _umask_lock:
        if _umasks:
            return _umasks[0]
        found = os.umask(0o077)
        os.umask(found)
        return found


def explain(error: duckdb.Error, path: Path) -> AlpaSiftError:
    text = str(error)
    if (
        "not a valid DuckDB database" in text
        or "not a DuckDB" in text
        or isinstance(error, duckdb.SerializationException)
    ):
        return StoreError(f"{path} is not a DuckDB database; give another --db")
    if "No space left" in text or "out of disk" in text.lower():
        return StoreError(
            f"the disk that holds {path} is full; this step was not written. Free some space and run again"
        )
    if "Permission denied" in text or "Read-only file system" in text or "read-only" in text.lower():
        return StoreError(f"{path} cannot be written here (permission denied); give a --db in a writable folder")
    if "Could not read enough bytes" in text or "checksum" in text.lower():
        return StoreError(f"{path} is damaged: it was cut short or changed; restore a copy. ({first_line(text)})")
    if "version" in text and "storage" in text.lower():
        return StoreError(f"{path} was written by a newer DuckDB; upgrade alpasift and duckdb. ({first_line(text)})")
    return StoreError(f"{path}: {first_line(text)}")


def first_line(text: str) -> str:
    return text.strip().splitlines()[0][:300] if text.strip() else "no message"
