"""The early stop: a grader whose first answers cannot be read is paid for no more of them.

Knows readings of replies and how many of them count; nothing of backends, money or tables. Every way of being useless
counts alike: empty, prose, cut off, refused, out of range. What is decided here is asked before anything more is sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from alpasift.batcher.engine.task import Reading
from alpasift.graders import Reply, SendingStopped

NONE_OF = 20
"""Answers of which none can be read after which no other is asked for."""
LOOKED_AT = 50
"""Answers that decide: when under SHARE of so many can be read, no other is asked for; else all are."""
SHARE = 0.2
BEFORE_BATCH = 5
"""Calls of which none can be read after which no batch is sent."""
SHOWN = 200
"""Characters of the reply that is shown."""

_ADVICE = {
    "empty": "The answers are empty; use another model",
    "cut_off": "The answers end before the score; allow longer ones (explain_tokens in the rubric), use another "
    "--answer-format, or, where the model thinks first, one that can answer without thinking",
    "refused": "The model refuses to answer; use another model, or reword the rubric",
    "out_of_range": "The answers are not on the rubric's scale; state the scale in the rubric, or constrain the "
    "answers (--answer-format json)",
    "unreadable": "The answers do not follow the answer format; constrain them (--answer-format json, or "
    "--constrain), or use a larger model",
}


class GraderUnreadable(SendingStopped):
    """Hardly any of the first answers could be read. They are kept; nothing more was sent."""


@dataclass(slots=True)
class EarlyStop:
    """Counts the first answers of a grader by a rubric, and how many of them could be read.

    grader     its name
    off        whether to go on whatever comes
    answers    how many have been looked at, of earlier runs too
    usable     how many of them answer their question
    """

    grader: str
    off: bool = False
    answers: int = 0
    usable: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    example: str = ""

    @property
    def looks(self) -> bool:
        """Whether the answers that come still count."""
        return self.answers < LOOKED_AT

    def remember(self, usable: int, unread: Iterable[tuple[str, str]]) -> None:
        """Take in what earlier runs brought: answers that could be read, and (reason, text) of those that could not."""
        self.answers += usable
        self.usable += usable
        for reason, text in unread:
            self._unread(reason, text)

    def add(self, reply: Reply, reading: Reading) -> None:
        """Take in an answer that came now."""
        if reading.usable:
            self.answers += 1
            self.usable += 1
        else:
            self._unread(reading.reason or "unreadable", reply.text or "")

    def _unread(self, reason: str, text: str) -> None:
        self.answers += 1
        self.reasons[reason] += 1
        if not self.example.strip():
            self.example = text

    def check(self, *, before_batch: bool = False) -> None:
        """Raise GraderUnreadable when no other answer should be asked for."""
        none_of = BEFORE_BATCH if before_batch else NONE_OF
        if self._useless(none_of, LOOKED_AT):
            raise self.error()

    def check_at_end(self) -> None:
        """Raise GraderUnreadable when asking the same once more would bring as little."""
        if self._useless(NONE_OF, NONE_OF):
            raise self.error()

    @property
    def useless(self) -> bool:
        """Whether hardly anything could be read, also where nobody minds."""
        return self._few(NONE_OF, NONE_OF)

    def _useless(self, none_of: int, few_of: int) -> bool:
        return not self.off and self._few(none_of, few_of)

    def _few(self, none_of: int, few_of: int) -> bool:
        if self.usable == 0:
            return self.answers >= none_of
        return self.answers >= few_of and self.usable < SHARE * self.answers

    def error(self) -> GraderUnreadable:
        """What was seen, one reply, and what to change."""
        found = "none" if self.usable == 0 else f"{self.usable:,}"
        common = [reason for reason, _ in self.reasons.most_common()]
        why = ", ".join(f"{reason} {self.reasons[reason]:,}" for reason in common)
        shown = " ".join(self.example.split())
        shown = shown[:SHOWN] + "..." if len(shown) > SHOWN else shown
        said = f" One of them: {shown!r}." if shown else ""
        advice = _ADVICE.get(common[0] if common else "", _ADVICE["unreadable"])
        return GraderUnreadable(
            f"{found} of the first {self.answers:,} answers of {self.grader} could be read ({why}).{said} They are "
            f"kept, and nothing more was sent. {advice}. --keep-going grades the remaining rows anyway"
        )
