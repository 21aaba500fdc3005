"""The bench of free graders: orders compared with labels and with output length; expected numbers from scikit-learn."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sklearn import metrics

from alpasift.batcher.grading.bench import compared, keepers_found
from conftest import Ran, some_rows, write_rows

Call = Callable[..., Ran]
COUNT = 120


def answers() -> list[dict[str, Any]]:
    """Rows whose output is long or short at random; every third holds a list of lines."""
    dice = random.Random(5)
    rows = []
    for i in range(COUNT):
        words = dice.choices(["sun", "dog", "hill", "boat", "rain"], k=dice.randint(3, 40))
        joint = "\n" if i % 3 == 0 else " "
        rows.append({"instruction": f"Question {i}?", "input": "", "output": joint.join(words) + "."})
    return rows


def labels(rows: list[dict[str, Any]]) -> list[int]:
    """Rows with a list are good, and one in ten besides."""
    dice = random.Random(6)
    return [int(("\n" in row["output"]) != (dice.random() < 0.1)) for row in rows]


@pytest.fixture
def lab(alpasift: Call, tmp_path: Path) -> Call:
    rows = answers()
    good = labels(rows)
    write_rows(tmp_path / "rows.jsonl", rows)
    write_rows(tmp_path / "labels.jsonl", [{"index": i, "good": one} for i, one in enumerate(good)])
    assert alpasift("import", "rows.jsonl", "--dataset", "rows").code == 0
    assert alpasift("labels", "labels.jsonl", "--as", "people", "--field", "good", "--binary").code == 0
    return alpasift


def test_each_free_score_stands_beside_the_labels_and_beside_length(lab: Call) -> None:
    rows = answers()
    good = labels(rows)
    assert lab("grade", "--grader", "rules").code == 0
    [found] = lab("bench-graders", "--json").json
    assert (found["dataset"], found["reference"]["grader"], found["rows"], found["keepers"]) == (
        "rows",
        "labels:people",
        COUNT,
        sum(good),
    )
    scores = {one["name"]: one for one in found["scores"]}
    assert list(scores) == ["output_chars", "output_words", "output_lines", "rules"]
    values = {
        "output_chars": [len(row["output"]) for row in rows],
        "output_words": [len(row["output"].split()) for row in rows],
        "output_lines": [len(row["output"].splitlines()) for row in rows],
    }
    length = metrics.roc_auc_score(good, values["output_chars"])
    for name, column in values.items():
        area = metrics.roc_auc_score(good, column)
        assert scores[name]["auc"]["value"] == pytest.approx(area)
        assert scores[name]["end"] == ("highest" if area >= 0.5 else "lowest")
        better = max(area, 1 - area) - max(length, 1 - length)
        assert scores[name]["lead"]["value"] == pytest.approx(better)
    assert scores["output_lines"]["beats_length"] and not scores["output_words"]["beats_length"]
    assert scores["rules"]["auc"]["reason"] == "all rows have one value" and scores["rules"]["lead"]["value"] is None
    assert found["messages"] == [
        "better than output length, with an interval that allows for 3 comparisons: output lines"
    ]
    screen = lab("bench-graders", "--reference", "labels:people", "--keep-share", ".25")
    assert screen.code == 0 and "keepers in 25.0%" in screen.out
    assert "better than output length" in screen.out and "output lines" in screen.out


def test_that_no_score_beats_length_is_said(lab: Call, tmp_path: Path) -> None:
    by_length = [int(len(row["output"]) > 120) for row in answers()]
    write_rows(tmp_path / "long.jsonl", [{"index": i, "long": one} for i, one in enumerate(by_length)])
    assert lab("labels", "long.jsonl", "--as", "long", "--field", "long", "--binary").code == 0
    both = {one["reference"]["grader"]: one for one in lab("bench-graders", "--json").json}
    assert set(both) == {"labels:people", "labels:long"}
    found = both["labels:long"]
    assert not any(one["beats_length"] for one in found["scores"])
    assert found["messages"] == [
        "none of the 2 other scores is shown to order the rows better than output length, each taken from its better "
        "end"
    ]
    assert found["scores"][0]["found"] == 1.0, "the longest rows are the keepers"


def test_each_version_of_labels_is_a_reference_of_its_own(lab: Call, tmp_path: Path) -> None:
    """The second file of the name keeps the last 30 rows of 120, the first those of `labels`."""
    rows = answers()
    write_rows(tmp_path / "again.jsonl", [{"index": i, "good": int(i >= COUNT - 30)} for i in range(COUNT)])
    assert lab("labels", "again.jsonl", "--as", "people", "--field", "good", "--binary").code == 0
    found = {one["reference"]["grader"]: one["keepers"] for one in lab("bench-graders", "--json").json}
    assert found == {"labels:people": sum(labels(rows)), "labels:people@2": 30}


def test_few_labels_carry_no_claim_and_none_are_an_error(lab: Call, tmp_path: Path) -> None:
    few = [{"index": i, "good": int("\n" in row["output"])} for i, row in enumerate(answers()[:24])]
    write_rows(tmp_path / "few.jsonl", few)
    assert lab("labels", "few.jsonl", "--as", "few", "--field", "good", "--binary").code == 0
    [found] = lab("bench-graders", "--reference", "labels:few", "--json").json
    assert (found["rows"], found["keepers"]) == (24, 8)
    assert found["messages"][0].startswith("the reference keeps 8 of 24 rows: with fewer than 10 of a kind nothing")
    assert not any(one["beats_length"] for one in found["scores"])
    write_rows(tmp_path / "other.jsonl", some_rows(3))
    assert lab("import", "other.jsonl", "--dataset", "other").code == 0
    none = lab("bench-graders", "--dataset", "other")
    assert none.code == 1 and "these rows have no labels to compare with" in none.err


def test_what_was_paid_for_or_is_a_rehearsal_is_no_free_score(lab: Call, tmp_path: Path) -> None:
    (tmp_path / "paid.toml").write_text('[model]\nprice = "1"\n', "utf-8")
    assert lab("grade", "--grader", "fake", "--limit", "5").code == 0
    [found] = lab("bench-graders", "--json").json
    assert [one["name"] for one in found["scores"]] == ["output_chars", "output_words", "output_lines"]
    reference = lab("bench-graders", "--reference", "fake", "--json")
    assert reference.code == 0 and json.loads(reference.out)[0]["rows"] == 5


def test_keepers_are_counted_among_as_many_rows_and_ties_in_proportion() -> None:
    cells = [(3.0, True), (2.0, True), (2.0, False), (2.0, False), (1.0, True)]
    assert keepers_found(cells, 1) == pytest.approx(1 / 3)
    assert keepers_found(cells, 2) == pytest.approx((1 + 1 / 3) / 3)
    assert keepers_found(cells, 5) == 1.0
    assert keepers_found([(1.0, False)], 1) is None
    half = compared("x", None, None, [(v, 1.0, keeps) for v, keeps in cells], 0.4)
    assert (half.kept, half.rows, half.keepers) == (2, 5, 3)
