"""Copy the file of a database that this process may have open.

POSIX drops every lock that a process holds on a file when it closes any descriptor of that file: reading a database's
file beside DuckDB would take DuckDB's lock away, and another process would write into it. So another process copies.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from alpasift.batcher.store.errors import StoreError

_COPY = "import shutil, sys; shutil.copy2(sys.argv[1], sys.argv[2])"


def copy_file(source: Path, target: Path) -> None:
    """Copy a file with its times and mode. Raises StoreError, with nothing at `target`, when it cannot be copied."""
    done = subprocess.run([sys.executable, "-I", "-c", _COPY, source, target], capture_output=True, text=True)
    if done.returncode:
        target.unlink(missing_ok=True)
        reason = (done.stderr.strip().splitlines() or ["it was interrupted"])[-1]
        raise StoreError(f"{source} cannot be copied to {target} ({reason}); nothing was changed")
