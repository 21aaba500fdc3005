"""Files that a command will write: checked before any work is done, and small ones written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from alpasift.batcher.data.files.writing import mode_for, writable_format
from alpasift.graders import AlpaSiftError


class TargetError(AlpaSiftError):
    """A file that could not be written later, or would replace one that must stay."""


def manifest_of(output: str) -> str:
    """Where the manifest of an exported selection lies."""
    return f"{output}.manifest.json"


def check_targets(paths: Sequence[str], *, not_onto: Iterable[object], format_name: str | None = None) -> None:
    """Raise TargetError now for what could not be written later, or would replace what must stay.

    `paths` are the files that will be written, each in a data format or a manifest; `not_onto` what is read or written
    to.
    """
    taken = {Path(str(path)).resolve(): str(path) for path in not_onto}
    for path in paths:
        target = Path(path).resolve()
        if target in taken:
            raise TargetError(f"{path} would replace {taken[target]}; give another file")
        taken[target] = path
        if target.is_dir():
            raise TargetError(f"{path} is a folder; give a file name")
        if target.exists() and not target.is_file():
            raise TargetError(f"{path} is not a regular file; give another")
        if not target.parent.is_dir():
            raise TargetError(f"the folder {target.parent} does not exist; create it first")
        if not os.access(target.parent, os.W_OK):
            raise TargetError(f"the folder {target.parent} is read-only")
        if not path.endswith(".manifest.json"):
            try:
                writable_format(Path(path), format_name)
            except AlpaSiftError as error:
                raise TargetError(str(error)) from error


def write_whole(path: str, text: str) -> None:
    """Write a small file whole or not at all, readable as the user's umask says."""
    target = Path(path).resolve()
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.write_text(text, "utf-8")
        temporary.chmod(mode_for(target))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
