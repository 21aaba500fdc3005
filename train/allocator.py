"""torch's allocator of a card: segments that grow, so that freed memory of one size can serve another.

Packed micro-batches differ in length, and without it reserved memory is 1.0 to 1.3 times what tensors take
(docs/fitting.md). torch reads its variable when its allocator starts, so call `use_expandable_segments` before torch is
imported.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Variables that torch reads; where a user has set one of them, it stays alone."""
_WANTED = "expandable_segments:True"
_READS_NEW_NAME = Version("2.11")
"""torch 2.9 warns that the old name is deprecated and yet ignores the new one for a card; 2.11 reads it
(https://github.com/pytorch/pytorch/issues/183387)."""


def variable_for(torch_version: str) -> str:
    """The variable that this version of torch reads."""
    return NAMES[0] if Version(torch_version) >= _READS_NEW_NAME else NAMES[1]


def use_expandable_segments() -> str | None:
    """Set the variable for this process and its children, and return its name.

    None, and nothing is set, where the user has set one, torch is imported already, or torch is not installed.
    """
    if "torch" in sys.modules or any(name in os.environ for name in NAMES):
        return None
    try:
        name = variable_for(version("torch"))
    except PackageNotFoundError:
        return None
    os.environ[name] = _WANTED
    return name
