"""Batches on the command line: submit, look, collect, cancel, carry manually, rehearse; what is refused beforehand."""

from __future__ import annotations

import http.server
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from alpasift.batcher.data.importing import import_file
from alpasift.batcher.store import Store
from alpasift.graders.rehearsal.server import Rehearsal
from batch_harness import MARKER, MODEL, PRICES, check, expected, marked_rows, marked_store, money, price_list, scores
from conftest import EXAMPLES, Ran, call_cli, cli_environment, write_rows
from test_openai_chat import hear_every_signal

Call = Callable[..., Ran]
KEY = "sk-a-key-that-nobody-may-see-0123456789"
FORM = ("--grader", f"openai_batch:{MODEL}", "--rubric", "accuracy")
QUICK = ("--poll-seconds", "0.05", "--grace-seconds", "0", "--quiet")
LIST = price_list()


@pytest.fixture
def server() -> Iterator[Rehearsal]:
    with Rehearsal(prices=PRICES, marker=MARKER, key=KEY) as made:
        yield made


@pytest.fixture
def lab(tmp_path: Path, server: Rehearsal) -> Callable[..., Ran]:
    """alpasift --db of a lab with 30 marked rows, its key and its server in the environment."""
    store = marked_store(tmp_path, 30, "lab.duckdb")
    (tmp_path / "prices.toml").write_text(LIST)

    def call(*arguments: object, **more: Any) -> Ran:
        env = {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": KEY, **more.pop("env", {})}
        return call_cli(["--db", store.path, *arguments], cwd=tmp_path, env=env, **more)

    return call


def test_the_form_that_scripts_rely_on_grades_to_the_last_decimal(lab: Call, server: Rehearsal, tmp_path: Path) -> None:
    assert lab("grade", *FORM, "--budget", "5", "--yes", *QUICK).code == 0
    check(Store(tmp_path / "lab.duckdb"), server, 30)
    again = lab("grade", *FORM, "--budget", "5", "--yes", *QUICK)
    assert again.code == 0
    assert "30 rows were graded before" in again.err
    assert len(server.batches()) == 1


def test_submit_look_and_collect(tmp_path: Path) -> None:
    with Rehearsal(prices=PRICES, marker=MARKER, key=KEY, batch_seconds=3600) as server:
        store = marked_store(tmp_path, 30, "lab.duckdb")
        (tmp_path / "prices.toml").write_text(LIST)
        env = {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": KEY}

        def lab(*arguments: object) -> Ran:
            return call_cli(["--db", store.path, *arguments], cwd=tmp_path, env=env)

        sent = lab("grade", *FORM, "--budget", "5", "--yes", "--no-wait", "--batch-rows", "10", *QUICK)
        assert (sent.code, "29 rows in flight in batches" in sent.err) == (4, True)
        found = lab("status", "--json").json["batches"]
        assert len(found) == 3
        assert all(Decimal(row["reserved_usd"]) > 0 and row["expires_at"] and row["batch_id"] for row in found)
        assert lab("collect", "--poll-seconds", "0").code == 4
        gone = lab("cancel", found[0]["batch_id"], "--poll-seconds", "0.05")
        assert (gone.code, gone.out) == (4, ""), "a cancel takes the provider up to ten minutes"
        server.advance(2 * 3600)
        done = lab("collect", "--json")
        assert (done.code, done.json["in_flight"]) == (0, 0)
        assert lab("cancel", "--all").code == 1
        lab("grade", *FORM, "--yes", "--no-wait", *QUICK)
        server.advance(2 * 3600)
        assert lab("grade", *FORM, "--yes", *QUICK).code == 0
        check(store, server, 30)


@pytest.mark.parametrize(("number", "command"), [(signal.SIGINT, "grade"), (signal.SIGTERM, "collect")])
def test_a_command_that_is_interrupted_while_a_batch_is_out_says_how_to_collect_or_cancel_it(
    tmp_path: Path, number: signal.Signals, command: str
) -> None:
    with Rehearsal(prices=PRICES, marker=MARKER, key=KEY, batch_seconds=3600) as server:
        store = marked_store(tmp_path, 6, "lab.duckdb")
        (tmp_path / "prices.toml").write_text(LIST)
        env = {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": KEY}
        grade = ["--db", str(store.path), "grade", *FORM, "--budget", "5", "--yes", *QUICK]
        assert call_cli([*grade, "--no-wait"], cwd=tmp_path, env=env).code == 4
        (batch,) = store.query("batches", all=None)
        waits = ["--db", str(store.path), "collect", "--wait", "--poll-seconds", "0.05"]
        seen = len(server.requests_log)
        with subprocess.Popen(
            [sys.executable, "-m", "alpasift", *(grade if command == "grade" else waits)],
            cwd=tmp_path,
            env=cli_environment(env),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=hear_every_signal,
        ) as process:
            while len(server.requests_log) < seen + 4:  # it looks after the batch again and again
                assert process.poll() is None
                time.sleep(0.05)
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert f"Still at the provider, which charges for what it completes of it: {batch['batch_id']} (" in err
    assert f"`alpasift cancel {batch['batch_id']}` cancels it" in err


def test_equal_rows_of_two_datasets_are_paid_once_and_both_scored(lab: Call, server: Rehearsal, tmp_path: Path) -> None:
    store = Store(tmp_path / "lab.duckdb")
    rows = [{**row, "note": "from elsewhere"} for row in marked_rows(30)]
    import_file(store, write_rows(tmp_path / "other.jsonl", rows))
    assert lab("grade", *FORM, "--dataset", "rows", "--budget", "5", "--yes", *QUICK).code == 0
    bill = server.billed_usd()
    assert lab("grade", *FORM, "--dataset", "other", "--yes", *QUICK).code == 0
    assert server.billed_usd() == bill
    found = store.locked_query("select dataset, count(score) from graded_rows group by dataset order by dataset").rows
    assert found == [("other", 30), ("rows", 30)]


def test_scores_land_on_the_rows_of_the_exported_file(lab: Call, tmp_path: Path) -> None:
    lab("grade", *FORM, "--budget", "5", "--yes", *QUICK)
    lab("select", "--min-score", "4", "--name", "kept")
    assert lab("export", "--selection", "kept", "-o", "kept.jsonl").code == 0
    kept = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert kept == [row for i, row in enumerate(marked_rows(30)) if float(expected(30)[i]) >= 4]


def test_the_key_is_nowhere_after_a_run_that_fails(lab: Call, server: Rehearsal, tmp_path: Path) -> None:
    server.misbehave("unauthorized", times=1, where="retrieve")
    failed = lab("grade", *FORM, "--budget", "5", "--yes", *QUICK)
    assert (failed.code, "does not accept the key" in failed.err) == (3, True)
    refused = lab("grade", *FORM, "--yes", *QUICK, env={"OPENAI_API_KEY": KEY + "x"})
    assert refused.code == 3
    for text in (failed.out, failed.err, refused.out, refused.err):
        assert KEY not in text
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
    assert not any(entry.leaked for entry in server.requests_log)


def test_a_database_that_was_copied_does_not_send_until_it_is_adopted_or_forked(
    lab: Call, server: Rehearsal, tmp_path: Path
) -> None:
    assert lab("grade", *FORM, "--budget", "5", "--yes", "--limit", "5", *QUICK).code == 0
    shutil.copy(tmp_path / "lab.duckdb", tmp_path / "copy.duckdb")
    before = len(server.requests_log)
    env = {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": KEY}
    ran = call_cli(["--db", "copy.duckdb", "grade", *FORM, "--yes", *QUICK], cwd=tmp_path, env=env)
    assert ran.code == 1
    assert "ledger adopt" in ran.err
    assert "ledger fork" in ran.err
    assert len(server.requests_log) == before
    assert call_cli(["--db", "copy.duckdb", "ledger", "fork", "--reason", "both go on"], cwd=tmp_path).code == 0
    assert call_cli(["--db", "copy.duckdb", "grade", *FORM, "--yes", *QUICK], cwd=tmp_path, env=env).code == 4
    ran = call_cli(["--db", "copy.duckdb", "grade", *FORM, "--budget", "1", "--yes", *QUICK], cwd=tmp_path, env=env)
    assert ran.code == 0, ran.err
    assert scores(Store(tmp_path / "copy.duckdb")) == expected(30)


# -- by hand ----------------------------------------------------------------------------------------------------


def carried(server: Rehearsal, path: Path) -> list[Path]:
    """Run a request file at the server, as a person would, and bring its result files."""
    import openai

    client = openai.OpenAI(base_url=server.url, api_key=KEY, max_retries=0)
    file = client.files.create(file=path, purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={}
    )
    while batch.status != "completed":
        batch = client.batches.retrieve(batch.id)
    found = []
    for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
        found.append(path.with_name(f"{file_id}.jsonl"))
        found[-1].write_bytes(client.files.content(file_id).content)
    return found


def test_files_that_are_carried_by_hand_are_booked_once(lab: Call, server: Rehearsal, tmp_path: Path) -> None:
    made = lab("batch", "export", "to_carry", *FORM, "--budget", "5", "--yes", "--batch-rows", "20")
    assert made.code == 0, made.err
    files = [Path(line) for line in made.out.splitlines()]
    assert len(files) == 2
    store = Store(tmp_path / "lab.duckdb")
    assert money(store)["reserved_usd"] > 0
    assert lab("grade", *FORM, "--yes", *QUICK).code == 4, "its rows are out and are not asked about"
    assert server.batches() == []
    for file in files:
        for result in carried(server, tmp_path / file):
            assert lab("batch", "import", result).code == 0
            before = money(store)
            repeated = lab("batch", "import", result)
            assert (repeated.code, "nothing changed" in repeated.err) == (0, True)
            assert money(store) == before
    check(store, server, 30)


def test_a_part_of_the_results_says_how_many_rows_lack_one(lab: Call, server: Rehearsal, tmp_path: Path) -> None:
    made = lab("batch", "export", "to_carry", *FORM, "--budget", "5", "--yes", "--limit", "7")
    (result,) = carried(server, tmp_path / made.out.strip())
    part = tmp_path / "part.jsonl"
    part.write_text("".join(result.read_text().splitlines(keepends=True)[:5]))
    ran = lab("batch", "import", part)
    assert (ran.code, "5 replies" in ran.err, "2 rows of the export still have no result" in ran.err) == (
        4,
        True,
        True,
    )
    again = lab("batch", "import", part)
    assert (again.code, "nothing changed" in again.err, "2 rows" in again.err) == (4, True, True)
    assert lab("batch", "import", result).code == 0


def test_results_of_another_ledger_are_not_taken(lab: Call, server: Rehearsal, tmp_path: Path) -> None:
    lab("batch", "export", "mine", *FORM, "--budget", "5", "--yes")
    strange = tmp_path / "strange.jsonl"
    strange.write_text(json.dumps({"custom_id": "0" * 8 + "-0000-0000-0000-" + "0" * 12, "response": None}) + "\n")
    ran = lab("batch", "import", strange)
    assert (ran.code, "holds no answer to a request that this database exported" in ran.err) == (1, True)
    assert money(Store(tmp_path / "lab.duckdb"))["spent_usd"] == 0


def test_files_for_a_machine_of_ones_own_cost_nothing_and_grade_under_its_model(
    lab: Call, server: Rehearsal, tmp_path: Path
) -> None:
    made = lab("batch", "export", "own", "--grader", "openai_batch:my-model", "--executed-by", "vllm")
    assert made.code == 0, made.err
    path = tmp_path / made.out.strip()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {line["body"]["model"] for line in lines} == {"my-model"}
    result = tmp_path / "results.jsonl"
    answers = []
    for line in lines:
        said = line["body"]["messages"][-1]["content"].split("SCORE=")[1].split()[0]
        body = {
            "model": "my-model",
            "usage": {"prompt_tokens": 5, "completion_tokens": 3},
            "choices": [{"message": {"content": json.dumps({"score": float(said)})}, "finish_reason": "stop"}],
        }
        response = {"status_code": 200, "request_id": "vllm-1", "body": body}
        answers.append({"id": "vllm-1", "custom_id": line["custom_id"], "response": response, "error": None})
    result.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    wrong = lab("batch", "import", result, "--executed-by", "openai")
    assert (wrong.code, "an export for vllm" in wrong.err) == (1, True)
    assert lab("batch", "import", result, "--executed-by", "vllm").code == 0
    store = Store(tmp_path / "lab.duckdb")
    assert scores(store) == expected(30)
    assert store.query("ledger")[0]["spent_usd"] == 0


# -- a rehearsal ------------------------------------------------------------------------------------------------


def test_a_rehearsal_sends_nothing_and_keeps_nothing(lab: Call, server: Rehearsal, tmp_path: Path) -> None:
    before = (tmp_path / "lab.duckdb").read_bytes()
    ran = lab("grade", *FORM, "--budget", "5", "--rehearse", "--quiet", env={"OPENAI_BASE_URL": ""})
    assert ran.code == 0, ran.err
    assert "$0.00" in ran.err
    assert "this was a rehearsal with 30 of the 30 rows" in ran.err and "Its scores are made up" in ran.err
    assert "its dollars are too low: the local server counts words" in ran.err
    assert f"`alpasift plan {FORM[0]} {FORM[1]}` has the expected cost" in ran.err
    assert "at the threshold of" not in ran.err
    part = lab("grade", *FORM, "--budget", "5", "--rehearse", "--quiet", "--limit", "4", env={"OPENAI_BASE_URL": ""})
    assert "that is for 4 of the 30 rows still to grade (--limit 4)" in part.err, part.err
    assert "this was a rehearsal with 4 of the 30 rows" in part.err
    assert (tmp_path / "lab.duckdb").read_bytes() == before
    assert server.requests_log == []


def test_a_rehearsal_refuses_another_server_and_a_grader_that_asks_none(lab: Call, server: Rehearsal) -> None:
    ran = lab("grade", *FORM, "--budget", "5", "--rehearse")
    assert (ran.code, "starts its own server" in ran.err) == (1, True)
    ran = lab("grade", "--grader", "rules", "--rehearse", env={"OPENAI_BASE_URL": ""})
    assert (ran.code, "nothing to rehearse" in ran.err) == (1, True)
    assert server.requests_log == []


# -- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "env", "code", "says"),
    [
        ((*FORM, "--budget", "5"), {"OPENAI_BASE_URL": "https://192.0.2.1/v1"}, 3, "price"),
        ((*FORM, "--budget", "5"), {"OPENAI_API_KEY": "", "OPENAI_BASE_URL": ""}, 3, "no key; set OPENAI_API_KEY"),
        ((*FORM, "--budget", "5"), {"OPENAI_API_KEY": "sk-wrong-0123456789"}, 3, "does not accept the key (401"),
        (("--grader", "openai_batch:gpt-9", "--budget", "5"), {}, 3, 'model = "gpt-9"'),
        (("--grader", "openai_batch", "--budget", "5"), {}, 1, "has no model"),
        ((*FORM, "--budget", "5", "--base-url", "http://example.com/v1"), {}, 1, "Use https"),
        ((*FORM, "--budget", "5", "--base-url", "nonsense"), {}, 1, "is not the address of a server"),
        ((*FORM, "--budget", "0"), {}, 4, "nothing was sent"),
        ((*FORM, "--budget", "five"), {}, 2, "'five' is not an amount of dollars"),
        (FORM, {}, 2, "no budget is set"),
        (("--grader", "rules", "--poll-seconds", "1"), {}, 1, "the grader rules has no setting --poll-seconds"),
    ],
)
def test_bad_input_sends_nothing(
    lab: Call, server: Rehearsal, arguments: tuple[str, ...], env: dict[str, str], code: int, says: str
) -> None:
    ran = lab("grade", *arguments, "--yes", "--quiet", env=env)
    assert (ran.code, says in ran.err) == (code, True), ran.err
    assert "Traceback" not in ran.err
    assert [entry for entry in server.requests_log if entry.method == "POST"] == []


@pytest.mark.parametrize(
    ("change", "says"),
    [(("0.15", "-1"), "input = '-1'"), (("0.15", "150000"), "input"), (("date = 2026-11-01", ""), "date")],
)
def test_a_bad_price_file_sends_nothing(
    lab: Call, server: Rehearsal, tmp_path: Path, change: tuple[str, str], says: str
) -> None:
    (tmp_path / "prices.toml").write_text(LIST.replace(*change, 1))
    ran = lab("grade", *FORM, "--budget", "5", "--yes")
    assert ran.code in (1, 3)
    assert "prices.toml" in ran.err
    assert says in ran.err
    assert [entry for entry in server.requests_log if entry.method == "POST"] == []


def test_without_a_terminal_and_without_yes_nothing_is_sent(lab: Call, server: Rehearsal) -> None:
    ran = lab("grade", *FORM, "--budget", "5")
    assert (ran.code, "add --yes" in ran.err) == (2, True)
    assert server.requests_log == []


def test_a_server_that_answers_with_a_web_page_gets_nothing(tmp_path: Path) -> None:
    posts = []

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<html>a login page</html>")

        def do_POST(self) -> None:
            posts.append(self.path)
            self.do_GET()

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    page = http.server.HTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=page.serve_forever, daemon=True).start()
    call_cli(["--db", "w.duckdb", "import", EXAMPLES], cwd=tmp_path)
    env = {"OPENAI_BASE_URL": f"http://127.0.0.1:{page.server_port}/v1", "OPENAI_API_KEY": KEY}
    for grader in ("openai_batch", "openai_chat"):
        arguments = ["--db", "w.duckdb", "grade", "--grader", f"{grader}:{MODEL}", "--budget", "5", "--yes"]
        ran = call_cli(arguments, cwd=tmp_path, env=env)
        assert (ran.code, "does not answer like the API" in ran.err) == (3, True), ran.err
    page.shutdown()
    assert posts == []
