"""What reasons cost with vLLM, and what our driver adds to it: rows a second of `graders/vllm.py` on a tiny model.

    PYTHONPATH=. .venv-vllm/bin/python -m benchmarks.vllm_answer_formats

Two comparisons, each the median of alternating repetitions on fresh rows (the rubric `accuracy` and invented rows), so
that what is cached is the rubric and nothing else.

- The score alone beside the score with reasons of 256 tokens. The model's weights are planted: it never ends by itself.
- Our driver (rows to tokens, a process of its own, replies in blocks) beside `LLM.generate` with the same engine
  settings, the same parameters and prompts that are tokens already: the least that any driver can take.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.llama_sharing import invented

from alpasift.graders import Request, vllm
from alpasift.graders.local.vllm_process import environment
from alpasift.graders.local.vllm_worker import Engine
from alpasift.graders.prompts.rubric import load_rubric

RUBRIC = load_rubric("accuracy")
PLANT = {"\n": {"4": 1.0}, "4": {"\n": 1.0}}  # a score, a newline, and so on without end
_numbers = count()


class Meter:
    """Grants everything: nothing here costs money."""

    def open(self, keys: Sequence[str], ceiling_each: Any, price: Any = None, facts: Any = None) -> str:
        return f"attempt of {keys[0]}"

    def close(self, attempt: str) -> None: ...


def rows(number: int, **settings: Any) -> list[Request]:
    """Requests that were never asked before."""
    found = []
    for example in invented(number):
        mark = next(_numbers)
        example = replace(example, instruction=f"{mark}. {example.instruction}")
        messages = RUBRIC.messages(example, str(mark))
        found.append(Request(str(mark), messages, example, choices=RUBRIC.choices, **settings))
    return found


def ours(backend: vllm.VLLM, requests: list[Request]) -> float:
    """Rows a second of `answer`."""
    begun = time.perf_counter()
    replies = [reply for chunk in backend.answer(iter(requests), Meter()) for reply in chunk]
    seconds = time.perf_counter() - begun
    assert {reply.outcome for reply in replies} == {"answered"}
    return len(replies) / seconds


def bare(engine: Engine, requests: list[Request]) -> float:
    """Rows a second of `LLM.generate`, whose prompts and parameters are made before the clock runs.

    With reasons it writes choice and reasons in one go under the same grammar; our driver asks for the choice first.
    """
    prompts = [{"prompt_token_ids": engine.prompts.prompt(request)[0]} for request in requests]
    params = [engine.jobs._constrained(request).clone() for request in requests]
    for request, one in zip(requests, params, strict=True):
        if request.explain == "after":
            one.stop, one.max_tokens = [], request.max_tokens
    begun = time.perf_counter()
    outputs = engine.llm.generate(prompts, params, use_tqdm=False)
    return len(outputs) / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description="Rows a second by answer format, and our driver beside LLM.generate.")
    parser.add_argument("--rows", type=int, default=512, help="rows of one repetition (default 512)")
    parser.add_argument("--times", type=int, default=5, help="repetitions (default 5)")
    parser.add_argument(
        "--shape",
        type=int,
        nargs=4,
        default=(2, 64, 2, 128),
        metavar="N",
        help="layers, width, heads and feed-forward width of the model; width over heads a multiple of 32",
    )
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from tiny_models import make_folder, make_gguf

    with tempfile.TemporaryDirectory() as folder:
        shape = dict(zip(("n_layer", "n_embd", "n_head", "n_ff"), options.shape, strict=True))
        model = make_folder(make_gguf(Path(folder, "planted.gguf"), PLANT, **shape), Path(folder, "planted"))
        backend = vllm.open(str(model))
        os.environ.update(environment("cpu"))
        engine = Engine(backend.engine.process.settings, None)
        explained = {"explain": "after", "max_tokens": 256}
        ours(backend, rows(64))
        ours(backend, rows(64, **explained))
        bare(engine, rows(64))
        rates: dict[str, list[float]] = {"score": [], "explain": [], "generate": [], "generate explain": []}
        few = options.rows // 4
        for turn in range(options.times):
            runs = [
                ("score", lambda: ours(backend, rows(options.rows))),
                ("generate", lambda: bare(engine, rows(options.rows))),
                ("explain", lambda: ours(backend, rows(few, **explained))),
                ("generate explain", lambda: bare(engine, rows(few, **explained))),
            ]
            for name, run in runs if turn % 2 else reversed(runs):
                rates[name].append(run())
        backend.close()
    middle = {name: statistics.median(found) for name, found in rates.items()}
    print("| what | rows/s, median (least to most) |\n|---|---|")
    for name, found in rates.items():
        print(f"| {name} | {middle[name]:.1f} ({min(found):.1f} to {max(found):.1f}) |")
    print(f"\nscore beside explain: {middle['score'] / middle['explain']:.1f}x (wanted: at least 5x)")
    for name in ("", " explain"):
        more = middle[f"generate{name}"] / middle[name.strip() or "score"] - 1
        print(f"our driver beside LLM.generate{name}: {more:+.0%} time (wanted: at most +10%)")


if __name__ == "__main__":
    main()
