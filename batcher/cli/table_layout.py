"""How a table fits a width: as a grid, wrapped, in groups, or each row as lines.

Knows texts and widths; nothing of terminals or of what the columns mean. The first of these that fits is taken:
  1. a grid, one line per row
  2. cells wrapped after blanks and commas, titles after underscores
  3. the same, with the values that all rows share printed once above the table
  4. the same, in groups of rows that share their first columns
  5. cells also wrapped inside names: after the signs of openai:gpt-4.1-nano or dolly_chatgpt
  6. each row as lines, one column per line
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from itertools import groupby, zip_longest

GAP = 2
"""Blanks between two columns."""

Row = Sequence[str]
Split = Callable[[str], list[str]]
"""Parts of a cell between which a line may end; each keeps the blanks at its end."""

_NUMBER = re.compile(r"[-+<>]?\$?[\d,]+(\.\d+)?%?")
_AFTER_WORDS = re.compile(r"(?<=[ \t\n])(?=[^ \t\n])|(?<=,)(?=[^\s\d])")
_AFTER_SIGNS = re.compile(r"(?<=[ \t\n])(?=[^ \t\n])|(?<=[,:_/@=-])(?=[^\s\d,:_/@=-])|(?<=[a-zA-Z][:_/@=-])(?=\d)")


def table_lines(titles: Row, cells: Sequence[Row], room: int | None) -> list[str]:
    """The lines of a table no wider than `room`, or with one line per row where that is None.

    A no-break space keeps two words of a cell together and is printed as a space.
    """
    if room is None:
        return _grid(titles, cells, [_width(column) for column in zip(*[titles, *cells], strict=True)], _words)
    spaced = [title.replace("_", " ") for title in titles]
    for heads in (titles, spaced):
        if found := _fitting(heads, cells, room, _words):
            return found
    columns = range(len(titles))
    same = [i for i in columns if len(cells) > 1 and len({row[i] for row in cells}) == 1]
    rest = [i for i in columns if i not in same]
    shared = [*_record(_at(spaced, same), _at(cells[0], same), room), ""] if same else []
    if rest:
        if found := _fitting(_at(spaced, rest), [_at(row, rest) for row in cells], room, _words):
            return [*shared, *found]
        for count in range(1, len(rest) - 1):
            if found := _groups(_at(spaced, rest), [_at(row, rest) for row in cells], count, room):
                return [*shared, *found]
    if found := _fitting(spaced, cells, room, _parts_of_names):
        return found
    if rest and (found := _fitting(_at(spaced, rest), [_at(row, rest) for row in cells], room, _parts_of_names)):
        return [*shared, *found]
    records = [_record(titles, row, room) for row in cells]
    return [line for i, record in enumerate(records) for line in ([""] if i else []) + record]


def _at(values: Row, places: Sequence[int]) -> list[str]:
    return [values[i] for i in places]


def _words(text: str) -> list[str]:
    return _AFTER_WORDS.split(text)


def _parts_of_names(text: str) -> list[str]:
    return _AFTER_SIGNS.split(text)


def _len(text: str) -> int:
    from rich.cells import cell_len  # a Chinese character takes two cells

    return cell_len(text.rstrip(" "))


def _width(texts: Sequence[str]) -> int:
    return max(map(_len, texts))


def _fitting(titles: Row, cells: Sequence[Row], room: int, split: Split) -> list[str]:
    """The table as a grid, or nothing where its columns cannot be made narrow enough."""
    columns = list(zip(*[titles, *cells], strict=True))
    widths = [_width(column) for column in columns]
    least = [max(_width(split(text)) for text in column) for column in columns]
    over = sum(widths) + GAP * (len(widths) - 1) - room
    while over > 0:
        widest = max(range(len(widths)), key=lambda i: (widths[i] > least[i], widths[i]))
        if widths[widest] <= least[widest]:
            return []
        widths[widest] -= 1
        over -= 1
    needed = [
        max(_width(_wrapped(text, width, split)) for text in column)
        for column, width in zip(columns, widths, strict=True)
    ]
    return _grid(titles, cells, needed, split)


def _groups(titles: Row, cells: Sequence[Row], count: int, room: int) -> list[str]:
    """Rows that share their first `count` columns under one heading; nothing where most groups would be of one row."""

    def grouped(by: int) -> list[tuple[Row, list[Row]]]:
        return [(key, [row[by:] for row in rows]) for key, rows in groupby(cells, lambda row: row[:by])]

    groups = grouped(count)
    if 2 * len(groups) > len(cells):
        return []
    while count < len(titles) - 1 and len(grouped(count + 1)) == len(groups):
        count, groups = count + 1, grouped(count + 1)
    inner = _fitting(titles[count:], [row for _, rows in groups for row in rows], room, _words)
    if not inner:
        return []
    found: list[str] = []
    for key, rows in groups:
        heading = ", ".join(f"{title} {value}" for title, value in zip(titles, key, strict=False) if value)
        found += [*([""] if found else []), *textwrap.wrap(heading, room, break_long_words=False)]
        found += _fitting(titles[count:], rows, room, _words)
    return found


def _grid(titles: Row, cells: Sequence[Row], widths: Sequence[int], split: Split) -> list[str]:
    """The table in columns of these widths: numbers to the right, cells wrapped."""
    right = [
        any(column) and all(_NUMBER.fullmatch(cell) for cell in column if cell) for column in zip(*cells, strict=True)
    ] or [False] * len(titles)
    found = []
    for row in [titles, *cells]:
        wrapped = [_wrapped(text, width, split) for text, width in zip(row, widths, strict=True)]
        for line in zip_longest(*wrapped, fillvalue=""):
            padded = [
                " " * (width - _len(text)) + text if to_right else text + " " * (width - _len(text))
                for text, width, to_right in zip(line, widths, right, strict=True)
            ]
            found.append((" " * GAP).join(padded).rstrip().replace("\N{NO-BREAK SPACE}", " "))
    return found


def _wrapped(text: str, width: int, split: Split) -> list[str]:
    lines = [""]
    for part in split(text):
        if lines[-1] and _len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return [line.rstrip(" \t\n") for line in lines]


def _record(titles: Row, row: Row, room: int) -> list[str]:
    """A row as lines, one column per line, long ones wrapped; columns without a value are left out."""
    left = max(map(_len, titles)) + GAP
    found = []
    for title, cell in zip(titles, row, strict=True):
        text = cell.replace("\N{NO-BREAK SPACE}", " ")
        for i, line in enumerate(textwrap.wrap(text, max(room - left, 20), break_long_words=False)):
            found.append(f"{'' if i else title:<{left}}{line}")
    return found
