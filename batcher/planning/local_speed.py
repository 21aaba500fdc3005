"""How long a local model will take: as it has taken here before, else predicted from its size and this machine.

    a past run    rows / (its rows/s), times how long the rows are beside those of that run
    predicted     2 x parameters x tokens / rate       2 operations a parameter and token, arXiv 2001.08361, section 2.1
                  tokens = the fixed text once, and of each row its own and its answer's
                  rate   = cores x 20 to 60 GFLOP/s, or the card's 16-bit rate x 0.2 to 0.5

One core of a shared EPYC with AVX2 did 23 to 28 GFLOP/s in Q4_1 with llama.cpp; desktop cores are faster. The shares of
a card are assumed. Starting the engine is not counted, and a mixture of experts is counted with all its weights. Opens
no model and writes nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from alpasift.batcher.engine.history import LEAST_ANSWERS
from alpasift.batcher.engine.progress import rate_text
from alpasift.batcher.engine.setups import setup_of
from alpasift.batcher.engine.task import Task
from alpasift.batcher.store import Store
from alpasift.graders import Backend, Estimate, HasModelSize, ModelSize
from alpasift.graders.local.work import CHARACTERS_PER_TOKEN

CORE_FLOPS = (20e9, 35e9, 60e9)
"""Operations a second of a core, lowest, usual and highest."""
CARD_SHARES = (0.2, 0.35, 0.5)
"""Of a card's 16-bit rate, likewise."""


def with_local_time(estimate: Estimate, store: Store | None, task: Task, backend: Backend) -> Estimate:
    """The estimate with the seconds of a local model, and a note of where they are from; of any other as it is."""
    if not isinstance(backend, HasModelSize) or not estimate.requests:
        return estimate
    past = _past_rates(store, task, backend, backend.size) if store is not None else []
    return _measured(estimate, past) if past else _predicted(estimate, backend.size)


def _past_rates(store: Store, task: Task, backend: Backend, size: ModelSize) -> list[dict[str, Any]]:
    """The runs to go by, at most three: those asked in this very way, else by another rubric in the same way."""
    setup = setup_of(task, backend)
    found = store.query(
        "past_rates",
        setup_id=setup.setup_id,
        task=task.name,
        decoding=setup.decoding,
        weights=size.weights,
        machine=size.machine,
        least=LEAST_ANSWERS,
    )
    return [row for row in found if row["same_setup"] == found[0]["same_setup"]]


def _measured(estimate: Estimate, past: list[dict[str, Any]]) -> Estimate:
    seconds = [estimate.requests / row["rows_per_second"] * _relative_length(estimate, row) for row in past]
    newest, longer = past[0], _relative_length(estimate, past[0])
    how = "" if newest["same_setup"] else ", by another rubric"
    if not 0.9 <= longer <= 1.1:
        how += f"; a row takes {longer:.2g} times as long as there, by its length"
    note = f"time from the run of {newest['started_at']:%Y-%m-%d %H:%M}: {rate_text(newest['rows_per_second'])}{how}"
    several = len(seconds) > 1
    return replace(
        estimate,
        seconds=seconds[0],
        seconds_low=min(seconds) if several else None,
        seconds_high=max(seconds) if several else None,
        seconds_from="measured",
        notes=(*estimate.notes, note),
    )


def _relative_length(estimate: Estimate, row: dict[str, Any]) -> float:
    """Work of a row now beside that of a row then: its text, and what every row has besides it."""
    if not estimate.own_tokens or not estimate.row_characters or not row["row_characters"]:
        return 1.0
    now = estimate.row_characters / estimate.requests
    all_of_it = (estimate.own_tokens + estimate.output_tokens) * CHARACTERS_PER_TOKEN / estimate.requests
    return float(all_of_it / (row["row_characters"] + max(0.0, all_of_it - now)))


def _predicted(estimate: Estimate, size: ModelSize) -> Estimate:
    """By the size; as it is where the speed of the card is not known."""
    rates, where = _rates(size)
    if rates is None:
        return replace(estimate, notes=(*estimate.notes, f"time unknown: {where}"))
    own = estimate.input_tokens if estimate.own_tokens is None else estimate.own_tokens
    fixed = max(0, estimate.input_tokens - own) / estimate.requests
    work = 2 * size.parameters * (fixed + own + estimate.output_tokens)
    slow, usual, fast = (work / rate for rate in rates)
    note = (
        f"time predicted, not measured: {_count(size.parameters)} parameters on {where}; a first run here measures it"
    )
    return replace(
        estimate,
        seconds=usual,
        seconds_low=fast,
        seconds_high=slow,
        seconds_from="predicted",
        notes=(*estimate.notes, note),
    )


def _rates(size: ModelSize) -> tuple[tuple[float, ...] | None, str]:
    """Operations a second, lowest first, and of what; None and why where that is not known."""
    if not size.cards:
        return tuple(size.cores * flops for flops in CORE_FLOPS), size.machine
    from alpasift.train.fit.cards import NoCard, found_card

    try:
        card = found_card()
    except NoCard as error:
        return None, str(error)
    if card.flops is None:
        return None, f"nothing is known of the speed of {card.label}"
    return tuple(size.cards * card.flops * share for share in CARD_SHARES), f"{size.cards} x {card.label}"


def _count(parameters: int) -> str:
    """135M, 8.0B."""
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.3g}M"
