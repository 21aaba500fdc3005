"""The Python API: a database as an object, for notebooks and scripts. A skin, as thin as the command line.

    import alpasift

    db = alpasift.open("lab.duckdb")
    db.import_file("rows.jsonl")
    db.grade(grader="rules")
    kept = db.select("kept", min_score=1)
    db.export("kept.jsonl", selection=kept.label)

Each method calls the function that the command of its name calls, and returns what that function returns: a dataclass,
or the rows of a query as dicts. Nothing is printed, nobody is asked, and no connection stays open, so that other
programs can use the file between two calls. What AlpaSift can explain is raised as an AlpaSiftError; where a
message names an option (--limit), the keyword of that name is meant (limit).

Dollars are given as text, int or Decimal ("0.50"); a float is refused, since 0.1 is no exact amount. Scores and shares
may be floats: 4.5 is read as the text "4.5". What comes back is Decimal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from decimal import Decimal, InvalidOperation
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal

from alpasift.batcher.data.importing import Imported, import_file
from alpasift.batcher.data.versions import resolve
from alpasift.batcher.engine.collect import Collected, cancel, collect
from alpasift.batcher.engine.consent import NotConfirmed, SpendingOffer, spending_offer
from alpasift.batcher.engine.progress import line_every
from alpasift.batcher.engine.run_task import Caps, run_task
from alpasift.batcher.engine.run_task import Confirm as EngineConfirm
from alpasift.batcher.engine.status import Status, status_of
from alpasift.batcher.engine.summary import Progress, Summary
from alpasift.batcher.grading.audit import Audited, run_audit
from alpasift.batcher.grading.calibration_threshold import calibrated_condition
from alpasift.batcher.grading.condition import Combine, Condition, Order
from alpasift.batcher.grading.lookup import By, labels_named
from alpasift.batcher.grading.open_grader import check_settings, open_named, own_prices
from alpasift.batcher.grading.rehearsed import rehearsed
from alpasift.batcher.grading.results import Exported, export
from alpasift.batcher.grading.select import select
from alpasift.batcher.grading.selections import Selection
from alpasift.batcher.money.accounts import Accounts, accounts_of
from alpasift.batcher.money.dollars import parse_usd
from alpasift.batcher.planning.auto import grader_for
from alpasift.batcher.planning.plan import Limits, Plan, plan
from alpasift.batcher.store import QueryResult, Store, named_query
from alpasift.graders import AlpaSiftError, Backend, Estimate
from alpasift.graders.offline.guard import go_offline, is_offline

Dollars = str | int | Decimal
Number = str | int | float | Decimal
AnyPath = str | PathLike[str]
Confirm = bool | Callable[[SpendingOffer], bool]
Show = bool | Callable[[Progress], None]
Rows = list[dict[str, Any]]

__all__ = [
    "Accounts",
    "Audited",
    "Collected",
    "Database",
    "Exported",
    "Imported",
    "NotConfirmed",
    "Plan",
    "Progress",
    "QueryResult",
    "Selection",
    "SpendingOffer",
    "Status",
    "Summary",
    "open_database",
]


def open_database(path: AnyPath) -> Database:
    """What `alpasift.open` calls. Raises StoreError for a file that is no database."""
    if is_offline():  # ALPASIFT_OFFLINE=1 holds a notebook as it holds the command
        go_offline()
    return Database(path)


class Database:
    """One database file, checked and brought up to date; nothing stays open. `alpasift.open(path)` makes one."""

    def __init__(self, path: AnyPath) -> None:
        self._store = Store(path)
        if self._store.path.exists():
            self._store.existing()

    @property
    def path(self) -> Path:
        return self._store.path

    def __repr__(self) -> str:
        return f"alpasift.open({str(self.path)!r})"

    # -- rows in and out ----------------------------------------------------------------------------------------

    def import_file(
        self,
        path: AnyPath,
        *,
        dataset: str | None = None,
        row_format: str = "auto",
        mapping: Mapping[str, str] | None = None,
        strict: bool = False,
        split: str | None = None,
    ) -> Imported:
        """Import a file as a dataset, named after the file unless `dataset` says otherwise. Makes the database.

        The same file again adds nothing; a changed file becomes NAME@2. `mapping` says which key of the file holds
        ours, `strict` stops at the first bad row instead of skipping it, `split` names a part of a folder.

        Example:
            db.import_file("qa.csv", mapping={"instruction": "question", "output": "answer"})
        """
        return import_file(
            self._store,
            Path(path),
            dataset=dataset,
            row_format=row_format,
            mapping=mapping,
            strict=strict,
            split=split,
        )

    def export(
        self,
        path: AnyPath,
        *,
        selection: str | None = None,
        dataset: str | None = None,
        file_format: str | None = None,
        row_format: str | None = None,
        figures: Sequence[str] = (),
        grader: str | None = None,
        rubric: str | None = None,
        force: bool = False,
    ) -> Exported:
        """Write a selection, or a whole dataset, with its manifest, to a file whose suffix says the format.

        `figures` of each row's grade are written with it (the command's --with): "score", "reason", "explanation" and
        others. `force` replaces a file that was not written for this.

        Example:
            db.export("kept.parquet", selection="kept", figures=["score", "reason"])
        """
        return export(
            self._store,
            fspath(path),
            selection=selection,
            dataset=dataset,
            format_name=file_format,
            row_format=row_format,
            figures=figures,
            grader=grader,
            rubric=rubric,
            force=force,
        )

    # -- grading ------------------------------------------------------------------------------------------------

    def plan(
        self,
        *,
        grader: str | Sequence[str] = (),
        rubric: str | None = None,
        dataset: str | None = None,
        max_usd: Dollars | None = None,
        max_hours: float | None = None,
        local_only: bool = False,
        answer_format: str | None = None,
        samples: int | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Plan:
        """What each grader would cost for the rows that it has not graded yet. Sends nothing, spends nothing.

        Example:
            for offer in db.plan(grader="openai_batch:gpt-4.1-nano").offers:
                if offer.estimate:
                    offer.grader, offer.estimate.usd, offer.estimate.ceiling_usd
        """
        return plan(
            self._store.existing(),
            [grader] if isinstance(grader, str) else grader,
            Limits(_dollars(max_usd), max_hours, local_only),
            dataset=dataset,
            rubric=rubric,
            settings=self._settings(settings),
            asking=_given(answer_format=answer_format, samples=samples),
        )

    def grade(
        self,
        *,
        grader: str,
        rubric: str | None = None,
        dataset: str | None = None,
        limit: int | None = None,
        budget: Dollars | None = None,
        run_budget: Dollars | None = None,
        confirm: Confirm = False,
        progress: Show = False,
        wait: bool = True,
        retry: bool = False,
        keep_going: bool = False,
        rehearse: bool = False,
        max_hours: float | None = None,
        answer_format: str | None = None,
        samples: int | None = None,
        temperature: float | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Summary:
        """Grade every row of a dataset that this grader has not graded. Interrupted, the same call resumes.

        Example:
            db.grade(grader="fake", rubric="accuracy")

        A grader that costs money needs a budget, the most this database may ever spend, set once; and consent:
        `confirm` is True, or a function that is given the SpendingOffer and returns whether to spend it. Without
        consent nothing is sent, and NotConfirmed says what it would have cost.

        Example:
            db.grade(grader="openai_chat:gpt-4.1-nano", budget="5", confirm=lambda offer: offer.ceiling_usd < 1)

        `progress` True writes a line to stderr every few seconds, a function gets each Progress. `wait` False submits
        batches and returns; `collect` fetches their results. `rehearse` runs against a server on this machine, on a
        copy of the database, at no cost. `keep_going` grades on though hardly any of the first answers can be read.
        `settings` are the grader's own, by the names of the command's options:
        {"in_flight": 16}.

        Returns how the run ended: outcome "done", or "partial" when the budget was reached or batches are in flight.
        Raises NoBudget, BudgetExceeded, NotConfirmed, BackendUnavailable, BackendError, LedgerAlarm, AnotherRun,
        GraderUnreadable.
        """
        caps = Caps(limit, _dollars(budget), _dollars(run_budget), keep_going)
        given = {**self._settings(settings), **({} if wait else {"wait": False})}
        asking = _given(answer_format=answer_format, samples=samples, temperature=temperature)
        store = self._store.existing()
        with ExitStack() as stack:
            if rehearse:
                store, grader, given, caps = stack.enter_context(rehearsed(store, grader, given, caps))
            version = resolve(store, dataset)
            opened = stack.enter_context(
                grader_for(
                    store, version.version_id, grader, rubric, given, asking, max_hours=max_hours, budget=caps.budget
                )
            )
            return run_task(
                store,
                version.version_id,
                opened.task,
                opened.backend,
                caps,
                command="grade",
                retry=retry,
                confirm=_consent(rehearse or confirm),
                progress=_shown(progress),
            )

    def collect(self, *, wait: bool = False, settings: Mapping[str, Any] | None = None) -> Collected:
        """Fetch the results of batches that have finished; with `wait`, until none is in flight. Sends nothing new.

        Example:
            db.collect().in_flight
        """
        return collect(self._store.existing(), check_settings(settings), wait=wait)

    def cancel(
        self,
        batch: str | None = None,
        *,
        everything: bool = False,
        wait: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> Collected:
        """Cancel the batch of that id, or with `everything` all in flight, and settle what is done; finished rows stay.

        Example:
            for batch in db.in_flight():
                db.cancel(batch["batch_id"])
        """
        if (batch is None) != everything:
            raise AlpaSiftError("give one batch (in_flight() lists them), or everything=True")
        return cancel(self._store.existing(), batch, check_settings(settings), wait=wait)

    def audit(
        self,
        *,
        grader: str,
        rows: int = 200,
        seed: int = 0,
        rubric: str | None = None,
        dataset: str | None = None,
        budget: Dollars | None = None,
        run_budget: Dollars | None = None,
        confirm: Confirm = False,
        progress: Show = False,
        answer_format: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Audited:
        """Test without labels what a grader can tell apart: rows as they are against the same rows damaged.

        Budget, consent and resuming are as with `grade`; `result` is None until every question is answered.

        Example:
            db.audit(grader="rules", rows=50).result.verdict.line
        """
        store = self._store.existing()
        caps = Caps(None, _dollars(budget), _dollars(run_budget))
        with open_named(store, grader, rubric, self._settings(settings), _given(answer_format=answer_format)) as opened:
            return run_audit(
                store,
                resolve(store, dataset),
                opened,
                rows,
                seed,
                caps,
                confirm=_consent(confirm),
                progress=_shown(progress),
            )

    # -- reading and choosing -----------------------------------------------------------------------------------

    def scores(
        self,
        *,
        dataset: str | None = None,
        grader: str | None = None,
        rubric: str | None = None,
        by: Literal["category", "length", "keyword"] | None = None,
        min_score: Number | None = None,
        hidden: bool = False,
    ) -> Rows:
        """The score distribution: a row for each dataset, grader, rubric, score and reason, highest score first.

        `cumulative_share` is what that score as a threshold would keep. With `by`, the share kept at `min_score` (the
        rubric's own threshold if not given) by category, length or keyword. `hidden` lists hidden rubrics too.

        Example:
            [(row["score"], row["rows"]) for row in db.scores(grader="rules")]
        """
        store = self._store.existing()
        named = labels_named(store, dataset, grader, rubric)
        if by is None:
            return store.query("scores", **named, hidden=hidden)
        return store.query(f"scores_by_{by}", **named, hidden=hidden, threshold=_number(min_score))

    def show(
        self,
        *,
        dataset: str | None = None,
        grader: str | None = None,
        rubric: str | None = None,
        score: Number | None = None,
        reason: str | None = None,
        limit: int = 10,
    ) -> Rows:
        """Rows with their grades: instruction, input, output, score, reason, explanation.

        Example:
            db.show(score=0, limit=3)
        """
        store = self._store.existing()
        named = labels_named(store, dataset, grader, rubric)
        return store.query("show_rows", **named, score=_number(score), reason=reason, row_limit=limit)

    def select(
        self,
        name: str,
        *,
        dataset: str | None = None,
        grader: str | Sequence[str] = (),
        rubric: str | None = None,
        min_score: Number | None = None,
        top: int | None = None,
        keep_share: Number | None = None,
        where: str | None = None,
        calibrated: bool | float = False,
        order: Order | None = None,
        size: int | None = None,
        match: str | None = None,
        below: Number | None = None,
        by: By = "score",
        combine: Combine | None = None,
        quota: Mapping[str, int] | None = None,
        nested: Sequence[int] = (),
        seed: int = 0,
    ) -> Selection:
        """Choose rows of a dataset and store them under a name, with a manifest of how they were chosen.

        Give exactly one of `min_score`, `top`, `keep_share`, `where` (SQL), `calibrated` and `order`. `calibrated` is
        True for the threshold that keeps the reference's share, or a precision to reach, .8. `order` is "random",
        "longest" or "shortest", with `size` rows or as many as the selection `match`. The rest refines it, as
        `alpasift select --help` says. The same call makes the same choice on any machine.

        Example:
            db.select("kept", grader="rules", min_score=1)
            db.select("baseline", order="random", match="kept")
        """
        store = self._store.existing()
        version = resolve(store, dataset)
        graders = [grader] if isinstance(grader, str) else list(grader)
        condition = Condition(
            min_score=_number(min_score),
            top=top,
            keep_share=_number(keep_share),
            where=where,
            order=order,
            size=size,
            match=match,
            below=_number(below),
            by=by,
            combine=combine,
            quota=quota or {},
            seed=seed,
            nested=tuple(nested),
        )
        if calibrated is not False:
            precision = None if calibrated is True else calibrated
            condition, _ = calibrated_condition(store, version.version_id, condition, graders, rubric, precision)
        return select(store, version.version_id, name, condition, grader=graders, rubric=rubric)[0]

    # -- looking ------------------------------------------------------------------------------------------------

    def ledger(self) -> Accounts:
        """Budget, spent, reserved, unresolved and free dollars of this database.

        Example:
            db.ledger().spent_usd
        """
        return accounts_of(self._store.existing())

    def ledger_by(self, what: Literal["day", "run", "model", "batch"]) -> Rows:
        """Where the money went, a row for each day, run, model or batch.

        Example:
            db.ledger_by("model")
        """
        return self._store.existing().query(f"ledger_by_{what}")

    def in_flight(self) -> Rows:
        """The batches in flight, newest first: phase, counts, age, expiry, money.

        Example:
            [(batch["batch_id"], batch["phase"]) for batch in db.in_flight()]
        """
        return self._store.existing().query("batches", all=None)

    def status(self) -> Status:
        """What is in the database, what is running on it and what was spent.

        Example:
            db.status().datasets
        """
        return status_of(self._store.existing())

    def sql(
        self,
        text: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        max_rows: int = 10_000,
        seconds: float = 60.0,
    ) -> QueryResult:
        """Ask the database one question in SQL, also while a run is writing. It only reads: no files, no settings.

        Stops after `seconds` (QueryError) and after `max_rows` rows (`cut` is then True). docs/database.md lists tables
        and views.

        Example:
            db.sql("select score, count(*) as rows from graded group by score order by score").dicts()
            db.sql("select * from graded where score >= $least", {"least": 4.5}, max_rows=1_000_000).arrow()
        """
        return self._store.existing().user_arrow(text, parameters, max_rows=max_rows, seconds=seconds)

    def query(
        self,
        name: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        max_rows: int = 10_000,
        seconds: float = 60.0,
    ) -> QueryResult:
        """Run one of the named queries that docs/database.md lists; parameters that are not given are null.

        Example:
            db.query("runs", {"row_limit": 5}).dicts()
        """
        query = named_query(name)
        given = query.arguments(parameters or {})
        return self._store.existing().user_arrow(query.text, given, max_rows=max_rows, seconds=seconds)

    def _settings(self, settings: Mapping[str, Any] | None) -> dict[str, Any]:
        """The settings of a grader, with the user's own prices where none are named."""
        given = check_settings(settings)
        return {**_given(prices=own_prices(self.path)), **given}


# -- what is given ----------------------------------------------------------------------------------------------


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _dollars(value: Dollars | None) -> Decimal | None:
    if value is None:
        return None
    if isinstance(value, bool | float):
        raise AlpaSiftError(f'{value!r} is not an exact amount of dollars; write it as text, "0.50", or as a Decimal')
    return parse_usd(str(value))


def _number(value: Number | None) -> Decimal | None:
    if value is None:
        return None
    try:
        found = Decimal(str(value))
    except InvalidOperation:
        found = Decimal("NaN")
    if not found.is_finite():
        raise AlpaSiftError(f"{value!r} is not a score or share; write 4.5")
    return found


def _consent(confirm: Confirm) -> EngineConfirm:
    """What the engine calls before it spends. Raises NotConfirmed unless the caller agrees."""

    def ask(backend: Backend, estimate: Estimate) -> None:
        offer = spending_offer(backend, estimate)
        if not (confirm if isinstance(confirm, bool) else confirm(offer)):
            raise NotConfirmed(
                f"{offer}. Not confirmed, so nothing was sent; confirm=True accepts it, confirm=FUNCTION receives "
                f"the offer and decides"
            )

    return ask


def _shown(progress: Show) -> Callable[[Progress], None] | None:
    if not isinstance(progress, bool):
        return progress
    return line_every(5.0) if progress else None
