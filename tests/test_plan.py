"""Looking ahead: offers and the choice among them, what past runs show, what a random sample shows about the whole."""

from __future__ import annotations

import json
import math
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from alpasift.batcher.cli import run
from alpasift.batcher.data.importing import import_file
from alpasift.batcher.engine.history import Correction, corrected, correction_from
from alpasift.batcher.planning.choice import choose
from alpasift.batcher.planning.offers import Offer, unnamed_offer
from alpasift.batcher.planning.probe import (
    Interval,
    Sampled,
    UsdInterval,
    costs_of,
    draw_rows,
    histogram,
    project,
    project_usd,
)
from alpasift.batcher.statistics import wilson
from alpasift.batcher.store import Store
from alpasift.graders import BackendUnavailable, Estimate
from alpasift.graders.api.prices import per_million
from alpasift.graders.rehearsal.server import Rehearsal
from conftest import Ran, some_rows, write_rows

Call = Callable[..., Ran]
D = Decimal
KEY = "sk-rehearsal-0123456789"
PRICE = 'usd_per_million_input = "1"\nusd_per_million_output = "10"\nlines_per_attempt = 40\n'
TAKES = PRICE + '[[reply]]\ntext = "5"\nusage = { prompt_tokens = 400, completion_tokens = 4 }\n'
"""Every answer takes 400 + 4 tokens, that is 0.00044 dollars, whatever was estimated."""


@pytest.fixture
def alpasift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """Run `alpasift ARGUMENTS` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for name in [n for n in os.environ if n.startswith(("ALPASIFT_", "OPENAI_"))]:
        monkeypatch.delenv(name)
    mask, handler = os.umask(0o077), signal.getsignal(signal.SIGTERM)

    def call(*arguments: object) -> Ran:
        capsys.readouterr()
        code = run([str(a) for a in arguments])
        printed = capsys.readouterr()
        return Ran(code, printed.out, printed.err)

    yield call
    os.umask(mask)
    signal.signal(signal.SIGTERM, handler)


def offers(ran: Ran) -> dict[str, dict[str, Any]]:
    return {one["grader"]: one for one in ran.json["offers"]}


def tables(database: Path) -> dict[str, list[Any]]:
    """Every row of every table."""
    with Store(database).reader() as con:
        names = [name for (name,) in con.execute("select table_name from duckdb_tables() order by all").fetchall()]
        return {name: con.execute(f"select * from {name} order by all").fetchall() for name in names}


def positions_graded(database: Path) -> list[int]:
    return [p for (p,) in Store(database).locked_query("select position from graded_rows order by position").rows]


# -- projections ----------------------------------------------------------------------------------------------------


def sample(*scores: str | None, reason: str = "unreadable") -> list[Sampled]:
    return [
        Sampled(i, None if score is None else D(score), reason if score is None else None)
        for i, score in enumerate(scores)
    ]


def test_a_projection_by_hand() -> None:
    """3 of 8 answers reach 4.5; one cannot be read and is not kept. Of 1,000 rows, 8 * 999 / 992 = 8.0565 draws' worth.

    Wilson: (0.375 + 0.238409 -+ 1.959964 * sqrt(0.0290916 + 0.0147962)) / 1.476818, that is 0.1373 to 0.6934.
    """
    rows = [*sample("5", "4.5", "4.5", "4", "3", "0", "2", None), Sampled(8, None, "not_graded")]
    found = project(rows, 1000, D("4.5"))
    assert (found.rows, found.sample, found.answered, found.kept, found.unread) == (1000, 9, 8, 3, 1)
    assert found.share.value == 0.375
    assert (found.share.low, found.share.high) == pytest.approx((0.1373, 0.6934), abs=1e-4)
    assert found.kept_rows == Interval(375, math.floor(found.share.low * 1000), math.ceil(found.share.high * 1000))


def test_rows_of_the_whole_are_never_fewer_than_were_found_nor_more_than_are_left() -> None:
    found = project(sample("5", "5", "5", "0"), 5, D("4.5"))
    assert (found.kept_rows.low, found.kept_rows.high) == (3, 4)
    assert project(sample("5", "5", "0"), 3, D("4.5")).kept_rows == Interval(2, 2, 2)
    assert project([], 100, D("4.5")).share == Interval(0.0, 0.0, 1.0), "nobody has answered yet"


def test_a_call_that_failed_is_no_answer() -> None:
    found = project([*sample("5", "1"), *sample(None, reason="backend_error")], 100, D("4.5"))
    assert (found.answered, found.unread, found.share.value) == (2, 0, 0.5)


def test_a_histogram_counts_scores_from_the_top_then_reasons() -> None:
    rows = [*sample("5", "5", "1", None), Sampled(9, None, "not_graded")]
    assert histogram(rows) == [
        {"score": D(5), "reason": None, "rows": 2, "cumulative_share": 0.5},
        {"score": D(1), "reason": None, "rows": 1, "cumulative_share": 0.75},
        {"score": None, "reason": "not_graded", "rows": 1, "cumulative_share": None},
        {"score": None, "reason": "unreadable", "rows": 1, "cumulative_share": None},
    ]


def test_costs_projected_by_hand() -> None:
    """1, 2, 3 cents: mean 2, standard deviation 1. Six more: 12 cents, off by 2 * 1/2 * sqrt(1/3 + 1/6) = 0.70711."""
    found = project_usd([D("0.01"), D("0.02"), D("0.03")], 6)
    assert found is not None
    assert found.usd == D("0.12")
    assert float(found.usd_low) == pytest.approx(0.12 * (1 - math.sqrt(0.5)))
    assert float(found.usd_high) == pytest.approx(0.12 * (1 + math.sqrt(0.5)))


def test_costs_that_are_all_equal_are_still_told_two_percent_off() -> None:
    assert project_usd([D("0.01")] * 100, 1000) == UsdInterval(D("10"), D("9.8"), D("10.2"))


def test_one_row_says_nothing_of_the_spread_and_none_says_nothing_at_all() -> None:
    assert project_usd([D("0.01")], 10) == UsdInterval(D("0.1"), D(0), D("0.2"))
    assert project_usd([], 10) is None
    assert project_usd([D("0.01")], 0) == UsdInterval(D(0), D(0), D(0))


def test_what_answers_took_can_be_priced_another_way() -> None:
    taken = {"prompt_tokens": 100, "completion_tokens": 10}
    rows = [
        Sampled(0, D(5), None, D("0.0004"), D(0), (taken,)),
        Sampled(1, None, "unreadable", D("0.0008"), D(0), (taken, taken)),  # asked twice
        Sampled(2, None, "too_long"),  # refused: it costs nothing either way
        Sampled(3, D(5), None, D("0.1"), D("0.2"), (taken,)),  # what it costs is not known yet
        Sampled(4, None, "backend_error", D(0)),
        Sampled(5, None, "not_graded"),
    ]
    assert costs_of(rows) == [D("0.0004"), D("0.0008"), D(0)]
    assert costs_of(rows, per_million("1", "10")) == [D("0.0002"), D("0.0004"), D(0)]


# -- what past runs show ------------------------------------------------------------------------------------------


def past(answers: int, ratio: float, *, same: bool = True, sd: float = 0.5) -> dict[str, Any]:
    return {
        "answers": answers,
        "usd_ratio": ratio,
        "input_ratio": ratio / 2,
        "output_ratio": None,
        "answer_usd": 2.0,
        "answer_usd_sd": sd,
        "same_rubric": same,
    }


def test_ratios_are_weighted_by_answers() -> None:
    """300 answers at 0.8, 100 at 1.2: mean 0.9. Runs vary by sqrt(2 * (0.75 * 0.01 + 0.25 * 0.09)) / 0.9 = 0.27217."""
    found = correction_from([past(300, 0.8), past(100, 1.2)])
    assert found is not None
    assert (found.answers, found.runs, found.own_rubric) == (400, 2, True)
    assert (found.usd, found.input_tokens, found.output_tokens) == pytest.approx((0.9, 0.45, 1.0))
    assert (found.spread, found.between) == pytest.approx((0.25, 0.27217), abs=1e-5)


def test_the_own_rubric_teaches_alone_and_others_only_for_want_of_it() -> None:
    own = correction_from([past(50, 0.5), past(500, 2.0, same=False)])
    other = correction_from([past(500, 2.0, same=False)])
    assert own is not None
    assert (own.usd, own.answers, own.own_rubric) == (0.5, 50, True)
    assert other is not None
    assert (other.usd, other.own_rubric) == (2.0, False)
    assert correction_from([]) is None


def test_a_correction_scales_what_is_expected_and_leaves_the_ceiling() -> None:
    """Ratio 0.5, spread 0.5, 100 answers, 400 rows: 2 * 0.5 * sqrt(1/100 + 1/400) = 0.1118, and 0.01 between runs."""
    raw = Estimate(400, D(10), D(9), D(11), D(12), 60.0, 40_000, 800, sync_usd=D(20))
    found = corrected(raw, Correction(100, 2, 0.5, 0.9, 2.0, spread=0.5, between=0.01))
    assert (found.usd, found.sync_usd, found.ceiling_usd, found.seconds) == (D(5), D(10), D(12), 60.0)
    assert (found.input_tokens, found.output_tokens) == (36_000, 1_600)
    off = math.sqrt(0.0125) + 0.01
    assert (float(found.usd_low), float(found.usd_high)) == pytest.approx((5 * (1 - off), 5 * (1 + off)))
    assert corrected(raw, None) is raw


def test_no_interval_is_tighter_than_two_percent_nor_goes_above_the_ceiling() -> None:
    raw = Estimate(10**6, D(10), D(9), D(11), D("10.1"), None, 1, 1)
    found = corrected(raw, Correction(10**9, 5, 1.0, 1.0, 1.0, spread=0.1, between=0.0))
    assert (found.usd_low, found.usd_high) == (D("9.8"), D("10.1"))


# -- the choice ---------------------------------------------------------------------------------------------------


def one(
    grader: str,
    usd: str,
    *,
    high: str | None = None,
    hours: float | None = 1.0,
    worst: float | None = None,
    leaves: str = "nothing",
    why_not: str | None = None,
) -> Offer:
    dollars, top = D(usd), D(high or usd)
    estimate = Estimate(
        100,
        dollars,
        dollars,
        top,
        top * 2,
        None if hours is None else hours * 3600,
        1,
        1,
        seconds_high=None if worst is None else worst * 3600,
    )
    return Offer(grader, "accuracy", estimate, 0, leaves, False, why_not)


NANO = one("openai_batch:nano", "0.60", high="1.20", worst=48, leaves="rows and rubric, to api.openai.com")
MINI = one("openai_batch:mini", "2.00", high="4.00", worst=24, leaves="rows and rubric, to api.openai.com")
CHAT = one("openai_chat:nano", "1.20", high="2.40", hours=2, leaves="rows and rubric, to api.openai.com")
LOCAL = one("llama_cpp:m.gguf", "0", hours=30)
DUNNO = one("llama_cpp:x.gguf", "0", hours=None)
RULES, FAKE = one("rules", "0", hours=0.0), one("fake:x.toml", "0", hours=0.0)
ABSENT = one("openai_batch:luxury", "0.01", why_not="no key")


@pytest.mark.parametrize(
    ("there", "limits", "chosen"),
    [
        ([NANO, MINI, CHAT], {}, NANO),
        ([NANO, MINI, CHAT, LOCAL], {}, LOCAL),
        ([NANO, MINI, CHAT, LOCAL], {"max_hours": 24}, CHAT),  # nano may take 48 hours, the local model 30
        ([NANO, MINI, CHAT, DUNNO], {"max_hours": 24}, CHAT),
        ([NANO, MINI, DUNNO], {}, DUNNO),
        ([MINI, CHAT], {"max_usd": D("2.40")}, CHAT),
        ([NANO, MINI, CHAT, LOCAL], {"local_only": True, "max_usd": D(0)}, LOCAL),
        ([NANO, MINI], {"max_hours": 24, "max_usd": D(4)}, MINI),
        ([MINI, CHAT], {"free_usd": D("1.20")}, CHAT),  # expected dollars: the ledger holds to the budget anyway
        ([NANO, RULES, FAKE, ABSENT], {}, NANO),
        ([one("b", "1"), one("a", "1"), one("c", "1", hours=0.5)], {}, one("c", "1", hours=0.5)),
        ([one("b", "1"), one("a", "1")], {}, one("a", "1")),
    ],
)
def test_the_cheapest_that_fits_is_taken(there: list[Offer], limits: dict[str, Any], chosen: Offer) -> None:
    found = choose(there, **limits)
    assert found.offer == chosen
    assert found.why.startswith(f"{chosen.grader}: ")
    assert "never calibrated" in found.why


@pytest.mark.parametrize(
    ("there", "limits", "words"),
    [
        (
            [NANO, MINI],
            {"max_usd": D(1)},
            ["closest is openai_batch:nano", "up to $1.2000, $0.2000 more than --max-usd 1"],
        ),
        (
            [NANO, MINI],
            {"max_hours": 12},
            ["closest is openai_batch:mini", "up to 24 h, 12 h more than --max-hours 12"],
        ),
        (
            [NANO, MINI],
            {"max_hours": 40, "max_usd": D(1)},
            ["closest is openai_batch:nano", "$0.2000", "and up to 48 h"],
        ),
        (
            [NANO, MINI],
            {"local_only": True},
            ["closest is openai_batch:nano", "would send to another machine: rows and rubric"],
        ),
        ([NANO], {"free_usd": D("0.10")}, ["$0.5000 more than the $0.1000 that the budget leaves"]),
        ([DUNNO], {"max_hours": 5}, ["its duration is unknown"]),
        ([ABSENT, RULES], {}, ["no grader to choose from. openai_batch:luxury: no key.", "alpasift doctor"]),
        ([], {}, ["no grader to choose from", "--grader llama_cpp:PATH.gguf"]),
    ],
)
def test_where_nothing_fits_the_message_names_the_nearest_and_what_it_exceeds(
    there: list[Offer], limits: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(BackendUnavailable) as error:
        choose(there, **limits)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_the_reason_names_the_most_it_can_cost_and_what_the_budget_does() -> None:
    assert "likely at most $1.2000, worst case $2.4000; set a budget" in choose([NANO]).why
    assert "the run would stop at $1.0000, what the budget leaves" in choose([NANO], free_usd=D(1)).why
    assert "is free" not in choose([NANO], free_usd=D(5)).why


def test_a_grader_that_nobody_named_is_not_taken_without_a_budget() -> None:
    priceless = Offer("openai_batch:x", "accuracy", None, 0, "", False, "no price")
    assert unnamed_offer(priceless, D(5)) is None
    assert unnamed_offer(NANO, D(5)) == NANO
    without = unnamed_offer(NANO, None)
    assert without is not None
    assert "no budget is set" in str(without.why_not)
    assert without.estimate == NANO.estimate
    assert unnamed_offer(ABSENT, None) == ABSENT


# -- plan ---------------------------------------------------------------------------------------------------------


def test_a_file_is_planned_without_a_database_and_nothing_is_left_behind(alpasift: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "r.jsonl", [*some_rows(50), *some_rows(5)])
    before = set(Path(tempfile.gettempdir()).glob("alpasift-plan-*"))
    ran = alpasift("plan", "r.jsonl", "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["dataset"], ran.json["rows"]) == ("r", 55)
    found = offers(ran)
    assert list(found) == ["openai_batch:gpt-4.1-nano", "openai_batch:gpt-4o-mini", "rules", "fake"]
    for spec in list(found)[:2]:
        priced = found[spec]
        assert "no key" in priced["why_not"]
        assert priced["rows"] == 50, "equal rows are one question"
        assert 0 < D(priced["usd_low"]) <= D(priced["usd"]) <= D(priced["usd_high"]) <= D(priced["ceiling_usd"])
        assert D(priced["sync_usd"]) == 2 * D(priced["usd"])
        assert (priced["rounds"], priced["seconds_low"], priced["seconds_high"]) == (1, 600, 86400)
        assert priced["leaves_machine"] == "rows and rubric, to api.openai.com"
        assert not any("enqueued" in line for line in priced["notes"]), "so small a job fits any queue"
        assert any("tokens counted by o200k_base" in line for line in priced["notes"])
        assert any(line.startswith("price of 20") for line in priced["notes"])
    assert ran.json["auto"]["grader"] is None
    assert [p.name for p in tmp_path.iterdir()] == ["r.jsonl"]
    assert set(Path(tempfile.gettempdir()).glob("alpasift-plan-*")) == before


def test_plan_writes_nothing(alpasift: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "r.jsonl", some_rows(60))
    (tmp_path / "p.toml").write_text(TAKES)
    alpasift("import", "r.jsonl")
    alpasift("grade", "--grader", "fake:p.toml", "--limit", "30", "--budget", "1", "--yes")
    bytes_before, before = (tmp_path / "alpasift.duckdb").read_bytes(), tables(tmp_path / "alpasift.duckdb")
    assert before["setups"]
    named = ["--grader", "fake:p.toml", "--json"]
    for arguments in (named, ["r.jsonl", "--rubric", "helpfulness", *named[:2]], ["--history"]):
        assert alpasift("plan", *arguments).code == 0
    assert tables(tmp_path / "alpasift.duckdb") == before
    assert (tmp_path / "alpasift.duckdb").read_bytes() == bytes_before


def test_a_file_that_was_imported_is_planned_without_the_rows_that_are_graded(alpasift: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "r.jsonl", some_rows(20))
    alpasift("import", "r.jsonl", "--dataset", "mine")
    alpasift("grade", "--grader", "fake", "--limit", "15")
    found = alpasift("plan", "r.jsonl", "--grader", "fake", "--json")
    assert found.json["dataset"] == "mine"
    assert (offers(found)["fake"]["rows"], offers(found)["fake"]["already"]) == (5, 15)
    write_rows(tmp_path / "s.jsonl", some_rows(21))
    assert offers(alpasift("plan", "s.jsonl", "--grader", "fake", "--json"))["fake"]["rows"] == 21
    listed = Store(tmp_path / "alpasift.duckdb").locked_query("select label from datasets").rows
    assert listed == [("mine",)]


def test_the_api_is_taken_unasked_only_with_a_key_and_a_budget(
    alpasift: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path / "r.jsonl", some_rows(5))
    (tmp_path / "p.toml").write_text(TAKES)
    alpasift("import", "r.jsonl")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    without = alpasift("plan", "--json")
    assert without.json["auto"]["grader"] is None
    assert "no budget is set" in offers(without)["openai_batch:gpt-4.1-nano"]["why_not"]
    named = alpasift("plan", "--json", "--grader", "openai_batch:gpt-4o-mini")
    assert named.json["auto"]["grader"] == "openai_batch:gpt-4o-mini", "a person has named it"
    assert "set a budget" in named.json["auto"]["reason"]
    assert list(offers(named)) == ["openai_batch:gpt-4o-mini", "rules", "fake"]
    alpasift("grade", "--grader", "fake:p.toml", "--limit", "1", "--budget", "3", "--yes")
    found = alpasift("plan", "--json").json
    assert found["auto"]["grader"] == "openai_batch:gpt-4.1-nano"
    assert D(found["limits"]["free_usd"]) == 3 - D("0.00044")
    assert KEY not in json.dumps(found)


def test_without_a_price_the_offer_says_what_to_write_into_prices_toml(alpasift: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "r.jsonl", some_rows(5))
    alpasift("import", "r.jsonl")
    ran = alpasift("plan", "--grader", "openai_batch:nobodys-model", "--json")
    assert ran.code == 3
    found = offers(ran)["openai_batch:nobodys-model"]
    assert found["usd"] is None
    assert "no price is known for nobodys-model" in found["why_not"]
    assert "[[price]]" in found["why_not"]
    people = alpasift("plan", "--grader", "openai_chat:nobodys-model")
    assert '    model = "nobodys-model"' in people.out
    assert "--grader auto" not in people.out


def test_a_limit_that_nobody_fits_ends_with_code_three_and_the_nearest(
    alpasift: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path / "r.jsonl", some_rows(5))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    alpasift("import", "r.jsonl")
    named = ["--grader", "openai_batch:gpt-4.1-nano"]
    dear = alpasift("plan", *named, "--max-usd", "0.00001")
    assert dear.code == 3
    assert "The closest is openai_batch:gpt-4.1-nano" in dear.out
    assert "more than --max-usd 0.00001" in dear.out
    assert "24 h, 23 h more than --max-hours 1" in alpasift("plan", *named, "--max-hours", "1", "--max-usd", "1").out
    assert alpasift("plan", *named, "--max-usd", "1", "--max-hours", "24").code == 0
    assert alpasift("plan", *named, "--max-usd", "one").code == 2


def test_a_plan_above_the_budget_says_so_and_how_many_rows_fit(alpasift: Call, tmp_path: Path) -> None:
    """20 rows at 0.00044 dollars a request, as learned from 20 answers: 0.0088; two requests a row: 0.0176."""
    write_rows(tmp_path / "r.jsonl", some_rows(40))
    (tmp_path / "p.toml").write_text(TAKES)
    alpasift("import", "r.jsonl")
    alpasift("grade", "--grader", "fake:p.toml", "--limit", "20", "--budget", "1", "--yes")
    spent = 20 * D("0.00044")
    over = alpasift("plan", "--grader", "fake:p.toml", "--budget", spent + D("0.00442"))
    assert over.out.splitlines()[2].endswith("over the budget")
    wanted = "20 rows should cost $0.0088 and $0.0044 is free. --limit 10 grades what fits, or raise --budget"
    assert wanted in " ".join(over.out.split())
    assert "over the budget" not in alpasift("plan", "--grader", "fake:p.toml", "--budget", "1").out
    assert "over the budget" not in alpasift("plan", "--grader", "rules", "--budget", "0").out
    twice = alpasift("plan", "--grader", "fake:p.toml", "--budget", spent + D("0.0089"), "--samples", "2")
    shown = " ".join(twice.out.split())
    assert "40 rows should cost $0.0352 and $0.0089 is free. --limit 10 grades what fits" in shown
    assert "2 requests for each row" in shown
    refused = alpasift("grade", "--grader", "fake:p.toml", "--samples", "2", "--budget", spent + D("0.0089"), "--yes")
    assert refused.code == 4
    assert "40 rows should cost $0.0352 and $0.0089 is free; nothing was sent. --limit 10 grades" in refused.err


def test_auto_may_be_named_among_the_graders_to_compare(
    alpasift: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path / "r.jsonl", some_rows(5))
    alpasift("import", "r.jsonl")
    none = alpasift("plan", "--grader", "auto")
    assert (none.code, "no grader named" in none.out) == (3, False)
    assert "--grader auto: no grader to choose from" in none.out
    assert "auto" not in offers(alpasift("plan", "--grader", "auto", "--grader", "rules", "--json"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    both = alpasift("plan", "--grader", "auto", "--grader", "openai_batch:gpt-4.1-nano")
    assert both.code == 0
    assert "--grader auto: openai_batch:gpt-4.1-nano: $" in both.out


def test_what_helps_goes_by_the_limit_that_nobody_fits() -> None:
    ends = {
        "raise --max-usd, or grade fewer rows with --limit": {"max_usd": D(1)},
        "raise --budget, or grade fewer rows with --limit": {"free_usd": D("0.10")},
        "raise --max-hours, or grade fewer rows with --limit": {"max_hours": 1},
        "give a grader that runs on this machine, or drop --local-only": {"local_only": True},
    }
    for end, limits in ends.items():
        with pytest.raises(BackendUnavailable) as error:
            choose([NANO], **limits)  # type: ignore[arg-type]
        assert str(error.value).endswith("; " + end)


def test_plan_for_people_is_a_table_with_what_one_should_know_under_it(alpasift: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "r.jsonl", some_rows(5))
    lines = alpasift("plan", "r.jsonl").out.splitlines()
    assert lines[0] == "r: 5 rows"
    assert " ".join(lines[1].split()) == "grader rubric rows expected likely at most sync time remark"
    assert "10 min to 24.0 h" in lines[2]
    assert lines[2].endswith("not available here")
    under = "\n".join(lines[6:])
    for words in (
        "no key; set OPENAI_API_KEY",
        "sent off this machine: rows and rubric",
        "1 batch",
        "tokens counted by",
    ):
        assert words in under


def test_a_job_larger_than_a_low_tiers_queue_is_planned_for_both_cases_and_for_the_limit_that_is_given(
    alpasift: Call, tmp_path: Path
) -> None:
    long = "one two three four five six seven eight nine ten " * 18_000  # 180,000 tokens a row
    write_rows(tmp_path / "r.jsonl", [{"instruction": f"Count {i}.", "output": long} for i in range(12)])
    plan = ["plan", "r.jsonl", "--grader", "openai_batch:gpt-4.1-nano", "--json"]
    unknown = offers(alpasift(*plan))["openai_batch:gpt-4.1-nano"]
    assert (unknown["rounds"], unknown["seconds_low"], unknown["seconds_high"]) == (1, 600, 2 * 86400)
    (note,) = (line for line in unknown["notes"] if "queue" in line)
    assert "unknown: 2 batches, one after the other, at 2,000,000 enqueued tokens" in note
    assert "1 if all 2,1" in note
    given = offers(alpasift(*plan, "--enqueued-tokens", 1_000_000))["openai_batch:gpt-4.1-nano"]
    assert (given["rounds"], given["seconds_low"], given["seconds_high"]) == (3, 1800, 3 * 86400)


# -- predicted and actual -----------------------------------------------------------------------------------------


def test_a_run_teaches_the_next_plan_and_nothing_is_corrected_twice(alpasift: Call, tmp_path: Path) -> None:
    """The script's answers take 400 + 4 tokens each, 0.00044 dollars; its estimate counts the prompt and 2 tokens."""
    write_rows(tmp_path / "r.jsonl", some_rows(200))
    (tmp_path / "p.toml").write_text(TAKES)
    alpasift("import", "r.jsonl")
    plan = ["plan", "--grader", "fake:p.toml", "--json"]
    raw = offers(alpasift(*plan))["fake:p.toml"]
    assert raw["correction"] is None
    for limit in (40, 60):
        alpasift("grade", "--grader", "fake:p.toml", "--limit", limit, "--budget", "1", "--yes")
    found = offers(alpasift(*plan))["fake:p.toml"]
    assert (found["rows"], found["correction"]["answers"], found["correction"]["runs"]) == (100, 100, 2)
    assert found["input_tokens"] == pytest.approx(100 * 400, rel=0.01)
    assert found["output_tokens"] == 100 * 4
    assert float(found["usd"]) == pytest.approx(100 * 0.00044, rel=0.01)
    assert float(found["usd_low"]) == pytest.approx(0.98 * float(found["usd"]))
    assert D(found["ceiling_usd"]) == D(found["uncorrected"]["ceiling_usd"])
    assert found["uncorrected"]["input_tokens"] / 100 == pytest.approx(raw["input_tokens"] / 200, rel=0.01)
    assert any(line.startswith("corrected by 100 past answers: ") for line in found["notes"])
    asked = alpasift("grade", "--grader", "fake:p.toml", "--limit", 100, "--budget", "1")
    assert asked.code == 2, "nobody agreed, so nothing was sent"
    assert f"100 requests to fake:p.toml: ${float(found['usd']):.4f} expected" in asked.err, "grade asks as plan shows"
    assert "corrected by 100 past answers: " in asked.err
    second, first = Store(tmp_path / "alpasift.duckdb").query("predictions", grader=None, rubric=None, run_id=None)
    assert first["input_ratio"] == pytest.approx(second["input_ratio"], rel=0.01), "what was kept is the raw estimate"
    assert first["input_tokens"] == second["input_tokens"] == 400
    told = alpasift("grade", "--grader", "fake:p.toml", "--limit", 50, "--budget", "1", "--yes").err
    asked_for, spent = "$0.0220 expected, at most", "$0.0220 expected for 50 answers, $0.0220 spent (1.00 times)"
    assert asked_for in told and spent in told, "the cost that was agreed to stands beside what was spent"


def test_other_rubrics_teach_for_want_of_the_own_and_small_runs_nothing(alpasift: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "r.jsonl", some_rows(40))
    (tmp_path / "p.toml").write_text(TAKES)
    alpasift("import", "r.jsonl")
    grade = ["grade", "--grader", "fake:p.toml", "--budget", "1", "--yes"]
    plan = ["plan", "--grader", "fake:p.toml", "--json", "--rubric", "helpfulness"]
    for limit in (19, 20):
        alpasift(*grade, "--limit", limit)
    other = offers(alpasift(*plan))["fake:p.toml"]["correction"]
    assert (other["answers"], other["own_rubric"]) == (20, False)
    alpasift(*grade, "--limit", "30", "--rubric", "helpfulness")
    own = offers(alpasift(*plan))["fake:p.toml"]["correction"]
    assert (own["answers"], own["own_rubric"]) == (30, True)


def test_only_what_was_answered_is_compared(alpasift: Call, tmp_path: Path) -> None:
    """Rows 0 to 3 get no answer, and the usage of row 4 makes no sense. Each of the five answers that are left is
    predicted as the mean of all ten, and takes 400 tokens in and 4 out."""
    write_rows(tmp_path / "r.jsonl", some_rows(10))
    lost = '[[reply]]\nmatch = "number [0-3] "\noutcome = "rejected_free"\n'
    odd = '[[reply]]\nmatch = "number 4 "\nusage = { prompt_tokens = -5, completion_tokens = "4" }\n'
    (tmp_path / "p.toml").write_text(TAKES.replace("[[reply]]", f"{lost}{odd}[[reply]]"))
    alpasift("import", "r.jsonl")
    estimate = offers(alpasift("plan", "--grader", "fake:p.toml", "--json"))["fake:p.toml"]
    alpasift("grade", "--grader", "fake:p.toml", "--budget", "1", "--yes")
    rows = alpasift("plan", "--history", "--json").json
    assert [(row["requests"], row["answers"]) for row in rows] == [(10, 5)]
    assert D(rows[0]["predicted_usd"]) == D(estimate["usd"]) / 2
    assert D(rows[0]["usd"]) == 5 * D("0.00044")
    assert rows[0]["usd_ratio"] == pytest.approx(float(D(rows[0]["usd"]) / D(rows[0]["predicted_usd"])))
    assert rows[0]["predicted_input_tokens"] == estimate["input_tokens"] / 10
    assert (rows[0]["input_tokens"], rows[0]["output_tokens"], rows[0]["output_ratio"]) == (400, 4, 2)
    shown = alpasift("plan", "--history").out.splitlines()
    assert "5 of 10" in shown[2]
    assert " / 400.0" in shown[2]


def test_history_of_nothing_is_no_error(alpasift: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "r.jsonl", some_rows(4))
    assert "no database" in alpasift("plan", "--history").err
    alpasift("import", "r.jsonl")
    ran = alpasift("plan", "--history")
    assert (ran.code, ran.out) == (0, "")
    assert "no run has an estimate yet" in ran.err
    assert alpasift("plan", "r.jsonl", "--history").code == 2


# -- probe --------------------------------------------------------------------------------------------------------


def test_a_probe_is_paid_once_and_the_full_run_asks_only_the_rest(alpasift: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "r.jsonl", some_rows(120))
    (tmp_path / "p.toml").write_text('bill = "bill.txt"\n' + TAKES)
    probe = ["probe", "r.jsonl", "-n", "40", "--grader", "fake:p.toml", "--yes", "--json"]
    first = alpasift(*probe, "--budget", "1")
    assert first.code == 0, first.err
    found = first.json
    assert (found["sample"], found["answered"], found["answered_before"], found["rows_left"]) == (40, 40, 0, 80)
    assert D(found["probe_usd"]) == 40 * D("0.00044")
    assert {k: D(v) for k, v in found["to_go"]["as asked"].items()} == {
        "usd": 80 * D("0.00044"),
        "usd_low": 80 * D("0.00044") * D("0.98"),
        "usd_high": 80 * D("0.00044") * D("1.02"),
    }
    assert D(found["whole_usd"]) == 120 * D("0.00044")
    graded = positions_graded(tmp_path / "alpasift.duckdb")
    again = alpasift(*probe).json
    assert (D(again["probe_usd"]), again["answered_before"], again["kept"]) == (0, 40, found["kept"])
    larger = alpasift(*[*probe[:3], "60", *probe[4:]]).json
    assert (larger["answered_before"], D(larger["probe_usd"])) == (40, 20 * D("0.00044"))
    done = alpasift("grade", "--grader", "fake:p.toml", "--yes", "--json")
    assert (done.json["asked"], done.json["outcome"]) == (60, "done")
    bill = (tmp_path / "bill.txt").read_text().splitlines()
    assert len(bill) == len({line.split()[0] for line in bill}) == 120
    assert set(graded) < set(positions_graded(tmp_path / "alpasift.duckdb")) == set(range(120))


def test_the_same_seed_draws_the_same_rows_on_any_database(alpasift: Call, tmp_path: Path) -> None:
    rows = some_rows(60)
    drawn = {}
    for name, order in (("r", rows), ("turned", rows[::-1])):
        store = Store(tmp_path / f"{name}.duckdb")
        version = import_file(store, write_rows(tmp_path / f"{name}.jsonl", order)).version_id
        drawn[name] = [draw_rows(store, version, 15, seed).positions for seed in (0, 1)]
    assert drawn["r"] == [sorted(59 - p for p in positions) for positions in drawn["turned"]]
    assert drawn["r"][0] != drawn["r"][1]
    alpasift("--db", "r.duckdb", "probe", "--dataset", "r", "-n", "15", "--grader", "fake", "--seed", "1")
    assert positions_graded(tmp_path / "r.duckdb") == drawn["r"][1]


def test_what_a_probe_tells_is_what_the_sample_holds(alpasift: Call, tmp_path: Path) -> None:
    """40 rows ask for numbers 0 to 39, each twice; those that end in 1 cannot be read, 2 and 3 get 5, others 3."""
    write_rows(tmp_path / "r.jsonl", [*some_rows(40), *some_rows(40)])
    (tmp_path / "p.toml").write_text(
        '[[reply]]\nmatch = "number [0-9]?1 "\ntext = "perhaps"\n[[reply]]\nmatch = "number [0-9]?[23] "\ntext = "5"\n'
        '[[reply]]\ntext = "3"\n'
    )
    found = alpasift("probe", "r.jsonl", "-n", "40", "--grader", "fake:p.toml", "--json").json
    assert (found["rows"], found["distinct_rows"], found["answered"]) == (80, 40, 40)
    assert (found["unread"], found["unread_share"], found["kept"], found["threshold"]) == (4, 0.1, 8, 4.5)
    assert found["share"] == {"value": 0.2, "low": 0.2, "high": 0.2}, "all rows were asked about"
    assert found["kept_rows"] == {"value": 8, "low": 8, "high": 8}
    assert [(row["score"], row["reason"], row["rows"]) for row in found["histogram"]] == [
        (5, None, 8),
        (3, None, 28),
        (None, "unreadable", 4),
    ]
    assert (found["to_go"], found["whole_usd"], found["way"]) == ({}, None, None)
    part = alpasift("--db", "p.duckdb", "probe", "r.jsonl", "-n", "20", "--grader", "fake:p.toml", "--json").json
    share = wilson(part["kept"], 20, 40)
    assert part["share"] == pytest.approx({"value": share.value, "low": share.low, "high": share.high})
    people = alpasift("probe", "--dataset", "r", "-n", "40", "--grader", "fake:p.toml").out
    assert "r: 40 random rows of 40 distinct ones (seed 0)" in people
    assert "kept at 4.5 or more: 20.0% (20.0% to 20.0%), that is 8 of 40 rows (8 to 8)" in people
    assert "without a readable score: 10.0% (4 of 40)" in people


def test_a_probe_asks_before_it_spends_and_tells_when_the_budget_is_too_small(alpasift: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "r.jsonl", some_rows(50))
    (tmp_path / "p.toml").write_text(TAKES)
    probe = ["probe", "r.jsonl", "-n", "30", "--grader", "fake:p.toml"]
    assert "no budget is set" in alpasift(*probe).err
    refused = alpasift(*probe, "--budget", "1")
    assert (refused.code, "add --yes" in refused.err) == (2, True)
    short = alpasift(*probe, "--budget", "0.001", "--yes")
    assert short.code == 4
    assert "nothing was sent" in short.err
    assert positions_graded(tmp_path / "alpasift.duckdb") == []


def test_now_is_for_batches_only(alpasift: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "r.jsonl", some_rows(5))
    ran = alpasift("probe", "r.jsonl", "--grader", "fake", "--now")
    assert (ran.code, "--now calls openai_batch:MODEL synchronously" in ran.err) == (2, True)


def test_a_probe_call_by_call_counts_for_the_batch_that_follows(
    alpasift: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways are priced from the same answers: calls cost twice what the batch does."""
    write_rows(tmp_path / "r.jsonl", some_rows(40))
    (tmp_path / "prices.toml").write_text(
        '[[price]]\nprovider = "127.0.0.1"\nmodel = "gpt-4o-mini"\ninput = "0.15"\noutput = "0.60"\ndiscount = "0.5"\n'
        'source = "this test"\ndate = 2026-11-01\n'
    )
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    rates = {"input": "0.15", "output": "0.60", "cached_input": "0.15", "cache_write": "0.15", "batch_discount": "0.5"}
    with Rehearsal(key=KEY, prices={"gpt-4o-mini": rates}).start() as server:
        asked = ["--grader", "openai_batch:gpt-4o-mini", "--base-url", server.url, "--prices", "prices.toml", "--json"]
        ran = alpasift("probe", "r.jsonl", "-n", "25", *asked, "--now", "--budget", "1", "--yes")
        assert ran.code == 0, ran.err
        found = ran.json
        assert server.batches() == []
        assert (found["answered"], found["rows_left"], found["way"]) == (25, 15, "batch")
        assert D(found["probe_usd"]) == server.billed_usd()
        batch, calls = (D(found["to_go"][way]["usd"]) for way in ("batch", "calls"))
        assert calls == pytest.approx(2 * batch)
        assert calls == pytest.approx(15 * D(found["probe_usd"]) / 25)
        assert D(found["whole_usd"]) == D(found["probe_usd"]) + batch
        planned = offers(alpasift("plan", *asked))["openai_batch:gpt-4o-mini"]
        assert (planned["rows"], planned["correction"]["answers"]) == (15, 25)
        done = alpasift("grade", *asked, "--poll-seconds", "0.05", "--yes")
        assert done.code == 0, done.err
        assert sum(server.executions().values()) == 40
        assert max(server.executions().values()) == 1
