"""What several rules use: words without spelling, and a piece of a row for a message."""

from __future__ import annotations

import re

QUOTES = "\"'“”‘’«»`"
NO_WORD = re.compile(r"[\W_]+")
FIRST_WORD = re.compile(r"[^\W\d_]+")
BRACKETED = re.compile(r"\\?[<\[({].*\S.*\\?[>\])}]?[.,]?", re.DOTALL)
ABOUT_TAGS = re.compile(
    r"\b(?:html|xml|tags?|elements?|markdown|markup|svg|code|placeholders?|template|syntax)\b", re.I
)


def bare_words(text: str) -> str:
    """Lower-case words and digits, one blank between them: what is left when spelling does not matter."""
    return NO_WORD.sub(" ", text).strip().casefold()


def shown(text: str) -> str:
    """A piece of a row inside a message: one line, quoted, at most 60 characters."""
    line = " ".join(text.split())
    return ascii(line if len(line) <= 60 else line[:57] + "...") if not line.isprintable() else repr(line[:60])
