"""The command that compares two graders on the rows that both have graded: agree."""

from __future__ import annotations

from dataclasses import asdict
from decimal import Decimal
from typing import TYPE_CHECKING

import click

from alpasift.batcher.cli.numbers import NUMBER
from alpasift.batcher.cli.options import by_option, dataset_option, json_option
from alpasift.batcher.cli.printing import note, number, plain, print_json, print_paragraph, print_table
from alpasift.batcher.cli.reports import print_read_again, show_figure

if TYPE_CHECKING:
    from alpasift.batcher.grading.agree import Agreement
    from alpasift.batcher.grading.lookup import By


@click.command("agree")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@dataset_option
@click.option("--rubric", metavar="R", help="A's rubric, if A graded with several.")
@click.option("--rubric-b", metavar="R", help="B's rubric, if B graded with several.")
@click.option(
    "--threshold",
    type=NUMBER,
    metavar="X",
    help="A keeps rows with at least this score. Default: its rubric's threshold.",
)
@click.option(
    "--threshold-b",
    type=NUMBER,
    metavar="X",
    help="B keeps rows with at least this score. Default: its rubric's threshold.",
)
@by_option
@json_option
@click.pass_obj
def agree_command(
    db: str,
    a: str,
    b: str,
    dataset: str | None,
    rubric: str | None,
    rubric_b: str | None,
    threshold: Decimal | None,
    threshold_b: Decimal | None,
    by: By,
    form: str | None,
) -> None:
    """Compare two graders on the rows that both have graded, with output length as a baseline. Spends nothing.

    Precision and recall take B as the truth. Intervals are 95 %.

    \b
    Example:
      alpasift agree rules labels:people
      alpasift agree vllm:Qwen3-8B openai_batch:gpt-4.1-nano --rubric accuracy --by expected_score
    """
    from alpasift.batcher.data.versions import resolve
    from alpasift.batcher.grading.agree import agree
    from alpasift.batcher.grading.agreement_words import worth_calibrating
    from alpasift.batcher.grading.lookup import find_grading
    from alpasift.batcher.store import Store

    store = Store(db).existing()
    print_read_again(store)
    version = resolve(store, dataset)
    of_a = find_grading(store, version.version_id, a, rubric, threshold=threshold, options=("", "--rubric"))
    of_b = find_grading(store, version.version_id, b, rubric_b, threshold=threshold_b, options=("", "--rubric-b"))
    if of_a.measured and threshold is None:
        raise click.UsageError(
            f"the rubric {of_a.rubric} has no threshold: give --threshold X, or see `alpasift bench-graders`, which "
            "compares orders"
        )
    found = agree(store, version.version_id, of_a, of_b, by)
    if form:
        print_json({"dataset": version.label, **asdict(found)})
    else:
        _print(version.label, found)
    if worth_calibrating(found):
        force = "" if of_a.rubric_name == of_b.rubric_name else " --force"
        note(f"next: alpasift calibrate --cheap {of_a.grader} --reference {of_b.grader}{force}")
    else:
        note("next: alpasift plan, for another grader; on these rows this one is not worth calibrating")


def _print(dataset: str, found: Agreement) -> None:
    click.echo(f"{plain(dataset)}: {found.compared:,} of {found.examples:,} distinct rows have both grades")
    for name, side in (("A", found.a), ("B", found.b)):
        by = f" by {found.by.replace('_', ' ')}" if name == "A" and found.by != "score" else ""
        print_paragraph(
            f"  {name}  {plain(side.grader)}, rubric {plain(side.rubric)} ({side.scale}), threshold "
            f"{number(side.threshold)}{by}"
        )
    for one in found.without:
        why = [f"{name} {one[key]}" for name, key in (("A", "reason_a"), ("B", "reason_b")) if one[key]]
        click.echo(f"  left out: {one['examples']:,} ({plain(', '.join(why).replace('_', ' '))})")
    if not found.compared:
        return
    kept = found.grader.table
    print_table(
        ["", "B keeps", "B drops"], [("A keeps", kept.both, kept.first_only), ("A drops", kept.b_only, kept.neither)]
    )
    what = f"{found.length.what} outputs first"
    measures = (
        ("precision", "precision"),
        ("recall", "recall"),
        ("raw agreement", "agreement"),
        ("kappa at the threshold", "kappa"),
        ("Jaccard index of the kept rows", "jaccard"),
        ("AUC", "auc"),
        ("Spearman", "spearman"),
        ("Kendall tau-b", "kendall"),
    )
    rows = [
        (title, show_figure(getattr(found.grader, name)), show_figure(getattr(found.length, name)))
        for title, name in measures
    ]
    alone = (
        ("kappa, quadratic weights", found.weighted_kappa),
        ("flip rate", found.flip_rate),
        ("mean score, A minus B", found.mean_shift),
        ("kept share, A minus B", found.kept_shift),
        ("AUC, A minus length", found.auc_lead),
    )
    rows += [(title, show_figure(figure), "") for title, figure in alone]
    print_table(["against B", "A", what], rows)
    print_paragraph(
        f"length is sorted in the direction that does better on these rows, and keeps "
        f"{found.length.table.first:,} of them, as many as A does, up to ties in length"
    )
    for line in found.messages:
        print_paragraph(f"- {line}")
