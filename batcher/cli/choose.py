"""Commands that choose rows: select, and filter, which does the whole job in one go."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click

from batcher.cli.data import check_targets, map_option, shape_option, strict_option, tell_import, write_private
from batcher.cli.grade import grade_dataset, labels_of, open_grader, tell_summary
from batcher.cli.options import (
    asking_options,
    budget_option,
    grader_options,
    limit_option,
    max_hours_option,
    quiet_option,
    run_budget_option,
    yes_option,
)
from batcher.cli.printing import NUMBER, note, number, plain, print_json, print_table

if TYPE_CHECKING:
    from batcher.select import Condition, Selection
    from batcher.store import Store


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 12


def _precision(_ctx: click.Context, _param: click.Parameter, text: str | None) -> float | None:
    """0 for the threshold that keeps the reference's share, else a precision."""
    if text is None or text == "share":
        return None if text is None else 0.0
    try:
        wanted = float(text)
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
        raise click.BadParameter(f"{text!r}: write sizes such as 3000,6000")
    return tuple(int(part) for part in parts)


score_options = [
    click.option("--min-score", type=NUMBER, metavar="X", help="Rows that score X or better."),
    click.option("--top", type=click.IntRange(1), metavar="N", help="The N best rows."),
    click.option("--keep-share", type=NUMBER, metavar="S", help="The best share of all rows, .18 for instance."),
]


def _with_score_options(command: Any) -> Any:
    for option in reversed(score_options):
        command = option(command)
    return command


@click.command("select")
@_with_score_options
@click.option(
    "--calibrated",
    is_flag=False,
    flag_value="share",
    callback=_precision,
    metavar="[PRECISION]",
    help="Rows at the threshold of a calibration: that which keeps the reference's share, or reaches this precision.",
)
@click.option("--where", metavar="SQL", help='Rows for which this SQL is true, "score >= 4 and output_chars > 200".')
@click.option(
    "--random", "random_", is_flag=False, flag_value=0, type=click.IntRange(0), metavar="[N]", help="N rows at random."
)
@click.option(
    "--longest", is_flag=False, flag_value=0, type=click.IntRange(0), metavar="[N]", help="The N longest outputs."
)
@click.option(
    "--shortest", is_flag=False, flag_value=0, type=click.IntRange(0), metavar="[N]", help="The N shortest outputs."
)
@click.option(
    "--match", metavar="SELECTION", help="With --random, --longest or --shortest: as many rows as that selection."
)
@click.option(
    "--quota",
    multiple=True,
    callback=_quota,
    metavar="CATEGORY:N",
    help="At most N rows of a category, best first; repeatable.",
)
@click.option(
    "--nested",
    callback=_sizes,
    metavar="N,N",
    help="Also random sub-samples, each within the next: NAME-3000, NAME-6000.",
)
@click.option("--seed", default=0, show_default=True, type=int, help="Breaks ties and draws samples.")
@click.option("--name", required=True, metavar="NAME", help="What to call it.")
@click.option("--dataset", metavar="NAME", help="Which dataset (NAME, or NAME@2); the only one if not given.")
@click.option("--grader", "graders", multiple=True, metavar="NAME", help="Whose scores; repeatable with --combine.")
@click.option(
    "--by", type=click.Choice(["score", "expected"]), default="score", show_default=True, help="Which figure counts."
)
@click.option("--combine", type=click.Choice(["mean", "median", "minimum"]), help="Of several graders' scores.")
@click.option("--rubric", metavar="NAME", help="By which rubric.")
@click.option("--json", "form", flag_value="json", help="Print the manifest.")
@click.pass_obj
def select_command(
    db: str, min_score: Decimal | None, top: int | None, keep_share: Decimal | None, calibrated: float | None,
    where: str | None, random_: int | None, longest: int | None, shortest: int | None, match: str | None, quota: dict[str, int], nested: tuple[int, ...], seed: int,
    name: str, dataset: str | None, graders: tuple[str, ...], by: Any, combine: Any, rubric: str | None, form: str | None,
) -> None:  # fmt: skip
    """Choose a subset of a dataset and keep it under a name, with all that made it.

    Ties are broken by a hash of the seed and the row, so that the same command makes the same choice anywhere.

    \b
    Example:
      alpasift select --min-score 4.5 --name kept
      alpasift select --random --match kept --name baseline
      alpasift select --grader openai:gpt-4.1-nano --grader llama_cpp:model.gguf --combine minimum --min-score 4 --name both
      alpasift select --top 9000 --quota coding:500 --nested 3000,6000 --name small
    """
    from batcher.datasets import resolve
    from batcher.select import Condition, select
    from batcher.store import Store

    orders = {"random": random_, "longest": longest, "shortest": shortest}
    given = {k: v for k, v in orders.items() if v is not None}
    conditions = {
        "--min-score": min_score,
        "--top": top,
        "--keep-share": keep_share,
        "--calibrated": calibrated,
        "--where": where,
        **{f"--{k}": v for k, v in given.items()},
    }
    if sum(v is not None for v in conditions.values()) != 1:
        raise click.UsageError(
            f"give exactly one of {', '.join(['--min-score', '--top', '--keep-share', '--calibrated', '--where', '--random', '--longest', '--shortest'])}"
        )
    order, size = next(iter(given.items())) if given else (None, None)
    if given and not size and not match:
        raise click.UsageError(f"--{order} needs a number of rows, or --match SELECTION")
    store = Store(db).existing()
    version = resolve(store, dataset)
    calibration = None
    if calibrated is not None:
        if len(graders) > 1:
            raise click.UsageError("--calibrated is about one grader; name one with --grader")
        min_score, calibration = _calibrated(store, version.version_id, graders, rubric, by, calibrated)
    condition = Condition(
        min_score=min_score, top=top, keep_share=keep_share, where=where, order=order, size=size or None,  # type: ignore[arg-type]
        match=match, by=by, combine=combine, calibration=calibration, quota=quota, seed=seed, nested=nested,
    )  # fmt: skip
    made = select(store, version.version_id, name, condition, grader=graders, rubric=rubric)
    if form:
        print_json([s.manifest for s in made])
        return
    for selection in made:
        tell_selection(selection)
    print_composition(made[0].manifest["composition"])
    note(f"next: alpasift export --selection {made[0].label} -o kept.json")


def _calibrated(
    store: Store, version_id: str, graders: tuple[str, ...], rubric: str | None, by: Any, wanted: float
) -> tuple[Decimal, dict[str, Any]]:
    """The threshold of the newest calibration, and what it rests on. Raises SelectError where there is none to use."""
    from batcher.calibrate import calibration_of, stale_calibration
    from batcher.select import SelectError, choose_grader

    chosen = choose_grader(store, version_id, graders[0] if graders else None, rubric)
    found = calibration_of(store, chosen.grader_id, chosen.rubric_id, by)
    whose = f"{chosen.grader} by {chosen.rubric} (--by {by})"
    if found is None:
        names = chosen.grader.partition("@")[0], chosen.rubric.partition("@")[0]
        stale = stale_calibration(store, *names, grader_id=chosen.grader_id, rubric_id=chosen.rubric_id)
        if stale is not None:
            raise SelectError(
                f"the calibration of {stale.recorded_at:%Y-%m-%d} is stale: it was made for {stale.grader} by {stale.rubric}, "
                f"and these grades are of {whose}; the model or the rubric has changed. Calibrate again"
            )
        raise SelectError(f"{whose} was never calibrated; `alpasift calibrate` does it")
    if found.verdict != "calibrated":
        raise SelectError(f"the calibration of {whose} claims nothing: {'; '.join(found.reasons)}")
    what = f"precision {wanted:g}" if wanted else "same_share"
    if wanted:
        point = found.threshold_precision(wanted)
        threshold = None if point is None else point.threshold
    else:
        threshold = found.threshold_same_share
    if threshold is None:
        raise SelectError(
            f"no threshold of {whose} reaches {what.replace('_', ' ')} by the calibration to {found.reference}"
        )
    note(f"calibrated to {found.reference}: {what.replace('_', ' ')} is at {threshold:g}")
    return Decimal(str(threshold)), {
        "id": found.calibration_id, "reference": found.reference, "rubric": found.reference_rubric, "what": what,
        "sample": found.sample, "recorded_at": found.recorded_at.isoformat(timespec="seconds") + "Z",
    }  # fmt: skip


_WHY = {
    "below_threshold": "a score below the threshold",
    "below_cut": "a score below the cut",
    "tied_at_cut": "tied at the cut, not drawn",
    "over_quota": "over the quota of their category",
    "not_graded": "no score: not graded yet",
}


def tell_selection(selection: Selection) -> None:
    """What was kept, what happened to ties, and why the others were not kept."""
    share = selection.rows / selection.pool if selection.pool else 0.0
    note(f"{selection.label}: {selection.rows:,} of {selection.pool:,} rows kept ({share:.1%})")
    ties = selection.manifest.get("ties")
    if ties and ties["taken"] < ties["tied"]:
        what, value = next((k, v) for k, v in ties.items() if k in ("score", "output_chars"))
        note(
            f"  of {ties['tied']:,} rows tied at {what} {number(value)}, {ties['taken']:,} were drawn by a seeded hash"
        )
    reasons = selection.manifest.get("not_kept_by_reason") or {}
    for reason, count in sorted(reasons.items(), key=lambda pair: -pair[1]):
        note(f"  {count:,} not kept: {_WHY.get(reason, reason.replace('_', ' '))}")
    for text in selection.manifest.get("notes") or []:
        note(f"  {text}")


def tell_reasons(store: Store, selection: Selection, grader_id: str, rubric_id: str) -> None:
    """The grader's own reasons for rows that were not kept, where it gives any."""
    parameters = {"selection_id": selection.selection_id, "grader_id": grader_id, "rubric_id": rubric_id}
    for row in store.query("not_selected_by_reason", **parameters):
        if row["score"] is not None:
            note(f"    {row['rows']:,} {row['reason']}")


def print_composition(rows: list[dict[str, Any]]) -> None:
    """Kept against pool, one measure a line."""

    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.1%}"

    table = [
        (
            f"category {row['category']}" if row["category"] else row["measure"].replace("_", " "),
            number(row["pool"]), share(row["pool_share"]), number(row["kept"]), share(row["kept_share"]), share(row["keep_rate"]),
        )
        for row in rows
        if row["category"] != "(none)" or row["pool_share"] != 1
    ]  # fmt: skip
    print_table(("", "pool", "share", "kept", "share", "kept of pool"), table)


@click.command("filter")
@click.argument("file", type=click.Path(), metavar="FILE")
@click.option("-o", "--output", required=True, type=click.Path(), metavar="OUT", help="Where the kept rows go.")
@click.option(
    "--rejected", type=click.Path(), metavar="FILE", help="Where the other rows go, each with its score and reason."
)
@click.option(
    "--grader", default="auto", show_default=True, metavar="SPEC", help="rules, llama_cpp:model.gguf, fake, auto."
)
@click.option("--rubric", metavar="R", help="accuracy, helpfulness, or the path of your own .toml.")
@click.option("--dataset", metavar="NAME", help="The name to keep the file under.")
@_with_score_options
@shape_option
@map_option
@strict_option
@budget_option
@run_budget_option
@yes_option
@limit_option
@grader_options
@asking_options
@max_hours_option
@quiet_option
@click.pass_obj
def filter_command(
    db: str, file: str, output: str, rejected: str | None, grader: str, rubric: str | None, dataset: str | None,
    min_score: Decimal | None, top: int | None, keep_share: Decimal | None, shape: str, mapping: dict[str, str] | None,
    strict: bool, budget: Decimal | None, run_budget: Decimal | None, yes: bool, limit: int | None, max_hours: float | None,
    quiet: bool, options: dict[str, Any], asking: dict[str, Any],
) -> int:  # fmt: skip
    """Import a file, grade every row, keep the good ones and write them out.

    Without --min-score, --top or --keep-share the rubric's own threshold decides. Rows without a score are never kept.
    Stopped at any moment, the same command goes on from there.

    \b
    Example:
      alpasift filter data.json -o kept.json --grader llama_cpp:model.gguf
      alpasift filter data.json -o kept.json --grader rules --rejected out.jsonl
    """
    from batcher.datasets import import_file
    from batcher.select import select
    from batcher.store import Store
    from batcher.tasks.grade import contract_for
    from graders.rubric import load_rubric

    if sum(v is not None for v in (min_score, top, keep_share)) > 1:
        raise click.UsageError("give one of --min-score, --top and --keep-share")
    targets = [output, f"{output}.manifest.json", *([rejected] if rejected else [])]
    check_targets(targets, not_onto=[file, *Store(db).files()])
    store = Store(db).create()
    found = import_file(store, file, dataset=dataset, shape=shape, mapping=mapping, strict=strict)
    tell_import(found)
    backend, rubric_name = open_grader(store, found.version_id, grader, rubric, max_hours, options, budget, asking)
    try:
        task = contract_for(load_rubric(rubric_name), backend, **asking)
        summary = grade_dataset(
            store, found.version_id, backend, task, limit=limit, budget=budget, run_budget=run_budget, yes=yes,
            retry=False, quiet=quiet, command="filter",
        )  # fmt: skip
    finally:
        backend.close()
    with store.reader():
        run = labels_of(store, summary.run_id)
        tell_summary(store, summary, backend, found.label, run)
        condition = _condition(store, run.rubric_id, min_score, top, keep_share)
    if summary.outcome != "done" or summary.left:
        note("not every row is graded, so nothing was written; the same command goes on")
        return 4
    kept = select(
        store, found.version_id, f"{found.dataset[:57]}-kept", condition, grader=run.grader_id, rubric=run.rubric_id
    )[0]
    write_results(store, kept, output, rejected, run.grader_id, run.rubric_id)
    print_composition(kept.manifest["composition"])
    share = kept.rows / kept.pool if kept.pool else 0.0
    if not 0.05 <= share <= 0.5:
        note(_unusual(share, run.grader))
    if run.rubric.partition("@")[0] == "rules":
        from graders.rules import JUDGES

        note(JUDGES)
    note(
        f"{kept.rows:,} rows written to {plain(output)}"
        + (f", {kept.pool - kept.rows:,} to {plain(rejected)}" if rejected else "")
    )
    note("next: alpasift scores, then another threshold with --min-score costs nothing")
    return 0


def _unusual(share: float, grader: str) -> str:
    side = "few rows are kept" if share < 0.05 else "most rows are kept"
    return f"warning: {share:.1%}, {side}; look at `alpasift scores` before you train on it, and at whether {grader} can judge this"


def _condition(
    store: Store, rubric_id: str, min_score: Decimal | None, top: int | None, keep_share: Decimal | None
) -> Condition:
    from batcher.select import Condition

    if min_score is None and top is None and keep_share is None:
        min_score = store.query("rubric_threshold", rubric_id=rubric_id)[0]["threshold"]
    return Condition(min_score=min_score, top=top, keep_share=keep_share)


def write_results(
    store: Store, kept: Selection, output: str, rejected: str | None, grader_id: str, rubric_id: str
) -> None:
    """Say what was kept; write it with its manifest, and the others with score and reason under the key `alpasift`."""
    import json

    from batcher.datasets import export_rows
    from batcher.select import kept_positions

    with store.reader():
        chosen = kept_positions(store, kept.selection_id)
        others = store.query("not_selected", selection_id=kept.selection_id, grader_id=grader_id, rubric_id=rubric_id)
        tell_selection(kept)
        tell_reasons(store, kept, grader_id, rubric_id)
    export_rows(store, kept.version_id, chosen, output)
    write_private(
        f"{output}.manifest.json", json.dumps(kept.manifest, indent=2, ensure_ascii=False, default=str) + "\n"
    )
    if rejected:
        verdicts = {
            row["position"]: {
                "alpasift": {
                    "score": None if row["score"] is None else float(row["score"]),
                    "reason": row["reason"],
                    "explanation": row["explanation"],
                }
            }
            for row in others
        }
        export_rows(
            store, kept.version_id, sorted(verdicts), rejected, extra=lambda position, _example_id: verdicts[position]
        )
