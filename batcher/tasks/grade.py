"""Grade: ask a rubric's question about every row and read one score from the reply.

Knows the rubric, the layout of the question and how to read the answer; nothing of backends, money or tables.
Method: AlpaGasus (Chen et al. 2023, arXiv 2307.08701), section 2. One difference: where the backend can constrain its
answer, the reply is the score alone; the explanation, which comes after the score and so cannot move it, is not paid for.
"""

from __future__ import annotations

from json.encoder import encode_basestring_ascii as _quoted
from typing import Any

from batcher.store import hash_id
from graders import Example, Reply, Request
from graders.reading import Reading, read_score
from graders.rubric import RENDERER, Rubric


class Grade:
    """The task `grade` for one rubric, in the contract `score`: the answer is one of the rubric's scores."""

    name = "grade"

    def __init__(self, rubric: Rubric) -> None:
        self.rubric = rubric
        self.choices = rubric.choices if rubric.score == "first" and not rubric.gives_reason else None
        self.decoding: dict[str, Any] = {
            "contract": "score",
            "max_tokens": rubric.max_tokens,
            "temperature": 0,
            "renderer": RENDERER,
        }

    def request(self, example_id: str, example: Example, setup_id: str, sample: int) -> Request:
        """The question about one example. Its key hashes the setup (which covers the fixed text), example, row text, sample."""
        messages = self.rubric.messages(example, f"{self.rubric.name}:{example_id}")
        asked = "[" + ", ".join(f"[{_quoted(role)}, {_quoted(text)}]" for role, text in messages[1:]) + "]"
        return Request(
            key=hash_id("question", setup_id, example_id, asked, str(sample)),
            messages=messages,
            example=example,
            rubric=self.rubric.name,
            max_tokens=self.rubric.max_tokens,
            temperature=0.0,
            choices=self.choices,
            sample=sample,
        )

    def read(self, reply: Reply) -> Reading:
        """The score of a reply, or the reason why there is none."""
        if reply.outcome == "answered":
            return read_score(reply.text, self.rubric, reply.finish_reason)
        reason = (reply.error or "").partition(":")[0].strip()
        known = {"too_long", "refused"}
        return Reading(None, reason if reason in known else "backend_error", reply.error)
