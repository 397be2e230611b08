"""The reader protocol: a corpus layout planned as spans of records, and one span read at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, Literal, Protocol, TypeVar

from casa_core.errors import MediaError
from casa_core.types import Part, Sample, Text
from pipelines.data.read.source.files import transfers
from pipelines.data.read.source.reasons import REASONS
from pipelines.data.read.source.splits import Inventory
from pipelines.data.store.quarantine import Rejected

LONGEST_DETAIL = 500
Raw = TypeVar("Raw")


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Consecutive records of one file: the smallest unit of work. Plans do not depend on the workers.

    Attributes:
        file: Name relative to the source's root.
        start, stop: Record numbers in the file, ``stop`` not included.
        bytes: Estimated bytes to read.
        begin, end: Where the reader finds them: row groups (parquet) or byte offsets (everything else).
        lost: Bytes of the file, from here on, that cannot be read; its one record stands for whatever they
            hold. None for an ordinary span.
    """

    file: str
    start: int
    stop: int
    bytes: int
    begin: int
    end: int
    lost: int | None = None

    @property
    def records(self) -> int:
        """How many records the span has; each is written or quarantined."""
        return self.stop - self.start


def rest_of(file: str, *, row: int, at: int, size: int) -> Span:
    """The span of what cannot be read of a file of ``size`` bytes, from byte ``at`` and record ``row`` on."""
    return Span(file=file, start=row, stop=row + 1, bytes=0, begin=at, end=at, lost=max(0, size - at))


@dataclass(frozen=True, slots=True, kw_only=True)
class RawMedia:
    """Encoded bytes as the corpus has them, not yet decoded; ``name`` is the corpus's name for them."""

    kind: Literal["image", "video"]
    data: bytes
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A record that follows its layout; its pictures may still be broken.

    Attributes:
        file, row: Where it was read.
        sample: Its conversation; image parts refer to ``media`` by index.
        media: Bytes of its pictures and videos.
        meta: What the corpus states about the record, for filters and reports; JSON values.
    """

    file: str
    row: int
    sample: Sample
    media: tuple[RawMedia, ...]
    meta: dict[str, Any] = field(default_factory=dict)


class BadRecord(Exception):
    """A record that breaks its layout; ``collect`` turns it into a ``Rejected``.

    Args:
        reason: A key of ``REASONS``.
        detail: What exactly was found.
    """

    def __init__(self, reason: str, detail: str) -> None:
        assert reason in REASONS, f"{reason} is not documented"
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a record was read, and the id of its sample.

    Attributes:
        source: The data source's name in the recipe.
        file, row: As in ``Record``.
        sample_id: Unique within the source.
    """

    source: str
    file: str
    row: int
    sample_id: str

    def record(
        self, parts: tuple[Part, ...], media: tuple[RawMedia, ...], meta: dict[str, Any] | None = None
    ) -> Record:
        """The record that was read here."""
        sample = Sample(source=self.source, sample_id=self.sample_id, parts=parts)
        return Record(file=self.file, row=self.row, sample=sample, media=media, meta=meta or {})


class Reader(Protocol):
    """Reads one published layout. Picklable: a worker gets the reader and a span."""

    @property
    def source(self) -> str:
        """The data source's name in the recipe."""
        ...

    def inventory(self) -> Inventory:
        """Which files each split has, and which are not read; raises as ``spans``."""
        ...

    def spans(self, split: str) -> list[Span]:
        """A split's records in reading order; raises ``DataError`` for a file that contradicts itself."""
        ...

    def read(self, span: Span) -> Iterator[Record | Rejected]:
        """``span.records`` results in order; a record that breaks the layout is yielded as ``Rejected``."""
        ...


def collect(
    source: str,
    span: Span,
    rows: Iterator[Raw | BadRecord],
    parse: Callable[[Place, Raw], Record],
    own_id: Callable[[Raw], Any] = lambda raw: None,
    keep_suffix: bool = False,
) -> Iterator[Record | Rejected]:
    """Parses a span's rows one by one; exactly ``span.records`` results come out.

    Args:
        source: The data source's name in the recipe.
        span: Where the rows come from.
        rows: What was read of each record, or why nothing could be. Where they end early, the rest of the
            span is rejected as ``unreadable_rows``.
        parse: The record of a row; raises ``BadRecord``, or ``MediaError`` where it looks into a video.
        own_id: The corpus's own id of a row, if it has one. Such ids repeat in practice, so file and row
            follow it in the sample's id.
        keep_suffix: Keep the file's suffix in the id, where files may differ in nothing else.
    """

    def place_of(row: int) -> Place:
        name = f"{span.file}/{row}" if keep_suffix else sample_id(span.file, row)
        return Place(source=source, file=span.file, row=row, sample_id=name)

    done = 0
    for done, raw in enumerate(_handed_out(span.file, rows), start=1):
        place = place_of(span.start + done - 1)
        try:
            if isinstance(raw, BadRecord):
                raise raw
            known = own_id(raw)
            if isinstance(known, str | int):
                place = replace(place, sample_id=f"{known}@{place.sample_id}")
            yield _storable(parse(place, raw))
        except BadRecord as error:
            yield reject(place, error.reason, error.detail)
        except MediaError as error:
            yield reject(place, error.reason, f"{error.what} {error.why}".strip())
    for row in range(span.start + done, span.stop):
        yield reject(
            place_of(row), "unreadable_rows", f"the file promises {span.records} rows here, not {done}"
        )


def _handed_out(file: str, rows: Iterator[Raw]) -> Iterator[Raw]:
    """The rows; raises ``TransferError`` where the disk or share fails on the way."""
    with transfers(file):
        yield from rows


def reject(place: Place, reason: str, detail: str) -> Rejected:
    """The quarantine's entry for the record at a place, in text that can be stored."""
    return Rejected(
        source=place.source,
        file=place.file,
        row=place.row,
        sample_id=place.sample_id.encode("utf-8", "backslashreplace").decode(),
        reason=reason,
        detail=detail[:LONGEST_DETAIL].encode("utf-8", "backslashreplace").decode(),
    )


def _storable(record: Record) -> Record:
    """The record; ``BadRecord`` where a text of it is no Unicode, as JSON allows (``"\\ud83d"`` alone)."""
    texts = [part.text for part in record.sample.parts if isinstance(part, Text)]
    try:
        for text in (record.sample.sample_id, *texts, json.dumps(record.meta, ensure_ascii=False)):
            text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRecord("bad_encoding", str(error)) from error
    except TypeError as error:  # a column of another type than documented
        raise BadRecord("bad_record", f"the record's meta is no JSON: {error}") from error
    return record


def sample_id(file: str, row: int) -> str:
    """An id for layouts that have none: the file without its suffix, and the record's number."""
    return f"{PurePosixPath(file).with_suffix('')}/{row}"
