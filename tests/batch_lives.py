"""Processes that grade by batch and die: the command itself, a server that bills, and what must hold each time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import pytest

from alpasift.batcher.money.meter import batch_folder
from alpasift.batcher.store import Store
from alpasift.graders.rehearsal.server import Event, Rehearsal
from batch_harness import MARKER, MODEL, PRICES, expected, scores
from conftest import cli_environment

KEY = "sk-a-key-that-must-stand-nowhere-4c1f9e77"
KILL = Path(__file__).resolve().parent / "kill"

needs_points = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("cc") is None,
    reason="counting writes needs Linux and a C compiler",
)

PRICE = f"""
[[price]]
provider = "127.0.0.1"
model = "{MODEL}"
input = "{PRICES[MODEL]["input"]}"
output = "{PRICES[MODEL]["output"]}"
cached_input = "{PRICES[MODEL]["cached_input"]}"
cache_write = "{PRICES[MODEL]["cache_write"]}"
discount = "{PRICES[MODEL]["batch_discount"]}"
source = "the table of the local server"
date = 2026-01-01
"""


@contextmanager
def forking(folder: Path) -> Iterator[Forks]:
    """What starts the processes, each with the library that counts its writes."""
    library = folder / "points.so"
    flags = ["-shared", "-fPIC", "-O1", "-U_FORTIFY_SOURCE"]
    subprocess.run(["cc", *flags, "-o", str(library), str(KILL / "points.c"), "-ldl"], check=True)
    made = Forks(library)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def living(folder: Path, forks: Forks, imported: Path) -> Iterator[Life]:
    """A copy of a database in which nothing was paid yet, and a server of its own."""
    database = folder / "run" / "t.duckdb"
    database.parent.mkdir()
    shutil.copy2(imported, database)
    (database.parent / "prices.toml").write_text(PRICE)
    with Rehearsal(key=KEY, prices=PRICES, marker=MARKER, folder=folder / "server") as server:
        yield Life(database.parent, server, forks)


class Forks:
    """Processes that run `alpasift`, one at a time; see kill/forks.py."""

    def __init__(self, library: Path) -> None:
        alone = {
            "OPENBLAS_NUM_THREADS": "1",
            "JE_ARROW_MALLOC_CONF": "background_thread:false",
        }  # who forks has one thread
        environment = cli_environment({"LD_PRELOAD": str(library), **alone})
        self.server = subprocess.Popen(
            [sys.executable, str(KILL / "forks.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def start(self, arguments: Sequence[str], environment: Mapping[str, str], folder: Path) -> int:
        """The pid of a process that runs these arguments; its output goes to files in the folder."""
        wanted = {
            "arguments": list(arguments),
            "environment": dict(environment),
            "folder": str(folder),
            "out": str(folder / "out.txt"),
            "err": str(folder / "err.txt"),
        }
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps(wanted) + "\n")
        self.server.stdin.flush()
        self.pid = self._answer()["pid"]
        return self.pid

    def wait(self, seconds: float = 100.0) -> int:
        """The exit code of the process that was started, negative for a signal. One that hangs is ended."""
        timer = threading.Timer(seconds, os.kill, (self.pid, signal.SIGABRT))
        timer.start()
        try:
            return self._answer()["code"]
        finally:
            timer.cancel()

    def _answer(self) -> dict[str, int]:
        assert self.server.stdout is not None
        return json.loads(self.server.stdout.readline())

    def close(self) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait(20)


@dataclass
class Life:
    """One database and one server: the same command is run, dies, and is run again."""

    folder: Path
    server: Rehearsal
    forks: Forks
    batch_rows: int = 10
    deaths: int = 0
    said: list[str] = field(default_factory=list)
    watch: Callable[[Event], None] = lambda event: None

    @property
    def store(self) -> Store:
        return Store(self.folder / "t.duckdb")

    def command(self, *arguments: str) -> list[str]:
        return ["--db", str(self.store.path), *arguments]

    def grade_command(self, *more: str, budget: str = "5") -> list[str]:
        return self.command(
            "grade",
            "--grader",
            f"openai_batch:{MODEL}",
            "--rubric",
            "accuracy",
            "--budget",
            budget,
            "--yes",
            "--batch-rows",
            str(self.batch_rows),
            "--poll-seconds",
            "0.05",
            "--grace-seconds",
            "0",
            "--quiet",
            "--json",
            "--prices",
            str(self.folder / "prices.toml"),
            *more,
        )

    def environment(self, **more: str) -> dict[str, str]:
        return cli_environment({"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": self.server.url, **more})

    def run(self, arguments: Sequence[str] | None = None, **environment: str) -> int:
        """Run a command to its end; grading when none is given."""
        self.start(arguments, **environment)
        return self.ended()

    def start(self, arguments: Sequence[str] | None = None, **environment: str) -> int:
        given = self.grade_command() if arguments is None else arguments
        return self.forks.start(given, self.environment(**environment), self.folder)

    def ended(self) -> int:
        code = self.forks.wait()
        out, err = self.folder / "out.txt", self.folder / "err.txt"
        self.said.append(out.read_text("utf-8", "replace") + err.read_text("utf-8", "replace"))
        assert "Traceback" not in self.said[-1]
        assert "this is a fault in alpasift" not in self.said[-1], self.said[-1]
        return code

    def is_hit(
        self,
        fits: Callable[[Event], bool],
        arguments: Sequence[str] | None = None,
        signal_: signal.Signals = signal.SIGKILL,
    ) -> int:
        """Run a command and send it a signal at the first moment that fits; SIGKILL on arrival: it was never sent."""
        known, pids, hit = threading.Event(), list[int](), threading.Event()

        def hook(event: Event) -> None:
            self.watch(event)
            if hit.is_set() or not fits(event):
                return
            hit.set()
            known.wait(10)
            os.kill(pids[0], signal_)
            if event.moment == "arrived" and signal_ == signal.SIGKILL:
                raise ConnectionResetError

        self.server.hook = hook
        pids.append(self.start(arguments))
        known.set()
        code = self.ended()
        self.server.hook = self.watch
        self.deaths += hit.is_set()
        return code

    def is_hit_at_write(self, number: int, arguments: Sequence[str] | None = None, *, torn: bool = False) -> int:
        """Run a command and kill it just before its n-th write, or in the middle of it.

        Writes to the database file itself are not torn: DuckDB writes two blocks of its metadata in place with every
        checkpoint, and cannot open the file when one of them is cut. Those to its log, and to all other files, are.
        """
        more = {"POINTS_TEAR": f"{self.store.path}."} if torn else {}
        code = self.run(arguments, POINTS_UNDER=str(self.store.path), POINTS_DIE_AT=str(number), **more)
        self.deaths += code == -signal.SIGKILL
        return code

    # -- what must hold -------------------------------------------------------------------------------------------

    def check_law(self) -> dict[str, Decimal]:
        """After a death, or at any other time: what was billed is spent, held or unresolved; the balance adds up."""
        bill = self.server.billed_usd()
        found = self.store.query("ledger")[0]
        parts = ("spent_usd", "reserved_usd", "unresolved_usd", "free_usd")
        if found["budget_usd"] is None:  # it died before its first write: the budget is set with the run
            assert (found["spent_usd"], found["reserved_usd"], found["unresolved_usd"], bill) == (0, 0, 0, 0)
        else:
            assert sum(found[part] for part in parts) == found["budget_usd"]
            assert found["spent_usd"] <= bill <= found["spent_usd"] + found["reserved_usd"] + found["unresolved_usd"]
        return found

    def goes_on(self, arguments: Sequence[str] | None = None, times: int = 4) -> int:
        """Run the same command until it is done. Returns how many times that took."""
        for number in range(1, times + 1):
            code = self.run(arguments)
            if code == 0:
                return number
            assert code == 4, self.said[-1]
            self.check_law()
        pytest.fail(f"it was not done after {times} runs: {self.said[-1]}")

    def check_end(self, rows: int) -> None:
        """Every row has its score, no line of a batch ran twice, the ledger is the bill, nothing is left behind."""
        assert scores(self.store) == expected(rows)
        bill = list(self.server.bill())
        lines = Counter(line.custom_id for line in bill if line.batch is not None)
        assert set(lines.values()) <= {1}, "a line of a batch was carried out twice"
        calls = Counter(line.custom_id for line in bill if line.batch is None)
        assert all(times <= 1 + self.deaths for times in calls.values()), "a call was repeated that no death cut off"
        found = self.check_law()
        assert sum((line.usd for line in bill), Decimal(0)) == self.server.billed_usd()
        assert found["reserved_usd"] == 0
        if found["unresolved_usd"] == 0:
            assert found["spent_usd"] == self.server.billed_usd()
        self.check_folder()
        assert self.server.errors == []

    def check_folder(self) -> None:
        """No draft, no request file, no part of a download; and the key stands nowhere."""
        left = [path.name for path in batch_folder(self.store.path).iterdir()]
        assert [name for name in left if not name.endswith(("-output.jsonl", "-errors.jsonl"))] == []
        for path in self.folder.rglob("*"):
            assert not path.is_file() or KEY.encode() not in path.read_bytes(), f"the key stands in {path.name}"
        assert not any(KEY in text for text in self.said), "the key was printed"
        assert not any(logged.leaked for logged in self.server.requests_log)


def nth(route: str, moment: str, n: int = 1) -> Callable[[Event], bool]:
    """The n-th time that a request of this kind is at this moment."""
    left = [n]

    def fits(event: Event) -> bool:
        if (event.detail["route"], event.moment) != (route, moment):
            return False
        left[0] -= 1
        return left[0] == 0

    return fits


def of_this_run(k: int, moment: str) -> Callable[[Event], bool]:
    """The k-th request of a run, whatever it is."""
    seen = list[int]()

    def fits(event: Event) -> bool:
        if event.number not in seen:
            seen.append(event.number)
        return len(seen) == k and event.moment == moment

    return fits


def spread(count: int, wanted: int) -> list[int]:
    """So many of the numbers from 0 to count - 1, evenly, the first and the last among them."""
    if count <= wanted:
        return list(range(count))
    return [round(i * (count - 1) / (wanted - 1)) for i in range(wanted)]
