"""Stored replies are read again by a newer parser: for nothing, once, and the command says what that changed."""

from __future__ import annotations

import gzip
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from alpasift.batcher.data.importing import import_file
from alpasift.batcher.data.versions import resolve
from alpasift.batcher.engine.reread import Reread, read_stored_again
from alpasift.batcher.engine.run import Run
from alpasift.batcher.grading.labels import import_labels
from alpasift.batcher.store import Store
from alpasift.batcher.tasks.grade import Grade
from alpasift.graders import open_backend
from alpasift.graders.prompts.rubric import load_rubric
from conftest import ROOT, run_cli, write_rows

RELEASE = ROOT / "tests" / "data" / "release_0_1_0" / "release_0_1_0.duckdb.gz"
READ_BY_VERSION_1 = {
    "Mount Etna": ("3. Mount Etna lies in Sicily.", "3"),
    "a scale": ("4 (out of 10)", "4"),
    "a fence": ('My rating:\n```json\n{"score": 2.5}\n```', None),
    "plain": ("4.5", "4.5"),
}
"""By what a row is about: a grader's reply, and what version 1 of the parser took for its score."""


@pytest.fixture
def old(tmp_path: Path) -> Store:
    """A database whose replies were read by version 1: six, for two rows without a score were asked once more."""
    store = Store(tmp_path / "lab.duckdb").create()
    rows = [{"instruction": f"About {subject}.", "input": "", "output": "Blue."} for subject in READ_BY_VERSION_1]
    version = import_file(store, write_rows(tmp_path / "rows.jsonl", rows)).version_id
    script = 'usd_per_million_input = "0.15"\nusd_per_million_output = "0.60"\n' + "".join(
        f"[[reply]]\nmatch = '{subject}'\ntext = '''{text}'''\n" for subject, (text, _) in READ_BY_VERSION_1.items()
    )
    (tmp_path / "script.toml").write_text(script)
    task, backend = Grade(load_rubric("accuracy")), open_backend(f"fake:{tmp_path / 'script.toml'}")
    with Run(store, task, backend, version, budget=Decimal(1)) as run:
        run.go()
    with store.transaction() as con:
        con.execute("update readings set reader = '1'")
        for text, score in READ_BY_VERSION_1.values():
            con.execute(
                "update readings set score = $score, usable = $score is not null, "
                "reason = case when $score is null then 'unreadable' end "
                "where exists (select 1 from replies p where p.key = readings.key and p.text = $text)",
                {"score": score, "text": text},
            )
    return store


def scores(store: Store) -> dict[str, Decimal | None]:
    found = store.locked_query("select instruction, score from graded_rows").rows
    return {str(instruction)[6:-1]: score for instruction, score in found}  # type: ignore[misc]


def test_scores_says_how_many_stored_replies_it_read_again_and_how_many_scores_changed(old: Store) -> None:
    before = old.query("ledger")
    assert scores(old)["Mount Etna"] == 3
    first = run_cli(["--db", old.path, "scores"], cwd=old.path.parent)
    assert first.code == 0
    assert "re-parsed 6 stored replies with the new parser: 3 scores changed" in first.err.replace("\n", " ")
    assert scores(old) == {"Mount Etna": None, "a scale": None, "a fence": Decimal("2.5"), "plain": Decimal("4.5")}
    assert old.query("ledger") == before, "at no cost"
    second = run_cli(["--db", old.path, "scores"], cwd=old.path.parent)
    assert "again" not in second.err


def test_a_run_reads_again_too_and_pays_nothing_for_it(old: Store, tmp_path: Path) -> None:
    grader = f"fake:{tmp_path / 'script.toml'}"
    ran = run_cli(["--db", old.path, "grade", "--grader", grader, "--yes", "--json"], cwd=tmp_path)
    assert "re-parsed 6 stored replies with the new parser: 3 scores changed" in ran.err.replace("\n", " ")
    assert "0 replies" in ran.err
    assert scores(old)["a fence"] == Decimal("2.5")


def test_a_database_that_cannot_be_written_is_still_shown_and_says_what_waits(old: Store) -> None:
    code = f"import duckdb; con = duckdb.connect({str(old.path)!r}, read_only=True); print('open', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as one:
        assert one.stdout is not None
        assert one.stdout.readline() == "open\n"  # another program looks at it: no writer gets in
        assert read_stored_again(Store(old.path, wait=0.1)) == Reread(waiting=6)
        one.communicate("\n")
    assert read_stored_again(old) == Reread(replies=6, changed=3)


def test_grades_that_people_made_are_never_read_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "lab.duckdb").create()
    rows = [{"instruction": "Name a colour.", "input": "", "output": colour} for colour in ("Blue.", "Red.")]
    version = import_file(store, write_rows(tmp_path / "rows.jsonl", rows))
    labelled = [{**row, "score": score} for row, score in zip(rows, (4, 3), strict=True)]
    path = write_rows(tmp_path / "labels.jsonl", labelled)
    import_labels(store, path, "people", resolve(store, version.label), load_rubric("accuracy"))
    with store.transaction() as con:
        con.execute("update readings set reader = '1'")
    assert read_stored_again(store) == Reread()
    assert sorted(score for (score,) in store.locked_query("select score from graded").rows) == [3, 4]


def test_a_database_of_release_0_1_0_is_read_again_once_and_its_money_stays(tmp_path: Path) -> None:
    path = tmp_path / "lab.duckdb"
    path.write_bytes(gzip.decompress(RELEASE.read_bytes()))
    store = Store(path).existing()
    balance = "select * from balance"
    before, graded = store.locked_query(balance).rows, store.locked_query("select count(score) from graded").rows
    found = read_stored_again(store)
    assert found.replies > 0
    assert found.waiting == 0
    assert read_stored_again(store) == Reread()
    assert store.locked_query(balance).rows == before
    if not found.changed:
        assert store.locked_query("select count(score) from graded").rows == graded
