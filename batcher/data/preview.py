"""What an import would do, with nothing written: row format, columns, what is skipped, one example for the grader."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alpasift.batcher.data.data_file import open_data_file
from alpasift.batcher.data.identity import example_id
from alpasift.batcher.data.import_batches import Batch, ImportCounts
from alpasift.batcher.data.import_files import inputs_of
from alpasift.batcher.data.row_formats.flat import past_keys
from alpasift.graders import Example, Turn
from alpasift.graders.prompts.rubric import load_rubric


@dataclass(frozen=True, slots=True)
class Preview:
    """What an import of a file would give. `shown` is the first usable example as the grader sees it.

    `columns` says which key holds what, `kept` are keys that are stored and written again but not graded,
    `overruled` the row format that the keys show where another was asked for.
    """

    dataset: str
    format: str
    detail: str
    row_format: str
    columns: dict[str, str]
    kept: tuple[str, ...]
    rivals: tuple[str, ...]
    overruled: str | None
    rows: int
    skipped: int
    reasons: dict[str, int]
    notes: dict[str, int]
    shown: str


def preview_files(
    paths: Sequence[str | Path],
    *,
    dataset: str | None = None,
    row_format: str = "auto",
    mapping: Mapping[str, str] | None = None,
    strict: bool = False,
    split: str | None = None,
    rubric: str = "accuracy",
) -> list[Preview]:
    """Read the files as an import would, to their end, and write nothing. Raises DatasetError as an import does."""
    previews = []
    for one in inputs_of(paths, dataset, split):
        file = open_data_file(one.paths, row_format, mapping, one.split)
        counts = ImportCounts(file, strict, None)
        first = None
        for batch in counts.batches():
            first = first or _first_example(batch)
        counts.check_usable()
        assert first is not None, "a usable row was counted"
        used = {*file.row_format.flat, file.row_format.messages, file.row_format.rejected, file.row_format.label}
        used |= {file.row_format.category, *past_keys(file.row_format)}
        previews.append(
            Preview(
                dataset=one.name,
                format=file.source.format,
                detail=file.source.detail,
                row_format=file.row_format.name,
                columns=file.row_format.columns,
                kept=tuple(key for key in file.row_format.keys if key not in used),
                rivals=file.rivals,
                overruled=file.overruled,
                rows=counts.usable,
                skipped=counts.reasons.total(),
                reasons=dict(counts.reasons.most_common()),
                notes=dict(counts.notes.most_common()),
                shown=_as_the_grader_sees_it(first, rubric),
            )
        )
    return previews


def _first_example(batch: Batch) -> Example | None:
    if not batch.output:
        return None
    turns = tuple(Turn(role, text) for role, text in json.loads(batch.turns[0] or "[]"))
    return Example(batch.instruction[0], batch.input[0], batch.output[0], batch.system[0], turns)


def _as_the_grader_sees_it(example: Example, rubric: str) -> str:
    """The user's message of a question about this row."""
    return load_rubric(rubric).messages(example, f"{rubric}:{example_id(example)}")[-1][1]
