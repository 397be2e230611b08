"""What every reader of a corpus layout does: plan spans of records, and read one span."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal, Protocol

from casa_core.types import Sample
from pipelines.data.files import Files
from pipelines.data.quarantine import Rejected


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Consecutive records of one file: the smallest unit of work. Plans do not depend on who works them off.

    Attributes:
        file: Name relative to the source's root.
        start, stop: Record numbers in the file, ``stop`` not included.
        bytes: About how much there is to read.
        begin, end: Where the reader finds them: row groups (parquet) or byte offsets (JSONL).
    """

    file: str
    start: int
    stop: int
    bytes: int
    begin: int
    end: int

    @property
    def records(self) -> int:
        """How many records the span has; each is written or quarantined."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class RawMedia:
    """Encoded bytes as found in the corpus, not yet looked at; ``name`` is the corpus's own for them."""

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
        meta: What reports and filters may want to know of it; JSON values.
    """

    file: str
    row: int
    sample: Sample
    media: tuple[RawMedia, ...]
    meta: dict[str, Any] = field(default_factory=dict)


class Reader(Protocol):
    """Reads one published layout. Picklable: a worker gets the reader and a span."""

    @property
    def source(self) -> str:
        """The data source's name in the recipe."""
        ...

    def spans(self, split: str) -> list[Span]:
        """A split's records in reading order; raises ``DataError`` for a file that contradicts itself."""
        ...

    def read(self, span: Span) -> Iterator[Record | Rejected]:
        """``span.records`` results in order; a record that breaks the layout comes as ``Rejected``."""
        ...


def split_files(files: Files, split: str, suffix: str) -> list[str]:
    """Files of a split: as ``README.json`` lists them; without it, all that are not named ``test…`` train."""
    if files.exists("README.json"):
        return json.loads(files.read("README.json"))["splits"].get(split, [])
    names = files.names(suffix)
    held_out = [name for name in names if PurePosixPath(name).name.startswith("test")]
    return held_out if split == "test" else [name for name in names if name not in held_out]


def sample_id(file: str, row: int) -> str:
    """An id for layouts that have none: the file without its suffix, and the record's number."""
    return f"{PurePosixPath(file).with_suffix('')}/{row}"
