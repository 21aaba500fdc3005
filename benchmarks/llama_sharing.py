"""How much sharing the rubric saves: `graders/llama_cpp.py` beside `Llama.create_completion`, rows a second and scores.

    python -m benchmarks.llama_sharing                           # a tiny model with random weights, made on the spot
    python -m benchmarks.llama_sharing --model PATH.gguf --data rows.json

What can be gained is bounded by the tokens: a prompt of 600 of which 120 are the row's own is five times the work, as
long as the machine is busy computing, and that is the last line's "tokens" beside the measured ratio. Short rows gain
most. Both sides get the same prompts as tokens (the rubric `accuracy`), the same eleven choices (0 to 5 by 0.5), and no
flash attention (off by default in `Llama` too). `create_completion` has default settings, threads too, but for a
context that holds the prompts, a grammar of the choices, four tokens and temperature 0; `reset()` before each row keeps
it from reusing the prefix of the row before. Its grammar lets a newline end the score, as our walk does: without that a
model whose newline is likelier than both "." and its end-of-text token writes "4.5" under the one and "4" under the
other.

`--keep-prefix` leaves out the reset, so that `Llama` decodes only what differs from its previous prompt.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from alpasift.graders import Example, Request, llama_cpp
from alpasift.graders.prompts.rubric import load_rubric

RUBRIC = load_rubric("accuracy")
GRAMMAR = r"""root ::= (([0-4] (".5")?) | "5") "\n"?"""

ASKS = ["Name", "Describe", "Compare", "Explain", "List", "Summarize", "Classify", "Suggest", "Rewrite", "Translate"]
TOPICS = [
    "three ways to save water at home",
    "how a bill becomes a law",
    "the parts of a plant cell",
    "the tides",
    "a birthday party for a child",
    "the plot of a story about a lost dog",
    "the causes of rust",
    "a healthy breakfast",
    "two kinds of renewable energy",
    "the rules of chess for a beginner",
    "a bridge and a tunnel",
    "prime numbers",
]
SENTENCES = [
    "It depends on where you live and how much time you have.",
    "The first step is to write down what you need.",
    "Most people find the second one easier, though it costs more.",
    "Water expands by about nine percent as it freezes.",
    "You could also ask a friend who has done it before.",
    "There are 12 of them, and each has a name of its own.",
    "In short, it is a good idea.",
    "This was first seen in 1843 and has been measured many times since.",
]


class Meter:
    """Grants everything: nothing here costs money."""

    def open(self, keys: Sequence[str], ceiling_each: Any, price: Any = None, facts: Any = None) -> str:
        return "benchmark"

    def note(self, attempt: str, state: str, facts: Any = None) -> None: ...

    def open_attempts(self) -> list[Any]:
        return []

    def close(self, attempt: str) -> None: ...


def short(count: int) -> list[Example]:
    """Sums: the shortest rows there are."""
    dice = random.Random(6)
    return [Example(f"{dice.randint(1, 9)}+{dice.randint(1, 9)}?", "", f"{dice.randint(2, 18)}") for _ in range(count)]


def invented(count: int) -> list[Example]:
    """Rows with the look of instruction data: a short question, now and then an input, one to four sentences."""
    dice = random.Random(5)
    return [
        Example(
            f"{dice.choice(ASKS)} {dice.choice(TOPICS)}.",
            dice.choice(SENTENCES) if dice.random() < 0.3 else "",
            " ".join(dice.choices(SENTENCES, k=dice.randint(1, 4))),
        )
        for _ in range(count)
    ]


def read(path: Path, count: int) -> list[Example]:
    """The first rows of a JSON list of objects with instruction, input and output."""
    rows = json.loads(path.read_text())[:count]
    return [Example(row["instruction"], row.get("input", ""), row["output"]) for row in rows]


def ask(number: int, row: Example) -> Request:
    return Request(str(number), RUBRIC.messages(row, str(number)), row, choices=RUBRIC.choices)


def bare(number: int, row: Example) -> Request:
    """The same rubric, and the row as the whole user message, without marks and closing question."""
    text = f"{row.instruction} {row.output}"
    return Request(str(number), (RUBRIC.messages(row, "")[0], ("user", text)), row, choices=RUBRIC.choices)


def main() -> None:
    parser = argparse.ArgumentParser(description="Rows a second with the rubric decoded once, and once a row.")
    parser.add_argument("--model", type=Path, help="a GGUF file (default: a tiny one with random weights)")
    parser.add_argument(
        "--shape",
        type=int,
        nargs=4,
        default=(8, 512, 8, 1536),
        metavar="N",
        help="layers, width, heads and feed-forward width of the model made here",
    )
    parser.add_argument("--data", type=Path, help="a JSON list of rows (default: invented ones)")
    parser.add_argument("--rows", type=int, default=256, help="rows for our side (default 256)")
    parser.add_argument("--peer-rows", type=int, default=48, help="rows for create_completion (default 48)")
    parser.add_argument("--keep-prefix", action="store_true", help="let Llama reuse the prefix of its previous prompt")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model
        if model is None:
            sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
            from examples.tiny_gguf import make

            shape = dict(zip(("n_layer", "n_embd", "n_head", "n_ff"), options.shape, strict=True))
            model = make(Path(folder) / "tiny.gguf", **shape)
        if options.data:
            compare(
                "rows of the file", model, [ask(*pair) for pair in enumerate(read(options.data, options.rows))], options
            )
        compare(
            "invented rows of usual length", model, [ask(*pair) for pair in enumerate(invented(options.rows))], options
        )
        compare("sums, as rows", model, [ask(*pair) for pair in enumerate(short(options.rows))], options)
        compare("sums, bare", model, [bare(*pair) for pair in enumerate(short(options.rows))], options)


def compare(what: str, model: Path, requests: list[Request], options: argparse.Namespace) -> None:
    import llama_cpp as peer

    backend = llama_cpp.open(str(model))
    list(backend.answer(requests[:16], Meter()))  # memory mapped, caches warm
    begun = time.perf_counter()
    replies = [reply for chunk in backend.answer(requests, Meter()) for reply in chunk]
    ours_seconds = time.perf_counter() - begun
    ours = {reply.key: reply.text for reply in replies}

    prompts = [backend.model.prompt(request) for request in requests[: options.peer_rows]]
    tokens = {p.request.key: p.tokens.tolist() for p in prompts if not isinstance(p, str)}
    fixed = len(backend.model.encode(requests[0].messages[0][1], False))
    threads = int(backend.facts["threads"])
    llama = peer.Llama(str(model), n_ctx=4096, verbose=False)
    grammar = peer.LlamaGrammar.from_string(GRAMMAR, verbose=False)
    theirs = {}
    llama.create_completion(next(iter(tokens.values())), max_tokens=4, temperature=0, grammar=grammar)
    begun = time.perf_counter()
    for key, prompt in tokens.items():
        if not options.keep_prefix:
            llama.reset()
        reply: Any = llama.create_completion(prompt, max_tokens=4, temperature=0, grammar=grammar)
        theirs[key] = reply["choices"][0]["text"].strip()
    theirs_seconds = time.perf_counter() - begun

    ours_rate, theirs_rate = len(ours) / ours_seconds, len(theirs) / theirs_seconds
    equal = sum(ours[key] is not None and Decimal(ours[key] or 0) == Decimal(theirs[key]) for key in theirs)
    average = sum(map(len, tokens.values())) / len(tokens)
    own = average - len(backend.decoder.prefix)
    print(
        f"\n{what}: rubric {fixed} tokens, prompts {average:.0f}, of which the row's own {own:.0f}; {threads} threads"
    )
    print(f"alpasift           {len(ours):5} rows  {ours_seconds:7.2f} s  {ours_rate:8.1f} rows/s")
    print(f"create_completion  {len(theirs):5} rows  {theirs_seconds:7.2f} s  {theirs_rate:8.1f} rows/s")
    print(f"ratio {ours_rate / theirs_rate:.1f}x (tokens {average / own:.1f}x), {equal} of {len(theirs)} scores equal")
    backend.close()


if __name__ == "__main__":
    main()
