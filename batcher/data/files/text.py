"""The content of a text file: unpacked from .gz or .zst as a stream, and decoded as UTF-8.

What is compressed may not grow without end: `open_content` raises DatasetError when far more comes out than text can
hold.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from alpasift.batcher.data.files.file_row import DatasetError

PACKED = {"gz": (b"\x1f\x8b", "gzip"), "zst": (b"\x28\xb5\x2f\xfd", "zstd")}
"""By suffix: the first bytes of such a file, and Arrow's name of the compression."""

LARGEST_EXPANSION = 200  # times its compressed size ...
EXPANSION_ALLOWED = 10**9  # ... once more bytes than these have come out
LARGEST_CONTENT = 64 * 10**9


def open_content(path: Path, packing: str) -> BinaryIO:
    """The bytes of the file; `packing` is "gz", "zst" or "" where it is not compressed."""
    if not packing:
        return path.open("rb", buffering=2**20)
    return io.BufferedReader(_Unpacked(path, PACKED[packing][1]), 2**20)


class _Unpacked(io.RawIOBase):
    """The content of a .gz or .zst, that ends in an error when far more comes out than such data can hold."""

    def __init__(self, path: Path, codec: str) -> None:
        self._path, self._size, self._out = path, path.stat().st_size, 0
        self._stream = pa.CompressedInputStream(pa.OSFile(str(path)), codec)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = int(self._stream.readinto(buffer))
        self._out += count
        check_expansion(self._path, self._out, self._size)
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()


def check_expansion(path: Path, content: int, size: int) -> None:
    if content > LARGEST_CONTENT or (content > EXPANSION_ALLOWED and content > LARGEST_EXPANSION * size):
        raise DatasetError(
            f"{path}: {size:,} bytes unpack to more than {content / 1e9:.1f} GB, far more than text "
            "compresses; nothing was imported. Unpack it yourself if you trust it"
        )


def decode_line(path: Path, number: int, offset: int, line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise other_encoding(path, number, offset + error.start, line[error.start]) from error


def other_encoding(path: Path, number: int, offset: int, byte: int) -> DatasetError:
    return DatasetError(
        f"{path}:{number}: byte 0x{byte:02x} at offset {offset:,} is not UTF-8; "
        "convert the file, for instance with `iconv -f LATIN1 -t UTF-8 IN > OUT`"
    )
