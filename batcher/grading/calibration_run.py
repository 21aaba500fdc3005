"""Calibrate one grader to another from their names: find the cheap one's grades, buy the reference's for a sample, fit.

Knows whose grades are there and who can be asked; the fit itself is in `calibrate`. Call `run_calibration`; stopped at
any moment, the same call resumes with the same sample and buys no row twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from alpasift.batcher.data.versions import DatasetVersion
from alpasift.batcher.engine.run_task import Caps, Confirm, run_task
from alpasift.batcher.engine.setups import setup_of
from alpasift.batcher.engine.summary import Progress, Summary
from alpasift.batcher.grading.calibrate import Calibration, calibrate
from alpasift.batcher.grading.calibration_sample import CalibrateError, Drawn, Job, Pool, draw_sample, read_pool
from alpasift.batcher.grading.labels import rubric_called
from alpasift.batcher.grading.lookup import By, Grading, GradingError, find_grading, grading_by, scores_of, spellings
from alpasift.batcher.grading.open_grader import OpenGrader, is_spec, open_named, rubric_for, settings_for, spec_named
from alpasift.batcher.money.dollars import show_usd
from alpasift.batcher.store import Store
from alpasift.batcher.tasks.grade import Grade
from alpasift.graders import BackendUnavailable, open_backend
from alpasift.graders.prompts.rubric import RubricError, load_rubric


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be calibrated to what: names of graders and rubrics, thresholds, and how the sample is drawn.

    A name is a spec (llama_cpp:model.gguf) or the label of a grader that has graded (labels:people). A rubric or a
    threshold that is not given is the grader's own. `force` fits across rubrics of different names.
    """

    cheap: str
    reference: str
    rubric: str | None = None
    reference_rubric: str | None = None
    threshold: Decimal | None = None
    reference_threshold: Decimal | None = None
    by: By = "score"
    sample: int = 500
    seed: int = 0
    force: bool = False


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The run that bought the sample, None where nothing had to be bought; the calibration once the sample is whole."""

    bought: Summary | None
    calibration: Calibration | None


def run_calibration(
    store: Store,
    version: DatasetVersion,
    wanted: Wanted,
    settings: Mapping[str, Any],
    asking: Mapping[str, Any],
    caps: Caps,
    *,
    confirm: Confirm | None = None,
    progress: Callable[[Progress], None] | None = None,
    remark: Callable[[str], None] = lambda text: None,
) -> Calibrated:
    """Calibrate the cheap grader of `wanted` to its reference; `remark` is told what a person should know on the way.

    Raises CalibrateError, with the command to run first where rows are not graded, and what `run_task` raises.
    """
    cheap = _cheap(store, version, wanted, settings)
    with _reference(store, version, wanted, cheap, settings, asking) as reference:
        _check_rubrics(cheap, reference.grading, wanted.force, remark)
        job = Job(
            version.version_id,
            cheap,
            reference.grading,
            wanted.by,
            reference.open is None,
            wanted.sample,
            wanted.seed,
        )
        with store.reader():
            pool = read_pool(store, job)
            drawn = draw_sample(store, job, pool)
        for text in reference.open.backend.remarks if reference.open else ():
            remark(text)
        bought = None
        if _must_buy(reference, pool, drawn, remark) and reference.open is not None:
            backend = reference.open.backend
            bought = run_task(
                store,
                version.version_id,
                reference.open.task,
                backend,
                caps,
                command="calibrate",
                positions=drawn.positions,
                confirm=confirm,
                progress=progress,
            )
            cost = show_usd(bought.usd) if backend.paid else "$0"
            remark(f"{backend.name}: {bought.replied:,} replies for {len(drawn.positions):,} sampled rows, {cost}")
    if bought is not None and bought.outcome != "done":
        return Calibrated(bought, None)
    return Calibrated(bought, calibrate(store, job, pool, drawn if bought is None else None))


@dataclass(frozen=True, slots=True)
class _Reference:
    """The reference's grading; `open` is the grader that makes it, None where its grades are there already."""

    grading: Grading
    open: OpenGrader | None = None


def _cheap(store: Store, version: DatasetVersion, wanted: Wanted, settings: Mapping[str, Any]) -> Grading:
    """The grading of the cheap grader. Raises CalibrateError, with the command to run, where rows are not graded."""
    cheap, rubric = wanted.cheap, wanted.rubric
    name = rubric_for(cheap, rubric)
    command = f"`alpasift grade --grader {cheap} --rubric {name} --dataset {version.label}` does that"

    def graded_by(grader: str) -> Grading:
        options = ("--cheap", "--rubric")
        return find_grading(store, version.version_id, grader, rubric, threshold=wanted.threshold, options=options)

    try:
        found = graded_by(cheap)
    except GradingError:
        if not is_spec(cheap):
            raise
        spec = spec_named(store, cheap).spec
        backend = open_backend(spec, settings_for(spec, settings, named=True))
        try:
            setup = setup_of(Grade(rubric_called(store, name)), backend)
        finally:
            backend.close()
        try:
            found = graded_by(setup.grader_id)
        except GradingError:
            raise CalibrateError(f"{cheap} must have graded the rows of {version.label} first; {command}") from None
    graded = scores_of(store, version.version_id, found).graded
    if graded < version.rows and not found.grader.startswith("labels:"):
        raise CalibrateError(
            f"{found.grader} has graded {graded:,} of the {version.rows:,} rows of {version.label}, and a calibration "
            f"needs all of them; grade the others first: {command}"
        )
    return found


@contextmanager
def _reference(
    store: Store,
    version: DatasetVersion,
    wanted: Wanted,
    cheap: Grading,
    settings: Mapping[str, Any],
    asking: Mapping[str, Any],
) -> Iterator[_Reference]:
    """The reference: a grader to be asked where the name is a spec that works here, else grades that are there."""
    with ExitStack() as stack:
        opened = None
        if is_spec(wanted.reference):
            name = wanted.reference_rubric or cheap.rubric_name
            try:
                load_rubric(name)
            except RubricError as error:
                raise RubricError(f"the reference uses the rubric {name}: {error} (--reference-rubric)") from error
            try:
                opened = stack.enter_context(open_named(store, wanted.reference, name, settings, asking))
            except BackendUnavailable:
                if not _has_graded(store, version, wanted.reference):
                    raise
        if opened is None:
            yield _Reference(
                find_grading(
                    store,
                    version.version_id,
                    wanted.reference,
                    wanted.reference_rubric,
                    threshold=wanted.reference_threshold,
                    options=("--reference", "--reference-rubric"),
                )
            )
        else:
            setup, rubric = setup_of(opened.task, opened.backend), opened.task.rubric
            grading = grading_by(
                setup.grader_id, setup.rubric_id, opened.backend.name, rubric, wanted.reference_threshold
            )
            yield _Reference(grading, opened)


def _has_graded(store: Store, version: DatasetVersion, name: str) -> bool:
    names = spellings("grader", name)
    there = store.query("gradings_of", version_id=version.version_id)
    return any(row["grader"] in names or row["grader_name"] in names for row in there)


def _check_rubrics(cheap: Grading, reference: Grading, force: bool, remark: Callable[[str], None]) -> None:
    """Raise CalibrateError where the two are one, or graded by rubrics of different names."""
    if (cheap.grader_id, cheap.rubric_id) == (reference.grader_id, reference.rubric_id):
        raise CalibrateError(
            f"{cheap.grader}, rubric {cheap.rubric}, is both the cheap grader and the reference; give two graders"
        )
    if cheap.rubric_name == reference.rubric_name:
        if cheap.rubric_id != reference.rubric_id:
            remark(f"the two graded by different versions of the rubric {cheap.rubric_name}")
        return
    if not force:
        raise CalibrateError(
            f"the rubrics differ: {cheap.grader} graded by {cheap.rubric_name}, the reference by "
            f"{reference.rubric_name} (binary labels have their own rubric); if that is intended, --force "
            f"calibrates across them"
        )
    remark(f"--force: {cheap.rubric_name} is calibrated against {reference.rubric_name}, which measures something else")


def _must_buy(reference: _Reference, pool: Pool, drawn: Drawn, remark: Callable[[str], None]) -> bool:
    """Whether the reference has to grade some of the drawn rows."""
    if reference.open is None:
        remark(
            f"the reference has grades already: {len(drawn.positions):,} sampled of the {pool.examples:,} "
            f"distinct rows graded by both; the results hold for rows like these"
        )
        return False
    if not drawn.unanswered:
        remark(f"the reference has graded all {len(drawn.positions):,} sampled rows already; nothing is sent")
    return bool(drawn.unanswered)
