"""The accounts of a database as one value: API dollars, machine time, and what stops all sending."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from alpasift.batcher.store import Store


@dataclass(frozen=True, slots=True)
class Accounts:
    """The API dollars of a database: spent + reserved + unresolved + free = budget, to the last decimal.

    budget_usd, free_usd   None as long as no budget is set
    machine                the machine account: seconds, usd
    alarms                 what stops all sending until a person has looked (`alpasift ledger acknowledge`)
    """

    budget_usd: Decimal | None
    spent_usd: Decimal
    reserved_usd: Decimal
    unresolved_usd: Decimal
    free_usd: Decimal | None
    machine: dict[str, Any]
    alarms: list[dict[str, Any]]


def accounts_of(store: Store) -> Accounts:
    """The accounts as they stand, read at one moment."""
    with store.reader():
        money, machine, alarms = store.query("ledger")[0], store.query("machine")[0], store.query("alarms")
    return Accounts(**money, machine=machine, alarms=alarms)
