"""Tables of a benchmark from a folder, a file or a URI: found by pattern, read a row group at a time."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from casa_core.errors import DataError, cause
from pipelines.evaluate.benchmarks.layout.benchmark import Benchmark, Unroll
from pipelines.storage.uri import Folder, filesystem_for

WHOLE = (".json", ".csv")
"""Files that are read as a whole: one row group."""
SUFFIXES = (".parquet", *WHOLE)


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file of a configuration's split.

    Attributes:
        root: The folder or URI that it was found in, or the file itself.
        path: Its path in the filesystem of ``root``.
        unroll: As the benchmark's.
    """

    root: str
    path: str
    unroll: Unroll | None = None

    @property
    def filesystem(self) -> fs.FileSystem:
        """The filesystem of ``root``, opened anew: files travel between processes, connections do not."""
        return filesystem_for(self.root)[0]

    @property
    def size(self) -> int:
        """Bytes."""
        return self.filesystem.get_file_info(self.path).size


def find_files(benchmark: Benchmark, root: str | Folder, config: str) -> list[DataFile]:
    """The files of a configuration in the order of their names.

    Args:
        benchmark: Whose files.
        root: A folder or URI in the layout of the benchmark's repository, or one file of its.
        config: One of the benchmark's configurations, or that of its second table.

    Raises:
        DataError: Where there are none.
        ConfigError, StoreError: Where the URI cannot be read.
    """
    filesystem, base = filesystem_for(root)
    if base.endswith(SUFFIXES) and filesystem.get_file_info(base).is_file:
        return [DataFile(str(root), base, benchmark.unroll)]
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
    return [DataFile(str(root), path, benchmark.unroll) for path in sorted(found)]


def row_groups(benchmark: Benchmark, file: DataFile) -> list[int]:
    """Number of rows of each row group of a file, whose columns are checked; a file of ``WHOLE`` is one.

    Raises:
        DataError: For a file that cannot be read, or one in another layout.
    """
    if file.path.endswith(WHOLE):
        table = read_group(file, 0)
        benchmark.check(table.schema)
        return [len(table)]
    with _parquet(file) as parquet:
        benchmark.check(parquet.schema_arrow)
        return [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]


def read_group(file: DataFile, group: int) -> pa.Table:
    """A row group of a file.

    Raises:
        DataError: For a file that cannot be read.
    """
    if file.path.endswith(WHOLE):
        with _explained(file), file.filesystem.open_input_file(file.path) as source:
            return _listed(file, source.read())
    with _parquet(file) as parquet:
        return parquet.read_row_group(group)


def group_count(file: DataFile) -> int:
    """Number of a file's row groups."""
    if file.path.endswith(WHOLE):
        return 1
    with _parquet(file) as parquet:
        return parquet.num_row_groups


def footer(file: DataFile) -> str:
    """What a file says of itself: the sizes and bounds of its columns, or all of it."""
    if file.path.endswith(WHOLE):
        return str(read_group(file, 0).to_pylist())
    with _parquet(file) as parquet:
        return str(parquet.metadata.to_dict())


@contextmanager
def _parquet(file: DataFile) -> Iterator[pq.ParquetFile]:
    with _explained(file), file.filesystem.open_input_file(file.path) as source:
        yield pq.ParquetFile(source)


@contextmanager
def _explained(file: DataFile) -> Iterator[None]:
    try:
        yield
    except DataError:  # a ValueError, too
        raise
    except (pa.ArrowException, ValueError, OSError) as error:
        raise DataError(
            f"The file {file.path} cannot be read.", f"{cause(error)}.", "Fetch the file again."
        ) from error


def _listed(file: DataFile, data: bytes) -> pa.Table:
    if file.path.endswith(".csv"):
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        schema = pa.schema([(name, pa.string()) for name in reader.fieldnames or ()])
        return pa.Table.from_pylist(list(reader), schema)
    values = json.loads(data)
    if not isinstance(values, list) or not all(isinstance(row, dict) for row in values):
        raise ValueError("The file is no list of records.")
    return pa.Table.from_pylist(values if file.unroll is None else file.unroll(values))
