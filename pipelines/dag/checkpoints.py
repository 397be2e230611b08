"""The checkpoint that a command or a recipe names: the folder itself, or the one in a train artifact."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from pathlib import Path

from pipelines.storage.uri import Folder


def find_checkpoint(folder: Folder) -> Folder:
    """The checkpoint that a folder is, or the one inside a train stage's artifact.

    Raises:
        StoreError: If it is neither.
    """
    from casa_core.errors import StoreError

    if not (folder / "config.json").is_file() and (folder / "model" / "config.json").is_file():
        folder = folder / "model"
    if not (folder / "config.json").is_file():
        raise StoreError(
            f"{folder} is not a checkpoint.",
            "It has no config.json." if folder.is_dir() else "There is no such folder.",
            "`casa status --json` names the artifact of a run's train stage.",
        )
    return folder


def local_checkpoint(checkpoint: Folder) -> AbstractContextManager[Path]:
    """The checkpoint on this machine; one of an artifact on S3 is copied once."""
    from pipelines.dag.artifact import read_manifest
    from pipelines.storage.host import cached_copy
    from pipelines.storage.transfer import local_copy

    manifest = None if isinstance(checkpoint, Path) else read_manifest(checkpoint.parent)
    return local_copy(checkpoint) if manifest is None else cached_copy(checkpoint, manifest["content_digest"])


def model_name(checkpoint: Folder) -> str:
    """The folder's name as a model's; for one in an artifact, its fingerprint's beginning."""
    folder = checkpoint.absolute()
    name = f"casa-{folder.parent.name[:12]}" if folder.name == "model" else folder.name
    return re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip("._-")[:80] or "casa"
