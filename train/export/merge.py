"""The whole model as safetensors: an adapter merged into its base, or trained weights in another precision.

Call `write_merged`. One model is in memory at a time: the trained one for its logits, then the one that is merged and
saved, then the saved one for the comparison.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from alpasift.train.artifacts import TrainError
from alpasift.train.export.compare import Reference, difference, logits, reference
from alpasift.train.export.trained import ADAPTER, Trained
from alpasift.train.models import (
    TOKENIZER_FILES,
    TORCH_NAMES,
    Base,
    Precision,
    find_base,
    load_model,
    load_tokenizer,
    read_json,
    tensor_shapes,
)

MergeInto = Literal["original", "dequantised"]


def write_merged(
    trained: Trained, folder: Path, into: MergeInto, precision: Precision, device: str, report: Callable[[str], None]
) -> tuple[Reference, dict[str, Any] | None]:
    """Write the whole model into `folder`.

    Returns the trained model's logits, and how far those of the written model are from them; None where the trained
    weights were copied.
    """
    copy_tokenizer(trained.tokenizer_folder, folder, trained.chat_template)
    if trained.base is None and precision == trained.precision:
        report("copying the trained weights")
        _copy_weights(trained, folder)
        return reference(load_tokenizer(folder), load_model(folder, precision=precision, device=device)), None
    report("loading the trained model")
    model = _load_as_trained(trained, device)
    expected = reference(load_tokenizer(folder), model)
    if trained.base is not None:
        if trained.nf4 or precision != trained.precision:
            del model
            gc.collect()
            model = _load_for_merge(trained, trained.base, into, precision, device, report)
        report(f"merging the adapter into the {into} base")
        try:
            model = model.merge_and_unload(safe_merge=True, progressbar=False)
        except ValueError as error:  # a weight that is not finite
            raise TrainError(f"{trained.folder} cannot be merged: {error}") from error
    report(f"writing the weights in {precision}")
    _save(model, trained.weights, folder, precision)
    del model
    gc.collect()
    report("reading the written weights back")
    written = load_model(folder, precision=precision, device=device)
    of = "the merged weights, read back, and the trained model"
    return expected, asdict(difference(of, expected.logits, logits(written, expected.rows)))


def copy_tokenizer(source: Path, folder: Path, template: str) -> None:
    """Copy a tokenizer with the chat template under which the model was trained, in every place that readers look."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file() and name not in ("chat_template.jinja", "chat_template.json"):
            shutil.copyfile(source / name, folder / name)
    settings = folder / "tokenizer_config.json"
    content = read_json(settings, str(folder)) if settings.is_file() else {}
    content.pop("chat_template", None)
    if template:
        content["chat_template"] = template
        (folder / "chat_template.jinja").write_text(template, "utf-8")
    settings.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _copy_weights(trained: Trained, folder: Path) -> None:
    for file in (*trained.weights.weights, trained.folder / "config.json"):
        shutil.copyfile(file, folder / file.name)
    for name in ("generation_config.json", "model.safetensors.index.json"):
        if (trained.folder / name).is_file():
            shutil.copyfile(trained.folder / name, folder / name)


def _load_as_trained(trained: Trained, device: str) -> Any:
    """The model as it was in training: the base in its precision or in 4 bits, and the adapter beside it."""
    if trained.base is None:
        return load_model(trained.folder, precision=trained.precision, device=device)
    model = load_model(trained.base.folder, precision=trained.precision, device=device, **_nf4(trained))
    model = _with_adapter(trained, model, device)
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":  # in evaluation bitsandbytes computes in bf16 on some processors
            module.train()
    return model


def _load_for_merge(
    trained: Trained, base: Base, into: MergeInto, precision: Precision, device: str, report: Callable[[str], None]
) -> Any:
    """The base that is merged into, in the precision of the export, with the adapter beside it."""
    nf4 = _nf4(trained) if into == "dequantised" else {}
    model = load_model(base.folder, precision=precision, device=device, **nf4)
    if into == "dequantised":
        report("dequantising the 4-bit weights")
        model = model.dequantize()
    return _with_adapter(trained, model, device)


def _nf4(trained: Trained) -> dict[str, Any]:
    """The arguments of `load_model` that quantise as the training did; none where it did not."""
    known = trained.nf4
    if not known:
        return {}
    return {"nf4": True, "compute": known.get("compute"), "double_quant": known.get("double_quant", True)}


def _with_adapter(trained: Trained, model: Any, device: str) -> Any:
    """The adapter beside a base, in the precision in which it was trained and saved."""
    from peft import PeftModel
    from safetensors import safe_open

    model = PeftModel.from_pretrained(model, trained.folder, torch_device=device, autocast_adapter_dtype=False)
    with safe_open(trained.folder / ADAPTER, "pt") as tensors:
        saved = tensors.get_tensor(next(iter(tensors.keys()))).dtype
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.to(saved)
    return model.eval()


def _save(model: Any, like: Base, folder: Path, precision: Precision) -> None:
    """Write weights with the configuration of `like`, which readers of any version understand. Raises TrainError."""
    import torch
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig()  # some published ones are refused on saving
    model.to(getattr(torch, TORCH_NAMES[precision])).save_pretrained(folder, max_shard_size="5GB")
    config = {
        key: value for key, value in like.config.items() if key not in ("_name_or_path", "dtype", "quantization_config")
    }
    (folder / "config.json").write_text(
        json.dumps({**config, "torch_dtype": TORCH_NAMES[precision]}, indent=2, ensure_ascii=False) + "\n", "utf-8"
    )
    (folder / "generation_config.json").unlink(missing_ok=True)
    if (like.folder / "generation_config.json").is_file():
        shutil.copyfile(like.folder / "generation_config.json", folder / "generation_config.json")
    before, after = ({n: s for f in b.weights for n, s in tensor_shapes(f).items()} for b in (like, find_base(folder)))
    odd = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} - {"lm_head.weight"}
    odd = {name for name in odd if not name.endswith("rotary_emb.inv_freq")}
    if odd:
        raise TrainError(f"merging changed the model's tensors ({', '.join(sorted(odd)[:3])}); nothing was written")
