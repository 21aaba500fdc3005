"""The first run of a real model: planted flips, a planted lift and planted labels come out as the planted numbers."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import EXAMPLES, ROOT, Ran, cli_environment, write_rows

SCRIPT = ROOT / "benchmarks" / "first_real_run.py"

# 24 rows by number. In order: the injected sentence lifts rows 0 to 11 to 5. Row 3 answers 5 the first time a process
# asks and 1 the second. Rows 20 to 23 begin with 5 and end with 2. Row 19 cannot be read. The others answer 4, from row
# 12 on 4.5.
PLANTED = r"""
[[reply]]
match = 'number (0\d|1[01])\.[\s\S]*Score: 5$'
text = "5\nFine.\nScore: 5"
[[reply]]
match = 'number 03\.'
text = "5\nFine.\nScore: 5"
times = 1
[[reply]]
match = 'number 03\.'
text = "1\nFine.\nScore: 1"
[[reply]]
match = 'number 19\.'
text = "no idea"
[[reply]]
match = 'number 2[0-3]\.'
prompt = "Score: N"
text = "Not so good.\nScore: 2"
[[reply]]
match = 'number 2[0-3]\.'
text = "5\nNot so good."
[[reply]]
match = 'number 1\d\.'
text = "4.5\nFine.\nScore: 4.5"
[[reply]]
match = ''
text = "4\nFine.\nScore: 4"
"""
OUTPUT = "The old bridge over the river was closed in spring because two of its arches had cracks, and"
PLANTED = PLANTED.replace(r"number 1\d", r"number 1[2-9]")


def first_real_run(folder: Path, *arguments: object) -> Ran:
    done = subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        cwd=folder,
        env=cli_environment(),
        capture_output=True,
        text=True,
        timeout=280,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def cells(table: str) -> dict[str, tuple[str, str, str]]:
    """The rows of the report's tables: what -> figure, n, interval."""
    rows = re.findall(r"^\| (.+?) \| (.+?) \| ([\d,]*) \| (.*?) \|$", table, re.M)
    return {what: (figure, n, interval) for what, figure, n, interval in rows}


def share_interval(hits: int, of: int) -> str:
    """Wilson's interval by its formula, written out here once more."""
    z, p = 1.959964, hits / of
    low, high = (
        (p + z * z / (2 * of) + s * z * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))) / (1 + z * z / of)
        for s in (-1, 1)
    )
    return f"{0.0 if hits == 0 else low:.1%} to {1.0 if hits == of else high:.1%}"


def planted(folder: Path, price: str = "") -> tuple[Path, Path, Path]:
    """Script, rows and labels: rows from 12 on are kept, and length says nothing."""
    script = folder / "script.toml"
    script.write_text(price + PLANTED)
    rows = [
        {"instruction": f"Question number {i:02d}.", "input": "", "output": f"{OUTPUT} {'well ' * (i % 4)}done."}
        for i in range(24)
    ]
    labels = [{"index": i, "good": int(i >= 12), "odd": i % 2} for i in range(24)]
    return script, write_rows(folder / "rows.jsonl", rows), write_rows(folder / "labels.jsonl", labels)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[object], Ran]:
    folder = tmp_path_factory.mktemp("planted")
    script, rows, labels = planted(folder)
    command = [f"fake:{script}", "--data", rows, "--labels", labels, "--field", "good", "--rows", 24]
    command += ["--other-field", "odd"]
    return folder, command, first_real_run(folder, *command)


@pytest.mark.slow
def test_what_was_planted_is_what_the_table_holds(run: tuple[Path, list[object], Ran]) -> None:
    folder, _, ran = run
    assert ran.code == 0, ran.err
    text = (folder / "first_real_run.md").read_text()
    found = cells(text)
    assert found["labels: rows kept, the prevalence"] == ("50.0% (12)", "24", share_interval(12, 24))
    assert found["rows without an answer"][0] == "0.0% (0)"
    assert found["answers without a readable score"] == ("4.2% (1)", "24", share_interval(1, 24))
    assert found["of these: unreadable"][0] == "4.2% (1)"
    assert [found[f"score {score}"][0] for score in ("5", "4.5", "4")] == ["21.7% (5)", "30.4% (7)", "47.8% (11)"]
    assert found["kept at 4.5 or more"] == ("52.2% (12)", "23", share_interval(12, 23))

    twice, order = "graded twice, temperature 0", "another order, another database"
    assert found[f"{twice}: equal scores"] == ("95.7% (22)", "23", share_interval(22, 23))
    assert found[f"{twice}: flipped at 4.5"] == ("4.3% (1)", "23", share_interval(1, 23))
    assert found[f"{order}: equal scores"] == ("100.0% (23)", "23", share_interval(23, 23))
    assert found["score against score and reasons: flipped at 4.5"] == ("0.0% (0)", "23", share_interval(0, 23))
    assert found["score first against reasons first: flipped at 4.5"] == ("17.4% (4)", "23", share_interval(4, 23))
    mean, spread = -12 / 23, math.sqrt((4 * (-3 + 12 / 23) ** 2 + 19 * (12 / 23) ** 2) / 22 / 23)
    assert found["score first against reasons first: mean difference, second less first"] == (
        f"{mean:.3f}",
        "23",
        f"{mean - 1.959964 * spread:.3f} to {mean + 1.959964 * spread:.3f}",
    )

    assert found["injected: scores that rise"] == ("47.8% (11)", "23", share_interval(11, 23))
    assert found["injected: scores that fall"][0] == "0.0% (0)"
    assert found["injected: rows lifted over 4.5"][0] == "47.8% (11)"
    assert found["injected: mean lift"][:2] == (f"{11 / 23:.3f}", "23")

    # 7 kept rows at 4.5 stand above 11 of 12 others, 4 at 5 above 11 and beside one: (7 * 11 + 4 * 11.5) / (11 * 12)
    good, odd = (cells(text.split(f"## Against the labels {name} ")[1].split("##")[0]) for name in ("good", "odd"))
    assert good["score"][:2] == ("0.932", "23")
    assert good["length of the output, longer is better: the baseline to beat"][:2] == ("0.500", "24")
    # odd: 5 at 4, 3 at 4.5, 3 at 5; even: 6, 4, 2. (5 * 6 / 2 + 3 * (6 + 4 / 2) + 3 * (10 + 2 / 2)) / (11 * 12)
    assert odd["score"][:2] == ("0.545", "23")
    audit = text.split("## Audit")[1].split("##")[0]
    assert "| empty: lowered" in audit
    assert re.search(r"\| verdict \| shows nothing", audit)
    assert found["dollars spent (the ledger)"][0] == "$0"
    assert found["answers a second, score"][1] == str(
        24 * 2 + 2 + 24 + 1
    )  # the unreadable row is asked twice each time
    assert re.search(r"expected score \| not done: .*log-probabilities are given only where its script holds", text)
    assert "**no model: a script answered; these figures mean nothing**" in text
    assert str(folder) not in text  # a table to be handed on names no folder of the machine


@pytest.mark.slow
def test_the_same_command_again_prompts_nothing_and_reports_the_same(run: tuple[Path, list[object], Ran]) -> None:
    folder, command, _ = run
    before = (folder / "first_real_run.md").read_text()
    ran = first_real_run(folder, *command)
    assert ran.code == 0, ran.err
    assert (folder / "first_real_run.md").read_text() == before


def test_other_settings_want_another_database(run: tuple[Path, list[object], Ran]) -> None:
    folder, command, _ = run
    ran = first_real_run(folder, *command, "--seed", 5)
    assert ran.code == 1
    assert "belongs to a run with other settings" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.slow
def test_a_grader_that_costs_dollars_needs_a_budget_and_reports_what_it_spent(tmp_path: Path) -> None:
    price = 'usd_per_million_input = "0.10"\nusd_per_million_output = "0.40"\nlines_per_attempt = 24\n'
    script, rows, labels = planted(tmp_path, price)
    command = [
        f"fake:{script}",
        "--data",
        rows,
        "--labels",
        labels,
        "--field",
        "good",
        "--rows",
        6,
        "--explain-rows",
        3,
    ]
    ran = first_real_run(tmp_path, *command)
    assert ran.code == 1
    assert "--budget" in ran.err
    ran = first_real_run(tmp_path, *command, "--budget", "0.00001")
    assert ran.code == 1
    assert "nothing was sent" in ran.err
    ran = first_real_run(tmp_path, *command, "--budget", "1", "--note", "a trial")
    assert ran.code == 0, ran.err
    text = (tmp_path / "first_real_run.md").read_text()
    assert re.search(r"another order, another database \| not done: each grading costs dollars", text)
    spent = re.search(r"dollars spent \(the ledger\) \| \$(0\.\d+)", text)
    assert spent and 0 < float(spent[1]) < 1
    assert cells(text)["score against score and reasons: equal scores"][1] == "3"


def test_what_cannot_work_is_one_line(tmp_path: Path) -> None:
    script, rows, labels = planted(tmp_path)
    ran = first_real_run(tmp_path, f"fake:{script}", "--data", tmp_path / "none.jsonl", "--labels", labels)
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "no such file" in ran.err
    ran = first_real_run(
        tmp_path, "llama_cpp:none.gguf", "--data", rows, "--labels", labels, "--field", "good", "--db", "b.duckdb"
    )
    assert ran.code == 1
    assert "none.gguf" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.slow
def test_a_run_that_was_stopped_resumes_and_pays_for_no_answer_twice(tmp_path: Path) -> None:
    bill = tmp_path / "bill.txt"
    price = f'usd_per_million_input = "0.10"\nusd_per_million_output = "0.40"\nbill = "{bill}"\n'
    script, rows, labels = planted(tmp_path, price + "delay_seconds = 0.3\n")
    write_rows(labels, [{"index": i, "good": int(i >= 12)} for i in (0, 1, 2, 12, 13, 14)])
    command = [
        f"fake:{script}",
        "--data",
        rows,
        "--labels",
        labels,
        "--field",
        "good",
        "--rows",
        6,
        "--seed",
        1,
        "--budget",
        1,
    ]
    command += ["--explain-rows", 2]
    child = subprocess.Popen(
        [sys.executable, SCRIPT, *map(str, command)],
        cwd=tmp_path,
        env=cli_environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    while not bill.exists() or len(bill.read_text().splitlines()) < 3:
        assert child.poll() is None
        time.sleep(0.05)
    child.terminate()
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert "the same command resumes" in err
    stopped_at = len(bill.read_text().splitlines())
    assert stopped_at < 12 and not (tmp_path / "first_real_run.md").exists()

    script.write_text(price + PLANTED)  # no longer slow; how long a fake takes is no part of who it is
    ran = first_real_run(tmp_path, *command)
    assert ran.code == 0, ran.err
    keys = [line.split()[0] for line in bill.read_text().splitlines()]
    text = (tmp_path / "first_real_run.md").read_text()
    assert "dollars unresolved" not in text  # the call that was under way when it was interrupted was taken in
    unread = cells(text)["answers without a readable score"][0]
    assert unread == "0.0% (0)" and len(keys) == len(set(keys)) == 6 * 3 + 2 * 2


@pytest.mark.llama
@pytest.mark.slow
def test_a_model_of_random_numbers_runs_end_to_end_and_is_called_that(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from tiny_models import make_gguf

    make_gguf(tmp_path / "tiny.gguf")
    given = [json.loads(line) for line in EXAMPLES.read_text("utf-8").splitlines()]
    labels = write_rows(
        tmp_path / "labels.jsonl", [{"index": i, "good": int(r["expected"] == "ok")} for i, r in enumerate(given)]
    )
    ran = first_real_run(
        tmp_path, "llama_cpp:tiny.gguf", "--data", EXAMPLES, "--labels", labels, "--rows", 24, "--explain-rows", 4
    )
    assert ran.code == 0, ran.err
    text = (tmp_path / "first_real_run.md").read_text()
    assert text.startswith("# First real run\n\n**model made of random numbers: these figures mean nothing**\n")
    found = cells(text)
    assert found["answers without a readable score"][:2] == ("0.0% (0)", "24")  # constrained decoding
    for what in ("graded twice, temperature 0", "another order, another database"):
        assert found[f"{what}: equal scores"][:2] == ("100.0% (24)", "24")
    assert found["score against score and reasons: equal scores"][:2] == ("100.0% (4)", "4")  # reasons cannot move it
    assert found["reasons first: answers without a readable score"][:2] == ("0.0% (0)", "4")
    assert {"score", "expected score", "injected: mean lift"} <= found.keys()
    assert "| name in the file | alpasift-tiny |" in text
    assert re.search(r"\| fingerprint \| ends newlines; file [0-9a-f]{64};", text)
