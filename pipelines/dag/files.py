"""The files of an artifact: names, sizes and digests, read again only where nobody took them on the way."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from casa_core.errors import StoreError
from pipelines.dag.fingerprint import file_digest
from pipelines.storage.folders import DIGESTS, Folder, recall, remove_tree, side_by_side
from pipelines.storage.s3_path import S3Path

MANIFEST = "manifest.json"
_BLOCK = 8 << 20


def list_files(folder: Folder, *, sync: bool = False, known: bool = True) -> dict[str, dict[str, Any]]:
    """Bytes and SHA-256 of every file of an artifact, by name; the manifest and scratch are none of them.

    Args:
        folder: The artifact's.
        sync: Also have local files reach the disk.
        known: Take the digests that were kept when files were written; otherwise read every byte.

    Raises:
        StoreError: For a link or a device.
    """
    if isinstance(folder, S3Path):
        return _list_objects(folder, known)
    files: dict[str, dict[str, Any]] = {}
    for path in _walk(folder):
        if path.is_dir():
            if sync:
                sync_folder(path)
            continue
        if path.is_symlink() or not path.is_file():
            raise StoreError(
                f"{path} is a link or a device.", "artifacts hold plain files only", "copy the file"
            )
        if sync:
            _sync_file(path)
        found = path.stat()
        kept = recall(path, str(found.st_mtime_ns)) if known else None
        digest = kept.sha256 if kept is not None and kept.bytes == found.st_size else file_digest(path)
        files[path.relative_to(folder).as_posix()] = {"bytes": found.st_size, "sha256": digest}
    return files


def forget_digests(folder: Folder) -> None:
    """Removes the digests that were kept beside files, once a manifest has them."""
    if isinstance(folder, Path):
        for kept in [path for path in _walk(folder, scratch=True) if path.name == DIGESTS]:
            remove_tree(kept)
        return
    places = {path.parent for path in folder.rglob("*.json") if path.parent.name == DIGESTS}
    side_by_side(remove_tree, sorted(places), "forget")


def _walk(folder: Path, *, scratch: bool = False) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if name.as_posix() != MANIFEST and (scratch or not _is_scratch(name.parts)):
            yield path


def _list_objects(folder: S3Path, known: bool) -> dict[str, dict[str, Any]]:
    listed = {entry.key.removeprefix(f"{folder.key}/"): entry for entry in folder.list_below()}

    def describe(name: str) -> dict[str, Any]:
        path, entry = folder / name, listed[name]
        kept_at = f"{Path(name).parent / DIGESTS / Path(name).name}.json"
        kept = recall(path, entry.etag) if known and kept_at in listed else None
        return {"bytes": entry.size, "sha256": kept.sha256 if kept else _object_digest(path, entry.size)}

    names = [name for name in listed if name != MANIFEST and not _is_scratch(Path(name).parts)]
    return dict(zip(names, side_by_side(describe, names, "describe"), strict=True))


def _object_digest(path: S3Path, size: int) -> str:
    digest = hashlib.sha256()
    for start in range(0, size, _BLOCK):
        digest.update(path.read_range(start, min(start + _BLOCK, size)))
    return digest.hexdigest()


def _is_scratch(parts: tuple[str, ...]) -> bool:
    return any(part.startswith(".") for part in parts)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


sync_folder = _sync_file  # The same call, on a folder's entries.
