"""The loop of every backend that runs a model on this machine. Call `answer_in_blocks`.

Requests are opened in blocks, one attempt each at no cost, and given to an engine as it has room; replies are yielded
as they come, and an attempt is closed once all of its replies were taken:

    requests -> meter.open(block) -> engine.submit -> engine.collect -> yield replies -> meter.close(attempt)

Knows requests, replies and the meter; what an engine is, it leaves to the backend.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

from alpasift.graders import Meter, Replies, Reply, Request, batched

BLOCK = 256
"""Requests of one attempt."""
HEARTBEAT = 0.5
"""Seconds between two lists of replies, at most."""


@dataclass(slots=True)
class Answer:
    """What an engine found for one request: a text, or an error ("too_long: ...", "backend_error: ...")."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    text: str = ""
    finish_reason: str = "stop"
    logprobs: dict[str, float] | None = None
    error: str | None = None


class Engine(Protocol):
    """What runs the model. A request goes in with the id that its answer comes out with."""

    model: str
    """the model's name in replies"""

    @property
    def room(self) -> int:
        """How many more requests it takes now."""
        ...

    def start(self, request: Request) -> Iterator[None]:
        """Get ready for requests made like this one, yielding at least once a second while that takes longer.

        Raises BackendError when the engine does not start, or not even their fixed text fits the context.
        """
        ...

    def submit(self, requests: Sequence[tuple[str, Request]]) -> None: ...

    def collect(self, seconds: float, wanted: int) -> list[tuple[str, Answer]]:
        """The answers of up to `seconds`; it returns earlier when there is room for `wanted` requests that wait.

        Raises BackendError when it cannot continue.
        """
        ...

    def stop(self) -> None:
        """Drop what has no answer yet; it will not be collected."""
        ...


@dataclass(frozen=True, slots=True)
class _Asked:
    request: Request
    attempt: str


def answer_in_blocks(
    requests: Iterable[Request], meter: Meter, engine: Engine, facts: Mapping[str, str], block_size: int = BLOCK
) -> Replies:
    """Answer every request on an engine of this machine; see `Backend.answer`."""
    blocks = batched(requests, block_size)
    block = next(blocks, None)
    asked: dict[str, _Asked] = {}
    left: dict[str, int] = {}  # the requests of an attempt that have no reply yet
    try:
        if block is not None:
            for _ in engine.start(block[0]):
                yield []
        while block is not None or asked:
            while block is not None and engine.room >= len(block):
                attempt = meter.open([r.key for r in block], Decimal(0), price=None, facts=facts)
                left[attempt] = len(block)
                numbered = [(f"{attempt}:{place}", request) for place, request in enumerate(block)]
                asked |= {request_id: _Asked(request, attempt) for request_id, request in numbered}
                engine.submit(numbered)
                block = next(blocks, None)
            answers = engine.collect(HEARTBEAT, len(block) if block is not None else 0)
            replies = [
                _reply(request_id, asked.pop(request_id), answer, engine.model) for request_id, answer in answers
            ]
            yield replies
            for reply in replies:  # what was yielded is committed
                left[reply.attempt] -= 1
                if not left[reply.attempt]:
                    meter.close(reply.attempt)
    finally:
        if asked:  # the caller has left: nobody waits for the rest
            engine.stop()


def _reply(request_id: str, asked: _Asked, answer: Answer, model: str) -> Reply:
    attempt, key = asked.attempt, asked.request.key
    if answer.error is not None:
        return Reply(attempt, key, request_id, "rejected_free", model=model, error=answer.error)
    usage = {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens}
    return Reply(attempt, key, request_id, "answered", answer.text, answer.finish_reason, model, usage, answer.logprobs)
