"""The two sides of the seam: what a backend must do (`Backend`), and what it may ask for money (`Meter`).

`Collects`, `HasModelSize`, `HasPriceFile`, `QueueLimited` and `WritesRequestFiles` are what some backends can do
besides; isinstance tells which. `BackendKind` is what the file of a backend says about it before anything is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from alpasift.graders.interface.types import Estimate, ModelSize, OpenAttempt, Reply, Request

if TYPE_CHECKING:
    from alpasift.graders.api.prices import Price
    from alpasift.graders.api.request_files import RequestLine


class Meter(Protocol):
    """The backend's only way to money. An attempt is one thing sent: a batch file, a call, a block of rows."""

    @property
    def ledger(self) -> str:
        """The ledger's identity, for names and metadata by which our own work is told from anybody else's."""
        ...

    @property
    def folder(self) -> Path:
        """A private folder beside the ledger for the files of attempts; it exists."""
        ...

    def open(
        self,
        keys: Sequence[str],
        ceiling_each: Decimal | Sequence[Decimal],
        price: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
        *,
        outlives: bool = False,
    ) -> str:
        """Commit the intent and its reservation and return the attempt's id.

        Raises BudgetExceeded, SendingStopped: then send nothing.

        `outlives`: the work continues when this process ends, and a later process collects it.
        """
        ...

    def open_many(
        self,
        calls: Sequence[tuple[str, Decimal]],
        price: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """One attempt for each (key, ceiling), in one commit with the replies in hand: for calls that go out together.

        Returns the ids of the first of them that fit, at least one. Raises BudgetExceeded when none fits.
        """
        ...

    @property
    def any_usable(self) -> bool:
        """Whether an answer that was yielded so far, or came earlier, answers its question."""
        ...

    def note(self, attempt: str, state: str, facts: Mapping[str, Any] | None = None) -> None:
        """Commit a step of the attempt ("uploaded", with the file's id) before the next one is taken."""
        ...

    def open_attempts(self) -> list[OpenAttempt]:
        """The open attempts of this backend and these questions that outlive their process, oldest first."""
        ...

    def lines(self, attempt: str) -> dict[str, Decimal]:
        """The questions of an attempt and the most that each may cost."""
        ...

    def free(self) -> Decimal:
        """Dollars that may still be reserved: what the caps leave."""
        ...

    def noted(self, fact: str) -> Any:
        """The newest value that any attempt of this grader noted under that name, None when there is none."""
        ...

    def close(self, attempt: str) -> None:
        """End the attempt, once every reply yielded before this call is committed.

        Lines known to be free are released; lines never seen become unresolved at their ceiling.
        """
        ...

    def settle(self, attempt: str, usd: Decimal, why: str) -> None:
        """End the attempt as a whole: it cost `usd`, 0 for nothing. All that its lines still hold is given back."""
        ...

    def mark_unconfirmed(self, attempt: str, why: str) -> None:
        """What the attempt holds becomes unresolved and its questions may be asked again; it stays open."""
        ...

    def alarm(self, attempt: str, kind: str, why: str) -> None:
        """Stop all sending from this ledger until a person has looked."""
        ...


Replies = Generator[list[Reply], None, None]
"""Lists of replies as they come, at least one list a second (an empty one is a heartbeat). Closing it ends the work."""


class Backend(Protocol):
    """Who answers. `fingerprint` holds all that can change an answer; it is hashed into every key."""

    name: str
    fingerprint: Mapping[str, str]
    facts: Mapping[str, str]
    """recorded beside the run, not hashed: library versions, threads"""
    paid: bool
    """whether answers cost API dollars; then a budget must be set"""
    remarks: tuple[str, ...]
    """what a person should know of it before it answers, a line each"""
    leaves_machine: str
    """what is sent off this machine: "nothing", or "rows and rubric, to api.openai.com" """

    def cannot(self, request: Request) -> str | None:
        """Why this backend cannot answer requests made like this one (log-probabilities, a schema, a verdict on the row
        itself), or None when it can.

        Looks at how the request is made and not at its row; sends nothing.
        """
        ...

    def estimate(self, requests: Iterable[Request]) -> Estimate: ...

    def answer(self, requests: Iterable[Request], meter: Meter) -> Replies:
        """Answer every request.

        A request that cannot be answered is yielded too, as rejected_free with its reason. Raises BackendError when
        it cannot continue; what was yielded before stays.
        """
        ...

    def close(self) -> None:
        """Give back memory, sockets and threads. Called once, also after an error."""
        ...


@runtime_checkable
class Collects(Protocol):
    """A backend whose work outlives the process: what was submitted can be collected, or cancelled, by a later one.

    Its replies are in files of the meter's folder before they are yielded, so they may be written in large pieces.
    """

    def collect(self, meter: Meter, *, wait: bool = False) -> Replies:
        """Poll everything in flight and yield what has come; with `wait`, until nothing is in flight. Sends nothing."""
        ...

    def cancel(self, attempt: str, meter: Meter) -> Replies:
        """Stop one attempt and yield what was done of it."""
        ...


@runtime_checkable
class HasPriceFile(Protocol):
    """A backend whose price is looked up by model and host, first in a file of the user's own prices."""

    prices: Path | None


@runtime_checkable
class HasModelSize(Protocol):
    """A backend that computes on this machine, by whose size its time is predicted where nothing was measured."""

    size: ModelSize


@runtime_checkable
class QueueLimited(Protocol):
    """A backend whose provider limits the prompt tokens that may wait there, and states the limit only in a refusal."""

    def recall_queue_limit(self, tokens: int, stated_at: datetime) -> None:
        """Estimate by this limit, which an earlier run was told, where the user gave none."""
        ...


@runtime_checkable
class AsksServer(Protocol):
    """A backend that sends requests to a server: what that needs is known before anybody agrees to a cost."""

    def missing(self) -> str | None:
        """What is missing to reach the server ("no key; set ..."), None when nothing is. Sends nothing."""
        ...


@runtime_checkable
class WritesRequestFiles(Protocol):
    """A backend whose requests can also be written to files, which a person carries to who executes them."""

    name: str
    paid: bool
    model: str
    base_url: str
    batch_rows: int
    """requests that one file holds at most"""
    executed_by: str
    """"openai", or "vllm" for `vllm run-batch`"""

    def price(self, *, batch: bool) -> Price: ...

    def lines(self, requests: Iterable[Request]) -> Iterator[RequestLine]:
        """The requests as lines of a file, each with the most that it may cost."""
        ...


def _nothing_missing() -> str | None:
    return None


def _no_problem(argument: str | None) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class BackendKind:
    """What one file of this folder offers, as its constant `KIND`.

    open                  open(argument, **options) gives the backend; `argument` is what follows the colon of a spec
    options               the settings that `open` takes, by name
    missing_requirements  what this machine lacks before any model is named ("no key; set ..."), None when nothing
    problem_with_model    why the model that an argument names cannot be opened here, None when it can; looks at files
    called                what its graders are called before the colon, where that is not the backend's name
    rubric                the built-in rubric that it answers and no other backend does; None where it answers any
    """

    open: Callable[..., Backend]
    options: tuple[str, ...] = ()
    missing_requirements: Callable[[], str | None] = _nothing_missing
    problem_with_model: Callable[[str | None], str | None] = _no_problem
    called: str | None = None
    rubric: str | None = None
