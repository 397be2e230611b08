"""The byte layout of an Arrow IPC file: footer, batches and buffers, to read parts of it over a network.

Arrow's own reader wants a whole record batch, or one request for every buffer of it. Here a batch is laid out
over memory that nothing has filled yet; the buffers that are wanted are then read into their places, few
requests for many buffers, and those that are not wanted (pictures) cost neither memory nor a transfer.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

MAGIC = b"ARROW1"
TAIL_BYTES = 64 << 10
GAP_BYTES = 256 << 10
"""Two pieces nearer than this are read in one request: what lies between costs less than another one."""

Span = tuple[int, int]
"""Start and end of some bytes."""


@dataclass(frozen=True, slots=True)
class Block:
    """One record batch of a file: its header at ``offset``, and its buffers after it; all in bytes."""

    offset: int
    header: int
    body: int

    @property
    def header_span(self) -> Span:
        """Bytes of the header in the file."""
        return self.offset, self.offset + self.header

    @property
    def span(self) -> Span:
        """Bytes of the header and the buffers in the file."""
        return self.offset, self.offset + self.header + self.body


def footer_size(tail: bytes) -> int:
    """Bytes of a file's footer and all after it, from the file's last bytes.

    Raises:
        ValueError: If they are not the end of an Arrow file.
    """
    if len(tail) < 10 or not tail.endswith(MAGIC):
        raise ValueError("It does not end as an Arrow file does.")
    return struct.unpack("<i", tail[-10:-6])[0] + 10


def read_footer(tail: bytes) -> tuple[pa.Schema, list[Block]]:
    """The schema and the record batches of a file, from its last bytes, the whole footer among them.

    Arrow's own reader knows the schema, but does not tell where batches lie; of the footer's flatbuffer, its
    fourth field is a vector of structs {offset: int64, header: int32, padding, body: int64}.
    """
    schema = pa.ipc.open_file(pa.BufferReader(tail)).schema
    footer = tail[-footer_size(tail) : -10]
    (root,) = struct.unpack_from("<I", footer, 0)
    vtable = root - struct.unpack_from("<i", footer, root)[0]
    (table_size,) = struct.unpack_from("<H", footer, vtable)
    field = vtable + 4 + 2 * 3
    (place,) = struct.unpack_from("<H", footer, field) if field < vtable + table_size else (0,)
    if not place:
        return schema, []
    vector = root + place + struct.unpack_from("<I", footer, root + place)[0]
    (count,) = struct.unpack_from("<I", footer, vector)
    blocks = struct.iter_unpack("<qi4xq", footer[vector + 4 : vector + 4 + 24 * count])
    return schema, [Block(*values) for values in blocks]


class Sketch:
    """A record batch whose buffers are laid out in memory and not yet filled.

    Args:
        schema: The file's schema.
        block: The batch's offsets.
        header: The bytes of the batch's header.

    Attributes:
        batch: Over that memory; before it is filled, only its number of rows and its buffers' sizes are true.
        filled: How many bytes were filled in.
    """

    def __init__(self, schema: pa.Schema, block: Block, header: bytes) -> None:
        self._block = block
        size = block.header + block.body
        # Private pages of zeros: they take memory when they are written, and no sooner.
        self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._memory[: block.header] = header
        self._spans: list[Span] = []
        self.filled = len(header)
        whole = pa.py_buffer(self._memory)
        self._address = whole.address
        message = pa.ipc.read_message(pa.BufferReader(whole))
        self.batch: pa.RecordBatch = pa.ipc.read_record_batch(message, schema)

    def span_of(self, buffer: pa.Buffer) -> Span:
        """Where in the file a buffer of the batch lies."""
        start = buffer.address - self._address
        if not 0 <= start <= start + buffer.size <= len(self._memory):
            raise ValueError("Its buffers are compressed, and cannot be read one by one.")
        return self._block.offset + start, self._block.offset + start + buffer.size

    def buffers(self, without: Iterable[pa.Buffer] = ()) -> list[Span]:
        """Where in the file all buffers of the batch lie, but for some."""
        left_out = {buffer.address for buffer in without}
        found = (buffer for column in self.batch.columns for buffer in column.buffers())
        return [self.span_of(each) for each in found if each is not None and each.address not in left_out]

    def fill(self, span: Span, data: bytes) -> None:
        """Puts bytes of the file into their place."""
        start = span[0] - self._block.offset
        self._memory[start : start + len(data)] = data
        self._spans.append(span)
        self.filled += len(data)

    def read(self, span: Span) -> bytes | None:
        """Bytes of the file that were filled in; ``None`` where they were not."""
        if not any(start <= span[0] and span[1] <= end for start, end in self._spans):
            return None
        return self._memory[span[0] - self._block.offset : span[1] - self._block.offset]


def row_count(schema: pa.Schema, block: Block, header: bytes) -> int:
    """Rows of a batch, from its header."""
    return Sketch(schema, block, header).batch.num_rows


def merged(spans: Iterable[Span], gap: int = GAP_BYTES) -> list[Span]:
    """Spans joined with their near neighbours, in ascending order."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1] + gap:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def gather(
    spans: Sequence[Span], read_all: Callable[[Sequence[Span]], Sequence[bytes]], gap: int = GAP_BYTES
) -> list[bytes]:
    """The bytes of each span, in few reads.

    Args:
        spans: In any order.
        read_all: Reads some spans that are far from each other.
        gap: See ``GAP_BYTES``.
    """
    wide = merged(spans, gap)
    found = list(zip(wide, read_all(wide), strict=True))
    pieces = []
    for start, end in spans:
        (first, _), data = next(entry for entry in found if entry[0][0] <= start and end <= entry[0][1])
        pieces.append(data[start - first : end - first])
    return pieces
