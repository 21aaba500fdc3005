"""Grade: ask a rubric's question about every row and read one score from the reply.

Knows the rubric, the layout of the question and how to read the answer; nothing of backends, money or tables. Method:
AlpaGasus (Chen et al. 2023, arXiv 2307.08701), section 2. One difference: where the backend can constrain its answer,
the reply is the score alone; the explanation, which comes after the score and so cannot move it, is not paid for.

What an answer holds is its format:

    score           the score alone; it ends with its line
    explain         the paper's form: the score line, then the reasons. The same question, byte for byte. A rubric whose
                    score comes last asks for its reasons first (Humpback, arXiv 2308.06259), and a last line "Score: 4"
    json            an object with the keys score and explanation, in the rubric's order
    expected_score  the score, and the probability of every answer, from which the mean score is taken

Databases keep the format in `decoding` under the key "contract" and expected_score as "expected": both are hashed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any

from alpasift.batcher.engine.task import Identity, Item, Reading, Scale, Source
from alpasift.batcher.store import Store, hash_id
from alpasift.graders import AlpaSiftError, Backend, BackendUnavailable, Example, Explain, Reply, Request
from alpasift.graders.prompts.measured import NO_FIGURE, read_figure
from alpasift.graders.prompts.reading import READER, expected_score, read_score
from alpasift.graders.prompts.rubric import ANSWER_FORMATS, RENDERER, Rubric, answer_format_of, rubric_of, stored_format

SAMPLED_AT = 0.7
"""Temperature of repeated samples by default: that of Self-Rewarding (arXiv 2401.10020), for three samples."""
MOST_SAMPLES = 64
SCORE_PREFIX = "Score: "
SCORE_TOKENS = 2
"""Tokens of an answer that is the score alone, as an estimate supposes them."""

_JSON = "Write the answer as one JSON object with the keys {keys}, in this order, and nothing else."


class GradeError(AlpaSiftError):
    """A rubric cannot be answered in that format, or not in that way."""


class Grade:
    """The task `grade` for one rubric in one answer format, each row graded `samples` times. Raises GradeError.

    `temperature` None is 0 for one sample and SAMPLED_AT for more. How many samples there are is no part of a
    question's identity: with more of them, those that were answered stay.
    """

    name = "grade"
    reader_version = READER

    def __init__(
        self, rubric: Rubric, answer_format: str | None = None, *, samples: int = 1, temperature: float | None = None
    ) -> None:
        self.rubric = rubric
        usual = "score" if rubric.score == "first" else "explain"
        self.answer_format = answer_format_of(answer_format or rubric.answer_format or usual)
        if self.answer_format not in ANSWER_FORMATS:
            raise GradeError(f"unknown answer format {answer_format!r}; choose from {', '.join(ANSWER_FORMATS)}")
        if rubric.score == "last" and self.answer_format == "score":
            raise GradeError(
                f"the rubric {rubric.name} has reasons before the score and cannot give the score alone; use "
                f"--answer-format explain, json or expected_score"
            )
        if not 1 <= samples <= MOST_SAMPLES:
            raise GradeError(f"--samples {samples}: must be 1 to {MOST_SAMPLES}")
        if temperature is not None and not 0 <= temperature <= 2:
            raise GradeError(f"--temperature {temperature}: must be 0 to 2")
        self.samples = samples
        self.temperature = temperature if temperature is not None else (SAMPLED_AT if samples > 1 else 0.0)
        free = rubric.gives_reason  # the grader `rules`: a line for the score and one for the reason
        self.choices = None if free or self.answer_format == "json" else rubric.answers
        reasons = self.answer_format in ("explain", "json") or rubric.score == "last"
        self.explain: Explain = "no"
        if reasons and not free and self.answer_format != "json":
            self.explain = "after" if rubric.score == "first" else "before"
        self.max_tokens = rubric.explain_tokens if reasons and not free else rubric.max_tokens
        self.schema = _schema(rubric) if self.answer_format == "json" else None
        keys = ", ".join(self.schema["required"]) if self.schema else ""
        self.closing = _JSON.format(keys=keys) if self.schema else ""
        self.decoding: dict[str, Any] = {
            "contract": stored_format(self.answer_format),
            "max_tokens": self.max_tokens,
            "temperature": self.temperature or 0,
            "renderer": RENDERER,
        }

    @property
    def identity(self) -> Identity:
        return identity_of(self.rubric)

    @classmethod
    def from_setup(cls, content: Mapping[str, Any], decoding: Mapping[str, Any]) -> Grade:
        """The task of stored questions. Samples and temperature are not kept: it reads answers, it prompts nobody."""
        return cls(rubric_of(content), decoding["contract"])

    def items(self, store: Store, version_id: str) -> Source:
        """The distinct rows of the dataset version."""
        return Source(version_id, version_id)

    def request(self, item: Item, setup_id: str, sample: int) -> Request:
        """The question about one row. Its key hashes the setup (with the fixed text), example, row text and sample."""
        example_id, example = item.subject_id, item.example
        assert example is not None, "grade asks about rows"
        messages = self.rubric.messages(example, f"{self.rubric.name}:{example_id}", self.closing)
        asked = "[" + ", ".join(f"[{_quoted(role)}, {_quoted(text)}]" for role, text in messages[1:]) + "]"
        return Request(
            key=hash_id("question", setup_id, example_id, asked, str(sample)),
            messages=messages,
            example=example,
            max_tokens=self.max_tokens,
            temperature=float(self.temperature),
            choices=self.choices,
            json_schema=self.schema,
            want_logprobs=self.answer_format == "expected_score",
            sample=sample,
            explain=self.explain,
            choice_prefix=SCORE_PREFIX if self.explain == "before" else "",
            judged_from_row=self.rubric.judged_from_row,
            judged_by=self.rubric.name if self.rubric.judged_from_row else "rules",
            expected_output_tokens=SCORE_TOKENS if self.choices and self.explain == "no" else None,
        )

    def read(self, reply: Reply) -> Reading:
        """The score of a reply, or the reason why there is none."""
        if reply.outcome == "answered":
            if self.rubric.measured:
                figure = read_figure(reply.text, self.rubric)
                return graded(figure.score, figure.reason, figure.explanation, figure.expected)
            found = read_score(reply.text, self.rubric, reply.finish_reason)
            expected = expected_score(reply.logprobs, self.rubric)
            return graded(found.score, found.reason, found.explanation, expected)
        reason = (reply.error or "").partition(":")[0].strip()
        known = {"too_long", "refused", *NO_FIGURE}
        return graded(None, reason if reason in known else "backend_error", reply.error)

    def probe(self) -> Request:
        """A question made like all others about an empty row: what a backend is asked whether it can answer."""
        return self.request(Item("", Example("", "", "")), "", 0)


def identity_of(rubric: Rubric) -> Identity:
    """A rubric as what a task asks by."""
    scale = Scale(rubric.low, rubric.high, rubric.step, rubric.threshold)
    return Identity(rubric.name, rubric.content(), rubric.digest(), scale)


def graded(
    score: Decimal | None, reason: str | None, explanation: str | None = None, expected: float | None = None
) -> Reading:
    """A reading of a score: usable where there is one."""
    return Reading(score is not None, reason, {"score": score, "expected_score": expected, "explanation": explanation})


def grade_for(
    rubric: Rubric,
    backend: Backend,
    answer_format: str | None = None,
    *,
    samples: int = 1,
    temperature: float | None = None,
) -> Grade:
    """The task in the answer format named, else in the cheapest one that the backend can answer.

    Raises BackendUnavailable when the backend cannot answer in the format named, or in none, with its reason.
    """
    wanted: Sequence[str | None] = [answer_format or rubric.answer_format or None]
    if wanted == [None] and rubric.score == "first":
        wanted = ["score", "json", "explain"]
    why = ""
    for one in wanted:
        task = Grade(rubric, one, samples=samples, temperature=temperature)
        reason = backend.cannot(task.probe())
        if reason is None:
            return task
        cannot = f"give answers in the format {one}" if answer_format else f"grade by the rubric {rubric.name}"
        why = why or f"{backend.name} cannot {cannot}: {reason}"
    raise BackendUnavailable(why)


def _schema(rubric: Rubric) -> dict[str, Any]:
    """The JSON schema of an answer: the score as one of the answers, the reasons beside it in the rubric's order."""
    answers: list[Any] = list(rubric.labels) or [float(c) if "." in c else int(c) for c in rubric.choices]
    score = {"type": "string" if rubric.labels else "number", "enum": answers}
    properties = {"score": score, "explanation": {"type": "string"}}
    if rubric.score == "last":
        properties = {"explanation": properties["explanation"], "score": score}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


TASK = Grade
