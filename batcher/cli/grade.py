"""The command that grades, and what other commands share of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click

from batcher.cli.options import (
    asking_options,
    budget_option,
    grader_options,
    limit_option,
    max_hours_option,
    meant_for,
    quiet_option,
    run_budget_option,
    yes_option,
)
from batcher.cli.printing import NUMBER, duration, note, number, print_json, progress_line

if TYPE_CHECKING:
    from batcher.datasets import DatasetVersion
    from batcher.engine import Run, Summary
    from batcher.store import Store
    from batcher.tasks.grade import Grade
    from graders import Backend, Estimate


def rubric_for(spec: str, rubric: str | None) -> str:
    """The rubric asked for; `rules` for the grader of that name, else accuracy."""
    from batcher.plan import kind

    return rubric or ("rules" if kind(spec) == "rules" else "accuracy")


def open_grader(
    store: Store,
    version_id: str,
    spec: str,
    rubric: str | None,
    max_hours: float | None,
    options: dict[str, Any] | None = None,
    budget: Decimal | None = None,
    asking: dict[str, Any] | None = None,
) -> tuple[Backend, str]:
    """The backend of a spec with its settings, `auto` resolved, and the rubric's name."""
    from graders import open_backend

    if spec.strip() == "auto":
        from batcher.cli.plans import make_offers
        from batcher.ledger import balance
        from batcher.plan import choose, named_graders

        named = named_graders()
        if budget is None:
            with store.reader() as con:
                budget = balance(con).free
        offers = make_offers(
            store,
            version_id,
            named,
            rubric,
            options or {},
            history=store,
            free_usd=budget,
            usual=not named,
            asking=asking,
        )
        chosen, why = choose(offers, max_hours, free_usd=budget)
        note(f"grader {why}")
        spec = chosen.grader
        return open_backend(spec, meant_for(spec, options or {})), rubric_for(spec, rubric)
    return open_backend(spec, meant_for(spec, options or {}, explicit=True)), rubric_for(spec, rubric)


def grade_dataset(
    store: Store,
    version_id: str,
    backend: Backend,
    task: Grade,
    *,
    limit: int | None,
    budget: Decimal | None,
    run_budget: Decimal | None,
    yes: bool,
    retry: bool,
    quiet: bool,
    command: str,
    positions: Sequence[int] | None = None,
) -> Summary:
    """One run, with the question before money is spent and a progress line while it goes."""
    from batcher.engine import Run

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
        positions=positions,
    ) as run:
        for remark in backend.remarks:
            note(remark)
        if backend.paid and len(run.questions):
            estimate = run.estimate()
            run.check_affordable(estimate)
            ask_consent(run, estimate, yes)
        with progress_line(backend.paid, quiet) as show:
            return run.go(show)


def ask_consent(run: Run, estimate: Estimate, yes: bool) -> None:
    """Show what it should cost and can cost at most, and ask. Raises UsageError where nobody agrees."""
    from batcher.ledger import show_usd

    note(
        f"{run.backend.name} will be asked about {estimate.requests:,} rows: {show_usd(estimate.usd)} expected, at most "
        f"{show_usd(estimate.ceiling_usd)}; leaves this machine: {run.backend.leaves_machine}"
    )
    for line in estimate.notes:
        note(f"  {line}")
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("this costs money and there is no terminal to ask at; add --yes")
    if not click.confirm("Spend it?", err=True):
        raise click.UsageError("not agreed; nothing was sent")


def tell_summary(store: Store, summary: Summary, backend: Backend, dataset: str, run: Labels) -> None:
    """The last lines: what was done, what it cost beside what was predicted, what could not be read."""
    from batcher.cli.plans import tell_prediction
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
    tell_prediction(store, summary.run_id)


@click.command("grade")
@click.option(
    "--grader",
    required=True,
    metavar="SPEC",
    help="openai_batch:MODEL, openai_chat:MODEL, llama_cpp:model.gguf, rules, fake, fake:SCRIPT.toml, or auto.",
)
@click.option("--rubric", metavar="R", help="accuracy, helpfulness, rules, or the path of your own .toml.")
@click.option("--dataset", metavar="NAME", help="Which dataset (NAME, or NAME@2); the only one if not given.")
@limit_option
@budget_option
@run_budget_option
@yes_option
@click.option("--retry", is_flag=True, help="Ask again about rows that were given up.")
@click.option("--no-wait", is_flag=True, help="Submit batches and leave; `alpasift collect` brings them later.")
@click.option(
    "--rehearse", is_flag=True, help="Run against a server on this machine, on a copy of the database, at $0."
)
@click.option(
    "--explain-near",
    type=NUMBER,
    metavar="X",
    help="Only for rows that score within one step of X: buy their explanations (contract explain).",
)
@grader_options
@asking_options
@max_hours_option
@quiet_option
@click.option("--json", "form", flag_value="json", help="Print JSON.")
@click.pass_obj
def grade_command(
    db: str, grader: str, rubric: str | None, dataset: str | None, limit: int | None, budget: Decimal | None,
    run_budget: Decimal | None, yes: bool, retry: bool, no_wait: bool, rehearse: bool, max_hours: float | None, quiet: bool,
    form: str | None, options: dict[str, Any], asking: dict[str, Any], explain_near: Decimal | None,
) -> int:  # fmt: skip
    """Grade every row of a dataset. Stopped at any moment, the same command goes on from there.

    \b
    Example:
      alpasift grade --grader llama_cpp:model.gguf --rubric accuracy
      alpasift grade --grader openai_batch:gpt-4.1-nano --budget 5 --rehearse
      alpasift grade --grader openai_batch:gpt-4.1-nano --budget 5 --no-wait
      alpasift grade --grader llama_cpp:model.gguf --rubric additive --samples 3
      alpasift grade --grader llama_cpp:model.gguf --explain-near 4.5
    """
    from contextlib import ExitStack

    from batcher.datasets import resolve
    from batcher.store import Store

    if explain_near is not None and set(asking) - {"contract"}:
        raise click.UsageError("--explain-near asks once for the reasons; leave --samples and --temperature out")
    if explain_near is not None and asking.get("contract", "explain") != "explain":
        raise click.UsageError("--explain-near asks in the contract explain; leave --contract out")
    store = Store(db).existing()
    stack = ExitStack()
    with stack:
        if rehearse:
            from batcher.rehearse import rehearsal

            store, options, budget = stack.enter_context(rehearsal(store, grader, options, budget))
            yes = True
        version = resolve(store, dataset)
        options = {**options, "wait": False} if no_wait else options
        return _grade(
            store, version, grader, rubric, options, limit=limit, budget=budget, run_budget=run_budget, yes=yes, retry=retry,
            max_hours=max_hours, quiet=quiet, form=form, rehearse=rehearse, asking=asking, explain_near=explain_near,
        )  # fmt: skip


def _grade(
    store: Store, version: DatasetVersion, grader: str, rubric: str | None, options: dict[str, Any], *, limit: int | None,
    budget: Decimal | None, run_budget: Decimal | None, yes: bool, retry: bool, max_hours: float | None, quiet: bool,
    form: str | None, rehearse: bool, asking: dict[str, Any], explain_near: Decimal | None,
) -> int:  # fmt: skip
    from dataclasses import asdict

    from batcher.tasks.grade import contract_for
    from graders.rubric import load_rubric

    if explain_near is not None:
        asking = {"contract": "explain"}
    backend, rubric_name = open_grader(store, version.version_id, grader, rubric, max_hours, options, budget, asking)
    try:
        task = contract_for(load_rubric(rubric_name), backend, **asking)
        near = _near(store, version, backend, task, explain_near) if explain_near is not None else None
        summary = grade_dataset(
            store, version.version_id, backend, task, limit=limit, budget=budget, run_budget=run_budget, yes=yes,
            retry=retry, quiet=quiet, command="grade", positions=list(near) if near is not None else None,
        )  # fmt: skip
    finally:
        backend.close()
    run = labels_of(store, summary.run_id)
    tell_summary(store, summary, backend, version.label, run)
    if near is not None:
        _tell_moved(store, version, backend, task, near)
    if form:
        print_json(asdict(summary))
    elif summary.outcome == "done" and (summary.scored or summary.already):
        tell_grades(store, version.version_id, run)
    if rehearse:
        note(
            "this was a rehearsal: nothing was sent anywhere and nothing of it is kept; without --rehearse the command is real"
        )
    else:
        note("next: alpasift scores" if summary.outcome == "done" else "not finished; the same command goes on")
    return 0 if summary.outcome == "done" else 4


def _near(store: Store, version: DatasetVersion, backend: Backend, task: Grade, score: Decimal) -> dict[int, Decimal]:
    """Position and score of the rows that this grader scored within one step of `score`. Raises UsageError for none."""
    from batcher.questions import setup_of

    setup, step = setup_of(task, backend), task.rubric.step
    rows = store.query(
        "scored_between", version_id=version.version_id, grader_id=setup.grader_id, rubric_id=setup.rubric_id,
        low=score - step, high=score + step,
    )  # fmt: skip
    if not rows:
        raise click.UsageError(
            f"{backend.name} has scored no row of {version.label} by {task.rubric.name} within {number(step)} of "
            f"{number(score)}; grade first, then buy explanations"
        )
    note(f"{len(rows):,} rows score within {number(step)} of {number(score)}; only these are asked for their reasons")
    return {row["position"]: row["score"] for row in rows}


def _tell_moved(
    store: Store, version: DatasetVersion, backend: Backend, task: Grade, before: dict[int, Decimal]
) -> None:
    """How many rows got another score when they were asked again with reasons: a grader that is not repeatable."""
    from batcher.questions import setup_of

    setup = setup_of(task, backend)
    rows = store.query(
        "scored_between", version_id=version.version_id, grader_id=setup.grader_id, rubric_id=setup.rubric_id,
        low=task.rubric.low, high=task.rubric.high,
    )  # fmt: skip
    now = {row["position"]: row["score"] for row in rows}
    moved = sum(now.get(position) != score for position, score in before.items())
    if moved:
        note(f"  {moved:,} of the {len(before):,} rows got another score this time; the newest counts")


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
