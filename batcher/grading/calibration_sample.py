"""The sample of a calibration: rows that a cheap grader has graded, drawn to be graded by a reference.

Knows the store's grades and which rows are drawn; buys nothing and fits nothing. The drawn rows follow from dataset,
cheap grades, seed and size alone, so that a command that is run again draws the same rows and pays for none of them
twice. Rows that the cheap grader keeps make up about half the sample, however rare they are; the others the rest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alpasift.batcher.grading.lookup import By, Grading, no_expected_scores
from alpasift.batcher.sampling import Weighted
from alpasift.batcher.store import Store
from alpasift.graders import AlpaSiftError


class CalibrateError(AlpaSiftError):
    """A calibration that cannot be made as asked."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be calibrated to what, and how the sample is drawn. The thresholds are those of the two gradings.

    reference_given   its grades are there already: the sample is of rows that have one, and nothing is bought
    """

    version_id: str
    cheap: Grading
    reference: Grading
    by: By
    reference_given: bool
    sample: int = 500
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Level:
    """One value of the cheap grader: how many distinct rows of the dataset have it, and how many rows of the file."""

    value: float
    examples: int
    rows: int


@dataclass(frozen=True, slots=True)
class Pool:
    """The rows a calibration is about, by ascending value; and how many distinct rows are left out, by reason."""

    levels: tuple[Level, ...]
    left_out: Mapping[str, int]

    @property
    def examples(self) -> int:
        return sum(level.examples for level in self.levels)


@dataclass(frozen=True, slots=True)
class Stratum:
    """Rows drawn alike: `examples` of the pool, of which `drawn` were drawn and `answered` have a reference score."""

    name: str
    examples: int
    drawn: int
    answered: int

    @property
    def weight(self) -> float:
        """How many rows of the pool one answered row stands for: 1 / its chance."""
        return self.examples / self.answered if self.answered else 0.0


@dataclass(frozen=True, slots=True)
class Seen:
    """One row of the sample with a reference score.

    keeps      whether the reference keeps it
    stratum    1 for a row that the cheap grader keeps, 0 for the others
    chars      the length of its output
    """

    value: float
    keeps: bool
    stratum: int
    chars: int


@dataclass(frozen=True, slots=True)
class Drawn:
    """The sample: positions of its rows, its two strata (others, keepers), and the reference's grades so far.

    seen         the rows with a reference score
    unanswered   how many rows have none, by reason
    """

    positions: tuple[int, ...]
    strata: tuple[Stratum, Stratum]
    seen: tuple[Seen, ...]
    unanswered: Mapping[str, int]

    def weighted(self) -> list[Weighted]:
        """The rows with a reference score, each with the weight of its stratum."""
        return [Weighted(one.value, one.keeps, one.stratum, self.strata[one.stratum].weight) for one in self.seen]


def allocate(keepers: int, others: int, sample: int) -> tuple[int, int]:
    """How many rows to draw of those the cheap grader keeps, and of the others: half each, more where one is short."""
    of_keepers = min(keepers, sample // 2)
    of_others = min(others, sample - of_keepers)
    return min(keepers, sample - of_others), of_others


def read_pool(store: Store, job: Job) -> Pool:
    """The rows that a calibration is about. Raises CalibrateError where the cheap grader has no values to fit."""
    found = store.query("calibration_pool", **_gradings(job))
    left_out: dict[str, int] = defaultdict(int)
    levels = []
    for row in found:
        if row["value"] is None:
            left_out[row["reason"]] += row["examples"]
            continue
        examples = row["referenced"] if job.reference_given else row["examples"]
        if examples < row["examples"]:
            left_out["no_reference"] += row["examples"] - examples
        levels.append(Level(row["value"], examples, row["rows"]))
    pool = Pool(tuple(levels), dict(left_out))
    if not pool.examples:
        if job.by != "score" and left_out["no_expected"]:
            raise CalibrateError(no_expected_scores(job.cheap, left_out["no_expected"]))
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(left_out.items()))
        raise CalibrateError(
            f"no row of this dataset has a {job.by.replace('_', ' ')} by {job.cheap.grader}, rubric {job.cheap.rubric}"
            + (", and a reference score" if job.reference_given else "")
            + f" ({reasons})"
        )
    return pool


def draw_sample(store: Store, job: Job, pool: Pool) -> Drawn:
    """The sample, with the reference's grades so far. Writes nothing; the same job draws the same rows."""
    keep_from = float(job.cheap.threshold)
    sizes = [0, 0]
    for level in pool.levels:
        sizes[level.value >= keep_from] += level.examples
    keepers, others = allocate(sizes[1], sizes[0], job.sample)
    found = store.query(
        "calibration_sample",
        **_gradings(job),
        threshold=keep_from,
        referenced=job.reference_given,
        seed=job.seed,
        keepers=keepers,
        others=others,
    )
    keep_at = float(job.reference.threshold)
    seen, unanswered, answered = [], defaultdict[str, int](int), [0, 0]
    for row in found:
        if row["reference_score"] is None:
            unanswered[row["reference_reason"]] += 1
            continue
        answered[row["keeper"]] += 1
        seen.append(Seen(row["value"], row["reference_score"] >= keep_at, int(row["keeper"]), row["output_chars"]))
    strata = (
        Stratum("others", sizes[0], others, answered[0]),
        Stratum("keepers", sizes[1], keepers, answered[1]),
    )
    return Drawn(tuple(row["position"] for row in found), strata, tuple(seen), dict(unanswered))


def _gradings(job: Job) -> dict[str, Any]:
    return {
        "version_id": job.version_id,
        "grader_id": job.cheap.grader_id,
        "rubric_id": job.cheap.rubric_id,
        "by": job.by,
        "reference_grader_id": job.reference.grader_id,
        "reference_rubric_id": job.reference.rubric_id,
    }
