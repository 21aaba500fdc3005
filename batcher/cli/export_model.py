"""The command that writes a trained model for those who serve it: export-model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batcher.cli.printing import note, print_json

if TYPE_CHECKING:
    from train.export import Exported, Form, Into, Quantisation
    from train.models import Precision


@click.command("export-model")
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "out", required=True, metavar="PATH", type=click.Path(path_type=Path),
    help="A folder, or for --form gguf a file that ends in .gguf; an older export there is replaced.",
)  # fmt: skip
@click.option(
    "--form", "form", type=click.Choice(["adapter", "merged", "gguf"]), default="merged", show_default=True,
    help="The adapter alone, the whole model as safetensors, or one file for llama.cpp.",
)  # fmt: skip
@click.option(
    "--quantisation", type=click.Choice(["f16", "bf16", "q8_0", "q4_k_m"]), default="q8_0", show_default=True,
    help="Of a GGUF file's weights: 16, 16, 8.5 or about 5 bits each.",
)  # fmt: skip
@click.option(
    "--merge-into", type=click.Choice(["original", "dequantised"]), default="original", show_default=True,
    help="What an adapter is added to: the base as published, or the 4-bit one that qlora trained beside, turned back.",
)  # fmt: skip
@click.option("--base", metavar="DIR", type=click.Path(path_type=Path), help="Where the base model lies now, if moved.")
@click.option(
    "--precision", type=click.Choice(["bf16", "fp16", "fp32"]), help="Of merged weights; as trained if not given."
)
@click.option("--device", default="cpu", show_default=True, metavar="NAME", help="Where it is computed: cpu, cuda.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def export_model_command(
    run: Path, out: Path, form: Form, quantisation: Quantisation, merge_into: Into, base: Path | None,
    precision: Precision | None, device: str, as_json: bool,
) -> None:  # fmt: skip
    """Write a trained model as adapter, merged weights or GGUF, and measure how far it is from what was trained.

    RUN is the folder that `alpasift train -o` wrote, or an export. What is written is whole or not there, however it ends.

    \b
    Example:
      alpasift export-model runs/kept -o models/kept
      alpasift export-model runs/kept -o kept.gguf --form gguf --quantisation q4_k_m
      alpasift export-model runs/kept -o models/kept-adapter --form adapter
    """
    from train.export import export_model

    done = export_model(
        run, out, form, base=base, merge_into=merge_into, quantisation=quantisation, precision=precision, device=device,
        say=note,
    )  # fmt: skip
    if as_json:
        facts = {key: value for key, value in done.facts.items() if key != "chat_template"}
        print_json({**asdict(done), "facts": facts, "bytes": _bytes(done), "next": _next(done)})
        return
    _print(done)


def _print(done: Exported) -> None:
    from train.export import size

    what = {"adapter": "adapter", "merged": "merged weights", "gguf": f"GGUF, {done.facts.get('quantisation')}"}[
        done.form
    ]
    click.echo(f"wrote {done.path}: {what}, {size(_bytes(done))}")
    if done.facts.get("merge_into"):
        click.echo(f"merged into the {done.facts['merge_into']} base, in {done.facts['precision']}")
    for name in ("merged_difference", "difference"):
        if found := done.facts.get(name):
            click.echo(_told(found))
    for remark in done.facts.get("remarks", ()):
        click.echo(f"note: {remark}")
    note(f"next: {_next(done)}")


def _told(found: dict[str, Any]) -> str:
    return (
        f"logits of {found['of']}: apart by {found['max_abs']:.2g} at most and {found['mean_abs']:.2g} on average, KL divergence "
        f"{found['mean_kl']:.2g} nats a token, over {found['tokens']:,} tokens"
    )


def _bytes(done: Exported) -> int:
    if done.path.is_file():
        return done.path.stat().st_size
    return sum(file.stat().st_size for file in done.path.rglob("*") if file.is_file())


def _next(done: Exported) -> str:
    """What to run with it."""
    if done.form == "gguf":
        return f"alpasift grade --grader llama_cpp:{done.path}"
    if done.form == "merged":
        return f"alpasift grade --grader vllm:{done.path}, or vllm serve {done.path}"
    base = done.facts["base"]
    return (
        f"alpasift grade --grader vllm:{base}+{done.path}, or vllm serve {base} --enable-lora --lora-modules trained={done.path} "
        f"--max-lora-rank {done.facts['max_lora_rank']} --chat-template {done.path / 'chat_template.jinja'}"
    )
