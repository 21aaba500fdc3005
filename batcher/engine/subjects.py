"""Subjects that are no rows of a dataset: made by a task from rows or from nothing, kept once, and listed in an order.

Knows the tables `subjects` and `subject_lists`, and the rows of a dataset version with all their keys.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from alpasift.batcher.engine.questions import example_of
from alpasift.batcher.store import Store, append, hash_id, named_query, rows, scalar
from alpasift.graders import Example

AT_ONCE = 10_000


@dataclass(frozen=True, slots=True)
class DatasetRow:
    """One row of a dataset version: its example, and what else its file held beside it."""

    position: int
    example_id: str
    example: Example
    other: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Draft:
    """A subject to be kept: what kind of thing it is, its content, and the row that it was made from."""

    kind: str
    content: Mapping[str, Any]
    example_id: str | None = None

    @property
    def text(self) -> str:
        return json.dumps(self.content, ensure_ascii=False, sort_keys=True)

    @property
    def subject_id(self) -> str:
        return subject_id(self.kind, self.text)


def subject_id(kind: str, text: str) -> str:
    """The id of a subject with this content, as JSON text."""
    return hash_id("subject", kind, text)


def dataset_rows(store: Store, version_id: str) -> Iterator[DatasetRow]:
    """The usable rows of a dataset version, in order, read in pages."""
    for start in itertools.count(step=AT_ONCE):
        parameters = {"version_id": version_id, "start": start, "count": AT_ONCE}
        with store.reader() as con:
            found = rows(con, named_query("dataset_rows_page").text, parameters).rows
        for position, example_id, *fields, other in found:
            yield DatasetRow(position, example_id, example_of(*fields), json.loads(other))
        if len(found) < AT_ONCE:
            return


def has_list(store: Store, list_id: str) -> bool:
    with store.reader() as con:
        return bool(scalar(con, "select 1 from subject_lists where list_id = $id limit 1", {"id": list_id}))


def write_list(store: Store, list_id: str, drafts: Iterable[Draft]) -> int:
    """Keep subjects and list them in this order, in one transaction. A list that is there already stays as it is.

    Equal subjects stand in the list once. Returns how many the list holds now.
    """
    distinct: dict[str, Draft] = {}
    for draft in drafts:
        distinct.setdefault(draft.subject_id, draft)
    with store.transaction() as con:
        count = scalar(con, "select count(*) from subject_lists where list_id = $id", {"id": list_id})
        if count:
            return int(count)
        placed = enumerate(distinct.items())
        while part := list(itertools.islice(placed, AT_ONCE)):
            subjects = [(i, draft.kind, draft.text, draft.example_id) for _, (i, draft) in part]
            append(con, "subjects", ("subject_id", "kind", "content", "example_id"), subjects, unique=True)
            listed = [(list_id, position, i) for position, (i, _) in part]
            append(con, "subject_lists", ("list_id", "position", "subject_id"), listed)
    return len(distinct)
