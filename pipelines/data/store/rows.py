"""``Sample`` ↔ a row of the clean artifact, and that row's schema.

The bytes of a sample's pictures and videos lie in ``media``; an image part names its bytes by their index
there, so that the frames of a clip share one video.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from casa_core.types import Image, Part, Sample, Text

CLEAN_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("source", pa.string()),
        (
            "parts",
            pa.list_(
                pa.struct(
                    [
                        ("kind", pa.string()),
                        ("role", pa.string()),
                        ("text", pa.string()),
                        ("trained", pa.bool_()),
                        ("media", pa.int32()),
                        ("timestamp", pa.float64()),
                    ]
                )
            ),
        ),
        (
            "media",
            pa.list_(
                pa.struct(
                    [
                        ("kind", pa.string()),
                        ("bytes", pa.large_binary()),
                        ("width", pa.int32()),
                        ("height", pa.int32()),
                        ("sha256", pa.string()),
                        ("phash", pa.uint64()),
                    ]
                )
            ),
        ),
        ("meta", pa.string()),
    ],
    metadata={"casa.schema": "clean/2"},
)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """Encoded bytes that were decoded once and found good.

    Attributes:
        kind: A still picture, or a video of which image parts pick frames.
        data: The bytes, as they were found unless the source asks for smaller pictures.
        width, height: Pixels, upright.
        sha256: Of the bytes, hexadecimal.
        phash: Difference hash of a still picture, see ``perceptual.py``; None for a video.
    """

    kind: Literal["image", "video"]
    data: bytes
    width: int
    height: int
    sha256: str
    phash: int | None = None


def row_from_sample(sample: Sample, media: Sequence[Media], meta: Mapping[str, Any]) -> Row:
    """A row of ``CLEAN_SCHEMA``; image parts refer to ``media`` by index."""
    return {
        "sample_id": sample.sample_id,
        "source": sample.source,
        "parts": [_part_to_struct(part) for part in sample.parts],
        "media": [
            {
                "kind": entry.kind,
                "bytes": entry.data,
                "width": entry.width,
                "height": entry.height,
                "sha256": entry.sha256,
                "phash": entry.phash,
            }
            for entry in media
        ],
        "meta": json.dumps(dict(meta), sort_keys=True, ensure_ascii=False),
    }


def sample_from_row(row: Mapping[str, Any], with_bytes: bool = True) -> Sample:
    """The sample a row of ``CLEAN_SCHEMA`` holds; with ``with_bytes``, its image parts carry their bytes."""
    media = [entry["bytes"] for entry in row["media"]] if with_bytes else None
    return Sample(
        source=row["source"],
        sample_id=row["sample_id"],
        parts=tuple(_part_from_struct(struct, media) for struct in row["parts"]),
    )


def is_video(sample: Sample) -> bool:
    """Whether any of its images is a frame of a video."""
    return any(isinstance(part, Image) and part.timestamp is not None for part in sample.parts)


def _part_to_struct(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"kind": "text", "role": part.role, "text": part.text, "trained": part.trained}
    return {
        "kind": "image",
        "role": part.role,
        "trained": False,
        "media": part.media,
        "timestamp": part.timestamp,
    }


def _part_from_struct(struct: Mapping[str, Any], media: Sequence[bytes] | None) -> Part:
    if struct["kind"] == "text":
        return Text(role=struct["role"], text=struct["text"], trained=struct["trained"])
    number = struct["media"]
    data = None if media is None else media[number]
    return Image(role=struct["role"], data=data, media=number, timestamp=struct["timestamp"])
