"""Commands that look: scores, show, status, runs, sql, query, doctor. None of them writes or spends."""

from __future__ import annotations

from decimal import Decimal
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import click

from batcher.cli.printing import NUMBER, bar, forms, note, number, plain, print_json, print_rows, print_table

if TYPE_CHECKING:
    from batcher.store import Store


def _named(store: Store, dataset: str | None, grader: str | None, rubric: str | None) -> dict[str, str | None]:
    """The labels of what a person named, None for all. NAME is its newest version everywhere, NAME@1 the first."""
    from batcher.datasets import resolve

    known = store.query("labels")
    return {
        "dataset": None if dataset is None else resolve(store, dataset).label,
        "grader": _label(known, "grader", grader),
        "rubric": _label(known, "rubric", rubric),
    }


def _label(known: list[dict[str, Any]], kind: str, given: str | None) -> str | None:
    if given is None:
        return None
    versions = [row for row in known if row["kind"] == kind]
    found = [row for row in versions if given in (row["name"], f"{row['name']}@{row['version']}")]
    if not found:
        there = ", ".join(row["label"] for row in versions) or "none yet"
        raise click.UsageError(f"no {kind} called {given!r} has graded here; there are: {there}")
    return str(found[-1]["label"])


@click.command("scores")
@click.option("--dataset", metavar="NAME", help="Only this dataset (NAME, or NAME@2).")
@click.option("--grader", metavar="NAME", help="Only this grader.")
@click.option("--rubric", metavar="NAME", help="Only this rubric.")
@click.option(
    "--by", type=click.Choice(["category", "length", "keyword"]), help="Kept share at the threshold, by group."
)
@click.option("--min-score", type=NUMBER, metavar="X", help="With --by: the threshold (the rubric's own if not given).")
@click.option("--json", "form", flag_value="json", help="Print JSON.")
@click.option("--csv", "form", flag_value="csv", help="Print CSV.")
@click.pass_obj
def scores_command(
    db: str,
    dataset: str | None,
    grader: str | None,
    rubric: str | None,
    by: str | None,
    min_score: Decimal | None,
    form: str | None,
) -> None:
    """The score distribution: counts, cumulative share, and what each threshold would keep.

    \b
    Example:
      alpasift scores
      alpasift scores --by category --min-score 4.5
    """
    from batcher.store import Store

    store = Store(db).existing()
    chosen = _named(store, dataset, grader, rubric)
    rows = store.query(f"scores_by_{by}", **chosen, threshold=min_score) if by else store.query("scores", **chosen)
    if form or by:
        print_rows(list(rows[0]) if rows else ["dataset", "grader", "rubric", "score", "reason", "rows", "cumulative_share"],
                   [list(row.values()) for row in rows], form or "table")  # fmt: skip
        return
    if not rows:
        note("nothing is graded yet; `alpasift grade --grader SPEC` grades, `alpasift plan` compares graders")
        return
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["dataset"], row["grader"], row["rubric"]), []).append(row)
    for (name, by_grader, by_rubric), group in groups.items():
        print_histogram(name, by_grader, by_rubric, group)


def print_histogram(dataset: str, grader: str, rubric: str, rows: list[dict[str, Any]]) -> None:
    """One grader's distribution over one dataset, as bars; reasons below."""
    by_score: dict[Any, int] = {}
    shares: dict[Any, float] = {}
    reasons: list[tuple[str, int, Any]] = []
    for row in rows:
        if row["score"] is not None:
            by_score[row["score"]] = by_score.get(row["score"], 0) + row["rows"]
            shares[row["score"]] = row["cumulative_share"]
        if row["reason"] is not None:
            reasons.append((row["reason"], row["rows"], row["score"]))
    scored = sum(by_score.values())
    total = sum(row["rows"] for row in rows)
    waiting = sum(row["rows"] for row in rows if row["reason"] == "not_graded")
    click.echo(
        f"{plain(dataset)}  graded by {plain(grader)}, rubric {plain(rubric)}: {scored:,} of {total:,} rows have a score"
    )
    if by_score:
        top, kept = max(by_score.values()), 0
        click.echo(f"  {'score':>6}  {'rows':>9}  {'at least':>9}  {'kept':>6}")
        for score, count in by_score.items():
            kept += count
            click.echo(f"  {number(score):>6}  {count:>9,}  {kept:>9,}  {shares[score]:>6.1%}  {bar(count / top)}")
        values = sorted(by_score)
        steps = [b - a for a, b in pairwise(values)]
        if steps:
            click.echo(f"  observed step {number(min(steps))}")
    if waiting:
        click.echo(f"  kept is the share of the {total - waiting:,} rows graded so far")
    for reason, count, score in reasons:
        where = "no score" if score is None else f"score {number(score)}"
        click.echo(f"  {where:>8}  {count:>9,}  {plain(reason)}")


@click.command("show")
@click.option("--dataset", metavar="NAME", help="Only this dataset.")
@click.option("--grader", metavar="NAME", help="Only this grader.")
@click.option("--rubric", metavar="NAME", help="Only this rubric.")
@click.option("--score", type=NUMBER, metavar="S", help="Only rows with this score.")
@click.option("--reason", metavar="R", help="Only rows with this reason, `cut_off` for instance.")
@click.option("--limit", default=10, show_default=True, type=click.IntRange(1, 10_000), metavar="N")
@click.option("--json", "form", flag_value="json", help="Print JSON.")
@click.pass_obj
def show_command(
    db: str,
    dataset: str | None,
    grader: str | None,
    rubric: str | None,
    score: Decimal | None,
    reason: str | None,
    limit: int,
    form: str | None,
) -> None:
    """Read rows with their grades.

    \b
    Example:
      alpasift show --score 0 --limit 5
      alpasift show --reason cut_off
    """
    from batcher.store import Store

    store = Store(db).existing()
    rows = store.query(
        "show_rows", **_named(store, dataset, grader, rubric),
        score=score, reason=reason, row_limit=limit,
    )  # fmt: skip
    if form:
        print_json(rows)
        return
    for row in rows:
        score_text = "no score" if row["score"] is None else f"score {number(row['score'])}"
        why = f" ({row['reason']})" if row["reason"] else ""
        click.echo(
            click.style(
                plain(f"{row['dataset']} row {row['position']}: {score_text}{why}, {row['grader']}, {row['rubric']}"),
                bold=True,
            )
        )
        for title in ("instruction", "input", "output", "explanation"):
            if row[title] or title == "output":
                click.echo(f"  {title}: " + (plain(row[title]).strip() or "(blank)").replace("\n", "\n    "))
        click.echo()
    if not rows:
        note("no such rows")


@click.command("runs")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 100_000), metavar="N")
@forms
@click.pass_obj
def runs_command(db: str, limit: int, form: str | None) -> None:
    """The runs so far, newest first, and how each ended.

    \b
    Example:
      alpasift runs
    """
    from batcher.store import Store

    rows = Store(db).existing().query("runs", row_limit=limit)
    print_rows(list(rows[0]) if rows else [], [list(r.values()) for r in rows], form or "table")


@click.command("status")
@click.option("--json", "form", flag_value="json", help="Print JSON.")
@click.pass_obj
def status_command(db: str, form: str | None) -> None:
    """What is in the database, what is running, what was spent.

    \b
    Example:
      alpasift status
    """
    from batcher.ledger import holder_of_run_lock, show_usd
    from batcher.store import Store

    store = Store(db).existing()
    running = holder_of_run_lock(store.path)
    found: dict[str, Any] = {
        "database": str(store.path),
        "running_pid": running,
        "datasets": store.query("datasets"),
        "graded": store.query("progress"),
        "selections": store.query("selections"),
        "batches": store.query("batches", all=None),
        "open_attempts": store.query("open_attempts"),
        "ledger": store.query("ledger")[0],
    }
    if form:
        print_json(found)
        return
    click.echo(f"{plain(store.path)}" + (f", process {running} is grading" if running else ""))
    for title, key in (
        ("datasets", "datasets"),
        ("graded", "graded"),
        ("selections", "selections"),
    ):
        rows = found[key]
        if rows:
            click.echo(f"\n{title}")
            print_table(list(rows[0]), [list(r.values()) for r in rows])
    print_batches(found["batches"])
    calls = len(found["open_attempts"]) - len(found["batches"])
    if calls > 0:
        click.echo(f"\n{calls:,} calls or blocks are open" + ("" if running else "; the next run closes them"))
    money = found["ledger"]
    budget = money["budget_usd"]
    click.echo(
        f"\nbudget {show_usd(budget, 2) if budget is not None else 'not set'}, spent {show_usd(money['spent_usd'])}, "
        f"reserved {show_usd(money['reserved_usd'])}, unresolved {show_usd(money['unresolved_usd'])}"
        + (f", free {show_usd(money['free_usd'])}" if budget is not None else "")
    )


def print_batches(rows: list[dict[str, Any]]) -> None:
    """The batches that are out, one a line: phase, counts, age, expiry, money."""
    from batcher.ledger import show_usd

    if not rows:
        return
    click.echo("\nbatches that are out (`alpasift collect` asks after them)")
    table = [
        (
            row["batch_id"] or f"attempt {str(row['attempt_id'])[:8]}", row["grader"], row["phase"], row["lines"], row["completed"],
            row["failed"], f"{row['age_hours']:.1f} h", row["expires_at"], show_usd(row["reserved_usd"]),
            show_usd(row["unresolved_usd"]), row["says"] or "",
        )
        for row in rows
    ]  # fmt: skip
    columns = ("batch", "grader", "phase", "rows", "done", "failed", "age", "expires", "reserved", "unresolved", "")
    print_table(columns, table)


def limits(command: Any) -> Any:
    """The options --max-rows and --seconds."""
    rows = click.option("--max-rows", default=10_000, show_default=True, type=click.IntRange(1), metavar="N")
    seconds = click.option(
        "--seconds", default=60.0, show_default=True, type=click.FloatRange(0.01), metavar="S", help="Stop the query after this long."
    )  # fmt: skip
    return rows(seconds(command))


def _answer(db: str, text: str, given: dict[str, str | None], max_rows: int, seconds: float, form: str | None) -> None:
    from batcher.store import Store

    rows = Store(db).existing().locked_query(text, given, max_rows=max_rows, seconds=seconds)
    print_rows(rows.columns, rows.rows, form or "table")
    if rows.cut:
        note(f"cut after {max_rows:,} rows; --max-rows N shows more")


@click.command("sql")
@click.argument("text", metavar="SQL")
@limits
@forms
@click.pass_obj
def sql_command(db: str, text: str, max_rows: int, seconds: float, form: str | None) -> None:
    """Ask the database one question in SQL: read-only, no files, no settings. Works while a run is writing.

    \b
    Example:
      alpasift sql "select score, count(*) from graded group by score order by score"
    """
    _answer(db, text, {}, max_rows, seconds, form)


@click.command("query")
@click.argument("name", required=False)
@click.argument("parameters", nargs=-1, metavar="[KEY=VALUE]...")
@limits
@forms
@click.pass_obj
def query_command(
    db: str, name: str | None, parameters: tuple[str, ...], max_rows: int, seconds: float, form: str | None
) -> None:
    """Run a named query; without a name, list them. Parameters that are not given are null.

    \b
    Example:
      alpasift query scores grader=rules
    """
    from batcher.store import QueryError, named_query, sql_texts

    if name is None:
        print_rows(
            ["name", "parameters", "what"],
            [(q.name, " ".join(q.parameters), q.doc) for q in sql_texts("queries")],
            form or "table",
        )
        return
    query = named_query(name)
    given: dict[str, str | None] = dict.fromkeys(query.parameters)
    for pair in parameters:
        key, equals, value = pair.partition("=")
        if not equals or key not in given:
            raise QueryError(f"{pair!r}: {name} takes {' '.join(f'{p}=...' for p in given) or 'no parameters'}")
        given[key] = value
    _answer(db, query.text, given, max_rows, seconds, form)


@click.command("doctor")
@click.option("--offline", is_flag=True, help="What working without a network needs, and how to bring what is missing.")
@click.option(
    "--grader", "graders", multiple=True, metavar="SPEC",
    help="With --offline: a grader that has to work, besides those of ALPASIFT_GRADERS; repeatable.",
)  # fmt: skip
@click.option("--json", "form", flag_value="json", help="Print JSON.")
@click.pass_obj
def doctor_command(db: str, offline: bool, graders: tuple[str, ...], form: str | None) -> int:
    """What each grader needs and lacks on this machine.

    With --offline ends with code 3 when a grader that was named could not work without a network.

    \b
    Example:
      alpasift doctor
      alpasift doctor --offline --grader llama_cpp:model.gguf
    """
    from batcher.doctor import doctor, offline_doctor

    if graders and not offline:
        raise click.UsageError("--grader goes with --offline; `alpasift plan --grader SPEC` looks at a grader here")
    found = offline_doctor(graders, db) if offline else None
    rows = doctor(db) if found is None else found.rows
    if form:
        print_json(rows)
    else:
        print_table(["what", "ok", "says"], [[r["what"], r["ok"], r["says"]] for r in rows], max_width=100)
        for row in rows:
            if row.get("bring"):
                note(f"{row['what']}: {row['bring']}")
    return 3 if found is not None and not found.named_ok else 0
