"""A base model's folder: what must be in it, which weights it holds, and how it is opened.

Only safetensors are read; a pickle can run code, so a folder that has nothing else is refused. Nothing is downloaded and
no code that lies beside a model is run. Knows files, transformers and bitsandbytes; nothing of data or of training.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from graders.model_files import NotSafetensors, safetensors_shapes, sha256_of
from train.artifacts import TrainError

Precision = Literal["bf16", "fp16", "fp32"]
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True, slots=True)
class Base:
    """A folder that holds a whole model: its config.json and its weight files, in order."""

    folder: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]

    def sha256(self) -> str:
        """The hash of all weights, read once and remembered."""
        return sha256_of(self.weights)


def find_base(folder: Path) -> Base:
    """The model in a folder. Raises TrainError when it is not there, not whole, or not safetensors."""
    if not folder.is_dir():
        hint = "a GGUF file cannot be trained; take the folder it was made from" if folder.suffix == ".gguf" else (
            "download it where there is a network, `hf download ORGANISATION/MODEL --local-dir FOLDER`, and carry it here"
        )  # fmt: skip
        raise TrainError(f"there is no model folder {folder}; {hint}")
    config = read_json(folder / "config.json", f"{folder} is no model folder")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = read_json(index, f"{folder} is not whole").get("weight_map")
        if not isinstance(named, dict) or not named:
            raise TrainError(f"{index} names no weights; copy the model again")
        foreign = [name for name in named.values() if not isinstance(name, str) or Path(name).name != name]
        if foreign:
            raise TrainError(f"{index} names {foreign[0]!r}, which is no file of this folder; copy the model again")
        weights = tuple(folder / name for name in sorted(set(named.values())))
    else:
        weights = (folder / "model.safetensors",)
    missing = [file.name for file in weights if not file.is_file()]
    if missing:
        pickles = sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern))
        if pickles and not index.is_file():
            raise TrainError(
                f"{folder} has its weights in {pickles[0]}, a pickle, which can run code when it is read; AlpaSift reads "
                "safetensors only. Take the model's safetensors files, or convert them where you trust the source"
            )
        raise TrainError(f"{folder} is not whole: {', '.join(missing[:3])} is missing; copy the model again")
    for file in weights:
        check_safetensors(file)
    if config.get("quantization_config"):
        raise TrainError(
            f"{folder} is quantised already ({config['quantization_config'].get('quant_method')}); train on the original "
            "weights, --method qlora quantises them as it reads them"
        )
    return Base(folder, config, weights)


def check_safetensors(file: Path) -> None:
    """Raise TrainError unless the head of a safetensors file can be read and its bytes are all there."""
    try:
        safetensors_shapes(file)
    except NotSafetensors as error:
        if error.needed is None:
            raise TrainError(f"{file} is not a safetensors file; copy it again from where it was published") from error
        raise TrainError(f"{error}; copy it again") from error


def read_json(path: Path, otherwise: str) -> dict[str, Any]:
    """The object in a JSON file. Raises TrainError that begins with `otherwise`."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise TrainError(f"{otherwise}: it has no {path.name}") from error
    except (ValueError, OSError) as error:
        raise TrainError(f"{otherwise}: {path.name} cannot be read ({type(error).__name__})") from error
    if not isinstance(found, dict):
        raise TrainError(f"{otherwise}: {path.name} holds no object")
    return found


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder. Raises TrainError when there is none, or it has no end-of-text token."""
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise TrainError(f"{folder} has no tokenizer (tokenizer.json or tokenizer.model); copy the model whole")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a broken file makes transformers and tokenizers raise
        raise TrainError(f"the tokenizer of {folder} cannot be opened: {_first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise TrainError(
            f"the tokenizer of {folder} has no end-of-text token: the model would never learn to stop. Name one as "
            '"eos_token" in its tokenizer_config.json'
        )
    return tokenizer


def load_model(
    folder: Path, *, precision: Precision, nf4: bool = False, compute: Precision | None = None, attention: str = "sdpa",
    double_quant: bool = True, device: str | None = None, dropout: float = 0.0,
) -> Any:  # fmt: skip
    """A causal language model from a folder, as transformers gives it.

    `nf4` reads its linear layers into 4 bits (bitsandbytes; Dettmers et al. 2023, arXiv 2305.14314), which then compute in
    `compute`. `dropout` is that of attention, where the architecture has one. Raises TrainError.
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
            folder, dtype=getattr(torch, TORCH_NAMES[precision]), attn_implementation=attention, local_files_only=True,
            trust_remote_code=False, use_safetensors=True, **extra,
        )  # fmt: skip
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise TrainError(f"the model in {folder} cannot be opened: {_first_line(error)}") from error


TORCH_NAMES: dict[Precision, str] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def nf4_config(compute: Precision, double_quant: bool = True) -> Any:
    """How QLoRA reads weights: NF4, the scales quantised too, computing in `compute`."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=getattr(torch, TORCH_NAMES[compute]), bnb_4bit_quant_storage=torch.uint8,
    )  # fmt: skip


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
