"""Rows of parquet files: planned from the footers, read a few at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.read.source.base import BadRecord, RawMedia, Span, rest_of
from pipelines.data.read.source.files import Files, of_machine

ROWS_PER_BATCH = 16
"""Rows decoded at once: a row may hold a dozen pages of a document."""
_READ_AHEAD = 4 << 20
"""Bytes of a column read at once: a row group of a gigabyte takes as much memory as a page of it, twice."""

_DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What pyarrow raises for a damaged file, the last one for a column's name. ``OSError`` may also be a disk's
failure: ``of_machine`` tells them apart."""
_PLAUSIBLE = 4
"""Times the bytes of a row group that decoding it may ask for at once; what asks for more is damaged."""

Row = dict[str, Any]


def parquet_spans(files: Files, names: Sequence[str]) -> list[Span]:
    """One span a row group; a file without a footer that can be read, and believed, is one bad record."""
    return [span for found in files.map(lambda name: _row_groups(files, name), names) for span in found]


def _row_groups(files: Files, name: str) -> list[Span]:
    unreadable = rest_of(name, row=0, at=0, size=files.size(name))
    try:
        with files.open(name) as file:
            metadata = pq.ParquetFile(file).metadata
        counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    except _DAMAGE as error:
        if of_machine(error):
            raise
        return [unreadable]
    if min(counts, default=0) < 0 or sum(counts) != metadata.num_rows:
        return [unreadable]
    spans: list[Span] = []
    start = 0
    for group, rows in enumerate(counts):
        size = metadata.row_group(group).total_byte_size
        spans.append(Span(file=name, start=start, stop=start + rows, bytes=size, begin=group, end=group + 1))
        start += rows
    return spans


def column_names(files: Files, name: str) -> list[str]:
    """The columns of a file; none where its footer cannot be read."""
    try:
        with files.open(name) as file:
            return list(pq.ParquetFile(file).schema_arrow.names)
    except _DAMAGE as error:
        if of_machine(error):
            raise
        return []


def lists_addresses(files: Files, name: str) -> bool:
    """Whether a file's columns name pictures by their addresses on the web, and hold none."""
    columns = set(column_names(files, name))
    return "url" in columns and not columns & {"image", "images"}


def parquet_rows(
    files: Files, span: Span, *, needed: Sequence[str], wanted: Sequence[str] = ()
) -> Iterator[Row | BadRecord]:
    """The rows of a span's row group, as far as it can be read; the rest of them as ``BadRecord``.

    Args:
        span: From ``parquet_spans``.
        needed: Columns without which no row can be used.
        wanted: Columns to be read where the file has them.
    """
    if span.lost is not None:
        yield BadRecord("unreadable_file", "its footer cannot be read, or contradicts itself")
        return
    done = 0
    try:
        for batch in _batches(files, span, needed, wanted):
            for number in range(batch.num_rows):
                yield _row(batch, number)
                done += 1
    except _DAMAGE as error:
        if of_machine(error):
            raise
        if isinstance(error, MemoryError) and _requested(error) <= _PLAUSIBLE * span.bytes + _READ_AHEAD:
            raise  # the machine's fault, not the rows'
        bad = BadRecord("unreadable_rows", f"{type(error).__name__}: {error}")
        yield from repeat(bad, span.records - done)


def _requested(error: MemoryError) -> int:
    """Bytes that could not be had; a damaged page may claim any size."""
    found = re.search(r"of size (\d+)", str(error))
    return int(found[1]) if found else 0


def _batches(
    files: Files, span: Span, needed: Sequence[str], wanted: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    with files.open(span.file) as file:
        parquet = pq.ParquetFile(
            file, buffer_size=_READ_AHEAD, pre_buffer=False, page_checksum_verification=True
        )
        present = set(parquet.schema_arrow.names)
        missing = [name for name in needed if name not in present]
        if missing:
            raise pa.ArrowInvalid(f"the file has no column {', '.join(missing)}")
        columns = [name for name in (*needed, *wanted) if name in present]
        yield from parquet.iter_batches(
            ROWS_PER_BATCH, row_groups=[span.begin], columns=columns, use_threads=False
        )


def _row(batch: pa.RecordBatch, number: int) -> Row | BadRecord:
    try:
        return batch.slice(number, 1).to_pylist()[0]
    except UnicodeDecodeError as error:
        return BadRecord("bad_encoding", str(error))


def still_picture(value: Any, number: int = 0) -> RawMedia | None:
    """A picture column's value: ``{bytes, path}`` or bare bytes; None where there is no picture at all.

    Raises:
        BadRecord: ``missing_image`` where only its path is there.
    """
    if isinstance(value, bytes):
        value = {"bytes": value, "path": None}
    if value is None or (isinstance(value, dict) and value.get("bytes") is None and not value.get("path")):
        return None
    if not isinstance(value, dict):
        raise BadRecord("bad_record", f"image {number} is not {{bytes, path}}: {type(value).__name__}")
    if not isinstance(value.get("bytes"), bytes):
        raise BadRecord("missing_image", f"image {number} has no bytes, only the path {value.get('path')!r}")
    return RawMedia(kind="image", data=value["bytes"], name=str(value.get("path") or f"image {number}"))
