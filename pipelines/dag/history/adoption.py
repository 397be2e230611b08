"""Artifacts that were made elsewhere, checked and taken into a store."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from casa_core.errors import StoreError
from pipelines.dag import artifact
from pipelines.dag.files import list_files
from pipelines.dag.fingerprint import stage_fingerprint
from pipelines.dag.history.lineage import lineage
from pipelines.dag.plan import PlannedStage
from pipelines.dag.records import Records
from pipelines.storage.atomic import create
from pipelines.storage.transfer import blocks
from pipelines.storage.uri import Folder

IDENTITY = ("fingerprint", "kind", "what", "location", "inputs", "code_version")
REFERS_TO_INPUTS = frozenset({"pack"})
"""Kinds of artifacts that hold references into their inputs, and are of no use without them."""


def adopt_artifact(folder: Folder, kind: str, store: Folder) -> Iterator[tuple[Folder, dict[str, Any]]]:
    """Take an artifact of another store into this one, after whatever it refers to.

    Yields:
        Folder and manifest of each that is in the store now, and was not before.

    Raises:
        StoreError: If it is of another kind or has no manifest, its files or its fingerprint are not what its
            manifest holds, or an input that it refers to is in neither store.
    """
    manifest = _verified(folder, kind)
    if kind in REFERS_TO_INPUTS:
        for role, own in lineage(folder).inputs.items():
            if any(artifact.read_manifest(store / one / own.fingerprint) for one in ("clean", "corpus")):
                continue
            if own.folder is None or own.manifest is None:
                raise StoreError(
                    f"Its input {role}, {own.fingerprint[:12]}, is in neither store.",
                    f"A {kind} artifact refers to the pictures of its inputs.",
                    "Adopt that first, or name the artifact's folder in its own store.",
                )
            yield from adopt_artifact(own.folder, own.manifest["kind"], store)
    target = store / kind / manifest["fingerprint"]
    standing = artifact.read_manifest(target)
    if standing is not None and standing["content_digest"] != manifest["content_digest"]:
        raise StoreError(
            f"{target} is there, with other contents.",
            "The same settings, inputs and code gave other files.",
            f"`casa verify {target}` checks the one that is there.",
        )
    if standing is None:
        identity = {name: manifest[name] for name in IDENTITY if name in manifest}
        made = manifest["provenance"] | _adopted(folder)
        _take(folder, target, store, identity, manifest["summary"], made, manifest["files"])
        yield target, manifest


def adopt_checkpoint(checkpoint: Folder, stage: PlannedStage, parameters: int, store: Folder) -> Folder:
    """Put a checkpoint where a recipe's train stage would leave its own.

    Args:
        checkpoint: One that was loaded and found to be of the recipe's model.
        parameters: Its number of weights.

    Raises:
        StoreError: If the stage's artifact is there.
    """
    if artifact.read_manifest(stage.folder) is not None:
        raise StoreError(
            f"The recipe has a model already: {stage.folder}.",
            f"Its stage {stage.name} is done.",
            "Adopt it into another store, or remove that folder.",
        )
    location = stage.spec.location
    identity = {
        "fingerprint": stage.fingerprint,
        "kind": stage.spec.kind,
        "what": {**stage.spec.settings, **location},
        "location": location,
        "inputs": {role: folder.name for role, folder in stage.inputs.items()},
        "code_version": stage.code_version,
    }
    summary = {
        "headline": f"adopted from {checkpoint} · {parameters / 1e6:.2f} M parameters",
        "parameters": parameters,
    }
    made = {
        "stage": stage.name,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "where": stage.spec.placement,
        **_adopted(checkpoint),
    }
    files = {f"model/{name}": entry for name, entry in list_files(checkpoint, known=False).items()}
    own = {f"model/{artifact.MANIFEST}"} if (checkpoint / artifact.MANIFEST).is_file() else set()
    _take(checkpoint, stage.folder, store, identity, summary, made, files, below="model/", further=own)
    return stage.folder


def _verified(folder: Folder, kind: str) -> dict[str, Any]:
    """The manifest of an artifact that is what it says."""
    faults = artifact.verify(folder)
    manifest = artifact.read_manifest(folder)
    assert manifest is not None  # `verify` has read it
    if manifest["kind"] != kind:
        raise StoreError(f"{folder} is a {manifest['kind']} artifact.", "", f"Use `--as {manifest['kind']}`.")
    if faults:
        raise StoreError(
            f"{folder} is not what its manifest lists.",
            " ".join(fault.detail for fault in faults[:5]),
            "Copy it again, or have its stage make it again.",
        )
    location = manifest.get("location", {})
    what = {name: value for name, value in manifest["what"].items() if name not in location}
    fingerprint = stage_fingerprint(kind, what, manifest["inputs"], manifest["code_version"])
    left_out = artifact.UNCOUNTED.get(kind, frozenset())
    digest = artifact.content_digest(manifest["files"], left_out)
    if (fingerprint, digest) != (manifest["fingerprint"], manifest["content_digest"]):
        raise StoreError(
            f"The manifest of {folder} contradicts itself.",
            "Its fingerprint or content digest is not that of the settings, inputs and files that it lists.",
            "It was changed by hand; have its stage make it again.",
        )
    return manifest


def _adopted(source: Folder) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"adopted": {"from": str(source), "on": platform.node(), "at": now}}


def _take(
    source: Folder,
    target: Folder,
    store: Folder,
    identity: Mapping[str, Any],
    summary: Any,
    made: Mapping[str, Any],
    files: Mapping[str, Mapping[str, Any]],
    *,
    below: str = "",
    further: frozenset[str] | set[str] = frozenset(),
) -> None:
    """Copy files to a folder of a store, and commit it where they have arrived as they were.

    Args:
        files: Name in the artifact → bytes and SHA-256.
        below: What is before a source's name in the artifact.
        further: Names of files that are copied beside these.
    """
    records = Records(store)
    records.prepare()
    with records.writing(str(identity["kind"]), str(identity["fingerprint"]), lost=lambda: None):
        artifact.begin(target)
        for name in [*files, *further]:
            copy = target / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            with create(copy) as output:
                for block in blocks(source / name.removeprefix(below)):
                    output.write(block)
        arrived = list_files(target)
        if {name: entry for name, entry in arrived.items() if name not in further} != dict(files):
            raise StoreError(
                f"{source} changed while it was copied to {target}.",
                "What arrived is not what was verified.",
                "Adopt it again once nothing writes to it.",
            )
        artifact.commit(target, identity, summary, made)
