"""The rows that a plan is made for: a dataset of the database, or a file that has not been imported."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpasift.batcher.data.importing import Imported, import_file
from alpasift.batcher.data.versions import DatasetVersion, resolve
from alpasift.batcher.store import Store


@dataclass(frozen=True, slots=True)
class RowsToPlan:
    """A dataset version and the store that holds it; `imported` where a file was read for the plan only."""

    store: Store
    version: DatasetVersion
    imported: Imported | None = None


@contextmanager
def rows_to_plan(
    store: Store | None, file: str | None, dataset: str | None, reading: Mapping[str, Any]
) -> Iterator[RowsToPlan]:
    """The rows of a dataset of the store, or of a file, read into a database that is deleted at the end of the block.

    A file whose content the store has already is planned there, so that rows graded before are left out. `reading` is
    how the file is read, as `import_file` takes it. Without a file the store must be there.
    """
    if file is None:
        assert store is not None
        yield RowsToPlan(store, resolve(store, dataset))
        return
    with tempfile.TemporaryDirectory(prefix="alpasift-plan-") as folder:
        own = Store(Path(folder) / "plan.duckdb")
        found = import_file(own, file, dataset=dataset, **reading)
        version = resolve(own, None)
        before = (
            None if store is None else _imported_before(store, version.sha256, found.row_format, reading.get("mapping"))
        )
        if store is not None and before is not None:
            yield RowsToPlan(store, before)
        else:
            yield RowsToPlan(own, version, found)


def _imported_before(
    store: Store, sha256: str, row_format: str, mapping: Mapping[str, str] | None
) -> DatasetVersion | None:
    for row in store.query("same_content", sha256=sha256):
        if row["row_format"] == row_format and json.loads(row["mapping"] or "{}") == (mapping or {}):
            return resolve(store, row["label"] if "@" in row["label"] else f"{row['label']}@1")
    return None
