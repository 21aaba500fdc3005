"""Model folders as Hugging Face lays them out: what must be in one, and whether it is whole. Call `read_model_folder`.

One verdict for everybody who looks at a folder: the vLLM grader, training, `alpasift doctor` and bundles. Only
safetensors are accepted, since a pickle can run code when it is read. Opens no model and downloads nothing; what a
folder's architecture can be used for is the reader's to say.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpasift.graders.interface.errors import AlpaSiftError

INDEX = "model.safetensors.index.json"
AGAIN = "download or copy the model again"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class ModelFilesError(AlpaSiftError):
    """The files of a model are not whole, or are of a kind that is never read."""


class NoModel(ModelFilesError):
    """There is nothing at the path of a model."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A whole model folder: its config.json, its weight files in order of name, the chat template ("" for none)."""

    folder: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]
    chat_template: str


def read_model_folder(folder: Path) -> ModelFolder:
    """The model in a folder: config, tokenizer and all weights as safetensors, each file as long as its head says.

    The weights are the files that model.safetensors.index.json names, all in this folder, or every *.safetensors where
    there is no index. Raises NoModel when there is no such folder, else ModelFilesError with what is wrong.
    """
    if not folder.is_dir():
        raise NoModel(f"folder not found: {folder}")
    names = _weight_names(folder)
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    if not has_tokenizer(folder):
        missing.append("a tokenizer (tokenizer.json or tokenizer.model)")
    missing += [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelFilesError(f"{folder} is incomplete: missing {_listed(missing)}; {AGAIN}")
    weights = tuple(folder / name for name in names)
    for file in weights:
        tensor_shapes(file)
    return ModelFolder(folder, read_json(folder / "config.json"), weights, chat_template(folder))


def has_tokenizer(folder: Path) -> bool:
    pair = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    return pair or any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def chat_template(folder: Path) -> str:
    """The chat template of a folder, "" where it has none. Raises ModelFilesError for a file that cannot be read."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text("utf-8", "replace")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).exists():
            found = read_json(folder / name).get("chat_template")
            if isinstance(found, list):  # several, by name
                found = next((one.get("template") for one in found if one.get("name") == "default"), None)
            if found:
                return str(found)
    return ""


def model_path(name: str) -> Path:
    """The path `name`, or the folder of a model of that name ("org/model") in Hugging Face's local cache."""
    path = Path(name).expanduser()
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return path
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    repository = hub / f"models--{name.replace('/', '--')}"
    try:
        commit = (repository / "refs" / "main").read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return path
    found = repository / "snapshots" / commit
    return found if re.fullmatch(r"[0-9a-f]+", commit) and found.is_dir() else path


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model. Raises ModelFilesError."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ModelFilesError(f"{path.parent} is incomplete: missing {path.name}; {AGAIN}") from error
    except (OSError, ValueError) as error:
        raise ModelFilesError(f"{path} cannot be read ({type(error).__name__}); {AGAIN}") from error
    if not isinstance(content, dict):
        raise ModelFilesError(f"{path} is not a JSON object; {AGAIN}")
    return content


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a safetensors file whose bytes are all there. Raises ModelFilesError.

    Format: 8 bytes of length, a JSON head, the tensors (https://github.com/huggingface/safetensors).
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as content:
            length = int.from_bytes(content.read(8), "little")
            if not 2 <= length <= min(size - 8, 100_000_000):
                raise ModelFilesError(f"{file} is not a safetensors file; {AGAIN}")
            head = content.read(length)
        entries = {name: entry for name, entry in json.loads(head).items() if name != "__metadata__"}
        needed = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
    except OSError as error:
        raise ModelFilesError(f"{file} cannot be read: {error.strerror}; {AGAIN}") from error
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ModelFilesError(f"{file} is not a safetensors file; {AGAIN}") from error
    if needed != size:
        raise ModelFilesError(f"{file} has {size:,} bytes and needs {needed:,}; {AGAIN}")
    return shapes


def _weight_names(folder: Path) -> list[str]:
    """The files of weights that a folder should hold. Raises ModelFilesError for pickles and for a bad index."""
    index = folder / INDEX
    if index.is_file():
        table = read_json(index).get("weight_map")
        if not isinstance(table, dict) or not table:
            raise ModelFilesError(f"{index} lists no weights; {AGAIN}")
        for name in table.values():
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
                raise ModelFilesError(
                    f"{index} lists {name!r}, which is not a safetensors file of this folder; {AGAIN}"
                )
        return sorted(set(table.values()))
    found = sorted(file.name for file in folder.glob("*.safetensors"))
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles and not found:
        raise ModelFilesError(
            f"{folder} has its weights in {pickles[0]}, a pickle, which can run code when loaded; only "
            f"safetensors are loaded. Use the model's safetensors files, or convert them if you trust the source"
        )
    return found or ["model.safetensors"]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
