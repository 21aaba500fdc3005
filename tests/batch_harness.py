"""What the tests of batches share: marked rows, a server that bills, one run, and what must hold after it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

from alpasift.batcher.data.importing import import_file
from alpasift.batcher.engine.collect import collect
from alpasift.batcher.engine.run import Run
from alpasift.batcher.engine.summary import Summary
from alpasift.batcher.store import Store
from alpasift.batcher.tasks.grade import Grade
from alpasift.graders import open_backend
from alpasift.graders.prompts.rubric import load_rubric
from alpasift.graders.rehearsal.server import Rehearsal
from conftest import new_store, write_rows

MODEL = "gpt-4o-mini"
MARKER = r"SCORE=(\d(?:\.5)?)"
PRICES = {
    MODEL: {"input": "0.15", "output": "0.60", "cached_input": "0.15", "cache_write": "0.15", "batch_discount": "0.5"},
}
"""Dollars per million tokens; the server's own table, from which its bill is made."""
REAL = "https://api.openai.com/v1"


def marked_rows(count: int, begin: int = 0) -> list[dict[str, str]]:
    """Distinct rows; row i says which score the server is to give it."""
    return [
        {"instruction": f"Add {i} to itself.", "input": "", "output": f"{2 * i} SCORE={marker(i)}"}
        for i in range(begin, begin + count)
    ]


def marker(i: int) -> str:
    return f"{(i * 7 % 11) / 2:g}"


def price_list(model: str = MODEL) -> str:
    """A prices.toml for the rehearsal's server: what a person would look up, at half price by batch."""
    return f"""
[[price]]
provider = "127.0.0.1"
model = "{model}"
input = "0.15"
output = "0.60"
discount = "0.5"
source = "the rehearsal's own"
date = 2026-11-01
"""


def marked_store(folder: Path, rows: int, name: str = "t.duckdb") -> Store:
    store = new_store(folder / name)
    import_file(store, write_rows(folder / "rows.jsonl", marked_rows(rows)))
    return store


@contextmanager
def key() -> Iterator[None]:
    """The server's key in the environment, and nothing else of OpenAI's."""
    before = dict(os.environ)
    for name in [n for n in os.environ if n.startswith("OPENAI_")]:
        del os.environ[name]
    os.environ["OPENAI_API_KEY"] = "rehearsal"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def options(server: Rehearsal, **more: Any) -> dict[str, Any]:
    given = {"base_url": server.url, "stands_for": REAL, "poll_seconds": 0.02, "grace_seconds": 0.0, **more}
    return {k: v for k, v in given.items() if v is not None}


def grade(
    store: Store, server: Rehearsal, *, budget: str | None = "5", limit: int | None = None, **more: Any
) -> Summary:
    """One run of `grade` in this process."""
    version = store.locked_query("select version_id from dataset_versions order by imported_at limit 1").rows[0][0]
    backend = open_backend(f"openai_batch:{MODEL}", options(server, **more))
    task = Grade(load_rubric("accuracy"))
    dollars = None if budget is None else Decimal(budget)
    with Run(store, task, backend, str(version), budget=dollars, limit=limit) as run:
        if len(run.questions):
            run.check_affordable(run.estimate())
        return run.go()


def gather(store: Store, server: Rehearsal, *, wait: bool = False, **more: Any) -> Any:
    return collect(store, options(server, **more), wait=wait)


def money(store: Store) -> dict[str, Decimal]:
    """The balance; it must add up to the last decimal."""
    found = store.query("ledger")[0]
    parts = ("spent_usd", "reserved_usd", "unresolved_usd", "free_usd")
    assert sum(found[p] for p in parts) == found["budget_usd"]
    return found


def scores(store: Store) -> dict[int, str | None]:
    """position -> score as people write it; every row must have exactly one line."""
    found = store.locked_query("select position, score::double from graded_rows order by position").rows
    assert len({p for p, _ in found}) == len(found)
    return {p: None if s is None else f"{s:g}" for p, s in found}


def expected(rows: int) -> dict[int, str]:
    return {i: marker(i) for i in range(rows)}


def check(store: Store, server: Rehearsal, rows: int, *, settled: bool = True) -> dict[str, Decimal]:
    """Each row has the score that it asked for, and the ledger is the bill."""
    assert scores(store) == expected(rows)
    found = money(store)
    bill = server.billed_usd()
    assert found["reserved_usd"] == 0
    if settled:
        assert (found["spent_usd"], found["unresolved_usd"]) == (bill, 0)
    else:
        assert found["spent_usd"] <= bill <= found["spent_usd"] + found["unresolved_usd"]
    return found


def executed_twice(server: Rehearsal) -> list[Any]:
    return [key for key, times in Counter(server.executions()).items() if times > 1]


def attempts(store: Store, kind: str = "batch") -> int:
    text = "select count(*) from attempts where facts::json ->> 'kind' = $kind"
    return int(store.locked_query(text, {"kind": kind}).rows[0][0])
