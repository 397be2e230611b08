"""Identity of raw input: what the files of a folder are, not where they lie or when they were touched."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from casa_core.errors import ConfigError
from pipelines.dag.artifact import write_atomically
from pipelines.dag.fingerprint import canonical_json, file_digest


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
        why = "the folder holds no files" if path.is_dir() else f"looked for {path.absolute()}"
        raise ConfigError(
            f"There is no raw data at {path}.", why, "check `path`; it is relative to where you run"
        )
    known = _read_cache(cache)
    listing, hashes = {}, {}
    for file in files:
        status = file.stat()
        key = f"{file.absolute()}:{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"
        hashes[key] = known.get(key) or file_digest(file)
        name = file.name if file == path else file.relative_to(path).as_posix()
        listing[name] = [status.st_size, hashes[key]]
    if cache is not None and not hashes.keys() <= known.keys():
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cache, json.dumps({**known, **hashes}))
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
