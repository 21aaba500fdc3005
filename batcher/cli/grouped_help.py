"""The help of a command with many options: under headings that say what each is about, in the order one meets them."""

from __future__ import annotations

import re
from pathlib import Path

import click

from alpasift.batcher.cli.options import API_SETTINGS, VLLM_SETTINGS

_GROUPS: dict[str, tuple[str, ...]] = {
    "Rows": (
        "data",
        "dataset",
        "selection",
        "limit",
        "count",
        "explain_near",
        "retry",
        "keep_going",
        "sample",
        "seed",
    ),
    "File": ("split", "row_format", "mapping", "strict", "encoding"),
    "Grading": (
        "grader",
        "graders",
        "cheap",
        "reference",
        "rubric",
        "reference_rubric",
        "threshold",
        "reference_threshold",
        "by",
        "combine",
        "answer_format",
        "samples",
        "temperature",
        "max_hours",
        "max_usd",
        "local_only",
        "executed_by",
    ),
    "Selection": (
        "min_score",
        "top",
        "keep_share",
        "calibrated",
        "where",
        "random_",
        "longest",
        "shortest",
        "match",
        "quota",
        "nested",
        "name",
    ),
    "Cost": ("budget", "run_budget", "usd_per_hour", "yes", "rehearse"),
    "Training": (
        "recipe",
        "method",
        "epochs",
        "steps",
        "batch",
        "max_length",
        "learning_rate",
        "template",
        "save_every",
        "fresh",
    ),
    "Adapter": ("rank", "alpha", "lora_dropout", "targets", "adapter_precision"),
    "Memory and speed": ("micro_batch", "pack_length", "checkpointing", "precision", "optimizer", "pure"),
    "Output": ("output", "rejected", "figures", "force", "form", "quiet", "history", "no_wait"),
    "API graders": API_SETTINGS,
    "vLLM": VLLM_SETTINGS,
}
_HEADING = {name: heading for heading, names in _GROUPS.items() for name in names}
_FIRST = "Options"


class GroupedCommand(click.Command):
    """A command whose help lists its options under headings. One that has no heading stands first."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does it; a file or a dataset where the command takes none is told what to do with it."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            extra = re.fullmatch(r"Got unexpected extra argument \((.+)\)", error.message)
            params = self.get_params(ctx)
            takes_one = any(isinstance(param, click.Argument) for param in params)
            if extra is None or takes_one or not any(param.name == "dataset" for param in params):
                raise
            given = extra[1]
            then = f"import it first: alpasift import {given}, and name the dataset with --dataset"
            message = f"{self.name} takes no file; {then}" if Path(given).exists() else None
            raise click.UsageError(message or f"{error.message}; to name a dataset: --dataset {given}", ctx) from error

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {heading: [] for heading in (_FIRST, *_GROUPS)}
        vllm = any(param.name == "tensor_parallel" for param in self.get_params(ctx))  # `fit` has --gpu-memory too
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                heading = _HEADING.get(param.name or "", _FIRST)
                groups[heading if heading != "vLLM" or vllm else _FIRST].append(record)
        groups[_FIRST].sort(key=lambda record: record[0].startswith("-h,"))
        groups["Output"] += [record for record in groups[_FIRST] if record[0].startswith("-h,")]
        groups[_FIRST] = [record for record in groups[_FIRST] if not record[0].startswith("-h,")]
        for heading, records in groups.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)
