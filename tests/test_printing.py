"""Tables on a screen and in a pipe: numbers to the right, words whole, nothing cut that a person needs."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest

from alpasift.batcher.cli.printing import percent, plain, print_csv, print_json, print_table

COLUMNS = ("what", "rows", "remark")
ROWS = [
    ("openai_batch:gpt-4.1-nano", 52002, "never calibrated; the price is of July and may have changed since"),
    ("rules", 7, "checks form only"),
]


def on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, width: int, columns: Sequence[str], rows: Sequence[Any]
) -> list[str]:
    """The lines of a table on a terminal of that width."""
    master, slave = os.openpty()
    with monkeypatch.context() as patch, os.fdopen(slave, "w", encoding="utf-8") as screen:
        patch.setenv("COLUMNS", str(width))
        patch.setattr(sys, "stdout", screen)
        print_table(columns, rows)
    written = b""
    with suppress(OSError):  # a terminal whose other end is closed ends so
        while read := os.read(master, 100_000):
            written += read
    os.close(master)
    return written.decode().split("\r\n")[:-1]


def test_in_a_pipe_a_row_is_one_line_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(COLUMNS, ROWS)
    assert capsys.readouterr().out.splitlines() == [
        "what                         rows  remark",
        "openai_batch:gpt-4.1-nano  52,002  never calibrated; the price is of July and may have changed since",
        "rules                           7  checks form only",
    ]


def test_on_a_terminal_text_is_wrapped_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_a_terminal(monkeypatch, 70, COLUMNS, ROWS) == [
        "what                         rows  remark",
        "openai_batch:gpt-4.1-nano  52,002  never calibrated; the price is of",
        "                                   July and may have changed since",
        "rules                           7  checks form only",
    ]


def test_names_are_broken_at_their_signs_and_what_is_wider_still_is_printed_row_by_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert on_a_terminal(monkeypatch, 40, COLUMNS, ROWS) == [
        "what             rows  remark",
        "openai_batch:  52,002  never",
        "gpt-4.1-nano           calibrated; the",
        "                       price is of",
        "                       July and may",
        "                       have changed",
        "                       since",
        "rules               7  checks form",
        "                       only",
    ]
    assert on_a_terminal(monkeypatch, 23, COLUMNS, ROWS) == [
        "what    openai_batch:gpt-4.1-nano",
        "rows    52,002",
        "remark  never calibrated;",
        "        the price is of July",
        "        and may have changed",
        "        since",
        "",
        "what    rules",
        "rows    7",
        "remark  checks form only",
    ]


def test_rows_that_share_their_first_columns_are_grouped_where_the_table_is_too_wide(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    columns = ("dataset", "grader", "quartile", "median_chars")
    rows = [(d, "openai_batch:gpt-4.1-nano", q, 100 * q) for d in ("alpaca", "dolly_15k") for q in (1, 2)]
    assert on_a_terminal(monkeypatch, 30, columns, rows) == [
        "grader  openai_batch:gpt-4.1-nano",
        "",
        "dataset    quartile  median",
        "                      chars",
        "alpaca            1     100",
        "alpaca            2     200",
        "dolly_15k         1     100",
        "dolly_15k         2     200",
    ]
    columns = ("dataset", "grader", "answers", "input_tokens")
    rows = [(d, g, 7, n) for d in ("alpaca", "dolly_15k") for g in ("rules", "fake") for n in (8, 9)]
    assert on_a_terminal(monkeypatch, 24, columns, rows)[:8] == [
        "answers  7",
        "",
        "dataset alpaca",
        "grader  input tokens",
        "rules              8",
        "rules              9",
        "fake               8",
        "fake               9",
    ]


def test_dollars_and_shares_are_numbers_and_texts_with_markup_are_texts(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("grader", "usd", "share"), [("[bold]a[/bold]", "$0.5000", "9.1%"), ("b", "-$12.0000", "100.0%")])
    assert capsys.readouterr().out.splitlines() == [
        "grader                usd   share",
        "[bold]a[/bold]    $0.5000    9.1%",
        "b               -$12.0000  100.0%",
    ]


@pytest.mark.parametrize(
    "character",
    list(
        "\x07\x1b\x9b\u00ad\u061c\u115f\u180e\u200b\u200e\u2028\u2029\u202e\u2060\u2066\u2069\u206f\u3164\ufeff\ufffb"
        "\U000e0041"
    ),
)
def test_what_cannot_be_seen_or_turns_the_line_does_not_reach_a_screen(
    character: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plain(f"a{character}b") == "a\N{REPLACEMENT CHARACTER}b"
    print_json({"text": f"a{character}b"})
    printed = capsys.readouterr().out
    assert character not in printed
    assert json.loads(printed) == {"text": f"a{character}b"}


def test_letters_marks_and_emoji_pass() -> None:
    for text in (
        "caf\u00e9",
        "\u0e20\u0e32\u0e29\u0e32",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\U0001f469\u200d\U0001f52c",
        "e\u0301",
        "a\tb",
    ):
        assert plain(text) == text


def test_a_table_without_rows_is_its_head(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("a", "b"), [])
    assert capsys.readouterr().out == "a  b\n"


def test_only_all_is_100_percent_and_only_none_is_0() -> None:
    shares = {0.0: "0.0%", 1 / 52_002: "<0.1%", 0.0005: "0.1%", 0.0914: "9.1%", 0.99949: "99.9%", 0.9997: ">99.9%"}
    assert {share: percent(share) for share in shares} == shares
    assert percent(1.0) == percent(1) == "100.0%"


def test_csv_guards_formulas_behind_blanks_and_in_the_head(capsys: pytest.CaptureFixture[str]) -> None:
    print_csv(("=name", "n"), [(" =1+1", -2), ("\ufeff@sum", 3), ("\n-1+2", 4), ("-1.5", 5), ("a = b", 6)])
    written = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert [row[0] for row in written] == ["'=name", "' =1+1", "'\ufeff@sum", "'\n-1+2", "-1.5", "a = b"]


def test_wide_characters_count_as_two_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("\u65e5\u672c\u8a9e \u65e5\u672c\u8a9e", "judges text"), ("rules", "checks form only")]
    assert on_a_terminal(monkeypatch, 40, ("what", "remark"), rows) == [
        "what           remark",
        "\u65e5\u672c\u8a9e \u65e5\u672c\u8a9e  judges text",
        "rules          checks form only",
    ]


def test_what_all_rows_of_a_wide_table_share_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("openai_batch:gpt-4.1-nano", 1, "short"), ("openai_batch:gpt-4.1-nano", 2, "checks form only")]
    assert on_a_terminal(monkeypatch, 30, ("grader", "quartile", "remark"), rows) == [
        "grader  openai_batch:gpt-4.1-nano",
        "",
        "quartile  remark",
        "       1  short",
        "       2  checks form only",
    ]
