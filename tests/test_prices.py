"""Prices: the figures that come with genai-prices, the user's own, and what is refused rather than believed."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpasift.graders.api.listed_prices import listed
from alpasift.graders.api.price_file import find_overrides, read_overrides
from alpasift.graders.api.price_lookup import NoBatchPrice, UnknownPrice, age_warning, price_of
from alpasift.graders.api.prices import (
    MAX_PROMPT_TOKENS,
    Price,
    PriceError,
    UsageError,
    ceiling,
    charge,
    thaw,
)
from conftest import cli_environment

DAY = date(2026, 11, 21)
OWN = """
[[price]]
provider = "llm.example.org"
model = "some-model"
input = "0.20"
cached_input = 0.05
output = "0.80"
discount = 0.5
source = "https://llm.example.org/pricing"
date = 2026-11-20
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "prices.toml"
    path.write_text(text, "utf-8")
    return path


def with_line(key: str, line: str) -> str:
    """The table OWN with one line replaced, or left out when it is empty, or added when the key is new."""
    lines = [ln for ln in OWN.splitlines() if not ln.startswith(f"{key} =")]
    return "\n".join([*lines, line])


def per_million(rate: Decimal) -> Decimal:
    return rate * 1_000_000


# -- what comes with genai-prices -------------------------------------------------------------------------------


# Batch dollars per million tokens (input, cached, cache write, output), collected from a second table, LiteLLM 1.109.1,
# in November 2026; a dash there is None here. Where none is listed, cached and written tokens cost as much as others.
@pytest.mark.parametrize(
    ("model", "usd", "cached", "write", "out"),
    [
        ("gpt-6-luna", "0.05", "0.005", "0.0625", "0.25"),
        ("gpt-5.6-luna", "0.10", "0.01", "0.125", "0.60"),
        ("gpt-6.1-terra", "0.50", "0.025", "0.625", "2.5"),
        ("gpt-6.1-sol", "1.0", "0.05", "1.25", "5.0"),
        ("gpt-6-sol", "1.0", "0.10", "1.25", "5.0"),
        ("gpt-5-nano", "0.025", "0.0025", None, "0.20"),
        ("gpt-5-mini", "0.125", "0.0125", None, "1.0"),
        ("gpt-5.4-nano", "0.10", "0.01", None, "0.625"),
        ("gpt-5.4-mini", "0.375", "0.0375", None, "2.25"),
        ("gpt-4.1-nano", "0.05", None, None, "0.20"),
        ("gpt-4.1-mini", "0.20", None, None, "0.80"),
        ("gpt-4o-mini", "0.075", None, None, "0.30"),
    ],
)
def test_batch_prices_agree_with_a_second_table(
    model: str, usd: str, cached: str | None, write: str | None, out: str
) -> None:
    price = price_of(model, batch=True, today=DAY)
    assert [per_million(r) for r in (price.input, price.cached_input, price.cache_write, price.output)] == [
        Decimal(rate) for rate in (usd, cached or usd, write or usd, out)
    ]


def test_a_batch_charge_by_hand() -> None:
    usage = {
        "prompt_tokens": 1234,
        "completion_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 200, "cache_write_tokens": 300},
    }
    # 734 at 0.05, 200 at 0.005, 300 at 0.0625 and 8 at 0.25 dollars per million: 36.7 + 1 + 18.75 + 2 millionths.
    assert charge(price_of("gpt-6-luna", batch=True, today=DAY), usage) == Decimal("0.00005845")
    # gpt-4.1-nano has no cached rate for batches: 1234 at 0.05 and 8 at 0.20.
    assert charge(price_of("gpt-4.1-nano", batch=True, today=DAY), usage) == Decimal("0.0000633")
    # Synchronous, its cached tokens cost 0.025: 1034 at 0.10, 200 at 0.025, 8 at 0.40.
    assert charge(price_of("gpt-4.1-nano", batch=False, today=DAY), usage) == Decimal("0.0001116")
    # gpt-5-nano by batch, one cached token: 2.5e-9 dollars, and not rounded.
    one = {"prompt_tokens": 1, "completion_tokens": 0, "prompt_tokens_details": {"cached_tokens": 1}}
    assert charge(price_of("gpt-5-nano", batch=True, today=DAY), one) == Decimal("2.5e-9")


def test_a_reservation_covers_the_dearer_write_to_the_cache() -> None:
    price = price_of("gpt-6-luna", batch=True, today=DAY)
    assert ceiling(price, 1000, 8) == Decimal("0.0000645")  # 1000 at 0.0625, 8 at 0.25
    written = {"prompt_tokens": 1000, "completion_tokens": 8, "prompt_tokens_details": {"cache_write_tokens": 1000}}
    assert charge(price, written) == ceiling(price, 1000, 8)


def test_a_price_says_where_and_when_it_was_read() -> None:
    price = price_of("gpt-4o-mini", batch=True, today=DAY)
    assert price.dated == "2026-10-14"
    assert price.source.startswith("genai-prices ")
    assert "https://developers.openai.com/api/docs/pricing" in price.source
    assert price.source.endswith("batch, cached input as input: no such rate is listed")
    assert thaw(price.frozen()) == price


def test_a_snapshot_has_the_price_of_its_family_unless_it_has_its_own() -> None:
    family = price_of("gpt-4o-mini", batch=True, today=DAY)
    for snapshot in ("gpt-4o-mini-2024-07-18", "gpt-4o-mini-2031-02-03"):
        price = price_of(snapshot, batch=True, today=DAY)
        assert (price.input, price.output) == (family.input, family.output)
        assert "as gpt-4o-mini" in price.source
    assert price_of("gpt-4o-2024-05-13", batch=False, today=DAY).input == 2 * price_of("gpt-4o", batch=False).input


@pytest.mark.parametrize(
    "model", ["gpt-7", "gpt-5-nano-next", "gpt-4o-mini-high", "gpt-4.1-pico", "ft:gpt-4.1-mini:me", "", "moderation"]
)
def test_a_model_of_openai_that_is_not_listed_is_unknown(model: str) -> None:
    with pytest.raises(UnknownPrice, match="no price is known"):
        price_of(model, batch=True, today=DAY)


@pytest.mark.parametrize("host", ["api.openai.com.example.org", "eu.api.openai.com", "gateway.local", ""])
def test_a_host_that_is_not_listed_has_no_prices(host: str) -> None:
    with pytest.raises(UnknownPrice):
        price_of("gpt-4o-mini", host=host, batch=False, today=DAY)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_an_openai_model_behind_a_gateway_on_this_machine_costs_what_it_costs_at_openai(host: str) -> None:
    assert price_of("gpt-4o-mini", host=host, batch=True, today=DAY) == price_of("gpt-4o-mini", batch=True, today=DAY)
    with pytest.raises(UnknownPrice):
        price_of("my-own-model", host=host, batch=False, today=DAY)


def test_a_model_without_a_batch_rate_is_told_apart_from_an_unknown_one() -> None:
    assert price_of("gpt-5.3-codex", batch=False, today=DAY).input > 0
    with pytest.raises(NoBatchPrice, match=r"gpt-5\.3-codex at api\.openai\.com has no batch price"):
        price_of("gpt-5.3-codex", batch=True, today=DAY)


def openai_models() -> list[str]:
    from genai_prices.data import providers

    return [m.id for m in next(p for p in providers if p.id == "openai").models]


def test_every_listed_price_can_be_booked_and_holds_up_to_the_longest_prompt() -> None:
    seen = 0
    for model in openai_models():
        found = listed(model, today=DAY)
        if found is None:
            continue
        seen += 1
        assert found.long_context_from is None or found.long_context_from >= MAX_PROMPT_TOKENS, model
        for price in (found.sync, found.batch):
            if price is not None:
                assert thaw(price.frozen()) == price
                assert date(2026, 10, 1) <= date.fromisoformat(price.dated) <= DAY
                assert price.input > 0, model
                assert price.cached_input <= price.input <= price.cache_write <= price.input * Decimal("1.25"), model
        if found.batch is not None:
            assert found.batch.input <= found.sync.input, model
            assert found.batch.output <= found.sync.output, model
    assert seen > 50


def test_a_longer_prompt_than_a_price_holds_for_is_known_of() -> None:
    found = listed("gpt-6-luna", today=DAY)
    assert found is not None
    assert found.long_context_from == 272_000


def test_a_step_below_the_longest_prompt_is_taken_as_reached() -> None:
    # grok-4.3 costs twice as much above 199,999 tokens: 2.50 and 5.00 dollars instead of 1.25 and 2.50.
    price = price_of("grok-4.3", host="api.x.ai", batch=False, today=DAY)
    assert (per_million(price.input), per_million(price.output)) == (Decimal("2.5"), Decimal("5"))


def test_a_price_that_changes_with_the_hour_is_taken_at_its_dearest() -> None:
    from genai_prices.data import providers

    info = next(p for p in providers if p.id == "deepseek").find_model("deepseek-chat")
    assert info is not None
    hours = [info.get_prices(datetime(2026, 11, 21, h, 45, tzinfo=UTC)).output_mtok for h in range(24)]
    price = price_of("deepseek-chat", host="api.deepseek.com", batch=False, today=DAY)
    assert all(isinstance(usd, Decimal) and per_million(price.output) >= usd for usd in hours)


def test_a_clock_that_runs_late_does_not_bring_back_old_prices() -> None:
    for model in ("gpt-4o-mini", "gpt-5.6-luna"):
        assert price_of(model, batch=True, today=date(2020, 1, 1)) == price_of(model, batch=True, today=DAY)


def test_prices_are_read_without_a_network() -> None:
    code = (
        "import sys, threading\n"
        "def watch(event, args):\n"
        "    if event.startswith('socket.'): raise SystemExit(event)\n"
        "sys.addaudithook(watch)\n"
        "from alpasift.graders.api.price_lookup import price_of\n"
        "print(price_of('gpt-4o-mini', batch=True).input, threading.active_count())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=cli_environment())
    assert (done.returncode, done.stdout) == (0, "7.5E-8 1\n"), done.stderr


# -- the user's own prices --------------------------------------------------------------------------------------


def test_own_prices_are_read_exactly(tmp_path: Path) -> None:
    path = write(tmp_path, OWN)
    sync = price_of("some-model", host="llm.example.org", batch=False, overrides=path, today=DAY)
    assert sync == Price(
        input=Decimal("2e-7"),
        output=Decimal("8e-7"),
        cached_input=Decimal("5e-8"),
        cache_write=Decimal("2e-7"),
        source="https://llm.example.org/pricing",
        dated="2026-11-20",
    )
    batch = price_of("some-model", host="LLM.example.org", batch=True, overrides=path, today=DAY)
    assert [batch.input, batch.output, batch.cached_input, batch.cache_write] == [
        Decimal(rate) for rate in ("1e-7", "4e-7", "2.5e-8", "1e-7")
    ]
    assert price_of("some-model-2026-01-02", host="llm.example.org", batch=False, overrides=path, today=DAY) == sync


@given(
    usd=st.decimals(min_value="0.000001", max_value="999", places=6),
    share=st.decimals(min_value=0, max_value="0.999", places=3),
)
def test_any_amount_written_is_the_amount_charged(
    tmp_path_factory: pytest.TempPathFactory, usd: Decimal, share: Decimal
) -> None:
    text = OWN.replace('"0.20"', f'"{usd:f}"').replace("cached_input = 0.05\n", "")
    text = text.replace("discount = 0.5", f"discount = {share:f}")
    (found,) = read_overrides(write(tmp_path_factory.mktemp("own"), text), today=DAY)
    assert found.batch is not None
    million = {"prompt_tokens": 1_000_000, "completion_tokens": 0}
    assert charge(found.sync, million) == usd
    assert charge(found.batch, million) == usd * (1 - share)


def test_own_prices_come_before_listed_ones(tmp_path: Path) -> None:
    own = OWN.replace("llm.example.org", "api.openai.com").replace("some-model", "gpt-4o-mini")
    assert per_million(price_of("gpt-4o-mini", batch=True, overrides=write(tmp_path, own), today=DAY).input) == Decimal(
        "0.1"
    )
    other = write(tmp_path, OWN)
    assert per_million(price_of("gpt-4o-mini", batch=True, overrides=other, today=DAY).input) == Decimal("0.075")


def test_the_own_price_of_a_family_is_not_that_of_a_snapshot_listed_by_itself(tmp_path: Path) -> None:
    own = OWN.replace("llm.example.org", "api.openai.com").replace("some-model", "gpt-4o")
    path = write(tmp_path, own)
    assert price_of("gpt-4o-2024-05-13", batch=True, overrides=path, today=DAY) == price_of(
        "gpt-4o-2024-05-13", batch=True
    )
    assert per_million(price_of("gpt-4o-2024-08-06", batch=True, overrides=path, today=DAY).input) == Decimal("0.1")


def test_a_new_model_of_openai_pays_for_writing_to_the_cache(tmp_path: Path) -> None:
    own = OWN.replace("llm.example.org", "api.openai.com").replace("some-model", "gpt-7-luna")
    path = write(tmp_path, own)
    assert per_million(price_of("gpt-7-luna", batch=False, overrides=path, today=DAY).cache_write) == Decimal("0.25")
    assert per_million(price_of("gpt-7-luna", batch=True, overrides=path, today=DAY).cache_write) == Decimal("0.125")


def test_an_own_price_without_a_discount_has_no_batch_price(tmp_path: Path) -> None:
    path = write(tmp_path, with_line("discount", ""))
    assert price_of("some-model", host="llm.example.org", batch=False, overrides=path, today=DAY).input > 0
    with pytest.raises(NoBatchPrice, match=r'add discount = "0\.5"'):
        price_of("some-model", host="llm.example.org", batch=True, overrides=path, today=DAY)


def test_a_model_that_costs_nothing_is_written_as_such(tmp_path: Path) -> None:
    free = with_line("cached_input", "").replace('"0.20"', '"0"').replace('"0.80"', '"0"')
    price = price_of("some-model", host="llm.example.org", batch=True, overrides=write(tmp_path, free), today=DAY)
    assert charge(price, {"prompt_tokens": 500, "completion_tokens": 8}) == 0
    assert age_warning(price, DAY + timedelta(days=900)) is None


def test_the_lines_in_the_message_make_an_unknown_price_known(tmp_path: Path) -> None:
    with pytest.raises(UnknownPrice) as caught:
        price_of("qwen3-8b", host="gpu1.example.org", batch=True, today=DAY)
    lines = caught.value.lines
    assert lines in str(caught.value)
    assert "prices.toml beside the database" in str(caught.value)
    blank = write(tmp_path, lines)
    with pytest.raises(PriceError, match=r"prices.toml: price 1 \(qwen3-8b\): input = ''; write dollars per million"):
        price_of("qwen3-8b", host="gpu1.example.org", batch=True, overrides=blank, today=DAY)
    for key, value in {"input": "0.06", "output": "0.24", "discount": "0.5", "source": "the invoice of May"}.items():
        lines = lines.replace(f'{key} = ""', f'{key} = "{value}"')
    price = price_of("qwen3-8b", host="gpu1.example.org", batch=True, overrides=write(tmp_path, lines), today=DAY)
    assert (price.input, price.output) == (Decimal("3e-8"), Decimal("1.2e-7"))
    assert (price.source, price.dated) == ("the invoice of May, batch", "2026-11-21")


@pytest.mark.parametrize(
    ("key", "line", "says"),
    [
        ("input", 'input = "-0.2"', "input = '-0.2'; write dollars per million tokens"),
        ("input", "input = -0.2", "input = -0.2; write dollars"),
        ("input", "input = nan", "input = NaN; write dollars"),
        ("input", "input = inf", "input = Infinity; write dollars"),
        ("input", 'input = "0,20"', "input = '0,20'; write dollars"),
        ("input", 'input = "$0.20"', "write dollars"),
        ("input", 'input = ""', "write dollars"),
        ("input", 'input = "\u0661"', "write dollars"),
        ("input", "input = true", "input = True; write dollars"),
        ("input", "input = [0.2]", "write dollars"),
        ("input", "input = 0", 'input = 0; if it really costs nothing, write "0"'),
        ("input", "input = 0.00", 'if it really costs nothing, write "0"'),
        ("output", 'output = "0.0"', "output = '0.0'; if it really costs nothing, write \"0\""),
        ("input", 'input = "1200"', "input = 1200 dollars per million tokens is more than 1000"),
        ("output", "output = 80_000", "output = 80000 dollars per million tokens is more than 10000"),
        ("input", 'input = "1e300"', "write dollars"),
        ("input", "input = 1e99999999999999999999", "is not valid TOML"),
        ("input", f"input = 0x{'f' * 5000}", "a number of more than 30 digits"),
        ("input", f"input = {'9' * 5000}", "is not valid TOML"),
        ("input", 'input = "0.0000000001"', "more than 15 decimals"),
        ("output", "", "output is missing"),
        ("cache_write", 'cache_write = "-1"', "cache_write = '-1'"),
        ("discount", "discount = 50", "discount = 50; the batch discount"),
        ("discount", "discount = 1", "the batch discount"),
        ("discount", 'discount = "half"', "the batch discount"),
        ("discount", "discount = -0.1", "the batch discount"),
        ("date", "", "date is missing; the day on which you checked, such as 2026-11-21"),
        ("date", 'date = "last week"', "date = 'last week'"),
        ("date", "date = 2026-11-31", "is not valid TOML"),
        ("date", 'date = "2026-11-31"', "date = '2026-11-31'"),
        ("date", "date = 12:30:00", "date = datetime.time"),
        ("date", "date = 2026-11-23", "date = 2026-11-23 is in the future"),
        ("source", 'source = ""', "source = ''; it must be a non-empty string on one line"),
        ("source", 'source = "a\\nb"', "it must be a non-empty string on one line"),
        ("source", "", "source is missing"),
        ("provider", 'provider = "openai"', 'it must be a host name, such as "api.openai.com"'),
        ("provider", 'provider = "https://llm.example.org/v1"', "it must be a host name"),
        ("provider", "provider = 7", "provider = 7"),
        ("model", "", "model is missing"),
        ("checked", 'checked = "yes"', "checked = 'yes'; true or false"),
        ("input_usd", 'input_usd = "0.2"', "unknown key 'input_usd'; a price has cache_write,"),
        ("outpt", "[prices]", "may contain [[price]] tables only; found 'prices'"),
    ],
)
def test_an_own_price_that_cannot_be_right_is_refused(tmp_path: Path, key: str, line: str, says: str) -> None:
    path = write(tmp_path, with_line(key, line))
    with pytest.raises(PriceError) as caught:
        price_of("gpt-4o-mini", batch=True, overrides=path, today=DAY)  # a slip is found whatever model is asked for
    assert says in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_date_may_be_text_or_have_a_time_and_may_be_tomorrow_elsewhere(tmp_path: Path) -> None:
    for line in ('date = "2026-11-22"', "date = 2026-11-22", "date = 2026-11-22T01:00:00Z"):
        (found,) = read_overrides(write(tmp_path, with_line("date", line)), today=DAY)
        assert found.sync.dated == "2026-11-22"


@pytest.mark.parametrize("usd", ["15", "0.0015", "150", "0.00015"])
def test_a_hundredfold_slip_is_refused_until_it_is_checked(tmp_path: Path, usd: str) -> None:
    own = OWN.replace("llm.example.org", "api.openai.com").replace("some-model", "gpt-4o-mini")
    own = own.replace('"0.20"', f'"{usd}"').replace("cached_input = 0.05\n", "")  # listed: 0.15
    with pytest.raises(PriceError, match=rf"\(gpt-4o-mini\): input = {usd} dollars per million tokens.* lists 0\.15;"):
        read_overrides(write(tmp_path, own), today=DAY)
    (found,) = read_overrides(write(tmp_path, f"{own}checked = true\n"), today=DAY)
    assert per_million(found.sync.input) == Decimal(usd)


def test_openai_is_not_free_until_it_is_checked(tmp_path: Path) -> None:
    own = OWN.replace("llm.example.org", "api.openai.com").replace("some-model", "gpt-4o-mini").replace('"0.80"', '"0"')
    with pytest.raises(PriceError, match="output = 0 dollars"):
        read_overrides(write(tmp_path, own), today=DAY)


def test_one_model_stands_in_the_file_once(tmp_path: Path) -> None:
    with pytest.raises(PriceError, match=r"some-model at llm\.example\.org is listed twice"):
        read_overrides(write(tmp_path, OWN + OWN), today=DAY)


@pytest.mark.parametrize("content", [b"[[price", b"\xff\xfe", b"price = 3", b"price = [1]"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "prices.toml"
    path.write_bytes(content)
    with pytest.raises(PriceError, match=r"prices\.toml"):
        read_overrides(path, today=DAY)
    with pytest.raises(PriceError, match="cannot be read"):
        read_overrides(tmp_path, today=DAY)


def test_own_prices_are_looked_for_beside_the_database_then_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, here, named = tmp_path / "db", tmp_path / "here", tmp_path / "mine.toml"
    database.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.delenv("ALPASIFT_PRICES", raising=False)
    assert find_overrides(database) is None
    write(here, OWN)
    assert find_overrides(database) == Path("prices.toml")
    write(database, OWN)
    assert find_overrides(database) == database / "prices.toml"
    monkeypatch.setenv("ALPASIFT_PRICES", str(named))
    with pytest.raises(PriceError, match="which does not exist"):
        find_overrides(database)
    named.write_text(OWN)
    assert find_overrides(database) == named


# -- age --------------------------------------------------------------------------------------------------------


def test_a_price_older_than_thirty_days_is_told() -> None:
    price = price_of("gpt-4o-mini", batch=True, today=DAY)
    assert age_warning(price, date(2026, 11, 13), "gpt-4o-mini") is None
    assert age_warning(price, date(2026, 10, 1), "gpt-4o-mini") is None
    assert age_warning(price, date(2026, 11, 14)) == (
        "these prices are from 2026-10-14, 31 days old; check https://developers.openai.com/api/docs/pricing, "
        "and put newer prices in prices.toml"
    )
    assert age_warning(price, DAY, "gpt-4o-mini") == (
        "prices of gpt-4o-mini are from 2026-10-14, 38 days old; check https://developers.openai.com/api/docs/pricing, "
        "and put newer prices in prices.toml"
    )


def test_a_price_without_a_date_is_told() -> None:
    price = Price(Decimal("1e-7"), Decimal("1e-7"), Decimal("1e-7"), Decimal("1e-7"))
    assert age_warning(price, DAY, "m") == "prices of m have no date; check them, and put newer prices in prices.toml"


def test_a_usage_of_zeros_proves_nothing_where_a_prompt_costs_money() -> None:
    def own(rate: Decimal) -> Price:
        return Price(input=rate, output=rate, cached_input=rate, cache_write=rate)

    zeros = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    paid = own(Decimal("0.000001"))
    with pytest.raises(UsageError, match="the usage is zero"):
        charge(paid, zeros)
    free = own(Decimal(0))
    assert charge(free, zeros) == 0
