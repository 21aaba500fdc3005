"""The tiny Llama of examples/tiny_gguf.py as a Hugging Face folder too: one model for vLLM and for llama.cpp.

    gguf = make_gguf(folder / "tiny.gguf")
    hf = make_folder(gguf, folder / "tiny")          # the same tokens, weights and chat template
    adapter = make_adapter(hf, folder / "adapter")   # a LoRA adapter with random weights

`plant` makes a model whose next token depends on the last token only, with probabilities that the caller gives, so that
a test can state by hand what a grader has to find. Needs numpy and gguf; safetensors files are written by hand.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader

ROOT = Path(__file__).resolve().parent.parent
FLOOR = -30.0  # logit of a token that was given no probability


def make_gguf(path: Path, plant: Mapping[str, Mapping[str, float]] | None = None, **shape: Any) -> Path:
    """The model of examples/tiny_gguf.py at `path`. `shape` is what its `make` takes, `plant` what `_plant` does."""
    sys.path.insert(0, str(ROOT))
    try:
        from examples.tiny_gguf import make
    finally:
        sys.path.remove(str(ROOT))
    make(path, **shape)
    if plant is not None:
        _plant(path, plant)
    return path


def _plant(path: Path, plant: Mapping[str, Mapping[str, float]]) -> None:
    """Rewrite the weights so that after the token `plant`'s key the tokens of its value have those probabilities.

    Attention and feed-forward add nothing. A planted token's embedding is an axis of its own, every other token's is
    axis 0, whose distribution has the key "". RMS norm makes such a vector as long as the root of the width.
    """
    reader = GGUFReader(path, "r+")
    number = {token: i for i, token in enumerate(_tokens(reader))}
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    for name, data in tensors.items():
        if name.endswith(("attn_output.weight", "ffn_down.weight")):
            data[:] = 0
    embeddings, output = tensors["token_embd.weight"], tensors["output.weight"]
    root = math.sqrt(embeddings.shape[1])
    embeddings[:] = 0
    embeddings[:, 0] = root
    output[:] = FLOOR / root
    for axis, (last, follows) in enumerate({"": {"<|end|>": 1.0}, **plant}.items()):
        if last:
            embeddings[number[_spelt(last)]] = root * np.eye(embeddings.shape[1])[axis]
        for token, probability in follows.items():
            output[number[_spelt(token)], axis] = math.log(probability) / root
    reader.data.flush()


def _spelt(token: str) -> str:
    """A token as a byte-level BPE writes it."""
    return token.replace("\n", "Ċ").replace(" ", "Ġ")


def _field(reader: GGUFReader, name: str) -> Any:
    return reader.fields[name].contents()


def _tokens(reader: GGUFReader) -> list[str]:
    tokens: list[str] = _field(reader, "tokenizer.ggml.tokens")
    return tokens


def make_folder(gguf: Path, folder: Path, user_defined: Sequence[str] = ()) -> Path:
    """The model of a GGUF file made above as a Hugging Face folder.

    `user_defined` are control tokens that the folder does not call special, as Qwen2.5 does not with <tool_call>.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reader = GGUFReader(gguf)
    tokens = _tokens(reader)
    heads = int(_field(reader, "llama.attention.head_count"))
    begin, end, im_end = (int(_field(reader, f"tokenizer.ggml.{name}_token_id")) for name in ("bos", "eos", "eot"))
    special = [n for n, kind in enumerate(_field(reader, "tokenizer.ggml.token_type")) if kind == 3]
    template = reader.fields.get("tokenizer.chat_template")
    context = int(_field(reader, "llama.context_length"))
    _write(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "torch_dtype": "float32",
            "hidden_act": "silu",
            "vocab_size": len(tokens),
            "hidden_size": int(_field(reader, "llama.embedding_length")),
            "intermediate_size": int(_field(reader, "llama.feed_forward_length")),
            "num_hidden_layers": int(_field(reader, "llama.block_count")),
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": context,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "attention_bias": False,
            "bos_token_id": begin,
            "eos_token_id": end,
        },
    )
    _write(folder / "generation_config.json", {"bos_token_id": begin, "eos_token_id": [end, im_end]})
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    _write(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "normalizer": None,
            "post_processor": None,
            "added_tokens": [
                {
                    "id": n,
                    "content": tokens[n],
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": tokens[n] not in user_defined,
                }
                for n in special
            ],
            "pre_tokenizer": byte_level,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "vocab": {token: n for n, token in enumerate(tokens) if n not in special},
                "merges": [merge.split(" ") for merge in _field(reader, "tokenizer.ggml.merges")],
            },
        },
    )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[begin],
        "eos_token": tokens[end],
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }
    if template is not None:
        settings["chat_template"] = str(template.contents())
    _write(folder / "tokenizer_config.json", settings)

    names = {
        "token_embd": "model.embed_tokens",
        "output": "lm_head",
        "output_norm": "model.norm",
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    weights = {}
    for tensor in reader.tensors:
        *block, name, _ = tensor.name.split(".")
        data = np.array(tensor.data)
        if name in ("attn_q", "attn_k"):  # llama.cpp keeps the two halves of a rotated pair side by side
            pairs = data.reshape(heads, data.shape[0] // heads // 2, 2, data.shape[1])
            data = pairs.swapaxes(1, 2).reshape(data.shape)
        prefix = f"model.layers.{block[1]}." if block else ""
        weights[f"{prefix}{names[name]}.weight"] = data
    write_safetensors(folder / "model.safetensors", weights)
    return folder


def make_adapter(base: Path, folder: Path, rank: int = 4, seed: int = 0, width: int | None = None) -> Path:
    """A LoRA adapter of q_proj and v_proj for the model in the folder `base`, strong enough to change answers.

    `width` other than the base's makes an adapter of another model.
    """
    config = json.loads((base / "config.json").read_text())
    width = width or config["hidden_size"]
    folder.mkdir(parents=True, exist_ok=True)
    _write(
        folder / "adapter_config.json",
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": str(base),
            "r": rank,
            "lora_alpha": 2 * rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": ["q_proj", "v_proj"],
            "inference_mode": True,
            "use_rslora": False,
            "modules_to_save": None,
        },
    )
    random = np.random.default_rng(seed)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        for module in ("q_proj", "v_proj"):
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            weights[f"{name}.lora_A.weight"] = random.standard_normal((rank, width)).astype(np.float32) / 4
            weights[f"{name}.lora_B.weight"] = random.standard_normal((width, rank)).astype(np.float32)
    write_safetensors(folder / "adapter_model.safetensors", weights)
    return folder


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """float32 tensors in the format of https://github.com/huggingface/safetensors: length, JSON header, bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, data in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(data.shape), "data_offsets": [start, start + data.nbytes]}
        start += data.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for data in tensors.values():
            file.write(np.ascontiguousarray(data, np.float32).tobytes())


def next_logprobs(folder: Path, tokens: Sequence[int]) -> np.ndarray:
    """Log-probabilities (vocabulary,) of the token after these, by a Llama written out in float64: the tests' oracle.

    Touvron et al. 2023, arXiv 2302.13971, section 2.2; rotary embeddings rotate halves of a head, as transformers does.
    """
    config = json.loads((folder / "config.json").read_text())
    raw = (folder / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    weight = {
        name: np.frombuffer(raw[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]], np.float32)
        .reshape(entry["shape"])
        .astype(np.float64)
        for name, entry in header.items()
        if name != "__metadata__"
    }
    heads, count = config["num_attention_heads"], len(tokens)
    half = config["hidden_size"] // heads // 2
    angles = np.arange(count)[:, None] * config["rope_theta"] ** (-np.arange(half) / half)  # (T, half)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config["rms_norm_eps"]) * weight[f"{name}.weight"]

    def apart(x: np.ndarray) -> np.ndarray:  # (T, width) -> (heads, T, 2 * half)
        return x.reshape(count, heads, 2 * half).swapaxes(0, 1)

    def rotated(x: np.ndarray) -> np.ndarray:
        left, right = x[..., :half], x[..., half:]
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([left * cos - right * sin, right * cos + left * sin], -1)

    x = weight["model.embed_tokens.weight"][list(tokens)]  # (T, width)
    for layer in range(config["num_hidden_layers"]):
        here = f"model.layers.{layer}"
        y = norm(x, f"{here}.input_layernorm")
        q, k, v = (apart(y @ weight[f"{here}.self_attn.{name}_proj.weight"].T) for name in "qkv")
        scores = rotated(q) @ rotated(k).swapaxes(1, 2) / np.sqrt(2 * half)
        scores[:, np.triu(np.ones((count, count), bool), 1)] = -np.inf
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (shares / shares.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(count, -1)
        x = x + mixed @ weight[f"{here}.self_attn.o_proj.weight"].T
        y = norm(x, f"{here}.post_attention_layernorm")
        gate, up = (y @ weight[f"{here}.mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ weight[f"{here}.mlp.down_proj.weight"].T
    logits = norm(x[-1], "model.norm") @ weight["lm_head.weight"].T
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def changed(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    content = {**json.loads(path.read_text()), **values}
    _write(path, {key: value for key, value in content.items() if value is not None})


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), "utf-8")
