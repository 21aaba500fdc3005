"""Real training on tiny models: it learns, it may be stopped or killed anywhere, and what goes wrong is one line."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, SRC, call_cli, cli_environment, new_store, run_cli, write_rows
from hostile_folder import imported, make_hostile_folder
from tiny_models import changed, make_folder, make_gguf

torch = pytest.importorskip("torch")
for package in ("transformers", "peft", "trl", "bitsandbytes"):
    pytest.importorskip(package)

from alpasift.graders import Example  # noqa: E402
from alpasift.train.artifacts import IncompleteFolder, TrainError, read_manifest  # noqa: E402
from alpasift.train.held_out import read_losses  # noqa: E402
from alpasift.train.metrics import Metrics  # noqa: E402
from alpasift.train.prepare import prepare  # noqa: E402
from alpasift.train.recipes import Settings, settle  # noqa: E402
from alpasift.train.run_folder import newest_checkpoint  # noqa: E402
from alpasift.train.sft import Hooks, OutOfMemory, Trained, out_of_memory, train  # noqa: E402
from alpasift.train.trainer import DivergedLoss  # noqa: E402

pytestmark = pytest.mark.timeout(600)
CITIES = ("Rome", "Oslo", "Lima", "Cairo", "Quito", "Perth", "Turin", "Delhi")


def rows(count: int) -> list[dict[str, Any]]:
    """Rows of very different lengths."""
    return [
        {
            "instruction": f"Say {CITIES[i % 8]} {i} times.",
            "input": "Quickly, please." if i % 3 == 0 else "",
            "output": " ".join([CITIES[i % 8]] * (1 + i * i % 40)),
        }
        for i in range(count)
    ]


def examples(count: int) -> list[Example]:
    return [Example(instruction=r["instruction"], input=r["input"], output=r["output"]) for r in rows(count)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    return make_folder(make_gguf(folder / "tiny.gguf"), folder / "tiny")


def settings(method: Any = "lora", **given: Any) -> Settings:
    given = {
        "batch": 8,
        "epochs": 2,
        "pack_length": 512,
        "precision": "fp32",
        "adapter_precision": "fp32",
        "checkpointing": False,
        **given,
    }
    return settle("alpagasus-7b", method, 40, **given)


def run(
    base: Path,
    out: Path,
    chosen: Settings,
    count: int = 40,
    should_stop: Callable[[], bool] = lambda: False,
    **given: Any,
) -> tuple[Trained, list[Metrics]]:
    seen: list[Metrics] = []
    hooks = Hooks(on_step=seen.append, should_stop=should_stop)
    return train(prepare(examples(count), base, chosen), out, hooks, **given), seen


def sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def weights(out: Path) -> str:
    """The hash of what was trained."""
    file = next(p for p in (out / "model").glob("*model.safetensors"))
    return hashlib.sha256(file.read_bytes()).hexdigest()


def stop_after(steps: int) -> Callable[[], bool]:
    asked = iter([False] * (steps - 1) + [True] * 100)
    return lambda: next(asked)


# -- it trains --------------------------------------------------------------------------------------------------------


def test_the_loss_falls_and_every_step_is_written_down(base: Path, tmp_path: Path) -> None:
    done, seen = run(base, tmp_path / "run", settings("full", learning_rate=5e-3, epochs=6))
    assert done.finished
    assert [m.step for m in seen] == list(range(1, 31))
    assert sum(m.loss for m in seen[-5:]) < 0.7 * sum(m.loss for m in seen[:5])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [m.loss for m in seen]
    assert {m.examples for m in seen} == {8}
    assert sum(m.tokens for m in seen) == done.facts["tokens"]
    assert seen[-1].seconds_left == 0
    assert done.measured is not None
    assert done.measured.steps == 20
    facts = read_manifest(tmp_path / "run" / "model")
    assert (facts["kind"], facts["method"], facts["template"]) == ("model", "full", "alpaca")


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_an_adapter_is_saved_with_what_it_belongs_to(method: str, base: Path, tmp_path: Path) -> None:
    done, _ = run(base, tmp_path / "run", settings(method, steps=2))
    facts = read_manifest(tmp_path / "run" / "model")
    assert (done.step, facts["kind"], facts["base"]) == (2, "adapter", str(base.resolve()))
    assert facts["nf4"] == ({"double_quant": True, "compute": "fp32"} if method == "qlora" else None)
    config = json.loads((tmp_path / "run" / "model" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (16, 32, 0.0)
    assert (tmp_path / "run" / "model" / "tokenizer.json").is_file()
    assert not list((tmp_path / "run").rglob("*.bin"))  # no pickle of a model


def test_the_adapter_of_a_recipe_is_the_papers(base: Path, tmp_path: Path) -> None:
    chosen = settle(
        "ag2-qlora", "qlora", 40, batch=8, steps=1, precision="fp32", adapter_precision="fp32", checkpointing=False
    )
    run(base, tmp_path / "run", chosen)
    config = json.loads((tmp_path / "run" / "model" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (8, 32, 0.05)
    assert sorted(config["target_modules"]) == ["q_proj", "v_proj"]


def test_the_dropout_of_humpback_is_there_while_training(base: Path, tmp_path: Path) -> None:
    given = {"batch": 8, "steps": 1, "precision": "fp32", "checkpointing": False}
    with_it = settle("humpback", "full", 40, **given)
    without = settle("humpback", "full", 40, attention_dropout=0.0, **given)
    losses = [run(base, tmp_path / name, chosen)[1][0].loss for name, chosen in (("a", with_it), ("b", without))]
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)
    config = json.loads((tmp_path / "a" / "model" / "config.json").read_text())
    assert not config["attention_dropout"]  # whoever loads the model gets it as the base was
    assert config.get("use_cache", True)


def test_packed_rows_train_what_padded_rows_train(base: Path, tmp_path: Path) -> None:
    """The same examples a step and the mean over their tokens: loss and gradient do not depend on the layout."""
    layouts = {"packed": {}, "long": {"pack_length": 2048}, "padded": {"pack_length": None, "micro_batch": 4}}
    seen = {name: run(base, tmp_path / name, settings("lora", steps=4, **given))[1] for name, given in layouts.items()}
    for name in ("long", "padded"):
        assert [m.loss for m in seen[name]] == pytest.approx([m.loss for m in seen["packed"]], rel=1e-5)
        assert [m.grad_norm for m in seen[name]] == pytest.approx([m.grad_norm for m in seen["packed"]], rel=1e-4)


def test_the_loss_is_the_mean_over_the_trained_tokens_of_the_step(base: Path, tmp_path: Path) -> None:
    """Beside a cross-entropy written out here, example by example."""
    from alpasift.train.models import load_model

    chosen = settings("lora", steps=1)
    prepared = prepare(examples(40), base, chosen)
    _, seen = run(base, tmp_path / "run", chosen)
    model = load_model(base, precision="fp32")
    total, count = 0.0, 0
    with torch.no_grad():
        for n in (n for group in prepared.plan.steps[0].microbatches for pack in group for n in pack):
            ids = torch.tensor([list(prepared.data.ids[n])])
            logits = model(input_ids=ids).logits[0].double().log_softmax(-1)
            start = prepared.data.prompt_tokens[n]
            total -= sum(float(logits[at - 1, ids[0, at]]) for at in range(start, ids.shape[1]))
            count += ids.shape[1] - start
    assert seen[0].loss == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("layout", [{}, {"pack_length": None, "micro_batch": 4}])
def test_the_loss_on_held_out_rows_is_that_of_plain_transformers_and_peft(
    layout: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    """Before the first step beside the base, after the last beside the saved adapter; the mask is written out here."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    chosen = settings("lora", steps=12, learning_rate=5e-3, held_out=6, **layout)
    given = [*examples(40), *examples(8)]  # eight of them twice
    prepared = prepare(given, base, chosen, ids=[f"row {e.instruction}" for e in given])
    done = train(prepared, tmp_path / "run", Hooks())
    by_hash = sorted((f"row {e.instruction}" for e in examples(40)), key=lambda one: sha256(f"held out {one}"))
    facts = read_manifest(tmp_path / "run" / "model")
    assert facts["held_out"]["ids"] == json.loads((tmp_path / "run" / "run.json").read_text())["held_out"]["ids"]
    assert facts["held_out"]["ids"] == by_hash[:6]
    trained_on = {f"row {given[row].instruction}" for row in prepared.data.rows}
    assert trained_on == set(by_hash[6:]), "rows of equal content are held out together"
    assert [one.step for one in done.held_out] == [0, 2, 4, 6, 8, 10, 12]

    held = [next(e for e in given if f"row {e.instruction}" == one) for one in by_hash[:6]]
    tokens = prepare(held, base, settings("lora")).data
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    for found in (done.held_out[0], done.held_out[-1]):
        if found.step:  # this puts the adapter into the base itself
            model = PeftModel.from_pretrained(model, tmp_path / "run" / "model").eval()
        total, count = 0.0, 0
        for ids, start in zip(tokens.ids, tokens.prompt_tokens, strict=True):
            one = torch.tensor([list(ids)])
            labels = one.clone()
            labels[0, :start] = -100
            with torch.no_grad():
                total += float(model(input_ids=one, labels=labels).loss) * (len(ids) - start)
            count += len(ids) - start
        assert (found.rows, found.tokens) == (6, count)
        assert found.loss == pytest.approx(total / count, rel=1e-5)
    assert done.held_out[-1].loss < done.held_out[0].loss


def test_a_training_without_held_out_rows_trains_what_one_with_them_trains_on_the_rest(
    base: Path, tmp_path: Path
) -> None:
    """Taking the loss on held-out rows changes nothing of the training, resumed or not."""
    with_them, seen = run(base, tmp_path / "with", settings(held_out=7))
    prepared = prepare(examples(40), base, settings(held_out=7))
    rest = [examples(40)[row] for row in prepared.data.rows]
    without: list[Metrics] = []
    train(prepare(rest, base, settings()), tmp_path / "without", Hooks(on_step=without.append))
    assert [m.loss for m in without] == [m.loss for m in seen]
    first, _ = run(base, tmp_path / "parts", settings(held_out=7), should_stop=stop_after(4))
    assert [one.step for one in first.held_out] == [0, 1, 2, 3, 4]
    second, _ = run(base, tmp_path / "parts", settings(held_out=7))
    assert second.held_out == with_them.held_out
    assert weights(tmp_path / "parts") == weights(tmp_path / "with") == weights(tmp_path / "without")
    again, _ = run(base, tmp_path / "parts", settings(held_out=7))
    assert (again.already_finished, again.held_out) == (True, with_them.held_out)
    with pytest.raises(TrainError, match="has another training: held_out was 7, is None"):
        run(base, tmp_path / "parts", settings())
    with pytest.raises(TrainError, match="--hold-out 40 leaves nothing to train on: 40 distinct rows"):
        prepare(examples(40), base, settings(held_out=40))


def test_how_many_rows_are_held_out() -> None:
    for wanted, rows_given, expected in (
        (None, 3_199, 0),
        (None, 3_200, 64),
        (0, 9_000, 0),
        (12, 40, 12),
        (0.05, 90, 5),  # 4.5, rounded up
    ):
        assert settle("alpaca", "lora", rows_given, held_out=wanted).held_out == expected
    assert "held_out" not in settle("alpaca", "lora", 40).facts(), "as in run.json of earlier releases"
    with pytest.raises(TrainError, match=r"--hold-out 1\.5: give a number of rows"):
        settle("alpaca", "lora", 40, held_out=1.5)


@pytest.mark.parametrize("text", ["100%", "150%", "-2%", "-1", "two", "%", "nan"])
def test_a_held_out_share_that_makes_no_sense_is_wrong_usage(text: str, base: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", rows(4))
    ran = call_cli(["train", "--model", base, "--data", data, "-o", "run", f"--hold-out={text}"], cwd=tmp_path)
    assert ran.code == 2
    assert f"{text!r}: give a number of rows (64), or a share of them below all (2%, .02)" in " ".join(ran.err.split())


def test_checkpointing_changes_nothing_but_memory(base: Path, tmp_path: Path) -> None:
    _, without = run(base, tmp_path / "a", settings("qlora", steps=3))
    _, with_it = run(base, tmp_path / "b", settings("qlora", steps=3, checkpointing=True))
    assert [m.loss for m in with_it] == pytest.approx([m.loss for m in without], rel=1e-6)


def test_adapters_keep_the_requested_precision(base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    for method, precision in (("qlora", "bf16"), ("qlora", "fp32"), ("lora", "bf16")):
        out = tmp_path / f"{method}{precision}"
        run(base, out, settings(method, steps=1, precision="bf16", adapter_precision=precision))
        kept = {t.dtype for t in load_file(out / "model" / "adapter_model.safetensors").values()}
        assert kept == {torch.float32 if precision == "fp32" else torch.bfloat16}, (method, precision)


# -- stopped, killed, resumed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("full", {}),
        ("lora", {"lora_dropout": 0.1}),
        ("qlora", {"precision": "bf16", "adapter_precision": "bf16", "checkpointing": True}),
        ("full", {"optimizer": "adamw_8bit"}),
    ],
)
def test_a_stopped_training_resumes_bit_by_bit(method: str, given: dict[str, Any], base: Path, tmp_path: Path) -> None:
    whole, seen = run(base, tmp_path / "whole", settings(method, **given))
    first, some = run(base, tmp_path / "parts", settings(method, **given), should_stop=stop_after(4))
    assert (first.finished, first.step) == (False, 4)
    assert not (tmp_path / "parts" / "model").exists()
    second, rest = run(base, tmp_path / "parts", settings(method, **given))
    assert second.finished
    assert [m.loss for m in some + rest] == [m.loss for m in seen]
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    lines = [json.loads(line)["step"] for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(1, 11))
    assert rest[-1].seconds > some[-1].seconds  # the time of both parts
    assert whole.step == second.step == 10


def test_a_finished_training_is_not_done_again(base: Path, tmp_path: Path) -> None:
    run(base, tmp_path / "run", settings(steps=2))
    before = (tmp_path / "run" / "model" / "manifest.json").stat().st_mtime_ns
    again, seen = run(base, tmp_path / "run", settings(steps=2))
    assert (again.finished, again.already_finished, seen) == (True, True, [])
    assert (tmp_path / "run" / "model" / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["truncated", "changed", "no manifest"])
def test_an_incomplete_checkpoint_is_skipped(damage: str, base: Path, tmp_path: Path) -> None:
    run(base, tmp_path / "whole", settings())
    run(base, tmp_path / "run", settings(), should_stop=stop_after(5), save_every=1)
    folder = tmp_path / "run" / "checkpoints"
    newest = newest_checkpoint(folder)
    assert newest is not None
    assert newest.name == "checkpoint-5"
    file = newest / "adapter_model.safetensors"
    if damage == "truncated":
        os.truncate(file, 1000)
    elif damage == "changed":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    else:
        (newest / "manifest.json").unlink()
    left = newest_checkpoint(folder)
    assert left is not None
    assert left.name == "checkpoint-4"
    done, seen = run(base, tmp_path / "run", settings())
    assert [m.step for m in seen] == list(range(5, 11))
    assert done.finished
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def command(base: Path, data: Path, out: Path, *more: object) -> list[str]:
    how_long = [] if "--steps" in more else ["--epochs", "2"]
    return [
        sys.executable,
        "-m",
        "alpasift",
        "train",
        "--model",
        str(base),
        "--data",
        str(data),
        "-o",
        str(out),
        "--batch",
        "8",
        *how_long,
        "--pack-length",
        "512",
        "--held-out",
        "5",
        "--save-every",
        "1",
        "--quiet",
        *map(str, more),
    ]


def killed(line: list[str], cwd: Path, moment: Callable[[], bool]) -> bool:
    """Start a command and kill it at a moment; whether it came to that."""
    process = subprocess.Popen(
        line, cwd=cwd, env=cli_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while process.poll() is None:
            if moment():
                process.kill()
                return True
            time.sleep(0.0005)
        return False
    finally:
        process.kill()
        process.wait()


def test_checkpoints_after_the_one_that_is_resumed_from_do_not_outrank_new_ones(base: Path, tmp_path: Path) -> None:
    run(base, tmp_path / "run", settings(), should_stop=stop_after(8), save_every=1)
    folder = tmp_path / "run" / "checkpoints"
    for damaged in folder.glob("checkpoint-*"):
        (damaged / "optimizer.pt").write_bytes(b"")
    again, seen = run(base, tmp_path / "run", settings(), should_stop=stop_after(3), save_every=1)
    assert (again.step, seen[0].step) == (3, 1)
    kept = newest_checkpoint(folder)
    assert kept is not None
    assert kept.name == "checkpoint-3"


SEEN_BY_TORCH = """
import os, sys
from pathlib import Path
from alpasift.batcher.trainings import Rows, TrainRequest, plan_training
from alpasift.graders import Example
names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
seen = []
sys.addaudithook(lambda event, args: seen.append([os.environ.get(name) for name in names])
                 if event == "import" and args[0] == "torch" and not seen else None)
rows = Rows([Example(instruction="Say yes.", input="", output="Yes.")], "a row")
plan_training(rows, TrainRequest(Path({base!r}), Path("run"), "alpaca", None, {{}}), lambda line: None)
print(seen[0])
"""


@pytest.mark.parametrize("own", [None, "PYTORCH_CUDA_ALLOC_CONF"])
def test_torch_finds_its_allocator_configured_when_it_is_imported(own: str | None, base: Path, tmp_path: Path) -> None:
    from alpasift.train.allocator import NAMES, variable_for

    names = NAMES[:2]
    environment = cli_environment({} if own is None else {own: "max_split_size_mb:512"})
    for name in names:
        if name != own:
            environment.pop(name, None)
    code = SEEN_BY_TORCH.format(base=str(base))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    set_here = own or variable_for(torch.__version__)
    value = "expandable_segments:True" if own is None else "max_split_size_mb:512"
    assert done.stdout.strip() == str([value if name == set_here else None for name in names])


def test_the_allocators_variable_is_the_one_that_this_torch_reads() -> None:
    from alpasift.train.allocator import variable_for

    old, new = "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"
    versions = {"2.8.0": old, "2.9.1+cu128": old, "2.10.0": old, "2.11.0+cu130": new, "2.13.0+cpu": new, "3.0.0": new}
    assert {version: variable_for(version) for version in versions} == versions


def test_killed_in_a_step_and_while_a_checkpoint_is_written_it_gives_the_same_weights(
    base: Path, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", rows(40))
    run_whole = subprocess.run(
        command(base, data, tmp_path / "whole"), cwd=tmp_path, env=cli_environment(), capture_output=True
    )
    assert run_whole.returncode == 0, run_whole.stderr
    out = tmp_path / "run"

    def in_a_step() -> bool:
        metrics = out / "metrics.jsonl"
        return metrics.is_file() and metrics.read_bytes().count(b"\n") >= 3

    def in_a_checkpoint() -> bool:
        made = [p for p in (out / "checkpoints").glob("checkpoint-*") if p.name not in seen]
        return any((p / "optimizer.pt").exists() and not (p / "manifest.json").exists() for p in made)

    def as_the_model_is_written() -> bool:
        return any(out.glob(".model.*.partial"))

    assert killed(command(base, data, out), tmp_path, in_a_step)
    assert not (out / "model").exists()
    seen = {p.name for p in (out / "checkpoints").glob("checkpoint-*")}
    in_writing = killed(command(base, data, out), tmp_path, in_a_checkpoint)
    in_saving = killed(command(base, data, out), tmp_path, as_the_model_is_written)
    assert not (out / "model").exists() or not in_saving
    done = subprocess.run(command(base, data, out), cwd=tmp_path, env=cli_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert in_writing
    assert in_saving
    assert weights(out) == weights(tmp_path / "whole")
    assert (out / "held_out.jsonl").read_text() == (tmp_path / "whole" / "held_out.jsonl").read_text()
    assert [p.name for p in out.iterdir() if p.name.endswith(".partial")] == []


def test_control_c_writes_a_checkpoint_and_the_same_command_resumes(base: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", rows(40))
    line = command(base, data, tmp_path / "run")
    line[line.index("--save-every") + 1] = "100"
    process = subprocess.Popen(line, cwd=tmp_path, env=cli_environment(), stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.is_file() and metrics.stat().st_size) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, printed = process.communicate()
    assert process.returncode == 143, printed
    assert "the same command resumes it" in printed
    stopped = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert stopped is not None
    again = subprocess.run(line, cwd=tmp_path, env=cli_environment(), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"resuming from step {stopped.name.rpartition('-')[2]} of 10" in again.stderr
    assert "Traceback" not in printed + again.stderr


def test_another_training_in_the_folder_is_not_overwritten(base: Path, tmp_path: Path) -> None:
    run(base, tmp_path / "run", settings(), should_stop=stop_after(2))
    with pytest.raises(TrainError, match=r"has another training: learning_rate was 0\.0002, is 0\.001.*--fresh"):
        run(base, tmp_path / "run", settings(learning_rate=1e-3))
    with pytest.raises(TrainError, match="the data is another"):
        run(base, tmp_path / "run", settings(), count=39)
    done, seen = run(base, tmp_path / "run", settings(learning_rate=1e-3, steps=2), fresh=True)
    assert (done.finished, len(seen)) == (True, 2)


def test_a_model_that_was_changed_since_is_not_called_done(base: Path, tmp_path: Path) -> None:
    run(base, tmp_path / "run", settings(steps=1))
    with (tmp_path / "run" / "model" / "adapter_model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(IncompleteFolder.__mro__[1], match="--fresh starts again"):
        run(base, tmp_path / "run", settings(steps=1))


def test_a_training_that_release_0_1_started_is_resumed_and_exported(base: Path, tmp_path: Path) -> None:
    """Its run.json is in tests/data/release_0_1_0: keys, settings and the digest of the rows are still the same."""
    from alpasift.train.export.export import export_model

    chosen = settings("lora", rank=2)
    run(base, tmp_path / "run", chosen, should_stop=stop_after(2))
    ours = json.loads((tmp_path / "run" / "run.json").read_text())
    theirs = json.loads((ROOT / "tests" / "data" / "release_0_1_0" / "training" / "run.json").read_text())
    assert list(ours) == list(theirs)
    assert ours["settings"] == theirs["settings"]
    assert ours["data_sha256"] == theirs["data_sha256"]
    here = {name: ours[name] for name in ("base", "base_sha256", "base_config_sha256")}  # made anew on each machine
    (tmp_path / "run" / "run.json").write_text(json.dumps({**theirs, **here}))
    done, seen = run(base, tmp_path / "run", chosen)
    assert (done.finished, seen[0].step) == (True, 3)
    facts = read_manifest(tmp_path / "run" / "model")
    assert set(theirs) < set(facts)
    assert facts["versions"] == theirs["versions"]
    assert export_model(tmp_path / "run", tmp_path / "merged", "merged").facts["method"] == "lora"


# -- several cards ----------------------------------------------------------------------------------------------------


def test_two_processes_train_what_one_trains(base: Path, tmp_path: Path) -> None:
    """torchrun with gloo: the same examples a step, the mean over the tokens of both.

    In a folder whose own train.py, sql.py, graders.py and batcher.py raise when imported: the installed command and
    torchrun's children, which have that folder first on their path, take alpasift's modules.
    """
    data = write_rows(tmp_path / "rows.jsonl", rows(40))
    mine = make_hostile_folder(tmp_path / "mine")
    installed = Path(sys.executable).with_name("alpasift")
    assert installed.is_file(), "install the project: pip install -e ."
    line = [str(installed), *command(base, data, tmp_path / "one", "--steps", 4)[3:]]
    one = subprocess.run(line, cwd=mine, env=cli_environment(), capture_output=True, text=True)
    assert one.returncode == 0, one.stderr
    two = command(base, data, tmp_path / "two", "--steps", 4)[1:]
    two = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(29_500 + os.getpid() % 1000),
        *two,
    ]
    env = {**cli_environment(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(two, cwd=mine, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert imported(mine) == []
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    held = [[one.loss for one in read_losses(tmp_path / name / "held_out.jsonl")] for name in ("one", "two")]
    assert len(held[0]) == 5
    assert held[1] == pytest.approx(held[0], rel=1e-4)
    assert read_manifest(tmp_path / "two" / "model")["cards"] == 2
    assert done.stderr.count("trained 4 steps") == 1


ONE_OF_TWO = """
import os, sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
from test_sft import examples, settings, stop_after
from alpasift.train.prepare import prepare
from alpasift.train.sft import Hooks, train
rank = int(os.environ["RANK"])
stop = stop_after(3) if rank == 1 else lambda: False
prepared = prepare(examples(40), Path({base!r}), settings("lora"), cards=2)
done = train(prepared, Path("run"), Hooks(should_stop=stop))
Path(f"step-{{rank}}").write_text(str(done.step))
"""


def test_processes_stop_at_the_same_step_whichever_was_stopped(base: Path, tmp_path: Path) -> None:
    script = tmp_path / "one_of_two.py"
    script.write_text(ONE_OF_TWO.format(root=str(SRC), tests=str(ROOT / "tests"), base=str(base)))
    port = str(30_500 + os.getpid() % 1000)
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port, str(script)]
    env = {**cli_environment(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"step-{rank}").read_text() for rank in (0, 1)] == ["3", "3"]
    kept = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert kept is not None
    assert kept.name == "checkpoint-3"


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_the_training(base: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DivergedLoss, match=r"the loss is (nan|inf) .*at step \d+, so training stopped; .*Lower --learning-rate"
    ):
        run(base, tmp_path / "run", settings("full", learning_rate=1e30), save_every=1)
    assert not (tmp_path / "run" / "model").exists()


def test_a_gradient_that_is_no_number_stops_it_before_the_checkpoint(base: Path, tmp_path: Path) -> None:
    """Weights of the size of 1e19 have a finite loss and an infinite gradient norm in float32."""
    from safetensors.torch import load_file, save_file

    huge = copy_of(base, tmp_path / "huge")
    weights_of = load_file(huge / "model.safetensors")
    weights_of["model.layers.0.mlp.down_proj.weight"] *= 1e-30
    weights_of["model.layers.0.mlp.up_proj.weight"] *= 1e30
    weights_of["model.layers.0.mlp.gate_proj.weight"] *= 1e-9
    save_file(weights_of, huge / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DivergedLoss, match="so training stopped; no checkpoint was written yet"):
        run(huge, tmp_path / "run", settings("full"), save_every=1)
    assert newest_checkpoint(tmp_path / "run" / "checkpoints") is None


def test_an_architecture_whose_packed_examples_would_mix_is_refused(base: Path, tmp_path: Path) -> None:
    """OPT reads places off the attention mask, not off the positions: packed, its examples would see each other."""
    from transformers import OPTConfig, OPTForCausalLM

    folder = tmp_path / "opt"
    shape = {
        "hidden_size": 64,
        "ffn_dim": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 64,
    }
    OPTForCausalLM(OPTConfig(vocab_size=2398, **shape)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, folder / name)
    with pytest.raises(TrainError, match=r"OPTForCausalLM attends across examples.*--pack-length 0"):
        run(folder, tmp_path / "run", settings("lora", steps=1))
    done, _ = run(folder, tmp_path / "padded", settings("lora", steps=1, pack_length=None))
    assert done.finished


def test_a_release_that_names_a_temperature_without_sampling_is_trained(base: Path, tmp_path: Path) -> None:
    """Older Llama 2 releases do; transformers reads such a file and refuses to write it."""
    old = copy_of(base, tmp_path / "old")
    changed(old / "generation_config.json", temperature=0.9, top_p=0.6)
    done, _ = run(old, tmp_path / "run", settings("full", steps=2), save_every=1)
    assert done.finished
    written = json.loads((tmp_path / "run" / "model" / "generation_config.json").read_text())
    assert written == json.loads((old / "generation_config.json").read_text())


def test_a_token_that_the_model_does_not_know_is_one_line(base: Path, tmp_path: Path) -> None:
    other = copy_of(base, tmp_path / "other")
    changed(other / "config.json", vocab_size=100)
    with pytest.raises(TrainError, match=r"gives token \d+, and the model has 100 embeddings: they do not match"):
        prepare(examples(4), other, settings())


def test_fresh_deletes_nothing_that_is_not_a_training(base: Path, tmp_path: Path) -> None:
    thesis = tmp_path / "mine" / "model" / "thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("years of work")
    with pytest.raises(TrainError, match=r"has no run\.json, so its content may not be a training"):
        run(base, tmp_path / "mine", settings(steps=1), fresh=True)
    assert thesis.read_text() == "years of work"
    inside = copy_of(base, tmp_path / "run" / "base")
    with pytest.raises(TrainError, match="would delete the base model"):
        run(inside, tmp_path / "run", settings(steps=1), fresh=True)
    assert (inside / "model.safetensors").is_file()


def test_one_folder_is_for_one_process(base: Path, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(TrainError, match="another process is training in"):
            run(base, tmp_path / "run", settings(steps=1))
    done, _ = run(base, tmp_path / "run", settings(steps=1))
    assert done.finished


def copy_of(base: Path, to: Path) -> Path:
    shutil.copytree(base, to)
    return to


def no_folder(base: Path, to: Path) -> Path:
    return to


def a_pickle(base: Path, to: Path) -> Path:
    copy_of(base, to)
    (to / "model.safetensors").rename(to / "pytorch_model.bin")
    return to


def cut_short(base: Path, to: Path) -> Path:
    copy_of(base, to)
    os.truncate(to / "model.safetensors", 100_000)
    return to


def an_index_that_climbs(base: Path, to: Path) -> Path:
    copy_of(base, to)
    (to / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../base/model.safetensors"}}')
    return to


def no_weights_at_all(base: Path, to: Path) -> Path:
    copy_of(base, to)
    (to / "model.safetensors").write_text("<html>not found</html>")
    return to


def no_tokenizer(base: Path, to: Path) -> Path:
    copy_of(base, to)
    (to / "tokenizer.json").unlink()
    return to


def no_end(base: Path, to: Path) -> Path:
    copy_of(base, to)
    changed(to / "tokenizer_config.json", eos_token=None)
    return to


def no_config(base: Path, to: Path) -> Path:
    copy_of(base, to)
    (to / "config.json").unlink()
    return to


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_folder, "model folder not found:"),
        (a_pickle, "pytorch_model.bin, a pickle, which can run code"),
        (cut_short, "model.safetensors has 100,000 bytes and needs"),
        (an_index_that_climbs, "'../base/model.safetensors', which is not a safetensors file of this folder"),
        (no_weights_at_all, "model.safetensors is not a safetensors file"),
        (no_tokenizer, "missing a tokenizer"),
        (no_end, "no end-of-text token"),
        (no_config, "is incomplete: missing config.json"),
    ],
)
def test_a_base_that_cannot_be_trained_is_one_line(
    spoil: Callable[[Path, Path], Path], message: str, base: Path, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", rows(10))
    done = run_cli(["train", "--model", spoil(base, tmp_path / "base"), "--data", data, "-o", "run"], cwd=tmp_path)
    assert done.code in (1, 2), done.err
    assert message in done.err
    assert len([line for line in done.err.splitlines() if line.startswith("alpasift:")]) == 1
    assert "Traceback" not in done.err
    assert not (tmp_path / "run").exists()


def test_no_usable_row_is_one_line(base: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [{"instruction": "Say nothing.", "input": "", "output": ""}] * 3)
    done = run_cli(["train", "--model", base, "--data", data, "-o", "run"], cwd=tmp_path)
    assert done.code == 1
    assert "Traceback" not in done.err
    assert "row" in done.err.splitlines()[-1]


IN_A_LIMIT = """
import resource, sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
from test_sft import examples, settings
from alpasift.graders import AlpaSiftError
from alpasift.train.prepare import prepare
from alpasift.train.sft import train
import torch, trl, transformers, peft, bitsandbytes
prepared = prepare(examples({count}), Path({base!r}), settings("full", **{given!r}))
{limit}
try:
    train(prepared, Path("run"), save_every=2, forecast_bytes=2**28)
except AlpaSiftError as error:
    print(type(error).__name__, error)
    sys.exit(1)
"""


def in_a_limit(base: Path, cwd: Path, limit: str, count: int = 40, **given: Any) -> subprocess.CompletedProcess[str]:
    code = IN_A_LIMIT.format(
        root=str(SRC), tests=str(ROOT / "tests"), base=str(base), given=given, limit=limit, count=count
    )
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=cli_environment(), capture_output=True, text=True)


def test_a_full_disk_keeps_the_last_checkpoint(base: Path, tmp_path: Path) -> None:
    """A file may not grow beyond 2 MB: the optimizer's state of all weights, some 3 MB, does not fit."""
    run(base, tmp_path / "run", settings("full"), should_stop=stop_after(3))
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))"
    done = in_a_limit(base, tmp_path, limit)
    assert done.returncode == 1, done.stderr
    assert "the disk is full" in done.stdout
    kept = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert kept is not None
    assert kept.name == "checkpoint-3"
    finished, seen = run(base, tmp_path / "run", settings("full"))
    assert (finished.finished, seen[0].step) == (True, 4)


def test_a_disk_that_is_full_when_the_model_is_written_is_one_line(base: Path, tmp_path: Path) -> None:
    """1.5 MB of weights may not be written; the steps are done, and only the model is written again."""
    run(base, tmp_path / "run", settings("full"), should_stop=stop_after(10))
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))"
    (tmp_path / "run" / "model").exists() and shutil.rmtree(tmp_path / "run" / "model")
    done = in_a_limit(base, tmp_path, limit)
    assert (done.returncode, "the disk is full" in done.stdout) == (1, True), done.stdout + done.stderr
    assert not (tmp_path / "run" / "model").exists()
    finished, _ = run(base, tmp_path / "run", settings("full"))
    assert finished.finished


def test_out_of_memory_names_what_to_change_and_how_wrong_the_forecast_was(base: Path, tmp_path: Path) -> None:
    limit = (
        "held = int(next(l for l in open('/proc/self/status') if l.startswith('VmSize')).split()[1]) * 1024\n"
        "resource.setrlimit(resource.RLIMIT_AS, (held + 900_000_000,) * 2)"
    )
    done = in_a_limit(base, tmp_path, limit, count=800, pack_length=4096, micro_batch=4, batch=800)
    assert done.returncode == 1, done.stderr[-2000:]
    assert done.stdout.startswith("OutOfMemory out of memory: ")
    assert "the forecast was 0.25 GiB (+" in done.stdout
    assert "--micro-batch 2, then --checkpointing, then --pack-length 2048" in done.stdout


def test_the_advice_goes_from_the_cheapest_change_to_the_dearest(base: Path) -> None:
    chosen = settings("qlora", checkpointing=True, pack_length=512)
    laid = prepare(examples(8), base, chosen).plan
    text = out_of_memory("CUDA out of memory. Tried to allocate 2.00 GiB.", chosen, laid, None)
    assert "use --max-length 256, or a smaller model" in text
    assert issubclass(OutOfMemory, TrainError)
    lora = out_of_memory("x", replace(chosen, method="lora"), laid, None)
    assert "--method qlora" in lora


# -- the command ------------------------------------------------------------------------------------------------------


def test_metrics_go_to_the_database_and_time_to_the_machine_account(base: Path, tmp_path: Path) -> None:
    from alpasift.batcher.store import Store

    data = write_rows(tmp_path / "rows.jsonl", rows(40))
    assert call_cli(["import", data], cwd=tmp_path).code == 0
    where = ["train", "--model", base, "--dataset", "rows", "-o", "run", "--batch", 8, "--steps", 5, "--json"]
    where += ["--hold-out", "10%"]
    done = run_cli(where, cwd=tmp_path, env={"ALPASIFT_USD_PER_HOUR": "3.60"})
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert (result["outcome"], result["step"], result["settings"]["method"]) == ("done", 5, "lora")
    store = Store(tmp_path / "alpasift.duckdb")
    (one,) = store.query("trainings", row_limit=None)
    assert (one["outcome"], one["step"], one["steps"], one["method"], one["parts"]) == ("done", 5, 5, "lora", 1)
    curve = store.query("training_curve", folder=None)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in curve] == [line["loss"] for line in lines]
    (machine,) = store.query("machine")
    assert machine["usd"] == pytest.approx(machine["seconds"] * 3.6 / 3600)
    assert machine["seconds"] == pytest.approx(one["seconds"], abs=0.1)
    # one duration, and one price of it: loading, training and saving
    assert result["seconds"] == pytest.approx(machine["seconds"], rel=0.02)
    parts = [result[f"{part}_seconds"] for part in ("loading", "training", "saving")]
    assert min(parts) > 0
    assert sum(parts) == pytest.approx(result["seconds"], abs=0.01)
    assert float(result["usd"]) == pytest.approx(result["seconds"] * 3.6 / 3600, abs=1e-4)
    assert "(loading " in done.err
    assert "without loading" not in done.err
    held = store.query("training_held_out", folder=None)
    assert [row["step"] for row in held] == [0, 1, 2, 3, 4, 5]
    assert [row["loss"] for row in held] == [one["loss"] for one in result["held_out"]]
    assert f"held-out loss {held[0]['loss']:.3f} -> {held[-1]['loss']:.3f} (4 rows)" in done.err
    (named,) = store.locked_query("select facts::json -> 'held_out' ->> 'ids' from trainings").rows
    known = {str(found) for (found,) in store.locked_query("select example_id from examples").rows}
    assert len(set(json.loads(named[0])) & known) == 4


HOLD = """
import sys
sys.path.insert(0, {root!r})
from alpasift.batcher.store import Store
with Store({path!r}).reader():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_database_that_somebody_reads_stops_no_training(base: Path, tmp_path: Path) -> None:

    data = write_rows(tmp_path / "rows.jsonl", rows(40))
    new_store(tmp_path / "alpasift.duckdb")
    code = HOLD.format(root=str(SRC), path=str(tmp_path / "alpasift.duckdb"))
    reader = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=cli_environment()
    )
    assert reader.stdout is not None
    assert reader.stdout.readline() == "held\n"
    done = run_cli(["train", "--model", base, "--data", data, "-o", "run", "--batch", 8, "--steps", 3], cwd=tmp_path)
    reader.communicate("")
    assert done.code == 0, done.err
    assert "could not be written: its training curve and hours are incomplete" in done.err
    assert (tmp_path / "run" / "model" / "manifest.json").is_file()


def test_a_step_is_said_to_have_the_examples_there_are_where_they_are_fewer_than_a_batch(
    base: Path, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", rows(5))
    done = run_cli(["train", "--model", base, "--data", data, "-o", "run", "--batch", 8, "--steps", 2], cwd=tmp_path)
    assert done.code == 0, done.err
    assert "5 examples, 2 steps of 5 examples, " in done.err


def test_a_processor_has_its_forecast_beside_what_it_took_and_is_known_the_next_time(
    base: Path, tmp_path: Path
) -> None:
    """The base is tiny, so that most of its memory is the libraries'; docs/fitting.md has a real model."""
    data = write_rows(tmp_path / "rows.jsonl", rows(40))
    alone = {"ALPASIFT_CALIBRATION": str(tmp_path / "cards.json"), "PATH": str(tmp_path)}  # no nvidia-smi
    where = ["train", "--model", base, "--data", data, "-o", "run", "--batch", 4, "--steps", 20, "--json"]
    done = run_cli(where, cwd=tmp_path, env=alone)
    assert done.code == 0, done.err
    assert re.search(r"forecast for .*: peak 0\.\d\d GiB, .*\(.* to .*\): loading .*, training .*, saving ", done.err)
    line = r"peak [\d.]+ GiB of this process \(forecast [\d.]+ GiB, [+-]\d+%\), time .* \(forecast .*, [+-]\d+%\)"
    assert re.search(line, done.err)
    result = json.loads(done.out)
    assert result["peak_bytes"] == pytest.approx(result["forecast_peak_bytes"], rel=0.4)
    (row,) = json.loads((tmp_path / "cards.json").read_text())["corrections"]
    assert (row["variant"], row["micro_batch"]) == ("fp32, float32 trained", 1)
    asked = ["fit", "--model", base, "--data", data, "--card", "cpu", "--method", "lora", "--all", "--json"]
    found = json.loads(run_cli(asked, cwd=tmp_path, env=alone).out)
    known = [one for one in found["considered"] if one["method"] == "lora" and not one["checkpointing"]]
    assert all("speed as measured on" in one["calibration"] for one in known)
    assert all("peak as measured on" in one["calibration"] for one in known)
    assert all(one["tokens_per_second"] == pytest.approx(row["tokens_per_second"]) for one in known)


def test_the_peak_of_a_program_is_not_that_of_the_one_that_started_it() -> None:
    measure = "from alpasift.train.metrics import process_peak_bytes; print(process_peak_bytes())"
    start = (
        "import subprocess, sys; large = bytearray(400_000_000); "
        f"print(subprocess.run([sys.executable, '-c', {measure!r}], capture_output=True, text=True).stdout)"
    )
    done = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, env=cli_environment())
    assert 1_000_000 < int(done.stdout) < 300_000_000, done.stderr


def test_what_was_chosen_at_the_start_stays_chosen(base: Path, tmp_path: Path) -> None:
    """The same command resumes also when the machine, or what it has measured, would now choose otherwise."""
    data = write_rows(tmp_path / "rows.jsonl", rows(40))
    run(base, tmp_path / "run", settings("lora", micro_batch=2, pack_length=600), should_stop=stop_after(2))
    same = ["train", "--model", base, "--data", data, "-o", "run", "--batch", 8, "--epochs", 2]
    done = run_cli(same, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "rows of 600 x 2" in done.err
    assert "resuming from step 2" in done.err


@pytest.fixture
def gpt2(base: Path, tmp_path: Path) -> Path:
    """A model with the keys of GPT-2's config, which the forecast does not support."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "gpt2"
    known = json.loads((base / "config.json").read_text())["vocab_size"]
    config = GPT2Config(vocab_size=known, n_positions=1024, n_embd=32, n_layer=2, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    for file in base.iterdir():
        if "token" in file.name:
            shutil.copy(file, folder / file.name)
    return folder


def test_a_model_without_a_forecast_is_trained_as_given(gpt2: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", rows(12))
    same = ["train", "--model", gpt2, "--data", data, "-o", "run", "--steps", 1, "--batch", 4]
    given = ["--method", "full", "--micro-batch", 1, "--pack-length", 512, "--no-checkpointing", "--precision", "fp32"]
    card = driver(tmp_path, "NVIDIA A100-SXM4-40GB, 40960 MiB, 8.0")
    refused = run_cli(same, cwd=tmp_path, env=card)
    assert refused.code == 1 and "To train it anyway, give --method, --micro-batch" in refused.err
    done = run_cli([*same, *given, "--json"], cwd=tmp_path, env=card)
    assert done.code == 0, done.err
    assert "no forecast for" in done.err and json.loads(done.out)["forecast_peak_bytes"] is None


def driver(folder: Path, printed: str) -> dict[str, str]:
    """An environment whose `nvidia-smi` lists a card; torch still has none, so what was chosen is computed here."""
    program = folder / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho '{printed}'\n")
    program.chmod(0o755)
    return {"PATH": f"{program.parent}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("card", "recipe", "chosen"),
    [
        ("NVIDIA A100-SXM4-40GB, 40960 MiB, 8.0", "humpback", ("lora", "bf16", "bf16", False)),
        ("Tesla T4, 15360 MiB, 7.5", "alpagasus-7b", ("lora", "fp16", "fp32", False)),
    ],
)
def test_what_is_not_given_is_chosen_by_the_card(
    card: str, recipe: str, chosen: tuple[object, ...], base: Path, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", rows(12))
    same = ["train", "--model", base, "--data", data, "-o", "run", "--recipe", recipe, "--steps", 2, "--json"]
    done = run_cli(same, cwd=tmp_path, env=driver(tmp_path, card))
    assert done.code == 0, done.err
    chosen_settings = json.loads(done.out)["settings"]
    names = ("method", "precision", "adapter_precision", "checkpointing")
    assert tuple(chosen_settings[name] for name in names) == chosen
    assert chosen_settings["pack_length"] >= chosen_settings["max_length"]
    assert "forecast for" in done.err
    assert "GiB" in done.err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--pure", "--method", "lora"], "--pure has no effect with method lora"),
        (["--rank", "4", "--method", "full"], "--rank has no effect with method full"),
        (["--epochs", "1", "--steps", "3"], "give --epochs or --steps, not both"),
        (["--epochs", "inf"], "'inf' is not a number"),
        (["--seed", "-1"], "-1 is not in the range"),
        (["--max-length", "5000"], "rows of"),
    ],
)
def test_options_that_cannot_be_are_one_line(given: list[str], message: str, base: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", rows(10))
    done = run_cli(["train", "--model", base, "--data", data, "-o", "run", *given], cwd=tmp_path)
    if given[0] == "--max-length":
        assert done.code == 0  # rows are as long as they must be
        return
    assert done.code in (1, 2)
    assert message in done.err
    assert "fault in alpasift" not in done.err


def test_the_curve_is_that_of_the_model_and_the_message_that_of_the_last_part(base: Path, tmp_path: Path) -> None:
    from alpasift.batcher.trainings import Recorder, TrainingPart

    store = new_store(tmp_path / "a.duckdb")

    def part(from_step: int, steps: range, loss: float, outcome: str, message: str | None) -> None:
        one = Recorder(
            store,
            TrainingPart(
                folder=tmp_path,
                base=base,
                recipe="alpaca",
                method="lora",
                facts={"steps": 9},
                device="cpu:x",
                from_step=from_step,
            ),
        )
        for step in steps:
            one.step(
                {
                    "step": step,
                    "epoch": 0,
                    "loss": loss,
                    "learning_rate": 1e-4,
                    "grad_norm": 1.0,
                    "examples": 8,
                    "tokens": 100,
                    "tokens_per_second": 10.0,
                    "peak_bytes": 1,
                }
            )
        assert one.end(outcome, message)

    part(0, range(1, 6), 1.0, "failed", "OutOfMemory: boom")
    part(2, range(3, 5), 2.0, "stopped", None)
    curve = [(row["step"], row["loss"]) for row in store.query("training_curve", folder=None)]
    assert curve == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]  # step 5 is not in the model any more
    part(0, range(1, 2), 3.0, "done", None)  # --fresh
    assert [row["loss"] for row in store.query("training_curve", folder=None)] == [3.0]
    (one,) = store.query("trainings", row_limit=None)
    assert (one["outcome"], one["message"], one["parts"], one["step"]) == ("done", None, 3, 1)


def test_a_training_that_is_killed_has_its_hours_up_to_its_last_step(base: Path, tmp_path: Path) -> None:
    from decimal import Decimal

    from alpasift.batcher.trainings import FLUSH_SECONDS, Recorder, TrainingPart

    store = new_store(tmp_path / "a.duckdb")
    part = Recorder(
        store,
        TrainingPart(
            folder=tmp_path,
            base=base,
            recipe="alpaca",
            method="lora",
            facts={"steps": 9},
            device="cpu:x",
            usd_per_hour=Decimal("2"),
        ),
    )
    line = {
        "step": 1,
        "epoch": 0,
        "loss": 1.0,
        "learning_rate": 1e-4,
        "grad_norm": 1.0,
        "examples": 8,
        "tokens": 100,
        "tokens_per_second": 10.0,
        "peak_bytes": 1,
    }
    time.sleep(FLUSH_SECONDS + 0.1)
    part.step(line)
    (machine,) = store.query("machine")
    assert machine["seconds"] > FLUSH_SECONDS
    assert machine["usd"] == pytest.approx(machine["seconds"] * 2 / 3600)
    (one,) = store.query("trainings", row_limit=None)
    assert one["outcome"] == "running or crashed"


@pytest.mark.parametrize(
    ("minutes", "gpus", "usd"), [(14, 4, "4.78"), (80, 4, "27.31"), (60, 8, "40.96"), (330, 8, "225.28")]
)
def test_the_machine_account_reckons_as_the_paper_does(minutes: int, gpus: int, usd: str, tmp_path: Path) -> None:
    """AlpaGasus Table 5: 7B and 13B, 9k and 52k rows, eight A100 at $40.96 an hour (p4de.24xlarge); 7B takes four."""
    from decimal import Decimal

    from alpasift.batcher.store import append, utc_now
    from alpasift.batcher.trainings import Recorder, TrainingPart

    store = new_store(tmp_path / "a.duckdb")
    part = Recorder(
        store,
        TrainingPart(
            folder=tmp_path,
            base=tmp_path,
            recipe="alpagasus-7b",
            method="full",
            facts={"steps": 1},
            device="A100",
            cards=gpus,
            usd_per_hour=Decimal("40.96") * gpus / 8,
        ),
    )
    with store.transaction() as con:
        columns = ("part_id", "outcome", "message", "seconds", "ended_at")
        append(con, "training_part_ends", columns, [(part.part_id, "done", None, minutes * 60.0, utc_now())])
    (machine,) = store.query("machine")
    assert f"{machine['usd']:.2f}" == usd
    (one,) = store.query("trainings", row_limit=None)
    assert f"{one['machine_usd']:.2f}" == usd
