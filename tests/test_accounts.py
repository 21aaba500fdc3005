"""The ledger as a person keeps it: settling, taking back, where the money went, and the provider's books beside ours."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from conftest import Ran
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from batcher import accounts, ledger
from batcher.accounts import NothingToSettle, NotReversible, Reconciled, UsageFileError, reconcile, reverse, settle
from batcher.cli import run
from batcher.store import Store, hash_id, new_id
from graders import AlpaSiftError, Reply
from graders.prices import per_million

PRICE = per_million("0.05", "0.20")  # gpt-4.1-nano by batch, dollars per million tokens
GRADER = new_id()
BY = ("day", "run", "model", "batch")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database in which nothing has happened yet; copying it is quicker than making it."""
    return Store(tmp_path_factory.mktemp("fresh") / "fresh.duckdb").create().path


@pytest.fixture
def store(fresh: Path, tmp_path: Path) -> Store:
    path = tmp_path / "alpasift.duckdb"
    shutil.copy(fresh, path)
    return Store(path)


def budget(store: Store, usd: str) -> None:
    with store.transaction() as con:
        ledger.set_budget(con, Decimal(usd))


def attempt(
    store: Store,
    keys: Sequence[str],
    each: str = "0.1",
    *,
    run: str | None = None,
    model: str | None = "gpt-4.1-nano",
    batch_id: str | None = None,
) -> str:
    """An attempt of these questions; with `batch_id` it went by batch."""
    facts: dict[str, Any] = {"outlives": batch_id is not None} | ({"model": model} if model else {})
    with store.transaction() as con:
        identity = ledger.reserve(
            con, run_id=run or new_id(), backend="test", grader_id=GRADER, keys=keys, ceilings=[Decimal(each)] * len(keys),
            price=PRICE.frozen(), facts=facts, run_budget=None,
        )  # fmt: skip
        if batch_id:
            ledger.step(con, identity, "created", {"batch_id": batch_id})
    return identity


def answer(
    store: Store, to: str, key: str, prompt: int = 1000, completion: int = 2, cached: int = 0, model: str | None = "gpt-4.1-nano-2025-04-14",
) -> None:  # fmt: skip
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    with store.transaction() as con:
        ledger.ingest(con, [Reply(to, key, new_id(), "answered", "4", "stop", model, usage)])


def lose(store: Store, *attempts: str) -> None:
    """The answers never came: what the attempts hold becomes unresolved."""
    with store.transaction() as con:
        for one in attempts:
            ledger.close_attempt(con, one, "no answer came")


def balance(store: Store) -> ledger.Balance:
    with store.reader() as con:
        return ledger.balance(con)


def key(i: int) -> str:
    return hash_id("key", str(i))


def on_day(store: Store, day: str) -> None:
    """Put everything that has happened so far on one day, as if the clock had stood there."""
    with store.transaction() as con:
        for table, column in (("attempts", "opened_at"), ("ledger", "recorded_at"), ("replies", "recorded_at")):
            con.execute(
                f"update {table} set {column} = ?::timestamp where {column} > '2026-11-01'", [f"{day} 12:00:00"]
            )


def adds_up(store: Store) -> None:
    """The sum rule, and the sums of every table of where the money went."""
    with store.reader() as con:
        now = ledger.balance(con)
        assert now.budget is not None and now.free is not None
        assert now.spent + now.reserved + now.unresolved + now.free == now.budget
        for by in BY:
            text = f"select sum(spent_usd), sum(reserved_usd), sum(unresolved_usd) from money_by_{by}"
            sums = [amount or 0 for amount in con.execute(text).fetchall()[0]]
            assert sums == [now.spent, now.reserved, now.unresolved], by


# -- settling ---------------------------------------------------------------------------------------------------


def test_settling_at_nothing_gives_back_what_was_unresolved_and_touches_no_reservation(store: Store) -> None:
    budget(store, "1")
    lost, held = attempt(store, [key(1), key(2)]), attempt(store, [key(3)])
    lose(store, lost)
    done = settle(store, [lost], None, "not on the invoice")
    assert (done.attempts, done.lines, done.unresolved_usd, done.spent_usd, done.still_open) == (
        1,
        2,
        Decimal("0.2"),
        0,
        0,
    )
    assert balance(store) == ledger.Balance(Decimal(1), Decimal(0), Decimal("0.1"), Decimal(0))
    entries = store.locked_query(
        "select key, spent_usd, unresolved_usd, note from ledger where kind = 'settled' order by key"
    ).rows
    assert [(str(k), s, u, n) for k, s, u, n in entries] == [
        (k, 0, Decimal("-0.1"), "not on the invoice") for k in sorted([key(1), key(2)])
    ]
    assert held in {str(row["attempt_id"]) for row in store.query("open_attempts")}
    adds_up(store)


@pytest.mark.parametrize("usd", ["0.03", "0.000000000000001", "7.5"])
def test_what_the_provider_charged_is_booked_in_full_be_it_above_the_ceiling(store: Store, usd: str) -> None:
    budget(store, "1")
    lost = attempt(store, [key(1), key(2)])
    lose(store, lost)
    settle(store, [lost], Decimal(usd), "usage page")
    now = balance(store)
    assert (now.spent, now.reserved, now.unresolved) == (Decimal(usd), 0, 0)
    charge = "select attempt_id::varchar, spent_usd from ledger where kind = 'settled' and key is null"
    assert store.locked_query(charge).rows == [(lost, Decimal(usd))]
    assert now.free == 1 - Decimal(usd)
    adds_up(store)


def test_a_batch_a_run_and_the_beginning_of_an_id_name_what_to_settle(store: Store) -> None:
    budget(store, "9")
    run = new_id()
    one, two = attempt(store, [key(1)], run=run), attempt(store, [key(2)], run=run)
    batch, other = attempt(store, [key(3)], batch_id="batch_abc123"), attempt(store, [key(4)], batch_id="batch_abd456")
    lose(store, one, two, batch, other)
    assert settle(store, ["batch_abc"], None, "r").attempts == 1
    assert settle(store, [run], None, "r").attempts == 2
    assert settle(store, [other[:13]], None, "r").attempts == 1
    assert balance(store).unresolved == 0
    adds_up(store)


def test_dollars_for_several_attempts_are_divided_to_the_last_decimal(store: Store) -> None:
    budget(store, "9")
    run = new_id()
    three = [attempt(store, [key(i)], each, run=run) for i, each in enumerate(("0.1", "0.1", "0.1"))]
    lose(store, *three)
    settle(store, None, Decimal("0.1"), "in all")
    shares = store.locked_query("select spent_usd from ledger where spent_usd <> 0 order by 1").rows
    assert [s for (s,) in shares] == [
        Decimal("0.033333333333333"),
        Decimal("0.033333333333333"),
        Decimal("0.033333333333334"),
    ]
    assert balance(store).spent == Decimal("0.1")
    adds_up(store)


def test_all_that_is_older_than_a_day_is_settled_and_the_rest_is_not(store: Store) -> None:
    budget(store, "9")
    lose(store, attempt(store, [key(1)]))
    on_day(store, "2026-10-31")
    lose(store, attempt(store, [key(2)]))
    with pytest.raises(NothingToSettle, match="the oldest dates from 2026-10-31"):
        settle(store, date(2026, 10, 31), None, "invoice of October")
    assert settle(store, date(2026, 11, 1), None, "invoice of October").attempts == 1
    assert balance(store).unresolved == Decimal("0.1")


def test_what_cannot_be_settled_is_said_and_nothing_is_written(store: Store) -> None:
    budget(store, "9")
    with pytest.raises(NothingToSettle, match="nothing is unresolved"):
        settle(store, None, None, "r")
    run = new_id()
    lost, held, other = (
        attempt(store, [key(1)], run=run),
        attempt(store, [key(2)]),
        attempt(store, [key(3)], batch_id="batch_1"),
    )
    lose(store, lost, other)
    before = store.locked_query("select count(*) from ledger").rows
    for what, usd, reason, words in (
        ([held], None, "r", "has nothing unresolved"),
        (["batch_nowhere"], None, "r", "no attempt, batch or run is called 'batch_nowhere'"),
        ([""], None, "r", "too short"),
        ([], None, "r", "name an attempt, a batch or a run"),
        ([lost], None, " \n", "reason is empty"),
        ([lost], Decimal(-1), "r", "no amount"),
        ([lost], Decimal("1e-16"), "r", "no amount"),
        ([lost], Decimal("NaN"), "r", "no amount"),
        ([lost], Decimal("1e40"), "r", "no amount"),
    ):
        with pytest.raises(AlpaSiftError, match=words):
            settle(store, what, usd, reason)
    with ledger.run_lock(store.path), pytest.raises(ledger.AnotherRun):
        settle(store, [lost], None, "r")
    assert store.locked_query("select count(*) from ledger").rows == before


def test_two_batches_that_begin_alike_are_not_settled_by_their_beginning(store: Store) -> None:
    budget(store, "9")
    lose(store, attempt(store, [key(1)], batch_id="batch_aa1"), attempt(store, [key(2)], batch_id="batch_aa2"))
    with pytest.raises(NothingToSettle, match="may be batch_aa1 or batch_aa2"):
        settle(store, ["batch_aa"], None, "r")
    assert settle(store, ["batch_aa1", "batch_aa2"], None, "r").attempts == 2


def test_evidence_that_comes_after_a_settlement_is_booked_and_stops_all_sending(store: Store) -> None:
    budget(store, "9")
    lost = attempt(store, [key(1)], batch_id="batch_1")
    with store.transaction() as con:
        ledger.doubt_attempt(con, lost, "nobody knows")
    assert settle(store, [lost], None, "r").still_open == 1
    answer(store, lost, key(1), 1000, 0)
    assert balance(store).spent == Decimal("0.00005")
    with store.reader() as con:
        assert len(ledger.open_alarms(con)) == 1
    adds_up(store)


def test_the_list_of_what_is_unresolved_says_since_when_and_why(store: Store) -> None:
    budget(store, "9")
    lost = attempt(store, [key(1), key(2)], batch_id="batch_1")
    answer(store, lost, key(1))
    lose(store, lost)
    (one,) = accounts.list_unresolved(store)
    assert (one.attempt_id, one.batch_id, one.model, one.lines, one.usd) == (
        lost,
        "batch_1",
        "gpt-4.1-nano",
        1,
        Decimal("0.1"),
    )
    assert (one.open, one.why, one.backend) == (False, "no answer came", "test")


# -- taking back ------------------------------------------------------------------------------------------------


def test_a_settlement_that_was_a_mistake_is_taken_back_once(store: Store) -> None:
    budget(store, "1")
    lost = attempt(store, [key(1), key(2)])
    lose(store, lost)
    before = balance(store)
    act = settle(store, [lost], Decimal("0.05"), "usage page").act_id
    done = reverse(store, act[:12], "read the wrong day")
    assert (done.entries, done.spent_usd, done.unresolved_usd) == (3, Decimal("-0.05"), Decimal("0.2"))
    assert balance(store) == before
    with pytest.raises(NotReversible, match="taken back already"):
        reverse(store, act, "again")
    with pytest.raises(NotReversible, match="settled again"):
        reverse(store, done.act_id, "it was right after all")
    assert settle(store, [lost], Decimal("0.04"), "the right day").lines == 2
    adds_up(store)


def test_of_a_settlement_one_entry_can_be_taken_back_and_then_the_rest(store: Store) -> None:
    budget(store, "1")
    lost = attempt(store, [key(1)])
    lose(store, lost)
    act = settle(store, [lost], Decimal("0.05"), "usage page").act_id
    ((charge,),) = store.locked_query("select entry_id::varchar from ledger where spent_usd > 0").rows
    reverse(store, charge, "refunded")
    now = balance(store)
    assert (now.spent, now.unresolved) == (0, 0)
    with pytest.raises(NotReversible, match="taken back already"):
        reverse(store, charge, "refunded")
    assert reverse(store, act, "all of it").entries == 1
    assert balance(store).unresolved == Decimal("0.1")


def test_a_charge_that_was_refunded_gives_its_dollars_back_and_holds_nothing(store: Store) -> None:
    budget(store, "1")
    paid = attempt(store, [key(1)])
    answer(store, paid, key(1), 1_000_000, 0)
    ((charge,),) = store.locked_query("select entry_id::varchar from ledger where kind = 'charge'").rows
    reverse(store, charge, "refunded by the provider")
    now = balance(store)
    assert (now.spent, now.reserved, now.unresolved) == (0, 0, 0)
    adds_up(store)


def test_what_follows_from_what_happened_is_not_taken_back_by_hand(store: Store) -> None:
    budget(store, "1")
    lose(store, attempt(store, [key(1)]))
    for kind in ("reserve", "unresolved"):
        ((entry,),) = store.locked_query("select entry_id::varchar from ledger where kind = $k", {"k": kind}).rows
        with pytest.raises(NotReversible, match=f"of the kind {kind}"):
            reverse(store, entry, "r")
    with pytest.raises(NotReversible, match="no entry or settlement is called"):
        reverse(store, "ffff-not", "r")
    with pytest.raises(NotReversible, match="too short"):
        reverse(store, "", "r")
    with pytest.raises(AlpaSiftError, match="reason is empty"):
        reverse(store, entry, "")


# -- where the money went ---------------------------------------------------------------------------------------


def test_where_the_money_went_is_told_by_day_run_model_and_batch(store: Store) -> None:
    budget(store, "9")
    run = new_id()
    batch = attempt(store, [key(1), key(2), key(3)], run=run, batch_id="batch_1")
    answer(store, batch, key(1), 1000, 2, cached=600)
    answer(store, batch, key(2), 500, 3)
    on_day(store, "2026-10-30")
    lose(store, batch)
    call = attempt(store, [key(4)], run=run, model="gpt-6-luna")
    on_day(store, "2026-10-31")
    spent = 1500 * PRICE.input + 5 * PRICE.output
    assert [
        (str(r["day"]), r["questions"], r["replies"], r["input_tokens"], r["cached_tokens"], r["output_tokens"], r["spent_usd"],
         r["reserved_usd"], r["unresolved_usd"])
        for r in store.query("ledger_by_day")
    ] == [
        ("2026-10-30", 3, 2, 1500, 600, 5, spent, 0, Decimal("0.1")),
        ("2026-10-31", 1, 0, 0, 0, 0, 0, Decimal("0.1"), 0),
    ]  # fmt: skip
    assert [(r["model"], r["spent_usd"], r["reserved_usd"]) for r in store.query("ledger_by_model")] == [
        ("gpt-4.1-nano", spent, 0), ("gpt-6-luna", 0, Decimal("0.1")),
    ]  # fmt: skip
    assert [(r["batch_id"], r["attempt_id"] and str(r["attempt_id"]), r["questions"]) for r in store.query("ledger_by_batch")] == [
        ("batch_1", batch, 3), ("", None, 1),
    ]  # fmt: skip
    (by_run,) = store.query("ledger_by_run")
    assert (str(by_run["run_id"]), by_run["questions"], by_run["spent_usd"]) == (run, 4, spent)
    assert by_run["first_at"] == datetime(2026, 10, 30, 12)
    adds_up(store)
    assert call


def test_an_attempt_that_names_no_model_and_has_no_reply_stands_under_no_name(store: Store) -> None:
    budget(store, "1")
    attempt(store, [key(1)], model=None)
    assert [row["model"] for row in store.query("ledger_by_model")] == [""]
    adds_up(store)


def test_tokens_that_were_not_believed_are_not_counted(store: Store) -> None:
    wrong: list[Any] = [
        {"prompt_tokens": -5, "completion_tokens": 1}, {"prompt_tokens": 10**13, "completion_tokens": 1}, {"prompt_tokens": 1.5, "completion_tokens": 1},
        {"prompt_tokens": True, "completion_tokens": 1}, {"prompt_tokens": "9", "completion_tokens": 1}, {"prompt_tokens": 10**40, "completion_tokens": 1},
        {"prompt_tokens": float("nan"), "completion_tokens": 1}, {}, {"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 9}},
        {"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": "x"},
        {"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 1}},
    ]  # fmt: skip
    budget(store, "9")
    one = attempt(store, [key(i) for i in range(len(wrong))])
    with store.transaction() as con:
        ledger.ingest(con, [Reply(one, key(i), "r", "answered", "4", "stop", None, u) for i, u in enumerate(wrong)])
    (row,) = store.query("ledger_by_model")
    assert (row["replies"], row["input_tokens"], row["output_tokens"]) == (len(wrong), 0, 0)
    assert row["unresolved_usd"] == len(wrong) * Decimal("0.1")


def test_local_work_that_can_cost_nothing_is_in_no_table_of_money(store: Store) -> None:
    with store.transaction() as con:
        ledger.reserve(
            con, run_id=new_id(), backend="rules", grader_id=GRADER, keys=[key(1)], ceilings=[Decimal(0)], price=None, facts={}, run_budget=None
        )  # fmt: skip
    for by in BY:
        assert store.query(f"ledger_by_{by}") == []


# -- any order of events ----------------------------------------------------------------------------------------

mills = st.integers(0, 300).map(lambda n: Decimal(n) / 1000)


class AccountsMachine(RuleBasedStateMachine):
    """Random work, settlements, reversals and forks against a model of sums: the accounts after each, every table at the end."""

    @initialize()
    def make(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.store = Store(Path(self.folder.name) / "0.duckdb").create()
        self.count = 0
        self.begin()
        budget(self.store, "5")

    def begin(self) -> None:
        self.spent = Decimal(0)
        self.held: dict[str, dict[str, Decimal]] = {}
        self.owed: dict[str, dict[str, Decimal]] = {}
        self.acts: dict[str, tuple[dict[str, dict[str, Decimal]], Decimal]] = {}

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            adds_up(self.store)
            self.folder.cleanup()

    @rule(lines=st.integers(1, 3), each=mills, batch=st.booleans())
    def send(self, lines: int, each: Decimal, batch: bool) -> None:
        keys = [key(self.count + i) for i in range(lines)]
        self.count += lines
        try:
            one = attempt(self.store, keys, str(each), batch_id=f"batch_{self.count:04}" if batch else None)
        except AlpaSiftError:
            return
        self.held[one] = dict.fromkeys(keys, each)

    @rule(pick=st.integers(0, 99), prompt=st.integers(0, 10**6))
    def reply(self, pick: int, prompt: int) -> None:
        still = [(a, k) for a, lines in self.held.items() for k, usd in lines.items() if usd]
        if still:
            one, k = still[pick % len(still)]
            answer(self.store, one, k, prompt, 0)
            ledger.acknowledge(self.store, "seen")
            del self.held[one][k]
            self.spent += prompt * PRICE.input

    @rule(pick=st.integers(0, 99))
    def close(self, pick: int) -> None:
        if self.held:
            one = list(self.held)[pick % len(self.held)]
            lose(self.store, one)
            lines = {k: usd for k, usd in self.held.pop(one).items() if usd}
            if lines:
                self.owed[one] = lines

    @rule(pick=st.integers(0, 99), everything=st.booleans(), usd=mills)
    def settle(self, pick: int, everything: bool, usd: Decimal) -> None:
        if not self.owed:
            with pytest.raises(NothingToSettle):
                settle(self.store, None, usd, "r")
            return
        names = list(self.owed) if everything else [list(self.owed)[pick % len(self.owed)]]
        done = settle(self.store, None if everything else names, usd, "r")
        taken = {name: self.owed.pop(name) for name in names}
        assert done.unresolved_usd == sum(sum(lines.values()) for lines in taken.values())
        self.spent += usd
        self.acts[done.act_id] = (taken, usd)

    @rule(pick=st.integers(0, 99))
    def take_back(self, pick: int) -> None:
        if self.acts:
            act = list(self.acts)[pick % len(self.acts)]
            reverse(self.store, act, "r")
            taken, usd = self.acts.pop(act)
            self.spent -= usd
            for name, lines in taken.items():
                self.owed[name] = {
                    k: lines.get(k, Decimal(0)) + self.owed.get(name, {}).get(k, Decimal(0)) for k in lines
                }
            with pytest.raises(NotReversible):
                reverse(self.store, act, "r")

    @rule()
    def fork(self) -> None:
        adds_up(self.store)
        path = self.store.path.with_name(f"{int(self.store.path.stem) + 1}.duckdb")
        shutil.copy(self.store.path, path)
        self.store = Store(path)
        accounts.fork(self.store, "r")
        assert balance(self.store).budget == 0
        self.begin()
        budget(self.store, "5")

    @invariant()
    def all_adds_up(self) -> None:
        if hasattr(self, "store"):
            now = balance(self.store)
            assert now.free == 5 - self.spent - now.reserved - now.unresolved
            held = sum((usd for lines in self.held.values() for usd in lines.values()), Decimal(0))
            owed = sum((usd for lines in self.owed.values() for usd in lines.values()), Decimal(0))
            assert (now.spent, now.reserved, now.unresolved) == (self.spent, held, owed)


TestAccountsMachine = AccountsMachine.TestCase
TestAccountsMachine.settings = settings(max_examples=4, stateful_step_count=12, deadline=None)


# -- the provider's books ---------------------------------------------------------------------------------------

NOW = datetime(2026, 11, 9, tzinfo=UTC)


def seconds(day: str) -> int:
    return int(datetime.fromisoformat(f"{day}T00:00:00+00:00").timestamp())


def bucket(day: str, *results: dict[str, Any]) -> dict[str, Any]:
    return {"object": "bucket", "start_time": seconds(day), "end_time": seconds(day) + 86400, "results": list(results)}


def used(requests: int, tokens: int, output: int, cached: int = 0, model: str = "gpt-4.1-nano-2025-04-14", batch: bool | None = True) -> dict[str, Any]:  # fmt: skip
    return {
        "object": "organization.usage.completions.result", "input_tokens": tokens, "output_tokens": output, "input_cached_tokens": cached,
        "input_audio_tokens": 0, "output_audio_tokens": 0, "num_model_requests": requests, "project_id": None, "user_id": None,
        "api_key_id": None, "model": model, "batch": batch, "service_tier": None,
    }  # fmt: skip


def cost(usd: Any, item: str | None = None) -> dict[str, Any]:
    return {
        "object": "organization.costs.result", "amount": {"value": usd, "currency": "usd"}, "line_item": item, "project_id": None, "quantity": None
    }  # fmt: skip


def page(*buckets: dict[str, Any], more: bool = False) -> dict[str, Any]:
    return {"object": "page", "data": list(buckets), "has_more": more, "next_page": "p2" if more else None}


def write(store: Store, content: Any, name: str = "usage.json") -> Path:
    path = store.path.with_name(name)
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def compare(store: Store, content: Any, project: str | None = None) -> Reconciled:
    return reconcile(store, write(store, content), project, NOW)


def a_batch(store: Store, *, lost: bool = False) -> str:
    """Two answered rows of 1,500 and 5 tokens on 30 October, and a third that was never seen."""
    budget(store, "9")
    one = attempt(store, [key(1), key(2), *([key(3)] if lost else [])], "0.001", batch_id="batch_1")
    answer(store, one, key(1), 1000, 2, cached=600)
    answer(store, one, key(2), 500, 3)
    lose(store, one)
    on_day(store, "2026-10-30")
    return one


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
        f'alpasift ledger settle {one} --usd 0.0000254 --reason "usage of 2026-10-30 as the provider counts it"',
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
        f'alpasift ledger settle {one} --reason "usage of 2026-10-30 as the provider counts it"',
    )
    assert compare(store, page(*told["data"][:2])).suggestions == ()  # a batch may be counted up to two days later
    soon = reconcile(store, write(store, told), now=datetime(2026, 11, 2, tzinfo=UTC))
    assert soon.suggestions == ()
    assert any("look again in a day" in remark for remark in soon.notes)


def test_what_is_beyond_our_unresolved_dollars_is_not_explained_and_nothing_is_suggested(store: Store) -> None:
    a_batch(store, lost=True)
    found = compare(
        store, page(bucket("2026-10-30", used(90, 150000, 50, 600)), bucket("2026-10-31"), bucket("2026-11-01"))
    )
    assert [line.verdict for line in found.lines] == ["not_explained"]
    assert found.suggestions == ()
    assert any("used by somebody else" in remark for remark in found.notes)


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
        f'alpasift ledger settle {one} --usd 0.000424 --reason "usage of 2026-10-30 as the provider counts it"',
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
        "1793318400,1793404800,2026-10-30T00:00:00+00:00,2026-10-31T00:00:00+00:00,0.000075000000000000000000000000,usd,\"gpt-4.1-nano, input\",p\n"
        "1793318400,1793404800,2026-10-30T00:00:00+00:00,2026-10-31T00:00:00+00:00,0.000001000000000000000000000000,usd,\"gpt-4.1-nano, output\",p\n"
    )  # fmt: skip
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
    assert "the file holds 2 projects; --project proj_a looks at one" in compare(store, mixed).notes
    assert compare(store, mixed, "proj_a").lines[0].verdict == "equal"
    with pytest.raises(UsageFileError, match="has no project 'proj_c'; it has proj_a, proj_b"):
        compare(store, mixed, "proj_c")


def test_work_of_the_ledger_that_this_one_was_forked_from_is_not_compared(store: Store) -> None:
    from batcher import identity

    a_batch(store)
    with store.transaction() as con:
        identity.claim(con, store.path)
    copy = Store(store.path.with_name("copy.duckdb"))
    shutil.copy(store.path, copy.path)
    accounts.fork(copy, "r")
    assert compare(copy, page(bucket("2026-10-30"))).lines == ()
    assert compare(store, page(bucket("2026-10-30"))).lines[0].verdict == "ours_more"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("{", "no JSON"),
        ('{"a": 1}', "no page of OpenAI's usage or costs API"),
        ("[1]", "page 1 is no page"),
        ("[" * 50_000, "no JSON"),
        ('{"data": [7]}', "bucket 1 is no object"),
        ('{"data": []}', "covers no day"),
        ('{"data": [{"start_time": "soon", "results": []}]}', "'soon' is no day"),
        ('{"data": [{"start_time": 1e99, "results": []}]}', "is no day"),
        ('{"data": [{"start_time": 0, "end_time": 99999999999, "results": []}]}', "export by day"),
        ('{"data": [{"start_time": 0, "results": 3}]}', "no list of results"),
        ('{"data": [{"start_time": 0, "results": [{"input_tokens": -1}]}]}', "input_tokens is '-1', no count"),
        ('{"data": [{"start_time": 0, "results": [{"input_tokens": true}]}]}', "no count"),
        ('{"data": [{"start_time": 0, "results": [{"input_tokens": NaN}]}]}', "no JSON"),
        ('{"data": [{"start_time": 0, "results": [{"amount": {"value": 1, "currency": "eur"}}]}]}', "the currency is 'eur'"),
        ('{"data": [{"start_time": 0, "results": [{"amount": {"value": "much", "currency": "usd"}}]}]}', "'much', no dollars"),
        ('{"data": [{"start_time": 0, "results": [{"amount": {"value": 1e999999, "currency": "usd"}}]}]}', "no dollars"),
        ('{"data": [{"start_time": 0, "results": [{"amount": 5}]}]}', "no object with value and currency"),
        ('{"data": [{"start_time": 0, "results": [{"model": 5}]}]}', "the model is 5"),
        ('{"data": [{"start_time": 0, "results": [{"model": "m"}]}]}', "counts nothing"),
        ('{"data": [{"start_time": 0, "results": [{"input_tokens": 1, "batch": "perhaps"}]}]}', "batch is 'perhaps'"),
        ('{"data": [{"start_time": 0, "results": [{"input_tokens": 1}, {"output_tokens": 1}]}]}', "only 1 of 2 lines say input_tokens"),
        ("model,input_tokens\nm,5\n", "names no day"),
        ("date,colour\n2026-10-30,red\n", "or nothing to compare"),
        ("date,input_tokens\n2026-10-30,1,2\n", ":2: 3 cells under a header of 2"),
        ("date,input_tokens\n2026-10-30,many\n", ":2: input_tokens is 'many'"),
        ("date,input_tokens\n30.10.26,5\n", "'30.10.26' is no day"),
        ("date,cost,currency\n2026-10-30,5,CHF\n", "the currency is 'CHF'"),
        ('date,input_tokens\n"2026-10-30,5\n', "neither JSON nor CSV"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_usage_export_is_refused_in_one_line(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "usage"
    path.write_text(content, "utf-8")
    with pytest.raises(UsageFileError) as refused:
        accounts.read_usage(path)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


def test_a_file_that_cannot_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageFileError, match="cannot be read"):
        accounts.read_usage(tmp_path / "nowhere.json")
    with pytest.raises(UsageFileError, match="cannot be read"):
        accounts.read_usage(tmp_path)
    (tmp_path / "b").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageFileError, match="not text in UTF-8"):
        accounts.read_usage(tmp_path / "b")


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    (tmp_path / "u.csv").write_bytes(b"\xef\xbb\xbfdate,requests\r\n2026-10-30,4\r\n")
    (only,) = accounts.read_usage(tmp_path / "u.csv").buckets
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
    assert accounts.read_usage(tmp_path / "u.csv").buckets[0].day == date(2026, 10, day)


# -- the commands -----------------------------------------------------------------------------------------------


Said = Callable[..., Ran]


@pytest.fixture
def said(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Said:
    """Run `alpasift ledger ARGUMENTS` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("ALPASIFT_DB", "ALPASIFT_USD_PER_HOUR"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: str) -> Ran:
        mask, handler = os.umask(0o077), signal.getsignal(signal.SIGTERM)
        capsys.readouterr()
        try:
            code = run(["ledger", *arguments])
        finally:
            os.umask(mask)
            signal.signal(signal.SIGTERM, handler)
        return Ran(code, *capsys.readouterr())

    return call


def test_what_a_person_does_with_an_unresolved_batch(said: Said, store: Store, tmp_path: Path) -> None:
    one = a_batch(store, lost=True)
    assert "`alpasift ledger unresolved` tells what" in said().out
    (row,) = said("unresolved", "--json").json
    assert (row["attempt_id"], row["batch_id"], row["unresolved_usd"], row["lines"]) == (
        one,
        "batch_1",
        "0.001000000000000",
        1,
    )
    (tmp_path / "u.json").write_text(
        json.dumps(page(bucket("2026-10-30", used(3, 2000, 7, 600)), bucket("2026-10-31"), bucket("2026-11-01")))
    )
    seen = said("reconcile", "u.json")
    assert seen.code == 0, seen.err
    assert "explained" in seen.out
    assert f"alpasift ledger settle {one} --usd 0.0000254" in seen.err
    done = said("settle", "batch_1", "--usd", "0.0000254", "--reason", "usage page")
    assert (done.code, done.out) == (0, "")
    assert "settled 1 line of 1 attempt: $0.0010 is no longer unresolved, $0.000025 of it was charged" in done.err
    assert "unresolved $0.0000" in done.err
    act = done.err.split("alpasift ledger reverse ")[1].split()[0]
    back = said("reverse", act, "--reason", "wrong batch")
    assert "2 entries taken back" in back.err
    entries = said("entries", "--attempt", one[:8], "--json").json
    kinds = "reserve charge charge unresolved settled settled reversed reversed"
    assert [entry["kind"] for entry in entries] == kinds.split()
    assert said("entries", "--limit", "1", "--csv").out.count("\n") == 2


def test_where_the_money_went_is_printed_as_a_table_as_json_and_as_csv(said: Said, store: Store) -> None:
    a_batch(store, lost=True)
    answer(store, attempt(store, [key(9)]), key(9), 10, 0, model='=HYPERLINK("http://x")\x1b[31m')
    table = said("--by", "day")
    assert table.code == 0
    assert table.out.splitlines()[0].split()[:3] == ["day", "questions", "replies"]
    assert "\x1b" not in said("--by", "model").out
    by_batch = said("--by", "batch", "--json").json
    assert [(row["batch_id"], row["spent_usd"]) for row in by_batch] == [
        ("batch_1", "0.000076000000000"),
        ("", "0.000000500000000"),
    ]
    models = list(csv.DictReader(io.StringIO(said("--by", "model", "--csv").out)))
    assert [row["model"][:12] for row in models] == ["gpt-4.1-nano", "'=HYPERLINK("]
    assert sum(Decimal(row["spent_usd"]) for row in models) == balance(store).spent
    (whole,) = csv.DictReader(io.StringIO(said("--csv").out))
    assert Decimal(whole["budget_usd"]) == 9
    assert "machine_seconds" in whole


@pytest.mark.parametrize(
    "arguments",
    [
        ["settle", "--reason", "r"], ["settle", "abcd", "--all", "--reason", "r"], ["settle", "--all"], ["settle", "--all", "--reason", " "],
        ["settle", "--all", "--usd", "much", "--reason", "r"], ["settle", "--older-than", "soon", "--reason", "r"], ["--json", "unresolved"],
        ["reverse", "abcdef"], ["reconcile"], ["--by", "colour"],
    ],
)  # fmt: skip
def test_a_command_that_is_incomplete_is_a_usage_error_and_needs_no_database(
    said: Said, tmp_path: Path, arguments: list[str]
) -> None:
    assert said(*arguments).code == 2
    assert list(tmp_path.iterdir()) == []


def test_commands_with_nothing_to_show_say_so(said: Said, store: Store) -> None:
    assert said("unresolved") == Ran(0, "", "nothing is unresolved\n")
    assert said("unresolved", "--json") == Ran(0, "[]\n", "")
    assert said("unresolved", "--csv").out.startswith("attempt_id,batch_id,")
    assert said("--by", "day") == Ran(0, "", "no rows\n")
    assert said("entries") == Ran(0, "", "no rows\n")
    assert said("entries", "--csv").out.startswith("recorded_at,kind,")
    assert said("settle", "--all", "--reason", "r") == Ran(1, "", "alpasift: nothing is unresolved\n")
    nowhere = said("reconcile", "no.json")
    assert nowhere.code == 1
    assert "cannot be read" in nowhere.err


def test_a_settlement_through_the_program_itself(alpasift: Callable[..., Ran], store: Store) -> None:
    one = a_batch(store, lost=True)
    done = alpasift("ledger", "settle", one[:8], "--reason", "not on the invoice")
    assert (done.code, done.out) == (0, "")
    assert "$0.0010 is no longer unresolved" in done.err
    assert balance(store).unresolved == 0
