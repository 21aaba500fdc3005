"""Outputs that refuse the task."""

from __future__ import annotations

import re

from alpasift.graders import Example
from alpasift.graders.row_form.text import FIRST_WORD, shown

_CANNOT = (
    r"(?:can(?:no|')?t|can not|can’t|am (?:currently )?(?:unable|not able)|(?:do not"
    r"|don['’]t) have the (?:ability|capability|means)|am not (?:capable|programmed|designed)|won['’]t"
    r"|will not be able)"
)
_OPENERS = {"i", "im", "sorry", "unfortunately", "my", "as", "no", "the", "this", "a"}
_DENIALS = ("cannot", "can not", "can't", "can’t", "cant", "unable", "not ", "n't", "n’t", "no output", "by a human")
_AS_AN_AI = re.compile(
    r"\W*(?:(?:i['’]?m|i am) (?:very |so )?sorry,? (?:but )?|sorry,? (?:but )?|unfortunately,? "
    r"|i apologi[sz]e,? (?:but )?)?"
    r"(?:as an? (?:large |ai |artificial |text.based )*(?:language |intelligence )*(?:model|ai|assistant|chatbot"
    r"|llm|ai system)\b[^.\n]{0,80}?|"
    r"(?:i['’]?m|i am) (?:only |just )?an? (?:large |ai |text.based )*(?:language )?(?:model|ai|assistant"
    r"|chatbot)\b[^\n]{0,40}?)"
    r"\bI (?:also )?" + _CANNOT + r"\b",
    re.I,
)
_SORRY_CANNOT = re.compile(
    r"\W*(?:(?:i['’]?m|i am) (?:very |so |really )?(?:sorry|afraid)|sorry|unfortunately|i apologi[sz]e"
    r"|my apologies)[,.;]?(?: but| that)? ?I "
    + _CANNOT
    + r"(?: to| of)? (?:assist|fulfil|comply|complete (?:this|that|the|your) (?:task|request|instruction)"
    r"|answer (?:this|that|your)"
    r"|process (?:this|that|your)|provide|generat|creat|browse|access|perform (?:this|that|the|your)"
    r"|help (?:you )?with (?:this|that|your request)"
    r"|do (?:this|that)\b|engage in|open|view|see|play|draw|show|display)",
    re.I,
)
_TASK_CANNOT = re.compile(
    r"\W*(?:sorry,? (?:but )?)?(?:no output[\s.:,-]+(?:because|as|since|the task|this|it )"
    r"|(?:the|this) (?:task|instruction|request)\b(?=[^\n]*\b(?:model|output|by a human)\b)"
    r"[^\n]{0,160}?\b(?:cannot|can['’]?t|unable|not (?:possible|feasible)|by a human|does not meet the requirements)\b"
    r"|(?:the|this) (?:gpt|language|ai)[- ]?(?:language )?(?:model)? ?(?:cannot|can['’]?t|is unable|is not able))",
    re.I,
)
_PLAIN_CANNOT = re.compile(
    r"\W*(?:i['’]?m sorry,? (?:but )?|sorry,? (?:but )?)?I " + _CANNOT + r"(?: to)? ([a-z]+)\b", re.I
)
_HELPS_ALL_THE_SAME = re.compile(
    r"\b(?:here(?:['’]s| is| are)|instead|in general|generally|that said|nevertheless|for example|but I can"
    r"|I can (?:tell|give|offer|suggest|describe))\b"
    r"|\bhowever,? (?!(?:if|please|I(?:['’]d| would) be (?:happy|glad)|I(?:['’]m| am) happy))"
    r"|\n[ \t]{0,3}(?:[-*•]|\d+[.)]) ",
    re.I,
)
_ASKS_FOR_WORDS = re.compile(
    r"\b(?:repl(?:y|ies)|respon(?:d|se)\b.{0,40}(?:to|customer|email)|respond|e-?mail|letter|message"
    r"|text (?:message|to)|apolog\w*|excuse|declin\w*|refus\w*|reject\w*"
    r"|polite\w*|sa(?:y|ys|id|ying)|role|play|dialog(?:ue)?s?|conversation|chat\w*|customer|script|story|scene"
    r"|character|monologue|speech|quote"
    r"|sentences?|phrases?|translate|rewrite|rephrase|paraphrase|imagine|pretend|robot|ai|assistant|turn down"
    r"|sympath\w*|condolences?|note|voicemail)\b",
    re.I | re.S,
)


_ASKS_FOR_A_PART = re.compile(
    r"\b(?:robots?|story|dialog(?:ue)?s?|script|role|pretend|imagine|scene|character|play|gpt|language models?)\b", re.I
)


def refusal(example: Example) -> str | None:
    """The output begins by declining the task, and offers nothing in its place.

    Silent where the task is to write such words: a letter, an excuse, a reply to a customer, a scene with a robot.
    """
    head = example.output[:240]
    opener = FIRST_WORD.search(head)
    if not opener or opener[0].lower() not in _OPENERS:
        return None
    lower = head.lower()
    if not any(denial in lower for denial in _DENIALS):
        return None
    found, spoken = _TASK_CANNOT.match(head), _ASKS_FOR_A_PART  # nobody says such a sentence in a letter
    if not found:
        found, spoken = _AS_AN_AI.match(head) or _SORRY_CANNOT.match(head), _ASKS_FOR_WORDS
    if not found:
        plain, verb = _PLAIN_CANNOT.match(head), FIRST_WORD.search(example.instruction)
        found = plain if plain and verb and plain[1].casefold() == verb[0].casefold() else None
    if not found or spoken.search(example.instruction):
        return None
    rest = example.output[found.end() :]
    if len(rest) > 500 or _HELPS_ALL_THE_SAME.search(rest):
        return None
    return f"the output declines: {shown(head)}"
