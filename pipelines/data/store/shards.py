"""One Arrow IPC file of rows, open: mapped where it is local, read in pieces where it is on S3."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from itertools import accumulate
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import pyarrow as pa

from casa_core.errors import StoreError
from pipelines.data.store.ipc_layout import (
    TAIL_BYTES,
    Sketch,
    Span,
    footer_size,
    gather,
    merged,
    read_footer,
    row_count,
)
from pipelines.storage.remote_path import RemotePath
from pipelines.storage.transfer import side_by_side
from pipelines.storage.uri import Folder

BATCH_ROWS = "casa.batch_rows"
"""Key of a schema's metadata: rows of every batch but the last, where they are equally long."""

Value = TypeVar("Value")
LeaveOut = Callable[[pa.RecordBatch], Sequence[pa.Buffer]]
"""Which buffers of a batch are too large to be read with the others."""


class Batch(Protocol):
    """A record batch of an open file.

    Attributes:
        rows: The batch. Buffers that were to be left out are there, and hold nothing yet.
        weight: Bytes of memory that it takes.
    """

    rows: pa.RecordBatch
    weight: int

    def pieces(self, buffer: pa.Buffer, spans: Sequence[Span]) -> list[bytes]:
        """Parts of one of its buffers, also of one that was left out; spans count from the buffer's start."""
        ...


class Shard(Protocol):
    """An open file of rows.

    Attributes:
        metadata: Metadata of the schema.
        ends: Number of the row after each batch's last.
    """

    metadata: dict[str, str]
    ends: list[int]

    def batch(self, number: int) -> Batch:
        """One of its batches."""
        ...


class LRUCache(Generic[Value]):
    """The values last used, as many as weigh no more than ``limit`` together.

    Threads may share it: what several ask for at once is made once.
    """

    def __init__(self, limit: int, weight_of: Callable[[Value], int]) -> None:
        self._limit, self._weight_of = limit, weight_of
        self._weight = 0
        self._values: OrderedDict[Hashable, Future[Value]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of a key; from ``make`` where it is not at hand."""
        own: Future[Value] = Future()
        with self._lock:
            future = self._values.setdefault(key, own)
            self._values.move_to_end(key)
        if future is not own:
            return future.result()
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                del self._values[key]
            own.set_exception(error)
            raise
        own.set_result(value)
        self._make_room(self._weight_of(value))
        return value

    def _make_room(self, added: int) -> None:
        with self._lock:
            self._weight += added
            for key in list(self._values)[:-1]:
                if self._weight <= self._limit:
                    return
                if self._values[key].done():
                    self._weight -= self._weight_of(self._values.pop(key).result())


def open_shard(
    path: Folder, cache: LRUCache[Batch], leave_out: LeaveOut | None = None, rows: int | None = None
) -> Shard:
    """Opens a file.

    Args:
        cache: Keeps batches that came from S3; the reader's, so that its files share one bound.
        leave_out: Buffers that :meth:`Shard.batch` need not read.
        rows: How many it holds, where that is known; spares asking.

    Raises:
        StoreError: If it is missing, cut or not an Arrow file.
    """
    try:
        shard = _open(path, cache, leave_out, rows)
    except FileNotFoundError as error:
        raise StoreError(
            f"The shard {path} is missing.",
            "The artifact's index names it.",
            "Remove the folder and run again.",
        ) from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StoreError(
            f"The shard {path} is damaged.", str(error), "Remove the folder and run again."
        ) from error
    found = shard.ends[-1] if shard.ends else 0
    if rows is not None and found != rows:
        raise StoreError(
            f"The shard {path} holds {found} rows.",
            f"The artifact's index promises {rows}.",
            "Remove the folder and run again.",
        )
    return shard


def _open(path: Folder, cache: LRUCache[Batch], leave_out: LeaveOut | None, rows: int | None) -> Shard:
    return _RemoteShard(path, cache, leave_out, rows) if isinstance(path, RemotePath) else _LocalShard(path)


def _texts(metadata: dict[bytes, bytes] | None) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in (metadata or {}).items()}


class _LocalBatch:
    weight = 0  # The pages are the kernel's, which takes them back when it likes.

    def __init__(self, rows: pa.RecordBatch) -> None:
        self.rows = rows

    def pieces(self, buffer: pa.Buffer, spans: Sequence[Span]) -> list[bytes]:
        return [buffer[start:end].to_pybytes() for start, end in spans]


class _LocalShard:
    """A mapped file: only what is looked at is read, and the kernel keeps it."""

    def __init__(self, path: Path) -> None:
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        self.metadata = _texts(file.schema.metadata)
        self._batches = [_LocalBatch(file.get_batch(number)) for number in range(file.num_record_batches)]
        self.ends = list(accumulate(batch.rows.num_rows for batch in self._batches))

    def batch(self, number: int) -> Batch:
        return self._batches[number]


class _RemoteBatch:
    """A batch of which all was read that was not left out."""

    def __init__(self, path: RemotePath, sketch: Sketch) -> None:
        self._path, self._sketch = path, sketch
        self.rows = sketch.batch
        self.weight = sketch.filled

    def pieces(self, buffer: pa.Buffer, spans: Sequence[Span]) -> list[bytes]:
        first, _ = self._sketch.span_of(buffer)
        wanted = [(first + start, first + end) for start, end in spans]
        at_hand = [self._sketch.read(span) for span in wanted]
        missing = [span for span, data in zip(wanted, at_hand, strict=True) if data is None]
        found = iter(gather(missing, lambda wide: _read_all(self._path, wide)))
        return [next(found) if data is None else data for data in at_hand]


class _RemoteShard:
    """A file on S3: its footer when it is opened, then what is asked for, in few requests."""

    def __init__(
        self, path: RemotePath, cache: LRUCache[Batch], leave_out: LeaveOut | None, rows: int | None
    ) -> None:
        self._path, self._cache, self._leave_out = path, cache, leave_out
        tail = path.read_tail(TAIL_BYTES)
        if footer_size(tail) > len(tail):
            tail = path.read_tail(footer_size(tail))
        self._schema, self._blocks = read_footer(tail)
        self.metadata = _texts(self._schema.metadata)
        self._headers: dict[int, bytes] = {}
        self.ends = self._row_ends(rows)

    def batch(self, number: int) -> Batch:
        return self._cache.get((self._path.key, number), lambda: self._read(number))

    def _read(self, number: int) -> Batch:
        block = self._blocks[number]
        if self._leave_out is None:
            (data,) = _read_all(self._path, [block.span])
            sketch = Sketch(self._schema, block, data[: block.header])
            sketch.fill(block.span, data)
            return _RemoteBatch(self._path, sketch)
        sketch = Sketch(self._schema, block, self._header(number))
        spans = merged(sketch.buffers(without=self._leave_out(sketch.batch)))
        for span, data in zip(spans, _read_all(self._path, spans), strict=True):
            sketch.fill(span, data)
        return _RemoteBatch(self._path, sketch)

    def _row_ends(self, rows: int | None) -> list[int]:
        each = int(self.metadata.get(BATCH_ROWS, 0))
        if each and rows is not None:
            return [min(each * (n + 1), rows) for n in range(len(self._blocks))]
        spans = [block.header_span for block in self._blocks]
        self._headers = dict(enumerate(_read_all(self._path, spans)))
        counts = (row_count(self._schema, self._blocks[n], header) for n, header in self._headers.items())
        return list(accumulate(counts))

    def _header(self, number: int) -> bytes:
        if number not in self._headers:
            (self._headers[number],) = _read_all(self._path, [self._blocks[number].header_span])
        return self._headers[number]


def _read_all(path: RemotePath, spans: Sequence[Span]) -> list[bytes]:
    return side_by_side(lambda span: path.read_range(*span), spans, "s3-read")
