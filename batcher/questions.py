"""What is asked: a task's questions about a dataset version, and the ids under which questions and grades are kept.

Knows tasks and how to render them page by page; nothing of money, replies or the course of a run. Everything that can
change an answer is in an id: the grader's name and fingerprint, the rubric's content, how it is decoded.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from batcher.store import Connection, Store, append, hash_id, named_query, rows, scalar, utc_now
from graders import Backend, Example, Reply, Request, Turn
from graders.reading import Reading
from graders.rubric import Rubric

PAGE_ROWS = 10_000


class Task(Protocol):
    """What to ask about an example, and how to read the answer."""

    name: str

    @property
    def rubric(self) -> Rubric: ...

    @property
    def decoding(self) -> Mapping[str, Any]: ...

    def request(self, example_id: str, example: Example, setup_id: str, sample: int) -> Request: ...

    def read(self, reply: Reply) -> Reading: ...


@dataclass(frozen=True, slots=True)
class Setup:
    """Who answers which rubric and how: the ids under which questions and grades are kept."""

    setup_id: str
    grader_id: str
    rubric_id: str
    fingerprint: str
    decoding: str


def setup_of(task: Task, backend: Backend) -> Setup:
    """The ids of a task put to a backend: hashes of all that can change an answer. Writes nothing."""
    fingerprint = json.dumps(dict(backend.fingerprint), sort_keys=True)
    decoding = json.dumps(dict(task.decoding), sort_keys=True)
    grader_id = hash_id("grader", backend.name, fingerprint)
    rubric_id = hash_id("rubric", task.rubric.digest())
    return Setup(
        hash_id("setup", task.name, grader_id, rubric_id, decoding), grader_id, rubric_id, fingerprint, decoding
    )


def write_setup(con: Connection, task: Task, backend: Backend, setup: Setup) -> None:
    rubric = task.rubric
    _register(con, "graders", "grader_id", setup.grader_id, backend.name, {"fingerprint": setup.fingerprint})
    scale = {
        "scale_low": rubric.low,
        "scale_high": rubric.high,
        "scale_step": rubric.step,
        "threshold": rubric.threshold,
    }
    content = {**scale, "content": json.dumps(rubric.content())}
    _register(con, "rubrics", "rubric_id", setup.rubric_id, rubric.name, content)
    columns = ("setup_id", "task", "grader_id", "rubric_id", "decoding")
    row = (setup.setup_id, task.name, setup.grader_id, setup.rubric_id, setup.decoding)
    append(con, "setups", columns, [row], unique=True)


def _register(con: Connection, table: str, id_column: str, identity: str, name: str, extra: Mapping[str, Any]) -> None:
    if scalar(con, f"select 1 from {table} where {id_column} = $id", {"id": identity}):
        return
    version = (scalar(con, f"select max(version) from {table} where name = $name", {"name": name}) or 0) + 1
    columns = (id_column, "name", "version", *extra, "first_seen")
    append(con, table, columns, [(identity, name, version, *extra.values(), utc_now())])


class Questions:
    """What a setup still has to ask about a dataset version, rendered page by page: memory does not grow with it.

    Can be gone through again. `about` remembers, where one is given, which example each rendered key is about.
    """

    def __init__(
        self,
        store: Store,
        task: Task,
        setup: Setup,
        version_id: str,
        positions: array[int],
        about: dict[str, str] | None = None,
    ) -> None:
        self.store, self.task, self.setup, self.version_id = store, task, setup, version_id
        self.positions, self.about = positions, about

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[Request]:
        for start in range(0, len(self.positions), PAGE_ROWS):
            for example_id, example in self._page(self.positions[start : start + PAGE_ROWS]):
                request = self.task.request(example_id, example, self.setup.setup_id, 0)
                if self.about is not None:
                    self.about[request.key] = example_id
                yield request

    def _page(self, positions: array[int]) -> list[tuple[str, Example]]:
        parameters = {
            "version_id": self.version_id,
            "low": positions[0],
            "high": positions[-1],
            "positions": list(positions),
        }
        with self.store.reader() as con:
            found = rows(con, named_query("examples_at").text, parameters).rows
        return [
            (
                i,
                Example(
                    instruction, input_, output, system, tuple(Turn(*t) for t in json.loads(turns)) if turns else ()
                ),
            )
            for i, system, turns, instruction, input_, output in found
        ]


def pending(
    store: Store, task: Task, backend: Backend, version_id: str, *, retry: bool = False
) -> tuple[Questions, int]:
    """The questions that are still to be asked, and how many rows are answered already. Writes nothing."""
    setup = setup_of(task, backend)
    parameters = {"version_id": version_id, "setup_id": setup.setup_id, "retry": retry}
    with store.reader() as con:
        found = rows(con, named_query("to_ask").text, parameters).rows
    ask = array("q", (position for position, wanted in found if wanted))
    return Questions(store, task, setup, version_id, ask), len(found) - len(ask)
