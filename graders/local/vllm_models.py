"""The model folder and the LoRA adapter that a vLLM spec names, looked at before anything is loaded.

`graders.local.model_folders` says whether a folder is whole; here is what vLLM asks of it besides. Opens no model.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alpasift.graders.interface.errors import BackendError, BackendUnavailable
from alpasift.graders.local.model_folders import (
    ModelFilesError,
    NoModel,
    chat_template,
    model_path,
    read_json,
    read_model_folder,
    tensor_shapes,
)

CONTEXT = 4096
"""Tokens of one row and its answer where nobody says otherwise; less where the model was trained on less."""
ADAPTER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""vllm.config.lora.MaxLoRARanks"""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
TRAINED_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")


@dataclass(frozen=True, slots=True)
class Model:
    """A model's folder that has been looked at. `files` make its identity; `tensors` are the shapes of its weights."""

    folder: Path
    files: list[Path]
    context: int
    dtype: str
    quantization: str
    template: str
    tensors: dict[str, tuple[int, ...]] = field(repr=False)

    @property
    def parameters(self) -> int:
        """As many as the tensors have numbers; of packed ones (AWQ, GPTQ) what their bytes hold at 4.5 bits each."""
        if self.quantization in ("none", "fp8", "compressed-tensors"):
            return sum(math.prod(shape) for shape in self.tensors.values())
        size = sum(file.stat().st_size for file in self.files if file.suffix == ".safetensors")
        return round(size * 8 / 4.5)


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter's folder. `room` is the rank that vLLM makes room for, `template` the chat template it brings."""

    folder: Path
    files: list[Path]
    room: int
    template: str


def look_at_spec(argument: str, context: int | None = None) -> tuple[Model, Adapter | None]:
    """The model and the adapter that FOLDER or BASE+ADAPTER names. Raises as `look_at` does."""
    base, adapter = split(argument)
    model = look_at(base, context)
    return model, look_at_adapter(adapter, model) if adapter else None


def split(argument: str) -> tuple[Path, Path | None]:
    """BASE+ADAPTER taken apart; a folder whose own name has a plus is itself. Raises BackendError for no path."""
    if "\0" in argument:
        raise BackendError(f"{argument!r} is not a path")
    if model_path(argument).is_dir() or "+" not in argument:
        return model_path(argument), None
    plus = [i for i, letter in enumerate(argument) if letter == "+"]
    cut = next((i for i in reversed(plus) if model_path(argument[:i]).is_dir()), plus[-1])
    return model_path(argument[:cut]), model_path(argument[cut + 1 :])


def look_at(folder: Path, context: int | None = None) -> Model:
    """Look at a model's folder without loading anything.

    Raises BackendUnavailable when it does not exist, BackendError with what is wrong and what to do.
    """
    if folder.is_file():
        what = "a GGUF file; use llama_cpp:" + str(folder) if folder.suffix == ".gguf" else "a file; name its folder"
        raise BackendError(f"{folder} is {what}")
    try:
        found = read_model_folder(folder)
        shapes = {name: shape for file in found.weights for name, shape in tensor_shapes(file).items()}
    except NoModel as error:
        raise BackendUnavailable(
            f"{error}, and the local cache has no model of that name; download it, or correct the path"
        ) from error
    except ModelFilesError as error:
        raise BackendError(str(error)) from error
    config = found.config
    _check_config(folder, config)
    inner: dict[str, Any] = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    dtype = str(config.get("dtype") or config.get("torch_dtype") or inner.get("torch_dtype") or "bfloat16")
    extra = [folder / name for name in TOKENIZER_FILES if (folder / name).exists()]
    return Model(
        folder,
        [*found.weights, folder / "config.json", *extra],
        _context_of(folder, inner, context),
        dtype if dtype in ("float16", "bfloat16") else "bfloat16",
        str((config.get("quantization_config") or {}).get("quant_method", "none")),
        found.chat_template,
        shapes,
    )


def _check_config(folder: Path, config: dict[str, Any]) -> None:
    """Raise for a model that brings code of its own, or that writes no text as far as its name and vLLM's list tell."""
    if "auto_map" in config:
        raise BackendError(
            f"{folder} requires its own Python code (auto_map in config.json), which is never run; choose a model "
            "that transformers supports"
        )
    if not config.get("architectures"):
        raise BackendError(f"{folder}/config.json has no architecture; choose a model that generates text")
    name = str(config["architectures"][0])
    spec = find_spec("vllm")
    places = list(spec.submodule_search_locations or []) if spec else []
    registry = Path(places[0], "model_executor/models/registry.py") if places else None
    known = registry.read_text("utf-8", "replace") if registry and registry.exists() else ""
    if f'"{name}"' in known or (not known and name.endswith("ForCausalLM")):
        return
    if not name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
        raise BackendError(
            f"{folder} has the architecture {name}, which vLLM does not support; choose one that generates text"
        )


def _context_of(folder: Path, config: dict[str, Any], context: int | None) -> int:
    """Tokens of a row and its answer: as asked for, else CONTEXT or what the model was trained on."""
    trained = next((int(config[key]) for key in TRAINED_CONTEXT if isinstance(config.get(key), int)), None)
    if context is not None and context < 1:
        raise BackendError(f"--context {context}: must be 1 or more")
    if context is not None and trained is not None and context > trained:
        raise BackendError(f"--context {context}: {folder} supports {trained} tokens; give that or less")
    return context or min(trained or CONTEXT, CONTEXT)


def look_at_adapter(folder: Path, base: Model) -> Adapter:
    """Look at a LoRA adapter's folder and whether it fits the base. Raises as `look_at` does."""
    if not folder.is_dir():
        raise BackendUnavailable(f"there is no adapter folder {folder}; correct the path after the +")
    settings, file = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    if not settings.exists():
        raise BackendError(f"{folder} has no adapter_config.json; give the folder that peft wrote")
    if not file.exists():
        other = "only safetensors are loaded; save it again with safe_serialization=True"
        lost = "train it again, or give another folder"
        raise BackendError(
            f"{folder} has no adapter_model.safetensors; {other if list(folder.glob('*.bin')) else lost}"
        )
    try:
        config, shapes, template = read_json(settings), tensor_shapes(file), chat_template(folder)
    except ModelFilesError as error:
        raise BackendError(str(error)) from error
    rank = _rank_of(folder, config)
    for name, shape in shapes.items():
        _check_fit(folder, config, rank, base, name, shape)
    rank = max([rank, *(config.get("rank_pattern") or {}).values()])
    room = next((allowed for allowed in ADAPTER_RANKS if allowed >= rank), ADAPTER_RANKS[-1])
    return Adapter(folder, [file, settings], room, template)


def _rank_of(folder: Path, config: dict[str, Any]) -> int:
    """The rank of an adapter. Raises BackendError for what vLLM does not serve."""
    kind, rank = str(config.get("peft_type", "")), config.get("r")
    if kind != "LORA":
        raise BackendError(f"{folder} is an adapter of type {kind or 'unknown'}; vLLM supports LORA only")
    if not isinstance(rank, int) or not 1 <= rank <= ADAPTER_RANKS[-1]:
        raise BackendError(f"{folder} has rank {rank}; vLLM supports ranks from 1 to {ADAPTER_RANKS[-1]}")
    for key, plain in (("use_dora", False), ("bias", "none"), ("modules_to_save", None)):
        if config.get(key, plain) not in (plain, None, []):
            raise BackendError(
                f"{folder} has {key}={config[key]!r}, which vLLM does not support; merge it into its base"
            )
    return rank


def _check_fit(folder: Path, config: dict[str, Any], rank: int, base: Model, name: str, shape: tuple[int, ...]) -> None:
    """Raise BackendError unless one tensor of an adapter fits the weight of the base that it changes."""
    match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])(?:\.\w+)?\.weight", name)
    if not match:
        return
    made_for = f"it was made for {config.get('base_model_name_or_path') or 'an unknown model'}"
    weight = base.tensors.get(f"{match[1]}.weight")
    packed = any(known.startswith(f"{match[1]}.") for known in base.tensors)
    if weight is None and not packed:
        raise BackendError(f"{folder} does not fit {base.folder}, which has no {match[1]}; {made_for}")
    place = 1 if match[2] == "A" else 0
    if weight is not None and base.quantization == "none" and shape[place] != weight[place]:
        raise BackendError(
            f"{folder} does not fit {base.folder}: {match[1]} is {weight[place]} wide in the adapter and "
            f"{shape[place]} in the base; {made_for}"
        )
    if shape[1 - place] != rank and not config.get("rank_pattern"):
        raise BackendError(
            f"{folder} states rank {rank} and contains weights of rank {shape[1 - place]}; save it again"
        )
