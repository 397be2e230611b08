"""The scan of clean samples for filters: reads columns and hashes, no picture.

A scan is a pure function of some rows of one source. It applies the filters that look at a sample alone, and
returns keys and hashes of the other samples for the filters that compare samples.
"""

from __future__ import annotations

import hashlib
import json
import struct
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.data.clean.records import SHRUNK
from pipelines.data.filter.hash_lists import known_pictures
from pipelines.data.store.readers import CleanReader
from pipelines.recipe.filters import AspectRatio, Decontamination, Filters, Ratings, TextLength

FILTERS = ("ratings", "text_length", "aspect_ratio", "decontamination", "duplicates", "near_duplicates")
"""In the order in which they are applied; a sample counts for the first that removes it."""
KEPT = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanTask:
    """Rows ``start`` to ``stop`` of a source, and the filters that are declared."""

    source: str
    reader: CleanReader
    start: int
    stop: int
    declared: Filters


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanned:
    """What a scan found of n rows.

    Attributes:
        fate: Number in ``FILTERS`` of the filter that removes the row, or ``KEPT``; (n,).
        details: Removed row, counted from the scan's start → what its filter found.
        keys: 128-bit hashes of what must be equal in a duplicate, 0 where there is nothing; (n, 2).
        texts: 64-bit hashes of the rows' text; (n,).
        pictures: Number of still pictures of each row, 0 where it cannot be compared; (n,).
        phashes: Difference hashes of these pictures, row after row; (sum of ``pictures``,).
    """

    fate: NDArray[np.int8]
    details: dict[int, str]
    keys: NDArray[np.uint64]
    texts: NDArray[np.uint64]
    pictures: NDArray[np.int32]
    phashes: NDArray[np.uint64]


def scan_rows(task: ScanTask) -> Scanned:
    """Scans the rows of a task, one record batch at a time."""
    return join_scans([_scan(batch, task.declared) for batch in task.reader.batches(task.start, task.stop)])


def join_scans(parts: Sequence[Scanned]) -> Scanned:
    """What scans of consecutive rows found, as one."""
    details: dict[int, str] = {}
    start = 0
    for part in parts:
        details |= {start + row: detail for row, detail in part.details.items()}
        start += len(part.fate)

    def joined(name: str, empty: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([empty, *(getattr(part, name) for part in parts)])

    return Scanned(
        fate=joined("fate", np.empty(0, np.int8)),
        details=details,
        keys=joined("keys", np.empty((0, 2), np.uint64)),
        texts=joined("texts", np.empty(0, np.uint64)),
        pictures=joined("pictures", np.empty(0, np.int32)),
        phashes=joined("phashes", np.empty(0, np.uint64)),
    )


def _scan(batch: pa.RecordBatch, declared: Filters) -> Scanned:
    columns = _Columns(batch)
    fate = np.full(batch.num_rows, KEPT, np.int8)
    details: dict[int, str] = {}
    judges = {
        "ratings": _ratings,
        "text_length": _text_length,
        "aspect_ratio": _aspect_ratio,
        "decontamination": _contaminated,
    }
    for name, judge in judges.items():
        filter_settings = getattr(declared, name)
        for row, detail in judge(columns, filter_settings) if filter_settings is not None else ():
            if fate[row] == KEPT:
                fate[row] = FILTERS.index(name)
                details[row] = detail
    exact, near = declared.duplicates, declared.near_duplicates
    nothing = np.zeros(batch.num_rows, np.uint64)
    pictures, phashes = columns.still_pictures() if near else (nothing.astype(np.int32), nothing[:0])
    return Scanned(
        fate=fate,
        details=details,
        keys=columns.keys(exact.of) if exact else np.zeros((batch.num_rows, 2), np.uint64),
        texts=columns.texts() if near and near.of == "pictures_and_text" else nothing,
        pictures=pictures,
        phashes=phashes,
    )


Judged = Iterator[tuple[int, str]]


def _ratings(columns: _Columns, least_ratings: Ratings) -> Judged:
    asked = least_ratings.model_dump(exclude={"unrated"}, exclude_none=True)
    for row, meta in enumerate(columns.meta):
        for name, least in asked.items():
            rating = _rating(meta, name)
            if rating is None and least_ratings.unrated == "remove":
                yield row, f"{name} is not rated"
            elif rating is not None and rating < least:
                yield row, f"{name} {rating}, less than {least}"


def _rating(meta: Mapping[str, Any], name: str) -> int | None:
    """The least rating of a sample's turns, as the corpus states it or as its turns' ratings say."""
    if meta.get(f"{name}_min") is not None:
        return meta[f"{name}_min"]
    return min((rating for rating in meta.get(f"{name}_ratings") or () if rating is not None), default=None)


def _text_length(columns: _Columns, length: TextLength) -> Judged:
    low, high = length.min_characters or 0, length.max_characters
    for row, characters in enumerate(columns.trained_characters().tolist()):
        if characters < low:
            yield row, f"{characters} characters of trained text, less than {low}"
        elif high is not None and characters > high:
            yield row, f"{characters} characters of trained text, more than {high}"


def _aspect_ratio(columns: _Columns, limit: AspectRatio) -> Judged:
    width, height = (np.asarray(columns.media.field(name)) for name in ("width", "height"))
    ratio = np.maximum(width, height) / np.minimum(width, height)
    for index in np.flatnonzero(ratio > limit.max).tolist():
        yield int(columns.media_row[index]), f"a picture of {width[index]} x {height[index]} pixels"


def _contaminated(columns: _Columns, lists: Decontamination) -> Judged:
    known = known_pictures(tuple(lists.hashes), lists.distance)
    for index, digest in enumerate(columns.media.field("sha256").to_pylist()):
        if digest in known.sha256:
            yield int(columns.media_row[index]), "a picture has the bytes of an evaluation set's"
    for row, meta in enumerate(columns.meta):
        if any(entry["sha256"] in known.sha256 for entry in meta.get(SHRUNK, ())):
            yield row, "a picture had the bytes of an evaluation set's before it was shrunk"
    phash = pc.fill_null(columns.media.field("phash"), 0).to_numpy(zero_copy_only=False)
    near = np.where(phash != 0, known.near.first_near(phash), -1)
    for index in np.flatnonzero(near >= 0).tolist():
        bits = int(phash[index] ^ known.near.hashes[near[index]]).bit_count()
        yield int(columns.media_row[index]), f"a picture is {bits} bits from an evaluation set's"


class _Columns:
    """The columns of a record batch, flattened, with the row of each entry of a list."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.rows = batch.num_rows
        parts, media = batch.column("parts"), batch.column("media")
        self.parts, self.part_row = parts.flatten(), _rows_of(parts)
        self.media, self.media_row = media.flatten(), _rows_of(media)
        self._meta = batch.column("meta")
        self._parsed: list[dict[str, Any]] | None = None

    @property
    def meta(self) -> list[dict[str, Any]]:
        """The parsed meta of each row."""
        if self._parsed is None:
            self._parsed = [json.loads(text) for text in self._meta.to_pylist()]
        return self._parsed

    def trained_characters(self) -> NDArray[np.int64]:
        """Characters of each row's trained text; (rows,)."""
        lengths = pc.fill_null(pc.call_function("utf8_length", [self.parts.field("text")]), 0).to_numpy(
            zero_copy_only=False
        )
        trained = pc.fill_null(self.parts.field("trained"), False).to_numpy(zero_copy_only=False)
        return np.bincount(self.part_row, lengths * trained, self.rows).astype(np.int64)

    def still_pictures(self) -> tuple[NDArray[np.int32], NDArray[np.uint64]]:
        """How many pictures each row can be compared by, and their hashes, row after row.

        A row with a video, or a picture whose hash says nothing, has none.
        """
        phash = pc.fill_null(self.media.field("phash"), 0).to_numpy(zero_copy_only=False)
        count = np.bincount(self.media_row, minlength=self.rows).astype(np.int32)
        count[self.media_row[phash == 0]] = 0
        return count, phash[count[self.media_row] > 0]

    def texts(self) -> NDArray[np.uint64]:
        """A 64-bit hash of each row's text; (rows,)."""
        return np.array([struct.unpack("<Q", _hash(parts, 8))[0] for parts in self._texts()], np.uint64)

    def keys(self, of: str) -> NDArray[np.uint64]:
        """A 128-bit hash of what must be equal in a duplicate; (rows, 2). 0 for rows without pictures, if
        these alone count."""
        shown = self._shown()
        if of == "pictures_and_text":
            digests = [_hash(entries, 16) for entries in self._texts(shown)]
        else:
            digests = [_hash(entries, 16) if entries else bytes(16) for entries in shown]
        return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)

    def _texts(self, shown: Sequence[list[str]] | None = None) -> list[list[str]]:
        """Roles and texts of each row, in order, normalised; behind them what it shows, if that is given."""
        found: list[list[str]] = [[] for _ in range(self.rows)]
        texts, roles = (self.parts.field(name).to_pylist() for name in ("text", "role"))
        for row, role, text in zip(self.part_row.tolist(), roles, texts, strict=True):
            if text is not None:
                found[row] += (role, normalised(text))
        return found if shown is None else [a + b for a, b in zip(found, shown, strict=True)]

    def _shown(self) -> list[list[str]]:
        """For each picture or frame of each row, in order: the hash of its file, and the time in it."""
        digests = self.media.field("sha256").to_pylist()
        first = np.searchsorted(self.media_row, np.arange(self.rows))
        shown: list[list[str]] = [[] for _ in range(self.rows)]
        media, times = (self.parts.field(name).to_pylist() for name in ("media", "timestamp"))
        for row, number, time in zip(self.part_row.tolist(), media, times, strict=True):
            if number is not None:
                shown[row] += (digests[first[row] + number], str(time))
        return shown


def normalised(text: str) -> str:
    """Text as duplicates compare it: one form of each character, without case, words apart by one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _rows_of(lists: pa.ListArray) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(lists)), np.asarray(lists.value_lengths()))


def _hash(entries: Sequence[str], size: int) -> bytes:
    """A hash of texts in order; lengths before them, so that none can be mistaken for two."""
    state = hashlib.blake2b(digest_size=size)
    for entry in entries:
        data = entry.encode("utf-8", errors="surrogatepass")
        state.update(struct.pack("<Q", len(data)))
        state.update(data)
    return state.digest()
