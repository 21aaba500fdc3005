"""One batch as the server holds it, and as the API shows it."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alpasift.graders.rehearsal.faults import Fault
from alpasift.graders.rehearsal.files import File
from alpasift.graders.rehearsal.lines import ENDPOINT, InputLines

DAY = 86_400
WINDOW_SECONDS = DAY
TERMINAL = ("completed", "failed", "expired", "cancelled")
_TIMES = (
    "in_progress_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)


@dataclass(slots=True)
class Batch:
    """One batch. Of its lines only `questions` is kept, from validation until it has ended."""

    id: str
    number: int
    input_file_id: str
    path: Path | None
    metadata: dict[str, str] | None
    created: float
    seconds: float
    output_days: float
    status: str = "validating"
    faults: dict[Fault, dict[str, Any]] | None = None
    times: dict[str, int] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)
    model: str | None = None
    snapshot: str | None = None
    lines: int = 0
    enqueued: int = 0
    questions: InputLines | None = None
    order: array[int] = field(default_factory=lambda: array("I"))
    odd: dict[int, tuple[Fault, dict[str, Any]]] = field(default_factory=dict)
    cursor: int = 0
    completed: int = 0
    failed: int = 0
    usage: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    output: File | None = None
    error_file: File | None = None
    cancelled: float | None = None
    hides_usage: bool = False

    @property
    def expires(self) -> float:
        return self.created + WINDOW_SECONDS

    def has(self, fault: Fault) -> dict[str, Any] | None:
        return (self.faults or {}).get(fault)

    def view(self, *, honest: bool = False) -> dict[str, Any]:
        """The batch as the API shows it; `honest` leaves out what faults make of it."""
        counted = self.status != "failed" and self.model is not None
        times = {name: self.times.get(name) for name in _TIMES}
        error_id: str | None = self.error_file.id if self.error_file else None
        if (
            error_id is None
            and self.status in TERMINAL
            and (odd := self.has(Fault.EMPTY_ERROR_FILE)) is not None
            and not odd["file"]
        ):
            error_id = ""
        view: dict[str, Any] = {
            "id": self.id,
            "object": "batch",
            "endpoint": ENDPOINT,
            "model": self.snapshot,
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": self.output.id if self.output else None,
            "error_file_id": error_id,
            "created_at": int(self.created),
            "expires_at": int(self.expires),
            **times,
            "request_counts": {
                "total": self.lines if counted else 0,
                "completed": self.completed,
                "failed": self.failed,
            },
            "metadata": self.metadata,
            "usage": self._usage(),
        }
        return view if honest else self._with_faults(view)

    def _usage(self) -> dict[str, Any] | None:
        gone = self.has(Fault.OUTPUT_GONE)
        if self.hides_usage or (gone is not None and not gone["usage"]):
            return None
        prompt, cached, completion, reasoning = self.usage
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": cached},
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": reasoning},
            "total_tokens": prompt + completion,
        }

    def _with_faults(self, view: dict[str, Any]) -> dict[str, Any]:
        late = self.has(Fault.LATE_OUTPUT_ID)
        if late is not None and late["polls"] > 0:
            view["output_file_id"] = None
        odd = self.has(Fault.ODD_OBJECTS)
        if odd is not None:
            if odd["polls"] > 0:
                view.update(status=odd["status"], output_file_id=None, error_file_id=None)
            if odd["missing"]:
                view = {
                    name: value
                    for name, value in view.items()
                    if value is not None and name not in ("usage", "model", "request_counts")
                }
            if odd["extra"]:
                view.update(region="moon", queue={"position": 7})
        return view


@dataclass(slots=True)
class Pending:
    """A create that is carried out later: at a time of the server's clock, or after some calls of the list."""

    body: dict[str, Any]
    at: float | None
    lists: int | None
