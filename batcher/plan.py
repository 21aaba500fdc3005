"""What each grader would cost and take for these rows, and which one `--grader auto` takes.

Knows offers and how to choose among them; sends nothing and writes nothing. `auto` looks only at graders the user has
named, on the command line or in ALPASIFT_GRADERS (specs separated by commas), takes the cheapest that fits the hours, and
never takes `rules` or `fake`: the first judges form only, the second nothing at all.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from batcher.questions import Task, pending
from batcher.store import Store, StoreError, scalar
from graders import AlpaSiftError, Backend, BackendUnavailable, Estimate, backend_names, open_backend

NEVER_AUTO = ("rules", "fake")


@dataclass(frozen=True, slots=True)
class Offer:
    """One grader's offer for the rows of a dataset that it has not answered yet; `why_not` where it cannot."""

    grader: str
    rubric: str
    estimate: Estimate | None
    already: int
    leaves_machine: str
    calibrated: bool
    why_not: str | None = None

    @property
    def hours(self) -> float | None:
        return None if self.estimate is None or self.estimate.seconds is None else self.estimate.seconds / 3600


def named_graders(named: Sequence[str] = ()) -> list[str]:
    """The specs a user has named here or set up in ALPASIFT_GRADERS, in that order, each once."""
    set_up = [s.strip() for s in os.environ.get("ALPASIFT_GRADERS", "").split(",")]
    return list(dict.fromkeys(s for s in [*named, *set_up] if s))


def kind(spec: str) -> str:
    """The backend of a spec: "llama_cpp" of "llama_cpp:model.gguf"."""
    return spec.partition(":")[0].strip()


def offer(store: Store, version_id: str, task: Task, spec: str) -> Offer:
    """The offer of one grader; a grader that cannot work here makes one that says why."""
    try:
        backend = open_backend(spec)
    except AlpaSiftError as error:
        return Offer(spec, task.rubric.name, None, 0, "", False, str(error))
    try:
        return _offer_of(store, version_id, task, spec, backend)
    finally:
        backend.close()


def _offer_of(store: Store, version_id: str, task: Task, spec: str, backend: Backend) -> Offer:
    refusal = backend.refuses(task.rubric.name)
    if refusal:
        return Offer(spec, task.rubric.name, None, 0, backend.leaves_machine, False, refusal)
    questions, already = pending(store, task, backend, version_id)
    return Offer(spec, task.rubric.name, backend.estimate(questions), already, backend.leaves_machine, False)


def choose(offers: Sequence[Offer], max_hours: float | None = None) -> tuple[Offer, str]:
    """The cheapest offer that can work and fits the hours, and the reason in a sentence. Raises BackendUnavailable."""
    candidates = [o for o in offers if kind(o.grader) not in NEVER_AUTO]
    possible = [o for o in candidates if o.estimate is not None]
    fitting = [o for o in possible if max_hours is None or (o.hours is not None and o.hours <= max_hours)]
    if not fitting:
        raise BackendUnavailable(_no_candidate(candidates, possible, max_hours))
    best = min(
        fitting,
        key=lambda o: (o.estimate.usd if o.estimate else 0, o.hours if o.hours is not None else float("inf"), o.grader),
    )
    usd = best.estimate.usd if best.estimate else 0
    others = f" of {len(fitting)} that fit" if len(fitting) > 1 else ", the only one that fits"
    calibrated = "calibrated against a reference" if best.calibrated else "never calibrated against a reference"
    return best, f"{best.grader}: ${usd} is the cheapest{others}; {calibrated}"


def _no_candidate(candidates: Sequence[Offer], possible: Sequence[Offer], max_hours: float | None) -> str:
    if possible:
        times = ", ".join(
            f"{o.grader} {o.hours:.1f} h" if o.hours is not None else f"{o.grader} unknown" for o in possible
        )
        return f"no grader fits {max_hours} hours ({times}); raise --max-hours, or take fewer rows with --limit"
    reasons = "".join(f" {o.grader}: {o.why_not}." for o in candidates)
    return (
        "no grader to choose from."
        + reasons
        + " Name one: --grader llama_cpp:PATH.gguf (an open model, on this machine), "
        "set ALPASIFT_GRADERS to the ones you have, or check form only with --grader rules; `alpasift doctor` tells what is missing"
    )


def doctor(database: str) -> list[dict[str, Any]]:
    """What each grader lacks on this machine, and the state of the machine itself: one dict a line."""
    lines: list[dict[str, Any]] = []
    for name in backend_names():
        lacks = getattr(import_module(f"graders.{name}"), "lacks", None)
        missing = lacks() if lacks is not None else None
        lines.append({"what": f"grader {name}", "ok": missing is None, "says": missing or "can work here"})
    lines.append(
        {
            "what": "python",
            "ok": True,
            "says": f"{platform.python_version()} on {platform.machine()}, {os.cpu_count()} cores",
        }
    )
    lines.append(_database_line(Path(database)))
    free = shutil.disk_usage(
        Path(database).absolute().parent if Path(database).absolute().parent.is_dir() else "/"
    ).free
    lines.append({"what": "disk", "ok": free > 2**30, "says": f"{free / 2**30:.1f} GiB free beside the database"})
    named = named_graders()
    lines.append(
        {"what": "--grader auto", "ok": bool(named), "says": ", ".join(named) or "ALPASIFT_GRADERS names no grader"}
    )
    return lines


def _database_line(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"what": "database", "ok": True, "says": f"{path} is not there yet; the first import makes it"}
    try:
        with Store(path, wait=2.0).reader() as con:
            scalar(con, "select count(*) from migrations")
    except (StoreError, AlpaSiftError) as error:
        return {"what": "database", "ok": False, "says": str(error)}
    return {"what": "database", "ok": True, "says": f"{path}, {path.stat().st_size / 2**20:.1f} MiB"}
