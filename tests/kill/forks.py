"""Runs `alpasift` again and again, each in a process of its own, forked from one that has imported everything already.

Such a process is like any other: its own pid, environment, working folder and output, and it dies alone. Only the
second of imports is saved. A JSON line on stdin asks for a run, one on stdout has its pid, another its exit code.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

NEEDED = (
    "alpasift.batcher.engine.collect",
    "alpasift.batcher.engine.manual",
    "alpasift.batcher.cli.batches",
    "alpasift.batcher.cli.select",
    "alpasift.batcher.cli.grade",
    "alpasift.batcher.cli.status",
    "alpasift.batcher.cli.ledger",
    "alpasift.batcher.data.importing",
    "alpasift.batcher.engine.run",
    "alpasift.batcher.planning.choice",
    "alpasift.batcher.grading.select",
    "alpasift.batcher.tasks.grade",
    "genai_prices.data",
    "alpasift.graders.openai_batch",
    "h11",
    "httpcore2",
    "httpx2",
    "jiter",
    "openai",
    "openai.lib.streaming.chat",
    "openai.resources.batches",
    "openai.resources.chat.completions",
    "openai.resources.files",
    "pyarrow.parquet",
    "splintr",
    "truststore",
)


def main() -> None:
    for name in NEEDED:
        import_module(name)
    import_module("alpasift.graders.api.tokens").count("a vocabulary is read once", "gpt-4o-mini", "127.0.0.1")
    for line in sys.stdin:
        wanted = json.loads(line)
        threads = len(list(Path("/proc/self/task").iterdir()))
        assert threads == 1, f"{threads} threads: a fork would lose some"
        pid = os.fork()
        if pid == 0:
            run(wanted)
        tell({"pid": pid})
        _, status = os.waitpid(pid, 0)
        tell({"code": os.waitstatus_to_exitcode(status)})


def tell(what: dict[str, int]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def run(wanted: dict[str, Any]) -> None:
    """Become `alpasift ARGUMENTS`; never returns."""
    code = 70
    try:
        os.environ.clear()
        os.environ.update(wanted["environment"])
        os.chdir(wanted["folder"])
        for number, path, flags in (
            (0, os.devnull, os.O_RDONLY),
            (1, wanted["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
            (2, wanted["err"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        ):
            os.dup2(os.open(path, flags, 0o600), number)
        from alpasift.batcher.cli import run as alpasift

        code = alpasift(wanted["arguments"])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
