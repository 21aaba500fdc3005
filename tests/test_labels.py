"""Labels imported as a grader: what matches, what is reported, what is refused; all else works on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from alpasift.batcher.data.importing import import_file
from alpasift.batcher.data.versions import resolve
from alpasift.batcher.grading.labels import LabelError, import_labels, own_rubric, rubric_called
from alpasift.batcher.grading.select import Condition, select
from alpasift.batcher.store import Store
from alpasift.graders.prompts.rubric import RubricError, load_rubric
from conftest import Ran, some_rows, write_rows

Call = Callable[..., Ran]
D = Decimal


@pytest.fixture
def dataset(store: Store, tmp_path: Path) -> Path:
    """Six rows, the last equal to the first, in the store; the folder for files of labels."""
    rows = some_rows(5)
    import_file(store, write_rows(tmp_path / "d.jsonl", [*rows, rows[0]]))
    return tmp_path


def grades(store: Store) -> list[tuple[Any, ...]]:
    """Position, score, reason and reply of all rows that have been graded."""
    text = """
        select r.position, g.score, g.reason, g.reply, g.grader, g.rubric
        from graded_rows r join graded g using (example_id, grader_id, rubric_id) order by r.position
    """
    with store.reader() as con:
        return con.execute(text).fetchall()


def counts(store: Store) -> dict[str, int]:
    tables = (
        "graders",
        "rubrics",
        "setups",
        "questions",
        "runs",
        "run_ends",
        "attempts",
        "replies",
        "readings",
        "ledger",
    )
    with store.reader() as con:
        return {name: con.execute(f"select count(*) from {name}").fetchall()[0][0] for name in tables}


def test_labels_by_position_are_grades_of_every_equal_row(store: Store, dataset: Path) -> None:
    path = write_rows(
        dataset / "l.jsonl", [{"index": 0, "good": True}, {"index": 2, "good": 0}, {"index": 3, "good": None}]
    )
    found = import_labels(store, path, "people", resolve(store, None), own_rubric("people"))
    assert (found.grader, found.rubric, found.examples, found.unlabelled, found.without_label) == (
        "labels:people",
        "people",
        2,
        1,
        3,
    )
    assert grades(store) == [
        (0, D(1), None, "true", "labels:people", "people"),
        (2, D(0), None, "0", "labels:people", "people"),
        (5, D(1), None, "true", "labels:people", "people"),
    ]
    assert counts(store)["ledger"] == 0
    with store.reader() as con:
        assert con.execute("select command, outcome, usable, spent_usd from run_list").fetchall() == [
            ("labels", "done", 2, D(0))
        ]
        assert con.execute("select count(*) from open_attempts").fetchall() == [(0,)]


def test_the_same_file_again_adds_nothing_and_another_is_another_version(store: Store, dataset: Path) -> None:
    version = resolve(store, None)
    path = write_rows(dataset / "l.jsonl", [{"index": 1, "good": 1}])
    first = import_labels(store, path, "people", version, own_rubric("people"))
    before = counts(store)
    again = import_labels(store, path, "people", version, own_rubric("people"))
    assert (first.new, again.new, again.already_there) == (1, 0, True)
    assert counts(store) == before
    other = import_labels(
        store, write_rows(dataset / "m.jsonl", [{"index": 1, "good": 0}]), "people", version, own_rubric("people")
    )
    assert other.grader == "labels:people@2"


@pytest.mark.parametrize("form", ["jsonl", "json", "csv"])
def test_labels_by_content_match_whatever_the_format(store: Store, dataset: Path, form: str) -> None:
    rows = [{**row, "mark": mark} for row, mark in zip(some_rows(7)[3:], (4.5, 2, 1, 5), strict=True)]
    path = dataset / f"l.{form}"
    if form == "csv":
        lines = [",".join((r["instruction"], r["input"], r["output"], str(r["mark"]))) for r in rows]
        path.write_text("\n".join(["instruction,input,output,mark", *lines]) + "\n")
    else:
        path.write_text(json.dumps(rows) if form == "json" else "".join(json.dumps(r) + "\n" for r in rows))
    found = import_labels(store, path, "people", resolve(store, None), load_rubric("accuracy"))
    assert (found.examples, found.unmatched, found.rubric) == (2, 2, "accuracy")
    assert "Add the number 5 to itself." in str(found.first_unmatched)
    assert [(p, s) for p, s, *_ in grades(store)] == [(3, D("4.5")), (4, D(2))]


def test_kept_rows_are_1_and_all_others_0(store: Store, dataset: Path) -> None:
    path = write_rows(dataset / "kept.jsonl", some_rows(9)[3:])
    found = import_labels(store, path, "published", resolve(store, None), own_rubric("published"), kept=True)
    assert (found.examples, found.unmatched, found.without_label) == (5, 4, 0)
    assert [(p, int(s)) for p, s, *_ in grades(store)] == [(0, 0), (1, 0), (2, 0), (3, 1), (4, 1), (5, 0)]


def test_equal_rows_labelled_differently_are_set_aside_as_conflicting(store: Store, dataset: Path) -> None:
    path = write_rows(dataset / "l.jsonl", [{"index": i, "good": g} for i, g in ((0, 1), (1, 1), (5, 0), (0, 1))])
    found = import_labels(store, path, "people", resolve(store, None), own_rubric("people"))
    assert (found.examples, found.conflicting) == (1, 1)
    assert str(found.first_conflict).endswith("l.jsonl:3: 0, and 1 for an equal row before")
    assert [(p, s, why) for p, s, why, *_ in grades(store)] == [
        (0, None, "conflicting"),
        (1, D(1), None),
        (5, None, "conflicting"),
    ]
    assert import_labels(store, path, "people", resolve(store, None), own_rubric("people")).already_there


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            [{"index": 0, "g": 1}, {"index": 1, "g": 2}],
            r"l.jsonl:2: the label 2 is not on the scale \(0, 1, true or false\)",
        ),
        ([{"index": 0, "g": "yes"}], "l.jsonl:1: the label yes is not on the scale"),
        ([{"index": 0, "g": 1}, {"index": "one", "g": 1}], "l.jsonl:2: index = one; it is the row's position"),
        ([{"index": 0, "g": float("nan")}], "l.jsonl:1"),
        ([{"index": 90, "g": 1}], "none of its rows matches a row of d"),
        ([{"index": 0, "g": 1, "h": 1}], "give the key of the label with --field; found g, h"),
        ([{"text": "what", "g": 1}], "with --field"),
        ([[1, 2]], "a row of labels must be an object"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_line_and_nothing_is_written(
    store: Store, dataset: Path, rows: list[Any], says: str
) -> None:
    before = counts(store)
    with pytest.raises(LabelError, match=says):
        import_labels(
            store, write_rows(dataset / "l.jsonl", rows), "people", resolve(store, None), own_rubric("people")
        )
    assert counts(store) == before


def test_a_scale_of_ones_own_has_a_name_of_its_own(store: Store) -> None:
    rubric = own_rubric("stars", "1", "5", "0.5", "4")
    assert (rubric.low, rubric.high, rubric.step, rubric.threshold) == (D(1), D(5), D("0.5"), D(4))
    with pytest.raises(LabelError, match="is a built-in rubric"):
        own_rubric("accuracy")
    with pytest.raises(LabelError, match="LOW:HIGH:STEP"):
        own_rubric("stars", "a", "5", "1", "4")
    with pytest.raises(RubricError, match="outside"):
        own_rubric("stars", "1", "5", "1", "9")
    with pytest.raises(LabelError, match="is not a valid name"):
        own_rubric("../stars")
    with pytest.raises(RubricError, match="no rubric named"):
        rubric_called(store, "nobody")


def test_rows_can_be_chosen_by_their_labels(store: Store, dataset: Path) -> None:
    path = write_rows(dataset / "l.jsonl", [{"index": i, "good": i % 2} for i in range(5)])
    import_labels(store, path, "people", resolve(store, None), own_rubric("people"))
    assert select(store, resolve(store, None).version_id, "kept", Condition(min_score=D(1)))[0].rows == 2


def test_the_command_brings_labels_in_and_the_others_work_on_them(alpasift: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "d.jsonl", some_rows(4))
    write_rows(tmp_path / "l.jsonl", [{"index": i, "x": i, "y": 1} for i in range(5)])
    alpasift("import", "d.jsonl")
    done = alpasift("labels", "l.jsonl", "--as", "me", "--field", "x", "--scale", "0:5:1", "--threshold", 3, "--json")
    assert done.code == 0, done.err
    assert (done.json["examples"], done.json["unmatched"]) == (4, 1)
    assert "1 rows of the file match no row of d, the first: l.jsonl:5: index 4" in done.err
    assert done.err.strip().splitlines()[-1].startswith("next: alpasift scores")
    assert "graded by labels:me, rubric me: 4 of 4 rows have a score" in alpasift("scores").out
    assert "score 3" in alpasift("show", "--grader", "labels:me", "--score", 3).out
    for arguments, says in (
        (["--field", "x"], "give the scale of the labels"),
        (["--kept", "--field", "x"], "--kept sets the labels"),
        (["--scale", "1:5:1"], "must be given together"),
        (["--scale", "1:5", "--threshold", 4], "write LOW:HIGH:STEP"),
    ):
        refused = alpasift("labels", "l.jsonl", "--as", "me", *arguments)
        assert refused.code == 2 and says in refused.err
    assert alpasift("labels", "l.jsonl", "--as", "me", "--field", "x", "--binary").code == 1
