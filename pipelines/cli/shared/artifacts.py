"""Finding the artifact that a command names: by folder, URI, or stage of the latest run."""

from __future__ import annotations

from collections.abc import Mapping
from string import hexdigits
from typing import Any

from casa_core.errors import ConfigError
from pipelines.cli.shared.run_handle import latest_run
from pipelines.dag.artifact import read_manifest
from pipelines.dag.history.aliases import find_by_alias, is_alias
from pipelines.dag.history.lineage import SHORTEST, find_by_fingerprint
from pipelines.storage.uri import Folder, open_folder


def find_artifact(artifact: str, store: Folder) -> Folder:
    """The folder of an artifact.

    Args:
        artifact: A folder, an ``s3://`` URI, the name of a stage of the store's latest run, the beginning of
            a fingerprint in the store, or an alias (:mod:`pipelines.dag.history.aliases`).

    Raises:
        ConfigError: If it is none of these.
    """
    folder = open_folder(artifact)
    if folder.is_dir():
        return folder
    if len(artifact) >= SHORTEST and set(artifact) <= set(hexdigits.lower()):
        return find_by_fingerprint(artifact, store)
    if is_alias(artifact):
        return find_by_alias(artifact, store)
    if "/" in artifact:
        raise ConfigError(f"There is no folder {artifact}.", "", "`casa status --json` names each stage's.")
    return open_folder(latest_run(store).stage(artifact)["folder"])


def find_data_artifact(artifact: str, store: Folder) -> tuple[Folder, dict[str, Any]]:
    """Folder and manifest of a clean or pack artifact; arguments as of :func:`find_artifact`.

    Raises:
        ConfigError: If there is no such artifact, or it is of another kind.
        StoreError: If its manifest cannot be read.
    """
    folder = find_artifact(artifact, store)
    manifest = read_manifest(folder)
    if manifest is None:
        raise ConfigError(
            f"{folder} is not an artifact.",
            "It has no `manifest.json`.",
            "Run its stage, or name another folder.",
        )
    if manifest["kind"] not in ("clean", "pack"):
        raise ConfigError(
            f"{folder} is a {manifest['kind']} artifact.",
            "There is no data in it.",
            "Name a clean or a pack artifact.",
        )
    return folder, manifest


def clean_folders(folder: Folder, manifest: Mapping[str, Any]) -> dict[str, Folder]:
    """Source → the clean artifact in the same store that a pack artifact refers to.

    Raises:
        ConfigError: If one is no longer there.
    """
    store = folder.parent.parent
    found = {source: store / "clean" / fingerprint for source, fingerprint in manifest["inputs"].items()}
    for source, clean in found.items():
        if not clean.is_dir():
            raise ConfigError(
                f"The clean artifact of {source} is not at {clean}.",
                "A pack artifact refers to the pictures of its store's clean artifacts.",
                "`casa prepare` makes it again.",
            )
    return found
