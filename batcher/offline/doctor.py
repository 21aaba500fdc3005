"""What is missing on this machine for each grader, with and without a network.

Start at `doctor` and `offline_doctor`. Looks at packages, files and the environment; opens no model, connects to
nothing, writes nothing.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from alpasift.batcher.grading.open_grader import kind
from alpasift.batcher.offline.wheels import installed_version
from alpasift.batcher.planning.offers import USUAL, named_graders
from alpasift.batcher.store import Store, scalar
from alpasift.graders import AlpaSiftError, backend_kind, backend_names
from alpasift.graders.api.price_file import find_overrides, read_overrides
from alpasift.graders.api.price_lookup import age_warning, price_of
from alpasift.graders.api.prices import PriceError
from alpasift.graders.api.tokens import tokenizer_for
from alpasift.graders.offline.guard import is_here
from alpasift.graders.prompts.rubric import load_rubric, rubric_names
from alpasift.train.export.gguf_writer import missing_requirements as missing_to_write_gguf
from alpasift.train.fit.cards import NoCard, found_card
from alpasift.train.prepare import missing_requirements as missing_to_train

VOCABULARIES = {"o200k_base": "gpt-4.1-nano", "cl100k_base": "gpt-4"}
"""The vocabularies that come with splintr-rs, and a model of each."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. `fix` is what to do where it is not ok, or will soon not be."""

    what: str
    ok: bool
    message: str
    fix: str = ""

    def as_row(self) -> dict[str, str | bool]:
        """With the keys that `doctor --json` has had from its beginning."""
        return {"what": self.what, "ok": self.ok, "message": self.message, "fix": self.fix}


def doctor(database: str) -> list[Check]:
    """What each grader and training need here, and the state of the machine itself."""
    path = Path(database)
    folder = path.absolute().parent
    free = shutil.disk_usage(folder if folder.is_dir() else "/").free
    named = named_graders()
    return [
        *(_needs(f"grader {name}", backend_kind(name).missing_requirements(), "ready") for name in backend_names()),
        _needs("training", missing_to_train(), "ready"),
        _needs("export to GGUF", missing_to_write_gguf(), "ready"),
        _card(),
        Check("python", True, f"{platform.python_version()} on {platform.machine()}, {os.cpu_count()} cores"),
        _database(path),
        Check("disk", free > 2**30, f"{free / 2**30:.1f} GiB free beside the database"),
        Check("--grader auto", bool(named), ", ".join(named) or "ALPASIFT_GRADERS is empty"),
    ]


def _needs(what: str, missing: str | None, message: str, fix: str = "") -> Check:
    """A check that fails with `missing`, and passes with `message` where nothing is missing."""
    return Check(what, missing is None, missing or message, "" if missing is None else fix)


def _card() -> Check:
    """The card that a model would be trained on."""
    try:
        card = found_card()
    except NoCard as error:
        return Check("card", True, f"{str(error).split(';')[0]}; training uses the CPU")
    precision = "bf16" if card.bf16 else "fp16"
    return Check("card", True, f"{card.label}, {card.usable_bytes / 2**30:.1f} GiB usable, {precision}")


def _database(path: Path) -> Check:
    if not path.exists():
        return Check("database", True, f"there is no {path} yet; the first import creates it")
    try:
        with Store(path, wait=2.0).reader() as con:
            scalar(con, "select count(*) from migrations")
    except AlpaSiftError as error:
        return Check("database", False, str(error))
    return Check("database", True, f"{path}, {path.stat().st_size / 2**20:.1f} MiB")


# -- without a network --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OfflineReport:
    """What works without a network here, and whether every named grader does."""

    checks: list[Check]
    named_ok: bool


def offline_doctor(named: Sequence[str], database: str) -> OfflineReport:
    """Check each backend, each named grader (`named`, and those of ALPASIFT_GRADERS), and what grading depends on."""
    graders = [_named_grader(spec) for spec in named_graders(named)]
    checks = [
        *(_backend(name, f"grader {name}") for name in backend_names()),
        *graders,
        _needs(
            "training", missing_to_train(), "works without a network, given a model folder", _carry("--extra train")
        ),
        *_vocabularies(),
        _prices(database),
        _rubrics(),
        _children(),
    ]
    return OfflineReport(checks, all(check.ok for check in graders))


def _carry(packages: str = "") -> str:
    """How to get packages onto a machine without a network."""
    return f"with a network: {' '.join(f'alpasift bundle create DIR --wheels {packages}'.split())}; copy DIR here"


def _backend(name: str, what: str) -> Check:
    """Whether a backend works without a network, whatever model it is given."""
    if name.startswith("openai"):
        return _openai(what, "openai_batch:MODEL")
    missing = backend_kind(name).missing_requirements()
    extra, message = {
        "llama_cpp": ("llama", "works without a network, given a GGUF file"),
        "vllm": ("vllm", "works without a network, given a model folder"),
        **dict.fromkeys(
            ("ifd", "s-ifd", "fit"), ("llama", "works without a network, given a GGUF file or model folder")
        ),
    }.get(name, (None, "works without a network"))
    return _needs(what, missing, message, _carry(f"--extra {extra}") if extra else "")


def _openai(what: str, spec: str) -> Check:
    from alpasift.graders.api.connection import DEFAULT_BASE_URL, host_of

    host = host_of(os.environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL)
    if is_here(host):
        return Check(what, True, f"works without a network: {host} is this machine")
    return Check(
        what,
        False,
        f"cannot work without a network: {host} is another machine",
        "transfer the batches as files: alpasift batch export DIR --grader "
        f"{spec.replace('openai_chat', 'openai_batch')}, then alpasift batch import; or use a server on this machine: "
        "OPENAI_BASE_URL=http://127.0.0.1:8000/v1",
    )


def _named_grader(spec: str) -> Check:
    """Whether a grader that a person has named works without a network, its model included."""
    name = kind(spec)
    if name not in backend_names():
        message = f"no grader named {name}; choose from {', '.join(backend_names())}"
        return Check(spec, False, message, "correct the name")
    if name.startswith("openai"):
        return _openai(spec, spec)
    backend = _backend(name, spec)
    if not backend.ok:
        return backend
    fix = "with a network: alpasift bundle create DIR --model PATH; copy DIR here"
    problem = backend_kind(name).problem_with_model(spec.partition(":")[2])
    return _needs(spec, problem, "works without a network", fix)


def _vocabularies() -> list[Check]:
    checks = []
    for name, model in VOCABULARIES.items():
        loaded = tokenizer_for(model).name == name
        missing = None if loaded else f"{name} cannot be loaded from the package splintr-rs"
        message = f"comes with splintr-rs {_version('splintr-rs')}; loads"
        checks.append(_needs(f"vocabulary {name}", missing, message, _carry()))
    return checks


def _prices(database: str) -> Check:
    try:
        own = find_overrides(Path(database).absolute().parent)
        count = len(read_overrides(own)) if own else 0
        dated = prices_dated()
    except PriceError as error:
        return Check("prices", False, str(error), "correct the file")
    today = datetime.now(UTC).date()
    message = f"genai-prices {_version('genai-prices')}, of {dated}" + (
        f"; {count} of your own in {own}" if own else ""
    )
    usual = price_of(USUAL[0].partition(":")[2], batch=True)
    old = age_warning(usual, today) if any((usual.input, usual.output)) else None
    fix = "look the prices up and copy a prices.toml here, or a newer genai-prices: alpasift bundle create DIR --wheels"
    # Old prices stop no grader, so the check passes, and the fix is printed all the same.
    return Check("prices", True, f"{message}; {(today - dated).days} days old", fix if old else "")


def prices_dated() -> date:
    """The date of the installed price table: the oldest on which a price of the usual models was verified."""
    usual = [price_of(spec.partition(":")[2], batch=True) for spec in USUAL]
    return min(date.fromisoformat(price.dated) for price in usual)


def _rubrics() -> Check:
    try:
        rubrics = [load_rubric(name) for name in rubric_names()]
    except AlpaSiftError as error:
        return Check("rubrics", False, str(error), "install alpasift again")
    return Check("rubrics", True, f"come with alpasift: {', '.join(one.name for one in rubrics)}")


def _children() -> Check:
    """Whether --offline also holds the Python processes that this one starts."""
    isolated = sys.flags.ignore_environment or sys.flags.no_site
    missing = (
        "this Python was started with -I, -E or -S, so --offline would not apply to the Python processes it starts"
        if isolated
        else None
    )
    message = "applies to this process and the Python processes it starts"
    return _needs("--offline", missing, message, "start alpasift without these flags")


def _version(package: str) -> str:
    return installed_version(package) or "(not installed)"
