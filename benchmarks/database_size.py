"""How large a database gets that is graded call by call: many small commits, in blocks of several sizes.

    python -m benchmarks.database_size [--rows 300] [--blocks 262144 65536 16384]

A paid script answers one row a call, so each answer is reserved, charged and closed as a real one is. For each size of
block: megabytes after the import and after the grading. A database of many rows written in large commits is for
`openai_batch_52k.py`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from alpasift.batcher.store import opening

SCRIPT = 'usd_per_million_input = "0.15"\nusd_per_million_output = "0.60"\nlines_per_attempt = 1\n'
ROW = '{{"instruction": "Name fact {0} about trees.", "input": "", "output": "Fact {0}: a tree has leaves."}}\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--blocks", type=int, nargs="+", default=[262_144, 65_536, 16_384])
    given = parser.parse_args()
    print(
        f"{given.rows} rows, one answer a call; new databases have blocks of {opening.NEW_FILE['default_block_size']}"
    )
    for block in given.blocks:
        with tempfile.TemporaryDirectory() as name:
            imported, graded = sizes(Path(name), given.rows, block)
        print(f"  blocks of {block:7,}: imported {imported / 1e6:5.1f} MB, graded {graded / 1e6:5.1f} MB")


def sizes(folder: Path, rows: int, block: int) -> tuple[int, int]:
    """Bytes of a database after the import of so many rows and after their grading, both in one process each."""
    (folder / "rows.jsonl").write_text("".join(ROW.format(i) for i in range(rows)))
    (folder / "paid.toml").write_text(SCRIPT)
    run(folder, block, "import", "rows.jsonl")
    imported = (folder / "alpasift.duckdb").stat().st_size
    run(
        folder,
        block,
        "grade",
        "--grader",
        "fake:paid.toml",
        "--rubric",
        "accuracy",
        "--budget",
        "1",
        "--yes",
        "--quiet",
    )
    return imported, (folder / "alpasift.duckdb").stat().st_size


def run(folder: Path, block: int, *arguments: str) -> None:
    code = (
        "import sys; from alpasift.batcher.store import opening; from alpasift.batcher.cli import run; "
        f"opening.NEW_FILE['default_block_size'] = '{block}'; sys.exit(run(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{arguments} ended with {done.returncode}: {done.stderr}")


if __name__ == "__main__":
    main()
