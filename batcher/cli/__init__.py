"""The command line: a skin. Each command parses its options, calls one function and prints.

Commands are imported when they are called, so that `alpasift --help` answers at once. Results go to stdout, progress
and notes to stderr. A user never sees a traceback: what AlpaSift knows how to explain is one line and an exit code.

    0 done   1 error   2 usage, or consent is missing   3 no grader can work here
    4 not finished, run again to go on   130 interrupted, what was answered is kept
"""

from __future__ import annotations

import io
import os
import signal
import sys
from importlib import import_module
from typing import Any, NoReturn

import click

COMMANDS: dict[str, tuple[str, str]] = {
    "import": ("data", "Bring instruction data into the database."),
    "export": ("data", "Write a selection or a dataset to a file."),
    "plan": ("plans", "What each grader would cost and take for these rows; spends nothing."),
    "probe": ("plans", "Grade a random sample and project: scores, kept share, cost of the whole."),
    "grade": ("grade", "Grade every row of a dataset."),
    "collect": ("batches", "Bring what has come of the batches that are out."),
    "cancel": ("batches", "Stop a batch that is out and settle what was done."),
    "batch": ("batches", "Carry batches by hand: export request files, import results."),
    "labels": ("compare", "Bring grades made elsewhere, by people or published, as a grader."),
    "scores": ("look", "The score distribution, and what each threshold would keep."),
    "agree": ("compare", "Two graders side by side: how far they agree, with intervals."),
    "calibrate": ("compare", "Fit a cheap grader to a reference, on a sample bought of it."),
    "select": ("choose", "Choose a subset by score, share, SQL or length, with a manifest."),
    "filter": ("choose", "Import, grade, choose and write, in one go."),
    "show": ("look", "Read rows with their grades."),
    "status": ("look", "What is in the database and what is running."),
    "runs": ("look", "The runs so far and how each ended."),
    "ledger": ("money", "Where the money went: budget, spent, reserved, unresolved, free."),
    "sql": ("look", "Ask the database in SQL, also while a run is writing."),
    "query": ("look", "Run one of the named queries."),
    "models": ("models", "Local graders worth trying, and the usual API model."),
    "fit": ("fit", "What fits a card: memory, minutes and dollars of a fine-tune."),
    "train": ("train", "Fine-tune a model on rows, resumable, by a paper's recipe."),
    "export-model": ("export_model", "Write a trained model as adapter, merged weights or GGUF."),
    "doctor": ("look", "What each grader lacks on this machine."),
    "bundle": ("airgap", "What an air-gapped machine needs: pack it here, check it there."),
}
NEVER_SEND = ("plan", "batch", "doctor")
"""Commands that may name a grader on another machine also under --offline, since they only look or carry files."""


class LazyGroup(click.Group):
    """A group whose commands are imported when called; its help needs none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"batcher.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_) for name, (_, help_) in COMMANDS.items()])


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
    help="The database: one file holds dataset, replies, scores and ledger.",
)
@click.option(
    "--offline",
    is_flag=True,
    envvar="ALPASIFT_OFFLINE",
    show_envvar=True,
    help="No name look-up and no connection but to this machine.",
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
        from graders.offline import go_offline

        go_offline(sends=ctx.invoked_subcommand not in NEVER_SEND)


def _exit_code(error: BaseException) -> int:
    from batcher.ledger import NoBudget
    from graders import BackendUnavailable, BudgetExceeded
    from graders.prices import NoBatchPrice, UnknownPrice
    from train.cards import NoCard
    from train.memory import NothingFits

    if isinstance(error, BackendUnavailable | NoBatchPrice | UnknownPrice | NoCard | NothingFits):
        return 3
    if isinstance(error, BudgetExceeded):
        return 4
    return 2 if isinstance(error, NoBudget) else 1


def _terminate(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


_INTERRUPTED = "interrupted; what was committed is kept, the same command goes on from there"


def run(arguments: list[str] | None = None) -> int:
    """Run one command line and return its exit code, having told the user about any error in one line."""
    from graders import AlpaSiftError

    try:
        os.umask(0o077)  # what we write holds data: the database's side files too are for its owner
        signal.signal(signal.SIGTERM, _terminate)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # a terminal that cannot show a character still gets the rest
        code = cli.main(arguments, prog_name="alpasift", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.UsageError as error:
        error.show()
        return 2
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _say(_INTERRUPTED)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except AlpaSiftError as error:
        _say(str(error))
        return _exit_code(error)
    except OSError as error:
        from graders.offline import Outside

        if isinstance(error, Outside):
            _say(str(error))
            return 3
        where = f"{error.filename}: " if error.filename else ""
        _say(f"{where}{error.strerror or error}; nothing was half-written, put it right and run again")
        return 1
    except Exception as error:
        if "interrupt" in f"{type(error).__name__} {error}".lower():  # Ctrl-C while DuckDB was at work
            _say(_INTERRUPTED)
            return 130
        if os.environ.get("ALPASIFT_DEBUG"):
            raise
        _say(
            f"this is a fault in alpasift, not in your data: {type(error).__name__}: {error}. ALPASIFT_DEBUG=1 shows where"
        )
        return 1


def _say(message: str) -> None:
    from batcher.cli.printing import plain

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
