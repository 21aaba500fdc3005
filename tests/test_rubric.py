"""Rubrics: what is asked, how a row is fenced, and what a user's own file may hold."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpasift.graders import Example, Turn
from alpasift.graders.prompts.rubric import RubricError, load_rubric, parse_rubric, rubric_names

ROW = Example("Name the capital.", "France", "Paris")
MINE = """
name = "brevity"
dimension = "brevity"
low = 1
high = 5
step = 1
threshold = 4
system = "Rate {{dimension}} from {{low}} to {{high}}."
question = "One of {{choices}}:"
"""


def test_the_built_in_rubrics_are_these() -> None:
    assert rubric_names() == ["accuracy", "additive", "curation", "fit", "helpfulness", "ifd", "rules", "s-ifd"]


def test_accuracy_goes_from_zero_to_five_by_halves_and_keeps_at_four_and_a_half() -> None:
    rubric = load_rubric("accuracy")
    assert rubric.choices == ("0", "0.5", "1", "1.5", "2", "2.5", "3", "3.5", "4", "4.5", "5")
    assert (rubric.threshold, rubric.score) == (Decimal("4.5"), "first")


def test_the_fixed_text_comes_first_and_is_the_same_for_every_row() -> None:
    rubric = load_rubric("accuracy")
    one, two = rubric.messages(ROW, "a"), rubric.messages(Example("x", "", "y"), "b")
    assert one[0] == two[0]
    assert one[0][0] == "system"
    assert "{{" not in one[0][1] + one[1][1]
    assert [role for role, _ in one] == ["system", "user"]


def test_an_absent_input_has_no_section() -> None:
    rubric = load_rubric("accuracy")
    assert " input]]" in rubric.messages(ROW, "a")[1][1]
    assert " input]]" not in rubric.messages(Example("x", "", "y"), "a")[1][1]


def test_earlier_turns_are_shown_as_context_only() -> None:
    row = Example(
        "And of Spain?",
        "",
        "Madrid",
        system="Be brief.",
        turns=(Turn("user", "Capital of France?"), Turn("assistant", "Paris")),
    )
    text = load_rubric("accuracy").messages(row, "a")[1][1]
    assert " earlier turns, context only]]\nuser: Capital of France?\nassistant: Paris\n" in text
    assert " system text]]\nBe brief.\n" in text


@given(st.text(), st.text(), st.text())
def test_row_text_stays_between_marks_that_do_not_occur_in_it(instruction: str, input_: str, output: str) -> None:
    system, user = load_rubric("accuracy").messages(Example(instruction, input_, output), "seed")
    assert system == load_rubric("accuracy").messages(ROW, "other")[0]
    mark = user[1].split()[0].removeprefix("[[")
    assert len(mark) >= 4
    assert all(mark not in part for part in (instruction, input_, output))
    assert f"[[{mark} response]]\n{output}\n[[{mark} end]]" in user[1]


def test_a_row_that_holds_the_mark_gets_another_one() -> None:
    rubric = load_rubric("accuracy")
    mark = rubric.messages(ROW, "seed")[1][1].split()[0].removeprefix("[[")
    again = rubric.messages(Example(mark, "", mark), "seed")[1][1].split()[0].removeprefix("[[")
    assert again != mark


def test_fields_inside_a_row_are_not_filled_in() -> None:
    rubric = parse_rubric(MINE + 'row = "{{mark}} {{instruction}} | {{output}} {{mark}}"', "mine")
    assert "{{output}} | {{mark}}" in rubric.messages(Example("{{output}}", "", "{{mark}}"), "a")[1][1]


def test_a_users_own_rubric_comes_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "brevity.toml").write_text(MINE)
    rubric = load_rubric(str(tmp_path / "brevity.toml"))
    assert rubric.messages(ROW, "a")[0][1] == "Rate brevity from 1 to 5."
    assert rubric.choices == ("1", "2", "3", "4", "5")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("low = 1", "low is missing"),
        ('step = 1 -> step = "a"', "must be a number"),
        ("step = 1 -> step = 0.3", "whole number"),
        ("high = 5 -> high = 0", "low must be below high"),
        ("threshold = 4 -> threshold = 9", "outside"),
        ('name = "brevity" -> name = "a b"', "is not a valid name; use 1 to 64"),
        ("{{dimension}} -> {{nothing}}", "has the unknown field"),
        ("{{dimension}} -> {{output}}", "is allowed in `row` only"),
        ('dimension = "brevity" -> colour = "red"', "unknown key"),
        ('dimension = "brevity" -> row = "{{output}}"', "must hold"),
        ('dimension = "brevity" -> max_tokens = 0', "max_tokens"),
        ('dimension = "brevity" -> score = "middle"', "first"),
        ('name = "brevity" -> name = "', "not valid TOML"),
    ],
)
def test_a_rubric_that_does_not_hold_together_is_refused_with_the_key(change: str, says: str) -> None:
    old, _, new = change.partition(" -> ")
    with pytest.raises(RubricError, match=says):
        parse_rubric(MINE.replace(old, new, 1), "mine.toml")


def test_an_unknown_name_lists_the_names_there_are(tmp_path: Path) -> None:
    with pytest.raises(RubricError, match="accuracy, additive, curation, fit, helpfulness, ifd, rules, s-ifd"):
        load_rubric("acuracy")
    (tmp_path / "x.toml").write_text(MINE.replace("brevity", "accuracy"))
    with pytest.raises(RubricError, match="is a built-in rubric"):
        load_rubric(str(tmp_path / "x.toml"))


def test_a_changed_rubric_has_another_digest() -> None:
    assert parse_rubric(MINE, "a").digest() == parse_rubric(MINE, "b").digest()
    assert parse_rubric(MINE, "a").digest() != parse_rubric(MINE.replace("Rate", "Judge"), "a").digest()


def test_a_row_that_holds_every_short_mark_gets_a_longer_one() -> None:
    every = "".join(f"{i:04x} " for i in range(16**4))
    user = load_rubric("accuracy").messages(Example(every, "", "x"), "seed")[1][1]
    mark = user.split()[0].removeprefix("[[")
    assert len(mark) > 4
    assert mark not in every
