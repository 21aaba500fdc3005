"""What a server sends that it should not: each odd answer costs itself alone, and nothing of it blocks the database."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpasift.batcher.engine.collect import groups_in_flight
from alpasift.batcher.engine.manual import export, import_results
from alpasift.batcher.engine.run import Run
from alpasift.batcher.store import Store
from alpasift.batcher.tasks.grade import Grade
from alpasift.graders import open_backend
from alpasift.graders.api.keys import clean, without_key
from alpasift.graders.api.result_files import ResultsFound, read_results
from alpasift.graders.api.server_text import safe_value
from alpasift.graders.api.wire_format import reply_of
from alpasift.graders.prompts.rubric import load_rubric
from batch_harness import MODEL, key, marked_store, money
from conftest import Ran, call_cli
from test_openai_chat import Plain, plain_run

HALF = "\ud83d"
SECRET = "sk-lab-Qw7rTz0pLm93vXcB"
USAGE = {"prompt_tokens": 9, "completion_tokens": 1}


def answer(text: Any = "4", **more: Any) -> dict[str, Any]:
    first = {"message": {"content": text}, "finish_reason": "stop", **more.pop("choice", {})}
    return {"id": "c", "model": "m-1", "choices": [first], "usage": USAGE, **more}


def candidates(found: Any) -> dict[str, Any]:
    return {"choice": {"logprobs": {"content": [{"token": "4", "top_logprobs": found}]}}}


ODD = {
    "candidates are a number": answer(**candidates(5)),
    "candidates are true": answer(**candidates(True)),
    "candidates are text": answer(**candidates("4")),
    "a log-probability of 400 digits": answer(**candidates([{"token": "4", "logprob": -(10**400)}])),
    "a log-probability that is none": answer(**candidates([{"token": "4", "logprob": float("nan")}])),
    "half a pair in a candidate": answer(**candidates([{"token": HALF, "logprob": -0.5}])),
    "half a pair in the text": answer(f"4{HALF}"),
    "half a pair in the model": answer(model=f"m-{HALF}"),
    "half a pair in the id": answer(id=f"c{HALF}"),
    "half a pair in the ending": answer(choice={"finish_reason": HALF}),
    "half a pair in the usage": answer(usage={**USAGE, HALF: HALF}),
    "NUL everywhere": answer("4\0", model="m\0", id="\0", usage={**USAGE, "\0": "\0"}),
    "a model of a megabyte": answer(model="m" * 1_000_000),
    "an id that is an object": answer(id={"a": [1]}),
    "a log that is a list": answer(choice={"logprobs": [1]}),
    "usage that nests": answer(usage={**USAGE, "a": json.loads("[" * 300 + "]" * 300)}),
    "a count of 400 digits": answer(usage={**USAGE, "total_tokens": 10**400}),
}
"""Bodies whose money is proven, so each is an answer."""
UNPROVEN = {
    "no object": [1],
    "tokens of 400 digits": answer(usage={"prompt_tokens": 10**400, "completion_tokens": 1}),
    "tokens as text": answer(usage={"prompt_tokens": f"9{HALF}", "completion_tokens": 1}),
    "usage that is text": answer(usage=HALF),
}


def look(store: Store, cwd: Path) -> None:
    """Every look at the database works."""
    for command in (
        "status",
        "runs",
        "scores",
        "ledger",
        "query predictions",
        "ledger --by model",
        "ledger unresolved",
    ):
        ran: Ran = call_cli(["--db", store.path, *command.split()], cwd=cwd)
        assert ran.code == 0 and "bug" not in ran.err and "Malformed" not in ran.err, (command, ran)


@pytest.mark.parametrize("body", [*ODD.values(), *UNPROVEN.values()], ids=[*ODD, *UNPROVEN])
def test_an_odd_body_becomes_a_reply_that_any_reader_of_json_takes(body: Any) -> None:
    reply = reply_of("a", "k", "r", body)
    parts = [reply.request_id, reply.text, reply.model, reply.usage, reply.logprobs, reply.finish_reason, reply.raw]
    written = json.dumps(parts, allow_nan=False)
    json.loads(written)
    assert written.isascii() and "\\ud83d" not in written.replace("\\\\ud83d", "") and "\\u0000" not in written
    assert len(written) < 30_000
    assert reply.outcome == ("unknown" if body == UNPROVEN["no object"] else "answered")


def test_call_by_call_one_odd_answer_costs_itself_and_the_others_are_graded(tmp_path: Path) -> None:
    bodies = [json.dumps(body).encode() for body in (*ODD.values(), *UNPROVEN.values(), answer("3"))]
    rows = len(bodies) + 2
    with key(), Plain((404, b"{}"), [(200, {}, body) for body in bodies]) as plain:
        store, run = plain_run(tmp_path, plain, rows, in_flight=1, allow_drift=True)
        run.backend.pauses = (0.0,) * 9  # type: ignore[attr-defined]
        with run:
            run.go()
        plain.server_close()
    found = dict(store.locked_query("select outcome, count(*) from replies group by 1").rows)
    assert found["unknown"] == 1
    assert found["answered"] >= rows - 2  # what says nothing is asked once more
    now = money(store)
    assert now["reserved_usd"] == 0
    assert now["spent_usd"] == Decimal(10) / 10**6 * (
        found["answered"] - 3
    )  # three answers name no usage that can be believed
    assert store.locked_query("select count(*) from graded where score is not null").rows[0][0] >= len(ODD)
    look(store, tmp_path)


def exported(folder: Path, rows: int) -> tuple[Store, Path]:
    store = marked_store(folder, rows)
    version = str(store.locked_query("select version_id from dataset_versions").rows[0][0])
    backend = open_backend(f"openai_batch:{MODEL}", {})
    with Run(store, Grade(load_rubric("accuracy")), backend, version, budget=Decimal(5)) as run:
        made = export(run, folder / "carried")
    return store, made.files[0]


def result_line(custom_id: str, body: Any) -> dict[str, Any]:
    response = {"status_code": 200, "request_id": "q", "body": body}
    return {"id": "b", "custom_id": custom_id, "response": response, "error": None}


def test_one_odd_line_of_a_result_file_leaves_the_others_to_be_read(tmp_path: Path) -> None:
    bodies = [*ODD.values(), *UNPROVEN.values(), *[answer("3")] * 5]
    with key():
        store, request_file = exported(tmp_path, len(bodies) + 3)
        ids = [json.loads(line)["custom_id"] for line in request_file.read_text().splitlines()]
        lines = [json.dumps(result_line(i, body)) for i, body in zip(ids, bodies, strict=False)]
        lines += [
            json.dumps(result_line(ids[-1] + HALF, answer())),
            json.dumps(result_line(HALF, answer())),
            json.dumps({**result_line(ids[-1], answer()), "response": {"status_code": 10**400, "body": {}}}),
            json.dumps({**result_line(ids[-2], answer()), "response": None, "error": {"code": HALF, "message": "\0"}}),
            "[" * 100_000,
            '{"custom_id": ' + "9" * 5000 + "}",
        ]
        result = tmp_path / "result.jsonl"
        result.write_text("\n".join(lines) + "\n")
        for _ in range(2):
            import_results(store, result)
        assert groups_in_flight(store)  # one row is in no line
        import_results(store, result, last=True)
    assert store.locked_query("select count(*) from graded where score = 3").rows[0][0] == 5
    assert store.locked_query("select count(*) from graded where score is not null").rows[0][0] >= len(ODD)
    assert money(store)["reserved_usd"] == 0
    look(store, tmp_path)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=5), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(_JSON, st.sampled_from(["choices", "usage", "model", "id", "logprobs", "message", "top_logprobs", "error"]))
def test_whatever_stands_in_a_field_a_line_is_read_or_has_a_reason(value: Any, name: str) -> None:
    body = answer(**candidates(value)) if name == "top_logprobs" else answer(**{name: value})
    if name in ("logprobs", "message"):
        body = answer(choice={name: value})
    line = {**result_line("k", body), **({"error": value, "response": None} if name == "error" else {})}
    found = ResultsFound({"k": None})
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"odd-{os.getpid()}.jsonl"
    path.write_text(json.dumps(line) + "\n")
    try:
        replies = [reply for piece in read_results(path, "a", found) for reply in piece]
    finally:
        path.unlink()
    assert len(replies) == 1
    assert replies[0].outcome == "answered" or replies[0].error
    json.dumps([replies[0].usage, replies[0].logprobs, replies[0].model], allow_nan=False)


def test_a_value_of_a_servers_is_kept_as_it_is_where_nothing_is_odd_about_it() -> None:
    value = {
        "prompt_tokens": 9,
        "details": {"cached_tokens": 0, "share": 0.5},
        "tier": "default",
        "x": None,
        "y": [True],
    }
    assert safe_value(value) == value


# -- databases of an earlier release ------------------------------------------------------------------------------


@pytest.fixture
def poisoned(tmp_path: Path) -> Store:
    """A database as a release before this one left it: a snapshot and a message with half a surrogate pair in them."""
    with key(), Plain((404, b"{}"), [(200, {}, json.dumps(answer()).encode())]) as plain:
        store, run = plain_run(tmp_path, plain, 3)
        with run:
            run.go()
        plain.server_close()
    with store.transaction() as con:
        bad = json.dumps({"snapshot": HALF, "says": HALF})
        con.execute("update attempt_steps set facts = $bad where facts like '%snapshot%'", {"bad": bad})
        assert con.execute("select count(*) from attempt_steps where facts = $bad", {"bad": bad}).fetchall() == [(1,)]
        con.execute("update run_ends set facts = $bad", {"bad": bad})
        con.execute("update replies set usage = $bad where key = (select min(key) from replies)", {"bad": bad})
    return store


def test_a_database_that_holds_half_a_surrogate_pair_works_again(poisoned: Store, tmp_path: Path) -> None:
    look(poisoned, tmp_path)
    with key(), Plain((404, b"{}"), [(200, {}, json.dumps(answer("5")).encode())]) as plain:
        options = {"base_url": plain.url, "prices": str(tmp_path / "prices.toml")}
        backend = open_backend(f"openai_chat:{MODEL}", options)
        version = str(poisoned.locked_query("select version_id from dataset_versions").rows[0][0])
        with Run(poisoned, Grade(load_rubric("helpfulness")), backend, version, budget=Decimal(5)) as run:
            assert run.go().replied == 3
        plain.server_close()
    look(poisoned, tmp_path)


# -- the key --------------------------------------------------------------------------------------------------------


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    return SECRET


def forms(secret: str) -> list[str]:
    """The key as it is, and in base64 wherever it may stand in what was encoded."""
    encoded = [
        base64.b64encode(f"{before}{secret}{after}".encode()) for before in ("", "a", "ab") for after in ("", "z")
    ]
    encoded += [base64.urlsafe_b64encode(f"Bearer {secret}".encode()), secret.encode().hex().upper().encode()]
    return [secret, quote(secret, safe=""), secret.upper(), *(form.decode() for form in encoded)]


def test_the_key_and_its_base64_are_taken_out_of_a_text_and_the_rest_stays(secret: str) -> None:
    for form in forms(secret):
        scrubbed = without_key(f"before {form} after")
        assert scrubbed.startswith("before ") and scrubbed.endswith(" after") and "[key]" in scrubbed
        assert secret[4:-4] not in scrubbed
        assert base64.b64encode(secret.encode()).decode()[4:-6] not in scrubbed
    assert clean("a plain sentence\0 with nothing") == "a plain sentence with nothing"


def test_a_server_that_echoes_the_key_leaves_no_trace_of_it(
    secret: str, tmp_path: Path, alpasift: Callable[..., Ran]
) -> None:
    bodies: list[tuple[int, dict[str, str], bytes]] = []
    for form in forms(secret)[:2]:
        for body in (
            answer(f"4\nsince {form}"),
            answer(model=form),
            answer(choice={"finish_reason": form}),
            answer(id=form),
            answer(usage={**USAGE, form: form}),
            answer(**candidates([{"token": form, "logprob": -1.0}])),
            answer(id=None),
            {"error": {"message": f"this is too long: maximum context length {form}", "code": "x"}},
            {"error": {"message": "no", "code": f"context_length {form}"}},
        ):
            bodies.append((400 if "error" in body else 200, {"x-request-id": form}, json.dumps(body).encode()))
    with Plain((404, b"{}"), bodies) as plain:
        store, run = plain_run(tmp_path, plain, len(bodies), in_flight=1, allow_drift=True)
        with run:
            run.go()
        plain.server_close()
    held = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.name.startswith("t.duckdb"))
    shown = "".join(alpasift("--db", store.path, *command).out for command in (("status",), ("query", "runs")))
    rows = str(store.locked_query("select * from replies").rows)
    for form in forms(secret):
        assert form.encode() not in held and form not in shown and form not in rows
    assert "[key]" in rows


@pytest.mark.parametrize(
    "echo",
    [
        "your key is k3y%2Fwith%2Bsigns%3D%3Dq&limit=4",
        '"Bearer k3y\\/with+signs==q"',
        "KEY K3Y/WITH+SIGNS==Q",
        "k3y%2fwith%2bsigns==q",
    ],
)
def test_a_key_with_signs_is_taken_out_as_urls_and_json_write_it(echo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k3y/with+signs==q")
    for scrubbed in (without_key(f"before {echo} after"), clean(echo)):
        assert "[key]" in scrubbed and "signs" not in scrubbed.lower()


def test_of_several_choices_the_first_by_its_index_is_the_answer() -> None:
    usage = {"prompt_tokens": 90, "completion_tokens": 2}
    choices = [
        None,
        {"index": 1, "message": {"content": "2"}, "finish_reason": "length"},
        {"index": 0, "message": {"content": "4"}, "finish_reason": "stop"},
    ]
    reply = reply_of("a", "k", "r", {"choices": choices, "usage": usage})
    assert (reply.text, reply.finish_reason) == ("4", "stop")


def test_a_result_file_that_was_charged_twice_ends_with_its_alarm(tmp_path: Path) -> None:
    with key():
        store, request_file = exported(tmp_path, 3)
        ids = [json.loads(line)["custom_id"] for line in request_file.read_text().splitlines()]
        again = result_line(ids[0], answer("2"))
        again["response"]["request_id"] = "another"
        lines = [*(result_line(i, answer()) for i in ids), again]
        result = tmp_path / "result.jsonl"
        result.write_text("".join(json.dumps(line) + "\n" for line in lines))
        for _ in range(2):
            ran = call_cli(["--db", store.path, "batch", "import", result], cwd=tmp_path)
            assert ran.code == 1
            assert "alarm: $" in ran.err and "row 0" in ran.err and "ledger acknowledge --reason" in ran.err
        assert call_cli(["--db", store.path, "ledger", "acknowledge", "--reason", "seen"], cwd=tmp_path).code == 0
        assert call_cli(["--db", store.path, "batch", "import", result], cwd=tmp_path).code == 0
    assert store.locked_query("select count(*) from graded where score = 4").rows[0][0] == 3
