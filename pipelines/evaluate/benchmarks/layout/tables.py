"""Tables of a benchmark from a folder, a file or a URI: found by pattern, read a row group at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from casa_core.errors import ConfigError, DataError, cause
from pipelines.evaluate.benchmarks.layout.benchmark import Benchmark
from pipelines.storage.uri import Folder, filesystem_for

SUFFIXES = (".parquet", ".json")


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file of a configuration's split."""

    filesystem: fs.FileSystem
    path: str


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of a configuration: its rows from number ``first`` on."""

    first: int
    table: pa.Table


def hub_uri(benchmark: Benchmark, revision: str | None) -> str:
    """The benchmark's repository at a revision, as a URI.

    Raises:
        ConfigError: Without a revision: a repository may change between two runs that are to be compared.
    """
    if not revision:
        raise ConfigError(
            f"The data of {benchmark.name} has no revision.",
            "The newest commit of a repository is not the same at every run.",
            f"Name one: hf://datasets/{benchmark.repository}@REVISION.",
        )
    return f"hf://datasets/{benchmark.repository}@{revision}"


def find_files(benchmark: Benchmark, root: str | Folder, config: str) -> list[DataFile]:
    """The files of a configuration in the order of their names.

    Args:
        benchmark: Whose files.
        root: A folder or URI in the layout of the benchmark's repository, or one file of its.
        config: One of the benchmark's configurations.

    Raises:
        DataError: Where there are none.
        ConfigError, StoreError: Where the URI cannot be read.
    """
    filesystem, base = filesystem_for(root)
    if base.endswith(SUFFIXES) and filesystem.get_file_info(base).is_file:
        return [DataFile(filesystem, base)]
    found: list[str] = []
    for pattern in benchmark.patterns(config):
        folder, _, name = pattern.rpartition("/")
        place = f"{base}/{folder}".rstrip("/")
        entries = filesystem.get_file_info(fs.FileSelector(place, allow_not_found=True))
        found += [info.path for info in entries if info.is_file and fnmatchcase(info.base_name, name)]
    if not found:
        raise DataError(
            f"There are no files of {benchmark.name} in {root}.",
            f"Its split {benchmark.split!r} lies in {', '.join(benchmark.patterns(config))} there.",
            "Give the folder that holds the data set's folders, or one of its files.",
        )
    return [DataFile(filesystem, path) for path in sorted(found)]


def read_files(benchmark: Benchmark, files: Sequence[DataFile]) -> Iterator[Rows]:
    """The rows of a configuration's files, a row group at a time; each table's columns are checked.

    Raises:
        DataError: For a file that cannot be read, or one in another layout; and where no file has a row.
    """
    first = 0
    for file in files:
        for table in _tables(file):
            benchmark.check(table.schema)
            if len(table):
                yield Rows(first, table)
            first += len(table)
    if not first:
        raise DataError(
            f"There is nothing to evaluate on: the files of {benchmark.name} have no rows.",
            f"They are {', '.join(file.path for file in files) or '(none)'}.",
            f"Take the split {benchmark.split!r}, which has some.",
        )


def _tables(file: DataFile) -> Iterator[pa.Table]:
    try:
        with file.filesystem.open_input_file(file.path) as source:
            if file.path.endswith(".json"):
                yield _listed(json.loads(source.read()))
                return
            parquet = pq.ParquetFile(source)
            if not parquet.metadata.num_row_groups:
                yield parquet.schema_arrow.empty_table()
            for group in range(parquet.metadata.num_row_groups):
                yield parquet.read_row_group(group)
    except (pa.ArrowException, ValueError, OSError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"The file {file.path} cannot be read.", f"{cause(error)}.", "Fetch the file again."
        ) from error


def _listed(values: Any) -> pa.Table:
    if not isinstance(values, list) or not all(isinstance(row, dict) for row in values):
        raise ValueError("The file is no list of records.")
    return pa.Table.from_pylist(values)
