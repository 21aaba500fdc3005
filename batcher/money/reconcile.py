"""Compare an export of the provider's usage with the ledger, by UTC day, model and batch.

Knows our charges and the provider's lines (see provider_usage); books nothing. Where the comparison supports it, it
names the `alpasift ledger settle` that would. Call `reconcile`; the verdicts are listed at `Compared`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from alpasift.batcher.money.dollars import ZERO, show_usd
from alpasift.batcher.money.provider_usage import COUNTS, Usage, UsageFileError, read_usage
from alpasift.batcher.store import Store
from alpasift.graders.api.prices import QUANTUM, Price, thaw

LATE_DAYS = {True: 2, False: 1}
"""Days after sending on which the provider may still count a batch (True) or a call (False, past midnight)."""
BOOKED_DAYS = 3
"""Within how many days the same dollars may stand on different days here and there."""


@dataclass(slots=True)
class Compared:
    """One day x model x batch: what the provider counts, what we have, and a verdict. None where the file does not say.

    verdict  equal          all that the file says is what our replies say
             other_day      so it is, together with a neighbouring day: we booked it when it was collected
             settled        the provider counts more, and a person settled it, or it was charged as a whole
             explained      the provider counts more, at most what we still hold as unresolved
             not_explained  the provider counts more than that: somebody else's work, or work nobody asked for
             ours_more      we have more: the provider's data lag, or are of another project
    """

    day: date | None
    model: str | None
    batch: bool | None
    provider: dict[str, Any]
    ours: dict[str, Any]
    slack: Decimal = ZERO
    settled_usd: Decimal = ZERO
    unresolved_usd: Decimal = ZERO
    verdict: str = ""

    def difference(self, name: str) -> Any:
        """The provider's number less ours, None where the file has none."""
        its = self.provider.get(name)
        return None if its is None else its - self.ours[name]

    @property
    def counted(self) -> list[str]:
        return [name for name in (*COUNTS, "usd") if self.provider.get(name) is not None]

    def row(self) -> dict[str, Any]:
        """Flat, for JSON and CSV: provider_x, our_x and x_difference for each measure."""
        flat: dict[str, Any] = {"day": self.day, "model": self.model, "batch": self.batch}
        for name in (*COUNTS, "usd"):
            flat[f"provider_{name}"] = self.provider.get(name)
            flat[f"our_{name}"] = self.ours[name]
            flat["difference_usd" if name == "usd" else f"{name}_difference"] = self.difference(name)
        return {**flat, "settled_usd": self.settled_usd, "unresolved_usd": self.unresolved_usd, "verdict": self.verdict}


@dataclass(frozen=True, slots=True)
class Reconciled:
    """The comparison line by line, its totals, commands that would settle what it explains, and remarks."""

    lines: tuple[Compared, ...]
    total: Compared
    suggestions: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(slots=True)
class _Unseen:
    """An attempt of ours that may explain that the provider counts more."""

    attempt: str
    run: str
    day: date
    model: str
    batch: bool
    unresolved: Decimal
    settled: Decimal
    left: Decimal = ZERO
    credit: Decimal = ZERO
    lines: list[Compared] = field(default_factory=list)


def reconcile(store: Store, path: Path, project: str | None = None, now: datetime | None = None) -> Reconciled:
    """Compare an export of the provider's with our ledger, by UTC day, model and batch as far as the file says them.

    Books nothing. `project` picks one of several in the file. Raises UsageFileError.
    """
    usage = _of_project(read_usage(path), project, path)
    ours, days = store.query("usage_by_day"), set(usage.days)
    pool = [_unseen(row) for row in store.query("unseen_by_attempt")]
    prices = {(r["model"], r["batch"]): thaw(json.loads(r["price"])) for r in store.query("latest_prices")}
    lines = _compare(usage, [row for row in ours if row["day"] in days], pool)
    _judge(lines, pool, prices)
    outside = sum((row["usd"] for row in ours if row["day"] not in days), ZERO)
    today = (now or datetime.now(UTC)).date()
    notes = [*usage.notes, *_remarks(lines, usage.days, outside, today)]
    return Reconciled(tuple(lines), _total(lines), tuple(_suggest(lines, pool, days, today)), tuple(notes))


def _unseen(row: Mapping[str, Any]) -> _Unseen:
    unresolved, settled = row["unresolved_usd"], row["settled_usd"]
    return _Unseen(
        str(row["attempt_id"]),
        str(row["run_id"]),
        row["day"],
        row["model"],
        row["batch"],
        unresolved,
        settled,
        left=unresolved,
        credit=settled,
    )


def _compare(usage: Usage, ours: Sequence[Mapping[str, Any]], pool: Sequence[_Unseen]) -> list[Compared]:
    """The lines to compare, in order, without verdicts: by model and batch where every line of the file says them."""
    by_model = bool(usage.buckets) and all(b.model is not None for b in usage.buckets)
    by_batch = bool(usage.buckets) and all(b.batch is not None for b in usage.buckets)
    seen: dict[tuple[date, str, bool], Compared] = {}

    def line(day: date, model: str | None, batch: bool | None) -> Compared:
        model, batch = (model if by_model else None), (batch if by_batch else None)
        place = (day, model or "", bool(batch))
        if place not in seen:
            seen[place] = Compared(day, model, batch, {}, dict.fromkeys((*COUNTS, "usd"), 0) | {"usd": ZERO})
        return seen[place]

    for bucket in usage.buckets:
        one = line(bucket.day, bucket.model, bucket.batch)
        one.slack += bucket.slack
        for name in usage.measures:
            one.provider[name] = one.provider.get(name, 0) + getattr(bucket, name)
    for row in ours:
        one = line(row["day"], row["model"], row["batch"])
        one.ours = {name: one.ours[name] + row[name] for name in one.ours}
    for attempt in pool:
        if attempt.day in usage.days:
            one = line(attempt.day, attempt.model, attempt.batch)
            one.unresolved_usd += attempt.unresolved
            one.settled_usd += attempt.settled
    for one in seen.values():  # a day that the file covers without a word of a model has none of it
        one.provider = {name: one.provider.get(name, ZERO if name == "usd" else 0) for name in usage.measures}
    return [seen[place] for place in sorted(seen)]


def _of_project(usage: Usage, project: str | None, path: Path) -> Usage:
    there = sorted({b.project for b in usage.buckets if b.project is not None})
    if project is not None:
        if project not in there:
            raise UsageFileError(f"{path} has no project {project!r}; it has {', '.join(there) or 'none'}")
        return replace(usage, buckets=tuple(b for b in usage.buckets if b.project == project))
    if len(there) > 1:
        note = f"the file holds {len(there)} projects; --project {there[0]} compares one"
        return replace(usage, notes=(*usage.notes, note))
    return usage


def _judge(lines: Sequence[Compared], pool: Sequence[_Unseen], prices: Mapping[tuple[str, bool], Price]) -> None:
    for one in lines:
        if all(_small(one, name, one.difference(name)) for name in one.counted):
            one.verdict = "equal"
    _pair_days([one for one in lines if one.verdict != "equal"])
    for one in lines:
        near = [a for a in pool if _may_be(a, one)]
        for attempt in near:
            attempt.lines.append(one)
        if one.verdict:
            continue
        more = _more_usd(one, prices)
        if more is None:
            one.verdict = "not_explained" if any(one.difference(name) > 0 for name in one.counted) else "ours_more"
        elif more < -one.slack:
            one.verdict = "ours_more"
        else:
            more -= _take(near, "credit", max(more, ZERO))
            if more > one.slack:
                taken = _take(near, "left", more)
                one.verdict = "explained" if more - taken <= one.slack else "not_explained"
            else:
                one.verdict = "settled"


def _small(one: Compared, name: str, difference: Any) -> bool:
    return bool(abs(difference) <= (one.slack if name == "usd" else 0))


def _pair_days(lines: Sequence[Compared]) -> None:
    """Find neighbouring days whose differences cancel: the same work, booked here on the day it was collected."""
    series: dict[tuple[str | None, bool | None], list[Compared]] = {}
    for one in lines:
        series.setdefault((one.model, one.batch), []).append(one)
    for days in series.values():
        start = 0
        while start < len(days):
            end = start + 1
            while end < len(days) and _days_between(days[start], days[end]) <= BOOKED_DAYS:
                some = days[start : end + 1]
                slack = sum((one.slack for one in some), ZERO)
                sums = {name: sum(one.difference(name) for one in some) for name in some[0].counted}
                if all(abs(v) <= (slack if name == "usd" else 0) for name, v in sums.items()):
                    for one in some:
                        one.verdict = "other_day"
                    break
                end += 1
            start = end + 1 if days[start].verdict else start + 1


def _days_between(one: Compared, other: Compared) -> int:
    assert one.day is not None and other.day is not None
    return (other.day - one.day).days


def _may_be(attempt: _Unseen, one: Compared) -> bool:
    """Whether something of this attempt may stand in this line."""
    if (one.model is not None and attempt.model != one.model) or (one.batch is not None and attempt.batch != one.batch):
        return False
    assert one.day is not None
    return 0 <= (one.day - attempt.day).days <= LATE_DAYS[attempt.batch]


def _more_usd(one: Compared, prices: Mapping[tuple[str, bool], Price]) -> Decimal | None:
    """Dollars the provider counts and we do not; tokens without dollars at our highest price, None without a price."""
    more: Decimal | None = one.difference("usd")
    if more is not None:
        return more
    fitting = [p for (m, b), p in prices.items() if one.model in (None, m) and one.batch in (None, b)]
    if not fitting or "input_tokens" not in one.counted or "output_tokens" not in one.counted:
        return None
    price = max(fitting, key=lambda p: (p.input, p.output))
    cached = one.difference("cached_tokens") or 0
    plain, output = one.difference("input_tokens") - cached, one.difference("output_tokens")
    return Decimal(plain * price.input + cached * price.cached_input + output * price.output)


def _take(near: Sequence[_Unseen], what: str, usd: Decimal) -> Decimal:
    """Take up to so many dollars from what these attempts can explain; returns what was found."""
    found = ZERO
    for attempt in near:
        part = min(max(getattr(attempt, what), ZERO), usd - found)
        setattr(attempt, what, getattr(attempt, what) - part)
        found += part
    return found


def _total(lines: Sequence[Compared]) -> Compared:
    names = lines[0].counted if lines else []
    total = Compared(
        None,
        None,
        None,
        {name: sum((one.provider[name] for one in lines), ZERO if name == "usd" else 0) for name in names},
        {name: sum((one.ours[name] for one in lines), ZERO if name == "usd" else 0) for name in (*COUNTS, "usd")},
        sum((one.slack for one in lines), ZERO),
        sum((one.settled_usd for one in lines), ZERO),
        sum((one.unresolved_usd for one in lines), ZERO),
    )
    verdicts = {one.verdict for one in lines}
    ranked = ("not_explained", "ours_more", "explained", "settled", "other_day", "equal")
    total.verdict = next((v for v in ranked if v in verdicts), "equal")
    return total


def _remarks(lines: Sequence[Compared], days: Sequence[date], outside: Decimal, today: date) -> Iterator[str]:
    yield f"days are UTC; the file covers {days[0]} to {days[-1]}" if days else "the file covers no day"
    if days and days[-1] >= today - timedelta(days=1):
        yield "the provider's data lags: its figures for today and yesterday may still grow, so check again in a day"
    if outside:
        yield f"{show_usd(outside)} was charged here on days that the file does not cover"
    if any(one.verdict == "not_explained" for one in lines):
        yield "the provider counts more than this ledger can explain; does anybody else use the project?"


def _suggest(lines: Sequence[Compared], pool: Sequence[_Unseen], days: set[date], today: date) -> Iterator[str]:
    """The settlements that the comparison supports: all days on which the provider may count it are explained."""
    waiting = [a for a in pool if a.unresolved > 0 and not _is_explained(a, days, today)]
    unclear = {id(one) for a in waiting for one in a.lines}  # it may be theirs
    ready = [
        a
        for a in pool
        if a.unresolved > 0
        and _is_explained(a, days, today)
        and not any(one.verdict == "explained" and id(one) in unclear for one in a.lines)
    ]
    for group in _together(ready):
        usd = sum((a.unresolved - a.left for a in group), ZERO)
        first, last = min(a.day for a in group), max(a.day for a in group)
        when = f"{first}" if first == last else f"{first} to {last}"
        names = " ".join(_short_names(group, pool))
        charged = f" --usd {_trimmed(usd)}" if usd else ""
        yield f'alpasift ledger settle {names}{charged} --reason "usage of {when} as counted by the provider"'


def _is_explained(attempt: _Unseen, days: set[date], today: date) -> bool:
    wanted = {attempt.day + timedelta(days=n) for n in range(LATE_DAYS[attempt.batch] + 1)}
    settled = all(one.verdict in ("equal", "other_day", "settled", "explained") for one in attempt.lines)
    return wanted <= days and max(wanted) < today - timedelta(days=1) and settled


def _together(ready: Sequence[_Unseen]) -> list[list[_Unseen]]:
    """Attempts between which the provider's dollars cannot be told apart: those that share an explained line."""
    groups: list[list[_Unseen]] = []
    for attempt in ready:
        shared = [one for one in attempt.lines if one.verdict == "explained"]
        mine = [g for g in groups if shared and any(one is other for a in g for other in a.lines for one in shared)]
        if not shared:  # nothing was charged for it: it goes with the others of its day
            mine = [g for g in groups if g[0].day == attempt.day and not _has_charge(g)][:1]
        groups = [g for g in groups if not any(g is m for m in mine)]
        groups.append([*(a for g in mine for a in g), attempt])
    return groups


def _has_charge(group: Sequence[_Unseen]) -> bool:
    return any(one.verdict == "explained" for attempt in group for one in attempt.lines)


def _short_names(group: Sequence[_Unseen], pool: Sequence[_Unseen]) -> list[str]:
    """Names for a command: whole runs by the run, else attempts."""
    mine = {a.attempt for a in group}
    names = []
    for run in dict.fromkeys(a.run for a in group):
        whole = [a.attempt for a in pool if a.run == run and a.unresolved > 0]
        own = [a.attempt for a in group if a.run == run]
        names += [run] if len(whole) > 1 and set(whole) <= mine else own
    return names


def _trimmed(usd: Decimal) -> str:
    text = format(usd.quantize(QUANTUM), "f")
    return text.rstrip("0").rstrip(".")
