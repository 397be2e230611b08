"""Schemas of encoded samples and packed sequences, and a packed row split into its documents again.

:mod:`pipelines.data.pack.assemble` makes the second from the first.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa

from casa_core.types import EncodedSample, Image, Sample
from pipelines.data.store.rows import is_video

_SIZES = ("original_height", "original_width", "height", "width", "tokens")
_TURN = pa.struct([("start", pa.int32()), ("end", pa.int32())])
_ENCODED_IMAGE = [
    ("media", pa.int32()),
    ("timestamp", pa.float64()),  # null for a still picture
    *[(name, pa.int32()) for name in _SIZES],
    ("most_tokens", pa.int32()),  # null where the resolution alone bounds it
]

ENCODED_SCHEMA = pa.schema(
    [
        ("row", pa.int32()),
        ("part", pa.int32()),
        ("sample_id", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("loss_mask", pa.list_(pa.bool_())),
        ("image_positions", pa.list_(pa.int32())),
        ("images", pa.list_(pa.struct(_ENCODED_IMAGE))),
        ("turns", pa.list_(_TURN)),
        ("text_tokens", pa.int32()),
        ("image_tokens", pa.int32()),
        ("frames", pa.int32()),
        ("video", pa.bool_()),
    ],
    metadata={"casa.schema": "encoded/3"},
)
"""One sample as ids. ``row`` is its row in the source's clean artifact; of a sample that had to be split,
``part`` counts the pieces from 0. ``frames``: images it had before its video was thinned. A shard's metadata
names the source (``casa.source``)."""

DOCUMENT = pa.struct(
    [
        ("source", pa.string()),
        ("row", pa.int32()),
        ("sample_id", pa.string()),
        ("part", pa.int32()),
        ("occurrence", pa.int32()),
        ("frames", pa.int32()),
        ("turns", pa.list_(_TURN)),
    ]
)
IMAGE = pa.struct([("source", pa.string()), ("row", pa.int32()), *_ENCODED_IMAGE])

PACK_SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("loss_mask", pa.list_(pa.bool_())),
        ("document_starts", pa.list_(pa.int32())),
        ("image_positions", pa.list_(pa.int32())),
        ("images", pa.list_(IMAGE)),
        ("documents", pa.list_(DOCUMENT)),
        ("text_tokens", pa.int32()),
        ("image_tokens", pa.int32()),
        ("kind", pa.string()),
    ],
    metadata={"casa.schema": "pack/3"},
)
"""One sequence: samples with pictures, or one video. Positions and turns count from its first token."""

Kind = Literal["image", "video"]
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Document:
    """One sample of a packed sequence, or one piece of a split one.

    Positions and turns count from its own first token.

    Attributes:
        row: Row of the source's clean artifact.
        part: Piece of the sample, from 0; 0 where it was not split.
        occurrence: Pass over the data, from 0.
        frames: Images that the sample, or the piece, had before its video was thinned.
        images: Source, row and media that hold their bytes, sizes and times, as in ``PACK_SCHEMA``.
    """

    source: str
    row: int
    sample_id: str
    part: int
    occurrence: int
    frames: int
    input_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    image_positions: tuple[int, ...]
    images: tuple[Row, ...]
    turns: tuple[tuple[int, int], ...]


def encoded_row(
    row: int,
    sample: Sample,
    encoded: EncodedSample,
    part: int = 0,
    *,
    most_tokens: int | None = None,
    frames: int | None = None,
) -> Row:
    """A row of ``ENCODED_SCHEMA``.

    Args:
        most_tokens: Bound on its frames' tokens, where its video was over the budget.
        frames: Images it had before its video was thinned; those it has, where it was not.
    """
    images = [image for image in sample.parts if isinstance(image, Image)]
    return {
        "row": row,
        "part": part,
        "sample_id": sample.sample_id,
        "input_ids": encoded.input_ids,
        "loss_mask": encoded.loss_mask,
        "image_positions": encoded.image_positions,
        "images": [
            {
                "media": image.media,
                "timestamp": image.timestamp,
                **asdict(size),
                "most_tokens": most_tokens if image.timestamp is not None else None,
            }
            for image, size in zip(images, encoded.images, strict=True)
        ],
        "turns": [{"start": start, "end": end} for start, end in encoded.turns],
        "text_tokens": len(encoded.input_ids),
        "image_tokens": sum(size.tokens for size in encoded.images),
        "frames": len(images) if frames is None else frames,
        "video": is_video(sample),
    }


def documents_of(packed: Mapping[str, Any]) -> list[Document]:
    """The samples of a row of ``PACK_SCHEMA``; positions and turns count from each one's first token."""
    starts = [*packed["document_starts"], len(packed["input_ids"])]
    positions = packed["image_positions"]  # ascending
    documents = []
    for number, entry in enumerate(packed["documents"]):
        start, end = starts[number], starts[number + 1]
        own = range(bisect_left(positions, start), bisect_left(positions, end))
        documents.append(
            Document(
                source=entry["source"],
                row=entry["row"],
                sample_id=entry["sample_id"],
                part=entry["part"],
                occurrence=entry["occurrence"],
                frames=entry["frames"],
                input_ids=tuple(packed["input_ids"][start:end]),
                loss_mask=tuple(packed["loss_mask"][start:end]),
                image_positions=tuple(positions[at] - start for at in own),
                images=tuple(packed["images"][at] for at in own),
                turns=tuple((turn["start"] - start, turn["end"] - start) for turn in entry["turns"]),
            )
        )
    return documents
