"""The command that does the whole job in one go: filter."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click

from alpasift.batcher.cli.consent import ask_consent
from alpasift.batcher.cli.grouped_help import GroupedCommand
from alpasift.batcher.cli.options import (
    force_option,
    grader_options,
    import_options,
    limit_option,
    max_hours_option,
    quiet_option,
    rubric_option,
    score_options,
    spending_options,
    with_option,
)
from alpasift.batcher.cli.printing import note, number, percent, plain, progress_line
from alpasift.batcher.cli.reports import (
    print_added,
    print_composition,
    print_degenerate,
    print_import,
    print_opened,
    print_read_again,
    print_selection,
    print_summary,
)

if TYPE_CHECKING:
    from alpasift.batcher.engine.run_task import Caps, RunLabels
    from alpasift.batcher.grading.selections import Selection
    from alpasift.batcher.store import Store


@click.command("filter", cls=GroupedCommand)
@click.argument("file", type=click.Path(), metavar="FILE")
@click.option("-o", "--output", required=True, type=click.Path(), metavar="OUT", help="Output file of the kept rows.")
@click.option(
    "--rejected",
    type=click.Path(),
    metavar="FILE",
    help="Output file of the other rows, each with its score and reason.",
)
@click.option(
    "--grader", default="auto", show_default=True, metavar="SPEC", help="rules, llama_cpp:model.gguf, fake, auto."
)
@with_option
@force_option
@rubric_option
@click.option("--dataset", metavar="NAME", help="The name to import the file under. Default: the file's name.")
@score_options
@import_options
@limit_option
@spending_options
@max_hours_option
@grader_options
@quiet_option
@click.pass_obj
def filter_command(
    db: str,
    file: str,
    output: str,
    rejected: str | None,
    figures: tuple[str, ...],
    force: bool,
    grader: str,
    rubric: str | None,
    dataset: str | None,
    min_score: Decimal | None,
    top: int | None,
    keep_share: Decimal | None,
    reading: dict[str, Any],
    caps: Caps,
    yes: bool,
    max_hours: float | None,
    settings: dict[str, Any],
    asking: dict[str, Any],
    quiet: bool,
) -> int:
    """Import a file, grade every row, keep the good ones and write them out.

    Without --min-score, --top or --keep-share the rubric's own threshold decides, unless the scores hardly tell the
    rows apart: then nothing is written and the exit code is 1. Rows without a score are never kept.
    Stopped at any moment, the same command resumes.

    \b
    Example:
      alpasift filter data.json -o kept.json --grader llama_cpp:model.gguf
      alpasift filter data.json -o kept.json --grader rules --rejected out.jsonl
    """
    from alpasift.batcher.data.importing import dataset_name, import_file
    from alpasift.batcher.data.outputs import check_outputs
    from alpasift.batcher.engine.run_task import labels_of_run, run_task
    from alpasift.batcher.grading.condition import Condition
    from alpasift.batcher.grading.exported_grades import check_figures
    from alpasift.batcher.grading.lookup import find_grading
    from alpasift.batcher.grading.open_grader import own_rubric, spec_named
    from alpasift.batcher.grading.results import (
        output_of_rejected,
        output_of_selection,
        write_rejected,
        write_selection,
    )
    from alpasift.batcher.grading.select import select
    from alpasift.batcher.planning.auto import grader_for
    from alpasift.batcher.store import Store
    from alpasift.graders import backend_kind
    from alpasift.graders.prompts.rubric import MEASURED, load_rubric

    if sum(v is not None for v in (min_score, top, keep_share)) > 1:
        raise click.UsageError("give one of --min-score, --top and --keep-share")
    own = own_rubric(grader)
    if own in MEASURED and min_score is None and top is None and keep_share is None:
        raise click.UsageError(f"the rubric {own} has no threshold; give --keep-share .1, --top N or --min-score X")
    if grader.strip() != "auto":
        backend_kind(spec_named(Store(db), grader).spec)
    if rubric is not None:
        load_rubric(rubric)
    check_figures(figures)
    dataset = dataset_name(file, dataset)
    name = f"{dataset[:57]}-kept"
    outputs = [output_of_selection(name, dataset, output)]
    if rejected:
        outputs.append(output_of_rejected(name, dataset, rejected))
    check_outputs(Store(db), outputs, sources=[file], force=force)
    store = Store(db)
    found = import_file(store, file, dataset=dataset, **reading)
    print_import(found)
    print_read_again(store)
    with grader_for(
        store, found.version_id, grader, rubric, settings, asking, max_hours=max_hours, budget=caps.budget
    ) as opened:
        print_opened(opened, store, found.version_id)
        with progress_line(quiet) as progress:
            summary = run_task(
                store,
                found.version_id,
                opened.task,
                opened.backend,
                caps,
                command="filter",
                confirm=ask_consent(yes),
                progress=progress,
            )
    with store.reader():  # opened once for both
        run = labels_of_run(store, summary.run_id)
        print_summary(store, summary, opened.backend, found.label, run)
    if summary.outcome != "done" or summary.left:
        note("not all rows are graded, so nothing was written; the same command resumes")
        return 4
    if min_score is None and top is None and keep_share is None:
        min_score = opened.task.rubric.threshold
        _check_tells_apart(store, found.label, run, min_score)
    else:
        print_degenerate(store, found.label, run.grader, run.rubric)
    condition = Condition(min_score=min_score, top=top, keep_share=keep_share)
    kept = select(store, found.version_id, name, condition, grader=run.grader_id, rubric=run.rubric_id)[0]
    print_selection(kept)
    _print_reasons(store, kept, run)
    grading = find_grading(store, found.version_id, run.grader_id, run.rubric_id) if figures else None
    _, added = write_selection(store, kept, output, figures=figures, grading=grading, force=force)
    print_added(figures, added)
    if rejected:
        write_rejected(store, kept, rejected, run.grader_id, run.rubric_id, force=force)
    print_composition(kept.manifest["composition"])
    _print_warnings(kept, run)
    others = f", {kept.pool - kept.rows:,} to {plain(rejected)}" if rejected else ""
    note(f"{kept.rows:,} rows written to {plain(output)}{others}")
    note("next: alpasift scores; another threshold (--min-score) needs no new grading")
    return 0


def _check_tells_apart(store: Store, dataset: str, run: RunLabels, threshold: Decimal) -> None:
    """Raise DegenerateGrader where the scores hardly tell the rows apart: the rubric's threshold means nothing then."""
    from alpasift.batcher.grading.degenerate import DegenerateGrader, degenerate_gradings

    for found in degenerate_gradings(store, dataset=dataset, grader=run.grader, rubric=run.rubric):
        raise DegenerateGrader(
            f"{found}. Nothing was written; the grades are kept. To filter by these scores all the same, name the "
            f"threshold (--min-score {number(threshold)}), --top or --keep-share"
        )


def _print_reasons(store: Store, kept: Selection, run: RunLabels) -> None:
    """The grader's own reasons for rows that were not kept, where it gives any."""
    parameters = {"selection_id": kept.selection_id, "grader_id": run.grader_id, "rubric_id": run.rubric_id}
    for row in store.query("not_selected_by_reason", **parameters):
        if row["score"] is not None:
            note(f"    {row['rows']:,} {row['reason']}")


def _print_warnings(kept: Selection, run: RunLabels) -> None:
    share = kept.rows / kept.pool if kept.pool else 0.0
    if not 0.05 <= share <= 0.5:
        side = "few rows are kept" if share < 0.05 else "most rows are kept"
        note(
            f"warning: {percent(share)}, {side}; look at `alpasift scores` before you train on it, and at whether "
            f"{run.grader} can judge this"
        )
    if run.rubric.partition("@")[0] == "rules":
        from alpasift.graders.rules import JUDGES

        note(JUDGES)
