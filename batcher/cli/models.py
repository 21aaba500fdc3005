"""The command that lists local graders worth trying: models. It opens no model and connects to nothing."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batcher.cli.printing import note, print_json, print_table

if TYPE_CHECKING:
    from batcher.models import Catalogue, Device, Model, Validity


@click.command("models")
@click.argument("name", required=False, metavar="[NAME]")
@click.option(
    "--card", default="rtx-4090", show_default=True, metavar="NAME", help="A card of 24 GB: rtx-4090, rtx-3090, l4."
)
@click.option(
    "--card-tflops", type=click.FloatRange(0, min_open=True), metavar="X", help="Of another card: dense bf16."
)
@click.option(
    "--card-gbs", type=click.FloatRange(0, min_open=True), metavar="X", help="Its memory bandwidth, GB a second."
)
@click.option("--cpu-gflops", type=click.FloatRange(0, min_open=True), metavar="X", help="This CPU's peak, float32.")
@click.option(
    "--cpu-gbs", type=click.FloatRange(0, min_open=True), metavar="X", help="Its memory bandwidth, GB a second."
)
@click.option("--tokens-per-row", type=click.IntRange(1), metavar="N", help="Your rows' own tokens, on average.")
@click.option("--rubric-tokens", type=click.IntRange(0), metavar="N", help="Tokens of the rubric, shared by all rows.")
@click.option(
    "--prices", metavar="FILE", help="Prices of your own (prices.toml) for the API model; also ALPASIFT_PRICES."
)
@click.option("--json", "form", flag_value="json", help="Print JSON.")
@click.pass_obj
def models_command(
    db: str, name: str | None, card: str, card_tflops: float | None, card_gbs: float | None, cpu_gflops: float | None,
    cpu_gbs: float | None, tokens_per_row: int | None, rubric_tokens: int | None, prices: str | None, form: str | None,
) -> None:  # fmt: skip
    """Local graders worth trying: licence, memory, predicted speed, and what a calibration here has measured of them.

    The list is dated and comes with the program. Speed is predicted by a formula, not measured. With NAME all that is known
    of one model, where each fact is from, and how to get it.

    \b
    Example:
      alpasift models
      alpasift models --card l4 --tokens-per-row 200
      alpasift models phi-4
    """
    from batcher.models import catalogue, changed, find, validities
    from batcher.store import Store

    known = changed(
        catalogue(), tokens_per_row=tokens_per_row, rubric_tokens=rubric_tokens, cpu_gflops=cpu_gflops,
        cpu_gb_per_second=cpu_gbs,
    )  # fmt: skip
    if card not in known.cards:
        raise click.UsageError(
            f"--card {card}: there are {', '.join(known.cards)}; or give --card-tflops and --card-gbs"
        )
    device = _device(known.cards[card], card_tflops, card_gbs)
    chosen = [find(known, name)] if name else list(known.models)
    found = validities(Store(db).existing()) if Path(db).exists() else []
    rows = [_row(model, device, known, found) for model in chosen]
    api = None if name else _api(known, prices or _own_prices(db), found)
    if form:
        print_json({
            "date": known.dated, "predicted": "not measured", "card": asdict(device), "cpu": asdict(known.cpu),
            "assumptions": asdict(known.assumed), "models": rows, "api": api,
        })  # fmt: skip
        return
    if name:
        _print_one(chosen[0], rows[0], device)
        return
    _print_all(known, device, rows, api, len(found))


def _device(card: Device, tflops: float | None, gbs: float | None) -> Device:
    if tflops is None and gbs is None:
        return card
    if tflops is None or gbs is None:
        raise click.UsageError("--card-tflops and --card-gbs belong together")
    return replace(
        card, name="given", label="your card", flops=tflops * 1e12, bytes_per_second=gbs * 1e9, source="given"
    )


def _own_prices(db: str) -> str | None:
    from graders.prices import find_overrides

    found = find_overrides(Path(db).absolute().parent)
    return str(found) if found else None


def _row(model: Model, card: Device, known: Catalogue, found: list[Validity]) -> dict[str, Any]:
    """One model as JSON has it."""
    from batcher.models import fits, measured, on_card, on_cpu

    gpu, cpu, validity = on_card(model, card, known), on_cpu(model, known), measured(found, model.id)
    return {
        **asdict(model), "cache_bytes_per_token": model.cache_bytes_per_token,
        "gpu": {**asdict(gpu), "fits_24_gb": fits(gpu, card)}, "cpu": asdict(cpu),
        "measured": asdict(validity) if validity else None,
    }  # fmt: skip


def _api(known: Catalogue, prices: str | None, found: list[Validity]) -> dict[str, Any]:
    """The usual API model beside them; without a price the reason, never a guess."""
    from batcher.models import api_usd_per_1000, measured
    from graders.prices import PriceError, price_of

    validity = measured(found, known.api_model)
    row: dict[str, Any] = {
        "model": known.api_model, "grader": known.api_grader, "batch_usd_per_1000_rows": None, "price_from": None, "why_not": None,
        "measured": asdict(validity) if validity else None,
    }  # fmt: skip
    try:
        price = price_of(known.api_model, batch=True, overrides=Path(prices) if prices else None)
    except PriceError as error:
        return {**row, "why_not": str(error)}
    usd = format(api_usd_per_1000(price, known.assumed).normalize(), "f")
    return {**row, "batch_usd_per_1000_rows": usd, "price_from": f"{price.source}, {price.dated}"}


def _print_all(
    known: Catalogue, card: Device, rows: list[dict[str, Any]], api: dict[str, Any] | None, found: int
) -> None:
    cpu = known.cpu.label
    columns = (
        "model", "licence", "parameters", "context", "GPU", "GB", f"rows/s {card.label}", "CPU", "GB", f"rows/s {cpu}",
        "measured validity",
    )  # fmt: skip
    print_table(columns, [_cells(row) for row in rows])
    a = known.assumed
    click.echo(
        f"\nrows/s and GB are predicted, not measured: {a.tokens_per_row} tokens a row and {a.rubric_tokens} of the rubric, shared; "
        f"{card.label} {card.flops / 1e12:.4g} TFLOP/s and {card.bytes_per_second / 1e9:.4g} GB/s, CPU ({cpu}) "
        f"{known.cpu.flops / 1e9:.4g} GFLOP/s and {known.cpu.bytes_per_second / 1e9:.4g} GB/s, of which {a.compute_share:.0%} "
        f"and {a.bandwidth_share:.0%} are reached. List of {known.dated}; facts marked * no page was found for."
    )
    for row in rows:
        if row["restriction"]:
            click.echo(f"{row['name']}, {row['licence']}: {row['restriction']}")
    if api is not None:
        click.echo(_api_says(api))
    if not found:
        note("measured validity is empty: no calibration stands in this database (`alpasift calibrate` makes one)")
    note(
        "next: alpasift models NAME tells where to download one, then alpasift grade --grader vllm:FOLDER or llama_cpp:FILE.gguf"
    )


def _cells(row: dict[str, Any]) -> list[str]:
    total, active = row["parameters"] / 1e9, row["active"] / 1e9
    star = dict.fromkeys(row["unverified"], "*")
    shape = "*" if {"parameters", "layers", "kv_heads", "head_dim"} & set(star) else ""
    size = f"{total:.1f}B" if row["active"] == row["parameters"] else f"{total:.1f}B, {active:.1f}B active"
    gpu, cpu = row["gpu"], row["cpu"]
    card = f"{_rate(gpu['rows_per_second'])}" if gpu["fits_24_gb"] else "does not fit"
    return [
        row["name"], row["licence"] + star.get("licence", ""), size + star.get("parameters", ""),
        f"{row['context']:,}" + star.get("context", ""), gpu["quantisation"], f"{gpu['memory_bytes'] / 1e9:.1f}{shape}", card,
        cpu["quantisation"], f"{cpu['memory_bytes'] / 1e9:.1f}{shape}", _rate(cpu["rows_per_second"]), _measured(row["measured"]),
    ]  # fmt: skip


def _rate(rows_per_second: float) -> str:
    return f"{rows_per_second:.2g}" if rows_per_second < 100 else f"{rows_per_second:,.0f}"


def _measured(found: dict[str, Any] | None) -> str:
    """AUC with its interval and day; empty where nobody has measured."""
    if found is None:
        return ""
    if found["auc"] is None:
        return f"no AUC ({found['measured_at']:%Y-%m-%d})"
    interval = f" ({found['auc_low']:.2f} to {found['auc_high']:.2f})" if found["auc_low"] is not None else ""
    return f"AUC {found['auc']:.2f}{interval}, {found['measured_at']:%Y-%m-%d}"


def _api_says(api: dict[str, Any]) -> str:
    if api["batch_usd_per_1000_rows"] is None:
        return f"the usual API model, {api['model']}: no price ({api['why_not']})"
    said = _measured(api["measured"])
    return (
        f"the usual API model, {api['model']}: ${float(api['batch_usd_per_1000_rows']):.4f} by batch for 1,000 such rows "
        f"({api['price_from']}); the rows leave this machine" + (f"; {said}" if said else "")
    )


def _print_one(model: Model, row: dict[str, Any], card: Device) -> None:
    """One model in full, and what to do to have it."""
    gpu, cpu = row["gpu"], row["cpu"]
    unsure = dict.fromkeys(model.unverified, " (unverified)")
    click.echo(f"{model.name}: {model.id}")
    lines = {
        "licence": model.licence + unsure.get("licence", ""),
        "restriction": model.restriction or "none beyond the licence's notice",
        "parameters": f"{model.parameters:,}, {model.active:,} active" + unsure.get("parameters", ""),
        "context": f"{model.context:,} tokens" + unsure.get("context", ""),
        "cache": f"{model.cache_bytes_per_token:,} bytes a token: {model.layers} layers, {model.kv_heads} KV heads of {model.head_dim}"
        + ("" if not {"layers", "kv_heads", "head_dim"} & set(unsure) else " (unverified)"),
        card.label: f"{gpu['quantisation']}, {gpu['memory_bytes']:,} bytes, {_rate(gpu['rows_per_second'])} rows/s, predicted, not "
        f"measured; {'fits' if gpu['fits_24_gb'] else 'does not fit'}",
        "CPU": f"{cpu['quantisation']}, {cpu['memory_bytes']:,} bytes, {_rate(cpu['rows_per_second'])} rows/s, predicted, not measured",
        "measured": _measured(row["measured"]) or "nothing yet in this database",
        "remark": model.remark,
    }  # fmt: skip
    for key, text in lines.items():
        click.echo(f"  {key}: {text}")
    for fact, source in model.sources.items():
        click.echo(f"  {fact} from: {source}")
    short = model.id.split("/")[1]
    quantised = " --quantization fp8" if model.gpu == "fp8" else ""
    click.echo("on a GPU:")
    click.echo(f"  hf download {model.gpu_repo or model.id} --local-dir {short}")
    click.echo(f"  alpasift grade --grader vllm:{short}{quantised}")
    click.echo("on a CPU:" + (" (the file's name is unverified)" if "gguf_file" in unsure else ""))
    click.echo(f"  hf download {model.gguf} {model.gguf_file} --local-dir .")
    click.echo(f"  alpasift grade --grader llama_cpp:{model.gguf_file}")
    note(
        f"next: python benchmarks/first_real_run.py llama_cpp:{model.gguf_file} --data FILE --labels FILE tells what its scores are worth"
    )
