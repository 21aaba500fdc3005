"""Commands about batches that are out: collect, cancel, and batch export and import by hand."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batcher.cli.options import (
    asking_options,
    budget_option,
    grader_options,
    limit_option,
    run_budget_option,
    yes_option,
)
from batcher.cli.printing import note, plain, print_json

if TYPE_CHECKING:
    from batcher.batches import Collected

wait_option = click.option("--wait", is_flag=True, help="Stay until nothing is out.")
json_option = click.option("--json", "form", flag_value="json", help="Print JSON.")
poll_option = click.option("--poll-seconds", type=click.FloatRange(0), metavar="S", help="Ask every S seconds (30).")
grace_option = click.option(
    "--grace-seconds", type=click.FloatRange(0), metavar="S",
    help="How long to look for a batch whose creation was not confirmed (30).",
)  # fmt: skip


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
    """Bring what has come of the batches that are out. Sends nothing new; `grade` does.

    \b
    Example:
      alpasift collect
    """
    from batcher.batches import collect
    from batcher.store import Store

    options = _options(poll_seconds=poll_seconds, grace_seconds=grace_seconds)
    found = collect(Store(db).existing(), options, wait=wait)
    return _tell(found, form, "nothing is out; next: alpasift scores")


@click.command("cancel")
@click.argument("batch", required=False, metavar="[BATCH]")
@click.option("--all", "everything", is_flag=True, help="Stop every batch that is out.")
@wait_option
@poll_option
@grace_option
@json_option
@click.pass_obj
def cancel_command(
    db: str, batch: str | None, everything: bool, wait: bool, poll_seconds: float | None, grace_seconds: float | None,
    form: str | None,
) -> int:  # fmt: skip
    """Stop a batch that is out, and settle what was done of it: the provider charges for finished rows, which are kept.

    \b
    Example:
      alpasift cancel batch_abc123
      alpasift cancel --all --wait
    """
    from batcher.batches import cancel
    from batcher.store import Store

    if (batch is None) == (not everything):
        raise click.UsageError("name one batch (alpasift status lists them), or give --all")
    options = _options(poll_seconds=poll_seconds, grace_seconds=grace_seconds)
    found = cancel(Store(db).existing(), None if everything else batch, options, wait=wait)
    return _tell(found, form, "stopped and settled; next: alpasift ledger")


def _tell(found: Collected, form: str | None, done: str) -> int:
    from dataclasses import asdict

    from batcher.ledger import show_usd

    if form:
        print_json(asdict(found))
    note(f"{found.replies:,} replies, {found.scored:,} scores, {show_usd(found.usd)}")
    note(f"{found.still_out:,} rows are still out; ask again later" if found.still_out else done)
    return 4 if found.still_out else 0


@click.group("batch")
def batch_command() -> None:
    """Carry batches by hand, from and to a machine without a network.

    \b
    Example:
      alpasift batch export to_carry --grader openai_batch:gpt-4.1-nano --budget 5 --yes
      alpasift batch import results.jsonl
    """


@batch_command.command("export")
@click.argument("folder", type=click.Path(file_okay=False), metavar="DIR")
@click.option("--grader", required=True, metavar="SPEC", help="openai_batch:MODEL")
@click.option("--rubric", metavar="R", help="accuracy, helpfulness, or the path of your own .toml.")
@click.option("--dataset", metavar="NAME", help="Which dataset (NAME, or NAME@2); the only one if not given.")
@click.option(
    "--executed-by", type=click.Choice(["openai", "vllm"]), default="openai", show_default=True,
    help="Who will run the files; with vllm nothing costs dollars, and MODEL is the name it serves.",
)  # fmt: skip
@limit_option
@budget_option
@run_budget_option
@yes_option
@grader_options
@asking_options
@click.pass_obj
def export_command(
    db: str, folder: str, grader: str, rubric: str | None, dataset: str | None, executed_by: str, limit: int | None,
    budget: Decimal | None, run_budget: Decimal | None, yes: bool, options: dict[str, Any], asking: dict[str, Any],
) -> int:  # fmt: skip
    """Write the request files to a folder and reserve their money. Nothing is sent.

    The files are those of the Batch API; `vllm run-batch` runs them too.

    \b
    Example:
      alpasift batch export to_carry --grader openai_batch:gpt-4.1-nano --budget 5 --yes
      alpasift batch export to_carry --grader openai_batch:my-model --executed-by vllm
      vllm run-batch -i to_carry/FILE.jsonl -o results.jsonl --model my-model
    """
    from batcher.batches import export
    from batcher.cli.grade import ask_consent, rubric_for
    from batcher.datasets import resolve
    from batcher.engine import Run
    from batcher.ledger import show_usd
    from batcher.store import Store
    from batcher.tasks.grade import contract_for
    from graders import open_backend
    from graders.rubric import load_rubric

    store = Store(db).existing()
    version = resolve(store, dataset)
    backend = open_backend(grader, {**options, "executed_by": executed_by})
    task = contract_for(load_rubric(rubric_for(grader, rubric)), backend, **asking)
    with Run(
        store,
        task,
        backend,
        version.version_id,
        command="batch export",
        limit=limit,
        budget=budget,
        run_budget=run_budget,
    ) as run:
        if not len(run.questions):
            note("every row is graded or out; nothing to export")
            return 0
        estimate = run.estimate()
        run.check_affordable(estimate)
        if backend.paid:
            ask_consent(run, estimate, yes)
        made = export(run, Path(folder))
    for path in made.files:
        click.echo(plain(path))
    note(f"{made.rows:,} rows in {len(made.files)} files, {show_usd(made.ceiling_usd)} reserved" + (
        f"; {made.left:,} rows did not fit the budget" if made.left else ""
    ))  # fmt: skip
    note("next: run them, then alpasift batch import RESULTS.jsonl")
    return 0


@batch_command.command("import")
@click.argument("file", type=click.Path(dir_okay=False), metavar="FILE")
@click.option("--executed-by", type=click.Choice(["openai", "vllm"]), help="Who ran it; checked against the export.")
@click.option("--last", is_flag=True, help="No other file will come: what is missing stays unresolved.")
@json_option
@click.pass_obj
def import_command(db: str, file: str, executed_by: str | None, last: bool, form: str | None) -> int:
    """Take a result file of exported requests, book what it cost and read its scores. Again changes nothing.

    \b
    Example:
      alpasift batch import batch_abc_output.jsonl
    """
    from dataclasses import asdict

    from batcher.batches import bring
    from batcher.ledger import show_usd
    from batcher.store import Store

    found = bring(Store(db).existing(), Path(file), executed_by, last=last)
    if form:
        print_json(asdict(found))
    if found.repeated:
        note("these results were taken before; nothing changed")
        return 0
    note(f"{found.replies:,} replies, {found.scored:,} scores, {show_usd(found.usd)}")
    if found.refused or found.broken:
        note(f"{found.refused:,} lines were not asked by this export and {found.broken:,} could not be read; not taken")
    if found.still_out:
        note(f"{found.still_out:,} rows are still out; import the other file (errors too), or add --last")
        return 4
    note("next: alpasift scores")
    return 0
