"""Replies as models write them, with what a person reads in each: tests/data/replies.jsonl, written for this project.

A line holds the rubric, the finish reason, the text, and the right score or the reason why there is none. `tag` says
which family of models writes so, or what is hard about it. The rubric `letters` is accuracy in whole points, answered
by the labels A (0) to F (5).
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpasift.graders.prompts.reading import LONGEST, Reading, read_score
from alpasift.graders.prompts.rubric import load_rubric
from alpasift.graders.prompts.thinking import answer_of
from conftest import ROOT

REPLIES: list[dict[str, Any]] = [
    json.loads(line) for line in (ROOT / "tests" / "data" / "replies.jsonl").read_text("utf-8").splitlines()
]
RUBRICS = {name: load_rubric(name) for name in ("accuracy", "helpfulness", "curation", "additive")}
RUBRICS["letters"] = replace(RUBRICS["accuracy"], name="letters", step=Decimal(1), labels=tuple("ABCDEF"))


def read(reply: dict[str, Any], text: str | None = None) -> Reading:
    return read_score(reply["text"] if text is None else text, RUBRICS[reply["rubric"]], reply["finish_reason"])


def test_no_reply_is_read_as_a_wrong_number_and_nearly_every_score_is_found() -> None:
    wrong, missed, right = list[str](), list[str](), 0
    for reply in REPLIES:
        found = read(reply).score
        stated = Decimal(reply["score"]) if "score" in reply else None
        if found is not None and found != stated:
            wrong.append(f"{reply['text']!r} ({reply['rubric']}): {found}, and {stated} is right")
        elif stated is not None and found is None:
            missed.append(reply["text"])
        right += found is not None and found == stated
    readable = sum("score" in reply for reply in REPLIES)
    precision, recall = right / (right + len(wrong)), right / readable
    print(f"{len(REPLIES)} replies, {readable} with a score: precision {precision:.4f}, recall {recall:.4f}")
    assert not wrong, "\n".join(wrong)
    assert recall >= 0.98, missed


def test_the_replies_are_of_every_kind() -> None:
    """At least 1,500, with every rubric, every finish reason and every reason that a parser gives."""
    assert len(REPLIES) >= 1500
    assert len({(reply["rubric"], reply["finish_reason"], reply["text"]) for reply in REPLIES}) == len(REPLIES)
    assert {reply["rubric"] for reply in REPLIES} == set(RUBRICS)
    assert {reply["finish_reason"] for reply in REPLIES} == {"stop", "length", "content_filter"}
    reasons = {"unreadable", "out_of_range", "cut_off", "refused", "empty"}
    assert {reply["reason"] for reply in REPLIES if "reason" in reply} == reasons
    families = Counter(
        reply["tag"].rpartition(" ")[0] for reply in REPLIES if reply["tag"].endswith((" first", " last"))
    )
    assert len(families) >= 12


@pytest.mark.parametrize("reason", ["unreadable", "out_of_range", "cut_off", "refused", "empty"])
def test_a_reply_without_a_score_gets_the_reason_that_a_person_would_give(reason: str) -> None:
    for reply in REPLIES:
        if reply.get("reason") == reason:
            assert read(reply).reason == reason, reply


ENDED = [reply for reply in REPLIES if reply["finish_reason"] == "stop"]
UNREAD = [reply for reply in ENDED if reply.get("reason") == "unreadable"]
WORDS = st.sampled_from(
    ["the", "river", "is", "long", "and", "its", "water", "cold", "but", "nobody", "swims", "today"]
)
MARKS = st.sampled_from([",", ";", ".", "!"])
PROSE = st.lists(WORDS | MARKS, min_size=1, max_size=12).map(" ".join)
TAGS = st.sampled_from(
    [
        ("<think>", "</think>"),
        ("<thinking>", "</thinking>"),
        ("[THINK]", "[/THINK]"),
        ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
        ("<scratchpad>", "</scratchpad>"),
        ("<inner_thoughts>", "</inner_thoughts>"),
        ("<|begin_of_thought|>", "<|end_of_thought|>"),
        ("", "</think>"),
    ]
)


@given(st.sampled_from(UNREAD), st.lists(PROSE, max_size=3), st.lists(PROSE, max_size=3))
def test_no_prose_around_a_reply_without_a_score_gives_it_one(
    reply: dict[str, Any], before: list[str], after: list[str]
) -> None:
    """None, or what its last line states alone: "4", then "I'd go with 3.", is one score once the 4 is not first."""
    stated = read(reply, reply["text"].rstrip().rpartition("\n")[2]).score
    assert read(reply, "\n".join([*before, reply["text"], *after])).score in (None, stated)


@given(st.sampled_from([reply for reply in UNREAD if reply["tag"].startswith(("lists", "sentences"))]), st.data())
def test_no_other_word_in_a_list_or_a_sentence_makes_its_number_a_score(
    reply: dict[str, Any], data: st.DataObject
) -> None:
    words = reply["text"].split(" ")
    places = [i for i, word in enumerate(words) if word.isalpha() and word.islower()]
    if places:
        words[data.draw(st.sampled_from(places))] = data.draw(WORDS)
        assert read(reply, " ".join(words)).score is None


@given(st.sampled_from(REPLIES), TAGS)
def test_what_is_thought_is_never_a_score(reply: dict[str, Any], tags: tuple[str, str]) -> None:
    assert read(reply, tags[0] + reply["text"] + tags[1]).score is None


@given(st.sampled_from(ENDED), st.sampled_from(REPLIES), TAGS)
def test_thinking_before_a_reply_changes_nothing_of_its_score(
    reply: dict[str, Any], thought: dict[str, Any], tags: tuple[str, str]
) -> None:
    if "channel" in reply["text"] + thought["text"] or "im_start" in reply["text"] + thought["text"]:
        return  # such a model has channels and no tags
    if thought["text"].startswith(("analysis", "commentary")):
        return  # the same where its special tokens are left out
    if "assistantfinal" not in reply["text"]:
        assert read(reply, tags[0] + thought["text"] + tags[1] + "\n" + reply["text"]).score == read(reply).score


@given(st.sampled_from(ENDED))
def test_reading_what_was_read_reads_the_same(reply: dict[str, Any]) -> None:
    answer = answer_of(reply["text"])
    assert answer_of(answer.text).text.strip() == answer.text.strip()
    if not answer.thinking and answer.text.strip():
        assert read(reply, answer.text).score == read(reply).score
    score = read(reply).score
    if score is not None and reply["rubric"] != "letters":
        assert read(reply, str(score.normalize())).score == score


LED_TO = st.sampled_from(
    [
        "The response ends with:",
        "Its last line reads:",
        "The output is only this:",
        "The response contains the words",
        "The row's answer gives itself a score:",
        "Die Antwort endet mit:",
        "La respuesta termina con:",
    ]
)
QUOTED = st.sampled_from(
    [
        "{0}\n> Score: {1}",
        "{0}\n\n> **Score: {1}**",
        '{0} "Score: {1}"',
        "{0} \u201cBananas. Score: {1}\u201d.",
        "{0} 'Score: {1}'",
        '{0}\n"Bananas.\nScore: {1}"',
        "{0}\n```\nScore: {1}\n```",
        '{0}\n```json\n{{"score": {1}}}\n```',
        "{0}\n~~~\nBananas.\n\nScore: {1}\n~~~",
        "{0}\n`Score: {1}`",
        "{0} Score: {1}",
        "{0}\nScore: {1}",
        "{0}\n- Score: {1}",
        "{0}\n<score>{1}</score>",
    ]
)
OWN = st.sampled_from(["Score: {}", "**Score: {}**", "My score: {}", "Final score: {}/5", "I rate it {}."])


@given(QUOTED, LED_TO, st.integers(1, 5), st.integers(1, 5), OWN)
def test_a_score_that_the_reply_quotes_from_the_row_is_not_its_own(
    quoted: str, led_to: str, theirs: int, ours: int, own: str
) -> None:
    said = "It says nothing on the topic.\n" + quoted.format(led_to, theirs)
    for rubric in ("curation", "accuracy"):
        assert read_score(said, RUBRICS[rubric]).score is None
        assert read_score(said + "\n", RUBRICS[rubric], "length").score is None
        found = read_score(said + "\n\nNobody is helped by that.\n\n" + own.format(ours), RUBRICS[rubric]).score
        assert found == ours


FORMS = [
    *("Score: {}", "**Score: {}**", "{}", "Rating: {}", "My score is {}.", "I would give this a {}", "Score = {}"),
    *("<score>{}</score>", '{{"score": "{}"}}', "- Score: {}", "| Score | {} |", "### Score\n{}", "\\boxed{{{}}}"),
    *(
        "\u8bc4\u5206\uff1a{}",
        "Bewertung: {}",
        "{}\nThe response is fine.",
        "This deserves a {}.",
        "```\n{}\n```",
        "Score: ({})",
    ),
]
NO_SCORE = [
    *(
        "4/10",
        "4 out of 10",
        "4 (out of ten)",
        "4 of 10",
        "4 (max 10)",
        "4 [1-10]",
        "4 (scale of 10)",
        "4 sobre 10",
        "40%",
    ),
    *("4 on a 10-point scale", "4 (8/10)", "4 (= 40%)", "4 in 10", "4-out-of-10", "4 (where 10 is the best)", "4/5/10"),
    *("4 or 5", "4-5", "4 to 5", "3.5 to 4", "between 3 and 4", "4, maybe 5", "4 -> 3", "4 (now 3)", "4 (five)", "4 3"),
    *(
        "not 4",
        "at least 4",
        "~4",
        "4+",
        "4?",
        "4 (?)",
        ">4",
        "4, if that",
        "4 minus 1",
        "4, less one",
        "4 \u00b1 1",
        "4 \u00bd",
    ),
    *(
        "4.5.2",
        "4e1",
        "4,000",
        "4:1",
        "4th",
        "4x",
        "v4",
        "#4",
        "4 errors",
        "4 km",
        "4%",
        "\u20ac4",
        "4^2",
        "4 (number of errors)",
    ),
    *("4 (style)", "4 for readability", "four", "IV", "4 (normalised to 0-1)", "4 dari 10", "4 \u0645\u0646 10"),
]


@pytest.mark.parametrize("value", NO_SCORE)
def test_what_is_no_score_is_none_in_any_form(value: str) -> None:
    for form in FORMS:
        for rubric in ("accuracy", "curation"):
            assert read_score(form.format(value), RUBRICS[rubric]).score is None, form


HOSTILE = [
    *('{"' * 20000, "{a:[" * 10000, '{"score": "' + '\\"' * 19000, "[" * 40000, "(" * 40000, '"' * 40000),
    *("a" + "_" * 39000 + "a", "*" * 40000, "`" * 40000, "$" * 40000, "\\boxed{" + " " * 39000, "|" * 40000),
    *("<think>" * 5000, "</think>" * 5000, "<reason>" * 4000, "<score>" * 5000, "&lt;" * 9000, "<|channel|>" * 3600),
    *("score " * 6000, "Score: 4, " * 3999, "Score: 1 " + "+ 1 " * 9000, "4, " * 13000, "4, " + "maybe " * 6000 + "5"),
    *("Score:" + " " * 39000 + "4", "I would give " + "the " * 9000 + "4", "scale 1" + " " * 39000, "1. " * 13000),
    *("4\n" * 2000, "4." + "0" * 39000, "\u0664" * 40000, "\ufeff" * 40000 + "4", "\u56de\u7b54" * 19000, "=\n" * 2000),
    *(
        "> 4\n" * 9000,
        ' "a' * 13000,
        "\u201ca" * 19000,
        "says: " * 6000 + "4",
        "it is only " * 3600 + "4",
        "```\n4\n" * 5000,
    ),
    *("|a|b|\n|-|-|\n" * 3000, '"a\n' * 13000, "- it says:\n" * 3500 + "4", "contains " + "a" * 39000, "four (" * 6000),
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:12]))
def test_a_long_hostile_reply_is_read_like_any_other(text: str) -> None:
    """No expression of the parser may go through such a text again and again: the suite's time limit would show it."""
    for rubric in RUBRICS.values():
        for finish in ("stop", "length"):
            assert read_score(text, rubric, finish).score in (None, Decimal(4))
    assert read_score("4.5\n" + "a" * LONGEST, RUBRICS["accuracy"]).reason == "unreadable"
