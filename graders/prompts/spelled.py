"""One value of a score where it stands, and what follows it on its line.

Knows a number (or a label of the rubric) and the rest of its line; nothing of names or of other lines. A number is a
statement only if the rest says nothing else with it: no unit, count or range, no second number, no other scale.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Literal

from alpasift.graders.prompts.rubric import Rubric
from alpasift.graders.prompts.score_names import Name

MOST_LOOKED_AT = 1000
"""Characters after a number that are looked at for a second one."""
AMBIGUOUS = "?"
"""The value of a statement that names a score and leaves open which: a range, another scale, two numbers."""
NONFINITE = re.compile(r"[-+]?(?:inf(?:inity)?|nan)\b", re.I)
NUMBER = re.compile(
    r"[-+]?(?:(?!0\d)\d{1,12}(?:[.,]\d{1,30})?|\.\d{1,3})(?![\d]|[.,]\d|(?!\u5206|\u70b9|\u9ede|\uc810|\u3067|\uc785)[^\W\d_])",
    re.I,
)
DIGITS = r"\d{1,6}(?:[.,]\d{1,4})?"
"""A number of a scale."""
OPENING = "\"'([{\u201c\u2018\u00ab\u3010\u300c"
CLOSING = "\"')]}\u201d\u2019\u00bb\u3011\u300d"
_OUT_OF = re.compile(
    rf"\s{{0,3}}[(\[]?\s?(?:/|\(?(?:out of|max(?:imum|\.)?|von|sur|\u0438\u0437|\u6ee1\u5206|\u6eff\u5206)(?:\s?:)?)"
    rf"\s{{0,3}}(?:an?\s|the\s)?(?:possible\s|maximum\s|max\.?\s|total\s)?({DIGITS})(?![\w.,]*\d)",
    re.I,
)
_OF_WORDS = (
    "of|de|su|di|z|ze|av|af|van|op|na|dari|sobre|em|din|od|tr\u00ean|\u03c3\u03c4\u03b1"
    "|\u05de\u05ea\u05d5\u05da|\u0645\u0646|\u0627\u0632"
)
_OF = re.compile(rf"\s[(\[]?(?:{_OF_WORDS})\s({DIGITS})(?!\w)|\s[(\[](?:of)\s({DIGITS})", re.I)
_UNIT = re.compile(
    r"\s?(?:possible\s)?(?:points?|pts\.?|stars?|marks?|\u5206|\u70b9|\u9ede|\uc810|punkten?|punti|puntos?|pontos?|"
    r"\u00e9toiles?|sternen?|estrellas?|\u0431\u0430\u043b\u043b\w{0,3}|\u3067\u3059|\uc785\ub2c8\ub2e4)(?![^\W\d_])",
    re.I,
)
_END = re.compile(r"[\s.#!\u2026\"')\]}>\u201d\u2019\u00bb\u3011\u300d,|]*")
_ANOTHER = re.compile(
    rf"\s{{0,3}}(?:-|\u2013|\u2014|~|->|=>|/|\+|,|;|or|to|and|bis|oder|ou|\u5230|\u6216)?\s{{0,3}}[(\[]?\s?(?:or|perhaps)?\s?[-+]?{DIGITS}"
    r"(?![^\W\d_])|\s?[%\u2030?+]|\s?[(\[]\?|\s(?:percent|and a half)\b",
    re.I,
)
_HEDGE = (
    r"(?:(?:maybe|perhaps|possibly|probably|or|rather|no|not|even|almost|nearly|but|actually|then|so|well|hm+|wait|say"
    r"|later|now|edit(?:ed)?|updated?|correct(?:ed|ion)|finally|that is|i\.e\."
    r"|(?:changed|revised|lowered|raised|reduced)(?: to)?"
    r"|closer to|close to|leaning|i mean|make it|could be|should be|it is|it's|more like|than)[,:]?\s{1,3})"
)
_REASON = re.compile(r"\s?(?:[:;\u2013\u2014|]\s?|[,(]\s?|\s-\s|-\s)(?=[^\s\d])")
_BECAUSE = re.compile(r"\s{1,3}(?:because|since|due to|as (?:it|the|its|this)|given)\b", re.I)
_NEXT_SENTENCE = re.compile(r"[.!]\s{1,4}(?=[^\s\d])")
_NEW_SENTENCE = re.compile(
    r"\s{1,3}(?=(?:The|This|It|I|Explanation|Reason|Reasons|Reasoning|Because|While|Although)\b)"
)
_SUM = re.compile(r"(\d(?:\.\d)?(?:\s?\+\s?\d(?:\.\d)?){1,20})\s?=\s?(\d{1,3}(?:\.\d)?)(?:/\d{1,3})?[\s.]*$")
_PARTS = re.compile(r"\s?[(\[]\s?(\d(?:\s?[+,]\s?\d){1,10})\s?[)\]]")
"""The points that add up to a score, in parentheses after it."""
_TO_IT = re.compile(r"\s{1,3}(?:to|for)\s(?:this|the|that)\s(?:response|answer|output|row|pair)\b", re.I)
_OTHER_MOST = re.compile(
    r"\s{0,3}"
    r"(?:out of|(?:max(?:imum)?|highest|best|total|possible)(?:\s(?:score|points?|rating))?(?:\sof|\sis|\s?[:=])?"
    rf")\s?(?:an?\s)?(?:total\sof\s|possible\s)?({DIGITS})",
    re.I,
)
_DIMENSIONS = re.compile(
    r"\s*(?:for |on )?(accuracy|helpfulness|relevance|clarity|quality|style|completeness|correctness|coherence|depth"
    r"|safety|fluency|tone|grammar|conciseness|readability|spelling|format|formatting|structure|length|creativity"
    r"|originality|engagement|detail|thoroughness|harmlessness|honesty|politeness|consistency|usefulness"
    r"|instruction[- ]following)\b\s*(?:[),;.|]|$)",
    re.I,
)

_RANGE_BESIDE = re.compile(
    rf"\s{{0,3}}[(\[][^()\[\]\d]{{0,40}}({DIGITS})\s?(?:-|\u2013|\u2014|to|\.\.)\s?({DIGITS})\s?[)\]]",
    re.I,
)
"""A range in parentheses after a number: "4 (asteikolla 4-10)"."""
_PERCENT_BESIDE = re.compile(rf"\s{{0,3}}[(\[]\s?(?:=|i\.e\.|or|that is)?\s?({DIGITS})\s?(?:%|percent)\s?[)\]]", re.I)
"""The score once more as a share: "4 (80 %)"."""
_OTHER_KIND = re.compile(
    r"\b(?:schulnoten?|school grade|normali[sz]ed|rescaled|percent(?:age|ile)?|lower is better)\b", re.I
)
_IF_THAT = re.compile(r"\s{0,3}[,;(]?\s?(?:if (?:that|so|even that)|at (?:best|most|least)|tops)\b", re.I)
_COUNTS = re.compile(r"\s{0,3}[:(,\u2013\u2014-]\s?(?:the\s)?(?:number|count|amount) of\b", re.I)
_TAKES_OFF = re.compile(
    r"\s{0,3}[,;(\u2013\u2014-]?\s?(?:minus|less|but minus|reduced by)\s(?:an?|one|half|0?\.5|\d)\b", re.I
)
_DEDUCTS = re.compile(
    r"\b(?:i(?:['\u2019](?:ll|d|m))?\s(?:will\s|would\s|must\s|am\s)?)?(?:deduct|subtract|take off|knock off)(?:ing|s)?"
    r"\s(?:an?|one|half|0?\.5|\d)\b",
    re.I,
)
_IN_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

Kind = Literal["named", "bare", "verdict"]


@dataclass(frozen=True, slots=True)
class Statement:
    """A score that a line states.

    value   as it is spelled: a number, a label of the rubric, or AMBIGUOUS
    kind    named: beside a name of the score; bare: the number alone; verdict: a sentence ("I would give this a 4")
    name    what a named one is called
    rest    what follows it on the line: the reason
    alone   whether nothing follows
    listed  whether the line is an item of a list
    scaled  whether the rubric's scale is named with it: "4/5"
    """

    value: str
    kind: Kind
    name: Name | None = None
    rest: str = ""
    alone: bool = False
    listed: bool = False
    scaled: bool = False


@lru_cache(maxsize=256)
def value_pattern(rubric: Rubric) -> re.Pattern[str]:
    """A score as it may be spelled: a number, or one of the rubric's labels."""
    if not rubric.labels:
        return re.compile(rf"{NUMBER.pattern}|{NONFINITE.pattern}", re.I)
    names = "|".join(re.escape(label) for label in sorted(rubric.labels, key=len, reverse=True))
    return re.compile(rf"(?:{names})(?!\w|[.,]\d)")


def number_of(spelled: str) -> Decimal | None:
    """The number, None where it is none that a score can be: without end, or with a thousands separator."""
    if spelled == AMBIGUOUS or NONFINITE.fullmatch(spelled) or len(spelled) > 12 or re.search(r",\d{3}", spelled):
        return None
    return Decimal(spelled.replace(",", "."))


def sum_at(text: str, at: int) -> Statement | None:
    """A sum that is worked out, "1 + 1 + 0 = 2", if it is right."""
    found = _SUM.match(text, at)
    if not found:
        return None
    if _sum(found[1]) != Decimal(found[2]):
        return Statement(AMBIGUOUS, "named")
    return Statement(found[2], "named", alone=True)


def _sum(terms: str) -> Decimal:
    return sum((Decimal(part) for part in re.split(r"[+,]", terms)), Decimal(0))


def followed_by(spelled: str, tail: str, rubric: Rubric, *, named: bool) -> Statement | None:
    """The statement of a number, by what follows it on the line; None where the number is a part of something else."""
    kind: Kind = "named" if named else "bare"
    unsure = Statement(AMBIGUOUS, kind)
    tail = tail.lstrip(CLOSING)
    scaled = False
    unit = _UNIT.match(tail)
    if unit:
        tail = tail[unit.end() :]
    scale = _OUT_OF.match(tail) or (_OF.match(tail) if named or "(" in tail[:3] else None)
    if scale:
        most = next(group for group in scale.groups() if group)
        if rubric.labels or Decimal(most.replace(",", ".")) != rubric.high:
            return unsure
        scaled, tail = True, tail[scale.end() :]
        unit = _UNIT.match(tail)
        tail = tail[unit.end() :] if unit else tail
        tail = tail.lstrip(CLOSING)
    parts = _PARTS.match(tail)
    if parts and not rubric.labels and _sum(parts[1]) == number_of(spelled):
        tail = tail[parts.end() :]
    if not rubric.labels and _says_otherwise(spelled, tail, rubric):
        return unsure
    belongs = _belongs(tail, rubric)
    tail = tail[belongs:]
    if _END.fullmatch(tail):
        return Statement(spelled, kind, alone=True, scaled=scaled)
    if _ANOTHER.match(tail):
        return unsure
    if rubric.labels and re.match(rf"\s?(?:/|or|to|and|,|-)\s?{value_pattern(rubric).pattern}", tail):
        return unsure
    reason = _REASON.match(tail) or _BECAUSE.match(tail)
    if not reason and (named or scaled or "." in spelled):
        reason = _NEXT_SENTENCE.match(tail)
    if not reason and named:
        reason = _NEW_SENTENCE.match(tail)
    if not reason:
        return None
    dimension = _DIMENSIONS.match(tail, reason.end())
    if dimension and dimension[1].casefold() != rubric.dimension.casefold():
        return unsure
    rest = tail[reason.end() :].strip() if reason.re is not _BECAUSE else tail.strip()
    if _second_number(spelled, tail, rubric):
        return unsure
    return Statement(spelled, kind, rest=rest, scaled=scaled)


def _says_otherwise(spelled: str, tail: str, rubric: Rubric) -> bool:
    """Whether what follows a number says that it is no score of this scale, or not the whole of it."""
    beside = _RANGE_BESIDE.match(tail)
    if beside:
        low, high = (Decimal(end.replace(",", ".")) for end in beside.groups())
        if low < high and (low, high) != (rubric.low, rubric.high):
            return True
    percent = _PERCENT_BESIDE.match(tail)
    score = number_of(spelled)
    if percent and score is not None and Decimal(percent[1].replace(",", ".")) * rubric.high != 100 * score:
        return True
    most = tail[:MOST_LOOKED_AT]
    if _COUNTS.match(tail) or _IF_THAT.match(tail) or _TAKES_OFF.match(tail) or _OTHER_KIND.search(most[:60]):
        return True
    return number_of(spelled) == rubric.high and bool(_DEDUCTS.search(most))


def _belongs(tail: str, rubric: Rubric) -> int:
    """How much of a tail says only what the score is for: " for accuracy", " to this response"."""
    own = re.compile(
        rf"\s{{1,3}}(?:for|in|on|in terms of)\s(?:its\s|the\s)?{re.escape(rubric.dimension)}\b", re.I
    ).match(tail)
    end = own.end() if own else 0
    it = _TO_IT.match(tail, end)
    return it.end() if it else end


def _second_number(spelled: str, tail: str, rubric: Rubric) -> bool:
    """Whether a clause of the tail is another number alone: "4, maybe 5"."""
    value = value_pattern(rubric).pattern
    most = _OTHER_MOST.match(tail.lstrip(" ,;:-(\u2013\u2014"))
    if most and Decimal(most[1].replace(",", ".")) != rubric.high:
        return True
    words = "" if rubric.labels else rf"|(?:{'|'.join(_IN_WORDS)})\b"
    alone = re.compile(
        rf"\s*(?:{_HEDGE}){{0,4}}(?P<value>{value}{words})(?P<after>\s?/\s?\d{{1,3}}(?:\.0)?)?(?P<percent>%?)[\s\"')\]}}]*",
        re.I if not rubric.labels else 0,
    )
    for clause in re.split(r"[,;()\[\]|\u2013\u2014!?]|\.(?=\s|$)|\s-\s|->", tail[:MOST_LOOKED_AT].lstrip(" :")):
        found = alone.fullmatch(clause)
        if found and not found["percent"] and found["value"] != spelled:
            word = found["value"].lower()
            if word not in _IN_WORDS or _IN_WORDS.index(word) != number_of(spelled):
                return True
    return False
