"""The OpenAI API on this machine: files, batches and chat completions, right as documented or wrong on request.

It answers every question with a score, charges play money for it and writes each execution on a bill: what a client
says it spent can be compared with what was really carried out. The bill is computed here, from prices given here, and
shares no code with the graders. Nothing leaves the machine, and the server can be reached from this machine only.
What runs is written to files; of a batch that runs some 60 bytes a line stay in memory, of any other its totals.

    with Rehearsal() as server:
        server.misbehave(3)  # or "create_answer_lost": the next create is carried out, and its answer is lost
        client = openai.OpenAI(base_url=server.url, api_key=server.key, max_retries=0)
        ...
        server.billed_usd()

Where to look: `faults` has the table of what can go wrong; `batches` is how a batch moves, `execution` how its lines
are carried out, `answers` what the model says; `api` is the routes, `http` the sockets.

A batch moves by the server's clock, which `advance` turns: see `batches`. With 0 seconds the create answers
"validating" and whoever looks next (at a batch, the list or the bill) finds it completed; a cancel is then no look.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any

from alpasift.graders.rehearsal.answers import FakeModel
from alpasift.graders.rehearsal.api import Api
from alpasift.graders.rehearsal.batches import Batches
from alpasift.graders.rehearsal.bill import Bill, BillLine
from alpasift.graders.rehearsal.faults import ArmedFaults
from alpasift.graders.rehearsal.files import Files, Ids
from alpasift.graders.rehearsal.http import Event, HttpServer, Logged
from alpasift.graders.rehearsal.models import Models


class Rehearsal:
    """The server. Its methods may be called from any thread; see the head of this module.

    key               what clients have to send
    folder            where files and the bill are kept; a temporary one goes with this object
    prices            model -> {input, output, cached_input, cache_write: dollars per million tokens as text,
                      batch_discount: "0.5"}, over the built-in ones. Missing input kinds are charged as input
    batch_seconds     how long a batch takes, by the server's clock
    latency_seconds   how long every answer takes
    enqueued_limit    prompt tokens of one model that may be in batches at once
    marker            a pattern with one group; what it finds in the last message of the user is the score
    models            names of models to know besides the built-in and the priced ones; each needs a price
    bill_path         where to write the bill; must not exist
    """

    def __init__(
        self,
        *,
        port: int = 0,
        key: str = "rehearsal",
        folder: Path | None = None,
        prices: Mapping[str, Mapping[str, str]] | None = None,
        batch_seconds: float = 0.0,
        latency_seconds: float = 0.0,
        enqueued_limit: int | None = None,
        marker: str | None = None,
        models: Sequence[str] | None = None,
        bill_path: Path | None = None,
    ) -> None:
        self.key = key
        self.hook: Callable[[Event], None] | None = None
        self._lock = threading.RLock()
        self._offset = 0.0
        fake, known = FakeModel(marker), Models(prices or {}, models or ())
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="rehearsal-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        run = f"{random.SystemRandom().getrandbits(40):010x}"
        self._faults = ArmedFaults()
        self._files = Files(folder, Ids(run), self.now)
        self._bill = Bill(bill_path or folder / f"bill-{run}.jsonl")
        self._batches = Batches(
            self._files, known, fake, self._bill, self._faults, seconds=batch_seconds, enqueued_limit=enqueued_limit
        )
        self._http = HttpServer(port, key=key, folder=folder, run=run, now=self.now, notify=self._notify)
        self._api = Api(
            self._batches,
            key=key,
            latency_seconds=latency_seconds,
            lock=self._lock,
            stopped=self._http.stopped,
            errors=self._http.errors,
        )

    def _notify(self, event: Event) -> None:
        if self.hook is not None:
            self.hook(event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.port}/v1"

    @property
    def errors(self) -> list[str]:
        """Tracebacks of what went wrong in the server itself."""
        return self._http.errors

    @property
    def bill_path(self) -> Path:
        return self._bill.path

    @property
    def batch_seconds(self) -> float:
        """How long a batch takes that is created from now on."""
        return self._batches.seconds

    @batch_seconds.setter
    def batch_seconds(self, seconds: float) -> None:
        self._batches.seconds = seconds

    @property
    def latency_seconds(self) -> float:
        """How long every answer takes."""
        return self._api.latency_seconds

    @latency_seconds.setter
    def latency_seconds(self, seconds: float) -> None:
        self._api.latency_seconds = seconds

    def start(self) -> Rehearsal:
        """Answer from now on, in threads of their own."""
        self._http.start(self._api.answer)
        return self

    def stop(self) -> None:
        """Close every connection. What it holds can still be read."""
        self._http.stop()
        with self._lock:
            self._batches.tick()  # what was created is carried out, also when nobody looked
            self._bill.close()

    def __enter__(self) -> Rehearsal:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def misbehave(self, fault: int | str, times: int | None = 1, **detail: Any) -> None:
        """Arm a fault by its number or name; see the table in `faults`. Raises ValueError for what is not in it."""
        self._faults.arm(fault, times, detail)

    def behave(self) -> None:
        """Disarm every fault that waits."""
        self._faults.clear()

    def set_snapshot(self, model: str, name: str) -> None:
        """The snapshot that answers for a model from now on. Raises KeyError for a model that is not known."""
        snapshots = self._batches.models.snapshots
        if model not in snapshots:
            raise KeyError(model)
        with self._lock:
            snapshots[model] = name

    def advance(self, seconds: float) -> None:
        """Turn the server's clock forward."""
        with self._lock:
            self._offset += seconds

    def now(self) -> float:
        """The server's clock."""
        return time.time() + self._offset

    def bill(self) -> Iterator[BillLine]:
        """Every execution so far, in order, read from disk. Looks at the batches first."""
        with self._lock:
            self._batches.tick()
            size = self._bill.size
        yield from self._bill.lines(size)

    def billed_usd(self) -> Decimal:
        """The sum of the bill."""
        with self._lock:
            self._batches.tick()
            return self._bill.usd

    def executions(self) -> Counter[str]:
        """How often each line was carried out, by custom_id; for a synchronous request by the SHA-256 of its body."""
        return Counter(line.custom_id for line in self.bill())

    def batches(self) -> list[dict[str, Any]]:
        """The batches as they really stand, oldest first, as the API shows them."""
        with self._lock:
            self._batches.tick()
            return [batch.view(honest=True) for batch in self._batches.all.values()]

    def files(self, *, deleted: bool = False) -> list[dict[str, Any]]:
        """The files there are, oldest first; with `deleted` also those that were."""
        with self._lock:
            every = self._files.all.values()
            return [{**file.view(), "deleted": file.deleted} for file in every if deleted or not file.deleted]

    @property
    def requests_log(self) -> list[Logged]:
        """Every request that was answered or lost, in order."""
        return self._http.log
