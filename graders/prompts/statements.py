"""The scores that a line states: a named score ("Score: 4.5"), a number alone, or a sentence that gives a verdict.

Knows one line in plain characters and the rubric; which of several statements counts is decided in `reading`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Literal

from alpasift.graders.prompts.quotations import leads_to_quotation, quoted_parts
from alpasift.graders.prompts.rubric import Rubric
from alpasift.graders.prompts.score_names import name_of
from alpasift.graders.prompts.spelled import (
    AMBIGUOUS,
    CLOSING,
    DIGITS,
    OPENING,
    Statement,
    followed_by,
    sum_at,
    value_pattern,
)
from alpasift.graders.prompts.verdicts import CONNECTING, verdicts_of

_MAY_STATE = re.compile(r"\d|\binf|\bnan\b", re.I)
MOST_CLAUSES = 100
_TO = r"\s*(?:-|\u2013|\u2014|~|to|through|bis|\u00e0|a|\u0434\u043e|\u81f3|\u5230)\s*"
_SCALE = re.compile(
    rf"[(\[,]?\s?(?:(?:on|using|with|in)\s)?(?:(?:a|the)\s)?(?:rating\s)?(?:scale|range)[ :]{{1,3}}(?:is\s)?"
    rf"(?:(?:of|from|between|going from)\s)?({DIGITS})(?:{_TO}|\sand\s)({DIGITS})[)\]]?",
    re.I,
)
_IN_NAME = re.compile(
    rf"(?:[(\[]\s?(?:from\s)?({DIGITS}){_TO}({DIGITS})(?:\sscale)?\s?[)\]]|,\s?({DIGITS}){_TO}({DIGITS})"
    rf"|[(\[]?(?:out of|max\.?)\s?({DIGITS})[)\]]?(?=\s?[:=]))\s?(?=[:=]|$)",
    re.I,
)
_SCALE_ALONE = re.compile(
    r"[(\[]?\s?(?:the\s)?"
    r"(?:/|of|out of|(?:max(?:imum)?|highest|possible)(?:\s(?:score|points|possible))?(?:\sis)?|total possible"
    r"|(?P<sum>total)|scale)"
    rf"\s?[:=]?\s?(?:0{_TO})?(?P<most>{DIGITS})(?:\spoints)?[\s.)\]]*",
    re.I,
)
_POINT_SCALE = re.compile(r"\b(\d{1,4})[- ]points?[- ]scale\b", re.I)
_SCALE_OF = re.compile(
    r"[(\[,]?\s?(?:(?:on|using|with|in)\s)?(?:(?:a|the)\s)?(?:scale|range)\s(?:of|to|up to)\s"
    rf"({DIGITS})(?!\s?(?:-|to\b|\u2013)|\w|[.,]\d)(?:\spoints)?[)\]]?",
    re.I,
)
_IN_WORDS = {
    word: number
    for number, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    )
} | {"fifteen": 15, "twenty": 20, "fifty": 50, "hundred": 100}
_NUMBER_WORD = rf"(?:{'|'.join(_IN_WORDS)})\b"
_END_IN_WORDS = re.compile(
    r"\b(?:(?:out of|scale of|max(?:imum)?(?:\s(?:of|is)|:)?|scale:|from)"
    rf"\s(?:(?:a|one|possible|maximum)\s){{0,2}}?{_NUMBER_WORD}(?:\sto\s{_NUMBER_WORD})?|(?:zero|one)\sto\s{_NUMBER_WORD}"
    rf"|{_NUMBER_WORD}(?=\s(?:is|being|means|=)\s(?:the\s)?(?:best|perfect|highest|top|max)))",
    re.I,
)
"""An end of a scale in words: "out of ten", "from one to ten", "ten being the best"."""
_WORD = re.compile(_NUMBER_WORD, re.I)
_BEST = re.compile(
    r"[(\[,]?\s?(?:(?:where|with|and|as)\s)?(?<![\d.,])(\d{1,4})\s(?:is|being|means|meaning|as|=)\s(?:the\s|a\s)?"
    r"(?:best|perfect|highest|top|max(?:imum)?|excellent|flawless|ideal)\b(?:\s(?:score|rating|possible))?[)\]]?",
    re.I,
)
_ASKS_SCALE = re.compile(r"\b(?:rate|rating|score|scoring|grade|grading|give|evaluate|assess)\b", re.I)
_MARKER = re.compile(
    r"(?:[-+\u2022\u2013\u2014\u00b7\u25cf\u25aa*]\s{1,4}|\(?(?P<number>\d{1,3})\\?[.)]\s{1,4}"
    r"|[A-Za-z][.)]\s{1,4}|(?:step|point|level|criterion)\s\d{1,3}\s?:\s{1,4})(?=\S)",
    re.I,
)
_QUOTE = re.compile(r"(?:(?:>|#{1,6})\s{1,4}|\|\s{0,4}|[:=]\s{1,4}){1,4}")
_QUOTATION = "\"'\u201c\u2018\u00ab\u300c"
_NEEDS_SCALE = re.compile(r"\b(?:note|karakter|arvosana)\b", re.I)
"""A score in French, a remark in English, in German a grade of which 1 is the best; the others are of 7 or 6 steps."""
_PLAIN_NAME = re.compile(r"score|rating", re.I)
_NAME = re.compile(r"[^\W\d_][^\d:=|;!?.,(\[{<>\n]{0,60}")
_SEPARATOR = re.compile(r"\s{0,4}(?::{1,2}=?|=|->|=>|\u2013|\u2014|\||-(?=\s))\s{0,4}")
_SENTENCE_END = re.compile(r"[.!?]\s+")
_CLAUSE = re.compile(r"(?:[.;!?,:|]|\s[-\u2013\u2014])\s{1,4}|\|")


@dataclass(frozen=True, slots=True)
class Line:
    """What one line states, and what it is otherwise.

    item         its number, where it is an item of a numbered list
    other_scale  whether it says that scores are on another scale than the rubric's
    announces    whether it names the score and ends: the score is to follow
    """

    named: tuple[Statement, ...] = ()
    bare: Statement | None = None
    verdicts: tuple[Statement, ...] = ()
    item: int | None = None
    other_scale: bool = False
    announces: Literal["", "name", "sentence"] = ""


def read_line(text: str, rubric: Rubric) -> Line:
    """What a line in plain characters states."""
    text = _END_IN_WORDS.sub(lambda end: _WORD.sub(lambda word: str(_IN_WORDS[word[0].lower()]), end[0]), text)
    if not rubric.labels and not _MAY_STATE.search(text):
        return Line(announces=_announces(text, rubric))
    alone = _SCALE_ALONE.fullmatch(text)
    if alone and not (alone["sum"] and Decimal(alone["most"].replace(",", ".")) <= rubric.high):
        return Line(other_scale=Decimal(alone["most"].replace(",", ".")) != rubric.high)
    body, other_scale = _without_scales(text, rubric)
    quoted = _QUOTE.match(body)
    if quoted:
        body = body[quoted.end() :]
    marker = _MARKER.match(body)
    listed = body[marker.end() :] if marker else body
    item = int(marker["number"]) if marker and marker["number"] else None
    if other_scale and not listed.strip(" .:()[]"):
        return Line(item=item, other_scale=True)
    named = tuple(_named(listed, rubric, marker is not None))
    compared = quoted is not None and quoted[0].strip()[:1] in (">", "=")  # greater than 4, or a quotation
    bare = None if marker or named or compared else _bare(body, rubric)
    verdicts = () if named or bare else tuple(verdicts_of(listed, rubric))
    if other_scale:
        named = tuple(Statement(AMBIGUOUS, "named", one.name) for one in named)
        bare = Statement(AMBIGUOUS, "bare") if bare else None
        verdicts = tuple(Statement(AMBIGUOUS, "verdict") for _ in verdicts)
        other_scale = bool(_ASKS_SCALE.search(text))
    return Line(named, bare, verdicts, item, other_scale, "" if named or bare else _announces(listed, rubric))


# -- scales -----------------------------------------------------------------------------------------------------


def _without_scales(text: str, rubric: Rubric) -> tuple[str, bool]:
    """The line without mentions of the rubric's own scale; whether it names another one."""
    other = False

    def drop(found: re.Match[str]) -> str:
        nonlocal other
        ends = [Decimal(group.replace(",", ".")) for group in found.groups() if group]
        own = ends == [rubric.low, rubric.high] or (len(ends) == 1 and ends == [rubric.high])
        other = other or not own
        return " "

    for pattern in (_SCALE, _IN_NAME, _POINT_SCALE, _SCALE_OF, _BEST):
        text = pattern.sub(drop, text)
    text = re.sub(rf"[(\[]\s?{re.escape(rubric.dimension)}\s?[)\]](?=\s?[:=])", " ", text, flags=re.I)
    if rubric.labels:
        text = text.replace(f"({rubric.labels[0]}-{rubric.labels[-1]})", " ")
    return text.strip(), other


# -- named scores -----------------------------------------------------------------------------------------------


def _starts(text: str) -> list[int]:
    """Where clauses begin; of a very long line the first and the last ones."""
    found = [0, *(found.end() for found in _CLAUSE.finditer(text))]
    return found if len(found) <= 2 * MOST_CLAUSES else found[:MOST_CLAUSES] + found[-MOST_CLAUSES:]


def _named(text: str, rubric: Rubric, listed: bool) -> list[Statement]:
    """Every named score of a line. A verb ("the score is 4") counts at the start of a sentence only."""
    found, quoted_at = list[Statement](), quoted_parts(text)
    for start in _starts(text):
        at = start
        while text[at : at + 1] and text[at] in OPENING + " ":
            at += 1
        name = _NAME.match(text, at)
        if not name:
            continue
        spelled, end = name[0], name.end()
        parts = re.match(r"(.*?)\s{1,4}(->|[-\u2013\u2014])\s*$", spelled)
        separated = _SEPARATOR.match(text, end)
        if parts:
            spelled = parts[1]
            end = at + len(parts[1])
            separated = _SEPARATOR.match(text, end)
        known = _label_before(text, at, end, rubric) if rubric.labels and not separated else None
        if known:
            spelled, end = known
        spelled = spelled.rstrip(CLOSING + " ")
        named = name_of(spelled, rubric.dimension, rubric.name)
        if named is None:
            continue
        kind, verb = named
        sentence = _SENTENCE_END.split(text[:start])[-1]
        clause = text[:start].rstrip()[-1:] in tuple(",:-\u2013\u2014") and not CONNECTING.fullmatch(sentence)
        if verb and not separated and clause:
            continue
        end = separated.end() if separated else end
        if any(first <= at < end <= last for first, last in quoted_at) or leads_to_quotation(text[:start]):
            continue
        statement = _valued(text, end, rubric, "verb" if verb and not separated else "mark" if separated else "none")
        if statement is None:
            continue
        bare_name = not verb and not separated
        if bare_name and (not statement.alone or clause or not (kind == "own" or _PLAIN_NAME.search(spelled))):
            continue
        if (
            verb
            and not separated
            and (
                (kind in ("total", "vague") and not _PLAIN_NAME.search(spelled))
                or (verb == "of" and not statement.alone)
            )
        ):
            continue
        if _NEEDS_SCALE.search(spelled) and not statement.scaled:
            continue
        quoted = at > start and text[at - 1] in _QUOTATION and text[name.end() - 1] not in CLOSING
        if quoted and not statement.alone:  # somebody else's words
            continue
        found.append(replace(statement, name=kind, listed=listed))
    return found


def _label_before(text: str, at: int, end: int, rubric: Rubric) -> tuple[str, int] | None:
    """A name that is followed by a label of the rubric, which is letters as the name is: "The grade is E"."""
    found = re.match(rf"(.{{1,60}}?)\s(?={value_pattern(rubric).pattern})", text[at:end])
    return (found[1], at + found.end()) if found else None


def _valued(text: str, at: int, rubric: Rubric, by: Literal["mark", "verb", "none"]) -> Statement | None:
    """The value that stands here after a name, with what follows it; None where there is none."""
    while text[at : at + 1] and text[at] in OPENING + " |":
        at += 1
    summed = sum_at(text, at)
    if summed:
        return summed
    value = value_pattern(rubric).match(text, at)
    if not value:
        return None
    return followed_by(value[0], text[value.end() :], rubric, named=True)


# -- numbers alone ----------------------------------------------------------------------------------------------


def _bare(text: str, rubric: Rubric) -> Statement | None:
    at = 0
    while text[at : at + 1] and text[at] in OPENING + " ":
        at += 1
    value = value_pattern(rubric).match(text, at)
    if not value or value[0].startswith("+"):
        return None
    after = text[value.end() :]
    closed = re.match(r"[)\]}]*", after)
    if closed and closed.end() > sum(text[:at].count(mark) for mark in "([{"):
        return None
    return followed_by(value[0], after, rubric, named=False)


def _announces(text: str, rubric: Rubric) -> Literal["", "name", "sentence"]:
    """Whether a line names the score and leaves it to the next one."""
    quoted = _QUOTE.match(text)
    ended = text[quoted.end() if quoted else 0 :].rstrip()
    name = ended.rstrip(":= ").strip(OPENING + CLOSING + " ")
    known = len(name) <= 80 and name_of(name, rubric.dimension, rubric.name)
    if known and known[0] != "vague":
        return "name"
    words = {word.casefold() for word in re.findall(r"[^\W\d_]+", ended[-200:])}
    about = {"score", "rating", "grade", "assessment", "evaluation", rubric.dimension.casefold()}
    return "sentence" if ended.endswith(":") and words & about and not re.search(r"\d", ended) else ""
