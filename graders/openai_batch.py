"""The OpenAI Batch API as a grader: files of requests at half price, answered within a day, never paid for twice.

Knows what a request is worth and what it may cost; how files are sent and collected is in `batch_worker`. Before the
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

from alpasift.graders import BackendError, BackendKind, Estimate, Meter, Replies, Request
from alpasift.graders.api.batch_client import BatchOptions
from alpasift.graders.api.batch_recovery import WINDOW_SECONDS
from alpasift.graders.api.batch_worker import BatchWorker
from alpasift.graders.api.connection import base_url_of, host_of, missing_for, missing_requirements, way_to
from alpasift.graders.api.model_families import Family, check_model, family_of
from alpasift.graders.api.price_lookup import age_warning, price_of
from alpasift.graders.api.prices import Price, ceiling, per_million
from alpasift.graders.api.request_files import RequestLine, request_line
from alpasift.graders.api.tokens import bound, count
from alpasift.graders.api.wire_format import BODY, body_of, cannot, expected_output, output_cap

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
    `executed_by` "vllm" is for files that a person carries to `vllm run-batch`: an open model, at no price.
    """
    model = check_model(argument, "openai_batch")
    if not 1 <= batch_rows <= MAX_ROWS:
        raise BackendError(f"--batch-rows {batch_rows}: must be 1 to {MAX_ROWS:,}")
    if enqueued_tokens is not None and enqueued_tokens < 1:
        raise BackendError(f"--enqueued-tokens {enqueued_tokens}: must be 1 or more")
    if poll_seconds < 0 or grace_seconds < 0:
        raise BackendError("--poll-seconds and --grace-seconds must be 0 or more")
    if executed_by not in ("openai", "vllm"):
        raise BackendError(f"--executed-by {executed_by}: openai or vllm")
    url = base_url_of(base_url)
    host = "vllm-run-batch" if executed_by == "vllm" else host_of(stands_for or url)
    sent = BatchOptions(
        model=model,
        base_url=url,
        host=host,
        stands_for=stands_for,
        family=Family(structured=True) if executed_by == "vllm" else family_of(model, host),
        wait=wait,
        poll_seconds=poll_seconds,
        grace_seconds=grace_seconds,
        batch_rows=batch_rows,
        enqueued_tokens=enqueued_tokens,
        allow_drift=allow_drift,
    )
    return OpenAIBatch(sent, executed_by, Path(prices) if prices else None)


class OpenAIBatch:
    """See the head of this module."""

    remarks: tuple[str, ...] = ()

    def __init__(self, options: BatchOptions, executed_by: str, prices: Path | None) -> None:
        self.options, self.executed_by, self.prices = options, executed_by, prices
        self.model, self.host, self.family = options.model, options.host, options.family
        self.base_url, self.batch_rows = options.base_url, options.batch_rows
        self.paid = executed_by == "openai"
        self.name = f"openai:{self.model}"
        self.fingerprint: Mapping[str, str] = {"api": "chat", "body": BODY, "host": self.host, "model": self.model}
        self.facts: Mapping[str, str] = {"by": "batch", "base_url": options.base_url}
        self.leaves_machine = way_to(options.base_url, self.host) if self.paid else "nothing"
        self._queue_limit: tuple[int, datetime] | None = None
        self._counted: tuple[Iterable[Request], array[int]] | None = None
        self._price: dict[bool, Price] = {}
        self._schema: dict[tuple[str, ...], int] = {}

    def price(self, *, batch: bool) -> Price:
        """The price by batch or by single call. Raises PriceError for a model without one."""
        if not self.paid:
            return per_million("0", "0", source="run on your own machine")
        if batch not in self._price:
            self._price[batch] = price_of(self.model, host=self.host, batch=batch, overrides=self.prices)
        return self._price[batch]

    def cannot(self, request: Request) -> str | None:
        return cannot(request, self.model, self.host, self.family)

    def missing(self) -> str | None:
        return missing_for(self.options.base_url)

    def recall_queue_limit(self, tokens: int, stated_at: datetime) -> None:
        self._queue_limit = tokens, stated_at

    def tokens_of(self, request: Request) -> int:
        """The most prompt tokens that a request can be billed for."""
        form = request.choices or ()
        if form not in self._schema:
            wanted = body_of(request, self.model, self.family).get("response_format")
            self._schema[form] = 12 + count(orjson.dumps(wanted).decode(), self.model, self.host) if wanted else 0
        return bound(request.messages, self.model, self.host, extra=self._schema[form])

    def estimate(self, requests: Iterable[Request]) -> Estimate:
        """What it should cost by batch. Counts every prompt; raises PriceError for a model without a price."""
        price, sync = self.price(batch=True), self.price(batch=False)
        counts, output, most_output = array("q"), 0, 0
        cap: dict[tuple[int, int, int | None], tuple[int, int]] = {}
        for request in requests:
            tokens = self.tokens_of(request)
            counts.append(tokens)
            form = (request.max_tokens, len(request.choices or ()), request.expected_output_tokens)
            if form not in cap:
                cap[form] = (expected_output(request, self.family), output_cap(request, self.family))
            expected, most = cap[form]
            output += expected
            most_output += most
        self._counted = (requests, counts)
        total = sum(counts)
        usd = total * price.input + output * price.output
        sync_usd = total * sync.input + output * sync.output
        top = ceiling(price, total, most_output)
        if counts:  # the first goes synchronously
            top += ceiling(sync, counts[0], max(most for _, most in cap.values()))
        files = -(-len(counts) // self.batch_rows)
        queue, known_from = self._queue()
        at_worst = max(files, -(-total // queue))  # a job larger than the queue goes in parts, one after the other
        notes = []
        if known_from:
            files = at_worst
            notes = [f"at most {queue:,} enqueued tokens, {known_from}"]
        elif at_worst > files:
            notes = [
                f"the queue limit of this account is unknown: {at_worst} batches, one after the other, at "
                f"{queue:,} enqueued tokens, the limit of a low usage tier; {files} if all {total:,} fit "
                "(set it with --enqueued-tokens N)"
            ]
        old = age_warning(price, datetime.now(UTC).date(), self.model)
        notes += [old] if old else []
        low, high = files * 600.0, at_worst * float(WINDOW_SECONDS)
        spread = Decimal("0.9")  # the bound counts a little more than a tokenizer, hidden thinking may vary
        return Estimate(
            len(counts),
            usd,
            usd * spread,
            min(top, usd * 2),
            top,
            high if counts else 0.0,
            total,
            output,
            seconds_low=low,
            seconds_high=high,
            sync_usd=sync_usd,
            rounds=files,
            notes=tuple(notes),
        )

    def _queue(self) -> tuple[int, str]:
        """Prompt tokens that may wait at the provider, and where the number is from; "" for the assumed one."""
        if self.options.enqueued_tokens:
            return self.options.enqueued_tokens, "as given"
        if self._queue_limit:
            tokens, stated_at = self._queue_limit
            changed = "--enqueued-tokens N where the account has another limit by now"
            return tokens, f"as {self.host} stated on {stated_at:%Y-%m-%d %H:%M} UTC ({changed})"
        return ASSUMED_QUEUE, ""

    def answer(self, requests: Iterable[Request], meter: Meter) -> Replies:
        yield from BatchWorker(self, meter).answer(requests)

    def collect(self, meter: Meter, *, wait: bool = False) -> Replies:
        yield from BatchWorker(self, meter).collect(wait)

    def cancel(self, attempt: str, meter: Meter) -> Replies:
        yield from BatchWorker(self, meter).cancel(attempt)

    def close(self) -> None:
        """Nothing to give back; the client lives as long as one answer."""

    def lines(self, requests: Iterable[Request]) -> Iterator[RequestLine]:
        """The requests as lines of a file, each with its ceiling."""
        price, ceilings = self.price(batch=True), dict[tuple[int, int], Decimal]()
        counted = self._counted[1] if self._counted is not None and self._counted[0] is requests else None
        for i, request in enumerate(requests):
            tokens = counted[i] if counted is not None and i < len(counted) else self.tokens_of(request)
            data = request_line(request.key, body_of(request, self.model, self.family))
            form = (tokens, output_cap(request, self.family))
            if form not in ceilings:
                ceilings[form] = ceiling(price, *form)
            yield RequestLine(request.key, ceilings[form], tokens, data, request)


KIND = BackendKind(
    open=open,
    options=(
        "base_url",
        "wait",
        "poll_seconds",
        "grace_seconds",
        "batch_rows",
        "enqueued_tokens",
        "allow_drift",
        "prices",
        "stands_for",
        "executed_by",
    ),
    missing_requirements=missing_requirements,
    called="openai",
)
