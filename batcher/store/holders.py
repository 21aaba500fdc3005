"""Who holds a database open: the process, its command and since when it runs, said on stderr while one waits."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from datetime import datetime
from pathlib import Path

SAY_AFTER = 1.0
"""Seconds of waiting after which it is said."""
SAY_AGAIN = 30.0
"""Seconds until the same is said again."""

_said: dict[tuple[str, str], float] = {}


def holder(message: str) -> str:
    """The process that DuckDB names as the holder of a lock, with its command and start where they can be seen."""
    pid = re.search(r"PID (\d+)", message)
    if pid is None:
        return "another process"
    process = Path("/proc") / pid[1]
    try:
        words = process.joinpath("cmdline").read_bytes().decode("utf-8", "replace").split("\0")
        since = _started(process)
    except (OSError, ValueError, IndexError):
        return f"process {pid[1]}"
    command = " ".join(word for word in words[:2] if word)[:120]  # the rest may hold what is nobody's business
    command = "".join(c if c.isprintable() else "?" for c in command)
    return f"process {pid[1]} ({command or 'unknown command'}, running since {since:%Y-%m-%d %H:%M:%S})"


def _started(process: Path) -> datetime:
    """When a process began: field 22 of /proc/PID/stat, in clock ticks since the machine started (proc(5))."""
    ticks = int(process.joinpath("stat").read_text().rpartition(")")[2].split()[19])
    booted = re.search(r"^btime (\d+)$", Path("/proc/stat").read_text(), re.M)
    if booted is None:
        raise ValueError("/proc/stat names no time of the start")
    return datetime.fromtimestamp(int(booted[1]) + ticks / os.sysconf("SC_CLK_TCK"))


def say_waiting(path: Path, message: str) -> None:
    """Say on stderr who is being waited for, once in a while."""
    text, now = f"waiting for {holder(message)}, which has {path} open", time.monotonic()
    pid = re.search(r"PID (\d+)", message)
    about = (str(path), pid[1] if pid else "")  # not the text: the start of a process is known to a second or so
    if now - _said.get(about, -SAY_AGAIN) >= SAY_AGAIN:
        _said[about] = now
        with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
