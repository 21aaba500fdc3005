"""Preference pairs in the store: both answers are rows, the pair stays a pair, no training learns the rejected one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alpasift.batcher.data.importing import import_file
from alpasift.batcher.data.stored_rows import export_rows
from alpasift.batcher.store import Store, named_query, rows
from alpasift.batcher.tasks.judge import Judge
from alpasift.batcher.trainings import find_rows

PAIRS = [
    {"id": 1, "prompt": "Name a fish.", "chosen": "Cod.", "rejected": "Cow."},
    {
        "id": 2,
        "prompt": "Sum?",
        "chosen": [{"role": "user", "content": "Sum?"}, {"role": "assistant", "content": "4"}],
        "rejected": [{"role": "user", "content": "Sum?"}, {"role": "assistant", "content": "5"}],
    },
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "sift.duckdb")


def jsonl(path: Path, *given: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return path


def written(store: Store, version_id: str, positions: list[int] | None, path: Path, **how: Any) -> list[Any]:
    export_rows(store, version_id, positions, path, **how)
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_both_answers_are_rows_and_the_pair_is_a_row_of_a_view(store: Store, tmp_path: Path) -> None:
    done = import_file(store, jsonl(tmp_path / "a.jsonl", *PAIRS))
    assert (done.rows, done.row_format) == (4, "preference")
    with store.reader() as con:
        text = (
            "select chosen_position, rejected_position, instruction, chosen, rejected from preference_pairs order by 1"
        )
        assert rows(con, text).rows == [(0, 1, "Name a fish.", "Cod.", "Cow."), (2, 3, "Sum?", "4", "5")]
        pool = rows(
            con, named_query("pool").text, {"version_id": done.version_id, "grader_id": None, "rubric_id": None}
        ).dicts()
    assert [row["preference"] for row in pool] == ["chosen", "rejected", "chosen", "rejected"]


def test_a_selection_keeps_pairs_whose_chosen_answer_it_has(store: Store, tmp_path: Path) -> None:
    version = import_file(store, jsonl(tmp_path / "a.jsonl", *PAIRS)).version_id
    out = tmp_path / "out.jsonl"
    assert written(store, version, None, out) == PAIRS
    assert written(store, version, [0], out) == PAIRS[:1]
    assert written(store, version, [0, 1, 2], out) == PAIRS
    alone = {"instruction": "Sum?", "input": "", "output": "5", "preference": "rejected"}
    assert written(store, version, [0, 3], out) == [PAIRS[0], alone]
    apart = written(store, version, [0, 1], out, row_format="alpaca")
    assert [(row["output"], row["preference"]) for row in apart] == [("Cod.", "chosen"), ("Cow.", "rejected")]


def test_a_selection_of_a_tree_has_only_the_answers_that_were_selected(store: Store, tmp_path: Path) -> None:
    instances = [{"input": "a", "output": "A"}, {"input": "b", "output": None}, {"input": "c", "output": "C"}]
    task = {"instruction": "Do.", "instances": instances}
    done = import_file(store, jsonl(tmp_path / "a.jsonl", task, {**task, "instances": instances[:1]}))
    assert (done.rows, done.reasons) == (3, {"no_answer": 1})
    out = tmp_path / "out.jsonl"
    assert len(written(store, done.version_id, None, out)) == 2
    assert written(store, done.version_id, [0, 2], out) == [task]
    assert written(store, done.version_id, [2, 3], out) == [
        {"instruction": "Do.", "input": "c", "output": "C"},
        {**task, "instances": instances[:1]},
    ]


def test_no_training_learns_a_rejected_answer(store: Store, tmp_path: Path) -> None:
    kto = [{"prompt": "Q", "completion": text, "label": text == "good"} for text in ("good", "bad")]
    path = jsonl(tmp_path / "a.jsonl", *PAIRS, *kto)
    import_file(store, path)
    for found in (find_rows(str(store.path)), find_rows(str(store.path), data=str(path))):
        assert [example.output for example in found.examples] == ["Cod.", "4", "good"]
        assert found.skipped == 3


def test_a_judge_compares_the_answers_of_a_pair(store: Store, tmp_path: Path) -> None:
    version = import_file(store, jsonl(tmp_path / "a.jsonl", *PAIRS)).version_id
    task = Judge("output", "rejected")
    task.items(store, version)
    with store.reader() as con:
        text = "select content from subjects join subject_lists using (subject_id) order by position"
        pairs = [json.loads(row[0]) for row in rows(con, text).rows]
    assert [(pair["A"], pair["B"]) for pair in pairs] == [("Cod.", "Cow."), ("Cow.", "Cod."), ("4", "5"), ("5", "4")]
