"""The rows of a clean artifact: their schema, and the one conversion between a row and a ``CleanSample``.

The bytes of a sample's pictures and videos lie in ``media``; an image part names its bytes by their index
there, so that the frames of a clip share one video. Bytes that an earlier row of the same shard has are not
stored again: ``at_row`` and ``at_media`` name the row, counted in the shard, and its media that holds them.
Everything else about them (size, hashes) is in each row.
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
                        ("bytes", pa.large_binary()),  # null where another row of the shard has them
                        ("at_row", pa.int32()),
                        ("at_media", pa.int32()),
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
    metadata={"casa.schema": "clean/3"},
)

_MEDIA = CLEAN_SCHEMA.field("media").type.value_type
LAYOUT_SCHEMA = CLEAN_SCHEMA.set(
    CLEAN_SCHEMA.get_field_index("media"),
    pa.field("media", pa.list_(pa.struct([field for field in _MEDIA if field.name != "bytes"]))),
)
"""The same rows without the bytes of their media: what layout needs, and all that is read for it."""

_MEDIA_FIELDS = ("kind", "width", "height", "sha256", "phash")

Row = dict[str, Any]
"""A row of an Arrow table as ``to_pylist`` gives it: column → value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """One picture or video that was decoded once and found good.

    Attributes:
        kind: A still picture, or a video of which image parts pick frames.
        data: The encoded bytes, as the corpus has them unless the source asks for smaller pictures; None
            where the row was read without them.
        width, height: Pixels, upright.
        sha256: Hash of the bytes, hexadecimal.
        phash: Difference hash of a still picture, see ``perceptual.py``; None for a video.
    """

    kind: Literal["image", "video"]
    data: bytes | None
    width: int
    height: int
    sha256: str
    phash: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanSample:
    """A sample whose media are verified: what the clean stage writes and every later stage reads.

    Attributes:
        sample: The conversation; its image parts refer to ``media`` by index.
        media: Pictures and videos, each with its size and hash.
        meta: What the corpus states about the sample; JSON values.
    """

    sample: Sample
    media: tuple[Media, ...]
    meta: dict[str, Any]

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> CleanSample:
        """The sample of a row of ``CLEAN_SCHEMA``; its image parts carry bytes where the row has them."""
        media = tuple(
            Media(data=entry.get("bytes"), **{name: entry[name] for name in _MEDIA_FIELDS})
            for entry in row["media"]
        )
        parts = tuple(_part_from_struct(struct, media) for struct in row["parts"])
        sample = Sample(source=row["source"], sample_id=row["sample_id"], parts=parts)
        return cls(sample=sample, media=media, meta=json.loads(row["meta"] or "{}"))

    def to_row(self) -> Row:
        """The sample as a row of ``CLEAN_SCHEMA``."""
        return {
            "sample_id": self.sample.sample_id,
            "source": self.sample.source,
            "parts": [_part_to_struct(part) for part in self.sample.parts],
            "media": [
                {"bytes": entry.data, **{name: getattr(entry, name) for name in _MEDIA_FIELDS}}
                for entry in self.media
            ],
            "meta": json.dumps(self.meta, sort_keys=True, ensure_ascii=False),
        }


def is_video(sample: Sample) -> bool:
    """Whether any of its images is a frame of a video."""
    return any(isinstance(part, Image) and part.timestamp is not None for part in sample.parts)


def is_stream(sample: Sample) -> bool:
    """Whether it is a live stream: an image lies in the assistant's turn."""
    return any(isinstance(part, Image) and part.role == "assistant" for part in sample.parts)


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


def _part_from_struct(struct: Mapping[str, Any], media: Sequence[Media]) -> Part:
    if struct["kind"] == "text":
        return Text(role=struct["role"], text=struct["text"], trained=struct["trained"])
    number = struct["media"]
    return Image(role=struct["role"], data=media[number].data, media=number, timestamp=struct["timestamp"])
