"""What each grader would cost and take for these rows, which one to take, and what a small sample says of the whole.

Knows offers, what past runs teach about them, and the arithmetic of samples; sends nothing and writes nothing. `auto`
looks only at graders the user has named, on the command line or in ALPASIFT_GRADERS (specs separated by commas), and at
the API's usual models where a key and a budget are there; it takes the cheapest that fits, and never `rules` or `fake`:
the first judges form only, the second nothing at all.

    Estimate of the backend  --(ratios of past runs)-->  Offer  --(limits)-->  Choice

A run keeps the backend's own estimate, never the corrected one, so that the ratio of actual to predicted does not feed
on itself. Shares have the interval of Wilson (1927), means two standard errors; neither is ever told as exact.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from importlib import import_module
from statistics import stdev
from typing import Any, NamedTuple

from batcher.ledger import show_usd
from batcher.questions import Task, pending, setup_of
from batcher.store import Store
from graders import AlpaSiftError, Backend, BackendError, BackendUnavailable, Estimate, open_backend
from graders.prices import QUANTUM, Price, PriceError, UsageError, age_warning, charge, price_of
from graders.tokens import tokenizer_for

NEVER_AUTO = ("rules", "fake")
USUAL = ("openai_batch:gpt-4.1-nano", "openai_batch:gpt-4o-mini")
"""Shown where nobody has named a grader: what an API costs is known before one has its key."""
LEAST_ANSWERS = 20
"""A past run with fewer answers teaches nothing."""
TIGHTEST = 0.02
"""No estimate is told as closer than this share of itself, however many answers stand behind it."""
Z95 = 1.959964
"""The standard normal deviate of a two-sided 95 % interval."""


# -- offers -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Learned:
    """How a grader's estimates have turned out: actual / predicted over past runs, weighted by their answers.

    own_rubric  whether those runs were by the very rubric; if not, by any
    spread      standard deviation of one answer's cost, in means
    between     standard deviation of the runs' ratios of dollars, in their mean; 0 for a single run
    """

    answers: int
    runs: int
    usd: float
    input_tokens: float
    output_tokens: float
    spread: float
    between: float
    own_rubric: bool = True

    def __str__(self) -> str:
        whose = "" if self.own_rubric else " by other rubrics"
        return (
            f"corrected by {self.answers:,} past answers{whose}: {self.usd:.2f} times the estimate in dollars, "
            f"{self.input_tokens:.2f} in input tokens, {self.output_tokens:.2f} in output tokens"
        )


@dataclass(frozen=True, slots=True)
class Offer:
    """One grader's offer for the rows of a dataset that it has not answered yet.

    why_not  why it cannot work here; there may be an estimate all the same, for want of a key only
    raw      the backend's own estimate; `estimate` is that, corrected by what was `learned`
    """

    grader: str
    rubric: str
    estimate: Estimate | None
    already: int
    leaves_machine: str
    calibrated: bool
    why_not: str | None = None
    raw: Estimate | None = None
    learned: Learned | None = None
    notes: tuple[str, ...] = ()

    @property
    def possible(self) -> bool:
        return self.estimate is not None and self.why_not is None

    @property
    def worst_hours(self) -> float | None:
        """Hours in the worst case known, None where nothing is known."""
        if self.estimate is None:
            return None
        worst = self.estimate.seconds if self.estimate.seconds_high is None else self.estimate.seconds_high
        return None if worst is None else worst / 3600


def named_graders(named: Sequence[str] = ()) -> list[str]:
    """The specs a user has named here or set up in ALPASIFT_GRADERS, in that order, each once."""
    set_up = [s.strip() for s in os.environ.get("ALPASIFT_GRADERS", "").split(",")]
    return list(dict.fromkeys(s for s in [*named, *set_up] if s))


def kind(spec: str) -> str:
    """The backend of a spec: "llama_cpp" of "llama_cpp:model.gguf"."""
    return spec.partition(":")[0].strip()


def offer(
    store: Store,
    version_id: str,
    rubric: str,
    task_of: Callable[[Backend], Task],
    spec: str,
    options: Mapping[str, Any] | None = None,
    *,
    history: Store | None = None,
) -> Offer:
    """The offer of one grader by the rubric of that name; a grader that cannot work here makes one that says why.

    `task_of` gives the task as this backend can answer it, or raises BackendUnavailable. `history` is the database whose past runs correct the estimate; None for none.
    """
    try:
        backend = open_backend(spec, options)
    except AlpaSiftError as error:
        return Offer(spec, rubric, None, 0, "", False, str(error))
    try:
        refusal = backend.refuses(rubric)
        if refusal:
            return Offer(spec, rubric, None, 0, backend.leaves_machine, False, refusal)
        return _offer_of(store, version_id, task_of(backend), spec, backend, history)
    except BackendUnavailable as error:
        return Offer(spec, rubric, None, 0, backend.leaves_machine, False, str(error))
    finally:
        backend.close()


def _offer_of(store: Store, version_id: str, task: Task, spec: str, backend: Backend, history: Store | None) -> Offer:
    empty = Offer(spec, task.rubric.name, None, 0, backend.leaves_machine, False)
    questions, already = pending(store, task, backend, version_id)
    try:
        raw = backend.estimate(questions)
    except (BackendError, PriceError) as error:
        return replace(empty, already=already, why_not=str(error))
    learned = learned_of(history, task, backend) if history is not None and raw.requests else None
    notes = dict.fromkeys([*raw.notes, *_price_notes(backend), *([str(learned)] if learned else [])])
    return replace(
        empty, calibrated=_is_calibrated(history or store, task, backend), estimate=corrected(raw, learned), already=already, raw=raw, learned=learned, notes=tuple(notes),
        why_not=_lacks_key(spec, backend),
    )  # fmt: skip


def _is_calibrated(store: Store, task: Task, backend: Backend) -> bool:
    """Whether the newest calibration of this very grader and rubric claims something."""
    setup = setup_of(task, backend)
    found = store.query(
        "calibrations", grader_id=setup.grader_id, rubric_id=setup.rubric_id, scored=None, grader_name=None,
        rubric_name=None,
    )  # fmt: skip
    return bool(found) and found[0]["verdict"] == "calibrated"


def _lacks_key(spec: str, backend: Backend) -> str | None:
    """What is missing here to reach a grader on another machine. Its price is worth knowing all the same."""
    if backend.leaves_machine == "nothing":
        return None
    lacks = getattr(import_module(f"graders.{kind(spec)}"), "lacks", None)
    missing: str | None = lacks() if lacks is not None else None
    return missing


def unasked(one: Offer, free_usd: Decimal | None) -> Offer | None:
    """An offer of a grader that nobody has named: None without a price, and not to be taken without a budget."""
    if one.estimate is None:
        return None
    if one.possible and free_usd is None:
        return replace(one, why_not="no budget is set; --budget 5 sets one (dollars, for all this database's life)")
    return one


def listed_prices(backend: Backend) -> dict[str, Price]:
    """What a model at a host costs by "batch" and by "calls", as far as listed; empty for a grader that is neither."""
    model, host = backend.fingerprint.get("model"), backend.fingerprint.get("host")
    found: dict[str, Price] = {}
    if backend.paid and model and host:
        for way in ("batch", "calls"):
            with contextlib.suppress(PriceError):
                overrides = getattr(backend, "prices", None)
                found[way] = price_of(model, host=host, batch=way == "batch", overrides=overrides)
    return found


def _price_notes(backend: Backend) -> list[str]:
    """Where the price is from, whether it is old, and how tokens were counted, for a model at a host."""
    price = listed_prices(backend).get("batch" if backend.facts.get("by") == "batch" else "calls")
    if price is None:
        return []
    model, host = backend.fingerprint["model"], backend.fingerprint["host"]
    old = age_warning(price, datetime.now(UTC).date(), model)
    dated = f" of {price.dated}" if price.dated else ""
    return [tokenizer_for(model, host).how, f"price{dated} from {price.source}", *([old] if old else [])]


# -- what past runs teach -----------------------------------------------------------------------------------------


def learned_of(store: Store, task: Task, backend: Backend) -> Learned | None:
    """What the runs of this database teach about a grader's estimates: those by this rubric, else by any; None for none."""
    rubric_id = setup_of(task, backend).rubric_id
    return learn(store.query("past_predictions", grader=backend.name, rubric_id=rubric_id, least=LEAST_ANSWERS))


def learn(runs: Sequence[Mapping[str, Any]]) -> Learned | None:
    """The ratios of some past runs (rows of sql/queries/past_predictions.sql), weighted by their answers."""
    own = [run for run in runs if run["same_rubric"]]
    used = own or list(runs)
    if not used:
        return None

    def mean(name: str) -> float:
        known = [(run["answers"], run[name]) for run in used if run[name] is not None]
        return sum(n * x for n, x in known) / sum(n for n, _ in known) if known else 1.0

    answers = sum(run["answers"] for run in used)
    usd = mean("usd_ratio")
    relative = [(run["answers"], run["answer_usd_sd"] / run["answer_usd"]) for run in used if run["answer_usd"]]
    spread = math.sqrt(sum(n * x * x for n, x in relative) / sum(n for n, _ in relative)) if relative else 0.0
    ratios = [(run["answers"], run["usd_ratio"]) for run in used if run["usd_ratio"] is not None]
    between = 0.0
    if len(ratios) > 1 and usd:
        variance = sum(n * (x - usd) ** 2 for n, x in ratios) / sum(n for n, _ in ratios)
        between = math.sqrt(variance * len(ratios) / (len(ratios) - 1)) / usd
    return Learned(
        answers, len(used), usd, mean("input_ratio"), mean("output_ratio"), spread, between, own_rubric=bool(own)
    )


def margin(spread: float, answers: int, rows: int, between: float = 0.0) -> float:
    """How far the total cost of `rows` rows may be off, as a share of it, when the mean is that of `answers` others.

    Two standard errors of the difference of two means, 2 * spread * sqrt(1/answers + 1/rows), plus what runs differ by
    among themselves; never below TIGHTEST. `spread` is the standard deviation of one row's cost, in means.
    """
    return max(TIGHTEST, 2 * spread * math.sqrt(1 / answers + 1 / max(rows, 1)) + between)


def corrected(raw: Estimate, learned: Learned | None) -> Estimate:
    """An estimate put right by what past runs teach. The ceiling stays: it is what is reserved, whatever was learned."""
    if learned is None or not raw.requests:
        return raw
    off = _decimal(margin(learned.spread, learned.answers, raw.requests, learned.between))
    ratio = _decimal(learned.usd)
    usd = (raw.usd * ratio).quantize(QUANTUM)
    return replace(
        raw,
        usd=usd,
        usd_low=max(Decimal(0), usd * (1 - off)).quantize(QUANTUM),
        usd_high=max(usd, min(raw.ceiling_usd, usd * (1 + off))).quantize(QUANTUM),
        sync_usd=None if raw.sync_usd is None else (raw.sync_usd * ratio).quantize(QUANTUM),
        input_tokens=round(raw.input_tokens * learned.input_tokens),
        output_tokens=round(raw.output_tokens * learned.output_tokens),
    )


def _decimal(number: float) -> Decimal:
    return Decimal(f"{number:.9f}")


# -- the choice ---------------------------------------------------------------------------------------------------


def dollars(usd: Decimal) -> str:
    """Dollars for a person who compares: cents from ten dollars on, four decimals below."""
    return show_usd(usd, 2 if usd >= 10 or not usd else 4)


class Choice(NamedTuple):
    """The offer that was taken, and the reason in a sentence."""

    offer: Offer
    why: str


@dataclass(frozen=True, slots=True)
class _Short:
    """What an offer is short of: in words, and how far it is off, as a share of the limit."""

    says: str
    by: float


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
    judged = [(o, _short(o, max_hours, max_usd, local_only, free_usd)) for o in candidates if o.possible]
    fitting = [o for o, short in judged if not short]
    if not fitting:
        raise BackendUnavailable(_nobody(candidates, judged))
    best = min(fitting, key=_rank)
    assert best.estimate is not None
    one = best.estimate
    others = f" of {len(fitting)} that fit" if len(fitting) > 1 else ", the only one that fits"
    said = [f"{best.grader}: {dollars(one.usd)} is the cheapest{others}"]
    if one.ceiling_usd:
        said.append(f"up to {dollars(one.usd_high)} is likely and {dollars(one.ceiling_usd)} the most it can cost")
        if free_usd is None:
            said.append("a budget has to be set with --budget")
        elif one.ceiling_usd > free_usd:
            said.append(f"{dollars(free_usd)} is free: it would stop there")
    said.append("calibrated against a reference" if best.calibrated else "never calibrated against a reference")
    return Choice(best, "; ".join(said))


def _rank(offer: Offer) -> tuple[Decimal, float, str]:
    hours = offer.worst_hours
    return (offer.estimate.usd if offer.estimate else Decimal(0), math.inf if hours is None else hours, offer.grader)


def _short(
    offer: Offer, max_hours: float | None, max_usd: Decimal | None, local_only: bool, free_usd: Decimal | None
) -> list[_Short]:
    """All that an offer is short of under these limits; nothing where it fits."""
    found: list[_Short] = []
    one, hours = offer.estimate, offer.worst_hours
    assert one is not None
    if max_usd is not None and one.usd_high > max_usd:
        over = one.usd_high - max_usd
        says = f"likely up to {dollars(one.usd_high)}, {dollars(over)} more than --max-usd {max_usd}"
        found.append(_Short(says, float(over / max_usd) if max_usd else math.inf))
    if free_usd is not None and one.ceiling_usd and one.usd > free_usd:
        over = one.usd - free_usd
        says = f"{dollars(over)} more than the {dollars(free_usd)} that the budget leaves"
        found.append(_Short(says, float(over / free_usd) if free_usd > 0 else math.inf))
    if max_hours is not None and hours is None:
        found.append(_Short("nobody knows how long it takes", math.inf))
    elif max_hours is not None and hours is not None and hours > max_hours:
        says = f"up to {hours:.3g} h, {hours - max_hours:.3g} h more than --max-hours {max_hours:g}"
        found.append(_Short(says, (hours - max_hours) / max_hours if max_hours else math.inf))
    if local_only and offer.leaves_machine != "nothing":
        found.append(_Short(f"what would leave this machine: {offer.leaves_machine}", math.inf))
    return found


def _nobody(candidates: Sequence[Offer], judged: Sequence[tuple[Offer, list[_Short]]]) -> str:
    if judged:
        near, short = min(judged, key=lambda pair: (max(s.by for s in pair[1]), len(pair[1]), _rank(pair[0])))
        assert near.estimate is not None
        return (
            f"no grader fits. The nearest is {near.grader}, {dollars(near.estimate.usd)} expected: "
            f"{', and '.join(s.says for s in short)}; raise the limit, or take fewer rows with --limit"
        )
    reasons = "".join(f" {o.grader}: {(o.why_not or '').partition(chr(10))[0].rstrip('.:')}." for o in candidates)
    return (
        "no grader to choose from."
        + reasons
        + " Name one: --grader llama_cpp:PATH.gguf (an open model, on this machine), "
        "set ALPASIFT_GRADERS to the ones you have, or check form only with --grader rules; `alpasift doctor` tells what is missing"
    )


# -- a sample, and what it says of the whole ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class UsdInterval:
    """Dollars, and how low and how high they may well turn out."""

    usd: Decimal
    usd_low: Decimal
    usd_high: Decimal


class Sample(NamedTuple):
    """The positions of the rows that were drawn, and of how many distinct rows."""

    positions: list[int]
    rows: int


@dataclass(frozen=True, slots=True)
class Sampled:
    """One row of a sample: its grade and what asking about it has cost.

    reason          why there is no score; not_graded where nobody has answered yet
    usages          what each answer says it took
    unresolved_usd  what may still come to `usd`
    """

    position: int
    score: Decimal | None
    reason: str | None
    usd: Decimal = Decimal(0)
    unresolved_usd: Decimal = Decimal(0)
    usages: tuple[Mapping[str, Any], ...] = ()

    @property
    def answered(self) -> bool:
        """Whether a grader has answered, readably or not. A call that failed is no answer and will be made again."""
        return self.score is not None or self.reason not in ("not_graded", "backend_error")


@dataclass(frozen=True, slots=True)
class Projection:
    """What a sample says of the whole: of `rows` rows `sample` were drawn and `answered` have an answer.

    share      the part of all rows that is kept, with Wilson's interval
    kept_rows  the same as rows of the whole, whole numbers: never fewer than were found, nor more than are left
    """

    rows: int
    sample: int
    answered: int
    kept: int
    unread: int
    share: Interval
    kept_rows: Interval


def draw(examples: Iterable[tuple[int, str]], count: int, seed: int) -> list[int]:
    """The positions of `count` of these (position, example_id) pairs, drawn uniformly without replacement; ascending.

    The pairs whose draws are the smallest, a draw being md5("probe SEED EXAMPLE_ID 1") as in `batcher.select`: the same
    on every machine, in any order of the file, and the sample of a smaller count lies inside that of a larger one.
    """

    def drawn(pair: tuple[int, str]) -> str:
        return hashlib.md5(f"probe {seed} {pair[1]} 1".encode(), usedforsecurity=False).hexdigest()

    return sorted(position for position, _ in sorted(examples, key=drawn)[:count])


def draw_rows(store: Store, version_id: str, count: int, seed: int) -> Sample:
    """A sample of the distinct rows of a dataset version."""
    rows = store.query("distinct_rows", version_id=version_id)
    return Sample(draw([(row["position"], row["example_id"]) for row in rows], count, seed), len(rows))


def sampled_rows(store: Store, task: Task, backend: Backend, version_id: str, sample: Sample) -> list[Sampled]:
    """The rows of a sample as a grader has graded them by a task's rubric so far."""
    setup = setup_of(task, backend)
    found = store.query(
        "sampled", version_id=version_id, grader_id=setup.grader_id, rubric_id=setup.rubric_id, positions=sample.positions
    )  # fmt: skip
    return [Sampled(**{**row, "usages": tuple(json.loads(text) for text in row["usages"])}) for row in found]


def wilson(hits: int, of: int, population: int | None = None) -> Interval:
    """The share of hits with its 95 % score interval. Source: Wilson 1927, JASA 22:209-212.

        (p + z^2/2n -+ z * sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)

    Drawn without replacement from a `population`, `of` counts as of * (population - 1) / (population - of), which is the
    finite population correction of the variance: when all of it was drawn, the share is what it is.
    """
    if not 0 <= hits <= of:
        raise ValueError(f"{hits} hits of {of}")
    if of == 0:
        return Interval(0.0, 0.0, 1.0)
    share = hits / of
    if population is not None and population <= of:
        return Interval(share, share, share)
    n = float(of) if population is None else of * (population - 1) / (population - of)
    centre = share + Z95 * Z95 / (2 * n)
    reach = Z95 * math.sqrt(share * (1 - share) / n + Z95 * Z95 / (4 * n * n))
    low, high = (centre - reach) / (1 + Z95 * Z95 / n), (centre + reach) / (1 + Z95 * Z95 / n)
    return Interval(share, 0.0 if hits == 0 else low, 1.0 if hits == of else high)


def project(sampled: Sequence[Sampled], rows: int, threshold: Decimal) -> Projection:
    """What the answered rows of a uniform sample say of the `rows` distinct rows of the whole, at a threshold.

    A row whose answer could not be read is not kept, in the sample as in the whole.
    """
    answered = [one for one in sampled if one.answered]
    kept = sum(one.score is not None and one.score >= threshold for one in answered)
    unread = sum(one.score is None for one in answered)
    share = wilson(kept, len(answered), rows)
    low = max(kept, math.floor(share.low * rows + 1e-9))
    high = min(rows - (len(answered) - kept), math.ceil(share.high * rows - 1e-9))
    kept_rows = Interval(round(share.value * rows), low, high)
    return Projection(rows, len(sampled), len(answered), kept, unread, share, kept_rows)


def histogram(sampled: Sequence[Sampled]) -> list[dict[str, Any]]:
    """The scores of a sample, highest first, then the reasons for there being none: columns of sql/queries/scores.sql."""
    asked = sum(one.reason != "not_graded" for one in sampled)
    counted: list[dict[str, Any]] = []
    so_far = 0
    for score in sorted({one.score for one in sampled if one.score is not None}, reverse=True):
        for reason in sorted({one.reason for one in sampled if one.score == score}, key=str):
            found = sum(one.score == score and one.reason == reason for one in sampled)
            so_far += found
            counted.append({"score": score, "reason": reason, "rows": found})
        for row in counted:
            if row["score"] == score:
                row["cumulative_share"] = so_far / asked
    for reason in sorted({str(one.reason) for one in sampled if one.score is None}):
        found = sum(one.score is None and str(one.reason) == reason for one in sampled)
        counted.append({"score": None, "reason": reason, "rows": found, "cumulative_share": None})
    return counted


def costs_of(sampled: Sequence[Sampled], price: Price | None = None) -> list[Decimal]:
    """What each answered row of a sample has cost or, at a price, would cost. Rows whose cost is not known are left out."""
    found: list[Decimal] = []
    for one in sampled:
        if not one.answered or one.unresolved_usd:
            continue
        if price is None:
            found.append(one.usd)
            continue
        with contextlib.suppress(UsageError):
            found.append(sum((charge(price, usage) for usage in one.usages), Decimal(0)))
    return found


def project_usd(costs: Sequence[Decimal], rows: int) -> UsdInterval | None:
    """What `rows` further rows should cost, from the costs of a sample: mean times rows, with the interval of `margin`.

    None where there is nothing to go by; a single row says nothing of the spread, so its interval is from 0 to twice.
    """
    if not costs:
        return None
    total = sum(costs, Decimal(0))
    mean = total / len(costs)
    if rows == 0 or not total:
        return UsdInterval(Decimal(0), Decimal(0), Decimal(0))
    spread = float(stdev(costs) / mean) if len(costs) > 1 else math.inf
    off = _decimal(min(1.0, margin(spread, len(costs), rows)))
    usd = mean * rows
    return UsdInterval(*(amount.quantize(QUANTUM) for amount in (usd, usd * (1 - off), usd * (1 + off))))


@dataclass(frozen=True, slots=True)
class Findings:
    """What a probe found. `left` rows of the whole are still to be asked about.

    usd    spent by the probe's run
    to_go  what the rows that are left should cost, by the way of asking: "batch", "calls", or "as asked"; empty when free
    way    the way that was meant, None when free
    """

    projection: Projection
    histogram: list[dict[str, Any]]
    threshold: Decimal
    left: int
    usd: Decimal
    to_go: dict[str, UsdInterval]
    way: str | None

    @property
    def whole_usd(self) -> Decimal | None:
        """The probe and the rows that are left, the way that was meant; None where no cost is known to go by."""
        return self.usd + self.to_go[self.way].usd if self.way in self.to_go else None


def findings(
    store: Store, task: Task, backend: Backend, version_id: str, run_id: str, sample: Sample, meant: str
) -> Findings:
    """What a probe's sample says of the whole, whoever paid for its grades and when. Writes nothing.

    Where the model has a price by "batch" and one by "calls", what the answers took is priced both ways; `meant` is the
    way in which the rest would be asked.
    """
    sampled = sampled_rows(store, task, backend, version_id, sample)
    left = len(pending(store, task, backend, version_id)[0])
    prices: dict[str, Price | None] = dict(listed_prices(backend))
    if backend.paid and not prices:
        prices = {"as asked": None}
    projected = {way: project_usd(costs_of(sampled, price), left) for way, price in prices.items()}
    to_go = {way: usd for way, usd in projected.items() if usd is not None}
    way = meant if meant in to_go else next(iter(to_go), None)
    usd = store.query("run_spent", run_id=run_id)[0]["spent_usd"]
    threshold = task.rubric.threshold
    return Findings(project(sampled, sample.rows, threshold), histogram(sampled), threshold, left, usd, to_go, way)
