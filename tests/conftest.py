"""What the suite shares: a fresh database, small datasets, and the command line as users call it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from alpasift.batcher.cli import run
from alpasift.batcher.store import Store, new_id, utc_now

# torch's threads wait by spinning. Beside other work two threads a process took six times the CPU time of one, 37 s and
# 6 s for two tests of training. To be set before torch is imported; children inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("suite", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("suite")
with contextlib.suppress(ValueError):  # a suite that runs in the background inherits that Ctrl-C is ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src"
EXAMPLES = ROOT / "examples" / "instructions.jsonl"


@dataclass(frozen=True)
class Ran:
    """A finished command: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def new_store(path: Path) -> Store:
    """A fresh database at a path: what `Store(path).create()` gives, in a third of its time.

    It is a copy of one that was made before, with a ledger identity and a date of its own.
    """
    assert not path.exists(), path
    path.touch(mode=0o600)
    path.write_bytes(_blank_database())
    store = Store(path)
    with store.transaction() as con:
        con.execute("update meta set value = $id where key = 'ledger'", {"id": new_id()})
        con.execute("update meta set value = $now where key = 'created_at'", {"now": str(utc_now())})
    return store.create()


@cache
def _blank_database() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return Store(Path(folder) / "blank.duckdb").create().path.read_bytes()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "test.duckdb")


@pytest.fixture
def alpasift(tmp_path: Path) -> Callable[..., Ran]:
    """Run `alpasift ARGUMENTS` in an empty folder and in this process, which saves half a second of start-up."""

    def call(
        *arguments: object, env: dict[str, str] | None = None, cwd: Path | None = None, stdin: str | None = ""
    ) -> Ran:
        return call_cli(arguments, cwd=cwd or tmp_path, env=env, stdin=stdin)

    return call


@pytest.fixture
def alpasift_process(tmp_path: Path) -> Callable[..., Ran]:
    """The same in a process of its own: where start-up, the environment, signals, locks or --offline are the point."""

    def call(
        *arguments: object, env: dict[str, str] | None = None, cwd: Path | None = None, stdin: str | None = ""
    ) -> Ran:
        return run_cli(arguments, cwd=cwd or tmp_path, env=env, stdin=stdin)

    return call


def cli_environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ALPASIFT_", "OPENAI_"))}
    return {**clean, "PYTHONPATH": str(SRC), **(extra or {})}


def call_cli(
    arguments: Sequence[object],
    *,
    cwd: Path,
    env: dict[str, str] | None = None,
    stdin: str | None = "",
    terminal: int | None = None,
) -> Ran:
    """Run one command line in this process, and leave the process as it was: folder, environment, signals, umask.

    With `terminal` the output goes to a terminal of so many columns, else to a pipe.
    """
    environment = cli_environment(env)
    assert "--offline" not in map(str, arguments) or arguments[0] == "doctor", "there is no way back from --offline"
    assert "ALPASIFT_OFFLINE" not in environment, "there is no way back from offline: take alpasift_process"
    if terminal is not None:
        environment["COLUMNS"] = str(terminal)
    kind = io.TextIOWrapper if terminal is None else _Screen
    out, err = (kind(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with _process_restored(), contextlib.chdir(cwd):
        os.environ.clear()
        os.environ.update(environment)
        sys.stdin, sys.stdout, sys.stderr = io.StringIO(stdin), out, err
        code = run(list(map(str, arguments)))
    return Ran(code, _written(out), _written(err))


class _Screen(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def _written(stream: io.TextIOWrapper) -> str:
    """What was written to a stream, with line ends as subprocess reads them from a pipe."""
    stream.seek(0)
    return io.TextIOWrapper(stream.detach(), "utf-8").read()


@contextlib.contextmanager
def _process_restored() -> Iterator[None]:
    streams, environment = (sys.stdin, sys.stdout, sys.stderr), dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    umask = os.umask(0o022)
    os.umask(umask)
    try:
        yield
    finally:
        os.umask(umask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.environ.clear()
        os.environ.update(environment)
        sys.stdin, sys.stdout, sys.stderr = streams


def run_cli(
    arguments: Sequence[object],
    *,
    cwd: Path,
    env: dict[str, str] | None = None,
    stdin: str | None = "",
    timeout: float = 120,
) -> Ran:
    """Run one command line in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "alpasift.batcher.cli", *map(str, arguments)],
        cwd=cwd,
        env=cli_environment(env),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def some_rows(count: int) -> list[dict[str, Any]]:
    """Distinct plain rows: row i asks for i plus i."""
    return [
        {"instruction": f"Add the number {i} to itself.", "input": "", "output": f"{i} and {i} make {2 * i}."}
        for i in range(count)
    ]
