"""The command line: a skin. Each command parses its options, calls one function and prints.

Commands are imported when they are called, so that `alpasift --help` answers at once. Results go to stdout, progress
and notes to stderr. A user never sees a traceback: what AlpaSift knows how to explain is one line and an exit code.

    0 done   1 error or alarm   2 usage, or consent is missing   3 no grader is possible here
    4 not finished, run again to resume   130 Ctrl-C, 143 SIGTERM, 129 SIGHUP: what was answered is kept
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from importlib import import_module
from typing import Any, NoReturn

import click

from alpasift.batcher.termination import arrived, exit_code, forget

COMMANDS: dict[str, tuple[str, str]] = {
    "import": ("data", "Import instruction data into the database."),
    "export": ("data", "Write a selection or a dataset to a file."),
    "plan": ("plan", "Estimate each grader's cost and time; sends nothing."),
    "probe": ("probe", "Grade a random sample; project scores, kept share and cost."),
    "grade": ("grade", "Grade every row of a dataset."),
    "collect": ("batches", "Fetch the results of batches in flight."),
    "cancel": ("batches", "Cancel a batch in flight and book what it completed."),
    "batch": ("batches", "Transfer batches as files: export requests, import results."),
    "labels": ("labels", "Import existing labels, human or published, as a grader."),
    "rubric": ("rubric", "Show, check, create or hide a rubric; preview a row's prompt."),
    "scores": ("scores", "Show the score distribution and what each threshold keeps."),
    "agree": ("agree", "Compare two graders: agreement, with confidence intervals."),
    "bench-graders": ("bench", "Compare every free score with labels and with output length."),
    "calibrate": ("calibrate", "Calibrate a cheap grader against a reference, on a sample."),
    "audit": ("audit", "Test without labels what a grader can tell apart."),
    "select": ("select", "Select a subset by score, share, SQL or length."),
    "filter": ("filter", "Import, grade, select and export in one command."),
    "show": ("scores", "Show rows with their grades."),
    "status": ("status", "Show what is in the database and what is running."),
    "runs": ("status", "List the runs and how each ended."),
    "ledger": ("ledger", "Show budget, spent, reserved, unresolved and free dollars."),
    "sql": ("sql", "Query the database in SQL, also during a run."),
    "query": ("sql", "Run a named query, or list them."),
    "schema": ("sql", "List the views and their columns."),
    "models": ("models", "List local models to grade with: licence, memory, speed."),
    "import-model": ("import_model", "Write a GGUF file as a model folder that can be trained."),
    "fit": ("fit", "Forecast memory, time and cost of a fine-tune on a GPU."),
    "train": ("train", "Fine-tune a model by a published recipe; resumable."),
    "export-model": ("export_model", "Export a trained model as adapter, merged weights or GGUF."),
    "doctor": ("offline", "Check what each grader needs on this machine."),
    "bundle": ("offline", "Pack everything for an air-gapped machine; verify it there."),
}
ALIASES = {"tables": "schema"}
"""Other names under which a command is looked for; the help does not list them."""
NEVER_SEND = ("plan", "batch", "doctor")
"""Commands that may name a grader on another machine also under --offline: they only look, or carry files."""


class OutputClosed(Exception):
    """Whoever read our output has gone away."""


class LazyGroup(click.Group):
    """A group whose commands are imported when called; its help needs none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] in ALIASES:
            args = [ALIASES[args[0]], *args[1:]]
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in COMMANDS:
            from alpasift.graders.interface.suggestions import did_you_mean

            meant = did_you_mean(name, COMMANDS, "`alpasift --help` lists the commands")
            raise click.UsageError(f"there is no command {name!r}{meant}")
        return super().resolve_command(ctx, _without_old_names(args))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:  # click would exit with code 1
            raise OutputClosed from error

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _global_options_first(args))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"alpasift.batcher.cli.{COMMANDS[cmd_name][0]}")
        from alpasift.batcher.cli.numbers import with_plain_numbers

        return with_plain_numbers(getattr(module, f"{cmd_name.replace('-', '_')}_command"))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_) for name, (_, help_) in COMMANDS.items()])


_OWN = {"doctor": ("--offline",), "bundle": ("--db",)}
"""Commands that have an option of the name of a global one themselves."""


def _global_options_first(args: list[str]) -> list[str]:
    """The arguments with the global options before the command, wherever they stood."""
    front: list[str] = []
    rest: list[str] = []
    waiting = list(args)
    while waiting:
        argument = waiting.pop(0)
        command = next((one for one in rest if not one.startswith("-")), "")
        own = _OWN.get(command, ())
        name = argument.partition("=")[0]
        if argument == "--":
            rest += [argument, *waiting]
            break
        if name in own or name not in ("--db", "--offline", "--version"):
            rest.append(argument)
            continue
        front.append(argument)
        if argument == "--db" and waiting:
            front.append(waiting.pop(0))
    return front + rest


def _without_old_names(args: list[str]) -> list[str]:
    """The arguments with options of an earlier version by the names they have now, each with a note on stderr."""
    from alpasift.batcher.cli.options import RENAMED

    renamed: list[str] = []
    for place, argument in enumerate(args):
        if argument == "--":
            return renamed + args[place:]
        name, equals, value = argument.partition("=")
        now = RENAMED.get(name, name)
        if now != name:
            click.echo(f"{name} is deprecated, use {now}; the next release removes the old name", err=True)
        renamed.append(now + equals + value)
    return renamed


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"alpasift {version('alpasift')}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--db",
    default="alpasift.duckdb",
    envvar="ALPASIFT_DB",
    show_default=True,
    show_envvar=True,
    metavar="FILE",
    help="The database: one file for datasets, replies, scores and ledger.",
)
@click.option(
    "--offline",
    is_flag=True,
    envvar="ALPASIFT_OFFLINE",
    show_envvar=True,
    help="Allow no network connection and no DNS lookup, except on this machine.",
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Show the version."
)
@click.pass_context
def cli(ctx: click.Context, db: str, offline: bool) -> None:
    """Grade, sift and fine-tune on instruction data under a dollar budget.

    \b
    The whole job on one file:
      alpasift filter data.json -o kept.json --grader llama_cpp:model.gguf
    Step by step:
      alpasift import data.json
      alpasift plan --grader llama_cpp:model.gguf
      alpasift grade --grader llama_cpp:model.gguf --rubric accuracy
      alpasift scores
      alpasift select --min-score 4.5 --name kept
      alpasift export --selection kept -o kept.json
    """
    ctx.obj = db
    if offline:
        from alpasift.graders.offline.guard import go_offline

        go_offline(sends=ctx.invoked_subcommand not in NEVER_SEND)


def _exit_code(error: BaseException) -> int:
    from alpasift.batcher.data.targets import TargetError
    from alpasift.batcher.money.ledger import NoBudget
    from alpasift.graders import BackendUnavailable, BudgetExceeded
    from alpasift.graders.api.price_lookup import NoBatchPrice, UnknownPrice
    from alpasift.train.fit.cards import NoCard
    from alpasift.train.fit.choice import NothingFits

    if isinstance(error, BackendUnavailable | NoBatchPrice | UnknownPrice | NoCard | NothingFits):
        return 3
    if isinstance(error, BudgetExceeded):
        return 4
    return 2 if isinstance(error, NoBudget | TargetError) else 1


def _terminate(signum: int, frame: Any) -> None:
    arrived(signum)
    raise KeyboardInterrupt


_INTERRUPTED = "interrupted; committed results are kept, and the same command resumes"


def run(arguments: list[str] | None = None) -> int:
    """Run one command line and return its exit code; an error is printed as one line."""
    forget()
    try:
        for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):  # a dropped ssh sends SIGHUP
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores it
                signal.signal(number, _terminate)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # a terminal that cannot show a character still gets the rest
        code = cli.main(arguments, prog_name="alpasift", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.UsageError as error:
        from alpasift.batcher.cli.option_hints import with_hint

        with_hint(error).show()
        return 2
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort) as error:
        with contextlib.suppress(OSError):  # the terminal may be gone
            _print_error(str(error.__cause__ or error) or _INTERRUPTED)  # click makes an Abort of a KeyboardInterrupt
        return exit_code()
    except (BrokenPipeError, OutputClosed):  # the reader of our output went away, as `head` does
        return _output_is_closed()
    except Exception as error:
        if os.environ.get("ALPASIFT_DEBUG") and not _is_expected(error):
            raise
        return _print_failure(error)


def _output_is_closed() -> int:
    """What is still written to stdout goes nowhere; that nobody reads on is no error of ours."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 0


def _is_expected(error: Exception) -> bool:
    """Whether an error is one that a user can act on, and no bug of ours."""
    from alpasift.graders import AlpaSiftError

    return isinstance(error, AlpaSiftError | OSError) or "interrupt" in f"{type(error).__name__} {error}".lower()


def _print_failure(error: Exception) -> int:
    """Print an error as one line and return its exit code. What this needs is imported here; `--help` needs none."""
    from alpasift.graders import AlpaSiftError
    from alpasift.graders.offline.guard import Outside

    if isinstance(error, AlpaSiftError):
        _print_error(str(error))
        return _exit_code(error)
    if isinstance(error, Outside):
        _print_error(str(error))
        return 3
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        _print_error(f"{where}{error.strerror or error}; no partial output was written; fix it and run again")
        return 1
    if _is_expected(error):  # Ctrl-C while DuckDB was at work
        _print_error(_INTERRUPTED)
        return exit_code()
    _print_error(
        f"this is a bug in alpasift, not in your data: {type(error).__name__}: {error}. ALPASIFT_DEBUG=1 shows where"
    )
    return 1


def _print_error(message: str) -> None:
    from alpasift.batcher.cli.printing import plain

    click.echo(f"alpasift: {plain(message)}", err=True)


def main() -> NoReturn:
    if sys.stdout is None:  # closed by the caller
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
    code = run()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)
