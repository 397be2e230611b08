"""Artifacts: a folder of files that is whole exactly when its manifest is there.

The manifest is written last, in one atomic step after everything else has reached the disk. It keeps apart
what the files *are* (names, sizes, SHA-256, and one content digest over them) and how they came about
(times, host, packages, commit), so that two runs can be compared for the same result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from casa_core.errors import StoreError
from infra.environment import environment
from pipelines.dag.files import MANIFEST, forget_digests, list_files
from pipelines.dag.fingerprint import canonical_json
from pipelines.storage.atomic import sync, write_whole
from pipelines.storage.remote_path import RemotePath
from pipelines.storage.uri import Folder

FORMAT = 1
UNCOUNTED: dict[str, frozenset[str]] = {
    "train": frozenset({"timings.jsonl"}),
    "report": frozenset({"report.html"}),
    "compare": frozenset({"comparison.json", "index.html", "table.md"}),
}
"""Kind of stage → its files that hold times: in the manifest, and left out of the content digest."""
ROOT = Path(__file__).resolve().parents[2]


def read_manifest(folder: Folder) -> dict[str, Any] | None:
    """The manifest of a whole artifact; ``None`` where there is none.

    Raises:
        StoreError: If there is a manifest that this code did not write.
    """
    try:
        text = (folder / MANIFEST).read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        manifest = json.loads(text)
    except json.JSONDecodeError as error:
        manifest, why = None, f"It is not JSON: {error}."
    else:
        form = manifest.get("format") if isinstance(manifest, dict) else None
        why = f"Its format is {form!r}, and this code reads {FORMAT}."
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise StoreError(
            f"{folder / MANIFEST} is not a manifest.", why, f"Remove {folder} to have it made again."
        )
    return manifest


def begin(folder: Folder) -> None:
    """Open an artifact's folder for writing: without a manifest, it exists for no reader.

    On S3 a manifest that is there stays: runs with other stores may have made it, or be reading it, and
    equal work gives equal files.
    """
    if isinstance(folder, RemotePath):
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    sync(folder)


def commit(
    folder: Folder, identity: Mapping[str, Any], summary: Any, provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """Declare a folder whole: all its files are where they stay, then the manifest appears.

    Files and folders whose names begin with a dot are scratch, and no part of the artifact.

    Args:
        identity: What was asked for: fingerprint, kind, what, inputs, …
        summary: The stage's headline results, JSON.
        provenance: How it came about: not part of any digest.

    Returns:
        The manifest as it stands: ours, or the one of an equal artifact that another run committed first.

    Raises:
        StoreError: If another run has committed other contents in the same place on S3.
    """
    files = list_files(folder, durable=True)
    manifest = {
        "format": FORMAT,
        **identity,
        "content_digest": content_digest(files, UNCOUNTED.get(identity.get("kind", ""), frozenset())),
        "summary": summary,
        "files": files,
        "provenance": dict(provenance),
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    if isinstance(folder, RemotePath):
        manifest = _put_first(folder, manifest, text)
        folder.abort_uploads()
    else:
        write_whole(folder / MANIFEST, text)
    forget_digests(folder)
    return manifest


def _put_first(folder: RemotePath, manifest: dict[str, Any], text: str) -> dict[str, Any]:
    """Put the manifest where there is none; of several runs that commit at once, one does."""
    try:
        (folder / MANIFEST).write_bytes(text.encode(), only_new=True)
    except FileExistsError:
        standing = read_manifest(folder)
        if standing is None or standing["content_digest"] != manifest["content_digest"]:
            raise StoreError(
                f"{folder} was committed by another run, with other contents.",
                "The same settings, inputs and code gave different files.",
                f"Remove {folder} to have it made again, and please report this.",
            ) from None
        return standing
    return manifest


def content_digest(files: Mapping[str, Mapping[str, Any]], left_out: Collection[str] = ()) -> str:
    """One digest over names, sizes and hashes of files: equal exactly when the contents are.

    Args:
        left_out: Names of files whose content does not count.
    """
    listing = {name: [e["bytes"], e["sha256"]] for name, e in files.items() if name not in left_out}
    return hashlib.sha256(canonical_json(listing).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Fault:
    """A difference between an artifact's files and its manifest.

    Attributes:
        kind: ``missing``, ``added``, ``size`` or ``altered`` (same size, other content).
    """

    file: str
    kind: Literal["missing", "added", "size", "altered"]
    detail: str


def verify(folder: Folder) -> list[Fault]:
    """Compare an artifact's files, local or on S3, with its manifest, byte for byte.

    Returns:
        The faults by file name; none for an artifact that is as it was committed.

    Raises:
        StoreError: If it has no manifest, one that cannot be read, or holds links or devices.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise StoreError(f"{folder} is not an artifact.", f"It has no {MANIFEST}.", "Run its stage again.")
    recorded, found = manifest["files"], list_files(folder, known=False)
    names = sorted(recorded.keys() | found.keys())
    faults = (_fault(name, recorded.get(name), found.get(name)) for name in names)
    return [fault for fault in faults if fault is not None]


def _fault(name: str, recorded: dict[str, Any] | None, found: dict[str, Any] | None) -> Fault | None:
    if found is None:
        return Fault(name, "missing", f"`{name}` is missing.")
    if recorded is None:
        return Fault(name, "added", f"`{name}` was added.")
    if recorded["bytes"] != found["bytes"]:
        sizes = f"{recorded['bytes']:,} bytes were committed, {found['bytes']:,} are there"
        return Fault(name, "size", f"`{name}` was altered: {sizes}.")
    return (
        None if recorded == found else Fault(name, "altered", f"`{name}` was altered: its SHA-256 differs.")
    )


def provenance() -> dict[str, Any]:
    """Where and with what an artifact was made; see :func:`infra.environment.environment`."""
    return environment(ROOT)
