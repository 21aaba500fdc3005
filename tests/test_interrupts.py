"""Signals and deaths of a paid run: what is in flight is not lost to a signal, and nothing is bought a third time."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alpasift.batcher.data.importing import import_file
from alpasift.batcher.engine.interrupts import noted, uninterrupted
from alpasift.graders.rehearsal.server import Rehearsal
from batch_harness import MARKER, PRICES, check, executed_twice, key, marked_store, money
from conftest import Ran, new_store, some_rows, write_rows
from test_openai_chat import Watch, command, own_prices, sent, start

ROWS = 24
PRICE = 'usd_per_million_input = "0.15"\nusd_per_million_output = "0.60"\n'


@pytest.fixture
def server() -> Iterator[Rehearsal]:
    with key(), Rehearsal(marker=MARKER, prices=PRICES) as running:
        yield running


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_stops_new_calls_takes_in_those_in_flight_and_the_next_run_pays_for_none_twice(
    tmp_path: Path, server: Rehearsal, name: str, alpasift: Callable[..., Ran]
) -> None:
    store = marked_store(tmp_path, ROWS)
    arguments = command(store, server, own_prices(tmp_path, "0.15", "0.60"))
    process: list[subprocess.Popen[bytes]] = []
    server.latency_seconds = 0.3
    after = {"SIGINT": 0.0, "SIGTERM": 0.11, "SIGHUP": 0.29}[name]  # about to be sent, on the way, about to be answered

    def hit() -> None:
        threading.Timer(after, lambda: process[0].send_signal(getattr(signal, name))).start()

    Watch(server, 7, hit, "arrived")
    process.append(start(store, arguments))
    _, err = process[0].communicate(timeout=60)
    assert process[0].returncode == 128 + getattr(signal, name), err
    assert b"stopping: nothing more is sent" in err and b"Traceback" not in err
    now = money(store)
    assert (now["spent_usd"], now["reserved_usd"], now["unresolved_usd"]) == (server.billed_usd(), 0, 0)
    assert 7 <= sent(server) < ROWS
    server.latency_seconds = 0.0
    server.hook = None
    assert alpasift(*arguments, env={"OPENAI_API_KEY": "rehearsal"}).code == 0
    check(store, server, ROWS)
    assert executed_twice(server) == []


def test_a_second_signal_does_not_wait(tmp_path: Path, server: Rehearsal) -> None:
    store = marked_store(tmp_path, ROWS)
    arguments = command(store, server, own_prices(tmp_path, "0.15", "0.60"))
    process: list[subprocess.Popen[bytes]] = []
    server.latency_seconds = 8.0

    def hit() -> None:
        process[0].send_signal(signal.SIGTERM)
        threading.Timer(1.0, lambda: process[0].send_signal(signal.SIGTERM)).start()

    Watch(server, 1, hit, "arrived")
    process.append(start(store, arguments))
    _, err = process[0].communicate(timeout=60)
    assert process[0].returncode == 143, err
    now = money(store)
    assert now["reserved_usd"] == 0 < now["unresolved_usd"]


def test_what_is_put_off_arrives_where_it_would_have_before() -> None:
    came: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append("mine"))
    try:
        with uninterrupted():
            signal.raise_signal(signal.SIGTERM)
            assert came == []
        assert came == ["mine"]
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as nohup does with SIGHUP
        with noted(True) as interrupts, uninterrupted():
            signal.raise_signal(signal.SIGTERM)
        assert not interrupts.came
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_inside_a_commit_is_noted_and_raised_at_the_end() -> None:
    reached: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        with noted(True) as interrupts:
            with uninterrupted():
                signal.raise_signal(signal.SIGINT)
                reached.append("in the commit")
            assert interrupts.due
            reached.append("after the commit")
    assert reached == ["in the commit", "after the commit"]


def test_a_question_whose_request_dies_in_flight_is_sent_twice_and_then_only_on_request(
    tmp_path: Path, alpasift: Callable[..., Ran], alpasift_process: Callable[..., Ran]
) -> None:
    store = new_store(tmp_path / "k.duckdb")
    import_file(store, write_rows(tmp_path / "rows.jsonl", some_rows(4)))
    rule = '[[reply]]\nmatch = "number 2 "\n'
    (tmp_path / "s.toml").write_text(f'{PRICE}{rule}die = "sent"\n')
    arguments = ["--db", store.path, "grade", "--grader", f"fake:{tmp_path}/s.toml", "--budget", "1", "--yes"]
    codes = [alpasift_process(*arguments).code for _ in range(2)]
    assert codes == [-signal.SIGKILL] * 2
    third = alpasift(*arguments)
    assert third.code == 0, third.err
    assert "1 row was sent twice, may have been paid for, and never answered" in third.out + third.err
    assert "--retry sends again" in third.out + third.err
    text = "select position from graded_rows where score is not null order by position"
    assert store.locked_query(text).rows == [(0,), (1,), (3,)]
    sent_for_it = "select count(*) from attempt_lines where key not in (select key from replies)"
    assert store.locked_query(sent_for_it).rows == [(2,)]
    (tmp_path / "s.toml").write_text(f"{PRICE}{rule}")
    assert alpasift(*arguments, "--retry").code == 0
    assert store.locked_query(text).rows == [(0,), (1,), (2,), (3,)]
    assert store.query("ledger")[0]["unresolved_usd"] > 0
