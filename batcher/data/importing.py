"""Import a file as a version of a dataset, in one transaction: a failure leaves the database as it was.

Call `import_file`. Nothing is dropped silently: a row that cannot be used is stored in the table `set_aside` with its
line and reason, and equal rows are kept and counted. version_id hashes the dataset's name, the file's bytes, the row
format and the mapping, so the same file again adds nothing.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from alpasift.batcher.data.data_file import DataFile, open_data_file
from alpasift.batcher.data.files.file_row import DatasetError
from alpasift.batcher.data.files.names import base_name
from alpasift.batcher.data.files.writing import dump_json
from alpasift.batcher.data.import_batches import Batch, ImportCounts
from alpasift.batcher.data.versions import version_label
from alpasift.batcher.store import Connection, Store, append, hash_id, rows, scalar, utc_now
from alpasift.graders.interface.names import NAME_RULE, is_name


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did. `rows` are usable, duplicates among them; `reasons` counts the skipped ones.

    `notes` counts what was read otherwise than it stood, by the names of `row_formats.row.NOTES`; `columns` says which
    keys of the file hold the content, `rivals` are other keys that might have held the answer. `detail` is what else
    there is to say of the file: "cells between semicolons". `overruled` is the row format that the keys show, where
    another was asked for.
    """

    dataset: str
    version: int
    label: str
    version_id: str
    rows: int
    skipped: int
    duplicates: int
    row_format: str
    format: str
    already_imported: bool
    reasons: dict[str, int]
    new_examples: int
    detail: str = ""
    notes: dict[str, int] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    rivals: tuple[str, ...] = ()
    overruled: str | None = None


def import_file(
    store: Store,
    path: str | Path | Sequence[str | Path],
    *,
    dataset: str | None = None,
    row_format: str = "auto",
    mapping: Mapping[str, str] | None = None,
    strict: bool = False,
    split: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Imported:
    """Import a file as a version of a dataset, named after the file unless `dataset` says otherwise.

    Several files are one dataset, in the order of their names. `split` says which part of a folder with several.
    `mapping` says which key holds a target ({"instruction": "question"}). With `strict` the first row that cannot be
    used is an error. `progress` is called with how many rows were read so far. Makes the database if there is none.
    Raises DatasetError, with nothing written.
    """
    paths = [Path(path)] if isinstance(path, str | Path) else [Path(one) for one in path]
    file = open_data_file(paths, row_format, mapping, split)
    name = dataset_name(paths[0], dataset)
    version_id = hash_id(
        "dataset_version", name, file.sha256, file.row_format.name, dump_json(sorted((mapping or {}).items()))
    )
    if store.path.exists():
        with store.existing().reader() as con:
            if known := _imported_before(con, version_id):
                return known
    counts = ImportCounts(file, strict, progress)
    batches = counts.batches()
    opening = list(itertools.islice(batches, 2))  # a small file is read to its end before the database is opened
    if len(opening) < 2:
        counts.check_usable()
    new = not store.path.exists()
    with store.create().transaction() as con:
        try:
            if known := _imported_before(con, version_id):
                return known
            _insert_all(con, version_id, itertools.chain(opening, batches), counts)
            counts.check_usable()
            if file.source.stamp() != file.stamp:
                raise DatasetError(f"{paths[0]} was modified during the import; nothing was imported, try again")
            return _write_version(con, version_id, name, file, mapping, counts)
        except BaseException:
            if new:
                _remove_empty(store, con)
            raise


def _remove_empty(store: Store, con: Connection) -> None:
    """Remove a database that was made for an import which failed: an empty one hides that there is none.

    The connection is open still, so that no other process can have written to it.
    """
    con.execute("rollback")
    con.execute("begin")
    used = "select 1 from dataset_versions union all select 1 from runs union all select 1 from budgets limit 1"
    if not rows(con, used).rows:
        for file in store.files()[:2]:
            file.unlink(missing_ok=True)


def dataset_name(path: str | Path, dataset: str | None) -> str:
    """The name of the dataset that a file makes: the one given, else the file's. Raises DatasetError."""
    if dataset is None:
        name = re.sub(r"[^A-Za-z0-9._-]", "-", base_name(Path(path).absolute()))[:64]
        return name if is_name(name) else "data"
    if not is_name(dataset):
        raise DatasetError(f"{dataset!r} is not a valid dataset name; {NAME_RULE}")
    return dataset


def _imported_before(con: Connection, version_id: str) -> Imported | None:
    """What an earlier import of this very content did, if there was one."""
    found = rows(con, "select * from dataset_versions where version_id = $v", {"v": version_id}).dicts()
    if not found:
        return None
    row = found[0]
    counts = "select reason, count(*) from set_aside where version_id = $v group by reason order by 2 desc, 1"
    return Imported(
        dataset=row["dataset"],
        version=row["version"],
        label=version_label(row["dataset"], row["version"]),
        version_id=version_id,
        rows=row["rows"],
        skipped=row["set_aside"],
        duplicates=row["duplicates"],
        row_format=row["shape"],
        format=json.loads(row["facts"])["format"],
        already_imported=True,
        reasons=dict(rows(con, counts, {"v": version_id}).rows),
        new_examples=0,
    )


def _write_version(
    con: Connection,
    version_id: str,
    dataset: str,
    file: DataFile,
    mapping: Mapping[str, str] | None,
    counts: ImportCounts,
) -> Imported:
    version = 1 + (scalar(con, "select max(version) from dataset_versions where dataset = $d", {"d": dataset}) or 0)
    duplicates = scalar(
        con,
        "select count(*) - count(distinct example_id) from dataset_rows where version_id = $v",
        {"v": version_id},
    )
    columns = file.source.columns
    facts = {
        "format": file.source.format,
        "mapping": dict(mapping or {}),
        "shape": asdict(file.row_format),
        "columns": None if columns is None else columns.serialize().to_pybytes().hex(),
        "notes": dict(counts.notes),
    }
    row = {
        "version_id": version_id,
        "dataset": dataset,
        "version": version,
        "shape": file.row_format.name,
        "source": file.source.path.name.encode("utf-8", "replace").decode(),
        "sha256": file.sha256,
        "rows": counts.usable,
        "set_aside": counts.reasons.total(),
        "duplicates": duplicates,
        "facts": json.dumps(facts),
        "imported_at": utc_now(),
    }
    append(con, "dataset_versions", list(row), [tuple(row.values())])
    return Imported(
        dataset=dataset,
        version=version,
        label=version_label(dataset, version),
        version_id=version_id,
        rows=counts.usable,
        skipped=counts.reasons.total(),
        duplicates=duplicates,
        row_format=file.row_format.name,
        format=file.source.format,
        already_imported=False,
        reasons=dict(counts.reasons.most_common()),
        new_examples=counts.new_examples,
        detail=file.source.detail,
        notes=dict(counts.notes.most_common()),
        columns=file.row_format.columns,
        rivals=file.rivals,
        overruled=file.overruled,
    )


class _Staged:
    """What DuckDB sees as the table `staged`: the batch of the moment.

    Registered once: DuckDB keeps whatever was registered inside a transaction until its end, every batch of it.
    """

    def __init__(self) -> None:
        self.table = Batch().table()

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.table.__arrow_c_stream__(requested_schema)


def _insert_all(con: Connection, version_id: str, batches: Iterable[Batch], counts: ImportCounts) -> None:
    """Write the batches, each while the next is being read: DuckDB countss without Python's lock."""
    staged = _Staged()
    con.register("staged", staged)
    with ThreadPoolExecutor(1, "insert") as writer:
        pending: Future[int] | None = None
        for batch in batches:
            if pending:
                counts.new_examples += pending.result()
            pending = writer.submit(_insert, con, staged, version_id, batch)
        if pending:
            counts.new_examples += pending.result()
    con.unregister("staged")


def _insert(con: Connection, staged: _Staged, version_id: str, batch: Batch) -> int:
    """Write one batch and return how many of its examples were new."""
    staged.table = batch.table()
    added = con.execute(
        "insert into examples (example_id, system, turns, instruction, input, output) "
        "select cast(example_id as uuid), system, turns, instruction, input, output from staged on conflict do nothing"
    ).fetchone()
    con.execute(
        "insert into dataset_rows (version_id, position, example_id, category, other) "
        "select cast($v as uuid), position, cast(example_id as uuid), category, other from staged",
        {"v": version_id},
    )
    bad = [(version_id, *row) for row in batch.skipped]
    append(con, "set_aside", ("version_id", "position", "line", "reason", "row"), bad)
    return int(added[0]) if added else 0
