"""Rows whose text is addressed to the grader: counted before anything grades them.

The same function as the grader `rules` applies, over the few rows that the database picks for it.
"""

from __future__ import annotations

from alpasift.batcher.store import Store
from alpasift.graders import Example
from alpasift.graders.row_form.addresses_grader import MAY_ADDRESS, addresses_the_grader


def addressed_rows(store: Store, version_id: str) -> int:
    """How many rows of a dataset version address the grader: a verdict on itself, an order, a line of the prompt."""
    found = store.query("may_address_grader", version_id=version_id, pattern=MAY_ADDRESS)
    texts = ((Example(row["instruction"], row["input"], row["output"], row["system"]), row["rows"]) for row in found)
    return sum(rows for example, rows in texts if addresses_the_grader(example))


def addressed_note(rows: int) -> str:
    """What a person should know before these rows are graded; empty for none."""
    if not rows:
        return ""
    holds = "1 row addresses the grader" if rows == 1 else f"{rows:,} rows address the grader"
    return (
        f"{holds} (a verdict on itself, an order, a line of the prompt), which raises the scores of small models; "
        "to see them: alpasift grade --grader rules, then alpasift show --reason addresses_the_grader"
    )
