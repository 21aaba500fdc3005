"""A GGUF model and its tokenizer: from a request to tokens. Call `LlamaModel(path)`, then `prompt`.

A row is data. It is encoded with special tokens off and cut inside the names of others, so the text "<|im_end|>" in a
row is ten characters and ends nothing; only the chat template's own text may hold special tokens. Decodes nothing; that
is `llama_decoder`'s.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpasift.graders import BackendError, Request
from alpasift.graders.local.chat import Layout, layout_of
from alpasift.graders.local.choices import Node, depth, trie_of
from alpasift.graders.local.llama_amx import extra_buffers_work
from alpasift.graders.local.llama_library import clear_errors, first_error, library
from alpasift.graders.local.row_text import TokenNames

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Tokens = NDArray[np.int32]

CONTEXT = 4096
"""Tokens of one row and its answer; less where the model was trained on less."""
NEWLINES = 48
"""Tokens beginning with a newline that may end a choice; those of lowest number are the usual ones."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request, encoded. `limit` is the most tokens that its answer can take in the cache."""

    request: Request
    tokens: Tokens
    trie: Node | None
    grammar: bytes | None
    limit: int


class LlamaModel:
    """The model at a path that was checked. Raises BackendError when it cannot be loaded. Used by one thread at a time.

    context      tokens of a row and its answer at most
    ends         the tokens of end of text
    ends_choice  the tokens that end a choice: those, and the ones that begin with a newline
    template     the chat template, "" where there is none
    quantised    whether its weights are stored in less than float16
    amx_works    False where llama.cpp's code for AMX crashes; it is then not used
    """

    def __init__(self, path: Path) -> None:
        self.path, self.lib = path, library()
        clear_errors()
        params = self.lib.llama_model_default_params()
        params.use_extra_bufts = self.amx_works = extra_buffers_work(self.lib, path)
        self.pointer = self.lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self.pointer:
            raise BackendError(f"{path} cannot be loaded: {first_error()}; download or convert it again")
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        lib = self.lib
        if lib.llama_model_has_encoder(self.pointer) or not lib.llama_model_has_decoder(self.pointer):
            raise BackendError(f"{self.path} is not a decoder-only language model; choose one that generates text")
        self.vocab = lib.llama_model_get_vocab(self.pointer)
        self.parameters: int = lib.llama_model_n_params(self.pointer)
        self.quantised = lib.llama_model_size(self.pointer) < 1.9 * self.parameters  # bytes; two a weight is float16
        self.n_vocab: int = lib.llama_vocab_n_tokens(self.vocab)
        trained: int = lib.llama_model_n_ctx_train(self.pointer)
        self.context = min(trained, CONTEXT) if trained > 0 else CONTEXT
        self._names = TokenNames(map(self._name, filter(self._is_added, range(self.n_vocab))))
        self.ends = [t for t in range(self.n_vocab) if lib.llama_vocab_is_eog(self.vocab, t)]
        newlines = [t for t in range(self.n_vocab) if self.text(t).startswith(b"\n")][:NEWLINES]
        self.ends_choice = [*(newlines or self.encode("\n", False)[-1:].tolist()), *self.ends]
        template = lib.llama_model_chat_template(self.pointer, None)
        self.template: str = template.decode("utf-8", "replace") if template else ""
        self._layouts: dict[tuple[str, ...], Layout] = {}
        self._encode_again = lru_cache(maxsize=256)(self.encode)  # the fixed texts stay in it, as they come every time
        self._tries: dict[tuple[tuple[str, ...], str], Node] = {}

    def close(self) -> None:
        if self.pointer:
            self.lib.llama_model_free(self.pointer)
            self.pointer = None

    def prompt(self, request: Request) -> Prompt | str:
        """The request encoded, or why it cannot be."""
        size = sum(len(text) for _, text in request.messages)
        if size > 64 * self.context:  # no need to encode it, and some tokenizers overflow the stack on such texts
            return f"too_long: {size} characters, and the context is {self.context} tokens"
        layout = self._layout(tuple(role for role, _ in request.messages))
        tokens = self.chat(request.messages)
        tail = request.choice_prefix if request.explain == "before" else str(layout[-1])
        trie = self._trie(request.choices, tail) if request.choices else None
        limit = request.max_tokens if trie is None else depth(trie)
        limit += request.max_tokens if trie is not None and request.explain != "no" else 0
        if len(tokens) + limit > self.context:
            return f"too_long: {len(tokens) + limit} tokens, and the context is {self.context}"
        grammar = None
        if request.json_schema is not None and trie is None:
            try:
                grammar = _json_grammar(json.dumps(request.json_schema))
            except Exception as error:  # noqa: BLE001  the converter raises what it likes on a schema it cannot take
                return f"backend_error: llama.cpp does not accept this JSON schema: {error!r}"
        return Prompt(request, tokens, trie, grammar, limit)

    def chat(self, messages: Sequence[tuple[str, str]]) -> Tokens:
        """(role, text) messages in the chat template, up to where the answer begins; BOS first if it has one."""
        import numpy as np

        pieces = [
            self._encode_again(piece, True, i > 0)
            if isinstance(piece, str)
            else self._encode_again(messages[piece][1], False, i > 0)
            for i, piece in enumerate(self._layout(tuple(role for role, _ in messages)))
        ]
        tokens = np.concatenate(pieces)
        begin = self.begin
        return np.concatenate([np.array(begin, np.int32), tokens]) if begin and tokens[0] != begin[0] else tokens

    @property
    def begin(self) -> list[int]:
        """The token that every text begins with, as the model wants it; none where it wants none."""
        token = self.lib.llama_vocab_bos(self.vocab)
        return [token] if self.lib.llama_vocab_get_add_bos(self.vocab) and token >= 0 else []

    def encode(self, text: str, special: bool, within: bool = False) -> Tokens:
        """Token ids (int32) of a text. `within`: other text goes before it, so no blank is put in front (Llama 2).

        With `special` off no name of a token in the text becomes that token, be it a control token or another.
        """
        import numpy as np

        if not special and len(parts := self._names.split(text)) > 1:
            return np.concatenate([self._encode(part, False, within or i > 0) for i, part in enumerate(parts)])
        return self._encode(text, special, within)

    def _encode(self, text: str, special: bool, within: bool) -> Tokens:
        import numpy as np

        lib, spm = self.lib, self.lib.llama_vocab_type(self.vocab) == self.lib.LLAMA_VOCAB_TYPE_SPM
        if within and spm:  # the blank then stands in front of a newline, and both are cut off again
            before, joined = self._encode("\n", False, False), self._encode("\n" + text, special, False)
            return joined[len(before) :]
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        while True:
            tokens = np.empty(room, np.int32)
            pointer = tokens.ctypes.data_as(lib.llama_token_p)
            count = lib.llama_tokenize(self.vocab, data, len(data), pointer, room, False, special)
            if count >= 0:
                return tokens[:count]
            room = -count

    def _layout(self, roles: tuple[str, ...]) -> Layout:
        """The template for messages of these roles: its own texts, and the numbers of the messages between them."""
        if roles not in self._layouts:
            begin, end = self._special("bos"), self._special("eos")
            self._layouts[roles] = layout_of(roles, lambda messages: _render(self.template, messages, begin, end))
        return self._layouts[roles]

    def _special(self, name: str) -> str:
        token = getattr(self.lib, f"llama_vocab_{name}")(self.vocab)
        return "" if token < 0 else self._name(token)

    def _name(self, token: int) -> str:
        return str(self.lib.llama_vocab_get_text(self.vocab, token).decode("utf-8", "replace"))

    def _is_added(self, token: int) -> bool:
        """Whether llama.cpp makes this token of its name even where special tokens are off."""
        return bool(self.lib.llama_vocab_get_attr(self.vocab, token) & self.lib.LLAMA_TOKEN_ATTR_USER_DEFINED)

    def _trie(self, choices: tuple[str, ...], tail: str) -> Node:
        """The choices as they are encoded after the template's last text, `tail`."""
        if (choices, tail) not in self._tries:
            before = self.encode(tail, True, True).tolist()
            encoded = {}
            for choice in choices:
                joined = self.encode(tail + choice, True, True).tolist()
                if joined[: len(before)] == before:
                    encoded[choice] = joined[len(before) :]
                else:
                    encoded[choice] = self.encode(choice, False, True).tolist()
            self._tries[choices, tail] = trie_of(encoded)
        return self._tries[choices, tail]

    def text(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(256)
        count = self.lib.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, False)
        return buffer.raw[: max(count, 0)]


def _render(template: str, messages: list[tuple[str, str]], begin: str, end: str) -> str:
    """The template as llama-cpp-python's sandboxed jinja renders it; "" where there is none or it refuses."""
    if not template:
        return ""
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    try:
        formatter: Any = Jinja2ChatFormatter(template, eos_token=end, bos_token=begin)
        formatter.strftime_now = lambda _: "26 Jul 2024"  # a template that tells the date must not change the answers
        rendered = formatter(
            messages=[{"role": role, "content": text} for role, text in messages], enable_thinking=False
        )
    except Exception:  # noqa: BLE001  a template is a program from the file: whatever it raises, it is of no use
        return ""
    return str(rendered.prompt)


@lru_cache(maxsize=16)
def _json_grammar(schema: str) -> bytes:
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    return str(json_schema_to_gbnf(schema)).encode()
