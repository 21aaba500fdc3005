"""Training for real, on tiny models: it learns, it may be stopped or killed anywhere, and what goes wrong is one line."""

from __future__ import annotations

import hashlib
import json
import os
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
from conftest import ROOT, cli_environment, run_cli, write_rows
from tiny_models import changed, make_folder, make_gguf

torch = pytest.importorskip("torch")
for package in ("transformers", "peft", "trl", "bitsandbytes"):
    pytest.importorskip(package)

from graders import Example  # noqa: E402
from train.artifacts import NotWhole, TrainError, read_manifest  # noqa: E402
from train.recipes import Settings, settle  # noqa: E402
from train.sft import Metrics, OutOfMemory, Trained, out_of_memory, prepare, train  # noqa: E402
from train.trainer import DivergedLoss, newest_checkpoint  # noqa: E402

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
        "batch": 8, "epochs": 2, "pack_length": 512, "precision": "fp32", "adapter_precision": "fp32",
        "checkpointing": False, **given,
    }  # fmt: skip
    return settle("alpagasus-7b", method, 40, **given)


def run(base: Path, out: Path, chosen: Settings, count: int = 40, **given: Any) -> tuple[Trained, list[Metrics]]:
    seen: list[Metrics] = []
    done = train(prepare(examples(count), base, chosen), out, observe=seen.append, **given)
    return done, seen


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
    seen = {
        name: run(base, tmp_path / name, settings("lora", steps=4, **given))[1] for name, given in layouts.items()
    }  # fmt: skip
    for name in ("long", "padded"):
        assert [m.loss for m in seen[name]] == pytest.approx([m.loss for m in seen["packed"]], rel=1e-5)
        assert [m.grad_norm for m in seen[name]] == pytest.approx([m.grad_norm for m in seen["packed"]], rel=1e-4)


def test_the_loss_is_the_mean_over_the_trained_tokens_of_the_step(base: Path, tmp_path: Path) -> None:
    """Beside a cross-entropy written out here, example by example."""
    from train.models import load_model

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


def test_checkpointing_changes_nothing_but_memory(base: Path, tmp_path: Path) -> None:
    _, without = run(base, tmp_path / "a", settings("qlora", steps=3))
    _, with_it = run(base, tmp_path / "b", settings("qlora", steps=3, checkpointing=True))
    assert [m.loss for m in with_it] == pytest.approx([m.loss for m in without], rel=1e-6)


def test_adapters_keep_the_precision_that_was_asked_for(base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    for method, precision in (("qlora", "bf16"), ("qlora", "fp32"), ("lora", "bf16")):
        out = tmp_path / f"{method}{precision}"
        run(base, out, settings(method, steps=1, precision="bf16", adapter_precision=precision))
        kept = {t.dtype for t in load_file(out / "model" / "adapter_model.safetensors").values()}
        assert kept == {torch.float32 if precision == "fp32" else torch.bfloat16}, (method, precision)


# -- stopped, killed, gone on -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("full", {}),
        ("lora", {"lora_dropout": 0.1}),
        ("qlora", {"precision": "bf16", "adapter_precision": "bf16", "checkpointing": True}),
        ("full", {"optimizer": "adamw_8bit"}),
    ],
)
def test_a_stopped_training_goes_on_bit_by_bit(method: str, given: dict[str, Any], base: Path, tmp_path: Path) -> None:
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
    assert (again.finished, again.before, seen) == (True, True, [])
    assert (tmp_path / "run" / "model" / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["truncated", "changed", "no manifest"])
def test_a_checkpoint_that_is_not_whole_is_passed_over(damage: str, base: Path, tmp_path: Path) -> None:
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
        sys.executable, "-m", "batcher.cli", "train", "--model", str(base), "--data", str(data), "-o", str(out), "--batch",
        "8", *how_long, "--pack-length", "512", "--save-every", "1", "--quiet", *map(str, more),
    ]  # fmt: skip


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


def test_checkpoints_after_the_one_that_is_gone_on_from_do_not_crowd_out_new_ones(base: Path, tmp_path: Path) -> None:
    run(base, tmp_path / "run", settings(), should_stop=stop_after(8), save_every=1)
    folder = tmp_path / "run" / "checkpoints"
    for damaged in folder.glob("checkpoint-*"):
        (damaged / "optimizer.pt").write_bytes(b"")
    again, seen = run(base, tmp_path / "run", settings(), should_stop=stop_after(3), save_every=1)
    assert (again.step, seen[0].step) == (3, 1)
    kept = newest_checkpoint(folder)
    assert kept is not None
    assert kept.name == "checkpoint-3"


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
    assert [p.name for p in out.iterdir() if p.name.endswith(".partial")] == []


def test_control_c_writes_a_checkpoint_and_the_same_command_goes_on(base: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", rows(40))
    line = command(base, data, tmp_path / "run")
    line[line.index("--save-every") + 1] = "100"
    process = subprocess.Popen(line, cwd=tmp_path, env=cli_environment(), stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.is_file() and metrics.stat().st_size) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert "the same command goes on" in said
    stopped = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert stopped is not None
    again = subprocess.run(line, cwd=tmp_path, env=cli_environment(), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"going on from step {stopped.name.rpartition('-')[2]} of 10" in again.stderr
    assert "Traceback" not in said + again.stderr


def test_another_training_in_the_folder_is_not_overwritten(base: Path, tmp_path: Path) -> None:
    run(base, tmp_path / "run", settings(), should_stop=stop_after(2))
    with pytest.raises(TrainError, match=r"holds another training: learning_rate was 0\.0002, is 0\.001.*--fresh"):
        run(base, tmp_path / "run", settings(learning_rate=1e-3))
    with pytest.raises(TrainError, match="the data is another"):
        run(base, tmp_path / "run", settings(), count=39)
    done, seen = run(base, tmp_path / "run", settings(learning_rate=1e-3, steps=2), fresh=True)
    assert (done.finished, len(seen)) == (True, 2)


def test_a_model_that_was_changed_since_is_not_called_done(base: Path, tmp_path: Path) -> None:
    run(base, tmp_path / "run", settings(steps=1))
    with (tmp_path / "run" / "model" / "adapter_model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(NotWhole.__mro__[1], match="--fresh trains anew"):
        run(base, tmp_path / "run", settings(steps=1))


# -- several cards ----------------------------------------------------------------------------------------------------


def test_two_processes_train_what_one_trains(base: Path, tmp_path: Path) -> None:
    """torchrun with gloo: the same examples a step, the mean over the tokens of both."""
    data = write_rows(tmp_path / "rows.jsonl", rows(40))
    one = subprocess.run(
        command(base, data, tmp_path / "one", "--steps", 4), cwd=tmp_path, env=cli_environment(), capture_output=True
    )
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
    done = subprocess.run(two, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert read_manifest(tmp_path / "two" / "model")["cards"] == 2
    assert done.stderr.count("trained 4 steps") == 1


ONE_OF_TWO = """
import os, sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
from test_sft import examples, settings, stop_after
from train.sft import prepare, train
rank = int(os.environ["RANK"])
stop = stop_after(3) if rank == 1 else lambda: False
done = train(prepare(examples(40), Path({base!r}), settings("lora"), cards=2), Path("run"), should_stop=stop)
Path(f"step-{{rank}}").write_text(str(done.step))
"""


def test_processes_stop_at_the_same_step_whichever_was_asked(base: Path, tmp_path: Path) -> None:
    script = tmp_path / "one_of_two.py"
    script.write_text(ONE_OF_TWO.format(root=str(ROOT), tests=str(ROOT / "tests"), base=str(base)))
    port = str(30_500 + os.getpid() % 1000)
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port, str(script)]
    env = {**cli_environment(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"step-{rank}").read_text() for rank in (0, 1)] == ["3", "3"]
    kept = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert kept is not None
    assert kept.name == "checkpoint-3"


# -- what goes wrong ----------------------------------------------------------------------------------------------------


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
    with pytest.raises(DivergedLoss, match="so training stopped; no checkpoint had been written"):
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
    with pytest.raises(TrainError, match=r"OPTForCausalLM lets examples .* see each other.*--pack-length 0"):
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
    with pytest.raises(TrainError, match=r"gives the token \d+, and the model knows 100: they do not belong together"):
        prepare(examples(4), other, settings())


def test_fresh_deletes_nothing_that_is_not_a_training(base: Path, tmp_path: Path) -> None:
    thesis = tmp_path / "mine" / "model" / "thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("years of work")
    with pytest.raises(TrainError, match=r"has no run\.json, so what is in it is not known to be a training"):
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
    ("spoil", "says"),
    [
        (no_folder, "there is no model folder"),
        (a_pickle, "pytorch_model.bin, a pickle, which can run code"),
        (cut_short, "model.safetensors has 100,000 bytes and needs"),
        (an_index_that_climbs, "'../base/model.safetensors', which is no file of this folder"),
        (no_weights_at_all, "model.safetensors is not a safetensors file"),
        (no_tokenizer, "has no tokenizer"),
        (no_end, "no end-of-text token"),
        (no_config, "is no model folder: it has no config.json"),
    ],
)
def test_a_base_that_cannot_be_trained_is_one_line(
    spoil: Callable[[Path, Path], Path], says: str, base: Path, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", rows(10))
    done = run_cli(["train", "--model", spoil(base, tmp_path / "base"), "--data", data, "-o", "run"], cwd=tmp_path)
    assert done.code in (1, 2), done.err
    assert says in done.err
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
from graders import AlpaSiftError
from train.sft import prepare, train
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
        root=str(ROOT), tests=str(ROOT / "tests"), base=str(base), given=given, limit=limit, count=count
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


def test_out_of_memory_says_what_to_change_and_how_wrong_the_forecast_was(base: Path, tmp_path: Path) -> None:
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
    assert "take --max-length 256, or a smaller model" in text
    assert issubclass(OutOfMemory, TrainError)
    lora = out_of_memory("x", replace(chosen, method="lora"), laid, None)
    assert "--method qlora" in lora


# -- the command ------------------------------------------------------------------------------------------------------


def test_metrics_go_to_the_database_and_time_to_the_machine_account(base: Path, tmp_path: Path) -> None:
    from batcher.store import Store

    data = write_rows(tmp_path / "rows.jsonl", rows(40))
    assert run_cli(["import", data], cwd=tmp_path).code == 0
    where = ["train", "--model", base, "--dataset", "rows", "-o", "run", "--batch", 8, "--steps", 5, "--json"]
    done = run_cli(where, cwd=tmp_path, env={"ALPASIFT_USD_PER_HOUR": "3.60"})
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert (told["outcome"], told["step"], told["settings"]["method"]) == ("done", 5, "lora")
    store = Store(tmp_path / "alpasift.duckdb")
    (one,) = store.query("trainings", row_limit=None)
    assert (one["outcome"], one["step"], one["steps"], one["method"], one["parts"]) == ("done", 5, 5, "lora", 1)
    curve = store.query("training_curve", folder=None)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in curve] == [line["loss"] for line in lines]
    (machine,) = store.query("machine")
    assert machine["usd"] == pytest.approx(machine["seconds"] * 3.6 / 3600)
    assert machine["seconds"] == pytest.approx(one["seconds"], abs=0.1)


HOLD = """
import sys
sys.path.insert(0, {root!r})
from batcher.store import Store
with Store({path!r}).reader():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_database_that_somebody_reads_stops_no_training(base: Path, tmp_path: Path) -> None:
    from batcher.store import Store

    data = write_rows(tmp_path / "rows.jsonl", rows(40))
    Store(tmp_path / "alpasift.duckdb").create()
    code = HOLD.format(root=str(ROOT), path=str(tmp_path / "alpasift.duckdb"))
    reader = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=cli_environment()
    )
    assert reader.stdout is not None
    assert reader.stdout.readline() == "held\n"
    done = run_cli(["train", "--model", base, "--data", data, "-o", "run", "--batch", 8, "--steps", 3], cwd=tmp_path)
    reader.communicate("")
    assert done.code == 0, done.err
    assert "could not be written: its curve and hours stop short" in done.err
    assert (tmp_path / "run" / "model" / "manifest.json").is_file()


def test_what_was_chosen_at_the_begin_stays_chosen(base: Path, tmp_path: Path) -> None:
    """The same command goes on also when the machine, or what it has measured, would now choose otherwise."""
    data = write_rows(tmp_path / "rows.jsonl", rows(40))
    run(base, tmp_path / "run", settings("lora", micro_batch=2, pack_length=600), should_stop=stop_after(2))
    same = ["train", "--model", base, "--data", data, "-o", "run", "--batch", 8, "--epochs", 2]
    done = run_cli(same, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "rows of 600 x 2" in done.err
    assert "going on from step 2" in done.err


def driver(folder: Path, says: str) -> dict[str, str]:
    """An environment whose `nvidia-smi` tells of a card; torch still has none, so what was chosen is computed here."""
    program = folder / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho '{says}'\n")
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
    told = json.loads(done.out)["settings"]
    names = ("method", "precision", "adapter_precision", "checkpointing")
    assert tuple(told[name] for name in names) == chosen
    assert told["pack_length"] >= told["max_length"]
    assert "forecast for" in done.err
    assert "GiB" in done.err


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--pure", "--method", "lora"], "--pure has no use with method lora"),
        (["--rank", "4", "--method", "full"], "--rank has no use with method full"),
        (["--epochs", "1", "--steps", "3"], "give --epochs or --steps, not both"),
        (["--epochs", "inf"], "epochs is inf"),
        (["--seed", "-1"], "-1 is not in the range"),
        (["--max-length", "5000"], "rows of"),
    ],
)
def test_options_that_cannot_be_are_one_line(given: list[str], says: str, base: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", rows(10))
    done = run_cli(["train", "--model", base, "--data", data, "-o", "run", *given], cwd=tmp_path)
    if given[0] == "--max-length":
        assert done.code == 0  # rows are as long as they must be
        return
    assert done.code in (1, 2)
    assert says in done.err
    assert "fault in alpasift" not in done.err


def test_the_curve_is_that_of_the_model_and_the_message_that_of_the_last_part(base: Path, tmp_path: Path) -> None:
    from batcher.store import Store
    from batcher.trainings import Recorder

    store = Store(tmp_path / "a.duckdb").create()

    def part(from_step: int, steps: range, loss: float, outcome: str, message: str | None) -> None:
        one = Recorder(
            store, folder=tmp_path, base=base, recipe="alpaca", method="lora", facts={"steps": 9}, device="cpu:x",
            from_step=from_step,
        )  # fmt: skip
        for step in steps:
            one.step({
                "step": step, "epoch": 0, "loss": loss, "learning_rate": 1e-4, "grad_norm": 1.0, "examples": 8,
                "tokens": 100, "tokens_per_second": 10.0, "peak_bytes": 1,
            })  # fmt: skip
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

    from batcher.store import Store
    from batcher.trainings import FLUSH_SECONDS, Recorder

    store = Store(tmp_path / "a.duckdb").create()
    part = Recorder(
        store, folder=tmp_path, base=base, recipe="alpaca", method="lora", facts={"steps": 9}, device="cpu:x",
        usd_per_hour=Decimal("2"),
    )  # fmt: skip
    line = {
        "step": 1, "epoch": 0, "loss": 1.0, "learning_rate": 1e-4, "grad_norm": 1.0, "examples": 8, "tokens": 100,
        "tokens_per_second": 10.0, "peak_bytes": 1,
    }  # fmt: skip
    time.sleep(FLUSH_SECONDS + 0.1)
    part.step(line)
    (machine,) = store.query("machine")
    assert machine["seconds"] > FLUSH_SECONDS
    assert machine["usd"] == pytest.approx(machine["seconds"] * 2 / 3600)
    (one,) = store.query("trainings", row_limit=None)
    assert one["outcome"] == "running or died"


@pytest.mark.parametrize(
    ("minutes", "gpus", "usd"), [(14, 4, "4.78"), (80, 4, "27.31"), (60, 8, "40.96"), (330, 8, "225.28")]
)
def test_the_machine_account_reckons_as_the_paper_does(minutes: int, gpus: int, usd: str, tmp_path: Path) -> None:
    """AlpaGasus Table 5: 7B and 13B, 9k and 52k rows, on a p4de.24xlarge of eight A100 at $40.96 an hour, of which 7B takes four."""
    from decimal import Decimal

    from batcher.store import Store, append, utc_now
    from batcher.trainings import Recorder

    store = Store(tmp_path / "a.duckdb").create()
    part = Recorder(
        store, folder=tmp_path, base=tmp_path, recipe="alpagasus-7b", method="full", facts={"steps": 1}, device="A100",
        cards=gpus, usd_per_hour=Decimal("40.96") * gpus / 8,
    )  # fmt: skip
    with store.transaction() as con:
        columns = ("part_id", "outcome", "message", "seconds", "ended_at")
        append(con, "training_part_ends", columns, [(part.part_id, "done", None, minutes * 60.0, utc_now())])
    (machine,) = store.query("machine")
    assert f"{machine['usd']:.2f}" == usd
    (one,) = store.query("trainings", row_limit=None)
    assert f"{one['machine_usd']:.2f}" == usd
