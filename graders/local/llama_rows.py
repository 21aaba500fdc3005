"""One row on the way to its answer: a choice, free text, or one after the other, a token at a time.

Where a request has choices, the answer is one of them: a trie of the choices' tokens is walked, taking at each node the
best continuation, where "the answer ends here" competes as the best of the tokens that begin with a newline and the
end-of-text tokens. Only the model's usual encoding of a choice is considered. Where reasons come after the choice they
cannot move it: it is chosen as if it stood alone, and then the text continues. Where they come first, the text is
written until it ends or has had its tokens, and then the last line is begun for the model (`Request.choice_prefix`), so
that it has to choose. Works on logits; `llama_decoder` makes them.
"""

from __future__ import annotations

import ctypes
import hashlib
from typing import TYPE_CHECKING, Any

from alpasift.graders import CHOICE_LINE_TOKENS
from alpasift.graders.local.blocks import Answer
from alpasift.graders.local.choices import Node, logprobs_of, node_at
from alpasift.graders.local.llama_library import DecodeError, clear_errors, first_error
from alpasift.graders.local.llama_model import LlamaModel, Prompt

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Logits = NDArray[np.float32]


class Row:
    """One prompt in its sequence of the cache, on its way to an answer: a choice, free text, or one after the other."""

    def __init__(self, model: LlamaModel, prompt: Prompt, sequence: int, position: int) -> None:
        self.model, self.prompt, self.sequence, self.position = model, prompt, sequence, position
        self.logits: Any = None  # (n_vocab,) float32, at the last token decoded
        self.node = prompt.trie
        self.chooses = prompt.trie is not None and prompt.request.explain != "before"
        self.chosen: str | None = None
        self.noted: dict[tuple[int, ...], Any] = {}
        self.pending: list[int] = []  # tokens of the answer that are not in the cache yet
        self.count = 0  # tokens of the answer
        self.written = b""
        self.finish_reason = "stop"
        self.grammar = Grammar(model, prompt.grammar) if prompt.grammar else None
        self.random: Any = None
        if prompt.request.temperature > 0:
            import numpy as np

            seed = hashlib.sha256(f"{prompt.request.key}\0{prompt.request.sample}".encode("utf-8", "replace")).digest()
            self.random = np.random.default_rng(int.from_bytes(seed, "big"))

    @property
    def to_score(self) -> bool:
        """Whether the probabilities of the choices are wanted and can be had at the logits in hand."""
        return self.chooses and not self.noted and self.prompt.request.want_logprobs

    def step(self) -> bool:
        """Continue as far as the logits in hand allow. True when `take` has tokens to be decoded first."""
        explain = self.prompt.request.explain
        if self.chooses:
            assert self.node is not None
            if self._walk(self.node):
                return True
            self.chooses, self.chosen = False, self.node.label or ""
            self.written += self.chosen.encode()
            if explain == "after":
                self._begin_with("\n")
            return explain == "after"
        if self._write():
            return True
        if explain == "before" and self.prompt.trie is not None and self.chosen is None and not self.chooses:
            self._begin_with("" if not self.written or self.written.endswith(b"\n") else "\n")
            self._begin_with(self.prompt.request.choice_prefix)
            self.chooses, self.finish_reason = True, "stop"
        return self.chooses

    def _begin_with(self, text: str) -> None:
        """Continue the answer with a text that the model did not write."""
        if text:
            self.pending += self.model.encode(text, False, True).tolist()
            self.written += text.encode()

    def take(self) -> list[int]:
        tokens, self.pending = self.pending, []
        return tokens

    def note(self, path: tuple[int, ...], logits: Logits) -> None:
        """Keep the log-probabilities of what may follow at the node of that path."""
        import numpy as np

        assert self.prompt.trie is not None
        node = node_at(self.prompt.trie, path)
        top = logits.max()
        self.noted[path] = self._options(node, logits) - (top + np.log(np.exp(logits - top, dtype=np.float64).sum()))

    def finish(self) -> Answer:
        answer = Answer(len(self.prompt.tokens), self.count, finish_reason=self.finish_reason)
        answer.text = self.written.decode("utf-8", "replace")
        if self.noted and self.prompt.trie is not None:
            answer.logprobs = logprobs_of(self.prompt.trie, self.noted, self.prompt.request.choices or ())
        return answer

    def close(self) -> None:
        if self.grammar:
            self.grammar.close()

    def _walk(self, node: Node) -> bool:
        while node.children:
            if node.decides:
                if node.path not in self.noted and self.pending:
                    return True
                options = self.noted.get(node.path)
                if options is None:
                    options = self._options(node, self.logits)
                choice = self._pick(options)
            else:
                choice = 0
            if choice == len(node.children):  # the answer ends here
                break
            node = self.node = node.children[choice]
            self.pending.append(node.path[-1])
            self.count += 1
        return False

    def _write(self) -> bool:
        request = self.prompt.request
        logits = self.logits if self.grammar is None else self.grammar.allowed(self.logits)
        token = self._pick(logits)
        if token in self.model.ends or logits[token] == -float("inf"):
            return False
        if self.grammar:
            self.grammar.accept(token)
        self.count += 1
        self.written += self.model.text(token)
        if request.max_tokens <= 16 and self.grammar is None:
            line, newline, _ = self.written.lstrip().partition(b"\n")
            if newline:
                self.written = line
                return False
        self.pending.append(token)
        if request.explain == "before" and self.prompt.trie is not None:
            prefix = request.choice_prefix.rstrip()
            last_line = self.written.rsplit(b"\n", 1)[-1].strip(b" \t*#_")
            if prefix and last_line == prefix.encode():  # it has begun the last line itself
                self._begin_with(request.choice_prefix[len(prefix) :])
                self.chooses = True
                return True
        if self.count >= request.max_tokens - (CHOICE_LINE_TOKENS if request.explain == "before" else 0):
            self.finish_reason = "length"
            return False
        return True

    def _options(self, node: Node, logits: Logits) -> Any:
        """The logits of the node's children, in their order, and last that of ending where a choice ends here."""
        import numpy as np

        options = [logits[child.path[-1]] for child in node.children]
        if node.label is not None:
            options.append(logits[self.model.ends_choice].max())
        return np.array(options, np.float64)

    def _pick(self, logits: Any) -> int:
        if self.random is None:
            return int(logits.argmax())
        import numpy as np

        weights = np.exp((logits - logits.max()).astype(np.float64) / self.prompt.request.temperature)
        return int(self.random.choice(len(weights), p=weights / weights.sum()))


class Grammar:
    """llama.cpp's own grammar, which says what tokens may follow. For answers by a JSON schema."""

    def __init__(self, model: LlamaModel, text: bytes) -> None:
        import numpy as np

        self.lib = model.lib
        clear_errors()
        self.pointer = self.lib.llama_sampler_init_grammar(model.vocab, text, b"root")
        if not self.pointer:
            raise DecodeError(f"llama.cpp does not accept this JSON schema: {first_error()}")
        self.table = np.zeros(model.n_vocab, [("id", np.int32), ("logit", np.float32), ("p", np.float32)])

    def allowed(self, logits: Logits) -> Logits:
        """The logits, minus infinity where the grammar forbids the token."""
        import numpy as np

        self.table["id"] = np.arange(len(logits))
        self.table["logit"] = logits
        data = self.table.ctypes.data_as(self.lib.llama_token_data_p)
        array = self.lib.llama_token_data_array(data, len(logits), -1, False)
        self.lib.llama_sampler_apply(self.pointer, ctypes.byref(array))
        masked: Logits = self.table["logit"]
        return masked

    def accept(self, token: int) -> None:
        self.lib.llama_sampler_accept(self.pointer, token)

    def close(self) -> None:
        if self.pointer:
            self.lib.llama_sampler_free(self.pointer)
            self.pointer = None
