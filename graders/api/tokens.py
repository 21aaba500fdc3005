"""How many tokens a text is, and how many a chat request is at most. Nothing is downloaded.

Knows vocabularies; nothing of prices, backends or rows. OpenAI's two vocabularies come inside the package splintr-rs;
any other model is counted by its bytes, of which every token of a byte-level vocabulary holds at least one. Text is
text: "<|endoftext|>" in a row is its thirteen characters here and never the end of anything.
Which model has which vocabulary: the table in tiktoken 0.14.0 (`tiktoken/model.py`). What a chat adds: OpenAI's
cookbook, "How to count tokens with tiktoken": 3 tokens around each message, 3 that open the answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

_VOCABULARIES = (
    (re.compile(r"gpt-4o|chatgpt-4o|gpt-4\.[15]|gpt-5|gpt-6|o[134]([.-]|$)"), "o200k_base"),
    (re.compile(r"gpt-4([.-]|$)|gpt-3\.5"), "cl100k_base"),
)
_UNPUBLISHED = re.compile(r"gpt-6")
"""OpenAI has published no vocabulary for these; o200k_base is that of the family before."""
_KNOWN = {"o200k_base": [24912, 2375], "cl100k_base": [15339, 1917]}
""""hello world", as tiktoken's README and tests have it: a package that says otherwise is not the one we know."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Counts the tokens of a text.

    name         "o200k_base", "cl100k_base" or "bytes"
    exact        whether the count is the model's own; if not, it is meant to be too high rather than too low
    how          one sentence for a person
    per_message  tokens around one message besides its role and text, at most
    per_request  tokens of a request besides its messages, at most
    percent      what a bound adds to the whole because the vocabulary is not certain
    """

    name: str
    exact: bool
    how: str
    count: Callable[[str], int]
    per_message: int = 4
    per_request: int = 8
    percent: int = 0


@lru_cache(maxsize=64)
def tokenizer_for(model: str, host: str = "api.openai.com") -> Tokenizer:
    """The tokenizer of a model at a host.

    OpenAI's models at OpenAI, and under their own names on this machine, where a gateway or a rehearsal speaks for
    OpenAI, are counted by their vocabulary; all others by bytes.
    """
    name = vocabulary_of(model) if _speaks_openai(host) else None
    if name is None:
        return _by_bytes(f"tokens of {model} estimated as the bytes of the text, about four times too many in English")
    count = _load(name)
    if count is None:
        return _by_bytes(
            f"tokens estimated as the bytes of the text, about four times too many in English: {name} could not be "
            "loaded; install splintr-rs"
        )
    if _UNPUBLISHED.match(model.lower().removeprefix("ft:")):
        how = f"tokens counted by {name} and 5% added: no vocabulary is published for {model}"
        return Tokenizer(name, False, how, count, percent=5)
    return Tokenizer(name, True, f"tokens counted by {name}", count)


def vocabulary_of(model: str) -> str | None:
    """o200k_base for gpt-4o and later and the o-series, cl100k_base for gpt-4 and gpt-3.5, None for any other name."""
    model = model.lower().removeprefix("ft:")
    return next((name for pattern, name in _VOCABULARIES if pattern.match(model)), None)


def count(text: str, model: str, host: str = "api.openai.com") -> int:
    """Tokens of one text, without what a chat adds. By bytes where the model's vocabulary is not known."""
    return tokenizer_for(model, host).count(text)


def bound(messages: Iterable[tuple[str, str]], model: str, host: str = "api.openai.com", extra: int = 0) -> int:
    """The most prompt tokens that a chat request of these (role, text) messages can be billed for.

    `extra`: tokens of what else the request carries, such as the schema of a structured answer.
    """
    tokenizer = tokenizer_for(model, host)
    total = tokenizer.per_request + extra
    for role, text in messages:
        # A system text is the same in every request of a run; a row's text is not worth remembering.
        tokens = tokenizer.count(text) if role == "user" else _remembered(model, host, text)
        total += tokenizer.per_message + _remembered(model, host, role) + tokens
    return total + -(-total * tokenizer.percent // 100)


@lru_cache(maxsize=32)
def _remembered(model: str, host: str, text: str) -> int:
    return count(text, model, host)


def one_token(text: str, model: str, host: str = "api.openai.com") -> bool:
    """Whether a text is known to be one token of a model: false where its vocabulary is not known."""
    tokenizer = tokenizer_for(model, host)
    return tokenizer.exact and tokenizer.count(text) == 1


def _by_bytes(how: str) -> Tokenizer:
    # Templates of other models put more around a message, and some a text of their own before the first.
    return Tokenizer("bytes", False, how, _count_bytes, per_message=16, per_request=128)


def _count_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _speaks_openai(host: str) -> bool:
    return f".{host}".endswith(".api.openai.com") or host in ("localhost", "::1") or host.startswith("127.")


def _load(name: str) -> Callable[[str], int] | None:
    """A counter by one of the bundled vocabularies; None when the package is missing or is not what it was."""
    try:
        import splintr

        # Not `encode`, which takes "<|endoftext|>" in a row's text for the special token.
        encode = splintr.Tokenizer.from_pretrained(name).encode_ordinary
        if list(encode("hello world")) != _KNOWN[name] or len(encode("<|endoftext|>")) < 2:
            return None
    except (ImportError, AttributeError, TypeError, ValueError):
        return None

    def count(text: str) -> int:
        try:
            return len(encode(text))
        except UnicodeEncodeError:  # half of a surrogate pair, which JSON can carry and UTF-8 cannot
            return len(encode(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")))

    return count
