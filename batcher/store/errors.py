"""What can go wrong with a database."""

from __future__ import annotations

from alpasift.graders import AlpaSiftError


class StoreError(AlpaSiftError):
    """The database file cannot be used as it is."""


class StoreBusy(StoreError):
    """Another process holds the file; the message names it."""


class QueryError(AlpaSiftError):
    """A query of the user's is wrong, not allowed, or took too long."""
