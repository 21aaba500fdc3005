"""What each contract costs with llama.cpp: rows a second for `score`, `expected` and `explain`, in alternating turns.

    python -m benchmarks.llama_contracts                 # a tiny model with random weights, made on the spot
    python -m benchmarks.llama_contracts --model PATH.gguf --data rows.json

`expected` reads the probabilities at every place where the eleven scores part: six positions a row more than `score`.
It is wanted at no less than half the rate of `score`. The choices must be the same in all three.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from batcher.tasks.grade import Grade
from benchmarks.llama_sharing import Meter, invented, read
from graders import Example, Request, llama_cpp
from graders.rubric import load_rubric

CONTRACTS = ("score", "expected", "explain")


def requests(contract: str, rows: list[Example]) -> list[Request]:
    task = Grade(load_rubric("accuracy"), contract)
    return [task.request(str(number), row, "", 0) for number, row in enumerate(rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, help="a GGUF file (default: a tiny one with random weights)")
    parser.add_argument("--shape", type=int, nargs=4, default=(8, 512, 8, 1536), metavar="N")
    parser.add_argument("--data", type=Path, help="a JSON list of rows (default: invented ones)")
    parser.add_argument("--rows", type=int, default=192, help="rows of score and expected (default 192)")
    parser.add_argument("--explain-rows", type=int, default=16, help="rows of explain (default 16)")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    rows = read(options.data, options.rows) if options.data else invented(options.rows)
    with tempfile.TemporaryDirectory() as folder:
        model = options.model
        if model is None:
            sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
            from examples.tiny_gguf import make

            model = make(
                Path(folder) / "tiny.gguf",
                **dict(zip(("n_layer", "n_embd", "n_head", "n_ff"), options.shape, strict=True)),
            )
        backend = llama_cpp.open(str(model))
        asked = {c: requests(c, rows if c != "explain" else rows[: options.explain_rows]) for c in CONTRACTS}
        list(backend.answer(asked["score"][:16], Meter()))  # memory mapped, caches warm
        rates: dict[str, list[float]] = {c: [] for c in CONTRACTS}
        scores: dict[str, dict[str, str]] = {}
        for _ in range(options.turns):
            for contract in CONTRACTS:
                begun = time.perf_counter()
                replies = [reply for chunk in backend.answer(asked[contract], Meter()) for reply in chunk]
                rates[contract].append(len(replies) / (time.perf_counter() - begun))
                scores[contract] = {reply.key: (reply.text or "").split("\n")[0] for reply in replies}
        backend.close()
    print(f"{options.rows} rows, {options.explain_rows} for explain; medians of {options.turns} alternating turns")
    print("| contract | rows/s | beside score |\n|---|---|---|")
    base = median(rates["score"])
    for contract in CONTRACTS:
        rate = median(rates[contract])
        print(f"| `{contract}` | {rate:.1f} | {rate / base:.2f} |")
    for contract in CONTRACTS[1:]:
        equal = sum(scores["score"][key] == choice for key, choice in scores[contract].items())
        print(f"{equal} of {len(scores[contract])} choices of `{contract}` are those of `score`")


if __name__ == "__main__":
    main()
