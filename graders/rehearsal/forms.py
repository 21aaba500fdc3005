"""Forms with a file in them (multipart/form-data), read piece by piece."""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote


class Form:
    """A form with a file in it, as it comes in: short fields are kept, the file goes to disk piece by piece."""

    def __init__(self, boundary: bytes, path: Path, secret: bytes | None) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.leaked = False
        self._delimiter = b"\r\n--" + boundary
        self._path, self._secret = path, secret
        self._rest = b"\r\n"  # as though a line had ended before the first boundary
        self._file: BinaryIO | None = None
        self._name: str | None = None
        self._value = b""
        self._state = "before"

    def __enter__(self) -> Form:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def feed(self, data: bytes) -> None:
        data = self._rest + data
        if self._secret is not None and self._secret in data:
            self.leaked = True
        start = 0
        while True:
            if self._state == "head":
                end = data.find(b"\r\n\r\n", start)
                if data.startswith(b"--", start) or end < 0:
                    self._rest = data[start:]
                    return
                self._open_part(data[start:end].decode("utf-8", "replace"))
                start, self._state = end + 4, "part"
            at = data.find(self._delimiter, start)
            if at < 0:
                keep = max(start, len(data) - max(len(self._delimiter), len(self._secret or b"")))
                self._write(memoryview(data)[start:keep])
                self._rest = data[keep:]
                return
            self._write(memoryview(data)[start:at])
            self._close_part()
            start, self._state = at + len(self._delimiter), "head"

    def _open_part(self, head: str) -> None:
        name = re.search(r'\bname="([^"]*)"', head)
        filename = re.search(r'\bfilename="([^"]*)"', head)
        self._name, self._value = name[1] if name else None, b""
        if filename is not None and self._name == "file":
            self.filename = unquote(filename[1])
            self._file = self._path.open("wb", buffering=0)

    def _write(self, data: memoryview) -> None:
        if self._state != "part":
            return
        if self._file is not None:
            self._file.write(data)
        elif len(self._value) < 65_536:
            self._value += data

    def _close_part(self) -> None:
        if self._state != "part":
            return
        if self._file is not None:
            self._file.close()
            self._file = None
        elif self._name is not None:
            self.fields[self._name] = self._value.decode("utf-8", "replace")
