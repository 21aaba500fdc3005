"""What a test books in a ledger, as the program books it; and usage as the provider exports it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from alpasift.batcher.money import attempts, charges, ledger, reservations
from alpasift.batcher.store import Store, hash_id, new_id
from alpasift.graders import Reply
from alpasift.graders.api.prices import per_million

PRICE = per_million("0.05", "0.20")  # gpt-4.1-nano by batch, dollars per million tokens
GRADER = new_id()
BY = ("day", "run", "model", "batch")


def budget(store: Store, usd: str) -> None:
    with store.transaction() as con:
        ledger.set_budget(con, Decimal(usd))


def attempt(
    store: Store,
    keys: Sequence[str],
    each: str = "0.1",
    *,
    run: str | None = None,
    model: str | None = "gpt-4.1-nano",
    batch_id: str | None = None,
) -> str:
    """An attempt of these questions; with `batch_id` it went by batch."""
    facts: dict[str, Any] = {"outlives": batch_id is not None} | ({"model": model} if model else {})
    with store.transaction() as con:
        identity = reservations.reserve(
            con,
            run_id=run or new_id(),
            backend="test",
            grader_id=GRADER,
            keys=keys,
            ceilings=[Decimal(each)] * len(keys),
            price=PRICE.frozen(),
            facts=facts,
            run_budget=None,
        )
        if batch_id:
            attempts.step(con, identity, "created", {"batch_id": batch_id})
    return identity


def answer(
    store: Store,
    to: str,
    key: str,
    prompt: int = 1000,
    completion: int = 2,
    cached: int = 0,
    model: str | None = "gpt-4.1-nano-2025-04-14",
) -> None:
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    with store.transaction() as con:
        charges.ingest(con, [Reply(to, key, new_id(), "answered", "4", "stop", model, usage)])


def lose(store: Store, *lost: str) -> None:
    """The answers never came: what the attempts hold becomes unresolved."""
    with store.transaction() as con:
        for one in lost:
            attempts.close_attempt(con, one, "no answer came")


def balance(store: Store) -> ledger.Balance:
    with store.reader() as con:
        return ledger.balance(con)


def key(i: int) -> str:
    return hash_id("key", str(i))


def on_day(store: Store, day: str) -> None:
    """Put everything that has happened so far on one day, as if the clock had stood there."""
    with store.transaction() as con:
        for table, column in (("attempts", "opened_at"), ("ledger", "recorded_at"), ("replies", "recorded_at")):
            con.execute(
                f"update {table} set {column} = ?::timestamp where {column} > '2026-11-01'", [f"{day} 12:00:00"]
            )


def adds_up(store: Store) -> None:
    """The sum rule, and the sums of every table of where the money went."""
    with store.reader() as con:
        now = ledger.balance(con)
        assert now.budget is not None and now.free is not None
        assert now.spent + now.reserved + now.unresolved + now.free == now.budget
        for by in BY:
            text = f"select sum(spent_usd), sum(reserved_usd), sum(unresolved_usd) from money_by_{by}"
            sums = [amount or 0 for amount in con.execute(text).fetchall()[0]]
            assert sums == [now.spent, now.reserved, now.unresolved], by


def seconds(day: str) -> int:
    return int(datetime.fromisoformat(f"{day}T00:00:00+00:00").timestamp())


def bucket(day: str, *results: dict[str, Any]) -> dict[str, Any]:
    return {"object": "bucket", "start_time": seconds(day), "end_time": seconds(day) + 86400, "results": list(results)}


def used(
    requests: int,
    tokens: int,
    output: int,
    cached: int = 0,
    model: str = "gpt-4.1-nano-2025-04-14",
    batch: bool | None = True,
) -> dict[str, Any]:
    return {
        "object": "organization.usage.completions.result",
        "input_tokens": tokens,
        "output_tokens": output,
        "input_cached_tokens": cached,
        "input_audio_tokens": 0,
        "output_audio_tokens": 0,
        "num_model_requests": requests,
        "project_id": None,
        "user_id": None,
        "api_key_id": None,
        "model": model,
        "batch": batch,
        "service_tier": None,
    }


def cost(usd: Any, item: str | None = None) -> dict[str, Any]:
    return {
        "object": "organization.costs.result",
        "amount": {"value": usd, "currency": "usd"},
        "line_item": item,
        "project_id": None,
        "quantity": None,
    }


def page(*buckets: dict[str, Any], more: bool = False) -> dict[str, Any]:
    return {"object": "page", "data": list(buckets), "has_more": more, "next_page": "p2" if more else None}


def a_batch(store: Store, *, lost: bool = False) -> str:
    """Two answered rows of 1,500 and 5 tokens on 30 October, and a third that was never seen."""
    budget(store, "9")
    one = attempt(store, [key(1), key(2), *([key(3)] if lost else [])], "0.001", batch_id="batch_1")
    answer(store, one, key(1), 1000, 2, cached=600)
    answer(store, one, key(2), 500, 3)
    lose(store, one)
    on_day(store, "2026-10-30")
    return one
