"""Rows with a key for each part: alpaca, dolly, their relatives by other names, and keys named with --map.

Such a row may hold earlier turns under `turns` (our own exports do) or `history`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from alpasift.batcher.data.row_formats.conversation import past_turns
from alpasift.batcher.data.row_formats.other_keys import keep_whole, split_other
from alpasift.batcher.data.row_formats.row import LONGEST_TEXT, Notes, Parts, RowFormat, Unusable, check_length
from alpasift.batcher.data.row_formats.texts import as_text

_PAST = ("turns", "history")


def past_keys(row_format: RowFormat) -> tuple[str, ...]:
    """The keys under which rows of this format may hold earlier turns; of formats with messages none."""
    several = row_format.messages or row_format.output is None or row_format.name in ("preference", "kto", "seed_task")
    return () if several else tuple(key for key in _PAST if key not in row_format.flat)


def flat_reader(row_format: RowFormat, notes: Notes) -> Callable[[Mapping[Any, Any]], Parts]:
    """What splits such a row into content, category and other keys. It raises Unusable with the reason."""
    system_key, instruction_key, input_key, output_key = row_format.flat
    keys, bare = row_format.keys, set(row_format.flat).issuperset(row_format.keys)
    past = past_keys(row_format)

    def read(row: Mapping[Any, Any]) -> Parts:
        get = row.get
        system, instruction, text, output = (
            get(system_key, ""),
            get(instruction_key),
            get(input_key, ""),
            get(output_key),
        )
        form: dict[str, Any] = {}
        if not (type(instruction) is type(output) is type(text) is type(system) is str):
            if instruction is None:
                raise Unusable("no_instruction")
            if output is None:
                raise Unusable("no_answer")
            system, instruction, text, output = _texts(row_format, row, form, notes)
        if len(instruction) + len(text) + len(output) + len(system) > LONGEST_TEXT:
            check_length(instruction, text, output, system)
        if not (instruction.strip() or text.strip()):
            raise Unusable("no_instruction")
        if bare and not form and tuple(row) == keys:  # most rows of most files
            return Parts(system, [], instruction, text, output, None, "{}")
        for key in past:
            if key in row and (turns := past_turns(row[key], notes)):
                check_length(*(said for _, said in turns))
                consumed = (*row_format.flat, key)
                return Parts(system, turns, instruction, text, output, *keep_whole(row_format, row, consumed))
        category, other = split_other(row_format, row, row_format.flat, form)
        return Parts(system, [], instruction, text, output, category, other)

    return read


def _texts(
    row_format: RowFormat, row: Mapping[str, Any], form: dict[str, Any], notes: Notes
) -> tuple[str, str, str, str]:
    """System, instruction, input and output of a row that has something else than text in one of them."""
    found: list[str] = []
    nulls, was = [], {}
    for key, reason in zip(row_format.flat, (None, "no_instruction", None, "no_answer"), strict=True):
        value = row.get(key, "") if key is not None else ""
        text = as_text(value, notes)
        if text is None and reason:
            raise Unusable(reason)
        if value is None:
            nulls.append(key)
        elif type(value) is not str:
            was[key] = value
        found.append(text or "")
    if nulls:
        form["null"] = nulls
    if was:
        form["was"] = was
    system, instruction, text_in, output = found
    return system, instruction, text_in, output


def restore_flat(row_format: RowFormat, parts: Parts, form: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that hold the content, as they were read."""
    content = (parts.system, parts.instruction, parts.input, parts.output)
    values: dict[str, Any] = {k: v for k, v in zip(row_format.flat, content, strict=True) if k is not None}
    values.update(dict.fromkeys(form.get("null", ())))
    return values
