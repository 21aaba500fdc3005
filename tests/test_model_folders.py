"""Models on disk: one verdict on a folder, whoever asks, and on the parts of a GGUF model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alpasift.batcher.offline.bundle import Contents, create
from alpasift.batcher.offline.manifest import BundleError
from alpasift.graders import BackendError, BackendUnavailable, backend_kind
from alpasift.graders.local import vllm_models
from alpasift.graders.local.gguf_files import check_gguf
from alpasift.graders.local.model_folders import ModelFilesError, NoModel, model_path, read_model_folder
from alpasift.train.artifacts import TrainError
from alpasift.train.models import find_base

SHARDS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]


def safetensors(path: Path, cut: int = 0) -> None:
    head = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    path.write_bytes((len(head).to_bytes(8, "little") + head + bytes(16))[: -cut or None])


def model_folder(path: Path) -> Path:
    path.mkdir()
    for shard in SHARDS:
        safetensors(path / shard)
    index(path, *SHARDS)
    (path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (path / "tokenizer.json").write_text("{}")
    return path


def index(folder: Path, *names: str) -> None:
    table = {str(number): name for number, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))


def remove(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


def pickled(folder: Path) -> None:
    for number, name in enumerate(("model.safetensors.index.json", *SHARDS)):
        (folder / name).rename(folder / f"pytorch_model-{number}.bin")


def climbing(folder: Path) -> None:
    safetensors(folder.parent / "out.safetensors")
    index(folder, SHARDS[0], "../out.safetensors")


def dangling(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("../blobs/gone")


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (remove("config.json"), "is incomplete: missing config.json; "),
    "a link to nothing": (dangling, "is incomplete: missing config.json; "),
    "config is no JSON": (
        lambda f: (f / "config.json").write_text("{"),
        "config.json cannot be read (JSONDecodeError)",
    ),
    "no tokenizer": (remove("tokenizer.json"), "missing a tokenizer (tokenizer.json or tokenizer.model)"),
    "a part missing": (remove(SHARDS[1]), f"missing {SHARDS[1]}; download or copy the model again"),
    "a part cut off": (lambda f: safetensors(f / SHARDS[0], cut=3), "bytes and needs"),
    "a part that is a page": (lambda f: (f / SHARDS[0]).write_text("<html>gone</html>"), "is not a safetensors file"),
    "pickles only": (pickled, "a pickle, which can run code when loaded; only safetensors are loaded"),
    "an index that climbs": (climbing, "lists '../out.safetensors', which is not a safetensors file of this folder"),
    "an index of pickles": (
        lambda f: index(f, "a.bin"),
        "lists 'a.bin', which is not a safetensors file of this folder",
    ),
    "an empty index": (lambda f: index(f), "lists no weights"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_refused_alike_by_all_who_look_at_it(name: str, tmp_path: Path) -> None:
    change, message = BROKEN[name]
    folder = model_folder(tmp_path / "model")
    change(folder)
    with pytest.raises(ModelFilesError) as caught:
        read_model_folder(folder)
    verdict = str(caught.value)
    assert message in verdict and str(folder) in verdict and "\n" not in verdict
    with pytest.raises(BackendError) as of_vllm:
        vllm_models.look_at(folder)
    with pytest.raises(TrainError) as of_training:
        find_base(folder)
    with pytest.raises(BundleError) as of_bundle:
        create(tmp_path / "bundle", Contents(models=[folder]))
    assert str(of_vllm.value) == str(of_training.value) == verdict
    assert str(of_bundle.value) == f"{verdict}; --model takes a GGUF file or a complete model folder"
    assert backend_kind("vllm").problem_with_model(str(folder)) == verdict


def test_a_whole_folder_is_taken_by_all(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    found = read_model_folder(folder)
    assert [file.name for file in found.weights] == SHARDS
    assert found.chat_template == ""
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert read_model_folder(folder).chat_template == "{{ messages }}"
    assert vllm_models.look_at(folder).tensors == {"w": (4,)}
    assert find_base(folder).weights == found.weights
    assert backend_kind("vllm").problem_with_model(str(folder)) is None


def test_a_folder_without_an_index_holds_one_file_and_either_kind_of_tokenizer(tmp_path: Path) -> None:
    folder = tmp_path / "single"
    folder.mkdir()
    for name in ("config.json", "vocab.json", "merges.txt"):
        (folder / name).write_text("{}")
    with pytest.raises(ModelFilesError, match=r"missing model\.safetensors; "):
        read_model_folder(folder)
    safetensors(folder / "model.safetensors")
    assert read_model_folder(folder).weights == (folder / "model.safetensors",)
    (folder / "merges.txt").unlink()
    with pytest.raises(ModelFilesError, match="missing a tokenizer"):
        read_model_folder(folder)


def test_a_folder_that_is_not_there_is_told_from_a_broken_one(tmp_path: Path) -> None:
    with pytest.raises(NoModel, match=f"folder not found: {tmp_path / 'none'}"):
        read_model_folder(tmp_path / "none")
    with pytest.raises(BackendUnavailable, match="the local cache has no model of that name"):
        vllm_models.look_at(tmp_path / "none")


def test_an_adapter_is_looked_at_with_its_base(tmp_path: Path) -> None:
    base, adapter = model_folder(tmp_path / "base"), tmp_path / "adapter"
    problem = backend_kind("vllm").problem_with_model
    assert problem(None) == "has no model; write vllm:FOLDER"
    assert problem(f"{base}+{adapter}") == f"there is no adapter folder {adapter}; correct the path after the +"
    adapter.mkdir()
    assert "has no adapter_config.json" in str(problem(f"{base}+{adapter}"))
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    safetensors(adapter / "adapter_model.safetensors", cut=1)
    assert "bytes and needs" in str(problem(f"{base}+{adapter}"))
    safetensors(adapter / "adapter_model.safetensors")
    assert problem(f"{base}+{adapter}") is None


def test_a_name_is_looked_up_in_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    assert model_path("org/model") == Path("org/model")
    repository, commit = tmp_path / "hub" / "models--org--model", "a" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    folder = model_folder(repository / "snapshots" / commit)
    assert model_path("org/model") == folder
    assert backend_kind("vllm").problem_with_model("org/model") is None
    (repository / "refs" / "main").write_text("../../../..")
    assert model_path("org/model") == Path("org/model")


def test_a_split_gguf_model_needs_all_its_parts(tmp_path: Path) -> None:
    parts = [tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    for part in parts:
        part.write_bytes(b"GGUF\3\0\0\0" + bytes(16))
    check_gguf(parts[0])
    os.truncate(parts[1], 0)
    with pytest.raises(ModelFilesError, match=r"m-00002-of-00002\.gguf is empty"):
        check_gguf(parts[0])
    parts[1].unlink()
    with pytest.raises(ModelFilesError, match=r"is incomplete: missing m-00002-of-00002\.gguf"):
        check_gguf(parts[0])
