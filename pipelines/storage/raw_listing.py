"""The files of a raw corpus: the one listing that readers read by and fingerprints count by.

Names that systems, editors and downloads leave behind are skipped (``SKIPPED_NAMES``, and whatever begins
with a dot or ends with a tilde). Links are followed, as snapshots of the hub's cache need; a folder that
links lead to twice, or around in a circle, is listed once.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pipelines.storage.remote_path import Listed, RemotePath
from pipelines.storage.uri import is_remote

SKIPPED_NAMES = frozenset(
    {
        "__MACOSX", "__pycache__", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information",
        "lost+found", "Thumbs.db", "desktop.ini",
    }
)  # fmt: skip
"""Names, of files and of folders with all they hold, that are no part of a corpus."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawListing:
    """What lies below a root, by name relative to it, sorted.

    Attributes:
        files: Every file; a local one's tag is its time of change and its inode.
        doubles: Name of a link → the name under which its file or folder is listed already.
        dangling: Links that lead nowhere.
        skipped: How many hidden files and folders were passed over.
    """

    files: dict[str, Listed]
    doubles: dict[str, str] = field(default_factory=dict)
    dangling: tuple[str, ...] = ()
    skipped: int = 0


def is_skipped(name: str) -> bool:
    """Whether a file or folder of this name, without the folders above it, is no part of a corpus."""
    return name.startswith((".", "~$")) or name.endswith("~") or name in SKIPPED_NAMES


def list_raw(root: str) -> RawListing:
    """The files below a folder or URI.

    Raises:
        OSError: Where a folder is not there, or cannot be listed.
        ConfigError: For a URI of an unknown scheme.
    """
    if not is_remote(root):
        return _Walk(Path(root.removeprefix("file://")).expanduser()).listing()
    found = RemotePath.from_uri(root).listing()
    kept = {name: entry for name, entry in found.items() if not any(map(is_skipped, name.split("/")))}
    return RawListing(files=kept, skipped=len(found) - len(kept))


class _Walk:
    """One walk through a local folder: first what lies in it, then where its links lead."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files: dict[str, Listed] = {}
        self._inodes: dict[tuple[int, int, str], str] = {}
        self._folders: dict[tuple[int, int], str] = {}
        self._links: list[tuple[str, os.stat_result]] = []
        self._doubles: dict[str, str] = {}
        self._dangling: list[str] = []
        self._skipped = 0

    def listing(self) -> RawListing:
        """The whole listing."""
        self._folder("", self._root.stat())
        while self._links:
            name, status = self._links.pop(0)
            self._link(name, status)
        return RawListing(
            files={name: self._files[name] for name in sorted(self._files)},
            doubles=dict(sorted(self._doubles.items())),
            dangling=tuple(sorted(self._dangling)),
            skipped=self._skipped,
        )

    def _folder(self, top: str, status: os.stat_result) -> None:
        waiting = [(top, status)]
        links: list[tuple[str, os.stat_result]] = []
        while waiting:
            name, status = waiting.pop()
            self._folders[status.st_dev, status.st_ino] = name or "."
            for inner, entry in self._entries(name):
                try:
                    status = entry.stat()
                except OSError:
                    if not entry.is_symlink():
                        raise
                    self._dangling.append(inner)  # or around in a circle
                    continue
                if entry.is_symlink():
                    links.append((inner, status))
                elif stat.S_ISDIR(status.st_mode):
                    waiting.append((inner, status))
                else:
                    self._file(inner, status, link=False)
        self._links += sorted(links, key=lambda found: found[0])

    def _entries(self, name: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        with os.scandir(self._root / name) as entries:
            for entry in entries:
                if is_skipped(entry.name):
                    self._skipped += 1
                else:
                    yield f"{name}/{entry.name}" if name else entry.name, entry

    def _link(self, name: str, status: os.stat_result) -> None:
        if not stat.S_ISDIR(status.st_mode):
            self._file(name, status, link=True)
            return
        known = self._folders.get((status.st_dev, status.st_ino))
        if known is None:
            self._folder(name, status)
        else:
            self._doubles[name] = known

    def _file(self, name: str, status: os.stat_result, *, link: bool) -> None:
        if not stat.S_ISREG(status.st_mode):
            return  # a pipe or a device holds no records
        self._files[name] = Listed(status.st_size, f"{status.st_mtime_ns}:{status.st_ino}")
        # The hub's cache keeps its files under names without a suffix, so those are no second copy.
        place = (status.st_dev, status.st_ino, PurePosixPath(name).suffix.lower())
        known = self._inodes.setdefault(place, name)
        if link and known != name:
            self._doubles[name] = known
