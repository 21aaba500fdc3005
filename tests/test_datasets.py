"""Files into the store and out again: file formats, row formats, identity, and everything a file can get wrong."""

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

from alpasift.batcher import data as data_modules
from alpasift.batcher.data.data_file import read_examples
from alpasift.batcher.data.files.csv_rows import guard, unguard
from alpasift.batcher.data.files.file_row import DatasetError
from alpasift.batcher.data.files.writing import writable_format
from alpasift.batcher.data.identity import example_id
from alpasift.batcher.data.importing import import_file
from alpasift.batcher.data.row_formats.row import REASONS
from alpasift.batcher.data.stored_rows import export_rows, stored_examples
from alpasift.batcher.data.versions import resolve
from alpasift.batcher.store import Store, scalar
from alpasift.graders import Example, Turn

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
        data = gzip.compress(data, mtime=0)
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


def skipped(store: Store, version_id: str) -> list[tuple[Any, ...]]:
    with store.reader() as con:
        return con.execute(
            "select position, line, reason from set_aside where version_id = $v order by position", {"v": version_id}
        ).fetchall()


# -- import, versions, identity ---------------------------------------------------------------------------------


def test_a_file_becomes_the_first_version_of_a_dataset_named_after_it(store: Store, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "my rows.jsonl", ROWS)
    done = import_file(store, path)
    assert (done.dataset, done.version, done.label) == ("my-rows", 1, "my-rows")
    assert (done.rows, done.skipped, done.duplicates, done.new_examples) == (3, 0, 1, 2)
    assert (done.row_format, done.format, done.already_imported, done.reasons) == ("alpaca", "jsonl", False, {})
    assert counts(store) == {"examples": 2, "dataset_versions": 1, "dataset_rows": 3, "set_aside": 0}
    found = resolve(store, "my-rows")
    assert (found.version_id, found.rows, found.row_format, found.format) == (done.version_id, 3, "alpaca", "jsonl")
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_same_file_again_adds_nothing(store: Store, tmp_path: Path) -> None:
    first = import_file(store, jsonl(tmp_path / "a.jsonl", [*ROWS, {"instruction": "x", "output": None}]))
    before = counts(store)
    again = import_file(store, tmp_path / "a.jsonl")
    assert again.already_imported and again.label == first.label and again.version_id == first.version_id
    assert (again.rows, again.skipped, again.duplicates, again.reasons) == (3, 1, 1, {"no_answer": 1})
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
    with pytest.raises(DatasetError, match=r"no dataset named 'a@3'; did you mean a\? Choose from a, a@2"):
        resolve(store, "a@3")


def test_a_name_is_asked_for_only_when_there_are_several_datasets(store: Store, tmp_path: Path) -> None:
    import_file(store, jsonl(tmp_path / "a.jsonl", ROWS))
    import_file(store, tmp_path / "a.jsonl", dataset="b")
    with pytest.raises(DatasetError, match="several datasets, choose one: a, b"):
        resolve(store, None)


def test_a_store_without_datasets_says_how_to_import(store: Store) -> None:
    store.create()
    with pytest.raises(DatasetError, match="alpasift import FILE"):
        resolve(store, None)


@pytest.mark.parametrize("name", ["", "a b", "../x", "a@2", "x" * 65])
def test_a_bad_name_is_refused(store: Store, tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match="is not a valid dataset name"):
        import_file(store, jsonl(tmp_path / "a.jsonl", ROWS), dataset=name)


def test_example_id_is_the_documented_hash() -> None:
    example = Example("2 + 2?", "", "4", "Be brief.", (Turn("user", "Hi"), Turn("assistant", "Hello.\n")))
    text = b'["Be brief.",[["user","Hi"],["assistant","Hello.\\n"]],"2 + 2?","","4"]'
    by_hand = uuid.UUID(bytes=hashlib.sha256(len(text).to_bytes(8, "big") + text).digest()[:16])
    assert example_id(example) == str(by_hand) == "9ad45c70-f70f-3b81-adbf-5f9baee1ebe2"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=4, max_size=4))
def test_the_canonical_json_is_what_the_standard_library_writes(texts: list[str]) -> None:
    system, instruction, given_input, output = texts
    value = [system, [["user", output]], instruction, given_input, output]
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    by_hand = uuid.UUID(bytes=hashlib.sha256(len(text).to_bytes(8, "big") + text).digest()[:16])
    assert example_id(Example(instruction, given_input, output, system, (Turn("user", output),))) == str(by_hand)


def test_equal_content_has_one_id_in_every_row_format_and_format(store: Store, tmp_path: Path) -> None:
    texts = ("Say hi.", "Hi.")
    rows: dict[str, dict[str, Any]] = {
        "a.jsonl": {"instruction": texts[0], "output": texts[1]},
        "b.json": {"output": texts[1], "instruction": texts[0], "input": None, "id": 7},
        "c.csv": {"instruction": texts[0], "context": "", "response": texts[1], "category": "chat"},
        "d.parquet": {"messages": [{"role": "user", "content": texts[0]}, {"role": "assistant", "content": texts[1]}]},
        "e.jsonl.gz": {"conversations": [{"from": "human", "value": texts[0]}, {"from": "gpt", "value": texts[1]}]},
    }
    done = [import_file(store, write(tmp_path / name, [row])) for name, row in rows.items()]
    assert [d.row_format for d in done] == ["alpaca", "alpaca", "dolly", "messages", "sharegpt"]
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


# -- row formats -----------------------------------------------------------------------------------------------------


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
        ["assistant", '{"name": "clock", "arguments": null}'],
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
        ([CHAT[1], {"role": "assistant", "content": {"a": {"b": 4}}}], "not_text"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, CHAT[2]], "has_media"),
    ],
)
def test_a_conversation_that_cannot_be_graded_is_skipped_with_its_reason(
    store: Store, tmp_path: Path, messages: Any, reason: str
) -> None:
    done = import_file(store, jsonl(tmp_path / "a.jsonl", [{"messages": CHAT}, {"messages": messages}]))
    assert (done.rows, done.skipped, done.reasons) == (1, 1, {reason: 1})
    assert skipped(store, done.version_id) == [(1, 2, reason)]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "x", "output": None}, "no_answer"),
        ({"instruction": "x"}, "no_answer"),
        ({"output": "x"}, "no_instruction"),
        ({"instruction": " ", "input": "\n", "output": "x"}, "no_instruction"),
        ({"instruction": "x", "output": {"y": 3}}, "not_text"),
        ({"instruction": "x", "output": ["y"]}, "not_text"),
        ({"instruction": "x", "input": {"y": 1}, "output": "z"}, "not_text"),
        ({"instruction": "x", "output": "y" * 1_000_001}, "too_large"),
        ({"instruction": "x", "output": "y", "cell": "z" * 10_000_000}, "too_large"),
        ([1, 2], "not_an_object"),
        ("text", "not_an_object"),
        (None, "not_an_object"),
    ],
)
def test_a_row_that_cannot_be_graded_is_skipped_with_its_reason(
    store: Store, tmp_path: Path, row: Any, reason: str
) -> None:
    for number, name in enumerate(("a.jsonl", "b.json")):
        done = import_file(store, write(tmp_path / name, [ROWS[0], row, ROWS[1]]))
        assert (done.rows, done.reasons) == (2, {reason: 1})
        position, line, found = skipped(store, done.version_id)[0]
        assert (position, found) == (1, reason)
        assert number == 1 or line == 2
    with store.reader() as con:
        assert all(len(r[0]) <= 10_000 for r in con.execute("select row from set_aside").fetchall())


def test_every_reason_has_its_sentence_and_is_in_the_code() -> None:
    folder = Path(data_modules.__path__[0])
    code = "".join(file.read_text() for file in folder.rglob("*.py"))
    for reason in REASONS:
        assert code.count(f'"{reason}"') >= 2, reason


def test_half_a_surrogate_pair_is_skipped_and_a_nul_is_kept(store: Store, tmp_path: Path) -> None:
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
        assert skipped(store, done.version_id) == [(1, 2, "bad_unicode"), (2, 3, "bad_unicode")]


def test_strict_makes_the_first_bad_row_fatal_and_writes_nothing(store: Store, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [ROWS[0], {"instruction": "x", "output": None}])
    with pytest.raises(DatasetError, match=r"a\.jsonl:2: no_answer, the output is missing"):
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
    row = {"ask": "Why?", "input": "ignored", "told": "Because.", "topic": "x", "n": 1}
    path = jsonl(tmp_path / "a.jsonl", [row, {"ask": "No answer"}])
    with pytest.raises(DatasetError, match=r"found the keys 'ask', 'input', 'told'.*--map"):
        import_file(store, path)
    mapping = {"instruction": "ask", "output": "told", "category": "topic"}
    done = import_file(store, path, mapping=mapping)
    assert (done.row_format, done.rows, done.reasons) == ("mapped", 1, {"no_answer": 1})
    assert contents(store, done.version_id) == [("", "", "Why?", "ignored", "Because.", "x")]
    export_rows(store, done.version_id, None, tmp_path / "b.jsonl")
    assert read(tmp_path / "b.jsonl") == [row]
    other = import_file(store, path, mapping={"instruction": "input", "output": "told"})
    assert other.version_id != done.version_id and other.label == "a@2"
    assert contents(store, other.version_id)[0][2:4] == ("ignored", "")
    for bad, says in (
        ({"prompt": "ask"}, "--map has no target prompt"),
        ({"instruction": "nope"}, "no row has the keys"),
    ):
        with pytest.raises(DatasetError, match=says):
            import_file(store, path, mapping=bad)


def test_a_row_format_can_be_given(store: Store, tmp_path: Path) -> None:
    row = {"instruction": "i", "output": "o", "response": "r"}
    path = jsonl(tmp_path / "a.jsonl", [row])
    assert import_file(store, path).row_format == "dolly"
    done = import_file(store, path, row_format="alpaca")
    assert contents(store, done.version_id)[0][4] == "o"
    assert (import_file(store, path).overruled, done.overruled) == (None, "dolly")
    with pytest.raises(DatasetError, match=r"no row fits the row format messages; by its keys, .* the file is dolly"):
        import_file(store, path, row_format="messages")
    with pytest.raises(DatasetError, match="expected those of the row format messages"):
        import_file(store, jsonl(tmp_path / "b.jsonl", [{"ask": "i", "told": "o"}]), row_format="messages")
    with pytest.raises(DatasetError, match="unknown row format 'xml'"):
        import_file(store, path, row_format="xml")


# -- what goes in comes out -------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=0, max_size=12)
WORDS = TEXT.map(lambda t: "w" + t)
KEYS = st.sampled_from(["id", "source", "$form", "$date", "turns", "üñí", "", "a.b"])
SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | TEXT
VALUES = st.recursive(
    SCALARS,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(["a", "$date", "$dict", "b"]), v),
    max_leaves=5,
)
EXTRAS = st.dictionaries(KEYS, VALUES, max_size=3)


def flat(names: tuple[str, str, str]) -> st.SearchStrategy[dict[str, Any]]:
    optional = {names[1]: TEXT | st.none(), "system": TEXT | st.none(), "category": SCALARS}
    rows = st.fixed_dictionaries({names[0]: WORDS, names[2]: TEXT}, optional=optional)
    return st.tuples(rows, EXTRAS, st.randoms()).map(lambda t: shuffled({**t[1], **t[0]}, t[2]))


def shuffled(row: dict[str, Any], order: Any) -> dict[str, Any]:
    keys = list(row)
    order.shuffle(keys)
    return {k: row[k] for k in keys}


def chat(
    list_key: str, role: str, text: str, user: list[str], assistant: list[str]
) -> st.SearchStrategy[dict[str, Any]]:
    def message(roles: list[str], graded: bool) -> st.SearchStrategy[dict[str, Any]]:
        parts = st.lists(
            st.fixed_dictionaries({"type": st.just("text"), "text": WORDS}, optional={"x": SCALARS}),
            min_size=1,
            max_size=2,
        )
        extra = {"name": SCALARS, "tool_calls": VALUES}
        return st.fixed_dictionaries({role: st.sampled_from(roles), text: WORDS | parts}, optional=extra)

    turns = st.lists(message([*user, *assistant, "tool", "system"], False), max_size=3)
    first = st.lists(st.fixed_dictionaries({role: st.just("system"), text: TEXT}), max_size=1)
    said = st.tuples(first, turns, message(user, True), message(assistant, True)).map(
        lambda t: [*t[0], *t[1], t[2], t[3]]
    )
    optional = {"category": SCALARS, "system": TEXT | st.none()}
    rows = st.fixed_dictionaries({list_key: said}, optional=optional)
    return st.tuples(rows, EXTRAS, st.randoms()).map(lambda t: shuffled({**t[1], **t[0]}, t[2]))


ROWS_BY_FORMAT = {
    "alpaca": flat(("instruction", "input", "output")),
    "dolly": flat(("instruction", "context", "response")),
    "sharegpt": chat("conversations", "from", "value", ["human", "user"], ["gpt", "assistant"]),
    "messages": chat("messages", "role", "content", ["user"], ["assistant"]),
}
PATIENT = settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))


def there_and_back(store: Store, rows: list[dict[str, Any]], suffix: str, folder: Path) -> list[Any]:
    """Import the rows and return what their export holds."""
    path = write(folder / f"in.{suffix}", rows)
    done = import_file(store, path)
    assert done.skipped == 0, done.reasons
    export_rows(store, done.version_id, None, folder / f"out.{suffix}")
    assert read(path) == rows
    return read(folder / f"out.{suffix}")


@pytest.mark.parametrize("row_format", ROWS_BY_FORMAT)
@pytest.mark.parametrize("suffix", ["json.zst", "jsonl"])
@given(data=st.data())
@PATIENT
def test_an_export_equals_what_was_imported(
    store: Store, row_format: str, suffix: str, tmp_path: Path, data: st.DataObject
) -> None:
    rows = data.draw(st.lists(ROWS_BY_FORMAT[row_format], min_size=1, max_size=5))
    rows.append(rows[0])
    back = there_and_back(store, rows, suffix, tmp_path)
    assert back == rows
    assert [list(r) for r in back] == [list(r) for r in rows]  # the order of keys too


@given(
    rows=st.lists(
        st.fixed_dictionaries({"id": TEXT, "instruction": WORDS, "input": TEXT, "output": TEXT, "category": TEXT}),
        min_size=1,
        max_size=5,
    )
)
@PATIENT
def test_an_exported_csv_equals_what_was_imported(store: Store, tmp_path: Path, rows: list[dict[str, str]]) -> None:
    done = import_file(store, jsonl(tmp_path / "in.jsonl", rows))
    export_rows(store, done.version_id, None, tmp_path / "out.csv")
    back = import_file(store, tmp_path / "out.csv")
    export_rows(store, back.version_id, None, tmp_path / "again.jsonl")
    export_rows(store, back.version_id, None, tmp_path / "again.csv")
    assert read(tmp_path / "again.jsonl") == rows
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "out.csv").read_bytes()


@given(text=TEXT.map(lambda t: t[1:]) | st.text("'=+-@\t\ra", max_size=5))
def test_the_guard_of_csv_cells_is_undone_exactly(text: str) -> None:
    assert unguard(guard(text)) == text
    assert guard(text)[:1] not in tuple("=+-@\t\r")


def test_formulas_in_a_csv_for_people_are_guarded(store: Store, tmp_path: Path) -> None:
    rows = [{"instruction": "=1+1", "input": "'=quoted", "output": "-x", "n": -1}]
    done = import_file(store, jsonl(tmp_path / "a.jsonl", rows))
    export_rows(store, done.version_id, None, tmp_path / "a.csv")
    assert read(tmp_path / "a.csv") == [{"instruction": "'=1+1", "input": "''=quoted", "output": "'-x", "n": "-1"}]
    assert import_file(store, tmp_path / "a.csv").new_examples == 0


def test_a_chat_in_a_csv_cell_comes_back(store: Store, tmp_path: Path) -> None:
    rows = [{"id": "1", "messages": json.dumps(CHAT)}, {"id": "2", "messages": json.dumps(CHAT, separators=(",", ":"))}]
    done = import_file(store, write(tmp_path / "a.csv", rows))
    assert (done.rows, done.duplicates, done.row_format) == (2, 1, "messages")
    export_rows(store, done.version_id, None, tmp_path / "b.csv")
    assert read(tmp_path / "b.csv") == rows


def test_parquet_comes_back_with_its_values_and_types(store: Store, tmp_path: Path) -> None:
    table = pa.table(
        {
            "instruction": pa.array(["a", "b", "c"], pa.large_string()),
            "input": pa.array([None, "", "x"]),
            "output": ["1", "2", "3"],
            "n": pa.array([1, None, 3], pa.int16()),
            "f": pa.array([0.5, math.inf, None], pa.float32()),
            "day": pa.array([date(2026, 11, 21), None, None]),
            "at": pa.array([datetime(2026, 11, 21, 4, 5, 6, 7), None, None], pa.timestamp("us")),
            "utc": pa.array([datetime(2026, 11, 21, tzinfo=UTC), None, None], pa.timestamp("us", "UTC")),
            "price": pa.array([Decimal("1.50"), None, None], pa.decimal128(9, 2)),
            "blob": pa.array([b"\x00\xff", None, b""]),
            "kind": pa.array(["x", "y", "x"]).dictionary_encode(),
            "nested": pa.array([{"a": [1, 2], "b": None}, None, {"a": [], "b": "z"}]),
            "pairs": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int64())),
            "nothing": pa.nulls(3),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    done = import_file(store, tmp_path / "a.parquet")
    export_rows(store, done.version_id, None, tmp_path / "b.parquet")
    back = pq.read_table(tmp_path / "b.parquet")
    assert back.to_pylist() == pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert back.schema.equals(pq.read_table(tmp_path / "a.parquet").schema)
    export_rows(store, done.version_id, [0], tmp_path / "b.json")
    row = read(tmp_path / "b.json")[0]
    assert (row["day"], row["price"], row["blob"], row["input"]) == (
        "2026-11-21",
        "1.50",
        base64.b64encode(b"\x00\xff").decode(),
        None,
    )


def test_numbers_that_json_lacks_are_kept(store: Store, tmp_path: Path) -> None:
    text = (
        '{"instruction":"a","output":"b","x":NaN,"y":[-Infinity,null],"z":123456789012345678901234567890,"w":1e400}\n'
    )
    (tmp_path / "a.jsonl").write_text(text)
    done = import_file(store, tmp_path / "a.jsonl")
    export_rows(store, done.version_id, None, tmp_path / "b.jsonl")
    row = json.loads((tmp_path / "b.jsonl").read_text())
    assert math.isnan(row.pop("x"))
    assert row == {
        "instruction": "a",
        "output": "b",
        "y": [-math.inf, None],
        "z": 123456789012345678901234567890,
        "w": math.inf,
    }


@pytest.mark.parametrize("folder", ["rows", "rows/train"])
def test_a_folder_of_save_to_disk_is_read(store: Store, tmp_path: Path, folder: str) -> None:
    target = tmp_path / folder
    target.mkdir(parents=True)
    for number, row in enumerate(ROWS[:2]):
        table = pa.Table.from_pylist([row])
        with pa.OSFile(str(target / f"data-{number:05}-of-00002.arrow"), "wb") as file:
            with pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table)
    names = [{"filename": f"data-{n:05}-of-00002.arrow"} for n in range(2)]
    (target / "state.json").write_text(json.dumps({"_data_files": names}))
    if folder != "rows":
        (tmp_path / "rows" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    done = import_file(store, tmp_path / "rows")
    assert (done.dataset, done.rows, done.format, done.row_format) == ("rows", 2, "save_to_disk", "alpaca")
    export_rows(store, done.version_id, None, tmp_path / "b.parquet")
    assert read(tmp_path / "b.parquet") == ROWS[:2]
    (tmp_path / "rows" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DatasetError, match=r"has the splits train, test; import one of them: .*/rows/train"):
        import_file(store, tmp_path / "rows")


def test_a_folder_with_files_of_its_own_and_folders_is_not_offered_as_its_own_remedy(
    store: Store, tmp_path: Path
) -> None:
    (tmp_path / "mixed" / "more").mkdir(parents=True)
    for place in ("a.jsonl", "b.jsonl", "more/c.jsonl"):
        (tmp_path / "mixed" / place).write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with pytest.raises(DatasetError) as error:
        import_file(store, tmp_path / "mixed")
    folder = tmp_path / "mixed"
    assert str(error.value) == (
        f"{folder} contains data files, and the folders more in it do too; import one file, such as "
        f"{folder / 'a.jsonl'}, or one of these folders, such as {folder / 'more'}"
    )


# -- export -----------------------------------------------------------------------------------------------------


def test_chosen_positions_are_written_in_order_and_keep_the_files_mode(store: Store, tmp_path: Path) -> None:
    done = import_file(store, jsonl(tmp_path / "a.jsonl", ROWS))
    target = tmp_path / "b.jsonl"
    target.write_text("old")
    target.chmod(0o640)
    assert export_rows(store, done.version_id, [1, 0, 1], target) == 2
    assert read(target) == ROWS[:2]
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert export_rows(store, done.version_id, [], target) == 0
    assert read(target) == []
    with pytest.raises(DatasetError, match="no usable row at position 9"):
        export_rows(store, done.version_id, [0, 9], target)


def test_a_failed_export_leaves_the_old_file_and_no_other(store: Store, tmp_path: Path) -> None:
    done = import_file(store, jsonl(tmp_path / "a.jsonl", ROWS))
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "b.jsonl"
    target.write_text("old")

    def fails(position: int, example: str) -> dict[str, Any]:
        if position == 2:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        export_rows(store, done.version_id, None, target, extra=fails)
    assert target.read_text() == "old"
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["b.jsonl"]
    with pytest.raises(DatasetError, match="cannot be written: No such file"):
        export_rows(store, done.version_id, None, tmp_path / "nowhere" / "b.jsonl")
    with pytest.raises(DatasetError, match="is a folder"):
        export_rows(store, done.version_id, None, tmp_path / "out", format="json")
    with pytest.raises(DatasetError, match=r"b\.xlsx cannot be written"):
        export_rows(store, done.version_id, None, tmp_path / "b.xlsx")


def test_keys_can_be_added_to_rows(store: Store, tmp_path: Path) -> None:
    done = import_file(store, jsonl(tmp_path / "a.jsonl", [{**ROWS[0], "score": "old"}, ROWS[1]]))
    for name in ("b.json", "b.parquet"):
        export_rows(store, done.version_id, None, tmp_path / name, extra=lambda p, e: {"score": p + 0.5, "id": e})
        ids = [example_id(Example(r["instruction"], r["input"], r["output"])) for r in ROWS[:2]]
        wanted = [{**r, "score": n + 0.5, "id": i} for n, (r, i) in enumerate(zip(ROWS[:2], ids, strict=True))]
        assert read(tmp_path / name) == wanted


def test_another_row_format_gets_what_it_can_hold(store: Store, tmp_path: Path) -> None:
    row = {"instruction": "Sum up.", "context": "Long.", "response": "Short.", "category": "summarization", "id": 3}
    done = import_file(store, jsonl(tmp_path / "a.jsonl", [row]))
    expected: dict[str, dict[str, Any]] = {
        "alpaca": {
            "instruction": "Sum up.",
            "input": "Long.",
            "output": "Short.",
            "category": "summarization",
            "id": 3,
        },
        "dolly": row,
        "messages": {
            "messages": [{"role": "user", "content": "Sum up.\n\nLong."}, {"role": "assistant", "content": "Short."}],
            "category": "summarization",
            "id": 3,
        },
        "sharegpt": {
            "conversations": [{"from": "human", "value": "Sum up.\n\nLong."}, {"from": "gpt", "value": "Short."}],
            "category": "summarization",
            "id": 3,
        },
    }
    for row_format, wanted in expected.items():
        export_rows(store, done.version_id, None, tmp_path / "b.jsonl", row_format=row_format)
        assert read(tmp_path / "b.jsonl") == [wanted]
    chat_version = import_file(store, jsonl(tmp_path / "c.jsonl", [{"messages": CHAT}])).version_id
    export_rows(store, chat_version, None, tmp_path / "b.out", row_format="alpaca", format="json.gz")
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    assert json.loads(gzip.decompress((tmp_path / "b.out").read_bytes())) == [
        {"instruction": "2 + 2?", "input": "", "output": "4", "system": "Be brief.", "turns": turns}
    ]
    with pytest.raises(DatasetError, match="cannot be written in the row format mapped"):
        export_rows(store, done.version_id, None, tmp_path / "b.jsonl", row_format="mapped")


def test_rows_of_mixed_types_still_fit_a_parquet_file(store: Store, tmp_path: Path) -> None:
    rows = [{**ROWS[0], "x": 1, "y": None}, {**ROWS[1], "x": "one", "z": 2**80}]
    done = import_file(store, jsonl(tmp_path / "a.jsonl", rows))
    export_rows(store, done.version_id, None, tmp_path / "b.parquet")
    assert [(r["x"], r["y"], r["z"]) for r in read(tmp_path / "b.parquet")] == [
        ("1", None, None),
        ("one", None, str(2**80)),
    ]


# -- files that are not what they should be ---------------------------------------------------------------------

GOOD = b'{"instruction": "a", "output": "b"}\n'


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b" \n\n ", "only whitespace"),
        ("a.json", b"[]", "contains no rows"),
        ("a.txt", GOOD, "unknown suffix"),
        ("a.json", b"\x89PNG\r\n\x1a\n", "a PNG picture"),
        ("a.jsonl", gzip.compress(GOOD, mtime=0), "contains gzip data; give it the suffix .gz"),
        ("a.jsonl.gz", GOOD, "contains JSON lines; remove .gz from"),
        ("a.jsonl.gz", gzip.compress(GOOD * 99, mtime=0)[:-9], "Truncated"),
        ("a.jsonl.zst", zstandard.compress(GOOD * 99)[:-5], "Truncated"),
        ("a.jsonl.gz", gzip.compress(b"PK\x03\x04", mtime=0), "a zip archive"),
        ("a.parquet", GOOD, "has the suffix .parquet but contains JSON lines"),
        ("a.parquet", b"PAR1 and then nothing", "cannot be read"),
        ("a.json", b"PAR1abc", "a parquet file; give it the suffix .parquet"),
        ("a.json", b"<!doctype html>", "HTML"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("a.jsonl", GOOD.decode().encode("utf-16"), "UTF-16.*iconv"),
        ("a.jsonl", GOOD.decode().encode("utf-16-le"), "UTF-16.*iconv"),
        ("a.csv", "instruction,output\na,b\n".encode("utf-16"), "UTF-16.*iconv"),
        (
            "a.jsonl",
            GOOD + b'{"instruction": "caf\xe9", "output": "b"}\n',
            r"a.jsonl:2: byte 0xe9 at offset 56 is not UTF-8.*iconv",
        ),
        ("a.json", b'[{"instruction": "caf\xe9",\n "output": "b"}]', r"a.json:1: byte 0xe9 at offset 21 "),
        ("a.csv", b"instruction,output\na,caf\xe9\n", r"a.csv:2: byte 0xe9 at offset 24 "),
        ("a.jsonl", b"instruction: a\n" + GOOD, r"a.jsonl:1: the first line is not valid JSON"),
        ("a.jsonl", b'{\n "instruction": "a",\n "output": b"\n}\n', "over several lines that is not valid"),
        ("a.json", b'{"data": [{"instruction": "a", "output": "b"}]}', "one object with a list under 'data'"),
        ("a.json", b'{\n"data": [\n{"instruction": "a", "output": "b"}]}', "one object with a list under 'data'"),
        (
            "a.json",
            b'[{"instruction": "a", "output": "b"},\n{"instruction": "a" "output": "b"}]',
            r"a.json:2:21: broken JSON",
        ),
        ("a.json", b'[{"instruction": "a", "output": "b"},\n  ]', r"a.json:2:3: broken JSON, a trailing comma"),
        ("a.json", b'[{"instruction": "a", "output": "b"}', "found the end of the file"),
        ("a.json", b'[{"instruction": "a", "output": "b', "a.json:1:33: broken JSON"),
        ("a.json", b'[{"instruction": "a", "output": "b"}]\n[]', "a.json:2:1: .*after the end"),
        ("a.json", b"[" * 100_000, "nested too deeply"),
        ("a.json", b"[1, 2, 3]", "the rows are not JSON objects"),
        ("a.json", b'[{"question": "a"}]', "found the keys 'question'; expected instruction.*--map"),
        ("a.jsonl", b'{"instruction": "a", "output": null}\n', "none of its 1 rows is usable: 1 x no_answer"),
        ("a.csv", b"instruction,instruction,output\na,b,c\n", "more than one column is named 'instruction'"),
        ("a.csv", b'instruction,output\na,"b\n', "broken csv"),
        ("a.csv", b"instruction/output\na/b\n", "found the keys 'instruction/output'"),
        ("a.csv", b"instruction,output\n", "contains no rows"),
    ],
)
def test_a_file_that_cannot_be_imported_says_why_and_leaves_no_database(
    store: Store, tmp_path: Path, name: str, data: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DatasetError, match=says) as raised:
        import_file(store, tmp_path / name)
    assert str(tmp_path / name) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not store.path.exists()


def test_what_is_no_file_is_refused(store: Store, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder").mkdir()
    (tmp_path / "lies").mkdir()
    (tmp_path / "lies" / "state.json").write_text('{"_data_files": [{"filename": "../a.arrow"}]}')
    for name, says in (
        ("no.json", "file not found:"),
        ("pipe.jsonl", "no regular file|not a regular"),
        ("folder", "save_to_disk"),
        ("lies", "missing"),
    ):
        with pytest.raises(DatasetError, match=says):
            import_file(store, tmp_path / name)


@pytest.mark.parametrize(
    ("name", "kind"), [("a.json", "jsonl"), ("a.json.gz", "jsonl.gz"), ("b.jsonl", "json"), ("a.ndjson", "jsonl")]
)
def test_json_and_json_lines_are_read_as_what_they_are(store: Store, tmp_path: Path, name: str, kind: str) -> None:
    other = write(tmp_path / f"x.{kind}", ROWS)
    (tmp_path / name).write_bytes(other.read_bytes())
    done = import_file(store, tmp_path / name)
    assert (done.rows, done.format) == (3, kind)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_byte_order_mark_and_windows_line_ends_are_accepted(store: Store, tmp_path: Path, name: str) -> None:
    data = write(tmp_path / name, ROWS).read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + data)
    done = import_file(store, tmp_path / name)
    assert (done.rows, done.row_format) == (3, "alpaca")
    assert contents(store, done.version_id)[0][2] == ROWS[0]["instruction"]


def test_a_broken_line_among_good_ones_is_skipped(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD + b"\n{oops}\n" + b'{"a": ' * 2000 + b"\n" + GOOD + b'{"instruction": "cut')
    done = import_file(store, tmp_path / "a.jsonl")
    assert (done.rows, done.duplicates, done.reasons) == (2, 1, {"broken_json": 3})
    assert skipped(store, done.version_id) == [(1, 3, "broken_json"), (2, 4, "broken_json"), (4, 6, "broken_json")]


def test_a_csv_line_with_other_cells_than_the_header_is_skipped(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('instruction,output\n"two\nlines",b\n\nc,d,e\nf\n')
    done = import_file(store, tmp_path / "a.csv")
    assert (done.rows, done.reasons) == (1, {"wrong_columns": 2})
    assert [line for _, line, _ in skipped(store, done.version_id)] == [5, 6]


def test_rows_longer_than_the_window_of_the_reader_are_whole(store: Store, tmp_path: Path) -> None:
    rows = [{"instruction": f"{i}", "output": 'é\\"\n🌞' * n} for i, n in enumerate([1, 190_000, 3, 199_000, 150_000])]
    done = import_file(store, write(tmp_path / "a.json", rows))
    export_rows(store, done.version_id, None, tmp_path / "b.json")
    assert read(tmp_path / "b.json") == rows
    data = json.dumps(rows).encode()
    (tmp_path / "c.json").write_bytes(data.replace(b"}]", b'}x"]'))
    with pytest.raises(DatasetError, match=rf"c\.json:1:{len(data)}: broken JSON"):
        import_file(store, tmp_path / "c.json")


def test_what_unpacks_without_end_is_stopped(store: Store, tmp_path: Path) -> None:
    with (tmp_path / "a.jsonl.zst").open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as packed:
        packed.write(GOOD)
        for _ in range(1100):
            packed.write(b" " * 2**20)
    with pytest.raises(DatasetError, match=r"unpack to more than 1\.0 GB"):
        import_file(store, tmp_path / "a.jsonl.zst")
    assert not store.path.exists()


def test_a_format_that_is_written_can_be_read(store: Store, tmp_path: Path) -> None:
    done = import_file(store, jsonl(tmp_path / "a.jsonl", ROWS))
    for suffix in ("json", "jsonl", "csv", "parquet", "json.gz", "jsonl.zst", "csv.gz"):
        assert writable_format(tmp_path / f"b.{suffix}", None) == suffix
        export_rows(store, done.version_id, None, tmp_path / f"b.{suffix}")
        back = import_file(store, tmp_path / f"b.{suffix}")
        assert contents(store, back.version_id) == contents(store, done.version_id)


# -- examples without a database, and out of one ------------------------------------------------------------------


def test_a_file_is_read_without_a_database_as_an_import_would_take_it(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in ROWS)
        + '{"instruction": "No answer."}\n[1]\n{"instruction": "x", "output": "\\ud800"}\n{broken\n'
    )
    read = read_examples(path)
    assert read.examples == [Example(row["instruction"], row["input"], row["output"]) for row in ROWS]
    assert (read.rows, read.row_format, read.sha256) == (7, "alpaca", hashlib.sha256(path.read_bytes()).hexdigest())
    imported = import_file(store, path)
    assert (read.skipped, len(read.examples)) == (imported.reasons, imported.rows)
    assert sum(read.skipped.values()) == 4
    assert stored_examples(store, imported.version_id) == read.examples


def test_conversations_and_mapped_keys_are_read_too(tmp_path: Path) -> None:
    (read,) = read_examples(jsonl(tmp_path / "chat.jsonl", [{"messages": CHAT}])).examples
    assert (read.system, read.turns) == ("Be brief.", (Turn("user", "Hi"), Turn("assistant", "Hello.")))
    assert (read.instruction, read.output) == ("2 + 2?", "4")
    path = jsonl(tmp_path / "qa.jsonl", [{"ask": "2 + 2?", "told": "4"}])
    mapped = read_examples(path, mapping={"instruction": "ask", "output": "told"})
    assert mapped.examples == [Example("2 + 2?", "", "4")]
    with pytest.raises(DatasetError, match=r"qa\.jsonl"):
        read_examples(path)


def test_a_file_without_a_usable_row_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [{"instruction": "x", "output": None}, {"instruction": None, "output": "y"}])
    with pytest.raises(DatasetError, match=r"none of its 2 rows is usable: 1 x no_answer .*--row-format"):
        read_examples(path)


def test_stored_examples_come_in_the_order_of_their_positions(store: Store, tmp_path: Path) -> None:
    version = import_file(store, jsonl(tmp_path / "rows.jsonl", ROWS)).version_id
    assert [e.output for e in stored_examples(store, version, [2, 1])] == ["Guten Morgen 🌞", "Red."]
    with pytest.raises(DatasetError, match="no usable row at position 7"):
        stored_examples(store, version, [0, 7])
