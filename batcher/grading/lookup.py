"""Which grading is meant: one grader by one rubric, found by the names a person gives.

Knows names, versions and the graders that have answered; reads no grade except in `scores_of`. Start with
`find_grading`; a command that fits more than one, or none, gets the options to choose from.

Names are taken as they are typed and as they are shown: openai_batch:MODEL is openai:MODEL, the path of a model file or
of a rubric stands for what was graded by it.

    NAME      the newest version of that name, those hidden left out, that has graded the dataset version
    NAME@2    its second version, NAME@1 its first
    an id     that very grader or rubric: what a program gives, since the label of a first version is NAME too
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Any, Literal

from alpasift.batcher.data.versions import resolve
from alpasift.batcher.store import Store, hash_id
from alpasift.graders import AlpaSiftError, did_you_mean, name_of
from alpasift.graders.prompts.rubric import MEASURED, Rubric, load_rubric

By = Literal["score", "expected_score"]
"""Which figure of a grade counts: its score, or the mean score under the model's own probabilities."""
STORED_BY: Mapping[By, str] = {"score": "score", "expected_score": "expected"}
"""How `calibrations.scored` and the manifests of selections spell it."""
Row = Mapping[str, Any]


class GradingError(AlpaSiftError):
    """No grading fits the names given, or more than one; the message says what there is to choose from."""


class NotGraded(GradingError):
    """No grader has graded the dataset version."""


@dataclass(frozen=True, slots=True)
class Grading:
    """A grader by a rubric: whose grades are meant, the scale they are on, and from which score a row is kept.

    grader, rubric   labels: NAME for a first version, NAME@2 from then on
    threshold        the rubric's own, unless another was asked for
    """

    grader_id: str
    rubric_id: str
    grader: str
    rubric: str
    rubric_name: str
    low: Decimal
    high: Decimal
    step: Decimal
    threshold: Decimal
    fingerprint: str = "{}"
    rubric_sha256: str = ""

    @property
    def measured(self) -> bool:
        """Whether its scores are measured numbers: kept by their order, since no threshold means anything."""
        return self.rubric_name in MEASURED

    @property
    def below(self) -> Decimal | None:
        """The figure from which its rows are left out, None where there is none: 1 for an IFD."""
        return MEASURED.get(self.rubric_name)

    def same_scale(self, other: Grading) -> bool:
        return (self.low, self.high) == (other.low, other.high)

    @property
    def scale(self) -> str:
        low, high, step = (format(number.normalize(), "f") for number in (self.low, self.high, self.step))
        return f"{low} to {high} by {step}"


@dataclass(frozen=True, slots=True)
class Scores:
    """How a grading has turned out for one dataset version: rows with a reply, and those of them with a score.

    observed_step   the widest step on which all scores lie; None below two distinct scores
    highest         the highest score; None without one
    """

    graded: int
    scored: int
    observed_step: Decimal | None
    highest: Decimal | None

    def lowest_kept(self, grading: Grading, threshold: Decimal) -> Decimal:
        """The lowest score on the observed score step that reaches a threshold: 5 for 4.5 and whole numbers."""
        step = self.observed_step or grading.step
        steps = ((threshold - grading.low) / step).to_integral_value(ROUND_CEILING)
        return grading.low + step * steps


def find_grading(
    store: Store,
    version_id: str,
    grader: str | None = None,
    rubric: str | None = None,
    *,
    threshold: Decimal | None = None,
    options: tuple[str, str] = ("--grader", "--rubric"),
) -> Grading:
    """The one grading of a dataset version that has these names, the only one where none is given. Raises GradingError.

    `options` are those by which the command at hand takes grader and rubric ("" for an argument), for the message.
    """
    found = store.query("gradings_of", version_id=version_id)
    if not found:
        raise NotGraded("this dataset has no grades; run `alpasift grade`, or import grades with `alpasift labels`")
    found = found if rubric is not None else [row for row in found if not row["hidden"]] or found
    left = _named(_named(found, "grader", grader), "rubric", rubric)
    if len(left) == 1:
        return _grading(left[0], threshold)
    choices = _choices(store, version_id, left or found, found, options)
    if left:
        raise GradingError(f"{len(left)} gradings of this dataset match; choose one: {choices}")
    given = " ".join(f"{option} {name}" for option, name in zip(options, (grader, rubric), strict=True) if name)
    then = f"these have: {choices}"
    unknown = [p for p, name in (("grader", grader), ("rubric", rubric)) if name and not _named(found, p, name)]
    wrong = {"grader": grader, "rubric": rubric}.get(unknown[0]) if unknown else None
    meant = did_you_mean(wrong, sorted({row[f"{unknown[0]}_name"] for row in found}), then) if wrong else f"; {then}"
    raise GradingError(f"{given.strip()} has not graded this dataset{meant}")


def grading_by(
    grader_id: str, rubric_id: str, grader: str, rubric: Rubric, threshold: Decimal | None = None
) -> Grading:
    """The grading that a grader will make by a rubric, before it has graded anything."""
    return Grading(
        grader_id=grader_id,
        rubric_id=rubric_id,
        grader=grader,
        rubric=rubric.name,
        rubric_name=rubric.name,
        low=rubric.low,
        high=rubric.high,
        step=rubric.step,
        threshold=rubric.threshold if threshold is None else threshold,
    )


def no_expected_scores(grading: Grading, scored: int) -> str:
    """What to say, and what to do, where none of the rows that a grader has scored has an expected score."""
    if grading.grader.startswith("labels:") or grading.grader == "rules":
        then = "it never has any"
    else:
        again = (
            f"alpasift grade --grader {grading.grader} --rubric {grading.rubric_name} --answer-format expected_score"
        )
        then = f"`{again}` makes them"
    return (
        f"--by expected_score: none of the {scored:,} rows that {grading.grader} has scored has an expected score; "
        f"{then}, and without --by its scores are taken"
    )


def scores_of(store: Store, version_id: str, grading: Grading) -> Scores:
    """How a grading has turned out for a dataset version. Reads all its grades."""
    for row in store.query("graders_of", version_id=version_id):
        if (str(row["grader_id"]), str(row["rubric_id"])) == (grading.grader_id, grading.rubric_id):
            return Scores(row["graded"], row["scored"], row["observed_step"], row["highest"])
    return Scores(0, 0, None, None)


def label_of(store: Store, kind: Literal["grader", "rubric"], name: str) -> str:
    """The label of the grader or rubric of that name, whatever it has graded. Raises GradingError."""
    known = [row for row in store.query("labels") if row["kind"] == kind]
    listed = [row for row in known if row["listed"]]
    for spelled in spellings(kind, name):
        plain, version = split_label(spelled)
        found = (
            [row for row in known if row["id"] == spelled]
            or [row for row in listed if row["name"] == spelled]
            or [row for row in known if row["name"] == spelled]
            or [row for row in known if row["name"] == plain and row["version"] == version]
        )
        if found:
            return str(max(found, key=lambda row: row["version"])["label"])
    labels = ", ".join(row["label"] for row in listed) or "none yet"
    meant = did_you_mean(name, [row["name"] for row in listed], f"there are: {labels}")
    raise GradingError(f"no {kind} named {name!r} has grades here{meant}")


def spellings(part: Literal["grader", "rubric"], name: str) -> list[str]:
    """A name as it was given, then the names and ids that it may stand for.

    openai_batch:MODEL@2 -> openai:MODEL@2; models/a.gguf -> a.gguf; the path of a rubric -> the id of what is in it.
    Raises RubricError for the path of a file that is no rubric.
    """
    if part == "rubric":
        if name.endswith(".toml"):
            return [name, hash_id("rubric", load_rubric(name).digest())]
        return [name]
    plain, version = split_label(name)
    shown = name_of(plain) + (f"@{version}" if version else "")
    return list(dict.fromkeys([name, name_of(name), shown]))


def labels_named(store: Store, dataset: str | None, grader: str | None, rubric: str | None) -> dict[str, str | None]:
    """The labels of the dataset, grader and rubric that a person named, None for all; what the queries of scores take.

    NAME is its newest version everywhere, NAME@1 the first. Raises DatasetError and GradingError.
    """
    return {
        "dataset": None if dataset is None else resolve(store, dataset).label,
        "grader": None if grader is None else label_of(store, "grader", grader),
        "rubric": None if rubric is None else label_of(store, "rubric", rubric),
    }


def split_label(label: str) -> tuple[str, int | None]:
    """NAME@2 -> ("NAME", 2); without a number -> (label, None)."""
    match = re.fullmatch(r"(.+)@([1-9]\d{0,8})", label, re.DOTALL)
    return (match[1], int(match[2])) if match else (label, None)


def _grading(row: Row, threshold: Decimal | None) -> Grading:
    content = json.dumps(json.loads(row["rubric_content"]), sort_keys=True)
    return Grading(
        grader_id=row["grader_id"],
        rubric_id=row["rubric_id"],
        grader=row["grader"],
        rubric=row["rubric"],
        rubric_name=row["rubric_name"],
        low=row["low"],
        high=row["high"],
        step=row["step"],
        threshold=row["threshold"] if threshold is None else threshold,
        fingerprint=row["fingerprint"],
        rubric_sha256=hashlib.sha256(content.encode()).hexdigest(),
    )


def _named(found: Sequence[Row], part: str, wanted: str | None) -> Sequence[Row]:
    """The gradings whose grader or rubric has that id, else that name in its newest version, else that label."""
    if wanted is None:
        return found
    spelled = spellings("rubric" if part == "rubric" else "grader", wanted)
    named = next((those for name in spelled if (those := _called(found, part, name))), [])
    if named and part == "grader" and "/" in wanted and split_label(wanted)[1] is None:
        # a file of that name in any folder: where there were several, the path does not say which
        return [row for row in found if row["grader_name"] == named[0]["grader_name"]]
    return named


def _called(found: Sequence[Row], part: str, wanted: str) -> Sequence[Row]:
    if of_id := [row for row in found if row[f"{part}_id"] == wanted]:
        return of_id
    if of_name := [row for row in found if row[f"{part}_name"] == wanted]:
        of_name = [row for row in of_name if part == "grader" or not row["hidden"]] or of_name
        newest = max(row[f"{part}_version"] for row in of_name)
        return [row for row in of_name if row[f"{part}_version"] == newest]
    name, version = split_label(wanted)
    return [row for row in found if row[f"{part}_name"] == name and row[f"{part}_version"] == version]


def _choices(store: Store, version_id: str, some: Sequence[Row], found: Sequence[Row], options: tuple[str, str]) -> str:
    """The options that name each grading and no other, with how many rows it has scored, most first."""
    scored = {
        (str(row["grader_id"]), str(row["rubric_id"])): row["scored"]
        for row in store.query("graders_of", version_id=version_id)
    }

    def spelled(row: Row, part: str, option: str) -> str:
        versions = {r[f"{part}_version"] for r in found if r[f"{part}_name"] == row[f"{part}_name"]}
        name = row[part] if len(versions) == 1 else f"{row[f'{part}_name']}@{row[f'{part}_version']}"
        return f"{option} {name}".strip()

    counted = [(scored.get((row["grader_id"], row["rubric_id"]), 0), row) for row in some]
    return "; ".join(
        f"{spelled(row, 'grader', options[0])} {spelled(row, 'rubric', options[1])} ({rows} rows with a score)"
        for rows, row in sorted(counted, key=lambda pair: -pair[0])
    )
