"""Batches that are out: collect them, stop them, or carry their files by hand.

Knows what an attempt wrote down about itself, and how to make the grader and the task from it again, so that a batch can
be collected by any later process, whatever has become of the rubric's file or the command that sent it. Money and
replies go through the engine and the ledger as in every run.

By hand: for a machine without a network the request files are written to a folder, with their reservation; somebody
carries them to where they are run and brings the results back. Only results of questions that this ledger exported are
taken, and reading a file again changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from batcher.engine import Run
from batcher.questions import Setup
from batcher.store import Store
from batcher.tasks.grade import Grade
from graders import AlpaSiftError, Backend, BudgetExceeded, Meter, Reply, open_backend
from graders.batch_files import Found, read_results
from graders.rubric import rubric_of


class NoSuchBatch(AlpaSiftError):
    """No batch that is out has this name."""


@dataclass(frozen=True, slots=True)
class Group:
    """Batches that are out for one grader and one way of asking: what is needed to look after them."""

    spec: str
    options: Mapping[str, Any]
    setup: Setup
    rubric: Mapping[str, Any]
    version_id: str
    attempts: tuple[str, ...]
    by_hand: bool


def groups_out(store: Store) -> list[Group]:
    """What is out, by grader and setup. Batches at a provider and files carried by hand are groups of their own."""
    found: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for row in store.query("batches_out"):
        found.setdefault((str(row["setup_id"]), row["kind"] == "by_hand"), []).append(row)
    return [_group(rows, by_hand) for (_, by_hand), rows in found.items()]


def _group(rows: Sequence[Mapping[str, Any]], by_hand: bool) -> Group:
    last = rows[-1]
    facts = json.loads(last["attempt_facts"])
    ids = [str(last[name]) for name in ("setup_id", "grader_id", "rubric_id")]
    options = {
        "base_url": facts.get("base_url"),
        "stands_for": facts.get("stands_for"),
        "executed_by": facts.get("executed_by"),
    }
    return Group(
        spec=f"{facts['backend']}:{facts['model']}",
        options={k: v for k, v in options.items() if v},
        setup=Setup(ids[0], ids[1], ids[2], last["fingerprint"], last["decoding"]),
        rubric=json.loads(last["rubric_content"]),
        version_id=str(last["version_id"]),
        attempts=tuple(str(row["attempt_id"]) for row in rows),
        by_hand=by_hand,
    )


def _run(store: Store, group: Group, backend: Backend, command: str) -> Run:
    task = Grade(rubric_of(group.rubric), json.loads(group.setup.decoding)["contract"])
    return Run(store, task, backend, group.version_id, command=command, setup=group.setup, collecting=True)


@dataclass(frozen=True, slots=True)
class Collected:
    """What a look at the batches brought: replies, dollars they cost, and questions that are still out."""

    replies: int
    scored: int
    usd: Decimal
    still_out: int


def collect(store: Store, options: Mapping[str, Any] | None = None, *, wait: bool = False) -> Collected:
    """Ask after everything that is out and keep what has come; with `wait`, until nothing is out. Sends nothing new."""
    replies = scored = still = 0
    usd = Decimal(0)
    for group in [g for g in groups_out(store) if not g.by_hand]:
        backend = open_backend(group.spec, {**group.options, **(options or {}), "wait": wait})
        try:
            with _run(store, group, backend, "collect") as run:
                still += run.gather(wait=wait)
                replies, scored, usd = (
                    replies + run.progress.replied,
                    scored + run.progress.scored,
                    usd + run.progress.usd,
                )
        finally:
            backend.close()
    return Collected(replies, scored, usd, still)


def cancel(
    store: Store, what: str | None, options: Mapping[str, Any] | None = None, *, wait: bool = False
) -> Collected:
    """Stop the batch of that id (or attempt, or a beginning of either; None: all), and settle what was done of it."""
    rows = [row for row in store.query("batches_out") if what is None or _is_called(row, what)]
    if not rows:
        raise NoSuchBatch(
            f"no batch that is out is called {what!r}; `alpasift status` lists them" if what else "no batch is out"
        )
    if what is not None and len(rows) > 1:
        raise NoSuchBatch(f"{len(rows)} batches that are out begin with {what!r}; write more of the name")
    wanted = {str(row["attempt_id"]) for row in rows}
    replies = scored = still = 0
    usd = Decimal(0)
    for group in groups_out(store):
        mine = [attempt for attempt in group.attempts if attempt in wanted]
        if not mine:
            continue
        backend = open_backend(group.spec, {**group.options, **(options or {}), "wait": wait})
        try:
            with _run(store, group, backend, "cancel") as run:
                for attempt in mine:
                    if group.by_hand:
                        run.take_by_hand(_given_up(run.meter, attempt))
                    else:
                        run.cancel(attempt)
                still += run.out_of(mine)
                replies, scored, usd = (
                    replies + run.progress.replied,
                    scored + run.progress.scored,
                    usd + run.progress.usd,
                )
        finally:
            backend.close()
    return Collected(replies, scored, usd, still)


def _is_called(row: Mapping[str, Any], what: str) -> bool:
    return str(row["attempt_id"]).startswith(what) or bool(row["batch_id"] and str(row["batch_id"]).startswith(what))


def _given_up(meter: Meter, attempt: str) -> Iterator[list[Reply]]:
    """Files that nobody will bring back: whether they were run is not known here, so their money becomes unresolved."""
    meter.close(attempt)
    yield []


# -- by hand ----------------------------------------------------------------------------------------------------


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
    lines = getattr(backend, "lines", None)
    if lines is None:
        raise AlpaSiftError(f"{backend.name} cannot be carried by hand; openai_batch:MODEL can")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    writer = _Writer(backend, folder)
    run.go_by_hand(lambda requests, meter: writer.write(lines(requests), meter))
    return Exported(tuple(writer.files), writer.rows, writer.ceiling_usd, len(run.questions) - writer.rows)


class _Writer:
    def __init__(self, backend: Any, folder: Path) -> None:
        self.backend, self.folder = backend, folder
        self.files: list[Path] = []
        self.rows = 0
        self.ceiling_usd = Decimal(0)

    def write(self, lines: Iterator[Any], meter: Meter) -> Iterator[list[Reply]]:
        """One file after the other. A file gets its final name only when its reservation is committed."""
        from graders.batch_desk import MAX_BYTES

        rest, line = lines, next(lines, None)
        while line is not None:
            free = meter.free() if self.backend.paid else None
            draft = self.folder / f".draft-{len(self.files)}.jsonl"
            keys: list[str] = []
            ceilings: list[Decimal] = []
            size, tokens, total, digest = 0, 0, Decimal(0), hashlib.sha256()
            with draft.open("wb") as file:
                draft.chmod(0o600)
                while line is not None and len(keys) < self.backend.batch_rows and size + len(line.data) <= MAX_BYTES:
                    if free is not None and total + line.ceiling > free:
                        break
                    keys.append(line.key)
                    ceilings.append(line.ceiling)
                    size, tokens, total = size + len(line.data), tokens + line.tokens, total + line.ceiling
                    file.write(line.data)
                    digest.update(line.data)
                    line = next(rest, None)
            if not keys:
                draft.unlink()
                if not self.files:
                    assert line is not None
                    raise BudgetExceeded(
                        f"the next question may cost up to ${line.ceiling:f} and ${free:f} is free; raise --budget"
                    )
                return
            facts = {
                "kind": "by_hand", "backend": "openai_batch", "base_url": self.backend.base_url, "model": self.backend.model,
                "sha256": digest.hexdigest(), "bytes": size, "input_tokens": tokens,
                "executed_by": "vllm" if self.backend.by_hand else "openai",
            }  # fmt: skip
            price = self.backend.price(batch=True).frozen()
            attempt = meter.open(keys, ceilings, price, facts, outlives=True)
            path = self.folder / f"alpasift-{meter.ledger}-{attempt}.jsonl"
            draft.rename(path)
            meter.note(attempt, "exported", {"says": f"written to {path.name}"})
            self.files.append(path)
            self.rows += len(keys)
            self.ceiling_usd += total
            yield []


@dataclass(frozen=True, slots=True)
class Imported:
    """What a result file brought. `refused` lines name questions that this ledger did not export."""

    lines: int
    replies: int
    scored: int
    usd: Decimal
    refused: int
    broken: int
    still_out: int
    repeated: bool


def bring(store: Store, path: Path, executed_by: str | None = None, *, last: bool = False) -> Imported:
    """Take a result file of questions that were carried by hand. With `last`, what is not in it will not come.

    Raises AlpaSiftError for a file that holds no result of this ledger, or of somebody else than it was exported for.
    """
    keys = _custom_ids(path)
    attempt, closed, facts = _exported(store, keys, path)
    made_for = facts.get("executed_by", "openai")
    if executed_by is not None and executed_by != made_for:
        raise AlpaSiftError(
            f"{path} holds answers to what was exported for {made_for}, not {executed_by}: grades are kept under the grader "
            f"that answers. Export again with --executed-by {executed_by}"
        )
    if closed:
        return Imported(len(keys), 0, 0, Decimal(0), 0, 0, 0, True)
    group = next(g for g in groups_out(store) if g.by_hand and attempt in g.attempts)
    backend = open_backend(group.spec, group.options)
    try:
        with _run(store, group, backend, "batch import") as run:
            found = Found(run.meter.lines(attempt))
            before = _answered_before(store, attempt)
            run.take_by_hand(_take_file(path, attempt, found, before, run.meter, last))
            progress = run.progress
            return Imported(
                len(keys), progress.replied, progress.scored, progress.usd, found.strays, found.broken,
                run.out_of([attempt]), False,
            )  # fmt: skip
    finally:
        backend.close()


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
    except (ValueError, AttributeError):
        return None
    return value if isinstance(value, str) else None


def _exported(store: Store, keys: Sequence[str], path: Path) -> tuple[str, bool, Mapping[str, Any]]:
    """The attempt that exported most of these questions: open before closed, new before old."""
    sample = sorted(set(keys))[:2000]
    found = store.query("exported_by_hand", keys=sample)
    if not found:
        raise AlpaSiftError(f"{path} holds no answer to a question that this database exported; nothing was taken")
    row = found[0]
    return str(row["attempt_id"]), bool(row["closed"]), json.loads(row["facts"])


def _answered_before(store: Store, attempt: str) -> set[str]:
    with store.reader() as con:
        found = con.execute("select key::varchar from replies where attempt_id = $a", {"a": attempt}).fetchall()
    return {key for (key,) in found}


def _take_file(
    path: Path, attempt: str, found: Found, before: set[str], meter: Meter, last: bool
) -> Iterator[list[Reply]]:
    for replies in read_results(path, attempt, found):
        yield [reply for reply in replies if reply.key in found.asked]
    missing = [key for key in found.asked if key not in found.answered and key not in before]
    if not missing:
        meter.close(attempt)
    elif last:
        yield [
            Reply(attempt, key, f"{attempt}-missing", "unknown", error="missing: in no result file") for key in missing
        ]
        meter.close(attempt)
    yield []
