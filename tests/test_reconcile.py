"""The provider's usage exports: reading them, and comparing them with the ledger."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from alpasift.batcher.money.copies import fork, register
from alpasift.batcher.money.provider_usage import UsageFileError, read_usage
from alpasift.batcher.money.reconcile import Reconciled, reconcile
from alpasift.batcher.money.settle import settle
from alpasift.batcher.store import Store
from conftest import new_store
from ledger_harness import (
    PRICE,
    a_batch,
    attempt,
    bucket,
    cost,
    key,
    lose,
    page,
    seconds,
    used,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "alpasift.duckdb")


NOW = datetime(2026, 11, 9, tzinfo=UTC)


def write(store: Store, content: Any, name: str = "usage.json") -> Path:
    path = store.path.with_name(name)
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def compare(store: Store, content: Any, project: str | None = None) -> Reconciled:
    return reconcile(store, write(store, content), project, NOW)


def verdicts(found: Reconciled) -> list[tuple[str, str | None, bool | None, str]]:
    return [(str(one.day), one.model, one.batch, one.verdict) for one in found.lines]


def test_usage_that_is_what_our_replies_say_is_equal(store: Store) -> None:
    a_batch(store)
    before = store.locked_query("select count(*) from ledger").rows
    found = compare(store, page(bucket("2026-10-30", used(2, 1500, 5, 600)), bucket("2026-10-31")))
    assert verdicts(found) == [("2026-10-30", "gpt-4.1-nano", True, "equal")]
    assert found.total.provider == {"requests": 2, "input_tokens": 1500, "cached_tokens": 600, "output_tokens": 5}
    assert found.lines[0].ours == {**found.total.provider, "usd": 1500 * PRICE.input + 5 * PRICE.output}
    assert found.total.verdict == "equal"
    assert found.suggestions == ()
    assert found.notes == ("days are UTC; the file covers 2026-10-30 to 2026-10-31",)
    assert store.locked_query("select count(*) from ledger").rows == before


def test_what_the_provider_has_more_and_we_hold_as_unresolved_is_explained_and_can_be_settled(store: Store) -> None:
    one = a_batch(store, lost=True)
    days = [bucket(f"2026-{d}") for d in ("10-31", "11-01")]
    found = compare(store, page(bucket("2026-10-30", used(3, 2000, 7, 600)), *days))
    assert verdicts(found) == [("2026-10-30", "gpt-4.1-nano", True, "explained")]
    assert found.lines[0].unresolved_usd == Decimal("0.001")
    usd = 500 * PRICE.input + 2 * PRICE.output  # 0.0000254
    assert found.suggestions == (
        f'alpasift ledger settle {one} --usd 0.0000254 --reason "usage of 2026-10-30 as counted by the provider"',
    )
    settle(store, [one], usd, "usage of 2026-10-30")
    again = compare(store, page(bucket("2026-10-30", used(3, 2000, 7, 600)), *days))
    assert [line.verdict for line in again.lines] == ["settled"]
    assert again.suggestions == ()


def test_what_was_lost_and_the_provider_does_not_count_can_be_settled_at_nothing(store: Store) -> None:
    one = a_batch(store, lost=True)
    told = page(bucket("2026-10-30", used(2, 1500, 5, 600)), bucket("2026-10-31"), bucket("2026-11-01"))
    found = compare(store, told)
    assert found.suggestions == (
        f'alpasift ledger settle {one} --reason "usage of 2026-10-30 as counted by the provider"',
    )
    assert compare(store, page(*told["data"][:2])).suggestions == ()  # a batch may be counted up to two days later
    soon = reconcile(store, write(store, told), now=datetime(2026, 11, 2, tzinfo=UTC))
    assert soon.suggestions == ()
    assert any("check again in a day" in remark for remark in soon.notes)


def test_what_is_beyond_our_unresolved_dollars_is_not_explained_and_nothing_is_suggested(store: Store) -> None:
    a_batch(store, lost=True)
    found = compare(
        store, page(bucket("2026-10-30", used(90, 150000, 50, 600)), bucket("2026-10-31"), bucket("2026-11-01"))
    )
    assert [line.verdict for line in found.lines] == ["not_explained"]
    assert found.suggestions == ()
    assert any("does anybody else use the project" in remark for remark in found.notes)


def test_what_may_be_another_attempts_whose_days_are_not_all_in_yet_is_not_settled(store: Store) -> None:
    a_batch(store, lost=True)
    later = attempt(store, [key(7)], "0.001", batch_id="batch_2")
    lose(store, later)
    with store.transaction() as con:
        con.execute("update attempts set opened_at = '2026-10-31' where attempt_id = ?", [later])
    told = [bucket("2026-10-30", used(2, 1500, 5, 600)), bucket("2026-10-31", used(1, 500, 2)), bucket("2026-11-01")]
    found = compare(store, page(*told))
    assert [(str(line.day), line.verdict) for line in found.lines] == [
        ("2026-10-30", "equal"),
        ("2026-10-31", "explained"),
    ]
    assert found.suggestions == ()
    (whole,) = compare(store, page(*told, bucket("2026-11-02"))).suggestions
    assert "--usd 0.0000254" in whole
    assert later in whole
    assert "2026-10-30 to 2026-10-31" in whole


def test_a_model_and_calls_that_are_not_ours_are_not_explained(store: Store) -> None:
    a_batch(store, lost=True)
    found = compare(
        store,
        page(bucket("2026-10-30", used(2, 1500, 5, 600), used(1, 10, 1, model="gpt-5"), used(1, 10, 1, batch=False))),
    )
    assert verdicts(found) == [
        ("2026-10-30", "gpt-4.1-nano", False, "not_explained"),
        ("2026-10-30", "gpt-4.1-nano", True, "equal"),
        ("2026-10-30", "gpt-5", True, "not_explained"),
    ]


def test_where_we_have_more_the_provider_lags(store: Store) -> None:
    a_batch(store)
    assert [line.verdict for line in compare(store, page(bucket("2026-10-30", used(1, 1000, 2, 600)))).lines] == [
        "ours_more"
    ]
    assert [line.verdict for line in compare(store, page(bucket("2026-10-30"))).lines] == ["ours_more"]


def test_days_outside_the_file_are_not_compared_but_told(store: Store) -> None:
    a_batch(store)
    found = compare(store, page(bucket("2026-10-29")))
    assert found.lines == ()
    assert "$0.0001 was charged here on days that the file does not cover" in found.notes


def test_a_batch_that_was_collected_the_next_day_is_the_same_work(store: Store) -> None:
    a_batch(store)
    found = compare(store, page(bucket("2026-10-29", used(2, 1500, 5, 600)), bucket("2026-10-30")))
    assert [(str(line.day), line.verdict) for line in found.lines] == [
        ("2026-10-29", "other_day"),
        ("2026-10-30", "other_day"),
    ]
    far = compare(store, page(bucket("2026-10-20", used(2, 1500, 5, 600)), bucket("2026-10-30")))
    assert [line.verdict for line in far.lines] == ["not_explained", "ours_more"]


def test_costs_are_compared_as_far_as_they_were_rounded(store: Store) -> None:
    a_batch(store)  # 0.000076
    exact = compare(
        store,
        page(
            bucket(
                "2026-10-30",
                cost(0.000075, "gpt-4.1-nano-2025-04-14, input"),
                cost(0.000001, "gpt-4.1-nano-2025-04-14, output"),
            )
        ),
    )
    assert verdicts(exact) == [("2026-10-30", "gpt-4.1-nano", None, "equal")]
    assert exact.total.difference("usd") == 0
    assert [line.verdict for line in compare(store, page(bucket("2026-10-30", cost(0.0001)))).lines] == ["equal"]
    off = compare(store, page(bucket("2026-10-30", cost("0.000176"))))
    assert verdicts(off) == [("2026-10-30", None, None, "not_explained")]
    assert off.lines[0].difference("usd") == Decimal("0.0001")
    assert [line.verdict for line in compare(store, page(bucket("2026-10-30", cost(0.000010)))).lines] == ["ours_more"]


def test_costs_above_ours_within_what_is_unresolved_are_explained(store: Store) -> None:
    one = a_batch(store, lost=True)
    rest = [bucket("2026-10-31"), bucket("2026-11-01")]
    found = compare(store, page(bucket("2026-10-30", cost(0.0005)), *rest))
    assert [line.verdict for line in found.lines] == ["explained"]
    assert found.suggestions == (
        f'alpasift ledger settle {one} --usd 0.000424 --reason "usage of 2026-10-30 as counted by the provider"',
    )


def test_a_dashboard_csv_is_read_by_its_column_names(store: Store) -> None:
    a_batch(store)
    usage = (
        "start_time,end_time,start_time_iso,num_model_requests,model,batch,input_tokens,output_tokens,input_cached_tokens\n"
        f"{seconds('2026-10-30')},{seconds('2026-10-31')},2026-10-30T00:00:00,2,gpt-4.1-nano-2025-04-14,True,1500,5,600\n"
        f"{seconds('2026-10-31')},{seconds('2026-11-01')},2026-10-31T00:00:00+00:00,,,,,,\n"
    )
    found = compare(store, usage)
    assert verdicts(found) == [("2026-10-30", "gpt-4.1-nano", True, "equal")]
    costs = (
        "start_time,end_time,start_time_iso,end_time_iso,amount_value,amount_currency,line_item,project_id\n"
        "1793318400,1793404800,2026-10-30T00:00:00+00:00,2026-10-31T00:00:00+00:00,0.000075000000000000000000000000,"
        'usd,"gpt-4.1-nano, input",p\n'
        "1793318400,1793404800,2026-10-30T00:00:00+00:00,2026-10-31T00:00:00+00:00,0.000001000000000000000000000000,"
        'usd,"gpt-4.1-nano, output",p\n'
    )
    assert verdicts(compare(store, costs)) == [("2026-10-30", "gpt-4.1-nano", None, "equal")]
    plain = "Date,Requests,Cost\n2026-10-30,2,$0.00\n"
    assert verdicts(compare(store, plain)) == [("2026-10-30", None, None, "equal")]


def test_hours_and_several_pages_are_added_up_by_day(store: Store) -> None:
    a_batch(store)
    hours = [
        {
            "object": "bucket",
            "start_time": seconds("2026-10-30") + h * 3600,
            "end_time": seconds("2026-10-30") + (h + 1) * 3600,
            "results": [r],
        }
        for h, r in ((0, used(1, 1000, 2, 600)), (23, used(1, 500, 3)))
    ]
    one, two = page(hours[0], more=True), page(hours[1])
    assert verdicts(compare(store, [one, two])) == [("2026-10-30", "gpt-4.1-nano", True, "equal")]
    assert verdicts(compare(store, json.dumps(one) + "\n" + json.dumps(two) + "\n"))[0][3] == "equal"
    alone = compare(store, one)
    assert "has_more is true" in alone.notes[0]


def test_one_project_of_a_file_can_be_picked(store: Store) -> None:
    a_batch(store)
    mixed = page(
        bucket(
            "2026-10-30", {**used(2, 1500, 5, 600), "project_id": "proj_a"}, {**used(9, 9, 9), "project_id": "proj_b"}
        )
    )
    assert compare(store, mixed).lines[0].verdict == "not_explained"
    assert "the file holds 2 projects; --project proj_a compares one" in compare(store, mixed).notes
    assert compare(store, mixed, "proj_a").lines[0].verdict == "equal"
    with pytest.raises(UsageFileError, match="has no project 'proj_c'; it has proj_a, proj_b"):
        compare(store, mixed, "proj_c")


def test_work_of_the_ledger_that_this_one_was_forked_from_is_not_compared(store: Store) -> None:
    a_batch(store)
    with store.transaction() as con:
        register(con, store.path)
    copy = Store(store.path.with_name("copy.duckdb"))
    shutil.copy(store.path, copy.path)
    fork(copy, "r")
    assert compare(copy, page(bucket("2026-10-30"))).lines == ()
    assert compare(store, page(bucket("2026-10-30"))).lines[0].verdict == "ours_more"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("{", "not valid JSON"),
        ('{"a": 1}', "not a page of OpenAI's usage or costs API"),
        ("[1]", "page 1 is not a page"),
        ("[" * 50_000, "not valid JSON"),
        ('{"data": [7]}', "bucket 1 is not an object"),
        ('{"data": []}', "covers no day"),
        ('{"data": [{"start_time": "soon", "results": []}]}', "'soon' is not a day"),
        ('{"data": [{"start_time": 1e99, "results": []}]}', "is not a day"),
        ('{"data": [{"start_time": 0, "end_time": 99999999999, "results": []}]}', "export by day"),
        ('{"data": [{"start_time": 0, "results": 3}]}', "no list of results"),
        ('{"data": [{"start_time": 0, "results": [{"input_tokens": -1}]}]}', "input_tokens is '-1', not a count"),
        ('{"data": [{"start_time": 0, "results": [{"input_tokens": true}]}]}', "not a count"),
        ('{"data": [{"start_time": 0, "results": [{"input_tokens": NaN}]}]}', "not valid JSON"),
        (
            '{"data": [{"start_time": 0, "results": [{"amount": {"value": 1, "currency": "eur"}}]}]}',
            "the currency is 'eur'",
        ),
        (
            '{"data": [{"start_time": 0, "results": [{"amount": {"value": "much", "currency": "usd"}}]}]}',
            "'much', not an amount of dollars",
        ),
        (
            '{"data": [{"start_time": 0, "results": [{"amount": {"value": 1e999999, "currency": "usd"}}]}]}',
            "not an amount of dollars",
        ),
        ('{"data": [{"start_time": 0, "results": [{"amount": 5}]}]}', "not an object with value and currency"),
        ('{"data": [{"start_time": 0, "results": [{"model": 5}]}]}', "the model is 5"),
        ('{"data": [{"start_time": 0, "results": [{"model": "m"}]}]}', "has nothing to compare"),
        ('{"data": [{"start_time": 0, "results": [{"input_tokens": 1, "batch": "perhaps"}]}]}', "batch is 'perhaps'"),
        (
            '{"data": [{"start_time": 0, "results": [{"input_tokens": 1}, {"output_tokens": 1}]}]}',
            "only 1 of 2 lines have input_tokens",
        ),
        ("model,input_tokens\nm,5\n", "has no day"),
        ("date,colour\n2026-10-30,red\n", "or nothing to compare"),
        ("date,input_tokens\n2026-10-30,1,2\n", ":2: 3 cells under a header of 2"),
        ("date,input_tokens\n2026-10-30,many\n", ":2: input_tokens is 'many'"),
        ("date,input_tokens\n30.10.26,5\n", "'30.10.26' is not a day"),
        ("date,cost,currency\n2026-10-30,5,CHF\n", "the currency is 'CHF'"),
        ('date,input_tokens\n"2026-10-30,5\n', "neither JSON nor CSV"),
    ],
)
def test_a_file_that_is_no_usage_export_is_refused_in_one_line(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "usage"
    path.write_text(content, "utf-8")
    with pytest.raises(UsageFileError) as refused:
        read_usage(path)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


def test_a_file_that_cannot_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageFileError, match="cannot be read"):
        read_usage(tmp_path / "nowhere.json")
    with pytest.raises(UsageFileError, match="cannot be read"):
        read_usage(tmp_path)
    (tmp_path / "b").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageFileError, match="not text in UTF-8"):
        read_usage(tmp_path / "b")


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    (tmp_path / "u.csv").write_bytes(b"\xef\xbb\xbfdate,requests\r\n2026-10-30,4\r\n")
    (only,) = read_usage(tmp_path / "u.csv").buckets
    assert (only.day, only.requests) == (date(2026, 10, 30), 4)


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("2026-10-30", 30),
        ("2026-10-30T23:59:59Z", 30),
        ("2026-10-30T23:59:59-05:00", 31),
        (str(seconds("2026-10-30")), 30),
    ],
)
def test_days_are_utc(tmp_path: Path, text: str, day: int) -> None:
    (tmp_path / "u.csv").write_text(f"start_time,requests\n{text},4\n")
    assert read_usage(tmp_path / "u.csv").buckets[0].day == date(2026, 10, day)
