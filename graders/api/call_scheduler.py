"""Calls one by one, many of them in flight: when each goes, and what each way of failing means for the money.

Knows meters and outcomes; nothing of tables or rubrics. What it may spend it asks of the meter. A call is an attempt of
its own, committed with its ceiling before a byte of it is sent; its slot is used again only when its reply is
committed, so a process that dies loses at most what is in flight. Intents go many at a time, in the one commit that
also keeps the replies in hand:

    gather what has come -> yield it -> close those attempts -> open as many as slots are free -> send

A server that costs nothing has no intents to keep apart: its questions are opened by the block.

What an answer means for the money:

    200 with usage                                    answered; the ledger charges it
    400, 422 and such, or no connection was made      refused: it cost nothing
    429                                               not taken: the same call goes again after the server's pause
    200 without usage                                 answered; what it cost stays unresolved
    timeout, 408, 409, 5xx, a broken line,            unknown: its ceiling stays unresolved, and within this attempt it
    200 with an error or no answer                    is not repeated, for it may have been carried out

The first call goes alone, and so does each after the server has failed some times in a row: a model that refuses the
body, or a server that is down, then costs one call and not a slotful.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, Protocol

from alpasift.graders import AlpaSiftError, BackendError, BudgetExceeded, Meter, Replies, Reply, Request
from alpasift.graders.api.api_errors import (
    OUT_OF_MONEY,
    error_of,
    explain,
    is_ambiguous,
    never_sent,
    refusal_of,
)
from alpasift.graders.api.call_threads import TIMEOUT, Call, CallThreads, EndedCall
from alpasift.graders.api.keys import clean
from alpasift.graders.api.model_families import Family
from alpasift.graders.api.prices import MAX_PROMPT_TOKENS, Price, ceiling
from alpasift.graders.api.wire_format import answer_object, body_of, output_cap, reply_of

HEARTBEAT = 0.5
BLOCK = 500
"""The most questions that are opened in one commit."""
WAITS = 6
"""How often one call is put off by a 429 before it is given up."""
FAILURES = 3
"""Calls in a row without a clear answer after which the next goes alone."""
PAUSES = (1.0, 4.0, 15.0, 30.0)
"""Seconds before the first, second, ... call that goes alone after failures. When the last fails too, it ends."""
REFUSALS = 10
"""Refusals in a row that no single row explains, after which the next goes alone; if it is refused too, it ends."""
SECONDS_AT_EXIT = 10.0
"""Seconds that an interrupted run waits for what is in flight: it is paid for already."""


class CallGrader(Protocol):
    """What is to be known of the grader whose calls these are."""

    model: str
    base_url: str
    host: str
    family: Family
    paid: bool
    in_flight: int
    allow_drift: bool
    pauses: tuple[float, ...]

    def price(self) -> Price: ...

    def tokens_of(self, request: Request) -> int: ...


class CallScheduler:
    """One process at work with one meter.

    out         calls with an open attempt whose reply has not been yielded: in flight, or `waiting` for a slot
    missing_of  of attempts that hold more than one call: attempt -> how many have not come back
    width       how many may be out; falls by half when the server says too many, and rises again with its answers
    alone       the next call goes when nothing else is in flight, and decides whether others follow
    no_room     the caps held no room for another call; tried again when a reply has given some of its ceiling back
    before      the snapshot that graded here before; `snapshot` is one to be noted, with its attempt
    """

    def __init__(self, grader: CallGrader, requests: Iterable[Request], meter: Meter) -> None:
        self.grader, self.meter = grader, meter
        self.requests = iter(requests)
        self.unsent: deque[Call] = deque()
        self.waiting: deque[Call] = deque()
        self.missing_of: dict[str, int] = {}
        self.out = 0
        self.width = float(grader.in_flight)
        self.alone, self.proven = True, False
        self.failures = self.tries = self.refusals = self.skipped = 0
        self.answered_at = self.narrowed_at = 0.0
        self.no_room: BudgetExceeded | None = None
        self.stop: AlpaSiftError | None = None
        self.before: Any = None
        self.snapshots: set[str] = set()
        self.snapshot: tuple[str, str] | None = None
        self.threads = CallThreads(grader.base_url)

    def answer(self) -> Replies:
        """See `Backend.answer`. However it ends, nothing that was answered is thrown away."""
        if not self._read_ahead(1):
            return
        try:
            yield []
            self.threads.check_connection()
            self.before = self.meter.noted("snapshot")
            while True:
                yield from self._send()
                trouble = self.stop or self.no_room
                if not self.out and trouble is not None:
                    raise trouble
                if not self.out and not self._read_ahead(1):
                    return
                yield from self._receive()
        except KeyboardInterrupt:
            yield from self._drain(SECONDS_AT_EXIT)
            raise
        except AlpaSiftError:  # a database that cannot be written now, an alarm: what is out is paid for
            yield from self._drain(2 * TIMEOUT)
            raise
        finally:
            self.threads.stop()

    # -- sending ----------------------------------------------------------------------------------------------------

    def _send(self) -> Replies:
        """Fill the free slots: with what waits for one, else with new calls."""
        if self.stop is not None or self.threads.pause > 0:
            return
        slots = 1 if self.alone else int(self.width)
        if not self.waiting and self.threads.busy < slots and not (self.no_room and self.out):
            yield from self._open(slots - self.threads.busy if self.grader.paid else BLOCK)
        while self.waiting and self.threads.busy < slots:
            call = self.waiting.popleft()
            call.alone, call.sent_at = self.alone, time.monotonic()
            self.threads.send(call)

    def _open(self, count: int) -> Replies:
        """Commit the intents of so many more calls, as far as the caps hold them; yields those too long to be sent."""
        calls = self._read_ahead(count)
        if not calls:
            return
        try:
            attempts = self._attempts(calls)
        except BudgetExceeded as error:
            self.no_room = error
            return
        long = []
        for attempt in attempts:
            call = self.unsent.popleft()
            call.attempt = attempt
            self.out += 1
            if call.too_long:
                message = f"too_long: up to {call.tokens:,} prompt tokens; the maximum is {MAX_PROMPT_TOKENS:,}"
                long.append(self._rejected(call, message))
            else:
                self.waiting.append(call)
        if long:
            yield from self._yield_and_close(long)

    def _attempts(self, calls: list[Call]) -> list[str]:
        """The attempts of these calls, from the first on, as many as fit; raises BudgetExceeded when none does."""
        facts = {"kind": "call", "model": self.grader.model}
        if self.grader.paid:
            price = self.grader.price().frozen()
            return self.meter.open_many([(call.request.key, call.ceiling) for call in calls], price, facts)
        attempt = self.meter.open([call.request.key for call in calls], Decimal(0), None, facts)
        self.missing_of[attempt] = len(calls)
        return [attempt] * len(calls)

    def _read_ahead(self, count: int) -> list[Call]:
        """The next questions: so many that can be sent, and those among them that are too long for that."""
        calls: list[Call] = []
        while count > 0 and len(calls) < BLOCK:
            call = self.unsent.popleft() if self.unsent else self._next()
            if call is None:
                break
            calls.append(call)
            count -= not call.too_long
        self.unsent.extendleft(reversed(calls))
        return calls

    def _next(self) -> Call | None:
        request = next(self.requests, None)
        if request is None:
            return None
        grader = self.grader
        tokens = grader.tokens_of(request)
        usd = Decimal(0)
        if tokens <= MAX_PROMPT_TOKENS:
            usd = ceiling(grader.price(), tokens, output_cap(request, grader.family))
        return Call(request, tokens, usd, body_of(request, grader.model, grader.family))

    # -- receiving --------------------------------------------------------------------------------------------------

    def _receive(self) -> Replies:
        """Wait for replies, half a second at most, and hand them over; an empty list when none has come."""
        seconds, pause = HEARTBEAT, self.threads.pause
        if pause > 0 and self.waiting:
            seconds = min(seconds, pause)
        if not self.threads.busy:  # a pause is all that can keep slots empty
            time.sleep(min(HEARTBEAT, max(0.0, pause)))
        replies = [reply for ended in self.threads.gather(seconds) if (reply := self._outcome(ended)) is not None]
        if self.stop is not None:
            replies += self._drop_waiting()
        yield from self._yield_and_close(replies)

    def _yield_and_close(self, replies: list[Reply]) -> Replies:
        """Yield replies, then close the attempts that end with them: both are committed with the next intents."""
        self.out -= len(replies)
        if replies:
            self.no_room = None
        yield replies
        if self.snapshot is not None:
            (attempt, snapshot), self.snapshot = self.snapshot, None
            self.meter.note(attempt, "answered", {"snapshot": snapshot})
        for reply in replies:
            left = self.missing_of.get(reply.attempt, 1) - 1
            if left:
                self.missing_of[reply.attempt] = left
            else:
                self.meter.close(reply.attempt)

    def _drop_waiting(self) -> list[Reply]:
        """What waited and is not sent any more: its money is free again. What has none is simply not asked."""
        waited = list(self.waiting)
        self.waiting.clear()
        if not self.grader.paid:
            self.out -= len(waited)
            return []
        return [self._rejected(call, "rate_limited: the run ended before the server accepted it") for call in waited]

    def _drain(self, seconds: float) -> Replies:
        """Send nothing more, and take in what comes within some seconds."""
        self._stop_with(BackendError("the run ended"))
        until = time.monotonic() + seconds
        while self.out and time.monotonic() < until:
            yield from self._receive()

    # -- what an answer means ---------------------------------------------------------------------------------------

    def _outcome(self, ended: EndedCall) -> Reply | None:
        """The reply that a call ended with, None when it goes again after the server's pause."""
        call, error = ended.call, ended.error
        if error is not None:
            return self._failed(call, error)
        if ended.content is None:
            self.waiting.appendleft(call)
            return None
        body = answer_object(ended.content)
        if body is None:
            message = clean(ended.content[:300].decode("utf-8", "replace"))
            return self._unknown(call, f"no_answer: status 200 without an answer of the API ({message})")
        identity = body.get("id") or ended.request_id or call.attempt
        reply = reply_of(call.attempt, call.request.key, identity, body)
        if reply.outcome != "answered":
            self._unknown(call, reply.error or "no_answer")
            return reply
        self._answered(call, reply)
        return reply

    def _answered(self, call: Call, reply: Reply) -> None:
        if not self.proven and not (reply.text or "").strip() and reply.finish_reason == "length":
            cap = output_cap(call.request, self.grader.family)
            self._stop_with(
                BackendError(
                    f"{self.grader.model} used all of its {cap} output tokens without an answer, and would for every "
                    "row; nothing more was sent. Use a model that can answer without thinking"
                )
            )
        self.failures = self.tries = self.refusals = 0
        self.alone, self.proven = False, True
        self.answered_at = time.monotonic()
        self.width = min(float(self.grader.in_flight), self.width + 1 / self.width)
        if reply.model:
            self._note_snapshot(call.attempt, reply.model)

    def _note_snapshot(self, attempt: str, snapshot: str) -> None:
        """Remember which snapshot answers; stop when it is another than the one that graded here before."""
        if snapshot == self.before or snapshot in self.snapshots:
            return
        if self.before is not None and not self.grader.allow_drift:
            self._stop_with(
                BackendError(
                    f"{self.grader.model} was {self.before} when it graded here and is {snapshot} now: scores may not "
                    "be comparable. Nothing more was sent; --allow-drift sends it anyway, or use the snapshot as "
                    "the model"
                )
            )
            return
        self.before = self.before or snapshot
        self.snapshots.add(snapshot)
        self.snapshot = (attempt, snapshot)

    def _failed(self, call: Call, error: Exception) -> Reply | None:
        """The reply to a call that ended with an error, None when it goes again."""
        status = getattr(error, "status_code", 0)
        code, message = error_of(getattr(error, "body", None))
        if status == 429 and code not in OUT_OF_MONEY:
            return self._too_many(call, code, message or str(error))
        explained = explain(error, self.grader.base_url)
        if never_sent(error):
            self._note_failure(call, explained)
            return self._rejected(call, f"server_error: {explained}")
        if is_ambiguous(error):
            return self._unknown(call, f"no_answer: {explained}")
        self.failures = self.tries = 0
        reason = refusal_of(status, code, message or str(error))
        if reason.startswith(("too_long", "refused")):  # this row's fault, not the body's
            self.skipped += 1
            if self.skipped >= REFUSALS // 2:
                self.alone = False
        elif status in (401, 402, 403, 404) or code in OUT_OF_MONEY:
            self._stop_with(explained)
        else:
            self._refused(call, status, clean(f"{code} {message}".strip()), explained)
        return self._rejected(call, reason)

    def _refused(self, call: Call, status: int, message: str, explained: BackendError) -> None:
        """A refusal that may be the body's fault: the first one to go alone, or one after many others, ends the run."""
        self.refusals += 1
        if call.alone and (not self.proven or self.refusals > REFUSALS):
            if status in (400, 422):
                explained = BackendError(
                    f"{self.grader.model} does not accept the request ({message}); it cost nothing, and nothing "
                    f"more was sent"
                )
            self._stop_with(explained)
        else:
            self.alone = self.refusals >= REFUSALS

    def _too_many(self, call: Call, code: str, message: str) -> Reply | None:
        """429: nothing was carried out. The call goes again after the pause, so many times and no more."""
        if call.waits == 0:
            call.first_wait_at = time.monotonic()
        if call.waits < WAITS and self.stop is None:
            if call.sent_at > self.narrowed_at:  # once for those that were refused together
                self.width, self.narrowed_at = max(1.0, self.width / 2), time.monotonic()
            call.waits += 1
            self.waiting.appendleft(call)
            return None
        if self.answered_at < call.first_wait_at:  # and nobody else got through either
            self._stop_with(
                BackendError(
                    f"{self.grader.host} accepts no requests now (429: {clean(message)}); run again later, answers so "
                    "far are kept"
                )
            )
        return self._rejected(call, refusal_of(429, code, message))

    def _unknown(self, call: Call, error: str) -> Reply:
        """It may have been carried out and may be charged: unresolved until somebody knows better."""
        self._note_failure(
            call,
            BackendError(
                f"{self.grader.host} gives no valid answer ({error.partition(': ')[2]}); requests sent are kept "
                f"as unresolved, run again later"
            ),
        )
        return Reply(call.attempt, call.request.key, call.attempt, "unknown", error=error)

    def _note_failure(self, call: Call, trouble: BackendError) -> None:
        """Another call without a clear answer: after some of them the next goes alone, after a pause; then it ends."""
        self.failures += 1
        if not call.alone and self.failures != FAILURES:
            return
        self.alone = True
        if self.tries >= (len(self.grader.pauses) if self.proven else 1):
            self._stop_with(trouble)
        else:
            self.threads.pause_for(self.grader.pauses[self.tries])
            self.tries += 1

    def _rejected(self, call: Call, error: str) -> Reply:
        return Reply(call.attempt, call.request.key, call.attempt, "rejected_free", error=error)

    def _stop_with(self, error: AlpaSiftError) -> None:
        """Send nothing more; what is out still comes in, and then the error is raised."""
        self.stop = self.stop or error
