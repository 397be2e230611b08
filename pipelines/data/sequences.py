"""Encoded samples → packed rows and back, and the schemas of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa

from casa_core.types import EncodedSample, Image, Sample

_SIZES = ("original_height", "original_width", "height", "width", "tokens")
_TURN = pa.struct([("start", pa.int32()), ("end", pa.int32())])
_ENCODED_IMAGE = [
    ("media", pa.int32()),
    ("timestamp", pa.float64()),  # null for a still picture
    *[(name, pa.int32()) for name in _SIZES],
]

ENCODED_SCHEMA = pa.schema(
    [
        ("row", pa.int32()),
        ("sample_id", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("loss_mask", pa.list_(pa.bool_())),
        ("image_positions", pa.list_(pa.int32())),
        ("images", pa.list_(pa.struct(_ENCODED_IMAGE))),
        ("turns", pa.list_(_TURN)),
    ],
    metadata={"casa.schema": "encoded/1"},
)
"""One sample as ids; ``row`` is its row in the source's clean artifact."""

PACK_SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("loss_mask", pa.list_(pa.bool_())),
        ("document_starts", pa.list_(pa.int32())),
        ("image_positions", pa.list_(pa.int32())),
        ("images", pa.list_(pa.struct([("source", pa.string()), ("row", pa.int32()), *_ENCODED_IMAGE]))),
        (
            "documents",
            pa.list_(
                pa.struct(
                    [
                        ("source", pa.string()),
                        ("sample_id", pa.string()),
                        ("occurrence", pa.int32()),
                        ("turns", pa.list_(_TURN)),
                    ]
                )
            ),
        ),
        ("text_tokens", pa.int32()),
        ("image_tokens", pa.int32()),
        ("kind", pa.string()),
    ],
    metadata={"casa.schema": "pack/1"},
)
"""One sequence: samples with pictures, or one video. Positions and turns count from its first token."""

Kind = Literal["image", "video"]
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Document:
    """One sample of a packed sequence, taken out again; positions and turns count from its own first token.

    Attributes:
        images: As in ``PACK_SCHEMA``: where their bytes lie, their sizes and times.
    """

    source: str
    sample_id: str
    occurrence: int
    input_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    image_positions: tuple[int, ...]
    images: tuple[Row, ...]
    turns: tuple[tuple[int, int], ...]


def encoded_row(row: int, sample: Sample, encoded: EncodedSample) -> Row:
    """A row of ``ENCODED_SCHEMA``."""
    parts = [part for part in sample.parts if isinstance(part, Image)]
    return {
        "row": row,
        "sample_id": sample.sample_id,
        "input_ids": encoded.input_ids,
        "loss_mask": encoded.loss_mask,
        "image_positions": encoded.image_positions,
        "images": [
            {"media": part.media, "timestamp": part.timestamp, **asdict(size)}
            for part, size in zip(parts, encoded.images, strict=True)
        ],
        "turns": [{"start": start, "end": end} for start, end in encoded.turns],
    }


def packed_row(documents: Sequence[tuple[str, Mapping[str, Any]]], kind: Kind) -> Row:
    """A row of ``PACK_SCHEMA`` from ``(source, row of ENCODED_SCHEMA)`` pairs, in order."""
    packed: Row = {name: [] for name in PACK_SCHEMA.names[:6]}
    for source, document in documents:
        start = len(packed["input_ids"])
        packed["document_starts"].append(start)
        packed["input_ids"] += document["input_ids"]
        packed["loss_mask"] += document["loss_mask"]
        packed["image_positions"] += [start + position for position in document["image_positions"]]
        packed["images"] += [
            {"source": source, "row": document["row"], **image} for image in document["images"]
        ]
        packed["documents"].append(
            {
                "source": source,
                "sample_id": document["sample_id"],
                "occurrence": 0,
                "turns": [
                    {"start": start + turn["start"], "end": start + turn["end"]} for turn in document["turns"]
                ],
            }
        )
    packed["text_tokens"] = len(packed["input_ids"])
    packed["image_tokens"] = sum(image["tokens"] for image in packed["images"])
    packed["kind"] = kind
    return packed


def documents_of(packed: Mapping[str, Any]) -> list[Document]:
    """The samples of a packed row: what ``packed_row`` joined, taken apart."""
    starts = [*packed["document_starts"], len(packed["input_ids"])]
    documents = []
    for number, entry in enumerate(packed["documents"]):
        start, end = starts[number], starts[number + 1]
        own = [at for at, position in enumerate(packed["image_positions"]) if start <= position < end]
        documents.append(
            Document(
                source=entry["source"],
                sample_id=entry["sample_id"],
                occurrence=entry["occurrence"],
                input_ids=tuple(packed["input_ids"][start:end]),
                loss_mask=tuple(packed["loss_mask"][start:end]),
                image_positions=tuple(packed["image_positions"][at] - start for at in own),
                images=tuple(packed["images"][at] for at in own),
                turns=tuple((turn["start"] - start, turn["end"] - start) for turn in entry["turns"]),
            )
        )
    return documents
