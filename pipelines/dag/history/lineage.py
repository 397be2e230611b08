"""What an artifact was made of, back to the raw files; and two artifacts compared all the way back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from casa_core.errors import ConfigError, StoreError
from pipelines.dag.artifact import read_manifest
from pipelines.dag.changes import Change, changes
from pipelines.dag.code_version import STAGE_MODULES
from pipelines.dag.files import MANIFEST
from pipelines.storage.uri import Folder, data_store

SHORTEST = 6
"""Digits of a fingerprint that name an artifact."""


@dataclass(frozen=True, slots=True)
class Made:
    """An artifact with what it was made of.

    Attributes:
        manifest: Its manifest; ``None`` where the artifact is no longer in its store.
        inputs: Role → the input.
    """

    fingerprint: str
    manifest: Mapping[str, Any] | None
    folder: Folder | None
    inputs: dict[str, Made] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The stage that made it, and the beginning of its fingerprint."""
        stage = self.manifest["provenance"].get("stage", self.manifest["kind"]) if self.manifest else "gone"
        return f"{stage} {self.fingerprint[:12]}"


def whole_artifacts(store: Folder) -> Iterator[tuple[Folder, dict[str, Any]]]:
    """Folder and manifest of every whole artifact of a store, by kind and fingerprint."""
    for kind in STAGE_MODULES:
        folder = store / kind
        for own in sorted(folder.iterdir(), key=lambda path: path.name) if folder.is_dir() else ():
            manifest = read_manifest(own)
            if manifest is not None:
                yield own, manifest


def find_by_fingerprint(beginning: str, store: Folder) -> Folder:
    """The artifact of a store whose fingerprint begins so.

    Raises:
        ConfigError: If there is none, or more than one.
    """
    found = [folder for folder, _ in whole_artifacts(store) if folder.name.startswith(beginning)]
    if len(found) == 1:
        return found[0]
    several = ", ".join(f"{folder.parent.name} {folder.name[:12]}" for folder in found)
    raise ConfigError(
        f"The fingerprint {beginning} names {len(found) or 'no'} artifacts in {store}.",
        f"They are {several}." if found else "Artifacts lie in STORE/KIND/FINGERPRINT.",
        "Give more of its digits." if found else "`casa status --json` names each stage's.",
    )


def lineage(folder: Folder) -> Made:
    """An artifact and all it was made of.

    Raises:
        StoreError: If there is no artifact in the folder.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise StoreError(f"{folder} is not an artifact.", f"It has no {MANIFEST}.", "Run its stage again.")

    @cache
    def made(fingerprint: str, stores: tuple[Folder, ...]) -> Made:
        for store in stores:
            for kind in STAGE_MODULES:
                place = store / kind / fingerprint
                if (own := read_manifest(place)) is not None:
                    return of(place, own, stores)
        return Made(fingerprint, None, None)

    def of(place: Folder, own: Mapping[str, Any], stores: tuple[Folder, ...]) -> Made:
        inputs = {role: made(fingerprint, stores) for role, fingerprint in own["inputs"].items()}
        return Made(own["fingerprint"], own, place, inputs)

    data = data_store(manifest["provenance"].get("where", {}))
    store = folder.parent.parent
    return of(folder, manifest, (store,) if data is None else (store, data))


@dataclass(frozen=True, slots=True)
class Differences:
    """What sets two artifacts of one role apart.

    Attributes:
        role: Path of roles from the artifacts that were compared, such as ``train.pack``; empty for these.
        changes: Values that differ in what was asked for, inputs apart.
    """

    role: str
    before: Made
    after: Made
    changes: list[Change]


def compare(before: Made, after: Made) -> Iterator[Differences]:
    """Two artifacts, and their inputs role by role, wherever they are not the same: each pair once."""
    seen: set[tuple[str, str]] = set()

    def walk(role: str, one: Made, other: Made) -> Iterator[Differences]:
        pair = (one.fingerprint, other.fingerprint)
        if one.fingerprint == other.fingerprint or pair in seen:
            return
        seen.add(pair)
        own: list[Change] = []
        if one.manifest is not None and other.manifest is not None:
            own = changes({**one.manifest, "inputs": {}}, {**other.manifest, "inputs": {}})
        yield Differences(role, one, other, own)
        for name in [*one.inputs, *(name for name in other.inputs if name not in one.inputs)]:
            path = f"{role}.{name}" if role else name
            if name in one.inputs and name in other.inputs:
                yield from walk(path, one.inputs[name], other.inputs[name])
            else:
                left, right = ("there", "absent") if name in one.inputs else ("absent", "there")
                yield Differences(path, one, other, [Change(f"input {name}", left, right)])

    return walk("", before, after)
