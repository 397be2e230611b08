"""Lines of a JSONL file by byte offset, with or without the list of offsets that some corpora end in.

Such a list counts characters, and those equal bytes only in ASCII files: it is checked before anything relies
on it, and where it does not count bytes the file is scanned.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from casa_core.errors import DataError
from pipelines.data.read.formats.text import MARK, text_start
from pipelines.data.read.source.base import BadRecord, Span, rest_of
from pipelines.data.read.source.files import Files

RECORDS_PER_SPAN = 64
PACKED = ".gz"
SUFFIXES = (".jsonl", ".ndjson", ".jsonlines", ".jsonl.gz", ".ndjson.gz", ".jsonlines.gz")
_TAIL = 1 << 16
_CHUNK = 1 << 24


def line_spans(files: Files, names: Sequence[str], media_bytes: int) -> list[Span]:
    """Spans of up to 64 records of JSONL files; a packed file (``.gz``) is one, as it is read from its start.

    Blank lines are no records. What cannot be read of a file is one bad record.

    Args:
        media_bytes: A guess at what a record's pictures or video take: asking for each would cost a request.

    Raises:
        DataError: Where a last line's offsets contradict their file.
    """
    spans: list[Span] = []
    for name, found in zip(names, files.map(lambda name: _bounds(files, name), names), strict=True):
        bounds, whole = found
        step = max(len(bounds), 1) if name.lower().endswith(PACKED) else RECORDS_PER_SPAN
        for start in range(0, len(bounds) - 1, step):
            stop = min(start + step, len(bounds) - 1)
            begin, end = bounds[start], bounds[stop]
            size = end - begin + (stop - start) * media_bytes
            spans.append(Span(file=name, start=start, stop=stop, bytes=size, begin=begin, end=end))
        if not whole:
            at = bounds[-1] if not name.lower().endswith(PACKED) else 0
            spans.append(rest_of(name, row=len(bounds) - 1, at=at, size=files.size(name)))
    return spans


def json_lines(files: Files, span: Span) -> Iterator[Any | BadRecord]:
    """The JSON value of each of the span's lines.

    Raises:
        DataError: Where the file has not the lines that were planned.
    """
    if span.lost is not None:
        yield _broken(files, span)
        return
    with _opened(files, span.file) as file:
        file.seek(span.begin)
        if span.file.lower().endswith(PACKED):
            lines = (line for line in file if line.strip())
            yield from map(json_value, islice(lines, span.records))
            return
        lines = [line for line in file.read(span.end - span.begin).split(b"\n") if line.strip()]
    if len(lines) != span.records:
        raise _contradiction(span.file, f"{len(lines)} lines where it promises {span.records}")
    for line in lines:
        yield json_value(line)


def _opened(files: Files, name: str) -> Any:
    """The file, unpacked on the way where it is packed."""
    file = files.open(name)
    return gzip.GzipFile(fileobj=file) if name.lower().endswith(PACKED) else file


def _bounds(files: Files, name: str) -> tuple[list[int], bool]:
    """As ``line_bounds``, and whether the file can be read to its end."""
    try:
        if name.lower().endswith(PACKED):
            with _opened(files, name) as file:
                return _packed_bounds(file)
        return line_bounds(files, name), True
    except BadRecord:
        return [0], False


def _packed_bounds(file: Any) -> tuple[list[int], bool]:
    """Where each record's line ends in a packed file, as far as it can be unpacked."""
    bounds = [0]
    try:
        at = bounds[0] = text_start(file)
        for line in file:
            at += len(line)
            if line.strip():
                bounds.append(at)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return bounds, False
    return bounds, True


def _broken(files: Files, span: Span) -> BadRecord:
    try:
        with _opened(files, span.file) as file:
            text_start(file)
    except BadRecord as bad:
        return bad
    except (EOFError, gzip.BadGzipFile, zlib.error):
        pass
    return BadRecord("truncated_file", f"it cannot be unpacked beyond record {span.start}")


def json_value(data: bytes) -> Any | BadRecord:
    """What a JSON document says, or what is wrong with it."""
    try:
        return json.loads(data.removeprefix(MARK).decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRecord("bad_encoding", str(error))
    except (ValueError, RecursionError) as error:
        return BadRecord("bad_json", str(error))


def line_bounds(files: Files, name: str) -> list[int]:
    """Byte offset of each record's line, and of the end of the last one; blank lines are no records.

    The offsets in the file's last line are used where they prove right at every span's edge; otherwise the
    file is scanned. A file without such a line is scanned too.

    Raises:
        BadRecord: ``bad_encoding`` for a file in UTF-16.
        DataError: Where they contradict the file in bytes as well as in characters.
    """
    with files.open(name) as file:
        size = file.size()
        start = text_start(file)
        offsets, tail_begin = _seek_line(file, size)
        if offsets is None:
            return _scan(file, start, size).records
        bounds = [*offsets, tail_begin]
        if offsets[:1] == [0] and all(_is_line_start(file, at) for at in _edges(bounds)):
            return bounds
        scanned = _scan(file, start, tail_begin)
        if scanned.characters[:-1] == offsets:
            return scanned.records
    lines = len(scanned.characters) - 1
    raise _contradiction(name, f"{lines} lines where it lists {len(offsets)}, or at other places")


class _Bounds(NamedTuple):
    """In bytes, where each line that is not blank begins and the last one ends; in characters, every line."""

    records: list[int]
    characters: list[int]


_BLANK = np.isin(np.arange(256), list(b" \t\r\n\v\f"))


def _scan(file: Any, start: int, stop: int) -> _Bounds:
    """One pass over the bytes from ``start`` to ``stop``, a chunk at a time."""
    file.seek(start)
    bounds, characters, solid = [start], [0], [0]
    base, counted, seen = start, bool(start), 0
    while base < stop and (chunk := file.read(min(stop - base, _CHUNK))):
        codes = np.frombuffer(chunk, np.uint8)
        ends = np.flatnonzero(codes == ord("\n")) + 1
        # In UTF-8 every byte but a continuation (0b10xxxxxx) begins a character.
        begun = np.cumsum((codes & 0xC0) != 0x80)
        filled = np.cumsum(~_BLANK[codes])
        bounds += (base + ends).tolist()
        characters += (counted + begun[ends - 1]).tolist()
        solid += (seen + filled[ends - 1]).tolist()
        base, counted, seen = base + len(chunk), counted + int(begun[-1]), seen + int(filled[-1])
    if bounds[-1] != base:  # the last line has no end of line
        bounds.append(base)
        characters.append(counted)
        solid.append(seen)
    begins = [bounds[n] for n in range(len(bounds) - 1) if solid[n + 1] > solid[n]]
    return _Bounds([*begins, bounds[-1]] if begins else [start], characters)


def _edges(bounds: list[int]) -> list[int]:
    return sorted({*bounds[::RECORDS_PER_SPAN], *bounds[-2:]})


def _is_line_start(file: Any, offset: int) -> bool:
    if offset == 0:
        return True
    file.seek(offset - 1)
    return file.read(1) == b"\n"


def _seek_line(file: Any, size: int) -> tuple[list[int] | None, int]:
    """The numbers in the last line and where it begins; None where the last line is an ordinary record."""
    reach = min(size, _TAIL)
    while True:
        file.seek(size - reach)
        tail = file.read(reach).rstrip()
        newline = tail.rfind(b"\n")
        if newline >= 0 or reach == size:
            break
        reach = min(size, reach * 8)
    offsets = json_value(tail[newline + 1 :])
    if not isinstance(offsets, list) or not all(isinstance(number, int) for number in offsets):
        return None, size
    return offsets, size - reach + newline + 1


def _contradiction(name: str, found: str) -> DataError:
    return DataError(
        f"The offsets in the last line of {name} contradict the file.",
        f"It has {found}: it was cut, or edited without renewing the last line.",
        "Fetch the file again, or delete its last line to read it without offsets.",
    )
