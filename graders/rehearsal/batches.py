"""How batches live: created, validated, carried out, ended; by the server's clock, and with the faults they took on.

A batch moves when somebody looks: validating for a tenth of its seconds, in progress for eight tenths, finalizing for
one. Lines are carried out, and billed, as the time in progress passes. Every look moves all batches, in the order of
their creation. The caller holds the server's lock.
"""

from __future__ import annotations

import contextlib
import random
from array import array
from collections.abc import Callable
from typing import Any

import orjson

from alpasift.graders.rehearsal.answers import FakeModel
from alpasift.graders.rehearsal.batch import DAY, TERMINAL, Batch, Pending
from alpasift.graders.rehearsal.bill import Bill
from alpasift.graders.rehearsal.execution import Execution
from alpasift.graders.rehearsal.faults import OF_A_BATCH, OF_LINES, ArmedFaults, Fault
from alpasift.graders.rehearsal.files import Files
from alpasift.graders.rehearsal.lines import ENDPOINT, ENDPOINTS, read_input
from alpasift.graders.rehearsal.messages import Refused, batch_error, missing, no_file, queue_full
from alpasift.graders.rehearsal.models import Models

FILE_DAYS = 30
"""How long files are kept, where nothing else is asked for."""
_EARLY = (Fault.EXPIRES, Fault.CANCELLED_PARTLY, Fault.CANCELLED_NO_OUTPUT)


class Batches:
    """All batches. `seconds` is how long one takes, `enqueued_limit` the prompt tokens of a model that fit in them."""

    def __init__(
        self,
        files: Files,
        models: Models,
        fake: FakeModel,
        bill: Bill,
        faults: ArmedFaults,
        *,
        seconds: float,
        enqueued_limit: int | None,
    ) -> None:
        self.files, self.models, self.fake, self.bill, self.faults = files, models, fake, bill, faults
        self.seconds, self.enqueued_limit = seconds, enqueued_limit
        self.now = files.now
        self.all: dict[str, Batch] = {}
        self.live: list[Batch] = []
        self.pending: list[Pending] = []

    # -- creating, finding, cancelling ----------------------------------------------------------------------------

    def create(self, body: dict[str, Any], at: float | None = None) -> Batch:
        """Create the batch. A file that is deleted makes it fail later; one that never was is refused at once."""
        check_create(body)
        file = self.files.all.get(body["input_file_id"])
        if file is None or file.purpose != "batch":
            raise no_file(body["input_file_id"])
        there = self.files.there(file.id) is not None
        keep = body.get("output_expires_after")
        batch = Batch(
            self.files.ids.new("batch_"),
            len(self.all),
            file.id,
            file.path if there else None,
            body.get("metadata"),
            self.now() if at is None else at,
            self.seconds,
            keep["seconds"] / DAY if keep else FILE_DAYS,
        )
        self.all[batch.id] = batch
        self.live.append(batch)
        return batch

    def create_later(self, body: dict[str, Any], after: float | None, lists: int | None) -> None:
        """Create it `after` some seconds of the server's clock, or after so many lists. Raises Refused."""
        check_create(body)
        at = None if after is None else self.now() + after
        self.pending.append(Pending(body, at, lists))

    def known(self, batch_id: str) -> Batch:
        batch = self.all.get(batch_id)
        if batch is None:
            raise Refused(404, f"No batch found with id '{batch_id}'.", None, None)
        return batch

    def listed(self) -> list[Batch]:
        """All of them, newest first, each where it stands now. Late creates that wait for lists count this one."""
        for pending in list(self.pending):
            if pending.lists is None:
                continue
            if pending.lists <= 0:
                self._commit_late(pending, self.now())
            pending.lists -= 1
        self.tick()
        return list(reversed(self.all.values()))

    def cancel(self, batch: Batch) -> None:
        """Ask a batch to stop. Raises Refused for one that has ended, or ends before the cancel (a fault)."""
        if batch.seconds > 0:
            self.tick()
        if (fault := self.faults.take(Fault.CANCEL_TOO_LATE)) is not None:
            batch.seconds = 0.0
            self._advance(batch, self.now())
            raise Refused(fault["status"], f"Cannot cancel a batch with status '{batch.status}'.")
        if batch.status in TERMINAL:
            raise Refused(409, f"Cannot cancel a batch with status '{batch.status}'.")
        if batch.cancelled is not None:
            return
        now = self.now()
        self._begin(batch)
        asked: dict[Fault, dict[str, Any]] = {}
        for number in (Fault.CANCELLED_PARTLY, Fault.CANCELLED_NO_OUTPUT, Fault.STUCK_CANCELLING):
            if (fault := self.faults.take(number, lambda detail: not detail.get("unasked"))) is not None:
                asked[number] = fault
        assert batch.faults is not None
        batch.faults.update(asked)
        if batch.status == "validating" and not self._validate(batch, now):
            return
        for fault_number in (Fault.CANCELLED_PARTLY, Fault.CANCELLED_NO_OUTPUT):
            if (done := asked.get(fault_number)) is not None:
                self._carry_out(batch, max(batch.cursor, part_of(batch.lines, done["share"])), now)
        batch.cancelled = now
        batch.times["cancelling_at"] = int(now)
        batch.status = "cancelling"

    def commit_due(self, now: float) -> None:
        """Carry out the creates whose time has come."""
        for pending in list(self.pending):
            if pending.at is not None and pending.at <= now:
                self._commit_late(pending, pending.at)

    def _commit_late(self, pending: Pending, at: float) -> None:
        self.pending.remove(pending)
        with contextlib.suppress(Refused):
            self.create(pending.body, at)

    # -- how a batch moves ----------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Move everything to where it stands now."""
        if self.bill.closed:
            return
        now = self.now()
        self.commit_due(now)
        for batch in list(self.live):  # all of them first: who waits in the queue counts for those who come after
            self._start(batch, now)
        for batch in list(self.live):
            self._advance(batch, now)

    def _begin(self, batch: Batch) -> None:
        """The first look at a batch: the faults that wait for one are its own now."""
        if batch.faults is not None:
            return
        batch.faults = {}
        for fault in OF_A_BATCH:
            fits: Callable[[dict[str, Any]], bool] | None = None
            if fault == Fault.OUT_OF_MONEY:
                fits = _is_no_http
            elif fault in (Fault.CANCELLED_PARTLY, Fault.CANCELLED_NO_OUTPUT):
                fits = _is_unasked
            if (detail := self.faults.take(fault, fits)) is not None:
                batch.faults[fault] = detail

    def _stuck(self, batch: Batch, now: float) -> str | None:
        """The status in which a batch is stuck now."""
        detail = batch.has(Fault.STUCK)
        if detail is None or (detail["until"] is not None and now >= batch.created + detail["until"]):
            return None
        return str(detail["status"])

    def _start(self, batch: Batch, now: float) -> None:
        """Validate a batch whose time has come."""
        begins = batch.created + 0.1 * batch.seconds
        self._begin(batch)
        if batch.status == "validating" and now >= begins and self._stuck(batch, now) != "validating":
            self._validate(batch, begins)

    def _advance(self, batch: Batch, now: float) -> None:
        """Do what a batch has done by now."""
        self._start(batch, now)
        if batch.status in ("validating", *TERMINAL):
            return
        begins, over = batch.created + 0.1 * batch.seconds, batch.created + batch.seconds
        ends, stuck = batch.created + 0.9 * batch.seconds, self._stuck(batch, now)
        if batch.cancelled is not None:
            hold = batch.has(Fault.STUCK_CANCELLING)
            if hold is not None and (hold["until"] is None or now < batch.cancelled + hold["until"]):
                return
            if now >= batch.cancelled + 0.05 * batch.seconds:
                self._end(batch, "cancelled", now)
            return
        early = next((f for f in _EARLY if batch.has(f) is not None), None)
        share = 1.0
        if early is not None:
            share = (batch.has(early) or {})["share"]
        if stuck == "in_progress":
            share = min(share, (batch.has(Fault.STUCK) or {})["share"])
        spent = 1.0 if now >= ends else (now - begins) / (ends - begins)
        expired = batch.expires <= now and batch.expires < ends
        if expired:
            spent = (batch.expires - begins) / (ends - begins)
        self._carry_out(batch, max(batch.cursor, min(int(batch.lines * spent), part_of(batch.lines, share))), now)
        if stuck is not None:
            if stuck == "finalizing" and now >= ends:
                self._finalize(batch, ends)
        elif expired:
            self._end(batch, "expired", batch.expires)
        elif now >= over:
            self._finalize(batch, ends)
            self._end(
                batch, "completed" if early is None else "expired" if early == Fault.EXPIRES else "cancelled", over
            )
        elif now >= ends:
            self._finalize(batch, ends)

    def _finalize(self, batch: Batch, at: float) -> None:
        batch.status = "finalizing"
        batch.times.setdefault("finalizing_at", int(at))

    def _fail(self, batch: Batch, at: float, errors: list[dict[str, Any]]) -> bool:
        batch.status, batch.errors = "failed", errors
        batch.times["failed_at"] = int(at)
        self._forget(batch)
        return False

    def _forget(self, batch: Batch) -> None:
        self.live.remove(batch)
        batch.questions, batch.odd, batch.enqueued = None, {}, 0
        batch.order = array("I")

    def _validate(self, batch: Batch, at: float) -> bool:
        """Read the whole file once. Returns whether the batch is in progress; else it has failed, with its reasons."""
        if batch.path is None:
            return self._fail(
                batch, at, [no_file(batch.input_file_id).body["error"] | {"code": "file_not_found", "line": None}]
            )
        if (fault := batch.has(Fault.FILE_REFUSED)) is not None:
            return self._fail(batch, at, [batch_error(fault["code"], fault["message"], fault["line"])])
        if batch.has(Fault.OUT_OF_MONEY) is not None:
            return self._fail(
                batch, at, [batch_error("billing_hard_limit_reached", "Billing hard limit has been reached.")]
            )
        found = read_input(batch.path, self.models, self.fake, tolerant=batch.has(Fault.EQUAL_IDS_ACCEPTED) is not None)
        if found.errors or found.model is None:
            return self._fail(batch, at, found.errors)
        batch.model, batch.lines, batch.questions = found.model, len(found.lines), found.lines
        batch.enqueued = sum(found.lines.prompt)
        if (fault := batch.has(Fault.QUEUE_FULL)) is not None:
            return self._fail(batch, at, [queue_full(batch.model, fault["limit"])])
        queued = sum(
            other.enqueued
            for other in self.live
            if other is not batch
            and other.model == batch.model
            and (other.created + other.seconds > at or other.has(Fault.STUCK))
        )
        if self.enqueued_limit is not None and queued + batch.enqueued > self.enqueued_limit:
            return self._fail(batch, at, [queue_full(batch.model, self.enqueued_limit)])
        batch.snapshot = self.models.snapshot(batch.model)
        self._put_in_order(batch)
        batch.status = "in_progress"
        batch.times["in_progress_at"] = int(at)
        return True

    def _put_in_order(self, batch: Batch) -> None:
        """The order of results, and the lines that faults make of some."""
        rng = random.Random(batch.number * 7919 + 17)
        order = (batch.has(Fault.OUTPUT_ORDER) or {"order": "shuffled"})["order"]
        places = list(range(batch.lines))
        if order == "shuffled":
            rng.shuffle(places)
            if batch.lines > 1 and places == sorted(places):
                places.reverse()
        elif order == "reversed":
            places.reverse()
        batch.order = array("I", places)
        if (every := batch.has(Fault.ALL_LINES_FAIL)) is not None:
            batch.odd = dict.fromkeys(range(batch.lines), (Fault.ALL_LINES_FAIL, every))
            return
        free = [i for i in batch.order if i not in batch.odd] if any(batch.has(f) for f in OF_LINES) else []
        for fault in OF_LINES:
            if (detail := batch.has(fault)) is None:
                continue
            count = part_of(batch.lines, detail["share"]) if fault == Fault.SOME_LINES_FAIL else detail["lines"]
            rng.shuffle(free)
            for _ in range(min(count, len(free))):
                batch.odd[free.pop()] = (fault, detail)

    def _carry_out(self, batch: Batch, target: int, now: float) -> None:
        """Execute lines until `target` of them are done: results to the files, each execution on the bill."""
        work = None
        while batch.cursor < target:
            work = work or Execution(batch, self.files, self.models, self.fake, self.bill, int(now))
            i = batch.order[batch.cursor]
            odd = batch.odd.get(i) if batch.odd else None
            if odd is None:
                work.plain(i)
            else:
                work.odd(i, *odd)
            batch.cursor += 1
            if batch.cursor % 1000 == 0:
                work.flush()
        if work is not None:
            work.flush()

    def _end(self, batch: Batch, status: str, at: float) -> None:
        """Write down what was not done, and show the files."""
        if status != "completed":
            detail: dict[str, Any] = batch.has(Fault.EXPIRES if status == "expired" else Fault.CANCELLED_PARTLY) or {}
            rest = len(batch.order) - batch.cursor - int(detail.get("unlisted", 0))
            if batch.has(Fault.CANCELLED_NO_OUTPUT) is None and rest > 0:
                self._list_rest(batch, rest, "batch_expired" if status == "expired" else "batch_cancelled")
        batch.status = status
        batch.times[f"{status}_at"] = int(at)
        keep = int(at + batch.output_days * DAY)
        if batch.has(Fault.CANCELLED_NO_OUTPUT) is None:
            batch.output = self.files.publish(
                self.files.results_path(batch.id, "output"), f"{batch.id}_output.jsonl", int(at), keep
            )
        empty = batch.has(Fault.EMPTY_ERROR_FILE)
        errors = self.files.results_path(batch.id, "error")
        if empty is not None and empty["file"] and not errors.exists():
            errors.touch()
            batch.error_file = self.files.publish(errors, f"{batch.id}_error.jsonl", int(at), keep, empty=True)
        else:
            batch.error_file = self.files.publish(errors, f"{batch.id}_error.jsonl", int(at), keep)
        self._forget(batch)

    def _list_rest(self, batch: Batch, count: int, code: str) -> None:
        """Lines that were never carried out."""
        assert batch.questions is not None
        message = {
            "batch_expired": "This request could not be executed before the completion window expired.",
            "batch_cancelled": "This request could not be executed before the batch was cancelled.",
        }[code]
        with self.files.results_path(batch.id, "error").open("ab") as out:
            for i in batch.order[batch.cursor : batch.cursor + count]:
                row = {
                    "id": f"batch_req_{batch.id[6:]}{i:08x}",
                    "custom_id": batch.questions.custom_id(i),
                    "response": None,
                    "error": {"code": code, "message": message},
                }
                out.write(orjson.dumps(row) + b"\n")
        batch.failed += count


def check_create(body: dict[str, Any]) -> None:
    """Raises Refused for a create that the API does not take."""
    for name in ("input_file_id", "endpoint", "completion_window"):
        if not isinstance(body.get(name), str):
            raise missing(name)
    if body["completion_window"] != "24h":
        message = f"Invalid value: '{body['completion_window']}'. Supported values are: '24h'."
        raise Refused(400, message, "invalid_value", "completion_window")
    if body["endpoint"] not in ENDPOINTS:
        raise Refused(400, f"Invalid value: '{body['endpoint']}'.", "invalid_value", "endpoint")
    if body["endpoint"] != ENDPOINT:
        raise Refused(400, f"This rehearsal knows the endpoint {ENDPOINT} only.", "invalid_value", "endpoint")
    metadata = body.get("metadata")
    if metadata is not None:
        fine = isinstance(metadata, dict) and len(metadata) <= 16
        if not fine or any(not isinstance(v, str) or len(k) > 64 or len(v) > 512 for k, v in metadata.items()):
            message = "Invalid 'metadata': at most 16 texts, keys of 64 and values of 512 characters."
            raise Refused(400, message, "invalid_value", "metadata")
    keep = body.get("output_expires_after")
    if keep is not None and not (isinstance(keep, dict) and 3600 <= keep.get("seconds", 0) <= FILE_DAYS * DAY):
        raise Refused(400, "Invalid 'output_expires_after'.", "invalid_value", "output_expires_after")


def _is_no_http(detail: dict[str, Any]) -> bool:
    return not detail["http"]


def _is_unasked(detail: dict[str, Any]) -> bool:
    return bool(detail["unasked"])


def part_of(lines: int, share: float) -> int:
    """A share of some lines: all for 1, none for 0, at least one for anything between."""
    return min(lines, max(1 if share > 0 else 0, int(lines * share + 1e-9)))
