"""Commands that show grades: scores, show."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import click

from alpasift.batcher.cli.numbers import NUMBER
from alpasift.batcher.cli.options import json_option
from alpasift.batcher.cli.printing import note, number, plain, print_json, print_rows
from alpasift.batcher.cli.reports import print_degenerate, print_histogram, print_read_again

_COLUMNS = ["dataset", "grader", "rubric", "score", "reason", "rows", "cumulative_share", "deciles"]


@click.command("scores")
@click.option("--dataset", metavar="NAME", help="Only this dataset: NAME, or NAME@2.")
@click.option("--grader", metavar="NAME", help="Only this grader.")
@click.option("--rubric", metavar="NAME", help="Only this rubric.")
@click.option(
    "--by", type=click.Choice(["category", "length", "keyword"]), help="Kept share at the threshold, by group."
)
@click.option("--min-score", type=NUMBER, metavar="X", help="With --by: the threshold (default: the rubric's own).")
@click.option("--all", "hidden", is_flag=True, help="Include hidden rubrics.")
@json_option
@click.option("--csv", "form", flag_value="csv", help="Print CSV.")
@click.pass_obj
def scores_command(
    db: str,
    dataset: str | None,
    grader: str | None,
    rubric: str | None,
    by: str | None,
    min_score: Decimal | None,
    hidden: bool,
    form: str | None,
) -> None:
    """The score distribution: counts, cumulative share, what each threshold would keep, and the deciles of the score.

    \b
    Example:
      alpasift scores
      alpasift scores --by category --min-score 4.5
    """
    from alpasift.batcher.grading.lookup import labels_named
    from alpasift.batcher.store import Store
    from alpasift.graders.prompts.rubric import MEASURED

    store = Store(db).existing()
    print_read_again(store)
    chosen = labels_named(store, dataset, grader, rubric)
    wanted = {**chosen, "hidden": hidden}
    rows = store.query(f"scores_by_{by}", **wanted, threshold=min_score) if by else store.query("scores", **wanted)
    if form or by:
        print_rows(
            list(rows[0]) if rows else _COLUMNS,
            [list(row.values()) for row in rows],
            form or "table",
        )
        print_degenerate(store, **chosen)
        return
    if not rows:
        note("nothing is graded yet; run `alpasift grade --grader SPEC`, or `alpasift plan` to compare graders")
        return
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["dataset"], row["grader"], row["rubric"]), []).append(row)
    for (name, by_grader, by_rubric), group in groups.items():
        deciles: list[dict[str, Any]] = []
        if by_rubric.partition("@")[0] in MEASURED:
            deciles = store.query("deciles", dataset=name, grader=by_grader, rubric=by_rubric)
        print_histogram(name, by_grader, by_rubric, group, deciles)
    print_degenerate(store, **chosen)


@click.command("show")
@click.option("--dataset", metavar="NAME", help="Only this dataset.")
@click.option("--grader", metavar="NAME", help="Only this grader.")
@click.option("--rubric", metavar="NAME", help="Only this rubric.")
@click.option("--score", type=NUMBER, metavar="S", help="Only rows with this score.")
@click.option("--reason", metavar="R", help="Only rows with this reason, for example cut_off.")
@click.option(
    "--limit", default=10, show_default=True, type=click.IntRange(1, 10_000), metavar="N", help="At most N rows."
)
@json_option
@click.pass_obj
def show_command(
    db: str,
    dataset: str | None,
    grader: str | None,
    rubric: str | None,
    score: Decimal | None,
    reason: str | None,
    limit: int,
    form: str | None,
) -> None:
    """Show rows with their grades.

    \b
    Example:
      alpasift show --score 0 --limit 5
      alpasift show --reason cut_off
    """
    from alpasift.batcher.grading.lookup import labels_named
    from alpasift.batcher.store import Store

    store = Store(db).existing()
    print_read_again(store)
    rows = store.query(
        "show_rows",
        **labels_named(store, dataset, grader, rubric),
        score=score,
        reason=reason,
        row_limit=limit,
    )
    if form:
        print_json(rows)
        return
    for row in rows:
        score_text = "no score" if row["score"] is None else f"score {number(row['score'])}"
        why = f" ({row['reason']})" if row["reason"] else ""
        click.echo(
            click.style(
                plain(f"{row['dataset']} row {row['position']}: {score_text}{why}, {row['grader']}, {row['rubric']}"),
                bold=True,
            )
        )
        for title in ("instruction", "input", "output", "explanation"):
            if row[title] or title == "output":
                click.echo(f"  {title}: " + (plain(row[title]).strip() or "(blank)").replace("\n", "\n    "))
        click.echo()
    if not rows:
        note("no rows match")
