"""Atomic writes: a file or object appears under its name whole, or not at all.

A local file is written under another name and renamed; an object on S3 appears when its upload is completed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

from pipelines.storage.remote_path import RemotePath, S3Upload
from pipelines.storage.uri import Folder

DIGESTS = ".digests"
LEFTOVERS_AFTER = timedelta(days=1)
"""Age from which an unfinished upload counts as abandoned: a younger one may be another run's."""


def write_whole(path: Folder, data: bytes | str, *, durable: bool = False) -> None:
    """Replaces a file or an object in one step: readers see the old one or the new one, whole.

    Text is encoded as UTF-8; ``durable`` as of :func:`create`.
    """
    content = data.encode("utf-8") if isinstance(data, str) else data
    with create(path, durable=durable) as output:
        output.write(content)


@dataclass(frozen=True, slots=True)
class Written:
    """Size and digest of a file as it was written, without reading it again.

    Attributes:
        stamp: Changes when the file does: an object's tag, a file's time of modification in nanoseconds.
    """

    bytes: int
    sha256: str
    stamp: str


class Output(io.RawIOBase):
    """A file being written, local or on S3. See :func:`create`: the end of its block, and not ``close``,
    decides whether the file appears."""

    def __init__(self, path: Folder, *, durable: bool = False) -> None:
        self.path = path
        self._durable = durable
        self.written: Written | None = None
        self._hash = hashlib.sha256()
        self._size = 0
        self._upload: S3Upload | None = None
        self._file: IO[bytes] | None = None
        if isinstance(path, RemotePath):
            self._upload = S3Upload(path)
        else:
            self._temporary = path.with_name(f".{path.name}.{os.getpid()}")
            self._file = self._temporary.open("wb")

    def write(self, data: Any) -> int:
        """Appends bytes, or anything with the buffer protocol; returns how many."""
        view = memoryview(data).cast("B")
        self._hash.update(view)
        self._size += len(view)
        if self._upload is not None:
            self._upload.write(view)
        elif self._file is not None:
            self._file.write(view)
        return len(view)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._size

    def writable(self) -> bool:
        """Always true."""
        return True

    def finish(self) -> None:
        """Makes the file appear under its name."""
        if self._upload is not None:
            stamp = self._upload.finish()
        else:
            assert isinstance(self.path, Path)
            assert self._file is not None
            if self._durable:
                self._file.flush()
                os.fsync(self._file.fileno())
            self._file.close()
            stamp = str(self._temporary.stat().st_mtime_ns)  # once named, a reader may remove it
            self._temporary.replace(self.path)
            if self._durable:
                sync(self.path.parent)
        self.written = Written(self._size, self._hash.hexdigest(), stamp)

    def abort(self) -> None:
        """Discards what was written; what was there before stays."""
        if self._upload is not None:
            self._upload.abort()
        elif self._file is not None:
            self._file.close()
            self._temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def create(path: Folder, *, durable: bool = False) -> Iterator[Output]:
    """A binary stream into a new file, which appears when the block ends well, and not at all otherwise.

    Args:
        durable: A local file also survives a loss of power: its content is on the disk before its name is,
            and its name before the block ends. Objects always do.
    """
    output = Output(path, durable=durable)
    try:
        yield output
        output.finish()
    except BaseException:
        output.abort()
        raise


def sync(path: Path) -> None:
    """Forces a local file's content, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remember(path: Folder, written: Written) -> None:
    """Keeps a large file's digest beside it until its artifact is committed, so that none is read for it."""
    folder = path.parent / DIGESTS
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"{path.name}.json", json.dumps(asdict(written)))


def recall(path: Folder, stamp: str) -> Written | None:
    """What :func:`remember` kept of a file; ``None`` where it was written anew since then, or never kept."""
    try:
        kept = Written(**json.loads((path.parent / DIGESTS / f"{path.name}.json").read_text()))
    except FileNotFoundError:
        return None
    return kept if kept.stamp == stamp else None


def remove_leftovers(folder: Folder, *, older_than: timedelta = LEFTOVERS_AFTER) -> None:
    """Removes what killed writers left: unfinished files, and parts of uploads that will not be completed.

    Args:
        folder: An artifact's folder. Its commit ends all uploads that remain.
        older_than: Age of the uploads to end; ``timedelta(0)`` for all, where nothing else uploads there now.
    """
    if isinstance(folder, RemotePath):
        folder.abort_uploads(older_than=older_than)
        return
    for path in folder.glob(".*.*.*"):
        if path.is_file():
            path.unlink()
