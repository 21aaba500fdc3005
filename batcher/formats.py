"""Files -> rows of plain dicts: json, jsonl, csv, parquet, a folder of `save_to_disk`, and .gz or .zst around text.

Knows bytes, suffixes and line numbers; nothing of instructions, messages or databases. Everything is streamed, so
memory does not grow with the file, and what is compressed may not grow without end either. A file that is not what
its name says is refused with what was found and the remedy; only json and jsonl, which people mix up daily, are
read as what they are, and the format that comes back says which it was.

A row that cannot be read beside rows that can is yielded with its reason. What ruins the file as a whole (broken
JSON in a .json, another encoding, a cut archive, a first line that is no JSON) raises DatasetError.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from graders import AlpaSiftError

FORMATS = ("json", "jsonl", "csv", "parquet")
_READABLE = "json, jsonl or csv (each also with .gz or .zst), parquet, or a folder written by `save_to_disk`"

LONGEST_ROW = 64 * 2**20  # bytes of one row; a longer line of a jsonl is set aside, elsewhere it ends the import
LARGEST_EXPANSION = 200  # times its compressed size ...
EXPANSION_ALLOWED = 10**9  # ... once more bytes than these have come out
LARGEST_CONTENT = 64 * 10**9


class DatasetError(AlpaSiftError):
    """A file cannot be read or written as a dataset, or a dataset is not in the database."""


class Found(NamedTuple):
    """One row of a file. `row` is whatever JSON value stood there; `reason` says why it cannot be read, if so."""

    line: int | None  # 1-based line where the row begins; None where lines mean nothing
    row: Any
    text: str | bytes | None = None  # as it stood, where that is at hand
    reason: str | None = None


class Source(NamedTuple):
    """A file that was looked at: how to read it, and what an export must know to write it again."""

    path: Path
    format: str  # what it is: "json", "jsonl.gz", "csv", "parquet", "save_to_disk"
    files: tuple[Path, ...]
    columns: pa.Schema | None = None  # of parquet and Arrow files

    def sha256(self) -> str:
        """Of the file's bytes as they stand; for a folder, of its data files one after the other."""
        digest = hashlib.sha256()
        for file in self.files:
            with file.open("rb") as stream:
                while block := stream.read(2**20):
                    digest.update(block)
        return digest.hexdigest()

    def stamp(self) -> list[tuple[int, int]]:
        """Sizes and times of the files: equal stamps before and after mean that nobody wrote in between."""
        return [(s.st_size, s.st_mtime_ns) for s in (file.stat() for file in self.files)]


# -- what a file is ---------------------------------------------------------------------------------------------

_MAGIC = {
    b"\x1f\x8b": ("gzip data", "give it the suffix .gz, or unpack it with `gunzip`"),
    b"\x28\xb5\x2f\xfd": ("zstandard data", "give it the suffix .zst, or unpack it with `unzstd`"),
    b"PAR1": ("a parquet file", "give it the suffix .parquet"),
    b"ARROW1": ("an Arrow file", "write it as parquet or jsonl"),
    b"PK\x03\x04": ("a zip archive or a spreadsheet", "unpack it, or save the sheet as csv"),
    b"BZh": ("bzip2 data", "unpack it with `bunzip2`"),
    b"\xfd7zXZ": ("xz data", "unpack it with `unxz`"),
    b"\x89PNG": ("a PNG picture", "give the data file"),
    b"\xff\xd8\xff": ("a JPEG picture", "give the data file"),
    b"%PDF": ("a PDF document", "give the data file"),
    b"SQLite format 3": ("an SQLite database", "export its table as csv or jsonl"),
    b"version https://git-lfs": ("a Git LFS pointer, not the data", "fetch it with `git lfs pull`"),
    b"<": ("HTML or XML", "download the data itself, not the page about it"),
    b"\xff\xfe": ("text in UTF-16", "convert it with `iconv -f UTF-16 -t UTF-8 IN > OUT`"),
    b"\xfe\xff": ("text in UTF-16", "convert it with `iconv -f UTF-16 -t UTF-8 IN > OUT`"),
}
PACKED = {"gz": (b"\x1f\x8b", "gzip"), "zst": (b"\x28\xb5\x2f\xfd", "zstd")}


def base_name(path: Path) -> str:
    """The file's name without the suffixes that say its format: dolly.jsonl.gz is "dolly"."""
    name = path.name
    for suffixes in (PACKED, (*FORMATS, "ndjson")):
        stem, dot, suffix = name.rpartition(".")
        if dot and stem and suffix.lower() in suffixes:
            name = stem
    return name


def inspect(path: Path) -> Source:
    """Find out what the file is, by its suffix and its first bytes. Raises DatasetError with the remedy."""
    try:
        if path.is_dir():
            return _inspect_folder(path)
        if not path.exists():
            raise DatasetError(f"there is no file {path}")
        if not path.is_file():
            raise DatasetError(f"{path} is not a regular file; write the data to a file and import that")
        if path.stat().st_size == 0:
            raise DatasetError(f"{path} is empty")
        kind, packing = format_of(path.name)
        if kind is None:
            raise DatasetError(f"{path}: the suffix does not say what this is; it can be {_READABLE}")
        with path.open("rb") as stream:
            head = stream.read(16)
        if packing and not head.startswith(PACKED[packing][0]):
            raise DatasetError(
                f"{path} is called .{packing} but holds {_looks_like(head)}; take .{packing} off its name"
            )
        if kind == "parquet":
            if packing:
                raise DatasetError(f"{path}: parquet is compressed within; unpack it and import the .parquet")
            if not head.startswith(b"PAR1"):
                raise DatasetError(
                    f"{path} is called .parquet but holds {_looks_like(head)}; give it the suffix it should have"
                )
            return Source(path, "parquet", (path,), _schema(path))
        source = Source(path, kind + (f".{packing}" if packing else ""), (path,))
        with _content(source) as content:
            head = content.read(64 * 2**10)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}") from error
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        raise DatasetError(f"{path} holds no rows, only blank space")
    for magic, (what, remedy) in _MAGIC.items():
        if head.startswith(magic) and (magic != b"<" or kind != "csv"):
            raise DatasetError(f"{path} is called .{source.format} but holds {what}; {remedy}")
    if b"\0" in head[:64] and kind != "csv":
        what, remedy = (
            ("text in UTF-16", _MAGIC[b"\xff\xfe"][1])
            if head[1:2] == b"\0" or head[:1] == b"\0"
            else ("binary data", "give a text file")
        )
        raise DatasetError(f"{path} is called .{source.format} but holds {what}; {remedy}")
    if kind != "csv":  # json and jsonl are told apart by what they hold
        kind = "json" if text[:1] == b"[" else "jsonl"
        source = source._replace(format=kind + (f".{packing}" if packing else ""))
    return source


def format_of(name: str) -> tuple[str | None, str]:
    parts = name.lower().split(".")
    packing = parts.pop() if parts[-1] in PACKED else ""
    kind = parts[-1] if len(parts) > 1 else ""
    kind = "jsonl" if kind == "ndjson" else kind
    return (kind if kind in FORMATS else None), packing


def _looks_like(head: bytes) -> str:
    for magic, (what, _) in _MAGIC.items():
        if head.startswith(magic):
            return what
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    return {b"[": "a JSON list", b"{": "JSON lines"}.get(text, "something else")


def _inspect_folder(path: Path) -> Source:
    if (path / "dataset_dict.json").is_file():
        splits = [str(s) for s in _small_json(path / "dataset_dict.json").get("splits", [])]
        if len(splits) != 1:
            raise DatasetError(
                f"{path} holds the splits {', '.join(splits)}; import one of them: {path / (splits or ['train'])[0]}"
            )
        path = path / Path(splits[0]).name
    if not (path / "state.json").is_file():
        raise DatasetError(f"{path} is a folder without state.json, so not one of `save_to_disk`; give a file")
    names = [
        str(f.get("filename", ""))
        for f in _small_json(path / "state.json").get("_data_files") or []
        if isinstance(f, dict)
    ]
    if not names or any(Path(n).name != n or not (path / n).is_file() for n in names):
        raise DatasetError(f"{path}/state.json names data files that are not there: {', '.join(names) or 'none'}")
    files = tuple(path / n for n in names)
    return Source(path, "save_to_disk", files, _schema(files[0]))


def _small_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DatasetError(f"{path} is not the JSON that `save_to_disk` writes: {error}") from error
    return value if isinstance(value, dict) else {}


def _schema(path: Path) -> pa.Schema:
    with _explained(path):
        if path.suffix.lower() == ".parquet":
            columns = pq.read_schema(path)
        else:
            with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as batches:
                columns = batches.schema
    twice = sorted({n for n in columns.names if columns.names.count(n) > 1})
    if twice:
        raise DatasetError(f"{path} has more than one column called {', '.join(twice)}; rename them")
    return columns


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what Arrow and the operating system raise while reading into one DatasetError."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
        raise DatasetError(f"{path} cannot be read: {reason}") from error


# -- bytes ------------------------------------------------------------------------------------------------------


class _Unpacked(io.RawIOBase):
    """The content of a .gz or .zst, that ends in an error when far more comes out than such data can hold."""

    def __init__(self, path: Path, codec: str) -> None:
        self._path, self._size, self._out = path, path.stat().st_size, 0
        self._stream = pa.CompressedInputStream(pa.OSFile(str(path)), codec)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = int(self._stream.readinto(buffer))
        self._out += count
        _check_expansion(self._path, self._out, self._size)
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()


def _check_expansion(path: Path, content: int, size: int) -> None:
    if content > LARGEST_CONTENT or (content > EXPANSION_ALLOWED and content > LARGEST_EXPANSION * size):
        raise DatasetError(
            f"{path}: {size:,} bytes unpack to more than {content / 1e9:.1f} GB, which no text does; "
            "nothing was imported. Unpack it yourself if you trust it"
        )


def _content(source: Source) -> BinaryIO:
    packing = source.format.partition(".")[2]
    if not packing:
        return source.path.open("rb", buffering=2**20)
    return io.BufferedReader(_Unpacked(source.path, PACKED[packing][1]), 2**20)


# -- reading ----------------------------------------------------------------------------------------------------


def read_rows(source: Source) -> Iterator[Found]:
    """Every row of the file in its order, the unreadable ones with their reason."""
    kind = source.format.partition(".")[0]
    with _explained(source.path):
        if kind == "parquet":
            yield from _read_parquet(source.path)
        elif kind == "save_to_disk":
            for file in source.files:
                yield from _read_arrow(file)
        else:
            read = {"json": _read_json, "jsonl": _read_jsonl, "csv": _read_csv}[kind]
            with _content(source) as stream:
                yield from read(source.path, stream)


_BOM = b"\xef\xbb\xbf"
_LONG_NUMBER = re.compile(rb"[0-9]{19}")  # orjson turns integers beyond 64 bits into floats
_ONLY_TEXT = {str}


def _read_jsonl(path: Path, stream: BinaryIO) -> Iterator[Found]:
    number = offset = rows = 0
    loads = orjson.loads
    while line := stream.readline(LONGEST_ROW):
        number += 1
        try:
            row = loads(line)
            if type(row) is dict and set(map(type, row.values())) != _ONLY_TEXT and _LONG_NUMBER.search(line):
                row = json.loads(line)
            yield Found(number, row, line)
        except orjson.JSONDecodeError as error:
            if len(line) == LONGEST_ROW and not line.endswith(b"\n"):
                offset += _skip_line(stream)
                yield Found(number, None, line[:10_000], "too_large")
            elif line := line.removeprefix(_BOM).strip() if number == 1 else line.strip():
                found = _second_try(path, number, offset, line)
                if found.reason and not rows:
                    raise DatasetError(_not_json_lines(path, number, line, error)) from error
                yield found
            else:
                rows -= 1
        rows += 1
        offset += len(line)


def _second_try(path: Path, number: int, offset: int, line: bytes) -> Found:
    """What orjson refuses may still be JSON to others: NaN, numbers beyond a double, half a surrogate pair."""
    try:
        return Found(number, json.loads(_decode(path, number, offset, line)), line)
    except (ValueError, RecursionError):
        return Found(number, None, line, "broken_json")


def _skip_line(stream: BinaryIO) -> int:
    skipped = 0
    while rest := stream.readline(LONGEST_ROW):
        skipped += len(rest)
        if rest.endswith(b"\n"):
            break
    return skipped


def _not_json_lines(path: Path, number: int, line: bytes, error: ValueError) -> str:
    if line.startswith(b"{") and not line.endswith(b"}"):
        return (
            f"{path}:{number}: an object that goes on over several lines; wanted is a list of objects, or one object "
            f"a line: `jq -c . {path.name} > rows.jsonl` writes it so (`jq -c '.KEY[]'` when it holds one list)"
        )
    return f"{path}:{number}: the first line is no JSON ({error}); give a file of {_READABLE}"


def _decode(path: Path, number: int, offset: int, line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _other_encoding(path, number, offset + error.start, line[error.start]) from error


def _other_encoding(path: Path, number: int, offset: int, byte: int) -> DatasetError:
    return DatasetError(
        f"{path}:{number}: byte 0x{byte:02x} at offset {offset:,} is not UTF-8; "
        "convert the file, for instance with `iconv -f LATIN1 -t UTF-8 IN > OUT`"
    )


def _read_csv(path: Path, stream: BinaryIO) -> Iterator[Found]:
    csv.field_size_limit(LONGEST_ROW)
    reader = csv.reader(_lines(path, stream), strict=True)
    try:
        header = [unguard(name) for name in next(reader)]
        twice = sorted({n for n in header if header.count(n) > 1})
        if twice:
            raise DatasetError(f"{path}:1: more than one column is called {', '.join(map(repr, twice))}; rename them")
        line = reader.line_num + 1
        for cells in reader:
            if len(cells) == len(header):
                yield Found(line, dict(zip(header, map(unguard, cells), strict=True)))
            elif cells:
                yield Found(line, None, ",".join(cells), "wrong_columns")
            line = reader.line_num + 1
    except csv.Error as error:
        raise DatasetError(f"{path}:{reader.line_num}: broken csv, {error}; is a quote left open?") from error


def _lines(path: Path, stream: BinaryIO) -> Iterator[str]:
    offset = number = 0
    while line := stream.readline(LONGEST_ROW):
        number += 1
        if len(line) == LONGEST_ROW and not line.endswith(b"\n"):
            raise DatasetError(f"{path}:{number}: a line longer than {LONGEST_ROW:,} bytes; is this a csv?")
        text = _decode(path, number, offset, line)
        yield text.removeprefix("\ufeff") if number == 1 else text
        offset += len(line)


_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def guard(text: str) -> str:
    """A spreadsheet runs a cell that begins with = + - @ tab or return: put an apostrophe before it."""
    return "'" + text if _FORMULA.match(text) else text


def unguard(text: str) -> str:
    """Exactly what `guard` added, so that a csv of ours comes back as it was."""
    return text[1:] if text[:1] == "'" and _FORMULA.match(text) else text


def _read_json(path: Path, stream: BinaryIO) -> Iterator[Found]:
    """The objects of one JSON list, a window of text at a time."""
    window = _Window(path, stream)
    window.expect("[")
    first = True
    while window.peek() != "]":
        if not first:
            window.expect(",")
            if window.peek() == "]":
                raise window.broken("a comma with nothing after it", window.at)
        yield window.value()
        first = False
    window.expect("]")
    if window.peek():
        raise window.broken("something follows the end of the list", window.at)


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
            raise _other_encoding(
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

    def value(self) -> Found:
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
        found = Found(self.line, value)
        self.at = end
        return found

    def broken(self, message: str, at: int) -> DatasetError:
        self._count_to(at)
        last = self.text.rfind("\n", 0, at)
        column = at - last if last >= 0 else self.column + at + 1
        return DatasetError(f"{self.path}:{self.line}:{column}: broken JSON, {message}; nothing was imported")


_BLANK = re.compile(r"[ \t\r\n]*")


def _read_parquet(path: Path) -> Iterator[Found]:
    with pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)]
        _check_expansion(path, sum(groups), path.stat().st_size)
        for batch in file.iter_batches(batch_size=256):  # few rows: one value may stand in many of them
            for row in batch.to_pylist():
                yield Found(None, row)


def _read_arrow(path: Path) -> Iterator[Found]:
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as batches:
        for batch in batches:
            for start in range(0, batch.num_rows, 256):
                for row in batch.slice(start, 256).to_pylist():
                    yield Found(None, row)
