"""A bench of free graders: every score that cost nothing, beside a reference and beside output length.

    values of each score  --(reference keeps the row?)-->  AUC, its lead over output length, keepers found

A score is an order of the rows, taken from the end that does better on the rows at hand; output length likewise. That
choice favours each a little, and is made for both alike. Asks nobody and writes nothing. Call `bench`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_UP, Decimal
from itertools import groupby
from statistics import NormalDist
from typing import Literal

from alpasift.batcher.grading.lookup import By, Grading, GradingError, NotGraded, find_grading
from alpasift.batcher.statistics import Z95, Figure, auc, auc_difference, ranked
from alpasift.batcher.store import Store, named_query, rows
from alpasift.graders.prompts.rubric import MEASURED

LEAST_OF_A_KIND = 10
"""Rows that the reference keeps, and drops, below which nothing is said of an order."""
NOT_BENCHED = ("labels:", "fake")
"""What the names of graders begin with that are references, or give scores without a meaning."""
TRAITS = ("output_chars", "output_words", "output_lines")

End = Literal["highest", "lowest"]


@dataclass(frozen=True, slots=True)
class Benched:
    """How one score orders the rows that both it and the reference have scored.

    name        the grader's label, or what of the output is counted
    rubric, by  of a grader: by which rubric, and which figure of its grades
    rows        compared; `keepers` of them the reference keeps
    auc         for the highest first: below .5 the lowest do better
    end         which end of the order does better here
    lead        the AUC from that end less that of output length from its better end, on the same rows
    kept        how many rows are kept for `found`
    found       the share of the keepers among these, taken from `end`; ties at the cut count in proportion
    beats_length  whether the lead is above 0 with an interval that allows for how many scores are compared
    """

    name: str
    rubric: str | None
    by: By | None
    rows: int
    keepers: int
    auc: Figure
    end: End
    lead: Figure
    kept: int
    found: float | None
    beats_length: bool = False

    @property
    def title(self) -> str:
        """What it is called on screen; a grader's own rubric goes without saying."""
        if self.rubric is None:
            return self.name.replace("_", " ")
        if self.rubric.partition("@")[0] == self.name.partition(":")[0] or self.by is None:
            return self.name
        return f"{self.name}, {self.rubric}, {self.by.replace('_', ' ')}"


@dataclass(frozen=True, slots=True)
class Bench:
    """The scores beside one reference; the first of them is output length in characters."""

    reference: Grading
    rows: int
    keepers: int
    keep_share: float
    scores: list[Benched]
    messages: list[str]


Row = tuple[float, float, bool]
"""A value of the score, the output's characters, and whether the reference keeps the row."""


def references(store: Store, version_id: str) -> list[str]:
    """The labels that the rows of a dataset version have, by the id of their grader. Raises GradingError where there
    are none."""
    found = store.query("gradings_of", version_id=version_id)
    labels = [row["grader_id"] for row in found if row["grader"].startswith("labels:")]
    if not labels:
        raise GradingError(
            "these rows have no labels to compare with: import some (`alpasift labels FILE --as NAME`), or name a "
            "grader of them with --reference"
        )
    return list(dict.fromkeys(labels))


def bench(
    store: Store,
    version_id: str,
    reference: str,
    rubric: str | None = None,
    *,
    threshold: Decimal | None = None,
    keep_share: Decimal | None = None,
) -> Bench:
    """Compare every free score of a dataset version with a reference, which keeps rows from its threshold on.

    `keep_share` is the share of the rows that is kept for `found`, by default what the reference keeps. Raises
    GradingError where the reference has not graded these rows.
    """
    chosen = find_grading(
        store, version_id, reference, rubric, threshold=threshold, options=("--reference", "--reference-rubric")
    )
    with store.reader() as con:
        parameters = {"version_id": version_id, "grader_id": chosen.grader_id, "rubric_id": chosen.rubric_id}
        labelled = rows(con, named_query("benched_rows").text, parameters).rows
        if not labelled:
            raise NotGraded(f"{chosen.grader} has scored no row of this dataset")
        keeps = {str(row[0]): row[1] >= chosen.threshold for row in labelled}
        chars = {str(row[0]): float(row[2]) for row in labelled}
        share = float(keep_share) if keep_share is not None else sum(keeps.values()) / len(keeps)
        found = []
        for place, trait in enumerate(TRAITS, 2):
            values = {str(row[0]): float(row[place]) for row in labelled}
            found.append(compared(trait, None, None, _cells(values, chars, keeps), share))
        for grading in _free(store, version_id, chosen):
            parameters = {"version_id": version_id, "grader_id": grading[0], "rubric_id": grading[1]}
            scored = rows(con, named_query("benched_scores").text, parameters).rows
            for by, values in _figures(grading[3], scored).items():
                found.append(compared(grading[2], grading[3], by, _cells(values, chars, keeps), share))
    judged, keepers = _judged(found), sum(keeps.values())
    return Bench(chosen, len(keeps), keepers, share, judged, _messages(judged, keepers, len(keeps)))


def _free(store: Store, version_id: str, reference: Grading) -> list[tuple[str, str, str, str]]:
    """(grader id, rubric id, grader, rubric) of the gradings that cost nothing, but for the reference."""
    found = store.query("free_gradings", version_id=version_id)
    return [
        (str(row["grader_id"]), str(row["rubric_id"]), row["grader"], row["rubric"])
        for row in found
        if not row["grader"].startswith(NOT_BENCHED)
        and (str(row["grader_id"]), str(row["rubric_id"])) != (reference.grader_id, reference.rubric_id)
    ]


def _figures(rubric: str, scored: Sequence[tuple[object, ...]]) -> dict[By, dict[str, float]]:
    """The figures of a grading by example: its scores, and its expected scores; of a measure the latter alone."""
    scores = {str(row[0]): float(str(row[1])) for row in scored}
    expected = {str(row[0]): float(str(row[2])) for row in scored if row[2] is not None}
    found: dict[By, dict[str, float]] = {}
    if rubric.partition("@")[0] not in MEASURED:
        found["score"] = scores
    if expected:
        found["expected_score"] = expected
    return found


def _cells(values: Mapping[str, float], chars: Mapping[str, float], keeps: Mapping[str, bool]) -> list[Row]:
    return [(values[example], chars[example], keeps[example]) for example in keeps if example in values]


# -- one score ----------------------------------------------------------------------------------------------------


def compared(name: str, rubric: str | None, by: By | None, cells: Sequence[Row], keep_share: float) -> Benched:
    """One score against the reference and against output length. `beats_length` is not decided here."""
    area = auc(ranked((value, keeps, 1) for value, _, keeps in cells))
    length = auc(ranked((chars, keeps, 1) for _, chars, keeps in cells))
    end, length_end = _end(area), _end(length)
    sign, length_sign = (1 if one == "highest" else -1 for one in (end, length_end))
    lead = auc_difference([(sign * value, length_sign * chars, keeps, 1) for value, chars, keeps in cells])
    keepers = sum(keeps for _, _, keeps in cells)
    kept = int((Decimal(str(keep_share)) * len(cells)).quantize(Decimal(1), ROUND_HALF_UP))
    found = keepers_found([(sign * value, keeps) for value, _, keeps in cells], kept)
    return Benched(name, rubric, by, len(cells), keepers, area, end, lead, kept, found)


def _end(area: Figure) -> End:
    return "lowest" if area.value is not None and area.value < 0.5 else "highest"


def keepers_found(cells: Sequence[tuple[float, bool]], kept: int) -> float | None:
    """Of the rows that the reference keeps, the share among the `kept` highest; ties at the cut count in proportion."""
    keepers = sum(keeps for _, keeps in cells)
    if not keepers:
        return None
    left, found = float(kept), 0.0
    for _, group in groupby(sorted(cells, key=lambda cell: -cell[0]), key=lambda cell: cell[0]):
        tied = list(group)
        taken = min(1.0, left / len(tied))
        found += taken * sum(keeps for _, keeps in tied)
        left -= taken * len(tied)
        if left <= 0:
            break
    return found / keepers


# -- all of them --------------------------------------------------------------------------------------------------


def _judged(found: Sequence[Benched]) -> list[Benched]:
    """The scores with `beats_length`: the lead's interval is widened for the number of leads (Bonferroni)."""
    leads = [one for one in found[1:] if one.lead.low is not None]
    widened = NormalDist().inv_cdf(1 - 0.025 / max(1, len(leads))) / Z95
    judged = []
    for one in found:
        value, low = one.lead.value, one.lead.low
        enough = min(one.keepers, one.rows - one.keepers) >= LEAST_OF_A_KIND
        beats = value is not None and low is not None and enough and value - (value - low) * widened > 0
        judged.append(replace(one, beats_length=beats and one is not found[0]))
    return judged


def _messages(scores: Sequence[Benched], keepers: int, total: int) -> list[str]:
    others = len(scores) - 1
    if min(keepers, total - keepers) < LEAST_OF_A_KIND:
        return [
            f"the reference keeps {keepers:,} of {total:,} rows: with fewer than {LEAST_OF_A_KIND} of a kind nothing "
            "can be said of an order"
        ]
    better = [one.title for one in scores if one.beats_length]
    if not better:
        return [
            f"none of the {others} other scores is shown to order the rows better than output length, each taken from "
            "its better end"
        ]
    return [
        f"better than output length, with an interval that allows for {others} comparisons: {', '.join(better)}",
    ]
