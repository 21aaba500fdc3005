"""What commands share when they print: tables, JSON, CSV, notes, a progress line. Control characters never get through."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from batcher.engine import Progress


class DecimalType(click.ParamType[Decimal]):
    """An exact number."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Decimal:
        try:
            found = Decimal(str(value))
        except InvalidOperation:
            found = Decimal("NaN")
        if not found.is_finite() or abs(found) > 100_000:
            self.fail(f"{value!r} is no score or share", param, ctx)
        return found


NUMBER = DecimalType()


_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def plain(value: Any) -> str:
    """Text that is safe on a terminal: no escape sequences, no direction marks."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(value).replace("\r\n", "\n"))


def note(message: str) -> None:
    """A line for the person at the terminal, on stderr."""
    click.echo(plain(message), err=True)


def number(value: Any) -> str:
    """A cell for people: 9,229; 4.5; empty for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Decimal):
        return format(value.normalize(), "f")
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    return plain(value)


def as_json(value: Any, name: str = "") -> Any:
    """A value as JSON holds it. Dollars are texts, so that no digit is lost; other decimals are numbers.

    What JSON has no form for (times, ids, blobs) is text; NaN and infinities are null.
    """
    if isinstance(value, Mapping):
        return {str(k): as_json(v, str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(v, name) for v in value]
    if isinstance(value, Decimal):
        if name == "usd" or name.endswith("_usd"):
            return format(value, "f")
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, bytes | bytearray):
        return value.hex()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def print_json(value: Any) -> None:
    text = json.dumps(as_json(value), ensure_ascii=False, indent=2)
    click.echo(_CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}" if match[0] != "\n" else "\n", text))


def print_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """CSV for people: a text that a spreadsheet would take for a formula gets an apostrophe before it.

    On a terminal control characters are replaced; a file or a pipe gets them as they are.
    """
    live = sys.stdout.isatty()
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        cells = [_cell(as_json(v, c)) for c, v in zip(columns, row, strict=True)]
        writer.writerow([plain(c) if live and isinstance(c, str) else c for c in cells])
    click.echo(buffer.getvalue(), nl=False)


def _cell(value: Any) -> Any:
    if (
        isinstance(value, str)
        and value[:1] in ("=", "+", "-", "@", "\t", "\r")
        and not re.fullmatch(r"-?[\d.]+", value)
    ):
        return "'" + value
    return value


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, max_width: int = 60) -> None:
    """A plain table, numbers to the right. Long texts are cut with an ellipsis."""
    cells = [[_short(number(v), max_width) for v in row] for row in rows]
    right = [
        all(v is None or isinstance(v, int | float | Decimal) for v in column) for column in zip(*rows, strict=True)
    ]
    right = right or [False] * len(columns)
    widths = [max(len(c), *(len(row[i]) for row in cells)) if cells else len(c) for i, c in enumerate(columns)]

    def line(row: Sequence[str]) -> str:
        return "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)).rstrip()

    click.echo(line([plain(column) for column in columns]))
    for row in cells:
        click.echo(line(row))


def _short(text: str, width: int) -> str:
    text = text.replace("\n", "\u23ce").replace("\t", " ")
    return text if len(text) <= width else text[: width - 1] + "\N{HORIZONTAL ELLIPSIS}"


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[Any]], form: str) -> None:
    """Rows as a table, as JSON (a list of objects) or as CSV."""
    if form == "json":
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
    elif form == "csv":
        print_csv(columns, rows)
    elif rows:
        print_table(columns, rows)
    else:
        note("no rows")


def forms(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options --json and --csv, given to the command as `form`."""
    command = click.option("--json", "form", flag_value="json", help="Print JSON.")(command)
    return click.option("--csv", "form", flag_value="csv", help="Print CSV.")(command)


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


@contextmanager
def progress_line(paid: bool, quiet: bool = False) -> Iterator[Callable[[Progress], None]]:
    """A function that shows how far a run is, on stderr: a live bar on a terminal, elsewhere a line each ten seconds."""
    if quiet:
        yield lambda progress: None
    elif not sys.stderr.isatty():
        yield _progress_lines(paid)
    else:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        with Bar(BarColumn(), TextColumn("{task.fields[says]}"), console=Console(stderr=True), transient=True) as live:
            task = live.add_task("grading", total=None, says="starting")

            def show(progress: Progress) -> None:
                live.update(task, total=progress.total, completed=progress.replied, says=_says(progress, paid))

            yield show


def _progress_lines(paid: bool, every: float = 10.0) -> Callable[[Progress], None]:
    last = time.monotonic()

    def show(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= every:
            last = time.monotonic()
            note(_says(progress, paid))

    return show


def _says(progress: Progress, paid: bool) -> str:
    from batcher.ledger import show_usd

    rate = progress.replied / progress.seconds if progress.seconds else 0.0
    left = duration((progress.total - progress.replied) / rate) if rate else "unknown time"
    share = progress.replied / progress.total if progress.total else 1.0
    text = f"{progress.replied:,} of {progress.total:,} rows ({share:.0%}), {rate:,.1f} rows/s, {left} left"
    return f"{text}, {show_usd(progress.usd)}" if paid else text


def bar(share: float, width: int = 32) -> str:
    """A bar of block characters, an eighth of a cell fine."""
    eighths = round(share * width * 8)
    full, rest = divmod(eighths, 8)
    return "\u2588" * full + (" \u258f\u258e\u258d\u258c\u258b\u258a\u2589"[rest] if rest else "")
