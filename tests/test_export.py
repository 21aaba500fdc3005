"""Exports of trained models: adapter, merged weights and GGUF, complete or absent, as near to the training as stated.

Expected logits come from transformers and peft, called here by themselves; expected tokens from transformers and from
SentencePiece.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Ran, cli_environment
from tiny_models import changed, make_folder, make_gguf

torch = pytest.importorskip("torch")
for package in ("transformers", "peft", "bitsandbytes", "gguf", "llama_cpp", "sentencepiece", "tokenizers"):
    pytest.importorskip(package)

from alpasift.graders import BackendError, Example, Request, open_backend  # noqa: E402
from alpasift.graders.local import vllm_models  # noqa: E402
from alpasift.train.artifacts import MANIFEST, IncompleteFolder, TrainError, atomic_folder, is_complete, read_manifest  # noqa: E402
from alpasift.train.data import alpaca_prompt, serving_template  # noqa: E402
from alpasift.train.export import gguf_tokenizer, gguf_writer, llama_cpp_check  # noqa: E402
from alpasift.train.export.compare import compared_texts  # noqa: E402
from alpasift.train.export.export import Exported, export_model, usual_quantisation  # noqa: E402
from alpasift.train.export.trained import find_trained  # noqa: E402
from alpasift.train.models import TOKENIZER_FILES, find_base, load_model, load_tokenizer  # noqa: E402
from tokenizer_folders import SHAPE, lesson, model_folder, tokenizer_folders, with_words  # noqa: E402

pytestmark = [pytest.mark.llama, pytest.mark.timeout(600)]


# -- what there is to export ------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Widths that bitsandbytes and vLLM take on a CPU: multiples of 64, heads of 32."""
    folder = tmp_path_factory.mktemp("bases")
    made = make_folder(make_gguf(folder / "tiny.gguf", n_head=2), folder / "base")
    changed(made / "tokenizer_config.json", chat_template="{{ messages[0].content }} the base's own")
    return made


def facts_of(base: Path, kind: str, method: str, precision: str = "fp32") -> dict[str, Any]:
    return {
        "kind": kind,
        "method": method,
        "base": str(base.resolve()),
        "base_sha256": find_base(base).sha256(),
        "template": "alpaca",
        "chat_template": serving_template(load_tokenizer(base), "alpaca"),
        "precision": precision,
        "nf4": {"double_quant": True, "compute": precision} if method == "qlora" else None,
    }


def make_run(base: Path, run: Path, method: str = "lora", precision: Any = "fp32", strength: float = 0.05) -> Path:
    """What `alpasift train -o RUN` leaves, without the training: adapters of random numbers, or shifted weights."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = load_model(base, precision=precision, nf4=method == "qlora", compute=precision, device="cpu")
    if method == "full":
        for parameter in model.parameters():
            parameter.data += strength * parameter.data.std() * torch.randn_like(parameter)
    else:
        lora = LoraConfig(
            r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", base_model_name_or_path=str(base)
        )
        model = get_peft_model(model, lora, autocast_adapter_dtype=True)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, strength)
    with atomic_folder(
        run / "model", facts_of(base, "model" if method == "full" else "adapter", method, precision)
    ) as draft:
        model.save_pretrained(draft)
        for name in TOKENIZER_FILES:
            if (base / name).is_file():
                shutil.copyfile(base / name, draft / name)
    return run


@pytest.fixture(scope="session")
def runs(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        "lora": make_run(base, folder / "lora"),
        "lora16": make_run(base, folder / "lora16", "lora", "bf16"),
        "qlora": make_run(base, folder / "qlora", "qlora"),
        "full": make_run(base, folder / "full", "full"),
    }


@pytest.fixture(scope="session")
def merged(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(runs["lora"], tmp_path_factory.mktemp("merged") / "merged", "merged").path


@pytest.fixture(scope="session")
def dequantised(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    out = tmp_path_factory.mktemp("dequantised") / "merged"
    return export_model(runs["qlora"], out, "merged", merge_into="dequantised")


def logits(model: Any, rows: Sequence[Sequence[int]]) -> list[Any]:
    with torch.no_grad():
        return [model(torch.tensor([list(row)])).logits[0].double() for row in rows]


def differences(expected: Sequence[Any], found: Sequence[Any]) -> tuple[float, float, float]:
    """Greatest, mean, and KL divergence in nats per token, by torch."""
    one, other = torch.cat(list(expected)), torch.cat(list(found))
    apart = (one - other).abs()
    kl = torch.nn.functional.kl_div(other.log_softmax(-1), one.log_softmax(-1), log_target=True, reduction="batchmean")
    return float(apart.max()), float(apart.mean()), float(kl)


def stated(difference: dict[str, Any]) -> tuple[float, float, float]:
    return difference["max_abs"], difference["mean_abs"], difference["mean_kl"]


def with_adapter(model: Any, run: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(model, run / "model").train()  # no dropout; bitsandbytes computes as in training


def left(folder: Path) -> list[str]:
    """Names in a folder that are neither exports nor what was there before."""
    return sorted(path.name for path in folder.iterdir() if "partial" in path.name)


# -- merged weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lora", "lora16"])
def test_merged_weights_are_as_far_from_the_training_as_is_stated(
    name: str, base: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    done = export_model(runs[name], tmp_path / "out", "merged")
    precision = "fp32" if name == "lora" else "bf16"
    rows = compared_texts(load_tokenizer(done.path))
    expected = logits(with_adapter(load_model(base, precision=precision, device="cpu"), runs[name]), rows)
    found = logits(load_model(done.path, precision=precision, device="cpu"), rows)
    close = pytest.approx(differences(expected, found)[1:], rel=1e-3 if name == "lora" else 0.3, abs=1e-6)
    assert stated(done.facts["difference"])[1:] == close  # in bf16 sums depend on where in memory a matrix lies
    assert done.facts["difference"]["tokens"] == sum(map(len, rows)) > 200
    assert read_manifest(done.path) == done.facts
    greatest, mean, kl = stated(done.facts["difference"])
    if name == "lora":
        assert greatest < 1e-3
        assert mean < 1e-5
        assert kl < 1e-9
    else:
        assert mean > 1e-3  # rounding the sum to bf16 is no small thing for this model, and it is stated


def test_the_dequantised_merge_is_what_was_trained_and_requantising_is_not(
    base: Path, runs: dict[str, Path], dequantised: Exported
) -> None:
    _, mean, kl = stated(dequantised.facts["difference"])
    assert mean < 1e-5
    assert kl < 1e-9
    rows = compared_texts(load_tokenizer(dequantised.path))
    trained = with_adapter(load_model(base, precision="fp32", nf4=True, device="cpu"), runs["qlora"])
    expected = logits(trained, rows)
    assert differences(expected, logits(load_model(dequantised.path, precision="fp32", device="cpu"), rows))[1] < 1e-5
    requantised = trained.merge_and_unload().train()
    assert differences(expected, logits(requantised, rows))[1] > 1000 * mean
    config = json.loads((dequantised.path / "config.json").read_text())
    assert "quantization_config" not in config
    assert (config["torch_dtype"], dequantised.facts["merge_into"]) == ("float32", "dequantised")
    find_base(dequantised.path)


def test_merging_4_bit_training_into_the_original_base_is_another_model_by_the_stated_difference(
    base: Path, runs: dict[str, Path], tmp_path: Path, dequantised: Exported
) -> None:
    done = export_model(runs["qlora"], tmp_path / "out", "merged")
    rows = compared_texts(load_tokenizer(done.path))
    expected = logits(with_adapter(load_model(base, precision="fp32", nf4=True, device="cpu"), runs["qlora"]), rows)
    found = logits(load_model(done.path, precision="fp32", device="cpu"), rows)
    assert stated(done.facts["difference"]) == pytest.approx(differences(expected, found), rel=1e-3)
    assert done.facts["difference"]["mean_kl"] > 1000 * dequantised.facts["difference"]["mean_kl"]


def test_a_wholly_trained_model_is_copied_under_its_template(runs: dict[str, Path], tmp_path: Path) -> None:
    done = export_model(runs["full"] / "model", tmp_path / "out", "merged")
    assert (done.facts["difference"], done.facts["kind"]) == (None, "model")
    before, after = (folder / "model.safetensors" for folder in (runs["full"] / "model", done.path))
    assert before.read_bytes() == after.read_bytes()
    assert load_tokenizer(done.path).chat_template == read_manifest(runs["full"] / "model")["chat_template"]
    smaller = export_model(done.path, tmp_path / "half", "merged", precision="bf16")  # an export is exported again
    assert (smaller.path / "model.safetensors").stat().st_size < 0.52 * after.stat().st_size
    assert smaller.facts["difference"]["mean_abs"] > 0


def test_the_folder_renders_the_prompt_of_the_training_wherever_a_reader_looks(merged: Path) -> None:
    example = Example("Name a river.", "", "")
    rendered = load_tokenizer(merged).apply_chat_template(
        [{"role": "user", "content": example.instruction}], tokenize=False, add_generation_prompt=True
    )
    assert rendered == alpaca_prompt(example)
    template = (merged / "chat_template.jinja").read_text()
    assert json.loads((merged / "tokenizer_config.json").read_text())["chat_template"] == template
    assert read_manifest(merged)["chat_template"] == template


# -- the adapter ------------------------------------------------------------------------------------------------------


def test_an_adapter_is_a_copy_that_vllm_can_serve(base: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    done = export_model(runs["qlora"], tmp_path / "adapter", "adapter")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (done.path / name).read_bytes() == (runs["qlora"] / "model" / name).read_bytes()
    assert json.loads((done.path / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    looked = vllm_models.look_at_adapter(done.path, vllm_models.look_at(base))
    assert (done.facts["rank"], done.facts["max_lora_rank"]) == (4, looked.room)
    assert looked.template == done.facts["chat_template"] == read_manifest(runs["qlora"] / "model")["chat_template"]
    again = export_model(done.path, tmp_path / "merged", "merged", merge_into="dequantised")
    assert again.facts["difference"]["mean_abs"] < 1e-5


@pytest.mark.parametrize("change", [{"bias": "all"}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"r": 1024}])
def test_an_adapter_that_vllm_cannot_serve_is_refused(
    change: dict[str, Any], runs: dict[str, Path], tmp_path: Path
) -> None:
    run = resealed(runs["lora"], tmp_path, lambda folder: changed(folder / "adapter_config.json", **change))
    with pytest.raises(TrainError, match=r"vLLM supports no adapter with .*--form merged"):
        export_model(run, tmp_path / "out", "adapter")


# -- GGUF: the same numbers -------------------------------------------------------------------------------------------


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 128}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama, grouped heads, biases": (
        "LlamaConfig",
        {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True},
    ),
    "llama 3.1": ("LlamaConfig", {"num_key_value_heads": 2, "rope_parameters": LLAMA3}),
    "llama, stretched": (
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}},
    ),
    "llama, tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "mistral, wide heads": ("MistralConfig", {"num_key_value_heads": 2, "head_dim": 32, "sliding_window": None}),
    "qwen2, tied": ("Qwen2Config", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen2, yarn": ("Qwen2Config", {"num_key_value_heads": 2, "rope_parameters": YARN}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_computes_what_transformers_does(kind: str, words: dict[str, Path], tmp_path: Path) -> None:
    import transformers

    name, extra = KINDS[kind]
    own = words["qwen2" if name.startswith("Qwen") else "gpt-2"]
    tokenizer = load_tokenizer(own)
    config = getattr(transformers, name)(**SHAPE, vocab_size=len(tokenizer) + 7, **extra)
    folder = model_folder(tmp_path / "model", config, own)
    path = tmp_path / "model.gguf"
    gguf_writer.write_gguf(folder, path, "f32", chat_template=None, name="tiny", facts={})
    text = "In 2024 it wasn't there, and then another day came by the river; nobody knew why. " * 4
    row = load_tokenizer(folder)(text)["input_ids"]
    assert len(row) > 80
    (expected,) = logits(load_model(folder, precision="fp32", device="cpu"), [row])
    (found,) = llama_cpp_check.gguf_logits(path, [row])
    assert float(expected.std()) > 0.5
    assert np.abs(found - expected.numpy()).max() < 1e-4


def test_a_sliding_window_bounds_the_context(words: dict[str, Path], tmp_path: Path) -> None:
    from gguf import GGUFReader
    from transformers import MistralConfig

    own = words["gpt-2"]
    config = MistralConfig(**SHAPE, num_key_value_heads=2, vocab_size=len(load_tokenizer(own)), sliding_window=128)
    folder = model_folder(tmp_path / "model", config, own)
    remarks = gguf_writer.write_gguf(folder, tmp_path / "m.gguf", "f32", chat_template=None, name="m", facts={})
    assert GGUFReader(tmp_path / "m.gguf").fields["llama.context_length"].contents() == 128
    assert "128 tokens" in remarks[0]


def test_rows_are_paired_as_the_reader_of_the_tests_takes_them_apart() -> None:
    data = np.arange(4 * 6 * 3).reshape(24, 3)
    pairs = gguf_writer.paired(data, 4)
    back = pairs.reshape(4, 3, 2, 3).swapaxes(1, 2).reshape(24, 3)
    assert (back == data).all()
    assert pairs[:2].tolist() == [data[0].tolist(), data[3].tolist()]  # of a head of 6, row 0 is rotated against row 3


@pytest.mark.parametrize(
    ("quantisation", "kept", "bound"),
    [("f16", {"F16"}, 1e-5), ("bf16", {"BF16"}, 1e-3), ("q8_0", {"Q8_0"}, 1e-2), ("q4_k_m", {"Q4_K", "Q6_K"}, 1.0)],
)
def test_a_gguf_file_is_as_requested_and_its_difference_is_stated(
    quantisation: Any, kept: set[str], bound: float, wide: Path, tmp_path: Path
) -> None:
    done = export_model(wide, tmp_path / "out.gguf", "gguf", quantisation=quantisation)
    facts = json.loads((tmp_path / "out.gguf.json").read_text())
    assert facts == done.facts
    assert facts["sha256"] == hashlib.sha256(done.path.read_bytes()).hexdigest()
    assert set(facts["tensors"]) == kept | {"F32"}
    assert facts["remarks"] == []
    assert 0 < facts["difference"]["mean_kl"] < bound
    rows = compared_texts(load_tokenizer(wide / "model"))
    expected = logits(load_model(wide / "model", precision="fp32", device="cpu"), rows)
    found = [torch.tensor(row) for row in llama_cpp_check.gguf_logits(done.path, rows)]
    assert stated(facts["difference"]) == pytest.approx(differences(expected, found), rel=1e-3, abs=1e-6)
    assert left(tmp_path) == []


def test_a_gguf_file_keeps_16_bits_below_a_billion_weights() -> None:
    kinds = {n: usual_quantisation(n) for n in (134_515_008, 999_999_999, 1_000_000_000, 8_030_261_248)}
    assert list(kinds.values()) == ["f16", "f16", "q8_0", "q8_0"]


@pytest.fixture(scope="session")
def wide(base: Path, words: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose rows are 256 wide, as q4_k_m wants them."""
    from transformers import LlamaConfig

    folder = tmp_path_factory.mktemp("wide")
    shape = {**SHAPE, "hidden_size": 256, "intermediate_size": 512}
    own = words["gpt-2"]
    config = LlamaConfig(**shape, vocab_size=len(load_tokenizer(own)))
    found = model_folder(folder / "base", config, own, gain=1.0)
    with atomic_folder(folder / "run" / "model", {**facts_of(found, "model", "full"), "chat_template": ""}) as draft:
        shutil.copytree(found, draft, dirs_exist_ok=True)
    return folder / "run"


def test_what_llama_cpp_quantised_otherwise_is_remarked(runs: dict[str, Path], tmp_path: Path) -> None:
    facts = export_model(runs["lora"], tmp_path / "out.gguf", "gguf", quantisation="q4_k_m").facts
    assert set(facts["tensors"]) == {"Q5_0", "Q8_0", "F32"}
    (remark,) = facts["remarks"]
    assert re.search(r"kept \d+ as Q5_0, \d+ as Q8_0 .* not a multiple of 256", remark)
    assert facts["merged_difference"]["mean_abs"] < 1e-5 < facts["difference"]["mean_abs"]


# -- GGUF: the same tokens --------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tokenizer_folders(tmp_path_factory.mktemp("words"))


@pytest.mark.parametrize(
    "name", ["gpt-2", "smollm", "qwen2", "llama-bpe", "smaug-bpe", "spm", "spm without tokenizer.model"]
)
def test_llama_cpp_cuts_text_as_transformers_does(name: str, words: dict[str, Path], tmp_path: Path) -> None:
    folder = with_words(words[name], tmp_path / "model")
    path = tmp_path / "m.gguf"
    gguf_writer.write_gguf(folder, path, "f16", chat_template=None, name="m", facts={})
    tokenizer, dice = load_tokenizer(folder), random.Random(0)
    odd = ("'LL", "'S", "I'm", "12345", "3.14", "…", "\u00a0", "🙂", "ﬁ", "日本", "\t\t", "\r\n", "x_y")
    parts = [*lesson().split(" "), *odd]
    texts = [
        "".join(dice.choice(parts) + dice.choice(["", " ", " ", "  ", "   ", "\n", " \n", "\n\n"]) for _ in range(12))
        for _ in range(300)
    ]
    count, remarks = llama_cpp_check.check_tokens(path, tokenizer, [*llama_cpp_check.PROBES, *texts, "", "a"])
    assert count > 10_000
    assert bool(remarks) == name.startswith("spm")
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    assert fields["tokenizer.ggml.pre"].contents() == ("default" if name.startswith("spm") else name)
    assert fields["tokenizer.ggml.add_bos_token"].contents() == name.startswith("spm")
    kinds = fields["tokenizer.ggml.token_type"].contents()
    assert kinds[-3:] == [gguf_tokenizer.UNUSED] * 3
    if not name.startswith("spm"):
        assert kinds[:3] == [gguf_tokenizer.CONTROL] * 3
        assert kinds[len(tokenizer) - 1] == gguf_tokenizer.USER_DEFINED


def test_another_tokenizer_than_the_models_own_is_caught(words: dict[str, Path], tmp_path: Path) -> None:
    folder = with_words(words["llama-bpe"], tmp_path / "model")
    gguf_writer.write_gguf(folder, tmp_path / "m.gguf", "f16", chat_template=None, name="m", facts={})
    with pytest.raises(TrainError, match="into other tokens than the model's own tokenizer does"):
        llama_cpp_check.check_tokens(tmp_path / "m.gguf", load_tokenizer(words["qwen2"]), llama_cpp_check.PROBES)


def test_a_sentencepiece_model_is_read_as_sentencepiece_reads_it(words: dict[str, Path], tmp_path: Path) -> None:
    import sentencepiece

    file = words["spm"] / "tokenizer.model"
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(file))
    expected = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(len(pieces))]
    assert gguf_tokenizer.read_sentencepiece(file) == expected
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lesson().splitlines()), model_writer=written, vocab_size=400, minloglevel=2
    )
    (tmp_path / "unigram.model").write_bytes(written.getvalue())
    with pytest.raises(TrainError, match="not a BPE model"):
        gguf_tokenizer.read_sentencepiece(tmp_path / "unigram.model")
    (tmp_path / "broken.model").write_bytes(file.read_bytes()[:-3] + b"\xff\xff\xff")
    with pytest.raises(TrainError, match="not a SentencePiece model"):
        gguf_tokenizer.read_sentencepiece(tmp_path / "broken.model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda spec: spec["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\w+|\W"),
            "unknown to AlpaSift's GGUF export",
        ),
        (
            lambda spec: spec["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"),
            "unknown to AlpaSift's GGUF export",
        ),
        (lambda spec: spec["model"].update(ignore_merges=True), "unknown to AlpaSift's GGUF export"),
        (lambda spec: spec.update(normalizer={"type": "Lowercase"}), r"rewrites text \(Lowercase\)"),
    ],
)
def test_a_tokenizer_that_is_not_known_is_refused_before_anything_is_written(
    change: Callable[[dict[str, Any]], None], message: str, words: dict[str, Path], tmp_path: Path
) -> None:
    folder = with_words(words["qwen2"], tmp_path / "model")
    changed(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    spec = json.loads((folder / "tokenizer.json").read_text())
    change(spec)
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    with atomic_folder(tmp_path / "run" / "model", facts_of(folder, "model", "full")) as draft:
        shutil.copytree(folder, draft, dirs_exist_ok=True)
    with pytest.raises(TrainError, match=message):
        export_model(tmp_path / "run", tmp_path / "out.gguf", "gguf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "run"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architectures": ["GemmaForCausalLM"]},
            "is a GemmaForCausalLM; GGUF export supports LlamaForCausalLM",
        ),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rotary embeddings of kind dynamic",
        ),
        ({"rope_parameters": {**YARN, "beta_fast": 16}}, "its yarn embedding sets beta_fast"),
    ],
)
def test_an_architecture_without_a_sure_form_is_refused(
    change: dict[str, Any], message: str, words: dict[str, Path], tmp_path: Path
) -> None:
    folder = with_words(words["gpt-2"], tmp_path / "model")
    changed(folder / "config.json", **change)
    with pytest.raises(TrainError, match=message):
        gguf_writer.write_gguf(folder, tmp_path / "m.gguf", "f32", chat_template=None, name="m", facts={})


def test_values_beyond_float16_are_refused(words: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = with_words(words["gpt-2"], tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e6
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(TrainError, match=r"up_proj\.weight has values outside the range of float16"):
        gguf_writer.write_gguf(folder, tmp_path / "m.gguf", "f16", chat_template=None, name="m", facts={})


# -- it answers -------------------------------------------------------------------------------------------------------


class Grants:
    """A meter that grants everything."""

    def open(self, keys: Sequence[str], ceiling_each: Any, price: Any = None, facts: Any = None) -> str:
        return "attempt"

    def note(self, attempt: str, state: str, facts: Any = None) -> None: ...

    def open_attempts(self) -> list[Any]:
        return []

    def close(self, attempt: str) -> None: ...


def prompt_ids(folder: Path, text: str) -> list[int]:
    """The training's own prompt for a text, in which no special token is read."""
    instruction, _, given = text.partition("\n\n### Input:\n")
    ids: list[int] = load_tokenizer(folder)(
        alpaca_prompt(Example(instruction, given, "")), add_special_tokens=False, split_special_tokens=True
    )["input_ids"]
    return ids


def greedy(folder: Path, ids: list[int], most: int) -> str:
    """What transformers writes after these tokens."""
    tokenizer, model = load_tokenizer(folder), load_model(folder, precision="fp32", device="cpu")
    ends = {tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(["<|im_end|>"])}
    written: list[int] = []
    while len(written) < most:
        (found,) = logits(model, [ids + written])
        if (best := int(found[-1].argmax())) in ends:
            break
        written.append(best)
    return str(tokenizer.decode(written))


def test_the_gguf_file_answers_under_the_prompt_of_the_training(
    runs: dict[str, Path], merged: Path, tmp_path: Path
) -> None:
    from vllm_lives import ASKED

    done = export_model(runs["lora"], tmp_path / "out.gguf", "gguf", quantisation="f16")
    backend = open_backend(f"llama_cpp:{done.path}")
    try:
        assert backend.remarks == ()
        assert backend.fingerprint["template"] == hashlib.sha256(done.facts["chat_template"].encode()).hexdigest()
        requests = [
            Request(f"key{n}", (("user", text),), Example(text, "", ""), choices=None, max_tokens=20)
            for n, text in enumerate(ASKED)
        ]
        for request in requests:
            assert backend.model.prompt(request).tokens.tolist() == prompt_ids(merged, request.messages[0][1])  # type: ignore[attr-defined]
        replies = {reply.key: reply for chunk in backend.answer(requests, Grants()) for reply in chunk}
    finally:
        backend.close()
    for request in requests:
        reply, ids = replies[request.key], prompt_ids(merged, request.messages[0][1])
        assert reply.outcome == "answered"
        assert reply.usage is not None
        assert reply.usage["prompt_tokens"] == len(ids)
        assert (reply.text or "").startswith(greedy(merged, ids, 8))  # later ones part where two are as good


@pytest.mark.parametrize("name", ["spm", "llama-bpe", "qwen2"])
def test_a_gguf_file_is_prompted_with_the_tokens_of_the_training(
    name: str, words: dict[str, Path], tmp_path: Path
) -> None:
    from alpasift.train.data import tokenize

    folder = with_words(words[name], tmp_path / "base")
    tokenizer = load_tokenizer(folder)
    with atomic_folder(tmp_path / "run" / "model", facts_of(folder, "model", "full")) as draft:
        shutil.copytree(folder, draft, dirs_exist_ok=True)
    done = export_model(tmp_path / "run", tmp_path / "out.gguf", "gguf", quantisation="bf16")
    texts = ("Name a river.", "Add 12 and 345.\n  Then stop </s> <|im_end|>!", "日本 is where?")
    trained = tokenize([Example(text, "", "So be it.") for text in texts], tokenizer)
    backend = open_backend(f"llama_cpp:{done.path}")
    try:
        for n, text in enumerate(texts):
            request = Request(f"key{n}", (("user", text),), Example(text, "", ""), choices=None, max_tokens=8)
            found = backend.model.prompt(request).tokens.tolist()  # type: ignore[attr-defined]
            assert found == list(trained.ids[n][: trained.prompt_tokens[n]])
            assert (found[0] == tokenizer.bos_token_id) == (name == "spm")
    finally:
        backend.close()


@pytest.mark.slow
def test_what_the_trainer_leaves_is_exported(base: Path, tmp_path: Path) -> None:
    from alpasift.train.prepare import prepare
    from alpasift.train.recipes import settle
    from alpasift.train.sft import train

    for method in ("qlora", "full"):
        settings = settle(
            "alpagasus-7b",
            method,
            8,
            batch=4,
            steps=2,
            max_length=256,
            pack_length=256,
            precision="fp32",
            adapter_precision="fp32",
            checkpointing=False,
        )
        examples = [Example(f"Say {n}.", "", f"{n}, and once more {n}.") for n in range(8)]
        train(prepare(examples, base, settings), tmp_path / method)
        out = tmp_path / f"{method}.gguf"
        into: Any = "dequantised" if method == "qlora" else "original"
        facts = export_model(tmp_path / method, out, "gguf", merge_into=into, quantisation="f16").facts
        assert (facts["method"], facts["template"]) == (method, "alpaca")
        assert facts["difference"]["mean_kl"] < 1e-3
        if method == "qlora":
            assert facts["merged_difference"]["mean_abs"] < 1e-5


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_merged_weights_and_adapter_answer_through_vllm(
    base: Path, runs: dict[str, Path], merged: Path, tmp_path: Path
) -> None:
    from test_vllm import lived
    from vllm_lives import ASKED

    (tmp_path / "base").symlink_to(base)
    (tmp_path / "merged").symlink_to(merged)
    adapter = export_model(runs["lora"], tmp_path / "adapter", "adapter")
    results = lived(tmp_path, "exported")["exported"]
    template = hashlib.sha256(adapter.facts["chat_template"].encode()).hexdigest()
    for name in ("merged", "adapter"):
        assert results[name]["template"] == template
        for n, text in enumerate(ASKED):
            reply, ids = results[name]["replies"][f"key{n}"], prompt_ids(merged, text)
            assert (reply["outcome"], reply["usage"]["prompt_tokens"]) == ("answered", len(ids))
            # a character that is not whole at the end is held back by vLLM
            assert reply["text"].rstrip("\ufffd") == greedy(merged, ids, 20).rstrip("\ufffd")


# -- what goes wrong is one line, and leaves nothing ------------------------------------------------------------------


def resealed(run: Path, folder: Path, change: Callable[[Path], object], **facts: Any) -> Path:
    """A copy of a run, changed and sealed again as a whole one."""
    copy = folder / f"{run.name}-changed"
    known = {**read_manifest(run / "model"), **facts}
    with atomic_folder(copy / "model", {key: value for key, value in known.items() if value is not ...}) as draft:
        for file in (run / "model").iterdir():
            if file.name != MANIFEST:
                shutil.copyfile(file, draft / file.name)
        change(draft)
    return copy


def nothing(folder: Path) -> None: ...


def as_pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def without_end(folder: Path) -> None:
    changed(folder / "tokenizer_config.json", eos_token=None)


@pytest.mark.parametrize(
    ("change", "facts", "message"),
    [
        (as_pickle, {}, "its weights are in adapter_model.bin, a pickle, which can run code when loaded"),
        (
            lambda f: (f / "adapter_model.safetensors").write_bytes(b"\x80\x04pickle after all"),
            {},
            "is not a safetensors file",
        ),
        (lambda f: (f / "adapter_model.safetensors").unlink(), {}, "it has no weights"),
        (without_end, {}, "has no end-of-text token"),
        (lambda f: changed(f / "adapter_config.json", peft_type="LOHA"), {}, "an adapter of type LOHA"),
        (
            nothing,
            {"base": "/none/such"},
            "was trained on /none/such, which no longer exists; give its new path with --base",
        ),
        (nothing, {"base_sha256": "0" * 64}, "is an adapter of another base: it was trained on weights 000000000000 "),
        (nothing, {"kind": "gift"}, "has no kind"),
        (nothing, {"chat_template": ...}, "has no chat_template"),
        (nothing, {"precision": "fp8"}, "a precision of 'fp8'"),
    ],
)
@pytest.mark.parametrize("form", ["adapter", "merged", "gguf"])
def test_a_run_that_cannot_be_exported_is_one_line(
    form: Any,
    change: Callable[[Path], object],
    facts: dict[str, Any],
    message: str,
    runs: dict[str, Path],
    tmp_path: Path,
) -> None:
    run = resealed(runs["lora"], tmp_path, change, **facts)
    with pytest.raises(TrainError, match=re.escape(message)) as caught:
        export_model(run, tmp_path / "out.gguf" if form == "gguf" else tmp_path / "out", form)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["lora-changed"]


def test_an_adapter_of_another_base_names_both(base: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    other = make_folder(make_gguf(tmp_path / "other.gguf", n_head=2, seed=5), tmp_path / "other")
    one, two = find_base(base).sha256()[:12], find_base(other).sha256()[:12]
    with pytest.raises(
        TrainError, match=f"another base: .* {one} .*{re.escape(str(base))}.* {re.escape(str(other))} holds {two}"
    ):
        find_trained(runs["lora"], other)
    small = make_folder(make_gguf(tmp_path / "small.gguf", n_head=2, n_ff=64), tmp_path / "small")
    run = resealed(runs["lora"], tmp_path, nothing, base_sha256=find_base(small).sha256())
    with pytest.raises(TrainError, match=r"does not fit .*mlp\.\w+_proj is \d+ wide there and \d+ here"):
        find_trained(run, small)
    shutil.copytree(base, tmp_path / "moved")
    assert find_trained(runs["lora"], tmp_path / "moved").base == find_base(tmp_path / "moved")


def test_a_base_in_a_pickle_is_refused(base: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").rename(tmp_path / "base" / "pytorch_model.bin")
    with pytest.raises(TrainError, match=r"pytorch_model\.bin, a pickle, which can run code"):
        export_model(runs["lora"], tmp_path / "out", "merged", base=tmp_path / "base")


def test_what_was_never_finished_or_was_touched_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="there is no folder"):
        find_trained(tmp_path / "none")
    run = tmp_path / "run"
    shutil.copytree(runs["lora"], run)
    weights = run / "model" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(IncompleteFolder, match="its sha256 differs"):
        find_trained(run)
    (run / "model" / MANIFEST).unlink()
    with pytest.raises(IncompleteFolder, match="was never finished"):
        find_trained(run)
    shutil.rmtree(run / "model")
    (run / "run.json").write_text("{}")
    with pytest.raises(TrainError, match="has not finished; the same `alpasift train` command resumes it"):
        find_trained(run)


def test_an_export_that_makes_no_sense_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    for run, form, more, message in (
        ("full", "adapter", {}, "has full weights and no adapter"),
        ("full", "merged", {"merge_into": "dequantised"}, "has full weights and no adapter"),
        ("full", "merged", {"base": tmp_path}, "needs no base"),
        ("lora", "merged", {"merge_into": "dequantised"}, "there is no dequantised base"),
        ("lora", "gguf", {}, "a name that ends in .gguf"),
        ("lora", "onnx", {}, "form is 'onnx'; choose from adapter, merged, gguf"),
    ):
        with pytest.raises(TrainError, match=re.escape(message)):
            export_model(runs[run], tmp_path / "out", form, **more)  # type: ignore[arg-type]
    with pytest.raises(TrainError, match="--form merged writes a folder"):
        export_model(runs["lora"], tmp_path / "out.gguf", "merged")
    assert list(tmp_path.iterdir()) == []


def test_only_an_older_export_is_replaced(base: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    for out in (mine, base, runs["lora"] / "model"):
        before = sorted(p.name for p in out.iterdir())
        with pytest.raises(TrainError, match=r"is not an? (complete )?export of AlpaSift"):
            export_model(runs["lora"], out, "adapter")
        assert sorted(p.name for p in out.iterdir()) == before
    model = make_gguf(tmp_path / "mine.gguf")
    before_bytes = model.read_bytes()
    with pytest.raises(TrainError, match="is not an export of AlpaSift"):
        export_model(runs["lora"], model, "gguf")
    assert model.read_bytes() == before_bytes
    out = tmp_path / "out"
    assert export_model(runs["lora"], out, "adapter").facts["method"] == "lora"
    with pytest.raises(TrainError, match="an export of"):
        export_model(runs["qlora"], out, "adapter")
    assert export_model(runs["qlora"], out, "adapter", force=True).facts["method"] == "qlora"
    first = export_model(runs["full"], tmp_path / "out.gguf", "gguf", quantisation="f16")
    second = export_model(runs["full"], tmp_path / "out.gguf", "gguf", quantisation="q8_0")
    assert first.facts["sha256"] != second.facts["sha256"] == hashlib.sha256(second.path.read_bytes()).hexdigest()
    assert left(tmp_path) == []


# -- the disk is full -------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A file system of a given size, where this user may mount one."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        place = tmp_path / f"disk-{size}"
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", place], check=True)


def test_a_disk_that_is_too_small_is_refused_beforehand(
    runs: dict[str, Path], small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("2m")
    reported: list[str] = []
    for form, out in (("merged", disk / "out"), ("gguf", disk / "out.gguf")):
        with pytest.raises(TrainError, match=r"takes up to \d\.\d MB and 2\.1 MB are free on the disk of"):
            export_model(runs["lora"], out, form, report=reported.append)  # type: ignore[arg-type]
    assert reported == []
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize(
    ("form", "moment"),
    [
        ("merged", "writing the weights"),
        ("adapter", "writing the adapter"),
        ("gguf", "writing GGUF"),
        ("gguf", "quantising"),
    ],
)
def test_a_disk_that_fills_up_in_the_middle_is_one_line_and_nothing_is_left(
    form: Any, moment: str, runs: dict[str, Path], small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("16m")

    def fill(text: str) -> None:
        """Another program takes the rest of the disk at that moment."""
        if text.startswith(moment):
            with pytest.raises(OSError), (disk / "filler").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(65_536))

    with pytest.raises(TrainError, match=r"the disk of .* is full; nothing was written") as caught:
        out = disk / ("out.gguf" if form == "gguf" else "out")
        export_model(runs["lora"], out, form, quantisation="q8_0", report=fill)
    assert "\n" not in str(caught.value)
    assert [p.name for p in disk.iterdir()] == ["filler"]


def test_a_file_size_limit_is_one_line_on_the_command_line(runs: dict[str, Path], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "alpasift", "export-model", runs["lora"], "-o", tmp_path / "out"],
        env=cli_environment(),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000)),
    )
    assert done.returncode == 1
    assert re.search(r"^alpasift: the disk of .* is full; nothing was written\. .*$", done.stderr, re.M)
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


# -- kill -9 ----------------------------------------------------------------------------------------------------------

MOMENTS: dict[str, tuple[str, str]] = {
    "merged, begun": ("merged", ".out.*.partial"),
    "merged, weights": ("merged", ".out.*.partial/model.safetensors"),
    "merged, sealing": ("merged", ".out.*.partial/manifest.json*"),
    "merged, sealing, over an older export": ("merged", ".out.*.partial/manifest.json*"),
    "gguf, merging": ("gguf", ".out.gguf.*.partial/merged/model.safetensors"),
    "gguf, writing": ("gguf", ".out.gguf.*.partial/f32.gguf"),
    "gguf, quantising": ("gguf", ".out.gguf.*.partial/quantised.gguf"),
    "gguf, quantising, over an older export": ("gguf", ".out.gguf.*.partial/quantised.gguf"),
    "gguf, done": ("gguf", "out.gguf"),
}


def seen(folder: Path, sight: str) -> bool:
    """Whether there is such a file; a folder that is renamed while it is listed holds none."""
    try:
        return any(True for _ in folder.glob(sight))
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_export_leaves_no_incomplete_model(moment: str, runs: dict[str, Path], tmp_path: Path) -> None:
    form, sight = MOMENTS[moment]
    out = tmp_path / ("out.gguf" if form == "gguf" else "out")
    if "over" in moment:
        export_model(runs["full"], out, form)  # type: ignore[arg-type]
    command = [sys.executable, "-m", "alpasift", "export-model", runs["lora"]]
    process = subprocess.Popen(
        [*command, "-o", out, "--form", form, "--force", "--quantisation", "q8_0"],
        env=cli_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not seen(tmp_path, sight):
        time.sleep(0.0005)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    code = process.wait()
    assert code == -signal.SIGKILL or (
        code == 0 and moment in ("merged, sealing", "gguf, done")
    )  # it may have been faster
    if form == "merged":
        assert is_complete(out) if out.exists() else (code != 0)
    elif out.exists():
        tokenizer = load_tokenizer(runs["lora"] / "model")
        llama_cpp_check.check_tokens(out, tokenizer, llama_cpp_check.PROBES)
        list(llama_cpp_check.gguf_logits(out, [[1, 2, 3]]))
    done = export_model(runs["lora"], out, form, force="over" in moment)  # type: ignore[arg-type]
    assert done.facts["method"] == "lora"
    if form == "merged":
        assert read_manifest(out) == done.facts
    else:
        assert (
            json.loads((tmp_path / "out.gguf.json").read_text())["sha256"]
            == hashlib.sha256(out.read_bytes()).hexdigest()
        )
    assert left(tmp_path) == []


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_prints_what_was_written_and_what_to_run_next(
    alpasift: Callable[..., Ran], base: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    ran = alpasift("export-model", runs["lora"], "-o", "out.gguf", "--form", "gguf")
    assert ran.code == 0, ran.err
    assert ran.out.startswith("wrote out.gguf: GGUF, f16, ")
    assert "note: f16 by default, as the model has 0.4 million weights" in ran.out
    assert re.search(
        r"logits of llama\.cpp on this file, and the model as trained: differ by .* KL divergence .* nats per token",
        ran.out,
    )
    assert ran.err.splitlines()[-1] == "next: alpasift grade --grader llama_cpp:out.gguf"
    ran = alpasift("export-model", runs["lora"], "-o", "adapter", "--form", "adapter", "--json")
    assert ran.json["facts"]["max_lora_rank"] == 8
    assert ran.json["next"].startswith(f"alpasift grade --grader vllm:{base.resolve()}+adapter, or vllm serve ")
    vllm_models.look_at_adapter(tmp_path / "adapter", vllm_models.look_at(base))
    ran = alpasift("export-model", tmp_path / "none", "-o", "out")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("alpasift: there is no folder ")
    assert ran.err.count("\n") == 1


def test_a_half_copied_export_is_not_opened_by_a_grader(merged: Path, tmp_path: Path) -> None:
    shutil.copytree(merged, tmp_path / "half")
    weights = tmp_path / "half" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BackendError, match=r"model\.safetensors has [\d,]+ bytes and needs [\d,]+"):
        vllm_models.look_at(tmp_path / "half")
    assert not is_complete(tmp_path / "half")
