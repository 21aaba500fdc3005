"""What the model of the server says: a score for each question, in the form that was asked for.

Knows bodies of chat completions, and what each family of models refuses; nothing of files, batches or money. The score
is what the marker finds in the last message of the user, else a number made from it.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from alpasift.graders.rehearsal.messages import Refused, missing, unsupported
from alpasift.graders.rehearsal.models import Family

REASONING = 64
"""Hidden tokens of an answer by a model that thinks."""
CACHE_FROM = 1024
"""Tokens from which on the beginning of a prompt is cached."""
_PIECES = re.compile(r"\d+|[^\W\d]+|[^\w\s]+|\s+")


@dataclass(slots=True, eq=False)
class CannedAnswer:
    """One answer: all of it but what the prompt cost. `choices` is JSON."""

    choices: orjson.Fragment
    completion: int
    hidden: int


@dataclass(slots=True, eq=False)
class AnswerForm:
    """What a request asks for besides its messages, and the answers there were to that so far."""

    refused: Refused | None
    hidden: int
    cap: int | None
    copies: int
    top: int | None
    wanted: Any
    answers: dict[tuple[str, int], CannedAnswer] = field(default_factory=dict)


class FakeModel:
    """Answers questions. Remembers its answers: the lines of a batch are much alike.

    `marker` is a pattern with one group, the score. Raises ValueError for one without.
    """

    def __init__(self, marker: str | None) -> None:
        self._marker = re.compile(marker) if marker else None
        if self._marker is not None and self._marker.groups < 1:
            raise ValueError(f"the marker {marker!r} has no group; write the score in parentheses")
        self._forms: dict[bytes, AnswerForm] = {}
        self._prefixes: set[str] = set()
        self._counted: dict[str, tuple[int, str]] = {}

    def ask(self, body: dict[str, Any], base: str, family: Family) -> tuple[CannedAnswer | Refused, int, str]:
        """The answer to a request or why there is none, its prompt tokens, and the name of a prefix to be cached.

        Takes the messages out of the body. A prompt counts three for each message and one for each word: never more
        than a real tokenizer.
        """
        messages = body.pop("messages", None)
        name = orjson.dumps(body)
        form = self._forms.get(name)
        if form is None:
            if len(self._forms) >= 64:
                self._forms.clear()
            form = self._forms[name] = _form_of(body, family)
        if form.refused is not None:
            return form.refused, 0, ""
        if not isinstance(messages, list) or not messages:
            return missing("messages"), 0, ""
        tokens, prefix, question, text = 0, "", None, ""
        for i, message in enumerate(messages):
            role = message.get("role") if isinstance(message, dict) else None
            if not isinstance(role, str):
                return Refused(400, f"Invalid type for 'messages[{i}]'.", "invalid_type", f"messages[{i}]"), 0, ""
            content = message.get("content")
            text = content if isinstance(content, str) else _joined(content)
            if i == 0 and len(text) > 200:  # the judge's prompt is the same in every line
                count, prefix = self._fixed(text, base, family)
            else:
                count = words_in(text)
            tokens += 3 + count
            if role == "user":
                question = text
        if tokens > family.context:
            return _too_long(tokens, family), 0, ""
        question = text if question is None else question
        seed = zlib.crc32(question.encode("utf-8", "surrogatepass")) % 11
        score = f"{seed / 2:g}"
        if self._marker is not None and (match := self._marker.search(question)):
            score = match[1].strip()
        answer = form.answers.get((score, seed))
        if answer is None:
            if len(form.answers) >= 1000:
                form.answers.clear()
            answer = form.answers[score, seed] = _answer_of(form, score, seed)
        return answer, tokens, prefix

    def _fixed(self, text: str, base: str, family: Family) -> tuple[int, str]:
        """The words of a prompt's first message, and the name of the prefix that it is, where the family caches it."""
        found = self._counted.get(text)
        if found is None:
            if len(self._counted) >= 64:
                self._counted.clear()
            digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
            found = self._counted[text] = (words_in(text), digest)
        count, digest = found
        return (
            count,
            f"{base} {count + 3 - (count + 3) % 128} {digest}" if family.caches and count + 3 >= CACHE_FROM else "",
        )

    def cache(self, prefix: str, family: Family) -> tuple[int, int]:
        """Cached and written tokens of a prompt: a long prefix is written once and read from then on."""
        if not prefix:
            return 0, 0
        tokens = int(prefix.split(" ")[1])
        if prefix in self._prefixes:
            return tokens, 0
        if len(self._prefixes) >= 10_000:
            self._prefixes.clear()
        self._prefixes.add(prefix)
        return 0, tokens if family.writes else 0


def completion_of(identity: str, created: int, snapshot: str, answer: CannedAnswer, usage: Any) -> dict[str, Any]:
    return {
        "id": identity,
        "object": "chat.completion",
        "created": created,
        "model": snapshot,
        "choices": answer.choices,
        "usage": usage,
        "service_tier": "default",
        "system_fingerprint": None,
    }


def _too_long(tokens: int, family: Family) -> Refused:
    return Refused(
        400,
        f"This model's maximum context length is {family.context} tokens. However, your messages resulted in {tokens} "
        "tokens. Please reduce the length of the messages.",
        "context_length_exceeded",
        "messages",
    )


def _joined(parts: Any) -> str:
    """The text of a message that comes in parts."""
    if not isinstance(parts, list):
        return ""
    return "\n".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))


def words_in(text: str) -> int:
    """How many words a text has at least. Where no two blanks are neighbours its spaces are counted: much faster."""
    if text.isascii() and not (
        "  " in text or "\n " in text or " \n" in text or "\t" in text or "\r" in text or "\v" in text or "\f" in text
    ):
        words = text.count(" ") + 1 - text.startswith(" ") - text.endswith(" ")
    else:
        words = len(text.split())
    return min(words, len(text) // 2)


def _form_of(body: Mapping[str, Any], family: Family) -> AnswerForm:
    """What a request asks for besides its messages."""
    refused = _rules(body, family)
    if refused is not None:
        return AnswerForm(refused, 0, None, 1, None, None)
    thinks = bool(family.efforts) and (body.get("reasoning_effort") or family.effort) not in ("none", "minimal")
    top = (body.get("top_logprobs") or 0) if body.get("logprobs") else None
    cap = body.get("max_completion_tokens") or body.get("max_tokens")
    return AnswerForm(None, REASONING if thinks else 0, cap, body.get("n") or 1, top, body.get("response_format"))


def _rules(body: Mapping[str, Any], family: Family) -> Refused | None:
    """Why the models of a family do not take a request; None when they do."""
    if body.get("stream"):
        return unsupported("Unsupported value: 'stream' cannot be true here.", "stream", value=True)
    thinks, effort = bool(family.efforts), body.get("reasoning_effort")
    if effort is not None and not thinks:
        return Refused(400, "Unrecognized request argument supplied: reasoning_effort")
    if effort is not None and effort not in family.efforts:
        values = ", ".join(f"'{e}'" for e in family.efforts)
        message = f"'reasoning_effort' does not support '{effort}' with this model. Supported values are: {values}."
        return unsupported(f"Unsupported value: {message}", "reasoning_effort", value=True)
    if thinks and body.get("max_tokens") is not None:
        message = "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        return unsupported(f"Unsupported parameter: {message}", "max_tokens")
    if thinks and (effort or family.effort) != "none":
        for name in ("temperature", "top_p"):
            if body.get(name) not in (None, 1):
                message = (
                    f"'{name}' does not support {body[name]} with this model. Only the default (1) value is supported."
                )
                return unsupported(f"Unsupported value: {message}", name, value=True)
        for name in ("logprobs", "top_logprobs"):
            if body.get(name):
                return unsupported(f"Unsupported parameter: '{name}' is not supported with this model.", name)
    for name in ("max_tokens", "max_completion_tokens", "n"):
        number = body.get(name)
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            return Refused(400, f"Invalid '{name}': expected a whole number of 1 or more.", "invalid_value", name)
    top = body.get("top_logprobs")
    if top is not None and (not body.get("logprobs") or not isinstance(top, int) or not 0 <= top <= 20):
        return Refused(400, "Invalid 'top_logprobs': 0 to 20, with 'logprobs'.", "invalid_value", "top_logprobs")
    return None


def _answer_of(form: AnswerForm, score: str, seed: int) -> CannedAnswer:
    """The answer of that score in the form that was asked for, cut where its cap is reached."""
    text, finish, hidden = _fill(form.wanted, score, seed), "stop", form.hidden
    pieces = _PIECES.findall(text)
    if form.cap is not None and hidden + len(pieces) > form.cap:
        hidden, finish = min(hidden, form.cap), "length"
        pieces = pieces[: form.cap - hidden]
        text = "".join(pieces)
    choices: list[dict[str, Any]] = [
        {
            "index": i,
            "message": {"role": "assistant", "content": text, "refusal": None, "annotations": []},
            "logprobs": None if form.top is None else _logprobs(pieces, form.top),
            "finish_reason": finish,
        }
        for i in range(form.copies)
    ]
    completion = (hidden + len(pieces)) * form.copies
    return CannedAnswer(orjson.Fragment(orjson.dumps(choices)), completion, hidden * form.copies)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _fill(wanted: Any, score: str, seed: int) -> str:
    """The answer: the score in plain text, or in the JSON object that was asked for."""
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "json_schema":
        schema = (wanted.get("json_schema") or {}).get("schema") or {}
        properties = schema.get("properties") or {}
        filled = {name: _value(name, rule, score, seed) for name, rule in properties.items()}
        return orjson.dumps(filled).decode()
    if kind == "json_object":
        return orjson.dumps({"score": _value("score", {"type": "number"}, score, seed)}).decode()
    return score


def _value(name: str, rule: Any, score: str, seed: int) -> Any:
    """A value that a rule of a flat schema allows; the score where one of its choices is the score."""
    rule = rule if isinstance(rule, dict) else {}
    choices, kind = rule.get("enum"), rule.get("type")
    kind = next((k for k in kind if k != "null"), None) if isinstance(kind, list) else kind
    number = _number(score)
    if isinstance(choices, list) and choices:
        for choice in choices:
            if isinstance(choice, bool):
                continue
            if choice == score or (number is not None and _number(str(choice)) == number):
                return choice
        return choices[seed % len(choices)]
    if name == "score" and kind == "string":
        return score
    if kind in ("number", "integer"):
        number = number if name == "score" and number is not None else 1.0
        return round(number) if kind == "integer" or number == int(number) else number
    return {"string": "because", "boolean": True, "array": [], "object": {}}.get(str(kind))


def _logprobs(pieces: Sequence[str], top: int) -> dict[str, Any]:
    """Probabilities of the pieces of a text: its own first, then digits, less and less likely."""
    rows = []
    for piece in pieces:
        others = [piece, *(d for d in "5432109876" if d != piece)]
        alternatives = [
            {"token": token, "logprob": -0.1 - 2.0 * rank, "bytes": list(token.encode())}
            for rank, token in enumerate(others[:top])
        ]
        rows.append({"token": piece, "logprob": -0.1, "bytes": list(piece.encode()), "top_logprobs": alternatives})
    return {"content": rows, "refusal": None}
