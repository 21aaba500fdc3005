"""Commands that look ahead: plan, which spends nothing, and probe, which grades a sample and projects."""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batcher.cli.data import map_option, shape_option, strict_option, tell_import
from batcher.cli.grade import grade_dataset, labels_of, open_grader, rubric_for
from batcher.cli.look import print_histogram
from batcher.cli.options import (
    asking_options,
    budget_option,
    grader_options,
    max_hours_option,
    meant_for,
    quiet_option,
    run_budget_option,
    usd,
    yes_option,
)
from batcher.cli.printing import duration, note, number, plain, print_json, print_table

if TYPE_CHECKING:
    from batcher.cli.grade import Labels
    from batcher.datasets import DatasetVersion, Imported
    from batcher.engine import Summary
    from batcher.plan import Findings, Offer, Projection
    from batcher.store import Store
    from graders import Estimate


# -- plan ---------------------------------------------------------------------------------------------------------


@click.command("plan")
@click.argument("file", required=False, type=click.Path(), metavar="[FILE]")
@click.option("--dataset", metavar="NAME", help="Which dataset (NAME, or NAME@2); the only one if not given.")
@click.option(
    "--grader", "graders", multiple=True, metavar="SPEC", help="A grader to compare, llama_cpp:model.gguf; repeatable."
)
@click.option("--rubric", metavar="R", help="accuracy, helpfulness, or the path of your own .toml.")
@click.option("--max-usd", metavar="USD", callback=usd, help="Only graders that are likely to cost no more.")
@max_hours_option
@click.option("--local-only", is_flag=True, help="Only graders for which nothing leaves this machine.")
@shape_option
@map_option
@strict_option
@grader_options
@asking_options
@click.option("--history", is_flag=True, help="Show what was predicted for past runs beside what it was.")
@click.option("--json", "form", flag_value="json", help="Print JSON.")
@click.pass_obj
def plan_command(
    db: str, file: str | None, dataset: str | None, graders: tuple[str, ...], rubric: str | None, max_usd: Decimal | None,
    max_hours: float | None, local_only: bool, shape: str, mapping: dict[str, str] | None, strict: bool,
    options: dict[str, Any], asking: dict[str, Any], history: bool, form: str | None,
) -> int:  # fmt: skip
    """What each grader would cost and take for the rows it has not graded yet. Sends nothing, writes nothing.

    A FILE need not be imported. Ends with code 3 when the graders named, or all under the limits given, cannot do it.

    \b
    Example:
      alpasift plan data.json
      alpasift plan --grader llama_cpp:model.gguf --grader openai_batch:gpt-4.1-nano --max-usd 5 --max-hours 24
      alpasift plan --history
    """
    from batcher.plan import NEVER_AUTO, choose, kind, named_graders
    from batcher.store import Store
    from graders import BackendUnavailable

    if history:
        if file is not None:
            raise click.UsageError("--history tells of past runs of the database; leave FILE out")
        return print_history(Store(db).existing(), form)
    named = named_graders(graders)
    with ExitStack() as stack:
        real = Store(db).existing() if file is None or Path(db).exists() else None
        store, version = _rows_of(stack, real, file, dataset, shape, mapping, strict)
        free_usd = real.query("ledger")[0]["free_usd"] if real is not None else None
        offers = make_offers(
            store, version.version_id, named, rubric, options, history=real, free_usd=free_usd, usual=not named,
            asking=asking,
        )  # fmt: skip
    try:
        chosen, why = choose(offers, max_hours, max_usd=max_usd, local_only=local_only, free_usd=free_usd)
        choice: dict[str, str | None] = {"grader": chosen.grader, "reason": why}
    except BackendUnavailable as error:
        choice = {"grader": None, "reason": str(error)}
    if form:
        rows = [offer_row(one) for one in offers]
        limits = {"max_usd": max_usd, "max_hours": max_hours, "local_only": local_only, "free_usd": free_usd}
        print_json({"dataset": version.label, "rows": version.rows, "limits": limits, "offers": rows, "auto": choice})
    else:
        click.echo(f"{plain(version.label)}: {version.rows:,} rows")
        print_offers(offers)
        click.echo(f"--grader auto: {plain(choice['reason'] or '')}")
    wanted = bool(max_usd is not None or max_hours or local_only or any(kind(spec) not in NEVER_AUTO for spec in named))
    return 3 if choice["grader"] is None and wanted else 0


def _rows_of(
    stack: ExitStack, real: Store | None, file: str | None, dataset: str | None, shape: str,
    mapping: dict[str, str] | None, strict: bool,
) -> tuple[Store, DatasetVersion | Imported]:  # fmt: skip
    """The rows to plan for and the store that holds them: the database, or a file read into one that is deleted again.

    A file whose content the database has already is planned there, so that rows graded before are left out.
    """
    from batcher.datasets import import_file, resolve
    from batcher.store import Store

    if file is None:
        assert real is not None
        return real, resolve(real, dataset)
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="alpasift-plan-"))
    store = Store(Path(folder) / "plan.duckdb")
    found = import_file(store, file, dataset=dataset, shape=shape, mapping=mapping, strict=strict)
    here = resolve(store, None)
    there = _imported_before(real, here.sha256, found.shape, mapping) if real is not None else None
    if real is not None and there is not None:
        return real, there
    tell_import(found)
    return store, found


def _imported_before(store: Store, sha256: str, shape: str, mapping: dict[str, str] | None) -> DatasetVersion | None:
    from batcher.datasets import resolve

    for row in store.query("same_content", sha256=sha256):
        if row["shape"] == shape and json.loads(row["mapping"] or "{}") == (mapping or {}):
            return resolve(store, row["label"] if "@" in row["label"] else f"{row['label']}@1")
    return None


def make_offers(
    store: Store,
    version_id: str,
    named: list[str],
    rubric: str | None,
    options: dict[str, Any] | None = None,
    *,
    history: Store | None = None,
    free_usd: Decimal | None = None,
    usual: bool = False,
    asking: dict[str, Any] | None = None,
) -> list[Offer]:
    """The offers of the named graders; with `usual`, of the API's usual models; and of `rules` and `fake`, which are always there."""
    from batcher.plan import USUAL, offer, unasked
    from batcher.tasks.grade import contract_for
    from graders.rubric import load_rubric

    def one(spec: str) -> Offer:
        by = load_rubric("rules" if spec == "rules" else rubric_for(spec, rubric))
        settings = meant_for(spec, options or {})
        return offer(
            store, version_id, by.name, lambda backend: contract_for(by, backend, **(asking or {})), spec, settings,
            history=history,
        )  # fmt: skip

    offers = [one(spec) for spec in named]
    if usual:
        priced = [unasked(one(spec), free_usd) for spec in USUAL if spec not in named]
        offers += [found for found in priced if found is not None]
    return offers + [one(spec) for spec in ("rules", "fake") if spec not in named]


def offer_row(one: Offer) -> dict[str, Any]:
    """An offer as JSON has it: the estimate's numbers beside the rest, and the grader's own estimate where it was corrected."""
    estimate = one.estimate
    return {
        "grader": one.grader, "rubric": one.rubric, "rows": estimate.requests if estimate else None, "already": one.already,
        **_numbers(estimate), "leaves_machine": one.leaves_machine, "calibrated": one.calibrated, "why_not": one.why_not,
        "notes": list(one.notes), "learned": asdict(one.learned) if one.learned else None,
        "uncorrected": _numbers(one.raw) if one.learned else None,
    }  # fmt: skip


def _numbers(estimate: Estimate | None) -> dict[str, Any]:
    names = (
        "usd", "usd_low", "usd_high", "ceiling_usd", "sync_usd", "seconds", "seconds_low", "seconds_high", "rounds",
        "input_tokens", "output_tokens",
    )  # fmt: skip
    return {name: _exact(getattr(estimate, name, None)) for name in names}


def _exact(value: Any) -> Any:
    """Dollars as a text, so that no digit is lost; anything else as it is."""
    return format(value, "f") if isinstance(value, Decimal) else value


_REMARKS = {"rules": "judges form only", "fake": "a rehearsal: its scores mean nothing"}


def print_offers(offers: list[Offer]) -> None:
    """A table of offers, one grader a line, and under it what a person should know of each."""
    from batcher.plan import kind

    table = []
    for one in offers:
        remark = _REMARKS.get(kind(one.grader), "calibrated" if one.calibrated else "never calibrated")
        table.append((one.grader, one.rubric, *_cells(one.estimate), "not possible here" if one.why_not else remark))
    columns = ("grader", "rubric", "rows", "expected", "likely", "at most", "call by call", "time", "")
    shown = [i for i, column in enumerate(columns) if column != "call by call" or any(row[i] for row in table)]
    print_table([columns[i] for i in shown], [[row[i] for i in shown] for row in table])
    for one in offers:
        lines = _told(one)
        if lines:
            click.echo(plain(one.grader))
        for line in lines:
            click.echo("  " + plain(line).replace("\n", "\n    "))


def _cells(estimate: Estimate | None) -> tuple[str, ...]:
    from batcher.plan import dollars

    if estimate is None:
        return ("",) * 6
    low, high = estimate.seconds_low, estimate.seconds_high
    time = (
        f"{duration(low)} to {duration(high)}" if low is not None and high is not None else duration(estimate.seconds)
    )
    likely = f"{dollars(estimate.usd_low)} to {dollars(estimate.usd_high)}" if estimate.usd_high else ""
    return (
        f"{estimate.requests:,}", dollars(estimate.usd), likely, dollars(estimate.ceiling_usd),
        "" if estimate.sync_usd is None else dollars(estimate.sync_usd), time,
    )  # fmt: skip


def _told(one: Offer) -> list[str]:
    """The lines under the table for one offer."""
    lines = [f"not possible here: {one.why_not}"] if one.why_not else []
    if one.estimate is None:
        return lines
    if one.already:
        lines.append(f"{one.already:,} rows are answered already")
    if one.leaves_machine != "nothing":
        lines.append(f"leaves this machine: {one.leaves_machine}")
    if one.estimate.rounds:
        rounds = one.estimate.rounds
        lines.append("1 batch" if rounds == 1 else f"{rounds:,} batches, one after the other")
    return [*lines, *one.notes]


def print_history(store: Store, form: str | None) -> int:
    """Each run that began with an estimate: predicted beside actual."""
    from batcher.ledger import show_usd

    rows = store.query("predictions", grader=None, rubric=None, run_id=None)
    if form:
        print_json([{name: _exact(value) for name, value in row.items()} for row in rows])
        return 0
    if not rows:
        note("no run began with an estimate yet; a paid grading does")
        return 0

    def pair(row: dict[str, Any], name: str, show: Any) -> str:
        predicted, actual = row[f"predicted_{name}"], row[name]
        return " / ".join("-" if value is None else show(value) for value in (predicted, actual))

    table = [
        (
            row["started_at"], row["command"], row["grader"], row["rubric"], f"{row['answers']:,} of {row['requests']:,}",
            pair(row, "usd", show_usd), "" if row["usd_ratio"] is None else f"{row['usd_ratio']:.2f}",
            pair(row, "input_tokens", _tokens), pair(row, "output_tokens", _tokens), pair(row, "seconds", duration),
        )
        for row in rows
    ]  # fmt: skip
    columns = ("started", "command", "grader", "rubric", "answers", "dollars", "ratio", "input", "output", "time")
    click.echo("predicted / actual; tokens are those of one answer")
    print_table(columns, table)
    return 0


def _tokens(value: float) -> str:
    return f"{value:,.1f}"


def tell_prediction(store: Store, run_id: str) -> None:
    """After a run: what was predicted for its answers beside what they were. Nothing where there was no estimate."""
    from batcher.ledger import show_usd

    for row in store.query("predictions", grader=None, rubric=None, run_id=run_id):
        ratio = "" if row["usd_ratio"] is None else f" ({row['usd_ratio']:.2f} times)"
        note(
            f"  {show_usd(row['predicted_usd'])} predicted for {row['answers']:,} answers, {show_usd(row['usd'])} spent{ratio}; "
            "`alpasift plan --history` compares all runs"
        )


# -- probe --------------------------------------------------------------------------------------------------------


@click.command("probe")
@click.argument("file", required=False, type=click.Path(), metavar="[FILE]")
@click.option(
    "--dataset", metavar="NAME", help="Which dataset (NAME, or NAME@2); with FILE, the name to keep it under."
)
@click.option("-n", "count", default=100, show_default=True, type=click.IntRange(1), metavar="N", help="How many rows.")
@click.option(
    "--grader", required=True, metavar="SPEC", help="openai_batch:MODEL, llama_cpp:model.gguf, fake, or auto."
)
@click.option("--rubric", metavar="R", help="accuracy, helpfulness, rules, or the path of your own .toml.")
@click.option("--seed", default=0, show_default=True, type=int, help="Draws the sample; the same seed, the same rows.")
@click.option("--now", is_flag=True, help="Ask openai_batch:MODEL call by call, at the full price: minutes, not hours.")
@shape_option
@map_option
@strict_option
@budget_option
@run_budget_option
@yes_option
@grader_options
@asking_options
@quiet_option
@click.option("--json", "form", flag_value="json", help="Print JSON.")
@click.pass_obj
def probe_command(
    db: str, file: str | None, dataset: str | None, count: int, grader: str, rubric: str | None, seed: int, now: bool,
    shape: str, mapping: dict[str, str] | None, strict: bool, budget: Decimal | None, run_budget: Decimal | None, yes: bool,
    options: dict[str, Any], asking: dict[str, Any], quiet: bool, form: str | None,
) -> int:  # fmt: skip
    """Grade a random sample and project: scores, kept share, cost and kept rows of the whole.

    The grades stay: a later `alpasift grade` by the same grader asks about the other rows only.

    \b
    Example:
      alpasift probe data.json -n 100 --grader openai_batch:gpt-4.1-nano --now --budget 5
      alpasift probe --dataset alpaca -n 200 --grader llama_cpp:model.gguf
    """
    from batcher.datasets import import_file, resolve
    from batcher.plan import draw_rows, findings, kind, sampled_rows
    from batcher.store import Store
    from batcher.tasks.grade import contract_for
    from graders.rubric import load_rubric

    spec = called_now(grader) if now else grader
    version: DatasetVersion | Imported
    if file is not None:
        store = Store(db).create()
        version = import_file(store, file, dataset=dataset, shape=shape, mapping=mapping, strict=strict)
        tell_import(version)
    else:
        store = Store(db).existing()
        version = resolve(store, dataset)
    backend, rubric_name = open_grader(store, version.version_id, spec, rubric, None, options)
    try:
        task = contract_for(load_rubric(rubric_name), backend, **asking)
        with store.reader():
            sample = draw_rows(store, version.version_id, count, seed)
            before = sum(one.answered for one in sampled_rows(store, task, backend, version.version_id, sample))
        summary = grade_dataset(
            store, version.version_id, backend, task, limit=None, budget=budget, run_budget=run_budget, yes=yes,
            retry=False, quiet=quiet, command="probe", positions=sample.positions,
        )  # fmt: skip
        with store.reader():
            meant = "batch" if kind(grader) == "openai_batch" else "calls"
            found = findings(store, task, backend, version.version_id, summary.run_id, sample, meant)
            run = labels_of(store, summary.run_id)
            tell_prediction(store, summary.run_id)
    finally:
        backend.close()
    if summary.message:
        note(f"  {summary.message}")
    if form:
        print_json(probe_row(version, run, seed, before, summary, found))
    else:
        label = f"{version.label}: {len(sample.positions):,} random rows of {sample.rows:,} distinct ones (seed {seed})"
        print_probe(label, run, before, summary, found)
    if summary.outcome != "done":
        note("not finished, what stands above is of the rows that were answered; the same command goes on")
        return 4
    note(f"next: alpasift grade --grader {plain(grader)} --dataset {version.label}")
    return 0


def called_now(spec: str) -> str:
    """The same grader asked call by call: openai_chat:MODEL for openai_batch:MODEL. Raises UsageError for any other."""
    name, _, model = spec.strip().partition(":")
    if name not in ("openai_batch", "openai_chat"):
        raise click.UsageError(f"--now asks openai_batch:MODEL call by call; {spec} answers now anyway")
    return f"openai_chat:{model}"


def probe_row(
    version: DatasetVersion | Imported, run: Labels, seed: int, before: int, summary: Summary, found: Findings
) -> dict[str, Any]:
    """A probe as JSON has it."""
    whole = found.projection
    return {
        "dataset": version.label, "rows": version.rows, "distinct_rows": whole.rows, "grader": run.grader, "rubric": run.rubric,
        "seed": seed, "outcome": summary.outcome, "answered_before": before, "seconds": summary.seconds,
        "sample": whole.sample, "answered": whole.answered, "unread": whole.unread, "unread_share": _share(whole),
        "threshold": found.threshold, "histogram": found.histogram, "kept": whole.kept, "share": asdict(whole.share),
        "kept_rows": asdict(whole.kept_rows), "rows_left": found.left, "probe_usd": found.usd, "whole_usd": found.whole_usd,
        "way": found.way,
        "to_go": {way: {k: _exact(v) for k, v in asdict(cost).items()} for way, cost in found.to_go.items()},
        "seconds_to_go": _seconds_to_go(summary, found),
    }  # fmt: skip


def print_probe(label: str, run: Labels, before: int, summary: Summary, found: Findings) -> None:
    """A probe for people: the histogram, then a line each for what is kept, what is unread, dollars and time."""
    from batcher.plan import dollars

    whole = found.projection
    print_histogram(label, run.grader, run.rubric, found.histogram)
    if whole.answered:
        share, kept = whole.share, whole.kept_rows
        click.echo(
            f"kept at {number(found.threshold)} or more: {share.value:.1%} ({share.low:.1%} to {share.high:.1%}), that is "
            f"{kept.value:,} of {whole.rows:,} rows ({kept.low:,} to {kept.high:,})"
        )
        click.echo(f"without a readable score: {_share(whole) or 0:.1%} ({whole.unread:,} of {whole.answered:,})")
    for way, cost in found.to_go.items():
        how = {"batch": " by batch", "calls": " call by call"}.get(way, "")
        likely = f"{dollars(cost.usd_low)} to {dollars(cost.usd_high)}"
        click.echo(f"the other {found.left:,} rows{how}: {dollars(cost.usd)} ({likely})")
    if found.whole_usd is not None:
        click.echo(f"the whole: {dollars(found.whole_usd)}, of which this probe {dollars(found.usd)}")
    seconds = _seconds_to_go(summary, found)
    at_pace = "" if seconds is None else f"; at this pace {duration(seconds)} for the rest"
    answered_before = f", {before:,} stood there before" if before else ""
    click.echo(f"time: {summary.replied:,} answers in {duration(summary.seconds)}{answered_before}{at_pace}")


def _share(whole: Projection) -> float | None:
    return whole.unread / whole.answered if whole.answered else None


def _seconds_to_go(summary: Summary, found: Findings) -> float | None:
    """At the pace of the probe; None where nobody was asked, and for batches, which do not take longer for being larger."""
    if not summary.replied or found.way == "batch":
        return None
    return summary.seconds / summary.replied * found.left
