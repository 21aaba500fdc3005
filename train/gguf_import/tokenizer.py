"""The tokenizer of a GGUF file as one of transformers: byte-level BPE and SentencePiece BPE. Call `tokenizer_of`.

transformers reads GGUF files too, but takes every byte-level tokenizer for one family's way to split text, so that
digits or blanks come out as other tokens. Here the way is looked up by llama.cpp's name for it, and a name that is not
known is refused. `texts_to_compare` are what the result is checked on.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from alpasift.train.artifacts import TrainError
from alpasift.train.export.gguf_tokenizer import (
    BLANK,
    BYTE,
    CONTROL,
    PRE_TOKENIZERS,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
)
from alpasift.train.export.llama_cpp_check import PROBES

_SPLITS = {name: (rule, whole) for (rule, whole), name in PRE_TOKENIZERS.items()}
_OTHER_NAMES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "default": ""}


def tokenizer_of(fields: Mapping[str, Any]) -> Any:
    """A fast tokenizer of transformers from the metadata of a GGUF file. Raises TrainError for an unknown kind."""
    from transformers import PreTrainedTokenizerFast

    model = fields.get("tokenizer.ggml.model")
    tokens = fields.get("tokenizer.ggml.tokens")
    if not tokens:
        raise TrainError("the file holds no vocabulary; download the whole model")
    kinds = list(fields.get("tokenizer.ggml.token_type") or [1] * len(tokens))
    if model == "gpt2":
        tokenizer = _byte_level(fields, tokens, kinds)
    elif model == "llama":
        tokenizer = _sentencepiece(fields, tokens, kinds)
    else:
        raise TrainError(
            f"its tokenizer is of the kind {model!r}; gpt2 (byte-level BPE) and llama (SentencePiece BPE) can be "
            "imported; download the original folder of the model"
        )
    _add_tokens(tokenizer, tokens, kinds)
    named = {
        f"{name}_token": tokens[number]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if isinstance(number := fields.get(f"tokenizer.ggml.{key}_token_id"), int) and 0 <= number < len(tokens)
    }
    if "eos_token" not in named:
        raise TrainError("the file names no end-of-text token (tokenizer.ggml.eos_token_id); download another")
    if _adds_begin(fields, model) and "bos_token" in named:
        _begin_with(tokenizer, named["bos_token"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=fields.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **named,
    )


def _byte_level(fields: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    pre = str(fields.get("tokenizer.ggml.pre", "default"))
    name = _OTHER_NAMES.get(pre, pre)
    if name not in _SPLITS:
        raise TrainError(
            f"its tokenizer splits text in the way that llama.cpp calls {pre!r}, which AlpaSift does not know (it "
            f"knows {', '.join(sorted(_SPLITS))}), and a wrong one spoils every row; download the original folder of "
            "the model"
        )
    rule, whole_words = _SPLITS[name]
    merges = [tuple(merge.split(" ", 1)) for merge in fields.get("tokenizer.ggml.merges") or ()]
    words = {token: n for n, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != UNUSED}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=merges, ignore_merges=whole_words))
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule in ("ByteLevel", "Digits+ByteLevel"))
    steps: list[Any] = [bytes_only]
    if rule == "Digits+ByteLevel":
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    elif rule != "ByteLevel":
        steps.insert(0, pre_tokenizers.Split(Regex(rule), behavior="isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else bytes_only
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(fields: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int]) -> Any:
    """BPE that merges the pair with the highest score first, as SentencePiece does; ties go to the left."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = fields.get("tokenizer.ggml.scores")
    if not scores:
        raise TrainError("the file holds no scores of its tokens; download another")
    words = {token: n for n, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != UNUSED}
    pieces = {token: n for token, n in words.items() if kinds[n] not in (CONTROL, UNKNOWN, BYTE, USER_DEFINED)}
    pairs = [
        (-scores[n], words[token[:cut]], words[token[cut:]], (token[:cut], token[cut:]))
        for token, n in pieces.items()
        for cut in range(1, len(token))
        if token[:cut] in pieces and token[cut:] in pieces
    ]
    unknown = next((tokens[n] for n, kind in enumerate(kinds) if kind == UNKNOWN), None)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=words,
            merges=[pair for *_, pair in sorted(pairs)],
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=BYTE in kinds,
        )
    )
    blank_first = bool(fields.get("tokenizer.ggml.add_space_prefix", True))
    steps: list[Any] = [normalizers.Prepend(BLANK)] if blank_first else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", BLANK)])
    ends: list[Any] = [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*ends, decoders.Strip(" ", 1, 0)] if blank_first else ends)
    return tokenizer


def _add_tokens(tokenizer: Any, tokens: Sequence[str], kinds: Sequence[int]) -> None:
    """Control tokens are special: their names in a text are text. User-defined ones are tokens wherever they stand."""
    from tokenizers import AddedToken

    special = [AddedToken(tokens[n], special=True, normalized=False) for n, k in enumerate(kinds) if k == CONTROL]
    others = [AddedToken(tokens[n], special=False, normalized=False) for n, k in enumerate(kinds) if k == USER_DEFINED]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(others)


def _adds_begin(fields: Mapping[str, Any], model: str) -> bool:
    return bool(fields.get("tokenizer.ggml.add_bos_token", model == "llama"))


def _begin_with(tokenizer: Any, begin: str) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(
        single=f"{begin} $A",
        pair=f"{begin} $A {begin} $B",
        special_tokens=[(begin, tokenizer.token_to_id(begin))],
    )


def texts_to_compare(tokenizer: Any, count: int = 1000, seed: int = 0) -> list[str]:
    """Texts on which tokenizers differ: known traps, and mixtures of their parts, numbers and the vocabulary."""
    dice = random.Random(seed)
    parts = [part for probe in PROBES for part in (probe, *probe.split(" "))]
    step = max(1, len(tokenizer) // 4000)
    ordinary = [text for number in range(0, len(tokenizer), step) if (text := _text_of(tokenizer, number))]
    texts = list(PROBES)
    while len(texts) < count:
        pieces = []
        for _ in range(dice.randint(1, 30)):
            kind = dice.random()
            if kind < 0.2:
                pieces.append(str(dice.randrange(10 ** dice.randint(1, 9))))
            elif kind < 0.5:
                pieces.append(dice.choice(parts))
            else:
                pieces.append(dice.choice(ordinary))
        texts.append(dice.choice(("", " ", "\n")).join(pieces))
    return texts


def _text_of(tokenizer: Any, number: int) -> str:
    """A token's text, "" where it is no whole text by itself or is special."""
    text = str(tokenizer.decode([number], skip_special_tokens=True))
    return "" if "\ufffd" in text or "\0" in text else text
