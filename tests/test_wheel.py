"""The wheel: built, installed into a fresh environment, and used outside the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import EXAMPLES, ROOT


def run(*command: object, cwd: Path, **environment: str) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHONPATH", "ALPASIFT_", "VIRTUAL_ENV"))}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, env={**clean, **environment}
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, ROOT, cwd=folder)
    return next(folder.glob("alpasift-*.whl"))


def test_the_wheel_holds_the_four_packages_with_their_sql_and_rubrics_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"batcher", "graders", "train", "sql"}
    for folder, suffix in (
        ("sql/migrations", ".sql"),
        ("sql/views", ".sql"),
        ("sql/queries", ".sql"),
        ("graders/rubrics", ".toml"),
        ("train", ".toml"),
        ("train/presets", ".json"),
    ):
        here = {f"{folder}/{path.name}" for path in (ROOT / folder).glob(f"*{suffix}")}
        assert here and here <= set(names)
    assert not [name for name in names if name.startswith("tests") or name.endswith((".duckdb", ".gguf", ".pyc"))]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_installed_wheel_does_the_main_job_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "env", cwd=tmp_path)
    binaries = tmp_path / "env" / "bin"
    run(binaries / "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel, cwd=tmp_path)
    alpasift = binaries / "alpasift"
    run(alpasift, "filter", EXAMPLES, "-o", "kept.json", "--grader", "rules", cwd=tmp_path)
    found = run(alpasift, "query", "scores", "--json", cwd=tmp_path)
    assert [row["rows"] for row in json.loads(found) if row["score"] == 1] == [133]
    fits = run(alpasift, "fit", "--model", "llama-2-7b", "--data", EXAMPLES, "--gpu-memory", 24, "--json", cwd=tmp_path)
    assert json.loads(fits)["fits"] is True  # without torch, which the core does not bring
    assert not list((tmp_path / "env").rglob("torch"))
    where = run(binaries / "python", "-c", "import batcher, sql; print(batcher.__file__, sql.__file__)", cwd=tmp_path)
    assert all(str(tmp_path) in path for path in where.split())
