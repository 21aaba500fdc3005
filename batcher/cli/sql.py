"""Commands that ask the database: sql, query, schema. They only read."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

import click

from alpasift.batcher.cli.options import forms
from alpasift.batcher.cli.printing import first_sentence, note, print_json, print_rows, print_table


def limits(command: Any) -> Any:
    """The options --max-rows and --seconds."""
    rows = click.option(
        "--max-rows", default=10_000, show_default=True, type=click.IntRange(1), metavar="N", help="At most N rows."
    )
    seconds = click.option(
        "--seconds",
        default=60.0,
        show_default=True,
        type=click.FloatRange(0.01),
        metavar="S",
        help="Stop the query after S seconds.",
    )
    return rows(seconds(command))


def _answer(db: str, text: str, given: dict[str, str | None], max_rows: int, seconds: float, form: str | None) -> None:
    from alpasift.batcher.store import Store

    rows = Store(db).existing().user_query(text, given, max_rows=max_rows, seconds=seconds)
    print_rows(rows.columns, rows.rows, form or "table")
    if rows.cut:
        note(rows.why_cut or f"cut after {max_rows:,} rows; --max-rows N shows more")


def _print_list(columns: list[str], rows: list[tuple[str, ...]], form: str | None) -> None:
    """A list whose last column is a description: of it the first sentence, unless a program reads."""
    if form:
        print_rows(columns, rows, form)
    else:
        print_table(columns, [(*row[:-1], first_sentence(row[-1])) for row in rows])


@click.command("sql")
@click.argument("text", metavar="SQL")
@limits
@forms
@click.pass_obj
def sql_command(db: str, text: str, max_rows: int, seconds: float, form: str | None) -> None:
    """Query the database in SQL: one statement, read-only, no files, no settings. Works while a run is writing.

    \b
    Example:
      alpasift sql "select score, count(*) from graded group by score order by score"
    """
    if re.match(r"\s*(show|describe|desc|summarize)\b", text, re.IGNORECASE):
        note("`alpasift schema` lists the views, `alpasift schema VIEW` the columns of one")
    _answer(db, text, {}, max_rows, seconds, form)


@click.command("query")
@click.argument("name", required=False)
@click.argument("parameters", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--all", "everything", is_flag=True, help="Also list internal queries.")
@limits
@forms
@click.pass_obj
def query_command(
    db: str,
    name: str | None,
    parameters: tuple[str, ...],
    everything: bool,
    max_rows: int,
    seconds: float,
    form: str | None,
) -> None:
    """Run a named query; without a name, list them. Parameters that are not given are null.

    \b
    Example:
      alpasift query
      alpasift query deciles grader=rules
    """
    from alpasift.batcher.store import QueryError, named_query, sql_texts

    if name is None:
        listed = [q for q in sql_texts("queries") if everything or not q.internal]
        _print_list(["name", "parameters", "what"], [(q.name, " ".join(q.parameters), q.doc) for q in listed], form)
        return
    query = named_query(name)
    given: dict[str, str | None] = {}
    for pair in parameters:
        key, equals, value = pair.partition("=")
        if not equals:
            raise QueryError(f"{pair!r}: write a parameter as KEY=VALUE; {name} takes {' '.join(query.parameters)}")
        given[key] = value
    _answer(db, query.text, query.arguments(given), max_rows, seconds, form)


@click.command("schema")
@click.argument("name", required=False)
@click.option("--all", "everything", is_flag=True, help="Also list internal views and tables.")
@forms
@click.pass_obj
def schema_command(db: str, name: str | None, everything: bool, form: str | None) -> None:
    """List the views for `alpasift sql` and what one row of each is; with a name, its columns.

    \b
    Example:
      alpasift schema
      alpasift schema graded_rows
    """
    from alpasift.batcher.store import Store, relation, relations

    store = Store(db).existing()
    if name is not None:
        found = relation(store, name)
        if not form:
            note(f"{found.kind} {found.name}: {found.doc}")
        columns = [(c.name, c.type, c.meaning) for c in found.columns]
        if form:
            print_rows(["column", "type", "meaning"], columns, form)
        else:
            print_table(["column", "type", "meaning"], columns)
        return
    listed = relations(store, internal=everything)
    if form == "json":
        print_json([asdict(found) for found in listed])
        return
    _print_list(["name", "kind", "content"], [(r.name, r.kind, r.doc) for r in listed], form)
    if not form:
        note("next: alpasift schema NAME for its columns; docs/database.md has recipes")
