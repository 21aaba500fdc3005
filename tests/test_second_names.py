"""One database under two names: links are resolved, one run at a time works on the file, and nothing is paid twice."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from alpasift.batcher.money.copies import TwoNames, check_one_name
from alpasift.batcher.money.meter import batch_folder
from alpasift.batcher.money.spool import spool_of
from alpasift.batcher.store import Store, StoreError, lock
from alpasift.graders.rehearsal.server import Rehearsal
from batch_harness import MARKER, PRICES, executed_twice, key, marked_store
from conftest import cli_environment, new_store
from test_openai_chat import Watch, grade, run_of, sent
from test_openai_chat import chat as chat_grader


@pytest.fixture
def server() -> Iterator[Rehearsal]:
    with key(), Rehearsal(marker=MARKER, prices=PRICES) as running:
        yield running


def locked_elsewhere(path: Path) -> str:
    """What another process says that wants to work on the database under this name; "" when it may."""
    code = "import sys; from pathlib import Path; from alpasift.batcher.store import Store\n"
    code += "from alpasift.batcher.store.lock import run_lock\n"
    code += "with run_lock(Store(sys.argv[1]).path): pass"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, env=cli_environment())
    return done.stderr


def test_a_link_is_resolved_and_what_lies_beside_the_database_has_one_name(tmp_path: Path) -> None:
    lab, desk = tmp_path / "lab", tmp_path / "desk"
    lab.mkdir()
    desk.mkdir()
    store = new_store(lab / "grades.duckdb")
    (desk / "mine.duckdb").symlink_to(store.path)
    (desk / "again.duckdb").symlink_to("mine.duckdb")
    (tmp_path / "way").symlink_to(lab)
    for name in (desk / "mine.duckdb", desk / "again.duckdb", tmp_path / "way" / "grades.duckdb"):
        other = Store(name).create()
        assert other.path == store.path
        assert spool_of(other.path) == spool_of(store.path)
        assert batch_folder(other.path) == batch_folder(store.path)
        assert set(other.files()) == set(store.files())


def test_a_path_without_links_stays_as_it_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Store("lab.duckdb").path == Path("lab.duckdb")


def test_a_link_to_a_database_that_is_not_there_yet_makes_it_where_the_link_leads(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "lab.duckdb").symlink_to("folder/real.duckdb")
    Store(tmp_path / "lab.duckdb").create()
    assert (tmp_path / "lab.duckdb").is_symlink()
    assert (tmp_path / "folder" / "real.duckdb").is_file()
    assert not (tmp_path / "folder" / "real.duckdb").is_symlink()


def test_the_run_lock_holds_under_every_name_of_the_file(store: Store, tmp_path: Path) -> None:
    (tmp_path / "soft.duckdb").symlink_to(store.path)
    (tmp_path / "folder").mkdir()
    hard = tmp_path / "folder" / "hard.duckdb"
    os.link(store.path, hard)
    with lock.run_lock(store.path):
        for name in (store.path, tmp_path / "soft.duckdb", hard):
            assert f"process {os.getpid()} is already working" in locked_elsewhere(name)
            assert lock.holder_of_run_lock(Store(name).path) == os.getpid()
    for name in (store.path, tmp_path / "soft.duckdb", hard):
        assert locked_elsewhere(name) == ""
        assert lock.holder_of_run_lock(Store(name).path) is None


def test_two_databases_do_not_hold_each_other(store: Store, tmp_path: Path) -> None:
    other = new_store(tmp_path / "other.duckdb")
    with lock.run_lock(store.path), lock.run_lock(other.path):
        pass


def test_a_second_run_under_a_link_pays_for_nothing_while_the_first_is_at_work(
    tmp_path: Path, server: Rehearsal
) -> None:
    store = marked_store(tmp_path, 12)
    link = tmp_path / "link.duckdb"
    link.symlink_to(store.path)
    refused: list[str] = []

    def second() -> None:
        with pytest.raises(lock.AnotherRun) as error:
            grade(Store(link), server)
        refused.append(str(error.value))

    Watch(server, 3, second)
    assert grade(store, server).replied == 12
    assert len(refused) == 1
    assert (sent(server), executed_twice(server)) == (12, [])


def test_a_paid_run_on_a_file_with_two_names_sends_nothing_and_says_how_to_go_on(
    tmp_path: Path, server: Rehearsal
) -> None:
    store = marked_store(tmp_path, 3)
    second = tmp_path / "second.duckdb"
    os.link(store.path, second)
    for one in (store, Store(second)):
        with pytest.raises(TwoNames, match=r"2 names \(hard links\).*nothing was sent.*find .* -inum"):
            grade(one, server)
    assert sent(server) == 0
    second.unlink()
    check_one_name(store.path)
    assert grade(store, server).replied == 3


def test_files_that_an_earlier_release_named_after_a_link_are_not_left_behind(tmp_path: Path) -> None:
    store = new_store(tmp_path / "grades.duckdb")
    link = tmp_path / "link.duckdb"
    link.symlink_to(store.path)
    left = tmp_path / "link.duckdb.spool"
    left.write_text("")
    with pytest.raises(StoreError, match=f"mv {left} {store.path}.spool"):
        Store(link).create()
    left.rename(tmp_path / "grades.duckdb.spool")
    Store(link).create()


def test_a_run_prepared_under_one_name_goes_on_under_another(tmp_path: Path, server: Rehearsal) -> None:
    store = marked_store(tmp_path, 6)
    link = tmp_path / "link.duckdb"
    link.symlink_to(store.path)
    with run_of(store, chat_grader(server), Decimal(5), limit=4) as run:
        run.go()
    assert grade(Store(link), server).already == 4
    assert executed_twice(server) == []
