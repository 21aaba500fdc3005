"""Requests as they were read, answers as they will be sent, and the API's errors in its own words.

Knows the shapes of OpenAI's API; nothing of sockets, and nothing of what the server holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

ORGANIZATION = "org-rehearsal"
MAX_BODY_BYTES = 64 << 20


class Refused(Exception):
    """An answer in OpenAI's error shape."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        kind: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Dropped(Exception):
    """Close the connection without an answer."""


@dataclass(slots=True)
class Answer:
    """What to send: bytes, or a stretch of a file. `lost`: close the connection instead."""

    body: bytes = b""
    status: int = 200
    type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)
    file: Path | None = None
    start: int = 0
    length: int = 0
    send_only: int | None = None
    lost: bool = False


def json_answer(value: Any, status: int = 200, **detail: Any) -> Answer:
    return Answer(orjson.dumps(value), status, detail=detail)


@dataclass(slots=True)
class Request:
    """One request, read. `upload` holds the fields of a form and the file that came with it."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    route: str
    name: str
    number: int
    body: bytes = b""
    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None
    upload: Path | None = None
    leaked: bool = False

    def json(self) -> dict[str, Any]:
        try:
            value = orjson.loads(self.body)
        except orjson.JSONDecodeError as error:
            raise Refused(400, "We could not parse the JSON body of your request.") from error
        if not isinstance(value, dict):
            raise Refused(400, "The body of your request is not a JSON object.")
        return value

    def limit(self, default: int, most: int) -> int:
        text = self.query.get("limit", str(default))
        if not text.isdigit() or not 1 <= int(text) <= most:
            raise Refused(400, f"Invalid 'limit': {text}. Expected 1 to {most}.", "invalid_value", "limit")
        return int(text)


def page_of(items: Sequence[Any], after: str | None, limit: int, view: Callable[[Any], dict[str, Any]]) -> Answer:
    start = 0
    if after is not None:
        found = [i for i, item in enumerate(items) if item.id == after]
        if not found:
            raise Refused(400, f"No item found with id '{after}'.", "invalid_value", "after")
        start = found[0] + 1
    data = [view(item) for item in items[start : start + limit]]
    return json_answer(
        {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": start + limit < len(items),
        }
    )


def byte_range(text: str, size: int) -> tuple[int, int]:
    """Start and length of a Range header."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", text)
    if match is None or not (match[1] or match[2]):
        raise Refused(416, f"The range {text} cannot be had.")
    if not match[1]:
        start, end = max(0, size - int(match[2])), size - 1
    else:
        start, end = int(match[1]), min(int(match[2] or size - 1), size - 1)
    if start > end:
        raise Refused(416, f"The range {text} cannot be had.", headers={"content-range": f"bytes */{size}"})
    return start, end - start + 1


# -- errors -------------------------------------------------------------------------------------------------------


def missing(name: str) -> Refused:
    return Refused(400, f"Missing required parameter: '{name}'.", "missing_required_parameter", name)


def unsupported(message: str, name: str, *, value: bool = False) -> Refused:
    return Refused(400, message, "unsupported_value" if value else "unsupported_parameter", name)


def wrong_key() -> Refused:
    return Refused(401, "Incorrect API key provided.", "invalid_api_key")


def out_of_money() -> Refused:
    message = "You exceeded your current quota, please check your plan and billing details."
    return Refused(429, message, "insufficient_quota", None, "insufficient_quota")


def server_error(status: int) -> Refused:
    return Refused(status, "The server had an error while processing your request.", None, None, "server_error")


def line_error(status: int) -> Refused:
    if status == 429:
        return Refused(429, "Rate limit reached for requests.", "rate_limit_exceeded", None, "requests")
    if status >= 500:
        return server_error(status)
    return Refused(status, "Invalid prompt: it could not be processed.", "invalid_request")


def no_file(file_id: Any) -> Refused:
    message = f"Cannot find file {file_id}, or organization {ORGANIZATION} does not have access to it."
    return Refused(400, message, "invalid_request", "input_file_id")


def batch_error(code: str, message: str, line: int | None = None, param: str | None = None) -> dict[str, Any]:
    return {"code": code, "line": line, "message": message, "param": param}


def queue_full(model: str, limit: int) -> dict[str, Any]:
    return batch_error(
        "token_limit_exceeded",
        f"Enqueued token limit reached for {model} in organization {ORGANIZATION}. Limit: {limit:,} enqueued tokens. "
        "Please try again once some in_progress batches have been completed.",
    )
