"""Pack what a machine without a network needs into a folder.

    DIR/manifest.json       what is in the folder, by size and sha256; written last
        requirements.txt    every package at its exact version, with the hash of its wheel where it is carried
        wheels/  models/  rubrics/  prices.toml  NAME.duckdb

Start at `create`. The format of the manifest is in manifest.py, the packages in wheels.py, the models in
carried_models.py, the check on the other machine in verify.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from alpasift.batcher.offline.carried_models import check_models, describe_model, model_files
from alpasift.batcher.offline.doctor import prices_dated
from alpasift.batcher.offline.manifest import (
    MANIFEST,
    BundleError,
    LinkedModel,
    Manifest,
    check_path,
    describe_file,
    migration_names,
    read_manifest,
    rubric_digests,
    this_python,
    vocabulary_hashes,
    walk,
)
from alpasift.batcher.offline.wheels import closure, extras_for, make_wheels, requirements_text
from alpasift.batcher.store import Store, users_umask
from alpasift.graders.api.price_file import find_overrides, read_overrides
from alpasift.graders.prompts.rubric import load_rubric


@dataclass(frozen=True, slots=True)
class Contents:
    """What to pack besides the list of requirements.

    models    GGUF files and model folders; with `link` they are described and not copied
    extras    of alpasift, as installed here; those that the models need are added where they are installed
    wheels    carry the packages too: runs pip, which needs a network or an index of files
    prices    a prices.toml; None takes the one that grading in this folder would use
    """

    models: Sequence[Path] = ()
    link: bool = False
    extras: Sequence[str] = ()
    wheels: bool = False
    rubrics: Sequence[Path] = ()
    prices: Path | None = None
    database: Path | None = None


@dataclass(frozen=True, slots=True)
class Created:
    """A bundle that was written."""

    folder: Path
    files: int
    bytes: int
    manifest_sha256: str
    extras: tuple[str, ...]
    notes: tuple[str, ...]


def create(folder: Path, contents: Contents, report: Callable[[str], None] = lambda message: None) -> Created:
    """Write a bundle to `folder`, all or nothing, readable as the umask says; a database by its owner only.

    A folder that exists must be empty, or a bundle and nothing else, which is then replaced. `report` is called before
    each long step. Raises BundleError, having written nothing.
    """
    folder = folder.resolve()
    _check_place(folder)
    contents = _checked(contents)
    extras = extras_for(contents.extras, {"vllm" if model.is_dir() else "llama" for model in contents.models})
    requirements = closure(extras)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        linked = _copy_contents(contents, draft, report)
        wheels = draft / "wheels" if contents.wheels else None
        if wheels:
            wheels.mkdir()
            make_wheels(requirements, wheels, report)
        _write(draft / "requirements.txt", requirements_text(requirements, wheels).encode())
        manifest = Manifest(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            alpasift=version("alpasift"),
            python=this_python(),
            platform=sysconfig.get_platform(),
            schema=migration_names()[-1],
            prices_dated=prices_dated().isoformat(),
            extras=tuple(extras),
            requirements=requirements,
            vocabularies=vocabulary_hashes(),
            rubrics=rubric_digests(),
            wheels=contents.wheels,
            database=contents.database.name if contents.database else None,
            models=() if contents.link else tuple(model.name for model in contents.models),
            linked=tuple(linked),
            files=tuple(describe_file(path, check_path(name)) for name, path in sorted(walk(draft)[0].items())),
        )
        text = manifest.as_json()
        _write(draft / MANIFEST, text)
        draft.chmod(0o777 & ~users_umask())
        _put_in_place(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    size = sum(entry.bytes for entry in manifest.files) + len(text)
    digest = hashlib.sha256(text).hexdigest()
    return Created(folder, len(manifest.files) + 1, size, digest, tuple(extras), tuple(_notes(manifest)))


# -- before anything is written -----------------------------------------------------------------------------------


def _check_place(folder: Path) -> None:
    if not folder.parent.is_dir():
        raise BundleError(f"the folder {folder.parent} does not exist; create it, or give another folder")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise BundleError(f"{folder} is a file; give a folder")
    if os.path.ismount(folder):
        raise BundleError(f"{folder} is where a disk is mounted; give a folder in it, {folder / 'alpasift-bundle'}")
    if not any(folder.iterdir()):
        return
    if not (folder / MANIFEST).is_file():
        raise BundleError(f"{folder} is not empty and not a bundle; give a new folder")
    described = {entry.path: entry for entry in read_manifest(folder).files}
    foreign = sorted({path for found in walk(folder) for path in found} - {*described, MANIFEST})
    if foreign:
        raise BundleError(
            f"{folder} contains {foreign[0]}, which is not part of the bundle; move it away or give a new folder"
        )
    for name, path in sorted(walk(folder)[0].items()):
        if name in described and describe_file(path, name) != described[name]:
            raise BundleError(f"{path} was changed after the bundle was written; move it away or give a new folder")


def _checked(contents: Contents) -> Contents:
    """The contents with every path resolved, each of which can be read and is what it should be. Raises BundleError."""
    models = [model.expanduser() for model in contents.models]
    check_models(models)
    for rubric in contents.rubrics:
        load_rubric(str(rubric))
    if len({rubric.name for rubric in contents.rubrics}) < len(contents.rubrics):
        raise BundleError("two rubric files have the same name; rename one")
    prices = contents.prices or find_overrides(Path.cwd())
    if prices is not None:
        read_overrides(prices)
    return replace(contents, models=models, prices=prices)


# -- writing ------------------------------------------------------------------------------------------------------


def _copy_contents(contents: Contents, draft: Path, report: Callable[[str], None]) -> list[LinkedModel]:
    """Copy models, rubrics, prices and database into the draft; return the models that are only described."""
    linked = []
    for model in contents.models:
        report(f"{'hashing' if contents.link else 'copying'} {model.name}")
        if contents.link:
            linked.append(describe_model(model))
            continue
        for name, path in model_files(model):
            _copy(path, draft / "models" / name)
    for rubric in contents.rubrics:
        _copy(rubric, draft / "rubrics" / rubric.name)
    if contents.prices is not None:
        _copy(contents.prices, draft / "prices.toml")
    if contents.database is not None:
        report(f"copying {contents.database.name}")
        _copy_database(contents.database, draft)
    return linked


def _copy_database(database: Path, draft: Path) -> None:
    """The file, and beside it what is not yet written into it. While we read, nobody else writes."""
    store = Store(database).existing()
    with store.reader():
        for source in store.files():
            if source.is_file() and source.suffix != ".lock":
                _copy(source, draft / source.name, private=True)


def _copy(source: Path, target: Path, *, private: bool = False) -> None:
    free = shutil.disk_usage(next(folder for folder in target.parents if folder.is_dir())).free
    size = source.stat().st_size
    if size > free:
        raise BundleError(
            f"{source} needs {size / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free; give a folder on another disk"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reads, target.open("xb") as writes:
        if private:
            _make_private(target)
        shutil.copyfileobj(reads, writes, 1 << 20)
        writes.flush()
        os.fsync(writes.fileno())


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _make_private(path: Path) -> None:
    with contextlib.suppress(PermissionError):  # the file system of a USB stick has no owners
        path.chmod(0o600)


def _put_in_place(draft: Path, folder: Path) -> None:
    old = draft.with_name(f"{draft.name}.old")
    if folder.exists():
        folder.rename(old)
    try:
        draft.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _notes(manifest: Manifest) -> list[str]:
    """What the person who carries the bundle should know."""
    notes = []
    if not manifest.wheels:
        notes.append("no wheels are included: requirements.txt only lists versions; --wheels adds the packages")
    elif "llama-cpp-python" in manifest.requirements:
        notes.append(
            "llama-cpp-python was compiled for this CPU type; for an older one delete pip's copy (pip "
            "cache remove llama_cpp_python) and set CMAKE_ARGS=-DGGML_NATIVE=OFF before bundle create --wheels"
        )
    notes += [
        f"{one.name} is not included, only its hashes: bundle verify DIR --model PATH checks it"
        for one in manifest.linked
    ]
    if manifest.database:
        notes.append(
            "a copied database sends nothing that costs money until `alpasift ledger adopt` or `ledger fork` is run"
        )
    return notes
