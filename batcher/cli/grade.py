"""The command that grades every row: grade."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click

from alpasift.batcher.cli.consent import ask_consent
from alpasift.batcher.cli.grouped_help import GroupedCommand
from alpasift.batcher.cli.numbers import NUMBER
from alpasift.batcher.cli.options import (
    dataset_option,
    grader_options,
    json_option,
    limit_option,
    max_hours_option,
    quiet_option,
    rehearse_option,
    rubric_option,
    spending_options,
)
from alpasift.batcher.cli.printing import note, number, percent, print_json, progress_line
from alpasift.batcher.cli.reports import (
    print_composition,
    print_degenerate,
    print_opened,
    print_read_again,
    print_summary,
)

if TYPE_CHECKING:
    from alpasift.batcher.data.versions import DatasetVersion
    from alpasift.batcher.engine.run_task import Caps, RunLabels
    from alpasift.batcher.grading.open_grader import OpenGrader
    from alpasift.batcher.store import Store


@click.command("grade", cls=GroupedCommand)
@click.option(
    "--grader",
    required=True,
    metavar="SPEC",
    help="openai_batch:MODEL, openai_chat:MODEL, llama_cpp:model.gguf, vllm:FOLDER, rules, fake, fake:SCRIPT.toml, "
    "or auto.",
)
@rubric_option
@dataset_option
@limit_option
@spending_options
@click.option("--retry", is_flag=True, help="Grade again the rows that were given up on.")
@click.option("--no-wait", is_flag=True, help="Submit batches and return; `alpasift collect` fetches their results.")
@rehearse_option
@click.option(
    "--explain-near",
    type=NUMBER,
    metavar="X",
    help="Only rows that scored within one step of X: request explanations (answer format explain).",
)
@max_hours_option
@grader_options
@quiet_option
@json_option
@click.pass_obj
def grade_command(
    db: str,
    grader: str,
    rubric: str | None,
    dataset: str | None,
    caps: Caps,
    yes: bool,
    retry: bool,
    no_wait: bool,
    rehearse: bool,
    explain_near: Decimal | None,
    max_hours: float | None,
    settings: dict[str, Any],
    asking: dict[str, Any],
    quiet: bool,
    form: str | None,
) -> int:
    """Grade every row of a dataset. Stopped at any moment, the same command resumes.

    \b
    Example:
      alpasift grade --grader llama_cpp:model.gguf --rubric accuracy
      alpasift grade --grader openai_batch:gpt-4.1-nano --budget 5 --rehearse
      alpasift grade --grader openai_batch:gpt-4.1-nano --budget 5 --no-wait
      alpasift grade --grader llama_cpp:model.gguf --rubric additive --samples 3
      alpasift grade --grader llama_cpp:model.gguf --explain-near 4.5
    """
    from alpasift.batcher.data.versions import resolve
    from alpasift.batcher.engine.run_task import labels_of_run, run_task
    from alpasift.batcher.planning.auto import grader_for
    from alpasift.batcher.store import Store

    if explain_near is not None:
        asking = _explaining(asking)
    store = Store(db).existing()
    print_read_again(store)
    with ExitStack() as stack:
        if rehearse:
            from alpasift.batcher.grading.rehearsed import rehearsed

            store, grader, settings, caps = stack.enter_context(rehearsed(store, grader, settings, caps))
        if no_wait:
            settings = {**settings, "wait": False}
        version = resolve(store, dataset)
        with grader_for(
            store, version.version_id, grader, rubric, settings, asking, max_hours=max_hours, budget=caps.budget
        ) as opened:
            print_opened(opened, store, version.version_id)
            near = None if explain_near is None else _rows_near(store, version, opened, explain_near)
            with progress_line(quiet) as progress:
                summary = run_task(
                    store,
                    version.version_id,
                    opened.task,
                    opened.backend,
                    caps,
                    command="grade",
                    positions=None if near is None else list(near),
                    retry=retry,
                    confirm=ask_consent(yes or rehearse),
                    progress=progress,
                )
        run = labels_of_run(store, summary.run_id)
        print_summary(store, summary, opened.backend, version.label, run)
        if near is not None:
            _print_changed(store, version, opened, near)
        if not rehearse:  # whose scores are made up
            print_degenerate(store, version.label, run.grader, run.rubric)
        if form:
            print_json(asdict(summary))
        elif summary.outcome == "done" and (summary.usable or summary.already) and not rehearse:
            _print_kept(store, version, run)
    done = summary.outcome == "done"
    if rehearse:
        of = f"{summary.replied:,} of the {version.rows:,} rows of {version.label}"
        note(
            f"this was a rehearsal with {of}: nothing left this machine, nothing was spent and nothing was kept. Its "
            "scores are made up, and its dollars are too low: the local server counts words, of which there are fewer "
            f"than tokens, and `alpasift plan --grader {grader}` has the expected cost. Drop --rehearse to grade"
        )
    else:
        note("next: alpasift scores" if done else "not finished; the same command resumes")
    return 0 if done else 4


def _explaining(asking: dict[str, Any]) -> dict[str, Any]:
    """How rows are prompted for their explanation. Raises UsageError for options that contradict it."""
    if set(asking) - {"answer_format"}:
        raise click.UsageError("--explain-near requests each explanation once; remove --samples and --temperature")
    if asking.get("answer_format", "explain") != "explain":
        raise click.UsageError("--explain-near sets the answer format explain; remove --answer-format")
    return {"answer_format": "explain"}


def _rows_near(store: Store, version: DatasetVersion, opened: OpenGrader, score: Decimal) -> dict[int, Decimal]:
    from alpasift.batcher.grading.explain_near import rows_near

    rubric = opened.task.rubric
    near = rows_near(store, version.version_id, opened.task, opened.backend, score)
    if not near:
        raise click.UsageError(
            f"{opened.backend.name} has scored no row of {version.label} by {rubric.name} within {number(rubric.step)} "
            f"of {number(score)}; grade first, then request explanations"
        )
    note(f"{len(near):,} rows score within {number(rubric.step)} of {number(score)}; only these are explained")
    return near


def _print_changed(store: Store, version: DatasetVersion, opened: OpenGrader, before: dict[int, Decimal]) -> None:
    from alpasift.batcher.grading.explain_near import count_changed

    changed = count_changed(store, version.version_id, opened.task, opened.backend, before)
    if changed:
        note(f"  {changed:,} of the {len(before):,} rows got a different score this time; the newest counts")


def _print_kept(store: Store, version: DatasetVersion, run: RunLabels) -> None:
    """What the rubric's own threshold would keep, against the pool."""
    from alpasift.batcher.grading.lookup import find_grading, scores_of
    from alpasift.batcher.grading.selections import composition

    grading = find_grading(store, version.version_id, run.grader_id, run.rubric_id)
    if grading.measured:
        note(f"{run.rubric} has no threshold: alpasift select --grader {run.grader} --keep-share .1 --name best")
        return
    table = composition(store, version.version_id, grading=grading)
    graded = scores_of(store, version.version_id, grading).graded
    if graded < version.rows:
        kept = table[0]["kept"]
        note(
            f"kept at the threshold {number(grading.threshold)}: {kept:,} of the {graded:,} rows graded so far "
            f"({percent(kept / graded)}); beside all {version.rows:,} rows of {version.label}, graded or not:"
        )
    else:
        note(f"kept at the threshold {number(grading.threshold)}:")
    print_composition(table)
