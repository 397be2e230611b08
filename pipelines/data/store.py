"""Arrow shards on disk: written atomically, read by memory map with random access by row number."""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa

from casa_core.errors import StoreError

CARD = "card.json"
INDEX = "index.json"
ROWS_PER_BATCH = 256
BYTES_PER_BATCH = 64 << 20
Row = dict[str, Any]


def write_shard(path: Path, schema: pa.Schema, rows: Iterable[Row], size_of: Any = None) -> int:
    """Writes one Arrow IPC file: under another name first, then moved into place.

    Args:
        path: The file; an earlier one is replaced.
        schema: Of every row, with its version in the metadata.
        rows: In order; consumed in batches, so that memory does not grow with the shard.
        size_of: Bytes of a row, where rows can be large; batches are kept below ``BYTES_PER_BATCH``.

    Returns:
        How many rows were written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    count = 0
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        batch: list[Row] = []
        size = 0
        for row in rows:
            batch.append(row)
            size += size_of(row) if size_of is not None else 0
            if len(batch) == ROWS_PER_BATCH or size >= BYTES_PER_BATCH:
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
                count += len(batch)
                batch, size = [], 0
        if batch:
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
            count += len(batch)
    temporary.replace(path)
    return count


def write_batches(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """As :func:`write_shard`, from rows that are in columns already; returns how many there were."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    count = 0
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in batches:
            for start in range(0, batch.num_rows, ROWS_PER_BATCH):
                part = batch.slice(start, ROWS_PER_BATCH).replace_schema_metadata(schema.metadata)
                writer.write_batch(part)
                count += part.num_rows
    temporary.replace(path)
    return count


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON document atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def remove_leftovers(folder: Path) -> None:
    """Removes the unfinished files that a killed writer left in a folder."""
    for path in folder.glob(".*.*.*"):
        if path.is_file():
            path.unlink()


class ShardReader:
    """Rows of several Arrow IPC files as one sequence; the files are mapped, only asked-for rows are copied.

    Args:
        paths: The files, in order.
        schema_name: What their ``casa.schema`` metadata must say.

    Raises:
        StoreError: For a file that is missing, cut, or of another schema.
    """

    def __init__(self, paths: Iterable[Path], schema_name: str) -> None:
        self._paths = tuple(paths)
        self._schema_name = schema_name
        self._open()

    def _open(self) -> None:
        self._batches: list[pa.RecordBatch] = []
        self.metadata: dict[str, str] = {}
        for path in self._paths:
            file = _open_shard(path)
            found = {key.decode(): value.decode() for key, value in (file.schema.metadata or {}).items()}
            if found.get("casa.schema") != self._schema_name:
                raise StoreError(
                    f"{path} holds rows of schema {found.get('casa.schema')!r}.",
                    f"This version reads {self._schema_name!r}.",
                    "Run the stage that wrote it again.",
                )
            self.metadata = found
            self._batches += [file.get_batch(number) for number in range(file.num_record_batches)]
        self._ends = list(accumulate(batch.num_rows for batch in self._batches))

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self._paths, "schema_name": self._schema_name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["paths"], state["schema_name"])

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int) -> Row:
        batch, row = self.locate(number)
        return batch.slice(row, 1).to_pylist()[0]

    def locate(self, number: int) -> tuple[pa.RecordBatch, int]:
        """The record batch that holds a row, and the row's number in it.

        Raises:
            IndexError: Past the end; so that iterating over a reader ends.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        place = bisect_right(self._ends, number)
        return self._batches[place], number - (self._ends[place - 1] if place else 0)


class CleanReader(ShardReader):
    """Samples of one split of a clean artifact, by row number.

    Args:
        folder: The artifact.
        split: ``train`` or ``test``.

    Raises:
        StoreError: For an artifact that is not whole.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self._folder, self._split = folder, split
        card = _read_json(folder / CARD)
        super().__init__(sorted(folder.glob(f"{split}-*.arrow")), "clean/2")
        expected = card["splits"].get(split, {"rows": 0})["rows"]
        if len(self) != expected:
            raise StoreError(
                f"{folder} holds {len(self)} {split} rows.",
                f"Its card promises {expected}.",
                "Remove the folder and run again.",
            )

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self._folder, "split": self._split}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"], state["split"])

    def media(self, number: int, media: int) -> bytes:
        """The encoded bytes of one picture or video of a row; nothing else of it is read."""
        batch, row = self.locate(number)
        entries = batch.column("media")
        first, end = entries.offsets[row].as_py(), entries.offsets[row + 1].as_py()
        if not 0 <= media < end - first:
            raise IndexError(f"media {media} of {end - first} in row {number}")
        return entries.values.field("bytes")[first + media].as_py()

    def without_bytes(self, number: int) -> Row:
        """A row with its media's kinds, sizes and hashes, but ``bytes`` left out: what layout needs."""
        batch, row = self.locate(number)
        entries = batch.column("media")
        first, end = entries.offsets[row].as_py(), entries.offsets[row + 1].as_py()
        values = entries.values
        sizes = [
            {name: values.field(name)[at].as_py() for name in ("kind", "width", "height", "sha256", "phash")}
            for at in range(first, end)
        ]
        columns = ("sample_id", "source", "parts", "meta")
        return {name: batch.column(name)[row].as_py() for name in columns} | {"media": sizes}

    def texts(self) -> Iterator[str]:
        """Every text of every sample, in order; no media is touched."""
        for batch in self._batches:
            for parts in batch.column("parts").to_pylist():
                yield from (part["text"] for part in parts if part["text"])


class PackReader(ShardReader):
    """Packed sequences by global number.

    Args:
        folder: The pack artifact.

    Attributes:
        by_kind: Global numbers of the sequences of each kind (``image``, ``video``), in order.

    Raises:
        StoreError: For an artifact that is not whole.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        index = _read_json(folder / INDEX)
        super().__init__([folder / shard["file"] for shard in index["shards"]], "pack/2")
        self.by_kind: dict[str, list[int]] = index["by_kind"]
        if len(self) != index["sequences"]:
            raise StoreError(
                f"{folder} holds {len(self)} sequences.",
                f"Its index promises {index['sequences']}.",
                "Remove the folder and run again.",
            )

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self._folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])


def _open_shard(path: Path) -> pa.ipc.RecordBatchFileReader:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path)))
    except FileNotFoundError as error:
        raise StoreError(
            f"The shard {path} is missing.",
            "The artifact's index names it.",
            "Remove the folder and run again.",
        ) from error
    except (pa.ArrowException, OSError) as error:
        raise StoreError(
            f"The shard {path} is damaged.", str(error), "Remove the folder and run again."
        ) from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        raise StoreError(
            f"{path.parent} is not a finished artifact.",
            f"{path.name} cannot be read: {error}",
            "Run the stage that writes it.",
        ) from error
