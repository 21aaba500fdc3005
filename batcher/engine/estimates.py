"""What the questions of a run should take, counted on a sample where they are many, and whether the budget holds it."""

from __future__ import annotations

from array import array
from dataclasses import replace
from decimal import Decimal

from alpasift.batcher.engine.questions import Questions
from alpasift.batcher.money import ledger
from alpasift.batcher.money.dollars import show_usd
from alpasift.batcher.store import Store
from alpasift.graders import Backend, BudgetExceeded, Estimate

SAMPLED_FROM = 5000
SAMPLE_ROWS = 2500
"""Above so many questions an estimate is counted on so many of them."""


def estimate(backend: Backend, questions: Questions) -> Estimate:
    """What the questions should take. Sends nothing.

    Of a great many a sample spread evenly over them is counted: no reservation rests on this figure, each counts its
    own lines.
    """
    count = len(questions)
    if count <= SAMPLED_FROM or not backend.paid:
        return backend.estimate(questions)
    every = count / SAMPLE_ROWS
    sample = array("q", (questions.numbers[int(i * every)] for i in range(SAMPLE_ROWS)))
    return _scaled(backend.estimate(questions.some(sample)), count)


def _scaled(sample: Estimate, count: int) -> Estimate:
    """The estimate of all from that of some. Two per cent are added on either side for what was not counted."""
    share = Decimal(count) / sample.requests
    note = f"estimated from {sample.requests:,} of the {count:,} rows; each reservation is computed from its own rows"

    def seconds(value: float | None) -> float | None:
        return None if value is None else value * float(share)

    return replace(
        sample,
        requests=count,
        usd=sample.usd * share,
        usd_low=sample.usd_low * share * Decimal("0.98"),
        usd_high=sample.usd_high * share * Decimal("1.02"),
        ceiling_usd=sample.ceiling_usd * share * Decimal("1.02"),
        seconds=seconds(sample.seconds),
        seconds_low=seconds(sample.seconds_low),
        seconds_high=seconds(sample.seconds_high),
        sync_usd=None if sample.sync_usd is None else sample.sync_usd * share,
        input_tokens=int(sample.input_tokens * share),
        output_tokens=int(sample.output_tokens * share),
        rounds=None if sample.rounds is None else max(1, round(sample.rounds * share)),
        notes=(*sample.notes, note),
    )


def check_affordable(
    store: Store, estimate: Estimate, budget: Decimal | None, run_budget: Decimal | None, samples: int = 1
) -> None:
    """Raise BudgetExceeded when the expected cost is more than is free. `budget` is the cap that the run is to set,
    `samples` how many requests a row takes."""
    with store.reader() as con:
        now = ledger.balance(con)
    cap = budget if budget is not None else now.budget
    free = (cap or Decimal(0)) - now.committed
    free = free if run_budget is None else min(free, run_budget)
    if estimate.usd <= free:
        return
    capped = run_budget is not None and free == run_budget
    problem, advice = over_budget(estimate, free, samples, "--run-budget" if capped else "--budget")
    raise BudgetExceeded(f"{problem}; nothing was sent. {advice}")


def over_budget(estimate: Estimate, free: Decimal, samples: int = 1, option: str = "--budget") -> tuple[str, str]:
    """That an estimate is more than what is free; and what helps: how many rows fit, the option that raises the cap.

    A row takes `samples` requests.
    """
    rows = -(-estimate.requests // samples)
    each = estimate.usd / estimate.requests * samples
    fits = int(max(free, Decimal(0)) / each) if each else rows
    advice = f"--limit {fits} grades what fits, or" if fits else "No row fits the budget;"
    problem = f"{rows:,} rows should cost {show_usd(estimate.usd)} and {show_usd(free)} is free"
    return problem, f"{advice} raise {option}"
