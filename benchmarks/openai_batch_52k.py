"""52,000 requests of real rows by batch, against the rehearsal's server: AlpaSift beside the least program.

    python benchmarks/openai_batch_52k.py --data ALPACA.json [--rows 52000] [--repeat 3]

Both arms, in turn, each with a server process of its own: `floor.py` (render, upload, poll, download, insert), and
`alpasift import`, `grade --grader openai_batch:gpt-4o-mini --budget 50`, `scores`, then the same `grade` again, which
must pay nothing. Wall seconds and peak memory (of the largest process of an arm) are medians; the ratio is what counts.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def server(folder: Path):
    prices = folder / "prices.json"
    prices.write_text(
        json.dumps({"gpt-4o-mini": {"input": "0.15", "output": "0.60", "cached_input": "0.075", "cache_write": "0.15"}})
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "alpasift.graders.rehearsal", "--key", "rehearsal", "--prices", str(prices)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )
    try:
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.terminate()
        process.wait()


def measured(arguments: list[str], env: dict[str, str], cwd: Path) -> tuple[float, float, int]:
    """(seconds, peak MB, exit code) of one process."""
    script = (
        "import resource,subprocess,sys;code=subprocess.call(sys.argv[1:]);"
        "print('\\n@', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, code)"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script, *arguments], env=env, cwd=cwd, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    _, peak, code = done.stdout.rsplit("\n", 2)[-2].split() if "@" in done.stdout else ("@", "0", "1")
    if code not in ("0", "4"):
        raise SystemExit(f"{arguments} failed with {code}:\n{done.stdout}\n{done.stderr}")
    return seconds, int(peak) / 1024, int(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", type=int, default=52_000)
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    real = json.loads(Path(given.data).read_text("utf-8"))
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "ALPASIFT_"))}
    alpasift = [sys.executable, "-m", "alpasift.batcher.cli", "--db", "b.duckdb"]
    grade = [
        "grade",
        "--grader",
        "openai_batch:gpt-4o-mini",
        "--rubric",
        "accuracy",
        "--budget",
        "50",
        "--yes",
        "--poll-seconds",
        "0.2",
        "--grace-seconds",
        "0",
        "--quiet",
    ]
    table: dict[str, list[tuple[float, float]]] = {"floor": [], "import": [], "grade": [], "scores": [], "again": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = folder / "rows.jsonl"
        with rows.open("w", encoding="utf-8") as file:
            for i in range(given.rows):
                row = dict(real[i % len(real)])
                if i >= len(real):  # distinct: equal rows would be asked about once
                    row["instruction"] += f" ({i // len(real)})"
                file.write(json.dumps(row) + "\n")
        for _ in range(given.repeat):
            with server(folder) as url:
                env = {**clean, "PYTHONPATH": str(ROOT / "src")}
                out = folder / "floor.duckdb"
                out.unlink(missing_ok=True)
                seconds, peak, _ = measured(
                    [sys.executable, str(ROOT / "benchmarks/floor.py"), str(rows), url, str(out)], env, folder
                )
                table["floor"].append((seconds, peak))
            with server(folder) as url:
                env = {**clean, "PYTHONPATH": str(ROOT / "src"), "OPENAI_BASE_URL": url, "OPENAI_API_KEY": "rehearsal"}
                for stale in folder.glob("b.duckdb*"):
                    subprocess.run(["rm", "-rf", str(stale)], check=True)
                steps = (("import", ["import", str(rows)]), ("grade", grade), ("scores", ["scores"]), ("again", grade))
                for step, arguments in steps:
                    seconds, peak, _ = measured([*alpasift, *arguments], env, folder)
                    table[step].append((seconds, peak))
    median = {k: (statistics.median(s for s, _ in v), statistics.median(p for _, p in v)) for k, v in table.items()}
    ours = [median[k] for k in ("import", "grade", "scores")]
    total = sum(s for s, _ in ours)
    print(f"{given.rows:,} requests, {given.repeat} times, medians")
    for name, (seconds, peak) in median.items():
        print(f"  {name:8s} {seconds:7.2f} s  {peak:6.0f} MB")
    print(
        f"  import + grade + scores / floor: {total:.2f} / {median['floor'][0]:.2f} s = "
        f"{total / median['floor'][0]:.2f}x"
    )
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"  peak memory {max(p for _, p in ours):.0f} MB; own {own:.0f} MB")


if __name__ == "__main__":
    main()
