"""The graders `ifd`, `s-ifd` and `fit`, on real engines with tiny models: their numbers, reasons and commands.

The expected log-probabilities come from transformers and from a Llama written out in float64 (tiny_models).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alpasift.graders import BackendError, BackendUnavailable, Example, Turn, open_backend
from alpasift.graders.local.llama_likelihood import LlamaScorer, packed
from alpasift.graders.local.measures import chat_messages, largest, measured, plain_prompt
from alpasift.graders.local.passages import Passage, passages_of
from alpasift.graders.prompts.measured import read_figure
from alpasift.graders.prompts.rubric import load_rubric
from conftest import Ran, some_rows, write_rows
from tiny_models import make_folder, make_gguf, next_logprobs

pytestmark = pytest.mark.llama
pytest.importorskip("llama_cpp")

ROW = Example("Name three boats.", "They sail on seven seas.", "The sun, a dog and 42 hills came home.")
LONG = Example("Tell a story.", "", "A dog walked over the hills and came home in the rain. " * 40)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("likelihood") / "tiny.gguf")


@pytest.fixture(scope="module")
def folder(gguf: Path) -> Path:
    return make_folder(gguf, gguf.parent / "tiny")


@pytest.fixture(scope="module")
def llama(gguf: Path) -> Iterator[LlamaScorer]:
    scorer = LlamaScorer(gguf)
    yield scorer
    scorer.close()


# -- the numbers --------------------------------------------------------------------------------------------------


def test_both_engines_give_the_log_probabilities_of_plain_transformers(llama: LlamaScorer, folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from alpasift.graders.local.torch_likelihood import TorchScorer

    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    scorer = TorchScorer(folder)
    for measure in ("ifd", "fit"):
        for row in (ROW, LONG):
            passages = passages_of(llama, measure, row)
            assert passages == passages_of(scorer, measure, row), "the same tokens by both engines"
            assert not isinstance(passages, str)
            by_llama, by_torch = llama.logprobs(passages), scorer.logprobs(passages)
            for passage, one, other in zip(passages, by_llama, by_torch, strict=True):
                with torch.no_grad():
                    logits = plain(torch.tensor([list(passage.tokens)])).logits[0].double()
                logprobs = logits.log_softmax(-1)[passage.start - 1 : -1]
                wanted = logprobs.gather(1, torch.tensor(list(passage.tokens[passage.start :]))[:, None])[:, 0]
                assert one == pytest.approx(wanted.tolist(), abs=1e-3)
                assert other == pytest.approx(wanted.tolist(), abs=1e-3)
    scorer.close()


def test_the_first_and_the_last_token_have_the_probabilities_of_a_model_written_out(
    llama: LlamaScorer, folder: Path
) -> None:
    passages = passages_of(llama, "ifd", ROW)
    assert not isinstance(passages, str)
    for passage, found in zip(passages, llama.logprobs(passages), strict=True):
        assert len(found) == len(passage.tokens) - passage.start
        for at in (passage.start, len(passage.tokens) - 1):
            wanted = next_logprobs(folder, passage.tokens[:at])[passage.tokens[at]]
            assert found[at - passage.start] == pytest.approx(wanted, abs=1e-3)


def test_a_passage_gets_the_same_numbers_alone_and_in_company(llama: LlamaScorer) -> None:
    passages = [
        passage
        for row in (ROW, LONG, Example("Add.", "", "4"), ROW)
        for passage in passages_of(llama, "fit", row)
        if isinstance(passage, Passage)
    ]
    together = llama.logprobs(passages)
    for passage, found in zip(passages, together, strict=True):
        assert llama.logprobs([passage])[0] == pytest.approx(found, abs=1e-4)
    assert [len(group) for group in packed(passages, 1)] == [1] * len(passages)


def test_the_tokens_of_an_answer_are_the_same_after_its_prompt_and_alone(llama: LlamaScorer) -> None:
    found = passages_of(llama, "ifd", ROW)
    assert not isinstance(found, str)
    with_prompt, alone = found
    answer = llama.encode(ROW.output, within=True)
    begin = list(llama.begin)
    assert list(alone.tokens) == begin + answer
    assert list(with_prompt.tokens[-len(answer) :]) == answer
    counted = [list(one.tokens[one.start :]) for one in found]
    assert counted[0] == counted[1] == (answer if begin else answer[1:])


def test_a_model_that_begins_its_texts_with_a_token_counts_every_token_of_the_answer(tmp_path: Path) -> None:
    gguf = _with_bos(make_gguf(tmp_path / "bos.gguf"))
    scorer = LlamaScorer(gguf)
    answer = scorer.encode(ROW.output, within=True)
    found = passages_of(scorer, "ifd", ROW)
    assert not isinstance(found, str)
    assert len(scorer.begin) == 1
    for one in found:
        assert one.tokens[0] == scorer.begin[0] and list(one.tokens[one.start :]) == answer
    assert list(scorer.begin) * 2 != list(scorer.chat(chat_messages(ROW)))[:2], "one BOS before a template, not two"
    single = passages_of(scorer, "ifd", Example("Say it.", "", "4"))
    assert not isinstance(single, str) and [len(one.tokens) - one.start for one in single] == [1, 1]
    scorer.close()


def _with_bos(path: Path) -> Path:
    """The model with the key that asks for BOS before each text."""
    import gguf

    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(path.with_name("with_" + path.name), "llama")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "tokenizer.ggml.add_bos_token"):
            continue
        of = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), field.types[0], of)
    writer.add_add_bos_token(True)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(writer.path) if isinstance(writer.path, str | Path) else path.with_name("with_" + path.name)


def test_ifd_of_a_uniform_model_is_one_and_its_fit_minus_the_logarithm_of_the_vocabulary(tmp_path: Path) -> None:
    flat = make_gguf(tmp_path / "flat.gguf", plant={"": {}})
    _flatten(flat)
    scorer = LlamaScorer(flat)
    size = scorer.model.n_vocab
    for measure, wanted in (("ifd", 1.0), ("s-ifd", 1.0), ("fit", -math.log(size))):
        passages = passages_of(scorer, measure, ROW)
        assert not isinstance(passages, str)
        figure = measured(measure, *scorer.logprobs(passages))
        assert figure is not None and figure.value == pytest.approx(wanted, abs=1e-5)
    scorer.close()


def _flatten(path: Path) -> None:
    """Every token as likely as any other, whatever went before."""
    from gguf import GGUFReader

    reader = GGUFReader(path, "r+")
    for tensor in reader.tensors:
        if tensor.name == "output.weight":
            tensor.data[:] = 0
    reader.data.flush()


def test_the_measures_by_hand() -> None:
    with_prompt, alone = [-1.0, -2.0, -3.0], [-2.0, -2.5, -2.0]
    ifd = measured("ifd", with_prompt, alone)
    assert ifd is not None and ifd.value == pytest.approx(math.exp(6 / 3) / math.exp(6.5 / 3))
    selected = measured(
        "s-ifd", with_prompt, alone
    )  # shifts -1, -.5, 1: the half of three is two, of equal ones the first
    assert selected is not None and selected.value == pytest.approx(math.exp((-1 + 1) / 2))
    fit = measured("fit", with_prompt)
    assert fit is not None and fit.value == -2.0 and fit.detail == "3 tokens of the output, perplexity 7.389"
    assert largest([0.1, -3.0, 3.0, 2.0], 2) == [-3.0, 3.0]
    assert measured("ifd", [-math.inf], [-1.0]) is None
    assert measured("fit", [-math.inf]) is None
    assert measured("ifd", [-1000.0], [-1.0]) is None, "e^999 is no number"


def test_a_figure_is_kept_in_full_and_its_score_to_the_thousandth() -> None:
    rubric = load_rubric("ifd")
    assert (rubric.judged_from_row, rubric.choices) == (True, ())
    found = read_figure("0.73249918\n12 tokens of the output", rubric)
    assert (str(found.score), found.expected, found.explanation) == ("0.732", 0.73249918, "12 tokens of the output")
    assert read_figure("nan", rubric).reason == "not_finite"
    assert read_figure("1200.5", rubric).reason == "out_of_range"
    assert read_figure("", rubric).reason == "unreadable"
    assert str(read_figure("-2.7182818", load_rubric("fit")).score) == "-2.718"


def test_the_prompt_holds_everything_before_the_answer() -> None:
    row = Example("Now add.", "1 and 2", "3", "Be brief.", (Turn("user", "Hello"), Turn("assistant", "Yes?")))
    assert plain_prompt(row) == "Be brief.\nHello\nYes?\nNow add.\n1 and 2\n"
    assert chat_messages(row) == (
        ("system", "Be brief."),
        ("user", "Hello"),
        ("assistant", "Yes?"),
        ("user", "Now add.\n\n1 and 2"),
    )


# -- rows that have no figure -------------------------------------------------------------------------------------


def test_a_row_that_cannot_be_measured_has_a_reason(llama: LlamaScorer) -> None:
    for example, reason in (
        (Example("Say it.", "", " \n"), "empty_output: "),
        (Example("Say it.", "", "4"), "too_short: "),
        (Example("Tell a story.", "", "The dog came home. " * 3000), "too_long: "),
        (Example("x " * 400_000, "", "Yes, it is."), "too_long: 800011 characters"),
    ):
        found = passages_of(llama, "ifd", example)
        assert isinstance(found, str) and found.startswith(reason), found
    assert not isinstance(passages_of(llama, "fit", Example("Say it.", "", "4")), str)


def test_special_tokens_in_an_answer_are_text(llama: LlamaScorer) -> None:
    assert llama.encode("<|im_end|>", within=True) != [llama.model.ends[-1]]
    assert len(llama.encode("<|im_end|>", within=True)) > 1


# -- through the whole product ------------------------------------------------------------------------------------

Call = Callable[..., Ran]


@pytest.fixture
def lab(alpasift: Call, tmp_path: Path) -> Call:
    rows = [*some_rows(6), {"instruction": "Say nothing.", "input": "", "output": "4"}]
    assert alpasift("import", write_rows(tmp_path / "rows.jsonl", rows), "--dataset", "rows").code == 0
    return alpasift


def test_rows_are_measured_resumed_and_kept_by_share(lab: Call, gguf: Path) -> None:
    first = lab("grade", "--grader", f"ifd:{gguf}", "--limit", "3")
    assert (first.code, "3 replies" in first.err) == (0, True), first.err
    second = lab("grade", "--grader", f"ifd:{gguf}")
    assert second.code == 0 and "3 rows were graded before" in second.err
    assert "1 rows have no score: too_short" in second.err
    again = lab("grade", "--grader", f"ifd:{gguf}")
    assert again.code == 0 and ": 0 replies" in again.err, "asking once more would bring the same"
    rows = _graded(lab)
    values = sorted((row["expected_score"] for row in rows if row["score"] is not None), reverse=True)
    assert len(values) == 6 and len(set(values)) == 6
    assert all(abs(float(row["score"]) - row["expected_score"]) <= 0.0005 for row in rows if row["score"] is not None)
    assert "kept at the threshold" not in again.err and "--keep-share .1" in again.err

    scores = lab("scores")
    assert "6 of 7 rows have a score" in scores.out and "tenth" in scores.out and "too_short" in scores.out
    limit = (values[1] + values[2]) / 2
    kept = lab("select", "--top", "2", "--below", f"{limit:.9f}", "--name", "kept", "--json").json[0]
    assert kept["condition"] == {"top": 2, "by": "expected", "below": pytest.approx(limit, abs=1e-9), "seed": 0}
    assert (kept["counts"]["kept"], kept["not_kept_by_reason"]["not_below"]) == (2, 2)
    chosen = lab("sql", "select expected_score from selected_rows where selection = 'kept'", "--json").json
    assert sorted((row["expected_score"] for row in chosen), reverse=True) == values[2:4]
    usual = lab("select", "--keep-share", ".5", "--name", "half", "--json").json[0]
    assert usual["condition"]["below"] == 1
    none = lab("select", "--top", "2", "--below", "0", "--name", "none")
    assert none.code == 1 and "score at or above the limit (--below): 6" in none.err


def test_a_filter_by_a_measure_wants_a_share(lab: Call, gguf: Path, tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "kept.jsonl"
    refused = lab("filter", rows, "-o", out, "--grader", f"fit:{gguf}")
    assert refused.code == 2 and "the rubric fit has no threshold; give --keep-share .1" in refused.err
    kept = lab("filter", rows, "-o", out, "--grader", f"fit:{gguf}", "--keep-share", ".4", "--with", "expected_score")
    assert kept.code == 0, kept.err
    written = [json.loads(line)["expected_score"] for line in out.read_text().splitlines()]
    values = sorted((row["expected_score"] for row in _graded(lab)), reverse=True)
    assert sorted(written, reverse=True) == values[:3]
    compared = lab("agree", "fit:tiny.gguf", "fit:tiny.gguf")
    assert compared.code == 2 and "the rubric fit has no threshold: give --threshold X" in compared.err


def _graded(lab: Call) -> list[dict[str, Any]]:
    query = "select position, score, expected_score, reason, explanation from graded_rows order by position"
    found: list[dict[str, Any]] = json.loads(lab("sql", query, "--json").out)
    return found


def test_both_engines_measure_a_dataset_alike(lab: Call, gguf: Path, folder: Path) -> None:
    pytest.importorskip("transformers")
    for grader in (f"s-ifd:{gguf}", f"s-ifd:{folder}", f"fit:{gguf}", f"fit:{folder}"):
        assert lab("grade", "--grader", grader).code == 0
    query = "select grader, position, expected_score as value from graded_rows where rubric = $r order by position"
    for rubric in ("s-ifd", "fit"):
        found = json.loads(lab("sql", query.replace("$r", f"'{rubric}'"), "--json").out)
        values = {
            grader: [row["value"] for row in found if row["grader"] == f"{rubric}:{grader}"]
            for grader in ("tiny.gguf", "tiny")
        }
        assert len(values["tiny"]) == 7
        for one, other in zip(values["tiny"], values["tiny.gguf"], strict=True):
            assert (one is None) == (other is None)
            assert one is None or other == pytest.approx(one, abs=1e-3)


def test_a_probe_of_a_measure_shows_its_range_and_no_threshold(lab: Call, gguf: Path) -> None:
    found = lab("probe", "--grader", f"fit:{gguf}", "-n", "4")
    assert found.code == 0, found.err
    assert "4 of 4 rows have a score" in " ".join(found.out.split()) and "  scores from -" in found.out
    assert "kept at" not in found.out and "observed score step" not in found.out


def test_what_cannot_be_asked_of_a_grader_that_measures_is_said(lab: Call, gguf: Path, tmp_path: Path) -> None:
    wrong = lab("grade", "--grader", f"ifd:{gguf}", "--rubric", "accuracy")
    assert wrong.code == 3 and "grade with --rubric ifd" in wrong.err
    other = lab("grade", "--grader", f"ifd:{gguf}", "--rubric", "fit")
    assert other.code == 3 and "the rubric `fit` works with the grader `fit` only" in other.err
    by_rules = lab("grade", "--grader", "rules", "--rubric", "s-ifd")
    assert by_rules.code == 3 and "the rubric `s-ifd` works with the grader `s-ifd` only" in by_rules.err
    form = lab("grade", "--grader", f"fit:{gguf}", "--answer-format", "json")
    assert form.code == 3 and "omit --answer-format" in form.err
    with pytest.raises(BackendError, match=r"ifd needs a model: ifd:MODEL\.gguf, ifd:FOLDER or ifd:smollm2-135m"):
        open_backend("ifd")
    with pytest.raises(BackendUnavailable, match="file not found"):
        open_backend(f"s-ifd:{tmp_path / 'none.gguf'}")


def test_plan_and_doctor_know_the_graders_that_measure(lab: Call, gguf: Path) -> None:
    plan = lab("plan", "--grader", f"s-ifd:{gguf}", "--json")
    offer = next(one for one in plan.json["offers"] if one["grader"].startswith("s-ifd"))
    assert (offer["rubric"], offer["rows"], offer["usd"]) == ("s-ifd", 7, "0") and offer["seconds"] > 0
    assert offer["input_tokens"] > 100
    doctor = lab("doctor", "--offline", "--grader", f"fit:{gguf}", "--grader", "ifd:none.gguf", "--json")
    says = {one["what"]: one for one in doctor.json}
    assert says[f"fit:{gguf}"]["ok"] and not says["ifd:none.gguf"]["ok"]
    assert says["grader s-ifd"]["ok"]
