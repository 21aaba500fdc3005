"""The offline batch processor: datasets, questions, replies, scores and money in one DuckDB file."""

from __future__ import annotations


def installed_version() -> str:
    """The version of AlpaSift, for what is stored with a result; "not installed" in a bare checkout."""
    from importlib import metadata  # it takes longer to import than all that `--help` needs

    try:
        return metadata.version("alpasift")
    except metadata.PackageNotFoundError:
        return "not installed"
