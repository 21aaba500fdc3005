"""A working folder as users have it: with modules named as ours once were, which must never be imported.

    folder = make_hostile_folder(tmp_path / "mine")
    ...                                                 # run commands with cwd=folder
    assert imported(folder) == []

A process whose `sys.path` begins with its working folder (python -m, torchrun, a spawned child) would find them first.
"""

from __future__ import annotations

from pathlib import Path

NAMES = ("train", "sql", "graders", "batcher")
_CODE = """\
from pathlib import Path
Path(__file__).with_suffix(".imported").touch()  # stays when somebody catches the error
raise RuntimeError(f"{__file__} was imported: a module of the working folder in the place of ours")
"""


def make_hostile_folder(folder: Path) -> Path:
    """Write the modules into a folder, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        (folder / f"{name}.py").write_text(_CODE, "utf-8")
    return folder


def imported(folder: Path) -> list[str]:
    """The names of the modules that some process imported."""
    return sorted(path.stem for path in folder.glob("*.imported"))
