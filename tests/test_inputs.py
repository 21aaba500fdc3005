"""Files and folders as people bring them: cells between other signs, objects over lines, shards, hubs, previews."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from alpasift.batcher.cli import cli
from alpasift.batcher.data.data_file import read_examples
from alpasift.batcher.data.files.csv_rows import delimiter_of, guard, marked_header
from alpasift.batcher.data.files.file_row import DatasetError
from alpasift.batcher.data.import_files import import_files, inputs_of
from alpasift.batcher.data.importing import import_file
from alpasift.batcher.data.preview import preview_files
from alpasift.batcher.data.stored_rows import export_rows, stored_examples
from alpasift.batcher.store import Store
from alpasift.graders import Turn


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "db" / "sift.duckdb")


@pytest.fixture(autouse=True)
def folder_of_store(tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()


def jsonl(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def row(text: str) -> dict[str, str]:
    return {"instruction": text, "output": "fine"}


def instructions(path: Path) -> list[str]:
    return [example.instruction for example in read_examples(path).examples]


# -- csv --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sign", "detail"),
    [
        ("a.csv", ";", "cells between semicolons"),
        ("a.csv", "\t", "cells between tabs"),
        ("a.tsv", "\t", "cells between tabs"),
        ("a.csv", "|", "cells between bars"),
        ("a.csv", ",", "cells between commas"),
    ],
)
def test_what_stands_between_the_cells_is_found_and_shown(tmp_path: Path, name: str, sign: str, detail: str) -> None:
    header = sign.join(["question", "context", "answer"])
    (tmp_path / name).write_text(f'{header}\n"a{sign} b, c"{sign}{sign}d\n')
    assert instructions(tmp_path / name) == [f"a{sign} b, c"]
    assert preview_files([tmp_path / name])[0].detail == detail


def test_a_comma_stands_between_cells_where_nothing_says_otherwise() -> None:
    assert [delimiter_of(text) for text in ("messages", "a;b,c", '"a;b;c",d', "a\tb")] == [",", ",", ",", "\t"]


def test_the_text_of_a_csv_is_read_as_it_stands(tmp_path: Path) -> None:
    cells = ["'=A1", "'-x", "''@y", "=1+1", " '+z"]
    (tmp_path / "a.csv").write_text("instruction,output\n" + "".join(f"{cell},'=b\n" for cell in cells))
    assert instructions(tmp_path / "a.csv") == cells
    assert {example.output for example in read_examples(tmp_path / "a.csv").examples} == {"'=b"}
    (tmp_path / "b.csv").write_text('"instruction","output"\r\n' + "".join(f'"{cell}","b"\r\n' for cell in cells))
    assert instructions(tmp_path / "b.csv") == cells


@pytest.mark.parametrize("cell", ["=1", " =1", "\n=1", "\t\t+1", "\ufeff=1", "\u200b@x", "'=1", "＝1", "\x00=1", "-1"])
def test_every_cell_that_a_spreadsheet_would_run_is_guarded_and_comes_back(
    store: Store, tmp_path: Path, cell: str
) -> None:
    rows = [{"instruction": cell + "a", "output": "b", cell: "kept"}]
    done = import_file(store, jsonl(tmp_path / "a.jsonl", *rows))
    export_rows(store, done.version_id, None, tmp_path / "a.csv")
    written = (tmp_path / "a.csv").read_text("utf-8")
    assert guard(cell) == "'" + cell and written.count("'" + cell) == 2
    back = import_file(store, tmp_path / "a.csv", dataset="back")
    export_rows(store, back.version_id, None, tmp_path / "b.jsonl")
    assert json.loads((tmp_path / "b.jsonl").read_text()) == rows[0]


def test_a_csv_without_such_cells_has_no_mark(store: Store, tmp_path: Path) -> None:
    done = import_file(store, jsonl(tmp_path / "a.jsonl", row("a")))
    export_rows(store, done.version_id, None, tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_bytes() == b"instruction,output\r\na,fine\r\n"
    assert marked_header(['a,"b', "c", "d"]) == '"a,""b","c",d\r\n'


# -- json -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize("between", ["", "\n", "\n\n  "])
@pytest.mark.parametrize("indent", [None, 2])
def test_objects_after_each_other_are_read_whatever_stands_between(
    tmp_path: Path, name: str, between: str, indent: int | None
) -> None:
    text = between.join(json.dumps(row(name), indent=indent) for name in ("a", "b\n", "c"))
    data = b"\xef\xbb\xbf" + text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert instructions(tmp_path / name) == ["a", "b\n", "c"]


def test_an_object_longer_than_the_first_look_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("\n".join(json.dumps(row("x" * 100_000), indent=1) for _ in range(2)))
    assert len(instructions(tmp_path / "a.json")) == 2


def test_broken_objects_name_the_place(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(row("a"), indent=1) + '\n{"instruction": "b",\n "output": }\n')
    with pytest.raises(DatasetError, match=r"a\.json:6:12: broken JSON"):
        read_examples(tmp_path / "a.json")


@pytest.mark.parametrize(
    "table",
    [
        {"instruction": {"0": "a", "1": "b"}, "output": {"0": "x", "1": "y"}},
        {"instruction": ["a", "b"], "output": ["x", "y"]},
    ],
)
def test_a_table_by_its_columns_is_read_row_by_row(tmp_path: Path, table: dict[str, Any]) -> None:
    assert instructions(jsonl(tmp_path / "a.json", table)) == ["a", "b"]


# -- several files, folders --------------------------------------------------------------------------------------------


def test_files_under_one_name_are_one_dataset_in_the_order_of_their_names(store: Store, tmp_path: Path) -> None:
    files = [jsonl(tmp_path / f"part{n}.jsonl", row(f"r{n}")) for n in (2, 0, 1)]
    (done,) = import_files(store, files, dataset="all")
    assert (done.label, done.rows, done.detail) == ("all", 3, "3 files")
    assert [e.instruction for e in stored_examples(store, done.version_id)] == ["r0", "r1", "r2"]
    (again,) = import_files(store, reversed(files), dataset="all")  # type: ignore[arg-type]
    assert again.already_imported


def test_numbered_shards_are_one_dataset_named_without_their_numbers(tmp_path: Path) -> None:
    files = [jsonl(tmp_path / f"train-0000{n}-of-00002.jsonl", row(f"r{n}")) for n in (0, 1)]
    assert [(one.name, len(one.paths)) for one in inputs_of(files)] == [("train", 2)]


def test_two_files_of_one_name_are_no_versions_but_refused(store: Store, tmp_path: Path) -> None:
    files = [jsonl(tmp_path / place / "rows.jsonl", row(place)) for place in ("a", "b")]
    with pytest.raises(DatasetError, match=r"would both become the dataset rows; give --dataset NAME"):
        list(import_files(store, files))
    assert not store.path.exists()
    with pytest.raises(DatasetError, match="is given twice"):
        list(import_files(store, [files[0], files[0]], dataset="x"))
    csv = tmp_path / "c.csv"
    csv.write_text("instruction,output\na,b\n")
    with pytest.raises(DatasetError, match=r"have one format, and no folders: c\.csv \(csv\), rows\.jsonl \(jsonl\)"):
        list(import_files(store, [files[0], csv], dataset="x"))


def test_files_of_different_names_are_datasets_of_their_own(store: Store, tmp_path: Path) -> None:
    files = [jsonl(tmp_path / f"{name}.jsonl", row(name)) for name in "ab"]
    assert [done.label for done in import_files(store, files)] == ["a", "b"]


def parquet(path: Path, *texts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([row(text) for text in texts]), path)
    return path


def test_a_folder_from_a_hub_is_read_split_by_split(store: Store, tmp_path: Path) -> None:
    home = tmp_path / "hub"
    for n in (0, 1):
        parquet(home / "data" / f"train-0000{n}-of-00002.parquet", f"train {n}")
    parquet(home / "data" / "test-00000-of-00001.parquet", "test")
    (home / "README.md").write_text("# A card\n")
    (home / ".cache").mkdir()
    jsonl(home / ".cache" / "x.jsonl", row("hidden"))
    with pytest.raises(DatasetError, match="has the splits train, test; choose one: --split train"):
        import_file(store, home)
    made = {done.label: (done.rows, done.detail) for done in import_files(store, [home])}
    assert made == {"hub-train": (2, "split train, 2 files"), "hub-test": (1, "split test, 1 file")}
    (done,) = import_files(store, [home], split="test", dataset="t")
    assert (done.label, done.rows) == ("t", 1)
    with pytest.raises(DatasetError, match="has no split 'dev'; it has train, test"):
        list(import_files(store, [home], split="dev"))


def test_a_folder_with_one_split_needs_no_name_for_it(store: Store, tmp_path: Path) -> None:
    jsonl(tmp_path / "hub" / "rows.jsonl", row("a"))
    (tmp_path / "hub" / "README.md").write_text("# A card\n")
    done = import_file(store, tmp_path / "hub")
    assert (done.label, done.rows, done.detail) == ("hub", 1, "split train, 1 file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="a folder without data files"):
        import_file(store, tmp_path / "empty")
    with pytest.raises(DatasetError, match="is not a folder, and only folders have splits"):
        import_file(store, tmp_path / "hub" / "rows.jsonl", split="train")


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("hf://datasets/tatsu-lab/alpaca", "hf download --repo-type dataset tatsu-lab/alpaca --local-dir alpaca"),
        ("hf://datasets/x", "hf://datasets/x is a URL, not a file"),
        ("https://example.org/a.json", "curl -LO"),
        ("s3://bucket/a.json", "s3://bucket/a.json is a URL"),
        ("tatsu-lab/alpaca", "if it is a dataset on the Hugging Face Hub"),
        ("rows.json", "file not found: rows.json$"),
    ],
)
def test_an_address_is_no_file_and_leaves_no_database(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match=says):
        list(import_files(store, [address]))
    assert not store.path.exists()


def test_an_import_that_fails_leaves_no_database(store: Store, tmp_path: Path) -> None:
    rows = [row(str(n)) for n in range(60_000)]
    (tmp_path / "a.json").write_text(json.dumps(rows)[:-2] + ",")
    with pytest.raises(DatasetError, match="broken JSON"):
        import_file(store, tmp_path / "a.json")
    assert [file.name for file in store.path.parent.iterdir() if file.suffix != ".lock"] == []
    import_file(store, jsonl(tmp_path / "b.jsonl", row("a")))
    with pytest.raises(DatasetError, match="broken JSON"):
        import_file(store, tmp_path / "a.json")
    assert store.path.exists()


# -- what is shown ---------------------------------------------------------------------------------------------------


def test_a_preview_shows_what_an_import_would_do_and_writes_nothing(tmp_path: Path) -> None:
    rows = [
        {"question": "6 times 7?", "context": "Sums.", "answer": 42, "solution": "", "id": 1},
        {"question": "Name a fish.", "answer": "Cod."},
        {"question": "And?", "answer": None},
        {"messages": [{"role": "user", "content": "m"}, {"role": "assistant", "content": "n"}]},
    ]
    path = jsonl(tmp_path / "qa.jsonl", *rows)
    (found,) = preview_files([path])
    assert (found.dataset, found.format, found.row_format) == ("qa", "jsonl", "question_answer")
    assert (found.rows, found.skipped, found.reasons) == (3, 1, {"no_answer": 1})
    assert (found.kept, found.rivals) == (("answer", "id"), ())
    database = tmp_path / "new.duckdb"
    result = CliRunner().invoke(cli, ["--db", str(database), "import", "--preview", str(path)])
    assert result.exit_code == 0, result.output
    assert (
        "row format question_answer" in result.stderr
        and "1 row skipped:\n    1 x no_answer: the output is missing" in result.stderr
    )
    assert "1 x read_as_messages" in result.stderr
    assert "6 times 7?" in result.stdout and not database.exists()


def test_a_failed_command_makes_no_database(tmp_path: Path) -> None:
    database = tmp_path / "new.duckdb"
    result = CliRunner().invoke(cli, ["--db", str(database), "import", str(tmp_path / "none.json")])
    assert result.exit_code == 1 and "file not found:" in str(result.exception or result.output)
    assert not database.exists()


def test_an_import_says_which_key_holds_the_answer(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"instruction": "a", "input": "", "output": "b", "response": "c"})
    result = CliRunner().invoke(cli, ["--db", str(tmp_path / "a.duckdb"), "import", str(path)])
    assert "columns: instruction, output from response; output could be the answer too" in result.output


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet", "json"])
@pytest.mark.parametrize("row_format", ["alpaca", "dolly", "messages", "sharegpt"])
def test_turns_and_system_text_survive_an_export_in_another_format(
    store: Store, tmp_path: Path, suffix: str, row_format: str
) -> None:
    talk = [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "Q"), ("assistant", "A")]
    messages = [{"role": role, "content": text} for role, text in talk]
    done = import_file(store, jsonl(tmp_path / "a.jsonl", {"messages": messages}, {"messages": messages[3:]}))
    export_rows(store, done.version_id, None, tmp_path / f"b.{suffix}", row_format=row_format)
    first, second = read_examples(tmp_path / f"b.{suffix}").examples
    assert (first.system, first.turns, first.instruction) == ("S", (Turn("user", "a"), Turn("assistant", "b")), "Q")
    assert (second.system, second.turns, second.output) == ("", (), "A")


def test_a_first_line_that_names_the_sign_between_cells_is_no_header(tmp_path: Path) -> None:
    path = tmp_path / "sheet.csv"
    path.write_text("sep=;\r\ninstruction;output\r\nName a river, a long one.;The Nile\r\n", newline="")
    read = read_examples(path)
    assert [(e.instruction, e.output) for e in read.examples] == [("Name a river, a long one.", "The Nile")]


def test_a_table_with_its_names_apart_from_its_cells_is_read_by_the_names(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    columns = ["output", "id", "instruction"]
    path.write_text(
        json.dumps({"columns": columns, "index": [0, 1], "data": [["Nile", 1, "A river"], ["Etna", 2, "M"]]})
    )
    read = read_examples(path)
    assert [(e.instruction, e.output) for e in read.examples] == [("A river", "Nile"), ("M", "Etna")]
    assert read.row_format == "alpaca"


def test_shards_that_are_missing_are_named(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    for number in (0, 2, 3):
        jsonl(folder / f"train-{number:05}-of-00005.jsonl", row(f"shard {number}"))
    (found,) = import_files(store, [folder])
    assert "2 of 5 shards are missing: train-00001-of-00005, ..." in found.detail
    files = [folder / f"train-{number:05}-of-00005.jsonl" for number in (0, 2)]
    (found,) = import_files(store, files, dataset="two")
    assert "3 of 5 shards are missing" in found.detail
    jsonl(folder / "train-00001-of-00005.jsonl", row("one"))
    jsonl(folder / "train-00004-of-00005.jsonl", row("four"))
    (found,) = import_files(store, [folder], dataset="all")
    assert "missing" not in found.detail


def test_one_row_with_two_conversations_is_a_row_and_no_list_to_extract(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    path = jsonl(tmp_path / "arena.jsonl", {"conversation_a": talk, "conversation_b": talk[:1], "winner": "tie"})
    with pytest.raises(DatasetError, match="found the keys 'conversation_a', 'conversation_b', 'winner'"):
        read_examples(path)


def test_text_in_utf_32_is_named(tmp_path: Path) -> None:
    path = tmp_path / "wide.json"
    path.write_bytes(json.dumps([row("a")]).encode("utf-32"))
    with pytest.raises(DatasetError, match="UTF-32"):
        read_examples(path)
