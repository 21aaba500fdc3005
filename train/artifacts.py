"""Folders that are either complete or absent: models, adapters and checkpoints. Write one in `atomic_folder`.

A folder is written beside its place under a temporary name, its manifest last, and then moved into place in one step.
The manifest holds size and sha256 of every file; a folder without one, or that differs from it, is never taken for a
complete one. Knows files; nothing of models.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alpasift.graders import AlpaSiftError

MANIFEST = "manifest.json"
PARTIAL = ".partial"


class TrainError(AlpaSiftError):
    """A training, a forecast or an export that cannot be done as requested."""


class IncompleteFolder(TrainError):
    """A folder that was never finished, or differs from its manifest."""


@contextmanager
def atomic_folder(path: Path, facts: Mapping[str, Any]) -> Iterator[Path]:
    """Give a folder to write into; on leaving it is sealed with `facts` and moved to `path`, replacing an older one.

    An error leaves what was at `path` unchanged and nothing of the new. What a killed process left is deleted by the
    next one that writes there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    old = path.parent / f".{path.name}.old{PARTIAL}"
    if old.exists() and not path.exists():
        old.replace(path)  # a process died between the two moves below
    for abandoned in path.parent.glob(f".{path.name}.*{PARTIAL}"):
        shutil.rmtree(abandoned, ignore_errors=True)
    draft = path.parent / f".{path.name}.{os.getpid()}{PARTIAL}"
    draft.mkdir()
    try:
        yield draft
        seal(draft, facts)
        if path.exists():
            path.replace(old)
            draft.replace(path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            draft.replace(path)
        sync(path.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def seal(folder: Path, facts: Mapping[str, Any]) -> None:
    """Flush every file of a folder to the disk and write its manifest, last."""
    files = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST):
        sync(file)
        files[file.relative_to(folder).as_posix()] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    draft = folder / f"{MANIFEST}{PARTIAL}"
    draft.write_text(json.dumps({**facts, "files": files}, indent=1, ensure_ascii=False), "utf-8")
    sync(draft)
    draft.replace(folder / MANIFEST)
    sync(folder)


def read_manifest(folder: Path, *, hashes: bool = True) -> dict[str, Any]:
    """The facts that a folder was sealed with, after checking that its files are as sealed.

    Without `hashes` only sizes are compared. Raises IncompleteFolder.
    """
    path = folder / MANIFEST
    try:
        facts = json.loads(path.read_text("utf-8"))
        files = dict(facts.pop("files"))
    except FileNotFoundError as error:
        raise IncompleteFolder(f"{folder} has no {MANIFEST}: it was never finished; create it again") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IncompleteFolder(f"{path} cannot be read ({type(error).__name__}); create the folder again") from error
    for name, known in files.items():
        file = folder / name
        if not file.is_file():
            raise IncompleteFolder(f"{folder} is incomplete: {name} is missing; create it again")
        size = file.stat().st_size
        if size != known["bytes"]:
            raise IncompleteFolder(f"{file} has {size:,} bytes, expected {known['bytes']:,}; create it again")
        if hashes and sha256(file) != known["sha256"]:
            raise IncompleteFolder(f"{file} was changed since it was written: its sha256 differs; create it again")
    return dict(facts)


def is_complete(folder: Path) -> bool:
    """Whether a folder was finished and its files are as sealed."""
    try:
        read_manifest(folder)
    except IncompleteFolder:
        return False
    return True


def sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
