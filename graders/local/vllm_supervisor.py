"""vLLM's engine as `blocks.Engine`: what its process holds, and what happens when the process dies.

A process that dies is started again, and the requests it held go out again while the rest lives. A request that was on
board of two crashes is suspected: nothing new is sent, and suspects go one at a time, so that only the one that
kills the engine alone is given up. Knows messages and requests; how the process is started is `vllm_process`'s.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from alpasift.graders import BackendError, Request
from alpasift.graders.local.blocks import BLOCK, HEARTBEAT, Answer
from alpasift.graders.local.vllm_process import EngineDied, EngineProcess

IN_FLIGHT = 2 * BLOCK
"""Requests that the engine's process holds at most."""
MOST_CRASHES = 4
"""Crashes of the engine, one after the other without an answer between them, that end a run."""


@dataclass(slots=True)
class _Held:
    """A request without an answer: whether the process has it, and how many crashes it was on board of."""

    request: Request
    sent: bool = False
    crashes: int = 0


class SupervisedEngine:
    """See the head of this module; the methods are those of `blocks.Engine`."""

    def __init__(self, process: EngineProcess, model: str) -> None:
        self.process = process
        self.model = model
        self._held: dict[str, _Held] = {}
        self._checks = 0

    @property
    def room(self) -> int:
        suspect = any(row.crashes > 1 for row in self._held.values())
        return 0 if suspect else IN_FLIGHT - len(self._held)

    def start(self, request: Request) -> Iterator[None]:
        self._held.clear()
        self.process.crashes = 0
        self._checks += 1
        question = (self._checks, _without_row(request))
        self.process.send("check", question)
        while True:
            try:
                message = self.process.receive(HEARTBEAT)
            except EngineDied as death:
                self._record_crash(death)
                self.process.send("check", question)
                continue
            if message is None:
                yield
            elif message[0] == "checked" and message[1][0] == self._checks:
                if message[1][1] is not None:
                    raise BackendError(message[1][1])
                return

    def submit(self, requests: Sequence[tuple[str, Request]]) -> None:
        self._held |= {request_id: _Held(request) for request_id, request in requests}

    def collect(self, seconds: float, wanted: int) -> list[tuple[str, Answer]]:
        self._send()
        found: dict[str, Answer] = {}
        until = time.monotonic() + seconds
        try:
            while self._held and (wait := until - time.monotonic()) > 0:
                if wanted and self.room >= wanted:
                    break
                message = self.process.receive(wait)
                if message is not None and message[0] == "answers":
                    self._take(message[1], found)
                    if not any(row.sent for row in self._held.values()):
                        break  # it has nothing left to do
        except EngineDied as death:
            self._recover(death, found)
        return list(found.items())

    def stop(self) -> None:
        self._held.clear()
        if self.process.running:
            self.process.send("stop")

    def _send(self) -> None:
        """Give the process what it does not have; suspects only when it has nothing else to do."""
        fresh = [request_id for request_id, row in self._held.items() if not row.sent]
        sound = [request_id for request_id in fresh if self._held[request_id].crashes < 2]
        if not fresh or (not sound and any(row.sent for row in self._held.values())):
            return
        now = sound or fresh[:1]
        for request_id in now:
            self._held[request_id].sent = True
        self.process.send("ask", [(request_id, _without_row(self._held[request_id].request)) for request_id in now])

    def _take(self, answers: list[tuple[str, Answer]], found: dict[str, Answer]) -> None:
        """Move what is answered from held to found; answers to an earlier call, which was left, are dropped."""
        for request_id, answer in answers:
            if self._held.pop(request_id, None) is not None:
                found[request_id] = answer
                if answer.error is None:
                    self.process.crashes = 0

    def _recover(self, death: EngineDied, found: dict[str, Answer]) -> None:
        """After a crash: what was on board goes again, but for a request that has killed the engine alone."""
        lost = [(request_id, row) for request_id, row in self._held.items() if row.sent]
        for _, row in lost:
            row.sent, row.crashes = False, row.crashes + 1
        if len(lost) == 1 and lost[0][1].crashes > 2:
            request_id, row = lost[0]
            del self._held[request_id]
            found[request_id] = Answer(error=f"backend_error: the engine crashed {row.crashes} times on it: {death}")
        self._record_crash(death)

    def _record_crash(self, death: EngineDied) -> None:
        """Count a crash; the process starts again with the next message sent to it. Raises BackendError at too many."""
        self.process.crashes += 1
        if self.process.crashes >= MOST_CRASHES:
            raise BackendError(
                f"vLLM's engine crashed {MOST_CRASHES} times without an answer: {death}; answers so far are kept, "
                "and the same command resumes"
            )


def _without_row(request: Request) -> Request:
    """The request without its row, which the engine does not read."""
    return replace(request, example=None)
