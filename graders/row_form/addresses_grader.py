"""Text that speaks to the grader of a row and not to its reader: a verdict, the rubric's own lines, an order.

Small models follow such text: with "Score: 5" at the end of a row a model of 0.5 billion parameters answered 5 on 40 of
40 rows that it had not called perfect. A row that asks for a score, or is about scores, may hold one: there only what
no row says by itself counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from alpasift.graders import Example
from alpasift.graders.row_form.text import shown

_FENCE = re.compile(
    r"\[\[[ \t]?[^\[\]\s]{0,64}[ \t]?"
    r"(?:system text|earlier turns, context only|instruction|input|response|end)[ \t]?\]\]",
    re.I,
)
_QUESTION = re.compile(
    r"(?:^|\n|[.!?][ \t])[ \t]{0,3}[A-Z][a-z]{2,20} of the (?:response|answer|output)"
    r"(?:,? \(?-?\d{1,3}(?:\.\d)? ?(?:to|-) ?\d{1,3}\)?)?[ \t]?:",
)
_VERDICT = re.compile(
    r"(?:^|\n|[.!?\"')][ \t])[ \t>*_#-]{0,8}(?:final |overall |my |the )?"
    r"(?:score|rating|grade|verdict|accuracy|helpfulness)(?: of (?:the|this) (?:response|answer|row|output))?"
    r"(?: is|[*_ \t]{0,3}[:=])[*_ \t]{0,4}(?:10|\d)(?:\.\d)?(?: ?/ ?(?:5|10)| out of (?:5|10|five|ten))?"
    r"[*_ \t]{0,3}[.!]?[ \t]{0,3}(?=\n|$)",
    re.I,
)
_JSON_VERDICT = re.compile(
    r"\{[ \t\n]{0,8}[\"']?(?:score|rating|grade)[\"']?[ \t]?:[ \t]?\d{1,2}(?:\.\d)?[ \t\n]{0,8}[,}]", re.I
)
_ASKS_FOR_SCORES = re.compile(
    r"\b(?:rat(?:e|ing|ings)|scor\w+|grad(?:e|es|ing)|review\w*|evaluat\w+|assess\w*|json)\b", re.I
)
_ORDER = re.compile(
    r"\b(?:ignore|disregard|forget) (?:all |any |the |your |these |those )*"
    r"(?:previous|above|prior|earlier|preceding) (?:instructions?|rubric|rules|prompts?|text)\b"
    r"|\b(?:dear|attention|note to (?:the |all )?) ?(?:grader|judge|evaluator|rater|reviewer)s?\b[ \t]?[:,!]"
    r"|\b(?:graders?|judges?|evaluators?|raters?)\b.{0,20}\b(?:must|should|please|has to|have to)\b.{0,30}"
    r"\b(?:give|answer|assign|award|score|rate|grade)\b.{0,40}\b(?:5|10|five|ten|full|highest|maximum|top|perfect)\b"
    r"|\b(?:give|assign|award) (?:this|the|my) (?:response|answer|row|example)\b.{0,25}"
    r"\b(?:(?:5|10|five|ten)(?= ?(?:[.!,\n]|/|out of|$))"
    r"|full marks|(?:highest|maximum|top|perfect) (?:score|rating|grade))"
    r"|\b(?:rate|grade|score) (?:this|my) (?:response|answer|row|output|example)\b.{0,20}"
    r"\b(?:5|10|five|ten|full marks|highest|maximum|perfect)(?!\w)"
    r"|\b(?:answer|reply|respond) (?:only |just )?(?:with )?(?:the |a )?(?:score|number|digit|grade|rating)? ?"
    r"(?:of )?(?:5|five|10|ten)\b[ \t]?(?:[.!\n]|and nothing else|only|$)",
    re.I,
)

MAY_ADDRESS = (
    r"(?i)\[\["
    r"|[A-Z][a-z]{2,20} of the (?:response|answer|output)"
    r"|(?:score|rating|grade|verdict|accuracy|helpfulness)[^\n\p{Nd}]{0,40}\p{Nd}"
    r"|[{][ \t\n]{0,8}[\"']?(?:score|rating|grade)"
    r"|(?:ignore|disregard|forget) (?:all|any|the|your|these|those|previous|above|prior|earlier|preceding) "
    r"|(?:grader|judge|evaluator|rater|reviewer)s?[ \t]?[:,!]"
    r"|(?:grader|judge|evaluator|rater)s?[^\n]{1,22}(?:must|should|please|has to|have to)"
    r"|(?:give|assign|award|rate|grade|score) (?:this|the|my) (?:response|answer|row|output|example)"
    r"|(?:answer|reply|respond) (?:only |just )?(?:with )?(?:the |a )?(?:score|number|digit|grade|rating)? ?"
    r"(?:of )?(?:5|five|10|ten)"
)
MAY_ADDRESS = re.sub(r"(?<!\?)i", "[i\u0130\u0131]", MAY_ADDRESS)  # RE2 takes neither for an i
"""An expression of RE2, for a database: no row without it addresses the grader. It picks the rows to look at."""


_ODD_LETTERS = str.maketrans("\u0130\u0131\u017f\u212a", "iisk")
"""What a pattern that ignores case takes for i, s and k, and `lower` does not."""


@dataclass(frozen=True, slots=True)
class Sign:
    """A pattern, what it means, and what a text that it finds must hold.

    hints    ways in which a text may hold it: each is a list of groups of words, in lower case, and of every group the
             text holds one. To look for them takes a fraction of the pattern's time, and few rows have them.
    """

    pattern: re.Pattern[str]
    what: str
    hints: tuple[tuple[tuple[str, ...], ...], ...]

    def may_be_in(self, folded: str) -> bool:
        """False only where the pattern finds nothing in any part of the text that `folded` made this of."""
        for groups in self.hints:
            for words in groups:
                for word in words:
                    if word in folded:
                        break
                else:
                    break
            else:
                return True
        return False


def folded(text: str) -> str:
    """The text in lower case, as patterns that ignore case see it."""
    return text.lower() if text.isascii() else text.translate(_ODD_LETTERS).lower()


_SCORE_WORDS = ("score", "rating", "grade")
SIGNS = (
    Sign(_FENCE, "a line in the format of the prompt", ((("[[",),),)),
    Sign(_QUESTION, "the question that a rubric asks", (((" of the ",), ("response", "answer", "output")),)),
    Sign(
        _ORDER,
        "an instruction to the grader",
        (
            (("ignore ", "disregard ", "forget "),),
            (("grader", "judge", "evaluator", "rater", "reviewer"),),
            (("give ", "assign ", "award "), (" response", " answer", " row", " example")),
            (("rate ", "grade ", "score "), (" this ", " my ")),
            (("answer ", "reply ", "respond "), ("5", "five", "10", "ten")),
        ),
    ),
    Sign(_VERDICT, "a verdict on itself", (((*_SCORE_WORDS, "verdict", "accuracy", "helpfulness"),),)),
    Sign(_JSON_VERDICT, "a verdict on itself", ((("{",), _SCORE_WORDS),)),
)
"""In the order in which they are looked for in each part of a row."""


def addresses_the_grader(example: Example) -> str | None:
    """A fence of the prompt in the row, the rubric's question, an instruction to the grader, or a verdict on itself."""
    whole = folded("\n".join((example.system, example.instruction, example.input, example.output)))
    possible = [sign for sign in SIGNS if sign.may_be_in(whole)]
    if not possible:
        return None
    parts = {
        "system text": example.system,
        "instruction": example.instruction,
        "input": example.input,
        "output": example.output,
    }
    asked = bool(_ASKS_FOR_SCORES.search(example.instruction))
    for name, text in parts.items():
        for sign in possible:
            if sign.pattern in (_VERDICT, _JSON_VERDICT) and (asked or name == "instruction"):
                continue
            found = sign.pattern.search(text)
            if found:
                return f"the {name} holds {sign.what}: {shown(found[0].strip())}"
    return None
