"""Objects and tags in an answer, written as lines: {"score": 4.5} and <score>4.5</score> become "score: 4.5".

Pure functions over text; knows the names of a score, not which number counts. Reads JSON and what models write in its
place: single quotes, keys without quotes, a comma too many, prose around it. An object without a score leaves nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MOST_OBJECTS = 50
MOST_CHARACTERS = 20_000
DEEPEST = 8
MOST_KEY = 60
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"|\'((?:[^\'\\]|\\.)*)\'', re.S)
_KEY = re.compile(r"[A-Za-z_][\w -]{0,60}")
_SCALAR = re.compile(r"[^\s,{}\[\]\"':]{1,60}")
_BLANK = re.compile(r"\s*")
_ABOVE = re.compile(
    r"(?:^|_)(?:max|maximum|scale|range|denominator|possible|highest|best|upper|top|limit)(?:_|$)|^(?:out_of|of|total)$"
)
"""Keys beside a score that say of how many it is."""
_NOT_THE_SCALE = re.compile(r"(?:^|_)(?:normali[sz]ed|percent|percentage|rescaled|unit|units)(?:_|$)")
_EXPLAINS = ("explanation", "reason", "reasoning", "rationale", "justification", "comment", "feedback")
_OTHER_TAG = re.compile(r"<[^<>]{1,60}>|\[[A-Z_]{1,20}\]|```\w{0,12}")
_LETTERS = re.compile(r"[^\W\d_]")
_INTRODUCES = re.compile(
    r"\b(?:my|final)\s(?:answer|score|rating|grade|evaluation|json)(?:\sis)?\s?$|\bscore is\s?$", re.I
)
_MOST_TAG = re.compile(
    r"<(max(?:imum)?(?:_?(?:score|points))?|out_of|scale|total|possible)>\s?(?:\d{1,4}\s?-\s?)?(\d{1,6}(?:\.\d{1,4})?)\s?</\1>",
    re.I,
)
_WRAPS = re.compile(r"</?(?:answer|final_answer|final|output|response|result|evaluation|solution|grade|root)>", re.I)
_BREAKS = re.compile(r"</?(?:p|div|h[1-6]|tr|table|ul|ol)>|<br\s?/?>", re.I)
_ITEM = re.compile(r"<li>", re.I)
_TABLE = re.compile(
    r"^[ ]{0,3}\|?(?P<head>[^\n|]{1,60}(?:\|[^\n|]{1,60}){1,3})\|?[ ]*\n[ ]{0,3}\|?[ :|-]{3,200}\n"
    r"[ ]{0,3}\|?(?P<row>[^\n|]{1,2000}(?:\|[^\n|]{1,2000}){1,3})\|?[ ]*(?=\n\s*\n|\n?\s*\Z|\n[^|\n]*\n)",
    re.M,
)
_INLINE = re.compile(r"</?(?:b|i|u|em|strong|span|td|th|li|code|mark)>", re.I)
_MATHS = re.compile(r"(?:\$\$?|\\\()\s?((?:[A-Za-z ]{1,20}[:=]\s{0,3})?\d[\d.,]{0,8}(?:/\d{1,3})?)\s?(?:\$\$?|\\\))")
_ANGLED = re.compile(r"<\s?(\d[\d.,]{0,8})\s?>")
_TEXT = re.compile(r"\\text(?:bf|it|rm)?\{([^{}\\\n]{1,40})\}")
_BOXED = re.compile(
    r"(?:(?:\$\$?|\\[(\[])\s?)?\\boxed\{(?:\\text\{)?\s{0,3}([^{}\n]{1,20}?)\s{0,3}\}{1,2}(?:\s?(?:\$\$?|\\[)\]]))?"
)


@dataclass(frozen=True, slots=True)
class Pairs:
    """The keys and values of an object in their order; a key may stand twice."""

    pairs: tuple[tuple[str, object], ...]

    def named(self, *names: str) -> list[object]:
        return [value for key, value in self.pairs if key in names]


class _NotAnObject(ValueError):
    pass


def as_lines(text: str, dimension: str, cut: bool = False) -> tuple[str, str]:
    """The text with its objects and tags as lines, and the explanations that they held.

    Of a text that was `cut` off, a tag that nothing closes is a line that has no end.
    """
    if "\\boxed" in text:
        text = _BOXED.sub(r" \1 ", text)
    if "\\text" in text:
        text = _TEXT.sub(r"\1", text)
    out, beside, at, tried = list[str](), list[str](), 0, 0
    while tried < MOST_OBJECTS and (start := text.find("{", at)) >= 0:
        tried += 1
        try:
            found, end = _value(text, start, 0)
        except _NotAnObject:
            out.append(text[at : start + 1])
            at = start + 1
            continue
        assert isinstance(found, Pairs)
        lines, why = _scores(found, dimension, 0)
        before = text[at:start]
        if not _stands_alone(text, start, end):
            lines = []
        out.append(before[:-1] if before.endswith("[") else before)
        out.append("\n" + "".join(line + "\n" for line in lines))
        beside += why
        at = end
        if before.endswith("["):
            at += text[at : at + 1] == "]"
    out.append(text[at:])
    flat = "".join(out)
    if "|" in flat:
        flat = _TABLE.sub(_as_pairs, flat)
    return _tags_as_lines(flat, dimension, cut), "\n".join(beside)


def _as_pairs(table: re.Match[str]) -> str:
    """A table of one row whose columns are a score and reasons, as lines; any other table as it is."""
    names, cells = ([cell.strip(" *_`") for cell in table[part].split("|")] for part in ("head", "row"))
    reasons = [name for name in names if name.casefold().rstrip("s") in _EXPLAINS]
    if len(names) != len(cells) or len(reasons) != len(names) - 1:
        return table[0]
    return "\n".join(f"{name}: {cell}" for name, cell in zip(names, cells, strict=True))


def _scores(found: Pairs, dimension: str, depth: int) -> tuple[list[str], list[str]]:
    """The lines of an object's scores, and its explanations. The outermost scores count."""
    own = dimension.casefold().replace(" ", "_")
    whole = {
        "score",
        "rating",
        "overall_score",
        "final_score",
        "total_score",
        "overall",
        f"{own}_score",
        f"{own}_rating",
        own,
    }
    if depth:
        whole.add("value")
    above = _above(found)
    why = [value for value in found.named(*_EXPLAINS) if isinstance(value, str) and value]
    lines = []
    for key, value in found.pairs:
        if key not in whole:
            continue
        name = key.replace("_", " ")
        if isinstance(value, Pairs):
            inner, more = _scores(value, dimension, depth + 1)
            lines += [
                f"{name}:{line.partition(':')[2]}" if line.startswith(("score:", "value:")) else line for line in inner
            ]
            why += more
        else:
            number = " ".join(value.split()) if isinstance(value, str) else "?"
            lines.append(f"{name}: {number}" + "".join(f"/{most}" for most in above if most != number))
    if lines or depth >= DEEPEST:
        return lines, why
    for key, value in found.pairs:
        if isinstance(value, Pairs) and key not in _EXPLAINS and "think" not in key and "thought" not in key:
            inner, more = _scores(value, dimension, depth + 1)
            if not inner or key in ("result", "evaluation", "arguments", "parameters", "scores", "answer", "output"):
                lines += inner
                why += more
    return lines, why


def _above(found: Pairs) -> list[str]:
    """Of how many points the object's scores are, as its other keys say; "?" where they are not points of the scale."""
    above = []
    for key, value in found.pairs:
        if "score" in key.split("_") and not _ABOVE.search(key):
            continue
        texts = [part for part in (value if isinstance(value, list) else [value]) if isinstance(part, str)]
        numbers = re.findall(r"\d{1,6}(?:\.\d{1,4})?", " ".join(texts)[:MOST_KEY])
        if _ABOVE.search(key) and numbers:
            above.append(max(numbers, key=float))
        elif _NOT_THE_SCALE.search(key) and not {"false", "no", "points", "point"} & {text.lower() for text in texts}:
            above.append("?")
    return above


def _tags_as_lines(text: str, dimension: str, cut: bool) -> str:
    text = _MATHS.sub(r"\1", text)
    if "<" not in text:
        return text
    text = _ANGLED.sub(r"\1", text)
    names = rf"(?:overall[_ ]|final[_ ]|total[_ ])?(?:score|rating|points)|{re.escape(dimension)}(?:[_ ]score)?"
    text = re.sub(
        rf"<({names})>([^<>]{{0,80}})(?:</(?:{names})>|\Z)",
        lambda tag: (
            f"\n{tag[1]}: {tag[2]}" + "\n" * (not cut or tag[0].endswith(">"))
            if _stands_alone(text, tag.start(), tag.end())
            else " (a tag) "
        ),
        text,
        flags=re.I,
    )
    text = _MOST_TAG.sub(r"\nmax: \2\n", text)
    text = re.sub(rf"</?(?:{names})>", " ", text, flags=re.I)  # one of a pair alone: the other was begun for the model
    text = _BREAKS.sub("\n", _WRAPS.sub("\n", text))
    return _INLINE.sub("", _ITEM.sub("\n- ", text))


def _stands_alone(text: str, start: int, end: int) -> bool:
    """Whether an object or tag is no part of a sentence, which would speak of it: "the row holds {...}, and ..."."""
    before = text[max(text.rfind("\n", 0, start), start - 200) + 1 : start]
    line_end = text.find("\n", end)
    after = text[end : min(line_end if line_end >= 0 else len(text), end + 200)]
    before = _OTHER_TAG.sub("", before)
    introduced = (
        not _LETTERS.search(before) or before.rstrip(" ,;").endswith((":", "}", ".", "!")) or _INTRODUCES.search(before)
    )
    return bool(introduced) and (not _LETTERS.search(_OTHER_TAG.sub("", after)) or after.lstrip(" ,;")[:1] in "{<")


# -- objects ----------------------------------------------------------------------------------------------------


def _skip(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return found.end() if found else at


def _value(text: str, at: int, depth: int) -> tuple[object, int]:
    """The value that begins here and where it ends: Pairs, a list, or a text. Raises _NotAnObject."""
    if depth > DEEPEST:
        raise _NotAnObject
    mark = text[at : at + 1]
    if mark == "{":
        return _object(text, at, depth)
    if mark == "[":
        return _list(text, at, depth)
    if mark and mark in "\"'":
        return _string(text, at)
    found = _SCALAR.match(text, at)
    if not found:
        raise _NotAnObject
    return found[0], found.end()


def _string(text: str, at: int) -> tuple[str, int]:
    found = _STRING.match(text, at, at + MOST_CHARACTERS)
    if not found:
        raise _NotAnObject
    inner = found[1] if found[1] is not None else found[2]
    return inner.replace("\\n", "\n").replace('\\"', '"').replace("\\'", "'").strip(), found.end()


def _object(text: str, at: int, depth: int) -> tuple[Pairs, int]:
    pairs = list[tuple[str, object]]()
    at = _skip(text, at + 1)
    while text[at : at + 1] != "}":
        mark = text[at : at + 1]
        if mark and mark in "\"'":
            key, at = _string(text, at)
        else:
            named = _KEY.match(text, at)
            if not named:
                raise _NotAnObject
            key, at = named[0], named.end()
        at = _skip(text, at)
        if text[at : at + 1] not in (":", "\uff1a"):
            raise _NotAnObject
        value, at = _value(text, _skip(text, at + 1), depth + 1)
        pairs.append((_CAMEL.sub("_", key.strip()).casefold().replace(" ", "_").replace("-", "_"), value))
        at = _next(text, at, "}")
    return Pairs(tuple(pairs)), at + 1


def _list(text: str, at: int, depth: int) -> tuple[list[object], int]:
    values = list[object]()
    at = _skip(text, at + 1)
    while text[at : at + 1] != "]":
        value, at = _value(text, at, depth + 1)
        values.append(value)
        at = _next(text, at, "]")
    return values, at + 1


def _next(text: str, at: int, closing: str) -> int:
    """Where the next member begins, or the closing mark stands."""
    at = _skip(text, at)
    mark = text[at : at + 1]
    if mark == ",":
        return _skip(text, at + 1)
    if mark != closing:
        raise _NotAnObject
    return at
