"""Collecting: ask after batches, bring their files, read them, and say of every line what became of it.

Knows how a batch ends, and that money follows lines, not the status of a batch: whatever the status, what stands in a
file is read, and a line in no file is free only where the batch was stopped and its counts account for every line it
ran. Results are read line by line from the files kept here; reading them again changes nothing. The closing comes last.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from alpasift.graders import BackendError, Replies, Reply
from alpasift.graders.api.api_errors import OUT_OF_MONEY
from alpasift.graders.api.batch_attempts import Attempts, BatchAttempt
from alpasift.graders.api.batch_client import MARGIN_SECONDS, BatchClient, NotFound, TryLater
from alpasift.graders.api.batch_recovery import Recovery
from alpasift.graders.api.batch_sender import Sender
from alpasift.graders.api.keys import clean
from alpasift.graders.api.prices import UsageError, charge, thaw
from alpasift.graders.api.result_files import read_results, stray_key

TERMINAL = ("completed", "failed", "expired", "cancelled")
LAG_POLLS = 10
LAG_SECONDS = 3600
"""How long the id of an output file may lag behind the counts that say there is one: so many looks, or seconds."""
NOT_FOUND = 3
"""404s in a row for a batch that was created, after which an alarm is raised."""
PIECE = 1000
"""Replies in one list."""


class Collector:
    """Looks after what is at the provider."""

    def __init__(self, client: BatchClient, attempts: Attempts, recovery: Recovery, sender: Sender) -> None:
        self.client, self.attempts, self.recovery, self.sender = client, attempts, recovery, sender
        self.meter, self.options = attempts.meter, client.options

    def look_at_all(self) -> Replies:
        """Ask after every batch in flight, once."""
        for one in list(self.attempts.at_provider()):
            try:
                yield from self._look_at(one)
            except TryLater as error:
                self.attempts.note_message(one, f"no valid answer now ({error})")

    def _look_at(self, one: BatchAttempt) -> Replies:
        for batch_id in one.batches:
            if batch_id in one.done:
                continue
            try:
                batch = self.client.get(
                    lambda batch_id=batch_id: self.client.sdk.batches.retrieve(batch_id),  # type: ignore[misc]
                    tries=1,
                )
            except NotFound:
                self._not_found(one, batch_id)
                continue
            one.not_found = 0
            self._note_progress(one, batch)
            if batch.status in TERMINAL:
                yield from self._ended(one, batch)
                if one.attempt not in self.attempts.in_flight:
                    return
            elif batch.expires_at and self.client.now() > batch.expires_at + MARGIN_SECONDS and not one.reported_late:
                one.reported_late = True
                self.attempts.note_message(
                    one, f"still {batch.status} after its completion window; its money stays reserved"
                )
        if one.batches and set(one.batches) <= one.done:
            yield from self._finish(one)

    def _not_found(self, one: BatchAttempt, batch_id: str) -> None:
        """404 for a batch that we saw created proves nothing: another key or project, or a list that lags."""
        one.not_found += 1
        if one.not_found >= NOT_FOUND:
            self.meter.alarm(
                one.attempt,
                "batch_not_found",
                f"{self.options.host} reports that batch {batch_id} does not exist, though it was created; is "
                f"this another key or project?",
            )
            self.attempts.note(one, "lost", {"message": f"404 for {batch_id}"})

    def _note_progress(self, one: BatchAttempt, batch: Any) -> None:
        if batch.status == one.status and one.state in ("in_batch", "cancelling"):
            return
        one.status = str(batch.status)
        counts = _counts(batch)
        facts = {
            "status": one.status,
            "counts": list(counts) if counts else None,
            "expires_at": batch.expires_at,
            "seen_at": self.client.now(),
        }
        self.attempts.note(one, "cancelling" if one.cancelled else "in_batch", facts)

    # -- a batch that has ended -----------------------------------------------------------------------------------

    def _ended(self, one: BatchAttempt, batch: Any) -> Replies:
        """One batch is over: bring its files and read them."""
        output = getattr(batch, "output_file_id", None) or None
        errors = getattr(batch, "error_file_id", None) or None
        counts = _counts(batch)
        completed = counts[1] if counts else 0
        if batch.status == "failed" and not output and not completed:
            self._failed(one, batch)
            return
        if not output and completed > 0 and self._may_lag(one, batch):
            return
        paths = []
        for file_id, kind in ((output, "output"), (errors, "errors")):
            try:
                paths += [self._download(one, str(file_id), kind)] if file_id else []
            except NotFound:
                if kind == "output":
                    yield from self._results_gone(one, batch, completed)
                    return  # without the file of errors its lines are in no file
        found = self.attempts.results(one)
        for path in paths:
            yield from read_results(path, one.attempt, found)
        one.done.add(batch.id)
        ending = {"status": batch.status, "completed": completed, "counted": counts is not None}
        facts: dict[str, Any] = {"ended": {**one.ended, batch.id: ending}}
        if batch.status == "failed" and batch.id == one.batches[0]:
            facts["message"] = _errors(batch)[1]
        self.attempts.note(one, "collected", {**facts, **found.facts()})

    def _may_lag(self, one: BatchAttempt, batch: Any) -> bool:
        """Whether the id of the output may still come: it lags behind the status at times."""
        now = self.client.now()
        ended = batch.completed_at or batch.cancelled_at or batch.expired_at or batch.failed_at or now
        one.polls_without_output += 1
        return one.polls_without_output < LAG_POLLS and now - ended < LAG_SECONDS

    def _download(self, one: BatchAttempt, file_id: str, kind: str) -> Path:
        try:
            name = f"{one.attempt}-{_safe(file_id)}-{kind}.jsonl"
            return self.client.download(file_id, self.meter.folder / name)
        except TryLater as error:
            raise TryLater(f"{kind} file: {error}") from error

    def _results_gone(self, one: BatchAttempt, batch: Any, completed: int) -> Replies:
        """The results are gone from the server before we had them: their cost is known from its totals at best."""
        several = self.recovery.adopt_others(one)
        usage = _usage_of(batch, one)
        why = f"the results of batch {batch.id} are no longer on the server (404)"
        self.meter.alarm(one.attempt, "results_lost", why)
        if usage is not None and not several:
            usd = charge(thaw(one.facts["price"]), usage)
            self.attempts.settle(one, usd, f"{why}; charged by the usage of the whole batch")
            return
        if usage is not None:  # one of several: what it cost is booked beside what the others answer
            yield [Reply(one.attempt, stray_key(batch.id), batch.id, "answered", usage=usage, error=f"gone: {why}")]
        one.done.add(batch.id)
        ending = {"status": batch.status, "completed": completed, "counted": True}
        self.attempts.note(one, "collected", {"ended": {**one.ended, batch.id: ending}, "message": why})
        self.attempts.results(one)

    def _failed(self, one: BatchAttempt, batch: Any) -> None:
        """Nothing was run. A full queue is a matter of time; no money stops all; the rest is our fault."""
        code, message = _errors(batch)
        several = self.recovery.adopt_others(one)
        one.done.add(batch.id)
        if several:  # the others decide
            nothing = {"status": "failed", "completed": 0, "counted": True}
            self.attempts.note(one, one.state, {"ended": {**one.ended, batch.id: nothing}, "message": message})
            return
        if code == "token_limit_exceeded":
            self._queue_full(one, message)
            return
        adopted = bool(one.facts.get("adopted"))
        self.attempts.note(one, "failed", {"message": message})
        if adopted and not one.was_unconfirmed and code not in OUT_OF_MONEY:
            self.sender.ask_again(one)  # a create that came late and found its file deleted
        self.attempts.settle(one, Decimal(0), f"the batch failed: {message}", keep_file=adopted)
        host = self.options.host
        if code in OUT_OF_MONEY:
            self.sender.stop_with(BackendError(f"{host}: {message}; add credit there, then run again"))
        elif not adopted:
            self.sender.stop_with(
                BackendError(f"{host} refused a batch ({message}); it cost nothing, and it is not sent again")
            )

    def _queue_full(self, one: BatchAttempt, message: str) -> None:
        """The organisation's queue is full: its lines are sent again, in smaller files or later."""
        stated = _stated_limit(message)
        self.attempts.note(one, "failed", {"message": message, **({"enqueued_limit": stated} if stated else {})})
        self.sender.narrow(one, stated)
        self.sender.ask_again_free(one, f"the queue was full: {message}")

    # -- an attempt that has ended --------------------------------------------------------------------------------

    def _finish(self, one: BatchAttempt) -> Replies:
        """All batches of an attempt are read: look for others of its, then say of each line what became of it."""
        known = one.batches
        try:
            self.recovery.adopt_others(one)
        except TryLater:
            return
        if one.batches != known:
            return
        found = self.attempts.results(one)
        missing = {key: usd for key, usd in found.asked.items() if key not in found.answered}
        yield from _missing_lines(one, missing, len(found.executed))
        self.meter.close(one.attempt)
        self.attempts.in_flight.pop(one.attempt, None)
        yield []
        self.attempts.drop_file(one)


def _missing_lines(one: BatchAttempt, missing: Mapping[str, Decimal], executed: int) -> Replies:
    """Lines in no file. Free only where every batch was stopped and its counts account for all that it ran.

    Where they account for more lines than were seen, the dearest of the missing ones are taken for those.
    """
    endings = list(one.ended.values())
    stopped = [e for e in endings if e["status"] in ("cancelled", "failed")]
    countable = bool(endings) and len(stopped) == len(endings) and all(e["counted"] for e in endings)
    unseen = max(0, sum(e["completed"] for e in endings) - executed) if countable else len(missing)
    dearest = sorted(missing, key=lambda key: (-missing[key], key))
    name = f"{one.attempt}-missing"
    for start in range(0, len(dearest), PIECE):
        yield [
            Reply(one.attempt, key, name, "unknown", error="missing: not in any result file")
            if start + i < unseen
            else Reply(one.attempt, key, name, "rejected_free", error="cancelled: not run")
            for i, key in enumerate(dearest[start : start + PIECE])
        ]


def _usage_of(batch: Any, one: BatchAttempt) -> dict[str, Any] | None:
    """The usage of a whole batch, as a reply's; None where it has none, or none that its price can charge."""
    usage = getattr(batch, "usage", None)
    if usage is None or "price" not in one.facts:
        return None
    price = thaw(one.facts["price"])
    if price.cache_write > price.input:
        return None  # the batch's usage does not say what was written to the cache
    try:
        counted = {
            "prompt_tokens": usage.input_tokens,
            "completion_tokens": usage.output_tokens,
            "prompt_tokens_details": {"cached_tokens": getattr(usage.input_tokens_details, "cached_tokens", 0)},
        }
        charge(price, counted)
        return counted if usage.total_tokens else None
    except (UsageError, AttributeError):
        return None


def _counts(batch: Any) -> tuple[int, int, int] | None:
    """(total, completed, failed) of a batch, None where it does not say or says nonsense."""
    counts = getattr(batch, "request_counts", None)
    numbers = [getattr(counts, name, None) for name in ("total", "completed", "failed")]
    plain = [n for n in numbers if isinstance(n, int) and not isinstance(n, bool) and n >= 0]
    return (plain[0], plain[1], plain[2]) if len(plain) == 3 else None


def _errors(batch: Any) -> tuple[str, str]:
    """(code, message) of a batch that failed."""
    data = getattr(getattr(batch, "errors", None), "data", None) or []
    first = data[0] if data else None
    code = str(getattr(first, "code", "") or "")
    line = getattr(first, "line", None)
    where = f"line {line}: " if line else ""
    return code, clean(f"{code}: {where}{getattr(first, 'message', '') or 'no reason given'}")


def _stated_limit(text: str) -> int | None:
    """The limit that a token_limit_exceeded message names."""
    match = re.search(r"[Ll]imit:\s*([\d,]+)\s*enqueued", text)
    return int(match[1].replace(",", "")) if match else None


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)[:100]
