"""Atomic writes: a file or object appears under its name whole, or not at all.

A local file is written under another name and renamed; an object appears when its upload is completed. What
has appeared survives a loss of power: content is on the disk before its name is, and the name before the
writer goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from pipelines.storage import s3
from pipelines.storage.errors import explained
from pipelines.storage.json_files import read_json
from pipelines.storage.remote_path import RemotePath
from pipelines.storage.uri import Folder

DIGESTS = ".digests"
LEFTOVERS_AFTER = timedelta(days=1)
"""Age from which an unfinished upload counts as abandoned: a younger one may be another run's."""


def write_whole(path: Folder, data: bytes | str, *, parents: bool = False) -> None:
    """Replaces a file or an object in one step: readers see the old one or the new one, whole.

    Args:
        path: Where it goes.
        data: What it holds; text is encoded as UTF-8.
        parents: Make the folders above it. For files that a user names: a store's folders that are gone stay
            gone, so that no artifact comes back with its last file alone.
    """
    if parents and isinstance(path, Path):
        with explained(str(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
    content = data.encode("utf-8") if isinstance(data, str) else data
    with create(path) as output:
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


class _LocalFile:
    """A file under another name, renamed when it is whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}")
        self._file = self._temporary.open("wb")

    def write(self, data: memoryview) -> None:
        self._file.write(data)

    def finish(self) -> str:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        stamp = str(self._temporary.stat().st_mtime_ns)  # once named, a reader may remove it
        self._temporary.replace(self._path)
        sync(self._path.parent)
        return stamp

    def abort(self) -> None:
        self._temporary.unlink(missing_ok=True)  # first: on a full disk, closing fails too
        with contextlib.suppress(OSError):
            self._file.close()


class _Staged:
    """An object of a store whose uploads cannot be abandoned: kept on this machine, and sent when whole."""

    def __init__(self, path: RemotePath) -> None:
        self._path = path
        self._file = tempfile.NamedTemporaryFile(prefix="casa-")  # noqa: SIM115 - closed at either end

    def write(self, data: memoryview) -> None:
        self._file.write(data)

    def finish(self) -> str:
        self._file.flush()
        with self._file:
            return self._path.upload(self._file.name)

    def abort(self) -> None:
        self._file.close()


class Output(io.RawIOBase):
    """A file being written, local or remote. See :func:`create`: the end of its block, and not ``close``,
    decides whether the file appears."""

    def __init__(self, path: Folder) -> None:
        self.path = path
        self.written: Written | None = None
        self._hash = hashlib.sha256()
        self._size = 0
        self._target: _LocalFile | _Staged | s3.S3Upload
        if isinstance(path, Path):
            with explained(str(path)):
                self._target = _LocalFile(path)
        elif path.scheme == "s3":
            self._target = s3.S3Upload(path.settings, path.bucket, path.key)
        else:
            self._target = _Staged(path)

    def write(self, data: Any) -> int:
        """Appends bytes, or anything with the buffer protocol; returns how many."""
        view = memoryview(data).cast("B")
        self._hash.update(view)
        self._size += len(view)
        with explained(str(self.path)):
            self._target.write(view)
        return len(view)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._size

    def writable(self) -> bool:
        """Always true."""
        return True

    def finish(self) -> None:
        """Makes the file appear under its name."""
        with explained(str(self.path)):
            self.written = Written(self._size, self._hash.hexdigest(), self._target.finish())

    def abort(self) -> None:
        """Discards what was written; what was there before stays."""
        self._target.abort()


@contextlib.contextmanager
def create(path: Folder) -> Iterator[Output]:
    """A binary stream into a new file, which appears when the block ends well, and not at all otherwise."""
    output = Output(path)
    try:
        yield output
        output.finish()
    except BaseException:
        output.abort()
        raise


def sync_tree(folder: Path) -> None:
    """Forces all files and folders below a local folder, and itself, to the disk."""
    for path in (*folder.rglob("*"), folder):
        if path.is_dir() or path.is_file():
            sync(path)


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
    found = read_json(path.parent / DIGESTS / f"{path.name}.json", dict)
    return Written(**found) if found is not None and found["stamp"] == stamp else None


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
