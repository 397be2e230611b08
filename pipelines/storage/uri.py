"""Storage URIs: a path or URI resolved to a folder, or to a pyarrow filesystem and a path in it.

``Folder`` is a ``Path`` or a :class:`~pipelines.storage.remote_path.RemotePath`; both have pathlib's names
for joining, listing, reading and removing. S3 is reached as :mod:`pipelines.storage.s3` describes.
``hf://datasets/org/name[@revision]/path`` honours ``HF_ENDPOINT`` and ``HF_TOKEN``; without a revision it
means the newest commit, so name one if two runs are to read the same files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from casa_core.errors import ConfigError
from pipelines.storage import s3
from pipelines.storage.errors import attempt
from pipelines.storage.filesystems import open_filesystem
from pipelines.storage.remote_path import STORES, RemotePath

if TYPE_CHECKING:
    from pyarrow import fs

Folder: TypeAlias = Path | RemotePath


def is_remote(uri: str) -> bool:
    """Whether reading from ``uri`` goes over a network."""
    return "://" in uri and not uri.startswith("file://")


def open_folder(uri: str | Folder) -> Folder:
    """The folder that a URI or a local path names, which can hold artifacts.

    Raises:
        ConfigError: For a URI whose server cannot promise that of two writers one wins.
    """
    if isinstance(uri, Path | RemotePath):
        return uri
    if not is_remote(uri):
        return Path(uri.removeprefix("file://")).expanduser()
    path = RemotePath.from_uri(uri)
    if path.scheme not in STORES:
        raise ConfigError(
            f"{uri!r} is not a folder that can hold artifacts.",
            f"{path.scheme}:// cannot create a file only where there is none, so two runs could mix theirs.",
            "Use a local path, s3://bucket/prefix, gs://bucket/prefix or abfs://container/prefix.",
        )
    return path


def filesystem_for(uri: str | Folder) -> tuple[fs.FileSystem, str]:
    """The pyarrow filesystem that ``uri`` lies on, and its path there without a slash at the end.

    Args:
        uri: A local path or a URI: ``s3://``, which Arrow reads itself, or any other that fsspec knows.

    Raises:
        ConfigError: For a URI of an unknown scheme, or one that names nothing.
        StoreError: For a bucket whose region cannot be found out, or a hub that does not answer.
    """
    from pyarrow import fs  # late: the command line starts without it

    if isinstance(uri, Path) or (isinstance(uri, str) and not is_remote(uri)):
        return fs.LocalFileSystem(), str(Path(str(uri).removeprefix("file://")).expanduser().resolve())
    path = uri if isinstance(uri, RemotePath) else RemotePath.from_uri(uri)
    if path.scheme == "s3":
        return s3.arrow_filesystem(path.settings, path.bucket), f"{path.bucket}/{path.key}".rstrip("/")
    store, inside = attempt(path.place, lambda: open_filesystem(path.place))
    return fs.PyFileSystem(fs.FSSpecHandler(store)), inside


def data_store(placement: Mapping[str, Any]) -> Folder | None:
    """The folder of a recipe's data artifacts; ``None`` where they share the store of all others.

    Args:
        placement: The recipe's ``where`` section: ``data_store`` and, for a server of one's own, ``s3``.
    """
    uri = placement.get("data_store")
    return recipe_folder(uri, placement) if uri else None


def recipe_folder(uri: str, placement: Mapping[str, Any]) -> Folder:
    """A folder that a recipe names; on S3, reached as its ``where.s3`` states."""
    if uri.startswith("s3://") and "?" not in uri:
        server = placement.get("s3") or {}
        query = s3.S3Settings(server.get("endpoint") or "", server.get("region") or "").query()
        uri += f"?{query}" if query else ""
    return open_folder(uri).absolute()
