"""The command that compares graders before anything is graded: plan. It sends nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alpasift.batcher.cli.grouped_help import GroupedCommand
from alpasift.batcher.cli.options import (
    dataset_option,
    grader_options,
    import_options,
    json_option,
    limit_option,
    max_hours_option,
    rubric_option,
    usd,
)
from alpasift.batcher.cli.printing import note, plain, print_json, print_paragraph, print_table
from alpasift.batcher.cli.reports import counted, print_import
from alpasift.batcher.engine.progress import duration

if TYPE_CHECKING:
    from alpasift.batcher.planning.offers import Offer
    from alpasift.batcher.store import Store
    from alpasift.graders import Estimate


@click.command("plan", cls=GroupedCommand)
@click.argument("file", required=False, type=click.Path(), metavar="[FILE]")
@dataset_option
@click.option(
    "--grader",
    "graders",
    multiple=True,
    metavar="SPEC",
    help="A grader to compare, for example llama_cpp:model.gguf. Repeatable.",
)
@rubric_option
@limit_option
@click.option(
    "--budget",
    metavar="USD",
    callback=usd,
    help="Plan with this total budget instead of the database's. Not stored.",
)
@click.option("--max-usd", metavar="USD", callback=usd, help="Only graders whose likely cost is at most this.")
@max_hours_option
@click.option("--local-only", is_flag=True, help="Only graders that send nothing off this machine.")
@import_options
@click.option("--history", is_flag=True, help="Show predicted and actual cost of past runs.")
@grader_options
@json_option
@click.pass_obj
def plan_command(
    db: str,
    file: str | None,
    dataset: str | None,
    graders: tuple[str, ...],
    rubric: str | None,
    limit: int | None,
    budget: Decimal | None,
    max_usd: Decimal | None,
    max_hours: float | None,
    local_only: bool,
    reading: dict[str, Any],
    history: bool,
    settings: dict[str, Any],
    asking: dict[str, Any],
    form: str | None,
) -> int:
    """Estimate each grader's cost and time for the rows it has not graded yet. Sends nothing.

    A FILE need not be imported. Exits with code 3 when none of the graders named, or none within the limits, can do it.

    \b
    Example:
      alpasift plan data.json
      alpasift plan --grader llama_cpp:model.gguf --grader openai_batch:gpt-4.1-nano --max-usd 5 --max-hours 24
      alpasift plan --history
    """
    from alpasift.batcher.data.addressed_rows import addressed_note
    from alpasift.batcher.grading.open_grader import kind
    from alpasift.batcher.planning.choice import NEVER_AUTO
    from alpasift.batcher.planning.plan import Limits, plan
    from alpasift.batcher.store import Store

    if history:
        if file is not None:
            raise click.UsageError("--history shows past runs of the database; remove FILE")
        _print_history(Store(db).existing(), form)
        return 0
    store = Store(db).existing() if file is None or Path(db).exists() else None
    found = plan(
        store,
        graders,
        Limits(max_usd, max_hours, local_only, budget, limit),
        file=file,
        dataset=dataset,
        rubric=rubric,
        reading=reading,
        settings=settings,
        asking=asking,
    )
    if found.imported is not None:
        print_import(found.imported)
    version = found.dataset
    auto = not graders or any(spec.strip() == "auto" for spec in graders)
    limited = max_usd is not None or bool(max_hours) or local_only
    if form:
        choice = {"grader": found.chosen.grader if found.chosen else None, "reason": found.reason}
        limits = {"max_usd": max_usd, "max_hours": max_hours, "local_only": local_only, "free_usd": found.free_usd}
        offers = [_as_json(one) for one in found.offers]
        print_json(
            {
                "dataset": version.label,
                "rows": version.rows,
                "addressed_rows": found.addressed,
                "limits": limits,
                "offers": offers,
                "auto": choice,
            }
        )
    else:
        click.echo(f"{plain(version.label)}: {version.rows:,} rows")
        _print_offers(found.offers, found.free_usd)
        if warning := addressed_note(found.addressed):
            click.echo(warning)
        if auto:
            click.echo(f"--grader auto: {plain(found.reason)}")
        elif limited:
            click.echo(f"within these limits: {plain(found.reason)}")
    named = [spec for spec in found.named if kind(spec) not in NEVER_AUTO]
    wanted = limited or bool(named) or (auto and bool(graders))
    return 3 if found.chosen is None and wanted else 0


def _as_json(one: Offer) -> dict[str, Any]:
    """An offer as JSON: the estimate's numbers beside the rest; the grader's own estimate where it was corrected."""
    estimate = one.estimate
    return {
        "grader": one.grader,
        "rubric": one.rubric,
        "rows": one.rows if estimate else None,
        "requests": estimate.requests if estimate else None,
        "already": one.already,
        "in_flight": one.in_flight,
        **_numbers(estimate),
        "leaves_machine": one.leaves_machine,
        "calibrated": one.calibrated,
        "audited": one.audited,
        "why_not": one.why_not,
        "notes": list(one.notes),
        "correction": asdict(one.correction) if one.correction else None,
        "uncorrected": _numbers(one.raw) if one.correction else None,
    }


def _numbers(estimate: Estimate | None) -> dict[str, Any]:
    if estimate is None:
        return dict.fromkeys(_NUMBERS)
    found = asdict(estimate)
    return {name: found[name] for name in _NUMBERS}


_NUMBERS = (
    "usd",
    "usd_low",
    "usd_high",
    "ceiling_usd",
    "sync_usd",
    "seconds",
    "seconds_low",
    "seconds_high",
    "seconds_from",
    "rounds",
    "input_tokens",
    "output_tokens",
)
_REMARKS = {
    "rules": "checks form only",
    "fake": "fake scores, for rehearsals",
    **dict.fromkeys(("ifd", "s-ifd", "fit"), "measures; select by share"),
}


def _print_offers(offers: Sequence[Offer], free_usd: Decimal | None) -> None:
    """A table of offers, one grader a line, and under it what a person should know, each thing once.

    `free_usd` is what the budget leaves; an offer that is expected to cost more says so. None without a budget.
    """
    from alpasift.batcher.grading.open_grader import kind

    table = []
    for one in offers:
        measured = "calibrated" if one.calibrated else one.audited or "never calibrated"
        remark = _REMARKS.get(kind(one.grader), measured)
        if one.why_not:
            remark = "not available here"
        elif _over(one, free_usd):
            remark = "over the budget"
        table.append((one.grader, one.rubric, *_cells(one), remark))
    columns = ("grader", "rubric", "rows", "expected", "likely", "at most", "sync", "time", "remark")
    shown = [i for i, column in enumerate(columns) if column != "sync" or any(row[i] for row in table)]
    print_table([columns[i] for i in shown], [[row[i] for i in shown] for row in table])
    click.echo()
    remarks = [(one.grader, _remarks(one, free_usd)) for one in offers]
    by_line: dict[str, list[str]] = {}
    for name, lines in remarks:
        for line in lines:
            by_line.setdefault(line, []).append(name)
    shared: dict[str, list[str]] = {}
    for line, names in by_line.items():
        shared.setdefault(", ".join(names), []).append(line)
    for joined, lines in shared.items():
        print_paragraph(f"{joined}: " + "; ".join(lines).replace("\n", "\n    "))


def _cells(one: Offer) -> tuple[str, ...]:
    from alpasift.batcher.planning.choice import dollars

    estimate = one.estimate
    if estimate is None:
        return ("",) * 6
    low, high = estimate.seconds_low, estimate.seconds_high
    time = (
        f"{duration(low)} to {duration(high)}" if low is not None and high is not None else duration(estimate.seconds)
    )
    time += f", {estimate.seconds_from}" if estimate.seconds_from else ""
    likely = f"{dollars(estimate.usd_low)} to {dollars(estimate.usd_high)}" if estimate.usd_high else ""
    return (
        f"{one.rows:,}",
        dollars(estimate.usd),
        likely,
        dollars(estimate.ceiling_usd),
        "" if estimate.sync_usd is None else dollars(estimate.sync_usd),
        time,
    )


def _over(one: Offer, free_usd: Decimal | None) -> bool:
    """Whether an offer is expected to cost more than the budget leaves, so that `grade` would send nothing."""
    return free_usd is not None and one.estimate is not None and max(free_usd, Decimal(0)) < one.estimate.usd


def _remarks(one: Offer, free_usd: Decimal | None) -> list[str]:
    """The lines under the table for one offer."""
    from alpasift.batcher.engine.estimates import over_budget

    lines = [f"not available here: {one.why_not}"] if one.why_not else []
    if one.estimate is None:
        return lines
    if free_usd is not None and _over(one, free_usd):
        lines.append(". ".join(over_budget(one.estimate, free_usd, one.samples)))
    if one.already:
        lines.append(f"{counted(one.already, 'row')} already graded")
    if one.in_flight:
        lines.append(f"{counted(one.in_flight, 'row')} in flight with a batch; `alpasift collect` fetches the results")
    if one.samples > 1:
        lines.append(f"{one.samples} requests for each row")
    if one.leaves_machine != "nothing":
        lines.append(f"sent off this machine: {one.leaves_machine}")
    if one.estimate.rounds:
        rounds = one.estimate.rounds
        lines.append("1 batch" if rounds == 1 else f"{rounds:,} batches, one after the other")
    return [*lines, *one.notes]


def _print_history(store: Store, form: str | None) -> None:
    """Each run that began with an estimate: predicted beside actual."""
    from alpasift.batcher.money.dollars import show_usd

    rows = store.query("predictions", grader=None, rubric=None, run_id=None)
    if form:
        print_json(rows)
        return
    if not rows:
        note("no run has an estimate yet; paid runs have one")
        return

    def pair(row: dict[str, Any], name: str, show: Callable[[Any], str]) -> str:
        predicted, actual = row[f"predicted_{name}"], row[name]
        shown = ("-" if value is None else show(value) for value in (predicted, actual))
        return "\N{NO-BREAK SPACE}/ ".join(text.replace(" ", "\N{NO-BREAK SPACE}") for text in shown)

    table = [
        (
            row["started_at"],
            row["command"],
            row["grader"],
            row["rubric"],
            f"{row['answers']:,} of {row['requests']:,}",
            pair(row, "usd", show_usd),
            "" if row["usd_ratio"] is None else f"{row['usd_ratio']:.2f}",
            pair(row, "input_tokens", _tokens),
            pair(row, "output_tokens", _tokens),
            pair(row, "seconds", duration),
        )
        for row in rows
    ]
    columns = ("started", "command", "grader", "rubric", "answers", "dollars", "ratio", "input", "output", "time")
    click.echo("predicted / actual, before any correction by past runs; tokens are per answer")
    print_table(columns, table)


def _tokens(value: float) -> str:
    return f"{value:,.1f}"
