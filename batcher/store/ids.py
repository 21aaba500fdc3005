"""Ids: hashes of content, and random ones.

A content id is a uuid made of 128 bits of sha256. Rows that are found by such an id carry the version of the hash
(`id_version`), so that `alpasift doctor --verify` can make each anew and compare.
"""

from __future__ import annotations

import hashlib
import uuid
from datetime import UTC, datetime

ID_VERSION = 1
"""Version of `hash_id` and of what is hashed by it; the columns id_version hold it."""


def utc_now() -> datetime:
    """Now, in UTC, without a zone: what the timestamp columns hold."""
    return datetime.now(UTC).replace(tzinfo=None)


def new_id() -> str:
    return str(uuid.uuid4())


def hash_id(*parts: str | bytes) -> str:
    """128 bits of sha256 over length-prefixed parts, written as a uuid."""
    pieces = []
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        pieces.append(len(data).to_bytes(8, "big"))
        pieces.append(data)
    return as_id(hashlib.sha256(b"".join(pieces)).hexdigest())


def as_id(h: str) -> str:
    """The first 32 of some hexadecimal digits, written as a uuid."""
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:32]}"
