"""What a file's name says: its format, its compression, and the name of the dataset that it makes."""

from __future__ import annotations

from pathlib import Path

from alpasift.batcher.data.files.file_row import FORMATS
from alpasift.batcher.data.files.text import PACKED


def base_name(path: Path) -> str:
    """The file's name without the suffixes that say its format: dolly.jsonl.gz is "dolly"."""
    name = path.name
    for suffixes in (PACKED, (*FORMATS, "ndjson", "tsv")):
        stem, dot, suffix = name.rpartition(".")
        if dot and stem and suffix.lower() in suffixes:
            name = stem
    return name


def format_of(name: str) -> tuple[str | None, str]:
    """Format and compression by the suffixes of a name: ("jsonl", "gz"); None for a format that is not known."""
    parts = name.lower().split(".")
    packing = parts.pop() if parts[-1] in PACKED else ""
    kind = parts[-1] if len(parts) > 1 else ""
    kind = {"ndjson": "jsonl", "tsv": "csv"}.get(kind, kind)
    return (kind if kind in FORMATS else None), packing
