"""`alpasift fit`: the command as users call it, with and without a card, a tokenizer, a price, a calibration."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alpasift.graders import Example
from alpasift.train.data import alpaca_prompt
from alpasift.train.fit.calibration import measured_against, record
from alpasift.train.fit.cards import card_named, cpu_has_bf16
from alpasift.train.fit.forecast import forecast
from alpasift.train.fit.model_dims import read_dims
from alpasift.train.fit.seconds import saving_seconds
from alpasift.train.fit.train_config import TrainConfig
from alpasift.train.fit.workload import Workload, lengths_of
from conftest import EXAMPLES, ROOT, Ran, cli_environment, some_rows, write_rows

Call = Callable[..., Ran]
WANTED = (
    "fits",
    "method",
    "micro_batch",
    "pack_length",
    "checkpointing",
    "peak_gib",
    "tokens_per_second",
    "minutes",
    "usd",
    "parts",
)


@pytest.fixture
def fit(alpasift: Call, tmp_path: Path) -> Call:
    """`alpasift fit --data EXAMPLES ...` with no card and no calibration of this machine in sight."""
    (tmp_path / "bin").mkdir()
    alone = {"PATH": str(tmp_path / "bin"), "ALPASIFT_CALIBRATION": str(tmp_path / "cards.json")}

    def call(*arguments: object, env: dict[str, str] | None = None, data: Path | None = EXAMPLES) -> Ran:
        source = ("--data", data) if data else ()
        return alpasift("fit", *source, *arguments, env={**alone, **(env or {})})

    return call


def test_json_holds_what_fits_with_its_parts_and_no_dollars_without_a_price(fit: Call) -> None:
    ran = fit("--model", "llama-2-7b", "--gpu-memory", 24, "--json")
    assert ran.code == 0, ran.err
    found = ran.json
    assert set(WANTED) <= set(found)
    assert (found["fits"], found["method"], found["usd"], found["usd_per_hour"]) == (True, "lora", None, None)
    assert sum(found["parts"].values()) == pytest.approx(found["peak_gib"], abs=0.001)
    assert found["peak_gib"] * (1 + found["margin"]) == pytest.approx(found["needed_gib"], abs=0.001)
    assert found["needed_gib"] <= found["usable_gib"] == 23.5
    assert found["minutes_fast"] < found["minutes"] < found["minutes_slow"]
    assert found["tokens_per_second"] * found["training_seconds"] == pytest.approx(found["tokens"])
    # one duration: loading (20 s, and 13.5 GB at 0.65 GB/s), training, and ten checkpoints and the adapter
    assert found["loading_seconds"] == pytest.approx(20 + 2 * 6_738_415_616 / 0.65e9)
    adapter, checkpoints = 39_976_960, -(-found["steps"] // max(1, found["steps"] // 10))
    assert found["saving_seconds"] == pytest.approx((checkpoints * 6 + 2) * adapter / 0.65e9)
    whole = found["loading_seconds"] + found["training_seconds"] + found["saving_seconds"]
    assert found["seconds"] == pytest.approx(whole)
    assert found["minutes"] == pytest.approx(whole / 60)
    assert found["lengths_from"] == "characters / 4.28: no tokenizer was given"


def test_dollars_are_minutes_at_the_rate_given_or_in_the_environment(fit: Call) -> None:
    by_option = fit("--model", "llama-2-7b", "--card", "a100-80", "--usd-per-hour", "1.50", "--json").json
    assert float(by_option["usd"]) == pytest.approx(1.5 * by_option["minutes"] / 60, abs=1e-4)
    by_environment = fit(
        "--model", "llama-2-7b", "--card", "a100-80", "--json", env={"ALPASIFT_USD_PER_HOUR": "1.50"}
    ).json
    assert by_environment["usd"] == by_option["usd"]
    assert by_option["usd_per_hour"] == 1.5
    assert fit("--model", "llama-2-7b", "--card", "a100-80", "--usd-per-hour", "cheap").code == 2


def test_people_get_the_reason_the_parts_every_method_and_the_next_command(fit: Call) -> None:
    ran = fit("--model", "llama-2-13b", "--gpu-memory", 16)
    assert ran.code == 0, ran.err
    assert ran.out.startswith("llama-2-13b, 13.02 B parameters, on a 16 GB GPU: qlora, micro-batch ")
    assert "because LoRA would need" in ran.out and "computed in fp16, trained parameters in float32" in ran.out
    for part in (
        "weights",
        "adapter or gradients",
        "optimizer",
        "activations",
        "dequantisation",
        "fragmentation",
        "context",
    ):
        assert part in ran.out
    rows = [line.split()[:2] for line in ran.out.splitlines() if line.split()[:1] in (["full"], ["lora"], ["qlora"])]
    assert sorted(rows) == sorted([m, c] for m in ("full", "lora", "qlora") for c in ("with", "without"))
    assert "A forecast, not a measurement. Lengths by characters / 4.28" in ran.out
    assert "Calibration: none for this GPU" in ran.out and "cost unknown, give --usd-per-hour" in ran.out
    assert "its speed is assumed to be that of a T4" in ran.out
    assert "next: alpasift train --model FOLDER --data" in ran.err and "--method qlora --micro-batch" in ran.err


def test_all_lists_every_configuration(fit: Call) -> None:
    found = fit("--model", "llama-7b", "--gpu-memory", 40, "--all", "--json").json
    # 5 micro-batches, 3 lengths of rows up to its 2,048 positions, with and without; full: 2 optimizers x 2 precisions
    assert len(found["considered"]) == 5 * 3 * 2 * (1 + 1 + 4)
    assert {one["fits"] for one in found["considered"]} == {True, False}


def test_nothing_fits_is_exit_code_3_with_the_nearest_in_one_line_and_in_json(fit: Call) -> None:
    ran = fit("--model", "llama-2-13b", "--gpu-memory", 8)
    assert ran.code == 3
    assert ran.err.startswith(
        "alpasift: nothing fits: llama-2-13b on a 8 GB GPU with 7.6 GiB usable; the smallest configuration, qlora"
    )
    assert ran.err.count("\n") == 1 and "a 12 GB GPU is enough" in ran.err
    ran = fit("--model", "llama-2-13b", "--gpu-memory", 8, "--json")
    assert ran.code == 3
    found = ran.json
    assert found["fits"] is False and found["nearest"]["method"] == "qlora" and found["nearest"]["fits"] is False
    assert (found["nearest_card_gb"], found["smaller_model"]) == (12, "mistral-7b")
    assert found["nearest"]["needed_gib"] > found["usable_gib"]


def test_without_a_card_the_option_is_named_and_with_one_it_is_taken(fit: Call, tmp_path: Path) -> None:
    ran = fit("--model", "llama-2-7b")
    assert ran.code == 3 and "--gpu-memory" in ran.err and ran.err.count("\n") == 1
    program = tmp_path / "bin" / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Tesla T4, 15360 MiB, 7.5'\n")
    program.chmod(0o755)
    found = fit("--model", "llama-2-7b", "--json").json
    assert (found["card"], found["dtype"], found["trained_in"], found["usable_gib"]) == ("t4", "fp16", "float32", 14.5)


def test_lengths_come_from_the_models_tokenizer_where_there_is_one(fit: Call, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes((ROOT / "train" / "fit" / "presets" / "llama-2-7b.json").read_bytes())
    by_word = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, unk_token="?"))
    by_word.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    by_word.save(str(folder / "tokenizer.json"))
    found = fit("--model", folder, "--gpu-memory", 24, "--json").json
    assert found["lengths_from"] == f"the tokenizer {folder}/tokenizer.json" and found["model"] == "model"
    other = fit("--model", "llama-2-7b", "--tokenizer", folder, "--gpu-memory", 24, "--json").json
    assert other["tokens"] == found["tokens"] and other["lengths_from"] == found["lengths_from"]


def test_of_many_rows_a_sample_is_tokenised_and_the_others_are_estimated(fit: Call, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    by_word = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, unk_token="?"))
    by_word.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    by_word.save(str(tmp_path / "tokenizer.json"))
    path = write_rows(tmp_path / "rows.jsonl", some_rows(2_500))
    found = fit("--model", "llama-2-7b", "--tokenizer", tmp_path, "--card", "h200", "--json", data=path).json
    assert found["lengths_from"].endswith(
        "tokenizer.json on 2,000 examples, the others estimated from their characters"
    )
    # "7 and 7 make 14." is 5 words; a token begins and one ends each row
    words = len(alpaca_prompt(Example("Add the number 7 to itself.", "", "")).split())
    assert found["tokens"] == pytest.approx(3 * 2_500 * (words + 5 + 2), rel=0.03)


def test_rows_of_a_database_are_as_good_as_a_file(fit: Call, alpasift: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", some_rows(300))
    assert alpasift("import", "rows.jsonl").code == 0
    options = ("--model", "llama-2-7b", "--card", "rtx-3090", "--json")
    here, there = fit(*options, data=None), fit(*options, data=tmp_path / "rows.jsonl")
    assert here.code == 0, here.err
    assert {**here.json, "data": ""} == {**there.json, "data": ""}
    assert here.json["examples"] == 300
    both = fit(*options, "--dataset", "rows")
    assert both.code == 2


def test_what_is_cut_and_what_is_skipped_is_printed(fit: Call, tmp_path: Path) -> None:
    long = {"instruction": "word " * 600, "input": "", "output": "yes"}
    wordy = {"instruction": "Go on.", "input": "", "output": "word " * 600}
    path = write_rows(tmp_path / "rows.jsonl", [*some_rows(50), long, wordy, {"instruction": "none"}])
    ran = fit("--model", "llama-2-7b", "--gpu-memory", 24, data=path)
    assert ran.code == 0
    assert "1 rows of" in ran.err and "are unusable and skipped" in ran.err
    assert "1 examples are skipped: their prompt alone exceeds 512 tokens" in ran.err
    assert "1 examples are longer than 512 tokens and are truncated" in ran.err


def test_a_calibration_of_this_card_corrects_the_forecast_and_is_named(fit: Call, tmp_path: Path) -> None:
    options = ("--model", "llama-2-7b", "--card", "rtx-4090", "--json")
    before = fit(*options).json
    assert before["calibration"] is None
    dims, card = read_dims("llama-2-7b"), card_named("rtx-4090")
    lengths = lengths_of([60] * 500, [60] * 500, 512, "counted manually")
    config = TrainConfig(before["method"], 2, 512, before["checkpointing"])
    plain = forecast(dims, Workload(lengths), config, card)
    assert plain.tokens_per_second is not None
    row = measured_against(plain, tokens_per_second=plain.tokens_per_second / 2, peak_bytes=None, steps=20, versions={})
    record(row, tmp_path / "cards.json")
    after = fit(*options).json
    assert after["training_seconds"] == pytest.approx(2 * before["training_seconds"], rel=0.01)
    assert after["loading_seconds"] == before["loading_seconds"], "rows of release 0.1 tell nothing of it"
    assert after["calibration"].startswith("time x 2.00 as measured on")
    assert "Calibration: time x 2.00" in fit(*options[:-1]).out
    (tmp_path / "cards.json").write_text("no JSON")
    ran = fit(*options)
    assert ran.code == 1 and "cards.json is not a calibration file" in ran.err and ran.err.count("\n") == 1


def test_a_processor_is_forecast_from_what_a_training_on_it_has_measured(fit: Call, tmp_path: Path) -> None:
    """The row is as a training in float32 stores it; before it, the speed is a guess from how fast it multiplies."""
    options = ("--model", "llama-2-7b", "--card", "cpu", "--method", "lora", "--all", "--json")
    before = fit(*options).json
    assert [one["calibration"] for one in before["considered"]] == [None] * len(before["considered"])
    assert all(one["minutes_fast"] < one["minutes"] < one["minutes_slow"] for one in before["considered"])
    assert all(one["parts"]["libraries_gib"] > 0 for one in before["considered"])
    dims, card = read_dims("llama-2-7b"), card_named("cpu")
    lengths = lengths_of([60] * 500, [60] * 500, 512, "counted manually")
    config = TrainConfig("lora", 1, 512, checkpointing=False, adapter_dtype="fp32", dtype="fp32")
    plain = forecast(dims, Workload(lengths), config, card)
    assert plain.parts.context == 0 and forecast(dims, Workload(lengths), config, card_named("t4")).parts.context > 0
    record(
        measured_against(
            plain,
            tokens_per_second=50.0,
            peak_bytes=None,
            steps=20,
            versions={},
            loading_seconds=7.5,
            saving_seconds=plain.saving_seconds * 3,
        ),
        tmp_path / "cards.json",
    )
    of_the_kind = [
        one for one in fit(*options).json["considered"] if one["method"] == "lora" and not one["checkpointing"]
    ]
    assert all(one["tokens_per_second"] == pytest.approx(50.0) for one in of_the_kind)
    assert all(one["calibration"].startswith("speed as measured on") for one in of_the_kind)
    assert all(one["loading_seconds"] == 7.5 for one in of_the_kind)
    for one in of_the_kind:
        saved = saving_seconds(dims, config, one["steps"], None)
        assert one["saving_seconds"] == pytest.approx(3 * saved)
        assert one["minutes"] * 60 == pytest.approx(7.5 + one["training_seconds"] + 3 * saved)
    assert {(one["dtype"], one["trained_in"]) for one in of_the_kind} == {("float32", "float32")}


def test_the_answer_about_a_processor_has_one_precision_and_no_cuda_context(fit: Call, tmp_path: Path) -> None:
    config = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 300, "max_position_embeddings": 2048,
    }  # fmt: skip
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text(json.dumps(config))
    ran = fit("--model", "small", "--card", "cpu")
    assert ran.code == 0, ran.err
    assert "computes in float32" in ran.out and "bf16" not in ran.out and "context" not in ran.out


def test_a_processor_is_asked_whether_it_computes_in_bf16(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    for text, has in (
        ("flags\t\t: fpu avx2 avx512f avx512_bf16\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags\t\t: fpu avx2 avx512f\nmodel name\t: bf16 in name only\n", False),
    ):
        info.write_text(text)
        assert cpu_has_bf16(info) is has
    assert cpu_has_bf16(tmp_path / "none") is False


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--model", "gpt-2", "--gpu-memory", 24), 1, "model folder not found: gpt-2; give a folder"),
        (("--model", "llama-2-7b", "--card", "rtx-9090"), 1, "no GPU named 'rtx-9090'"),
        (("--model", "llama-2-7b", "--gpu-memory", 0), 2, "gpu-memory"),
        (("--model", "llama-7b", "--gpu-memory", 24, "--max-length", 16), 1, "below --max-length 16"),
    ],
)
def test_what_cannot_be_done_is_one_line(fit: Call, arguments: tuple[Any, ...], code: int, message: str) -> None:
    ran = fit(*arguments)
    assert ran.code == code and message in ran.err and "Traceback" not in ran.err


def test_the_forecast_imports_nothing_of_training(tmp_path: Path) -> None:
    code = (
        "import sys; from alpasift.batcher.cli import run; "
        f"code = run(['fit', '--model', 'llama-2-7b', '--data', {str(EXAMPLES)!r}, '--gpu-memory', '24', '--json']); "
        "heavy = {'torch', 'transformers', 'tokenizers', 'peft', 'trl', 'bitsandbytes'} & set(sys.modules); "
        "print(code, sorted(heavy), file=sys.stderr)"
    )
    environment = cli_environment({"ALPASIFT_CALIBRATION": str(tmp_path / "none.json")})
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0 and json.loads(done.stdout)["fits"] is True
    assert done.stderr.strip() == "0 []"


def test_the_published_table_can_be_printed() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/fit_published.py"], cwd=ROOT, capture_output=True, text=True, env=cli_environment()
    )
    assert done.returncode == 0, done.stderr
    assert "MISSED" not in done.stdout and done.stdout.count("known miss") == 4
    assert "| llama-2-7b | T4 | qlora" in done.stdout and "none was measured" in done.stdout
