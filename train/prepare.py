"""A training prepared before anything heavy is loaded: the base checked, rows tokenised, every step planned.

Call `prepare`, then `train.sft.train`; `forecast_of` forecasts exactly this training. Loads no weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpasift.graders import BackendUnavailable, Example
from alpasift.train.artifacts import TrainError
from alpasift.train.data import Tokenized, composition, tokenize
from alpasift.train.fit.cards import Card
from alpasift.train.fit.forecast import Forecast, forecast
from alpasift.train.fit.model_dims import ModelDims
from alpasift.train.fit.train_config import TrainConfig
from alpasift.train.fit.workload import Layout, Lengths, Workload
from alpasift.train.held_out import split
from alpasift.train.models import Base, find_base, load_tokenizer, missing_packages
from alpasift.train.packing import Plan, plan
from alpasift.train.recipes import Settings

PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "safetensors")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A training that can begin: see `prepare`. `facts` are the counts and digests that name it in its folder.

    `held_out` are rows that are not in `data`, None where none are held out.
    """

    base: Base
    tokenizer: Any
    data: Tokenized
    plan: Plan
    settings: Settings
    facts: dict[str, Any]
    held_out: Tokenized | None = None


def missing_requirements() -> str | None:
    """What must be installed to train on this machine, in one line; None where nothing is missing."""
    missing = missing_packages(PACKAGES)
    return (
        f"training needs {', '.join(missing)}, not installed here: pip install 'alpasift[train]'" if missing else None
    )


def prepare(
    examples: Sequence[Example],
    base: Path,
    settings: Settings,
    *,
    ids: Sequence[str] | None = None,
    cards: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Prepared:
    """Check the base, tokenise the examples and plan every step. Raises TrainError, or BackendUnavailable.

    `ids` are those of the examples, by which rows are held out; where None, their content is hashed.
    """
    found = find_base(base)
    if missing := missing_requirements():
        raise BackendUnavailable(missing)
    if not examples:
        raise TrainError("there are no rows to train on; select some with `alpasift select`, or give another file")
    tokenizer = load_tokenizer(base)
    data = tokenize(examples, tokenizer, template=settings.template, max_length=settings.max_length, progress=progress)
    _check_model_takes(found, data)
    data, held_out, held_ids = split(data, ids or [_content_id(example) for example in examples], settings.held_out)
    planned = plan(
        data.lengths,
        pack_length=settings.pack_length,
        micro_batch=settings.micro_batch,
        batch=settings.batch,
        epochs=settings.epochs,
        steps=settings.steps,
        seed=settings.seed,
        cards=cards,
    )
    facts = {
        "data": dict(composition(data, len(examples))),
        "data_sha256": _digest(data),
        "steps": len(planned.steps),
        "microbatches": planned.microbatches,
        "cards": cards,
        "tokens": planned.tokens,
        "padded_tokens": planned.padded_tokens,
    }
    if held_out is not None:
        facts["held_out"] = {"rows": len(held_out.ids), "ids": list(held_ids), "sha256": _digest(held_out)}
    return Prepared(found, tokenizer, data, planned, settings, facts, held_out)


def _content_id(example: Example) -> str:
    return hashlib.sha256(repr(example).encode("utf-8", "surrogatepass")).hexdigest()


def _check_model_takes(base: Base, data: Tokenized) -> None:
    """Raise TrainError where the model has no embedding for a token, or no position for the longest example."""
    known, largest = base.config.get("vocab_size"), max(max(ids) for ids in data.ids)
    if isinstance(known, int) and largest >= known:
        raise TrainError(
            f"the tokenizer of {base.folder} gives token {largest}, and the model has {known:,} embeddings: they do "
            "not match"
        )
    positions = base.config.get("max_position_embeddings", base.config.get("n_positions"))  # GPT-2's name for it
    longest = max(data.lengths)
    if isinstance(positions, int) and longest > positions:
        raise TrainError(
            f"an example has {longest:,} tokens and the model {positions:,} positions; truncate examples with "
            f"--max-length {positions}"
        )


def _digest(data: Tokenized) -> str:
    """Names the token ids and where the loss begins, in order. Stored in run.json."""
    digest = hashlib.sha256()
    for ids, start in zip(data.ids, data.prompt_tokens, strict=True):
        digest.update(len(ids).to_bytes(4, "little") + start.to_bytes(4, "little") + ids.tobytes())
    return digest.hexdigest()


def forecast_of(prepared: Prepared, dims: ModelDims, card: Card, save_every: int | None = None) -> Forecast:
    """The forecast of exactly this training, before any calibration."""
    s, planned, cards = prepared.settings, prepared.plan, prepared.facts["cards"]
    float32 = s.master_weights if s.method == "full" else s.adapter_precision == "fp32"
    config = TrainConfig(
        s.method,
        s.micro_batch,
        s.pack_length,
        s.checkpointing,
        s.rank,
        targets=s.target_names,
        dropout=s.lora_dropout,
        adapter_dtype="fp32" if float32 else "bf16",
        optimizer="adamw_8bit" if s.optimizer == "adamw_8bit" else "adamw",
        dtype=s.precision,
        cards=cards,
    )
    lengths = Lengths(
        tuple(prepared.data.lengths),
        trained=prepared.data.trained_tokens,
        truncated=prepared.data.truncated,
        max_length=s.max_length,
        counted_by="its tokenizer",
    )
    layout = Layout(
        steps=len(planned.steps),
        microbatches=planned.microbatches,
        rows=len(planned.steps) * planned.microbatches * s.micro_batch * cards,
        tokens=planned.tokens,
        padded_tokens=planned.padded_tokens,
        max_tokens=planned.max_tokens,
        longest_row=planned.longest_row,
        sampled=False,
    )
    return forecast(dims, Workload(lengths, s.batch, s.epochs), config, card, layout=layout, save_every=save_every)
