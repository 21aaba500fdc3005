"""Open the grader that a spec names, ready to grade by a rubric: its settings, its backend, its task.

Knows specs, rubrics and the settings that backends have; nothing of offers: `auto` is resolved in planning. Call
`open_grader`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpasift.batcher.grading.lookup import split_label
from alpasift.batcher.store import Store, hash_id
from alpasift.batcher.tasks.grade import Grade, grade_for
from alpasift.graders import (
    CALLED,
    Backend,
    BackendError,
    backend_kind,
    backend_names,
    name_of,
    open_backend,
    options_of,
)
from alpasift.graders.api.price_file import find_overrides
from alpasift.graders.prompts.rubric import load_rubric

SHARED = ("base_url", "prices", "wait")
"""Settings that may be given whatever the grader is; one that has no use for them never sees them."""


@dataclass(frozen=True, slots=True)
class OpenGrader:
    """A backend and the task that it is given. `reason` says why `auto` took it; None for a grader that was named."""

    backend: Backend
    task: Grade
    reason: str | None = None


def kind(spec: str) -> str:
    """The backend of a spec: "llama_cpp" of "llama_cpp:model.gguf"."""
    name = spec.partition(":")[0].strip()
    return CALLED.get(name, name)


def is_spec(name: str) -> bool:
    """Whether a name is a spec of a backend, not the label of a grader that has graded already."""
    return kind(name) in backend_names()


def rubric_for(spec: str, rubric: str | None) -> str:
    """The rubric asked for; else the only one that the grader answers, and accuracy for all others."""
    return rubric or own_rubric(spec) or "accuracy"


def own_rubric(spec: str) -> str | None:
    """The only rubric that the grader of a spec answers, and no other grader does; None where it answers any."""
    return backend_kind(spec).rubric if is_spec(spec) else None


def own_prices(database: Path) -> str | None:
    """The user's own prices: what ALPASIFT_PRICES names, else prices.toml beside the database or in this folder."""
    found = find_overrides(database.absolute().parent)
    return str(found) if found else None


def settings_for(spec: str, settings: Mapping[str, Any], *, named: bool) -> dict[str, Any]:
    """Those of the settings that the grader of a spec has.

    Those in SHARED are passed over where it has no use for them; any other is kept where the grader was named, so that
    opening it refuses what it does not have.
    """
    own = options_of(spec)
    return {name: value for name, value in settings.items() if name in own or (named and name not in SHARED)}


def check_settings(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """The settings as given. Raises BackendError for a name that no grader has, which is a slip of the pen."""
    known = {*SHARED, *(option for name in backend_names() for option in options_of(name))}
    for name in settings or {}:
        if name not in known:
            raise BackendError(f"unknown grader setting {name!r}; choose from {', '.join(sorted(known))}")
    return dict(settings or {})


@dataclass(frozen=True, slots=True)
class Named:
    """What a person's name of a grader means: the spec that opens it, and its id where a version was named."""

    spec: str
    grader_id: str | None = None


def spec_named(store: Store, name: str) -> Named:
    """The spec of a grader that is named as it is typed or as it is shown: openai:MODEL@2, llama_cpp:model.gguf.

    A local model's file is looked for where it was when it last graded, if there is none of that name here.
    """
    plain, version = split_label(name.strip())
    shown = name_of(plain)
    grader_id = None
    for row in store.query("labels") if version is not None and store.path.exists() else ():
        if row["kind"] == "grader" and (row["name"], row["version"]) == (shown, version):
            grader_id = str(row["id"])
    spec = plain if grader_id else name
    argument = spec.partition(":")[2]
    if kind(spec) in _FROM_FILES and argument and not Path(argument).expanduser().exists() and store.path.exists():
        for row in store.query("specs_of", grader=name_of(spec), grader_id=grader_id):
            if row["spec"] and Path(row["spec"].partition(":")[2]).exists():
                return Named(row["spec"], grader_id)
    return Named(spec, grader_id)


_FROM_FILES = ("llama_cpp", "vllm", "ifd", "s-ifd", "fit")


@contextmanager
def open_named(
    store: Store,
    name: str,
    rubric: str | None = None,
    settings: Mapping[str, Any] | None = None,
    asking: Mapping[str, Any] | None = None,
) -> Iterator[OpenGrader]:
    """The grader that a name or spec means, closed at the end of the block.

    Raises what `open_grader` raises, and BackendError where a version is named and this would be another grader.
    """
    named = spec_named(store, name)
    with open_grader(named.spec, rubric, settings, asking) as opened:
        if named.grader_id is not None:
            _check_version(store, name, named.grader_id, opened.backend)
        yield opened


def _check_version(store: Store, name: str, grader_id: str, backend: Backend) -> None:
    made_of = json.dumps(dict(backend.fingerprint), sort_keys=True)
    if hash_id("grader", backend.name, made_of) == grader_id:
        return
    known = next(json.loads(row["fingerprint"]) for row in store.query("labels") if row["id"] == grader_id)
    differ = [
        f"{key} was {known.get(key)}, is {backend.fingerprint.get(key)}"
        for key in sorted({*known, *backend.fingerprint})
        if known.get(key) != backend.fingerprint.get(key)
    ]
    raise BackendError(
        f"{name} graded with different settings: {'; '.join(differ)}. Give the same settings (--base-url, "
        f"--context and so on), or omit the version: --grader {split_label(name)[0]}"
    )


@contextmanager
def open_grader(
    spec: str,
    rubric: str | None = None,
    settings: Mapping[str, Any] | None = None,
    asking: Mapping[str, Any] | None = None,
) -> Iterator[OpenGrader]:
    """The grader that a spec names, closed at the end of the block.

    `settings` are the backend's (graders.options_of), `asking` what `grade_for` takes: answer_format, samples,
    temperature. Raises BackendError for a spec or settings that are none, BackendUnavailable where it cannot answer
    here, RubricError.
    """
    backend = open_backend(spec, settings_for(spec, settings or {}, named=True))
    try:
        yield OpenGrader(backend, grade_for(load_rubric(rubric_for(spec, rubric)), backend, **(asking or {})))
    finally:
        backend.close()
