"""A GGUF file as a folder for transformers: dequantised weights, tokenizer, chat template. Call `import_gguf`.

    X.gguf --transformers' reader--> weights --safetensors-->  FOLDER
           --tokenizer_of----------> tokenizer, chat template

For labs that have only GGUF files and want to train. What was written is read back and compared with llama.cpp on the
file itself: token ids of a thousand texts must be equal, and the logits must agree but for what llama.cpp's 8-bit
activations differ; otherwise nothing is kept. Knows files; nothing of training.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from alpasift.graders.local.gguf_files import check_gguf, gguf_parts
from alpasift.graders.local.model_folders import ModelFilesError
from alpasift.train.artifacts import TrainError, atomic_folder, sha256
from alpasift.train.export import compare, llama_cpp_check
from alpasift.train.export.disk import explained_errors
from alpasift.train.gguf_import.tokenizer import texts_to_compare, tokenizer_of
from alpasift.train.models import load_tokenizer, missing_packages, quiet_libraries

DataType = Literal["float32", "bfloat16", "float16"]
SMALL = 1_000_000_000
"""Weights below which they are written in 32 bits when nothing else is asked for."""
MOST_KL = 0.05
"""Nats a token: ten times what SmolLM2-135M in Q4_1 was measured to differ by (0.0053)."""
_INSTEAD = "download the original folder of the model"
_SCALED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True, slots=True)
class Imported:
    """What was written. `tokens` of `texts` were compared, `difference` is that of the logits."""

    path: Path
    data_type: str
    weights: int
    texts: int
    tokens: int
    difference: compare.Difference
    remarks: tuple[str, ...]


def import_gguf(
    source: Path, out: Path, *, data_type: DataType | None = None, report: Callable[[str], None] = lambda text: None
) -> Imported:
    """Write the model of a GGUF file as a folder of transformers. `out` must not exist, or be empty.

    `data_type` None writes 32-bit weights below a billion of them, 16-bit ones (bfloat16) above. Raises TrainError for
    a model that cannot be imported faithfully; then nothing is left at `out`.
    """
    missing = missing_packages(["torch", "transformers", "gguf", "safetensors", "llama_cpp"])
    if missing:
        raise TrainError(f"importing a GGUF needs {', '.join(missing)}: pip install 'alpasift[train,llama]'")
    try:
        check_gguf(source)
    except ModelFilesError as error:
        raise TrainError(str(error)) from error
    if len(gguf_parts(source)) > 1:
        raise TrainError(f"{source} is one of several parts; join them with llama.cpp's llama-gguf-split --merge first")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise TrainError(f"{out} exists; choose another folder, or move it away")
    quiet_libraries()
    fields, kinds, weights, shapes = _read(source)
    scaled = [name for name in shapes if name in _SCALED]
    if scaled:
        raise TrainError(f"{source} scales its positions ({scaled[0]}), which would be lost; {_INSTEAD}")
    kept_as = data_type or ("float32" if weights < SMALL else "bfloat16")
    facts = {"source": str(source.resolve()), "source_sha256": sha256(source), "data_type": kept_as, "form": "import"}
    with explained_errors(out), atomic_folder(out, facts) as draft:
        report(f"dequantising {weights:,} weights ({', '.join(sorted(kinds))}) to {kept_as}")
        tokenizer_of(fields).save_pretrained(draft)
        _write_weights(source, draft, kept_as, fields)
        tokenizer = load_tokenizer(draft)  # as training will
        report("comparing token ids and logits with llama.cpp")
        texts = texts_to_compare(tokenizer)
        tokens, remarks = _check_tokens(source, tokenizer, texts)
        difference = _check_logits(source, draft, tokenizer)
        facts.update(tokens_compared=str(tokens), **{f"logits_{k}": str(v) for k, v in asdict(difference).items()})
    return Imported(out, kept_as, weights, len(texts), tokens, difference, remarks)


def _read(source: Path) -> tuple[dict[str, Any], set[str], int, dict[str, list[int]]]:
    """Metadata by key, the kinds of tensors, how many weights there are, and the tensors' shapes."""
    import gguf

    reader = gguf.GGUFReader(source)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    shapes = {tensor.name: [int(n) for n in tensor.shape] for tensor in reader.tensors}
    kinds = {tensor.tensor_type.name for tensor in reader.tensors}
    return fields, kinds, sum(int(tensor.n_elements) for tensor in reader.tensors), shapes


def _write_weights(source: Path, folder: Path, data_type: str, fields: Mapping[str, Any]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, GgufConfig

    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar of its own, which no setting turns off
            model = AutoModelForCausalLM.from_pretrained(
                source.parent,
                gguf_file=source.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=getattr(torch, data_type),
                local_files_only=True,
            )
    except Exception as error:  # transformers raises what it likes for a model that it cannot read
        arch = fields.get("general.architecture")
        raise TrainError(
            f"transformers cannot read {source} (architecture {arch}): {str(error).strip().splitlines()[0]}; {_INSTEAD}"
        ) from error
    end = fields.get("tokenizer.ggml.eos_token_id")
    model.generation_config = GenerationConfig(
        bos_token_id=fields.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=end,
        pad_token_id=fields.get("tokenizer.ggml.padding_token_id", end),
    )
    model.save_pretrained(folder)


def _check_tokens(source: Path, tokenizer: Any, texts: list[str]) -> tuple[int, tuple[str, ...]]:
    try:
        return llama_cpp_check.check_tokens(source, tokenizer, texts)
    except TrainError as error:
        raise TrainError(f"the tokenizer of {source} cannot be imported faithfully: {error}") from error


def _check_logits(source: Path, folder: Path, tokenizer: Any) -> compare.Difference:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    rows = compare.compared_texts(tokenizer)
    expected = list(llama_cpp_check.gguf_logits(source, rows))
    found = compare.difference("the folder, and of llama.cpp on the file", expected, compare.logits(model, rows))
    if found.mean_kl > MOST_KL:
        raise TrainError(
            f"the weights of {source} cannot be imported faithfully: over {found.tokens} tokens the folder's logits "
            f"differ from llama.cpp's by a KL divergence of {found.mean_kl:.3g} nats a token, more than {MOST_KL}; "
            f"{_INSTEAD}"
        )
    return found
