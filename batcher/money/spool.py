"""Replies that wait beside the database while another program holds it: one JSON line each, flushed to disk.

Knows replies and a file; nothing of money or tables. A reply is in the file whole, with its line end, or it was never
acknowledged: only a last line without its end may be passed over. Anything else that cannot be read is an error, since
what stands in the file may be paid for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from alpasift.graders import AlpaSiftError, Reply


class SpoolError(AlpaSiftError):
    """The spool file cannot be read; it is left as it is."""


def spool_of(database: Path) -> Path:
    """The spool file of a database."""
    return database.with_name(database.name + ".spool")


def add(path: Path, replies: Sequence[Reply]) -> None:
    """Add replies to the file and flush them to disk. Raises OSError when they could not all be written."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        size = os.fstat(handle).st_size
        torn = size and os.pread(handle, 1, size - 1) != b"\n"
        lines = "".join(json.dumps(asdict(reply)) + "\n" for reply in replies)
        data = memoryview((("\n" if torn else "") + lines).encode())
        while data:
            data = data[os.write(handle, data) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def read(path: Path) -> list[Reply]:
    """The replies in the file. Raises SpoolError for a whole line that is none."""
    lines = path.read_bytes().split(b"\n")
    replies = []
    for number, line in enumerate(lines, 1):
        try:
            if line:
                replies.append(Reply(**json.loads(line)))
        except (ValueError, TypeError) as error:
            torn = b'"error":' not in line or not line.endswith(b"}")  # cut by a crash before it was acknowledged
            if torn:
                continue
            raise SpoolError(
                f"{path}:{number} holds a reply that this version cannot read ({error}) and that may be paid "
                "for: use the version that wrote it, or move the file away"
            ) from error
    return replies
