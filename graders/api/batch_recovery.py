"""After a create whose answer was lost: was a batch made? Look, adopt it, or make sure that none can come any more.

Knows how our batches are recognised; nothing of sending or of results. A batch that may have been created is looked for
by its input file and its metadata; only after a wait and a second look, with the input file deleted so that a late
create must fail (the fence), is it taken for not created. Its money then stays unresolved until the window in which it
could have run has passed.
"""

from __future__ import annotations

from collections.abc import Generator
from decimal import Decimal
from typing import Any

from alpasift.graders import BackendError, Reply
from alpasift.graders.api.batch_attempts import Attempts, BatchAttempt
from alpasift.graders.api.batch_client import MARGIN_SECONDS, BatchClient, NotFound, TryLater
from alpasift.graders.api.request_files import file_name

WINDOW_SECONDS = 24 * 3600
"""The time in which a batch is carried out, by the API's promise."""


class Recovery:
    """Finds the batches of attempts whose create was not answered."""

    def __init__(self, client: BatchClient, attempts: Attempts) -> None:
        self.client, self.attempts = client, attempts
        self.options = client.options

    def reconcile(self, one: BatchAttempt) -> Generator[list[Reply], None, bool]:
        """Was the batch created? Look, wait, look again, fence, look once more.

        Returns whether it was, and then it is adopted. If not the attempt is unconfirmed: only then may its questions
        be asked again.
        """
        since = float(one.facts.get("creating_at", 0) or 0)
        fenced = one.state == "fenced"
        while True:
            matches = self.find(one)
            if matches:
                self.adopt(one, matches)
                return True
            left = since + self.options.grace_seconds - self.client.now()
            if left > 0 and self.options.grace_seconds > 0:
                yield from self.client.wait(min(left, max(self.options.poll_seconds, 0.05)))
                continue
            if fenced:
                break
            self.delete_files(one.attempt)
            since = self.client.now()
            self.attempts.note(one, "fenced", {"fenced_at": since, "creating_at": since})
            fenced = True
        self.attempts.mark_unconfirmed(one, "its creation was never confirmed; its input file was deleted")
        return False

    def look_for_unconfirmed(self, one: BatchAttempt) -> None:
        """A create that was never found: a late one is adopted; when its window has passed its money is free again."""
        one.was_unconfirmed = True
        matches = self.find(one)
        if matches:
            self.adopt(one, matches)
        elif self.client.now() - float(one.facts.get("fenced_at", self.client.now())) > WINDOW_SECONDS + MARGIN_SECONDS:
            self.attempts.settle(one, Decimal(0), "it was never created, and its completion window has passed")

    def find(self, one: BatchAttempt) -> list[Any]:
        """The batches that are this attempt's, oldest first: by input file, or by ledger and attempt in the metadata.

        The server's list says what there is, not what there is not: a page that cannot be had is no answer, and raises
        BackendError.
        """
        try:
            return self._list(one)
        except (TryLater, NotFound) as error:
            raise BackendError(f"{self.options.host} cannot list its batches now ({error}); run again later") from error

    def _list(self, one: BatchAttempt) -> list[Any]:
        since = float(one.facts.get("file_created_at", 0) or 0) - MARGIN_SECONDS

        def is_ours(batch: Any) -> bool:
            names = getattr(batch, "metadata", None) or {}
            by_file = bool(batch.input_file_id) and batch.input_file_id in one.file_ids
            return by_file or (
                names.get("attempt") == one.attempt and names.get("ledger") == self.attempts.meter.ledger
            )

        return self.client.batches(is_ours, since=since)

    def adopt(self, one: BatchAttempt, matches: list[Any]) -> None:
        """Take the batches that were found as this attempt's. More than one: the oldest counts, others are stopped."""
        import openai

        known = one.batches
        new = [batch.id for batch in matches if batch.id not in known]
        if not new:
            return
        first = matches[0]
        facts = {
            "batch_ids": known + new,
            "adopted": True,
            "batch_id": (known + new)[0],
            "batch_created_at": first.created_at,
            "expires_at": first.expires_at,
            "status": first.status,
        }
        self.attempts.note(one, "created", facts)
        for extra in (known + new)[1:]:
            if extra in new:
                try:
                    self.client.sdk.batches.cancel(extra)
                except openai.APIError:
                    continue  # it may have ended; what it cost is booked either way

    def adopt_others(self, one: BatchAttempt) -> bool:
        """Take what else was created for this attempt. Returns whether it has more than one batch. Raises TryLater."""
        try:
            matches = self._list(one)
        except NotFound as error:
            raise TryLater("no list of its batches") from error
        known = [b for b in matches if b.id in one.batches]
        self.adopt(one, known + [b for b in matches if b.id not in one.batches])
        return len(one.batches) > 1

    def uploads(self, attempt: str) -> list[Any]:
        """The files on the server that carry this attempt's name, oldest first."""
        return self.client.files(file_name(self.attempts.meter.ledger, attempt))

    def delete_files(self, attempt: str) -> None:
        """Delete every input file of an attempt, so that a create which arrives late must fail."""
        for file in self.uploads(attempt):
            self.client.delete_file(file.id)
