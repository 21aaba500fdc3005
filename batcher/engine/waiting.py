"""What a run waits for: the batches at the provider, how long already, and how long such batches took here before.

Knows the stored steps of batches; asks no server, and invents no time where this database has no history.
"""

from __future__ import annotations

from alpasift.batcher.engine.progress import duration
from alpasift.batcher.store import Store


def waiting_for(store: Store, setup_id: str) -> str:
    """The batches of a setup that are at the provider, in a few words; empty when there is none."""
    found = store.query("batches_waited_for", setup_id=setup_id)
    if not found:
        return ""
    first = found[0]
    usual = first["usual_seconds"]
    known = "" if usual is None else f"; 9 of 10 batches here took up to {duration(usual)}"
    what = f"batch {first['batch_id']}"
    if len(found) > 1:
        what = f"{len(found):,} batches, the oldest {first['batch_id']}"
    return f"waiting for {what} ({first['phase']}, {duration(first['age_seconds'])}{known})"
