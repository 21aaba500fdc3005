"""What replies say, as rows: written once a reply is in, and again for stored replies when a task's parser got better.

Knows tasks and the table `readings`; asks nobody and moves no money.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from alpasift.batcher.engine.task import Reading, StoredSetup, Task, UnknownTask, task_of
from alpasift.batcher.store import Connection, append, named_query, rows, stored_json, stored_text, these_keys, utc_now
from alpasift.graders import Reply

_COLUMNS = (
    "attempt_id",
    "key",
    "request_id",
    "task",
    "reader",
    "usable",
    "score",
    "expected",
    "reason",
    "explanation",
    "value",
    "recorded_at",
)
_OWN_COLUMN = {"score", "expected_score", "explanation"}
AT_ONCE = 5000


@dataclass(frozen=True, slots=True)
class Parser:
    """Which parser read something: a task's name and the version of its reader."""

    task: str
    version: str


def parser_of(task: Task) -> Parser:
    return Parser(task.name, task.reader_version)


def read_reply(task: Task, reply: Reply) -> Reading:
    """The task's reading of a reply; a parser that fails on a text must not keep its charge from being booked."""
    try:
        return task.read(reply)
    except Exception as error:  # noqa: BLE001  see above
        return Reading(False, "unreadable", {"explanation": f"the parser failed: {type(error).__name__}: {error}"})


def write_readings(con: Connection, parser: Parser, pairs: Sequence[tuple[Reply, Reading]]) -> int:
    """Write how replies were read. Returns how many are usable."""
    now = utc_now()
    table = []
    for reply, reading in pairs:
        value = reading.value
        table.append(
            (
                reply.attempt,
                reply.key,
                stored_text(reply.request_id),
                parser.task,
                parser.version,
                reading.usable,
                value.get("score"),
                value.get("expected_score"),
                reading.reason,
                stored_text(value.get("explanation")),
                _others(reading),
                now,
            )
        )
    append(con, "readings", _COLUMNS, table, unique=True)
    return sum(reading.usable for _, reading in pairs)


@dataclass(frozen=True, slots=True)
class ReadAgain:
    """How many stored replies were read again, and about how many questions they say something else now, or nothing."""

    replies: int = 0
    changed: int = 0

    def __add__(self, other: ReadAgain) -> ReadAgain:
        return ReadAgain(self.replies + other.replies, self.changed + other.changed)


def read_again(con: Connection, task: Task, setup_id: str) -> ReadAgain:
    """Read the stored replies of a setup that the present parser of its task has not read.

    Returns how many of them an earlier parser had read, and about how many questions it had read something else.
    """
    parameters = {"setup_id": setup_id, "reader": task.reader_version}
    found = rows(con, named_query("unread").text, parameters).rows
    replies = [
        Reply(
            str(attempt),
            str(key),
            request_id,
            outcome,
            text=text,
            finish_reason=finish_reason,
            error=error,
            logprobs=json.loads(logprobs) if logprobs else None,
        )
        for attempt, key, request_id, outcome, text, finish_reason, error, logprobs, *_ in found
    ]
    again, changed = 0, set[str]()
    for start in range(0, len(replies), AT_ONCE):
        pairs = [(reply, read_reply(task, reply)) for reply in replies[start : start + AT_ONCE]]
        write_readings(con, parser_of(task), pairs)
        for (reply, reading), (*_, was_read, score, value) in zip(pairs, found[start : start + AT_ONCE], strict=True):
            again += bool(was_read)
            if was_read and (reading.value.get("score"), _others(reading)) != (score, value):
                changed.add(reply.key)
    return ReadAgain(again, len(changed))


def _others(reading: Reading) -> str | None:
    """What was read beside a score, as it is stored."""
    more = {name: part for name, part in reading.value.items() if name not in _OWN_COLUMN}
    return stored_json(more) if more else None


def read_each_by_its_task(con: Connection, replies: Sequence[Reply]) -> None:
    """Read stored replies of any setup, each by the task that asked; those of a task that is not known here wait."""
    text = """
        select distinct s.setup_id::varchar, s.task, r.content, s.decoding
        from questions q join setups s using (setup_id) join rubrics r using (rubric_id)
        where q.key in (select key from wanted)
    """
    with these_keys(con, {reply.key for reply in replies}):
        found = rows(con, text).rows
    for setup_id, task, content, decoding in found:
        with contextlib.suppress(UnknownTask):
            read_again(con, task_of(StoredSetup(task, json.loads(content), json.loads(decoding))), setup_id)
