"""The canary: before the first batch some questions go as single calls, with the very body that the batch will carry.

A parameter that the model refuses then costs one request and not a day, and a model whose answers cannot be read some
answers and not a batch. One answer will do before a small batch, if it can be read; five are asked for otherwise. Each
call is an attempt of its own, and its reply is its row's reply: that row is not in the batch. An answer also names the
snapshot that answers.
"""

from __future__ import annotations

import time
from decimal import Decimal

from alpasift.graders import AlpaSiftError, BackendError, BudgetExceeded, Replies, Reply, SendingStopped
from alpasift.graders.api.api_errors import OUT_OF_MONEY, error_of, explain, is_ambiguous, refusal_of, retry_after
from alpasift.graders.api.batch_client import BatchClient
from alpasift.graders.api.batch_sender import Sender
from alpasift.graders.api.keys import clean
from alpasift.graders.api.prices import MAX_PROMPT_TOKENS, ceiling
from alpasift.graders.api.request_files import RequestLine
from alpasift.graders.api.wire_format import answer_object, body_of, output_cap, reply_of

UNCLEAR = 2
"""Calls without a clear answer after which no batch is sent."""
REFUSED = 5
"""Rows refused one after the other, each for its own text, after which no batch is sent."""
GROUP = 5
"""Answers that are looked at before the first batch: where none of the first ones could be read, or where the batch is
large."""
LARGE = 50
"""Rows from which on a batch is large: more than the early stop of single calls would pay for."""
AFFORDABLE = 10
"""All calls of a group may take one part in so many of what is free; else the first answer has to do."""
WAITS = 5
"""How often a call is made again that the server did not take (429)."""


class Canary:
    """Asks until some questions are answered, and stops the sender where every other row would fare the same."""

    def __init__(self, client: BatchClient, sender: Sender) -> None:
        self.client, self.sender = client, sender
        self.meter, self.options, self.attempts = sender.meter, client.options, sender.attempts

    def ask(self) -> Replies:
        lines = self.sender.lines
        if lines.peek() is None or self.sender.stop is not None:
            return
        calls = answers = 0
        while (line := lines.next()) is not None:
            if line.request is None or line.tokens > MAX_PROMPT_TOKENS:
                lines.put_back([line])
                return
            try:
                attempt = self._open(line)
            except BudgetExceeded:
                lines.put_back([line])
                if answers or self.attempts.at_provider():
                    return
                raise
            except SendingStopped as error:
                lines.put_back([line])
                self.sender.stop_with(error)
                return
            reply, trouble = self._call(attempt, line)
            if reply.outcome == "answered" and reply.model:
                trouble = trouble or self._drift(attempt, reply.model)
            yield [reply]
            self.meter.close(attempt)
            yield []
            calls += 1
            trouble = trouble or self._verdict(line, reply, calls)
            if trouble is not None:
                self.sender.stop_with(trouble)
                return
            answers += reply.outcome == "answered"
            if answers and not self._wants_more(answers, lines.peek()):
                return
            if reply.outcome == "unknown":
                lines.put_back([line])

    def _wants_more(self, answers: int, next_line: RequestLine | None) -> bool:
        """Whether another answer is worth its price before a batch is sent."""
        if answers >= GROUP or next_line is None or next_line.request is None:
            return False
        if self.meter.any_usable and self.sender.count < LARGE:
            return False
        return GROUP * AFFORDABLE * self._ceiling(next_line) <= self.meter.free()

    def _ceiling(self, line: RequestLine) -> Decimal:
        assert line.request is not None
        price = self.sender.grader.price(batch=False)
        return ceiling(price, line.tokens, output_cap(line.request, self.options.family))

    def _open(self, line: RequestLine) -> str:
        """Commit the call with its ceiling, at the price of a single call."""
        assert line.request is not None
        price = self.sender.grader.price(batch=False)
        most = self._ceiling(line)
        facts = {"kind": "canary", "model": self.options.model, "input_tokens": line.tokens}
        return self.meter.open([line.key], most, price.frozen(), facts)

    def _call(self, attempt: str, line: RequestLine) -> tuple[Reply, AlpaSiftError | None]:
        """One synchronous call. Returns its reply, and an error where every other row would fare the same."""
        import openai

        assert line.request is not None
        body = body_of(line.request, self.options.model, self.options.family)
        waits = 0
        while True:
            try:
                raw = self.client.sdk.chat.completions.with_raw_response.create(**body)
                data = answer_object(raw.http_response.content)
                identity = (data or {}).get("id") or raw.http_response.headers.get("x-request-id") or attempt
                return reply_of(attempt, line.key, identity, data), None
            except openai.APIError as error:
                status = getattr(error, "status_code", 0)
                code, message = error_of(getattr(error, "body", None))
                if status == 429 and code not in OUT_OF_MONEY and waits < WAITS:
                    waits += 1
                    time.sleep(retry_after(error, max(self.options.poll_seconds, 0.1)))
                    continue
                explained = explain(error, self.options.base_url)
                if is_ambiguous(error):
                    return Reply(attempt, line.key, attempt, "unknown", error=f"no_answer: {explained}"), None
                reason = refusal_of(status, code, message or str(error))
                reply = Reply(attempt, line.key, attempt, "rejected_free", error=reason)
                if reason.startswith(("too_long", "refused")):  # this row's fault, not the body's
                    return reply, None
                return reply, self._refused_body(status, clean(f"{code} {message}".strip()), explained)

    def _refused_body(self, status: int, message: str, explained: BackendError) -> BackendError:
        if status not in (400, 422):
            return explained
        return BackendError(
            f"{self.options.model} does not accept the request ({message}); it cost nothing, and no batch was sent"
        )

    def _drift(self, attempt: str, snapshot: str) -> AlpaSiftError | None:
        """An error when another snapshot answers than the one that graded here before."""
        before = self.meter.noted("snapshot")
        if before is not None and before != snapshot and not self.options.allow_drift:
            return BackendError(
                f"{self.options.model} was {before} when it graded here and is {snapshot} now: scores may not be "
                "comparable. No batch was sent; --allow-drift sends it anyway, or use the snapshot as the model"
            )
        self.meter.note(attempt, "answered", {"snapshot": snapshot})
        return None

    def _verdict(self, line: RequestLine, reply: Reply, calls: int) -> AlpaSiftError | None:
        """An error when the reply shows that a batch would be in vain; None when it does not, or not yet."""
        if reply.outcome == "answered":
            if (reply.text or "").strip() or reply.finish_reason != "length" or line.request is None:
                return None
            cap = output_cap(line.request, self.options.family)
            return BackendError(
                f"{self.options.model} used all of its {cap} output tokens without an answer, and would for every row; "
                "nothing more was sent. Use a model that can answer without thinking"
            )
        if reply.outcome == "unknown" and calls >= UNCLEAR:
            return BackendError(
                f"{self.options.host} gave no valid answer to the first request ({reply.error}); no batch was sent"
            )
        if reply.outcome == "rejected_free" and calls >= REFUSED:
            return BackendError(f"{self.options.host} refused {calls} rows in a row: {reply.error}")
        return None
