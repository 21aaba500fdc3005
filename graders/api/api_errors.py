"""What an error of the API means: for the person, for the row it refused, for what may have been carried out."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from alpasift.graders import BackendError, BackendUnavailable
from alpasift.graders.api.connection import host_of
from alpasift.graders.api.keys import clean
from alpasift.graders.api.server_text import safe_text

OUT_OF_MONEY = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_funds")
"""Error codes of an account that has no money left."""


def error_of(body: Any) -> tuple[str, str]:
    """(code, message) of an error body in any form in which it comes, as they may be shown; both may be empty."""
    if isinstance(body, Mapping):
        inner = body.get("error", body)
        if isinstance(inner, Mapping):
            code = inner.get("code") or inner.get("type") or ""
            return clean(str(code))[:100], safe_text(str(inner.get("message") or ""), 2000)
        if isinstance(inner, str):
            return "", safe_text(inner, 2000)
    return "", "" if body is None else safe_text(str(body), 300)


def refusal_of(status: int, code: str, message: str) -> str:
    """Why a request was refused at no cost: too_long, refused, rate_limited, server_error or rejected, and details."""
    text = clean(f"{status} {code} {message}".strip())
    if "context_length" in code or "string_above_max_length" in code or "maximum context length" in message:
        return f"too_long: {text}"
    if "content_policy" in code or "content_filter" in code or "invalid_prompt" in code:
        return f"refused: {text}"
    if status == 429 or "rate_limit" in code:
        return f"rate_limited: {text}"
    if status >= 500 or status in (408, 409):
        return f"server_error: {text}"
    return f"rejected: {text}"


def explain(error: Exception, base_url: str) -> BackendError:
    """An error of the client as one line that says what to do."""
    import openai

    host = host_of(base_url)
    if isinstance(error, openai.APIStatusError):
        code, message = error_of(error.body)
        text = clean(message or str(error))
        if error.status_code == 401:
            return BackendUnavailable(f"{host} does not accept the key (401: {text}); check OPENAI_API_KEY")
        if error.status_code == 403:
            return BackendUnavailable(
                f"{host} denies access (403: {text}); the key may not be allowed to use this model or project"
            )
        if code in OUT_OF_MONEY or error.status_code == 402:
            return BackendError(
                f"{host} says the account has no money left ({code or error.status_code}: {text}); add credit there, "
                "then run again"
            )
        if error.status_code == 404 and ("model" in code or "model" in message):
            return BackendUnavailable(f"{host} has no such model for this key ({text}); check the name")
        return BackendError(f"{host} answered {error.status_code} {code}: {text}")
    if isinstance(error, openai.APITimeoutError):
        return BackendError(f"{host} did not answer in time; run again, nothing that was sent is lost")
    if isinstance(error, openai.APIConnectionError):
        cause = clean(str(error.__cause__ or error))
        return BackendUnavailable(f"{host} cannot be reached ({cause}); check the network and --base-url")
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
