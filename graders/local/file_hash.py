"""Which model it is: the sha256 of its files, remembered so that gigabytes are read once."""

from __future__ import annotations

import hashlib
import json
import os
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
