"""Replies as rows, each with what it cost: charged from its own usage at the price frozen with the attempt.

What was known to be free is released; what may have cost money and names no believable usage becomes unresolved at its
ceiling. Ingesting the same replies again changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import orjson

from alpasift.batcher.money.dollars import ZERO
from alpasift.batcher.money.ledger import (
    LedgerEntries,
    UnknownAttempt,
    alarm,
    line_money,
)
from alpasift.batcher.store import Connection, append, named_query, rows, stored_json, stored_text, these_keys, utc_now
from alpasift.graders import Reply
from alpasift.graders.api.prices import Price, UsageError, charge, thaw

_REPLY = (
    "attempt_id",
    "key",
    "request_id",
    "outcome",
    "text",
    "finish_reason",
    "model",
    "usage",
    "logprobs",
    "error",
    "raw",
    "recorded_at",
)


def ingest(con: Connection, replies: Sequence[Reply]) -> list[Reply]:
    """Write replies and what they cost, and return those that were new. Replies that stand already change nothing."""
    fresh = _unknown_replies(con, replies)
    now = utc_now()
    append(con, "replies", _REPLY, [_reply_row(r, now) for r in fresh])
    if fresh:
        _charge(con, fresh)
    return fresh


def _unknown_replies(con: Connection, replies: Sequence[Reply]) -> list[Reply]:
    text = """
        select attempt_id::varchar, key::varchar, request_id from replies
        where attempt_id in (select unnest($attempts)::uuid) and key in (select key from wanted)
    """
    with these_keys(con, {r.key for r in replies}):
        known = set(rows(con, text, {"attempts": sorted({r.attempt for r in replies})}).rows)
    fresh = []
    for reply in replies:
        identity = (reply.attempt, reply.key, reply.request_id)
        if identity not in known:
            known.add(identity)
            fresh.append(reply)
    return fresh


def _reply_row(reply: Reply, now: Any) -> tuple[Any, ...]:
    usage = None if reply.usage is None else _as_json(reply.usage)
    logprobs = None if reply.logprobs is None else _as_json(reply.logprobs)
    texts = (reply.text, reply.finish_reason, reply.model, usage, logprobs, reply.error, reply.raw)
    return (reply.attempt, reply.key, stored_text(reply.request_id), reply.outcome, *map(stored_text, texts), now)


def _as_json(value: Mapping[str, Any]) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # a spool of an earlier release: numbers without end, lone surrogates
        return stored_json(value)


@dataclass(frozen=True, slots=True)
class _Opened:
    """An attempt as it was opened: its run, the price frozen with it, its ceiling."""

    run_id: str
    price: Price | None
    total: Decimal


def _opened(con: Connection, attempts: Sequence[str]) -> dict[str, _Opened]:
    text = """
        select attempt_id::varchar, run_id::varchar, price, ceiling_usd from attempts
        where attempt_id in (select unnest($a)::uuid)
    """
    prices: dict[str, Price] = {}  # calls that were opened together share theirs
    found = {}
    for attempt, run_id, frozen, total in rows(con, text, {"a": list(attempts)}).rows:
        if frozen is not None and frozen not in prices:
            prices[frozen] = thaw(json.loads(frozen))
        found[attempt] = _Opened(run_id, prices[frozen] if frozen is not None else None, total)
    return found


def _charge(con: Connection, replies: Sequence[Reply]) -> None:
    opened = _opened(con, sorted({r.attempt for r in replies}))
    unknown = next((r.attempt for r in replies if r.attempt not in opened), None)
    if unknown is not None:
        raise UnknownAttempt(f"a reply belongs to attempt {unknown}, which is not in this ledger")
    costly = [r for r in replies if opened[r.attempt].price is not None or opened[r.attempt].total != 0]
    if not costly:
        return
    held, unresolved, ceilings = line_money(con, sorted({r.attempt for r in costly}), {r.key for r in costly})
    entries = LedgerEntries()
    for reply in costly:
        attempt = opened[reply.attempt]
        line = (reply.attempt, reply.key)
        hold, owed = held.pop(line, ZERO), unresolved.pop(line, ZERO)
        where: dict[str, Any] = {"request_id": reply.request_id}
        if reply.outcome == "rejected_free":
            entries.move("release", attempt.run_id, *line, reserved=-hold, unresolved=-owed, note=reply.error, **where)
            continue
        note = reply.error
        usd: Decimal | None = None
        if reply.outcome == "answered" and attempt.price is not None:
            try:
                usd = charge(attempt.price, reply.usage)
            except UsageError as error:
                note = str(error)
        if usd is None:
            entries.move("unresolved", attempt.run_id, *line, reserved=-hold, unresolved=hold, note=note, **where)
            if hold or owed:
                unresolved[line] = hold + owed  # for what may still come in this chunk
            continue
        entries.move("charge", attempt.run_id, *line, reserved=-hold, unresolved=-owed, spent=usd, note=note, **where)
        ceiling = ceilings.get(line)
        if usd and (ceiling is None or not (hold or owed)):
            alarm(
                con,
                "unasked_work",
                f"${usd.normalize():f} was charged for an answer that was not requested or was already paid "
                f"({_place(con, *line)})",
                reply.attempt,
                usd,
            )
        elif ceiling is not None and usd > ceiling:
            alarm(
                con,
                "ceiling_broken",
                f"an answer cost ${usd.normalize():f}, above its ceiling of ${ceiling.normalize():f} "
                f"({_place(con, *line)})",
                reply.attempt,
                usd,
            )
    entries.write(con)


def _place(con: Connection, attempt: str, key: str) -> str:
    """Where a line of an attempt stands, for a person: its row and its batch, or its attempt."""
    found = rows(con, named_query("line_place").text, {"attempt": attempt, "key": key}).rows
    batch_id, dataset, position = found[0] if found else (None, None, None)
    row = f"row {position:,} of {dataset}" if dataset is not None else f"question {key[:8]}"
    return f"{row}, {f'batch {batch_id}' if batch_id else f'attempt {attempt[:8]}'}"
