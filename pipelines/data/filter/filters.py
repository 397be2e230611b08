"""Quality filters: which clean samples are left out of training, decided from their columns alone.

Filters that look at a sample alone run in the scan of each part of a source; duplicates are then sought
among what is left, so that the sample which stays is one that no other filter removes. All of it is a
function of the samples in their order, and everything removed is listed with what the filter found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.data.clean.perceptual import earlier_neighbours, first_equal
from pipelines.data.filter.scan import FILTERS, KEPT, ScanTask, join_scans, scan_rows
from pipelines.data.store.mapped import run_mapped
from pipelines.data.store.readers import CleanReader
from pipelines.data.store.shard_pipeline import Run
from pipelines.recipe.filters import Filters, NearDuplicates
from pipelines.storage.atomic import create
from pipelines.storage.uri import Folder

FILTERED = "filtered.parquet"
FILTERED_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("row", pa.int64()),
        ("sample_id", pa.string()),
        ("filter", pa.string()),
        ("detail", pa.string()),
    ],
    metadata={"casa.schema": "filtered/1"},
)
EXAMPLES = 5
"""Removed samples per filter that the report quotes."""
ROWS_PER_SCAN = 1 << 16
_REMEDY = "Run fewer workers on a node, or give them more memory."


@dataclass(frozen=True, slots=True)
class Removed:
    """One sample that a filter removed.

    Attributes:
        source: Its source's name in the recipe.
        row: Its number in the split of that source's clean artifact.
        sample_id: Unique within the source.
        filter: One of ``FILTERS``.
        detail: What the filter found.
    """

    source: str
    row: int
    sample_id: str
    filter: str
    detail: str


class RemovedRows(Sequence[Removed]):
    """Removed samples in the order of sources and rows; kept as a table, because there can be millions."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table.cast(FILTERED_SCHEMA)

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return RemovedRows(self.table.take(list(range(*at.indices(len(self))))))
        at = range(len(self))[at]  # IndexError past either end
        return Removed(*(self.table.column(name)[at].as_py() for name in FILTERED_SCHEMA.names))


@dataclass(frozen=True, slots=True, kw_only=True)
class Filtered:
    """What filters decided.

    Attributes:
        keep: Source → which of its rows stay; (rows,).
        removed: All other rows.
        report: Filter → how many samples it removed, their share of all, how many of each source, and the
            first examples.
    """

    keep: dict[str, NDArray[np.bool_]]
    removed: RemovedRows
    report: dict[str, Any]


def filter_sources(readers: Mapping[str, CleanReader], declared: Filters, run: Run) -> Filtered:
    """Applies the declared filters to all samples of all sources.

    Args:
        readers: The sources in the order of the stream; the first of equal samples stays.
        declared: The recipe's ``data.filters``.
        run: Carries the scans, one task each.

    Raises:
        DataError: For a file of hashes that cannot be read.
    """
    asked = [name for name in FILTERS if getattr(declared, name) is not None]
    if not asked:
        everything = {source: np.ones(len(reader), bool) for source, reader in readers.items()}
        return Filtered(keep=everything, removed=RemovedRows(FILTERED_SCHEMA.empty_table()), report={})
    stream = _Stream(readers, declared, run)
    if declared.duplicates is not None:
        stream.remove_duplicates()
    if declared.near_duplicates is not None:
        stream.remove_near_duplicates(declared.near_duplicates)
    keep = {source: stream.fate[rows] == KEPT for source, rows in stream.rows_of.items()}
    removed = RemovedRows(stream.removed(readers))
    assert len(removed) + sum(int(own.sum()) for own in keep.values()) == len(stream.fate), (
        "Every sample is kept or listed."
    )
    return Filtered(keep=keep, removed=removed, report=_report(removed, asked, readers))


def write_filtered(path: Folder, removed: RemovedRows) -> None:
    """Writes the table of removed samples atomically."""
    with create(path) as output:
        pq.write_table(removed.table, output, compression="zstd")


class _Stream:
    """All samples of all sources one after the other, and what the scan found: some 60 bytes per sample."""

    def __init__(self, readers: Mapping[str, CleanReader], declared: Filters, run: Run) -> None:
        tasks = [
            ScanTask(
                source=source,
                reader=reader,
                start=start,
                stop=min(start + ROWS_PER_SCAN, len(reader)),
                declared=declared,
            )
            for source, reader in readers.items()
            for start in range(0, len(reader), ROWS_PER_SCAN)
        ]
        self._found = join_scans(run_mapped(run, scan_rows, tasks, "scanned samples for filters", _REMEDY))
        self.fate, self.details = self._found.fate, self._found.details
        self.rows_of: dict[str, slice] = {}
        start = 0
        for source, reader in readers.items():
            self.rows_of[source] = slice(start, start + len(reader))
            start += len(reader)
        assert start == len(self.fate), "Every sample is scanned once."

    def remove_duplicates(self) -> None:
        """Removes what is equal to an earlier sample."""
        keys = self._found.keys
        compared = np.flatnonzero((self.fate == KEPT) & keys.any(axis=1))
        first = compared[first_equal(keys[compared])]
        for number, original in zip(compared.tolist(), first.tolist(), strict=True):
            if original != number:
                self._remove(number, "duplicates", f"equal to {self._name(original)}")

    def remove_near_duplicates(self, declared: NearDuplicates) -> None:
        """Removes what looks like an earlier sample with as many pictures."""
        count, hashes = self._found.pictures, self._found.phashes
        begin = np.cumsum(count) - count
        texts = self._found.texts.view(np.int64)
        for pictures in np.unique(count[count > 0]).tolist():
            compared = np.flatnonzero((self.fate == KEPT) & (count == pictures))
            own = hashes[begin[compared, None] + np.arange(pictures)]
            groups = texts[compared] if declared.of == "pictures_and_text" else None
            nearest = earlier_neighbours(own, declared.distance, groups)
            for at in np.flatnonzero(nearest >= 0).tolist():
                bits = int(np.bitwise_count(own[at] ^ own[nearest[at]]).max())
                self._remove(
                    int(compared[at]),
                    "near_duplicates",
                    f"{bits} bits from {self._name(int(compared[nearest[at]]))}",
                )

    def removed(self, readers: Mapping[str, CleanReader]) -> pa.Table:
        """All removed samples as ``FILTERED_SCHEMA``."""
        parts = [FILTERED_SCHEMA.empty_table()]
        for source, own in self.rows_of.items():
            rows = np.flatnonzero(self.fate[own] != KEPT)
            columns = {
                "source": pa.array([source] * len(rows), pa.string()),
                "row": pa.array(rows, pa.int64()),
                "sample_id": pa.array(_sample_ids(readers[source], rows), pa.string()),
                "filter": pa.array([FILTERS[fate] for fate in self.fate[own][rows]], pa.string()),
                "detail": pa.array([self.details[own.start + row] for row in rows.tolist()], pa.string()),
            }
            parts.append(pa.table(columns, schema=FILTERED_SCHEMA))
        return pa.concat_tables(parts)

    def _remove(self, number: int, name: str, detail: str) -> None:
        self.fate[number] = FILTERS.index(name)
        self.details[number] = detail

    def _name(self, number: int) -> str:
        source, own = next(each for each in self.rows_of.items() if number < each[1].stop)
        return f"row {number - own.start} of {source}"


def _sample_ids(reader: CleanReader, rows: NDArray[np.int64]) -> Iterator[str]:
    """Ids of ascending rows; each record batch is opened once."""
    ids, first = pa.array([], pa.string()), 0
    for row in rows.tolist():
        if row >= first + len(ids):
            batch, number = reader.locate(row)
            ids, first = batch.column("sample_id"), row - number
        yield ids[row - first].as_py()


def _report(removed: RemovedRows, asked: Iterable[str], readers: Mapping[str, CleanReader]) -> dict[str, Any]:
    total = sum(map(len, readers.values()))
    filters = np.asarray(removed.table.column("filter").to_pylist(), dtype=object)
    sources = np.asarray(removed.table.column("source").to_pylist(), dtype=object)
    report: dict[str, Any] = {}
    for name in asked:
        own = np.flatnonzero(filters == name)
        report[name] = {
            "count": len(own),
            "share": len(own) / total if total else 0.0,
            "by_source": {source: int((sources[own] == source).sum()) for source in readers},
            "examples": [
                {
                    "source": entry.source,
                    "row": entry.row,
                    "sample_id": entry.sample_id,
                    "detail": entry.detail,
                }
                for entry in (removed[at] for at in own[:EXAMPLES].tolist())
            ],
        }
    return report
