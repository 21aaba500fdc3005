"""GGUF files as folders for transformers: tiny models with every kind of tokenizer, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from alpasift.train.artifacts import TrainError
from alpasift.train.export import gguf_writer
from alpasift.train.gguf_import import import_model
from alpasift.train.gguf_import.import_model import import_gguf
from alpasift.train.gguf_import.tokenizer import tokenizer_of
from alpasift.train.models import load_model, load_tokenizer
from tokenizer_folders import tokenizer_folders, with_words

pytestmark = pytest.mark.llama


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tokenizer_folders(tmp_path_factory.mktemp("words"))


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "smaug-bpe", "spm"])
def test_a_folder_that_was_written_as_gguf_comes_back(name: str, words: dict[str, Path], tmp_path: Path) -> None:
    import torch

    folder = with_words(words[name], tmp_path / "model")
    path = tmp_path / "m.gguf"
    gguf_writer.write_gguf(folder, path, "f32", chat_template="{{ messages[0].content }}", name="m", facts={})
    done = import_gguf(path, tmp_path / "back")
    assert (done.texts, done.data_type) == (1000, "float32")
    assert done.difference.mean_kl < 1e-4
    before, after = (load_model(f, precision="fp32").state_dict() for f in (folder, tmp_path / "back"))
    for key, tensor in before.items():
        assert torch.equal(tensor, after[key]), key
    one, other = load_tokenizer(folder), load_tokenizer(tmp_path / "back")
    assert (one.eos_token_id, one.pad_token_id) == (other.eos_token_id, other.pad_token_id)
    assert other.chat_template == "{{ messages[0].content }}"
    text = "Digits 123456 and <|im_end|> é🙂  two blanks"
    assert one(text)["input_ids"] == other(text)["input_ids"]


def test_weights_that_come_out_in_another_order_are_refused(
    words: dict[str, Path],
    tmp_path: Path,
) -> None:
    """As though transformers read Llama's rotated rows without turning them back: shapes are right, answers are not."""
    folder = with_words(words["gpt-2"], tmp_path / "model")
    path = tmp_path / "m.gguf"
    gguf_writer.write_gguf(folder, path, "f32", chat_template=None, name="m", facts={})
    other = with_words(words["gpt-2"], tmp_path / "other")
    with pytest.raises(TrainError, match=r"KL divergence of .* nats a token, more than"):
        import_model._check_logits(path, _with_other_rotation(other), load_tokenizer(folder))


def _with_other_rotation(folder: Path) -> Path:
    from safetensors.torch import load_file, save_file

    file = next(folder.glob("*.safetensors"))
    tensors = load_file(file)
    for key, tensor in tensors.items():
        if "q_proj" in key or "embed" in key:
            tensors[key] = tensor.flip(0).contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def test_a_way_to_split_text_that_is_not_known_is_refused() -> None:
    fields = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "tekken", "tokenizer.ggml.tokens": ["a"]}
    with pytest.raises(TrainError, match="'tekken', which AlpaSift does not know"):
        tokenizer_of(fields)
    with pytest.raises(TrainError, match="of the kind 'bert'"):
        tokenizer_of({"tokenizer.ggml.model": "bert", "tokenizer.ggml.tokens": ["a"]})
    with pytest.raises(TrainError, match="no vocabulary"):
        tokenizer_of({})


def test_what_cannot_be_imported_leaves_nothing(words: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(TrainError, match="not a GGUF file"):
        import_gguf(tmp_path / "text.gguf", out)
    folder = with_words(words["gpt-2"], tmp_path / "model")
    gguf_writer.write_gguf(folder, tmp_path / "m.gguf", "f32", chat_template=None, name="m", facts={})
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "mine.txt").write_text("mine")
    with pytest.raises(TrainError, match="exists; choose another folder"):
        import_gguf(tmp_path / "m.gguf", kept)
    assert not out.exists()
    assert [file.name for file in kept.iterdir()] == ["mine.txt"]
