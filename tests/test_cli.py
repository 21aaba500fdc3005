"""The command line as users meet it: the main job, wrong input, exit codes, and what goes to stdout and stderr."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from alpasift.batcher.cli import COMMANDS
from conftest import EXAMPLES, ROOT, Ran, cli_environment, new_store, some_rows, write_rows

Call = Callable[..., Ran]
PAID = 'usd_per_million_input = "0.15"\nusd_per_million_output = "0.60"\n'


def one_clear_line(ran: Ran, code: int, *words: str) -> None:
    """An error as a user should meet it: its exit code, the words, one line beside usage hints, no traceback."""
    assert ran.code == code, ran.err
    assert "Traceback" not in ran.err + ran.out
    last = ran.err.strip().splitlines()[-1]
    for word in words:
        assert word in last, ran.err
    assert ran.out == ""


# -- the main job -----------------------------------------------------------------------------------------------


def test_filter_does_the_whole_job(alpasift: Call, tmp_path: Path) -> None:
    ran = alpasift("filter", EXAMPLES, "-o", "kept.json", "--grader", "rules", "--rejected", "out.jsonl")
    assert ran.code == 0, ran.err
    rows = [json.loads(line) for line in EXAMPLES.read_text("utf-8").splitlines()]
    kept = json.loads((tmp_path / "kept.json").read_text("utf-8"))
    assert kept == [row for row in rows if row["expected"] in ("ok", "wrong_answer")]
    rejected = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert [row.pop("alpasift")["reason"] for row in rejected] == [row["expected"] for row in rejected]
    assert rejected == [row for row in rows if row["expected"] not in ("ok", "wrong_answer")]
    manifest = json.loads((tmp_path / "kept.json.manifest.json").read_text("utf-8"))
    assert manifest["counts"]["kept"] == len(kept)
    assert "form only" in ran.err


def test_the_same_filter_again_asks_nobody_and_writes_the_same(alpasift: Call, tmp_path: Path) -> None:
    alpasift("filter", EXAMPLES, "-o", "one.json", "--grader", "fake")
    ran = alpasift("filter", EXAMPLES, "-o", "two.json", "--grader", "fake")
    assert "186 rows were graded before" in ran.err
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_filter_warns_when_hardly_any_or_most_rows_are_kept(alpasift: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "r.jsonl", some_rows(30))
    (tmp_path / "five.toml").write_text('[[reply]]\ntext = "5"\n')
    assert (
        "warning: 100.0%, most rows are kept"
        in alpasift("filter", "r.jsonl", "-o", "k.json", "--grader", "fake:five.toml", "--min-score", "4.5").err
    )
    (tmp_path / "one.toml").write_text('[[reply]]\nmatch = "number 7 "\ntext = "5"\n[[reply]]\ntext = "1"\n')
    few = alpasift("filter", "r.jsonl", "-o", "k.json", "--grader", "fake:one.toml", "--min-score", "4.5")
    assert "warning: 3.3%, few rows are kept" in few.err
    (tmp_path / "none.toml").write_text('[[reply]]\ntext = "1"\n')
    none = alpasift("filter", "r.jsonl", "-o", "never.json", "--grader", "fake:none.toml", "--min-score", "4.5")
    one_clear_line(none, 1, "no row of r meets the condition", "the highest score")
    assert not (tmp_path / "never.json").exists()


def test_rows_without_a_score_are_never_kept_and_counted_by_reason(alpasift: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "r.jsonl", some_rows(6))
    (tmp_path / "s.toml").write_text('[[reply]]\nmatch = "number [23] "\ntext = "perhaps"\n[[reply]]\ntext = "5"\n')
    ran = alpasift("filter", "r.jsonl", "-o", "k.jsonl", "--rejected", "x.jsonl", "--grader", "fake:s.toml")
    assert "2 rows have no score: unreadable" in ran.err
    assert len((tmp_path / "k.jsonl").read_text().splitlines()) == 4
    assert [json.loads(line)["alpasift"]["score"] for line in (tmp_path / "x.jsonl").read_text().splitlines()] == [
        None,
        None,
    ]


def test_step_by_step_is_the_same_job(alpasift: Call, tmp_path: Path) -> None:
    assert alpasift("import", EXAMPLES, "--dataset", "ex").code == 0
    assert alpasift("grade", "--grader", "rules").code == 0
    selected = alpasift("select", "--min-score", "1", "--name", "kept", "--json")
    assert selected.json[0]["counts"]["kept"] == 133
    assert alpasift("export", "--selection", "kept", "-o", "a.jsonl").code == 0
    alpasift("filter", EXAMPLES, "--dataset", "ex", "--grader", "rules", "-o", "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_a_multi_turn_dataset_keeps_its_conversations(alpasift: Call, tmp_path: Path) -> None:
    chats = [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello"},
                {"role": "user", "content": f"Say {i}"},
                {"role": "assistant", "content": str(i)},
            ],
            "source": "mine",
        }
        for i in range(5)
    ]
    write_rows(tmp_path / "c.jsonl", [*chats, {"messages": [{"role": "user", "content": "Are you there?"}]}])
    (tmp_path / "five.toml").write_text('[[reply]]\ntext = "5"\n')
    ran = alpasift("filter", "c.jsonl", "-o", "k.jsonl", "--grader", "fake:five.toml")
    assert "1 row skipped:\n" in ran.err
    assert [json.loads(line) for line in (tmp_path / "k.jsonl").read_text().splitlines()] == chats


def test_scores_as_json_is_a_list_of_counts(alpasift: Call) -> None:
    alpasift("import", EXAMPLES)
    alpasift("grade", "--grader", "rules")
    found = alpasift("scores", "--json").json
    assert set(found[0]) == {"dataset", "grader", "rubric", "score", "reason", "rows", "cumulative_share", "deciles"}
    assert found[0] == {
        "dataset": "instructions",
        "grader": "rules",
        "rubric": "rules",
        "score": 1,
        "reason": None,
        "rows": 133,
        "cumulative_share": pytest.approx(133 / 186),
        "deciles": [0, 0, 1, 1, 1, 1, 1, 1, 1],  # 53 of the 186 rows have 0: 28.5 %
    }
    assert sum(row["rows"] for row in found) == 186
    assert {row["cumulative_share"] for row in found if row["score"] == 0} == {1.0}
    for by in ("category", "length", "keyword"):
        rows = alpasift("scores", "--by", by, "--json").json
        assert rows, by


def test_a_part_graded_says_what_is_not_graded_yet(alpasift: Call) -> None:
    alpasift("import", EXAMPLES)
    graded = alpasift("grade", "--grader", "fake", "--limit", "100")
    found = alpasift("scores", "--json").json
    kept = sum(row["rows"] for row in found if row["score"] is not None and row["score"] >= 4.5)
    assert f": {kept} of the 100 rows graded so far ({kept}.0%); beside all 186 rows of instructions" in graded.err
    assert [row["rows"] for row in found if row["reason"] == "not_graded"] == [86]
    assert max(row["cumulative_share"] or 0 for row in found) == 1.0


def test_two_graders_and_none_named_is_refused_with_the_list(alpasift: Call) -> None:
    alpasift("import", EXAMPLES)
    alpasift("grade", "--grader", "rules")
    alpasift("grade", "--grader", "fake")
    ran = alpasift("select", "--min-score", "1", "--name", "x")
    assert ran.code != 0
    assert "--grader rules" in ran.err
    assert "--grader fake" in ran.err
    assert alpasift("select", "--min-score", "1", "--name", "x", "--grader", "rules").code == 0


def test_sql_and_query_print_tables_json_and_csv(alpasift: Call) -> None:
    alpasift("import", EXAMPLES)
    alpasift("grade", "--grader", "rules")
    text = "select score, count(*) as n from graded group by score order by score"
    assert alpasift("sql", text).out == "score    n\n    0   53\n    1  133\n"
    assert alpasift("sql", text, "--json").json == [{"score": 0, "n": 53}, {"score": 1, "n": 133}]
    assert alpasift("sql", text, "--csv").out == "score,n\n0,53\n1,133\n"
    assert alpasift("query", "scores", "grader=rules", "--json").json == alpasift("scores", "--json").json
    listed = alpasift("query", "--json").json
    assert {"name", "parameters", "what"} == set(listed[0])
    one_clear_line(alpasift("query", "scores", "colour=red"), 1, "takes dataset=... grader=... rubric=...")


def test_a_spreadsheet_does_not_take_a_text_for_a_formula(alpasift: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "r.jsonl", [{"instruction": '=HYPERLINK("http://x")', "input": "@a", "output": "-1"}])
    alpasift("import", "r.jsonl")
    ran = alpasift("sql", "select instruction, input, output from examples", "--csv")
    assert list(csv.reader(io.StringIO(ran.out)))[1] == ['\'=HYPERLINK("http://x")', "'@a", "-1"]


def test_escape_sequences_of_a_row_do_not_reach_the_terminal(alpasift: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "r.jsonl", [{"instruction": "a\x1b[31mb\u202ec", "input": "", "output": "x\x07y"}])
    alpasift("import", "r.jsonl")
    alpasift("grade", "--grader", "fake")
    for ran in (alpasift("show"), alpasift("sql", "select instruction, output from examples")):
        assert "\x1b" not in ran.out
        assert "\u202e" not in ran.out
        assert "\x07" not in ran.out


# -- money ------------------------------------------------------------------------------------------------------


def test_a_paid_run_shows_its_price_and_asks_and_without_a_terminal_needs_yes(alpasift: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "r.jsonl", some_rows(5))
    (tmp_path / "p.toml").write_text(PAID)
    alpasift("import", "r.jsonl")
    one_clear_line(alpasift("grade", "--grader", "fake:p.toml"), 2, "no budget is set", "--budget 5")
    ran = alpasift("grade", "--grader", "fake:p.toml", "--budget", "5")
    assert ran.code == 2
    assert "5 requests to " in ran.err
    assert "add --yes" in ran.err
    assert alpasift("ledger", "--json").json["spent_usd"] == "0.000000000000000"
    done = alpasift("grade", "--grader", "fake:p.toml", "--yes", "--budget", "5")
    assert done.code == 0, done.err
    money = alpasift("ledger", "--json").json
    assert {k: type(v) for k, v in money.items() if k.endswith("_usd")} == dict.fromkeys(
        ["budget_usd", "spent_usd", "reserved_usd", "unresolved_usd", "free_usd"], str
    )
    assert Decimal(money["spent_usd"]) + Decimal(money["free_usd"]) == Decimal(money["budget_usd"]) == 5
    assert Decimal(money["spent_usd"]) > 0


def test_without_a_budget_the_ledger_says_null(alpasift: Call) -> None:
    alpasift("import", EXAMPLES)
    money = alpasift("ledger", "--json").json
    assert (money["budget_usd"], money["free_usd"], money["spent_usd"]) == (None, None, "0.000000000000000")
    assert money["machine"]["seconds"] == 0


@pytest.mark.parametrize("budget", ["five", "-1", "nan", "", "1e30"])
def test_a_budget_that_is_no_amount_is_a_usage_error(alpasift: Call, budget: str) -> None:
    alpasift("import", EXAMPLES)
    one_clear_line(alpasift("grade", "--grader", "fake", "--budget", budget), 2, "not an amount of dollars")


def test_a_budget_of_zero_sends_nothing(alpasift: Call, tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(PAID)
    alpasift("import", EXAMPLES)
    ran = alpasift("grade", "--grader", "fake:p.toml", "--budget", "0", "--yes")
    one_clear_line(ran, 4, "nothing was sent", "No row fits the budget")
    assert alpasift("sql", "select count(*) as n from attempts", "--json").json == [{"n": 0}]


def test_a_budget_too_small_stops_with_code_four_and_says_what_fits(alpasift: Call, tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(PAID)
    alpasift("import", EXAMPLES)
    ran = alpasift("grade", "--grader", "fake:p.toml", "--budget", "0.005", "--yes")
    one_clear_line(ran, 4, "--limit", "grades what fits")
    fits = ran.err.split("--limit ")[1].split()[0]
    assert alpasift("grade", "--grader", "fake:p.toml", "--yes", "--limit", fits, "--budget", "0.005").code in (0, 4)
    money = alpasift("ledger", "--json").json
    assert 0 < Decimal(money["spent_usd"]) <= Decimal("0.005")


def test_plan_spends_nothing_and_auto_never_takes_rules_or_fake(alpasift: Call, tmp_path: Path) -> None:
    alpasift("import", EXAMPLES)
    found = alpasift("plan", "--json").json
    offers = {offer["grader"]: offer for offer in found["offers"]}
    assert set(offers) == {"rules", "fake", "openai_batch:gpt-4.1-nano", "openai_batch:gpt-4o-mini"}
    assert "OPENAI_API_KEY" in offers["openai_batch:gpt-4o-mini"]["why_not"], "priced, and not possible without a key"
    assert found["auto"]["grader"] is None
    one_clear_line(alpasift("grade", "--grader", "auto"), 3, "--grader llama_cpp:PATH.gguf", "alpasift doctor")
    named = alpasift("plan", "--grader", "llama_cpp:no.gguf", "--json").json
    offer = next(o for o in named["offers"] if o["grader"] == "llama_cpp:no.gguf")
    assert offer["why_not"]
    assert alpasift("sql", "select count(*) as n from runs", "--json").json == [{"n": 0}]


# -- wrong input ------------------------------------------------------------------------------------------------


def test_an_unknown_grader_or_rubric_lists_what_there_is(alpasift: Call) -> None:
    alpasift("import", EXAMPLES)
    one_clear_line(
        alpasift("grade", "--grader", "gpt"),
        1,
        "'gpt'",
        "fake, fit, ifd, llama_cpp, openai_batch, openai_chat, rules, s-ifd",
    )
    one_clear_line(
        alpasift("grade", "--grader", "fake", "--rubric", "beauty"),
        1,
        "accuracy, additive, curation, fit, helpfulness, ifd, rules, s-ifd",
    )
    one_clear_line(alpasift("grade", "--grader", "rules", "--rubric", "accuracy"), 3, "rules")


def test_commands_before_any_import_say_what_to_do(alpasift: Call, tmp_path: Path) -> None:
    for command in (
        ["scores"],
        ["grade", "--grader", "fake"],
        ["status"],
        ["ledger"],
        ["sql", "select 1"],
        ["plan"],
        ["show"],
        ["runs"],
    ):
        one_clear_line(alpasift(*command), 1, "no database", "alpasift import FILE")
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_is_none_is_one_clear_line(alpasift: Call, tmp_path: Path) -> None:
    (tmp_path / "alpasift.duckdb").write_text("hello " * 2000)
    one_clear_line(alpasift("scores"), 1, "not a DuckDB database", "--db")
    one_clear_line(alpasift("import", EXAMPLES), 1, "not a DuckDB database")
    one_clear_line(alpasift("--db", tmp_path, "import", EXAMPLES), 1, "is a folder")
    one_clear_line(alpasift("--db", tmp_path / "no" / "x", "import", EXAMPLES), 1, "does not exist")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"", ["a.jsonl", "empty"]),
        ("a.json", b'[{"instruction": "a", "output": "b"},\n {"instruction": }]', ["a.json:2:", "broken JSON"]),
        ("a.jsonl", b'{"asked": "a", "told": "b"}\n', ["a.jsonl", "--map", "asked"]),
        ("a.jsonl", '{"instruction": "h\u00e9", "output": "b"}\n'.encode("utf-16"), ["a.jsonl", "UTF-16"]),
        ("a.jsonl", b'{"instruction": ["a"], "output": "b"}\n', ["a.jsonl"]),
        ("a.json", b"\x89PNG\r\n\x1a\n" + b"\0" * 100, ["a.json"]),
        ("a.parquet", b"PAR1 not really", ["a.parquet"]),
        ("a.csv", b"colour,size\nred,1\n", ["a.csv", "--map"]),
        ("a.jsonl.gz", b"not gzip at all", ["a.jsonl.gz"]),
        ("a.txt", b"hello", ["a.txt"]),
    ],
)
def test_a_file_that_cannot_be_imported_is_one_clear_line_and_nothing_is_written(
    alpasift: Call, tmp_path: Path, name: str, content: bytes, words: list[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    one_clear_line(alpasift("import", name), 1, *words)
    ran = alpasift("status", "--json")
    assert ran.code == 1 or ran.json["datasets"] == []


def test_a_missing_file_and_a_folder_are_one_clear_line(alpasift: Call, tmp_path: Path) -> None:
    one_clear_line(alpasift("import", "no.jsonl"), 1, "no.jsonl")
    (tmp_path / "folder").mkdir()
    one_clear_line(alpasift("import", "folder"), 1, "folder")


def test_bad_rows_beside_good_ones_are_skipped_and_strict_makes_them_fatal(alpasift: Call, tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in some_rows(3)]
    (tmp_path / "r.jsonl").write_text("\n".join([lines[0], '{"instruction": 5}', "{broken", lines[1], lines[2]]) + "\n")
    ran = alpasift("import", "r.jsonl", "--strict", "--dataset", "s")
    one_clear_line(ran, 1, "r.jsonl", "2")
    ran = alpasift("import", "r.jsonl", "--json")
    assert (ran.code, ran.json[0]["rows"], ran.json[0]["skipped"]) == (0, 3, 2)
    assert "rows skipped" in ran.err


def test_where_to_write_is_checked_before_the_work(alpasift: Call, tmp_path: Path) -> None:
    one_clear_line(
        alpasift("filter", EXAMPLES, "-o", tmp_path / "no" / "k.json", "--grader", "rules"), 2, "does not exist"
    )
    one_clear_line(alpasift("filter", EXAMPLES, "-o", tmp_path, "--grader", "rules"), 2, "is a folder")
    assert not (tmp_path / "alpasift.duckdb").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_full_disk_while_printing_is_one_clear_line(alpasift: Call, tmp_path: Path) -> None:
    alpasift("import", EXAMPLES)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "alpasift.batcher.cli", "sql", "select * from examples"],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=cli_environment(),
        )
    assert done.returncode != 0
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_is_no_error(alpasift: Call, tmp_path: Path) -> None:
    alpasift("import", EXAMPLES)
    done = subprocess.run(
        f"{sys.executable} -m alpasift.batcher.cli sql 'select * from range(200000)' --max-rows 200000 --csv | head -2",
        cwd=tmp_path,
        shell=True,
        capture_output=True,
        text=True,
        env=cli_environment(),
    )
    assert done.stdout == "range\n0\n"
    assert done.stderr == ""


def test_selections_that_make_no_sense_are_usage_errors(alpasift: Call) -> None:
    alpasift("import", EXAMPLES)
    one_clear_line(alpasift("select", "--name", "x"), 2, "give exactly one of")
    one_clear_line(alpasift("select", "--name", "x", "--top", "3", "--random", "4"), 2, "give exactly one of")
    one_clear_line(alpasift("select", "--name", "x", "--random"), 2, "--match SELECTION")
    one_clear_line(alpasift("select", "--name", "x", "--top", "3", "--quota", "code"), 2, "CATEGORY:500")
    one_clear_line(alpasift("select", "--name", "x", "--top", "3"), 1, "alpasift grade")
    one_clear_line(alpasift("select", "--name", "a b", "--random", "3"), 1, "a b")
    one_clear_line(alpasift("export", "--selection", "nothing", "-o", "x.json"), 1, "nothing")


def test_a_baseline_of_equal_size(alpasift: Call, tmp_path: Path) -> None:
    alpasift("import", EXAMPLES)
    alpasift("grade", "--grader", "rules")
    alpasift("select", "--min-score", "1", "--name", "kept")
    for order in ("random", "longest", "shortest"):
        ran = alpasift("select", f"--{order}", "--match", "kept", "--name", order, "--json")
        assert ran.json[0]["counts"]["kept"] == 133, ran.err
    assert (
        alpasift("select", "--random", "20", "--nested", "5,10", "--name", "n", "--json").json[1]["counts"]["kept"] == 5
    )


# -- the surface ------------------------------------------------------------------------------------------------


def test_every_help_shows_an_example_that_names_the_command(alpasift: Call) -> None:
    assert alpasift("--help").code == 0
    for name in COMMANDS:
        ran = alpasift(name, "--help")
        assert ran.code == 0, name
        assert "Example:" in ran.out, name
        assert f"alpasift {name}" in ran.out, name


def test_the_version_is_printed(alpasift: Call) -> None:
    assert alpasift("--version").out.startswith("alpasift 0.")


def test_doctor_says_what_each_grader_lacks(alpasift: Call) -> None:
    found = {row["what"]: row for row in alpasift("doctor", "--json").json}
    assert {
        "grader fake",
        "grader llama_cpp",
        "grader rules",
        "python",
        "database",
        "disk",
        "--grader auto",
        "training",
        "card",
    } <= set(found)
    assert found["grader rules"]["ok"] is True


def test_status_and_runs_tell_what_is_there(alpasift: Call) -> None:
    alpasift("import", EXAMPLES)
    alpasift("grade", "--grader", "rules")
    status = alpasift("status", "--json").json
    (graded,) = status["graded"]
    assert (graded["dataset"], graded["grader"], graded["rubric"]) == ("instructions", "rules", "rules")
    assert [graded[name] for name in ("scored", "no_score", "in_flight", "not_graded")] == [186, 0, 0, 0]
    assert status["running_pid"] is None
    assert [run["outcome"] for run in alpasift("runs", "--json").json] == ["done"]
    assert "instructions" in alpasift("status").out


def test_the_database_is_named_by_option_or_environment(alpasift: Call, tmp_path: Path) -> None:
    alpasift("--db", "a.duckdb", "import", EXAMPLES)
    alpasift("import", EXAMPLES, env={"ALPASIFT_DB": str(tmp_path / "b.duckdb")})
    assert {p.name for p in tmp_path.glob("*.duckdb")} == {"a.duckdb", "b.duckdb"}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_database_is_for_its_owner_and_outputs_obey_the_umask(
    alpasift_process: Call, tmp_path: Path, umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        alpasift_process("filter", EXAMPLES, "-o", "k.jsonl", "--rejected", "r.csv", "--grader", "rules")
    finally:
        os.umask(before)
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    ours = {name: found.pop(name) for name in list(found) if name.startswith("alpasift.duckdb")}
    assert set(ours.values()) == {0o600}, ours
    assert found == dict.fromkeys(["k.jsonl", "k.jsonl.manifest.json", "r.csv", "r.csv.manifest.json"], mode)


def test_the_demo_runs(tmp_path: Path) -> None:
    script = ROOT / "examples" / "demo.sh"
    wrapper = tmp_path / "alpasift"
    wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} -m alpasift.batcher.cli "$@"\n')
    wrapper.chmod(0o755)
    done = subprocess.run(
        [script, wrapper, "rules"], cwd=tmp_path, capture_output=True, text=True, env=cli_environment()
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "133 of 186 rows kept" in done.stdout
    assert os.access(tmp_path / ".demo" / "kept.json", os.R_OK)


# -- what a stranger tried --------------------------------------------------------------------------------------


def test_an_output_never_replaces_the_database_the_input_or_another_output(alpasift: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", some_rows(9))
    alpasift("import", "in.jsonl")
    (tmp_path / "link.jsonl").symlink_to("alpasift.duckdb")
    for target in ("alpasift.duckdb", "./alpasift.duckdb", "alpasift.duckdb.lock", "link.jsonl"):
        one_clear_line(alpasift("export", "--dataset", "in", "-o", target, "--format", "jsonl"), 2, "would replace")
    filters = ["filter", "in.jsonl", "--grader", "fake"]
    one_clear_line(alpasift(*filters, "-o", "in.jsonl"), 2, "would replace in.jsonl")
    one_clear_line(alpasift(*filters, "-o", "k.json", "--rejected", "k.json"), 2, "would replace k.json")
    one_clear_line(alpasift(*filters, "-o", "k.json", "--rejected", "k.json.manifest.json"), 2, "would replace")
    one_clear_line(alpasift(*filters, "-o", "k.txt"), 2, "cannot be written")
    os.mkfifo(tmp_path / "pipe.json")
    one_clear_line(alpasift(*filters, "-o", "pipe.json"), 2, "not a regular file")
    assert alpasift("status").code == 0
    assert len((tmp_path / "in.jsonl").read_text().splitlines()) == 9


def test_a_symbolic_link_stays_one(alpasift: Call, tmp_path: Path) -> None:
    alpasift("import", EXAMPLES)
    (tmp_path / "link.jsonl").symlink_to("real.jsonl")
    assert alpasift("export", "--dataset", "instructions", "-o", "link.jsonl").code == 0
    assert (tmp_path / "link.jsonl").is_symlink()
    assert len((tmp_path / "real.jsonl").read_text("utf-8").splitlines()) == 186


def test_a_name_means_its_newest_version_everywhere_and_at_one_the_first(alpasift: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "r.jsonl", some_rows(5))
    alpasift("import", "r.jsonl")
    for text in ("1", "perhaps"):
        (tmp_path / "g.toml").write_text(f'[[reply]]\nmatch = "number [12] "\ntext = "{text}"\n[[reply]]\ntext = "2"\n')
        alpasift("grade", "--grader", "fake:g.toml")
    (tmp_path / "g.toml").write_text('[[reply]]\nmatch = "number [12] "\ntext = "1"\n[[reply]]\ntext = "2"\n')
    again = alpasift("grade", "--grader", "fake:g.toml")
    assert "no score" not in again.err, "the first version scored every row"
    for name, without in (("fake:g.toml", 2), ("fake:g.toml@2", 2), ("fake:g.toml@1", 0)):
        found = alpasift("scores", "--grader", name, "--json").json
        assert sum(row["rows"] for row in found if row["score"] is None) == without, name
        shown = alpasift("show", "--grader", name, "--json").json
        assert sum(row["score"] is None for row in shown) == without, name
        chosen = alpasift("select", "--min-score", "1", "--name", "s", "--grader", name, "--json").json
        assert chosen[0]["counts"]["kept"] == 5 - without, name
    one_clear_line(alpasift("scores", "--grader", "fke"), 1, "no grader named 'fke'", "fake:g.toml@2")
    one_clear_line(alpasift("grade", "--grader", "fake", "--dataset", ""), 1, "no dataset named ''")


def test_filter_with_a_limit_writes_nothing_until_every_row_is_graded(alpasift: Call, tmp_path: Path) -> None:
    filters = ["filter", EXAMPLES, "-o", "k.json", "--grader", "fake", "--limit", "100"]
    first = alpasift(*filters)
    assert (first.code, "nothing was written" in first.err, (tmp_path / "k.json").exists()) == (4, True, False)
    assert alpasift(*filters).code == 0
    assert (tmp_path / "k.json").exists()


def test_a_budget_is_not_set_by_a_command_that_was_not_agreed_to(alpasift: Call, tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(PAID)
    alpasift("import", EXAMPLES)
    assert alpasift("grade", "--grader", "fake:p.toml", "--budget", "5").code == 2
    assert alpasift("ledger", "--json").json["budget_usd"] is None


def test_an_interrupted_query_is_interrupted_and_not_a_fault(alpasift: Call, tmp_path: Path) -> None:
    import signal
    import time

    alpasift("import", EXAMPLES)
    text = "select count(*) from range(10000000) a, range(10000000) b where a.range % 7 = b.range % 11"
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        command = [sys.executable, "-m", "alpasift.batcher.cli", "sql", text]
        with subprocess.Popen(
            command,
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
            env=cli_environment(),
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # our own parent may ignore it
        ) as process:
            time.sleep(2.5)
            process.send_signal(number)
            _, err = process.communicate(timeout=20)
        assert (process.returncode, "interrupted" in err, "fault" in err) == (code, True, False), err


def test_any_value_can_be_printed(alpasift: Call, tmp_path: Path) -> None:
    new_store(tmp_path / "alpasift.duckdb")
    values = [
        "now()",
        "current_timestamp",
        "date '2026-01-01'",
        "time '10:00'",
        "interval 1 day",
        "'nan'::double",
        "'ab'::blob",
        "map {date '2026-01-01': 1}",
        "[1, null]",
        "{'a': 1.5}",
        "uuid()",
        "1::hugeint",
        "'12:00:00+00'::timetz",
    ]
    text = "select " + ", ".join(f"{value} as v{i}" for i, value in enumerate(values))
    for form in ([], ["--json"], ["--csv"]):
        ran = alpasift("sql", text, *form)
        assert ran.code == 0, ran.err
        assert all(f"v{i}" in ran.out for i in range(len(values)))
        if form == ["--json"]:
            json.loads(ran.out, parse_constant=pytest.fail)


def test_numbers_that_are_none_are_usage_errors(alpasift: Call) -> None:
    alpasift("import", EXAMPLES)
    for bad in ("1e30", "nan", "inf", "x"):
        one_clear_line(alpasift("show", "--score", bad), 2, "not a score or share")
        one_clear_line(alpasift("scores", "--by", "length", "--min-score", bad), 2, "not a score or share")
    one_clear_line(alpasift("select", "--random", "5", "--name", "x", "--quota", "coding:\u00b2"), 2, "CATEGORY:500")
    one_clear_line(alpasift("select", "--random", "5", "--name", "x", "--nested", "\u00b2"), 2, "3000,6000")
    one_clear_line(alpasift("import", EXAMPLES, "--map", "output=a", "--map", "output=b"), 2, "twice")
    one_clear_line(alpasift("ledger", "acknowledge", "--reason", " "), 2, "empty")


@pytest.mark.parametrize(
    "text",
    [
        'max_output_tokens = "x"',
        'lines_per_attempt = "a"',
        "lines_per_attempt = 0",
        "reply = 3",
        "delay_seconds = -1",
        "[[reply]]\ntext = 5",
        '[[reply]]\noutcome = "xx"',
        'usd_per_million_input = "1"',
        "colour = 1",
        "[[reply]]\nmatch = '('",
        'usd_per_million_input = "a"\nusd_per_million_output = "b"',
        "not toml",
    ],
)
def test_a_script_that_does_not_hold_together_is_one_clear_line(alpasift: Call, tmp_path: Path, text: str) -> None:
    (tmp_path / "s.toml").write_text(text)
    alpasift("import", EXAMPLES)
    one_clear_line(alpasift("grade", "--grader", "fake:s.toml"), 1, "s.toml")


def test_odd_surroundings_are_no_faults(alpasift: Call, alpasift_process: Call, tmp_path: Path) -> None:
    alpasift("import", EXAMPLES)
    alpasift("grade", "--grader", "fake")
    assert alpasift_process("scores", env={"PYTHONIOENCODING": "latin-1"}).code == 0
    assert alpasift_process("scores", env={"LC_ALL": "C", "PYTHONUTF8": "0"}).code == 0
    closed = f"{sys.executable} -m alpasift.batcher.cli scores >&-"
    done = subprocess.run(closed, cwd=tmp_path, shell=True, capture_output=True, text=True, env=cli_environment())
    assert "Traceback" not in done.stderr
    odd = os.fsencode(tmp_path) + b"/caf\xe9.jsonl"
    Path(os.fsdecode(odd)).write_text(json.dumps(some_rows(1)[0]) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "alpasift.batcher.cli", "import", odd],
        cwd=tmp_path,
        capture_output=True,
        env=cli_environment(),
    )
    assert (done.returncode, b"fault" in done.stderr) == (0, False), done.stderr
    os.mkfifo(tmp_path / "f.gguf")
    one_clear_line(alpasift("grade", "--grader", "llama_cpp:f.gguf", "--dataset", "instructions"), 1, "f.gguf")
    os.mkfifo(tmp_path / "f.duckdb")
    one_clear_line(alpasift("--db", "f.duckdb", "status"), 1, "not a regular file")
    one_clear_line(
        alpasift("grade", "--grader", "fake", "--dataset", "instructions", env={"ALPASIFT_USD_PER_HOUR": "abc"}),
        1,
        "'abc' is not an amount of dollars",
    )


def test_an_option_by_its_former_name_works_and_says_the_name_it_has_now(alpasift: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "r.jsonl", some_rows(5))
    ran = alpasift("import", "r.jsonl", "--shape", "alpaca")
    assert (ran.code, "--shape is deprecated, use --row-format" in ran.err) == (0, True)
    again = alpasift("grade", "--grader", "fake", "--contract=explain")
    assert (again.code, "--contract is deprecated, use --answer-format" in again.err) == (0, True)
    assert alpasift("scores", "--json").json[0]["rubric"] == "accuracy"
    assert "--shape" not in alpasift("import", "--help").out


def test_a_row_format_that_overrules_what_the_keys_show_is_told(alpasift: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "r.jsonl", [{"instruction": "a", "output": "b", "response": "c"}])
    for more in (("--preview",), ()):
        ran = alpasift("import", "r.jsonl", "--row-format", "alpaca", *more)
        assert "read as alpaca, as --row-format says; by its keys the file is dolly" in ran.err, ran.err
    assert "by its keys the file is" not in alpasift("import", "r.jsonl", "--dataset", "d").err
