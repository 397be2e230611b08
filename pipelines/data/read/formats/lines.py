"""Lines of a JSONL file by byte offset, with or without the list of offsets that some corpora end in.

Such a list counts characters, and those equal bytes only in ASCII files: it is checked before anything relies
on it, and where it does not count bytes the file is scanned.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from casa_core.errors import DataError
from pipelines.data.read.source.base import BadRecord, Span
from pipelines.data.read.source.files import Files

RECORDS_PER_SPAN = 64
_TAIL = 1 << 16
_CHUNK = 1 << 24


def line_spans(files: Files, names: Sequence[str], media_bytes: int) -> list[Span]:
    """Spans of up to 64 lines of JSONL files.

    Args:
        media_bytes: A guess at what a record's pictures or video take: asking for each would cost a request.

    Raises:
        DataError: Where a last line's offsets contradict their file.
    """
    spans: list[Span] = []
    for name, bounds in zip(names, files.map(lambda name: line_bounds(files, name), names), strict=True):
        for start in range(0, len(bounds) - 1, RECORDS_PER_SPAN):
            stop = min(start + RECORDS_PER_SPAN, len(bounds) - 1)
            begin, end = bounds[start], bounds[stop]
            size = end - begin + (stop - start) * media_bytes
            spans.append(Span(file=name, start=start, stop=stop, bytes=size, begin=begin, end=end))
    return spans


def json_lines(files: Files, span: Span) -> Iterator[Any | BadRecord]:
    """The JSON value of each of the span's lines.

    Raises:
        DataError: Where the file has not the lines that were planned.
    """
    with files.open(span.file) as file:
        file.seek(span.begin)
        lines = file.read(span.end - span.begin).removesuffix(b"\n").split(b"\n")
    if len(lines) != span.records:
        raise _contradiction(span.file, f"{len(lines)} lines where it promises {span.records}")
    for line in lines:
        yield json_value(line)


def json_value(data: bytes) -> Any | BadRecord:
    """What a JSON document says, or what is wrong with it."""
    try:
        return json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRecord("bad_encoding", str(error))
    except (ValueError, RecursionError) as error:
        return BadRecord("bad_json", str(error))


def line_bounds(files: Files, name: str) -> list[int]:
    """Byte offset of each record's line, and of the end of the last one.

    The offsets in the file's last line are used where they prove right at every span's edge; otherwise the
    file is scanned. A file without such a line is scanned too.

    Raises:
        DataError: Where they contradict the file in bytes as well as in characters.
    """
    with files.open(name) as file:
        size = file.size()
        offsets, tail_begin = _seek_line(file, size)
        if offsets is None:
            return _scan(file, size).bytes
        bounds = [*offsets, tail_begin]
        if offsets[:1] == [0] and all(_is_line_start(file, at) for at in _edges(bounds)):
            return bounds
        scanned = _scan(file, tail_begin)
        if scanned.characters[:-1] == offsets:
            return scanned.bytes
    lines = len(scanned.bytes) - 1
    raise _contradiction(name, f"{lines} lines where it lists {len(offsets)}, or at other places")


class _Bounds(NamedTuple):
    """Where each line begins and the last one ends, in bytes and in characters."""

    bytes: list[int]
    characters: list[int]


def _scan(file: Any, stop: int) -> _Bounds:
    """One pass over the first ``stop`` bytes, a chunk at a time."""
    file.seek(0)
    bounds, characters = [0], [0]
    base = counted = 0
    while base < stop and (chunk := file.read(min(stop - base, _CHUNK))):
        codes = np.frombuffer(chunk, np.uint8)
        ends = np.flatnonzero(codes == ord("\n")) + 1
        # In UTF-8 every byte but a continuation (0b10xxxxxx) begins a character.
        begun = np.cumsum((codes & 0xC0) != 0x80)
        bounds += (base + ends).tolist()
        characters += (counted + begun[ends - 1]).tolist()
        base, counted = base + len(chunk), counted + int(begun[-1])
    if bounds[-1] != base:  # the last line has no end of line
        bounds.append(base)
        characters.append(counted)
    return _Bounds(bounds, characters)


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
        tail = file.read(reach).rstrip(b"\n")
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
