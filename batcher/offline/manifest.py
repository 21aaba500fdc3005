"""The manifest of a bundle: every file with its size and sha256, and what grades depend on besides files.

Start at `read_manifest` and `Manifest.as_json`. Knows JSON and files; nothing of pip, models or what goes into a
bundle. A manifest from elsewhere is not trusted: it must be small, have the fields below with plain text in them, and
name only paths that stay inside the folder. The keys of manifest.json are the fields of `Manifest`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path, PurePosixPath
from typing import Any

from alpasift.batcher.store import sql_texts
from alpasift.graders import AlpaSiftError
from alpasift.graders.prompts.rubric import load_rubric, rubric_names

MANIFEST = "manifest.json"
FORMAT = 1
_MAX_MANIFEST_BYTES = 64 * 2**20
_FIXED_TEXT = 'Grade 4.5: "naïve café" — 東京, <|endoftext|>\n\tdef f(x): return x ** 2  # 1,234.50 🙂\r\n'
"""The vocabularies are compared on this: words, digits, signs, other scripts, a special token's name as plain text."""


class BundleError(AlpaSiftError):
    """A bundle that cannot be written, or a folder that is not one."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file: its path inside the bundle (or the model) with forward slashes, its size and its sha256."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class LinkedModel:
    """A model that is carried separately: what its files must be. `name` is that of its file or folder."""

    name: str
    files: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of manifest.json.

    schema        the newest migration of the database that this alpasift has
    requirements  package -> exact version, alpasift among them
    vocabularies  name -> sha256 of the tokens of a fixed text
    rubrics       built-in rubric -> digest of its content
    prices_dated  the date of the price table
    """

    created: str
    alpasift: str
    python: str
    platform: str
    schema: str
    prices_dated: str
    extras: tuple[str, ...]
    requirements: Mapping[str, str]
    vocabularies: Mapping[str, str]
    rubrics: Mapping[str, str]
    wheels: bool
    database: str | None
    models: tuple[str, ...]
    linked: tuple[LinkedModel, ...]
    files: tuple[Entry, ...]

    def as_json(self) -> bytes:
        return json.dumps({"alpasift_bundle": FORMAT, **asdict(self)}, indent=1, ensure_ascii=False).encode() + b"\n"


# -- reading ------------------------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle. Raises BundleError when there is none, it is malformed, or it names a path outside."""
    return parse_manifest(manifest_bytes(folder), folder / MANIFEST)


def manifest_bytes(folder: Path) -> bytes:
    """The bytes of manifest.json, which must be an ordinary file of a plausible size. Raises BundleError."""
    path = folder / MANIFEST
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            raise BundleError(f"{path} is not a regular file, so {folder} is not a bundle")
        if found.st_size > _MAX_MANIFEST_BYTES:
            raise BundleError(
                f"{path} has {found.st_size:,} bytes, more than a manifest can have; {folder} is not a bundle"
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BundleError(
            f"{folder} is not a bundle: it has no {MANIFEST}; `alpasift bundle create` writes one"
        ) from error


def parse_manifest(data: bytes, path: Path) -> Manifest:
    """A manifest from its bytes; `path` is for messages. Raises BundleError."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON; copy the bundle again") from error
    if not isinstance(content, dict) or "alpasift_bundle" not in content:
        raise BundleError(f"{path} is not the manifest of a bundle")
    if content["alpasift_bundle"] != FORMAT:
        raise BundleError(
            f"{path} has the format {content['alpasift_bundle']!r}, and this alpasift reads {FORMAT}; install the "
            "version that wrote it"
        )
    try:
        date.fromisoformat(content["prices_dated"])
        return Manifest(
            created=_text(content["created"]),
            alpasift=_text(content["alpasift"]),
            python=_text(content["python"]),
            platform=_text(content["platform"]),
            schema=_text(content["schema"]),
            prices_dated=_text(content["prices_dated"]),
            extras=tuple(map(_text, content["extras"])),
            requirements=_texts(content["requirements"]),
            vocabularies=_texts(content["vocabularies"]),
            rubrics=_texts(content["rubrics"]),
            wheels=content["wheels"] is True,
            database=None if content["database"] is None else _text(content["database"]),
            models=tuple(map(_text, content["models"])),
            linked=tuple(LinkedModel(_text(one["name"]), _entries(one["files"])) for one in content["linked"]),
            files=_entries(content["files"]),
        )
    except BundleError as error:
        raise BundleError(f"{path}: {error}; do not trust this folder") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{path} is malformed ({type(error).__name__}: {error}); copy the bundle again") from error


def check_path(path: str) -> str:
    """The path, when it stays inside the folder on every system. Raises BundleError."""
    parts = PurePosixPath(path).parts
    inside = parts and not path.startswith("/") and str(PurePosixPath(path)) == path and ".." not in parts
    if not inside or "\\" in path or ":" in path or not path.isprintable() or path == MANIFEST or len(path) > 1000:
        raise BundleError(f"{path[:200]!r} is not a path inside a bundle")
    return path


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 1000 or not value.isprintable():
        raise ValueError(f"{str(value)[:80]!r} is not one line of text")
    return value


def _texts(value: Any) -> dict[str, str]:
    return {_text(key): _text(text) for key, text in value.items()}


def _entries(value: Any) -> tuple[Entry, ...]:
    found = []
    for one in value:
        size, digest = one["bytes"], _text(one["sha256"])
        if type(size) is not int or size < 0 or not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise ValueError(f"{str(one)[:80]!r} does not describe a file")
        found.append(Entry(check_path(_text(one["path"])), size, digest))
    if len({entry.path for entry in found}) < len(found):
        raise ValueError("the same path is listed twice")
    return tuple(found)


# -- files --------------------------------------------------------------------------------------------------------


def describe_file(path: Path, name: str) -> Entry:
    return Entry(name, path.stat().st_size, hash_file(path))


def hash_file(path: Path) -> str:
    """The sha256 of the bytes that are there now. No cache: a changed file may keep its size and date."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def difference(path: Path, entry: Entry) -> str | None:
    """How a file differs from its entry, None when it does not."""
    try:
        size = path.stat().st_size
        if size != entry.bytes:
            return f"it has {size:,} bytes, expected {entry.bytes:,}"
        return None if hash_file(path) == entry.sha256 else "its content has changed (sha256 differs)"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"


def walk(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """(path -> regular file, path -> what else it is) of everything below a folder; no link is followed."""
    files: dict[str, Path] = {}
    others: dict[str, str] = {}
    for top, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(top) / name
            where, mode = path.relative_to(folder).as_posix(), path.lstat().st_mode
            if stat.S_ISREG(mode):
                files[where] = path
            elif not stat.S_ISDIR(mode):
                others[where] = "a link" if stat.S_ISLNK(mode) else "neither a file nor a folder"
    return files, others


# -- what grades depend on besides files --------------------------------------------------------------------------


def vocabulary_hashes() -> dict[str, str]:
    """Name of each vocabulary -> sha256 of the tokens of a fixed text. Empty where splintr-rs cannot be loaded."""
    try:
        import splintr

        names = ("o200k_base", "cl100k_base")
        tokens = {name: splintr.Tokenizer.from_pretrained(name).encode_ordinary(_FIXED_TEXT) for name in names}
    except (ImportError, AttributeError, TypeError, ValueError):
        return {}
    return {name: hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest() for name, ids in tokens.items()}


def rubric_digests() -> dict[str, str]:
    """Name of each built-in rubric -> digest of its content."""
    return {name: load_rubric(name).digest() for name in rubric_names()}


def migration_names() -> list[str]:
    """The migrations of the database that this alpasift has, oldest first."""
    return [text.name for text in sql_texts("migrations")]


def this_python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"
