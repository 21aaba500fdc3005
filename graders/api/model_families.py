"""Families of models: which parameters each takes, and what its answers cost in hidden tokens.

The table is that of OpenAI's reference and of the reports about it: a parameter that a model refuses costs the whole
batch, line by line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from alpasift.graders import BackendError
from alpasift.graders.api.connection import is_loopback, is_openai

_NAME = re.compile(r"[A-Za-z0-9._:/@-]{1,128}")


@dataclass(frozen=True, slots=True)
class Family:
    """What the models of one family take.

    cap          the name of the output limit; `thinking` tokens are added to it, since hidden reasoning counts inside
    temperature  whether temperature may be set
    effort       the value of reasoning_effort, None where there is none
    structured   whether json_schema constrains the answer
    regex        whether the server is vLLM, which takes a regular expression for the answer, as local graders do
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
        """Hidden tokens to expect of one short question: a quarter of what is allowed, for want of anything better."""
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
    """A family with its means of constraining set explicitly, for a server of one's own. Raises BackendError."""
    if how not in CONSTRAIN:
        raise BackendError(f"--constrain {how}: {', '.join(CONSTRAIN)}")
    if how == "auto":
        return family
    return replace(family, structured=how == "json", regex=how == "vllm", logprobs=family.logprobs or how == "vllm")


def check_model(model: str | None, name: str) -> str:
    """The model's name. Raises BackendError where there is none."""
    if not model or not _NAME.fullmatch(model):
        named = name if model is None else repr(model)
        raise BackendError(f"{named} has no model; write {name}:MODEL, {name}:gpt-4.1-nano for instance")
    return model
