"""Waiting for a program that has the database open is said: which process, which command, since when."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from alpasift.batcher.engine.progress import rate_text
from alpasift.batcher.store import Store


def test_who_holds_the_database_is_said_while_one_waits(
    store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = f"import duckdb; con = duckdb.connect({str(store.path)!r}); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        threading.Timer(2.5, holder.kill).start()
        assert Store(store.path).query("ledger")  # it waits, and then works
    said = capfd.readouterr().err
    assert f"waiting for process {holder.pid} ({sys.executable} -c, running since 20" in said
    assert said.count("waiting for") == 1


def test_a_slow_rate_has_a_decimal_and_is_never_0() -> None:
    assert [rate_text(r) for r in (0.02, 0.44, 7.06, 31.7, 1234.0)] == [
        "1.2 rows/min",
        "0.4 rows/s",
        "7.1 rows/s",
        "32 rows/s",
        "1,234 rows/s",
    ]
