"""Code versions of stages: a fingerprint changes when the code behind a stage does, and only then.

A stage's version stands in ``stage_versions.json`` beside a digest of the source that decides its result:
every module of this project that its entry module reaches by import, without comments, docstrings and
formatting, and the web assets in the modules' folders. A test compares the digests, so that changed source
cannot be committed with its version unnoticed:

    python -m pipelines.dag.code_version                         # which stages changed
    python -m pipelines.dag.code_version --update                # the results change: move the versions
    python -m pipelines.dag.code_version --update --same-results # a refactoring: keep them
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from casa_core.errors import ConfigError, StoreError
from infra.code_package import PACKAGES
from pipelines.dag import source_digest
from pipelines.dag.source_digest import Source, read_source
from pipelines.storage.atomic import write_whole
from pipelines.storage.json_files import read_json

VERSIONS_FILE = Path(__file__).with_name("stage_versions.json")
ROOT = Path(__file__).resolve().parents[2]

STAGE_MODULES = {
    "corpus": "pipelines.data.generate.run",
    "clean": "pipelines.data.clean.run",
    "pack": "pipelines.data.pack.run",
    "train": "pipelines.train.run",
    "evaluate": "pipelines.evaluate.held_out.run",
    "deploy": "pipelines.deploy.run",
    "report": "pipelines.report.run",
    "compare": "pipelines.compare.run",
}

PLUMBING = ("pipelines.dag", "infra", "casa_core.errors")
"""Modules that carry a stage's settings and files without deciding its result. What a stage imports from the
recipe counts: rules such as a video's frame size stand there."""

JUST_CHANGED_S = 2.0
"""Age below which a file is not kept: it might change once more within one tick of the file system."""

ASSET_SUFFIXES = frozenset({".css", ".html", ".js", ".svg"})


def read_versions(path: Path = VERSIONS_FILE) -> dict[str, int]:
    """Recorded code version of each kind of stage."""
    return {kind: entry["version"] for kind, entry in _read(path).items()}


def current_versions(
    path: Path = VERSIONS_FILE,
    modules: Mapping[str, str] = STAGE_MODULES,
    root: Path = ROOT,
    cache: Path | None = None,
) -> dict[str, str]:
    """Code version of each kind of stage as it goes into fingerprints.

    The recorded version where the source is what it was when that was set. While source is being worked on,
    the version is followed by a digest of it, so that neither code's artifacts pass for the other's.

    Args:
        cache: As for :class:`Sources`.
    """
    recorded, sources = _read(path), Sources(cache)
    versions = {}
    for kind, module in modules.items():
        entry, digest = recorded.get(kind, {"version": 0, "digest": ""}), stage_digest(module, root, sources)
        same = entry["digest"] == digest
        versions[kind] = str(entry["version"]) if same else f"{entry['version']}+{digest[:12]}"
    sources.save()
    return versions


def stage_digest(module: str, root: Path = ROOT, sources: Sources | None = None) -> str:
    """Digest of the source that decides a stage's result: its reachable modules and their web assets."""
    sources = sources or Sources()
    files = reachable(module, root, exclude=PLUMBING, sources=sources)
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(f"{name} {sources.read(path, _package(path, name)).digest}\n".encode())
    for path in assets_beside(files.values()):
        name = path.relative_to(root).as_posix()
        digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def assets_beside(files: Iterable[Path]) -> list[Path]:
    """Web assets in the folders of modules' files, and in sub-folders of theirs that hold no modules."""
    folders = {path.parent for path in files}
    for sub in [path for folder in folders for path in folder.iterdir() if path.is_dir()]:
        if not any(sub.rglob("*.py")):
            folders.add(sub)
    return sorted(p for folder in folders for p in folder.iterdir() if p.suffix in ASSET_SUFFIXES)


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
    write_whole(path, json.dumps(ordered, indent=2) + "\n")
    return kinds


def _read(path: Path) -> dict[str, dict[str, Any]]:
    return json.loads(path.read_text()) if path.is_file() else {}


def reachable(
    module: str, root: Path, *, exclude: Sequence[str] = (), sources: Sources | None = None
) -> dict[str, Path]:
    """Modules of this project that ``module`` can reach by import, itself included: name → file.

    Imports inside functions count. So do module names in text (``"pipelines.train.run:run_stage"``), because
    optional parts are loaded late by name. Imports for type checkers do not count, nor do modules, and
    packages with everything in them, that ``exclude`` names.
    """
    sources = sources or Sources()
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = module_file(name, root)
        if path is None or name in found or any(name == e or name.startswith(f"{e}.") for e in exclude):
            continue
        found[name] = path
        for named in sources.read(path, _package(path, name)).names:
            waiting += [one for one in named.split() if module_file(one, root) is not None][:1]
    return found


def _package(path: Path, name: str) -> str:
    """The package that a module's relative imports begin from."""
    return name if path.name == "__init__.py" else name.rpartition(".")[0]


def module_file(name: str, root: Path) -> Path | None:
    """Source of a module or package of this project; ``None`` for anything else."""
    if name.split(".", 1)[0] not in PACKAGES or not all(part.isidentifier() for part in name.split(".")):
        return None
    base = root.joinpath(*name.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


class Sources:
    """Sources as they were parsed, kept in a file from command to command.

    Args:
        file: Where to keep them; nowhere by default. A file counts as unchanged while its size, its time of
            change and its inode are the same.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._rules = hashlib.sha256(Path(source_digest.__file__).read_bytes()).hexdigest()
        kept = read_json(file, dict) if file is not None else None
        self._kept: dict[str, Any] = kept["files"] if kept and kept["rules"] == self._rules else {}
        self._seen: dict[str, Any] = {}

    def read(self, path: Path, package: str) -> Source:
        """The source in a file of a package."""
        found = path.stat()
        key = f"{path}:{package}:{found.st_size}:{found.st_mtime_ns}:{found.st_ino}"
        if key in self._kept:
            source = Source(self._kept[key][0], tuple(self._kept[key][1]))
        else:
            source = read_source(path.read_text(), package)
        if time.time() - found.st_mtime > JUST_CHANGED_S:
            self._seen[key] = [source.digest, source.names]
        return source

    def save(self) -> None:
        """Keep what was read, and nothing else; where the file's folder is: looking makes none."""
        if self._file is None or self._seen.keys() == self._kept.keys() or not self._file.parent.is_dir():
            return
        with contextlib.suppress(OSError, StoreError):  # only time is lost by it, as in a read-only store
            write_whole(self._file, json.dumps({"rules": self._rules, "files": self._seen}))


def load_function(path: str) -> Callable[..., Any]:
    """Import ``package.module:function``.

    Raises:
        ConfigError: If it names no such function.
    """
    module_name, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ModuleNotFoundError, AttributeError) as error:
        in_module = isinstance(error, AttributeError)
        if not in_module and (error.name is None or not module_name.startswith(error.name)):
            raise  # The module is there, and something that it imports is not.
        remedy = "Define it in the module." if in_module else "Check the module's name."
        why = f"{str(error).capitalize()}."
        raise ConfigError(f"There is no stage function {path}.", why, remedy) from None


def main() -> int:
    """The command line; returns 1 when sources changed and nothing was recorded."""
    import argparse  # late: every job starts with this module

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
