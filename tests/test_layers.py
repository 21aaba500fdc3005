"""What import-linter (`make check`) cannot see: heavy imports stay where they are used; only commands print."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from conftest import ROOT, cli_environment

HEAVY = {"torch", "vllm", "llama_cpp", "ray", "openai", "transformers", "numpy", "peft", "trl", "bitsandbytes"}
OURS = ("batcher", "graders", "train", "sql")


def modules() -> dict[str, Path]:
    found = {}
    for top in OURS:
        for path in sorted((ROOT / top).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


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


def test_heavy_packages_are_imported_where_they_are_used() -> None:
    for name, path in modules().items():
        assert not {i.split(".")[0] for i in imports(path, True)} & HEAVY, name


def test_help_imports_neither_duckdb_nor_arrow() -> None:
    code = (
        "import sys; from alpasift.batcher.cli import run; run(['--help']); "
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
