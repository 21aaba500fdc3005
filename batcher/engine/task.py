"""What a task is: what to ask about a subject, and how to read the answer.

A task is one file in `batcher/tasks/`, found by its name as a backend is; `task_of(stored)` makes one from what the
database holds, so that a batch can be collected by a process that knows nothing of the command that sent it. The engine
knows tasks through this protocol only, and no task knows backends, money or tables.

    from alpasift.batcher.engine.task import task_of
    task = task_of(StoredSetup("grade", content, decoding))
    task.read(reply)        # Reading(usable=True, reason=None, value={"score": Decimal("4.5"), ...})
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from importlib import import_module, resources
from typing import Any, Protocol

from alpasift.batcher.store import Store
from alpasift.graders import AlpaSiftError, Example, Reply, Request


class UnknownTask(AlpaSiftError):
    """The database names a task that this release does not have."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The scores that a rubric knows: from `low` to `high` by `step`; `threshold` is its default for what to keep."""

    low: Decimal
    high: Decimal
    step: Decimal
    threshold: Decimal


@dataclass(frozen=True, slots=True)
class Identity:
    """What a task asks by: all of it is hashed into its questions.

    name      what a person calls it: a rubric's name
    content   JSON; with the decoding it is enough to make the task again
    digest    of the content
    scale     where an answer is a score
    """

    name: str
    content: Mapping[str, Any]
    digest: str
    scale: Scale | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """Where the subjects of a run come from, in order: the distinct rows of a dataset version, or a list of subjects.

    source_id     the version's id, or the id of a list in `subject_lists`
    version_id    the dataset version that a run is shown to be about, None where there is none
    """

    source_id: str
    version_id: str | None

    @property
    def of_rows(self) -> bool:
        return self.source_id == self.version_id


@dataclass(frozen=True, slots=True)
class Item:
    """One subject of a source: what a question is about.

    subject_id   hash of its content; of a row its example_id
    example      the row, where the subject is one
    content      what else a subject holds, two answers for instance
    example_id   the row that the subject is or was made from, None where there is none
    """

    subject_id: str
    example: Example | None = None
    content: Mapping[str, Any] = field(default_factory=dict)
    example_id: str | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reply says.

    usable   whether it answers the question; if not, the question may be asked once more
    reason   why it is not usable (unreadable, cut_off, refused, ...), or the grader's own reason beside a value
    value    what was read. `score` (a Decimal), `expected_score` (a float) and `explanation` (a text) have columns of
             their own, everything else is kept as JSON; it may hold several things, new examples for instance
    """

    usable: bool
    reason: str | None = None
    value: Mapping[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """What to ask about a subject, and how to read the answer. A file in `batcher/tasks/` calls its class TASK."""

    name: str
    """the name of its file"""
    reader_version: str
    """a whole number as text; raise it when a reply would be read differently: stored replies are then read again"""

    @property
    def identity(self) -> Identity: ...

    @property
    def decoding(self) -> Mapping[str, Any]:
        """How the answer is made (tokens, temperature, answer format): JSON, hashed beside the identity."""
        ...

    @property
    def samples(self) -> int:
        """How many answers each subject gets. Not hashed: with more of them those that there are stay."""
        ...

    def items(self, store: Store, version_id: str) -> Source:
        """The items of a dataset version. May write the subjects it makes, once however often it is called."""
        ...

    def request(self, item: Item, setup_id: str, sample: int) -> Request:
        """The question about one subject; its key hashes all that can change the answer."""
        ...

    def probe(self) -> Request:
        """A question made like all others about an empty subject: what a backend is asked whether it can answer."""
        ...

    def read(self, reply: Reply) -> Reading: ...

    @classmethod
    def from_setup(cls, content: Mapping[str, Any], decoding: Mapping[str, Any]) -> Task:
        """The task that was asked with this identity's content and this decoding."""
        ...


@dataclass(frozen=True, slots=True)
class StoredSetup:
    """What the database keeps of how questions were asked: enough to read their answers."""

    task: str
    content: Mapping[str, Any]
    decoding: Mapping[str, Any]


def task_names() -> list[str]:
    """The tasks there are: one file in batcher/tasks/ each."""
    files = resources.files("alpasift.batcher.tasks").iterdir()
    return sorted(f.name[:-3] for f in files if f.name.endswith(".py") and f.name != "__init__.py")


def task_of(stored: StoredSetup) -> Task:
    """The task by which questions were asked. Raises UnknownTask."""
    if stored.task not in task_names():
        raise UnknownTask(
            f"this database holds requests of the task {stored.task!r}, which this alpasift does not support "
            f"(it supports {', '.join(task_names())}); upgrade with `pip install -U alpasift`"
        )
    task_class: type[Task] = import_module(f"alpasift.batcher.tasks.{stored.task}").TASK
    return task_class.from_setup(stored.content, stored.decoding)
