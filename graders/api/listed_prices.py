"""What genai-prices, as installed, lists for a model: dated data, with the pages it was read from.

What it does not list is derived by rule, and the price's source names the rule. Touches no network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from alpasift.graders.api.prices import MAX_PROMPT_TOKENS, Price, PriceError, check, per_token

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, Provider

OVERRIDES = "prices.toml"
"""The file of the user's own prices; `ALPASIFT_PRICES` names another."""
MOST = {"input": 1000, "output": 10_000, "cached_input": 1000, "cache_write": 1000}
"""Dollars per million tokens above which a price that cannot be compared is taken for a slip of units."""
_BATCH = {"processing": "batch"}
_FEES = {"requests_kcount", "output_reasoning_mtok", "output_citation_mtok"}
"""What a chat request would pay on top, and `charge` has no number for."""
SNAPSHOT = re.compile(r"-20\d\d-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$")
"""The date at the end of a snapshot's name."""
_VERIFIED = re.compile(r"verified on (20\d\d-\d\d-\d\d)")
_BATCH_VERIFIED = re.compile(r"Batch rates verified on (20\d\d-\d\d-\d\d)")
WRITES_COST = re.compile(r"gpt-5\.([6-9]|\d\d)|gpt-([6-9]|\d\d)")
"""OpenAI's models from GPT-5.6 on: a token written to the prompt cache costs 1.25 times the input rate."""


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
    info = _find(provider, model) or _find(provider, SNAPSHOT.sub("", model))
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


def listed_models(host: str) -> list[str]:
    """The names of the models that genai-prices knows at a host; of OpenAI's for a gateway on this machine."""
    this_machine = host in ("localhost", "::1") or host.startswith("127.")
    provider = _provider("api.openai.com" if this_machine else host)
    return [] if provider is None else [model.id for model in provider.models]


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
    """Dollars per million tokens by genai-prices' key, the dearest of that day; where a longer prompt costs more."""
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
    write = Decimal("1.25") if provider.id == "openai" and WRITES_COST.match(info.id) else Decimal(1)
    if "cache_write_mtok" not in rates and write > 1:
        notes.append("cache writes at 1.25 times the input")
    if usd > MOST["input"] or out > MOST["output"]:
        raise PriceError(
            f"genai-prices lists {info.id} at {plain(usd)} dollars per million tokens of input and {plain(out)} of "
            f"output, which looks like a unit error; put the correct prices in {OVERRIDES}, with checked = true"
        )
    price = Price(
        input=per_token(usd),
        output=per_token(out),
        cached_input=per_token(rates.get("cache_read_mtok", usd)),
        cache_write=per_token(rates.get("cache_write_mtok", usd * write)),
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


@lru_cache(maxsize=1)
def provider_names() -> frozenset[str]:
    from genai_prices.data import providers

    return frozenset(p.id for p in providers)


def plain(number: Decimal) -> str:
    return format(number.normalize(), "f")
