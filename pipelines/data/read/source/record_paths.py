"""Files that a record names: a path as people and programs write it → a file below the corpus's root."""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections.abc import Iterator
from itertools import chain, product
from pathlib import PureWindowsPath
from typing import Any
from urllib.parse import unquote, urlsplit

from pipelines.data.read.source.archives import ArchiveError
from pipelines.data.read.source.base import BadRecord
from pipelines.data.read.source.files import Files
from pipelines.storage.uri import is_remote


def read_named(files: Files, value: Any, folder: str, missing: str) -> bytes:
    """The bytes of the file that a record names, of the first of ``inner_paths`` that exists.

    Raises:
        BadRecord: As ``inner_paths``; with the reason ``missing`` where there is no such file.
    """
    why = ""
    for name in inner_paths(files.root, value, folder):
        try:
            return files.read(name)
        except OSError as error:  # a network's failures are TransferErrors, and stop the run
            # Other messages say where the corpus lies; those about archives name them relative to it.
            why = why or (str(error) if isinstance(error, ArchiveError) else type(error).__name__)
    raise BadRecord(missing, f"there is no file {value}: {why}")


def inner_paths(root: str, value: Any, folder: str = "") -> tuple[str, ...]:
    """The names under the corpus's root that a path in a record may stand for, likeliest first.

    A path is relative to the folder of the file that names it, or to the root; or absolute, or a URI
    (``file://`` or the root's own kind), and then leads into the root. It is taken as it is written; then
    with Windows' separators, percent signs decoded, and accents composed or decomposed. Letter case counts.

    Args:
        root: The corpus's folder or URI.
        value: As the record has it.
        folder: The one of the file that names it, relative to the root.

    Raises:
        BadRecord: ``bad_record`` where it is no path, ``bad_path`` where it leads out of the corpus,
            ``remote_image`` for a web address, ``bad_encoding`` for what is no Unicode.
    """
    if not isinstance(value, str) or not value or "\0" in value:
        raise BadRecord("bad_record", f"not the path of a file: {value!r}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise BadRecord("bad_encoding", f"not the path of a file: {value!r}")
    if value.lower().startswith(("http://", "https://", "ftp://")):
        raise BadRecord("remote_image", f"{value} is an address, not a file of the corpus")
    ways = [list(_inside(root, spelled, folder)) for spelled in _spellings(value)]
    if not all(ways):
        raise BadRecord(
            "bad_path",
            f"{value} leads out of the corpus; name files relative to it, or to the file that names them",
        )
    names = [
        (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
        for way in ways
        for name in way
    ]
    return tuple(dict.fromkeys(chain.from_iterable(names)))


def _spellings(value: str) -> Iterator[str]:
    plain = value.replace("\\", "/")
    yield from dict.fromkeys((value, plain, unquote(value), unquote(plain)))


def _inside(root: str, path: str, folder: str) -> Iterator[str]:
    """Names relative to the root, for a path or URI of which only the part below the root counts."""
    if "://" in path or path.startswith("/"):
        roots = [root.rstrip("/")]
        if path.startswith("file://"):
            path = unquote(urlsplit(path).path)
        paths = [path]
        if not is_remote(root) and "://" not in path:
            local = root.removeprefix("file://")
            roots = [os.path.abspath(local), os.path.realpath(local)]
            paths = [posixpath.normpath(path), os.path.realpath(path)]
        for own, inner in product(roots, paths):
            if inner.startswith(own + "/"):
                yield from _below(inner[len(own) + 1 :])
        return
    if PureWindowsPath(path).drive:
        return
    yield from _below(posixpath.join(folder, path))
    yield from _below(path)


def _below(path: str) -> Iterator[str]:
    name = posixpath.normpath(path)
    if name not in (".", "..") and not name.startswith(("../", "/")):
        yield name
