"""The ledger: the sum rule after every step, the cap, and what happens to money whose answer nobody saw."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from alpasift.batcher.money import attempts, charges, dollars, ledger, reservations
from alpasift.batcher.store import Store, hash_id, lock, new_id
from alpasift.graders import AlpaSiftError, BudgetExceeded, Reply
from alpasift.graders.api.prices import UsageError, ceiling, charge, per_million
from conftest import cli_environment, new_store

PRICE = per_million("0.0025", "0.01")  # 2.5e-9 dollars a token: finer than nine decimals
RUN = new_id()
GRADER = new_id()


def reserve(store: Store, keys: list[str], each: Decimal, run_id: str = RUN, run_budget: Decimal | None = None) -> str:
    with store.transaction() as con:
        return reservations.reserve(
            con,
            run_id=run_id,
            backend="test",
            grader_id=GRADER,
            keys=keys,
            ceilings=[each] * len(keys),
            price=PRICE.frozen(),
            facts={"outlives": False},
            run_budget=run_budget,
        )


def ingest(store: Store, *replies: Reply) -> int:
    with store.transaction() as con:
        return len(charges.ingest(con, replies))


def balance(store: Store) -> ledger.Balance:
    with store.reader() as con:
        return ledger.balance(con)


def budget(store: Store, usd: str) -> None:
    with store.transaction() as con:
        ledger.set_budget(con, Decimal(usd))


def answered(attempt: str, key: str, prompt: int = 1, completion: int = 1, request_id: str = "r") -> Reply:
    return Reply(
        attempt,
        key,
        request_id,
        "answered",
        "4",
        "stop",
        usage={"prompt_tokens": prompt, "completion_tokens": completion},
    )


def key(i: int) -> str:
    return hash_id("key", str(i))


# -- prices -----------------------------------------------------------------------------------------------------


def test_a_charge_is_exact_to_the_last_decimal() -> None:
    assert charge(PRICE, {"prompt_tokens": 1, "completion_tokens": 0}) == Decimal("2.5e-9")
    assert charge(PRICE, {"prompt_tokens": 333, "completion_tokens": 7}) == Decimal("0.0000009025")


def test_cached_and_written_tokens_are_parts_of_the_prompt() -> None:
    from dataclasses import replace

    price = replace(PRICE, cached_input=Decimal("1e-9"), cache_write=Decimal("4e-9"))
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 0,
        "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 5},
    }
    assert charge(price, usage) == Decimal("2.5e-9") + 4 * Decimal("1e-9") + 5 * Decimal("4e-9")


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        [],
        {"prompt_tokens": -1, "completion_tokens": 1},
        {"prompt_tokens": 1.5, "completion_tokens": 1},
        {"prompt_tokens": True, "completion_tokens": 1},
        {"prompt_tokens": "9", "completion_tokens": 1},
        {"prompt_tokens": 10**13, "completion_tokens": 1},
        {"prompt_tokens": 1},
        {"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": "x"},
        {"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 2}},
        {
            "prompt_tokens": 2,
            "completion_tokens": 1,
            "prompt_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 2},
        },
    ],
)
def test_usage_that_does_not_hold_together_is_not_believed(usage: object) -> None:
    with pytest.raises(UsageError):
        charge(PRICE, usage)  # type: ignore[arg-type]


def test_a_ceiling_is_never_below_what_the_same_tokens_cost() -> None:
    assert ceiling(PRICE, 1000, 8) >= charge(PRICE, {"prompt_tokens": 1000, "completion_tokens": 8})


@pytest.mark.parametrize("text", ["five", "", "-1", "nan", "inf", "1e99", "1e-16"])
def test_what_is_no_amount_of_dollars_is_refused(text: str) -> None:
    with pytest.raises(AlpaSiftError, match="not an amount of dollars"):
        dollars.parse_usd(text)


def test_dollars_are_shown_with_enough_digits_to_see_them() -> None:
    assert dollars.show_usd(Decimal("1.2")) == "$1.2000"
    assert dollars.show_usd(Decimal("2.5e-9")) == "$0.0000000025"
    assert dollars.show_usd(Decimal("-0.5"), 2) == "-$0.50"


# -- reserve, charge, release, unresolved -----------------------------------------------------------------------


def test_a_reservation_becomes_what_the_answer_cost(store: Store) -> None:
    budget(store, "1")
    attempt = reserve(store, [key(1), key(2)], Decimal("0.1"))
    assert balance(store).reserved == Decimal("0.2")
    assert ingest(store, answered(attempt, key(1), 100, 2)) == 1
    now = balance(store)
    assert (now.spent, now.reserved, now.unresolved) == (Decimal("2.7e-7"), Decimal("0.1"), 0)
    assert now.free == Decimal("1") - Decimal("2.7e-7") - Decimal("0.1")


def test_reading_the_same_results_again_is_a_no_op(store: Store) -> None:
    budget(store, "1")
    attempt = reserve(store, [key(1)], Decimal("0.1"))
    reply = answered(attempt, key(1))
    assert ingest(store, reply, reply) == 1
    before = balance(store)
    assert ingest(store, reply) == 0
    assert balance(store) == before


def test_what_was_never_seen_stays_unresolved_at_its_ceiling(store: Store) -> None:
    budget(store, "1")
    attempt = reserve(store, [key(1), key(2)], Decimal("0.1"))
    ingest(store, answered(attempt, key(1), 0, 1))
    with store.transaction() as con:
        assert attempts.close_orphaned_attempts(con) == 1
        assert attempts.close_orphaned_attempts(con) == 0
    now = balance(store)
    assert (now.spent, now.reserved, now.unresolved) == (Decimal("1e-8"), 0, Decimal("0.1"))


def test_evidence_that_comes_late_settles_what_was_unresolved(store: Store) -> None:
    budget(store, "1")
    attempt = reserve(store, [key(1)], Decimal("0.1"))
    with store.transaction() as con:
        attempts.close_attempt(con, attempt)
    ingest(store, answered(attempt, key(1), 0, 5))
    now = balance(store)
    assert (now.spent, now.reserved, now.unresolved) == (Decimal("5e-8"), 0, 0)


def test_a_free_rejection_gives_the_money_back_and_bad_usage_does_not(store: Store) -> None:
    budget(store, "1")
    attempt = reserve(store, [key(1), key(2), key(3)], Decimal("0.1"))
    ingest(
        store,
        Reply(attempt, key(1), "a", "rejected_free", error="backend_error: 400"),
        Reply(attempt, key(2), "b", "answered", "4", usage={"prompt_tokens": -5, "completion_tokens": 1}),
        Reply(attempt, key(3), "c", "unknown"),
    )
    now = balance(store)
    assert (now.spent, now.reserved, now.unresolved) == (0, 0, Decimal("0.2"))


def test_the_cap_is_of_the_database_and_nothing_is_written_when_it_would_be_passed(store: Store) -> None:
    budget(store, "0.25")
    reserve(store, [key(1), key(2)], Decimal("0.1"))
    with pytest.raises(BudgetExceeded, match=r"may cost up to \$0.1000 and \$0.0500 of the \$0.25 budget is free"):
        reserve(store, [key(3)], Decimal("0.1"), run_id=new_id())
    assert balance(store).reserved == Decimal("0.2")
    assert store.locked_query("select count(*) from attempts").rows == [(1,)]


def test_a_run_budget_caps_one_run_only(store: Store) -> None:
    budget(store, "1")
    one, two = new_id(), new_id()
    reserve(store, [key(1)], Decimal("0.1"), one, Decimal("0.15"))
    with pytest.raises(BudgetExceeded, match="run-budget"):
        reserve(store, [key(2)], Decimal("0.1"), one, Decimal("0.15"))
    reserve(store, [key(2)], Decimal("0.1"), two, Decimal("0.15"))


def test_lowering_the_budget_makes_free_negative_and_cancels_nothing(store: Store) -> None:
    budget(store, "1")
    reserve(store, [key(1)], Decimal("0.5"))
    budget(store, "0.2")
    now = balance(store)
    assert (now.free, now.reserved) == (Decimal("-0.3"), Decimal("0.5"))
    with pytest.raises(BudgetExceeded):
        reserve(store, [key(2)], Decimal("0.000001"))


def test_without_a_budget_nothing_that_costs_is_reserved_and_free_work_is(store: Store) -> None:
    with pytest.raises(ledger.NoBudget, match="--budget 5"):
        reserve(store, [key(1)], Decimal("0.1"))
    reserve(store, [key(1)], Decimal(0))
    assert balance(store) == ledger.Balance(None, Decimal(0), Decimal(0), Decimal(0))


def test_a_charge_above_its_ceiling_is_booked_in_full_and_stops_all_sending(store: Store) -> None:
    budget(store, "1")
    attempt = reserve(store, [key(1)], Decimal("1e-9"))
    ingest(store, answered(attempt, key(1), 1000, 1000))
    assert balance(store).spent == Decimal("0.0000125")
    with pytest.raises(ledger.LedgerAlarm, match="above its ceiling"):
        reserve(store, [key(2)], Decimal("0.1"))
    assert ledger.acknowledge(store, "looked at it") == 1
    reserve(store, [key(2)], Decimal("0.1"))


def test_work_that_was_not_asked_for_is_booked_even_past_the_cap_and_stops_all_sending(store: Store) -> None:
    budget(store, "0.0000001")
    attempt = reserve(store, [key(1)], Decimal("1e-7"))
    ingest(
        store,
        answered(attempt, key(1), 1, 1, "first"),
        answered(attempt, key(1), 1, 1, "second"),
        answered(attempt, key(9), 50, 1),
    )
    now = balance(store)
    assert now.spent == 2 * Decimal("1.25e-8") + Decimal("1.35e-7")
    assert now.free is not None and now.free < 0
    with store.reader() as con, pytest.raises(ledger.LedgerAlarm, match="not requested"):
        ledger.check_alarms(con)


def test_an_attempt_asks_a_question_once_and_its_ceilings_are_amounts(store: Store) -> None:
    budget(store, "1")
    with pytest.raises(AlpaSiftError, match="once"):
        reserve(store, [key(1), key(1)], Decimal("0.1"))
    with pytest.raises(AlpaSiftError, match="ceiling"):
        reserve(store, [key(1)], Decimal("-1"))


def test_a_reply_to_an_attempt_of_another_ledger_is_refused(store: Store) -> None:
    with pytest.raises(AlpaSiftError, match="not in this ledger"):
        ingest(store, answered(new_id(), key(1)))


def test_the_second_process_at_a_ledger_is_told_who_holds_it(store: Store) -> None:
    with lock.run_lock(store.path):
        assert lock.holder_of_run_lock(store.path) == os.getpid()
        code = "from alpasift.batcher.store.lock import run_lock; from pathlib import Path\n"
        code += f"with run_lock(Path({str(store.path)!r})): pass"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=cli_environment())
        assert f"process {os.getpid()} is already working" in done.stderr
    assert lock.holder_of_run_lock(store.path) is None
    with lock.run_lock(store.path):
        pass


def test_a_reservation_is_rounded_up_and_a_charge_is_not(store: Store) -> None:
    budget(store, "1")
    reserve(store, [key(1)], Decimal("0.1000000000000001"))
    assert balance(store).reserved == Decimal("0.100000000000001")


def test_an_answer_after_an_unknown_in_the_same_chunk_settles_it(store: Store) -> None:
    budget(store, "1")
    attempt = reserve(store, [key(1)], Decimal("0.1"))
    ingest(store, Reply(attempt, key(1), "a", "unknown"), answered(attempt, key(1), 0, 1, "b"))
    now = balance(store)
    assert (now.spent, now.reserved, now.unresolved) == (Decimal("1e-8"), 0, 0)
    with store.reader() as con:
        assert ledger.open_alarms(con) == []


def test_an_answer_that_costs_nothing_at_a_price_of_nothing_is_no_alarm(store: Store) -> None:
    budget(store, "1")
    free = per_million("0", "0").frozen()
    with store.transaction() as con:
        attempt = reservations.reserve(
            con,
            run_id=RUN,
            backend="test",
            grader_id=GRADER,
            keys=[key(1)],
            ceilings=[Decimal(0)],
            price=free,
            facts={},
            run_budget=None,
        )
    ingest(store, answered(attempt, key(1), 500, 5))
    with store.reader() as con:
        assert ledger.open_alarms(con) == []


def test_work_that_outlives_a_process_is_not_closed_with_the_dead(store: Store) -> None:
    budget(store, "1")
    with store.transaction() as con:
        reservations.reserve(
            con,
            run_id=RUN,
            backend="test",
            grader_id=GRADER,
            keys=[key(1)],
            ceilings=[Decimal("0.1")],
            price=PRICE.frozen(),
            facts={"outlives": True},
            run_budget=None,
        )
        assert attempts.close_orphaned_attempts(con) == 0
    assert balance(store).reserved == Decimal("0.1")


def test_the_steps_of_an_attempt_are_in_order_whatever_the_clock_says(store: Store) -> None:
    attempt = reserve(store, [key(1)], Decimal(0))
    with store.transaction() as con:
        attempts.step(con, attempt, "uploaded", {"file": "f-1"})
        attempts.step(con, attempt, "created")
        con.execute("update attempt_steps set recorded_at = recorded_at - interval 1 day where state = 'created'")
    assert store.query("open_attempts")[0]["state"] == "created"


def test_text_that_is_no_unicode_is_kept_written_out(store: Store) -> None:
    budget(store, "1")
    attempt = reserve(store, [key(1)], Decimal("0.1"))
    ingest(
        store,
        Reply(
            attempt,
            key(1),
            "r",
            "answered",
            "4\ud83d",
            usage={"prompt_tokens": 1, "completion_tokens": 1},
            raw="\udcff",
        ),
    )
    assert store.locked_query("select text, raw from replies").rows == [("4\\ud83d", "\\udcff")]
    assert balance(store).spent > 0


# -- any order of events ----------------------------------------------------------------------------------------

cents = st.integers(0, 400).map(lambda n: Decimal(n) / 1000)
tokens = st.integers(0, 10**7)


one_reply = st.tuples(
    st.integers(0, 2),
    st.sampled_from("ab"),
    tokens,
    tokens,
    st.sampled_from(["answered", "rejected_free", "unknown", "bad_usage"]),
)


class LedgerMachine(RuleBasedStateMachine):
    """Random events against the ledger and against a model of ten lines; after each the accounts must agree."""

    attempts: Bundle[tuple[str, tuple[str, ...]]] = Bundle("attempts")

    @initialize(usd=cents)
    def make(self, usd: Decimal) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.store = new_store(Path(self.folder.name) / "l.duckdb")
        self.budget = usd
        budget(self.store, str(usd))
        self.spent = Decimal(0)
        self.held: dict[tuple[str, str], Decimal] = {}
        self.owed: dict[tuple[str, str], Decimal] = {}
        self.ceilings: dict[tuple[str, str], Decimal] = {}
        self.seen: set[tuple[str, str, str]] = set()
        self.stopped = False
        self.count = 0

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()

    @property
    def free(self) -> Decimal:
        return self.budget - self.spent - sum(self.held.values()) - sum(self.owed.values())

    @rule(usd=cents)
    def change_budget(self, usd: Decimal) -> None:
        budget(self.store, str(usd))
        self.budget = usd

    @rule(target=attempts, lines=st.integers(1, 3), each=cents)
    def open(self, lines: int, each: Decimal) -> tuple[str, tuple[str, ...]]:
        keys = [key(self.count + i) for i in range(lines)]
        self.count += lines
        try:
            attempt = reserve(self.store, keys, each)
        except BudgetExceeded:
            assert lines * each > self.free
            return "", ()
        except ledger.LedgerAlarm:
            assert self.stopped
            return "", ()
        assert not each or (lines * each <= self.free and not self.stopped)
        for k in keys:
            self.ceilings[attempt, k] = each
            if each:
                self.held[attempt, k] = each
        return attempt, tuple(keys)

    @rule(attempt=attempts, some=st.lists(one_reply, min_size=1, max_size=3))
    def replies(self, attempt: tuple[str, tuple[str, ...]], some: list[tuple[int, str, int, int, str]]) -> None:
        """Replies of one attempt that are ingested together, as a chunk is."""
        identity, keys = attempt
        if not keys:
            return
        chunk, expected = [], 0
        for line, request, prompt, completion, outcome in some:
            k = keys[line % len(keys)]
            usage = {"prompt_tokens": -1 if outcome == "bad_usage" else prompt, "completion_tokens": completion}
            sent = "answered" if outcome == "bad_usage" else outcome
            chunk.append(Reply(identity, k, request, sent, "4", usage=usage))  # type: ignore[arg-type]
            if (identity, k, request) not in self.seen:
                self.seen.add((identity, k, request))
                expected += 1
                self._expect((identity, k), prompt, completion, outcome)
        assert ingest(self.store, *chunk) == expected

    def _expect(self, place: tuple[str, str], prompt: int, completion: int, outcome: str) -> None:
        hold, owed = self.held.pop(place, Decimal(0)), self.owed.pop(place, Decimal(0))
        if outcome == "answered":
            usd = prompt * PRICE.input + completion * PRICE.output
            self.spent += usd
            self.stopped |= usd > self.ceilings[place] or (not hold and not owed and usd > 0)
        elif outcome in ("unknown", "bad_usage") and hold + owed:
            self.owed[place] = hold + owed

    @rule(attempt=consumes(attempts))
    def close(self, attempt: tuple[str, tuple[str, ...]]) -> None:
        if attempt[0]:
            with self.store.transaction() as con:
                attempts.close_attempt(con, attempt[0])
            self._lost(attempt[0])

    @rule()
    def die_and_come_back(self) -> None:
        with self.store.transaction() as con:
            attempts.close_orphaned_attempts(con)
        for identity in {a for a, _ in self.held}:
            self._lost(identity)

    def _lost(self, identity: str) -> None:
        for place in [p for p in self.held if p[0] == identity]:
            self.owed[place] = self.held.pop(place)

    @rule()
    def acknowledge(self) -> None:
        ledger.acknowledge(self.store, "seen")
        self.stopped = False

    @invariant()
    def the_accounts_agree_and_add_up(self) -> None:
        if not hasattr(self, "store"):
            return
        now = balance(self.store)
        assert (now.budget, now.spent) == (self.budget, self.spent)
        assert (now.reserved, now.unresolved) == (sum(self.held.values()), sum(self.owed.values()))
        assert now.spent + now.reserved + now.unresolved + self.free == now.budget
        view = self.store.query("ledger")[0]
        assert (
            view["spent_usd"] + view["reserved_usd"] + view["unresolved_usd"] + view["free_usd"] == view["budget_usd"]
        )


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)
