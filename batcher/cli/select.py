"""The command that chooses rows: select."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click

from alpasift.batcher.cli.grouped_help import GroupedCommand
from alpasift.batcher.cli.numbers import NUMBER
from alpasift.batcher.cli.options import by_option, dataset_option, json_option, score_options
from alpasift.batcher.cli.printing import note, print_json
from alpasift.batcher.cli.reports import print_composition, print_degenerate, print_read_again, print_selection
from alpasift.graders.interface.names import is_plain_number

if TYPE_CHECKING:
    from alpasift.batcher.grading.condition import Order
    from alpasift.batcher.store import Store

_ONE_OF = "--min-score, --top, --keep-share, --calibrated, --where, --random, --longest, --shortest"
_AT_SHARE = 0.0
"""What --calibrated without a precision stands for: the threshold that keeps the reference's share."""


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 12


def _precision(_ctx: click.Context, _param: click.Parameter, text: str | None) -> float | None:
    if text is None or text == "share":
        return None if text is None else _AT_SHARE
    try:
        wanted = float(text) if is_plain_number(text) else -1.0
    except ValueError:
        wanted = -1.0
    if not 0 < wanted < 1:
        raise click.BadParameter(f"{text!r}: a precision between 0 and 1, such as .8, or nothing after --calibrated")
    return wanted


def _quota(_ctx: click.Context, _param: click.Parameter, pairs: tuple[str, ...]) -> dict[str, int]:
    quota = {}
    for pair in pairs:
        category, colon, count = pair.rpartition(":")
        if not colon or not _is_count(count):
            raise click.BadParameter(f"{pair!r}: write CATEGORY:500, or *:500 for each category that is not named")
        quota[category] = int(count)
    return quota


def _sizes(_ctx: click.Context, _param: click.Parameter, text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(_is_count(part) and int(part) for part in parts):
        raise click.BadParameter(f"{text!r}: give sizes such as 3000,6000")
    return tuple(int(part) for part in parts)


@click.command("select", cls=GroupedCommand)
@score_options
@click.option(
    "--below",
    type=NUMBER,
    metavar="X",
    help="Of those, only rows that score less than X. Default for ifd and s-ifd: 1.",
)
@click.option(
    "--calibrated",
    is_flag=False,
    flag_value="share",
    callback=_precision,
    metavar="[PRECISION]",
    help="Keep rows above a calibrated threshold: the one with the reference's kept share, or with PRECISION.",
)
@click.option(
    "--where", metavar="SQL", help='Keep rows for which this SQL is true: "score >= 4 and output_chars > 200".'
)
@click.option(
    "--random",
    "random_",
    is_flag=False,
    flag_value=0,
    type=click.IntRange(0),
    metavar="[N]",
    help="Keep N random rows.",
)
@click.option(
    "--longest", is_flag=False, flag_value=0, type=click.IntRange(0), metavar="[N]", help="Keep the N longest outputs."
)
@click.option(
    "--shortest",
    is_flag=False,
    flag_value=0,
    type=click.IntRange(0),
    metavar="[N]",
    help="Keep the N shortest outputs.",
)
@click.option(
    "--match", metavar="SELECTION", help="With --random, --longest or --shortest: keep as many rows as this selection."
)
@click.option(
    "--quota",
    multiple=True,
    callback=_quota,
    metavar="CATEGORY:N",
    help="At most N rows of a category, best first. Repeatable.",
)
@click.option(
    "--nested",
    callback=_sizes,
    metavar="N,N",
    help="Also store nested random subsets: NAME-3000, NAME-6000.",
)
@click.option("--seed", default=0, show_default=True, type=int, help="Random seed of ties and samples.")
@click.option("--name", required=True, metavar="NAME", help="The selection's name.")
@dataset_option
@click.option(
    "--grader",
    "graders",
    multiple=True,
    metavar="NAME",
    help="Grader whose scores are used. Repeatable with --combine.",
)
@by_option
@click.option(
    "--combine", type=click.Choice(["mean", "median", "minimum"]), help="How to combine the scores of several graders."
)
@click.option("--rubric", metavar="NAME", help="Rubric whose scores are used.")
@json_option
@click.pass_obj
def select_command(
    db: str,
    min_score: Decimal | None,
    top: int | None,
    keep_share: Decimal | None,
    below: Decimal | None,
    calibrated: float | None,
    where: str | None,
    random_: int | None,
    longest: int | None,
    shortest: int | None,
    match: str | None,
    quota: dict[str, int],
    nested: tuple[int, ...],
    seed: int,
    name: str,
    dataset: str | None,
    graders: tuple[str, ...],
    by: Any,
    combine: Any,
    rubric: str | None,
    form: str | None,
) -> None:
    """Choose a subset of a dataset and store it under a name, with a manifest of how it was chosen.

    Ties are broken by a hash of the seed and the row, so that the same command makes the same choice on any machine.

    \b
    Example:
      alpasift select --min-score 4.5 --name kept
      alpasift select --random --match kept --name baseline
      alpasift select --grader ifd:model.gguf --keep-share .1 --name hardest
      alpasift select --grader rules --grader llama_cpp:model.gguf --combine minimum --min-score 4 --name both
      alpasift select --top 9000 --quota coding:500 --nested 3000,6000 --name small
    """
    from alpasift.batcher.data.versions import resolve
    from alpasift.batcher.grading.calibration_threshold import calibrated_condition
    from alpasift.batcher.grading.condition import Condition
    from alpasift.batcher.grading.select import select
    from alpasift.batcher.store import Store

    orders: dict[Order, int | None] = {"random": random_, "longest": longest, "shortest": shortest}
    given = {k: v for k, v in orders.items() if v is not None}
    if sum(v is not None for v in (min_score, top, keep_share, calibrated, where, *orders.values())) != 1:
        raise click.UsageError(f"give exactly one of {_ONE_OF}")
    order, size = next(iter(given.items())) if given else (None, None)
    if given and not size and not match:
        raise click.UsageError(f"--{order} needs a number of rows, or --match SELECTION")
    if calibrated is not None and len(graders) > 1:
        raise click.UsageError("--calibrated needs one grader; give it with --grader")
    store = Store(db).existing()
    print_read_again(store)
    version = resolve(store, dataset)
    condition = Condition(
        min_score=min_score,
        top=top,
        keep_share=keep_share,
        where=where,
        order=order,
        size=size or None,
        match=match,
        below=below,
        by=by,
        combine=combine,
        quota=quota,
        seed=seed,
        nested=nested,
    )
    if calibrated is not None:
        precision = None if calibrated == _AT_SHARE else calibrated
        condition, at = calibrated_condition(store, version.version_id, condition, graders, rubric, precision)
        note(f"calibrated to {at.reference}: {at.reaches}")
    made = select(store, version.version_id, name, condition, grader=graders, rubric=rubric)
    if by == "score":
        _print_degenerate(store, made[0].manifest)
    if form:
        print_json([s.manifest for s in made])
        return
    for selection in made:
        print_selection(selection)
    print_composition(made[0].manifest["composition"])
    note(f"next: alpasift export --selection {made[0].label} -o kept.json")


def _print_degenerate(store: Store, manifest: dict[str, Any]) -> None:
    """Which of the graders that a selection went by hardly tell the rows apart, on stderr."""
    dataset, rubric = manifest["dataset"]["label"], manifest["rubric"]
    alone = [{**manifest["grader"], "rubric": rubric["label"]}] if rubric else []
    for one in manifest.get("panel") or alone:
        print_degenerate(store, dataset, one["label"], one["rubric"])
