"""Calibration: what a cheap grader's score means in terms of a reference, stored with all that made it.

Knows the table `calibrations`; buys nothing. The parts, in the order in which they are called:

    read_pool, draw_sample    which rows the reference is to grade (calibration_sample.py); the caller buys the grades
    calibrate                 fit the one to the other (calibration_fit.py) and store the result as a `Calibration`
    calibration_of            the newest calibration of a grading; stale_calibration: of another version of it

`calibration_run` does all of it from names, `calibration_threshold` finds the threshold for `select --calibrated`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from alpasift.batcher import installed_version
from alpasift.batcher.grading.calibration_fit import DRAWS, Findings, analyse
from alpasift.batcher.grading.calibration_sample import CalibrateError, Drawn, Job, Pool, draw_sample, read_pool
from alpasift.batcher.grading.calibration_verdict import Evidence, Point, Verdict, no_claim, tells, threshold_for
from alpasift.batcher.grading.lookup import STORED_BY, By
from alpasift.batcher.sampling import HeldOut, Knot, predict
from alpasift.batcher.statistics import Figure
from alpasift.batcher.store import Store, append, new_id, utc_now


@dataclass(frozen=True, slots=True)
class Calibration:
    """A stored calibration of a grader and rubric to a reference. Under `no_claim` it offers no threshold.

    verdict, reasons   by today's rule, whatever the rule was when it was stored (calibration_verdict.py)
    """

    calibration_id: str
    grader_id: str
    rubric_id: str
    grader: str
    rubric: str
    by: By
    reference: str
    reference_rubric: str
    reference_grader_id: str
    reference_rubric_id: str
    reference_threshold: Decimal
    version_id: str
    verdict: Verdict
    reasons: tuple[str, ...]
    facts: Mapping[str, Any]
    recorded_at: datetime

    @property
    def fitted_to(self) -> tuple[str, str, str, Decimal]:
        """To what it was fitted: the reference, its rubric and threshold, and the dataset version."""
        return (self.reference_grader_id, self.reference_rubric_id, self.version_id, self.reference_threshold)

    @property
    def sample(self) -> int:
        """How many rows it rests on."""
        return int(self.facts["sample"]["answered"])

    @property
    def curve(self) -> tuple[Point, ...]:
        """What each threshold would do; nothing under `no_claim`."""
        return _curve(self.facts) if self.verdict == "calibrated" else ()

    @property
    def threshold_same_share(self) -> float | None:
        """The threshold that keeps about the share that the reference would keep; None where it tells nothing."""
        point = self.same_share
        return None if point is None else point.threshold

    @property
    def same_share(self) -> Point | None:
        """What that threshold does; None under `no_claim`, or where it is not shown to do better than keeping all."""
        share, at = self.facts["share"]["value"], self.facts["same_share"]["threshold"]
        return next((one for one in self.curve if one.threshold == at and tells(one, share)), None)

    def threshold_precision(self, wanted: float) -> Point | None:
        """The lowest threshold that is estimated to reach a precision, with what it does; None where none is shown to
        do better than keeping all rows."""
        return threshold_for(self.curve, wanted, self.facts["share"]["value"] or 0.0)

    def at(self, threshold: float) -> Point | None:
        """What is known about a threshold: the point of the curve that keeps the same rows, None where none does."""
        for one in sorted(self.curve, key=lambda point: point.threshold):
            if one.threshold >= threshold:
                return one if self.facts["every_value"] or one.threshold == threshold else None
        return None

    def p_keep(self, score: float) -> float:
        """The chance that the reference keeps a row of that score; under `no_claim` the share it keeps of all rows."""
        if self.verdict == "no_claim" or not self.facts["fit"]:
            return float(self.facts["share"]["value"] or 0.0)
        return predict([Knot(score, p) for score, p in self.facts["fit"]], score)


def _curve(facts: Mapping[str, Any]) -> tuple[Point, ...]:
    return tuple(
        Point(**{**one, "precision": Figure(**one["precision"]), "recall": Figure(**one["recall"])})
        for one in facts["curve"]
    )


def facts_of(job: Job, pool: Pool, drawn: Drawn, found: Findings) -> dict[str, Any]:
    """What is kept of a calibration, as plain values."""
    positions = "\n".join(map(str, drawn.positions))
    return {
        "seed": job.seed,
        "cheap_threshold": float(job.cheap.threshold),
        "reference_given": job.reference_given,
        "pool": {"examples": pool.examples, "left_out": dict(pool.left_out)},
        "sample": {
            "wanted": job.sample,
            "drawn": len(drawn.positions),
            "answered": len(drawn.seen),
            "unanswered": dict(drawn.unanswered),
            "keepers": found.keepers,
            "others": found.others,
            "positions_sha256": hashlib.sha256(positions.encode()).hexdigest(),
        },
        "strata": [{**asdict(stratum), "weight": stratum.weight} for stratum in drawn.strata],
        "reasons": list(found.reasons),
        "share": asdict(found.share),
        "auc": asdict(found.auc),
        "length": {"direction": found.length, "auc": asdict(found.length_auc), "lead": asdict(found.length_lead)},
        "held_out": asdict(found.held_out) if found.held_out else None,
        "fit": [[knot.score, knot.p] for knot in found.fit],
        "same_share": {"threshold": found.same_share, "low": found.same_share_low, "high": found.same_share_high},
        "curve": [asdict(point) for point in found.curve],
        "every_value": len(found.curve) == len(pool.levels),
        "draws": DRAWS,
        "alpasift": installed_version(),
    }


def calibrate(store: Store, job: Job, pool: Pool | None = None, drawn: Drawn | None = None) -> Calibration:
    """Fit the cheap grader to the reference on the rows of the sample that have both grades, and write it down.

    `pool` and `drawn` save reading them again where nothing was bought since. What equals the newest calibration of the
    same grades is not written again. Raises CalibrateError.
    """
    with store.reader():
        pool = pool or read_pool(store, job)
        drawn = drawn or draw_sample(store, job, pool)
    if not drawn.seen:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in drawn.unanswered.items())
        raise CalibrateError(f"the reference scored none of the {len(drawn.positions):,} sampled rows ({reasons})")
    found = analyse(pool, drawn, float(job.cheap.threshold), job.seed)
    facts = json.loads(json.dumps(facts_of(job, pool, drawn, found)))
    newest = calibration_of(store, job.cheap.grader_id, job.cheap.rubric_id, job.by)
    reference = {
        "reference_grader_id": job.reference.grader_id,
        "reference_rubric_id": job.reference.rubric_id,
        "version_id": job.version_id,
        "reference_threshold": job.reference.threshold,
    }
    if newest is not None and newest.facts == facts and newest.fitted_to == tuple(reference.values()):
        return newest
    row = {
        "calibration_id": new_id(),
        "grader_id": job.cheap.grader_id,
        "rubric_id": job.cheap.rubric_id,
        "scored": STORED_BY[job.by],
        **reference,
        "verdict": found.verdict,
        "facts": json.dumps(facts),
        "recorded_at": utc_now(),
    }
    with store.transaction() as con:
        append(con, "calibrations", tuple(row), [tuple(row.values())])
    written = calibration_of(store, job.cheap.grader_id, job.cheap.rubric_id, job.by)
    assert written is not None
    return written


def calibration_of(store: Store, grader_id: str, rubric_id: str, by: By = "score") -> Calibration | None:
    """The newest calibration of a grader's very version, rubric and scored column; None where there is none."""
    whose = {"grader_id": grader_id, "rubric_id": rubric_id, "scored": STORED_BY[by]}
    found = store.query("calibrations", **whose, grader_name=None, rubric_name=None)
    return _read(found[0]) if found else None


def is_calibrated(store: Store, grader_id: str, rubric_id: str) -> bool:
    """Whether the newest calibration of a grader's very version and rubric offers a threshold."""
    whose = {"grader_id": grader_id, "rubric_id": rubric_id, "scored": None}
    found = store.query("calibrations", **whose, grader_name=None, rubric_name=None)
    return bool(found) and not reasons_of(json.loads(found[0]["facts"]))


def stale_calibration(
    store: Store,
    grader_name: str,
    rubric_name: str,
    *,
    grader_id: str | None = None,
    rubric_id: str | None = None,
) -> Calibration | None:
    """The newest calibration of another version of this grader or rubric, where the version in use has none; else None.

    The version in use is the one of these ids, or the newest of the name.
    """
    newest = store.query("newest_version", grader_name=grader_name, rubric_name=rubric_name)[0]
    used = (grader_id or newest["grader_id"], rubric_id or newest["rubric_id"])
    found = store.query(
        "calibrations", grader_id=None, rubric_id=None, scored=None, grader_name=grader_name, rubric_name=rubric_name
    )
    if not found or any((row["grader_id"], row["rubric_id"]) == used for row in found):
        return None
    return _read(found[0])


def reasons_of(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Why the stored facts of a calibration carry no claim; nothing where they do."""
    length, error = facts["length"], facts["held_out"]
    return no_claim(
        Evidence(
            keepers=facts["sample"]["keepers"],
            others=facts["sample"]["others"],
            auc=Figure(**facts["auc"]),
            length=length["direction"],
            length_auc=Figure(**length["auc"]),
            length_lead=Figure(**length["lead"]),
            held_out=HeldOut(**error) if error else None,
            share=Figure(**facts["share"]),
            curve=_curve(facts),
        )
    )


def _read(row: Mapping[str, Any]) -> Calibration:
    fields = {name: value for name, value in row.items() if name not in ("scored", "facts", "verdict")}
    by = next(by for by, stored in STORED_BY.items() if stored == row["scored"])
    facts = json.loads(row["facts"])
    reasons = reasons_of(facts)
    return Calibration(by=by, facts=facts, verdict="no_claim" if reasons else "calibrated", reasons=reasons, **fields)
