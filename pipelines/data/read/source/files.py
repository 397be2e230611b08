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
from functools import cached_property, lru_cache
from pathlib import PurePosixPath
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import fs

from casa_core.errors import DataError, TransferError, cause
from pipelines.data.read.source.archives import (
    INDEXED,
    WITHOUT_INDEX,
    Index,
    Member,
    NotUnpacked,
    find_member,
    index_of,
    member_bytes,
    section,
)
from pipelines.data.read.source.remote_file import RemoteFile
from pipelines.storage.errors import attempt
from pipelines.storage.raw_listing import RawListing, list_raw
from pipelines.storage.retry import retry
from pipelines.storage.uri import filesystem_for, is_remote

_BUFFER = 256 << 10
HEADERS = 4 << 10
"""Bytes fetched at once where a file's headers are read and what lies between them is not."""
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
        """Neither connections nor listings travel; the archives do, so that workers need not list."""
        known = {name: getattr(self, name) for name in ("archives", "packed") if "listing" in self.__dict__}
        return {"root": self.root, **known}

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
            found = self._attempt("", lambda: list_raw(self.root))
        except NotADirectoryError as error:
            raise DataError(
                f"{self.root} is a file.",
                "A source is a folder.",
                "Name the folder that holds the file as `path`.",
            ) from error
        except OSError as error:
            raise _unlisted(self.root, str(error)) from error
        if is_remote(self.root) and not found.files:
            raise _unlisted(self.root, "There is no file below it.")
        return found

    @cached_property
    def archives(self) -> tuple[str, ...]:
        """Archives whose members can be read: :mod:`pipelines.data.read.source.archives`."""
        return tuple(name for name in self.listing.files if name.lower().endswith(INDEXED))

    @cached_property
    def packed(self) -> int:
        """How many archives there are whose members cannot be read."""
        return sum(name.lower().endswith(WITHOUT_INDEX) for name in self.listing.files)

    @cached_property
    def contents(self) -> dict[str, int]:
        """Bytes of each file, sorted by name: those listed, and as ``a.zip/b`` those in zip archives.

        A member that also lies unpacked beside its archive is left out.
        """
        sizes = {name: entry.size for name, entry in self.listing.files.items()}
        zips = [name for name in self.archives if name.lower().endswith(".zip")]
        inner: dict[str, int] = {}
        for archive, index in zip(zips, self.map(self.index, zips), strict=True):
            folder, stem = str(PurePosixPath(archive).parent), PurePosixPath(archive).with_suffix("")
            for name, member in index.items():
                unpacked = (str(PurePosixPath(folder, name)), f"{stem}/{name}")
                if all(sizes.get(place) != member.size for place in unpacked):
                    inner[f"{archive}/{name}"] = member.size
        return dict(sorted((sizes | inner).items()))

    def index(self, archive: str) -> Index:
        """The members of an archive by name; read once a process.

        Raises:
            DataError: For a zip archive that cannot be read.
        """
        return _index(self.root, archive)

    def names(self, suffix: str | tuple[str, ...]) -> list[str]:
        """Names, relative to the root and sorted, of all ``contents`` that end with (one of) ``suffix``.

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
            name for name in self.contents if name.lower().endswith(suffix) and name not in listing.doubles
        ]

    def open(self, name: str, block: int = _BUFFER) -> pa.NativeFile:
        """A seekable file, or member of an archive.

        Args:
            block: Bytes that are fetched at once from a remote file.

        Raises:
            FileNotFoundError: Where there is none of that name.
            TransferError: From the file's methods too, where it cannot be reached.
        """
        try:
            return self._open(name, block)
        except (FileNotFoundError, NotADirectoryError):
            member = self._member(name)
            if member is None:
                raise
        archive = self._open(member.archive, block)
        view = section(archive, member)
        if view is None:
            with archive:
                return pa.BufferReader(member_bytes(archive, member))
        return pa.PythonFile(io.BufferedReader(view, _BUFFER), mode="r")

    def _open(self, name: str, block: int) -> pa.NativeFile:
        if not is_remote(self.root):
            return self._attempt(name, lambda: self._handle(name))
        raw = RemoteFile(self._place(name), lambda: self._handle(name))
        return pa.PythonFile(io.BufferedReader(raw, block), mode="r")

    def read(self, name: str) -> bytes:
        """All bytes of a file or of a member of an archive; raises as ``open``."""

        def whole() -> bytes:
            with self._handle(name) as file:
                return file.read()

        try:
            return self._attempt(name, whole)
        except (FileNotFoundError, NotADirectoryError):
            member = self._member(name)
            if member is None:
                raise
        with self._open(member.archive, HEADERS) as archive:
            return member_bytes(archive, member)

    def _member(self, name: str) -> Member | None:
        """The member of an archive that stands for a file.

        Raises:
            NotUnpacked: Where there is none, but archives in which it may lie.
        """
        found = find_member(name, self.archives, self.index)
        if found is None and self.packed:
            raise NotUnpacked(
                f"{self.packed} packed archives (.tar.gz) may hold it: unpack them, or gunzip them once"
            )
        return found

    def size(self, name: str) -> int:
        """Bytes of one of ``contents``."""
        return self.contents[name]

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
        if isinstance(filesystem, fs.PyFileSystem):
            # By itself fsspec reads 5 MiB ahead, which headers throw away and other reads have a buffer for.
            opened = filesystem.handler.fs.open(f"{path}/{name}", "rb", cache_type="none")
            return pa.PythonFile(opened, mode="r")
        return filesystem.open_input_file(f"{path}/{name}")

    def _attempt(self, name: str, action: Callable[[], Result]) -> Result:
        if is_remote(self.root):
            return attempt(self._place(name), action)
        with transfers(name or self.root):
            return retry(action, lambda error: of_machine(error) and not isinstance(error, PermissionError))

    def _place(self, name: str) -> str:
        return f"{self.root.partition('?')[0]}/{name}".rstrip("/")


@lru_cache(maxsize=1024)
def _index(root: str, archive: str) -> Index:
    with Files(root)._open(archive, HEADERS) as file:
        return index_of(archive, file)


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
