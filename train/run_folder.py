"""The folder of a training: content, whether it is the same training, and that one process at a time is in it.

    OUT/run.json       what this training is; the same command in the same folder resumes it
    OUT/metrics.jsonl  one line per optimizer step
    OUT/held_out.jsonl one line per point at which the loss on the held-out rows was taken, where there are any
    OUT/checkpoints/   the last two, each complete or never resumed from
    OUT/model/         adapter or weights, its manifest last: exists when the training is done

The keys of run.json are stored: folders of earlier releases are resumed and exported.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from alpasift.train.artifacts import IncompleteFolder, TrainError, is_complete, read_manifest, sha256
from alpasift.train.data import serving_template
from alpasift.train.prepare import Prepared

_COMPARED = (("base_sha256", "the base model"), ("data_sha256", "the data"), ("cards", "the number of cards"))


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A training's folder as it was opened: the facts in run.json, and the checkpoint and step to resume from."""

    facts: dict[str, Any]
    checkpoint: Path | None
    step: int
    finished: bool


def is_first_process() -> bool:
    """Whether this process writes: under torchrun only the one of rank 0 does."""
    return int(os.environ.get("RANK", "0")) == 0


def check_folder(out: Path) -> None:
    """Raise TrainError now for a folder that a training cannot be written to: foreign, no folder, or not writable."""
    if out.exists() and not out.is_dir():
        raise TrainError(f"{out} is a file; give a folder with -o")
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise TrainError(f"{out} cannot be created: {there} is not a writable folder; give another with -o")
    if not out.is_dir() or (out / "run.json").is_file():
        return
    foreign = sorted(path.name for path in out.iterdir() if path.name not in (".lock", "run.json.partial"))
    if foreign:
        raise TrainError(
            f"{out} is not empty and has no training of alpasift: it contains {foreign[0]}; give another folder with -o"
        )


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other processes out of the folder while this one trains in it. Raises TrainError where one is in it."""
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


def open_run(prepared: Prepared, out: Path, fresh: bool) -> RunFolder:
    """Open the folder for this training and write run.json. `fresh` deletes a training that is in it.

    Raises TrainError where the folder holds another training, or a finished model that was changed.
    """
    facts = run_facts(prepared)
    path = out / "run.json"
    if fresh and is_first_process():
        _delete_training(out, prepared.base.folder)
    if path.is_file() and not fresh:
        facts = _same_training(out, facts)
    if is_first_process():
        out.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.partial")
        draft.write_text(json.dumps(facts, indent=1, ensure_ascii=False), "utf-8")
        draft.replace(path)
    if fresh:  # the first process may not have deleted it yet
        return RunFolder(facts, None, 0, False)
    if (out / "model").exists():
        try:
            read_manifest(out / "model")
            return RunFolder(facts, None, len(prepared.plan.steps), True)
        except IncompleteFolder as error:
            raise TrainError(f"{error}; --fresh starts again") from error
    checkpoint = newest_checkpoint(out / "checkpoints")
    step = step_of(checkpoint) if checkpoint else 0
    return RunFolder(facts, checkpoint, step, False)


def started_settings(out: Path, recipe: str) -> dict[str, Any] | None:
    """The settings of a training that the folder holds, if it has this recipe and something to lose; else None."""
    if not any((out / "checkpoints").glob("checkpoint-*")) and not (out / "model").exists():
        return None
    try:
        settings = json.loads((out / "run.json").read_text("utf-8"))["settings"]
        return dict(settings) if settings["recipe"] == recipe else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def run_facts(prepared: Prepared) -> dict[str, Any]:
    """What run.json and the model's manifest hold of this training."""
    settings = prepared.settings
    nf4 = {"double_quant": True, "compute": settings.precision} if settings.method == "qlora" else None
    return {
        "kind": "model" if settings.method == "full" else "adapter",
        "method": settings.method,
        "base": str(prepared.base.folder.resolve()),
        "base_sha256": prepared.base.sha256(),
        "base_config_sha256": sha256(prepared.base.folder / "config.json"),
        "settings": settings.facts(),
        "template": settings.template,
        "chat_template": serving_template(prepared.tokenizer, settings.template),
        "precision": settings.precision,
        "nf4": nf4,
        "data_sha256": prepared.facts["data_sha256"],
        **({"held_out": prepared.facts["held_out"]} if "held_out" in prepared.facts else {}),
        "cards": prepared.facts["cards"],
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of the packages that can change what a training gives."""
    found = {}
    for name in ("torch", "transformers", "peft", "trl", "bitsandbytes"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _same_training(out: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """The facts in run.json if it is this training, `facts` if nothing was trained yet. Raises TrainError otherwise."""
    path = out / "run.json"
    try:
        known = json.loads(path.read_text("utf-8"))
        differences = _differences(known, facts)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainError(f"{path} cannot be read ({type(error).__name__}); train into another folder") from error
    if not differences:
        return dict(known)
    if newest_checkpoint(out / "checkpoints") is not None or (out / "model").exists():
        raise TrainError(
            f"{out} has another training: {'; '.join(differences[:4])}. Give another folder with -o, or --fresh to "
            "delete that training"
        )
    return facts


def _differences(known: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """What differs between the training in a folder and the requested one, in words."""
    found = [
        f"{name} was {known['settings'].get(name)}, is {facts['settings'].get(name)}"
        for name in dict.fromkeys((*facts["settings"], *(name for name in ("held_out",) if name in known["settings"])))
        if known["settings"].get(name) != facts["settings"].get(name)
    ]
    return found + [f"{title} is another" for name, title in _COMPARED if known[name] != facts[name]]


def _delete_training(out: Path, base: Path) -> None:
    """Delete what a folder holds of a training. Raises TrainError where that is not certainly ours."""
    if base.resolve().is_relative_to(out.resolve()):
        raise TrainError(f"--fresh would delete the base model {base}, which is in {out}; give another folder with -o")
    if not (out / "run.json").is_file():
        if any((out / name).exists() for name in ("checkpoints", "model")):
            raise TrainError(
                f"{out} has no run.json, so its content may not be a training; give another folder with -o"
            )
        return
    for name in ("checkpoints", "model"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in ("run.json", "metrics.jsonl", "held_out.jsonl"):
        (out / name).unlink(missing_ok=True)


# -- checkpoints -------------------------------------------------------------------------------------------------------


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, complete or not, the newest first."""
    found = [p for p in folder.glob("checkpoint-*") if p.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was finished and not changed since."""
    return next((found for found in checkpoints(folder) if is_complete(found)), None)


def delete_checkpoints_after(folder: Path, step: int) -> None:
    """Delete the checkpoints later than the one that is resumed from: they are damaged, and would outrank new ones."""
    for found in checkpoints(folder):
        if step_of(found) > step:
            shutil.rmtree(found, ignore_errors=True)


def delete_old_checkpoints(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and those that were never finished."""
    complete = 0
    for found in checkpoints(folder):
        complete += (finished := (found / "manifest.json").is_file())
        if not finished or complete > keep:
            shutil.rmtree(found, ignore_errors=True)
