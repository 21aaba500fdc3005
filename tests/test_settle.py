"""What a person books in the ledger: settling, taking back; where the money went; and the commands for it."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from alpasift.batcher.cli import run
from alpasift.batcher.money import attempts, charges, ledger, reservations
from alpasift.batcher.money.copies import fork
from alpasift.batcher.money.settle import NothingToSettle, NotReversible, list_unresolved, reverse, settle
from alpasift.batcher.store import Store, lock, new_id
from alpasift.graders import AlpaSiftError, Reply
from conftest import Ran, new_store
from ledger_harness import (
    BY,
    GRADER,
    PRICE,
    a_batch,
    adds_up,
    answer,
    attempt,
    balance,
    bucket,
    budget,
    key,
    lose,
    on_day,
    page,
    used,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "alpasift.duckdb")


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
        (["batch_nowhere"], None, "r", "no attempt, batch or run has the id 'batch_nowhere'"),
        ([""], None, "r", "too short"),
        ([], None, "r", "give an attempt, a batch or a run"),
        ([lost], None, " \n", "reason is empty"),
        ([lost], Decimal(-1), "r", "not an amount"),
        ([lost], Decimal("1e-16"), "r", "not an amount"),
        ([lost], Decimal("NaN"), "r", "not an amount"),
        ([lost], Decimal("1e40"), "r", "not an amount"),
    ):
        with pytest.raises(AlpaSiftError, match=words):
            settle(store, what, usd, reason)
    with lock.run_lock(store.path), pytest.raises(lock.AnotherRun):
        settle(store, [lost], None, "r")
    assert store.locked_query("select count(*) from ledger").rows == before


def test_two_batches_that_begin_alike_are_not_settled_by_their_beginning(store: Store) -> None:
    budget(store, "9")
    lose(store, attempt(store, [key(1)], batch_id="batch_aa1"), attempt(store, [key(2)], batch_id="batch_aa2"))
    with pytest.raises(NothingToSettle, match="matches batch_aa1 and batch_aa2"):
        settle(store, ["batch_aa"], None, "r")
    assert settle(store, ["batch_aa1", "batch_aa2"], None, "r").attempts == 2


def test_evidence_that_comes_after_a_settlement_is_booked_and_stops_all_sending(store: Store) -> None:
    budget(store, "9")
    lost = attempt(store, [key(1)], batch_id="batch_1")
    with store.transaction() as con:
        attempts.mark_unconfirmed(con, lost, "nobody knows")
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
    (one,) = list_unresolved(store)
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
    with pytest.raises(NotReversible, match="reversed already"):
        reverse(store, act, "again")
    with pytest.raises(NotReversible, match="settle the amount again"):
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
    with pytest.raises(NotReversible, match="reversed already"):
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
    with pytest.raises(NotReversible, match="no entry or settlement has the id"):
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
        (
            str(r["day"]),
            r["questions"],
            r["replies"],
            r["input_tokens"],
            r["cached_tokens"],
            r["output_tokens"],
            r["spent_usd"],
            r["reserved_usd"],
            r["unresolved_usd"],
        )
        for r in store.query("ledger_by_day")
    ] == [
        ("2026-10-30", 3, 2, 1500, 600, 5, spent, 0, Decimal("0.1")),
        ("2026-10-31", 1, 0, 0, 0, 0, 0, Decimal("0.1"), 0),
    ]
    assert [(r["model"], r["spent_usd"], r["reserved_usd"]) for r in store.query("ledger_by_model")] == [
        ("gpt-4.1-nano", spent, 0),
        ("gpt-6-luna", 0, Decimal("0.1")),
    ]
    assert [
        (r["batch_id"], r["attempt_id"] and str(r["attempt_id"]), r["questions"])
        for r in store.query("ledger_by_batch")
    ] == [
        ("batch_1", batch, 3),
        ("", None, 1),
    ]
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
        {"prompt_tokens": -5, "completion_tokens": 1},
        {"prompt_tokens": 10**13, "completion_tokens": 1},
        {"prompt_tokens": 1.5, "completion_tokens": 1},
        {"prompt_tokens": True, "completion_tokens": 1},
        {"prompt_tokens": "9", "completion_tokens": 1},
        {"prompt_tokens": 10**40, "completion_tokens": 1},
        {"prompt_tokens": float("nan"), "completion_tokens": 1},
        {},
        {"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 9}},
        {"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": "x"},
        {
            "prompt_tokens": 1,
            "completion_tokens": 1,
            "prompt_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 1},
        },
    ]
    budget(store, "9")
    one = attempt(store, [key(i) for i in range(len(wrong))])
    with store.transaction() as con:
        charges.ingest(con, [Reply(one, key(i), "r", "answered", "4", "stop", None, u) for i, u in enumerate(wrong)])
    (row,) = store.query("ledger_by_model")
    assert (row["replies"], row["input_tokens"], row["output_tokens"]) == (len(wrong), 0, 0)
    assert row["unresolved_usd"] == len(wrong) * Decimal("0.1")


def test_local_work_that_can_cost_nothing_is_in_no_table_of_money(store: Store) -> None:
    with store.transaction() as con:
        reservations.reserve(
            con,
            run_id=new_id(),
            backend="rules",
            grader_id=GRADER,
            keys=[key(1)],
            ceilings=[Decimal(0)],
            price=None,
            facts={},
            run_budget=None,
        )
    for by in BY:
        assert store.query(f"ledger_by_{by}") == []


# -- any order of events ----------------------------------------------------------------------------------------

mills = st.integers(0, 300).map(lambda n: Decimal(n) / 1000)


class AccountsMachine(RuleBasedStateMachine):
    """Random work, settlements, reversals and forks against a model of sums: accounts after each, tables at the end."""

    @initialize()
    def make(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.store = new_store(Path(self.folder.name) / "0.duckdb")
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
        fork(self.store, "r")
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
    assert "`alpasift ledger unresolved` lists it" in said().out
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
    assert "2 entries reversed" in back.err
    entries = said("entries", "--attempt", one[:8], "--json").json
    kinds = "reserve charge charge unresolved settled settled reversed reversed"
    assert [entry["kind"] for entry in entries] == kinds.split()
    assert said("entries", "--limit", "1", "--csv").out.count("\n") == 2


def test_where_the_money_went_is_printed_as_a_table_as_json_and_as_csv(said: Said, store: Store) -> None:
    a_batch(store, lost=True)
    answer(store, attempt(store, [key(9)]), key(9), 10, 0, model='=HYPERLINK("http://x")\x1b[31m')
    table = said("--by", "day")
    assert table.code == 0
    assert table.out.splitlines()[0].split()[:3] == ["day", "requests", "replies"]
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
        ["settle", "--reason", "r"],
        ["settle", "abcd", "--all", "--reason", "r"],
        ["settle", "--all"],
        ["settle", "--all", "--reason", " "],
        ["settle", "--all", "--usd", "much", "--reason", "r"],
        ["settle", "--older-than", "soon", "--reason", "r"],
        ["--json", "unresolved"],
        ["reverse", "abcdef"],
        ["reconcile"],
        ["--by", "colour"],
    ],
)
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
