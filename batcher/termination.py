"""Which signal ends this process, so that its exit code can say so.

Knows one number. Whoever handles a signal calls `arrived`; Ctrl-C, which Python turns into KeyboardInterrupt by itself,
needs no call. The code is 128 + the signal's number, as shells have it: 130 for Ctrl-C, 143 for SIGTERM.
"""

from __future__ import annotations

import signal

_came: list[int] = []


def arrived(number: int) -> None:
    """Note a signal that ends the process."""
    _came.append(number)


def forget() -> None:
    """What came belongs to an earlier command of this process."""
    _came.clear()


def exit_code() -> int:
    """128 + the number of the first signal that came, Ctrl-C where none was noted."""
    return 128 + (_came[0] if _came else int(signal.SIGINT))
