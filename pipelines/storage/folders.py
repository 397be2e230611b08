"""Folders that lie on a disk or on S3: what they have in common, and the few things that differ.

``Folder`` is a ``Path`` or an :class:`~pipelines.storage.s3_path.S3Path`; both have pathlib's names for joining,
listing, reading and removing. Writing goes through here, because the two become whole in different ways: a
file is written under another name and renamed, an object appears when its upload is completed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias, TypeVar
from urllib.parse import urlencode

from casa_core.errors import ConfigError
from pipelines.storage import s3
from pipelines.storage.s3_path import S3Path, S3Upload

if TYPE_CHECKING:
    from pyarrow import fs

Folder: TypeAlias = Path | S3Path
DIGESTS = ".digests"
LEFTOVERS_AFTER = timedelta(days=1)
"""Older uploads are nobody's; younger ones may be another run's that makes the same artifact."""
THREADS = 8
Work = TypeVar("Work")
Result = TypeVar("Result")


def open_folder(where: str | Folder) -> Folder:
    """A folder from its text: an ``s3://`` URI, or a path of this machine.

    Raises:
        ConfigError: For a URI that is neither.
    """
    if isinstance(where, Path | S3Path):
        return where
    if where.startswith("s3://"):
        return S3Path.from_uri(where)
    if "://" in where:
        raise ConfigError(
            f"{where!r} is not a folder artifacts can live in.",
            "Artifacts live in a local folder or on S3.",
            "Use a path, or s3://bucket/prefix.",
        )
    return Path(where).expanduser()


def filesystem_for(where: str | Folder) -> tuple[fs.FileSystem, str]:
    """Arrow's filesystem for a place, and the place's path in it: for reading bulk data.

    Args:
        where: A local path, or a URI: ``s3://`` (see :mod:`pipelines.storage.s3`), or another that Arrow knows.

    Raises:
        ConfigError: For a URI that Arrow does not know.
        StoreError: For a bucket whose region cannot be found out.
    """
    from pyarrow import fs  # late: the command line starts without it

    if isinstance(where, S3Path) or (isinstance(where, str) and where.startswith("s3://")):
        path = where if isinstance(where, S3Path) else S3Path.from_uri(where)
        return s3.arrow_filesystem(path.settings, path.bucket), f"{path.bucket}/{path.key}".rstrip("/")
    if isinstance(where, Path) or "://" not in where:
        return fs.LocalFileSystem(), str(Path(where).expanduser().resolve())
    try:
        filesystem, inside = fs.FileSystem.from_uri(where)
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"{where!r} is not a folder this project can read.",
            str(error),
            "Use a local folder, s3://bucket/prefix or another URI that Arrow knows.",
        ) from error
    return filesystem, inside.rstrip("/")


def data_store(where: Mapping[str, Any]) -> Folder | None:
    """The folder of a recipe's data artifacts; ``None`` where they share the store of all others.

    Args:
        where: The recipe's ``where`` section: ``data_store`` and, for a server of one's own, ``s3``.
    """
    text = where.get("data_store")
    return located(text, where) if text else None


def located(text: str, where: Mapping[str, Any]) -> Folder:
    """A folder that a recipe names; on S3, reached as its ``where.s3`` says."""
    if text.startswith("s3://") and "?" not in text:
        server = where.get("s3") or {}
        given = {"endpoint_override": server.get("endpoint"), "region": server.get("region")}
        query = urlencode({name: value for name, value in given.items() if value}, safe=":/")
        text += f"?{query}" if query else ""
    return open_folder(text).absolute()


def write_whole(path: Folder, data: bytes | str) -> None:
    """Replaces a file or an object in one step: readers see the old one or the new one, whole."""
    content = data.encode("utf-8") if isinstance(data, str) else data
    with create(path) as output:
        output.write(content)


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: known without reading it again.

    Attributes:
        bytes: How many.
        sha256: Of the whole, in hexadecimal.
        stamp: Changes when the file does: an object's tag, a file's time of modification in nanoseconds.
    """

    bytes: int
    sha256: str
    stamp: str


class Output:
    """A file being written, local or on S3; what Arrow needs of a Python file. See :func:`create`."""

    closed = False

    def __init__(self, path: Folder) -> None:
        self.path = path
        self.written: Written | None = None
        self._hash = hashlib.sha256()
        self._size = 0
        self._upload: S3Upload | None = None
        self._file: IO[bytes] | None = None
        if isinstance(path, S3Path):
            self._upload = S3Upload(path)
        else:
            self._temporary = path.with_name(f".{path.name}.{os.getpid()}")
            self._file = self._temporary.open("wb")

    def write(self, data: Any) -> int:
        """Takes bytes, or anything with the buffer protocol."""
        view = memoryview(data).cast("B")
        self._hash.update(view)
        self._size += len(view)
        if self._upload is not None:
            self._upload.write(view)
        elif self._file is not None:
            self._file.write(view)
        return len(view)

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        """Nothing: it is whole or not there."""

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        """Nothing: the end of the ``with`` block decides whether it appears."""

    def finish(self) -> None:
        """Makes it appear under its name."""
        if self._upload is not None:
            stamp = self._upload.finish()
        else:
            assert isinstance(self.path, Path)
            assert self._file is not None
            self._file.close()
            stamp = str(self._temporary.stat().st_mtime_ns)  # once named, a reader may take it away
            self._temporary.replace(self.path)
        self.written = Written(self._size, self._hash.hexdigest(), stamp)

    def abort(self) -> None:
        """Leaves what was there before, and nothing else."""
        if self._upload is not None:
            self._upload.abort()
        elif self._file is not None:
            self._file.close()
            self._temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def create(path: Folder) -> Iterator[Output]:
    """A binary stream into a new file, which appears when the block ends well, and not at all otherwise."""
    output = Output(path)
    try:
        yield output
        output.finish()
    except BaseException:
        output.abort()
        raise


def remember(path: Folder, written: Written) -> None:
    """Keeps a large file's digest beside it until its artifact is committed, so that none is read for it."""
    folder = path.parent / DIGESTS
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"{path.name}.json", json.dumps(asdict(written)))


def recall(path: Folder, stamp: str) -> Written | None:
    """What :func:`remember` kept of a file; ``None`` where it was written anew since then, or never kept."""
    try:
        kept = Written(**json.loads((path.parent / DIGESTS / f"{path.name}.json").read_text()))
    except FileNotFoundError:
        return None
    return kept if kept.stamp == stamp else None


def remove_tree(folder: Folder) -> None:
    """Removes a folder and all below it; one that is not there is no error."""
    if isinstance(folder, S3Path):
        folder.remove_tree()
    elif folder.exists():
        shutil.rmtree(folder)


def remove_leftovers(folder: Folder, *, older_than: timedelta = LEFTOVERS_AFTER) -> None:
    """Removes what killed writers left: unfinished files, parts of uploads that nobody will complete.

    Uploads of the last day are left alone where nothing else is said; none outlives the commit of its
    artifact. With ``timedelta(0)`` none is: the caller knows that nobody uploads now.
    """
    if isinstance(folder, S3Path):
        folder.abort_uploads(older_than=older_than)
        return
    for path in folder.glob(".*.*.*"):
        if path.is_file():
            path.unlink()


def copy_tree(source: Folder, target: Folder) -> None:
    """Copies all files below a folder to another, either of them local or on S3, each appearing whole."""
    for path in sorted(source.rglob("*")):  # type: ignore[type-var]
        if not path.is_file():
            continue
        copy = target / path.relative_to(source).as_posix()  # type: ignore[arg-type]
        copy.parent.mkdir(parents=True, exist_ok=True)
        filesystem, inside = filesystem_for(path)
        with s3.explained(str(path)), filesystem.open_input_stream(inside) as stream, create(copy) as output:
            while block := stream.read(8 << 20):
                output.write(block)


@contextlib.contextmanager
def local_copy(folder: Folder) -> Iterator[Path]:
    """A small folder as a path of this machine, for libraries that read nothing else. Read it, no more.

    A local folder is given as it is; one on S3 is copied, and the copy is removed at the end of the block.
    """
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="casa-") as scratch:
        copy_tree(folder, Path(scratch))
        yield Path(scratch)


@contextlib.contextmanager
def local_output(folder: Folder) -> Iterator[Path]:
    """A local folder to fill with small files, for libraries that write nowhere else.

    For one on S3 it is a temporary folder, whose files are uploaded when the block ends well.
    """
    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="casa-") as scratch:
        yield Path(scratch)
        copy_tree(Path(scratch), folder)


def side_by_side(function: Callable[[Work], Result], work: Sequence[Work], threads: str) -> list[Result]:
    """A function that waits for S3 over several pieces of work at once; results in their order.

    Args:
        threads: Name of the threads; what they run must not ask for threads of the same name.
    """
    if len(work) < 2:
        return [function(piece) for piece in work]
    return list(_threads(threads).map(function, work))


@lru_cache(maxsize=4)
def _threads(name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix=name)
