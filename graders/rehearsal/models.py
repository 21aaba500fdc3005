"""The models that the server knows: what each family takes, and what a token of each model costs.

Prices are given here and share no code with the graders: the bill is a second opinion on what a client booked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Family:
    """What the models of one family take: efforts () is a model that does not think and has no such parameter."""

    efforts: tuple[str, ...] = ()
    effort: str = "none"
    caches: bool = False
    writes: bool = False
    context: int = 400_000


EFFORTS = ("low", "medium", "high", "xhigh")
FAMILIES: tuple[tuple[str, Family], ...] = (
    (r"gpt-4\.1", Family(context=1_047_576)),
    (r"gpt-3\.5|gpt-4", Family(context=128_000)),
    (r"o\d", Family(EFFORTS[:3], "medium", context=200_000)),
    (r"gpt-5\.1", Family(("none", *EFFORTS), "none", caches=True)),
    (r"gpt-5\.[2-5]", Family(("none", *EFFORTS), "medium", caches=True)),
    (r"gpt-5\.\d", Family(("none", *EFFORTS), "medium", caches=True, writes=True)),
    (r"gpt-5", Family(("minimal", *EFFORTS[:3]), "medium", caches=True)),
    (r"gpt-6-astra|gpt-6\.1-sol", Family(EFFORTS, "medium", caches=True, writes=True)),
    (r"gpt-6", Family(("none", *EFFORTS), "medium", caches=True, writes=True)),
)

MODELS: dict[str, tuple[str, str, str, str, str]] = {
    # snapshot, then US dollars per million tokens: input, cached input, cache write, output
    "gpt-3.5-turbo": ("gpt-3.5-turbo-0125", "0.5", "0.5", "0.5", "1.5"),
    "gpt-4-turbo": ("gpt-4-turbo-2024-04-09", "10", "10", "10", "30"),
    "gpt-4o": ("gpt-4o-2024-08-06", "2.5", "1.25", "2.5", "10"),
    "gpt-4o-mini": ("gpt-4o-mini-2024-07-18", "0.15", "0.075", "0.15", "0.6"),
    "gpt-4.1": ("gpt-4.1-2025-04-14", "2", "0.5", "2", "8"),
    "gpt-4.1-mini": ("gpt-4.1-mini-2025-04-14", "0.4", "0.1", "0.4", "1.6"),
    "gpt-4.1-nano": ("gpt-4.1-nano-2025-04-14", "0.1", "0.025", "0.1", "0.4"),
    "o1": ("o1-2024-12-17", "15", "7.5", "15", "60"),
    "o3": ("o3-2025-04-16", "2", "0.5", "2", "8"),
    "o3-mini": ("o3-mini-2025-01-31", "1.1", "0.55", "1.1", "4.4"),
    "o4-mini": ("o4-mini-2025-04-16", "1.1", "0.275", "1.1", "4.4"),
    "gpt-5": ("gpt-5-2025-08-07", "1.25", "0.125", "1.25", "10"),
    "gpt-5-mini": ("gpt-5-mini-2025-08-07", "0.25", "0.025", "0.25", "2"),
    "gpt-5-nano": ("gpt-5-nano-2025-08-07", "0.05", "0.005", "0.05", "0.4"),
    "gpt-5.1": ("gpt-5.1-2025-11-13", "1.25", "0.125", "1.25", "10"),
    "gpt-5.2": ("gpt-5.2-2025-12-11", "1.75", "0.175", "1.75", "14"),
    "gpt-5.4-mini": ("gpt-5.4-mini", "0.75", "0.075", "0.75", "4.5"),
    "gpt-5.4-nano": ("gpt-5.4-nano", "0.2", "0.02", "0.2", "1.25"),
    "gpt-5.6-luna": ("gpt-5.6-luna", "0.2", "0.02", "0.25", "1.2"),
    "gpt-6-luna": ("gpt-6-luna", "0.1", "0.01", "0.125", "0.5"),
    "gpt-6-sol": ("gpt-6-sol", "2", "0.2", "2.5", "10"),
    "gpt-6-astra": ("gpt-6-astra", "10", "1", "12.5", "50"),
    "gpt-6.1-terra": ("gpt-6.1-terra", "1", "0.05", "1.25", "5"),
    "gpt-6.1-sol": ("gpt-6.1-sol", "2", "0.1", "2.5", "10"),
}

DIGITS = 24
"""Money is kept as whole numbers of 1e-24 dollars: sums of any length are exact."""


def family_of(model: str) -> Family:
    return next((family for pattern, family in FAMILIES if re.match(pattern, model)), Family())


@dataclass(frozen=True, slots=True)
class Rates:
    """What one token costs, in 1e-24 dollars."""

    input: int
    cached: int
    written: int
    output: int

    def charge(self, prompt: int, cached: int, written: int, completion: int) -> int:
        plain = prompt - cached - written
        return plain * self.input + cached * self.cached + written * self.written + completion * self.output


def rates_of(model: str, price: Mapping[str, str], share: Fraction) -> Rates:
    """Rates at a share of the price. Raises ValueError for one that is missing, negative or too fine."""
    found = []
    for name in ("input", "cached_input", "cache_write", "output"):
        text = price.get(name, price.get("input") if name != "output" else None)
        if text is None:
            raise ValueError(f"the price of {model} has no {name!r}")
        units = Fraction(text) / 1_000_000 * share * 10**DIGITS
        if units.denominator != 1 or units < 0:
            raise ValueError(f"{model}: {text} dollars per million {name} tokens cannot be booked exactly")
        found.append(int(units))
    return Rates(*found)


def dollars(units: int) -> str:
    """1e-24 dollars as a plain decimal text, exact."""
    sign = "-" if units < 0 else ""
    digits = f"{abs(units):0{DIGITS + 1}d}"
    return f"{sign}{digits[:-DIGITS]}.{digits[-DIGITS:]}".rstrip("0").rstrip(".")


class Models:
    """The models there are: the built-in ones, those with a price given, and the snapshot that answers for each.

    Raises ValueError for a model without a price, and for a price that cannot be booked exactly.
    """

    def __init__(self, prices: Mapping[str, Mapping[str, str]], names: Sequence[str] = ()) -> None:
        table: dict[str, Mapping[str, str]] = {
            name: {"input": row[1], "cached_input": row[2], "cache_write": row[3], "output": row[4]}
            for name, row in MODELS.items()
        }
        table.update(prices)
        unpriced = [name for name in names if name not in table]
        if unpriced:
            raise ValueError(f"no price is known for {', '.join(unpriced)}; name it in prices")
        self.snapshots = {name: MODELS[name][0] if name in MODELS else name for name in table}
        self.sync = {name: rates_of(name, price, Fraction(1)) for name, price in table.items()}
        self.batch = {
            name: rates_of(name, price, Fraction(price.get("batch_discount", "0.5"))) for name, price in table.items()
        }

    def __contains__(self, model: str) -> bool:
        return self.base(model) in self.snapshots

    def base(self, model: str) -> str:
        """A model's name without the date of its snapshot."""
        if model in self.snapshots or model[-3:-2] != "-":
            return model
        return re.sub(r"-\d{4}-\d\d-\d\d$", "", model)

    def snapshot(self, model: str) -> str:
        return self.snapshots.get(model, model)
