"""GGUF models on disk: their parts, and whether all of them are there. Opens no model."""

from __future__ import annotations

import re
from pathlib import Path

from alpasift.graders.local.gguf_header import check_header
from alpasift.graders.local.model_folders import ModelFilesError, NoModel

_PART = re.compile(r"(.*-)(\d{5})-of-(\d{5})\.gguf")


def gguf_parts(path: Path) -> list[Path]:
    """The files of a GGUF model: itself, or all its parts where it is split."""
    part = _PART.fullmatch(path.name)
    return sorted(path.parent.glob(f"{part[1]}*-of-{part[3]}.gguf")) if part else [path]


def check_gguf(path: Path) -> None:
    """Raise ModelFilesError unless all parts of a GGUF model are there, begin as GGUF files do, and make sense."""
    try:
        if path.is_dir():
            raise ModelFilesError(f"{path} is a folder; give the .gguf file in it")
        if not path.exists():
            raise NoModel(f"file not found: {path}; download a GGUF model, or correct the path")
        if not path.is_file():
            raise ModelFilesError(f"{path} is not a regular file; give a .gguf file")
        missing = _missing_parts(path)
        if missing:
            raise ModelFilesError(
                f"{path} is incomplete: missing {', '.join(missing)}; download or copy the model again"
            )
        for part in gguf_parts(path):
            _check_head(part)
        check_header(gguf_parts(path)[0])
    except (OSError, ValueError) as error:  # ValueError: a path that holds a zero byte
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ModelFilesError(f"{path} cannot be read: {reason}") from error


def _missing_parts(path: Path) -> list[str]:
    part = _PART.fullmatch(path.name)
    if not part:
        return []
    wanted = [f"{part[1]}{number:05d}-of-{part[3]}.gguf" for number in range(1, int(part[3]) + 1)]
    return [name for name in wanted if not (path.parent / name).is_file()]


def _check_head(path: Path) -> None:
    with path.open("rb") as file:
        magic = file.read(4)
    if not magic:
        raise ModelFilesError(f"{path} is empty; download it again")
    if magic != b"GGUF":
        raise ModelFilesError(
            f"{path} is not a GGUF file: it begins with {magic!r}; llama.cpp's convert_hf_to_gguf.py makes one"
        )
