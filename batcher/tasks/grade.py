"""Grade: ask a rubric's question about every row and read one score from the reply.

Knows the rubric, the layout of the question and how to read the answer; nothing of backends, money or tables.
Method: AlpaGasus (Chen et al. 2023, arXiv 2307.08701), section 2. One difference: where the backend can constrain its
answer, the reply is the score alone; the explanation, which comes after the score and so cannot move it, is not paid for.

What the answer holds is its contract:

    score     the score alone; it ends with its line
    explain   the paper's form: the score line, then the reasons. The same question, byte for byte. A rubric whose score
              comes last is asked for its reasons first (Humpback, arXiv 2308.06259), and ends with a line "Score: 4"
    json      an object with the keys score and explanation, in the rubric's order
    expected  the score, and the probability of every answer, from which the mean score is taken
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any

from batcher.store import hash_id
from graders import AlpaSiftError, Backend, BackendUnavailable, Example, Explain, Reply, Request
from graders.reading import Reading, expected_score, read_score
from graders.rubric import CONTRACTS, RENDERER, Rubric

SAMPLED_AT = 0.7
"""Temperature of repeated draws where none is named: that of Self-Rewarding (arXiv 2401.10020), which averages three."""
MOST_SAMPLES = 64

_JSON = "Write the answer as one JSON object with the keys {keys}, in this order, and nothing else."


class ContractError(AlpaSiftError):
    """A rubric cannot be asked in that contract, or not in that way."""


class Grade:
    """The task `grade` for one rubric in one contract, each row asked `samples` times. Raises ContractError.

    `temperature` None is 0 for one sample and SAMPLED_AT for more. How many samples there are is no part of a question's
    identity: with more of them, those that were answered stay.
    """

    name = "grade"

    def __init__(
        self, rubric: Rubric, contract: str | None = None, *, samples: int = 1, temperature: float | None = None
    ) -> None:
        self.rubric = rubric
        self.contract = contract or rubric.contract or ("score" if rubric.score == "first" else "explain")
        if self.contract not in CONTRACTS:
            raise ContractError(f"there is no contract {contract!r}; there are {', '.join(CONTRACTS)}")
        if rubric.score == "last" and self.contract == "score":
            raise ContractError(
                f"the rubric {rubric.name} gives its reasons before the score and cannot be asked for the score alone; "
                "take --contract explain, json or expected"
            )
        if not 1 <= samples <= MOST_SAMPLES:
            raise ContractError(f"--samples {samples}: 1 to {MOST_SAMPLES} answers a row")
        if temperature is not None and not 0 <= temperature <= 2:
            raise ContractError(f"--temperature {temperature}: 0 to 2")
        self.samples = samples
        self.temperature = temperature if temperature is not None else (SAMPLED_AT if samples > 1 else 0.0)
        free = rubric.gives_reason  # the grader `rules`: a line for the score and one for the reason
        self.choices = None if free or self.contract == "json" else rubric.answers
        reasons = self.contract in ("explain", "json") or rubric.score == "last"
        self.explain: Explain = "no"
        if reasons and not free and self.contract != "json":
            self.explain = "after" if rubric.score == "first" else "before"
        self.max_tokens = rubric.explain_tokens if reasons and not free else rubric.max_tokens
        self.schema = _schema(rubric) if self.contract == "json" else None
        keys = ", ".join(self.schema["required"]) if self.schema else ""
        self.closing = _JSON.format(keys=keys) if self.schema else ""
        self.decoding: dict[str, Any] = {
            "contract": self.contract,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature or 0,
            "renderer": RENDERER,
        }

    def request(self, example_id: str, example: Example, setup_id: str, sample: int) -> Request:
        """The question about one example. Its key hashes the setup (which covers the fixed text), example, row text, sample."""
        messages = self.rubric.messages(example, f"{self.rubric.name}:{example_id}", self.closing)
        asked = "[" + ", ".join(f"[{_quoted(role)}, {_quoted(text)}]" for role, text in messages[1:]) + "]"
        return Request(
            key=hash_id("question", setup_id, example_id, asked, str(sample)),
            messages=messages,
            example=example,
            rubric=self.rubric.name,
            max_tokens=self.max_tokens,
            temperature=float(self.temperature),
            choices=self.choices,
            json_schema=self.schema,
            want_logprobs=self.contract == "expected",
            sample=sample,
            explain=self.explain,
        )

    def read(self, reply: Reply) -> Reading:
        """The score of a reply, or the reason why there is none."""
        if reply.outcome == "answered":
            reading = read_score(reply.text, self.rubric, reply.finish_reason)
            expected = expected_score(reply.logprobs, self.rubric)
            return reading if expected is None else replace(reading, expected=expected)
        reason = (reply.error or "").partition(":")[0].strip()
        known = {"too_long", "refused"}
        return Reading(None, reason if reason in known else "backend_error", reply.error)

    def probe(self) -> Request:
        """A question made like all others about an empty row: what a backend is asked whether it can answer."""
        return self.request("", Example("", "", ""), "", 0)


def contract_for(
    rubric: Rubric, backend: Backend, contract: str | None = None, *, samples: int = 1, temperature: float | None = None
) -> Grade:
    """The task in the contract named, else in the cheapest one that the backend can answer.

    Raises BackendUnavailable when the backend cannot answer the contract named, or none, with its reason.
    """
    wanted: Sequence[str | None] = [contract or rubric.contract or None]
    if wanted == [None] and rubric.score == "first":
        wanted = ["score", "json", "explain"]
    why = ""
    for one in wanted:
        task = Grade(rubric, one, samples=samples, temperature=temperature)
        refusal = backend.cannot(task.probe())
        if refusal is None:
            return task
        why = why or f"{backend.name} cannot answer in the contract {task.contract}: {refusal}"
    raise BackendUnavailable(why)


def _schema(rubric: Rubric) -> dict[str, Any]:
    """The JSON schema of an answer: the score as one of the answers, the reasons beside it in the rubric's order."""
    answers: list[Any] = list(rubric.labels) or [float(c) if "." in c else int(c) for c in rubric.choices]
    score = {"type": "string" if rubric.labels else "number", "enum": answers}
    properties = {"score": score, "explanation": {"type": "string"}}
    if rubric.score == "last":
        properties = {"explanation": properties["explanation"], "score": score}
    return {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
    }  # fmt: skip
