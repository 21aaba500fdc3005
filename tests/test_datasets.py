"""Files into the store and out again: formats, shapes, identity, and everything a file can get wrong."""

from __future__ import annotations

import base64
import csv
import gzip
import hashlib
import io
import json
import math
import os
import stat
import uuid
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batcher import exports, formats, shapes
from batcher.datasets import DatasetError, example_id, export_rows, import_file, resolve
from batcher.store import Store, scalar
from graders import Example, Turn

ROWS = [
    {"instruction": "Name a primary colour.", "input": "", "output": "Red."},
    {"instruction": "Übersetze.", "input": "good morning", "output": "Guten Morgen 🌞"},
    {"instruction": "Name a primary colour.", "input": "", "output": "Red."},
]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4"},
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "sift.duckdb")


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    """Read a file with other code than ours."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    if path.suffix == ".zst":
        data = zstandard.ZstdDecompressor().stream_reader(data).read()
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    if name.endswith(".json"):
        return json.loads(data)
    if name.endswith(".jsonl"):
        return [json.loads(line) for line in data.decode("utf-8").split("\n") if line]
    if name.endswith(".csv"):
        return list(csv.DictReader(io.StringIO(data.decode("utf-8"), newline="")))
    return pq.read_table(path).to_pylist()


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write a file with other code than ours."""
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    if name.endswith(".csv"):
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        data = text.getvalue().encode("utf-8")
    elif name.endswith(".json"):
        data = json.dumps(rows, ensure_ascii=False, indent=2).encode("utf-8")
    else:
        data = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode("utf-8")
    if path.suffix == ".gz":
        data = gzip.compress(data)
    if path.suffix == ".zst":
        data = zstandard.compress(data)
    path.write_bytes(data)
    return path


def count(store: Store, table: str) -> int:
    with store.reader() as con:
        return int(scalar(con, f"select count(*) from {table}"))


def counts(store: Store) -> dict[str, int]:
    return {t: count(store, t) for t in ("examples", "dataset_versions", "dataset_rows", "set_aside")}


def contents(store: Store, version_id: str) -> list[tuple[Any, ...]]:
    with store.reader() as con:
        return con.execute(
            "select e.system, e.turns, e.instruction, e.input, e.output, r.category "
            "from dataset_rows r join examples e using (example_id) where version_id = $v order by position",
            {"v": version_id},
        ).fetchall()


def set_aside(store: Store, version_id: str) -> list[tuple[Any, ...]]:
    with store.reader() as con:
        return con.execute(
            "select position, line, reason from set_aside where version_id = $v order by position", {"v": version_id}
        ).fetchall()


# -- import, versions, identity ---------------------------------------------------------------------------------


def test_a_file_becomes_the_first_version_of_a_dataset_named_after_it(store: Store, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "my rows.jsonl", ROWS)
    done = import_file(store, path)
    assert (done.dataset, done.version, done.label) == ("my-rows", 1, "my-rows")
    assert (done.rows, done.set_aside, done.duplicates, done.new_examples) == (3, 0, 1, 2)
    assert (done.shape, done.format, done.already_there, done.reasons) == ("alpaca", "jsonl", False, {})
    assert counts(store) == {"examples": 2, "dataset_versions": 1, "dataset_rows": 3, "set_aside": 0}
    found = resolve(store, "my-rows")
    assert (found.version_id, found.rows, found.shape, found.format) == (done.version_id, 3, "alpaca", "jsonl")
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_same_file_again_adds_nothing(store: Store, tmp_path: Path) -> None:
    first = import_file(store, jsonl(tmp_path / "a.jsonl", [*ROWS, {"instruction": "x", "output": None}]))
    before = counts(store)
    again = import_file(store, tmp_path / "a.jsonl")
    assert again.already_there and again.label == first.label and again.version_id == first.version_id
    assert (again.rows, again.set_aside, again.duplicates, again.reasons) == (3, 1, 1, {"no_answer": 1})
    assert again.new_examples == 0
    assert counts(store) == before


def test_another_content_under_the_same_name_is_the_next_version(store: Store, tmp_path: Path) -> None:
    first = import_file(store, jsonl(tmp_path / "a.jsonl", ROWS))
    second = import_file(store, jsonl(tmp_path / "a.jsonl", [*ROWS, {"instruction": "New?", "output": "Yes."}]))
    assert (second.label, second.version, second.rows, second.new_examples) == ("a@2", 2, 4, 1)
    assert resolve(store, "a").label == "a@2"
    assert resolve(store, None).label == "a@2"
    assert resolve(store, "a@1").version_id == first.version_id
    assert resolve(store, "a@2").version_id == second.version_id
    with pytest.raises(DatasetError, match=r"no dataset 'a@3'; there are a, a@2"):
        resolve(store, "a@3")


def test_a_name_is_asked_for_only_when_there_are_several_datasets(store: Store, tmp_path: Path) -> None:
    import_file(store, jsonl(tmp_path / "a.jsonl", ROWS))
    import_file(store, tmp_path / "a.jsonl", dataset="b")
    with pytest.raises(DatasetError, match="several datasets, name one of them: a, b"):
        resolve(store, None)


def test_a_store_without_datasets_says_how_to_import(store: Store) -> None:
    store.create()
    with pytest.raises(DatasetError, match="alpasift import FILE"):
        resolve(store, None)


@pytest.mark.parametrize("name", ["", "a b", "../x", "a@2", "x" * 65])
def test_a_bad_name_is_refused(store: Store, tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match="no name for a dataset"):
        import_file(store, jsonl(tmp_path / "a.jsonl", ROWS), dataset=name)


def test_example_id_is_the_documented_hash() -> None:
    example = Example("2 + 2?", "", "4", "Be brief.", (Turn("user", "Hi"), Turn("assistant", "Hello.\n")))
    text = '["Be brief.",[["user","Hi"],["assistant","Hello.\\n"]],"2 + 2?","","4"]'.encode()
    by_hand = uuid.UUID(bytes=hashlib.sha256(len(text).to_bytes(8, "big") + text).digest()[:16])
    assert example_id(example) == str(by_hand) == "FIXED"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=4, max_size=4))
def test_the_canonical_json_is_what_the_standard_library_writes(texts: list[str]) -> None:
    system, instruction, given_input, output = texts
    value = [system, [["user", output]], instruction, given_input, output]
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    by_hand = uuid.UUID(bytes=hashlib.sha256(len(text).to_bytes(8, "big") + text).digest()[:16])
    assert example_id(Example(instruction, given_input, output, system, (Turn("user", output),))) == str(by_hand)


def test_equal_content_has_one_id_in_every_shape_and_format(store: Store, tmp_path: Path) -> None:
    texts = ("Say hi.", "Hi.")
    rows: dict[str, dict[str, Any]] = {
        "a.jsonl": {"instruction": texts[0], "output": texts[1]},
        "b.json": {"output": texts[1], "instruction": texts[0], "input": None, "id": 7},
        "c.csv": {"instruction": texts[0], "context": "", "response": texts[1], "category": "chat"},
        "d.parquet": {"messages": [{"role": "user", "content": texts[0]}, {"role": "assistant", "content": texts[1]}]},
        "e.jsonl.gz": {"conversations": [{"from": "human", "value": texts[0]}, {"from": "gpt", "value": texts[1]}]},
    }
    done = [import_file(store, write(tmp_path / name, [row])) for name, row in rows.items()]
    assert [d.shape for d in done] == ["alpaca", "alpaca", "dolly", "messages", "sharegpt"]
    assert [d.format for d in done] == ["jsonl", "json", "csv", "parquet", "jsonl.gz"]
    assert [d.new_examples for d in done] == [1, 0, 0, 0, 0]
    with store.reader() as con:
        assert str(scalar(con, "select example_id from examples")) == example_id(Example(texts[0], "", texts[1]))


def test_progress_tells_the_rows_read_and_large_files_keep_their_order(store: Store, tmp_path: Path) -> None:
    rows = [{"instruction": f"Count to {i}.", "output": str(i % 7)} for i in range(60_000)]
    told: list[int] = []
    done = import_file(store, jsonl(tmp_path / "a.jsonl", rows), progress=told.append)
    assert told == [25_000, 50_000, 60_000]
    assert (done.rows, done.new_examples) == (60_000, 60_000)
    assert export_rows(store, done.version_id, None, tmp_path / "b.jsonl") == 60_000
    assert read(tmp_path / "b.jsonl") == rows


# -- shapes -----------------------------------------------------------------------------------------------------


def test_a_conversation_is_graded_by_its_last_exchange(store: Store, tmp_path: Path) -> None:
    done = import_file(store, jsonl(tmp_path / "a.jsonl", [{"messages": CHAT, "category": "maths"}]))
    turns = '[["user","Hi"],["assistant","Hello."]]'
    assert contents(store, done.version_id) == [("Be brief.", turns, "2 + 2?", "", "4", "maths")]


def test_calls_of_tools_in_earlier_turns_are_kept_and_come_back(store: Store, tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "clock"}}]}
    parts = [{"type": "text", "text": "It is"}, {"type": "text", "text": "noon."}]
    messages = [
        {"role": "developer", "content": ""},
        {"role": "user", "content": "Time?"},
        call,
        {"role": "tool", "tool_call_id": "1", "content": "12:00"},
        {"role": "assistant", "content": parts},
        {"role": "user", "content": [{"type": "text", "text": "Thanks", "cache": 1}], "name": "Ann"},
        {"role": "assistant", "content": "Welcome.", "weight": 1},
    ]
    rows = [{"messages": messages, "$form": {"$date": 1}}]
    done = import_file(store, jsonl(tmp_path / "a.jsonl", rows))
    (system, turns, *rest, _) = contents(store, done.version_id)[0]
    assert (system, rest) == ("", ["Thanks", "", "Welcome."])
    assert json.loads(turns) == [
        ["user", "Time?"],
        ["assistant", ""],
        ["tool", "12:00"],
        ["assistant", "It is\n\nnoon."],
    ]
    export_rows(store, done.version_id, None, tmp_path / "b.jsonl")
    assert read(tmp_path / "b.jsonl") == rows


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "no_messages"),
        (None, "no_messages"),
        ("Hi", "bad_message"),
        (["Hi"], "bad_message"),
        ([{"content": "Hi"}], "bad_message"),
        (CHAT[:4], "ends_with_user"),
        (CHAT[:2], "no_answer"),
        ([*CHAT, {"role": "tool", "content": "x"}], "no_answer"),
        ([CHAT[0], CHAT[2]], "no_question"),
        ([CHAT[1], {"role": "narrator", "content": "x"}, CHAT[2]], "unknown_role"),
        ([CHAT[1], {"role": "assistant", "content": " "}], "empty_message"),
        ([CHAT[1], {"role": "assistant", "content": None}], "empty_message"),
        ([CHAT[1], {"role": "assistant", "content": 4}], "not_text"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, CHAT[2]], "not_text"),
    ],
)
def test_a_conversation_that_cannot_be_graded_is_set_aside_with_its_reason(
    store: Store, tmp_path: Path, messages: Any, reason: str
) -> None:
    done = import_file(store, jsonl(tmp_path / "a.jsonl", [{"messages": CHAT}, {"messages": messages}]))
    assert (done.rows, done.set_aside, done.reasons) == (1, 1, {reason: 1})
    assert set_aside(store, done.version_id) == [(1, 2, reason)]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "x", "output": None}, "no_answer"),
        ({"instruction": "x"}, "no_answer"),
        ({"output": "x"}, "no_instruction"),
        ({"instruction": " ", "input": "\n", "output": "x"}, "no_instruction"),
        ({"instruction": "x", "output": 3}, "not_text"),
        ({"instruction": "x", "output": ["y"]}, "not_text"),
        ({"instruction": "x", "input": {"y": 1}, "output": "z"}, "not_text"),
        ({"instruction": "x", "output": "y" * 1_000_001}, "too_large"),
        ({"instruction": "x", "output": "y", "cell": "z" * 10_000_000}, "too_large"),
        ([1, 2], "not_an_object"),
        ("text", "not_an_object"),
        (None, "not_an_object"),
    ],
)
def test_a_row_that_cannot_be_graded_is_set_aside_with_its_reason(
    store: Store, tmp_path: Path, row: Any, reason: str
) -> None:
    for number, name in enumerate(("a.jsonl", "b.json")):
        done = import_file(store, write(tmp_path / name, [ROWS[0], row, ROWS[1]]))
        assert (done.rows, done.reasons) == (2, {reason: 1})
        position, line, found = set_aside(store, done.version_id)[0]
        assert (position, found) == (1, reason)
        assert number == 1 or line == 2
    with store.reader() as con:
        assert all(len(r[0]) <= 10_000 for r in con.execute("select row from set_aside").fetchall())


def test_every_reason_has_its_sentence_and_is_in_the_code() -> None:
    code = Path(shapes.__file__).read_text() + Path(formats.__file__).read_text()
    code += (Path(shapes.__file__).parent / "datasets.py").read_text()
    for reason in shapes.REASONS:
        assert code.count(f'"{reason}"') >= 2, reason


def test_half_a_surrogate_pair_is_set_aside_and_a_nul_is_kept(store: Store, tmp_path: Path) -> None:
    lines = [
        r'{"instruction": "a\u0000b", "output": "ok"}',
        r'{"instruction": "half \ud800", "output": "x"}',
        r'{"instruction": "x", "output": "y", "\udc00": 1}',
        r'{"instruction": "pair \ud83c\udf1e", "output": "ok"}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.json").write_text("[" + ",\n".join(lines) + "]")
    for name in ("a.jsonl", "b.json"):
        done = import_file(store, tmp_path / name)
        assert [c[2] for c in contents(store, done.version_id)] == ["a\0b", "pair 🌞"]
        assert set_aside(store, done.version_id) == [(1, 2, "bad_unicode"), (2, 3, "bad_unicode")]


def test_strict_makes_the_first_bad_row_fatal_and_writes_nothing(store: Store, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [ROWS[0], {"instruction": "x", "output": None}])
    with pytest.raises(DatasetError, match=r"a\.jsonl:2: no_answer, there is no output"):
        import_file(store, path, strict=True)
    assert not store.path.exists()


def test_a_failure_far_into_the_file_leaves_the_database_as_it_was(store: Store, tmp_path: Path) -> None:
    import_file(store, jsonl(tmp_path / "a.jsonl", ROWS))
    before = counts(store)
    rows = [{"instruction": str(i), "output": "x"} for i in range(70_000)]
    path = write(tmp_path / "b.json", rows)
    path.write_text(path.read_text()[:-2] + ",")
    with pytest.raises(DatasetError, match=r"b\.json:280001:\d+: broken JSON"):
        import_file(store, path)
    assert counts(store) == before


def test_keys_can_be_mapped(store: Store, tmp_path: Path) -> None:
    row = {"question": "Why?", "input": "ignored", "answer": "Because.", "topic": "x", "n": 1}
    path = jsonl(tmp_path / "a.jsonl", [row, {"question": "No answer"}])
    with pytest.raises(DatasetError, match="found the keys 'question', 'input', 'answer'.*--map"):
        import_file(store, path)
    mapping = {"instruction": "question", "output": "answer", "category": "topic"}
    done = import_file(store, path, mapping=mapping)
    assert (done.shape, done.rows, done.reasons) == ("mapped", 1, {"no_answer": 1})
    assert contents(store, done.version_id) == [("", "", "Why?", "ignored", "Because.", "x")]
    export_rows(store, done.version_id, None, tmp_path / "b.jsonl")
    assert read(tmp_path / "b.jsonl") == [row]
    other = import_file(store, path, mapping={"instruction": "input", "output": "answer"})
    assert other.version_id != done.version_id and other.label == "a@2"
    assert contents(store, other.version_id)[0][2:4] == ("ignored", "")
    for bad, says in (
        ({"prompt": "question"}, "--map knows no prompt"),
        ({"instruction": "nope"}, "no row has the keys"),
    ):
        with pytest.raises(DatasetError, match=says):
            import_file(store, path, mapping=bad)


def test_a_shape_can_be_told(store: Store, tmp_path: Path) -> None:
    row = {"instruction": "i", "output": "o", "response": "r"}
    path = jsonl(tmp_path / "a.jsonl", [row])
    assert import_file(store, path).shape == "dolly"
    done = import_file(store, path, shape="alpaca")
    assert contents(store, done.version_id)[0][4] == "o"
    with pytest.raises(DatasetError, match="expected those of the shape messages"):
        import_file(store, path, shape="messages")
    with pytest.raises(DatasetError, match="no shape is called 'xml'"):
        import_file(store, path, shape="xml")
