"""What is in a database, what is running on it and what was spent. Only reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from alpasift.batcher.store import Store
from alpasift.batcher.store.lock import holder_of_run_lock

Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Status:
    """The rows of the queries datasets, progress, selections, batches, open_attempts, ledger and alarms.

    running_pid   the process that is at work on the database, None when there is none
    """

    database: str
    running_pid: int | None
    datasets: Rows
    graded: Rows
    selections: Rows
    batches: Rows
    open_attempts: Rows
    ledger: dict[str, Any]
    alarms: Rows = field(default_factory=list)


def runs_of(store: Store, limit: int) -> list[dict[str, Any]]:
    """The newest runs, rows of the query `runs`. The last one, without an end, is running where its process holds the
    lock of the database, and has crashed where it does not."""
    before = holder_of_run_lock(store.path)
    found = store.query("runs", row_limit=limit)
    holders = (before, holder_of_run_lock(store.path))  # a run may begin or end in between
    for row in found:
        if row["outcome"] == "running or crashed":
            row["outcome"] = "running" if row["pid"] in holders else "crashed"
    return found


def status_of(store: Store) -> Status:
    """What is in the database, what is running, what was spent."""
    running = holder_of_run_lock(store.path)
    with store.reader():  # which the queries share
        return _status(store, running)


def _status(store: Store, running: int | None) -> Status:
    return Status(
        database=str(store.path),
        running_pid=running,
        datasets=store.query("datasets"),
        graded=store.query("progress"),
        selections=store.query("selections"),
        batches=store.query("batches", all=None),
        open_attempts=store.query("open_attempts"),
        ledger=store.query("ledger")[0],
        alarms=store.query("alarms"),
    )
