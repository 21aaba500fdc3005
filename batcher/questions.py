"""What is asked: a task's questions about a dataset version, and the ids under which questions and grades are kept.

Knows tasks and how to render them page by page; nothing of money, replies or the course of a run. Everything that can
change an answer is in an id: the grader's name and fingerprint, the rubric's content, how it is decoded.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Container, Iterator, Mapping
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

    @property
    def samples(self) -> int:
        """How often each example is asked about."""
        ...

    def probe(self) -> Request:
        """A question made like all others, about an empty example."""
        ...

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

    `asks` holds a number for each question, position * task.samples + sample: the samples of a row stand together. Can
    be gone through again. `about` remembers, where one is given, which example and sample each rendered key is about.
    """

    def __init__(
        self,
        store: Store,
        task: Task,
        setup: Setup,
        version_id: str,
        asks: array[int],
        about: dict[str, tuple[str, int]] | None = None,
    ) -> None:
        self.store, self.task, self.setup, self.version_id = store, task, setup, version_id
        self.asks, self.about = asks, about

    def __len__(self) -> int:
        return len(self.asks)

    def __iter__(self) -> Iterator[Request]:
        samples = self.task.samples
        for start in range(0, len(self.asks), PAGE_ROWS):
            page = self.asks[start : start + PAGE_ROWS]
            found = self._page(array("q", dict.fromkeys(ask // samples for ask in page)))
            for ask in page:
                example_id, example = found[ask // samples]
                request = self.task.request(example_id, example, self.setup.setup_id, ask % samples)
                if self.about is not None:
                    self.about[request.key] = (example_id, ask % samples)
                yield request

    def only(self, positions: Container[int]) -> Questions:
        """Those of the questions that are about rows at these positions."""
        kept = array("q", (ask for ask in self.asks if ask // self.task.samples in positions))
        return Questions(self.store, self.task, self.setup, self.version_id, kept)

    def first(self, rows: int) -> Questions:
        """Those of the questions that are about the first so many rows."""
        samples, seen, end = self.task.samples, 0, 0
        last: int | None = None
        for end, ask in enumerate(self.asks):  # noqa: B007
            if ask // samples != last:
                last, seen = ask // samples, seen + 1
                if seen > rows:
                    break
        else:
            end = len(self.asks)
        return Questions(self.store, self.task, self.setup, self.version_id, self.asks[:end])

    @property
    def rows(self) -> int:
        """How many rows they are about."""
        samples = self.task.samples
        return len(self.asks) if samples == 1 else len({ask // samples for ask in self.asks})

    def _page(self, positions: array[int]) -> dict[int, tuple[str, Example]]:
        parameters = {
            "version_id": self.version_id,
            "low": positions[0],
            "high": positions[-1],
            "positions": list(positions),
        }
        with self.store.reader() as con:
            found = rows(con, named_query("examples_at").text, parameters).rows
        return {
            position: (
                i,
                Example(
                    instruction, input_, output, system, tuple(Turn(*t) for t in json.loads(turns)) if turns else ()
                ),
            )
            for position, i, system, turns, instruction, input_, output in found
        }


def pending(
    store: Store, task: Task, backend: Backend, version_id: str, *, retry: bool = False
) -> tuple[Questions, int]:
    """The questions that are still to be asked, and how many are answered already. Writes nothing."""
    setup = setup_of(task, backend)
    parameters = {"version_id": version_id, "setup_id": setup.setup_id, "retry": retry, "samples": task.samples}
    with store.reader() as con:
        found = rows(con, named_query("to_ask").text, parameters).rows
    asks = array("q", (ask for ask, wanted in found if wanted))
    return Questions(store, task, setup, version_id, asks), len(found) - len(asks)
