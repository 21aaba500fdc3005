"""What can go wrong, as exceptions a caller may want to catch.

AlpaSiftError                something the user can act on; printed as one line
  BackendError               the backend cannot work, or died
    BackendUnavailable       ... because something is missing on this machine (exit code 3)
  BudgetExceeded             a reservation would pass the cap; nothing was sent for it
  SendingStopped             an alarm is open on the ledger; work in flight may be collected, nothing new is sent
"""

from __future__ import annotations


class AlpaSiftError(Exception):
    """Something the user can act on: the message says what happened, with the values, and what to do next."""


class BackendError(AlpaSiftError):
    """The backend cannot work as it was asked to, or died on the way."""


class BackendUnavailable(BackendError):
    """The backend cannot work on this machine: a package, a file, a key or a card is missing."""


class BudgetExceeded(AlpaSiftError):
    """The reservation would pass a cap. Nothing was sent for it and nothing was written."""


class SendingStopped(AlpaSiftError):
    """An alarm stands: nothing that costs money is sent until a person has looked. Nothing was sent or written."""
