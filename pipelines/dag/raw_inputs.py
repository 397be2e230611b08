"""Identity of raw input, local or remote: the content of its files, not their place or time."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from casa_core.errors import ConfigError
from pipelines.dag.fingerprint import canonical_json, file_digest
from pipelines.storage import s3
from pipelines.storage.atomic import write_whole
from pipelines.storage.uri import filesystem_for, hub_filesystem


def identify(path: Path, cache: Path | None = None) -> dict[str, Any]:
    """What lies at ``path``: number of files, bytes, and one digest over relative names, sizes and SHA-256.

    Args:
        path: A file, or a folder that is read recursively. Hidden files and folders are left out.
        cache: JSON file of known hashes. A file is read again only when its size or modification time
            changed; the digest itself depends on neither time nor place.

    Raises:
        ConfigError: If nothing is there.
    """
    files = [path] if path.is_file() else [p for p in sorted(path.rglob("*")) if _counts(p, path)]
    if not files:
        why = "The folder holds no files." if path.is_dir() else f"It would be {path.absolute()}."
        raise ConfigError(
            f"There is no raw data at {path}.", why, "Check `path`; it is relative to the folder you run in."
        )
    known = _read_cache(cache)
    listing: dict[str, list[Any]] = {}
    hashes = {}
    for file in files:
        status = file.stat()
        key = f"{file.absolute()}:{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"
        hashes[key] = known.get(key) or file_digest(file)
        name = file.name if file == path else file.relative_to(path).as_posix()
        listing[name] = [status.st_size, hashes[key]]
    if cache is not None and not hashes.keys() <= known.keys():
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_whole(cache, json.dumps({**known, **hashes}), durable=True)
    return _identity(listing)


def local_folder(name: str | None, what: str, setting: str, *, may_be_on_hub: bool = True) -> Path | None:
    """The folder that a setting names; ``None`` where it names a repository on the hub, or nothing.

    Raises:
        ConfigError: If the folder is not there; the texts begin with ``what`` and name the setting.
    """
    folder = Path(name or "").expanduser().absolute()
    if not name or folder.is_dir():
        return folder if name else None
    if may_be_on_hub and not name.startswith(("/", ".", "~")) and name.count("/") <= 1:
        return None
    raise ConfigError(
        f"{what} at {name!r}.",
        f"{folder} is no folder, and a repository on the hub is called owner/name.",
        f"Correct {setting}.",
    )


def identify_remote(uri: str) -> dict[str, Any]:
    """What lies at a remote URI, as :func:`identify`, with etags in place of SHA-256; nothing is downloaded.

    Raises:
        ConfigError: If nothing is there.
    """
    listing = {
        name: list(entry)
        for name, entry in remote_listing(uri).items()
        if not any(part.startswith(".") for part in name.split("/"))
    }
    if not listing:
        raise ConfigError(f"There is no raw data at {uri}.", "The folder holds no files.", "Check `path`.")
    return _identity(listing)


def remote_listing(uri: str) -> dict[str, tuple[int, str]]:
    """Every file below a remote folder: its name relative to the folder → its size in bytes and its etag.

    The etag is what the store states about the content (S3's ETag, the hub's blob id); of a store that states
    nothing, the time of the last change.
    """
    if uri.startswith("s3://"):
        bucket, key, settings = s3.parse_uri(uri)
        objects = s3.list_objects(settings, bucket, f"{key}/" if key else "")
        return {entry.key[len(key) :].lstrip("/"): (entry.size, entry.etag) for entry in objects}
    filesystem, path = filesystem_for(uri)
    if uri.startswith("hf://"):
        infos = hub_filesystem().find(path, detail=True)
        found = {name: (int(info["size"]), str(info["blob_id"])) for name, info in infos.items()}
    else:
        from pyarrow import fs  # late: the command line starts without it

        infos = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
        found = {info.path: (info.size, str(info.mtime_ns)) for info in infos if info.is_file}
    return {name[len(path) :].lstrip("/"): found[name] for name in sorted(found)}


def _identity(listing: dict[str, list[Any]]) -> dict[str, Any]:
    return {
        "files": len(listing),
        "bytes": sum(size for size, _ in listing.values()),
        "digest": hashlib.sha256(canonical_json(listing).encode()).hexdigest(),
    }


def _counts(file: Path, root: Path) -> bool:
    return file.is_file() and not any(part.startswith(".") for part in file.relative_to(root).parts)


def _read_cache(cache: Path | None) -> dict[str, str]:
    if cache is None or not cache.is_file():
        return {}
    return json.loads(cache.read_text())
