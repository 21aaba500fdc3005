"""What a newcomer meets first: where options may stand, what is checked before consent, and how a command ends."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from alpasift.batcher.cli import COMMANDS, LazyGroup, _global_options_first, cli
from alpasift.batcher.money.dollars import parse_usd
from alpasift.batcher.store import Store, StoreError
from alpasift.graders import AlpaSiftError, BackendError
from alpasift.graders.api.connection import base_url_of
from conftest import EXAMPLES, Ran, cli_environment, some_rows, write_rows

Call = Callable[..., Ran]


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        (["scores", "--db", "x"], ["--db", "x", "scores"]),
        (["scores", "--db=x", "--json"], ["--db=x", "scores", "--json"]),
        (["grade", "--grader", "rules", "--offline"], ["--offline", "grade", "--grader", "rules"]),
        (["batch", "import", "f", "--db", "x"], ["--db", "x", "batch", "import", "f"]),
        (["bundle", "create", "d", "--db", "x"], ["bundle", "create", "d", "--db", "x"]),
        (["doctor", "--offline", "--db", "x"], ["--db", "x", "doctor", "--offline"]),
        (["show", "--version"], ["--version", "show"]),
        (["sql", "--", "--db"], ["sql", "--", "--db"]),
        (["--db"], ["--db"]),
    ],
)
def test_a_global_option_may_stand_anywhere(typed: list[str], read: list[str]) -> None:
    assert _global_options_first(typed) == read


def test_no_command_has_an_option_of_a_global_name_that_is_not_known_of() -> None:
    ctx = click.Context(cli)
    assert isinstance(cli, LazyGroup)
    owners = {
        name
        for name in COMMANDS
        if (command := cli.get_command(ctx, name))
        for one in [command, *(command.commands.values() if isinstance(command, click.Group) else ())]
        for param in one.params
        if set(param.opts) & {"--db", "--offline", "--version"}
    }
    assert owners == {"doctor", "bundle"}


def test_the_database_may_be_named_after_the_command(alpasift: Call) -> None:
    assert alpasift("import", EXAMPLES, "--db", "a.duckdb").code == 0
    assert "a.duckdb" in alpasift("status", "--db=a.duckdb").out


def test_doctor_prints_the_same_wherever_offline_stands(alpasift_process: Call) -> None:
    before, after = alpasift_process("--offline", "doctor"), alpasift_process("doctor", "--offline")
    assert (before.code, before.out, before.err) == (after.code, after.out, after.err)
    assert before.out != alpasift_process("doctor").out


def test_a_misspelled_command_or_option_is_answered_with_a_proposal(alpasift: Call) -> None:
    for words, meant in ((["grad"], "grade"), (["bundel"], "bundle"), (["scores", "--rubic", "x"], "--rubric")):
        ran = alpasift(*words)
        assert (ran.code, f"id you mean {meant!r}" in ran.err or f"did you mean {meant}?" in ran.err) == (2, True), (
            ran.err
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--grader", "ruls"], "no grader named 'ruls'; did you mean rules?"),
        (["--grader", "fake", "--rubric", "acuracy"], "no rubric named 'acuracy'; did you mean accuracy?"),
    ],
)
def test_filter_imports_nothing_for_a_misspelled_grader_or_rubric(
    alpasift: Call, tmp_path: Path, options: list[str], words: str
) -> None:
    write_rows(tmp_path / "r.jsonl", some_rows(4))
    ran = alpasift("filter", "r.jsonl", "-o", "kept.json", *options)
    assert (ran.code, words in ran.err, ran.out) == (1, True, "")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["r.jsonl"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--grader", "fake", "--rubric", "rules"], "fake cannot grade by the rubric rules: the rubric `rules` works"),
        (["--grader", "rules", "--rubric", "accuracy"], "rules cannot grade by the rubric accuracy: rules checks only"),
    ],
)
def test_a_grader_that_cannot_grade_by_a_rubric_says_so_in_the_users_words(
    alpasift: Call, tmp_path: Path, options: list[str], words: str
) -> None:
    write_rows(tmp_path / "r.jsonl", some_rows(4))
    alpasift("import", "r.jsonl")
    ran = alpasift("grade", *options)
    assert (ran.code, words in ran.err) == (3, True), ran.err


def test_a_file_or_a_dataset_where_a_command_takes_none_is_told_what_to_do(alpasift: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "r.jsonl", some_rows(4))
    alpasift("import", "r.jsonl")
    file = alpasift("grade", "r.jsonl", "--grader", "rules")
    assert (file.code, file.out) == (2, "")
    assert "grade takes no file; import it first: alpasift import r.jsonl, and name the dataset" in file.err
    assert "; to name a dataset: --dataset r" in alpasift("grade", "r", "--grader", "rules").err
    two = alpasift("grade", "r", "s", "--grader", "rules")
    assert (two.code, "Got unexpected extra arguments (r s)" in two.err) == (2, True)


def test_tables_is_schema(alpasift: Call) -> None:
    alpasift("import", EXAMPLES)
    assert alpasift("tables").out == alpasift("schema").out != ""
    assert alpasift("tables", "graded_rows").out == alpasift("schema", "graded_rows").out


def test_doctor_names_the_extra_that_brings_what_is_missing_and_every_extra_named_is_one(tmp_path: Path) -> None:
    missing = (
        "import sys; sys.modules.update(dict.fromkeys(['llama_cpp', 'llama_cpp.llama_cpp', 'vllm', 'torch', 'gguf']))"
    )
    main = "from alpasift.batcher.cli import run; run(['doctor', '--json'])"
    ran = subprocess.run(
        [sys.executable, "-c", f"{missing}; {main}"],
        cwd=tmp_path,
        env=cli_environment(),
        capture_output=True,
        text=True,
    )
    found = {row["what"]: row["message"] for row in json.loads(ran.stdout)}
    for what, extra in (
        ("grader llama_cpp", "llama"),
        ("grader vllm", "vllm"),
        ("training", "train"),
        ("export to GGUF", "llama,train"),
    ):
        assert f"pip install 'alpasift[{extra}]'" in found[what], found[what]
    root = Path(__file__).parents[1]
    extras = set(tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    texts = [path.read_text() for folder in ("batcher", "graders", "train") for path in (root / folder).rglob("*.py")]
    named = {extra for text in texts for one in re.findall(r"alpasift\[([\w,]+)\]", text) for extra in one.split(",")}
    assert named and named <= extras, named


@pytest.mark.parametrize("command", [["show", "--limit", "186"], ["scores"], ["sql", "select * from graded_rows"]])
def test_an_output_that_nobody_reads_on_is_no_error(alpasift: Call, tmp_path: Path, command: list[str]) -> None:
    alpasift("import", EXAMPLES)
    alpasift("grade", "--grader", "fake")
    reading, writing = os.pipe()
    os.close(reading)  # as `head` closes it, only earlier
    done = subprocess.run(
        [sys.executable, "-m", "alpasift", *command],
        cwd=tmp_path,
        env=cli_environment(),
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


# -- before consent -------------------------------------------------------------------------------------------------


@pytest.fixture
def paid(alpasift: Call, tmp_path: Path) -> list[str]:
    write_rows(tmp_path / "r.jsonl", some_rows(4))
    script = 'usd_per_million_input = "1"\nusd_per_million_output = "1"\n[[reply]]\ntext = "5"\n'
    (tmp_path / "paid.toml").write_text(script)
    alpasift("import", "r.jsonl")
    return ["grade", "--grader", "fake:paid.toml", "--budget", "1"]


def at_a_terminal(command: list[str], answer: bytes, folder: Path) -> tuple[int, str]:
    """Run a command at a terminal on which `answer` is typed. Returns its exit code and all that it shows."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "alpasift", *command],
        cwd=folder,
        env=cli_environment(),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    while b"Spend it?" not in shown:
        shown += os.read(ours, 1024)
    os.write(ours, answer)
    try:
        while part := os.read(ours, 1024):
            shown += part
    except OSError:  # the other side is closed
        pass
    os.close(ours)
    return process.wait(), shown.decode()


def test_a_no_is_no_error_of_usage_and_changes_nothing(paid: list[str], tmp_path: Path) -> None:
    code, shown = at_a_terminal(paid, b"n\n", tmp_path)
    assert (code, shown.splitlines()[-1]) == (2, "Cancelled. Nothing was sent.")
    assert "Usage" not in shown
    store = Store(tmp_path / "alpasift.duckdb")
    assert (store.query("labels"), store.query("ledger")[0]["budget_usd"]) == ([], None)


def test_a_yes_spends(paid: list[str], tmp_path: Path) -> None:
    code, shown = at_a_terminal(paid, b"y\n", tmp_path)
    assert (code, "4 replies" in shown) == (0, True), shown


def test_a_missing_key_is_said_before_consent_is_asked_for(alpasift: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "r.jsonl", some_rows(4))
    alpasift("import", "r.jsonl")
    for grader in ("openai_batch:gpt-4.1-nano", "openai_chat:gpt-4.1-nano"):
        ran = alpasift("grade", "--grader", grader, "--budget", "5")
        assert (ran.code, "OPENAI_API_KEY" in ran.err, "--yes" in ran.err) == (3, True, False), ran.err


# -- what is typed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amount", ["1_0", "inf", "nan", "５", "1e9999", "", "$", "-1", "0x10", "1,5"])
def test_a_budget_is_a_plain_number(alpasift: Call, amount: str) -> None:
    with pytest.raises(AlpaSiftError, match="not an amount of dollars"):
        parse_usd(amount)


@pytest.mark.parametrize(
    "option",
    [
        ["grade", "--grader", "rules", "--limit", "1_0"],
        ["select", "--top", "５", "--name", "x"],
        ["select", "--min-score", "4_0", "--name", "x"],
        ["select", "--random", "2", "--seed", "1_1", "--name", "x"],
        ["plan", "--max-hours", "inf"],
        ["sql", "select 1", "--seconds", "nan"],
        ["batch", "export", "d", "--grader", "openai_batch:m", "--limit", "1_0"],
    ],
)
def test_a_number_is_read_only_as_people_write_one(alpasift: Call, option: list[str]) -> None:
    ran = alpasift(*option)
    assert (ran.code, "Invalid value for" in ran.err) == (2, True), ran.err


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://a.org/v1\nHost: b", "control characters"),
        ("https://a.org:99999/v1", "cannot be read"),
        ("https://a.org:x/v1", "cannot be read"),
        ("https://[::1/v1", "cannot be read"),
        ("https://a.org/v1?api-key=sk-secret", "contains ?"),
        ("https://a.org/v1#sk-secret", "contains ?"),
        ("https://me:sk-secret@a.org/v1", "user or a password"),
    ],
)
def test_an_address_that_is_none_or_holds_a_secret_is_refused_without_repeating_it(url: str, words: str) -> None:
    with pytest.raises(BackendError) as error:
        base_url_of(url)
    assert words in str(error.value)
    assert "secret" not in str(error.value)


def test_a_folder_whose_name_is_not_utf8_is_explained(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xff"))
    folder.mkdir()
    with pytest.raises(StoreError, match="is not UTF-8, and DuckDB cannot open it"):
        Store(folder / "a.duckdb").create()


# -- planning and help ----------------------------------------------------------------------------------------------


def test_plan_counts_the_rows_of_a_limit_and_takes_a_budget_that_is_not_set(alpasift: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "r.jsonl", some_rows(40))
    alpasift("import", "r.jsonl")
    key = {"OPENAI_API_KEY": "sk-test-of-nothing"}
    whole = alpasift("plan", "--json", "--budget", "5", env=key).json
    part = alpasift("plan", "--json", "--limit", "10", "--budget", "5", env=key).json
    rows = {name: [offer["rows"] for offer in found["offers"]] for name, found in (("whole", whole), ("part", part))}
    assert rows == {"whole": [40] * 4, "part": [10] * 4}
    assert whole["auto"]["grader"] == "openai_batch:gpt-4.1-nano"
    assert alpasift("plan", "--json", "--budget", "0.000001", env=key).json["auto"]["grader"] is None
    assert Store(tmp_path / "alpasift.duckdb").query("ledger")[0]["budget_usd"] is None


def test_plan_says_each_thing_once_and_of_auto_only_when_asked(alpasift: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "r.jsonl", some_rows(4))
    shown = alpasift("plan", "r.jsonl").out
    assert shown.count("sent off this machine") == 1
    assert "--grader auto" in shown
    assert "--grader auto" not in alpasift("plan", "r.jsonl", "--grader", "rules").out


@pytest.mark.parametrize("command", ["grade", "filter", "calibrate", "plan", "probe", "select", "train", "fit"])
def test_options_stand_under_headings_each_once(alpasift: Call, command: str) -> None:
    ran = alpasift(command, "--help")
    shown = [line.split()[0] for line in ran.out.splitlines() if line.startswith(("  --", "  -o", "  -n", "  -h"))]
    found = cli.get_command(click.Context(cli), command)
    assert found is not None
    assert len(shown) == len(set(shown)) == sum(isinstance(p, click.Option) for p in found.params) + 1
    headings = [line for line in ran.out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert len(headings) >= 3, headings
