"""Who answers a question, and the few types that every backend shares.

A backend takes requests and yields replies. It knows nothing of datasets, tables or files of results; what it may
spend it asks of a `Meter`. One file here is one backend, found by its name: `open_backend("llama_cpp:model.gguf")`
imports `graders/llama_cpp.py` and calls its `open(argument)`. This package never imports `batcher`, so a backend can
be lifted out and used alone, and a remote worker needs nothing else.

    AlpaSiftError                something the user can act on; printed as one line
      BackendError               the backend cannot work, or died
        BackendUnavailable       ... because something is missing on this machine (exit code 3)
      BudgetExceeded             a reservation would pass the cap; nothing was sent for it
      SendingStopped             an alarm stands on the ledger; what is out may be collected, nothing new is sent
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from importlib import import_module, resources
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

Outcome = Literal["answered", "rejected_free", "unknown"]
Explain = Literal["no", "after", "before"]
LEAD_TOKENS = 16
"""Tokens of an answer that are kept for its last line, where free text comes before the choice."""


class AlpaSiftError(Exception):
    """Something the user can act on: the message says what happened, with the values, and what to do next."""


class BackendError(AlpaSiftError):
    """The backend cannot work as it was asked to, or died on the way."""


class BackendUnavailable(BackendError):
    """The backend cannot work on this machine: a package, a file, a key or a card is missing."""


class BudgetExceeded(AlpaSiftError):
    """The reservation would pass a cap. Nothing was sent for it and nothing was written."""


class SendingStopped(AlpaSiftError):
    """An alarm stands: nothing that costs money is sent until a person has looked. Nothing was sent or written."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One earlier exchange of a conversation: who spoke ("user", "assistant", "tool", ...) and what."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One row of instruction data. `turns` are the exchanges before the graded pair; an absent input is ""."""

    instruction: str
    input: str
    output: str
    system: str = ""
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One question. `key` identifies it: equal keys are the same question and are asked once.

    `messages` are (role, text) pairs, the fixed text first. `choices`, where given, are the only answers that count:
    a backend that can constrain its decoding must. `sample` numbers repeated draws of the same question, which differ
    where `temperature` is above 0.

    explain        no      the answer is the choice alone; it ends with its line
                   after   the choice on the first line, then free text; the choice is the same as under "no"
                   before  free text, then a line of `lead` and the choice. A backend that can constrain its decoding
                           writes that line itself when the text ends or has taken max_tokens - LEAD_TOKENS
    json_schema    the answer is an object of this schema; `choices` are then not given
    want_logprobs  the log-probability of every choice is wanted, in Reply.logprobs, the sum over them being 1
    """

    key: str
    messages: tuple[tuple[str, str], ...]
    example: Example
    rubric: str
    max_tokens: int = 8
    temperature: float = 0.0
    choices: tuple[str, ...] | None = None
    json_schema: Mapping[str, Any] | None = None
    want_logprobs: bool = False
    sample: int = 0
    explain: Explain = "no"
    lead: str = "Score: "


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back for one request of one attempt.

    outcome  answered       the backend answered; `usage` is what it says it cost
             rejected_free  it was refused or set aside and cost nothing; `error` says why
             unknown        it may have been executed and may have cost up to its ceiling; nobody saw the answer
    error    a short reason, "too_long: 5210 tokens, the context holds 4096" for instance; None when answered
    usage    tokens as the backend reports them, hostile until checked: prompt_tokens, completion_tokens,
             prompt_tokens_details, completion_tokens_details
    logprobs choice -> natural log-probability among the choices, where asked for and known
    """

    attempt: str
    key: str
    request_id: str
    outcome: Outcome
    text: str | None = None
    finish_reason: str | None = None
    model: str | None = None
    usage: Mapping[str, Any] | None = None
    logprobs: Mapping[str, float] | None = None
    error: str | None = None
    raw: str | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What answering some requests should take. Dollars are API dollars; `seconds` is None where unknown.

    usd             expected, with usd_low and usd_high around it; ceiling_usd is the most it can cost
    seconds         expected; seconds_low and seconds_high are the best and the worst case, where known
    sync_usd        for work by batch: what the same would be expected to cost call by call
    rounds          how many batches have to go one after the other under the queue limit, where there is one
    notes           what the person should know: assumed limits, an old price, how tokens were counted
    """

    requests: int
    usd: Decimal
    usd_low: Decimal
    usd_high: Decimal
    ceiling_usd: Decimal
    seconds: float | None
    input_tokens: int
    output_tokens: int
    seconds_low: float | None = None
    seconds_high: float | None = None
    sync_usd: Decimal | None = None
    rounds: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OpenAttempt:
    """An attempt that is still open, as the ledger remembers it: its last step, and the facts of all its steps."""

    attempt: str
    state: str
    facts: Mapping[str, Any] = field(default_factory=dict)


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
        """Commit the intent and its reservation and return the attempt's id. Raises BudgetExceeded: then send nothing.

        `outlives`: the work goes on when this process ends, and a later one collects it.
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

    def note(self, attempt: str, state: str, facts: Mapping[str, Any] | None = None) -> None:
        """Commit a step of the attempt ("uploaded", with the file's id) before the next one is taken."""
        ...

    def open_attempts(self) -> list[OpenAttempt]:
        """What outlives its process and is not closed, of this backend and these questions, oldest first."""
        ...

    def lines(self, attempt: str) -> dict[str, Decimal]:
        """The questions of an attempt and the most that each may cost."""
        ...

    def free(self) -> Decimal:
        """Dollars that may still be reserved: what the caps leave."""
        ...

    def learned(self, fact: str) -> Any:
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

    def doubt(self, attempt: str, why: str) -> None:
        """What the attempt holds becomes unresolved and its questions may be asked elsewhere; it stays open."""
        ...

    def alarm(self, attempt: str, kind: str, why: str) -> None:
        """Stop all sending from this ledger until a person has looked."""
        ...


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
    """what leaves this machine: "nothing", or "rows and rubric, to api.openai.com" """

    def refuses(self, rubric: str) -> str | None:
        """Why this backend cannot answer the rubric of that name, or None when it can."""
        ...

    def cannot(self, request: Request) -> str | None:
        """Why this backend cannot answer requests made like this one (log-probabilities, a schema), or None when it can.

        Looks at how the request is made and not at its row; sends nothing.
        """
        ...

    def estimate(self, requests: Iterable[Request]) -> Estimate: ...

    def answer(self, requests: Iterable[Request], meter: Meter) -> Iterator[list[Reply]]:
        """Answer every request, yielding replies as they come, at least one list a second (an empty one is a heartbeat).

        A request that cannot be answered is yielded too, as rejected_free with its reason. Raises BackendError when
        it cannot go on; what was yielded before stays.
        """
        ...

    def close(self) -> None:
        """Give back memory, sockets and threads. Called once, also after an error."""
        ...


@runtime_checkable
class Collects(Protocol):
    """A backend whose work outlives the process: what was submitted can be collected, or cancelled, by a later one.

    Its replies stand in files of the meter's folder before they are yielded, so they may be written in large pieces.
    """

    def collect(self, meter: Meter, *, wait: bool = False) -> Iterator[list[Reply]]:
        """Ask after everything that is out and yield what has come; with `wait`, until nothing is out. Sends nothing new."""
        ...

    def cancel(self, attempt: str, meter: Meter) -> Iterator[list[Reply]]:
        """Stop one attempt and yield what was done of it."""
        ...


_SPEC = re.compile(r"([a-z][a-z0-9_]*)(?::(.*))?", re.DOTALL)
_NOT_BACKENDS = {
    "__init__",
    "prices",
    "reading",
    "rubric",
    "rehearsal",
    "tokens",
    "openai_api",
    "batch_files",
    "batch_desk",
    "chat",
    "choices",
    "model_files",
    "offline",
}


def backend_names() -> list[str]:
    """The backends there are: one file in this folder each."""
    files = resources.files("graders").iterdir()
    return sorted(f.name[:-3] for f in files if f.name.endswith(".py") and f.name[:-3] not in _NOT_BACKENDS)


def options_of(spec: str) -> tuple[str, ...]:
    """The settings that the backend of a spec has, by name; none for a name that is no backend."""
    match = _SPEC.fullmatch(spec.strip())
    if not match or match[1] not in backend_names():
        return ()
    return tuple(getattr(import_module(f"graders.{match[1]}"), "OPTIONS", ()))


def open_backend(spec: str, options: Mapping[str, Any] | None = None) -> Backend:
    """Open the backend that a spec names: NAME or NAME:ARGUMENT, "rules" or "llama_cpp:models/llama-3.1-8b-q4.gguf".

    `options` are settings of the backend by name, "base_url" for instance; a module declares in OPTIONS which it has.
    Raises BackendError for an unknown name, a bad argument or an option that means nothing to this backend,
    BackendUnavailable when this machine lacks something.
    """
    match = _SPEC.fullmatch(spec.strip())
    if not match or match[1] not in backend_names():
        raise BackendError(f"no grader is called {spec!r}; there are {', '.join(backend_names())}")
    module = import_module(f"graders.{match[1]}")
    given = {name: value for name, value in (options or {}).items() if value is not None}
    foreign = sorted(set(given) - set(options_of(spec)))
    if foreign:
        raise BackendError(f"--{foreign[0].replace('_', '-')} means nothing to the grader {match[1]}")
    backend: Backend = module.open(match[2], **given)
    return backend


def batched(requests: Iterable[Request], size: int) -> Iterator[list[Request]]:
    """Requests in lists of at most `size`, in order, reading no further ahead than one list."""
    block: list[Request] = []
    for request in requests:
        block.append(request)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block
