"""A folder as a dataset: what `save_to_disk` wrote, or data files as they lie on a hub, by their splits.

On a hub the data files stand beside a README, in the folder or one below (`data/train-00000-of-00002.parquet`). Their
splits are told from their names, as the hub does where the README does not say more.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from alpasift.batcher.data.files.file_row import READABLE, DatasetError
from alpasift.batcher.data.files.names import format_of

_NO_DATA = {"dataset_infos.json", "dataset_dict.json", "state.json", "dataset_info.json", "config.json"}
_SPLITS = {
    "train": "train training",
    "validation": "validation valid val dev",
    "test": "test testing eval evaluation",
}
_SPLIT_OF = {word: split for split, words in _SPLITS.items() for word in words.split()}
_NAMED = re.compile(r"(.+)-\d{5}-of-\d{5}")


class Splits(NamedTuple):
    """The files of each split; of what `save_to_disk` wrote (`saved`) the folder of each."""

    saved: bool
    splits: dict[str, tuple[Path, ...]]


def folder_splits(path: Path) -> Splits:
    """The splits of a folder, in the order train, validation, test, others. Raises DatasetError."""
    if (path / "dataset_dict.json").is_file():
        splits = _small_json(path / "dataset_dict.json").get("splits")
        names = [name for name in splits if isinstance(name, str) and name] if isinstance(splits, list) else []
        if not names:
            raise DatasetError(f"{path / 'dataset_dict.json'} lists no splits; import the folder of one split")
        return Splits(True, {name: (path / Path(name).name,) for name in names})
    if (path / "state.json").is_file():
        return Splits(True, {path.name: (path,)})
    return Splits(False, _hub_splits(path))


def saved_files(path: Path) -> tuple[Path, ...]:
    """The data files of a folder that `save_to_disk` wrote. Raises DatasetError."""
    if not (path / "state.json").is_file():
        raise DatasetError(f"{path} is a folder without state.json, so `save_to_disk` did not write it; give a file")
    found = _small_json(path / "state.json").get("_data_files")
    files = found if isinstance(found, list) else []
    names = [str(file.get("filename", "")) for file in files if isinstance(file, dict)]
    if not names or any(not n or Path(n).name != n or not (path / n).is_file() for n in names):
        shown = ", ".join(map(repr, names)) or "none"
        raise DatasetError(f"{path}/state.json lists data files that are missing: {shown}")
    return tuple(path / name for name in names)


def _hub_splits(path: Path) -> dict[str, tuple[Path, ...]]:
    files = [file for file in sorted(path.rglob("*")) if _is_data(path, file)]
    if not files:
        raise DatasetError(
            f"{path} is a folder without data files and without the state.json of `save_to_disk`; give {READABLE}"
        )
    homes = {file.parent for file in files if _SPLIT_OF.get(file.parent.name.lower()) is None}
    if len(homes) > 1:
        below = ", ".join(str(home.relative_to(path)) for home in sorted(homes - {path}))
        if path in homes:
            first = next(file for file in files if file.parent == path)
            raise DatasetError(
                f"{path} contains data files, and the folders {below} in it do too; import one file, such as {first}, "
                f"or one of these folders, such as {min(homes - {path})}"
            )
        raise DatasetError(f"{path} contains data files in the folders {below}; import one of them: {min(homes)}")
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(_split_of(path, file), []).append(file)
    order = [*(split for split in _SPLITS if split in found), *(split for split in found if split not in _SPLITS)]
    return {split: tuple(found[split]) for split in order}


def _is_data(path: Path, file: Path) -> bool:
    inside = file.relative_to(path)
    hidden = any(part.startswith(".") for part in inside.parts)
    known = format_of(file.name)[0] is not None and file.name not in _NO_DATA
    return (
        known and not hidden and len(inside.parts) <= 3 and file.is_file() and not file.name.endswith(".manifest.json")
    )


def _split_of(path: Path, file: Path) -> str:
    """The split whose word stands in the name of the file or its folder; train where none does."""
    stem = file.name.partition(".")[0]
    for text in (stem, *reversed(file.relative_to(path).parts[:-1])):
        for word in re.split(r"[^a-z0-9]+", text.lower()):
            if word in _SPLIT_OF:
                return _own_name(stem, word) or _SPLIT_OF[word]
    named = _NAMED.fullmatch(stem)
    return named[1] if named else "train"


def _own_name(stem: str, word: str) -> str:
    """A split whose name is longer than the word for it, as numbered files have it: train_sft-00000-of-00001."""
    named = _NAMED.fullmatch(stem)
    return named[1] if named and named[1].lower() != word else ""


def _small_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is not JSON as `save_to_disk` writes it: {error}") from error
    return value if isinstance(value, dict) else {}
