"""fsspec's filesystems by URI, one per process and server; the packages behind them are imported late."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

from casa_core.errors import ConfigError
from pipelines.storage import s3


def open_filesystem(uri: str, settings: s3.S3Settings = s3.S3Settings()) -> tuple[Any, str]:  # noqa: B008
    """The fsspec filesystem of a URI, and its path there as listings spell it, without a slash at the end.

    Raises:
        ConfigError: For a scheme that fsspec does not know, or whose package is not installed.
    """
    scheme, _, rest = uri.partition("://")
    if scheme == "s3":
        return s3.filesystem(settings), rest.rstrip("/")
    if scheme == "hf":
        store = hub_filesystem()
        return store, store.resolve_path(rest).unresolve().rstrip("/")  # the revision included
    store = _other(f"{scheme}://{rest.partition('/')[0]}", os.getpid())
    return store, str(store._strip_protocol(uri)).rstrip("/")


def hub_filesystem() -> Any:
    """The fsspec filesystem of the Hugging Face hub."""
    from huggingface_hub import HfFileSystem

    # Read here and not at import, so that it counts for every process that sets it before it reads.
    return HfFileSystem(endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ.get("HF_TOKEN"))


@lru_cache(maxsize=8)
def _other(root: str, process: int) -> Any:
    from fsspec.core import url_to_fs
    from fsspec.registry import known_implementations

    try:
        return url_to_fs(root, use_listings_cache=False, skip_instance_cache=True)[0]
    except ImportError as error:
        package = known_implementations[root.partition("://")[0]]["class"].partition(".")[0]
        raise ConfigError(
            f"{root!r} cannot be reached.", f"{error}.", f"Install its package: pip install {package}."
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"{root!r} is not a folder that this project can read.",
            f"{error}.",
            "Use a local folder, s3://bucket/prefix, gs://bucket/prefix or hf://datasets/org/name/path.",
        ) from error
