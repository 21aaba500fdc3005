"""The command `fit`: what fits a card. Reads lengths and a config.json; no model is loaded and no torch imported."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alpasift.batcher.cli.grouped_help import GroupedCommand
from alpasift.batcher.cli.options import rows_options, usd
from alpasift.batcher.cli.printing import note, print_json, print_paragraph, print_table
from alpasift.batcher.cli.training_time import forecast_json, forecast_text
from alpasift.batcher.engine.progress import duration

if TYPE_CHECKING:
    from alpasift.batcher.trainings import Rows
    from alpasift.train.fit.cards import Card
    from alpasift.train.fit.forecast import Forecast
    from alpasift.train.fit.train_config import Method
    from alpasift.train.fit.workload import Lengths
    from alpasift.train.fitting import Fit

GIB = 1024**3


@click.command("fit", cls=GroupedCommand)
@click.option(
    "--model",
    required=True,
    metavar="DIR",
    help="Model folder (only config.json is read), or one of llama-7b, llama-13b, llama-2-7b, llama-2-13b, "
    "llama-3.1-8b, mistral-7b, qwen2.5-7b, qwen2.5-14b.",
)
@rows_options
@click.option(
    "--gpu-memory",
    type=click.FloatRange(1, 1024),
    metavar="GB",
    help="GPU memory as the vendor states it: 16, 24, 40, 80.",
)
@click.option(
    "--card",
    "card_name",
    metavar="NAME",
    help="t4, v100-16, rtx-3090, rtx-4090, l4, a10g, a6000, a100-40, a100-80, h100, h200, cpu. Default: this machine's "
    "GPU.",
)
@click.option(
    "--gpus",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    metavar="N",
    help="Number of such GPUs in the machine.",
)
@click.option(
    "--method",
    type=click.Choice(["full", "lora", "qlora"]),
    help="Training method. Default: LoRA if it fits, else QLoRA.",
)
@click.option(
    "--epochs",
    type=click.FloatRange(0, 1000, min_open=True),
    default=3,
    show_default=True,
    metavar="N",
    help="Passes over the data.",
)
@click.option(
    "--batch",
    type=click.IntRange(1),
    default=128,
    show_default=True,
    metavar="N",
    help="Examples per optimizer step.",
)
@click.option(
    "--max-length",
    type=click.IntRange(16),
    default=512,
    show_default=True,
    metavar="N",
    help="Maximum tokens per example; longer ones are truncated.",
)
@click.option("--rank", type=click.IntRange(1), default=16, show_default=True, metavar="N", help="LoRA rank.")
@click.option(
    "--tokenizer",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="Folder with tokenizer.json. Default: the model's; without one, tokens are estimated from characters.",
)
@click.option(
    "--usd-per-hour",
    callback=usd,
    envvar="ALPASIFT_USD_PER_HOUR",
    show_envvar=True,
    metavar="USD",
    help="Price of the machine with all its GPUs.",
)
@click.option("--all", "everything", is_flag=True, help="Show every configuration, not only the best of each method.")
@click.option("--json", "form", flag_value="json", help="Print JSON.")
@click.pass_obj
def fit_command(
    db: str,
    /,
    model: str,
    rows_from: dict[str, str | None],
    gpu_memory: float | None,
    card_name: str | None,
    gpus: int,
    method: Method | None,
    epochs: float,
    batch: int,
    max_length: int,
    rank: int,
    tokenizer: str | None,
    usd_per_hour: Decimal | None,
    everything: bool,
    form: str | None,
) -> None:
    """Forecast memory, time and cost of a fine-tune on a GPU, without loading the model.

    A forecast by formulas (docs/fitting.md), corrected by what trainings on the same GPU have measured. Exit code 3
    when nothing fits, with the smallest configuration.

    \b
    Example:
      alpasift fit --model llama-2-7b --data kept.json --gpu-memory 24
      alpasift fit --model models/llama-2-13b --selection kept --card a100-80 --usd-per-hour 1.50
    """
    from alpasift.batcher.trainings import find_rows
    from alpasift.train.fit.cards import requested_card
    from alpasift.train.fit.choice import best_of_each
    from alpasift.train.fitting import FitRequest, fit

    card = requested_card(card_name, gpu_memory)
    request = FitRequest(model, card, gpus, method, epochs, batch, max_length, rank, tokenizer, usd_per_hour)
    rows = find_rows(db, **rows_from)
    found = fit(rows.examples, request)
    if form:
        print_json(_as_json(found, rows, everything))
        if found.error:
            raise click.exceptions.Exit(3)
        return
    listed = found.considered if everything else best_of_each(found.considered)
    if found.error:
        _print_table(listed, card)
        raise found.error
    _print(found, rows, listed)
    _print_next(found.shown, model, rows_from)


# -- JSON --------------------------------------------------------------------------------------------------------------


def _gib(size: float) -> float:
    return round(size / GIB, 4)


def _row(one: Forecast) -> dict[str, Any]:
    """One configuration as JSON has it; `parts` add up to `peak_gib`."""
    config, layout = one.config, one.layout
    return {
        "fits": one.fits,
        "method": config.method,
        "micro_batch": config.micro_batch,
        "pack_length": config.pack_length,
        "checkpointing": config.checkpointing,
        "optimizer": config.optimizer,
        "dtype": one.computes_in,
        "trained_in": "float32" if config.adapter_dtype == "fp32" else "bf16",
        "peak_gib": _gib(one.peak_bytes),
        "margin": one.margin,
        "needed_gib": _gib(one.needed_bytes),
        "tokens_per_second": one.tokens_per_second,
        "minutes": one.minutes,
        "minutes_fast": _minutes(one.seconds_fast),
        "minutes_slow": _minutes(one.seconds_slow),
        **forecast_json(one),
        "usd": one.usd,
        "parts": {f"{name}_gib": _gib(size) for name, size in one.parts.by_name().items()},
        "steps": layout.steps,
        "microbatches_per_step": layout.microbatches,
        "tokens": layout.tokens,
        "padded_tokens": layout.padded_tokens,
        "micro_batch_tokens": layout.max_tokens,
        "calibration": one.calibration or None,
    }


def _minutes(seconds: float | None) -> float | None:
    return None if seconds is None else seconds / 60


def _as_json(found: Fit, rows: Rows, everything: bool) -> dict[str, Any]:
    """The chosen configuration, or why nothing fits; then what holds for every configuration: model, card, data."""
    one, lengths = found.shown, found.lengths
    card = one.card
    if found.choice:
        answer = {**_row(one), "reason": found.choice.reason}
    else:
        assert found.error is not None
        answer = {
            "fits": False,
            "reason": str(found.error),
            "nearest": _row(one),
            "nearest_card_gb": found.error.card_gb,
            "smaller_model": found.error.smaller_model,
        }
    answer |= {
        "model": found.dims.name,
        "parameters": found.dims.parameters,
        "card": card.name,
        "card_label": card.label,
        "card_remark": card.remark or None,
        "gpus": one.config.cards,
        "usable_gib": _gib(card.usable_bytes),
        "usd_per_hour": one.usd_per_hour,
        "data": rows.source,
        "examples": len(lengths.tokens),
        "skipped": rows.skipped,
        "dropped": lengths.dropped,
        "truncated": lengths.truncated,
        "max_length": lengths.max_length,
        "lengths_from": lengths.counted_by,
    }
    return {**answer, "considered": [_row(other) for other in found.considered]} if everything else answer


# -- for people --------------------------------------------------------------------------------------------------------


def _print(found: Fit, rows: Rows, listed: Sequence[Forecast]) -> None:
    assert found.choice is not None
    one, card = found.shown, found.shown.card
    _print_choice(found, found.choice.reason)
    click.echo()
    parts = [(name, size) for name, size in one.parts.by_name().items() if size or name != "context"]
    print_table(("part of the peak", "GiB"), [(name.replace("_", " "), round(_gib(size), 2)) for name, size in parts])
    click.echo()
    _print_table(listed, card)
    click.echo()
    print_paragraph(f"A forecast, not a measurement. Lengths by {found.lengths.counted_by}.")
    none = f"none for this {'CPU' if card.is_cpu else 'GPU'}; the first steps of a training make one"
    print_paragraph(f"Calibration: {one.calibration or none}.")
    if card.remark:
        print_paragraph(f"{card.label}: {card.remark}.")
    _print_skipped(found.lengths, rows)


def _print_choice(found: Fit, reason: str) -> None:
    """The configuration in four lines: what, why, its memory and its time."""
    from alpasift.batcher.money.dollars import show_usd

    one = found.shown
    config, card, layout = one.config, one.card, one.layout
    many = f"{config.cards} x " if config.cards > 1 else ""
    parameters = found.dims.parameters
    size = f"{parameters / 1e9:.2f} B" if parameters >= 1e8 else f"{parameters:,}"
    print_paragraph(f"{found.dims.name}, {size} parameters, on {many}{card.label}: {config.describe()}")
    print_paragraph(f"  because {reason}")
    trained = "" if config.adapter_dtype == "bf16" or card.is_cpu else ", trained parameters in float32"
    print_paragraph(
        f"  peak {one.peak_bytes / GIB:.1f} GiB, with {one.margin:.0%} margin {one.needed_bytes / GIB:.1f} of "
        f"{card.usable_bytes / GIB:.1f} usable; computed in {one.computes_in}{trained}"
    )
    if one.seconds is None:
        print_paragraph("  time unknown: not measured on this CPU; the first training measures it")
    else:
        cost = "cost unknown, give --usd-per-hour" if one.usd is None else f"{show_usd(one.usd, 2)}"
        print_paragraph(f"  {forecast_text(one)}; {cost}; {one.tokens_per_second:,.0f} tokens/s while training")
    padding = layout.padded_tokens / layout.tokens - 1
    print_paragraph(
        f"  {len(found.lengths.tokens):,} examples, {layout.steps:,} steps of {layout.microbatches} micro-batches, "
        f"{layout.tokens:,} tokens and {padding:.1%} padding, at most {layout.max_tokens:,} tokens at once"
        f"{', estimated from a sample' if layout.sampled else ''}"
    )


def _print_skipped(lengths: Lengths, rows: Rows) -> None:
    if rows.skipped:
        note(f"{rows.skipped:,} rows of {rows.source} are unusable and skipped")
    if lengths.dropped:
        note(f"{lengths.dropped:,} examples are skipped: their prompt alone exceeds {lengths.max_length} tokens")
    if (longer := lengths.truncated - lengths.dropped) > 0:
        note(f"{longer:,} examples are longer than {lengths.max_length} tokens and are truncated")


def _print_table(listed: Sequence[Forecast], card: Card) -> None:
    columns = (
        "method",
        "ckpt",
        "micro-batch",
        "pack",
        "optimizer",
        "peak GiB",
        "needs GiB",
        "fits",
        "tokens/s",
        "time",
        "USD",
    )
    cells = []
    for one in sorted(listed, key=lambda one: (one.config.method, not one.fits, one.effort)):
        config = one.config
        pure = " pure" if config.method == "full" and not config.master_weights else ""
        cells.append(
            (
                config.method,
                "with" if config.checkpointing else "without",
                config.micro_batch,
                config.pack_length,
                f"{config.optimizer}{pure}",
                round(one.peak_bytes / GIB, 1),
                round(one.needed_bytes / GIB, 1),
                "yes" if one.fits else "no",
                None if one.tokens_per_second is None else round(one.tokens_per_second),
                None if one.seconds is None else duration(one.seconds),
                one.usd,
            )
        )
    priced = len(columns) if any(row[-1] is not None for row in cells) else len(columns) - 1
    print_table(columns[:priced], [row[:priced] for row in cells])
    sample = " Compared on a sample of the rows." if any(one.layout.sampled for one in listed) else ""
    print_paragraph(
        f"needs: the peak and its margin, of the {card.usable_bytes / GIB:.1f} GiB usable on {card.label}.{sample}"
    )


def _print_next(one: Forecast, model: str, rows_from: dict[str, str | None]) -> None:
    """The training that was forecast, as a command."""
    import shlex

    config = one.config
    folder = model if Path(model).is_dir() else "FOLDER"
    source = "".join(f" --{name} {shlex.quote(value)}" for name, value in rows_from.items() if value is not None)
    checkpointing = "--checkpointing" if config.checkpointing else "--no-checkpointing"
    optimizer = " --optimizer adamw_8bit" if config.optimizer == "adamw_8bit" else ""
    pure = " --pure" if config.method == "full" and not config.master_weights else ""
    note(
        f"next: alpasift train --model {shlex.quote(folder)}{source} --method {config.method} "
        f"--micro-batch {config.micro_batch} --pack-length {config.pack_length} {checkpointing}{optimizer}{pure} "
        "-o runs/NAME"
    )
