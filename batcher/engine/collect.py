"""Batches in flight: collect them or stop them, from any process.

Knows what an attempt wrote down about itself, and how to make the grader and the task from it again, so that a batch is
read by the parser of the task that asked, whatever has become of the command that sent it. Money and replies go through
the engine and the ledger as in every run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from alpasift.batcher.engine.in_flight import interrupted
from alpasift.batcher.engine.run import Run
from alpasift.batcher.engine.setups import PromptSetup
from alpasift.batcher.engine.task import StoredSetup, task_of
from alpasift.batcher.store import Store
from alpasift.graders import AlpaSiftError, Backend, Meter, Replies, open_backend


class NoSuchBatch(AlpaSiftError):
    """No batch in flight has this name."""


@dataclass(frozen=True, slots=True)
class Group:
    """Batches in flight of one grader and one setup: what is needed to look after them.

    manual   request files that a person carries, not batches at a provider
    """

    spec: str
    options: Mapping[str, Any]
    setup: PromptSetup
    stored: StoredSetup
    version_id: str
    attempts: tuple[str, ...]
    manual: bool

    def run(self, store: Store, backend: Backend, command: str) -> Run:
        """A run of the task that asked these questions, which asks nothing."""
        task = task_of(self.stored)
        return Run(store, task, backend, self.version_id, command=command, setup=self.setup, collecting=True)


@dataclass(frozen=True, slots=True)
class Collected:
    """What a look at the batches brought: replies, how many are usable, dollars, and questions still in flight.

    problems   why some could not be looked at, a message each; the others were
    alarms     what was charged that must not have been; nothing more is sent until a person has looked
    """

    replies: int
    usable: int
    usd: Decimal
    in_flight: int
    problems: tuple[str, ...] = ()
    alarms: tuple[str, ...] = ()


def groups_in_flight(store: Store) -> list[Group]:
    """What is in flight, by grader and setup; batches at a provider and manually carried files are separate groups."""
    found: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for row in store.query("batches_in_flight"):
        found.setdefault((str(row["setup_id"]), row["kind"] == "by_hand"), []).append(row)
    return [_group(rows, manual) for (_, manual), rows in found.items()]


def _group(rows: Sequence[Mapping[str, Any]], manual: bool) -> Group:
    last = rows[-1]
    facts = json.loads(last["attempt_facts"])
    setup_id, grader_id, rubric_id = (str(last[name]) for name in ("setup_id", "grader_id", "rubric_id"))
    options = {name: facts.get(name) for name in ("base_url", "stands_for", "executed_by")}
    return Group(
        spec=f"{facts['backend']}:{facts['model']}",
        options={k: v for k, v in options.items() if v},
        setup=PromptSetup(setup_id, grader_id, rubric_id, last["fingerprint"], last["decoding"]),
        stored=StoredSetup(last["task"], json.loads(last["rubric_content"]), json.loads(last["decoding"])),
        version_id=str(last["version_id"]),
        attempts=tuple(str(row["attempt_id"]) for row in rows),
        manual=manual,
    )


def collect(store: Store, options: Mapping[str, Any] | None = None, *, wait: bool = False) -> Collected:
    """Ask after every batch in flight and store what has come; with `wait`, until none is. Sends nothing new."""

    def one(group: Group) -> Collected:
        with _opened(store, group, options, wait, "collect") as run:
            return _brought(run, run.gather(wait=wait))

    try:
        return _of_each(store, [g for g in groups_in_flight(store) if not g.manual], one)
    except KeyboardInterrupt as error:
        raise interrupted(store) from error


def cancel(
    store: Store, what: str | None, options: Mapping[str, Any] | None = None, *, wait: bool = False
) -> Collected:
    """Stop the batch of that id (or attempt, or a beginning of either; None: all), and settle what was done of it."""
    wanted = _named(store, what)

    def one(group: Group) -> Collected:
        mine = [attempt for attempt in group.attempts if attempt in wanted]
        with _opened(store, group, options, wait, "cancel") as run:
            for attempt in mine:
                if group.manual:
                    run.take(_given_up(run.meter, attempt))
                else:
                    run.cancel(attempt)
            return _brought(run, run.in_flight_of(mine))

    return _of_each(store, [g for g in groups_in_flight(store) if wanted & set(g.attempts)], one)


def _of_each(store: Store, groups: Sequence[Group], work: Callable[[Group], Collected]) -> Collected:
    """Do the work for every group, whatever fails with another. Raises the error where it was the same for all."""
    found: list[Collected] = []
    errors: list[AlpaSiftError] = []
    for group in groups:
        try:
            found.append(work(group))
        except AlpaSiftError as error:
            errors.append(error)
    if errors and not found:
        raise errors[0]
    return Collected(
        sum(one.replies for one in found),
        sum(one.usable for one in found),
        sum((one.usd for one in found), Decimal(0)),
        sum(one.in_flight for one in found),
        tuple(str(error) for error in errors),
        tuple(row["note"] for row in store.query("alarms")),
    )


@contextmanager
def _opened(store: Store, group: Group, options: Mapping[str, Any] | None, wait: bool, command: str) -> Iterator[Run]:
    backend = open_backend(group.spec, {**group.options, **(options or {}), "wait": wait})
    try:
        with group.run(store, backend, command) as run:
            yield run
    finally:
        backend.close()


def _brought(run: Run, in_flight: int) -> Collected:
    return Collected(run.writer.stored, run.progress.usable, run.progress.usd, in_flight)


def _named(store: Store, what: str | None) -> set[str]:
    """The attempts in flight that a name stands for. Raises NoSuchBatch when there is none, or more than one."""
    rows = [row for row in store.query("batches_in_flight") if what is None or _is_called(row, what)]
    if not rows and what:
        raise NoSuchBatch(f"no batch in flight has the id {what!r}; `alpasift status` lists them")
    if not rows:
        raise NoSuchBatch("no batch is in flight")
    if what is not None and len(rows) > 1:
        raise NoSuchBatch(f"{len(rows)} batches in flight start with {what!r}; give more of the id")
    return {str(row["attempt_id"]) for row in rows}


def _is_called(row: Mapping[str, Any], what: str) -> bool:
    return str(row["attempt_id"]).startswith(what) or bool(row["batch_id"] and str(row["batch_id"]).startswith(what))


def _given_up(meter: Meter, attempt: str) -> Replies:
    """Files that nobody will bring back: whether they were run is not known here, so their money becomes unresolved."""
    meter.close(attempt)
    yield []
