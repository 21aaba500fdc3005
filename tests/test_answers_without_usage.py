"""Answers of servers that leave something out: the score is kept, money that nothing proves is unresolved."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from alpasift.graders import AlpaSiftError, open_backend
from alpasift.graders.api.wire_format import reply_of
from batch_harness import MODEL, key, marked_store, money, scores
from test_openai_chat import OpenAIChat, Plain, own_prices, run_of

BARE = b'{"choices": [{"message": {"content": "3.5"}, "finish_reason": "stop"}]%s}'


@pytest.mark.parametrize("usage", [b"", b', "usage": null', b', "usage": []'])
@pytest.mark.parametrize("price", ["2", "0"])
def test_an_answer_without_usage_keeps_its_score_and_its_money_is_unresolved(
    tmp_path: Path, usage: bytes, price: str
) -> None:
    store = marked_store(tmp_path, 3)
    with key(), Plain((404, b""), [(200, {}, BARE % usage)]) as plain:
        options = {"base_url": plain.url, "prices": str(own_prices(tmp_path, price, price))}
        with run_of(store, open_backend(f"openai_chat:{MODEL}", options)) as run:  # type: ignore[arg-type]
            assert (run.go().outcome, len(plain.posts)) == ("done", 3)
    assert scores(store) == {0: "3.5", 1: "3.5", 2: "3.5"}
    found = money(store)
    ceilings = store.locked_query("select sum(ceiling_usd) from attempts").rows[0][0]
    assert (found["spent_usd"], found["unresolved_usd"]) == (0, ceilings)
    assert (ceilings > 0) == (price == "2")


def test_an_error_under_status_200_is_shown_with_its_code_and_text(tmp_path: Path) -> None:
    store = marked_store(tmp_path, 3)
    body = b'{"error": {"code": "no_credit", "message": "Please top up"}}'
    with key(), Plain((404, b""), [(200, {}, body)]) as plain:
        options = {"base_url": plain.url, "prices": str(own_prices(tmp_path, "1", "1"))}
        backend = open_backend(f"openai_chat:{MODEL}", options)
        assert isinstance(backend, OpenAIChat)
        backend.pauses = (0.0,)
        with run_of(store, backend) as run, pytest.raises(AlpaSiftError, match="no_credit Please top up"):
            run.go()
    assert money(store)["spent_usd"] == Decimal(0) < money(store)["unresolved_usd"]


def test_what_is_neither_an_answer_nor_an_error_is_unknown() -> None:
    for body in ({}, None, [1], {"choices": []}, {"choices": [{}], "usage": None}):
        reply = reply_of("a", "k", "i", body)
        assert (reply.outcome, reply.error) == ("unknown", "no_answer: neither an answer nor usage")
