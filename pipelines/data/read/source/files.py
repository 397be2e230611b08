"""Raw files by name under one root: a local folder, or a URI as :mod:`pipelines.storage.uri` reads it.

What a network or a shared folder does in passing (a reset connection, a busy server, a stale handle) is tried
again with growing waits. What stays broken, a file without permission included, raises ``TransferError``,
which no reader mistakes for a broken record: a run that loses its network or its disk stops, and does not put
half a corpus into the quarantine.
"""

from __future__ import annotations

import errno
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import fs

from casa_core.errors import DataError, TransferError, cause
from pipelines.storage.errors import attempt
from pipelines.storage.raw_listing import RawListing, list_raw
from pipelines.storage.retry import retry
from pipelines.storage.uri import filesystem_for, is_remote

_BUFFER = 256 << 10
_REQUESTS = 16
"""Remote files asked about side by side: each costs a round trip or two, and hardly any work."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Files:
    """The files under ``root``; picklable, and opened anew in each process.

    Attributes:
        root: A folder or a URI (``s3://``, ``hf://``, ``gs://``, ``file://``).
    """

    root: str

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root}  # neither connections nor listings travel

    @cached_property
    def _location(self) -> tuple[fs.FileSystem, str]:
        return self._attempt("", lambda: filesystem_for(self.root))

    @cached_property
    def listing(self) -> RawListing:
        """What lies below the root, listed once a process.

        Raises:
            DataError: Where the root does not exist, or a folder in it cannot be listed.
            TransferError: Where it cannot be reached.
        """
        try:
            found = self._attempt("", lambda: list_raw(self.root, self._location))
        except OSError as error:
            raise _unlisted(self.root, str(error)) from error
        if is_remote(self.root) and not found.files:
            raise _unlisted(self.root, "There is no file below it.")
        return found

    def names(self, suffix: str | tuple[str, ...]) -> list[str]:
        """Names, relative to the root and sorted, of all files below it that end with (one of) ``suffix``.

        Capital letters are the same as small ones. A second name of a file, by a link, is left out.

        Raises:
            DataError: As ``listing``; and for a link of such a name that leads nowhere, since its records
                would be missing without notice.
            TransferError: Where the root cannot be reached.
        """
        listing = self.listing
        lost = [name for name in listing.dangling if name.lower().endswith(suffix)]
        if lost:
            raise DataError(
                f"{_some(lost)} of {self.root} cannot be read.",
                "It is a link that leads nowhere." if len(lost) == 1 else "They are links that lead nowhere.",
                "Fetch what they should lead to, or delete them to go on without.",
            )
        return [
            name for name in listing.files if name.lower().endswith(suffix) and name not in listing.doubles
        ]

    def open(self, name: str) -> pa.NativeFile:
        """A seekable file.

        Raises:
            FileNotFoundError: Where there is none of that name.
            TransferError: From the file's methods too, where it cannot be reached.
        """
        if not is_remote(self.root):
            return self._attempt(name, lambda: self._handle(name))
        raw = _RemoteFile(self._place(name), lambda: self._handle(name))
        return pa.PythonFile(io.BufferedReader(raw, _BUFFER), mode="r")

    def read(self, name: str) -> bytes:
        """All bytes of a file; raises as ``open``."""

        def whole() -> bytes:
            with self._handle(name) as file:
                return file.read()

        return self._attempt(name, whole)

    def size(self, name: str) -> int:
        """Bytes of a file of the listing."""
        return self.listing.files[name].size

    def exists(self, name: str) -> bool:
        """Whether there is such a file; raises ``TransferError``."""
        filesystem, path = self._location
        info = self._attempt(name, lambda: filesystem.get_file_info(f"{path}/{name}"))
        return info.type == fs.FileType.File

    def map(self, function: Callable[[str], Result], names: Sequence[str]) -> Iterator[Result]:
        """``function`` of each name, in order; of remote files several at a time."""
        if not is_remote(self.root):
            for name in names:
                with transfers(name):
                    result = function(name)
                yield result
            return
        self._location  # noqa: B018 - opened once, before the threads share it
        with ThreadPoolExecutor(_REQUESTS) as threads:
            yield from threads.map(function, names)

    def _handle(self, name: str) -> pa.NativeFile:
        filesystem, path = self._location
        return filesystem.open_input_file(f"{path}/{name}")

    def _attempt(self, name: str, action: Callable[[], Result]) -> Result:
        if is_remote(self.root):
            return attempt(self._place(name), action)
        with transfers(name):
            return retry(action, lambda error: of_machine(error) and not isinstance(error, PermissionError))

    def _place(self, name: str) -> str:
        return f"{self.root.partition('?')[0]}/{name}".rstrip("/")


class _RemoteFile(io.RawIOBase):
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


def _unlisted(root: str, why: str) -> DataError:
    return DataError(f"The folder {root} cannot be listed.", why, "Check the source's path.")


def _some(names: Sequence[str]) -> str:
    """The first names of a list that may be long."""
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest


@contextmanager
def transfers(name: str) -> Iterator[None]:
    """Errors of the machine inside the block, not of what ``name`` holds, become ``TransferError``."""
    try:
        yield
    except OSError as error:
        if not of_machine(error):
            raise
        raise TransferError(
            f"{name} is there and cannot be read.",
            f"{cause(error)}.",
            "Check its permissions and the disk or share it lies on, and run again: finished work is kept.",
        ) from error


def of_machine(error: BaseException) -> bool:
    """Whether an error is the system's (permission, disk, share), and not about a name or damaged content.

    Libraries raise ``OSError`` for damaged content too, but only the system's errors have a number.
    """
    if isinstance(error, PermissionError):
        return True
    return isinstance(error, OSError) and error.errno is not None and error.errno not in _ABOUT_A_NAME


_ABOUT_A_NAME = frozenset(
    {errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}
)
