"""A file of a remote store as Python reads files: every read is attempted several times."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from pipelines.storage.errors import attempt


class RemoteFile(io.RawIOBase):
    """A remote file whose reads are attempted several times, each time on a new connection."""

    def __init__(self, name: str, connect: Callable[[], Any]) -> None:
        self._name, self._connect = name, connect
        self._file: Any = attempt(name, connect)
        self._size: int = attempt(name, self._file.size)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        data = self._fetch(min(len(buffer), max(0, self._size - self._position)))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return self._fetch(max(0, self._size - self._position))

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def _fetch(self, size: int) -> bytes:
        def once() -> bytes:
            if self._file is None:
                self._file = self._connect()
            try:
                self._file.seek(self._position)
                data = self._file.read(size)
                if len(data) < size:
                    raise ConnectionError(f"{len(data)} bytes arrived where {size} were asked for")
                return data
            except Exception:
                self._file = None  # whatever state it is in, the next attempt starts with a new connection
                raise

        data = attempt(self._name, once) if size else b""
        self._position += len(data)
        return data
