"""Several files and folders of one command: which of them make which dataset, and their imports.

Files under one name are one dataset, in the order of their names; they never become versions of it. Every split of a
folder is a dataset of its own. Knows names and files; `importing` reads them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alpasift.batcher.data.files.file_row import DatasetError
from alpasift.batcher.data.files.folders import folder_splits
from alpasift.batcher.data.files.source import inspect
from alpasift.batcher.data.importing import Imported, dataset_name, import_file
from alpasift.batcher.store import Store

_SHARD = re.compile(r"(.+?)[-_.]\d{5}-of-(\d{5})")


@dataclass(frozen=True, slots=True)
class Input:
    """What makes one dataset: its name, its files, and which split of a folder."""

    name: str
    paths: tuple[Path, ...]
    split: str | None = None


def inputs_of(paths: Sequence[str | Path], dataset: str | None = None, split: str | None = None) -> list[Input]:
    """The datasets that these files and folders make. Raises DatasetError, as for two files whose names are equal."""
    found: dict[str, list[Path]] = {}
    inputs: list[Input] = []
    for given in paths:
        path = Path(given)
        if path.is_dir():
            inputs += _of_folder(path, dataset, split)
        else:
            if not path.exists():
                inspect(path)  # says what is wrong
            found.setdefault(_name(path, dataset), []).append(path)
    for name, files in found.items():
        if (
            len(files) > 1
            and dataset is None
            and not all(_SHARD.fullmatch(file.name.partition(".")[0]) for file in files)
        ):
            raise DatasetError(
                f"{files[0]} and {files[1]} would both become the dataset {name}; give --dataset NAME to read them as "
                "one dataset, or import each with its own --dataset"
            )
        inputs.append(Input(name, tuple(files), split))
    names = [one.name for one in inputs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise DatasetError(f"a folder and another input would both become the dataset {twice}; import them one by one")
    return inputs


def import_files(
    store: Store,
    paths: Sequence[str | Path],
    *,
    dataset: str | None = None,
    row_format: str = "auto",
    mapping: Mapping[str, str] | None = None,
    strict: bool = False,
    split: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Imported]:
    """Import files and folders, each dataset as `import_file` does. Raises DatasetError before the first for a name."""
    for one in inputs_of(paths, dataset, split):
        yield import_file(
            store,
            one.paths,
            dataset=one.name,
            row_format=row_format,
            mapping=mapping,
            strict=strict,
            split=one.split,
            progress=progress,
        )


def _of_folder(path: Path, dataset: str | None, split: str | None) -> list[Input]:
    name = dataset_name(path, dataset)
    if split is not None:
        return [Input(dataset or dataset_name(f"{name}-{split}", None), (path,), split)]
    splits = folder_splits(path).splits
    if len(splits) == 1:
        return [Input(name, (path,))]
    return [Input(dataset_name(f"{name[:50]}-{one}", None), (path,), one) for one in splits]


def _name(path: Path, dataset: str | None) -> str:
    """The dataset that a file makes; the numbers of a shard are no part of its name."""
    name = dataset_name(path, dataset)
    shard = _SHARD.fullmatch(path.name.partition(".")[0]) if dataset is None else None
    return dataset_name(shard[1], None) if shard else name
