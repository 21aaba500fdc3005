"""Call by call: one score a row, the bill to the last decimal, and each fault costs what it must and no more.

The server is the rehearsal's: it keeps its own bill, from its own prices.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import batch_harness
from alpasift.batcher.data.importing import import_file
from alpasift.batcher.data.versions import resolve
from alpasift.batcher.engine.run import Run
from alpasift.batcher.engine.summary import Summary
from alpasift.batcher.money.ledger import LedgerAlarm
from alpasift.batcher.store import Store
from alpasift.batcher.tasks.grade import Grade
from alpasift.graders import AlpaSiftError, BackendError, BackendUnavailable, open_backend
from alpasift.graders.api.call_scheduler import WAITS
from alpasift.graders.api.price_lookup import UnknownPrice
from alpasift.graders.api.prices import MAX_PROMPT_TOKENS
from alpasift.graders.openai_chat import OpenAIChat
from alpasift.graders.prompts.rubric import load_rubric
from alpasift.graders.rehearsal.server import Event, Rehearsal
from batch_harness import MARKER, MODEL, PRICES, REAL, check, executed_twice, expected, key, marked_store, money, scores
from conftest import call_cli, cli_environment, new_store, some_rows, write_rows

ROWS = 12


@pytest.fixture
def server() -> Iterator[Rehearsal]:
    with key(), Rehearsal(marker=MARKER, prices=PRICES) as running:
        yield running
        assert running.errors == []


def chat(server: Rehearsal, model: str = MODEL, **more: Any) -> OpenAIChat:
    """The grader under test, which stands in for the real address and loses no time over a server that is down."""
    options = {"base_url": server.url, "stands_for": REAL, "in_flight": 4, **more}
    backend = open_backend(f"openai_chat:{model}", options)
    assert isinstance(backend, OpenAIChat)
    backend.pauses = (0.05, 0.05)
    return backend


def run_of(store: Store, backend: OpenAIChat, budget: Decimal | str | None = "5", **more: Any) -> Run:
    version = resolve(store, None).version_id
    cap = None if budget is None else Decimal(budget)
    return Run(store, Grade(load_rubric("accuracy")), backend, version, budget=cap, **more)


def grade(store: Store, server: Rehearsal, budget: Decimal | str | None = "5", **more: Any) -> Summary:
    with run_of(store, chat(server, **more), budget) as run:
        return run.go()


class Watch:
    """The server's hook: counts chat calls, and does something when the n-th of them reaches a moment."""

    def __init__(self, server: Rehearsal, n: int = 0, act: Callable[[], None] | None = None, moment: str = "answered"):
        self.n, self.act, self.moment = n, act, moment
        self.open = self.most = self.seen = 0
        self.arrived: list[float] = []
        self.order: list[str] = []
        self._lock = threading.Lock()
        server.hook = self

    def __call__(self, event: Event) -> None:
        if event.detail["route"] != "chat":
            return
        with self._lock:
            self.order.append(event.moment)
            if event.moment == "arrived":
                self.arrived.append(time.monotonic())
                self.open += 1
                self.most = max(self.most, self.open)
            elif event.moment == "done":
                self.open -= 1
            self.seen += event.moment == self.moment
            now = self.seen == self.n and event.moment == self.moment
        if now and self.act is not None:
            self.act()


def sent(server: Rehearsal) -> int:
    """Chat calls that reached the server."""
    return sum(row.path.endswith("/chat/completions") for row in server.requests_log)


def ceilings(store: Store, outcome: str) -> Decimal:
    """The ceilings of the attempts whose reply had this outcome."""
    text = """
        select coalesce(sum(a.ceiling_usd), 0)
        from attempts a join replies r using (attempt_id)
        where r.outcome = $outcome
    """
    return Decimal(store.locked_query(text, {"outcome": outcome}).rows[0][0])


# -- who it is ----------------------------------------------------------------------------------------------------


def test_it_is_the_grader_that_the_batch_is_and_a_row_graded_by_one_is_not_asked_by_the_other(
    tmp_path: Path, server: Rehearsal
) -> None:
    backend = chat(server)
    batch = open_backend(f"openai_batch:{MODEL}", batch_harness.options(server))
    assert (backend.name, backend.fingerprint) == (batch.name, batch.fingerprint)
    store = marked_store(tmp_path, 6)
    assert grade(store, server).usable == 6
    again = batch_harness.grade(store, server)
    assert (again.asked, again.already, server.batches()) == (0, 6, [])
    check(store, server, 6)


def test_a_plan_says_dollars_and_seconds_and_what_was_assumed(tmp_path: Path, server: Rehearsal) -> None:
    backend = chat(server, in_flight=8)
    with run_of(marked_store(tmp_path, ROWS), backend) as run:
        plan = run.estimate()
        assert (plan.requests, plan.seconds, plan.sync_usd) == (ROWS, ROWS / 8, plan.usd)
        assert plan.usd_low < plan.usd < plan.ceiling_usd
        assert plan.notes[0] == "8 concurrent requests, 1 s assumed for each"
        summary = run.go()
    assert summary.usd <= plan.ceiling_usd
    assert sent(server) == ROWS


def test_a_model_without_a_price_is_paid_for_and_says_which_lines_are_missing(server: Rehearsal) -> None:
    backend = chat(server, "strange-model")
    assert backend.paid
    with pytest.raises(UnknownPrice, match='model = "strange-model"'):
        backend.estimate([])


def test_a_server_of_ones_own_costs_nothing_and_needs_no_budget(tmp_path: Path, server: Rehearsal) -> None:
    backend = chat(server, stands_for=None, prices=str(own_prices(tmp_path, "0", "0")))
    assert (backend.paid, backend.leaves_machine) == (False, "nothing")
    store = marked_store(tmp_path, ROWS)
    with run_of(store, backend, None) as run:
        assert run.go().outcome == "done"
    assert scores(store) == expected(ROWS)
    assert store.locked_query("select count(*) from ledger").rows == [(0,)]


def own_prices(folder: Path, usd_input: str, usd_output: str, host: str = "127.0.0.1", model: str = MODEL) -> Path:
    path = folder / "prices.toml"
    path.write_text(
        f'[[price]]\nprovider = "{host}"\nmodel = "{model}"\ninput = "{usd_input}"\noutput = "{usd_output}"\n'
        'source = "the rehearsal"\ndate = 2026-11-01\n'
    )
    return path


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"in_flight": 0}, "1 to 512 concurrent requests"),
        ({"base_url": "http://example.com/v1"}, "not encrypted"),
        ({"poll_seconds": 1.0}, "has no setting --poll-seconds"),
    ],
)
def test_an_option_that_cannot_be_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(BackendError, match=says):
        open_backend(f"openai_chat:{MODEL}", options)


# -- money and slots ----------------------------------------------------------------------------------------------


def test_every_row_gets_its_score_and_what_is_spent_is_the_bill(tmp_path: Path, server: Rehearsal) -> None:
    store = marked_store(tmp_path, ROWS)
    summary = grade(store, server)
    assert (summary.outcome, summary.asked, summary.usable) == ("done", ROWS, ROWS)
    assert summary.usd == check(store, server, ROWS)["spent_usd"] > 0
    assert executed_twice(server) == []
    assert store.locked_query("select count(*), max(lines) from attempts").rows == [(ROWS, 1)]
    assert grade(store, server).asked == 0
    for row in server.requests_log:
        assert "idempotency-key" not in row.headers
        assert row.headers.get("x-stainless-retry-count", "0") == "0"


def test_the_first_call_goes_alone_and_never_more_than_asked_for_are_in_flight(
    tmp_path: Path, server: Rehearsal
) -> None:
    server.latency_seconds = 0.05
    watch = Watch(server)
    grade(marked_store(tmp_path, ROWS), server, in_flight=5)
    assert watch.order[:3] == ["arrived", "done", "answered"]
    assert watch.most == 5


def test_each_call_is_reserved_for_before_it_is_sent_and_closed_after_it(tmp_path: Path, server: Rehearsal) -> None:
    store = marked_store(tmp_path, 6)
    server.latency_seconds = 0.3
    seen: list[tuple[int, Decimal]] = []

    def look() -> None:
        text = "select count(*), coalesce(sum(ceiling_usd), 0) from open_attempts"
        seen.append(store.locked_query(text).rows[0])

    Watch(server, 2, look, "arrived")
    grade(store, server, in_flight=3)
    assert [count for count, _ in seen] == [3]
    assert seen[0][1] > 0
    assert store.query("open_attempts") == []


def test_a_budget_that_runs_out_ends_the_run_in_part_and_is_never_passed(tmp_path: Path, server: Rehearsal) -> None:
    store = marked_store(tmp_path, ROWS)
    with run_of(store, chat(server), "5") as run:
        each = run.estimate().ceiling_usd / ROWS
    cap = (each * 4).quantize(Decimal("1e-9"))
    stopped = grade(store, server, cap)
    assert stopped.outcome == "partial"
    assert "raise --budget" in (stopped.message or "")
    now = money(store)
    assert now["spent_usd"] == server.billed_usd() <= cap
    assert (now["reserved_usd"], now["unresolved_usd"]) == (0, 0)
    assert now["free_usd"] < each * 2, "what calls cost less than their ceilings was used for others"
    assert 4 < stopped.usable < ROWS
    assert grade(store, server).outcome == "done"
    check(store, server, ROWS)


def test_a_row_that_no_model_takes_is_set_aside_unsent(tmp_path: Path, server: Rehearsal) -> None:
    store = new_store(tmp_path / "t.duckdb")
    long = {"instruction": "Count.", "input": "x " * (MAX_PROMPT_TOKENS + 1), "output": "2"}
    import_file(store, write_rows(tmp_path / "rows.jsonl", [long, *some_rows(3)]))
    assert grade(store, server).usable == 3
    assert sent(server) == 3
    found = store.locked_query("select reason from graded where score is null").rows
    assert found == [("too_long",)]
    assert money(store)["spent_usd"] == server.billed_usd()


def test_a_charge_above_its_ceiling_is_booked_in_full_and_nothing_more_is_sent(
    tmp_path: Path, server: Rehearsal
) -> None:
    store = marked_store(tmp_path, ROWS)
    Watch(server, 3, lambda: server.misbehave("overcharge"))
    with pytest.raises(LedgerAlarm, match="above its ceiling"):
        grade(store, server)
    now, bill = money(store), server.billed_usd()
    dearest = max(line.usd for line in server.bill())
    assert dearest < now["spent_usd"] <= bill <= now["spent_usd"] + now["unresolved_usd"]
    before = sent(server)
    assert before < ROWS
    with pytest.raises(LedgerAlarm):
        grade(store, server)
    assert sent(server) == before


@pytest.mark.parametrize("kind", ["negative", "cached"])
def test_usage_that_cannot_be_is_unresolved_and_its_score_is_kept(tmp_path: Path, server: Rehearsal, kind: str) -> None:
    store = marked_store(tmp_path, 3)
    server.misbehave("hostile_usage", 1, kind=kind)
    grade(store, server)
    now = check(store, server, 3, settled=False)
    first = "select ceiling_usd from attempts order by opened_at limit 1"
    assert now["unresolved_usd"] == store.locked_query(first).rows[0][0]


# -- ways of failing ----------------------------------------------------------------------------------------------


def test_a_pause_that_the_server_asks_for_is_kept_by_every_call(tmp_path: Path, server: Rehearsal) -> None:
    store = marked_store(tmp_path, ROWS)
    refused_at: list[float] = []

    def arm() -> None:
        server.misbehave("rate_limit", 3, where="chat", seconds=1)
        refused_at.append(time.monotonic())

    watch = Watch(server, 1, arm)
    assert grade(store, server).outcome == "done"
    assert sent(server) == ROWS + 3
    first = watch.arrived[1]  # the first that was refused
    assert not [t for t in watch.arrived if first + 0.2 < t < first + 0.98]
    assert store.locked_query("select count(*) from attempts").rows == [(ROWS,)], "the same calls went again"
    check(store, server, ROWS)


def test_a_server_that_takes_nothing_is_asked_so_many_times_and_no_more(tmp_path: Path, server: Rehearsal) -> None:
    store = marked_store(tmp_path, ROWS)
    server.misbehave("rate_limit", None, where="chat", seconds=0)
    with pytest.raises(BackendError, match="accepts no requests now"):
        grade(store, server)
    assert sent(server) == WAITS + 1
    assert money(store)["free_usd"] == 5
    server.behave()
    grade(store, server)
    check(store, server, ROWS)


def test_a_lost_answer_is_unresolved_at_its_ceiling_and_asked_again_by_the_next_run(
    tmp_path: Path, server: Rehearsal
) -> None:
    store = marked_store(tmp_path, ROWS)
    Watch(server, 2, lambda: server.misbehave("lost_answer"))
    first = grade(store, server)
    assert (first.outcome, first.usable, sent(server)) == ("partial", ROWS - 1, ROWS)
    assert grade(store, server).asked == 1
    now = check(store, server, ROWS, settled=False)
    assert now["unresolved_usd"] == ceilings(store, "unknown") > 0
    assert len(executed_twice(server)) == 1


def test_a_lost_answer_is_asked_again_only_if_the_budget_holds_both(tmp_path: Path, server: Rehearsal) -> None:
    store = marked_store(tmp_path, 1)
    with run_of(store, chat(server)) as run:
        most = run.estimate().ceiling_usd
    server.misbehave("lost_answer")
    summary = grade(store, server, most * Decimal("1.5"))
    assert summary.outcome == "partial"
    assert (sent(server), money(store)["unresolved_usd"]) == (1, most)
    assert grade(store, server).usable == 1
    check(store, server, 1, settled=False)


def test_errors_of_the_server_are_unresolved_one_by_one_and_the_rest_goes_on(tmp_path: Path, server: Rehearsal) -> None:
    store = marked_store(tmp_path, ROWS)
    Watch(server, 4, lambda: server.misbehave("server_error", 2, executed=True))
    first = grade(store, server)
    assert (first.outcome, first.usable, sent(server)) == ("partial", ROWS - 2, ROWS)
    assert grade(store, server).asked == 2
    now = check(store, server, ROWS, settled=False)
    assert now["unresolved_usd"] == ceilings(store, "unknown") > 0


def test_a_server_that_is_down_costs_a_slotful_and_a_few_calls_alone(tmp_path: Path, server: Rehearsal) -> None:
    store = marked_store(tmp_path, ROWS)
    Watch(server, 5, lambda: server.misbehave("server_error", None))
    with pytest.raises(BackendError, match="gives no valid answer"):
        grade(store, server)
    answered = int(store.locked_query("select count(*) from replies where outcome = 'answered'").rows[0][0])
    assert answered == len(list(server.bill()))
    assert 2 <= sent(server) - answered <= 4 + 2
    server.behave()
    assert grade(store, server).outcome == "done"
    check(store, server, ROWS, settled=False)


def test_a_server_that_never_answers_is_asked_twice(tmp_path: Path, server: Rehearsal) -> None:
    store = marked_store(tmp_path, ROWS)
    server.misbehave("server_error", None, status=502)
    with pytest.raises(BackendError, match="gives no valid answer"):
        grade(store, server)
    assert sent(server) == 2
    assert money(store)["unresolved_usd"] == ceilings(store, "unknown")


def test_a_server_that_goes_away_is_not_charged_for_what_could_not_be_sent(tmp_path: Path, server: Rehearsal) -> None:
    store = marked_store(tmp_path, ROWS)
    Watch(server, 5, lambda: threading.Thread(target=server.stop).start())
    with pytest.raises(BackendUnavailable, match="cannot be reached"):
        grade(store, server)
    now = money(store)
    text = "select count(*) from replies where outcome = 'rejected_free' and error like 'server_error: %'"
    assert store.locked_query(text).rows[0][0] >= 2
    assert now["reserved_usd"] == 0
    assert now["unresolved_usd"] == ceilings(store, "unknown")


def test_a_web_page_in_place_of_an_answer_is_no_answer(tmp_path: Path, server: Rehearsal) -> None:
    store = marked_store(tmp_path, ROWS)
    Watch(server, 2, lambda: server.misbehave("html", 1, where="chat"))
    first = grade(store, server)
    assert (first.outcome, first.usable) == ("partial", ROWS - 1)
    grade(store, server)
    now = check(store, server, ROWS, settled=False)
    assert now["unresolved_usd"] == ceilings(store, "unknown") > 0
    found = store.locked_query("select error from replies where outcome = 'unknown'").rows[0][0]
    assert "without an answer of the API" in found


@pytest.mark.parametrize(("fault", "says"), [("html", "does not answer like the API"), ("unauthorized", "the key")])
def test_a_wrong_address_or_key_is_told_before_anything_is_sent(
    tmp_path: Path, server: Rehearsal, fault: str, says: str
) -> None:
    store = marked_store(tmp_path, 3)
    server.misbehave(fault, 1, where="models")
    with pytest.raises(BackendUnavailable, match=says):
        grade(store, server)
    assert sent(server) == 0
    assert store.locked_query("select count(*) from attempts").rows == [(0,)]


@pytest.mark.parametrize(
    ("fault", "detail", "says"),
    [
        ("unauthorized", {"where": "chat"}, "does not accept the key"),
        (11, {"http": True, "where": "chat"}, "no money left"),
    ],
)
def test_a_key_or_an_account_that_ends_stops_the_run_and_keeps_what_was_answered(
    tmp_path: Path, server: Rehearsal, fault: int | str, detail: dict[str, Any], says: str
) -> None:
    store = marked_store(tmp_path, ROWS)
    Watch(server, 9, lambda: server.misbehave(fault, None, **detail))
    with pytest.raises(BackendError, match=says):
        grade(store, server)
    now = money(store)
    assert (now["spent_usd"], now["reserved_usd"], now["unresolved_usd"]) == (server.billed_usd(), 0, 0)
    kept = sum(score is not None for score in scores(store).values())
    assert kept == len(list(server.bill())) >= 9
    server.behave()
    grade(store, server)
    check(store, server, ROWS)
    assert executed_twice(server) == []


def test_a_body_that_the_model_refuses_costs_one_call(tmp_path: Path, server: Rehearsal) -> None:
    store = marked_store(tmp_path, ROWS)
    prices = own_prices(tmp_path, "1", "1", "example.com", "gpt-5-nano")
    backend = chat(server, "gpt-5-nano", stands_for="https://example.com/v1", prices=str(prices))
    with pytest.raises(BackendError, match=r"does not accept the request .*max_tokens.*nothing more was sent"):
        with run_of(store, backend) as run:
            run.go()
    assert sent(server) == 1
    assert money(store)["free_usd"] == 5


def test_a_model_that_does_not_exist_costs_one_call(tmp_path: Path, server: Rehearsal) -> None:
    store = marked_store(tmp_path, 3)
    prices = own_prices(tmp_path, "1", "1", model="no-such-model")
    backend = chat(server, "no-such-model", stands_for=None, prices=str(prices))
    with pytest.raises(BackendUnavailable, match="no such model"):
        with run_of(store, backend) as run:
            run.go()
    assert sent(server) == 1


def test_another_snapshot_than_before_stops_the_run_unless_it_is_allowed(tmp_path: Path, server: Rehearsal) -> None:
    store = marked_store(tmp_path, ROWS)
    Watch(server, 5, lambda: server.set_snapshot(MODEL, "gpt-4o-mini-2026-01-01"))
    with pytest.raises(
        BackendError, match="was gpt-4o-mini-2024-07-18 when it graded here and is gpt-4o-mini-2026-01-01"
    ):
        grade(store, server)
    before = sent(server)
    assert before < ROWS
    with pytest.raises(BackendError, match="--allow-drift"):
        grade(store, server)
    assert sent(server) == before + 1
    assert grade(store, server, allow_drift=True).outcome == "done"
    assert grade(store, server).asked == 0
    check(store, server, ROWS)


# -- a server of the plainest kind ----------------------------------------------------------------------------------


class Plain(ThreadingHTTPServer):
    """Answers each POST with the next of some (status, headers, body), the last of them again and again."""

    daemon_threads = True

    def __init__(self, models: tuple[int, bytes], answers: list[tuple[int, dict[str, str], bytes]]) -> None:
        self.posts: list[float] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.reply(models[0], {}, models[1])

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                outer.posts.append(time.monotonic())
                self.reply(*(answers.pop(0) if len(answers) > 1 else answers[0]))

            def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
                body = body.replace(b"{KEY}", self.headers["authorization"].partition(" ")[2].encode())
                self.send_response(status)
                for name, value in {"content-length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def server_close(self) -> None:
        self.shutdown()  # first: its thread would poll the closed socket without pause, for the rest of the suite
        super().server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


GOOD = (
    b'{"choices": [{"message": {"content": "4"}, "finish_reason": "stop"}], '
    b'"usage": {"prompt_tokens": 9, "completion_tokens": 1}}'
)


def plain_run(tmp_path: Path, plain: Plain, rows: int, **more: Any) -> tuple[Store, Run]:
    store = marked_store(tmp_path, rows)
    options = {"base_url": plain.url, "prices": str(own_prices(tmp_path, "1", "1")), **more}
    backend = open_backend(f"openai_chat:{MODEL}", options)
    assert isinstance(backend, OpenAIChat)
    return store, run_of(store, backend)


def test_a_server_without_a_list_of_models_and_with_bare_answers_is_good_enough(tmp_path: Path) -> None:
    with key(), Plain((404, b""), [(200, {}, GOOD)]) as plain:
        store, run = plain_run(tmp_path, plain, 5)
        with run:
            assert run.go().usable == 5
    assert money(store)["unresolved_usd"] == 0


def test_an_overloaded_server_is_left_in_peace_and_the_call_that_it_failed_is_not_repeated_blindly(
    tmp_path: Path,
) -> None:
    answers = [(200, {}, GOOD), (503, {"retry-after": "1"}, b""), (200, {}, GOOD)]
    with key(), Plain((200, b"[]"), answers) as plain:
        store, run = plain_run(tmp_path, plain, 4, in_flight=1)
        with run:
            assert run.go().usable == 3
        assert plain.posts[2] - plain.posts[1] >= 1
        assert len(plain.posts) == 4
    assert money(store)["unresolved_usd"] == ceilings(store, "unknown") > 0


@pytest.mark.parametrize("status", [200, 400])
def test_a_key_that_a_server_sends_back_is_in_no_message_and_in_no_database(tmp_path: Path, status: int) -> None:
    secret = "sk-proj-0123456789abcdefghij"
    with key(), Plain((404, b"{KEY}"), [(status, {}, b'{"error": {"message": "you sent {KEY}"}}')]) as plain:
        os.environ["OPENAI_API_KEY"] = secret
        store, run = plain_run(tmp_path, plain, 3)
        assert isinstance(run.backend, OpenAIChat)
        run.backend.pauses = (0.0,)
        with run, pytest.raises(AlpaSiftError) as raised:
            run.go()
        assert secret not in str(raised.value)
    held = (
        store.locked_query("select r::varchar from replies r").rows
        + store.locked_query("select r::varchar from run_ends r").rows
    )
    assert held
    assert not any(secret in str(row) for row in held)


# -- deaths and interrupts --------------------------------------------------------------------------------------------


def command(store: Store, server: Rehearsal, prices: Path) -> list[str]:
    return [
        "--db",
        str(store.path),
        "grade",
        "--grader",
        f"openai_chat:{MODEL}",
        "--base-url",
        server.url,
        "--prices",
        str(prices),
        "--in-flight",
        "4",
        "--budget",
        "5",
        "--yes",
        "--quiet",
    ]


ENV = {"OPENAI_API_KEY": "rehearsal"}


def hear_every_signal() -> None:
    """What a terminal's child does: a suite that runs under nohup ignores SIGHUP, and so would its children."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(store: Store, arguments: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "alpasift.batcher.cli", *arguments],
        cwd=store.path.parent,
        env=cli_environment(ENV),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=hear_every_signal,
    )


@pytest.mark.parametrize(("moment", "n"), [("arrived", 6), ("answered", 8)])
def test_a_run_that_is_killed_goes_on_with_one_score_a_row_and_every_cent_accounted_for(
    tmp_path: Path, server: Rehearsal, moment: str, n: int
) -> None:
    store, prices = marked_store(tmp_path, ROWS), own_prices(tmp_path, "0.15", "0.60")
    arguments = command(store, server, prices)
    server.latency_seconds = 0.02
    process: list[subprocess.Popen[bytes]] = []
    Watch(server, n, lambda: process[0].send_signal(signal.SIGKILL), moment)
    process.append(start(store, arguments))
    process[0].communicate(timeout=60)
    assert process[0].returncode == -signal.SIGKILL
    now, bill = money(store), server.billed_usd()
    assert now["spent_usd"] <= bill <= now["spent_usd"] + now["reserved_usd"] + now["unresolved_usd"]
    server.hook = None
    assert grade(store, server, stands_for=None, prices=str(prices)).outcome == "done"
    now = check(store, server, ROWS, settled=False)
    assert 0 < now["unresolved_usd"] <= 4 * store.locked_query("select max(ceiling_usd) from attempts").rows[0][0]
    assert len(executed_twice(server)) <= 4
    assert store.query("open_attempts") == []


def test_the_command_line_grades_through_it_and_tells_what_it_cost(tmp_path: Path, server: Rehearsal) -> None:
    store = marked_store(tmp_path, 4)
    arguments = command(store, server, own_prices(tmp_path, "0.15", "0.60"))
    done = call_cli(arguments, cwd=tmp_path, env=ENV)
    assert done.code == 0, done.err
    assert "4 concurrent requests, 1 s assumed for each" in done.err
    check(store, server, 4)


def test_an_interrupt_takes_in_what_is_in_flight(tmp_path: Path, server: Rehearsal) -> None:
    store = marked_store(tmp_path, ROWS)
    arguments = command(store, server, own_prices(tmp_path, "0.15", "0.60"))
    server.latency_seconds = 0.5
    process: list[subprocess.Popen[bytes]] = []
    Watch(server, 4, lambda: threading.Timer(0.2, lambda: process[0].send_signal(signal.SIGINT)).start(), "arrived")
    process.append(start(store, arguments))
    _, err = process[0].communicate(timeout=60)
    assert process[0].returncode == 130, err
    assert b"Traceback" not in err
    now = money(store)
    assert (now["spent_usd"], now["reserved_usd"], now["unresolved_usd"]) == (server.billed_usd(), 0, 0)
    assert sum(score is not None for score in scores(store).values()) == sent(server) == 5
