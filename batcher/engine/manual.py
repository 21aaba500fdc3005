"""Batches carried manually: request files for a machine without a network, and the results that a person brings back.

Each file is written with its reservation; somebody carries it to where it is run and brings the results. Only results
of questions that this ledger exported are taken, and reading a file again changes nothing. Money and replies go through
the engine and the ledger as in every run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from alpasift.batcher.engine.collect import groups_in_flight
from alpasift.batcher.engine.run import Run
from alpasift.batcher.store import Store
from alpasift.graders import (
    AlpaSiftError,
    BudgetExceeded,
    Meter,
    Replies,
    Reply,
    WritesRequestFiles,
    open_backend,
)
from alpasift.graders.api.prices import MAX_PROMPT_TOKENS
from alpasift.graders.api.request_files import (
    FileLimits,
    LineQueue,
    RequestFile,
    file_name,
    reject_too_long,
    write_request_file,
)
from alpasift.graders.api.result_files import ResultsFound, read_results


@dataclass(frozen=True, slots=True)
class Exported:
    """Request files that were written: their paths, questions, and the most they may cost."""

    files: tuple[Path, ...]
    rows: int
    ceiling_usd: Decimal
    left: int


def export(run: Run, folder: Path) -> Exported:
    """Write the questions of a run to request files in a folder, each with its reservation. Call inside `with run`.

    What does not fit the budget is left. A folder is made if need be; files that stand there are not touched.
    """
    backend = run.backend
    if not isinstance(backend, WritesRequestFiles):
        raise AlpaSiftError(f"{backend.name} does not write request files; openai_batch:MODEL does")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    export = _Export(backend, folder)
    run.export(lambda requests, meter: export.write(LineQueue(backend.lines(requests)), meter))
    return Exported(tuple(export.files), export.rows, export.ceiling_usd, len(run.questions) - export.rows)


class _Export:
    """Request files in a folder, and what they hold together."""

    def __init__(self, backend: WritesRequestFiles, folder: Path) -> None:
        self.backend, self.folder = backend, folder
        self.files: list[Path] = []
        self.rows = 0
        self.ceiling_usd = Decimal(0)

    def write(self, lines: LineQueue, meter: Meter) -> Replies:
        """One file after the other. A file gets its final name only when its reservation is committed."""
        while lines.peek() is not None:
            free = meter.free() if self.backend.paid else None
            longest = MAX_PROMPT_TOKENS if self.backend.paid else None
            limits = FileLimits(self.backend.batch_rows, free, prompt_tokens=longest)
            written = write_request_file(lines, self.folder / f".draft-{len(self.files)}.jsonl", limits)
            yield from reject_too_long(meter, written.too_long)
            if not written.keys:
                written.path.unlink()
                if (line := lines.peek()) is not None and not self.files:
                    raise BudgetExceeded(
                        f"the next request may cost up to ${line.ceiling:f} and ${free or 0:f} is free; raise --budget"
                    )
                return
            self._reserve(written, meter)
            yield []

    def _reserve(self, written: RequestFile, meter: Meter) -> None:
        price = self.backend.price(batch=True).frozen()
        facts = {
            "kind": "by_hand",
            "backend": "openai_batch",
            "base_url": self.backend.base_url,
            "model": self.backend.model,
            "executed_by": self.backend.executed_by,
            "sha256": written.sha256,
            "bytes": written.bytes,
            "input_tokens": written.tokens,
        }
        attempt = meter.open(written.keys, written.ceilings, price, facts, outlives=True)
        path = self.folder / file_name(meter.ledger, attempt)
        written.path.rename(path)
        meter.note(attempt, "exported", {"message": f"written to {path.name}"})
        self.files.append(path)
        self.rows += len(written.keys)
        self.ceiling_usd += written.ceiling_usd


@dataclass(frozen=True, slots=True)
class Imported:
    """What a result file brought. `refused` lines name questions that this ledger did not export.

    `alarms` is what was charged that must not have been: nothing more is sent until a person has looked.
    """

    lines: int
    replies: int
    usable: int
    usd: Decimal
    refused: int
    broken: int
    in_flight: int
    repeated: bool
    alarms: tuple[str, ...] = ()


def import_results(store: Store, path: Path, executed_by: str | None = None, *, last: bool = False) -> Imported:
    """Take a result file of questions that were carried manually. With `last`, what is not in it will not come.

    Raises AlpaSiftError for a file that holds no result of this ledger, or of somebody else than it was exported for.
    """
    keys = _custom_ids(path)
    attempt, closed, facts = _exported(store, keys, path)
    made_for = facts.get("executed_by", "openai")
    if executed_by is not None and executed_by != made_for:
        raise AlpaSiftError(
            f"{path} holds answers to an export for {made_for}, not {executed_by}: grades are stored under the grader "
            f"that answered. Export again with --executed-by {executed_by}"
        )
    if closed:
        return Imported(len(keys), 0, 0, Decimal(0), 0, 0, 0, True, _alarms(store))
    group = next(g for g in groups_in_flight(store) if g.manual and attempt in g.attempts)
    backend = open_backend(group.spec, group.options)
    try:
        with group.run(store, backend, "batch import") as run:
            found = ResultsFound(run.meter.lines(attempt))
            before = _answered_before(store, attempt)
            run.take(_take_file(path, attempt, found, before, run.meter, last))
            progress = run.progress
            imported = Imported(
                len(keys),
                run.writer.stored,
                progress.usable,
                progress.usd,
                found.strays,
                found.broken,
                _without_reply(store, attempt),
                not run.writer.stored and not last,
            )
        return replace(imported, alarms=_alarms(store))
    finally:
        backend.close()


def _alarms(store: Store) -> tuple[str, ...]:
    return tuple(row["note"] for row in store.query("alarms"))


def _custom_ids(path: Path) -> list[str]:
    try:
        with path.open("rb") as lines:
            ids = [_custom_id(line) for line in lines]
    except OSError as error:
        raise AlpaSiftError(f"{path} cannot be read: {error.strerror}") from error
    return [i for i in ids if i is not None]


def _custom_id(line: bytes) -> str | None:
    try:
        value = json.loads(line).get("custom_id")
    except (ValueError, AttributeError, RecursionError):
        return None
    return value if isinstance(value, str) else None


def _exported(store: Store, keys: Sequence[str], path: Path) -> tuple[str, bool, Mapping[str, Any]]:
    """The attempt that exported most of these questions: open before closed, new before old."""
    sample = sorted({key for key in keys if key.isascii() and len(key) < 100})[:2000]
    found = store.query("manually_exported", keys=sample)
    if not found:
        raise AlpaSiftError(f"{path} holds no answer to a request that this database exported; nothing was imported")
    row = found[0]
    return str(row["attempt_id"]), bool(row["closed"]), json.loads(row["facts"])


def _without_reply(store: Store, attempt: str) -> int:
    """Questions of an attempt that is open and has no reply to them; 0 for one that is closed."""
    return int(store.query("lines_without_reply", attempt=attempt)[0]["lines"])


def _answered_before(store: Store, attempt: str) -> set[str]:
    with store.reader() as con:
        found = con.execute("select key::varchar from replies where attempt_id = $a", {"a": attempt}).fetchall()
    return {key for (key,) in found}


def _take_file(path: Path, attempt: str, found: ResultsFound, before: set[str], meter: Meter, last: bool) -> Replies:
    for replies in read_results(path, attempt, found):
        yield [reply for reply in replies if reply.key in found.asked]
    missing = [key for key in found.asked if key not in found.answered and key not in before]
    if not missing:
        meter.close(attempt)
    elif last:
        yield [
            Reply(attempt, key, f"{attempt}-missing", "unknown", error="missing: not in any result file")
            for key in missing
        ]
        meter.close(attempt)
    yield []
