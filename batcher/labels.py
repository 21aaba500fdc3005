"""Grades made elsewhere, by people or published, brought in as a grader: agree, calibrate, scores and select then work on them.

Knows label files and the tables that grades live in; asks nobody and moves no money. A file of labels is the grader
"labels:NAME" whose fingerprint is the file's hash and the key that was read; the labels are its replies, in the words of the
file. The rubric is one whose scale they are on, or one of their own.

    {"index": 1, "helpful": 0}          the label of the row at position 1 of the dataset's file (from 0)
    {"instruction": ..., "helpful": 0}  the label of the row with this content
    a file of kept rows                 1 for these rows of the dataset, 0 for all others

Equal rows are one example and have one label: where they are labelled differently, the example gets no score, and its
reason is `conflicting`. An import is one transaction, and the same file again adds nothing.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Protocol

from batcher import formats, ledger, shapes
from batcher.datasets import DatasetVersion, example_id
from batcher.engine import write_readings
from batcher.formats import Found
from batcher.questions import Setup, setup_of, write_setup
from batcher.shapes import ShapeError, Unusable
from batcher.store import Connection, Store, append, hash_id, named_query, new_id, rows, utc_now
from graders import AlpaSiftError, Example, Reply, Request
from graders.reading import Reading
from graders.rubric import Rubric, RubricError, load_rubric, parse_rubric, rubric_names, rubric_of, spell

BLOCK = 10_000
"""Labels in one attempt."""
_FIRST_ROWS = 100
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CONTENT = {"instruction", "input", "output", "system", "context", "response", "category", "conversations", "messages"}
_TRUTH = {"true": "1", "false": "0"}


class LabelError(AlpaSiftError):
    """A file of labels that cannot be used as it is; nothing was written."""


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


@dataclass(frozen=True, slots=True)
class _Source:
    """The file as a grader: a name and what makes its answers what they are."""

    name: str
    fingerprint: Mapping[str, str]


class _Labels:
    """The task `grade` for labels: nothing is rendered and nobody is asked."""

    name = "grade"
    decoding: Mapping[str, Any] = {"contract": "label"}

    def __init__(self, rubric: Rubric) -> None:
        self.rubric = rubric

    def request(self, example_id: str, example: Example, setup_id: str, sample: int) -> Request:
        raise LabelError("labels are brought in with `alpasift labels`; nobody can be asked for more of them")

    def read(self, reply: Reply) -> Reading:
        return Reading(None, "unreadable")


@dataclass(slots=True)
class _Collected:
    """The labels of a file by example, in the words of the file, and what could not be used."""

    labels: dict[str, str] = field(default_factory=dict)
    scores: dict[str, Decimal] = field(default_factory=dict)
    conflicts: dict[str, str] = field(default_factory=dict)
    unmatched: int = 0
    first_unmatched: str | None = None
    unlabelled: int = 0


# -- the scale ----------------------------------------------------------------------------------------------------


def own_rubric(name: str, low: str = "0", high: str = "1", step: str = "1", threshold: str = "1") -> Rubric:
    """A rubric for labels that follow no rubric of ours: a name and a scale, 0 or 1 unless said otherwise."""
    _check_name(name)
    if name in rubric_names():
        raise LabelError(
            f"the rubric {name!r} is a built-in one and says more than a scale; take another --as, or --rubric {name} if the "
            "labels were made by it"
        )
    try:
        numbers = [spell(Decimal(text.strip())) for text in (low, high, step, threshold)]
    except InvalidOperation as error:
        raise LabelError(f"a scale is LOW:HIGH:STEP in numbers, 0:5:0.5; found {low}:{high}:{step}") from error
    keys = zip(("low", "high", "step", "threshold"), numbers, strict=True)
    text = f'name = "{name}"\nsystem = "Labels made elsewhere."\nquestion = "Label:"\n' + "".join(
        f"{key} = {number}\n" for key, number in keys
    )
    return parse_rubric(text, "--scale")


def rubric_called(store: Store, name: str) -> Rubric:
    """The rubric of that name: built in, a file of the user's, or one that this database has seen. Raises RubricError."""
    if name in rubric_names() or name.endswith(".toml"):
        return load_rubric(name)
    with store.reader() as con:
        found = rows(
            con, "select content from rubric_labels where label = $n or name = $n order by version", {"n": name}
        )
    if not found.rows:
        raise RubricError(
            f"no rubric is called {name!r}; there are {', '.join(rubric_names())}, or give the path of a .toml file"
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

    `label_key` is the key that holds the label (found by itself where there is only one beside the content), `index_key` the one
    that holds the position ("index" where the rows have that). With `kept` the rows of the file get 1 and all other rows of
    the dataset 0.
    """
    path = Path(path)
    _check_name(name)
    started = time.monotonic()
    source = formats.inspect(path)
    digest = source.sha256()
    found = formats.read_rows(source)
    first = list(itertools.islice(found, _FIRST_ROWS))
    if not first:
        raise LabelError(f"{path} holds no rows")
    index_key = _index_key(path, first, index_key)
    label_key = None if kept else _label_key(path, first, label_key, index_key)
    fingerprint = {"file": digest, "field": label_key or "(kept)"}
    if kept or index_key is not None:  # the same file says something else of other rows
        fingerprint["dataset"] = version.version_id
    if index_key is not None:
        fingerprint["index"] = index_key
    with store.reader() as con:
        places = rows(con, named_query("positions").text, {"version_id": version.version_id}).rows
    match: _Match = _ByIndex(index_key, dict(places)) if index_key is not None else _by_content(path, first, places)
    examples = {example for _, example in places}
    got = _collect(path, itertools.chain(first, found), match, label_key, rubric)
    if kept:
        for example in sorted(examples - got.labels.keys()):
            got.labels[example], got.scores[example] = "0", Decimal(0)
    if not got.labels and not got.conflicts:
        raise LabelError(
            f"{path}: none of its rows is a row of {version.label}"
            + (f" ({got.first_unmatched})" if got.first_unmatched else "")
            + "; name the dataset it belongs to with --dataset"
        )
    task, grader = _Labels(rubric), _Source(f"labels:{name}", fingerprint)
    facts = {"file": path.name, "sha256": digest, "field": fingerprint["field"], "index": index_key}
    setup = setup_of(task, grader)  # type: ignore[arg-type]  # a name and a fingerprint are all it looks at
    new = _write(store, task, grader, setup, version.version_id, got, facts, started)
    with store.reader() as con:
        labels = "select (select label from grader_labels where grader_id = $g), (select label from rubric_labels where rubric_id = $r)"
        grader_label, rubric_label = rows(con, labels, {"g": setup.grader_id, "r": setup.rubric_id}).rows[0]
    return Labelled(
        grader_label, rubric_label, setup.grader_id, setup.rubric_id, version.label, len(got.labels), new,
        len(got.conflicts), next(iter(got.conflicts.values()), None), got.unmatched, got.first_unmatched, got.unlabelled,
        len(examples - got.labels.keys() - got.conflicts.keys()), new == 0,
    )  # fmt: skip


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise LabelError(f"the name {name!r} may hold letters, digits, . _ - only, at most 64 of them")


def _where(path: Path, number: int, found: Found) -> str:
    return f"{path}:{found.line}" if found.line else f"{path}, row {number + 1:,}"


def _keys(path: Path, first: Sequence[Found]) -> list[str]:
    """The keys of the first rows. Raises LabelError where a row is no object."""
    for number, one in enumerate(first):
        if one.reason or not isinstance(one.row, dict):
            raise LabelError(
                f"{_where(path, number, one)}: a row of labels is an object with keys; {one.reason or 'this is none'}"
            )
    return list(dict.fromkeys(key for one in first for key in one.row))


def _index_key(path: Path, first: Sequence[Found], given: str | None) -> str | None:
    keys = _keys(path, first)
    if given is not None and given not in keys:
        raise LabelError(f"{path}: no row has the key {given!r}; found {', '.join(keys)}")
    return given if given is not None else ("index" if "index" in keys else None)


def _label_key(path: Path, first: Sequence[Found], given: str | None, index_key: str | None) -> str:
    keys = _keys(path, first)
    if given is not None:
        if given not in keys:
            raise LabelError(f"{path}: no row has the key {given!r}; found {', '.join(keys)}")
        return given
    own = [key for key in keys if key != index_key and key not in _CONTENT]
    if len(own) != 1:
        raise LabelError(f"{path}: say with --field which key holds the label; found {', '.join(own or keys)}")
    return own[0]


class _Match(Protocol):
    """Which example a row of the file is about, None where it is none of the dataset's; and how to tell of it."""

    def example(self, row: Mapping[str, Any], where: str) -> str | None: ...

    def says(self, row: Mapping[str, Any]) -> str: ...


@dataclass(slots=True)
class _ByIndex:
    key: str
    places: Mapping[int, str]

    def example(self, row: Mapping[str, Any], where: str) -> str | None:
        value = row.get(self.key)
        if isinstance(value, str) and re.fullmatch(r"\s*\d{1,15}\s*", value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise LabelError(f"{where}: {self.key} = {_short(value)}; it is the row's position in its file, from 0")
        return self.places.get(value)

    def says(self, row: Mapping[str, Any]) -> str:
        return f"{self.key} {_short(row.get(self.key))}"


@dataclass(slots=True)
class _ByContent:
    read: shapes.Reader
    examples: set[str]

    def example(self, row: Mapping[str, Any], where: str) -> str | None:
        try:
            found = example_id(self.read(row).example())
        except Unusable as error:
            raise LabelError(f"{where}: {error.reason}, {shapes.REASONS[error.reason]}") from error
        return found if found in self.examples else None

    def says(self, row: Mapping[str, Any]) -> str:
        return _short(self.read(row).instruction)


def _by_content(path: Path, first: Sequence[Found], places: Sequence[tuple[int, str]]) -> _ByContent:
    try:
        shape = shapes.choose_shape("auto", None, [one.row for one in first])
    except ShapeError as error:
        raise LabelError(
            f"{path}: its rows have neither a position (--index-field) nor the content of a row ({error})"
        ) from error
    return _ByContent(shapes.reader(shape), {example for _, example in places})


def _collect(path: Path, found: Iterator[Found], match: _Match, label_key: str | None, rubric: Rubric) -> _Collected:
    """The labels by example. Raises LabelError for the first row that cannot be read or whose label is off the scale."""
    got = _Collected()
    for number, one in enumerate(found):
        where = _where(path, number, one)
        if one.reason or not isinstance(one.row, dict):
            raise LabelError(f"{where}: {one.reason or 'not_an_object'}; nothing was imported")
        said = "1" if label_key is None else _said(one.row.get(label_key))
        if said is None:
            got.unlabelled += 1
            continue
        score = _score(said, rubric, where)
        example = match.example(one.row, where)
        if example is None:
            got.unmatched += 1
            got.first_unmatched = got.first_unmatched or f"{where}: {match.says(one.row)}"
        elif example in got.conflicts:
            continue
        elif got.scores.get(example, score) != score:
            got.conflicts[example] = (
                f"{Path(where).name}: {said}, and {got.labels.pop(example)} for an equal row before"
            )
            del got.scores[example]
        else:
            got.labels.setdefault(example, said)
            got.scores[example] = score
    return got


def _said(value: Any) -> str | None:
    """A label as a text; None where there is none."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    return value.strip() if isinstance(value, str) else _short(value)


def _score(said: str, rubric: Rubric, where: str) -> Decimal:
    """The label as a score on the rubric's step. Raises LabelError."""
    binary = rubric.choices == ("0", "1")
    text = _TRUTH.get(said.lower(), said) if binary else said
    try:
        score = Decimal(text) if len(text) <= 12 else Decimal("NaN")
    except InvalidOperation:
        score = Decimal("NaN")
    on_scale = score.is_finite() and rubric.low <= score <= rubric.high and (score - rubric.low) % rubric.step == 0
    if not on_scale:
        scale = (
            "0, 1, true or false" if binary else f"{spell(rubric.low)} to {spell(rubric.high)} by {spell(rubric.step)}"
        )
        raise LabelError(f"{where}: the label {_short(said)} is off the scale ({scale}); nothing was imported")
    return round(score, 3)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:79] + "\N{HORIZONTAL ELLIPSIS}"


# -- writing ------------------------------------------------------------------------------------------------------


def _write(
    store: Store,
    task: _Labels,
    grader: _Source,
    setup: Setup,
    version_id: str,
    got: _Collected,
    facts: Mapping[str, Any],
    started: float,
) -> int:
    """One run with its attempts, questions, replies and readings, in one transaction. Returns how many examples were new."""
    with store.transaction() as con:
        write_setup(con, task, grader, setup)  # type: ignore[arg-type]  # as for setup_of
        known = {row[0] for row in rows(con, named_query("asked_about").text, {"setup_id": setup.setup_id}).rows}
        fresh = [e for e in [*got.labels, *got.conflicts] if e not in known]
        if not fresh:
            return 0
        run_id, now = new_id(), utc_now()
        columns = ("run_id", "command", "setup_id", "version_id", "pid", "facts", "started_at")
        append(
            con, "runs", columns, [(run_id, "labels", setup.setup_id, version_id, os.getpid(), json.dumps(facts), now)]
        )
        for start in range(0, len(fresh), BLOCK):
            _write_block(con, setup, run_id, grader.name, fresh[start : start + BLOCK], got)
        scored = sum(example in got.labels for example in fresh)
        ended = {"replied": len(fresh), "scored": scored, "conflicting": len(fresh) - scored, "unmatched": got.unmatched,
                 "message": None}  # fmt: skip
        end = (run_id, "done", json.dumps(ended), time.monotonic() - started, None, utc_now())
        append(con, "run_ends", ("run_id", "outcome", "facts", "seconds", "usd_per_hour", "ended_at"), [end])
    return len(fresh)


def _write_block(
    con: Connection, setup: Setup, run_id: str, backend: str, examples: Sequence[str], got: _Collected
) -> None:
    keys = [hash_id("question", setup.setup_id, example, "label", "0") for example in examples]
    attempt = ledger.reserve(
        con, run_id=run_id, backend=backend, grader_id=setup.grader_id, keys=keys, ceilings=[ledger.ZERO] * len(keys),
        price=None, facts={"outlives": False}, run_budget=None,
    )  # fmt: skip
    about = [(key, setup.setup_id, example, 0) for key, example in zip(keys, examples, strict=True)]
    append(con, "questions", ("key", "setup_id", "example_id", "sample"), about, unique=True)
    pairs = []
    for key, example in zip(keys, examples, strict=True):
        reply = Reply(attempt, key, "label", "answered", text=got.labels.get(example), finish_reason="stop")
        conflict = got.conflicts.get(example)
        reading = Reading(None, "conflicting", conflict) if conflict else Reading(got.scores[example], None)
        pairs.append((reply, reading))
    ledger.ingest(con, [reply for reply, _ in pairs])
    write_readings(con, pairs)
    ledger.close_attempt(con, attempt, "the labels were read")
