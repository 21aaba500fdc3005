"""Exports of a trained model: the adapter as it is, merged weights, or one GGUF file. Call `export_model`.

    RUN/model (adapter, or weights) + its base --> adapter | merged --> GGUF

An adapter trained beside 4-bit weights can be merged into two bases: the original one, as vLLM and others serve it, or
the 4-bit one dequantised to 16 bits, which is what the adapter was trained beside. Merging into the 4-bit weights
themselves would quantise the sum again and is never done. Either way the logits of what was written, read back from the
disk, are compared with those of the model as it was trained.

A folder is complete or absent: `artifacts.atomic_folder`. A GGUF file is written and checked under another name and
moved into place in one step, so under its own name it is complete or absent. Its facts follow, in NAME.gguf.json: last,
so that whoever finds them finds the file that they describe. Where a kill comes between the two, the model is complete
without a description, and the next export replaces it. Knows models and files; nothing of databases.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from alpasift.graders import BackendUnavailable
from alpasift.train.artifacts import PARTIAL, TrainError, atomic_folder, read_manifest, sha256, sync
from alpasift.train.export import gguf_writer, llama_cpp_check
from alpasift.train.export.compare import TEXTS, difference
from alpasift.train.export.disk import check_replaceable, check_space, explained_errors, weights_of
from alpasift.train.export.merge import MergeInto, copy_tokenizer, write_merged
from alpasift.train.export.trained import ADAPTER, Trained, find_trained
from alpasift.train.models import Precision, load_tokenizer, missing_packages, quiet_libraries, read_json

Form = Literal["adapter", "merged", "gguf"]
Quantisation = Literal["f16", "bf16", "q8_0", "q4_k_m"]
Report = Callable[[str], None]

SMALL = 1_000_000_000
"""Weights below which a GGUF file keeps 16 bits by default: in q8_0 a trained model of 135 million gave one of five
greedy answers as it did before."""
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What `vllm serve --max-lora-rank` accepts (vLLM 0.32, vllm.config.lora)."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written. `facts` are those of its manifest, or of the .json beside a GGUF file."""

    path: Path
    form: Form
    facts: dict[str, Any]

    @property
    def bytes_written(self) -> int:
        """Of the file, or of all files in the folder."""
        files = [self.path] if self.path.is_file() else [file for file in self.path.rglob("*") if file.is_file()]
        return sum(file.stat().st_size for file in files)


@dataclass(frozen=True, slots=True)
class _Job:
    """An export whose arguments were checked."""

    trained: Trained
    out: Path
    merge_into: MergeInto
    quantisation: Quantisation
    precision: Precision
    device: str
    report: Report
    remarks: tuple[str, ...] = ()


def usual_quantisation(weights: int) -> Quantisation:
    """f16 below a billion weights, q8_0 from there on: a small model's answers change with 8 bits."""
    return "f16" if weights < SMALL else "q8_0"


def _usual(kind: Quantisation, weights: int) -> str:
    """Why this kind was taken where none was asked for, and what else there is."""
    size = f"{weights / 1e9:.1f} billion" if weights >= SMALL else f"{weights / 1e6:,.1f} million"
    if kind == "f16":
        return (
            f"f16 by default, as the model has {size} weights: below a billion 8 bits change many answers; "
            "--quantisation q8_0 is half as large"
        )
    return f"q8_0 by default, as the model has {size} weights; --quantisation f16 keeps 16 bits, q4_k_m takes half"


def export_model(
    run: Path,
    out: Path,
    form: Form,
    *,
    base: Path | None = None,
    merge_into: MergeInto = "original",
    quantisation: Quantisation | None = None,
    precision: Precision | None = None,
    device: str = "cpu",
    force: bool = False,
    report: Report = lambda message: None,
) -> Exported:
    """Write the model that was trained in `run`, or an earlier export there, to `out`.

    `base` is where the base is now, if it was moved. `precision` is that of merged weights; the training's if None.
    `quantisation` is that of a GGUF file; None takes what `usual_quantisation` says. `force` replaces an export of
    another training, and a GGUF file that is no export. `report` gets a line before each stage. Raises
    TrainError, of which IncompleteFolder; BackendUnavailable where a package is missing.
    """
    for name, given, allowed in (
        ("form", form, Form),
        ("merge_into", merge_into, MergeInto),
        ("quantisation", quantisation, Quantisation),
    ):
        if given is not None and given not in get_args(allowed):
            raise TrainError(f"{name} is {given!r}; choose from {', '.join(get_args(allowed))}")
    _check_packages("transformers", "safetensors")
    quiet_libraries()
    trained = find_trained(run, base)
    check_replaceable(out, form, trained.folder, force=force)
    _check_mergeable(trained, form, merge_into)
    load_tokenizer(trained.tokenizer_folder)
    if form == "gguf":
        if missing := gguf_writer.missing_requirements():
            raise BackendUnavailable(missing)
        gguf_writer.check_exportable(trained.weights.folder, trained.tokenizer_folder)
    weights = weights_of(trained)
    kind = quantisation or usual_quantisation(weights)
    remarks = () if quantisation else (_usual(kind, weights),)
    job = _Job(trained, out, merge_into, kind, precision or trained.precision, device, report, remarks)
    check_space(trained, out, form, kind, job.precision)
    write = {"adapter": _export_adapter, "merged": _export_merged, "gguf": _export_gguf}[form]
    with explained_errors(out):
        return write(job)


def _check_packages(*packages: str) -> None:
    if missing := missing_packages(packages):
        raise BackendUnavailable(
            f"an export needs {', '.join(missing)}, not installed here: pip install 'alpasift[train]'"
        )


def _check_mergeable(trained: Trained, form: Form, merge_into: MergeInto) -> None:
    """Raise TrainError where this model cannot be written in this form."""
    if trained.base is not None:
        _check_packages("peft", *(("bitsandbytes",) if trained.nf4 else ()))
    elif merge_into == "dequantised" or form == "adapter":
        raise TrainError(
            f"{trained.folder} has full weights and no adapter; export it with --form merged or gguf, without "
            "--merge-into dequantised"
        )
    if merge_into == "dequantised" and not trained.nf4:
        raise TrainError(f"{trained.folder} was trained on unquantised weights: there is no dequantised base")


# -- the three forms ---------------------------------------------------------------------------------------------------


def _export_adapter(job: _Job) -> Exported:
    trained = job.trained
    settings = read_json(trained.folder / "adapter_config.json", f"{trained.folder} is not an adapter")
    rank = max([int(settings["r"]), *(settings.get("rank_pattern") or {}).values()])
    odd = [
        f"{key}={settings[key]!r}"
        for key, plain in (("modules_to_save", None), ("use_dora", False), ("bias", "none"))
        if settings.get(key, plain) not in (plain, None, [])
    ]
    if odd or rank > VLLM_RANKS[-1]:
        why = ", ".join(odd) or f"rank {rank}, above {VLLM_RANKS[-1]}"
        raise TrainError(f"vLLM supports no adapter with {why}; export it with --form merged")
    facts = {
        **trained.facts,
        "form": "adapter",
        "source": str(trained.folder.resolve()),
        "rank": rank,
        "max_lora_rank": next(allowed for allowed in VLLM_RANKS if allowed >= rank),
    }
    with atomic_folder(job.out, facts) as draft:
        job.report(f"writing the adapter of rank {rank}")
        for name in ("adapter_config.json", ADAPTER):
            shutil.copyfile(trained.folder / name, draft / name)
        copy_tokenizer(trained.tokenizer_folder, draft, trained.chat_template)
    return Exported(job.out, "adapter", read_manifest(job.out, hashes=False))


def _export_merged(job: _Job) -> Exported:
    facts = _facts(job, "merged")
    with atomic_folder(job.out, facts) as draft:
        _, facts["difference"] = write_merged(job.trained, draft, job.merge_into, job.precision, job.device, job.report)
    return Exported(job.out, "merged", read_manifest(job.out, hashes=False))


def _export_gguf(job: _Job) -> Exported:
    """merged folder -> GGUF of the same precision -> the quantised one, all in a working folder beside `out`."""
    out = job.out
    out.parent.mkdir(parents=True, exist_ok=True)
    for abandoned in out.parent.glob(f".{out.name}.*{PARTIAL}"):
        shutil.rmtree(abandoned, ignore_errors=True)
    work = out.parent / f".{out.name}.{os.getpid()}{PARTIAL}"
    work.mkdir()
    try:
        written, facts = _write_gguf(job, work)
        facts |= {"bytes": written.stat().st_size, "sha256": sha256(written)}
        beside = Path(f"{out}.json")
        sync(written)
        beside.unlink(missing_ok=True)  # it describes the file that is replaced
        written.replace(out)
        draft = work / "facts.json"
        draft.write_text(json.dumps(facts, indent=1, ensure_ascii=False), "utf-8")
        sync(draft)
        draft.replace(beside)
        sync(out.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Exported(out, "gguf", facts)


def _write_gguf(job: _Job, work: Path) -> tuple[Path, dict[str, Any]]:
    """Write, quantise and check the file inside `work`. Returns its path and its facts."""
    trained, quantisation = job.trained, job.quantisation
    merged = work / "merged"
    merged.mkdir()
    facts = _facts(job, "gguf") | {"quantisation": quantisation}
    expected, facts["merged_difference"] = write_merged(
        trained, merged, job.merge_into, job.precision, job.device, job.report
    )
    tokenizer = load_tokenizer(merged)
    stored = gguf_writer.STORED[job.precision if quantisation in ("q8_0", "q4_k_m") else quantisation]
    written = work / f"{stored}.gguf"
    job.report(f"writing GGUF in {stored}")
    remarks = gguf_writer.write_gguf(
        merged,
        written,
        stored,
        chat_template=trained.chat_template or None,
        name=job.out.stem,
        facts={key: facts[key] for key in ("source", "method", "base_sha256", "merge_into", "precision")},
    )
    shutil.rmtree(merged)  # its room is needed
    if quantisation == "q8_0" or quantisation == "q4_k_m":
        job.report(f"quantising to {quantisation}")
        llama_cpp_check.quantise(written, work / "quantised.gguf", quantisation)
        written.unlink()
        written = work / "quantised.gguf"
    job.report("comparing it with the trained model")
    texts = [*llama_cpp_check.PROBES, *map(" ".join, TEXTS)]
    facts["tokens_compared"], differ = llama_cpp_check.check_tokens(written, tokenizer, texts)
    of = "the model as trained" if trained.base else "the weights it was made from"
    found = llama_cpp_check.gguf_logits(written, expected.rows)
    facts["difference"] = asdict(difference(f"llama.cpp on this file, and {of}", expected.logits, found))
    facts["tensors"] = llama_cpp_check.tensor_kinds(written)
    facts["remarks"] = [*job.remarks, *remarks, *differ, *_fallbacks(quantisation, facts["tensors"])]
    return written, facts


def _fallbacks(quantisation: Quantisation, tensors: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What llama.cpp stored in another kind than asked for, in words."""
    usual = {"q8_0": {"Q8_0"}, "q4_k_m": {"Q4_K", "Q6_K"}}.get(quantisation)
    if usual is None:
        return []
    usual |= {"F32"}
    other = [f"{entry['tensors']} as {kind}" for kind, entry in sorted(tensors.items()) if kind not in usual]
    if not other:
        return []
    multiple = 256 if quantisation == "q4_k_m" else 32
    return [f"llama.cpp kept {', '.join(other)} instead, as their row sizes are not a multiple of {multiple}"]


def _facts(job: _Job, form: Form) -> dict[str, Any]:
    """What is known of an export before it is made; an export of an export keeps the facts of the training."""
    known = {key: value for key, value in job.trained.facts.items() if key not in ("form", "difference", "source")}
    return {
        "base": None,
        "base_sha256": None,
        "method": None,
        **known,
        "kind": "model",
        "form": form,
        "source": str(job.trained.folder.resolve()),
        "merge_into": job.merge_into if job.trained.base else known.get("merge_into"),
        "precision": job.precision,
    }
