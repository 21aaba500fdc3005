"""A query of the user's under limits that hold: time, memory, rows, bytes in all and in one cell.

Starts a process that runs `query_child`, reads its frames and kills it at the deadline. Knows nothing of SQL.

Where this process has one thread, as the command line has, the other is a fork of it: what is imported need not be
imported again, which takes longer than most queries. Beside other threads a fork may hang on what they hold, so there,
and where threads cannot be counted, a new interpreter is started.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import alpasift
from alpasift.batcher.store.attached import close_idle
from alpasift.batcher.store.errors import QueryError, StoreBusy, StoreError
from alpasift.batcher.store.query_result import QueryLimits, QueryResult
from alpasift.batcher.store.rows import Rows

MAX_BYTES = 64_000_000
"""What the rows of an answer that is printed may hold together."""
MAX_ARROW_BYTES = 512_000_000
"""The same for an answer that stays in memory."""
MAX_CELL = 1_000_000
"""Characters of a text in one cell."""
START_SECONDS = 30.0
"""How long the process may take to begin, beside waiting for the database."""
_HEAD = 9
_PLAIN = {
    ("datetime", "date"),
    ("datetime", "datetime"),
    ("datetime", "time"),
    ("datetime", "timedelta"),
    ("datetime", "timezone"),
    ("decimal", "Decimal"),
    ("uuid", "UUID"),
}
"""The types beside those of JSON that a row may hold: nothing else is unpickled."""


def rows_of(path: Path, text: str, parameters: Mapping[str, Any], limits: QueryLimits, wait: float) -> Rows:
    """The rows of one statement as plain Python values. Raises QueryError, StoreBusy, StoreError."""
    request = _request(path, text, parameters, limits, wait, arrow=False)
    columns: list[str] = []
    found: list[tuple[Any, ...]] = []
    cut, why = False, ""
    for kind, content in _frames(request, limits.seconds):
        if kind == b"C":
            columns = json.loads(bytes(content))
        elif kind == b"R":
            found += _Plain(io.BytesIO(content)).load()
        elif kind == b"D":
            cut, why = _cut(json.loads(bytes(content)), MAX_BYTES)
    return Rows(tuple(columns), found, cut, why)


def arrow_of(path: Path, text: str, parameters: Mapping[str, Any], limits: QueryLimits, wait: float) -> QueryResult:
    """The same as an Arrow table, each column with the type that DuckDB has for it."""
    import pyarrow as pa

    request = _request(path, text, parameters, limits, wait, arrow=True)
    tables = []
    cut, why = False, ""
    for kind, content in _frames(request, limits.seconds):
        if kind == b"A":
            tables.append(pa.ipc.open_stream(pa.py_buffer(content)).read_all())
        elif kind == b"D":
            cut, why = _cut(json.loads(bytes(content)), MAX_ARROW_BYTES)
    return QueryResult(pa.concat_tables(tables), cut, why)


def _request(
    path: Path,
    text: str,
    parameters: Mapping[str, Any],
    limits: QueryLimits,
    wait: float,
    *,
    arrow: bool,
) -> dict[str, Any]:
    if not text.isprintable():
        text = text.encode("utf-8", "replace").decode()  # half of a surrogate pair is no SQL
    return {
        "path": str(path.absolute()),
        "text": text,
        "parameters": dict(parameters),
        "wait": wait,
        "memory_bytes": limits.memory_bytes,
        "limits": (limits.rows, MAX_ARROW_BYTES if arrow else MAX_BYTES, MAX_CELL),
        "arrow": arrow,
    }


def _cut(done: Mapping[str, Any], most: int) -> tuple[bool, str]:
    """Whether something was left out, and what beside the row limit did it."""
    why = ""
    if done["cut"] == "bytes":
        why = f"the result is truncated at {most // 1_000_000} MB; ask for fewer columns or rows"
    elif done["cells"]:
        why = f"texts are truncated at {MAX_CELL:,} characters; left(column, 1000) selects a part"
    return bool(done["cut"] or why), why


def _frames(request: Mapping[str, Any], seconds: float) -> Iterator[tuple[bytes, memoryview]]:
    """The frames of the answer, all or none. Raises what the child says, or QueryError where it says nothing."""
    close_idle()  # DuckDB's threads
    child = _forked(request) if _one_thread() else _started(request)
    try:
        received = _received(child.answers, request["wait"], seconds)
    finally:
        child.end()
    at, frames = 0, []
    view = memoryview(received)
    while at + _HEAD <= len(view):
        kind, size = bytes(view[at : at + 1]), int.from_bytes(view[at + 1 : at + _HEAD], "big")
        frames.append((kind, view[at + _HEAD : at + _HEAD + size]))
        at += _HEAD + size
    last, content = frames[-1] if frames else (b"", view)
    if last == b"E":
        said, text = json.loads(bytes(content))
        raise _error(said, text, request["memory_bytes"])
    if last != b"D":
        raise _error("memory", "", request["memory_bytes"])  # the kernel or a library ended it
    yield from frames


def _error(kind: str, text: str, memory_bytes: int) -> Exception:
    if kind == "memory":
        return QueryError(
            f"the query needs more than {memory_bytes / 1e9:g} GB of memory; ask for fewer rows, shorter texts, or "
            "add a limit"
        )
    named = {"StoreBusy": StoreBusy, "StoreError": StoreError}
    return named.get(kind, QueryError)(text)


@dataclass(frozen=True, slots=True)
class _Child:
    """A process that answers: the end of a pipe that its frames come out of, and what ends it."""

    answers: int
    end: Callable[[], None]


def _one_thread() -> bool:
    """Whether this process is known to have no other thread, of Python or of a library: see proc(5)."""
    try:
        return len(list(Path("/proc/self/task").iterdir())) == 1
    except OSError:
        return False


def _forked(request: Mapping[str, Any]) -> _Child:
    """A fork of this process."""
    answers, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_the_child(request, end)
    os.close(end)

    def end_it() -> None:
        os.close(answers)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    return _Child(answers, end_it)


def _be_the_child(request: Mapping[str, Any], end: int) -> NoReturn:
    """Answer and exit: nothing of what the process was at has any effect from here on, and nothing is printed."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        from alpasift.batcher.store.query_child import answer, print_nothing

        print_nothing()
        with os.fdopen(end, "wb") as out:
            answer(request, out)
    finally:
        os._exit(0)


def _started(request: Mapping[str, Any]) -> _Child:
    """A new interpreter, with this package on its path. `-P`: no file of the user's folder is taken for a module."""
    here = str(Path(alpasift.__file__).parent.parent)
    paths = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, here]), "MALLOC_ARENA_MAX": "2"}
    command = [sys.executable, "-P", "-m", "alpasift.batcher.store.query_child"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env)
    assert child.stdin is not None and child.stdout is not None
    with contextlib.suppress(BrokenPipeError), child.stdin:  # one that is gone already answers nothing
        child.stdin.write(pickle.dumps(request))

    def end_it() -> None:
        with child:
            child.kill()

    return _Child(child.stdout.fileno(), end_it)


def _received(answers: int, wait: float, seconds: float) -> bytearray:
    """All that the child writes. Raises QueryError at the deadline, which begins when the database is open."""
    received = bytearray()
    until, opened = time.monotonic() + wait + START_SECONDS, False
    with selectors.DefaultSelector() as ready:
        ready.register(answers, selectors.EVENT_READ)
        while True:
            if not ready.select(max(0.0, until - time.monotonic())):
                what = (
                    f"stopped after {seconds:g} s; make it narrower, or raise --seconds"
                    if opened
                    else "not started in time"
                )
                raise QueryError(f"the query was {what}")
            piece = os.read(answers, 1 << 20)
            if not piece:
                return received
            received += piece
            if not opened and received[:1] == b"O":
                opened, until = True, time.monotonic() + seconds


class _Plain(pickle.Unpickler):
    """Reads rows of plain values and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PLAIN:
            return super().find_class(module, name)
        raise QueryError(f"a row holds a value of the type {module}.{name}, which cannot be shown; cast it to varchar")
