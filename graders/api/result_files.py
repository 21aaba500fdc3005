"""The result files of a batch, line by line, as the API really gives them back.

Knows JSON lines; nothing of networks, prices or ledgers. A result belongs to the question its custom_id names and to
nothing else: lines come in any order, two of them may share an id, and a body is no proof that a request was carried
out. What is not one clean answer is sorted out here, since each kind means something else for the money:

    an answer                       answered: it is charged by its usage, unresolved where it names none
    a refusal, or never executed    rejected_free: it cost nothing
    anything else                   unknown: it may have cost up to its ceiling

The vLLM program `vllm run-batch` writes the same lines.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from alpasift.graders import Reply
from alpasift.graders.api.api_errors import error_of, refusal_of
from alpasift.graders.api.keys import clean
from alpasift.graders.api.server_text import MAX_NAME, safe_text
from alpasift.graders.api.wire_format import reply_of

PIECE = 1000
"""Replies in one list."""


@dataclass(slots=True)
class ResultsFound:
    """What result files held so far: which questions were answered, and what was odd.

    asked     the questions of the attempt; a result for anything else is a stray
    executed  those that the provider says it carried out
    seen      for each question what came for it: (hash of the content, request id)
    """

    asked: Mapping[str, Any]
    executed: set[str] = field(default_factory=set)
    seen: dict[str, tuple[tuple[int, str], ...]] = field(default_factory=dict)
    broken: int = 0
    strays: int = 0
    duplicates: int = 0
    refusals: dict[str, int] = field(default_factory=dict)

    @property
    def answered(self) -> Collection[str]:
        """The questions with an outcome of any kind."""
        return self.seen.keys()

    def facts(self) -> dict[str, Any]:
        """The counts that are not zero, to be kept with the attempt."""
        counts = {"broken_lines": self.broken, "strays": self.strays, "duplicates": self.duplicates}
        worst = sorted(self.refusals.items(), key=lambda item: -item[1])[:3]
        return {k: v for k, v in counts.items() if v} | ({"refusals": dict(worst)} if worst else {})


def read_results(path: Path, attempt: str, found: ResultsFound) -> Iterator[list[Reply]]:
    """The replies in a result file, in lists; `found` is brought up to date. An unreadable line is only counted."""
    piece: list[Reply] = []
    with path.open("rb") as lines:
        for line in lines:
            if not line.strip():
                continue
            reply = _reply(line, attempt, found)
            if reply is None:
                continue
            piece.append(reply)
            if len(piece) == PIECE:
                yield piece
                piece = []
    if piece:
        yield piece


def _reply(line: bytes, attempt: str, found: ResultsFound) -> Reply | None:
    try:
        row = _parsed(line)
        custom_id = row["custom_id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        found.broken += 1
        return None
    if not isinstance(custom_id, str):
        found.broken += 1
        return None
    key = custom_id
    if key not in found.asked:
        found.strays += 1
        key = stray_key(custom_id)
    try:
        reply = _outcome(row, attempt, key)
    except Exception as error:  # noqa: BLE001  one odd line must not keep the others of its file from being read
        why = f"no_answer: the line cannot be read ({type(error).__name__})"
        reply = Reply(attempt, key, f"{attempt}-odd", "unknown", error=why)
    if reply.outcome == "rejected_free" and reply.error:
        reason = " ".join(reply.error.split(" ")[:3])
        found.refusals[reason] = found.refusals.get(reason, 0) + 1
    if reply.outcome != "rejected_free":
        found.executed.add(key)
    return _apart(reply, found)


def _parsed(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return json.loads(line)  # half of a surrogate pair is JSON to some, and such a line may be paid for


def stray_key(custom_id: str) -> str:
    """A key for a result that nobody asked for: its money is booked, and no question has it."""
    return str(_uuid(hashlib.sha256(b"stray\0" + custom_id.encode("utf-8", "backslashreplace")).hexdigest()))


def _uuid(hexadecimal: str) -> str:
    h = hexadecimal[:32]
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def _outcome(row: Mapping[str, Any], attempt: str, key: str) -> Reply:
    error, response = row.get("error"), row.get("response")
    identity = safe_text(str(row.get("id") or ""), MAX_NAME)
    if not isinstance(response, dict):
        code, message = error_of(error)
        if not code and not message:
            return Reply(attempt, key, identity, "unknown", error="no_answer: neither a response nor an error")
        if code == "batch_expired":
            return Reply(attempt, key, identity, "rejected_free", error=f"expired: {clean(message)}")
        if code == "batch_cancelled":
            return Reply(attempt, key, identity, "rejected_free", error=f"cancelled: {clean(message)}")
        return Reply(attempt, key, identity, "rejected_free", error=refusal_of(0, code, message))
    identity = safe_text(str(response.get("request_id") or identity), MAX_NAME)
    status, body = response.get("status_code"), response.get("body")
    if isinstance(body, str):  # some servers send the body as text
        try:
            body = json.loads(body)
        except (ValueError, RecursionError):
            body = {}
    if isinstance(status, bool) or not isinstance(status, int) or status < 200:
        return Reply(attempt, key, identity, "unknown", error=f"no_answer: status {clean(repr(status))}")
    if status >= 400:
        code, message = error_of(body)
        return Reply(attempt, key, identity, "rejected_free", error=refusal_of(status, code, message))
    if not isinstance(body, dict) or not body:
        return Reply(attempt, key, identity, "unknown", error=f"no_answer: status {status} with an empty body")
    return reply_of(attempt, key, identity, body)


def _content(reply: Reply) -> bytes:
    return orjson.dumps([reply.text, reply.usage, reply.error, reply.outcome])


def _apart(reply: Reply, found: ResultsFound) -> Reply | None:
    """The reply under an identity of its own; None for the same line once more.

    Two executions of one question are two charges, even where the server gave them one request id; the first counts
    as the answer. Names are made from the content, so that reading a file again gives the same ones.
    """
    mine = (hash(_content(reply)), reply.request_id)
    before = found.seen.get(reply.key, ())
    if not before:
        found.seen[reply.key] = (mine,)
        return reply
    found.duplicates += 1
    if mine in before:
        return None
    same_id = any(request_id == reply.request_id for _, request_id in before)
    found.seen[reply.key] = (*before, mine)
    name = json.dumps([reply.text, reply.usage, reply.error, reply.outcome]).encode()  # stored: always the same bytes
    twin = f"{reply.request_id}#{hashlib.sha256(name).hexdigest()[:12]}"
    return Reply(
        reply.attempt,
        reply.key,
        twin if same_id else reply.request_id,
        reply.outcome,
        None,
        reply.finish_reason,
        reply.model,
        reply.usage,
        None,
        "duplicate: another answer to the same question",
        reply.text,
    )
