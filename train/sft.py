"""Supervised fine-tuning, top to bottom: check, tokenise, lay out, load, train, save; stopped anywhere, it goes on.

    OUT/run.json       what this training is; the same command in the same folder goes on with it
    OUT/metrics.jsonl  one line an optimizer step
    OUT/checkpoints/   the last two, each whole or not taken
    OUT/model/         adapter or weights, its manifest last: there when the training is done

On one card or on the CPU a resumed training gives the weights it would have given, bit by bit on the CPU. Under torchrun every
process calls `train`; the first one writes. Knows nothing of databases: whoever wants the metrics elsewhere `observe`s.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from graders import AlpaSiftError, BackendUnavailable, Example
from train import data as rows
from train import memory
from train.artifacts import NotWhole, TrainError, read_manifest, sha256, whole_folder
from train.cards import Card
from train.models import TOKENIZER_FILES, Base, Precision, find_base, load_model, load_tokenizer
from train.packing import Plan, plan
from train.recipes import Settings
from train.trainer import check_apart, forget_after, make_trainer, newest_checkpoint

MEASURED_FROM, MEASURED_TO = 5, 20
"""Steps between which the speed of this machine is taken: later than warm-up, soon enough to be known early."""
GIB = 2**30


class OutOfMemory(TrainError):
    """The card, or the machine, could not hold it."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """One optimizer step. `tokens` are real ones of this step, `seconds` since the training began, earlier parts included.

    tokens_per_second is over this step; peak_bytes the most that the allocator of a card has reserved, or on the CPU the
    most memory this process has held; seconds_left at the pace of this part of the training.
    """

    step: int
    steps: int
    epoch: int
    loss: float
    learning_rate: float
    grad_norm: float
    examples: int
    tokens: int
    seconds: float
    tokens_per_second: float
    peak_bytes: int
    seconds_left: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What this machine did in steps MEASURED_FROM to MEASURED_TO, for the forecast of the next training."""

    device: str
    steps: int
    tokens_per_second: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Trained:
    """How a call to `train` ended. `finished` is false where it was stopped: the same call goes on.

    `before` says that the folder held the finished training already, and nothing was done.
    """

    out: Path
    finished: bool
    step: int
    steps: int
    seconds: float
    loss: float | None
    facts: dict[str, Any]
    measured: Measured | None
    before: bool = False


@dataclass(frozen=True, slots=True)
class Prepared:
    """A training laid out, before anything heavy is loaded: see `prepare`."""

    base: Base
    tokenizer: Any
    data: rows.Tokenized
    plan: Plan
    settings: Settings
    facts: dict[str, Any]


def prepare(
    examples: Sequence[Example], base: Path, settings: Settings, *, cards: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Prepared:  # fmt: skip
    """Check the base, tokenise the examples and lay out every step. Loads no weights. Raises TrainError."""
    found = find_base(base)
    if missing := lacks():
        raise BackendUnavailable(missing)
    if not examples:
        raise TrainError("there is no row to train on; choose some with `alpasift select`, or name another file")
    tokenizer = load_tokenizer(base)
    data = rows.tokenize(
        examples, tokenizer, template=_template(settings), max_length=settings.max_length, progress=progress
    )
    known, largest = found.config.get("vocab_size"), max(max(ids) for ids in data.ids)
    if isinstance(known, int) and largest >= known:
        raise TrainError(
            f"the tokenizer of {base} gives the token {largest}, and the model knows {known:,}: they do not belong together"
        )
    positions = found.config.get("max_position_embeddings")
    longest = max(data.lengths)
    if isinstance(positions, int) and longest > positions:
        raise TrainError(
            f"an example has {longest:,} tokens and the model {positions:,} positions; cut them with --max-length {positions}"
        )
    laid = plan(
        data.lengths, pack_length=settings.pack_length, micro_batch=settings.micro_batch, batch=settings.batch,
        epochs=settings.epochs, steps=settings.steps, seed=settings.seed, cards=cards,
    )  # fmt: skip
    digest = hashlib.sha256()
    for ids, start in zip(data.ids, data.prompt_tokens, strict=True):
        digest.update(len(ids).to_bytes(4, "little") + start.to_bytes(4, "little") + ids.tobytes())
    facts = {
        "data": dict(rows.composition(data, len(examples))),
        "data_sha256": digest.hexdigest(),
        "steps": len(laid.steps),
        "microbatches": laid.microbatches,
        "cards": cards,
        "tokens": laid.tokens,
        "padded_tokens": laid.padded_tokens,
    }
    return Prepared(found, tokenizer, data, laid, settings, facts)


def foretell(prepared: Prepared, shape: memory.Shape, card: Card) -> memory.Forecast:
    """What the forecast says of exactly this training, before any calibration. fp32 is counted as 16 bits."""
    s, laid, cards = prepared.settings, prepared.plan, prepared.facts["cards"]
    wide = s.master_weights if s.method == "full" else s.adapter_precision == "fp32"
    setup = memory.Setup(
        s.method, s.micro_batch, s.pack_length, s.checkpointing, s.rank, targets=s.target_names, dropout=s.lora_dropout,
        adapter_dtype="fp32" if wide else "bf16", optimizer="adamw_8bit" if s.optimizer == "adamw_8bit" else "adamw",
        dtype="fp16" if s.precision == "fp16" else "bf16", cards=cards,
    )  # fmt: skip
    lengths = memory.Lengths(
        tuple(prepared.data.lengths),
        prepared.data.trained_tokens,
        prepared.data.truncated,
        s.max_length,
        "its tokenizer",
    )
    layout = memory.Layout(
        len(laid.steps), laid.microbatches, len(laid.steps) * laid.microbatches * s.micro_batch * cards, laid.tokens,
        laid.padded_tokens, laid.max_tokens, laid.longest_row, False,
    )  # fmt: skip
    return memory.forecast(shape, lengths, setup, card, batch=s.batch, epochs=s.epochs, laid=layout)


def train(
    prepared: Prepared,
    out: Path,
    *,
    observe: Callable[[Metrics], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda text: None,
    save_every: int | None = None,
    forecast_bytes: int | None = None,
    fresh: bool = False,
    begun: Callable[[int], None] = lambda step: None,
) -> Trained:
    """Train, or go on training, in the folder `out`.

    Raises TrainError for a folder that holds another training, DivergedLoss when the loss is no number, and OutOfMemory,
    which says what to change; `forecast_bytes` is what was thought to be needed. `fresh` throws away what the folder
    holds of a training. `begun` is told the step that is gone on from, once it is clear that something is to be done.
    """
    first = int(os.environ.get("RANK", "0")) == 0
    with _held(out) if first else nullcontext():
        return _train(prepared, out, first, observe, should_stop, say, save_every, forecast_bytes, fresh, begun)


def _train(
    prepared: Prepared, out: Path, first: bool, observe: Callable[[Metrics], None] | None, should_stop: Callable[[], bool],
    say: Callable[[str], None], save_every: int | None, forecast_bytes: int | None, fresh: bool, begun: Callable[[int], None],
) -> Trained:  # fmt: skip
    settings, laid = prepared.settings, prepared.plan
    run = _open_run(prepared, out, fresh)
    if run.finished:
        facts = read_manifest(out / "model")
        return Trained(out, True, len(laid.steps), len(laid.steps), facts["seconds"], facts["loss"], facts, None, True)
    if first:
        forget_after(out / "checkpoints", run.step)
    begun(run.step)
    _quiet()
    log = _Log(out / "metrics.jsonl", prepared, run.step, observe if first else None, writes=first)
    try:
        with _explained(settings, laid, forecast_bytes):
            if (visible := _cards_visible()) > prepared.facts["cards"]:
                say(f"{visible} cards are here and one trains; torchrun --nproc-per-node {visible} takes them all")
            model = _load(prepared)
            check_apart(model, prepared.data, laid)
            trainer = make_trainer(
                model, prepared.tokenizer, prepared.data, laid, settings, out / "checkpoints",
                save_every=save_every or max(1, len(laid.steps) // 10), on_step=log.step, should_stop=should_stop,
                aside=log.aside,
            )  # fmt: skip
            say(
                f"training {_trainable(trainer.model):,} of {_trainable(trainer.model, every=True):,} weights"
                + (f", going on from step {run.step:,} of {len(laid.steps):,}" if run.step else "")
            )
            log.begin()
            trainer.train(resume_from_checkpoint=str(run.checkpoint) if run.checkpoint else None)
            finished = trainer.state.global_step >= len(laid.steps)
            facts = {**prepared.facts, "seconds": log.seconds, "loss": log.loss, "step": trainer.state.global_step}
            if finished and first:
                _save(trainer, prepared, out, {**run.facts, **facts})
    finally:
        log.close()
    _leave_together()
    return Trained(
        out, finished, trainer.state.global_step, len(laid.steps), log.seconds, log.loss, facts, log.measured()
    )


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """Keep other processes out of the folder for as long as this one trains in it. Raises TrainError where one does."""
    import fcntl

    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainError(
                f"another process is training in {out}; wait for it, or give another folder with -o"
            ) from error
        try:
            yield
        finally:
            if made and [p.name for p in out.iterdir()] == [".lock"]:
                (out / ".lock").unlink()
                out.rmdir()


# -- the folder -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Run:
    facts: dict[str, Any]
    checkpoint: Path | None
    step: int
    finished: bool


def _open_run(prepared: Prepared, out: Path, fresh: bool) -> _Run:
    """What the folder holds of this training. Raises TrainError where it holds another one."""
    facts = {
        "kind": "model" if prepared.settings.method == "full" else "adapter",
        "method": prepared.settings.method,
        "base": str(prepared.base.folder.resolve()),
        "base_sha256": prepared.base.sha256(),
        "base_config_sha256": sha256(prepared.base.folder / "config.json"),
        "settings": prepared.settings.facts(),
        "template": prepared.settings.template,
        "chat_template": rows.serving_template(prepared.tokenizer, _template(prepared.settings)),
        "precision": prepared.settings.precision,
        "nf4": _nf4_facts(prepared.settings),
        "data_sha256": prepared.facts["data_sha256"],
        "cards": prepared.facts["cards"],
        "versions": versions(),
    }
    path = out / "run.json"
    leads = int(os.environ.get("RANK", "0")) == 0
    if fresh and leads:
        _forget(out, prepared.base.folder)
    if path.is_file() and not fresh:
        try:
            known = json.loads(path.read_text("utf-8"))
            differs = _differences(known, facts)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TrainError(f"{path} cannot be read ({type(error).__name__}); train into another folder") from error
        started = newest_checkpoint(out / "checkpoints") is not None or (out / "model").exists()
        if differs and started:
            raise TrainError(
                f"{out} holds another training: {'; '.join(differs[:4])}. Give another folder with -o, or --fresh to throw "
                "that training away"
            )
        if not differs:
            facts = known
    if leads:
        out.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.partial")
        draft.write_text(json.dumps(facts, indent=1, ensure_ascii=False), "utf-8")
        draft.replace(path)
    if fresh:  # another process may not have thrown it away yet
        return _Run(facts, None, 0, False)
    if (out / "model").exists():
        try:
            read_manifest(out / "model")
            return _Run(facts, None, len(prepared.plan.steps), True)
        except NotWhole as error:
            raise TrainError(f"{error}; --fresh trains anew") from error
    checkpoint = newest_checkpoint(out / "checkpoints")
    step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    return _Run(facts, checkpoint, step, False)


def _forget(out: Path, base: Path) -> None:
    """Delete what a folder holds of a training. Raises TrainError where that is not sure to be ours."""
    if base.resolve().is_relative_to(out.resolve()):
        raise TrainError(
            f"--fresh would delete the base model {base}, which lies in {out}; give another folder with -o"
        )
    if not (out / "run.json").is_file():
        if any((out / name).exists() for name in ("checkpoints", "model")):
            raise TrainError(
                f"{out} has no run.json, so what is in it is not known to be a training; give another folder"
            )
        return
    for name in ("checkpoints", "model"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in ("run.json", "metrics.jsonl"):
        (out / name).unlink(missing_ok=True)


def _differences(known: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    """What differs between the training in a folder and the one asked for, in words."""
    found = [
        f"{name} was {known['settings'].get(name)}, is {value}"
        for name, value in facts["settings"].items()
        if known["settings"].get(name) != value
    ]
    for name, what in (
        ("base_sha256", "the base model"),
        ("data_sha256", "the data"),
        ("cards", "the number of cards"),
    ):
        if known[name] != facts[name]:
            found.append(f"{what} is another")
    return found


def _nf4_facts(settings: Settings) -> dict[str, Any] | None:
    return {"double_quant": True, "compute": settings.precision} if settings.method == "qlora" else None


def versions() -> dict[str, str]:
    """Of the packages that can change what a training gives."""
    found = {}
    for name in ("torch", "transformers", "peft", "trl", "bitsandbytes"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _save(trainer: Any, prepared: Prepared, out: Path, facts: dict[str, Any]) -> None:
    """Write OUT/model, whole or not at all."""
    import torch

    from train.models import TORCH_NAMES

    model = trainer.accelerator.unwrap_model(trainer.model)
    with whole_folder(out / "model", facts) as draft:
        if prepared.settings.method == "full":
            kept = getattr(torch, TORCH_NAMES[_precision(prepared.settings)])
            state = {name: tensor.detach().to(kept) for name, tensor in model.state_dict().items()}
            model.config.dtype = kept
            for name, usual in (
                ("use_cache", True),
                ("attention_dropout", 0.0),
            ):  # what training alone wanted otherwise
                if hasattr(model.config, name):
                    setattr(model.config, name, prepared.base.config.get(name, usual))
            model.save_pretrained(draft, state_dict=state)
        else:
            model.save_pretrained(draft)
            (draft / "README.md").unlink(missing_ok=True)
        for name in (*TOKENIZER_FILES, *(("generation_config.json",) if prepared.settings.method == "full" else ())):
            if (prepared.base.folder / name).is_file():
                shutil.copyfile(prepared.base.folder / name, draft / name)
        (draft / "chat_template.jinja").write_text(
            facts["chat_template"], "utf-8"
        )  # whoever serves it asks as was trained


def _template(settings: Settings) -> rows.Template:
    return "chat" if settings.template == "chat" else "alpaca"


def _precision(settings: Settings) -> Precision:
    known: dict[str, Precision] = {"bf16": "bf16", "fp16": "fp16", "fp32": "fp32"}
    return known[settings.precision]


# -- the model --------------------------------------------------------------------------------------------------------


def _load(prepared: Prepared) -> Any:
    """The model to train: whole, or frozen with an adapter beside it, on this process's card or the CPU."""
    import torch

    settings = prepared.settings
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    qlora, full = settings.method == "qlora", settings.method == "full"
    model = load_model(
        prepared.base.folder, precision="fp32" if full and settings.master_weights else _precision(settings),
        nf4=qlora, compute=_precision(settings), attention=settings.attention, device=device,
        dropout=settings.attention_dropout,
    )  # fmt: skip
    model.config.use_cache = False
    _mend_generation(model)
    if full:
        return model
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    set_seed(settings.seed)
    names = settings.target_names
    lora = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.lora_dropout,
        target_modules=names if isinstance(names, str) else list(names), task_type="CAUSAL_LM",
        base_model_name_or_path=str(prepared.base.folder.resolve()),
    )  # fmt: skip
    try:
        return get_peft_model(model, lora, autocast_adapter_dtype=settings.adapter_precision == "fp32")
    except ValueError as error:
        raise TrainError(f"no adapter can be put on {settings.targets} of this model: {error}") from error


def _cards_visible() -> int:
    import torch

    return int(torch.cuda.device_count()) if torch.cuda.is_available() else 0


def _trainable(model: Any, every: bool = False) -> int:
    count = 0
    for parameter in model.parameters():
        if every or parameter.requires_grad:
            state = getattr(parameter, "quant_state", None)
            count += state.shape.numel() if state is not None else parameter.numel()
    return count


def _mend_generation(model: Any) -> None:
    """Some releases name a temperature and do not sample, which transformers reads but refuses to write."""
    try:
        model.generation_config.validate(strict=True)
    except ValueError:
        model.generation_config.do_sample = True


PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "safetensors")


def lacks() -> str | None:
    """Why nothing can be trained on this machine, in one line; None where it can."""
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if not missing:
        return None
    return f"training needs {', '.join(missing)}, not installed here: pip install 'alpasift[train]'"


def _quiet() -> None:
    """Leave progress to us: the libraries' own bars and warnings are for their developers."""
    import logging
    import warnings

    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(torch|transformers|trl|peft|bitsandbytes|accelerate)(\..*)?")


def _leave_together() -> None:
    """Under torchrun no process may end before the first has written the model."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


# -- metrics ----------------------------------------------------------------------------------------------------------


class _Log:
    """Writes a line a step and keeps the time. Lines of steps that will be done again are dropped when it opens."""

    def __init__(
        self, path: Path, prepared: Prepared, done: int, observe: Callable[[Metrics], None] | None, writes: bool
    ) -> None:
        self._path, self._plan, self._observe, self._done = path, prepared.plan, observe, done
        self._lengths = prepared.data.lengths
        self._before, self.loss, self.seconds = 0.0, None, 0.0  # type: tuple[float, float | None, float]
        kept = []
        for line in _lines(path):
            if line["step"] <= done:
                kept.append(json.dumps(line))
                self._before, self.loss = float(line["seconds"]), float(line["loss"])
        self.seconds = self._before
        self._file = None
        if writes:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f"{path.name}.partial")
            draft.write_text("".join(f"{line}\n" for line in kept), "utf-8")
            draft.replace(path)
            self._file = path.open("a", encoding="utf-8")
        self._began = self._last = time.monotonic()
        self._timed = (0, 0.0)  # tokens, seconds
        self._measured: Measured | None = None
        self._aside = 0.0

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What happens inside is not training: it counts in the hours, not in the speed."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._aside += time.monotonic() - began

    def begin(self) -> None:
        self._began = self._last = time.monotonic()

    def step(self, number: int, logs: dict[str, float]) -> None:
        now = time.monotonic()
        step = self._plan.steps[number - 1]
        tokens = sum(self._lengths[n] for group in step.microbatches for pack in group for n in pack)
        self.seconds, self.loss = self._before + now - self._began, logs["loss"]
        took = max(now - self._last - self._aside, 1e-9)
        self._last, self._aside = now, 0.0
        here = number - self._done
        left = (len(self._plan.steps) - number) * (now - self._began) / here
        line = Metrics(
            number, len(self._plan.steps), step.epoch, logs["loss"], logs["learning_rate"], logs["grad_norm"],
            step.examples, tokens, self.seconds, tokens / took, peak_bytes(), left,
        )  # fmt: skip
        self._measure(here, took, tokens)
        if self._file:
            self._file.write(json.dumps(asdict(line)) + "\n")
            self._file.flush()
        if self._observe:
            with self.aside():
                self._observe(line)

    def _measure(self, here: int, took: float, tokens: int) -> None:
        if MEASURED_FROM < here <= MEASURED_TO:
            self._timed = self._timed[0] + tokens, self._timed[1] + took
        if here == MEASURED_TO:
            self._measured = Measured(device_name(), here, self._timed[0] / self._timed[1], peak_bytes())

    def measured(self) -> Measured | None:
        return self._measured

    def close(self) -> None:
        if self._file:
            self._file.close()


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a metrics file; one that a dying process left in the middle ends them."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                return
            if isinstance(line, dict) and {"step", "seconds", "loss"} <= set(line):
                yield line


def peak_bytes() -> int:
    """The most that this process's card allocator has reserved; without a card the most memory the process has held."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_name() -> str:
    """The card's name as its driver gives it, or the processor's as "cpu:NAME"."""
    import torch

    from train.cards import cpu_name

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"cpu:{cpu_name()}"


# -- out of memory ----------------------------------------------------------------------------------------------------


@contextmanager
def _explained(settings: Settings, laid: Plan, forecast_bytes: int | None) -> Iterator[None]:
    """Turn what torch raises when memory runs out, and what a full disk makes it raise, into one line."""
    try:
        yield
    except AlpaSiftError:
        raise
    except Exception as error:
        text = str(error)
        import torch

        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
            raise OutOfMemory(out_of_memory(text, settings, laid, forecast_bytes)) from error
        if "No space left" in text or "unexpected pos" in text or "File too large" in text:
            raise TrainError(
                "the disk is full: a checkpoint could not be written; the last whole one is kept. Make room, or save "
                "less often with --save-every, and run the same command again"
            ) from error
        raise


def out_of_memory(text: str, settings: Settings, laid: Plan, forecast_bytes: int | None) -> str:
    """What to change, by how much, and how wrong the forecast was."""
    held = peak_bytes()
    asked = re.search(r"allocate ([\d.]+) ?(GiB|MiB|KiB|bytes)", text)
    unit = {"GiB": GIB, "MiB": 2**20, "KiB": 2**10, "bytes": 1}
    wanted = float(asked[1]) * unit[asked[2]] if asked else 0.0
    needed = held + wanted
    message = f"out of memory: {needed / GIB:.2f} GiB were needed"
    if forecast_bytes:
        message += (
            f", the forecast was {forecast_bytes / GIB:.2f} GiB ({(needed / forecast_bytes - 1) * 100:+.0f} %, or more: it "
            "stopped there)"
        )
    advice = []
    if settings.micro_batch > 1:
        advice.append(f"--micro-batch {settings.micro_batch // 2}")
    if not settings.checkpointing:
        advice.append("--checkpointing")
    if settings.pack_length and settings.pack_length > settings.max_length:
        advice.append(f"--pack-length {max(settings.max_length, settings.pack_length // 2)}")
    if settings.method == "lora":
        advice.append("--method qlora")
    elif settings.method == "full":
        advice.append("--method lora" if settings.optimizer == "adamw_8bit" else "--optimizer adamw_8bit")
    if not advice:
        advice.append(f"--max-length {settings.max_length // 2}")
    return (
        f"{message}. A micro-batch is up to {laid.max_tokens:,} tokens: take {', then '.join(advice)}, or a smaller model; "
        "`alpasift fit` shows what fits"
    )
