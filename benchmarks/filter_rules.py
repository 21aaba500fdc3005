"""The whole job with the grader `rules`, whole process: import, grade, choose, write both files.

python benchmarks/filter_rules.py --data FILE.json [--times 5]

FILE is any file that `alpasift import` reads; the figures in benchmarks/README.md are of the 9,229 Alpaca rows that
AlpaGasus drew at random. Beside it, as a measure of this machine: the same process that only imports the file.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def run(arguments: list[str], database: Path) -> float:
    environment = {**os.environ, "ALPASIFT_DB": str(database)}
    start = time.perf_counter()
    command = [str(Path(sys.executable).with_name("alpasift")), *arguments]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    imports, filters = [], []
    for _ in range(options.times):
        with tempfile.TemporaryDirectory() as folder:
            here = Path(folder)
            imports.append(run(["import", str(options.data)], here / "i.duckdb"))
            arguments = ["filter", str(options.data), "-o", f"{folder}/kept.json", "--rejected", f"{folder}/out.jsonl"]
            filters.append(run([*arguments, "--grader", "rules"], here / "f.duckdb"))
    print(f"import alone             {statistics.median(imports):6.2f} s")
    print(f"filter --grader rules    {statistics.median(filters):6.2f} s   (at most 5; worst {max(filters):.2f})")
    print(f"ratio                    {statistics.median(filters) / statistics.median(imports):6.2f}")


if __name__ == "__main__":
    main()
