"""Copies of a database: mv keeps its ledger, a copy must be adopted or forked before it may send."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from alpasift.batcher.money import attempts, charges, copies, ledger, reservations
from alpasift.batcher.money.copies import CopiedDatabase, adopt, fork
from alpasift.batcher.money.settle import NothingToSettle, NotReversible, reverse, settle
from alpasift.batcher.store import Store, hash_id, lock, new_id
from alpasift.graders import AlpaSiftError, Reply
from alpasift.graders.api.prices import per_million
from conftest import Ran, new_store

PRICE = per_million("1", "2")
Call = Callable[..., Ran]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database in which nothing has happened yet; copying it is quicker than making it."""
    return new_store(tmp_path_factory.mktemp("fresh") / "fresh.duckdb").path


@pytest.fixture
def store(fresh: Path, tmp_path: Path) -> Store:
    path = tmp_path / "alpasift.duckdb"
    shutil.copy(fresh, path)
    return Store(path)


def register(store: Store) -> None:
    with store.transaction() as con:
        copies.register(con, store.path)


def check(store: Store) -> None:
    with store.reader() as con:
        copies.check_not_a_copy(con, store.path)


def ledger_id(store: Store) -> str:
    with store.reader() as con:
        return copies.ledger_id(con)


def homes(store: Store) -> list[tuple[int, str, str]]:
    return store.locked_query("select number, ledger_id::varchar, note from ledger_homes order by number").rows  # type: ignore[return-value]


def copy_of(store: Store, name: str = "copy.duckdb") -> Store:
    path = store.path.with_name(name)
    shutil.copy(store.path, path)
    return Store(path).existing()


def reserve(
    store: Store, lines: int, each: str = "0.1", run_id: str | None = None, outlives: bool = False
) -> tuple[str, list[str]]:
    keys = [hash_id("key", new_id()) for _ in range(lines)]
    with store.transaction() as con:
        attempt = reservations.reserve(
            con,
            run_id=run_id or new_id(),
            backend="test",
            grader_id=new_id(),
            keys=keys,
            ceilings=[Decimal(each)] * lines,
            price=PRICE.frozen(),
            facts={"outlives": outlives, "model": "m-1"},
            run_budget=None,
        )
    return attempt, keys


def answer(store: Store, attempt: str, key: str, prompt: int = 100, completion: int = 10) -> None:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion}
    with store.transaction() as con:
        charges.ingest(con, [Reply(attempt, key, new_id(), "answered", "4", "stop", "m-1-2026-01-02", usage)])


def balance(store: Store) -> ledger.Balance:
    with store.reader() as con:
        return ledger.balance(con)


def with_money(store: Store) -> tuple[str, str]:
    """A ledger with $0.00012 spent, $0.2 reserved and $0.3 unresolved. Returns the open and the closed attempt."""
    register(store)
    with store.transaction() as con:
        ledger.set_budget(con, Decimal(1))
    held, keys = reserve(store, 3, outlives=True)
    answer(store, held, keys[0])
    lost, _ = reserve(store, 3)
    with store.transaction() as con:
        attempts.close_attempt(con, lost)
    now = balance(store)
    assert (now.spent, now.reserved, now.unresolved) == (Decimal("0.00012"), Decimal("0.2"), Decimal("0.3"))
    return held, lost


# -- at home ----------------------------------------------------------------------------------------------------


def test_a_new_ledger_has_the_id_it_was_made_with_and_no_home_until_it_is_claimed(store: Store) -> None:
    made_with = store.locked_query("select value from meta where key = 'ledger'").rows[0][0]
    assert ledger_id(store) == made_with
    check(store)
    assert homes(store) == []
    register(store)
    assert homes(store) == [(1, made_with, "first paid run")]
    check(store)
    register(store)
    assert len(homes(store)) == 1


def test_a_database_that_was_moved_is_still_at_home(store: Store) -> None:
    register(store)
    path = store.path.with_name("moved.duckdb")
    store.path.rename(path)
    check(Store(path).existing())


def test_writing_into_a_database_does_not_change_its_home(store: Store) -> None:
    with_money(store)
    with store.transaction() as con:
        con.execute("create table big as select range as i, repeat('x', 100) as t from range(200000)")
        con.execute("drop table big")
    check(store)


def test_a_symbolic_link_to_a_database_is_the_database(store: Store) -> None:
    register(store)
    link = store.path.with_name("link.duckdb")
    link.symlink_to(store.path)
    check(Store(link))


@pytest.mark.parametrize("how", ["copy", "copy over another", "rename a copy back"])
def test_a_copy_is_refused_with_both_ways_out_and_nothing_is_written(store: Store, how: str) -> None:
    register(store)
    copy = store.path.with_name("copy.duckdb")
    if how == "copy over another":
        copy.write_bytes(b"x")
    shutil.copy(store.path, copy)
    if how == "rename a copy back":
        copy.replace(store.path)
        copy = store.path
    with pytest.raises(CopiedDatabase) as refused:
        check(Store(copy))
    assert str(copy) in str(refused.value)
    assert ledger_id(store) in str(refused.value)
    assert "gone or will never be used again: `alpasift ledger adopt --reason TEXT`" in str(refused.value)
    assert "both remain in use: `alpasift ledger fork --reason TEXT`" in str(refused.value)
    assert len(homes(Store(copy))) == 1
    if how != "rename a copy back":
        check(store)


def test_a_copy_is_never_claimed_silently(store: Store) -> None:
    register(store)
    copy = copy_of(store)
    register(copy)
    with pytest.raises(CopiedDatabase):
        check(copy)


def test_an_inode_of_64_bits_fits(store: Store) -> None:
    class Far(type(store.path)):  # type: ignore[misc]
        def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
            return os.stat_result((0, 2**64 - 5, 0, 0, 0, 0, 0, 0, 0, 0))

    assert copies.inode_of(Far(store.path)) == -5


# -- adopt ------------------------------------------------------------------------------------------------------


def test_an_adopted_copy_goes_on_with_the_same_ledger_and_everything_in_it(store: Store) -> None:
    with_money(store)
    before, copy = balance(store), copy_of(store)
    assert adopt(copy, "the disk died") == ledger_id(store)
    check(copy)
    assert balance(copy) == before
    assert homes(copy)[1] == (2, ledger_id(store), "the disk died")
    again = copy_of(copy, "again.duckdb")
    with pytest.raises(CopiedDatabase):
        check(again)


def test_a_database_that_is_no_copy_is_neither_adopted_nor_forked(store: Store) -> None:
    with_money(store)
    before = balance(store)
    for act in (adopt, fork):
        with pytest.raises(AlpaSiftError, match="not a copy"):
            act(store, "why not")
    assert balance(store) == before
    assert len(homes(store)) == 1


def test_adopt_and_fork_want_a_reason_and_wait_for_no_run(store: Store) -> None:
    register(store)
    copy = copy_of(store)
    for act in (adopt, fork):
        with pytest.raises(AlpaSiftError, match="reason is empty"):
            act(copy, "  ")
        with lock.run_lock(copy.path), pytest.raises(lock.AnotherRun):
            act(copy, "now")
    assert len(homes(copy)) == 1


# -- fork -------------------------------------------------------------------------------------------------------


def test_a_fork_leaves_all_that_was_committed_with_the_original(store: Store) -> None:
    held, lost = with_money(store)
    copy = copy_of(store)
    done = fork(copy, "another rubric")
    assert done.came_from == ledger_id(store) != done.ledger_id == ledger_id(copy)
    assert (done.spent_usd, done.reserved_usd, done.unresolved_usd, done.closed) == (
        Decimal("0.00012"),
        Decimal("0.2"),
        Decimal("0.3"),
        1,
    )
    check(copy)
    zero = Decimal(0)
    assert balance(copy) == ledger.Balance(zero, zero, zero, zero)
    assert balance(store).committed == Decimal("0.50012")
    assert copy.query("open_attempts") == []
    steps = "select state, facts::json ->> 'why' from attempt_steps where attempt_id = $a order by step"
    assert copy.locked_query(steps, {"a": held}).rows[-1] == ("closed", f"belongs to ledger {done.came_from}")
    money = copy.locked_query("select distinct held_usd, unresolved_usd from line_money").rows
    assert money == [(zero, zero)]
    assert copy.locked_query("select distinct kind from ledger where note like 'belongs to ledger %'").rows == [
        ("forked",)
    ]
    assert lost


def test_what_each_line_cost_the_original_stays_readable_in_a_fork(store: Store) -> None:
    held, _ = with_money(store)
    copy = copy_of(store)
    fork(copy, "another rubric")
    per_line = "select sum(spent_usd) from ledger where attempt_id = $a and key is not null"
    assert copy.locked_query(per_line, {"a": held}).rows == [(Decimal("0.00012"),)]
    by_model = copy.query("ledger_by_model")
    assert {row["model"]: row["spent_usd"] for row in by_model} == {
        "m-1": Decimal("0.00012"),
        "(forked)": -Decimal("0.00012"),
    }
    assert sum(row["spent_usd"] for row in copy.query("ledger_by_run")) == 0


def test_a_fork_sends_nothing_until_its_budget_is_set_and_then_counts_its_own_only(store: Store) -> None:
    with_money(store)
    copy = copy_of(store)
    fork(copy, "another rubric")
    with pytest.raises(AlpaSiftError, match=r"of the \$0.00 budget"):
        reserve(copy, 1)
    with copy.transaction() as con:
        ledger.set_budget(con, Decimal("0.1"))
    attempt, keys = reserve(copy, 1)
    answer(copy, attempt, keys[0])
    assert balance(copy).spent == Decimal("0.00012")
    assert balance(copy).free == Decimal("0.1") - Decimal("0.00012")


def test_nothing_that_was_booked_before_a_fork_is_reversed_in_it(store: Store) -> None:
    _, lost = with_money(store)
    act = settle(store, [lost], None, "nothing was charged").act_id
    copy = copy_of(store)
    fork(copy, "another rubric")
    with pytest.raises(NotReversible, match="forked from"):
        reverse(copy, act, "wrong")
    with pytest.raises(NothingToSettle):
        settle(copy, None, None, "all")
    assert balance(copy).committed == 0
    reverse(store, act, "wrong")


def test_a_fork_of_a_fork_is_a_third_ledger(store: Store) -> None:
    with_money(store)
    second = copy_of(store)
    fork(second, "two")
    with second.transaction() as con:
        ledger.set_budget(con, Decimal(1))
    reserve(second, 2)
    third = copy_of(second, "third.duckdb")
    fork(third, "three")
    assert len({ledger_id(s) for s in (store, second, third)}) == 3
    assert balance(third).committed == 0
    assert balance(second).reserved == Decimal("0.2")


def test_replies_that_waited_beside_the_copy_are_charged_to_the_original(store: Store) -> None:
    from alpasift.batcher.money import spool

    held, _ = with_money(store)
    copy = copy_of(store)
    (key,) = copy.locked_query(
        "select key::varchar from line_money where attempt_id = $a and held_usd > 0 limit 1", {"a": held}
    ).rows[0]
    usage = {"prompt_tokens": 1, "completion_tokens": 0}
    spool.add(spool.spool_of(copy.path), [Reply(held, key, "late", "answered", "5", usage=usage)])
    done = fork(copy, "another rubric")
    assert done.spent_usd == Decimal("0.000121")
    assert not spool.spool_of(copy.path).exists()
    assert balance(copy).committed == 0
    assert copy.locked_query("select text from replies where request_id = 'late'").rows == [("5",)]
    assert copy.query("alarms") == []


# -- the commands -----------------------------------------------------------------------------------------------


def test_the_ledger_says_that_it_is_a_copy_and_the_commands_end_that(
    alpasift: Call, store: Store, tmp_path: Path
) -> None:
    with_money(store)
    shutil.copy(store.path, tmp_path / "b.duckdb")
    shutil.copy(store.path, tmp_path / "c.duckdb")
    assert "alpasift ledger adopt" in alpasift("--db", "b.duckdb", "ledger").out
    adopted = alpasift("--db", "b.duckdb", "ledger", "adopt", "--reason", "moved to a new machine")
    assert (adopted.code, adopted.out) == (0, "")
    assert "is now kept in b.duckdb" in adopted.err
    assert "COPY" not in alpasift("--db", "b.duckdb", "ledger").out
    forked = alpasift("--db", "c.duckdb", "ledger", "fork", "--reason", "to try something")
    assert forked.code == 0
    assert "keeps $0.0001 spent, $0.2000 reserved, $0.3000 unresolved and 1 open attempt" in forked.err
    assert alpasift("--db", "c.duckdb", "ledger", "--json").json["free_usd"] == "0.000000000000000"
    assert alpasift("ledger", "adopt", "--reason", " ").code == 2
    again = alpasift("ledger", "fork", "--reason", "why not")
    assert again.code == 1
    assert "not a copy" in again.err
