"""What a run says while a batch is at the provider: which, since when, and no time that nothing is known of."""

from __future__ import annotations

from pathlib import Path

from alpasift.batcher.engine.progress import duration, progress_text
from alpasift.batcher.engine.summary import Progress
from alpasift.batcher.engine.waiting import waiting_for
from alpasift.graders.rehearsal.server import Rehearsal
from batch_harness import MARKER, PRICES, gather, grade, key, marked_store


def test_a_batch_that_is_waited_for_is_named_and_its_time_comes_from_batches_that_ended_here(tmp_path: Path) -> None:
    store = marked_store(tmp_path, 20)
    with key(), Rehearsal(marker=MARKER, prices=PRICES, batch_seconds=3600) as server:
        grade(store, server, wait=False, batch_rows=3, limit=11)
        setup = str(store.locked_query("select setup_id from setups").rows[0][0])
        text = waiting_for(store, setup)
        assert text.startswith("waiting for 4 batches, the oldest batch_") and " s)" in text
        assert "9 of 10 batches" not in text
        server.advance(2 * 3600)
        gather(store, server, wait=True)
        assert waiting_for(store, setup) == ""
        grade(store, server, wait=False, limit=None)
        assert "; 9 of 10 batches here took up to " in waiting_for(store, setup)


def test_a_duration_below_two_minutes_is_in_seconds_and_none_is_0_0() -> None:
    said = [duration(seconds) for seconds in (None, 0, 0.004, 0.4, 9.96, 42, 119, 120, 5400)]
    assert said == ["unknown", "0 s", "<0.1 s", "0.4 s", "10 s", "42 s", "119 s", "2 min", "1.5 h"]


def test_the_line_gives_no_speed_and_no_time_left_while_a_batch_is_waited_for() -> None:
    line = progress_text(Progress(300, 1, 1, seconds=4.0, waiting="waiting for batch b_1 (validating, 12 min)"))
    assert line == "1 of 300 rows, waiting for batch b_1 (validating, 12 min)"
