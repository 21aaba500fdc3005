"""prices.toml: the user's own prices, checked as a whole before any of them is believed.

A slip of units (per thousand against per million) is the usual mistake: a price far from the listed one is refused
unless it says `checked = true`.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from alpasift.graders.api.listed_prices import (
    MOST,
    OVERRIDES,
    SNAPSHOT,
    WRITES_COST,
    Listing,
    listed,
    plain,
    provider_names,
)
from alpasift.graders.api.prices import Price, PriceError, check

_KEYS = {
    "provider",
    "model",
    "input",
    "cached_input",
    "cache_write",
    "output",
    "discount",
    "source",
    "date",
    "checked",
}
_AMOUNT = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f.]*(:[0-9a-f.]*){2,}")
_SLIP = 100
"""An own price this many times above or below the listed one is taken for a slip of units."""
_EVER = 1_000_000
"""Dollars per million tokens that nothing costs, checked or not: a dollar a token."""


def find_overrides(database_folder: Path) -> Path | None:
    """The user's prices: the file that ALPASIFT_PRICES names, else prices.toml beside the database, else in the current
    folder; None when there is none. Raises PriceError when the named file does not exist."""
    named = os.environ.get("ALPASIFT_PRICES", "")
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise PriceError(f"ALPASIFT_PRICES is {path}, which does not exist")
        return path
    return next((p for p in (database_folder / OVERRIDES, Path(OVERRIDES)) if p.is_file()), None)


def read_overrides(path: Path, *, today: date | None = None) -> list[Listing]:
    """Every price in a prices.toml, one `[[price]]` table each. Raises PriceError naming file, model, key and value.

    The whole file is checked, so that a slip is found before the day that its model is used.
    """
    day = today or datetime.now(UTC).date()
    try:
        content = tomllib.loads(path.read_text("utf-8"), parse_float=_exactly)
    except (OSError, UnicodeDecodeError) as error:
        raise PriceError(f"the prices in {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except (ValueError, RecursionError) as error:
        raise PriceError(f"{path} is not valid TOML: {error}") from error
    tables = content.pop("price", [])
    if content or not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        odd = f"; found {next(iter(content))!r}" if content else ""
        raise PriceError(f"{path} may contain [[price]] tables only{odd}")
    found: dict[tuple[str, str], Listing] = {}
    for number, table in enumerate(tables, 1):
        listing = _read(table, f"{path}: price {number}", day)
        if (listing.provider, listing.model) in found:
            raise PriceError(f"{path}: {listing.model} at {listing.provider} is listed twice; keep one")
        found[listing.provider, listing.model] = listing
    return list(found.values())


def _exactly(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation as error:
        raise ValueError(f"{text[:40]} is not a number") from error


def own_price(listings: list[Listing], model: str, host: str) -> Listing | None:
    known = {listing.model: listing for listing in listings if listing.provider == host}
    family = SNAPSHOT.sub("", model)
    if model in known or family not in known:
        return known.get(model)
    # gpt-4o-2024-05-13 costs twice what gpt-4o costs: the family's price is not that of a snapshot listed by itself.
    elsewhere = listed(model, host=host)
    return known[family] if elsewhere is None or elsewhere.model == family else None


def _read(table: dict[str, Any], where: str, today: date) -> Listing:
    model = _word(table, "model", where)
    where = f"{where} ({model})"
    for key in table:
        if key not in _KEYS:
            raise PriceError(f"{where}: unknown key {key!r}; a price has {', '.join(sorted(_KEYS))}")
    host = _word(table, "provider", where).lower()
    if not _HOST.fullmatch(host) or host in provider_names():
        raise PriceError(f'{where}: provider = {host!r}; it must be a host name, such as "api.openai.com"')
    usd = {key: _amount(table, key, where) for key in MOST if key in table or key in ("input", "output")}
    checked = table.get("checked", False)
    if not isinstance(checked, bool):
        raise PriceError(f"{where}: checked = {_shown(checked)}; true or false")
    if not checked:
        _compare(usd, listed(model, host=host, today=today), where)
    writes_cost = f".{host}".endswith(".api.openai.com") and WRITES_COST.match(model)
    usual = {"cached_input": usd["input"], "cache_write": usd["input"] * Decimal("1.25" if writes_cost else 1)}
    usd = {**usual, **usd}
    dated = _day(table, where, today)
    source = _word(table, "source", where)
    try:
        sync = check(Price(**{k: rate / 1_000_000 for k, rate in usd.items()}, source=source, dated=dated.isoformat()))
        if "discount" not in table:
            return Listing(
                host, model, sync, None, f'{where} has no discount; add discount = "0.5" if batches cost half'
            )
        left = 1 - _discount(table, where)
        batch = check(replace(sync, **{k: getattr(sync, k) * left for k in usd}, source=f"{source}, batch"))
    except PriceError as error:
        raise PriceError(f"{where}: {error}") from error
    return Listing(host, model, sync, batch)


def _compare(usd: Mapping[str, Decimal], known: Listing | None, where: str) -> None:
    for key, value in usd.items():
        usual = getattr(known.sync, key) * 1_000_000 if known else Decimal(0)
        if known and usual and not usual / _SLIP < value < usual * _SLIP:
            raise PriceError(
                f"{where}: {key} = {value} dollars per million tokens, and {known.sync.source} lists "
                f"{plain(usual)}; is it per thousand instead of per million? If it is correct, add checked = true"
            )
        if not usual and value > MOST[key]:
            raise PriceError(
                f"{where}: {key} = {value} dollars per million tokens is more than {MOST[key]}; if it is correct, "
                f"add checked = true"
            )


def _word(table: Mapping[str, Any], key: str, where: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > 500:
        problem = (
            f"{key} is missing"
            if value is None
            else f"{key} = {_shown(value)}; it must be a non-empty string on one line"
        )
        raise PriceError(f"{where}: {problem}")
    return value.strip()


def _amount(table: Mapping[str, Any], key: str, where: str) -> Decimal:
    """Dollars per million tokens, exactly as written. A price of nothing is written as the text "0", so it is meant."""
    value = table.get(key)
    if value is None:
        raise PriceError(f"{where}: {key} is missing; write dollars per million tokens")
    usd = _number(value)
    if usd is None or not 0 <= usd <= _EVER:
        raise PriceError(f'{where}: {key} = {_shown(value)}; write dollars per million tokens, such as "0.15"')
    if usd == 0 and value != "0":
        raise PriceError(f'{where}: {key} = {_shown(value)}; if it really costs nothing, write "0"')
    return usd


def _discount(table: Mapping[str, Any], where: str) -> Decimal:
    share = _number(table["discount"])
    if share is None or not 0 <= share < 1:
        raise PriceError(f'discount = {_shown(table["discount"])}; the batch discount, "0.5" for half price')
    return share


def _number(value: object) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
        return None
    text = value if isinstance(value, str) else _shown(value)
    return Decimal(text) if _AMOUNT.fullmatch(text) and len(text) <= 40 else None


def _day(table: Mapping[str, Any], where: str, today: date) -> date:
    value = table.get("date")
    try:
        day = date.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        day = None
    day = day.date() if isinstance(day, datetime) else day
    if not isinstance(day, date):
        problem = "date is missing" if value is None else f"date = {_shown(value)}"
        raise PriceError(f"{where}: {problem}; the day on which you checked, such as {today}")
    if day > today + timedelta(days=1):
        raise PriceError(f"{where}: date = {day} is in the future")
    return day


def _shown(value: object) -> str:
    """A value of the file as it may stand in a message: numbers bare, nothing endless."""
    if isinstance(value, int) and abs(value) > 10**30:
        return "a number of more than 30 digits"
    text = str(value) if isinstance(value, Decimal) else repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def empty_table(model: str, host: str, today: date) -> str:
    """The table of prices.toml for this model, its figures still to be filled in: an empty one is refused."""
    return (
        "[[price]]\n"
        f"provider = {json.dumps(host)}\n"
        f"model = {json.dumps(model)}\n"
        'input = ""  # US dollars per million tokens, such as "0.15"; "0" if it costs nothing\n'
        'output = ""\n'
        'discount = ""  # the batch discount, "0.5" for half price; delete the line if there are none\n'
        'source = ""  # the page where you found it\n'
        f"date = {today.isoformat()}\n"
    )
