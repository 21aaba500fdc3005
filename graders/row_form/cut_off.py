"""Outputs that end in the middle of something."""

from __future__ import annotations

import json
import re

from alpasift.graders import Example
from alpasift.graders.row_form.text import QUOTES, shown

_FENCE = re.compile(r"^[ \t]{0,3}```", re.M)
_LAST_WORD = re.compile(
    r"[^\s,;:(]+ (and|or|nor|but|the|an|because|although|whereas|whose|their|its|our|your|my|than|is the|of the)$"
)
_OPEN_SENTENCE = re.compile(r"(?:The|This|Our|It) [^\n,.;:!?]{12,120} (?:is|are|was|were|equals|of|to the)$")
_QUESTION_WORD = re.compile(r"\b(?:wh(?:o|at|ere|ich|om|y)|how|it|there|here|as|than|that)\b", re.I)
_ANNOUNCES = re.compile(
    r"[a-z][^\n]{0,120}\b(?:following|follows|are|is|include|includes|including|below|these|steps"
    r"|such as)\b[^\n:]{0,60}:$"
)
_ABOUT_FRAGMENTS = re.compile(
    r"\b(?:sort|order|arrange|rearrange|reverse|unscramble|scramble|words?|letters?|fragment|complete|blank"
    r"|begin\w*|opening|start\w*|first (?:line|half|part)"
    r"|prompt|prefix|cut|truncat\w*|incomplete|unfinished|phrase|cliff\w*|introduc\w*|intro|salutation|greeting"
    r"|heading|title|template|form|poem|haiku"
    r"|song|lyrics?|verse|code|function|loop|split|half|predict|tokeni[sz]e|extract|identify|find|list)\b",
    re.I,
)
_ALPHA_WORD = re.compile(r"[^\W\d_]+")


def cut_off(example: Example) -> str | None:
    """The output stops in the middle: an open code fence or bracket, unfinished JSON, a sentence that must go on.

    A list, a word or a line without a full stop is no cut. Signatures end in commas and forms in colons, so those
    count only at the end of a long line, and never where the task is about fragments, verse or word order.
    """
    output = example.output
    if "```" in output and len(_FENCE.findall(output)) % 2:
        return "a code fence is opened and never closed"
    tail = output[-400:].rstrip()
    if not tail:
        return None
    last = tail[-1]
    if last in "([{" and tail[-2:-1] in ("", " ", "\n", "=", ","):
        return f"the output ends with an open bracket: {shown(tail[-40:])}"
    if "json" in example.instruction.casefold() and output.lstrip()[:1] in ("{", "["):
        return _unfinished_json(output)
    if last in '.!?"”)':  # how most outputs end
        return None
    if last in ",:":
        line = tail.rpartition("\n")[2].strip()
        if _ABOUT_FRAGMENTS.search(example.instruction) or len(_ALPHA_WORD.findall(line)) < (9 if last == "," else 5):
            return None
        if last == "," or _ANNOUNCES.search(line):
            return f"the output ends with a {'comma' if last == ',' else 'colon'}: {shown(line[-50:])}"
        return None
    if not last.isalpha() or not last.islower():
        return None
    line = tail.rpartition("\n")[2].strip()
    if len(line) < 25 or _ABOUT_FRAGMENTS.search(example.instruction):
        return None
    word = _LAST_WORD.search(line)
    if word and line.count(" ") >= 5 and not line.startswith(tuple(QUOTES)):
        return f"the output ends with {shown(word[1])}: {shown(line[-50:])}"
    if "\n" not in output.strip() and _OPEN_SENTENCE.fullmatch(line) and not _QUESTION_WORD.search(line):
        return f"the output's sentence is not finished: {shown(line[-50:])}"
    return None


def _unfinished_json(output: str) -> str | None:
    text = output.strip()
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        if error.pos >= len(text) or error.msg.startswith("Unterminated string"):
            return f"the JSON ends before it is complete: {shown(text[-40:])}"
    except (RecursionError, ValueError):
        return None
    return None
