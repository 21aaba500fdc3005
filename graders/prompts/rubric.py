"""A rubric: what to ask about a row, on which scale, and how the answer is laid out. Read from TOML.

Knows templates and scales; nothing of backends, tables or how a reply is read (that is `reading`). A rubric's text is
fixed: `{{fields}}` are replaced in one pass, nothing in them is evaluated, and a field's value is never looked at for
further fields. The fixed text is one system message, the same for every row, so that a backend can keep its work on
it; the row follows in a user message, between marks that do not occur in it, with a last line that repeats the
question. Layout after AlpaGasus (arXiv 2307.08701, figure 3): score on the first line, reasons after it.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from alpasift.graders import AlpaSiftError, Example, did_you_mean
from alpasift.graders.interface.names import NAME_RULE, is_name

RENDERER = "1"
"""Version of how a row is laid out; part of every question's identity."""

AnswerFormat = Literal["score", "explain", "json", "expected_score"]
"""What an answer holds: the score; the score and its reasons; both as JSON; the score and how likely each one was."""
ANSWER_FORMATS: tuple[AnswerFormat, ...] = get_args(AnswerFormat)

FIELDS = {
    "instruction",
    "input",
    "output",
    "context",
    "system",
    "mark",
    "low",
    "high",
    "step",
    "choices",
    "labels",
    "dimension",
}
_FIELD = re.compile(r"\{\{\s*([a-z_]+)\s*\}\}")
_KEYS = {
    "name",
    "dimension",
    "low",
    "high",
    "step",
    "threshold",
    "score",
    "max_tokens",
    "system",
    "row",
    "question",
    "gives_reason",
    "labels",
    "answer_format",
    "explain_tokens",
}


MEASURED: dict[str, Decimal | None] = {"ifd": Decimal(1), "s-ifd": Decimal(1), "fit": None}
"""The built-in rubrics whose score is measured: a number on a scale without steps, given by the grader of that name.

With each the figure from which a row is left out of what is kept, None where there is none: the papers leave out rows
whose IFD is 1 or more, where the instruction does not help to predict the answer.
"""


class RubricError(AlpaSiftError):
    """A rubric that does not exist or does not hold together."""


@dataclass(frozen=True, slots=True)
class Rubric:
    """One rubric. `step` is the distance of two neighbouring scores; `threshold` the default for keeping a row.

    `row` is empty for the built-in layout. `gives_reason`: the line after the score names a reason ("cut_off: ...").
    `labels`, where given, are what is answered in place of the scores, one for each, lowest first ("A" for 0, ...): one
    token each, they let a backend read all probabilities at one place. `answer_format` is what an answer holds where
    nobody names one, "" for the cheapest that the grader can give. `explain_tokens` is the most that an answer with
    reasons takes.
    """

    name: str
    dimension: str
    low: Decimal
    high: Decimal
    step: Decimal
    threshold: Decimal
    score: Literal["first", "last"]
    max_tokens: int
    system: str
    row: str
    question: str
    gives_reason: bool = False
    labels: tuple[str, ...] = ()
    answer_format: str = ""
    explain_tokens: int = 256

    @property
    def judged_from_row(self) -> bool:
        """Whether the grader of the rubric's own name looks at the row itself, and no model reads the messages."""
        return self.name == "rules" or self.measured

    @property
    def measured(self) -> bool:
        """Whether the score is a measured number, not one of the steps of a scale."""
        return self.name in MEASURED

    @property
    def choices(self) -> tuple[str, ...]:
        """The scores there are, lowest first, as short as they are spelt: "0", "0.5", ... "5"; none if measured."""
        return () if self.measured else _choices(self.low, self.high, self.step)

    @property
    def answers(self) -> tuple[str, ...]:
        """What may be answered, in the order of the scores: the labels, or the scores themselves."""
        return self.labels or self.choices

    def content(self) -> dict[str, Any]:
        """Everything that makes this rubric, as plain values. What came later and is not used is left out."""
        later = {"labels": (), "answer_format": "", "explain_tokens": 256}
        found = {k: v for k, v in asdict(self).items() if k not in later or v != later[k]}
        if "answer_format" in found:
            found["contract"] = stored_format(found.pop("answer_format"))
        return {
            k: str(v) if isinstance(v, Decimal) else list(v) if isinstance(v, tuple) else v for k, v in found.items()
        }

    def digest(self) -> str:
        """sha256 of the content: two rubrics with equal digests ask and read alike."""
        return hashlib.sha256(json.dumps(self.content(), sort_keys=True).encode()).hexdigest()

    def messages(self, example: Example, identity: str, closing: str = "") -> tuple[tuple[str, str], ...]:
        """The (role, text) messages that ask about one example. `identity` seeds the marks around the row.

        Row text stands only in the user message, every part of it between lines that carry the mark. `closing` is a
        last line about the form of the answer.
        """
        context = "\n".join(f"{turn.role}: {turn.content}" for turn in example.turns)
        parts = {
            "system": example.system,
            "context": context,
            "instruction": example.instruction,
            "input": example.input,
            "output": example.output,
        }
        mark = _mark(identity, "\0".join(parts.values()))
        row = _fill(self.row, {**_fixed(self), **parts, "mark": mark}) if self.row else _fence(parts, mark)
        question = _fixed_text(self, "question") + ("\n" + closing if closing else "")
        return (("system", _fixed_text(self, "system")), ("user", row + "\n\n" + question))


@lru_cache(maxsize=64)
def _choices(low: Decimal, high: Decimal, step: Decimal) -> tuple[str, ...]:
    return tuple(spell(low + step * i) for i in range(int((high - low) / step) + 1))


def _fixed(rubric: Rubric) -> dict[str, str]:
    """The fields whose values are the rubric's own."""
    return {
        "low": spell(rubric.low),
        "high": spell(rubric.high),
        "step": spell(rubric.step),
        "choices": ", ".join(rubric.answers),
        "dimension": rubric.dimension,
        "labels": ", ".join(f"{a} = {c}" for a, c in zip(rubric.answers, rubric.choices, strict=True)),
    }


@lru_cache(maxsize=64)
def _fixed_text(rubric: Rubric, part: Literal["system", "question"]) -> str:
    return _fill(getattr(rubric, part), _fixed(rubric))


def spell(number: Decimal) -> str:
    """A score as people write it: 5, 4.5; never 5.0 or 4.50."""
    text = format(number.normalize(), "f")
    return "0" if text == "-0" else text


def _mark(identity: str, text: str) -> str:
    """A short code that does not occur in the text: it costs tokens in every row, so it grows only when it must."""
    code = hashlib.sha256(identity.encode()).hexdigest()
    length = 4
    while code[:length] in text:
        length += 1
        if length > len(code):
            code, length = hashlib.sha256(code.encode()).hexdigest(), 4
    return code[:length]


_TITLES = {
    "system": "system text",
    "context": "earlier turns, context only",
    "instruction": "instruction",
    "input": "input",
    "output": "response",
}


def _fence(parts: dict[str, str], mark: str) -> str:
    lines = []
    for part, title in _TITLES.items():
        if parts[part] or part in ("instruction", "output"):
            lines += [f"[[{mark} {title}]]", parts[part]]
    return "\n".join([*lines, f"[[{mark} end]]"])


def _fill(template: str, values: dict[str, str]) -> str:
    return _FIELD.sub(lambda match: values[match[1]] if match[1] in values else match[0], template)


# -- reading a rubric's file ------------------------------------------------------------------------------------


def rubric_names() -> list[str]:
    """The rubrics that come with the package."""
    return sorted(
        f.name[:-5]
        for f in resources.files("alpasift.graders.prompts").joinpath("rubrics").iterdir()
        if f.name.endswith(".toml")
    )


def load_rubric(name_or_path: str) -> Rubric:
    """The built-in rubric of that name, or the user's own: a path that ends in .toml. Raises RubricError."""
    if name_or_path in rubric_names():
        return parse_rubric(
            resources.files("alpasift.graders.prompts").joinpath("rubrics", f"{name_or_path}.toml").read_text("utf-8"),
            name_or_path,
        )
    path = Path(name_or_path)
    if path.suffix != ".toml":
        if path.is_file() or path.suffix in (".yaml", ".yml", ".json", ".txt", ".md"):
            raise RubricError(f"{path}: a rubric is a .toml file; `alpasift rubric new` creates one")
        beside = path.with_name(f"{path.name}.toml")
        near = [str(beside)] if beside.is_file() else rubric_names()
        there = f"choose from {', '.join(rubric_names())}, or give the path of a .toml file"
        raise RubricError(f"no rubric named {name_or_path!r}{did_you_mean(name_or_path, near, there)}")
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RubricError(f"the rubric {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    rubric = parse_rubric(text, str(path), default_name=path.stem)
    if rubric.name in rubric_names():
        raise RubricError(f"{path}: {rubric.name!r} is a built-in rubric; give yours another `name`")
    return rubric


def answer_format_of(name: str) -> str:
    """An answer format by its name or by the name that databases keep."""
    return "expected_score" if name == "expected" else name


def stored_format(name: str) -> str:
    """The name of an answer format as databases keep it; it is hashed into the ids of rubrics and questions."""
    return "expected" if name == "expected_score" else name


def rubric_of(content: Mapping[str, Any]) -> Rubric:
    """The rubric whose `content()` this is, as the database keeps it."""
    numbers = {key: Decimal(str(content[key])) for key in ("low", "high", "step", "threshold")}
    answer_format = answer_format_of(content.get("contract", ""))
    known = {key: value for key, value in content.items() if key != "contract"}
    return Rubric(**{**known, **numbers, "labels": tuple(content.get("labels", ())), "answer_format": answer_format})


def parse_rubric(text: str, where: str, default_name: str | None = None) -> Rubric:
    """A rubric from TOML text. Raises RubricError naming the key and what it should be."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RubricError(f"{where} is not valid TOML: {error}") from error
    unknown = sorted(set(table) - _KEYS - {"contract"})  # the old name of answer_format
    if unknown:
        raise RubricError(f"{where}: unknown key {unknown[0]!r}; a rubric has {', '.join(sorted(_KEYS))}")
    number = {key: _number(table, key, where) for key in ("low", "high", "step", "threshold")}
    rubric = Rubric(
        name=_text(table, "name", where, default_name),
        dimension=_text(table, "dimension", where, "quality"),
        low=number["low"],
        high=number["high"],
        step=number["step"],
        threshold=number["threshold"],
        score=table.get("score", "first"),
        max_tokens=table.get("max_tokens", 8),
        system=_text(table, "system", where, None),
        row=_text(table, "row", where, ""),
        question=_text(table, "question", where, None),
        gives_reason=table.get("gives_reason", False),
        labels=_labels(table.get("labels", []), where),
        answer_format=_answer_format(table, where),
        explain_tokens=table.get("explain_tokens", 256),
    )
    _check(rubric, where)
    _check_braces(rubric, text, where)
    return rubric


def _check(rubric: Rubric, where: str) -> None:
    if not is_name(rubric.name):
        raise RubricError(f"{where}: {rubric.name!r} is not a valid name; {NAME_RULE}")
    if rubric.score not in ("first", "last"):
        raise RubricError(f'{where}: score = {rubric.score!r}; must be "first" or "last"')
    for key, least in (("max_tokens", 1), ("explain_tokens", 32)):
        value = getattr(rubric, key)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= 4096:
            raise RubricError(f"{where}: {key} = {value!r}; must be a whole number from {least} to 4096")
    if rubric.answer_format not in ("", *ANSWER_FORMATS):
        formats = ", ".join(ANSWER_FORMATS)
        raise RubricError(f"{where}: answer_format = {rubric.answer_format!r}; must be {formats}, or omitted")
    if rubric.answer_format == "score" and rubric.score == "last":
        raise RubricError(
            f'{where}: answer_format = "score" with score = "last"; use "explain" when reasons come first'
        )
    if not isinstance(rubric.gives_reason, bool):
        raise RubricError(f"{where}: gives_reason = {rubric.gives_reason!r}; true or false")
    if not rubric.low < rubric.high or rubric.step <= 0:
        raise RubricError(
            f"{where}: low = {rubric.low}, high = {rubric.high}, step = {rubric.step}; low must be below high and "
            f"step above 0"
        )
    steps = (rubric.high - rubric.low) / rubric.step
    if steps != int(steps) or (steps > 100 and not rubric.measured):
        raise RubricError(
            f"{where}: from {rubric.low} to {rubric.high} by {rubric.step} is not a whole number of at most 100 steps"
        )
    if not rubric.low <= rubric.threshold <= rubric.high:
        raise RubricError(f"{where}: threshold = {rubric.threshold} is outside {rubric.low} to {rubric.high}")
    if rubric.labels and len(rubric.labels) != len(rubric.choices):
        raise RubricError(
            f"{where}: {len(rubric.labels)} labels for {len(rubric.choices)} scores; give one per score, lowest first"
        )
    row_fields = {"instruction", "input", "output", "context", "mark"}
    for key in ("system", "row", "question"):
        for field in _FIELD.findall(getattr(rubric, key)):
            if field not in FIELDS:
                meant = did_you_mean(field, sorted(FIELDS), f"choose from {', '.join(sorted(FIELDS))}")
                raise RubricError(f"{where}: {key} has the unknown field {{{{{field}}}}}{meant}")
            if key != "row" and field in row_fields | {"system"}:
                raise RubricError(
                    f"{where}: {{{{{field}}}}} is the row's text and is allowed in `row` only, not in `{key}`"
                )
    if rubric.row and not {"mark", "instruction", "output"} <= set(_FIELD.findall(rubric.row)):
        raise RubricError(
            f"{where}: `row` must hold {{{{mark}}}}, {{{{instruction}}}} and {{{{output}}}}; the mark delimits "
            f"the row's text"
        )


_SINGLE = re.compile(r"(?<!\{)\{\s*([A-Za-z_]+)\s*\}(?!\})")
_DOUBLE = re.compile(r"\{\{([^{}\n]*)\}\}")


def _check_braces(rubric: Rubric, text: str, where: str) -> None:
    """Raise RubricError for what looks like a field and would be sent as it stands, with its line in the file."""
    for key in ("system", "row", "question"):
        value = getattr(rubric, key)
        for found in _SINGLE.finditer(value):
            if found[1].lower() in FIELDS:
                raise RubricError(
                    f"{where}{_line_of(_SINGLE, found[0], text)}: {key} holds {found[0]}, which would be sent "
                    f"literally; write {{{{{found[1].lower()}}}}}"
                )
        for found in _DOUBLE.finditer(value):
            if not _FIELD.fullmatch(found[0]):
                raise RubricError(
                    f"{where}{_line_of(_DOUBLE, found[0], text)}: {key} holds {found[0]}, which is not a field"
                    + did_you_mean(found[1].strip().lower(), sorted(FIELDS), f"choose from {', '.join(sorted(FIELDS))}")
                )


def _line_of(pattern: re.Pattern[str], found: str, text: str) -> str:
    for number, line in enumerate(text.splitlines(), 1):
        if any(match[0] == found for match in pattern.finditer(line)):
            return f", line {number}"
    return ""


def _answer_format(table: Mapping[str, Any], where: str) -> str:
    """The answer format of a rubric's table; its key was called `contract` in an earlier version."""
    if "answer_format" in table and "contract" in table:
        raise RubricError(f"{where}: `contract` is the old name of `answer_format`; keep one of them")
    return answer_format_of(table.get("answer_format", table.get("contract", "")))


def _labels(value: Any, where: str) -> tuple[str, ...]:
    fine = isinstance(value, list) and all(
        isinstance(label, str) and re.fullmatch(r"[^\s\"'*_`#>\[\](){}.,:;]{1,8}", label) for label in value
    )
    if not fine or len({label.casefold() for label in value}) != len(value):
        raise RubricError(
            f"{where}: labels = {value!r}; must be distinct short words without spaces and punctuation, such as A, B, C"
        )
    return tuple(value)


def _text(table: dict[str, Any], key: str, where: str, default: str | None) -> str:
    value = table.get(key, default)
    if not isinstance(value, str):
        raise RubricError(
            f"{where}: {key} is missing" if value is None else f"{where}: {key} = {value!r}; must be a string"
        )
    return value.strip() if key != "row" else value.strip("\n")


def _number(table: dict[str, Any], key: str, where: str) -> Decimal:
    value = table.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RubricError(
            f"{where}: {key} is missing" if value is None else f"{where}: {key} = {value!r}; must be a number"
        )
    number = Decimal(str(value))
    if not number.is_finite() or abs(number) > 10_000 or number != round(number, 3):
        raise RubricError(f"{where}: {key} = {value!r}; must be a number within 10,000 with at most three decimals")
    return number
