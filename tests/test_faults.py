"""The 36 faults of the Batch API, each against the rehearsal's server: the result, the ledger and the message.

The number in a test's name is the row of the table in the manual (docs/faults.md). Unless a test says otherwise: every
row ends with its own score, nothing that was committed is executed again, and the bill that the server wrote is what
the ledger says was spent, to the last decimal.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from alpasift.batcher.data.importing import import_file
from alpasift.batcher.data.versions import resolve
from alpasift.batcher.engine.collect import cancel
from alpasift.batcher.money import charges, ledger, meter
from alpasift.batcher.planning.auto import offers_for
from alpasift.batcher.store import Store, lock
from alpasift.graders import AlpaSiftError, BackendError, BackendUnavailable
from alpasift.graders.rehearsal.server import Rehearsal
from batch_harness import (
    MARKER,
    MODEL,
    PRICES,
    attempts,
    check,
    executed_twice,
    expected,
    gather,
    grade,
    key,
    marked_rows,
    marked_store,
    money,
    options,
    scores,
)
from conftest import new_store, write_rows

ROWS = 12
pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def server() -> Iterator[Rehearsal]:
    with key(), Rehearsal(prices=PRICES, marker=MARKER) as made:
        yield made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return marked_store(tmp_path, ROWS)


def says(store: Store) -> str:
    """Everything that steps and alarms noted for a person."""
    steps = store.locked_query("select facts from attempt_steps").rows
    return " ".join(str(f) for (f,) in steps) + " ".join(a["note"] for a in store.query("alarms"))


def unresolved_lines(store: Store) -> int:
    text = "select count(*) from (select key from ledger group by attempt_id, key having sum(unresolved_usd) > 0)"
    return int(store.locked_query(text).rows[0][0])


# -- creating ---------------------------------------------------------------------------------------------------


def test_fault_01_an_intent_without_its_file_is_carried_on(store: Store, server: Rehearsal) -> None:
    server.misbehave("server_error", times=None, where="upload", status=500)
    with pytest.raises(BackendError, match="does not accept the file"):
        grade(store, server)
    assert money(store)["reserved_usd"] > 0
    server.behave()
    assert grade(store, server).outcome in ("done", "partial")
    assert attempts(store) == 1, "the attempt that stood was carried on, and no other opened"
    check(store, server, ROWS)


def test_fault_02_a_file_whose_upload_was_not_answered_is_found_by_its_name(store: Store, server: Rehearsal) -> None:
    server.misbehave(2)
    assert grade(store, server).outcome == "done"
    assert len([f for f in server.files() if f["purpose"] == "batch"]) == 1
    check(store, server, ROWS)


def test_fault_03_a_batch_whose_create_was_not_answered_is_adopted(store: Store, server: Rehearsal) -> None:
    server.misbehave(3)
    assert grade(store, server).outcome == "done"
    assert len(server.batches()) == 1
    assert attempts(store) == 1
    check(store, server, ROWS)


def test_fault_04_a_create_that_comes_late_finds_its_file_deleted_and_costs_nothing(
    store: Store, server: Rehearsal
) -> None:
    server.misbehave(4, lists=8)
    done = grade(store, server)
    assert scores(store) == expected(ROWS)
    found = money(store)
    assert found["unresolved_usd"] > 0, "the money of the create that was not seen stays until its window has passed"
    assert done.outcome == "done"
    assert server.billed_usd() == found["spent_usd"]
    server.advance(26 * 3600)
    gather(store, server)
    assert executed_twice(server) == []
    check(store, server, ROWS)


def test_fault_04_a_late_batch_that_runs_all_the_same_is_adopted_and_booked(store: Store, server: Rehearsal) -> None:
    server.misbehave(4, lists=1)
    assert grade(store, server, grace_seconds=30).outcome == "done"
    assert len(server.batches()) == 1
    check(store, server, ROWS)


def test_fault_05_an_error_after_the_create_was_committed_makes_no_second_batch(
    store: Store, server: Rehearsal
) -> None:
    server.misbehave(5)
    assert grade(store, server).outcome == "done"
    assert len(server.batches()) == 1
    check(store, server, ROWS)


def test_fault_06_a_create_that_never_arrived_is_fenced_and_its_rows_go_in_a_new_attempt(
    store: Store, server: Rehearsal
) -> None:
    server.misbehave(6)
    assert grade(store, server).outcome == "done"
    assert attempts(store) == 2
    assert len([f for f in server.files() if f["purpose"] == "batch"]) == 1, "the first attempt's file is deleted"
    found = money(store)
    assert scores(store) == expected(ROWS)
    assert (found["spent_usd"], found["reserved_usd"]) == (server.billed_usd(), 0)
    assert found["unresolved_usd"] > 0
    server.advance(26 * 3600)
    gather(store, server)
    check(store, server, ROWS)


def test_an_attempt_that_an_earlier_version_called_doubted_is_unconfirmed(store: Store, server: Rehearsal) -> None:
    server.misbehave("create_never_arrives")
    assert grade(store, server).outcome == "done"
    phases = "select phase from batches where not closed"
    assert store.locked_query(phases).rows == [("unconfirmed",)]
    with store.transaction() as con:
        con.execute("update attempt_steps set state = 'doubted' where state = 'unconfirmed'")
    assert store.locked_query(phases).rows == [("unconfirmed",)]
    assert store.locked_query("select count(*) from questions_in_flight").rows == [(0,)]
    server.advance(26 * 3600)
    gather(store, server)
    check(store, server, ROWS)


def test_fault_06_rows_are_not_asked_again_when_the_budget_does_not_hold_both(
    tmp_path: Path, server: Rehearsal
) -> None:
    store = marked_store(tmp_path, 60)
    server.misbehave(6)
    ceiling = Decimal("0.0035")
    done = grade(store, server, budget=str(ceiling))
    assert done.outcome == "partial"
    found = money(store)
    assert found["spent_usd"] + found["unresolved_usd"] <= ceiling
    server.advance(26 * 3600)
    gather(store, server)
    assert grade(store, server, budget=str(ceiling)).outcome == "done"
    check(store, server, 60)


def test_fault_07_of_two_batches_for_one_attempt_the_oldest_counts_and_both_are_booked(
    store: Store, server: Rehearsal
) -> None:
    server.misbehave(7)
    with pytest.raises(ledger.LedgerAlarm, match="not requested or was already paid"):
        grade(store, server)
    assert len(server.batches()) == 2
    assert scores(store) == expected(ROWS)
    found = money(store)
    assert (found["spent_usd"], found["unresolved_usd"], found["reserved_usd"]) == (server.billed_usd(), 0, 0)
    with pytest.raises(ledger.LedgerAlarm):
        grade(store, server)
    ledger.acknowledge(store, "the provider ran it twice")
    assert grade(store, server).outcome == "done"


def test_fault_08_a_second_process_is_refused(store: Store, server: Rehearsal) -> None:
    with lock.run_lock(store.path):
        with pytest.raises(lock.AnotherRun, match="is already working"):
            grade(store, server)
    assert server.requests_log == []


def test_fault_09_a_batch_whose_id_was_not_written_down_is_found_by_the_next_run(
    store: Store, server: Rehearsal
) -> None:
    server.misbehave(3)
    server.misbehave("unauthorized", times=1, where="list")  # the run ends before it can look
    server.hook = None
    with pytest.raises(AlpaSiftError):
        grade(store, server)
    done = grade(store, server)
    assert done.outcome in ("done", "partial")
    assert len(server.batches()) <= 1
    check(store, server, ROWS)


def test_fault_10_a_full_queue_costs_nothing_and_the_rows_go_in_smaller_files(
    tmp_path: Path, server: Rehearsal
) -> None:
    store = marked_store(tmp_path, 60)
    server.misbehave(10, limit=20_000)
    assert grade(store, server).outcome == "done"
    assert attempts(store) >= 3
    assert "Limit: 20000 enqueued tokens" in says(store).replace(",", "")
    check(store, server, 60)


def test_fault_10_a_queue_limit_that_stands_is_learned_and_kept(tmp_path: Path) -> None:
    with key(), Rehearsal(prices=PRICES, marker=MARKER, enqueued_limit=15_000) as server:
        store = marked_store(tmp_path, 60)
        assert grade(store, server).outcome == "done"
        check(store, server, 60)
        failed = [b for b in server.batches() if b["status"] == "failed"]
        assert len(failed) == 1, "one refusal teaches the limit"
        import_file(store, write_rows(tmp_path / "more.jsonl", marked_rows(60, begin=60)), dataset="more")
        version, named, asking = resolve(store, "more").version_id, f"openai_batch:{MODEL}", options(server)
        (known, *_), (unknown, *_) = (
            offers_for(store, version, [named], settings=asking, history=history) for history in (store, None)
        )
        assert known.estimate is not None and known.raw is not None
        assert unknown.estimate is not None
        batches = -(-known.raw.input_tokens // 15_000)  # as counted, not as past runs correct it
        assert (known.estimate.rounds, unknown.estimate.rounds) == (batches, 1)
        assert known.estimate.seconds_high == batches * 86_400
        day = f"{datetime.now(UTC):%Y-%m-%d}"
        (note,) = (line for line in known.notes if "enqueued" in line)
        assert note.startswith(f"at most 15,000 enqueued tokens, as api.openai.com stated on {day}")
        given, *_ = offers_for(store, version, [named], settings={**asking, "enqueued_tokens": 10**6}, history=store)
        assert "at most 1,000,000 enqueued tokens, as given" in given.notes


@pytest.mark.parametrize("http", [False, True])
def test_fault_11_when_the_money_at_the_provider_ends_nothing_more_is_sent(
    tmp_path: Path, server: Rehearsal, http: bool
) -> None:
    store = marked_store(tmp_path, 30)
    server.misbehave(11, http=http, where="create") if http else server.misbehave(11)
    with pytest.raises(BackendError, match="add credit"):
        grade(store, server, batch_rows=10)
    found = money(store)
    assert (found["spent_usd"], found["reserved_usd"], found["unresolved_usd"]) == (server.billed_usd(), 0, 0)
    server.behave()
    assert grade(store, server, batch_rows=10).outcome == "done"
    check(store, server, 30)


def test_fault_12_a_file_that_fails_validation_is_told_with_its_line_and_not_sent_again(
    store: Store, server: Rehearsal
) -> None:
    server.misbehave(12, code="invalid_json_line", line=3, message="This line is not parseable.")
    with pytest.raises(BackendError, match="line 3: This line is not parseable"):
        grade(store, server)
    assert len(server.batches()) == 1
    assert money(store)["reserved_usd"] == 0
    assert grade(store, server).outcome == "done"
    check(store, server, ROWS)


def test_fault_13_a_question_stands_once_in_a_file_whatever_the_server_would_accept(
    tmp_path: Path, server: Rehearsal
) -> None:
    server.misbehave(13, times=None)
    rows = tmp_path / "twice.jsonl"
    from alpasift.batcher.data.importing import import_file
    from batch_harness import marked_rows
    from conftest import write_rows

    store = new_store(tmp_path / "twice.duckdb")
    import_file(store, write_rows(rows, marked_rows(6) * 2))
    assert grade(store, server).outcome == "done"
    assert executed_twice(server) == []
    assert scores(store) == {i: expected(6)[i % 6] for i in range(12)}
    assert money(store)["spent_usd"] == server.billed_usd()


# -- results ----------------------------------------------------------------------------------------------------


def test_fault_14_when_every_line_failed_the_error_file_says_why_and_nothing_is_charged(
    store: Store, server: Rehearsal
) -> None:
    server.misbehave(14)
    done = grade(store, server)
    assert done.outcome == "partial"
    found = money(store)
    assert (found["spent_usd"], found["unresolved_usd"], found["reserved_usd"]) == (server.billed_usd(), 0, 0)
    assert "400 unsupported_parameter" in says(store)


@pytest.mark.parametrize("file", [False, True])
def test_fault_15_an_empty_error_file_or_name_is_no_error(store: Store, server: Rehearsal, file: bool) -> None:
    server.misbehave(15, file=file)
    assert grade(store, server).outcome == "done"
    check(store, server, ROWS)


def test_fault_16_an_output_file_that_is_named_late_is_waited_for(store: Store, server: Rehearsal) -> None:
    server.misbehave(16, polls=4)
    assert grade(store, server).outcome == "done"
    check(store, server, ROWS)


@pytest.mark.parametrize(("status", "again"), [(429, True), (500, True), (400, False)])
def test_fault_17_lines_that_failed_are_free_and_go_again_in_a_new_attempt_where_that_may_help(
    store: Store, server: Rehearsal, status: int, again: bool
) -> None:
    server.misbehave(17, share=0.4, status=status)
    done = grade(store, server)
    assert attempts(store) == (2 if again else 1)
    if again:
        assert done.outcome == "done"
        check(store, server, ROWS)
    else:
        found = money(store)
        assert (found["spent_usd"], found["unresolved_usd"]) == (server.billed_usd(), 0)
        assert sum(score is None for score in scores(store).values()) > 0


@pytest.mark.parametrize("executed", [True, False])
def test_fault_18_lines_in_no_file_stay_unresolved_at_their_worst(
    store: Store, server: Rehearsal, executed: bool
) -> None:
    server.misbehave(18, lines=2, executed=executed)
    assert grade(store, server).outcome == "partial"
    found = money(store)
    assert unresolved_lines(store) == 2
    assert found["spent_usd"] <= server.billed_usd() <= found["spent_usd"] + found["unresolved_usd"]
    assert grade(store, server).outcome == "done"
    check(store, server, ROWS, settled=False)
    assert unresolved_lines(store) == 2


@pytest.mark.parametrize(("same_id", "same_usage"), [(False, False), (True, False), (True, True), (False, True)])
def test_fault_19_of_two_answers_to_one_question_the_first_counts_and_what_ran_twice_is_booked_twice(
    store: Store, server: Rehearsal, same_id: bool, same_usage: bool
) -> None:
    server.misbehave(19, lines=2, same_id=same_id, same_usage=same_usage)
    if same_id and same_usage:
        assert grade(store, server).outcome == "done"
    else:
        with pytest.raises(ledger.LedgerAlarm):
            grade(store, server)
    check(store, server, ROWS)


@pytest.mark.parametrize(
    ("fault", "detail"),
    [
        (20, {}),
        (20, {"executed": False}),
        (21, {"kind": "empty"}),
        (21, {"kind": "no_usage"}),
        (22, {"kind": "json"}),
        (22, {"kind": "utf8"}),
    ],
)
def test_faults_20_21_22_a_line_that_is_no_answer_is_unresolved_and_poisons_no_other(
    store: Store, server: Rehearsal, fault: Any, detail: dict[str, Any]
) -> None:
    server.misbehave(fault, lines=2, **detail)
    grade(store, server)
    assert unresolved_lines(store) == 2
    found = money(store)
    assert found["spent_usd"] <= server.billed_usd() <= found["spent_usd"] + found["unresolved_usd"]
    assert sum(score is not None for score in scores(store).values()) >= ROWS - 2
    grade(store, server)
    check(store, server, ROWS, settled=False)


def test_fault_23_a_result_that_nobody_asked_for_is_booked_and_stops_all_sending(
    store: Store, server: Rehearsal
) -> None:
    server.misbehave(23)
    with pytest.raises(ledger.LedgerAlarm):
        grade(store, server)
    check(store, server, ROWS)


@pytest.mark.parametrize("order", ["shuffled", "input", "reversed"])
def test_fault_24_whatever_the_order_of_results_each_lands_on_its_row(
    store: Store, server: Rehearsal, order: str
) -> None:
    server.misbehave(24, order=order)
    assert grade(store, server).outcome == "done"
    check(store, server, ROWS)


def test_fault_25_a_result_file_that_cannot_be_had_for_hours_is_asked_for_until_it_comes(
    store: Store, server: Rehearsal
) -> None:
    server.misbehave(25, times=None)
    assert grade(store, server, wait=False).outcome == "partial"
    assert money(store)["reserved_usd"] > 0
    assert gather(store, server).in_flight == ROWS - 1
    server.behave()
    assert gather(store, server).in_flight == 0
    check(store, server, ROWS)


@pytest.mark.parametrize("detail", [{}, {"clean": True}, {"clean": True, "whole_lines": True}])
def test_fault_26_a_download_that_is_cut_off_is_thrown_away(
    store: Store, server: Rehearsal, detail: dict[str, Any]
) -> None:
    server.misbehave(26, times=2, **detail)
    assert grade(store, server).outcome == "done"
    check(store, server, ROWS)


def test_fault_27_a_kept_result_file_is_read_again_without_booking_anything_twice(
    store: Store, server: Rehearsal
) -> None:
    grade(store, server)
    before = money(store)
    found = sorted(meter.batch_folder(store.path).glob("*-output.jsonl"))
    assert len(found) == 1
    attempt = found[0].name[:36]
    from alpasift.graders.api.result_files import ResultsFound, read_results

    asked = {str(k): Decimal(0) for (k,) in store.locked_query("select key from attempt_lines").rows}
    for replies in read_results(found[0], attempt, ResultsFound(asked)):
        with store.transaction() as con:
            assert charges.ingest(con, replies) == []
    assert money(store) == before


@pytest.mark.parametrize("usage", [True, False])
def test_fault_28_results_that_are_gone_are_booked_by_the_batch_usage_or_stay_unresolved(
    store: Store, server: Rehearsal, usage: bool
) -> None:
    server.misbehave(28, times=None, usage=usage)
    with pytest.raises(ledger.LedgerAlarm, match="are no longer on the server"):
        grade(store, server)
    found = money(store)
    bill = server.billed_usd()
    assert found["reserved_usd"] == 0
    if usage:
        assert (found["spent_usd"], found["unresolved_usd"]) == (bill, 0)
    else:
        assert found["spent_usd"] <= bill <= found["spent_usd"] + found["unresolved_usd"]
        assert unresolved_lines(store) == ROWS - 1
    ledger.acknowledge(store, "seen")
    server.behave()
    assert grade(store, server).outcome in ("done", "partial")
    grade(store, server)
    assert scores(store) == expected(ROWS)


@pytest.mark.parametrize("unlisted", [0, 2])
def test_fault_29_what_an_expired_batch_did_is_kept_and_the_rest_goes_in_a_new_attempt(
    store: Store, server: Rehearsal, unlisted: int
) -> None:
    server.misbehave(29, share=0.5, unlisted=unlisted)
    grade(store, server)
    assert attempts(store) == 2
    if unlisted:
        assert unresolved_lines(store) == unlisted
        grade(store, server)
    check(store, server, ROWS, settled=not unlisted)
    assert executed_twice(server) == []


# -- stopping ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unlisted", [0, 3])
def test_fault_30_what_a_cancelled_batch_did_is_kept_and_what_it_did_not_do_is_free(
    store: Store, server: Rehearsal, unlisted: int
) -> None:
    server.misbehave(32, until=3600, share=0.0)
    assert grade(store, server, wait=False).outcome == "partial"
    server.misbehave(30, share=0.5, unlisted=unlisted)
    found = cancel(store, None, options(server), wait=True)
    assert found.in_flight == 0
    balance = money(store)
    assert balance["reserved_usd"] == 0
    assert balance["spent_usd"] <= server.billed_usd() <= balance["spent_usd"] + balance["unresolved_usd"]
    assert grade(store, server).outcome == "done"
    check(store, server, ROWS, settled=balance["unresolved_usd"] == 0)
    assert executed_twice(server) == []


def test_fault_31_lines_that_a_cancelled_batch_did_without_an_output_file_stay_unresolved(
    store: Store, server: Rehearsal
) -> None:
    server.misbehave(31, share=0.5, unasked=True)
    grade(store, server)
    found = money(store)
    assert 0 < unresolved_lines(store) < ROWS - 1
    assert found["spent_usd"] <= server.billed_usd() <= found["spent_usd"] + found["unresolved_usd"]


@pytest.mark.parametrize("status", ["in_progress", "validating", "finalizing"])
def test_fault_32_a_batch_that_is_stuck_keeps_its_money_and_is_told(
    store: Store, server: Rehearsal, status: str
) -> None:
    server.misbehave(32, status=status, until=48 * 3600)
    assert grade(store, server, wait=False).outcome == "partial"
    held = money(store)["reserved_usd"]
    server.advance(26 * 3600)
    assert grade(store, server).outcome == "partial", "it does not wait for what is stuck, nor ask about its rows"
    assert money(store)["reserved_usd"] == held
    assert f"still {status} after its completion window" in says(store)
    server.advance(23 * 3600)
    gather(store, server)
    check(store, server, ROWS)


def test_fault_33_a_batch_stuck_in_cancelling_is_not_asked_about_again_while_it_may_run(
    store: Store, server: Rehearsal
) -> None:
    server.misbehave(32, until=None)
    grade(store, server, wait=False)
    server.behave()
    server.misbehave(33, until=3600)
    assert cancel(store, None, options(server)).in_flight > 0
    assert grade(store, server, wait=False).asked == 0
    server.advance(2 * 3600)
    gather(store, server)
    balance = money(store)
    assert balance["reserved_usd"] == 0
    assert balance["spent_usd"] <= server.billed_usd() <= balance["spent_usd"] + balance["unresolved_usd"]


@pytest.mark.parametrize("status", [409, 400])
def test_fault_34_a_batch_that_completes_before_it_is_cancelled_is_a_completed_batch(
    tmp_path: Path, status: int
) -> None:
    with key(), Rehearsal(prices=PRICES, marker=MARKER, batch_seconds=3600) as server:
        store = marked_store(tmp_path, ROWS)
        grade(store, server, wait=False)
        server.misbehave(34, status=status)
        cancel(store, None, options(server), wait=True)
        check(store, server, ROWS)


@pytest.mark.parametrize("detail", [{}, {"text_body": True}, {"extra": True, "missing": True}])
def test_fault_35_unknown_states_and_odd_objects_are_lived_with(
    store: Store, server: Rehearsal, detail: dict[str, Any]
) -> None:
    server.misbehave(35, **detail)
    assert grade(store, server).outcome == "done"
    check(store, server, ROWS)


def test_fault_36_a_batch_that_is_not_found_keeps_its_money_and_raises_the_alarm(
    store: Store, server: Rehearsal
) -> None:
    server.misbehave(36, times=None, where="retrieve")
    with pytest.raises(ledger.LedgerAlarm, match="does not exist, though it was created"):
        grade(store, server)
    assert money(store)["reserved_usd"] > 0
    server.behave()
    ledger.acknowledge(store, "another project's key")
    assert grade(store, server).outcome in ("done", "partial")
    check(store, server, ROWS)


def test_fault_36_a_list_that_lacks_a_batch_changes_nothing_for_one_that_is_known(
    store: Store, server: Rehearsal
) -> None:
    server.misbehave(36, times=None, where="list")
    assert grade(store, server).outcome == "done"
    check(store, server, ROWS)


# -- beside the table -------------------------------------------------------------------------------------------


def test_a_key_that_is_refused_in_the_middle_stops_the_run_and_keeps_all_money_held(
    store: Store, server: Rehearsal
) -> None:
    server.misbehave("unauthorized", times=1, where="retrieve")
    with pytest.raises(BackendUnavailable, match="does not accept the key"):
        grade(store, server)
    assert money(store)["reserved_usd"] > 0
    assert gather(store, server).in_flight == 0
    check(store, server, ROWS)


def test_a_rate_limit_on_polls_is_obeyed(store: Store, server: Rehearsal) -> None:
    server.misbehave("rate_limit", times=2, where="retrieve", seconds=0.2)
    assert grade(store, server).outcome == "done"
    check(store, server, ROWS)


def test_a_server_that_answers_web_pages_is_told_before_anything_is_sent(store: Store, server: Rehearsal) -> None:
    server.misbehave("html", times=None)
    with pytest.raises(BackendUnavailable, match="does not answer like the API"):
        grade(store, server)
    assert money(store)["reserved_usd"] == 0
    assert [e.method for e in server.requests_log] == ["GET"]


def test_a_file_that_vanishes_after_its_upload_is_sent_again(store: Store, server: Rehearsal) -> None:
    server.misbehave("file_vanished")
    assert grade(store, server).outcome == "done"
    check(store, server, ROWS)


def test_a_canary_that_is_refused_costs_one_request_and_no_batch(store: Store, server: Rehearsal) -> None:
    server.misbehave("server_error", times=None, where="chat", status=400)
    with pytest.raises(BackendError, match="it cost nothing, and no batch was sent"):
        grade(store, server)
    assert server.batches() == []
    assert [e.path for e in server.requests_log if e.method == "POST"] == ["/v1/chat/completions"]
    assert money(store)["reserved_usd"] == 0


def test_a_canary_whose_answer_is_lost_is_unresolved_and_asked_again_once(store: Store, server: Rehearsal) -> None:
    server.misbehave("lost_answer", times=1)
    assert grade(store, server).outcome == "done"
    assert unresolved_lines(store) == 1
    check(store, server, ROWS, settled=False)


def test_a_model_that_changed_asks_for_consent(store: Store, server: Rehearsal) -> None:
    grade(store, server, limit=2)
    server.set_snapshot("gpt-4o-mini", "gpt-4o-mini-2027-01-01")
    with pytest.raises(BackendError, match="--allow-drift"):
        grade(store, server)
    assert grade(store, server, allow_drift=True).outcome == "done"
    check(store, server, ROWS)


def test_a_batch_is_submitted_today_and_collected_tomorrow(tmp_path: Path) -> None:
    with key(), Rehearsal(prices=PRICES, marker=MARKER, batch_seconds=4 * 3600) as server:
        store = marked_store(tmp_path, 30)
        done = grade(store, server, wait=False, batch_rows=10)
        assert (done.outcome, attempts(store)) == ("partial", 3)
        assert gather(store, server).in_flight == 29
        assert grade(store, server, wait=False).asked == 0, "what is out is not asked about again"
        server.advance(2 * 3600)
        assert {b["phase"] for b in store.query("batches", all=None)} <= {"validating", "in_progress"}
        server.advance(4 * 3600)
        assert gather(store, server).in_flight == 0
        check(store, server, 30)


def test_a_small_budget_goes_as_far_as_it_can_file_after_file(tmp_path: Path, server: Rehearsal) -> None:
    store = marked_store(tmp_path, 100)
    assert grade(store, server, budget="0.0046").outcome == "done"
    assert attempts(store) > 1, "the ceiling of all rows did not fit at once, their cost did"
    check(store, server, 100)


def test_polling_waits_as_long_as_it_was_told(store: Store, server: Rehearsal) -> None:
    server.misbehave(35, polls=2)
    began = time.monotonic()
    grade(store, server, poll_seconds=0.5)
    assert time.monotonic() - began > 0.9
