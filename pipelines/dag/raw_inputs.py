"""Identity of raw input, local or remote: the content of its files, not their place or time.

Remote files count by the etag their store states. Local files count by SHA-256, and a file that was hashed
before is not read again unless its size, its time of change or its inode is another. Hashing runs in several
threads, and is reported where it takes long.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from casa_core.errors import ConfigError
from infra.quota import usable_cpus
from pipelines.dag.fingerprint import canonical_json, file_digest
from pipelines.storage.atomic import write_whole
from pipelines.storage.json_files import read_json
from pipelines.storage.raw_listing import RawListing, list_raw
from pipelines.storage.remote_path import Listed
from pipelines.text_format import byte_size, duration

HASHING_THREADS = min(32, 2 * usable_cpus())
"""Hashing holds no lock of Python's, and on a shared folder it mostly waits."""
_REPORT_AFTER_S, _REPORT_EVERY_S, _SAVE_EVERY_S = 2.0, 5.0, 30.0


def identify(path: Path, cache: Path | None = None, *, read: bool = True) -> dict[str, Any]:
    """What lies at ``path``: number of files, bytes, and one digest over relative names, sizes and SHA-256.

    Args:
        path: A file, or a folder that is listed as readers list it (:mod:`pipelines.storage.raw_listing`).
        cache: JSON file of known hashes, written as hashing goes on, so that a killed one is resumed. The
            digest itself depends on neither time nor place.
        read: Read the files. Otherwise their times of change stand for their content, as etags do in a
            store: a copy without its times then counts as other data.

    Raises:
        ConfigError: If nothing is there, or it cannot be read.
    """
    try:
        listing = _one_file(path) if path.is_file() else list_raw(str(path))
        if not listing.files:
            raise _nothing(str(path), "The folder holds no files.")
        versions = _hashes(path, listing, cache) if read else _times(listing)
    except FileNotFoundError as error:
        raise _nothing(str(path), f"It would be {error.filename}.") from error
    except OSError as error:
        raise ConfigError(
            f"The raw data at {path} cannot be read.",
            f"{type(error).__name__}: {error}.",
            "Check its permissions and the disk or share it lies on.",
        ) from error
    return _identity(listing, versions)


def _nothing(place: str, why: str) -> ConfigError:
    return ConfigError(
        f"There is no raw data at {place}.", why, "Check `path`; it is relative to the folder you run in."
    )


def _one_file(path: Path) -> RawListing:
    status = path.stat()
    return RawListing(files={path.name: Listed(status.st_size, f"{status.st_mtime_ns}:{status.st_ino}")})


def _times(listing: RawListing) -> dict[str, str]:
    return {name: f"changed {entry.etag.partition(':')[0]}" for name, entry in listing.files.items()}


def _hashes(path: Path, listing: RawListing, cache: Path | None) -> dict[str, str]:
    """Name → SHA-256, from the cache or from the file."""
    places = {name: path if path.is_file() else path / name for name in listing.files}
    keys = {
        name: f"{places[name].absolute()}:{entry.size}:{entry.etag}" for name, entry in listing.files.items()
    }
    known = _read_cache(cache)
    found = {name: known[key] for name, key in keys.items() if key in known}
    missing = sorted(listing.files.keys() - found.keys(), key=lambda name: -listing.files[name].size)

    def save() -> None:
        if cache is not None:
            cache.parent.mkdir(parents=True, exist_ok=True)
            fresh = {keys[name]: digest for name, digest in found.items()}
            write_whole(cache, json.dumps({**known, **fresh}))

    progress = _Progress(path, sum(listing.files[name].size for name in missing))
    saved = time.monotonic()
    with ThreadPoolExecutor(HASHING_THREADS) as threads:
        running = {threads.submit(file_digest, places[name]): name for name in missing}
        waiting = set(running)
        while waiting:
            done, waiting = wait(waiting, _REPORT_EVERY_S, FIRST_COMPLETED)
            for own in done:
                found[running[own]] = own.result()
            progress.show(sum(listing.files[running[own]].size for own in done))
            if time.monotonic() - saved > _SAVE_EVERY_S:
                save()
                saved = time.monotonic()
    if missing:
        save()
    return found


class _Progress:
    """Lines about hashing, once it has taken longer than anybody expects of a command's start."""

    def __init__(self, path: Path, total: int) -> None:
        self._path, self._total, self._done = path, total, 0
        self._began = time.monotonic()
        self._next = self._began + _REPORT_AFTER_S

    def show(self, size: int) -> None:
        """Counts bytes that were hashed, and prints a line now and then."""
        self._done += size
        now = time.monotonic()
        if now < self._next or self._done >= self._total:
            return
        self._next = now + _REPORT_EVERY_S
        left = (now - self._began) * (self._total - self._done) / max(self._done, 1)
        print(
            f"identifying {self._path}: {byte_size(self._done)} of {byte_size(self._total)} hashed"
            + (f", about {duration(left)} left" if self._done else "")
            + "; each file is hashed once",
            file=sys.stderr,
            flush=True,
        )


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
    listing = list_raw(uri)
    if not listing.files:
        raise _nothing(uri, "The folder holds no files.")
    return _identity(listing, {name: entry.etag for name, entry in listing.files.items()})


def _identity(listing: RawListing, versions: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, list[Any]] = {
        name: [entry.size, versions[name]] for name, entry in listing.files.items()
    }
    # A record may name a file through a link to a folder: what the link leads to counts.
    links = {f"{name}/": [0, target] for name, target in listing.doubles.items() if name not in found}
    return {
        "files": len(found),
        "bytes": sum(entry.size for entry in listing.files.values()),
        "digest": hashlib.sha256(canonical_json({**found, **links}).encode()).hexdigest(),
    }


def _read_cache(cache: Path | None) -> dict[str, str]:
    return {} if cache is None else read_json(cache, dict) or {}
