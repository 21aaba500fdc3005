"""What to write instead of an option that a command does not have, where its spelling alone does not tell."""

from __future__ import annotations

import click

_MEANT = {
    "--threshold": ("--min-score",),
    "--score": ("--min-score",),
    "--out": ("--output",),
    "--max-rows": ("--limit",),
    "--rows": ("--limit", "--top"),
    "--n": ("--limit", "--top"),
    "--model": ("--grader",),
    "--judge": ("--grader",),
    "--max-usd": ("--budget",),
    "--max-cost": ("--budget",),
    "--as": ("--name", "--dataset"),
}
"""Names that other tools have for options of ours, and ours: the first that the command has is meant."""


def add_hint(error: click.UsageError) -> None:
    """Add to the message of an unknown option what the command has in its place. Changes nothing else."""
    if not isinstance(error, click.NoSuchOption) or error.ctx is None:
        return
    command = error.ctx.command
    if command.name == "query" and error.option_name.startswith("--"):
        error.message += f" A parameter of a query is written without dashes: {error.option_name[2:]}=VALUE."
        return
    offered = {option for param in command.get_params(error.ctx) for option in param.opts}
    meant = [name for name in _MEANT.get(error.option_name, ()) if name in offered]
    if meant:
        error.possibilities = meant[:1]
