"""Rows to content and back: `reader` splits a row, `restore` writes it as it was read, `convert` in another format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from alpasift.batcher.data.row_formats.detect import row_format_of
from alpasift.batcher.data.row_formats.flat import flat_reader, restore_flat
from alpasift.batcher.data.row_formats.messages import as_messages, read_messages, restore_messages
from alpasift.batcher.data.row_formats.other_keys import decode, keep_whole
from alpasift.batcher.data.row_formats.pairs import read_kto, read_preference, read_prompted
from alpasift.batcher.data.row_formats.row import Notes, Parts, Reader, RowFormat, Unusable
from alpasift.batcher.data.row_formats.several import read_seed_task, read_tree
from alpasift.batcher.data.row_formats.transcripts import read_transcript

_READERS: dict[str, Callable[[RowFormat, Notes, Mapping[str, Any]], list[Parts | Unusable]]] = {
    "preference": read_preference,
    "kto": read_kto,
    "seed_task": read_seed_task,
    "oasst": read_tree,
    "ultrachat": read_transcript,
    "transcript": read_transcript,
}


def reader(row_format: RowFormat, notes: Notes | None = None, *, others: bool = False) -> Reader:
    """What splits a row of this format into its examples. It raises Unusable with the reason.

    `notes` counts what is read otherwise than it stands. With `others` a row that this format cannot read, and whose
    keys are those of another, is read by that one and counted as read_as_NAME.
    """
    notes = Notes() if notes is None else notes
    own = _own_reader(row_format, notes)
    if not others:
        return own

    def read(row: Mapping[str, Any]) -> list[Parts | Unusable]:
        try:
            return own(row)
        except Unusable:
            found = row_format_of(row)
            if found is None or replace(found, keys=row_format.keys) == row_format:
                raise
            return _read_other(row_format, found, notes, row)

    return read


def _own_reader(row_format: RowFormat, notes: Notes) -> Reader:
    if row_format.messages:
        return lambda row: [read_messages(row_format, notes, row)]
    if row_format.name in _READERS:
        read_several = _READERS[row_format.name]
        return lambda row: read_several(row_format, notes, row)
    read_flat = flat_reader(row_format, notes)

    def read(row: Mapping[Any, Any]) -> list[Parts | Unusable]:
        try:
            return [read_flat(row)]
        except Unusable as error:
            prompted = row_format.name in ("prompt_completion", "question_answer") and error.reason == "not_text"
            if not prompted or not all(_may_be_messages(row.get(key)) for key in row_format.asked_and_answered):
                raise
        return [read_prompted(row_format, notes, row)]

    return read


def _may_be_messages(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and any(isinstance(one, dict) for one in value))


def _read_other(
    row_format: RowFormat, found: RowFormat, notes: Notes, row: Mapping[str, Any]
) -> list[Parts | Unusable]:
    """The examples of a row of another format than its file's, kept so that it is written as it stood."""
    counted = Notes()
    first, *rest = _own_reader(found, counted)(row)
    if isinstance(first, Parts):
        _, form = decode(first.other)
        consumed = tuple(form["was"]) if form.get("whole") else _content_keys(found, form)
        answer = {"answer": form["answer"]} if "answer" in form else {}
        category, other = keep_whole(row_format, row, consumed, **answer)
        first = first._replace(category=category, other=other)
    notes[f"read_as_{found.name}"] += 1
    notes.update(counted)
    return [first, *rest]


def _content_keys(row_format: RowFormat, form: Mapping[str, Any]) -> tuple[str | None, ...]:
    if not row_format.messages:
        return row_format.flat
    return (row_format.messages, "system") if form.get("system") == "key" else (row_format.messages,)


def restore(row_format: RowFormat, parts: Parts) -> dict[str, Any] | None:
    """The row as it was read: the same keys in the same order with the same values.

    None where the row is written with the example before this one: a rejected answer with the chosen one.
    """
    extras, form = decode(parts.other)
    if form.get("rest"):
        return None
    values = dict(extras)
    if not form.get("whole"):
        if row_format.messages:
            values[row_format.messages] = restore_messages(row_format, parts, form)
            if form.get("system") == "key":
                values["system"] = parts.system
        else:
            values.update(restore_flat(row_format, parts, form))
    if parts.category is not None and row_format.category is not None:
        values[row_format.category] = parts.category
    values.update(form.get("was", {}))
    return {k: values[k] for k in form.get("keys", row_format.keys)}


def convert(name: str, parts: Parts) -> dict[str, Any]:
    """The row in another row format. Its other keys stay, but for those whose name the format needs.

    Flat formats have no place for earlier turns: they go under "turns", as messages, where an import finds them. An
    answer of a preference or KTO row says under "preference" whether it was chosen or rejected.
    """
    row: dict[str, Any]
    if name == "messages":
        row = {"messages": as_messages("role", "content", parts, bool(parts.system))}
    elif name == "sharegpt":
        row = {"conversations": as_messages("from", "value", parts, bool(parts.system))}
    else:
        names = ("instruction", "context", "response") if name == "dolly" else ("instruction", "input", "output")
        row = dict(zip(names, (parts.instruction, parts.input, parts.output), strict=True))
        if parts.system:
            row["system"] = parts.system
        if parts.turns:
            row["turns"] = [{"role": role, "content": text} for role, text in parts.turns]
    if parts.category is not None or name == "dolly":
        row["category"] = parts.category or ""
    extras, form = decode(parts.other)
    if form.get("answer") in ("chosen", "rejected"):
        row["preference"] = form["answer"]
    row.update((k, v) for k, v in extras.items() if k not in row)
    return row
