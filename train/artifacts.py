"""Folders that are either whole or not there: models, adapters and checkpoints.

A folder is written beside its place under a name that says so, its manifest last, and then moved into place in one
step. The manifest holds size and sha256 of every file; a folder without one, or that differs from it, is never taken
for a whole one. Knows files; nothing of models.
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

from graders import AlpaSiftError

MANIFEST = "manifest.json"
_PARTIAL = ".partial"


class TrainError(AlpaSiftError):
    """A training, a forecast or an export that cannot be done as asked."""


class NotWhole(TrainError):
    """A folder that was never finished, or is not what its manifest says."""


@contextmanager
def whole_folder(path: Path, facts: Mapping[str, Any]) -> Iterator[Path]:
    """Give a folder to write into; on leaving it is sealed with `facts` and stands at `path`, in the place of an older one.

    An error leaves what stood at `path` as it was and nothing of the new. What a killed process left is swept up by the
    next to write there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    old = path.parent / f".{path.name}.old{_PARTIAL}"
    if old.exists() and not path.exists():
        old.replace(path)  # the process died between the two moves below
    for left in path.parent.glob(f".{path.name}.*{_PARTIAL}"):
        shutil.rmtree(left, ignore_errors=True)
    draft = path.parent / f".{path.name}.{os.getpid()}{_PARTIAL}"
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
        _sync(path.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def seal(folder: Path, facts: Mapping[str, Any]) -> None:
    """Flush every file of a folder to the disk and write its manifest, last."""
    files = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST):
        _sync(file)
        files[file.relative_to(folder).as_posix()] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    draft = folder / f"{MANIFEST}{_PARTIAL}"
    draft.write_text(json.dumps({**facts, "files": files}, indent=1, ensure_ascii=False), "utf-8")
    _sync(draft)
    draft.replace(folder / MANIFEST)
    _sync(folder)


def read_manifest(folder: Path, *, hashes: bool = True) -> dict[str, Any]:
    """The facts that a folder was sealed with, once its files were found to be as sealed.

    Without `hashes` only sizes are compared. Raises NotWhole.
    """
    path = folder / MANIFEST
    try:
        facts = json.loads(path.read_text("utf-8"))
        files = dict(facts.pop("files"))
    except FileNotFoundError as error:
        raise NotWhole(f"{folder} has no {MANIFEST}: it was never finished; make it again") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotWhole(f"{path} cannot be read ({type(error).__name__}); make the folder again") from error
    for name, known in files.items():
        file = folder / name
        if not file.is_file():
            raise NotWhole(f"{folder} is not whole: {name} is missing; make it again")
        size = file.stat().st_size
        if size != known["bytes"]:
            raise NotWhole(f"{file} has {size:,} bytes, its manifest says {known['bytes']:,}; make it again")
        if hashes and sha256(file) != known["sha256"]:
            raise NotWhole(f"{file} is not the file that was written: its sha256 differs; make it again")
    return dict(facts)


def is_whole(folder: Path) -> bool:
    """Whether a folder was finished and its files are as they were sealed."""
    try:
        read_manifest(folder)
    except NotWhole:
        return False
    return True


def sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
