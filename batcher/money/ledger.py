"""The ledger: what was reserved, charged, released and is still unresolved. Every API dollar is a row here.

Knows money and attempts; nothing of prompts, scores or files. Three accounts (reserved, spent, unresolved) are sums
over the table `ledger`, whose rows are signed movements and are never changed. Free is what the cap leaves:

    spent + reserved + unresolved + free = budget        always, to the last decimal

The cap belongs to the database, not to a run. A reservation is committed before a byte is sent; a charge is what the
reply's usage says at the price frozen with the attempt, never rounded; what was sent and never seen stays unresolved
at its worst case until evidence or a person settles it. Lines that can cost nothing leave no rows.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from alpasift.batcher.money.dollars import ZERO
from alpasift.batcher.store import (
    Connection,
    Store,
    append,
    as_id,
    rows,
    scalar,
    stored_text,
    these_keys,
    utc_now,
)
from alpasift.graders import AlpaSiftError, SendingStopped


class NoBudget(AlpaSiftError):
    """A paid backend and no cap: consent is missing."""


class LedgerAlarm(SendingStopped):
    """Something was charged that must not have been. It is booked; all sending has stopped until a person looked."""


class UnknownAttempt(AlpaSiftError):
    """A reply to an attempt that this ledger never opened."""


@dataclass(frozen=True, slots=True)
class Balance:
    """Dollars. `budget` and `free` are None where no budget was ever set."""

    budget: Decimal | None
    spent: Decimal
    reserved: Decimal
    unresolved: Decimal

    @property
    def free(self) -> Decimal | None:
        return None if self.budget is None else self.budget - self.committed

    @property
    def committed(self) -> Decimal:
        return self.spent + self.reserved + self.unresolved


# -- balances ---------------------------------------------------------------------------------------------------


def balance(con: Connection) -> Balance:
    """The accounts of this database, now."""
    found = rows(con, "select budget_usd, spent_usd, reserved_usd, unresolved_usd from balance").rows[0]
    return Balance(found[0], found[1], found[2], found[3])


def run_committed(con: Connection, run_id: str) -> Decimal:
    """What one run has spent, reserved and left unresolved: what --run-budget caps."""
    total = scalar(
        con, "select sum(spent_usd + reserved_usd + unresolved_usd) from ledger where run_id = $run", {"run": run_id}
    )
    return total or ZERO


def set_budget(con: Connection, usd: Decimal) -> None:
    """Set the cap of this database. Setting what stands already writes nothing."""
    if balance(con).budget != usd:
        number = (scalar(con, "select max(entry_id) from budgets") or 0) + 1
        append(con, "budgets", ("entry_id", "budget_usd", "recorded_at"), [(number, usd, utc_now())])


def alarm(con: Connection, kind: str, note: str, attempt_id: str | None = None, usd: Decimal | None = None) -> None:
    number = (scalar(con, "select max(alarm_id) from alarms") or 0) + 1
    columns = ("alarm_id", "kind", "attempt_id", "usd", "note", "recorded_at")
    append(con, "alarms", columns, [(number, kind, attempt_id, usd, note, utc_now())])


def open_alarms(con: Connection) -> list[str]:
    """The notes of alarms that nobody has acknowledged yet, oldest first."""
    return [r[0] for r in rows(con, "select note from open_alarms order by alarm_id").rows]


def check_alarms(con: Connection) -> None:
    """Raise LedgerAlarm while an alarm stands."""
    notes = open_alarms(con)
    if notes:
        others = f" (and {len(notes) - 1:,} more)" if len(notes) > 1 else ""
        raise LedgerAlarm(
            f"{notes[-1]}{others}. It is booked, and nothing more is sent from this database. Check `alpasift "
            "ledger`, then clear it with `alpasift ledger acknowledge --reason TEXT`"
        )


def acknowledge(store: Store, reason: str) -> int:
    """Clear the alarms that stand, with a person's reason. Returns how many there were."""
    with store.transaction() as con:
        count = len(open_alarms(con))
        if count:
            alarm(con, "acknowledged", reason)
    return count


# -- movements --------------------------------------------------------------------------------------------------

ENTRY = (
    "entry_id",
    "kind",
    "run_id",
    "attempt_id",
    "key",
    "request_id",
    "reserved_usd",
    "spent_usd",
    "unresolved_usd",
    "note",
    "recorded_at",
)


class LedgerEntries:
    """Movements collected for one insert."""

    def __init__(self) -> None:
        self.now = utc_now()
        self.entries: list[tuple[Any, ...]] = []

    def move(
        self,
        kind: str,
        run_id: str | None,
        attempt_id: str,
        key: str | None,
        *,
        reserved: Decimal = ZERO,
        spent: Decimal = ZERO,
        unresolved: Decimal = ZERO,
        request_id: str | None = None,
        note: str | None = None,
    ) -> None:
        if reserved or spent or unresolved:
            where = (run_id, attempt_id, key, stored_text(request_id))
            amounts = (reserved, spent, unresolved)
            self.entries.append((kind, *where, *amounts, stored_text(note), self.now))

    def write(self, con: Connection) -> None:
        ids = os.urandom(16 * len(self.entries)).hex()
        numbered = [(as_id(ids[32 * i : 32 * i + 32]), *entry) for i, entry in enumerate(self.entries)]
        append(con, "ledger", ENTRY, numbered)


Line = tuple[str, str]
"""attempt, key"""


def line_money(
    con: Connection, attempts: Sequence[str], keys: set[str] | None = None
) -> tuple[dict[Line, Decimal], dict[Line, Decimal], dict[Line, Decimal]]:
    """What lines of some attempts (all, or those with these keys) still hold, what is unresolved, their ceilings.

    The view line_money, with the attempts named before anything is added up.
    """
    which = "attempt_id in (select unnest($attempts)::uuid)"
    which += "" if keys is None else " and key in (select key from wanted)"
    text = f"""
        with moved as (
            select attempt_id, key, sum(reserved_usd) as reserved_usd, sum(unresolved_usd) as unresolved_usd
            from ledger where {which} and key is not null group by all
        )
        select
            attempt_id::varchar, key::varchar, (ceiling_usd + coalesce(reserved_usd, 0))::decimal(38, 15),
            coalesce(unresolved_usd, 0)::decimal(38, 15), ceiling_usd
        from (select attempt_id, key, ceiling_usd from attempt_lines where ceiling_usd > 0 and {which})
        left join moved using (attempt_id, key)
        order by all
    """
    with these_keys(con, keys or ()):
        found = [((a, k), h, u, c) for a, k, h, u, c in rows(con, text, {"attempts": list(attempts)}).rows]
    held = {line: h for line, h, _, _ in found if h}
    unresolved = {line: u for line, _, u, _ in found if u}
    return held, unresolved, {line: c for line, _, _, c in found}
