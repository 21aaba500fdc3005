"""Grade on this machine with llama.cpp: `llama_cpp:models/llama-3.1-8b-q4.gguf`. Nothing leaves it, nothing is paid.

The rubric is the same for every row, so it is decoded once, into sequence 0 of the cache. Up to 16 rows then start
from a copy of it (`llama_memory_seq_cp` shares the cells), and one `llama_decode` reads all their own tokens:

    seq 0    <system> the rubric
    seq 1                        <user> row 1 <assistant>  -> logits -> "4", ".", "5"
    seq 2                        <user> row 2 <assistant>  -> logits -> "3"
    ...

What is shared is found by comparing the token lists of whole prompts, never by cutting text: no token can straddle the
cut. Flash attention is off, because with it the scores of a row depend on how its prompt was split (2e-3 to 1e-2 in
log-probability); without it a row gets the same answer alone, in any company, and from a full decode (1e-6).

A row is data. It is encoded with special tokens off, so the text "<|im_end|>" in a row is ten characters and ends
nothing; only the chat template's own text may hold special tokens.

Where a request has choices, the answer is one of them: a trie of the choices' tokens is walked, taking at each node the
best continuation, where "the answer ends here" competes as the best of the tokens that begin
with a newline and the end-of-text tokens.
Only the model's usual encoding of a choice is considered. Where reasons come after the choice they cannot move it: it
is chosen as if it stood alone, and then the text goes on. Where they come first, the text is written until it ends or
has had its tokens, and then the last line is begun for the model ("Score: "), so that it has to choose. Knows nothing of rubrics, datasets or files of results.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graders import LEAD_TOKENS, BackendError, BackendUnavailable, Estimate, Meter, Reply, Request, batched
from graders.chat import Layout, layout_of
from graders.choices import Node, depth, inner_paths, logprobs_of, node_at, trie_of
from graders.model_files import gguf_parts, sha256_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Tokens = NDArray[np.int32]
    Logits = NDArray[np.float32]

CONTEXT = 4096  # tokens of one row and its answer; less where the model was trained on less
ROWS = 16  # rows decoded together at most; each has one more sequence to try continuations in
TOGETHER = 256, 1536  # the least and the most tokens of their own that such rows have; see _together
LONG_ANSWER = 32  # tokens of an answer above which rows are packed as densely as the cache allows
BATCH = 512  # tokens handed to one llama_decode
OUTPUTS = 64  # positions of one llama_decode whose logits are kept
BLOCK = 256  # requests of one attempt
NEWLINES = 48  # tokens beginning with a newline that may end a choice; those of lowest number are the usual ones
HEARTBEAT = 0.5  # seconds
LOG_ERROR, LOG_CONTINUED = 4, 5  # levels of llama.cpp's log

_said: list[str] = []
"""The errors that llama.cpp reported since this was cleared, the first ones."""


def open(argument: str | None) -> LlamaCpp:
    """Open the GGUF file at the path `argument`.

    Raises BackendUnavailable when the package or the file is missing, BackendError when the file cannot be used.
    """
    if not argument:
        raise BackendError("llama_cpp needs a model file: llama_cpp:PATH.gguf")
    path = Path(argument).expanduser()
    _check(path)
    return LlamaCpp(path)


def lacks() -> str | None:
    """What this machine lacks for it, None when only a model has to be named."""
    try:
        _library()
    except BackendUnavailable as error:
        return str(error)
    return None


class LlamaCpp:
    """One model, opened. `path` is a GGUF file that has been looked at."""

    paid = False
    leaves_machine = "nothing"

    def __init__(self, path: Path) -> None:
        self._model = _Model(path)
        self.name = f"llama_cpp:{path.name}"
        self.fingerprint: Mapping[str, str] = {
            "file": sha256_of(gguf_parts(path)),
            "n_ctx": str(self._model.context),
            "flash_attn": "off",
            "kv": "f16",
            "template": hashlib.sha256(self._model.template.encode()).hexdigest() if self._model.template else "plain",
            "ends": "newlines",
        }
        self.facts: Mapping[str, str] = {
            "llama-cpp-python": version("llama-cpp-python"),
            "threads": str(self._model.threads),
        }
        plain = f"{path.name} has no chat template: the messages are given to it as plain text"
        self.remarks: tuple[str, ...] = () if self._model.template else (plain,)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="llama_cpp")

    def refuses(self, rubric: str) -> str | None:
        return "the rubric `rules` is answered by the grader `rules` only" if rubric == "rules" else None

    def cannot(self, request: Request) -> str | None:
        return None

    def estimate(self, requests: Iterable[Request]) -> Estimate:
        """Tokens by counting characters, seconds by decoding some tokens of the first 16 requests for about a second."""
        count = characters = answers = 0
        sample: list[Request] = []
        for request in requests:
            count += 1
            characters += sum(len(text) for _, text in request.messages)
            answers += 2 if request.choices and request.explain == "no" else request.max_tokens
            if len(sample) < ROWS:
                sample.append(request)
        free = Decimal(0)
        if not sample:
            return Estimate(0, free, free, free, free, None, 0, 0)
        prompts = [p for p in map(self._model.prompt, sample) if isinstance(p, _Prompt)]
        seconds = None
        if prompts:
            shared = min((_shared(prompts[0].tokens, p.tokens) for p in prompts[1:]), default=0)
            own = sum(len(p.tokens) - shared for p in prompts) / len(prompts) + answers / count
            seconds = (shared + count * own) / self._worker.submit(self._model.tokens_per_second, prompts).result()
        return Estimate(count, free, free, free, free, seconds, characters // 4, answers, notes=self.remarks)

    def answer(self, requests: Iterable[Request], meter: Meter) -> Iterator[list[Reply]]:
        model = self._model
        model.stopping = False
        task: Future[list[_Answer]] | None = None
        try:
            for turn, block in enumerate(batched(requests, BLOCK)):
                if turn == 0:
                    self._check_rubric(block[0])
                attempt = meter.open([r.key for r in block], Decimal(0), price=None, facts=self.facts)
                number = {r.key: i for i, r in enumerate(block)}
                prompts: list[_Prompt] = []
                for request in block:
                    prompt = model.prompt(request)
                    if isinstance(prompt, str):
                        yield [self._reply(attempt, number[request.key], request, prompt)]
                    else:
                        prompts.append(prompt)
                for group in _groups(prompts, model.together, model.cells):
                    task = self._worker.submit(model.answer, group)
                    while True:
                        try:
                            answers = task.result(timeout=HEARTBEAT)
                            break
                        except NotYet:
                            yield []
                    yield [self._reply(attempt, number[a.request.key], a.request, a) for a in answers]
                meter.close(attempt)
        finally:  # the caller has left: end the decode under way, so that nobody waits for it
            model.stopping = True
            if task is not None and not task.done():
                task.exception()

    def close(self) -> None:
        self._model.stopping = True
        self._worker.shutdown()
        self._model.close()

    def _check_rubric(self, request: Request) -> None:
        """Raise BackendError when not even the fixed text of requests like this one fits the context."""
        *fixed, (role, _) = request.messages
        found = self._model.prompt(replace(request, messages=(*fixed, (role, ""))))
        if isinstance(found, str) and found.startswith("too_long"):
            raise BackendError(
                f"the rubric's fixed text and its answer do not fit {self._model.path.name} ({found.partition(': ')[2]}); "
                "choose a model with a longer context, or shorten the rubric"
            )

    def _reply(self, attempt: str, number: int, request: Request, answer: _Answer | str) -> Reply:
        identity, model = f"{attempt}:{number}", self._model.path.name
        if isinstance(answer, str):
            return Reply(attempt, request.key, identity, "rejected_free", model=model, error=answer)
        usage = {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens}
        if answer.error is not None:
            return Reply(attempt, request.key, identity, "rejected_free", model=model, error=answer.error)
        return Reply(
            attempt, request.key, identity, "answered", answer.text, answer.finish_reason, model, usage, answer.logprobs
        )


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A request, encoded. `limit` is the most tokens that its answer can take in the cache."""

    request: Request
    tokens: Tokens
    trie: Node | None
    grammar: bytes | None
    limit: int


@dataclass(frozen=True, slots=True)
class _Group:
    """Prompts to be decoded together; their first `shared` tokens are the same."""

    prompts: list[_Prompt]
    shared: int


@dataclass(slots=True)
class _Answer:
    """What came out for one request: a text, or an error."""

    request: Request
    prompt_tokens: int
    completion_tokens: int = 0
    text: str = ""
    finish_reason: str = "stop"
    logprobs: dict[str, float] | None = None
    error: str | None = None


class _DecodeError(Exception):
    """llama_decode refused, or was stopped."""


class _Model:
    """The model, its tokenizer, and one cache with sequence 0 for what is shared. Used by one thread at a time."""

    def __init__(self, path: Path) -> None:
        self.path, self.lib, self.stopping = path, _library(), False
        self.context_pointer: Any = None
        lib = self.lib
        _said.clear()
        self.pointer = lib.llama_model_load_from_file(os.fsencode(path), lib.llama_model_default_params())
        if not self.pointer:
            raise BackendError(f"{path} cannot be loaded: {_why()}; download or convert it again")
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        lib = self.lib
        if lib.llama_model_has_encoder(self.pointer) or not lib.llama_model_has_decoder(self.pointer):
            raise BackendError(f"{self.path} is no decoder-only language model; choose one that writes text")
        self.vocab = lib.llama_model_get_vocab(self.pointer)
        self.n_vocab: int = lib.llama_vocab_n_tokens(self.vocab)
        self.threads = _threads()
        trained: int = lib.llama_model_n_ctx_train(self.pointer)
        self.context = min(trained, CONTEXT) if trained > 0 else CONTEXT
        sizes = lib.llama_model_n_params(self.pointer), lib.llama_model_n_embd(self.pointer)
        self.together = _together(*sizes, lib.llama_model_n_layer(self.pointer))
        self.cells = self.context + self.together
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_seq_max = self.cells, 1 + 2 * ROWS
        params.n_batch = params.n_ubatch = BATCH
        params.n_outputs_max = params.n_outputs_max_per_seq = OUTPUTS
        params.n_threads = params.n_threads_batch = self.threads
        params.kv_unified = True
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._stop = lib.ggml_abort_callback(lambda _: self.stopping)  # kept: C holds no reference
        params.abort_callback = self._stop
        _said.clear()
        self.context_pointer = lib.llama_init_from_model(self.pointer, params)
        if not self.context_pointer:
            raise BackendUnavailable(f"no memory for {self.path} and a cache of {self.cells} tokens: {_why()}")
        self.memory = lib.llama_get_memory(self.context_pointer)
        self.batch = _Batch(lib)
        self.prefix: Tokens = self.batch.tokens[:0].copy()  # what sequence 0 holds
        self.ends = [t for t in range(self.n_vocab) if lib.llama_vocab_is_eog(self.vocab, t)]
        newlines = [t for t in range(self.n_vocab) if self.text(t).startswith(b"\n")][:NEWLINES]
        self.ends_choice = [*(newlines or self.encode("\n", False)[-1:].tolist()), *self.ends]
        template = lib.llama_model_chat_template(self.pointer, None)
        self.template: str = template.decode("utf-8", "replace") if template else ""
        self._layouts: dict[tuple[str, ...], Layout] = {}
        self._encode_again = lru_cache(maxsize=256)(self.encode)  # the fixed texts stay in it, as they come every time
        self._tries: dict[tuple[tuple[str, ...], str], Node] = {}

    def close(self) -> None:
        if self.context_pointer:
            self.lib.llama_free(self.context_pointer)
            self.context_pointer = None
        if self.pointer:
            self.lib.llama_model_free(self.pointer)
            self.pointer = None

    # From a request to tokens

    def prompt(self, request: Request) -> _Prompt | str:
        """The request encoded, or why it cannot be."""
        import numpy as np

        size = sum(len(text) for _, text in request.messages)
        if size > 64 * self.context:  # no need to encode it, and some tokenizers overflow the stack on such texts
            return f"too_long: {size} characters, the context holds {self.context} tokens"
        layout = self._layout(tuple(role for role, _ in request.messages))
        pieces = [
            self._encode_again(piece, True, i > 0)
            if isinstance(piece, str)
            else self._encode_again(request.messages[piece][1], False, i > 0)
            for i, piece in enumerate(layout)
        ]
        tokens = np.concatenate(pieces)
        begin = self.lib.llama_vocab_bos(self.vocab)
        if self.lib.llama_vocab_get_add_bos(self.vocab) and begin >= 0 and tokens[0] != begin:
            tokens = np.concatenate([np.array([begin], np.int32), tokens])
        tail = request.lead if request.explain == "before" else str(layout[-1])
        trie = self._trie(request.choices, tail) if request.choices else None
        limit = request.max_tokens if trie is None else depth(trie)
        limit += request.max_tokens if trie is not None and request.explain != "no" else 0
        if len(tokens) + limit > self.context:
            return f"too_long: {len(tokens) + limit} tokens, the context holds {self.context}"
        grammar = None
        if request.json_schema is not None and trie is None:
            try:
                grammar = _json_grammar(json.dumps(request.json_schema))
            except Exception as error:  # noqa: BLE001  the converter raises what it likes on a schema it cannot take
                return f"backend_error: llama.cpp takes no such JSON schema: {error!r}"
        return _Prompt(request, tokens, trie, grammar, limit)

    def encode(self, text: str, special: bool, within: bool = False) -> Tokens:
        """Token ids (int32) of a text. `within`: other text goes before it, so no blank is put in front (Llama 2)."""
        import numpy as np

        lib, spm = self.lib, self.lib.llama_vocab_type(self.vocab) == self.lib.LLAMA_VOCAB_TYPE_SPM
        if within and spm:  # the blank then stands in front of a newline, and both are cut off again
            before, joined = self.encode("\n", False), self.encode("\n" + text, special)
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
        return "" if token < 0 else str(self.lib.llama_vocab_get_text(self.vocab, token).decode("utf-8", "replace"))

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

    # From tokens to answers

    def answer(self, group: _Group) -> list[_Answer]:
        """Answer some prompts together; one by one where that fails. A failure is an answer too."""
        try:
            return self._answer(group)
        except _DecodeError as error:
            self._forget()
            if len(group.prompts) > 1 and not self.stopping:
                return [answer for prompt in group.prompts for answer in self.answer(_Group([prompt], 0))]
            return [_Answer(p.request, len(p.tokens), error=f"backend_error: {error}") for p in group.prompts]

    def _answer(self, group: _Group) -> list[_Answer]:
        self._share(group.prompts[0].tokens[: group.shared])
        rows = [_Row(self, prompt, sequence, group.shared) for sequence, prompt in enumerate(group.prompts, 1)]
        try:
            for row in rows:
                self.lib.llama_memory_seq_cp(self.memory, 0, row.sequence, -1, -1)
            self._extend(rows, [row.prompt.tokens[group.shared :] for row in rows])
            writing = rows
            while True:
                self._score([row for row in writing if row.to_score])
                writing = [row for row in writing if row.step()]
                if not writing:
                    break
                self._extend(writing, [row.take() for row in writing])
            self.lib.llama_memory_seq_keep(self.memory, 0)
            return [row.finish() for row in rows]
        finally:
            for row in rows:
                row.close()

    def _extend(self, rows: Sequence[_Row], tokens: Sequence[Any]) -> None:
        """Put tokens behind each row; the row's logits become those at its last token."""
        parts = [(row.sequence, row.position, part, (len(part) - 1,)) for row, part in zip(rows, tokens, strict=True)]
        for row, part, logits in zip(rows, tokens, self._decode(parts), strict=True):
            row.position += len(part)
            row.logits = logits

    def _score(self, rows: list[_Row]) -> None:
        """Note the logits at every inner node of the rows' tries, each path in a copy of the row's sequence."""
        paths = {row.sequence: inner_paths(row.prompt.trie) for row in rows}
        for row in rows:
            row.note((), row.logits)
        for turn in range(max(map(len, paths.values()), default=0)):
            asked = [(row, *paths[row.sequence][turn]) for row in rows if turn < len(paths[row.sequence])]
            for row, _, _ in asked:
                self.lib.llama_memory_seq_cp(self.memory, row.sequence, row.sequence + ROWS, -1, -1)
            logits = iter(self._decode((r.sequence + ROWS, r.position, path, at) for r, path, at in asked))
            for row, path, places in asked:
                for place in places:
                    row.note(path[: place + 1], next(logits))
                self.lib.llama_memory_seq_rm(self.memory, row.sequence + ROWS, -1, -1)

    def _share(self, prefix: Tokens) -> None:
        """Have sequence 0 hold exactly these tokens, decoding only what it does not hold yet."""
        kept = _shared(self.prefix, prefix)
        if kept < len(self.prefix) and not self.lib.llama_memory_seq_rm(self.memory, 0, kept, -1):
            self._forget()  # a recurrent model cannot go back
            kept = 0
        self.prefix = prefix[:kept]
        if kept < len(prefix):
            self._decode([(0, kept, prefix[kept:], ())])
        self.prefix = prefix

    def _forget(self) -> None:
        self.lib.llama_memory_clear(self.memory, False)
        self.prefix = self.prefix[:0]

    def _decode(self, parts: Iterable[tuple[int, int, Any, tuple[int, ...]]]) -> list[Logits]:
        """Decode (sequence, position of its first token, tokens, places whose logits are wanted).

        Returns the logits, (n_vocab,) float32 each, in the order of parts and places.
        """
        import numpy as np

        found: list[Logits] = []
        batch = self.batch
        used = wanted = 0

        def send() -> None:
            nonlocal used, wanted
            if not used:
                return
            _said.clear()
            status = self.lib.llama_decode(self.context_pointer, batch.struct(used))
            if status:
                raise _DecodeError("stopped" if self.stopping else f"llama_decode returned {status}: {_why()}")
            if wanted:
                logits = self.lib.llama_get_logits(self.context_pointer)
                table = np.ctypeslib.as_array(logits, (wanted, self.n_vocab)).copy()
                found.extend(table)
            used = wanted = 0

        for sequence, position, tokens, places in parts:
            done = 0
            while done < len(tokens):
                count = min(len(tokens) - done, BATCH - used)
                here = [place - done for place in places if done <= place < done + count]
                if not count or wanted + len(here) > OUTPUTS:
                    send()
                    continue
                end = used + count
                batch.tokens[used:end] = tokens[done : done + count]
                batch.positions[used:end] = range(position + done, position + done + count)
                batch.sequences[used:end] = sequence
                batch.outputs[used:end] = 0
                for place in here:
                    batch.outputs[used + place] = 1
                used, wanted, done = end, wanted + len(here), done + count
        send()
        return found

    def tokens_per_second(self, prompts: list[_Prompt]) -> float:
        """How fast prompts are read, from chunks that double in size until about a second has gone."""
        import numpy as np

        self.stopping = False
        tokens = np.concatenate([p.tokens for p in prompts])[: self.context]
        self._forget()
        done, size, rate, begun = 0, 16, 0.0, time.perf_counter()
        while done < len(tokens) and time.perf_counter() - begun < 0.4:
            part = tokens[done : done + size]
            before = time.perf_counter()
            try:
                self._decode([(0, done, part, ())])
            except _DecodeError as error:
                raise BackendError(f"{self.path} cannot decode: {error}") from error
            rate = max(rate, len(part) / (time.perf_counter() - before))
            done, size = done + len(part), min(size * 2, 512)
        self._forget()
        return rate

    def text(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(256)
        count = self.lib.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, False)
        return buffer.raw[: max(count, 0)]


class _Row:
    """One prompt in its sequence of the cache, on the way to its answer: a choice, free text, or one after the other."""

    def __init__(self, model: _Model, prompt: _Prompt, sequence: int, position: int) -> None:
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
        self.grammar = _Grammar(model, prompt.grammar) if prompt.grammar else None
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
        """Go on as far as the logits in hand allow. True when `take` has tokens to be decoded first."""
        explain = self.prompt.request.explain
        if self.chooses:
            assert self.node is not None
            if self._walk(self.node):
                return True
            self.chooses, self.chosen = False, self.node.label or ""
            self.written += self.chosen.encode()
            if explain == "after":
                self._say("\n")
            return explain == "after"
        if self._write():
            return True
        if explain == "before" and self.prompt.trie is not None and self.chosen is None and not self.chooses:
            self._say("" if not self.written or self.written.endswith(b"\n") else "\n")
            self._say(self.prompt.request.lead)
            self.chooses, self.finish_reason = True, "stop"
        return self.chooses

    def _say(self, text: str) -> None:
        """Put words into the model's mouth."""
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

    def finish(self) -> _Answer:
        answer = _Answer(self.prompt.request, len(self.prompt.tokens), self.count, finish_reason=self.finish_reason)
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
            lead = request.lead.rstrip()
            if self.written.rsplit(b"\n", 1)[-1].strip(b" \t*#_") == lead.encode():  # it has begun the last line itself
                self._say(request.lead[len(lead) :])
                self.chooses = True
                return True
        if self.count >= request.max_tokens - (LEAD_TOKENS if request.explain == "before" else 0):
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


class _Grammar:
    """llama.cpp's own grammar, which says what tokens may follow. For answers by a JSON schema."""

    def __init__(self, model: _Model, text: bytes) -> None:
        import numpy as np

        self.lib = model.lib
        _said.clear()
        self.pointer = self.lib.llama_sampler_init_grammar(model.vocab, text, b"root")
        if not self.pointer:
            raise _DecodeError(f"llama.cpp takes no such JSON schema: {_why()}")
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


class _Batch:
    """A llama_batch over numpy arrays, so that it is filled by slices."""

    def __init__(self, lib: Any) -> None:
        import numpy as np

        self.tokens = np.zeros(BATCH, np.int32)
        self.positions = np.zeros(BATCH, np.int32)
        self.sequences = np.zeros(BATCH, np.int32)
        self.outputs = np.zeros(BATCH, np.int8)
        self._counts = np.ones(BATCH, np.int32)  # each token is in one sequence
        self._where = self.sequences.ctypes.data + 4 * np.arange(BATCH, dtype=np.uintp)
        types = dict(lib.llama_batch._fields_)
        self._struct = lib.llama_batch(
            token=self.tokens.ctypes.data_as(types["token"]),
            pos=self.positions.ctypes.data_as(types["pos"]),
            n_seq_id=self._counts.ctypes.data_as(types["n_seq_id"]),
            seq_id=self._where.ctypes.data_as(types["seq_id"]),
            logits=self.outputs.ctypes.data_as(types["logits"]),
        )

    def struct(self, used: int) -> Any:
        self._struct.n_tokens = used
        return self._struct


def _groups(prompts: Sequence[_Prompt], together: int, cells: int) -> Iterator[_Group]:
    """The prompts, packed into what the cache holds. Those with the same first message are taken together.

    Short answers go by `together`. Long ones are written token by token, which costs as much for one row as for sixteen,
    so then all `cells` are used.
    """
    families: dict[object, list[_Prompt]] = {}
    for prompt in prompts:
        messages = prompt.request.messages
        families.setdefault(messages[0] if len(messages) > 1 else None, []).append(prompt)
    for family in families.values():
        first = family[0].tokens
        shared = min(min(_shared(first, p.tokens), len(p.tokens) - 1) for p in family)
        group: list[_Prompt] = []
        room = together if max(p.limit for p in family) <= LONG_ANSWER else max(together, cells - shared)
        free = room
        for prompt in family:
            need = len(prompt.tokens) - shared + prompt.limit
            if group and (len(group) == ROWS or need > free):
                yield _Group(group, shared)
                group, free = [], room
            group.append(prompt)
            free -= need
        yield _Group(group, shared)


def _together(parameters: int, width: int, layers: int) -> int:
    """How many tokens of rows to decode at once, so that attention to other rows' cells costs at most a tenth more.

    In one cache each token computes attention to the cells of all rows, masked or not: 4 * width * layers operations a
    cell, beside 2 * parameters for the rest. Narrow models are best served in small groups, wide ones in large.
    """
    return min(max(TOGETHER[0], int(0.1 * 2 * parameters / (4 * width * layers))), TOGETHER[1])


def _shared(left: Tokens, right: Tokens) -> int:
    """How many tokens two lists share at their start."""
    size = min(len(left), len(right))
    differ = left[:size] != right[:size]
    return int(differ.argmax()) if differ.any() else size


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


_log: Any = None  # llama.cpp calls it for as long as the process lives


def _library() -> Any:
    """The bindings, with llama.cpp's log turned away from stderr into `_said`."""
    global _log
    # OpenMP's threads wait by spinning, which on a busy machine costs the time slices that the others need: with two
    # other busy processes on two cores, waiting asleep is 5 to 15 times faster, and on an idle machine as fast.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import llama_cpp.llama_cpp as lib
    except ImportError as error:
        raise BackendUnavailable("llama_cpp needs a package: pip install 'alpasift[llama]'") from error
    except (OSError, RuntimeError, AttributeError) as error:
        raise BackendUnavailable(f"llama-cpp-python is installed but does not load: {error}") from error
    if _log is None:
        level = 0

        def keep(now: int, text: bytes, _: Any) -> None:
            nonlocal level
            level = level if now == LOG_CONTINUED else now
            if level == LOG_ERROR and len(_said) < 8:
                _said.append(text.decode("utf-8", "replace").strip())

        _log = lib.llama_log_callback(keep)
        lib.llama_log_set(_log, None)
        lib.llama_backend_init()
    return lib


def _why() -> str:
    """The first error that llama.cpp reported, without the name of its function."""
    return re.sub(r"^\w+: (error loading model: )?", "", _said[0]) if _said else "llama.cpp gave no reason"


def _check(path: Path) -> None:
    """Raise unless this is a file that begins as GGUF files do."""
    try:
        if path.is_dir():
            raise BackendError(f"{path} is a folder; name the .gguf file in it")
        if path.exists() and not path.is_file():
            raise BackendError(f"{path} is no ordinary file; name a .gguf file")
        with path.open("rb") as file:
            magic = file.read(4)
    except FileNotFoundError as error:
        raise BackendUnavailable(f"there is no file {path}; download a GGUF model, or correct the path") from error
    except (OSError, ValueError) as error:
        raise BackendError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not magic:
        raise BackendError(f"{path} is empty; download it again")
    if magic != b"GGUF":
        raise BackendError(
            f"{path} is no GGUF file: it begins with {magic!r}; llama.cpp's convert_hf_to_gguf.py makes one"
        )


def _threads() -> int:
    """Cores rather than hyperthreads, of the CPUs that this process may use; ALPASIFT_LLAMA_THREADS overrides."""
    asked = os.environ.get("ALPASIFT_LLAMA_THREADS", "")
    if asked:
        if not asked.isdecimal() or not 1 <= int(asked) <= 512:
            raise BackendError(f"ALPASIFT_LLAMA_THREADS is {asked!r}; give a number of threads, 1 to 512")
        return int(asked)
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cpus = os.sched_getaffinity(0)
    try:
        cores = {Path(f"/sys/devices/system/cpu/cpu{c}/topology/thread_siblings_list").read_text() for c in cpus}
    except OSError:
        return len(cpus)
    return max(1, len(cores))
