"""The rehearsal server, seen through the real client: right as documented, wrong on request, and its bill exact."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpasift.graders.rehearsal import faults
from alpasift.graders.rehearsal.answers import words_in
from alpasift.graders.rehearsal.server import Event, Rehearsal
from conftest import ROOT, cli_environment

KEY = "sk-rehearsal-0123456789"
MODEL = "gpt-4.1-nano"
URL = "/v1/chat/completions"


@pytest.fixture
def make() -> Iterator[Callable[..., Rehearsal]]:
    """Servers as a test wants them; none may have failed by itself in the end."""
    servers = []

    def call(**settings: Any) -> Rehearsal:
        servers.append(Rehearsal(key=KEY, **settings).start())
        return servers[-1]

    yield call
    for server in servers:
        server.stop()
        assert server.errors == []


@pytest.fixture
def server(make: Callable[..., Rehearsal]) -> Rehearsal:
    return make()


@pytest.fixture
def client(server: Rehearsal) -> Any:
    return connect(server)


HTTP = openai.DefaultHttpxClient()
"""One for all: making one takes longer than most tests."""


def connect(server: Rehearsal, **settings: Any) -> Any:
    given = {"base_url": server.url, "api_key": KEY, "max_retries": 0, "timeout": 10.0, "http_client": HTTP, **settings}
    return openai.OpenAI(**given)


def body(text: str = "Rate this.", **extra: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 8, **extra}


def line(custom_id: str, text: str = "Rate this.", **extra: Any) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": URL, "body": body(text, **extra)}) + "\n"


def lines(count: int, **extra: Any) -> str:
    return "".join(line(f"q{i}", f"Row {i} it is.", **extra) for i in range(count))


def upload(client: Any, text: str, name: str = "attempt.jsonl") -> Any:
    return client.files.create(file=(name, text.encode()), purpose="batch")


def create(client: Any, text: str, **extra: Any) -> Any:
    return create_from(client, upload(client, text).id, **extra)


def create_from(client: Any, file_id: str, **extra: Any) -> Any:
    return client.batches.create(input_file_id=file_id, endpoint=URL, completion_window="24h", **extra)


def finished(client: Any, text: str, **extra: Any) -> Any:
    """A batch of that file, after one look at it."""
    return client.batches.retrieve(create(client, text, **extra).id)


def raw_rows(client: Any, file_id: str | None) -> list[bytes]:
    return client.files.content(file_id).content.splitlines() if file_id else []


def rows(client: Any, file_id: str | None) -> list[dict[str, Any]]:
    return [json.loads(row) for row in raw_rows(client, file_id)]


def counts(batch: Any) -> tuple[int, int, int]:
    return batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed


def schema(**properties: Any) -> dict[str, Any]:
    strict = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "grade", "strict": True, "schema": strict}}


# -- what works ---------------------------------------------------------------------------------------------------


def test_a_batch_goes_from_a_file_to_results_that_stand_in_another_order(server: Rehearsal, client: Any) -> None:
    file = upload(client, lines(30), "ledger-attempt.jsonl")
    assert (file.purpose, file.filename, file.bytes) == ("batch", "ledger-attempt.jsonl", len(lines(30)))
    batch = create_from(client, file.id, metadata={"ledger": "l", "attempt": "a"})
    assert (batch.status, batch.model, batch.input_file_id) == ("validating", None, file.id)
    assert batch.usage is not None and batch.usage.total_tokens == 0
    batch = client.batches.retrieve(batch.id)
    assert (batch.status, batch.model) == ("completed", "gpt-4.1-nano-2025-04-14")
    assert counts(batch) == (30, 30, 0)
    assert batch.metadata == {"ledger": "l", "attempt": "a"}
    assert batch.error_file_id is None
    found = rows(client, batch.output_file_id)
    ids = [row["custom_id"] for row in found]
    assert sorted(ids) == sorted(f"q{i}" for i in range(30))
    assert ids != [f"q{i}" for i in range(30)]
    for row in found:
        assert row["error"] is None and row["response"]["status_code"] == 200
        answer = row["response"]["body"]
        assert answer["model"] == "gpt-4.1-nano-2025-04-14"
        assert float(answer["choices"][0]["message"]["content"]) in [i / 2 for i in range(11)]
        assert answer["usage"]["prompt_tokens"] == 3 + 4  # three a message, and "Row 7 it is."
    assert batch.usage is not None and batch.usage.input_tokens == 30 * 7
    assert batch.usage.output_tokens == sum(row["response"]["body"]["usage"]["completion_tokens"] for row in found)
    assert server.executions() == {f"q{i}": 1 for i in range(30)}


def test_files_are_listed_paged_described_and_deleted(client: Any) -> None:
    ids = [upload(client, line("q"), f"{i}.jsonl").id for i in range(5)]
    assert [f.id for f in client.files.list(purpose="batch", order="asc", limit=2)] == ids
    assert [f.id for f in client.files.list(limit=2)] == ids[::-1]
    assert [*client.files.list(purpose="batch_output")] == []
    assert client.files.retrieve(ids[0]).filename == "0.jsonl"
    assert client.files.content(ids[0]).text == line("q")
    assert client.files.delete(ids[0]).deleted
    assert [f.id for f in client.files.list(order="asc")] == ids[1:]
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(ids[0])


def test_batches_are_listed_newest_first_in_pages(client: Any) -> None:
    ids = [create(client, line("q")).id for _ in range(5)]
    page = client.batches.list(limit=2)
    assert [b.id for b in page.data] == ids[:2:-1]
    assert (page.has_more, page.last_id) == (True, ids[3])
    assert [b.id for b in client.batches.list(limit=2)] == ids[::-1]


def test_a_part_of_a_result_file_can_be_asked_for(server: Rehearsal, client: Any) -> None:
    file_id = finished(client, lines(3)).output_file_id
    whole = client.files.content(file_id).content
    part = client.files.content(file_id, extra_headers={"Range": "bytes=10-"})
    assert part.response.status_code == 206
    assert part.content == whole[10:]
    assert part.response.headers["content-range"] == f"bytes 10-{len(whole) - 1}/{len(whole)}"


def test_a_large_upload_arrives_byte_by_byte(client: Any) -> None:
    text = "".join(f"\r\n--{i:x}\r\n" * 40 for i in range(20_000))  # much that looks like the end of a part
    file = upload(client, text)
    assert file.bytes == len(text) > 5_000_000
    assert client.files.content(file.id).content == text.encode()


def test_only_jsonl_for_batches_is_taken(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match=r"Must be \.jsonl"):
        upload(client, line("q"), "attempt.json")
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.files.create(file=("a.jsonl", b"{}"), purpose="fine-tune")


def test_a_batch_moves_by_the_clock_of_the_server(make: Callable[..., Rehearsal]) -> None:
    server = make(batch_seconds=1000)
    client = connect(server)
    batch = create(client, lines(20))
    seen = []
    for _ in range(5):
        batch = client.batches.retrieve(batch.id)
        seen.append((batch.status, counts(batch)))
        server.advance(230)
    assert seen == [
        ("validating", (0, 0, 0)),
        ("in_progress", (20, 3, 0)),  # 130 of 800 seconds
        ("in_progress", (20, 9, 0)),
        ("in_progress", (20, 14, 0)),
        ("finalizing", (20, 20, 0)),
    ]
    assert server.executions().total() == 20
    batch = client.batches.retrieve(batch.id)
    assert (batch.status, batch.completed_at) == ("completed", batch.created_at + 1000)
    answer = client.batches.with_raw_response.list()
    date = answer.headers["date"]
    assert abs(httpx2_date(date) - server.now()) < 2
    assert server.now() - time.time() == pytest.approx(1150, abs=1)


def httpx2_date(text: str) -> float:
    from email.utils import parsedate_to_datetime

    return parsedate_to_datetime(text).timestamp()


def test_a_batch_of_more_than_a_day_expires_with_what_was_done(make: Callable[..., Rehearsal]) -> None:
    server = make(batch_seconds=200_000)
    client = connect(server)
    batch = create(client, lines(10))
    server.advance(90_000)
    batch = client.batches.retrieve(batch.id)
    assert (batch.status, batch.expired_at) == ("expired", batch.expires_at)
    done, rest = rows(client, batch.output_file_id), rows(client, batch.error_file_id)
    assert (len(done), len(rest)) == (4, 6)  # 66,400 of 160,000 seconds
    assert {row["error"]["code"] for row in rest} == {"batch_expired"}
    assert all(row["response"] is None for row in rest)
    assert server.executions() == {row["custom_id"]: 1 for row in done}


def test_a_cancelled_batch_keeps_what_was_done(make: Callable[..., Rehearsal]) -> None:
    server = make(batch_seconds=1000)
    client = connect(server)
    batch = create(client, lines(10))
    server.advance(500)
    assert client.batches.cancel(batch.id).status == "cancelling"
    assert client.batches.retrieve(batch.id).status == "cancelling"
    server.advance(60)
    batch = client.batches.retrieve(batch.id)
    assert (batch.status, counts(batch)) == ("cancelled", (10, 5, 5))
    assert {row["error"]["code"] for row in rows(client, batch.error_file_id)} == {"batch_cancelled"}
    assert server.executions() == {row["custom_id"]: 1 for row in rows(client, batch.output_file_id)}
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


def test_a_batch_that_is_cancelled_at_once_costs_nothing(server: Rehearsal, client: Any) -> None:
    batch = create(client, lines(3))
    client.batches.cancel(batch.id)
    batch = client.batches.retrieve(batch.id)
    assert (batch.status, batch.output_file_id, counts(batch)) == ("cancelled", None, (3, 0, 3))
    assert server.billed_usd() == 0


def test_a_deleted_input_fails_a_batch_and_does_not_stop_one_that_was_created(server: Rehearsal, client: Any) -> None:
    file = upload(client, lines(2))
    before = create_from(client, file.id)
    client.files.delete(file.id)
    after = client.batches.retrieve(create_from(client, file.id).id)
    assert client.batches.retrieve(before.id).status == "completed"
    assert after.status == "failed"
    assert "Cannot find file" in after.errors.data[0].message
    with pytest.raises(openai.BadRequestError, match="Cannot find file"):
        create_from(client, "file-none")
    assert server.executions().total() == 2


def test_files_expire_after_thirty_days(server: Rehearsal, client: Any) -> None:
    batch = finished(client, line("q"))
    server.advance(31 * 86_400)
    assert [*client.files.list()] == []
    with pytest.raises(openai.NotFoundError):
        client.files.content(batch.output_file_id)


def test_a_question_is_answered_at_once_too(server: Rehearsal, client: Any) -> None:
    first = client.chat.completions.create(**body("Rate this text."))
    assert (first.model, first.choices[0].finish_reason) == ("gpt-4.1-nano-2025-04-14", "stop")
    assert client.chat.completions.create(**body("Rate this text.")).choices == first.choices
    assert first.usage is not None and first.usage.prompt_tokens == 3 + 3
    server.set_snapshot(MODEL, "gpt-4.1-nano-2026-10-01")
    assert client.chat.completions.create(**body("Rate this text.")).model == "gpt-4.1-nano-2026-10-01"
    assert client.chat.completions.create(**body(model="gpt-4.1-nano-2025-04-14")).model == "gpt-4.1-nano-2025-04-14"


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({"score": {"type": "number", "enum": [1, 2, 3.5]}}, {"score": 3.5}),
        ({"score": {"type": "string", "enum": ["1", "3.5"]}}, {"score": "3.5"}),
        ({"score": {"type": "number"}}, {"score": 3.5}),
        ({"why": {"type": "string"}, "score": {"type": "integer"}}, {"why": "because", "score": 4}),
    ],
)
def test_a_marked_score_comes_back_in_the_schema_that_was_asked_for(
    make: Callable[..., Rehearsal], properties: dict[str, Any], expected: dict[str, Any]
) -> None:
    client = connect(make(marker=r"quality=([\d.]+)"))
    asked = body("A row. quality=3.5", max_tokens=40, response_format=schema(**properties))
    answer = client.chat.completions.create(**asked)
    assert json.loads(answer.choices[0].message.content or "") == expected
    plain = client.chat.completions.create(**body("A row. quality=3.5"))
    assert plain.choices[0].message.content == "3.5"


def test_probabilities_come_where_they_are_asked_for(client: Any) -> None:
    answer = client.chat.completions.create(**body(logprobs=True, top_logprobs=5))
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert len(logprobs.content[0].top_logprobs) == 5
    assert logprobs.content[0].top_logprobs[0].token == logprobs.content[0].token


def test_the_output_cap_holds_and_reasoning_counts_inside_it(make: Callable[..., Rehearsal]) -> None:
    client = connect(make(marker=r"quality=([\d.]+)"))
    cut = client.chat.completions.create(**body("quality=3.5", max_tokens=2))
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("3.", "length")
    assert cut.usage is not None and cut.usage.completion_tokens == 2
    thinking = {"model": "o4-mini", "messages": [{"role": "user", "content": "quality=3.5"}]}
    whole = client.chat.completions.create(**thinking, max_completion_tokens=80)
    assert whole.choices[0].message.content == "3.5"
    assert whole.usage is not None and whole.usage.completion_tokens == 64 + 3
    empty = client.chat.completions.create(**thinking, max_completion_tokens=50)
    assert (empty.choices[0].message.content, empty.choices[0].finish_reason) == ("", "length")
    assert empty.usage is not None and empty.usage.completion_tokens == 50
    assert empty.usage.completion_tokens_details is not None
    assert empty.usage.completion_tokens_details.reasoning_tokens == 50


@given(st.text(max_size=300))
def test_a_prompt_is_never_counted_higher_than_its_words_or_half_its_bytes(text: str) -> None:
    assert words_in(text) <= min(len(text.split()), len(text.encode("utf-8", "surrogatepass")) // 2)


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code", "number"),
    [
        (line("a") + "{not json\n", "invalid_json_line", 2),
        (line("a") + line("b") + line("a"), "duplicate_custom_id", 3),
        (line("a") + line("b", model="gpt-4o-mini"), "mismatched_model", 2),
        ("\n", "empty_file", None),
        (line("a").replace("chat/completions", "embeddings"), "url_mismatch", 1),
        (line("a").replace("chat/completions", "nothing"), "invalid_url", 1),
        (line("a", model="gpt-nothing"), "model_not_found", 1),
        ('{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}\n', "missing_required_parameter", 1),
    ],
)
def test_a_batch_whose_file_is_wrong_fails_with_the_line_and_costs_nothing(
    server: Rehearsal, client: Any, text: str, code: str, number: int | None
) -> None:
    batch = finished(client, text)
    assert (batch.status, batch.output_file_id, batch.error_file_id) == ("failed", None, None)
    assert [(error.code, error.line) for error in batch.errors.data] == [(code, number)]
    assert server.billed_usd() == 0


def test_more_than_fifty_thousand_lines_are_too_many(client: Any) -> None:
    batch = finished(client, "{}\n" * 50_001)
    assert (batch.status, batch.errors.data[0].code) == ("failed", "too_many_tasks")


def test_a_full_queue_fails_a_batch_until_others_have_ended(make: Callable[..., Rehearsal]) -> None:
    server = make(enqueued_limit=150, batch_seconds=1000)  # a batch of 20 lines has 140 tokens
    client = connect(server)
    first, second = create(client, lines(20)), create(client, lines(20))
    server.advance(200)
    assert client.batches.retrieve(first.id).status == "in_progress"
    failed = client.batches.retrieve(second.id)
    assert failed.status == "failed" and failed.errors is not None and failed.errors.data is not None
    assert failed.errors.data[0].code == "token_limit_exceeded"
    assert failed.errors.data[0].message == (
        "Enqueued token limit reached for gpt-4.1-nano in organization org-rehearsal. Limit: 150 enqueued tokens. "
        "Please try again once some in_progress batches have been completed."
    )
    server.advance(1000)
    third = create(client, lines(20))
    server.advance(200)
    assert client.batches.retrieve(third.id).status == "in_progress"


@pytest.mark.parametrize(
    ("extra", "status", "code", "param"),
    [
        ({"model": "gpt-5-nano"}, 400, "unsupported_parameter", "max_tokens"),
        ({"model": "gpt-5-nano", "max_tokens": None, "temperature": 0}, 400, "unsupported_value", "temperature"),
        ({"model": "o3", "max_tokens": None, "logprobs": True}, 400, "unsupported_parameter", "logprobs"),
        (
            {"model": "gpt-5", "max_tokens": None, "reasoning_effort": "none"},
            400,
            "unsupported_value",
            "reasoning_effort",
        ),
        (
            {"model": "gpt-6.1-sol", "max_tokens": None, "reasoning_effort": "none"},
            400,
            "unsupported_value",
            "reasoning_effort",
        ),
        ({"model": "gpt-5.2", "max_tokens": None, "temperature": 0}, 400, "unsupported_value", "temperature"),
        ({"top_logprobs": 3}, 400, "invalid_value", "top_logprobs"),
        ({"reasoning_effort": "low"}, 400, None, None),
        ({"model": "gpt-nothing"}, 404, "model_not_found", "model"),
    ],
)
def test_a_parameter_that_the_model_does_not_take_is_refused_now_and_line_by_line(
    server: Rehearsal, client: Any, extra: dict[str, Any], status: int, code: str | None, param: str | None
) -> None:
    asked = {name: value for name, value in body(**extra).items() if value is not None}
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**asked)
    assert (caught.value.status_code, caught.value.code, caught.value.param) == (status, code, param)
    if status == 400:
        row = {"custom_id": "a", "method": "POST", "url": URL, "body": asked}
        batch = finished(client, json.dumps(row) + "\n")
        assert (batch.status, batch.output_file_id, counts(batch)) == ("completed", None, (1, 0, 1))
        (refused,) = rows(client, batch.error_file_id)
        assert refused["error"] is None and refused["response"]["status_code"] == 400
        assert refused["response"]["body"]["error"]["code"] == code
    assert server.billed_usd() == 0


@pytest.mark.parametrize(
    "extra",
    [
        {"model": "gpt-5.1", "temperature": 0},
        {"model": "gpt-5.6-luna", "temperature": 0, "logprobs": True, "reasoning_effort": "none"},
        {"model": "gpt-5-nano", "reasoning_effort": "minimal", "temperature": 1},
        {"model": "gpt-4o-mini", "temperature": 0, "logprobs": True},
    ],
)
def test_parameters_that_a_model_takes_are_taken(client: Any, extra: dict[str, Any]) -> None:
    asked = {"messages": [{"role": "user", "content": "Rate."}], "max_completion_tokens": 8, **extra}
    answer = client.chat.completions.create(**asked)
    assert answer.usage is not None and answer.usage.completion_tokens <= 3


def test_a_prompt_that_is_too_long_is_refused(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**body("a " * 130_000, model="gpt-4o-mini"))
    assert caught.value.code == "context_length_exceeded"


def test_creates_are_checked_at_once(client: Any) -> None:
    file = upload(client, line("q"))
    for change, param in (
        ({"completion_window": "1h"}, "completion_window"),
        ({"endpoint": "/v1/nothing"}, "endpoint"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"metadata": {str(i): "v" for i in range(17)}}, "metadata"),
    ):
        asked: Any = {"input_file_id": file.id, "endpoint": URL, "completion_window": "24h", **change}
        with pytest.raises(openai.BadRequestError) as caught:
            client.batches.create(**asked)
        assert caught.value.param == param
    assert [*client.batches.list()] == []


def test_a_wrong_key_and_a_foreign_host_are_turned_away(server: Rehearsal) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        connect(server, api_key="sk-wrong").batches.list()
    assert (caught.value.code, "sk-wrong" in str(caught.value)) == ("invalid_api_key", False)
    with httpx2.Client() as http:
        assert http.get(f"{server.url}/models").status_code == 401
        good = {"authorization": f"Bearer {KEY}"}
        assert http.get(f"{server.url}/models", headers=good).status_code == 200
        assert http.get(f"{server.url}/nothing", headers=good).status_code == 404
        answer = http.get(f"{server.url}/models", headers={**good, "host": "rebound.example.com"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "invalid_host")


def test_the_log_tells_what_a_client_sent_and_never_the_key(server: Rehearsal, client: Any) -> None:
    client.chat.completions.create(**body())
    client.chat.completions.create(**body(), extra_headers={"Idempotency-Key": "once"})
    client.chat.completions.create(**body(f"My key is {KEY}."))
    upload(client, line("q", f"{KEY}"))
    upload(client, line("q"))
    with httpx2.Client() as http:
        http.get(f"{server.url}/files/{KEY}", headers={"authorization": f"Bearer {KEY}"})
    log = server.requests_log
    assert [(entry.status, entry.leaked) for entry in log] == [
        (200, False),
        (200, False),
        (200, True),
        (200, True),
        (200, False),
        (404, True),
    ]
    assert [i for i, entry in enumerate(log) if "idempotency-key" in entry.headers] == [1]
    assert KEY not in repr(log)


# -- the bill -----------------------------------------------------------------------------------------------------


def test_the_bill_is_exact_to_the_last_decimal(make: Callable[..., Rehearsal]) -> None:
    """By hand: a prompt of 7 words is 10 tokens, a score of "3.5" is 3, of "4" is 1."""
    price = {"input": "0.0375", "output": "0.625"}
    server = make(marker=r"quality=([\d.]+)", prices={"tiny": price})
    client = connect(server)
    client.chat.completions.create(**body("one two three four five six quality=3.5", model="tiny"))
    sync = 10 * Decimal("0.0375") / 10**6 + 3 * Decimal("0.625") / 10**6
    assert server.billed_usd() == sync == Decimal("0.00000225")
    text = "one two three four five six quality="
    finished(client, line("a", text + "3.5", model="tiny") + line("b", text + "4", model="tiny"))
    batch = (20 * Decimal("0.0375") + 4 * Decimal("0.625")) / 10**6 / 2
    assert server.billed_usd() == sync + batch == Decimal("0.000003875")
    bill = list(server.bill())
    assert [(b.batch is None, b.model, b.usd) for b in bill if b.batch is None] == [(True, "tiny", sync)]
    assert {b.custom_id: b.usd for b in bill if b.batch} == {
        "a": (10 * Decimal("0.0375") + 3 * Decimal("0.625")) / 2 / 10**6,
        "b": (10 * Decimal("0.0375") + 1 * Decimal("0.625")) / 2 / 10**6,
    }
    assert all(re.fullmatch(r"[0-9a-f]{64}", b.custom_id) for b in bill if b.batch is None)
    answer = httpx2.get(server.url.replace("/v1", "/rehearsal/bill"), headers={"authorization": f"Bearer {KEY}"})
    assert [json.loads(row)["usd"] for row in answer.text.splitlines()] == [str(f"{b.usd:f}") for b in bill]


def test_cached_and_written_tokens_have_their_own_price(server: Rehearsal, client: Any) -> None:
    """gpt-6-luna: 0.1 in, 0.01 cached, 0.125 written, 0.5 out, by batch half of it. The prefix is 1,100 words."""
    prefix = {"role": "system", "content": "judge " * 1100}
    asked: Any = {
        "model": "gpt-6-luna",
        "messages": [prefix, {"role": "user", "content": "one two"}],
        "reasoning_effort": "none",
    }
    usages = [client.chat.completions.create(**asked).usage for _ in range(2)]
    details = [usage.prompt_tokens_details for usage in usages if usage is not None]
    assert [(d.cached_tokens, d.cache_write_tokens) for d in details if d] == [(0, 1024), (1024, 0)]
    out = sum(usage.completion_tokens for usage in usages if usage is not None)
    assert [usage.prompt_tokens for usage in usages if usage is not None] == [1108, 1108]
    plain = 2 * (1108 - 1024)
    expected = (
        plain * Decimal("0.1") + 1024 * Decimal("0.01") + 1024 * Decimal("0.125") + out * Decimal("0.5")
    ) / 10**6
    assert server.billed_usd() == expected
    batch = finished(client, json.dumps({"custom_id": "q", "method": "POST", "url": URL, "body": asked}) + "\n")
    assert batch.usage is not None and batch.usage.input_tokens_details.cached_tokens == 1024
    by_batch = (84 * Decimal("0.1") + 1024 * Decimal("0.01") + out // 2 * Decimal("0.5")) / 10**6 / 2
    assert server.billed_usd() == expected + by_batch


def test_a_price_that_is_missing_or_cannot_be_exact_is_an_error() -> None:
    with pytest.raises(ValueError, match="no price is known for my-model"):
        Rehearsal(models=["my-model"])
    with pytest.raises(ValueError, match="has no 'output'"):
        Rehearsal(prices={"my-model": {"input": "1"}})
    with pytest.raises(ValueError, match="exactly"):
        Rehearsal(prices={"my-model": {"input": "1/3", "output": "1"}})


def test_what_was_created_is_carried_out_although_nobody_looks(make: Callable[..., Rehearsal]) -> None:
    server = make()
    create(connect(server), lines(3))
    server.stop()
    assert server.executions().total() == 3


# -- the hook, and clients at once --------------------------------------------------------------------------------


def test_the_hook_is_called_at_each_moment_of_a_request(server: Rehearsal, client: Any) -> None:
    file = upload(client, lines(2))
    seen: list[tuple[str, str, int, int]] = []

    def hook(event: Event) -> None:
        if event.detail["route"] != "upload":  # whose last moment may be still to come
            seen.append((event.moment, event.detail["route"], event.number, len(server.batches())))

    server.hook = hook
    batch = create_from(client, file.id)
    batch = client.batches.retrieve(batch.id)
    client.files.content(batch.output_file_id)
    deadline = time.monotonic() + 5
    while len(seen) < 10 and time.monotonic() < deadline:
        time.sleep(0.001)  # the last moment is after the answer
    assert seen == [
        ("arrived", "create", 2, 0),
        ("done", "create", 2, 1),
        ("answered", "create", 2, 1),
        ("arrived", "retrieve", 3, 1),
        ("done", "retrieve", 3, 1),
        ("answered", "retrieve", 3, 1),
        ("arrived", "content", 4, 1),
        ("done", "content", 4, 1),
        ("half", "content", 4, 1),
        ("answered", "content", 4, 1),
    ]


def test_a_connection_error_in_the_hook_closes_the_connection_at_that_moment(server: Rehearsal, client: Any) -> None:
    for moment, batches in (("arrived", 0), ("done", 1)):
        file = upload(client, line("q"))

        def hook(event: Event, moment: str = moment) -> None:
            if event.moment == moment:
                raise ConnectionError

        server.hook = hook
        with pytest.raises(openai.APIConnectionError):
            create_from(client, file.id)
        server.hook = None
        assert len(server.batches()) == batches


def test_many_clients_at_once_lose_nothing(server: Rehearsal) -> None:
    def work(number: int) -> None:
        client = connect(server)
        for i in range(10):
            client.chat.completions.create(**body(f"Row {number} {i}."))
        finished(client, lines(20))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    executions = server.executions()
    assert executions.total() == 8 * 10 + 8 * 20
    assert all(executions[f"q{i}"] == 8 for i in range(20))
    assert server.billed_usd() == sum((b.usd for b in server.bill()), Decimal(0))


# -- faults, seen by the client -----------------------------------------------------------------------------------


def test_fault_2_an_upload_is_kept_and_its_answer_lost(server: Rehearsal, client: Any) -> None:
    server.misbehave(2)
    with pytest.raises(openai.APIConnectionError):
        upload(client, line("q"), "lost.jsonl")
    assert [f.filename for f in client.files.list(purpose="batch")] == ["lost.jsonl"]


@pytest.mark.parametrize(
    ("fault", "detail", "error", "batches"),
    [
        (3, {}, openai.APIConnectionError, 1),
        (5, {"status": 503}, openai.InternalServerError, 1),
        (6, {}, openai.APIConnectionError, 0),
        (7, {"lost": True}, openai.APIConnectionError, 2),
        (11, {"http": True}, openai.RateLimitError, 0),
        ("file_vanished", {}, openai.BadRequestError, 0),
        ("unauthorized", {"where": "create"}, openai.AuthenticationError, 0),
        ("server_error", {"where": "create"}, openai.InternalServerError, 0),
        ("server_error", {"where": "create", "executed": True}, openai.InternalServerError, 1),
    ],
)
def test_faults_of_a_create_leave_behind_what_they_say(
    server: Rehearsal, client: Any, fault: int | str, detail: dict[str, Any], error: Any, batches: int
) -> None:
    file = upload(client, lines(2))
    server.misbehave(fault, **detail)
    with pytest.raises(error):
        create_from(client, file.id)
    found = client.batches.list().data
    assert [b.input_file_id for b in found] == [file.id] * batches
    assert server.executions().total() == 2 * batches
    assert create_from(client, file.id).status == "validating"  # once only


def test_fault_4_a_create_hangs_past_the_time_out_and_is_carried_out(server: Rehearsal, client: Any) -> None:
    file = upload(client, line("q"))
    server.misbehave(4, seconds=1.0)
    with pytest.raises(openai.APITimeoutError):
        create_from(connect(server, timeout=0.1), file.id)
    assert client.batches.list().data == []
    deadline = time.monotonic() + 20
    while not (found := client.batches.list().data) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [b.input_file_id for b in found] == [file.id]


def test_fault_4_a_create_is_carried_out_by_the_clock_or_after_some_lists(server: Rehearsal, client: Any) -> None:
    file, other = upload(client, line("q")), upload(client, line("r"))
    server.misbehave(4, after=60)
    server.misbehave(4, lists=2)
    for one in (file, other):
        with pytest.raises(openai.APIConnectionError):
            create_from(client, one.id)
    assert [len(client.batches.list().data) for _ in range(3)] == [0, 0, 1]
    client.files.delete(file.id)
    server.advance(61)
    late, first = client.batches.list().data
    assert (first.input_file_id, first.status) == (other.id, "completed")
    assert (late.input_file_id, late.status) == (file.id, "failed")  # its file was gone by then


@pytest.mark.parametrize(
    ("fault", "detail", "code", "number"),
    [
        (10, {"limit": 5000}, "token_limit_exceeded", None),
        (11, {}, "billing_hard_limit_reached", None),
        (12, {"line": 2}, "invalid_json_line", 2),
    ],
)
def test_faults_that_fail_a_batch_cost_nothing(
    server: Rehearsal, client: Any, fault: int, detail: dict[str, Any], code: str, number: int | None
) -> None:
    server.misbehave(fault, **detail)
    batch = finished(client, lines(2))
    assert batch.status == "failed"
    assert [(error.code, error.line) for error in batch.errors.data] == [(code, number)]
    assert fault != 10 or "Limit: 5,000 enqueued tokens" in batch.errors.data[0].message
    assert server.billed_usd() == 0
    assert finished(client, lines(2)).status == "completed"


def test_fault_13_a_lax_server_answers_a_custom_id_twice(server: Rehearsal, client: Any) -> None:
    server.misbehave(13)
    batch = finished(client, line("q", "One.") + line("q", "Two."))
    assert [row["custom_id"] for row in rows(client, batch.output_file_id)] == ["q", "q"]
    assert server.executions() == {"q": 2}


def test_fault_14_all_lines_fail(server: Rehearsal, client: Any) -> None:
    server.misbehave(14)
    batch = finished(client, lines(3))
    assert (batch.status, batch.output_file_id, counts(batch)) == ("completed", None, (3, 0, 3))
    assert {row["response"]["status_code"] for row in rows(client, batch.error_file_id)} == {400}
    assert batch.usage is not None and batch.usage.total_tokens == 0
    assert server.billed_usd() == 0


def test_fault_15_the_error_file_is_an_empty_name_or_an_empty_file(server: Rehearsal, client: Any) -> None:
    server.misbehave(15)
    assert finished(client, line("q")).error_file_id == ""
    server.misbehave(15, file=True)
    batch = finished(client, line("q"))
    assert batch.error_file_id and client.files.content(batch.error_file_id).content == b""


def test_fault_16_the_output_comes_late(server: Rehearsal, client: Any) -> None:
    server.misbehave(16, polls=2)
    batch_id = create(client, line("q")).id
    seen = [client.batches.retrieve(batch_id) for _ in range(3)]
    assert [(b.status, b.output_file_id is None, counts(b)) for b in seen] == [
        ("completed", True, (1, 1, 0)),
        ("completed", True, (1, 1, 0)),
        ("completed", False, (1, 1, 0)),
    ]


@pytest.mark.parametrize("status", [400, 429, 500])
def test_fault_17_a_share_of_the_lines_fails(server: Rehearsal, client: Any, status: int) -> None:
    server.misbehave(17, share=0.3, status=status)
    batch = finished(client, lines(10))
    assert counts(batch) == (10, 7, 3)
    assert {row["response"]["status_code"] for row in rows(client, batch.error_file_id)} == {status}
    done = {row["custom_id"]: 1 for row in rows(client, batch.output_file_id)}
    assert server.executions() == done and len(done) == 7


@pytest.mark.parametrize("executed", [True, False])
def test_fault_18_lines_are_missing_and_the_counts_do_not_add_up(
    server: Rehearsal, client: Any, executed: bool
) -> None:
    server.misbehave(18, lines=2, executed=executed)
    batch = finished(client, lines(5))
    assert (counts(batch), len(rows(client, batch.output_file_id)), batch.error_file_id) == ((5, 3, 0), 3, None)
    assert server.executions().total() == (5 if executed else 3)


@pytest.mark.parametrize(("same_id", "same_usage", "executed"), [(True, True, 3), (False, True, 4), (True, False, 4)])
def test_fault_19_a_line_comes_twice(
    server: Rehearsal, client: Any, same_id: bool, same_usage: bool, executed: int
) -> None:
    server.misbehave(19, same_id=same_id, same_usage=same_usage)
    found = rows(client, finished(client, lines(3)).output_file_id)
    twice = [r for r in found if sum(r["custom_id"] == other["custom_id"] for other in found) == 2]
    assert (len(found), len(twice)) == (4, 2)
    ids = {row["response"]["request_id"] for row in twice}
    usages = {row["response"]["body"]["usage"]["prompt_tokens"] for row in twice}
    assert (len(ids) == 1, len(usages) == 1) == (same_id, same_usage)
    assert server.executions().total() == executed


@pytest.mark.parametrize(
    ("fault", "detail", "response"),
    [
        (20, {}, {"status_code": 0, "body": None}),
        (21, {}, {"status_code": 200, "body": {}}),
    ],
)
def test_faults_20_and_21_an_answer_is_none_and_was_paid(
    server: Rehearsal, client: Any, fault: int, detail: dict[str, Any], response: dict[str, Any]
) -> None:
    server.misbehave(fault, **detail)
    batch = finished(client, lines(3))
    assert counts(batch) == (3, 3, 0)
    odd = [
        row["response"]
        for row in rows(client, batch.output_file_id)
        if not (row["response"]["body"] or {}).get("usage")
    ]
    assert [{name: row[name] for name in response} for row in odd] == [response]
    assert server.executions().total() == 3


@pytest.mark.parametrize("kind", ["json", "utf8"])
def test_fault_22_a_line_cannot_be_read(server: Rehearsal, client: Any, kind: str) -> None:
    server.misbehave(22, kind=kind)
    good, bad = 0, 0
    for row in raw_rows(client, finished(client, lines(3)).output_file_id):
        try:
            json.loads(row.decode())
            good += 1
        except ValueError:
            bad += 1
    assert (good, bad) == (2, 1)
    assert server.executions().total() == 3


def test_fault_23_a_result_that_nobody_asked_for_is_billed(server: Rehearsal, client: Any) -> None:
    server.misbehave(23)
    found = {row["custom_id"] for row in rows(client, finished(client, lines(2)).output_file_id)}
    assert len(found) == 3 and {"q0", "q1"} < found
    assert server.executions().total() == 3


def test_fault_24_the_order_can_be_chosen(server: Rehearsal, client: Any) -> None:
    for order, expected in (("input", ["q0", "q1", "q2"]), ("reversed", ["q2", "q1", "q0"])):
        server.misbehave(24, order=order)
        batch = finished(client, lines(3))
        assert [row["custom_id"] for row in rows(client, batch.output_file_id)] == expected


def test_faults_25_and_26_a_result_file_does_not_come_whole(server: Rehearsal, client: Any) -> None:
    file_id = finished(client, lines(20)).output_file_id
    whole = client.files.content(file_id).content
    server.misbehave(25, times=2)
    for _ in range(2):
        with pytest.raises(openai.InternalServerError):
            client.files.content(file_id)
    server.misbehave(26)
    with pytest.raises(openai.APIConnectionError):
        client.files.content(file_id)
    server.misbehave(26, clean=True, at=0.25)
    assert client.files.content(file_id).content == whole[: len(whole) // 4]
    server.misbehave(26, clean=True, whole_lines=True)
    part = client.files.content(file_id).content
    assert part.endswith(b"\n") and whole.startswith(part) and 0 < len(part) < len(whole)
    assert client.files.retrieve(file_id).bytes == len(whole)
    assert client.files.content(file_id).content == whole


@pytest.mark.parametrize("usage", [True, False])
def test_fault_28_the_output_is_gone(server: Rehearsal, client: Any, usage: bool) -> None:
    server.misbehave(28, usage=usage)
    batch = finished(client, lines(2))
    assert (batch.usage is not None) == usage
    for _ in range(2):
        with pytest.raises(openai.NotFoundError):
            client.files.content(batch.output_file_id)
    assert server.executions().total() == 2


def test_fault_29_a_batch_expires_with_lines_that_nobody_lists(server: Rehearsal, client: Any) -> None:
    server.misbehave(29, share=0.6, unlisted=1)
    batch = finished(client, lines(10))
    assert (batch.status, counts(batch)) == ("expired", (10, 6, 3))
    done, rest = rows(client, batch.output_file_id), rows(client, batch.error_file_id)
    assert (len(done), len(rest)) == (6, 3)
    assert server.executions() == {row["custom_id"]: 1 for row in done}


def test_faults_30_and_31_a_cancelled_batch_was_partly_done(server: Rehearsal, client: Any) -> None:
    for fault, output in ((30, True), (31, False)):
        batch = create(client, lines(10))
        server.misbehave(fault, share=0.4)
        client.batches.cancel(batch.id)
        batch = client.batches.retrieve(batch.id)
        assert (batch.status, batch.request_counts.completed) == ("cancelled", 4)
        assert (batch.output_file_id is not None) == output
        assert sum(1 for b in server.bill() if b.batch == batch.id) == 4
    server.misbehave(30, unasked=True)
    assert finished(client, lines(10)).status == "cancelled"


@pytest.mark.parametrize(("status", "executed"), [("validating", 0), ("in_progress", 5), ("finalizing", 10)])
def test_fault_32_a_batch_is_stuck_past_its_window(server: Rehearsal, client: Any, status: str, executed: int) -> None:
    server.misbehave(32, status=status, until=200_000)
    batch = create(client, lines(10))
    server.advance(100_000)
    batch = client.batches.retrieve(batch.id)
    assert batch.status == status and batch.expires_at < server.now()
    assert server.executions().total() == executed
    server.advance(100_001)
    assert client.batches.retrieve(batch.id).status in ("completed", "expired")


def test_faults_33_and_34_a_cancel_hangs_or_comes_too_late(server: Rehearsal, client: Any) -> None:
    server.misbehave(33, until=3600)
    batch = create(client, lines(2))
    client.batches.cancel(batch.id)
    assert client.batches.retrieve(batch.id).status == "cancelling"
    server.advance(3601)
    assert client.batches.retrieve(batch.id).status == "cancelled"
    for status, error in ((409, openai.ConflictError), (400, openai.BadRequestError)):
        server.misbehave(34, status=status)
        batch = create(client, lines(2))
        with pytest.raises(error):
            client.batches.cancel(batch.id)
        assert client.batches.retrieve(batch.id).status == "completed"


def test_fault_35_objects_are_odd(server: Rehearsal, client: Any) -> None:
    server.misbehave(35, polls=1)
    batch_id = create(client, lines(2)).id
    assert client.batches.retrieve(batch_id).status == "scheduling"
    batch = client.batches.retrieve(batch_id)
    assert batch.status == "completed"
    assert batch.usage is None and batch.request_counts is None
    assert batch.model_extra == {"region": "moon", "queue": {"position": 7}}
    text = rows(client, batch.output_file_id)[0]["response"]["body"]
    assert json.loads(text)["object"] == "chat.completion"


def test_fault_36_a_known_batch_is_not_found(server: Rehearsal, client: Any) -> None:
    batch = create(client, line("q"))
    server.misbehave(36, times=2)
    server.misbehave(36, where="list")
    for _ in range(2):
        with pytest.raises(openai.NotFoundError):
            client.batches.retrieve(batch.id)
    assert client.batches.list().data == []
    assert client.batches.retrieve(batch.id).status == "completed"
    assert len(client.batches.list().data) == 1


def test_faults_of_a_single_question(server: Rehearsal, client: Any) -> None:
    server.misbehave("rate_limit", seconds=7)
    with pytest.raises(openai.RateLimitError) as limited:
        client.chat.completions.create(**body())
    assert limited.value.response.headers["retry-after"] == "7"
    server.misbehave("server_error")
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(**body())
    assert server.executions().total() == 0
    server.misbehave("lost_answer")
    with pytest.raises(openai.APIConnectionError):
        client.chat.completions.create(**body())
    assert server.executions().total() == 1
    server.misbehave("slow", seconds=0.4, where="chat")
    with pytest.raises(openai.APITimeoutError):
        connect(server, timeout=0.1).chat.completions.create(**body())
    server.misbehave("html", None)
    assert isinstance(client.chat.completions.create(**body()), str)
    server.behave()
    assert client.chat.completions.create(**body()).object == "chat.completion"


def test_an_overcharge_is_billed_as_it_is_told(make: Callable[..., Rehearsal]) -> None:
    server = make(prices={"tiny": {"input": "1", "output": "1"}})
    client = connect(server)
    server.misbehave("overcharge", factor=500)
    usage = client.chat.completions.create(**body("Rate this row.", model="tiny")).usage
    assert usage is not None and usage.prompt_tokens == 500 * 6 and usage.completion_tokens >= 500
    assert server.billed_usd() == Decimal(usage.total_tokens) / 10**6
    before = server.billed_usd()
    server.misbehave("overcharge", factor=500)
    found = rows(client, finished(client, lines(3, model="tiny")).output_file_id)
    told = [row["response"]["body"]["usage"]["total_tokens"] for row in found]
    assert max(told) > 3500 > sum(sorted(told)[:2])
    assert server.billed_usd() - before == Decimal(sum(told)) / 10**6 / 2


@pytest.mark.parametrize("kind", ["negative", "bool", "cached", "text", "huge"])
def test_hostile_usage_is_told_and_the_true_one_billed(server: Rehearsal, client: Any, kind: str) -> None:
    for _ in range(2):
        finished(client, lines(1))
    (fair, _) = (b.usd for b in server.bill())
    server.misbehave("hostile_usage", kind=kind)
    (row,) = rows(client, finished(client, lines(1)).output_file_id)
    told = row["response"]["body"]["usage"]
    bill = list(server.bill())
    assert told != bill[-1].usage
    assert bill[-1].usd == fair


def test_a_fault_that_does_not_exist_is_refused() -> None:
    server = Rehearsal()
    for fault, detail, reason in (
        (37, {}, "unknown fault 37"),
        (9, {}, "the client's"),
        (3, {"often": 1}, "no 'often'"),
    ):
        with pytest.raises(ValueError, match=reason):
            server.misbehave(fault, **detail)
    server.stop()


def test_every_fault_of_the_specification_has_a_line_in_the_table() -> None:
    table = faults.__doc__ or ""
    named = {int(n): name for n, name in re.findall(r"^    (\d+) +([a-z_]+) ", table, re.MULTILINE)}
    assert set(named) | set(faults.OF_THE_CLIENT) == set(range(1, 37))
    assert named == {number: fault.value for number, fault in faults.NUMBERS.items()}
    assert set(faults.DEFAULTS) == set(faults.Fault)
    for fault, detail in faults.DEFAULTS.items():
        assert re.search(rf"^    .. +{fault} ", table, re.MULTILINE), fault
        for keyword in detail:
            assert keyword in table, (fault, keyword)


def test_a_fault_has_a_name_beside_its_number(server: Rehearsal, client: Any) -> None:
    server.misbehave("create_answer_lost")
    with pytest.raises(openai.APIConnectionError):
        create(client, line("a"))
    assert len(server.batches()) == 1
    create(client, line("b"))
    assert len(server.batches()) == 2


# -- as a program -------------------------------------------------------------------------------------------------


def test_the_program_serves_until_its_stdin_closes(tmp_path: Path) -> None:
    prices, bill = tmp_path / "prices.json", tmp_path / "bill.jsonl"
    prices.write_text('{"tiny": {"input": "1", "output": "2", "batch_discount": "0.25"}}')
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "alpasift.graders.rehearsal",
            "--key",
            KEY,
            "--prices",
            prices,
            "--bill",
            bill,
            "--marker",
            r"quality=(\d)",
            "--fault",
            "10:times=1,limit=5000",
            "--fault",
            "html:times=1,where=chat",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=cli_environment(),
    )
    assert process.stdin is not None and process.stdout is not None
    with process:
        where = json.loads(process.stdout.readline())
        assert where["pid"] == process.pid
        client: Any = openai.OpenAI(base_url=where["url"], api_key=KEY, max_retries=0)
        failed = finished(client, line("q", model="tiny"))
        assert failed.errors.data[0].code == "token_limit_exceeded"
        assert isinstance(client.chat.completions.create(**body()), str)
        assert finished(client, line("q", "one two quality=4", model="tiny")).status == "completed"
        process.stdin.close()
        assert process.wait(10) == 0
    (entry,) = (json.loads(row) for row in bill.read_text().splitlines())
    assert entry["usd"] == "0.000002"  # a quarter of 6 tokens at 1 and 1 at 2 dollars a million
    assert ROOT not in tmp_path.parents


def test_the_program_ends_with_a_signal_and_leaves_no_folder_behind(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "alpasift.graders.rehearsal"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=cli_environment({"TMPDIR": str(tmp_path)}),
    )
    assert process.stdin is not None and process.stdout is not None
    with process:
        process.stdout.readline()
        assert len(list(tmp_path.iterdir())) == 1
        process.terminate()
        assert process.wait(10) == 0
        assert process.stderr is not None and process.stderr.read() == ""
    assert list(tmp_path.iterdir()) == []


def test_the_program_says_what_is_wrong_with_its_arguments(tmp_path: Path) -> None:
    for arguments, reason in (
        (["--fault", "99"], "unknown fault 99"),
        (["--fault", "10:limits=3"], "no 'limits'"),
        (["--marker", "x"], "no group"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "alpasift.graders.rehearsal", *arguments],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=cli_environment(),
            timeout=30,
        )
        assert done.returncode == 2
        assert reason in done.stderr and "Traceback" not in done.stderr


def test_the_server_can_be_reached_from_this_machine_only(server: Rehearsal) -> None:
    port = int(server.url.split(":")[2].split("/")[0])
    assert server._http.listener.getsockname() == ("127.0.0.1", port)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        assert connection.recv(100) == b""
