"""How long `alpasift --help` takes beside a bare `python -c "import click"`: whole processes, taken in turns, medians.

python benchmarks/start_up.py [--times 15]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=15)
    times = parser.parse_args().times
    script = str(Path(sys.executable).with_name("alpasift"))
    bare, ours = [sys.executable, "-c", "import click"], [script, "--help"]
    for command in (bare, ours):
        seconds(command)
    pairs = [(seconds(bare), seconds(ours)) for _ in range(times)]
    base, help_ = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"python -c 'import click'  {base * 1000:6.0f} ms")
    print(f"alpasift --help           {help_ * 1000:6.0f} ms")
    print(f"ratio                     {help_ / base:6.2f}   (at most 3)")


if __name__ == "__main__":
    main()
