"""A grader without a model, to rehearse with: it answers by a script, at a price, with delays, faults and deaths.

Bare `fake` answers one of the choices by a hash of the row, at no cost. `fake:SCRIPT.toml` reads:

    usd_per_million_input = "0.15"      # texts, so that they stay exact; both given makes it a paid grader
    usd_per_million_output = "0.60"
    lines_per_attempt = 1               # how many questions one thing sent holds; 1 is a synchronous call
    delay_seconds = 0.01                # for each question
    max_output_tokens = 8               # what a ceiling allows for
    bill = "bill.txt"                   # one line for each answer it worked out: key and dollars, as a provider's bill

    [[reply]]                           # the first whose `match` is found in the row decides
    match = "capital of"                # a regular expression over instruction, input and output
    text = "4.5"                        # absent: one of the choices, by a hash of the row
    finish_reason = "stop"
    outcome = "answered"                # rejected_free, unknown
    error = "backend_error: server said 500"
    usage = { prompt_tokens = 200, completion_tokens = 2 }
    logprobs = { "4" = -2.3026, "4.5" = -0.1054 }
    delay_seconds = 0.5
    die = "sent"                        # kill this process: reserved (before sending), sent, answered
    times = 1                           # only so often, in one process
    prompt = "reasons first"            # and only where this is found in the messages as they are sent

Knows nothing of datasets or tables. Its scores say nothing about the rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import time
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

from alpasift.graders import (
    BackendError,
    BackendKind,
    Estimate,
    Meter,
    Outcome,
    Replies,
    Reply,
    Request,
    batched,
    did_you_mean,
    only_by,
)
from alpasift.graders.api.prices import Price, PriceError, UsageError, ceiling, charge, per_million

_KEYS = {
    "usd_per_million_input",
    "usd_per_million_output",
    "lines_per_attempt",
    "delay_seconds",
    "max_output_tokens",
    "bill",
    "reply",
}
_RULE_KEYS = {
    "match",
    "prompt",
    "text",
    "finish_reason",
    "outcome",
    "error",
    "usage",
    "logprobs",
    "delay_seconds",
    "die",
    "times",
}


@dataclass(slots=True)
class Rule:
    """One [[reply]] of a script."""

    match: re.Pattern[str]
    text: str | None = None
    finish_reason: str = "stop"
    outcome: Outcome = "answered"
    error: str | None = None
    usage: Mapping[str, Any] | None = None
    logprobs: Mapping[str, float] | None = None
    delay_seconds: float = 0.0
    die: str | None = None
    times: int | None = None
    prompt: re.Pattern[str] | None = None
    used: int = field(default=0)


def open(argument: str | None) -> Fake:
    """The fake grader, bare or by a script. Raises BackendError for a script that cannot be read."""
    if argument is None:
        return Fake("fake", {}, {})
    path = Path(argument)
    try:
        data = path.read_bytes()
        script = tomllib.loads(data.decode("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BackendError(f"the script {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    rules = script.get("reply", [])
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise BackendError(f"{path}: replies must be [[reply]] tables")
    in_rules = {k for rule in rules for k in rule}
    for place, given, known in (("", set(script), _KEYS), (" of a [[reply]]", in_rules, _RULE_KEYS)):
        if unknown := sorted(given - known):
            meant = did_you_mean(unknown[0], sorted(known), f"choose from {', '.join(sorted(known))}")
            raise BackendError(f"{path}: unknown key {unknown[0]!r}{place}{meant}")
    fixed = {k: v for k, v in script.items() if k not in ("delay_seconds", "lines_per_attempt", "bill", "reply")}
    answers = [
        {k: v for k, v in rule.items() if k not in ("die", "times", "delay_seconds")}
        for rule in script.get("reply", [])
    ]
    digest = hashlib.sha256(repr((sorted(fixed.items()), answers)).encode()).hexdigest()
    try:
        _check(script)
        return Fake(f"fake:{path.name}", script, {"script": digest})
    except (re.error, ValueError, PriceError) as error:
        raise BackendError(f"{path}: {error}") from error


def _check(script: Mapping[str, Any]) -> None:
    """Raise ValueError for a value of the wrong kind."""

    def want(table: Mapping[str, Any], key: str, kind: type | tuple[type, ...], least: float | None = None) -> None:
        value = table.get(key)
        wrong = value is not None and (isinstance(value, bool) or not isinstance(value, kind))
        if wrong or (value is not None and least is not None and not value >= least):
            raise ValueError(f"{key} = {value!r} is not valid; docs/batches.md has an example of a script")

    number = (int, float)
    want(script, "delay_seconds", number, 0)
    want(script, "lines_per_attempt", int, 1)
    want(script, "max_output_tokens", int, 1)
    want(script, "bill", str)
    if ("usd_per_million_input" in script) != ("usd_per_million_output" in script):
        raise ValueError("give both usd_per_million_input and usd_per_million_output, or neither")
    for rule in script.get("reply", []):
        for key in ("match", "prompt", "text", "finish_reason", "error"):
            want(rule, key, str)
        want(rule, "delay_seconds", number, 0)
        want(rule, "times", int, 1)
        want(rule, "usage", dict)
        want(rule, "logprobs", dict)
        if not all(isinstance(value, float) for value in rule.get("logprobs", {}).values()):
            raise ValueError(f"logprobs = {rule['logprobs']!r}; natural logarithms, -0.1054 for instance")
        for key, allowed in (("outcome", get_args(Outcome)), ("die", ("reserved", "sent", "answered"))):
            if rule.get(key) not in (None, *allowed):
                raise ValueError(f"{key} = {rule[key]!r}; it is one of {', '.join(allowed)}")


_BECAUSE = "A hash of the row says so."


class Fake:
    """See the head of this module."""

    remarks: tuple[str, ...] = ()

    def __init__(self, name: str, script: Mapping[str, Any], fingerprint: Mapping[str, str]) -> None:
        self.name = name
        self.fingerprint: Mapping[str, str] = {"version": "1", **fingerprint}
        self.facts: Mapping[str, str] = {}
        self.leaves_machine = "nothing"
        self.rules = [_rule_of(rule) for rule in script.get("reply", [])]
        self.delay = float(script.get("delay_seconds", 0))
        self.bill = str(script["bill"]) if "bill" in script else None
        self.max_output = int(script.get("max_output_tokens", 8))
        rates = [script.get(f"usd_per_million_{side}") for side in ("input", "output")]
        self.price: Price | None = None
        if None not in rates:
            self.price = per_million(str(rates[0]), str(rates[1]), source=name)
        self.paid = self.price is not None
        self.lines = int(script.get("lines_per_attempt", 1 if self.paid else 5000))

    def cannot(self, request: Request) -> str | None:
        if request.judged_from_row:
            return only_by(request)
        if request.want_logprobs and not any(rule.logprobs for rule in self.rules):
            return "log-probabilities are given only where its script holds `logprobs`"
        return None

    def estimate(self, requests: Iterable[Request]) -> Estimate:
        count = tokens = output = 0
        usd = top = Decimal(0)
        for request in requests:
            usage = self._usage(request, None)
            count, tokens, output = count + 1, tokens + usage["prompt_tokens"], output + usage["completion_tokens"]
            if self.price is not None:
                usd += charge(self.price, usage)
                top += self._ceiling(request)
        return Estimate(count, usd, usd, top, top, count * self.delay, tokens, output)

    def answer(self, requests: Iterable[Request], meter: Meter) -> Replies:
        for block in batched(requests, self.lines):
            rules = [self._rule(request) for request in block]
            ceilings = [self._ceiling(request) for request in block]
            attempt = meter.open([r.key for r in block], ceilings, self.price.frozen() if self.price else None)
            self._die(rules, "reserved")
            if self.paid:
                meter.note(attempt, "sent")
            self._die(rules, "sent")
            for i, (request, rule) in enumerate(zip(block, rules, strict=True)):
                wait = self.delay + (rule.delay_seconds if rule else 0.0)
                if wait:
                    time.sleep(wait)
                reply = self._reply(attempt, i, request, rule)
                self._write_bill(reply)
                yield [reply]
                self._die([rule], "answered")
            meter.close(attempt)

    def close(self) -> None:
        """Nothing to give back."""

    def _write_bill(self, reply: Reply) -> None:
        if self.bill is not None and self.price is not None and reply.outcome == "answered":
            with contextlib.suppress(UsageError):  # what nobody can work out is on no bill
                self._add_to_bill(f"{reply.key} {charge(self.price, reply.usage)}\n")

    def _add_to_bill(self, line: str) -> None:
        if self.bill is not None:
            handle = os.open(self.bill, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.write(handle, line.encode())
            os.close(handle)

    def _rule(self, request: Request) -> Rule | None:
        text = "\n".join(_texts(request))
        for rule in self.rules:
            if rule.match.search(text) and (rule.times is None or rule.used < rule.times) and _asked(rule, request):
                rule.used += 1
                return rule
        return None

    def _reply(self, attempt: str, number: int, request: Request, rule: Rule | None) -> Reply:
        identity = f"{attempt}-{number}"
        if rule is not None and rule.outcome != "answered":
            return Reply(
                attempt, request.key, identity, rule.outcome, error=rule.error or rule.outcome, model=self.name
            )
        text = rule.text if rule is not None and rule.text is not None else _hashed_choice(request)
        finish = rule.finish_reason if rule is not None else "stop"
        usage = self._usage(request, rule) if self.paid or (rule is not None and rule.usage is not None) else None
        logprobs = rule.logprobs if rule is not None and request.want_logprobs else None
        return Reply(attempt, request.key, identity, "answered", text, finish, self.name, usage, logprobs)

    def _usage(self, request: Request, rule: Rule | None) -> dict[str, Any]:
        if rule is not None and rule.usage is not None:
            return dict(rule.usage)
        return {"prompt_tokens": _prompt_tokens(request), "completion_tokens": 2}

    def _ceiling(self, request: Request) -> Decimal:
        if self.price is None:
            return Decimal(0)
        return ceiling(self.price, _prompt_tokens(request), max(self.max_output, request.max_tokens))

    def _die(self, rules: Iterable[Rule | None], point: str) -> None:
        if any(rule is not None and rule.die == point for rule in rules):
            os.kill(os.getpid(), signal.SIGKILL)


def _rule_of(given: Mapping[str, Any]) -> Rule:
    patterns = {key: re.compile(given.get(key, "")) for key in ("match", "prompt") if key == "match" or key in given}
    return Rule(**{**given, **patterns})


def _asked(rule: Rule, request: Request) -> bool:
    return rule.prompt is None or any(rule.prompt.search(text) for _, text in request.messages)


def _texts(request: Request) -> tuple[str, ...]:
    """What an answer is worked out from: the row, or the messages of a question about no single row."""
    row = request.example
    return (row.instruction, row.input, row.output) if row else tuple(text for _, text in request.messages)


def _prompt_tokens(request: Request) -> int:
    return sum(len(text.encode("utf-8", "replace")) for _, text in request.messages) // 4 + 8


def _hashed_choice(request: Request) -> str:
    """One of the choices by a hash of the row and, for a sample above the first, of its number; in the form wanted."""
    hashed = "\0".join((*_texts(request), *([str(request.sample)] if request.sample else [])))
    place = int.from_bytes(hashlib.sha256(hashed.encode("utf-8", "replace")).digest()[:8], "big")
    if request.json_schema is not None:  # a value of each enumeration, and words for all else
        found = {
            name: value["enum"][place % len(value["enum"])] if "enum" in value else _BECAUSE
            for name, value in request.json_schema["properties"].items()
        }
        return json.dumps(found)
    choices = request.choices or ("0", "1")
    choice = choices[place % len(choices)]
    forms = {"no": choice, "after": f"{choice}\n{_BECAUSE}", "before": f"{_BECAUSE}\n{request.choice_prefix}{choice}"}
    return forms[request.explain]


KIND = BackendKind(open=open)
