"""Pictures and videos that several rows of a shard show are stored once, with the first of these rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow.compute import call_function


class SharedMedia:
    """Takes the rows of one shard, in order, and drops bytes that an earlier row of it has.

    Attributes:
        count: Media whose bytes were dropped.
        bytes: Bytes that they have.
    """

    def __init__(self) -> None:
        self._first: dict[str, tuple[int, int]] = {}
        self._rows = 0
        self.count = self.bytes = 0

    def share(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Rows of ``CLEAN_SCHEMA`` that follow those before; bytes stay in the first row that has them."""
        column = rows.column("media")
        entries = column.flatten()
        at_M = self._places(entries.field("sha256"), column.value_lengths().to_numpy(zero_copy_only=False))
        if not any(at_M):
            return rows
        here_M = pa.array([at is None for at in at_M])
        bytes_M = entries.field("bytes")
        lengths_M = call_function("binary_length", [bytes_M]).to_numpy(zero_copy_only=False)
        self.count += sum(at is not None for at in at_M)
        self.bytes += int(lengths_M[~here_M.to_numpy(zero_copy_only=False)].sum())
        changed = {
            # Taken, so that the dropped bytes lie in no buffer; `if_else` would only hide them.
            "bytes": bytes_M.take(pa.array([None if at else own for own, at in enumerate(at_M)], pa.int64())),
            "at_row": pa.array([at and at[0] for at in at_M], pa.int32()),
            "at_media": pa.array([at and at[1] for at in at_M], pa.int32()),
        }
        fields = list(entries.type)
        media = pa.StructArray.from_arrays(
            [changed.get(field.name, entries.field(field.name)) for field in fields], fields=fields
        )
        ends = np.concatenate([[0], np.cumsum(column.value_lengths().to_numpy(zero_copy_only=False))])
        lists = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), media)
        return rows.set_column(rows.schema.get_field_index("media"), rows.schema.field("media"), lists)

    def _places(self, digests: pa.Array, length_R: NDArray[np.integer]) -> list[tuple[int, int] | None]:
        """Row and number of the media with each one's bytes; ``None`` where it is the first itself."""
        places = [
            (self._rows + row, number)
            for row, length in enumerate(length_R.tolist())
            for number in range(length)
        ]
        self._rows += len(length_R)
        firsts = (
            self._first.setdefault(digest, place) if digest else place
            for digest, place in zip(digests.to_pylist(), places, strict=True)
        )
        return [None if first == place else first for first, place in zip(firsts, places, strict=True)]
