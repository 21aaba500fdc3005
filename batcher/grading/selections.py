"""Stored selections: a set of positions of one dataset version under a name, with the manifest of what made it so.

Knows the tables `selections` and `selection_rows`; nothing of how rows are chosen. Nothing is ever changed: the same
name with another result is its next version, NAME@2. Start with `resolve_selection`.
"""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass
from typing import Any

from alpasift.batcher import installed_version
from alpasift.batcher.grading.condition import SelectError
from alpasift.batcher.grading.lookup import Grading, split_label
from alpasift.batcher.store import Connection, Store, append, hash_id, named_query, rows, scalar, utc_now
from alpasift.graders import did_you_mean

_RECORDED = ("selection", "composition", "alpasift", "duckdb", "created_at")
"""Parts of a manifest that do not make it another selection."""


@dataclass(frozen=True, slots=True)
class Selection:
    """A stored selection. `rows` were kept of the `pool` rows of the dataset version."""

    selection_id: str
    name: str
    version: int
    label: str
    version_id: str
    rows: int
    pool: int
    manifest: dict[str, Any]


def resolve_selection(store: Store, name: str) -> Selection:
    """The selection of that name: NAME is its newest version, NAME@2 its second, NAME@1 its first.

    Raises SelectError.
    """
    plain, version = split_label(name)
    with store.reader() as con:
        found = _find(con, plain, version)
        if found:
            return found
        labels = [
            r[0] for r in rows(con, "select label from selection_list order by created_at desc, label limit 20").rows
        ]
    if not labels:
        raise SelectError(f"no selection named {name!r}: there are none yet, create one with `alpasift select`")
    meant = did_you_mean(plain, sorted({split_label(label)[0] for label in labels}), f"choose from {', '.join(labels)}")
    raise SelectError(f"no selection named {name!r}{meant}")


def _find(con: Connection, name: str, version: int | None) -> Selection | None:
    found = rows(
        con,
        """
        select selection_id, name, version, label, version_id, rows, pool, manifest
        from selection_list
        where name = $name and ($version is null or version = $version)
        order by version desc
        limit 1
        """,
        {"name": name, "version": version},
    ).rows
    if not found:
        return None
    selection_id, name, version_number, label, version_id, kept, pool, manifest = found[0]
    return Selection(str(selection_id), name, version_number, label, str(version_id), kept, pool, json.loads(manifest))


def kept_positions(store: Store, selection_id: str) -> array[int]:
    """The positions of the rows of a selection in its dataset version, ascending."""
    text = "select position from selection_rows where selection_id = $id order by position"
    kept = array("q")
    with store.reader() as con:
        cursor = con.execute(text, {"id": selection_id})
        while page := cursor.fetchmany(10_000):
            kept.extend(position for (position,) in page)
    return kept


def composition(
    store: Store,
    version_id: str,
    selection_id: str | None = None,
    *,
    grading: Grading | None = None,
) -> list[dict[str, Any]]:
    """Kept against pool, the rows of sql/queries/composition.sql: measure, category, pool, pool_share, kept, ...

    Kept are the rows of a selection; without one, the rows that `grading` scored at its threshold or above.
    """
    with store.reader() as con:
        return _composition(con, version_id, selection_id, grading)


def _composition(
    con: Connection, version_id: str, selection_id: str | None, grading: Grading | None = None
) -> list[dict[str, Any]]:
    parameters = {
        "version_id": version_id,
        "selection_id": selection_id,
        "grader_id": grading.grader_id if grading else None,
        "rubric_id": grading.rubric_id if grading else None,
        "threshold": grading.threshold if grading else None,
    }
    return rows(con, named_query("composition").text, parameters).dicts()


def record(con: Connection, name: str, version_id: str, facts: dict[str, Any]) -> Selection:
    """Write the rows of the temporary table kept_rows as a selection with these facts.

    Where the newest selection of that name has the same facts it is returned, and nothing is written.
    """
    facts = json.loads(json.dumps(facts))
    newest = _find(con, name, None)
    if newest and {k: v for k, v in newest.manifest.items() if k not in _RECORDED} == facts:
        return newest
    version = newest.version + 1 if newest else 1
    label = name if version == 1 else f"{name}@{version}"
    selection_id = hash_id("selection", name, str(version), json.dumps(facts, sort_keys=True))
    insert = "insert into selection_rows select $id::uuid, position from kept_rows order by position"
    con.execute(insert, {"id": selection_id})
    now, kept = utc_now(), facts["counts"]["kept"]
    manifest = {
        "selection": label,
        **facts,
        "composition": _composition(con, version_id, selection_id),
        "alpasift": installed_version(),
        "duckdb": scalar(con, "select version()"),
        "created_at": now.isoformat(timespec="seconds") + "Z",
    }
    columns = ("selection_id", "name", "version", "version_id", "rows", "manifest", "created_at")
    append(con, "selections", columns, [(selection_id, name, version, version_id, kept, json.dumps(manifest), now)])
    return Selection(selection_id, name, version, label, version_id, kept, facts["counts"]["pool"], manifest)
