"""The graders that may grade a dataset: their offers, and the one that `auto` takes.

Knows which graders a person has named, and where; sends nothing. Call `offers_for` to compare, `grader_for` to open the
one that a person named or that `auto` chooses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from typing import Any

from alpasift.batcher.grading.open_grader import (
    OpenGrader,
    open_named,
    own_rubric,
    rubric_for,
    settings_for,
    spec_named,
)
from alpasift.batcher.money.ledger import balance
from alpasift.batcher.planning.choice import choose
from alpasift.batcher.planning.offers import USUAL, Offer, named_graders, offer, unnamed_offer
from alpasift.batcher.store import Store
from alpasift.batcher.tasks.grade import grade_for
from alpasift.graders.prompts.rubric import load_rubric


def offers_for(
    store: Store,
    version_id: str,
    named: Sequence[str],
    rubric: str | None = None,
    settings: Mapping[str, Any] | None = None,
    asking: Mapping[str, Any] | None = None,
    *,
    history: Store | None = None,
    free_usd: Decimal | None = None,
    rows: int | None = None,
) -> list[Offer]:
    """The offers of the named graders, of the API's usual models where none is named, and of `rules` and `fake`.

    `history` is the database whose past runs correct the estimates; `free_usd` what its budget leaves, None for no
    budget; `rows` how many rows are to be graded at most.
    """

    def one(spec: str) -> Offer:
        by = load_rubric(own_rubric(spec) or rubric_for(spec, rubric))
        spec = spec_named(history or store, spec).spec
        own = settings_for(spec, settings or {}, named=False)
        return offer(
            store,
            version_id,
            by.name,
            lambda backend: grade_for(by, backend, **(asking or {})),
            spec,
            own,
            history=history,
            rows=rows,
        )

    offers = [one(spec) for spec in named]
    if not named:
        usual = [unnamed_offer(one(spec), free_usd) for spec in USUAL]
        offers += [found for found in usual if found is not None]
    return offers + [one(spec) for spec in ("rules", "fake") if spec not in named]


@contextmanager
def grader_for(
    store: Store,
    version_id: str,
    spec: str,
    rubric: str | None = None,
    settings: Mapping[str, Any] | None = None,
    asking: Mapping[str, Any] | None = None,
    *,
    max_hours: float | None = None,
    budget: Decimal | None = None,
) -> Iterator[OpenGrader]:
    """The grader of a spec, `auto` resolved for these rows, closed at the end of the block.

    `auto` takes the cheapest that fits `max_hours` and the budget, the database's own where none is given. Raises
    BackendUnavailable when none fits, and what `open_grader` raises.
    """
    reason = None
    given = dict(settings or {})
    if spec.strip() == "auto":
        if budget is None:
            with store.reader() as con:
                budget = balance(con).free
        offers = offers_for(store, version_id, named_graders(), rubric, given, asking, history=store, free_usd=budget)
        chosen, reason = choose(offers, max_hours, free_usd=budget)
        spec = chosen.grader
        given = settings_for(spec, given, named=False)
    with open_named(store, spec, rubric, given, asking) as grader:
        yield replace(grader, reason=reason)
