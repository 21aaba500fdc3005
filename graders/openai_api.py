"""What every OpenAI-compatible grader shares: the key, the client, the body of a request, and how an answer is read.

Knows the wire and the families of models; nothing of money, ledgers or batches. Two rules hold everywhere: no POST is
ever repeated by the client (its two default retries have no idempotency key, and each could be paid for), and the key
goes over https or to this machine only. Which parameters a family takes is the table of OpenAI's reference and of the
reports about it: a parameter that a model refuses costs the whole batch, line by line.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from graders import BackendError, BackendUnavailable, Reply, Request
from graders.offline import check_server, why_not_reach
from graders.tokens import one_token

if TYPE_CHECKING:
    import openai

DEFAULT_BASE_URL = "https://api.openai.com/v1"
TOP_LOGPROBS = 20
"""How many candidates of the first token are asked for: the most that the API tells."""
BODY = "1"
"""Version of how a request's body is laid out; part of the grader's identity."""

_NAME = re.compile(r"[A-Za-z0-9._:/@-]{1,128}")


@dataclass(frozen=True, slots=True)
class Family:
    """What the models of one family take.

    cap          the name of the output limit; `thinking` tokens are added to it, since hidden reasoning counts inside
    temperature  whether temperature may be set
    effort       the value of reasoning_effort, None where there is none
    structured   whether json_schema constrains the answer
    regex        whether the server is vLLM, which takes a regular expression for the answer: local graders then answer alike
    logprobs     whether the probabilities of the first token may be asked for
    """

    cap: str = "max_tokens"
    temperature: bool = True
    effort: str | None = None
    structured: bool = False
    thinking: int = 0
    regex: bool = False
    logprobs: bool = False

    @property
    def expected_thinking(self) -> int:
        """Hidden tokens to expect of one short question: a quarter of what is allowed for, for want of anything better."""
        return self.thinking // 4


_FAMILIES: tuple[tuple[str, Family], ...] = (
    (r"o1-mini|o1-preview", Family("max_completion_tokens", temperature=False, thinking=2048)),
    (r"o\d", Family("max_completion_tokens", temperature=False, effort="low", structured=True, thinking=2048)),
    (r"gpt-5\.[1-9]", Family("max_completion_tokens", effort="none", structured=True)),
    (r"gpt-5", Family("max_completion_tokens", temperature=False, effort="minimal", structured=True, thinking=1024)),
    (
        r"gpt-6-astra|gpt-6\.1-sol",
        Family("max_completion_tokens", temperature=False, effort="low", structured=True, thinking=2048),
    ),
    (r"gpt-6", Family("max_completion_tokens", temperature=False, effort="none", structured=True)),
    (r"gpt-4\.1|gpt-4o", Family(structured=True, logprobs=True)),
)


def family_of(model: str, host: str) -> Family:
    """The family of a model. Only OpenAI's own names say anything; any other server gets the plainest body there is."""
    if not is_openai(host) and not is_loopback(host):
        return Family()
    for pattern, family in _FAMILIES:
        if re.match(pattern, model):
            return family
    return Family()


CONSTRAIN = ("auto", "none", "json", "vllm")
"""What --constrain takes: how a server is asked to hold its answer to the choices."""


def constrained(family: Family, how: str) -> Family:
    """A family with its means of constraining set by hand, for a server of one's own. Raises BackendError."""
    if how not in CONSTRAIN:
        raise BackendError(f"--constrain {how}: {', '.join(CONSTRAIN)}")
    if how == "auto":
        return family
    return replace(family, structured=how == "json", regex=how == "vllm", logprobs=family.logprobs or how == "vllm")


def is_openai(host: str) -> bool:
    return host == "api.openai.com" or host.endswith(".api.openai.com")


def is_loopback(host: str) -> bool:
    """Whether a host name is this machine without asking a name server."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


# -- the server and the key -------------------------------------------------------------------------------------


def base_url_of(given: str | None) -> str:
    """The server's address: as given, else OPENAI_BASE_URL, else OpenAI's. Raises BackendError for one that is unsafe.

    Raises BackendUnavailable for another machine's under --offline, where this process means to send.
    """
    url = (given or os.environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL).strip().rstrip("/")
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not host:
        raise BackendError(f"{url!r} is no address of a server; write https://HOST/v1 (--base-url, OPENAI_BASE_URL)")
    if parts.username or parts.password:
        raise BackendError("the server's address holds a user or a password; keys come from OPENAI_API_KEY only")
    if parts.scheme == "http" and not is_loopback(host):
        raise BackendError(
            f"{url} is not encrypted and is not this machine: the key and the rows would be readable on the way. Use https"
        )
    refused = check_server(host)
    if refused:
        raise BackendUnavailable(refused)
    return url


def host_of(base_url: str) -> str:
    return urlsplit(base_url).hostname or ""


def check_model(model: str | None, name: str) -> str:
    """The model's name. Raises BackendError where there is none."""
    if not model or not _NAME.fullmatch(model):
        raise BackendError(f"{model!r} names no model; write {name}:MODEL, {name}:gpt-4.1-nano for instance")
    return model


def api_key() -> str | None:
    """The key from OPENAI_API_KEY, else from the file that OPENAI_API_KEY_FILE names, which only its owner may read."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if key:
        return key
    named = os.environ.get("OPENAI_API_KEY_FILE")
    if not named:
        return None
    path = Path(named)
    try:
        mode = path.stat().st_mode
        text = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BackendUnavailable(f"the key file {path} cannot be read: {getattr(error, 'strerror', error)}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise BackendUnavailable(f"others can read the key file {path}; `chmod 600 {path}` and run again")
    return text or None


def lacks() -> str | None:
    """What is missing here to ask OpenAI, None when nothing is."""
    refused = why_not_reach(host_of(os.environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL))
    if refused:
        return refused
    try:
        return None if api_key() else "no key; set OPENAI_API_KEY, or OPENAI_API_KEY_FILE to a file of mode 600"
    except BackendUnavailable as error:
        return str(error)


def connect(base_url: str, *, timeout: float, on_date: Callable[[str], None] | None = None) -> openai.OpenAI:
    """A client that never repeats a request and follows no redirection.

    Raises BackendUnavailable without a key, and for a server on another machine under --offline.
    `on_date` is told the Date header of every answer: the server's clock. Idle connections are given up after three
    seconds, before the usual server gives them up: a request sent into a connection that closes is an unclear one.
    """
    refused = why_not_reach(host_of(base_url))
    if refused:
        raise BackendUnavailable(refused)
    key = api_key()
    if key is None:
        if not is_loopback(host_of(base_url)):
            raise BackendUnavailable("no key; set OPENAI_API_KEY, or OPENAI_API_KEY_FILE to a file of mode 600")
        key = "none"  # a server of one's own may want none
    if not key.isascii() or not key.isprintable() or " " in key:
        raise BackendUnavailable("the key holds characters that no key has; look at OPENAI_API_KEY")
    import httpx2
    import openai

    def saw(response: Any) -> None:
        if on_date is not None and "date" in response.headers:
            on_date(response.headers["date"])

    limits = httpx2.Limits(max_connections=1000, max_keepalive_connections=512, keepalive_expiry=3.0)
    http = openai.DefaultHttpxClient(follow_redirects=False, event_hooks={"response": [saw]}, limits=limits)
    patience = httpx2.Timeout(timeout, connect=min(timeout, 10.0))
    return openai.OpenAI(api_key=key, base_url=base_url, max_retries=0, timeout=patience, http_client=http)


def clean(text: str) -> str:
    """A server's text for a message: one line, no key in it, at most 300 characters."""
    text = " ".join(_without_key(text).split())
    return text if len(text) <= 300 else text[:299] + "\N{HORIZONTAL ELLIPSIS}"


def _without_key(text: str) -> str:
    key = api_key()
    if key and len(key) > 3:
        text = text.replace(key, "[key]")
    return re.sub(r"\b(?:sk|sess)-[A-Za-z0-9_*-]{6,}", "[key]", text)


# -- the request ------------------------------------------------------------------------------------------------


def _bare(request: Request) -> bool:
    """Whether the answer is a choice alone, and no more is wanted of it than the choice."""
    return bool(request.choices) and request.explain == "no" and not request.want_logprobs


def cannot(request: Request, model: str, host: str, family: Family) -> str | None:
    """Why a model cannot answer a request made like this one, None when it can. Whole choices have no probability at an
    API: each has to be one token, which only a known vocabulary can tell."""
    if request.json_schema is not None and not family.structured and not family.regex:
        return f"{model} at {host} takes no JSON schema; for a server that does: --constrain json"
    if not request.want_logprobs:
        return None
    if not family.logprobs:
        return f"{model} at {host} gives no log-probabilities"
    if request.explain != "no":
        return "an API tells the probabilities of its first token only, and here the reasons come first"
    if family.regex:
        return None  # the server is one's own; an answer whose probabilities do not reach the choices has no expected score
    long = [choice for choice in request.choices or () if not one_token(choice, model, host)]
    if long:
        return (
            f"an API tells the probabilities of its first token only, and the answer {long[0]!r} is not known to be one token "
            f"of {model}; take a rubric with one-token labels (labels = A, B, C ...)"
        )
    return None


def output_cap(request: Request, family: Family) -> int:
    """The most tokens that a request allows its answer: a ceiling of its cost."""
    structured = 24 if family.structured and _bare(request) else 0
    return max(request.max_tokens, structured) + family.thinking


def expected_output(request: Request, family: Family) -> int:
    """The tokens that an answer should take: a bare score is two or three, one in JSON seven."""
    if request.choices and request.explain == "no":
        return (7 if family.structured and _bare(request) else 3) + family.expected_thinking
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
        body["response_format"] = _format(score_schema(request.choices or ()))
    return body


def call_arguments(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body as the client takes it: what is no part of OpenAI's own API goes beside it."""
    own = {key: value for key, value in body.items() if key not in _OTHERS}
    others = {key: value for key, value in body.items() if key in _OTHERS}
    return {**own, "extra_body": others} if others else own


_OTHERS = ("structured_outputs",)


def answer_regex(choices: tuple[str, ...]) -> str:
    """What an answer to choices may be: one of them, then perhaps a new line and anything. The same whether reasons are
    wanted or not, so that they cannot move the choice."""
    return "(" + "|".join(re.escape(choice) for choice in choices) + r")(\n[\s\S]*)?"


def score_schema(choices: tuple[str, ...]) -> dict[str, Any]:
    """The schema of {"score": one of the choices}, as strict structured output wants it."""
    numeric = all(re.fullmatch(r"-?\d+(?:\.\d+)?", c) for c in choices)
    answers: list[Any] = [float(c) if "." in c else int(c) for c in choices] if numeric else list(choices)
    score = {"type": "number" if numeric else "string", "enum": answers}
    return {"type": "object", "properties": {"score": score}, "required": ["score"], "additionalProperties": False}


def _format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "grade", "strict": True, "schema": schema}}


# -- the answer -------------------------------------------------------------------------------------------------


def reply_of(attempt: str, key: str, request_id: str, body: Any) -> Reply:
    """The reply that a chat completion's body holds. A body that is none, or has no usage, is an unknown outcome."""
    if not isinstance(body, Mapping) or not isinstance(body.get("usage"), Mapping):
        return Reply(attempt, key, request_id, "unknown", error="no_usage: the answer names no usage", raw=_raw(body))
    model = body.get("model")
    choices = body.get("choices")
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], Mapping) else {}
    message = first.get("message")
    message = message if isinstance(message, Mapping) else {}
    text, refusal = message.get("content"), message.get("refusal")
    finish = first.get("finish_reason")
    finish = finish if isinstance(finish, str) else None
    if not isinstance(text, str):
        text, finish = (refusal, "content_filter") if isinstance(refusal, str) else (None, finish)
    return Reply(
        attempt, key, request_id, "answered", text, finish, model if isinstance(model, str) else None, body["usage"],
        _first_token(first.get("logprobs")),
    )  # fmt: skip


def _first_token(logprobs: Any) -> dict[str, float] | None:
    """The log-probabilities of what the first token might have been, as far as the server tells them."""
    content = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    first = content[0] if isinstance(content, list) and content and isinstance(content[0], Mapping) else {}
    found: dict[str, float] = {}
    for one in first.get("top_logprobs") or []:
        token, value = (one.get("token"), one.get("logprob")) if isinstance(one, Mapping) else (None, None)
        if isinstance(token, str) and isinstance(value, int | float) and not isinstance(value, bool) and value <= 0.01:
            found.setdefault(token, float(value))
    return found or None


def _raw(body: Any) -> str | None:
    return None if body is None else _without_key(str(body))[:2000]


def refusal_of(status: int, code: str, message: str) -> str:
    """The reason of a request that was refused at no cost: too_long, refused, rate_limited, server_error or rejected."""
    said = clean(f"{status} {code} {message}".strip())
    if "context_length" in code or "string_above_max_length" in code or "maximum context length" in message:
        return f"too_long: {said}"
    if "content_policy" in code or "content_filter" in code or "invalid_prompt" in code:
        return f"refused: {said}"
    if status == 429 or "rate_limit" in code:
        return f"rate_limited: {said}"
    if status >= 500 or status in (408, 409):
        return f"server_error: {said}"
    return f"rejected: {said}"


def error_of(body: Any) -> tuple[str, str]:
    """(code, message) of an error body in any of the shapes in which it comes; both may be empty."""
    if isinstance(body, Mapping):
        inner = body.get("error", body)
        if isinstance(inner, Mapping):
            code = inner.get("code") or inner.get("type") or ""
            return str(code), str(inner.get("message") or "")
        if isinstance(inner, str):
            return "", inner
    return "", "" if body is None else str(body)[:300]


OUT_OF_MONEY = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_funds")


def explain(error: Exception, base_url: str) -> BackendError:
    """An error of the client as one line that says what to do."""
    import openai

    host = host_of(base_url)
    if isinstance(error, openai.APIStatusError):
        code, message = error_of(error.body)
        said = clean(message or str(error))
        if error.status_code == 401:
            return BackendUnavailable(f"{host} does not accept the key (401: {said}); look at OPENAI_API_KEY")
        if error.status_code == 403:
            return BackendUnavailable(f"{host} refuses (403: {said}); the key may not use this model or project")
        if code in OUT_OF_MONEY:
            return BackendError(
                f"{host} says the account has no money left ({code}: {said}); add credit there, then run again"
            )
        if error.status_code == 404 and ("model" in code or "model" in message):
            return BackendUnavailable(f"{host} has no such model for this key ({said}); look at the name")
        return BackendError(f"{host} answered {error.status_code} {code}: {said}")
    if isinstance(error, openai.APITimeoutError):
        return BackendError(f"{host} did not answer in time; run again, nothing that was sent is lost")
    if isinstance(error, openai.APIConnectionError):
        cause = clean(str(error.__cause__ or error))
        return BackendUnavailable(f"{host} cannot be reached ({cause}); look at the network and at --base-url")
    return BackendError(f"{host}: {clean(f'{type(error).__name__}: {error}')}")


def is_ambiguous(error: Exception) -> bool:
    """Whether a POST that failed like this may have been carried out all the same."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return error.status_code in (408, 409) or error.status_code >= 500
    return True


def never_sent(error: Exception) -> bool:
    """Whether a request failed before a byte of it left: no connection was made, or none was free."""
    import httpx2

    return isinstance(error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)


def retry_after(error: Exception, default: float) -> float:
    """Seconds that a 429 or 503 asks to wait, in seconds or as a date; at most ten minutes."""
    response = getattr(error, "response", None)
    text = response.headers.get("retry-after", "") if response is not None else ""
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return default
    return default if math.isnan(seconds) else min(max(seconds, 0.0), 600.0)
