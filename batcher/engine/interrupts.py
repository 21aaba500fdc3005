"""Ctrl-C, SIGTERM and SIGHUP: when they are put off, and how a run is told that it should end.

An exception in the middle of things loses what is paid for: the calls in flight, or the rest of a commit. So while a
commit is written a signal waits for its end; and while a backend that is paid answers, the first signal is noted and
thrown into the backend where it waits for answers, so that it sends nothing more and takes in what is in flight. A
second signal ends it at once. Knows signals; nothing of backends or money.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from alpasift.batcher.termination import arrived

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # SIGHUP is what a dropped ssh sends
STOPPING = "stopping: nothing more is sent; waiting up to 10 s for answers in flight (press again to stop now)"


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put off signals until the block has ended: what is being written is written whole. Then they arrive."""
    came: list[int] = []
    with _handled(lambda number, frame: came.append(number)) as before:
        yield
    for number in dict.fromkeys(came):
        handler = before[number]
        if callable(handler):
            handler(number, None)
        elif handler is not signal.SIG_IGN:
            raise KeyboardInterrupt


class Interrupts:
    """What came while a backend answered. `due` is whether the backend has still to be told."""

    def __init__(self) -> None:
        self.came = self.told = False

    @property
    def due(self) -> bool:
        return self.came and not self.told

    def arrive(self, number: int, frame: Any) -> None:
        arrived(number)
        if self.came:
            raise KeyboardInterrupt
        self.came = True
        with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
            sys.stderr.write(STOPPING + "\n")
            sys.stderr.flush()


@contextmanager
def noted(wanted: bool) -> Iterator[Interrupts]:
    """Note the first signal rather than raise it, and raise it at the end of the block if nobody was told."""
    interrupts = Interrupts()
    if not wanted:
        yield interrupts
        return
    with _handled(interrupts.arrive):
        yield interrupts
    if interrupts.came:
        raise KeyboardInterrupt


@contextmanager
def _handled(handler: Callable[[int, Any], None]) -> Iterator[dict[int, Any]]:
    """Another handler for the signals, but for those that are ignored (nohup). Gives those that were there before."""
    if threading.current_thread() is not threading.main_thread():
        yield {}
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    mine = [number for number in SIGNALS if before[number] not in (signal.SIG_IGN, None)]
    for number in mine:
        signal.signal(number, handler)
    try:
        yield before
    finally:
        for number in mine:
            signal.signal(number, before[number])
