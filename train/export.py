"""Exports of a trained model: the adapter as it is, merged weights, or one GGUF file; checked against what was trained.

    RUN/model (adapter, or weights) + its base --> adapter | merged --> GGUF

An adapter trained beside 4-bit weights can be merged into two bases: the original one, as vLLM and others serve it, or the
4-bit one turned back into 16 bits, which is what the adapter was trained beside. Merging into the 4-bit weights themselves
would quantise the sum again and is never done. Either way the logits of what was written, read back from the disk, are
compared with those of the model as it was trained.

One model is in memory at a time: the trained one for its logits, then the one that is merged and saved, then what was
saved. A folder comes into being by `artifacts.whole_folder`. A GGUF file is one file: it is written and checked under
another name and moved into place in one step, so that under its own name it is whole or not there. Its facts follow, in
NAME.gguf.json: last, so that whoever finds them finds the file that they describe; where a kill comes between the two, the
model is whole and only undescribed, and the next export replaces it. Knows models and files; nothing of databases.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from graders import BackendUnavailable
from train import gguf_files
from train.artifacts import MANIFEST, NotWhole, TrainError, read_manifest, sha256, whole_folder
from train.models import (
    TOKENIZER_FILES,
    TORCH_NAMES,
    Base,
    Precision,
    check_safetensors,
    find_base,
    load_model,
    load_tokenizer,
    read_json,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Form = Literal["adapter", "merged", "gguf"]
Into = Literal["original", "dequantised"]
Quantisation = Literal["f16", "bf16", "q8_0", "q4_k_m"]

ADAPTER = "adapter_model.safetensors"
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What `vllm serve --max-lora-rank` can be (vLLM 0.32, vllm.config.lora)."""
BYTES: dict[str, float] = {"fp32": 4, "f32": 4, "bf16": 2, "fp16": 2, "f16": 2, "q8_0": 34 / 32, "q4_k_m": 0.75}
"""Of one weight. q4_k_m takes about 0.61; a matrix whose rows are no multiple of 256 gets a larger kind."""
TEXTS = (
    ("Which river flows through Vienna?", "The Danube flows through Vienna."),
    ("Put these numbers in order: 12, 3, 45, 7.", "3, 7, 12, 45"),
    ("Write one sentence about rain.", "Rain fell on the roof all night and filled the barrels by the door."),
    ("Explain in a few words why bread rises.", "Yeast makes gas, and the dough holds it as bubbles."),
    ("Give the plural of: leaf, mouse, city.", "leaves, mice, cities"),
    ("How would you thank a neighbour who lent you a ladder?", "Thank you for the ladder, it saved my afternoon!"),
)
"""What is asked and answered where two models' logits are compared: the answer is read too, token by token."""
LONGEST = 256  # tokens of such a text
_ANY_PARTIAL = ".partial"


@dataclass(frozen=True, slots=True)
class Difference:
    """Between the logits of two models after each of `tokens` tokens: greatest, mean, and KL divergence in nats a token.

    The divergence is that of the second model's distribution from the first's. `of` says which models.
    """

    of: str
    max_abs: float
    mean_abs: float
    mean_kl: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written. `facts` are those of its manifest, or of the .json beside a GGUF file."""

    path: Path
    form: Form
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained model's folder, found whole, and the base that its adapter belongs to, None where all weights were trained."""

    folder: Path
    facts: dict[str, Any]
    base: Base | None

    @property
    def weights(self) -> Base:
        """The folder that holds the architecture: the base, or the trained model itself."""
        return self.base or find_base(self.folder)


def export_model(
    run: Path, out: Path, form: Form, *, base: Path | None = None, merge_into: Into = "original",
    quantisation: Quantisation = "q8_0", precision: Precision | None = None, device: str = "cpu",
    say: Callable[[str], None] = lambda text: None,
) -> Exported:  # fmt: skip
    """Write the model that was trained in `run` (or that an export before left there) to `out`.

    `base` is where the base lies now, if it was moved. `precision` is that of merged weights, the one of the training if not
    given. `quantisation` is that of a GGUF file; q8_0 halves f16 and moves logits far less than q4_k_m, and what it does to
    this model is measured. Raises TrainError, of which NotWhole; BackendUnavailable where a package is missing.
    """
    for name, given, allowed in (("form", form, Form), ("merge_into", merge_into, Into), ("quantisation", quantisation, Quantisation)):  # fmt: skip
        if given not in get_args(allowed):
            raise TrainError(f"{name} is {given!r}; there are {', '.join(get_args(allowed))}")
    _needs("transformers", "safetensors")
    _quiet()
    trained = find_trained(run, base)
    if trained.base is not None:
        _needs("peft", *(("bitsandbytes",) if trained.facts.get("nf4") else ()))
    elif merge_into == "dequantised" or form == "adapter":
        raise TrainError(f"{trained.folder} holds all weights and no adapter; --form merged or gguf writes it, with nothing to merge")  # fmt: skip
    if merge_into == "dequantised" and not trained.facts.get("nf4"):
        raise TrainError(
            f"{trained.folder} was trained beside weights that were not quantised: there is no dequantised base"
        )
    load_tokenizer(_tokenizer_folder(trained))
    _may_write(out, form)
    if form == "gguf":
        if lack := gguf_files.lacks():
            raise BackendUnavailable(lack)
        gguf_files.check_exportable(trained.weights.folder, _tokenizer_folder(trained))
    keep = precision or _precision(trained.facts)
    _check_space(trained, out, form, quantisation, keep)
    with _explained(out):
        if form == "adapter":
            return _export_adapter(trained, out, say)
        if form == "merged":
            return _export_merged(trained, out, merge_into, keep, device, say)
        return _export_gguf(trained, out, merge_into, quantisation, keep, device, say)


def find_trained(run: Path, base: Path | None = None) -> Trained:
    """The model in RUN, RUN/model or an export, checked byte by byte, with its base. Raises TrainError, of which NotWhole."""
    if not run.is_dir():
        raise TrainError(f"there is no folder {run}; name the folder that `alpasift train -o` wrote")
    folder = run if (run / MANIFEST).is_file() or not (run / "model").is_dir() else run / "model"
    if folder == run and not (run / MANIFEST).is_file() and (run / "run.json").is_file():
        raise TrainError(f"the training in {run} has not finished; the same `alpasift train` goes on with it")
    facts = read_manifest(folder)
    wanted = {"adapter": ("base", "base_sha256", "precision", "chat_template"), "model": ("precision", "chat_template")}
    missing = [name for name in wanted.get(str(facts.get("kind")), ()) if name not in facts]
    if facts.get("kind") not in wanted:
        missing = ["kind"]
    if missing:
        raise TrainError(
            f"{folder / MANIFEST} does not say {', '.join(missing)}: this is no model that `alpasift train` wrote"
        )
    _precision(facts)
    if facts["kind"] == "model":
        if base is not None:
            raise TrainError(f"{folder} holds all weights and needs no base; leave out --base")
        find_base(folder)
        return Trained(folder, facts, None)
    place = base or Path(facts["base"])
    if base is None and not place.is_dir():
        raise TrainError(
            f"{folder} was trained on {place}, which is not there; name where it lies now with --base FOLDER"
        )
    found = find_base(place)
    if (has := found.sha256()) != facts["base_sha256"]:
        raise TrainError(
            f"{folder} is an adapter of another base: it was trained on weights {facts['base_sha256'][:12]} ({facts['base']}), "
            f"and {place} holds {has[:12]}; name the right folder with --base"
        )
    _check_fit(folder, found)
    return Trained(folder, facts, found)


def _check_fit(folder: Path, base: Base) -> None:
    """Raise TrainError unless every matrix of the adapter belongs to one of the base, of its size."""
    settings = read_json(folder / "adapter_config.json", f"{folder} is no adapter")
    if settings.get("peft_type") != "LORA":
        raise TrainError(
            f"{folder} is an adapter of kind {settings.get('peft_type')}; LORA is what AlpaSift trains and exports"
        )
    file = folder / ADAPTER
    if not file.is_file():
        pickles = sorted(p.name for p in folder.glob("adapter_model*.bin"))
        what = (
            f"its weights are in {pickles[0]}, a pickle, which can run code when it is read"
            if pickles
            else "it has no weights"
        )
        raise TrainError(f"{folder}: {what}; only {ADAPTER} is read")
    check_safetensors(file)
    shapes = {name: shape for weights in base.weights for name, shape in _shapes(weights).items()}
    for name, shape in _shapes(file).items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name)
        if not match:
            continue  # peft decides; vLLM's own needs are checked where an adapter is exported
        known, place = shapes.get(f"{match[1]}.weight"), "BA".index(match[2])
        if known is None or known[place] != shape[place]:
            size = f"{known[place]} wide there and {shape[place]} here" if known else "not there"
            raise TrainError(
                f"{folder} does not fit {base.folder}: {match[1]} is {size}; name the right folder with --base"
            )


# -- the three forms --------------------------------------------------------------------------------------------------


def _export_adapter(trained: Trained, out: Path, say: Callable[[str], None]) -> Exported:
    settings = read_json(trained.folder / "adapter_config.json", f"{trained.folder} is no adapter")
    rank = max([int(settings["r"]), *(settings.get("rank_pattern") or {}).values()])
    odd = [
        f"{key}={settings[key]!r}"
        for key, plain in (("modules_to_save", None), ("use_dora", False), ("bias", "none"))
        if settings.get(key, plain) not in (plain, None, [])
    ]
    if odd or rank > VLLM_RANKS[-1]:
        why = ", ".join(odd) or f"rank {rank}, above {VLLM_RANKS[-1]}"
        raise TrainError(f"vLLM serves no adapter with {why}; export it with --form merged")
    room = next(allowed for allowed in VLLM_RANKS if allowed >= rank)
    facts = {
        **trained.facts,
        "form": "adapter",
        "source": str(trained.folder.resolve()),
        "rank": rank,
        "max_lora_rank": room,
    }
    with whole_folder(out, facts) as draft:
        say(f"writing the adapter of rank {rank}")
        for name in ("adapter_config.json", ADAPTER):
            shutil.copyfile(trained.folder / name, draft / name)
        _add_tokenizer(_tokenizer_folder(trained), draft, trained.facts["chat_template"])
    return Exported(out, "adapter", read_manifest(out, hashes=False))


def _export_merged(
    trained: Trained, out: Path, into: Into, precision: Precision, device: str, say: Callable[[str], None]
) -> Exported:
    facts = _facts(trained, "merged", into, precision)
    with whole_folder(out, facts) as draft:
        _, facts["difference"] = _merge(trained, draft, into, precision, device, say)
    return Exported(out, "merged", read_manifest(out, hashes=False))


def _export_gguf(
    trained: Trained, out: Path, into: Into, quantisation: Quantisation, precision: Precision, device: str,
    say: Callable[[str], None],
) -> Exported:  # fmt: skip
    """merged folder -> GGUF as precise as it is -> the one asked for, all in a working folder beside `out`."""
    beside = Path(f"{out}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    for left in out.parent.glob(f".{out.name}.*{_ANY_PARTIAL}"):
        shutil.rmtree(left, ignore_errors=True)
    work = out.parent / f".{out.name}.{os.getpid()}{_ANY_PARTIAL}"
    work.mkdir()
    try:
        merged = work / "merged"
        merged.mkdir()
        facts = _facts(trained, "gguf", into, precision) | {"quantisation": quantisation}
        reference, facts["merged_difference"] = _merge(trained, merged, into, precision, device, say)
        tokenizer = load_tokenizer(merged)
        exact: gguf_files.Stored = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}[precision]  # type: ignore[assignment]
        store: gguf_files.Stored = exact if quantisation in ("q8_0", "q4_k_m") else quantisation  # type: ignore[assignment]
        name = out.stem
        written = work / f"{store}.gguf"
        say(f"writing GGUF in {store}")
        remarks = gguf_files.write_gguf(
            merged, written, store, chat_template=trained.facts["chat_template"] or None, name=name,
            facts={key: facts[key] for key in ("source", "method", "base_sha256", "merge_into", "precision")},
        )  # fmt: skip
        shutil.rmtree(merged)  # its room is needed
        if quantisation == "q8_0" or quantisation == "q4_k_m":
            say(f"quantising to {quantisation}")
            gguf_files.quantise(written, work / "quantised.gguf", quantisation)
            written.unlink()
            written = work / "quantised.gguf"
        say("comparing it with what was trained")
        rows, expected = reference
        texts = [*gguf_files.PROBES, *map(" ".join, TEXTS)]
        facts["tokens_compared"], differ = gguf_files.check_tokens(written, tokenizer, texts)
        of = "llama.cpp on this file, and " + (
            "the model as trained" if trained.base else "the weights it was made from"
        )
        facts["difference"] = asdict(_difference(of, expected, gguf_files.gguf_logits(written, rows)))
        facts["tensors"] = gguf_files.tensor_kinds(written)
        facts["remarks"] = [*remarks, *differ, *_fallbacks(quantisation, facts["tensors"])]
        facts |= {"bytes": written.stat().st_size, "sha256": sha256(written)}
        _sync(written)
        beside.unlink(missing_ok=True)  # it would describe the file that goes
        written.replace(out)
        draft = work / "facts.json"
        draft.write_text(json.dumps(facts, indent=1, ensure_ascii=False), "utf-8")
        _sync(draft)
        draft.replace(beside)
        _sync(out.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Exported(out, "gguf", facts)


def _fallbacks(quantisation: Quantisation, tensors: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What llama.cpp kept in another kind than the one asked for, in words."""
    usual = {"q8_0": {"Q8_0"}, "q4_k_m": {"Q4_K", "Q6_K"}}.get(quantisation)
    if usual is None:
        return []
    usual |= {"F32"}
    other = [f"{entry['tensors']} as {kind}" for kind, entry in sorted(tensors.items()) if kind not in usual]
    if not other:
        return []
    why = "rows that are no multiple of 256" if quantisation == "q4_k_m" else "rows that are no multiple of 32"
    return [f"llama.cpp kept {', '.join(other)} instead, which have {why}"]


def _facts(trained: Trained, form: Form, into: Into, precision: Precision) -> dict[str, Any]:
    """What is known of an export before it is made; an export of an export keeps what is known of the training."""
    known = {key: value for key, value in trained.facts.items() if key not in ("form", "difference", "source")}
    return {
        "base": None, "base_sha256": None, "method": None, **known,
        "kind": "model", "form": form, "source": str(trained.folder.resolve()),
        "merge_into": into if trained.base else known.get("merge_into"), "precision": precision,
    }  # fmt: skip


# -- merging ----------------------------------------------------------------------------------------------------------

Reference = tuple[list[list[int]], list["NDArray[np.float32]"]]
"""Token ids of the texts, and the logits (T, V) of the model as trained after each of their tokens."""


def _merge(
    trained: Trained, folder: Path, into: Into, precision: Precision, device: str, say: Callable[[str], None]
) -> tuple[Reference, dict[str, Any] | None]:
    """Write the whole model into `folder`. Returns the trained model's logits, and how far those of the folder are from them."""
    _add_tokenizer(_tokenizer_folder(trained), folder, trained.facts["chat_template"])
    if trained.base is None and precision == _precision(trained.facts):
        say("copying the trained weights")
        for file in (*trained.weights.weights, trained.folder / "config.json"):
            shutil.copyfile(file, folder / file.name)
        for name in ("generation_config.json", "model.safetensors.index.json"):
            if (trained.folder / name).is_file():
                shutil.copyfile(trained.folder / name, folder / name)
        return _read(load_tokenizer(folder), load_model(folder, precision=precision, device=device)), None
    say("reading the model as it was trained")
    model = _as_trained(trained, device)
    reference = _read(load_tokenizer(folder), model)
    nf4 = trained.facts.get("nf4")
    if trained.base is not None:
        if nf4 or precision != _precision(trained.facts):
            del model
            gc.collect()
            model = load_model(
                trained.base.folder, precision=precision, device=device, **_nf4(trained, into == "dequantised")
            )
            if into == "dequantised":
                say("turning the 4-bit weights back")
                model = model.dequantize()
            model = _with_adapter(trained, model, device)
        say(f"merging the adapter into the {into} base")
        try:
            model = model.merge_and_unload(safe_merge=True, progressbar=False)
        except ValueError as error:  # a weight that is no number
            raise TrainError(f"{trained.folder} cannot be merged: {error}") from error
    say(f"writing the weights in {precision}")
    _save(model, trained.weights, folder, precision)
    del model
    gc.collect()
    say("reading back what was written")
    again = load_model(folder, precision=precision, device=device)
    of = "the merged weights, read back, and the model as trained"
    return reference, asdict(_difference(of, reference[1], _logits(again, reference[0])))


def _as_trained(trained: Trained, device: str) -> Any:
    """The model as it was in the training: the base in its precision or in 4 bits, and the adapter beside it."""
    if trained.base is None:
        return load_model(trained.folder, precision=_precision(trained.facts), device=device)
    settings = _nf4(trained, bool(trained.facts.get("nf4")))
    model = load_model(trained.base.folder, precision=_precision(trained.facts), device=device, **settings)
    model = _with_adapter(trained, model, device)
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":  # out of training bitsandbytes computes in bf16 on some processors
            module.train()
    return model


def _nf4(trained: Trained, wanted: bool) -> dict[str, Any]:
    """How `load_model` is to quantise."""
    known = trained.facts.get("nf4") or {}
    return (
        {"nf4": True, "compute": known.get("compute"), "double_quant": known.get("double_quant", True)}
        if wanted
        else {}
    )


def _with_adapter(trained: Trained, model: Any, device: str) -> Any:
    """The adapter beside a base, in the precision in which it was saved: it was trained in that."""
    from peft import PeftModel
    from safetensors import safe_open

    model = PeftModel.from_pretrained(model, trained.folder, torch_device=device, autocast_adapter_dtype=False)
    with safe_open(trained.folder / ADAPTER, "pt") as tensors:
        kept = tensors.get_tensor(next(iter(tensors.keys()))).dtype
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.to(kept)
    return model.eval()


def _save(model: Any, like: Base, folder: Path, precision: Precision) -> None:
    """Write weights beside the configuration of `like`, which readers of any version know. Raises TrainError."""
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
    was, now = ({n: s for f in b.weights for n, s in _shapes(f).items()} for b in (like, find_base(folder)))
    odd = {name for name in was.keys() | now.keys() if was.get(name) != now.get(name)} - {"lm_head.weight"}
    odd = {name for name in odd if not name.endswith("rotary_emb.inv_freq")}
    if odd:
        raise TrainError(
            f"merging changed what the model is made of ({', '.join(sorted(odd)[:3])}); nothing was written"
        )


def _tokenizer_folder(trained: Trained) -> Path:
    """Where the tokenizer lies: beside what was trained, else beside the base."""
    here = any((trained.folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))
    return trained.folder if here or trained.base is None else trained.base.folder


def _add_tokenizer(source: Path, folder: Path, template: str) -> None:
    """Copy a tokenizer; its chat template becomes the one under which the model was trained, wherever a reader looks."""
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


# -- comparing --------------------------------------------------------------------------------------------------------


def compared_texts(tokenizer: Any) -> list[list[int]]:
    """TEXTS as token ids: each asked under the tokenizer's chat template, and answered."""
    rows = []
    for asked, answer in TEXTS:
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": asked}], tokenize=False, add_generation_prompt=True
            )
        else:
            text = f"{asked}\n"
        ids = tokenizer(f"{text}{answer}", add_special_tokens=False)["input_ids"]
        rows.append(ids[:LONGEST])
    return rows


def _read(tokenizer: Any, model: Any) -> Reference:
    rows = compared_texts(tokenizer)
    longest = int(model.config.max_position_embeddings)
    rows = [row[:longest] for row in rows]
    return rows, list(_logits(model, rows))


def _logits(model: Any, rows: Sequence[Sequence[int]]) -> Iterator[NDArray[np.float32]]:
    """Logits (T, V) float32 of each row, one row at a time."""
    import torch

    with torch.inference_mode():
        for row in rows:
            yield model(torch.tensor([list(row)], device=model.device)).logits[0].float().cpu().numpy()


def _difference(of: str, expected: Sequence[NDArray[np.float32]], found: Iterator[NDArray[np.float32]]) -> Difference:
    """Of two models' logits (T, V) over the same rows. KL = sum p (log p - log q), Kullback and Leibler 1951."""
    import numpy as np

    greatest = total = divergence = 0.0
    tokens = 0
    for one, other in zip(expected, found, strict=True):
        width = min(one.shape[1], other.shape[1])
        left, right = one[:, :width].astype(np.float64), other[:, :width].astype(np.float64)
        if not (np.isfinite(left).all() and np.isfinite(right).all()):
            raise TrainError("a logit of what was written is no number; train or export in bf16 or fp32")
        apart = np.abs(left - right)
        greatest, total = max(greatest, float(apart.max())), total + float(apart.mean(1).sum())
        p, q = (x - np.logaddexp.reduce(x, axis=1, keepdims=True) for x in (left, right))
        divergence += float((np.exp(p) * (p - q)).sum())
        tokens += len(one)
    return Difference(of, greatest, total / tokens, max(divergence / tokens, 0.0), tokens)


# -- the disk ---------------------------------------------------------------------------------------------------------


def _may_write(out: Path, form: Form) -> None:
    """Raise TrainError where something stands at `out` that no export wrote."""
    if form == "gguf":
        if out.is_dir() or out.suffix != ".gguf":
            raise TrainError(f"{out}: a GGUF export is one file; give it a name that ends in .gguf")
        if out.exists():
            with out.open("rb") as file:
                if gguf_files.MARK.encode() not in file.read(65_536):
                    raise TrainError(
                        f"{out} is there and is no export of AlpaSift; choose another name, or move it away"
                    )
        return
    if out.suffix == ".gguf":
        raise TrainError(f"{out}: --form {form} writes a folder; --form gguf writes a .gguf file")
    if not out.exists():
        return
    try:
        ours = "form" in read_manifest(out, hashes=False)
    except NotWhole:
        ours = out.is_dir() and not any(out.iterdir())
    if not ours:
        raise TrainError(f"{out} is there and is no export of AlpaSift; choose another folder, or move it away")


def _check_space(trained: Trained, out: Path, form: Form, quantisation: Quantisation, precision: Precision) -> None:
    """Raise TrainError where the disk has less room than the export takes at its fullest."""
    adapter = (trained.folder / ADAPTER).stat().st_size if trained.base else 0
    weights = sum(_numbers(shape) for file in trained.weights.weights for shape in _shapes(file).values())
    merged = weights * BYTES[precision]
    last = weights * BYTES[quantisation]
    if form == "adapter":
        need = float(adapter)
    elif form == "merged":
        need = merged
    elif quantisation in ("q8_0", "q4_k_m"):
        need = max(2 * merged, merged + last)  # merged and as precise a GGUF, then that and the quantised one
    else:
        need = merged + last
    words = sum(
        (f / n).stat().st_size for f in [_tokenizer_folder(trained)] for n in TOKENIZER_FILES if (f / n).is_file()
    )
    need = 1.02 * (need + 2 * words) + 1e6
    there = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(there).free
    if free < need:
        raise TrainError(
            f"writing {out} takes up to {size(need)} and {size(free)} are free on the disk of {there}; make room, or write "
            "to another disk"
        )


@contextmanager
def _explained(out: Path) -> Iterator[None]:
    """Turn what a full disk makes Python, numpy, safetensors and llama.cpp raise into one line."""
    try:
        yield
    except Exception as error:
        text = str(error)
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if full or re.search(r"No space left|File too large|os error (28|27|122)|\d+ requested and \d+ written", text):
            raise TrainError(
                f"the disk of {out.absolute().parent} is full; nothing was written. Make room and run it again"
            ) from error
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            raise TrainError("there is not enough memory for the model; export on a machine with more, or with --device cpu") from error  # fmt: skip
        raise


def size(count: float) -> str:
    """Bytes for people: 13.5 GB."""
    for unit, of in (("GB", 1e9), ("MB", 1e6)):
        if count >= of:
            return f"{count / of:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a safetensors file that was checked."""
    with file.open("rb") as content:
        header = json.loads(content.read(int.from_bytes(content.read(8), "little")))
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


def _numbers(shape: Sequence[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _precision(facts: Mapping[str, Any]) -> Precision:
    known: dict[str, Precision] = {"bf16": "bf16", "fp16": "fp16", "fp32": "fp32"}
    found = known.get(str(facts["precision"]))
    if found is None:
        raise TrainError(f"the manifest names a precision of {facts['precision']!r}; there are {', '.join(known)}")
    return found


def _needs(*packages: str) -> None:
    from importlib.util import find_spec

    for package in packages:
        if find_spec(package) is None:
            raise BackendUnavailable(
                f"an export needs {package}, which is not installed: pip install 'alpasift[train]'"
            )


def _quiet() -> None:
    """Leave progress to us: the libraries' own bars and warnings are for their developers."""
    import logging
    import warnings

    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(torch|transformers|peft|bitsandbytes|accelerate)(\..*)?")
