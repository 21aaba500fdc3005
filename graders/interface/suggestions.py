"""What a misspelled name was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is nearest to one that is not known; None where none is near."""
    folded = {one.casefold(): one for one in known}
    found = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.7)
    return folded[found[0]] if found else None


def did_you_mean(name: str, known: Iterable[str], then: str = "") -> str:
    """The end of an error about a name that is not known.

    "; did you mean NAME? There are A, B" where one is near, else "; there are A, B"; `then` is "there are A, B".
    """
    found = closest(name, known)
    if found is None:
        return f"; {then}" if then else ""
    return f"; did you mean {found}?" + (f" {then[:1].upper()}{then[1:]}" if then else "")
