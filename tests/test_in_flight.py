"""What a batch leaves behind is said: its rows, its money, how to collect or stop it; and what an alarm is about."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from alpasift.batcher.cli.status import print_batches
from alpasift.batcher.engine.in_flight import counted, interrupted
from alpasift.batcher.money.ledger import LedgerAlarm
from alpasift.batcher.planning.auto import offers_for
from alpasift.graders.rehearsal.server import Rehearsal
from batch_harness import MARKER, MODEL, PRICES, gather, grade, key, marked_store, options


def test_an_interrupt_names_the_batch_and_runs_and_status_count_what_is_collected_later(tmp_path: Path) -> None:
    with key(), Rehearsal(marker=MARKER, prices=PRICES, batch_seconds=3600) as server:
        store = marked_store(tmp_path, 6)
        grade(store, server, wait=False)
        (batch,) = store.query("batches", all=None)
        text = str(interrupted(store))
        assert f"{batch['batch_id']} ({batch['phase']}, 5 rows, $" in text
        assert "`alpasift collect`" in text and f"`alpasift cancel {batch['batch_id']}`" in text
        (progress,) = store.query("progress")
        assert (progress["scored"], progress["in_flight"], progress["not_graded"]) == (1, 5, 0)
        assert store.query("runs", row_limit=1)[0]["replied"] == 1
        version_id = str(store.locked_query("select version_id from dataset_versions").rows[0][0])
        planned = offers_for(store, version_id, [f"openai_batch:{MODEL}"], settings=options(server))[0]
        assert (planned.rows, planned.already, planned.in_flight) == (0, 1, 5)
        server.advance(2 * 3600)
        found = gather(store, server)
        assert (found.replies, found.in_flight, found.alarms) == (5, 0, ())
        (run,) = store.query("runs", row_limit=5)
        assert (run["replied"], run["usable"], run["message"]) == (6, 6, "its batches have been collected")
        assert run["spent_usd"] == server.billed_usd()
        assert gather(store, server).replies == 0
    assert "Still at the provider" not in str(interrupted(store))


@pytest.mark.parametrize(("hours", "age"), [(0.0056, "20 s"), (0.4, "24 min"), (30.0, "30.0 h")])
def test_the_age_of_a_batch_is_shown_in_the_unit_a_person_would_say(
    hours: float, age: str, capsys: pytest.CaptureFixture[str]
) -> None:
    money = {"reserved_usd": Decimal("0.01"), "unresolved_usd": Decimal(0), "message": None}
    counts = {"lines": 5, "completed": 0, "failed": 0, "age_hours": hours, "expires_at": None}
    print_batches([{"batch_id": "batch_1", "grader": "openai:m", "phase": "validating", **counts, **money}])
    head, row = capsys.readouterr().out.splitlines()[-2:]
    assert row[head.index("age") :].startswith(f"{age} ")


def test_an_alarm_says_the_row_and_both_figures_to_the_digit_that_differs(tmp_path: Path) -> None:
    with key(), Rehearsal(marker=MARKER, prices=PRICES) as server:
        store = marked_store(tmp_path, 4)
        server.misbehave("overcharge", lines=1)
        says = (
            r"an answer cost \$0\.\d*[1-9], above its ceiling of \$0\.\d*[1-9] \(row 0 of rows, attempt [0-9a-f]{8}\)"
        )
        with pytest.raises(LedgerAlarm, match=says):
            grade(store, server)


def test_one_is_singular() -> None:
    assert [counted(1, "row"), counted(2, "row"), counted(1, "reply"), counted(1500, "reply")] == [
        "1 row",
        "2 rows",
        "1 reply",
        "1,500 replies",
    ]
