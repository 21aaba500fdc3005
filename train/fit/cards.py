"""Cards to train on: usable memory and rates, and how the one in this machine is recognised.

Reads cards.toml and runs `nvidia-smi`; knows nothing of models, and does not import torch, which takes seconds.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from itertools import pairwise
from pathlib import Path

from alpasift.graders.local.processor import cpu_name
from alpasift.train.artifacts import TrainError

GIB = 1024**3
_UNUSABLE_GB = ((16, 0.4), (24, 0.5), (40, 0.6), (80, 0.9), (141, 1.2))
"""(vendor's GB, GiB that a process cannot have): 16 -> 15.6 GiB, 24 -> 23.5, 40 -> 39.4, 80 -> 79.1, 141 -> 139.8."""
_CPU_MFU = (0.15, 0.75)
"""Measured on two cores: .55 to .8 where nothing else ran, .16 beside three other busy processes (docs/fitting.md)."""
_STAND_INS = ((16, "t4"), (32, "rtx-3090"), (44, "a100-40"), (64, "a6000"), (120, "a100-80"))
"""(GB at most, whose speed is assumed for a card of which only the memory is known); above, an H200's."""


class NoCard(TrainError):
    """There is no card here and none was named (exit code 3)."""


@dataclass(frozen=True, slots=True)
class Card:
    """A card, or a processor in the place of one.

    usable_bytes    what a process can have of the memory, CUDA context included
    flops           16-bit operations a second, accumulated in float32; a processor's in float32, as it was just
                    measured; None where unknown
    mfu             model flops utilisation: the share of them that training reaches, lowest and highest
    dequant_bytes_per_second   bytes of NF4 weights read and of 16-bit weights written a second
    remark          what is assumed about this card, for the user
    """

    name: str
    label: str
    memory_gb: float
    usable_bytes: int
    bf16: bool
    flops: float | None
    mfu: tuple[float, float]
    dequant_bytes_per_second: float | None
    source: str
    remark: str = ""

    @property
    def is_cpu(self) -> bool:
        return self.name.startswith("cpu:")


@cache
def cards() -> Mapping[str, Card]:
    """The cards of cards.toml, by name."""
    table = tomllib.loads((resources.files("alpasift.train.fit") / "cards.toml").read_text("utf-8"))
    return {
        name: Card(
            name,
            one["label"],
            one["memory_gb"],
            round(one["usable_gib"] * GIB),
            one["bf16"],
            one["tflops"] * 1e12,
            (one["mfu"][0], one["mfu"][1]),
            one["dequant_tb_per_second"] * 1e12,
            one["source"],
        )
        for name, one in table.items()
    }


@cache
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    table = tomllib.loads((resources.files("alpasift.train.fit") / "cards.toml").read_text("utf-8"))
    return tuple((name, re.compile(one["match"], re.I)) for name, one in table.items())


def card_named(name: str) -> Card:
    """The card of that name, "cpu" for this machine's processor. Raises TrainError."""
    if name == "cpu":
        return this_cpu()
    if name in cards():
        return cards()[name]
    raise TrainError(f"no GPU named {name!r}; choose from {', '.join(cards())}, cpu; or give --gpu-memory GB")


def usable_bytes(memory_gb: float) -> int:
    """What a process can have of a card sold with these many GB; interpolated between known sizes."""
    lost = _UNUSABLE_GB[0][1] if memory_gb <= _UNUSABLE_GB[0][0] else _UNUSABLE_GB[-1][1]
    for (low, low_lost), (high, high_lost) in pairwise(_UNUSABLE_GB):
        if low <= memory_gb <= high:
            lost = low_lost + (high_lost - low_lost) * (memory_gb - low) / (high - low)
    return max(0, round((memory_gb - lost) * GIB))


def card_of_size(memory_gb: float) -> Card:
    """A card of which only the memory is known. Its speed is a usual card's of that size; the remark says whose."""
    name = next((name for size, name in _STAND_INS if memory_gb <= size), "h200")
    like = cards()[name]
    remark = (
        f"only its memory is known; its speed is assumed to be that of {_article(like.label)}, set another with --card"
    )
    if not like.bf16:
        remark += "; no bf16, so it computes in fp16"
    return replace(
        like,
        label=f"a {memory_gb:g} GB GPU",
        memory_gb=memory_gb,
        usable_bytes=usable_bytes(memory_gb),
        remark=remark,
    )


def with_memory(card: Card, memory_gb: float) -> Card:
    """The same card with another memory, as `--card` and `--gpu-memory` together mean."""
    if memory_gb == card.memory_gb:
        return card
    return replace(card, memory_gb=memory_gb, usable_bytes=usable_bytes(memory_gb))


def recognise(device: str, memory_bytes: int, capability: float) -> Card:
    """The card that a driver calls `device`, for instance "NVIDIA A100-SXM4-40GB", with the memory it reports.

    One that is not in cards.toml keeps its name and gets the speed of a usual card of its size. `capability` is CUDA's,
    for instance 8.6: from 8.0 on a card computes in bf16.
    """
    usable = max(0, round(memory_bytes - 0.5 * GIB))
    for name, pattern in _patterns():
        if pattern.search(device):
            known = cards()[name]
            if abs(memory_bytes / GIB / known.memory_gb - 1) < 0.1:
                return replace(known, usable_bytes=min(known.usable_bytes, memory_bytes))
            # a partition of the card, or a larger version of it
            return replace(known, memory_gb=round(memory_bytes / GIB), usable_bytes=usable)
    memory_gb = round(memory_bytes / GIB)
    like = card_of_size(memory_gb)
    rates = cards()["rtx-3090"] if capability >= 8 and not like.bf16 else like
    known_as = _article(cards()[rates.name].label)
    remark = f"{device} is not in train/fit/cards.toml; its speed is assumed to be that of {known_as}"
    return replace(
        rates, name=device, label=device, memory_gb=memory_gb, usable_bytes=usable, bf16=capability >= 8, remark=remark
    )


def requested_card(name: str | None, memory_gb: float | None) -> Card:
    """The card of `--card NAME` and `--gpu-memory GB`; this machine's where neither is given. Raises TrainError."""
    if name is not None:
        card = card_named(name)
        return card if memory_gb is None else with_memory(card, memory_gb)
    return found_card() if memory_gb is None else card_of_size(memory_gb)


def found_card() -> Card:
    """The first card of this machine, as `nvidia-smi` lists it. Raises NoCard."""
    advice = "give one with --gpu-memory GB (for example 24) or --card NAME"
    program = shutil.which("nvidia-smi")
    if program is None:
        raise NoCard(f"no GPU found: nvidia-smi is not on this machine; {advice}")
    command = [program, "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        name, memory, capability = (part.strip() for part in output.splitlines()[0].rsplit(",", 2))
        return recognise(name, round(float(memory.split()[0]) * 1024**2), float(capability))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        raise NoCard(f"no GPU found: nvidia-smi failed ({type(error).__name__}); {advice}") from error


@cache
def this_cpu() -> Card:
    """This machine's processor: its memory, and how fast it multiplies matrices now, if numpy is here to ask."""
    name = cpu_name()
    try:
        total = next(
            int(line.split()[1]) * 1024
            for line in Path("/proc/meminfo").read_text("utf-8").splitlines()
            if line.startswith("MemTotal:")
        )
    except (OSError, StopIteration, ValueError, IndexError):
        total = 0
    flops = _cpu_flops()
    remark = "a CPU computes in float32; " + (
        "its speed is unknown until a training has run on it, as numpy is not installed"
        if flops is None
        else f"it multiplies matrices at {flops / 1e9:,.0f} GFLOP/s now, of which training reaches "
        f"{_CPU_MFU[0]:.0%} to {_CPU_MFU[1]:.0%}, the less the more else it has to do"
    )
    return Card(
        f"cpu:{name}",
        name,
        memory_gb=round(total / GIB, 1),
        usable_bytes=round(total * 0.9),
        bf16=True,
        flops=flops,
        mfu=_CPU_MFU,
        dequant_bytes_per_second=None,
        source="assumed",
        remark=remark,
    )


def _cpu_flops() -> float | None:
    """float32 operations a second in the best of five products of two matrices of 1,024 x 1,024; some 0.2 s."""
    try:
        import numpy as np
    except ImportError:
        return None
    one = np.full((1024, 1024), 0.5, np.float32)
    best = math.inf
    for _ in range(5):
        began = time.perf_counter()
        one @ one
        best = min(best, time.perf_counter() - began)
    return float(2 * 1024**3 / best)


def cpu_has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor has instructions for bf16: avx512_bf16 or amx_bf16, on Arm bf16."""
    try:
        lines = cpuinfo.read_text("utf-8").splitlines()
    except OSError:
        return False
    flags = {flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.split()}
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def _article(label: str) -> str:
    return f"an {label}" if label[0] in "AHL" or label.startswith("RTX") else f"a {label}"
