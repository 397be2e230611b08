"""What was found by running small models, kept in the user's cache folder, where another plan finds it.

An entry holds numbers only, under a digest of all that decides them, and a checksum. The folder is a comfort:
where it cannot be made, read or written, the numbers are found again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from casa_core.atomic import replacing
from casa_core.errors import StoreError
from pipelines.storage.host import cache_folder

LIBRARIES = ("torch", "transformers", "numpy")
"""Packages whose code decides the numbers beside ours."""
PROJECT = Path(__file__).resolve().parents[2]
CODE = ("casa_core", "pipelines/cost")
"""Folders of ours whose code does; more than is needed, so that nothing is missed."""
MOST_ENTRIES = 500
"""Entries of some 1 KB that are kept; the oldest make room."""
log = logging.getLogger(__name__)


def remembered(name: str, settings: Sequence[str], find: Callable[[], Sequence[float]]) -> list[float]:
    """Numbers that ``find`` returned before for the same settings, code and libraries, or returns now.

    Args:
        name: What they are; a word.
        settings: What decides them beside the code, as text.
        find: Finds them; takes seconds.
    """
    key = _digest([name, _code(), platform.machine(), *map(version, LIBRARIES), *settings])
    try:
        entry = cache_folder() / "costs" / f"{name}-{key[:32]}.json"
    except StoreError:  # there is no home folder
        return [float(number) for number in find()]
    if (known := _read(entry, key)) is not None:
        return known
    found = [float(number) for number in find()]
    _write(entry, key, found)
    return found


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _code() -> str:
    """Digest of the source files that decide the numbers."""
    files = sorted(file for folder in CODE for file in (PROJECT / folder).rglob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(PROJECT)}\n".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _read(entry: Path, key: str) -> list[float] | None:
    """An entry's numbers; ``None`` where it is absent, unreadable or damaged."""
    try:
        kept = json.loads(entry.read_bytes())
        numbers = [float(number) for number in kept["numbers"]]
        return numbers if kept["checksum"] == _checksum(key, numbers) else None
    except (OSError, ValueError, KeyError, TypeError):  # what is damaged is found again, and replaced
        return None


def _write(entry: Path, key: str, numbers: list[float]) -> None:
    kept = {"numbers": numbers, "checksum": _checksum(key, numbers)}
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        _make_room(entry.parent)
        with replacing(entry) as partial:
            partial.write_text(json.dumps(kept))
    except OSError as error:  # a disk that is full or read-only: the next plan takes as long as this one
        log.debug("%s is not kept: %s", entry, error)


def _make_room(folder: Path) -> None:
    entries = sorted(folder.glob("*.json"), key=os.path.getmtime)
    for entry in entries[: max(0, len(entries) + 1 - MOST_ENTRIES)]:
        entry.unlink(missing_ok=True)


def _checksum(key: str, numbers: list[float]) -> str:
    return _digest([key, *(number.hex() for number in numbers)])
