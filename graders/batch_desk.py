r"""At work with the Batch API: send request files, look after what is out, collect it, whatever fails on the way.

Knows the API's protocol and its 36 faults; nothing of rubrics, tables or how requests are made: lines come in ready,
with their ceilings. What it may spend it asks of the meter, what it did it notes there before the next step, and what
it finds it yields. An attempt is one request file:

    opened -> (upload) -> creating -> created -> in_batch -> collected -> closed
                                \-> unknown -> created (adopted)  or  fenced -> doubted -> closed

A process may die at every arrow. The next one reads the last step and goes on from there: a file that may have been
uploaded is looked for by its name, a batch that may have been created by its input file and its metadata, and only
after both a wait and a second look, with the input file deleted so that a late create must fail, are the questions
asked again; the money of such an attempt stays unresolved until the window in which it could have run has passed. No
POST is ever repeated blindly. Results are downloaded to a temporary file, flushed, renamed, and read line by line;
reading them again changes nothing. Money follows lines, not the status of a batch.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from email.utils import parsedate_to_datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import orjson

from graders import (
    AlpaSiftError,
    BackendError,
    BackendUnavailable,
    BudgetExceeded,
    Meter,
    Reply,
    Request,
    SendingStopped,
)
from graders.batch_files import Found, read_results, stray_key
from graders.openai_api import (
    OUT_OF_MONEY,
    Family,
    body_of,
    clean,
    connect,
    error_of,
    explain,
    is_ambiguous,
    never_sent,
    output_cap,
    refusal_of,
    reply_of,
    retry_after,
)
from graders.prices import MAX_PROMPT_TOKENS, Price, UsageError, ceiling, charge, thaw

if TYPE_CHECKING:
    import openai

MAX_BYTES = 200_000_000
WINDOW_SECONDS = 24 * 3600
MARGIN_SECONDS = 3600
LAG_POLLS = 10
LAG_SECONDS = 3600
TERMINAL = ("completed", "failed", "expired", "cancelled")
SMALLEST_FILE = 50
"""While others are out, a file of fewer rows than this waits for more money or room."""

_T = TypeVar("_T")


class Terms(Protocol):
    """What is to be known of the grader for which the desk works."""

    model: str
    base_url: str
    stands_for: str | None
    host: str
    family: Family
    wait: bool
    poll_seconds: float
    grace_seconds: float
    batch_rows: int
    enqueued_tokens: int | None
    allow_drift: bool
    says: str

    def price(self, *, batch: bool) -> Price: ...

    def lines(self, requests: Iterable[Request]) -> Iterator[Line]: ...


@dataclass(frozen=True, slots=True)
class Line:
    """One request as it stands in a file, the most it may cost by batch, and its prompt tokens."""

    key: str
    ceiling: Decimal
    tokens: int
    data: bytes
    request: Request | None = None


@dataclass(slots=True)
class Draft:
    """A request file that is written and not yet an attempt."""

    path: Path
    keys: list[str] = field(default_factory=list)
    ceilings: list[Decimal] = field(default_factory=list)
    tokens: int = 0
    size: int = 0
    sha256: str = ""
    short_of: str = ""
    """what ended it: "" (nothing is left), rows, bytes, money or room"""


class _Feed:
    """Lines to send: what was put back, files to be sent again, then the requests, read no further than needed."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._back: deque[Line] = deque()
        self._again: deque[Iterator[Line]] = deque()
        self._lines = lines

    def next(self) -> Line | None:
        if self._back:
            return self._back.popleft()
        while self._again:
            line = next(self._again[0], None)
            if line is not None:
                return line
            self._again.popleft()
        return next(self._lines, None)

    def peek(self) -> Line | None:
        line = self.next()
        if line is not None:
            self._back.appendleft(line)
        return line

    def put_back(self, lines: Iterable[Line]) -> None:
        self._back.extendleft(reversed(list(lines)))

    def send_again(self, lines: Iterator[Line]) -> None:
        self._again.append(lines)


@dataclass(slots=True)
class _Out:
    """An attempt that is out: its batches, which of them are done, and what their files held."""

    attempt: str
    facts: dict[str, Any]
    state: str
    found: Found | None = None
    done: set[str] = field(default_factory=set)
    polls_without_output: int = 0
    not_found: int = 0
    counts: tuple[int, int, int] | None = None
    status: str = ""
    told_late: bool = False
    cancelled: bool = False
    was_doubted: bool = False

    @property
    def batches(self) -> list[str]:
        return list(self.facts.get("batch_ids", []))

    @property
    def tokens(self) -> int:
        return int(self.facts.get("input_tokens", 0))


class _Later(Exception):
    """The server cannot say now; ask again later. Nothing follows from it."""


class _Missing(Exception):
    """404: the server says there is no such thing."""


class Desk:
    """One process at work with one meter: sends, looks after what is out, collects."""

    def __init__(self, grader: Terms, meter: Meter) -> None:
        self.grader, self.meter = grader, meter
        self.out: dict[str, _Out] = {}
        self.feed = _Feed(iter(()))
        self.limit = grader.enqueued_tokens
        self.stop: AlpaSiftError | None = None
        self.blocked: tuple[Decimal, int] | None = None
        self.room_when_fewer = 0
        self.send_at_once = self.sends = False
        self.long: list[Line] = []
        self._client: openai.OpenAI | None = None
        self._clock: tuple[float, float] | None = None
        self._pause_until = 0.0

    # -- the server -----------------------------------------------------------------------------------------------

    @property
    def client(self) -> openai.OpenAI:
        if self._client is None:
            self._client = connect(self.grader.base_url, timeout=120.0, on_date=self._saw_date)
        return self._client

    def _saw_date(self, text: str) -> None:
        try:
            self._clock = (parsedate_to_datetime(text).timestamp(), time.monotonic())
        except ValueError:
            return

    def now(self) -> float:
        """The server's clock in seconds, as its last answer told; ours before it has answered."""
        if self._clock is None:
            return time.time()
        return self._clock[0] + time.monotonic() - self._clock[1]

    def get(self, call: Callable[[], _T], *, patient: bool = True) -> _T:
        """A request that changes nothing. Raises _Later, _Missing, BackendUnavailable (a key that is not accepted)."""
        import openai

        tries = 3 if patient else 1
        for number in range(tries):
            try:
                return _checked(call())
            except openai.APIStatusError as error:
                if error.status_code == 404:
                    raise _Missing from error
                if error.status_code in (401, 403):
                    raise explain(error, self.grader.base_url) from error
                if error.status_code == 429 or error.status_code >= 500 or error.status_code in (408, 409):
                    if number + 1 == tries:
                        self._pause_until = time.monotonic() + retry_after(error, self.grader.poll_seconds)
                        raise _Later(clean(str(error))) from error
                    time.sleep(min(retry_after(error, self.grader.poll_seconds), 2.0))
                    continue
                raise explain(error, self.grader.base_url) from error
            except AttributeError as error:  # what the client makes of a page that is no JSON
                raise _Later("a web page instead of an answer") from error
            except openai.APIError as error:
                if number + 1 == tries:
                    raise _Later(clean(f"{type(error).__name__}: {error.__cause__ or error}")) from error
                time.sleep(min(self.grader.poll_seconds, 0.5))
        raise AssertionError

    def _first_look(self) -> Any:
        """One page of batches. A look costs nothing and changes nothing: one whose connection broke is taken again, twice."""
        import openai

        for pause in (0.2, 1.0):
            try:
                return self.client.batches.list(limit=1)
            except openai.APIConnectionError as error:
                if isinstance(error, openai.APITimeoutError) or never_sent(error):
                    raise
                time.sleep(pause)
        return self.client.batches.list(limit=1)

    def greet(self) -> None:
        """Ask the server something that costs nothing: an address, a key or a server that is wrong is told here."""
        import openai

        try:
            answer = self._first_look()
            if not isinstance(answer.data, list):
                raise TypeError(type(answer.data).__name__)
        except (AttributeError, TypeError, ValueError) as error:  # what the client makes of a page that is no JSON
            raise BackendUnavailable(
                f"{self.grader.host} does not answer as the API does (a web page?); look at --base-url"
            ) from error
        except openai.NotFoundError as error:
            raise BackendUnavailable(
                f"{self.grader.host} has no Batch API under {self.grader.base_url}; "
                f"openai_chat:{self.grader.model} asks one question at a time"
            ) from error
        except openai.APIStatusError as error:
            if error.status_code in (401, 403):
                raise explain(error, self.grader.base_url) from error
            if error.status_code < 500 and error.status_code != 429:
                raise explain(error, self.grader.base_url) from error
        except openai.APIConnectionError as error:
            raise explain(error, self.grader.base_url) from error

    # -- the three ways in ----------------------------------------------------------------------------------------

    def answer(self, requests: Iterable[Request]) -> Iterator[list[Reply]]:
        """Send what the caps and the queue allow, look after what is out, send on as it settles."""
        self.feed, self.sends = _Feed(self.grader.lines(requests)), True
        self._remember()
        if not self.out and self.feed.peek() is None:
            return
        self.greet()
        if self.limit is None:
            learned = self.meter.learned("enqueued_limit")
            self.limit = learned if isinstance(learned, int) and learned > 0 else None
        yield from self._recover(send=True)
        yield from self._canary()
        while True:
            yield from self._send_what_fits()
            yield from self._look_round()
            if self.send_at_once and self.stop is None:
                self.send_at_once = False
                continue
            if not self.grader.wait or not self._worth_waiting():
                if self.stop is not None:
                    raise self.stop
                if not self.grader.wait or self._at_work() or self.feed.peek() is None:
                    return
                continue
            yield from self._sleep(self.grader.poll_seconds)

    def collect(self, wait: bool) -> Iterator[list[Reply]]:
        """Look after what is out; send nothing new."""
        self._remember()
        if not self.out:
            return
        self.greet()
        yield from self._recover(send=False)
        while True:
            yield from self._look_round()
            if not wait or not self._worth_waiting():
                return
            yield from self._sleep(self.grader.poll_seconds)

    def cancel(self, attempt: str) -> Iterator[list[Reply]]:
        """Ask the server to stop the batches of one attempt, then look once what was done."""
        import openai

        self._remember()
        out = self.out.get(attempt)
        if out is None:
            return
        self.out = {attempt: out}
        self.greet()
        yield from self._recover(send=False)
        if attempt not in self.out or out.state == "doubted":  # in doubt it has no batch to stop, and its window runs
            return
        if not out.batches:  # nothing was created: the file goes, the money comes back
            self._delete_files(attempt)
            self._give_back(out, Decimal(0), "cancelled before it was sent")
            return
        for batch_id in out.batches:
            try:
                _checked(self.client.batches.cancel(batch_id))
            except (openai.APIStatusError, openai.APIConnectionError):
                continue  # it may have ended by itself; its status, read next, decides
        out.cancelled = True
        self.meter.note(attempt, "cancelling", {"cancel_asked_at": self.now()})
        deadline = time.monotonic() + max(5.0, 5 * self.grader.poll_seconds)
        while True:
            yield from self._look_round()
            if not self._worth_waiting() or (not self.grader.wait and time.monotonic() > deadline):
                return
            yield from self._sleep(self.grader.poll_seconds)

    def _remember(self) -> None:
        """What the ledger says is out. What was lost from sight is looked for again."""
        self.out = {
            a.attempt: _Out(a.attempt, dict(a.facts), "in_batch" if a.state == "lost" else a.state)
            for a in self.meter.open_attempts()
            if a.facts.get("kind") == "batch"  # what a person carries is not looked after here
        }

    def _at_work(self) -> list[_Out]:
        """Attempts with a batch at the server that has not been collected."""
        return [out for out in self.out.values() if out.batches and out.state != "lost"]

    def _worth_waiting(self) -> list[_Out]:
        """Those of them whose window has not passed: what is stuck is asked after by a later run."""
        return [out for out in self._at_work() if not out.told_late]

    def _sleep(self, seconds: float) -> Iterator[list[Reply]]:
        """Wait, with a sign of life at least twice a second. One is given even for no seconds: it keeps what is in hand."""
        until = max(time.monotonic() + seconds, self._pause_until if self._pause_until - time.monotonic() < 600 else 0)
        yield []
        while time.monotonic() < until:
            time.sleep(max(0.0, min(0.5, until - time.monotonic())))
            yield []

    # -- what an earlier process left ------------------------------------------------------------------------------

    def _recover(self, *, send: bool) -> Iterator[list[Reply]]:
        """Find out how far each open attempt really got."""
        for out in list(self.out.values()):
            if out.batches and out.state not in ("creating", "unknown", "fenced", "doubted"):
                continue
            if out.state in ("creating", "unknown", "fenced", "created"):
                yield from self._reconcile(out)
            elif out.state == "doubted":
                self._look_for_the_doubted(out)
            elif send:
                yield from self._go_on(out)

    def _go_on(self, out: _Out) -> Iterator[list[Reply]]:
        """Nothing was created for this attempt yet: send its file, as long as the money for it still stands."""
        if self.meter.free() < 0:
            return  # the cap was lowered below what is committed: nothing is sent
        path = self.meter.folder / str(out.facts.get("file", ""))
        if not path.is_file() or _sha256(path) != out.facts.get("sha256"):
            self._delete_files(out.attempt)
            self._give_back(out, Decimal(0), "its file was gone before it was sent")
            return
        yield from self._send(out, path, left=True)

    def _look_for_the_doubted(self, out: _Out) -> None:
        """A create that was never found: late ones are adopted, and when its window has passed the money is free again."""
        out.was_doubted = True
        matches = self._find_batches(out)
        if matches:
            self._adopt(out, matches)
        elif self.now() - float(out.facts.get("fenced_at", self.now())) > WINDOW_SECONDS + MARGIN_SECONDS:
            self._give_back(out, Decimal(0), "it was never created, and its window has passed")

    def _reconcile(self, out: _Out) -> Iterator[list[Reply]]:
        """Was the batch created? Look, wait, look again, fence, look once more; only then may its questions be asked anew."""
        since = float(out.facts.get("creating_at", 0) or 0)
        fenced = out.state == "fenced"
        while True:
            matches = self._find_batches(out)
            if matches:
                self._adopt(out, matches)
                return
            left = since + self.grader.grace_seconds - self.now()
            if left > 0 and self.grader.grace_seconds > 0:
                yield from self._sleep(min(left, max(self.grader.poll_seconds, 0.05)))
                continue
            if fenced:
                break
            self._delete_files(out.attempt)
            since = self.now()
            self._note(out, "fenced", {"fenced_at": since, "creating_at": since})
            fenced = True
        self.meter.doubt(out.attempt, "the create was never confirmed; its input file is deleted")
        out.state = "doubted"
        self._ask_again(out)

    def _find_batches(self, out: _Out) -> list[Any]:
        """The batches that are this attempt's, oldest first: by input file, or by ledger and attempt in the metadata.

        The server's list says what there is, not what there is not: a page that cannot be had is no answer.
        """
        try:
            return self._list_batches(out)
        except (_Later, _Missing) as error:
            raise BackendError(f"{self.grader.host} cannot list its batches now ({error}); run again later") from error

    def _list_batches(self, out: _Out) -> list[Any]:
        oldest = float(out.facts.get("file_created_at", 0) or 0) - MARGIN_SECONDS
        found, after = [], None
        while True:
            page: Any = self.get(
                lambda after=after: self.client.batches.list(limit=100, **({"after": after} if after else {}))  # type: ignore[misc]
            )
            rows = list(page.data or [])
            for batch in rows:
                mine = getattr(batch, "metadata", None) or {}
                if (batch.input_file_id and batch.input_file_id in self._file_ids(out)) or (
                    mine.get("attempt") == out.attempt and mine.get("ledger") == self.meter.ledger
                ):
                    found.append(batch)
            last = rows[-1] if rows else None
            if last is None or not getattr(page, "has_more", False) or (last.created_at or 0) < oldest:
                return sorted(found, key=lambda batch: (batch.created_at or 0, batch.id))
            after = last.id

    def _file_ids(self, out: _Out) -> list[str]:
        return [str(i) for i in out.facts.get("file_ids", [])]

    def _adopt(self, out: _Out, matches: list[Any]) -> None:
        """Take the batches that were found as this attempt's. More than one: the oldest counts, the others are stopped."""
        import openai

        known = out.batches
        new = [batch.id for batch in matches if batch.id not in known]
        if not new:
            return
        first = matches[0]
        facts = {
            "batch_ids": known + new, "adopted": True, "batch_id": (known + new)[0],
            "batch_created_at": first.created_at, "expires_at": first.expires_at, "status": first.status,
        }  # fmt: skip
        self._note(out, "created", facts)
        for extra in (known + new)[1:]:
            if extra in new:
                try:
                    self.client.batches.cancel(extra)
                except openai.APIError:
                    continue  # it may have ended; what it cost is booked either way

    def _adopt_others(self, out: _Out) -> bool:
        """Take what else was created for this attempt. Returns whether it has more than one batch. Raises _Later."""
        try:
            matches = self._list_batches(out)
        except _Missing as error:
            raise _Later("no list of its batches") from error
        known = [b for b in matches if b.id in out.batches]
        self._adopt(out, known + [b for b in matches if b.id not in out.batches])
        return len(out.batches) > 1

    # -- sending ----------------------------------------------------------------------------------------------------

    def _canary(self) -> Iterator[list[Reply]]:
        """Ask one question synchronously, with the very body that the batch will carry."""
        if self.feed.peek() is None or self.stop is not None:
            return
        price, attempts = self.grader.price(batch=False), 0
        while (line := self.feed.next()) is not None:
            if line.request is None or line.tokens > MAX_PROMPT_TOKENS:
                self.feed.put_back([line])
                return
            most = ceiling(price, line.tokens, output_cap(line.request, self.grader.family))
            facts = {"kind": "canary", "model": self.grader.model, "input_tokens": line.tokens}
            try:
                attempt = self.meter.open([line.key], most, price.frozen(), facts)
            except BudgetExceeded as error:
                self.feed.put_back([line])
                if self._at_work():
                    return
                raise error
            except SendingStopped as error:
                self.feed.put_back([line])
                self._stop_with(error)
                return
            reply, trouble = self._ask_now(attempt, line)
            if reply.outcome == "answered" and reply.model:
                trouble = trouble or self._drift(attempt, reply.model)
            yield [reply]
            self.meter.close(attempt)
            yield []
            attempts += 1
            if trouble is not None:
                self._stop_with(trouble)
                return
            if reply.outcome == "answered":
                if not (reply.text or "").strip() and reply.finish_reason == "length":
                    cap = output_cap(line.request, self.grader.family)
                    self._stop_with(BackendError(
                        f"{self.grader.model} used all of its {cap} output tokens without an answer, and so would every row; "
                        "nothing more was sent. Take a model that can answer without thinking"
                    ))  # fmt: skip
                return
            if reply.outcome == "unknown" and attempts >= 2:
                self._stop_with(BackendError(
                    f"{self.grader.host} gave no clear answer to a first request ({reply.error}); no batch was sent"
                ))  # fmt: skip
                return
            if reply.outcome == "unknown":
                self.feed.put_back([line])
            elif attempts >= 5:
                self._stop_with(
                    BackendError(f"{self.grader.host} refused {attempts} rows one after the other: {reply.error}")
                )
                return

    def _ask_now(self, attempt: str, line: Line) -> tuple[Reply, AlpaSiftError | None]:
        """One synchronous call. Returns its reply, and an error where the same would befall every other row."""
        import openai

        assert line.request is not None
        body = body_of(line.request, self.grader.model, self.grader.family)
        waits = 0
        while True:
            try:
                raw = self.client.chat.completions.with_raw_response.create(**body)
                data = _json(raw.http_response.content)
                identity = (data or {}).get("id") or raw.http_response.headers.get("x-request-id") or attempt
                return reply_of(attempt, line.key, str(identity), data), None
            except openai.APIError as error:
                status = getattr(error, "status_code", 0)
                code, message = error_of(getattr(error, "body", None))
                if status == 429 and code not in OUT_OF_MONEY and waits < 5:
                    waits += 1
                    time.sleep(retry_after(error, max(self.grader.poll_seconds, 0.1)))
                    continue
                explained = explain(error, self.grader.base_url)
                if is_ambiguous(error):
                    return Reply(attempt, line.key, attempt, "unknown", error=f"no_answer: {explained}"), None
                reason = refusal_of(status, code, message or str(error))
                reply = Reply(attempt, line.key, attempt, "rejected_free", error=reason)
                own = reason.startswith(("too_long", "refused"))  # this row's fault, not the body's
                return reply, None if own else self._refused_body(error, explained, code, message)

    def _refused_body(self, error: Exception, explained: BackendError, code: str, message: str) -> BackendError:
        if getattr(error, "status_code", 0) in (400, 422):
            said = clean(f"{code} {message}".strip())
            return BackendError(
                f"{self.grader.model} does not take the request ({said}); it cost nothing, and no batch was sent"
            )
        return explained

    def _drift(self, attempt: str, snapshot: str) -> AlpaSiftError | None:
        before = self.meter.learned("snapshot")
        if before is not None and before != snapshot and not self.grader.allow_drift:
            return BackendError(
                f"{self.grader.model} was {before} when it graded here and is {snapshot} now: the scores may not compare. "
                "No batch was sent; --allow-drift goes on, or name the snapshot as the model"
            )
        self.meter.note(attempt, "answered", {"snapshot": snapshot})
        return None

    def _stop_with(self, error: AlpaSiftError) -> None:
        """Send nothing more; what is out is still collected, and then the error is raised."""
        self.stop = self.stop or error

    def _send_what_fits(self) -> Iterator[list[Reply]]:
        while self.stop is None and self.feed.peek() is not None:
            if len(self._at_work()) >= self.room_when_fewer > 0:
                return  # the queue was full: wait until one of ours has ended
            self.room_when_fewer = 0
            yield []  # what is in hand is kept first, so that what it gave back is free
            free, room = self.meter.free(), self._room()
            if self._at_work() and self.blocked == (free, room):
                return
            draft, kept = self._draft(free, room)
            yield from self._set_aside_long()
            if draft is None:
                if kept is None:
                    return
                self.blocked = (free, room)
                if self._at_work():
                    return
                if kept == "room":
                    self._stop_with(BackendError(
                        f"the queue of {self.grader.host} takes {room:,} prompt tokens now, fewer than one request has; "
                        "run again later"
                    ))  # fmt: skip
                    return
                self._stop_with(self._too_dear(free))
                return
            self.blocked = None
            try:
                attempt = self._open(draft)
            except (BudgetExceeded, SendingStopped) as error:
                draft.path.unlink(missing_ok=True)
                self._stop_with(error)
                return
            yield from self._send(self.out[attempt], draft.path)

    def _too_dear(self, free: Decimal) -> AlpaSiftError:
        line = self.feed.peek()
        need = line.ceiling if line is not None else Decimal(0)
        return BudgetExceeded(
            f"the next question may cost up to ${need:f} and ${max(free, Decimal(0)):f} is free; raise --budget, or settle "
            "what is unresolved (`alpasift ledger`)"
        )

    def _room(self) -> int:
        """Prompt tokens that may still be enqueued."""
        if self.limit is None:
            return 10**15
        return self.limit - sum(out.tokens for out in self._at_work())

    def _draft(self, free: Decimal, room: int) -> tuple[Draft | None, str | None]:
        """Write the next request file. None, and why, when not even one line fits, or too few to be worth a file now."""
        path = self.meter.folder / f"draft-{os.getpid()}-{time.monotonic_ns()}.jsonl"
        draft, lines = Draft(path), list[Line]()
        digest, total = hashlib.sha256(), Decimal(0)
        with path.open("wb") as file:
            path.chmod(0o600)
            while (line := self.feed.next()) is not None:
                if line.tokens > MAX_PROMPT_TOKENS or len(line.data) > MAX_BYTES:
                    self.long.append(line)
                    continue
                if len(draft.keys) >= self.grader.batch_rows:
                    draft.short_of = "rows"
                elif draft.size + len(line.data) > MAX_BYTES:
                    draft.short_of = "bytes"
                elif total + line.ceiling > free:
                    draft.short_of = "money"
                elif draft.tokens + line.tokens > room:
                    draft.short_of = "room"
                if draft.short_of:
                    self.feed.put_back([line])
                    break
                if len(lines) < SMALLEST_FILE:
                    lines.append(line)
                draft.keys.append(line.key)
                draft.ceilings.append(line.ceiling)
                draft.tokens += line.tokens
                draft.size += len(line.data)
                total += line.ceiling
                file.write(line.data)
                digest.update(line.data)
            file.flush()
            os.fsync(file.fileno())
        waits = draft.short_of in ("money", "room") and self._at_work() and len(draft.keys) < SMALLEST_FILE
        if not draft.keys or waits:
            if waits:
                self.feed.put_back(lines)
            path.unlink()
            return None, draft.short_of or None
        draft.sha256 = digest.hexdigest()
        final = path.with_name(f"requests-{draft.sha256[:24]}-{time.time_ns():x}.jsonl")
        path.rename(final)
        draft.path = final
        return draft, None

    def _set_aside_long(self) -> Iterator[list[Reply]]:
        if self.long:
            attempt = self.meter.open([line.key for line in self.long], Decimal(0))
            yield [
                Reply(
                    attempt, line.key, attempt, "rejected_free", error=f"too_long: up to {line.tokens:,} prompt tokens"
                )
                for line in self.long
            ]
            self.meter.close(attempt)
            self.long = []

    def _open(self, draft: Draft) -> str:
        price = self.grader.price(batch=True).frozen()
        facts = {
            "kind": "batch", "backend": "openai_batch", "base_url": self.grader.base_url, "model": self.grader.model,
            "file": draft.path.name, "sha256": draft.sha256, "bytes": draft.size, "input_tokens": draft.tokens,
            "price": price, "stands_for": self.grader.stands_for,
        }  # fmt: skip
        attempt = self.meter.open(draft.keys, draft.ceilings, price, facts, outlives=True)
        self.out[attempt] = _Out(attempt, facts, "opened")
        return attempt

    def _note(self, out: _Out, state: str, facts: Mapping[str, Any]) -> None:
        self.meter.note(out.attempt, state, facts)
        out.state = state
        out.facts.update(facts)

    def _file_name(self, attempt: str) -> str:
        return f"alpasift-{self.meter.ledger}-{attempt}.jsonl"

    def _send(self, out: _Out, path: Path, *, left: bool = False) -> Iterator[list[Reply]]:
        """Upload the file and create the batch. `left` by an earlier process, it may have been uploaded already."""
        found = self._uploads(out.attempt) if left else []
        whole = [f for f in found if f.bytes == path.stat().st_size]
        for part in found:
            if part not in whole[:1]:
                self._delete(part.id)
        yield from self._create(out, whole[0] if whole else self._upload(out, path))

    def _upload(self, out: _Out, path: Path) -> Any:
        """The server's file object. An upload costs nothing; one that may have arrived is looked for before another try."""
        import openai

        for _ in range(3):
            try:
                with path.open("rb") as file:
                    made = self.client.files.create(
                        file=(self._file_name(out.attempt), file), purpose="batch", timeout=900.0
                    )
                if getattr(made, "id", None):
                    return made
            except openai.APIError as error:
                code, _ = error_of(getattr(error, "body", None))
                if not is_ambiguous(error) and getattr(error, "status_code", 0) != 429:
                    self._give_back(out, Decimal(0), "the server refused its file")
                    raise explain(error, self.grader.base_url) from error
                if code in OUT_OF_MONEY:
                    self._give_back(out, Decimal(0), "the server refused its file")
                    raise explain(error, self.grader.base_url) from error
                time.sleep(min(retry_after(error, self.grader.poll_seconds), 60.0))
            found = [f for f in self._uploads(out.attempt) if f.bytes == path.stat().st_size]
            if found:
                return found[0]
        raise BackendError(
            f"{self.grader.host} does not take the file of {path.stat().st_size:,} bytes; nothing was created and its money "
            "stays reserved: run again to go on"
        )

    def _uploads(self, attempt: str) -> list[Any]:
        """The files on the server that carry this attempt's name."""
        name = self._file_name(attempt)
        try:
            found, after = [], None
            while True:
                more: dict[str, Any] = {"after": after} if after else {}
                page: Any = self.get(
                    lambda more=more: self.client.files.list(purpose="batch", limit=1000, order="desc", **more)  # type: ignore[misc]
                )
                rows = list(page.data or [])
                found += [f for f in rows if getattr(f, "filename", None) == name]
                if not rows or not getattr(page, "has_more", False):
                    break
                after = rows[-1].id
        except (_Later, _Missing) as error:
            raise BackendError(f"{self.grader.host} cannot list its files now ({error}); run again later") from error
        return sorted(found, key=lambda f: (f.created_at or 0, f.id))

    def _delete(self, file_id: str) -> None:
        import openai

        try:
            self.client.files.delete(file_id)
        except openai.APIError:
            return  # gone already, or the next look finds it again

    def _delete_files(self, attempt: str) -> None:
        """Delete every input file of an attempt, so that a create which arrives late must fail."""
        for file in self._uploads(attempt):
            self._delete(file.id)

    def _create(self, out: _Out, file: Any) -> Iterator[list[Reply]]:
        import openai

        facts = {"file_ids": [file.id], "file_created_at": file.created_at, "creating_at": self.now()}
        self._note(out, "creating", facts)
        metadata = {"ledger": self.meter.ledger, "attempt": out.attempt, "sha256": str(out.facts.get("sha256", ""))}
        for _ in range(6):
            try:
                made = self.client.batches.create(
                    input_file_id=self._file_ids(out)[0],
                    endpoint="/v1/chat/completions",
                    completion_window="24h",
                    metadata=metadata,
                )
                if getattr(made, "id", None):
                    self._note(out, "created", {
                        "batch_ids": [made.id], "batch_id": made.id, "batch_created_at": made.created_at,
                        "expires_at": made.expires_at, "status": made.status,
                    })  # fmt: skip
                    return
                break  # a 200 that is no batch: it may stand on the server all the same
            except openai.APIError as error:
                if is_ambiguous(error):
                    break
                code, message = error_of(getattr(error, "body", None))
                status = getattr(error, "status_code", 0)
                if code in OUT_OF_MONEY:
                    self._give_back(out, Decimal(0), "the account has no money left")
                    self._stop_with(explain(error, self.grader.base_url))
                    return
                if status == 429:
                    yield from self._sleep(retry_after(error, max(self.grader.poll_seconds, 0.05)))
                    continue
                if "file" in message.lower() and (
                    "find" in message.lower() or "exist" in message.lower() or status == 404
                ):
                    if self._find_batches(out):
                        break
                    yield from self._sleep(self.grader.poll_seconds)
                    if not self._uploads(out.attempt):
                        self._ask_again_free(out, "its file had vanished from the server")
                        return
                    continue
                self._delete(file.id)
                self._give_back(out, Decimal(0), "the server refused to create it")
                self._stop_with(explain(error, self.grader.base_url))
                return
        else:
            self._give_back(out, Decimal(0), "the server refused to create it again and again")
            self._stop_with(BackendError(f"{self.grader.host} takes no more batches now (429); run again later"))
            return
        self._note(out, "unknown", {})
        yield from self._reconcile(out)

    # -- what comes back ------------------------------------------------------------------------------------------

    def _look_round(self) -> Iterator[list[Reply]]:
        """Ask after every batch that is out, once."""
        for out in list(self._at_work()):
            try:
                yield from self._look_after(out)
            except _Later as error:
                self._say(out, f"no clear answer now ({error})")
        self._tell()

    def _tell(self) -> None:
        parts = []
        for out in self._at_work():
            counts = f" {out.counts[1] + out.counts[2]:,} of {out.counts[0]:,}" if out.counts else ""
            parts.append(f"{out.status or out.state}{counts}")
        self.says = (
            f"{len(parts)} batches out: {', '.join(parts[:3])}{', ...' if len(parts) > 3 else ''}" if parts else ""
        )
        self.grader.says = self.says

    def _look_after(self, out: _Out) -> Iterator[list[Reply]]:
        for batch_id in out.batches:
            if batch_id in out.done:
                continue
            try:
                batch = self.get(lambda batch_id=batch_id: self.client.batches.retrieve(batch_id), patient=False)  # type: ignore[misc]
            except _Missing:
                self._not_found(out, batch_id)
                continue
            out.not_found = 0
            self._note_progress(out, batch)
            if batch.status in TERMINAL:
                yield from self._ended(out, batch)
                if out.attempt not in self.out:
                    return
            elif batch.expires_at and self.now() > batch.expires_at + MARGIN_SECONDS and not out.told_late:
                out.told_late = True
                self._say(out, f"still {batch.status} after its window; its money stays reserved")
        if out.batches and set(out.batches) <= out.done:
            yield from self._finish(out)

    def _not_found(self, out: _Out, batch_id: str) -> None:
        """404 for a batch that we saw created proves nothing: another key or project, or a list that lags."""
        out.not_found += 1
        if out.not_found >= 3:
            self.meter.alarm(
                out.attempt, "batch_not_found",
                f"{self.grader.host} says that batch {batch_id} does not exist, though it was created; another key or project?",
            )  # fmt: skip
            self._note(out, "lost", {"says": f"404 for {batch_id}"})

    def _note_progress(self, out: _Out, batch: Any) -> None:
        counts = _counts(batch)
        if counts is not None:
            out.counts = counts
        if batch.status != out.status or out.state not in ("in_batch", "cancelling"):
            out.status = str(batch.status)
            state = "cancelling" if out.cancelled else "in_batch"
            self._note(out, state, {
                "status": out.status, "counts": list(counts) if counts else None, "expires_at": batch.expires_at,
                "seen_at": self.now(),
            })  # fmt: skip

    def _say(self, out: _Out, text: str) -> None:
        if out.facts.get("says") != text:
            self._note(out, out.state, {"says": text})

    def _ended(self, out: _Out, batch: Any) -> Iterator[list[Reply]]:
        """One batch is over: bring its files and read them. Money follows the lines."""
        output = getattr(batch, "output_file_id", None) or None
        errors = getattr(batch, "error_file_id", None) or None
        counts = _counts(batch)
        completed = counts[1] if counts else 0
        if batch.status == "failed" and not output and not completed:
            self._failed(out, batch)
            return
        if not output and completed > 0:
            ended = batch.completed_at or batch.cancelled_at or batch.expired_at or batch.failed_at or self.now()
            out.polls_without_output += 1
            if out.polls_without_output < LAG_POLLS and self.now() - ended < LAG_SECONDS:
                return  # the file's id lags behind the status
        paths = []
        for file_id, kind in ((output, "output"), (errors, "errors")):
            try:
                paths += [self._download(out, str(file_id), kind)] if file_id else []
            except _Missing:
                if kind == "output":
                    yield from self._gone(out, batch, completed)
                    return  # without the file of errors its lines are in no file
        if out.found is None:
            out.found = Found(self.meter.lines(out.attempt))
        for path in paths:
            yield from read_results(path, out.attempt, out.found)
        out.done.add(batch.id)
        facts: dict[str, Any] = {
            "ended": {
                **out.facts.get("ended", {}),
                batch.id: {"status": batch.status, "completed": completed, "counted": counts is not None},
            }
        }
        if batch.status == "failed" and batch.id == out.batches[0]:
            facts["says"] = self._errors(batch)[1]
        self._note(out, "collected", {**facts, **out.found.facts()})

    def _download(self, out: _Out, file_id: str, kind: str) -> Path:
        """Bring a result file whole, under its final name. Raises _Later, _Missing; a part is never taken for the whole."""
        import openai

        final = self.meter.folder / f"{out.attempt}-{_safe(file_id)}-{kind}.jsonl"
        if final.exists():
            return final
        part = final.with_suffix(".part")
        for number in range(4):
            try:
                with self.client.files.with_streaming_response.content(file_id, timeout=600.0) as response:
                    expected = response.headers.get("content-length")
                    size, last = 0, b"\n"
                    with part.open("wb") as file:
                        part.chmod(0o600)
                        for piece in response.iter_bytes(1 << 20):
                            file.write(piece)
                            size += len(piece)
                            last = piece[-1:] or last
                        file.flush()
                        os.fsync(file.fileno())
            except openai.APIStatusError as error:
                part.unlink(missing_ok=True)
                if error.status_code == 404:
                    raise _Missing from error
                if error.status_code in (401, 403):
                    raise explain(error, self.grader.base_url) from error
                raise _Later(f"{kind} file: {clean(str(error))}") from error
            except _broken_off() as error:
                part.unlink(missing_ok=True)
                if number == 3:
                    raise _Later(f"{kind} file: the download breaks off") from error
                continue
            encoded = response.headers.get("content-encoding")
            stated = self._stated_size(file_id)
            whole = (encoded or expected is None or size == int(expected)) and stated in (None, size)
            if whole and (stated is not None or last == b"\n" or size == 0 or number == 3):
                part.rename(final)
                _sync_folder(final.parent)
                return final
            part.unlink(missing_ok=True)
        raise _Later(f"{kind} file: the download is shorter than it should be")

    def _stated_size(self, file_id: str) -> int | None:
        try:
            size = getattr(self.get(lambda: self.client.files.retrieve(file_id), patient=False), "bytes", None)
        except (_Later, _Missing):
            return None
        return size if isinstance(size, int) and not isinstance(size, bool) and size > 0 else None

    def _gone(self, out: _Out, batch: Any, completed: int) -> Iterator[list[Reply]]:
        """The results are gone from the server before we had them: what they cost is known from its totals at best."""
        several = self._adopt_others(out)
        price = thaw(out.facts["price"]) if "price" in out.facts else None
        usage = getattr(batch, "usage", None)
        usd: Decimal | None = None
        counted: dict[str, Any] = {}
        if usage is not None and price is not None and price.cache_write <= price.input:
            try:
                counted = {
                    "prompt_tokens": usage.input_tokens, "completion_tokens": usage.output_tokens,
                    "prompt_tokens_details": {"cached_tokens": getattr(usage.input_tokens_details, "cached_tokens", 0)},
                }  # fmt: skip
                usd = charge(price, counted) if usage.total_tokens else None
            except (UsageError, AttributeError):
                usd = None
        why = f"the results of batch {batch.id} are gone from the server (404)"
        self.meter.alarm(out.attempt, "results_lost", why)
        if usd is not None and not several:
            self._give_back(out, usd, f"{why}; charged by the usage of the whole batch")
        else:
            if usd is not None:  # one of several: what it cost is booked beside what the others answer
                yield [
                    Reply(out.attempt, stray_key(batch.id), batch.id, "answered", usage=counted, error=f"gone: {why}")
                ]
            out.done.add(batch.id)
            ended = {
                **out.facts.get("ended", {}),
                batch.id: {"status": batch.status, "completed": completed, "counted": True},
            }
            self._note(out, "collected", {"ended": ended, "says": why})
            if out.found is None:
                out.found = Found(self.meter.lines(out.attempt))

    def _errors(self, batch: Any) -> tuple[str, str]:
        """(code, what was said) of a batch that failed."""
        data = getattr(getattr(batch, "errors", None), "data", None) or []
        first = data[0] if data else None
        code = str(getattr(first, "code", "") or "")
        line = getattr(first, "line", None)
        where = f"line {line}: " if line else ""
        return code, clean(f"{code}: {where}{getattr(first, 'message', '') or 'no reason given'}")

    def _failed(self, out: _Out, batch: Any) -> None:
        """Nothing was run. Too many tokens in the queue is a matter of time; no money stops all; the rest is our fault."""
        code, said = self._errors(batch)
        several = self._adopt_others(out)
        out.done.add(batch.id)
        if several:  # the others decide
            nothing = {batch.id: {"status": "failed", "completed": 0, "counted": True}}
            self._note(out, out.state, {"ended": {**out.facts.get("ended", {}), **nothing}, "says": said})
            return
        if code == "token_limit_exceeded":
            self._queue_full(out, said)
            return
        self._note(out, "failed", {"says": said})
        if out.facts.get("adopted") and not out.was_doubted and code not in OUT_OF_MONEY:
            self._ask_again(out)  # a create that came late and found its file deleted
        self._give_back(out, Decimal(0), f"the batch failed: {said}", keep_file=bool(out.facts.get("adopted")))
        if code in OUT_OF_MONEY:
            self._stop_with(BackendError(f"{self.grader.host}: {said}; add credit there, then run again"))
        elif out.facts.get("adopted"):
            return
        else:
            self._stop_with(
                BackendError(f"{self.grader.host} refused a batch ({said}); it cost nothing, and it is not sent again")
            )

    def _queue_full(self, out: _Out, said: str) -> None:
        """The organisation's queue is full: with work of ours out, wait for it; with none, try half of this at once."""
        stated = _stated_limit(said)
        facts = {"says": said, **({"enqueued_limit": stated} if stated else {})}
        self._note(out, "failed", facts)
        others = [o for o in self._at_work() if o.attempt != out.attempt]
        if stated is not None:
            self.limit = min(stated, self.limit or stated)
        if others:
            self.room_when_fewer = len(others)
        else:
            half = max(1, out.tokens // 2)
            self.limit = min(half, self.limit) if self.limit is not None else half
        self._ask_again_free(out, f"the queue was full: {said}")

    def _ask_again(self, out: _Out) -> None:
        """Queue the lines of an attempt for a new one; its file stays until that is written. Who only collects asks nothing."""
        path = self.meter.folder / str(out.facts.get("file", ""))
        if not self.sends:
            self._drop_file(out)
        elif path.is_file():
            self.send_at_once = True
            self.feed.send_again(_lines_of(path, self.meter.lines(out.attempt), out.tokens))

    def _ask_again_free(self, out: _Out, why: str) -> None:
        self._ask_again(out)
        self._give_back(out, Decimal(0), why, keep_file=True)

    def _give_back(self, out: _Out, usd: Decimal, why: str, *, keep_file: bool = False) -> None:
        """End an attempt as a whole."""
        self.meter.settle(out.attempt, usd, why)
        self.out.pop(out.attempt, None)
        if not keep_file:
            self._drop_file(out)

    def _drop_file(self, out: _Out) -> None:
        name = str(out.facts.get("file", ""))
        if name:
            (self.meter.folder / name).unlink(missing_ok=True)

    def _finish(self, out: _Out) -> Iterator[list[Reply]]:
        """All batches of an attempt are read: look for others of its, then say of each line what became of it."""
        known = out.batches
        try:
            self._adopt_others(out)
        except _Later:
            return
        if out.batches != known:
            return
        found = out.found or Found(self.meter.lines(out.attempt))
        missing = {key: usd for key, usd in found.asked.items() if key not in found.answered}
        ended = list(out.facts.get("ended", {}).values())
        yield from self._missing(out, missing, ended, len(found.executed))
        self.meter.close(out.attempt)
        self.out.pop(out.attempt, None)
        yield []
        self._drop_file(out)

    def _missing(
        self, out: _Out, missing: Mapping[str, Decimal], ended: list[Mapping[str, Any]], executed: int
    ) -> Iterator[list[Reply]]:
        """Lines in no file. Never free unless the batch was stopped and its counts account for every line it ran."""
        stopped = [e for e in ended if e["status"] in ("cancelled", "failed")]
        countable = bool(ended) and len(stopped) == len(ended) and all(e["counted"] for e in ended)
        unseen = max(0, sum(e["completed"] for e in ended) - executed) if countable else len(missing)
        dearest = sorted(missing, key=lambda key: (-missing[key], key))
        for start in range(0, len(dearest), 1000):
            yield [
                Reply(out.attempt, key, f"{out.attempt}-missing", "unknown", error="missing: in no result file")
                if start + i < unseen
                else Reply(
                    out.attempt, key, f"{out.attempt}-missing", "rejected_free", error="cancelled: it was not run"
                )
                for i, key in enumerate(dearest[start : start + 1000])
            ]


def _lines_of(path: Path, ceilings: Mapping[str, Decimal], tokens: int) -> Iterator[Line]:
    """The lines of a request file that was written before; the file is deleted when they have been read."""
    each = -(-tokens // max(1, len(ceilings)))
    with path.open("rb") as file:
        for data in file:
            key = orjson.loads(data)["custom_id"]
            yield Line(key, ceilings[key], each, data)
    path.unlink(missing_ok=True)


def _checked(answer: _T) -> _T:
    """The same answer. Raises _Later for one that is no object of the API: a web page of a proxy, for instance."""
    if isinstance(answer, str | bytes):
        raise _Later("a web page instead of an answer")
    return answer


def _json(data: bytes) -> dict[str, Any] | None:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _counts(batch: Any) -> tuple[int, int, int] | None:
    """(total, completed, failed) of a batch, None where it does not say or says nonsense."""
    counts = getattr(batch, "request_counts", None)
    numbers = [getattr(counts, name, None) for name in ("total", "completed", "failed")]
    plain = [n for n in numbers if isinstance(n, int) and not isinstance(n, bool) and n >= 0]
    return (plain[0], plain[1], plain[2]) if len(plain) == 3 else None


def _stated_limit(text: str) -> int | None:
    """The limit that a token_limit_exceeded message names."""
    match = re.search(r"[Ll]imit:\s*([\d,]+)\s*enqueued", text)
    return int(match[1].replace(",", "")) if match else None


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)[:100]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _broken_off() -> tuple[type[Exception], ...]:
    """What a download that breaks off raises: the client's errors, and those of its transport, which it does not translate."""
    import openai

    try:
        module = import_module("httpx2")
    except ImportError:
        module = import_module("httpx")
    return (openai.APIError, module.HTTPError, module.StreamError)
