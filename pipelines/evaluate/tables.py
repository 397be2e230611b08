"""The questions of a benchmark's tables: found and checked before work starts, read by the workers.

A table lies on this machine, under any URI that fsspec knows, or on the hub, whose repositories are read at
one commit: ``hf://datasets/org/name@REVISION``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from casa_core.errors import CasaError, ConfigError, DataError, cause
from pipelines.evaluate.benchmarks.layout.benchmark import Benchmark, Question, VideoSource
from pipelines.evaluate.benchmarks.layout.tables import (
    SUFFIXES,
    DataFile,
    find_files,
    footer,
    group_count,
    read_group,
    row_groups,
)
from pipelines.evaluate.benchmarks.videos.files import VideoFolder
from pipelines.evaluate.worker import Unreadable
from pipelines.storage.remote_path import RemotePath
from pipelines.storage.uri import is_remote


@dataclass(frozen=True, slots=True)
class Piece:
    """A row group of one file: ``rows`` rows, the first of them row ``first`` of its configuration."""

    config: str
    file: DataFile
    group: int
    first: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TableQuestions:
    """The questions of one benchmark; a :class:`pipelines.evaluate.worker.QuestionSource`.

    Attributes:
        root: Folder or URI of the data set.
        pieces: Where the rows are, in their order.
        lookup: Files of the second table, where there is one.
        videos: The files of a video benchmark; they lie beside its tables.
        digest: Changes when a file does: from names, sizes and footers.
        most: Questions that are asked; the first ones.
        longest: Longest answer where it is not the benchmark's.
    """

    benchmark: Benchmark
    root: str
    pieces: tuple[Piece, ...]
    lookup: tuple[DataFile, ...] = ()
    videos: VideoSource | None = None
    digest: str = ""
    most: int | None = None
    longest: int | None = None

    @property
    def max_new_tokens(self) -> int:
        """Longest answer."""
        return self.longest or self.benchmark.max_new_tokens

    def __len__(self) -> int:
        rows = sum(piece.rows for piece in self.pieces)
        return rows if self.most is None else min(rows, self.most)

    def read(self, start: int, stop: int) -> Iterator[Question | Unreadable]:
        """Those from ``start`` to before ``stop``; a row that cannot be used says why."""
        before = 0
        for piece in self.pieces:
            first, last = max(start - before, 0), min(stop - before, piece.rows)
            if first < last:
                yield from self._of_piece(piece, first, last)
            before += piece.rows

    def _of_piece(self, piece: Piece, first: int, last: int) -> Iterator[Question | Unreadable]:
        own, videos = self.benchmark, self.videos
        pictures = _pictures(own, self.lookup) if self.lookup else None
        rows = _row_group(piece.file, piece.group).slice(first, last - first)
        for at in range(last - first):  # one by one: a row may hold a large picture
            [values] = rows.slice(at, 1).to_pylist()
            row = piece.first + first + at
            try:
                yield own.question(values, row=row, config=piece.config, videos=videos, pictures=pictures)
            except CasaError as error:
                yield Unreadable(id=f"{piece.config}/{row}", reason=" ".join(map(str, error.args[:2])))


def open_tables(
    benchmark: Benchmark, root: str | None = None, *, most: int | None = None, longest: int | None = None
) -> TableQuestions:
    """Find a benchmark's tables and check their columns.

    Args:
        root: Folder or URI of the data set, in the layout that it has on the hub, or of one of its files; by
            default the hub's newest commit, or where one's own benchmark says.
        most, longest: As of :class:`TableQuestions`.

    Raises:
        DataError: Where there are no tables, no rows, or other columns than the benchmark needs.
        CasaError: Where the place cannot be reached.
    """
    root = root or (benchmark.repository if benchmark.files else newest(benchmark))
    pieces: list[Piece] = []
    used: list[DataFile] = []
    for config in benchmark.configs:
        files, first = find_files(benchmark, root, config), 0
        used += files
        for file in files:
            for group, rows in enumerate(row_groups(benchmark, file)):
                pieces.append(Piece(config, file, group, first, rows))
                first += rows
    if not any(piece.rows for piece in pieces):
        raise DataError(
            f"There is nothing to evaluate on: the files of {benchmark.name} have no rows.",
            f"They are {', '.join(file.path for file in used)}.",
            f"Take the split {benchmark.split!r}, which has some.",
        )
    lookup = find_files(benchmark, root, benchmark.lookup.config) if benchmark.lookup else []
    return TableQuestions(
        benchmark=benchmark,
        root=root,
        pieces=tuple(pieces),
        lookup=tuple(lookup),
        videos=None if benchmark.modality == "picture" else _videos(root),
        digest=_digest([*used, *lookup]),
        most=most,
        longest=longest,
    )


def _videos(root: str) -> VideoFolder:
    folder = RemotePath.from_uri(root) if is_remote(root) else Path(root.removeprefix("file://")).expanduser()
    return VideoFolder(folder.parent if root.endswith(SUFFIXES) else folder)


def newest(benchmark: Benchmark) -> str:
    """The URI of a benchmark's repository at its newest commit, which is looked up once: all workers, and the
    result, name the same.

    Raises:
        ConfigError: If the hub cannot be asked.
    """
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(benchmark.repository, revision="main").sha
    except Exception as error:  # the hub's, the connection's, the proxy's
        raise ConfigError(
            f"The data of {benchmark.name} cannot be looked up on the hub.",
            f"{benchmark.repository}: {cause(error)}.",
            f"Give a copy of them: `--data {benchmark.name}=FOLDER`; or another hub by HF_ENDPOINT.",
        ) from error
    return f"hf://datasets/{benchmark.repository}@{commit}"


@lru_cache(maxsize=2)  # the chunks of a row group follow one another, and two are in hand
def _row_group(file: DataFile, group: int) -> pa.Table:
    return read_group(file, group)


@lru_cache(maxsize=1)
def _pictures(benchmark: Benchmark, files: tuple[DataFile, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for file in files:
        for group in range(group_count(file)):
            found |= benchmark.picture_lookup(read_group(file, group))
    return found


def _digest(files: Sequence[DataFile]) -> str:
    digest = hashlib.sha256()
    for file in files:
        name = file.path.rpartition("/")[2]
        digest.update(f"{name}\0{file.size}\0{footer(file)}".encode())
    return digest.hexdigest()
