"""From scores to a subset: which rows of a dataset version are kept, written down with what made it so.

Knows grades and rows as SQL shows them; nothing of backends, files or training. Call `select` with a `Condition`
(condition.py); the result is a stored `Selection` (selections.py). Its manifest has condition, grader, rubric, counts,
ties, reasons, composition and fingerprints. The steps are the statements of sql/select: pool_rows, marked_rows,
kept_rows.

Every choice is repeatable. Where rows are equally good, or where chance is wanted, they are ordered by their draw,

    md5("PURPOSE SEED EXAMPLE_ID COPY")     in hexadecimal; PURPOSE is tie, random or nested,

where COPY counts the rows of equal content from 1. A draw depends neither on the machine, nor on the order of the file,
nor on DuckDB. Purposes have draws of their own, so that a random baseline does not follow the rows that won a tie.

Method: Chen et al. 2023 (AlpaGasus, arXiv 2307.08701): the threshold of section 2.3, the random and the nested 3k and
6k subsets of sections 4.1 and 4.2. Quotas are the remedy for what its section 6 finds, that code is hardly kept.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import pyarrow as pa

from alpasift.batcher.grading.condition import Condition, SelectError, plain_number
from alpasift.batcher.grading.lookup import Grading, NotGraded, Scores, find_grading, no_expected_scores, scores_of
from alpasift.batcher.grading.selections import Selection, record, resolve_selection
from alpasift.batcher.grading.where import MEMORY_BYTES, Verdicts, rows_where
from alpasift.batcher.store import Connection, Store, named_query, rows
from alpasift.graders.prompts.rubric import spell


@dataclass(frozen=True, slots=True)
class _Grades:
    """The gradings a selection goes by, none for an order that needs none; and how the first of them has turned out."""

    panel: tuple[Grading, ...]
    scores: Scores | None

    @property
    def first(self) -> Grading | None:
        return self.panel[0] if self.panel else None


def select(
    store: Store,
    version_id: str,
    name: str,
    condition: Condition,
    *,
    grader: str | Sequence[str] | None = None,
    rubric: str | None = None,
) -> list[Selection]:
    """Keep the rows of a dataset version that meet the condition, under a name. Raises SelectError and GradingError.

    Several graders go with a condition that combines them. Returns the selection, then its nested sub-samples
    NAME-3000, NAME-6000, smallest first. When the newest selection of that name has the same rows by the same condition
    and grades, it is returned and nothing is written. A condition that keeps no row is an error.
    """
    named: list[str | None] = (
        [grader] if grader is None or isinstance(grader, str) else [*dict.fromkeys(grader)] or [None]
    )
    condition.check(name, len(named))
    with store.reader():  # opened once for all that is asked
        grades = _grades(store, version_id, condition, named, rubric)
    condition = _as_measured(condition, grades.panel)
    matched = None
    if condition.match is not None:
        other = resolve_selection(store, condition.match)
        matched, condition = other.rows, replace(condition, match=other.label)
    verdicts = None
    if condition.where is not None:
        verdicts = rows_where(store, version_id, condition.where, grades.first)
    with store.transaction(memory=f"{MEMORY_BYTES // 1_000_000}MB") as con:
        dataset = _dataset(con, version_id)
        size = condition.size_of(dataset["rows"], matched)
        _pool_rows(con, version_id, condition, grades.panel)
        _check_quota(con, condition)
        _marked_rows(con, condition, size, verdicts)
        counts = rows(con, _step("counts")).dicts()[0]
        facts = _facts(con, dataset, condition, grades, size, counts)
        if not counts["kept"]:
            raise SelectError(_nothing_kept(facts, condition, grades))
        _check_nested(condition, counts["kept"])
        whole = _record_part(con, name, version_id, facts, condition.seed)
        parts = [
            _record_part(con, f"{name}-{part}", version_id, _part_facts(facts, whole, part), condition.seed, part)
            for part in sorted(set(condition.nested))
        ]
    return [whole, *parts]


# -- the grades ---------------------------------------------------------------------------------------------------


def _grades(
    store: Store, version_id: str, condition: Condition, graders: Sequence[str | None], rubric: str | None
) -> _Grades:
    """The grades that the condition needs. Without a name, an order needs none and `where` takes what there is."""
    named = graders[0] is not None or rubric is not None
    if condition.order is not None and not named:
        return _Grades((), None)
    try:
        panel = tuple(find_grading(store, version_id, grader, rubric) for grader in graders)
    except NotGraded:
        if condition.where is None or named:
            raise
        return _Grades((), None)
    first = panel[0]
    for one in panel[1:]:
        if not one.same_scale(first):
            raise SelectError(
                f"only graders with the same scale can be combined; {one.grader} by {one.rubric} scores "
                f"from {spell(one.low)} to {spell(one.high)} and {first.grader} by {first.rubric} "
                f"from {spell(first.low)} to {spell(first.high)}"
            )
    return _Grades(panel, scores_of(store, version_id, first))


def _as_measured(condition: Condition, panel: Sequence[Grading]) -> Condition:
    """The condition as measured figures are chosen by: the figure in full, below the limit that its rubric has."""
    scored = condition.kind in ("min_score", "top", "keep_share")
    if not scored or not panel or not all(one.measured for one in panel):
        return condition
    below = panel[0].below if condition.below is None else condition.below
    return replace(condition, by="expected_score", below=below)


# -- the steps ----------------------------------------------------------------------------------------------------


def _step(name: str) -> str:
    return named_query(name, "select").text


def _dataset(con: Connection, version_id: str) -> dict[str, Any]:
    found = rows(con, "select * from datasets where version_id = $v", {"v": version_id}).dicts()
    if not found:
        raise SelectError(f"no dataset version {version_id}; `alpasift query datasets` lists them")
    return found[0]


def _pool_rows(con: Connection, version_id: str, condition: Condition, panel: Sequence[Grading]) -> None:
    parameters = {
        "version_id": version_id,
        "graders": [one.grader_id for one in panel],
        "rubrics": [one.rubric_id for one in panel],
        "by": condition.by,
        "combine": condition.combine,
        "kind": condition.kind,
        "purpose": "random" if condition.order == "random" else "tie",
        "seed": str(condition.seed),
    }
    con.execute(_step("pool_rows"), parameters)


def _check_quota(con: Connection, condition: Condition) -> None:
    if not condition.quota:
        return
    known = [r[0] for r in rows(con, "select category from pool_rows group by 1 order by count(*) desc, 1").rows]
    unknown = sorted(set(condition.quota) - {*known, "*"})
    if unknown:
        if known == ["(none)"]:
            raise SelectError(f"--quota {unknown[0]}: the rows have no category")
        more = f" and {len(known) - 20} more" if len(known) > 20 else ""
        raise SelectError(f"--quota {unknown[0]}: no row has that category; choose from {', '.join(known[:20])}{more}")


def _marked_rows(con: Connection, condition: Condition, size: int | None, verdicts: Verdicts | None) -> None:
    true, unknown = (verdicts.true, verdicts.unknown) if verdicts else (array("q"), array("q"))
    con.register("where_true", pa.table({"position": pa.array(true, pa.int64())}))
    con.register("where_unknown", pa.table({"position": pa.array(unknown, pa.int64())}))
    quota = {c: n for c, n in condition.quota.items() if c != "*"}
    parameters = {
        "kind": condition.kind,
        "min_score": condition.min_score,
        "below": condition.below,
        "categories": list(quota),
        "most": list(quota.values()),
        "most_of_others": condition.quota.get("*"),
        "size": size,
    }
    con.execute(_step("marked_rows"), parameters)
    con.unregister("where_true")
    con.unregister("where_unknown")


def _record_part(
    con: Connection, name: str, version_id: str, facts: dict[str, Any], seed: int, part: int | None = None
) -> Selection:
    """Store the rows that are kept, or a random part of them."""
    con.execute(_step("kept_rows"), {"seed": str(seed), "part": part})
    return record(con, name, version_id, {**facts, **rows(con, _step("fingerprints")).dicts()[0]})


# -- the manifest -------------------------------------------------------------------------------------------------


def _facts(
    con: Connection,
    dataset: dict[str, Any],
    condition: Condition,
    grades: _Grades,
    size: int | None,
    counts: dict[str, Any],
) -> dict[str, Any]:
    """The manifest of what was marked, without its name, times, composition and fingerprints."""
    first, scores, threshold = grades.first, grades.scores, condition.min_score
    on_steps = first is not None and scores is not None and len(grades.panel) == 1 and condition.by == "score"
    means = scores.lowest_kept(first, threshold) if on_steps and first and scores and threshold is not None else None
    share = round(counts["kept"] / counts["pool"], 6) if counts["pool"] else 0
    return {
        "dataset": {
            "label": dataset["label"],
            "version_id": str(dataset["version_id"]),
            "source": dataset["source"],
            "sha256": dataset["sha256"],
            "rows": dataset["rows"],
        },
        "condition": condition.as_given(),
        "seed": condition.seed,
        **_grading_facts(grades),
        "threshold": plain_number(threshold),
        "threshold_means": plain_number(means),
        "observed_step": plain_number(scores.observed_step) if scores else None,
        "counts": {**{name: counts[name] for name in ("pool", "scored", "kept")}, "kept_share": share},
        "ties": _ties(condition, size, counts),
        "not_kept_by_reason": dict(rows(con, _step("reasons"), {"kind": condition.kind}).rows),
        "notes": _notes(condition, grades, means, size, counts),
    }


def _grading_facts(grades: _Grades) -> dict[str, Any]:
    first = grades.first
    if first is None:
        return {"grader": None, "rubric": None}
    facts: dict[str, Any] = {
        "grader": {"label": first.grader, "fingerprint": json.loads(first.fingerprint)},
        "rubric": {
            "label": first.rubric,
            "sha256": first.rubric_sha256,
            "threshold": plain_number(first.threshold),
            "step": plain_number(first.step),
        },
    }
    if len(grades.panel) > 1:
        facts["panel"] = [
            {"label": one.grader, "fingerprint": json.loads(one.fingerprint), "rubric": one.rubric}
            for one in grades.panel
        ]
    return facts


def _ties(condition: Condition, size: int | None, counts: dict[str, Any]) -> dict[str, Any] | None:
    """The score (or length) of the last row that was kept, how many rows share it and how many of them were kept."""
    if size is None or not counts["kept"] or condition.order == "random":
        return None
    what = "output_chars" if condition.order else "score"
    return {what: plain_number(abs(counts["worth"])), "tied": counts["tied"], "taken": counts["taken"]}


def _notes(
    condition: Condition, grades: _Grades, means: Decimal | None, size: int | None, counts: dict[str, Any]
) -> list[str]:
    notes = []
    if means is not None and condition.min_score is not None and means != condition.min_score:
        assert grades.first is not None and grades.scores is not None
        step = spell(grades.scores.observed_step or grades.first.step)
        notes.append(
            f"the scores of {grades.first.grader} are in steps of {step}: {spell(condition.min_score)} is "
            f"effectively {spell(means)}"
        )
    if size is not None and counts["kept"] < size:
        limit = "the quota leaves" if condition.quota else f"{counts['scored']} rows have a score, which leaves"
        if condition.below is not None and not condition.quota:
            limit = f"{counts['scored']} rows have a score, of which those below {spell(condition.below)} are"
        notes.append(f"{size} rows were requested; {limit} {counts['kept']}")
    return notes


def _check_nested(condition: Condition, kept: int) -> None:
    too_large = [part for part in condition.nested if part > kept]
    if too_large:
        raise SelectError(f"--nested {too_large[0]}: only {kept} rows were kept")


def _part_facts(facts: dict[str, Any], whole: Selection, part: int) -> dict[str, Any]:
    """The facts of a random part of a selection."""
    pool, kept = facts["counts"]["pool"], facts["counts"]["kept"]
    reasons = dict(facts["not_kept_by_reason"])
    if kept > part:
        reasons["not_drawn"] = reasons.get("not_drawn", 0) + kept - part
    of = {"selection": whole.label, "fingerprint": whole.manifest["fingerprint"], "condition": facts["condition"]}
    return {
        **facts,
        "condition": {"of": whole.label, "order": "random", "size": part, "seed": facts["seed"]},
        "of": of,
        "counts": {**facts["counts"], "kept": part, "kept_share": round(part / pool, 6)},
        "not_kept_by_reason": reasons,
    }


def not_kept(reason: str) -> str:
    """Why rows were not kept, in words."""
    return _NOT_KEPT.get(reason, reason.replace("_", " "))


_NOT_KEPT = {
    "below_threshold": "score below the threshold",
    "not_below": "score at or above the limit (--below)",
    "below_cut": "score below the cut-off",
    "tied_at_cut": "tied at the cut-off, not drawn",
    "over_quota": "over the quota of their category",
    "no_expected": "no expected score",
    "not_graded": "no score: not graded yet",
}


def _nothing_kept(facts: dict[str, Any], condition: Condition, grades: _Grades) -> str:
    left_out = facts["not_kept_by_reason"]
    if condition.by == "expected_score" and set(left_out) == {"no_expected"} and grades.first is not None:
        return no_expected_scores(grades.first, left_out["no_expected"])
    reasons = ", ".join(f"{not_kept(reason)}: {count:,}" for reason, count in left_out.items())
    best = ""
    if grades.first is not None and grades.scores is not None and grades.scores.highest is not None:
        best = f"; the highest score of {grades.first.grader} is {spell(grades.scores.highest)}"
    ungraded = "; no grader has graded this dataset" if condition.where and grades.first is None else ""
    return f"no row of {facts['dataset']['label']} meets the condition ({reasons}){best}{ungraded}; nothing was written"
