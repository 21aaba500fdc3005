"""HTTP on a loopback socket: reads requests, has them answered, sends the answers, breaks off where a fault says so.

Knows bytes and connections; what a request means is another's. A thread for each connection; the log of requests says
how the client behaves.
"""

from __future__ import annotations

import contextlib
import io
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from alpasift.graders.rehearsal.forms import Form
from alpasift.graders.rehearsal.messages import MAX_BODY_BYTES, ORGANIZATION, Answer, Dropped, Request

PIECE = 1 << 20
_LOGGED = ("idempotency-key", "x-stainless-retry-count", "content-type", "range")
_REASONS = {
    200: "OK",
    206: "Partial Content",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    408: "Request Timeout",
    409: "Conflict",
    411: "Length Required",
    413: "Content Too Large",
    416: "Range Not Satisfiable",
    429: "Too Many Requests",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


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


class Logged(NamedTuple):
    """One request as it came. `status` is 0 where no answer was sent.

    headers  those of it that say how a client behaves: idempotency-key, x-stainless-retry-count, content-type, range
    leaked   whether the key stood anywhere but in the Authorization header; only keys of 12 characters and more are
             looked for
    """

    method: str
    path: str
    headers: Mapping[str, str]
    status: int
    leaked: bool


class HttpServer:
    """Listens on 127.0.0.1 from the start, and answers between `start` and `stop`.

    notify   called at each moment of a request
    errors   tracebacks of what went wrong in the server itself
    stopped  set when it stops: whoever waits for long waits for this too
    """

    def __init__(
        self,
        port: int,
        *,
        key: str,
        folder: Path,
        run: str,
        now: Callable[[], float],
        notify: Callable[[Event], None],
    ) -> None:
        self.key, self.folder, self.run, self.now = key, folder, run, now
        self._notify_hook = notify
        self.stopped, self.errors = threading.Event(), list[str]()
        self._lock = threading.Lock()
        self._log: list[Logged] = []
        self._log_headers: dict[tuple[str, ...], dict[str, str]] = {}
        self._count = 0
        self._date = (0, "")
        self.listener = socket.create_server(("127.0.0.1", port), backlog=128)
        self.port: int = self.listener.getsockname()[1]
        self._connections: set[socket.socket] = set()
        self._threads: set[threading.Thread] = set()
        self._acceptor: threading.Thread | None = None

    @property
    def log(self) -> list[Logged]:
        """Every request that was answered or lost, in order."""
        with self._lock:
            return list(self._log)

    def start(self, answer: Callable[[Request], Answer]) -> None:
        """Answer from now on. `answer` raises Dropped to close the connection without one."""
        self._answer = answer
        self._acceptor = threading.Thread(target=self._accept, name="rehearsal", daemon=True)
        self._acceptor.start()

    def stop(self) -> None:
        """Close every connection."""
        self.stopped.set()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            pass  # wakes the thread that accepts
        self.listener.close()
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

    # -- a connection ---------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while not self.stopped.is_set():
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            if self.stopped.is_set():
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
                while not self.stopped.is_set() and self._one_request(connection, stream):
                    pass
        except (OSError, Dropped):
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
            self._notify(event, "arrived")
            answer = self._answer(request)
        except (Dropped, OSError):
            self._record(request, 0)
            raise
        finally:
            if request.upload is not None:
                request.upload.unlink(missing_ok=True)
        event.detail.update(answer.detail, status=0 if answer.lost else answer.status)
        self._record(request, 0 if answer.lost else answer.status)
        self._notify(event, "done")
        if answer.lost:
            raise Dropped
        self._send(connection, answer, event, keep)
        self._notify(event, "answered")
        return keep

    def _notify(self, event: Event, moment: str) -> None:
        self._notify_hook(Event(moment, event.method, event.path, event.number, event.detail))

    def _read_head(self, stream: IO[bytes]) -> Request | None:
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
        request = Request(method, parts.path, query, headers, route, name, number)
        if len(self.key) >= 12:
            elsewhere = [unquote(target), *(v for n, v in headers.items() if n != "authorization")]
            request.leaked = any(self.key in text for text in elsewhere)
        return request

    def _read_body(self, request: Request, connection: socket.socket, stream: IO[bytes]) -> None:
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
            path = self.folder / f"upload-{self.run}-{request.number}"
            form = Form(boundary.encode("latin-1"), path, secret)
            with form:
                while left > 0:
                    data = stream.read(min(left, PIECE))
                    if not data:
                        path.unlink(missing_ok=True)
                        raise Dropped
                    left -= len(data)
                    form.feed(data)
            request.fields, request.filename = form.fields, form.filename
            request.upload = path if form.filename is not None else None
            request.leaked = request.leaked or form.leaked
        elif left > MAX_BODY_BYTES:
            while left > 0:
                data = stream.read(min(left, PIECE))
                if not data:
                    raise Dropped
                left -= len(data)
            request.route = "too_large"
        elif left:
            request.body = stream.read(left)
            if len(request.body) < left:
                raise Dropped
            request.leaked = request.leaked or (secret is not None and secret in request.body)

    def _record(self, request: Request, status: int) -> None:
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

    def _send(self, connection: socket.socket, answer: Answer, event: Event, keep: bool) -> None:
        second = int(self.now())
        if self._date[0] != second:
            self._date = (second, formatdate(second, usegmt=True))
        length = answer.length if answer.file is not None else len(answer.body)
        head = [
            f"HTTP/1.1 {answer.status} {_REASONS.get(answer.status, 'Answer')}",
            f"date: {self._date[1]}",
            f"content-type: {answer.type}",
            f"content-length: {length}",
            f"x-request-id: req_{self.run}{event.number:08x}",
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
            first = sent // 2
            if first:
                connection.sendfile(file, answer.start, first)
                self._notify(event, "half")
            if sent > first:
                connection.sendfile(file, answer.start + first, sent - first)
        if answer.send_only is not None:
            raise Dropped


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
