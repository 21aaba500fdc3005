"""Commands that grade: plan and grade."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click

from batcher.cli.printing import duration, note, number, plain, print_json, print_table, progress_line

if TYPE_CHECKING:
    from batcher.engine import Run, Summary
    from batcher.store import Store
    from graders import Backend, Estimate


def _usd(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Decimal | None:
    if value is None:
        return None
    from batcher.ledger import parse_usd
    from graders import AlpaSiftError

    try:
        return parse_usd(value)
    except AlpaSiftError as error:
        raise click.BadParameter(str(error)) from error


budget_option = click.option(
    "--budget", metavar="USD", callback=_usd,
    help="The cap of this database, for all its life: spent, reserved and unresolved together.",
)  # fmt: skip
run_budget_option = click.option(
    "--run-budget", metavar="USD", callback=_usd, help="A cap on this run, on top of the budget."
)
yes_option = click.option("--yes", is_flag=True, help="Do not ask before spending.")
limit_option = click.option("--limit", type=click.IntRange(1), metavar="N", help="Grade at most N rows in this run.")
max_hours_option = click.option(
    "--max-hours", type=click.FloatRange(0, min_open=True), metavar="H", help="For --grader auto."
)
quiet_option = click.option("--quiet", is_flag=True, help="No progress line.")


def rubric_for(spec: str, rubric: str | None) -> str:
    """The rubric asked for; `rules` for the grader of that name, else accuracy."""
    from batcher.plan import kind

    return rubric or ("rules" if kind(spec) == "rules" else "accuracy")


@click.command("plan")
@click.option(
    "--grader", "graders", multiple=True, metavar="SPEC", help="A grader to compare, llama_cpp:model.gguf; repeatable."
)
@click.option("--rubric", metavar="R", help="accuracy, helpfulness, or the path of your own .toml.")
@click.option("--dataset", metavar="NAME", help="Which dataset (NAME, or NAME@2); the only one if not given.")
@max_hours_option
@click.option("--json", "form", flag_value="json", help="Print JSON.")
@click.pass_obj
def plan_command(
    db: str,
    graders: tuple[str, ...],
    rubric: str | None,
    dataset: str | None,
    max_hours: float | None,
    form: str | None,
) -> None:
    """What each grader would cost and take for the rows it has not graded yet. Sends nothing.

    \b
    Example:
      alpasift plan --grader llama_cpp:model.gguf
    """
    from batcher.datasets import resolve
    from batcher.plan import choose, named_graders
    from batcher.store import Store
    from graders import BackendUnavailable

    store = Store(db).existing()
    version = resolve(store, dataset)
    named = named_graders(graders)
    offers = make_offers(store, version.version_id, named, rubric)
    try:
        chosen, why = choose(offers, max_hours)
        choice: dict[str, str | None] = {"grader": chosen.grader, "reason": why}
    except BackendUnavailable as error:
        choice = {"grader": None, "reason": str(error)}
    if form:
        print_json(
            {"dataset": version.label, "rows": version.rows, "offers": [_offer_row(o) for o in offers], "auto": choice}
        )
        return
    click.echo(f"{plain(version.label)}: {version.rows:,} rows")
    print_offers(offers)
    click.echo(f"--grader auto: {plain(choice['reason'] or '')}")


def make_offers(store: Store, version_id: str, named: list[str], rubric: str | None) -> list[Any]:
    """The offers of the named graders, and of `rules` and `fake`, which are always there."""
    from batcher.plan import offer
    from batcher.tasks.grade import Grade
    from graders.rubric import load_rubric

    extra = [spec for spec in ("rules", "fake") if spec not in named]
    specs = [*named, *extra]
    return [
        offer(store, version_id, Grade(load_rubric("rules" if spec == "rules" else rubric_for(spec, rubric))), spec)
        for spec in specs
    ]


def _offer_row(offer: Any) -> dict[str, Any]:
    estimate = offer.estimate
    return {
        "grader": offer.grader, "rubric": offer.rubric, "rows": estimate.requests if estimate else None,
        "already": offer.already, "usd": estimate.usd if estimate else None,
        "ceiling_usd": estimate.ceiling_usd if estimate else None, "seconds": estimate.seconds if estimate else None,
        "leaves_machine": offer.leaves_machine, "calibrated": offer.calibrated, "why_not": offer.why_not,
    }  # fmt: skip


_NOTES = {"rules": "judges form only", "fake": "a rehearsal: its scores mean nothing"}


def print_offers(offers: list[Any]) -> None:
    """A table of offers, one grader a line."""
    from batcher.ledger import show_usd
    from batcher.plan import kind

    table = []
    for offer in offers:
        estimate = offer.estimate
        if estimate is None:
            table.append((offer.grader, offer.rubric, "", "", "", "", f"not possible: {offer.why_not}"))
            continue
        remark = _NOTES.get(kind(offer.grader), "calibrated" if offer.calibrated else "never calibrated")
        table.append((
            offer.grader, offer.rubric, f"{estimate.requests:,}", show_usd(estimate.usd, 2), show_usd(estimate.ceiling_usd, 2),
            duration(estimate.seconds), f"leaves this machine: {offer.leaves_machine}; {remark}",
        ))  # fmt: skip
    print_table(("grader", "rubric", "rows", "expected", "at most", "time", ""), table, max_width=100)


def open_grader(
    store: Store, version_id: str, spec: str, rubric: str | None, max_hours: float | None
) -> tuple[Backend, str]:
    """The backend of a spec, `auto` resolved, and the rubric's name."""
    from batcher.plan import choose, named_graders
    from graders import open_backend

    if spec.strip() == "auto":
        named = named_graders()
        chosen, why = choose([o for o in make_offers(store, version_id, named, rubric) if o.grader in named], max_hours)
        note(f"grader {why}")
        spec = chosen.grader
    return open_backend(spec), rubric_for(spec, rubric)


def grade_dataset(
    store: Store,
    version_id: str,
    backend: Backend,
    rubric: str,
    *,
    limit: int | None,
    budget: Decimal | None,
    run_budget: Decimal | None,
    yes: bool,
    retry: bool,
    quiet: bool,
    command: str,
) -> Summary:
    """One run, with the question before money is spent and a progress line while it goes."""
    from batcher.engine import Run
    from batcher.tasks.grade import Grade
    from graders.rubric import load_rubric

    task = Grade(load_rubric(rubric))
    with Run(
        store,
        task,
        backend,
        version_id,
        command=command,
        limit=limit,
        budget=budget,
        run_budget=run_budget,
        retry=retry,
    ) as run:
        if backend.paid and len(run.questions):
            estimate = run.estimate()
            run.check_affordable(estimate)
            _ask_consent(run, estimate, yes)
        with progress_line(backend.paid, quiet) as show:
            return run.go(show)


def _ask_consent(run: Run, estimate: Estimate, yes: bool) -> None:
    from batcher.ledger import show_usd

    note(
        f"{run.backend.name} will be asked about {estimate.requests:,} rows: {show_usd(estimate.usd)} expected, at most "
        f"{show_usd(estimate.ceiling_usd)}; leaves this machine: {run.backend.leaves_machine}"
    )
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("this costs money and there is no terminal to ask at; add --yes")
    if not click.confirm("Spend it?", err=True):
        raise click.UsageError("not agreed; nothing was sent")


def tell_summary(store: Store, summary: Summary, backend: Backend, dataset: str, run: Labels) -> None:
    """The last lines: what was done, what it cost, what could not be read."""
    from batcher.ledger import show_usd

    rate = f", {summary.replied / summary.seconds:,.0f} rows/s" if summary.replied and summary.seconds else ""
    cost = show_usd(summary.usd) if backend.paid else "$0"
    note(
        f"{run.grader}, rubric {run.rubric}: {summary.replied:,} replies in {duration(summary.seconds)}{rate}, {cost}"
        + (f"; {summary.already:,} rows were answered before" if summary.already else "")
    )
    for row in store.query("scores", dataset=dataset, grader=run.grader, rubric=run.rubric):
        if row["score"] is None and row["reason"] != "not_graded":
            note(f"  {row['rows']:,} rows have no score: {row['reason']}")
    money = store.query("ledger")[0]
    if money["unresolved_usd"]:
        note(f"  {show_usd(money['unresolved_usd'])} unresolved: sent, and no answer was seen")
    if summary.message:
        note(f"  {summary.message}")


@click.command("grade")
@click.option(
    "--grader", required=True, metavar="SPEC", help="rules, llama_cpp:model.gguf, fake, fake:SCRIPT.toml, or auto."
)
@click.option("--rubric", metavar="R", help="accuracy, helpfulness, rules, or the path of your own .toml.")
@click.option("--dataset", metavar="NAME", help="Which dataset (NAME, or NAME@2); the only one if not given.")
@limit_option
@budget_option
@run_budget_option
@yes_option
@click.option("--retry", is_flag=True, help="Ask again about rows that were given up.")
@max_hours_option
@quiet_option
@click.option("--json", "form", flag_value="json", help="Print JSON.")
@click.pass_obj
def grade_command(
    db: str, grader: str, rubric: str | None, dataset: str | None, limit: int | None, budget: Decimal | None,
    run_budget: Decimal | None, yes: bool, retry: bool, max_hours: float | None, quiet: bool, form: str | None,
) -> int:  # fmt: skip
    """Grade every row of a dataset. Stopped at any moment, the same command goes on from there.

    \b
    Example:
      alpasift grade --grader llama_cpp:model.gguf --rubric accuracy
      alpasift grade --grader fake:paid.toml --budget 5 --yes
    """
    from dataclasses import asdict

    from batcher.datasets import resolve
    from batcher.store import Store

    store = Store(db).existing()
    version = resolve(store, dataset)
    backend, rubric_name = open_grader(store, version.version_id, grader, rubric, max_hours)
    try:
        summary = grade_dataset(
            store, version.version_id, backend, rubric_name, limit=limit, budget=budget, run_budget=run_budget, yes=yes,
            retry=retry, quiet=quiet, command="grade",
        )  # fmt: skip
    finally:
        backend.close()
    run = labels_of(store, summary.run_id)
    tell_summary(store, summary, backend, version.label, run)
    if form:
        print_json(asdict(summary))
    elif summary.scored or summary.already:
        tell_grades(store, version.version_id, run)
    note("next: alpasift scores" if summary.outcome == "done" else "not finished; the same command goes on")
    return 0 if summary.outcome == "done" else 4


@dataclass(frozen=True, slots=True)
class Labels:
    """The grader and the rubric of a run: their labels for people, their ids for everything else."""

    grader: str
    rubric: str
    grader_id: str
    rubric_id: str


def labels_of(store: Store, run_id: str) -> Labels:
    row = store.query("run_labels", run_id=run_id)[0]
    return Labels(row["grader"], row["rubric"], str(row["grader_id"]), str(row["rubric_id"]))


def tell_grades(store: Store, version_id: str, run: Labels) -> None:
    """What the rubric's own threshold would keep, against the pool."""
    from batcher.cli.choose import print_composition
    from batcher.select import choose_grader, composition

    chosen = choose_grader(store, version_id, run.grader_id, run.rubric_id)
    note(f"at the threshold of {number(chosen.threshold)} this keeps:")
    print_composition(composition(store, version_id, chosen=chosen, threshold=chosen.threshold))
