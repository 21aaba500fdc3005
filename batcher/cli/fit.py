"""The command that forecasts a fine-tune: fit. It reads lengths and a config.json; no model is opened and no torch imported."""

from __future__ import annotations

import random
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batcher.cli.options import usd
from batcher.cli.printing import duration, note, print_json, print_table
from batcher.cli.train import Rows, find_rows, rows_options

if TYPE_CHECKING:
    from train.cards import Card
    from train.memory import Choice, Forecast, Lengths, Method, NothingFits, Shape


TOKENISED = 2_000
"""Examples that a tokenizer counts exactly; 52,000 would take it twenty seconds. The others are told from these."""


@click.command("fit")
@click.option(
    "--model", required=True, metavar="DIR",
    help="A model's folder, of which config.json is read, or llama-7b, llama-13b, llama-2-7b, llama-2-13b, llama-3.1-8b, "
    "mistral-7b, qwen2.5-7b, qwen2.5-14b.",
)  # fmt: skip
@rows_options
@click.option(
    "--gpu-memory", type=click.FloatRange(1, 1024), metavar="GB",
    help="The card's memory as its vendor says it: 16, 24, 40, 80.",
)  # fmt: skip
@click.option(
    "--card", "card_name", metavar="NAME",
    help="t4, v100-16, rtx-3090, rtx-4090, l4, a10g, a6000, a100-40, a100-80, h100, h200, cpu; the card found here if neither is given.",
)  # fmt: skip
@click.option(
    "--gpus", type=click.IntRange(1, 64), default=1, show_default=True, metavar="N", help="Such cards in the machine."
)
@click.option("--method", type=click.Choice(["full", "lora", "qlora"]), help="LoRA, else QLoRA if not given.")
@click.option("--epochs", type=click.FloatRange(0, 1000, min_open=True), default=3, show_default=True, metavar="N")
@click.option(
    "--batch",
    type=click.IntRange(1),
    default=128,
    show_default=True,
    metavar="N",
    help="Examples of an optimizer step.",
)
@click.option(
    "--max-length", type=click.IntRange(16), default=512, show_default=True, metavar="N",
    help="Most tokens of an example; longer ones lose their end.",
)  # fmt: skip
@click.option("--rank", type=click.IntRange(1), default=16, show_default=True, metavar="N", help="Of the adapter.")
@click.option(
    "--tokenizer", type=click.Path(exists=True, file_okay=False), metavar="DIR",
    help="A folder with tokenizer.json, if not the model's; without one, characters are counted.",
)  # fmt: skip
@click.option(
    "--usd-per-hour", callback=usd, envvar="ALPASIFT_USD_PER_HOUR", show_envvar=True, metavar="USD",
    help="Of the machine, with all its cards.",
)  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="Every configuration, not the best of each method.")
@click.option("--json", "form", flag_value="json", help="Print JSON.")
@click.pass_obj
def fit_command(
    db: str, /, model: str, data: str | None, dataset: str | None, selection: str | None, gpu_memory: float | None,
    card_name: str | None, gpus: int, method: Method | None, epochs: float, batch: int, max_length: int, rank: int,
    tokenizer: str | None, usd_per_hour: Decimal | None, everything: bool, form: str | None,
) -> None:  # fmt: skip
    """What fits a card: memory, minutes and dollars of a fine-tune, before anything is bought or loaded.

    A forecast by formulas (docs/fitting.md), corrected by what trainings on the same card have measured. Exit code 3 when
    nothing fits, with the nearest configuration.

    \b
    Example:
      alpasift fit --model llama-2-7b --data kept.json --gpu-memory 24
      alpasift fit --model models/llama-2-13b --selection kept --card a100-80 --usd-per-hour 1.50
    """
    from train.calibration import apply, corrections
    from train.memory import METHODS, NothingFits, choose, configurations, read_shape

    shape, card = read_shape(model), _card(card_name, gpu_memory)
    known = corrections()

    def correct(one: Forecast) -> Forecast:
        return apply(one, known)

    rows = find_rows(db, data, dataset, selection)
    lengths = _lengths(rows, model, tokenizer, max_length)
    recipe: dict[str, Any] = {
        "batch": batch,
        "epochs": epochs,
        "rank": rank,
        "cards": gpus,
        "usd_per_hour": usd_per_hour,
    }
    methods: Sequence[Method] = (method,) if method else ("lora", "qlora")
    considered = configurations(shape, lengths, card, METHODS, correct=correct, **recipe)
    try:
        choice = choose(shape, lengths, card, methods=methods, correct=correct, considered=considered, **recipe)
    except NothingFits as error:
        if not form:
            _print_table(_best_of_each(considered) if not everything else considered, card)
            raise
        print_json(_refused(error, lengths, rows, considered if everything else ()))
        raise click.exceptions.Exit(3) from error
    if form:
        print_json(_accepted(choice, lengths, rows, considered if everything else ()))
        return
    _print(choice, lengths, rows, shape, _best_of_each(considered) if not everything else considered)
    _next(choice.chosen, model, data, dataset, selection)


def _card(name: str | None, gpu_memory: float | None) -> Card:
    from train.cards import card_named, card_of_size, found_card, with_memory

    if name is not None:
        card = card_named(name)
        return card if gpu_memory is None else with_memory(card, gpu_memory)
    return found_card() if gpu_memory is None else card_of_size(gpu_memory)


def _lengths(rows: Rows, model: str, tokenizer: str | None, max_length: int) -> Lengths:
    from train.data import token_counts
    from train.memory import lengths_of

    folder = Path(tokenizer or model)
    count = len(rows.examples)
    if not (folder / "tokenizer.json").is_file() or count <= TOKENISED:
        counts = token_counts(rows.examples, folder if folder.is_dir() else None)
        return lengths_of(counts.prompt, counts.response, max_length, counts.how)
    drawn = sorted(random.Random(0).sample(range(count), TOKENISED))
    exact = token_counts([rows.examples[n] for n in drawn], folder)
    if exact.how.startswith("characters"):  # the package that reads it is missing
        drawn = []
    rough = token_counts(rows.examples, None)
    both = [
        _at_the_rate_of(drawn, found, guessed)
        for found, guessed in ((exact.prompt, rough.prompt), (exact.response, rough.response))
    ]
    how = f"{exact.how} on {TOKENISED:,} examples, the others by characters at its rate" if drawn else exact.how
    return lengths_of(both[0], both[1], max_length, how)


def _at_the_rate_of(drawn: Sequence[int], found: Sequence[int], guessed: Sequence[int]) -> list[int]:
    """The tokens that were counted where they were, else what was guessed times how far guesses were off on average."""
    if not drawn:
        return list(guessed)
    off = sum(found) / sum(guessed[n] for n in drawn)
    lengths = [max(1, round(size * off)) for size in guessed]
    for number, tokens in zip(drawn, found, strict=True):
        lengths[number] = tokens
    return lengths


# -- JSON --------------------------------------------------------------------------------------------------------------


def _gib(size: float) -> float:
    return round(size / 1024**3, 4)


def _row(one: Forecast) -> dict[str, Any]:
    """One configuration as JSON has it; `parts` add up to `peak_gib`."""
    setup, laid = one.setup, one.layout
    names = [name for name in type(one.parts).__slots__ if getattr(one.parts, name)]
    return {
        "fits": one.fits, "method": setup.method, "micro_batch": setup.micro_batch, "pack_length": setup.pack_length,
        "checkpointing": setup.checkpointing, "optimizer": setup.optimizer, "dtype": setup.dtype,
        "trained_in": "float32" if setup.adapter_dtype == "fp32" else "bf16", "peak_gib": _gib(one.peak_bytes),
        "margin": one.margin, "needed_gib": _gib(one.needed_bytes), "tokens_per_second": one.tokens_per_second,
        "minutes": one.minutes, "minutes_fast": _minutes(one.seconds_fast), "minutes_slow": _minutes(one.seconds_slow),
        "usd": one.usd, "parts": {f"{name}_gib": _gib(getattr(one.parts, name)) for name in names},
        "steps": laid.steps, "microbatches_per_step": laid.microbatches, "tokens": laid.tokens,
        "padded_tokens": laid.padded_tokens, "micro_batch_tokens": laid.max_tokens, "calibration": one.calibration or None,
    }  # fmt: skip


def _minutes(seconds: float | None) -> float | None:
    return None if seconds is None else seconds / 60


def _around(one: Forecast, lengths: Lengths, rows: Rows, considered: Sequence[Forecast]) -> dict[str, Any]:
    """What holds for every configuration: model, card, data."""
    from train.memory import LOAD_SECONDS

    card = one.card
    found = {
        "model": one.shape.name, "parameters": one.shape.parameters, "card": card.name, "card_label": card.label,
        "card_remark": card.remark or None, "gpus": one.setup.cards, "usable_gib": _gib(card.usable_bytes),
        "usd_per_hour": one.usd_per_hour, "load_seconds": LOAD_SECONDS, "data": rows.source,
        "examples": len(lengths.tokens), "set_aside": rows.set_aside, "left_out": lengths.emptied,
        "truncated": lengths.cut, "max_length": lengths.max_length, "lengths_from": lengths.how,
    }  # fmt: skip
    return {**found, "considered": [_row(other) for other in considered]} if considered else found


def _accepted(choice: Choice, lengths: Lengths, rows: Rows, considered: Sequence[Forecast]) -> dict[str, Any]:
    one = choice.chosen
    return {**_row(one), "reason": choice.reason, **_around(one, lengths, rows, considered)}


def _refused(error: NothingFits, lengths: Lengths, rows: Rows, considered: Sequence[Forecast]) -> dict[str, Any]:
    one = error.nearest
    return {
        "fits": False, "reason": str(error), "nearest": _row(one), "nearest_card_gb": error.card_gb,
        "smaller_model": error.smaller_model, **_around(one, lengths, rows, considered),
    }  # fmt: skip


# -- for people --------------------------------------------------------------------------------------------------------


def _best_of_each(considered: Sequence[Forecast]) -> list[Forecast]:
    """Of each method, with and without checkpointing, the fastest that fits, else the smallest."""
    groups: dict[tuple[str, bool], list[Forecast]] = {}
    for one in considered:
        groups.setdefault((one.setup.method, one.setup.checkpointing), []).append(one)
    best = []
    for group in groups.values():
        fitting = [one for one in group if one.fits]
        best.append(min(fitting, key=_worth) if fitting else min(group, key=lambda one: one.needed_bytes))
    return best


def _worth(one: Forecast) -> tuple[bool, bool, float, int]:
    """The best first: 32-bit weights and moments of a full fine-tune, then speed, then memory."""
    setup = one.setup
    return not setup.masters, setup.optimizer != "adamw", one.seconds or one.flops, one.peak_bytes


def _billions(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e8 else f"{parameters:,}"


def _print(choice: Choice, lengths: Lengths, rows: Rows, shape: Shape, shown: Sequence[Forecast]) -> None:
    from batcher.ledger import show_usd
    from train.memory import LOAD_SECONDS, describe

    one, card = choice.chosen, choice.chosen.card
    setup, laid = one.setup, one.layout
    many = f"{setup.cards} x " if setup.cards > 1 else ""
    click.echo(f"{shape.name}, {_billions(shape.parameters)} parameters, on {many}{card.label}: {describe(setup)}")
    click.echo(f"  because {choice.reason}")
    trained = "" if setup.adapter_dtype == "bf16" else ", what is trained in float32"
    click.echo(
        f"  peak {one.peak_bytes / 1024**3:.1f} GiB, with {one.margin:.0%} margin {one.needed_bytes / 1024**3:.1f} of "
        f"{card.usable_bytes / 1024**3:.1f} usable; computes in {setup.dtype}{trained}"
    )
    if one.seconds is None:
        click.echo("  time unknown: nothing has been measured on this processor; the first training does it")
    else:
        spread = ""
        if one.seconds_fast != one.seconds_slow:
            spread = f" ({(one.seconds_fast or 0) / 60:,.1f} to {(one.seconds_slow or 0) / 60:,.1f})"
        cost = "dollars unknown, give --usd-per-hour" if one.usd is None else f"{show_usd(one.usd, 2)}"
        click.echo(
            f"  {one.tokens_per_second:,.0f} tokens/s, {one.seconds / 60:,.1f} minutes{spread}, {cost}; loading takes about "
            f"{duration(LOAD_SECONDS)} more"
        )
    padding = laid.padded_tokens / laid.tokens - 1
    click.echo(
        f"  {len(lengths.tokens):,} examples, {laid.steps:,} steps of {laid.microbatches} micro-batches, {laid.tokens:,} tokens and "
        f"{padding:.1%} padding, at most {laid.max_tokens:,} tokens at once{', from a sample' if laid.sampled else ''}"
    )
    parts = [(name, getattr(one.parts, name)) for name in type(one.parts).__slots__]
    click.echo()
    print_table(
        ("part of the peak", "GiB"), [(name.replace("_", " "), round(_gib(size), 2)) for name, size in parts if size]
    )
    click.echo()
    _print_table(shown, card)
    click.echo()
    click.echo(f"A forecast, not a measurement. Lengths by {lengths.how}.")
    click.echo(f"Calibration: {one.calibration or 'none for this card; the first steps of a training make one'}.")
    if card.remark:
        click.echo(f"{card.label}: {card.remark}.")
    _print_left_out(lengths, rows)


def _print_left_out(lengths: Lengths, rows: Rows) -> None:
    if rows.set_aside:
        note(f"{rows.set_aside:,} rows of {rows.source} cannot be used and are left out")
    if lengths.emptied:
        note(
            f"{lengths.emptied:,} examples are left out: their prompt leaves no room below {lengths.max_length} tokens"
        )
    if lengths.cut - lengths.emptied > 0:
        note(
            f"{lengths.cut - lengths.emptied:,} examples are longer than {lengths.max_length} tokens and lose their end"
        )


def _print_table(shown: Sequence[Forecast], card: Card) -> None:
    columns = (
        "method", "checkpointing", "micro-batch", "pack", "optimizer", "peak GiB", "needs GiB", "fits", "tokens/s", "minutes", "USD",
    )  # fmt: skip
    cells = []
    for one in sorted(shown, key=lambda one: (one.setup.method, not one.fits, one.seconds or one.flops)):
        setup = one.setup
        pure = " pure" if setup.method == "full" and not setup.masters else ""
        cells.append(
            (
                setup.method, "with" if setup.checkpointing else "without", setup.micro_batch, setup.pack_length,
                f"{setup.optimizer}{pure}", round(one.peak_bytes / 1024**3, 1), round(one.needed_bytes / 1024**3, 1),
                "yes" if one.fits else "no", None if one.tokens_per_second is None else round(one.tokens_per_second),
                None if one.minutes is None else round(one.minutes, 1), one.usd,
            )
        )  # fmt: skip
    print_table(columns, cells)
    sample = " Compared on a sample of the rows." if any(one.layout.sampled for one in shown) else ""
    click.echo(
        f"needs: the peak and its margin, of {card.usable_bytes / 1024**3:.1f} GiB that {card.label} has to give.{sample}"
    )


def _next(one: Forecast, model: str, data: str | None, dataset: str | None, selection: str | None) -> None:
    """The training that this forecast is of."""
    import shlex

    setup = one.setup
    folder = model if Path(model).is_dir() else "FOLDER"
    named = (("--data", data), ("--dataset", dataset), ("--selection", selection))
    source = " ".join(f"{option} {shlex.quote(value)}" for option, value in named if value is not None)
    checkpointing = "--checkpointing" if setup.checkpointing else "--no-checkpointing"
    eight = " --optimizer adamw_8bit" if setup.optimizer == "adamw_8bit" else ""
    pure = " --pure" if setup.method == "full" and not setup.masters else ""
    note(
        f"next: alpasift train --model {shlex.quote(folder)}{f' {source}' if source else ''} --method {setup.method} "
        f"--micro-batch {setup.micro_batch} --pack-length {setup.pack_length} {checkpointing}{eight}{pure} -o runs/NAME"
    )
