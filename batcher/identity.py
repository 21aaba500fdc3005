"""Whose ledger a database is: a copied file must not spend the same budget a second time.

Knows ids and one number of the file system; nothing of money. A database is at home in the file in which it was claimed
at its first paid run. The inode tells that file: DuckDB writes in place and `mv` keeps the inode, while `cp`, `rsync` and
a restored backup make another file. A person then says which it is: adopted (the other file is gone, the ledger goes on
here) or forked (both live on, and this one is a ledger of its own).

What the inode cannot tell: a backup restored by writing over the very file it was taken from, and a copy on another file
system that happens to get the same number.
"""

from __future__ import annotations

from pathlib import Path

from batcher.store import Connection, append, scalar, utc_now
from graders import AlpaSiftError


class CopiedDatabase(AlpaSiftError):
    """The file was copied since its ledger was last at home; nothing is sent until a person has said which copy it is."""


def ledger_id(con: Connection) -> str:
    """The identity of this database's ledger: what its last home says, else what it was created with."""
    newest = scalar(con, "select arg_max(ledger_id, number) from ledger_homes")
    return str(newest or scalar(con, "select value from meta where key = 'ledger'"))


def at_home(con: Connection, path: Path) -> bool | None:
    """Whether this file is the home of its ledger, None where no home was ever recorded."""
    inode = scalar(con, "select arg_max(inode, number) from ledger_homes")
    return None if inode is None else bool(inode == inode_of(path))


def check_home(con: Connection, path: Path) -> None:
    """Raise CopiedDatabase when the file is a copy. Writes nothing."""
    if at_home(con, path) is False:
        raise CopiedDatabase(
            f"{path} is a copy of the database in which the ledger {ledger_id(con)} was kept, and two that send would spend one "
            "budget twice; nothing was sent. If the other file is gone or will never be used again: "
            "`alpasift ledger adopt --reason TEXT`. If both live on: `alpasift ledger fork --reason TEXT`"
        )


def claim(con: Connection, path: Path) -> None:
    """Record this file as the home of its ledger, where none is recorded yet."""
    if at_home(con, path) is None:
        move_in(con, path, ledger_id(con), "first paid run")


def move_in(con: Connection, path: Path, ledger: str, note: str) -> None:
    """Record this file as the home of a ledger from now on."""
    number = (scalar(con, "select max(number) from ledger_homes") or 0) + 1
    columns = ("number", "ledger_id", "inode", "note", "recorded_at")
    append(con, "ledger_homes", columns, [(number, ledger, inode_of(path), note, utc_now())])


def inode_of(path: Path) -> int:
    """The inode of a file as a signed 64-bit number, which is what the table holds."""
    inode = path.stat().st_ino & (2**64 - 1)
    return inode - 2**64 if inode >= 2**63 else inode
