"""The files of `sql/`: queries by name, views and migrations in order."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import takewhile
from typing import Any, Literal

from alpasift.batcher.store.errors import QueryError


@dataclass(frozen=True, slots=True)
class SqlText:
    """One file of `sql/`: its name, the comment at its head, its text and the $parameters it takes.

    A head that begins with the line `-- Internal.` marks what the program asks for itself: lists for people leave
    it out unless they show all.
    """

    name: str
    doc: str
    text: str
    internal: bool = False

    @property
    def parameters(self) -> tuple[str, ...]:
        code = re.sub(r"--[^\n]*|'[^']*'", "", self.text)
        return tuple(dict.fromkeys(re.findall(r"\$([a-z_][a-z0-9_]*)", code)))

    def arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """A value for each parameter, None for those not given. Raises QueryError for a name that is none of them."""
        for name in given:
            if name not in self.parameters:
                takes = " ".join(f"{p}=..." for p in self.parameters) or "no parameters"
                raise QueryError(f"no parameter {name!r}: {self.name} takes {takes}")
        return {**dict.fromkeys(self.parameters), **given}


@cache
def sql_texts(folder: str) -> tuple[SqlText, ...]:
    """The files of sql/`folder`, by name. Names lose their number: views/10_graded.sql is "graded"."""
    files = sorted(resources.files("alpasift.sql").joinpath(folder).iterdir(), key=lambda e: e.name)
    return tuple(_read(folder, entry) for entry in files if entry.name.endswith(".sql"))


def _read(folder: str, file: Traversable) -> SqlText:
    text = file.read_text("utf-8")
    doc, internal = _read_comment(list(takewhile(lambda line: line.startswith("--"), text.splitlines())))
    name = file.name[:-4] if folder == "migrations" else re.sub(r"^\d+_", "", file.name[:-4])
    return SqlText(name, doc, text, internal)


@dataclass(frozen=True, slots=True)
class RelationText:
    """The definition of a table or a view: its name and the comment that stands before it."""

    name: str
    kind: Literal["table", "view"]
    doc: str
    internal: bool


@cache
def relation_texts() -> tuple[RelationText, ...]:
    """Every view and table of `sql/`, in the order of the files; a file may define several. Tables are internal."""
    found = []
    for folder in ("views", "migrations"):
        for text in sql_texts(folder):
            comment: list[str] = []
            for line in text.text.splitlines():
                defined = re.match(r"create (?:or replace )?(table|view) (\w+)", line)
                if line.startswith("--"):
                    comment.append(line)
                elif defined:
                    doc, internal = _read_comment(comment)
                    kind: Literal["table", "view"] = "table" if defined[1] == "table" else "view"
                    found.append(RelationText(defined[2], kind, doc, internal or kind == "table"))
                    comment = []
                else:
                    comment = []
    return tuple(found)


def _read_comment(lines: list[str]) -> tuple[str, bool]:
    """What a comment says, and whether it is marked as internal."""
    texts = [line[2:].strip() for line in lines]
    internal = texts[:1] == ["Internal."]
    return " ".join(texts[internal:]), internal


@cache
def named_query(name: str, folder: str = "queries") -> SqlText:
    """The query sql/`folder`/`name`.sql. Raises QueryError with the list of names."""
    file = resources.files("alpasift.sql").joinpath(folder, f"{name}.sql")
    if name.isidentifier() and file.is_file():  # most queries are in a file of their name: no other is read
        return _read(folder, file)
    queries = {query.name: query for query in sql_texts(folder)}
    if name not in queries:
        close = get_close_matches(name, queries, n=3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise QueryError(f"no query named {name!r}; {hint}`alpasift query` lists them")
    return queries[name]
