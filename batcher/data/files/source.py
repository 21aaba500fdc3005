"""What a data file is: its format by its suffix and its first bytes, its data files, its columns.

Call `inspect` first; `alpasift.batcher.data.files.rows` then reads the rows. A file that is not what its name says is
refused with what was found and the remedy. Only json and jsonl, which people mix up daily, are read as what they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from alpasift.batcher.data.files.csv_rows import DELIMITERS, delimiter_of
from alpasift.batcher.data.files.file_row import READABLE, DatasetError
from alpasift.batcher.data.files.folders import folder_splits, saved_files
from alpasift.batcher.data.files.json_list import holds_objects
from alpasift.batcher.data.files.names import format_of
from alpasift.batcher.data.files.text import PACKED, open_content

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<of>\d{5})(?=\.|$)")


class Source(NamedTuple):
    """A file that was looked at: how to read it, and what an export must know to write it again."""

    path: Path
    format: str  # what it is: "json", "jsonl.gz", "csv", "parquet", "save_to_disk"
    files: tuple[Path, ...]
    columns: pa.Schema | None = None  # of parquet and Arrow files
    detail: str = ""  # what else to show: "cells between semicolons"

    @property
    def packing(self) -> str:
        """ "gz", "zst", or "" for what is not compressed."""
        return self.format.partition(".")[2]

    def sha256(self) -> str:
        """Of the file's bytes as they stand; for several, of one after the other."""
        digest = hashlib.sha256()
        for file in self.files:
            with file.open("rb") as stream:
                while block := stream.read(2**20):
                    digest.update(block)
        return digest.hexdigest()

    def stamp(self) -> list[tuple[int, int]]:
        """Sizes and times of the files: equal stamps before and after mean that nobody wrote in between."""
        return [(s.st_size, s.st_mtime_ns) for s in (file.stat() for file in self.files)]


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
    b"\xff\xfe\0\0": ("text in UTF-32", "convert it with `iconv -f UTF-32 -t UTF-8 IN > OUT`"),
    b"\xff\xfe": ("text in UTF-16", "convert it with `iconv -f UTF-16 -t UTF-8 IN > OUT`"),
    b"\xfe\xff": ("text in UTF-16", "convert it with `iconv -f UTF-16 -t UTF-8 IN > OUT`"),
}


def inspect(path: Path, split: str | None = None) -> Source:
    """Find out what the file is, by its suffix and its first bytes. Raises DatasetError with the remedy.

    `split` says which part of a folder is meant, where it holds several.
    """
    try:
        if path.is_dir():
            return _inspect_folder(path, split)
        if remote := re.match(r"([a-zA-Z][a-zA-Z0-9+]+):/+(.*)", str(path)):
            raise DatasetError(_remote(remote[1].lower(), remote[2]))
        if not path.exists():
            raise DatasetError(f"file not found: {path}{_if_on_a_hub(path)}")
        if not path.is_file():
            raise DatasetError(f"{path} is not a regular file; write the data to a file and import that")
        if path.stat().st_size == 0:
            raise DatasetError(f"{path} is empty")
        kind, packing = format_of(path.name)
        if kind is None:
            raise DatasetError(f"{path}: unknown suffix; expected {READABLE}")
        _check_first_bytes(path, kind, packing)
        if kind == "parquet":
            return Source(path, "parquet", (path,), _schema(path))
        with open_content(path, packing) as content:
            head = content.read(64 * 2**10)
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        raise DatasetError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    suffix = f".{packing}" if packing else ""
    text = _text_of(path, kind, f"{kind}{suffix}", head)
    if kind == "csv":
        delimiter = delimiter_of(text.splitlines()[0].decode("utf-8", "replace"))
        return Source(path, f"csv{suffix}", (path,), detail=f"cells between {DELIMITERS[delimiter]}")
    # json, jsonl and objects after each other are told apart by what they hold
    kind = "json" if text[:1] == b"[" else "objects" if holds_objects(text) else "jsonl"
    return Source(path, f"{kind}{suffix}", (path,))


def _if_on_a_hub(path: Path) -> str:
    """What to do where the name looks like that of a dataset on a hub: tatsu-lab/alpaca."""
    if path.suffix or len(path.parts) != 2 or path.is_absolute() or Path(path.parts[0]).exists() or ".." in path.parts:
        return ""
    return (
        f"; if it is a dataset on the Hugging Face Hub, download it first: `hf download --repo-type dataset {path} "
        f"--local-dir {path.name}`, then `alpasift import {path.name}`"
    )


def _remote(scheme: str, rest: str) -> str:
    address = f"{scheme}://{rest}"
    if scheme == "hf":
        name = "/".join(rest.removeprefix("datasets/").partition("@")[0].split("/")[:2]) or "OWNER/NAME"
        folder = name.rpartition("/")[2]
        return (
            f"{address} is a URL, not a file, and nothing is downloaded here; download it first: "
            f"`hf download --repo-type dataset {name} --local-dir {folder}`, then `alpasift import {folder}`"
        )
    how = {"http": "`curl -LO ADDRESS`", "https": "`curl -LO ADDRESS`", "s3": "`aws s3 cp ADDRESS .`"}.get(scheme)
    return (
        f"{address} is a URL, not a file, and nothing is downloaded here; download it first"
        f"{f', for instance with {how}' if how else ''}, then import the file"
    )


def _check_first_bytes(path: Path, kind: str, packing: str) -> None:
    """Raise DatasetError when a compressed or parquet file does not begin as its suffix says."""
    with path.open("rb") as stream:
        head = stream.read(16)
    if packing and not head.startswith(PACKED[packing][0]):
        raise DatasetError(
            f"{path} has the suffix .{packing} but contains {_looks_like(head)}; remove .{packing} from its name"
        )
    if kind == "parquet" and packing:
        raise DatasetError(f"{path}: parquet is compressed internally; unpack it and import the .parquet")
    if kind == "parquet" and not head.startswith(b"PAR1"):
        raise DatasetError(f"{path} has the suffix .parquet but contains {_looks_like(head)}; correct the suffix")


def _text_of(path: Path, kind: str, called: str, head: bytes) -> bytes:
    """The first text of a text file. Raises DatasetError when the file holds none, or something else."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        raise DatasetError(f"{path} contains no rows, only whitespace")
    for magic, (what, remedy) in _MAGIC.items():
        if head.startswith(magic) and (magic != b"<" or kind != "csv"):
            raise DatasetError(f"{path} has the suffix .{called} but contains {what}; {remedy}")
    if b"\0" in head[:64] and kind != "csv":
        what, remedy = (
            ("text in UTF-16", _MAGIC[b"\xff\xfe"][1])
            if head[1:2] == b"\0" or head[:1] == b"\0"
            else ("binary data", "give a text file")
        )
        raise DatasetError(f"{path} has the suffix .{called} but contains {what}; {remedy}")
    return text


def _looks_like(head: bytes) -> str:
    for magic, (what, _) in _MAGIC.items():
        if head.startswith(magic):
            return what
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    return {b"[": "a JSON list", b"{": "JSON lines"}.get(text, "something else")


def _inspect_folder(path: Path, split: str | None) -> Source:
    found = folder_splits(path)
    if split is not None and split not in found.splits:
        raise DatasetError(f"{path} has no split {split!r}; it has {', '.join(found.splits)}")
    if split is None and len(found.splits) > 1:
        first = next(iter(found.splits))
        how = f"import one of them: {path / first}" if found.saved else f"choose one: --split {first}"
        raise DatasetError(f"{path} has the splits {', '.join(found.splits)}; {how}")
    name = split or next(iter(found.splits))
    files = found.splits[name] if not found.saved else saved_files(found.splits[name][0])
    detail = f"split {name}" if len(found.splits) > 1 or not found.saved else ""
    if found.saved:
        return Source(found.splits[name][0], "save_to_disk", files, _schema(files[0]), detail)
    shown = (detail, _count(files), *missing_shards(files))
    return inspect_files(files)._replace(path=path, detail=", ".join(shown))


def inspect_files(paths: Sequence[Path]) -> Source:
    """Several files that make one dataset, in the order of their names. Raises DatasetError."""
    paths = sorted(paths, key=lambda path: (path.name, path))
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice:
        raise DatasetError(f"{twice} is given twice")
    parts = [inspect(path) for path in paths]
    if len(parts) == 1:
        return parts[0]
    formats = sorted({part.format for part in parts})
    if len(formats) > 1 or formats == ["save_to_disk"]:
        shown = ", ".join(f"{part.path.name} ({part.format})" for part in parts[:4])
        raise DatasetError(f"the files of one dataset must have one format, and no folders: {shown}")
    columns = parts[0].columns
    if columns is not None and not all(part.columns == columns for part in parts):
        columns = None
    files = tuple(part.path for part in parts)
    return Source(
        paths[0],
        formats[0],
        files,
        columns,
        ", ".join(filter(None, (_count(files), *missing_shards(files), parts[0].detail))),
    )


def missing_shards(files: Sequence[Path]) -> list[str]:
    """What numbered files lack, in words: "1 of 3 shards is missing: train-00001-of-00003"."""
    there: dict[tuple[str, int], set[int]] = {}
    for file in files:
        if shard := _SHARD.match(file.name):
            there.setdefault((shard["stem"], int(shard["of"])), set()).add(int(shard["number"]))
    found = []
    for (stem, count), numbers in sorted(there.items()):
        lacking = count - len(numbers)
        first = next((number for number in range(count) if number not in numbers), None)
        if lacking > 0 and first is not None:
            verb = "is" if lacking == 1 else "are"
            more = "" if lacking == 1 else ", ..."
            found.append(f"{lacking:,} of {count:,} shards {verb} missing: {stem}-{first:05}-of-{count:05}{more}")
    return found


def _count(files: Sequence[Path]) -> str:
    return f"{len(files):,} file{'s' * (len(files) > 1)}"


def _schema(path: Path) -> pa.Schema:
    with errors_explained(path):
        if path.suffix.lower() == ".parquet":
            columns = pq.read_schema(path)
        else:
            with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as batches:
                columns = batches.schema
    twice = sorted({n for n in columns.names if columns.names.count(n) > 1})
    if twice:
        raise DatasetError(f"{path} has more than one column named {', '.join(twice)}; rename them")
    return columns


@contextlib.contextmanager
def errors_explained(path: Path) -> Iterator[None]:
    """Turn what Arrow and the operating system raise while reading into one DatasetError."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, OverflowError, TypeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = getattr(error, "strerror", None) or lines[0]
        raise DatasetError(f"{path} cannot be read: {reason}") from error
