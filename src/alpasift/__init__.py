"""Grade, sift and fine-tune on instruction data under a dollar budget, in one DuckDB file.

    import alpasift

    db = alpasift.open("lab.duckdb")

Call `open`; docs/python.md shows the rest. `import alpasift` loads nothing heavy: each name is found when it is used.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alpasift.batcher.api import Database as Database
    from alpasift.graders import AlpaSiftError as AlpaSiftError

    __version__: str
else:

    def __getattr__(name):  # PEP 562
        if name == "__version__":
            return import_module("alpasift.batcher").installed_version()
        if name not in _FOUND_IN:
            raise AttributeError(f"module 'alpasift' has no attribute {name!r}")
        return getattr(import_module(_FOUND_IN[name]), name)


_FOUND_IN = {"AlpaSiftError": "alpasift.graders", "Database": "alpasift.batcher.api"}
__all__ = ["AlpaSiftError", "Database", "__version__", "open"]


def open(path: str | os.PathLike[str]) -> Database:
    """Open a database file. One that is not there yet is made by the first `import_file`.

    A file of an earlier version is brought up to date. Raises AlpaSiftError for a file that is no database.

        db = alpasift.open("lab.duckdb")
    """
    database: Database = import_module("alpasift.batcher.api").open_database(path)
    return database


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
