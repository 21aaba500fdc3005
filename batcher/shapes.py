"""One row of a file <-> the content that is graded: the shapes of instruction data.

Knows keys, roles and what makes a row unusable; nothing of files or tables. Reading a row splits it into its content
(system, turns, instruction, input, output), its category, and `other`: a JSON object with the keys that are no
content, as they stood, and under "$form" what else is needed to write exactly this row again (an order of keys
unlike the first row's, a null, the spelling of a role, the parts of a message). `restore` is the inverse of what `reader` gives.

    alpaca    {"instruction", "input"?, "output"}
    dolly     {"instruction", "context", "response", "category"}
    sharegpt  {"conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}]}
    messages  {"messages": [{"role", "content"}]}; content is text or a list of {"type": "text", "text"}
    mapped    alpaca with other names for its keys

A conversation is graded by its last answer: it must end with a user's message and the assistant's reply to it; what
comes before are its turns. A `system` key beside flat keys or messages is content too.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import partial
from typing import Any, NamedTuple

import orjson

from graders import AlpaSiftError, Example, Turn

SHAPES = ("alpaca", "dolly", "sharegpt", "messages")
TARGETS = ("instruction", "input", "output", "system", "category")
LONGEST_TEXT = 1_000_000  # characters of one text

REASONS = {
    "bad_message": "a message is no object with a role and content, or the messages are no list",
    "bad_unicode": "a text holds half a surrogate pair, which is no character",
    "broken_json": "the line is not valid JSON",
    "empty_message": "a message of the user or the assistant is empty",
    "ends_with_user": "the conversation ends with the user, so there is no answer to grade",
    "nested_too_deeply": "lists or objects are nested too deeply",
    "no_answer": "there is no output",
    "no_instruction": "there is no instruction",
    "no_messages": "the conversation has no messages",
    "no_question": "the last answer does not follow a message of the user",
    "not_an_object": "the row is not a JSON object",
    "not_text": "a list, an object or a number stands where text belongs",
    "too_large": f"a text is longer than {LONGEST_TEXT:,} characters",
    "unknown_role": "a message has a role that is not known",
    "wrong_columns": "the line has more or fewer cells than the header",
}


class ShapeError(AlpaSiftError):
    """The keys of the rows fit no known shape, or not the one that was asked for."""


class Unusable(Exception):
    """This row cannot be graded; `reason` is a key of REASONS."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Parts(NamedTuple):
    """A row taken apart. `turns` are (role, text) pairs."""

    system: str
    turns: list[tuple[str, str]]
    instruction: str
    input: str
    output: str
    category: str | None
    other: str

    def example(self) -> Example:
        turns = tuple(Turn(role, text) for role, text in self.turns)
        return Example(self.instruction, self.input, self.output, self.system, turns)


@dataclass(frozen=True, slots=True)
class Shape:
    """Which key holds what. `keys` are the first usable row's, in its order: rows with equal keys need no note of theirs."""

    name: str
    keys: tuple[str, ...]
    instruction: str | None = None
    input: str | None = None
    output: str | None = None
    system: str | None = "system"
    category: str | None = "category"
    messages: str = ""
    role: str = "role"
    text: str = "content"

    @property
    def flat(self) -> tuple[str | None, ...]:
        return (self.system, self.instruction, self.input, self.output)


# -- which shape ------------------------------------------------------------------------------------------------


def choose_shape(name: str, mapping: Mapping[str, str] | None, rows: Sequence[Mapping[str, Any]]) -> Shape:
    """The shape of a file by its first rows; the first row that is usable in it decides. Raises ShapeError.

    `name` is one of SHAPES, "mapped" or "auto"; `mapping` says for a target which key holds it.
    """
    if name not in (*SHAPES, "mapped", "auto"):
        raise ShapeError(f"no shape is called {name!r}; there are {', '.join(SHAPES)}, or use --map")
    if mapping and name not in ("auto", "mapped"):
        raise ShapeError(f"--map and the shape {name} exclude each other; leave one out")
    if name == "mapped" and not mapping:
        raise ShapeError("the shape mapped wants to know the keys: --map instruction=KEY --map output=KEY")
    fitting = [(shape, row) for row in rows if (shape := _shape_of(row, name, mapping))]
    if fitting:
        return next((shape for shape, row in fitting if _is_usable(shape, row)), fitting[0][0])
    raise ShapeError(_no_shape(name, mapping, rows))


def _shape_of(row: Mapping[str, Any], name: str, mapping: Mapping[str, str] | None) -> Shape | None:
    keys = tuple(row)
    if mapping:
        return _mapped(keys, mapping)
    for key in ("messages", "conversations", "conversation"):
        if row.get(key) and name in ("auto", "sharegpt", "messages"):
            first = next((m for m in _listed(row[key]) or [] if isinstance(m, dict)), {})
            sharegpt = "from" in first or (not first and key != "messages")
            kind = "sharegpt" if sharegpt else "messages"
            if name in ("auto", kind):
                role, text = ("from", "value") if sharegpt else ("role", "content")
                return Shape(kind, keys, messages=key, role=role, text=text)
    if name in ("auto", "dolly") and {"instruction", "response"} <= row.keys():
        return Shape("dolly", keys, "instruction", "context", "response")
    if name in ("auto", "alpaca") and {"instruction", "output"} <= row.keys():
        return Shape("alpaca", keys, "instruction", "input", "output")
    return None


def _mapped(keys: tuple[str, ...], mapping: Mapping[str, str]) -> Shape | None:
    unknown = sorted(set(mapping) - set(TARGETS))
    if unknown:
        raise ShapeError(f"--map knows no {', '.join(unknown)}; it can say where {', '.join(TARGETS)} are")
    taken = set(mapping.values())
    if len(taken) < len(mapping):
        raise ShapeError("--map names one key for two things; each wants its own")
    names = {t: mapping.get(t, None if t in taken else t) for t in TARGETS}
    shape = Shape(
        "mapped", keys, names["instruction"], names["input"], names["output"], names["system"], names["category"]
    )
    return shape if taken <= set(keys) and shape.instruction in keys and shape.output in keys else None


def _no_shape(name: str, mapping: Mapping[str, str] | None, rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "the rows are no JSON objects with keys such as instruction and output"
    keys = ", ".join(repr(str(k)[:60]) for k in list(rows[0])[:30])
    if mapping:
        wanted = ", ".join(f"{t}={k}" for t, k in mapping.items())
        return f"no row has the keys of --map {wanted} beside an instruction and an output; the first row has {keys}"
    inner = [k for k, v in rows[0].items() if len(rows) == 1 and isinstance(v, list) and v and isinstance(v[0], dict)]
    if inner:
        return f"the file holds one object, with a list under {inner[0]!r}; write the list out: `jq '.{inner[0]}' IN > OUT.json`"
    wanted = "instruction and output, instruction and response, messages, or conversations"
    if name != "auto":
        wanted = f"those of the shape {name}"
    return f"found the keys {keys}; expected {wanted}. Say where they are: --map instruction=KEY --map output=KEY"


def _is_usable(shape: Shape, row: Mapping[str, Any]) -> bool:
    try:
        reader(shape)(row)
    except Unusable:
        return False
    return True


# -- a row, taken apart -----------------------------------------------------------------------------------------


Reader = Callable[[Mapping[str, Any]], Parts]


def reader(shape: Shape) -> Reader:
    """What splits a row of this shape into content, category and other. It raises Unusable with the reason."""
    return partial(_read_messages, shape) if shape.messages else _flat_reader(shape)


def _flat_reader(shape: Shape) -> Reader:
    system_key, instruction_key, input_key, output_key = shape.flat
    keys, bare = shape.keys, set(shape.flat).issuperset(shape.keys)

    def read(row: Mapping[Any, Any]) -> Parts:
        get = row.get
        system, instruction, text, output = (
            get(system_key, ""),
            get(instruction_key),
            get(input_key, ""),
            get(output_key),
        )
        if instruction is None:
            raise Unusable("no_instruction")
        if output is None:
            raise Unusable("no_answer")
        form: dict[str, Any] = {}
        if system is None or text is None:
            form["null"] = [k for k in (system_key, input_key) if get(k, "") is None]
            system, text = "" if system is None else system, "" if text is None else text
        if not (type(instruction) is type(output) is type(text) is type(system) is str):
            raise Unusable("not_text")
        if len(instruction) + len(text) + len(output) + len(system) > LONGEST_TEXT:
            _check_length(instruction, text, output, system)
        if not (instruction.strip() or text.strip()):
            raise Unusable("no_instruction")
        if bare and not form and tuple(row) == keys:  # most rows of most files
            return Parts(system, [], instruction, text, output, None, "{}")
        category, other = _beside(shape, row, shape.flat, form)
        return Parts(system, [], instruction, text, output, category, other)

    return read


def _check_length(*texts: str) -> None:
    if sum(map(len, texts)) > LONGEST_TEXT and max(map(len, texts)) > LONGEST_TEXT:
        raise Unusable("too_large")


_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
_SPELLING = {"from": {"user": "human", "assistant": "gpt"}, "role": {}}


def _read_messages(shape: Shape, row: Mapping[str, Any]) -> Parts:
    given = row.get(shape.messages)
    messages = _listed(given)
    form: dict[str, Any] = {}
    if given is None or messages == []:
        raise Unusable("no_messages")
    if messages is None:
        raise Unusable("bad_message")
    if isinstance(given, str):
        form["text"] = True if _compact(messages) == given else given
    said: list[tuple[str, str]] = []
    patches: dict[str, Any] = {}
    spelling = _SPELLING[shape.role]
    for number, message in enumerate(messages):
        role, text, patch = _read_message(shape, message, number >= len(messages) - 2)
        said.append((role, text))
        if patch is not None or message[shape.role] != spelling.get(role, role):
            patches[str(number)] = patch or {shape.role: message[shape.role], shape.text: True}
    if patches:
        form["messages"] = patches
    system = ""
    consumed: tuple[str | None, ...] = (shape.messages,)
    if said[0][0] == "system":
        system = said.pop(0)[1]
        if not system:
            form["system"] = "empty"
    elif isinstance(row.get("system"), str):
        system, form["system"] = row["system"], "key"
        consumed = (shape.messages, "system")
    _check_ending([role for role, _ in said])
    instruction, output = said[-2][1], said[-1][1]
    _check_length(system, *(text for _, text in said))
    category, other = _beside(shape, row, consumed, form)
    return Parts(system, said[:-2], instruction, "", output, category, other)


def _listed(value: Any) -> list[Any] | None:
    """The messages: a list, or JSON text of a list as a csv cell holds it."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, list) else None


def _read_message(shape: Shape, message: Any, graded: bool) -> tuple[str, str, dict[str, Any] | None]:
    """Role, text, and what the message was with its text taken out (True stands in its place), None when nothing else."""
    if type(message) is not dict or shape.role not in message:
        raise Unusable("bad_message")
    spelled, content = message[shape.role], message.get(shape.text)
    role = _ROLES.get(spelled) if isinstance(spelled, str) else None
    if role is None:
        raise Unusable("unknown_role")
    patch = None
    if type(content) is str:
        text = content
        if len(message) > 2:
            patch = {**message, shape.text: True}
    else:
        text, patch = _read_parts(content), dict(message)
        if content and len(content) == 1:
            patch[shape.text] = [{**content[0], "text": True}]
    says_more = any(v is not None for k, v in message.items() if k not in (shape.role, shape.text))
    if not text.strip() and role in ("user", "assistant") and (graded or not says_more):
        raise Unusable("empty_message")
    return role, text, patch


def _read_parts(content: Any) -> str:
    """The text of a list of text parts, one a paragraph; a missing content is "" (a call of a tool has none)."""
    if content is None:
        return ""
    if not isinstance(content, list):
        raise Unusable("not_text")
    texts = [p.get("text") if isinstance(p, dict) and p.get("type", "text") == "text" else None for p in content]
    if not all(isinstance(t, str) for t in texts):
        raise Unusable("not_text")
    return "\n\n".join(t for t in texts if t is not None)


def _check_ending(roles: Sequence[str]) -> None:
    if "assistant" not in roles:
        raise Unusable("no_answer")
    if roles[-1] == "user":
        raise Unusable("ends_with_user")
    if roles[-1] != "assistant":
        raise Unusable("no_answer")
    if len(roles) < 2 or roles[-2] != "user":
        raise Unusable("no_question")


# -- what stands beside the content -----------------------------------------------------------------------------


def _beside(
    shape: Shape, row: Mapping[str, Any], consumed: tuple[str | None, ...], form: dict[str, Any]
) -> tuple[str | None, str]:
    """The category, and all else of the row as JSON."""
    extras = {k: v for k, v in row.items() if k not in consumed}
    category = extras.get(shape.category) if shape.category is not None else None
    if type(category) is str and category:
        del extras[shape.category]  # type: ignore[arg-type]
        _check_length(category)
    else:
        category = None
    if tuple(row) != shape.keys:
        form["keys"] = list(row)
    if not extras and not form:
        if category is not None:
            _check_unicode(category)
        return category, "{}"
    try:
        other = _encode(extras, form, category)
    except RecursionError:
        raise Unusable("nested_too_deeply") from None
    except UnicodeEncodeError:
        raise Unusable("bad_unicode") from None
    _check_length(other)
    return category, other


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise Unusable("bad_unicode") from None


def _encode(extras: dict[str, Any], form: dict[str, Any], category: str | None) -> str:
    """`other` as JSON text. What JSON cannot say (bytes, dates, NaN) is marked: {"$date": "2026-11-21"}."""
    if category is not None:
        category.encode("utf-8")
    if "$form" in extras:
        form["own"] = extras.pop("$form")
    value = {**extras, "$form": form} if form else extras
    try:
        text = orjson.dumps(value, option=orjson.OPT_PASSTHROUGH_DATETIME)
        if text.count(b'"$') == bool(form) and not (b"null" in text and _has_marked(value)):
            return text.decode("utf-8")
    except TypeError:  # a value that is marked, an integer beyond 64 bits, half a surrogate pair
        pass
    value = {k: _mark(v) for k, v in value.items()}
    written = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    written.encode("utf-8")
    return written


def _has_marked(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_marked, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_marked, value))
    return isinstance(value, float) and not math.isfinite(value)


def _mark(value: Any) -> Any:
    if isinstance(value, dict):
        marked = {k: _mark(v) for k, v in value.items()}
        return {"$dict": marked} if len(marked) == 1 and next(iter(marked)).startswith("$") else marked
    if isinstance(value, list | tuple):
        return [_mark(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode("ascii")}
    if isinstance(value, Decimal):
        return {"$decimal": str(value)}
    if isinstance(value, timedelta):
        return {"$microseconds": value // timedelta(microseconds=1)}
    for kind in (datetime, date, time):  # a datetime is a date too
        if isinstance(value, kind):
            return {f"${kind.__name__}": value.isoformat()}
    return value


def _unmark(value: Any) -> Any:
    if isinstance(value, list):
        return [_unmark(v) for v in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        mark, inner = next(iter(value.items()))
        if mark == "$dict":
            return {k: _unmark(v) for k, v in inner.items()}
        if mark in _READERS:
            return _READERS[mark](inner)
    return {k: _unmark(v) for k, v in value.items()}


_READERS: dict[str, Any] = {
    "$float": float,
    "$bytes": base64.b64decode,
    "$decimal": Decimal,
    "$microseconds": lambda n: timedelta(microseconds=n),
    "$datetime": datetime.fromisoformat,
    "$date": date.fromisoformat,
    "$time": time.fromisoformat,
}


def _decode(other: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys beside the content, and the form."""
    if other == "{}":
        return {}, {}
    extras: dict[str, Any] = json.loads(other)
    if '"$' in other:
        extras = {k: _unmark(v) for k, v in extras.items()}
    form = extras.pop("$form", {})
    if "own" in form:
        extras["$form"] = form["own"]
    return extras, form


# -- a row, put together ----------------------------------------------------------------------------------------


def restore(shape: Shape, parts: Parts) -> dict[str, Any]:
    """The row as it was read: the same keys in the same order with the same values."""
    extras, form = _decode(parts.other)
    values = dict(extras)
    if shape.messages:
        values[shape.messages] = _restore_messages(shape, parts, form)
        if form.get("system") == "key":
            values["system"] = parts.system
    else:
        content = (parts.system, parts.instruction, parts.input, parts.output)
        values.update((k, v) for k, v in zip(shape.flat, content, strict=True) if k is not None)
        values.update(dict.fromkeys(form.get("null", ())))
    if parts.category is not None and shape.category is not None:
        values[shape.category] = parts.category
    return {k: values[k] for k in form.get("keys", shape.keys)}


def _restore_messages(shape: Shape, parts: Parts, form: Mapping[str, Any]) -> Any:
    has_system = form.get("system") == "empty" or (parts.system and form.get("system") != "key")
    messages = _messages(shape.role, shape.text, parts, bool(has_system))
    for number, patch in form.get("messages", {}).items():
        text = messages[int(number)][shape.text]
        content = patch.get(shape.text)
        if content is True:
            patch = {**patch, shape.text: text}
        elif isinstance(content, list) and len(content) == 1 and content[0].get("text") is True:
            patch = {**patch, shape.text: [{**content[0], "text": text}]}
        messages[int(number)] = patch
    if "text" in form:
        return _compact(messages) if form["text"] is True else form["text"]
    return messages


def _messages(role_key: str, text_key: str, parts: Parts, with_system: bool) -> list[dict[str, Any]]:
    question = f"{parts.instruction}\n\n{parts.input}" if parts.input else parts.instruction
    said = [("system", parts.system)] if with_system else []
    said += [*parts.turns, ("user", question), ("assistant", parts.output)]
    spelling = _SPELLING[role_key]
    return [{role_key: spelling.get(role, role), text_key: text} for role, text in said]


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def convert(name: str, parts: Parts) -> dict[str, Any]:
    """The row in another shape. Its other keys stay, but for those whose name the shape needs.

    Flat shapes have no place for earlier turns: they go under "turns", as messages.
    """
    row: dict[str, Any]
    if name == "messages":
        row = {"messages": _messages("role", "content", parts, bool(parts.system))}
    elif name == "sharegpt":
        row = {"conversations": _messages("from", "value", parts, bool(parts.system))}
    else:
        names = ("instruction", "context", "response") if name == "dolly" else ("instruction", "input", "output")
        row = dict(zip(names, (parts.instruction, parts.input, parts.output), strict=True))
        if parts.system:
            row["system"] = parts.system
        if parts.turns:
            row["turns"] = [{"role": role, "content": text} for role, text in parts.turns]
    if parts.category is not None or name == "dolly":
        row["category"] = parts.category or ""
    extras, _ = _decode(parts.other)
    row.update((k, v) for k, v in extras.items() if k not in row)
    return row
