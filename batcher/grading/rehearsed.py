"""A command as it was given, led to its rehearsal: the grader by the name that opens it, on a copy of the database."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from alpasift.batcher.engine.run_task import Caps
from alpasift.batcher.grading.open_grader import spec_named
from alpasift.batcher.store import Store


class Rehearsed(NamedTuple):
    """What stands in place of what was given."""

    store: Store
    grader: str
    settings: dict[str, Any]
    caps: Caps


@contextmanager
def rehearsed(store: Store, grader: str, settings: Mapping[str, Any], caps: Caps) -> Iterator[Rehearsed]:
    """The copy, the grader's spec, and settings and caps for the server on this machine, until the block ends."""
    from alpasift.batcher.engine.rehearse import rehearsal  # the server's side is needed by rehearsals only

    spec = spec_named(store, grader).spec
    with rehearsal(store, spec, settings, caps.budget) as (copy, given, budget):
        yield Rehearsed(copy, spec, given, replace(caps, budget=budget))
