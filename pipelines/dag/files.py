"""The files of an artifact: names, sizes and digests, read again only where they were not kept at writing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from casa_core.errors import StoreError
from pipelines.dag.fingerprint import file_digest
from pipelines.storage.atomic import DIGESTS, recall, sync
from pipelines.storage.remote_path import RemotePath
from pipelines.storage.transfer import remove_tree, side_by_side
from pipelines.storage.uri import Folder

MANIFEST = "manifest.json"
_BLOCK = 8 << 20


def list_files(folder: Folder, *, durable: bool = False, known: bool = True) -> dict[str, dict[str, Any]]:
    """Bytes and SHA-256 of every file of an artifact, by name; the manifest and scratch are none of them.

    Args:
        durable: Also force local files to the disk.
        known: Take the digests that were kept when files were written; otherwise read every byte.

    Raises:
        StoreError: For a link or a device.
    """
    if isinstance(folder, RemotePath):
        return _list_objects(folder, known)
    files: dict[str, dict[str, Any]] = {}
    for path in _paths(folder):
        if path.is_dir():
            if durable:
                sync(path)
            continue
        if path.is_symlink() or not path.is_file():
            raise StoreError(
                f"{path} is a link or a device.", "Artifacts hold plain files only.", "Copy the file."
            )
        if durable:
            sync(path)
        found = path.stat()
        kept = recall(path, str(found.st_mtime_ns)) if known else None
        digest = kept.sha256 if kept is not None and kept.bytes == found.st_size else file_digest(path)
        files[path.relative_to(folder).as_posix()] = {"bytes": found.st_size, "sha256": digest}
    return files


def forget_digests(folder: Folder) -> None:
    """Removes the digests that were kept beside files, once a manifest has them."""
    if isinstance(folder, Path):
        for kept in [path for path in _paths(folder, scratch=True) if path.name == DIGESTS]:
            remove_tree(kept)
        return
    places = {path.parent for path in folder.rglob("*.json") if path.parent.name == DIGESTS}
    side_by_side(remove_tree, sorted(places), "forget")


def _paths(folder: Path, *, scratch: bool = False) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if name.as_posix() != MANIFEST and (scratch or not _is_scratch(name.parts)):
            yield path


def _list_objects(folder: RemotePath, known: bool) -> dict[str, dict[str, Any]]:
    listed = folder.listing()

    def describe(name: str) -> dict[str, Any]:
        path, entry = folder / name, listed[name]
        kept_at = f"{Path(name).parent / DIGESTS / Path(name).name}.json"
        kept = recall(path, entry.etag) if known and kept_at in listed else None
        return {"bytes": entry.size, "sha256": kept.sha256 if kept else _object_digest(path, entry.size)}

    names = [name for name in listed if name != MANIFEST and not _is_scratch(Path(name).parts)]
    return dict(zip(names, side_by_side(describe, names, "describe"), strict=True))


def _object_digest(path: RemotePath, size: int) -> str:
    digest = hashlib.sha256()
    for start in range(0, size, _BLOCK):
        digest.update(path.read_range(start, min(start + _BLOCK, size)))
    return digest.hexdigest()


def _is_scratch(parts: tuple[str, ...]) -> bool:
    return any(part.startswith(".") for part in parts)
