"""The text of an API's answer, with content as one text, in parts, or in the arguments of a tool."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from alpasift.graders.api.wire_format import reply_of
from alpasift.graders.prompts.reading import read_score
from alpasift.graders.prompts.rubric import load_rubric


def reply(**message: Any) -> tuple[str | None, str | None]:
    body = {
        "model": "m",
        "choices": [{"message": {"role": "assistant", **message}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1},
    }
    found = reply_of("a", "k", "r", body)
    return found.text, found.finish_reason


THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "Score: 2"}]}


@pytest.mark.parametrize(
    "content",
    [
        "4.5",
        [{"type": "text", "text": "4.5"}],
        [THOUGHT, {"type": "text", "text": "4.5"}],
        [{"type": "reasoning", "text": "Score: 2"}, {"type": "text", "text": "4.5"}],
        [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "3"}]},
            {"type": "output_text", "text": "4.5"},
        ],
        [{"type": "text", "text": "4"}, {"type": "text", "text": ".5"}],
        [{"type": "text", "text": {"value": "4.5", "annotations": []}}],
        ["4.5"],
        {"type": "text", "text": "4.5"},
        [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "4.5"}, 7, None],
    ],
)
def test_the_text_parts_of_a_message_are_its_answer_and_thinking_is_not(content: Any) -> None:
    text, finish = reply(content=content)
    assert read_score(text, load_rubric("accuracy"), finish).score == Decimal("4.5")


@pytest.mark.parametrize("content", [None, [], [THOUGHT], 4.5, {"text": 4.5, "type": "text"}, [{"type": "text"}], [[]]])
def test_a_message_without_text_is_empty(content: Any) -> None:
    assert reply(content=content) == (None, "stop")


def test_a_refusal_is_one_in_either_place() -> None:
    assert reply(content=None, refusal="No.") == ("No.", "content_filter")
    assert reply(content=[{"type": "refusal", "refusal": "No."}]) == ("No.", "content_filter")
    assert reply(content=[{"type": "text", "text": "4"}], refusal=None) == ("4", "stop")


def test_the_arguments_of_the_one_tool_that_is_called_are_the_answer() -> None:
    call = {"type": "function", "function": {"name": "grade", "arguments": '{"score": 3.5}'}}
    text, finish = reply(content=None, tool_calls=[call])
    assert read_score(text, load_rubric("accuracy"), finish).score == Decimal("3.5")
    assert reply(content=None, tool_calls=[call, call]) == (None, "stop")
    assert reply(content="4", tool_calls=[call]) == ("4", "stop")
    assert reply(content=None, tool_calls=[{"function": {"arguments": "look it up"}}]) == (None, "stop")
