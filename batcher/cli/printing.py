"""How commands print: tables, JSON, CSV, notes, a progress line. Control characters never get through."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click

from alpasift.batcher.cli.table_layout import table_lines
from alpasift.batcher.engine.progress import progress_text

if TYPE_CHECKING:
    from alpasift.batcher.engine.summary import Progress


CELL = 60
"""What a cell of a user's own query shows at most; --json and --csv show it whole."""

_FORMULA = re.compile(r"[\t\r]|[\s\ufeff\u200b]*[=+\-@\uff1d\uff0b\uff0d\uff20]")
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 and C1
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"  # seen by nobody: hyphens, joiners, fillers, marks
    "\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb"  # and of direction and line
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff\ud800-\udfff]"
)
"""What no terminal should get from a row or a server. U+200C and U+200D join letters of living languages and emoji."""


def plain(value: Any) -> str:
    """Text that is safe on a terminal: no escape sequences, no direction marks, nothing that cannot be seen."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(value).replace("\r\n", "\n"))


def note(message: str) -> None:
    """A line for the person at the terminal, on stderr; commands to copy ("next: ...") are never wrapped."""
    _print_wrapped(message, err=True)


def print_paragraph(text: str) -> None:
    """A line of text on stdout, wrapped between words on a terminal."""
    _print_wrapped(text, err=False)


def _print_wrapped(text: str, *, err: bool) -> None:
    text = plain(text)
    if (sys.stderr if err else sys.stdout).isatty() and not text.startswith(("next: ", "then: ")):
        room = max(shutil.get_terminal_size().columns - 1, 20)
        text = "\n".join(_wrapped(line, room) for line in text.split("\n"))
    click.echo(text, err=err)


def _wrapped(line: str, room: int) -> str:
    """The line as a paragraph whose further lines are indented two more."""
    if len(line) <= room:
        return line
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.fill(
        line.strip(),
        room,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def first_sentence(text: str) -> str:
    """The text up to its first full stop, for a line of a list."""
    return re.split(r"(?<!\.)\.(?:\s|$)", text, maxsplit=1)[0]


def print_alarms(notes: Sequence[str]) -> None:
    """Alarms that stand, on stderr, and how a person clears them."""
    for text in notes:
        note(f"alarm: {text}")
    if notes:
        note(
            "it is booked, and nothing more is sent from this database: check `alpasift ledger`, then clear it with "
            "`alpasift ledger acknowledge --reason TEXT`"
        )


def number(value: Any) -> str:
    """A cell for people: 9,229; 4.5; empty for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Decimal):
        return format(round(value, 9).normalize(), "f")
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    return plain(value)


def percent(share: float) -> str:
    """A share as 9.1%. Only none is 0.0% and only all is 100.0%: one row of many is <0.1%, all but one >99.9%."""
    if 0 < share < 0.0005:
        return "<0.1%"
    if 0.9995 <= share < 1:
        return ">99.9%"
    return f"{share:.1%}"


def as_json(value: Any, name: str = "") -> Any:
    """A value as JSON holds it. Dollars are texts, so that no digit is lost; other decimals are numbers.

    What JSON has no form for (times, ids, blobs) is text; NaN and infinities are null.
    """
    if isinstance(value, Mapping):
        return {str(k): as_json(v, str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(v, name) for v in value]
    if isinstance(value, Decimal):
        if name in ("usd", "usd_low", "usd_high") or name.endswith("_usd"):
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
    click.echo(_CONTROL.sub(lambda match: json.dumps(match[0])[1:-1] if match[0] != "\n" else "\n", text))


def print_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """CSV for people: a text that a spreadsheet would take for a formula gets an apostrophe before it, blanks or not.

    On a terminal control characters are replaced; a file or a pipe gets them as they are.
    """
    live = sys.stdout.isatty()
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    titles = [_cell(column) for column in columns]
    writer.writerow([plain(title) if live else title for title in titles])
    for row in rows:
        cells = [_cell(as_json(v, c)) for c, v in zip(columns, row, strict=True)]
        writer.writerow([plain(c) if live and isinstance(c, str) else c for c in cells])
    click.echo(buffer.getvalue(), nl=False)


def _cell(value: Any) -> Any:
    if isinstance(value, str) and _FORMULA.match(value) and not re.fullmatch(r"-?[\d.]+", value):
        return "'" + value
    return value


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, max_width: int | None = None) -> None:
    """A table, numbers to the right. `max_width` cuts longer cells with an ellipsis.

    On a terminal a table that is wider than the screen is wrapped (table_layout); in a pipe a row is always one line.
    """
    names = [column in ("pid", "line", "position") for column in columns]
    cells = [
        [
            _one_line(plain(v) if name and v is not None else number(v), max_width)
            for v, name in zip(row, names, strict=True)
        ]
        for row in rows
    ]
    room = shutil.get_terminal_size().columns - 1 if sys.stdout.isatty() else None
    click.echo("\n".join(table_lines([plain(column) for column in columns], cells, room)))


def _one_line(text: str, max_width: int | None) -> str:
    text = text.replace("\n", "\u23ce").replace("\t", " ")
    return text if max_width is None or len(text) <= max_width else text[: max_width - 1] + "\N{HORIZONTAL ELLIPSIS}"


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[Any]], form: str) -> None:
    """Rows as a table, as JSON (a list of objects) or as CSV."""
    if form == "json":
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
    elif form == "csv":
        print_csv(columns, rows)
    elif rows:
        print_table(columns, rows, max_width=CELL)
    else:
        note("no rows")


@contextmanager
def progress_line(quiet: bool = False) -> Iterator[Callable[[Progress], None]]:
    """A function that shows on stderr how far a run is: a live bar on a terminal, else a line every ten seconds.

    The bar begins with the first call, so that a question may be asked before.
    """
    if quiet:
        yield lambda progress: None
    elif sys.stderr.isatty():
        with ExitStack() as stack:
            yield _live_bar(stack)
    else:
        yield _line_every(10.0)


def _live_bar(stack: ExitStack) -> Callable[[Progress], None]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = BarColumn(bar_width=12), TextColumn("{task.fields[message]}")
    live = Bar(*columns, console=Console(stderr=True), transient=True)
    task = live.add_task("grading", total=None, message="")
    started = False

    def show(progress: Progress) -> None:
        nonlocal started
        if not started:
            started = True
            stack.enter_context(live)
        live.update(task, total=progress.total, completed=progress.replied, message=progress_text(progress))

    return show


def _line_every(seconds: float) -> Callable[[Progress], None]:
    last = time.monotonic()

    def show(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            note(progress_text(progress))

    return show


def bar(share: float, width: int = 32) -> str:
    """A bar of block characters, an eighth of a cell fine."""
    eighths = round(share * width * 8)
    full, rest = divmod(eighths, 8)
    return "\u2588" * full + (" \u258f\u258e\u258d\u258c\u258b\u258a\u2589"[rest] if rest else "")
