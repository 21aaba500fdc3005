"""GGUF files: a Hugging Face folder written as one. Call `check_exportable`, then `write_gguf`.

Weights go from file to file one tensor at a time. Tensor names come from the package `gguf`; the order of rotated rows
and the keys are those that llama.cpp documents or was seen to read
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). The tokenizer is written by `gguf_tokenizer`; quantising
and checking are in `llama_cpp_check`. Knows folders and files; nothing of adapters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alpasift.train.artifacts import TrainError
from alpasift.train.export.gguf_tokenizer import add_vocabulary, vocabulary
from alpasift.train.models import find_base, load_tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Stored = Literal["f32", "f16", "bf16"]
STORED: dict[str, Stored] = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "f16": "f16"}
"""How a precision, or a quantisation that is none, is stored."""

ARCHITECTURES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}
"""What can be written, and llama.cpp's name for how it computes: Mistral's layers are Llama's."""
MARK = "alpasift.export"
"""The key of our facts in a GGUF file; it is near the file's beginning."""
F16_MAX = 65_504.0
_YARN_DEFAULTS = {
    "beta_fast": 32,
    "beta_slow": 1,
    "attention_factor": None,
    "mscale": None,
    "mscale_all_dim": None,
    "truncate": True,
}


def missing_requirements() -> str | None:
    """What must be installed to write and check GGUF files; None where nothing is missing."""
    from importlib.util import find_spec

    needed = (("llama_cpp", "llama-cpp-python, which quantises and checks them", "llama"), ("gguf", "gguf", "train"))
    missing = [(package, extra) for module, package, extra in needed if find_spec(module) is None]
    if not missing:
        return None
    packages, extras = " and ".join(package for package, _ in missing), ",".join(extra for _, extra in missing)
    return f"GGUF export needs {packages}, not installed here: pip install 'alpasift[{extras}]'"


def check_exportable(folder: Path, tokenizer_folder: Path) -> None:
    """Raise TrainError where the architecture or the tokenizer cannot be written faithfully. Opens no weights."""
    config = _config(folder)
    _arch(folder)
    _rope(config, _arch(folder))
    vocabulary(tokenizer_folder, load_tokenizer(tokenizer_folder), int(config.vocab_size))


def write_gguf(
    folder: Path, path: Path, store: Stored, *, chat_template: str | None, name: str, facts: Mapping[str, Any]
) -> tuple[str, ...]:
    """Write a folder with safetensors as a GGUF file, matrices in `store`, the rest in float32. Returns remarks.

    `facts` are put into the file under MARK. Raises TrainError where the model cannot be written faithfully.
    """
    import gguf

    base = find_base(folder)
    config, arch = _config(folder), _arch(folder)
    tokenizer = load_tokenizer(folder)
    writer: Any = gguf.GGUFWriter(path, arch)
    try:
        writer.add_string(MARK, json.dumps(facts, ensure_ascii=False))
        writer.add_name(name)
        writer.add_file_type(
            {
                "f32": gguf.LlamaFileType.ALL_F32,
                "f16": gguf.LlamaFileType.MOSTLY_F16,
                "bf16": gguf.LlamaFileType.MOSTLY_BF16,
            }[store]
        )
        context, remarks = _context(config)
        _add_dimensions(writer, config, context)
        factors = _add_rope(writer, config, arch)
        words = vocabulary(folder, tokenizer, int(config.vocab_size))
        add_vocabulary(writer, words, tokenizer, chat_template, folder)
        _write_tensors(writer, base.weights, config, arch, store, factors)
    finally:
        writer.close()
    return (*remarks, *words.remarks)


# -- dimensions and rotary embedding ----------------------------------------------------------------------------------


def _arch(folder: Path) -> str:
    found = (json.loads((folder / "config.json").read_text("utf-8")).get("architectures") or ["no architecture"])[0]
    if found not in ARCHITECTURES:
        raise TrainError(
            f"{folder} is a {found}; GGUF export supports {', '.join(ARCHITECTURES)}. Export it as merged "
            "weights, and convert those with llama.cpp's convert_hf_to_gguf.py"
        )
    return ARCHITECTURES[found]


def _config(folder: Path) -> Any:
    """The configuration as transformers reads it, in old and new spellings of the rotary embedding."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainError(f"the configuration of {folder} cannot be read: {str(error).splitlines()[0]}") from error


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _context(config: Any) -> tuple[int, tuple[str, ...]]:
    """Tokens of context: the model's, but no more than its sliding window, which llama.cpp does not apply."""
    context = int(config.max_position_embeddings)
    window = getattr(config, "sliding_window", None)
    if window is None or getattr(config, "use_sliding_window", True) is False or int(window) >= context:
        return context, ()
    return int(window), (
        f"llama.cpp does not apply its sliding window of {int(window):,} tokens: the context is set to that instead "
        f"of {context:,}",
    )


def _add_dimensions(writer: Any, config: Any, context: int) -> None:
    dim = _head_dim(config)
    writer.add_context_length(context)
    writer.add_embedding_length(int(config.hidden_size))
    writer.add_block_count(int(config.num_hidden_layers))
    writer.add_feed_forward_length(int(config.intermediate_size))
    writer.add_head_count(int(config.num_attention_heads))
    writer.add_head_count_kv(int(config.num_key_value_heads))
    writer.add_key_length(dim)
    writer.add_value_length(dim)
    writer.add_rope_dimension_count(dim)
    writer.add_layer_norm_rms_eps(float(config.rms_norm_eps))
    writer.add_vocab_size(int(config.vocab_size))


def _rope(config: Any, arch: str) -> dict[str, Any]:
    """The rotary embedding's settings. Raises TrainError for a kind that llama.cpp computes differently."""
    settings = dict(config.rope_parameters or {})
    kind = settings.get("rope_type", "default")
    known = {"default", "linear", "yarn"} | ({"llama3"} if arch == "llama" else set())
    if kind not in known or settings.get("partial_rotary_factor", 1.0) != 1.0:
        raise TrainError(
            f"rotary embeddings of kind {kind} cannot be written to GGUF for this architecture; export it merged"
        )
    odd = [name for name, value in _YARN_DEFAULTS.items() if settings.get(name) not in (value, None)]
    if kind == "yarn" and odd:
        raise TrainError(f"its yarn embedding sets {', '.join(odd)}, which GGUF cannot hold; export it merged")
    return {"kind": kind, **settings}


def _add_rope(writer: Any, config: Any, arch: str) -> NDArray[np.float32] | None:
    """Write the rotary embedding's keys. Returns each frequency's divisor, (head_dim / 2,), or None where all are 1."""
    import gguf

    settings = _rope(config, arch)
    theta = float(settings.get("rope_theta") or getattr(config, "default_theta", None) or 10_000.0)
    writer.add_rope_freq_base(theta)
    if settings["kind"] in ("linear", "yarn"):
        kinds = {"linear": gguf.RopeScalingType.LINEAR, "yarn": gguf.RopeScalingType.YARN}
        writer.add_rope_scaling_type(kinds[settings["kind"]])
        writer.add_rope_scaling_factor(float(settings["factor"]))
        if settings["kind"] == "yarn":
            first = settings.get("original_max_position_embeddings") or config.max_position_embeddings
            writer.add_rope_scaling_orig_ctx_len(int(first))
    if settings["kind"] != "llama3":
        return None
    import numpy as np
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")  # Llama 3.1: slow rotations are slowed further
    plain = theta ** -(np.arange(0, _head_dim(config), 2, dtype=np.float64) / _head_dim(config))
    return np.asarray(plain / scaled.double().numpy(), np.float32)


# -- tensors -----------------------------------------------------------------------------------------------------------


def paired(rows: Any, heads: int) -> Any:
    """Rows of a query or key projection, (heads * head_dim, ...), in llama.cpp's order.

    transformers rotates the first half of a head against the second; llama.cpp keeps the two of a pair side by side.
    """
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _write_tensors(
    writer: Any, files: Sequence[Path], config: Any, arch: str, store: Stored, factors: NDArray[np.float32] | None
) -> None:
    """Two passes: names and shapes, then the data in the same order, one tensor in memory at a time."""
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    planned = {file: _plan_tensors(writer, file, config, arch, store) for file in files}
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    heads = {"q_proj": int(config.num_attention_heads), "k_proj": int(config.num_key_value_heads)}
    for file, tensors in planned.items():
        _write_data(writer, file, tensors, heads if arch == "llama" else {})


def _plan_tensors(writer: Any, file: Path, config: Any, arch: str, store: Stored) -> dict[str, Stored]:
    """Announce the tensors of a file to the writer. Returns how each of them is stored, in order."""
    import gguf
    import numpy as np
    from safetensors import safe_open

    kinds: dict[Stored, tuple[np.dtype[Any], Any]] = {
        "f32": (np.dtype(np.float32), None),
        "f16": (np.dtype(np.float16), None),
        "bf16": (np.dtype(np.int16), gguf.GGMLQuantizationType.BF16),
    }
    architecture = gguf.MODEL_ARCH.LLAMA if arch == "llama" else gguf.MODEL_ARCH.QWEN2
    names = gguf.get_tensor_name_map(architecture, int(config.num_hidden_layers))
    planned: dict[str, Stored] = {}
    with safe_open(file, "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118  it is no dict
            if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tie_word_embeddings):
                continue
            target = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if target is None:
                raise TrainError(f"{file} holds {name}, which GGUF cannot store; export it merged")
            shape = tuple(tensors.get_slice(name).get_shape())
            planned[name] = store if len(shape) > 1 else "f32"
            dtype, raw = kinds[planned[name]]
            writer.add_tensor_info(target, shape, dtype, int(np.prod(shape)) * dtype.itemsize, raw_dtype=raw)
    return planned


def _write_data(writer: Any, file: Path, planned: Mapping[str, Stored], rotated_heads: Mapping[str, int]) -> None:
    """Write the data of a file's tensors; rows of the projections in `rotated_heads` in llama.cpp's order."""
    import torch
    from safetensors import safe_open

    dtypes: dict[Stored, torch.dtype] = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
    with safe_open(file, "pt") as tensors:
        for name, stored in planned.items():
            data = tensors.get_tensor(name)
            if heads := rotated_heads.get(name.split(".")[-2]):
                data = paired(data, heads)
            if stored == "f16" and data.dtype is not torch.float16 and float(data.abs().max()) > F16_MAX:
                raise TrainError(
                    f"{name} has values outside the range of float16; export it with --quantisation bf16 or q8_0"
                )
            data = data.to(dtypes[stored]).contiguous()
            writer.write_tensor_data((data.view(torch.int16) if stored == "bf16" else data).numpy())
