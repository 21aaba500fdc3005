"""The command that fits a cheap grader to a reference: calibrate."""

from __future__ import annotations

from dataclasses import asdict
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click

from alpasift.batcher.cli.consent import ask_consent
from alpasift.batcher.cli.grouped_help import GroupedCommand
from alpasift.batcher.cli.numbers import NUMBER
from alpasift.batcher.cli.options import (
    by_option,
    dataset_option,
    grader_options,
    json_option,
    quiet_option,
    spending_options,
)
from alpasift.batcher.cli.printing import note, number, percent, plain, print_json, print_table, progress_line
from alpasift.batcher.cli.reports import print_read_again, show_figure

if TYPE_CHECKING:
    from alpasift.batcher.engine.run_task import Caps
    from alpasift.batcher.grading.calibrate import Calibration
    from alpasift.batcher.grading.lookup import By


@click.command("calibrate", cls=GroupedCommand)
@click.option("--cheap", required=True, metavar="SPEC", help="The grader to calibrate; it has graded all rows.")
@click.option(
    "--reference", required=True, metavar="SPEC", help="The grader taken as ground truth, for example labels:people."
)
@click.option("--sample", default=500, show_default=True, type=click.IntRange(20), metavar="N", help="Rows to sample.")
@click.option("--rubric", metavar="R", help="The cheap grader's rubric, if it graded with several.")
@click.option("--reference-rubric", metavar="R", help="The reference's rubric. Default: the cheap grader's.")
@click.option(
    "--threshold", type=NUMBER, metavar="X", help="Threshold of the cheap grader; rows above it are oversampled."
)
@click.option(
    "--reference-threshold", type=NUMBER, metavar="X", help="The reference keeps rows with at least this score."
)
@by_option
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.FloatRange(0, 1, min_open=True),
    metavar="P",
    help="Find the threshold that reaches this precision, for example .8. Repeatable.",
)
@dataset_option
@click.option("--seed", default=0, show_default=True, type=int, help="Random seed of the sample.")
@click.option(
    "--force", is_flag=True, help="Calibrate across different rubrics. The criteria for a claim stay the same."
)
@click.option("--no-wait", is_flag=True, help="Submit batches and return; the same command resumes later.")
@spending_options
@grader_options
@quiet_option
@json_option
@click.pass_obj
def calibrate_command(
    db: str,
    cheap: str,
    reference: str,
    sample: int,
    rubric: str | None,
    reference_rubric: str | None,
    threshold: Decimal | None,
    reference_threshold: Decimal | None,
    by: By,
    precisions: tuple[float, ...],
    dataset: str | None,
    seed: int,
    force: bool,
    no_wait: bool,
    caps: Caps,
    yes: bool,
    settings: dict[str, Any],
    asking: dict[str, Any],
    quiet: bool,
    form: str | None,
) -> int:
    """Calibrate a cheap grader against a reference, on a sample of rows that the reference grades or has graded.

    Says what the cheap score means in terms of the reference, which threshold keeps as many rows, and how certain that
    is; or, where the grader is not shown to do better than chance and than output length, that nothing is claimed.
    Stopped at any moment, the same command resumes and pays for no
    row twice.

    \b
    Example:
      alpasift calibrate --cheap llama_cpp:model.gguf --reference openai_batch:gpt-4.1-nano --sample 500 --budget 0.50
      alpasift calibrate --cheap rules --reference labels:people --force --precision .8
    """
    from alpasift.batcher.data.versions import resolve
    from alpasift.batcher.grading.calibration_run import Wanted, run_calibration
    from alpasift.batcher.store import Store

    store = Store(db).existing()
    print_read_again(store)
    version = resolve(store, dataset)
    wanted = Wanted(
        cheap,
        reference,
        rubric,
        reference_rubric,
        threshold,
        reference_threshold,
        by,
        sample,
        seed,
        force,
    )
    with progress_line(quiet) as progress:
        done = run_calibration(
            store,
            version,
            wanted,
            {**settings, "wait": False} if no_wait else settings,
            asking,
            caps,
            confirm=ask_consent(yes),
            progress=progress,
            remark=note,
        )
    found = done.calibration
    if found is None:
        note(f"  {(done.bought and done.bought.message) or 'not finished'}")
        note("not finished, nothing fitted yet; the same command resumes with the same sample")
        return 4
    if form:
        print_json({"dataset": version.label, **asdict(found), "precision": [_wanted(found, p) for p in precisions]})
    else:
        _print(version.label, found, precisions)
    best = found.threshold_same_share
    if best is not None and by == "score":
        note(f"next: alpasift select --min-score {best:g} --grader {plain(found.grader)} --name kept")
    elif found.verdict == "calibrated":
        note(f"next: alpasift select --calibrated P --grader {plain(found.grader)} --name kept, P a precision above")
    else:
        note(f"next: alpasift agree {plain(found.grader)} {plain(found.reference)}")
    return 0


_LEFT_OUT = {
    "no_reference": "which the reference has not graded",
    "not_graded": "which the cheap grader has not graded",
    "no_expected": "whose score has no expected score beside it",
}


def _wanted(found: Calibration, precision: float) -> dict[str, Any]:
    point = found.threshold_precision(precision)
    return {"wanted": precision, "point": asdict(point) if point else None}


def _print(dataset: str, found: Calibration, precisions: tuple[float, ...]) -> None:
    from alpasift.batcher.statistics import Figure

    facts = found.facts
    sample, error = facts["sample"], facts["held_out"]
    share, area = Figure(**facts["share"]), Figure(**facts["auc"])
    length, lead = Figure(**facts["length"]["auc"]), Figure(**facts["length"]["lead"])
    click.echo(
        f"{plain(dataset)}: {plain(found.grader)} ({plain(found.rubric)}, {found.by.replace('_', ' ')}) "
        f"against {plain(found.reference)} "
        f"({plain(found.reference_rubric)}, threshold {number(found.reference_threshold)})"
    )
    others, keepers = facts["strata"]
    click.echo(
        f"  sample: {sample['answered']:,} rows graded by both, {keepers['answered']:,} of the {keepers['examples']:,} "
        f"that the cheap grader keeps and {others['answered']:,} of the {others['examples']:,} that it drops, seed "
        f"{facts['seed']}; the reference keeps {sample['keepers']:,} of them"
    )
    for why, count in {**sample["unanswered"], **facts["pool"]["left_out"]}.items():
        click.echo(f"  left out: {count:,} rows, {_LEFT_OUT.get(why) or plain(why.replace('_', ' '))}")
    rows = [
        ("share the reference keeps", show_figure(share)),
        ("AUC", show_figure(area)),
        (f"AUC of output length, {facts['length']['direction']} first", show_figure(length)),
        ("AUC minus that of length", show_figure(lead)),
    ]
    if error:
        rows += [
            ("held-out Brier score", f"{error['brier']:.4f}  (constant prediction: {error['base_brier']:.4f})"),
            ("held-out log loss", f"{error['log_loss']:.4f}  (constant prediction: {error['base_log_loss']:.4f})"),
        ]
    print_table([f"of the {facts['pool']['examples']:,} distinct rows, estimated from the sample", ""], rows)
    if found.verdict == "no_claim":
        click.echo("- NO CLAIM, no threshold is offered:")
        for reason in found.reasons:
            click.echo(f"    {plain(reason)}")
        return
    across = ""
    if found.rubric.partition("@")[0] != found.reference_rubric.partition("@")[0]:
        across = f" across rubrics, {plain(found.rubric)} to {plain(found.reference_rubric)}"
    click.echo(f"- CALIBRATED{across}. Estimated probability that the reference keeps a row of this score:")
    print_table(["score", "probability"], [(f"{score:g}", f"{p:.1%}") for score, p in _few(facts["fit"])])
    _print_points(found, precisions)


def _few(fit: list[tuple[float, float]], most: int = 12) -> list[tuple[float, float]]:
    """At most so many corners of the fit, evenly spread, the first and last among them."""
    if len(fit) <= most:
        return fit
    return [fit[round(i * (len(fit) - 1) / (most - 1))] for i in range(most)]


def _print_points(found: Calibration, precisions: tuple[float, ...]) -> None:
    same, table, short = found.same_share, [], []
    if same is not None:
        table.append(("the reference's share", same))
    else:
        short.append("no threshold near the reference's share is shown to do better than keeping all rows")
    everything = next((point for point in found.curve if point.share == 1), None)
    if everything is not None:
        table.append(("all rows", everything))
    for wanted in precisions:
        point = found.threshold_precision(wanted)
        if point is None:
            short.append(f"no threshold shown to do better than keeping all rows reaches a precision of {wanted:g}")
        else:
            table.append((f"precision {wanted:g}", point))
            if point.precision.low is not None and point.precision.low < wanted:
                short.append(
                    f"precision {wanted:g} is the estimate at {point.threshold:g}; it may be as low as "
                    f"{point.precision.low:.2f}"
                )
    print_table(
        ["to reach", "threshold", "rows", "share", "precision", "recall"],
        [
            (name, f"{p.threshold:.4g}", p.rows, percent(p.share), show_figure(p.precision), show_figure(p.recall))
            for name, p in table
        ],
    )
    if found.facts["pool"]["left_out"]:
        click.echo(
            f"- rows are those of the whole dataset; share, precision and recall are of the "
            f"{found.facts['pool']['examples']:,} distinct rows above"
        )
    spread = found.facts["same_share"]
    if same is not None and spread["low"] != spread["high"]:
        click.echo(f"- the threshold of the reference's share is between {spread['low']:.4g} and {spread['high']:.4g}")
    for line in short:
        click.echo(f"- {line}")
