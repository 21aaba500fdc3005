"""A base model's folder: what must be in it, which weights it holds, and how it is loaded.

Only safetensors are read: a pickle can run code, so a folder that has nothing else is refused. Nothing is downloaded,
and no code in a model's folder is run. Knows files, transformers and bitsandbytes; nothing of data or of training.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from alpasift.graders.local import model_folders
from alpasift.graders.local.file_hash import sha256_of
from alpasift.graders.local.model_folders import INDEX, ModelFilesError, has_tokenizer, read_model_folder
from alpasift.train.artifacts import TrainError

Precision = Literal["bf16", "fp16", "fp32"]
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


@dataclass(frozen=True, slots=True)
class Base:
    """A folder that holds a whole model: its config.json and its weight files, in order."""

    folder: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]

    def sha256(self) -> str:
        """The hash of all weights, read once and cached."""
        return sha256_of(self.weights)


def find_base(folder: Path) -> Base:
    """The model in a folder. Raises TrainError when it is absent, incomplete, or not safetensors."""
    if not folder.is_dir():
        hint = (
            "a GGUF file cannot be trained; give the folder it was converted from"
            if folder.suffix == ".gguf"
            else "download it on a machine with a network, `hf download ORGANISATION/MODEL --local-dir "
            "FOLDER`, and copy it here"
        )
        raise TrainError(f"model folder not found: {folder}; {hint}")
    try:
        found = read_model_folder(folder)
    except ModelFilesError as error:
        raise TrainError(str(error)) from error
    config, weights = found.config, found.weights
    if not (folder / INDEX).is_file():  # transformers then opens this file and no other
        weights = tuple(file for file in weights if file.name == "model.safetensors")
        if not weights:
            raise TrainError(f"{folder} has neither model.safetensors nor {INDEX}; copy the model again")
    if config.get("quantization_config"):
        raise TrainError(
            f"{folder} is already quantised ({config['quantization_config'].get('quant_method')}); train on the "
            "original weights, --method qlora quantises them while loading"
        )
    return Base(folder, config, weights)


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a safetensors file. Raises TrainError unless its bytes are all there."""
    try:
        return model_folders.tensor_shapes(file)
    except ModelFilesError as error:
        raise TrainError(str(error)) from error


def read_json(path: Path, problem: str) -> dict[str, Any]:
    """The object in a JSON file. Raises TrainError that begins with `problem`."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise TrainError(f"{problem}: it has no {path.name}") from error
    except (ValueError, OSError) as error:
        raise TrainError(f"{problem}: {path.name} cannot be read ({type(error).__name__})") from error
    if not isinstance(found, dict):
        raise TrainError(f"{problem}: {path.name} is not a JSON object")
    return found


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder. Raises TrainError when there is none, or it has no end-of-text token."""
    from transformers import AutoTokenizer

    if not has_tokenizer(folder):
        raise TrainError(f"{folder} has no tokenizer (tokenizer.json or tokenizer.model); copy the whole model")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a broken file makes transformers and tokenizers raise anything
        raise TrainError(f"the tokenizer of {folder} cannot be loaded: {_first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise TrainError(
            f"the tokenizer of {folder} has no end-of-text token: the model would never learn to stop. Name one as "
            '"eos_token" in its tokenizer_config.json'
        )
    return tokenizer


def load_model(
    folder: Path,
    *,
    precision: Precision,
    nf4: bool = False,
    compute: Precision | None = None,
    attention: str = "sdpa",
    double_quant: bool = True,
    device: str | None = None,
    dropout: float = 0.0,
) -> Any:
    """A causal language model from a folder, as transformers gives it.

    `nf4` reads its linear layers into 4 bits (bitsandbytes; Dettmers et al. 2023, arXiv 2305.14314), which then compute
    in `compute`. `dropout` is that of attention, where the architecture has one. Raises TrainError.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    find_base(folder)
    extra: dict[str, Any] = {}
    if nf4:
        extra["quantization_config"] = nf4_config(compute or precision, double_quant)
    if device is not None:
        extra["device_map"] = {"": device}
    if dropout and "attention_dropout" in AutoConfig.from_pretrained(folder, local_files_only=True).to_dict():
        extra["attention_dropout"] = dropout
    try:
        return AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, TORCH_NAMES[precision]),
            attn_implementation=attention,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            **extra,
        )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise TrainError(f"the model in {folder} cannot be loaded: {_first_line(error)}") from error


TORCH_NAMES: dict[Precision, str] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def missing_packages(packages: Sequence[str]) -> list[str]:
    """Those that are not installed here."""
    return [package for package in packages if find_spec(package) is None]


def quiet_libraries() -> None:
    """Silence the libraries' own progress bars and their warnings to developers."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(torch|transformers|trl|peft|bitsandbytes|accelerate)(\..*)?")


def nf4_config(compute: Precision, double_quant: bool = True) -> Any:
    """How QLoRA reads weights: NF4, the scales quantised too, computing in `compute`."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=getattr(torch, TORCH_NAMES[compute]),
        bnb_4bit_quant_storage=torch.uint8,
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
