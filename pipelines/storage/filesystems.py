"""fsspec's filesystems by URI, one per process and server; the packages behind them are imported late."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

from casa_core.errors import ConfigError, cause
from pipelines.storage import s3


def open_filesystem(uri: str, settings: s3.S3Settings = s3.S3Settings()) -> tuple[Any, str]:  # noqa: B008
    """The fsspec filesystem of a URI, and its path there as listings spell it, without a slash at the end.

    Raises:
        ConfigError: For a scheme that fsspec does not know or whose package is not installed, and for a
            repository that the hub does not know.
    """
    scheme, _, rest = uri.partition("://")
    if scheme == "s3":
        return s3.filesystem(settings), rest.rstrip("/")
    try:
        if scheme == "hf":
            from huggingface_hub import HfFileSystem

            # Read here and not at import, so that it counts for every process that sets it before it reads.
            store = HfFileSystem(endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ.get("HF_TOKEN"))
            return store, store.resolve_path(rest).unresolve().rstrip("/")  # the revision included
        store = _other(f"{scheme}://{rest.partition('/')[0]}", os.getpid())
        return store, str(store._strip_protocol(uri)).rstrip("/")
    except ImportError as error:
        from fsspec.registry import known_implementations

        package = known_implementations[scheme]["class"].partition(".")[0]
        raise ConfigError(
            f"{uri!r} cannot be reached.", f"{error}.", f"Install its package: pip install {package}."
        ) from error
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(
            f"{uri} is not a folder that this project can read.",
            f"{cause(error)}.",
            "Use a local folder, s3://bucket/prefix, gs://bucket/prefix or hf://datasets/org/name[@revision]/path.",
        ) from error


@lru_cache(maxsize=8)
def _other(root: str, process: int) -> Any:
    from fsspec.core import url_to_fs

    return url_to_fs(root, use_listings_cache=False, skip_instance_cache=True)[0]
