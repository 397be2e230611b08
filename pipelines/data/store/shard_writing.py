"""Rows into Arrow shards, on a disk or on S3: written whole or not at all, the digest taken on the way."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.data.store.shards import BATCH_ROWS
from pipelines.storage.atomic import create, remember, write_whole
from pipelines.storage.uri import Folder

CARD = "card.json"
INDEX = "index.json"
KINDS_FILE = "kinds.npy"
KINDS = ("image", "video")
ROWS_PER_BATCH = 256
BYTES_PER_BATCH = 16 << 20
PACKED_ROWS_PER_BATCH = 32
"""A sequence is read at random, with its whole batch where that lies on S3: some hundred kilobytes."""
Row = dict[str, Any]


def write_shard(
    path: Folder, schema: pa.Schema, rows: Iterable[Row], size_of: Callable[[Row], int] | None = None
) -> int:
    """Writes one Arrow IPC file, which appears whole when all rows are in it.

    Args:
        path: The file; an earlier one is replaced.
        schema: Schema of the rows, with its version in the metadata.
        rows: In order; consumed in batches, so that memory does not grow with the shard.
        size_of: Bytes of a row, where rows can be large; a batch ends at the row that takes it to
            ``BYTES_PER_BATCH``, and at the rows without bytes that follow it: they may refer to its.

    Returns:
        How many rows were written.
    """
    even = None if size_of else ROWS_PER_BATCH
    with _writing(path, schema, even) as write:
        batch: list[Row] = []
        size = count = 0
        for row in rows:
            own = size_of(row) if size_of is not None else 0
            if len(batch) == ROWS_PER_BATCH or (size >= BYTES_PER_BATCH and own):
                count += write(pa.RecordBatch.from_pylist(batch, schema=schema))
                batch, size = [], 0
            batch.append(row)
            size += own
        if batch:
            count += write(pa.RecordBatch.from_pylist(batch, schema=schema))
    return count


def write_batches(
    path: Folder,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    rows_per_batch: int | None = None,
) -> int:
    """As :func:`write_shard`, from rows that are in columns already; returns how many there were.

    Args:
        rows_per_batch: Rows per batch in the file, whatever those of the given batches; by default
            ``PACKED_ROWS_PER_BATCH``.
    """
    count, each = 0, rows_per_batch or PACKED_ROWS_PER_BATCH
    with _writing(path, schema, each) as write:
        rest: list[pa.RecordBatch] = []
        for batch in batches:
            rest.append(batch.replace_schema_metadata(schema.metadata))
            if sum(part.num_rows for part in rest) < each:
                continue
            whole = pa.concat_batches(rest)
            end = whole.num_rows - whole.num_rows % each
            count += sum(write(whole.slice(start, each)) for start in range(0, end, each))
            rest = [whole.slice(end)]
        count += sum(write(part) for part in [pa.concat_batches(rest)] if part.num_rows) if rest else 0
    return count


@contextlib.contextmanager
def _writing(path: Folder, schema: pa.Schema, even: int | None) -> Iterator[Callable[[pa.RecordBatch], int]]:
    """Opens a shard for writing; ``even``: rows of each batch but the last, noted in the metadata."""
    metadata = dict(schema.metadata or {})
    if even:
        metadata[BATCH_ROWS.encode()] = str(even).encode()
    own = schema.with_metadata(metadata)
    with create(path) as output, pa.ipc.new_file(output, own) as writer:

        def write(batch: pa.RecordBatch) -> int:
            writer.write_batch(batch.replace_schema_metadata(own.metadata))
            return batch.num_rows

        yield write
    assert output.written is not None
    remember(path, output.written)


class ShardFile:
    """An Arrow IPC file being written from tables of any size; its batches depend on the rows alone.

    Args:
        path, schema: As of :func:`write_shard`.
        even: Rows of every batch, where a reader may count on it; by default a batch ends at
            ``ROWS_PER_BATCH`` rows, or at the row that takes it to ``BYTES_PER_BATCH``.
    """

    def __init__(self, path: Folder, schema: pa.Schema, even: int | None = None) -> None:
        self._schema, self._each = schema, even or ROWS_PER_BATCH
        self._stack = contextlib.ExitStack()
        self._write = self._stack.enter_context(_writing(path, schema, even))
        self._waiting: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0
        self.rows = 0

    def add(self, rows: pa.RecordBatch, size_R: NDArray[np.integer] | None = None) -> None:
        """Appends rows; ``size_R`` has the bytes of each (R,) where rows can be large."""
        start = 0
        for stop, size in enumerate(size_R if size_R is not None else np.zeros(len(rows), int), 1):
            if self._rows == self._each or (self._bytes >= BYTES_PER_BATCH and size):
                self._waiting.append(rows.slice(start, stop - 1 - start))
                self._flush()
                start = stop - 1
            self._rows += 1
            self._bytes += int(size)
        if start < len(rows):
            self._waiting.append(rows.slice(start))

    def finish(self) -> None:
        """Writes what waits; the file appears under its name."""
        if self._waiting:
            self._flush()
        self._stack.close()

    def abort(self) -> None:
        """Discards the file."""
        with contextlib.suppress(_Aborted), self._stack:
            raise _Aborted

    def _flush(self) -> None:
        # Also of one part a copy: a slice's bitmaps keep bits of its neighbours, which would be written, too.
        self.rows += self._write(pa.concat_batches(self._waiting))
        self._waiting, self._rows, self._bytes = [], 0, 0


class _Aborted(Exception):
    """Ends the block of a file that is not to appear."""


def json_bytes(value: Any) -> bytes:
    """A JSON document as our files hold it."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def write_json(path: Folder, value: Any) -> None:
    """Writes a JSON document atomically."""
    write_whole(path, json_bytes(value))


def write_index(
    folder: Folder, shards: Sequence[Mapping[str, Any]], kinds: NDArray[np.integer] | NDArray[np.bool_]
) -> None:
    """Writes the index of a pack artifact: which shard holds which sequences, and of what kind each is.

    One byte per sequence for the kinds, one line per shard for the rest: megabytes for 24 million pictures.

    Args:
        shards: ``file`` and ``rows`` of each, in order.
        kinds: Number in ``KINDS`` of each sequence's kind, in global order.
    """
    assert sum(shard["rows"] for shard in shards) == len(kinds), "a kind for every sequence"
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(kinds, np.uint8))
    write_whole(folder / KINDS_FILE, buffer.getvalue())
    counts = np.bincount(np.asarray(kinds, np.int64), minlength=len(KINDS)).tolist()
    listed = [{"file": shard["file"], "rows": shard["rows"]} for shard in shards]
    index = {"sequences": len(kinds), "kinds": dict(zip(KINDS, counts, strict=True)), "shards": listed}
    write_json(folder / INDEX, index)
