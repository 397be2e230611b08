"""Encoding as a pipeline of shards: rows of a clean artifact → encoded samples → a shard for packing."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.data.pack.budgets import Limits
from pipelines.data.pack.encode import SPLIT, encode_sample
from pipelines.data.pack.processor import Encoding, load_processor
from pipelines.data.pack.sequences import ENCODED_SCHEMA
from pipelines.data.pack.video_counts import VideoCounts
from pipelines.data.store.quarantine import (
    REJECT,
    REJECT_FIELD,
    Rejected,
    Tally,
    rejected_table,
    split_rejected,
    write_quarantine,
)
from pipelines.data.store.readers import CleanReader
from pipelines.data.store.rows import LAYOUT_SCHEMA, CleanSample, Row
from pipelines.data.store.shard_pipeline import ShardPipeline, write_report
from pipelines.data.store.shard_writing import ROWS_PER_BATCH, ShardFile
from pipelines.storage.uri import Folder

ENCODED_FOLDER = ".encoded"
_RECORDS = pa.schema([("row", pa.int32()), *LAYOUT_SCHEMA])
_ROWS = pa.schema([*ENCODED_SCHEMA, REJECT_FIELD, ("videos", pa.string())])
"""``videos``: in the first row of a sample with a video, its counts as JSON."""
_COLUMNS: dict[str, Any] = {
    "row": np.int32,
    "part": np.int32,
    "text_tokens": np.int32,
    "image_tokens": np.int32,
    "video": np.bool_,
}


def encoded_path(output: Folder, shard: int) -> Folder:
    """Path of an encoded shard, which is removed once its samples are packed."""
    return output / ENCODED_FOLDER / f"{encoded_name(shard)}.arrow"


def encoded_name(shard: int) -> str:
    """The shard's name."""
    return f"encoded-{shard:06d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeTask:
    """Rows ``start`` to ``stop`` of a source's clean artifact.

    Attributes:
        keep: Which of these rows the filters kept; (stop − start,). The others are skipped.
    """

    source: str
    clean: Folder
    start: int
    stop: int
    keep: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeReport:
    """What became of a task's rows. E: encoded samples, in order; each piece of a split one counts.

    Attributes:
        row_E, part_E: Row of the clean artifact, and piece of its sample.
        text_E, image_E: Tokens.
        video_E: Which are videos.
        rejected: Rows that are quarantined; a table beside the shard lists the reasons.
        tally: The same rows, counted by reason.
        videos: What was done to fit videos to their budget.
    """

    row_E: NDArray[np.int32]
    part_E: NDArray[np.int32]
    text_E: NDArray[np.int32]
    image_E: NDArray[np.int32]
    video_E: NDArray[np.bool_]
    rejected: NDArray[np.int32]
    tally: Tally
    videos: VideoCounts

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EncodeReport:
        """The report that a shard's file holds."""
        columns: list[Any] = [
            np.frombuffer(base64.b64decode(values["columns"][name]), dtype)
            for name, dtype in _COLUMNS.items()
        ]
        row, part, text, image, video = columns
        return cls(
            row_E=row,
            part_E=part,
            text_E=text,
            image_E=image,
            video_E=video,
            rejected=np.array(values["rejected"], np.int32),
            tally=Tally.from_json(values),
            videos=VideoCounts(**values["videos"]),
        )


class EncodeShards(ShardPipeline[EncodeTask]):
    """The pipeline of all sources.

    Args:
        output: The artifact.
        encoding: How samples become ids.
        limits: Budgets of a sequence.
        sources: Each shard's source.
    """

    records, rows = _RECORDS, _ROWS
    activity = "encoded samples"
    remedy = "Run fewer workers on a node, or give them more memory."

    def __init__(
        self, output: Folder, encoding: Encoding, limits: Limits, sources: Mapping[str, str]
    ) -> None:
        self._output, self._encoding, self._limits, self._sources = output, encoding, limits, sources

    def read(self, task: EncodeTask) -> Iterator[pa.Table]:
        """The rows that were kept, without the bytes of their media."""
        reader = CleanReader(task.clean, SPLIT)
        number_R = task.start + np.flatnonzero(task.keep)
        at = task.start
        for batch in reader.batches(task.start, task.stop):
            own_R = number_R[(number_R >= at) & (number_R < at + len(batch))]
            if len(own_R):
                kept = batch.take(pa.array(own_R - at))
                row = pa.array(own_R, pa.int32())
                yield pa.Table.from_arrays([row, *kept.columns], schema=_RECORDS)
            at += len(batch)

    def convert(self, records: pa.Table) -> Iterator[pa.Table]:
        """Tokenizes every sample; one row per piece, or a rejection."""
        processor = load_processor(self._encoding)
        for batch in records.to_batches(max_chunksize=ROWS_PER_BATCH):
            rows: list[Row] = []
            for record in batch.to_pylist():
                clean = CleanSample.from_row(record)
                result = encode_sample(processor, record["row"], clean, self._limits)
                if isinstance(result, Rejected):
                    rows.append({REJECT: asdict(result)})
                    continue
                videos = VideoCounts()
                videos.count(clean.sample, result)
                counted = {"videos": json.dumps(asdict(videos))} if videos.videos else {}
                rows += [result[0] | counted, *result[1:]]
            yield pa.Table.from_pylist(rows, schema=_ROWS)

    def open(self, name: str) -> _EncodedSink:
        """Begins a shard, its table of rejected samples and its report."""
        return _EncodedSink(self._output, name, self._sources[name])


class _EncodedSink:
    """Writes a shard, and keeps the numbers by which its samples are packed."""

    def __init__(self, output: Folder, name: str, source: str) -> None:
        self._output, self._name = output, name
        schema = ENCODED_SCHEMA.with_metadata({**(ENCODED_SCHEMA.metadata or {}), "casa.source": source})
        self._shard = ShardFile(output / ENCODED_FOLDER / f"{name}.arrow", schema, even=ROWS_PER_BATCH)
        self._columns: dict[str, list[NDArray[Any]]] = {name: [] for name in _COLUMNS}
        self._rejected: list[Rejected] = []
        self._videos = VideoCounts()

    def add(self, rows: pa.Table) -> None:
        """Splits off what was rejected, and writes the rest."""
        for batch in rows.to_batches():
            encoded, rejected = split_rejected(batch)
            self._rejected += rejected
            for counts in encoded.column("videos").drop_null().to_pylist():
                self._videos.add(VideoCounts(**json.loads(counts)))
            for name, dtype in _COLUMNS.items():
                column = encoded.column(name).to_numpy(zero_copy_only=False)
                self._columns[name].append(column.astype(dtype))
            self._shard.add(encoded.drop_columns(["videos"]))

    def finish(self) -> bytes:
        """Completes shard and table; returns the report."""
        self._shard.finish()
        write_quarantine(rejected_table(self._output, self._name), self._rejected)
        columns = {
            name: base64.b64encode(
                np.concatenate([np.empty(0, dtype), *self._columns[name]]).tobytes()
            ).decode()
            for name, dtype in _COLUMNS.items()
        }
        report = {
            "rejected": [entry.row for entry in self._rejected],
            "videos": asdict(self._videos),
            "columns": columns,
        }
        return write_report(self._output, self._name, Tally.of(self._rejected).to_json() | report)

    def abort(self) -> None:
        """Discards the shard."""
        self._shard.abort()


def _text(numbers: NDArray[Any]) -> str:
    return base64.b64encode(numbers.tobytes()).decode("ascii")
