"""The questions of a run: rendered page by page from the store, so that memory does not grow with the dataset.

Knows tasks, sources and what has been answered; nothing of money, replies or the course of a run.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from alpasift.batcher.engine.setups import PromptSetup, setup_of
from alpasift.batcher.engine.task import Item, Source, Task
from alpasift.batcher.store import Store, named_query, rows
from alpasift.graders import Backend, Example, Request, Turn

PAGE_ROWS = 10_000


class Subject(NamedTuple):
    """What a rendered question is about: its subject, the row that this comes from, and which sample it is."""

    subject_id: str
    example_id: str | None
    sample: int


class Questions:
    """Some questions of a task about a source, in order. Can be iterated again; each time they are rendered anew.

    `numbers` holds one number a question, position * task.samples + sample, so that the samples of a subject stand
    together. `about` remembers, where a dict is given, the subject of each key that was rendered. `lost` counts those
    given up since two requests were never answered and may have been paid for.
    """

    def __init__(
        self,
        store: Store,
        task: Task,
        setup: PromptSetup,
        source: Source,
        numbers: array[int],
        about: dict[str, Subject] | None = None,
    ) -> None:
        self.store, self.task, self.setup, self.source = store, task, setup, source
        self.numbers, self.about = numbers, about
        self.lost = 0

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Request]:
        samples = self.task.samples
        for start in range(0, len(self.numbers), PAGE_ROWS):
            page = self.numbers[start : start + PAGE_ROWS]
            found = _items_at(self.store, self.source, array("q", dict.fromkeys(n // samples for n in page)))
            for number in page:
                item = found[number // samples]
                request = self.task.request(item, self.setup.setup_id, number % samples)
                if self.about is not None:
                    self.about[request.key] = Subject(item.subject_id, item.example_id, number % samples)
                yield request

    def some(self, numbers: array[int]) -> Questions:
        """Questions of the same task about the same source with these numbers."""
        return Questions(self.store, self.task, self.setup, self.source, numbers)

    def only(self, numbers: Container[int]) -> Questions:
        """Those of the questions that have these numbers."""
        return self.some(array("q", (n for n in self.numbers if n in numbers)))

    def first(self, rows: int) -> Questions:
        """Those of the questions that are about the first so many subjects."""
        samples, seen, end = self.task.samples, 0, len(self.numbers)
        last: int | None = None
        for place, number in enumerate(self.numbers):
            if number // samples != last:
                last, seen = number // samples, seen + 1
                if seen > rows:
                    end = place
                    break
        return self.some(self.numbers[:end])

    @property
    def rows(self) -> int:
        """How many subjects they are about."""
        samples = self.task.samples
        return len(self.numbers) if samples == 1 else len({n // samples for n in self.numbers})


@dataclass(frozen=True, slots=True)
class Pending:
    """The questions that are still to be asked, and what there is of the others.

    already   questions that are not to be asked: answered, given up or in flight; `in_flight` of them with a batch
    usable    questions with an answer that could be read; `unread` with none but answers that could not
    """

    questions: Questions
    already: int
    usable: int
    unread: int
    in_flight: int


def pending(
    store: Store, task: Task, backend: Backend, version_id: str, *, retry: bool = False, most_answers: int = 2
) -> Pending:
    """The questions of a task about a dataset version that are still to be asked. One that has got `most_answers` of
    no use is given up, unless `retry`."""
    setup, source = setup_of(task, backend), task.items(store, version_id)
    parameters = {
        "source_id": source.source_id,
        "setup_id": setup.setup_id,
        "retry": retry,
        "most_answers": most_answers,
        "samples": task.samples,
    }
    with store.reader() as con:
        found = rows(con, named_query("pending_questions").text, parameters).rows
    numbers = array("q", (number for number, is_pending, *_ in found if is_pending))
    questions = Questions(store, task, setup, source, numbers)
    questions.lost = sum(is_lost for _, _, is_lost, *_ in found)
    return Pending(
        questions,
        len(found) - len(numbers) - questions.lost,
        sum(brought == "usable" for *_, brought, _ in found),
        sum(brought == "unread" for *_, brought, _ in found),
        sum(in_flight for *_, in_flight in found),
    )


def _items_at(store: Store, source: Source, positions: array[int]) -> dict[int, Item]:
    where = {"low": positions[0], "high": positions[-1], "positions": list(positions)}
    if source.of_rows:
        with store.reader() as con:
            found = rows(con, named_query("examples_at").text, {"version_id": source.version_id, **where}).rows
        return {
            position: Item(example_id, example_of(*fields), example_id=example_id)
            for position, example_id, *fields in found
        }
    with store.reader() as con:
        found = rows(con, named_query("subjects_at").text, {"list_id": source.source_id, **where}).rows
    return {
        position: Item(subject_id, None, json.loads(content), example_id)
        for position, subject_id, example_id, content in found
    }


def example_of(system: str, turns: str, instruction: str, input_: str, output: str) -> Example:
    """The example of a row of the table `examples`."""
    earlier = tuple(Turn(*turn) for turn in json.loads(turns)) if turns else ()
    return Example(instruction, input_, output, system, earlier)
