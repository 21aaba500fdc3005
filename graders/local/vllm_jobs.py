"""What vLLM has to generate for one request, and how an answer is made of its outputs. Call `Jobs.answer`.

A request with choices is constrained by one grammar: a choice, then nothing or a newline and anything; it stops at the
newline. Reasons that come after the choice are a second call, which continues behind that newline, so they cannot move
the choice; prefix caching makes it cheap. Log-probabilities are read from one-token calls, one for each node of the
trie of the choices' tokens at which more than one thing may happen; "the answer ends here" competes as the best of the
end-of-text tokens and the tokens that begin with a newline, which are those the grammar lets end a choice.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alpasift.graders import CHOICE_LINE_TOKENS, Request
from alpasift.graders.local.blocks import Answer
from alpasift.graders.local.choices import Node, inner_nodes, logprobs_of
from alpasift.graders.local.transformers_prompts import Prompts, choice_tokens

LOGPROBS = 128
"""Log-probabilities of named tokens that vLLM gives for one position (MAX_LOGPROB_TOKEN_IDS)."""

Noted = dict[tuple[int, ...], list[float]]
"""Path of a node of the trie -> log-probabilities of its children, and last that of ending where a choice may end."""


@dataclass(slots=True)
class Call:
    """One thing for vLLM to generate: the tokens of a prompt, and vllm.SamplingParams."""

    tokens: list[int]
    params: Any


Job = Generator[list[Call], list[Any], Answer]
"""One request on its way: it yields what is to be generated, is sent the outputs in that order, and returns."""


@dataclass(slots=True)
class _Draft:
    """A prompt to choose after, and what of the answer is written already."""

    prompt: list[int]
    tail: str
    text: str = ""
    tokens: int = 0


class Jobs:
    """The jobs of one engine. Imports vLLM."""

    def __init__(self, prompts: Prompts) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        self.prompts = prompts
        self._params, self._structured = SamplingParams, StructuredOutputsParams
        self._final = RequestOutputKind.FINAL_ONLY
        self._greedy: dict[Any, Any] = {}  # parameters without a seed, which all rows share: vLLM copies them

    def answer(self, request: Request) -> Job:
        prompt, tail = self.prompts.prompt(request)
        if isinstance(prompt, str):
            return Answer(error=prompt)
        if request.choices is None:
            return (yield from self._write(request, prompt))
        draft = _Draft(prompt, tail)
        if request.explain == "before":
            yield from self._write_reasons(request, draft)
        start = len(draft.prompt)
        trie, noted, choice = yield from self._choose(request, draft)
        text, finish = draft.text + choice, "stop"
        if request.explain == "after":  # the line is ended for it, so that the reasons come and cannot move the choice
            behind = [*draft.prompt, *self.prompts.encode(choice + "\n", False, True)]
            (reasons,) = yield [Call(behind, self._free(request, request.max_tokens))]
            text, finish = f"{text}\n{reasons.text}", str(reasons.finish_reason)
            draft.tokens += len(reasons.token_ids)
        logprobs = logprobs_of(trie, noted, request.choices) if request.want_logprobs else None
        return Answer(start, draft.tokens, text, finish, logprobs)

    def _write(self, request: Request, prompt: list[int]) -> Job:
        """Free text, or an object of a schema."""
        short = request.max_tokens <= 16 and request.json_schema is None
        params = self._free(request, request.max_tokens, stop="\n" if short else None)
        if request.json_schema is not None:
            params.structured_outputs = self._structured(json=dict(request.json_schema))
        (output,) = yield [Call(prompt, params)]
        return Answer(len(prompt), len(output.token_ids), output.text, str(output.finish_reason))

    def _write_reasons(self, request: Request, draft: _Draft) -> Generator[list[Call], list[Any], None]:
        """Have the reasons written first, and begin the last line for the model, so that it has to choose."""
        prefix = request.choice_prefix
        stop = "\n" + prefix.rstrip() if prefix.rstrip() else None
        params = self._free(request, request.max_tokens - CHOICE_LINE_TOKENS, stop=stop)
        (written,) = yield [Call(draft.prompt, params)]
        draft.text, draft.tokens = _before_prefix(written.text, prefix), len(written.token_ids)
        draft.tail = "\n" + prefix
        draft.text += draft.tail if draft.text else prefix
        prompt = [*draft.prompt, *self.prompts.encode(draft.text, False, True)]
        draft.prompt = prompt[: self.prompts.context - choice_tokens(request)]

    def _choose(self, request: Request, draft: _Draft) -> Generator[list[Call], list[Any], tuple[Node, Noted, str]]:
        """One of the choices, and the probabilities of all of them where they are wanted."""
        assert request.choices is not None
        trie = self.prompts.trie(request.choices, draft.tail)
        nodes: list[tuple[Node, list[int]]] = []
        if request.want_logprobs:
            nodes = [(node, part) for node in inner_nodes(trie) for part in self._tokens_after(node)]
        calls = [self._look(draft.prompt, node, part) for node, part in nodes]
        walked = request.want_logprobs and request.temperature == 0
        if not walked:
            calls.append(Call(draft.prompt, self._constrained(request)))
        outputs = (yield calls) if calls else []
        noted = self._noted(nodes, outputs)
        if walked:
            end = _walk(trie, noted)
            draft.tokens += len(end.path)
            return trie, noted, end.label or ""
        draft.tokens += len(outputs[-1].token_ids)
        return trie, noted, outputs[-1].text.partition("\n")[0]

    def _tokens_after(self, node: Node) -> Iterator[list[int]]:
        """The tokens whose log-probabilities are wanted after a node, in parts of what one call may name."""
        wanted = [child.path[-1] for child in node.children] + (self.prompts.ends if node.label is not None else [])
        for start in range(0, len(wanted), LOGPROBS):
            yield wanted[start : start + LOGPROBS]

    def _noted(self, nodes: Sequence[tuple[Node, list[int]]], outputs: Sequence[Any]) -> Noted:
        found: dict[tuple[int, ...], dict[int, float]] = {}
        for (node, _), output in zip(nodes, outputs, strict=False):
            here = output.logprobs[0]
            found.setdefault(node.path, {}).update({token: value.logprob for token, value in here.items()})
        noted: Noted = {}
        for node, _ in nodes:
            known = found[node.path]
            noted[node.path] = [known[child.path[-1]] for child in node.children]
            if node.label is not None:
                noted[node.path].append(max(known[token] for token in self.prompts.ends))
        return noted

    def _free(self, request: Request, most: int, stop: str | None = None) -> Any:
        return self._params(
            temperature=request.temperature,
            seed=_seed(request),
            max_tokens=max(most, 1),
            stop=stop,
            output_kind=self._final,
        )

    def _constrained(self, request: Request) -> Any:
        """A choice, then nothing or a newline and anything; it stops at the newline."""
        choices = request.choices or ()
        if request.temperature == 0 and choices in self._greedy:
            return self._greedy[choices]
        params = self._free(request, choice_tokens(request), "\n")
        params.structured_outputs = self._structured(regex=choice_grammar(choices))
        if request.temperature == 0:
            self._greedy[choices] = params
        return params

    def _look(self, prompt: list[int], node: Node, tokens: list[int]) -> Call:
        params = self._params(
            temperature=0, max_tokens=1, logprob_token_ids=tokens, detokenize=False, output_kind=self._final
        )
        return Call([*prompt, *node.path], params)


def choice_grammar(choices: Sequence[str]) -> str:
    """The regular expression of an answer with choices."""
    return "(" + "|".join(re.sub(r"([^\w\s])", r"\\\1", choice) for choice in choices) + r")(\n(.|\n)*)?"


def _walk(trie: Node, noted: Mapping[tuple[int, ...], Sequence[float]]) -> Node:
    """Where the likeliest step at each node leads."""
    node = trie
    while node.children:
        values = noted.get(node.path, [0.0])  # where one thing only may happen, nothing was read
        best = max(range(len(values)), key=values.__getitem__)
        if best == len(node.children):
            break
        node = node.children[best]
    return node


def _before_prefix(text: str, prefix: str) -> str:
    """A text up to the first line that begins as the prefix does."""
    match = re.search(rf"(?:^|\n){re.escape(prefix.rstrip())}", text) if prefix.rstrip() else None
    return (text[: match.start()] if match else text).rstrip()


def _seed(request: Request) -> int | None:
    """The same draw for the same key and sample, whatever else is asked."""
    if request.temperature <= 0:
        return None
    digest = hashlib.sha256(f"{request.key}\0{request.sample}".encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8], "big") >> 1
