"""One parser from reply to score. The cases are those that the reference (gpt4life/alpagasus) gets wrong."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpasift.graders.prompts.reading import read_score
from alpasift.graders.prompts.rubric import load_rubric

ACCURACY = load_rubric("accuracy")
LAST = replace(ACCURACY, name="last", score="last")
RULES = load_rubric("rules")


@pytest.mark.parametrize(
    "text",
    [
        "4.5",
        "4.5\n",
        " 4.5 ",
        "\n\n4.5",
        "Score:4.5",
        "Score: 4.5",
        "score: 4.5",
        "score: 4.5/5",
        "4.5/5",
        "4.5 / 5",
        "4.5 out of 5",
        "4.5.",
        "**4.5**",
        "**Score:** 4.5",
        "**Score: 4.5**",
        "# 4.5",
        "`4.5`",
        '"4.5"',
        "Accuracy: 4.5",
        "Accuracy score: 4.5",
        "The score is 4.5.",
        "Overall score: 4.5",
        "Rating = 4.5",
        "4,5",
        "[4.5]",
        "(4.5)",
        "4.50",
        "4.5\nThe answer leaves out the year.",
        "Score:\n4.5",
        "Score: 4.5\r\nBecause.",
        "4.5 - nearly right",
        "4.5: nearly right",
        "4.5, since the year is missing",
        "4.5 (nearly right)",
        "4.5 points",
        "The response is fine.\nScore: 4.5",
        '{"score": 4.5}',
        '{"score": "4.5", "explanation": "fine"}',
        '```json\n{"score": 4.5}\n```',
    ],
)
def test_a_score_of_four_and_a_half_is_read_however_it_is_spelled(text: str) -> None:
    assert read_score(text, ACCURACY).score == Decimal("4.5")


@pytest.mark.parametrize(
    "text", ["45", "-3", "inf", "-inf", "nan", "5.5", "6", "4.7", "0.25", "Score: 9", "1e3\n", '{"score": 50}']
)
def test_a_number_off_the_scale_is_no_score(text: str) -> None:
    reading = read_score(text, ACCURACY)
    assert reading.score is None
    assert reading.reason == ("unreadable" if text.startswith("1e3") else "out_of_range")


@pytest.mark.parametrize(
    "text",
    [
        "4 or 5",
        "4-5",
        "4.5-5",
        "between 4 and 5",
        "3 out of 4 facts are right",
        "2 errors were found",
        "5 of the 7 claims",
        "4/10",
        "good",
        "8 9",
        "Score: high",
        "Fine.\nScore: 4\nScore: 5",
        "***",
        "The year 2020 is wrong.",
        '{"score": null}',
        '{"grade": 4}',
        "4 5",
        "four",
    ],
)
def test_what_could_mean_two_things_is_unreadable(text: str) -> None:
    reading = read_score(text, ACCURACY)
    assert (reading.score, reading.reason) == (None, "unreadable")


@pytest.mark.parametrize("text", [None, "", "  \n\t "])
def test_an_empty_reply_is_empty_and_a_cut_one_is_cut_off(text: str | None) -> None:
    assert read_score(text, ACCURACY).reason == "empty"
    assert read_score(text, ACCURACY, "length").reason == "cut_off"


def test_a_reply_cut_by_length_counts_only_if_its_score_line_was_complete() -> None:
    assert read_score("4.5\nThe answer leaves ou", ACCURACY, "length").score == Decimal("4.5")
    assert read_score("4", ACCURACY, "length").reason == "cut_off"  # it may have become 4.5
    assert read_score("Score: 4.", ACCURACY, "length").reason == "cut_off"
    assert read_score("The response is ", LAST, "length").reason == "cut_off"
    assert read_score("Good.\nScore: 4\n", LAST, "length").score == Decimal(4)


def test_the_end_counts_when_the_rubric_puts_the_score_last() -> None:
    text = "Score: 2 would be too hard, as the facts are right.\nScore: 4"
    assert read_score(text, LAST).score == Decimal(4)
    assert read_score("5 facts are given.\nAll are right.\n\n**Score: 4.5**\n", LAST).score == Decimal("4.5")


def test_a_refusal_is_told_from_nonsense() -> None:
    assert read_score("I'm sorry, but I can't rate this.", ACCURACY).reason == "refused"
    assert read_score("4.5", ACCURACY, "content_filter").reason == "refused"
    assert read_score("4.5\nI cannot verify the date.", ACCURACY).score == Decimal("4.5")


def test_the_explanation_is_kept() -> None:
    assert (
        read_score("4\nThe year is wrong.\nThe rest is right.", ACCURACY).explanation
        == "The year is wrong.\nThe rest is right."
    )
    assert read_score("4 - the year is wrong", ACCURACY).explanation == "the year is wrong"
    assert read_score("4", ACCURACY).explanation is None


def test_the_rules_name_their_reason_beside_the_score() -> None:
    reading = read_score("0\ncut_off: it ends with a comma", RULES)
    assert (reading.score, reading.reason, reading.explanation) == (
        Decimal(0),
        "cut_off",
        "cut_off: it ends with a comma",
    )
    assert read_score("1", RULES).reason is None


@given(st.text(), st.sampled_from(["stop", "length", "content_filter", None]))
def test_no_text_breaks_the_parser_and_a_score_is_always_on_the_scale(text: str, finish: str | None) -> None:
    for rubric in (ACCURACY, LAST):
        reading = read_score(text, rubric, finish)
        assert (reading.score is None) != (reading.reason is None)
        if reading.score is not None:
            assert 0 <= reading.score <= 5
            assert reading.score * 2 == int(reading.score * 2)


@given(
    st.sampled_from(ACCURACY.choices),
    st.sampled_from(["", "Score: ", "**", "Accuracy: "]),
    st.sampled_from(["", "\nWhy: x", ".", "/5"]),
)
def test_every_choice_reads_back_as_itself(choice: str, before: str, after: str) -> None:
    assert read_score(before + choice + after, ACCURACY).score == Decimal(choice)
