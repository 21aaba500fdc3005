"""What flows between a task, a backend and the engine: requests in, replies out, and estimates of both.

Plain frozen values; nothing here knows a backend, money or the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

Outcome = Literal["answered", "rejected_free", "unknown"]
Explain = Literal["no", "after", "before"]
CHOICE_LINE_TOKENS = 16
"""Tokens of an answer that are kept for its last line, where free text comes before the choice."""


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

    messages         (role, text) pairs, the fixed text first
    example          the row itself, for a backend that looks at rows and not at text (rules, fake); None where the
                     question is about no single row
    judged_from_row  the answer comes from looking at `example`; the messages are not meant for a model
    judged_by        which grader looks at it then
    choices          the only answers that count: a backend that can constrain its decoding must
    json_schema      the answer is an object of this schema; `choices` are then not given
    want_logprobs    the log-probability of every choice is wanted, in Reply.logprobs; their probabilities sum to 1
    sample           numbers repeated draws of the same question, which differ where `temperature` is above 0
    explain          no      the answer is the choice alone; it ends with its line
                     after   the choice on the first line, then free text; the choice is the same as under "no"
                     before  free text, then a line of `choice_prefix` and the choice. A backend that can constrain its
                             decoding writes the prefix itself when the text ends or has taken
                             max_tokens - CHOICE_LINE_TOKENS
    choice_key       what the choice is called where a backend constrains it to a JSON object
    expected_output_tokens   how long an answer usually is, for estimates; None where the task does not know
    """

    key: str
    messages: tuple[tuple[str, str], ...]
    example: Example | None = None
    max_tokens: int = 8
    temperature: float = 0.0
    choices: tuple[str, ...] | None = None
    json_schema: Mapping[str, Any] | None = None
    want_logprobs: bool = False
    sample: int = 0
    explain: Explain = "no"
    choice_prefix: str = ""
    choice_key: str = "score"
    judged_from_row: bool = False
    judged_by: str = "rules"
    expected_output_tokens: int | None = None


def only_by(request: Request) -> str:
    """What a backend says of a request that is judged from the row by another grader."""
    return f"the rubric `{request.judged_by}` works with the grader `{request.judged_by}` only"


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back for one request of one attempt.

    outcome  answered       the backend answered; `usage` is what it reports
             rejected_free  it was refused or skipped and cost nothing; `error` is the reason
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
    seconds_from    where the seconds of a local model are from, None for other backends
    own_tokens      of a local model: the input without the text that all prompts begin with; None where not counted
    row_characters  the characters of the rows themselves, 0 where not counted
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
    seconds_from: Literal["predicted", "measured"] | None = None
    own_tokens: int | None = None
    row_characters: int = 0


@dataclass(frozen=True, slots=True)
class ModelSize:
    """A local model and the machine it is on, as far as its speed depends on them.

    weights   the hash of its files, as in the fingerprint
    machine   the processor and the threads, or the cards: equal texts are as fast
    cards     that share the model; 0 on a processor, of which `cores` are used
    """

    parameters: int
    weights: str
    machine: str
    cores: int
    cards: int = 0


@dataclass(frozen=True, slots=True)
class OpenAttempt:
    """An attempt that is still open, as the ledger remembers it: its last step, and the facts of all its steps."""

    attempt: str
    state: str
    facts: Mapping[str, Any] = field(default_factory=dict)
