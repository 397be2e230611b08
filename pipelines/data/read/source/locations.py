"""Where raw data lies: a folder or URI → a pyarrow filesystem and a path in it; and what is there.

S3 is reached as :mod:`pipelines.storage.s3` says. ``hf://datasets/org/name[@revision]/path`` honours ``HF_ENDPOINT``
and ``HF_TOKEN``; without a revision it means the newest commit, so name one if a run is to read the same
tomorrow.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from pyarrow import fs

from casa_core.errors import CasaError, ConfigError
from pipelines.dag.fingerprint import canonical_json
from pipelines.storage import s3


def is_remote(root: str) -> bool:
    """Whether reading from ``root`` goes over a network."""
    return "://" in root and not root.startswith("file://")


def locate(root: str) -> tuple[fs.FileSystem, str]:
    """The filesystem that ``root`` lies on, and its path there without a slash at the end.

    Raises:
        ConfigError: For a URI of an unknown scheme, or one that names nothing.
    """
    try:
        if root.startswith("hf://"):
            filesystem, path = _hub(root)
        elif root.startswith("s3://"):
            bucket, key, settings = s3.parse_uri(root)
            filesystem, path = s3.arrow_filesystem(settings, bucket), f"{bucket}/{key}"
        elif "://" in root:
            filesystem, path = fs.FileSystem.from_uri(root)
        else:
            filesystem, path = fs.LocalFileSystem(), str(Path(root).expanduser().resolve())
    except CasaError:
        raise
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"{root!r} is not a folder this project can read.",
            str(error),
            "Use a local folder, s3://bucket/prefix, gs://bucket/prefix or hf://datasets/org/name/path.",
        ) from error
    return filesystem, path.rstrip("/")


def remote_listing(root: str) -> dict[str, tuple[int, str]]:
    """Every file below a remote root: its name relative to the root → its size in bytes and its etag.

    The etag is what the store states about the content (S3's ETag, the hub's blob id). Stores that state
    nothing are taken at the time of the last change.
    """
    if root.startswith("s3://"):
        bucket, key, settings = s3.parse_uri(root)
        objects = s3.list_objects(settings, bucket, f"{key}/" if key else "")
        return {entry.key[len(key) :].lstrip("/"): (entry.size, entry.etag) for entry in objects}
    filesystem, path = locate(root)
    if root.startswith("hf://"):
        infos = _hub_filesystem().find(path, detail=True)
        found = {name: (int(info["size"]), str(info["blob_id"])) for name, info in infos.items()}
    else:
        infos = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
        found = {info.path: (info.size, str(info.mtime_ns)) for info in infos if info.is_file}
    return {name[len(path) :].lstrip("/"): found[name] for name in sorted(found)}


def identify_remote(root: str) -> dict[str, Any]:
    """What lies below a remote root, as :func:`pipelines.dag.raw_inputs.identify` says it of a local folder.

    Returns:
        Number of files, bytes, and one digest over relative names, sizes and etags; nothing is downloaded.

    Raises:
        ConfigError: If nothing is there.
    """
    listing = {
        name: entry
        for name, entry in remote_listing(root).items()
        if not any(part.startswith(".") for part in name.split("/"))
    }
    if not listing:
        raise ConfigError(f"There is no raw data at {root}.", "the folder holds no files", "check `path`")
    return {
        "files": len(listing),
        "bytes": sum(size for size, _ in listing.values()),
        "digest": hashlib.sha256(canonical_json(listing).encode()).hexdigest(),
    }


def _hub(root: str) -> tuple[fs.FileSystem, str]:
    filesystem = _hub_filesystem()
    # As the hub's listings will spell it, revision included, so that names can be told relative to it.
    path = filesystem.resolve_path(root.removeprefix("hf://")).unresolve()
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path


def _hub_filesystem() -> Any:
    from huggingface_hub import HfFileSystem

    # Read here and not at import, so that it counts for every process that sets it before it reads.
    return HfFileSystem(endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ.get("HF_TOKEN"))
