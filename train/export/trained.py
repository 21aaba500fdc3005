"""The trained model that is exported: found in its folder, checked byte by byte, with the base its adapter belongs to.

Call `find_trained`. Reads manifests and heads of files; loads no weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpasift.train.artifacts import MANIFEST, TrainError, read_manifest
from alpasift.train.models import Base, Precision, find_base, read_json, tensor_shapes

ADAPTER = "adapter_model.safetensors"
_REQUIRED = {"adapter": ("base", "base_sha256", "precision", "chat_template"), "model": ("precision", "chat_template")}


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained model's folder, complete, and its adapter's base; `base` is None where all weights were trained."""

    folder: Path
    facts: dict[str, Any]
    base: Base | None

    @property
    def weights(self) -> Base:
        """The folder that holds the architecture: the base, or the trained model itself."""
        return self.base or find_base(self.folder)

    @property
    def precision(self) -> Precision:
        """Of the computation in training."""
        return _precision(self.facts)

    @property
    def nf4(self) -> Mapping[str, Any]:
        """How the base was quantised in training; empty where it was not."""
        return self.facts.get("nf4") or {}

    @property
    def chat_template(self) -> str:
        """The template under which the model was trained."""
        return str(self.facts["chat_template"] or "")

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer is: beside the trained weights, else beside the base."""
        here = any((self.folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))
        return self.folder if here or self.base is None else self.base.folder


def find_trained(run: Path, base: Path | None = None) -> Trained:
    """The model in RUN, RUN/model or an export, with its base. Every file is compared with its manifest.

    `base` is where the base is now, if it was moved. Raises TrainError, of which IncompleteFolder.
    """
    if not run.is_dir():
        raise TrainError(f"there is no folder {run}; give the folder that `alpasift train -o` wrote")
    folder = run if (run / MANIFEST).is_file() or not (run / "model").is_dir() else run / "model"
    if folder == run and not (run / MANIFEST).is_file() and (run / "run.json").is_file():
        raise TrainError(f"the training in {run} has not finished; the same `alpasift train` command resumes it")
    facts = read_manifest(folder)
    kind = str(facts.get("kind"))
    missing = [name for name in _REQUIRED[kind] if name not in facts] if kind in _REQUIRED else ["kind"]
    if missing:
        raise TrainError(f"{folder / MANIFEST} has no {', '.join(missing)}: it was not written by `alpasift train`")
    _precision(facts)
    if kind == "model":
        if base is not None:
            raise TrainError(f"{folder} has full weights and needs no base; remove --base")
        find_base(folder)
        return Trained(folder, facts, None)
    return Trained(folder, facts, _base_of(folder, facts, base))


def _base_of(folder: Path, facts: Mapping[str, Any], moved: Path | None) -> Base:
    """The base that an adapter was trained on, by the hash of its weights."""
    place = moved or Path(facts["base"])
    if moved is None and not place.is_dir():
        raise TrainError(f"{folder} was trained on {place}, which no longer exists; give its new path with --base")
    found = find_base(place)
    if (digest := found.sha256()) != facts["base_sha256"]:
        raise TrainError(
            f"{folder} is an adapter of another base: it was trained on weights {facts['base_sha256'][:12]} "
            f"({facts['base']}), and {place} holds {digest[:12]}; give the right folder with --base"
        )
    _check_adapter(folder, found)
    return found


def _check_adapter(folder: Path, base: Base) -> None:
    """Raise TrainError unless every matrix of the adapter belongs to one of the base, of its size."""
    settings = read_json(folder / "adapter_config.json", f"{folder} is not an adapter")
    if settings.get("peft_type") != "LORA":
        raise TrainError(f"{folder} is an adapter of type {settings.get('peft_type')}; AlpaSift supports LORA only")
    file = folder / ADAPTER
    if not file.is_file():
        pickles = sorted(p.name for p in folder.glob("adapter_model*.bin"))
        problem = (
            f"its weights are in {pickles[0]}, a pickle, which can run code when loaded"
            if pickles
            else "it has no weights"
        )
        raise TrainError(f"{folder}: {problem}; only {ADAPTER} is read")
    shapes = {name: shape for weights in base.weights for name, shape in tensor_shapes(weights).items()}
    for name, shape in tensor_shapes(file).items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name)
        if not match:
            continue  # peft decides; an adapter export checks what vLLM needs
        known, side = shapes.get(f"{match[1]}.weight"), "BA".index(match[2])
        if known is None or known[side] != shape[side]:
            size = f"{known[side]} wide there and {shape[side]} here" if known else "missing there"
            raise TrainError(
                f"{folder} does not fit {base.folder}: {match[1]} is {size}; give the right folder with --base"
            )


def _precision(facts: Mapping[str, Any]) -> Precision:
    known: dict[str, Precision] = {"bf16": "bf16", "fp16": "fp16", "fp32": "fp32"}
    found = known.get(str(facts["precision"]))
    if found is None:
        raise TrainError(f"the manifest has a precision of {facts['precision']!r}; it must be {', '.join(known)}")
    return found
