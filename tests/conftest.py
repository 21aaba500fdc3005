"""What the suite shares: a fresh database, small datasets, and the command line as users call it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from batcher.store import Store

settings.register_profile("suite", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("suite")
with contextlib.suppress(ValueError):  # a suite that runs in the background inherits that Ctrl-C is ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
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


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "test.duckdb").create()


@pytest.fixture
def alpasift(tmp_path: Path) -> Callable[..., Ran]:
    """Run `alpasift ARGUMENTS` in a process of its own, in an empty folder."""

    def call(
        *arguments: object, env: dict[str, str] | None = None, cwd: Path | None = None, stdin: str | None = ""
    ) -> Ran:
        return run_cli(arguments, cwd=cwd or tmp_path, env=env, stdin=stdin)

    return call


def cli_environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ALPASIFT_", "OPENAI_"))}
    return {**clean, "PYTHONPATH": str(ROOT), **(extra or {})}


def run_cli(
    arguments: Sequence[object],
    *,
    cwd: Path,
    env: dict[str, str] | None = None,
    stdin: str | None = "",
    timeout: float = 120,
) -> Ran:
    done = subprocess.run(
        [sys.executable, "-m", "batcher.cli", *map(str, arguments)],
        cwd=cwd, env=cli_environment(env), input=stdin, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip
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
