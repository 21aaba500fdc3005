"""The course of an attempt: its steps, and its end, when what its lines hold becomes unresolved or is released."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from alpasift.batcher.money.dollars import ZERO, show_usd
from alpasift.batcher.money.ledger import (
    LedgerEntries,
    alarm,
    line_money,
)
from alpasift.batcher.store import Connection, append, rows, stored_json, utc_now


def close_attempt(con: Connection, attempt_id: str, why: str = "closed") -> None:
    """End an attempt: what its lines still hold becomes unresolved. Ending it again changes nothing."""
    close_attempts(con, [attempt_id], why)


def close_attempts(con: Connection, attempts: Sequence[str], why: str = "closed") -> None:
    """End attempts: what their lines still hold becomes unresolved. Ending one again changes nothing."""
    if not attempts:
        return
    text = """
        select attempt_id::varchar, run_id::varchar, ceiling_usd from attempts
        where attempt_id in (select unnest($a)::uuid)
          and attempt_id not in (
              select attempt_id from attempt_steps
              where state = 'closed' and attempt_id in (select unnest($a)::uuid)
          )
    """
    found = {a: (r, total) for a, r, total in rows(con, text, {"a": list(attempts)}).rows}
    ending = [a for a in dict.fromkeys(attempts) if a in found]
    costly = [a for a in ending if found[a][1]]
    if costly:
        entries = LedgerEntries()
        for (attempt, key), usd in line_money(con, costly)[0].items():
            entries.move("unresolved", found[attempt][0], attempt, key, reserved=-usd, unresolved=usd, note=why)
        entries.write(con)
    steps(con, [(a, "closed", {"why": why}) for a in ending])


def settle_attempt(con: Connection, attempt_id: str, usd: Decimal, why: str) -> None:
    """End an attempt as a whole at `usd` dollars: what its lines hold or leave unresolved is given back.

    A cost that no single line can be told to have caused is one charge without a key. Ending it again changes nothing.
    """
    found = rows(
        con, "select run_id, ceiling_usd, state from open_attempts where attempt_id = $a", {"a": attempt_id}
    ).rows
    if not found:
        return
    run_id, total, _ = found[0]
    if total:
        entries = LedgerEntries()
        held, owed, _ = line_money(con, [attempt_id])
        for line in held | owed:
            back, free = held.get(line, ZERO), owed.get(line, ZERO)
            entries.move("release", str(run_id), *line, reserved=-back, unresolved=-free, note=why)
        entries.move("charge", str(run_id), attempt_id, None, spent=usd, note=why)
        entries.write(con)
        back = sum(held.values(), ZERO) + sum(owed.values(), ZERO)
        if usd > back:
            alarm(
                con,
                "ceiling_broken",
                f"{why}: it cost {show_usd(usd)} and {show_usd(back)} was reserved",
                attempt_id,
                usd,
            )
    step(con, attempt_id, "closed", {"why": why})


def mark_unconfirmed(con: Connection, attempt_id: str, why: str) -> None:
    """What the lines of an open attempt hold becomes unresolved; the attempt stays open, in the state "unconfirmed"."""
    found = rows(con, "select run_id, ceiling_usd from open_attempts where attempt_id = $a", {"a": attempt_id}).rows
    if not found:
        return
    if found[0][1]:
        entries = LedgerEntries()
        for line, usd in line_money(con, [attempt_id])[0].items():
            entries.move("unresolved", str(found[0][0]), *line, reserved=-usd, unresolved=usd, note=why)
        entries.write(con)
    step(con, attempt_id, "unconfirmed", {"why": why})


def step(con: Connection, attempt_id: str, state: str, facts: Mapping[str, Any] | None = None) -> None:
    steps(con, [(attempt_id, state, facts or {})])


def steps(con: Connection, taken: Sequence[tuple[str, str, Mapping[str, Any]]]) -> None:
    """Write down steps: attempt (each at most once), state and facts."""
    text = """
        select attempt_id::varchar, count(*) from attempt_steps
        where attempt_id in (select unnest($a)::uuid) group by attempt_id
    """
    before: dict[str, int] = dict(rows(con, text, {"a": [a for a, _, _ in taken]}).rows) if taken else {}
    columns, now = ("attempt_id", "step", "state", "facts", "recorded_at"), utc_now()
    values = [(a, before.get(a, 0) + 1, state, stored_json(facts), now) for a, state, facts in taken]
    append(con, "attempt_steps", columns, values)


def close_orphaned_attempts(con: Connection, why: str = "the process ended before the answer arrived") -> int:
    """Close what dead processes left open, but for work that outlives a process. Call with the run lock held."""
    found = rows(con, "select attempt_id from open_attempts where not outlives order by opened_at").rows
    close_attempts(con, [str(attempt_id) for (attempt_id,) in found], why)
    return len(found)
