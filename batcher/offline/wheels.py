"""The packages that alpasift needs here: their exact versions, their wheels, and whether a wheel fits this Python.

Start at `closure`. Knows installed packages and pip; nothing of models. Requirements, markers and wheel tags are read
by `packaging`, as pip reads them.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Mapping
from importlib import util
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.tags import sys_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from alpasift.batcher.offline.manifest import BundleError, hash_file, this_python
from alpasift.graders.offline.guard import is_offline

_OWN = "alpasift"


def installed_version(package: str) -> str | None:
    """The version of a package, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# -- what is needed -----------------------------------------------------------------------------------------------


def closure(extras: Iterable[str]) -> dict[str, str]:
    """Every package that alpasift with these extras needs on this machine, at its installed version.

    Raises BundleError for an extra that is not installed: its versions are not known then.
    """
    extras = list(extras)
    if missing := missing_packages(None):
        raise BundleError(f"alpasift is incomplete here, {', '.join(missing)} missing: install them with pip first")
    for extra in extras:
        if missing := missing_packages(extra):
            raise BundleError(
                f"the extra {extra} is not installed here ({', '.join(missing)} missing), so its versions are "
                f"unknown: pip install 'alpasift[{extra}]' first"
            )
    found: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [(_OWN, frozenset(extras))]
    while todo:
        package, wanted = todo.pop()
        number = installed_version(package)
        if number is None or (package, wanted) in seen:
            continue
        seen.add((package, wanted))
        found[package] = number
        todo += [(canonicalize_name(one.name), frozenset(one.extras)) for one in _needed(package, wanted)]
    return dict(sorted(found.items()))


def extras_for(given: Iterable[str], model_extras: Iterable[str]) -> list[str]:
    """The extras to carry: those asked for, and those of the models' backends where they are installed.

    Raises BundleError for a name that alpasift does not have.
    """
    known = _extra_names()
    for extra in given:
        if extra not in known:
            raise BundleError(f"alpasift has no extra {extra!r}; choose from {', '.join(sorted(known))}")
    return sorted({*given, *(extra for extra in model_extras if not missing_packages(extra))})


def missing_packages(extra: str | None) -> list[str]:
    """What is not installed of alpasift with an extra, or with None of alpasift alone."""
    names = [canonicalize_name(one.name) for one in _needed(_OWN, [extra] if extra else [])]
    return [name for name in names if installed_version(name) is None]


def _needed(package: str, extras: Iterable[str]) -> list[Requirement]:
    """The requirements of a package with these extras which apply to this machine and this Python."""
    project = _project() if package == _OWN else None
    if project is None:
        lines = distribution(package).requires or []
    else:
        optional = project.get("optional-dependencies", {})
        lines = [*project["dependencies"], *(line for extra in extras for line in optional[extra])]
    try:
        requirements = [Requirement(line) for line in lines]
    except InvalidRequirement as error:
        raise BundleError(f"a requirement of {package} cannot be read ({error}); install it again") from error
    settings = [{"extra": extra} for extra in ("", *extras)]
    return [one for one in requirements if one.marker is None or any(map(one.marker.evaluate, settings))]


def _extra_names() -> set[str]:
    project = _project()
    if project is not None:
        return set(project.get("optional-dependencies", {}))
    return set(distribution(_OWN).metadata.get_all("Provides-Extra") or [])


def _project() -> dict[str, Any] | None:
    """[project] of a checkout's pyproject.toml, since its metadata is as old as its installation; None elsewhere."""
    source = _source()
    return None if source is None else tomllib.loads((source / "pyproject.toml").read_text("utf-8"))["project"]


def _source() -> Path | None:
    """The checkout that this alpasift runs from, None when it was installed from a wheel."""
    recorded = distribution(_OWN).read_text("direct_url.json")
    url = json.loads(recorded) if recorded else {}
    if "dir_info" in url and urlsplit(url["url"]).scheme == "file":
        folder = Path(unquote(urlsplit(url["url"]).path))
        return folder if (folder / "pyproject.toml").is_file() else None
    return None


# -- wheels -------------------------------------------------------------------------------------------------------


def make_wheels(requirements: Mapping[str, str], folder: Path, report: Callable[[str], None]) -> None:
    """Fill an empty folder with the wheels of these packages: alpasift's is built, the others come from an index."""
    if util.find_spec("pip") is None:
        raise BundleError("--wheels runs pip, which is not installed in this environment: python -m ensurepip")
    source = _source()
    isolation = ["--no-build-isolation"] if source and util.find_spec("hatchling") is not None else []
    report("making the wheel of alpasift")
    _pip_wheel([*isolation, str(source) if source else f"{_OWN}=={requirements[_OWN]}"], folder)
    report(f"fetching the wheels of {len(requirements) - 1} packages")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as others:
        others.writelines(f"{name}=={number}\n" for name, number in requirements.items() if name != _OWN)
        others.flush()
        _pip_wheel(["-r", others.name], folder)


def _pip_wheel(arguments: list[str], folder: Path) -> None:
    retries = ["--retries", "0"] if is_offline() else []
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *retries, "--wheel-dir", str(folder)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        errors = [line.strip() for line in done.stderr.splitlines() if line.strip().upper().startswith("ERROR")]
        message = errors[-1] if errors else done.stderr.strip()[-300:]
        raise BundleError(
            f"pip could not get the wheels: {message}. They are downloaded from an index: run this on a machine "
            f"with a network"
        )


def requirements_text(requirements: Mapping[str, str], wheels: Path | None) -> str:
    """requirements.txt: exact versions, with the hash of each wheel in the folder `wheels`. Raises BundleError."""
    hashes: dict[tuple[str, Version], list[str]] = {}
    for wheel in sorted(wheels.glob("*.whl")) if wheels else []:
        package, built, _, _ = parse_wheel_filename(wheel.name)
        hashes.setdefault((package, built), []).append(hash_file(wheel))
    lines = [f"# alpasift {requirements[_OWN]} and all it needs, as installed on {sysconfig.get_platform()}"]
    for name, number in requirements.items():
        found = hashes.get((name, Version(number)), [])
        if wheels and not found:
            raise BundleError(f"pip found no wheel of {name} {number}, the version that is installed here")
        lines.append(" ".join([f"{name}=={number}", *(f"--hash=sha256:{digest}" for digest in found)]))
    return "\n".join(lines) + "\n"


def misfit(wheel: str) -> str | None:
    """Why a wheel with this file name cannot be installed into this Python, None when it can."""
    try:
        _, _, _, tags = parse_wheel_filename(wheel)
    except InvalidWheelFilename:
        return "this is not the file name of a wheel"
    here = list(sys_tags())
    if not tags.isdisjoint(here):
        return None
    pythons = {(tag.interpreter, tag.abi) for tag in here}
    if pythons.isdisjoint((tag.interpreter, tag.abi) for tag in tags):
        return f"it is for {_names(tag.interpreter for tag in tags)}, and this is Python {this_python()}"
    return f"it is for {_names(tag.platform for tag in tags)}, and this machine is {sysconfig.get_platform()}" + _libc()


def _names(values: Iterable[str]) -> str:
    return ".".join(sorted(set(values)))


def _libc() -> str:
    name, number = platform.libc_ver()
    return f" with {name} {number}" if name else ""
