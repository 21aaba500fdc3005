"""How near grading comes to the rate at which llama.cpp reads the rows alone: rows a second, in alternating turns.

    python -m benchmarks.llama_real --data rows.json                       # SmolLM2-135M from the extra smollm2
    python -m benchmarks.llama_real --data rows.json --model PATH.gguf

The floor is llama.cpp's own batched prefill, with the same threads: the tokens that belong to each row, without the
rubric, in batches of 512 of as many rows as fit, in a context of default settings, one row of logits a row. It attends
to no rubric, writes no score, and renders and tokenises nothing. `score` and `expected_score` of the rubric `accuracy`
are wanted at 85 % of its rate.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.llama_answer_formats import requests
from benchmarks.llama_sharing import Meter, read

from alpasift.graders import llama_cpp
from alpasift.graders.local.packaged_models import gguf_path

FORMATS = ("score", "expected_score")
BATCH, SEQUENCES = 512, 16


class Floor:
    """A llama.cpp context of default settings that reads rows."""

    def __init__(self, model: Any, threads: int, longest: int) -> None:
        import llama_cpp as lib

        self.lib = lib
        params = lib.llama_context_default_params()
        params.n_ctx = max(longest, BATCH) + BATCH
        params.n_batch = params.n_ubatch = BATCH
        params.n_seq_max = SEQUENCES
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        self.context: Any = lib.llama_init_from_model(model.pointer, params)
        self.batch = lib.llama_batch_init(BATCH, 0, 1)

    def read(self, rows: Sequence[Sequence[int]]) -> None:
        """Read every row; rows that fit into one batch together are read together."""
        at: list[tuple[int, int, int, bool]] = []  # token, position, sequence, whether its logits are kept
        sequence = 0
        for row in rows:
            if at and (len(at) + len(row) > BATCH or sequence == SEQUENCES):
                self._send(at, True)
                at, sequence = [], 0
            for position, token in enumerate(row):
                if len(at) == BATCH:
                    self._send(at, False)
                    at = []
                at.append((token, position, sequence, position == len(row) - 1))
            sequence += 1
        self._send(at, True)

    def _send(self, tokens: Sequence[tuple[int, int, int, bool]], done: bool) -> None:
        batch = self.batch
        batch.n_tokens = len(tokens)
        for n, (token, position, sequence, output) in enumerate(tokens):
            batch.token[n], batch.pos[n], batch.logits[n] = token, position, output
            batch.n_seq_id[n], batch.seq_id[n][0] = 1, sequence
        assert not self.lib.llama_decode(self.context, batch)
        if done:
            self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), False)

    def close(self) -> None:
        self.lib.llama_batch_free(self.batch)
        self.lib.llama_free(self.context)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2-135m", help="a GGUF file (default smollm2-135m)")
    parser.add_argument("--data", type=Path, required=True, help="a JSON list of rows")
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    path = gguf_path(options.model) or Path(options.model)
    rows = read(options.data, options.rows)
    backend = llama_cpp.open(str(path))
    asked = {answer_format: requests(answer_format, rows) for answer_format in FORMATS}
    list(backend.answer(asked["score"][:16], Meter()))  # memory mapped, caches warm
    prompts = [backend.model.prompt(request) for request in asked["score"]]
    shared = len(backend.decoder.prefix)
    own = [prompt.tokens[shared:].tolist() for prompt in prompts if not isinstance(prompt, str)]
    threads = int(backend.facts["threads"])
    floor = Floor(backend.model, threads, max(map(len, own)))
    floor.read(own[:16])
    rates: dict[str, list[float]] = {name: [] for name in ("floor", *FORMATS)}
    for _ in range(options.turns):
        began = time.perf_counter()
        floor.read(own)
        rates["floor"].append(len(own) / (time.perf_counter() - began))
        for answer_format in FORMATS:
            began = time.perf_counter()
            count = sum(len(chunk) for chunk in backend.answer(asked[answer_format], Meter()))
            rates[answer_format].append(count / (time.perf_counter() - began))
    floor.close()
    backend.close()
    tokens = sum(map(len, own))
    print(
        f"{path.name}: {len(own)} rows, {tokens / len(own):.0f} tokens of its own a row, rubric {shared}; {threads} "
        f"threads; medians of {options.turns} alternating turns; peak memory "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000:.0f} MB"
    )
    base = median(rates["floor"])
    print("| | rows/s | own tokens/s | beside the floor |\n|---|---|---|---|")
    for name, found in rates.items():
        rate = median(found)
        print(f"| {name} | {rate:.2f} | {rate * tokens / len(own):.0f} | {rate / base:.0%} |")


if __name__ == "__main__":
    main()
