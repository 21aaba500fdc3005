"""The loop that local backends share: one attempt a block, replies as they come, nothing open when a caller goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

import pytest

from alpasift.graders import BackendError, BackendKind, Request, backend_kind, backend_names
from alpasift.graders.local.blocks import Answer, answer_in_blocks


class Attempts:
    """A meter that grants everything and remembers what was opened and closed, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.keys: dict[str, list[str]] = {}

    def open(self, keys: Sequence[str], ceiling: Decimal, price: Any, facts: Mapping[str, str]) -> str:
        attempt = f"a{len(self.keys)}"
        self.keys[attempt] = list(keys)
        self.events.append(("open", attempt))
        return attempt

    def close(self, attempt: str) -> None:
        self.events.append(("close", attempt))


class Engine:
    """Answers in the order it was given, so many at a time; it has room for four requests."""

    model = "m"

    def __init__(self, at_a_time: int, dies_after: int | None = None) -> None:
        self.at_a_time, self.dies_after = at_a_time, dies_after
        self.held: list[tuple[str, Request]] = []
        self.most_held = self.answered = 0
        self.stopped = False

    @property
    def room(self) -> int:
        return 4 - len(self.held)

    def start(self, request: Request) -> Iterator[None]:
        yield

    def submit(self, requests: Sequence[tuple[str, Request]]) -> None:
        self.held += requests
        self.most_held = max(self.most_held, len(self.held))

    def collect(self, seconds: float, wanted: int) -> list[tuple[str, Answer]]:
        if self.dies_after is not None and self.answered >= self.dies_after:
            raise BackendError("it died")
        now, self.held = self.held[: self.at_a_time], self.held[self.at_a_time :]
        self.answered += len(now)
        return [(i, Answer(error="too_long: 9") if r.key == "k3" else Answer(5, 1, r.key.upper())) for i, r in now]

    def stop(self) -> None:
        self.stopped = True


def requests(count: int) -> list[Request]:
    return [Request(f"k{number}", (("user", "x"),)) for number in range(count)]


@pytest.mark.parametrize("at_a_time", [1, 3, 4])
def test_every_request_gets_one_reply_and_every_attempt_is_closed(at_a_time: int) -> None:
    meter, engine = Attempts(), Engine(at_a_time)
    chunks = list(answer_in_blocks(requests(7), meter, engine, {}, block_size=2))
    assert chunks[0] == []  # a heartbeat while it starts
    replies = [reply for chunk in chunks for reply in chunk]
    assert [reply.key for reply in replies] == [f"k{number}" for number in range(7)]
    assert [reply.request_id for reply in replies] == ["a0:0", "a0:1", "a1:0", "a1:1", "a2:0", "a2:1", "a3:0"]
    assert [reply.outcome for reply in replies].count("rejected_free") == 1
    assert (replies[3].error, replies[3].usage, replies[4].text) == ("too_long: 9", None, "K4")
    assert replies[4].usage == {"prompt_tokens": 5, "completion_tokens": 1}
    assert sorted(a for what, a in meter.events if what == "close") == sorted(meter.keys) == ["a0", "a1", "a2", "a3"]
    assert (engine.most_held, engine.stopped) == (4, False)


def test_an_attempt_is_closed_only_when_its_last_reply_was_taken() -> None:
    meter = Attempts()
    answers = answer_in_blocks(requests(2), meter, Engine(1), {}, block_size=2)
    taken = [next(answers) for _ in range(3)]
    assert [len(chunk) for chunk in taken] == [0, 1, 1]
    assert meter.events == [("open", "a0")]
    assert list(answers) == []
    assert meter.events == [("open", "a0"), ("close", "a0")]


def test_a_caller_who_leaves_and_an_engine_that_dies_stop_the_work() -> None:
    meter, left = Attempts(), Engine(1)
    answers = answer_in_blocks(requests(5), meter, left, {}, block_size=2)
    assert [len(next(answers)) for _ in range(2)] == [0, 1]
    answers.close()
    assert left.stopped and ("close", "a0") not in meter.events
    dead = Engine(1, dies_after=3)
    found = []
    with pytest.raises(BackendError, match="it died"):
        for chunk in answer_in_blocks(requests(5), Attempts(), dead, {}, block_size=2):
            found += chunk
    assert (len(found), dead.stopped) == (3, True)


def test_nothing_is_opened_when_there_is_nothing_to_ask() -> None:
    meter = Attempts()
    assert list(answer_in_blocks([], meter, Engine(1), {})) == []
    assert meter.events == []


def test_every_file_of_a_backend_says_what_it_offers() -> None:
    for name in backend_names():
        assert isinstance(backend_kind(name), BackendKind), name
    with pytest.raises(BackendError, match="no grader named 'nobody:x'; choose from fake, fit, ifd, llama_cpp, "):
        backend_kind("nobody:x")
