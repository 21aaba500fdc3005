"""What a machine without a network needs, packed into a folder here and checked there.

    DIR/manifest.json       what is in the folder, by size and sha256; written last
        requirements.txt    every package at its exact version, with the hash of its wheel where it is carried
        wheels/  models/  rubrics/  prices.toml  NAME.duckdb

`verify` trusts nothing in the folder: it opens only regular files that it found by walking the folder itself, never a
path that the manifest names, and it reads every byte, past any cache. The manifest vouches for the files; for the
manifest vouches its own sha256, which `create` tells and a person carries by another way.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from importlib import util
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from batcher.doctor import lacks_of_folder, lacks_of_gguf, prices_dated
from batcher.store import Store, sql_texts
from graders import AlpaSiftError
from graders.model_files import gguf_parts, sha256_of
from graders.offline import is_offline
from graders.prices import MAX_AGE_DAYS, find_overrides, read_overrides
from graders.rubric import load_rubric, rubric_names

MANIFEST = "manifest.json"
FORMAT = 1
_MOST_MANIFEST = 64 * 2**20
_FIXED_TEXT = 'Grade 4.5: "naïve café" — 東京, <|endoftext|>\n\tdef f(x): return x ** 2  # 1,234.50 🙂\r\n'
"""What the vocabularies are tried on: words, digits, signs, other scripts, and a special token's name as plain text."""


class BundleError(AlpaSiftError):
    """A bundle that cannot be written, or that is none."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file: its path inside the bundle (or the model) with forward slashes, its size and its sha256."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Linked:
    """A model that travels by another way: only what its files must be. `name` is that of its file or folder."""

    name: str
    files: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What manifest.json says, checked for form.

    schema        the newest migration of the database that this alpasift knew
    requirements  package -> exact version, alpasift among them
    vocabularies  name -> sha256 of the tokens of a fixed text
    rubrics       built-in rubric -> digest of its content
    prices_dated  the day of the price table
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
    linked: tuple[Linked, ...]
    files: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Made:
    """A bundle that was written."""

    folder: Path
    files: int
    bytes: int
    manifest_sha256: str
    extras: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verified:
    """What a bundle was found to be. `install` is the command that installs from it, None when it carries no wheels."""

    problems: list[str]
    notes: list[str]
    files: int
    bytes: int
    manifest_sha256: str
    install: str | None
    graders: list[str]


# -- create -------------------------------------------------------------------------------------------------------


def create(
    folder: Path,
    *,
    models: Sequence[Path] = (),
    link: bool = False,
    extras: Sequence[str] = (),
    wheels: bool = False,
    rubrics: Sequence[Path] = (),
    prices: Path | None = None,
    database: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Made:
    """Write a bundle to `folder`, all or nothing, readable by the owner only.

    A folder that is there must be empty, or a bundle and nothing else, which is then replaced. With `link` the models
    are not copied, only described. `wheels` runs pip, which needs a network or an index of files. The extras that the
    models need (llama for GGUF, vllm for a folder) are added where they are installed. Raises BundleError, having
    written nothing.
    """
    folder = folder.resolve()
    _check_place(folder)
    models = [model.expanduser() for model in models]
    _check_models(models)
    own = [(path, load_rubric(str(path))) for path in rubrics]
    if len({path.name for path, _ in own}) < len(own):
        raise BundleError("two rubric files have the same name; rename one")
    prices = prices or find_overrides(Path.cwd())
    if prices is not None:
        read_overrides(prices)
    wanted = _extras(extras, models)
    requirements = closure(wanted)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=_parent(folder)))
    try:
        linked: list[Linked] = []
        for model in models:
            if link:
                say(f"hashing {model.name}")
                linked.append(_linked(model))
            else:
                say(f"copying {model.name}")
                for name, path in _files_of(model):
                    _copy(path, draft / "models" / name)
        for path, _ in own:
            _copy(path, draft / "rubrics" / path.name)
        if prices is not None:
            _copy(prices, draft / "prices.toml")
        if database is not None:
            say(f"copying {database.name}")
            _copy_database(database, draft)
        if wheels:
            _make_wheels(requirements, draft / "wheels", say)
        _write(draft / "requirements.txt", _requirements_text(requirements, draft / "wheels").encode())
        files = tuple(_entry(path, name) for name, path in sorted(_walk(draft)[0].items()))
        manifest = Manifest(
            created=datetime.now(UTC).isoformat(timespec="seconds"), alpasift=version("alpasift"), python=_python(),
            platform=sysconfig.get_platform(), schema=_schema()[-1], prices_dated=prices_dated().isoformat(),
            extras=tuple(wanted), requirements=requirements, vocabularies=vocabulary_hashes(), rubrics=rubric_digests(),
            wheels=wheels, database=database.name if database else None,
            models=() if link else tuple(model.name for model in models), linked=tuple(linked), files=files,
        )  # fmt: skip
        for entry in files:
            _check_path(entry.path)
        text = _as_json(manifest)
        _write(draft / MANIFEST, text)
        _put_in_place(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    notes = _notes(manifest)
    total = sum(entry.bytes for entry in files) + len(text)
    return Made(folder, len(files) + 1, total, hashlib.sha256(text).hexdigest(), tuple(wanted), tuple(notes))


def _parent(folder: Path) -> Path:
    parent = folder.parent
    if not parent.is_dir():
        raise BundleError(f"the folder {parent} does not exist; make it, or give another place")
    return parent


def _check_place(folder: Path) -> None:
    _parent(folder)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise BundleError(f"{folder} is a file; give the name of a folder")
    if os.path.ismount(folder):
        raise BundleError(f"{folder} is where a disk is mounted; give a folder inside it, {folder / 'alpasift-bundle'}")
    if not any(folder.iterdir()):
        return
    if not (folder / MANIFEST).is_file():
        raise BundleError(f"{folder} is not empty and is no bundle; give a new folder")
    listed = {entry.path for entry in read_manifest(folder).files} | {MANIFEST}
    found, odd = _walk(folder)
    others = sorted({*found, *odd} - listed)
    if others:
        raise BundleError(f"{folder} holds {others[0]}, which is not of the bundle; move it away, or give a new folder")


def _check_models(models: Sequence[Path]) -> None:
    names = set()
    for model in models:
        lacks = lacks_of_folder(model) if model.is_dir() else lacks_of_gguf(model)
        if lacks:
            raise BundleError(f"{lacks}; --model takes a GGUF file or a whole model folder")
        if model.resolve().name in names or model.name in names:
            raise BundleError(f"two models are called {model.name}; rename one")
        names.add(model.name)


def _files_of(model: Path) -> list[tuple[str, Path]]:
    """(path below models/, file) of every file of a model; hidden files and folders are left out."""
    if not model.is_dir():
        return [(part.name, part) for part in gguf_parts(model)]
    found = []
    for top, folders, names in os.walk(model):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(top) / name for name in names if not name.startswith(".")]
    base = model.resolve().name if model.name in ("", ".", "..") else model.name
    return [(f"{base}/{path.relative_to(model).as_posix()}", path) for path in sorted(found) if path.is_file()]


def _linked(model: Path) -> Linked:
    files = _files_of(model)
    return Linked(model.name, tuple(Entry(name, path.stat().st_size, sha256_of([path])) for name, path in files))


def _copy_database(database: Path, draft: Path) -> None:
    """The file, and beside it what is not yet written into it. While we read, nobody else writes."""
    store = Store(database).existing()
    with store.reader():
        for source in store.files():
            if source.is_file() and source.suffix != ".lock":
                _copy(source, draft / source.name)


def _copy(source: Path, target: Path) -> None:
    free = shutil.disk_usage(next(folder for folder in target.parents if folder.is_dir())).free
    size = source.stat().st_size
    if size > free:
        raise BundleError(
            f"{source} takes {size / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free; give another disk"
        )
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with source.open("rb") as reads, target.open("xb") as writes:
        _own(target)
        shutil.copyfileobj(reads, writes, 1 << 20)
        writes.flush()
        os.fsync(writes.fileno())


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        _own(path)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _own(path: Path) -> None:
    with contextlib.suppress(PermissionError):  # a file system of sticks and cards has no owners
        path.chmod(0o600)


def _entry(path: Path, name: str) -> Entry:
    return Entry(name, path.stat().st_size, _hash(path))


def _hash(path: Path) -> str:
    """sha256 of the bytes as they stand there now: no cache, which a changed file of the same size and date would fool."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    notes = []
    if not manifest.wheels:
        notes.append("no wheels are carried: requirements.txt names versions only; --wheels brings the packages")
    elif "llama-cpp-python" in manifest.requirements:
        notes.append(
            "llama-cpp-python was compiled for a processor like this one's; for an older one delete pip's copy (pip cache "
            "remove llama_cpp_python) and set CMAKE_ARGS=-DGGML_NATIVE=OFF before bundle create --wheels"
        )
    notes += [
        f"{one.name} is not carried, only described: bundle verify DIR --model PATH checks it"
        for one in manifest.linked
    ]
    if manifest.database:
        notes.append(
            "a copied database sends nothing that costs money until `alpasift ledger adopt` or `ledger fork` says whose it is"
        )
    return notes


# -- packages -----------------------------------------------------------------------------------------------------


def _plain_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _extras(given: Sequence[str], models: Sequence[Path]) -> list[str]:
    known = {extra for _, _, under in _needs("alpasift") for extra in under}
    for extra in given:
        if extra not in known:
            raise BundleError(f"alpasift has no extra {extra!r}; there are {', '.join(sorted(known))}")
    implied = {"vllm" if model.is_dir() else "llama" for model in models}
    return sorted({*given, *(extra for extra in implied if not _lacking(extra))})


def _lacking(extra: str | None) -> list[str]:
    """The packages of an extra, or with None of alpasift itself, that are not installed here."""
    needs = [name for name, _, under in _needs("alpasift") if (extra in under if extra else not under)]
    return [name for name in needs if _installed(name) is None]


def _needs(package: str) -> list[tuple[str, set[str], set[str]]]:
    """(package, its extras, our extras under one of which alone it is needed) of every requirement of a package."""
    found = []
    for line in _requires(package):
        match = re.match(r"\s*([A-Za-z0-9._-]+)\s*(?:\[([^]]*)\])?", line)
        if match:
            under = set(re.findall(r"extra\s*==\s*['\"]([^'\"]+)['\"]", line.partition(";")[2]))
            extras = {part.strip() for part in (match[2] or "").split(",") if part.strip()}
            found.append((_plain_name(match[1]), extras, under))
    return found


def _requires(package: str) -> list[str]:
    source = _source() if package == "alpasift" else None
    if source is None:
        return distribution(package).requires or []
    # A checkout's metadata is that of the day it was installed; its wheel will say what pyproject.toml says now.
    project = tomllib.loads((source / "pyproject.toml").read_text("utf-8"))["project"]
    under = project.get("optional-dependencies", {})
    return [*project["dependencies"], *(f'{line}; extra == "{extra}"' for extra in under for line in under[extra])]


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def closure(extras: Iterable[str]) -> dict[str, str]:
    """Every package that alpasift with these extras needs here, at its installed version.

    What a package needs elsewhere only (on Windows, under an older Python) is told by its not being installed here.
    Raises BundleError for an extra that is not installed.
    """
    if lacking := _lacking(None):
        raise BundleError(f"alpasift is not whole here, {', '.join(lacking)} missing: pip install them first")
    for extra in extras:
        if lacking := _lacking(extra):
            raise BundleError(
                f"the extra {extra} is not installed here ({', '.join(lacking)} missing), so its versions are not known: "
                f"pip install 'alpasift[{extra}]' first"
            )
    found: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [("alpasift", frozenset(extras))]
    while todo:
        package, wanted = todo.pop()
        here = _installed(package)
        if here is None or (package, wanted) in seen:
            continue
        seen.add((package, wanted))
        found[package] = here
        for name, theirs, under in _needs(package):
            if not under or under & wanted:
                todo.append((name, frozenset(theirs)))
    return dict(sorted(found.items()))


def _make_wheels(requirements: Mapping[str, str], folder: Path, say: Callable[[str], None]) -> None:
    folder.mkdir(mode=0o700)
    if util.find_spec("pip") is None:
        raise BundleError("--wheels runs pip, which is not installed in this environment: python -m ensurepip")
    others = folder.parent / "others.txt"
    _write(others, "".join(f"{n}=={v}\n" for n, v in requirements.items() if n != "alpasift").encode())
    source = _source()
    isolation = ["--no-build-isolation"] if source and util.find_spec("hatchling") is not None else []
    say("making the wheel of alpasift")
    _pip([*isolation, str(source) if source else f"alpasift=={requirements['alpasift']}"], folder)
    say(f"fetching the wheels of {len(requirements) - 1} packages")
    _pip(["-r", str(others)], folder)
    others.unlink()
    for wheel in folder.iterdir():
        _own(wheel)


def _source() -> Path | None:
    """The checkout that this alpasift runs from, None when it was installed from a wheel."""
    said = distribution("alpasift").read_text("direct_url.json")
    url = json.loads(said) if said else {}
    if "dir_info" in url and urlsplit(url["url"]).scheme == "file":
        folder = Path(unquote(urlsplit(url["url"]).path))
        return folder if (folder / "pyproject.toml").is_file() else None
    return None


def _pip(arguments: list[str], folder: Path) -> None:
    retries = ["--retries", "0"] if is_offline() else []
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *retries, "--wheel-dir", str(folder)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        errors = [line.strip() for line in done.stderr.splitlines() if line.strip().upper().startswith("ERROR")]
        said = errors[-1] if errors else done.stderr.strip()[-300:]
        raise BundleError(
            f"pip could not bring the wheels: {said}. They come from an index: run this where there is a network"
        )


def _requirements_text(requirements: Mapping[str, str], wheels: Path) -> str:
    hashes: dict[tuple[str, str], list[str]] = {}
    for wheel in sorted(wheels.glob("*.whl")) if wheels.is_dir() else []:
        name, number = wheel.name.split("-")[:2]
        hashes.setdefault((_plain_name(name), number), []).append(_hash(wheel))
    lines = [f"# alpasift {requirements['alpasift']} and all it needs, as installed on {sysconfig.get_platform()}"]
    for name, number in requirements.items():
        found = hashes.get((name, number.replace("-", "_")), [])
        if wheels.is_dir() and not found:
            raise BundleError(f"pip brought no wheel of {name} {number}; it is listed as installed here")
        lines.append(" ".join([f"{name}=={number}", *(f"--hash=sha256:{h}" for h in found)]))
    return "\n".join(lines) + "\n"


# -- what an answer depends on besides the packages -----------------------------------------------------------------


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
    return {name: load_rubric(name).digest() for name in rubric_names()}


def _schema() -> list[str]:
    return [text.name for text in sql_texts("migrations")]


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


# -- the manifest -------------------------------------------------------------------------------------------------


def _as_json(manifest: Manifest) -> bytes:
    return json.dumps({"alpasift_bundle": FORMAT, **asdict(manifest)}, indent=1, ensure_ascii=False).encode() + b"\n"


def _check_path(path: str) -> str:
    """The path, when it stays inside the folder on every system. Raises BundleError."""
    parts = PurePosixPath(path).parts
    inside = parts and not path.startswith("/") and str(PurePosixPath(path)) == path and ".." not in parts
    if not inside or "\\" in path or ":" in path or not path.isprintable() or path == MANIFEST or len(path) > 1000:
        raise BundleError(f"{path[:200]!r} is no path inside a bundle")
    return path


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle. Raises BundleError when it is none, is malformed, or names a path outside the folder."""
    return _parse(_manifest_bytes(folder), folder / MANIFEST)


def _manifest_bytes(folder: Path) -> bytes:
    path = folder / MANIFEST
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            raise BundleError(f"{path} is no ordinary file; this is no bundle")
        if found.st_size > _MOST_MANIFEST:
            raise BundleError(f"{path} is {found.st_size:,} bytes long; no bundle's is")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BundleError(
            f"{folder} is no bundle: it has no {MANIFEST}; `alpasift bundle create` writes one"
        ) from error


def _parse(data: bytes, path: Path) -> Manifest:
    try:
        said = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is no JSON; bring the bundle again") from error
    if not isinstance(said, dict) or "alpasift_bundle" not in said:
        raise BundleError(f"{path} is not the manifest of a bundle")
    if said["alpasift_bundle"] != FORMAT:
        raise BundleError(f"{path} is of format {said['alpasift_bundle']!r}, and this alpasift reads {FORMAT}")
    try:
        words = {
            key: _text(said[key]) for key in ("created", "alpasift", "python", "platform", "schema", "prices_dated")
        }
        date.fromisoformat(words["prices_dated"])
        tables = {
            key: {_text(k): _text(v) for k, v in said[key].items()}
            for key in ("requirements", "vocabularies", "rubrics")
        }
        return Manifest(
            created=words["created"], alpasift=words["alpasift"], python=words["python"], platform=words["platform"],
            schema=words["schema"], prices_dated=words["prices_dated"], extras=tuple(map(_text, said["extras"])),
            requirements=tables["requirements"], vocabularies=tables["vocabularies"], rubrics=tables["rubrics"],
            wheels=said["wheels"] is True, database=None if said["database"] is None else _text(said["database"]),
            models=tuple(map(_text, said["models"])),
            linked=tuple(Linked(_text(one["name"]), _entries(one["files"])) for one in said["linked"]),
            files=_entries(said["files"]),
        )  # fmt: skip
    except BundleError as error:
        raise BundleError(f"{path}: {error}; trust nothing in this folder") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{path} is malformed ({type(error).__name__}: {error}); bring the bundle again") from error


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 1000 or not value.isprintable():
        raise ValueError(f"{str(value)[:80]!r} is no text")
    return value


def _entries(value: Any) -> tuple[Entry, ...]:
    found = []
    for one in value:
        size, digest = one["bytes"], _text(one["sha256"])
        if type(size) is not int or size < 0 or not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise ValueError(f"{str(one)[:80]!r} is no file's entry")
        found.append(Entry(_check_path(_text(one["path"])), size, digest))
    if len({entry.path for entry in found}) < len(found):
        raise ValueError("a path stands there twice")
    return tuple(found)


def _walk(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """(path -> regular file, path -> what else it is) of all below a folder; no link is followed."""
    files: dict[str, Path] = {}
    odd: dict[str, str] = {}
    for top, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(top) / name
            where, mode = path.relative_to(folder).as_posix(), path.lstat().st_mode
            if stat.S_ISREG(mode):
                files[where] = path
            elif not stat.S_ISDIR(mode):
                odd[where] = "a link" if stat.S_ISLNK(mode) else "neither a file nor a folder"
    return files, odd


# -- verify -------------------------------------------------------------------------------------------------------


def verify(folder: Path, *, models: Sequence[Path] = (), manifest_sha256: str | None = None) -> Verified:
    """Check a bundle, and what is installed here against it. Reads every byte; writes nothing.

    `models` are where linked models lie here. Raises BundleError when the folder is no bundle at all, or its manifest
    is malformed or hostile.
    """
    data = _manifest_bytes(folder)
    digest = hashlib.sha256(data).hexdigest()
    if manifest_sha256 is not None and digest != manifest_sha256.strip().lower():
        raise BundleError(
            f"{folder / MANIFEST} has the sha256 {digest}, not the one given: this is not the bundle that was made, or not as "
            "it was made"
        )
    manifest = _parse(data, folder / MANIFEST)
    found, odd = _walk(folder)
    listed = {entry.path for entry in manifest.files}
    problems = [f"{path}: {what}; a bundle holds files only" for path, what in sorted(odd.items())]
    for entry in manifest.files:
        path = found.get(entry.path)
        wrong = None if path is None else _differs(path, entry)
        if path is None and entry.path not in odd:
            problems.append(f"{entry.path}: missing")
        elif wrong:
            problems.append(f"{entry.path}: {wrong}")
    problems += [f"{path}: not in the manifest" for path in sorted(set(found) - listed - {MANIFEST})]
    notes: list[str] = []
    problems += _check_linked(manifest, models, notes)
    problems += _check_packages(manifest, notes)
    problems += _check_contents(manifest, notes)
    total = sum(path.stat().st_size for path in found.values())
    install = None
    if manifest.wheels:
        at = shlex.quote(str(folder / "wheels")), shlex.quote(str(folder / "requirements.txt"))
        install = f"pip install --no-index --find-links {at[0]} --require-hashes -r {at[1]}"
    carried = [
        f"{'llama_cpp' if name.endswith('.gguf') else 'vllm'}:{folder / 'models' / name}" for name in manifest.models
    ]
    return Verified(problems, notes, len(found), total, digest, install, carried)


def _differs(path: Path, entry: Entry) -> str | None:
    try:
        size = path.stat().st_size
        if size != entry.bytes:
            return f"{size:,} bytes, and {entry.bytes:,} were written"
        return None if _hash(path) == entry.sha256 else "its bytes are not those that were written (sha256 differs)"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _check_linked(manifest: Manifest, models: Sequence[Path], notes: list[str]) -> list[str]:
    problems = []
    here = {model.expanduser().name: model.expanduser() for model in models}
    for one in manifest.linked:
        model = here.pop(one.name, None)
        if model is None:
            notes.append(f"the model {one.name} is not carried; to check it where it lies: --model PATH/{one.name}")
            continue
        if not model.exists():
            problems.append(f"{model}: missing")
            continue
        files = dict(_files_of(model))
        for entry in one.files:
            path = files.pop(entry.path, None)
            wrong = "missing" if path is None else _differs(path, entry)
            problems += [f"{model.parent / entry.path}: {wrong}"] if wrong else []
        problems += [f"{model.parent / name}: not in the manifest" for name in sorted(files)]
    problems += [f"{model}: the manifest describes no model of that name" for model in here.values()]
    return problems


def _check_packages(manifest: Manifest, notes: list[str]) -> list[str]:
    problems, absent = [], []
    for package, number in manifest.requirements.items():
        here = _installed(package)
        if here is None:
            absent.append(package)
        elif here != number:
            problems.append(f"{package} {here} is installed here, and the bundle was made with {number}")
    if absent:
        notes.append(f"not installed here yet: {', '.join(absent)}")
    if manifest.wheels:
        wheels = [entry.path[7:] for entry in manifest.files if entry.path.startswith("wheels/")]
        misfits = [f"wheels/{name}: {why}" for name in wheels if (why := why_no_fit(name))]
        problems += misfits
    elif (manifest.python, manifest.platform) != (_python(), sysconfig.get_platform()):
        notes.append(
            f"made on Python {manifest.python}, {manifest.platform}; here are Python {_python()}, {sysconfig.get_platform()}"
        )
    return problems


def _check_contents(manifest: Manifest, notes: list[str]) -> list[str]:
    problems, schema = [], _schema()
    if manifest.schema not in schema:
        problems.append(
            f"the bundle's databases have the schema {manifest.schema}, and this alpasift reads up to {schema[-1]}: install "
            f"alpasift {manifest.alpasift}"
        )
    elif manifest.schema != schema[-1] and manifest.database:
        notes.append(
            f"{manifest.database} has the schema {manifest.schema}; its first use here brings it to {schema[-1]}"
        )
    for what, there, here in (
        ("vocabulary", manifest.vocabularies, vocabulary_hashes()),
        ("rubric", manifest.rubrics, rubric_digests()),
    ):
        for name, digest in there.items():
            if here.get(name) != digest:
                lacks = "is another one here" if name in here else "is not there"
                problems.append(f"the {what} {name} {lacks}: grades and estimates would not be those of the other side")
    there_dated, here_dated = date.fromisoformat(manifest.prices_dated), prices_dated()
    if here_dated < there_dated:
        problems.append(
            f"the price table here is of {here_dated}, and the bundle's of {there_dated}: install its genai-prices"
        )
    days = (datetime.now(UTC).date() - there_dated).days
    if days > MAX_AGE_DAYS:
        notes.append(f"the price table is of {there_dated}, {days} days old; a newer prices.toml can be carried")
    return problems


# -- whether a wheel fits -------------------------------------------------------------------------------------------


def why_no_fit(wheel: str) -> str | None:
    """Why a wheel of that name cannot be installed into this Python, None when it can.

    Source: the tags of PEP 425 and of PEP 600 (manylinux_2_28: glibc 2.28 or later).
    """
    match = re.fullmatch(r"[^-]+-[^-]+(?:-\d[^-]*)?-([^-]+)-([^-]+)-([^-]+)\.whl", wheel)
    if not match:
        return "no name of a wheel"
    pythons, abis, platforms = (part.split(".") for part in match.groups())
    if not any(_python_fits(tag, abis) for tag in pythons):
        return f"for {match[1]}, and this is Python {_python()}"
    if not any(_platform_fits(tag) for tag in platforms):
        return f"for {match[3]}, and this machine is {sysconfig.get_platform()}" + _libc()
    return None


def _python_fits(tag: str, abis: Sequence[str]) -> bool:
    match = re.fullmatch(r"(py|cp)(\d)(\d*)", tag)
    if not match or int(match[2]) != sys.version_info.major:
        return False
    minor = int(match[3] or 0)
    own = f"cp{sys.version_info.major}{sys.version_info.minor}"
    if match[1] == "py" or "none" in abis:
        return minor <= sys.version_info.minor
    if sys.implementation.name != "cpython":
        return False
    return (tag == own and own in abis) or ("abi3" in abis and minor <= sys.version_info.minor)


def _platform_fits(tag: str) -> bool:
    if tag == "any":
        return True
    machine = platform.machine().lower()
    if sys.platform == "darwin":
        mac = re.fullmatch(r"macosx_(\d+)_(\d+)_(\w+)", tag)
        here = tuple(int(part) for part in platform.mac_ver()[0].split(".")[:2])
        return bool(mac and (int(mac[1]), int(mac[2])) <= here and mac[3] in (machine, "universal2"))
    if tag == f"linux_{machine}":
        return True
    libc, number = platform.libc_ver()
    older = {"manylinux1": "manylinux_2_5", "manylinux2010": "manylinux_2_12", "manylinux2014": "manylinux_2_17"}
    many = re.fullmatch(
        r"(many|musl)linux_(\d+)_(\d+)_(\w+)", re.sub(r"^manylinux\d+", lambda m: older.get(m[0], m[0]), tag)
    )
    if not many or many[4] != machine:
        return False
    if many[1] == "musl":
        return libc != "glibc"
    return libc == "glibc" and (int(many[2]), int(many[3])) <= tuple(int(part) for part in number.split(".")[:2])


def _libc() -> str:
    name, number = platform.libc_ver()
    return f" with {name} {number}" if name else ""
