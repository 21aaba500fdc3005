"""The documents say what is there: every command, view and query, and the README's own claims."""

from __future__ import annotations

import re
import subprocess
import sys

from conftest import ROOT, cli_environment

from batcher.cli import COMMANDS
from batcher.store import sql_texts
from graders import backend_names
from graders.rubric import load_rubric, parse_rubric, rubric_names

README = (ROOT / "README.md").read_text("utf-8")


def test_the_reference_is_what_the_program_would_write() -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, env=cli_environment()
    )
    assert done.returncode == 0, done.stdout


def test_every_command_view_and_query_is_in_the_reference() -> None:
    commands = (ROOT / "docs" / "commands.md").read_text("utf-8")
    for name in COMMANDS:
        assert f"\n## alpasift {name}\n" in commands
    database = (ROOT / "docs" / "database.md").read_text("utf-8")
    for query in sql_texts("queries"):
        assert f"| `{query.name}` | {query.doc} |" in database
    for text in sql_texts("views"):
        for name in re.findall(r"create or replace view (\w+)", text.text):
            row = next(line for line in database.splitlines() if line.startswith(f"| `{name}` |"))
            assert len(row) > 40, f"the view {name} has no comment that says what one row is"


def test_the_readme_names_every_grader_and_rubric_and_no_file_that_is_not_there() -> None:
    for name in backend_names():
        assert f"`{name}" in README
    for name in rubric_names():
        assert f"`{name}`" in README
    for path in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path


def test_the_rubric_of_the_manual_is_a_rubric() -> None:
    text = (ROOT / "docs" / "rubrics.md").read_text("utf-8")
    rubric = parse_rubric(re.findall(r"```toml\n(.*?)```", text, re.S)[0], "docs/rubrics.md")
    assert rubric.choices == ("1", "2", "3", "4", "5")


def test_the_fixed_text_of_a_rubric_is_long_enough_to_be_worth_sharing() -> None:
    for name in ("accuracy", "helpfulness"):
        assert len(load_rubric(name).system.split()) > 200


def test_the_table_of_faults_names_a_test_for_each_of_the_36() -> None:
    tests = (ROOT / "tests" / "test_faults.py").read_text("utf-8")
    rows = re.findall(r"^\| (\d+) \|.*\| (`test_.*`) \|$", (ROOT / "docs" / "faults.md").read_text("utf-8"), re.M)
    assert [int(number) for number, _ in rows] == list(range(1, 37))
    for _, names in rows:
        for name in re.findall(r"`(\w+)`", names):
            assert f"def {name}(" in tests, name
