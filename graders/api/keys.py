"""The API key: where it comes from, and how it is kept out of every message.

It comes from the environment, or from a file that only its owner may read; it is never printed.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from base64 import b64encode
from functools import lru_cache
from pathlib import Path

from alpasift.graders import BackendUnavailable

NO_KEY = "no key; set OPENAI_API_KEY, or OPENAI_API_KEY_FILE to a file of mode 600"


def api_key() -> str | None:
    """The key from OPENAI_API_KEY, else from the file that OPENAI_API_KEY_FILE names, which only its owner may read."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if key:
        _used.add(key)
        return key
    named = os.environ.get("OPENAI_API_KEY_FILE")
    if not named:
        return None
    path = Path(named)
    try:
        mode = path.stat().st_mode
        text = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BackendUnavailable(f"the key file {path} cannot be read: {getattr(error, 'strerror', error)}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise BackendUnavailable(f"others can read the key file {path}; `chmod 600 {path}` and run again")
    if text:
        _used.add(text)
    return text or None


def clean(text: str) -> str:
    """A server's text for a message: one line, no key in it, at most 300 characters."""
    text = text[:10_000].encode("utf-8", "backslashreplace").decode().replace("\0", "")
    text = " ".join(without_key(text).split())
    return text if len(text) <= 300 else text[:299] + "\N{HORIZONTAL ELLIPSIS}"


def without_key(text: str) -> str:
    """Text without the key in any form, and without what looks like a key of OpenAI's."""
    return re.sub(r"\b(?:sk|sess)-[A-Za-z0-9_*-]{6,}", "[key]", without_secret(text))


def without_secret(text: str, least: int = 4) -> str:
    """Text without the key that this process uses: as it is, as a URL or JSON writes it, in base64 at any place of
    what was encoded, in hex.

    A key of fewer than `least` characters is a word ("none"), no secret.
    """
    for key in _known():
        if len(key) >= least:
            text = _forms(key).sub("[key]", text)
    return text


def _known() -> set[str]:
    """The keys that this process may have sent. A key file that cannot be read now may have been read before."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    named = os.environ.get("OPENAI_API_KEY_FILE")
    if named and not key and named not in _looked_at:
        _looked_at.add(named)
        with contextlib.suppress(BackendUnavailable):
            api_key()
    return _used | {key} if key else _used


_used: set[str] = set()
_looked_at: set[str] = set()


def _spelled(character: str) -> str:
    """A pattern of one character of the key, as text, URLs and JSON write it: "/" is also "%2F" and "\\/"."""
    if character.isalnum():
        return re.escape(character)
    encoded = "".join(f"%{byte:02x}" for byte in character.encode())
    escaped = f"u{ord(character):04x}" if ord(character) < 0x10000 else ""
    return rf"(?:\\?{re.escape(character)}|{encoded}" + (rf"|\\{escaped})" if escaped else ")")


@lru_cache(maxsize=16)
def _forms(key: str) -> re.Pattern[str]:
    """The key and what it becomes inside an encoded text.

    Base64 writes three bytes as four characters, so a key has three forms, by where it begins; the characters at its
    edges, which hold bits of its neighbours too, are taken with it.
    """
    data = key.encode()
    forms = [f"(?i:{''.join(map(_spelled, key))})"]
    if len(data) >= 6:
        for before in range(3):
            inner = b64encode(bytes(before) + data).decode().rstrip("=")
            sure = inner[-(-before * 8 // 6) : (before + len(data)) * 8 // 6]
            edge = "[A-Za-z0-9+/_-]?"
            either = "".join("[+-]" if c in "+" else "[/_]" if c == "/" else c for c in sure)
            forms.append(f"{edge if before else ''}{either}{edge}={{0,2}}")
        forms.append(f"(?i:{data.hex()})")
    return re.compile("|".join(forms))
