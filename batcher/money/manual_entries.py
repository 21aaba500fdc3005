"""Entries that a person books: each with its reason, and one act for all that were booked together.

The ledger only grows, so a correction is an entry more. The table `ledger_acts` binds the entries of one act, and names
for each entry of a reversal the entry that it takes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from alpasift.batcher.money.dollars import ZERO
from alpasift.batcher.money.ledger import ENTRY
from alpasift.batcher.store import Connection, append, new_id, stored_text, utc_now
from alpasift.graders import AlpaSiftError


def manual_entry(
    kind: str,
    where: tuple[Any, Any, Any],
    note: str,
    *,
    reserved: Decimal = ZERO,
    spent: Decimal = ZERO,
    unresolved: Decimal = ZERO,
) -> tuple[Any, ...]:
    """A row of the ledger, its new id first; `where` is its run, attempt and key."""
    return (new_id(), kind, *where, None, reserved, spent, unresolved, stored_text(note), utc_now())


def book(con: Connection, entries: Sequence[tuple[Any, ...]]) -> None:
    """Append rows made by `manual_entry` to the ledger."""
    append(con, "ledger", ENTRY, entries)


def book_act(con: Connection, entries: Sequence[tuple[Any, ...]], reverses: Sequence[str | None]) -> str:
    """Append rows made by `manual_entry` as one act; returns its id. `reverses`: for each, the entry it takes back."""
    act = new_id()
    book(con, entries)
    bound = [(entry[0], act, its) for entry, its in zip(entries, reverses, strict=True)]
    append(con, "ledger_acts", ("entry_id", "act_id", "reverses"), bound)
    return act


def check_reason(text: str) -> str:
    """The reason without blanks around it. Raises AlpaSiftError for an empty one."""
    if not text.strip():
        raise AlpaSiftError("the reason is empty; state what you found, it is recorded")
    return text.strip()
