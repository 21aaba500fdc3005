"""The input file of a batch: its lines, read once, and what the API finds wrong with them."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from alpasift.graders.rehearsal.answers import CannedAnswer, FakeModel
from alpasift.graders.rehearsal.messages import Refused, batch_error
from alpasift.graders.rehearsal.models import Family, Models, family_of

ENDPOINT = "/v1/chat/completions"
ENDPOINTS = (
    "/v1/responses",
    ENDPOINT,
    "/v1/embeddings",
    "/v1/completions",
    "/v1/moderations",
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/videos",
)
MAX_LINES = 50_000
PIECE = 1 << 20


@dataclass(slots=True)
class InputLines:
    """The lines of an input file, read once: all that is needed to answer them, in some 60 bytes a line."""

    answers: list[CannedAnswer | Refused] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=lambda: [""])
    answer: array[int] = field(default_factory=lambda: array("I"))
    prefix: array[int] = field(default_factory=lambda: array("I"))
    prompt: array[int] = field(default_factory=lambda: array("I"))
    ends: array[int] = field(default_factory=lambda: array("I", [0]))
    ids: bytearray = field(default_factory=bytearray)
    numbers: dict[int | str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompt)

    def add(self, custom_id: str, answer: CannedAnswer | Refused, prompt: int, prefix: str) -> None:
        number = self.numbers.get(id(answer))
        if number is None:
            number = self.numbers[id(answer)] = len(self.answers)
            self.answers.append(answer)
        self.answer.append(number)
        number = self.numbers.get(prefix, 0) if prefix else 0
        if prefix and not number:
            number = self.numbers[prefix] = len(self.prefixes)
            self.prefixes.append(prefix)
        self.prefix.append(number)
        self.prompt.append(prompt)
        self.ids += custom_id.encode("utf-8", "surrogatepass")
        self.ends.append(len(self.ids))

    def custom_id(self, i: int) -> str:
        return self.ids[self.ends[i] : self.ends[i + 1]].decode("utf-8", "surrogatepass")


@dataclass(frozen=True, slots=True)
class InputFile:
    """What was read: the model of all lines, the lines, and up to 100 errors. With errors there are no lines to use."""

    model: str | None
    lines: InputLines
    errors: list[dict[str, Any]]


def read_input(path: Path, models: Models, fake: FakeModel, *, tolerant: bool) -> InputFile:
    """Read every line, and find what is wrong with them. `tolerant`: ids may occur twice."""
    questions, seen, errors = InputLines(), set[str](), list[dict[str, Any]]()
    model: str | None = None
    base, family = "", Family()
    number = count = 0
    with path.open("rb", buffering=PIECE) as lines:
        for line in lines:
            number += 1
            if line.isspace():
                continue
            count += 1
            if count > MAX_LINES:
                continue
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError:
                row = None
            try:
                custom_id, body = row["custom_id"], row["body"]
                fine = row["method"] == "POST" and row["url"] == ENDPOINT and body["model"] == model is not None
                fine = fine and type(custom_id) is str and (custom_id not in seen or tolerant)
            except (KeyError, TypeError):
                fine = False
            if not fine:
                wrong = _wrong_with(row, models, model, set() if tolerant else seen)
                if wrong is not None:
                    errors.append({**wrong, "line": number})
                    continue
                model = body["model"]
                base = models.base(body["model"])
                family = family_of(base)
            seen.add(custom_id)
            if not errors:
                questions.add(custom_id, *fake.ask(body, base, family))
    if not count:
        errors = [batch_error("empty_file", "The batch file is empty. Give it at least one request.")]
    if count > MAX_LINES:
        errors = [batch_error("too_many_tasks", f"The batch has {count} requests; the most is {MAX_LINES}.")]
    return InputFile(model, questions, errors[:100])


def _wrong_with(row: Any, models: Models, model: str | None, seen: set[str]) -> dict[str, Any] | None:
    """What is wrong with a line of an input file; None when it is fine."""
    if not isinstance(row, dict):
        return batch_error("invalid_json_line", "This line is not parseable as valid JSON.")
    for name, kind in (("custom_id", str), ("method", str), ("url", str), ("body", dict)):
        if not isinstance(row.get(name), kind):
            return batch_error("missing_required_parameter", f"Missing required parameter: '{name}'.", param=name)
    if row["custom_id"] in seen:
        return batch_error(
            "duplicate_custom_id",
            f"The custom_id for this request is a duplicate of another request: {row['custom_id']}. "
            "The custom_id parameter must be unique for each request in a batch.",
            param="custom_id",
        )
    if row["method"] != "POST":
        return batch_error("invalid_method", "Only POST is supported.", param="method")
    if row["url"] != ENDPOINT:
        if row["url"] in ENDPOINTS:
            return batch_error("url_mismatch", "The URL of this request is not the batch's endpoint.", param="url")
        return batch_error("invalid_url", "The URL provided for this request is invalid.", param="url")
    name = row["body"].get("model")
    if not isinstance(name, str):
        message = "Missing required parameter: 'body.model'."
        return batch_error("missing_required_parameter", message, param="body.model")
    if name not in models:
        message = f"The provided model '{name}' is not supported by the Batch API."
        return batch_error("model_not_found", message, param="body.model")
    if model is not None and name != model:
        message = f"The requested model '{name}' is not that of the batch, '{model}'."
        return batch_error("mismatched_model", message, param="body.model")
    return None
