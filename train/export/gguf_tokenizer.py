"""Tokenizers in GGUF: byte-level BPE and SentencePiece BPE. Call `vocabulary`, then `add_vocabulary`.

A wrong guess of how a tokenizer splits text spoils every answer without an error, so only known ways are written, and
`llama_cpp_check.check_tokens` compares the result token by token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alpasift.graders import BackendUnavailable
from alpasift.train.artifacts import TrainError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of tokens: SentencePiece's numbers, which GGUF took over."""
BLANK = "\u2581"

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
"""llama.cpp's name for a way to split text before merging: by its pattern, and whether whole words skip the merges."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer as GGUF holds it.

    model        "llama" is SentencePiece BPE and has `scores`; "gpt2" is byte-level BPE and has `merges`
    pre          llama.cpp's name for how text is split before merging
    blank_first  a blank is put before a text
    """

    model: Literal["llama", "gpt2"]
    pre: str
    tokens: list[str]
    kinds: list[int]
    scores: list[float] | None
    merges: list[str] | None
    blank_first: bool
    remarks: tuple[str, ...]


def vocabulary(folder: Path, tokenizer: Any, rows: int) -> Vocabulary:
    """A folder's tokenizer for a model with `rows` embeddings. Raises TrainError for a kind that cannot be written."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TrainError(f"the tokenizer of {folder} has no tokenizer.json form; GGUF needs one. Export it merged")
    spec = json.loads(backend.to_str())
    model = spec["model"]
    if model.get("type") != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise TrainError(f"the tokenizer of {folder} is a {model.get('type')}; GGUF supports BPE tokenizers only")
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
    """llama.cpp's name for how this byte-level tokenizer splits text, and remarks."""
    top = spec.get("pre_tokenizer") or {}
    steps = top.get("pretokenizers", [top])
    steps_text = "+".join(str(step.get("type")) for step in steps)
    last = steps[-1]
    plain = last.get("type") == "ByteLevel" and not last.get("add_prefix_space")
    if steps_text == "Split+ByteLevel" and not last.get("use_regex", True):
        rule, whole = steps[0].get("pattern", {}).get("Regex"), steps[0]
        plain = plain and whole.get("behavior") == "Isolated" and not whole.get("invert")
    elif steps_text == "Digits+ByteLevel" and steps[0].get("individual_digits") and last.get("use_regex", True):
        rule = steps_text
    else:
        rule = steps_text if steps_text == "ByteLevel" and last.get("use_regex", True) else None
    name = PRE_TOKENIZERS.get((str(rule), bool(spec["model"].get("ignore_merges")))) if plain else None
    if name is None:
        raise TrainError(
            f"the tokenizer of {folder} splits text in a way ({steps_text}) unknown to AlpaSift's GGUF export, and a "
            "wrong one would corrupt every answer; export it merged, and convert that with llama.cpp's "
            "convert_hf_to_gguf.py"
        )
    normalizer = spec.get("normalizer")
    if normalizer is None:
        return name, ()
    if normalizer.get("type") != "NFC":
        raise TrainError(
            f"the tokenizer of {folder} rewrites text ({normalizer.get('type')}), which llama.cpp would not do"
        )
    return name, ("its tokenizer normalises text to Unicode NFC, which llama.cpp does not do",)


def _scores(file: Path, vocab: Mapping[str, int], merges: Sequence[str], size: int) -> list[float]:
    """The score of each token: llama.cpp merges the highest first.

    They are in tokenizer.model. Without that file, a token's score is the place of its first merge, negated:
    tokenizer.json lists the merges in the order of the scores.
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
                f"{file} and the tokenizer.json beside it assign different ids to {piece!r}; copy the model again"
            )
        if number < size:
            scores[number] = score
    return scores


def read_sentencepiece(file: Path) -> list[tuple[str, float]]:
    """The pieces of a tokenizer.model and their scores, in the order of their ids.

    Raises TrainError where it is not BPE or rewrites text, BackendUnavailable without the package sentencepiece.
    """
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise BackendUnavailable(
            f"reading {file} needs sentencepiece and protobuf, not installed here: pip install 'alpasift[train]'"
        ) from error
    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise TrainError(f"{file} is not a SentencePiece model; copy it again") from error
    if model.trainer_spec.model_type != sentencepiece_model_pb2.TrainerSpec.BPE:
        raise TrainError(f"{file} is not a BPE model; GGUF supports BPE tokenizers only")
    if model.normalizer_spec.precompiled_charsmap:
        raise TrainError(f"{file} rewrites text before splitting it, which llama.cpp would not do; export it merged")
    return [(piece.piece, piece.score) for piece in model.pieces]


def add_vocabulary(writer: Any, words: Vocabulary, tokenizer: Any, chat_template: str | None, folder: Path) -> None:
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
    encoded = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and encoded[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(encoded[-1] == tokenizer.eos_token_id)
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
