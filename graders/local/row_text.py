"""Row text that holds the name of a token: cut so that no tokenizer makes the token of it.

Tokenizers are told to leave special tokens off in a row's text. Those that a model's maker added without calling them
special (`<tool_call>` in Qwen2.5, say) are made all the same, wherever their name stands. So the text is cut inside
each such name, and its parts are encoded one after the other. Knows text only.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise


class TokenNames:
    """The names of tokens that must not come of a row's text. Names of blanks alone mean nothing and may."""

    def __init__(self, names: Iterable[str]) -> None:
        self._by_start: dict[str, list[str]] = {}
        for name in sorted(set(names)):
            if len(name) > 1 and name.strip(" \t\r\n\u2581"):
                self._by_start.setdefault(name[:2], []).append(name)

    def split(self, text: str) -> list[str]:
        """The parts of a text, of which none holds a name; together they are the text."""
        cuts: set[int] = set()
        for start, names in self._by_start.items():
            at = text.find(start)
            while at >= 0:
                if any(text.startswith(name, at) for name in names):
                    cuts.add(at + 1)
                at = text.find(start, at + 1)
        edges = [0, *sorted(cuts), len(text)]
        return [text[a:b] for a, b in pairwise(edges)]
