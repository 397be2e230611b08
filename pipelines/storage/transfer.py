"""Folders copied between disk and S3, local views of S3 folders, and requests that run side by side."""

from __future__ import annotations

import contextlib
import functools
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pipelines.storage.atomic import create, remember, sync_tree
from pipelines.storage.errors import attempt
from pipelines.storage.remote_path import RemotePath
from pipelines.storage.uri import Folder, filesystem_for

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

BLOCK = 8 << 20
"""Bytes of a file that are in memory at once."""
THREADS = 8
LARGE = 16 << 20
"""Bytes from which a file's digest is worth an object of its own until the commit."""
Work = TypeVar("Work")
Result = TypeVar("Result")


def remove_tree(folder: Folder) -> None:
    """Removes a folder and all below it; one that is not there is no error."""
    if isinstance(folder, RemotePath):
        folder.remove_tree()
    elif folder.exists():
        shutil.rmtree(folder)


def blocks(path: Folder) -> Iterator[bytes]:
    """The content of a file of any size, some megabytes at a time; a request that fails is made again."""
    filesystem, inside = filesystem_for(path)
    with attempt(str(path), lambda: filesystem.open_input_file(inside)) as file:
        size = attempt(str(path), file.size)
        for start in range(0, size, BLOCK):
            yield attempt(str(path), functools.partial(file.read_at, min(BLOCK, size - start), start))


def copy_tree(source: Folder, target: Folder, *, keep_digests: bool = False) -> None:
    """Copies all files below a folder to another, either of them local or on S3, each appearing whole.

    Args:
        keep_digests: Keep those of large files, so that the artifact's commit does not read them again.
    """
    for path in sorted(source.rglob("*")):  # type: ignore[type-var]
        if not path.is_file():
            continue
        copy = target / path.relative_to(source).as_posix()  # type: ignore[arg-type]
        copy.parent.mkdir(parents=True, exist_ok=True)
        with create(copy) as output:
            for block in blocks(path):
                output.write(block)
        if keep_digests and output.written is not None and output.written.bytes >= LARGE:
            remember(copy, output.written)


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
    """A local folder to fill, for libraries that write nowhere else.

    A local folder's files are forced to the disk when the block ends well. For one on S3 it is a temporary
    folder, whose files are uploaded then: the disk of ``TMPDIR`` needs room for them.
    """
    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        sync_tree(folder)
        return
    with tempfile.TemporaryDirectory(prefix="casa-") as scratch:
        yield Path(scratch)
        copy_tree(Path(scratch), folder, keep_digests=True)


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
    from concurrent.futures import ThreadPoolExecutor  # late: every job starts with this module

    return ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix=name)
