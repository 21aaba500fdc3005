"""Copies of a database: a copied file must not spend the same budget a second time.

Knows ids, one number of the file system, and what a fork leaves to the original. A ledger is registered to the file in
which its first paid run was made. The inode tells that file: DuckDB writes in place and `mv` keeps the inode, while
`cp`, `rsync` and a restored backup make another file. A person then says which it is: adopted (the other file is gone,
the ledger is kept here from now on) or forked (both stay in use, and this one is a ledger of its own).

A file with two names (hard links) is one inode and yet two databases: DuckDB's log, the spool and the downloads lie
beside each name. So a ledger sends under one name only. A symbolic link is no second name: the store resolves it.

What the inode cannot tell: a backup restored by writing over the very file it was taken from, and a copy on another
file system that happens to get the same number.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from alpasift.batcher.money import spool
from alpasift.batcher.money.attempts import step
from alpasift.batcher.money.charges import ingest
from alpasift.batcher.money.dollars import ZERO
from alpasift.batcher.money.ledger import set_budget
from alpasift.batcher.money.manual_entries import book, check_reason, manual_entry
from alpasift.batcher.store import Connection, Store, append, named_query, new_id, rows, scalar, utc_now
from alpasift.batcher.store.lock import run_lock
from alpasift.graders import AlpaSiftError


class CopiedDatabase(AlpaSiftError):
    """The ledger is registered to another file, so this is a copy; nothing is sent until it is adopted or forked."""


class TwoNames(AlpaSiftError):
    """The database file has more than one name (hard links); nothing is sent or booked until it has one."""


def check_one_name(path: Path) -> None:
    """Raise TwoNames when the database file has another hard link."""
    found = path.stat()
    if found.st_nlink <= 1:
        return
    folder = path.absolute().parent
    raise TwoNames(
        f"{path} has {found.st_nlink} names (hard links), and the side files of one (log, spool, downloads) are "
        "not used under the other: money could be spent twice; nothing was sent. "
        f"`find {folder} -xdev -inum {found.st_ino}` lists them (others may be in another folder); delete all but one "
        "with rm, which keeps the data, and run again with that one"
    )


def ledger_id(con: Connection) -> str:
    """The identity of this database's ledger: that of its last registration, else the one it was created with."""
    newest = scalar(con, "select arg_max(ledger_id, number) from ledger_homes")
    return str(newest or scalar(con, "select value from meta where key = 'ledger'"))


def is_registered(con: Connection, path: Path) -> bool | None:
    """Whether the ledger is registered to this very file; None where it was never registered."""
    inode = scalar(con, "select arg_max(inode, number) from ledger_homes")
    return None if inode is None else bool(inode == inode_of(path))


def check_not_a_copy(con: Connection, path: Path) -> None:
    """Raise CopiedDatabase when the file is a copy, TwoNames when it has two. Writes nothing."""
    check_one_name(path)
    if is_registered(con, path) is False:
        raise CopiedDatabase(
            f"{path} is a copy of the database of ledger {ledger_id(con)}, and two copies would spend one budget "
            f"twice; nothing was sent. If the other file is gone or will never be used again: "
            "`alpasift ledger adopt --reason TEXT`. If both remain in use: `alpasift ledger fork --reason TEXT`"
        )


def register(con: Connection, path: Path) -> None:
    """Register the ledger to this file, where it is registered to none."""
    if is_registered(con, path) is None:
        _register(con, path, ledger_id(con), "first paid run")


def _register(con: Connection, path: Path, ledger: str, note: str) -> None:
    number = (scalar(con, "select max(number) from ledger_homes") or 0) + 1
    columns = ("number", "ledger_id", "inode", "note", "recorded_at")
    append(con, "ledger_homes", columns, [(number, ledger, inode_of(path), note, utc_now())])


def inode_of(path: Path) -> int:
    """The inode of a file as a signed 64-bit number, which is what the table holds."""
    inode = path.stat().st_ino & (2**64 - 1)
    return inode - 2**64 if inode >= 2**63 else inode


@dataclass(frozen=True, slots=True)
class Forked:
    """A ledger of its own: its id, the one it came from, and what stayed with that one."""

    ledger_id: str
    came_from: str
    spent_usd: Decimal
    reserved_usd: Decimal
    unresolved_usd: Decimal
    closed: int


def adopt(store: Store, reason: str) -> str:
    """Let the ledger go on in this file, the copy; returns its id. Takes the run lock.

    The other file must be gone, or never be used again: nothing here can see it.
    """
    note = check_reason(reason)
    check_one_name(store.path)
    with run_lock(store.path), store.transaction() as con:
        _must_be_a_copy(con, store.path, "adopt")
        ledger = ledger_id(con)
        _register(con, store.path, ledger, note)
    return ledger


def fork(store: Store, reason: str) -> Forked:
    """Make this file, a copy, a ledger of its own. Takes the run lock.

    What the original has spent, reserved and left unresolved stays with it: here it is taken off by entries of the kind
    "forked", its open attempts are closed, and the budget is 0 until it is set anew. Replies stay, they are knowledge.
    The dollars of each line stay readable; they are taken off attempt by attempt.
    """
    note = check_reason(reason)
    check_one_name(store.path)
    waiting = spool.spool_of(store.path)
    with run_lock(store.path), store.transaction() as con:
        _must_be_a_copy(con, store.path, "fork")
        if waiting.exists():  # replies that were copied with the database: their charges are the original's too
            ingest(con, spool.read(waiting))
        came_from, ledger = ledger_id(con), new_id()
        left = rows(con, named_query("committed").text).rows
        why = f"belongs to ledger {came_from}: {note}"
        entries = [
            manual_entry("forked", (run, attempt, key), why, reserved=-held, spent=-spent, unresolved=-owed)
            for run, attempt, key, held, owed, spent in left
        ]
        book(con, entries)
        still = rows(con, "select attempt_id from open_attempts order by opened_at, attempt_id").rows
        for (attempt,) in still:
            step(con, str(attempt), "closed", {"why": f"belongs to ledger {came_from}"})
        set_budget(con, ZERO)
        _register(con, store.path, ledger, note)
    waiting.unlink(missing_ok=True)
    held, owed, spent = (sum((row[i] for row in left), ZERO) for i in (3, 4, 5))
    return Forked(ledger, came_from, spent, held, owed, len(still))


def _must_be_a_copy(con: Connection, path: Path, verb: str) -> None:
    if is_registered(con, path):
        raise AlpaSiftError(
            f"{path} is the original of its ledger, not a copy; there is nothing to {verb}. To {verb} a copy, give it "
            "with --db"
        )
