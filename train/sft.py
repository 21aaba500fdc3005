"""Supervised fine-tuning: load the model, train every planned step, save it. Call `prepare.prepare`, then `train`.

On one card or on the CPU a resumed training gives the weights that it would have given, on the CPU bit by bit. Under
torchrun every process calls `train`; the first one writes. Knows nothing of databases: `Hooks` is how a caller gets
metrics and stops a training. The folder is described in `train.run_folder`.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpasift.graders import AlpaSiftError
from alpasift.train.artifacts import TrainError, atomic_folder, read_manifest
from alpasift.train.fit.seconds import usual_save_every
from alpasift.train.held_out import HeldOutLog, HeldOutLoss, read_losses
from alpasift.train.metrics import Measured, Metrics, MetricsLog, TimeTaken, peak_bytes, time_taken
from alpasift.train.models import TOKENIZER_FILES, TORCH_NAMES, load_model, quiet_libraries
from alpasift.train.packing import Plan
from alpasift.train.prepare import Prepared
from alpasift.train.recipes import Settings
from alpasift.train.run_folder import RunFolder, delete_checkpoints_after, is_first_process, locked, open_run
from alpasift.train.trainer import check_examples_apart, make_trainer

GIB = 2**30


class OutOfMemory(TrainError):
    """The card, or the machine, has too little memory."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """How a caller follows and stops a training.

    on_start     gets the step that is resumed from, 0 for a new training, once it is clear that there is work to do
    on_step      gets the metrics of each optimizer step, in the first process
    on_held_out  gets the loss on the held-out rows each time that it was taken, in the first process
    should_stop  is asked after each step, in every process; True writes a checkpoint and ends the training
    report       gets lines for the user
    """

    on_start: Callable[[int], None] = lambda step: None
    on_step: Callable[[Metrics], None] | None = None
    on_held_out: Callable[[HeldOutLoss], None] | None = None
    should_stop: Callable[[], bool] = lambda: False
    report: Callable[[str], None] = lambda message: None


UNATTENDED = Hooks()


@dataclass(frozen=True, slots=True)
class Trained:
    """How a call to `train` ended. `finished` is False where it was interrupted: the same call resumes it.

    took              of the whole training, parts that a resumed one did before included
    held_out          the loss on the held-out rows at each point so far
    peak_bytes        the most that the card's allocator has reserved, or that this process has used; of this call only
    already_finished  the folder held the finished training and nothing was done
    """

    out: Path
    finished: bool
    step: int
    steps: int
    took: TimeTaken
    loss: float | None
    facts: dict[str, Any]
    measured: Measured | None
    held_out: Sequence[HeldOutLoss] = ()
    already_finished: bool = False
    peak_bytes: int | None = None


def train(
    prepared: Prepared,
    out: Path,
    hooks: Hooks = UNATTENDED,
    *,
    save_every: int | None = None,
    forecast_bytes: int | None = None,
    fresh: bool = False,
) -> Trained:
    """Train, or resume training, in the folder `out`.

    `save_every` is steps between checkpoints, a tenth of all if None. `forecast_bytes` is the forecast peak, for the
    message of OutOfMemory. `fresh` deletes a training that the folder holds. Raises TrainError for a folder that holds
    another training, DivergedLoss when the loss is not finite, and OutOfMemory, which says what to change.
    """
    explained = _explained_errors(prepared.settings, prepared.plan, forecast_bytes, out)
    with explained, locked(out) if is_first_process() else nullcontext():
        run = open_run(prepared, out, fresh)
        if run.finished:
            steps, facts = len(prepared.plan.steps), read_manifest(out / "model")
            took = time_taken(out / "metrics.jsonl") or TimeTaken(facts["seconds"])
            losses = read_losses(out / "held_out.jsonl")
            return Trained(out, True, steps, steps, took, facts["loss"], facts, None, losses, already_finished=True)
        return _train(prepared, out, run, hooks, save_every)


def _train(prepared: Prepared, out: Path, run: RunFolder, hooks: Hooks, save_every: int | None) -> Trained:
    first, steps = is_first_process(), len(prepared.plan.steps)
    if first:
        delete_checkpoints_after(out / "checkpoints", run.step)
    hooks.on_start(run.step)
    log = MetricsLog(out / "metrics.jsonl", prepared, run.step, hooks.on_step if first else None, writes=first)
    losses = HeldOutLog(out / "held_out.jsonl", run.step, hooks.on_held_out if first else None, writes=first)
    quiet_libraries()
    try:
        if (visible := _visible_cards()) > prepared.facts["cards"]:
            hooks.report(
                f"this machine has {visible} GPUs and one is used; `torchrun --nproc-per-node {visible}` uses all"
            )
        step = _run_trainer(prepared, out, run, hooks, log, losses, save_every)
    finally:
        log.close()
    _leave_together()
    facts = {**prepared.facts, "seconds": log.took.seconds, "loss": log.loss, "step": step}
    took, peak = log.took, peak_bytes()
    return Trained(out, step >= steps, step, steps, took, log.loss, facts, log.measured, losses.losses, peak_bytes=peak)


def _run_trainer(
    prepared: Prepared,
    out: Path,
    run: RunFolder,
    hooks: Hooks,
    log: MetricsLog,
    losses: HeldOutLog,
    save_every: int | None,
) -> int:
    """Load the model, train it, save it when all steps are done. Returns the last step.

    Nothing of the model outlives the call: see `_leave_together`.
    """
    steps = len(prepared.plan.steps)
    model = _load(prepared)
    check_examples_apart(model, prepared.data, prepared.plan)
    trainer = make_trainer(
        model,
        prepared,
        out / "checkpoints",
        save_every=save_every or usual_save_every(steps),
        on_step=log.step,
        on_held_out=losses.add,
        should_stop=hooks.should_stop,
        untimed=log.untimed,
        saving=log.saving,
    )
    hooks.report(
        f"training {_count(trainer.model, trained_only=True):,} of {_count(trainer.model):,} weights"
        + (f", resuming from step {run.step:,} of {steps:,}" if run.step else "")
    )
    log.begin()
    trainer.train(resume_from_checkpoint=str(run.checkpoint) if run.checkpoint else None)
    step = int(trainer.state.global_step)
    if step >= steps and is_first_process():
        facts = {**run.facts, **prepared.facts, "seconds": log.took.seconds, "loss": log.loss, "step": step}
        with log.saving():
            _save(trainer, prepared, out, facts)
    return step


# -- the model ---------------------------------------------------------------------------------------------------------


def _load(prepared: Prepared) -> Any:
    """The model to train: whole, or frozen with an adapter beside it, on this process's card or the CPU."""
    import torch

    settings = prepared.settings
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    full = settings.method == "full"
    model = load_model(
        prepared.base.folder,
        precision="fp32" if full and settings.master_weights else settings.precision,
        nf4=settings.method == "qlora",
        compute=settings.precision,
        attention=settings.attention,
        device=device,
        dropout=settings.attention_dropout,
    )
    model.config.use_cache = False
    _repair_generation_config(model)
    return model if full else _with_new_adapter(model, prepared)


def _with_new_adapter(model: Any, prepared: Prepared) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    settings = prepared.settings
    set_seed(settings.seed)
    names = settings.target_names
    lora = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=names if isinstance(names, str) else list(names),
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(prepared.base.folder.resolve()),
    )
    try:
        return get_peft_model(model, lora, autocast_adapter_dtype=settings.adapter_precision == "fp32")
    except ValueError as error:
        raise TrainError(f"this model has no layers {settings.targets} for an adapter: {error}") from error


def _repair_generation_config(model: Any) -> None:
    """Some releases set a temperature and do not sample, which transformers reads but refuses to write."""
    try:
        model.generation_config.validate(strict=True)
    except ValueError:
        model.generation_config.do_sample = True


def _save(trainer: Any, prepared: Prepared, out: Path, facts: dict[str, Any]) -> None:
    """Write OUT/model, complete or not at all."""
    import torch

    settings = prepared.settings
    model = trainer.accelerator.unwrap_model(trainer.model)
    copied: tuple[str, ...] = TOKENIZER_FILES
    with atomic_folder(out / "model", facts) as draft:
        if settings.method == "full":
            saved = getattr(torch, TORCH_NAMES[settings.precision])
            state = {name: tensor.detach().to(saved) for name, tensor in model.state_dict().items()}
            model.config.dtype = saved
            for name, default in (("use_cache", True), ("attention_dropout", 0.0)):  # what training changed
                if hasattr(model.config, name):
                    setattr(model.config, name, prepared.base.config.get(name, default))
            model.save_pretrained(draft, state_dict=state)
            copied = (*TOKENIZER_FILES, "generation_config.json")
        else:
            model.save_pretrained(draft)
            (draft / "README.md").unlink(missing_ok=True)
        for name in copied:
            if (prepared.base.folder / name).is_file():
                shutil.copyfile(prepared.base.folder / name, draft / name)
        # whoever serves the model asks it as it was trained
        (draft / "chat_template.jinja").write_text(facts["chat_template"], "utf-8")


def _count(model: Any, trained_only: bool = False) -> int:
    """Parameters of the model; those of 4-bit weights as if they were not packed."""
    count = 0
    for parameter in model.parameters():
        if parameter.requires_grad or not trained_only:
            state = getattr(parameter, "quant_state", None)
            count += state.shape.numel() if state is not None else parameter.numel()
    return count


def _visible_cards() -> int:
    import torch

    return int(torch.cuda.device_count()) if torch.cuda.is_available() else 0


def _leave_together() -> None:
    """Under torchrun no process may end before the first has written the model.

    The trainer holds itself in reference cycles. What of it speaks through the process group must be gone before the
    group is, or a process may wait for ever for one that has ended.
    """
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


# -- errors ------------------------------------------------------------------------------------------------------------


@contextmanager
def _explained_errors(settings: Settings, planned: Plan, forecast_bytes: int | None, out: Path) -> Iterator[None]:
    """Turn what torch raises for too little memory, or for a full disk, into one line."""
    try:
        yield
    except AlpaSiftError:
        raise
    except Exception as error:
        text = str(error)
        import torch

        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
            raise OutOfMemory(out_of_memory(text, settings, planned, forecast_bytes)) from error
        if "No space left" in text or "unexpected pos" in text or "File too large" in text:
            raise TrainError(
                f"the disk is full: {getattr(error, 'filename', None) or out.absolute()} could not be written; the "
                "last complete checkpoint is kept. Free some space, or save less often with --save-every, and "
                "run the same command again"
            ) from error
        raise


def out_of_memory(text: str, settings: Settings, planned: Plan, forecast_bytes: int | None) -> str:
    """The message of OutOfMemory: what to change, by how much, and how wrong the forecast was."""
    match = re.search(r"allocate ([\d.]+) ?(GiB|MiB|KiB|bytes)", text)
    unit = {"GiB": GIB, "MiB": 2**20, "KiB": 2**10, "bytes": 1}
    needed = peak_bytes() + (float(match[1]) * unit[match[2]] if match else 0.0)
    message = f"out of memory: {needed / GIB:.2f} GiB were needed"
    if forecast_bytes:
        message += (
            f", the forecast was {forecast_bytes / GIB:.2f} GiB ({(needed / forecast_bytes - 1) * 100:+.0f} %, or "
            "more: it stopped there)"
        )
    return (
        f"{message}. A micro-batch is up to {planned.max_tokens:,} tokens: use {', then '.join(_smaller(settings))}, "
        "or a smaller model; `alpasift fit` shows what fits"
    )


def _smaller(settings: Settings) -> list[str]:
    """Options that take less memory, the cheapest first."""
    options = []
    if settings.micro_batch > 1:
        options.append(f"--micro-batch {settings.micro_batch // 2}")
    if not settings.checkpointing:
        options.append("--checkpointing")
    if settings.pack_length and settings.pack_length > settings.max_length:
        options.append(f"--pack-length {max(settings.max_length, settings.pack_length // 2)}")
    if settings.method == "lora":
        options.append("--method qlora")
    elif settings.method == "full":
        options.append("--method lora" if settings.optimizer == "adamw_8bit" else "--optimizer adamw_8bit")
    return options or [f"--max-length {settings.max_length // 2}"]
