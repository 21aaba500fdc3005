"""The interface to trl: its SFTTrainer, given our steps, our learning rate schedule and our checkpoints.

Nothing else in the project knows trl or transformers' Trainer. From them come the loop, mixed precision, several cards,
the head that never holds all logits, and the state in a checkpoint. Ours are:

* a row of the dataset is the number of a micro-batch; train/packing.py planned all of them, for every epoch, beforehand
* the loss of a step is the mean over all its trained tokens, however they are spread over micro-batches and cards
  (the papers' code takes the mean of the micro-batches' means instead, which gives short answers more weight)
* a checkpoint is sealed with a manifest last, and older ones are deleted only after that
* adapters keep their precision when a checkpoint is read: peft would make them float32, and the run would not resume
  as it was (https://github.com/huggingface/peft/issues/2421)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from alpasift.train.artifacts import TrainError, seal
from alpasift.train.data import Tokenized, collate
from alpasift.train.held_out import HeldOutLoss, layout, loss_on, points
from alpasift.train.packing import Plan
from alpasift.train.prepare import Prepared
from alpasift.train.recipes import Settings, rate_at
from alpasift.train.run_folder import delete_old_checkpoints, newest_checkpoint

CHECKPOINTS_KEPT = 2
OnStep = Callable[[int, dict[str, float]], None]
"""Called after each optimizer step with its number from 1, and loss, grad_norm and learning_rate."""
OnHeldOut = Callable[[HeldOutLoss], None]
Untimed = Callable[[], AbstractContextManager[None]]


class DivergedLoss(TrainError):
    """The loss is not finite: the weights of this step are useless, those of the last checkpoint are not."""


def make_trainer(
    model: Any,
    prepared: Prepared,
    folder: Path,
    *,
    save_every: int,
    on_step: OnStep,
    on_held_out: OnHeldOut,
    should_stop: Callable[[], bool],
    untimed: Untimed,
    saving: Untimed,
) -> Any:
    """A trainer over the planned steps, its checkpoints in `folder`; `.train(resume_from_checkpoint=...)` runs it.

    `should_stop` is asked after each step: where any process of several returns True, a checkpoint is written and the
    training ends. The loss on held-out rows is taken inside `untimed()` and checkpoints are written inside `saving()`,
    so that a clock can tell them from steps.
    """
    import torch
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback

    settings, data, tokenizer = prepared.settings, prepared.data, prepared.tokenizer
    microbatches = [microbatch for step in prepared.plan.steps for microbatch in step.microbatches]
    pad_id = tokenizer.eos_token_id  # no loss counts on it; a pad token may have no embedding
    trainer = _trainer_class(settings, len(prepared.plan.steps), folder, saving)(
        model=model,
        args=_arguments(settings, prepared.plan, folder, save_every),
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"microbatch": list(range(len(microbatches)))}),
        data_collator=lambda rows: collate(microbatches[rows[0]["microbatch"]], data, pad_id),
        callbacks=[_watcher(settings, folder, on_step, should_stop)],
    )
    if settings.method != "full":  # trl turns the adapters of a quantised model to bf16
        wanted = getattr(torch, "float32" if settings.adapter_precision == "fp32" else "bfloat16")
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(wanted)
    trainer.remove_callback(PrinterCallback)
    if prepared.held_out is not None:
        trainer.add_callback(_held_out_watcher(trainer, prepared, prepared.held_out, on_held_out, untimed))
    return trainer


def _trainer_class(settings: Settings, steps: int, folder: Path, saving: Untimed) -> Any:
    """trl's SFTTrainer with our schedule, sealed checkpoints, and adapters that keep their precision."""
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import Trainer
    from trl import SFTTrainer

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
            with saving():
                Trainer._save_checkpoint(self, model, trial)  # without the model card that trl adds
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    made = folder / f"checkpoint-{self.state.global_step}"
                    (made / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody reads
                    seal(made, {"kind": "checkpoint", "step": self.state.global_step})
                    delete_old_checkpoints(folder, keep=CHECKPOINTS_KEPT)

    return PlannedTrainer


def _watcher(settings: Settings, folder: Path, on_step: OnStep, should_stop: Callable[[], bool]) -> Any:
    """Passes each step's metrics on, and ends the training when the loss diverges or `should_stop` asks for it."""
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):  # type: ignore[misc]
        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
        ) -> None:
            if logs is None or "loss" not in logs:
                return
            loss, norm = float(logs["loss"]), float(logs.get("grad_norm", 0.0))
            scaled = settings.precision == "fp16"  # its gradient scaler skips a step whose gradients overflow
            if not math.isfinite(loss) or not (scaled or math.isfinite(norm)):
                raise DivergedLoss(_diverged(loss, norm, state.global_step, settings, folder))
            on_step(state.global_step, {"loss": loss, "grad_norm": norm, "learning_rate": float(logs["learning_rate"])})

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if _any_process(should_stop(), args):
                control.should_training_stop = True
                control.should_save = True

    return Watcher()


def _held_out_watcher(
    trainer: Any, prepared: Prepared, held_out: Tokenized, on_held_out: OnHeldOut, untimed: Untimed
) -> Any:
    """Takes the loss on the held-out rows before the first step, at a few points, and after the last."""
    from transformers import TrainerCallback

    settings, taken_at = prepared.settings, points(len(prepared.plan.steps))
    microbatches = layout(held_out, settings.pack_length, settings.micro_batch)

    def take(step: int) -> None:
        with untimed():
            loss = loss_on(trainer, held_out, microbatches, prepared.tokenizer.eos_token_id)
            on_held_out(HeldOutLoss(step, loss, len(held_out.ids), held_out.trained_tokens))

    class Watcher(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 0:
                take(0)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step in taken_at:
                take(state.global_step)

    return Watcher()


def _arguments(settings: Settings, planned: Plan, folder: Path, save_every: int) -> Any:
    """The settings as trl takes them."""
    import torch
    from trl import SFTConfig

    cuda = torch.cuda.is_available()
    args = SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=planned.microbatches,
        max_steps=len(planned.steps),
        num_train_epochs=1,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        adam_beta2=settings.beta2,
        max_grad_norm=settings.max_grad_norm,
        optim=_optimizer(settings.optimizer, cuda),
        bf16=settings.precision == "bf16",
        fp16=settings.precision == "fp16",
        use_cpu=not cuda,
        gradient_checkpointing=settings.checkpointing,
        seed=settings.seed,
        data_seed=settings.seed,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=save_every,
        save_total_limit=None,
        report_to=[],
        disable_tqdm=True,
        log_level="error",
        log_level_replica="error",
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        completion_only_loss=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=cuda,
        ddp_find_unused_parameters=False,
    )
    args._n_gpu = min(1, args.n_gpu)  # several cards take several processes; trl would refuse to start
    return args


def _optimizer(name: str, cuda: bool) -> str:
    names = {"adamw": "adamw_torch_fused" if cuda else "adamw_torch", "adamw_8bit": "paged_adamw_8bit"}
    if name not in names:
        raise TrainError(f"unknown optimizer {name!r}; choose from {', '.join(names)}")
    return names[name]


def _any_process(stop: bool, args: Any) -> bool:
    """Whether any process of several should stop: all have to stop at the same step."""
    if args.world_size == 1:
        return stop
    import torch

    flag = torch.tensor(int(stop), device=args.device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag.item())


def _diverged(loss: float, norm: float, step: int, settings: Settings, folder: Path) -> str:
    last = newest_checkpoint(folder)
    since = f"the weights of {last.name} are kept" if last else "no checkpoint was written yet"
    return (
        f"the loss is {loss} and its gradient norm {norm:g} at step {step}, so training stopped; {since}. Lower "
        f"--learning-rate (it was {settings.learning_rate:g}), or compute in bf16 where fp16 overflows, and train into "
        "another folder"
    )


def check_examples_apart(model: Any, data: Tokenized, planned: Plan) -> None:
    """Raise TrainError where examples that share a row see each other in this architecture.

    Most models keep them apart by position ids alone; some (linear attention, alibi, learned positions with an offset)
    do not. Two short examples are run in one row and separately, and their logits compared.
    """
    if all(len(pack) < 2 for step in planned.steps for group in step.microbatches for pack in group):
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
            f"{_name_of(model)} attends across examples in a packed row, so packing is not possible; --pack-length 0 "
            "disables it"
        )


def _name_of(model: Any) -> str:
    return type(model.get_base_model() if hasattr(model, "get_base_model") else model).__name__
