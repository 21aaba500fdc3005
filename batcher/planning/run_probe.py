"""Grade a random sample of a dataset and project it to the whole. The grades stay: a later grading leaves them out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from alpasift.batcher.engine.run_task import Caps, Confirm, RunLabels, labels_of_run, run_task
from alpasift.batcher.engine.summary import Progress, Summary
from alpasift.batcher.grading.open_grader import OpenGrader
from alpasift.batcher.planning.probe import Findings, Sample, draw_rows, findings, sampled_rows
from alpasift.batcher.store import Store


@dataclass(frozen=True, slots=True)
class Probed:
    """A probe: the sample, how many of its rows were graded before, the run, and what the sample says of the whole."""

    run: RunLabels
    sample: Sample
    seed: int
    graded_before: int
    summary: Summary
    findings: Findings

    @property
    def unread_share(self) -> float | None:
        """The share of answers without a readable score; None where nobody has answered."""
        whole = self.findings.projection
        return whole.unread / whole.answered if whole.answered else None

    @property
    def seconds_to_go(self) -> float | None:
        """For the rows that are left, at the pace of the probe.

        None where nobody was asked, and for batches, which do not take longer for being larger.
        """
        if not self.summary.replied or self.findings.way == "batch":
            return None
        return self.summary.seconds / self.summary.replied * self.findings.left


def synchronous(spec: str) -> str | None:
    """The same model called synchronously: openai_chat:MODEL for openai_batch:MODEL; None for any other grader."""
    name, _, model = spec.strip().partition(":")
    return f"openai_chat:{model}" if name in ("openai_batch", "openai_chat", "openai") else None


def probe(
    store: Store,
    version_id: str,
    grader: OpenGrader,
    count: int,
    seed: int,
    caps: Caps,
    *,
    whole_by: str,
    confirm: Confirm | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Probed:
    """Grade `count` distinct rows, drawn by `seed`. `whole_by`: how the rest would be asked, "batch" or "calls".

    The same seed draws the same rows. Raises as `run_task` does.
    """
    task, backend = grader.task, grader.backend
    with store.reader():
        sample = draw_rows(store, version_id, count, seed)
        before = sum(one.answered for one in sampled_rows(store, task, backend, version_id, sample))
    summary = run_task(
        store,
        version_id,
        task,
        backend,
        caps,
        command="probe",
        positions=sample.positions,
        confirm=confirm,
        progress=progress,
    )
    with store.reader():
        found = findings(store, task, backend, version_id, summary.run_id, sample, whole_by)
        return Probed(labels_of_run(store, summary.run_id), sample, seed, before, summary, found)
