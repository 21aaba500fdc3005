"""The OpenAI Batch API as a grader: files of requests at half price, answered within a day, never paid for twice.

Knows what a request is worth and what it may cost; how files are sent and collected is in `batch_desk`. Before the
first file one request goes synchronously, with the same body: a parameter that the model refuses then costs one
request and not a day. Whether a question went by batch or by a call is recorded, not part of who answered it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import orjson

from graders import (
    BackendError,
    Estimate,
    Meter,
    Reply,
    Request,
)
from graders.batch_desk import WINDOW_SECONDS, Desk, Line
from graders.batch_files import request_line
from graders.openai_api import (
    BODY,
    Family,
    base_url_of,
    body_of,
    cannot,
    check_model,
    expected_output,
    family_of,
    host_of,
    is_loopback,
    output_cap,
)
from graders.openai_api import lacks as lacks
from graders.prices import Price, age_warning, ceiling, per_million, price_of
from graders.tokens import bound, count

OPTIONS = (
    "base_url", "wait", "poll_seconds", "grace_seconds", "batch_rows", "enqueued_tokens", "allow_drift", "prices",
    "stands_for", "executed_by",
)  # fmt: skip
MAX_ROWS = 50_000
ASSUMED_QUEUE = 2_000_000
"""Enqueued prompt tokens assumed for a plan where no limit is known: that of a low usage tier."""


def open(
    argument: str | None,
    *,
    base_url: str | None = None,
    wait: bool = True,
    poll_seconds: float = 30.0,
    grace_seconds: float = 30.0,
    batch_rows: int = MAX_ROWS,
    enqueued_tokens: int | None = None,
    allow_drift: bool = False,
    prices: str | None = None,
    stands_for: str | None = None,
    executed_by: str = "openai",
) -> OpenAIBatch:
    """The grader openai_batch:MODEL. Sends nothing. Raises BackendError for a bad name, address or option.

    `stands_for` is the address whose place a rehearsal's server takes: model, price and identity are that one's.
    `executed_by` "vllm" is for files that are carried to `vllm run-batch` by hand: an open model, at no price.
    """
    model = check_model(argument, "openai_batch")
    if not 1 <= batch_rows <= MAX_ROWS:
        raise BackendError(f"--batch-rows {batch_rows}: a batch file holds 1 to {MAX_ROWS:,} requests")
    if enqueued_tokens is not None and enqueued_tokens < 1:
        raise BackendError(f"--enqueued-tokens {enqueued_tokens}: a number of prompt tokens, 1 or more")
    if poll_seconds < 0 or grace_seconds < 0:
        raise BackendError("--poll-seconds and --grace-seconds are 0 or more")
    if executed_by not in ("openai", "vllm"):
        raise BackendError(f"--executed-by {executed_by}: openai or vllm")
    url = base_url_of(base_url)
    host = "vllm-run-batch" if executed_by == "vllm" else host_of(stands_for or url)
    return OpenAIBatch(
        model, url, host, stands_for, wait, poll_seconds, grace_seconds, batch_rows, enqueued_tokens, allow_drift,
        Path(prices) if prices else None,
    )  # fmt: skip


class OpenAIBatch:
    """See the head of this module."""

    remarks: tuple[str, ...] = ()

    def __init__(
        self,
        model: str,
        base_url: str,
        host: str,
        stands_for: str | None,
        wait: bool,
        poll_seconds: float,
        grace_seconds: float,
        batch_rows: int,
        enqueued_tokens: int | None,
        allow_drift: bool,
        prices: Path | None,
    ) -> None:
        self.model, self.base_url, self.wait = model, base_url, wait
        self.poll_seconds, self.grace_seconds = poll_seconds, grace_seconds
        self.batch_rows, self.enqueued_tokens, self.allow_drift, self.prices = (
            batch_rows,
            enqueued_tokens,
            allow_drift,
            prices,
        )
        self.host, self.stands_for = host, stands_for
        self.by_hand = host == "vllm-run-batch"
        self.family = Family(structured=True) if self.by_hand else family_of(model, host)
        self.name = f"openai:{model}"
        self.fingerprint = {"api": "chat", "body": BODY, "host": self.host, "model": model}
        self.facts: Mapping[str, str] = {"by": "batch", "base_url": base_url}
        self.paid = not self.by_hand
        self.leaves_machine = (
            "nothing" if is_loopback(host_of(base_url)) or self.by_hand else f"rows and rubric, to {host}"
        )
        self.says = ""
        self._counted: tuple[Iterable[Request], array[int]] | None = None
        self._price: dict[bool, Price] = {}
        self._schema: dict[tuple[str, ...], int] = {}

    def price(self, *, batch: bool) -> Price:
        """The price by batch or by single call. Raises PriceError for a model without one."""
        if self.by_hand:
            return per_million("0", "0", source="carried out on a machine of one's own")
        if batch not in self._price:
            self._price[batch] = price_of(self.model, host=self.host, batch=batch, overrides=self.prices)
        return self._price[batch]

    def refuses(self, rubric: str) -> str | None:
        return "the rubric `rules` is answered by the grader `rules` only" if rubric == "rules" else None

    def cannot(self, request: Request) -> str | None:
        return cannot(request, self.model, self.host, self.family)

    def tokens_of(self, request: Request) -> int:
        """The most prompt tokens that a request can be billed for."""
        shape = request.choices or ()
        if shape not in self._schema:
            said = body_of(request, self.model, self.family).get("response_format")
            self._schema[shape] = 12 + count(orjson.dumps(said).decode(), self.model, self.host) if said else 0
        return bound(request.messages, self.model, self.host, extra=self._schema[shape])

    def estimate(self, requests: Iterable[Request]) -> Estimate:
        """What it should cost by batch. Counts every prompt; raises PriceError for a model without a price."""
        price, sync = self.price(batch=True), self.price(batch=False)
        counts, output, most_output = array("q"), 0, 0
        cap: dict[tuple[int, int], tuple[int, int]] = {}
        for request in requests:
            tokens = self.tokens_of(request)
            counts.append(tokens)
            shape = (request.max_tokens, len(request.choices or ()))
            if shape not in cap:
                cap[shape] = (expected_output(request, self.family), output_cap(request, self.family))
            expected, most = cap[shape]
            output += expected
            most_output += most
        self._counted = (requests, counts)
        total = sum(counts)
        usd = total * price.input + output * price.output
        sync_usd = total * sync.input + output * sync.output
        top = ceiling(price, total, most_output)
        if counts:  # the first goes synchronously
            top += ceiling(sync, counts[0], max(most for _, most in cap.values()))
        queue = self.enqueued_tokens or ASSUMED_QUEUE
        files = max(-(-len(counts) // self.batch_rows), -(-total // queue)) if counts else 0
        notes = [f"the queue limit of this account is not known; {queue:,} enqueued tokens are assumed"]
        if self.enqueued_tokens:
            notes = [f"at most {queue:,} enqueued tokens, as given"]
        old = age_warning(price, datetime.now(UTC).date(), self.model)
        notes += [old] if old else []
        hours_low, hours_high = files * 600.0, files * float(WINDOW_SECONDS)
        spread = Decimal("0.9")  # the bound counts a little more than a tokenizer, hidden thinking may vary
        return Estimate(
            len(counts), usd, usd * spread, min(top, usd * 2), top, hours_high if counts else 0.0, total, output,
            seconds_low=hours_low, seconds_high=hours_high, sync_usd=sync_usd, rounds=files, notes=tuple(notes),
        )  # fmt: skip

    def answer(self, requests: Iterable[Request], meter: Meter) -> Iterator[list[Reply]]:
        yield from Desk(self, meter).answer(requests)

    def collect(self, meter: Meter, *, wait: bool = False) -> Iterator[list[Reply]]:
        yield from Desk(self, meter).collect(wait)

    def cancel(self, attempt: str, meter: Meter) -> Iterator[list[Reply]]:
        yield from Desk(self, meter).cancel(attempt)

    def close(self) -> None:
        """Nothing to give back; the client lives as long as one answer."""

    def lines(self, requests: Iterable[Request]) -> Iterator[Line]:
        """The requests as lines of a file, each with its ceiling."""
        price, ceilings = self.price(batch=True), dict[tuple[int, int], Decimal]()
        counted = self._counted[1] if self._counted is not None and self._counted[0] is requests else None
        for i, request in enumerate(requests):
            tokens = counted[i] if counted is not None and i < len(counted) else self.tokens_of(request)
            data = request_line(request.key, body_of(request, self.model, self.family))
            shape = (tokens, output_cap(request, self.family))
            if shape not in ceilings:
                ceilings[shape] = ceiling(price, *shape)
            yield Line(request.key, ceilings[shape], tokens, data, request)
