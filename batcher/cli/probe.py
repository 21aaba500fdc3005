"""The command that grades a random sample and projects it to the whole: probe."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from alpasift.batcher.cli.consent import ask_consent
from alpasift.batcher.cli.grouped_help import GroupedCommand
from alpasift.batcher.cli.options import (
    grader_options,
    import_options,
    json_option,
    quiet_option,
    rubric_option,
    spending_options,
)
from alpasift.batcher.cli.printing import note, number, percent, plain, print_json, progress_line
from alpasift.batcher.cli.reports import print_histogram, print_import, print_opened, print_prediction, print_read_again
from alpasift.batcher.engine.progress import duration

if TYPE_CHECKING:
    from alpasift.batcher.data.importing import Imported
    from alpasift.batcher.data.versions import DatasetVersion
    from alpasift.batcher.engine.run_task import Caps
    from alpasift.batcher.planning.run_probe import Probed


@click.command("probe", cls=GroupedCommand)
@click.argument("file", required=False, type=click.Path(), metavar="[FILE]")
@click.option("--dataset", metavar="NAME", help="Dataset (NAME or NAME@2); with FILE, the name to import it as.")
@click.option(
    "-n", "count", default=100, show_default=True, type=click.IntRange(1), metavar="N", help="Rows to sample."
)
@click.option(
    "--grader", required=True, metavar="SPEC", help="openai_batch:MODEL, llama_cpp:model.gguf, fake, or auto."
)
@rubric_option
@click.option("--seed", default=0, show_default=True, type=int, help="Random seed of the sample.")
@click.option(
    "--now", is_flag=True, help="Call openai_batch:MODEL synchronously at full price: minutes instead of hours."
)
@import_options
@spending_options
@grader_options
@quiet_option
@json_option
@click.pass_obj
def probe_command(
    db: str,
    file: str | None,
    dataset: str | None,
    count: int,
    grader: str,
    rubric: str | None,
    seed: int,
    now: bool,
    reading: dict[str, Any],
    caps: Caps,
    yes: bool,
    settings: dict[str, Any],
    asking: dict[str, Any],
    quiet: bool,
    form: str | None,
) -> int:
    """Grade a random sample and project: scores, kept share, cost and kept rows of the whole dataset.

    The grades stay: a later `alpasift grade` by the same grader grades the other rows only.

    \b
    Example:
      alpasift probe data.json -n 100 --grader openai_batch:gpt-4.1-nano --now --budget 5
      alpasift probe --dataset alpaca -n 200 --grader llama_cpp:model.gguf
    """
    from alpasift.batcher.data.importing import import_file
    from alpasift.batcher.data.versions import resolve
    from alpasift.batcher.grading.open_grader import kind
    from alpasift.batcher.planning.auto import grader_for
    from alpasift.batcher.planning.run_probe import probe, synchronous
    from alpasift.batcher.store import Store

    spec = synchronous(grader) if now else grader
    if spec is None:
        raise click.UsageError(f"--now calls openai_batch:MODEL synchronously; {grader} is synchronous already")
    version: DatasetVersion | Imported
    if file is not None:
        store = Store(db)
        version = import_file(store, file, dataset=dataset, **reading)
        print_import(version)
    else:
        store = Store(db).existing()
        print_read_again(store)
        version = resolve(store, dataset)
    whole_by = "batch" if kind(grader) == "openai_batch" else "calls"
    with grader_for(store, version.version_id, spec, rubric, settings, asking) as opened:
        print_opened(opened, store, version.version_id)
        with progress_line(quiet) as progress:
            found = probe(
                store,
                version.version_id,
                opened,
                count,
                seed,
                caps,
                whole_by=whole_by,
                confirm=ask_consent(yes),
                progress=progress,
            )
    print_prediction(store, found.summary.run_id)
    if found.summary.message:
        note(f"  {found.summary.message}")
    if form:
        print_json(_as_json(version, found))
    else:
        _print(version.label, found)
    if found.summary.outcome != "done":
        note("not finished: the figures above cover the rows graded so far; the same command resumes")
        return 4
    note(f"next: alpasift grade --grader {plain(grader)} --dataset {version.label}")
    return 0


def _as_json(version: DatasetVersion | Imported, found: Probed) -> dict[str, Any]:
    summary, projected, whole = found.summary, found.findings, found.findings.projection
    return {
        "dataset": version.label,
        "rows": version.rows,
        "distinct_rows": whole.rows,
        "grader": found.run.grader,
        "rubric": found.run.rubric,
        "seed": found.seed,
        "outcome": summary.outcome,
        "answered_before": found.graded_before,
        "seconds": summary.seconds,
        "sample": whole.sample,
        "answered": whole.answered,
        "unread": whole.unread,
        "unread_share": found.unread_share,
        "threshold": projected.threshold,
        "histogram": projected.histogram,
        "kept": whole.kept,
        "share": asdict(whole.share),
        "kept_rows": asdict(whole.kept_rows),
        "rows_left": projected.left,
        "probe_usd": projected.usd,
        "whole_usd": projected.whole_usd,
        "way": projected.way,
        "to_go": {way: asdict(cost) for way, cost in projected.to_go.items()},
        "seconds_to_go": found.seconds_to_go,
    }


def _print(dataset: str, found: Probed) -> None:
    """The histogram, then a line each for what is kept, what has no readable score, dollars and time."""
    from alpasift.batcher.planning.choice import dollars
    from alpasift.graders.prompts.rubric import MEASURED

    summary, projected, whole = found.summary, found.findings, found.findings.projection
    sampled = f"{len(found.sample.positions):,} random rows of {found.sample.rows:,} distinct ones"
    print_histogram(
        f"{dataset}: {sampled} (seed {found.seed})", found.run.grader, found.run.rubric, projected.histogram
    )
    if whole.answered:
        share, kept = whole.share, whole.kept_rows
        unread = percent(found.unread_share or 0)
        if found.run.rubric.partition("@")[0] not in MEASURED:  # those have no threshold
            click.echo(
                f"kept at {number(projected.threshold)} or more: {percent(share.value)} "
                f"({percent(share.low)} to {percent(share.high)}), "
                f"that is {kept.value:,} of {whole.rows:,} rows ({kept.low:,} to {kept.high:,})"
            )
        click.echo(f"without a readable score: {unread} ({whole.unread:,} of {whole.answered:,})")
    for way, cost in projected.to_go.items():
        how = {"batch": " by batch", "calls": " synchronously"}.get(way, "")
        likely = f"{dollars(cost.usd_low)} to {dollars(cost.usd_high)}"
        click.echo(f"the other {projected.left:,} rows{how}: {dollars(cost.usd)} ({likely})")
    if projected.whole_usd is not None:
        click.echo(f"the whole: {dollars(projected.whole_usd)}, of which this probe {dollars(projected.usd)}")
    seconds = found.seconds_to_go
    at_pace = "" if seconds is None else f"; at this rate {duration(seconds)} for the rest"
    before = f", {found.graded_before:,} were graded before" if found.graded_before else ""
    click.echo(f"time: {summary.replied:,} answers in {duration(summary.seconds)}{before}{at_pace}")
