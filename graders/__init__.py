"""Backends: who answers requests. Call `open_backend` first.

A backend takes requests and yields replies. It knows nothing of datasets, rubrics, tables or result files; before it
spends anything it asks a `Meter`. Each other file in this folder is one backend, found by its name:
`open_backend("llama_cpp:model.gguf")` imports `graders/llama_cpp.py` and opens what its `KIND` describes. The types
that all of them share are in `graders/interface/` and imported from here. This package never imports `batcher`, so a
backend can be used alone, and a remote worker needs nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module, resources
from typing import Any

from alpasift.graders.interface.errors import (
    AlpaSiftError,
    BackendError,
    BackendUnavailable,
    BudgetExceeded,
    SendingStopped,
)
from alpasift.graders.interface.protocols import (
    AsksServer,
    Backend,
    BackendKind,
    Collects,
    HasModelSize,
    HasPriceFile,
    Meter,
    QueueLimited,
    Replies,
    WritesRequestFiles,
)
from alpasift.graders.interface.suggestions import did_you_mean
from alpasift.graders.interface.types import (
    CHOICE_LINE_TOKENS,
    Estimate,
    Example,
    Explain,
    ModelSize,
    OpenAttempt,
    Outcome,
    Reply,
    Request,
    Turn,
    only_by,
)

__all__ = [
    "CALLED",
    "CHOICE_LINE_TOKENS",
    "AlpaSiftError",
    "AsksServer",
    "Backend",
    "BackendError",
    "BackendKind",
    "BackendUnavailable",
    "BudgetExceeded",
    "Collects",
    "Estimate",
    "Example",
    "Explain",
    "HasModelSize",
    "HasPriceFile",
    "Meter",
    "ModelSize",
    "OpenAttempt",
    "Outcome",
    "QueueLimited",
    "Replies",
    "Reply",
    "Request",
    "SendingStopped",
    "Turn",
    "WritesRequestFiles",
    "backend_kind",
    "backend_names",
    "batched",
    "did_you_mean",
    "name_of",
    "only_by",
    "open_backend",
    "options_of",
]

CALLED = {"openai": "openai_batch"}
"""What graders are called on screen, where that is no backend's name, and the backend that opens one by that name."""
NOT_OPENED = ("labels",)
"""What the name of a grader may begin with that nobody can be asked by: grades made elsewhere."""
_FILES = {"s-ifd": "s_ifd"}
"""Backends whose name is no name of a Python module, and the file of each."""
_SPEC = re.compile(r"([a-z][a-z0-9_-]*)(?::(.*))?", re.DOTALL)


def backend_names() -> list[str]:
    """The backends there are: one file in this folder each."""
    files = resources.files("alpasift.graders").iterdir()
    named = {file: name for name, file in _FILES.items()}
    stems = [f.name[:-3] for f in files if f.name.endswith(".py") and f.name != "__init__.py"]
    return sorted(named.get(stem, stem) for stem in stems)


def backend_kind(spec: str) -> BackendKind:
    """What the backend of a spec offers. Opens nothing. Raises BackendError for a name that is no backend."""
    match = _SPEC.fullmatch(spec.strip())
    name = CALLED.get(match[1], match[1]) if match else spec.partition(":")[0]
    if name in NOT_OPENED:
        raise BackendError(
            f"{spec} are imported grades and cannot grade; use that name with select, scores, agree, show "
            "and calibrate --reference"
        )
    known = backend_names()
    if not match or name not in known:
        there = f"choose from {', '.join(known)}, auto, and labels:NAME for grades that were imported"
        meant = did_you_mean(spec.partition(":")[0], [*known, *CALLED, "auto"], there)
        raise BackendError(f"no grader named {spec!r}{meant}")
    kind: BackendKind = import_module(f"alpasift.graders.{_FILES.get(name, name)}").KIND
    return kind


def options_of(spec: str) -> tuple[str, ...]:
    """The settings that the backend of a spec has, by name; none for a name that is no backend."""
    try:
        return backend_kind(spec).options
    except BackendError:
        return ()


def name_of(spec: str) -> str:
    """What the grader of a spec is called on screen: openai:MODEL of openai_batch:MODEL, llama_cpp:model.gguf of any
    path to that file. A name that is no spec is returned as it is. Opens nothing.
    """
    name, colon, argument = spec.strip().partition(":")
    if CALLED.get(name, name) not in backend_names():
        return spec
    called = backend_kind(spec).called
    if called or not colon:
        return f"{called or name}{colon}{argument}"
    return f"{name}:" + "+".join(part.rstrip("/").rpartition("/")[2] for part in argument.split("+"))


def open_backend(spec: str, options: Mapping[str, Any] | None = None) -> Backend:
    """Open the backend that a spec names: NAME or NAME:ARGUMENT, "rules" or "llama_cpp:models/llama-3.1-8b-q4.gguf".

    `options` are settings of the backend by name, "base_url" for instance; None stands for its default.
    Raises BackendError for an unknown name, a bad argument or an option that this backend does not have,
    BackendUnavailable when this machine lacks something.
    """
    kind = backend_kind(spec)
    name, _, argument = spec.strip().partition(":")
    given = {option: value for option, value in (options or {}).items() if value is not None}
    foreign = sorted(set(given) - set(kind.options))
    if foreign:
        raise BackendError(f"the grader {name} has no setting --{foreign[0].replace('_', '-')}; remove it")
    return kind.open(argument if ":" in spec else None, **given)


def batched(requests: Iterable[Request], size: int) -> Iterator[list[Request]]:
    """Requests in lists of at most `size`, in order, reading no further ahead than one list."""
    block: list[Request] = []
    for request in requests:
        block.append(request)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block
