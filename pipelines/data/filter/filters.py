"""Quality filters: which clean samples are left out of training, decided from their columns alone.

Filters that look at a sample alone run in the scan of each part of a source; duplicates are then sought
among what is left, so that the sample which stays is one that no other filter removes. All of it is a
function of the samples in their order, and everything removed is listed with what the filter found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.data.clean.perceptual import earlier_neighbours, first_equal
from pipelines.data.filter.scan import FILTERS, KEPT, Scanned, ScanTask, Settings, scan_rows
from pipelines.data.store.store import CleanReader
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
"""Removed samples that the report quotes of each filter."""
ROWS_PER_SCAN = 1 << 16

Run = Callable[[Callable[[ScanTask], Scanned], Sequence[ScanTask]], Iterable[Scanned]]


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
        keep: Of each source, which rows stay; (rows,).
        removed: All others.
        report: Of each declared filter: how many it removed, their share of all samples, how many of each
            source, and the first examples.
    """

    keep: dict[str, NDArray[np.bool_]]
    removed: RemovedRows
    report: dict[str, Any]


def filter_sources(readers: Mapping[str, CleanReader], settings: Settings, run: Run) -> Filtered:
    """Applies the declared filters to all samples of all sources.

    Args:
        readers: The sources in the order of the stream: of duplicates the first in it stays.
        settings: As ``pipelines.recipe.filters.Filters`` dumps them: filter → its settings or None.
        run: Maps a pure function over tasks, in order: ``map``, or ``ray_map`` with its workers given.

    Raises:
        DataError: For a file of hashes that cannot be read.
    """
    asked = {name: settings[name] for name in FILTERS if settings.get(name) is not None}
    stream = _Stream.scanned(readers, asked, run)
    if "duplicates" in asked:
        stream.remove_duplicates()
    if "near_duplicates" in asked:
        stream.remove_near_duplicates(asked["near_duplicates"])
    keep = {source: stream.fate[place] == KEPT for source, place in stream.places.items()}
    removed = RemovedRows(stream.removed(readers))
    assert len(removed) + sum(int(own.sum()) for own in keep.values()) == len(stream.fate), (
        "every sample is kept or listed"
    )
    return Filtered(keep=keep, removed=removed, report=_report(removed, asked, readers))


def write_filtered(path: Folder, removed: RemovedRows) -> None:
    """Writes the table of removed samples atomically."""
    with create(path) as output:
        pq.write_table(removed.table, output, compression="zstd")


class _Stream:
    """All samples of all sources one after the other, and what is known of them: some 60 bytes each."""

    def __init__(self, sources: Mapping[str, int], found: Sequence[Scanned]) -> None:
        self.places: dict[str, slice] = {}
        start = 0
        for source, rows in sources.items():
            self.places[source] = slice(start, start + rows)
            start += rows
        self.fate = np.concatenate([np.empty(0, np.int8), *(part.fate for part in found)])
        self._found = found
        self.details: dict[int, str] = {}
        start = 0
        for part in found:
            self.details |= {start + row: detail for row, detail in part.details.items()}
            start += len(part.fate)
        assert start == len(self.fate) == sum(sources.values()), "every sample is scanned once"

    @classmethod
    def scanned(cls, readers: Mapping[str, CleanReader], settings: Settings, run: Run) -> _Stream:
        tasks = [
            ScanTask(
                source=source,
                reader=reader,
                start=start,
                stop=min(start + ROWS_PER_SCAN, len(reader)),
                settings=settings,
            )
            for source, reader in readers.items()
            for start in range(0, len(reader), ROWS_PER_SCAN)
        ]
        sizes = {source: len(reader) for source, reader in readers.items()}
        return cls(sizes, list(run(scan_rows, tasks)) if settings else _nothing_asked(sizes))

    def _joined(self, name: str, empty: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([empty, *(getattr(part, name) for part in self._found)])

    def remove_duplicates(self) -> None:
        """Removes what is equal to an earlier sample."""
        keys = self._joined("keys", np.empty((0, 2), np.uint64))
        compared = np.flatnonzero((self.fate == KEPT) & keys.any(axis=1))
        first = compared[first_equal(keys[compared])]
        for number, original in zip(compared.tolist(), first.tolist(), strict=True):
            if original != number:
                self._remove(number, "duplicates", f"equal to {self._name(original)}")

    def remove_near_duplicates(self, settings: Settings) -> None:
        """Removes what looks like an earlier sample with as many pictures."""
        count = self._joined("pictures", np.empty(0, np.int32))
        hashes = self._joined("phashes", np.empty(0, np.uint64))
        begin = np.cumsum(count) - count
        texts = self._joined("texts", np.empty(0, np.uint64)).view(np.int64)
        for pictures in np.unique(count[count > 0]).tolist():
            compared = np.flatnonzero((self.fate == KEPT) & (count == pictures))
            own = hashes[begin[compared, None] + np.arange(pictures)]
            groups = texts[compared] if settings["of"] == "pictures_and_text" else None
            nearest = earlier_neighbours(own, settings["distance"], groups)
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
        for source, place in self.places.items():
            rows = np.flatnonzero(self.fate[place] != KEPT)
            columns = {
                "source": pa.array([source] * len(rows), pa.string()),
                "row": pa.array(rows, pa.int64()),
                "sample_id": pa.array(_sample_ids(readers[source], rows), pa.string()),
                "filter": pa.array([FILTERS[fate] for fate in self.fate[place][rows]], pa.string()),
                "detail": pa.array([self.details[place.start + row] for row in rows.tolist()], pa.string()),
            }
            parts.append(pa.table(columns, schema=FILTERED_SCHEMA))
        return pa.concat_tables(parts)

    def _remove(self, number: int, name: str, detail: str) -> None:
        self.fate[number] = FILTERS.index(name)
        self.details[number] = detail

    def _name(self, number: int) -> str:
        source = next(source for source, place in self.places.items() if number < place.stop)
        return f"row {number - self.places[source].start} of {source}"


def _nothing_asked(sizes: Mapping[str, int]) -> list[Scanned]:
    rows = sum(sizes.values())
    none = np.zeros(0, np.uint64)
    return [
        Scanned(
            fate=np.full(rows, KEPT, np.int8),
            details={},
            keys=none.reshape(0, 2),
            texts=none,
            pictures=none.astype(np.int32),
            phashes=none,
        )
    ]


def _sample_ids(reader: CleanReader, rows: NDArray[np.int64]) -> Iterator[str]:
    """Ids of ascending rows; each record batch is opened once."""
    ids, first = pa.array([], pa.string()), 0
    for row in rows.tolist():
        if row >= first + len(ids):
            batch, place = reader.locate(row)
            ids, first = batch.column("sample_id"), row - place
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
