"""Run a task over a dataset: check what it costs, have that confirmed, then ask every question, or write them to files.

Knows runs and caps; nothing of graders' names, rubrics or screens. Call `run_task`, or `export_requests` for a machine
without a network. Stopped at any moment, the same call resumes: what has been answered is not asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from alpasift.batcher.data.addressed_rows import addressed_note, addressed_rows
from alpasift.batcher.engine.history import corrected, correction_for
from alpasift.batcher.engine.run import Run
from alpasift.batcher.engine.summary import Progress, Summary
from alpasift.batcher.engine.task import Task
from alpasift.batcher.store import Store
from alpasift.graders import AsksServer, Backend, BackendUnavailable, Estimate

if TYPE_CHECKING:
    from alpasift.batcher.engine.manual import Exported

Confirm = Callable[[Backend, Estimate], None]
"""Called before anything is sent that costs money; raises whatever should stop it."""


@dataclass(frozen=True, slots=True)
class Caps:
    """What a run may take at most.

    rows        rows prompted in this run
    budget      dollars of this database for all its life; set with the run where given
    run_budget  dollars of this run, on top of the budget
    keep_going  grade on though hardly any of the first answers can be read
    """

    rows: int | None = None
    budget: Decimal | None = None
    run_budget: Decimal | None = None
    keep_going: bool = False


def run_task(
    store: Store,
    version_id: str,
    task: Task,
    backend: Backend,
    caps: Caps,
    *,
    command: str,
    positions: Sequence[int] | None = None,
    numbers: Sequence[int] | None = None,
    retry: bool = False,
    confirm: Confirm | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Ask a task's questions about the rows of a dataset version, all or those at `positions`, and read the replies.

    `numbers` are the questions to ask, where not every sample of a row is: position * task.samples + sample.
    `retry` asks again about rows that were given up. Raises BudgetExceeded, NoBudget, BackendUnavailable, LedgerAlarm,
    AnotherRun, GraderUnreadable, and what `confirm` raises; whatever ends it, the replies in hand are kept.
    """
    with Run(
        store,
        task,
        backend,
        version_id,
        command=command,
        limit=caps.rows,
        budget=caps.budget,
        run_budget=caps.run_budget,
        retry=retry,
        keep_going=caps.keep_going,
        positions=positions,
        numbers=numbers,
    ) as run:
        if len(run.questions) and isinstance(run.backend, AsksServer) and (missing := run.backend.missing()):
            raise BackendUnavailable(missing)
        _check_cost(run, confirm)
        return run.go(progress)


def export_requests(
    store: Store,
    version_id: str,
    task: Task,
    backend: Backend,
    caps: Caps,
    folder: Path,
    confirm: Confirm | None = None,
) -> Exported:
    """Write the questions to request files in a folder and reserve their money; nothing is sent. Raises as `run_task`
    does.

    No files where every row is graded, or in flight.
    """
    from alpasift.batcher.engine.manual import Exported, export  # a run that sends needs none of it

    with Run(
        store,
        task,
        backend,
        version_id,
        command="batch export",
        limit=caps.rows,
        budget=caps.budget,
        run_budget=caps.run_budget,
        keep_going=caps.keep_going,
    ) as run:
        if not len(run.questions):
            return Exported((), 0, Decimal(0), 0)
        _check_cost(run, confirm)
        return export(run, folder)


def _check_cost(run: Run, confirm: Confirm | None) -> None:
    if run.backend.paid and len(run.questions):
        estimate = run.estimate()
        correction = correction_for(run.store, run.task, run.backend)
        learned = corrected(estimate, correction)  # what `plan` shows; the run keeps the estimate as it is beside it
        run.expected_usd = learned.usd
        run.check_affordable(learned)
        if confirm is not None:
            if correction is not None:
                learned = replace(learned, notes=(*learned.notes, str(correction)))
            if warning := addressed_note(addressed_rows(run.store, run.version_id)):
                learned = replace(learned, notes=(*learned.notes, warning))
            if left := run.left():
                asked = len(run.questions)
                part = f"that is for {asked:,} of the {asked + left:,} rows still to grade (--limit {run.limit})"
                learned = replace(learned, notes=(part, *learned.notes))
            confirm(run.backend, learned)


@dataclass(frozen=True, slots=True)
class RunLabels:
    """The grader and the rubric of a run: their labels for people, their ids for everything else."""

    grader: str
    rubric: str
    grader_id: str
    rubric_id: str


def labels_of_run(store: Store, run_id: str) -> RunLabels:
    """The grader and the rubric of a run."""
    row = store.query("run_labels", run_id=run_id)[0]
    return RunLabels(row["grader"], row["rubric"], str(row["grader_id"]), str(row["rubric_id"]))
