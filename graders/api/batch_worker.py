"""The Batch API at work: send request files, look after what is in flight, collect it, whatever fails on the way.

Knows the order of things; each of them is a file of its own, to be read in this order:

    batch_client     the wire: what may be asked again, how a result file is brought whole
    batch_attempts   the steps of an attempt and how it ends
    batch_recovery   a create whose answer was lost: look, adopt, or fence
    batch_sender     cut a file, reserve, upload, create
    batch_canary     one call before the first batch
    batch_collector  poll, download, read, close

A process may die at every step. The next one reads the last step from the ledger and resumes there. What a worker
may spend it asks of the meter, what it did it notes there before the next step, and what it finds it yields.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from decimal import Decimal

from alpasift.graders import Meter, Replies, Request
from alpasift.graders.api.batch_attempts import UNCONFIRMED, Attempts
from alpasift.graders.api.batch_canary import Canary
from alpasift.graders.api.batch_client import BatchClient, TryLater, checked
from alpasift.graders.api.batch_collector import Collector
from alpasift.graders.api.batch_recovery import Recovery
from alpasift.graders.api.batch_sender import BatchGrader, Sender


class BatchWorker:
    """One process at work with one meter: `answer`, `collect` or `cancel`, called once."""

    def __init__(self, grader: BatchGrader, meter: Meter) -> None:
        self.options, self.meter = grader.options, meter
        self.client = BatchClient(grader.options)
        self.attempts = Attempts(meter)
        self.recovery = Recovery(self.client, self.attempts)
        self.sender = Sender(grader, self.client, self.attempts, self.recovery)
        self.collector = Collector(self.client, self.attempts, self.recovery, self.sender)

    def answer(self, requests: Iterable[Request]) -> Replies:
        """Send what the caps and the queue allow, look after what is in flight, send more as it settles."""
        sender, attempts = self.sender, self.attempts
        sender.take(requests)
        attempts.load()
        if not attempts.in_flight and sender.lines.peek() is None:
            return
        self.client.check_connection()
        sender.recall_limit()
        yield from self._recover(send=True)
        yield from Canary(self.client, sender).ask()
        while True:
            yield from sender.send_what_fits()
            yield from self.collector.look_at_all()
            if sender.resend_now and sender.stop is None:
                sender.resend_now = False
                continue
            if not self.options.wait or not attempts.worth_waiting():
                if sender.stop is not None:
                    raise sender.stop
                if not self.options.wait or attempts.at_provider() or sender.lines.peek() is None:
                    return
                continue
            yield from self.client.wait(self.options.poll_seconds)

    def collect(self, wait: bool) -> Replies:
        """Look after what is in flight; send nothing new."""
        self.attempts.load()
        if not self.attempts.in_flight:
            return
        self.client.check_connection()
        yield from self._recover(send=False)
        while True:
            yield from self.collector.look_at_all()
            if not wait or not self.attempts.worth_waiting():
                return
            yield from self.client.wait(self.options.poll_seconds)

    def cancel(self, attempt: str) -> Replies:
        """Ask the server to stop the batches of one attempt, then look what was done of them."""
        import openai

        self.attempts.load()
        one = self.attempts.in_flight.get(attempt)
        if one is None:
            return
        self.attempts.in_flight = {attempt: one}
        self.client.check_connection()
        yield from self._recover(send=False)
        if attempt not in self.attempts.in_flight or one.state == UNCONFIRMED:  # no batch to stop, its window runs
            return
        if not one.batches:  # nothing was created: the file goes, the money comes back
            self.recovery.delete_files(attempt)
            self.attempts.settle(one, Decimal(0), "cancelled before it was sent")
            return
        for batch_id in one.batches:
            try:
                checked(self.client.sdk.batches.cancel(batch_id))
            except (openai.APIStatusError, openai.APIConnectionError, TryLater):
                continue  # it may have ended by itself; its status, read next, decides
        one.cancelled = True
        self.meter.note(attempt, "cancelling", {"cancel_asked_at": self.client.now()})
        deadline = time.monotonic() + max(5.0, 5 * self.options.poll_seconds)
        while True:
            yield from self.collector.look_at_all()
            if not self.attempts.worth_waiting() or (not self.options.wait and time.monotonic() > deadline):
                return
            yield from self.client.wait(self.options.poll_seconds)

    def _recover(self, *, send: bool) -> Replies:
        """Find out how far each attempt of an earlier process really got."""
        for one in list(self.attempts.in_flight.values()):
            if one.batches and one.state not in ("creating", "unknown", "fenced", UNCONFIRMED):
                continue
            if one.state in ("creating", "unknown", "fenced", "created"):
                yield from self.sender.reconcile(one)
            elif one.state == UNCONFIRMED:
                self.recovery.look_for_unconfirmed(one)
            elif send:
                yield from self.sender.resume(one)
