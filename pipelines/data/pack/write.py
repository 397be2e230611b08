"""Writing packs as a pipeline of shards: encoded samples of planned sequences → sequences → a packed shard.

Shape suffixes: D documents of a shard, S sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.data.pack.accounting import checksum, planned_checksum
from pipelines.data.pack.assemble import Documents, assemble
from pipelines.data.pack.encode import ENCODED
from pipelines.data.pack.encode_shards import encoded_path
from pipelines.data.pack.plan import EncodedSamples, Int32s, Ints, Plan, ends
from pipelines.data.pack.sequences import ENCODED_SCHEMA, PACK_SCHEMA
from pipelines.data.store.readers import ShardReader
from pipelines.data.store.shard_pipeline import ShardPipeline, write_report
from pipelines.data.store.shard_writing import write_batches
from pipelines.storage.uri import Folder

_ENCODED = pa.struct([*ENCODED_SCHEMA, ("source", pa.string()), ("occurrence", pa.int32())])
_RECORDS = pa.schema([("documents", pa.list_(_ENCODED)), ("video", pa.bool_())])
"""A sequence as the documents that it is made of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteTask:
    """One shard of packed sequences to write.

    Attributes:
        shard_D, row_D: Encoded shard of each document, and its row there.
        occurrence_D: Pass over the data that each document belongs to, from 0.
        offsets_S: Document at which each sequence starts, and D at the end.
        video_S: Which sequences are videos.
    """

    shard_D: Int32s
    row_D: Int32s
    occurrence_D: Int32s
    offsets_S: Ints
    video_S: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Written:
    """A packed shard that is whole: its file, rows, and the checksum of the documents in it."""

    file: str
    rows: int
    checksum: int


class WriteTasks(Mapping[str, WriteTask]):
    """The tasks of a plan by the names of their shards, each made when it is asked for: together they would
    repeat the whole plan."""

    def __init__(self, encoded: EncodedSamples, plan: Plan, per_shard: int) -> None:
        self._encoded, self._plan, self._per_shard = encoded, plan, per_shard
        count = -(-len(plan) // per_shard)
        self._numbers = {f"packed-{number:05d}": number for number in range(count)}

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __getitem__(self, name: str) -> WriteTask:
        start, stop = self._span(name)
        plan, encoded = self._plan, self._encoded
        offsets_S = plan.offsets_S[start : stop + 1]
        members = slice(offsets_S[0], offsets_S[-1])
        samples_D = plan.sample_M[members]
        shard_D = np.searchsorted(encoded.shard_starts, samples_D, side="right") - 1
        return WriteTask(
            shard_D=shard_D.astype(np.int32),
            row_D=(samples_D - encoded.shard_starts[shard_D]).astype(np.int32),
            occurrence_D=plan.occurrence_M[members].copy(),
            offsets_S=offsets_S - offsets_S[0],
            video_S=plan.video_S[start:stop].copy(),
        )

    def planned_checksum(self, name: str) -> int:
        """The checksum that a shard's documents must have."""
        return planned_checksum(self._encoded, self._plan, *self._span(name))

    def _span(self, name: str) -> tuple[int, int]:
        start = self._numbers[name] * self._per_shard
        return start, min(start + self._per_shard, len(self._plan))


class PackShards(ShardPipeline[WriteTask]):
    """The pipeline that gathers encoded samples into packed shards.

    A shard holds ids alone, and its documents lie anywhere in the encoded shards: it is gathered whole, and
    comes to the other steps in one block.

    Args:
        output: The artifact.
        sources: Names, in the recipe's order.
        metadata: Entries for the shards' schema.
    """

    records, rows = _RECORDS, PACK_SCHEMA
    block_bytes = 2 << 30
    activity = "wrote packed sequences"
    remedy = "Run fewer workers on a node, or give them more memory."

    def __init__(self, output: Folder, sources: Sequence[str], metadata: Mapping[str, str]) -> None:
        self._output, self._sources = output, tuple(sources)
        self._schema = PACK_SCHEMA.with_metadata({**(PACK_SCHEMA.metadata or {}), **metadata})

    def read(self, task: WriteTask) -> Iterator[pa.Table]:
        """The sequences of a shard; each encoded shard is opened once, only its rows are copied."""
        documents = pa.ListArray.from_arrays(
            pa.array(task.offsets_S.astype(np.int32)), self._documents(task), type=_RECORDS.field(0).type
        )
        yield pa.Table.from_arrays([documents, pa.array(task.video_S)], schema=_RECORDS)

    def convert(self, records: pa.Table) -> Iterator[pa.Table]:
        """Joins the documents of each sequence."""
        for batch in records.to_batches():
            documents = pa.RecordBatch.from_struct_array(batch.column("documents").flatten())
            packed = assemble(
                Documents(
                    rows=documents.select(ENCODED_SCHEMA.names),
                    source_D=documents.column("source"),
                    occurrence_D=documents.column("occurrence").to_numpy(),
                    offsets_S=ends(batch.column("documents").value_lengths().to_numpy()),
                    video_S=batch.column("video").to_numpy(zero_copy_only=False),
                )
            )
            yield pa.Table.from_batches([packed])

    def open(self, name: str) -> _PackedSink:
        """Begins a shard and its report."""
        return _PackedSink(self._output, name, self._schema, self._sources)

    def _documents(self, task: WriteTask) -> pa.StructArray:
        """The task's documents in packed order, as ``_ENCODED``."""
        order = np.lexsort((task.row_D, task.shard_D))
        shards, starts = np.unique(task.shard_D[order], return_index=True)
        found: list[pa.RecordBatch] = []
        sources: list[str] = []
        for shard, rows in zip(shards.tolist(), np.split(task.row_D[order], starts[1:]), strict=True):
            reader = ShardReader([encoded_path(self._output, shard)], ENCODED)
            found += _taken(reader, rows)
            sources += [reader.metadata["casa.source"]] * len(rows)
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        plain = [batch.replace_schema_metadata() for batch in found]  # theirs names a source
        rows = pa.concat_batches(plain).take(pa.array(back))
        source_D = pa.array(sources, pa.string()).take(pa.array(back))
        columns = [*rows.columns, source_D, pa.array(task.occurrence_D, pa.int32())]
        return pa.StructArray.from_arrays(columns, fields=list(_ENCODED))


class _PackedSink:
    """Writes a shard at its end, and sums up the documents in it."""

    def __init__(self, output: Folder, name: str, schema: pa.Schema, sources: Sequence[str]) -> None:
        self._output, self._name, self._schema, self._sources = output, name, schema, sources
        self._packed: list[pa.RecordBatch] = []

    def add(self, rows: pa.Table) -> None:
        """Takes packed sequences."""
        self._packed += rows.to_batches()

    def finish(self) -> bytes:
        """Writes the shard; returns its report."""
        file = f"{self._name}.arrow"
        rows = write_batches(self._output / file, self._schema, self._packed)
        checksum = sum(_checksum(batch, self._sources) for batch in self._packed) % 2**64
        return write_report(self._output, self._name, asdict(Written(file, rows, checksum)))

    def abort(self) -> None:
        """Nothing was written yet."""


def _taken(reader: ShardReader, rows: NDArray[np.integer]) -> Iterator[pa.RecordBatch]:
    """Some rows of a shard, ascending, one batch per batch of the file."""
    at = 0
    while at < len(rows):
        batch, index = reader.locate(int(rows[at]))
        first = int(rows[at]) - index
        end = int(np.searchsorted(rows, first + batch.num_rows, side="left"))
        yield batch.take(pa.array(rows[at:end] - first))
        at = end


def _checksum(packed: pa.RecordBatch, sources: Sequence[str]) -> int:
    """The checksum of the documents that were written, not of those in the plan."""
    documents = packed.column("documents").flatten()
    number_of = pa.array(sources, pa.string())
    source, row, part, occurrence = (
        documents.field(name) for name in ("source", "row", "part", "occurrence")
    )
    numbers = pc.index_in(source, value_set=number_of)  # pyright: ignore[reportAttributeAccessIssue]
    return checksum(*(column.to_numpy(zero_copy_only=False) for column in (numbers, row, part, occurrence)))
