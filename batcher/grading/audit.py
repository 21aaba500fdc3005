"""An audit: is a grader worth anything, found out without a single label.

Of some rows of a dataset pairs are made whose order is known (audit_pairs.py, audit_damage.py), both sides are graded
by the same rubric as any dataset is, and a verdict says what the grader tells apart (audit_verdict.py). Knows which
figures make a result; the tables are in audit_store.py. Call `run_audit`; stopped at any moment, the same call resumes,
and rows that are graded already cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from alpasift.batcher.data.versions import DatasetVersion
from alpasift.batcher.engine.run_task import Caps, Confirm, run_task
from alpasift.batcher.engine.setups import PromptSetup, setup_of
from alpasift.batcher.engine.summary import Progress, Summary
from alpasift.batcher.grading.audit_damage import KINDS
from alpasift.batcher.grading.audit_store import Audit, AuditError, audit_of, keep_verdict
from alpasift.batcher.grading.audit_verdict import Counts, Verdict, verdict
from alpasift.batcher.grading.open_grader import OpenGrader
from alpasift.batcher.statistics import Figure, auc, ranked, undefined, wilson
from alpasift.batcher.store import Store
from alpasift.batcher.tasks.grade import Grade
from alpasift.graders.prompts.rubric import MEASURED


@dataclass(frozen=True, slots=True)
class KindFigures:
    """The pairs of one kind that have both scores.

    higher, ties, lower   the original scored higher than the changed output, the same, lower
    no_score              pairs that lack a score on one side
    share                 of damage: higher / pairs; of the others: lower / pairs, the share that was raised
    auc, length_auc       of originals against changed outputs, by the scores and by the length of the output
    mean_change           mean score of the changed outputs less that of the originals
    """

    kind: str
    expects: str
    pairs: int
    higher: int
    ties: int
    lower: int
    no_score: int
    share: Figure
    auc: Figure
    length_auc: Figure
    mean_change: float | None


@dataclass(frozen=True, slots=True)
class AuditResult:
    """What an audit of a grader by a rubric has shown. `same_twice`: the share of questions that were asked twice and
    got the same score both times; `by` is the figure that was compared, score or expected_score."""

    audit: Audit
    by: str
    kinds: tuple[KindFigures, ...]
    asked_twice: int
    same_twice: Figure
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Audited:
    """The run that graded the rows, and the result once all of them are graded."""

    audit: Audit
    summary: Summary
    result: AuditResult | None


def run_audit(
    store: Store,
    version: DatasetVersion,
    opened: OpenGrader,
    count: int,
    seed: int,
    caps: Caps,
    *,
    confirm: Confirm | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Audited:
    """Audit an open grader on `count` rows of a dataset version and write down the verdict.

    Raises AuditError where the dataset has too few rows or a score says nothing of quality, and what `run_task` raises.
    """
    rubric = opened.task.rubric
    if rubric.measured and MEASURED[rubric.name] is not None:
        raise AuditError(
            f"{rubric.name} measures how hard a row is to answer, so that damage may raise it; an audit is for graders "
            "of quality"
        )
    audit = audit_of(store, version, count, seed, rubric.answers[-1] if rubric.answers else "5")
    task = Grade(rubric, opened.task.answer_format, samples=2, temperature=opened.task.temperature)
    summary = run_task(
        store,
        audit.audit_id,
        task,
        opened.backend,
        caps,
        command="audit",
        numbers=audit.numbers,
        confirm=confirm,
        progress=progress,
    )
    if summary.outcome != "done":
        return Audited(audit, summary, None)
    return Audited(audit, summary, _result(store, audit, task, setup_of(task, opened.backend)))


def _result(store: Store, audit: Audit, task: Grade, setup: PromptSetup) -> AuditResult:
    whose = {"audit_id": audit.audit_id, "setup_id": setup.setup_id}
    with store.reader():  # opened once for all
        counted = {row["kind"]: row for row in store.query("audit_kinds", **whose)}
        values = store.query("audit_values", **whose)
        again = store.query("audit_repeats", **whose)[0]
    kinds = tuple(
        _figures(counted[kind], [row for row in values if row["kind"] == kind]) for kind in KINDS if kind in counted
    )
    found = verdict(
        Counts(
            one.kind,
            one.higher,
            one.ties,
            one.lower,
            counted[one.kind]["original_longer"],
            counted[one.kind]["original_shorter"],
        )
        for one in kinds
    )
    same = wilson(again["same"], again["asked"]) if again["asked"] else undefined("no question was asked twice")
    by = "expected_score" if task.answer_format == "expected_score" else "score"
    result = AuditResult(audit, by, kinds, again["asked"], same, found)
    ids = {**whose, "grader_id": setup.grader_id, "rubric_id": setup.rubric_id}
    keep_verdict(store, ids, found.line, found.short, _facts(result))
    return result


def _facts(result: AuditResult) -> dict[str, Any]:
    """What is kept of a result, as plain values."""
    kept = asdict(result)
    return {name: kept[name] for name in ("by", "kinds", "asked_twice", "same_twice", "verdict")}


def _figures(row: Mapping[str, Any], values: list[dict[str, Any]]) -> KindFigures:
    damage = row["expects"] == "lower"
    pairs = row["pairs"]
    means = (row["mean_original_score"], row["mean_changed_score"])
    return KindFigures(
        kind=row["kind"],
        expects=row["expects"],
        pairs=pairs,
        higher=row["original_higher"],
        ties=row["ties"],
        lower=row["original_lower"],
        no_score=row["no_score"],
        share=wilson(row["original_higher"] if damage else row["original_lower"], pairs),
        auc=_auc(values, "score"),
        length_auc=_auc(values, "output_chars"),
        mean_change=None if None in means else means[1] - means[0],
    )


def _auc(values: list[dict[str, Any]], by: str) -> Figure:
    if not values:
        return undefined("no pair has both scores")
    return auc(ranked((float(row[by]), row["original"], row["rows"]) for row in values))
