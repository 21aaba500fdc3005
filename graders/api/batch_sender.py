"""Sending: cut a request file to what the caps and the queue allow, reserve its money, upload it, create its batch.

Knows what holds sending up, and what a refused POST means for the money; nothing of results. The order is the money's:
the file is written and flushed, its attempt is committed with all ceilings, then it is uploaded, the file's id and the
moment are committed, then the batch is created, then its id is committed. No POST is repeated blindly: an upload costs
nothing and is looked for before another try, an unclear create goes to `batch_recovery`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sized
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

from alpasift.graders import AlpaSiftError, BackendError, BudgetExceeded, Replies, Request, SendingStopped
from alpasift.graders.api.api_errors import OUT_OF_MONEY, error_of, explain, is_ambiguous, retry_after
from alpasift.graders.api.batch_attempts import Attempts, BatchAttempt
from alpasift.graders.api.batch_client import BatchClient, BatchOptions
from alpasift.graders.api.batch_recovery import Recovery
from alpasift.graders.api.prices import MAX_PROMPT_TOKENS, Price
from alpasift.graders.api.request_files import (
    SMALL_FILE,
    FileLimits,
    LineQueue,
    RequestFile,
    RequestLine,
    file_name,
    read_request_file,
    reject_too_long,
    sha256_of,
    write_request_file,
)

UPLOADS = 3
"""How often an upload is tried."""
CREATES = 6
"""How often a create is tried that the server did not take (429)."""
NO_LIMIT = 10**15


class BatchGrader(Protocol):
    """What is to be known of the grader whose requests are sent."""

    options: BatchOptions

    def price(self, *, batch: bool) -> Price: ...

    def lines(self, requests: Iterable[Request]) -> Iterator[RequestLine]: ...


class Sender:
    """Sends lines, and knows why it does not.

    lines                   what is to be sent; `count` requests, 0 where that is not known
    sends                   false for a process that only collects: it asks nothing again
    stop                    an error after which nothing more is sent; raised when what is in flight has been collected
    token_limit             prompt tokens that may be enqueued, as far as known
    wait_until_fewer_than   the queue was full: wait until fewer than so many attempts are at the provider; 0: do not
    resend_now              lines came back that may go at once
    """

    def __init__(self, grader: BatchGrader, client: BatchClient, attempts: Attempts, recovery: Recovery) -> None:
        self.grader, self.client, self.attempts, self.recovery = grader, client, attempts, recovery
        self.meter, self.options = attempts.meter, client.options
        self.lines = LineQueue(iter(()))
        self.sends = self.resend_now = False
        self.count = 0
        self.stop: AlpaSiftError | None = None
        self.token_limit = self.options.enqueued_tokens
        self.wait_until_fewer_than = 0
        self._did_not_fit: tuple[Decimal, int] | None = None

    def take(self, requests: Iterable[Request]) -> None:
        """These are to be sent."""
        self.lines, self.sends = LineQueue(self.grader.lines(requests)), True
        self.count = len(requests) if isinstance(requests, Sized) else 0

    def recall_limit(self) -> None:
        """Take the queue limit that the provider stated to an earlier run, where none is given."""
        if self.token_limit is None:
            limit = self.meter.noted("enqueued_limit")
            self.token_limit = limit if isinstance(limit, int) and limit > 0 else None

    def stop_with(self, error: AlpaSiftError) -> None:
        """Send nothing more; what is in flight is still collected, and then the error is raised."""
        self.stop = self.stop or error

    def narrow(self, one: BatchAttempt, stated: int | None) -> None:
        """The provider's queue was full: with others in flight wait for one of them; with none, try half of this."""
        others = [o for o in self.attempts.at_provider() if o.attempt != one.attempt]
        if stated is not None:
            self.token_limit = min(stated, self.token_limit or stated)
        if others:
            self.wait_until_fewer_than = len(others)
        else:
            half = max(1, one.tokens // 2)
            self.token_limit = min(half, self.token_limit) if self.token_limit is not None else half

    def ask_again(self, one: BatchAttempt) -> None:
        """Queue the lines of an attempt for a new one; its file stays until that is written."""
        path = self.attempts.file_of(one)
        if not self.sends:
            self.attempts.drop_file(one)
        elif path.is_file():
            self.resend_now = True
            self.lines.send_again(read_request_file(path, self.meter.lines(one.attempt), one.tokens))

    def ask_again_free(self, one: BatchAttempt, why: str) -> None:
        """The same for an attempt that cost nothing: it ends."""
        self.ask_again(one)
        self.attempts.settle(one, Decimal(0), why, keep_file=True)

    # -- the next file --------------------------------------------------------------------------------------------

    def send_what_fits(self) -> Replies:
        """Send files until nothing is left or nothing more fits now. `stop` says why, if nothing ever will."""
        while self.stop is None and self.lines.peek() is not None:
            if len(self.attempts.at_provider()) >= self.wait_until_fewer_than > 0:
                return
            self.wait_until_fewer_than = 0
            yield []  # what is in hand is kept first, so that what it gave back is free
            free, room = self.meter.free(), self._room()
            if self.attempts.at_provider() and self._did_not_fit == (free, room):
                return
            file = self._write_file(free, room)
            yield from reject_too_long(self.meter, file.too_long)
            if not file.keys:
                self._nothing_fits(file, free, room)
                return
            self._did_not_fit = None
            try:
                one = self._open(file)
            except (BudgetExceeded, SendingStopped) as error:
                file.path.unlink(missing_ok=True)
                self.stop_with(error)
                return
            yield from self._send(one, file.path)

    def _room(self) -> int:
        """Prompt tokens that may still be enqueued."""
        if self.token_limit is None:
            return NO_LIMIT
        return self.token_limit - sum(one.tokens for one in self.attempts.at_provider())

    def _write_file(self, free: Decimal, room: int) -> RequestFile:
        """The next request file; one without keys, and deleted, when nothing fits, or too little for a file."""
        path = self.meter.folder / f"draft-{os.getpid()}-{time.monotonic_ns()}.jsonl"
        limits = FileLimits(self.options.batch_rows, free, room, MAX_PROMPT_TOKENS)
        file = write_request_file(self.lines, path, limits)
        waits = file.ended_by in ("money", "tokens") and self.attempts.at_provider() and len(file.keys) < SMALL_FILE
        if waits:  # others are in flight: when one settles, more will fit
            self.lines.put_back(file.first)
            file.keys.clear()
        if not file.keys:
            path.unlink()
            return file
        file.path = path.with_name(f"requests-{file.sha256[:24]}-{time.time_ns():x}.jsonl")
        path.rename(file.path)
        return file

    def _nothing_fits(self, file: RequestFile, free: Decimal, room: int) -> None:
        """Wait where others are in flight; else say what is in the way."""
        if not file.ended_by:
            return
        self._did_not_fit = (free, room)
        if self.attempts.at_provider():
            return
        if file.ended_by == "tokens":
            self.stop_with(
                BackendError(
                    f"the queue of {self.options.host} takes only {room:,} more prompt tokens now, fewer than one "
                    "request has; run again later"
                )
            )
            return
        line = self.lines.peek()
        need = line.ceiling if line is not None else Decimal(0)
        self.stop_with(
            BudgetExceeded(
                f"the next request may cost up to ${need:f} and ${max(free, Decimal(0)):f} is free; raise --budget, "
                "or settle what is unresolved (`alpasift ledger`)"
            )
        )

    def _open(self, file: RequestFile) -> BatchAttempt:
        """Commit the intent: every key with its ceiling."""
        price = self.grader.price(batch=True).frozen()
        facts = {
            "kind": "batch",
            "backend": "openai_batch",
            "base_url": self.options.base_url,
            "model": self.options.model,
            "file": file.path.name,
            "sha256": file.sha256,
            "bytes": file.bytes,
            "input_tokens": file.tokens,
            "price": price,
            "stands_for": self.options.stands_for,
        }
        attempt = self.meter.open(file.keys, file.ceilings, price, facts, outlives=True)
        return self.attempts.add(attempt, facts)

    # -- upload and create ----------------------------------------------------------------------------------------

    def resume(self, one: BatchAttempt) -> Replies:
        """An earlier process left this attempt before it created anything: send its file, if the money still stands."""
        if self.meter.free() < 0:
            return  # the cap was lowered below what is committed: nothing is sent
        path = self.attempts.file_of(one)
        if not path.is_file() or sha256_of(path) != one.facts.get("sha256"):
            self.recovery.delete_files(one.attempt)
            self.attempts.settle(one, Decimal(0), "its file disappeared before it was sent")
            return
        yield from self._send(one, path, left=True)

    def reconcile(self, one: BatchAttempt) -> Replies:
        """Find out whether its batch was created; if not, its questions are asked again."""
        created = yield from self.recovery.reconcile(one)
        if not created:
            self.ask_again(one)

    def _send(self, one: BatchAttempt, path: Path, *, left: bool = False) -> Replies:
        """Upload the file and create the batch. `left` by an earlier process, it may have been uploaded already."""
        found = self.recovery.uploads(one.attempt) if left else []
        whole = [f for f in found if f.bytes == path.stat().st_size]
        for part in found:
            if part not in whole[:1]:
                self.client.delete_file(part.id)
        yield from self._create(one, whole[0] if whole else self._upload(one, path))

    def _upload(self, one: BatchAttempt, path: Path) -> Any:
        """The server's file object. One that may have arrived is looked for before another try."""
        import openai

        name, size = file_name(self.meter.ledger, one.attempt), path.stat().st_size
        for _ in range(UPLOADS):
            try:
                with path.open("rb") as file:
                    made = self.client.sdk.files.create(file=(name, file), purpose="batch", timeout=900.0)
                if getattr(made, "id", None):
                    return made
            except openai.APIError as error:
                code, _ = error_of(getattr(error, "body", None))
                refused = not is_ambiguous(error) and getattr(error, "status_code", 0) != 429
                if refused or code in OUT_OF_MONEY:
                    self.attempts.settle(one, Decimal(0), "the server refused its file")
                    raise explain(error, self.options.base_url) from error
                time.sleep(min(retry_after(error, self.options.poll_seconds), 60.0))
            found = [f for f in self.recovery.uploads(one.attempt) if f.bytes == size]
            if found:
                return found[0]
        raise BackendError(
            f"{self.options.host} does not accept the file of {size:,} bytes; nothing was created and its money stays "
            "reserved: run again to resume"
        )

    def _create(self, one: BatchAttempt, file: Any) -> Replies:
        """Create the batch. What is unclear goes to the recovery, what was refused costs nothing."""
        import openai

        facts = {"file_ids": [file.id], "file_created_at": file.created_at, "creating_at": self.client.now()}
        self.attempts.note(one, "creating", facts)
        for _ in range(CREATES):
            try:
                if self._is_created(one):
                    return
                break  # a 200 that is no batch: it may stand on the server all the same
            except openai.APIError as error:
                if is_ambiguous(error):
                    break
                code, message = error_of(getattr(error, "body", None))
                status = getattr(error, "status_code", 0)
                if code in OUT_OF_MONEY:
                    self.attempts.settle(one, Decimal(0), "the account has no money left")
                    self.stop_with(explain(error, self.options.base_url))
                    return
                if status == 429:
                    yield from self.client.wait(retry_after(error, max(self.options.poll_seconds, 0.05)))
                    continue
                if _names_a_missing_file(status, message):
                    if self.recovery.find(one):
                        break
                    yield from self.client.wait(self.options.poll_seconds)
                    if not self.recovery.uploads(one.attempt):
                        self.ask_again_free(one, "its file is no longer on the server")
                        return
                    continue
                self.client.delete_file(file.id)
                self.attempts.settle(one, Decimal(0), "the server refused to create it")
                self.stop_with(explain(error, self.options.base_url))
                return
        else:
            self.attempts.settle(one, Decimal(0), "the server refused to create it repeatedly")
            self.stop_with(BackendError(f"{self.options.host} accepts no more batches now (429); run again later"))
            return
        self.attempts.note(one, "unknown", {})
        yield from self.reconcile(one)

    def _is_created(self, one: BatchAttempt) -> bool:
        """One create. Returns whether the answer is a batch, whose id is then committed. Raises openai.APIError."""
        made = self.client.sdk.batches.create(
            input_file_id=one.file_ids[0],
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={
                "ledger": self.meter.ledger,
                "attempt": one.attempt,
                "sha256": str(one.facts.get("sha256", "")),
            },
        )
        if not getattr(made, "id", None):
            return False
        facts = {
            "batch_ids": [made.id],
            "batch_id": made.id,
            "batch_created_at": made.created_at,
            "expires_at": made.expires_at,
            "status": made.status,
        }
        self.attempts.note(one, "created", facts)
        return True


def _names_a_missing_file(status: int, message: str) -> bool:
    text = message.lower()
    return "file" in text and ("find" in text or "exist" in text or status == 404)
