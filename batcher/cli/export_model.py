"""The command `export-model`: write a trained model for those who serve it. Parses, calls `export_model`, prints."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alpasift.batcher.cli.printing import note, print_json

if TYPE_CHECKING:
    from alpasift.train.export.export import Exported, Form, Quantisation
    from alpasift.train.export.merge import MergeInto
    from alpasift.train.models import Precision


@click.command("export-model")
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    "out",
    required=True,
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Output folder, or with --form gguf a .gguf file; replaces an earlier export of this training.",
)
@click.option(
    "--form",
    "form",
    type=click.Choice(["adapter", "merged", "gguf"]),
    default="merged",
    show_default=True,
    help="The LoRA adapter, merged weights as safetensors, or one GGUF file for llama.cpp.",
)
@click.option(
    "--quantisation",
    type=click.Choice(["f16", "bf16", "q8_0", "q4_k_m"]),
    help="Quantisation of a GGUF file: 16, 16, 8.5 or about 5 bits per weight. Default: f16 below a billion weights, "
    "else q8_0.",
)
@click.option(
    "--merge-into",
    type=click.Choice(["original", "dequantised"]),
    default="original",
    show_default=True,
    help="Base to merge into: the original weights, or the 4-bit weights of qlora, dequantised.",
)
@click.option(
    "--base", metavar="DIR", type=click.Path(path_type=Path), help="Folder of the base model, if it was moved."
)
@click.option(
    "--precision", type=click.Choice(["bf16", "fp16", "fp32"]), help="Precision of merged weights. Default: as trained."
)
@click.option("--device", default="cpu", show_default=True, metavar="NAME", help="Device to compute on: cpu or cuda.")
@click.option(
    "--force", is_flag=True, help="Replace an export of another training, or a GGUF file that is not an export."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def export_model_command(
    run: Path,
    out: Path,
    form: Form,
    quantisation: Quantisation | None,
    merge_into: MergeInto,
    base: Path | None,
    precision: Precision | None,
    device: str,
    force: bool,
    as_json: bool,
) -> None:
    """Write a trained model as adapter, merged weights or GGUF, and measure how far it is from the trained one.

    RUN is the folder that `alpasift train -o` wrote, or an export. The output is complete or absent, however it ends.

    \b
    Example:
      alpasift export-model runs/kept -o models/kept
      alpasift export-model runs/kept -o kept.gguf --form gguf --quantisation q4_k_m
      alpasift export-model runs/kept -o models/kept-adapter --form adapter
    """
    from alpasift.train.export.export import export_model

    done = export_model(
        run,
        out,
        form,
        base=base,
        merge_into=merge_into,
        quantisation=quantisation,
        precision=precision,
        device=device,
        force=force,
        report=note,
    )
    if as_json:
        facts = {key: value for key, value in done.facts.items() if key != "chat_template"}
        print_json({**asdict(done), "facts": facts, "bytes": done.bytes_written, "next": _next(done)})
        return
    _print(done)


def _print(done: Exported) -> None:
    from alpasift.train.export.disk import size

    forms = {"adapter": "adapter", "merged": "merged weights", "gguf": f"GGUF, {done.facts.get('quantisation')}"}
    click.echo(f"wrote {done.path}: {forms[done.form]}, {size(done.bytes_written)}")
    if done.facts.get("merge_into"):
        click.echo(f"merged into the {done.facts['merge_into']} base, in {done.facts['precision']}")
    for name in ("merged_difference", "difference"):
        if found := done.facts.get(name):
            click.echo(_difference_line(found))
    for remark in done.facts.get("remarks", ()):
        click.echo(f"note: {remark}")
    note(f"next: {_next(done)}")


def _difference_line(found: dict[str, Any]) -> str:
    return (
        f"logits of {found['of']}: differ by max {found['max_abs']:.2g}, mean {found['mean_abs']:.2g}, KL "
        f"divergence {found['mean_kl']:.2g} nats per token, over {found['tokens']:,} tokens"
    )


def _next(done: Exported) -> str:
    """What to run with it."""
    if done.form == "gguf":
        return f"alpasift grade --grader llama_cpp:{done.path}"
    if done.form == "merged":
        return f"alpasift grade --grader vllm:{done.path}, or vllm serve {done.path}"
    base = done.facts["base"]
    return (
        f"alpasift grade --grader vllm:{base}+{done.path}, or vllm serve {base} --enable-lora "
        f"--lora-modules trained={done.path} --max-lora-rank {done.facts['max_lora_rank']} "
        f"--chat-template {done.path / 'chat_template.jinja'}"
    )
