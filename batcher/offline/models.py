"""Local graders worth trying: licence, memory, speed by a formula, and what calibrations here have measured of them.

Start at `catalogue`, then `on_card` and `on_cpu`. Knows the list graders/local/models.toml, arithmetic, and which model
a file name stands for; runs no engine. A prediction holds for the answer format `score` with the rubric shared.

    memory   = parameters x bits / 8 + tokens in the cache x bytes a token + overhead
    bytes    = 2 x layers x kv_heads x head_dim x 2            keys and values of one token, 16 bits each
    seconds  = reading the row + (answer tokens) x one step     of one row
    a pass   = max(2 x active parameters x tokens / (peak x share),                  arithmetic
                   (weights / rows at once + cache of a row) / (bandwidth x share))  memory
    rows/s   = 1 / seconds

Reading the row is one pass of its own tokens, a step of the answer one pass of one token. Sources: 2 operations a
parameter and token, Kaplan et al. 2020 (arXiv 2001.08361, section 2.1); the larger of arithmetic and memory, the
roofline of Williams et al. 2009 (CACM 52:65); cache size, Pope et al. 2022 (arXiv 2211.05102). A mixture of experts
computes with its active parameters and, since many rows are computed together, reads all its weights. Left out: the
rubric, which is read once a run, and attention over the cache, which is small beside the rest at some hundred tokens.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import Decimal
from importlib import resources
from typing import Any

from alpasift.batcher.store import Store
from alpasift.graders import AlpaSiftError
from alpasift.graders.api.prices import Price
from alpasift.graders.local.packaged_models import PACKAGED

FITS = 0.9
"""Share of a card's memory that a model may take: vLLM's own default, --gpu-memory."""
_QUANTISED = re.compile(
    r"(?:[-._](?:i?q\d[a-z0-9_]*|[kml]|i1|ud|xl|bf16|f16|fp16|fp8|awq|gptq|int[48]|w\d+a\d+|[48]bit|gguf))+$"
)
_PART = re.compile(r"-\d{5}-of-\d{5}$")
_KEYS = {
    "name",
    "id",
    "judge",
    "licence",
    "restriction",
    "parameters",
    "active",
    "layers",
    "kv_heads",
    "head_dim",
    "context",
    "gpu",
    "gpu_repo",
    "gguf",
    "gguf_file",
    "gguf_bytes",
    "packaged",
    "remark",
    "unverified",
    "sources",
}


class ModelsError(AlpaSiftError):
    """The list of models is malformed, or has no model of that name."""


@dataclass(frozen=True, slots=True)
class Model:
    """One model of the list. `unverified` names the facts without a source; `gguf_bytes` is 0 where unpublished.

    `packaged` is its name where a package brings it; other models have `gguf` and `gguf_file`.
    """

    name: str
    id: str
    judge: bool
    licence: str
    restriction: str
    parameters: int
    active: int
    layers: int
    kv_heads: int
    head_dim: int
    context: int
    gpu: str
    remark: str
    unverified: tuple[str, ...]
    sources: Mapping[str, str]
    gguf: str = ""
    gguf_file: str = ""
    gpu_repo: str = ""
    gguf_bytes: int = 0
    packaged: str = ""

    @property
    def grader(self) -> str:
        """The grader on a CPU, as it is typed."""
        return f"llama_cpp:{self.packaged or self.gguf_file}"

    @property
    def cache_bytes_per_token(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * 2


@dataclass(frozen=True, slots=True)
class Device:
    """A card or a processor: operations and bytes a second at their peak; `memory_bytes` is 0 for a processor."""

    name: str
    label: str
    flops: float
    bytes_per_second: float
    memory_bytes: int
    source: str


@dataclass(frozen=True, slots=True)
class Assumed:
    """What the predictions rest on besides the devices; shares are of a device's peak."""

    tokens_per_row: int
    rubric_tokens: int
    answer_tokens: int
    gpu_rows_at_once: int
    cpu_rows_at_once: int
    cpu_cache_tokens: int
    compute_share: float
    bandwidth_share: float
    gpu_overhead_bytes: int
    cpu_overhead_bytes: int


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The list: models, devices, assumptions, bits of a weight by quantisation, and the API model to compare with."""

    dated: date
    models: tuple[Model, ...]
    cards: Mapping[str, Device]
    cpu: Device
    assumed: Assumed
    bits: Mapping[str, float]
    api_model: str
    api_grader: str


@dataclass(frozen=True, slots=True)
class Predicted:
    """One model on one kind of machine. Predicted, not measured."""

    quantisation: str
    memory_bytes: int
    rows_per_second: float


@dataclass(frozen=True, slots=True)
class Validity:
    """What a calibration measured of a grader: how well its scores rank the rows that the reference keeps."""

    grader: str
    rubric: str
    scored: str
    reference: str
    verdict: str
    rows: int
    auc: float | None
    auc_low: float | None
    auc_high: float | None
    measured_at: datetime


def catalogue(text: str | None = None) -> Catalogue:
    """The list that comes with the program, or one from TOML text of the same form. Raises ModelsError."""
    text = text or (resources.files("alpasift.graders.local") / "models.toml").read_text("utf-8")
    try:
        table = tomllib.loads(text)
        models = tuple(_model(one) for one in table["model"])
        cards = {
            name: Device(name, c["label"], c["tflops"] * 1e12, c["gb_per_second"] * 1e9, c["memory_bytes"], c["source"])
            for name, c in table["cards"].items()
        }
        cpu = table["cpu"]
        return Catalogue(
            table["date"],
            models,
            cards,
            Device("cpu", cpu["label"], cpu["gflops"] * 1e9, cpu["gb_per_second"] * 1e9, 0, cpu["source"]),
            Assumed(**table["assumptions"]),
            table["bits_per_weight"],
            table["api"]["model"],
            table["api"]["grader"],
        )
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise ModelsError(f"the list of models cannot be read: {type(error).__name__} {error}") from error


def _model(table: dict[str, Any]) -> Model:
    unknown = sorted(set(table) - _KEYS)
    if unknown:
        raise ModelsError(f"the list of models: {table.get('id')} has the unknown key {unknown[0]!r}")
    model = Model(**{**table, "unverified": tuple(table["unverified"])})
    foreign = sorted(set(model.unverified) - _KEYS)
    if foreign:
        raise ModelsError(f"the list of models: {model.id} has {foreign[0]!r} as unverified, which is not a key")
    return model


def find(known: Catalogue, name: str) -> Model:
    """The one model whose name or id has `name` in it. Raises ModelsError for none and for several."""
    wanted = name.lower()
    exact = [m for m in known.models if wanted in (m.id.lower(), m.id.split("/")[1].lower(), m.name.lower())]
    found = exact or [m for m in known.models if wanted in m.id.lower() or wanted in m.name.lower()]
    if len(found) == 1:
        return found[0]
    names = ", ".join(m.id for m in found or known.models)
    if found:
        raise ModelsError(f"several models are called {name!r}: {names}; give more of the name")
    raise ModelsError(f"no model named {name!r}; choose from {names}")


# -- predictions --------------------------------------------------------------------------------------------------


def memory_bytes(model: Model, bits: float, cache_tokens: int, overhead_bytes: int) -> int:
    """Weights, cache and overhead: see the head of this module."""
    return round(model.parameters * bits / 8) + cache_tokens * model.cache_bytes_per_token + overhead_bytes


def row_seconds(model: Model, device: Device, bits: float, rows_at_once: int, assumed: Assumed) -> float:
    """Seconds of one row among `rows_at_once`: its own tokens in one pass, then a pass for each token of the answer."""

    def one_pass(tokens: int) -> float:
        arithmetic = 2 * model.active * tokens / (device.flops * assumed.compute_share)
        weights = model.parameters * bits / 8 / rows_at_once
        cache = model.cache_bytes_per_token * (assumed.rubric_tokens + assumed.tokens_per_row)
        return max(arithmetic, (weights + cache) / (device.bytes_per_second * assumed.bandwidth_share))

    return one_pass(assumed.tokens_per_row) + assumed.answer_tokens * one_pass(1)


def on_card(model: Model, card: Device, known: Catalogue) -> Predicted:
    """The model on a card, its weights as the list suggests."""
    a, bits = known.assumed, known.bits[model.gpu]
    tokens = a.rubric_tokens + a.gpu_rows_at_once * (a.tokens_per_row + a.answer_tokens)
    memory = memory_bytes(model, bits, tokens, a.gpu_overhead_bytes)
    return Predicted(model.gpu, memory, 1 / row_seconds(model, card, bits, a.gpu_rows_at_once, a))


def on_cpu(model: Model, known: Catalogue) -> Predicted:
    """The model on a processor, as a GGUF file in Q4_K_M."""
    a, bits = known.assumed, known.bits["q4_k_m"]
    memory = memory_bytes(model, bits, a.cpu_cache_tokens, a.cpu_overhead_bytes)
    return Predicted("Q4_K_M", memory, 1 / row_seconds(model, known.cpu, bits, a.cpu_rows_at_once, a))


def fits(predicted: Predicted, card: Device) -> bool:
    return predicted.memory_bytes <= card.memory_bytes * FITS


def api_usd_per_1000(price: Price, assumed: Assumed) -> Decimal:
    """Dollars for 1,000 rows at a price. Every row pays for the rubric; a provider's cache is left out."""
    prompt = assumed.rubric_tokens + assumed.tokens_per_row
    return 1000 * (prompt * price.input + assumed.answer_tokens * price.output)


def changed(
    known: Catalogue,
    *,
    tokens_per_row: int | None = None,
    rubric_tokens: int | None = None,
    cpu_gflops: float | None = None,
    cpu_gb_per_second: float | None = None,
) -> Catalogue:
    """The list with other assumptions; None leaves one as it is."""
    given = {"tokens_per_row": tokens_per_row, "rubric_tokens": rubric_tokens}
    assumed = replace(known.assumed, **{name: value for name, value in given.items() if value is not None})
    cpu = known.cpu
    if cpu_gflops is not None:
        cpu = replace(cpu, flops=cpu_gflops * 1e9, label="this CPU")
    if cpu_gb_per_second is not None:
        cpu = replace(cpu, bytes_per_second=cpu_gb_per_second * 1e9, label="this CPU")
    return replace(known, assumed=assumed, cpu=cpu)


# -- what was measured --------------------------------------------------------------------------------------------


def is_model(grader: str, model_id: str) -> bool:
    """Whether a grader, "llama_cpp:Qwen3-8B-Q4_K_M.gguf" or "vllm:Qwen3-8B", is a model of the list.

    Decided by the name of its file or folder, without a publisher's prefix and without the quantisation. A grader with
    an adapter ("vllm:Qwen3-8B+mine") is another model.
    """
    kind, _, name = grader.partition(":")
    name = re.sub(r"@\d+$", "", name)
    owner, _, short = model_id.lower().rpartition("/")
    if kind.startswith("openai"):
        return name.lower() == short
    if kind not in ("llama_cpp", "vllm") or "+" in name:
        return False
    if name in PACKAGED:
        return PACKAGED[name].model_id.lower() == model_id.lower()
    stem = _QUANTISED.sub("", _PART.sub("", name.lower().removesuffix(".gguf")))
    before = {"", "meta-", *(f"{part}{mark}" for part in (owner, owner.partition("-")[0]) for mark in "-_." if part)}
    return stem in {f"{prefix}{short}" for prefix in before}


def validities(store: Store) -> list[Validity]:
    """The newest calibration of each grader, rubric and scored column in a database, newest first."""
    from alpasift.batcher.grading.calibrate import reasons_of  # the list itself needs nothing of it

    found = store.query("calibrations", grader_id=None, rubric_id=None, scored=None, grader_name=None, rubric_name=None)
    newest: dict[tuple[str, str, str], Validity] = {}
    for row in found:
        facts = json.loads(row["facts"])
        auc = facts.get("auc") or {}
        one = Validity(
            row["grader"],
            row["rubric"],
            row["scored"],
            row["reference"],
            "no_claim" if reasons_of(facts) else "calibrated",
            facts["sample"]["answered"],
            auc.get("value"),
            auc.get("low"),
            auc.get("high"),
            row["recorded_at"],
        )
        newest.setdefault((row["grader_id"], row["rubric_id"], row["scored"]), one)
    return list(newest.values())


def audited_model(found: list[tuple[str, str]], model_id: str) -> str | None:
    """What the newest audit of this model has shown, among the audits of graders; None without one."""
    return next((shown for grader, shown in found if is_model(grader, model_id)), None)


def measured(found: list[Validity], model_id: str) -> Validity | None:
    """The newest of these calibrations that is of this model; None where it has never been measured."""
    return next((one for one in found if is_model(one.grader, model_id)), None)
