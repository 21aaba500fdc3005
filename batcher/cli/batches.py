"""Commands about batches in flight: collect, cancel; and about batches carried manually: batch export, batch import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alpasift.batcher.cli.consent import ask_consent
from alpasift.batcher.cli.grouped_help import GroupedCommand
from alpasift.batcher.cli.options import (
    dataset_option,
    grader_options,
    json_option,
    limit_option,
    rubric_option,
    spending_options,
)
from alpasift.batcher.cli.printing import note, plain, print_alarms, print_json
from alpasift.batcher.cli.reports import print_read_again

if TYPE_CHECKING:
    from alpasift.batcher.engine.collect import Collected
    from alpasift.batcher.engine.run_task import Caps

wait_option = click.option("--wait", is_flag=True, help="Wait until no batch is in flight.")
poll_option = click.option("--poll-seconds", type=click.FloatRange(0), metavar="S", help="Poll every S seconds (30).")
grace_option = click.option(
    "--grace-seconds",
    type=click.FloatRange(0),
    metavar="S",
    help="Seconds to look for a batch whose creation was not confirmed (30).",
)


def _options(**given: Any) -> dict[str, Any]:
    return {k: v for k, v in given.items() if v is not None}


@click.command("collect")
@wait_option
@poll_option
@grace_option
@json_option
@click.pass_obj
def collect_command(
    db: str, wait: bool, poll_seconds: float | None, grace_seconds: float | None, form: str | None
) -> int:
    """Fetch the results of batches that have finished. Sends nothing new; `grade` does.

    \b
    Example:
      alpasift collect
    """
    from alpasift.batcher.engine.collect import collect
    from alpasift.batcher.store import Store

    options = _options(poll_seconds=poll_seconds, grace_seconds=grace_seconds)
    store = Store(db).existing()
    print_read_again(store)
    found = collect(store, options, wait=wait)
    return _print(found, form, "no batch is in flight; next: alpasift scores")


@click.command("cancel")
@click.argument("batch", required=False, metavar="[BATCH]")
@click.option("--all", "everything", is_flag=True, help="Cancel every batch in flight.")
@wait_option
@poll_option
@grace_option
@json_option
@click.pass_obj
def cancel_command(
    db: str,
    batch: str | None,
    everything: bool,
    wait: bool,
    poll_seconds: float | None,
    grace_seconds: float | None,
    form: str | None,
) -> int:
    """Cancel a batch in flight and book what it completed: the provider charges for finished rows, which are kept.

    \b
    Example:
      alpasift cancel batch_abc123
      alpasift cancel --all --wait
    """
    from alpasift.batcher.engine.collect import cancel
    from alpasift.batcher.store import Store

    if (batch is None) == (not everything):
        raise click.UsageError("give one batch (`alpasift status` lists them), or --all")
    options = _options(poll_seconds=poll_seconds, grace_seconds=grace_seconds)
    found = cancel(Store(db).existing(), None if everything else batch, options, wait=wait)
    return _print(found, form, "cancelled and booked; next: alpasift ledger")


def _print(found: Collected, form: str | None, done: str) -> int:
    from dataclasses import asdict

    from alpasift.batcher.engine.in_flight import counted
    from alpasift.batcher.money.dollars import show_usd

    if form:
        print_json(asdict(found))
    note(f"{counted(found.replies, 'reply')}, {counted(found.usable, 'score')}, {show_usd(found.usd)}")
    print_alarms(found.alarms)
    for problem in found.problems:
        note(f"not collected: {problem}")
    if found.in_flight or not found.problems:
        still = f"{counted(found.in_flight, 'row')} still in flight; collect again later"
        note(still if found.in_flight else done)
    if found.problems or found.alarms:
        return 1
    return 4 if found.in_flight else 0


@click.group("batch")
def batch_command() -> None:
    """Transfer batches as files, from and to a machine without a network.

    \b
    Example:
      alpasift batch export to_carry --grader openai_batch:gpt-4.1-nano --budget 5 --yes
      alpasift batch import results.jsonl
    """


@batch_command.command("export", cls=GroupedCommand)
@click.argument("folder", type=click.Path(file_okay=False), metavar="DIR")
@click.option("--grader", required=True, metavar="SPEC", help="openai_batch:MODEL")
@rubric_option
@dataset_option
@click.option(
    "--executed-by",
    type=click.Choice(["openai", "vllm"]),
    default="openai",
    show_default=True,
    help="What runs the files. With vllm there is no API cost, and MODEL is the served model name.",
)
@limit_option
@spending_options
@grader_options
@click.pass_obj
def export_command(
    db: str,
    folder: str,
    grader: str,
    rubric: str | None,
    dataset: str | None,
    executed_by: str,
    caps: Caps,
    yes: bool,
    settings: dict[str, Any],
    asking: dict[str, Any],
) -> int:
    """Write the request files to a folder and reserve what they may cost. Nothing is sent.

    The files are those of the Batch API; `vllm run-batch` runs them too.

    \b
    Example:
      alpasift batch export to_carry --grader openai_batch:gpt-4.1-nano --budget 5 --yes
      alpasift batch export to_carry --grader openai_batch:my-model --executed-by vllm
      vllm run-batch -i to_carry/FILE.jsonl -o results.jsonl --model my-model
    """
    from alpasift.batcher.data.versions import resolve
    from alpasift.batcher.engine.run_task import export_requests
    from alpasift.batcher.grading.open_grader import open_named
    from alpasift.batcher.money.dollars import show_usd
    from alpasift.batcher.store import Store

    store = Store(db).existing()
    version = resolve(store, dataset)
    with open_named(store, grader, rubric, {**settings, "executed_by": executed_by}, asking) as opened:
        made = export_requests(
            store, version.version_id, opened.task, opened.backend, caps, Path(folder), ask_consent(yes)
        )
    if not made.files:
        note("every row is graded or in flight; there is nothing to export")
        return 0
    for path in made.files:
        click.echo(plain(path))
    note(
        f"{made.rows:,} rows in {len(made.files)} files, {show_usd(made.ceiling_usd)} reserved"
        + (f"; {made.left:,} rows did not fit the budget" if made.left else "")
    )
    note("next: run them, then alpasift batch import RESULTS.jsonl")
    return 4 if made.left else 0


@batch_command.command("import")
@click.argument("file", type=click.Path(dir_okay=False), metavar="FILE")
@click.option(
    "--executed-by", type=click.Choice(["openai", "vllm"]), help="What ran the file; checked against the export."
)
@click.option("--last", is_flag=True, help="The last result file: requests without a result become unresolved.")
@json_option
@click.pass_obj
def import_command(db: str, file: str, executed_by: str | None, last: bool, form: str | None) -> int:
    """Import a result file of exported requests: book what it cost, read its scores. The same file again changes
    nothing.

    \b
    Example:
      alpasift batch import batch_abc_output.jsonl
    """
    from dataclasses import asdict

    from alpasift.batcher.engine.in_flight import counted
    from alpasift.batcher.engine.manual import import_results
    from alpasift.batcher.money.dollars import show_usd
    from alpasift.batcher.store import Store

    found = import_results(Store(db).existing(), Path(file), executed_by, last=last)
    if form:
        print_json(asdict(found))
    if found.repeated:
        note("already imported; nothing changed")
        if found.in_flight:
            note(f"{counted(found.in_flight, 'row')} of the export still have no result; --last gives them up")
        print_alarms(found.alarms)
        return 1 if found.alarms else 4 if found.in_flight else 0
    note(f"{counted(found.replies, 'reply')}, {counted(found.usable, 'score')}, {show_usd(found.usd)}")
    if found.refused or found.broken:
        note(
            f"skipped: {found.refused:,} lines that are not of this export, and {found.broken:,} that could not be read"
        )
    if found.in_flight:
        left = counted(found.in_flight, "row")
        note(f"{left} of the export still have no result; import the error file too, or add --last")
    print_alarms(found.alarms)
    if found.alarms:
        return 1
    if found.in_flight:
        return 4
    note("next: alpasift scores")
    return 0
