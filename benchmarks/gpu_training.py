"""Training on a card: speed and memory of 7B and 13B shapes beside their forecast, through the trainer itself.

    python -m benchmarks.gpu_training --data FILE                    # needs a CUDA card; exits 3 without
    python -m benchmarks.gpu_training --data FILE --only 7b-lora 7b-qlora --json results.json
    python -m benchmarks.gpu_training --data FILE --tiny             # two tiny shapes on the CPU, to see it run

Run it from the root of the repository, which need not be installed: torch, transformers, peft and accelerate must be,
and trl and bitsandbytes, which benchmarks/gpu_wheels.sh fetches where there is a network. FILE is JSON or JSON lines
with instruction, input and output; only the lengths of its rows are used, cut at the recipe's 512 tokens.

Weights and token ids are random numbers, which take the time and the memory of real ones. The weights are written once
per shape, as safetensors in bf16 (13.5 and 26 GB), loaded by `alpasift.train.models`, 4 bits included, and trained by
`alpasift.train.sft`. Every row of the table is a process of its own, so that one that runs out of memory ends alone.
With --json, rows of earlier calls stay in the file and in the table: a long measurement can be made in parts.

    tokens/s     real ones, over all steps but the first
    forecast     `alpasift.train.fit` for exactly this training; then as `alpasift.train.fit.calibration` corrects it by
                 steps 5 to 20, to be compared with the steps after those
    matrix rate  of a large bf16 product measured here. "Useful" counts forward pass and gradients of real tokens that
                 attend to their own example, without what checkpointing recomputes; "computed" counts that, the
                 padding, and attention in full over a packed row, as `alpasift.train.fit` does
    reserved     torch.cuda.max_memory_reserved() of the whole process, and what it was when the model had been loaded.
                 The first micro-batch is filled up to N tokens: a peak of N, though most steps need less
    minutes      of three epochs over all rows at that speed, without loading
    16 GB        the allocator is limited to the usable memory of such a card, less the CUDA context: a real
                 out-of-memory error
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import sys
import tempfile
import time
import traceback
from array import array
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from alpasift.graders import AlpaSiftError, Example  # noqa: E402
from alpasift.train.data import Tokenized, composition  # noqa: E402
from alpasift.train.fit import calibration  # noqa: E402
from alpasift.train.fit.cards import Card  # noqa: E402
from alpasift.train.fit.model_dims import ModelDims, read_dims  # noqa: E402
from alpasift.train.fit.seconds import flops_per_token, passes  # noqa: E402
from alpasift.train.packing import Plan, Step, plan  # noqa: E402
from alpasift.train.recipes import settle  # noqa: E402
from alpasift.train.token_counts import Counts, count_tokens  # noqa: E402

if TYPE_CHECKING:
    from alpasift.train.prepare import Prepared

GIB = 2**30
EPOCHS = 3
NEEDED = ("torch", "transformers", "peft", "accelerate", "safetensors", "trl", "datasets", "bitsandbytes")
TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "attention_bias": False,
}


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table. `shape` is a preset's name or "tiny"; `card_gb` the card that is emulated, if one is."""

    kind: str
    label: str
    shape: str
    method: Any
    checkpointing: bool
    pack_length: int
    micro_batch: int
    card_gb: int | None = None

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.pack_length}x{self.micro_batch}"

    @property
    def tokens(self) -> int:
        """N: the most tokens of a micro-batch."""
        return self.pack_length * self.micro_batch


ROWS = tuple(
    Row(kind, label, shape, method, checkpointing, pack_length, micro_batch, card_gb)
    for kind, label, shape, method, checkpointing, card_gb in (
        ("7b-lora", "7B LoRA", "llama-2-7b", "lora", True, None),
        ("7b-lora-without", "7B LoRA without checkpointing", "llama-2-7b", "lora", False, None),
        ("7b-qlora", "7B QLoRA", "llama-2-7b", "qlora", True, None),
        ("13b-lora", "13B LoRA", "llama-2-13b", "lora", True, None),
        ("13b-qlora", "13B QLoRA", "llama-2-13b", "qlora", True, None),
        ("13b-qlora-16gb", "13B QLoRA, a card of 16 GB", "llama-2-13b", "qlora", True, 16),
    )
    for pack_length, micro_batch in ((4096, 1), (2048, 2))
)
TINY_ROWS = (
    Row("tiny-lora", "tiny LoRA", "tiny", "lora", True, 512, 1),
    Row("tiny-qlora", "tiny QLoRA", "tiny", "qlora", True, 512, 1),
)


def lacking(tiny: bool) -> str | None:
    """Why this cannot run here, in one line."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return f"{', '.join(missing)} is not installed (benchmarks/gpu_wheels.sh fetches what is rarely there)"
    import torch

    return None if tiny or torch.cuda.is_available() else "torch sees no CUDA card"


def read_rows(path: Path) -> list[Example]:
    """Instruction, input and output of a JSON list or of JSON lines."""
    text = path.read_text("utf-8")
    rows = (
        json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines() if line]
    )
    return [Example(instruction=row["instruction"], input=row.get("input", ""), output=row["output"]) for row in rows]


def apart(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What a function returns when a fresh process calls it; {"error": why} where it raises or the process dies."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_caught, function, *arguments).result()
        except BrokenProcessPool:
            return {"error": "its process was killed: the machine's memory, perhaps"}


def _caught(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    try:
        return function(*arguments)
    except AlpaSiftError as error:
        return {"error": str(error)}
    except Exception as error:  # noqa: BLE001 a row says why it failed, whatever it was, and the next one runs
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}


# -- the model ---------------------------------------------------------------------------------------------------------


def make_base(shape: str, folder: Path) -> dict[str, Any]:
    """A folder of random bf16 weights of this shape, one file per layer, and a tokenizer that is not used."""
    import torch
    from safetensors.torch import save_file

    draft = folder.with_name(f"{folder.name}.partial")
    draft.mkdir(parents=True, exist_ok=True)
    known = (
        TINY
        if shape == "tiny"
        else json.loads((ROOT / "train" / "fit" / "presets" / f"{shape}.json").read_text("utf-8"))
    )
    config = {**known, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2, "rms_norm_eps": 1e-5}
    _write(draft / "config.json", config)
    sizes = read_dims(draft)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    files, places = tensor_sizes(sizes), {}
    torch.manual_seed(0)
    for number, tensors in enumerate(files):
        name = f"model-{number + 1:05}-of-{len(files):05}.safetensors"
        made = {key: torch.ones(size, dtype=torch.bfloat16, device=device) for key, size in tensors.items()}
        for tensor in made.values():
            if tensor.dim() == 2:
                tensor.normal_(0, 0.02)
        save_file({key: tensor.cpu() for key, tensor in made.items()}, draft / name, metadata={"format": "pt"})
        places |= dict.fromkeys(made, name)
    _write(draft / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})
    _write(draft / "tokenizer.json", word_tokenizer({"<unk>": 0, "<s>": 1, "</s>": 2}))
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    _write(draft / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **named})
    draft.replace(folder)
    return {}


def tensor_sizes(dims: ModelDims) -> list[dict[str, tuple[int, ...]]]:
    """The tensors of a Llama by name: of each layer, then of the embedding, the last norm and the head."""
    h, q, kv, i, v = dims.hidden, dims.q, dims.kv, dims.intermediate, dims.vocab
    layer = {
        "self_attn.q_proj": (q, h),
        "self_attn.k_proj": (kv, h),
        "self_attn.v_proj": (kv, h),
        "self_attn.o_proj": (h, q),
        "mlp.gate_proj": (i, h),
        "mlp.up_proj": (i, h),
        "mlp.down_proj": (h, i),
        "input_layernorm": (h,),
        "post_attention_layernorm": (h,),
    }
    layers = [{f"model.layers.{n}.{name}.weight": size for name, size in layer.items()} for n in range(dims.layers)]
    return [*layers, {"model.embed_tokens.weight": (v, h), "model.norm.weight": (h,), "lm_head.weight": (v, h)}]


def word_tokenizer(words: Mapping[str, int]) -> dict[str, Any]:
    """A tokenizer.json that knows these words, all of them special."""
    steps = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        **dict.fromkeys(steps),
        "model": {"type": "WordLevel", "vocab": dict(words), "unk_token": "<unk>"},
        "added_tokens": [{"id": n, "content": word, **plain, "special": True} for word, n in words.items()],
    }


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1), "utf-8")


# -- the data ----------------------------------------------------------------------------------------------------------


def random_rows(counts: Counts, max_length: int, vocabulary: int) -> Tokenized:
    """Random token ids of the rows' own lengths, cut and dropped as `alpasift.train.data.tokenize` does."""
    draw = random.Random(0)
    ids, prompts, rows = [], array("i"), array("q")
    cut = 0
    for number, (prompt, response) in enumerate(zip(counts.prompt, counts.response, strict=True)):
        if prompt < max_length:
            cut += prompt + response > max_length
            ids.append(array("i", draw.choices(range(3, vocabulary), k=min(prompt + response, max_length))))
            prompts.append(prompt)
            rows.append(number)
    return Tokenized(ids, prompts, rows, cut, 0, {"prompt_too_long": len(counts.prompt) - len(ids)})


def filled(planned: Plan, data: Tokenized, pack_length: int) -> Plan:
    """The plan with examples added to its first micro-batch, and one to `data`, until its rows hold `pack_length` each.

    Rows are made equally long, so few are full; the peak is to be that of full ones.
    """
    lengths, (first, *others) = data.lengths, planned.steps[0].microbatches
    packs = []
    for pack in first:
        room = pack_length - sum(lengths[n] for n in pack)
        members = list(pack)
        for n, length in enumerate(lengths):
            if n not in members and length + 4 <= room:
                members.append(n)
                room -= length
        if room > 1:
            last = data.ids[members[-1]]
            data.ids.append(array("i", (last * (room // len(last) + 1))[:room]))
            data.prompt_tokens.append(min(room - 1, data.prompt_tokens[members[-1]]))
            data.rows.append(data.rows[-1] + 1)
            members.append(len(data.ids) - 1)
        packs.append(tuple(members))
    step = Step(planned.steps[0].epoch, (tuple(packs), *others))
    before, after = (
        [sum(len(data.ids[n]) for n in pack) for pack in packs_of] for packs_of in (first, step.microbatches[0])
    )
    return replace(
        planned,
        steps=(step, *planned.steps[1:]),
        tokens=planned.tokens + sum(after) - sum(before),
        padded_tokens=planned.padded_tokens + len(after) * max(after) - len(before) * max(before),
        max_tokens=max(planned.max_tokens, len(after) * max(after)),
        longest_row=max(planned.longest_row, *after),
    )


# -- one row -----------------------------------------------------------------------------------------------------------


def measure(row: Row, base: Path, counts: Counts, steps: int) -> dict[str, Any]:
    """Train `steps` steps in this process and return what was measured, beside what was forecast."""
    import torch

    from alpasift.train.metrics import MEASURED_TO, peak_bytes
    from alpasift.train.prepare import forecast_of
    from alpasift.train.run_folder import versions
    from alpasift.train.sft import Hooks, train

    cuda = torch.cuda.is_available()
    if row.card_gb:
        hold_to(row.card_gb)
    prepared = prepare_row(row, base, counts, steps)
    data, planned = prepared.data, prepared.plan
    forecast = forecast_of(prepared, read_dims(base), this_card())
    loaded: dict[str, float] = {}
    began = time.monotonic()

    def report(message: str) -> None:
        loaded.update(seconds=time.monotonic() - began, bytes=peak_bytes())

    seen: list[Any] = []
    with tempfile.TemporaryDirectory() as made:
        hooks = Hooks(on_step=seen.append, report=report)
        trained = train(prepared, Path(made), hooks, save_every=steps + 1)
    calibrated = None
    if trained.measured:
        measured = calibration.measured_against(
            forecast,
            tokens_per_second=trained.measured.tokens_per_second,
            peak_bytes=trained.measured.peak_bytes if cuda else None,
            steps=trained.measured.steps,
            versions=versions(),
        )
        calibrated = calibration.apply(forecast, [measured])
    speed = rate_between(seen, 1)
    useful = flops_per_token(forecast.dims, trained_share=data.trained_tokens / sum(data.lengths), pairs=_pairs(data))
    return {
        "max_tokens": planned.max_tokens,
        "microbatches": planned.microbatches,
        "steps": steps,
        "tokens_per_second": speed,
        "later_tokens_per_second": rate_between(seen, MEASURED_TO),
        "forecast_tokens_per_second": forecast.tokens_per_second,
        "calibrated_tokens_per_second": calibrated and calibrated.tokens_per_second,
        "useful_flops": passes(replace(forecast.config, checkpointing=False)) * useful * speed,
        "computed_flops": forecast.flops / forecast.layout.tokens * speed,
        "reserved_bytes": peak_bytes(),
        "loaded_bytes": loaded["bytes"],
        "forecast_bytes": forecast.parts.reserved if cuda else None,
        "allocated_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "minutes": sum(data.lengths) * EPOCHS / speed / 60,
        "load_seconds": loaded["seconds"],
        "loss": trained.loss,
        "versions": versions(),
    }


def prepare_row(row: Row, base: Path, counts: Counts, steps: int) -> Prepared:
    """A training on random token ids of the rows' lengths, its first micro-batch filled up."""
    import torch

    from alpasift.train.models import find_base, load_tokenizer
    from alpasift.train.prepare import Prepared

    precision = "bf16" if torch.cuda.is_available() else "fp32"
    settings = settle(
        "alpagasus-13b" if "13b" in row.shape else "alpagasus-7b",
        row.method,
        len(counts.prompt),
        steps=steps,
        pack_length=row.pack_length,
        micro_batch=row.micro_batch,
        checkpointing=row.checkpointing,
        precision=precision,
        adapter_precision=precision,
        batch=8 if row.shape == "tiny" else None,
    )
    found = find_base(base)
    found.sha256()  # read once and cached, so that it is no part of the measured seconds
    data = random_rows(counts, settings.max_length, found.config["vocab_size"])
    planned = plan(
        data.lengths,
        pack_length=row.pack_length,
        micro_batch=row.micro_batch,
        batch=settings.batch,
        steps=steps,
        seed=settings.seed,
    )
    planned = filled(planned, data, row.pack_length)
    facts = {
        "data": dict(composition(data, len(counts.prompt))),
        "cards": 1,
        "data_sha256": f"random numbers, lengths by {counts.counted_by}",
        "steps": steps,
        "tokens": planned.tokens,
    }
    return Prepared(found, load_tokenizer(base), data, planned, settings, facts)


def hold_to(card_gb: int) -> None:
    """Let this process have what a card of so many GB has to give: its allocator gets that less the CUDA context."""
    import torch

    from alpasift.train.fit.cards import usable_bytes

    torch.zeros(1, device="cuda")
    free, total = torch.cuda.mem_get_info()
    context = total - free - torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction((usable_bytes(card_gb) - context) / total)


def this_card() -> Card:
    """The card of this process, or the processor."""
    import torch

    from alpasift.train.fit.cards import recognise, this_cpu

    if not torch.cuda.is_available():
        return this_cpu()
    known = torch.cuda.get_device_properties(0)
    return recognise(known.name, known.total_memory, known.major + known.minor / 10)


def rate_between(steps: Sequence[Any], first: int) -> float:
    """Real tokens a second of the steps after number `first`; 0 where there are none."""
    if len(steps) <= first:
        return 0.0
    return sum(step.tokens for step in steps[first:]) / (steps[-1].seconds - steps[first - 1].seconds)


def _pairs(data: Tokenized) -> float:
    """How many tokens a token looks at on average: those before it in its example, and itself."""
    return sum(length * (length + 1) / 2 for length in data.lengths) / sum(data.lengths)


def card_rate() -> dict[str, Any]:
    """The card's name and the operations a second of a large bf16 product."""
    import torch
    from benchmarks.gpu_grading import matrix_rate

    return {"device": torch.cuda.get_device_name(), "matrix_flops": matrix_rate()}


# -- the report --------------------------------------------------------------------------------------------------------


def table(results: Sequence[Mapping[str, Any]], rate: float | None) -> str:
    lines = [
        "| configuration | layout, N | tokens/s | forecast | calibrated | matrix rate, useful (computed) | reserved "
        f"GiB (loaded) | forecast | minutes, {EPOCHS} epochs | load s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in results:
        if "error" in one:
            lines.append(
                f"| {one['label']} | {one['layout']} | did not run: {one['error'].replace('|', '/')} | | | | | | | |"
            )
            continue
        share = f"{one['useful_flops'] / rate:.1%} ({one['computed_flops'] / rate:.1%})" if rate else "-"
        predicted = f"{one['forecast_bytes'] / GIB:.2f}" if one["forecast_bytes"] else "-"
        lines.append(
            f"| {one['label']} | {one['layout']}, {one['max_tokens']:,} | {one['tokens_per_second']:,.0f} "
            f"| {_number(one['forecast_tokens_per_second'])} | {_number(one['calibrated_tokens_per_second'])} "
            f"| {share} | {one['reserved_bytes'] / GIB:.2f} ({one['loaded_bytes'] / GIB:.2f}) | {predicted} "
            f"| {one['minutes']:.2f} | {one['load_seconds']:.0f} |"
        )
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return f"{value:,.0f}" if value else "-"


def goals(results: Sequence[Mapping[str, Any]], rate: float | None) -> list[str]:
    """The goals, and whether these rows reach them. Sizes and speeds by the best layout, forecasts by the worst row."""
    done = [one for one in results if "error" not in one]

    def of(kinds: Sequence[str], value: Callable[[Mapping[str, Any]], float]) -> list[tuple[float, str]]:
        return [(value(one), one["name"]) for one in done if one["kind"] in kinds]

    lora = ("7b-lora", "7b-lora-without")
    before, after, peaks = _errors(done)
    tried = [one for one in results if one["kind"] == "13b-qlora-16gb"]
    ran = [one for one in tried if "error" not in one]
    held = "reached" if ran else "missed" if tried else "not measured"
    return [
        _at_most("7B LoRA in minutes", 6, min, of(lora, lambda one: one["minutes"])),
        _at_least(
            "7B LoRA, useful share of the matrix rate in %",
            45,
            of(lora, lambda one: 100 * one["useful_flops"] / rate) if rate else [],
        ),
        _at_most("7B QLoRA, GiB reserved", 7.5, min, of(("7b-qlora",), lambda one: one["reserved_bytes"] / GIB)),
        _at_most("13B QLoRA, GiB reserved", 12.5, min, of(("13b-qlora",), lambda one: one["reserved_bytes"] / GIB)),
        f"13B QLoRA trains on an emulated card of 16 GB: {held}",
        _at_most("peak beside its forecast, worst row, %", 10, max, peaks),
        _at_most("time beside its forecast, worst row, %", 20, max, before),
        _at_most("time beside its calibrated forecast, worst row, %", 5, max, after),
    ]


def _errors(done: Sequence[Mapping[str, Any]]) -> tuple[list[tuple[float, str]], ...]:
    """Percent by which time, time after calibration, and peak are off. The calibrated is held against later steps."""
    pairs = (
        ("forecast_tokens_per_second", "tokens_per_second"),
        ("calibrated_tokens_per_second", "later_tokens_per_second"),
        ("reserved_bytes", "forecast_bytes"),
    )
    return tuple(
        [(100 * abs(one[top] / one[under] - 1), one["name"]) for one in done if one[top] and one[under]]
        for top, under in pairs
    )


def _at_most(what: str, wanted: float, pick: Any, found: Sequence[tuple[float, str]]) -> str:
    if not found:
        return f"{what}: wanted at most {wanted:g}; not measured"
    value, name = pick(found)
    return f"{what}: {value:.2f} ({name}), wanted at most {wanted:g}: {'reached' if value <= wanted else 'missed'}"


def _at_least(what: str, wanted: float, found: Sequence[tuple[float, str]]) -> str:
    if not found:
        return f"{what}: wanted at least {wanted:g}; not measured"
    value, name = max(found)
    return f"{what}: {value:.2f} ({name}), wanted at least {wanted:g}: {'reached' if value >= wanted else 'missed'}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Speed and memory of training on a CUDA card, beside their forecast.")
    parser.add_argument("--data", required=True, metavar="FILE", help="rows whose lengths are taken")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="counts the tokens; else characters / 4.28")
    parser.add_argument("--folder", metavar="FOLDER", help="for the random weights, 40 GB, kept; else a temporary one")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows, such as 7b-lora or 7b-lora-2048x2")
    parser.add_argument("--steps", type=int, default=24, help="of each training, at least 2 (default 24)")
    parser.add_argument("--json", metavar="FILE", help="the figures, beside those of earlier calls")
    parser.add_argument("--tiny", action="store_true", help="two tiny shapes, on the CPU too")
    options = parser.parse_args()
    known = TINY_ROWS if options.tiny else ROWS
    unknown = sorted(set(options.only or ()) - {row.kind for row in known} - {row.name for row in known})
    if unknown:
        parser.error(f"no row is called {unknown[0]}; there are {', '.join(dict.fromkeys(row.kind for row in known))}")
    if options.steps < 2:
        parser.error("--steps is below 2; the first step is not measured")
    if why := lacking(options.tiny):
        print(f"gpu_training needs a CUDA card with trl and bitsandbytes, and {why}", file=sys.stderr)
        return 3
    rows = [row for row in known if not options.only or row.kind in options.only or row.name in options.only]
    counts = count_tokens(read_rows(Path(options.data)), Path(options.tokenizer) if options.tokenizer else None)
    if options.folder:
        return run(rows, counts, Path(options.folder), options.steps, options.json)
    with tempfile.TemporaryDirectory() as made:
        return run(rows, counts, Path(made), options.steps, options.json)


def run(rows: Sequence[Row], counts: Counts, folder: Path, steps: int, kept: str | None) -> int:
    """Measure the rows and print the table; 1 where one did not run."""
    import torch

    file = Path(kept) if kept else None
    report = apart(card_rate) if torch.cuda.is_available() else {"device": "the CPU", "matrix_flops": None}
    if "error" in report:
        print(f"the card's matrix rate could not be measured: {report['error']}", file=sys.stderr)
        return 1
    results: dict[str, dict[str, Any]] = {}
    if file and file.is_file():
        before = json.loads(file.read_text("utf-8"))
        if before["device"] == report["device"]:
            results = {one["name"]: one for one in before["rows"]}
    for row in rows:
        print(f"{row.name} ...", file=sys.stderr, flush=True)
        base = folder / row.shape
        failed = {} if base.is_dir() else apart(make_base, row.shape, base)
        found = failed or apart(measure, row, base, counts, steps)
        about = {
            "name": row.name,
            "kind": row.kind,
            "label": row.label,
            "layout": f"{row.pack_length} x {row.micro_batch}",
        }
        results[row.name] = {**about, **found}
        print(f"{row.name}: {json.dumps(found)}", file=sys.stderr, flush=True)
        if file:
            _write(file, {**report, "lengths": counts.counted_by, "rows": list(results.values())})
    rate = report["matrix_flops"]
    print(f"{report['device']}" + (f", bf16 matrix products {rate / 1e12:.0f} TFLOP/s" if rate else ""))
    print(f"lengths by {counts.counted_by}\n\n{table(list(results.values()), rate)}\n")
    print("\n".join(f"- {line}" for line in goals(list(results.values()), rate)))
    return 1 if any("error" in results[row.name] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
