"""Items of a large JSON array by byte offset: the file is read once in pieces, and never held as a whole."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.data.read.formats.text import MARK, text_start
from pipelines.data.read.source.base import BadRecord, Span, rest_of
from pipelines.data.read.source.files import Files

RECORDS_PER_SPAN = 64
LARGEST_ITEM = 16 << 20
"""Characters after which an item that does not end counts as broken."""
_CHUNK = 4 << 20
_HEAD = 4096
_BEGINS = re.compile(rb"(?:\xff\xfe|\xfe\xff)?\s*\[\s*(?:\{|$)")
_DECODER = json.JSONDecoder()
_BLANK = re.compile(r"[ \t\r\n]*")


def array_spans(files: Files, names: Sequence[str], media_bytes: int, key: str | None = None) -> list[Span]:
    """Spans of 64 items of each file; where a file breaks off, what is left of it is one bad record.

    Args:
        names: Files that each hold an array.
        media_bytes: A guess at what a record's video takes.
        key: Field that names it. Neighbours with one video share a span, which may then have up to 128 items,
            and count its bytes once.
    """
    spans: list[Span] = []
    found = zip(names, files.map(lambda name: _item_ends(files, name, key), names), strict=True)
    for name, (ends, whole, begins) in found:
        for start, stop in _cuts(begins):
            begin, end = ends[start], ends[stop]
            size = end - begin + max(sum(begins[start:stop]), 1) * media_bytes
            spans.append(Span(file=name, start=start, stop=stop, bytes=size, begin=begin, end=end))
        if not whole:
            spans.append(rest_of(name, row=len(ends) - 1, at=ends[-1], size=files.size(name)))
    return spans


def _cuts(begins: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """First item of each span and the one after its last; ``begins``: which items are about another video."""
    start, count = 0, len(begins)
    while start < count:
        stop = min(start + RECORDS_PER_SPAN, count)
        while stop < min(start + 2 * RECORDS_PER_SPAN, count) and not begins[stop]:
            stop += 1
        yield start, stop
        start = stop


def begins_array(files: Files, name: str) -> bool:
    """Whether a JSON file begins as an array of objects does, in any encoding; others hold no records."""
    with files.open(name) as file:
        head = file.read(_HEAD).removeprefix(MARK)
    return _BEGINS.match(head.replace(b"\0", b"")) is not None


def array_items(files: Files, span: Span) -> Iterator[Any | BadRecord]:
    """The items of a span; the one ``BadRecord`` of a span that stands for the broken end of a file."""
    with files.open(span.file) as file:
        if span.lost is not None:
            yield _broken(file, span)
            return
        file.seek(span.begin)
        # As the plan saw it: bytes that are no UTF-8 cost their own item, and do not move the others.
        text = file.read(span.end - span.begin).decode("utf-8", "surrogateescape")
    at = 0
    for _ in range(span.records):
        item, at = _DECODER.raw_decode(text, _next_item(text, at))
        yield item


def _broken(file: Any, span: Span) -> BadRecord:
    try:
        text_start(file)
    except BadRecord as bad:
        return bad
    return BadRecord("truncated_file", f"no item and no end of the array follows byte {span.begin}")


def _next_item(text: str, at: int) -> int:
    """Past blanks, and past the bracket or comma before an item."""
    at = _blank(text, at)
    return _blank(text, at + 1) if text[at : at + 1] in ("[", ",") else at


def _blank(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    return match.end() if match else at


def _item_ends(files: Files, name: str, key: str | None) -> tuple[list[int], bool, list[bool]]:
    """Where the text begins, then the byte offset behind each item; whether the array is closed there; and
    whether each item has another value of ``key`` than the one before it, or none."""
    with files.open(name) as file:
        try:
            start = text_start(file)
        except BadRecord:
            return [0], False, []
        scanner = _Scanner(file, start, key)
        return *scanner.run(), scanner.begins


class _Scanner:
    """Reads one array piece by piece: from ``at`` (byte ``base`` of the file) on, ``text`` is still to do."""

    def __init__(self, file: Any, start: int = 0, key: str | None = None) -> None:
        self._file, self._key, self._value = file, key, None
        self.begins: list[bool] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._text, self._at, self._base, self._done = "", 0, start, False

    def run(self) -> tuple[list[int], bool]:
        """The first two results of ``_item_ends``; ``begins`` is the third."""
        ends = [self._base]
        try:
            while True:
                mark, following = self._marks()
                if mark == "]" and len(ends) > 1:
                    return ends, True
                if mark != ("," if len(ends) > 1 else "["):
                    return ends, False
                if len(ends) == 1 and following == "]":
                    return ends, True
                item, end = self._next()
                self._pass(end)
                ends.append(self._base)
                value = item.get(self._key) if isinstance(item, dict) else None
                self.begins.append(value is None or value != self._value)
                self._value = value
        except (ValueError, RecursionError):  # not JSON, or nested without end: here the file breaks
            return ends, False

    def _marks(self) -> tuple[str, str]:
        """The next character that is not blank, and the one after it; empty at the end."""
        while True:
            first = _blank(self._text, self._at)
            second = _blank(self._text, first + 1)
            if second < len(self._text) or self._done:
                return self._text[first : first + 1], self._text[second : second + 1]
            self._more()

    def _next(self) -> tuple[Any, int]:
        """The item behind the bracket or comma, and where it ends in ``text``."""
        while True:
            try:
                item, end = _DECODER.raw_decode(self._text, _next_item(self._text, self._at))
                if end < len(self._text) or self._done:  # a number may go on in the next piece
                    return item, end
            except ValueError:
                if len(self._text) - self._at > LARGEST_ITEM or self._done:
                    raise
            self._more()

    def _pass(self, end: int) -> None:
        self._base += len(self._text[self._at : end].encode("utf-8", "surrogateescape"))
        self._at = end

    def _more(self) -> None:
        data = self._file.read(_CHUNK)
        self._done = not data
        self._text = self._text[self._at :] + self._decoder.decode(data, final=self._done)
        self._at = 0
