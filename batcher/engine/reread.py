"""Stored replies, read again by the parsers of this release: asks nobody, and moves no money.

A reply is kept as it came, so a better parser reads it again. What its earlier reading was stays in the database; the
newest parser's counts. Grades that people made are no replies to a parser and stay as they are.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass

from alpasift.batcher.engine.identities import LABEL
from alpasift.batcher.engine.readings import ReadAgain, read_again
from alpasift.batcher.engine.task import StoredSetup, Task, task_names, task_of
from alpasift.batcher.store import Store, StoreBusy, named_query, rows
from alpasift.graders import AlpaSiftError


@dataclass(frozen=True, slots=True)
class Reread:
    """What reading stored replies again did.

    replies  replies that an earlier parser had read
    changed  questions about which they say another score (or verdict) now, or none any more
    waiting  replies that could not be read again, for the database cannot be written now
    """

    replies: int = 0
    changed: int = 0
    waiting: int = 0


def read_stored_again(store: Store) -> Reread:
    """Have every stored reply read by the present parser of its task. Does nothing where they all were."""
    found = _unread(store)
    if not found:
        return Reread()
    if not os.access(store.path, os.W_OK):
        return Reread(waiting=sum(count for *_, count in found))
    total, waiting = ReadAgain(), 0
    for task, setup_id, count in found:
        try:
            with store.transaction(wait=min(store.wait, 5.0)) as con:
                total += read_again(con, task, setup_id)
        except StoreBusy:
            waiting += count
    return Reread(total.replies, total.changed, waiting)


def _unread(store: Store) -> list[tuple[Task, str, int]]:
    """The setups that have such replies, each with its task and how many."""
    found = list[tuple[Task, str, int]]()
    with store.reader() as con:
        for name in task_names():
            parameters = {"task": name, "reader": _version_of(name), "labels": LABEL}
            for setup_id, content, decoding, count in rows(con, named_query("unread_setups").text, parameters).rows:
                with contextlib.suppress(AlpaSiftError):  # made by another release: its own parser read it
                    stored = StoredSetup(name, json.loads(content), json.loads(decoding))
                    found.append((task_of(stored), str(setup_id), count))
    return found


def _version_of(name: str) -> str:
    from importlib import import_module

    version: str = import_module(f"alpasift.batcher.tasks.{name}").TASK.reader_version
    return version
