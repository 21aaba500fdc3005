"""Row formats of the field: what is read from a row, what is counted, and that the row is written as it stood."""

from __future__ import annotations

import json
import math
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpasift.batcher.data.row_formats.detect import choose_row_format, rival_answers, row_format_of
from alpasift.batcher.data.row_formats.row import NOTES, READ_FORMATS, Notes, Parts, RowFormatError, Unusable
from alpasift.batcher.data.row_formats.rows import convert, reader, restore


def examples(*rows: dict[str, Any]) -> list[tuple[Any, ...]]:
    """System, turns, instruction, input and output of every example in the rows, which must come back as they stood."""
    return read(*rows)[0]


def read(*rows: dict[str, Any], name: str = "auto") -> tuple[list[tuple[Any, ...]], dict[str, int], str]:
    row_format = choose_row_format(name, None, rows)
    notes = Notes()
    take = reader(row_format, notes, others=True)
    found, back = [], []
    for row in rows:
        for parts in take(row):
            assert isinstance(parts, Parts), parts
            found.append(tuple(parts[:5]))
            orjson.dumps(tuple(parts))
            restored = restore(row_format, parts)
            if restored is not None:
                back.append(restored)
    assert list(map(as_json, back)) == list(map(as_json, rows))
    assert list(map(list, back)) == list(map(list, rows))  # the order of keys too
    return found, dict(notes), row_format.name


def as_json(row: dict[str, Any]) -> str:
    return json.dumps(row, sort_keys=True, default=repr)


def why_not(row: dict[str, Any], first: dict[str, Any]) -> str:
    with pytest.raises(Unusable) as raised:
        reader(choose_row_format("auto", None, [first]), others=True)(row)
    return raised.value.reason


def said(*texts: str, roles: tuple[str, ...] = ("user", "assistant"), keys: str = "role content") -> list[Any]:
    role, content = keys.split()
    return [{role: roles[number % len(roles)], content: text} for number, text in enumerate(texts)]


# -- keys by other names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "name", "content"),
    [
        ({"prompt": "Q", "completion": "A"}, "prompt_completion", ("Q", "", "A")),
        ({"prompt": "Q", "response": "A"}, "prompt_completion", ("Q", "", "A")),
        ({"question": "Q", "answer": "A"}, "question_answer", ("Q", "", "A")),
        ({"question": "Q", "context": "C", "answer": "A"}, "question_answer", ("Q", "C", "A")),
        ({"query": "Q", "response": "A"}, "question_answer", ("Q", "", "A")),
        ({"problem": "Q", "solution": "A", "answer": "7"}, "question_answer", ("Q", "", "A")),
        ({"inputs": "Q", "targets": "A"}, "question_answer", ("Q", "", "A")),
        ({"input": "Q", "output": "A"}, "question_answer", ("Q", "", "A")),
        ({"INSTRUCTION": "Q", " Input ": "C", "Output": "A"}, "alpaca", ("Q", "C", "A")),
        ({"Instruction": "Q", "Context": "C", "Response": "A"}, "dolly", ("Q", "C", "A")),
        ({"Question ": "Q", "ANSWER": "A", "n": 1}, "question_answer", ("Q", "", "A")),
        ({"Prompt": "Q", "Completion": "A"}, "prompt_completion", ("Q", "", "A")),
    ],
)
def test_questions_and_answers_are_found_by_the_names_of_the_field(
    row: dict[str, Any], name: str, content: tuple[str, str, str]
) -> None:
    assert read(row)[::2] == ([("", [], *content)], name)


def test_a_system_prompt_beside_a_question_is_read() -> None:
    assert examples({"system_prompt": "Be brief.", "question": "Q", "response": "A"}) == [
        ("Be brief.", [], "Q", "", "A")
    ]


def test_rows_read_before_keep_their_meaning() -> None:
    assert row_format_of({"instruction": "a", "output": "b", "response": "c"}).name == "dolly"  # type: ignore[union-attr]
    assert examples({"instruction": "a", "output": "b", "Input": "kept", "system_prompt": "kept"}) == [
        ("", [], "a", "", "b")
    ]
    both = {"instruction": "a", "output": "b", "chosen": "c", "rejected": "d"}
    assert read(both)[2] == "alpaca"


def test_the_answer_that_was_not_taken_is_named() -> None:
    row = {"instruction": "a", "output": "b", "response": "c", "answer": ""}
    row_format = choose_row_format("auto", None, [row])
    assert (row_format.columns["output"], rival_answers(row_format, row)) == ("response", ["output"])
    chat = {"messages": said("Q", "A"), "completion": "B"}
    assert rival_answers(choose_row_format("auto", None, [chat]), chat) == ["completion"]


def test_unknown_keys_are_named_and_not_guessed() -> None:
    with pytest.raises(RowFormatError, match=r"found the keys 'ask', 'told'; expected .*--map instruction=KEY"):
        choose_row_format("auto", None, [{"ask": "Q", "told": "A"}])


# -- values that are no text ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"), [(42, "42"), (True, "true"), (False, "false"), (3.5, "3.5"), (10**30, str(10**30))]
)
def test_a_number_where_text_belongs_is_read_as_its_text_and_counted(value: Any, text: str) -> None:
    rows, notes, _ = read({"instruction": "a", "input": "", "output": value}, {"instruction": "b", "output": "c"})
    assert (rows[0][4], notes) == (text, {"number_as_text": 1})
    assert read({"question": value, "answer": "b"})[1] == {"number_as_text": 1}
    assert (
        examples({"messages": [{"role": "user", "content": "n?"}, {"role": "assistant", "content": value}]})[0][4]
        == text
    )


def test_nan_is_an_absent_text() -> None:
    rows, notes, _ = read({"instruction": "a", "input": math.nan, "output": "b"})
    assert (rows, notes) == ([("", [], "a", "", "b")], {"nan_as_absent": 1})
    good = {"instruction": "a", "output": "b"}
    assert why_not({"instruction": "a", "output": math.nan}, good) == "no_answer"
    assert why_not({"instruction": math.nan, "output": "b"}, good) == "no_instruction"


def test_bytes_are_read_as_utf_8() -> None:
    assert examples({"instruction": "ü".encode(), "output": "b"}) == [("", [], "ü", "", "b")]
    assert why_not({"instruction": b"\xff", "output": "b"}, {"instruction": "a", "output": "b"}) == "not_text"


# -- conversations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "assistant"),
    [
        ("user", "bing"),
        ("Human", "Assistant"),
        ("USER", "ASSISTANT"),
        ("human", "bard"),
        ("prompter", "model"),
        ("human", "chatgpt"),
        (" human ", "Claude"),
        ("user", "bot"),
    ],
)
def test_roles_are_read_in_every_spelling(user: str, assistant: str) -> None:
    talk = said("Q", "A", "Q2", "A2", roles=(user, assistant), keys="from value")
    assert examples({"conversations": talk}) == [("", [("user", "Q"), ("assistant", "A")], "Q2", "", "A2")]


def test_keys_of_messages_are_found_in_every_case() -> None:
    assert examples({"Conversation": said("Q", "A", keys="Role Content")}) == [("", [], "Q", "", "A")]
    assert examples({"dialogue": said("Q", "A", keys="speaker text", roles=("human", "bot"))}) == [
        ("", [], "Q", "", "A")
    ]


@pytest.mark.parametrize(
    ("end", "note"),
    [
        ({"from": "human", "value": ""}, "empty_last_turns_left_out"),
        ({"from": "gpt", "value": " \n"}, "empty_last_turns_left_out"),
        ({"from": "system", "value": ""}, "trailing_system_left_out"),
        ({"from": "system", "value": "Be kind."}, "trailing_system_left_out"),
    ],
)
def test_what_ends_a_conversation_without_saying_anything_is_left_out_and_counted(
    end: dict[str, str], note: str
) -> None:
    talk = said("Q", "A", roles=("human", "gpt"), keys="from value")
    assert read({"conversations": [*talk, end]}) == ([("", [], "Q", "", "A")], {note: 1}, "sharegpt")


def test_an_empty_last_answer_is_no_answer() -> None:
    good = {"messages": said("Q", "A")}
    assert why_not({"messages": said("Q", "")}, good) == "empty_message"
    assert why_not({"messages": said("Q", "A", "Q2")}, good) == "ends_with_user"


def test_a_dictionary_of_lists_is_a_list_of_messages() -> None:
    columns = {"from": ["human", "gpt"], "value": ["Q", "A"]}
    assert examples({"conversations": columns}) == [("", [], "Q", "", "A")]
    assert examples({"messages": {"role": ["user", "assistant"], "content": ["Q", "A"]}}) == [("", [], "Q", "", "A")]
    assert examples({"messages": json.dumps({"role": ["user", "assistant"], "content": ["Q", "A"]})})[0][2:] == (
        "Q",
        "",
        "A",
    )


def test_text_parts_are_joined_and_thinking_is_left_out() -> None:
    parts = ["one", {"type": "input_text", "text": "two"}, {"type": "text", "text": "three"}]
    answer = [{"type": "thinking", "thinking": "hm"}, {"type": "output_text", "text": "A"}]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]}
    assert read(row)[:2] == ([("", [], "one\n\ntwo\n\nthree", "", "A")], {"thinking_left_out": 1})


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "x"}},
        {"type": "image", "source": {}},
        {"type": "input_audio", "input_audio": {}},
        {"type": "video"},
        {"type": "file", "file": {}},
    ],
)
def test_a_row_with_an_image_is_skipped_with_its_reason(part: dict[str, Any]) -> None:
    question = {"role": "user", "content": [{"type": "text", "text": "What is this?"}, part]}
    row = {"messages": [question, {"role": "assistant", "content": "A cat."}]}
    assert why_not(row, {"messages": said("Q", "A")}) == "has_media"


def test_a_call_of_a_tool_is_the_text_of_its_message_and_its_result_is_context() -> None:
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "mul", "arguments": '{"a": 6}'}}],
    }
    before = [{"role": "user", "content": "6 times 7?"}, call, {"role": "tool", "content": "42"}]
    context = 'assistant: {"name": "mul", "arguments": {"a": 6}}\n\ntool: 42'
    rows, notes, _ = read({"messages": [*before, {"role": "assistant", "content": "It is 42."}]})
    assert (rows, notes) == ([("", [], "6 times 7?", context, "It is 42.")], {"calls_as_text": 1})
    later = [*before, *said("It is 42.", "Half?", "21.", roles=("assistant", "user"))]
    assert examples({"messages": later})[0][1] == [
        ("user", "6 times 7?"),
        ("assistant", '{"name": "mul", "arguments": {"a": 6}}'),
        ("tool", "42"),
        ("assistant", "It is 42."),
    ]
    assert examples({"messages": before[:2]})[0][4] == '{"name": "mul", "arguments": {"a": 6}}'
    assert why_not({"messages": before}, {"messages": said("Q", "A")}) == "no_answer"


def test_a_sharegpt_row_that_ends_after_an_observation_is_graded_by_its_last_answer() -> None:
    roles = ("human", "function_call", "observation", "gpt")
    row = {"conversations": said("What time?", "{clock}", "noon", "It is noon.", roles=roles, keys="from value")}
    assert examples(row) == [("", [], "What time?", "assistant: {clock}\n\ntool: noon", "It is noon.")]


# -- earlier turns beside an instruction ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "turns",
    [
        {"history": [["Q", "A"]]},
        {"history": [{"user": "Q", "assistant": "A"}]},
        {"turns": said("Q", "A")},
        {"turns": json.dumps(said("Q", "A"))},
        {"history": said("Q", "A", keys="from value", roles=("human", "gpt"))},
    ],
)
def test_earlier_turns_beside_an_instruction_are_read(turns: dict[str, Any]) -> None:
    row = {"instruction": "Half?", "input": "", "output": "21.", **turns, "system": "Sums."}
    assert examples(row, {"instruction": "x", "output": "y", "history": []})[0] == (
        "Sums.",
        [("user", "Q"), ("assistant", "A")],
        "Half?",
        "",
        "21.",
    )


def test_a_history_of_an_unknown_form_is_kept_beside_the_row_and_counted() -> None:
    row = {"instruction": "Half?", "output": "21.", "history": [1, 2]}
    assert read(row)[:2] == ([("", [], "Half?", "", "21.")], {"turns_not_read": 1})


# -- preference rows ----------------------------------------------------------------------------------------------

BOT = ("assistant",)
GOOD, BAD = ("", [], "Q", "", "good"), ("", [], "Q", "", "bad")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "chosen": "good", "rejected": "bad"},
        {"question": "Q", "chosen": "good", "rejected": "bad", "score": 1},
        {"prompt": "Q", "chosen": said("Q", "good"), "rejected": said("Q", "bad")},
        {"chosen": said("Q", "good"), "rejected": said("Q", "bad")},
        {"prompt": said("Q"), "chosen": said("good", roles=BOT), "rejected": said("bad", roles=BOT)},
        {
            "conversations": said("Q", keys="from value", roles=("human",)),
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
        {"prompt": "Q", "messages": said("Q", "good"), "chosen": said("Q", "good"), "rejected": said("Q", "bad")},
        {"chosen": "\n\nHuman: Q\n\nAssistant: good", "rejected": "\n\nHuman: Q\n\nAssistant: bad"},
        {"question": "Q", "response_j": "good", "response_k": "bad"},
        {"input": {"messages": said("Q")}, "preferred_output": said("good", roles=("assistant",)),
         "non_preferred_output": said("bad", roles=("assistant",))},
        {"Prompt": "Q", "Chosen": "good", "Rejected": "bad"},
    ],
)  # fmt: skip
def test_a_preference_row_is_two_examples_and_one_row_again(row: dict[str, Any]) -> None:
    assert read(row) == ([GOOD, BAD], {}, "preference")


def test_the_answers_of_a_pair_say_which_was_chosen_when_they_are_written_apart() -> None:
    row = {"prompt": "Q", "chosen": "good", "rejected": "bad", "id": 3}
    first, second = reader(choose_row_format("auto", None, [row]))(row)
    assert isinstance(first, Parts) and isinstance(second, Parts)
    assert convert("alpaca", first) == {
        "instruction": "Q", "input": "", "output": "good", "preference": "chosen", "rejected": "bad", "id": 3
    }  # fmt: skip
    assert convert("alpaca", second) == {"instruction": "Q", "input": "", "output": "bad", "preference": "rejected"}


def test_a_preference_row_with_system_context_and_turns() -> None:
    row = {"system": "S", "prompt": [*said("a", "b"), *said("Q")], "chosen": "good", "rejected": "bad"}
    turns = [("user", "a"), ("assistant", "b")]
    assert examples(row) == [("S", turns, "Q", "", "good"), ("S", turns, "Q", "", "bad")]
    assert examples({"instruction": "Q", "input": "C", "chosen": "good", "rejected": "bad"})[0][3] == "C"


def test_half_a_pair_is_skipped_with_its_reason() -> None:
    good = {"prompt": "Q", "chosen": "good", "rejected": "bad"}
    assert why_not({"prompt": "Q", "chosen": "good", "rejected": None}, good) == "no_pair"
    assert why_not({"prompt": None, "chosen": "good", "rejected": "bad"}, good) == "no_instruction"


@pytest.mark.parametrize(("label", "answer"), [(True, "chosen"), (False, "rejected"), ("False", "rejected")])
def test_a_kto_row_keeps_its_label(label: Any, answer: str) -> None:
    row = {"prompt": said("Q"), "completion": said("good", roles=("assistant",)), "label": label}
    assert read(row) == ([GOOD], {}, "kto")
    parts = reader(choose_row_format("auto", None, [row]))(row)[0]
    assert isinstance(parts, Parts)
    assert convert("alpaca", parts)["preference"] == answer


def test_a_prompt_and_a_completion_may_be_messages() -> None:
    row = {"prompt": said("Q"), "completion": said("good", roles=("assistant",))}
    assert read(row) == ([GOOD], {}, "prompt_completion")
    assert why_not({"prompt": ["a"], "completion": {"x": 1}}, row) == "not_text"


# -- rows with several examples, texts that hold a conversation ------------------------------------------------------


def test_every_reply_of_a_message_tree_is_an_example_with_its_thread() -> None:
    half = {"role": "prompter", "text": "Half?", "replies": [{"role": "assistant", "text": "21.", "replies": []}]}
    replies = [{"role": "assistant", "text": "42.", "replies": [half]}, {"role": "assistant", "text": "41."}]
    row = {"message_tree_id": "t", "prompt": {"role": "prompter", "text": "6 times 7?", "replies": replies}}
    turns = [("user", "6 times 7?"), ("assistant", "42.")]
    first, second, third = (
        ("", [], "6 times 7?", "", "42."),
        ("", turns, "Half?", "", "21."),
        ("", [], "6 times 7?", "", "41."),
    )
    assert read(row) == ([first, second, third], {}, "oasst")


def test_every_instance_of_a_seed_task_is_an_example() -> None:
    instances = [{"input": "a", "output": "A"}, {"input": "", "output": "B"}]
    row = {"id": "seed", "instruction": "Do.", "instances": instances, "is_classification": False}
    assert read(row) == ([("", [], "Do.", "a", "A"), ("", [], "Do.", "", "B")], {}, "seed_task")
    broken = {**row, "instances": [{"output": None}, instances[0]]}
    first, second = reader(choose_row_format("auto", None, [row]))(broken)
    assert isinstance(first, Unusable) and first.reason == "no_answer"
    assert isinstance(second, Parts) and restore(choose_row_format("auto", None, [row]), second) == broken


def test_texts_by_turns_are_a_conversation() -> None:
    assert read({"id": "0", "data": ["a", "b", "Q", "A"]})[::2] == (
        [("", [("user", "a"), ("assistant", "b")], "Q", "", "A")],
        "ultrachat",
    )


@pytest.mark.parametrize(
    "text",
    [
        "### Human: a### Assistant: b### Human: Q### Assistant: A",
        "### Human: a ### Assistant: b ### Human: Q ### Assistant: A",
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n"
        "<|im_start|>assistant\nA<|im_end|>\n",
        "<s>[INST] a [/INST] b </s><s>[INST] Q [/INST] A </s>",
        "Human: a\n\nAssistant: b\n\nHuman: Q\n\nAssistant: A",
    ],
)
def test_a_transcript_is_a_conversation(text: str) -> None:
    turns = [("user", "a"), ("assistant", "b")]
    assert read({"text": text})[::2] == ([("", turns, "Q", "", "A")], "transcript")


def test_plain_text_is_no_transcript() -> None:
    with pytest.raises(RowFormatError):
        choose_row_format("auto", None, [{"text": "See the Human: part."}])


def test_rows_of_another_shape_are_read_by_their_own_keys_and_counted() -> None:
    rows, notes, name = read(
        {"instruction": "a", "input": "", "output": "b"},
        {"instruction": "c", "context": "C", "response": "d", "category": "open_qa"},
        {"messages": said("m", "n"), "system": "S"},
        {"prompt": "Q", "chosen": "good", "rejected": "bad"},
    )
    assert name == "alpaca"
    assert rows[1:3] == [("", [], "c", "C", "d"), ("S", [], "m", "", "n")]
    assert rows[3:] == [GOOD, BAD]
    assert notes == {"read_as_dolly": 1, "read_as_messages": 1, "read_as_preference": 1}


# -- what goes in comes out, for every format ------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
WORDS = TEXT.map(lambda text: "w" + text)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "$date", "$form"]), inner),
    max_leaves=4,
)
EXTRAS = st.dictionaries(st.sampled_from(["id", "source", "$form", "tools", "üñí", "", "a.b"]), VALUES, max_size=2)
ODD = WORDS | st.integers() | st.booleans()


def talk(role: str = "role", text: str = "content", ends: int = 2) -> st.SearchStrategy[list[Any]]:
    """Messages that end with the user's question and, with `ends` 2, the answer to it."""
    parts = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": WORDS}), min_size=1, max_size=2)

    def one(*roles: str) -> st.SearchStrategy[dict[str, Any]]:
        return st.fixed_dictionaries(
            {role: st.sampled_from(roles), text: WORDS | parts | st.integers()},
            optional={"weight": VALUES, "tool_calls": VALUES},
        )

    start = st.lists(st.fixed_dictionaries({role: st.just("system"), text: TEXT}), max_size=1)
    turns = st.lists(one("user", "Human", "gpt", "tool", "observation", "system"), max_size=3)
    between = st.lists(one("function_call", "tool", "assistant"), max_size=2 if ends == 2 else 0)
    last = st.lists(one("gpt", "BING", "model"), min_size=ends - 1, max_size=ends - 1)
    rest = st.lists(st.fixed_dictionaries({role: st.just("human"), text: st.just("")}), max_size=ends - 1)
    return st.tuples(start, turns, one("user", "HUMAN"), between, last, rest).map(
        lambda t: [*t[0], *t[1], t[2], *t[3], *t[4], *t[5]]
    )


def columns(messages: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {key: [m.get(key) for m in messages] for key in ("from", "value")}


PAST = st.lists(st.tuples(TEXT, TEXT).map(list), max_size=2) | talk(ends=1)
ANSWER = talk(ends=2) | WORDS
ROWS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "alpaca": st.fixed_dictionaries(
        {"instruction": ODD, "output": ODD},
        optional={
            "input": ODD | st.none(),
            "system": ODD | st.none(),
            "history": PAST,
            "turns": PAST,
            "category": TEXT,
        },
    ),
    "dolly": st.fixed_dictionaries({"Instruction": ODD, "Response": ODD}, optional={"Context": TEXT, "Category": TEXT}),
    "prompt_completion": st.fixed_dictionaries({"prompt": WORDS | talk(ends=1), "completion": WORDS}),
    "question_answer": st.fixed_dictionaries({"Question": ODD, "answer": ODD}, optional={"context": TEXT}),
    "messages": st.fixed_dictionaries({"messages": talk()}, optional={"system": TEXT, "category": VALUES}),
    "sharegpt": st.fixed_dictionaries({"conversations": talk("from", "value") | talk("from", "value").map(columns)}),
    "preference": st.fixed_dictionaries({"prompt": WORDS | talk(ends=1), "chosen": ANSWER, "rejected": ANSWER}),
    "kto": st.fixed_dictionaries(
        {"prompt": WORDS | talk(ends=1), "completion": ANSWER, "label": st.booleans()}, optional={"system": TEXT}
    ),
    "seed_task": st.fixed_dictionaries(
        {
            "instruction": WORDS,
            "instances": st.lists(st.fixed_dictionaries({"input": TEXT, "output": ODD}), min_size=1, max_size=3),
        }
    ),
    "oasst": st.recursive(
        st.fixed_dictionaries({"role": st.just("assistant"), "text": WORDS}),
        lambda reply: st.fixed_dictionaries(
            {"role": st.just("assistant"), "text": WORDS},
            optional={
                "replies": st.lists(
                    st.fixed_dictionaries(
                        {"role": st.just("prompter"), "text": WORDS, "replies": st.lists(reply, max_size=2)}
                    ),
                    max_size=2,
                )
            },
        ),
        max_leaves=4,
    ).map(lambda reply: {"prompt": {"text": "wQ", "role": "prompter", "replies": [reply]}}),
    "ultrachat": st.lists(WORDS, min_size=1, max_size=2).map(lambda texts: {"data": [*texts, *texts]}),
    "transcript": st.tuples(WORDS, WORDS).map(lambda t: {"text": f"### Human: {t[0]}\n### Assistant: {t[1]}"}),
}


def test_every_format_is_tried() -> None:
    assert set(ROWS) == set(READ_FORMATS)


@pytest.mark.parametrize("name", ROWS)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_a_row_of_any_format_comes_back_as_it_stood(name: str, data: st.DataObject) -> None:
    rows = [{**data.draw(EXTRAS), **data.draw(ROWS[name])} for _ in range(2)]
    if not any(isinstance(rows[0].get(key), list) for key in ("history", "turns")):
        rows.append(data.draw(ROWS[data.draw(st.sampled_from(sorted(ROWS)))]))
    _, notes, found = read(*rows)
    assert found == name
    assert all(note in NOTES or note.removeprefix("read_as_") in READ_FORMATS for note in notes)


CONTENT = st.builds(
    Parts,
    system=TEXT,
    turns=st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool", "system"]), WORDS), max_size=3),
    instruction=WORDS,
    input=st.just(""),
    output=WORDS,
    category=st.none() | WORDS,
    other=st.just("{}"),
)


@pytest.mark.parametrize("name", ["alpaca", "dolly", "messages", "sharegpt"])
@given(parts=CONTENT, text=TEXT)
@settings(max_examples=15, deadline=None)
def test_a_row_converted_to_another_format_is_read_with_the_same_content(name: str, parts: Parts, text: str) -> None:
    if name in ("alpaca", "dolly"):
        parts = parts._replace(input=text)
    elif not parts.system and parts.turns and parts.turns[0][0] == "system":
        parts = parts._replace(turns=parts.turns[1:])
    row = json.loads(orjson.dumps(convert(name, parts)))
    while not parts.system and parts.turns and parts.turns[0][0] == "system":
        parts = parts._replace(turns=parts.turns[1:])
        row = json.loads(orjson.dumps(convert(name, parts)))
    assert examples(row) == [tuple(parts[:5])]
