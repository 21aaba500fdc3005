"""Commands that compare graders: labels brings grades in, agree sets two side by side, calibrate fits one to the other."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click

from batcher.cli.grade import grade_dataset, open_grader
from batcher.cli.options import (
    asking_options,
    budget_option,
    grader_options,
    quiet_option,
    run_budget_option,
    yes_option,
)
from batcher.cli.printing import NUMBER, note, number, plain, print_json, print_table

if TYPE_CHECKING:
    from batcher.agree import Agreement, By, Figure, Side
    from batcher.calibrate import Calibration, Drawn, Job, Pool
    from batcher.datasets import DatasetVersion
    from batcher.engine import Summary
    from batcher.select import Chosen
    from batcher.store import Store
    from batcher.tasks.grade import Grade
    from graders import Backend
    from graders.rubric import Rubric


# -- labels -------------------------------------------------------------------------------------------------------


@click.command("labels")
@click.argument("file", type=click.Path(), metavar="FILE")
@click.option("--as", "name", required=True, metavar="NAME", help="The grader is then called labels:NAME.")
@click.option("--field", metavar="KEY", help="The key that holds the label; found by itself where there is only one.")
@click.option(
    "--index-field", metavar="KEY", help="The key that holds the row's position in its file, from 0 (`index` if there)."
)
@click.option("--dataset", metavar="NAME", help="Which dataset (NAME, or NAME@2); the only one if not given.")
@click.option("--rubric", metavar="R", help="The labels are on the scale of this rubric: accuracy, or your own .toml.")
@click.option("--binary", is_flag=True, help="The labels are 0 and 1, or false and true.")
@click.option(
    "--scale", metavar="LOW:HIGH:STEP", help="The labels are on this scale, 1:5:1; then give --threshold too."
)
@click.option("--threshold", metavar="X", help="With --scale: a row is kept from this label on.")
@click.option("--kept", is_flag=True, help="FILE holds kept rows: they get 1, all other rows of the dataset 0.")
@click.option("--json", "form", flag_value="json", help="Print JSON.")
@click.pass_obj
def labels_command(
    db: str, file: str, name: str, field: str | None, index_field: str | None, dataset: str | None, rubric: str | None,
    binary: bool, scale: str | None, threshold: str | None, kept: bool, form: str | None,
) -> None:  # fmt: skip
    """Bring grades made elsewhere, by people or published, as a grader. Costs nothing; the same file again adds nothing.

    A row of FILE (jsonl, a json list, csv) names the row of the dataset by its position or by its content.

    \b
    Example:
      alpasift labels people.jsonl --as people --rubric accuracy
      alpasift labels published.jsonl --as claude --field claude_ge_4_5 --binary
      alpasift labels kept.json --as published --kept
    """
    from batcher.datasets import resolve
    from batcher.labels import import_labels
    from batcher.store import Store

    given = [option for option, on in (("--rubric", rubric), ("--binary", binary), ("--scale", scale)) if on]
    if kept and (field or given):
        raise click.UsageError(f"--kept makes labels of its own, 1 and 0; leave {'--field' if field else given[0]} out")
    if len(given) != 1 and not kept:
        raise click.UsageError("say on what scale the labels are: --rubric R, --binary, or --scale LOW:HIGH:STEP")
    if (scale is None) != (threshold is None):
        raise click.UsageError("--scale and --threshold belong together: --scale 1:5:1 --threshold 4")
    store = Store(db).existing()
    version = resolve(store, dataset)
    found = import_labels(
        store, file, name, version, _label_rubric(store, name, rubric, scale, threshold), label_key=field,
        index_key=index_field, kept=kept,
    )  # fmt: skip
    if form:
        print_json(asdict(found))
    if found.already_there:
        note(f"{found.grader}: these labels are here already ({found.examples:,} examples); nothing was added")
    else:
        note(
            f"{found.grader}, rubric {found.rubric}: labels for {found.examples:,} distinct rows of {found.dataset}; "
            f"{found.without_label:,} have none"
        )
    if found.unmatched:
        note(
            f"  {found.unmatched:,} rows of the file are no row of {found.dataset}, the first: {found.first_unmatched}"
        )
    if found.conflicting:
        note(
            f"  {found.conflicting:,} are labelled differently where their rows are equal, and set aside as conflicting: "
            f"{found.first_conflict}"
        )
    if found.unlabelled:
        note(f"  {found.unlabelled:,} rows of the file have no label")
    note(f"next: alpasift scores --grader {found.grader}, or alpasift agree GRADER {found.grader}")


def _label_rubric(store: Store, name: str, rubric: str | None, scale: str | None, threshold: str | None) -> Rubric:
    from batcher.labels import own_rubric, rubric_called

    if rubric is not None:
        return rubric_called(store, rubric)
    if scale is None or threshold is None:
        return own_rubric(name)
    parts = scale.split(":")
    if len(parts) != 3:
        raise click.UsageError(f"--scale {scale!r}: write LOW:HIGH:STEP, 1:5:1")
    return own_rubric(name, parts[0], parts[1], parts[2], threshold)


# -- agree --------------------------------------------------------------------------------------------------------

by_option = click.option(
    "--by", type=click.Choice(["score", "expected"]), default="score", show_default=True,
    help="Take the first grader by its score, or by the score that its probabilities expect.",
)  # fmt: skip


@click.command("agree")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--dataset", metavar="NAME", help="Which dataset (NAME, or NAME@2); the only one if not given.")
@click.option("--rubric", metavar="R", help="A's rubric, where A graded by several.")
@click.option("--rubric-b", metavar="R", help="B's rubric, where B graded by several.")
@click.option("--threshold", type=NUMBER, metavar="X", help="A keeps rows from this score on (its rubric's own).")
@click.option("--threshold-b", type=NUMBER, metavar="X", help="B keeps rows from this score on (its rubric's own).")
@by_option
@click.option("--json", "form", flag_value="json", help="Print JSON.")
@click.pass_obj
def agree_command(
    db: str, a: str, b: str, dataset: str | None, rubric: str | None, rubric_b: str | None, threshold: Decimal | None,
    threshold_b: Decimal | None, by: By, form: str | None,
) -> None:  # fmt: skip
    """Two graders side by side on the rows that both have graded, and what output length alone would do. Spends nothing.

    Precision and recall take B for the truth. Intervals are of 95 %.

    \b
    Example:
      alpasift agree rules labels:people
      alpasift agree vllm:Qwen3-8B openai_batch:gpt-4.1-nano --rubric accuracy --by expected
    """
    from batcher.agree import agree, named_side
    from batcher.datasets import resolve
    from batcher.store import Store

    store = Store(db).existing()
    version = resolve(store, dataset)
    side_a = named_side(store, version.version_id, a, rubric, threshold)
    side_b = named_side(store, version.version_id, b, rubric_b, threshold_b)
    found = agree(store, version.version_id, side_a, side_b, by)
    if form:
        print_json({"dataset": version.label, **asdict(found)})
    else:
        _print_agreement(version.label, found)
    force = "" if side_a.rubric_name == side_b.rubric_name else " --force"
    note(f"next: alpasift calibrate --cheap {side_a.grader} --reference {side_b.grader}{force}")


def _print_agreement(dataset: str, found: Agreement) -> None:
    click.echo(f"{plain(dataset)}: {found.compared:,} of {found.examples:,} distinct rows have both grades")
    for name, side in (("A", found.a), ("B", found.b)):
        by = f" by {found.by}" if name == "A" and found.by != "score" else ""
        click.echo(
            f"  {name}  {plain(side.grader)}, rubric {plain(side.rubric)} ({side.scale}), keeps from {number(side.threshold)}{by}"
        )
    for one in found.without:
        why = [f"{name} {one[key]}" for name, key in (("A", "reason_a"), ("B", "reason_b")) if one[key]]
        click.echo(f"  left out: {one['examples']:,} ({plain(', '.join(why))})")
    if not found.compared:
        return
    kept = found.grader.table
    print_table(
        ["", "B keeps", "B drops"], [("A keeps", kept.both, kept.first_only), ("A drops", kept.b_only, kept.neither)]
    )
    what = f"keep the {found.length.what} outputs"
    measures = (
        ("precision", "precision"), ("recall", "recall"), ("raw agreement", "agreement"), ("kappa at the threshold", "kappa"),
        ("overlap of kept rows (Jaccard)", "jaccard"), ("AUC", "auc"), ("Spearman", "spearman"), ("Kendall tau-b", "kendall"),
    )  # fmt: skip
    rows = [
        (title, _figure(getattr(found.grader, name)), _figure(getattr(found.length, name))) for title, name in measures
    ]
    alone = (
        ("kappa, quadratic weights", found.weighted_kappa), ("flip rate", found.flip_rate),
        ("mean of A less that of B", found.mean_shift), ("kept share of A less that of B", found.kept_shift),
        ("AUC of A less that of length", found.auc_lead),
    )  # fmt: skip
    rows += [(title, _figure(figure), "") for title, figure in alone]
    print_table(["against B", "A", what], rows, max_width=70)
    click.echo(
        f"length is in the direction that does better on these rows, and keeps {found.length.table.first:,} of them, as many as A "
        "as equal lengths allow"
    )
    for line in found.says:
        click.echo(f"- {plain(line)}")


def _figure(figure: Figure) -> str:
    if figure.value is None:
        return f"none: {figure.reason}"
    if figure.low is None or figure.high is None:
        return _three(figure.value)
    return f"{_three(figure.value)}  ({_three(figure.low)} to {_three(figure.high)})"


def _three(value: float) -> str:
    """Three decimals, and no minus before 0.000."""
    return f"{round(value, 3) + 0.0:.3f}"


# -- calibrate ----------------------------------------------------------------------------------------------------


@click.command("calibrate")
@click.option("--cheap", required=True, metavar="SPEC", help="The grader that has graded all rows: a spec or a label.")
@click.option("--reference", required=True, metavar="SPEC", help="The grader that counts, labels:people for instance.")
@click.option("--sample", default=500, show_default=True, type=click.IntRange(20), metavar="N", help="Rows to draw.")
@click.option("--rubric", metavar="R", help="The cheap grader's rubric, where it graded by several.")
@click.option("--reference-rubric", metavar="R", help="The reference's rubric (the same if not given).")
@click.option("--threshold", type=NUMBER, metavar="X", help="Rows the cheap grader keeps are drawn more densely.")
@click.option("--reference-threshold", type=NUMBER, metavar="X", help="The reference keeps rows from this score on.")
@by_option
@click.option(
    "--precision", "precisions", multiple=True, type=click.FloatRange(0, 1, min_open=True), metavar="P",
    help="Find the threshold that reaches this precision, .8; repeatable.",
)  # fmt: skip
@click.option("--dataset", metavar="NAME", help="Which dataset (NAME, or NAME@2); the only one if not given.")
@click.option("--seed", default=0, show_default=True, type=int, help="Draws the sample; the same seed, the same rows.")
@click.option("--force", is_flag=True, help="Fit across different rubrics.")
@click.option("--no-wait", is_flag=True, help="Submit batches and leave; the same command goes on later.")
@budget_option
@run_budget_option
@yes_option
@grader_options
@asking_options
@quiet_option
@click.option("--json", "form", flag_value="json", help="Print JSON.")
@click.pass_obj
def calibrate_command(
    db: str, cheap: str, reference: str, sample: int, rubric: str | None, reference_rubric: str | None,
    threshold: Decimal | None, reference_threshold: Decimal | None, by: By, precisions: tuple[float, ...],
    dataset: str | None, seed: int, force: bool, no_wait: bool, budget: Decimal | None, run_budget: Decimal | None, yes: bool,
    options: dict[str, Any], asking: dict[str, Any], quiet: bool, form: str | None,
) -> int:  # fmt: skip
    """Fit a cheap grader to a reference, on a sample of rows bought of it, or labelled already.

    Says what the cheap score means in terms of the reference, which threshold keeps as many rows, and how sure that is; or
    that the sample shows nothing to go by. Stopped at any moment, the same command goes on and buys no row twice.

    \b
    Example:
      alpasift calibrate --cheap llama_cpp:model.gguf --reference openai_batch:gpt-4.1-nano --sample 500 --budget 0.50
      alpasift calibrate --cheap rules --reference labels:people --force --precision .8
    """
    from batcher.agree import side_of
    from batcher.calibrate import calibrate, draw, read_pool
    from batcher.datasets import resolve
    from batcher.store import Store

    store = Store(db).existing()
    version = resolve(store, dataset)
    options = {**options, "wait": False} if no_wait else options
    chosen = _cheap(store, version, cheap, rubric, options)
    side = side_of(store, chosen.grader_id, chosen.rubric_id, threshold)
    asked = _reference(store, version, reference, reference_rubric, side, options, asking)
    try:
        _check_sides(side, asked, force)
        at = reference_threshold if reference_threshold is not None else asked.threshold
        job = asked.job(version.version_id, side, by, at, sample, seed)
        with store.reader():
            pool = read_pool(store, job)
            drawn = draw(store, job, pool)
        summary = _buy(store, version, asked, job, pool, drawn, budget, run_budget, yes, quiet)
    finally:
        if asked.backend is not None:
            asked.backend.close()
    if summary is not None and summary.outcome != "done":
        note(f"  {summary.message or 'not finished'}")
        note("not finished, and nothing is fitted yet; the same command goes on with the same sample")
        return 4
    found = calibrate(store, job, pool, drawn if summary is None else None)
    if form:
        print_json({"dataset": version.label, **asdict(found), "precision": [_wanted(found, p) for p in precisions]})
    else:
        _print_calibration(version.label, found, precisions)
    best = found.threshold_same_share
    if found.verdict == "calibrated" and best is not None and by == "score":
        note(f"next: alpasift select --min-score {best:g} --grader {plain(found.grader)} --name kept")
    else:
        note(f"next: alpasift agree {plain(found.grader)} {plain(found.reference)}")
    return 0


@dataclass(frozen=True, slots=True)
class _Reference:
    """Whom to ask, and what; or, without a backend and a task, whose grades are there already."""

    grader_id: str
    rubric_id: str
    rubric_name: str
    threshold: Decimal
    backend: Backend | None
    task: Grade | None

    def job(self, version_id: str, cheap: Side, by: By, threshold: Decimal, sample: int, seed: int) -> Job:
        from batcher.calibrate import Job

        return Job(version_id, cheap, by, self.grader_id, self.rubric_id, threshold, self.backend is None, sample, seed)


def _is_spec(name: str) -> bool:
    from batcher.plan import kind
    from graders import backend_names

    return kind(name) in backend_names()


def _cheap(store: Store, version: DatasetVersion, cheap: str, rubric: str | None, options: dict[str, Any]) -> Chosen:
    """The grades of the cheap grader. Raises CalibrateError, with the command that makes them, where rows are without."""
    from batcher.calibrate import CalibrateError
    from batcher.cli.grade import rubric_for
    from batcher.labels import rubric_called
    from batcher.questions import setup_of
    from batcher.select import SelectError, choose_grader
    from batcher.tasks.grade import Grade

    command = f"`alpasift grade --grader {cheap} --rubric {rubric or rubric_for(cheap, None)} --dataset {version.label}` does that"
    try:
        chosen = choose_grader(store, version.version_id, cheap, rubric)
    except SelectError:
        if not _is_spec(cheap):
            raise
        backend, rubric_name = open_grader(store, version.version_id, cheap, rubric, None, options)
        try:
            setup = setup_of(Grade(rubric_called(store, rubric_name)), backend)
        finally:
            backend.close()
        try:
            chosen = choose_grader(store, version.version_id, setup.grader_id, rubric)
        except SelectError:
            raise CalibrateError(f"{cheap} must have graded the rows of {version.label} first; {command}") from None
    if chosen.asked < version.rows and not chosen.grader.startswith("labels:"):
        raise CalibrateError(
            f"{chosen.grader} has graded {chosen.asked:,} of the {version.rows:,} rows of {version.label}, and a calibration speaks "
            f"about all of them; grade the others first: {command}"
        )
    return chosen


def _reference(
    store: Store,
    version: DatasetVersion,
    reference: str,
    rubric: str | None,
    cheap: Side,
    options: dict[str, Any],
    asking: dict[str, Any],
) -> _Reference:
    """The reference: a backend to be asked where the name is a spec that works here, else grades that are there."""
    from batcher.agree import side_of
    from batcher.questions import setup_of
    from batcher.select import choose_grader
    from batcher.tasks.grade import contract_for
    from graders import BackendUnavailable
    from graders.rubric import RubricError, load_rubric

    if _is_spec(reference):
        name = rubric or cheap.rubric_name
        try:
            loaded = load_rubric(name)
        except RubricError as error:
            raise RubricError(f"the reference is asked by the rubric {name}: {error} (--reference-rubric)") from error
        try:
            backend, name = open_grader(store, version.version_id, reference, name, None, options)
        except BackendUnavailable:
            if not any(row["grader"] == reference for row in store.query("graders_of", version_id=version.version_id)):
                raise
        else:
            task = contract_for(loaded, backend, **asking)
            setup = setup_of(task, backend)
            return _Reference(setup.grader_id, setup.rubric_id, loaded.name, loaded.threshold, backend, task)
    chosen = choose_grader(store, version.version_id, reference, rubric)
    side = side_of(store, chosen.grader_id, chosen.rubric_id)
    return _Reference(chosen.grader_id, chosen.rubric_id, side.rubric_name, side.threshold, None, None)


def _check_sides(cheap: Side, asked: _Reference, force: bool) -> None:
    """Raise CalibrateError where the two are one, or graded by rubrics of different names."""
    from batcher.calibrate import CalibrateError

    if (cheap.grader_id, cheap.rubric_id) == (asked.grader_id, asked.rubric_id):
        raise CalibrateError(
            f"{cheap.grader}, rubric {cheap.rubric}, is both the cheap grader and the reference; name two"
        )
    if cheap.rubric_name == asked.rubric_name:
        if cheap.rubric_id != asked.rubric_id:
            note(f"the two graded by different versions of the rubric {cheap.rubric_name}")
        return
    if not force:
        raise CalibrateError(
            f"the rubrics differ: {cheap.grader} graded by {cheap.rubric_name}, the reference by {asked.rubric_name} (labels of yes "
            "and no have a rubric of their own); where that is meant, --force fits the one to the other all the same"
        )
    note(f"--force: {cheap.rubric_name} is fitted to {asked.rubric_name}, which asks something else")


def _buy(
    store: Store, version: DatasetVersion, asked: _Reference, job: Job, pool: Pool, drawn: Drawn, budget: Decimal | None,
    run_budget: Decimal | None, yes: bool, quiet: bool,
) -> Summary | None:  # fmt: skip
    """Have the reference grade those of the drawn rows that it has not graded yet; None where all are there."""
    from batcher.ledger import show_usd

    if asked.backend is None or asked.task is None:
        note(
            f"the reference's grades are there: {len(drawn.positions):,} drawn of the {pool.examples:,} distinct rows that both "
            "have graded; what follows holds for rows like these"
        )
        return None
    if not drawn.unanswered:
        note(f"the reference has graded all {len(drawn.positions):,} rows of the sample; nothing is bought")
        return None
    summary = grade_dataset(
        store, version.version_id, asked.backend, asked.task, limit=None, budget=budget, run_budget=run_budget, yes=yes,
        retry=False, quiet=quiet, command="calibrate", positions=drawn.positions,
    )  # fmt: skip
    cost = show_usd(summary.usd) if asked.backend.paid else "$0"
    note(f"{plain(asked.backend.name)}: {summary.replied:,} replies about {len(drawn.positions):,} drawn rows, {cost}")
    return summary


def _wanted(found: Calibration, precision: float) -> dict[str, Any]:
    point = found.threshold_precision(precision)
    return {"wanted": precision, "point": asdict(point) if point else None}


def _print_calibration(dataset: str, found: Calibration, precisions: tuple[float, ...]) -> None:
    from batcher.agree import Figure

    facts = found.facts
    sample, error = facts["sample"], facts["held_out"]
    share, area = Figure(**facts["share"]), Figure(**facts["auc"])
    length, lead = Figure(**facts["length"]["auc"]), Figure(**facts["length"]["lead"])
    click.echo(
        f"{plain(dataset)}: {plain(found.grader)} ({plain(found.rubric)}, {found.by}) against {plain(found.reference)} "
        f"({plain(found.reference_rubric)}, keeps from {number(found.reference_threshold)})"
    )
    strata = ", ".join(f"{one['answered']:,} of {one['examples']:,} {one['name']}" for one in facts["strata"])
    click.echo(
        f"  sample: {sample['answered']:,} rows graded by both ({strata} of the cheap grader), seed {facts['seed']}; the reference "
        f"keeps {sample['keepers']:,} of them"
    )
    for why, count in {**sample["unanswered"], **facts["pool"]["left_out"]}.items():
        click.echo(f"  left out: {count:,} {plain(why)}")
    rows = [
        ("share the reference keeps", _figure(share)),
        ("AUC", _figure(area)),
        (f"AUC of output length, {facts['length']['direction']} first", _figure(length)),
        ("AUC less that of length", _figure(lead)),
    ]
    if error:
        rows += [
            ("held-out Brier score", f"{error['brier']:.4f}  (the share alone: {error['base_brier']:.4f})"),
            ("held-out log loss", f"{error['log_loss']:.4f}  (the share alone: {error['base_log_loss']:.4f})"),
        ]
    print_table(["in the whole dataset", ""], rows, max_width=70)
    for line in _length_says(lead, facts["length"]["direction"]):
        click.echo(f"- {line}")
    if found.verdict == "no_claim":
        click.echo("- NO CLAIM: the sample shows nothing to go by, and no threshold is offered")
        for reason in found.reasons:
            click.echo(f"    {plain(reason)}")
        return
    click.echo("- CALIBRATED. What a score means: the chance that the reference keeps such a row")
    print_table(["score", "chance"], [(f"{score:g}", f"{p:.1%}") for score, p in _few(facts["fit"])])
    _print_points(found, precisions)


def _few(fit: list[tuple[float, float]], most: int = 12) -> list[tuple[float, float]]:
    """At most so many corners of the fit, evenly spread, the first and last among them."""
    if len(fit) <= most:
        return fit
    return [fit[round(i * (len(fit) - 1) / (most - 1))] for i in range(most)]


def _length_says(lead: Figure, direction: str) -> list[str]:
    if lead.value is None or lead.low is None or lead.high is None:
        return []
    if lead.high < 0:
        return [f"worse than keeping the {direction} outputs"]
    return [] if lead.low > 0 else [f"no better than keeping the {direction} outputs, as far as this sample tells"]


def _print_points(found: Calibration, precisions: tuple[float, ...]) -> None:
    same, table = found.threshold_same_share, []
    by_threshold = {point.threshold: point for point in found.curve}
    if same is not None:
        table.append(("the reference's share", by_threshold[same]))
    everything = next((point for point in found.curve if point.share == 1), None)
    if everything is not None:
        table.append(("all rows", everything))
    short = []
    for wanted in precisions:
        point = found.threshold_precision(wanted)
        if point is None:
            short.append(f"no threshold is seen to reach a precision of {wanted:g}")
        else:
            table.append((f"precision {wanted:g}", point))
            if point.precision.low is not None and point.precision.low < wanted:
                short.append(
                    f"precision {wanted:g} is the estimate at {point.threshold:g}; it may be as low as {point.precision.low:.2f}"
                )
    print_table(
        ["to reach", "keep from", "rows", "share", "precision", "recall"],
        [
            (name, f"{p.threshold:.4g}", p.rows, f"{p.share:.1%}", _figure(p.precision), _figure(p.recall))
            for name, p in table
        ],
    )
    spread = found.facts["same_share"]
    if same is not None and spread["low"] != spread["high"]:
        click.echo(f"- the threshold of the reference's share may lie from {spread['low']:.4g} to {spread['high']:.4g}")
    for line in short:
        click.echo(f"- {line}")
