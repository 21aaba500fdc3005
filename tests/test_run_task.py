"""What a program calls, without the command line: open a grader, run a task under caps, write what was selected."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest

from alpasift.batcher.data.importing import import_file
from alpasift.batcher.data.targets import TargetError, check_targets, manifest_of
from alpasift.batcher.data.versions import resolve
from alpasift.batcher.engine.run_task import Caps, labels_of_run, run_task
from alpasift.batcher.grading.condition import Condition
from alpasift.batcher.grading.results import write_rejected, write_selection
from alpasift.batcher.grading.select import select
from alpasift.batcher.planning.auto import grader_for
from alpasift.batcher.store import Store
from alpasift.graders import Backend, Estimate
from conftest import EXAMPLES

PAID = 'usd_per_million_input = "0.15"\nusd_per_million_output = "0.60"\n'


class Refused(Exception):
    """A person said no."""


def test_a_program_grades_selects_and_writes(store: Store, tmp_path: Path) -> None:
    import_file(store, EXAMPLES, dataset="examples")
    version = resolve(store, "examples")
    seen = []
    with grader_for(store, version.version_id, "rules") as grader:
        summary = run_task(
            store,
            version.version_id,
            grader.task,
            grader.backend,
            Caps(),
            command="grade",
            progress=lambda progress: seen.append(progress.replied),
        )
    run = labels_of_run(store, summary.run_id)
    assert (summary.outcome, run.grader, run.rubric) == ("done", "rules", "rules")
    assert seen[-1] == summary.replied > 0
    condition = Condition(keep_share=Decimal("0.5"))
    kept = select(store, version.version_id, "kept", condition, grader=run.grader_id, rubric=run.rubric_id)[0]
    output, rejected = str(tmp_path / "kept.json"), str(tmp_path / "rejected.jsonl")
    check_targets([output, manifest_of(output), rejected], not_onto=store.files())
    assert write_selection(store, kept, output)[0] == kept.rows == len(json.loads(Path(output).read_text()))
    manifest = json.loads(Path(manifest_of(output)).read_text())
    assert manifest.pop("output")["purpose"] == "selection kept of dataset examples"
    assert manifest == json.loads(json.dumps(kept.manifest, default=str))
    assert write_rejected(store, kept, rejected, run.grader_id, run.rubric_id) == version.rows - kept.rows


def test_a_refused_cost_sends_nothing_and_an_agreed_one_is_held_to_the_caps(store: Store, tmp_path: Path) -> None:
    (tmp_path / "paid.toml").write_text(PAID)
    version = import_file(store, EXAMPLES, dataset="examples")
    offered: list[Estimate] = []

    def refuse(backend: Backend, estimate: Estimate) -> None:
        offered.append(estimate)
        raise Refused

    caps = Caps(rows=3, budget=Decimal(5))
    with grader_for(store, version.version_id, f"fake:{tmp_path / 'paid.toml'}") as grader:
        with pytest.raises(Refused):
            run_task(store, version.version_id, grader.task, grader.backend, caps, command="grade", confirm=refuse)
        assert store.query("ledger")[0]["budget_usd"] is None, "a run that was not confirmed changes nothing"
        summary = run_task(store, version.version_id, grader.task, grader.backend, caps, command="grade")
    assert [estimate.requests for estimate in offered] == [3]
    money = store.query("ledger")[0]
    assert (summary.replied, money["budget_usd"]) == (3, Decimal(5))
    assert 0 < money["spent_usd"] <= offered[0].ceiling_usd


def test_targets_that_cannot_be_written_are_refused_before_any_work(tmp_path: Path) -> None:
    source = tmp_path / "data.json"
    source.write_text("[]")
    for target, words in (
        (source, "would replace"),
        (tmp_path, "is a folder"),
        (tmp_path / "nowhere" / "out.json", "does not exist"),
        (tmp_path / "out.pdf", "pdf"),
    ):
        with pytest.raises(TargetError, match=words):
            check_targets([str(target)], not_onto=[source])
    check_targets([str(tmp_path / "out.json")], not_onto=[source])
