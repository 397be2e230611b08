"""What of a store nothing refers to any more: superseded artifacts, unfinished ones, their checkpoints."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from casa_core.errors import ClusterError
from pipelines.dag.artifact import read_manifest
from pipelines.dag.code_version import STAGE_MODULES
from pipelines.dag.files import MANIFEST
from pipelines.dag.history.lineage import whole_artifacts
from pipelines.dag.records import Records
from pipelines.storage.transfer import remove_tree
from pipelines.storage.uri import Folder, open_folder

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, slots=True)
class Garbage:
    """A folder that nothing refers to.

    Attributes:
        kind: An artifact's, or ``checkpoints``.
        why: ``superseded``: whole, and not part of what is kept. ``unfinished``: without a manifest, and
            nothing writes it.
        files, bytes: How much it holds.
    """

    folder: Folder
    kind: str
    why: Literal["superseded", "unfinished"]
    files: int
    bytes: int


def garbage(store: Folder, keep: Collection[Folder], older_than: timedelta) -> list[Garbage]:
    """Folders of a store that can go: an artifact before what it was made of.

    Kept is what the latest run and ``keep`` consist of, whatever is younger than ``older_than``, and all that
    these were made of, back to the raw files. Data in a store of their own (``where.data_store``) are left
    alone, as other stores may use them; so are unfinished artifacts on an object store, whose age it does not
    tell.

    Args:
        keep: Further artifacts that stay.
    """
    whole = dict(whole_artifacts(store))
    kept = _kept(store, whole, keep, datetime.now(UTC) - older_than)
    found = [
        _garbage(folder, manifest["kind"], "superseded")
        for folder, manifest in whole.items()
        if folder.name not in kept
    ]
    found += list(_unfinished(store, kept, datetime.now(UTC) - older_than))
    gone = {one.folder.name for one in found}
    trained = [folder for folder in _folders(store / CHECKPOINTS) if folder.name in gone]
    found += [_garbage(folder, CHECKPOINTS, "superseded") for folder in trained]
    order = [*reversed(STAGE_MODULES), CHECKPOINTS]
    return sorted(found, key=lambda one: (order.index(one.kind), one.folder.name))


def remove(store: Folder, found: Collection[Garbage]) -> Iterator[Garbage]:
    """Remove folders, yielding each that is gone; one that something writes now is left alone.

    A manifest goes first: at no instant does a folder with missing files look whole.
    """
    records = Records(store)
    records.prepare()
    for one in found:
        if one.kind == CHECKPOINTS:
            if read_manifest(store / "train" / one.folder.name) is None:
                remove_tree(one.folder)
                yield one
            continue
        try:
            with records.writing(one.kind, one.folder.name, lost=lambda: None, wait_s=0.0):
                (one.folder / MANIFEST).unlink(missing_ok=True)
                remove_tree(one.folder)
        except ClusterError:
            continue
        yield one


def _kept(
    store: Folder, whole: dict[Folder, dict[str, Any]], keep: Collection[Folder], since: datetime
) -> set[str]:
    """Fingerprints of what stays."""
    run = Records(store).read_run() or {"stages": []}
    roots = {open_folder(stage["folder"]).name for stage in run["stages"]} | {folder.name for folder in keep}
    roots |= {folder.name for folder, manifest in whole.items() if _made(manifest) > since}
    inputs = {folder.name: manifest["inputs"].values() for folder, manifest in whole.items()}
    kept, waiting = set[str](), list(roots)
    while waiting:
        fingerprint = waiting.pop()
        if fingerprint not in kept:
            kept.add(fingerprint)
            waiting += inputs.get(fingerprint, ())
    return kept


def _made(manifest: dict[str, Any]) -> datetime:
    """When an artifact was begun; one that does not say counts as new."""
    started = manifest["provenance"].get("started")
    return datetime.fromisoformat(started) if started else datetime.now(UTC)


def _unfinished(store: Folder, kept: set[str], since: datetime) -> Iterator[Garbage]:
    for kind in STAGE_MODULES:
        for folder in _folders(store / kind):
            young = not isinstance(folder, Path) or _touched(folder) > since
            if folder.name not in kept and not young and read_manifest(folder) is None:
                yield _garbage(folder, kind, "unfinished")


def _touched(folder: Path) -> datetime:
    times = [path.stat().st_mtime for path in (folder, *folder.rglob("*"))]
    return datetime.fromtimestamp(max(times), UTC)


def _folders(folder: Folder) -> list[Folder]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _garbage(folder: Folder, kind: str, why: Literal["superseded", "unfinished"]) -> Garbage:
    if isinstance(folder, Path):
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    else:
        sizes = [one.size for one in folder.listing().values()]
    return Garbage(folder, kind, why, len(sizes), sum(sizes))
