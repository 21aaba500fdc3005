"""What several commands print alike: an import, a run, a score distribution, a selection and what it keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import click

from alpasift.batcher.cli.printing import bar, note, number, percent, plain, print_paragraph, print_table
from alpasift.batcher.engine.progress import duration, rate_text

if TYPE_CHECKING:
    from alpasift.batcher.data.importing import Imported
    from alpasift.batcher.data.preview import Preview
    from alpasift.batcher.engine.run_task import RunLabels
    from alpasift.batcher.engine.summary import Summary
    from alpasift.batcher.grading.open_grader import OpenGrader
    from alpasift.batcher.grading.selections import Selection
    from alpasift.batcher.statistics import Figure
    from alpasift.batcher.store import Store
    from alpasift.graders import Backend


def print_import(found: Imported) -> None:
    """What an import did, on stderr."""
    if found.already_imported:
        note(f"{found.label}: already imported ({found.rows:,} rows); nothing added")
        return
    detail = f" ({found.detail})" if found.detail else ""
    note(f"{found.label}: {counted(found.rows, 'row')} from {found.format}{detail}, row format {found.row_format}")
    if found.overruled:
        note(_overruled(found.row_format, found.overruled))
    if found.rivals or any(part != key for part, key in found.columns.items()):
        note(f"  {columns_read(found.columns, found.rivals)}")
    if found.duplicates:
        note(f"  {counted(found.duplicates, 'exact duplicate')}; each distinct row is graded once")
    print_counts(found.notes, found.reasons)


def print_preview(found: Preview) -> None:
    """What an import would do: the facts on stderr, the row as the grader will see it on stdout."""
    detail = f" ({found.detail})" if found.detail else ""
    rows = counted(found.rows, "usable row")
    note(f"{plain(found.dataset)}: {rows} from {found.format}{detail}, row format {found.row_format}")
    if found.overruled:
        note(_overruled(found.row_format, found.overruled))
    note(f"  {columns_read(found.columns, found.rivals)}")
    if found.kept:
        note(f"  kept, not graded: {', '.join(map(plain, found.kept))}")
    print_counts(found.notes, found.reasons)
    note("  the first row as the grader sees it:")
    click.echo(plain(found.shown))


def _overruled(row_format: str, detected: str) -> str:
    return f"  read as {row_format}, as --row-format says; by its keys the file is {detected}"


def counted(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def columns_read(columns: Mapping[str, str], rivals: Sequence[str]) -> str:
    """Which keys of a file hold what, and which others might have held the answer."""
    named = ", ".join(part if part == key else f"{part} from {plain(key)}" for part, key in columns.items())
    others = " or ".join(map(plain, rivals))
    return f"columns: {named}" + (f"; {others} could be the answer too and is kept with the row" if rivals else "")


def print_counts(notes: Mapping[str, int], reasons: Mapping[str, int]) -> None:
    """How many rows were read otherwise than they stood, and how many were skipped, with what that means."""
    from alpasift.batcher.data.row_formats.row import REASONS, note_sentence

    for name, count in sorted(notes.items(), key=lambda pair: -pair[1]):
        note(f"  {count:,} x {name}: {note_sentence(name)}")
    if reasons:
        note(f"  {counted(sum(reasons.values()), 'row')} skipped:")
    for reason, count in sorted(reasons.items(), key=lambda pair: -pair[1]):
        note(f"    {count:,} x {reason}: {REASONS[reason]}")


def print_read_again(store: Store) -> None:
    """Have stored replies read by the parser of this release, and say on stderr what that changed."""
    from alpasift.batcher.engine.reread import read_stored_again

    found = read_stored_again(store)
    if found.replies:
        replies = f"{found.replies:,} stored {'reply' if found.replies == 1 else 'replies'}"
        scores = f"{found.changed:,} {'score' if found.changed == 1 else 'scores'}"
        note(f"re-parsed {replies} with the new parser: {scores} changed, at no cost")
    if found.waiting:
        note(
            f"{found.waiting:,} stored {'reply was' if found.waiting == 1 else 'replies were'} parsed by an earlier "
            "version, and the database is read-only now; run this again when it is writable"
        )


def print_added(figures: Sequence[str], names: Sequence[str]) -> None:
    """Which figures were written under another key than their own, on stderr."""
    for figure, name in zip(figures, names, strict=True):
        if name != figure:
            note(f"  the rows have a key {figure} already; the grade's is written as {name}")


def print_opened(opened: OpenGrader, store: Store, version_id: str) -> None:
    """Why `auto` took this grader, and what a person should know of it and of the rows, on stderr.

    A grader that costs money says of the rows with its cost, and `rules` finds them itself.
    """
    from alpasift.batcher.data.addressed_rows import addressed_note, addressed_rows

    if opened.reason:
        note(f"grader {opened.reason}")
    for remark in opened.backend.remarks:
        note(remark)
    if opened.backend.paid or opened.task.rubric.judged_from_row:
        return
    if warning := addressed_note(addressed_rows(store, version_id)):
        note(warning)


def print_summary(store: Store, summary: Summary, backend: Backend, dataset: str, run: RunLabels) -> None:
    """The last lines of a run, on stderr: what was done, what it cost and was predicted to cost, what has no score."""
    from alpasift.batcher.money.dollars import show_usd

    rate = f", {rate_text(summary.replied / summary.seconds)}" if summary.replied and summary.seconds else ""
    cost = show_usd(summary.usd) if backend.paid else "$0"
    brought, before = summary.brought, summary.already
    if brought.replies:
        many = "1 reply" if brought.replies == 1 else f"{brought.replies:,} replies"
        note(f"{many} from batches submitted earlier, {show_usd(brought.usd)}")
    many = "1 reply" if summary.replied == 1 else f"{summary.replied:,} replies"
    note(
        f"{run.grader}, rubric {run.rubric}: {many} in {duration(summary.seconds)}{rate}, {cost}"
        + (f"; {'1 row was' if before == 1 else f'{before:,} rows were'} graded before" if before else "")
    )
    with store.reader():  # opened once for both
        counts = store.query("scores", dataset=dataset, grader=run.grader, rubric=run.rubric, hidden=None)
        money = store.query("ledger")[0]
    for row in counts:
        if row["score"] is None and row["reason"] != "not_graded":
            note(f"  {row['rows']:,} rows have no score: {row['reason']}")
    if money["unresolved_usd"]:
        note(f"  {show_usd(money['unresolved_usd'])} unresolved: sent, but no answer or no valid usage was received")
    if summary.message:
        note(f"  {summary.message}")
    if backend.paid:
        print_prediction(store, summary.run_id)


def print_prediction(store: Store, run_id: str) -> None:
    """What was expected for a run's answers beside what they cost, on stderr; nothing where there was no estimate."""
    from alpasift.batcher.money.dollars import show_usd

    for row in store.query("predictions", grader=None, rubric=None, run_id=run_id):
        expected, usd = row["expected_usd"], row["usd"]
        ratio = f" ({usd / expected:.2f} times)" if expected else ""
        note(
            f"  {show_usd(expected)} expected for {counted(row['answers'], 'answer')}, {show_usd(usd)} spent{ratio}; "
            "`alpasift plan --history` compares all runs"
        )


def print_histogram(
    dataset: str, grader: str, rubric: str, rows: list[dict[str, Any]], deciles: Sequence[Mapping[str, Any]] = ()
) -> None:
    """One grader's distribution over one dataset, as bars; deciles and reasons below.

    Measured scores have no steps: `deciles`, the rows of that query, stand in place of their bars, or their range.
    """
    from alpasift.graders.prompts.rubric import MEASURED

    by_score: dict[Any, int] = {}
    shares: dict[Any, float] = {}
    reasons: list[tuple[str, int, Any]] = []
    for row in rows:
        if row["score"] is not None:
            by_score[row["score"]] = by_score.get(row["score"], 0) + row["rows"]
            shares[row["score"]] = row["cumulative_share"]
        if row["reason"] is not None:
            reasons.append((row["reason"], row["rows"], row["score"]))
    scored = sum(by_score.values())
    total = sum(row["rows"] for row in rows)
    waiting = sum(row["rows"] for row in rows if row["reason"] == "not_graded")
    print_paragraph(
        f"{plain(dataset)}  graded by {plain(grader)}, rubric {plain(rubric)}: {scored:,} of {total:,} rows have a "
        "score"
    )
    if deciles:
        print_table(
            ("tenth", "lowest", "highest", "rows", "median output chars"),
            [(d["decile"], d["lowest"], d["highest"], d["rows"], d["median_output_chars"]) for d in deciles],
        )
    elif by_score and rubric.partition("@")[0] in MEASURED:
        click.echo(f"  scores from {number(min(by_score))} to {number(max(by_score))}")
    elif by_score:
        top, kept = max(by_score.values()), 0
        click.echo(f"  {'score':>6}  {'rows':>9}  {'at least':>9}  {'kept':>6}")
        for score, count in by_score.items():
            kept += count
            share = percent(shares[score])
            click.echo(f"  {number(score):>6}  {count:>9,}  {kept:>9,}  {share:>6}  {bar(count / top)}")
        steps = [b - a for a, b in pairwise(sorted(by_score))]
        if steps:
            click.echo(f"  observed score step {number(min(steps))}")
        if nine := ", ".join(number(score) for score in rows[0].get("deciles") or ()):
            print_paragraph(
                f"  deciles {nine}: a tenth of the scored rows lies at or below the first, half at or below the 5th"
            )
    if waiting:
        click.echo(f"  kept is the share of the {total - waiting:,} rows graded so far")
    for reason, count, score in reasons:
        where = "no score" if score is None else f"score {number(score)}"
        click.echo(f"  {where:>8}  {count:>9,}  {plain(reason)}")


def print_degenerate(store: Store, dataset: str | None, grader: str | None, rubric: str | None) -> None:
    """A line on stderr for each grading, among those with these labels, whose scores hardly tell the rows apart."""
    from alpasift.batcher.grading.degenerate import degenerate_gradings

    for one in degenerate_gradings(store, dataset=dataset, grader=grader, rubric=rubric):
        note(f"warning: {one}")


def print_selection(selection: Selection) -> None:
    """What was kept, what happened to ties, and why the others were not kept, on stderr."""
    from alpasift.batcher.grading.select import not_kept

    share = selection.rows / selection.pool if selection.pool else 0.0
    note(f"{selection.label}: {selection.rows:,} of {selection.pool:,} rows kept ({percent(share)})")
    ties = selection.manifest.get("ties")
    if ties and ties["taken"] < ties["tied"]:
        what, value = next((k, v) for k, v in ties.items() if k in ("score", "output_chars"))
        note(
            f"  of {ties['tied']:,} rows tied at {what} {number(value)}, {ties['taken']:,} were drawn by a seeded hash"
        )
    reasons = selection.manifest.get("not_kept_by_reason") or {}
    for reason, count in sorted(reasons.items(), key=lambda pair: -pair[1]):
        note(f"  {count:,} not kept: {not_kept(reason)}")
    for text in selection.manifest.get("notes") or []:
        note(f"  {text}")


def print_composition(rows: list[dict[str, Any]]) -> None:
    """Kept against pool, one measure a line."""

    def share(value: float | None) -> str:
        return "" if value is None else percent(value)

    table = [
        (
            f"category {row['category']}" if row["category"] else row["measure"].replace("_", " "),
            number(row["pool"]),
            share(row["pool_share"]),
            number(row["kept"]),
            share(row["kept_share"]),
            share(row["keep_rate"]),
        )
        for row in rows
        if row["category"] != "(none)" or row["pool_share"] != 1
    ]
    print_table(("", "pool", "share", "kept", "share", "kept share"), table)


def show_figure(figure: Figure) -> str:
    """A figure with its interval, or the reason why there is none."""
    if figure.value is None:
        return f"none: {figure.reason}"
    if figure.low is None or figure.high is None:
        return _three(figure.value)
    return f"{_three(figure.value)}  ({_three(figure.low)} to {_three(figure.high)})"


def _three(value: float) -> str:
    """Three decimals, and no minus before 0.000."""
    return f"{round(value, 3) + 0.0:.3f}"
