"""Read the provider's own record of what was used: an export of its usage or costs, as JSON or CSV.

Knows files and their formats; nothing of our ledger. Call `read_usage`; every line of the file becomes a Bucket.
Formats: OpenAI's usage and costs API (/v1/organization/usage/completions and /v1/organization/costs, pages of buckets)
and CSV with a header, as its dashboard writes.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from alpasift.batcher.money.dollars import ZERO
from alpasift.graders import AlpaSiftError
from alpasift.graders.api.prices import QUANTUM

MAX_BYTES = 64 * 2**20
COUNTS = ("requests", "input_tokens", "cached_tokens", "output_tokens")
"""What an export may count, besides dollars."""


class UsageFileError(AlpaSiftError):
    """An export of the provider's that cannot be read; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """One line of the provider's: what it counted on a day. None where the file does not say."""

    day: date
    model: str | None = None
    batch: bool | None = None
    project: str | None = None
    requests: int | None = None
    input_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    usd: Decimal | None = None
    slack: Decimal = ZERO

    @property
    def empty(self) -> bool:
        return all(getattr(self, name) is None for name in (*COUNTS, "usd"))


@dataclass(frozen=True, slots=True)
class Usage:
    """A whole export: its lines, the days that it covers, what it counts, and remarks on it."""

    buckets: tuple[Bucket, ...]
    days: tuple[date, ...]
    measures: tuple[str, ...]
    notes: tuple[str, ...] = ()


_COLUMNS = {
    "day": ("date", "day", "start_time_iso", "start_time", "timestamp", "usage_date"),
    "end": ("end_time_iso", "end_time"),
    "model": ("model", "line_item", "model_name"),
    "batch": ("batch", "is_batch"),
    "project": ("project_id", "project"),
    "requests": ("num_model_requests", "num_requests", "requests"),
    "input_tokens": ("input_tokens", "prompt_tokens"),
    "cached_tokens": ("input_cached_tokens", "cached_tokens", "cached_input_tokens"),
    "output_tokens": ("output_tokens", "completion_tokens"),
    "usd": ("amount_value", "cost_usd", "amount_usd", "usd", "cost", "amount"),
    "currency": ("amount_currency", "currency"),
}


def read_usage(path: Path) -> Usage:
    """Read an export: JSON pages of OpenAI's usage or costs API (one, a list, or one a line), or CSV with a header."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageFileError(f"{path} is larger than {MAX_BYTES >> 20} MiB; export fewer days")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageFileError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageFileError(f"{path} is not text in UTF-8") from error
    if not text.strip():
        raise UsageFileError(f"{path} is empty")
    if text.lstrip()[0] in "[{":
        return _read_pages(_json_pages(text, path), path)
    return _read_csv(text, path)


def _json_pages(text: str, path: Path) -> list[Any]:
    try:
        try:
            found = json.loads(text, parse_float=Decimal, parse_constant=_no_number)
        except json.JSONDecodeError as error:
            lines = text.splitlines()
            if len(lines) < 2 or not lines[0].rstrip().endswith("}"):
                raise UsageFileError(f"{path}:{error.lineno}: this is not valid JSON: {error.msg}") from error
            found = [json.loads(line, parse_float=Decimal, parse_constant=_no_number) for line in lines if line.strip()]
    except (ValueError, RecursionError, InvalidOperation) as error:
        raise UsageFileError(f"{path}: this is not valid JSON ({str(error)[:100]})") from error
    return found if isinstance(found, list) else [found]


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not a number")


def _read_pages(pages: Sequence[Any], path: Path) -> Usage:
    buckets: list[Bucket] = []
    days: set[date] = set()
    notes: list[str] = []
    for number, page in enumerate(pages, 1):
        if not isinstance(page, Mapping) or not isinstance(page.get("data"), list):
            raise UsageFileError(
                f"{path}: page {number} is not a page of OpenAI's usage or costs API (an object with `data`)"
            )
        if page.get("has_more") and number == len(pages):
            notes.append("the file is one page of several (has_more is true): days are missing after its last")
        for place, bucket in enumerate(page["data"], 1):
            where = f"{path}: page {number}, bucket {place}"
            if not isinstance(bucket, Mapping):
                raise UsageFileError(f"{where} is not an object")
            start = _day(bucket.get("start_time"), where)
            end = _last_day(start, bucket.get("end_time"), where)
            _add_days(days, start, end, where)
            results = bucket.get("results", bucket.get("result"))
            if not isinstance(results, list):
                raise UsageFileError(f"{where} has no list of results")
            buckets += [_result(result, start, f"{where}, result {i}") for i, result in enumerate(results, 1)]
    return _whole(buckets, days, notes, path)


def _result(result: Any, day: date, where: str) -> Bucket:
    if not isinstance(result, Mapping):
        raise UsageFileError(f"{where} is not an object")
    amount = result.get("amount")
    usd = None
    if amount is not None:
        if not isinstance(amount, Mapping):
            raise UsageFileError(f"{where}: amount is not an object with value and currency")
        _check_currency(amount.get("currency"), where)
        usd = amount.get("value")
    return _bucket(
        day,
        where,
        result.get("model") or result.get("line_item"),
        result.get("batch"),
        result.get("project_id"),
        usd,
        requests=result.get("num_model_requests"),
        input_tokens=result.get("input_tokens"),
        cached_tokens=result.get("input_cached_tokens"),
        output_tokens=result.get("output_tokens"),
    )


def _read_csv(text: str, path: Path) -> Usage:
    buckets: list[Bucket] = []
    days: set[date] = set()
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = [cell.strip().lower() for cell in next(reader)]
        column = {
            name: next((header.index(known) for known in names if known in header), None)
            for name, names in _COLUMNS.items()
        }
        if column["day"] is None or all(column[name] is None for name in (*COUNTS, "usd")):
            raise UsageFileError(
                f"{path}: the header {', '.join(header)[:160]} has no day (date, start_time) or nothing to compare "
                "(input_tokens, output_tokens, requests, cost)"
            )
        for cells in reader:
            where = f"{path}:{reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise UsageFileError(f"{where}: {len(cells)} cells under a header of {len(header)}")
            row = {name: cells[i].strip() or None if i is not None else None for name, i in column.items()}
            day = _day(row["day"], where)
            _add_days(days, day, _last_day(day, row["end"], where), where)
            if row["usd"] is not None:
                _check_currency(row["currency"] or "usd", where)
            counts = {name: row[name] for name in COUNTS}
            bucket = _bucket(day, where, row["model"], row["batch"], row["project"], row["usd"], **counts)
            if not bucket.empty:  # an empty day
                buckets.append(bucket)
    except csv.Error as error:
        raise UsageFileError(f"{path}: this is neither JSON nor CSV ({error})") from error
    return _whole(buckets, days, [], path, [name for name in (*COUNTS, "usd") if column[name] is not None])


def _whole(
    buckets: Sequence[Bucket], days: set[date], notes: Sequence[str], path: Path, named: Sequence[str] = COUNTS
) -> Usage:
    """`named` are the measures that a file without a single line would have had."""
    if not days:
        raise UsageFileError(f"{path} covers no day")
    given = {name: sum(getattr(b, name) is not None for b in buckets) for name in (*COUNTS, "usd")}
    for name, count in given.items():
        if name != "cached_tokens" and 0 < count < len(buckets):
            raise UsageFileError(
                f"{path}: only {count} of {len(buckets)} lines have {name}; export usage and costs to separate files"
            )
    measures = [name for name, count in given.items() if count == len(buckets)] if buckets else list(named)
    if not measures:
        raise UsageFileError(f"{path} has nothing to compare (input_tokens, output_tokens, requests, cost)")
    return Usage(tuple(buckets), tuple(sorted(days)), tuple(measures), tuple(notes))


def _bucket(day: date, where: str, model: Any, batch: Any, project: Any, usd: Any, **counts: Any) -> Bucket:
    if model is not None and not isinstance(model, str):
        raise UsageFileError(f"{where}: the model is {model!r:.60}")
    if project is not None and not isinstance(project, str):
        raise UsageFileError(f"{where}: the project is {project!r:.60}")
    amount, slack = (None, ZERO) if usd is None else _dollars(usd, where)
    return Bucket(
        day,
        None if model is None else family(model.split(",")[0].strip().lower()),
        _truth(batch, where),
        project,
        usd=amount,
        slack=slack,
        **{name: None if value is None else _count(value, name, where) for name, value in counts.items()},
    )


def family(model: str) -> str:
    """A model's name without the date of its snapshot: gpt-4.1-nano-2025-04-14 is gpt-4.1-nano."""
    return re.sub(r"-\d{4}-\d{2}-\d{2}$", "", model)


def _day(value: Any, where: str) -> date:
    """The UTC day of a time: seconds since 1970, 2026-11-20, or an ISO time (UTC where it names no zone)."""
    try:
        if isinstance(value, int) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC).date()
        if isinstance(value, str) and re.fullmatch(r"\d{9,11}", value):
            return datetime.fromtimestamp(int(value), UTC).date()
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            return (moment.astimezone(UTC) if moment.tzinfo else moment).date()
    except (ValueError, OverflowError, OSError):
        pass
    raise UsageFileError(f"{where}: {value!r:.60} is not a day; use 2026-11-20 or seconds since 1970")


def _last_day(start: date, end: Any, where: str) -> date:
    """The last day of a bucket whose end is not part of it."""
    if end is None:
        return start
    if isinstance(end, int) and not isinstance(end, bool):
        return max(start, _day(end - 1, where))
    found = _day(end, where)
    return max(start, found - timedelta(days=1)) if found > start else start


def _add_days(days: set[date], start: date, end: date, where: str) -> None:
    if (end - start).days > 366:
        raise UsageFileError(f"{where}: a bucket of {(end - start).days} days; export by day")
    days |= {start + timedelta(days=n) for n in range((end - start).days + 1)}


def _count(value: Any, name: str, where: str) -> int:
    if isinstance(value, str) and re.fullmatch(r"\d{1,15}(\.0+)?", value):
        value = int(value.partition(".")[0])
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 10**15:
        raise UsageFileError(f"{where}: {name} is {str(value)[:40]!r}, not a count")
    return value


def _dollars(value: Any, where: str) -> tuple[Decimal, Decimal]:
    """Dollars, and by how much they may have been rounded: half of the last decimal written, at most half a cent."""
    usd = Decimal("NaN")
    if isinstance(value, str | int | Decimal) and not isinstance(value, bool):
        try:
            usd = Decimal(str(value).strip().removeprefix("$"))
        except (InvalidOperation, ValueError):
            usd = Decimal("NaN")
    if not usd.is_finite() or abs(usd) > 10**9:
        raise UsageFileError(f"{where}: the amount is {str(value)[:40]!r}, not an amount of dollars")
    places = usd.as_tuple().exponent
    assert isinstance(places, int)
    slack = QUANTUM if places < -15 else min(Decimal(5).scaleb(places - 1), Decimal("0.005"))
    return usd.quantize(QUANTUM), slack


def _check_currency(currency: Any, where: str) -> None:
    if not isinstance(currency, str) or currency.lower() != "usd":
        raise UsageFileError(f"{where}: the currency is {currency!r:.20}; only usd can be compared")


def _truth(value: Any, where: str) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    words = {"true": True, "1": True, "yes": True, "batch": True, "false": False, "0": False, "no": False}
    found = words.get(str(value).strip().lower())
    if found is None:
        raise UsageFileError(f"{where}: batch is {str(value)[:40]!r}; true or false")
    return found
