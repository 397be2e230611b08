"""Versions of stages' code, so that a fingerprint changes when the code behind it does, and only then.

A stage's version stands in ``stage_versions.json`` beside a digest of the source it rests on: every module of
this project that its entry module reaches by import, without comments, docstrings and formatting. A test
compares the digests, so that source cannot be committed while its version stays unnoticed:

    python -m pipelines.dag.versions                         # which stages changed
    python -m pipelines.dag.versions --update                # the results change: move the versions
    python -m pipelines.dag.versions --update --same-results # a pure refactoring: keep them, say so
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipelines.dag.source import reachable, source_digest
from pipelines.storage.atomic import write_whole

VERSIONS_FILE = Path(__file__).with_name("stage_versions.json")
ROOT = Path(__file__).resolve().parents[2]

STAGE_MODULES = {
    "corpus": "pipelines.data.generate.run",
    "clean": "pipelines.data.clean.run",
    "pack": "pipelines.data.pack.run",
    "train": "pipelines.train.run",
    "evaluate": "pipelines.evaluate.run",
    "deploy": "pipelines.deploy.run",
    "report": "pipelines.report.run",
    "compare": "pipelines.compare.run",
}

PLUMBING = ("pipelines.dag", "pipelines.recipe", "infra", "casa_core.errors")
"""Modules that carry a stage's settings and files about without deciding its result."""

ASSET_SUFFIXES = frozenset({".css", ".html", ".js"})


def read_versions(path: Path = VERSIONS_FILE) -> dict[str, int]:
    """Recorded code version of each kind of stage."""
    return {kind: entry["version"] for kind, entry in _read(path).items()}


def current_versions(
    path: Path = VERSIONS_FILE, modules: Mapping[str, str] = STAGE_MODULES, root: Path = ROOT
) -> dict[str, str]:
    """Code version of each kind of stage as it goes into fingerprints.

    The recorded version where the source is what it was when that was set. While source is being worked on,
    the version is followed by a digest of it, so that neither code's artifacts pass for the other's.
    """
    recorded = _read(path)
    versions = {}
    for kind, module in modules.items():
        entry, digest = recorded.get(kind, {"version": 0, "digest": ""}), stage_digest(module, root)
        same = entry["digest"] == digest
        versions[kind] = str(entry["version"]) if same else f"{entry['version']}+{digest[:12]}"
    return versions


def stage_digest(module: str, root: Path = ROOT) -> str:
    """Digest of the source that a stage rests on: modules reached by import, and its folder's web assets."""
    files = reachable(module, root, exclude=PLUMBING)
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(f"{name} {source_digest(path)}\n".encode())
    entry = files.get(module)
    folder = entry.parent if entry is not None else root
    if entry is not None and (folder / "__init__.py").is_file() and folder != root / "pipelines":
        for asset in sorted(p for p in folder.rglob("*") if p.suffix in ASSET_SUFFIXES):
            name = asset.relative_to(folder).as_posix()
            digest.update(f"{name} {hashlib.sha256(asset.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def changed_stages(
    path: Path = VERSIONS_FILE, modules: Mapping[str, str] = STAGE_MODULES, root: Path = ROOT
) -> list[str]:
    """Kinds of stages whose source is not what it was when their version was set."""
    recorded = _read(path)
    return [
        k for k, module in modules.items() if recorded.get(k, {}).get("digest") != stage_digest(module, root)
    ]


def update(
    path: Path = VERSIONS_FILE,
    modules: Mapping[str, str] = STAGE_MODULES,
    root: Path = ROOT,
    *,
    same_results: bool = False,
    only: Iterable[str] = (),
) -> list[str]:
    """Record the source as it is now.

    Args:
        path: The file of versions.
        modules: Kind of stage → its entry module.
        root: Folder that holds the packages.
        same_results: Keep the versions: the results stay the same, and so do artifacts already made.
        only: Restrict it to these kinds.

    Returns:
        The kinds whose record changed.
    """
    recorded = _read(path)
    kinds = [kind for kind in changed_stages(path, modules, root) if not only or kind in set(only)]
    for kind in kinds:
        version = recorded.get(kind, {}).get("version", 0)
        moved = version if same_results and version else version + 1
        recorded[kind] = {"version": moved, "digest": stage_digest(modules[kind], root)}
    ordered = {kind: recorded[kind] for kind in modules if kind in recorded}
    write_whole(path, json.dumps(ordered, indent=2) + "\n", durable=True)
    return kinds


def _read(path: Path) -> dict[str, dict[str, Any]]:
    return json.loads(path.read_text()) if path.is_file() else {}


def main() -> int:
    """The command line; returns 1 when sources changed and nothing was recorded."""
    parser = argparse.ArgumentParser(description="Versions of stages' code, part of their fingerprints.")
    parser.add_argument(
        "--update", action="store_true", help="record the source as it is now and move the versions"
    )
    parser.add_argument(
        "--same-results", action="store_true", help="with --update: keep the versions (refactoring)"
    )
    parser.add_argument("kinds", nargs="*", help="with --update: only these kinds")
    arguments = parser.parse_args()
    if arguments.same_results and not arguments.update:
        parser.error("--same-results goes with --update")
    if unknown := set(arguments.kinds) - STAGE_MODULES.keys():
        parser.error(f"no such kind: {', '.join(sorted(unknown))}; there are: {', '.join(STAGE_MODULES)}")
    if arguments.update:
        kinds = update(same_results=arguments.same_results, only=arguments.kinds)
        versions = read_versions()
        print("\n".join(f"{kind}: version {versions[kind]}" for kind in kinds) or "nothing changed")
        return 0
    kinds = changed_stages()
    if kinds:
        print(f"source changed since its version was set: {', '.join(kinds)}\n\n{__doc__}")
    return 1 if kinds else 0


if __name__ == "__main__":
    sys.exit(main())
