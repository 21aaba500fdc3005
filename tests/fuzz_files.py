"""Damaged data files: whatever bytes a file holds, it is refused or read, and rows that are read come back.

python tests/fuzz_files.py                    5,000 mutations of each format, some minutes
python tests/fuzz_files.py jsonl --count 100  a hundred of one

What may happen to a mutated file: it is refused with a DatasetError, or its rows are read. A row that is usable is then
restored from its parts, written in the file's format and read again, and must be equal each time.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alpasift.batcher.data.data_file import open_data_file
from alpasift.batcher.data.files.file_row import DatasetError
from alpasift.batcher.data.files.rows import read_rows
from alpasift.batcher.data.files.source import inspect
from alpasift.batcher.data.files.writing import write_rows
from alpasift.batcher.data.row_formats.row import Notes, Parts, Unusable
from alpasift.batcher.data.row_formats.rows import reader, restore

TALK = [{"role": "user", "content": "Hi \U0001f31e"}, {"role": "assistant", "content": "Hello\n'=x"}]
ROWS: list[dict[str, Any]] = [
    {"instruction": "Name a fish.", "input": "", "output": "Cod", "n": 1, "x": None},
    {"instruction": "=Sum", "input": "1, 2", "output": "3\n", "n": 2, "x": [1, {"a": 1.5}]},
    {"prompt": "Q", "chosen": "good", "rejected": "bad", "messages": TALK},
    {"messages": TALK, "source": "é"},
]
FORMATS = ("json", "jsonl", "csv", "parquet", "save_to_disk")


def sample(folder: Path, kind: str) -> Path:
    """A sound file of the format; of save_to_disk its folder."""
    path = folder / f"rows.{kind}"
    if kind == "json":
        path.write_text(json.dumps(ROWS, indent=1))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif kind == "csv":
        path.write_text('instruction,input,output\n"a, b",,c\n"d ""e""",\'=f,"g\nh"\n=i,j,k\n')
    else:
        table = pa.table(
            {
                "instruction": ["a", "b"],
                "output": ["x", "y"],
                "messages": [TALK, None],
                "at": pa.array([1, None], pa.timestamp("ns", "UTC")),
                "day": pa.array([date(2026, 11, 21), None]),
            }
        )
        if kind == "parquet":
            pq.write_table(table, path, compression="none")
        else:
            path.mkdir()
            with pa.OSFile(str(path / "data-0.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table)
            (path / "state.json").write_text('{"_data_files": [{"filename": "data-0.arrow"}], "_split": "train"}')
    return path


_WORDS = [
    b"null",
    b"NaN",
    b"5",
    b"{}",
    b"[]",
    b'""',
    b"\\ud800",
    b"\xff",
    b"\0",
    b'"',
    b",",
    b";",
    b"\t",
    b"\n",
    b"{",
    b"}",
]
_WORDS += [
    b"'=",
    b"[",
    b"]",
    b"true",
    b"1e999",
    b"9" * 25,
    b'"role"',
    b'"$form"',
    b"\xef\xbb\xbf",
    b"\r",
    b"-1",
    b"\x80\x80",
]


def mutated(data: bytes, draw: random.Random) -> bytes:
    """The bytes with one to four small damages."""
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(data) + 1)
        way = draw.randrange(6)
        if way == 0:
            data = data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]
        elif way == 1:
            data = data[:at] + data[at + draw.randint(1, 12) :]
        elif way == 2:
            data = data[:at] + draw.choice(_WORDS) + data[at:]
        elif way == 3:
            data = data[:at] + draw.choice(_WORDS) + data[at + draw.randint(1, 6) :]
        elif way == 4:
            end = at + draw.randint(1, 40)
            data = data[:end] + data[at:end] + data[end:]
        elif draw.random() < 0.3:
            data = data[:at]
    return data


def check(path: Path, back: Path) -> str:
    """What became of a file: refused, or read. Raises AssertionError where a row does not come back."""
    try:
        file = open_data_file(path)
        take = reader(file.row_format, Notes(), others=file.others)
        kept: list[dict[str, Any]] = []
        for one in file.rows:
            if one.reason or type(one.row) is not dict:
                continue
            try:
                found = take(one.row)
            except Unusable:
                continue
            parts = [one_part for one_part in found if isinstance(one_part, Parts)]
            restored = [row for row in (restore(file.row_format, part) for part in parts) if row is not None]
            if parts:
                assert list(map(repr, restored)) == [repr(one.row)], (restored, one.row)
                kept += restored
    except DatasetError as error:
        assert "\n" not in str(error), error
        return "refused"
    if not kept:
        return "no row"
    kind = file.source.format.partition(".")[0]
    name = {"objects": "jsonl", "save_to_disk": "parquet"}.get(kind, kind)
    target = back.with_suffix(f".{name}")
    try:
        write_rows(target, name, lambda: kept, file.source.columns)
    except (UnicodeEncodeError, TypeError):  # half a surrogate pair: an import has skipped such a row
        return "bad_unicode"
    again = [one.row for one in read_rows(inspect(target))]
    assert list(map(repr, again)) == list(map(repr, kept)), (again, kept)
    return "read"


def fuzz(kind: str, count: int, seed: int = 0) -> Counter[str]:
    """Check so many mutations of one format; returns how often what happened."""
    draw, happened = random.Random(f"{kind} {seed}"), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="alpasift-fuzz-") as name:
        folder = Path(name)
        path = sample(folder, kind)
        files = [path] if path.is_file() else sorted(path.iterdir())
        sound = {file: file.read_bytes() for file in files}
        for number in range(count):
            file = draw.choice(files)
            file.write_bytes(mutated(sound[file], draw))
            try:
                happened[check(path, folder / "back")] += 1
            except Exception as error:
                error.add_note(f"{kind}, mutation {number} of seed {seed}: {file.read_bytes()[:2000]!r}")
                raise
            file.write_bytes(sound[file])
    return happened


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("formats", nargs="*", choices=[*FORMATS, []], default=[])
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for kind in given.formats or FORMATS:
        print(kind, dict(fuzz(kind, given.count, given.seed)), flush=True)


if __name__ == "__main__":
    main()
