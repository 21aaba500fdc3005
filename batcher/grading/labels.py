"""Grades made elsewhere, by people or published, brought in as a grader: agree, calibrate, scores and select then work.

A file of labels (`label_files`) is the grader "labels:NAME" whose fingerprint is the file's hash and the key that was
read; the labels are its replies, as the file spells them. The rubric is one whose scale they are on, or one of their
own. Asks nobody and moves no money. An import is one transaction, and the same file again adds nothing.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from alpasift.batcher.data.versions import DatasetVersion
from alpasift.batcher.engine.identities import LABEL, label_key
from alpasift.batcher.engine.readings import Parser, write_readings
from alpasift.batcher.engine.setups import PromptSetup, prompt_setup, write_setup
from alpasift.batcher.grading.label_files import LabelError, LabelFile, read_label_file
from alpasift.batcher.money import attempts, charges, dollars, reservations
from alpasift.batcher.store import Connection, Store, append, named_query, new_id, rows, utc_now
from alpasift.batcher.tasks.grade import Grade, graded, identity_of
from alpasift.graders import Reply
from alpasift.graders.interface.names import NAME_RULE, is_name
from alpasift.graders.prompts.rubric import (
    Rubric,
    RubricError,
    load_rubric,
    parse_rubric,
    rubric_names,
    rubric_of,
    spell,
)

BLOCK = 10_000
"""Labels in one attempt."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """What an import of labels did. Examples are distinct rows of the dataset.

    examples        that have a label now, `new` of them by this import
    conflicting     examples whose equal rows are labelled differently: they have a reason and no score
    unmatched       rows of the file that are no row of the dataset; `first_unmatched` says which is the first
    unlabelled      rows of the file whose label is absent or null
    without_label   distinct rows of the dataset about which the file says nothing
    """

    grader: str
    rubric: str
    grader_id: str
    rubric_id: str
    dataset: str
    examples: int
    new: int
    conflicting: int
    first_conflict: str | None
    unmatched: int
    first_unmatched: str | None
    unlabelled: int
    without_label: int
    already_there: bool


# -- the scale ----------------------------------------------------------------------------------------------------


def own_rubric(name: str, low: str = "0", high: str = "1", step: str = "1", threshold: str = "1") -> Rubric:
    """A rubric for labels that follow no rubric of ours: a name and a scale, 0 or 1 unless said otherwise."""
    _check_name(name)
    if name in rubric_names():
        raise LabelError(
            f"{name!r} is a built-in rubric; choose another --as, or --rubric {name} if the labels were made with it"
        )
    try:
        numbers = [spell(Decimal(text.strip())) for text in (low, high, step, threshold)]
    except InvalidOperation as error:
        raise LabelError(f"a scale is LOW:HIGH:STEP in numbers, such as 0:5:0.5; found {low}:{high}:{step}") from error
    keys = zip(("low", "high", "step", "threshold"), numbers, strict=True)
    text = f'name = "{name}"\nsystem = "Labels made elsewhere."\nquestion = "Label:"\n' + "".join(
        f"{key} = {number}\n" for key, number in keys
    )
    return parse_rubric(text, "--scale")


def rubric_called(store: Store, name: str) -> Rubric:
    """The rubric of that name: built in, a file of the user's, or one stored in this database. Raises RubricError."""
    if name in rubric_names() or name.endswith(".toml"):
        return load_rubric(name)
    with store.reader() as con:
        found = rows(
            con, "select content from rubric_labels where label = $n or name = $n order by version", {"n": name}
        )
    if not found.rows:
        raise RubricError(
            f"no rubric named {name!r}; choose from {', '.join(rubric_names())}, or give the path of a .toml file"
        )
    return rubric_of(json.loads(found.rows[-1][0]))


# -- the import ---------------------------------------------------------------------------------------------------


def import_labels(
    store: Store,
    path: str | Path,
    name: str,
    version: DatasetVersion,
    rubric: Rubric,
    *,
    label_key: str | None = None,
    index_key: str | None = None,
    kept: bool = False,
) -> Labelled:
    """Bring a file of labels in as the grader "labels:NAME". Raises LabelError or DatasetError, with nothing written.

    `label_key` is the key that holds the label (found by itself where there is only one beside the content),
    `index_key` the one that holds the position ("index" where the rows have that). With `kept` the rows of the file get
    1 and all other rows of the dataset 0.
    """
    path = Path(path)
    _check_name(name)
    started = time.monotonic()
    with store.reader() as con:
        places = rows(con, named_query("positions").text, {"version_id": version.version_id}).rows
    got = read_label_file(path, places, rubric, label_key=label_key, index_key=index_key, kept=kept)
    if not got.labels and not got.conflicts:
        raise LabelError(
            f"{path}: none of its rows matches a row of {version.label}"
            + (f" ({got.first_unmatched})" if got.first_unmatched else "")
            + "; give its dataset with --dataset"
        )
    fingerprint = _fingerprint(got, version, kept=kept)
    examples = {example for _, example in places}
    grader = f"labels:{name}"
    facts = {"file": path.name, "sha256": got.sha256, "field": fingerprint["field"], "index": got.index_key}
    setup = prompt_setup(Grade.name, identity_of(rubric), {"contract": LABEL}, grader, fingerprint)
    new = _write(store, rubric, grader, setup, version.version_id, got, facts, started)
    with store.reader() as con:
        labels = (
            "select (select label from grader_labels where grader_id = $g), "
            "(select label from rubric_labels where rubric_id = $r)"
        )
        grader_label, rubric_label = rows(con, labels, {"g": setup.grader_id, "r": setup.rubric_id}).rows[0]
    return Labelled(
        grader_label,
        rubric_label,
        setup.grader_id,
        setup.rubric_id,
        version.label,
        len(got.labels),
        new,
        len(got.conflicts),
        next(iter(got.conflicts.values()), None),
        got.unmatched,
        got.first_unmatched,
        got.unlabelled,
        len(examples - got.labels.keys() - got.conflicts.keys()),
        new == 0,
    )


def _fingerprint(got: LabelFile, version: DatasetVersion, *, kept: bool) -> dict[str, str]:
    """What identifies these labels: the file, the key that was read, and the dataset where they depend on it."""
    fingerprint = {"file": got.sha256, "field": got.label_key or "(kept)"}
    if kept or got.index_key is not None:  # the same file says something else of other rows
        fingerprint["dataset"] = version.version_id
    if got.index_key is not None:
        fingerprint["index"] = got.index_key
    return fingerprint


def _check_name(name: str) -> None:
    if not is_name(name):
        raise LabelError(f"{name!r} is not a valid name; {NAME_RULE}")


# -- writing ------------------------------------------------------------------------------------------------------


def _write(
    store: Store,
    rubric: Rubric,
    grader: str,
    setup: PromptSetup,
    version_id: str,
    got: LabelFile,
    facts: Mapping[str, Any],
    started: float,
) -> int:
    """Write one run: attempts, questions, replies and readings, in one transaction. Returns the new examples."""
    with store.transaction() as con:
        write_setup(con, setup, Grade.name, identity_of(rubric), grader)
        known = {row[0] for row in rows(con, named_query("questions_of_setup").text, {"setup_id": setup.setup_id}).rows}
        fresh = [e for e in [*got.labels, *got.conflicts] if e not in known]
        if not fresh:
            return 0
        run_id, now = new_id(), utc_now()
        columns = ("run_id", "command", "setup_id", "version_id", "pid", "facts", "started_at")
        append(
            con, "runs", columns, [(run_id, "labels", setup.setup_id, version_id, os.getpid(), json.dumps(facts), now)]
        )
        for start in range(0, len(fresh), BLOCK):
            _write_block(con, setup, run_id, grader, fresh[start : start + BLOCK], got)
        scored = sum(example in got.labels for example in fresh)
        ended = {
            "replied": len(fresh),
            "usable": scored,
            "conflicting": len(fresh) - scored,
            "unmatched": got.unmatched,
            "message": None,
        }
        end = (run_id, "done", json.dumps(ended), time.monotonic() - started, None, utc_now())
        append(con, "run_ends", ("run_id", "outcome", "facts", "seconds", "usd_per_hour", "ended_at"), [end])
    return len(fresh)


def _write_block(
    con: Connection, setup: PromptSetup, run_id: str, backend: str, examples: Sequence[str], got: LabelFile
) -> None:
    keys = [label_key(setup.setup_id, example) for example in examples]
    attempt = reservations.reserve(
        con,
        run_id=run_id,
        backend=backend,
        grader_id=setup.grader_id,
        keys=keys,
        ceilings=[dollars.ZERO] * len(keys),
        price=None,
        facts={"outlives": False},
        run_budget=None,
    )
    about = [(key, setup.setup_id, example, example, 0) for key, example in zip(keys, examples, strict=True)]
    append(con, "questions", ("key", "setup_id", "subject_id", "example_id", "sample"), about, unique=True)
    pairs = []
    for key, example in zip(keys, examples, strict=True):
        reply = Reply(attempt, key, "label", "answered", text=got.labels.get(example), finish_reason="stop")
        conflict = got.conflicts.get(example)
        reading = graded(None, "conflicting", conflict) if conflict else graded(got.scores[example], None)
        pairs.append((reply, reading))
    charges.ingest(con, [reply for reply, _ in pairs])
    write_readings(con, Parser(Grade.name, Grade.reader_version), pairs)
    attempts.close_attempt(con, attempt, "the labels were read")
