"""Cards to train on: memory that can be had, arithmetic, and how the one in this machine is recognised.

Reads cards.toml and asks `nvidia-smi`; knows nothing of models and never imports torch, which takes seconds to do so.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from itertools import pairwise
from pathlib import Path

from train.artifacts import TrainError

GIB = 1024**3
_UNUSABLE_GB = ((16, 0.4), (24, 0.5), (40, 0.6), (80, 0.9), (141, 1.2))
"""(vendor's GB, what is lost of it): 16 -> 15.6 GiB, 24 -> 23.5, 40 -> 39.4, 80 -> 79.1, 141 -> 139.8."""
_STAND_INS = ((16, "t4"), (32, "rtx-3090"), (44, "a100-40"), (64, "a6000"), (120, "a100-80"))
"""Up to these many GB, whose speed a card is taken to have of which only the memory is known; above, an H200's."""


class NoCard(TrainError):
    """There is no card here and none was named (exit code 3)."""


@dataclass(frozen=True, slots=True)
class Card:
    """A card, or a processor in the place of one.

    usable_bytes    what a process can have of the memory, its CUDA context included
    flops           16-bit operations a second, accumulated in float32; None where unknown, as on a processor
    mfu             the share of them that training reaches, lowest and highest
    dequant_bytes_per_second   bytes of NF4 weights read and of 16-bit weights written a second
    remark          what about this card is assumed, for the user
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
    table = tomllib.loads((resources.files("train") / "cards.toml").read_text("utf-8"))
    return {
        name: Card(
            name, one["label"], one["memory_gb"], round(one["usable_gib"] * GIB), one["bf16"], one["tflops"] * 1e12,
            (one["mfu"][0], one["mfu"][1]), one["dequant_tb_per_second"] * 1e12, one["source"],
        )
        for name, one in table.items()
    }  # fmt: skip


@cache
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    table = tomllib.loads((resources.files("train") / "cards.toml").read_text("utf-8"))
    return tuple((name, re.compile(one["match"], re.I)) for name, one in table.items())


def card_named(name: str) -> Card:
    """The card of that name, "cpu" for this machine's processor. Raises TrainError."""
    if name == "cpu":
        return this_cpu()
    if name in cards():
        return cards()[name]
    raise TrainError(f"no card is called {name!r}; there are {', '.join(cards())}, cpu; or give --gpu-memory GB")


def usable_bytes(memory_gb: float) -> int:
    """What a process can have of a card that its vendor sells with these many GB: between the sizes known, in proportion."""
    lost = _UNUSABLE_GB[0][1] if memory_gb <= _UNUSABLE_GB[0][0] else _UNUSABLE_GB[-1][1]
    for (low, low_lost), (high, high_lost) in pairwise(_UNUSABLE_GB):
        if low <= memory_gb <= high:
            lost = low_lost + (high_lost - low_lost) * (memory_gb - low) / (high - low)
    return max(0, round((memory_gb - lost) * GIB))


def card_of_size(memory_gb: float) -> Card:
    """A card of which only the memory is known: its speed is that of a usual card of the size, and the remark says whose."""
    name = next((name for size, name in _STAND_INS if memory_gb <= size), "h200")
    like = cards()[name]
    remark = f"only its memory is known; its speed is taken to be that of {_article(like.label)}, --card names another"
    if not like.bf16:
        remark += "; without bf16, so it computes in fp16"
    return replace(
        like,
        label=f"a card of {memory_gb:g} GB",
        memory_gb=memory_gb,
        usable_bytes=usable_bytes(memory_gb),
        remark=remark,
    )


def with_memory(card: Card, memory_gb: float) -> Card:
    """The same card with another memory, as `--card` and `--gpu-memory` together say."""
    if memory_gb == card.memory_gb:
        return card
    return replace(card, memory_gb=memory_gb, usable_bytes=usable_bytes(memory_gb))


def recognise(device: str, memory_bytes: int, capability: float) -> Card:
    """The card that a driver calls `device`, "NVIDIA A100-SXM4-40GB", with the memory it says it has.

    One that is not in cards.toml keeps its name and gets the speed of a usual card of its size. `capability` is CUDA's,
    8.6 for instance: from 8.0 on a card computes in bf16.
    """
    usable = max(0, round(memory_bytes - 0.5 * GIB))
    for name, pattern in _patterns():
        if pattern.search(device):
            known = cards()[name]
            if abs(memory_bytes / GIB / known.memory_gb - 1) < 0.1:
                return replace(known, usable_bytes=min(known.usable_bytes, memory_bytes))
            return replace(
                known, memory_gb=round(memory_bytes / GIB), usable_bytes=usable
            )  # a part of it, or a larger kind
    memory_gb = round(memory_bytes / GIB)
    like = card_of_size(memory_gb)
    rates = cards()["rtx-3090"] if capability >= 8 and not like.bf16 else like
    remark = (
        f"{device} is not in train/cards.toml; its speed is taken to be that of {_article(cards()[rates.name].label)}"
    )
    return replace(
        rates, name=device, label=device, memory_gb=memory_gb, usable_bytes=usable, bf16=capability >= 8, remark=remark
    )


def found_card() -> Card:
    """The first card of this machine, as `nvidia-smi` tells of it. Raises NoCard."""
    advice = "say which one is meant with --gpu-memory GB (24 for instance) or --card NAME"
    program = shutil.which("nvidia-smi")
    if program is None:
        raise NoCard(f"no card was found, nvidia-smi is not on this machine; {advice}")
    asked = [program, "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout
        name, memory, capability = (part.strip() for part in said.splitlines()[0].rsplit(",", 2))
        return recognise(name, round(float(memory.split()[0]) * 1024**2), float(capability))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        raise NoCard(f"no card was found, nvidia-smi failed ({type(error).__name__}); {advice}") from error


def this_cpu() -> Card:
    """This machine's processor: its memory, and no speed, since nothing is known of that before a training has run."""
    name = cpu_name()
    try:
        total = next(
            int(line.split()[1]) * 1024
            for line in Path("/proc/meminfo").read_text("utf-8").splitlines()
            if line.startswith("MemTotal:")
        )
    except (OSError, StopIteration, ValueError, IndexError):
        total = 0
    remark = (
        "a processor: its speed is unknown until a training has run on it, and it computes in float32, which takes about "
        "twice the memory forecast here"
    )
    return Card(
        f"cpu:{name}", name, round(total / GIB, 1), round(total * 0.9), True, None, (0.0, 0.0), None, "assumed", remark
    )


def cpu_name() -> str:
    """What this machine calls its processor, "AMD EPYC 7B13" for instance."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _article(label: str) -> str:
    return f"an {label}" if label[0] in "AHL" or label.startswith("RTX") else f"a {label}"
