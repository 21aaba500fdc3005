"""The command that finds out, without labels, whether a grader is worth anything: audit."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from alpasift.batcher.cli.consent import ask_consent
from alpasift.batcher.cli.grouped_help import GroupedCommand
from alpasift.batcher.cli.options import (
    dataset_option,
    grader_options,
    json_option,
    quiet_option,
    rehearse_option,
    rubric_option,
    spending_options,
)
from alpasift.batcher.cli.printing import note, plain, print_json, print_table, progress_line
from alpasift.batcher.cli.reports import counted, print_read_again, print_summary, show_figure

if TYPE_CHECKING:
    from alpasift.batcher.engine.run_task import Caps, RunLabels
    from alpasift.batcher.grading.audit import AuditResult, KindFigures


@click.command("audit", cls=GroupedCommand)
@click.argument("grader", metavar="GRADER")
@click.option(
    "--rows",
    "count",
    default=200,
    show_default=True,
    type=click.IntRange(20, 5_000),
    metavar="N",
    help="Rows to test on.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Seed of the sample. With one seed, a larger sample contains the smaller.",
)
@rubric_option
@dataset_option
@spending_options
@click.option("--no-wait", is_flag=True, help="Submit batches and return; the same command resumes later.")
@rehearse_option
@grader_options
@quiet_option
@json_option
@click.pass_obj
def audit_command(
    db: str,
    grader: str,
    count: int,
    seed: int,
    rubric: str | None,
    dataset: str | None,
    caps: Caps,
    yes: bool,
    no_wait: bool,
    rehearse: bool,
    settings: dict[str, Any],
    asking: dict[str, Any],
    quiet: bool,
    form: str | None,
) -> int:
    """Test without labels what a grader can tell apart.

    Grades rows of the dataset beside damaged copies of them: another row's output, an output cut in half, shuffled
    words, a changed fact, no output, a refusal. Further copies are no better than the original: the output repeated,
    padded, or with a line that claims the highest score. Reports which damage lowers the score more often than by
    chance, and which of that output length finds too. About eleven questions per row; rows already graded cost nothing,
    and the same command resumes.

    \b
    Example:
      alpasift audit llama_cpp:model.gguf --rows 100
      alpasift audit openai_batch:gpt-4.1-nano --budget 5 --rehearse
    """
    from alpasift.batcher.data.versions import resolve
    from alpasift.batcher.engine.run_task import labels_of_run
    from alpasift.batcher.grading.audit import run_audit
    from alpasift.batcher.grading.open_grader import open_named
    from alpasift.batcher.store import Store

    if grader.strip() == "auto":
        raise click.UsageError("an audit tests one grader; name it, such as llama_cpp:model.gguf")
    if "samples" in asking:
        raise click.UsageError("an audit asks some questions twice by itself; leave --samples out")
    store = Store(db).existing()
    print_read_again(store)
    with ExitStack() as stack:
        if rehearse:
            from alpasift.batcher.grading.rehearsed import rehearsed

            store, grader, settings, caps = stack.enter_context(rehearsed(store, grader, settings, caps))
        if no_wait:
            settings = {**settings, "wait": False}
        version = resolve(store, dataset)
        opened = stack.enter_context(open_named(store, grader, rubric, settings, asking))
        for remark in opened.backend.remarks:
            note(remark)
        with progress_line(quiet) as progress:
            done = run_audit(
                store,
                version,
                opened,
                count,
                seed,
                caps,
                confirm=ask_consent(yes or rehearse),
                progress=progress,
            )
        run = labels_of_run(store, done.summary.run_id)
        print_summary(store, done.summary, opened.backend, done.audit.label, run)
    if done.result is None:
        note("not finished, and nothing is concluded yet; the same command resumes")
        return 4
    if form:
        found = asdict(done.result)
        del found["audit"]["numbers"]
        print_json({"dataset": version.label, "grader": run.grader, "rubric": run.rubric, **found})
    else:
        _print(version.label, run, count, done.result)
    if rehearse:
        note("this was a rehearsal: nothing was sent anywhere, and nothing of it is kept; drop --rehearse to audit")
    elif done.result.verdict.beyond_length:
        note("next: alpasift plan, or `alpasift query audits` for all audits")
    else:
        finer = ", or --answer-format expected_score where the grader can give it"
        note(f"next: another model{finer if done.result.by == 'score' else ''}")
    return 0


def _print(dataset: str, run: RunLabels, wanted: int, found: AuditResult) -> None:
    from alpasift.batcher.grading.audit_store import passed_over_reason

    audit = found.audit
    of = f" of the {wanted:,} wanted" if audit.taken < wanted else ""
    click.echo(
        f"{plain(dataset)}: {plain(run.grader)}, rubric {plain(run.rubric)}, by {found.by.replace('_', ' ')}: "
        f"{audit.taken:,} rows{of}, seed {audit.seed}, {sum(one.pairs for one in found.kinds):,} pairs with both scores"
    )
    damage = [one for one in found.kinds if one.expects == "lower"]
    changes = [one for one in found.kinds if one.expects != "lower"]
    print_table(
        ["damage must lower the score", "pairs", "lowered", "ties", "raised", "AUC", "AUC of length"],
        [
            (one.kind, one.pairs, _share(one), one.ties, one.lower, show_figure(one.auc), show_figure(one.length_auc))
            for one in damage
        ],
    )
    click.echo()
    print_table(
        ["this must not raise it", "pairs", "raised", "ties", "lowered", "mean change"],
        [(one.kind, one.pairs, _share(one), one.ties, one.higher, _change(one.mean_change)) for one in changes],
    )
    click.echo(
        f"- asked twice: {counted(found.asked_twice, 'question')}, the same score both times: "
        f"{show_figure(found.same_twice)}"
    )
    left_out = [f"{number:,} x {kind}" for kind, number in audit.left_out.items() if number]
    if left_out:
        click.echo(f"- rows that could not be changed so: {', '.join(left_out)}")
    if unread := sum(one.no_score for one in found.kinds):
        click.echo(f"- pairs without a score on one side: {unread:,}")
    for reason, number in audit.passed_over.items():
        click.echo(f"- passed over, {passed_over_reason(reason)}: {number:,}")
    click.echo(f"- VERDICT: {plain(run.grader)} {found.verdict.line}")


def _share(one: KindFigures) -> str:
    return show_figure(one.share)


def _change(mean: float | None) -> str:
    return "" if mean is None else f"{round(mean, 3) + 0.0:+.3f}"
