"""A csv file: a header, then a row for each record, all cells text.

Cells stand between commas, semicolons, tabs or bars; the header tells which. Spreadsheets run cells that begin like a
formula: where we write such cells we put an apostrophe before them and mark the header, by quotes around its first
name that csv does not ask for. Only from a file with this mark are the apostrophes taken off again; the text of any
other file is read as it stands.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from alpasift.batcher.data.files.file_row import LONGEST_ROW, DatasetError, FileRow
from alpasift.batcher.data.files.text import decode_line

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}

_NAMES_DELIMITER = re.compile(r'"?sep=([,;\t|])"?', re.I)
"""A first line that a spreadsheet writes to say what stands between the cells."""


def read_csv(path: Path, stream: BinaryIO) -> Iterator[FileRow]:
    csv.field_size_limit(LONGEST_ROW)
    lines = _lines(path, stream)
    first = next(lines, "")
    raw: list[str] = []
    delimiter, above = delimiter_of(first), 0
    if _NAMES_DELIMITER.fullmatch(first.strip()):
        first, above = next(lines, ""), 1
    reader = csv.reader(_noting(itertools.chain([first], lines), raw), strict=True, delimiter=delimiter)
    try:
        header = next(reader)
        marked = delimiter == "," and _is_marked(header, "".join(raw))
        header = [unguard(name) for name in header] if marked else header
        twice = sorted({n for n in header if header.count(n) > 1})
        if twice:
            raise DatasetError(
                f"{path}:{1 + above}: more than one column is named {', '.join(map(repr, twice))}; rename them"
            )
        line = reader.line_num + 1 + above
        for cells in reader:
            raw.clear()
            if len(cells) == len(header):
                yield FileRow(line, dict(zip(header, map(unguard, cells) if marked else cells, strict=True)))
            elif cells:
                yield FileRow(line, None, delimiter.join(cells), "wrong_columns")
            line = reader.line_num + 1 + above
    except csv.Error as error:
        raise DatasetError(f"{path}:{reader.line_num + above}: broken csv, {error}; is a quote not closed?") from error


def delimiter_of(header: str) -> str:
    """What stands between the cells of this header: whatever makes the most cells, a comma where that is not clear."""
    if named := _NAMES_DELIMITER.fullmatch(header.strip()):
        return named[1]
    counts = {}
    for delimiter in DELIMITERS:
        try:
            counts[delimiter] = len(next(csv.reader([header], delimiter=delimiter), []))
        except csv.Error:
            counts[delimiter] = 0
    return max(DELIMITERS, key=lambda delimiter: counts[delimiter])


def _noting(lines: Iterable[str], raw: list[str]) -> Iterator[str]:
    for line in lines:
        raw.append(line)
        yield line


def _lines(path: Path, stream: BinaryIO) -> Iterator[str]:
    offset = number = 0
    while line := stream.readline(LONGEST_ROW):
        number += 1
        if len(line) == LONGEST_ROW and not line.endswith(b"\n"):
            raise DatasetError(f"{path}:{number}: a line longer than {LONGEST_ROW:,} bytes; is this a CSV file?")
        text = decode_line(path, number, offset, line)
        yield text.removeprefix("\ufeff") if number == 1 else text
        offset += len(line)


# -- cells that a spreadsheet would run -------------------------------------------------------------------------------

_FORMULA = re.compile("['\\s\x00-\x20\u200b-\u200f\u2060\ufeff]*[=+\\-@\t\r＝＋－＠]")
_NEEDS_QUOTES = re.compile(r'[,"\r\n]|^$')


def guard(text: str) -> str:
    """A spreadsheet runs a cell that begins with = + - or @, blanks before it or not: put an apostrophe before it."""
    return "'" + text if _FORMULA.match(text) else text


def unguard(text: str) -> str:
    """Exactly what `guard` added, so that a csv of ours comes back as it was."""
    return text[1:] if text[:1] == "'" and _FORMULA.match(text, 1) else text


def marked_header(names: Sequence[str]) -> str:
    """The header of a file whose cells were guarded: the first name that needs no quotes has them."""
    cells, marked = [], False
    for name in names:
        needs = bool(_NEEDS_QUOTES.search(name))
        quoted = '"' + name.replace('"', '""') + '"'
        cells.append(quoted if needs or not marked else name)
        marked = marked or not needs
    return ",".join(cells) + "\r\n"


def _is_marked(header: Sequence[str], raw: str) -> bool:
    """Whether the header was written by `marked_header`; one column in quotes may be anybody's."""
    return len(header) > 1 and raw.rstrip("\r\n") == marked_header(header).rstrip("\r\n")
