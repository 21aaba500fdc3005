"""Commands about money: the ledger, what is unresolved in it, and what a person books manually."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click

from alpasift.batcher.cli.options import forms, usd
from alpasift.batcher.cli.printing import note, number, plain, print_csv, print_json, print_rows, print_table

if TYPE_CHECKING:
    from alpasift.batcher.money.reconcile import Compared
    from alpasift.batcher.store import Store


def _reason(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    if not value.strip():
        raise click.UsageError("--reason is empty; state what you found, it is recorded")
    return value


reason_option = click.option(
    "--reason", required=True, metavar="TEXT", callback=_reason, help="What you found; it is recorded."
)


@click.group("ledger", invoke_without_command=True)
@click.option(
    "--by", type=click.Choice(["day", "run", "model", "batch"]), help="Show costs by day, run, model or batch."
)
@click.option("--json", "form", flag_value="json", help="Print JSON; dollars are strings.")
@click.option("--csv", "form", flag_value="csv", help="Print CSV.")
@click.pass_context
def ledger_command(ctx: click.Context, by: str | None, form: str | None) -> int:
    """Budget, spent, reserved, unresolved and free dollars of this database, and its machine account.

    \b
    Example:
      alpasift ledger
      alpasift ledger --by day
    """
    if ctx.invoked_subcommand is not None:
        if by or form:
            raise click.UsageError(f"write the options after the command: alpasift ledger {ctx.invoked_subcommand} ...")
        return 0
    from alpasift.batcher.money.accounts import accounts_of
    from alpasift.batcher.store import Store

    store = Store(ctx.obj).existing()
    if by:
        _print_rows(store.query(f"ledger_by_{by}"), form)
        return 0
    found = asdict(accounts_of(store))
    if form == "json":
        print_json(found)
        return 1 if found["alarms"] else 0
    machine, alarms = found.pop("machine"), found.pop("alarms")
    if form == "csv":
        row = {**found, **{f"machine_{name}": value for name, value in machine.items()}}
        print_csv(list(row), [list(row.values())])
    else:
        _print_accounts(store, found, machine, alarms)
    return 1 if alarms else 0


def _print_accounts(
    store: Store, money: dict[str, Any], machine: dict[str, Any], alarms: Sequence[dict[str, Any]]
) -> None:
    from alpasift.batcher.money.copies import CopiedDatabase, TwoNames, check_not_a_copy
    from alpasift.batcher.money.dollars import show_usd

    for name in ("budget", "spent", "reserved", "unresolved", "free"):
        amount = money[f"{name}_usd"]
        hint = "  (`alpasift ledger unresolved` lists it)" if name == "unresolved" and amount else ""
        click.echo(f"{name:>11}  {'not set' if amount is None else show_usd(amount, 6)}{hint}")
    rate = "" if machine["usd"] is None else f", {show_usd(machine['usd'])}"
    click.echo(
        f"{'machine':>11}  {number(round(machine['seconds'], 1))} s of runs on this machine{rate} (not API cost)"
    )
    for row in alarms:
        click.echo(
            f"{'ALARM':>11}  {plain(row['note'])}; nothing that costs money is sent until `alpasift ledger acknowledge`"
        )
    try:
        with store.reader() as con:
            check_not_a_copy(con, store.path)
    except CopiedDatabase as error:
        click.echo(f"{'COPY':>11}  {plain(error)}")
    except TwoNames as error:
        click.echo(f"{'TWO NAMES':>11}  {plain(error)}")


def _print_rows(rows: Sequence[dict[str, Any]], form: str | None, columns: Sequence[str] = ()) -> None:
    """Rows in the form asked for. A table leaves out columns of nothing or zeros and times, and shortens ids."""
    if form:
        names = list(rows[0]) if rows else list(columns)
        print_rows(names, [[row[name] for name in names] for row in rows], form)
        return
    shown = [
        name
        for name in (rows[0] if rows else ())
        if name not in ("first_at", "last_at") and any(row[name] not in (None, "", 0) for row in rows)
    ]
    titles = ["requests" if name == "questions" else name for name in shown]
    print_rows(titles, [[_cell(name, row[name]) for name in shown] for row in rows], "table")


def _cell(name: str, value: Any) -> Any:
    if name == "batch_id" and not value:
        return "(single calls)"
    if value is None:
        return None
    if name.endswith("_usd"):
        from alpasift.batcher.money.dollars import show_usd

        return show_usd(value, 6)
    return str(value)[:8] if name in ("attempt_id", "run_id", "entry_id", "act_id", "reverses", "key") else value


@ledger_command.command("unresolved")
@forms
@click.pass_obj
def unresolved_command(db: str, form: str | None) -> None:
    """List requests sent but never answered, by attempt.

    How many lines and dollars it may cost, since when, and why.

    \b
    Example:
      alpasift ledger unresolved
    """
    from alpasift.batcher.money.dollars import show_usd
    from alpasift.batcher.money.settle import list_unresolved
    from alpasift.batcher.store import Store

    store = Store(db).existing()
    rows = [
        {"unresolved_usd" if name == "usd" else name: value for name, value in asdict(one).items()}
        for one in list_unresolved(store)
    ]
    if not rows and not form:
        note("nothing is unresolved")
        return
    _print_rows([{name: row[name] for name in _UNRESOLVED} for row in rows], form, _UNRESOLVED)
    if not form:
        owed = store.query("ledger")[0]["unresolved_usd"]
        note(
            f"{show_usd(owed)} in {len(rows):,} attempt{_s(len(rows))}; `alpasift ledger reconcile FILE` compares it "
            "with the provider's export, `alpasift ledger settle` resolves it"
        )


_UNRESOLVED = (
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


def _s(count: int) -> str:
    return "" if count == 1 else "s"


@ledger_command.command("settle")
@click.argument("names", nargs=-1, metavar="[ATTEMPT|BATCH|RUN]...")
@click.option("--all", "everything", is_flag=True, help="Everything that is unresolved.")
@click.option(
    "--older-than",
    type=click.DateTime(["%Y-%m-%d"]),
    metavar="DATE",
    help="Everything unresolved since before this UTC day.",
)
@click.option(
    "--usd",
    "charged",
    metavar="USD",
    callback=usd,
    help="Total that the provider charged for it. Default: 0.",
)
@reason_option
@click.pass_obj
def settle_command(
    db: str, names: tuple[str, ...], everything: bool, older_than: datetime | None, charged: Decimal | None, reason: str
) -> None:
    """Resolve what is unresolved, once you know what the provider charged.

    That is nothing, or the dollars of --usd.

    \b
    Example:
      alpasift ledger settle batch_68c1 --usd 0.0312 --reason "usage page of 20 November"
      alpasift ledger settle --older-than 2026-11-01 --reason "not on the invoice of October"
    """
    from alpasift.batcher.money.dollars import show_usd
    from alpasift.batcher.money.settle import settle
    from alpasift.batcher.store import Store

    if bool(names) + everything + (older_than is not None) != 1:
        raise click.UsageError("give what to settle: an attempt, a batch or a run, or --all, or --older-than DATE")
    store = Store(db).existing()
    what = None if everything else older_than.date() if older_than else list(names)
    done = settle(store, what, charged, reason)
    note(
        f"settled {done.lines:,} line{_s(done.lines)} of {done.attempts:,} attempt{_s(done.attempts)}: "
        f"{show_usd(done.unresolved_usd)} is no longer unresolved, {show_usd(done.spent_usd)} of it was charged"
    )
    if done.still_open:
        note(
            f"{done.still_open:,} of them still open: a later result is booked in addition and stops all sending "
            f"(`alpasift collect` checks)"
        )
    note(f"`alpasift ledger reverse {done.act_id[:8]} --reason TEXT` reverses it")
    _note_balance(store)


@ledger_command.command("reverse")
@click.argument("name", metavar="ENTRY|SETTLEMENT")
@reason_option
@click.pass_obj
def reverse_command(db: str, name: str, reason: str) -> None:
    """Reverse a settlement, or the dollars of a charge that was refunded.

    The opposite is booked; nothing is erased.

    \b
    Example:
      alpasift ledger reverse 3f2a9c01 --reason "read the wrong day"
    """
    from alpasift.batcher.money.dollars import show_usd
    from alpasift.batcher.money.settle import reverse
    from alpasift.batcher.store import Store

    store = Store(db).existing()
    done = reverse(store, name, reason)
    note(
        f"{done.entries:,} entr{'y' if done.entries == 1 else 'ies'} reversed: spent "
        f"{_signed(done.spent_usd, show_usd)}, unresolved {_signed(done.unresolved_usd, show_usd)}"
    )
    _note_balance(store)


def _signed(amount: Decimal, show: Callable[[Decimal], str]) -> str:
    return f"+{show(amount)}" if amount > 0 else show(amount)


def _note_balance(store: Store) -> None:
    from alpasift.batcher.money.dollars import show_usd

    now = store.query("ledger")[0]
    free = "" if now["free_usd"] is None else f", free {show_usd(now['free_usd'])}"
    note(
        f"now spent {show_usd(now['spent_usd'])}, reserved {show_usd(now['reserved_usd'])}, "
        f"unresolved {show_usd(now['unresolved_usd'])}{free}"
    )


@ledger_command.command("reconcile")
@click.argument("file", type=click.Path(), metavar="FILE")
@click.option("--project", metavar="ID", help="Only this project in the file.")
@forms
@click.pass_obj
def reconcile_command(db: str, file: str, project: str | None, form: str | None) -> int:
    """Compare the provider's export of usage or costs with the ledger.

    The export is JSON or CSV; it is compared by UTC day, model and batch. Books nothing; where the comparison supports
    it, prints the `settle` that would. Exits with code 1 where the provider has charged more than is explained.

    \b
    Example:
      curl -G https://api.openai.com/v1/organization/usage/completions -H "Authorization: Bearer $OPENAI_ADMIN_KEY" \\
        -d start_time=1795132800 -d limit=31 -d group_by=model -d group_by=batch > usage.json
      alpasift ledger reconcile usage.json
    """
    from pathlib import Path

    from alpasift.batcher.money.reconcile import reconcile
    from alpasift.batcher.store import Store

    found = reconcile(Store(db).existing(), Path(file), project)
    rows = [one.row() for one in found.lines]
    code = 1 if any(one.verdict == "not_explained" for one in found.lines) else 0
    if form == "json":
        print_json({"lines": rows, "total": found.total.row(), "suggestions": found.suggestions, "notes": found.notes})
        return code
    if form == "csv":
        print_csv(list(found.total.row()), [list(row.values()) for row in rows])
        return code
    lines = [line for one in (*found.lines, found.total) for line in _measures(one)]
    print_table(("day", "model", "batch", "what", "provider", "ours", "difference", "unresolved", "verdict"), lines)
    for remark in found.notes:
        note(remark)
    for command in found.suggestions:
        long = len(command) > 600
        note(f"supported by the comparison: {command[:600]}" + ("... (--json shows all of it)" if long else ""))
    return code


def _measures(one: Compared) -> list[list[Any]]:
    """A compared line for a screen: one row where all agrees, else one a measure."""
    from alpasift.batcher.money.dollars import show_usd

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
@click.option("--attempt", metavar="ATTEMPT", help="Only entries of this attempt (its id or a prefix).")
@click.option(
    "--limit",
    default=100,
    show_default=True,
    type=click.IntRange(1, 10_000_000),
    metavar="N",
    help="Show the newest N.",
)
@forms
@click.pass_obj
def entries_command(db: str, attempt: str | None, limit: int, form: str | None) -> None:
    """List the ledger entries, newest last.

    \b
    Example:
      alpasift ledger entries --attempt 3f2a9c01
    """
    from alpasift.batcher.store import Store, named_query

    store = Store(db).existing()
    rows = store.query("ledger_entries", attempt=attempt, row_limit=limit)
    if not rows and form:
        columns = store.locked_query(named_query("ledger_entries").text, {"attempt": attempt, "row_limit": 0}).columns
        print_rows(columns, [], form)
        return
    _print_rows(rows, form)
    if len(rows) == limit and not form:
        note(f"the newest {limit:,}; --limit N shows more")


@ledger_command.command("adopt")
@reason_option
@click.pass_obj
def adopt_command(db: str, reason: str) -> None:
    """Use a copied database instead of the original, which is gone.

    The copy keeps the ledger from now on; the other file must never be used again.

    \b
    Example:
      alpasift --db restored.duckdb ledger adopt --reason "the disk of the old machine died"
    """
    from alpasift.batcher.money.copies import adopt
    from alpasift.batcher.store import Store

    store = Store(db).existing()
    ledger = adopt(store, reason)
    note(f"ledger {ledger} is now kept in {store.path}; never send from the other file again")
    _note_balance(store)


@ledger_command.command("fork")
@reason_option
@click.pass_obj
def fork_command(db: str, reason: str) -> None:
    """Make a copied database a ledger of its own, beside the original.

    What was spent so far stays with the original. Scores and replies stay in the copy, to be used at no cost. Its
    budget is 0 until you set one.

    \b
    Example:
      alpasift --db experiment.duckdb ledger fork --reason "a copy to try another rubric"
    """
    from alpasift.batcher.money.copies import fork
    from alpasift.batcher.money.dollars import show_usd
    from alpasift.batcher.store import Store

    store = Store(db).existing()
    done = fork(store, reason)
    note(
        f"{store.path} is ledger {done.ledger_id} from now on. {done.came_from} keeps {show_usd(done.spent_usd)} "
        f"spent, {show_usd(done.reserved_usd)} reserved, {show_usd(done.unresolved_usd)} unresolved and "
        f"{done.closed:,} open attempt{_s(done.closed)}"
    )
    note("its budget is $0; set one with --budget USD on the next paid command")


@ledger_command.command("acknowledge")
@reason_option
@click.pass_obj
def acknowledge_command(db: str, reason: str) -> None:
    """Clear the open alarms, after you have looked at what happened.

    \b
    Example:
      alpasift ledger acknowledge --reason "provider confirmed a double execution, refund asked for"
    """
    from alpasift.batcher.money.ledger import acknowledge
    from alpasift.batcher.store import Store

    count = acknowledge(Store(db).existing(), reason)
    note(f"{count} alarm{_s(count)} cleared" if count else "no alarm is open")
