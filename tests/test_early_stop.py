"""A grader whose answers cannot be read is paid for some of them and no more, by every way of asking."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from alpasift.batcher.data.importing import import_file
from alpasift.batcher.data.versions import resolve
from alpasift.batcher.engine.early_stop import GraderUnreadable
from alpasift.batcher.engine.run import Run
from alpasift.batcher.engine.summary import Summary
from alpasift.batcher.store import Store
from alpasift.batcher.tasks.grade import Grade
from alpasift.graders import open_backend
from alpasift.graders.prompts.rubric import load_rubric
from alpasift.graders.rehearsal.server import Rehearsal
from batch_harness import PRICES, executed_twice, key, money, price_list
from conftest import call_cli, new_store, write_rows
from tiny_models import make_gguf

MODEL = "gpt-3.5-turbo"
"""One whose answers nothing constrains."""
SAYS = r"SAYS\[(.*?)\]"


@pytest.fixture
def server() -> Iterator[Rehearsal]:
    with key(), Rehearsal(marker=SAYS, prices={MODEL: PRICES["gpt-4o-mini"]}) as running:
        yield running


def store_of(folder: Path, answers: list[str]) -> Store:
    """A database whose rows say what the model is to answer."""
    store = new_store(folder / "t.duckdb")
    rows = [{"instruction": f"Name tree {i}.", "output": f"Tree {i}. SAYS[{said}]"} for i, said in enumerate(answers)]
    import_file(store, write_rows(folder / "rows.jsonl", rows))
    (folder / "prices.toml").write_text(price_list(MODEL))
    return store


def grade(store: Store, server: Rehearsal, way: str = "openai_chat", **more: Any) -> Summary:
    options = {"base_url": server.url, "prices": str(store.path.with_name("prices.toml"))}
    options |= {"in_flight": 4} if way == "openai_chat" else {"poll_seconds": 0.02, "grace_seconds": 0.0}
    return run(store, f"{way}:{MODEL}", options, budget=Decimal(5), **more)


def run(
    store: Store, spec: str, options: dict[str, Any] | None = None, task: Grade | None = None, **more: Any
) -> Summary:
    version, backend = resolve(store, None).version_id, open_backend(spec, options)
    with (
        contextlib.closing(backend),
        Run(store, task or Grade(load_rubric("accuracy")), backend, version, **more) as one,
    ):
        return one.go()


def calls(server: Rehearsal) -> int:
    return sum(row.path.endswith("/chat/completions") for row in server.requests_log)


def check_bill(store: Store, server: Rehearsal) -> None:
    found = money(store)
    assert (found["spent_usd"], found["reserved_usd"], found["unresolved_usd"]) == (server.billed_usd(), 0, 0)


@pytest.mark.parametrize("said", ["Lovely", ""])
def test_calls_end_when_none_of_the_first_answers_can_be_read_and_no_later_run_pays_for_them_again(
    tmp_path: Path, server: Rehearsal, said: str
) -> None:
    store = store_of(tmp_path, [said] * 60)
    with pytest.raises(GraderUnreadable, match=r"none of the first 2\d answers .* could be read .*--keep-going"):
        grade(store, server)
    paid = calls(server)
    assert 20 <= paid <= 24  # four were in flight when the twentieth came
    check_bill(store, server)
    with pytest.raises(GraderUnreadable):
        grade(store, server)
    assert calls(server) == paid
    assert grade(store, server, keep_going=True).asked == 60 - paid
    assert calls(server) == 60
    assert executed_twice(server) == []
    check_bill(store, server)


def test_a_reply_is_shown(tmp_path: Path, server: Rehearsal) -> None:
    with pytest.raises(GraderUnreadable, match="One of them: 'Lovely'"):
        grade(store_of(tmp_path, ["Lovely"] * 30), server)


def test_calls_end_when_under_a_fifth_of_fifty_answers_can_be_read(tmp_path: Path, server: Rehearsal) -> None:
    store = store_of(tmp_path, ["4" if i % 10 == 3 else "Lovely" for i in range(90)])
    with pytest.raises(GraderUnreadable, match="5 of the first 5"):
        grade(store, server)
    assert 50 <= calls(server) <= 54


def test_a_grader_that_is_read_often_enough_is_asked_about_every_row(tmp_path: Path, server: Rehearsal) -> None:
    store = store_of(tmp_path, ["4" if i % 3 == 0 else "Lovely" for i in range(60)])
    assert grade(store, server).usable == 20
    assert calls(server) == 60 + 40  # what could not be read is asked once more


def test_rows_that_decide_without_a_row_to_spare_are_not_asked_about_twice(tmp_path: Path, server: Rehearsal) -> None:
    store = store_of(tmp_path, ["Lovely"] * 20)
    for _ in range(2):
        with pytest.raises(GraderUnreadable):
            grade(store, server)
    assert calls(server) == 20
    assert grade(store, server, keep_going=True).asked == 0


def test_fewer_rows_than_decide_are_asked_about_once_more(tmp_path: Path, server: Rehearsal) -> None:
    store = store_of(tmp_path, ["Lovely"] * 3)
    assert grade(store, server).usable == 0
    assert calls(server) == 6


@pytest.mark.parametrize("rows", [12, 60])
def test_no_batch_is_sent_when_none_of_five_calls_can_be_read(tmp_path: Path, server: Rehearsal, rows: int) -> None:
    store = store_of(tmp_path, ["Lovely"] * rows)
    with pytest.raises(GraderUnreadable, match="none of the first 5 answers"):
        grade(store, server, "openai_batch")
    assert (calls(server), server.batches()) == (5, [])
    check_bill(store, server)


def test_one_call_is_enough_before_a_small_batch_and_five_go_before_a_large_one(
    tmp_path: Path, server: Rehearsal
) -> None:
    assert grade(store_of(tmp_path, ["4"] * 12), server, "openai_batch").usable == 12
    assert calls(server) == 1
    (tmp_path / "large").mkdir()
    store = store_of(tmp_path / "large", ["3"] * 60)
    assert grade(store, server, "openai_batch").usable == 60
    assert calls(server) == 1 + 5


def test_a_budget_that_hardly_holds_the_batch_pays_for_one_call_before_it(tmp_path: Path, server: Rehearsal) -> None:
    store = store_of(tmp_path, ["4"] * 60)
    run(
        store,
        f"openai_batch:{MODEL}",
        {"base_url": server.url, "prices": str(tmp_path / "prices.toml"), "poll_seconds": 0.02},
        budget=Decimal("0.0004"),
    )
    assert calls(server) == 1


def test_a_grader_that_costs_nothing_is_stopped_too(tmp_path: Path) -> None:
    script = tmp_path / "prose.toml"
    script.write_text('lines_per_attempt = 10\n[[reply]]\nmatch = ".*"\ntext = "A fine answer."\n')
    store = store_of(tmp_path, ["4"] * 90)
    with pytest.raises(GraderUnreadable):
        run(store, f"fake:{script}")
    assert store.locked_query("select count(*) from replies").rows[0][0] < 50
    done = call_cli(
        ["--db", store.path, "grade", "--grader", f"fake:{script}", "--rubric", "accuracy", "--keep-going"],
        cwd=tmp_path,
    )
    assert store.locked_query("select count(*) from replies").rows[0][0] == 90, done.err


@pytest.mark.llama
def test_a_model_on_this_machine_is_stopped_too(tmp_path: Path) -> None:
    """By the real llama.cpp: many rows at once, whose answers end with 32 tokens and before their score."""
    pytest.importorskip("llama_cpp")
    rubric = replace(load_rubric("curation"), explain_tokens=32, system="Grade the response.")
    make_gguf(tmp_path / "tiny.gguf")
    store = store_of(tmp_path, ["-"] * 80)
    said = r"of the first \d\d answers of llama_cpp:tiny\.gguf could be read \(cut_off \d\d\)\. One .*explain_tokens"
    for _ in range(2):
        with pytest.raises(GraderUnreadable, match=said):
            run(store, f"llama_cpp:{tmp_path / 'tiny.gguf'}", task=Grade(rubric, "json"))
        assert 20 <= store.locked_query("select count(*) from replies").rows[0][0] < 80
    assert store.locked_query("select count(*) from open_attempts").rows == [(0,)]
