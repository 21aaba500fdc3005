"""Datasets in the store: import a file as a version of a dataset, find it by its label, write its rows out again.

Knows tables and identities. `batcher.formats` reads files, `batcher.shapes` rows, and `batcher.exports` writes files. An import is one transaction:
a failure leaves the database as it was. Nothing is dropped silently: a row that cannot be used goes to `set_aside`
with its line and reason, equal rows are kept and counted, and `export_rows` writes exactly what was read.

Identity. example_id is `store.hash_id(text)`, that is the first 128 bits of

    sha256(len(text) as 8 bytes, big end first, then text)

where text is the UTF-8 JSON of [system, [[role, text], ...], instruction, input, output], without blanks, with no
escapes but those JSON demands; what is absent is "". Equal content has one id whatever the file's shape, format or
name. version_id hashes the dataset's name, the file's bytes, the shape and the mapping, so the same file again adds nothing.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from batcher import formats, shapes
from batcher.exports import dump_json, writable_format, write_rows
from batcher.formats import DatasetError, Found, Source
from batcher.shapes import REASONS, SHAPES, Parts, Reader, Shape, ShapeError, Unusable
from batcher.store import Connection, Store, append, hash_id, rows, scalar, utc_now
from graders import Example

__all__ = [
    "DatasetError", "DatasetVersion", "Imported", "ReadFile", "example_id", "export_rows", "import_file", "read_examples", "resolve",
    "stored_examples",
]  # fmt: skip

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_FIRST_ROWS = 100  # that decide the shape
_BATCH_ROWS = 25_000
_BATCH_BYTES = 32 * 2**20
_PAGE_ROWS = 50_000
_KEPT_OF_BAD_ROW = 10_000  # characters


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did. `rows` are usable, duplicates among them; `reasons` counts those set aside."""

    dataset: str
    version: int
    label: str
    version_id: str
    rows: int
    set_aside: int
    duplicates: int
    shape: str
    format: str
    already_there: bool
    reasons: dict[str, int]
    new_examples: int


@dataclass(frozen=True, slots=True)
class DatasetVersion:
    """One imported content of a dataset; `label` is NAME for version 1 and NAME@2 from then on."""

    version_id: str
    dataset: str
    version: int
    label: str
    rows: int
    shape: str
    format: str
    sha256: str


@dataclass(frozen=True, slots=True)
class ReadFile:
    """A data file read without a database: its usable rows in order, and how many were set aside, by reason."""

    examples: list[Example]
    rows: int
    set_aside: dict[str, int]
    shape: str
    sha256: str


def example_id(example: Example) -> str:
    """The id of this content, as a uuid; see the head of this module for the formula."""
    turns = [(turn.role, turn.content) for turn in example.turns]
    return hash_id(orjson.dumps([example.system, turns, example.instruction, example.input, example.output]))


# -- import -----------------------------------------------------------------------------------------------------


def import_file(
    store: Store,
    path: str | Path,
    *,
    dataset: str | None = None,
    shape: str = "auto",
    mapping: Mapping[str, str] | None = None,
    strict: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Imported:
    """Import a file as a version of a dataset, named after the file unless `dataset` says otherwise.

    `mapping` says which key holds a target ({"instruction": "question"}). With `strict` the first row that cannot be
    used is an error. `progress` is told how many rows were read so far. Makes the database if there is none.
    Raises DatasetError, with nothing written.
    """
    path = Path(path)
    name = _name_of(path, dataset)
    source = formats.inspect(path)
    stamp, digest = source.stamp(), source.sha256()
    first, found = _peek(source)
    try:
        layout = shapes.choose_shape(shape, mapping, [f.row for f in first if isinstance(f.row, dict)])
    except ShapeError as error:
        raise DatasetError(f"{path}: {error}") from error
    version_id = hash_id("dataset_version", name, digest, layout.name, dump_json(sorted((mapping or {}).items())))
    if store.path.exists():
        with store.existing().reader() as con:
            if known := _known(con, version_id):
                return known
    work = _Work(source, layout, strict, progress)
    batches = work.batches(found)
    opening = list(itertools.islice(batches, 2))  # a small file is read to its end before the database is opened
    if len(opening) < 2:
        work.check_usable()
    facts = {
        "format": source.format,
        "mapping": dict(mapping or {}),
        "shape": asdict(layout),
        "columns": _packed(source.columns),
    }
    with store.create().transaction() as con:
        if known := _known(con, version_id):
            return known
        _insert_all(con, version_id, itertools.chain(opening, batches), work)
        work.check_usable()
        if source.stamp() != stamp:
            raise DatasetError(f"{path} was written to while it was read; nothing was imported, try again")
        version = 1 + (scalar(con, "select max(version) from dataset_versions where dataset = $d", {"d": name}) or 0)
        duplicates = scalar(
            con,
            "select count(*) - count(distinct example_id) from dataset_rows where version_id = $v",
            {"v": version_id},
        )
        aside = work.reasons.total()
        columns = [
            "version_id",
            "dataset",
            "version",
            "shape",
            "source",
            "sha256",
            "rows",
            "set_aside",
            "duplicates",
            "facts",
            "imported_at",
        ]
        append(
            con,
            "dataset_versions",
            columns,
            [
                (
                    version_id,
                    name,
                    version,
                    layout.name,
                    path.name.encode("utf-8", "replace").decode(),
                    digest,
                    work.usable,
                    aside,
                    duplicates,
                    json.dumps(facts),
                    utc_now(),
                )
            ],
        )
    return Imported(
        dataset=name,
        version=version,
        label=_label(name, version),
        version_id=version_id,
        rows=work.usable,
        set_aside=aside,
        duplicates=duplicates,
        shape=layout.name,
        format=source.format,
        already_there=False,
        reasons=dict(work.reasons.most_common()),
        new_examples=work.new_examples,
    )


def _name_of(path: Path, dataset: str | None) -> str:
    if dataset is None:
        return re.sub(r"[^A-Za-z0-9._-]", "-", formats.base_name(path.absolute()))[:64]
    if not _NAME.fullmatch(dataset):
        raise DatasetError(f"{dataset!r} is no name for a dataset; use 1 to 64 of the characters A-Z a-z 0-9 . _ -")
    return dataset


def _label(dataset: str, version: int) -> str:
    return dataset if version == 1 else f"{dataset}@{version}"


def _peek(source: Source) -> tuple[list[Found], Iterator[Found]]:
    """The first rows, and all rows, those included."""
    found = formats.read_rows(source)
    first = list(itertools.islice(found, _FIRST_ROWS))
    if not first:
        raise DatasetError(f"{source.path} holds no rows")
    return first, itertools.chain(first, found)


def _known(con: Connection, version_id: str) -> Imported | None:
    """What an earlier import of this very content did, if there was one."""
    found = rows(con, "select * from dataset_versions where version_id = $v", {"v": version_id}).dicts()
    if not found:
        return None
    row = found[0]
    counts = "select reason, count(*) from set_aside where version_id = $v group by reason order by 2 desc, 1"
    return Imported(
        dataset=row["dataset"],
        version=row["version"],
        label=_label(row["dataset"], row["version"]),
        version_id=version_id,
        rows=row["rows"],
        set_aside=row["set_aside"],
        duplicates=row["duplicates"],
        shape=row["shape"],
        format=json.loads(row["facts"])["format"],
        already_there=True,
        reasons=dict(rows(con, counts, {"v": version_id}).rows),
        new_examples=0,
    )


def _packed(columns: pa.Schema | None) -> str | None:
    return None if columns is None else columns.serialize().to_pybytes().hex()


@dataclass(slots=True)
class _Batch:
    """Rows on their way to the tables, column by column."""

    example_id: list[str] = field(default_factory=list)
    system: list[str] = field(default_factory=list)
    turns: list[str] = field(default_factory=list)
    instruction: list[str] = field(default_factory=list)
    input: list[str] = field(default_factory=list)
    output: list[str] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    category: list[str | None] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    set_aside: list[tuple[int, int | None, str, str]] = field(default_factory=list)

    def table(self) -> pa.Table:
        names = [n for n in self.__slots__ if n != "set_aside"]
        types = [pa.int64() if n == "position" else pa.string() for n in names]
        arrays = [pa.array(getattr(self, n), type=t) for n, t in zip(names, types, strict=True)]
        return pa.Table.from_arrays(arrays, names=names)


@dataclass(slots=True)
class _Work:
    """One import under way: turns what the reader found into batches, and counts."""

    source: Source
    shape: Shape
    strict: bool
    progress: Callable[[int], None] | None
    read: int = 0
    usable: int = 0
    new_examples: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def batches(self, found: Iterable[Found]) -> Iterator[_Batch]:
        batch, size = _Batch(), 0
        read = shapes.reader(self.shape)
        for position, one in enumerate(found):
            try:
                size += _take(batch, read, position, one)
            except Unusable as error:
                size += self._set_aside(batch, position, one, error.reason)
            if (position + 1) % _BATCH_ROWS == 0 or size > _BATCH_BYTES:
                self._count(batch, position + 1)
                yield batch
                batch, size = _Batch(), 0
        if batch.position or batch.set_aside:
            self._count(batch, self.read + len(batch.position) + len(batch.set_aside))
            yield batch

    def _count(self, batch: _Batch, read: int) -> None:
        self.read = read
        self.usable += len(batch.position)
        if self.progress:
            self.progress(read)

    def check_usable(self) -> None:
        if not self.usable:
            raise DatasetError(_none_usable(self.source.path, self.reasons))

    def _set_aside(self, batch: _Batch, position: int, found: Found, reason: str) -> int:
        if self.strict:
            where = f"{self.source.path}:{found.line}" if found.line else f"{self.source.path}, row {position + 1:,}"
            raise DatasetError(f"{where}: {reason}, {REASONS[reason]}; without --strict such rows are set aside")
        text = _as_it_stood(found)
        batch.set_aside.append((position, found.line, reason, text))
        self.reasons[reason] += 1
        return len(text)


def _take(batch: _Batch, read: Reader, position: int, found: Found) -> int:
    """Add a row to the batch and return its size. Raises Unusable."""
    if found.reason:
        raise Unusable(found.reason)
    if type(found.row) is not dict:
        raise Unusable("not_an_object")
    system, turns, instruction, text, output, category, other = read(found.row)
    try:
        content = orjson.dumps([system, turns, instruction, text, output])
    except TypeError:
        raise Unusable("bad_unicode") from None
    batch.example_id.append(sha256(len(content).to_bytes(8, "big") + content).hexdigest()[:32])
    batch.system.append(system)
    batch.turns.append(orjson.dumps(turns).decode("utf-8") if turns else "")
    batch.instruction.append(instruction)
    batch.input.append(text)
    batch.output.append(output)
    batch.position.append(position)
    batch.category.append(category)
    batch.other.append(other)
    return len(content) + len(other)


def _as_it_stood(found: Found) -> str:
    if isinstance(found.text, bytes):
        return found.text[: 4 * _KEPT_OF_BAD_ROW].decode("utf-8", "replace").rstrip("\r\n")[:_KEPT_OF_BAD_ROW]
    if found.text is not None:
        return found.text[:_KEPT_OF_BAD_ROW]
    try:
        text = json.dumps(found.row, ensure_ascii=False, default=str)[:_KEPT_OF_BAD_ROW]
    except RecursionError:
        text = ""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class _Staged:
    """What DuckDB sees as the table `staged`: the batch of the moment.

    Registered once: DuckDB keeps whatever was registered inside a transaction until its end, every batch of it.
    """

    def __init__(self) -> None:
        self.table = _Batch().table()

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.table.__arrow_c_stream__(requested_schema)


def _insert_all(con: Connection, version_id: str, batches: Iterable[_Batch], work: _Work) -> None:
    """Write the batches, each while the next is being read: DuckDB works without Python's lock."""
    staged = _Staged()
    con.register("staged", staged)
    with ThreadPoolExecutor(1, "insert") as writer:
        pending: Future[int] | None = None
        for batch in batches:
            if pending:
                work.new_examples += pending.result()
            pending = writer.submit(_insert, con, staged, version_id, batch)
        if pending:
            work.new_examples += pending.result()
    con.unregister("staged")


def _insert(con: Connection, staged: _Staged, version_id: str, batch: _Batch) -> int:
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
    bad = [(version_id, *row) for row in batch.set_aside]
    append(con, "set_aside", ("version_id", "position", "line", "reason", "row"), bad)
    return int(added[0]) if added else 0


# -- read -------------------------------------------------------------------------------------------------------


def read_examples(path: str | Path, *, shape: str = "auto", mapping: Mapping[str, str] | None = None) -> ReadFile:
    """The usable rows of a file, as an import would take them, without any database. Raises DatasetError."""
    path = Path(path)
    source = formats.inspect(path)
    digest = source.sha256()
    first, found = _peek(source)
    try:
        layout = shapes.choose_shape(shape, mapping, [f.row for f in first if isinstance(f.row, dict)])
    except ShapeError as error:
        raise DatasetError(f"{path}: {error}") from error
    read, examples, reasons = shapes.reader(layout), [], Counter[str]()
    for one in found:
        try:
            if one.reason or type(one.row) is not dict:
                raise Unusable(one.reason or "not_an_object")
            parts = read(one.row)
            orjson.dumps(parts[:5])
            examples.append(Parts(*parts).example())
        except Unusable as error:
            reasons[error.reason] += 1
        except TypeError:
            reasons["bad_unicode"] += 1
    if not examples:
        raise DatasetError(_none_usable(path, reasons))
    return ReadFile(examples, len(examples) + reasons.total(), dict(reasons.most_common()), layout.name, digest)


def _none_usable(path: Path, reasons: Counter[str]) -> str:
    told = "; ".join(f"{count:,} x {reason} ({REASONS[reason]})" for reason, count in reasons.most_common())
    return f"{path}: none of its {reasons.total():,} rows can be used: {told}; see --shape and --map"


def stored_examples(store: Store, version_id: str, positions: Sequence[int] | None = None) -> list[Example]:
    """The examples at these positions of a dataset version, in the order of their positions (None: all of them).

    Raises DatasetError when a position holds no usable row.
    """
    with store.reader() as con:
        chosen = _positions(con, version_id, positions)
    return [parts.example() for _, _, parts in _pages(store, version_id, chosen)]


# -- find -------------------------------------------------------------------------------------------------------


def resolve(store: Store, name: str | None) -> DatasetVersion:
    """The dataset version that a name means: NAME is its newest version, NAME@2 that one, None the only dataset there is."""
    with store.reader() as con:
        found = rows(con, "select * from datasets order by imported_at, dataset, version").dicts()
    if not found:
        raise DatasetError(f"{store.path} holds no dataset yet; `alpasift import FILE` brings one in")
    names = list(dict.fromkeys(r["dataset"] for r in found))
    if name is None and len(names) > 1:
        raise DatasetError(f"there are several datasets, name one of them: {', '.join(names)}")
    dataset, at, number = (names[0] if name is None else name).partition("@")
    versions = [r for r in found if r["dataset"] == dataset and (not at or number == str(r["version"]))]
    if not versions:
        raise DatasetError(f"there is no dataset {name!r}; there are {', '.join(r['label'] for r in found)}")
    return _version(max(versions, key=lambda r: r["version"]))


def _version(row: Mapping[str, Any]) -> DatasetVersion:
    return DatasetVersion(
        version_id=str(row["version_id"]),
        dataset=row["dataset"],
        version=row["version"],
        label=row["label"],
        rows=row["rows"],
        shape=row["shape"],
        format=json.loads(row["facts"])["format"],
        sha256=row["sha256"],
    )


# -- export -----------------------------------------------------------------------------------------------------


def export_rows(
    store: Store,
    version_id: str,
    positions: Sequence[int] | None,
    path: str | Path,
    *,
    format: str | None = None,  # noqa: A002
    shape: str | None = None,
    extra: Callable[[int, str], Mapping[str, Any]] | None = None,
) -> int:
    """Write rows of a version, in the order of their positions (None: all), and return how many.

    In the version's own shape (the default) a row has the keys and values it was imported with; another shape gets
    what it can hold, other keys beside it. The format is `format`, or what the path's suffix says.
    `extra(position, example_id)` gives keys to add to a row, a score for instance; they win over keys of that name.
    The file appears whole, or not at all; only its owner can read it.
    """
    path = Path(path)
    format_name = writable_format(path, format)
    with store.reader() as con:
        found = rows(con, "select shape, facts from dataset_versions where version_id = $v", {"v": version_id}).rows
        chosen = _positions(con, version_id, positions) if found else []
    if not found:
        raise DatasetError(f"there is no dataset version {version_id} in {store.path}")
    own_name, facts = found[0][0], json.loads(found[0][1])
    if shape not in (None, own_name, *SHAPES):
        raise DatasetError(f"these rows cannot be written in the shape {shape}; there are {', '.join(SHAPES)}")
    own = _shape(facts["shape"]) if shape in (None, own_name) else None

    def out() -> Iterator[dict[str, Any]]:
        for position, example, parts in _pages(store, version_id, chosen):
            row = shapes.restore(own, parts) if own else shapes.convert(str(shape), parts)
            if extra:
                row.update(extra(position, example))
            yield row

    columns = pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(facts["columns"]))) if own and facts["columns"] else None
    return write_rows(path, format_name, out, columns)


def _shape(fact: Mapping[str, Any]) -> Shape:
    return Shape(**{**fact, "keys": tuple(fact["keys"])})


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
        "select r.position, cast(r.example_id as varchar), e.system, e.turns, e.instruction, e.input, e.output, r.category, r.other "
        "from dataset_rows r join wanted using (position) join examples e using (example_id) "
        "where r.version_id = $v order by r.position"
    )
    for start in range(0, len(positions), _PAGE_ROWS):
        with store.reader() as con:
            con.register("wanted", pa.table({"position": pa.array(positions[start : start + _PAGE_ROWS], pa.int64())}))
            page = rows(con, text, {"v": version_id}).rows
        for position, example, system, turns, instruction, text_in, output, category, other in page:
            said = [(role, said) for role, said in orjson.loads(turns)] if turns else []
            yield position, example, Parts(system, said, instruction, text_in, output, category, other)
