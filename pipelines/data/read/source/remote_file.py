"""Parts of other files as Python reads files: ranges of one that is open, and of one in a remote store."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from pipelines.storage.errors import attempt


class Section(io.RawIOBase):
    """``size`` bytes of an open file from ``begin`` on, which is closed with this."""

    def __init__(self, file: Any, begin: int, size: int) -> None:
        self._file, self._begin, self._size, self._position = file, begin, size, 0

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
        data = self._next(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return self._next(self._size)

    def close(self) -> None:
        if not self.closed and self._file is not None:
            self._file.close()
        super().close()

    def _next(self, wanted: int) -> bytes:
        size = max(0, min(wanted, self._size - self._position))
        data = self._fetch(self._begin + self._position, size) if size else b""
        self._position += len(data)
        return data

    def _fetch(self, start: int, size: int) -> bytes:
        self._file.seek(start)
        return self._file.read(size)


class RemoteFile(Section):
    """A remote file whose reads are attempted several times, each time on a new connection."""

    def __init__(self, name: str, connect: Callable[[], Any]) -> None:
        self._name, self._connect = name, connect
        file = attempt(name, connect)
        super().__init__(file, 0, attempt(name, file.size))

    def _fetch(self, start: int, size: int) -> bytes:
        def once() -> bytes:
            if self._file is None:
                self._file = self._connect()
            try:
                data = super(RemoteFile, self)._fetch(start, size)
                if len(data) < size:
                    raise ConnectionError(f"{len(data)} bytes arrived where {size} were asked for")
                return data
            except Exception:
                self._file = None  # whatever state it is in, the next attempt starts with a new connection
                raise

        return attempt(self._name, once)
