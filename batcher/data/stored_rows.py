"""The rows of a dataset version: as examples, or written to a file.

`export_rows` writes exactly what was read: the same keys in the same order with the same values.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from alpasift.batcher.data.files.file_row import DatasetError
from alpasift.batcher.data.files.writing import writable_format, write_rows
from alpasift.batcher.data.row_formats.other_keys import REJECTED, REST_OF_ROW, is_rejected
from alpasift.batcher.data.row_formats.row import ROW_FORMATS, Parts, RowFormat
from alpasift.batcher.data.row_formats.rows import convert, restore
from alpasift.batcher.store import Connection, Store, rows
from alpasift.graders import Example

_PAGE_ROWS = 50_000


def stored_examples(store: Store, version_id: str, positions: Sequence[int] | None = None) -> list[Example]:
    """The examples at these positions of a dataset version, in the order of their positions (None: all of them).

    Raises DatasetError when a position holds no usable row.
    """
    with store.reader() as con:
        chosen = _positions(con, version_id, positions)
    return [parts.example() for _, _, parts in _pages(store, version_id, chosen)]


def export_rows(
    store: Store,
    version_id: str,
    positions: Sequence[int] | None,
    path: str | Path,
    *,
    format: str | None = None,  # noqa: A002
    row_format: str | None = None,
    extra: Callable[[int, str], Mapping[str, Any]] | None = None,
) -> int:
    """Write rows of a version, in the order of their positions (None: all), and return how many.

    In the version's own row format (the default) a row has the keys and values it was imported with; another row
    format gets what it can hold, other keys beside it. The format is `format`, or what the path's suffix says.
    `extra(position, example_id)` gives keys to add to a row, a score for instance; they win over keys of that name.
    The file appears whole, or not at all.
    """
    path = Path(path)
    format_name = writable_format(path, format)
    restored = _Restored(store, version_id, positions, row_format)

    def written() -> Iterator[dict[str, Any]]:
        for position, example, row in restored:
            if extra:
                row.update(extra(position, example))
            yield row

    return write_rows(path, format_name, written, restored.columns)


def keys_of_rows(
    store: Store, version_id: str, positions: Sequence[int] | None, row_format: str | None = None
) -> set[str]:
    """Every key that some row has when `export_rows` writes these rows in this row format."""
    return {key for _, _, row in _Restored(store, version_id, positions, row_format) for key in row}


class _Restored:
    """The rows of a version as they are written: position, example_id and the row itself. Can be read repeatedly.

    A row that holds several answers is written as it stood where all of them are wanted, a pair also where its chosen
    answer is; the other wanted answers are rows of their own, with alpaca's keys. `columns` are the types of its
    parquet columns, where it was imported from parquet and is written as it was.
    """

    def __init__(self, store: Store, version_id: str, positions: Sequence[int] | None, row_format: str | None) -> None:
        with store.reader() as con:
            found = rows(con, "select shape, facts from dataset_versions where version_id = $v", {"v": version_id}).rows
            self.positions = _positions(con, version_id, positions) if found else []
            self.apart = _apart(con, version_id, set(self.positions)) if found and positions is not None else set()
        if not found:
            raise DatasetError(f"no dataset version {version_id} in {store.path}")
        own_name, facts = found[0][0], json.loads(found[0][1])
        if row_format not in (None, own_name, *ROW_FORMATS):
            raise DatasetError(
                f"these rows cannot be written in the row format {row_format}; choose from {', '.join(ROW_FORMATS)}"
            )
        self.store, self.version_id, self.name = store, version_id, str(row_format)
        self.own = _row_format(facts["shape"]) if row_format in (None, own_name) else None
        self.columns = (
            pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(facts["columns"]))) if self.own and facts["columns"] else None
        )

    def __iter__(self) -> Iterator[tuple[int, str, dict[str, Any]]]:
        for position, example, parts in _pages(self.store, self.version_id, self.positions):
            if self.own and position not in self.apart:
                row = restore(self.own, parts)
            else:
                row = convert(self.name if not self.own else "alpaca", parts)
            if row is not None:
                yield position, example, row


def _apart(con: Connection, version_id: str, wanted: set[int]) -> set[int]:
    """The wanted positions whose example is not written with its row, but on its own."""
    text = "select position, other from dataset_rows where version_id = $v order by position"
    rest = "select 1 from dataset_rows where version_id = $v and other in ($more, $rejected) limit 1"
    kinds = {"more": REST_OF_ROW["more"], "rejected": REST_OF_ROW["rejected"]}
    if not rows(con, rest, {"v": version_id, **kinds}).rows:
        return set()
    groups: list[list[tuple[int, str]]] = []
    for position, other in rows(con, text, {"v": version_id}).rows:
        if other in kinds.values() and groups:
            groups[-1].append((position, other))
        else:
            groups.append([(position, other)])
    apart: set[int] = set()
    for group in groups:
        places = {position for position, _ in group}
        pair = len(group) == 2 and group[1][1] == kinds["rejected"]
        whole = group[0][0] in wanted if pair else places <= wanted
        if not whole:
            apart |= places & wanted
    return apart


def positions_of(store: Store, version_id: str) -> list[int]:
    """The positions of the usable rows of a version."""
    with store.reader() as con:
        return _positions(con, version_id, None)


def rejected_answers(store: Store, version_id: str) -> set[int]:
    """The positions of answers that their file calls rejected, in a preference pair or by a KTO label."""
    text = "select position, other from dataset_rows where version_id = $v and other like $mark"
    with store.reader() as con:
        found = rows(con, text, {"v": version_id, "mark": f"%{REJECTED}%"}).rows
    return {position for position, other in found if is_rejected(other)}


def _row_format(fact: Mapping[str, Any]) -> RowFormat:
    return RowFormat(**{**fact, "keys": tuple(fact["keys"])})


def _positions(con: Connection, version_id: str, wanted: Sequence[int] | None) -> list[int]:
    text = "select position from dataset_rows where version_id = $v order by position"
    there = [r[0] for r in rows(con, text, {"v": version_id}).rows]
    if wanted is None:
        return there
    missing = sorted(set(wanted) - set(there))
    if missing:
        raise DatasetError(
            f"the dataset has no usable row at position {missing[0]} ({len(missing):,} such of {len(wanted):,})"
        )
    return sorted(set(wanted))


def _pages(store: Store, version_id: str, positions: Sequence[int]) -> Iterator[tuple[int, str, Parts]]:
    """Position, example_id and content of the rows, a page of them at a time: a writer never waits long for us."""
    text = (
        "select r.position, cast(r.example_id as varchar), "
        "e.system, e.turns, e.instruction, e.input, e.output, r.category, r.other "
        "from dataset_rows r join wanted using (position) join examples e using (example_id) "
        "where r.version_id = $v order by r.position"
    )
    for start in range(0, len(positions), _PAGE_ROWS):
        with store.reader() as con:
            con.register("wanted", pa.table({"position": pa.array(positions[start : start + _PAGE_ROWS], pa.int64())}))
            page = rows(con, text, {"v": version_id}).rows
        for position, example, system, turns, instruction, text_in, output, category, other in page:
            past = [(role, content) for role, content in orjson.loads(turns)] if turns else []
            yield position, example, Parts(system, past, instruction, text_in, output, category, other)
