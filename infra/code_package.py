"""The code that a cluster's jobs run with, as an archive: equal code makes equal bytes, sent once."""

from __future__ import annotations

import hashlib
import io
import os
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

from casa_core.errors import ClusterError, ConfigError

PACKAGES = ("casa_core", "pipelines", "serve", "infra")
"""This project's."""
ROOT = Path(__file__).resolve().parents[1]
"""Their folder: a checkout, or site-packages."""
MOST_BYTES = 100 << 20
"""Ray keeps packages in the memory of its head."""
KEPT_S = 86_400.0
"""Age from which an archive of other code is removed."""
_EPOCH = (1980, 1, 1, 0, 0, 0)


def code_archive(extra: Path | None, folder: Path, leave_out: tuple[Path, ...] = ()) -> Path:
    """An archive of this project's packages, and of a user's folder beside them.

    Neither hidden files nor compiled ones are in it. What git ignores is: a package's data may be among it.

    Args:
        extra: A folder with further code, whose files win over the project's.
        folder: Where the archive is written, under a name made of its content.
        leave_out: Folders in ``extra`` that are not taken along: the store.

    Raises:
        ConfigError: If there is no such folder, or it holds over ``MOST_BYTES``; names the largest files.
    """
    files = {f"{package}/{name}": path for package in PACKAGES for name, path in _files(ROOT / package)}
    if extra is not None:
        files |= _files_of_user(extra, leave_out)
    _require_small(files, extra)
    content = _archive(files)
    path = folder / f"code-{hashlib.sha256(content).hexdigest()[:16]}.zip"
    folder.mkdir(parents=True, exist_ok=True)
    _remove_old(folder, path)
    if not path.is_file() or path.stat().st_size != len(content):
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_bytes(content)
        partial.replace(path)
    return path


def missing_package(name: str) -> ClusterError:
    """A job's Python lacks a package: this project's own, or one that it needs."""
    if name.partition(".")[0] in PACKAGES:
        return ClusterError(
            "The cluster's Python does not have this project.",
            f"It finds no module {name}.",
            "Leave `where.ray.code` at `sent`, which sends it along, or install casa on all nodes.",
        )
    return ClusterError(
        f"The cluster's Python lacks the package {name.partition('.')[0]}.",
        f"It finds no module {name}.",
        "Install casa with its dependencies on all nodes; infra/docker/Dockerfile makes an image with them.",
    )


def _files_of_user(folder: Path, leave_out: tuple[Path, ...]) -> dict[str, Path]:
    if not folder.is_dir():
        raise ConfigError(
            f"There is no folder {folder}.",
            "`where.ray.working_dir` is a folder of this machine, whose files jobs of the cluster get.",
            "Correct it, or leave it out: this project's own code is sent in any case.",
        )
    return dict(_files(folder, tuple(path.resolve() for path in leave_out)))


def _files(folder: Path, leave_out: tuple[Path, ...] = ()) -> Iterator[tuple[str, Path]]:
    """Name and path of each file beneath a folder, without hidden and compiled ones, in order."""
    for current, names, files in os.walk(folder):
        here = Path(current)
        names[:] = sorted(
            name
            for name in names
            if not name.startswith(".")
            and name != "__pycache__"
            and (here / name).resolve() not in leave_out
            and not (here / name / "pyvenv.cfg").is_file()
        )
        for name in sorted(files):
            path = here / name
            if not name.startswith(".") and path.suffix != ".pyc" and path.is_file():
                yield path.relative_to(folder).as_posix(), path


def _require_small(files: dict[str, Path], extra: Path | None) -> None:
    sizes = {name: path.stat().st_size for name, path in files.items()}
    total = sum(sizes.values())
    if total <= MOST_BYTES:
        return
    largest = sorted(sizes, key=lambda name: sizes[name], reverse=True)[:5]
    listed = ", ".join(f"{name} ({sizes[name] / 2**20:.0f} MiB)" for name in largest)
    raise ConfigError(
        f"{extra} holds {total / 2**20:.0f} MiB for the cluster's jobs, more than {MOST_BYTES >> 20}.",
        f"Its largest files are {listed}.",
        "Let `where.ray.working_dir` name a folder of code alone; data belongs in the store, or where all "
        "nodes see it.",
    )


def _archive(files: dict[str, Path]) -> bytes:
    """The files, uncompressed: compressed ones differ from one version of zlib to another."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _EPOCH)
            runs = os.access(files[name], os.X_OK)
            entry.create_system = 3  # Unix, whatever this machine is: else no permissions
            entry.external_attr = (0o755 if runs else 0o644) << 16
            archive.writestr(entry, files[name].read_bytes())
    return buffer.getvalue()


def _remove_old(folder: Path, wanted: Path) -> None:
    """Remove archives of other code; a young one may be another run's, which sends it again."""
    for path in folder.glob("code-*.zip"):
        if path != wanted and time.time() - path.stat().st_mtime > KEPT_S:
            path.unlink(missing_ok=True)
