"""What is still with a provider: batches, their rows and what is reserved for them, in words. Only reads."""

from __future__ import annotations

from alpasift.batcher.money.dollars import show_usd
from alpasift.batcher.store import Store, StoreBusy


class Interrupted(KeyboardInterrupt):
    """A run was interrupted; the message says what is kept and what is still in flight."""


def interrupted(store: Store) -> Interrupted:
    """What an interrupt leaves behind: batches that the provider carries on with, and how to collect or stop them."""
    kept = "interrupted; committed results are kept, and the same command resumes"
    try:
        batches = store.query("batches", all=None)
    except StoreBusy:
        return Interrupted(kept)
    if not batches:
        return Interrupted(kept)
    named = [
        f"{row['batch_id'] or 'attempt ' + str(row['attempt_id'])[:8]} "
        f"({row['phase']}, {counted(row['lines'], 'row')}, {show_usd(row['reserved_usd'])} reserved)"
        for row in batches
    ]
    one = len(batches) == 1
    name = (batches[0]["batch_id"] or str(batches[0]["attempt_id"])[:8]) if one else "--all"
    return Interrupted(
        f"{kept}. Still at the provider, which charges for what it completes of {'it' if one else 'them'}: "
        f"{'; '.join(named)}. "
        f"`alpasift collect` fetches the results, `alpasift cancel {name}` cancels {'it' if one else 'them'}"
    )


def counted(number: int, name: str) -> str:
    """ "1 row", "2 rows", "3 replies"."""
    if number == 1:
        return f"1 {name}"
    return f"{number:,} {name[:-1]}ies" if name == "reply" else f"{number:,} {name}s"
