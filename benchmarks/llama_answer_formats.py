"""What each answer format costs with llama.cpp: rows a second for `score`, `expected_score` and `explain`, in
alternating turns.

    python -m benchmarks.llama_answer_formats                 # a tiny model with random weights, made on the spot
    python -m benchmarks.llama_answer_formats --model PATH.gguf --data rows.json

`expected_score` reads the probabilities at every place where the eleven scores part: six positions a row more than
`score`. It is wanted at no less than half the rate of `score`. The choices must be the same in all three.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.llama_sharing import Meter, invented, read

from alpasift.batcher.engine.task import Item
from alpasift.batcher.tasks.grade import Grade
from alpasift.graders import Example, Request, llama_cpp
from alpasift.graders.prompts.rubric import load_rubric

FORMATS = ("score", "expected_score", "explain")


def requests(answer_format: str, rows: list[Example]) -> list[Request]:
    task = Grade(load_rubric("accuracy"), answer_format)
    return [task.request(Item(str(number), row), "", 0) for number, row in enumerate(rows)]


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
        asked = {c: requests(c, rows if c != "explain" else rows[: options.explain_rows]) for c in FORMATS}
        list(backend.answer(asked["score"][:16], Meter()))  # memory mapped, caches warm
        rates: dict[str, list[float]] = {c: [] for c in FORMATS}
        scores: dict[str, dict[str, str]] = {}
        for _ in range(options.turns):
            for answer_format in FORMATS:
                begun = time.perf_counter()
                replies = [reply for chunk in backend.answer(asked[answer_format], Meter()) for reply in chunk]
                rates[answer_format].append(len(replies) / (time.perf_counter() - begun))
                scores[answer_format] = {reply.key: (reply.text or "").split("\n")[0] for reply in replies}
        backend.close()
    print(f"{options.rows} rows, {options.explain_rows} for explain; medians of {options.turns} alternating turns")
    print("| answer_format | rows/s | beside score |\n|---|---|---|")
    base = median(rates["score"])
    for answer_format in FORMATS:
        rate = median(rates[answer_format])
        print(f"| `{answer_format}` | {rate:.1f} | {rate / base:.2f} |")
    for answer_format in FORMATS[1:]:
        equal = sum(scores["score"][key] == choice for key, choice in scores[answer_format].items())
        print(f"{equal} of {len(scores[answer_format])} choices of `{answer_format}` are those of `score`")


if __name__ == "__main__":
    main()
