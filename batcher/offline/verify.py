"""Check a bundle after it was carried, and what is installed here against it.

Start at `verify`. Nothing in the folder is trusted: only regular files are opened that were found by walking it, never
a path that the manifest names, and every byte is read, past any cache. The manifest vouches for the files; its own
sha256, which `create` prints and a person carries separately, vouches for the manifest.
"""

from __future__ import annotations

import hashlib
import shlex
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from alpasift.batcher.offline.carried_models import backend_of, check_linked
from alpasift.batcher.offline.doctor import prices_dated
from alpasift.batcher.offline.manifest import (
    MANIFEST,
    BundleError,
    Manifest,
    difference,
    manifest_bytes,
    migration_names,
    parse_manifest,
    rubric_digests,
    this_python,
    vocabulary_hashes,
    walk,
)
from alpasift.batcher.offline.wheels import installed_version, misfit
from alpasift.graders.api.price_lookup import MAX_AGE_DAYS


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found. `install` is the command that installs from the bundle, None when it carries no wheels.

    damaged   a file is missing, changed or added, or a linked model is not the one described: use nothing of it
    """

    problems: list[str]
    damaged: bool
    notes: list[str]
    files: int
    bytes: int
    manifest_sha256: str
    install: str | None
    graders: list[str]


def verify(folder: Path, *, models: Sequence[Path] = (), manifest_sha256: str | None = None) -> Verified:
    """Check a bundle, and what is installed here against it. Reads every byte; writes nothing.

    `models` are where linked models lie here. Raises BundleError when the folder is not a bundle at all, or its
    manifest is malformed or hostile.
    """
    data = manifest_bytes(folder)
    digest = hashlib.sha256(data).hexdigest()
    if manifest_sha256 is not None and digest != manifest_sha256.strip().lower():
        raise BundleError(
            f"{folder / MANIFEST} has the sha256 {digest}, not the one given: this is not the bundle that was created, "
            "or it was changed"
        )
    manifest = parse_manifest(data, folder / MANIFEST)
    model_problems, notes = check_linked(manifest.linked, models)
    package_problems, package_notes = _check_packages(manifest)
    grading_problems, grading_notes = _check_grading(manifest)
    file_problems = _check_files(folder, manifest)
    damaged = bool(file_problems or model_problems)
    files = walk(folder)[0].values()
    return Verified(
        problems=[*file_problems, *model_problems, *package_problems, *grading_problems],
        damaged=damaged,
        notes=[*notes, *package_notes, *grading_notes],
        files=len(files),
        bytes=sum(path.stat().st_size for path in files),
        manifest_sha256=digest,
        install=None if damaged or not manifest.wheels else _install_command(folder),
        graders=[] if damaged else [f"{backend_of(name)}:{folder / 'models' / name}" for name in manifest.models],
    )


def _check_files(folder: Path, manifest: Manifest) -> list[str]:
    """One line for each file that is missing, changed or added, and for what is no file."""
    found, others = walk(folder)
    problems = [f"{path}: {what}; a bundle may contain files only" for path, what in sorted(others.items())]
    for entry in manifest.files:
        path = found.get(entry.path)
        problem = None if path is None else difference(path, entry)
        if path is None and entry.path not in others:
            problems.append(f"{entry.path}: missing")
        elif problem:
            problems.append(f"{entry.path}: {problem}")
    listed = {entry.path for entry in manifest.files}
    return [*problems, *(f"{path}: not in the manifest" for path in sorted(set(found) - listed - {MANIFEST}))]


def _check_packages(manifest: Manifest) -> tuple[list[str], list[str]]:
    """(problems, notes): packages at other versions, wheels that do not fit this Python."""
    problems, notes, absent = [], [], []
    for package, number in manifest.requirements.items():
        here = installed_version(package)
        if here is None:
            absent.append(package)
        elif here != number:
            problems.append(f"{package} {here} is installed here, and the bundle was made with {number}")
    if absent:
        notes.append(f"not installed here yet: {', '.join(absent)}")
    if manifest.wheels:
        wheels = [entry.path for entry in manifest.files if entry.path.startswith("wheels/")]
        problems += [f"{path}: {why}" for path in wheels if (why := misfit(path.removeprefix("wheels/")))]
    elif (manifest.python, manifest.platform) != (this_python(), sysconfig.get_platform()):
        notes.append(
            f"made on Python {manifest.python}, {manifest.platform}; this is Python {this_python()}, "
            f"{sysconfig.get_platform()}"
        )
    return problems, notes


def _check_grading(manifest: Manifest) -> tuple[list[str], list[str]]:
    """(problems, notes): a schema, vocabulary, rubric or price table that is not the one on the other machine."""
    problems, notes, schemas = [], [], migration_names()
    if manifest.schema not in schemas:
        problems.append(
            f"the bundle's databases have the schema {manifest.schema}, and this alpasift reads up to {schemas[-1]}: "
            f"install alpasift {manifest.alpasift}"
        )
    elif manifest.schema != schemas[-1] and manifest.database:
        notes.append(
            f"{manifest.database} has the schema {manifest.schema}; its first use here upgrades it to {schemas[-1]}"
        )
    for what, there, here in (
        ("vocabulary", manifest.vocabularies, vocabulary_hashes()),
        ("rubric", manifest.rubrics, rubric_digests()),
    ):
        for name, digest in there.items():
            if here.get(name) != digest:
                state = "is different here" if name in here else "is missing here"
                problems.append(f"the {what} {name} {state}: grades would differ from those on the other machine")
    there_dated, here_dated = date.fromisoformat(manifest.prices_dated), prices_dated()
    if here_dated < there_dated:
        problems.append(
            f"the price table here is of {here_dated}, and the bundle's of {there_dated}: install its genai-prices"
        )
    days = (datetime.now(UTC).date() - there_dated).days
    if days > MAX_AGE_DAYS:
        notes.append(f"the price table is of {there_dated}, {days} days old; a newer prices.toml can be added")
    return problems, notes


def _install_command(folder: Path) -> str:
    wheels, requirements = (shlex.quote(str(folder / name)) for name in ("wheels", "requirements.txt"))
    return f"pip install --no-index --find-links {wheels} --require-hashes -r {requirements}"
