"""Packed rows beside padded ones: the same examples per step, real tokens a second of the trainer itself, on this CPU.

    python benchmarks/packing.py --data FILE                      # any file that `alpasift import` reads
    python benchmarks/packing.py --data FILE --method full --layouts padded 1024 2048

A small Llama of random numbers and the rows' real lengths, through `alpasift.train.prepare` and `alpasift.train.sft`.
The layouts take turns, forwards and backwards, in one process, because the speed of a machine drifts; every training
starts anew with the same seed, so all of them see the same 128 examples in the same step. Loading, saving and a
training's first step are excluded. Ratios are medians over the rounds, each of a layout's figure to padded's in the
same round, by the clock and by the processor's own seconds, which other work on the machine disturbs less. The smaller
of the two counts.

A packed row computes attention over its whole length and masks it. Relative to the linear layers that is length / 6
hidden sizes here, so what a long row loses on this small model it does not lose on a large one.

`padded` is the reference recipe: four examples in random order, each a row, padded to the longest of the four. A packed
layout is written pack length x rows of a micro-batch. "By tokens" is what the saved padding would give by itself.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
WANTED = 1.3
LAYOUTS = ("padded", "512", "512x4", "1024", "1024x2", "2048", "4096")


def layout_of(name: str) -> dict[str, Any]:
    """Pack length and rows of a micro-batch: "padded", "1024" or "512x4"."""
    if name == "padded":
        return {"pack_length": None, "micro_batch": 4}
    length, _, rows = name.partition("x")
    return {"pack_length": int(length), "micro_batch": int(rows or 1)}


def make_base(folder: Path, width: int, layers: int) -> Path:
    """A Llama of this size with random weights, and the tiny tokenizer."""
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny_models import make_folder, make_gguf

    shape = {"n_embd": width, "n_ff": width * 11 // 4 // 64 * 64, "n_layer": layers, "n_head": width // 64}
    return make_folder(make_gguf(folder / "base.gguf", **shape), folder / "base")


class Speed(NamedTuple):
    """Real tokens a second over all steps but the first: by the clock, and by the processor's seconds."""

    clock: float
    processor: float


def speed(prepared: Any, out: Path) -> Speed:
    from alpasift.train.metrics import Metrics
    from alpasift.train.sft import Hooks, train

    steps: list[tuple[Metrics, float]] = []
    hooks = Hooks(on_step=lambda step: steps.append((step, time.process_time())))
    train(prepared, out, hooks, save_every=1_000_000)
    (first, began), (last, ended) = steps[0], steps[-1]
    tokens = sum(step.tokens for step, _ in steps[1:])
    return Speed(tokens / (last.seconds - first.seconds), tokens / (ended - began))


def main() -> int:
    parser = argparse.ArgumentParser(description="Real tokens a second, packed beside padded.")
    parser.add_argument("--data", required=True, metavar="FILE", help="rows whose lengths are taken")
    parser.add_argument("--rows", type=int, default=2_560, help="the first N rows of it (default 2560)")
    parser.add_argument("--method", choices=["lora", "full"], default="lora")
    parser.add_argument(
        "--layouts", nargs="+", default=list(LAYOUTS), metavar="NAME", help="the first is compared with"
    )
    parser.add_argument("--rounds", type=int, default=3, help="trainings of each layout (default 3)")
    parser.add_argument("--steps", type=int, default=3, help="of a training, the first not measured (default 3)")
    parser.add_argument("--width", type=int, default=256, help="hidden size, a multiple of 64 (default 256)")
    parser.add_argument("--threads", type=int, help="of torch; all cores if not given")
    parser.add_argument("--layers", type=int, default=4, help="(default 4)")
    options = parser.parse_args()

    sys.path[:0] = [str(ROOT), str(ROOT / "src")]
    import torch

    from alpasift.batcher.data.data_file import read_examples
    from alpasift.train.prepare import prepare
    from alpasift.train.recipes import settle

    if options.threads:
        torch.set_num_threads(options.threads)
    examples = read_examples(options.data).examples[: options.rows]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        base = make_base(folder, options.width, options.layers)
        trainings = {}
        for name in options.layouts:
            settings = settle(
                "alpagasus-7b",
                options.method,
                len(examples),
                steps=options.steps,
                precision="fp32",
                adapter_precision="fp32",
                checkpointing=False,
                **layout_of(name),
            )
            trainings[name] = prepare(examples, base, settings)
        speeds: dict[str, list[Speed]] = {name: [] for name in trainings}
        for number in range(options.rounds):
            for name in list(trainings)[:: -1 if number % 2 else 1]:
                speeds[name].append(speed(trainings[name], folder / f"{name}-{number}"))
                print(f"round {number + 1}, {name}: {speeds[name][-1].clock:,.0f} tokens/s", file=sys.stderr)
    _report(options, {name: one.plan for name, one in trainings.items()}, speeds, torch.get_num_threads())
    return 0


def _report(options: argparse.Namespace, plans: dict[str, Any], speeds: dict[str, list[Speed]], threads: int) -> None:
    print(
        f"{options.method}, hidden {options.width}, {options.layers} layers, {threads} threads, {options.rounds} "
        f"rounds of {options.steps - 1} measured steps\n"
    )
    print(
        "| layout | micro-batches a step | padded / real tokens | real tokens/s | to padded | processor's | by tokens |"
    )
    print("|---|---|---|---|---|---|---|")
    first = next(iter(plans))
    waste = {name: plan.padded_tokens / plan.tokens for name, plan in plans.items()}
    sure = {}
    for name, plan in plans.items():
        pairs = list(zip(speeds[name], speeds[first], strict=True))
        clock = statistics.median(one.clock / other.clock for one, other in pairs)
        processor = statistics.median(one.processor / other.processor for one, other in pairs)
        sure[name] = min(clock, processor)
        median = statistics.median(one.clock for one in speeds[name])
        print(
            f"| {name} | {plan.microbatches} | {waste[name]:.3f} | {median:,.0f} "
            f"| {clock:.2f}x | {processor:.2f}x | {waste[first] / waste[name]:.2f}x |"
        )
    best = max(sure, key=lambda name: sure[name])
    verdict = "reached" if sure[best] >= WANTED else "missed"
    print(f"\nbest: {best} with {sure[best]:.2f}x the real tokens/s of {first}; wanted {WANTED}x: {verdict}")


if __name__ == "__main__":
    sys.exit(main())
