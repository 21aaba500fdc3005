"""A file that holds one JSON list of objects, or objects one after the other over any number of lines.

It is read a window of text at a time, however long it is.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from alpasift.batcher.data.files.file_row import LONGEST_ROW, DatasetError, FileRow
from alpasift.batcher.data.files.text import other_encoding

_LONG = 60_000  # characters of a head that is not the whole file
_BLANK = re.compile(r"[ \t\r\n]*")


def read_json_list(path: Path, stream: BinaryIO) -> Iterator[FileRow]:
    """The objects of one JSON list, a window of text at a time."""
    window = _Window(path, stream)
    window.expect("[")
    first = True
    while window.peek() != "]":
        if not first:
            window.expect(",")
            if window.peek() == "]":
                raise window.broken("a trailing comma", window.at)
        yield window.value()
        first = False
    window.expect("]")
    if window.peek():
        raise window.broken("text after the end of the list", window.at)


def read_objects(path: Path, stream: BinaryIO) -> Iterator[FileRow]:
    """The objects of a file that holds nothing else, whatever blanks and lines stand in and between them."""
    window = _Window(path, stream)
    while window.peek():
        yield window.value()


def holds_objects(head: bytes) -> bool:
    """Whether a text that begins so holds objects that are not one a line."""
    line, _, rest = head.partition(b"\n")
    if not head.startswith(b"{") or _is_json(line):
        return False
    text = head.decode("utf-8", "ignore")
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        cut = error.pos >= len(text) - 16 or error.msg.startswith("Unterminated")  # an object longer than the head
        return bool(rest) and len(text) > _LONG and cut
    except RecursionError:
        return False
    return text[:end].count("\n") > 0 or text[end:].lstrip().startswith("{")


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


class _Window:
    """A stretch of a JSON text, filled from a stream as values are taken off its front."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path, self.stream = path, stream
        self.text, self.at, self.ended = "", 0, False
        self.line, self.column = 1, 0  # lines begun and characters of the last one before the window's text
        self.counted = 0  # up to here `line` has counted the window too
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._bytes = 0
        self._scan = json.JSONDecoder().raw_decode
        self.more()

    def more(self) -> None:
        """Drop what was taken and read on, twice as much as is left, so that a long row is parsed few times."""
        self._count_to(self.at)
        last = self.text.rfind("\n", 0, self.at)
        self.column = self.at - last - 1 if last >= 0 else self.column + self.at
        left = self.text[self.at :]
        data = self.stream.read(max(2**20, 2 * len(left)))
        self.ended = not data
        held = len(self._decoder.getstate()[0])
        try:
            text = self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            whole = left + error.object[: error.start].decode("utf-8")
            line = self.line + whole.count("\n")
            raise other_encoding(
                self.path, line, self._bytes - held + error.start, error.object[error.start]
            ) from error
        self._bytes += len(data)
        self.text, self.at, self.counted = left + text, 0, 0

    def _count_to(self, at: int) -> None:
        self.line += self.text.count("\n", self.counted, at)
        self.counted = at

    def peek(self) -> str:
        """The next character that is not blank, "" at the end of the file."""
        while True:
            self.at = _BLANK.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.more()

    def expect(self, character: str) -> None:
        found = self.peek()
        if found != character:
            what = f"{found!r}" if found else "the end of the file"
            raise self.broken(f"expected {character!r}, found {what}", self.at)
        self.at += 1

    def value(self) -> FileRow:
        while True:
            try:
                value, end = self._scan(self.text, self.at)
                if end < len(self.text) or self.ended:
                    break
            except json.JSONDecodeError as error:
                cut = error.pos > len(self.text) - 16 or "string" in error.msg or "escape" in error.msg
                if self.ended or not cut:
                    raise self.broken(error.msg, error.pos) from error
            except RecursionError as error:
                raise self.broken("nested too deeply", self.at) from error
            if len(self.text) - self.at > LONGEST_ROW:
                raise self.broken(f"a row longer than {LONGEST_ROW:,} characters begins here", self.at)
            self.more()
        self._count_to(self.at)
        found = FileRow(self.line, value)
        self.at = end
        return found

    def broken(self, message: str, at: int) -> DatasetError:
        self._count_to(at)
        last = self.text.rfind("\n", 0, at)
        column = at - last if last >= 0 else self.column + at + 1
        return DatasetError(f"{self.path}:{self.line}:{column}: broken JSON, {message}; nothing was imported")
