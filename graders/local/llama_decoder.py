"""Decode many rows together with llama.cpp, the text they share only once. Call `groups`, then `Decoder.answer`.

The fixed text is the same for every row, so it is decoded once, into sequence 0 of the cache. Up to 16 rows then start
from a copy of it (`llama_memory_seq_cp` shares the cells), and one `llama_decode` reads all their own tokens:

    seq 0    <system> the fixed text
    seq 1                        <user> row 1 <assistant>  -> logits -> "4", ".", "5"
    seq 2                        <user> row 2 <assistant>  -> logits -> "3"
    ...

What is shared is found by comparing the token lists of whole prompts, never by cutting text: no token can straddle the
cut. Weights in float16 or wider are read without flash attention, because with it the scores of a row depend on how its
prompt was split (2e-3 to 1e-2 in log-probability); without it a row gets the same answer alone, in any company, and
from a full decode (1e-6). Quantised weights depend on the company anyway, since llama.cpp rounds activations to eight
bits and takes other kernels for other sizes: log-probabilities of SmolLM2-135M in Q4_1 moved by up to .34 over ten rows
without flash attention, by up to .33 with it. They are read with it, which skips the cells of other rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alpasift.graders import BackendUnavailable
from alpasift.graders.local.blocks import Answer
from alpasift.graders.local.choices import inner_paths
from alpasift.graders.local.llama_library import DecodeError, clear_errors, first_error, thread_count
from alpasift.graders.local.llama_model import LlamaModel, Prompt
from alpasift.graders.local.llama_rows import Row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Tokens = NDArray[np.int32]
    Logits = NDArray[np.float32]

ROWS = 16
"""Rows decoded together at most."""
LEAST_TOGETHER, MOST_TOGETHER = 256, 1536
"""The least and the most tokens of their own that such rows have; see `_together`."""
LONG_ANSWER = 32
"""Tokens of an answer above which rows are packed as densely as the cache allows."""
BATCH = 512
"""Tokens handed to one llama_decode."""
GGML_TYPE_F32 = 0
OUTPUTS = 64
"""Positions of one llama_decode whose logits are kept."""
TRIED = OUTPUTS - ROWS - 1
"""Continuations tried together, each in a sequence of its own: llama.cpp takes at most `OUTPUTS` sequences."""


@dataclass(frozen=True, slots=True)
class Group:
    """Prompts to be decoded together; their first `shared` tokens are the same."""

    prompts: list[Prompt]
    shared: int


class Decoder:
    """A model's cache, with sequence 0 for what is shared. Used by one thread at a time; `stopping` ends a decode.

    `cells` is the size of the cache in tokens, `together` how many tokens of their own the rows of a group may have,
    `outputs` the positions of one llama_decode whose logits are kept. `exact` keeps the cache in float32, not float16.
    """

    def __init__(self, model: LlamaModel, outputs: int = OUTPUTS, *, exact: bool = False) -> None:
        self.model, self.lib, self.outputs, self.stopping = model, model.lib, outputs, False
        lib = self.lib
        self.threads = thread_count()
        sizes = model.parameters, lib.llama_model_n_embd(model.pointer)
        self.together = _together(*sizes, lib.llama_model_n_layer(model.pointer))
        self.cells = model.context + self.together
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_seq_max = self.cells, 1 + ROWS + TRIED
        params.n_batch = params.n_ubatch = BATCH
        params.n_outputs_max = params.n_outputs_max_per_seq = outputs
        params.n_threads = params.n_threads_batch = self.threads
        params.kv_unified = True
        if exact:
            params.type_k = params.type_v = GGML_TYPE_F32
        self.flash_attention = not exact and model.quantised
        params.flash_attn_type = (
            lib.LLAMA_FLASH_ATTN_TYPE_AUTO if self.flash_attention else lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        self._stop = lib.ggml_abort_callback(lambda _: self.stopping)  # kept: C holds no reference
        params.abort_callback = self._stop
        clear_errors()
        self.context_pointer: Any = lib.llama_init_from_model(model.pointer, params)
        if not self.context_pointer:
            raise BackendUnavailable(
                f"not enough memory for {model.path} and a KV cache of {self.cells} tokens: {first_error()}"
            )
        self.memory = lib.llama_get_memory(self.context_pointer)
        self.batch = _Batch(lib)
        self.prefix: Tokens = self.batch.tokens[:0].copy()  # what sequence 0 holds

    def close(self) -> None:
        self.stopping = True
        if self.context_pointer:
            self.lib.llama_free(self.context_pointer)
            self.context_pointer = None

    def groups(self, prompts: Sequence[Prompt]) -> Iterator[Group]:
        """The prompts in groups to be decoded together, as `pack` makes them for this cache."""
        return pack(prompts, self.together, self.cells)

    def answer(self, group: Group) -> list[Answer]:
        """Answer some prompts together; one by one where that fails. A failure is an answer too."""
        try:
            return self._answer(group)
        except DecodeError as error:
            self.forget()
            if len(group.prompts) > 1 and not self.stopping:
                return [answer for prompt in group.prompts for answer in self.answer(Group([prompt], 0))]
            return [Answer(len(p.tokens), error=f"backend_error: {error}") for p in group.prompts]

    def _answer(self, group: Group) -> list[Answer]:
        self._share(group.prompts[0].tokens[: group.shared])
        rows = [Row(self.model, prompt, sequence, group.shared) for sequence, prompt in enumerate(group.prompts, 1)]
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

    def _extend(self, rows: Sequence[Row], tokens: Sequence[Any]) -> None:
        """Put tokens behind each row; the row's logits become those at its last token."""
        parts = [(row.sequence, row.position, part, (len(part) - 1,)) for row, part in zip(rows, tokens, strict=True)]
        for row, part, logits in zip(rows, tokens, self.decode(parts), strict=True):
            row.position += len(part)
            row.logits = logits

    def _score(self, rows: list[Row]) -> None:
        """Note the logits at every inner node of the rows' tries, each path in a copy of the row's sequence."""
        for row in rows:
            row.note((), row.logits)
        every = [(row, *path) for row in rows for path in inner_paths(row.prompt.trie)]
        for asked in (every[at : at + TRIED] for at in range(0, len(every), TRIED)):
            copies = range(ROWS + 1, ROWS + 1 + len(asked))
            for (row, _, _), copy in zip(asked, copies, strict=True):
                self.lib.llama_memory_seq_cp(self.memory, row.sequence, copy, -1, -1)
            parts = [(copy, row.position, path, at) for copy, (row, path, at) in zip(copies, asked, strict=True)]
            logits = iter(self.decode(parts))
            for (row, path, places), copy in zip(asked, copies, strict=True):
                for place in places:
                    row.note(path[: place + 1], next(logits))
                self.lib.llama_memory_seq_rm(self.memory, copy, -1, -1)

    def _share(self, prefix: Tokens) -> None:
        """Have sequence 0 hold exactly these tokens, decoding only what it does not hold yet."""
        kept = shared_tokens(self.prefix, prefix)
        if kept < len(self.prefix) and not self.lib.llama_memory_seq_rm(self.memory, 0, kept, -1):
            self.forget()  # a recurrent model cannot go back
            kept = 0
        self.prefix = prefix[:kept]
        if kept < len(prefix):
            self.decode([(0, kept, prefix[kept:], ())])
        self.prefix = prefix

    def forget(self) -> None:
        self.lib.llama_memory_clear(self.memory, False)
        self.prefix = self.prefix[:0]

    def decode(
        self,
        parts: Iterable[tuple[int, int, Any, Sequence[int]]],
        read: Callable[[Logits], Iterable[Any]] | None = None,
    ) -> list[Any]:
        """Decode (sequence, position of its first token, tokens, places whose logits are wanted).

        Returns the logits, (n_vocab,) float32 each, in the order of parts and places; or what `read` makes of each
        table of them, (places, n_vocab), which it must not keep.
        """
        import numpy as np

        found: list[Any] = []
        batch = self.batch
        used = wanted = 0

        def send() -> None:
            nonlocal used, wanted
            if not used:
                return
            clear_errors()
            status = self.lib.llama_decode(self.context_pointer, batch.struct(used))
            if status:
                raise DecodeError("stopped" if self.stopping else f"llama_decode returned {status}: {first_error()}")
            if wanted:
                logits = self.lib.llama_get_logits(self.context_pointer)
                table = np.ctypeslib.as_array(logits, (wanted, self.model.n_vocab))
                found.extend(table.copy() if read is None else read(table))
            used = wanted = 0

        for sequence, position, tokens, places in parts:
            done = 0
            while done < len(tokens):
                count = min(len(tokens) - done, BATCH - used)
                here = [place - done for place in places if done <= place < done + count]
                if not count or (used and wanted + len(here) > self.outputs):
                    send()
                    continue
                if len(here) > self.outputs:
                    count, here = here[self.outputs], here[: self.outputs]
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


def pack(prompts: Sequence[Prompt], together: int, cells: int) -> Iterator[Group]:
    """The prompts, packed into what the cache holds. Those with the same first message are taken together.

    Short answers go by `together`. Long ones are written token by token, which costs as much for one row as for
    sixteen, so then all `cells` are used.
    """
    families: dict[object, list[Prompt]] = {}
    for prompt in prompts:
        messages = prompt.request.messages
        families.setdefault(messages[0] if len(messages) > 1 else None, []).append(prompt)
    for family in families.values():
        first = family[0].tokens
        shared = min(min(shared_tokens(first, p.tokens), len(p.tokens) - 1) for p in family)
        group: list[Prompt] = []
        room = together if max(p.limit for p in family) <= LONG_ANSWER else max(together, cells - shared)
        free = room
        for prompt in family:
            need = len(prompt.tokens) - shared + prompt.limit
            if group and (len(group) == ROWS or need > free):
                yield Group(group, shared)
                group, free = [], room
            group.append(prompt)
            free -= need
        yield Group(group, shared)


def _together(parameters: int, width: int, layers: int) -> int:
    """How many tokens of rows to decode at once, so that attention to other rows' cells costs at most a tenth more.

    In one cache each token computes attention to the cells of all rows, masked or not: 4 * width * layers operations a
    cell, beside 2 * parameters for the rest. Narrow models are best served in small groups, wide ones in large.
    """
    return min(max(LEAST_TOGETHER, int(0.1 * 2 * parameters / (4 * width * layers))), MOST_TOGETHER)


def shared_tokens(left: Tokens, right: Tokens) -> int:
    """How many tokens two lists share at their start."""
    size = min(len(left), len(right))
    differ = left[:size] != right[:size]
    return int(differ.argmax()) if differ.any() else size
