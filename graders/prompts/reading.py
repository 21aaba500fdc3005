"""From a reply to a score: the one parser, with a reason whenever there is no score.

Pure functions over text; knows nothing of backends, files or money. What cannot be read never becomes a number, and a
wrong number is worse than none. A reply is read in steps, each a module:

    thinking        what the model thought, and its markers of turns, are left out
    structured      objects and tags become lines: {"score": 4} and <score>4</score> are "score: 4"
    plain_text      digits and marks of every script become ASCII
    quotations      what the reply repeats of the row is left out
    restated        numbers given once more in a few words ("Actually 3."), which leave the score open
    statements      what each line states: a named score, a number alone, a sentence with a verdict (with score_names,
                    spelled and verdicts)

and here it is decided which statement counts, if any. tests/data/replies.jsonl holds replies with their right scores.

Reasons: empty, cut_off, refused, out_of_range, unreadable; and, given by whoever got no reply, too_long and
backend_error. Policy: a named score ("Score: 4") goes before a number of a list or a sentence; a number alone counts
only where the rubric has its answer, on the first line or the last; two different scores, a range or another scale are
unreadable; a decimal comma is a decimal point ("4,5" is 4.5); a score off the rubric's step is out of range, not
rounded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

from alpasift.graders.prompts.plain_text import is_blank, plain_line
from alpasift.graders.prompts.quotations import quoted_lines
from alpasift.graders.prompts.restated import restated
from alpasift.graders.prompts.rubric import Rubric, spell
from alpasift.graders.prompts.spelled import AMBIGUOUS, Statement, number_of, value_pattern
from alpasift.graders.prompts.statements import Line, read_line
from alpasift.graders.prompts.structured import as_lines
from alpasift.graders.prompts.thinking import answer_of

READER = "4"
"""Version of this parser. Raise it when a reply would be read differently: stored replies are then read again."""

LONGEST = 40_000
"""Characters of an answer; thoughts before it may be longer. No answer to a rubric is as long."""
_REFUSAL = re.compile(
    r"\b(?:i(?:'|\u2019)?m sorry|i am sorry|i apologi[sz]e|as an ai"
    r"|i (?:cannot|can(?:'|\u2019)?t|am unable|won(?:'|\u2019)?t))\b",
    re.I,
)
_STRUCTURED = re.compile(r'\{"score":\s?(-?\d{1,12}(?:\.\d{1,30})?)\}')
_FENCE = re.compile(r"\s*(?:```|~~~)\s*[\w+-]{0,20}\s*")
_TAKES_BACK = re.compile(
    r"\b(?:on (?:further )?reflection|on second thoughts?|revis(?:e|ed|ing)|reconsider\w*|scratch that|correction:"
    r"|(?:i|let me) (?:change|correct|lower|raise|adjust) (?:it|that|this|my|the)"
    r"|(?:lower|raise|change|adjust)(?:ed|ing)? (?:it|the score|my score|this) to)\b",
    re.I,
)
_WITHDRAWS = re.compile(
    r"\b(?:oops|i (?:meant|misread|misjudged)|i take (?:that|it) back|no,? wait|wait,? no|my (?:mistake|apologies)"
    r"|let me (?:double[- ]check|correct)|(?:this|that) should rather be)\b",
    re.I,
)
_NUMBERS = ("zero", "one", "two", "three", "four", "five")
_WORD_AT_END = re.compile(rf"\b({'|'.join(_NUMBERS)})[.!]?$", re.I)
_IS_RATHER = re.compile(
    r"\b(?:score|rating|grade)\s(?:should|must|ought to)\s(?:then |rather |instead |really )?be\b", re.I
)
_CONDITION = re.compile(r"\b(?:if|unless|were|had|without|otherwise|except)\b", re.I)
_ENDS = (".", "!", "?", "\u2026", ")", "]", '"', "\u201d", "'")
_ITEM = re.compile(r"[-+\u2022]\s")
_OBJECTS = re.compile(r"\b(?:but|however|still|yet|though|actually)\b", re.I)


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
"""An expected score needs at least this probability on the rubric's answers: below, the model says something else."""


def expected_score(logprobs: Mapping[str, float] | None, rubric: Rubric) -> float | None:
    """The mean score under the natural log-probabilities of the answers; None where they say too little.

    sum(p_i * score_i) / sum(p_i) over the rubric's answers. White space around an answer counts as that answer; one
    that is missing had too little probability to be reported. G-Eval (Liu et al. 2023, arXiv 2303.16634), section 2.
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

    `finish_reason` is the backend's: after "length" a score counts only if its line was ended, and only where nothing
    could come that changes it; "content_filter" is a refusal.
    """
    cut = finish_reason == "length"
    if finish_reason == "content_filter":
        return Reading(None, "refused", text)
    if text is None or is_blank(text):
        return Reading(None, "cut_off" if cut else "empty")
    stripped = text.strip()
    structured = _STRUCTURED.fullmatch(stripped)
    if structured and not cut:  # what structured output gives
        return _on_scale(structured[1], None, rubric)
    if stripped in rubric.answers and not cut:  # what a constrained backend answers
        return Reading(_score_of(stripped, rubric), None)
    answer = answer_of(text)
    if answer.thinking:
        return Reading(None, "cut_off", stripped)
    if is_blank(answer.text) and not answer.beside:
        return Reading(None, "cut_off" if cut else "empty", stripped)
    if len(answer.text) > LONGEST:
        return Reading(None, "cut_off" if cut else "unreadable", stripped)
    in_lines, why = as_lines(answer.text, rubric.dimension, cut)
    reply = _Reply(in_lines, "\n".join(part for part in (why, answer.beside) if part), rubric, cut)
    found = reply.score()
    if isinstance(found, Statement):
        return _spelled(found, reply.explanation(found), rubric)
    return Reading(None, "cut_off" if cut else found, stripped)


class _Reply:
    """The lines of an answer, what each of them states, and which statement counts."""

    def __init__(self, text: str, beside: str, rubric: Rubric, cut: bool) -> None:
        self.rubric, self.cut, self.beside = rubric, cut, beside
        ended = text.splitlines(keepends=True)
        self.unfinished = ""
        if cut and ended and not ended[-1].endswith(("\n", "\r")):
            self.unfinished = ended.pop()  # "4" may have become "4.5"
        self.raw = ["" if _FENCE.fullmatch(line) else line.rstrip("\r\n") for line in ended]
        self.plain = [plain_line(line) for line in self.raw]
        self.filled = [i for i, line in enumerate(self.plain) if line.strip("#-=~.: ")]
        self.quoted = quoted_lines(ended, self.plain, self.filled)
        self.ends_quoted = bool(self.filled) and self.filled[-1] in self.quoted
        self.filled = [i for i in self.filled if i not in self.quoted]
        self.lines = {i: read_line(self.plain[i], rubric) for i in self.filled}
        self.joined = set[int]()
        self._join_announced()

    def _join_announced(self) -> None:
        """A line that names the score and ends goes together with the next one: "Score:" and "4.5"."""
        for at, after in zip(self.filled[:], self.filled[1:], strict=False):
            bare = self.lines[after].bare
            if self.lines[at].announces == "name" and bare is not None:
                joined = read_line(f"{self.plain[at].rstrip(':= ')}: {self.plain[after]}", self.rubric)
                if joined.named:
                    self.lines[after] = joined
                    self.lines[at] = Line()
                    self.joined.add(at)

    # -- which statement counts ---------------------------------------------------------------------------------

    def score(self) -> Statement | str:
        """The statement that counts, or the reason why there is none."""
        if any(line.other_scale for line in self.lines.values()):
            return "unreadable"
        named = self._named()
        if named == AMBIGUOUS:
            return "unreadable"
        place = self._place()
        if place is not None and self.rubric.score == "last" and not self._ends_with_number(place):
            place = self._first_alone() if not self.cut else None
        bare = self.lines[place].bare if place is not None else None
        verdicts = [one for line in self.lines.values() for one in line.verdicts]
        found: Statement | None = None
        if isinstance(named, Statement):
            found = named
            if self.cut and not self._may_end_here(named):
                return "cut_off"
        elif bare is not None and place is not None and not self._continues_list(place):
            found = bare
            if self.cut and self.rubric.score == "last":
                return "cut_off"
        elif verdicts and not self.cut:
            found = verdicts[0]
        if found is None:
            return self._refused_or_unreadable()
        others = [*verdicts, *([bare] if bare is not None and bare.alone else [])]
        if found.kind == "bare":
            others += self._other_numbers(place)
        if found.value == AMBIGUOUS or any(self._differ(found, other) for other in others):
            return "unreadable"
        return "unreadable" if self._taken_back(found) else found

    def _named(self) -> Statement | str | None:
        """The named score; AMBIGUOUS where there are two, or one says two things; None where there is none.

        A name of the dimension goes before a total of several; a total goes before the parts that a list names.
        """
        found = [
            one
            for i in self.filled
            for one in self.lines[i].named
            if one.name != "vague" or (self._says_enough(i) and not self._answered_before(one, i))
        ]
        totals = [one for one in found if one.name == "total" and not one.listed]
        owns = [one for one in found if one.name == "own"]
        place = self._place()
        here = self.lines[place].named if place is not None else ()
        if self.rubric.score == "last" and here and any(not one.listed for one in here):
            found = [one for one in found if one in here or not (one.listed and one.name == "general")]
        if totals:
            found = [one for one in found if not (one.listed and one.name == "general")]
        if owns and self.rubric.dimension != "quality":
            found = [one for one in found if one.name != "total"]
        if not found:
            return None
        if any(one.value == AMBIGUOUS for one in found) or any(self._differ(found[0], one) for one in found):
            return AMBIGUOUS
        return found[0]

    def _says_enough(self, at: int) -> bool:
        """Whether "Answer: 4" or "Total: 4" is about the score: alone, or where the rubric has its last line."""
        return len(self.filled) == 1 or (self.rubric.score == "last" and at == self.filled[-1] and not self.cut)

    def _answered_before(self, one: Statement, at: int) -> bool:
        """Whether an earlier line gives the same number as an answer or result, so that it is the row's: "it is 4"."""
        stated = re.compile(
            rf"\b(?:answer|result|solution|value|sum|total)\b[^.!?]{{0,60}}\b(?:is|was|be|of)\s{re.escape(one.value)}(?![\d.,]\d|\d)",
            re.I,
        )
        return any(stated.search(self.plain[i]) for i in self.filled if i < at)

    def _place(self) -> int | None:
        """The line where the rubric has its answer: the first one or the last one that says anything."""
        if not self.filled:
            return None
        if self.rubric.score == "last":
            return self.filled[-1]
        first = self.filled[0]
        announced = self.lines[first].announces == "sentence" or first in self.joined
        return self.filled[1] if announced and len(self.filled) > 1 else first

    def _may_end_here(self, found: Statement) -> bool:
        """Whether nothing that was cut off could have changed the score."""
        goes_on = self.unfinished.strip() or self.ends_quoted
        early = self.filled[:2] if self.rubric.score == "first" else [] if goes_on else self.filled[-1:]
        return any(one == found for i in early for one in self.lines[i].named)

    def _ends_with_number(self, last: int) -> bool:
        """Whether the last line may be a number alone: what stands before it has come to an end."""
        if self.lines[last].bare is None:
            return False
        if len(self.filled) == 1:
            return True
        before = self.plain[self.filled[-2]]
        return before.endswith(_ENDS) or bool(_ITEM.match(before)) or self.lines[self.filled[-2]].announces != ""

    def _first_alone(self) -> int | None:
        """The first line, where the score is a number alone and stands there although the rubric wants it last."""
        bare = self.lines[self.filled[0]].bare
        return self.filled[0] if bare is not None and bare.alone and self.lines[self.filled[-1]].bare is None else None

    def _continues_list(self, at: int) -> bool:
        """Whether a number alone is an item of a numbered list that lost its text."""
        bare = self.lines[at].bare
        number = number_of(bare.value) if bare is not None and not self.rubric.labels else None
        items = {line.item for line in self.lines.values() if line.item is not None}
        return number is not None and (number - 1 in items or number + 1 in items)

    def _other_numbers(self, place: int | None) -> list[Statement]:
        """Numbers that stand alone on other lines, or beside a reason as the one that counts does."""
        return [line.bare for i, line in self.lines.items() if line.bare is not None and i != place]

    def _differ(self, one: Statement, other: Statement) -> bool:
        if self.rubric.labels or AMBIGUOUS in (one.value, other.value):
            return one.value != other.value
        return number_of(one.value) != number_of(other.value)

    def _taken_back(self, found: Statement) -> bool:
        """Whether a later sentence takes the score back and names another one, or gives another number alone."""
        after = False
        for i in self.filled:
            line = self.lines[i]
            here = found in line.named or found == line.bare or found in line.verdicts
            text = found.rest if here else self.plain[i]
            if here and found.kind == "verdict":
                text = self.plain[i]
            alone = line.bare if after and not here else None
            if alone is not None and alone.alone and self._differ(alone, found):
                return True
            if after and not here and any(self._is_another(value, found) for value in restated(text, self.rubric)):
                return True
            after = after or here
            if not after:
                continue
            withdrawn = _WITHDRAWS.search(text)
            if withdrawn and any(self._is_another(value, found) for value in self._values(text[withdrawn.end() :])):
                return True
            for sentence in re.split(r"(?<=[.!?;])\s+", text):
                taken = _TAKES_BACK.search(sentence)
                word = _WORD_AT_END.search(sentence) if taken else None
                if word and self._is_another(str(_NUMBERS.index(word[1].lower())), found):
                    return True
                words = taken or (found.kind == "verdict" and _OBJECTS.search(sentence))
                rather = _IS_RATHER.search(sentence) and not _CONDITION.search(sentence)
                if (words or rather) and any(self._is_another(value, found) for value in self._values(sentence)):
                    return True
        return False

    def _values(self, sentence: str) -> Iterable[str]:
        return [m[0] for m in re.finditer(rf"(?<![\w.,])(?:{value_pattern(self.rubric).pattern})", sentence)]

    def _is_another(self, value: str, found: Statement) -> bool:
        if self.rubric.labels:
            return value != found.value
        number = number_of(value)
        return number is not None and self.rubric.low <= number <= self.rubric.high and number != number_of(found.value)

    def _refused_or_unreadable(self) -> str:
        if not self.filled:
            return "empty" if not self.raw else "unreadable"
        looked_at = self.raw[self.filled[0]] if self.rubric.score == "first" else "\n".join(self.raw)
        return "refused" if _REFUSAL.search(looked_at) else "unreadable"

    # -- what stands beside it ----------------------------------------------------------------------------------

    def explanation(self, found: Statement) -> str | None:
        """What the reply says beside the score."""
        parts = [self.beside]
        stated = False
        for i, raw in enumerate(self.raw):
            line = self.lines.get(i)
            if line is not None and (found in line.named or (not stated and found in (line.bare, *line.verdicts))):
                parts.append(found.rest)
                stated = True
            elif i in self.lines or i in self.quoted or not raw.strip() or stated:
                parts.append(raw)
        return "\n".join(part for part in [*parts, self.unfinished] if part).strip() or None


def _score_of(answer: str, rubric: Rubric) -> Decimal:
    return Decimal(rubric.choices[rubric.answers.index(answer)])


def _spelled(found: Statement, explanation: str | None, rubric: Rubric) -> Reading:
    """The reading of a statement that counts."""
    if rubric.labels:
        return Reading(_score_of(found.value, rubric), None, explanation)
    return _on_scale(found.value, explanation, rubric)


@lru_cache(maxsize=4096)
def _on_scale(spelled: str, explanation: str | None, rubric: Rubric) -> Reading:
    score = number_of(spelled)
    if score is None or score != round(score, 3):  # no rubric has so fine a step
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
