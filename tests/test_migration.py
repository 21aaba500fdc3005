"""A database made by release 0.1.0 (tests/data/release_0_1_0) opens here with its ids, grades and money."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from alpasift.batcher.engine.collect import collect
from alpasift.batcher.engine.identities import verify_ids
from alpasift.batcher.store import Store, StoreError
from alpasift.batcher.store.copying import copy_file
from alpasift.batcher.store.lock import run_lock
from conftest import ROOT, cli_environment, run_cli

RELEASE = ROOT / "tests" / "data" / "release_0_1_0"
sys.path.insert(0, str(RELEASE))
from in_flight_server import serve  # noqa: E402

RENAMED = {
    "datasets": {"shape": "row_format", "set_aside": "skipped"},
    "graded": {"expected": "expected_score"},
    "gradings": {"asked": "graded", "mean_expected": "mean_expected_score"},
    "run_list": {"scored": "usable"},
    "batches": {"says": "message"},
}
"""Columns of views that have other names now, by view."""


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database as release 0.1.0 left it."""
    path = tmp_path_factory.mktemp("release") / "lab.duckdb"
    path.write_bytes(gzip.decompress((RELEASE / "release_0_1_0.duckdb.gz").read_bytes()))
    return path


@pytest.fixture
def lab(old: Path, tmp_path: Path) -> Store:
    return Store(shutil.copy2(old, tmp_path / "lab.duckdb"))


def expected() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RELEASE / "release_0_1_0.json").read_text("utf-8"))
    return found


def rows_of(store: Store, text: str, columns: list[str]) -> list[list[Any]]:
    """Some columns of a query, every value as text and doubles with 9 decimals, sorted: as the fixture keeps them."""
    with store.reader() as con:
        kinds = {c: kind for c, kind, *_ in con.execute(f"describe {text}").fetchall()}
        missing = [c for c in columns if c not in kinds]
        assert not missing, f"{text}: no column {missing}"
        shown = [f'round("{c}", 9) as "{c}"' if kinds[c] == "DOUBLE" else f'"{c}"' for c in columns]
        inner = f"select {', '.join(shown)} from ({text})"
        return [list(r) for r in con.execute(f"select columns(*)::varchar from ({inner}) order by all").fetchall()]


def in_order(rows: list[list[Any]]) -> list[list[Any]]:
    return sorted(rows, key=lambda row: [(cell is None, str(cell)) for cell in row])


def check(store: Store, kept: Mapping[str, Any], queries: Mapping[str, str], skip: Mapping[str, set[str]]) -> None:
    for name, one in kept.items():
        if name not in queries or not isinstance(one, dict) or "columns" not in one:
            continue
        keep = [i for i, column in enumerate(one["columns"]) if column not in skip.get(name, set())]
        columns = [RENAMED.get(name, {}).get(one["columns"][i], one["columns"][i]) for i in keep]
        was = [[row[i] for i in keep] for row in one["rows"]]
        assert in_order(rows_of(store, queries[name], columns)) == in_order(was), name


RUN_LIST = """
    select * replace (
        case when outcome is distinct from 'crashed' then replied end as replied,
        case when outcome is distinct from 'crashed' then usable end as usable,
        case outcome when 'crashed' then 'died' else outcome end as outcome
    ) from run_list
"""
"""The release called runs that crashed died, and did not count their replies."""

OF_TABLES = {
    "examples": "select example_id from examples",
    "dataset_rows": "select version_id, position, example_id, category from dataset_rows",
    "set_aside": "select version_id, position, line, reason from set_aside",
    "selection_rows": "select selection_id, position from selection_rows",
    "calibrations": "select * exclude (facts) from calibrations",
    "ledger_sums": "select kind, count(*) as entries, sum(reserved_usd) as reserved_usd, sum(spent_usd) as spent_usd, "
    "sum(unresolved_usd) as unresolved_usd from ledger group by kind",
}


def test_ids_grades_selections_and_money_are_those_of_the_release(lab: Store) -> None:
    kept = expected()
    lab.existing()
    names = {name: f"select * from {name}" for name in kept if name != "counts"}
    check(lab, kept, {**names, **OF_TABLES, "run_list": RUN_LIST}, {})
    with lab.reader() as con:
        for table, count in kept["counts"].items():
            if table not in ("migrations", "views_state"):
                assert con.execute(f"select count(*) from {table}").fetchall() == [(count,)], table
        assert con.execute(
            "select count(*) from questions where subject_id is distinct from example_id"
        ).fetchall() == [(0,)]


def test_batches_that_the_release_left_in_flight_are_collected(lab: Store) -> None:
    state = json.loads((RELEASE / "in_flight.json").read_text("utf-8"))
    done = run_cli(["--db", lab.path, "ledger", "adopt", "--reason", "a copy to try"], cwd=lab.path.parent)
    assert done.code == 0, done.err
    options = {"stands_for": state["stands_for"], "poll_seconds": 0.02, "grace_seconds": 0.0}
    before = dict(os.environ)
    os.environ["OPENAI_API_KEY"] = state["key"]
    try:
        with serve(state) as url:
            found = collect(lab, {"base_url": url, **options}, wait=True)
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert (found.replies, found.in_flight) == (5, 0)
    done = run_cli(["--db", lab.path, "batch", "import", RELEASE / "exported" / "results.jsonl"], cwd=lab.path.parent)
    assert done.code == 0, done.err
    after = json.loads((RELEASE / "after_collect.json").read_text("utf-8"))
    queries = {name: f"select * from {name}" for name in after}
    check(lab, after, queries, {})


@pytest.mark.slow
def test_a_migration_that_is_killed_leaves_the_old_database_or_the_new_one(old: Path, tmp_path: Path) -> None:
    code = "import sys; from alpasift.batcher.store import Store; "
    code += "print('begins', flush=True); Store(sys.argv[1]).existing()"
    killed = 0
    for attempt in range(8):
        path = Path(shutil.copy2(old, tmp_path / f"lab{attempt}.duckdb"))
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, env=cli_environment(), cwd=tmp_path
        )
        assert process.stdout is not None and process.stdout.readline() == b"begins\n"
        time.sleep(0.06 * attempt)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        process.stdout.close()
        store = Store(path).existing()
        graded = expected()["graded"]
        columns = ["example_id", "grader", "rubric", "score", "usd"]
        was = [[row[graded["columns"].index(c)] for c in columns] for row in graded["rows"]]
        assert in_order(rows_of(store, "select * from graded", columns)) == in_order(was)
        path.unlink()
    assert killed


def test_the_file_as_it_was_stays_beside_the_migrated_one(lab: Store) -> None:
    before = lab.path.read_bytes()
    lab.existing()
    assert lab.path.with_name("lab.duckdb.before_005_tasks").read_bytes() == before
    assert not list(lab.path.parent.glob(".lab.duckdb*"))


def test_a_migration_that_fails_on_the_copy_leaves_the_file_alone(lab: Store) -> None:
    with lab_of_today(lab) as con:  # a table of the name that the migration wants to make
        con.execute("create table subjects (nothing integer)")
    before = lab.path.read_bytes()
    with pytest.raises(StoreError, match=r"could not be upgraded .* it is unchanged"):
        lab.existing()
    assert lab.path.read_bytes() == before


def lab_of_today(store: Store) -> Any:
    """A connection to the file as it is, whatever release wrote it."""
    import duckdb

    return duckdb.connect(str(store.path))


@pytest.mark.parametrize("command", [["status"], ["scores"], ["ledger"], ["runs"], ["sql", "select 1"]])
def test_a_newer_database_is_one_line(tmp_path: Path, command: list[str]) -> None:
    store = Store(tmp_path / "new.duckdb").create()
    with store.transaction() as con:
        con.execute("insert into migrations values ('999_from_the_future', now()::timestamp)")
    done = run_cli(["--db", store.path, *command], cwd=tmp_path)
    assert done.code == 1
    assert done.err == (
        f"alpasift: {store.path} was written by a newer alpasift (it has 999_from_the_future); "
        "upgrade with `pip install -U alpasift`\n"
    )


def test_a_database_whose_migration_stopped_half_way_is_brought_to_its_end(lab: Store) -> None:
    lab.existing()
    with lab_of_today(lab) as con:  # the views are those of another release
        con.execute("insert into views_state values ('another', now()::timestamp)")
        con.execute("drop view graded")
    assert Store(lab.path).existing().query("scores", dataset=None, grader=None, rubric=None, hidden=None)


def test_every_id_of_the_release_is_derived_alike_here(lab: Store) -> None:
    counts = expected()["counts"]
    found = {one.kind: one for one in verify_ids(lab.existing())}
    assert {kind: one.compared for kind, one in found.items()} == {
        "examples": counts["examples"],
        "subjects": 0,
        "setups": counts["setups"],
        "questions": counts["questions"],
    }
    assert not any(one.different or one.skipped for one in found.values())


def test_rows_that_another_program_changed_are_found_and_named(lab: Store) -> None:
    lab.existing()
    with lab_of_today(lab) as con:
        con.execute(
            "update examples set output = output || '!' where example_id = (select min(example_id) from examples)"
        )
        changed = str(con.execute("select min(example_id) from examples").fetchall()[0][0])
    done = run_cli(["--db", lab.path, "doctor", "--verify", "--json"], cwd=lab.path.parent)
    assert done.code == 1
    by_kind = {row["kind"]: row for row in done.json}
    assert (by_kind["examples"]["different"], by_kind["examples"]["first"]) == (1, changed)
    assert by_kind["setups"]["different"] == 0
    assert by_kind["questions"]["different"] > 0, "questions about it are others too"
    assert "were changed after they were written" in done.err


def test_a_database_is_not_migrated_under_a_process_that_works_on_it(lab: Store) -> None:
    before = lab.path.read_bytes()
    with run_lock(lab.path):
        done = run_cli(["--db", lab.path, "status"], cwd=lab.path.parent)
    assert (done.code, f"process {os.getpid()} is already working on" in done.err) == (1, True)
    assert lab.path.read_bytes() == before


def test_the_database_stays_locked_while_it_is_migrated(lab: Store) -> None:
    """Closing another descriptor of the file would drop DuckDB's lock: the copy is made by another process."""
    code = "import duckdb, sys; duckdb.connect(sys.argv[1])"
    with lab_of_today(lab):
        copy_file(lab.path, lab.path.with_name("copy.duckdb"))
        other = subprocess.run([sys.executable, "-c", code, lab.path], capture_output=True, text=True)
        assert "Could not set lock" in other.stderr


def test_two_processes_that_open_an_old_database_at_once_both_work(lab: Store) -> None:
    command = [sys.executable, "-m", "alpasift", "--db", str(lab.path), "scores"]
    both = [
        subprocess.Popen(command, env=cli_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    ended = [(process.communicate(), process.returncode) for process in both]
    for (_, err), code in ended:
        assert code == 0 or "is already working on" in err, err
    assert 0 in [code for _, code in ended]
    assert Store(lab.path).existing().query("ledger")


def test_a_copy_that_a_person_kept_under_that_name_stays(lab: Store) -> None:
    precious = lab.path.with_name("lab.duckdb.before_005_tasks")
    precious.write_text("precious")
    lab.existing()
    assert precious.read_text() == "precious"
    assert lab.path.with_name("lab.duckdb.before_005_tasks.2").is_file()
