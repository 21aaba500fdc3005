"""What a reply quotes: words of the row that a model repeats are not its own score.

Knows the lines of an answer, as they came and in plain characters; nothing of scores or rubrics. Quoted are

    lines of ">"        unless every line is one: then the model wrote its whole answer so
    a fence             that a line about the row leads to ("It ends with:"), or that holds several lines beside others
    quotation marks     around a part of a line, around several lines, or around a whole line that is not alone
    what is introduced  the paragraph or list after a line such as "The response ends with:", and the rest of that line

What cannot be told from a quotation is taken for one: a score that was not read is better than one of the row.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

from alpasift.graders.prompts.score_names import mentions_score

Span = tuple[int, int]
LOOKED_AT = 160
"""Characters before a score that may introduce it."""
_ROW = (
    r"(?:response|answer|output|row|text|input|instruction|reply|material|user|assistant|author|writer|line|sentence"
    r"|paragraph|word|completion|message|prompt)s?"
)
_ENDS_WITH = (
    r"(?:ends?|ended|ending|closes?|closed|closing|finish(?:es|ed|ing)?|concludes?|concluded|begins?|starts?|opens?)"
    r"(?:\s\w{1,12})?\s(?:with|in|by)|(?:endet|beginnt|schlie\u00dft)(?:\s\w{1,12})?\smit"
    r"|se\s(?:termine|conclut)(?:\s\w{1,12})?\spar|(?:termina|acaba|finaliza|concluye|conclude)(?:\s\w{1,12})?\s(?:con|com)"
)
_SAYS = (
    r"(?:says?|said|states?|stated|claims?|claimed|writes|wrote|adds|added|contains?|contained|includes?|repeats?|prints?"
    r"|quotes?|quoted|reads|declares?|consists\sof)"
)
_ONLY = (
    r"(?:\s(?:only|just|simply|merely|nothing|but|exactly|literally|this|these|the|a|one|two|last|following|words?|lines?"
    r"|text))*"
)
_IS = rf"(?<!final\s)(?<!my\s)\b(?:{_ROW}|it)\s(?:is|was|are|were){_ONLY}"
_NOT_ME = r"(?<!\bi\s)(?<!\bwe\s)(?<!['\u2019]d\s)\b"
_TAIL = r"(?:(?!\b(?:so|my|i|we|therefore|thus|hence|overall|final)\b)[^.!?:;,]){0,60}"
_GIVEN = (
    r"(?:(?:the|its)\s)?(?:expected|actual|correct|desired|original|given|resulting|code['\u2019]s|program['\u2019]s)"
)
_ORDERS = (
    r"(?:wants?|wanted|asks?|asked|tells?|told|orders?|ordered|instructs?|instructed|urges?|begs?)\s"
    r"(?:me|us|one|the\sgrader|graders|the\sjudge)\sto\s(?:output|say|write|answer|print|give|reply|respond|return|end\swith)"
)
_EASTERN = r"(?:\u5199\u7740|\u5199\u9053|\u8bf4|\u7ed3\u5c3e\u662f|\u672b\u5c3e\u662f|\u6700\u540e\u4e00\u884c\u662f)"
_LEADS_BY_COLON = re.compile(
    rf"(?:{_NOT_ME}(?:{_ENDS_WITH}|{_SAYS})\b{_TAIL}|\b(?:itself|themselves|its\sown)\b{_TAIL}|{_IS}"
    rf"|\b{_ROW}\s(?:gives|gave|has|had|holds|shows|goes)|^the\s(?:response|output|row|input|instruction)|{_EASTERN}"
    rf"|^(?:{_GIVEN}\s)?(?:response|output|row|input|instruction)(?:\s(?:text|content|body))?"
    r"|^(?:the\s)?(?:(?:required|requested|given|expected)\s)?(?:template|(?:output\s)?format)(?:\s(?:is|would be))?"
    r"|^(?:for\s)?(?:an?\s)?examples?|\be\.g\.|['\u2019]s\s(?:first|last|final|only|closing)\s(?:line|sentence|word)s?"
    r"|\b(?:running|executing|run|execution)\b.{0,40}\b(?:gives|yields|prints|shows|returns|produces))\s?$",
    re.I,
)
_LEADS = re.compile(
    rf"(?:{_NOT_ME}(?:{_ENDS_WITH}|{_SAYS}|{_ORDERS}){_ONLY}|\b(?:running|executing)\s.{{0,30}}\s(?:yields|prints|returns)|{_IS}|{_EASTERN})$",
    re.I,
)
_EARLIER = re.compile(
    rf"(?:{_NOT_ME}(?:{_ENDS_WITH}|{_SAYS}){_ONLY}|{_IS})\s?:\s(?![\"'\u201c\u201e\u00ab\u300c\u2018])", re.I
)
_OWN = re.compile(
    r"\b(?:my|our|overall|therefore|thus|hence|final|based\son|considering|summary|conclusion|verdict|judge?ment"
    r"|evaluation|assessment|(?:i|we)(?:['\u2019](?:d|ll)|\swould|\swill)?\s(?:give|rate|score|grade|assign|award|conclude"
    r"|settle|judge|evaluate|choose|arrive|come))\b|\u7efc\u4e0a|\u7ed3\u8bba|\u7ed3\u679c|\u56e0\u6b64",
    re.I,
)
_OWN_WITHOUT_ROW = re.compile(
    r"\b(?:so|given|taking|here(?:['\u2019]s|\sis|\sare)|below|requested|json|format|level|result|decision)\b|\u5982\u4e0b",
    re.I,
)
_OF_ROW = re.compile(rf"\b{_ROW}\b", re.I)
_FINAL = re.compile(
    r"(?:so,?\s|thus,?\s)?(?:the\s|my\s)?(?:final|my)\s(?:answer|score|rating|verdict|grade)\s?:\s?", re.I
)
_FENCE = re.compile(r"\s{0,8}(?:[-*+]\s)?(?:```|~~~)")
_BLOCK_QUOTE = re.compile(r"\s{0,3}(?:[-*+]\s{1,3})?(?:>|&gt;)")
_ITEM = re.compile(r"\s*(?:[-+*\u2022]|\(?\d{1,3}[.)])\s")
_MARKS = "\"'\u201c\u201e\u00ab\u300c\u300e\u2018"
_OVER_LINES = (
    r"(?<![\w\"])\"(?=[^\s\"])[^\"]{0,2000}?[^\s\"]\"(?!\w)|\u201c[^\u201c\u201d]{1,2000}\u201d"
    r"|\u201e[^\u201e\u201c\u201d]{1,2000}[\u201c\u201d]|\u00ab[^\u00ab\u00bb]{1,2000}\u00bb"
    r"|\u300c[^\u300c\u300d]{1,2000}\u300d|\u300e[^\u300e\u300f]{1,2000}\u300f"
)
_ON_A_LINE = (
    rf"{_OVER_LINES}|(?<![\w'])'(?=[^\s'])[^'\n]{{0,300}}?[^\s']'(?!\w)|\u2018[^\u2018\u2019\n]{{1,300}}\u2019(?!\w)"
)
_QUOTATION = re.compile(_ON_A_LINE)
_LONG_QUOTATION = re.compile(_OVER_LINES)
_UNCLOSED = re.compile(r"(?<![\w\"])\"(?=[^\s\"])[^\"]*$|\u201c[^\u201d]*$|\u00ab[^\u00bb]*$|\u300c[^\u300d]*$")
_WHOLE = re.compile(rf"(?:[-*+\u2022]\s+)?(?:{_ON_A_LINE})[.,;!]?")
_CODE = re.compile(r"\s*(?:[-*+]\s+)?(`{1,2})[^`]+\1[.,;!]?\s*")
_NAMED = re.compile(r"\W{0,4}[^\W\d_]")


def quoted_lines(raw: Sequence[str], plain: Sequence[str], filled: Sequence[int]) -> set[int]:
    """Which of the filled lines are quotations as a whole."""
    found = {i for i in filled if _BLOCK_QUOTE.match(raw[i])}
    if len(found) == len(filled):
        found = set()
    found |= _fenced(raw, plain, filled)
    found |= _introduced(raw, plain, filled)
    found |= _in_marks(raw, plain, filled)
    return found


def quoted_parts(text: str) -> list[Span]:
    """Which parts of a line, not the whole of it, are quotations."""
    if not any(mark in text for mark in _MARKS) or _WHOLE.fullmatch(text):
        parts = []
    else:
        final = _FINAL.match(text)
        parts = [found.span() for found in _QUOTATION.finditer(text, final.end() + 1 if final else 0)]
        unclosed = _UNCLOSED.search(text, parts[-1][1] if parts else 0)
        if unclosed and unclosed.start() > 0:
            parts.append((unclosed.start(), len(text)))
    led = _EARLIER.search(text)
    return [*parts, (led.end(), len(text))] if led else parts


def leads_to_quotation(before: str) -> bool:
    """Whether what stands before a score says that the row has it: "The response ends with:"."""
    before = before[-LOOKED_AT:].rstrip(_MARKS + " ([")
    if before.endswith(":"):
        return bool(_LEADS_BY_COLON.search(before[:-1]))
    return bool(before) and bool(_LEADS.search(before[-LOOKED_AT // 2 :].rstrip(" ,-\u2013\u2014")))


def _is_own(line: str) -> bool:
    """Whether a line before a block in marks announces what the model itself has to say."""
    end = line[-LOOKED_AT:]
    weak = _OWN_WITHOUT_ROW.search(end) and not _OF_ROW.search(end)
    return bool(_OWN.search(end) or weak) or mentions_score(end)


def _leads_to_block(line: str, *, marked: bool) -> bool:
    """Whether a line leads to a quotation; in marks, any line that ends with a colon and announces nothing does."""
    if leads_to_quotation(line):
        return True
    return marked and line.rstrip().endswith(":") and not _is_own(line)


def _fenced(raw: Sequence[str], plain: Sequence[str], filled: Sequence[int]) -> set[int]:
    found = set[int]()
    fences = [i for i, line in enumerate(raw) if _FENCE.match(line)]
    for start, end in zip(fences[::2], [*fences[1::2], len(raw)], strict=False):
        first, last = bisect_left(filled, start), bisect_left(filled, end)
        if first == last or last - first == len(filled):
            continue
        leading = plain[filled[first - 1]] if first else ""
        announced = leading.endswith(":") and _is_own(leading)
        if _leads_to_block(leading, marked=True) or (last - first > 1 and not announced):
            found.update(filled[first:last])
    return found


def _introduced(raw: Sequence[str], plain: Sequence[str], filled: Sequence[int]) -> set[int]:
    """The lines that a line without an end leads to: its list, or the paragraph after it."""
    found, furthest = set[int](), 0
    for at, after in pairwise(filled):
        if plain[at].endswith((".", "!", "?")) or not leads_to_quotation(plain[at]):
            continue
        listed = _ITEM.match(raw[after])
        for i in range(max(after, furthest), len(raw)):
            if not raw[i].strip() or (listed and not _ITEM.match(raw[i])):
                break
            found.add(i)
            furthest = i
    return found


def _in_marks(raw: Sequence[str], plain: Sequence[str], filled: Sequence[int]) -> set[int]:
    found = set[int]()
    for place, i in enumerate(filled):
        before = plain[filled[place - 1]] if place else ""
        if _WHOLE.fullmatch(plain[i]) and _NAMED.match(plain[i]):
            announced = before.endswith(":") and _is_own(before) and not leads_to_quotation(before)
            if len(filled) > 1 and not announced:
                found.add(i)
        elif (_WHOLE.fullmatch(plain[i]) or _CODE.fullmatch(raw[i])) and _leads_to_block(before, marked=True):
            found.add(i)
    if any(mark in line for line in plain for mark in _MARKS):
        found |= _over_lines(plain)
    return found


def _over_lines(plain: Sequence[str]) -> set[int]:
    """The lines that begin within a quotation which began on an earlier one, and those that begin with it."""
    starts, at = list[int](), 0
    for line in plain:
        starts.append(at)
        at += len(line) + 1
    found = set[int]()
    for quotation in _LONG_QUOTATION.finditer("\n".join(plain)):
        if "\n" in quotation[0]:
            found.update(range(bisect_left(starts, quotation.start()), bisect_left(starts, quotation.end())))
    return found
