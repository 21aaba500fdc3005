"""The list of local graders: facts with sources, predictions by hand calculation, and what was measured beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from alpasift.batcher.offline.models import (
    ModelsError,
    api_usd_per_1000,
    catalogue,
    changed,
    find,
    fits,
    is_model,
    memory_bytes,
    on_card,
    on_cpu,
    row_seconds,
)
from alpasift.graders.api.prices import per_million
from alpasift.graders.local.packaged_models import PACKAGED
from conftest import Ran, some_rows, write_rows
from tiny_models import make_gguf

KNOWN = catalogue()
Call = Callable[..., Ran]


def test_every_fact_of_the_list_has_a_source_or_is_called_unverified() -> None:
    assert 6 <= len(KNOWN.models) <= 9
    assert len({model.id for model in KNOWN.models}) == len(KNOWN.models)
    assert any(model.judge for model in KNOWN.models)
    for model in KNOWN.models:
        for fact in ("licence", "parameters", "layers", "context", "gguf"):
            known = (
                fact in model.sources
                or fact in model.unverified
                or (fact == "layers" and "parameters" in model.sources)
            )
            inherited = model.id.startswith("AtlaAI/") and fact == "context"
            assert known or inherited, f"{model.id}: where is {fact} from?"
        assert model.id.count("/") == 1
        assert model.packaged in PACKAGED if model.packaged else model.gguf.count("/") == 1
        assert model.active <= model.parameters
        assert model.gpu in KNOWN.bits
        assert bool(model.gpu_repo) == (model.gpu == "int4")
        free = model.licence in ("Apache-2.0", "MIT")
        assert free == (not model.restriction), f"{model.id}: a restriction is given exactly where there is one"
    for device in (*KNOWN.cards.values(), KNOWN.cpu):
        assert device.source


def test_the_bits_of_q4_k_m_are_those_of_the_published_files() -> None:
    published = [model for model in KNOWN.models if model.gguf_bytes]
    assert len(published) >= 4
    for model in published:
        assert model.parameters * KNOWN.bits["q4_k_m"] / 8 == pytest.approx(model.gguf_bytes, rel=0.02), model.id


def test_memory_is_weights_and_cache_and_overhead() -> None:
    llama = find(KNOWN, "Llama-3.1-8B-Instruct")
    # 2 x 32 layers x 8 heads x 128 x 2 bytes = 131,072 bytes a token; 8.03e9 parameters of 2 bytes
    assert llama.cache_bytes_per_token == 131_072
    assert memory_bytes(llama, 16, 1000, 7) == 16_060_000_000 + 131_072_000 + 7
    # 330 of the rubric and 64 rows of 123 tokens, and 1.5 GB
    card = on_card(llama, KNOWN.cards["rtx-4090"], KNOWN)
    assert card.memory_bytes == 16_060_000_000 + (330 + 64 * 123) * 131_072 + 1_500_000_000


def test_a_row_takes_its_tokens_by_arithmetic_and_each_token_of_its_answer_by_the_larger_of_arithmetic_and_memory() -> (
    None
):
    llama, card = find(KNOWN, "Llama-3.1-8B-Instruct"), KNOWN.cards["rtx-4090"]
    reading = 2 * 8.03e9 * 120 / (165.2e12 * 0.4)
    step = (16.06e9 / 64 + 450 * 131_072) / (1008e9 * 0.6)
    assert step > 2 * 8.03e9 / (165.2e12 * 0.4)
    assert row_seconds(llama, card, 16, 64, KNOWN.assumed) == pytest.approx(reading + 3 * step)
    assert on_card(llama, card, KNOWN).rows_per_second == pytest.approx(1 / (reading + 3 * step))


def test_a_mixture_of_experts_computes_with_its_active_parameters_and_holds_all_of_them() -> None:
    mixture = find(KNOWN, "30B-A3B")
    dense = replace(mixture, active=mixture.parameters)
    card = KNOWN.cards["rtx-4090"]
    assert on_card(mixture, card, KNOWN).memory_bytes == on_card(dense, card, KNOWN).memory_bytes
    assert on_card(mixture, card, KNOWN).rows_per_second > 3 * on_card(dense, card, KNOWN).rows_per_second


def test_longer_rows_are_slower_and_a_slower_card_too() -> None:
    model = find(KNOWN, "Qwen3-8B")
    longer = changed(KNOWN, tokens_per_row=240)
    fast, slow = KNOWN.cards["rtx-4090"], KNOWN.cards["l4"]
    assert on_card(model, fast, longer).rows_per_second < on_card(model, fast, KNOWN).rows_per_second
    assert on_card(model, slow, KNOWN).rows_per_second < on_card(model, fast, KNOWN).rows_per_second
    assert on_cpu(model, changed(KNOWN, cpu_gflops=4096)).rows_per_second > on_cpu(model, KNOWN).rows_per_second
    assert KNOWN.assumed.tokens_per_row == 120, "the list itself is not changed"


def test_all_models_of_the_list_fit_on_24_gb_as_suggested_and_a_large_one_would_not() -> None:
    for model in KNOWN.models:
        for card in KNOWN.cards.values():
            assert fits(on_card(model, card, KNOWN), card), model.id
    phi = replace(find(KNOWN, "phi-4"), gpu="bf16")
    assert not fits(on_card(phi, KNOWN.cards["l4"], KNOWN), KNOWN.cards["l4"])


def test_the_api_costs_every_row_its_rubric() -> None:
    # 450 tokens at $0.05 and 3 at $0.20 a million, a thousand times
    assert api_usd_per_1000(per_million("0.05", "0.20"), KNOWN.assumed) == Decimal("0.0231")


@pytest.mark.parametrize(
    ("grader", "model", "same"),
    [
        ("llama_cpp:Qwen3-8B-Q4_K_M.gguf", "Qwen/Qwen3-8B", True),
        ("llama_cpp:Qwen_Qwen3-8B-Q5_K_S.gguf@2", "Qwen/Qwen3-8B", True),
        ("llama_cpp:Qwen3-8B-UD-Q4_K_XL.gguf", "Qwen/Qwen3-8B", True),
        ("llama_cpp:Qwen3-8B-Q8_0-00001-of-00002.gguf", "Qwen/Qwen3-8B", True),
        ("vllm:Qwen3-8B", "Qwen/Qwen3-8B", True),
        ("vllm:Qwen3-8B-AWQ", "Qwen/Qwen3-8B", True),
        ("vllm:Qwen3-8B+mine", "Qwen/Qwen3-8B", False),
        ("llama_cpp:DeepSeek-R1-0528-Qwen3-8B-Q4_K_M.gguf", "Qwen/Qwen3-8B", False),
        ("llama_cpp:Qwen3-8B-Base-Q4_K_M.gguf", "Qwen/Qwen3-8B", False),
        ("llama_cpp:Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf", "meta-llama/Llama-3.1-8B-Instruct", True),
        ("llama_cpp:selene-1-mini-llama-3.1-8b-q4_k_m.gguf", "AtlaAI/Selene-1-Mini-Llama-3.1-8B", True),
        ("llama_cpp:selene-1-mini-llama-3.1-8b-q4_k_m.gguf", "meta-llama/Llama-3.1-8B-Instruct", False),
        ("llama_cpp:prometheus-7b-v2.0.Q4_K_M.gguf", "prometheus-eval/prometheus-7b-v2.0", True),
        ("llama_cpp:google_gemma-3-12b-it-Q4_K_M.gguf", "google/gemma-3-12b-it", True),
        ("llama_cpp:smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct", True),
        ("llama_cpp:SmolLM2-135M-Instruct.Q4_1.gguf", "HuggingFaceTB/SmolLM2-135M-Instruct", True),
        ("openai_batch:gpt-4.1-nano", "gpt-4.1-nano", True),
        ("openai_chat:gpt-4.1", "gpt-4.1-nano", False),
        ("labels:Qwen3-8B", "Qwen/Qwen3-8B", False),
    ],
)
def test_a_grader_is_recognised_by_its_file_whoever_quantised_it(grader: str, model: str, same: bool) -> None:
    assert is_model(grader, model) is same


def test_the_files_that_the_list_names_are_recognised_as_its_models() -> None:
    for model in KNOWN.models:
        found = [other.id for other in KNOWN.models if is_model(model.grader, other.id)]
        assert found == [model.id]
        assert is_model(f"vllm:{model.id.split('/')[1]}", model.id)


def test_a_malformed_list_is_refused() -> None:
    with pytest.raises(ModelsError, match="cannot be read"):
        catalogue("date = 2026-01-01")
    with pytest.raises(ModelsError, match="several models"):
        find(KNOWN, "qwen")
    with pytest.raises(ModelsError, match="no model named 'gpt-5'"):
        find(KNOWN, "gpt-5")


def test_the_command_says_what_is_predicted_and_what_to_do_next(alpasift: Call) -> None:
    ran = alpasift("models")
    assert ran.code == 0, ran.err
    assert "predicted, not measured" in ran.out
    assert str(KNOWN.dated) in ran.out
    assert "for 1,000 such rows" in ran.out and "gpt-4.1-nano: $0.0" in ran.out
    for model in KNOWN.models:
        assert model.name in ran.out
    assert "measured AUC is empty" in ran.err and "next: alpasift models NAME" in ran.err
    assert "Llama 3.1 8B Instruct, Llama 3.1 Community License: " in ran.out


def test_one_model_in_full_with_its_sources_and_its_downloads(alpasift: Call) -> None:
    ran = alpasift("models", "gemma")
    assert ran.code == 0, ran.err
    model = find(KNOWN, "gemma")
    assert f"hf download {model.id} --local-dir gemma-3-12b-it" in ran.out
    assert "alpasift grade --grader vllm:gemma-3-12b-it --quantization fp8" in ran.out
    assert f"hf download {model.gguf} {model.gguf_file} --local-dir ." in ran.out
    assert f"alpasift grade --grader llama_cpp:{model.gguf_file}" in ran.out
    assert "12,200,000,000 active (unverified)" in ran.out
    assert model.sources["licence"] in ran.out


def test_json_holds_bytes_assumptions_and_null_where_nothing_was_measured(alpasift: Call) -> None:
    ran = alpasift("models", "--json", "--card", "l4", "--tokens-per-row", 200, "--cpu-gflops", 500)
    assert ran.code == 0, ran.err
    printed = ran.json
    known = changed(KNOWN, tokens_per_row=200, cpu_gflops=500)
    first = KNOWN.models[0]
    predicted = on_card(first, KNOWN.cards["l4"], known)
    assert printed["predicted"] == "not measured"
    assert printed["assumptions"]["tokens_per_row"] == 200
    assert printed["models"][0]["gpu"] == {
        "quantisation": "bf16",
        "memory_bytes": predicted.memory_bytes,
        "fits_24_gb": True,
        "rows_per_second": pytest.approx(predicted.rows_per_second),
    }
    assert printed["models"][0]["cpu"]["rows_per_second"] == pytest.approx(on_cpu(first, known).rows_per_second)
    assert {row["measured"] for row in printed["models"]} == {None}
    assert Decimal(printed["api"]["batch_usd_per_1000_rows"]) > 0


def test_an_unknown_card_or_model_is_one_line(alpasift: Call) -> None:
    ran = alpasift("models", "--card", "h100")
    assert ran.code == 2 and "rtx-4090, rtx-3090, l4" in ran.err
    ran = alpasift("models", "--card-tflops", "300")
    assert ran.code == 2 and "belong together" in ran.err
    ran = alpasift("models", "gpt-5")
    assert ran.code == 1 and "no model named 'gpt-5'" in ran.err and ran.err.count("\n") == 1
    ran = alpasift("models", "--card-tflops", "300", "--card-gbs", "2000")
    assert ran.code == 0 and "rows/s your card" in ran.out


def test_prices_of_your_own_are_taken_for_the_api_model(alpasift: Call, tmp_path: Path) -> None:
    (tmp_path / "prices.toml").write_text(
        '[[price]]\nprovider = "api.openai.com"\nmodel = "gpt-4.1-nano"\ninput = "1"\noutput = "4"\ndiscount = "0.5"\n'
        'checked = true\nsource = "a test"\ndate = 2026-11-01\n'
    )
    # 450 tokens at $0.50 and 3 at $2 a million, a thousand times
    assert alpasift("models", "--json").json["api"]["batch_usd_per_1000_rows"] == "0.231"


@pytest.mark.llama
def test_what_a_calibration_has_measured_stands_beside_the_model_and_nowhere_else(
    alpasift: Call, tmp_path: Path
) -> None:
    pytest.importorskip("llama_cpp")
    make_gguf(tmp_path / "Qwen3-8B-Q4_K_M.gguf")
    write_rows(tmp_path / "rows.jsonl", some_rows(60))
    write_rows(tmp_path / "labels.jsonl", [{"index": i, "good": i % 2} for i in range(60)])
    grader = "llama_cpp:Qwen3-8B-Q4_K_M.gguf"
    for command in (
        ("import", "rows.jsonl"),
        ("labels", "labels.jsonl", "--as", "people", "--binary"),
        ("grade", "--grader", grader, "--quiet"),
        ("calibrate", "--cheap", grader, "--reference", "labels:people", "--sample", 60, "--force"),
    ):
        ran = alpasift(*command)
        assert ran.code == 0, ran.err
    printed = alpasift("models", "--json").json
    stored = json.loads(alpasift("sql", "select facts, recorded_at from calibrations", "--json").json[0]["facts"])
    by_id = {row["id"]: row["measured"] for row in printed["models"]}
    assert {id for id, measured in by_id.items() if measured} == {"Qwen/Qwen3-8B"}
    measured = by_id["Qwen/Qwen3-8B"]
    assert (measured["grader"], measured["reference"], measured["rows"]) == (grader, "labels:people", 60)
    assert measured["auc"] == pytest.approx(stored["auc"]["value"])
    ran = alpasift("models")
    row = next(line for line in ran.out.splitlines() if line.startswith("Qwen3 8B"))
    assert row.endswith(f", {measured['measured_at'][:10]}") and f"AUC {measured['auc']:.2f} (" in row
