"""A hundred damaged files of each format; `python tests/fuzz_files.py` tries thousands."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alpasift.batcher.data.data_file import read_examples
from alpasift.batcher.data.files.file_row import DatasetError
from alpasift.batcher.data.importing import import_file
from alpasift.batcher.data.stored_rows import export_rows
from alpasift.batcher.store import Store
from fuzz_files import FORMATS, fuzz, sample


@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_file_is_refused_or_read_and_what_is_read_comes_back(kind: str) -> None:
    happened = fuzz(kind, 100, seed=1)
    assert happened.total() == 100 and happened["read"]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("state.json", '{"_data_files": 5}', "data files that are missing: none"),
        ("state.json", '{"_data_files": [{"filename": 5}]}', "data files that are missing: '5'"),
        ("state.json", '{"_data_files": [5]}', "data files that are missing: none"),
        ("state.json", "[" * 100_000, "is not JSON"),
        ("state.json", "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "is not JSON"),
        ("dataset_dict.json", '{"splits": null}', "lists no splits"),
        ("dataset_dict.json", '{"splits": [5]}', "lists no splits"),
        ("dataset_dict.json", '{"splits": {"train": 1}}', "lists no splits"),
        ("dataset_dict.json", '{"splits": ["nowhere"]}', "without state.json"),
        ("dataset_dict.json", "null", "lists no splits"),
    ],
)
def test_a_damaged_folder_of_save_to_disk_is_refused(tmp_path: Path, name: str, text: str, says: str) -> None:
    folder = sample(tmp_path, "save_to_disk")
    (folder / name).write_text(text, "latin-1")
    with pytest.raises(DatasetError, match=says):
        read_examples(folder)


def test_offsets_that_point_outside_an_arrow_file_do_not_end_the_process(tmp_path: Path) -> None:
    folder = sample(tmp_path, "save_to_disk")
    file = folder / "data-0.arrow"
    data = file.read_bytes()
    offsets = b"\0\0\0\0\1\0\0\0\2\0\0\0"
    assert offsets in data
    file.write_bytes(data.replace(offsets, b"\0\0\0\0\xff\xff\xff\x7f\2\0\0\0", 1))
    with pytest.raises(DatasetError, match="cannot be read"):
        read_examples(folder)


def test_times_that_python_cannot_hold_come_back_from_parquet(tmp_path: Path) -> None:
    ns = pa.timestamp("ns")
    table = pa.table(
        {
            "instruction": ["a", "b"],
            "output": ["x", "y"],
            "ns": pa.array([1, None], ns),
            "utc": pa.array([1_000_000_007, 2**62], pa.timestamp("ns", "Europe/Amsterdam")),
            "far": pa.array([10**7, -(10**6)], pa.int32()).cast(pa.date32()),
            "far_s": pa.array([2**45, None], pa.timestamp("s")),
            "day": pa.array([date(2026, 11, 21), None]),
            "took": pa.array([5, None], pa.duration("ns")),
            "at": pa.array([5, None], pa.time64("ns")),
            "within": pa.array([{"when": [1]}, None], pa.struct([("when", pa.list_(ns))])),
            "pairs": pa.array([[("k", 1)], []], pa.map_(pa.string(), ns)),
            "kinds": pa.array([7, 7], ns).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    store = Store(tmp_path / "sift.duckdb")
    done = import_file(store, tmp_path / "a.parquet")
    export_rows(store, done.version_id, None, tmp_path / "b.parquet")
    export_rows(store, done.version_id, None, tmp_path / "b.jsonl")
    first, back = pq.read_table(tmp_path / "a.parquet"), pq.read_table(tmp_path / "b.parquet")
    assert back.schema.equals(first.schema)
    assert back.equals(first)
    row = json.loads((tmp_path / "b.jsonl").read_text().splitlines()[0])
    assert (row["ns"], row["far"], row["day"]) == ("1970-01-01T00:00:00.000000001", "29349-01-26", "2026-11-21")
    assert (row["took"], row["at"]) == ("5", "00:00:00.000000005")
