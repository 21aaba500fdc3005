"""kill -9 at random moments of `alpasift grade`, then run again: nothing lost or asked twice, money accounted for.

The fake grader writes its own bill, as a provider does: what it worked out and what that cost. After every death
spent <= bill <= spent + reserved + unresolved, and at the end spent <= bill <= spent + unresolved.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from alpasift.batcher.data.importing import import_file
from alpasift.batcher.engine.status import runs_of
from alpasift.batcher.store import Store
from alpasift.batcher.store.lock import run_lock
from conftest import ROOT, call_cli, cli_environment, new_store, run_cli, some_rows, write_rows

ROWS = 60
FAKE_KILLS = 20
LLAMA_KILLS = 20


def start(store: Store, arguments: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "alpasift.batcher.cli", "--db", str(store.path), "grade", *arguments, "--quiet"],
        cwd=store.path.parent,
        env=cli_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def kill_at_random(store: Store, arguments: list[str], chance: random.Random, longest: float) -> bool:
    """Start a run and kill it after a random time from its first write on. False when it had ended by itself."""
    process = start(store, arguments)
    lock = store.path.with_name(store.path.name + ".lock")
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if lock.exists() and lock.read_bytes().strip() == str(process.pid).encode():
            break
        time.sleep(0.005)
    time.sleep(chance.uniform(0, longest))
    ended = process.poll() is not None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return not ended


def replies(store: Store) -> set[tuple[str, str, str]]:
    text = "select attempt_id::varchar, key::varchar, text from replies where outcome = 'answered'"
    return {tuple(row) for row in store.locked_query(text).rows}


def check_one_score_a_row(store: Store, rows: int) -> None:
    found = store.locked_query("select position, count(*), count(score) from graded_rows group by position").rows
    assert sorted(found) == [(i, 1, 1) for i in range(rows)]


def sums(store: Store) -> dict[str, Decimal]:
    money = store.query("ledger")[0]
    parts = ("spent_usd", "reserved_usd", "unresolved_usd", "free_usd")
    if money["budget_usd"] is None:  # it died before its first write: the budget is set with the run
        assert not any(money[part] for part in parts[:3])
        return money
    assert sum(money[part] for part in parts) == money["budget_usd"]
    return money


@pytest.mark.slow
@pytest.mark.parametrize(("lines", "seed"), [(1, 1), (7, 2)])
def test_a_paid_run_that_is_killed_again_and_again_pays_for_no_committed_reply_twice(
    tmp_path: Path, lines: int, seed: int
) -> None:
    chance = random.Random(seed)
    store = new_store(tmp_path / "k.duckdb")
    import_file(store, write_rows(tmp_path / "rows.jsonl", some_rows(ROWS)))
    bill = tmp_path / "bill.txt"
    (tmp_path / "paid.toml").write_text(
        f'usd_per_million_input = "0.15"\nusd_per_million_output = "0.60"\nlines_per_attempt = {lines}\n'
        f'delay_seconds = 0.02\nbill = "{bill}"\n'
    )
    arguments = ["--grader", f"fake:{tmp_path}/paid.toml", "--budget", "1", "--yes"]
    before: set[tuple[str, str, str]] = set()
    killed = 0
    for _ in range(FAKE_KILLS // 2):
        killed += kill_at_random(store, arguments, chance, 1.2)
        now = replies(store)
        assert before <= now, "a committed reply is gone"
        before = now
        money = sums(store)
        billed = sum((Decimal(line.split()[1]) for line in billed_lines(bill)), Decimal(0))
        assert money["spent_usd"] <= billed <= money["spent_usd"] + money["reserved_usd"] + money["unresolved_usd"]
    assert killed >= FAKE_KILLS // 4, "most of the runs ended before they were killed: the test tests nothing"
    assert all(times <= 2 for times in Counter(line.split()[0] for line in billed_lines(bill)).values())
    done = call_cli(["--db", store.path, "grade", *arguments, "--quiet", "--retry"], cwd=tmp_path)
    assert done.code == 0, done.err
    check_one_score_a_row(store, ROWS)
    money = sums(store)
    billed = sum((Decimal(line.split()[1]) for line in billed_lines(bill)), Decimal(0))
    assert money["reserved_usd"] == 0
    assert money["spent_usd"] <= billed <= money["spent_usd"] + money["unresolved_usd"]
    price = dict(line.split() for line in billed_lines(bill))
    kept = store.locked_query("select key::varchar from replies").rows
    assert money["spent_usd"] == sum(Decimal(price[key]) for (key,) in kept), "spent is the bill of what was kept"
    check_in_flight_is_unresolved_at_its_ceiling(store, money["unresolved_usd"])
    check_asked_again_only_what_was_lost(store, bill)


def billed_lines(bill: Path) -> list[str]:
    return bill.read_text().splitlines() if bill.exists() else []


def check_in_flight_is_unresolved_at_its_ceiling(store: Store, unresolved: Decimal) -> None:
    text = """
        select coalesce(sum(l.ceiling_usd), 0) from attempt_lines l
        where not exists (select 1 from replies p where p.attempt_id = l.attempt_id and p.key = l.key)
    """
    assert store.locked_query(text).rows[0][0] == unresolved


def check_asked_again_only_what_was_lost(store: Store, bill: Path) -> None:
    worked_out = Counter(line.split()[0] for line in billed_lines(bill))
    kept = Counter(str(key) for (key,) in store.locked_query("select key from replies").rows)
    assert set(kept) == set(worked_out)
    assert set(kept.values()) == {1}, "a question with a committed reply was asked again"


@pytest.mark.slow
@pytest.mark.llama
def test_a_llama_cpp_run_that_is_killed_again_and_again_keeps_every_reply(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "examples" / "tiny_gguf.py"), str(tmp_path / "tiny.gguf")], check=True)
    chance = random.Random(3)
    rows = 1500
    store = new_store(tmp_path / "k.duckdb")
    import_file(store, write_rows(tmp_path / "rows.jsonl", some_rows(rows)))
    arguments = ["--grader", f"llama_cpp:{tmp_path}/tiny.gguf"]
    before: set[tuple[str, str, str]] = set()
    killed = 0
    for _ in range(LLAMA_KILLS):
        killed += kill_at_random(store, arguments, chance, 1.5)
        now = replies(store)
        assert before <= now, "a committed reply is gone"
        before = now
    assert killed >= LLAMA_KILLS // 2, "most of the runs ended before they were killed: the test tests nothing"
    done = call_cli(["--db", store.path, "grade", *arguments, "--quiet"], cwd=tmp_path)
    assert done.code == 0, done.err
    assert before <= replies(store)
    check_one_score_a_row(store, rows)
    twice = "select count(*) from (select key from replies group by key having count(*) > 1)"
    assert store.locked_query(twice).rows == [(0,)], "a question with a committed reply was asked again"


def test_terminate_is_an_interrupt_that_keeps_what_was_answered(tmp_path: Path) -> None:
    store = new_store(tmp_path / "k.duckdb")
    import_file(store, write_rows(tmp_path / "rows.jsonl", some_rows(ROWS)))
    (tmp_path / "slow.toml").write_text("delay_seconds = 0.1\n")
    process = start(store, ["--grader", f"fake:{tmp_path}/slow.toml"])
    for _ in wait_until(lambda: store.query("progress") != []):
        assert process.poll() is None
    process.terminate()
    _, err = process.communicate(timeout=20)
    assert process.returncode == 143
    assert b"committed results are kept" in err
    assert b"Traceback" not in err
    scored = store.query("progress")[0]["scored"]
    assert 0 < scored < ROWS
    assert call_cli(["--db", store.path, "grade", "--grader", f"fake:{tmp_path}/slow.toml"], cwd=tmp_path).code == 0
    check_one_score_a_row(store, ROWS)


@pytest.mark.parametrize("point", ["reserved", "sent", "answered"])
def test_a_death_at_each_point_of_a_call_is_told_apart(tmp_path: Path, point: str) -> None:
    store = new_store(tmp_path / "k.duckdb")
    import_file(store, write_rows(tmp_path / "rows.jsonl", some_rows(4)))
    price = 'usd_per_million_input = "0.15"\nusd_per_million_output = "0.60"\n'
    rule = '[[reply]]\nmatch = "number 2 "\n'
    (tmp_path / "s.toml").write_text(f'{price}{rule}die = "{point}"\n')
    arguments = ["--grader", f"fake:{tmp_path}/s.toml", "--budget", "1", "--yes"]
    process = start(store, arguments)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    (tmp_path / "s.toml").write_text(f"{price}{rule}")
    assert call_cli(["--db", store.path, "grade", *arguments], cwd=tmp_path).code == 0
    check_one_score_a_row(store, 4)
    assert sums(store)["unresolved_usd"] > 0
    assert store.locked_query("select count(*) from attempts").rows == [(5,)]


def wait_until(condition: object, seconds: float = 30.0) -> Iterator[None]:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            pytest.fail("it did not happen")
        yield
        time.sleep(0.05)


def test_a_second_run_is_told_which_process_is_at_work(tmp_path: Path) -> None:
    store = new_store(tmp_path / "k.duckdb")
    import_file(store, write_rows(tmp_path / "rows.jsonl", some_rows(ROWS)))
    (tmp_path / "slow.toml").write_text("delay_seconds = 0.1\n")
    arguments = ["--grader", f"fake:{tmp_path}/slow.toml"]
    process = start(store, arguments)
    for _ in wait_until(lambda: store.query("open_attempts") != []):
        assert process.poll() is None
    second = run_cli(["--db", store.path, "grade", *arguments], cwd=tmp_path)
    assert (second.code, f"process {process.pid} is already working" in second.err) == (1, True)
    status = call_cli(["--db", store.path, "status", "--json"], cwd=tmp_path)
    assert status.json["running_pid"] == process.pid
    assert [row["outcome"] for row in runs_of(store, 5)] == ["running"]
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert [row["outcome"] for row in runs_of(store, 5)] == ["crashed"]
    with run_lock(store.path):  # as another command holds it, `collect` for instance
        assert [row["outcome"] for row in runs_of(store, 5)] == ["crashed"]
