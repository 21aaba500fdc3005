"""The models of a bundle: carried in it, or linked, which is only described and checked where it lies.

Start at `check_models`. Knows GGUF files with all their parts and model folders; nothing of packages.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from alpasift.batcher.offline.manifest import BundleError, Entry, LinkedModel, difference
from alpasift.graders.local.file_hash import sha256_of
from alpasift.graders.local.gguf_files import check_gguf, gguf_parts
from alpasift.graders.local.model_folders import ModelFilesError, read_model_folder


def check_models(models: Sequence[Path]) -> None:
    """Raise BundleError for a model that is not complete, and for two of the same name."""
    names = set()
    for model in models:
        try:
            if model.is_dir():
                read_model_folder(model)
            else:
                check_gguf(model)
        except ModelFilesError as error:
            raise BundleError(f"{error}; --model takes a GGUF file or a complete model folder") from error
        if model.resolve().name in names or model.name in names:
            raise BundleError(f"two models are named {model.name}; rename one")
        names.add(model.name)


def model_files(model: Path) -> list[tuple[str, Path]]:
    """(path below models/, file) of every file of a model; hidden files and folders are left out."""
    if not model.is_dir():
        return [(part.name, part) for part in gguf_parts(model)]
    found = []
    for top, folders, names in os.walk(model):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(top) / name for name in names if not name.startswith(".")]
    base = model.resolve().name if model.name in ("", ".", "..") else model.name
    return [(f"{base}/{path.relative_to(model).as_posix()}", path) for path in sorted(found) if path.is_file()]


def backend_of(name: str) -> str:
    """The backend that loads a model of this file or folder name."""
    return "llama_cpp" if name.endswith(".gguf") else "vllm"


def describe_model(model: Path) -> LinkedModel:
    """What the files of a model must be, for a manifest that does not carry them."""
    entries = [Entry(name, path.stat().st_size, sha256_of([path])) for name, path in model_files(model)]
    return LinkedModel(model.name, tuple(entries))


def check_linked(linked: Sequence[LinkedModel], models: Sequence[Path]) -> tuple[list[str], list[str]]:
    """(problems, notes) of linked models against where they lie here; a model is found by its name."""
    problems, notes = [], []
    here = {model.expanduser().name: model.expanduser() for model in models}
    for one in linked:
        model = here.pop(one.name, None)
        if model is None:
            notes.append(f"the model {one.name} is not included; to check your copy: --model PATH/{one.name}")
            continue
        if not model.exists():
            problems.append(f"{model}: missing")
            continue
        files = dict(model_files(model))
        for entry in one.files:
            path = files.pop(entry.path, None)
            problem = "missing" if path is None else difference(path, entry)
            problems += [f"{model.parent / entry.path}: {problem}"] if problem else []
        problems += [f"{model.parent / name}: not in the manifest" for name in sorted(files)]
    problems += [f"{model}: the manifest has no model of that name" for model in here.values()]
    return problems, notes
