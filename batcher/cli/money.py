"""Commands about money: the ledger, what is unresolved in it, and what a person books by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click

from batcher.cli.options import usd
from batcher.cli.printing import forms, note, number, plain, print_csv, print_json, print_rows, print_table

if TYPE_CHECKING:
    from batcher.accounts import Compared
    from batcher.store import Store


def _reason(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    if not value.strip():
        raise click.UsageError("--reason is empty; say what you found, it stays on the record")
    return value


reason_option = click.option(
    "--reason", required=True, metavar="TEXT", callback=_reason, help="What you found, for the record."
)


@click.group("ledger", invoke_without_command=True)
@click.option("--by", type=click.Choice(["day", "run", "model", "batch"]), help="Where the money went, in a table.")
@click.option("--json", "form", flag_value="json", help="Print JSON, dollars as texts.")
@click.option("--csv", "form", flag_value="csv", help="Print CSV.")
@click.pass_context
def ledger_command(ctx: click.Context, by: str | None, form: str | None) -> None:
    """Budget, spent, reserved, unresolved and free dollars of this database, and its machine account.

    \b
    Example:
      alpasift ledger
      alpasift ledger --by day
    """
    if ctx.invoked_subcommand is not None:
        if by or form:
            raise click.UsageError(f"write the options after the command: alpasift ledger {ctx.invoked_subcommand} ...")
        return
    from batcher.store import Store

    store = Store(ctx.obj).existing()
    if by:
        _print(store.query(f"ledger_by_{by}"), form)
        return
    money = store.query("ledger")[0]
    machine = store.query("machine")[0]
    alarms = store.query("alarms")
    if form == "json":
        print_json({**money, "machine": machine, "alarms": alarms})
    elif form == "csv":
        row = {**money, **{f"machine_{name}": value for name, value in machine.items()}}
        print_csv(list(row), [list(row.values())])
    else:
        _show(store, money, machine, alarms)


def _show(store: Store, money: dict[str, Any], machine: dict[str, Any], alarms: Sequence[dict[str, Any]]) -> None:
    from batcher.identity import CopiedDatabase, check_home
    from batcher.ledger import show_usd

    for name in ("budget", "spent", "reserved", "unresolved", "free"):
        amount = money[f"{name}_usd"]
        hint = "  (`alpasift ledger unresolved` tells what)" if name == "unresolved" and amount else ""
        click.echo(f"{name:>11}  {'not set' if amount is None else show_usd(amount, 6)}{hint}")
    rate = "" if machine["usd"] is None else f", {show_usd(machine['usd'])}"
    click.echo(
        f"{'machine':>11}  {number(round(machine['seconds'], 1))} s of runs on this machine{rate} (apart from API dollars)"
    )
    for row in alarms:
        click.echo(
            f"{'ALARM':>11}  {plain(row['note'])}; nothing that costs money is sent until `alpasift ledger acknowledge`"
        )
    try:
        with store.reader() as con:
            check_home(con, store.path)
    except CopiedDatabase as error:
        click.echo(f"{'COPY':>11}  {plain(error)}")


def _print(rows: Sequence[dict[str, Any]], form: str | None, columns: Sequence[str] = ()) -> None:
    """Rows in the form that was asked for; on a screen ids are cut, columns that are empty throughout are left out."""
    if form:
        names = list(rows[0]) if rows else list(columns)
        print_rows(names, [[row[name] for name in names] for row in rows], form)
        return
    shown = [name for name in (rows[0] if rows else ()) if any(row[name] not in (None, "") for row in rows)]
    print_rows(shown, _aligned(shown, [[_cell(name, row[name]) for name in shown] for row in rows]), "table")


def _aligned(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """The same cells, dollars to the right: a table takes them for texts."""
    widths = [max((len(row[i]) for row in rows if isinstance(row[i], str)), default=0) for i in range(len(columns))]
    return [
        [
            v.rjust(w) if n.endswith("_usd") and isinstance(v, str) else v
            for n, v, w in zip(columns, row, widths, strict=True)
        ]
        for row in rows
    ]


def _cell(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name.endswith("_usd"):
        from batcher.ledger import show_usd

        return show_usd(value, 6)
    return str(value)[:8] if name in ("attempt_id", "run_id", "entry_id", "act_id", "reverses", "key") else value


@ledger_command.command("unresolved")
@forms
@click.pass_obj
def unresolved_command(db: str, form: str | None) -> None:
    """What was sent and never seen, attempt by attempt: how many lines, dollars, since when and why.

    \b
    Example:
      alpasift ledger unresolved
    """
    from batcher.accounts import list_unresolved
    from batcher.ledger import ZERO, show_usd
    from batcher.store import Store

    found = list_unresolved(Store(db).existing())
    rows = [
        {
            "attempt_id": one.attempt_id, "batch_id": one.batch_id, "model": one.model, "backend": one.backend,
            "lines": one.lines, "unresolved_usd": one.usd, "since": one.since, "open": one.open, "why": one.why,
            "run_id": one.run_id,
        }
        for one in found
    ]  # fmt: skip
    if not rows and not form:
        note("nothing is unresolved")
        return
    columns = (
        "attempt_id",
        "batch_id",
        "model",
        "backend",
        "lines",
        "unresolved_usd",
        "since",
        "open",
        "why",
        "run_id",
    )
    _print(rows, form, columns)
    if not form:
        total = sum((one.usd for one in found), ZERO)
        note(
            f"{show_usd(total)} in {len(found):,} attempt{_s(len(found))}; `alpasift ledger reconcile FILE` holds it against an export of "
            "the provider's, `alpasift ledger settle` ends it"
        )


def _s(count: int) -> str:
    return "" if count == 1 else "s"


@ledger_command.command("settle")
@click.argument("names", nargs=-1, metavar="[ATTEMPT|BATCH|RUN]...")
@click.option("--all", "everything", is_flag=True, help="Everything that is unresolved.")
@click.option(
    "--older-than", type=click.DateTime(["%Y-%m-%d"]), metavar="DATE", help="What has been unresolved since before this UTC day."
)  # fmt: skip
@click.option(
    "--usd",
    "charged",
    metavar="USD",
    callback=usd,
    help="What the provider charged for it in all; nothing if not given.",
)
@reason_option
@click.pass_obj
def settle_command(
    db: str, names: tuple[str, ...], everything: bool, older_than: datetime | None, charged: Decimal | None, reason: str
) -> None:
    """End what is unresolved, once you know what the provider charged: nothing, or the dollars of --usd.

    \b
    Example:
      alpasift ledger settle batch_68c1 --usd 0.0312 --reason "usage page of 20 November"
      alpasift ledger settle --older-than 2026-11-01 --reason "not on the invoice of October"
    """
    from batcher.accounts import settle
    from batcher.ledger import show_usd
    from batcher.store import Store

    if bool(names) + everything + (older_than is not None) != 1:
        raise click.UsageError("name what to settle: an attempt, a batch or a run, or --all, or --older-than DATE")
    store = Store(db).existing()
    what = None if everything else older_than.date() if older_than else list(names)
    done = settle(store, what, charged, reason)
    note(
        f"settled {done.lines:,} line{_s(done.lines)} of {done.attempts:,} attempt{_s(done.attempts)}: {show_usd(done.unresolved_usd)} is "
        f"no longer unresolved, {show_usd(done.spent_usd)} of it was charged"
    )
    if done.still_open:
        note(
            f"{done.still_open:,} of them still open: what may yet come of it is booked on top and stops all sending "
            "(`alpasift collect` looks)"
        )
    note(f"`alpasift ledger reverse {done.act_id[:8]} --reason TEXT` takes it back")
    _note_balance(store)


@ledger_command.command("reverse")
@click.argument("name", metavar="ENTRY|SETTLEMENT")
@reason_option
@click.pass_obj
def reverse_command(db: str, name: str, reason: str) -> None:
    """Take back a settlement, or the dollars of a charge that was refunded; the opposite is booked.

    \b
    Example:
      alpasift ledger reverse 3f2a9c01 --reason "read the wrong day"
    """
    from batcher.accounts import reverse
    from batcher.ledger import show_usd
    from batcher.store import Store

    store = Store(db).existing()
    done = reverse(store, name, reason)
    note(
        f"{done.entries:,} entr{'y' if done.entries == 1 else 'ies'} taken back: spent {_signed(done.spent_usd, show_usd)}, "
        f"unresolved {_signed(done.unresolved_usd, show_usd)}"
    )
    _note_balance(store)


def _signed(amount: Decimal, show: Callable[[Decimal], str]) -> str:
    return f"+{show(amount)}" if amount > 0 else show(amount)


def _note_balance(store: Store) -> None:
    from batcher.ledger import show_usd

    now = store.query("ledger")[0]
    free = "" if now["free_usd"] is None else f", free {show_usd(now['free_usd'])}"
    note(
        f"now spent {show_usd(now['spent_usd'])}, reserved {show_usd(now['reserved_usd'])}, "
        f"unresolved {show_usd(now['unresolved_usd'])}{free}"
    )


@ledger_command.command("reconcile")
@click.argument("file", type=click.Path(), metavar="FILE")
@click.option("--project", metavar="ID", help="Only this project of the file.")
@forms
@click.pass_obj
def reconcile_command(db: str, file: str, project: str | None, form: str | None) -> None:
    """Hold an export of the provider's (usage or costs; JSON or CSV) against the ledger, by UTC day, model and batch.

    Books nothing; where the comparison bears it out, it names the `settle` that would.

    \b
    Example:
      curl -G https://api.openai.com/v1/organization/usage/completions -H "Authorization: Bearer $OPENAI_ADMIN_KEY" \\
        -d start_time=1795132800 -d limit=31 -d group_by=model -d group_by=batch > usage.json
      alpasift ledger reconcile usage.json
    """
    from pathlib import Path

    from batcher.accounts import reconcile
    from batcher.store import Store

    found = reconcile(Store(db).existing(), Path(file), project)
    rows = [one.row() for one in found.lines]
    if form == "json":
        print_json({"lines": rows, "total": found.total.row(), "suggestions": found.suggestions, "notes": found.notes})
        return
    if form == "csv":
        print_csv(list(found.total.row()), [list(row.values()) for row in rows])
        return
    money = ("day", "model", "batch", "what", "provider_usd", "our_usd", "difference_usd", "unresolved_usd", "verdict")
    lines = _aligned(money, [line for one in (*found.lines, found.total) for line in _measures(one)])
    print_table(("day", "model", "batch", "what", "provider", "ours", "difference", "unresolved", "verdict"), lines)
    for remark in found.notes:
        note(remark)
    for command in found.suggestions:
        long = len(command) > 600
        note(f"the comparison bears out: {command[:600]}" + ("... (--json has it whole)" if long else ""))


def _measures(one: Compared) -> list[list[Any]]:
    """A compared line for a screen: one row where all agrees, else one a measure."""
    from batcher.ledger import show_usd

    agrees = one.day is not None and one.verdict == "equal"
    names = one.counted if not agrees else ["usd"] if "usd" in one.counted else one.counted[:1]
    lines = []
    for i, name in enumerate(names):
        its = [one.provider[name], one.ours[name], one.difference(name)]
        shown = [show_usd(v, 6) if name == "usd" else number(v) for v in its]
        batch = {None: "", True: "batch", False: "calls"}[one.batch]
        first = [one.day or "all", one.model or "", batch] if i == 0 else ["", "", ""]
        owed = show_usd(one.unresolved_usd, 6) if i == 0 and one.unresolved_usd else ""
        lines.append([*first, name, *shown, owed, one.verdict if i == 0 else ""])
    return lines


@ledger_command.command("entries")
@click.option("--attempt", metavar="ATTEMPT", help="Only of this attempt (its id, or a beginning of it).")
@click.option(
    "--limit", default=100, show_default=True, type=click.IntRange(1, 10_000_000), metavar="N", help="The newest N."
)
@forms
@click.pass_obj
def entries_command(db: str, attempt: str | None, limit: int, form: str | None) -> None:
    """The movements of the ledger as they were booked, newest last.

    \b
    Example:
      alpasift ledger entries --attempt 3f2a9c01
    """
    from batcher.store import Store, named_query

    store = Store(db).existing()
    rows = store.query("ledger_entries", attempt=attempt, row_limit=limit)
    if not rows and form:
        columns = store.locked_query(named_query("ledger_entries").text, {"attempt": attempt, "row_limit": 0}).columns
        print_rows(columns, [], form)
        return
    _print(rows, form)
    if len(rows) == limit and not form:
        note(f"the newest {limit:,}; --limit N shows more")


@ledger_command.command("adopt")
@reason_option
@click.pass_obj
def adopt_command(db: str, reason: str) -> None:
    """Let the ledger of a copied database go on in the copy: the other file is gone, or will never be used again.

    \b
    Example:
      alpasift --db restored.duckdb ledger adopt --reason "the disk of the old machine died"
    """
    from batcher.accounts import adopt
    from batcher.store import Store

    store = Store(db).existing()
    ledger = adopt(store, reason)
    note(f"ledger {ledger} goes on in {store.path}; never send from the other file again")
    _note_balance(store)


@ledger_command.command("fork")
@reason_option
@click.pass_obj
def fork_command(db: str, reason: str) -> None:
    """Make a copied database a ledger of its own: both live on, what was spent so far stays with the original.

    Scores and replies stay in the copy, to be used for nothing. Its budget is 0 until you set one.

    \b
    Example:
      alpasift --db experiment.duckdb ledger fork --reason "a copy to try another rubric"
    """
    from batcher.accounts import fork
    from batcher.ledger import show_usd
    from batcher.store import Store

    store = Store(db).existing()
    done = fork(store, reason)
    note(
        f"{store.path} is ledger {done.ledger_id} from now on. With {done.came_from} stay {show_usd(done.spent_usd)} spent, "
        f"{show_usd(done.reserved_usd)} reserved, {show_usd(done.unresolved_usd)} unresolved and {done.closed:,} open "
        f"attempt{_s(done.closed)}"
    )
    note("its budget is 0; --budget USD on the next paid command sets one")


@ledger_command.command("acknowledge")
@reason_option
@click.pass_obj
def acknowledge_command(db: str, reason: str) -> None:
    """Clear the alarms that stand, after you have looked at what happened.

    \b
    Example:
      alpasift ledger acknowledge --reason "provider confirmed a double execution, refund asked for"
    """
    from batcher.ledger import acknowledge
    from batcher.store import Store

    count = acknowledge(Store(db).existing(), reason)
    note(f"{count} alarm{_s(count)} cleared" if count else "no alarm stands")
