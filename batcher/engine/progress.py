"""How far a run is, as a line for a person."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alpasift.batcher.engine.summary import Progress


def progress_text(progress: Progress) -> str:
    """One line: replies of questions, their share, speed, time left, and dollars where there are any; while a batch is
    waited for, that instead of a speed and a time left, which single calls do not tell."""
    from alpasift.batcher.money.dollars import show_usd

    if progress.waiting:
        done = f"{progress.replied:,} of {progress.total:,} rows, " if progress.total else ""
        text = f"{done}{progress.waiting}"
        return f"{text}, {show_usd(progress.usd)}" if progress.usd else text
    rate = progress.replied / progress.seconds if progress.seconds else 0.0
    left = f"{duration((progress.total - progress.replied) / rate)} left" if rate else "estimating the time left"
    share = progress.replied / progress.total if progress.total else 1.0
    text = f"{progress.replied:,} of {progress.total:,} rows ({int(100 * share)}%), {rate_text(rate)}, {left}"
    return f"{text}, {show_usd(progress.usd)}" if progress.usd else text


def rate_text(rows_per_second: float) -> str:
    """A rate with a decimal below 10, and rows a minute where that would be 0."""
    if 0 < rows_per_second < 0.1:
        return f"{rows_per_second * 60:.1f} rows/min"
    return f"{rows_per_second:,.{1 if rows_per_second < 10 else 0}f} rows/s"


def duration(seconds: float | None) -> str:
    """Seconds, minutes or hours, whichever a person would say: seconds below two minutes, tenths below ten seconds."""
    if seconds is None:
        return "unknown"
    if 0 < seconds < 0.05:
        return "<0.1 s"
    if seconds < 120:
        return f"{seconds:.{1 if 0 < seconds < 9.95 else 0}f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def line_every(seconds: float) -> Callable[[Progress], None]:
    """A function that writes to stderr how far a run is: the first time it is called, then every so many seconds."""
    last = -seconds

    def show(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            sys.stderr.write(progress_text(progress) + "\n")

    return show
