"""Dollars per token: what a model costs, what a reply cost, and what a request can cost at most.

Knows prices; nothing of backends, ledgers or networks. Figures come from the user's prices.toml when it names the
model, else from genai-prices as installed, which is dated data with the pages it was read from; a model that neither
knows is an error, never $0.

Exact decimals throughout. A price is frozen with the attempt it was reserved under, as the mapping `Price.frozen`
gives, and every reply of that attempt is charged by it. Usage is what a server says about itself and is checked
before it is believed. Formula: OpenAI's batch guide, cached and cache-written tokens are parts of the prompt;
reasoning tokens are part of the completion.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graders import AlpaSiftError

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, Provider

QUANTUM = Decimal("1e-15")
"""The smallest amount the ledger holds, in dollars."""

MAX_PROMPT_TOKENS = 200_000
"""A request with a longer prompt is to be refused. GPT-5.4 and later bill the whole request at twice the input rate and
1.5 times the output rate once its prompt is above 272,000 tokens, other providers above 200,000; a `Price` has one rate
of each kind and stands for shorter prompts only."""

MAX_AGE_DAYS = 30
"""How old a price may be before the person is told."""

OVERRIDES = "prices.toml"
"""The file of the user's own prices; `ALPASIFT_PRICES` names another."""


class PriceError(AlpaSiftError):
    """A price that is missing, negative or too fine to be booked exactly."""


class UnknownPrice(PriceError):
    """No price is known of this model at this host; `lines` are what prices.toml needs to know it."""

    def __init__(self, model: str, host: str, today: date, overrides: Path | None = None) -> None:
        self.lines = _lines(model, host, today)
        super().__init__(
            f"no price is known of {model} at {host}; nothing was sent. Look it up and add these lines, filled in, to "
            f"{overrides or f'{OVERRIDES} beside the database'}:\n\n{self.lines}"
        )


class NoBatchPrice(PriceError):
    """The model has a price, but none for batches."""


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
    rate, out = _per_token(usd_input), _per_token(usd_output)
    return check(Price(input=rate, output=out, cached_input=rate, cache_write=rate, source=source, dated=dated))


def _per_token(usd: str | Decimal) -> Decimal:
    try:
        return Decimal(usd) / 1_000_000
    except (InvalidOperation, TypeError, ValueError) as error:
        raise PriceError(f'{usd!r} is no price; write dollars per million tokens, as in "0.15"') from error


def check(price: Price) -> Price:
    """The same price. Raises PriceError when a rate is negative, not finite, or finer than 1e-15 dollars a token."""
    for name in ("input", "output", "cached_input", "cache_write"):
        rate = getattr(price, name)
        if not rate.is_finite() or rate < 0:
            raise PriceError(f"the price of {name} is {rate} dollars a token; it must be 0 or more")
        if rate != rate.quantize(QUANTUM):
            raise PriceError(
                f"the price of {name}, {rate} dollars a token, is finer than 1e-15 and cannot be booked exactly"
            )
    return price


def thaw(frozen: Mapping[str, Any]) -> Price:
    """The price that `Price.frozen` wrote down."""
    rate = {k: Decimal(str(frozen[k])) for k in ("input", "output", "cached_input", "cache_write")}
    source, dated = str(frozen.get("source", "")), str(frozen.get("dated", ""))
    return check(Price(rate["input"], rate["output"], rate["cached_input"], rate["cache_write"], source, dated))


def charge(price: Price, usage: Mapping[str, Any] | None) -> Decimal:
    """Dollars of one reply, exact. Raises UsageError when the numbers are missing, negative or contradict themselves."""
    if not isinstance(usage, Mapping):
        raise UsageError("the reply names no usage")
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


# -- what a model costs -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listing:
    """What one host asks for one model.

    provider           the host, "api.openai.com"
    model              the name that the price was found under: gpt-4o-mini for gpt-4o-mini-2024-07-18
    batch              None when there is no batch price; `no_batch` then says why
    long_context_from  a prompt of more tokens costs more than this; None when there is no such step
    """

    provider: str
    model: str
    sync: Price
    batch: Price | None
    no_batch: str = ""
    long_context_from: int | None = None


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
    found = _own(read_overrides(overrides, today=day), model, host) if overrides else None
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


def age_warning(price: Price, today: date, model: str = "") -> str | None:
    """What to tell the person about a price last checked more than MAX_AGE_DAYS ago; None for one that is newer.

    A price of nothing at all does not age.
    """
    if not any((price.input, price.output, price.cached_input, price.cache_write)):
        return None
    subject = f"prices of {model}" if model else "these prices"
    page = _PAGE.search(price.source)
    advice = f"check {page[0] if page else price.source or 'them'}, and put newer ones in {OVERRIDES}"
    try:
        dated = date.fromisoformat(price.dated)
    except ValueError:
        return f"{subject} bear no date; {advice}"
    days = (today - dated).days
    return f"{subject} are from {dated}, {days} days old; {advice}" if days > MAX_AGE_DAYS else None


# -- genai-prices, as installed ---------------------------------------------------------------------------------

_BATCH = {"processing": "batch"}
_FEES = {"requests_kcount", "output_reasoning_mtok", "output_citation_mtok"}
"""What a chat request would pay on top, and `charge` has no number for."""
_SNAPSHOT = re.compile(r"-20\d\d-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$")
_PAGE = re.compile(r"https?://[^\s,]+")
_VERIFIED = re.compile(r"verified on (20\d\d-\d\d-\d\d)")
_BATCH_VERIFIED = re.compile(r"Batch rates verified on (20\d\d-\d\d-\d\d)")
_WRITES_COST = re.compile(r"gpt-5\.([6-9]|\d\d)|gpt-([6-9]|\d\d)")
"""OpenAI's models from GPT-5.6 on: a token written to the prompt cache costs 1.25 times the input rate."""


def listed(model: str, *, host: str = "api.openai.com", today: date | None = None) -> Listing | None:
    """What genai-prices lists for a model at a host; None where it lists no dollars per token.

    Where a rate changes with the hour, or with the length of a prompt below MAX_PROMPT_TOKENS, the dearest stands for
    all. What it does not list is derived and the price's source says so: cached tokens cost as much as others when no
    cached rate is listed for the same kind of processing (gpt-4.1 and gpt-4o have none for batches), tokens written to
    the cache 1.25 times the input from GPT-5.6 on and the input rate before.
    """
    provider = _provider(host)
    if provider is None:
        return None
    info = _find(provider, model) or _find(provider, _SNAPSHOT.sub("", model))
    if info is None:
        return None
    # The figures are never read for a day before their own: a clock that runs late must not bring back old prices.
    day = max(today or datetime.now(UTC).date(), _figures_date())
    plain, step = _rates(info, day, {})
    if not {"input_mtok", "output_mtok"} <= set(plain) or _FEES & set(plain):
        return None
    if provider.id == "openai" and not (plain["input_mtok"] and plain["output_mtok"]):
        return None  # OpenAI gives no text model away: a figure is missing
    alias = "" if info.id == model else f"as {info.id}"
    sync = _listed_price(provider, info, plain, alias, _dated(info, _VERIFIED))
    # Another provider's entry, found for a host that resells the model, says nothing of batches at this host.
    mine = any(info is m for m in provider.models)
    moment = datetime.combine(day, time(12), UTC)
    variants = [v for v in info.price_variants or () if v.when == _BATCH and mine]
    variants = [v for v in variants if v.constraint is None or v.constraint.active(moment)]
    if not variants:
        return Listing(host, info.id, sync, None, f"genai-prices {version('genai-prices')} lists none", step)
    halved, step = _rates(info, day, _BATCH)
    for key in ("cache_read_mtok", "cache_write_mtok"):
        if all(v.prices.__dict__.get(key) is None for v in variants):
            halved.pop(key, None)  # resolved to the synchronous rate, which nobody promises for batches
    batch = _listed_price(provider, info, halved, f"{alias}, batch".strip(", "), _dated(info, _BATCH_VERIFIED))
    return Listing(host, info.id, sync, batch, "", step)


def _provider(host: str) -> Provider | None:
    from genai_prices.data import providers

    url = f"https://{host}"
    for provider in providers:
        found = re.match(provider.api_pattern, url)
        if found and found.end() == len(url):  # a pattern alone would also take api.openai.com.example.org
            return provider
    return None


def _find(provider: Provider, model: str) -> ModelInfo | None:
    from genai_prices.data import providers

    info = provider.find_model(model, all_providers=providers)
    if info is None or provider.id != "openai" or model.startswith("ft:"):
        return info
    # A few of OpenAI's entries take every name that begins like theirs; a model that comes tomorrow is not that model.
    return info if _is_named(info.match, model.lower()) else None


def _is_named(clause: Any, model: str) -> bool:
    if hasattr(clause, "or_"):
        return any(_is_named(part, model) for part in clause.or_)
    return (hasattr(clause, "equals") or hasattr(clause, "regex")) and clause.is_match(model)


def _rates(info: ModelInfo, day: date, context: Mapping[str, str]) -> tuple[dict[str, Decimal], int | None]:
    """Dollars per million tokens by genai-prices' key, the dearest of that day, and where a longer prompt costs more."""
    found: dict[str, Decimal] = {}
    steps: set[int] = set()
    midnight = datetime.combine(day, time(), UTC)
    for half_hour in range(48):
        for key, rate in info.get_prices(midnight + timedelta(minutes=30 * half_hour), context).__dict__.items():
            if rate is None:
                continue
            amounts = [rate] if isinstance(rate, Decimal) else [rate.base]
            for tier in () if isinstance(rate, Decimal) else rate.tiers:
                if tier.start < MAX_PROMPT_TOKENS:
                    amounts.append(tier.price)
                else:
                    steps.add(tier.start)
            found[key] = max(found.get(key, Decimal(0)), *amounts)
    return found, min(steps, default=None)


def _listed_price(provider: Provider, info: ModelInfo, rates: Mapping[str, Decimal], kind: str, dated: date) -> Price:
    usd, out = rates["input_mtok"], rates["output_mtok"]
    notes = [f"genai-prices {version('genai-prices')}", *(provider.pricing_urls or [])[:1], *([kind] if kind else [])]
    if "cache_read_mtok" not in rates:
        notes.append("cached input as input: no such rate is listed")
    write = Decimal("1.25") if provider.id == "openai" and _WRITES_COST.match(info.id) else Decimal(1)
    if "cache_write_mtok" not in rates and write > 1:
        notes.append("cache writes at 1.25 times the input")
    if usd > _MOST["input"] or out > _MOST["output"]:
        raise PriceError(
            f"genai-prices lists {info.id} at {_plain(usd)} dollars per million tokens of input and {_plain(out)} of "
            f"output, which looks like a slip of units; put the right ones in {OVERRIDES}, with checked = true"
        )
    price = Price(
        input=_per_token(usd),
        output=_per_token(out),
        cached_input=_per_token(rates.get("cache_read_mtok", usd)),
        cache_write=_per_token(rates.get("cache_write_mtok", usd * write)),
        source=", ".join(notes),
        dated=dated.isoformat(),
    )
    return check(price)


def _dated(info: ModelInfo, pattern: re.Pattern[str]) -> date:
    """The oldest day on which these rates were seen on the provider's page; without one, the day of the figures."""
    seen = pattern.findall(info.price_comments or "") or _VERIFIED.findall(info.price_comments or "")
    return min((date.fromisoformat(day) for day in seen), default=_figures_date())


@lru_cache(maxsize=1)
def _figures_date() -> date:
    """The newest day on which anybody checked one of the installed figures: they are at least that new."""
    from genai_prices.data import providers

    comments = (m.price_comments or "" for p in providers for m in p.models)
    return max(date.fromisoformat(day) for text in comments for day in _VERIFIED.findall(text))


# -- prices.toml ------------------------------------------------------------------------------------------------

_KEYS = {
    "provider", "model", "input", "cached_input", "cache_write", "output", "discount", "source", "date", "checked",
}  # fmt: skip
_AMOUNT = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f.]*(:[0-9a-f.]*){2,}")
_SLIP = 100
"""An own price this many times above or below the listed one is taken for a slip of units."""
_MOST = {"input": 1000, "output": 10_000, "cached_input": 1000, "cache_write": 1000}
"""Dollars per million tokens above which a price that cannot be compared is taken for a slip of units."""
_EVER = 1_000_000
"""Dollars per million tokens that nothing costs, checked or not: a dollar a token."""


def find_overrides(database_folder: Path) -> Path | None:
    """The user's prices: the file that ALPASIFT_PRICES names, else prices.toml beside the database, else in the current
    folder; None when there is none. Raises PriceError when the named file does not exist."""
    named = os.environ.get("ALPASIFT_PRICES", "")
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise PriceError(f"ALPASIFT_PRICES names {path}, and there is no such file")
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
        raise PriceError(f"{path} holds [[price]] tables and nothing else{odd}")
    found: dict[tuple[str, str], Listing] = {}
    for number, table in enumerate(tables, 1):
        listing = _read(table, f"{path}: price {number}", day)
        if (listing.provider, listing.model) in found:
            raise PriceError(f"{path}: {listing.model} at {listing.provider} stands there twice; keep one")
        found[listing.provider, listing.model] = listing
    return list(found.values())


def _exactly(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation as error:
        raise ValueError(f"{text[:40]} is no number") from error


def _own(listings: list[Listing], model: str, host: str) -> Listing | None:
    known = {listing.model: listing for listing in listings if listing.provider == host}
    family = _SNAPSHOT.sub("", model)
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
    if not _HOST.fullmatch(host) or host in _provider_names():
        raise PriceError(f'{where}: provider = {host!r}; it is the name of a host, as in "api.openai.com"')
    usd = {key: _amount(table, key, where) for key in _MOST if key in table or key in ("input", "output")}
    checked = table.get("checked", False)
    if not isinstance(checked, bool):
        raise PriceError(f"{where}: checked = {_shown(checked)}; true or false")
    if not checked:
        _compare(usd, listed(model, host=host, today=today), where)
    writes_cost = f".{host}".endswith(".api.openai.com") and _WRITES_COST.match(model)
    usual = {"cached_input": usd["input"], "cache_write": usd["input"] * Decimal("1.25" if writes_cost else 1)}
    usd = {**usual, **usd}
    dated = _day(table, where, today)
    source = _word(table, "source", where)
    try:
        sync = check(Price(**{k: rate / 1_000_000 for k, rate in usd.items()}, source=source, dated=dated.isoformat()))
        if "discount" not in table:
            return Listing(
                host, model, sync, None, f'{where} names no discount; add discount = "0.5" if batches cost half'
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
                f"{where}: {key} = {value} dollars per million tokens, and {known.sync.source} lists {_plain(usual)}; a "
                "slip of per thousand against per million? If it is right, add checked = true"
            )
        if not usual and value > _MOST[key]:
            raise PriceError(
                f"{where}: {key} = {value} dollars per million tokens is more than {_MOST[key]}; if it is no slip of "
                "units, add checked = true"
            )


def _word(table: Mapping[str, Any], key: str, where: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > 500:
        said = f"{key} is missing" if value is None else f"{key} = {_shown(value)}; it is a text on one line, not empty"
        raise PriceError(f"{where}: {said}")
    return value.strip()


def _amount(table: Mapping[str, Any], key: str, where: str) -> Decimal:
    """Dollars per million tokens, exactly as written. Nothing at all is written as the text "0", so that it is meant."""
    value = table.get(key)
    if value is None:
        raise PriceError(f"{where}: {key} is missing; write dollars per million tokens")
    usd = _number(value)
    if usd is None or not 0 <= usd <= _EVER:
        raise PriceError(f'{where}: {key} = {_shown(value)}; write dollars per million tokens, as in "0.15"')
    if usd == 0 and value != "0":
        raise PriceError(f'{where}: {key} = {_shown(value)}; if it really costs nothing, write "0"')
    return usd


def _discount(table: Mapping[str, Any], where: str) -> Decimal:
    share = _number(table["discount"])
    if share is None or not 0 <= share < 1:
        raise PriceError(f'discount = {_shown(table["discount"])}; the share off for batches, "0.5" for half price')
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
        said = "date is missing" if value is None else f"date = {_shown(value)}"
        raise PriceError(f"{where}: {said}; the day on which you looked, as in {today}")
    if day > today + timedelta(days=1):
        raise PriceError(f"{where}: date = {day} is in the future")
    return day


def _shown(value: object) -> str:
    """A value of the file as it may stand in a message: numbers bare, nothing endless."""
    if isinstance(value, int) and abs(value) > 10**30:
        return "a number of more than 30 digits"
    text = str(value) if isinstance(value, Decimal) else repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


@lru_cache(maxsize=1)
def _provider_names() -> frozenset[str]:
    from genai_prices.data import providers

    return frozenset(p.id for p in providers)


def _plain(number: Decimal) -> str:
    return format(number.normalize(), "f")


def _lines(model: str, host: str, today: date) -> str:
    """The table of prices.toml for this model, its figures still to be filled in: an empty one is refused."""
    return (
        "[[price]]\n"
        f"provider = {json.dumps(host)}\n"
        f"model = {json.dumps(model)}\n"
        'input = ""  # US dollars per million tokens, as in "0.15"; "0" if it costs nothing\n'
        'output = ""\n'
        'discount = ""  # the share off for batches, "0.5" for half price; delete the line if there are none\n'
        'source = ""  # the page where you read it\n'
        f"date = {today.isoformat()}\n"
    )
