"""Uploaded pictures in memory: bounded in bytes and time, by ids that cannot be guessed."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

ID_PREFIX = "file-"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """An uploaded picture.

    Attributes:
        id: All that is needed to use the picture.
        data: Encoded bytes.
        name: The client's own name for it.
        created: When it came, seconds since 1970.
    """

    id: str
    data: bytes
    name: str
    created: int


class Files(Protocol):
    """Uploaded pictures, in this process or in one that several share.

    Attributes:
        seconds: How long a file is kept after its last use.
    """

    seconds: float

    async def put(self, data: bytes, name: str) -> StoredFile:
        """Keep a file of at most as many bytes as are kept at all."""
        ...

    async def get(self, file_id: str) -> StoredFile | None:
        """A file, whose time begins anew; ``None`` for one that is not kept."""
        ...

    async def delete(self, file_id: str) -> bool:
        """Forget a file; whether it was there."""
        ...


class FileStore:
    """Keeps files until they have not been used for a while, or others need their room. Used from one event
    loop.

    Args:
        most_bytes: Bound of all files together; the one unused for longest makes room for a new one.
        seconds: How long a file is kept after its last use.
    """

    def __init__(self, most_bytes: int, seconds: float) -> None:
        self.most_bytes, self.seconds = most_bytes, seconds
        self._files: OrderedDict[str, tuple[StoredFile, float]] = OrderedDict()  # with the end of each
        self._timer: asyncio.TimerHandle | None = None

    @property
    def bytes_held(self) -> int:
        """Bytes of all files together."""
        return sum(len(file.data) for file, _ in self._files.values())

    async def put(self, data: bytes, name: str) -> StoredFile:
        """As ``Files.put``."""
        file = StoredFile(ID_PREFIX + secrets.token_urlsafe(24), data, name, int(time.time()))
        while self._files and self.bytes_held + len(data) > self.most_bytes:
            self._files.popitem(last=False)
        self._use(file)
        return file

    async def get(self, file_id: str) -> StoredFile | None:
        """As ``Files.get``."""
        self._drop_old()
        if (found := self._files.get(file_id)) is None:
            return None
        self._use(found[0])
        return found[0]

    async def delete(self, file_id: str) -> bool:
        """As ``Files.delete``."""
        return self._files.pop(file_id, None) is not None

    def close(self) -> None:
        """Forget everything."""
        self._files.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _use(self, file: StoredFile) -> None:
        self._files[file.id] = file, time.monotonic() + self.seconds
        self._files.move_to_end(file.id)
        self._wake_at_the_next_end()

    def _drop_old(self) -> None:
        now = time.monotonic()
        while self._files and next(iter(self._files.values()))[1] <= now:
            self._files.popitem(last=False)

    def _wake_at_the_next_end(self) -> None:
        """Memory is free in time, also if no other call comes."""
        if self._timer is None and self._files:
            _, end = next(iter(self._files.values()))
            self._timer = asyncio.get_running_loop().call_later(
                max(0.0, end - time.monotonic()), self._on_timer
            )

    def _on_timer(self) -> None:
        self._timer = None
        self._drop_old()
        self._wake_at_the_next_end()
