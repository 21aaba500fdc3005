"""From a reply to a score: the one parser, with a reason whenever there is no score.

Pure functions over text; knows nothing of backends, files or money. What cannot be read never becomes a number. The
cases it must get right are those of the reference implementation's bugs (gpt4life/alpagasus kept one character of
"Score:4.5", accepted inf and 45, and stored -1 for the rest); they are the table in tests/test_reading.py.

Reasons: empty, cut_off, refused, out_of_range, unreadable; and, given by whoever got no reply, too_long and
backend_error. Policy: a decimal comma is a decimal point ("4,5" is 4.5); a score off the rubric's step is out of
range, not rounded; two different scores are unreadable.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

from graders.rubric import Rubric, spell

READER = "1"
"""Version of this parser. Raise it when a reply would be read differently: stored replies are then read again."""

_NUMBER = r"[-+]?\d+(?:[.,]\d+)?"
_LABEL = r"(?:(?:the|my|overall|final|total)\s+)*(?:{dimension}|score|rating|grade|accuracy|helpfulness|quality)(?:\s+(?:score|rating|grade))?"
_REFUSAL = re.compile(
    r"\b(?:i(?:'|\u2019)?m sorry|i am sorry|i apologi[sz]e|as an ai|i (?:cannot|can(?:'|\u2019)?t|am unable|won(?:'|\u2019)?t))\b",
    re.I,
)
_STRUCTURED = re.compile(r'\{"score":\s?(-?\d+(?:\.\d+)?)\}')
_DECOR = " \t\r*_`#>\"'\u201c\u201d\u2018\u2019[]{}()"
_NONFINITE = re.compile(r"[-+]?(?:inf(?:inity)?|nan)", re.I)


@dataclass(frozen=True, slots=True)
class Reading:
    """A score on the rubric's step, or None with the reason. `explanation` is what stood beside the score.

    For a rubric that gives reasons, `reason` may accompany a score: it is then the grader's own. `expected` is the mean
    score under the probabilities that the model gave to the answers, where they are known.
    """

    score: Decimal | None
    reason: str | None
    explanation: str | None = None
    expected: float | None = None


LEAST_MASS = 0.5
"""An expected score needs at least this probability on the rubric's answers: below, the model is saying something else."""


def expected_score(logprobs: Mapping[str, float] | None, rubric: Rubric) -> float | None:
    """The mean score under the natural log-probabilities of the answers; None where they say too little.

    sum(p_i * score_i) / sum(p_i) over the rubric's answers. White space around an answer counts as that answer; one that
    is missing had too little probability to be told. G-Eval (Liu et al. 2023, arXiv 2303.16634), section 2.
    """
    if not logprobs:
        return None
    scores = dict(zip(rubric.answers, map(float, rubric.choices), strict=True))
    found = [(math.exp(value), scores[text.strip()]) for text, value in logprobs.items() if text.strip() in scores]
    mass = sum(p for p, _ in found)
    if not LEAST_MASS <= mass < 1.01:
        return None
    return sum(p * score for p, score in found) / mass


def read_score(text: str | None, rubric: Rubric, finish_reason: str | None = "stop") -> Reading:
    """Read the reply to a rubric's question.

    `finish_reason` is the backend's: after "length" a score counts only if its line was ended; "content_filter" is
    a refusal.
    """
    if finish_reason == "content_filter":
        return Reading(None, "refused", text)
    if text is None or not text.strip():
        return Reading(None, "cut_off" if finish_reason == "length" else "empty")
    stripped = text.strip()
    structured = _STRUCTURED.fullmatch(stripped)
    if structured and finish_reason != "length":  # what structured output gives
        return _on_scale(structured[1], None, rubric)
    if finish_reason != "length" and stripped in rubric.answers:  # what a constrained backend answers
        return Reading(_score_of(stripped, rubric), None)
    if stripped.startswith(("{", "```")):
        found = _from_json(stripped, rubric)
        if found is not None:
            return found
    lines = text.splitlines(keepends=True)
    if finish_reason == "length" and lines and not lines[-1].endswith(("\n", "\r")):
        cut, lines = lines[-1], lines[:-1]  # an unfinished line: "4" may have become "4.5"
    else:
        cut = ""
    reading = _from_lines([line.rstrip("\r\n") for line in lines], rubric)
    if reading.score is None and finish_reason == "length" and reading.reason == "unreadable":
        return Reading(None, "cut_off", stripped)
    if cut and reading.explanation is not None:
        reading = Reading(reading.score, reading.reason, (reading.explanation + "\n" + cut).strip())
    return reading


def _score_of(answer: str, rubric: Rubric) -> Decimal:
    return Decimal(rubric.choices[rubric.answers.index(answer)])


def _from_labels(lines: list[str], filled: list[int], rubric: Rubric) -> Reading:
    """The score of a line that holds one of the rubric's labels: the first filled line, or the last."""
    at = filled[0]
    head = rf"(?i:{_LABEL.format(dimension=re.escape(rubric.dimension))}\s*[:=]?\s*)?"
    names = "|".join(re.escape(label) for label in rubric.labels)
    plain = lines[at].strip(_DECOR)
    match = re.fullmatch(
        rf"{head}[\s\"'(\[*_`]*(?P<label>{names})[\s.!)\]\"'*_`]*(?:[:;\u2013\u2014-]\s*(?P<rest>.*))?", plain, re.S
    )
    whole = "\n".join(lines).strip()
    if not match:
        return Reading(None, "refused" if _REFUSAL.search(lines[at]) else "unreadable", whole)
    others = [match["rest"] or "", *(line for i, line in enumerate(lines) if i != at)]
    return Reading(_score_of(match["label"], rubric), None, "\n".join(p for p in others if p).strip() or None)


def _from_lines(lines: list[str], rubric: Rubric) -> Reading:
    order = list(range(len(lines))) if rubric.score == "first" else list(reversed(range(len(lines))))
    filled = [i for i in order if lines[i].strip(_DECOR)]
    if not filled:
        return Reading(None, "unreadable", "\n".join(lines).strip() or None)
    if rubric.labels:
        return _from_labels(lines, filled, rubric)
    at = filled[0]
    if rubric.score == "first" and len(filled) > 1 and _label_only(lines[at], rubric):
        lines = [
            *lines[:at],
            lines[at].rstrip() + " " + lines[filled[1]].strip(),
            *[""] * (filled[1] - at),
            *lines[filled[1] + 1 :],
        ]
    verdict, rest = _score_line(lines[at], rubric)
    if verdict is None:
        labelled = {
            (v, at_) for at_ in filled for v, _ in [_score_line(lines[at_], rubric, labelled=True)] if v is not None
        }
        values = {v for v, _ in labelled}
        if len(values) != 1:
            joined = "\n".join(lines).strip()
            refused = not values and _REFUSAL.search(lines[filled[0]] if rubric.score == "first" else joined)
            return Reading(None, "refused" if refused else "unreadable", joined)
        verdict, at = min(labelled, key=lambda pair: pair[1])
        rest = ""
    others = [line for i, line in enumerate(lines) if i != at]
    explanation = "\n".join(part for part in [rest, *others] if part).strip() or None
    return _on_scale(verdict, explanation, rubric)


def _label_only(line: str, rubric: Rubric) -> bool:
    label = _LABEL.format(dimension=re.escape(rubric.dimension))
    return re.fullmatch(rf"{label}\s*[:=]?", line.strip(_DECOR), re.I) is not None


def _score_line(line: str, rubric: Rubric, labelled: bool = False) -> tuple[str | None, str]:
    """The number of a line that is a score line, and what follows it; (None, "") for any other line."""
    plain = re.sub(r"[*_`]+", "", line).strip(_DECOR)
    label = _LABEL.format(dimension=re.escape(rubric.dimension))
    head = rf"{label}\s*(?:(?:is|of)\s+|[:=]\s*|-\s+)"
    head = rf"(?:{head})" if labelled else rf"(?:{head})?"
    match = re.match(rf"{head}[\s\"'(\[]*(?P<number>{_NUMBER}|{_NONFINITE.pattern})", plain, re.I)
    if not match:
        return None, ""
    rest = plain[match.end() :]
    of = re.match(rf"\s*(?:/|out\s+of)\s*({_NUMBER})", rest)
    if of:
        if Decimal(of[1].replace(",", ".")) != rubric.high:
            return None, ""
        rest = rest[of.end() :]
    rest = re.sub(r"^\s*(?:points?|stars?)\b", "", rest, flags=re.I)
    if re.fullmatch(r"[\s.!)\]\"']*", rest):
        return match["number"], ""
    tail = re.match(r"[)\]\"']*\s*(?:[:;\u2013\u2014]|[-.,!]\s|\s-\s|\()\s*(?=\D)(.*)", rest, re.S)
    if not tail or re.match(rf"\s*(?:(?:or|to|and|-)\s*)?{_NUMBER}\b", tail[1]):
        return None, ""
    return match["number"], tail[1].strip()


@lru_cache(maxsize=4096)
def _on_scale(number: str, explanation: str | None, rubric: Rubric) -> Reading:
    if _NONFINITE.fullmatch(number):
        return Reading(None, "out_of_range", explanation)
    score = Decimal(number.replace(",", ".")) if len(number) <= 12 else Decimal("NaN")
    if not score.is_finite() or score != round(score, 3):  # no rubric has so fine a step
        return Reading(None, "out_of_range", explanation)
    score = round(score, 3)
    if not rubric.low <= score <= rubric.high or (score - rubric.low) % rubric.step != 0:
        said = (
            f"answered {spell(score)}; the scale is {spell(rubric.low)} to {spell(rubric.high)} by {spell(rubric.step)}"
        )
        return Reading(None, "out_of_range", f"{said}\n{explanation}" if explanation else said)
    reason = None
    if rubric.gives_reason and explanation:
        named = re.match(r"([a-z_]+)(?::|$)", explanation)
        reason = named[1] if named else None
    return Reading(score, reason, explanation)


def _from_json(text: str, rubric: Rubric) -> Reading | None:
    """The reading of a JSON object with a key "score", None when the text is no such object."""
    body = re.sub(r"^```(?:json)?\s*|\s*```$", "", text)
    try:
        value = json.loads(body, parse_float=str, parse_int=str, parse_constant=str)
    except ValueError:
        return None
    if not isinstance(value, dict) or "score" not in value:
        return None
    number = value["score"].strip() if isinstance(value["score"], str) else ""
    if rubric.labels and number in rubric.labels:
        number = spell(_score_of(number, rubric))
    explanation = value.get("explanation", value.get("reason"))
    explanation = explanation if isinstance(explanation, str) else None
    if not re.fullmatch(rf"{_NUMBER}|{_NONFINITE.pattern}", number, re.I):
        return Reading(None, "unreadable", text)
    return _on_scale(number, explanation, rubric)
