"""The run lock: one process at a time works on a database; readers and `import` ignore it.

Two locks in one. A lock file beside the database, held by flock, with the process id inside: it also holds between
machines that share a folder. And, on Linux, a socket without a file whose name is the device and inode of the database:
it also holds where one file has two names (a hard link, a file mounted into a container's folder). The kernel gives
both up when the process ends. Neither is a lock of the database file itself: DuckDB's own would go with it when that
file is closed, and DuckDB holds the file only while it commits.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from alpasift.graders import AlpaSiftError


class AnotherRun(AlpaSiftError):
    """Another process is at work on this database; the message names it."""


@contextlib.contextmanager
def run_lock(database: Path) -> Iterator[None]:
    """Hold the run lock of a database for as long as the block runs. Raises AnotherRun."""
    path = _lock_file(database)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    with contextlib.ExitStack() as stack:
        stack.callback(_close, handle)
        if not _locked(handle):
            raise _another_run(database, os.pread(handle, 32, 0).decode("ascii", "replace").strip())
        held = _inode_lock(database)
        if held is None:
            raise _another_run(database, str(_holder_of_inode(database) or ""))
        stack.callback(held.close)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield


def _lock_file(database: Path) -> Path:
    return database.with_name(database.name + ".lock")


def _close(handle: int) -> None:
    with contextlib.suppress(OSError):
        os.close(handle)


def _another_run(database: Path, holder: str) -> AnotherRun:
    return AnotherRun(
        f"process {holder or 'unknown'} is already working on {database}; wait for it (alpasift status), or stop it "
        f"with `kill {holder or 'PID'}`"
    )


def _locked(handle: int, tries: int = 5) -> bool:
    """Take the lock; a few tries, since somebody who only looks (`alpasift status`) holds it for a moment."""
    for _ in range(tries):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.03)
        else:
            return True
    return False


def _inode_lock(database: Path) -> socket.socket | None:
    """A socket that only one process can hold for a file, whatever it is called; None where another has it."""
    held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    name = _inode_name(database)
    if name is None:
        return held
    try:
        held.bind(name)
        held.listen(1)
    except OSError:
        held.close()
        return None
    return held


def _inode_name(database: Path) -> str | None:
    """The name of that socket; None where there is no such lock: no file yet, or a system without such sockets."""
    if sys.platform != "linux":
        return None
    try:
        found = database.stat()
    except OSError:
        return None
    return f"\0alpasift-run-{found.st_dev:x}-{found.st_ino:x}"


def _holder_of_inode(database: Path) -> int | None:
    """The process that holds the socket, as the kernel names it."""
    name = _inode_name(database)
    if name is None:
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asks:
        asks.setblocking(False)
        try:
            asks.connect(name)
            credentials = asks.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        except OSError:
            return None
        return int(struct.unpack("3i", credentials)[0]) or None


def holder_of_run_lock(database: Path) -> int | None:
    """The id of the process that is at work on this database, None when there is none."""
    try:
        handle = os.open(_lock_file(database), os.O_RDONLY)
    except OSError:
        return _holder_of_inode(database)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(handle, 32).strip()
        return int(holder) if holder.isdigit() else None
    finally:
        os.close(handle)
    return _holder_of_inode(database)
