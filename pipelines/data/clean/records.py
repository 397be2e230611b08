"""Verification of one record: every picture and video decoded → a ``CleanSample``, or why it is rejected."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from casa_core.errors import MediaError
from casa_core.media.decode import VideoFrames, image_header, verify_image
from casa_core.media.limits import MAX_PIXELS
from casa_core.types import Image
from pipelines.data.clean.perceptual import THUMBNAIL, difference_hash
from pipelines.data.clean.shrink import shrunk
from pipelines.data.read import RawMedia, Record
from pipelines.data.store.quarantine import Rejected
from pipelines.data.store.rows import CleanSample, Media

SHRUNK = "shrunk"
"""Key of a row's ``meta`` that lists the pictures whose bytes are not the corpus's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureLimits:
    """How large a source's pictures may be.

    Attributes:
        max_pixels: A picture that claims more is not decoded, but quarantined as ``decompression_bomb``.
            It bounds a worker's memory: see :mod:`casa_core.media.limits`.
        shrink_above: Side, in pixels, of the square to whose area a larger picture is encoded anew. None:
            bytes are always kept.
    """

    max_pixels: int = MAX_PIXELS
    shrink_above: int | None = None


DEFAULT_LIMITS = PictureLimits()


def clean_record(record: Record, limits: PictureLimits = DEFAULT_LIMITS) -> CleanSample | Rejected:
    """Decodes every picture once, and every video at all times that the sample uses."""
    media: list[Media] = []
    replaced: list[dict[str, Any]] = []
    for number, raw in enumerate(record.media):
        digest = hashlib.sha256(raw.data).hexdigest()
        try:
            if raw.kind == "video":
                media.append(_video(raw, digest, _timestamps(record, number)))
                continue
            small = _shrunk(raw.data, limits)
            if small is None:
                media.append(_picture(raw.data, digest, limits))
            else:
                media.append(_picture(small, hashlib.sha256(small).hexdigest(), limits))
                replaced.append({"media": number, "bytes": len(raw.data), "sha256": digest})
        except MediaError as error:
            return Rejected(
                source=record.sample.source,
                file=record.file,
                row=record.row,
                sample_id=record.sample.sample_id,
                reason=error.reason,
                detail=f"{raw.name}: {' '.join(filter(None, (error.what, error.why, error.remedy)))}",
                sha256=digest,
            )
    meta = record.meta | ({SHRUNK: replaced} if replaced else {})
    return CleanSample(sample=record.sample, media=tuple(media), meta=meta)


def _picture(data: bytes, digest: str, limits: PictureLimits) -> Media:
    found = verify_image(data, max_pixels=limits.max_pixels, thumbnail=THUMBNAIL)
    return Media(
        kind="image",
        data=data,
        width=found.width,
        height=found.height,
        sha256=digest,
        phash=difference_hash(found.thumbnail),
    )


def _shrunk(data: bytes, limits: PictureLimits) -> bytes | None:
    """The picture's smaller encoding; None where it is within ``limits.shrink_above``."""
    if limits.shrink_above is None:
        return None
    file_format, pixels = image_header(data, max_pixels=limits.max_pixels)
    if pixels <= limits.shrink_above**2:
        return None
    return shrunk(data, file_format, limits.shrink_above, max_pixels=limits.max_pixels)


def _video(raw: RawMedia, digest: str, timestamps: Sequence[float]) -> Media:
    with VideoFrames(raw.data) as video:
        for _ in video.at(timestamps):
            pass  # decoded to find out that it can be, and kept by nobody
    return Media(kind="video", data=raw.data, width=video.width, height=video.height, sha256=digest)


def _timestamps(record: Record, media: int) -> list[float]:
    return [
        part.timestamp
        for part in record.sample.parts
        if isinstance(part, Image) and part.media == media and part.timestamp is not None
    ]
