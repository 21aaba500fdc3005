"""Graders whose scores hardly tell the rows apart are named with their figures, which are worked out by hand here."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import Ran, some_rows, write_rows

Call = Callable[..., Ran]


def script(path: Path, *rules: tuple[str, str]) -> str:
    """A grader that answers by the first pattern found in the row."""
    path.write_text("".join(f'[[reply]]\nmatch = "{match}"\ntext = "{text}"\n' for match, text in rules))
    return f"fake:{path}"


@pytest.fixture
def of_forty(alpasift: Call, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Grade forty rows by a script and return the figures that the view gives."""
    write_rows(tmp_path / "r.jsonl", some_rows(40))
    alpasift("import", "r.jsonl")

    def grade(*rules: tuple[str, str]) -> dict[str, Any]:
        spec = script(tmp_path / f"{len(list(tmp_path.glob('*.toml')))}.toml", *rules)
        ran = alpasift("grade", "--grader", spec)
        assert ran.code == 0, ran.err
        name = f"fake:{Path(spec).name}"
        (figures,) = [row for row in alpasift("query", "score_entropy", "--json").json if row["grader"] == name]
        warned = "hardly tells them apart" in ran.err
        assert warned is figures["degenerate"], ran.err
        return figures

    return grade


def test_more_than_four_fifths_of_one_score_is_degenerate_and_four_fifths_are_not(of_forty: Callable[..., Any]) -> None:
    four_fifths = of_forty(("number [0-7] ", "2"), ("", "4"))  # 8 and 32 of 40
    assert (four_fifths["commonest_score"], four_fifths["commonest_rows"], four_fifths["degenerate"]) == (4, 32, False)
    more = of_forty(("number [0-6] ", "2"), ("", "4"))  # 7 and 33
    assert (more["commonest_share"], more["degenerate"]) == (33 / 40, True)
    assert more["entropy_bits"] == pytest.approx(-(33 / 40 * math.log2(33 / 40) + 7 / 40 * math.log2(7 / 40)))
    one = of_forty(("", "3"))
    assert (one["commonest_share"], one["entropy_bits"], one["distinct_scores"], one["degenerate"]) == (1, 0, 1, True)


def test_of_two_scores_that_there_are_only_the_information_counts(alpasift: Call, tmp_path: Path) -> None:
    """A grader of yes and no that keeps 85 % says 0.61 bits; one that keeps 92.5 % says 0.38."""
    (tmp_path / "yes.toml").write_text(
        'low = 0\nhigh = 1\nstep = 1\nthreshold = 1\nsystem = "Judge."\nquestion = "Is it right? {{choices}}"\n'
    )
    write_rows(tmp_path / "r.jsonl", some_rows(40))
    alpasift("import", "r.jsonl")
    for match, degenerate in (("number [0-5] ", False), ("number [0-2] ", True)):
        spec = script(tmp_path / f"{degenerate}.toml", (match, "0"), ("", "1"))
        ran = alpasift("grade", "--grader", spec, "--rubric", "yes.toml")
        assert ("hardly tells them apart" in ran.err) is degenerate, ran.err


def test_few_rows_form_and_labels_are_no_degenerate_graders(alpasift: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "few.jsonl", some_rows(19))
    alpasift("import", "few.jsonl")
    assert "hardly" not in alpasift("grade", "--grader", script(tmp_path / "s.toml", ("", "3"))).err
    write_rows(tmp_path / "many.jsonl", some_rows(60))
    alpasift("import", "many.jsonl")
    assert "hardly" not in alpasift("grade", "--grader", "rules", "--dataset", "many").err
    write_rows(tmp_path / "labels.jsonl", [{"index": i, "label": 0} for i in range(60)])
    ran = alpasift("labels", "labels.jsonl", "--as", "people", "--binary", "--field", "label", "--dataset", "many")
    assert ran.code == 0, ran.err
    assert "hardly" not in alpasift("scores", "--dataset", "many").err


def test_scores_and_select_say_so_and_filter_writes_nothing_without_a_threshold_that_was_named(
    alpasift: Call, tmp_path: Path
) -> None:
    write_rows(tmp_path / "r.jsonl", some_rows(40))
    spec = script(tmp_path / "s.toml", ("number 7 ", "5"), ("", "4.5"))  # 39 of 40, 0.17 bits; all reach 4.5
    said = "97.5% of the 40 scored rows of r have the score 4.5 (0.17 bits"
    refused = alpasift("filter", "r.jsonl", "-o", "kept.json", "--grader", spec)
    assert (refused.code, (tmp_path / "kept.json").exists()) == (1, False)
    assert said in refused.err and "`alpasift audit fake:s.toml`" in refused.err
    assert "Nothing was written" in refused.err and "--min-score 4.5" in refused.err
    assert alpasift("query", "selections", "--json").json == []
    for insisting in (["--min-score", "4.5"], ["--top", "3"], ["--keep-share", ".1"]):
        ran = alpasift("filter", "r.jsonl", "-o", "kept.json", "--grader", spec, *insisting)
        assert ran.code == 0 and said in ran.err, ran.err
    for command in (["scores"], ["scores", "--json"], ["scores", "--by", "length"]):
        assert said in alpasift(*command).err
    assert said in alpasift("select", "--min-score", "5", "--name", "best").err
    assert "hardly" not in alpasift("select", "--random", "5", "--name", "any").err


def test_a_selection_by_expected_scores_is_not_warned_of_and_they_are_named_as_the_remedy(
    alpasift: Call, tmp_path: Path
) -> None:
    write_rows(tmp_path / "r.jsonl", some_rows(40))
    path = tmp_path / "e.toml"
    path.write_text(
        '[[reply]]\nmatch = "[02468] to itself"\ntext = "4"\nlogprobs = { "4" = -0.1054, "3" = -2.3026 }\n'
        '[[reply]]\ntext = "4"\nlogprobs = { "4" = -0.1054, "5" = -2.3026 }\n'
    )
    alpasift("import", "r.jsonl")
    ran = alpasift("grade", "--grader", f"fake:{path}", "--answer-format", "expected_score")
    assert "all of the 40 scored rows of r have the score 4 (0.00 bits" in ran.err
    assert "`select --by expected_score`" in ran.err
    chosen = alpasift("select", "--keep-share", ".5", "--by", "expected_score", "--name", "half")
    assert chosen.code == 0 and "hardly" not in chosen.err
