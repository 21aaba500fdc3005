"""The dataset versions of a database, found by the labels that people use: NAME, NAME@2."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alpasift.batcher.data.files.file_row import DatasetError
from alpasift.batcher.store import Store, rows
from alpasift.graders import did_you_mean


@dataclass(frozen=True, slots=True)
class DatasetVersion:
    """One imported content of a dataset; `label` is NAME for version 1 and NAME@2 from then on."""

    version_id: str
    dataset: str
    version: int
    label: str
    rows: int
    row_format: str
    format: str
    sha256: str


def version_label(dataset: str, version: int) -> str:
    """What a version is called on screen."""
    return dataset if version == 1 else f"{dataset}@{version}"


def resolve(store: Store, name: str | None) -> DatasetVersion:
    """The dataset version of this name: NAME is its newest, NAME@2 its second, None the only dataset there is.

    The rows of an audit are found by their whole label only.

    Raises DatasetError when there is none, or when None could mean several.
    """
    with store.reader() as con:
        known = rows(con, "select * from dataset_labels order by imported_at, dataset, version").dicts()
    if exact := [r for r in known if r["of_audit"] and r["label"] == name]:
        return _version(exact[0])
    found = [r for r in known if not r["of_audit"]]
    if not found:
        raise DatasetError(f"{store.path} contains no dataset yet; import one with `alpasift import FILE`")
    names = list(dict.fromkeys(r["dataset"] for r in found))
    if name is None and len(names) > 1:
        raise DatasetError(f"there are several datasets, choose one: {', '.join(names)}")
    dataset, at, number = (names[0] if name is None else name).partition("@")
    versions = [r for r in found if r["dataset"] == dataset and (not at or number == str(r["version"]))]
    if not versions:
        meant = did_you_mean(dataset, names, f"choose from {', '.join(r['label'] for r in found)}")
        raise DatasetError(f"no dataset named {name!r}{meant}")
    return _version(max(versions, key=lambda r: r["version"]))


def version_with_id(store: Store, version_id: str) -> DatasetVersion:
    """The dataset version of an id. Raises DatasetError."""
    with store.reader() as con:
        found = rows(con, "select * from dataset_labels where version_id = $id", {"id": version_id}).dicts()
    if not found:
        raise DatasetError(f"no dataset version {version_id} in {store.path}")
    return _version(found[0])


def _version(row: Mapping[str, Any]) -> DatasetVersion:
    return DatasetVersion(
        version_id=str(row["version_id"]),
        dataset=row["dataset"],
        version=row["version"],
        label=row["label"],
        rows=row["rows"],
        row_format=row["row_format"],
        format=json.loads(row["facts"])["format"],
        sha256=row["sha256"],
    )
