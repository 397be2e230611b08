"""Assembles packed sequences from encoded samples: a whole shard at a time, column by column.

Shape suffixes: D documents (encoded samples in packed order), S sequences, I images, U turns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.data.pack.plan import Ints, ends
from pipelines.data.pack.sequences import DOCUMENT, IMAGE, PACK_SCHEMA


@dataclass(frozen=True, slots=True, kw_only=True)
class Documents:
    """What the sequences of a shard are made of.

    Attributes:
        rows: Rows of ``ENCODED_SCHEMA``, one sequence's after another's; D of them.
        source_D: Name of each document's source.
        occurrence_D: Pass over the data that each belongs to, from 0.
        offsets_S: Document at which each sequence starts, and D at the end; S + 1 numbers.
        video_S: Which sequences are videos.
    """

    rows: pa.RecordBatch
    source_D: pa.StringArray
    occurrence_D: NDArray[np.int32]
    offsets_S: Ints
    video_S: NDArray[np.bool_]


def assemble(documents: Documents) -> pa.RecordBatch:
    """The sequences as rows of ``PACK_SCHEMA``; positions and turns count from a sequence's first token."""
    rows, offsets_S = documents.rows, documents.offsets_S
    text_ends_D = ends(_numbers(rows.column("text_tokens")))
    starts_D = text_ends_D[:-1] - np.repeat(text_ends_D[offsets_S[:-1]], np.diff(offsets_S))
    images_of_D = _lengths(rows.column("image_positions"))
    image_offsets_S = ends(images_of_D)[offsets_S]
    document_of_I = np.repeat(np.arange(rows.num_rows), images_of_D)
    columns = {
        "input_ids": _lists(text_ends_D[offsets_S], rows.column("input_ids").flatten()),
        "loss_mask": _lists(text_ends_D[offsets_S], rows.column("loss_mask").flatten()),
        "document_starts": _lists(offsets_S, _int32(starts_D)),
        "image_positions": _lists(
            image_offsets_S, _shifted(rows.column("image_positions").flatten(), starts_D[document_of_I])
        ),
        "images": _lists(image_offsets_S, _images(documents, document_of_I)),
        "documents": _lists(offsets_S, _documents(documents, starts_D)),
        "text_tokens": _int32(np.diff(text_ends_D[offsets_S])),
        "image_tokens": _int32(np.diff(ends(_numbers(rows.column("image_tokens")))[offsets_S])),
        "kind": pa.array(np.where(documents.video_S, "video", "image").tolist(), pa.string()),
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in PACK_SCHEMA.names], schema=PACK_SCHEMA)


def _images(documents: Documents, document_of_I: Ints) -> pa.StructArray:
    """The images with the source and row that hold their bytes."""
    sizes = documents.rows.column("images").flatten().flatten()
    source = documents.source_D.take(pa.array(document_of_I))
    row = documents.rows.column("row").take(pa.array(document_of_I))
    return pa.StructArray.from_arrays([source, row, *sizes], fields=list(IMAGE))


def _documents(documents: Documents, starts_D: Ints) -> pa.StructArray:
    rows = documents.rows
    turns_of_D = _lengths(rows.column("turns"))
    shift_U = np.repeat(starts_D, turns_of_D)
    spans = rows.column("turns").flatten()
    moved = pa.StructArray.from_arrays(
        [_shifted(bound, shift_U) for bound in spans.flatten()], fields=list(spans.type)
    )
    columns: dict[str, Any] = {
        "source": documents.source_D,
        "row": rows.column("row"),
        "sample_id": rows.column("sample_id"),
        "part": rows.column("part"),
        "occurrence": pa.array(documents.occurrence_D, pa.int32()),
        "frames": rows.column("frames"),
        "turns": _lists(ends(turns_of_D), moved),
    }
    return pa.StructArray.from_arrays([columns[field.name] for field in DOCUMENT], fields=list(DOCUMENT))


def _lengths(lists: pa.ListArray) -> Ints:
    return _numbers(lists.value_lengths()).astype(np.int64)


def _numbers(column: pa.Array) -> NDArray[np.integer]:
    return column.to_numpy(zero_copy_only=False)


def _lists(offsets: Ints, values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(_int32(offsets), values)


def _shifted(values: pa.Array, by: Ints) -> pa.Array:
    return _int32(_numbers(values) + by)


def _int32(values: NDArray[np.integer]) -> pa.Array:
    return pa.array(values.astype(np.int32), pa.int32())
