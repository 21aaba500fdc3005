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


def with_hint(error: click.UsageError) -> click.UsageError:
    """The same error; that of an unknown option names what the command has in its place."""
    if not isinstance(error, click.NoSuchOption) or error.ctx is None:
        return error
    command, name = error.ctx.command, error.option_name
    if command.name == "query" and name.startswith("--"):
        written = f"a parameter of a query is written without dashes: {name[2:]}=VALUE"
        return click.UsageError(f"No such option '{name}'; {written}", error.ctx)
    offered = {option for param in command.get_params(error.ctx) for option in param.opts}
    meant = [one for one in _MEANT.get(name, ()) if one in offered]
    return click.UsageError(f"No such option '{name}'. Did you mean '{meant[0]}'?", error.ctx) if meant else error
