"""The answer of a reply without what the model thought before it, and without its markers of turns.

Pure functions over text; knows nothing of scores. Thinking is what stands between a model's own tags, before a closing
tag that nothing opened, or after an opening tag that nothing closes. What was thought is never an answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_THINKING = (
    r"[a-z_]{0,20}(?:think|thought|scratch|monologue|reflect|reflexion|deliberat)[a-z_]{0,20}|chain_of_thought|cot"
    "|unused94|unused95"
)
_BESIDE = (
    r"[a-z_]{0,20}(?:reason|rationale|analysis|analyze|explanation|explain|justification|critique|feedback|comment|draft"
    r"|plan|brainstorm|steps|step|notes|review|consider)[a-z_]{0,20}"
)
"""What a tag's name holds where its content is thought before the answer, or said beside it."""


def _tag(names: str) -> re.Pattern[str]:
    """An opening or closing tag of one of these names, as the families spell them."""
    bounded = rf"(?:[a-z]{{1,12}}:)?(?:{names})"
    angled = (
        r"(?:<|&lt;)[|\uff5c]?[ ]{0,3}(?P<end>/[ ]{0,3}|end[_\u2581](?:of[_\u2581])?)?"
        rf"(?:(?:begin|start)[_\u2581](?:of[_\u2581])?)?(?P<name>{bounded})"
        r"(?:[ ][^<>\n]{0,80})?[ ]{0,3}[|\uff5c]?(?:>|&gt;)"
    )
    return re.compile(angled, re.I)


_THINKING_TAG = _tag(_THINKING)
_BESIDE_TAG = _tag(_BESIDE)
_BRACKETED = re.compile(r"\[(/?)(think|thinking|thought)\]|\u25c1(/?)(think|thinking)\u25b7", re.I)
_CHANNEL = re.compile(r"<\|channel\|>\s*([a-z]{1,20})[^<]{0,60}<\|message\|>")
_ONE_BAR = re.compile(r"<\|channel>\s*(?P<opens>[a-z]{0,20})|<channel\|>")
"""Channels of a family that closes them: <|channel>thought ... <channel|>answer."""
_BARE_CHANNEL = re.compile(r"\s*(?:analysis|commentary)(?=[A-Z])")
_BARE_FINAL = "assistantfinal"
_TURNS = re.compile(r"<\|im_start\|>\s?(think|answer)\b")
_BLOCK = re.compile(r"```\s?(?:thinking|thoughts?|reasoning|analysis)\b.*?(?:```|\Z)", re.I | re.S)
_HEADING = re.compile(
    r"^[ \t]{0,3}[#*_]{0,6}[ \t]{0,2}(?:(?:here is )?(?:my |the |internal |initial )?"
    r"(?:thinking(?: process)?|thoughts?(?: process)?|scratchpad))[ \t]{0,2}[*_]{0,3}(?::|\.\.\.|$)",
    re.I | re.M,
)
_AFTER_HEADING = re.compile(
    r"^[ \t]{0,3}[#*_]{0,6}[ \t]{0,2}(?:(?:(?:here is )?(?:my |the )?(?:final )?(?:answer|response|output|reply)"
    r"[ \t]{0,2}[*_]{0,3}(?::[*_]{0,3}|$))|\.\.\.[ \t]?done thinking\.?"
    r"|(?<=\n\n)(?=(?:final |overall |my )?(?:score|rating|verdict)\b))",
    re.I | re.M,
)
_ROLE = re.compile(
    r"<[|\uff5c]start_header_id[|\uff5c]>\s*assistant\s*<[|\uff5c]end_header_id[|\uff5c]>"
    r"|<\|im_start\|>\s*assistant\b|<start_of_turn>\s*model\b|\A\s*(?:assistant|model)[ \t]*\n",
    re.I,
)
_END_OF_TURN = re.compile(
    r"<[|\uff5c](?:eot_id|eom_id|im_end|end|endoftext|end_of_text|return|call|end\u2581of\u2581sentence"
    r"|end_of_turn_token|end_response|end_of_solution|user|im_start|start_header_id)[|\uff5c]>"
    r"|</s>|<eos>|<end_of_turn>|<start_of_turn>|\[INST\]",
    re.I,
)
_SPECIAL = re.compile(r"<[|\uff5c][^|\uff5c<>\s]{1,40}[|\uff5c]>|<(?:s|bos|pad|unk)>|\[/INST\]", re.I)
_STRUCK = re.compile(r"<(s|del|strike)>([^<>\n]{1,40})</\1>(?=[^<>\n]*[^\s<>.])", re.I)
"""What a model crosses out; a tag <s> before nothing else begins a text."""
_QUOTES = "`'\"\u2018\u2019\u201c\u201d"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a reply answers.

    text      the answer, without thoughts and markers
    thinking  whether the reply ends inside its thoughts, so that the answer did not come
    beside    what stood in tags for reasons: it explains the answer and is none
    """

    text: str
    thinking: bool = False
    beside: str = ""


def answer_of(reply: str) -> Answer:
    """The answer that a reply holds."""
    text, thinking = _final_channel(reply)
    if not thinking:
        text, thinking = _after_thinking(text)
    if thinking:
        return Answer("", True)
    text = _ROLE.sub("\n", text, count=1)
    text = _STRUCK.sub(lambda struck: f"~~{struck[2]}~~", text)
    for end in _END_OF_TURN.finditer(text):  # what a model writes after its turn is no answer to us
        if text[: end.start()].strip():
            text = text[: end.start()]
            break
    text = _SPECIAL.sub("", text)
    text = _BLOCK.sub("\n", text)
    text, open_still = _after_heading(text)
    if open_still:
        return Answer("", True)
    text, beside, open_still = _without_reasons(text)
    if open_still and not text.strip():
        return Answer("", True, beside)
    return Answer(text, False, beside)


def _final_channel(text: str) -> tuple[str, bool]:
    """The text of the channel `final`, where a model has channels; whether it never came to it."""
    channels = list(_CHANNEL.finditer(text))
    if channels or "<|channel|>" in text:
        final = [channel for channel in channels if channel[1] == "final"]
        return (text[final[-1].end() :], False) if final else ("", True)
    turns = list(_TURNS.finditer(text))
    if turns:
        return (text[turns[-1].end() :], False) if turns[-1][1] == "answer" else ("", True)
    if _BARE_CHANNEL.match(text):  # the same with its special tokens left out
        _, found, after = text.rpartition(_BARE_FINAL)
        return (after, False) if found else ("", True)
    return text, False


def _is_mentioned(text: str, found: re.Match[str]) -> bool:
    """Whether a tag is quoted: a remark about a row that holds one."""
    inside = found.start() > 0 and found.end() < len(text)
    return inside and text[found.start() - 1] in _QUOTES and text[found.end()] in _QUOTES


def _after_thinking(text: str) -> tuple[str, bool]:
    """What follows the last closing tag of thoughts; whether another opens after it."""
    closing, opening = 0, -1
    for pattern in (_THINKING_TAG, _BRACKETED, _ONE_BAR):
        for found in pattern.finditer(text):
            if _is_mentioned(text, found):
                continue
            if _closes(found):
                closing = max(closing, found.end())
            else:
                opening = max(opening, found.start())
    return text[closing:], opening >= closing


def _closes(found: re.Match[str]) -> bool:
    if found.re is _BRACKETED:
        return bool(found[1] or found[3])
    if found.re is _ONE_BAR:
        return not found["opens"] or found["opens"] == "final"
    return bool(found["end"]) or found["name"].endswith("95")


def _after_heading(text: str) -> tuple[str, bool]:
    """The text without a part under a heading such as "Thinking:"; whether nothing ends that part."""
    heading = _HEADING.search(text)
    if not heading:
        return text, False
    ends = _AFTER_HEADING.search(text, heading.end())
    before = text[: heading.start()]
    if before.strip():  # the answer came first: these are its reasons
        return before, False
    return (text[ends.end() :], False) if ends else ("", True)


def _without_reasons(text: str) -> tuple[str, str, bool]:
    """The text without what stands in tags for reasons, that, and whether the last of them is open."""
    kept, beside, depth, at = list[str](), list[str](), 0, 0
    for found in _BESIDE_TAG.finditer(text):
        if _is_mentioned(text, found):
            continue
        piece = text[at : found.start()]
        if not found["end"]:
            (beside if depth else kept).append(piece)
            depth += 1
        elif depth:
            beside.append(piece)
            depth -= 1
        else:  # nothing opened it: it was begun for the model
            beside += [*kept, piece]
            kept = []
        at = found.end()
        if not depth:
            kept.append("\n")
    (beside if depth else kept).append(text[at:])
    return "".join(kept), "\n".join(piece.strip() for piece in beside if piece.strip()), depth > 0
