"""The Batch API over the wire: what may be asked again, what an error means, and how a result file is brought whole.

Knows the provider's client library, time and retries; nothing of money. Only requests that change nothing are repeated
here; uploads and creates, which may be paid for, are the sender's (`batch_sender`). "The server cannot say now" and
"the server says there is no such thing" are two exceptions, since each means something else for the money:

    TryLater   nothing follows from it; ask again later
    NotFound   404
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from alpasift.graders import BackendError, BackendUnavailable, Replies
from alpasift.graders.api.api_errors import explain, never_sent, retry_after
from alpasift.graders.api.connection import connect
from alpasift.graders.api.keys import clean, without_secret
from alpasift.graders.api.model_families import Family

if TYPE_CHECKING:
    import openai

MARGIN_SECONDS = 3600
"""How far the server's times and ours are allowed to be apart."""
DOWNLOADS = 4
"""How often a download that breaks off is begun."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """What batches are sent to, and how. `enqueued_tokens` is the queue's limit in prompt tokens, where it is given."""

    model: str
    base_url: str
    host: str
    stands_for: str | None
    family: Family
    wait: bool
    poll_seconds: float
    grace_seconds: float
    batch_rows: int
    enqueued_tokens: int | None
    allow_drift: bool


class TryLater(Exception):
    """The server cannot say now; ask again later. Nothing follows from it."""


class NotFound(Exception):
    """404: the server says there is no such thing."""


class BatchClient:
    """One connection to the provider. `sdk` is its own client, which never repeats a request by itself."""

    def __init__(self, options: BatchOptions) -> None:
        self.options = options
        self._sdk: openai.OpenAI | None = None
        self._clock: tuple[float, float] | None = None
        self._pause_until = 0.0

    @property
    def sdk(self) -> openai.OpenAI:
        if self._sdk is None:
            self._sdk = connect(self.options.base_url, timeout=120.0, on_date=self._saw_date)
        return self._sdk

    # -- time -----------------------------------------------------------------------------------------------------

    def _saw_date(self, text: str) -> None:
        try:
            self._clock = (parsedate_to_datetime(text).timestamp(), time.monotonic())
        except ValueError:
            return

    def now(self) -> float:
        """The server's clock in seconds, by its last answer; ours before it has answered."""
        if self._clock is None:
            return time.time()
        return self._clock[0] + time.monotonic() - self._clock[1]

    def wait(self, seconds: float) -> Replies:
        """Wait, yielding an empty list twice a second, and one even for no seconds: it commits what is in hand."""
        pause = self._pause_until if self._pause_until - time.monotonic() < 600 else 0
        until = max(time.monotonic() + seconds, pause)
        yield []
        while time.monotonic() < until:
            time.sleep(max(0.0, min(0.5, until - time.monotonic())))
            yield []

    # -- requests that change nothing -----------------------------------------------------------------------------

    def get(self, call: Callable[[], _T], *, tries: int = 3) -> _T:
        """Make a request that changes nothing. Raises TryLater, NotFound, BackendUnavailable (the key is refused)."""
        import openai

        for number in range(tries):
            last = number + 1 == tries
            try:
                return checked(call())
            except openai.APIStatusError as error:
                if error.status_code == 404:
                    raise NotFound from error
                if error.status_code not in (408, 409, 429) and error.status_code < 500:
                    raise explain(error, self.options.base_url) from error
                if last:
                    self._pause_until = time.monotonic() + retry_after(error, self.options.poll_seconds)
                    raise TryLater(clean(str(error))) from error
                time.sleep(min(retry_after(error, self.options.poll_seconds), 2.0))
            except AttributeError as error:  # what the client makes of a page that is no JSON
                raise TryLater("a web page instead of an answer") from error
            except openai.APIError as error:
                if last:
                    raise TryLater(clean(f"{type(error).__name__}: {error.__cause__ or error}")) from error
                time.sleep(min(self.options.poll_seconds, 0.5))
        raise AssertionError

    def check_connection(self) -> None:
        """Ask the server something that costs nothing, so that a wrong address or key is found before anything is sent.

        Raises BackendUnavailable, BackendError. A server that is merely busy (429, 5xx) passes.
        """
        import openai

        host, base_url = self.options.host, self.options.base_url
        try:
            answer = self._first_page()
            if not isinstance(answer.data, list):
                raise TypeError(type(answer.data).__name__)
        except (AttributeError, TypeError, ValueError) as error:  # what the client makes of a page that is no JSON
            raise BackendUnavailable(f"{host} does not answer like the API (a web page?); check --base-url") from error
        except openai.NotFoundError as error:
            raise BackendUnavailable(
                f"{host} has no Batch API under {base_url}; "
                f"openai_chat:{self.options.model} sends one request at a time"
            ) from error
        except openai.APIStatusError as error:
            if error.status_code < 500 and error.status_code != 429:
                raise explain(error, base_url) from error
        except openai.APIConnectionError as error:
            raise explain(error, base_url) from error

    def _first_page(self) -> Any:
        """One page of batches. A request whose connection broke is made again, twice."""
        import openai

        for pause in (0.2, 1.0):
            try:
                return self.sdk.batches.list(limit=1)
            except openai.APIConnectionError as error:
                if isinstance(error, openai.APITimeoutError) or never_sent(error):
                    raise
                time.sleep(pause)
        return self.sdk.batches.list(limit=1)

    def batches(self, is_ours: Callable[[Any], bool], *, since: float) -> list[Any]:
        """The batches that are ours, oldest first, of those created after `since`. Raises TryLater, NotFound."""
        found: list[Any] = []
        after: str | None = None
        while True:
            more: dict[str, Any] = {"after": after} if after else {}
            page: Any = self.get(lambda more=more: self.sdk.batches.list(limit=100, **more))  # type: ignore[misc]
            rows = list(page.data or [])
            found += [batch for batch in rows if is_ours(batch)]
            last = rows[-1] if rows else None
            if last is None or not getattr(page, "has_more", False) or (last.created_at or 0) < since:
                return sorted(found, key=lambda batch: (batch.created_at or 0, batch.id))
            after = last.id

    def files(self, name: str) -> list[Any]:
        """The input files of that name, oldest first. Raises BackendError when the server cannot list them now."""
        found: list[Any] = []
        after: str | None = None
        try:
            while True:
                more: dict[str, Any] = {"after": after} if after else {}
                page: Any = self.get(
                    lambda more=more: self.sdk.files.list(purpose="batch", limit=1000, order="desc", **more)  # type: ignore[misc]
                )
                rows = list(page.data or [])
                found += [f for f in rows if getattr(f, "filename", None) == name]
                if not rows or not getattr(page, "has_more", False):
                    break
                after = rows[-1].id
        except (TryLater, NotFound) as error:
            raise BackendError(f"{self.options.host} cannot list its files now ({error}); run again later") from error
        return sorted(found, key=lambda f: (f.created_at or 0, f.id))

    def delete_file(self, file_id: str) -> None:
        """Delete a file; one that is gone already, or cannot be deleted now, is no error: the next look finds it."""
        import openai

        try:
            self.sdk.files.delete(file_id)
        except openai.APIError:
            return

    # -- result files ---------------------------------------------------------------------------------------------

    def download(self, file_id: str, final: Path) -> Path:
        """Bring a result file whole, under its final name; one that is there is not brought again.

        Written to a temporary file, flushed, then renamed: a part is never taken for the whole. Raises TryLater,
        NotFound, BackendUnavailable.
        """
        if final.exists():
            return final
        part = final.with_suffix(".part")
        for number in range(DOWNLOADS):
            last = number + 1 == DOWNLOADS
            try:
                fetched = self._fetch(file_id, part)
            except _broken_off() as error:
                part.unlink(missing_ok=True)
                if last:
                    raise TryLater("the download was interrupted") from error
                continue
            stated = self._stated_size(file_id)
            whole = fetched.expected in (None, fetched.bytes) and stated in (None, fetched.bytes)
            if whole and (stated is not None or fetched.ends_a_line or last):
                _take_key_out(part)
                part.rename(final)
                _sync_folder(final.parent)
                return final
            part.unlink(missing_ok=True)
        raise TryLater("the download is incomplete")

    def _fetch(self, file_id: str, part: Path) -> _Fetched:
        """One download to a temporary file. Raises as `download` does, and what `_broken_off` names."""
        import openai

        try:
            with self.sdk.files.with_streaming_response.content(file_id, timeout=600.0) as response:
                size, last = 0, b"\n"
                with part.open("wb") as file:
                    part.chmod(0o600)
                    for piece in response.iter_bytes(1 << 20):
                        file.write(piece)
                        size += len(piece)
                        last = piece[-1:] or last
                    file.flush()
                    os.fsync(file.fileno())
        except openai.APIStatusError as error:
            part.unlink(missing_ok=True)
            if error.status_code == 404:
                raise NotFound from error
            if error.status_code in (401, 403):
                raise explain(error, self.options.base_url) from error
            raise TryLater(clean(str(error))) from error
        length = None if response.headers.get("content-encoding") else response.headers.get("content-length")
        return _Fetched(size, None if length is None else int(length), last == b"\n")

    def _stated_size(self, file_id: str) -> int | None:
        """The size of a file as the server states it, None where it does not."""
        try:
            size = getattr(self.get(lambda: self.sdk.files.retrieve(file_id), tries=1), "bytes", None)
        except (TryLater, NotFound):
            return None
        return size if isinstance(size, int) and not isinstance(size, bool) and size > 0 else None


@dataclass(frozen=True, slots=True)
class _Fetched:
    """What a download brought: its bytes, how many were to come (None: not known), and whether it ends a line."""

    bytes: int
    expected: int | None
    ends_a_line: bool


def _take_key_out(path: Path) -> None:
    """Write a file anew without the key, where a server has put it into an answer."""

    def clean_line(line: bytes) -> bytes:  # every byte is a character of latin-1
        return without_secret(line.decode("latin-1"), least=8).encode("latin-1")

    with path.open("rb") as lines:
        if all(clean_line(line) == line for line in lines):
            return
    draft = path.with_suffix(".clean.part")
    with path.open("rb") as lines, draft.open("wb") as file:
        draft.chmod(0o600)
        file.writelines(map(clean_line, lines))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def checked(answer: _T) -> _T:
    """The same answer. Raises TryLater for one that is no object of the API: a web page of a proxy, for instance."""
    if isinstance(answer, str | bytes):
        raise TryLater("a web page instead of an answer")
    return answer


def _broken_off() -> tuple[type[Exception], ...]:
    """What a download that breaks off raises: the client's errors, and those of its transport, left untranslated."""
    import openai

    try:
        module = import_module("httpx2")
    except ImportError:
        module = import_module("httpx")
    return (openai.APIError, module.HTTPError, module.StreamError)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
