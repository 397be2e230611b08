"""What this machine keeps outside stores: session files of a store that lies elsewhere, copies of models.

Session files are those of the local Ray head and of the runner (``$XDG_STATE_HOME/casa``, else
``~/.local/state/casa``). Copies are made for what reads local files only, once per machine
(``$XDG_CACHE_HOME/casa``, else ``~/.cache/casa``); they may be removed at any time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from casa_core.errors import StoreError
from pipelines.storage.transfer import copy_tree
from pipelines.storage.uri import Folder, open_folder

CACHE_BYTES = 64 << 30
"""Copies beyond this are removed when another is made, the one unused for longest first."""


def session_folder(store: Folder) -> Path:
    """Folder of a store's session files on this machine; beneath a local store, its own ``session``."""
    if isinstance(store, Path):
        return store / "session"
    address = str(store).partition("?")[0]  # however its server is named: here, or in the environment
    name = re.sub(r"\W+", "-", address.partition("://")[2])[:60]
    return _own_folder("XDG_STATE_HOME", ".local/state") / f"{name}-{_short_digest(address)}"


@contextlib.contextmanager
def cached_copy(folder: str | Folder, digest: str) -> Iterator[Path]:
    """A local folder with the files of ``folder``, which is that itself or a copy.

    A copy is made whole by one process at a time and kept for later ones; it is not removed in the block.

    Args:
        folder: A path, or a URI.
        digest: Changes when the files do.
    """
    folder = open_folder(folder)
    if isinstance(folder, Path):
        yield folder
        return
    cache = cache_folder() / "models"
    cache.mkdir(parents=True, exist_ok=True)
    copy = cache / _short_digest(f"{folder} {digest}")
    with _lock_of(copy).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        while not copy.is_dir():
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not copy.is_dir():
                _make(folder, copy)
            fcntl.flock(lock, fcntl.LOCK_SH)
        os.utime(copy)
        yield copy


def _make(folder: Folder, copy: Path) -> None:
    partial = copy.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # a killed process's
    copy_tree(folder, partial)
    _make_room(copy.parent, _size(partial))
    partial.rename(copy)


def _make_room(cache: Path, added: int) -> None:
    copies = [path for path in cache.iterdir() if path.is_dir() and not path.suffix]
    total = added + sum(map(_size, copies))
    for copy in sorted(copies, key=lambda copy: copy.stat().st_mtime):
        if total <= CACHE_BYTES:
            return
        with _lock_of(copy).open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # in use
            total -= _size(copy)
            shutil.rmtree(copy)


def _lock_of(copy: Path) -> Path:
    return copy.with_suffix(".lock")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def cache_folder() -> Path:
    """Folder of what this machine keeps to save time, and may lose at any time. It may not exist yet.

    Raises:
        StoreError: If there is no home folder.
    """
    return _own_folder("XDG_CACHE_HOME", ".cache")


def _own_folder(variable: str, otherwise: str) -> Path:
    if given := os.environ.get(variable):
        return Path(given) / "casa"
    try:
        return Path.home() / otherwise / "casa"
    except RuntimeError as error:  # as in a container, whose user has no entry in its list of users
        raise StoreError(
            "There is no home folder for what is kept on this machine.",
            f"HOME is not set, and the user {os.getuid()} has no entry with one.",
            f"Set HOME, or {variable}, to a folder that can be written.",
        ) from error


def _short_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
