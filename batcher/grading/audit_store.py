"""The rows of an audit in the database: a dataset version of its own, that no list of datasets shows, and its pairs.

Knows the tables `audits`, `audit_pairs` and `audit_verdicts`; buys no grade. The same rows, seed and highest answer are
the same audit: it is made once, and `run_task` grades it as any dataset.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from alpasift.batcher.data.row_formats.row import RowFormat
from alpasift.batcher.data.stored_rows import rejected_answers
from alpasift.batcher.data.versions import DatasetVersion, version_label
from alpasift.batcher.engine.questions import example_of
from alpasift.batcher.grading.audit_damage import DAMAGE, KINDS, VERSION
from alpasift.batcher.grading.audit_pairs import WORDS, Pairs, Row, plant
from alpasift.batcher.store import Connection, Store, append, hash_id, new_id, rows, scalar, stored_text, utc_now
from alpasift.graders import AlpaSiftError, Example

POOL_ROWS = 20_000
"""Of a larger dataset so many rows, by chance, are looked at."""
LEAST = 20
"""An audit of fewer rows would find nothing."""
_PLACES = 16
"""Positions that a row takes: its own, and one for each kind."""


class AuditError(AlpaSiftError):
    """A dataset has too few rows whose order an audit can know."""


@dataclass(frozen=True, slots=True)
class Audit:
    """An audit that is ready to be graded.

    audit_id     the version_id of the rows to grade; `label` what they are called
    taken        how many rows were taken of the `source`
    numbers      the questions to ask where each is asked up to twice: position * 2 + sample
    left_out     by kind, rows that could not be changed so; passed_over: by reason, rows that were not taken
    """

    audit_id: str
    label: str
    source: str
    seed: int
    taken: int
    numbers: tuple[int, ...]
    left_out: Mapping[str, int]
    passed_over: Mapping[str, int]


def audit_of(store: Store, version: DatasetVersion, count: int, seed: int, highest: str) -> Audit:
    """The audit of `count` rows of a dataset version, made now if it is not there. Raises AuditError.

    `highest` is the rubric's highest answer.
    """
    audit_id = hash_id("audit", VERSION, version.version_id, str(count), str(seed), highest)
    found = _stored(store, audit_id, version)
    if found is not None:
        return found
    pairs = plant(_pool(store, version, seed), count, seed, highest)
    if len(pairs.taken) < LEAST:
        why = ", ".join(f"{_REASONS[reason]}: {number:,}" for reason, number in pairs.passed_over.items())
        raise AuditError(
            f"{version.label} has {len(pairs.taken)} rows that an audit can use, and {LEAST} are needed"
            + (f" ({why})" if why else "")
        )
    facts = {"taken": len(pairs.taken), "left_out": pairs.left_out, "passed_over": pairs.passed_over, "damage": VERSION}
    with store.transaction() as con:
        if not scalar(con, "select count(*) from audits where audit_id = $id", {"id": audit_id}):
            _write_rows(con, audit_id, f"audit:{version.label}-{count}-{seed}", pairs)
            columns = ("audit_id", "source_version_id", "rows", "seed", "highest", "facts", "recorded_at")
            row = (audit_id, version.version_id, count, seed, highest, json.dumps(facts), utc_now())
            append(con, "audits", columns, [row])
    found = _stored(store, audit_id, version)
    assert found is not None
    return found


_REASONS = {
    "short_output": f"outputs of fewer than {WORDS} words",
    "flawed_form": "rows that the grader rules finds flawed",
    "same_instruction": "rows whose instruction came before",
}


def passed_over_reason(reason: str) -> str:
    """Why rows were not taken, in words."""
    return _REASONS[reason]


def _pool(store: Store, version: DatasetVersion, seed: int) -> list[Row]:
    rejected = rejected_answers(store, version.version_id)
    found = store.query("audit_pool", version_id=version.version_id, seed=str(seed), row_limit=POOL_ROWS)
    return [
        Row(one["example_id"], example_of(*(one[part] for part in _PARTS)))
        for one in found
        if one["position"] not in rejected
    ]


_PARTS = ("system", "turns", "instruction", "input", "output")


def _write_rows(con: Connection, audit_id: str, name: str, pairs: Pairs) -> None:
    """The rows as examples of a dataset version, and the pairs that they make."""
    listed: list[tuple[int, str, Example, str]] = []
    paired: list[tuple[Any, ...]] = []
    for number, taken in enumerate(pairs.taken):
        place = number * _PLACES
        listed.append((place, taken.row.example_id, taken.row.example, "original"))
        for one in taken.planted:
            listed.append((place + 1 + KINDS.index(one.kind), one.example_id, one.example, one.kind))
            expects = "lower" if one.kind in DAMAGE else "not_higher"
            paired.append((audit_id, place, one.kind, expects, taken.row.example_id, one.example_id, one.asked_twice))
    contents = [
        (
            identity,
            stored_text(example.system),
            orjson.dumps([[turn.role, turn.content] for turn in example.turns]).decode() if example.turns else "",
            stored_text(example.instruction),
            stored_text(example.input),
            stored_text(example.output),
        )
        for _, identity, example, _ in listed
    ]
    append(con, "examples", ("example_id", *_PARTS), contents, unique=True)
    places = [(audit_id, place, identity, kind, "{}") for place, identity, _, kind in listed]
    append(con, "dataset_rows", ("version_id", "position", "example_id", "category", "other"), places)
    columns = ("audit_id", "position", "kind", "expects", "example_id", "changed_id", "asked_twice")
    append(con, "audit_pairs", columns, paired)
    version = 1 + (scalar(con, "select max(version) from dataset_versions where dataset = $d", {"d": name}) or 0)
    shape = RowFormat("alpaca", ("instruction", "input", "output"), "instruction", "input", "output")
    facts = {"format": "audit", "mapping": {}, "shape": asdict(shape), "columns": None, "notes": {}}
    row = {
        "version_id": audit_id,
        "dataset": name,
        "version": version,
        "shape": shape.name,
        "source": name,
        "sha256": "",
        "rows": len(listed),
        "set_aside": 0,
        "duplicates": 0,
        "facts": json.dumps(facts),
        "imported_at": utc_now(),
    }
    append(con, "dataset_versions", list(row), [tuple(row.values())])


def _stored(store: Store, audit_id: str, version: DatasetVersion) -> Audit | None:
    """The audit of that id, None where it is not there yet."""
    with store.reader() as con:
        found = rows(
            con,
            "select d.dataset, d.version, a.seed, a.facts from audits a "
            "join dataset_versions d on d.version_id = a.audit_id where a.audit_id = $id",
            {"id": audit_id},
        ).rows
        listed = rows(con, "select position from dataset_rows where version_id = $id", {"id": audit_id}).rows
        twice = rows(
            con, "select position, kind from audit_pairs where audit_id = $id and asked_twice", {"id": audit_id}
        ).rows
    if not found:
        return None
    dataset, number, seed, text = found[0]
    facts = json.loads(text)
    once = {place * 2 for (place,) in listed}
    again = {(place + 1 + KINDS.index(kind)) * 2 + 1 for place, kind in twice}
    return Audit(
        audit_id,
        version_label(dataset, number),
        version.label,
        seed,
        facts["taken"],
        tuple(sorted(once | again)),
        facts["left_out"],
        facts["passed_over"],
    )


def keep_verdict(store: Store, whose: Mapping[str, str], verdict: str, short: str, facts: Mapping[str, Any]) -> None:
    """Write down what an audit of a grader has shown, unless that is what stands there already.

    `whose` has audit_id, setup_id, grader_id and rubric_id.
    """
    text = json.dumps(facts, sort_keys=True)
    newest = store.query("audit_verdicts", grader_id=whose["grader_id"], rubric_id=whose["rubric_id"])
    if newest and newest[0]["facts"] == text and str(newest[0]["audit_id"]) == whose["audit_id"]:
        return
    row = {
        "verdict_id": new_id(),
        **whose,
        "verdict": verdict,
        "short": short,
        "facts": text,
        "recorded_at": utc_now(),
    }
    with store.transaction() as con:
        append(con, "audit_verdicts", tuple(row), [tuple(row.values())])


def audited(store: Store, grader_id: str, rubric_id: str) -> str | None:
    """What the newest audit of a grader's very version by a rubric has shown, in a few words; None without one."""
    found = store.query("audit_verdicts", grader_id=grader_id, rubric_id=rubric_id)
    return f"audited: {found[0]['short']}" if found else None


def audited_graders(store: Store) -> list[tuple[str, str]]:
    """The labels of the graders that were audited, with what each audit has shown in a few words, newest first."""
    with store.reader() as con:
        found = rows(con, "select grader, short from audit_list order by recorded_at desc, grader, rubric").rows
    return [(grader, f"audited: {short}") for grader, short in found]
