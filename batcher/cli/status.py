"""Commands that show what is there and what is running: status, runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from alpasift.batcher.cli.options import forms, json_option
from alpasift.batcher.cli.printing import plain, print_alarms, print_json, print_paragraph, print_rows, print_table


@click.command("runs")
@click.option(
    "--limit", default=20, show_default=True, type=click.IntRange(1, 100_000), metavar="N", help="At most N rows."
)
@forms
@click.pass_obj
def runs_command(db: str, limit: int, form: str | None) -> None:
    """List the runs, newest first, and how each ended.

    \b
    Example:
      alpasift runs
    """
    from alpasift.batcher.engine.status import runs_of
    from alpasift.batcher.store import Store

    rows = runs_of(Store(db).existing(), limit)
    if form or not rows:
        print_rows(list(rows[0]) if rows else [], [list(r.values()) for r in rows], form or "table")
    else:
        _print_runs(rows)


def _print_runs(rows: Sequence[dict[str, Any]]) -> None:
    """One line per run, newest first, and below the messages of those that have one."""
    from alpasift.batcher.engine.progress import duration
    from alpasift.batcher.money.dollars import show_usd

    table = [
        (
            row["started_at"],
            row["command"],
            ", ".join(row[name] for name in ("dataset", "grader", "rubric") if row[name]),
            row["outcome"],
            "" if row["seconds"] is None else duration(row["seconds"]),
            row["replied"],
            show_usd(row["spent_usd"]),
            show_usd(row["unresolved_usd"]),
        )
        for row in rows
    ]
    columns = ["started", "command", "dataset, grader, rubric", "outcome", "time", "replies", "spent", "unresolved"]
    shown = len(columns) if any(row["unresolved_usd"] for row in rows) else len(columns) - 1
    print_table(columns[:shown], [row[:shown] for row in table])
    for row in rows:
        if row["message"]:
            print_paragraph(f"{row['started_at']:%Y-%m-%d %H:%M:%S} {row['command']}: {row['message']}")


@click.command("status")
@json_option
@click.pass_obj
def status_command(db: str, form: str | None) -> int:
    """Show what is in the database, what is running, what was spent.

    \b
    Example:
      alpasift status
    """
    from dataclasses import asdict

    from alpasift.batcher.engine.status import status_of
    from alpasift.batcher.money.dollars import show_usd
    from alpasift.batcher.store import Store

    found = status_of(Store(db).existing())
    running = found.running_pid
    if form:
        print_json(asdict(found))
        return 1 if found.alarms else 0
    click.echo(f"{plain(found.database)}" + (f", process {running} is grading" if running else ""))
    for title, rows in (("datasets", found.datasets), ("graded", found.graded), ("selections", found.selections)):
        if rows:
            click.echo(f"\n{title}")
            print_table(list(rows[0]), [list(r.values()) for r in rows])
    print_batches(found.batches)
    calls = len(found.open_attempts) - len(found.batches)
    if calls > 0:
        click.echo(f"\n{calls:,} calls or blocks are open" + ("" if running else "; the next run closes them"))
    money = found.ledger
    budget = money["budget_usd"]
    click.echo()
    print_paragraph(
        f"budget {show_usd(budget, 2) if budget is not None else 'not set'}, spent {show_usd(money['spent_usd'])}, "
        f"reserved {show_usd(money['reserved_usd'])}, unresolved {show_usd(money['unresolved_usd'])}"
        + (f", free {show_usd(money['free_usd'])}" if budget is not None else "")
    )
    print_alarms([row["note"] for row in found.alarms])
    return 1 if found.alarms else 0


def print_batches(rows: list[dict[str, Any]]) -> None:
    """The batches in flight, one a line: phase, counts, age, expiry, money."""
    from alpasift.batcher.engine.progress import duration
    from alpasift.batcher.money.dollars import show_usd

    if not rows:
        return
    click.echo("\nbatches in flight (`alpasift collect` fetches their results)")
    table = [
        (
            row["batch_id"] or f"attempt {str(row['attempt_id'])[:8]}",
            row["grader"],
            row["phase"],
            row["lines"],
            row["completed"],
            row["failed"],
            duration(row["age_hours"] * 3600),
            row["expires_at"],
            show_usd(row["reserved_usd"]),
            show_usd(row["unresolved_usd"]),
            row["message"] or "",
        )
        for row in rows
    ]
    columns = (
        "batch",
        "grader",
        "phase",
        "rows",
        "done",
        "failed",
        "age",
        "expires",
        "reserved",
        "unresolved",
        "remark",
    )
    print_table(columns, table)
