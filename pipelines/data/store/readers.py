"""Readers of clean and pack artifacts: rows of Arrow shards, on a disk or on S3, by row number."""

from __future__ import annotations

import io
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from casa_core.errors import StoreError
from pipelines.data.store.rows import CleanSample, Row
from pipelines.data.store.shard_writing import CARD, INDEX, KINDS, KINDS_FILE
from pipelines.data.store.shards import Batch, LeaveOut, LRUCache, Shard, open_shard
from pipelines.storage.remote_path import RemotePath
from pipelines.storage.transfer import side_by_side
from pipelines.storage.uri import Folder

OPEN_SHARDS = 256
CACHE_BYTES = 64 << 20


class ShardReader:
    """Rows of several Arrow IPC files as one sequence. Threads may share it.

    Files are opened when a row of theirs is first asked for. Local ones are mapped; of those on S3 the record
    batches used last are kept, up to ``CACHE_BYTES``.

    Args:
        paths: The files, in order.
        schema_name: What their ``casa.schema`` metadata must be.
        rows: Rows of each file, where they are known; otherwise all files are opened now.
        leave_out: Buffers of a batch that are not read with it.

    Raises:
        StoreError: Here or later, for a file that is missing, cut, of another schema or other length.
    """

    def __init__(
        self,
        paths: Iterable[Folder],
        schema_name: str,
        rows: Sequence[int] | None = None,
        leave_out: LeaveOut | None = None,
    ) -> None:
        self._paths = tuple(paths)
        self._schema_name = schema_name
        self._leave_out = leave_out
        self._rows = rows
        self._shards: LRUCache[Shard] = LRUCache(OPEN_SHARDS, lambda _: 1)
        self._batches: LRUCache[Batch] = LRUCache(CACHE_BYTES, lambda batch: batch.weight)
        if rows is None:
            ends = (self._shard(number).ends for number in range(len(self._paths)))
            rows = [own[-1] if own else 0 for own in ends]
        self._ends = list(accumulate(rows))

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self._paths, "schema_name": self._schema_name, "rows": self._rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int) -> Row:
        batch, row = self.locate(number)
        return batch.slice(row, 1).to_pylist()[0]

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of the first file's schema; empty where there is no file."""
        return self._shard(0).metadata if self._paths else {}

    def locate(self, number: int) -> tuple[pa.RecordBatch, int]:
        """The record batch that holds a row, and the row's number in it.

        Raises:
            IndexError: Past the end; so that iterating over a reader ends.
        """
        batch, row = self._locate(number)
        return batch.rows, row

    def batches(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """Rows ``start`` to ``stop``, one batch per batch of the files, as :meth:`locate` gives them."""
        while start < stop:
            batch, row = self.locate(start)
            count = min(batch.num_rows - row, stop - start)
            yield batch.slice(row, count)
            start += count

    def _locate(self, number: int) -> tuple[Batch, int]:
        if not 0 <= number < len(self):
            raise IndexError(f"There is no row {number}, only {len(self)} in all.")
        place = bisect_right(self._ends, number)
        row = number - (self._ends[place - 1] if place else 0)
        shard = self._shard(place)
        within = bisect_right(shard.ends, row)
        return shard.batch(within), row - (shard.ends[within - 1] if within else 0)

    def _shard(self, place: int) -> Shard:
        return self._shards.get(place, lambda: self._open(place))

    def _open(self, place: int) -> Shard:
        path = self._paths[place]
        shard = open_shard(
            path, self._batches, self._leave_out, None if self._rows is None else self._rows[place]
        )
        found = shard.metadata.get("casa.schema")
        if found != self._schema_name:
            raise StoreError(
                f"{path} holds rows of schema {found!r}.",
                f"This version reads {self._schema_name!r}.",
                "Run the stage that wrote it again.",
            )
        return shard


class CleanReader(ShardReader):
    """Samples of one split of a clean artifact, by row number.

    Batches come without their media's bytes, which are read one by one.

    Args:
        split: ``train`` or ``test``.

    Raises:
        StoreError: For an artifact that is not whole.
    """

    def __init__(self, folder: Folder, split: str) -> None:
        self._folder, self._split = folder, split
        own = _read_json(folder / CARD)["splits"].get(split, {"rows": 0, "shards": []})
        rows = [shard["rows"] for shard in own["shards"]]
        super().__init__([folder / shard["file"] for shard in own["shards"]], "clean/3", rows, _media_data)
        _check_total(folder, len(self), own["rows"])

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self._folder, "split": self._split}

    def __getitem__(self, number: int) -> Row:
        row = self.without_bytes(number)
        data = self.media_of([(number, media) for media in range(len(row["media"]))])
        media = [entry | {"bytes": own} for entry, own in zip(row["media"], data, strict=True)]
        return row | {"media": media}

    def locate(self, number: int) -> tuple[pa.RecordBatch, int]:
        """As :meth:`ShardReader.locate`; the batch has no ``bytes`` among its media's fields."""
        batch, row = self._locate(number)
        return _without_bytes(batch.rows), row

    def media(self, number: int, media: int) -> bytes:
        """The encoded bytes of one picture or video of a row; nothing else of it is read."""
        return self.media_of([(number, media)])[0]

    def media_of(self, places: Sequence[tuple[int, int]]) -> list[bytes]:
        """The encoded bytes of several media, each named by its row and its number there.

        Those that lie near each other come in one request where the artifact is on S3: ask for all that is
        needed soon at once.

        Raises:
            IndexError: If a row has no such media.
        """
        holders = self._for_each(self._holder, places)
        batches = self._for_each(lambda place: self._locate(place[0]), holders)
        wanted: dict[int, _Wanted] = {}
        for order, ((batch, row), (_, media)) in enumerate(zip(batches, holders, strict=True)):
            own = wanted.setdefault(id(batch), _Wanted(batch, [], []))
            own.orders.append(order)
            own.spans.append(_media_span(batch.rows, row, media))
        groups = list(wanted.values())
        pieces = self._for_each(
            lambda own: own.batch.pieces(_media_data(own.batch.rows)[0], own.spans), groups
        )
        found: dict[int, bytes] = {}
        for own, data in zip(groups, pieces, strict=True):
            found |= zip(own.orders, data, strict=True)
        return [found[order] for order in range(len(places))]

    def _holder(self, place: tuple[int, int]) -> tuple[int, int]:
        """The row and media of the same shard that hold the bytes of a row's media."""
        number, media = place
        batch, row = self._locate(number)
        at = _media_number(batch.rows, row, media, number)
        entries = batch.rows.column("media").values
        at_row = entries.field("at_row")[at].as_py()
        if at_row is None:
            return place
        shard = bisect_right(self._ends, number)
        return (self._ends[shard - 1] if shard else 0) + at_row, entries.field("at_media")[at].as_py()

    def _for_each(self, function: Callable[[Any], Any], work: Sequence[Any]) -> list[Any]:
        """One after the other where the artifact is mapped, side by side where S3 must be waited for."""
        if isinstance(self._folder, RemotePath):
            return side_by_side(function, work, "clean-read")
        return [function(piece) for piece in work]

    def without_bytes(self, number: int) -> Row:
        """A row with its media's kinds, sizes and hashes, but ``bytes`` left out: what layout needs."""
        return super().__getitem__(number)

    def sample(self, number: int) -> CleanSample:
        """A row as a sample, with its media's sizes and hashes but not their bytes."""
        return CleanSample.from_row(self.without_bytes(number))

    def texts(self) -> Iterator[str]:
        """Every text of every sample, in order; no media is touched."""
        number = 0
        while number < len(self):
            batch, _ = self._locate(number)
            for parts in batch.rows.column("parts").to_pylist():
                yield from (part["text"] for part in parts if part["text"])
            number += batch.rows.num_rows


class PackReader(ShardReader):
    """Packed sequences of an artifact by global number.

    Attributes:
        by_kind: Global numbers of the sequences of each kind (``image``, ``video``), ascending, int64.

    Raises:
        StoreError: For an artifact that is not whole.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        index = _read_json(folder / INDEX)
        rows = [shard["rows"] for shard in index["shards"]]
        super().__init__([folder / shard["file"] for shard in index["shards"]], "pack/3", rows)
        _check_total(folder, len(self), index["sequences"])
        kinds = np.load(io.BytesIO(_read_bytes(folder / KINDS_FILE)))
        self.by_kind: dict[str, NDArray[np.int64]] = {
            kind: np.flatnonzero(kinds == number) for number, kind in enumerate(KINDS)
        }

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self._folder}


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is wanted of one batch's media: their places in the answer, and where their bytes lie."""

    batch: Batch
    orders: list[int]
    spans: list[tuple[int, int]]


def _media_data(batch: pa.RecordBatch) -> list[pa.Buffer]:
    """The buffer that holds all media's bytes, one after the other; none where there are no bytes."""
    data = batch.column("media").values.field("bytes").buffers()[2]
    return [] if data is None else [data]


def _media_number(batch: pa.RecordBatch, row: int, media: int, number: int) -> int:
    """Which of the batch's media one of a row's is; ``number`` is the row's in the artifact."""
    offsets = batch.column("media").offsets
    first, end = offsets[row].as_py(), offsets[row + 1].as_py()
    if not 0 <= media < end - first:
        raise IndexError(f"Row {number} has no media {media}, only {end - first} in all.")
    return first + media


def _media_span(batch: pa.RecordBatch, row: int, media: int) -> tuple[int, int]:
    """Where in that buffer the bytes of one of a row's media lie."""
    entries = batch.column("media")
    at = entries.offsets[row].as_py() + media
    offsets = np.frombuffer(entries.values.field("bytes").buffers()[1], np.int64)
    return int(offsets[at]), int(offsets[at + 1])


def _without_bytes(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same rows, nothing copied, with one field fewer in ``media``."""
    column = batch.column("media")
    fields = [field for field in column.type.value_type if field.name != "bytes"]
    kept = pa.StructArray.from_arrays([column.values.field(field.name) for field in fields], fields=fields)
    lists = pa.ListArray.from_arrays(column.offsets, kept)
    return batch.set_column(batch.schema.get_field_index("media"), "media", lists)


def _check_total(folder: Folder, found: int, promised: int) -> None:
    if found != promised:
        raise StoreError(
            f"The shards of {folder} hold {found} rows.",
            f"Its card or index promises {promised}.",
            "Remove the folder and run again.",
        )


def _read_bytes(path: Folder) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise StoreError(
            f"{path.parent} is not a finished artifact.",
            f"It has no {path.name}.",
            "Run the stage that writes it.",
        ) from error


def _read_json(path: Folder) -> Any:
    try:
        return json.loads(_read_bytes(path))
    except ValueError as error:
        raise StoreError(
            f"{path.parent} is not a finished artifact.",
            f"Its {path.name} cannot be read: {error}.",
            "Run the stage that writes it.",
        ) from error
