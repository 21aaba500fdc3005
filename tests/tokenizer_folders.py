"""Small models with real tokenizers: one of each way to cut text that a GGUF file can hold."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from alpasift.train.export import gguf_tokenizer, llama_cpp_check
from alpasift.train.models import TOKENIZER_FILES, load_tokenizer
from conftest import ROOT

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}


def model_folder(folder: Path, config: Any, words: Path, gain: float = 1.5) -> Path:
    """A model of random weights of a configuration, with the tokenizer of another folder."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 or name.endswith("bias"):
            parameter.data.normal_(0, gain / np.sqrt(parameter.shape[-1]) if parameter.dim() > 1 else 1.0)
    model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (words / name).is_file():
            shutil.copyfile(words / name, folder / name)
    return folder


def tokenizer_folders(folder: Path) -> dict[str, Path]:
    """Folders with tokenizers, one of each way to cut text."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    rules = {name: rule for (rule, _), name in gguf_tokenizer.PRE_TOKENIZERS.items()}
    made = {}
    for name in ("gpt-2", "smollm", "qwen2", "llama-bpe", "smaug-bpe"):
        tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
        first: list[Any] = []
        if name == "smollm":
            first = [pre_tokenizers.Digits(individual_digits=True)]
        elif name != "gpt-2":
            first = [pre_tokenizers.Split(Regex(rules[name]), "isolated")]
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name in ("gpt-2", "smollm"))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, level]) if first else level
        tokenizer.decoder = decoders.ByteLevel()
        if name == "qwen2":
            tokenizer.normalizer = normalizers.NFC()
        specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=1200, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(lesson().splitlines(), trainer)
        tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
        made[name] = folder / name
        made[name].mkdir()
        tokenizer.save(str(made[name] / "tokenizer.json"))
        (made[name] / "tokenizer_config.json").write_text(
            json.dumps(
                {
                    "tokenizer_class": "Qwen2Tokenizer" if name == "qwen2" else "PreTrainedTokenizerFast",
                    "eos_token": "<|im_end|>",
                    "pad_token": "<|endoftext|>",
                }
            )
        )
    for name in ("spm", "spm without tokenizer.model"):
        made[name] = sentencepiece_folder(folder / name.replace(" ", "_"), "without" not in name)
    return made


def lesson() -> str:
    sys.path.insert(0, str(ROOT))
    try:
        from examples.tiny_gguf import lesson
    finally:
        sys.path.remove(str(ROOT))
    return str(lesson()) + "\n".join(llama_cpp_check.PROBES) * 3


def sentencepiece_folder(folder: Path, with_model: bool) -> Path:
    """A tokenizer as Llama 2's: SentencePiece learns it; its merges are all ways to make a piece, best score first."""
    import sentencepiece
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    folder.mkdir()
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lesson().splitlines()),
        model_writer=written,
        vocab_size=900,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
        character_coverage=0.99,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    vocab = {pieces.id_to_piece(i): i for i in range(len(pieces))}
    merges = [
        (piece[:cut], piece[cut:])
        for piece, i in sorted(vocab.items(), key=lambda item: -pieces.get_score(item[1]))
        if not (pieces.is_control(i) or pieces.is_unknown(i) or pieces.is_byte(i))
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in ("<unk>", "<s>", "</s>")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    if with_model:
        (folder / "tokenizer.model").write_bytes(written.getvalue())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "LlamaTokenizerFast",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "add_bos_token": True,
            }
        )
    )
    return folder


def with_words(words: Path, folder: Path) -> Path:
    """A small model with that tokenizer."""
    from transformers import LlamaConfig

    return model_folder(
        folder, LlamaConfig(**{**SHAPE, "num_hidden_layers": 1}, vocab_size=len(load_tokenizer(words)) + 3), words
    )
