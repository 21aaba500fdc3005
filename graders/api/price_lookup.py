"""What a model costs: from the user's prices.toml where it names the model, else from genai-prices as installed.

A model that neither knows is an error, never $0. Touches no network.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from pathlib import Path

from alpasift.graders import did_you_mean
from alpasift.graders.api.listed_prices import OVERRIDES, listed, listed_models
from alpasift.graders.api.price_file import empty_table, own_price, read_overrides
from alpasift.graders.api.prices import Price, PriceError

MAX_AGE_DAYS = 30
"""How old a price may be before the person is warned."""
_PAGE = re.compile(r"https?://[^\s,]+")


class UnknownPrice(PriceError):
    """No price is known of this model at this host; `lines` are what prices.toml needs to know it."""

    def __init__(self, model: str, host: str, today: date, overrides: Path | None = None) -> None:
        self.lines = empty_table(model, host, today)
        meant = did_you_mean(model, known_models(host, overrides), "nothing was sent")
        super().__init__(
            f"no price is known for {model} at {host}{meant}. If the name is correct, look up its price and add "
            f"these lines, filled in, to {overrides or f'{OVERRIDES} beside the database'}:\n\n{self.lines}"
        )


class NoBatchPrice(PriceError):
    """The model has a price, but none for batches."""


def price_of(
    model: str,
    *,
    host: str = "api.openai.com",
    batch: bool,
    overrides: Path | None = None,
    today: date | None = None,
) -> Price:
    """The price of a model at a host, from `overrides` (a prices.toml) where that names it, else from genai-prices.

    An OpenAI model asked for through this machine costs what it costs at OpenAI, unless the file says otherwise. Good
    for prompts of at most MAX_PROMPT_TOKENS. Raises UnknownPrice, NoBatchPrice, and PriceError when the file does
    not hold together. Touches no network.
    """
    day = today or datetime.now(UTC).date()
    host = host.strip().lower()
    found = own_price(read_overrides(overrides, today=day), model, host) if overrides else None
    found = found or listed(model, host=host, today=day)
    if found is None and (host in ("localhost", "::1") or host.startswith("127.")):
        found = listed(model, today=day)  # a gateway on this machine hands OpenAI's models on, at OpenAI's price
    if found is None:
        raise UnknownPrice(model, host, day, overrides)
    if not batch:
        return found.sync
    if found.batch is None:
        raise NoBatchPrice(f"{model} at {host} has no batch price: {found.no_batch}")
    return found.batch


def known_models(host: str, overrides: Path | None = None) -> list[str]:
    """The models at a host that have a price: in the user's file and in genai-prices."""
    own = [one.model for one in read_overrides(overrides) if one.provider == host] if overrides else []
    return own + [name for name in listed_models(host) if name not in own]


def age_warning(price: Price, today: date, model: str = "") -> str | None:
    """A warning about a price last checked more than MAX_AGE_DAYS ago; None for one that is newer.

    A price of nothing at all does not age.
    """
    if not any((price.input, price.output, price.cached_input, price.cache_write)):
        return None
    subject = f"prices of {model}" if model else "these prices"
    page = _PAGE.search(price.source)
    advice = f"check {page[0] if page else price.source or 'them'}, and put newer prices in {OVERRIDES}"
    try:
        dated = date.fromisoformat(price.dated)
    except ValueError:
        return f"{subject} have no date; {advice}"
    days = (today - dated).days
    return f"{subject} are from {dated}, {days} days old; {advice}" if days > MAX_AGE_DAYS else None
