"""Writes packed shards from planned sequences, one task per shard, from the encoded shards it needs.

Shape suffixes: D documents of a shard, S sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.data.pack.accounting import checksum, planned_checksum
from pipelines.data.pack.assemble import Documents, assemble
from pipelines.data.pack.encode import ENCODED
from pipelines.data.pack.plan import EncodedSamples, Int32s, Ints, Plan
from pipelines.data.pack.sequences import PACK_SCHEMA
from pipelines.data.store.readers import ShardReader
from pipelines.data.store.shard_task import REPORTS, write_once
from pipelines.data.store.shard_writing import write_batches
from pipelines.storage.uri import Folder

ENCODED_FOLDER = ".encoded"


def encoded_path(output: Folder, shard: int) -> Folder:
    """Path of an encoded shard, which is removed once its samples are packed."""
    return output / ENCODED_FOLDER / f"{shard:06d}.arrow"


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteTask:
    """One shard of packed sequences to write.

    Attributes:
        output: The artifact.
        number: The shard's number.
        sources: Names, in the recipe's order.
        shard_D, row_D: Encoded shard of each document, and its row there.
        occurrence_D: Pass over the data that each document belongs to, from 0.
        offsets_S: Document at which each sequence starts, and D at the end.
        video_S: Which sequences are videos.
        metadata: Entries for the shard's schema.
    """

    output: Folder
    number: int
    sources: tuple[str, ...]
    shard_D: Int32s
    row_D: Int32s
    occurrence_D: Int32s
    offsets_S: Ints
    video_S: NDArray[np.bool_]
    metadata: dict[str, str]

    @property
    def name(self) -> str:
        """The shard's file."""
        return f"packed-{self.number:05d}.arrow"


@dataclass(frozen=True, slots=True)
class Written:
    """A packed shard that is whole: its file, rows, and the checksum of the documents in it."""

    file: str
    rows: int
    checksum: int


class WriteTasks(Sequence[WriteTask]):
    """The tasks of a plan, each made when it is indexed: together they would repeat the whole plan."""

    def __init__(
        self, output: Folder, encoded: EncodedSamples, plan: Plan, metadata: dict[str, str], per_shard: int
    ) -> None:
        self._output, self._encoded, self._plan = output, encoded, plan
        self._metadata, self._per_shard = metadata, per_shard

    def __len__(self) -> int:
        return -(-len(self._plan) // self._per_shard)

    def __getitem__(self, number: int) -> WriteTask:  # pyright: ignore[reportIncompatibleMethodOverride]
        start, stop = self._span(number)
        plan, encoded = self._plan, self._encoded
        offsets_S = plan.offsets_S[start : stop + 1]
        members = slice(offsets_S[0], offsets_S[-1])
        samples_D = plan.sample_M[members]
        shard_D = np.searchsorted(encoded.shard_starts, samples_D, side="right") - 1
        return WriteTask(
            output=self._output,
            number=number,
            sources=encoded.sources,
            shard_D=shard_D.astype(np.int32),
            row_D=(samples_D - encoded.shard_starts[shard_D]).astype(np.int32),
            occurrence_D=plan.occurrence_M[members].copy(),
            offsets_S=offsets_S - offsets_S[0],
            video_S=plan.video_S[start:stop].copy(),
            metadata=self._metadata,
        )

    def planned_checksum(self, number: int) -> int:
        """The checksum that a shard's documents must have."""
        return planned_checksum(self._encoded, self._plan, *self._span(number))

    def _span(self, number: int) -> tuple[int, int]:
        if not 0 <= number < len(self):
            raise IndexError(f"There is no shard {number}, only {len(self)} in all.")
        start = number * self._per_shard
        return start, min(start + self._per_shard, len(self._plan))


def write_packed(task: WriteTask) -> Written:
    """Writes one shard and, last, a report of it, unless an earlier attempt did."""
    return Written(**write_once(task.output / REPORTS / f"{task.name}.json", lambda: _write(task)))


def _write(task: WriteTask) -> dict[str, Any]:
    packed = assemble(_documents(task))
    schema = PACK_SCHEMA.with_metadata({**(PACK_SCHEMA.metadata or {}), **task.metadata})
    write_batches(task.output / task.name, schema, [packed])
    return asdict(Written(task.name, packed.num_rows, _checksum(packed, task.sources)))


def _documents(task: WriteTask) -> Documents:
    """The task's documents in packed order; each encoded shard is opened once, only its rows are copied."""
    order = np.lexsort((task.row_D, task.shard_D))
    shards, starts = np.unique(task.shard_D[order], return_index=True)
    found: list[pa.RecordBatch] = []
    sources: list[str] = []
    for shard, rows in zip(shards.tolist(), np.split(task.row_D[order], starts[1:]), strict=True):
        reader = ShardReader([encoded_path(task.output, shard)], ENCODED)
        found += _taken(reader, rows)
        sources += [reader.metadata["casa.source"]] * len(rows)
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    plain = [batch.replace_schema_metadata() for batch in found]  # theirs names a source
    return Documents(
        rows=pa.concat_batches(plain).take(pa.array(back)),
        source_D=pa.array(sources, pa.string()).take(pa.array(back)),
        occurrence_D=task.occurrence_D,
        offsets_S=task.offsets_S,
        video_S=task.video_S,
    )


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
