"""One database file: it is closed and unlocked between calls."""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb

from alpasift.batcher.store.attached import attached, second_cursor
from alpasift.batcher.store.errors import StoreError
from alpasift.batcher.store.lock import run_lock
from alpasift.batcher.store.migrate import is_current, make, migrate
from alpasift.batcher.store.opening import CONFIG, MEMORY, NEW_FILE, check_path, explain, open_database, private_files
from alpasift.batcher.store.query_result import QueryLimits, QueryResult
from alpasift.batcher.store.rows import Connection, Rows, rows
from alpasift.batcher.store.sql_files import named_query
from alpasift.batcher.store.user_sql import limited_query
from alpasift.graders import AlpaSiftError


class Store:
    """One database file. Cheap to make; holds no connection between calls.

    path    the file itself: symbolic links on the way to it are resolved, so that what lies beside the database (lock,
            spool, downloads, DuckDB's log) has one name
    given   the path as it was given
    """

    def __init__(self, path: str | os.PathLike[str], wait: float = 30.0) -> None:
        if not str(path):
            raise StoreError("--db is empty; give the path of a database file")
        self.given = Path(path)
        self.path = _resolved(self.given)
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
            current = is_current(con, self.path)
        if not current:
            self._bring_up_to_date()
        self._checked = True
        return self

    def _bring_up_to_date(self) -> None:
        if not os.access(self.path, os.W_OK) or not os.access(self.path.parent, os.W_OK):
            raise StoreError(
                f"{self.path} was written by an earlier release and has to be upgraded once, which needs a "
                f"writable folder; copy it to one and open the copy"
            )
        with run_lock(self.path), self._connection(read_only=False, wait=self.wait, config={}) as con:
            if not is_current(con, self.path):  # another process may have been first
                migrate(con, self.path)

    def _check_place(self) -> None:
        check_path(self.path)
        if self.path.is_dir():
            raise StoreError(f"{self.path} is a folder; --db needs the path of a database file")
        if not self.path.parent.is_dir():
            raise StoreError(f"the folder {self.path.parent} does not exist; create it, or give another --db")
        self._check_link()
        if not self.path.exists():
            return
        if not self.path.is_file():
            raise StoreError(f"{self.path} is not a regular file; give another --db")
        try:
            with self.path.open("rb") as file:
                head = file.read(12)
        except OSError as error:
            raise StoreError(f"{self.path} cannot be read: {error.strerror}; give another --db") from error
        if not head:
            raise StoreError(f"{self.path} is an empty file, not a database; delete it, or give another --db")
        if head[8:] != b"DUCK":
            raise StoreError(f"{self.path} is not a DuckDB database; give another --db")

    def _check_link(self) -> None:
        """Raise StoreError where an earlier release named files after a link that should lie beside the database."""
        if not self.given.is_symlink():
            return
        for end in (".wal", ".spool", ".batches"):
            left = self.given.with_name(self.given.name + end)
            if left.exists() and left.resolve() != self.path.with_name(self.path.name + end):
                raise StoreError(
                    f"{left} belongs to {self.path}: an earlier release named it after the link {self.given}. It may "
                    f"hold paid replies; `mv {left} {self.path}{end}` and run again"
                )

    def _make(self) -> None:
        """Make a whole database under another name and link it into place: nobody ever meets half of one."""
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
        try:
            con = open_database(draft, False, self.wait, {**CONFIG, **NEW_FILE})
            try:
                draft.chmod(0o600)
                make(con)
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
            raise explain(error, self.path) from error
        finally:
            for left in (draft, draft.with_name(draft.name + ".wal")):
                left.unlink(missing_ok=True)

    def existing(self) -> Store:
        """This store, checked and migrated if need be. Raises StoreError when there is no database yet."""
        if not self.path.exists():
            raise StoreError(f"no database {self.path} yet; create it with `alpasift import FILE`")
        return self.create()

    @contextlib.contextmanager
    def _connection(
        self, *, read_only: bool, wait: float, config: Mapping[str, Any] | None = None, memory: str = MEMORY
    ) -> Iterator[Connection]:
        """A connection, closed at the end of the block; with a `config` to a DuckDB of its own, started for it."""
        with private_files():  # DuckDB's side files hold data too
            opened = (
                attached(self.path, read_only, wait, memory)
                if config is None
                else contextlib.closing(open_database(self.path, read_only, wait, {**CONFIG, **config}))
            )
            with opened as con:
                try:
                    yield con
                except (RuntimeError, duckdb.Error) as error:
                    if "nterrupt" in str(error) and not isinstance(error, AlpaSiftError):  # Ctrl-C while DuckDB worked
                        raise KeyboardInterrupt from error
                    if isinstance(error, duckdb.IOException | duckdb.FatalException):  # a damaged file, or a full disk
                        raise explain(error, self.path) from error
                    raise

    @contextlib.contextmanager
    def transaction(self, wait: float | None = None, memory: str = MEMORY) -> Iterator[Connection]:
        """A connection inside one transaction, committed at the end of the block and rolled back on any error.

        `memory` is what DuckDB may take, such as 750MB.
        """
        assert getattr(self._mine, "reader", None) is None, "a transaction inside a reader would wait for itself"
        if not self.path.exists():  # DuckDB would begin a blank file under this name
            raise StoreError(f"the database {self.path} is gone: moved or deleted; put it back and run again")
        with self._connection(read_only=False, wait=self.wait if wait is None else wait, memory=memory) as con:
            con.execute("begin")
            try:
                yield con
            except BaseException as error:
                with contextlib.suppress(duckdb.Error):
                    con.execute("rollback")
                if isinstance(error, duckdb.IOException | duckdb.OutOfMemoryException | duckdb.FatalException):
                    raise explain(error, self.path) from error
                raise
            try:
                con.execute("commit")
            except duckdb.Error as error:
                raise explain(error, self.path) from error

    @contextlib.contextmanager
    def reader(self) -> Iterator[Connection]:
        """A read-only connection for the queries of one look; close it soon, a writer waits for it.

        Inside another `reader` of the same thread it is the same connection: opening takes DuckDB some ms.
        """
        outer: Connection | None = getattr(self._mine, "reader", None)
        if outer is not None:
            with contextlib.closing(second_cursor(outer)) as cursor:
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
        """One statement, on a connection of this process that can neither write, read a file nor change a setting.

        Stops after `seconds` and after `max_rows` rows (`cut` then says so). Raises QueryError.
        """
        with self.locked(memory) as con:
            return limited_query(con, text, parameters or {}, max_rows, seconds)

    def user_query(
        self,
        text: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        max_rows: int = 10_000,
        seconds: float = 60.0,
        memory_bytes: int = 2_000_000_000,
    ) -> Rows:
        """`locked_query` in a process of its own: the limits of time, memory and size hold whatever the statement does.

        `cut` says whether rows or parts of them were left out. Raises QueryError.
        """
        from alpasift.batcher.store.query_process import rows_of

        return rows_of(self.path, text, parameters or {}, QueryLimits(max_rows, seconds, memory_bytes), self.wait)

    def user_arrow(
        self,
        text: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        max_rows: int = 10_000,
        seconds: float = 60.0,
        memory_bytes: int = 2_000_000_000,
    ) -> QueryResult:
        """`user_query` with the answer as an Arrow table."""
        from alpasift.batcher.store.query_process import arrow_of

        return arrow_of(self.path, text, parameters or {}, QueryLimits(max_rows, seconds, memory_bytes), self.wait)

    @contextlib.contextmanager
    def locked(self, memory: str) -> Iterator[Connection]:
        """A connection that can neither write, read a file nor change a setting."""
        assert getattr(self._mine, "reader", None) is None, "a locked query inside a reader would wait for itself"
        config = {"enable_external_access": False, "memory_limit": memory, "threads": min(4, os.cpu_count() or 1)}
        with self._connection(read_only=True, wait=self.wait, config=config) as con:
            con.execute("set lock_configuration = true")
            yield con


def _resolved(given: Path) -> Path:
    """The path of the file that is meant. As given where no symbolic link is on the way, which keeps messages short."""
    real = os.path.realpath(given)
    return given if real == os.path.normpath(given.absolute()) else Path(real)
