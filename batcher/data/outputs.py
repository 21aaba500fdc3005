"""Files that we write for people: what may be replaced, who may read them, and the manifest beside each.

    kept.json                  the rows
    kept.json.manifest.json    from which database, for what, and the sha256 of the rows

A file is replaced only where the manifest beside it says that it was written from this database for the same purpose
and its content is still that: then it holds nothing that could not be written again. A file from which a dataset was
imported is never such a file. `force` replaces all of these. Call `check_outputs` before any work, `seal` after
writing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpasift.batcher import installed_version
from alpasift.batcher.data.targets import TargetError, check_targets, manifest_of, write_whole
from alpasift.batcher.store import Store, rows, scalar

_OUTPUT = "output"
"""The part of a manifest that tells of the file beside it."""


@dataclass(frozen=True, slots=True)
class Output:
    """A file that a command will write, and for what: "selection kept of dataset alpaca"."""

    path: str
    purpose: str


def check_outputs(
    store: Store,
    outputs: Sequence[Output],
    *,
    sources: Sequence[str] = (),
    format_name: str | None = None,
    force: bool = False,
) -> None:
    """Raise TargetError now for what could not be written later, or would replace what must stay.

    `sources` are files that the command reads. The files of the database are never replaced.
    """
    paths = [path for output in outputs for path in (output.path, manifest_of(output.path))]
    kept: Iterable[object] = store.files() if force else [*sources, *store.files()]
    check_targets(paths, not_onto=kept, format_name=format_name)
    for output in outputs:
        check_replaceable(store, output, force=force)


def check_replaceable(store: Store, output: Output, *, force: bool = False) -> None:
    """Raise TargetError where a file stands that was not written from this database for this purpose."""
    path = Path(output.path)
    if force:
        return
    said = _read_manifest(output.path)
    if path.exists():
        digest = _sha256(path)
        if source := _imported_as(store, digest):
            raise TargetError(f"{path} is the file from which {source} was imported; {_INSTEAD}")
        if said is None:
            raise TargetError(f"{path} exists, and alpasift did not write it; {_INSTEAD}")
        if said.get("sha256") != digest:
            raise TargetError(f"{path} was changed after alpasift wrote it; {_INSTEAD}")
    elif said is None:
        beside = manifest_of(output.path)
        if Path(beside).exists():
            raise TargetError(f"{beside} exists, and alpasift did not write it; {_INSTEAD}")
        return
    if said.get("purpose") != output.purpose or said.get("database") != _database_id(store):
        another = "" if said.get("purpose") != output.purpose else " of another database"
        holds = said.get("purpose") or "the output of an earlier release"
        raise TargetError(f"{path} holds {holds}{another}, not {output.purpose}; {_INSTEAD}")


_INSTEAD = "give another file, or replace it with --force"


def seal(store: Store, output: Output, facts: Mapping[str, Any]) -> None:
    """Write the manifest of a file that was just written: `facts`, and what `check_replaceable` looks at."""
    about = {"purpose": output.purpose, "database": _database_id(store), "sha256": _sha256(Path(output.path))}
    content = {**facts, "alpasift": facts.get("alpasift", installed_version()), _OUTPUT: about}
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n"
    write_whole(manifest_of(output.path), text)


def _read_manifest(output: str) -> dict[str, Any] | None:
    """What the manifest beside a file says of it; {} for one of an earlier release, None without a manifest of ours."""
    try:
        content = json.loads(Path(manifest_of(output)).read_text("utf-8"))
        about = content.get(_OUTPUT, {}) if "alpasift" in content else None
        return about if isinstance(about, dict) else None
    except (OSError, ValueError, AttributeError, TypeError):
        return None


def _database_id(store: Store) -> str | None:
    if not store.path.exists():
        return None
    with store.existing().reader() as con:
        return str(scalar(con, "select value from meta where key = 'ledger'"))


def _imported_as(store: Store, digest: str) -> str | None:
    if not store.path.exists():
        return None
    text = "select label from datasets where sha256 = $sha256 order by imported_at limit 1"
    with store.existing().reader() as con:
        found = rows(con, text, {"sha256": digest}).rows
    return f"dataset {found[0][0]}" if found else None


def _sha256(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
