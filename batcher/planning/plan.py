"""The plan for a dataset: what each grader would cost, and which one `auto` would take. Sends nothing.

Knows offers and limits. Call `plan`; `offers` makes the offers, `choice` takes one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from alpasift.batcher.data.addressed_rows import addressed_rows
from alpasift.batcher.data.importing import Imported
from alpasift.batcher.data.versions import DatasetVersion
from alpasift.batcher.money.ledger import balance
from alpasift.batcher.planning.auto import offers_for
from alpasift.batcher.planning.choice import choose
from alpasift.batcher.planning.offers import Offer, named_graders
from alpasift.batcher.planning.rows_to_plan import rows_to_plan
from alpasift.batcher.store import Store
from alpasift.graders import BackendUnavailable


@dataclass(frozen=True, slots=True)
class Limits:
    """What a grader may take at most to be chosen; None for no limit.

    budget   the database's, as if it were set to this: what is committed already counts against it
    rows     how many rows are to be graded, those after them left for later
    """

    max_usd: Decimal | None = None
    max_hours: float | None = None
    local_only: bool = False
    budget: Decimal | None = None
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The offers of the graders for the rows of a dataset version that they have not graded yet.

    named      the specs that a person named, here or in ALPASIFT_GRADERS
    chosen     the offer that `auto` takes; None when none fits, and `reason` then says what comes nearest
    free_usd   what the budget leaves; None when none is set
    addressed  rows whose text is addressed to the grader
    imported   what reading the file brought, where a file was planned that is in no dataset
    """

    dataset: DatasetVersion
    named: tuple[str, ...]
    offers: tuple[Offer, ...]
    chosen: Offer | None
    reason: str
    free_usd: Decimal | None
    imported: Imported | None = None
    addressed: int = 0


def plan(
    store: Store | None,
    graders: Sequence[str],
    limits: Limits,
    *,
    file: str | None = None,
    dataset: str | None = None,
    rubric: str | None = None,
    reading: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    asking: Mapping[str, Any] | None = None,
) -> Plan:
    """What each of the graders would cost for a dataset of the store, or for a file; and the choice among them.

    `auto` among the graders stands for the choice, which is made anyway.
    `reading` is how a file is read, as `import_file` takes it, `settings` and `asking` are as `open_grader` takes them.
    Without a store a file must be named. Raises DatasetError, StoreError, RubricError.
    """
    named = named_graders([spec for spec in graders if spec.strip() != "auto"])
    free_usd = _free_usd(store, limits.budget)
    with rows_to_plan(store, file, dataset, reading or {}) as rows:
        offers = offers_for(
            rows.store,
            rows.version.version_id,
            named,
            rubric,
            settings,
            asking,
            history=store,
            free_usd=free_usd,
            rows=limits.rows,
        )
        addressed = addressed_rows(rows.store, rows.version.version_id)
    chosen: Offer | None = None
    try:
        chosen, reason = choose(
            offers, limits.max_hours, max_usd=limits.max_usd, local_only=limits.local_only, free_usd=free_usd
        )
    except BackendUnavailable as error:
        reason = str(error)
    return Plan(rows.version, tuple(named), tuple(offers), chosen, reason, free_usd, rows.imported, addressed)


def _free_usd(store: Store | None, budget: Decimal | None) -> Decimal | None:
    """What a budget leaves, the database's own where none is given; None where there is none."""
    if store is None:
        return budget
    with store.reader() as con:
        now = balance(con)
    return now.free if budget is None else budget - now.committed
