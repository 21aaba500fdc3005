"""Calls in flight: threads that make one call each at a time, the client they share, and the server's pause.

Knows HTTP through the provider's client; nothing of money, and nothing of what an answer means.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from alpasift.graders import BackendUnavailable, Request
from alpasift.graders.api.api_errors import explain, retry_after
from alpasift.graders.api.connection import connect, host_of
from alpasift.graders.api.prices import MAX_PROMPT_TOKENS
from alpasift.graders.api.wire_format import call_arguments

if TYPE_CHECKING:
    import openai

TIMEOUT = 600.0
"""Seconds for one answer. Long, since the price of giving up is money that stays unresolved."""
GATHER = 0.02
"""Seconds to wait for others after the first reply has come: one commit then keeps them all."""


@dataclass(slots=True)
class Call:
    """One request on its way, and the most it may cost. `alone`: nothing else was in flight when it was sent."""

    request: Request
    tokens: int
    ceiling: Decimal
    body: Mapping[str, Any]
    attempt: str = ""
    alone: bool = False
    sent_at: float = 0.0
    waits: int = 0
    first_wait_at: float = 0.0

    @property
    def too_long(self) -> bool:
        return self.tokens > MAX_PROMPT_TOKENS


@dataclass(frozen=True, slots=True)
class EndedCall:
    """How a call ended: with a body, with an error, or (neither) not sent, since the server has asked for a pause."""

    call: Call
    content: bytes | None = None
    request_id: str | None = None
    error: Exception | None = None


class CallThreads:
    """Makes calls to one server. Threads are daemons: a call that hangs keeps no process alive.

    busy   calls in flight
    pause  seconds for which nothing is to be sent, since the server has asked for that
    """

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self.threads = self.busy = 0
        self._todo: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[EndedCall] = queue.SimpleQueue()
        self._client: openai.OpenAI | None = None
        self._paused = threading.Lock()
        self._pause_until = 0.0

    def check_connection(self) -> None:
        """Ask something that costs nothing, so that a wrong address or key is found before anything is sent.

        A server may lack the list of models, or not show it to this key; then the first call finds out. Raises
        BackendUnavailable, BackendError.
        """
        import openai

        self._client = connect(self.base_url, timeout=TIMEOUT)
        try:
            raw = self._client.models.with_raw_response.list(timeout=20.0)
        except openai.APIStatusError as error:
            if error.status_code == 401:
                raise explain(error, self.base_url) from error
            return
        except openai.APIError as error:
            raise explain(error, self.base_url) from error
        if raw.http_response.content.lstrip()[:1] not in (b"{", b"["):
            raise BackendUnavailable(
                f"{host_of(self.base_url)} does not answer like the API (a web page?); check --base-url"
            )

    def send(self, call: Call) -> None:
        if self.busy == self.threads:
            threading.Thread(target=self._work, name="openai_chat", daemon=True).start()
            self.threads += 1
        self.busy += 1
        self._todo.put(call)

    def gather(self, seconds: float) -> list[EndedCall]:
        """Wait up to `seconds` for the first call to end, then a moment for others. Empty when none has."""
        ended: list[EndedCall] = []
        until = time.monotonic() + seconds
        while self.busy:
            left = until - time.monotonic()
            try:
                ended.append(self._done.get(timeout=left) if left > 0 else self._done.get_nowait())
            except queue.Empty:
                break
            self.busy -= 1
            if len(ended) == 1:
                until = time.monotonic() + GATHER
        return ended

    @property
    def pause(self) -> float:
        return self._pause_until - time.monotonic()

    def pause_for(self, seconds: float) -> None:
        with self._paused:
            self._pause_until = max(self._pause_until, time.monotonic() + seconds)

    def stop(self) -> None:
        """End the threads; the client is closed if none of them is in the middle of a call."""
        for _ in range(self.threads):
            self._todo.put(None)
        if self._client is not None and not self.busy:
            self._client.close()

    def _work(self) -> None:
        while (call := self._todo.get()) is not None:
            self._done.put(self._make(call))

    def _make(self, call: Call) -> EndedCall:
        """Make one call, in a thread of its own. Never raises: what went wrong is an answer too."""
        import openai

        assert self._client is not None
        if self.pause > 0:
            return EndedCall(call)
        try:
            raw = self._client.chat.completions.with_raw_response.create(**call_arguments(call.body))
            response = raw.http_response
            return EndedCall(call, response.content, response.headers.get("x-request-id"))
        except openai.APIStatusError as error:
            if error.status_code == 429:
                self.pause_for(retry_after(error, min(2.0**call.waits, 60.0)))
            elif error.status_code == 503:
                self.pause_for(retry_after(error, 0.0))
            return EndedCall(call, error=error)
        except Exception as error:  # noqa: BLE001  a thread that dies would leave its call open for ever
            return EndedCall(call, error=error)
