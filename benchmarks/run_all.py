"""Every benchmark of this folder that runs without a GPU, one after the other.

python benchmarks/run_all.py --data FILE.json [--rows 1000000]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", required=True, help="instruction rows, for example the 9,229 of AlpaGasus's random_9k.json"
    )
    parser.add_argument("--rows", default="1000000", help="for the import")
    options = parser.parse_args()
    commands = [
        ["start_up.py"],
        ["filter_rules.py", "--data", options.data],
        ["llama_sharing.py", "--data", options.data],
        ["llama_answer_formats.py", "--data", options.data],
        ["openai_batch_52k.py", "--data", options.data],
        ["fit_published.py", "--data", options.data],
        ["packing.py", "--data", options.data],
        ["import_speed.py", "--data", options.data, "--rows", options.rows],
    ]
    failed = []
    for command in commands:
        print(f"\n$ python benchmarks/{' '.join(command)}", flush=True)
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent / "src")}
        if subprocess.run([sys.executable, str(HERE / command[0]), *command[1:]], env=environment).returncode:
            failed.append(command[0])
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
