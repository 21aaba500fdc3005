"""The verdict of an audit: what a grader tells apart more often than by chance, what length alone tells, what moves it.

Knows counts only. The rule, for each kind of pair: of the pairs with different scores as many would go one way as the
other if the grader knew nothing, which is the exact sign test (two-sided); over all kinds together the chance of one
false claim is held to 5 % by Holm's method (1979, Scand. J. Stat. 6:65). Output length finds a kind where the lengths
of the two sides, taken as scores, differ one way more often than by chance; there a claim says nothing beyond length.
For length the test is uncorrected, which claims less for the grader.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Literal

from alpasift.batcher.grading.audit_damage import DAMAGE

LEVEL = 0.05
Claim = Literal["found", "reversed", "raised", "none"]


@dataclass(frozen=True, slots=True)
class Counts:
    """The pairs of one kind that have both scores, by which side scored higher, and by which output is longer.

    right, ties, wrong   the original scored higher than the changed output, the same, lower
    longer, shorter      the original's output is longer than the changed one, shorter
    """

    kind: str
    right: int
    ties: int
    wrong: int
    longer: int
    shorter: int

    @property
    def pairs(self) -> int:
        return self.right + self.ties + self.wrong

    @property
    def damage(self) -> bool:
        """Whether the changed output must score lower; else it only must not score higher."""
        return self.kind in DAMAGE


@dataclass(frozen=True, slots=True)
class KindVerdict:
    """What may be said of one kind. `claim` is found (damage), reversed (damage that scores higher) or raised (a change
    that must not raise a score); p is that of the sign test, before Holm. `by_length`: length alone differs too."""

    kind: str
    claim: Claim
    p: float
    by_length: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an audit has shown. `short` is for a table's cell, `line` the whole in one line."""

    kinds: tuple[KindVerdict, ...]
    line: str
    short: str

    @property
    def found(self) -> tuple[KindVerdict, ...]:
        return tuple(one for one in self.kinds if one.claim == "found")

    @property
    def beyond_length(self) -> tuple[KindVerdict, ...]:
        return tuple(one for one in self.found if not one.by_length)


def sign_test(more: int, fewer: int) -> float:
    """The two-sided exact p of `more` against `fewer` where each is as likely as the other; 1 where there is none."""
    n = more + fewer
    term = total = comb(n, 0)
    for k in range(1, min(more, fewer) + 1):
        term = term * (n - k + 1) // k
        total += term
    return min(1.0, float(2 * total / 2**n))


def holm(ps: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Which of some hypotheses are rejected so that the chance of one false rejection is at most `level`."""
    rejected = [False] * len(ps)
    for rank, at in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        if ps[at] > level / (len(ps) - rank):
            break
        rejected[at] = True
    return rejected


def verdict(counts: Iterable[Counts]) -> Verdict:
    """What may be said of a grader from the pairs of an audit."""
    counts = [one for one in counts if one.pairs]
    ps = [sign_test(one.right, one.wrong) for one in counts]
    kinds = tuple(
        KindVerdict(one.kind, _claim(one) if clear else "none", p, sign_test(one.longer, one.shorter) < LEVEL)
        for one, p, clear in zip(counts, ps, holm(ps), strict=True)
    )
    return Verdict(kinds, *_words(kinds, {one.kind: one for one in counts}))


def _claim(one: Counts) -> Claim:
    if one.damage:
        return "found" if one.right > one.wrong else "reversed"
    return "raised" if one.wrong > one.right else "none"


def _words(kinds: Sequence[KindVerdict], counts: Mapping[str, Counts]) -> tuple[str, str]:
    """The line and the short form."""
    damage = [one for one in kinds if one.kind in DAMAGE]
    found = [one for one in damage if one.claim == "found"]
    beyond = [one for one in found if not one.by_length]
    raised = [one for one in kinds if one.claim == "raised"]
    upside_down = [one for one in damage if one.claim == "reversed"]
    of = f"{len(found)} of {len(damage)} kinds"
    if beyond:
        line = f"finds {of} of damage more often than by chance: {_names(found)}"
        short = f"finds {of}"
        if len(beyond) < len(found):
            line += f"; output length alone finds {_names([one for one in found if one.by_length])} too"
    elif found:
        line = f"finds only what output length finds: {_names(found)}"
        short = f"finds only what output length finds ({of})"
    else:
        line = short = "shows nothing"
        line += ": no kind of damage is found more often than by chance"
    if upside_down:
        line += f"; scores {_names(upside_down)} higher than the original"
    if raised:
        line += "; " + ", ".join(f"{one.kind} raises {_share(counts[one.kind])} of the scores" for one in raised)
        worst = max(raised, key=lambda one: counts[one.kind].wrong / counts[one.kind].pairs)
        short += f", {worst.kind} raises {_share(counts[worst.kind])}"
    return line, short


def _names(kinds: Sequence[KindVerdict]) -> str:
    return ", ".join(one.kind for one in kinds)


def _share(one: Counts) -> str:
    return f"{one.wrong / one.pairs:.0%}"
