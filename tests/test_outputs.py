"""Files that are written for people: none replaces what it did not write, and rows carry their grades on request."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alpasift.batcher.data.files.rows import read_rows
from alpasift.batcher.data.files.source import inspect
from alpasift.train.artifacts import TrainError, atomic_folder
from alpasift.train.export.disk import check_replaceable
from alpasift.train.run_folder import check_folder
from conftest import Ran, call_cli, some_rows, write_rows

Call = Callable[..., Ran]


def refused(ran: Ran, *words: str) -> None:
    assert ran.code == 2, ran.err
    for word in words:
        assert word in ran.err, ran.err


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nine rows, graded 5 but for two: row 3 has no score, row 4 scores 1."""
    folder = tmp_path_factory.mktemp("graded")
    write_rows(folder / "rows.jsonl", some_rows(9))
    script = [("number 3 ", "perhaps"), ("number 4 ", "1\\nIt is short."), ("", "5\\nIt is right.")]
    (folder / "g.toml").write_text(
        "".join(f'[[reply]]\n{f"match = {json.dumps(m)}" if m else ""}\ntext = "{text}"\n' for m, text in script)
    )
    for command in (
        ["import", "rows.jsonl"],
        ["grade", "--grader", "fake:g.toml", "--answer-format", "explain"],
        ["select", "--min-score", "4", "--name", "kept"],
    ):
        ran = call_cli(command, cwd=folder)
        assert ran.code == 0, ran.err
    return folder


@pytest.fixture
def lab(alpasift: Call, graded: Path, tmp_path: Path) -> Call:
    shutil.copytree(graded, tmp_path, dirs_exist_ok=True)
    return alpasift


# -- what may be replaced -----------------------------------------------------------------------------------------


def test_an_export_never_replaces_the_file_that_was_imported(lab: Call, tmp_path: Path) -> None:
    before = (tmp_path / "rows.jsonl").read_bytes()
    for what in (["--selection", "kept"], ["--dataset", "rows"]):
        refused(lab("export", *what, "-o", "rows.jsonl"), "dataset rows was imported", "--force")
    assert (tmp_path / "rows.jsonl").read_bytes() == before
    assert lab("export", "--selection", "kept", "-o", "rows.jsonl", "--force").code == 0
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 7


def test_a_file_of_ours_that_was_imported_is_a_source_like_any_other(lab: Call, tmp_path: Path) -> None:
    assert lab("export", "--selection", "kept", "-o", "kept.jsonl").code == 0
    assert lab("import", "kept.jsonl").code == 0
    refused(lab("export", "--selection", "kept", "-o", "kept.jsonl"), "dataset kept was imported")


def test_an_export_replaces_its_own_earlier_file_and_no_changed_or_foreign_one(lab: Call, tmp_path: Path) -> None:
    kept = ["export", "--selection", "kept", "-o", "kept.jsonl"]
    assert lab(*kept).code == 0
    assert lab("select", "--min-score", "1", "--name", "kept").code == 0
    assert lab(*kept).code == 0
    assert len((tmp_path / "kept.jsonl").read_text().splitlines()) == 8
    refused(lab("export", "--dataset", "rows", "-o", "kept.jsonl"), "holds selection kept of dataset rows")
    (tmp_path / "kept.jsonl").write_text('{"my": "notes"}\n')
    refused(lab(*kept), "was changed after alpasift wrote it")
    (tmp_path / "mine.csv").write_text("a,b\n")
    refused(lab("export", "--selection", "kept", "-o", "mine.csv"), "alpasift did not write it")
    assert (tmp_path / "mine.csv").read_text() == "a,b\n"
    assert lab(*kept, "--force").code == 0
    assert len((tmp_path / "kept.jsonl").read_text().splitlines()) == 8


def test_a_manifest_of_somebody_else_is_not_replaced_either(lab: Call, tmp_path: Path) -> None:
    (tmp_path / "kept.jsonl.manifest.json").write_text("[]")
    refused(lab("export", "--selection", "kept", "-o", "kept.jsonl"), "kept.jsonl.manifest.json exists")
    assert not (tmp_path / "kept.jsonl").exists()


def test_a_moved_database_still_knows_its_outputs_and_another_one_does_not(lab: Call, tmp_path: Path) -> None:
    assert lab("export", "--selection", "kept", "-o", "kept.jsonl").code == 0
    (tmp_path / "elsewhere").mkdir()
    for file in tmp_path.glob("alpasift.duckdb*"):
        file.rename(tmp_path / "elsewhere" / file.name)
    moved = ["--db", "elsewhere/alpasift.duckdb"]
    assert lab(*moved, "export", "--selection", "kept", "-o", "kept.jsonl").code == 0
    lab("import", "rows.jsonl")
    lab("select", "--random", "2", "--name", "kept")
    refused(lab("export", "--selection", "kept", "-o", "kept.jsonl"), "of another database")


def test_filter_refuses_a_foreign_file_before_it_does_any_work(alpasift: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", some_rows(6))
    (tmp_path / "kept.json").write_text("[]")
    filters = ["filter", "a.jsonl", "-o", "kept.json", "--grader", "rules"]
    refused(alpasift(*filters), "kept.json exists, and alpasift did not write it")
    assert not list(tmp_path.glob("alpasift.duckdb*"))
    assert alpasift(*filters, "--force").code == 0
    assert alpasift(*filters, "--keep-share", ".5").code == 0  # its own file: another threshold is the same purpose
    assert len(json.loads((tmp_path / "kept.json").read_text())) == 3
    write_rows(tmp_path / "b.jsonl", some_rows(4))
    refused(alpasift("filter", "b.jsonl", *filters[2:]), "holds selection a-kept of dataset a")
    (tmp_path / "no.jsonl").write_text("mine")
    refused(alpasift(*filters, "--rejected", "no.jsonl"), "no.jsonl exists")


def test_a_training_is_not_put_into_a_folder_of_somebody_else(tmp_path: Path) -> None:
    check_folder(tmp_path / "new" / "run")
    (tmp_path / "empty").mkdir()
    check_folder(tmp_path / "empty")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("...")
    with pytest.raises(TrainError, match=r"is not empty and has no training.*thesis\.tex"):
        check_folder(tmp_path / "mine")
    (tmp_path / "mine" / "run.json").write_text("{}")
    check_folder(tmp_path / "mine")  # whether it is this training is looked at when it is opened
    with pytest.raises(TrainError, match="is a file"):
        check_folder(tmp_path / "mine" / "run.json")
    with pytest.raises(TrainError, match="cannot be created"):
        check_folder(tmp_path / "mine" / "run.json" / "run")


def test_train_refuses_a_foreign_folder_before_it_reads_rows(alpasift: Call, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("")
    ran = alpasift("train", "--model", "no-model", "--data", "no.jsonl", "-o", "mine")
    assert (ran.code, "mine is not empty" in ran.err) == (1, True), ran.err


def test_an_export_of_a_model_replaces_only_an_export_of_the_same_training(tmp_path: Path) -> None:
    out, ours, other = tmp_path / "out", tmp_path / "run" / "model", tmp_path / "other" / "model"
    with atomic_folder(out, {"form": "merged", "source": str(ours.resolve())}) as draft:
        (draft / "weights").write_text("1")
    check_replaceable(out, "merged", ours)
    with pytest.raises(TrainError, match="holds an export of"):
        check_replaceable(out, "merged", other)
    check_replaceable(out, "merged", other, force=True)
    with pytest.raises(TrainError, match="of the form merged"):
        check_replaceable(out, "adapter", ours)
    (out / "notes.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(TrainError, match=r"contains notes\.txt"):
            check_replaceable(out, "merged", ours, force=force)
    foreign = tmp_path / "model.gguf"
    foreign.write_bytes(b"GGUF of somebody")
    with pytest.raises(TrainError, match="--force"):
        check_replaceable(foreign, "gguf", ours)
    check_replaceable(foreign, "gguf", ours, force=True)


# -- grades beside rows --------------------------------------------------------------------------------------------


def written(path: Path) -> list[dict[str, Any]]:
    return [dict(row.row) for row in read_rows(inspect(path))]


@pytest.mark.parametrize("name", ["all.jsonl", "all.json", "all.csv", "all.parquet"])
def test_exported_rows_carry_the_figures_that_were_asked_for(lab: Call, tmp_path: Path, name: str) -> None:
    ran = lab("export", "--dataset", "rows", "-o", name, "--with", "score,reason", "--with", "explanation,grader")
    assert ran.code == 0, ran.err
    rows = written(tmp_path / name)
    assert [list(row)[-4:] for row in rows] == [["score", "reason", "explanation", "grader"]] * 9
    scores = [None if row["score"] in (None, "") else float(row["score"]) for row in rows]
    assert scores == [5, 5, 5, None, 1, 5, 5, 5, 5]
    assert (rows[3]["reason"], rows[4]["explanation"], rows[4]["grader"]) == (
        "unreadable",
        "It is short.",
        "fake:g.toml",
    )


def test_a_selection_is_written_with_the_grades_it_was_made_by(lab: Call, tmp_path: Path) -> None:
    lab("grade", "--grader", "rules")
    assert lab("export", "--selection", "kept", "-o", "k.jsonl", "--with", "score,grader,rubric").code == 0
    assert {(row["score"], row["grader"], row["rubric"]) for row in written(tmp_path / "k.jsonl")} == {
        (5.0, "fake:g.toml", "accuracy")
    }
    ran = lab("export", "--dataset", "rows", "-o", "d.jsonl", "--with", "score")
    assert (ran.code, "2 gradings of this dataset match" in ran.err) == (1, True), ran.err
    assert lab("export", "--dataset", "rows", "-o", "d.jsonl", "--with", "score", "--grader", "rules").code == 0
    assert {row["score"] for row in written(tmp_path / "d.jsonl")} <= {0.0, 1.0}


def test_a_figure_never_replaces_a_key_of_the_row(alpasift: Call, tmp_path: Path) -> None:
    write_rows(
        tmp_path / "r.jsonl", [{**row, **({"score": "mine"} if i == 2 else {})} for i, row in enumerate(some_rows(4))]
    )
    ran = alpasift("filter", "r.jsonl", "-o", "k.jsonl", "--grader", "rules", "--with", "score,grader")
    assert ran.code == 0, ran.err
    rows = written(tmp_path / "k.jsonl")
    assert [row.get("score") for row in rows] == [None, None, "mine", None]
    assert {(row["alpasift_score"], row["grader"]) for row in rows} == {(1.0, "rules")}
    assert "the grade's is written as alpasift_score" in ran.err


def test_a_misspelled_figure_is_told_before_any_work(alpasift: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "r.jsonl", some_rows(4))
    ran = alpasift("filter", "r.jsonl", "-o", "k.jsonl", "--grader", "rules", "--with", "scores")
    assert (ran.code, "did you mean score?" in ran.err) == (1, True), ran.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.jsonl"]


@pytest.mark.parametrize("name", [".", "..", "...", "a/b", ""])
def test_dots_alone_are_no_name(lab: Call, tmp_path: Path, name: str) -> None:
    write_rows(tmp_path / "new.jsonl", some_rows(2))
    for command in (["import", "new.jsonl", "--dataset", name], ["select", "--top", "2", "--name", name]):
        ran = lab(*command)
        assert (ran.code, "is not a valid" in ran.err) == (1, True), ran.err
