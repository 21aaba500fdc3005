"""Any OpenAI-compatible server as a grader, call by call: the answer is there in a second, at the full price.

Knows what a request is worth and what it may cost; how calls are kept in flight, and what each way of failing means for
the money, is in `api/call_scheduler`. The grader has the name and the fingerprint of `openai_batch`: by which way a
question went is recorded and not hashed, so what one has answered the other leaves out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from alpasift.graders import BackendError, BackendKind, Estimate, Meter, Replies, Request
from alpasift.graders.api.call_scheduler import PAUSES, CallScheduler
from alpasift.graders.api.connection import base_url_of, host_of, missing_for, missing_requirements, way_to
from alpasift.graders.api.model_families import check_model, constrained, family_of
from alpasift.graders.api.price_lookup import UnknownPrice, age_warning, price_of
from alpasift.graders.api.prices import Price, ceiling
from alpasift.graders.api.tokens import bound, tokenizer_for
from alpasift.graders.api.wire_format import BODY, cannot, expected_output, output_cap

IN_FLIGHT = 8
MOST_IN_FLIGHT = 512
SECONDS_A_CALL = 1.0
"""Assumed for a plan; nobody knows before the first call."""


def open(
    argument: str | None,
    *,
    base_url: str | None = None,
    in_flight: int = IN_FLIGHT,
    prices: str | None = None,
    allow_drift: bool = False,
    stands_for: str | None = None,
    constrain: str = "auto",
) -> OpenAIChat:
    """The grader openai_chat:MODEL. Sends nothing. Raises BackendError for a bad name, address or option.

    `stands_for` is the address whose place a rehearsal's server takes: model, price and identity are that one's.
    """
    model = check_model(argument, "openai_chat")
    if not 1 <= in_flight <= MOST_IN_FLIGHT:
        raise BackendError(f"--in-flight {in_flight}: 1 to {MOST_IN_FLIGHT} concurrent requests")
    url = base_url_of(base_url)
    host = host_of(stands_for or url)
    return OpenAIChat(model, url, host, in_flight, Path(prices) if prices else None, allow_drift, constrain)


class OpenAIChat:
    """See the head of this module."""

    remarks: tuple[str, ...] = ()

    def __init__(
        self,
        model: str,
        base_url: str,
        host: str,
        in_flight: int,
        prices: Path | None,
        allow_drift: bool,
        constrain: str = "auto",
    ) -> None:
        self.model, self.base_url, self.host = model, base_url, host
        self.in_flight, self.prices, self.allow_drift = in_flight, prices, allow_drift
        self.pauses: tuple[float, ...] = PAUSES
        self.family = constrained(family_of(model, host), constrain)
        self.name = f"openai:{model}"
        identity = {"api": "chat", "body": BODY, "host": host, "model": model}
        self.fingerprint: Mapping[str, str] = identity if constrain == "auto" else {**identity, "constrain": constrain}
        self.facts: Mapping[str, str] = {"by": "chat", "base_url": base_url, "in_flight": str(in_flight)}
        self.leaves_machine = way_to(base_url, host)
        self._price: Price | None = None
        try:
            price = self.price()
            self.paid = any((price.input, price.output, price.cached_input, price.cache_write))
        except UnknownPrice:  # an estimate reports it
            self.paid = True

    def price(self) -> Price:
        """The price of a single call. Raises UnknownPrice for a model without one."""
        if self._price is None:
            self._price = price_of(self.model, host=self.host, batch=False, overrides=self.prices)
        return self._price

    def cannot(self, request: Request) -> str | None:
        return cannot(request, self.model, self.host, self.family)

    def missing(self) -> str | None:
        return missing_for(self.base_url)

    def tokens_of(self, request: Request) -> int:
        """The most prompt tokens that a request can be billed for."""
        extra = 40 + 4 * len(request.choices or ()) if self.family.structured else 0
        return bound(request.messages, self.model, self.host, extra=extra)

    def estimate(self, requests: Iterable[Request]) -> Estimate:
        """What it should cost and take. Counts every prompt; raises UnknownPrice for a model without a price."""
        price = self.price()
        count = tokens = output = 0
        usd = top = Decimal(0)
        for request in requests:
            size, expected = self.tokens_of(request), expected_output(request, self.family)
            count, tokens, output = count + 1, tokens + size, output + expected
            usd += size * price.input + expected * price.output
            top += ceiling(price, size, output_cap(request, self.family))
        tokenizer = tokenizer_for(self.model, self.host)
        notes = [f"{self.in_flight} concurrent requests, {SECONDS_A_CALL:g} s assumed for each"]
        notes += [] if tokenizer.exact else [tokenizer.how]
        old = age_warning(price, datetime.now(UTC).date(), self.model)
        spread = Decimal("0.9")  # the bound counts a little more than a tokenizer
        return Estimate(
            count,
            usd,
            usd * spread,
            min(top, usd * 2),
            top,
            count * SECONDS_A_CALL / self.in_flight,
            tokens,
            output,
            sync_usd=usd,
            notes=(*notes, *([old] if old else [])),
        )

    def answer(self, requests: Iterable[Request], meter: Meter) -> Replies:
        yield from CallScheduler(self, requests, meter).answer()

    def close(self) -> None:
        """Nothing to give back; threads and sockets live as long as one answer."""


KIND = BackendKind(
    open=open,
    options=("base_url", "in_flight", "prices", "allow_drift", "stands_for", "constrain"),
    missing_requirements=missing_requirements,
    called="openai",
)
