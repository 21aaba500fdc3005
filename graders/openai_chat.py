"""Any OpenAI-compatible server as a grader, call by call: the answer is there in a second, at the full price.

Knows how to keep calls in flight and what each way of failing means; nothing of tables or rubrics. What it may spend it
asks of the meter. A call is an attempt of its own, committed with its ceiling before a byte of it is sent; its slot is
used again only when its reply is committed, so a death loses at most what is in flight. Intents go many at a time, in
the one commit that also keeps the replies in hand:

    gather what has come -> yield it -> close those attempts -> open as many as slots are free -> send

A server that costs nothing has no intents to keep apart: its questions are opened by the block.

What an answer means for the money:

    200 with usage                                    answered; the ledger charges it
    400, 422 and such, or no connection was made      refused: it cost nothing
    429                                               not taken: the same call goes again when the server's pause is over
    timeout, 408, 409, 5xx, a broken line,            unknown: its ceiling stays unresolved, and within this attempt it
    200 without usage                                 is not repeated, for it may have been carried out

The first call goes alone, and so does each after the server has failed some times in a row: a model that refuses the
body, or a server that is down, then costs one call and not a slotful. The grader has the name and the fingerprint of
`openai_batch`: by which way a question went is recorded and not hashed, so what one has answered the other leaves out.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graders import AlpaSiftError, BackendError, BackendUnavailable, BudgetExceeded, Estimate, Meter, Reply, Request
from graders.openai_api import (
    BODY,
    OUT_OF_MONEY,
    base_url_of,
    body_of,
    call_arguments,
    cannot,
    check_model,
    clean,
    connect,
    constrained,
    error_of,
    expected_output,
    explain,
    family_of,
    host_of,
    is_ambiguous,
    is_loopback,
    never_sent,
    output_cap,
    refusal_of,
    reply_of,
    retry_after,
)
from graders.openai_api import lacks as lacks
from graders.prices import MAX_PROMPT_TOKENS, Price, UnknownPrice, age_warning, ceiling, price_of
from graders.tokens import bound, tokenizer_for

if TYPE_CHECKING:
    import openai

OPTIONS = ("base_url", "in_flight", "prices", "allow_drift", "stands_for", "constrain")
IN_FLIGHT = 8
MOST_IN_FLIGHT = 512
SECONDS_A_CALL = 1.0
"""Assumed for a plan; nobody knows before the first call."""
TIMEOUT = 600.0
"""Seconds for one answer. Long, since the price of giving up is money that stays unresolved."""
HEARTBEAT = 0.5
GATHER = 0.02
"""Seconds to wait for others after the first reply has come: one commit then keeps them all."""
BLOCK = 500
"""The most questions that are opened in one commit."""
WAITS = 6
"""How often one call is put off by a 429 before it is given up."""
FAILURES = 3
"""Calls in a row without a clear answer after which the next goes alone."""
PAUSES = (1.0, 4.0, 15.0, 30.0)
"""Seconds before the first, second, ... call that goes alone after failures. When the last of them fails too, it ends."""
REFUSALS = 10
"""Refusals in a row that no single row explains, after which the next goes alone and ends the run if it is refused too."""
LAST_WORDS = 10.0
"""Seconds that an interrupted run waits for what is in flight: it is paid for already."""


def open(
    argument: str | None,
    *,
    base_url: str | None = None,
    in_flight: int = IN_FLIGHT,
    prices: str | None = None,
    allow_drift: bool = False,
    stands_for: str | None = None,
    constrain: str = "auto",
) -> OpenAIChat:
    """The grader openai_chat:MODEL. Sends nothing. Raises BackendError for a bad name, address or option.

    `stands_for` is the address whose place a rehearsal's server takes: model, price and identity are that one's.
    """
    model = check_model(argument, "openai_chat")
    if not 1 <= in_flight <= MOST_IN_FLIGHT:
        raise BackendError(f"--in-flight {in_flight}: 1 to {MOST_IN_FLIGHT} calls at a time")
    url = base_url_of(base_url)
    host = host_of(stands_for or url)
    return OpenAIChat(model, url, host, in_flight, Path(prices) if prices else None, allow_drift, constrain)


class OpenAIChat:
    """See the head of this module."""

    remarks: tuple[str, ...] = ()

    def __init__(
        self,
        model: str,
        base_url: str,
        host: str,
        in_flight: int,
        prices: Path | None,
        allow_drift: bool,
        constrain: str = "auto",
    ) -> None:
        self.model, self.base_url, self.host = model, base_url, host
        self.in_flight, self.prices, self.allow_drift = in_flight, prices, allow_drift
        self.pauses = PAUSES
        self.family = constrained(family_of(model, host), constrain)
        self.name = f"openai:{model}"
        self.fingerprint = {"api": "chat", "body": BODY, "host": host, "model": model}
        if constrain != "auto":
            self.fingerprint["constrain"] = constrain
        self.facts: Mapping[str, str] = {"by": "chat", "base_url": base_url, "in_flight": str(in_flight)}
        self.leaves_machine = "nothing" if is_loopback(host_of(base_url)) else f"rows and rubric, to {host}"
        self._price: Price | None = None
        try:
            price = self.price()
            self.paid = any((price.input, price.output, price.cached_input, price.cache_write))
        except UnknownPrice:  # told when somebody wants an estimate
            self.paid = True

    def price(self) -> Price:
        """The price of a single call. Raises UnknownPrice for a model without one."""
        if self._price is None:
            self._price = price_of(self.model, host=self.host, batch=False, overrides=self.prices)
        return self._price

    def refuses(self, rubric: str) -> str | None:
        return "the rubric `rules` is answered by the grader `rules` only" if rubric == "rules" else None

    def cannot(self, request: Request) -> str | None:
        return cannot(request, self.model, self.host, self.family)

    def tokens_of(self, request: Request) -> int:
        """The most prompt tokens that a request can be billed for."""
        extra = 40 + 4 * len(request.choices or ()) if self.family.structured else 0
        return bound(request.messages, self.model, self.host, extra=extra)

    def estimate(self, requests: Iterable[Request]) -> Estimate:
        """What it should cost and take. Counts every prompt; raises UnknownPrice for a model without a price."""
        price = self.price()
        count = tokens = output = 0
        usd = top = Decimal(0)
        for request in requests:
            size, expected = self.tokens_of(request), expected_output(request, self.family)
            count, tokens, output = count + 1, tokens + size, output + expected
            usd += size * price.input + expected * price.output
            top += ceiling(price, size, output_cap(request, self.family))
        tokenizer = tokenizer_for(self.model, self.host)
        notes = [f"{self.in_flight} calls at a time, and {SECONDS_A_CALL:g} s assumed for each"]
        notes += [] if tokenizer.exact else [tokenizer.how]
        old = age_warning(price, datetime.now(UTC).date(), self.model)
        spread = Decimal("0.9")  # the bound counts a little more than a tokenizer
        return Estimate(
            count, usd, usd * spread, min(top, usd * 2), top, count * SECONDS_A_CALL / self.in_flight, tokens, output,
            sync_usd=usd, notes=(*notes, *([old] if old else [])),
        )  # fmt: skip

    def answer(self, requests: Iterable[Request], meter: Meter) -> Iterator[list[Reply]]:
        yield from _Desk(self, requests, meter).answer()

    def close(self) -> None:
        """Nothing to give back; threads and sockets live as long as one answer."""


@dataclass(slots=True)
class _Call:
    """One request on its way, and the most it may cost. `alone`: nothing else was in flight when it was sent."""

    request: Request
    tokens: int
    ceiling: Decimal
    body: Mapping[str, Any]
    attempt: str = ""
    alone: bool = False
    sent_at: float = 0.0
    waits: int = 0
    put_off_at: float = 0.0

    @property
    def too_long(self) -> bool:
        return self.tokens > MAX_PROMPT_TOKENS


@dataclass(frozen=True, slots=True)
class _Came:
    """How a call ended: with a body, with an error, or (neither) not sent, since the server has asked for a pause."""

    call: _Call
    content: bytes | None = None
    request_id: str | None = None
    error: Exception | None = None


class _Callers:
    """Threads that make calls, one each at a time. Daemons: a call that hangs keeps no process alive."""

    def __init__(self, make: Callable[[_Call], _Came]) -> None:
        self.make = make
        self.threads = self.busy = 0
        self._todo: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[_Came] = queue.SimpleQueue()

    def send(self, call: _Call) -> None:
        if self.busy == self.threads:
            threading.Thread(target=self._work, name="openai_chat", daemon=True).start()
            self.threads += 1
        self.busy += 1
        self._todo.put(call)

    def gather(self, seconds: float) -> list[_Came]:
        """Wait up to `seconds` for the first call to end, then a moment for others. Empty when none has."""
        came: list[_Came] = []
        until = time.monotonic() + seconds
        while self.busy:
            left = until - time.monotonic()
            try:
                came.append(self._done.get(timeout=left) if left > 0 else self._done.get_nowait())
            except queue.Empty:
                break
            self.busy -= 1
            if len(came) == 1:
                until = time.monotonic() + GATHER
        return came

    def stop(self) -> None:
        for _ in range(self.threads):
            self._todo.put(None)

    def _work(self) -> None:
        while (call := self._todo.get()) is not None:
            self._done.put(self.make(call))


class _Desk:
    """One process at work with one meter.

    out      calls with an open attempt whose reply has not been yielded: in flight, or `waiting` for a slot or a pause
    left     of attempts that hold more than one call, how many of these have not come back
    width    how many may be out; falls by half when the server says too many, and rises again with its answers
    alone    the next call goes when nothing else is in flight, and decides whether others follow
    short    the caps held no room for another call; tried again when a reply has given some of its ceiling back
    before   the snapshot that graded here before; `snapshot` is one to be noted, with its attempt
    """

    def __init__(self, grader: OpenAIChat, requests: Iterable[Request], meter: Meter) -> None:
        self.grader, self.meter = grader, meter
        self.requests = iter(requests)
        self.back: deque[_Call] = deque()
        self.waiting: deque[_Call] = deque()
        self.left: dict[str, int] = {}
        self.out = 0
        self.width = float(grader.in_flight)
        self.alone, self.proven = True, False
        self.failures = self.tries = self.refusals = self.set_aside = 0
        self.answered_at = self.narrowed_at = 0.0
        self.short: BudgetExceeded | None = None
        self.stop: AlpaSiftError | None = None
        self.before: Any = None
        self.snapshots: set[str] = set()
        self.snapshot: tuple[str, str] | None = None
        self.callers = _Callers(self._make)
        self._client: openai.OpenAI | None = None
        self._paused = threading.Lock()
        self._pause_until = 0.0

    def answer(self) -> Iterator[list[Reply]]:
        """See `Backend.answer`. However it ends, nothing that was answered is thrown away."""
        if not self._read_ahead(1):
            return
        try:
            yield []
            self._greet()
            self.before = self.meter.learned("snapshot")
            while True:
                yield from self._send()
                trouble = self.stop or self.short
                if not self.out and trouble is not None:
                    raise trouble
                if not self.out and not self._read_ahead(1):
                    return
                yield from self._receive()
        except KeyboardInterrupt:
            yield from self._take_in(LAST_WORDS)
            raise
        except AlpaSiftError:  # a database that cannot be written now, an alarm: what is out is paid for
            yield from self._take_in(2 * TIMEOUT)
            raise
        finally:
            self.callers.stop()
            if self._client is not None and not self.callers.busy:
                self._client.close()

    # -- the server -------------------------------------------------------------------------------------------------

    def _greet(self) -> None:
        """Ask something that costs nothing: a wrong address or key is told here.

        A server may lack the list of models, or not show it to this key; the first call then tells.
        """
        import openai

        self._client = connect(self.grader.base_url, timeout=TIMEOUT)
        try:
            raw = self._client.models.with_raw_response.list(timeout=20.0)
        except openai.APIStatusError as error:
            if error.status_code == 401:
                raise explain(error, self.grader.base_url) from error
            return
        except openai.APIError as error:
            raise explain(error, self.grader.base_url) from error
        if raw.http_response.content.lstrip()[:1] not in (b"{", b"["):
            raise BackendUnavailable(
                f"{self.grader.host} does not answer as the API does (a web page?); look at --base-url"
            )

    def _make(self, call: _Call) -> _Came:
        """Make one call, in a thread of its own. Never raises: what went wrong is an answer too."""
        import openai

        assert self._client is not None
        if self._pause() > 0:
            return _Came(call)
        try:
            raw = self._client.chat.completions.with_raw_response.create(**call_arguments(call.body))
            response = raw.http_response
            return _Came(call, response.content, response.headers.get("x-request-id"))
        except openai.APIStatusError as error:
            if error.status_code == 429:
                self._pause_for(retry_after(error, min(2.0**call.waits, 60.0)))
            elif error.status_code == 503:
                self._pause_for(retry_after(error, 0.0))
            return _Came(call, error=error)
        except Exception as error:  # noqa: BLE001  a thread that dies would leave its call open for ever
            return _Came(call, error=error)

    def _pause(self) -> float:
        """Seconds for which nothing is to be sent."""
        return self._pause_until - time.monotonic()

    def _pause_for(self, seconds: float) -> None:
        with self._paused:
            self._pause_until = max(self._pause_until, time.monotonic() + seconds)

    # -- sending ----------------------------------------------------------------------------------------------------

    def _send(self) -> Iterator[list[Reply]]:
        """Fill the free slots: with what waits for one, else with new calls."""
        if self.stop is not None or self._pause() > 0:
            return
        slots = 1 if self.alone else int(self.width)
        if not self.waiting and self.callers.busy < slots and not (self.short and self.out):
            yield from self._open(slots - self.callers.busy if self.grader.paid else BLOCK)
        while self.waiting and self.callers.busy < slots:
            call = self.waiting.popleft()
            call.alone, call.sent_at = self.alone, time.monotonic()
            self.callers.send(call)

    def _open(self, count: int) -> Iterator[list[Reply]]:
        """Commit the intents of that many more calls, as far as the caps hold them; yields those too long to be sent."""
        calls = self._read_ahead(count)
        if not calls:
            return
        try:
            attempts = self._attempts(calls)
        except BudgetExceeded as error:
            self.short = error
            return
        long = []
        for attempt in attempts:
            call = self.back.popleft()
            call.attempt = attempt
            self.out += 1
            if call.too_long:
                said = f"too_long: up to {call.tokens:,} prompt tokens, and {MAX_PROMPT_TOKENS:,} are the most"
                long.append(self._free(call, said))
            else:
                self.waiting.append(call)
        if long:
            yield from self._hand_over(long)

    def _attempts(self, calls: list[_Call]) -> list[str]:
        """The attempt of each of these calls, from the first on, as many as fit; raises BudgetExceeded when none does."""
        facts = {"kind": "call", "model": self.grader.model}
        if self.grader.paid:
            price = self.grader.price().frozen()
            return self.meter.open_many([(call.request.key, call.ceiling) for call in calls], price, facts)
        attempt = self.meter.open([call.request.key for call in calls], Decimal(0), None, facts)
        self.left[attempt] = len(calls)
        return [attempt] * len(calls)

    def _read_ahead(self, count: int) -> list[_Call]:
        """The next questions: so many that can be sent, and those among them that are too long for that."""
        calls: list[_Call] = []
        while count > 0 and len(calls) < BLOCK:
            call = self.back.popleft() if self.back else self._next()
            if call is None:
                break
            calls.append(call)
            count -= not call.too_long
        self.back.extendleft(reversed(calls))
        return calls

    def _next(self) -> _Call | None:
        request = next(self.requests, None)
        if request is None:
            return None
        grader = self.grader
        tokens = grader.tokens_of(request)
        usd = Decimal(0)
        if tokens <= MAX_PROMPT_TOKENS:
            usd = ceiling(grader.price(), tokens, output_cap(request, grader.family))
        return _Call(request, tokens, usd, body_of(request, grader.model, grader.family))

    # -- receiving --------------------------------------------------------------------------------------------------

    def _receive(self) -> Iterator[list[Reply]]:
        """Wait for replies, half a second at most, and hand them over; an empty list when none has come."""
        seconds, pause = HEARTBEAT, self._pause()
        if pause > 0 and self.waiting:
            seconds = min(seconds, pause)
        if not self.callers.busy:  # a pause is all that can keep slots empty
            time.sleep(min(HEARTBEAT, max(0.0, pause)))
        replies = [reply for came in self.callers.gather(seconds) if (reply := self._judge(came)) is not None]
        if self.stop is not None:
            replies += self._give_up()
        yield from self._hand_over(replies)

    def _hand_over(self, replies: list[Reply]) -> Iterator[list[Reply]]:
        """Yield replies, then close the attempts that end with them: both are committed with the next intents."""
        self.out -= len(replies)
        if replies:
            self.short = None
        yield replies
        if self.snapshot is not None:
            (attempt, snapshot), self.snapshot = self.snapshot, None
            self.meter.note(attempt, "answered", {"snapshot": snapshot})
        for reply in replies:
            left = self.left.get(reply.attempt, 1) - 1
            if left:
                self.left[reply.attempt] = left
            else:
                self.meter.close(reply.attempt)

    def _give_up(self) -> list[Reply]:
        """What waited and is not sent any more: its money is free again. What has none is simply not asked."""
        waited = list(self.waiting)
        self.waiting.clear()
        if not self.grader.paid:
            self.out -= len(waited)
            return []
        return [self._free(call, "rate_limited: the run ended before the server took it") for call in waited]

    def _take_in(self, seconds: float) -> Iterator[list[Reply]]:
        """Send nothing more, and take in what comes within some seconds."""
        self._stop_with(BackendError("the run ended"))
        until = time.monotonic() + seconds
        while self.out and time.monotonic() < until:
            yield from self._receive()

    # -- what an answer means ---------------------------------------------------------------------------------------

    def _judge(self, came: _Came) -> Reply | None:
        """The reply that a call ended with, None when it goes again after the server's pause."""
        call, error = came.call, came.error
        if error is not None:
            return self._failed(call, error)
        if came.content is None:
            self.waiting.appendleft(call)
            return None
        body = _object(came.content)
        if body is None:
            said = clean(came.content[:300].decode("utf-8", "replace"))
            return self._unclear(call, f"no_answer: 200 and no answer of the API ({said})")
        identity = str(body.get("id") or came.request_id or call.attempt)[:200]
        reply = reply_of(call.attempt, call.request.key, identity, body)
        if reply.outcome != "answered":
            self._unclear(call, reply.error or "no_answer")
            return reply
        self._answered(call, reply)
        return reply

    def _answered(self, call: _Call, reply: Reply) -> None:
        if not self.proven and not (reply.text or "").strip() and reply.finish_reason == "length":
            cap = output_cap(call.request, self.grader.family)
            self._stop_with(BackendError(
                f"{self.grader.model} used all of its {cap} output tokens without an answer, and so would every row; "
                "nothing more was sent. Take a model that can answer without thinking"
            ))  # fmt: skip
        self.failures = self.tries = self.refusals = 0
        self.alone, self.proven = False, True
        self.answered_at = time.monotonic()
        self.width = min(float(self.grader.in_flight), self.width + 1 / self.width)
        if reply.model:
            self._saw(call.attempt, reply.model)

    def _saw(self, attempt: str, snapshot: str) -> None:
        """Remember which snapshot answers; stop when it is another than the one that graded here before."""
        if snapshot == self.before or snapshot in self.snapshots:
            return
        if self.before is not None and not self.grader.allow_drift:
            self._stop_with(BackendError(
                f"{self.grader.model} was {self.before} when it graded here and is {snapshot} now: the scores may not "
                "compare. Nothing more was sent; --allow-drift goes on, or name the snapshot as the model"
            ))  # fmt: skip
            return
        self.before = self.before or snapshot
        self.snapshots.add(snapshot)
        self.snapshot = (attempt, snapshot)

    def _failed(self, call: _Call, error: Exception) -> Reply | None:
        """The reply to a call that ended with an error, None when it goes again."""
        status = getattr(error, "status_code", 0)
        code, message = error_of(getattr(error, "body", None))
        if status == 429 and code not in OUT_OF_MONEY:
            return self._too_many(call, code, message or str(error))
        explained = explain(error, self.grader.base_url)
        if never_sent(error):
            self._in_vain(call, explained)
            return self._free(call, f"server_error: {explained}")
        if is_ambiguous(error):
            return self._unclear(call, f"no_answer: {explained}")
        self.failures = self.tries = 0
        reason = refusal_of(status, code, message or str(error))
        if reason.startswith(("too_long", "refused")):  # this row's fault, not the body's
            self.set_aside += 1
            if self.set_aside >= REFUSALS // 2:
                self.alone = False
        elif status in (401, 403, 404) or code in OUT_OF_MONEY:
            self._stop_with(explained)
        else:
            self._refused(call, status, clean(f"{code} {message}".strip()), explained)
        return self._free(call, reason)

    def _refused(self, call: _Call, status: int, said: str, explained: BackendError) -> None:
        """A refusal that may be the body's fault: the first one to go alone, or one after many others, ends the run."""
        self.refusals += 1
        if call.alone and (not self.proven or self.refusals > REFUSALS):
            if status in (400, 422):
                explained = BackendError(
                    f"{self.grader.model} does not take the request ({said}); it cost nothing, and nothing more was sent"
                )
            self._stop_with(explained)
        else:
            self.alone = self.refusals >= REFUSALS

    def _too_many(self, call: _Call, code: str, message: str) -> Reply | None:
        """429: nothing was carried out. The call goes again after the pause, so many times and no more."""
        if call.waits == 0:
            call.put_off_at = time.monotonic()
        if call.waits < WAITS and self.stop is None:
            if call.sent_at > self.narrowed_at:  # once for those that were refused together
                self.width, self.narrowed_at = max(1.0, self.width / 2), time.monotonic()
            call.waits += 1
            self.waiting.appendleft(call)
            return None
        if self.answered_at < call.put_off_at:  # and nobody else got through either
            self._stop_with(BackendError(
                f"{self.grader.host} takes no calls now (429: {clean(message)}); run again later, what was answered is kept"
            ))  # fmt: skip
        return self._free(call, refusal_of(429, code, message))

    def _unclear(self, call: _Call, error: str) -> Reply:
        """It may have been carried out and may be charged: unresolved until somebody knows better."""
        self._in_vain(call, BackendError(
            f"{self.grader.host} gives no clear answer ({error.partition(': ')[2]}); what was sent is kept as unresolved, "
            "run again later"
        ))  # fmt: skip
        return Reply(call.attempt, call.request.key, call.attempt, "unknown", error=error)

    def _in_vain(self, call: _Call, trouble: BackendError) -> None:
        """Another call without a clear answer: after some of them the next goes alone, after a pause; then it ends."""
        self.failures += 1
        if not call.alone and self.failures != FAILURES:
            return
        self.alone = True
        if self.tries >= (len(self.grader.pauses) if self.proven else 1):
            self._stop_with(trouble)
        else:
            self._pause_for(self.grader.pauses[self.tries])
            self.tries += 1

    def _free(self, call: _Call, error: str) -> Reply:
        return Reply(call.attempt, call.request.key, call.attempt, "rejected_free", error=error)

    def _stop_with(self, error: AlpaSiftError) -> None:
        """Send nothing more; what is out still comes in, and then the error is raised."""
        self.stop = self.stop or error


def _object(content: bytes) -> dict[str, Any] | None:
    """The JSON object of an answer, None for anything else. A lone surrogate, at which strict readers stop, is let by."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
