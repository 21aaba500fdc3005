"""The command that puts every free score beside labels and beside output length: bench-graders."""

from __future__ import annotations

from dataclasses import asdict
from decimal import Decimal
from typing import TYPE_CHECKING

import click

from alpasift.batcher.cli.numbers import NUMBER
from alpasift.batcher.cli.options import dataset_option, json_option
from alpasift.batcher.cli.printing import note, number, percent, plain, print_json, print_table
from alpasift.batcher.cli.reports import print_read_again, show_figure

if TYPE_CHECKING:
    from alpasift.batcher.grading.bench import Bench


@click.command("bench-graders")
@dataset_option
@click.option(
    "--reference",
    "named",
    multiple=True,
    metavar="NAME",
    help="Grades to compare with: labels:NAME, or a grader. Repeatable. Default: all imported labels.",
)
@click.option("--reference-rubric", metavar="R", help="The reference's rubric, if it graded by several.")
@click.option(
    "--threshold", type=NUMBER, metavar="X", help="The reference keeps rows from this score. Default: its rubric's own."
)
@click.option(
    "--keep-share", type=NUMBER, metavar="S", help="Rows kept to count keepers: .1 for 10 %. Default: the reference's."
)
@json_option
@click.pass_obj
def bench_graders_command(
    db: str,
    dataset: str | None,
    named: tuple[str, ...],
    reference_rubric: str | None,
    threshold: Decimal | None,
    keep_share: Decimal | None,
    form: str | None,
) -> None:
    """Compare every score that cost nothing with labels, and with output length. Sends nothing.

    Each score orders the rows. AUC is for the highest first; the other columns take the end that does better.

    \b
    Example:
      alpasift bench-graders
      alpasift bench-graders --reference labels:people --keep-share .1
    """
    from alpasift.batcher.data.versions import resolve
    from alpasift.batcher.grading.bench import bench, references
    from alpasift.batcher.store import Store

    if keep_share is not None and not 0 < keep_share < 1:
        raise click.UsageError(f"--keep-share {keep_share}: a share between 0 and 1, such as .1")
    store = Store(db).existing()
    print_read_again(store)
    version = resolve(store, dataset)
    with store.reader():  # opened once for all that is asked
        found = [
            bench(store, version.version_id, one, reference_rubric, threshold=threshold, keep_share=keep_share)
            for one in named or references(store, version.version_id)
        ]
    if form:
        print_json([{"dataset": version.label, **asdict(one)} for one in found])
    else:
        for one in found:
            _print(version.label, one)
    note("next: alpasift select --grader NAME --keep-share .1 --name best, or alpasift agree NAME REFERENCE")


def _print(dataset: str, found: Bench) -> None:
    reference = found.reference
    click.echo(
        f"{plain(dataset)}: {plain(reference.grader)} keeps {found.keepers:,} of {found.rows:,} distinct rows, from "
        f"{number(reference.threshold)}"
    )
    table = [
        (
            plain(one.title),
            f"{one.rows:,}",
            show_figure(one.auc),
            one.end,
            show_figure(one.lead) if place else "",
            "" if one.found is None else percent(one.found),
        )
        for place, one in enumerate(found.scores)
    ]
    keepers = f"keepers in {percent(found.keep_share)}"
    print_table(("score", "rows", "AUC, highest first", "better end", "AUC less that of length", keepers), table)
    for line in found.messages:
        click.echo(f"- {plain(line)}")
    click.echo()
