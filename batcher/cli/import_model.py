"""The command `import-model`: a GGUF file as a folder that can be trained. Parses, calls `import_gguf`, prints."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from alpasift.batcher.cli.options import json_option
from alpasift.batcher.cli.printing import note, print_json

if TYPE_CHECKING:
    from alpasift.train.gguf_import.import_model import DataType


@click.command("import-model")
@click.argument("model", metavar="MODEL.gguf")
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path))
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Of the weights written. Default: float32 below a billion weights, bfloat16 above.",
)
@json_option
def import_model_command(model: str, folder: Path, dtype: DataType | None, form: str | None) -> None:
    """Write a GGUF file as a model folder for transformers: dequantised weights, tokenizer and chat template.

    For labs that have a model only as a GGUF file and want to train it. Token ids of a thousand texts and the logits
    are compared with llama.cpp's on the file; where they differ nothing is written. MODEL is a path, or smollm2-135m.

    \b
    Example:
      alpasift import-model smollm2-135m models/smollm2-135m
      alpasift import-model qwen2.5-0.5b-instruct-q8_0.gguf models/qwen2.5-0.5b
    """
    from alpasift.graders.local.model_folders import ModelFilesError
    from alpasift.graders.local.packaged_models import gguf_path
    from alpasift.train.artifacts import TrainError
    from alpasift.train.gguf_import.import_model import import_gguf

    try:
        source = gguf_path(model)
    except ModelFilesError as error:
        raise TrainError(str(error)) from error
    done = import_gguf(source, folder, data_type=dtype, report=note)
    if form:
        print_json(asdict(done))
        return
    found = done.difference
    click.echo(f"wrote {done.path}: {done.weights:,} weights in {done.data_type}, tokenizer and chat template")
    click.echo(f"token ids equal llama.cpp's: {done.tokens:,} tokens of {done.texts:,} texts")
    click.echo(
        f"logits differ from llama.cpp's by {found.mean_abs:.2g} on average, KL divergence {found.mean_kl:.2g} nats a "
        f"token, over {found.tokens:,} tokens; llama.cpp computes quantised weights with 8-bit activations"
    )
    for remark in done.remarks:
        click.echo(f"note: {remark}")
    note(f"next: alpasift train --model {done.path} --data kept.json -o run")
