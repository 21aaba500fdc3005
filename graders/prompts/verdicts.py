"""Sentences that give a verdict: "I would give this a 4.5." Only those that say nothing else with it.

Knows one line in plain characters; every word of such a sentence is known here, so that a condition or a
denial is none.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache

from alpasift.graders.prompts.quotations import quoted_parts
from alpasift.graders.prompts.rubric import Rubric
from alpasift.graders.prompts.spelled import DIGITS, Statement, followed_by, value_pattern

_SENTENCE = re.compile(r"(?<=[.!?;|])\s{1,4}|(?<=\|)")
_FITTING = re.compile(r"\s(?:is|seems|feels|would be)\s(?:appropriate|fair|warranted|justified|reasonable|suitable)\b")
CONNECTING = re.compile(
    r"(?:(?:so|thus|hence|therefore|overall|finally|in conclusion|in summary|for (?:this|these) reasons?"
    r"|based on (?:the|this|these|my) [^,\d]{1,60}|given (?:this|these)[^,\d]{0,40}"
    r"|considering (?:this|these|everything|the above)[^,\d]{0,40}|in my (?:opinion|view)"
    r"|after (?:careful|reviewing|evaluating|considering|analyzing|reading)[^,\d]{0,60}),?\s)",
    re.I,
)
_CONNECTS = rf"{CONNECTING.pattern}?"
_WHAT = r"(?:the|this|that|it|its|response|answer|output|row|pair|to|of|for|as|at|with|by|a|an|score|rating|grade)"


@lru_cache(maxsize=256)
def _verdict_patterns(rubric: Rubric) -> tuple[re.Pattern[str], ...]:
    own = re.escape(rubric.dimension.casefold())
    what = rf"(?:(?:{_WHAT}|{own})\s){{0,10}}"
    value = rf"(?P<value>{value_pattern(rubric).pattern})"
    return (
        re.compile(
            rf"{_CONNECTS}(?:i|we)(?:['\u2019]d|['\u2019]ll|\swould|\swill)?\s"
            rf"(?:give|rate|score|grade|assign|award|say|go with|settle on|choose)\s{what}{value}",
            re.I,
        ),
        re.compile(
            rf"{_CONNECTS}(?:i\s(?:believe|think|feel)\s(?:that\s)?)?an?\s(?:{own}\s)?(?:score|rating)\sof\s{value}"
            rf"(?=(?:\s?/\s?{DIGITS})?{_FITTING.pattern})",
            re.I,
        ),
        re.compile(
            rf"{_CONNECTS}(?:the|this)\s(?:response|answer|output)\shas\san?\s{own}\s(?:score\s|rating\s)?of\s{value}",
            re.I,
        ),
        re.compile(
            rf"{_CONNECTS}my\s(?:overall\s|final\s)?(?:{own}\s)?(?:score|rating)\s(?:for this response\s)?"
            rf"would be\s(?:an?\s)?{value}",
            re.I,
        ),
        re.compile(
            rf"{_CONNECTS}(?:(?:the|this)\s(?:assistant's\s)?(?:response|answer|output)|it)\s"
            rf"(?:(?:deserves|gets|receives|earns|merits|warrants)|would\s(?:deserve|get|receive|earn|merit))\s"
            rf"(?:an?\s(?:{own}\s)?(?:score\sof\s|rating\sof\s)?|the\sscore\s){value}",
            re.I,
        ),
    )


def verdicts_of(text: str, rubric: Rubric) -> list[Statement]:
    """The sentences of a line that give a verdict and say nothing else with it."""
    found = list[Statement]()
    if rubric.labels:
        return found
    quoted = quoted_parts(text)
    starts = [0, *(found.end() for found in _SENTENCE.finditer(text))]
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        sentence = text[start:end].rstrip()
        if any(first <= start < last for first, last in quoted):
            continue
        for pattern in _verdict_patterns(rubric):
            match = pattern.match(sentence)
            if not match:
                continue
            after = _FITTING.sub("", sentence[match.end("value") :])
            stated = followed_by(match["value"], after, rubric, named=True)
            if stated and not re.search(r"\b(?:if|unless|were|had|but|except|without)\b", sentence, re.I):
                found.append(replace(stated, kind="verdict"))
    return found
