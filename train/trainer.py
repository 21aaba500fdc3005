"""The seam to trl: its SFTTrainer, told what a step is, how the rate moves, and when a checkpoint is whole.

Nothing else in the project knows trl or transformers' Trainer. What is taken from them: the loop, mixed precision, several
cards, the head that never holds all logits, the state of a checkpoint. What is ours:

* a row of the dataset is the number of a micro-batch; train/packing.py laid out all of them, for every epoch, beforehand
* the loss of a step is the mean over all its trained tokens, however they are spread over micro-batches and cards
  (the papers' code takes the mean of the means of micro-batches instead, which weighs short answers more)
* a checkpoint is sealed with a manifest last, and older ones are deleted only after that
* adapters keep their precision when a checkpoint is read: peft would turn them to 32 bits, and the run would not go on
  as it was (https://github.com/huggingface/peft/issues/2421)
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from train.artifacts import TrainError, is_whole, seal
from train.data import Tokenized, collate
from train.packing import Plan
from train.recipes import Settings, rate_at

CHECKPOINTS_KEPT = 2
OnStep = Callable[[int, dict[str, float]], None]
"""Told after each optimizer step: its number from 1, and loss, grad_norm and learning_rate."""


class DivergedLoss(TrainError):
    """The loss is no number any more: the weights of this step are useless, those of the last checkpoint are not."""


def make_trainer(
    model: Any,
    tokenizer: Any,
    data: Tokenized,
    plan: Plan,
    settings: Settings,
    folder: Path,
    *,
    save_every: int,
    on_step: OnStep,
    should_stop: Callable[[], bool],
    aside: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Any:
    """A trainer over the steps of a plan, its checkpoints in `folder`; `.train(resume_from_checkpoint=...)` runs it.

    `should_stop` is asked after each step: where it says so, to any process of several, a checkpoint is written and the
    training ends. Checkpoints are written inside `aside()`, so that a clock can leave them out.
    """
    import torch
    from datasets import Dataset
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import Trainer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    steps = len(plan.steps)
    microbatches = [microbatch for step in plan.steps for microbatch in step.microbatches]
    cuda = torch.cuda.is_available()

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
        ) -> None:
            if logs is None or "loss" not in logs:
                return
            loss, norm = float(logs["loss"]), float(logs.get("grad_norm", 0.0))
            scaled = settings.precision == "fp16"  # its scaler leaves out a step whose gradients overflow
            if not math.isfinite(loss) or not (scaled or math.isfinite(norm)):
                raise DivergedLoss(_diverged(loss, norm, state.global_step, settings, folder))
            on_step(state.global_step, {"loss": loss, "grad_norm": norm, "learning_rate": float(logs["learning_rate"])})

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if _any_process(should_stop(), args):
                control.should_training_stop = True
                control.should_save = True

    class PlannedTrainer(SFTTrainer):  # type: ignore[misc]
        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            peak = settings.learning_rate
            self.lr_scheduler = LambdaLR(self.optimizer, lambda step: rate_at(step, steps, settings) / peak)
            self._created_lr_scheduler = True
            return self.lr_scheduler

        def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            trained = {name: p.dtype for name, p in self.model.named_parameters() if p.requires_grad}
            super()._load_from_checkpoint(*args, **kwargs)
            for name, parameter in self.model.named_parameters():
                if name in trained:
                    parameter.data = parameter.data.to(trained[name])

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            with aside():
                self._write(model, trial)

        def _write(self, model: Any, trial: Any) -> None:
            Trainer._save_checkpoint(self, model, trial)  # without the card that trl writes beside it
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                made = folder / f"checkpoint-{self.state.global_step}"
                (made / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody reads
                seal(made, {"kind": "checkpoint", "step": self.state.global_step})
                forget_old(folder, keep=CHECKPOINTS_KEPT)

    args = SFTConfig(
        output_dir=str(folder), per_device_train_batch_size=1, gradient_accumulation_steps=plan.microbatches,
        max_steps=steps, num_train_epochs=1, learning_rate=settings.learning_rate, weight_decay=settings.weight_decay,
        adam_beta2=settings.beta2, max_grad_norm=settings.max_grad_norm, optim=_optimizer(settings.optimizer, cuda),
        bf16=settings.precision == "bf16", fp16=settings.precision == "fp16", use_cpu=not cuda,
        gradient_checkpointing=settings.checkpointing, seed=settings.seed, data_seed=settings.seed,
        logging_strategy="steps", logging_steps=1, logging_nan_inf_filter=False, save_strategy="steps",
        save_steps=save_every, save_total_limit=None, report_to=[], disable_tqdm=True, log_level="error",
        log_level_replica="error", remove_unused_columns=False, train_sampling_strategy="sequential", max_length=None,
        packing=False, dataset_kwargs={"skip_prepare_dataset": True}, completion_only_loss=True,
        dataloader_num_workers=0, dataloader_pin_memory=cuda, ddp_find_unused_parameters=False,
    )  # fmt: skip
    args._n_gpu = min(1, args.n_gpu)  # more cards than one are torchrun's affair; trl would refuse to start
    pad_id = tokenizer.eos_token_id  # no loss counts on it; a pad token may have no embedding
    trainer = PlannedTrainer(
        model=model,
        args=args,
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"microbatch": list(range(len(microbatches)))}),
        data_collator=lambda rows: collate(microbatches[rows[0]["microbatch"]], data, pad_id),
        callbacks=[Watch()],
    )
    if settings.method != "full":  # trl turns the adapters of a quantised model to bf16
        wanted = getattr(torch, "float32" if settings.adapter_precision == "fp32" else "bfloat16")
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(wanted)
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    return trainer


def _optimizer(name: str, cuda: bool) -> str:
    names = {"adamw": "adamw_torch_fused" if cuda else "adamw_torch", "adamw_8bit": "paged_adamw_8bit"}
    if name not in names:
        raise TrainError(f"there is no optimizer {name!r}; there are {', '.join(names)}")
    return names[name]


def _any_process(asked: bool, args: Any) -> bool:
    """Whether any process of several was asked to stop: all have to stop at the same step."""
    if args.world_size == 1:
        return asked
    import torch

    flag = torch.tensor(int(asked), device=args.device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag.item())


def _diverged(loss: float, norm: float, step: int, settings: Settings, folder: Path) -> str:
    last = newest_checkpoint(folder)
    since = f"the weights of {last.name} are kept" if last else "no checkpoint had been written"
    return (
        f"the loss is {loss} and its gradient {norm:g} at step {step}, so training stopped; {since}. Lower --learning-rate (it was "
        f"{settings.learning_rate:g}), or compute in bf16 where fp16 overflows, and train into another folder"
    )


def check_apart(model: Any, data: Tokenized, plan: Plan) -> None:
    """Raise TrainError where examples in one row of this architecture see each other.

    Most models keep them apart by their positions alone; some (linear attention, alibi, learned positions with an
    offset) do not. Two short examples are run in one row and alone, and their logits compared.
    """
    if all(len(pack) < 2 for step in plan.steps for group in step.microbatches for pack in group):
        return
    import torch

    short = sorted(range(len(data.ids)), key=lambda n: (len(data.ids[n]), n))[:2]
    if len(short) < 2:
        return
    was_training = model.training
    model.eval()
    device = model.get_input_embeddings().weight.device
    with torch.no_grad():
        both, second = collate((tuple(short),), data, 0), collate(((short[1],),), data, 0)
        logits = [
            model(
                input_ids=b["input_ids"].to(device), position_ids=b["position_ids"].to(device), use_cache=False
            ).logits[0]
            for b in (both, second)
        ]
    model.train(was_training)
    packed, alone = logits[0][len(data.ids[short[0]]) :].float(), logits[1].float()
    if (packed - alone).abs().max() > 0.05 * alone.abs().max():
        raise TrainError(
            f"{_name_of(model)} lets examples that share a row see each other, so they cannot be packed; "
            "--pack-length 0 gives each a row of its own"
        )


def _name_of(model: Any) -> str:
    return type(model.get_base_model() if hasattr(model, "get_base_model") else model).__name__


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, whole or not, the newest first."""
    found = [p for p in folder.glob("checkpoint-*") if p.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda p: -int(p.name.rpartition("-")[2]))


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was finished and is as it was written."""
    return next((found for found in checkpoints(folder) if is_whole(found)), None)


def forget_after(folder: Path, step: int) -> None:
    """Delete the checkpoints later than the one that is gone on from: they are damaged, and would crowd out new ones."""
    for found in checkpoints(folder):
        if int(found.name.rpartition("-")[2]) > step:
            shutil.rmtree(found, ignore_errors=True)


def forget_old(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and those that were never finished."""
    whole = 0
    for found in checkpoints(folder):
        whole += (finished := (found / "manifest.json").is_file())
        if not finished or whole > keep:
            shutil.rmtree(found, ignore_errors=True)
