"""Tasks plug in: a pairwise verdict beside a grading, on the same engine, ledger, recovery and views."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from alpasift.batcher.data.importing import import_file
from alpasift.batcher.engine.collect import collect
from alpasift.batcher.engine.identities import verify_ids
from alpasift.batcher.engine.questions import pending
from alpasift.batcher.engine.run import Run
from alpasift.batcher.engine.setups import setup_of
from alpasift.batcher.engine.task import Item, StoredSetup, Task, UnknownTask, task_names, task_of
from alpasift.batcher.money import spool
from alpasift.batcher.store import Store
from alpasift.batcher.tasks.grade import Grade
from alpasift.batcher.tasks.judge import Judge, JudgeError
from alpasift.graders import Example, Reply, open_backend
from alpasift.graders.prompts.rubric import load_rubric
from alpasift.graders.rehearsal.server import Rehearsal
from batch_harness import MARKER, MODEL, PRICES, expected, key, marked_rows, money, options, scores
from conftest import ROOT, cli_environment, run_cli, write_rows

ROWS = 12


def two_answers(folder: Path) -> Store:
    """A store whose rows hold a second answer beside their output."""
    store = Store(folder / "lab.duckdb").create()
    rows = [{**row, "other": f"It is {i + 1}."} for i, row in enumerate(marked_rows(ROWS))]
    import_file(store, write_rows(folder / "rows.jsonl", rows))
    return store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return two_answers(tmp_path)


@pytest.fixture
def server() -> Iterator[Rehearsal]:
    with Rehearsal(prices=PRICES, marker=MARKER) as made, key():
        yield made


def version_of(store: Store) -> str:
    return str(store.locked_query("select version_id from dataset_versions").rows[0][0])


def results(store: Store, task: str) -> list[dict[str, Any]]:
    text = "select usable, reason, value, reply, score, example_id, subject_id from results where task = $task"
    return store.locked_query(text, {"task": task}).dicts()


JUDGE_AND_WAIT = """
import sys
sys.path.insert(0, sys.argv[1])
from decimal import Decimal
from pathlib import Path
from alpasift.batcher.engine.run import Run
from alpasift.batcher.money import spool
from alpasift.batcher.store import Store
from alpasift.batcher.tasks.judge import Judge
from alpasift.graders import open_backend
from test_tasks import version_of
store = Store(Path(sys.argv[2]))
given = {"base_url": sys.argv[3], "stands_for": "https://api.openai.com/v1", "poll_seconds": 0.05, "grace_seconds": 0.0}
backend = open_backend("openai_batch:gpt-4o-mini", given)
with Run(store, Judge("output", "other"), backend, version_of(store), command="judge", budget=Decimal(5)) as run:
    run.estimate()
    run.go()
"""


def test_a_verdict_batch_whose_process_was_killed_is_collected_by_another_beside_a_grading_in_flight(
    store: Store, tmp_path: Path
) -> None:
    with Rehearsal(prices=PRICES, marker=MARKER, batch_seconds=3600) as server, key():
        grader = open_backend(f"openai_batch:{MODEL}", options(server, wait=False))
        grade = Grade(load_rubric("accuracy"))
        with Run(store, grade, grader, version_of(store), budget=Decimal(5)) as run:
            assert run.go().outcome == "partial"
        env = cli_environment({"OPENAI_API_KEY": "rehearsal"})
        command = [sys.executable, "-c", JUDGE_AND_WAIT, str(ROOT / "tests"), str(store.path), server.url]
        process = subprocess.Popen(command, env=env, cwd=tmp_path)
        try:
            until(lambda: in_flight(store) == {"grade": ROWS - 1, "judge": 2 * ROWS - 1}, process)
        finally:
            process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert money(store)["reserved_usd"] > 0
        server.advance(2 * 3600)
        env = {"OPENAI_API_KEY": "rehearsal"}
        done = run_cli(["--db", store.path, "collect", "--json", "--poll-seconds", "0"], cwd=tmp_path, env=env)
        assert done.code == 0, done.err
        found = done.json
        assert (found["replies"], found["usable"], found["in_flight"]) == (3 * ROWS - 2, 3 * ROWS - 2, 0)
        bill = server.billed_usd()
        balance = money(store)
        assert (balance["spent_usd"], balance["reserved_usd"]) == (bill, 0)
    assert scores(store) == expected(ROWS), "a grade is read by the grade's parser"
    verdicts = results(store, "judge")
    assert len(verdicts) == 2 * ROWS
    for row in verdicts:
        assert row["usable"] and row["score"] is None and row["example_id"] is not None
        assert json.loads(row["value"]) == json.loads(row["reply"]), "and a verdict by the judge's"
    assert len({row["subject_id"] for row in verdicts}) == 2 * ROWS, "each pair in both orders"


def in_flight(store: Store) -> dict[str, int]:
    text = """
        select s.task, count(*) from questions_in_flight q join setups s using (setup_id)
        join batches b using (attempt_id) where b.phase not in ('opened', 'uploaded', 'creating') group by all
    """
    return dict(store.locked_query(text).rows)


def until(what: Any, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, "the process ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_what_was_judged_is_not_asked_again_and_a_grading_asks_of_its_own(store: Store, server: Rehearsal) -> None:
    def run(task: Task) -> tuple[int, int]:
        backend = open_backend(f"openai_batch:{MODEL}", options(server))
        with Run(store, task, backend, version_of(store), budget=Decimal(5)) as one:
            summary = one.go()
        return summary.asked, summary.already

    assert run(Judge("output", "other")) == (2 * ROWS, 0)
    assert run(Judge("output", "other")) == (0, 2 * ROWS)
    assert run(Judge("other", "output")) == (2 * ROWS, 0), "other columns are another setup"
    assert run(Grade(load_rubric("accuracy"))) == (ROWS, 0)
    assert money(store)["spent_usd"] == server.billed_usd()
    assert not any(one.different for one in verify_ids(store))
    by_task = store.locked_query("select task, sum(usable)::bigint from run_list group by task order by task").rows
    assert by_task == [("grade", ROWS), ("judge", 4 * ROWS)]


def test_a_limit_and_a_chosen_position_count_pairs(store: Store) -> None:
    backend = open_backend("fake")
    with Run(store, Judge("output", "other"), backend, version_of(store), limit=3) as run:
        assert run.go().asked == 3
    with Run(store, Judge("output", "other"), backend, version_of(store), positions=[0, 5]) as run:
        assert run.go().asked == 1
    found = pending(store, Judge("output", "other"), backend, version_of(store))
    left, answered = found.questions, found.already
    assert (len(left), answered) == (2 * ROWS - 4, 4)


class StricterJudge(Judge):
    """A newer parser of verdicts: a tie is no longer usable."""

    reader_version = str(int(Judge.reader_version) + 1)

    def read(self, reply: Reply) -> Any:
        reading = super().read(reply)
        return reading if reading.value.get("verdict") != "tie" else type(reading)(False, "unreadable")


def test_a_newer_parser_of_one_task_reads_only_that_task_again(store: Store) -> None:
    backend, version = open_backend("fake"), version_of(store)
    for task in (Judge("output", "other"), Grade(load_rubric("accuracy"))):
        with Run(store, task, backend, version) as run:
            run.go()
    before, ties = scores(store), sum(json.loads(r["value"])["verdict"] == "tie" for r in results(store, "judge"))
    assert ties > 0
    with Run(store, StricterJudge("output", "other"), backend, version, limit=0) as run:
        assert run.go().asked == 0
    assert scores(store) == before, "the grades keep the reading of their own parser"
    assert sum(not row["usable"] for row in results(store, "judge")) == ties
    readers = store.locked_query("select task, reader, count(*) from readings group by all order by all").rows
    assert readers == [
        ("grade", Grade.reader_version, ROWS),
        ("judge", Judge.reader_version, 2 * ROWS),
        ("judge", StricterJudge.reader_version, 2 * ROWS),
    ]


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("A", "A"),
        ("b", "B"),
        ("Tie.", "tie"),
        ('{"verdict": "tie"}', "tie"),
        ("**B**", "B"),
        ("Answer A", "A"),
        ("My verdict: B", "B"),
        ("The better answer is answer A.", "A"),
        ('```json\n{"verdict": "A", "why": "B is wrong"}\n```', "A"),
        ("<verdict>tie</verdict>", "tie"),
        ("B<|im_end|>", "B"),
        ("A and B", None),
        ("Neither", None),
        ('{"verdict": 1}', None),
        ('{"verdict": "A", "verdict": "B"}', None),
        ("An excellent answer", None),
        ("[1, 2]", None),
        ("> A", None),
        ('Answer A ends with "B"', None),
        ("Answer A says:\n> B", None),
        ('The second answer is only "tie".', None),
        ('It holds {"verdict": "A"}.', None),
        ('{"note": "{\\"verdict\\": \\"A\\"}"}', None),
    ],
)
def test_a_verdict_is_what_the_reply_states(text: str, verdict: str | None) -> None:
    assert judged(text) == (verdict, None if verdict else "unreadable")
    for opens, closes in (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<|channel|>analysis<|message|>", None)):
        closing = closes or "<|end|><|start|>assistant<|channel|>final<|message|>"
        assert judged(f"{opens}A is short. {text}{closing}\n{text}") == judged(text), "what is thought changes nothing"
        assert judged(f"{opens}\n{text}", "length") == (None, "cut_off")
        assert judged(f"{opens}\n{text}") == (None, "cut_off"), "nor is it a verdict where it did not end"
    assert judged(f"{text}</think>B") == ("B", None), "a closing tag alone: thinking was begun for the model"


def judged(text: str, finish: str = "stop") -> tuple[str | None, str | None]:
    reading = Judge("output", "other").read(Reply("a", "k", "r", "answered", text=text, finish_reason=finish))
    assert reading.usable == ("verdict" in reading.value) == (reading.reason is None)
    return reading.value.get("verdict"), reading.reason


def test_a_verdict_that_was_cut_off_is_none_unless_its_object_was_complete() -> None:
    assert judged("Answer A", "length") == (None, "cut_off")  # "is the worse one" may have followed
    assert judged('{"verdict": "B"}', "length") == ("B", None)
    assert judged('{"verdict": "B"', "length") == (None, "cut_off")
    assert judged(" \n", "length") == (None, "cut_off")
    assert judged("<think></think>\n") == (None, "empty")


def test_every_task_is_made_again_from_what_the_database_holds() -> None:
    made: list[Task] = [Grade(load_rubric("accuracy"), "explain"), Judge("output", "other")]
    assert task_names() == sorted(task.name for task in made)
    example = Example("Name a colour.", "", "Blue.")
    pair = {"instruction": "Name a colour.", "input": "", "A": "Blue.", "B": "Seven."} | {"system": "", "turns": []}
    for task in made:
        stored = StoredSetup(task.name, json.loads(json.dumps(task.identity.content)), dict(task.decoding))
        again, backend = task_of(stored), open_backend("fake")
        assert setup_of(again, backend) == setup_of(task, backend)
        item = Item("e", example, pair, "e")
        assert again.request(item, "s", 0) == task.request(item, "s", 0)


def test_a_task_of_a_newer_release_is_one_line() -> None:
    with pytest.raises(
        UnknownTask, match=r"'summon', which this alpasift does not support \(it supports grade, judge\)"
    ):
        task_of(StoredSetup("summon", {}, {}))


def test_a_dataset_without_the_column_is_refused_with_what_it_has(store: Store) -> None:
    with pytest.raises(JudgeError, match=r"row 0 has no text in 'better'; it has output, other"):
        pending(store, Judge("output", "better"), open_backend("fake"), version_of(store))
    assert store.locked_query("select count(*) from subjects").rows == [(0,)]


def test_what_the_answers_reply_to_is_judged_with_them_earlier_turns_and_system_text(tmp_path: Path) -> None:
    store = Store(tmp_path / "talks.duckdb").create()
    ask = [{"role": "user", "content": "And my name?"}, {"role": "assistant", "content": "It is Bob."}]
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"I am {name}."},
                {"role": "assistant", "content": "Hello."},
                *ask,
            ],
            "other": "I cannot know.",
        }
        for name in ("Bob", "Alice")
    ]
    import_file(store, write_rows(tmp_path / "talks.jsonl", rows))
    questions = pending(store, Judge("output", "other"), open_backend("fake"), version_of(store)).questions
    texts = [request.messages[1][1] for request in questions]
    assert len(texts) == len(set(texts)) == 4
    assert sum("I am Alice." in text for text in texts) == 2


def test_a_group_that_cannot_be_looked_at_keeps_no_other_from_being_collected(store: Store) -> None:
    with Rehearsal(prices=PRICES, marker=MARKER, batch_seconds=3600) as server, key():
        backend = open_backend(f"openai_batch:{MODEL}", options(server, wait=False))
        for task in (Judge("output", "other"), Grade(load_rubric("accuracy"))):
            with Run(store, task, backend, version_of(store), budget=Decimal(5)) as run:
                run.go()
        server.advance(2 * 3600)
        with store.transaction() as con:
            con.execute("update setups set task = 'summon' where task = 'judge'")
        found = collect(store, options(server))
        assert scores(store) == expected(ROWS)
        assert ["'summon'" in problem for problem in found.problems] == [True]
        with store.transaction() as con:
            con.execute("update setups set task = 'judge' where task = 'summon'")
        assert collect(store, options(server)).problems == ()
        assert all(row["usable"] for row in results(store, "judge"))
        assert money(store)["spent_usd"] == server.billed_usd()


def test_replies_that_waited_in_the_spool_are_read_by_the_task_that_asked(store: Store) -> None:
    backend, version = open_backend("fake"), version_of(store)
    with Run(store, Judge("output", "other"), backend, version) as run:
        run.go()
    with store.transaction() as con:
        kept = con.execute(
            "select attempt_id::varchar, key::varchar, request_id, outcome, text, finish_reason from replies"
        ).fetchall()
        con.execute("delete from readings")
        con.execute("delete from replies")
    spool.add(spool.spool_of(store.path), [Reply(*row[:4], text=row[4], finish_reason=row[5]) for row in kept])
    with Run(store, Grade(load_rubric("accuracy")), backend, version) as run:
        run.go()
    assert [row["usable"] for row in results(store, "judge")] == [True] * 2 * ROWS
