"""The body of a chat completion, and the reply that comes back in one. The same bytes go by batch and by single call.

Knows JSON of the API; nothing of servers, keys or money. What a model takes is its `Family`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from alpasift.graders import Reply, Request, only_by
from alpasift.graders.api.api_errors import error_of
from alpasift.graders.api.message_text import text_of
from alpasift.graders.api.model_families import Family
from alpasift.graders.api.server_text import MAX_NAME, MAX_TEXT, safe_answer, safe_name, safe_text, safe_value
from alpasift.graders.api.tokens import one_token

TOP_LOGPROBS = 20
"""How many candidates of the first token are asked for: the most that the API gives."""
MAX_CANDIDATES = 100
"""How many candidates of the first token are looked at: a server of one's own may give more than asked for."""
MAX_LOGPROB = 1e6
"""How far below 0 a log-probability is believed."""
BODY = "1"
"""Version of how a request's body is laid out; part of the grader's identity."""
_OTHERS = ("structured_outputs",)
"""Parts of a body that are no part of OpenAI's own API."""


# -- the request ------------------------------------------------------------------------------------------------


def cannot(request: Request, model: str, host: str, family: Family) -> str | None:
    """Why a model cannot answer a request made like this one, None when it can.

    Whole choices have no probability at an API: each has to be one token, which only a known vocabulary can show.
    """
    if request.judged_from_row:
        return only_by(request)
    if request.json_schema is not None and not family.structured and not family.regex:
        return f"{model} at {host} does not support JSON schemas; for a server that does: --constrain json"
    if not request.want_logprobs:
        return None
    if not family.logprobs:
        return f"{model} at {host} gives no log-probabilities"
    if request.explain != "no":
        return "an API gives the probabilities of its first token only, and here the reasons come first"
    if family.regex:
        return None  # one's own server; an answer whose probabilities do not reach the choices has no expected score
    long = [choice for choice in request.choices or () if not one_token(choice, model, host)]
    if long:
        return (
            f"an API gives the probabilities of its first token only, and the answer {long[0]!r} is not known to be "
            f"one token of {model}; use a rubric with one-token labels (labels = A, B, C ...)"
        )
    return None


def _bare(request: Request) -> bool:
    """Whether the answer is a choice alone, and no more is wanted of it than the choice."""
    return bool(request.choices) and request.explain == "no" and not request.want_logprobs


def output_cap(request: Request, family: Family) -> int:
    """The most tokens that a request allows its answer: a ceiling of its cost."""
    structured = 24 if family.structured and _bare(request) else 0
    return max(request.max_tokens, structured) + family.thinking


def expected_output(request: Request, family: Family) -> int:
    """The tokens that an answer should take: what its task expects and its end, inside JSON four more.

    Where its task expects nothing: half of what it may take.
    """
    if request.expected_output_tokens is not None:
        around = 5 if family.structured and _bare(request) else 1
        return request.expected_output_tokens + around + family.expected_thinking
    return max(1, request.max_tokens // 2) + family.expected_thinking


def body_of(request: Request, model: str, family: Family) -> dict[str, Any]:
    """The body of a chat completion. The same bytes go by batch and synchronously."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": role, "content": text} for role, text in request.messages],
        family.cap: output_cap(request, family),
    }
    if family.temperature:
        body["temperature"] = request.temperature
    if family.effort is not None:
        body["reasoning_effort"] = family.effort
    if request.want_logprobs:
        body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
    if request.json_schema is not None:
        if family.structured or family.regex:
            body["response_format"] = _format(dict(request.json_schema))
    elif request.choices and family.regex and request.explain != "before":
        body["structured_outputs"] = {"regex": answer_regex(request.choices)}
        if request.explain == "no":
            body["stop"] = ["\n"]
    elif family.structured and _bare(request):
        body["response_format"] = _choice_format(request.choice_key, request.choices or ())
    return body


def call_arguments(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body as the client takes it: what is no part of OpenAI's own API goes beside it."""
    own = {key: value for key, value in body.items() if key not in _OTHERS}
    others = {key: value for key, value in body.items() if key in _OTHERS}
    return {**own, "extra_body": others} if others else own


def answer_regex(choices: tuple[str, ...]) -> str:
    """What an answer to choices may be: one of them, then perhaps a new line and anything.

    The same whether reasons are wanted or not, so that they cannot move the choice.
    """
    return "(" + "|".join(re.escape(choice) for choice in choices) + r")(\n[\s\S]*)?"


def choice_schema(key: str, choices: tuple[str, ...]) -> dict[str, Any]:
    """The schema of {key: one of the choices}, as strict structured output wants it."""
    numeric = all(re.fullmatch(r"-?\d+(?:\.\d+)?", c) for c in choices)
    answers: list[Any] = [float(c) if "." in c else int(c) for c in choices] if numeric else list(choices)
    choice = {"type": "number" if numeric else "string", "enum": answers}
    return {"type": "object", "properties": {key: choice}, "required": [key], "additionalProperties": False}


@lru_cache(maxsize=32)
def _choice_format(key: str, choices: tuple[str, ...]) -> dict[str, Any]:
    """The response format of a bare choice. Shared by all bodies of a run: not to be changed."""
    return _format(choice_schema(key, choices))


def _format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "grade", "strict": True, "schema": schema}}


# -- the answer -------------------------------------------------------------------------------------------------


def answer_object(content: bytes) -> dict[str, Any] | None:
    """The JSON object of an answer, None for anything else. Lone surrogates, at which strict readers stop, pass."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def reply_of(attempt: str, key: str, request_id: object, body: Any) -> Reply:
    """The reply that a chat completion's body holds. A body that holds neither an answer nor a usage is an
    unknown outcome, with the server's own error where it names one. What an answer without a usage cost is not known.

    Whatever a server sends, this raises nothing: each field is taken in the type and size that it should have, and what
    has another is left out.
    """
    identity = safe_name(request_id if isinstance(request_id, str) else str(request_id)) or attempt
    try:
        return _reply_of(attempt, key, identity, body)
    except Exception as error:  # noqa: BLE001  one odd body must not keep those beside it from being read
        why = f"no_answer: the body cannot be read ({type(error).__name__})"
        return Reply(attempt, key, identity, "unknown", error=why, raw=_raw(body))


def _reply_of(attempt: str, key: str, request_id: str, body: Any) -> Reply:
    whole = body if isinstance(body, dict) else {}
    usage, choices = whole.get("usage"), whole.get("choices")
    usage = usage if isinstance(usage, dict) else None
    given = [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
    first = next((choice for choice in given if choice.get("index") == 0), given[0] if given else {})
    message = first.get("message")
    if usage is None and not isinstance(message, dict):
        return Reply(attempt, key, request_id, "unknown", error=_why_no_answer(whole), raw=_raw(body))
    message = message if isinstance(message, dict) else {}
    text, refused = text_of(message)
    finish = "content_filter" if refused else safe_name(first.get("finish_reason"))
    if text is not None and len(text) > MAX_TEXT:
        finish = "length"  # what is kept of it ends where the answer did not
    return Reply(
        attempt,
        key,
        request_id,
        "answered",
        None if text is None else safe_answer(text),
        finish,
        safe_name(whole.get("model")),
        None if usage is None else safe_value(usage),
        _first_token(first.get("logprobs")),
    )


def _why_no_answer(body: Mapping[str, Any]) -> str:
    """What the server says of it: its error's code and text."""
    code, message = error_of({"error": body["error"]}) if body.get("error") else ("", "")
    said = safe_text(f"{code} {message}".strip(), MAX_NAME)
    return f"no_answer: {said}" if said else "no_answer: neither an answer nor usage"


def _first_token(logprobs: Any) -> dict[str, float] | None:
    """The log-probabilities of what the first token might have been, as far as the server gives them."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    first = content[0] if isinstance(content, list) and content and isinstance(content[0], dict) else {}
    candidates = first.get("top_logprobs")
    found: dict[str, float] = {}
    for one in candidates[:MAX_CANDIDATES] if isinstance(candidates, list) else []:
        token, value = (one.get("token"), one.get("logprob")) if isinstance(one, dict) else (None, None)
        if not isinstance(token, str) or not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if -MAX_LOGPROB <= value <= 0.01:
            found.setdefault(safe_text(token, MAX_NAME), float(value))
    return found or None


def _raw(body: Any) -> str | None:
    return None if body is None else safe_text(str(body)[:5000], 2000)
