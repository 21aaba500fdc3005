"""The DuckDB file: the only module that imports duckdb.

DuckDB lets one process hold a file, and while one writes no other can even read it. So nothing here stays open:
a transaction opens, commits and closes; a reader opens for one query. Whoever finds the file taken tries again for
`wait` seconds and then names the process that holds it. Tables only grow; the current state of a thing is a view.

The database is made by `sql/migrations` (applied once, in order, after a copy of the file) and `sql/views`
(created again when the folder's hash differs from the one stored). User SQL runs in `locked_query`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from graders import AlpaSiftError

Connection = duckdb.DuckDBPyConnection
_T = TypeVar("_T")

_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "python_enable_replacements": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}


class StoreError(AlpaSiftError):
    """The database file cannot be used as it is."""


class StoreBusy(StoreError):
    """Another process holds the file; the message names it."""


class QueryError(AlpaSiftError):
    """A query of the user's is wrong, not allowed, or took too long."""


def utc_now() -> datetime:
    """Now, in UTC, without a zone: what the timestamp columns hold."""
    return datetime.now(UTC).replace(tzinfo=None)


def new_id() -> str:
    return str(uuid.uuid4())


def hash_id(*parts: str | bytes) -> str:
    """128 bits of sha256 over length-prefixed parts, written as a uuid."""
    pieces = []
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        pieces.append(len(data).to_bytes(8, "big"))
        pieces.append(data)
    return as_id(hashlib.sha256(b"".join(pieces)).hexdigest())


def as_id(h: str) -> str:
    """The first 32 of some hexadecimal digits, written as a uuid."""
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:32]}"


@dataclass(frozen=True, slots=True)
class Rows:
    """The answer to a query: column names, rows as tuples, and whether it was cut at the row limit."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    cut: bool = False

    def dicts(self) -> list[dict[str, Any]]:
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


@dataclass(frozen=True, slots=True)
class SqlText:
    """One file of `sql/`: its name, the comment at its head, its text and the $parameters it takes."""

    name: str
    doc: str
    text: str

    @property
    def parameters(self) -> tuple[str, ...]:
        code = re.sub(r"--[^\n]*|'[^']*'", "", self.text)
        return tuple(dict.fromkeys(re.findall(r"\$([a-z_][a-z0-9_]*)", code)))


def sql_texts(folder: str) -> list[SqlText]:
    """The files of sql/`folder`, by name. Names lose their number: views/10_graded.sql is "graded"."""
    found = []
    for entry in sorted(resources.files("sql").joinpath(folder).iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".sql"):
            text = entry.read_text("utf-8")
            doc = " ".join(line[2:].strip() for line in _head_comment(text))
            name = entry.name[:-4] if folder == "migrations" else re.sub(r"^\d+_", "", entry.name[:-4])
            found.append(SqlText(name, doc, text))
    return found


def _head_comment(text: str) -> list[str]:
    lines = []
    for line in text.splitlines():
        if not line.startswith("--"):
            break
        lines.append(line)
    return lines


def named_query(name: str) -> SqlText:
    """The query sql/queries/`name`.sql. Raises QueryError with the list of names."""
    queries = {q.name: q for q in sql_texts("queries")}
    if name not in queries:
        raise QueryError(f"no query is called {name!r}; there are {', '.join(queries)}")
    return queries[name]


class Store:
    """One database file. Cheap to make; holds no connection between calls."""

    def __init__(self, path: str | os.PathLike[str], wait: float = 30.0) -> None:
        if not str(path):
            raise StoreError("--db is empty; give the path of a database file")
        self.path = Path(path)
        self.wait = wait
        self._checked = False  # whether this object has seen that the file is a current database
        self._mine = threading.local()  # this thread's open reader

    # -- opening ------------------------------------------------------------------------------------------------

    def files(self) -> list[Path]:
        """The database and what lies beside it: nothing else may be written there."""
        return [
            self.path,
            *(self.path.with_name(self.path.name + end) for end in (".wal", ".lock", ".spool", ".batches")),
        ]

    def create(self) -> Store:
        """Make the file if it is not there, migrate it, refresh its views. Raises StoreError when it is no database."""
        if self._checked and self.path.exists():
            return self
        self._check_place()
        if not self.path.exists():
            self._make()
        with self._connection(read_only=True, wait=self.wait) as con:
            current = _is_current(con, self.path)
        if not current:
            with self._connection(read_only=False, wait=self.wait) as con:
                _migrate(con, self.path)
        self._checked = True
        return self

    def _check_place(self) -> None:
        if self.path.is_dir():
            raise StoreError(f"{self.path} is a folder; --db wants the path of a database file")
        if not self.path.parent.is_dir():
            raise StoreError(f"the folder {self.path.parent} does not exist; make it, or give another --db")
        if not self.path.exists():
            return
        if not self.path.is_file():
            raise StoreError(f"{self.path} is no ordinary file; give another --db")
        try:
            with self.path.open("rb") as file:
                head = file.read(12)
        except OSError as error:
            raise StoreError(f"{self.path} cannot be read: {error.strerror}; give another --db") from error
        if not head:
            raise StoreError(f"{self.path} is an empty file, not a database; delete it, or give another --db")
        if head[8:] != b"DUCK":
            raise StoreError(f"{self.path} is not a DuckDB database; give another --db")

    def _make(self) -> None:
        """Make a whole database under another name and link it into place: nobody ever meets half of one."""
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
        try:
            con = _open(draft, False, self.wait, _CONFIG)
            try:
                draft.chmod(0o600)
                _migrate(con, draft)
            finally:
                con.close()
            with contextlib.suppress(FileExistsError):  # another process was first: theirs is as good
                try:
                    os.link(draft, self.path)
                except (PermissionError, OSError) as error:
                    if isinstance(error, FileExistsError) or self.path.exists():
                        raise FileExistsError from error
                    draft.rename(self.path)  # a file system without links
        except duckdb.Error as error:
            raise _explain(error, self.path) from error
        finally:
            for left in (draft, draft.with_name(draft.name + ".wal")):
                left.unlink(missing_ok=True)

    def existing(self) -> Store:
        """This store, checked and migrated if need be. Raises StoreError when there is no database yet."""
        if not self.path.exists():
            raise StoreError(f"there is no database {self.path} yet; `alpasift import FILE` makes it")
        return self.create()

    @contextlib.contextmanager
    def _connection(
        self, *, read_only: bool, wait: float, config: Mapping[str, Any] | None = None
    ) -> Iterator[Connection]:
        con = _open(self.path, read_only, wait, {**_CONFIG, **(config or {})})
        try:
            yield con
        except (RuntimeError, duckdb.Error) as error:
            if "nterrupt" in str(error) and not isinstance(error, AlpaSiftError):  # Ctrl-C while DuckDB was at work
                raise KeyboardInterrupt from error
            raise
        finally:
            con.close()

    @contextlib.contextmanager
    def transaction(self, wait: float | None = None) -> Iterator[Connection]:
        """A connection inside one transaction, committed at the end of the block and rolled back on any error."""
        assert getattr(self._mine, "reader", None) is None, "a transaction inside a reader would wait for itself"
        with self._connection(read_only=False, wait=self.wait if wait is None else wait) as con:
            con.execute("begin")
            try:
                yield con
            except BaseException as error:
                with contextlib.suppress(duckdb.Error):
                    con.execute("rollback")
                if isinstance(error, duckdb.IOException | duckdb.OutOfMemoryException | duckdb.FatalException):
                    raise _explain(error, self.path) from error
                raise
            try:
                con.execute("commit")
            except duckdb.Error as error:
                raise _explain(error, self.path) from error

    @contextlib.contextmanager
    def reader(self) -> Iterator[Connection]:
        """A read-only connection for the queries of one look; close it soon, a writer waits for it.

        Inside another `reader` of the same thread it is the same connection: opening a database takes DuckDB some 40 ms.
        """
        outer: Connection | None = getattr(self._mine, "reader", None)
        if outer is not None:
            with contextlib.closing(outer.cursor()) as cursor:
                yield cursor
            return
        with self._connection(read_only=True, wait=self.wait) as con:
            self._mine.reader = con
            try:
                yield con
            finally:
                self._mine.reader = None

    # -- queries ------------------------------------------------------------------------------------------------

    def query(self, name: str, **parameters: Any) -> list[dict[str, Any]]:
        """The rows of the named query sql/queries/`name`.sql as dicts."""
        with self.reader() as con:
            return rows(con, named_query(name).text, parameters).dicts()

    def locked_query(
        self,
        text: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        max_rows: int = 10_000,
        seconds: float = 60.0,
        memory: str = "2GB",
    ) -> Rows:
        """One statement of the user's, on a connection that can neither write, read a file nor change a setting.

        Stops after `seconds` and after `max_rows` rows (`cut` then says so). Raises QueryError.
        """
        assert getattr(self._mine, "reader", None) is None, "a locked query inside a reader would wait for itself"
        config = {"enable_external_access": False, "memory_limit": memory, "threads": min(4, os.cpu_count() or 1)}
        with self._connection(read_only=True, wait=self.wait, config=config) as con:
            con.execute("set lock_configuration = true")
            return _limited(con, text, parameters or {}, max_rows, seconds)


def rows(con: Connection, text: str, parameters: Mapping[str, Any] | None = None) -> Rows:
    """All rows of one of our own queries."""
    cursor = con.execute(text, dict(parameters)) if parameters else con.execute(text)
    return Rows(tuple(d[0] for d in cursor.description or ()), cursor.fetchall())


def scalar(con: Connection, text: str, parameters: Mapping[str, Any] | None = None) -> Any:
    """The first value of the first row, None when there is no row."""
    found = rows(con, text, parameters).rows
    return found[0][0] if found else None


def append(
    con: Connection, table: str, columns: Sequence[str], values: Sequence[Sequence[Any]], unique: bool = False
) -> int:
    """Add rows to a table and return how many were new; with `unique`, rows whose key is there already are passed over.

    `values` are rows in the order of `columns`, of plain Python values; a few thousand at a time.
    """
    if not values:
        return 0
    columns_sql = ", ".join(columns)
    types = _column_types(con, table)
    arrays = [_column(cells, types[c]) for cells, c in zip(zip(*values, strict=True), columns, strict=True)]
    staged = pa.Table.from_arrays(arrays, names=list(columns))
    con.register("staged_rows", staged)
    try:
        select = ", ".join(f"cast({c} as {types[c]})" for c in columns)
        conflict = " on conflict do nothing" if unique else ""
        added = con.execute(
            f"insert into {table} ({columns_sql}) select {select} from staged_rows{conflict}"
        ).fetchone()
    finally:
        with contextlib.suppress(duckdb.Error):  # an interrupted transaction refuses this too
            con.unregister("staged_rows")
    return int(added[0]) if added else 0


@contextlib.contextmanager
def these_keys(con: Connection, keys: Iterable[str]) -> Iterator[None]:
    """Ids as a table `wanted` with the column key for the queries of the block: a list of thousands binds slowly."""
    con.register("wanted_texts", pa.table({"key": pa.array(list(keys), type=pa.string())}))
    con.execute("create or replace temp view wanted as select key::uuid as key from wanted_texts")
    try:
        yield
    finally:
        with contextlib.suppress(duckdb.Error):
            con.execute("drop view wanted")
            con.unregister("wanted_texts")


_TYPES: dict[str, dict[str, str]] = {}


def _column_types(con: Connection, table: str) -> dict[str, str]:
    if table not in _TYPES:  # one look at the catalogue serves every table of this process
        for name, column, kind in con.execute(
            "select table_name, column_name, data_type from duckdb_columns()"
        ).fetchall():
            _TYPES.setdefault(name, {})[column] = kind
    return _TYPES[table]


def _column(cells: Sequence[Any], sql_type: str) -> pa.Array:
    if sql_type == "UUID":
        cells = [str(cell) if isinstance(cell, uuid.UUID) else cell for cell in cells]
    return pa.array(cells, type=_arrow_type(sql_type))


def _arrow_type(sql_type: str) -> pa.DataType:
    if sql_type.startswith("DECIMAL"):
        precision, scale = re.findall(r"\d+", sql_type)
        return pa.decimal128(int(precision), int(scale))
    plain = {"BIGINT": pa.int64(), "INTEGER": pa.int32(), "DOUBLE": pa.float64(), "TIMESTAMP": pa.timestamp("us")}
    return plain.get(sql_type, pa.string())


# -- opening, retrying and explaining ---------------------------------------------------------------------------


MEMORY = "1400MB"
"""What DuckDB may take: a million graded rows stay below 2 GB in all. What does not fit goes to a folder beside the database."""

_HELD = (
    "Could not set lock",  # another process has it
    "different configuration",  # another thread of this process has it, for reading or for writing
    "Unique file handle conflict",  # likewise
)


def _open(path: Path, read_only: bool, wait: float, config: Mapping[str, Any]) -> Connection:
    if read_only and not path.exists():
        raise StoreError(f"there is no database {path} yet; `alpasift import FILE` makes it")
    deadline = time.monotonic() + wait
    while True:
        try:
            return duckdb.connect(str(path.absolute()), read_only=read_only, config={"memory_limit": MEMORY, **config})
        except duckdb.Error as error:
            if not any(sign in str(error) for sign in _HELD):
                raise _explain(error, path) from error
            if time.monotonic() >= deadline:
                raise StoreBusy(_who_holds(path, str(error), wait)) from error
        time.sleep(random.uniform(0.005, 0.03))


def _who_holds(path: Path, message: str, wait: float) -> str:
    pid = re.search(r"PID (\d+)", message)
    who = f"process {pid[1]}" if pid else "another process"
    return f"{path} is held by {who} and was not free within {wait:.0f} s; close that program (a `duckdb` shell?) and run again"


def _explain(error: duckdb.Error, path: Path) -> AlpaSiftError:
    text = str(error)
    if (
        "not a valid DuckDB database" in text
        or "not a DuckDB" in text
        or isinstance(error, duckdb.SerializationException)
    ):
        return StoreError(f"{path} is not a DuckDB database; give another --db")
    if "No space left" in text or "out of disk" in text.lower():
        return StoreError(
            f"the disk that holds {path} is full; nothing of this step was written. Free some space and run again"
        )
    if "Permission denied" in text or "Read-only file system" in text or "read-only" in text.lower():
        return StoreError(f"{path} cannot be written here (permission denied); give a --db in a folder of yours")
    if "version" in text and "storage" in text.lower():
        return StoreError(f"{path} was written by a newer DuckDB; upgrade alpasift and duckdb. ({_first_line(text)})")
    return StoreError(f"{path}: {_first_line(text)}")


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:300] if text.strip() else "no message"


# -- migrations and views ---------------------------------------------------------------------------------------


def _views_hash() -> str:
    return hashlib.sha256("\0".join(v.name + "\0" + v.text for v in sql_texts("views")).encode()).hexdigest()


def _applied(con: Connection, path: Path) -> list[str]:
    tables = {r[0] for r in con.execute("select table_name from duckdb_tables()").fetchall()}
    if not tables:
        return []
    if "migrations" not in tables:
        raise StoreError(f"{path} is a DuckDB database, but not one of alpasift's; give another --db")
    applied = [r[0] for r in con.execute("select name from migrations order by name").fetchall()]
    unknown = sorted(set(applied) - {m.name for m in sql_texts("migrations")})
    if unknown:
        raise StoreError(
            f"{path} was written by a newer alpasift (it has {unknown[-1]}); upgrade with `pip install -U alpasift`"
        )
    return applied


def _is_current(con: Connection, path: Path) -> bool:
    if len(_applied(con, path)) < len(sql_texts("migrations")):
        return False
    return bool(scalar(con, "select arg_max(views_hash, rowid) from views_state") == _views_hash())


def _migrate(con: Connection, path: Path) -> None:
    applied = _applied(con, path)
    missing = [m for m in sql_texts("migrations") if m.name not in applied]
    if applied and missing:
        con.execute("checkpoint")
        shutil.copy2(path, path.with_name(f"{path.name}.before_{missing[0].name}"))
    changed = False
    if not applied:
        con.execute("begin")
        con.execute("create table migrations (name varchar primary key, recorded_at timestamp not null)")
        con.execute("create table views_state (views_hash varchar not null, recorded_at timestamp not null)")
    for migration in missing:
        if applied:
            con.execute("begin")
        con.execute(migration.text)
        con.execute("insert into migrations values ($name, $now)", {"name": migration.name, "now": utc_now()})
        if applied:
            con.execute("commit")
        changed = True
    if not applied:
        con.execute(
            "insert into meta values ('ledger', $id), ('created_at', $now)", {"id": new_id(), "now": str(utc_now())}
        )
        con.execute("commit")
    if scalar(con, "select arg_max(views_hash, rowid) from views_state") != _views_hash():
        con.execute("begin")
        for view in sql_texts("views"):
            con.execute(view.text)
        con.execute("insert into views_state values ($hash, $now)", {"hash": _views_hash(), "now": utc_now()})
        con.execute("commit")
        changed = True
    if changed:
        con.execute("checkpoint")


# -- user SQL ---------------------------------------------------------------------------------------------------


def _limited(con: Connection, text: str, parameters: Mapping[str, Any], max_rows: int, seconds: float) -> Rows:
    try:
        statements = con.extract_statements(text)
    except duckdb.Error as error:
        raise QueryError(_first_line(str(error))) from error
    if len(statements) != 1:
        raise QueryError(f"give one statement; this holds {len(statements)}")
    found, columns = _in_time(con, lambda: _fetch(con, statements[0], parameters, max_rows + 1), seconds)
    return Rows(columns, found[:max_rows], cut=len(found) > max_rows)


def _fetch(
    con: Connection, statement: Any, parameters: Mapping[str, Any], count: int
) -> tuple[list[Any], tuple[str, ...]]:
    cursor = con.execute(statement, dict(parameters)) if parameters else con.execute(statement)
    found = cursor.fetchmany(count)
    return found, tuple(d[0] for d in cursor.description or ())


def _in_time(con: Connection, work: Callable[[], _T], seconds: float) -> _T:
    """Do the work in a thread and interrupt it after so many seconds, or at Ctrl-C, which DuckDB itself may not notice."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        task, deadline = pool.submit(work), time.monotonic() + seconds
        try:
            while not task.done() and time.monotonic() < deadline:
                wait([task], timeout=0.1)
        finally:
            late = not task.done()
            while not task.done():  # again and again: an interrupt before the query has begun is lost
                con.interrupt()
                wait([task], timeout=0.1)
    if late:
        raise QueryError(f"the query was stopped after {seconds:g} s; narrow it, or raise --seconds")
    try:
        return task.result()
    except duckdb.Error as error:
        raise QueryError(str(error).strip()) from error
