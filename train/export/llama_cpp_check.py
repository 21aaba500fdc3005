"""llama.cpp on a GGUF file: quantise it, and read it back to check its tokens and its logits.

    write_gguf --> f32, f16 or bf16 --quantise--> q8_0, q4_k_m --check_tokens, gguf_logits-->

Calls the C functions of llama-cpp-python. Knows GGUF files; nothing of how they were written.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alpasift.graders import BackendUnavailable
from alpasift.train.artifacts import TrainError
from alpasift.train.export.gguf_writer import missing_requirements

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Quantised = Literal["q8_0", "q4_k_m"]
PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "Don't they'll say we've won? IT'S I'M you'D",
    "In 2024, 1234567 items at $3.50 cost 12.5% more (about 1,000,000).",
    "def add(a, b):\n    return a + b  # sum\n\n\n\tdone = True",
    " one  two   three    four\n five\r\n\r\nsix ",
    "Größe, naïve café, señor; Ελλάδα и Москва",
    "日本語の文章と中文句子，한국어도 있다。",
    "emoji 🙂👍🏽 and ½ ² Ⅷ ٣٤ — “quotes” … €100",
    "### Instruction:\nName a river.\n\n### Response:\n",
    'x_y=z->w; a!=b && c||d </tag> {"k": [1, 2]} ~/.cache/@home #tag',
)
"""Texts on which two tokenizers that are not the same give different tokens."""


def quantise(source: Path, target: Path, kind: Quantised) -> None:
    """Have llama.cpp write `source` with smaller weights. Raises TrainError with its reason, OSError on a full disk."""
    with _llama() as (lib, errors):
        params = lib.llama_model_quantize_default_params()
        params.ftype = {"q8_0": lib.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_k_m": lib.LLAMA_FTYPE_MOSTLY_Q4_K_M}[kind]
        params.nthread = _threads()
        failed = lib.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params))
    if failed or not target.is_file():
        if any("iostream error" in text for text in errors):  # all that C++ reports for a full disk
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        raise TrainError(f"llama.cpp could not quantise to {kind}: {errors[0] if errors else 'no reason given'}")


def tensor_kinds(path: Path) -> dict[str, dict[str, int]]:
    """How many tensors of each kind a GGUF file holds, by kind: how many, and how many numbers they have."""
    import gguf

    found: dict[str, dict[str, int]] = {}
    for tensor in gguf.GGUFReader(path).tensors:
        entry = found.setdefault(tensor.tensor_type.name, {"tensors": 0, "weights": 0})
        entry["tensors"] += 1
        entry["weights"] += int(tensor.n_elements)
    return found


def check_tokens(path: Path, tokenizer: Any, texts: Sequence[str]) -> tuple[int, tuple[str, ...]]:
    """Have llama.cpp and transformers tokenise the same texts. Returns how many tokens, and remarks.

    Raises TrainError where they differ. One difference is only remarked on: before a text that begins with a blank,
    SentencePiece and llama.cpp put another one, newer versions of transformers do not.
    """
    count, remarks = 0, ()  # type: int, tuple[str, ...]
    with _model(path, vocab_only=True) as (lib, model):
        vocab = lib.llama_model_get_vocab(model)
        pieces = lib.llama_vocab_type(vocab) == lib.LLAMA_VOCAB_TYPE_SPM
        if pieces and _encode(lib, vocab, " a") != tokenizer(" a", add_special_tokens=False)["input_ids"]:
            remarks = ("llama.cpp adds one more space than transformers before a text that starts with a space",)
        for text in texts:
            text = text.lstrip(" ") if pieces else text
            expected = tokenizer(text, add_special_tokens=False)["input_ids"]
            if (found := _encode(lib, vocab, text)) != expected:
                at = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), 0)
                raise TrainError(
                    f"llama.cpp splits {text[:40]!r} into other tokens than the model's own tokenizer does "
                    f"({found[at : at + 3]} instead of {expected[at : at + 3]}), so a GGUF file would answer "
                    "differently; export it merged"
                )
            count += len(found)
    return count, remarks


def _encode(lib: Any, vocab: Any, text: str) -> list[int]:
    data = text.encode()
    room = (lib.llama_token * (len(data) + 8))()
    count = lib.llama_tokenize(vocab, data, len(data), room, len(room), False, False)
    return list(room[: max(count, 0)])


def gguf_logits(path: Path, rows: Sequence[Sequence[int]]) -> Iterator[NDArray[np.float32]]:
    """llama.cpp's logits (T, V) after each token of each row, by a full decode with a float32 cache.

    Raises TrainError when the file cannot be loaded or decoded.
    """
    import numpy as np

    longest = max(map(len, rows), default=1)
    with _model(path) as (lib, model):
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = longest
        params.n_outputs_max = params.n_outputs_max_per_seq = longest
        params.n_threads = params.n_threads_batch = _threads()
        params.type_k = params.type_v = lib.GGML_TYPE_F32
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        context = lib.llama_init_from_model(model, params)
        if not context:
            raise TrainError(f"llama.cpp has no memory for {path} and {longest} tokens")
        try:
            size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
            for row in rows:
                lib.llama_memory_clear(lib.llama_get_memory(context), True)
                batch = lib.llama_batch_init(len(row), 0, 1)
                try:
                    batch.n_tokens = len(row)
                    for at, token in enumerate(row):
                        batch.token[at], batch.pos[at], batch.logits[at] = token, at, 1
                        batch.n_seq_id[at], batch.seq_id[at][0] = 1, 0
                    if status := lib.llama_decode(context, batch):
                        raise TrainError(f"llama.cpp cannot decode with {path} (status {status})")
                    yield np.ctypeslib.as_array(lib.llama_get_logits(context), (len(row), size)).copy()
                finally:
                    lib.llama_batch_free(batch)
        finally:
            lib.llama_free(context)


@contextmanager
def _model(path: Path, vocab_only: bool = False) -> Iterator[tuple[Any, Any]]:
    with _llama() as (lib, errors):
        params = lib.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = 0
        params.use_extra_bufts = False  # it is a check: no code for one kind of processor
        model = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not model:
            raise TrainError(f"llama.cpp cannot load {path}: {errors[0] if errors else 'no reason given'}")
        try:
            yield lib, model
        finally:
            lib.llama_model_free(model)


@contextmanager
def _llama() -> Iterator[tuple[Any, list[str]]]:
    """The bindings, and the errors that llama.cpp reports; nothing of its log reaches the terminal."""
    if missing := missing_requirements():
        raise BackendUnavailable(missing)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads take time from the others
    try:
        import llama_cpp.llama_cpp as lib
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise BackendUnavailable(f"llama-cpp-python is installed but cannot be loaded: {error}") from error
    errors: list[str] = []

    def keep(level: int, text: bytes, _: Any) -> None:
        if level == 4:  # an error
            errors.append(re.sub(r"^\w+: ", "", text.decode("utf-8", "replace").strip()))

    before, data = lib.llama_log_callback(), ctypes.c_void_p()
    lib.llama_log_get(ctypes.byref(before), ctypes.byref(data))
    ours = lib.llama_log_callback(keep)
    lib.llama_log_set(ours, None)
    try:
        lib.llama_backend_init()
        yield lib, errors
    finally:
        lib.llama_log_set(before, data)


def _threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
