"""The answer to a query of the user's as an Arrow table, which pandas and polars take over without a copy of ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alpasift.graders import AlpaSiftError

if TYPE_CHECKING:
    import pyarrow as pa


class MissingPackage(AlpaSiftError):
    """A package is not installed; the message names it."""


@dataclass(frozen=True, slots=True)
class QueryLimits:
    """What a query of the user's may take: rows, seconds once the database is open, and memory."""

    rows: int = 10_000
    seconds: float = 60.0
    memory_bytes: int = 2_000_000_000


@dataclass(frozen=True, slots=True)
class QueryResult:
    """The rows of a query. `cut` says whether a limit left some out, `why_cut` which one where it is not max_rows.

    It speaks Arrow's C interface, so that `polars.DataFrame(result)`, `pyarrow.table(result)` and DuckDB read it as it
    is. Dollars and scores are decimals and stay exact; ids are texts.
    """

    table: pa.Table
    cut: bool = False
    why_cut: str = ""

    def arrow(self) -> pa.Table:
        """The rows as a pyarrow.Table."""
        return self.table

    def dicts(self) -> list[dict[str, Any]]:
        """The rows as dicts of plain Python values."""
        rows: list[dict[str, Any]] = self.table.to_pylist()
        return rows

    def df(self) -> Any:
        """The rows as a pandas.DataFrame. Raises MissingPackage where pandas is not installed."""
        try:
            return self.table.to_pandas()
        except ImportError as error:
            raise MissingPackage("pandas is not installed; `pip install pandas`, or take .pl() or .arrow()") from error

    def pl(self) -> Any:
        """The rows as a polars.DataFrame. Raises MissingPackage where polars is not installed."""
        try:
            import polars
        except ImportError as error:
            raise MissingPackage("polars is not installed; `pip install polars`, or take .df() or .arrow()") from error
        return polars.from_arrow(self.table)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        cut = f", truncated: {self.why_cut or 'at the row limit'}" if self.cut else ""
        return f"QueryResult: {len(self):,} rows of {', '.join(self.table.column_names)}{cut}"
