"""Files that are read while they grow: logs, and the steps of a training that runs.

On a disk such a file is a plain file. No object store appends, so there it is a folder of parts,
``.<name>/<generation>-<part>``: the last part is put again, whole, every ``INTERVAL_S`` while it grows, and a
new one is begun at ``PART_BYTES``. What a killed writer had for less than ``INTERVAL_S`` is lost. A new
generation begins with one part that holds all that is kept of the older ones.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import TypeAlias

from casa_core.errors import StoreError
from pipelines.storage.atomic import write_whole
from pipelines.storage.transfer import remove_tree
from pipelines.storage.uri import Folder

INTERVAL_S = 2.0
"""Seconds between two uploads of what was added, and between two looks for it."""
PART_BYTES = 64 << 10


class _LocalFile:
    """On a disk."""

    def __init__(self, path: Path, content: bytes | None) -> None:
        if content is not None:
            write_whole(path, content)
        self._file = path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def flush(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class _Parts:
    """On an object store. ``write`` never waits for it; ``flush`` and ``close`` raise ``StoreError``."""

    def __init__(self, path: Folder, content: bytes | None) -> None:
        self._folder = _parts_folder(path)
        names = _part_names(path)
        generation, part = _numbers(names[-1]) if names else (1, 0)
        self._at = (generation, part + 1)
        self._buffer, self._unsent = bytearray(), False
        self._lock, self._sending = threading.Lock(), threading.Lock()
        if content is not None:
            self._at = (generation + 1, 1) if names else (1, 1)
            self._buffer += content
            self._unsent = True
            self.flush()  # whole: from here on readers take this generation
            for name in names:
                (self._folder / name).unlink(missing_ok=True)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._send_now_and_then, name="growing-file", daemon=True)
        self._thread.start()

    def write(self, data: bytes) -> None:
        with self._lock:
            self._buffer += data
            self._unsent = True

    def flush(self) -> None:
        with self._sending:
            with self._lock:
                data, due = bytes(self._buffer), self._unsent
                self._unsent = False
            if not due:
                return
            try:
                write_whole(self._folder / _part_name(*self._at), data)
            except BaseException:
                self._unsent = True
                raise
            if len(data) >= PART_BYTES:
                self._at = (self._at[0], self._at[1] + 1)
                with self._lock:
                    del self._buffer[: len(data)]

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self.flush()

    def _send_now_and_then(self) -> None:
        while not self._over.wait(INTERVAL_S):
            # Kept, and sent the next time; `flush` raises what does not pass.
            with contextlib.suppress(StoreError, OSError):
                self.flush()


Growing: TypeAlias = _LocalFile | _Parts


def append_to(path: Folder, content: bytes | None = None) -> Growing:
    """Opens a file for appending; with ``content``, all it held is first replaced by that in one step."""
    return _LocalFile(path, content) if isinstance(path, Path) else _Parts(path, content)


class Follower:
    """Reads a growing file line by line; a line counts once it is ended.

    Args:
        path: The file, which need not exist yet.
    """

    def __init__(self, path: Folder) -> None:
        self._path = path
        self._source: object = None
        self._offset, self._rest = 0, b""
        self._part = ""
        self._next_look = 0.0

    def lines(self, *, now: bool = True) -> list[bytes]:
        """Lines that were added since the last call; all of them, once the file was replaced.

        Args:
            now: ``False``: on an object store, look at most every ``INTERVAL_S``.
        """
        if isinstance(self._path, Path):
            added = self._read_local(self._path)
        elif now or time.monotonic() >= self._next_look:
            added = self._read_parts()
            self._next_look = time.monotonic() + INTERVAL_S
        else:
            return []
        *lines, self._rest = (self._rest + added).split(b"\n")
        return lines

    def _read_local(self, path: Path) -> bytes:
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return b""
        with file:
            self._begin(os.fstat(file.fileno()).st_ino)
            file.seek(self._offset)
            added = file.read()
        self._offset += len(added)
        return added

    def _read_parts(self) -> bytes:
        names = _part_names(self._path)
        self._begin(_numbers(names[-1])[0] if names else 0)
        added = bytearray()
        for name in [name for name in names or [""] if name >= self._part]:
            try:
                data = (_parts_folder(self._path) / name if name else self._path).read_bytes()
            except FileNotFoundError:  # not there yet, or replaced meanwhile
                break
            added += data[self._offset if name == self._part else 0 :]
            self._part, self._offset = name, len(data)
        return bytes(added)

    def _begin(self, source: object) -> None:
        """Starts over where the file is another one than before."""
        if source != self._source:
            self._source, self._offset, self._rest, self._part = source, 0, b"", ""


def last_bytes(path: Folder, size: int) -> bytes:
    """The end of a growing file, ``size`` bytes or less; empty where there is none."""
    if not isinstance(path, Path):
        found = b""
        for name in reversed(_part_names(path)):
            if len(found) >= size:
                break
            found = (_parts_folder(path) / name).read_bytes() + found
        return found[-size:]
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        return file.read()


def finish(path: Folder) -> None:
    """Makes a file that has grown, and that nothing appends to any more, a single object."""
    if isinstance(path, Path) or not (names := _part_names(path)):
        return
    write_whole(path, b"".join((_parts_folder(path) / name).read_bytes() for name in names))
    remove_tree(_parts_folder(path))


def _parts_folder(path: Folder) -> Folder:
    return path.with_name(f".{path.name}")


def _part_names(path: Folder) -> list[str]:
    """Names of the newest generation's parts, in order."""
    names = sorted(part.name for part in _parts_folder(path).iterdir())
    return [name for name in names if _numbers(name)[0] == _numbers(names[-1])[0]]


def _part_name(generation: int, part: int) -> str:
    return f"{generation:06d}-{part:06d}"


def _numbers(name: str) -> tuple[int, int]:
    generation, _, part = name.partition("-")
    return int(generation), int(part)
