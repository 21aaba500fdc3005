"""What a model is trained on: the prompt it will be given, loss on the answer and its end, examples that do not mix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alpasift.graders import Example, Turn
from tiny_models import changed, make_folder, make_gguf

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from alpasift.train.artifacts import TrainError  # noqa: E402
from alpasift.train.data import (  # noqa: E402
    IGNORED,
    SENTENCE,
    Tokenized,
    alpaca_prompt,
    collate,
    serving_template,
    tokenize,
    user_text,
)
from alpasift.train.models import load_model, load_tokenizer  # noqa: E402
from alpasift.train.token_counts import count_tokens  # noqa: E402

PLAIN = Example(instruction="Name a colour.", input="", output="Blue is a colour.")
WITH = Example(instruction="Translate it.", input="Guten Tag", output="Good day")
TALK = Example(
    system="Be brief.",
    turns=(Turn("user", "Hello"), Turn("assistant", "Hi")),
    instruction="Who are you?",
    input="",
    output="A model",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    return make_folder(make_gguf(folder / "tiny.gguf"), folder / "tiny")


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Any:
    return load_tokenizer(base)


def shown(data: Tokenized, tokenizer: Any, number: int = 0) -> tuple[str, str]:
    """Prompt and answer as the model sees them."""
    ids, start = list(data.ids[number]), data.prompt_tokens[number]
    return tokenizer.decode(ids[:start]), tokenizer.decode(ids[start:])


def test_the_alpaca_layout_with_and_without_input() -> None:
    assert alpaca_prompt(PLAIN) == f"{SENTENCE}\n\n### Instruction:\nName a colour.\n\n### Response:\n"
    assert alpaca_prompt(WITH) == (
        f"{SENTENCE}\n\n### Instruction:\nTranslate it.\n\n### Input:\nGuten Tag\n\n### Response:\n"
    )
    assert alpaca_prompt(TALK) == (
        "Be brief.\n\n### Instruction:\nHello\n\n### Response:\nHi\n\n### Instruction:\nWho are you?\n\n### Response:\n"
    )


@pytest.mark.parametrize("example", [PLAIN, WITH, TALK])
def test_the_served_template_asks_as_the_training_did(example: Example, tokenizer: Any) -> None:
    messages = [{"role": "system", "content": example.system}] if example.system else []
    messages += [{"role": turn.role, "content": turn.content} for turn in example.turns]
    messages.append({"role": "user", "content": user_text(example)})
    template = serving_template(tokenizer, "alpaca")
    asked = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True)
    assert asked == alpaca_prompt(example)
    rendered = tokenizer.apply_chat_template(
        [*messages, {"role": "assistant", "content": "X"}], chat_template=template, tokenize=False
    )
    assert rendered == alpaca_prompt(example) + "X"


def test_the_loss_counts_on_the_answer_and_the_token_that_ends_it(tokenizer: Any) -> None:
    data = tokenize([PLAIN, WITH], tokenizer)
    prompt, answer = shown(data, tokenizer)
    assert prompt == alpaca_prompt(PLAIN)
    assert answer == f"Blue is a colour.{tokenizer.eos_token}"
    batch = collate(((0,), (1,)), data, 0)
    for row, number in ((0, 0), (1, 1)):
        counted = batch["labels"][row] != IGNORED
        assert batch["input_ids"][row][counted].tolist() == list(data.ids[number][data.prompt_tokens[number] :])
    assert data.trained_tokens == int((batch["labels"] != IGNORED).sum())


@pytest.mark.parametrize(
    "output", ["\nA line first", " a blank first", "\n\n\n", "é", "😀 smile", "### Response:\nagain"]
)
def test_the_prompt_is_tokenised_as_it_will_be_when_served(output: str, tokenizer: Any) -> None:
    example = Example(instruction="Say it.", input="", output=output + "x")
    data = tokenize([example], tokenizer)
    alone = tokenizer(alpaca_prompt(example), add_special_tokens=False)["input_ids"]
    assert list(data.ids[0][: data.prompt_tokens[0]]) == alone
    assert shown(data, tokenizer)[1] == f"{output}x{tokenizer.eos_token}"


@pytest.mark.parametrize("template", ["alpaca", "chat"])
def test_a_row_cannot_write_a_special_token(template: Any, tokenizer: Any) -> None:
    end = tokenizer.eos_token
    names = [t.content for t in tokenizer.added_tokens_decoder.values()]
    hostile = Example(instruction=f"Stop {' '.join(names)} now", input="", output=f"before {end} after")
    data = tokenize([hostile], tokenizer, template=template)
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    answer = list(data.ids[0][data.prompt_tokens[0] :])
    assert [t for t in answer[:-1] if t in special] == []
    assert end in tokenizer.decode(answer[:-1])
    clean = tokenize([Example(instruction="Stop now", input="", output="before")], tokenizer, template=template)
    count = sum(t in special for t in clean.ids[0])
    assert sum(t in special for t in data.ids[0]) == count


def test_a_chat_template_trains_up_to_the_end_of_the_turn(tokenizer: Any) -> None:
    data = tokenize([TALK], tokenizer, template="chat")
    prompt, answer = shown(data, tokenizer)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Who are you?"},
    ]
    assert prompt == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert answer == "A model<|im_end|>"


@pytest.mark.parametrize("output", ["end", "e", "im", "|", "<|", "user", "a"])
def test_a_short_answer_is_not_looked_for_in_the_template(output: str, tokenizer: Any) -> None:
    data = tokenize([Example(instruction="Say it.", input="", output=output)], tokenizer, template="chat")
    assert shown(data, tokenizer)[1] == f"{output}<|im_end|>"


def test_a_template_that_opens_a_thought_is_refused(base: Path, tmp_path: Path) -> None:
    """It asks with "<think>" and writes the answer down without: the thought would never be closed."""
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = tokenizer.chat_template + "{% if add_generation_prompt %}<think>\n{% endif %}"
    with pytest.raises(TrainError, match=r"starts an answer differently in the generation prompt.*--template alpaca"):
        tokenize([PLAIN], tokenizer, template="chat")


def test_what_is_cut_off_is_counted_and_does_not_end(tokenizer: Any) -> None:
    long = Example(instruction="Write.", input="", output="word " * 400)
    data = tokenize(
        [
            PLAIN,
            long,
            Example(instruction="Nothing", input="", output=""),
            Example(instruction="x " * 600, input="", output="y"),
        ],
        tokenizer,
        max_length=200,
    )
    assert (data.truncated, data.dropped) == (1, {"empty_output": 1, "prompt_too_long": 1})
    assert list(data.rows) == [0, 1]
    assert len(data.ids[1]) == 200
    assert data.ids[1][-1] != tokenizer.eos_token_id
    assert data.ids[0][-1] == tokenizer.eos_token_id


def test_no_usable_row_is_an_error_with_the_reason(tokenizer: Any) -> None:
    rows = [Example(instruction="a", input="", output=""), Example(instruction="b", input="", output=" ")]
    with pytest.raises(TrainError, match="none of the 2 rows can be used for training: 2 without an output"):
        tokenize(rows, tokenizer)


def test_a_tokenizer_that_begins_texts_with_a_token_does_so_once(base: Path, tmp_path: Path, tokenizer: Any) -> None:
    import shutil

    folder = tmp_path / "bos"
    shutil.copytree(base, folder)
    content = (folder / "tokenizer.json").read_text()
    begin = tokenizer.bos_token
    processor = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": begin, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {begin: {"id": begin, "ids": [tokenizer.bos_token_id], "tokens": [begin]}},
    }
    import json

    (folder / "tokenizer.json").write_text(json.dumps({**json.loads(content), "post_processor": processor}))
    beginning = load_tokenizer(folder)
    data = tokenize([PLAIN], beginning)
    assert list(data.ids[0]).count(tokenizer.bos_token_id) == 1
    assert data.ids[0][0] == tokenizer.bos_token_id
    assert serving_template(beginning, "alpaca").startswith("{{ bos_token }}")


def test_a_tokenizer_without_an_end_is_refused(base: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "endless"
    shutil.copytree(base, folder)
    changed(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(TrainError, match="no end-of-text token"):
        load_tokenizer(folder)


# -- rows of several examples ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_examples_in_one_row_do_not_see_each_other(attention: str, base: Path, tokenizer: Any) -> None:
    """Logits of packed examples are those of each alone, to 1e-5; without restarting positions they are not."""
    examples = [PLAIN, WITH, TALK, Example(instruction="Count.", input="", output="One two three four five six")]
    data = tokenize(examples, tokenizer)
    model = load_model(base, precision="fp32", attention=attention).eval()
    model.config.use_cache = False  # as in training: transformers looks for packed rows only without a cache
    batch = collate(((0, 1, 2), (3,)), data, 0)
    with torch.no_grad():
        packed = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits
        mixed = model(input_ids=batch["input_ids"]).logits
        for row, at, number in (
            (0, 0, 0),
            (0, len(data.ids[0]), 1),
            (0, len(data.ids[0]) + len(data.ids[1]), 2),
            (1, 0, 3),
        ):
            alone = model(input_ids=torch.tensor([list(data.ids[number])])).logits[0]
            assert (packed[row, at : at + len(alone)] - alone).abs().max() <= 1e-5
            if at:
                assert (mixed[row, at : at + len(alone)] - alone).abs().max() > 1e-2


def test_positions_restart_and_a_short_row_ends_in_an_example_of_its_own() -> None:
    from array import array

    data = Tokenized(
        [array("i", [5, 6, 7]), array("i", [8, 9]), array("i", [4])], array("i", [1, 1, 0]), array("q", [0, 1, 2]), 0, 0
    )
    batch = collate(((0, 1), (2,)), data, pad_id=1)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [4, 1, 1, 1, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9], [-100, -100, -100, -100, -100]]
    alone = collate(((0,), (1,)), data, pad_id=1)
    assert alone["position_ids"].tolist() == [[0, 1, 2], [0, 1, 2]]  # one example a row: no mask is needed
    assert collate(((),), data, pad_id=1)["labels"].tolist() == [[-100]]


# -- lengths for a forecast -------------------------------------------------------------------------------------------


def test_lengths_come_from_the_tokenizer_where_there_is_one(base: Path, tokenizer: Any) -> None:
    examples = [PLAIN, WITH]
    counted, data = count_tokens(examples, base), tokenize(examples, tokenizer)
    assert [p + r - 1 for p, r in zip(counted.prompt, counted.response, strict=True)] == data.lengths  # no begin here
    guessed = count_tokens(examples, None)
    assert guessed.prompt == [round(len(alpaca_prompt(e)) / 4.28) + 1 for e in examples]
    assert guessed.counted_by == "characters / 4.28: no tokenizer was given"
