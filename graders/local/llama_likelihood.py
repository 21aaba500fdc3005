"""How likely tokens are to a GGUF model, through llama.cpp: `LlamaScorer`, a `passages.Scorer`.

Many passages are decoded together, each in a sequence of its own; the logits of a llama_decode are reduced to one
number a token as they come, so that memory does not grow with the length of the answers. The cache is in float32: in
float16 log-probabilities of the tests' model are off by up to 6e-3, so by less than 1e-3.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpasift.graders.local.file_hash import sha256_of
from alpasift.graders.local.gguf_files import gguf_parts
from alpasift.graders.local.llama_decoder import ROWS, Decoder
from alpasift.graders.local.llama_library import DecodeError
from alpasift.graders.local.llama_model import LlamaModel
from alpasift.graders.local.passages import Passage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

OUTPUTS = 256
"""Positions of one llama_decode whose logits are kept: half of its tokens, since an answer is read after its prompt."""
SEQUENCES = 2 * ROWS
"""Passages decoded together at most."""


class LlamaScorer:
    """The model in a GGUF file that has been looked at. Raises BackendError when it cannot be loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = LlamaModel(path)
        try:
            self.decoder = Decoder(self.model, OUTPUTS, exact=True)
        except BaseException:
            self.model.close()
            raise
        self.context, self.begin, self.template = self.model.context, self.model.begin, self.model.template
        self.fingerprint = {
            "file": sha256_of(gguf_parts(path)),
            "n_ctx": str(self.context),
            "flash_attn": "off",
            "kv": "f32",
            "template": hashlib.sha256(self.template.encode()).hexdigest() if self.template else "plain",
        }
        self.facts = {
            "llama-cpp-python": version("llama-cpp-python"),
            "threads": str(self.decoder.threads),
        }

    def encode(self, text: str, *, within: bool) -> list[int]:
        found: list[int] = self.model.encode(text, False, within).tolist()
        return found

    def chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        found: list[int] = self.model.chat(messages).tolist()
        return found

    def logprobs(self, passages: Sequence[Passage]) -> list[list[float] | str]:
        self.decoder.stopping = False
        found: list[list[float] | str] = []
        for group in packed(passages, self.decoder.together):
            try:
                found += self._together(group)
            except DecodeError:
                found += [self._alone(passage) for passage in group]
        return found

    def _alone(self, passage: Passage) -> list[float] | str:
        try:
            return self._together([passage])[0]
        except DecodeError as error:
            return f"backend_error: {error}"

    def _together(self, group: Sequence[Passage]) -> list[list[float]]:
        import numpy as np

        targets = iter([token for passage in group for token in passage.tokens[passage.start :]])

        def read(logits: NDArray[np.float32]) -> Any:
            """(places, n_vocab) -> the log-probability of the token that follows each place."""
            rows = np.arange(len(logits))
            top = logits.max(1)
            norm = top + np.log(np.exp(logits - top[:, None]).sum(1, dtype=np.float64))
            return (logits[rows, [next(targets) for _ in rows]] - norm).tolist()

        parts = (
            (sequence, 0, np.array(passage.tokens, np.int32), range(passage.start - 1, len(passage.tokens) - 1))
            for sequence, passage in enumerate(group, 1)
        )
        self.decoder.forget()
        flat = iter(self.decoder.decode(parts, read))
        self.decoder.forget()
        return [[next(flat) for _ in passage.tokens[passage.start :]] for passage in group]

    def stop(self) -> None:
        self.decoder.stopping = True

    def close(self) -> None:
        self.decoder.close()
        self.model.close()


def packed(passages: Sequence[Passage], tokens: int) -> Iterator[list[Passage]]:
    """The passages in their order, in groups of at most so many tokens, and of one where that alone has more."""
    group: list[Passage] = []
    used = 0
    for passage in passages:
        size = len(passage.tokens)
        if group and (len(group) == SEQUENCES or used + size > tokens):
            yield group
            group, used = [], 0
        group.append(passage)
        used += size
    if group:
        yield group
