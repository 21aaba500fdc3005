"""Rows without an answer, and inputs that only say that there is none."""

from __future__ import annotations

import re
import unicodedata

from alpasift.graders import Example
from alpasift.graders.row_form.text import ABOUT_TAGS, bare_words, shown

_ABOUT_SIGNS = re.compile(
    r"punct|symbol|operator|mark|sign|emo|ascii|morse|pattern|character|bracket|separator|delimit|draw|glyph|regex"
    r"|comment|code|dots?\b|dash|blank",
    re.I,
)
_PLACEHOLDERS = {
    "n a",
    "none",
    "null",
    "nil",
    "todo",
    "to do",
    "tbd",
    "output",
    "no output",
    "nooutput",
    "placeholder",
    "answer",
    "your answer",
    "your answer here",
    "answer here",
    "insert answer here",
    "insert output here",
    "your output here",
    "response",
    "your response here",
    "not applicable",
    "empty",
    "blank",
    "noinput",
    "no input",
}
_BARE_PLACEHOLDERS = {"n a", "none", "null", "todo", "tbd", "no output", "nooutput", "noinput", "your answer here"}
_PRODUCES = re.compile(
    r"\W*(?:please |can you |could you )?(?:write|design|create|generate|compose|describe|explain|develop|build|draft"
    r"|summari[sz]e|translate|rewrite|paraphrase|construct|compile|plan|outline|brainstorm|suggest|propose"
    r"|discuss|tell)\b",
    re.I,
)
_STANDS_FOR_MEDIA = re.compile(
    r"[<\[(](?:an? |the )?(?:image|picture|photo|video|audio|logo|sketch|drawing|illustration|diagram|chart|graph"
    r"|poster|painting|musical piece|music|melody|screenshot|animation)(?:[ /](?:of )?[\w ]{1,30})?[>\])]\.?",
    re.I,
)


def empty_output(example: Example) -> str | None:
    """Nothing in the output, or a word that stands where an answer should be."""
    if len(example.output) > 120 and not example.output.isspace():
        return None
    output = example.output.strip()
    if not output:
        return "the output is empty" if not example.output else "the output is blank"
    asked = f"{example.instruction}\n{example.input}"
    if all(unicodedata.category(sign)[0] in "PZC" for sign in output):
        return None if _ABOUT_SIGNS.search(asked) else f"the output is only {shown(output)}"
    words = bare_words(output)
    if words in _PLACEHOLDERS and words not in bare_words(example.instruction):
        bracketed = output[0] in "<[({" and not ABOUT_TAGS.search(asked)
        bare = words in _BARE_PLACEHOLDERS and (words != "n a" or "/" in output)
        if bracketed or (bare and (_PRODUCES.match(example.instruction) or words in {"no output", "nooutput"})):
            return f"the output is the placeholder {shown(output)}"
    if output[0] in "<[(" and _STANDS_FOR_MEDIA.fullmatch(output) and not ABOUT_TAGS.search(asked):
        return f"the output is the placeholder {shown(output)}"
    return None


_NO_INPUT = re.compile(
    r"(?:input )?(?:there is )?(?:no ?inputs?|no (?:additional|further|specific|other|extra) inputs?)"
    r"(?: is| was| are)?(?: required| needed| necessary| provided| given| available| specified| supplied)?"
    r"(?: for this (?:task|instruction|question|prompt))?|(?:this (?:task|instruction) )?(?:does not"
    r"|doesn t) (?:require|need)"
    r" (?:an |any )?input"
)
_NONE = {"none", "n a", "not applicable", "null", "nil", "nothing", "empty", "blank", "input none", "input n a"}
_ONE_WORD = re.compile(
    r"\b(?:word|translat\w*|terms?|spell\w*|pronoun\w*|synonyms?|antonyms?|abbreviat\w*|acronym\w*)\b", re.I
)
_NAMES_THE_MARKER = re.compile(r"no[ _-]?input", re.I)
_MARKER = re.compile(r"\\?[<\[({][ _]?no[ _-]?inputs?[ _]?\\?[>\])}]", re.I)
_ABOUT_MARKERS = re.compile(
    r"no[ _-]?input|\b(?:markers?|xml|html|tags?|errors?|monitors?|displays?|message (?:says?|means?|reads?))\b", re.I
)


def no_input_marker(example: Example) -> str | None:
    """The input holds one of the many spellings of "there is no input", which a model would be shown as a text.

    The generator of Alpaca's data was asked to write a marker and had a new spelling every few hundred rows.
    """
    given = example.input
    if given and len(given) <= 80 and ("n" in given or "N" in given or given[0] in "<[("):
        words = bare_words(given)
        if _NO_INPUT.fullmatch(words):
            text = given.strip()
            about = _NAMES_THE_MARKER if text[0] in "<[(\\`" else _ABOUT_MARKERS
            if not about.search(example.instruction):
                return f"the input is {shown(given)}"
        elif words in _NONE:
            text = given.strip()
            bracketed = text[0] in "<[({" and not _ABOUT_MARKERS.search(example.instruction)
            plain = words in {"none", "not applicable", "input none", "input n a"} or (words == "n a" and "/" in text)
            if bracketed or (text[0] not in "<[({" and plain and not _ONE_WORD.search(example.instruction)):
                return f"the input is {shown(given)}"
    for field, text in (("input", given), ("output", example.output[:40].lstrip())):
        if text and "nput" in text.casefold() and not _ABOUT_MARKERS.search(example.instruction):
            marker = _MARKER.search(text) if field == "input" else _MARKER.match(text)
            if marker:
                return f"the {field} holds the marker {shown(marker[0])}"
            if field == "input" and "\n" in text:
                last = text.rstrip().rpartition("\n")[2]
                if len(last) <= 40 and bare_words(last) in {"noinput", "no input"}:
                    return f"the input ends with {shown(last)}"
    return None
