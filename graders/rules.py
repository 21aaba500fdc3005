"""Rules: what is certainly broken about a row, by its form alone. No model, no network, no cost.

Knows nine defects that one can see without understanding the text, and answers the rubric `rules` only: "1" when
nothing was found, "0" and on the next line the reason and what was seen when something was. It judges nothing else:
an answer that is fluent, well-formed and wrong gets a 1. Its use is to spend no grader's money on rows that no
grader should see, and to show what is in a file.

A row that is broken and passes costs a fraction of a cent later; a good row that is thrown out is gone. So every
rule asks for certainty, and where an innocent row could look the same (a letter that begins "I'm sorry", a list of
words that ends with "the") the rule says nothing. The defects are those that the cleaners of Stanford Alpaca's data
list (github.com/gururise/AlpacaDataCleaned); the patterns were written against random rows of it. Only the graded
pair is looked at, never the turns before it.

Every pattern runs in time linear in the row: none that is searched for begins with an unbounded repetition, and those
about the end see the last 400 characters only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal

from alpasift.graders import (
    BackendError,
    BackendKind,
    Estimate,
    Example,
    Meter,
    Replies,
    Reply,
    Request,
    batched,
    only_by,
)
from alpasift.graders.row_form.addresses_grader import addresses_the_grader
from alpasift.graders.row_form.characters import control_characters
from alpasift.graders.row_form.cut_off import cut_off
from alpasift.graders.row_form.empty import empty_output, no_input_marker
from alpasift.graders.row_form.leftovers import merged_tasks, repeats_input
from alpasift.graders.row_form.media import needs_image_or_url
from alpasift.graders.row_form.refusals import refusal

VERSION = "2"
"""Raise it when any row would be judged differently: it is part of every question's identity."""

JUDGES = (
    "rules checks form only: empty or cut-off outputs, refusals, leftovers of the generator, inputs a text model "
    "cannot read, control characters, texts that address the grader. It cannot detect wrong answers: a fluent, "
    "well-formed and wrong answer gets a 1."
)
"""What the command line says beside every result of this backend."""

BLOCK = 5_000  # rows of one attempt
PART = 1_000  # replies of one list
SECONDS_EACH = (
    0.0001  # three to six times what was measured before the ninth rule: 9,229 rows of Alpaca in 0.15 to 0.30 s
)

Rule = Callable[[Example], str | None]


RULES: tuple[tuple[str, Rule], ...] = (
    ("empty_output", empty_output),
    ("no_input_marker", no_input_marker),
    ("merged_tasks", merged_tasks),
    ("repeats_input", repeats_input),
    ("refusal", refusal),
    ("cut_off", cut_off),
    ("needs_image_or_url", needs_image_or_url),
    ("control_characters", control_characters),
    ("addresses_the_grader", addresses_the_grader),
)
"""(reason, function) in the order they are asked; the first that finds something gives the row its reason."""


def judge(example: Example) -> str:
    """The reply to the rubric `rules`: "1", or "0" and on the next line the reason and what was seen."""
    for reason, rule in RULES:
        detail = rule(example)
        if detail is not None:
            return f"0\n{reason}: {detail}"
    return "1"


class Rules:
    """The backend `rules`."""

    remarks: tuple[str, ...] = ()

    name = "rules"
    fingerprint: Mapping[str, str] = {"rules": VERSION}
    facts: Mapping[str, str] = {}
    paid = False
    leaves_machine = "nothing"

    def cannot(self, request: Request) -> str | None:
        if not request.judged_from_row:
            return "rules checks only a row's form; grade with --rubric rules, or use a model"
        if request.judged_by != self.name:
            return only_by(request)
        return "rules gives no log-probabilities" if request.want_logprobs else None

    def estimate(self, requests: Iterable[Request]) -> Estimate:
        count, free = sum(1 for _ in requests), Decimal(0)
        return Estimate(count, free, free, free, free, count * SECONDS_EACH, 0, 0)

    def answer(self, requests: Iterable[Request], meter: Meter) -> Replies:
        for block in batched(requests, BLOCK):
            attempt = meter.open([request.key for request in block], Decimal(0))
            for start in range(0, len(block), PART):
                part = block[start : start + PART]
                yield [self._reply(attempt, str(start + i), request) for i, request in enumerate(part)]
            meter.close(attempt)

    def _reply(self, attempt: str, request_id: str, request: Request) -> Reply:
        reason = self.cannot(request)
        if reason is not None or request.example is None:
            return Reply(attempt, request.key, request_id, "rejected_free", error=reason or "there is no row to check")
        text = judge(request.example)
        return Reply(attempt, request.key, request_id, "answered", text, finish_reason="stop", model="rules")

    def close(self) -> None:
        pass


def open(argument: str | None) -> Rules:
    """Raises BackendError when an argument is given: there is nothing to choose."""
    if argument is not None:
        raise BackendError(f"the grader rules takes no argument; found {argument!r}")
    return Rules()


KIND = BackendKind(open=open, rubric="rules")
