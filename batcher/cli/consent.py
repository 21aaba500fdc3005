"""Consent: what a run will cost is shown and asked about before anything that costs money is sent."""

from __future__ import annotations

import sys
from typing import IO, TYPE_CHECKING

import click

from alpasift.batcher.cli.printing import note
from alpasift.batcher.termination import exit_code

if TYPE_CHECKING:
    from alpasift.batcher.engine.run_task import Confirm
    from alpasift.graders import Backend, Estimate


def ask_consent(yes: bool) -> Confirm:
    """What to call before spending: shows the estimate, and asks unless `yes`. Raises Cancelled for a no."""

    def confirm(backend: Backend, estimate: Estimate) -> None:
        from alpasift.batcher.engine.consent import spending_offer

        offer = spending_offer(backend, estimate)
        note(str(offer))
        for line in offer.notes:
            note(f"  {line}")
        if yes:
            return
        if not sys.stdin.isatty():
            raise Cancelled(
                "this costs money and needs confirmation, but stdin is not a terminal; add --yes. Nothing was sent."
            )
        try:
            agreed = click.confirm("Spend it?", err=True)
        except click.Abort as error:  # Ctrl-C at the question
            click.echo(err=True)
            note("Cancelled. Nothing was sent.")
            raise click.exceptions.Exit(exit_code()) from error
        if not agreed:
            raise Cancelled("Cancelled. Nothing was sent.")

    return confirm


class Cancelled(click.ClickException):
    """Nobody agreed to the cost; a message without usage hints, since nothing about the command was wrong."""

    exit_code = 2

    def show(self, file: IO[str] | None = None) -> None:
        note(self.message)
