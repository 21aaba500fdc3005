"""Commands about money: the ledger."""

from __future__ import annotations

import click

from batcher.cli.printing import note, number, plain, print_json


@click.group("ledger", invoke_without_command=True)
@click.option("--json", "form", flag_value="json", help="Print JSON, dollars as texts.")
@click.pass_context
def ledger_command(ctx: click.Context, form: str | None) -> None:
    """Budget, spent, reserved, unresolved and free dollars of this database, and its machine account.

    \b
    Example:
      alpasift ledger --json
    """
    if ctx.invoked_subcommand is not None:
        return
    from batcher.ledger import show_usd
    from batcher.store import Store

    store = Store(ctx.obj).existing()
    money = store.query("ledger")[0]
    machine = store.query("machine")[0]
    alarms = store.query("alarms")
    if form:
        print_json({**money, "machine": machine, "alarms": alarms})
        return
    for name in ("budget", "spent", "reserved", "unresolved", "free"):
        usd = money[f"{name}_usd"]
        click.echo(f"{name:>11}  {'not set' if usd is None else show_usd(usd, 6)}")
    rate = "" if machine["usd"] is None else f", {show_usd(machine['usd'])}"
    click.echo(
        f"{'machine':>11}  {number(round(machine['seconds'], 1))} s of runs on this machine{rate} (apart from API dollars)"
    )
    for row in alarms:
        click.echo(
            f"{'ALARM':>11}  {plain(row['note'])}; nothing that costs money is sent until `alpasift ledger acknowledge`"
        )


@ledger_command.command("acknowledge")
@click.option("--reason", required=True, metavar="TEXT", help="What you found, for the record.")
@click.pass_obj
def acknowledge_command(db: str, reason: str) -> None:
    """Clear the alarms that stand, after you have looked at what happened.

    \b
    Example:
      alpasift ledger acknowledge --reason "provider confirmed a double execution, refund asked for"
    """
    from batcher.ledger import acknowledge
    from batcher.store import Store

    if not reason.strip():
        raise click.UsageError("--reason is empty; say what you found, it stays on the record")
    count = acknowledge(Store(db).existing(), reason)
    note(f"{count} alarm{'s' if count != 1 else ''} cleared" if count else "no alarm stands")
