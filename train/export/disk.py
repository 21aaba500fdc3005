"""Whether an export may be written: nothing foreign is replaced, and the disk has room. Knows files and sizes."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alpasift.train.artifacts import MANIFEST, IncompleteFolder, TrainError, read_manifest
from alpasift.train.export.gguf_writer import MARK
from alpasift.train.export.trained import ADAPTER, Trained
from alpasift.train.models import TOKENIZER_FILES, Precision, read_json, tensor_shapes

BYTES: dict[str, float] = {"fp32": 4, "f32": 4, "bf16": 2, "fp16": 2, "f16": 2, "q8_0": 34 / 32, "q4_k_m": 0.75}
"""Per weight. q4_k_m takes about 0.61; a matrix whose rows are not a multiple of 256 gets a larger kind."""


def check_replaceable(out: Path, form: str, source: Path, *, force: bool = False) -> None:
    """Raise TrainError where `out` exists and is not an export of the training `source` in this form.

    `force` replaces a GGUF file, whatever it is, and an export of another training. A folder that is no export, or that
    holds something besides, is never replaced.
    """
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    if there != out.absolute() and not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise TrainError(f"{out} cannot be created: {there} is not a writable folder; choose another")
    if form == "gguf":
        _check_file(out, source, force)
    else:
        _check_folder(out, form, source, force)


def _check_file(out: Path, source: Path, force: bool) -> None:
    if out.is_dir() or out.suffix != ".gguf":
        raise TrainError(f"{out}: a GGUF export is one file; give it a name that ends in .gguf")
    if not out.exists() or force:
        return
    with out.open("rb") as file:
        ours = MARK.encode() in file.read(65_536)
    if not ours:
        raise TrainError(f"{out} exists and is not an export of AlpaSift; {_INSTEAD_FILE}")
    beside = Path(f"{out}.json")
    if beside.exists():
        facts = read_json(beside, f"{beside} does not describe an export")
        if facts.get("bytes") not in (None, out.stat().st_size):
            raise TrainError(f"{out} was changed after it was exported; {_INSTEAD_FILE}")
        _check_source(out, facts, source)


def _check_folder(out: Path, form: str, source: Path, force: bool) -> None:
    if out.suffix == ".gguf":
        raise TrainError(f"{out}: --form {form} writes a folder; --form gguf writes a .gguf file")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        facts = read_manifest(out, hashes=False)
    except IncompleteFolder as error:
        raise TrainError(f"{out} exists and is not a complete export of AlpaSift; {_INSTEAD_FOLDER}") from error
    if "form" not in facts:
        raise TrainError(f"{out} exists and is not an export of AlpaSift; {_INSTEAD_FOLDER}")
    listed = {MANIFEST, *json.loads((out / MANIFEST).read_text("utf-8"))["files"]}
    foreign = sorted({file.relative_to(out).as_posix() for file in out.rglob("*") if not file.is_dir()} - listed)
    if foreign:
        raise TrainError(f"{out} contains {foreign[0]}, which is not part of the export; {_INSTEAD_FOLDER}")
    if not force:
        if facts["form"] != form:
            raise TrainError(f"{out} holds an export of the form {facts['form']}; {_INSTEAD_FILE}")
        _check_source(out, facts, source)


_INSTEAD_FILE = "choose another name, or replace it with --force"
_INSTEAD_FOLDER = "choose another folder, or move it away"


def _check_source(out: Path, facts: Mapping[str, Any], source: Path) -> None:
    of = facts.get("source")
    if of is not None and Path(of) != source.resolve():
        raise TrainError(f"{out} holds an export of {of}, not of {source}; {_INSTEAD_FILE}")


def check_space(trained: Trained, out: Path, form: str, quantisation: str, precision: Precision) -> None:
    """Raise TrainError where the disk has less room than the export takes at its largest."""
    need = _needed_bytes(trained, form, quantisation, precision)
    there = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(there).free
    if free < need:
        raise TrainError(
            f"writing {out} takes up to {size(need)} and {size(free)} are free on the disk of {there}; free some "
            f"space, or write to another disk"
        )


def weights_of(trained: Trained) -> int:
    """How many weights the model has: those of its base, or its own."""
    return sum(math.prod(shape) for file in trained.weights.weights for shape in tensor_shapes(file).values())


def _needed_bytes(trained: Trained, form: str, quantisation: str, precision: Precision) -> float:
    weights = weights_of(trained)
    merged, last = weights * BYTES[precision], weights * BYTES[quantisation]
    if form == "adapter":
        need = float((trained.folder / ADAPTER).stat().st_size)
    elif form == "merged":
        need = merged
    elif quantisation in ("q8_0", "q4_k_m"):
        need = max(2 * merged, merged + last)  # merged and a GGUF of its precision, then that and the quantised one
    else:
        need = merged + last
    files = [trained.tokenizer_folder / name for name in TOKENIZER_FILES]
    tokenizer = sum(file.stat().st_size for file in files if file.is_file())
    return 1.02 * (need + 2 * tokenizer) + 1e6


@contextmanager
def explained_errors(out: Path) -> Iterator[None]:
    """Turn what a full disk makes Python, numpy, safetensors and llama.cpp raise into one line."""
    try:
        yield
    except Exception as error:
        text = str(error)
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if full or re.search(r"No space left|File too large|os error (28|27|122)|\d+ requested and \d+ written", text):
            raise TrainError(
                f"the disk of {out.absolute().parent} is full; nothing was written. Free some space for {out.name} "
                "and run it again"
            ) from error
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            raise TrainError("not enough memory for the model; use a machine with more, or --device cpu") from error
        raise


def size(count: float) -> str:
    """Bytes for people: 13.5 GB."""
    for unit, of in (("GB", 1e9), ("MB", 1e6)):
        if count >= of:
            return f"{count / of:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"
