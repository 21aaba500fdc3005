"""The OpenAI API on this machine: files, batches and chat completions, right as documented or wrong on request.

It answers every question with a score, charges play money for it and writes each execution on a bill: what a client
says it spent can be compared with what was really carried out. The bill is computed here, from prices given here, and
shares no code with the graders. Nothing leaves the machine, and the server can be reached from this machine only.
What runs is written to files; of a batch that runs some 60 bytes a line stay in memory, of any other its totals.

    with Rehearsal() as server:
        server.misbehave(3)  # the next create is carried out, and its answer is lost
        client = openai.OpenAI(base_url=server.url, api_key=server.key, max_retries=0)
        ...
        server.billed_usd()

A batch moves by the server's clock, which `advance` turns: validating for a tenth of `batch_seconds`, in progress for
eight tenths, finalizing for one. Lines are carried out, and billed, as the time in progress passes. With 0 seconds the
create answers "validating" and whoever looks next (at a batch, the list or the bill) finds it completed. Every look
moves all batches, in the order of their creation; a cancel is not a look where batches take 0 seconds.

Faults, by the number that `misbehave` takes, and their keywords with what they are when not given. They befall the
next create [c], the next batch that is looked at for the first time [b], the next cancel [x] or the next request that
fits [r]. `times` is how often, None for always. A share is at least one line, where there is one.

    1  8  9  27   the client dies, or two clients work at once: kill or start them in the `hook`, which is called at the
                  moments of `Event`; a ConnectionError in it closes the connection
    2  [r] an upload is kept, its answer lost               status=None: answered with this status instead
    3  [c] a batch is created, the answer lost
    4  [c] the create hangs and is carried out later        seconds=5.0 of real time; or after=None seconds of the
                                                            server's clock, or lists=None calls that do not show it,
                                                            with the connection closed at once
    5  [c] a batch is created, the answer is an error       status=503
    6  [c] the create never arrives: closed, nothing done   status=None: answered with this status instead
    7  [c] one create makes two batches                     lost=False: whether the answer is lost, too
    10 [b] it fails: token_limit_exceeded                   limit=90000
    11 [b] it fails: billing_hard_limit_reached             http=False: True is 429 insufficient_quota to the next
                                                            POST of a kind, where="create" or "chat" or "upload"
    12 [b] it fails, though the file is fine                code="invalid_json_line", line=1, message=...
    13 [b] a custom_id that occurs twice is accepted
    14 [b] every line fails                                 status=400, code="unsupported_parameter"
    15 [b] error_file_id is ""                              file=False: True names an error file of 0 bytes
    16 [b] the output's id comes late                       polls=2 retrieves do not show it
    17 [b] some lines fail                                  share=0.3, status=400
    18 [b] lines are in neither file, nor in the counts     lines=1, executed=True
    19 [b] lines are in the output twice                    lines=1, same_id=False, same_usage=False: unless both are
                                                            the same it ran twice and is billed twice
    20 [b] lines with a status of 0 and no body             lines=1, status=0, executed=True
    21 [b] lines with status 200 and body {}                lines=1, kind="empty" or "no_usage", executed=True
    22 [b] lines that cannot be read                        lines=1, kind="json" or "utf8"; they are billed
    23 [b] results that nobody asked for, with usage        lines=1; they are billed
    24 [b] results in another order: always so              order="shuffled", "input" or "reversed"
    25 [r] a result file's content cannot be had            status=502
    26 [r] a result file is cut off                         at=0.5 of it, clean=False: True gives the length of the
                                                            part, whole_lines=False: True cuts after a line
    28 [b] [r] the output file is gone: 404                 usage=True: False hides the usage of the batch, too
    29 [b] it expires with part of its lines done           share=0.5, unlisted=0 lines in neither file
    30 [x] it is cancelled with part of its lines done      share=0.5, unlisted=0; unasked=False: True is [b], as
                                                            though somebody else had cancelled it
    31 [x] it is cancelled with lines done and no output    share=0.5, unasked=False
    32 [b] it is stuck                                      status="in_progress", "validating" or "finalizing",
                                                            share=0.5 done, until=None or seconds after its creation
    33 [x] it is stuck cancelling                           until=None or seconds after the cancel
    34 [x] it completes before the cancel, which fails      status=409
    35 [b] odd objects                                      status="scheduling", polls=2; missing=True: no optional
                                                            fields, extra=True: unknown ones, text_body=True: in the
                                                            output the body is JSON as text
    36 [r] 404 on a batch, or a list without batches        where="retrieve" or "list"

More, by name, all [r]. `where` is chat, upload, create, retrieve, list, cancel, content, polls (retrieve and list) or any.

    html           a web page, with status 200              where="any"
    rate_limit     429 with Retry-After                     where="any", seconds=1
    unauthorized   401                                      where="any"
    server_error   an error of the server                   where="chat", status=500, executed=False
    lost_answer    carried out, then the connection closed  where="chat"
    slow           nothing for a while, then as ever        where="any", seconds=5.0
    file_vanished  a create is told that its file is not there
    overcharge     usage far beyond what was asked, billed  factor=1000; chat, or [b] lines=1
    hostile_usage  usage that cannot be                     kind="negative", "bool", "cached", "text" or "huge"; chat, or
                                                            [b] lines=1; billed by what it really was
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import hmac
import io
import os
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import weakref
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from email.utils import formatdate
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import orjson

ENDPOINT = "/v1/chat/completions"
ENDPOINTS = (
    "/v1/responses", ENDPOINT, "/v1/embeddings", "/v1/completions", "/v1/moderations", "/v1/images/generations",
    "/v1/images/edits", "/v1/videos",
)  # fmt: skip
ORGANIZATION = "org-rehearsal"
DAY = 86_400
WINDOW_SECONDS = DAY
FILE_DAYS = 30
MAX_LINES = 50_000
MAX_FILE_BYTES = 209_715_200
MAX_BODY_BYTES = 64 << 20
TERMINAL = ("completed", "failed", "expired", "cancelled")
PIECE = 1 << 20
REASONING = 64
"""Hidden tokens of an answer by a model that thinks."""
CACHE_FROM = 1024


# -- models and money -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Family:
    """What the models of one family take: efforts () is a model that does not think and has no such parameter."""

    efforts: tuple[str, ...] = ()
    effort: str = "none"
    caches: bool = False
    writes: bool = False
    context: int = 400_000


_EFFORTS = ("low", "medium", "high", "xhigh")
_FAMILIES: tuple[tuple[str, _Family], ...] = (
    (r"gpt-4\.1", _Family(context=1_047_576)),
    (r"gpt-3\.5|gpt-4", _Family(context=128_000)),
    (r"o\d", _Family(_EFFORTS[:3], "medium", context=200_000)),
    (r"gpt-5\.1", _Family(("none", *_EFFORTS), "none", caches=True)),
    (r"gpt-5\.[2-5]", _Family(("none", *_EFFORTS), "medium", caches=True)),
    (r"gpt-5\.\d", _Family(("none", *_EFFORTS), "medium", caches=True, writes=True)),
    (r"gpt-5", _Family(("minimal", *_EFFORTS[:3]), "medium", caches=True)),
    (r"gpt-6-astra|gpt-6\.1-sol", _Family(_EFFORTS, "medium", caches=True, writes=True)),
    (r"gpt-6", _Family(("none", *_EFFORTS), "medium", caches=True, writes=True)),
)

_MODELS: dict[str, tuple[str, str, str, str, str]] = {
    # snapshot, then US dollars per million tokens: input, cached input, cache write, output
    "gpt-3.5-turbo": ("gpt-3.5-turbo-0125", "0.5", "0.5", "0.5", "1.5"),
    "gpt-4-turbo": ("gpt-4-turbo-2024-04-09", "10", "10", "10", "30"),
    "gpt-4o": ("gpt-4o-2024-08-06", "2.5", "1.25", "2.5", "10"),
    "gpt-4o-mini": ("gpt-4o-mini-2024-07-18", "0.15", "0.075", "0.15", "0.6"),
    "gpt-4.1": ("gpt-4.1-2025-04-14", "2", "0.5", "2", "8"),
    "gpt-4.1-mini": ("gpt-4.1-mini-2025-04-14", "0.4", "0.1", "0.4", "1.6"),
    "gpt-4.1-nano": ("gpt-4.1-nano-2025-04-14", "0.1", "0.025", "0.1", "0.4"),
    "o1": ("o1-2024-12-17", "15", "7.5", "15", "60"),
    "o3": ("o3-2025-04-16", "2", "0.5", "2", "8"),
    "o3-mini": ("o3-mini-2025-01-31", "1.1", "0.55", "1.1", "4.4"),
    "o4-mini": ("o4-mini-2025-04-16", "1.1", "0.275", "1.1", "4.4"),
    "gpt-5": ("gpt-5-2025-08-07", "1.25", "0.125", "1.25", "10"),
    "gpt-5-mini": ("gpt-5-mini-2025-08-07", "0.25", "0.025", "0.25", "2"),
    "gpt-5-nano": ("gpt-5-nano-2025-08-07", "0.05", "0.005", "0.05", "0.4"),
    "gpt-5.1": ("gpt-5.1-2025-11-13", "1.25", "0.125", "1.25", "10"),
    "gpt-5.2": ("gpt-5.2-2025-12-11", "1.75", "0.175", "1.75", "14"),
    "gpt-5.4-mini": ("gpt-5.4-mini", "0.75", "0.075", "0.75", "4.5"),
    "gpt-5.4-nano": ("gpt-5.4-nano", "0.2", "0.02", "0.2", "1.25"),
    "gpt-5.6-luna": ("gpt-5.6-luna", "0.2", "0.02", "0.25", "1.2"),
    "gpt-6-luna": ("gpt-6-luna", "0.1", "0.01", "0.125", "0.5"),
    "gpt-6-sol": ("gpt-6-sol", "2", "0.2", "2.5", "10"),
    "gpt-6-astra": ("gpt-6-astra", "10", "1", "12.5", "50"),
    "gpt-6.1-terra": ("gpt-6.1-terra", "1", "0.05", "1.25", "5"),
    "gpt-6.1-sol": ("gpt-6.1-sol", "2", "0.1", "2.5", "10"),
}

DIGITS = 24
"""Money is kept as whole numbers of 1e-24 dollars: sums of any length are exact."""


@dataclass(frozen=True, slots=True)
class _Rates:
    """What one token costs, in 1e-24 dollars."""

    input: int
    cached: int
    written: int
    output: int

    def charge(self, prompt: int, cached: int, written: int, completion: int) -> int:
        plain = prompt - cached - written
        return plain * self.input + cached * self.cached + written * self.written + completion * self.output


def _rates(model: str, price: Mapping[str, str], share: Fraction) -> _Rates:
    """Rates at a share of the price. Raises ValueError for one that is missing, negative or too fine."""
    found = []
    for name in ("input", "cached_input", "cache_write", "output"):
        text = price.get(name, price.get("input") if name != "output" else None)
        if text is None:
            raise ValueError(f"the price of {model} has no {name!r}")
        units = Fraction(text) / 1_000_000 * share * 10**DIGITS
        if units.denominator != 1 or units < 0:
            raise ValueError(f"{model}: {text} dollars per million {name} tokens cannot be booked exactly")
        found.append(int(units))
    return _Rates(*found)


def _usd(units: int) -> str:
    """1e-24 dollars as a plain decimal text, exact."""
    sign = "-" if units < 0 else ""
    digits = f"{abs(units):0{DIGITS + 1}d}"
    return f"{sign}{digits[:-DIGITS]}.{digits[-DIGITS:]}".rstrip("0").rstrip(".")


# -- what tests and scripts see -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Event:
    """One moment in the life of a request; `number` counts requests from 1.

    moment  arrived   the request was read, nothing is done yet
            done      the server's state is changed, the answer is not sent
            half      half of a file's content was sent
            answered  the answer was sent; never reached where it is lost
    detail  route, and from "done" on status and the file's or the batch's id
    """

    moment: str
    method: str
    path: str
    number: int
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BillLine:
    """One execution of one request. A synchronous one has no batch, and the SHA-256 of its body as custom_id."""

    batch: str | None
    custom_id: str
    request_id: str
    model: str
    usage: Mapping[str, Any]
    usd: Decimal


class Logged(NamedTuple):
    """One request as it came. `status` is 0 where no answer was sent.

    headers  those of it that say how a client behaves: idempotency-key, x-stainless-retry-count, content-type, range
    leaked   whether the key stood anywhere but in the Authorization header; looked for in keys of 12 characters and more
    """

    method: str
    path: str
    headers: Mapping[str, str]
    status: int
    leaked: bool


_LOGGED = ("idempotency-key", "x-stainless-retry-count", "content-type", "range")


# -- inside -------------------------------------------------------------------------------------------------------


class _Refused(Exception):
    """An answer in OpenAI's error shape."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        kind: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class _Dropped(Exception):
    """Close the connection without an answer."""


@dataclass(slots=True)
class _Answer:
    """What to send: bytes, or a stretch of a file. `lost`: close the connection instead."""

    body: bytes = b""
    status: int = 200
    type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)
    file: Path | None = None
    start: int = 0
    length: int = 0
    send_only: int | None = None
    lost: bool = False


def _json(value: Any, status: int = 200, **detail: Any) -> _Answer:
    return _Answer(orjson.dumps(value), status, detail=detail)


@dataclass(slots=True)
class _Request:
    """One request, read. `upload` holds the fields of a form and the file that came with it."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    route: str
    name: str
    number: int
    body: bytes = b""
    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None
    upload: Path | None = None
    leaked: bool = False

    def json(self) -> dict[str, Any]:
        try:
            value = orjson.loads(self.body)
        except orjson.JSONDecodeError as error:
            raise _Refused(400, "We could not parse the JSON body of your request.") from error
        if not isinstance(value, dict):
            raise _Refused(400, "The body of your request is not a JSON object.")
        return value

    def limit(self, default: int, most: int) -> int:
        text = self.query.get("limit", str(default))
        if not text.isdigit() or not 1 <= int(text) <= most:
            raise _Refused(400, f"Invalid 'limit': {text}. Expected 1 to {most}.", "invalid_value", "limit")
        return int(text)


@dataclass(slots=True)
class _Arm:
    """A fault that waits for its moment."""

    fault: int | str
    left: int | None
    detail: dict[str, Any]


@dataclass(slots=True)
class _File:
    id: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    expires_at: int
    path: Path
    deleted: bool = False

    def view(self) -> dict[str, Any]:
        return {
            "object": "file", "id": self.id, "purpose": self.purpose, "filename": self.filename, "bytes": self.bytes,
            "created_at": self.created_at, "expires_at": self.expires_at, "status": "processed", "status_details": None,
        }  # fmt: skip


@dataclass(slots=True)
class _Pending:
    """A create that is carried out later: at a time of the server's clock, or after some calls of the list."""

    body: dict[str, Any]
    at: float | None
    lists: int | None


@dataclass(slots=True, eq=False)
class _Said:
    """One answer: all of it but what the prompt cost. `choices` is JSON."""

    choices: orjson.Fragment
    completion: int
    hidden: int


@dataclass(slots=True)
class _Cost:
    """What one execution used, as JSON, and what it costs."""

    usage: orjson.Fragment
    units: int
    usd: str


@dataclass(slots=True, eq=False)
class _Shape:
    """What a request asks for besides its messages, and the answers there were to that so far."""

    refused: _Refused | None
    hidden: int
    cap: int | None
    copies: int
    top: int | None
    wanted: Any
    said: dict[tuple[str, int], _Said] = field(default_factory=dict)


@dataclass(slots=True)
class _Questions:
    """The lines of an input file, read once: all that is needed to answer them, in some 60 bytes a line."""

    answers: list[_Said | _Refused] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=lambda: [""])
    answer: array[int] = field(default_factory=lambda: array("I"))
    prefix: array[int] = field(default_factory=lambda: array("I"))
    prompt: array[int] = field(default_factory=lambda: array("I"))
    ends: array[int] = field(default_factory=lambda: array("I", [0]))
    ids: bytearray = field(default_factory=bytearray)
    numbers: dict[int | str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompt)

    def add(self, custom_id: str, answer: _Said | _Refused, prompt: int, prefix: str) -> None:
        number = self.numbers.get(id(answer))
        if number is None:
            number = self.numbers[id(answer)] = len(self.answers)
            self.answers.append(answer)
        self.answer.append(number)
        number = self.numbers.get(prefix, 0) if prefix else 0
        if prefix and not number:
            number = self.numbers[prefix] = len(self.prefixes)
            self.prefixes.append(prefix)
        self.prefix.append(number)
        self.prompt.append(prompt)
        self.ids += custom_id.encode("utf-8", "surrogatepass")
        self.ends.append(len(self.ids))

    def custom_id(self, i: int) -> str:
        return self.ids[self.ends[i] : self.ends[i + 1]].decode("utf-8", "surrogatepass")


@dataclass(slots=True)
class _Batch:
    """One batch. Of its lines only `questions` is kept, from validation until it has ended."""

    id: str
    number: int
    input_file_id: str
    path: Path | None
    metadata: dict[str, str] | None
    created: float
    seconds: float
    output_days: float
    status: str = "validating"
    faults: dict[int | str, dict[str, Any]] | None = None
    times: dict[str, int] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)
    model: str | None = None
    snapshot: str | None = None
    lines: int = 0
    enqueued: int = 0
    questions: _Questions | None = None
    order: array[int] = field(default_factory=lambda: array("I"))
    odd: dict[int, tuple[int | str, dict[str, Any]]] = field(default_factory=dict)
    cursor: int = 0
    completed: int = 0
    failed: int = 0
    usage: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    output: _File | None = None
    error_file: _File | None = None
    cancelled: float | None = None
    hides_usage: bool = False

    @property
    def expires(self) -> float:
        return self.created + WINDOW_SECONDS

    def has(self, fault: int | str) -> dict[str, Any] | None:
        return (self.faults or {}).get(fault)


DEFAULTS: dict[int | str, dict[str, Any]] = {
    2: {"status": None},
    3: {},
    4: {"seconds": 5.0, "after": None, "lists": None},
    5: {"status": 503},
    6: {"status": None},
    7: {"lost": False},
    10: {"limit": 90_000},
    11: {"http": False, "where": "create"},
    12: {"code": "invalid_json_line", "line": 1, "message": "This line is not parseable as valid JSON."},
    13: {},
    14: {"status": 400, "code": "unsupported_parameter"},
    15: {"file": False},
    16: {"polls": 2},
    17: {"share": 0.3, "status": 400},
    18: {"lines": 1, "executed": True},
    19: {"lines": 1, "same_id": False, "same_usage": False},
    20: {"lines": 1, "status": 0, "executed": True},
    21: {"lines": 1, "kind": "empty", "executed": True},
    22: {"lines": 1, "kind": "json"},
    23: {"lines": 1},
    24: {"order": "shuffled"},
    25: {"status": 502},
    26: {"at": 0.5, "clean": False, "whole_lines": False},
    28: {"usage": True},
    29: {"share": 0.5, "unlisted": 0},
    30: {"share": 0.5, "unlisted": 0, "unasked": False},
    31: {"share": 0.5, "unasked": False},
    32: {"status": "in_progress", "share": 0.5, "until": None},
    33: {"until": None},
    34: {"status": 409},
    35: {"status": "scheduling", "polls": 2, "missing": True, "extra": True, "text_body": True},
    36: {"where": "retrieve"},
    "html": {"where": "any"},
    "rate_limit": {"where": "any", "seconds": 1},
    "unauthorized": {"where": "any"},
    "server_error": {"where": "chat", "status": 500, "executed": False},
    "lost_answer": {"where": "chat"},
    "slow": {"where": "any", "seconds": 5.0},
    "file_vanished": {},
    "overcharge": {"factor": 1000, "lines": 1},
    "hostile_usage": {"kind": "negative", "lines": 1},
}
"""The faults there are, each with its keywords."""

_OF_A_BATCH = (10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 28, 29, 30, 31, 32, 35)
_OF_LINES = (17, 18, 19, 20, 21, 22, 23, "overcharge", "hostile_usage")
_BY_THE_CLIENT = (1, 8, 9, 27)


class Rehearsal:
    """The server. Its methods may be called from any thread; see the head of this module.

    key               what clients have to send
    folder            where files and the bill are kept; a temporary one goes with this object
    prices            model -> {input, output, cached_input, cache_write: dollars per million tokens as text,
                      batch_discount: "0.5"}, over the built-in ones. Missing input kinds are charged as input
    batch_seconds     how long a batch takes, by the server's clock
    latency_seconds   how long every answer takes
    enqueued_limit    prompt tokens of one model that may be in batches at once
    marker            a pattern with one group; what it finds in the last message of the user is the score
    models            names of models to know besides the built-in and the priced ones; each needs a price
    bill_path         where to write the bill; must not exist
    """

    def __init__(
        self,
        *,
        port: int = 0,
        key: str = "rehearsal",
        folder: Path | None = None,
        prices: Mapping[str, Mapping[str, str]] | None = None,
        batch_seconds: float = 0.0,
        latency_seconds: float = 0.0,
        enqueued_limit: int | None = None,
        marker: str | None = None,
        models: Sequence[str] | None = None,
        bill_path: Path | None = None,
    ) -> None:
        self.key = key
        self.batch_seconds, self.latency_seconds = batch_seconds, latency_seconds
        self.enqueued_limit = enqueued_limit
        self.hook: Callable[[Event], None] | None = None
        self.errors: list[str] = []
        """Tracebacks of what went wrong in the server itself."""
        self._marker = re.compile(marker) if marker else None
        if self._marker is not None and self._marker.groups < 1:
            raise ValueError(f"the marker {marker!r} has no group; write the score in parentheses")
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        self._offset = 0.0
        self._set_prices(prices or {}, models or ())
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="rehearsal-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._run = f"{random.SystemRandom().getrandbits(40):010x}"
        self._files: dict[str, _File] = {}
        self._batches: dict[str, _Batch] = {}
        self._live: list[_Batch] = []
        self._pending: list[_Pending] = []
        self._arms: list[_Arm] = []
        self._log: list[Logged] = []
        self._log_headers: dict[tuple[str, ...], dict[str, str]] = {}
        self._count = 0
        self._ids = 0
        self._shapes: dict[bytes, _Shape] = {}
        self._prefixes: set[str] = set()
        self._counted: dict[str, tuple[int, str]] = {}
        self._date = (0, "")
        self._billed = 0
        self._bill_path = bill_path or folder / f"bill-{self._run}.jsonl"
        self._bill = self._bill_path.open("xb", buffering=0)
        self._listener = socket.create_server(("127.0.0.1", port), backlog=128)
        self._port: int = self._listener.getsockname()[1]
        self._connections: set[socket.socket] = set()
        self._threads: set[threading.Thread] = set()
        self._acceptor: threading.Thread | None = None

    def _base(self, model: str) -> str:
        """A model's name without the date of its snapshot."""
        if model in self._snapshots or model[-3:-2] != "-":
            return model
        return re.sub(r"-\d{4}-\d\d-\d\d$", "", model)

    def _set_prices(self, prices: Mapping[str, Mapping[str, str]], models: Sequence[str]) -> None:
        table: dict[str, Mapping[str, str]] = {
            name: {"input": row[1], "cached_input": row[2], "cache_write": row[3], "output": row[4]}
            for name, row in _MODELS.items()
        }
        table.update(prices)
        unpriced = [name for name in models if name not in table]
        if unpriced:
            raise ValueError(f"no price is known for {', '.join(unpriced)}; name it in prices")
        self._snapshots = {name: _MODELS[name][0] if name in _MODELS else name for name in table}
        self._sync = {name: _rates(name, price, Fraction(1)) for name, price in table.items()}
        self._half = {
            name: _rates(name, price, Fraction(price.get("batch_discount", "0.5"))) for name, price in table.items()
        }

    # -- for tests and scripts ------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def bill_path(self) -> Path:
        return self._bill_path

    def start(self) -> Rehearsal:
        """Answer from now on, in threads of their own."""
        self._acceptor = threading.Thread(target=self._accept, name="rehearsal", daemon=True)
        self._acceptor.start()
        return self

    def stop(self) -> None:
        """Close every connection. What it holds can still be read."""
        self._stopped.set()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
            pass  # wakes the thread that accepts
        self._listener.close()
        if self._acceptor is not None:
            self._acceptor.join(5)
        with self._lock:
            connections, threads = list(self._connections), list(self._threads)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(5)
        with self._lock:
            self._tick()  # what was created is carried out, also when nobody looked
            self._bill.close()

    def __enter__(self) -> Rehearsal:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def misbehave(self, fault: int | str, times: int | None = 1, **detail: Any) -> None:
        """Arm a fault of the table at the head of this module. Raises ValueError for what is not in it."""
        if fault in _BY_THE_CLIENT:
            raise ValueError(f"fault {fault} is the client's; cause it in the hook")
        if fault not in DEFAULTS:
            raise ValueError(f"there is no fault {fault!r}; there are {', '.join(map(str, DEFAULTS))}")
        unknown = sorted(set(detail) - set(DEFAULTS[fault]))
        if unknown:
            raise ValueError(
                f"fault {fault} has no {unknown[0]!r}; it has {', '.join(DEFAULTS[fault]) or 'no keywords'}"
            )
        with self._lock:
            self._arms.append(_Arm(fault, times, {**DEFAULTS[fault], **detail}))

    def behave(self) -> None:
        """Disarm every fault that waits."""
        with self._lock:
            self._arms.clear()

    def set_snapshot(self, model: str, name: str) -> None:
        """The snapshot that answers for a model from now on. Raises KeyError for a model that is not known."""
        if model not in self._snapshots:
            raise KeyError(model)
        with self._lock:
            self._snapshots[model] = name

    def advance(self, seconds: float) -> None:
        """Turn the server's clock forward."""
        with self._lock:
            self._offset += seconds

    def now(self) -> float:
        """The server's clock."""
        return time.time() + self._offset

    def bill(self) -> Iterator[BillLine]:
        """Every execution so far, in order, read from disk. Looks at the batches first."""
        with self._lock:
            self._tick()
            size = self._bill_path.stat().st_size
        with self._bill_path.open("rb") as lines:
            for line in lines:
                size -= len(line)
                if size < 0:
                    return
                row = orjson.loads(line)
                yield BillLine(
                    row["batch"], row["custom_id"], row["request_id"], row["model"], row["usage"], Decimal(row["usd"])
                )

    def billed_usd(self) -> Decimal:
        """The sum of the bill."""
        with self._lock:
            self._tick()
            return Decimal(_usd(self._billed))

    def executions(self) -> Counter[str]:
        """How often each line was carried out, by custom_id; for a synchronous request by the SHA-256 of its body."""
        return Counter(line.custom_id for line in self.bill())

    def batches(self) -> list[dict[str, Any]]:
        """The batches as they really stand, oldest first, as the API shows them."""
        with self._lock:
            self._tick()
            return [self._view(batch, honest=True) for batch in self._batches.values()]

    def files(self, *, deleted: bool = False) -> list[dict[str, Any]]:
        """The files there are, oldest first; with `deleted` also those that were."""
        with self._lock:
            return [
                {**file.view(), "deleted": file.deleted} for file in self._files.values() if deleted or not file.deleted
            ]

    @property
    def requests_log(self) -> list[Logged]:
        """Every request that was answered or lost, in order."""
        with self._lock:
            return list(self._log)

    # -- faults ---------------------------------------------------------------------------------------------------

    def _take(self, fault: int | str, fits: Callable[[dict[str, Any]], bool] | None = None) -> dict[str, Any] | None:
        """The keywords of a fault that is armed and fits, used up once; None when there is none."""
        if not self._arms:
            return None
        with self._lock:
            for arm in self._arms:
                if arm.fault != fault or (fits is not None and not fits(arm.detail)):
                    continue
                if arm.left is not None:
                    arm.left -= 1
                    if arm.left <= 0:
                        self._arms.remove(arm)
                return dict(arm.detail)
        return None

    def _take_at(self, fault: int | str, route: str) -> dict[str, Any] | None:
        if not self._arms:
            return None
        return self._take(fault, lambda detail: _is_at(detail["where"], route))

    def _wait(self, seconds: float) -> None:
        if seconds > 0 and self._stopped.wait(seconds):
            raise _Dropped

    # -- files ----------------------------------------------------------------------------------------------------

    def _new_id(self, prefix: str) -> str:
        self._ids += 1
        return f"{prefix}{self._run}{self._ids:08x}"

    def _file(self, file_id: str) -> _File | None:
        file = self._files.get(file_id)
        return None if file is None or file.deleted or file.expires_at <= self.now() else file

    def _known_file(self, file_id: str) -> _File:
        file = self._file(file_id)
        if file is None:
            raise _Refused(404, f"No such File object: {file_id}", None, "id")
        return file

    def _upload(self, request: _Request) -> _Answer:
        purpose, name = request.fields.get("purpose"), request.filename
        if purpose is None:
            raise _missing("purpose")
        if request.upload is None or name is None:
            raise _missing("file")
        if purpose != "batch":
            raise _Refused(400, f"'{purpose}' is not one of ['batch'] - 'purpose'", "invalid_value", "purpose")
        if not name.endswith(".jsonl"):
            raise _Refused(400, "Invalid file format for Batch API. Must be .jsonl", None, "file")
        size = request.upload.stat().st_size
        if size > MAX_FILE_BYTES:
            raise _Refused(413, f"The file is too large: {size} bytes. The most is {MAX_FILE_BYTES}.")
        keep = request.fields.get("expires_after[seconds]", str(FILE_DAYS * DAY))
        if not keep.isdigit() or not 3600 <= int(keep) <= FILE_DAYS * DAY:
            raise _Refused(400, f"Invalid 'expires_after[seconds]': {keep}.", "invalid_value", "expires_after")
        with self._lock:
            file_id, now = self._new_id("file-"), int(self.now())
            path = request.upload.rename(self.folder / f"{file_id}.jsonl")
            file = _File(file_id, name, purpose, size, now, now + int(keep), path)
            self._files[file_id] = file
            request.upload = None
            fault = self._take(2)
        if fault is not None:
            return self._lost(fault["status"], file=file_id)
        return _json(file.view(), file=file_id)

    def _lost(self, status: int | None, **detail: Any) -> _Answer:
        """Done, and nobody is told."""
        if status is None:
            return _Answer(lost=True, detail=detail)
        return _json(_server_error(status).body, status, **detail)

    def _list_files(self, request: _Request) -> _Answer:
        limit, order, purpose = (
            request.limit(10_000, 10_000),
            request.query.get("order", "desc"),
            request.query.get("purpose"),
        )
        with self._lock:
            files = [f for f in self._files.values() if self._file(f.id) and purpose in (None, f.purpose)]
        if order != "asc":
            files.reverse()
        return _page(files, request.query.get("after"), limit, _File.view)

    def _retrieve_file(self, request: _Request) -> _Answer:
        with self._lock:
            return _json(self._known_file(request.name).view(), file=request.name)

    def _delete_file(self, request: _Request) -> _Answer:
        """The name is gone at once; the bytes stay for the batches that were created before."""
        with self._lock:
            self._commit_due(self.now())
            self._known_file(request.name).deleted = True
        return _json({"id": request.name, "object": "file", "deleted": True}, file=request.name)

    def _content(self, request: _Request) -> _Answer:
        with self._lock:
            self._tick()
            file = self._known_file(request.name)
            result = file.purpose == "batch_output"
            if result and (fault := self._take(25)) is not None:
                raise _server_error(fault["status"])
            batch = next((b for b in self._batches.values() if b.output is file), None)
            if batch is not None:
                gone = batch.has(28) or self._take(28)
                if gone is not None:
                    file.deleted = True
                    batch.hides_usage = not gone["usage"]
                    raise _Refused(404, f"No such File object: {request.name}", None, "id")
            cut = self._take(26) if result and file.bytes else None
            path, size = file.path, file.bytes
        answer = _Answer(type="application/octet-stream", file=path, length=size, detail={"file": request.name})
        answer.headers["content-disposition"] = f'attachment; filename="{file.filename}"'
        answer.headers["accept-ranges"] = "bytes"
        stretch = request.headers.get("range")
        if stretch is not None:
            answer.start, answer.length = _range(stretch, size)
            answer.status = 206
            answer.headers["content-range"] = f"bytes {answer.start}-{answer.start + answer.length - 1}/{size}"
        if cut is not None:
            part = int(answer.length * cut["at"])
            if cut["whole_lines"]:
                part = path.read_bytes()[answer.start : answer.start + part].rfind(b"\n") + 1
            if cut["clean"]:
                answer.length = part
            else:
                answer.send_only = part
        return answer

    # -- batches --------------------------------------------------------------------------------------------------

    def _create(self, request: _Request) -> _Answer:
        body = request.json()
        if (fault := self._take(6)) is not None:
            if fault["status"] is None:
                raise _Dropped
            raise _server_error(fault["status"])
        if self._take(11, lambda d: d["http"] and d["where"] == "create"):
            raise _out_of_money()
        if self._take("file_vanished") is not None:
            raise _no_file(body.get("input_file_id"))
        if (fault := self._take(4)) is not None:
            if fault["after"] is not None or fault["lists"] is not None:
                self._check_create(body)
                at = None if fault["after"] is None else self.now() + fault["after"]
                with self._lock:
                    self._pending.append(_Pending(body, at, fault["lists"]))
                return _Answer(lost=True)
            self._wait(fault["seconds"])
        with self._lock:
            batch = self._commit(body)
            detail: dict[str, Any] = {"batch": batch.id, "input_file": batch.input_file_id}
            if (fault := self._take(7)) is not None:
                detail["twin"] = self._commit(body).id
                if fault["lost"]:
                    return self._lost(None, **detail)
            if self._take(3) is not None:
                return self._lost(None, **detail)
            if (fault := self._take(5)) is not None:
                return self._lost(fault["status"], **detail)
            return _json(self._view(batch), **detail)

    def _check_create(self, body: dict[str, Any]) -> None:
        for name in ("input_file_id", "endpoint", "completion_window"):
            if not isinstance(body.get(name), str):
                raise _missing(name)
        if body["completion_window"] != "24h":
            message = f"Invalid value: '{body['completion_window']}'. Supported values are: '24h'."
            raise _Refused(400, message, "invalid_value", "completion_window")
        if body["endpoint"] not in ENDPOINTS:
            raise _Refused(400, f"Invalid value: '{body['endpoint']}'.", "invalid_value", "endpoint")
        if body["endpoint"] != ENDPOINT:
            raise _Refused(400, f"This rehearsal knows the endpoint {ENDPOINT} only.", "invalid_value", "endpoint")
        metadata = body.get("metadata")
        if metadata is not None:
            fine = isinstance(metadata, dict) and len(metadata) <= 16
            if not fine or any(not isinstance(v, str) or len(k) > 64 or len(v) > 512 for k, v in metadata.items()):
                message = "Invalid 'metadata': at most 16 texts, keys of 64 and values of 512 characters."
                raise _Refused(400, message, "invalid_value", "metadata")
        keep = body.get("output_expires_after")
        if keep is not None and not (isinstance(keep, dict) and 3600 <= keep.get("seconds", 0) <= FILE_DAYS * DAY):
            raise _Refused(400, "Invalid 'output_expires_after'.", "invalid_value", "output_expires_after")

    def _commit(self, body: dict[str, Any], at: float | None = None) -> _Batch:
        """Create the batch. A file that is deleted makes it fail later; one that never was is refused at once."""
        self._check_create(body)
        file = self._files.get(body["input_file_id"])
        if file is None or file.purpose != "batch":
            raise _no_file(body["input_file_id"])
        there = self._file(file.id) is not None
        keep = body.get("output_expires_after")
        batch = _Batch(
            self._new_id("batch_"), len(self._batches), file.id, file.path if there else None, body.get("metadata"),
            self.now() if at is None else at, self.batch_seconds, keep["seconds"] / DAY if keep else FILE_DAYS,
        )  # fmt: skip
        self._batches[batch.id] = batch
        self._live.append(batch)
        return batch

    def _known_batch(self, batch_id: str) -> _Batch:
        batch = self._batches.get(batch_id)
        if batch is None:
            raise _Refused(404, f"No batch found with id '{batch_id}'.", None, None)
        return batch

    def _retrieve(self, request: _Request) -> _Answer:
        with self._lock:
            self._tick()
            batch = self._known_batch(request.name)
            if self._take_at(36, "retrieve") is not None:
                raise _Refused(404, f"No batch found with id '{request.name}'.", None, None)
            view = self._view(batch)
            for fault in (16, 35):
                detail = batch.has(fault)
                if detail is not None and (fault == 35 or batch.status == "completed"):
                    detail["polls"] -= 1
            return _json(view, batch=batch.id, status_of_batch=view.get("status"))

    def _list(self, request: _Request) -> _Answer:
        limit = request.limit(20, 100)
        with self._lock:
            for pending in list(self._pending):
                if pending.lists is None:
                    continue
                if pending.lists <= 0:
                    self._commit_late(pending, self.now())
                pending.lists -= 1
            self._tick()
            batches = [] if self._take_at(36, "list") is not None else list(reversed(self._batches.values()))
            return _page(batches, request.query.get("after"), limit, self._view)

    def _commit_due(self, now: float) -> None:
        """Carry out the creates whose time has come."""
        for pending in list(self._pending):
            if pending.at is not None and pending.at <= now:
                self._commit_late(pending, pending.at)

    def _commit_late(self, pending: _Pending, at: float) -> None:
        self._pending.remove(pending)
        with contextlib.suppress(_Refused):
            self._commit(pending.body, at)

    def _cancel(self, request: _Request) -> _Answer:
        with self._lock:
            batch = self._known_batch(request.name)
            if batch.seconds > 0:
                self._tick()
            if (fault := self._take(34)) is not None:
                batch.seconds = 0.0
                self._advance(batch, self.now())
                raise _Refused(fault["status"], f"Cannot cancel a batch with status '{batch.status}'.")
            if batch.status in TERMINAL:
                raise _Refused(409, f"Cannot cancel a batch with status '{batch.status}'.")
            if batch.cancelled is not None:
                return _json(self._view(batch), batch=batch.id)
            now = self.now()
            self._begin(batch)
            asked: dict[int | str, dict[str, Any]] = {}
            for number in (30, 31, 33):
                if (fault := self._take(number, lambda detail: not detail.get("unasked"))) is not None:
                    asked[number] = fault
            assert batch.faults is not None
            batch.faults.update(asked)
            if batch.status == "validating" and not self._validate(batch, now):
                return _json(self._view(batch), batch=batch.id)
            for fault_number in (30, 31):
                if (done := asked.get(fault_number)) is not None:
                    self._carry_out(batch, max(batch.cursor, _part(batch.lines, done["share"])), now)
            batch.cancelled = now
            batch.times["cancelling_at"] = int(now)
            batch.status = "cancelling"
            return _json(self._view(batch), batch=batch.id)

    def _view(self, batch: _Batch, *, honest: bool = False) -> dict[str, Any]:
        """The batch as the API shows it; `honest` leaves out what faults make of it."""
        usage = batch.usage
        counted = batch.status != "failed" and batch.model is not None
        times = {name: batch.times.get(name) for name in _TIMES}
        error_id: str | None = batch.error_file.id if batch.error_file else None
        if error_id is None and batch.status in TERMINAL and (odd := batch.has(15)) is not None and not odd["file"]:
            error_id = ""
        view: dict[str, Any] = {
            "id": batch.id, "object": "batch", "endpoint": ENDPOINT, "model": batch.snapshot,
            "errors": {"object": "list", "data": batch.errors} if batch.errors else None,
            "input_file_id": batch.input_file_id, "completion_window": "24h", "status": batch.status,
            "output_file_id": batch.output.id if batch.output else None, "error_file_id": error_id,
            "created_at": int(batch.created), "expires_at": int(batch.expires), **times,
            "request_counts": {
                "total": batch.lines if counted else 0, "completed": batch.completed, "failed": batch.failed,
            },
            "metadata": batch.metadata,
            "usage": None if batch.hides_usage or ((gone := batch.has(28)) and not gone["usage"]) else {
                "input_tokens": usage[0], "input_tokens_details": {"cached_tokens": usage[1]},
                "output_tokens": usage[2], "output_tokens_details": {"reasoning_tokens": usage[3]},
                "total_tokens": usage[0] + usage[2],
            },
        }  # fmt: skip
        if honest:
            return view
        late = batch.has(16)
        if late is not None and late["polls"] > 0:
            view["output_file_id"] = None
        odd = batch.has(35)
        if odd is not None:
            if odd["polls"] > 0:
                view.update(status=odd["status"], output_file_id=None, error_file_id=None)
            if odd["missing"]:
                view = {
                    name: value
                    for name, value in view.items()
                    if value is not None and name not in ("usage", "model", "request_counts")
                }
            if odd["extra"]:
                view.update(region="moon", queue={"position": 7})
        return view

    # -- how a batch moves ----------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Move everything to where it stands now."""
        if self._bill.closed:
            return
        now = self.now()
        self._commit_due(now)
        for batch in list(self._live):  # all of them first: who waits in the queue counts for those who come after
            self._start(batch, now)
        for batch in list(self._live):
            self._advance(batch, now)

    def _begin(self, batch: _Batch) -> None:
        """The first look at a batch: the faults that wait for one are its own now."""
        if batch.faults is not None:
            return
        batch.faults = {}
        for fault in (*_OF_A_BATCH, "overcharge", "hostile_usage"):
            fits: Callable[[dict[str, Any]], bool] | None = None
            if fault == 11:
                fits = _is_no_http
            elif fault in (30, 31):
                fits = _is_unasked
            if (detail := self._take(fault, fits)) is not None:
                batch.faults[fault] = detail

    def _stuck(self, batch: _Batch, now: float) -> str | None:
        """The status in which a batch is stuck now."""
        detail = batch.has(32)
        if detail is None or (detail["until"] is not None and now >= batch.created + detail["until"]):
            return None
        return str(detail["status"])

    def _start(self, batch: _Batch, now: float) -> None:
        """Validate a batch whose time has come."""
        begins = batch.created + 0.1 * batch.seconds
        self._begin(batch)
        if batch.status == "validating" and now >= begins and self._stuck(batch, now) != "validating":
            self._validate(batch, begins)

    def _advance(self, batch: _Batch, now: float) -> None:
        """Do what a batch has done by now."""
        self._start(batch, now)
        if batch.status in ("validating", *TERMINAL):
            return
        begins, over = batch.created + 0.1 * batch.seconds, batch.created + batch.seconds
        ends, stuck = batch.created + 0.9 * batch.seconds, self._stuck(batch, now)
        if batch.cancelled is not None:
            hold = batch.has(33)
            if hold is not None and (hold["until"] is None or now < batch.cancelled + hold["until"]):
                return
            if now >= batch.cancelled + 0.05 * batch.seconds:
                self._end(batch, "cancelled", now)
            return
        early = next((f for f in (29, 30, 31) if batch.has(f) is not None), None)
        share = 1.0
        if early is not None:
            share = (batch.has(early) or {})["share"]
        if stuck == "in_progress":
            share = min(share, (batch.has(32) or {})["share"])
        spent = 1.0 if now >= ends else (now - begins) / (ends - begins)
        expired = batch.expires <= now and batch.expires < ends
        if expired:
            spent = (batch.expires - begins) / (ends - begins)
        self._carry_out(batch, max(batch.cursor, min(int(batch.lines * spent), _part(batch.lines, share))), now)
        if stuck is not None:
            if stuck == "finalizing" and now >= ends:
                self._finalize(batch, ends)
        elif expired:
            self._end(batch, "expired", batch.expires)
        elif now >= over:
            self._finalize(batch, ends)
            self._end(batch, "completed" if early is None else "expired" if early == 29 else "cancelled", over)
        elif now >= ends:
            self._finalize(batch, ends)

    def _finalize(self, batch: _Batch, at: float) -> None:
        batch.status = "finalizing"
        batch.times.setdefault("finalizing_at", int(at))

    def _fail(self, batch: _Batch, at: float, errors: list[dict[str, Any]]) -> bool:
        batch.status, batch.errors = "failed", errors
        batch.times["failed_at"] = int(at)
        self._forget(batch)
        return False

    def _forget(self, batch: _Batch) -> None:
        self._live.remove(batch)
        batch.questions, batch.odd, batch.enqueued = None, {}, 0
        batch.order = array("I")

    def _validate(self, batch: _Batch, at: float) -> bool:
        """Read the whole file once. Returns whether the batch is in progress; else it has failed, with its reasons."""
        if batch.path is None:
            return self._fail(
                batch, at, [_no_file(batch.input_file_id).body["error"] | {"code": "file_not_found", "line": None}]
            )
        if (fault := batch.has(12)) is not None:
            return self._fail(batch, at, [_batch_error(fault["code"], fault["message"], fault["line"])])
        if batch.has(11) is not None:
            return self._fail(
                batch, at, [_batch_error("billing_hard_limit_reached", "Billing hard limit has been reached.")]
            )
        errors = self._read_input(batch, tolerant=batch.has(13) is not None)
        if errors:
            return self._fail(batch, at, errors)
        assert batch.model is not None
        if (fault := batch.has(10)) is not None:
            return self._fail(batch, at, [_queue_full(batch.model, fault["limit"])])
        queued = sum(
            other.enqueued
            for other in self._live
            if other is not batch
            and other.model == batch.model
            and (other.created + other.seconds > at or other.has(32))
        )
        if self.enqueued_limit is not None and queued + batch.enqueued > self.enqueued_limit:
            return self._fail(batch, at, [_queue_full(batch.model, self.enqueued_limit)])
        batch.snapshot = self._snapshots.get(batch.model, batch.model)
        self._put_in_order(batch)
        batch.status = "in_progress"
        batch.times["in_progress_at"] = int(at)
        return True

    def _read_input(self, batch: _Batch, *, tolerant: bool) -> list[dict[str, Any]]:
        """Read every line, and find what is wrong with them."""
        assert batch.path is not None
        questions, seen, errors = _Questions(), set[str](), list[dict[str, Any]]()
        model: str | None = None
        base, family = "", _Family()
        number = count = 0
        with batch.path.open("rb", buffering=PIECE) as lines:
            for line in lines:
                number += 1
                if line.isspace():
                    continue
                count += 1
                if count > MAX_LINES:
                    continue
                try:
                    row = orjson.loads(line)
                except orjson.JSONDecodeError:
                    row = None
                try:
                    custom_id, body = row["custom_id"], row["body"]
                    fine = row["method"] == "POST" and row["url"] == ENDPOINT and body["model"] == model is not None
                    fine = fine and type(custom_id) is str and (custom_id not in seen or tolerant)
                except (KeyError, TypeError):
                    fine = False
                if not fine:
                    wrong = self._wrong_with(row, model, set() if tolerant else seen)
                    if wrong is not None:
                        errors.append({**wrong, "line": number})
                        continue
                    model = body["model"]
                    base = self._base(body["model"])
                    family = _family(base)
                seen.add(custom_id)
                if not errors:
                    questions.add(custom_id, *self._ask(body, base, family))
        if not count:
            return [_batch_error("empty_file", "The batch file is empty. Give it at least one request.")]
        if count > MAX_LINES:
            return [_batch_error("too_many_tasks", f"The batch has {count} requests; the most is {MAX_LINES}.")]
        if not errors:
            batch.model, batch.lines, batch.questions = model, len(questions), questions
            batch.enqueued = sum(questions.prompt)
        return errors[:100]

    def _wrong_with(self, row: Any, model: str | None, seen: set[str]) -> dict[str, Any] | None:
        """What is wrong with a line of an input file; None when it is fine."""
        if not isinstance(row, dict):
            return _batch_error("invalid_json_line", "This line is not parseable as valid JSON.")
        for name, kind in (("custom_id", str), ("method", str), ("url", str), ("body", dict)):
            if not isinstance(row.get(name), kind):
                return _batch_error("missing_required_parameter", f"Missing required parameter: '{name}'.", param=name)
        if row["custom_id"] in seen:
            return _batch_error(
                "duplicate_custom_id",
                f"The custom_id for this request is a duplicate of another request: {row['custom_id']}. "
                "The custom_id parameter must be unique for each request in a batch.",
                param="custom_id",
            )
        if row["method"] != "POST":
            return _batch_error("invalid_method", "Only POST is supported.", param="method")
        if row["url"] != ENDPOINT:
            if row["url"] in ENDPOINTS:
                return _batch_error("url_mismatch", "The URL of this request is not the batch's endpoint.", param="url")
            return _batch_error("invalid_url", "The URL provided for this request is invalid.", param="url")
        name = row["body"].get("model")
        if not isinstance(name, str):
            message = "Missing required parameter: 'body.model'."
            return _batch_error("missing_required_parameter", message, param="body.model")
        if self._base(name) not in self._snapshots:
            message = f"The provided model '{name}' is not supported by the Batch API."
            return _batch_error("model_not_found", message, param="body.model")
        if model is not None and name != model:
            message = f"The requested model '{name}' is not that of the batch, '{model}'."
            return _batch_error("mismatched_model", message, param="body.model")
        return None

    def _put_in_order(self, batch: _Batch) -> None:
        """The order of results, and the lines that faults make of some."""
        dice = random.Random(batch.number * 7919 + 17)
        order = (batch.has(24) or {"order": "shuffled"})["order"]
        places = list(range(batch.lines))
        if order == "shuffled":
            dice.shuffle(places)
            if batch.lines > 1 and places == sorted(places):
                places.reverse()
        elif order == "reversed":
            places.reverse()
        batch.order = array("I", places)
        if (every := batch.has(14)) is not None:
            batch.odd = dict.fromkeys(range(batch.lines), (14, every))
            return
        free = [i for i in batch.order if i not in batch.odd] if any(batch.has(f) for f in _OF_LINES) else []
        for fault in _OF_LINES:
            if (detail := batch.has(fault)) is None:
                continue
            count = _part(batch.lines, detail["share"]) if fault == 17 else detail["lines"]
            dice.shuffle(free)
            for _ in range(min(count, len(free))):
                batch.odd[free.pop()] = (fault, detail)

    def _carry_out(self, batch: _Batch, target: int, now: float) -> None:
        """Execute lines until `target` of them are done: results to the files, each execution on the bill."""
        work = None
        while batch.cursor < target:
            work = work or _Work(self, batch, int(now))
            i = batch.order[batch.cursor]
            odd = batch.odd.get(i) if batch.odd else None
            if odd is None:
                work.plain(i)
            else:
                work.odd(i, *odd)
            batch.cursor += 1
            if batch.cursor % 1000 == 0:
                work.flush()
        if work is not None:
            work.flush()

    def _end(self, batch: _Batch, status: str, at: float) -> None:
        """Write down what was not done, and show the files."""
        if status != "completed":
            detail: dict[str, Any] = batch.has(29 if status == "expired" else 30) or {}
            rest = len(batch.order) - batch.cursor - int(detail.get("unlisted", 0))
            if batch.has(31) is None and rest > 0:
                self._list_rest(batch, rest, "batch_expired" if status == "expired" else "batch_cancelled")
        batch.status = status
        batch.times[f"{status}_at"] = int(at)
        keep = int(at + batch.output_days * DAY)
        if batch.has(31) is None:
            batch.output = self._publish(self._result(batch, "output"), f"{batch.id}_output.jsonl", int(at), keep)
        empty = batch.has(15)
        errors = self._result(batch, "error")
        if empty is not None and empty["file"] and not errors.exists():
            errors.touch()
            batch.error_file = self._publish(errors, f"{batch.id}_error.jsonl", int(at), keep, empty=True)
        else:
            batch.error_file = self._publish(errors, f"{batch.id}_error.jsonl", int(at), keep)
        self._forget(batch)

    def _result(self, batch: _Batch, kind: str) -> Path:
        return self.folder / f"{batch.id}_{kind}.jsonl"

    def _publish(self, path: Path, name: str, at: int, keep: int, *, empty: bool = False) -> _File | None:
        if not path.exists() or (path.stat().st_size == 0 and not empty):
            return None
        file = _File(self._new_id("file-"), name, "batch_output", path.stat().st_size, at, keep, path)
        self._files[file.id] = file
        return file

    def _list_rest(self, batch: _Batch, count: int, code: str) -> None:
        """Lines that were never carried out."""
        assert batch.questions is not None
        message = {
            "batch_expired": "This request could not be executed before the completion window expired.",
            "batch_cancelled": "This request could not be executed before the batch was cancelled.",
        }[code]
        with self._result(batch, "error").open("ab") as out:
            for i in batch.order[batch.cursor : batch.cursor + count]:
                row = {
                    "id": f"batch_req_{batch.id[6:]}{i:08x}", "custom_id": batch.questions.custom_id(i), "response": None,
                    "error": {"code": code, "message": message},
                }  # fmt: skip
                out.write(orjson.dumps(row) + b"\n")
        batch.failed += count

    # -- how a question is answered -------------------------------------------------------------------------------

    def _ask(self, body: dict[str, Any], base: str, family: _Family) -> tuple[_Said | _Refused, int, str]:
        """The answer to a request or why there is none, the tokens of its prompt, and the name of a prefix to be cached.

        Takes the messages out of the body. A prompt counts three for each message and one for each word: never more
        than a real tokenizer.
        """
        messages = body.pop("messages", None)
        name = orjson.dumps(body)
        shape = self._shapes.get(name)
        if shape is None:
            if len(self._shapes) >= 64:
                self._shapes.clear()
            shape = self._shapes[name] = _shape(body, family)
        if shape.refused is not None:
            return shape.refused, 0, ""
        if not isinstance(messages, list) or not messages:
            return _missing("messages"), 0, ""
        tokens, prefix, question, text = 0, "", None, ""
        for i, message in enumerate(messages):
            role = message.get("role") if isinstance(message, dict) else None
            if not isinstance(role, str):
                return _Refused(400, f"Invalid type for 'messages[{i}]'.", "invalid_type", f"messages[{i}]"), 0, ""
            content = message.get("content")
            text = content if isinstance(content, str) else _joined(content)
            if i == 0 and len(text) > 200:  # the judge's prompt is the same in every line
                count, prefix = self._fixed(text, base, family)
            else:
                count = _words(text)
            tokens += 3 + count
            if role == "user":
                question = text
        if tokens > family.context:
            return _Refused(
                400, f"This model's maximum context length is {family.context} tokens. However, your messages resulted in "
                f"{tokens} tokens. Please reduce the length of the messages.", "context_length_exceeded", "messages",
            ), 0, ""  # fmt: skip
        question = text if question is None else question
        seed = zlib.crc32(question.encode("utf-8", "surrogatepass")) % 11
        score = f"{seed / 2:g}"
        if self._marker is not None and (match := self._marker.search(question)):
            score = match[1].strip()
        said = shape.said.get((score, seed))
        if said is None:
            if len(shape.said) >= 1000:
                shape.said.clear()
            said = shape.said[score, seed] = _say(shape, score, seed)
        return said, tokens, prefix

    def _fixed(self, text: str, base: str, family: _Family) -> tuple[int, str]:
        """The words of a prompt's first message, and the name of the prefix that it is, where the family caches it."""
        found = self._counted.get(text)
        if found is None:
            if len(self._counted) >= 64:
                self._counted.clear()
            digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
            found = self._counted[text] = (_words(text), digest)
        count, digest = found
        return (
            count,
            f"{base} {count + 3 - (count + 3) % 128} {digest}" if family.caches and count + 3 >= CACHE_FROM else "",
        )

    def _cache(self, prefix: str, family: _Family) -> tuple[int, int]:
        """Cached and written tokens of a prompt: a long prefix is written once and read from then on."""
        if not prefix:
            return 0, 0
        tokens = int(prefix.split(" ")[1])
        if prefix in self._prefixes:
            return tokens, 0
        if len(self._prefixes) >= 10_000:
            self._prefixes.clear()
        self._prefixes.add(prefix)
        return 0, tokens if family.writes else 0

    def _enter(self, batch: str | None, custom_id: str, request_id: str, model: str, cost: _Cost) -> bytes:
        """One line of the bill; the caller writes it."""
        self._billed += cost.units
        row = {
            "batch": batch, "custom_id": custom_id, "request_id": request_id, "model": model, "usage": cost.usage,
            "usd": cost.usd,
        }  # fmt: skip
        return orjson.dumps(row) + b"\n"

    def _chat(self, request: _Request) -> _Answer:
        if self._take(11, lambda d: d["http"] and d["where"] == "chat"):
            raise _out_of_money()
        body = request.json()
        model = body.get("model")
        if not isinstance(model, str):
            raise _missing("model")
        base = self._base(model)
        if base not in self._snapshots:
            message = f"The model `{model}` does not exist or you do not have access to it."
            raise _Refused(404, message, "model_not_found", "model")
        family = _family(base)
        with self._lock:
            said, prompt, prefix = self._ask(body, base, family)
            if isinstance(said, _Refused):
                raise said
            cached, written = self._cache(prefix, family)
            completion = said.completion
            if (fault := self._take("overcharge")) is not None:
                prompt, completion = prompt * fault["factor"], completion * fault["factor"]
            cost = _cost(self._sync[base], prompt, cached, written, completion, said.hidden, family)
            identity = self._new_id("chatcmpl-")
            self._bill.write(self._enter(None, hashlib.sha256(request.body).hexdigest(), identity, model, cost))
            snapshot = self._snapshots.get(model, model)
        fault = self._take("hostile_usage")
        usage = cost.usage if fault is None else _hostile(cost.usage, fault["kind"])
        return _json(_completion(identity, int(self.now()), snapshot, said, usage), request_id=identity, model=model)

    def _list_models(self, request: _Request) -> _Answer:
        names = [{"id": name, "object": "model", "created": 0, "owned_by": "rehearsal"} for name in self._snapshots]
        return _json({"object": "list", "data": names})

    def _send_bill(self, request: _Request) -> _Answer:
        with self._lock:
            self._tick()
            size = self._bill_path.stat().st_size
        return _Answer(type="application/jsonl", file=self._bill_path, length=size)

    # -- connections ----------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if self._stopped.is_set():
                connection.close()
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._converse, args=(connection,), daemon=True)
            with self._lock:
                self._connections.add(connection)
                self._threads.add(thread)
            thread.start()

    def _converse(self, connection: socket.socket) -> None:
        """All requests of one connection, one after the other."""
        try:
            with connection, io.BufferedReader(socket.SocketIO(connection, "r"), PIECE // 16) as stream:
                while not self._stopped.is_set() and self._one_request(connection, stream):
                    pass
        except (OSError, _Dropped):
            pass  # the client is gone, or is to think that we are
        except Exception:  # noqa: BLE001  a fault of the server itself: kept for who looks
            self.errors.append(traceback.format_exc())
        finally:
            with self._lock:
                self._connections.discard(connection)
                self._threads.discard(threading.current_thread())

    def _one_request(self, connection: socket.socket, stream: IO[bytes]) -> bool:
        """Read a request, do it, answer it. Returns whether the connection stays open."""
        request = self._read_head(stream)
        if request is None:
            return False
        event = Event("arrived", request.method, request.path, request.number, {"route": request.route})
        keep = request.headers.get("connection", "").lower() != "close"
        try:
            self._read_body(request, connection, stream)
            self._tell(event, "arrived")
            answer = self._handle(request)
        except (_Dropped, OSError):
            self._record(request, 0)
            raise
        finally:
            if request.upload is not None:
                request.upload.unlink(missing_ok=True)
        event.detail.update(answer.detail, status=0 if answer.lost else answer.status)
        self._record(request, 0 if answer.lost else answer.status)
        self._tell(event, "done")
        if answer.lost:
            raise _Dropped
        self._send(connection, answer, event, keep)
        self._tell(event, "answered")
        return keep

    def _tell(self, event: Event, moment: str) -> None:
        if self.hook is not None:
            self.hook(Event(moment, event.method, event.path, event.number, event.detail))

    def _read_head(self, stream: IO[bytes]) -> _Request | None:
        first = stream.readline(65_536).decode("latin-1").split()
        if len(first) != 3:
            return None
        method, target, _ = first
        headers: dict[str, str] = {}
        while True:
            line = stream.readline(65_536)
            if line in (b"\r\n", b"\n"):
                break
            if not line or len(headers) > 200:
                return None
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        parts = urlsplit(target)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()} if parts.query else {}
        route, name = _route(method, parts.path)
        with self._lock:
            self._count += 1
            number = self._count
        request = _Request(method, parts.path, query, headers, route, name, number)
        if len(self.key) >= 12:
            elsewhere = [unquote(target), *(v for n, v in headers.items() if n != "authorization")]
            request.leaked = any(self.key in text for text in elsewhere)
        return request

    def _read_body(self, request: _Request, connection: socket.socket, stream: IO[bytes]) -> None:
        length = request.headers.get("content-length", "0")
        if "transfer-encoding" in request.headers or not length.isdigit():
            request.route = "length"
            request.headers = {**request.headers, "connection": "close"}
            return
        if request.headers.get("expect", "").lower() == "100-continue":
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        left = int(length)
        kind = request.headers.get("content-type", "")
        secret = self.key.encode() if len(self.key) >= 12 else None
        if request.route == "upload" and kind.startswith("multipart/form-data") and "boundary=" in kind:
            boundary = kind.partition("boundary=")[2].split(";")[0].strip('" ')
            path = self.folder / f"upload-{self._run}-{request.number}"
            form = _Form(boundary.encode("latin-1"), path, secret)
            with form:
                while left > 0:
                    data = stream.read(min(left, PIECE))
                    if not data:
                        path.unlink(missing_ok=True)
                        raise _Dropped
                    left -= len(data)
                    form.feed(data)
            request.fields, request.filename = form.fields, form.filename
            request.upload = path if form.filename is not None else None
            request.leaked = request.leaked or form.leaked
        elif left > MAX_BODY_BYTES:
            while left > 0:
                data = stream.read(min(left, PIECE))
                if not data:
                    raise _Dropped
                left -= len(data)
            request.route = "too_large"
        elif left:
            request.body = stream.read(left)
            if len(request.body) < left:
                raise _Dropped
            request.leaked = request.leaked or (secret is not None and secret in request.body)

    def _handle(self, request: _Request) -> _Answer:
        """The answer to a request, an error included."""
        try:
            self._wait(self.latency_seconds)
            if (fault := self._take_at("slow", request.route)) is not None:
                self._wait(fault["seconds"])
            if self._take_at("html", request.route) is not None:
                return _Answer(b"<!doctype html><title>Sign in</title><p>Welcome to this network.", type="text/html")
            self._admit(request)
            if self._take_at("unauthorized", request.route) is not None:
                raise _wrong_key()
            if (fault := self._take_at("rate_limit", request.route)) is not None:
                raise _Refused(
                    429, "Rate limit reached for requests. Please try again later.", "rate_limit_exceeded", None, "requests",
                    {"retry-after": f"{fault['seconds']:g}"},
                )  # fmt: skip
            if self._take(11, lambda d: d["http"] and d["where"] == "upload" == request.route):
                raise _out_of_money()
            fault = self._take_at("server_error", request.route)
            if fault is not None and not fault["executed"]:
                raise _server_error(fault["status"])
            handler = self._handlers().get(request.route)
            if handler is None:
                raise _Refused(404, f"Invalid URL ({request.method} {request.path})")
            answer = handler(request)
            if fault is not None:
                raise _server_error(fault["status"])
            if self._take_at("lost_answer", request.route) is not None:
                answer.lost = True
            return answer
        except _Refused as refused:
            return _Answer(orjson.dumps(refused.body), refused.status, headers=refused.headers)
        except _Dropped:
            raise
        except Exception:  # noqa: BLE001  a fault of the server itself: told, and kept for who looks
            self.errors.append(traceback.format_exc())
            return _Answer(orjson.dumps(_server_error(500).body), 500)

    def _handlers(self) -> dict[str, Callable[[_Request], _Answer]]:
        return {
            "upload": self._upload, "files": self._list_files, "file": self._retrieve_file, "delete": self._delete_file,
            "content": self._content, "create": self._create, "list": self._list, "retrieve": self._retrieve,
            "cancel": self._cancel, "chat": self._chat, "models": self._list_models, "bill": self._send_bill,
        }  # fmt: skip

    def _admit(self, request: _Request) -> None:
        """Only from this machine, only with the key."""
        host = request.headers.get("host", "")
        if host.rpartition(":")[0] not in ("127.0.0.1", "localhost", "[::1]"):
            raise _Refused(403, "This server answers to the address 127.0.0.1 only.", "invalid_host")
        given = request.headers.get("authorization")
        if given is None:
            raise _Refused(401, "You didn't provide an API key.", None)
        if not hmac.compare_digest(given.encode("latin-1", "replace"), f"Bearer {self.key}".encode()):
            raise _wrong_key()
        if request.route == "length":
            raise _Refused(411, "A Content-Length is needed.")
        if request.route == "too_large":
            raise _Refused(413, f"The body is larger than {MAX_BODY_BYTES} bytes.")

    def _record(self, request: _Request, status: int) -> None:
        subset = tuple(request.headers.get(name, "") for name in _LOGGED)
        path = request.path.replace(self.key, "[key]") if request.leaked else request.path
        if subset[2].startswith("multipart/"):
            subset = (*subset[:2], "multipart/form-data", *subset[3:])
        with self._lock:
            headers = self._log_headers.get(subset)
            if headers is None:
                headers = {
                    name: value.replace(self.key, "[key]") for name, value in zip(_LOGGED, subset, strict=True) if value
                }
                self._log_headers[subset] = headers
            self._log.append(Logged(request.method, sys.intern(path), headers, status, request.leaked))

    def _send(self, connection: socket.socket, answer: _Answer, event: Event, keep: bool) -> None:
        second = int(self.now())
        if self._date[0] != second:
            self._date = (second, formatdate(second, usegmt=True))
        length = answer.length if answer.file is not None else len(answer.body)
        head = [
            f"HTTP/1.1 {answer.status} {_REASONS.get(answer.status, 'Answer')}",
            f"date: {self._date[1]}",
            f"content-type: {answer.type}",
            f"content-length: {length}",
            f"x-request-id: req_{self._run}{event.number:08x}",
            f"openai-organization: {ORGANIZATION}",
            *(f"{name}: {value}" for name, value in answer.headers.items()),
            *(() if keep else ("connection: close",)),
        ]
        data = "\r\n".join(head).encode("latin-1", "replace") + b"\r\n\r\n"
        if answer.file is None:
            connection.sendall(data + answer.body)
            return
        connection.sendall(data)
        sent = length if answer.send_only is None else answer.send_only
        with answer.file.open("rb") as file:
            first = sent // 2 if self.hook is not None else sent
            if first:
                connection.sendfile(file, answer.start, first)
            if self.hook is not None and first:
                self._tell(event, "half")
                connection.sendfile(file, answer.start + first, sent - first)
        if answer.send_only is not None:
            raise _Dropped


# -- carrying out lines -------------------------------------------------------------------------------------------


class _Work:
    """Some lines of one batch at work; results and bill wait in lists until `flush`."""

    def __init__(self, server: Rehearsal, batch: _Batch, now: int) -> None:
        assert batch.model is not None and batch.snapshot is not None and batch.questions is not None
        self.server, self.batch, self.now, self.questions = server, batch, now, batch.questions
        self.model, self.snapshot = batch.model, batch.snapshot
        base = server._base(batch.model)
        self.family, self.rates = _family(base), server._half[base]
        self.stem = batch.id[6:]
        self.as_text = (batch.has(35) or {}).get("text_body", False)
        self.costs: dict[tuple[int, int, int, int, int], _Cost] = {}
        self.used: dict[tuple[int, int, int, int, int], int] = {}
        self.output: list[bytes] = []
        self.error: list[bytes] = []
        self.bill: list[bytes] = []

    def flush(self) -> None:
        for kind, lines in (("output", self.output), ("error", self.error)):
            if lines:
                with self.server._result(self.batch, kind).open("ab") as file:
                    file.write(b"".join(lines))
                lines.clear()
        self.server._bill.write(b"".join(self.bill))
        self.bill.clear()
        for (prompt, cached, _, completion, hidden), times in self.used.items():
            for k, tokens in enumerate((prompt, cached, completion, hidden)):
                self.batch.usage[k] += tokens * times
        self.used.clear()

    def plain(self, i: int) -> None:
        """A line that goes as it should."""
        custom_id = self.questions.custom_id(i)
        answer = self.execute(i, custom_id)
        if answer is not None:
            self.output.append(self.line(i, custom_id, 200, answer))
            self.batch.completed += 1

    def execute(
        self, i: int, custom_id: str, *, again: int = 0, more: int = 0, factor: int = 1, change: str = ""
    ) -> dict[str, Any] | None:
        """Carry out a request and bill it. None when the model does not take it; the error line is then written."""
        questions = self.questions
        said = questions.answers[questions.answer[i]]
        if isinstance(said, _Refused):
            self.fail(i, custom_id, said)
            return None
        number, cached, written = questions.prefix[i], 0, 0
        if number:
            cached, written = self.server._cache(questions.prefixes[number], self.family)
        name = (questions.prompt[i] * factor + more, cached, written, said.completion * factor, said.hidden)
        cost = self.costs.get(name)
        if cost is None:
            if len(self.costs) > 10_000:
                self.costs.clear()
            cost = self.costs[name] = _cost(self.rates, *name, self.family)
        self.used[name] = self.used.get(name, 0) + 1
        self.bill.append(self.server._enter(self.batch.id, custom_id, self.request_id(i, again), self.model, cost))
        shown = _hostile(cost.usage, change) if change else cost.usage
        return _completion(f"chatcmpl-{self.stem}{i:08x}", self.now, self.snapshot, said, shown)

    def request_id(self, i: int, again: int = 0) -> str:
        return f"{self.stem}{i:08x}{again or ''}"

    def line(self, i: int, custom_id: str, status: int, body: Any, *, again: int = 0) -> bytes:
        if self.as_text and body is not None:
            body = orjson.dumps(body).decode()
        row = {
            "id": f"batch_req_{self.stem}{i:08x}",
            "custom_id": custom_id,
            "response": {"status_code": status, "request_id": self.request_id(i, again), "body": body},
            "error": None,
        }
        return orjson.dumps(row) + b"\n"

    def fail(self, i: int, custom_id: str, refused: _Refused) -> None:
        self.error.append(self.line(i, custom_id, refused.status, refused.body))
        self.batch.failed += 1

    def odd(self, i: int, fault: int | str, detail: dict[str, Any]) -> None:
        """A line that a fault befalls."""
        custom_id = self.questions.custom_id(i)
        if fault == 14:
            message = "Unsupported parameter: this model does not take the request."
            return self.fail(i, custom_id, _Refused(detail["status"], message, detail["code"]))
        if fault == 17:
            return self.fail(i, custom_id, _line_error(detail["status"]))
        answer: dict[str, Any] | None = None
        if detail.get("executed", True):
            answer = self.execute(i, custom_id, factor=detail.get("factor", 1), change=self.change(fault, detail))
            if answer is None:
                return None
        if fault == 18:
            return None
        self.batch.completed += 1
        if fault == 20:
            self.output.append(self.line(i, custom_id, detail["status"], None))
            return None
        if fault == 21:
            kept = {k: v for k, v in (answer or {}).items() if k != "usage" and detail["kind"] != "empty"}
            self.output.append(self.line(i, custom_id, 200, kept))
            return None
        line = self.line(i, custom_id, 200, answer)
        if fault == 22 and detail["kind"] == "json":
            line = line[: len(line) * 2 // 3] + b"\n"
        elif fault == 22:
            line = line.replace(b'"content":"', b'"content":"\xff\xfe', 1)
        self.output.append(line)
        if fault == 19:
            self.output.append(self.twin(i, custom_id, line, detail))
        elif fault == 23:
            stray = f"stray-{self.stem}-{i}"
            self.output.append(self.line(i, stray, 200, self.execute(i, stray, again=1), again=1))
        return None

    def change(self, fault: int | str, detail: dict[str, Any]) -> str:
        return str(detail["kind"]) if fault == "hostile_usage" else ""

    def twin(self, i: int, custom_id: str, line: bytes, detail: dict[str, Any]) -> bytes:
        """The second line of a question: the same one, or that of a second execution."""
        if detail["same_id"] and detail["same_usage"]:
            return line
        again, more = 0 if detail["same_id"] else 1, 0 if detail["same_usage"] else 1
        return self.line(i, custom_id, 200, self.execute(i, custom_id, again=again, more=more), again=again)


# -- small parts --------------------------------------------------------------------------------------------------

_PIECES = re.compile(r"\d+|[^\W\d]+|[^\w\s]+|\s+")
_TIMES = (
    "in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at",
)  # fmt: skip
_REASONS = {
    200: "OK", 206: "Partial Content", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
    408: "Request Timeout", 409: "Conflict", 411: "Length Required", 413: "Content Too Large",
    416: "Range Not Satisfiable", 429: "Too Many Requests", 500: "Internal Server Error", 502: "Bad Gateway",
    503: "Service Unavailable", 504: "Gateway Timeout",
}  # fmt: skip


def _is_at(where: str, route: str) -> bool:
    return where in ("any", route) or (where == "polls" and route in ("retrieve", "list"))


def _is_no_http(detail: dict[str, Any]) -> bool:
    return not detail["http"]


def _is_unasked(detail: dict[str, Any]) -> bool:
    return bool(detail["unasked"])


def _part(lines: int, share: float) -> int:
    """A share of some lines: all for 1, none for 0, at least one for anything between."""
    return min(lines, max(1 if share > 0 else 0, int(lines * share + 1e-9)))


def _family(model: str) -> _Family:
    return next((family for pattern, family in _FAMILIES if re.match(pattern, model)), _Family())


def _route(method: str, path: str) -> tuple[str, str]:
    """What a request asks for, and the name in its path."""
    if (method, path) == ("GET", "/rehearsal/bill"):
        return "bill", ""
    parts = path.strip("/").split("/")
    if parts[0] != "v1":
        return "", ""
    match (method, *parts[1:]):
        case ("POST", "files"):
            return "upload", ""
        case ("GET", "files"):
            return "files", ""
        case ("GET", "files", name):
            return "file", name
        case ("DELETE", "files", name):
            return "delete", name
        case ("GET", "files", name, "content"):
            return "content", name
        case ("POST", "batches"):
            return "create", ""
        case ("GET", "batches"):
            return "list", ""
        case ("GET", "batches", name):
            return "retrieve", name
        case ("POST", "batches", name, "cancel"):
            return "cancel", name
        case ("POST", "chat", "completions"):
            return "chat", ""
        case ("GET", "models"):
            return "models", ""
    return "", ""


def _page(items: Sequence[Any], after: str | None, limit: int, view: Callable[[Any], dict[str, Any]]) -> _Answer:
    start = 0
    if after is not None:
        found = [i for i, item in enumerate(items) if item.id == after]
        if not found:
            raise _Refused(400, f"No item found with id '{after}'.", "invalid_value", "after")
        start = found[0] + 1
    data = [view(item) for item in items[start : start + limit]]
    return _json({
        "object": "list", "data": data, "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None, "has_more": start + limit < len(items),
    })  # fmt: skip


def _range(text: str, size: int) -> tuple[int, int]:
    """Start and length of a Range header."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", text)
    if match is None or not (match[1] or match[2]):
        raise _Refused(416, f"The range {text} cannot be had.")
    if not match[1]:
        start, end = max(0, size - int(match[2])), size - 1
    else:
        start, end = int(match[1]), min(int(match[2] or size - 1), size - 1)
    if start > end:
        raise _Refused(416, f"The range {text} cannot be had.", headers={"content-range": f"bytes */{size}"})
    return start, end - start + 1


def _missing(name: str) -> _Refused:
    return _Refused(400, f"Missing required parameter: '{name}'.", "missing_required_parameter", name)


def _unsupported(message: str, name: str, *, value: bool = False) -> _Refused:
    return _Refused(400, message, "unsupported_value" if value else "unsupported_parameter", name)


def _wrong_key() -> _Refused:
    return _Refused(401, "Incorrect API key provided.", "invalid_api_key")


def _out_of_money() -> _Refused:
    message = "You exceeded your current quota, please check your plan and billing details."
    return _Refused(429, message, "insufficient_quota", None, "insufficient_quota")


def _server_error(status: int) -> _Refused:
    return _Refused(status, "The server had an error while processing your request.", None, None, "server_error")


def _line_error(status: int) -> _Refused:
    if status == 429:
        return _Refused(429, "Rate limit reached for requests.", "rate_limit_exceeded", None, "requests")
    if status >= 500:
        return _server_error(status)
    return _Refused(status, "Invalid prompt: it could not be processed.", "invalid_request")


def _no_file(file_id: Any) -> _Refused:
    message = f"Cannot find file {file_id}, or organization {ORGANIZATION} does not have access to it."
    return _Refused(400, message, "invalid_request", "input_file_id")


def _batch_error(code: str, message: str, line: int | None = None, param: str | None = None) -> dict[str, Any]:
    return {"code": code, "line": line, "message": message, "param": param}


def _queue_full(model: str, limit: int) -> dict[str, Any]:
    return _batch_error(
        "token_limit_exceeded",
        f"Enqueued token limit reached for {model} in organization {ORGANIZATION}. Limit: {limit:,} enqueued tokens. "
        "Please try again once some in_progress batches have been completed.",
    )


def _joined(parts: Any) -> str:
    """The text of a message that comes in parts."""
    if not isinstance(parts, list):
        return ""
    return "\n".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))


def _words(text: str) -> int:
    """How many words a text has at least. Where no two blanks are neighbours, its spaces are counted: many times faster."""
    if text.isascii() and not (
        "  " in text or "\n " in text or " \n" in text or "\t" in text or "\r" in text or "\v" in text or "\f" in text
    ):
        words = text.count(" ") + 1 - text.startswith(" ") - text.endswith(" ")
    else:
        words = len(text.split())
    return min(words, len(text) // 2)


def _shape(body: Mapping[str, Any], family: _Family) -> _Shape:
    """What a request asks for besides its messages."""
    refused = _rules(body, family)
    if refused is not None:
        return _Shape(refused, 0, None, 1, None, None)
    thinks = bool(family.efforts) and (body.get("reasoning_effort") or family.effort) not in ("none", "minimal")
    top = (body.get("top_logprobs") or 0) if body.get("logprobs") else None
    cap = body.get("max_completion_tokens") or body.get("max_tokens")
    return _Shape(None, REASONING if thinks else 0, cap, body.get("n") or 1, top, body.get("response_format"))


def _rules(body: Mapping[str, Any], family: _Family) -> _Refused | None:
    """Why the models of a family do not take a request; None when they do."""
    if body.get("stream"):
        return _unsupported("Unsupported value: 'stream' cannot be true here.", "stream", value=True)
    thinks, effort = bool(family.efforts), body.get("reasoning_effort")
    if effort is not None and not thinks:
        return _Refused(400, "Unrecognized request argument supplied: reasoning_effort")
    if effort is not None and effort not in family.efforts:
        values = ", ".join(f"'{e}'" for e in family.efforts)
        message = f"'reasoning_effort' does not support '{effort}' with this model. Supported values are: {values}."
        return _unsupported(f"Unsupported value: {message}", "reasoning_effort", value=True)
    if thinks and body.get("max_tokens") is not None:
        message = "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        return _unsupported(f"Unsupported parameter: {message}", "max_tokens")
    if thinks and (effort or family.effort) != "none":
        for name in ("temperature", "top_p"):
            if body.get(name) not in (None, 1):
                message = (
                    f"'{name}' does not support {body[name]} with this model. Only the default (1) value is supported."
                )
                return _unsupported(f"Unsupported value: {message}", name, value=True)
        for name in ("logprobs", "top_logprobs"):
            if body.get(name):
                return _unsupported(f"Unsupported parameter: '{name}' is not supported with this model.", name)
    for name in ("max_tokens", "max_completion_tokens", "n"):
        number = body.get(name)
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            return _Refused(400, f"Invalid '{name}': expected a whole number of 1 or more.", "invalid_value", name)
    top = body.get("top_logprobs")
    if top is not None and (not body.get("logprobs") or not isinstance(top, int) or not 0 <= top <= 20):
        return _Refused(400, "Invalid 'top_logprobs': 0 to 20, with 'logprobs'.", "invalid_value", "top_logprobs")
    return None


def _say(shape: _Shape, score: str, seed: int) -> _Said:
    """The answer of that score in the shape that was asked for, cut where its cap is reached."""
    text, finish, hidden = _fill(shape.wanted, score, seed), "stop", shape.hidden
    pieces = _PIECES.findall(text)
    if shape.cap is not None and hidden + len(pieces) > shape.cap:
        hidden, finish = min(hidden, shape.cap), "length"
        pieces = pieces[: shape.cap - hidden]
        text = "".join(pieces)
    choices: list[dict[str, Any]] = [
        {
            "index": i,
            "message": {"role": "assistant", "content": text, "refusal": None, "annotations": []},
            "logprobs": None if shape.top is None else _logprobs(pieces, shape.top),
            "finish_reason": finish,
        }
        for i in range(shape.copies)
    ]
    completion = (hidden + len(pieces)) * shape.copies
    return _Said(orjson.Fragment(orjson.dumps(choices)), completion, hidden * shape.copies)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _fill(wanted: Any, score: str, seed: int) -> str:
    """The answer: the score in plain text, or in the JSON object that was asked for."""
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "json_schema":
        schema = (wanted.get("json_schema") or {}).get("schema") or {}
        properties = schema.get("properties") or {}
        filled = {name: _value(name, rule, score, seed) for name, rule in properties.items()}
        return orjson.dumps(filled).decode()
    if kind == "json_object":
        return orjson.dumps({"score": _value("score", {"type": "number"}, score, seed)}).decode()
    return score


def _value(name: str, rule: Any, score: str, seed: int) -> Any:
    """A value that a rule of a flat schema allows; for the property "score" the score, or what is nearest to it."""
    rule = rule if isinstance(rule, dict) else {}
    choices, kind = rule.get("enum"), rule.get("type")
    kind = next((k for k in kind if k != "null"), None) if isinstance(kind, list) else kind
    number = _number(score)
    if isinstance(choices, list) and choices:
        if name == "score":
            for choice in choices:
                if isinstance(choice, bool):
                    continue
                if choice == score or (number is not None and _number(str(choice)) == number):
                    return choice
        return choices[seed % len(choices)]
    if name == "score" and kind == "string":
        return score
    if kind in ("number", "integer"):
        number = number if name == "score" and number is not None else 1.0
        return round(number) if kind == "integer" or number == int(number) else number
    return {"string": "because", "boolean": True, "array": [], "object": {}}.get(str(kind))


def _usage(prompt: int, cached: int, written: int, completion: int, hidden: int, family: _Family) -> dict[str, Any]:
    details = {"cached_tokens": cached, "audio_tokens": 0}
    if family.writes:
        details["cache_write_tokens"] = written
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": details,
        "completion_tokens_details": {
            "reasoning_tokens": hidden, "audio_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
        },
    }  # fmt: skip


def _cost(
    rates: _Rates, prompt: int, cached: int, written: int, completion: int, hidden: int, family: _Family
) -> _Cost:
    units = rates.charge(prompt, cached, written, completion)
    usage = _usage(prompt, cached, written, completion, hidden, family)
    return _Cost(orjson.Fragment(orjson.dumps(usage)), units, _usd(units))


def _hostile(true: orjson.Fragment, kind: str) -> dict[str, Any]:
    """The usage as it cannot be."""
    usage: dict[str, Any] = orjson.loads(orjson.dumps(true))
    changed: dict[str, dict[str, Any]] = {
        "negative": {"prompt_tokens": -5},
        "bool": {"completion_tokens": True},
        "cached": {"prompt_tokens_details": {"cached_tokens": usage["prompt_tokens"] + 1}},
        "text": {"prompt_tokens": str(usage["prompt_tokens"])},
        "huge": {"completion_tokens": 10**15},
    }
    return {**usage, **changed[kind]}


def _completion(identity: str, created: int, snapshot: str, said: _Said, usage: Any) -> dict[str, Any]:
    return {
        "id": identity, "object": "chat.completion", "created": created, "model": snapshot, "choices": said.choices,
        "usage": usage, "service_tier": "default", "system_fingerprint": None,
    }  # fmt: skip


def _logprobs(pieces: Sequence[str], top: int) -> dict[str, Any]:
    """Probabilities of the pieces of a text: its own first, then digits, less and less likely."""
    rows = []
    for piece in pieces:
        others = [piece, *(d for d in "5432109876" if d != piece)]
        alternatives = [
            {"token": token, "logprob": -0.1 - 2.0 * rank, "bytes": list(token.encode())}
            for rank, token in enumerate(others[:top])
        ]
        rows.append({"token": piece, "logprob": -0.1, "bytes": list(piece.encode()), "top_logprobs": alternatives})
    return {"content": rows, "refusal": None}


class _Form:
    """A form with a file in it, as it comes in: short fields are kept, the file goes to disk piece by piece."""

    def __init__(self, boundary: bytes, path: Path, secret: bytes | None) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.leaked = False
        self._delimiter = b"\r\n--" + boundary
        self._path, self._secret = path, secret
        self._rest = b"\r\n"  # as though a line had ended before the first boundary
        self._file: BinaryIO | None = None
        self._name: str | None = None
        self._value = b""
        self._state = "before"

    def __enter__(self) -> _Form:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def feed(self, data: bytes) -> None:
        data = self._rest + data
        if self._secret is not None and self._secret in data:
            self.leaked = True
        start = 0
        while True:
            if self._state == "head":
                end = data.find(b"\r\n\r\n", start)
                if data.startswith(b"--", start) or end < 0:
                    self._rest = data[start:]
                    return
                self._open_part(data[start:end].decode("utf-8", "replace"))
                start, self._state = end + 4, "part"
            at = data.find(self._delimiter, start)
            if at < 0:
                keep = max(start, len(data) - max(len(self._delimiter), len(self._secret or b"")))
                self._write(memoryview(data)[start:keep])
                self._rest = data[keep:]
                return
            self._write(memoryview(data)[start:at])
            self._close_part()
            start, self._state = at + len(self._delimiter), "head"

    def _open_part(self, head: str) -> None:
        name = re.search(r'\bname="([^"]*)"', head)
        filename = re.search(r'\bfilename="([^"]*)"', head)
        self._name, self._value = name[1] if name else None, b""
        if filename is not None and self._name == "file":
            self.filename = unquote(filename[1])
            self._file = self._path.open("wb", buffering=0)

    def _write(self, data: memoryview) -> None:
        if self._state != "part":
            return
        if self._file is not None:
            self._file.write(data)
        elif len(self._value) < 65_536:
            self._value += data

    def _close_part(self) -> None:
        if self._state != "part":
            return
        if self._file is not None:
            self._file.close()
            self._file = None
        elif self._name is not None:
            self.fields[self._name] = self._value.decode("utf-8", "replace")


# -- as a program -------------------------------------------------------------------------------------------------


def _fault(text: str) -> tuple[int | str, int | None, dict[str, Any]]:
    """A fault as the command line names it: 3, 10:times=2,limit=5000 or html:times=all."""
    name, _, rest = text.partition(":")
    detail: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        detail[key.strip()] = _plain(value.strip())
    times = detail.pop("times", 1)
    return int(name) if name.isdigit() else name, None if times == "all" else int(times), detail


def _plain(text: str) -> Any:
    if text.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server until SIGTERM, or until stdin closes; one line of JSON on stdout says where it listens."""
    parser = argparse.ArgumentParser(
        prog="python -m graders.rehearsal",
        description="The OpenAI API on this machine, for rehearsals. Ends with SIGTERM, or when its stdin closes.",
    )
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--key", default="rehearsal", help="what clients have to send")
    parser.add_argument("--batch-seconds", type=float, default=0.0, help="how long a batch takes")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds that every answer takes")
    parser.add_argument("--enqueued-limit", type=int, help="prompt tokens in batches at once")
    parser.add_argument(
        "--fault", action="append", default=[], metavar="N[:KEY=VALUE,...]", help="10:times=2,limit=5000"
    )
    parser.add_argument("--marker", help="a pattern with one group, which is the score")
    parser.add_argument("--prices", type=Path, help="JSON: model -> dollars per million tokens")
    parser.add_argument("--model", action="append", help="a model to know besides the built-in ones")
    parser.add_argument("--bill", type=Path, help="where to write the bill; a new file")
    parser.add_argument("--folder", type=Path, help="where to keep files; a temporary folder when not given")
    parser.add_argument("--detach", action="store_true", help="go on when stdin closes")
    options = parser.parse_args(arguments)
    try:
        server = Rehearsal(
            port=options.port, key=options.key, folder=options.folder,
            prices=orjson.loads(options.prices.read_bytes()) if options.prices else None,
            batch_seconds=options.batch_seconds, latency_seconds=options.latency, enqueued_limit=options.enqueued_limit,
            marker=options.marker, models=options.model, bill_path=options.bill,
        )  # fmt: skip
        for text in options.fault:
            fault, times, detail = _fault(text)
            server.misbehave(fault, times, **detail)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    if not options.detach:

        def watch() -> None:
            with contextlib.suppress(OSError, ValueError):  # not by sys.stdin, whose lock would outlast the end
                while os.read(sys.stdin.fileno(), 65_536):
                    pass
            ended.set()

        threading.Thread(target=watch, daemon=True).start()
    with server:
        where = {"url": server.url, "pid": os.getpid(), "bill": str(server.bill_path)}
        sys.stdout.write(orjson.dumps(where).decode() + "\n")
        sys.stdout.flush()
        ended.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
