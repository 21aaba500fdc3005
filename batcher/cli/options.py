"""Options that several commands share: which rows and grader, how it is reached, what may be spent, what is printed.

A decorator such as `grader_options` adds several options and hands the command one value for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import wraps
from pathlib import Path
from typing import Any

import click

from alpasift.batcher.cli.numbers import NUMBER
from alpasift.batcher.data.row_formats.row import READ_FORMATS

Command = Callable[..., Any]

RENAMED = {"--contract": "--answer-format", "--shape": "--row-format"}
"""Options of an earlier version, and what they are called now; the old names still work, with a note."""


class AnswerFormatType(click.Choice[str]):
    """What an answer holds. "expected", the name of an earlier version, is expected_score."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return super().convert("expected_score" if value == "expected" else value, param, ctx)


def usd(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Decimal | None:
    """Dollars from an option's text, exact."""
    if value is None:
        return None
    from alpasift.batcher.money.dollars import parse_usd
    from alpasift.graders import AlpaSiftError

    try:
        return parse_usd(value)
    except AlpaSiftError as error:
        raise click.BadParameter(str(error)) from error


def own_prices(db: str) -> str | None:
    """The prices.toml beside the database or in this folder, or the one that ALPASIFT_PRICES names."""
    from alpasift.batcher.grading.open_grader import own_prices as found_for

    return found_for(Path(db))


def _decorated(command: Command, options: Sequence[Callable[[Command], Command]]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


# -- what is printed ----------------------------------------------------------------------------------------------

json_option = click.option("--json", "form", flag_value="json", help="Print JSON.")
quiet_option = click.option("--quiet", is_flag=True, help="No progress line.")
rehearse_option = click.option(
    "--rehearse", is_flag=True, help="Rehearse against a local server, on a copy of the database, at $0."
)


def forms(command: Command) -> Command:
    """The options --json and --csv, given to the command as `form`."""
    return _decorated(command, (click.option("--csv", "form", flag_value="csv", help="Print CSV."), json_option))


# -- what is written ----------------------------------------------------------------------------------------------

force_option = click.option(
    "--force", is_flag=True, help="Replace a file that alpasift did not write, or that was changed since."
)


def _figures(_ctx: click.Context, _param: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for name in names for part in name.split(",") if part.strip()))


with_option = click.option(
    "--with",
    "figures",
    multiple=True,
    callback=_figures,
    metavar="FIGURES",
    help="Add to each row: score, expected_score, reason, explanation, reply, grader, rubric, model, "
    "samples, spread, usd. Comma-separated.",
)


# -- which rows ---------------------------------------------------------------------------------------------------

dataset_option = click.option(
    "--dataset",
    metavar="NAME",
    help="Dataset: NAME is the newest version, NAME@2 the second. Default: the only one.",
)
row_format_option = click.option(
    "--row-format",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", *READ_FORMATS]),
    metavar="NAME",
    help=f"How a row is written in the file: {', '.join(READ_FORMATS)}; auto detects it.",
)


def _mapping(_ctx: click.Context, _param: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str] | None:
    mapping = {}
    for pair in pairs:
        target, equals, source = pair.partition("=")
        if not equals or not target or not source:
            raise click.UsageError(f"--map {pair!r}: write instruction=question (our key = the file's key)")
        if target in mapping:
            raise click.UsageError(f"--map gives {target!r} twice")
        mapping[target] = source
    return mapping or None


def import_options(command: Command) -> Command:
    """How a file is read, given to the command as the dict `reading`, which `import_file` takes."""

    @wraps(command)
    def collected(*args: Any, **kwargs: Any) -> Any:
        reading = {name: kwargs.pop(name) for name in ("row_format", "mapping", "strict", "split")}
        return command(*args, reading=reading, **kwargs)

    return _decorated(
        collected,
        (
            row_format_option,
            click.option(
                "--map",
                "mapping",
                multiple=True,
                metavar="OURS=THEIRS",
                callback=_mapping,
                help="Map a key of the file to ours: --map instruction=question. Repeatable.",
            ),
            click.option("--strict", is_flag=True, help="Stop at the first bad row instead of skipping it."),
            click.option("--split", metavar="NAME", help="Split to read from a folder with several."),
        ),
    )


def score_options(command: Command) -> Command:
    """Which scores are kept, one of them: --min-score, --top, --keep-share."""
    return _decorated(
        command,
        (
            click.option("--min-score", type=NUMBER, metavar="X", help="Keep rows that score X or higher."),
            click.option("--top", type=click.IntRange(1), metavar="N", help="Keep the N best rows."),
            click.option(
                "--keep-share", type=NUMBER, metavar="S", help="Keep this share of all rows, best first: .18 for 18 %."
            ),
        ),
    )


def rows_options(command: Command) -> Command:
    """--data, --dataset and --selection, given to the command as the dict `rows_from` for `trainings.find_rows`."""

    @wraps(command)
    def collected(*args: Any, **kwargs: Any) -> Any:
        named = {name: kwargs.pop(name) for name in ("data", "dataset", "selection")}
        if sum(name is not None for name in named.values()) > 1:
            raise click.UsageError("give one of --data FILE, --dataset NAME and --selection NAME")
        return command(*args, rows_from=named, **kwargs)

    return _decorated(
        collected,
        (
            click.option("--data", metavar="FILE", help="Train on a file; no database is needed."),
            click.option("--dataset", metavar="NAME", help="Train on a whole dataset."),
            click.option("--selection", metavar="NAME", help="Train on a selection."),
        ),
    )


# -- what may be spent --------------------------------------------------------------------------------------------

limit_option = click.option("--limit", type=click.IntRange(1), metavar="N", help="Grade at most N rows in this run.")


def spending_options(command: Command) -> Command:
    """What a run may spend and when it stops, as `caps`, and whether it may spend without being confirmed, as `yes`.

    A command that has `limit_option` too gets it within `caps`.
    """

    @wraps(command)
    def collected(*args: Any, **kwargs: Any) -> Any:
        from alpasift.batcher.engine.run_task import Caps

        caps = Caps(kwargs.pop("limit", None), kwargs.pop("budget"), kwargs.pop("run_budget"), kwargs.pop("keep_going"))
        return command(*args, caps=caps, **kwargs)

    return _decorated(
        collected,
        (
            click.option(
                "--budget",
                metavar="USD",
                callback=usd,
                help="Cap on the total of this database: spent, reserved and unresolved dollars.",
            ),
            click.option("--run-budget", metavar="USD", callback=usd, help="Cap on this run, within the budget."),
            click.option("--yes", is_flag=True, help="Do not ask for confirmation before spending."),
            click.option(
                "--keep-going", is_flag=True, help="Continue even if most of the first answers are unreadable."
            ),
        ),
    )


# -- which grader, and how it is prompted -------------------------------------------------------------------------

rubric_option = click.option(
    "--rubric", metavar="R", help="Rubric: accuracy, helpfulness, rules, or the path of your own .toml."
)
max_hours_option = click.option(
    "--max-hours",
    type=click.FloatRange(0, min_open=True),
    metavar="H",
    help="Time limit for choosing a grader with auto.",
)


class _Figure(click.Choice[str]):
    """A figure of a grade; `expected`, the name of an earlier version, still works, with a note."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value == "expected":
            click.echo(
                "--by expected is deprecated, use --by expected_score; the next release removes the old name", err=True
            )
            value = "expected_score"
        return super().convert(value, param, ctx)


by_option = click.option(
    "--by",
    type=_Figure(["score", "expected_score"]),
    default="score",
    show_default=True,
    help="Use the score, or the expected score under the model's probabilities.",
)

_SETTINGS = (
    click.option(
        "--base-url",
        metavar="URL",
        envvar="OPENAI_BASE_URL",
        help="API base URL of openai_batch and openai_chat.",
    ),
    click.option("--prices", metavar="FILE", help="Your own prices (prices.toml); also ALPASIFT_PRICES."),
    click.option(
        "--batch-rows",
        type=click.IntRange(1, 50_000),
        metavar="N",
        help="Maximum rows per batch file.",
    ),
    click.option(
        "--enqueued-tokens",
        type=click.IntRange(1),
        metavar="N",
        help="Your organisation's enqueued-token limit for the model. Default: reported by the server.",
    ),
    click.option(
        "--poll-seconds",
        type=click.FloatRange(0),
        metavar="S",
        help="Poll batches every S seconds (30).",
    ),
    click.option(
        "--grace-seconds",
        type=click.FloatRange(0),
        metavar="S",
        help="Seconds to look for a batch whose creation was not confirmed before giving it up (30).",
    ),
    click.option(
        "--allow-drift",
        is_flag=True,
        default=None,
        help="Continue even if the model's snapshot has changed.",
    ),
    click.option(
        "--in-flight",
        type=click.IntRange(1, 512),
        metavar="N",
        help="Concurrent requests of openai_chat (8).",
    ),
    click.option(
        "--constrain",
        type=click.Choice(["auto", "none", "json", "vllm"]),
        help="How openai_chat constrains answers to the scores: JSON schema, or vLLM's guided decoding.",
    ),
    click.option(
        "--tensor-parallel",
        type=click.IntRange(1, 64),
        metavar="N",
        help="Number of GPUs for tensor parallelism (1).",
    ),
    click.option(
        "--gpu-memory",
        type=click.FloatRange(0, 1, min_open=True),
        metavar="S",
        help="Share of each GPU's memory to use (0.9).",
    ),
    click.option(
        "--context",
        type=click.IntRange(64),
        metavar="N",
        help="Maximum tokens of a prompt with its answer.",
    ),
    click.option(
        "--quantization",
        metavar="Q",
        help="Quantization of the weights, for example fp8 or bitsandbytes.",
    ),
)
API_SETTINGS = (
    "base_url",
    "prices",
    "batch_rows",
    "enqueued_tokens",
    "poll_seconds",
    "grace_seconds",
    "allow_drift",
    "in_flight",
    "constrain",
)
VLLM_SETTINGS = ("tensor_parallel", "gpu_memory", "context", "quantization")
_PROMPTING = (
    click.option(
        "--answer-format",
        type=AnswerFormatType(["score", "explain", "json", "expected_score"]),
        help="Content of an answer: the score, score and reasons, both as JSON, or the probability of each score. "
        "Default: the cheapest that the grader supports.",
    ),
    click.option(
        "--samples",
        type=click.IntRange(1, 64),
        metavar="K",
        help="Samples per row; the score is their mean.",
    ),
    click.option(
        "--temperature",
        type=click.FloatRange(0, 2),
        metavar="T",
        help="Sampling temperature. Default: 0 for one sample, .7 for more.",
    ),
)


def grader_options(command: Command) -> Command:
    """The settings of graders as the dict `settings`, and how rows are prompted as `asking`, each with what was set."""

    @wraps(command)
    def collected(*args: Any, **kwargs: Any) -> Any:
        settings = {name: kwargs.pop(name) for name in (*API_SETTINGS, *VLLM_SETTINGS)}
        settings["prices"] = settings["prices"] or own_prices(click.get_current_context().obj)
        asking = {name: kwargs.pop(name) for name in ("answer_format", "samples", "temperature")}
        return command(*args, settings=_given(settings), asking=_given(asking), **kwargs)

    return _decorated(collected, (*_PROMPTING, *_SETTINGS))


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
