"""The request file of a batch: lines as the API takes them, written up to what the caps allow, and read back.

Knows JSON lines, rows, bytes, tokens and dollars as limits; nothing of networks or ledgers. Files that are sent and
files that a person carries are written here alike: `LineQueue` holds the lines, `write_request_file` takes from it what
fits. Who writes a file opens an attempt with its keys and ceilings before the file leaves this machine.

The vLLM program `vllm run-batch` reads the same lines.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import orjson

from alpasift.graders import Meter, Replies, Reply, Request

URL = "/v1/chat/completions"
MAX_BYTES = 200_000_000
"""Bytes in one file: the API's limit."""
SMALL_FILE = 50
"""A file of fewer rows is small: its lines are kept in `RequestFile.first`, so that they can be put back."""

Limit = Literal["", "rows", "bytes", "money", "tokens"]


def request_line(key: str, body: Mapping[str, Any]) -> bytes:
    """One line of a request file, with its line end."""
    return orjson.dumps({"custom_id": key, "method": "POST", "url": URL, "body": body}) + b"\n"


@dataclass(frozen=True, slots=True)
class RequestLine:
    """One request as it stands in a file, the most it may cost by batch, and its prompt tokens."""

    key: str
    ceiling: Decimal
    tokens: int
    data: bytes
    request: Request | None = None


@dataclass(slots=True)
class RequestFile:
    """A request file that is written and not yet an attempt.

    ended_by  what ended it: "" (no line is left), rows, bytes, money or tokens
    first     the first lines, as long as the file is small
    too_long  lines that no file can hold, left out
    """

    path: Path
    keys: list[str] = field(default_factory=list)
    ceilings: list[Decimal] = field(default_factory=list)
    ceiling_usd: Decimal = Decimal(0)
    tokens: int = 0
    bytes: int = 0
    sha256: str = ""
    ended_by: Limit = ""
    first: list[RequestLine] = field(default_factory=list)
    too_long: list[RequestLine] = field(default_factory=list)


class LineQueue:
    """Lines to send: what was put back, then files to be sent again, then the requests, read no further than needed."""

    def __init__(self, lines: Iterator[RequestLine]) -> None:
        self._back: deque[RequestLine] = deque()
        self._again: deque[Iterator[RequestLine]] = deque()
        self._lines = lines

    def next(self) -> RequestLine | None:
        if self._back:
            return self._back.popleft()
        while self._again:
            line = next(self._again[0], None)
            if line is not None:
                return line
            self._again.popleft()
        return next(self._lines, None)

    def peek(self) -> RequestLine | None:
        line = self.next()
        if line is not None:
            self._back.appendleft(line)
        return line

    def put_back(self, lines: Iterable[RequestLine]) -> None:
        self._back.extendleft(reversed(list(lines)))

    def send_again(self, lines: Iterator[RequestLine]) -> None:
        self._again.append(lines)


@dataclass(frozen=True, slots=True)
class FileLimits:
    """What one file may hold; None is no limit. `prompt_tokens` is the most of one line, `tokens` of the whole file."""

    rows: int
    usd: Decimal | None = None
    tokens: int | None = None
    prompt_tokens: int | None = None

    def reached(self, file: RequestFile, line: RequestLine) -> Limit:
        """The limit that this line would pass, "" when it fits."""
        if len(file.keys) >= self.rows:
            return "rows"
        if file.bytes + len(line.data) > MAX_BYTES:
            return "bytes"
        if self.usd is not None and file.ceiling_usd + line.ceiling > self.usd:
            return "money"
        if self.tokens is not None and file.tokens + line.tokens > self.tokens:
            return "tokens"
        return ""


def write_request_file(lines: LineQueue, path: Path, limits: FileLimits) -> RequestFile:
    """Write lines to `path`, for its owner only, until none is left or a limit is reached, and flush them to disk.

    The line that did not fit is put back. With no keys in what is returned the file is empty; who called deletes it.
    """
    written, digest = RequestFile(path), hashlib.sha256()
    with path.open("wb") as file:
        path.chmod(0o600)
        while (line := lines.next()) is not None:
            too_many_tokens = limits.prompt_tokens is not None and line.tokens > limits.prompt_tokens
            if too_many_tokens or len(line.data) > MAX_BYTES:
                written.too_long.append(line)
                continue
            written.ended_by = limits.reached(written, line)
            if written.ended_by:
                lines.put_back([line])
                break
            if len(written.first) < SMALL_FILE:
                written.first.append(line)
            written.keys.append(line.key)
            written.ceilings.append(line.ceiling)
            written.ceiling_usd += line.ceiling
            written.tokens += line.tokens
            written.bytes += len(line.data)
            file.write(line.data)
            digest.update(line.data)
        file.flush()
        os.fsync(file.fileno())
    written.sha256 = digest.hexdigest()
    return written


def reject_too_long(meter: Meter, lines: list[RequestLine]) -> Replies:
    """Answer lines that no file can hold: rejected at no cost, with an attempt of their own."""
    if not lines:
        return
    attempt = meter.open([line.key for line in lines], Decimal(0))
    yield [
        Reply(attempt, line.key, attempt, "rejected_free", error=f"too_long: up to {line.tokens:,} prompt tokens")
        for line in lines
    ]
    meter.close(attempt)


def file_name(ledger: str, attempt: str) -> str:
    """The name under which an attempt's file is uploaded or carried: it sets our files apart from others."""
    return f"alpasift-{ledger}-{attempt}.jsonl"


def read_request_file(path: Path, ceilings: Mapping[str, Decimal], tokens: int) -> Iterator[RequestLine]:
    """The lines of a file that was written before; `tokens` is its total. The file is deleted when they were read."""
    each = -(-tokens // max(1, len(ceilings)))
    with path.open("rb") as file:
        for data in file:
            key = orjson.loads(data)["custom_id"]
            yield RequestLine(key, ceilings[key], each, data)
    path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
