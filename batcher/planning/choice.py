"""Which of some offers to take: the cheapest that fits the limits, and the reason in a sentence.

Knows offers and limits; opens no backend. `--grader auto` looks only at graders the user has named, on the command line
or in ALPASIFT_GRADERS (specs separated by commas), and at the API's usual models where a key and a budget are there. It
never takes `rules`, `fake` or one that measures: the first checks form only, the second nothing at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from alpasift.batcher.grading.open_grader import kind
from alpasift.batcher.money.dollars import show_usd
from alpasift.batcher.planning.offers import Offer
from alpasift.graders import BackendUnavailable

NEVER_AUTO = ("rules", "fake", "ifd", "s-ifd", "fit")
"""Backends that `auto` does not take: their scores are no grades."""


def dollars(usd: Decimal) -> str:
    """Dollars for a person who compares: cents from ten dollars on, four decimals below."""
    return show_usd(usd, 2 if usd >= 10 or not usd else 4)


_LOCAL = "give a grader that runs on this machine, or drop --local-only"


class Choice(NamedTuple):
    """The offer that was taken, and the reason in a sentence."""

    offer: Offer
    why: str


@dataclass(frozen=True, slots=True)
class _Exceeded:
    """A limit that an offer does not keep: in words, how far it is off, as a share of the limit, and what helps."""

    message: str
    by: float
    advice: str


def choose(
    offers: Sequence[Offer],
    max_hours: float | None = None,
    *,
    max_usd: Decimal | None = None,
    local_only: bool = False,
    free_usd: Decimal | None = None,
) -> Choice:
    """The cheapest offer that can work and fits the limits, and the reason in a sentence. Raises BackendUnavailable.

    Dollars up to the upper end of the interval count against `max_usd`; hours in the worst case against `max_hours`;
    expected dollars against `free_usd`, which is what the budget leaves: the ledger itself holds to that one.
    """
    candidates = [o for o in offers if kind(o.grader) not in NEVER_AUTO]
    judged = [(o, _exceeded(o, max_hours, max_usd, local_only, free_usd)) for o in candidates if o.possible]
    fitting = [o for o, exceeded in judged if not exceeded]
    if not fitting:
        raise BackendUnavailable(_nearest(judged) if judged else _no_candidate(candidates))
    best = min(fitting, key=_rank)
    assert best.estimate is not None
    one = best.estimate
    others = f" of {len(fitting)} that fit" if len(fitting) > 1 else ", the only one that fits"
    reasons = [f"{best.grader}: {dollars(one.usd)} is the cheapest{others}"]
    if one.ceiling_usd:
        reasons.append(f"likely at most {dollars(one.usd_high)}, worst case {dollars(one.ceiling_usd)}")
        if free_usd is None:
            reasons.append("set a budget with --budget")
        elif one.ceiling_usd > free_usd:
            reasons.append(f"the run would stop at {dollars(free_usd)}, what the budget leaves")
    reasons.append("calibrated against a reference" if best.calibrated else "never calibrated against a reference")
    if best.audited:
        reasons.append(best.audited)
    return Choice(best, "; ".join(reasons))


def _rank(offer: Offer) -> tuple[Decimal, float, str]:
    hours = offer.worst_hours
    return (offer.estimate.usd if offer.estimate else Decimal(0), math.inf if hours is None else hours, offer.grader)


def _exceeded(
    offer: Offer, max_hours: float | None, max_usd: Decimal | None, local_only: bool, free_usd: Decimal | None
) -> list[_Exceeded]:
    """The limits that an offer exceeds; nothing where it fits."""
    found: list[_Exceeded] = []
    one, hours = offer.estimate, offer.worst_hours
    assert one is not None
    if max_usd is not None and one.usd_high > max_usd:
        over = one.usd_high - max_usd
        message = f"likely up to {dollars(one.usd_high)}, {dollars(over)} more than --max-usd {max_usd}"
        found.append(_Exceeded(message, float(over / max_usd) if max_usd else math.inf, "raise --max-usd"))
    if free_usd is not None and one.ceiling_usd and one.usd > free_usd:
        over = one.usd - free_usd
        message = f"{dollars(over)} more than the {dollars(free_usd)} that the budget leaves"
        found.append(_Exceeded(message, float(over / free_usd) if free_usd > 0 else math.inf, "raise --budget"))
    if max_hours is not None and hours is None:
        found.append(_Exceeded("its duration is unknown", math.inf, "drop --max-hours"))
    elif max_hours is not None and hours is not None and hours > max_hours:
        message = f"up to {hours:.3g} h, {hours - max_hours:.3g} h more than --max-hours {max_hours:g}"
        found.append(
            _Exceeded(message, (hours - max_hours) / max_hours if max_hours else math.inf, "raise --max-hours")
        )
    if local_only and offer.leaves_machine != "nothing":
        found.append(_Exceeded(f"it would send to another machine: {offer.leaves_machine}", math.inf, _LOCAL))
    return found


def _nearest(judged: Sequence[tuple[Offer, list[_Exceeded]]]) -> str:
    """That nothing fits, and what comes nearest."""
    near, exceeded = min(judged, key=lambda pair: (max(one.by for one in pair[1]), len(pair[1]), _rank(pair[0])))
    assert near.estimate is not None
    advice = " and ".join(one.advice for one in exceeded)
    fewer = "" if any(one.advice == _LOCAL for one in exceeded) else ", or grade fewer rows with --limit"
    return (
        f"no grader fits. The closest is {near.grader}, {dollars(near.estimate.usd)} expected: "
        f"{', and '.join(one.message for one in exceeded)}; {advice}{fewer}"
    )


def _no_candidate(candidates: Sequence[Offer]) -> str:
    """That there is nothing to choose from, why each candidate is impossible here, and how to make one."""
    reasons = "".join(f" {o.grader}: {(o.why_not or '').partition(chr(10))[0].rstrip('.:')}." for o in candidates)
    return (
        f"no grader to choose from.{reasons} Give one: --grader llama_cpp:PATH.gguf (an open model, on this machine), "
        "list yours in ALPASIFT_GRADERS, or check form only with --grader rules; `alpasift doctor` lists "
        "what is missing"
    )
