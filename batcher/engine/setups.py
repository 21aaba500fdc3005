"""Who answers which task and how: the ids under which questions and their answers are kept.

Everything that can change an answer is in an id: the grader's name and fingerprint, what the task asks by, how the
answer is decoded. Equal settings have equal ids in every database.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alpasift.batcher.engine.task import Identity, Task
from alpasift.batcher.store import Connection, append, hash_id, scalar, utc_now
from alpasift.graders import Backend


@dataclass(frozen=True, slots=True)
class PromptSetup:
    """A task put to a grader: its ids, and the JSON texts that were hashed into them."""

    setup_id: str
    grader_id: str
    rubric_id: str
    fingerprint: str
    decoding: str


def setup_of(task: Task, backend: Backend) -> PromptSetup:
    """The ids of a task put to a backend. Writes nothing."""
    return prompt_setup(task.name, task.identity, task.decoding, backend.name, backend.fingerprint)


def prompt_setup(
    task: str, identity: Identity, decoding: Mapping[str, Any], grader: str, fingerprint: Mapping[str, str]
) -> PromptSetup:
    """The ids of a task, given by its parts, put to a grader, given by its name and fingerprint."""
    decoded, made_of = json.dumps(dict(decoding), sort_keys=True), json.dumps(dict(fingerprint), sort_keys=True)
    grader_id = hash_id("grader", grader, made_of)
    rubric_id = hash_id("rubric", identity.digest)
    return PromptSetup(hash_id("setup", task, grader_id, rubric_id, decoded), grader_id, rubric_id, made_of, decoded)


def write_setup(con: Connection, setup: PromptSetup, task: str, identity: Identity, grader: str) -> None:
    """Register grader, rubric and setup under their ids. What stands already stays as it is."""
    _register(con, "graders", "grader_id", setup.grader_id, grader, {"fingerprint": setup.fingerprint})
    scale = identity.scale
    content = {
        "scale_low": scale and scale.low,
        "scale_high": scale and scale.high,
        "scale_step": scale and scale.step,
        "threshold": scale and scale.threshold,
        "content": json.dumps(identity.content),
    }
    _register(con, "rubrics", "rubric_id", setup.rubric_id, identity.name, content)
    columns = ("setup_id", "task", "grader_id", "rubric_id", "decoding")
    row = (setup.setup_id, task, setup.grader_id, setup.rubric_id, setup.decoding)
    append(con, "setups", columns, [row], unique=True)


def _register(con: Connection, table: str, id_column: str, identity: str, name: str, extra: Mapping[str, Any]) -> None:
    if scalar(con, f"select 1 from {table} where {id_column} = $id", {"id": identity}):
        return
    version = (scalar(con, f"select max(version) from {table} where name = $name", {"name": name}) or 0) + 1
    columns = (id_column, "name", "version", *extra, "first_seen")
    append(con, table, columns, [(identity, name, version, *extra.values(), utc_now())])
