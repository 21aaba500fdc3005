"""The Python API: the documents' code runs, it prints nothing, and money needs the consent that a command needs."""

from __future__ import annotations

import contextlib
import gzip
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import alpasift
from alpasift.batcher import api
from alpasift.batcher.api import Database, NotConfirmed, Progress
from alpasift.batcher.data.files.file_row import DatasetError
from alpasift.batcher.engine.consent import SpendingOffer
from alpasift.batcher.money.ledger import NoBudget
from alpasift.batcher.store import QueryError, Store
from alpasift.batcher.store.lock import AnotherRun
from alpasift.graders import BackendError
from alpasift.graders.rehearsal.server import Rehearsal
from batch_harness import MARKER, MODEL, PRICES, check, expected, marked_store, options, scores
from conftest import EXAMPLES, ROOT, cli_environment, some_rows, write_rows

RELEASE = ROOT / "tests" / "data" / "release_0_1_0"
NANO = "gpt-4.1-nano"
LIST = f"""
[[price]]
provider = "127.0.0.1"
model = "{NANO}"
input = "0.10"
output = "0.40"
discount = "0.5"
source = "the rehearsal's own"
date = 2026-11-01
"""
SLOW = "delay_seconds = 0.15\n"


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """These variables, and no other of OpenAI's or ours."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update({**cli_environment(), **values})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def lab(tmp_path: Path) -> Database:
    """A database of 40 plain rows."""
    db = alpasift.open(tmp_path / "lab.duckdb")
    db.import_file(write_rows(tmp_path / "rows.jsonl", some_rows(40)))
    return db


@pytest.fixture
def server() -> Iterator[Rehearsal]:
    with Rehearsal(prices=PRICES, marker=MARKER) as made, environment(OPENAI_API_KEY="rehearsal"):
        yield made


def script(folder: Path, text: str) -> str:
    """A grader that a file of this text directs."""
    (folder / "script.toml").write_text(text)
    return f"fake:{folder}/script.toml"


# -- the documents ----------------------------------------------------------------------------------------------


@pytest.fixture
def notebook(tmp_path: Path) -> Iterator[Callable[[str, dict[str, Any]], None]]:
    """Run code as a notebook does: in a folder with rows.jsonl and qa.csv, with a key and a server of its own."""
    shutil.copy2(EXAMPLES, tmp_path / "rows.jsonl")
    (tmp_path / "qa.csv").write_text("question,answer\nWhat is 2 + 2?,4\nWhat is 3 + 3?,6\n")
    (tmp_path / "prices.toml").write_text(LIST)
    prices = {NANO: {"input": "0.10", "output": "0.40", "cached_input": "0.10", "cache_write": "0.10"}}
    with Rehearsal(prices=prices) as made:
        variables = {"OPENAI_BASE_URL": made.url, "OPENAI_API_KEY": "rehearsal"}
        with environment(**variables), contextlib.chdir(tmp_path):
            yield lambda code, names: exec(compile(code, "<example>", "exec"), names)


def test_the_code_of_the_manual_runs_from_top_to_bottom_and_prints_nothing(
    notebook: Callable[[str, dict[str, Any]], None], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text("utf-8"), re.S)
    names: dict[str, Any] = {}
    for block in blocks:
        notebook(block, names)
    assert len(blocks) >= 8
    assert names["summary"].outcome == "done"
    assert names["kept"].rows == names["baseline"].rows == 133
    assert [row["rows"] for row in names["result"].dicts()] == [53, 133]
    assert names["money"].spent_usd > 0
    assert len((tmp_path / "kept.jsonl").read_text().splitlines()) == 133
    assert capfd.readouterr() == ("", "")


def examples(doc: str) -> list[str]:
    """The code of a docstring: what is indented in it."""
    return [textwrap.dedent(block) for block in re.findall(r"(?:^    .*\n?)+(?:\n(?:^    .*\n?)+)*", doc, re.M)]


def test_each_method_has_an_example_that_runs_and_prints_nothing(
    notebook: Callable[[str, dict[str, Any]], None], capfd: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {}
    for block in examples(inspect.getdoc(api) or ""):
        notebook(block, names)
    names["db"].grade(grader=f"openai_batch:{NANO}", rubric="curation", limit=5, budget="5", confirm=True, wait=False)
    for name, method in inspect.getmembers(Database, inspect.isfunction):
        if not name.startswith("_") and name not in ("import_file", "cancel"):
            found = examples(inspect.getdoc(method) or "")
            assert found, f"{name} shows no example"
            for code in found:
                notebook(code, names)
    for method in (Database.cancel, Database.import_file):  # at the end: no batch is left, and there are two datasets
        for code in examples(inspect.getdoc(method) or ""):
            notebook(code, names)
    assert [row["dataset"] for row in names["db"].status().datasets] == ["rows", "qa"]
    for code in [*examples(inspect.getdoc(alpasift.open) or ""), *examples(inspect.getdoc(alpasift) or "")]:
        notebook(code, names)
    assert capfd.readouterr() == ("", "")


def test_the_notebook_runs_as_a_script_and_writes_nothing_here(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "notebook.py"],
        cwd=ROOT,
        env=cli_environment({"TMPDIR": str(tmp_path / "tmp")}),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "133 of 186 rows kept" in done.stdout
    assert "spent $0.00" in done.stdout
    assert len(list((tmp_path / "tmp").glob("alpasift-notebook-*/kept.jsonl"))) == 1


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, alpasift; "
        "heavy = {'duckdb', 'pyarrow', 'openai', 'click', 'rich', 'numpy', 'orjson', 'pandas'} & set(sys.modules); "
        "assert not heavy, heavy; assert alpasift.__version__; assert alpasift.AlpaSiftError; "
        "assert set(alpasift.__all__) <= set(dir(alpasift)); alpasift.Database"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=cli_environment())
    assert (done.returncode, done.stderr) == (0, "")
    with pytest.raises(ImportError, match="nothing"):
        exec("from alpasift import nothing")


# -- errors and output ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda db: db.import_file("nowhere.jsonl"), "nowhere.jsonl"),
        (lambda db: db.grade(grader="nobody"), "no grader named 'nobody'"),
        (lambda db: db.grade(grader="rules", dataset="other"), "no dataset named 'other'"),
        (lambda db: db.grade(grader="fake", samples=0), "1 to 64"),
        (lambda db: db.grade(grader="fake", settings={"bugdet": 5}), "unknown grader setting 'bugdet'"),
        (lambda db: db.plan(grader="fake", settings={"in_fligth": 5}), "unknown grader setting 'in_fligth'"),
        (lambda db: db.grade(grader="fake", budget=0.1), "not an exact amount of dollars"),
        (lambda db: db.plan(max_usd=True), "not an exact amount of dollars"),
        (lambda db: db.grade(grader="fake", budget="five"), "'five' is not an amount of dollars"),
        (lambda db: db.select("kept"), "exactly one of"),
        (lambda db: db.select("kept", min_score="high"), "'high' is not a score or share"),
        (lambda db: db.select("kept", min_score=float("nan")), "nan is not a score or share"),
        (lambda db: db.select("kept", calibrated=True), "this dataset has no grades"),
        (lambda db: db.scores(grader="fake"), "no grader named 'fake' has grades here"),
        (lambda db: db.cancel(everything=True), "no batch is in flight"),
        (lambda db: db.cancel(), "give one batch"),
        (lambda db: db.cancel("b", everything=True), "give one batch"),
        (lambda db: db.export(db.path), "would replace"),
        (lambda db: db.export("out.jsonl", selection="a", dataset="b"), "not both"),
        (lambda db: db.query("nothing"), "no query named 'nothing'"),
        (lambda db: db.query("runs", {"limit": 5}), "runs takes row_limit"),
        (lambda db: alpasift.open(db.path.with_name("rows.jsonl")), "not a DuckDB database"),
        (lambda db: alpasift.open("none.duckdb").scores(), "no database none.duckdb yet"),
    ],
)
def test_what_goes_wrong_is_an_alpasift_error_and_nothing_is_printed(
    lab: Database, capfd: pytest.CaptureFixture[str], call: Callable[[Database], object], says: str
) -> None:
    with pytest.raises(alpasift.AlpaSiftError, match=re.escape(says)):
        call(lab)
    assert capfd.readouterr() == ("", "")


def test_progress_is_a_line_on_stderr_or_a_function(lab: Database, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[Progress] = []
    assert lab.grade(grader="fake", progress=seen.append).replied == 40
    assert seen[-1].replied == 40
    assert capfd.readouterr() == ("", "")
    assert lab.grade(grader="rules", progress=True).outcome == "done"
    out, err = capfd.readouterr()
    assert (out, "of 40 rows" in err) == ("", True)


# -- queries ----------------------------------------------------------------------------------------------------


def test_sql_reads_only_and_stops_at_its_limits(lab: Database, tmp_path: Path) -> None:
    before = lab.path.read_bytes()
    for text in (
        "delete from examples",
        "create table mine (i integer)",
        f"copy examples to '{tmp_path}/stolen.csv'",
        f"select * from read_csv('{tmp_path}/rows.jsonl')",
        "set memory_limit = '90GB'",
        "attach 'other.duckdb'",
        "select 1; select 2",
        "select nothing from nowhere",
    ):
        with pytest.raises(QueryError):
            lab.sql(text)
    assert lab.path.read_bytes() == before
    assert not (tmp_path / "stolen.csv").exists()
    with pytest.raises(QueryError, match=r"stopped after 0\.5 s"):
        lab.sql(
            "select count(*) from range(10000000) a, range(10000000) b where hash(a.range, b.range) = 7", seconds=0.5
        )
    cut = lab.sql("from range(30000)", max_rows=25_000)
    assert (len(cut), cut.cut) == (25_000, True)
    whole = lab.sql("from range(25000)", max_rows=25_000)
    assert (len(whole), whole.cut) == (25_000, False)


def test_a_result_is_an_arrow_table_with_exact_decimals(lab: Database) -> None:
    import pyarrow as pa

    found = lab.sql("select 0.1::decimal(38, 15) as usd, $n::bigint as n, uuid()::text as id where $n > 0", {"n": 7})
    assert found.dicts()[0]["usd"] == Decimal("0.1")
    assert found.arrow().schema.field("n").type == pa.int64()
    assert pa.table(found) == found.arrow(), "it speaks Arrow's own interface"
    empty = lab.sql("select position, score from graded_rows")
    assert (len(empty), empty.arrow().schema.field("position").type) == (0, pa.int64())
    for make in (found.df, found.pl):
        try:
            assert len(make()) == 1
        except alpasift.AlpaSiftError as error:
            assert re.fullmatch(r"(pandas|polars) is not installed; `pip install \1`, or take .*", str(error))


# -- stopping and resuming --------------------------------------------------------------------------------------


def test_an_interrupted_grade_resumes_where_it_was(lab: Database, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.replied >= 10:
            raise KeyboardInterrupt

    grader = script(tmp_path, SLOW)
    with pytest.raises(KeyboardInterrupt):
        lab.grade(grader=grader, progress=stop)
    scored = lab.status().graded[0]["scored"]
    assert 0 < scored < 40
    summary = lab.grade(grader=grader)
    assert (summary.outcome, summary.already, summary.replied) == ("done", scored, 40 - scored)


def test_a_killed_grade_resumes_where_it_was(lab: Database, tmp_path: Path) -> None:
    grader = script(tmp_path, SLOW)
    code = "import alpasift, sys; alpasift.open(sys.argv[1]).grade(grader=sys.argv[2])"
    command = [sys.executable, "-c", code, str(lab.path), grader]
    with subprocess.Popen(command, env=cli_environment()) as process:
        while process.poll() is None and not (scored := sum(row["scored"] for row in lab.status().graded)):
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "it was done before it was killed: the test tests nothing"
    summary = lab.grade(grader=grader)
    assert (summary.outcome, summary.already + summary.replied) == ("done", 40)
    assert summary.already >= scored > 0
    counts = "select count(*), count(distinct position) from graded_rows where score is not null"
    assert list(lab.sql(counts).dicts()[0].values()) == [40, 40]


def test_two_objects_on_one_file_read_while_one_grades_and_only_one_grades(lab: Database, tmp_path: Path) -> None:
    other = alpasift.open(lab.path)
    failed: list[alpasift.AlpaSiftError] = []

    def work() -> None:
        try:
            lab.grade(grader=script(tmp_path, SLOW))
        except alpasift.AlpaSiftError as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    scored = "select position from graded_rows where score is not null"
    while thread.is_alive() and not len(other.sql(scored)):
        time.sleep(0.05)
    assert 0 < len(other.sql(scored)) < 40, "it was done before anybody looked: the test tests nothing"
    assert other.status().running_pid == os.getpid()
    with pytest.raises(AnotherRun, match=f"process {os.getpid()} is already working"):
        other.grade(grader="rules")
    thread.join()
    assert failed == []
    assert other.grade(grader="rules").outcome == "done"
    assert other.status().graded == lab.status().graded


# -- money ------------------------------------------------------------------------------------------------------


def test_a_paid_grading_costs_what_the_server_bills(tmp_path: Path, server: Rehearsal) -> None:
    store = marked_store(tmp_path, 30, "lab.duckdb")
    db = alpasift.open(store.path)
    offers: list[SpendingOffer] = []

    def agree(offer: SpendingOffer) -> bool:
        offers.append(offer)
        return True

    grading = {"grader": f"openai_batch:{MODEL}", "rubric": "accuracy", "settings": options(server)}
    summary = db.grade(**grading, budget=5, confirm=agree)
    money = check(store, server, 30)
    assert (summary.outcome, summary.usable, summary.usd) == ("done", 30, money["spent_usd"])
    ledger = db.ledger()
    assert ledger.spent_usd == server.billed_usd() > 0
    assert ledger.free_usd == Decimal(5) - ledger.spent_usd
    assert [offer.requests for offer in offers] == [30]
    assert offers[0].usd <= offers[0].ceiling_usd
    asked = len(server.executions())
    assert db.grade(**grading, confirm=False).already == 30, "nothing is left to pay for, so nobody is asked"
    assert len(server.executions()) == asked


def test_batches_are_submitted_today_and_collected_tomorrow(tmp_path: Path) -> None:
    with Rehearsal(prices=PRICES, marker=MARKER, batch_seconds=600) as server, environment(OPENAI_API_KEY="rehearsal"):
        db, settings = submitted(tmp_path, server)
        assert sum(batch["lines"] for batch in db.in_flight()) > 0
        assert db.collect(settings=settings).in_flight > 0
        server.advance(700)
        assert alpasift.open(db.path).collect(wait=True, settings=settings).in_flight == 0
        assert db.in_flight() == []
        check(Store(db.path), server, 30)


def test_a_cancelled_batch_is_settled(tmp_path: Path) -> None:
    with Rehearsal(prices=PRICES, marker=MARKER, batch_seconds=600) as server, environment(OPENAI_API_KEY="rehearsal"):
        db, settings = submitted(tmp_path, server)
        assert db.cancel(db.in_flight()[0]["batch_id"], wait=True, settings=settings).in_flight == 0
        ledger = db.ledger()
        assert (ledger.reserved_usd, ledger.spent_usd) == (0, server.billed_usd())


def submitted(folder: Path, server: Rehearsal) -> tuple[Database, dict[str, Any]]:
    """A database whose rows are in a batch that takes ten minutes, and the settings that reach its server."""
    db = alpasift.open(marked_store(folder, 30, "lab.duckdb").path)
    settings = options(server)
    summary = db.grade(grader=f"openai_batch:{MODEL}", budget="5", confirm=True, wait=False, settings=settings)
    assert summary.outcome == "partial"
    return db, settings


def test_without_a_budget_or_consent_nothing_is_sent_and_nothing_is_set(tmp_path: Path, server: Rehearsal) -> None:
    store = marked_store(tmp_path, 30, "lab.duckdb")
    db = alpasift.open(store.path)
    grading = {"grader": f"openai_batch:{MODEL}", "rubric": "accuracy", "settings": options(server)}
    with pytest.raises(NoBudget, match="no budget is set"):
        db.grade(**grading, confirm=True)
    for confirm in (False, lambda offer: offer.ceiling_usd == 0):
        with pytest.raises(NotConfirmed, match=r"30 requests to openai.*\$0\.\d+ expected.*nothing was sent"):
            db.grade(**grading, budget="5", confirm=confirm)
    with pytest.raises(alpasift.AlpaSiftError, match="not an exact amount"):
        db.grade(**grading, budget=5.0, confirm=True)
    assert not server.executions()
    assert server.batches() == []
    assert (db.ledger().budget_usd, db.ledger().spent_usd) == (None, 0)
    assert scores(store) != expected(30)


def test_a_rehearsal_costs_nothing_and_keeps_nothing(tmp_path: Path, server: Rehearsal) -> None:
    store = marked_store(tmp_path, 10, "lab.duckdb")
    db = alpasift.open(store.path)
    before = store.path.read_bytes()
    summary = db.grade(grader=f"openai_batch:{MODEL}", budget="5", rehearse=True)
    assert (summary.outcome, summary.replied) == ("done", 10)
    assert summary.usd > 0, "what it would have cost"
    assert store.path.read_bytes() == before
    assert not server.executions()
    with pytest.raises(BackendError, match="nothing to rehearse"):
        db.grade(grader="rules", rehearse=True)


# -- files ------------------------------------------------------------------------------------------------------


def test_side_files_are_for_their_owner_and_the_umask_is_as_it_was(lab: Database) -> None:
    mask = os.umask(0o022)
    try:
        store = Store(lab.path)
        with store.transaction() as con:
            with store.path.with_name("inside").open("w"):
                pass
            con.execute("select 1")
        assert store.path.with_name("inside").stat().st_mode & 0o777 == 0o600
        found = os.umask(0o022)
        assert found == 0o022
    finally:
        os.umask(mask)


def test_the_same_file_again_adds_nothing_and_its_rows_come_back_as_they_were(lab: Database, tmp_path: Path) -> None:
    assert lab.import_file(tmp_path / "rows.jsonl").already_imported
    written = lab.export(tmp_path / "again.jsonl", dataset="rows")
    assert (written.rows, written.manifest) == (40, str(tmp_path / "again.jsonl.manifest.json"))
    assert [json.loads(line) for line in (tmp_path / "again.jsonl").read_text().splitlines()] == some_rows(40)
    with pytest.raises(DatasetError, match="contains no dataset yet"):
        empty = Database(Store(tmp_path / "empty.duckdb").create().path)
        empty.export(tmp_path / "nothing.jsonl")


def test_a_database_of_release_0_1_0_opens_with_its_grades_and_money(tmp_path: Path) -> None:
    kept = json.loads((RELEASE / "release_0_1_0.json").read_text("utf-8"))
    path = tmp_path / "lab.duckdb"
    path.write_bytes(gzip.decompress((RELEASE / "release_0_1_0.duckdb.gz").read_bytes()))
    db = alpasift.open(path)
    columns = kept["graded"]["columns"]
    was = {
        (row[columns.index("example_id")], row[columns.index("grader")], row[columns.index("score")])
        for row in kept["graded"]["rows"]
    }
    now = db.sql("select example_id::text as id, grader, score::text as score from graded").dicts()
    assert {tuple(row.values()) for row in now} == was
    ledger = db.ledger()
    balance = dict(zip(kept["balance"]["columns"], map(Decimal, kept["balance"]["rows"][0]), strict=True))
    assert {name: getattr(ledger, name) for name in balance} == balance
    assert len(db.in_flight()) == kept["counts"]["attempts"] - 36
    assert {row["dataset"] for row in db.scores()} == {"capitals", "capitals@2", "talks"}
    chosen = db.select("again", dataset="capitals", grader="fake", rubric="curation", min_score=4)
    assert chosen.rows > 0
