"""Options that several commands share: which grader and how it is reached, what may be spent, how the run goes."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from functools import wraps
from pathlib import Path
from typing import Any

import click


def usd(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Decimal | None:
    """Dollars from an option's text, exact."""
    if value is None:
        return None
    from batcher.ledger import parse_usd
    from graders import AlpaSiftError

    try:
        return parse_usd(value)
    except AlpaSiftError as error:
        raise click.BadParameter(str(error)) from error


budget_option = click.option(
    "--budget", metavar="USD", callback=usd,
    help="The cap of this database, for all its life: spent, reserved and unresolved together.",
)  # fmt: skip
run_budget_option = click.option(
    "--run-budget", metavar="USD", callback=usd, help="A cap on this run, on top of the budget."
)
yes_option = click.option("--yes", is_flag=True, help="Do not ask before spending.")
limit_option = click.option("--limit", type=click.IntRange(1), metavar="N", help="Grade at most N rows in this run.")
max_hours_option = click.option(
    "--max-hours", type=click.FloatRange(0, min_open=True), metavar="H", help="For --grader auto."
)
quiet_option = click.option("--quiet", is_flag=True, help="No progress line.")

_GRADER = (
    click.option("--base-url", metavar="URL", envvar="OPENAI_BASE_URL", help="The server of openai_batch and openai_chat."),
    click.option("--prices", metavar="FILE", help="Prices of your own (prices.toml); also ALPASIFT_PRICES."),
    click.option("--batch-rows", type=click.IntRange(1, 50_000), metavar="N", help="At most N rows in one batch file."),
    click.option(
        "--enqueued-tokens", type=click.IntRange(1), metavar="N",
        help="Your organisation's limit of enqueued prompt tokens for the model; learned from the server if not given.",
    ),
    click.option("--poll-seconds", type=click.FloatRange(0), metavar="S", help="Ask after batches every S seconds (30)."),
    click.option(
        "--grace-seconds", type=click.FloatRange(0), metavar="S",
        help="How long to look for a batch whose creation was not confirmed before it is given up (30).",
    ),
    click.option("--allow-drift", is_flag=True, default=None, help="Go on although the model's snapshot has changed."),
    click.option("--in-flight", type=click.IntRange(1, 512), metavar="N", help="Calls at a time, for openai_chat (8)."),
    click.option(
        "--constrain", type=click.Choice(["auto", "none", "json", "vllm"]),
        help="How openai_chat asks a server to hold its answer to the scores: by JSON schema, or as vLLM's server takes it.",
    ),
    click.option("--tensor-parallel", type=click.IntRange(1, 64), metavar="N", help="GPUs to spread the model over, for vllm (1)."),
    click.option("--gpu-memory", type=click.FloatRange(0, 1, min_open=True), metavar="S", help="Share of each GPU's memory, for vllm (0.9)."),
    click.option("--context", type=click.IntRange(64), metavar="N", help="Most tokens of a row and its answer, for vllm."),
    click.option("--quantization", metavar="Q", help="How vllm reads the weights, fp8 or bitsandbytes for instance."),
)  # fmt: skip
_NAMES = (
    "base_url", "prices", "batch_rows", "enqueued_tokens", "poll_seconds", "grace_seconds", "allow_drift", "in_flight",
    "constrain", "tensor_parallel", "gpu_memory", "context", "quantization",
)  # fmt: skip


def grader_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The settings of graders, given to the command as the dict `options` with those that were set."""

    @wraps(command)
    def collected(*args: Any, **kwargs: Any) -> Any:
        options = {name: kwargs.pop(name) for name in _NAMES}
        options["prices"] = options["prices"] or _own_prices()
        return command(*args, options={k: v for k, v in options.items() if v is not None}, **kwargs)

    for option in reversed(_GRADER):
        collected = option(collected)
    return collected


_ASKING = (
    click.option(
        "--contract", type=click.Choice(["score", "explain", "json", "expected"]),
        help="What an answer holds: the score alone, its reasons too, both as JSON, or how likely each score is. The cheapest the grader can do if not given.",
    ),
    click.option("--samples", type=click.IntRange(1, 64), metavar="K", help="Ask about each row K times; its score is their mean."),
    click.option("--temperature", type=click.FloatRange(0, 2), metavar="T", help="0 for one sample, .7 for more, if not given."),
)  # fmt: skip


def asking_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How each row is asked about, given to the command as the dict `asking` with what was set."""

    @wraps(command)
    def collected(*args: Any, **kwargs: Any) -> Any:
        asking = {name: kwargs.pop(name) for name in ("contract", "samples", "temperature")}
        return command(*args, asking={k: v for k, v in asking.items() if v is not None}, **kwargs)

    for option in reversed(_ASKING):
        collected = option(collected)
    return collected


def _own_prices() -> str | None:
    """The prices.toml beside the database or here, or the one that ALPASIFT_PRICES names."""
    from graders.prices import find_overrides

    found = find_overrides(Path(click.get_current_context().obj).absolute().parent)
    return str(found) if found else None


def meant_for(spec: str, options: dict[str, Any], explicit: bool = False) -> dict[str, Any]:
    """Those of the options that the grader of a spec has.

    The address, which the environment may set, the price file and --no-wait are passed over for a grader that has no
    use for them; any other foreign option is kept when the grader was named by hand, so that opening it refuses it.
    """
    from graders import options_of

    own = options_of(spec)
    passed_over = ("base_url", "prices", "wait")
    return {k: v for k, v in options.items() if k in own or (explicit and k not in passed_over)}
