"""Which model it is, and whether its files are whole: their hash, remembered so that gigabytes are read once, and their heads.

Knows files; nothing of engines.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path


def sha256_of(files: Sequence[Path]) -> str:
    """The sha256 of the files' bytes, one after the other, remembered by path, size and time of change."""
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    cache = Path("~/.cache/alpasift/hashes.json").expanduser()
    key = json.dumps(stats)
    try:
        known = json.loads(cache.read_bytes())
        if isinstance(known[key], str):
            return str(known[key])
    except (OSError, ValueError, KeyError, TypeError):
        known = {}
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            while chunk := content.read(1 << 20):
                digest.update(chunk)
    known = known if isinstance(known, dict) else {}
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        draft = cache.with_name(f"hashes.{os.getpid()}")
        draft.write_text(json.dumps({**known, key: digest.hexdigest()}))
        draft.replace(cache)
    except OSError:
        pass  # it is hashed again the next time
    return digest.hexdigest()


def gguf_parts(path: Path) -> list[Path]:
    """The files of a GGUF model: itself, or all its parts where it is split."""
    split = re.fullmatch(r"(.*-)\d{5}(-of-\d{5}\.gguf)", path.name)
    return sorted(path.parent.glob(f"{split[1]}*{split[2]}")) if split else [path]


class NotSafetensors(ValueError):
    """A file that is no safetensors file, or not all of one. `needed` is its length by its head, None where it has none."""

    def __init__(self, file: Path, size: int, needed: int | None = None) -> None:
        self.size, self.needed = size, needed
        super().__init__(
            f"{file} has {size:,} bytes and needs {needed:,}" if needed else f"{file} is no safetensors file"
        )


def safetensors_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a safetensors file, whose bytes are all there. Raises NotSafetensors and OSError.

    Format: 8 bytes of length, a JSON head, the tensors (https://github.com/huggingface/safetensors).
    """
    size = file.stat().st_size
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        if not 2 <= length <= min(size - 8, 100_000_000):
            raise NotSafetensors(file, size)
        try:
            entries = {
                name: entry for name, entry in json.loads(content.read(length)).items() if name != "__metadata__"
            }
            needed = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
            shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise NotSafetensors(file, size) from error
    if needed != size:
        raise NotSafetensors(file, size, needed)
    return shapes
