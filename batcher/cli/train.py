"""The command `train`: fine-tune a model on rows. Parses, calls `batcher.trainings`, prints."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alpasift.batcher.cli.grouped_help import GroupedCommand
from alpasift.batcher.cli.options import rows_options, usd
from alpasift.batcher.cli.printing import note, print_json
from alpasift.batcher.cli.training_time import forecast_json, forecast_text, taken_json, taken_text
from alpasift.batcher.engine.progress import duration
from alpasift.batcher.termination import arrived, exit_code

if TYPE_CHECKING:
    from alpasift.batcher.trainings import PlannedTraining
    from alpasift.train.fit.forecast import Forecast
    from alpasift.train.fit.train_config import Method
    from alpasift.train.held_out import HeldOutLoss
    from alpasift.train.metrics import Metrics
    from alpasift.train.sft import Trained

GIB = 2**30


def _held_out(_ctx: click.Context, _param: click.Parameter, text: str | None) -> float | None:
    """Rows as a number, or below 1 their share: "64", "2%", ".02"."""
    if text is None:
        return None
    percent = text.strip().endswith("%")
    try:
        value = float(text.strip().removesuffix("%")) / (100 if percent else 1)
    except ValueError:
        value = math.nan
    if not value >= 0 or (percent and value >= 1):
        raise click.BadParameter(f"{text!r}: give a number of rows (64), or a share of them below all (2%, .02)")
    return value


@click.command("train", cls=GroupedCommand)
@click.option(
    "--model", "base", required=True, metavar="DIR", help="The base model's folder: config.json and safetensors."
)
@rows_options
@click.option(
    "-o", "--output", required=True, metavar="DIR", help="Output folder of the training; the same command resumes it."
)
@click.option(
    "--recipe",
    default="alpagasus-7b",
    show_default=True,
    type=click.Choice(["alpagasus-7b", "alpagasus-13b", "alpaca", "humpback", "ag2-qlora"]),
    help="Epochs, examples per step, maximum length and schedule of a paper.",
)
@click.option(
    "--method",
    type=click.Choice(["full", "lora", "qlora"]),
    help="Train all weights, or an adapter on 16-bit or 4-bit weights. Default: LoRA if it fits, else QLoRA.",
)
@click.option(
    "--epochs",
    type=click.FloatRange(0, min_open=True),
    metavar="N",
    help="Passes over the data. Default: the recipe's.",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    metavar="N",
    help="Optimizer steps instead of epochs, for training two selections equally long.",
)
@click.option("--batch", type=click.IntRange(1), metavar="N", help="Examples per step, whatever their length.")
@click.option(
    "--max-length", type=click.IntRange(16), metavar="N", help="Maximum tokens per example; longer ones are truncated."
)
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), metavar="X", help="Default: the recipe's.")
@click.option("--rank", type=click.IntRange(1), metavar="N", help="LoRA rank. Default: the recipe's.")
@click.option(
    "--alpha", type=click.IntRange(1), metavar="N", help="LoRA alpha: the adapter's output is scaled by alpha / rank."
)
@click.option(
    "--lora-dropout",
    type=click.FloatRange(0, 1, max_open=True),
    metavar="X",
    help="Dropout of the adapter; above 0 takes 60 % more memory.",
)
@click.option("--targets", metavar="NAMES", help="Layers with an adapter: all-linear, or comma-separated names.")
@click.option(
    "--template",
    type=click.Choice(["alpaca", "chat"]),
    help="The Alpaca prompt (default), or the model's own chat template.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    metavar="N",
    help="Random seed of the row order and the adapter's initial weights (0).",
)
@click.option("--micro-batch", type=click.IntRange(1), metavar="N", help="Micro-batch size per GPU, in rows.")
@click.option(
    "--pack-length",
    type=click.IntRange(0),
    metavar="N",
    help="Tokens per packed row; 0 disables packing and pads.",
)
@click.option(
    "--checkpointing/--no-checkpointing",
    default=None,
    help="Gradient checkpointing: less memory, more time.",
)
@click.option(
    "--precision",
    type=click.Choice(["bf16", "fp16", "fp32"]),
    help="Compute precision. Default: the best the GPU supports.",
)
@click.option("--adapter-precision", type=click.Choice(["bf16", "fp32"]), help="Precision of the adapter's weights.")
@click.option("--optimizer", type=click.Choice(["adamw", "adamw_8bit"]), help="AdamW with 32-bit or 8-bit moments.")
@click.option(
    "--pure",
    is_flag=True,
    help="Method full without float32 master weights: half the memory, but small updates are lost.",
)
@click.option(
    "--save-every",
    type=click.IntRange(1),
    metavar="N",
    help="Steps between checkpoints. Default: a tenth of the training.",
)
@click.option(
    "--hold-out",
    "--held-out",
    "--val-set-size",
    "held_out",
    callback=_held_out,
    metavar="N",
    help="Rows that are not trained on and on which the loss is measured before and after: 64, 2% or .02; 0 for none. "
    "Default: 64 from 3,200 rows on, else none.",
)
@click.option("--fresh", is_flag=True, help="Delete the training in the folder and start again.")
@click.option(
    "--usd-per-hour",
    callback=usd,
    envvar="ALPASIFT_USD_PER_HOUR",
    show_envvar=True,
    metavar="USD",
    help="Price of this machine with all its GPUs.",
)
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option("--json", "form", flag_value="json", help="Print JSON.")
@click.pass_obj
def train_command(
    db: str,
    /,
    base: str,
    rows_from: dict[str, str | None],
    output: str,
    recipe: str,
    method: Method | None,
    usd_per_hour: Decimal | None,
    quiet: bool,
    form: str | None,
    fresh: bool,
    pure: bool,
    save_every: int | None,
    **given: Any,
) -> None:
    """Fine-tune a model on rows: all weights, LoRA or QLoRA, by a paper's recipe.

    Stopped at any time, by Ctrl-C, kill or a power cut, the same command resumes from the last checkpoint. Several
    cards: torchrun --nproc-per-node N -m alpasift train ...

    \b
    Example:
      alpasift train --model models/llama-2-7b --selection kept -o runs/kept
      alpasift train --model models/llama-2-7b --data kept.json -o runs/kept --method qlora --steps 100
    """
    from alpasift.batcher.trainings import TrainRequest, find_rows, plan_training, run_training
    from alpasift.train.run_folder import check_folder
    from alpasift.train.sft import Hooks

    if given["epochs"] is not None and given["steps"] is not None:
        raise click.UsageError("give --epochs or --steps, not both")
    given["master_weights"] = False if pure else None
    first = os.environ.get("RANK", "0") == "0"  # under torchrun one process prints
    progress = _Progress(quiet or not first)

    def report(message: str) -> None:
        if first:
            progress.end_line()
            note(message)

    check_folder(Path(output))
    rows = find_rows(db, **rows_from)
    if rows.skipped:
        report(f"skipped: {_rows(rows.skipped)} of {rows.source} that cannot be read; `alpasift import` shows why")
    request = TrainRequest(Path(base), Path(output), recipe, method, given, fresh, save_every, usd_per_hour)
    planned = plan_training(rows, request, report)
    _print_plan(planned, report)
    with _stoppable() as should_stop, redirect_stdout(sys.stderr):  # what the libraries print is not our result
        hooks = Hooks(on_step=progress.show, on_held_out=progress.take_held_out, should_stop=should_stop, report=report)
        trained = run_training(db, planned, hooks)
    progress.end_line()
    if first:
        _print_result(planned, trained, form)
    if not trained.finished:
        raise click.exceptions.Exit(exit_code())


# -- before training ---------------------------------------------------------------------------------------------------


def _print_plan(planned: PlannedTraining, report: Callable[[str], None]) -> None:
    """Everything that is about to be done, before anything heavy is loaded."""
    from alpasift.train.data import DROPPED
    from alpasift.train.held_out import POINTS

    s, counts, plan = planned.machine.settings, planned.prepared.facts["data"], planned.prepared.plan
    for reason, text in DROPPED.items():
        if count := counts.get(f"dropped_{reason}"):
            report(f"  skipped: {_rows(count)} {text}")
    if counts["truncated"]:
        report(f"  longer than {s.max_length} tokens, output truncated: {_rows(counts['truncated'])}")
    if counts["tokenised_apart"]:
        report(
            "  tokenised separately (a token across the prompt boundary, or a special token's name in the text): "
            f"{_rows(counts['tokenised_apart'])}"
        )
    step = max((one.examples for one in plan.steps), default=s.batch)  # fewer than s.batch where there are fewer
    report(
        f"{s.recipe}, {s.method}: {counts['examples']:,} examples, {len(plan.steps):,} steps of {step} examples, "
        f"{plan.tokens:,} tokens ({plan.padded_tokens / plan.tokens - 1:.1%} padding), {plan.microbatches} "
        "micro-batches per step"
    )
    layout = f"rows of {s.pack_length}" if s.pack_length else "one example per row"
    report(
        f"  learning rate {s.learning_rate:g} ({s.schedule}, warm-up {s.warmup_share:g}), at most {s.max_length} "
        f"tokens per example, {layout} x {s.micro_batch}, "
        f"{'with' if s.checkpointing else 'without'} checkpointing, {s.precision}, seed {s.seed}"
    )
    if s.method != "full":
        report(
            f"  adapter of rank {s.rank}, alpha {s.alpha}, dropout {s.lora_dropout:g} on {s.targets}, in "
            f"{s.adapter_precision}"
        )
    report(
        "  the loss of a step is the mean over its trained tokens: answers and the token that ends them. Each step has "
        "other rows, so one loss beside the next shows no progress; "
        + (
            f"that of {_rows(s.held_out)} held out does, measured before the first step, at {POINTS} points at most, "
            "and after the last"
            if s.held_out
            else "only the trend over many does, or that of rows held out with --hold-out"
        )
    )
    for remark in s.remarks:
        report(f"  note: {remark}")
    report(_forecast_line(planned))


def _forecast_line(planned: PlannedTraining) -> str:
    """The forecast as past trainings correct it, and why this configuration."""
    card, forecast = planned.machine.card, planned.corrected
    if forecast is None:
        return f"  no forecast for {card.label}: its formulas do not support this model ({planned.machine.reason})"
    line = f"  forecast for {card.label}: "
    line += f"peak {_gib(forecast.peak_bytes)}, "
    if forecast.seconds is None:
        line += "speed unknown until the first training"
    else:
        line += forecast_text(forecast)
        if (cost := planned.usd(forecast.seconds)) is not None:
            line += f"; ${cost:.2f} at ${planned.request.usd_per_hour} an hour"
        line += f"; {forecast.tokens_per_second:,.0f} tokens/s while training"
    return f"{line} ({planned.machine.reason})"


def _rows(count: int) -> str:
    return f"{count:,} {'row' if count == 1 else 'rows'}"


# -- during training ---------------------------------------------------------------------------------------------------


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM write a checkpoint and end the training; a second one ends it at once."""
    received: list[int] = []

    def stop(signum: int, frame: Any) -> None:
        arrived(signum)
        if received:
            raise KeyboardInterrupt
        received.append(signum)
        note("\nstopping after this step; press Ctrl-C again to stop at once")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Progress:
    """One line that is overwritten on a terminal, elsewhere a line every ten seconds."""

    def __init__(self, quiet: bool) -> None:
        self._quiet, self._live, self._last, self._open = quiet, sys.stderr.isatty(), 0.0, False
        self._held_out = ""

    def take_held_out(self, one: HeldOutLoss) -> None:
        self._held_out = f"  held-out loss {one.loss:.4f}"

    def show(self, m: Metrics) -> None:
        now = time.monotonic()
        last = m.step == m.steps
        if self._quiet or (now - self._last < (0.2 if self._live else 10) and not last):
            return
        self._last = now
        line = (
            f"step {m.step:,}/{m.steps:,}  epoch {m.epoch + 1}  loss {m.loss:.4f}{self._held_out}"
            f"  learning rate {m.learning_rate:.2e}"
            f"  {m.tokens_per_second:,.0f} tokens/s  {m.peak_bytes / GIB:.1f} GiB  {_clock(m.seconds_left)} left"
        )
        click.echo(f"\r\x1b[K{line}" if self._live else line, nl=not self._live, err=True)
        self._open = self._live

    def end_line(self) -> None:
        """Leave the line that is overwritten, before something else is printed."""
        if self._open:
            click.echo("", err=True)
            self._open = False


# -- after training ----------------------------------------------------------------------------------------------------


def _print_result(planned: PlannedTraining, trained: Trained, form: str | None) -> None:
    out = planned.request.out
    if trained.measured and trained.facts.get("steps"):
        note(_measured_line(planned, trained))
    if line := _beside_forecast(planned, trained):
        note(line)
    if form:
        print_json(_facts(planned, trained))
    cost = planned.usd(trained.took.seconds)
    spent = taken_text(trained.took) + ("" if cost is None else f", ${cost} of machine time")
    if line := _held_out_line(trained):
        note(line)
    if not trained.finished:
        note(f"stopped at step {trained.step:,} of {trained.steps:,} after {spent}; the same command resumes it")
        return
    loss = f", loss {trained.loss:.4f}" if trained.loss is not None else ""
    if trained.already_finished:
        note(f"{out} already holds this training, finished; nothing was done")
    note(f"trained {trained.steps:,} steps in {spent}{loss}: {out / 'model'}")
    note(f"next: alpasift export-model {out} --form gguf -o {out}.gguf")


def _held_out_line(trained: Trained) -> str | None:
    """The loss on the held-out rows before training and now."""
    if not trained.held_out:
        return None
    first, last = trained.held_out[0], trained.held_out[-1]
    before = f"{first.loss:.3f} -> " if last.step != first.step else ""
    return f"held-out loss {before}{last.loss:.3f} ({_rows(last.rows)})"


def _measured_line(planned: PlannedTraining, trained: Trained) -> str:
    """What this machine did, beside its forecast."""
    assert trained.measured is not None
    forecast, measured = planned.forecast, trained.measured
    line = f"measured {measured.tokens_per_second:,.0f} tokens/s"
    if forecast and forecast.tokens_per_second:
        line += f" (forecast {forecast.tokens_per_second:,.0f})"
    return f"{line}; stored for the next forecast" if forecast else line


def _beside_forecast(planned: PlannedTraining, trained: Trained) -> str | None:
    """What this training took beside what was forecast before it began, and by how much the two differ."""
    forecast, peak = planned.corrected, trained.peak_bytes
    if forecast is None or peak is None:
        return None
    wanted = _comparable(planned, forecast)
    what = "of this process" if planned.machine.card.is_cpu else "reserved on the card"
    line = f"peak {_gib(peak)} {what} (forecast {_gib(wanted)}, {wanted / peak - 1:+.0%})"
    if forecast.seconds is not None and trained.finished:
        took = trained.took.seconds
        line += f", time {duration(took)} (forecast {duration(forecast.seconds)}, {forecast.seconds / took - 1:+.0%})"
    return line


def _comparable(planned: PlannedTraining, forecast: Forecast) -> int:
    """The forecast of what is measured: a process's whole memory, or what the allocator of a card reserves."""
    return forecast.peak_bytes if planned.machine.card.is_cpu else forecast.parts.reserved


def _gib(size: int) -> str:
    """Bytes for people: "2.3 GiB", a tiny model's "0.64 GiB"."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / GIB:.2f} GiB"


def _facts(planned: PlannedTraining, trained: Trained) -> dict[str, Any]:
    """The result as JSON."""
    settings = planned.machine.settings
    usd, forecast = planned.usd(trained.took.seconds), planned.corrected
    forecast_usd = None if forecast is None or forecast.seconds is None else planned.usd(forecast.seconds)
    return {
        "out": str(planned.request.out),
        "outcome": "done" if trained.finished else "stopped",
        "step": trained.step,
        "steps": trained.steps,
        "loss": trained.loss,
        **taken_json(trained.took),
        "held_out": [asdict(one) for one in trained.held_out],
        "method": settings.method,
        "recipe": settings.recipe,
        "settings": settings.facts(),
        "data": planned.prepared.facts["data"],
        "forecast": None if forecast is None else {**forecast_json(forecast), "usd": forecast_usd},
        "forecast_peak_bytes": planned.forecast.peak_bytes if planned.forecast else None,
        "peak_bytes": trained.peak_bytes,
        "measured": asdict(trained.measured) if trained.measured else None,
        "usd": usd,
    }


def _clock(seconds: float) -> str:
    rounded = round(seconds)
    if rounded >= 3600:
        return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"
    return f"{rounded // 60} min {rounded % 60:02d} s" if rounded >= 60 else f"{seconds:.1f} s"
