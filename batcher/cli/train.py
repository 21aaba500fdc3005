"""The command that fine-tunes: train. It settles what the recipe leaves open, says what it will take, trains and tells."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batcher.cli.options import usd
from batcher.cli.printing import note, print_json

if TYPE_CHECKING:
    from batcher.trainings import Recorder
    from graders import Example
    from train.cards import Card
    from train.memory import Forecast, Lengths, Method, Shape
    from train.recipes import Settings
    from train.sft import Measured, Metrics, Prepared

CPU_PACK_LENGTH = 512
"""On a processor the mask of longer rows costs more than they save: benchmarks/packing.py."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What is trained on, and where it came from in the database, if it did."""

    examples: list[Example]
    source: str
    set_aside: int = 0
    version_id: str | None = None
    selection_id: str | None = None


def find_rows(db: str, data: str | None, dataset: str | None, selection: str | None) -> Rows:
    """The examples of a file, of a selection, or of a dataset in the database."""
    from batcher.datasets import read_examples, resolve, stored_examples
    from batcher.select import kept_positions, resolve_selection
    from batcher.store import Store

    if sum(name is not None for name in (data, dataset, selection)) > 1:
        raise click.UsageError("give one of --data FILE, --dataset NAME and --selection NAME")
    if data is not None:
        read = read_examples(data)
        return Rows(read.examples, data, sum(read.set_aside.values()))
    store = Store(db).existing()
    if selection is not None:
        found = resolve_selection(store, selection)
        positions = kept_positions(store, found.selection_id)
        return Rows(
            stored_examples(store, found.version_id, positions), f"selection {found.label}", 0, found.version_id,
            found.selection_id,
        )  # fmt: skip
    version = resolve(store, dataset)
    return Rows(stored_examples(store, version.version_id), f"dataset {version.label}", 0, version.version_id)


def rows_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--data, --dataset and --selection, as `find_rows` takes them."""
    for option in (
        click.option("--selection", metavar="NAME", help="Train on a selection of the database."),
        click.option("--dataset", metavar="NAME", help="Train on a whole dataset of the database."),
        click.option("--data", metavar="FILE", help="Train on a file, whatever a database holds."),
    ):
        command = option(command)
    return command


@click.command("train")
@click.option(
    "--model", "base", required=True, metavar="DIR", help="The base model's folder: config.json and safetensors."
)
@rows_options
@click.option("-o", "--output", required=True, metavar="DIR", help="The training's folder; the same one goes on.")
@click.option(
    "--recipe",
    default="alpagasus-7b",
    show_default=True,
    type=click.Choice(["alpagasus-7b", "alpagasus-13b", "alpaca", "humpback", "ag2-qlora"]),
    help="Epochs, examples a step, length and schedule, as the paper has them.",
)
@click.option(
    "--method",
    type=click.Choice(["full", "lora", "qlora"]),
    help="What is trained: all weights, or an adapter beside 16-bit or 4-bit ones. The fastest that fits if not given.",
)
@click.option("--epochs", type=click.FloatRange(0, min_open=True), metavar="N")
@click.option(
    "--steps", type=click.IntRange(1), metavar="N", help="Optimizer steps instead of epochs: two arms train alike."
)
@click.option("--batch", type=click.IntRange(1), metavar="N", help="Examples a step, whatever their length.")
@click.option(
    "--max-length", type=click.IntRange(16), metavar="N", help="Most tokens of an example; longer ones lose their end."
)
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), metavar="X")
@click.option("--rank", type=click.IntRange(1), metavar="N", help="Of the adapter.")
@click.option(
    "--alpha", type=click.IntRange(1), metavar="N", help="Of the adapter: its output is scaled by alpha / rank."
)
@click.option(
    "--lora-dropout", type=click.FloatRange(0, 1, max_open=True), metavar="X", help="Above 0 takes 60 % more memory."
)
@click.option("--targets", metavar="NAMES", help='Layers with an adapter: "all-linear", or names joined by commas.')
@click.option(
    "--template",
    type=click.Choice(["alpaca", "chat"]),
    help="Alpaca's layout (default), or the model's own chat template.",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), metavar="N", help="Of the order of the rows and of the adapter (0)."
)
@click.option("--micro-batch", type=click.IntRange(1), metavar="N", help="Rows that a card takes at once.")
@click.option(
    "--pack-length",
    type=click.IntRange(0),
    metavar="N",
    help="Tokens of a row that examples share; 0 pads each to a row.",
)
@click.option(
    "--checkpointing/--no-checkpointing", default=None, help="Compute activations twice instead of keeping them."
)
@click.option(
    "--precision",
    type=click.Choice(["bf16", "fp16", "fp32"]),
    help="Of the computation; what the card has if not given.",
)
@click.option("--adapter-precision", type=click.Choice(["bf16", "fp32"]))
@click.option("--optimizer", type=click.Choice(["adamw", "adamw_8bit"]))
@click.option(
    "--pure", is_flag=True, help="Method full without 32-bit weights beside: half the memory, small updates get lost."
)
@click.option(
    "--save-every",
    type=click.IntRange(1),
    metavar="N",
    help="Steps between checkpoints; ten in a training if not given.",
)
@click.option("--fresh", is_flag=True, help="Throw away what the folder holds of a training.")
@click.option("--usd-per-hour", callback=usd, metavar="USD", help="Of this machine, or ALPASIFT_USD_PER_HOUR.")
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option("--json", "form", flag_value="json", help="Print JSON.")
@click.pass_obj
def train_command(
    db: str, /, base: str, data: str | None, dataset: str | None, selection: str | None, output: str, recipe: str,
    method: Method | None, usd_per_hour: Decimal | None, quiet: bool, form: str | None, fresh: bool, pure: bool,
    save_every: int | None, **given: Any,
) -> None:  # fmt: skip
    """Fine-tune a model on rows: all weights, LoRA or QLoRA, by a paper's recipe.

    Stopped at any time, by Ctrl-C, by kill or by a power cut, the same command goes on from the last checkpoint. Several
    cards: torchrun --nproc-per-node N -m batcher.cli train ...

    \b
    Example:
      alpasift train --model models/llama-2-7b --selection kept -o runs/kept
      alpasift train --model models/llama-2-7b --data kept.json -o runs/kept --method qlora --steps 100
    """
    from graders.offline import SWITCHES

    quiet_libraries = {name: value for name, value in SWITCHES.items() if name != "WANDB_MODE"}
    os.environ.update(quiet_libraries)  # they ask nobody and tell nobody; nothing reports to wandb here
    leads = os.environ.get("RANK", "0") == "0"
    say = note if leads else _nothing
    from train.models import find_base
    from train.sft import foretell

    if given["epochs"] is not None and given["steps"] is not None:
        raise click.UsageError("give --epochs or --steps, not both")
    find_base(Path(base))
    begun = None if fresh else _begun(Path(output), recipe)
    given["master_weights"] = False if pure else None
    rows = find_rows(db, data, dataset, selection)
    if rows.set_aside:
        say(f"left out: {_rows(rows.set_aside)} of {rows.source} that cannot be read; `alpasift import` names each")
    cards = int(os.environ.get("WORLD_SIZE", "1"))
    settled = _settle(Path(base), rows.examples, recipe, method, cards, given, begun)
    _check_used(settled.settings, given)
    prepared = _prepare(rows, Path(base), settled.settings, cards, say)
    told = foretell(prepared, settled.shape, settled.card)
    _announce(rows, prepared, settled, told, usd_per_hour or _hourly(), say)
    _go(
        db,
        rows,
        prepared,
        settled,
        told,
        Path(output),
        usd_per_hour or _hourly(),
        fresh,
        save_every,
        quiet,
        form,
        leads,
    )


def _nothing(message: str) -> None:
    """Said by another process already."""


def _rows(count: int) -> str:
    return f"{count:,} {'row' if count == 1 else 'rows'}"


def _hourly() -> Decimal | None:
    from batcher.ledger import parse_usd

    rate = os.environ.get("ALPASIFT_USD_PER_HOUR")
    return parse_usd(rate) if rate else None


# -- what will be done ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Settled:
    settings: Settings
    card: Card
    shape: Shape
    reason: str


_BY_MEMORY = ("micro_batch", "checkpointing", "precision", "adapter_precision", "optimizer", "master_weights")
"""What is chosen by what fits, where it is not given."""


def _begun(out: Path, recipe: str) -> dict[str, Any] | None:
    """The settings of the training that a folder holds, if it is of this recipe: what was chosen then stays chosen."""
    if not any((out / "checkpoints").glob("checkpoint-*")) and not (out / "model").exists():
        return None  # nothing would be lost by choosing anew
    try:
        settings = json.loads((out / "run.json").read_text("utf-8"))["settings"]
        return dict(settings) if settings["recipe"] == recipe else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_used(settings: Settings, given: dict[str, Any]) -> None:
    """Raise UsageError for what was given and has no use with the method."""
    unused = (
        ["master_weights"]
        if settings.method != "full"
        else ["rank", "alpha", "lora_dropout", "targets", "adapter_precision"]
    )
    for name in unused:
        if given[name] is not None:
            option = "--pure" if name == "master_weights" else f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{option} has no use with method {settings.method}")


def _settle(
    base: Path, examples: list[Example], recipe: str, method: Method | None, cards: int, given: dict[str, Any],
    begun: dict[str, Any] | None,
) -> _Settled:  # fmt: skip
    """The recipe, what was given, and for the rest what this training began with, or what fits this machine's card best."""
    from train import cards as machines
    from train.memory import choose, read_shape
    from train.recipes import RECIPES, settle

    shape = read_shape(str(base))
    try:
        card = machines.found_card()
    except machines.NoCard:
        card = machines.this_cpu()
    if given["pack_length"] == 0:
        given["pack_length"] = None
    elif given["pack_length"] is None:
        given.pop("pack_length")
    if begun is not None:
        chosen_then = {name: begun.get(name) for name in (*_BY_MEMORY, "pack_length")}
        found = settle(recipe, method or begun["method"], len(examples), **_over(chosen_then, given))
        return _Settled(found, card, shape, "as it began")
    if card.is_cpu:
        fallback: dict[str, Any] = {"checkpointing": False, "precision": "fp32", "adapter_precision": "fp32"}
        longest = given["max_length"] or RECIPES[recipe].max_length
        if "pack_length" not in given:
            fallback["pack_length"] = max(CPU_PACK_LENGTH, longest)
        found = settle(recipe, method or "lora", len(examples), **_over(fallback, given))
        return _Settled(found, card, shape, "on the processor: nothing was chosen by memory")
    plain = settle(recipe, method or "lora", len(examples), **_over({"pack_length": 4_096}, given))
    lengths = _lengths(base, examples, plain)
    asked = {name for name in ("micro_batch", "checkpointing", "optimizer") if given[name] is not None}
    if method is not None and "pack_length" in given and {"micro_batch", "checkpointing"} <= asked:
        dtype = "bf16" if card.bf16 else "fp16"
        found = settle(
            recipe, method, len(examples),
            **_over({"precision": dtype, "adapter_precision": "bf16" if card.bf16 else "fp32"}, given),
        )  # fmt: skip
        return _Settled(found, card, shape, "as given")
    chosen = choose(
        shape, lengths, card, methods=(method,) if method else ("lora", "qlora"), batch=plain.batch, epochs=plain.epochs,
        seed=plain.seed, rank=plain.rank, targets=plain.target_names, dropout=plain.lora_dropout, cards=cards,
        correct=_corrector(),
    )  # fmt: skip
    setup = chosen.chosen.setup
    fitting = {
        "micro_batch": setup.micro_batch, "pack_length": setup.pack_length, "checkpointing": setup.checkpointing,
        "precision": setup.dtype, "adapter_precision": setup.adapter_dtype, "optimizer": setup.optimizer,
        "master_weights": setup.masters if setup.method == "full" else None,
    }  # fmt: skip
    found = settle(recipe, setup.method, len(examples), **_over(fitting, given))
    return _Settled(found, card, shape, chosen.reason)


def _over(first: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """What was given goes before what was found."""
    padded = "pack_length" in given and given["pack_length"] is None
    return {
        **first,
        **{name: value for name, value in given.items() if value is not None or (padded and name == "pack_length")},
    }


def _corrector() -> Callable[[Forecast], Forecast]:
    """What past trainings make of a forecast; a file of them that cannot be read does not stop one."""
    from train.calibration import CalibrationError, apply, corrections

    try:
        known = corrections()
    except CalibrationError:
        known = []
    return lambda forecast: apply(forecast, known)


def _lengths(base: Path, examples: list[Example], settings: Settings) -> Lengths:
    from train.data import token_counts
    from train.memory import lengths_of

    counts = token_counts(examples, base)
    return lengths_of(counts.prompt, counts.response, settings.max_length, counts.how)


def _prepare(rows: Rows, base: Path, settings: Settings, cards: int, say: Callable[[str], None]) -> Prepared:
    from train.sft import prepare

    say(f"tokenising {len(rows.examples):,} rows of {rows.source}")
    return prepare(rows.examples, base, settings, cards=cards)


def _announce(
    rows: Rows, prepared: Prepared, settled: _Settled, told: Forecast, usd_per_hour: Decimal | None, say: Callable[[str], None]
) -> None:  # fmt: skip
    """Everything that is about to be done, before anything heavy is loaded."""
    from train.data import DROPPED

    s, counts, laid = settled.settings, prepared.facts["data"], prepared.plan
    for reason, text in DROPPED.items():
        if count := counts.get(f"dropped_{reason}"):
            say(f"  left out: {_rows(count)} {text}")
    if counts["truncated"]:
        say(f"  longer than {s.max_length} tokens, losing the end of the output: {_rows(counts['truncated'])}")
    if counts["tokenised_apart"]:
        say(
            f"  tokenised in pieces (a token across the boundary, a special token's name): {_rows(counts['tokenised_apart'])}"
        )
    say(
        f"{s.recipe}, {s.method}: {counts['examples']:,} examples, {len(laid.steps):,} steps of {s.batch} examples, "
        f"{laid.tokens:,} tokens ({laid.padded_tokens / laid.tokens - 1:.1%} padding), {laid.microbatches} micro-batches a step"
    )
    say(
        f"  learning rate {s.learning_rate:g} ({s.schedule}, warm-up {s.warmup_share:g}), at most {s.max_length} tokens an "
        f"example, {f'rows of {s.pack_length}' if s.pack_length else 'one example a row'} x {s.micro_batch}, "
        f"{'with' if s.checkpointing else 'without'} checkpointing, {s.precision}, seed {s.seed}"
    )
    if s.method != "full":
        say(
            f"  adapter of rank {s.rank}, alpha {s.alpha}, dropout {s.lora_dropout:g} on {s.targets}, kept in {s.adapter_precision}"
        )
    say("  the loss of a step is the mean over its trained tokens: answers and the token that ends them")
    for remark in s.remarks:
        say(f"  note: {remark}")
    corrected = _corrector()(told)
    told_of = f"  forecast for {settled.card.label}: "
    told_of += "" if settled.card.is_cpu else f"peak {corrected.peak_bytes / 2**30:.1f} GiB, "
    if corrected.seconds is None:
        told_of += "its speed is not known before a first training"
    else:
        told_of += f"{corrected.tokens_per_second:,.0f} tokens/s, {corrected.seconds / 60:,.1f} minutes"
        if usd_per_hour is not None:
            told_of += f", ${float(usd_per_hour) * corrected.seconds / 3600:.2f} at ${usd_per_hour} an hour"
    if s.precision == "fp32" and not settled.card.is_cpu:
        told_of += "; counted for 16 bits, in 32 it is about twice"
    say(f"{told_of} ({settled.reason})")


# -- training ---------------------------------------------------------------------------------------------------------


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM ask for a checkpoint and an end; a second one ends at once."""
    asked: list[int] = []

    def ask(signum: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(signum)
        note("\nstopping after this step; once more stops at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _go(
    db: str, rows: Rows, prepared: Prepared, settled: _Settled, told: Forecast, out: Path, usd_per_hour: Decimal | None,
    fresh: bool, save_every: int | None, quiet: bool, form: str | None, leads: bool,
) -> None:  # fmt: skip
    from train.sft import train

    recorder: Recorder | None = None
    show = _Progress(quiet or not leads)

    def begun(step: int) -> None:
        nonlocal recorder
        recorder = _recorder(db, rows, prepared, settled, out, usd_per_hour, step) if leads else None

    def observe(metrics: Metrics) -> None:
        show(metrics)
        if recorder:
            recorder.step(asdict(metrics))

    outcome, message = "failed", None
    try:
        with _stoppable() as stop, redirect_stdout(sys.stderr):  # what the libraries print is no result
            done = train(
                prepared, out, observe=observe, should_stop=stop, say=note if leads else _nothing, save_every=save_every,
                forecast_bytes=None if settled.card.is_cpu else told.peak_bytes, fresh=fresh, begun=begun,
            )  # fmt: skip
        outcome = "done" if done.finished else "stopped"
    except BaseException as error:
        message = f"{type(error).__name__}: {error}"
        outcome = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        raise
    finally:
        show.end()
        if recorder and not recorder.end(outcome, message):
            note(f"{db} could not be written: its curve and hours stop short, {out / 'metrics.jsonl'} has all of it")
    if not leads:
        return
    if done.measured and done.facts.get("steps"):
        _calibrate(told, done.measured)
    facts = {
        "out": str(out), "outcome": outcome, "step": done.step, "steps": done.steps, "loss": done.loss,
        "seconds": round(done.seconds, 3), "method": settled.settings.method, "recipe": settled.settings.recipe,
        "settings": settled.settings.facts(), "data": prepared.facts["data"], "forecast_peak_bytes": told.peak_bytes,
        "measured": asdict(done.measured) if done.measured else None,
        "usd": None if usd_per_hour is None else str(round(usd_per_hour * Decimal(str(done.seconds)) / 3600, 4)),
    }  # fmt: skip
    if form:
        print_json(facts)
    cost = "" if facts["usd"] is None else f", ${facts['usd']} of machine time"
    if not done.finished:
        note(
            f"stopped at step {done.step:,} of {done.steps:,} after {_clock(done.seconds)}{cost}; the same command goes on"
        )
        raise click.exceptions.Exit(130)
    loss = f", loss {done.loss:.4f}" if done.loss is not None else ""
    if done.before:
        note(f"{out} holds this training already, finished; nothing was done")
    note(f"trained {done.steps:,} steps in {_clock(done.seconds)}{cost}{loss}: {out / 'model'}")
    note(f"next: alpasift export-model {out} --form gguf -o {out}.gguf")


def _recorder(
    db: str, rows: Rows, prepared: Prepared, settled: _Settled, out: Path, usd_per_hour: Decimal | None, step: int
) -> Recorder | None:
    """Where the metrics go besides the file: the database, where there is one."""
    from batcher.store import Store, StoreError
    from batcher.trainings import Recorder
    from train.sft import device_name

    if not Path(db).exists():
        return None
    store = Store(db, wait=2.0)
    with suppress(StoreError):  # somebody holds it: the recorder tries again, and the training begins
        store.existing()
    facts = {**prepared.facts, "settings": settled.settings.facts(), "base_sha256": prepared.base.sha256()}
    return Recorder(
        store, folder=out, base=prepared.base.folder, recipe=settled.settings.recipe,
        method=settled.settings.method, facts=facts, device=device_name(), from_step=step,
        cards=prepared.facts["cards"], usd_per_hour=usd_per_hour, version_id=rows.version_id, selection_id=rows.selection_id,
    )  # fmt: skip


def _calibrate(told: Forecast, measured: Measured) -> None:
    """Keep what this machine did for the next forecast, and say how far this one was off."""
    from train.calibration import measured_against, record
    from train.sft import versions

    one = measured_against(
        told, tokens_per_second=measured.tokens_per_second,
        peak_bytes=None if told.card.is_cpu else measured.peak_bytes, steps=measured.steps, versions=versions(),
    )  # fmt: skip
    record(one)
    said = f"measured {measured.tokens_per_second:,.0f} tokens/s"
    if told.tokens_per_second:
        said += f" (forecast {told.tokens_per_second:,.0f})"
    if not told.card.is_cpu:
        said += f", {measured.peak_bytes / 2**30:.1f} GiB reserved (forecast {told.parts.reserved / 2**30:.1f})"
    note(f"{said}; kept for the next forecast")


class _Progress:
    """A line that is written over on a terminal, and one every ten seconds elsewhere."""

    def __init__(self, quiet: bool) -> None:
        self._quiet, self._live, self._last = quiet, sys.stderr.isatty(), 0.0

    def __call__(self, m: Metrics) -> None:
        now = time.monotonic()
        last = m.step == m.steps
        if self._quiet or (now - self._last < (0.2 if self._live else 10) and not last):
            return
        self._last = now
        line = (
            f"step {m.step:,}/{m.steps:,}  epoch {m.epoch + 1}  loss {m.loss:.4f}  rate {m.learning_rate:.2e}  "
            f"{m.tokens_per_second:,.0f} tokens/s  {m.peak_bytes / 2**30:.1f} GiB  {_clock(m.seconds_left)} left"
        )
        click.echo(f"\r\x1b[K{line}" if self._live else line, nl=not self._live, err=True)

    def end(self) -> None:
        if self._live and self._last:
            click.echo("", err=True)


def _clock(seconds: float) -> str:
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{seconds:.1f} s"
