"""A file of labels, read against the rows of a dataset: which example each label is about, and what could not be used.

Knows files, row formats and the scale of a rubric; nothing of graders or of how grades are kept.

    {"index": 1, "helpful": 0}          the label of the row at position 1 of the dataset's file (from 0)
    {"instruction": ..., "helpful": 0}  the label of the row with this content
    a file of kept rows                 1 for these rows of the dataset, 0 for all others

Equal rows are one example and have one label: where they are labelled differently, the example gets no score.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Protocol

from alpasift.batcher.data.files.file_row import FileRow
from alpasift.batcher.data.files.rows import read_rows
from alpasift.batcher.data.files.source import inspect
from alpasift.batcher.data.identity import example_id
from alpasift.batcher.data.row_formats.detect import choose_row_format
from alpasift.batcher.data.row_formats.row import REASONS, Parts, Reader, RowFormatError, Unusable
from alpasift.batcher.data.row_formats.rows import reader
from alpasift.graders import AlpaSiftError
from alpasift.graders.prompts.rubric import (
    Rubric,
    spell,
)

_FIRST_ROWS = 100
_CONTENT = {"instruction", "input", "output", "system", "context", "response", "category", "conversations", "messages"}
_TRUTH = {"true": "1", "false": "0"}


class LabelError(AlpaSiftError):
    """A file of labels that cannot be used as it is; nothing was written."""


@dataclass(slots=True)
class LabelFile:
    """The labels of a file by example, as the file spells them, and what could not be used.

    sha256      of the file
    label_key   the key that held the label, None in a file of kept rows
    index_key   the key that held the position, None where rows were found by their content
    """

    sha256: str
    label_key: str | None
    index_key: str | None
    labels: dict[str, str] = field(default_factory=dict)
    scores: dict[str, Decimal] = field(default_factory=dict)
    conflicts: dict[str, str] = field(default_factory=dict)
    unmatched: int = 0
    first_unmatched: str | None = None
    unlabelled: int = 0


def read_label_file(
    path: Path,
    places: Sequence[tuple[int, str]],
    rubric: Rubric,
    *,
    label_key: str | None = None,
    index_key: str | None = None,
    kept: bool = False,
) -> LabelFile:
    """Read a file of labels about the rows at `places` (position, example_id). Raises LabelError or DatasetError.

    `label_key` and `index_key` are found where they are not given. With `kept` the rows of the file get 1 and all other
    examples 0.
    """
    source = inspect(path)
    found = read_rows(source)
    first = list(itertools.islice(found, _FIRST_ROWS))
    if not first:
        raise LabelError(f"{path} contains no rows")
    index_key = _index_key(path, first, index_key)
    label_key = None if kept else _label_key(path, first, label_key, index_key)
    match: _Match = _ByIndex(index_key, dict(places)) if index_key is not None else _by_content(path, first, places)
    got = LabelFile(source.sha256(), label_key, index_key)
    _collect(got, path, itertools.chain(first, found), match, rubric)
    if kept:
        for example in sorted({example for _, example in places} - got.labels.keys()):
            got.labels[example], got.scores[example] = "0", Decimal(0)
    return got


def _where(path: Path, number: int, found: FileRow) -> str:
    return f"{path}:{found.line}" if found.line else f"{path}, row {number + 1:,}"


def _keys(path: Path, first: Sequence[FileRow]) -> list[str]:
    """The keys of the first rows. Raises LabelError where a row is no object."""
    for number, one in enumerate(first):
        if one.reason or not isinstance(one.row, dict):
            raise LabelError(
                f"{_where(path, number, one)}: a row of labels must be an object; {one.reason or 'this is not one'}"
            )
    return list(dict.fromkeys(key for one in first for key in one.row))


def _index_key(path: Path, first: Sequence[FileRow], given: str | None) -> str | None:
    keys = _keys(path, first)
    if given is not None and given not in keys:
        raise LabelError(f"{path}: no row has the key {given!r}; found {', '.join(keys)}")
    return given if given is not None else ("index" if "index" in keys else None)


def _label_key(path: Path, first: Sequence[FileRow], given: str | None, index_key: str | None) -> str:
    keys = _keys(path, first)
    if given is not None:
        if given not in keys:
            raise LabelError(f"{path}: no row has the key {given!r}; found {', '.join(keys)}")
        return given
    own = [key for key in keys if key != index_key and key not in _CONTENT]
    if len(own) != 1:
        raise LabelError(f"{path}: give the key of the label with --field; found {', '.join(own or keys)}")
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
    read: Reader
    examples: set[str]

    def example(self, row: Mapping[str, Any], where: str) -> str | None:
        try:
            found = example_id(self._parts(row).example())
        except Unusable as error:
            raise LabelError(f"{where}: {error.reason}, {REASONS[error.reason]}") from error
        return found if found in self.examples else None

    def says(self, row: Mapping[str, Any]) -> str:
        return _short(self._parts(row).instruction)

    def _parts(self, row: Mapping[str, Any]) -> Parts:
        """The example of the row, the first where it holds several. Raises Unusable."""
        first = self.read(row)[0]
        if isinstance(first, Unusable):
            raise first
        return first


def _by_content(path: Path, first: Sequence[FileRow], places: Sequence[tuple[int, str]]) -> _ByContent:
    try:
        row_format = choose_row_format("auto", None, [one.row for one in first])
    except RowFormatError as error:
        raise LabelError(
            f"{path}: the rows have neither a position (--index-field) nor the content of a row ({error})"
        ) from error
    return _ByContent(reader(row_format), {example for _, example in places})


def _collect(got: LabelFile, path: Path, found: Iterator[FileRow], match: _Match, rubric: Rubric) -> None:
    """Add the labels by example. Raises LabelError for the first unreadable row, or label that is off the scale."""
    for number, one in enumerate(found):
        where = _where(path, number, one)
        if one.reason or not isinstance(one.row, dict):
            raise LabelError(f"{where}: {one.reason or 'not_an_object'}; nothing was imported")
        said = "1" if got.label_key is None else _said(one.row.get(got.label_key))
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
        raise LabelError(f"{where}: the label {_short(said)} is not on the scale ({scale}); nothing was imported")
    return round(score, 3)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:79] + "\N{HORIZONTAL ELLIPSIS}"
