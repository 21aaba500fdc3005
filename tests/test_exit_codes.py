"""How commands end: the codes of docs/exit_codes.md, by the commands themselves. Those of signals are in test_cli."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from alpasift.batcher.money.ledger import alarm
from alpasift.batcher.store import Store
from conftest import call_cli, some_rows, write_rows

PAID = 'usd_per_million_input = "1"\nusd_per_million_output = "1"\n'


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four rows that `rules` has graded, a paid grader, a rubric that is none, and other databases: one with an alarm,
    one that is none."""
    folder = tmp_path_factory.mktemp("lab")
    write_rows(folder / "r.jsonl", some_rows(4))
    (folder / "paid.toml").write_text(PAID)
    (folder / "bad.toml").write_text("scale = 3\n")
    (folder / "none.duckdb").write_text("not a database")
    (folder / "empty").mkdir()
    for line in (["import", "r.jsonl"], ["grade", "--grader", "rules"], ["--db", "alarm.duckdb", "import", "r.jsonl"]):
        assert call_cli(line, cwd=folder).code == 0
    with Store(folder / "alarm.duckdb").transaction() as con:
        alarm(con, "above_ceiling", "a charge above its ceiling")
    return folder


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (0, "status"),
        (0, "ledger"),
        (0, "tables"),
        (0, "scores --rubric rules"),
        (0, "show --score 0"),
        (0, "doctor"),
        (1, "import missing.jsonl"),
        (1, "scores --grader nobody"),
        (1, "show --rubric nothing"),
        (1, "scores --dataset other"),
        (1, "select --min-score 1 --grader nobody --name kept"),
        (1, "agree rules labels:nobody"),
        (1, "calibrate --cheap rules --reference labels:nobody"),
        (1, "export --selection none -o out.json"),
        (1, "sql 'select nothing'"),
        (1, "rubric check bad.toml"),
        (1, "bundle verify empty"),
        (1, "--db none.duckdb doctor"),
        (1, "--db alarm.duckdb status"),
        (1, "--db alarm.duckdb ledger"),
        (1, "--db alarm.duckdb ledger --json"),
        (1, "--db alarm.duckdb ledger --csv"),
        (2, "frobnicate"),
        (2, "scores --unknown"),
        (2, "scores --min-score many"),
        (2, "grade"),
        (2, "select --name kept"),
        (2, "ledger settle --reason because"),
        (2, "export --dataset r -o r.jsonl"),
        (2, "grade --grader fake:paid.toml"),
        (2, "grade --grader fake:paid.toml --budget 1"),
        (3, "grade --grader openai_chat:gpt-4.1-nano --budget 1 --yes"),
        (3, "doctor --offline --grader openai_batch:gpt-4.1-nano"),
        (4, "grade --grader fake:paid.toml --budget 0.000001 --yes"),
    ],
)
def test_every_command_ends_with_the_code_that_the_documentation_says(lab: Path, code: int, line: str) -> None:
    ran = call_cli(shlex.split(line), cwd=lab)
    assert ran.code == code, (ran.code, ran.err)
    assert "Traceback" not in ran.err and "bug in alpasift" not in ran.err
    assert code == 0 or ran.err or ran.out, "it says why"
