"""Answers to one prompt with a verdict on them: preference rows, rows with a label (KTO), and prompts with messages.

    preference         {"prompt", "chosen", "rejected"}: two examples, the chosen answer first
    kto                {"prompt", "completion", "label"}: one example; a true label says that it is wanted
    prompt_completion  {"prompt", "completion"} where one of them is a list of messages

Prompts and answers are texts, messages, or a whole conversation under each answer. `answer` in the form of a row says
chosen or rejected; the keys of a pair stand with its chosen answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alpasift.batcher.data.row_formats.conversation import Content, Said, alternating, as_list, content_of, said_in
from alpasift.batcher.data.row_formats.other_keys import REST_OF_ROW, keep_whole
from alpasift.batcher.data.row_formats.row import Notes, Parts, RowFormat, Unusable, check_length
from alpasift.batcher.data.row_formats.texts import as_text
from alpasift.batcher.data.row_formats.transcripts import said_in_text

_LABELS = {"true": True, "false": False}


def read_preference(row_format: RowFormat, notes: Notes, row: Mapping[Any, Any]) -> list[Parts | Unusable]:
    """The chosen and the rejected answer. Raises Unusable where one of them cannot be graded: a pair needs both."""
    if row.get(row_format.output) is None or row.get(row_format.rejected) is None:
        raise Unusable("no_pair")
    chosen, rejected = (answered(row_format, row, key, notes) for key in (row_format.output, row_format.rejected))
    category, other = keep_whole(row_format, row, row_format.flat, answer="chosen")
    return [Parts(*chosen, category, other), Parts(*rejected, category, REST_OF_ROW["rejected"])]


def read_kto(row_format: RowFormat, notes: Notes, row: Mapping[Any, Any]) -> list[Parts | Unusable]:
    """The answer, noted as chosen or rejected by its label. Raises Unusable."""
    label = label_of(row.get(row_format.label))
    if label is None:
        raise Unusable("no_label")
    content = answered(row_format, row, row_format.output, notes)
    answer = "chosen" if label else "rejected"
    return [Parts(*content, *keep_whole(row_format, row, row_format.flat, answer=answer))]


def read_prompted(row_format: RowFormat, notes: Notes, row: Mapping[Any, Any]) -> Parts:
    """A prompt and a completion of which one is a list of messages. Raises Unusable."""
    content = answered(row_format, row, row_format.output, notes)
    return Parts(*content, *keep_whole(row_format, row, row_format.flat))


def label_of(value: Any) -> bool | None:
    """A label as a truth: true or "True"; None for anything else, a number too, which may be a grade."""
    if isinstance(value, bool):
        return value
    return _LABELS.get(value.strip().lower()) if isinstance(value, str) else None


def answered(row_format: RowFormat, row: Mapping[Any, Any], key: str | None, notes: Notes) -> Content:
    """What the row's prompt and the answer under this key say together. Raises Unusable."""
    answer = row.get(key)
    if answer is None:
        raise Unusable("no_answer")
    system = _plain(row, row_format.system, notes)
    context = _plain(row, row_format.input, notes)
    prompt = row.get(row_format.instruction) if row_format.instruction is not None else None
    reply = _said(answer, "assistant", notes, transcript=prompt is None)
    if any(role == "user" for role, _ in reply) and reply[0][0] in ("user", "system"):  # the whole conversation
        return content_of(reply, notes, system)
    asked = _said(prompt, "user", notes, transcript=True)
    if not asked:
        raise Unusable("no_instruction")
    if len(reply) == 1 and isinstance(prompt, str) and len(asked) == 1:
        if not (asked[0][1].strip() or context.strip()):
            raise Unusable("no_instruction")
        check_length(system, context, asked[0][1], reply[0][1])
        return Content(system, [], asked[0][1], context, reply[0][1])
    content = content_of([*asked, *reply], notes, system)
    return content._replace(input="\n\n".join(t for t in (context, content.input) if t))


def _plain(row: Mapping[Any, Any], key: str | None, notes: Notes) -> str:
    return (as_text(row.get(key), notes) or "") if key is not None else ""


def _said(value: Any, role: str, notes: Notes, *, transcript: bool) -> Said:
    """What a prompt or an answer says: text, one message, messages, or texts by turns."""
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        value = value["messages"]
    if isinstance(value, str) and value.lstrip().startswith(("[{", '{"')):
        value = as_list(value) or value  # messages in a csv cell
    if isinstance(value, dict):
        value = as_list(value) or [value]
    if isinstance(value, list):
        if value and all(isinstance(text, str) for text in value):
            return alternating(value) if role == "user" else [(role, value[0])] if len(value) == 1 else _no_text()
        return said_in(value, notes)
    text = as_text(value, notes)
    if text is None:
        return []
    if transcript and "Human:" in text[:20] and (said := said_in_text(text)):
        return [one for one in said if one[1] or one[0] != "assistant"]
    return [(role, text)]


def _no_text() -> Said:
    raise Unusable("not_text")
