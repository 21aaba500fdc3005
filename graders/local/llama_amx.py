"""Whether llama.cpp's code for AMX works in this build and on this machine. Call `extra_buffers_work`.

With some compilers it does not: GCC 12 drops the tile configuration that is handed to `ldtilecfg`, and the first matrix
product then ends the process with SIGSEGV (llama.cpp issue 20824, pull request 26954). A crash cannot be caught, so a
process of its own decodes a few tokens with the model first. Only a library compiled for AMX is tried; it says so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import alpasift

TOKENS = 64
"""Tokens the trial decodes: enough for a product of matrices rather than of vectors."""
SECONDS = 600
"""Time for the trial: a model of many gigabytes has to be read from disk."""


def extra_buffers_work(lib: Any, path: Path) -> bool:
    """Whether the model at `path` may be loaded with `use_extra_bufts`, which is what makes llama.cpp use AMX."""
    return b"AMX_INT8 = 1" not in lib.llama_print_system_info() or _trial(path)


@lru_cache(maxsize=16)
def _trial(path: Path) -> bool:
    root = Path(alpasift.__file__).resolve().parent.parent
    code = f"import sys; sys.path.insert(0, {str(root)!r}); from {__name__} import decode; decode(sys.argv[1])"
    command = [sys.executable, "-P", "-c", code, str(path)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode >= 0  # a model that cannot be loaded is the caller's to report; only a crash is a no


def decode(path: str) -> None:
    """Load a model as llama.cpp does by default and decode the same token some times."""
    from alpasift.graders.local.llama_library import library

    lib = library()
    model = lib.llama_model_load_from_file(os.fsencode(path), lib.llama_model_default_params())
    if not model:
        sys.exit(1)
    params = lib.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = TOKENS
    context = lib.llama_init_from_model(model, params)
    if not context:
        sys.exit(1)
    tokens = (lib.llama_token * TOKENS)()
    sys.exit(bool(lib.llama_decode(context, lib.llama_batch_get_one(tokens, TOKENS))))
