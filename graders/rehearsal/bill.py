"""The bill: one line of JSON for each request that was carried out, and their exact sum.

Computed from the server's own prices; a client's ledger can be compared with it. The caller holds the server's lock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson

from alpasift.graders.rehearsal.models import Family, Rates, dollars


@dataclass(frozen=True, slots=True)
class BillLine:
    """One execution of one request. A synchronous one has no batch, and the SHA-256 of its body as custom_id."""

    batch: str | None
    custom_id: str
    request_id: str
    model: str
    usage: Mapping[str, Any]
    usd: Decimal


@dataclass(slots=True)
class Cost:
    """What one execution used, as JSON, and what it costs."""

    usage: orjson.Fragment
    units: int
    usd: str


def cost_of(rates: Rates, prompt: int, cached: int, written: int, completion: int, hidden: int, family: Family) -> Cost:
    units = rates.charge(prompt, cached, written, completion)
    usage = _usage(prompt, cached, written, completion, hidden, family)
    return Cost(orjson.Fragment(orjson.dumps(usage)), units, dollars(units))


def _usage(prompt: int, cached: int, written: int, completion: int, hidden: int, family: Family) -> dict[str, Any]:
    details = {"cached_tokens": cached, "audio_tokens": 0}
    if family.writes:
        details["cache_write_tokens"] = written
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": details,
        "completion_tokens_details": {
            "reasoning_tokens": hidden,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def hostile(true: orjson.Fragment, kind: str) -> dict[str, Any]:
    """The usage as it cannot be."""
    usage: dict[str, Any] = orjson.loads(orjson.dumps(true))
    changed: dict[str, dict[str, Any]] = {
        "negative": {"prompt_tokens": -5},
        "bool": {"completion_tokens": True},
        "cached": {"prompt_tokens_details": {"cached_tokens": usage["prompt_tokens"] + 1}},
        "text": {"prompt_tokens": str(usage["prompt_tokens"])},
        "huge": {"completion_tokens": 10**15},
    }
    return {**usage, **changed[kind]}


class Bill:
    """The file of the bill. Raises FileExistsError for one that is there already."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._billed = 0
        self._file = path.open("xb", buffering=0)

    @property
    def closed(self) -> bool:
        return self._file.closed

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size

    @property
    def usd(self) -> Decimal:
        return Decimal(dollars(self._billed))

    def entry(self, batch: str | None, custom_id: str, request_id: str, model: str, cost: Cost) -> bytes:
        """One line of the bill; give it to `write`."""
        self._billed += cost.units
        row = {
            "batch": batch,
            "custom_id": custom_id,
            "request_id": request_id,
            "model": model,
            "usage": cost.usage,
            "usd": cost.usd,
        }
        return orjson.dumps(row) + b"\n"

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def lines(self, size: int) -> Iterator[BillLine]:
        """The executions in the first `size` bytes, read from disk; needs no lock."""
        with self.path.open("rb") as lines:
            for line in lines:
                size -= len(line)
                if size < 0:
                    return
                row = orjson.loads(line)
                yield BillLine(
                    row["batch"], row["custom_id"], row["request_id"], row["model"], row["usage"], Decimal(row["usd"])
                )

    def close(self) -> None:
        self._file.close()
