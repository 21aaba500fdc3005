"""What is installed: one import package, the same from a checkout, from the source distribution and as an editable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from conftest import EXAMPLES, ROOT
from hostile_folder import imported, make_hostile_folder

FOLDERS = ("batcher", "graders", "train", "sql")


def run(*command: object, cwd: Path, **environment: str) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHONPATH", "ALPASIFT_", "VIRTUAL_ENV"))}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, env={**clean, **environment}
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(target: str, source: Path, into: Path) -> Path:
    run(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", into, cwd=source)
    (built,) = into.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("source")
    with tarfile.open(build("sdist", ROOT, folder / "built")) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.glob("alpasift-*"))


def names_in(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_holds_one_package_with_its_sql_and_rubrics_and_nothing_else(wheel: Path) -> None:
    names = names_in(wheel)
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"alpasift"}
    for folder, suffix in (
        ("sql/migrations", ".sql"),
        ("sql/views", ".sql"),
        ("sql/queries", ".sql"),
        ("graders/prompts/rubrics", ".toml"),
        ("graders/local", ".toml"),
        ("train/fit", ".toml"),
        ("train/fit/presets", ".json"),
    ):
        here = {f"alpasift/{folder}/{path.name}" for path in (ROOT / folder).glob(f"*{suffix}")}
        assert here and here <= names
    assert not [name for name in names if name.startswith("tests") or name.endswith((".duckdb", ".gguf", ".pyc"))]


def test_the_wheel_holds_every_file_of_the_four_folders(wheel: Path) -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    wanted = {f"alpasift/{path.relative_to(ROOT).as_posix()}" for path in files if path.suffix != ".pyc"}
    assert wanted <= names_in(wheel)


def test_the_source_distribution_makes_the_same_wheel(wheel: Path, source: Path, tmp_path: Path) -> None:
    assert not [path for path in source.rglob("*") if path.is_symlink()]
    again = build("wheel", source, tmp_path / "again")
    assert names_in(again) == names_in(wheel)
    ours, theirs = zipfile.ZipFile(wheel), zipfile.ZipFile(again)
    for name in names_in(wheel):
        if name.startswith("alpasift/"):
            assert ours.read(name) == theirs.read(name), name


def importable(python: object, cwd: Path) -> dict[str, bool]:
    """Which of our folders an interpreter finds as top-level packages, and whether it finds alpasift."""
    code = "import importlib.util as u, json, sys; print(json.dumps({n: bool(u.find_spec(n)) for n in sys.argv[1:]}))"
    found: dict[str, bool] = json.loads(run(python, "-c", code, "alpasift", *FOLDERS, cwd=cwd))
    return found


def test_the_editable_installation_offers_only_alpasift(tmp_path: Path) -> None:
    assert importable(sys.executable, tmp_path) == {"alpasift": True, **dict.fromkeys(FOLDERS, False)}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_installed_wheel_does_the_main_job_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", symlinks=True)
    binaries = tmp_path / "env" / "bin"
    pip = (sys.executable, "-m", "pip", "--python", binaries / "python", "install", "-q", "--no-compile")
    run(*pip, "-c", ROOT / "constraints.txt", wheel, cwd=tmp_path)
    assert importable(binaries / "python", tmp_path) == {"alpasift": True, **dict.fromkeys(FOLDERS, False)}
    alpasift, mine = binaries / "alpasift", make_hostile_folder(tmp_path / "mine")
    run(alpasift, "filter", EXAMPLES, "-o", "kept.json", "--grader", "rules", cwd=mine)
    run(alpasift, "--offline", "doctor", cwd=mine)
    found = run(binaries / "python", "-m", "alpasift", "query", "scores", "--json", cwd=mine)
    assert imported(mine) == []
    assert [row["rows"] for row in json.loads(found) if row["score"] == 1] == [133]
    fits = run(alpasift, "fit", "--model", "llama-2-7b", "--data", EXAMPLES, "--gpu-memory", 24, "--json", cwd=tmp_path)
    assert json.loads(fits)["fits"] is True  # without torch, which the core does not bring
    assert not list((tmp_path / "env").rglob("torch"))
    where = run(binaries / "python", "-c", "import alpasift.batcher as b; print(b.__file__)", cwd=tmp_path)
    assert str(tmp_path) in where
