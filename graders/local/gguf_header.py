"""The header of a GGUF file, read before llama.cpp reads it: a number that makes no sense ends that program's process.

Format: github.com/ggml-org/ggml, docs/gguf.md, versions 2 and 3. Knows the header only; nothing of weights.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

from alpasift.graders.local.model_folders import ModelFilesError

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
MAX_KEYS, MAX_TENSORS, MAX_NAME = 100_000, 1_000_000, 65_535
LIMITS = {
    "block_count": (1, 512),  # LLAMA_MAX_LAYERS
    "embedding_length": (1, 1 << 20),
    "context_length": (0, 2**31 - 1),
    "feed_forward_length": (0, 1 << 24),
    "vocab_size": (0, 1 << 24),
    "attention.head_count": (0, 1 << 14),
    "attention.head_count_kv": (0, 1 << 14),
    "attention.key_length": (0, 1 << 16),
    "attention.value_length": (0, 1 << 16),
    "rope.dimension_count": (0, 1 << 16),
    "expert_count": (0, 512),  # LLAMA_MAX_EXPERTS
    "expert_used_count": (0, 512),
}
"""What the numbers of an architecture may be: far more than any model has, and no more than llama.cpp takes."""


def check_header(path: Path) -> None:
    """Raise ModelFilesError for a header that no model has. Reads no weights."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            numbers = _numbers(_Reader(data))
    except struct.error as error:
        raise ModelFilesError(f"{path} ends inside its header; download it again") from error
    except (UnicodeDecodeError, ValueError, IndexError) as error:
        raise ModelFilesError(f"{path} has a damaged header ({error}); download it again") from error
    for name, value in numbers.items():
        low, high = LIMITS.get(name.partition(".")[2], (-(2**31), 2**31 - 1))
        values = value if isinstance(value, list) else [value]
        wrong = next((v for v in values if not low <= v <= high), None)
        if wrong is not None:
            raise ModelFilesError(
                f"{path} has {name} = {wrong}, and valid values are {low} to {high:,}; it is damaged, download or "
                f"convert it again"
            )
    _check_together(path, numbers)


def _check_together(path: Path, numbers: dict[str, Any]) -> None:
    """Numbers that must divide each other, where they are single numbers."""
    by_name = {name.partition(".")[2]: value for name, value in numbers.items() if not isinstance(value, list)}
    if "block_count" not in by_name and numbers:
        raise ModelFilesError(f"{path} has no block_count; it is not a language model, or damaged")
    width, heads, kept = (
        by_name.get(name) for name in ("embedding_length", "attention.head_count", "attention.head_count_kv")
    )
    if heads and width and "attention.key_length" not in by_name and width % heads:
        raise ModelFilesError(f"{path} has {heads} heads for {width} dimensions, which is not divisible; it is damaged")
    if heads and kept and heads % kept:
        raise ModelFilesError(
            f"{path} has {heads} heads and {kept} key-value heads, which is not divisible; it is damaged"
        )
    if heads == 0 and kept:
        raise ModelFilesError(f"{path} has no heads and {kept} key-value heads; it is damaged")


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def number(self, form: str) -> Any:
        (value,) = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return value

    def skip(self, size: int) -> None:
        if size > len(self.data) - self.at:
            raise ValueError("it ends too soon")
        self.at += size

    def text(self) -> bytes:
        size = self.number("Q")
        start = self.at
        self.skip(size)
        return self.data[start : self.at]


def _numbers(reader: _Reader) -> dict[str, Any]:
    """The whole numbers of the model's architecture, and lists of them, by their names."""
    reader.skip(4)
    version = reader.number("I")
    if version not in (2, 3):
        raise ValueError(f"version {version}; 2 and 3 are read")
    tensors, keys = reader.number("Q"), reader.number("Q")
    if tensors > MAX_TENSORS or keys > MAX_KEYS:
        raise ValueError(f"{tensors:,} tensors and {keys:,} keys")
    found: dict[str, Any] = {}
    architecture = ""
    for _ in range(keys):
        name = reader.text()
        if len(name) > MAX_NAME:
            raise ValueError(f"a name of {len(name):,} bytes")
        value = _value(reader, reader.number("I"))
        if name == b"general.architecture" and isinstance(value, bytes):
            architecture = value.decode()
        elif isinstance(value, int | list) and not isinstance(value, bool):
            found[name.decode()] = value
    return {name: value for name, value in found.items() if architecture and name.startswith(f"{architecture}.")}


def _value(reader: _Reader, kind: int) -> Any:
    """A value; of arrays only short ones of whole numbers are kept."""
    if kind == _STRING:
        return reader.text()
    if kind != _ARRAY:
        return reader.number(_FORMS[kind]) if kind in _FORMS else _unknown(kind)
    inner, count = reader.number("I"), reader.number("Q")
    if inner == _STRING:
        for _ in range(count):
            reader.text()
        return None
    size = _SIZES[inner] if inner in _SIZES else _unknown(inner)
    if count > 1024 or inner in (6, 7, 12):
        reader.skip(size * count)
        return None
    return [reader.number(_FORMS[inner]) for _ in range(count)]


def _unknown(kind: int) -> Any:
    raise ValueError(f"a value of the unknown kind {kind}")
