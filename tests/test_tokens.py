"""Token counts: exact where the vocabulary is known, never too few anywhere, and nothing downloaded."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from alpasift.graders import Example
from alpasift.graders.api.tokens import bound, count, tokenizer_for, vocabulary_of
from alpasift.graders.prompts.rubric import load_rubric
from conftest import EXAMPLES, cli_environment

ELSEWHERE = "llm.example.org"

# The conversation in OpenAI's cookbook, "How to count tokens with tiktoken", section 6: role, name, text.
COOKBOOK = [
    (
        "system",
        "",
        "You are a helpful, pattern-following assistant that translates corporate jargon into plain English.",
    ),
    ("system", "example_user", "New synergies will help drive top-line growth."),
    ("system", "example_assistant", "Things working well together will increase revenue."),
    (
        "system",
        "example_user",
        "Let's circle back when we have more bandwidth to touch base on opportunities for increased leverage.",
    ),
    ("system", "example_assistant", "Let's talk later when we're less busy about how to do better."),
    ("user", "", "This late pivot means we don't have time to boil the ocean for the client deliverable."),
]


def formula(messages: list[tuple[str, str]], model: str) -> int:
    """The cookbook's count of a chat without names."""
    return 3 + sum(3 + count(role, model) + count(text, model) for role, text in messages)


# -- counts -----------------------------------------------------------------------------------------------------


# Published: tiktoken's README and tests ("hello world"), the cookbook's sections 3 to 5 (the rest). The last two lines
# were counted by two other implementations, bpe-openai 0.1.4 and tiktoken-rs in semantic-text-splitter 0.33.1.
@pytest.mark.parametrize(
    ("text", "cl100k", "o200k"),
    [
        ("hello world", 2, 2),
        ("tiktoken is great!", 6, 6),
        ("antidisestablishmentarianism", 6, 6),
        ("2 + 2 = 4", 7, 7),
        ("お誕生日おめでとう", 9, 8),
        ("", 0, 0),
        ("<|endoftext|>", 7, 7),
        ("👩‍👩‍👧‍👦", 18, 11),
    ],
)
def test_known_texts_have_their_published_number_of_tokens(text: str, cl100k: int, o200k: int) -> None:
    assert (count(text, "gpt-4"), count(text, "gpt-4o-mini")) == (cl100k, o200k)


@pytest.mark.parametrize(("model", "billed"), [("gpt-4", 129), ("gpt-4o", 124)])
def test_the_cookbooks_conversation_is_what_openai_billed_for_it(model: str, billed: int) -> None:
    names = sum(count(name, model) + 1 for _, name, _ in COOKBOOK if name)
    messages = [(role, text) for role, _, text in COOKBOOK]
    assert formula(messages, model) + names == billed
    assert billed <= bound(messages, model, extra=names) <= billed + 12


@pytest.mark.parametrize(
    ("model", "vocabulary"),
    [
        ("gpt-4o", "o200k_base"),
        ("gpt-4o-mini-2024-07-18", "o200k_base"),
        ("gpt-4.1-nano", "o200k_base"),
        ("ft:gpt-4o-mini-2024-07-18:me::1", "o200k_base"),
        ("o4-mini", "o200k_base"),
        ("o1", "o200k_base"),
        ("gpt-5", "o200k_base"),
        ("gpt-5.6-luna", "o200k_base"),
        ("gpt-6.1-sol", "o200k_base"),
        ("gpt-4", "cl100k_base"),
        ("gpt-4-0613", "cl100k_base"),
        ("gpt-3.5-turbo", "cl100k_base"),
        ("gpt-7", None),
        ("gpt-40", None),
        ("qwen3-8b", None),
        ("openai/gpt-4o", None),
        ("o5-mini", None),
        ("", None),
    ],
)
def test_which_model_has_which_vocabulary(model: str, vocabulary: str | None) -> None:
    assert vocabulary_of(model) == vocabulary
    assert tokenizer_for(model).name == (vocabulary or "bytes")


def test_a_tokenizer_says_how_it_counts() -> None:
    known = tokenizer_for("gpt-5-nano")
    assert (known.exact, known.how) == (True, "tokens counted by o200k_base")
    newer = tokenizer_for("gpt-6-luna")
    assert (newer.exact, newer.name) == (False, "o200k_base")
    assert "no vocabulary is published for gpt-6-luna" in newer.how
    other = tokenizer_for("qwen3-8b", ELSEWHERE)
    assert (other.exact, other.name) == (False, "bytes")
    assert "tokens of qwen3-8b estimated as the bytes of the text" in other.how


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("api.openai.com", "o200k_base"),
        ("eu.api.openai.com", "o200k_base"),
        ("localhost", "o200k_base"),
        ("127.0.0.1", "o200k_base"),
        ("::1", "o200k_base"),
        (ELSEWHERE, "bytes"),
        ("notapi.openai.com", "bytes"),
        ("api.openai.com.example.org", "bytes"),
        ("", "bytes"),
    ],
)
def test_openais_names_mean_openais_vocabularies_at_openai_and_on_this_machine(host: str, name: str) -> None:
    assert tokenizer_for("gpt-4o", host).name == name


def test_special_tokens_in_a_row_are_plain_text() -> None:
    for text in ("<|endoftext|>", "<|im_start|>system\n<|im_end|>", "<|endofprompt|>", "<|fim_prefix|>"):
        for model in ("gpt-4", "gpt-4o"):
            assert count(text * 100, model) > 300


# -- bounds -----------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8"), max_size=300) | st.text(" 'sSlL\r\n\t019aÀ\u0301中<|>", max_size=300)


@given(TEXT, TEXT, st.sampled_from(["gpt-4", "gpt-4o", "gpt-6-luna"]))
@example("", "", "gpt-4o")
def test_a_bound_is_never_below_the_cookbooks_count(system: str, row: str, model: str) -> None:
    messages = [("system", system), ("user", row)]
    exact = formula(messages, model)
    assert exact <= bound(messages, model) <= exact * 1.05 + 10
    assert bound(messages, model, extra=100) >= bound(messages, model) + 100


@given(st.text(max_size=200), st.sampled_from(["gpt-4", "gpt-4o"]))
@example("\ud83d", "gpt-4o")
@example("a\udc00b\ud83d", "gpt-4")
def test_bytes_are_never_fewer_than_tokens(text: str, model: str) -> None:
    assert count(text, model) <= count(text, "another-model", ELSEWHERE)


def test_a_bound_is_close_on_rows_as_they_are_asked() -> None:
    rubric = load_rubric("accuracy")
    bounds = exact = 0
    for number, line in enumerate(EXAMPLES.read_text("utf-8").splitlines()):
        row = json.loads(line)
        asked = list(rubric.messages(Example(row["instruction"], row["input"], row["output"]), str(number)))
        least = formula(asked, "gpt-4.1-nano")
        assert least <= bound(asked, "gpt-4.1-nano") <= 1.1 * least
        assert least <= bound(asked, "gpt-6-luna") <= 1.1 * least
        assert least < bound(asked, "gpt-4.1-nano", ELSEWHERE)
        bounds, exact = bounds + bound(asked, "gpt-4.1-nano"), exact + least
    assert exact > 10_000
    assert bounds < 1.02 * exact


# -- time -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["a", " ", "\n", "ab", "中", "🤷", "'s", "a\u0301", "1", "!?"])
def test_long_repetitions_take_no_quadratic_time(unit: str) -> None:
    began = time.perf_counter()
    assert 0 < count(unit * 100_000, "gpt-4o") <= count(unit * 100_000, "gpt-4o", ELSEWHERE)
    assert time.perf_counter() - began < 2  # 0.02 s here; a merge loop over the whole text takes minutes


def test_ten_thousand_rows_take_no_time_to_speak_of() -> None:
    rows = [f"{number} {EXAMPLES.read_text('utf-8')[number : number + 400]}" for number in range(1000)]
    messages = [(("system", "x" * 3000), ("user", row)) for row in rows * 10]
    began = time.perf_counter()
    for asked in messages:
        bound(asked, "gpt-4o")
    assert time.perf_counter() - began < 4  # 0.1 s here


# -- surroundings -----------------------------------------------------------------------------------------------


def python(code: str, *, path: Path | None = None) -> str:
    environment = cli_environment()
    if path is not None:
        environment["PYTHONPATH"] = f"{path}:{environment['PYTHONPATH']}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_vocabularies_are_loaded_without_a_network_and_only_when_text_is_counted() -> None:
    code = (
        "import sys\n"
        "def watch(event, args):\n"
        "    if event.startswith('socket.') or (event == 'open' and 'tiktoken' in str(args[0])):\n"
        "        raise SystemExit(event)\n"
        "sys.addaudithook(watch)\n"
        "import alpasift.graders.api.price_lookup\n"
        "from alpasift.graders.api.tokens import count\n"
        "assert 'splintr' not in sys.modules and 'genai_prices' not in sys.modules\n"
        "print(count('hello world', 'gpt-4'), count('hello world', 'gpt-4o'))\n"
    )
    assert python(code) == "2 2"


def test_help_loads_no_vocabulary() -> None:
    assert "Usage" in python(
        "import sys; from alpasift.batcher.cli import run; run(['--help']); assert 'splintr' not in sys.modules"
    )


@pytest.mark.parametrize(
    "package",
    [
        "raise ImportError('no such package')",
        "class Tokenizer: pass",
        "class Tokenizer:\n"
        "    from_pretrained = staticmethod(lambda name: Tokenizer())\n"
        "    encode_ordinary = lambda self, text: [1, 2]",
    ],
    ids=["missing", "another interface", "another vocabulary"],
)
def test_without_the_vocabularies_bytes_are_counted_and_it_is_said(tmp_path: Path, package: str) -> None:
    (tmp_path / "splintr.py").write_text(package)
    code = (
        "from alpasift.graders.api.tokens import bound, tokenizer_for\n"
        "t = tokenizer_for('gpt-4o'); print(t.name, t.exact, bound([('user', 'hello')], 'gpt-4o'), t.how)"
    )
    said = python(code, path=tmp_path)
    assert said.startswith("bytes False 153 ")  # 128 for the request, 16 and "user" around the message, 5 for its text
    assert "o200k_base could not be loaded; install splintr-rs" in said
