"""What commands print on terminals of 80 and 120 columns: no line is wider, no word is broken, no cell is cut."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from rich.cells import cell_len

from conftest import call_cli

COMMANDS = [
    ["status"],
    ["runs"],
    ["scores"],
    *(["scores", "--by", by] for by in ("category", "length", "keyword")),
    *(["ledger", "--by", by] for by in ("day", "run", "model", "batch")),
    ["ledger", "entries"],
    ["ledger", "unresolved"],
    ["plan", "--grader", "fake:play.toml", "--grader", "rules", "--grader", "openai_batch:gpt-4.1-nano"],
    ["plan", "--history"],
    ["schema"],
    ["schema", "graded_replies"],
    ["query"],
    *(["query", name] for name in ("progress", "selections", "predictions", "answer_costs", "usage_by_day")),
    ["models"],
    ["agree", "fake", "labels:annotators_of_the_pilot_study"],
    ["fit", "--model", "llama-2-7b", "--data", "rows.jsonl", "--gpu-memory", "24"],
]
SCRIPT = """
usd_per_million_input = 0.1
usd_per_million_output = 0.4
[[reply]]
match = "number 3 "
outcome = "unknown"
[[reply]]
text = "4.5"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with long names: two datasets, four graders, money spent and unresolved, two selections."""
    home = tmp_path_factory.mktemp("widths")
    (home / "play.toml").write_text(SCRIPT)
    rows = [
        {"instruction": f"Name number {i} of the list.", "output": "x" * (i + 1), "category": f"kind_{i % 3}"}
        for i in range(20)
    ]
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (home / "labels.jsonl").write_text("".join(json.dumps({"index": i, "good": i % 2}) + "\n" for i in range(20)))
    for command in (
        ["import", "rows.jsonl", "--dataset", "instructions_of_the_pilot_study"],
        ["grade", "--grader", "rules"],
        ["grade", "--grader", "fake"],
        ["labels", "labels.jsonl", "--as", "annotators_of_the_pilot_study", "--binary"],
        ["grade", "--grader", "fake:play.toml", "--budget", "5", "--yes", "--run-budget", "2"],
        ["select", "--grader", "fake", "--top", "5", "--nested", "2,3", "--name", "kept_by_the_fake_grader"],
    ):
        done = call_cli(command, cwd=home)
        assert done.code in (0, 4), done.err
    return home


def words(text: str) -> set[str]:
    return set(re.findall(r"[^\W_]+", text))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_line_is_wider_than_the_terminal_and_no_word_is_broken_or_cut(folder: Path, command: list[str]) -> None:
    piped = call_cli(command, cwd=folder)
    for columns in (80, 120):
        shown = call_cli(command, cwd=folder, terminal=columns)
        assert shown.code == piped.code, shown.err
        text = shown.out + shown.err
        lines = [line for line in text.splitlines() if not line.startswith(("next: ", "then: "))]
        assert [line for line in lines if cell_len(line) > columns] == []
        assert words(text) <= words(piped.out + piped.err), "a word is broken"
        assert words(piped.out) <= words(text), "a column or a cell is cut"
