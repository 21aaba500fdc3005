"""A rehearsal: the same command against a server on this machine, on a copy of the database, at no cost.

Knows how to set the stage and clear it again: a throw-away copy whose ledger is a fork, the server of
`alpasift.graders.rehearsal.server` in a process of its own, and an environment without the real key. The copy is
deleted at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from alpasift.batcher.money.copies import fork
from alpasift.batcher.money.ledger import balance
from alpasift.batcher.money.meter import batch_folder
from alpasift.batcher.store import Store
from alpasift.batcher.store.copying import copy_file
from alpasift.graders import AlpaSiftError, BackendError, options_of
from alpasift.graders.api.connection import DEFAULT_BASE_URL, base_url_of, host_of, is_loopback
from alpasift.graders.api.price_lookup import price_of
from alpasift.graders.api.prices import Price

KEY = "rehearsal"
PLENTY = Decimal(1_000_000)


@contextlib.contextmanager
def rehearsal(
    store: Store, spec: str, options: Mapping[str, Any], budget: Decimal | None
) -> Iterator[tuple[Store, dict[str, Any], Decimal]]:
    """A copy of the store, the settings that lead to the local server, and the budget of the real command.

    Without a budget given or set, a large one, so that the rehearsal shows what the whole would cost. The real key is
    taken out of this process's environment for as long as the block runs. Raises AlpaSiftError for a grader that asks
    no server, and for an address other than the rehearsal's own.
    """
    name, _, model = spec.partition(":")
    if "stands_for" not in options_of(spec):
        raise BackendError(f"{name} calls no server, so there is nothing to rehearse; remove --rehearse")
    given = options.get("base_url") or os.environ.get("OPENAI_BASE_URL")
    stands_for = base_url_of(given) if given else DEFAULT_BASE_URL
    if given and is_loopback(host_of(stands_for)):
        raise BackendError("a rehearsal starts its own server; remove --base-url")
    with tempfile.TemporaryDirectory(prefix="alpasift-rehearsal-") as folder, store.reader() as con:
        real = balance(con)
        copy = Path(folder) / "rehearsal.duckdb"
        for source in store.files():
            if source.is_file() and source.suffix != ".lock":
                copy_file(source, copy.with_name(copy.name + source.name.removeprefix(store.path.name)))
        with contextlib.ExitStack() as stack:
            stack.enter_context(_environment())
            prices = _prices(model, host_of(stands_for), options.get("prices"))
            url = stack.enter_context(_server(Path(folder), model, prices))
            settings = {k: v for k, v in _settings(options, url, stands_for).items() if k in options_of(spec)}
            yield _ready(Store(copy).existing()), settings, budget or real.free or PLENTY


def _ready(copy: Store) -> Store:
    fork(copy, "a rehearsal")
    shutil.rmtree(batch_folder(copy.path), ignore_errors=True)
    return copy


def _settings(options: Mapping[str, Any], url: str, stands_for: str) -> dict[str, Any]:
    return {"poll_seconds": 0.2, "grace_seconds": 0.0, **options, "base_url": url, "stands_for": stands_for}


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    before = dict(os.environ)
    for name in ("OPENAI_API_KEY", "OPENAI_API_KEY_FILE", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        os.environ.pop(name, None)
    os.environ["OPENAI_API_KEY"] = KEY
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _prices(model: str, host: str, overrides: str | None) -> dict[str, dict[str, str]]:
    """What the server bills by: the real price, so that its bill is what the real one would be for these answers."""
    price = price_of(model, host=host, batch=False, overrides=Path(overrides) if overrides else None)

    def million(usd: Decimal) -> str:
        return format(usd * 1_000_000, "f")

    def rates(price: Price) -> dict[str, str]:
        return {
            "input": million(price.input),
            "output": million(price.output),
            "cached_input": million(price.cached_input),
            "cache_write": million(price.cache_write),
        }

    return {model: rates(price)}


@contextlib.contextmanager
def _server(folder: Path, model: str, prices: Mapping[str, Any]) -> Iterator[str]:
    table = folder / "prices.json"
    table.write_text(json.dumps(prices), "utf-8")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OPENAI_")}
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "alpasift.graders.rehearsal",
            "--port",
            "0",
            "--key",
            KEY,
            "--prices",
            str(table),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=clean,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield str(json.loads(line)["url"])
        except ValueError as error:
            raise AlpaSiftError("the rehearsal server did not start; run again") from error
    finally:
        process.terminate()
        process.wait(10)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
