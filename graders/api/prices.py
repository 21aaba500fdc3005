"""Dollars per token, exactly: what a reply cost, and what a request can cost at most.

Knows arithmetic; nothing of where a price comes from (`price_lookup`), of backends or ledgers. Exact decimals
throughout. A price is frozen with the attempt it was reserved under, as the mapping `Price.frozen` gives, and every
reply of that attempt is charged by it. Usage is what a server says about itself and is checked before it is believed.
Formula: OpenAI's batch guide, cached and cache-written tokens are parts of the prompt; reasoning tokens are part of the
completion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import Any

from alpasift.graders import AlpaSiftError

QUANTUM = Decimal("1e-15")
"""The smallest amount the ledger holds, in dollars."""

MAX_PROMPT_TOKENS = 200_000
"""A request with a longer prompt is to be refused. GPT-5.4 and later bill the whole request at twice the input rate and
1.5 times the output rate once its prompt is above 272,000 tokens, other providers above 200,000; a `Price` has one rate
of each kind and stands for shorter prompts only."""


class PriceError(AlpaSiftError):
    """A price that is missing, negative or too fine to be booked exactly."""


class UsageError(ValueError):
    """A server's usage numbers do not hold together; what the reply cost is not known."""


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per token."""

    input: Decimal
    output: Decimal
    cached_input: Decimal
    cache_write: Decimal
    source: str = ""
    dated: str = ""

    def frozen(self) -> dict[str, str]:
        """Plain texts for the ledger; `charge` and `ceiling` take them back through `thaw`."""
        return {k: str(v) for k, v in asdict(self).items()}


def per_million(usd_input: str | Decimal, usd_output: str | Decimal, *, source: str = "", dated: str = "") -> Price:
    """A price from dollars per million tokens, cached and written input at the input's rate. Raises PriceError."""
    rate, out = per_token(usd_input), per_token(usd_output)
    return check(Price(input=rate, output=out, cached_input=rate, cache_write=rate, source=source, dated=dated))


def per_token(usd: str | Decimal) -> Decimal:
    try:
        return Decimal(usd) / 1_000_000
    except (InvalidOperation, TypeError, ValueError) as error:
        raise PriceError(f'{usd!r} is not a price; write dollars per million tokens, such as "0.15"') from error


def check(price: Price) -> Price:
    """The same price. Raises PriceError when a rate is negative, not finite, or finer than 1e-15 dollars a token."""
    for name in ("input", "output", "cached_input", "cache_write"):
        rate = getattr(price, name)
        if not rate.is_finite() or rate < 0:
            raise PriceError(f"the price of {name} is {rate} dollars a token; it must be 0 or more")
        if rate != rate.quantize(QUANTUM):
            raise PriceError(
                f"the price of {name}, {rate} dollars a token, has more than 15 decimals and cannot be booked exactly"
            )
    return price


def thaw(frozen: Mapping[str, Any]) -> Price:
    """The price that `Price.frozen` wrote down."""
    rate = {k: Decimal(str(frozen[k])) for k in ("input", "output", "cached_input", "cache_write")}
    source, dated = str(frozen.get("source", "")), str(frozen.get("dated", ""))
    return check(Price(rate["input"], rate["output"], rate["cached_input"], rate["cache_write"], source, dated))


def charge(price: Price, usage: Mapping[str, Any] | None) -> Decimal:
    """Dollars of one reply, exact. Raises UsageError when numbers are missing, negative or contradict themselves."""
    if not isinstance(usage, Mapping):
        raise UsageError("the reply has no usage")
    prompt = _count(usage, "prompt_tokens")
    completion = _count(usage, "completion_tokens")
    details = usage.get("prompt_tokens_details")
    details = {} if details is None else details
    if not isinstance(details, Mapping):
        raise UsageError(f"prompt_tokens_details is {details!r}")
    cached = _count(details, "cached_tokens", optional=True)
    written = _count(details, "cache_write_tokens", optional=True)
    if cached + written > prompt:
        raise UsageError(f"{cached} cached and {written} written tokens are more than the {prompt} of the prompt")
    if not prompt and not completion and max(price.input, price.output) > 0:
        raise UsageError("the usage is zero, and a prompt was sent")  # zeros stand where nobody has counted
    plain = prompt - cached - written
    return plain * price.input + cached * price.cached_input + written * price.cache_write + completion * price.output


def _count(numbers: Mapping[str, Any], name: str, optional: bool = False) -> int:
    value = numbers.get(name)
    if type(value) is int and 0 <= value <= 10**12:
        return value
    if value is None and optional:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 0 or value > 10**12:
        raise UsageError(f"{name} is {value!r}")
    return value


def ceiling(price: Price, input_tokens: int, output_tokens: int) -> Decimal:
    """The most a request can cost: its input at the dearest input rate, its whole allowed output. Rounded up."""
    dearest = max(price.input, price.cached_input, price.cache_write)
    return (input_tokens * dearest + output_tokens * price.output).quantize(QUANTUM, rounding=ROUND_CEILING)
