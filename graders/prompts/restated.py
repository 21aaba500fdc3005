"""A number that a reply gives once more in a few words: "Actually 3.", "Edit: 3", "=> 3/5", "So 3 is fairer."

Knows one line in plain characters. Such a number is never the score by itself: it may belong to the row. Where it
differs from the score that stands before it, nobody can tell which of the two is meant.
"""

from __future__ import annotations

import re
from functools import lru_cache

from alpasift.graders.prompts.rubric import Rubric
from alpasift.graders.prompts.spelled import DIGITS, value_pattern

LOOKED_AT = 2000
_WORDS = (
    "a|an|the|so|thus|therefore|hence|actually|sorry|apologies|oops|hmm|hm|uh|no|nope|wait|well|ok|okay|then|now|rather|final"
    "|finally|verdict|marks?|stars?|answer|edit|edited|update|updated|correction|corrected|later|revised|new|make|that|it"
    "|i|we|meant|mean|go|with|call|say|let's|let me|strictly|speaking|honestly|overall|my|score|rating|grade|is"
    "|to|just|only|on|second|third|thoughts?|reflection|conclusion|in|closer|better|fairer|more like|but|also|ps"
)
_ITEM = re.compile(r"\(?\d{1,3}[.)]")
"""The number of a list's item."""
_SENTENCE = re.compile(r"(?<=[.!?;])\s+")


@lru_cache(maxsize=256)
def _pattern(rubric: Rubric) -> re.Pattern[str]:
    return re.compile(
        rf"(?:(?:{_WORDS})\b[\s,:;.=>-]{{0,6}}){{0,8}}(?:[-=]>\s{{0,3}}|=\s)?(?P<value>{value_pattern(rubric).pattern})"
        rf"(?:\s?(?:/|of|out of)\s?{DIGITS})?(?:\s(?:points?|stars?))?"
        r"(?:\s(?:it is|is|seems|would be|feels)(?:\s\w+){0,2}|\s(?:instead|then|after all|now))?[\s.!)]*",
        re.I,
    )


def restated(text: str, rubric: Rubric) -> list[str]:
    """The values that sentences of this line give alone, as they are spelled."""
    if rubric.labels:
        return []
    sentences = _SENTENCE.split(text[:LOOKED_AT])
    if len(sentences) > 1 and _ITEM.fullmatch(sentences[0]):
        sentences = sentences[1:]
    found = (_pattern(rubric).fullmatch(sentence) for sentence in sentences)
    return [match["value"] for match in found if match]
