"""Storage URIs: a path or URI resolved to a folder, or to a pyarrow filesystem and a path in it.

``Folder`` is a ``Path`` or a :class:`~pipelines.storage.remote_path.RemotePath`; both have pathlib's names
for joining, listing, reading and removing. S3 is reached as :mod:`pipelines.storage.s3` describes.
``hf://datasets/org/name[@revision]/path`` honours ``HF_ENDPOINT`` and ``HF_TOKEN``; without a revision it
means the newest commit, so name one if two runs are to read the same files.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from casa_core.errors import ConfigError
from pipelines.storage import s3
from pipelines.storage.remote_path import RemotePath
from pipelines.storage.retry import may_pass

if TYPE_CHECKING:
    from pyarrow import fs

Folder: TypeAlias = Path | RemotePath


def is_remote(uri: str) -> bool:
    """Whether reading from ``uri`` goes over a network."""
    return "://" in uri and not uri.startswith("file://")


def open_folder(uri: str | Folder) -> Folder:
    """The folder that an ``s3://`` URI or a local path names.

    Raises:
        ConfigError: For a URI of another scheme.
    """
    if isinstance(uri, Path | RemotePath):
        return uri
    if uri.startswith("s3://"):
        return RemotePath.from_uri(uri)
    if "://" in uri:
        raise ConfigError(
            f"{uri!r} is not a folder that can hold artifacts.",
            "Artifacts lie in a local folder or on S3.",
            "Use a path, or s3://bucket/prefix.",
        )
    return Path(uri).expanduser()


def filesystem_for(uri: str | Folder) -> tuple[fs.FileSystem, str]:
    """The pyarrow filesystem that ``uri`` lies on, and its path there without a slash at the end.

    Args:
        uri: A local path or a URI: ``s3://``, ``hf://``, or another that Arrow knows.

    Raises:
        ConfigError: For a URI of an unknown scheme, or one that names nothing.
        StoreError: For a bucket whose region cannot be found out.
    """
    from pyarrow import fs  # late: the command line starts without it

    if isinstance(uri, str) and uri.startswith("s3://"):
        uri = RemotePath.from_uri(uri)
    if isinstance(uri, RemotePath):
        return s3.arrow_filesystem(uri.settings, uri.bucket), f"{uri.bucket}/{uri.key}".rstrip("/")
    if isinstance(uri, Path) or "://" not in uri:
        return fs.LocalFileSystem(), str(Path(uri).expanduser().resolve())
    try:
        filesystem, path = _hub(uri) if uri.startswith("hf://") else fs.FileSystem.from_uri(uri)
    except (ValueError, OSError) as error:
        if may_pass(error):
            raise  # for the caller to try again
        raise ConfigError(
            f"{uri!r} is not a folder that this project can read.",
            f"Arrow: {error}.",
            "Use a local folder, s3://bucket/prefix, gs://bucket/prefix or hf://datasets/org/name/path.",
        ) from error
    return filesystem, path.rstrip("/")


def hub_filesystem() -> Any:
    """The fsspec filesystem of the Hugging Face hub."""
    from huggingface_hub import HfFileSystem

    # Read here and not at import, so that it counts for every process that sets it before it reads.
    return HfFileSystem(endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ.get("HF_TOKEN"))


def _hub(uri: str) -> tuple[fs.FileSystem, str]:
    from pyarrow import fs

    filesystem = hub_filesystem()
    # As the hub's listings spell it, revision included, so that names can be made relative to it.
    path = filesystem.resolve_path(uri.removeprefix("hf://")).unresolve()
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path


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
