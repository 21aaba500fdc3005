"""Which row format a row has, by its keys, and a file, by its first rows or by --map.

Keys are found whatever their case and blanks. Formats are tried in a fixed order; `rival_answers` tells which other
keys might have been meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from alpasift.batcher.data.row_formats.conversation import as_list, message_keys
from alpasift.batcher.data.row_formats.pairs import label_of
from alpasift.batcher.data.row_formats.row import READ_FORMATS, TARGETS, RowFormat, RowFormatError
from alpasift.batcher.data.row_formats.transcripts import said_in_text

_MESSAGES = ("messages", "conversations", "conversation")
_OTHER_MESSAGES = ("dialogue", "dialog", "chat", "chat_messages", "message")
_QUESTIONS = ("instruction", "prompt", "question", "query", "problem", "inputs", "user", "human", "input")
_ANSWERS = (
    "response",
    "output",
    "completion",
    "solution",
    "answer",
    "targets",
    "target",
    "reply",
    "assistant",
    "gpt",
)
_CONTEXTS = ("context", "input")
_SYSTEMS = ("system", "system_prompt", "system_message")
_PAIRS = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("answer_chosen", "answer_rejected"),
    ("preferred_output", "non_preferred_output"),
    ("preferred", "dispreferred"),
    ("accepted", "rejected"),
    ("response_j", "response_k"),
)

Row = Mapping[Any, Any]
Names = Mapping[str, str]
"""The keys of a row by their usual spelling: "question" for " Question"."""


def row_format_of(row: Row, name: str = "auto", mapping: Mapping[str, str] | None = None) -> RowFormat | None:
    """The row format of one row: the first that its keys fit, or the one of this name; None where none does."""
    if mapping:
        return _mapped(tuple(row), mapping)
    return next((found for found in _fitting(row) if name in ("auto", found.name)), None)


def _fitting(row: Row) -> Iterator[RowFormat]:
    names = {str(key).strip().lower().replace(" ", "_").replace("-", "_"): key for key in reversed(list(row))}
    names |= {key: key for key in row}
    for find in _FINDERS:
        found = find(row, names, tuple(row))
        if found is not None:
            yield found


def _first(names: Names, wanted: Sequence[str], *taken: str | None) -> str | None:
    return next((names[name] for name in wanted if name in names and names[name] not in taken), None)


def _usual(name: str, keys: tuple[str, ...], names: Names, parts: tuple[str, str, str]) -> RowFormat | None:
    """alpaca or dolly: keys spelled exactly so, or all of them in another case."""
    instruction, text, output = parts
    if {instruction, output} <= set(keys):
        return RowFormat(name, keys, instruction, text, output)
    if instruction not in names or output not in names:
        return None
    spelled = {part: names.get(part, part) for part in (*parts, "system", "category")}
    return RowFormat(
        name, keys, spelled[instruction], spelled[text], spelled[output], spelled["system"], spelled["category"]
    )


def _dolly(row: Row, names: Names, keys: tuple[str, ...]) -> RowFormat | None:
    return _usual("dolly", keys, names, ("instruction", "context", "response"))


def _alpaca(row: Row, names: Names, keys: tuple[str, ...]) -> RowFormat | None:
    return _usual("alpaca", keys, names, ("instruction", "input", "output"))


def _conversation(row: Row, names: Names, keys: tuple[str, ...]) -> RowFormat | None:
    for wanted in (*_MESSAGES, *_OTHER_MESSAGES):
        key = names.get(wanted)
        messages = as_list(row[key]) if key is not None else None
        if key is None or not messages:
            continue
        first = next((m for m in messages if isinstance(m, dict)), {})
        role, text = message_keys(first)
        if (role is None and wanted in _OTHER_MESSAGES) or all(isinstance(m, str) for m in messages):
            continue
        sharegpt = str(role).lower() == "from" or (not first and wanted != "messages")
        usual = ("from", "value") if sharegpt else ("role", "content")
        category = names.get("category", "category")
        return RowFormat(
            "sharegpt" if sharegpt else "messages",
            keys,
            messages=key,
            role=role or usual[0],
            text=text or usual[1],
            category=category,
        )
    return None


def _preference(row: Row, names: Names, keys: tuple[str, ...]) -> RowFormat | None:
    if {"instruction", "output"} <= set(keys) or {"instruction", "response"} <= set(keys):
        return None
    for chosen, rejected in _PAIRS:
        if chosen in names and rejected in names:
            pair = names[chosen], names[rejected]
            if all(isinstance(row[key], str | list | dict) for key in pair):
                prompt = _first(names, (*_QUESTIONS, *_MESSAGES), *pair)
                context = _first(names, _CONTEXTS, prompt, *pair)
                system = _first(names, _SYSTEMS)
                category = names.get("category", "category")
                return RowFormat(
                    "preference", keys, prompt, context, pair[0], system or "system", category, rejected=pair[1]
                )
    return None


def _kto(row: Row, names: Names, keys: tuple[str, ...]) -> RowFormat | None:
    label = _first(names, ("label", "kto_tag"))
    if label is None or "prompt" not in names or label_of(row[label]) is None:
        return None
    answer = _first(names, ("completion", "response"))
    if answer is None:
        return None
    system, category = _first(names, _SYSTEMS), names.get("category", "category")
    context = _first(names, _CONTEXTS)
    return RowFormat("kto", keys, names["prompt"], context, answer, system or "system", category, label=label)


def _seed_task(row: Row, names: Names, keys: tuple[str, ...]) -> RowFormat | None:
    if "instruction" not in names or "instances" not in names or not isinstance(row[names["instances"]], list):
        return None
    return RowFormat("seed_task", keys, names["instruction"], None, names["instances"], None)


def _oasst(row: Row, names: Names, keys: tuple[str, ...]) -> RowFormat | None:
    root = row.get("prompt")
    if isinstance(root, dict) and isinstance(root.get("replies"), list) and "text" in root:
        return RowFormat("oasst", keys, "prompt", None, None, None)
    return None


def _ultrachat(row: Row, names: Names, keys: tuple[str, ...]) -> RowFormat | None:
    for key in ("data", *_MESSAGES, *_OTHER_MESSAGES):
        texts = as_list(row[names[key]]) if key in names else None
        if texts and len(texts) > 1 and all(isinstance(text, str) for text in texts):
            return RowFormat("ultrachat", keys, None, None, names[key], None)
    return None


def _question_answer(row: Row, names: Names, keys: tuple[str, ...]) -> RowFormat | None:
    answer = _first(names, _ANSWERS)
    question = _first(names, _QUESTIONS, answer)
    if answer is None or question is None:
        return None
    context = _first(names, _CONTEXTS, question, answer)
    name = "prompt_completion" if names.get("prompt") == question else "question_answer"
    system, category = _first(names, _SYSTEMS), names.get("category", "category")
    return RowFormat(name, keys, question, context, answer, system or "system", category)


def _transcript(row: Row, names: Names, keys: tuple[str, ...]) -> RowFormat | None:
    key = _first(names, ("text", "conversation", "conversations", "chat"))
    if key is not None and isinstance(row[key], str) and len(said_in_text(row[key])) > 1:
        return RowFormat("transcript", keys, None, None, key, None)
    return None


_FINDERS: tuple[Callable[[Row, Names, tuple[str, ...]], RowFormat | None], ...] = (
    _preference,
    _conversation,
    _seed_task,
    _dolly,
    _alpaca,
    _kto,
    _oasst,
    _ultrachat,
    _question_answer,
    _transcript,
)


def rival_answers(row_format: RowFormat, row: Row) -> list[str]:
    """Other keys of the row that might hold the answer: `output` beside the `response` that is graded."""
    if row.get(row_format.messages or row_format.output) is None:
        return []
    own = {row_format.output, row_format.rejected, row_format.instruction, row_format.input}
    return [
        key
        for key in row
        if str(key).strip().lower() in _ANSWERS and key not in own and isinstance(row[key], str) and row[key].strip()
    ]


def choose_row_format(
    name: str,
    mapping: Mapping[str, str] | None,
    rows: Sequence[Row],
    usable: Callable[[RowFormat, Row], bool] = lambda row_format, row: True,
) -> RowFormat:
    """The row format of a file by its first rows; the first row that is usable in it decides. Raises RowFormatError.

    `name` is one of READ_FORMATS, "mapped" or "auto"; `mapping` says for a target which key holds it.
    """
    if name not in (*READ_FORMATS, "mapped", "auto"):
        raise RowFormatError(f"unknown row format {name!r}; choose from {', '.join(READ_FORMATS)}, or use --map")
    if mapping and name not in ("auto", "mapped"):
        raise RowFormatError(f"--map and --row-format {name} are mutually exclusive; remove one")
    if name == "mapped" and not mapping:
        raise RowFormatError("name the keys of the content: --map instruction=KEY --map output=KEY")
    fitting = [(row_format, row) for row in rows if (row_format := row_format_of(row, name, mapping))]
    if fitting:
        return next((row_format for row_format, row in fitting if usable(row_format, row)), fitting[0][0])
    raise RowFormatError(_no_row_format(name, mapping, rows, detected_row_format(rows, usable)))


def detected_row_format(rows: Sequence[Row], usable: Callable[[RowFormat, Row], bool]) -> str | None:
    """The name of the row format that the keys of the first rows show, whatever was asked for; None where none does."""
    fitting = [(row_format, row) for row in rows if (row_format := row_format_of(row))]
    return next((found.name for found, row in fitting if usable(found, row)), fitting[0][0].name if fitting else None)


def _mapped(keys: tuple[str, ...], mapping: Mapping[str, str]) -> RowFormat | None:
    unknown = sorted(set(mapping) - set(TARGETS))
    if unknown:
        raise RowFormatError(f"--map has no target {', '.join(unknown)}; choose from {', '.join(TARGETS)}")
    taken = set(mapping.values())
    if len(taken) < len(mapping):
        raise RowFormatError("--map uses one key twice; each target needs its own key")
    names = {t: mapping.get(t, None if t in taken else t) for t in TARGETS}
    row_format = RowFormat(
        "mapped", keys, names["instruction"], names["input"], names["output"], names["system"], names["category"]
    )
    return row_format if taken <= set(keys) and row_format.instruction in keys and row_format.output in keys else None


_MESSAGE_KEYS = frozenset({"role", "content", "from", "value", "speaker"})


def _no_row_format(name: str, mapping: Mapping[str, str] | None, rows: Sequence[Row], detected: str | None) -> str:
    if not rows:
        return "the rows are not JSON objects with keys such as instruction and output"
    keys = ", ".join(repr(str(k)[:60]) for k in list(rows[0])[:30])
    if mapping:
        wanted = ", ".join(f"{t}={k}" for t, k in mapping.items())
        return f"no row has the keys of --map {wanted} with an instruction and an output; the first row has {keys}"
    inner = [k for k, v in rows[0].items() if len(rows) == 1 and isinstance(v, list) and v and isinstance(v[0], dict)]
    inner = [k for k in inner if _MESSAGE_KEYS.isdisjoint(rows[0][k][0])]  # one row with a conversation is a row
    if inner:
        return (
            f"the file is one object with a list under {inner[0]!r}; extract the list: `jq '.{inner[0]}' IN > OUT.json`"
        )
    wanted = "instruction and output, question and answer, prompt and completion, messages, or chosen and rejected"
    if name != "auto" and detected is not None:
        return (
            f"no row fits the row format {name}; by its keys, {keys}, the file is {detected}. Leave --row-format out, "
            "or say where the content is: --map instruction=KEY --map output=KEY"
        )
    if name != "auto":
        wanted = f"those of the row format {name}"
    return f"found the keys {keys}; expected {wanted}. Name them: --map instruction=KEY --map output=KEY"
