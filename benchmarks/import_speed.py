"""How long an import takes beside DuckDB's bare insert of the same rows, and its peak memory.

    python benchmarks/import_speed.py --rows 1000000 --data alpaca_9229.json

The rows of --data are repeated up to --rows, each with its number behind the instruction so that all differ, and
written as jsonl. The import is a process of its own, timed from its start to its end, reading, hashing and checking
included. The bare insert puts the same rows, ready in memory as an Arrow table, into `create table (example_id uuid
primary key, instruction, input, output)`; it is given without the primary key too. Files live in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb
import orjson
import pyarrow as pa

HERE = Path(__file__).resolve().parents[1]
IMPORT = """
import sys
from alpasift.batcher.data.importing import import_file
from alpasift.batcher.store import Store
print(import_file(Store(sys.argv[1]), sys.argv[2]))
"""


def write_rows(data: Path, rows: int, target: Path) -> None:
    source = json.loads(data.read_text("utf-8"))
    with target.open("wb") as file:
        for i in range(rows):
            row = source[i % len(source)]
            file.write(orjson.dumps({**row, "instruction": f"{row['instruction']} {i}"}) + b"\n")


def arrow_table(path: Path) -> pa.Table:
    from alpasift.batcher.data.identity import example_id
    from alpasift.graders import Example

    names = ("example_id", "instruction", "input", "output")
    columns: dict[str, list[str]] = {name: [] for name in names}
    with path.open("rb") as file:
        for line in file:
            row = orjson.loads(line)
            example = Example(row["instruction"], row["input"], row["output"])
            for name, value in zip(
                names, (example_id(example), example.instruction, example.input, example.output), strict=True
            ):
                columns[name].append(value)
    return pa.table(columns)


def bare_insert(table: pa.Table, folder: Path, key: str) -> float:
    path = folder / f"bare_{bool(key)}.duckdb"
    began = time.perf_counter()
    con = duckdb.connect(str(path))
    con.execute(f"create table bare (example_id uuid {key}, instruction varchar, input varchar, output varchar)")
    con.register("staged", table)
    con.execute("insert into bare select cast(example_id as uuid), instruction, input, output from staged")
    con.close()
    seconds = time.perf_counter() - began
    path.unlink()
    return seconds


def timed_import(folder: Path, data: Path) -> tuple[float, float]:
    """Seconds of the whole process, and its peak memory in MB."""
    database = folder / "imported.duckdb"
    command = [sys.executable, "-c", IMPORT, str(database), str(data)]
    if (HERE / "batcher" / "cli" / "__main__.py").exists():
        command = [sys.executable, "-m", "alpasift.batcher.cli", "--db", str(database), "import", str(data)]
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=HERE, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        sys.exit(f"the import ended with status {os.waitstatus_to_exitcode(status)}")
    database.unlink()
    return seconds, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description="Time an import beside DuckDB's bare insert.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--data", type=Path, required=True, help="a JSON list of instruction, input, output")
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    sys.path.insert(0, str(HERE))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "rows.jsonl"
        write_rows(options.data, options.rows, data)
        print(f"{options.rows:,} rows, {data.stat().st_size / 1e6:,.0f} MB of jsonl, DuckDB {duckdb.__version__}")
        imports = [timed_import(folder, data) for _ in range(options.repeats)]
        table = arrow_table(data)
        keyed = min(bare_insert(table, folder, "primary key") for _ in range(options.repeats))
        plain = min(bare_insert(table, folder, "") for _ in range(options.repeats))
        seconds, peak = min(imports)[0], max(peak for _, peak in imports)
    print(
        f"import, whole process       {seconds:7.2f} s   {options.rows / seconds:10,.0f} rows/s   peak {peak:,.0f} MB"
    )
    print(f"bare insert, primary key    {keyed:7.2f} s   import takes {seconds / keyed:.2f} times as long")
    print(f"bare insert, no key         {plain:7.2f} s   import takes {seconds / plain:.2f} times as long")


if __name__ == "__main__":
    main()
