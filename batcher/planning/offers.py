"""What each backend would cost and take for the questions of a task that it has not answered yet.

Knows backends, their estimates and prices; sends nothing and writes nothing. Call `offer` for each; `choice.choose`
takes one of them.

    Estimate of the backend  --(history: ratios of past runs)-->  Offer  --(choice: limits)-->  Choice
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from alpasift.batcher.engine.history import Correction, corrected, correction_for, recall_queue_limit
from alpasift.batcher.engine.questions import pending
from alpasift.batcher.engine.setups import setup_of
from alpasift.batcher.engine.task import Task
from alpasift.batcher.planning.local_speed import with_local_time
from alpasift.batcher.store import Store
from alpasift.graders import (
    AlpaSiftError,
    Backend,
    BackendError,
    BackendUnavailable,
    Estimate,
    HasPriceFile,
    backend_kind,
    open_backend,
)
from alpasift.graders.api.price_lookup import age_warning, price_of
from alpasift.graders.api.prices import Price, PriceError
from alpasift.graders.api.tokens import tokenizer_for

USUAL = ("openai_batch:gpt-4.1-nano", "openai_batch:gpt-4o-mini")
"""Shown where no grader is named: what an API costs is known before one has its key."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a backend would cost and take for the questions of a task that it has not answered yet.

    grader       the backend's spec; rubric: the name of the rubric, or of what else the task asks by
    already      rows that are answered, or given up; `in_flight` those that are with a batch
    rows         how many are to be asked about, by `samples` requests each
    calibrated   whether its newest calibration by this rubric offers a threshold
    audited      what its newest audit by this rubric has shown, in a few words; None without one
    why_not      why it cannot work here; there may be an estimate all the same, where only a key is missing
    raw          the backend's own estimate; `estimate` is that with the `correction` of past runs
    """

    grader: str
    rubric: str
    estimate: Estimate | None
    already: int
    leaves_machine: str
    calibrated: bool
    why_not: str | None = None
    raw: Estimate | None = None
    correction: Correction | None = None
    notes: tuple[str, ...] = ()
    audited: str | None = None
    in_flight: int = 0
    rows: int = 0
    samples: int = 1

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


def offer(
    store: Store,
    version_id: str,
    rubric: str,
    task_of: Callable[[Backend], Task],
    spec: str,
    options: Mapping[str, Any] | None = None,
    *,
    history: Store | None = None,
    rows: int | None = None,
) -> Offer:
    """The offer of the backend of a spec; one that cannot work here makes an offer that says why.

    `task_of` gives the task as this backend can answer it, or raises BackendUnavailable; `rubric` is the name of what
    it asks by. `rows` is how many rows it is asked about at most. `history` is the database whose past runs correct
    the estimate; None for none.
    """
    try:
        backend = open_backend(spec, options)
    except AlpaSiftError as error:
        return Offer(spec, rubric, None, 0, "", False, str(error))
    try:
        return _offer_of(store, version_id, task_of(backend), spec, backend, history, rows)
    except BackendUnavailable as error:
        return Offer(spec, rubric, None, 0, backend.leaves_machine, False, str(error))
    finally:
        backend.close()


def _offer_of(
    store: Store, version_id: str, task: Task, spec: str, backend: Backend, history: Store | None, limit: int | None
) -> Offer:
    from alpasift.batcher.grading.audit_store import audited
    from alpasift.batcher.grading.calibrate import is_calibrated  # a command that names its grader makes no offer

    empty = Offer(spec, task.identity.name, None, 0, backend.leaves_machine, False)
    found = pending(store, task, backend, version_id)
    questions = found.questions
    done = (found.already - found.in_flight) // task.samples
    empty = replace(empty, already=done, in_flight=found.in_flight // task.samples, samples=task.samples)
    if limit is not None:
        questions = questions.first(limit)
    if history is not None:
        recall_queue_limit(history, task, backend)
    try:
        raw = backend.estimate(questions)
    except (BackendError, PriceError) as error:
        return replace(empty, why_not=str(error))
    raw = with_local_time(raw, history, task, backend)
    setup = setup_of(task, backend)
    correction = correction_for(history, task, backend) if history is not None and raw.requests else None
    notes = dict.fromkeys([*raw.notes, *_price_notes(backend), *([str(correction)] if correction else [])])
    return replace(
        empty,
        calibrated=is_calibrated(history or store, setup.grader_id, setup.rubric_id),
        audited=audited(history or store, setup.grader_id, setup.rubric_id),
        estimate=corrected(raw, correction),
        rows=questions.rows,
        raw=raw,
        correction=correction,
        notes=tuple(notes),
        why_not=_missing_for(spec, backend),
    )


def _missing_for(spec: str, backend: Backend) -> str | None:
    """What is missing here to reach a grader on another machine. Its price is worth knowing all the same."""
    if backend.leaves_machine == "nothing":
        return None
    return backend_kind(spec).missing_requirements()


def unnamed_offer(one: Offer, free_usd: Decimal | None) -> Offer | None:
    """The offer of a usual model that the user has not named: None without a price, and no choice without a budget."""
    if one.estimate is None:
        return None
    if one.possible and free_usd is None:
        return replace(
            one, why_not="no budget is set; --budget 5 sets one (dollars, a cap on the total of this database)"
        )
    return one


def listed_prices(backend: Backend) -> dict[str, Price]:
    """What a model at a host costs by "batch" and by "calls", as far as listed; empty for a grader that is neither."""
    model, host = backend.fingerprint.get("model"), backend.fingerprint.get("host")
    found: dict[str, Price] = {}
    if backend.paid and model and host:
        for way in ("batch", "calls"):
            with contextlib.suppress(PriceError):
                overrides = backend.prices if isinstance(backend, HasPriceFile) else None
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
