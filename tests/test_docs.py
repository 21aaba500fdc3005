"""The documents say what is there: every command, view and query, and the README's own claims."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from alpasift.batcher.cli import COMMANDS
from alpasift.batcher.store import relation_texts, sql_texts
from alpasift.graders import BackendError, backend_names, open_backend
from alpasift.graders.prompts.rubric import load_rubric, parse_rubric, rubric_names
from conftest import ROOT, cli_environment

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
    for found in relation_texts():
        if found.kind == "view":
            assert len(found.doc) > 20, f"{found.name} has no comment that says what one row is"
            head = f"| `{found.name}` | {found.doc} |" if found.internal else f"\n### {found.name}\n\n{found.doc}\n"
            assert head in database


def test_the_readme_names_every_grader_and_rubric_and_no_file_that_is_not_there() -> None:
    for name in backend_names():
        assert f"`{name}" in README
    for name in rubric_names():
        assert f"`{name}`" in README
    for path in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path


def test_the_index_lists_every_page_and_no_page_links_to_a_file_that_is_not_there() -> None:
    pages = {page.name: page.read_text("utf-8") for page in (ROOT / "docs").glob("*.md")}
    listed = re.findall(r"^\| \[([\w.]+)\]\(\1\)", pages["index.md"], re.M)
    assert sorted(listed) == sorted(pages.keys() - {"index.md"}), "docs/index.md lists every page once"
    for name, text in pages.items():
        for path in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (ROOT / "docs" / path).exists(), f"{name}: {path}"


def test_the_play_money_script_of_the_manual_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "batches.md").read_text()
    (script,) = [block for block in re.findall(r"```toml\n(.*?)```", text, re.DOTALL) if "usd_per_million" in block]
    (tmp_path / "play.toml").write_text(script)
    with closing(open_backend(f"fake:{tmp_path / 'play.toml'}")) as grader:
        assert grader.paid
    (tmp_path / "typo.toml").write_text(script.replace("times", "time"))
    with pytest.raises(BackendError, match=r"unknown key 'time' of a \[\[reply\]\]; did you mean times\?"):
        open_backend(f"fake:{tmp_path / 'typo.toml'}")
    (tmp_path / "price.toml").write_text('usd_per_million = "1"')
    with pytest.raises(BackendError, match=r"unknown key 'usd_per_million'; did you mean usd_per_million_"):
        open_backend(f"fake:{tmp_path / 'price.toml'}")


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
