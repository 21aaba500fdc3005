"""The files that the server holds, and the names that it gives to things.

The bytes of a file that was deleted stay for the batches that were created before. The caller holds the server's lock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpasift.graders.rehearsal.messages import Refused


@dataclass(slots=True)
class File:
    id: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    expires_at: int
    path: Path
    deleted: bool = False

    def view(self) -> dict[str, Any]:
        return {
            "object": "file",
            "id": self.id,
            "purpose": self.purpose,
            "filename": self.filename,
            "bytes": self.bytes,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "status": "processed",
            "status_details": None,
        }


class Ids:
    """Names that occur once: a prefix, the run of the server, a number."""

    def __init__(self, run: str) -> None:
        self.run = run
        self._count = 0

    def new(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}{self.run}{self._count:08x}"


class Files:
    """Files by their ids, kept in a folder. `now` is the server's clock."""

    def __init__(self, folder: Path, ids: Ids, now: Callable[[], float]) -> None:
        self.folder, self.ids, self.now = folder, ids, now
        self.all: dict[str, File] = {}

    def there(self, file_id: str) -> File | None:
        """The file of that id; None when it is deleted, expired, or never was."""
        file = self.all.get(file_id)
        return None if file is None or file.deleted or file.expires_at <= self.now() else file

    def known(self, file_id: str) -> File:
        """The same. Raises Refused, with 404."""
        file = self.there(file_id)
        if file is None:
            raise Refused(404, f"No such File object: {file_id}", None, "id")
        return file

    def add(self, file: File) -> None:
        self.all[file.id] = file

    def results_path(self, batch_id: str, kind: str) -> Path:
        """Where the lines of a batch's output ("output") or its errors ("error") are written."""
        return self.folder / f"{batch_id}_{kind}.jsonl"

    def publish(self, path: Path, name: str, at: int, keep: int, *, empty: bool = False) -> File | None:
        """Show a file of results; None for one that holds nothing, unless an empty one is wanted."""
        if not path.exists() or (path.stat().st_size == 0 and not empty):
            return None
        file = File(self.ids.new("file-"), name, "batch_output", path.stat().st_size, at, keep, path)
        self.add(file)
        return file
