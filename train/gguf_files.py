"""GGUF files: a Hugging Face folder written as one, quantised by llama.cpp, and read back by llama.cpp to check it.

    folder --write_gguf--> f32, f16 or bf16 --quantise--> q8_0, q4_k_m

Weights go from file to file one tensor at a time. Names come from the package `gguf`; the order of rotated rows, the
kinds of tokens and the keys are those that llama.cpp documents or was seen to read
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). What could be guessed wrong without anybody noticing, the way a
tokenizer cuts text, is compared token by token before a file is let go. Knows folders and files; nothing of adapters.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from graders import BackendUnavailable
from train.artifacts import TrainError
from train.models import find_base, load_tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Stored = Literal["f32", "f16", "bf16"]
Quantised = Literal["q8_0", "q4_k_m"]

ARCHITECTURES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}
"""What can be written, and llama.cpp's name for how it computes: Mistral's layers are Llama's."""
MARK = "alpasift.export"
"""The key of our facts in a GGUF file; it stands near its beginning."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of tokens: SentencePiece's numbers, which GGUF took over."""
BLANK = "\u2581"
F16_MAX = 65_504.0

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
PRE_TOKENIZERS: dict[tuple[str, bool], str] = {
    (rf"{_SHORT}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}", True): "llama-bpe",
    (rf"{_SHORT}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}", False): "smaug-bpe",
    (rf"{_SHORT}|{_WORDS}|\p{{N}}|{_REST}", False): "qwen2",
    ("ByteLevel", False): "gpt-2",
    ("Digits+ByteLevel", False): "smollm",
}
"""llama.cpp's name of a way to cut text before merging, by its pattern and by whether whole words skip the merges."""

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
    "x_y=z->w; a!=b && c||d </tag> {\"k\": [1, 2]} ~/.cache/@home #tag",
)  # fmt: skip
"""Texts on which two tokenizers that are not the same come apart."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer as GGUF holds it. `scores` belong to SentencePiece's kind ("llama"), `merges` to bytes' ("gpt2")."""

    model: Literal["llama", "gpt2"]
    pre: str
    tokens: list[str]
    kinds: list[int]
    scores: list[float] | None
    merges: list[str] | None
    blank_first: bool
    remarks: tuple[str, ...]


def lacks() -> str | None:
    """What this machine lacks to write and check GGUF files, None when nothing."""
    from importlib.util import find_spec

    if find_spec("llama_cpp") is None:
        return "GGUF files are quantised and checked by llama.cpp, which is missing: pip install 'alpasift[llama]'"
    if find_spec("gguf") is None:
        return "writing GGUF files needs the package gguf: pip install 'alpasift[train]'"
    return None


def check_exportable(folder: Path, words: Path) -> None:
    """Raise TrainError where a folder's architecture, or the tokenizer in `words`, has no sure form in GGUF. Opens no weights."""
    config = _config(folder)
    _arch(folder)
    _rope(config, _arch(folder))
    vocabulary(words, load_tokenizer(words), int(config.vocab_size))


def write_gguf(
    folder: Path, path: Path, store: Stored, *, chat_template: str | None, name: str, facts: Mapping[str, Any]
) -> tuple[str, ...]:
    """Write a folder with safetensors as a GGUF file, matrices in `store`, all else in float32. Returns remarks.

    `facts` are put into the file under MARK. Raises TrainError where something of the model has no sure form in GGUF.
    """
    import gguf

    base = find_base(folder)
    config, arch = _config(folder), _arch(folder)
    tokenizer = load_tokenizer(folder)
    writer: Any = gguf.GGUFWriter(path, arch)
    try:
        writer.add_string(MARK, json.dumps(facts, ensure_ascii=False))
        writer.add_name(name)
        writer.add_file_type(
            {"f32": gguf.LlamaFileType.ALL_F32, "f16": gguf.LlamaFileType.MOSTLY_F16, "bf16": gguf.LlamaFileType.MOSTLY_BF16}[store]
        )  # fmt: skip
        context, remarks = _context(config)
        _add_shape(writer, config, context)
        factors = _add_rope(writer, config, arch)
        words = vocabulary(folder, tokenizer, int(config.vocab_size))
        _add_vocabulary(writer, words, tokenizer, chat_template, folder)
        _write_tensors(writer, base.weights, config, arch, store, factors)
    finally:
        writer.close()
    return (*remarks, *words.remarks)


# -- shape ------------------------------------------------------------------------------------------------------------


def _arch(folder: Path) -> str:
    found = (json.loads((folder / "config.json").read_text("utf-8")).get("architectures") or ["no architecture"])[0]
    if found not in ARCHITECTURES:
        raise TrainError(
            f"{folder} is a {found}; GGUF files are written of {', '.join(ARCHITECTURES)}. Export it as merged weights, and "
            "convert those with llama.cpp's convert_hf_to_gguf.py"
        )
    return ARCHITECTURES[found]


def _config(folder: Path) -> Any:
    """The configuration as transformers understands it, old and new spellings of the rotary embedding alike."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainError(f"the configuration of {folder} cannot be read: {str(error).splitlines()[0]}") from error


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _context(config: Any) -> tuple[int, tuple[str, ...]]:
    """Tokens of context: what the model was made for, but no more than its sliding window, which llama.cpp does not apply."""
    context = int(config.max_position_embeddings)
    window = getattr(config, "sliding_window", None)
    if window is None or getattr(config, "use_sliding_window", True) is False or int(window) >= context:
        return context, ()
    return int(window), (
        f"its attention reaches back {int(window):,} tokens, which llama.cpp does not limit: the context is set to that, "
        f"not to {context:,}",
    )


def _add_shape(writer: Any, config: Any, context: int) -> None:
    dim = _head_dim(config)
    writer.add_context_length(context)
    writer.add_embedding_length(int(config.hidden_size))
    writer.add_block_count(int(config.num_hidden_layers))
    writer.add_feed_forward_length(int(config.intermediate_size))
    writer.add_head_count(int(config.num_attention_heads))
    writer.add_head_count_kv(int(config.num_key_value_heads))
    writer.add_key_length(dim)
    writer.add_value_length(dim)
    writer.add_rope_dimension_count(dim)
    writer.add_layer_norm_rms_eps(float(config.rms_norm_eps))
    writer.add_vocab_size(int(config.vocab_size))


def _rope(config: Any, arch: str) -> dict[str, Any]:
    """The rotary embedding's settings. Raises TrainError for a kind that llama.cpp would compute otherwise."""
    settings = dict(config.rope_parameters or {})
    kind = settings.get("rope_type", "default")
    known = {"default", "linear", "yarn"} | ({"llama3"} if arch == "llama" else set())
    if kind not in known or settings.get("partial_rotary_factor", 1.0) != 1.0:
        raise TrainError(
            f"rotary embeddings of kind {kind} have no sure form in GGUF for this architecture; export it merged"
        )
    usual = {
        "beta_fast": 32,
        "beta_slow": 1,
        "attention_factor": None,
        "mscale": None,
        "mscale_all_dim": None,
        "truncate": True,
    }
    odd = [name for name, value in usual.items() if settings.get(name) not in (value, None)]
    if kind == "yarn" and odd:
        raise TrainError(f"its yarn embedding sets {', '.join(odd)}, which GGUF has no sure form for; export it merged")
    return {"kind": kind, **settings}


def _add_rope(writer: Any, config: Any, arch: str) -> NDArray[np.float32] | None:
    """Write the rotary embedding's keys. Returns what each frequency is divided by, (head_dim / 2,), where it is not 1."""
    import gguf

    settings = _rope(config, arch)
    theta = float(settings.get("rope_theta") or getattr(config, "default_theta", None) or 10_000.0)
    writer.add_rope_freq_base(theta)
    if settings["kind"] in ("linear", "yarn"):
        kinds = {"linear": gguf.RopeScalingType.LINEAR, "yarn": gguf.RopeScalingType.YARN}
        writer.add_rope_scaling_type(kinds[settings["kind"]])
        writer.add_rope_scaling_factor(float(settings["factor"]))
        if settings["kind"] == "yarn":
            first = settings.get("original_max_position_embeddings") or config.max_position_embeddings
            writer.add_rope_scaling_orig_ctx_len(int(first))
    if settings["kind"] != "llama3":
        return None
    import numpy as np
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")  # Llama 3.1: slow rotations are slowed further
    plain = theta ** -(np.arange(0, _head_dim(config), 2, dtype=np.float64) / _head_dim(config))
    return np.asarray(plain / scaled.double().numpy(), np.float32)


# -- tensors ----------------------------------------------------------------------------------------------------------


def paired(rows: Any, heads: int) -> Any:
    """Rows of a query or key projection, (heads * head_dim, ...), in llama.cpp's order.

    transformers rotates the first half of a head against the second; llama.cpp keeps the two of a pair side by side.
    """
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _write_tensors(
    writer: Any, files: Sequence[Path], config: Any, arch: str, store: Stored, factors: NDArray[np.float32] | None
) -> None:
    """Two passes: names and shapes, then the data in the same order, one tensor in memory at a time."""
    import gguf
    import numpy as np
    import torch
    from safetensors import safe_open

    names = gguf.get_tensor_name_map(
        gguf.MODEL_ARCH.LLAMA if arch == "llama" else gguf.MODEL_ARCH.QWEN2, int(config.num_hidden_layers)
    )
    kinds: dict[str, tuple[np.dtype[Any], Any, torch.dtype]] = {
        "f32": (np.dtype(np.float32), None, torch.float32),
        "f16": (np.dtype(np.float16), None, torch.float16),
        "bf16": (np.dtype(np.int16), gguf.GGMLQuantizationType.BF16, torch.bfloat16),
    }
    plan: list[tuple[Path, str, bool]] = []
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    for file in files:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  it is no dict
                if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tie_word_embeddings):
                    continue
                target = names.get_name(name, try_suffixes=(".weight", ".bias"))
                if target is None:
                    raise TrainError(f"{file} holds {name}, which GGUF has no place for; export it merged")
                shape = tuple(tensors.get_slice(name).get_shape())
                matrix = len(shape) > 1
                dtype, raw, _ = kinds[store if matrix else "f32"]
                writer.add_tensor_info(target, shape, dtype, int(np.prod(shape)) * dtype.itemsize, raw_dtype=raw)
                plan.append((file, name, matrix))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    heads = {"q_proj": int(config.num_attention_heads), "k_proj": int(config.num_key_value_heads)}
    for file in files:
        with safe_open(file, "pt") as tensors:
            for _, name, matrix in (entry for entry in plan if entry[0] == file):
                data = tensors.get_tensor(name)
                count = heads.get(name.split(".")[-2])
                if count and arch == "llama":
                    data = paired(data, count)
                dtype, raw, kept = kinds[store if matrix else "f32"]
                if kept is torch.float16 and data.dtype is not torch.float16 and float(data.abs().max()) > F16_MAX:
                    raise TrainError(
                        f"{name} holds values that float16 cannot; export it with --quantisation bf16 or q8_0"
                    )
                data = data.to(kept).contiguous()
                writer.write_tensor_data((data.view(torch.int16) if raw is not None else data).numpy())


# -- tokenizer --------------------------------------------------------------------------------------------------------


def vocabulary(folder: Path, tokenizer: Any, rows: int) -> Vocabulary:
    """A folder's tokenizer for a model with `rows` embeddings. Raises TrainError for a kind that is not known for sure."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TrainError(f"the tokenizer of {folder} has no tokenizer.json form; GGUF needs one. Export it merged")
    spec = json.loads(backend.to_str())
    model = spec["model"]
    if model.get("type") != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise TrainError(
            f"the tokenizer of {folder} is a {model.get('type')}; GGUF files are written of BPE tokenizers only"
        )
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    tokens: list[str | None] = [None] * max(rows, 1 + max(model["vocab"].values(), default=0))
    kinds = [UNUSED] * len(tokens)
    for token, number in model["vocab"].items():
        tokens[number], kinds[number] = token, NORMAL
    added = {int(entry["id"]): entry for entry in spec.get("added_tokens") or ()}
    if max([len(tokens) - 1, *added]) >= rows:
        raise TrainError(
            f"the tokenizer of {folder} has more tokens than the model has embeddings ({rows:,}); copy it again"
        )
    scores: list[float] | None = None
    if model.get("byte_fallback"):
        kind: Literal["llama", "gpt2"] = "llama"
        pre, remarks = "default", ()  # type: str, tuple[str, ...]
        scores = _scores(folder / "tokenizer.model", model["vocab"], merges, len(tokens))
        for number, token in enumerate(tokens):
            if token is not None and re.fullmatch(r"<0x[0-9A-F]{2}>", token):
                kinds[number] = BYTE
    else:
        kind = "gpt2"
        pre, remarks = _pre_tokenizer(folder, spec)
    for number, entry in added.items():
        tokens[number], kinds[number] = entry["content"], CONTROL if entry["special"] else USER_DEFINED
    if kind == "llama" and tokenizer.unk_token_id is not None:
        kinds[tokenizer.unk_token_id] = UNKNOWN
    named = [token if token is not None else f"[PAD{number}]" for number, token in enumerate(tokens)]
    first = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False)["input_ids"])[0]
    return Vocabulary(
        kind, pre, named, kinds, scores, merges if kind == "gpt2" else None, str(first).startswith(BLANK), remarks
    )


def _pre_tokenizer(folder: Path, spec: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """llama.cpp's name for how this byte-level tokenizer cuts text, and remarks."""
    top = spec.get("pre_tokenizer") or {}
    steps = top.get("pretokenizers", [top])
    shape = "+".join(str(step.get("type")) for step in steps)
    last = steps[-1]
    plain = last.get("type") == "ByteLevel" and not last.get("add_prefix_space")
    if shape == "Split+ByteLevel" and not last.get("use_regex", True):
        rule, whole = steps[0].get("pattern", {}).get("Regex"), steps[0]
        plain = plain and whole.get("behavior") == "Isolated" and not whole.get("invert")
    elif shape == "Digits+ByteLevel" and steps[0].get("individual_digits") and last.get("use_regex", True):
        rule = shape
    else:
        rule = shape if shape == "ByteLevel" and last.get("use_regex", True) else None
    name = PRE_TOKENIZERS.get((str(rule), bool(spec["model"].get("ignore_merges")))) if plain else None
    if name is None:
        raise TrainError(
            f"how the tokenizer of {folder} cuts text ({shape}) is none that AlpaSift knows llama.cpp's name for, and a guess "
            "would spoil every answer; export it merged, and convert that with llama.cpp's convert_hf_to_gguf.py"
        )
    normalizer = spec.get("normalizer")
    if normalizer is None:
        return name, ()
    if normalizer.get("type") != "NFC":
        raise TrainError(
            f"the tokenizer of {folder} rewrites text ({normalizer.get('type')}), which llama.cpp would not do"
        )
    return name, ("its tokenizer brings text into Unicode's form NFC, which llama.cpp does not do",)


def _scores(file: Path, vocab: Mapping[str, int], merges: Sequence[str], size: int) -> list[float]:
    """The score of each token: llama.cpp merges first what has the highest.

    They are in tokenizer.model. Without that file, a token's score is the place of its first merge, counted down: tokenizer.json
    lists the merges in the order of the scores.
    """
    scores = [-1e6] * size
    if not file.is_file():
        for place, merge in enumerate(merges):
            number = vocab[merge.replace(" ", "", 1)]
            scores[number] = max(scores[number], -float(place))
        return scores
    pieces = read_sentencepiece(file)
    for number, (piece, score) in enumerate(pieces):
        if vocab.get(piece, number) != number:
            raise TrainError(
                f"{file} and the tokenizer.json beside it number {piece!r} differently; copy the model again"
            )
        if number < size:
            scores[number] = score
    return scores


def read_sentencepiece(file: Path) -> list[tuple[str, float]]:
    """The pieces of a tokenizer.model and their scores. Raises TrainError where it is no BPE, or rewrites text.

    Format: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto, in protobuf's wire format.
    """
    pieces: list[tuple[str, float]] = []
    kind, rewrites = 1, False
    try:
        for field, value in _wire(file.read_bytes()):
            entry: dict[int, Any] = dict(_wire(value)) if isinstance(value, bytes) else {}
            if field == 1:
                pieces.append((entry[1].decode(), entry.get(2, 0.0)))
            elif field == 2:
                kind = entry.get(3, 1)
            elif field == 3:
                rewrites = bool(entry.get(2))
    except (ValueError, KeyError, IndexError, struct.error, AttributeError) as error:
        raise TrainError(f"{file} is no SentencePiece model; copy it again") from error
    if kind != 2:
        raise TrainError(f"{file} is no BPE model; GGUF files are written of BPE tokenizers only")
    if rewrites:
        raise TrainError(f"{file} rewrites text before cutting it, which llama.cpp would not do; export it merged")
    return pieces


def _wire(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protobuf message: number, and an int, a float or bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = varint()
        match key & 7:
            case 0:
                yield key >> 3, varint()
            case 1:
                yield key >> 3, struct.unpack_from("<d", data, at)[0]
                at += 8
            case 2:
                length = varint()
                yield key >> 3, data[at : at + length]
                at += length
            case 5:
                yield key >> 3, struct.unpack_from("<f", data, at)[0]
                at += 4
            case other:
                raise ValueError(other)


def _add_vocabulary(writer: Any, words: Vocabulary, tokenizer: Any, chat_template: str | None, folder: Path) -> None:
    writer.add_tokenizer_model(words.model)
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list([token.encode("utf-8", "replace") for token in words.tokens])
    writer.add_token_types(words.kinds)
    if words.scores is not None:
        writer.add_token_scores(words.scores)
        writer.add_add_space_prefix(words.blank_first)
    if words.merges is not None:
        writer.add_token_merges(words.merges)
    for name in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(int(number))
    other = _other_end(folder, int(tokenizer.eos_token_id))
    if other is not None:
        writer.add_eot_token_id(other)
    begun = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and begun[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(begun[-1] == tokenizer.eos_token_id)
    if chat_template:
        writer.add_chat_template(chat_template)


def _other_end(folder: Path, end: int) -> int | None:
    """The token beside `end` that generation_config.json lets end a text, where there is just one."""
    try:
        found = json.loads((folder / "generation_config.json").read_text("utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError):
        return None
    others = {n for n in (found if isinstance(found, list) else [found]) if isinstance(n, int)} - {end}
    return others.pop() if len(others) == 1 else None


# -- llama.cpp --------------------------------------------------------------------------------------------------------


def quantise(source: Path, target: Path, kind: Quantised) -> None:
    """Have llama.cpp write `source` with smaller weights. Raises TrainError with what llama.cpp says, OSError on a full disk."""
    with _llama() as (lib, said):
        params = lib.llama_model_quantize_default_params()
        params.ftype = {"q8_0": lib.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_k_m": lib.LLAMA_FTYPE_MOSTLY_Q4_K_M}[kind]
        params.nthread = _threads()
        failed = lib.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params))
    if failed or not target.is_file():
        if any("iostream error" in text for text in said):  # C++'s only word for a file that takes no more
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        raise TrainError(f"llama.cpp could not quantise to {kind}: {said[0] if said else 'it gave no reason'}")


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

    Raises TrainError where they differ. One difference is let pass and remarked on: before a text that begins with a blank
    SentencePiece and llama.cpp put another one, which newer versions of transformers do not.
    """
    count, remarks = 0, ()  # type: int, tuple[str, ...]
    with _model(path, vocab_only=True) as (lib, model):
        vocab = lib.llama_model_get_vocab(model)
        pieces = lib.llama_vocab_type(vocab) == lib.LLAMA_VOCAB_TYPE_SPM
        if pieces and _encode(lib, vocab, " a") != tokenizer(" a", add_special_tokens=False)["input_ids"]:
            remarks = ("before a text that begins with a blank llama.cpp puts one more than transformers does",)
        for text in texts:
            text = text.lstrip(" ") if pieces else text
            expected = tokenizer(text, add_special_tokens=False)["input_ids"]
            if (found := _encode(lib, vocab, text)) != expected:
                at = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), 0)
                raise TrainError(
                    f"llama.cpp cuts {text[:40]!r} into other tokens than the model's own tokenizer does "
                    f"({found[at : at + 3]} in place of {expected[at : at + 3]}): a GGUF file would answer otherwise. "
                    "Export it merged"
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
    with _llama() as (lib, said):
        params = lib.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = 0
        model = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not model:
            raise TrainError(f"llama.cpp cannot load {path}: {said[0] if said else 'it gave no reason'}")
        try:
            yield lib, model
        finally:
            lib.llama_model_free(model)


@contextmanager
def _llama() -> Iterator[tuple[Any, list[str]]]:
    """The bindings, with the errors that llama.cpp reports, and nothing of its log on the terminal."""
    lack = lacks()
    if lack:
        raise BackendUnavailable(lack)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin take the time of the others
    try:
        import llama_cpp.llama_cpp as lib
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise BackendUnavailable(f"llama-cpp-python is installed but does not load: {error}") from error
    said: list[str] = []

    def keep(level: int, text: bytes, _: Any) -> None:
        if level == 4:  # an error
            said.append(re.sub(r"^\w+: ", "", text.decode("utf-8", "replace").strip()))

    before, data = lib.llama_log_callback(), ctypes.c_void_p()
    lib.llama_log_get(ctypes.byref(before), ctypes.byref(data))
    ours = lib.llama_log_callback(keep)
    lib.llama_log_set(ours, None)
    try:
        lib.llama_backend_init()
        yield lib, said
    finally:
        lib.llama_log_set(before, data)


def _threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
