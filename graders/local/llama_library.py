"""llama.cpp's library through llama-cpp-python: loaded once, its log kept from the terminal, its errors at hand."""

from __future__ import annotations

import os
import re
from typing import Any

from alpasift.graders.interface.errors import BackendError, BackendUnavailable
from alpasift.graders.local.processor import core_count

LOG_ERROR, LOG_CONTINUED = 4, 5  # levels of llama.cpp's log

_errors: list[str] = []
"""The errors that llama.cpp reported since `clear_errors`, the first ones."""
_log: Any = None  # llama.cpp calls it for as long as the process lives


class DecodeError(Exception):
    """llama.cpp refused what it was given, or was stopped."""


def library() -> Any:
    """The bindings, with llama.cpp's log turned away from stderr. Raises BackendUnavailable."""
    global _log
    # OpenMP's threads wait by spinning, which on a busy machine costs the time slices that the others need: with two
    # other busy processes on two cores, waiting asleep is 5 to 15 times faster, and on an idle machine as fast.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import llama_cpp.llama_cpp as lib
    except ImportError as error:
        raise BackendUnavailable("llama_cpp needs llama-cpp-python: pip install 'alpasift[llama]'") from error
    except (OSError, RuntimeError, AttributeError) as error:
        raise BackendUnavailable(f"llama-cpp-python is installed but cannot be loaded: {error}") from error
    if _log is None:
        level = 0

        def keep(now: int, text: bytes, _: Any) -> None:
            nonlocal level
            level = level if now == LOG_CONTINUED else now
            if level == LOG_ERROR and len(_errors) < 8:
                _errors.append(text.decode("utf-8", "replace").strip())

        _log = lib.llama_log_callback(keep)
        lib.llama_log_set(_log, None)
        lib.llama_backend_init()
    return lib


def clear_errors() -> None:
    _errors.clear()


def first_error() -> str:
    """The first error that llama.cpp reported since `clear_errors`, without the name of its function."""
    if not _errors:
        return "no reason given by llama.cpp"
    return re.sub(r"^\w+: (error loading model: )?", "", _errors[0])


def thread_count() -> int:
    """Cores rather than hyperthreads, of the CPUs that this process may use; ALPASIFT_LLAMA_THREADS overrides."""
    wanted = os.environ.get("ALPASIFT_LLAMA_THREADS", "")
    if wanted:
        if not wanted.isdecimal() or not 1 <= int(wanted) <= 512:
            raise BackendError(f"ALPASIFT_LLAMA_THREADS is {wanted!r}; must be 1 to 512")
        return int(wanted)
    return core_count()
