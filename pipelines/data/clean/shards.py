"""Cleaning as a pipeline of shards: records → verified rows → a shard, a table of rejected ones, a report."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.data.clean.records import SHRUNK, PictureLimits, clean_record
from pipelines.data.read import Reader, Record, Span
from pipelines.data.store.quarantine import (
    REJECT,
    REJECT_FIELD,
    Rejected,
    Tally,
    rejected_table,
    split_rejected,
    write_quarantine,
)
from pipelines.data.store.rows import CLEAN_SCHEMA, Row
from pipelines.data.store.shard_pipeline import ShardPipeline, write_report
from pipelines.data.store.shard_writing import ShardFile
from pipelines.data.store.shared_media import SharedMedia
from pipelines.storage.uri import Folder

RECORDS_PER_TABLE = 64
BYTES_PER_TABLE = 4 << 20

_RECORDS = pa.schema([("record", pa.large_binary()), ("media", pa.list_(pa.large_binary()))])
"""A record, or why there is none, as Python pickles it; the bytes of its media lie beside it."""
_ROWS = CLEAN_SCHEMA.append(REJECT_FIELD)
"""A row of the artifact, or only what became of a record that is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """One shard to write.

    Attributes:
        split: ``train`` or ``test``.
        number: The shard's number in its split.
        spans: The corpus's spans whose records it holds.
    """

    split: str
    number: int
    spans: tuple[Span, ...]

    @property
    def name(self) -> str:
        """The shard's file name without suffix."""
        return f"{self.split}-{self.number:05d}"

    @property
    def records(self) -> int:
        """Records of the spans, those that will be rejected included."""
        return sum(span.records for span in self.spans)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReport:
    """What became of a shard's records; the rejected ones themselves are in a table beside it.

    Attributes:
        rows: Rows written.
        bytes: Bytes of the media written.
        media: Pictures and videos written, by kind.
        without_pictures: Rows that have neither.
        shrunk: Pictures that were encoded anew, and the bytes they had before.
        shared: Pictures and videos whose bytes an earlier row has, and these bytes.
        rejected: The rejected records, counted.
    """

    split: str
    name: str
    rows: int
    bytes: int
    media: dict[str, int]
    without_pictures: int
    shrunk: dict[str, int]
    shared: dict[str, int]
    rejected: Tally

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ShardReport:
        """The report that a shard's file holds."""
        rejected = Tally.from_json(values["rejected"])
        return cls(**{name: value for name, value in values.items() if name != "rejected"}, rejected=rejected)


class CleanShards(ShardPipeline[ShardTask]):
    """The pipeline of one source.

    Args:
        reader: The reader of its corpus.
        limits: Bounds on its pictures' sizes.
        output: The artifact.
    """

    records, rows = _RECORDS, _ROWS
    remedy = "Lower the source's max_pixels, run fewer workers on a node, or give them more memory."

    def __init__(self, reader: Reader, limits: PictureLimits, output: Folder) -> None:
        self._reader, self._limits, self._output = reader, limits, output
        self.activity = f"cleaned the source {reader.source!r}"

    def read(self, task: ShardTask) -> Iterator[pa.Table]:
        """The records of a shard's spans; asserts that the reader yields each exactly once."""
        return _tables(_records(self._reader, task))

    def convert(self, records: pa.Table) -> Iterator[pa.Table]:
        """Decodes every picture; a row or a rejection for each record."""
        rows: list[Row] = []
        size = 0
        for pickled, media in zip(records.column("record"), records.column("media"), strict=True):
            row = _converted(_unpickled(pickled, media), self._limits)
            rows.append(row)
            size += sum(len(entry["bytes"]) for entry in row.get("media", ()))
            if size >= BYTES_PER_TABLE:
                yield pa.Table.from_pylist(rows, schema=_ROWS)
                rows, size = [], 0
        if rows:
            yield pa.Table.from_pylist(rows, schema=_ROWS)

    def open(self, name: str) -> _CleanSink:
        """Begins a shard, its table of rejected records and its report."""
        return _CleanSink(self._output, name)


def _records(reader: Reader, task: ShardTask) -> Iterator[Record | Rejected]:
    for span in task.spans:
        seen = bytearray(span.records)
        for record in reader.read(span):
            seen[record.row - span.start] += 1
            yield record
        assert seen.count(1) == span.records, f"{span.file}: every record from {span.start} on comes once"


def _tables(records: Iterator[Record | Rejected]) -> Iterator[pa.Table]:
    columns: dict[str, list[Any]] = {name: [] for name in _RECORDS.names}
    size = 0
    for record in records:
        media = [entry.data for entry in record.media] if isinstance(record, Record) else []
        columns["record"].append(_pickled(record))
        columns["media"].append(media)
        size += sum(map(len, media))
        del record, media  # a video's bytes would be held twice
        if size >= BYTES_PER_TABLE or len(columns["media"]) == RECORDS_PER_TABLE:
            yield pa.table(columns, schema=_RECORDS)
            columns, size = {name: [] for name in _RECORDS.names}, 0
    if columns["media"]:
        yield pa.table(columns, schema=_RECORDS)


def _pickled(record: Record | Rejected) -> bytes:
    if isinstance(record, Record):
        record = replace(record, media=tuple(replace(entry, data=b"") for entry in record.media))
    return pickle.dumps(record, pickle.HIGHEST_PROTOCOL)


def _unpickled(pickled: pa.LargeBinaryScalar, media: pa.ListScalar) -> Record | Rejected:
    record = pickle.loads(pickled.as_buffer())
    if isinstance(record, Record):
        own = zip(record.media, media.as_py(), strict=True)
        record = replace(record, media=tuple(replace(entry, data=data) for entry, data in own))
    return record


def _converted(record: Record | Rejected, limits: PictureLimits) -> Row:
    """A row of ``_ROWS``."""
    clean = clean_record(record, limits) if isinstance(record, Record) else record
    return {REJECT: asdict(clean)} if isinstance(clean, Rejected) else clean.to_row()


class _CleanSink:
    """Writes a shard, and counts what is in it."""

    def __init__(self, output: Folder, name: str) -> None:
        self._output, self._name = output, name
        self._shard = ShardFile(output / f"{name}.arrow", CLEAN_SCHEMA)
        self._rejected: list[Rejected] = []
        self._kinds: Counter[str] = Counter()
        self._shrunk = {"pictures": 0, "bytes_before": 0}
        self._shared = SharedMedia()
        self._bytes = self._without_pictures = 0

    def add(self, rows: pa.Table) -> None:
        """Splits off what was rejected, and writes the rest."""
        for batch in rows.to_batches():
            clean, rejected = split_rejected(batch)
            self._rejected += rejected
            clean = self._shared.share(clean)
            size_R = _media_bytes(clean)
            self._count(clean, size_R)
            self._shard.add(clean, size_R)

    def finish(self) -> bytes:
        """Completes shard and table; returns the report."""
        self._shard.finish()
        write_quarantine(rejected_table(self._output, self._name), self._rejected)
        report = {
            "split": self._name.rpartition("-")[0],
            "name": self._name,
            "rows": self._shard.rows,
            "bytes": self._bytes,
            "media": dict(sorted(self._kinds.items())),
            "without_pictures": self._without_pictures,
            "shrunk": self._shrunk,
            "shared": {"media": self._shared.count, "bytes": self._shared.bytes},
            "rejected": Tally.of(self._rejected).to_json(),
        }
        return write_report(self._output, self._name, report)

    def abort(self) -> None:
        """Discards the shard."""
        self._shard.abort()

    def _count(self, clean: pa.RecordBatch, size_R: NDArray[np.int64]) -> None:
        self._bytes += int(size_R.sum())
        media = clean.column("media")
        self._kinds.update(media.flatten().field("kind").to_pylist())
        self._without_pictures += int(
            np.count_nonzero(media.value_lengths().to_numpy(zero_copy_only=False) == 0)
        )
        for meta in clean.column("meta").to_pylist():
            for replaced in json.loads(meta).get(SHRUNK, ()) if f'"{SHRUNK}"' in meta else ():
                self._shrunk["pictures"] += 1
                self._shrunk["bytes_before"] += replaced["bytes"]


def _media_bytes(clean: pa.RecordBatch) -> NDArray[np.int64]:
    """Bytes of each row's media; (R,)."""
    media = clean.column("media")
    found = pc.call_function("binary_length", [media.flatten().field("bytes")])
    sizes = found.fill_null(0).to_numpy(zero_copy_only=False)
    ends = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    last_R = np.cumsum(media.value_lengths().to_numpy(zero_copy_only=False), dtype=np.int64)
    return np.diff(ends[np.concatenate([[0], last_R])])
