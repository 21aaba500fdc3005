"""Write what was selected, with the manifest of how; and the other rows, each with its score and the reason.

Knows selections, grades and data files. `export` is the whole of it; before anything is paid for, call `check_outputs`
with `output_of_selection` first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alpasift.batcher.data.outputs import Output, check_outputs, check_replaceable, seal
from alpasift.batcher.data.stored_rows import export_rows
from alpasift.batcher.data.targets import manifest_of
from alpasift.batcher.data.versions import resolve, version_with_id
from alpasift.batcher.grading.condition import SelectError
from alpasift.batcher.grading.exported_grades import Added, added_grades, check_figures, grading_to_export
from alpasift.batcher.grading.lookup import Grading, GradingError
from alpasift.batcher.grading.selections import Selection, kept_positions, resolve_selection
from alpasift.batcher.store import Store


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that was written: the rows of which selection or dataset, and the manifest beside it.

    added   the keys of the grades that were written with each row, as they are called in the file
    """

    label: str
    rows: int
    path: str
    manifest: str
    added: tuple[str, ...] = ()


def output_of_selection(name: str, dataset: str, path: str) -> Output:
    """The file that takes the rows of a selection, whichever version of it."""
    return Output(path, f"selection {name} of dataset {dataset}")


def output_of_rejected(name: str, dataset: str, path: str) -> Output:
    """The file that takes the rows which a selection left."""
    return Output(path, f"the rows that selection {name} of dataset {dataset} dropped")


def export(
    store: Store,
    output: str,
    *,
    selection: str | None = None,
    dataset: str | None = None,
    format_name: str | None = None,
    row_format: str | None = None,
    figures: Sequence[str] = (),
    grader: str | None = None,
    rubric: str | None = None,
    force: bool = False,
) -> Exported:
    """Write a selection, or every row of a dataset, the only one where none is named, with a manifest beside it.

    The format is `format_name`, else what the suffix of `output` says; `row_format` is how a row is written, by
    default as it was imported. `figures` of a row's grade ("score", "reason") are written with it: the grade by
    `grader` and `rubric`, by default the one that the selection was made by, or the only one. `force` replaces a file
    that was not written for this. Raises SelectError, DatasetError, GradingError, and TargetError for a file that
    cannot or must not be written.
    """
    if selection and dataset:
        raise SelectError("give a selection or a dataset to export, not both")
    check_figures(figures)
    if not figures and (grader or rubric):
        raise GradingError("--grader and --rubric choose the grades written with the rows; add --with score")
    store.existing()
    chosen = resolve_selection(store, selection) if selection else None
    version = resolve(store, dataset) if chosen is None else version_with_id(store, chosen.version_id)
    if chosen is not None:
        target = output_of_selection(chosen.name, version.dataset, output)
    else:
        target = Output(output, f"dataset {version.dataset}")
    check_outputs(store, [target], format_name=format_name, force=force)
    grading = None
    if figures:
        grading = grading_to_export(store, version.version_id, chosen.manifest if chosen else None, grader, rubric)
    if chosen is not None:
        count, added = write_selection(
            store,
            chosen,
            output,
            format_name=format_name,
            row_format=row_format,
            figures=figures,
            grading=grading,
            force=force,
        )
        return Exported(chosen.label, count, output, manifest_of(output), added)
    grades = _grades(store, version.version_id, None, row_format, figures, grading)
    count = export_rows(
        store, version.version_id, None, output, format=format_name, row_format=row_format, extra=grades.of
    )
    seal(store, target, {"dataset": {"name": version.label, "sha256": version.sha256}, "rows": count})
    return Exported(version.label, count, output, manifest_of(output), grades.names)


def write_selection(
    store: Store,
    selection: Selection,
    output: str,
    *,
    format_name: str | None = None,
    row_format: str | None = None,
    figures: Sequence[str] = (),
    grading: Grading | None = None,
    force: bool = False,
) -> tuple[int, tuple[str, ...]]:
    """Write the rows of a selection in their order, and its manifest beside them.

    Returns how many rows, and what the figures are called in the file. Raises TargetError.
    """
    target = output_of_selection(selection.name, version_with_id(store, selection.version_id).dataset, output)
    check_replaceable(store, target, force=force)
    positions = kept_positions(store, selection.selection_id)
    grades = _grades(store, selection.version_id, positions, row_format, figures, grading)
    count = export_rows(
        store, selection.version_id, positions, output, format=format_name, row_format=row_format, extra=grades.of
    )
    seal(store, target, selection.manifest)
    return count, grades.names


def write_rejected(
    store: Store, selection: Selection, output: str, grader_id: str, rubric_id: str, *, force: bool = False
) -> int:
    """Write the rows that were not selected, each with score, reason and explanation under the key `alpasift`."""
    version = version_with_id(store, selection.version_id)
    target = output_of_rejected(selection.name, version.dataset, output)
    check_replaceable(store, target, force=force)
    others = store.query("not_selected", selection_id=selection.selection_id, grader_id=grader_id, rubric_id=rubric_id)
    verdicts = {
        row["position"]: {
            "alpasift": {
                "score": None if row["score"] is None else float(row["score"]),
                "reason": row["reason"],
                "explanation": row["explanation"],
            }
        }
        for row in others
    }
    count = export_rows(
        store,
        selection.version_id,
        sorted(verdicts),
        output,
        extra=lambda position, _example_id: verdicts[position],
    )
    seal(store, target, {"selection": selection.label, "dataset": version.label, "rows": count})
    return count


def _grades(
    store: Store,
    version_id: str,
    positions: Sequence[int] | None,
    row_format: str | None,
    figures: Sequence[str],
    grading: Grading | None,
) -> Added:
    if not figures or grading is None:
        return Added()
    return added_grades(store, version_id, positions, row_format, figures, grading)
