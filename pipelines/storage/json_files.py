"""JSON files as they may be found after a loss of power: empty, cut off, or full of zeros.

An unreadable file counts as absent, with one warning that names it, so that what it stood for is made again.
"""

from __future__ import annotations

import functools
import json
import logging
from typing import TypeVar

from pipelines.storage.uri import Folder

log = logging.getLogger(__name__)
Kind = TypeVar("Kind", dict, list)


def read_json(path: Folder, kind: type[Kind]) -> Kind | None:
    """The object (``dict``) or array (``list``) in a file; ``None`` where it is absent or unreadable."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return parse_json(data, kind, str(path))


def parse_json(data: bytes, kind: type[Kind], name: str) -> Kind | None:
    """The object or array that bytes hold; ``None``, with a warning that names them, where they do not."""
    try:
        value = json.loads(data.decode("utf-8"))
    except ValueError as error:
        _warn(name, str(error))
        return None
    if not isinstance(value, kind):
        _warn(name, f"it holds no JSON {'object' if kind is dict else 'array'}")
        return None
    return value


@functools.lru_cache(maxsize=1000)
def _warn(name: str, why: str) -> None:
    """Warn once per process: a damaged file may be looked at many times."""
    log.warning("%s is damaged and counts as absent: %s", name, why)
