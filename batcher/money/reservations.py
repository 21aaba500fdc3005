"""Open attempts: the worst case of what is about to be sent is reserved and committed before a byte leaves.

Knows the caps (the database's budget, the run's) and what is committed already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Any

from alpasift.batcher.money.dollars import ZERO, show_usd
from alpasift.batcher.money.ledger import (
    LedgerEntries,
    NoBudget,
    balance,
    check_alarms,
    run_committed,
)
from alpasift.batcher.store import Connection, append, new_id, stored_json, utc_now
from alpasift.graders import AlpaSiftError, BudgetExceeded
from alpasift.graders.api.prices import QUANTUM


@dataclass(frozen=True, slots=True)
class AttemptLines:
    """What one attempt asks: its questions, and the most that each may cost."""

    keys: Sequence[str]
    ceilings: Sequence[Decimal]


def reserve(
    con: Connection,
    *,
    run_id: str,
    backend: str,
    grader_id: str,
    keys: Sequence[str],
    ceilings: Sequence[Decimal],
    price: Mapping[str, Any] | None,
    facts: Mapping[str, Any],
    run_budget: Decimal | None,
) -> str:
    """Open an attempt and reserve its worst case. Raises BudgetExceeded (nothing written), NoBudget or LedgerAlarm."""
    return reserve_many(
        con,
        run_id=run_id,
        backend=backend,
        grader_id=grader_id,
        parts=[AttemptLines(keys, ceilings)],
        price=price,
        facts=facts,
        run_budget=run_budget,
    )[0]


def reserve_many(
    con: Connection,
    *,
    run_id: str,
    backend: str,
    grader_id: str,
    parts: Sequence[AttemptLines],
    price: Mapping[str, Any] | None,
    facts: Mapping[str, Any],
    run_budget: Decimal | None,
) -> list[str]:
    """Open an attempt for each of the first parts that fit, at least one, and reserve the worst case of each.

    Raises BudgetExceeded when not even the first fits (nothing is written), NoBudget or LedgerAlarm.
    """
    rounded = [_rounded(part) for part in parts]
    totals = [sum(ceilings, ZERO) for ceilings in rounded]
    if any(totals):
        check_alarms(con)
    fit = _fitting(con, totals, run_id, run_budget)
    if fit == 0:
        _check_caps(con, totals[0], len(parts[0].keys), run_id, run_budget)
    ids = [new_id() for _ in range(fit)]
    frozen = stored_json(price) if price is not None else None
    about, now = stored_json(facts), utc_now()
    attempts, lines, entries = [], [], LedgerEntries()
    for attempt_id, part, ceilings, total in zip(ids, parts, rounded, totals, strict=False):
        attempts.append((attempt_id, run_id, backend, grader_id, len(part.keys), total, frozen, about, now))
        lines += [(attempt_id, key, usd) for key, usd in zip(part.keys, ceilings, strict=True)]
        entries.move("reserve", run_id, attempt_id, None, reserved=total)
    columns = ("attempt_id", "run_id", "backend", "grader_id", "lines", "ceiling_usd", "price", "facts", "opened_at")
    append(con, "attempts", columns, attempts)
    append(con, "attempt_lines", ("attempt_id", "key", "ceiling_usd"), lines)
    entries.write(con)
    return ids


def _rounded(part: AttemptLines) -> list[Decimal]:
    if len(set(part.keys)) != len(part.keys):
        raise AlpaSiftError("an attempt may contain each request once; one key occurs twice")
    if len(part.ceilings) != len(part.keys) or any(not c.is_finite() or c < 0 for c in part.ceilings):
        raise AlpaSiftError("every line of an attempt needs a cost ceiling of $0 or more")
    return [c.quantize(QUANTUM, rounding=ROUND_CEILING) for c in part.ceilings]


def _fitting(con: Connection, totals: Sequence[Decimal], run_id: str, run_budget: Decimal | None) -> int:
    """How many of the first totals the caps hold together. What costs nothing always fits."""
    if not any(totals):
        return len(totals)
    room = balance(con).free
    if room is None:
        return 0
    if run_budget is not None:
        room = min(room, run_budget - run_committed(con, run_id))
    for i, total in enumerate(totals):
        if total > 0 and total > room:
            return i
        room -= total
    return len(totals)


def _check_caps(con: Connection, usd: Decimal, lines: int, run_id: str, run_budget: Decimal | None) -> None:
    now = balance(con)
    if now.budget is None or now.free is None:
        raise NoBudget(
            "this costs money and no budget is set; set one with --budget 5 (dollars, a cap on the total of this "
            "database)"
        )
    what = f"the next {lines} question{'s' if lines != 1 else ''} may cost up to {show_usd(usd)}"
    if usd > now.free:
        raise BudgetExceeded(
            f"{what} and {show_usd(now.free)} of the {show_usd(now.budget, 2)} budget is free "
            f"({show_usd(now.spent)} spent, {show_usd(now.reserved)} reserved, {show_usd(now.unresolved)} unresolved); "
            "raise --budget, or grade fewer rows with --limit"
        )
    if run_budget is not None:
        left = run_budget - run_committed(con, run_id)
        if usd > left:
            raise BudgetExceeded(
                f"{what} and {show_usd(left)} of this run's {show_usd(run_budget, 2)} is left; raise --run-budget"
            )
