"""The spool: replies that wait for the database, none of them dropped without a word."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from alpasift.batcher.money import spool
from alpasift.graders import Reply


def replies(*texts: str) -> list[Reply]:
    return [Reply("a", f"k{i}", "r", "answered", text, usage={"prompt_tokens": i}) for i, text in enumerate(texts)]


def test_replies_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "s"
    spool.add(path, replies("4", "line\nbreak", "\ud83d", "\u00fc"))
    spool.add(path, replies("5"))
    assert spool.read(path) == [*replies("4", "line\nbreak", "\ud83d", "\u00fc"), *replies("5")]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_line_cut_by_a_crash_is_passed_over_and_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "s"
    spool.add(path, replies("4"))
    with path.open("ab") as file:
        file.write(b'{"attempt": "a", "key": "k')
    spool.add(path, replies("5"))
    assert spool.read(path) == [*replies("4"), *replies("5")]


def test_a_whole_line_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "s"
    spool.add(path, replies("4"))
    path.write_text(path.read_text().replace('"raw": null', '"raw": null, "colour": 1'))
    with pytest.raises(spool.SpoolError, match=r"s:1 holds a reply that this version cannot read"):
        spool.read(path)
