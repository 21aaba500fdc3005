"""The house: imports go down only, heavy packages are imported where they are used, and the top level is as it should be."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, cli_environment

FLOORS: dict[str, float] = {
    "batcher.cli": 5,
    "batcher.tasks": 4, "batcher.plan": 4, "batcher.search": 4, "batcher.select": 4, "batcher.agree": 4, "batcher.report": 4,
    "batcher.explore": 4, "batcher.batches": 4.5, "batcher.rehearse": 4.5, "batcher.accounts": 3,
    "batcher.engine": 3,
    "batcher.ledger": 2, "batcher.datasets": 2, "batcher.spool": 2, "batcher.questions": 2,
    "batcher.identity": 1.5,
    "batcher.store": 1, "batcher.formats": 1, "batcher.shapes": 1, "batcher.exports": 1,
    "train.data": 0.5, "train.sft": 1, "train.recipes": 0.3, "train.trainer": 0.7, "train.export": 1, "train.gguf_files": 0.5,
    "graders": 0, "graders.rubric": 0, "graders.prices": 0.2, "graders.tokens": 0.1, "graders.reading": 0.5,
    "graders.rehearsal": 0.1, "graders.chat": 0, "graders.choices": 0, "graders.model_files": 0, "graders.offline": 0,
    "batcher.labels": 4, "batcher.trainings": 2, "batcher.calibrate": 4.5, "batcher.bundle": 4.5, "batcher.doctor": 4.2, "batcher.models": 4, "graders.openai_api": 0.3, "graders.batch_files": 0.4, "graders.batch_desk": 0.5, "train.packing": 0.1, "train.artifacts": 0.1, "train.models": 0.3, "train.cards": 0.15, "train.memory": 0.2, "train.calibration": 0.3, "train": 0, "sql": 0,
}  # fmt: skip
BESIDE = {"batcher.formats", "batcher.shapes", "batcher.exports"}
"""Rooms of one floor that `datasets` is made of; they may know each other."""
HEAVY = {"torch", "vllm", "llama_cpp", "ray", "openai", "transformers", "numpy", "peft", "trl", "bitsandbytes"}
OURS = ("batcher", "graders", "train", "sql")


def modules() -> dict[str, Path]:
    found = {}
    for top in OURS:
        for path in sorted((ROOT / top).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def floor(name: str) -> float:
    if name == "batcher":
        return 0
    for known in (name, name.rpartition(".")[0]):
        if known in FLOORS and (known == name or known in ("batcher.cli", "batcher.tasks", "batcher.explore")):
            return FLOORS[known]
    if name.startswith("graders."):
        return 1  # a backend
    raise AssertionError(f"{name} has no floor; give it one in tests/test_layers.py")


def imports(path: Path, top_level_only: bool) -> set[str]:
    tree = ast.parse(path.read_text("utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_go_down_only(name: str) -> None:
    all_names = set(modules())
    here = floor(name)
    for imported in imports(modules()[name], top_level_only=False) & all_names - {name}:
        beside = {name, imported} <= BESIDE or (name.startswith("batcher.cli") and imported.startswith("batcher.cli"))
        inside = imported in ("batcher", "graders", "train", "sql")
        assert floor(imported) < here or beside or inside, (
            f"{name} (floor {here}) imports {imported} (floor {floor(imported)})"
        )


def test_graders_and_train_never_import_the_batcher() -> None:
    for name, path in modules().items():
        if name.split(".")[0] in ("graders", "train"):
            assert not {i for i in imports(path, False) if i.split(".")[0] == "batcher"}, name


def test_only_the_store_imports_duckdb_and_only_the_cli_imports_click() -> None:
    for name, path in modules().items():
        found = {i.split(".")[0] for i in imports(path, False)}
        assert "duckdb" not in found or name == "batcher.store", name
        assert "click" not in found or name.startswith("batcher.cli"), name


def test_heavy_packages_are_imported_where_they_are_used() -> None:
    for name, path in modules().items():
        assert not {i.split(".")[0] for i in imports(path, True)} & HEAVY, name


def test_help_imports_neither_duckdb_nor_arrow() -> None:
    code = (
        "import sys; from batcher.cli import run; run(['--help']); "
        "heavy = {'duckdb', 'pyarrow', 'openai', 'rich', 'numpy', 'orjson', 'genai_prices'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=cli_environment())
    assert done.returncode == 0, done.stderr
    assert "Grade, sift and fine-tune" in done.stdout


def test_only_commands_print_or_exit() -> None:
    for name, path in modules().items():
        if name.startswith("batcher.cli"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("print", "exit", "input"), f"{name}:{node.lineno}"
