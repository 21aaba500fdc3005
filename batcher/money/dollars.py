"""Amounts of dollars as people type and read them. Inside the program a dollar is a Decimal."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from alpasift.graders import AlpaSiftError
from alpasift.graders.api.prices import QUANTUM
from alpasift.graders.interface.names import is_plain_number

ZERO = Decimal(0)


def parse_usd(text: str) -> Decimal:
    """Dollars as a person types them: "5", "0.50", "$5". Raises AlpaSiftError for anything else, and below 0."""
    amount = text.strip().removeprefix("$")
    try:
        usd = Decimal(amount if is_plain_number(amount) else "NaN")
    except InvalidOperation:
        usd = Decimal("NaN")
    if not usd.is_finite() or usd < 0 or usd > 10**9 or usd != usd.quantize(QUANTUM):
        raise AlpaSiftError(f"{text!r} is not an amount of dollars; write 5 or 0.50")
    return usd


def show_usd(usd: Decimal, places: int = 4) -> str:
    """Dollars for a person: at least `places` decimals, more when the amount is smaller than they can show."""
    text = f"{usd:.{places}f}"
    if usd and not Decimal(text):
        text = f"{usd:.2g}"
        text = format(Decimal(text), "f")
    return f"-${text[1:]}" if text.startswith("-") else f"${text}"
