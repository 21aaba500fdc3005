"""Grading on a card: rows a second of `graders/vllm.py` on an 8B Llama shape, and how much of the card that is.

    python -m benchmarks.gpu_grading                     # needs a CUDA card and the package vllm; exits 3 without

The weights are random and never written to disk (vLLM's load_format "dummy"), which takes the time of real ones. What
is compared, each the median of three repetitions on fresh rows: the score alone, the score with reasons of 256 tokens,
and the score without prefix caching. The card's share is 2 * parameters * tokens computed a second, over the bfloat16
rate of a large matrix product measured here with torch; tokens that come from the cache are not computed and not
counted.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from alpasift.graders import vllm
from alpasift.graders.local import vllm_device

SHAPE = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
}


def lacking() -> str | None:
    """Why this cannot run here, in one line."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    import torch

    if not torch.cuda.is_available():
        return "torch sees no CUDA card"
    return vllm.missing_requirements()


def matrix_rate(size: int = 8192, seconds: float = 2.0) -> float:
    """Operations a second of a bfloat16 product of two square matrices."""
    import torch

    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        left @ right
    torch.cuda.synchronize()
    begun, done = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        for _ in range(10):
            left @ right
        torch.cuda.synchronize()
        done += 10
    return 2 * size**3 * done / (time.perf_counter() - begun)


def parameters(vocabulary: int) -> int:
    """Weights that one token is multiplied with: all but the embedding."""
    width, inner, layers = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["num_hidden_layers"]
    keys = width * SHAPE["num_key_value_heads"] // SHAPE["num_attention_heads"]
    return int(layers * (2 * width * width + 2 * width * keys + 3 * width * inner) + width * vocabulary)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Rows a second on a CUDA card, by answer format and with and without cache."
    )
    parser.add_argument("--rows", type=int, default=4096, help="rows of one repetition (default 4096)")
    options = parser.parse_args()
    if why := lacking():
        print(f"gpu_grading needs a CUDA card with vLLM, and {why}", file=sys.stderr)
        return 3
    rate = matrix_rate()
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from benchmarks.vllm_answer_formats import PLANT, ours, rows

    from tiny_models import changed, make_folder, make_gguf

    print(
        f"{vllm_device.card_name()}, vLLM {vllm_device.vllm_version()}, "
        f"bfloat16 matrix products {rate / 1e12:.0f} TFLOP/s\n"
    )
    print("| what | rows/s | own tokens/s | share of the card |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        model = make_folder(make_gguf(Path(folder, "tiny.gguf"), PLANT, n_head=2), Path(folder, "shape-8b"))
        changed(model / "config.json", **SHAPE)
        size = parameters(json.loads((model / "config.json").read_text())["vocab_size"])
        explained: dict[str, Any] = {"explain": "after", "max_tokens": 256}
        for name, cached, settings, part in (
            ("score", True, {}, 1),
            ("score, no prefix caching", False, {}, 2),
            ("explain, 256 tokens", True, explained, 4),
        ):
            backend = vllm.open(str(model))
            backend.engine.process.settings.update(load_format="dummy", enable_prefix_caching=cached)
            ours(backend, rows(256, **settings))
            speeds, tokens = [], 0.0
            for _ in range(3):
                asked = rows(options.rows // part, **settings)
                speeds.append(ours(backend, asked))
                tokens = _tokens(model, asked, cached) + (256 if settings else 2)
            backend.close()
            speed = statistics.median(speeds)
            print(f"| {name} | {speed:.0f} | {speed * tokens:.0f} | {2 * size * speed * tokens / rate:.0%} |")
    return 0


def _tokens(model: Path, asked: list[Any], cached: bool) -> float:
    """Tokens of a prompt that are computed, on average: without those of the fixed text where they are kept."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    own = [len(tokenizer.encode(request.messages[1][1])) for request in asked[:256]]
    fixed = 0 if cached else len(tokenizer.encode(asked[0].messages[0][1]))
    return sum(own) / len(own) + fixed


if __name__ == "__main__":
    sys.exit(main())
