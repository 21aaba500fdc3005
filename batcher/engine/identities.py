"""Whether the ids in a database are those of its content: each is derived anew and compared.

An id is a hash of content (`store.ids`). One that differs means that rows were changed by another program, or that this
release derives ids in another way than the one that wrote them: then what was answered would be asked, and paid, again.
Only ids of this release's version of the hash are compared. Writes nothing and asks nobody.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from alpasift.batcher.data.identity import example_id
from alpasift.batcher.engine.questions import example_of
from alpasift.batcher.engine.setups import PromptSetup
from alpasift.batcher.engine.subjects import subject_id
from alpasift.batcher.engine.task import Item, StoredSetup, Task, task_of
from alpasift.batcher.store import ID_VERSION, Store, hash_id, named_query, rows

PAGE = 10_000
LABEL = "label"
"""The answer format of grades made elsewhere: nobody was asked, and a question's key has no text."""


@dataclass(frozen=True, slots=True)
class Checked:
    """One kind of id: how many were compared, how many differ, and the first that does.

    skipped   ids that another version of the hash made
    """

    kind: str
    compared: int
    different: int
    skipped: int
    first: str | None


def label_key(setup_id: str, example: str) -> str:
    """The key of the question about an example in a file of labels."""
    return hash_id("question", setup_id, example, LABEL, "0")


def verify_ids(store: Store) -> list[Checked]:
    """Derive the ids of examples, subjects, setups and questions anew: one entry a kind."""
    return [
        _checked("examples", _examples(store)),
        _checked("subjects", _subjects(store)),
        _checked("setups", _setups(store)),
        _checked("questions", _questions(store)),
    ]


_Pair = tuple[str, str | None]
"""The id that is stored, and the one that its content gives; None where another version of the hash made it."""


def _checked(kind: str, pairs: Iterator[_Pair]) -> Checked:
    compared = different = skipped = 0
    first = None
    for stored, derived in pairs:
        if derived is None:
            skipped += 1
            continue
        compared += 1
        if stored != derived:
            different, first = different + 1, first or stored
    return Checked(kind, compared, different, skipped, first)


def _pages(store: Store, query: str, **parameters: object) -> Iterator[tuple[object, ...]]:
    """The rows of a named query, page by page, in the order of their ids."""
    after = "00000000-0000-0000-0000-000000000000"
    first = True
    while True:
        given = {**parameters, "after": after, "first": first, "count": PAGE}
        with store.reader() as con:
            found = rows(con, named_query(query).text, given).rows
        yield from found
        if len(found) < PAGE:
            return
        after, first = str(found[-1][0]), False


def _examples(store: Store) -> Iterator[_Pair]:
    for stored, version, *fields in _pages(store, "examples_page"):
        derived = example_id(example_of(*map(str, fields))) if version == ID_VERSION else None
        yield str(stored), derived


def _subjects(store: Store) -> Iterator[_Pair]:
    for stored, kind, content in _pages(store, "subjects_page"):
        yield str(stored), subject_id(str(kind), str(content))


def _setups(store: Store) -> Iterator[_Pair]:
    for setup, name, fingerprint, stored in _stored_setups(store):
        grader_id = hash_id("grader", name, fingerprint)
        rubric_id = hash_id("rubric", _task(stored).identity.digest)
        yield setup.setup_id, hash_id("setup", stored.task, grader_id, rubric_id, setup.decoding)


def _questions(store: Store) -> Iterator[_Pair]:
    for setup, _, _, stored in _stored_setups(store):
        labels = stored.decoding.get("contract") == LABEL
        task = None if labels else _task(stored)
        for key, version, sample, subject, example, content, *fields in _pages(
            store, "questions_page", setup_id=setup.setup_id
        ):
            derived = None
            if version == ID_VERSION and task is None:
                derived = label_key(setup.setup_id, str(subject))
            elif version == ID_VERSION and task is not None:
                row = None if fields[0] is None else example_of(*map(str, fields))
                more = json.loads(str(content)) if content is not None else {}
                item = Item(str(subject), row, more, None if example is None else str(example))
                derived = task.request(item, setup.setup_id, int(str(sample))).key
            yield str(key), derived


def _stored_setups(store: Store) -> Iterator[tuple[PromptSetup, str, str, StoredSetup]]:
    """Every setup with its grader's name and fingerprint, and what makes its task."""
    for row in store.query("stored_setups"):
        setup = PromptSetup(
            str(row["setup_id"]), str(row["grader_id"]), str(row["rubric_id"]), row["fingerprint"], row["decoding"]
        )
        stored = StoredSetup(row["task"], json.loads(row["content"]), json.loads(row["decoding"]))
        yield setup, row["grader"], row["fingerprint"], stored


def _task(stored: StoredSetup) -> Task:
    """The task of a setup; of labels the one whose rubric they follow, asked in any format."""
    if stored.decoding.get("contract") == LABEL:
        decoding = {"contract": "explain"}
        return task_of(StoredSetup(stored.task, stored.content, decoding))
    return task_of(stored)
