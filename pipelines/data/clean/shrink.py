"""Shrinking pictures above a source's size limit: the only step that changes a picture's bytes."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from casa_core.media.decode import decode_image, encode_jpeg, encode_png

_LOSSY = frozenset({"JPEG", "MPO", "WEBP", "AVIF", "JPEG2000"})


def shrunk(data: bytes, file_format: str, side: int, *, max_pixels: int) -> bytes:
    """A picture encoded anew with at most ``side`` squared pixels, its aspect kept as whole pixels allow.

    What was lossy becomes a JPEG of quality 95 with full colour resolution, anything else a PNG. The picture
    is upright, on white where it was transparent, and without metadata: as ``decode_image`` shows it.

    Args:
        file_format: Pillow's name of the encoded file's format.
        side: Side of the square, in pixels, with as many pixels as are kept.

    Raises:
        MediaError: As ``decode_image``.
    """
    image = Image.fromarray(decode_image(data, max_pixels=max_pixels))
    smaller = image.resize(shrunk_size(image.width, image.height, side), Image.Resampling.LANCZOS)
    encode = encode_jpeg if file_format in _LOSSY and not _lossless_webp(data) else encode_png
    return encode(np.asarray(smaller))


def shrunk_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height with at most ``side`` squared pixels; unchanged where there are no more."""
    scale = side / math.sqrt(width * height)
    if scale >= 1:
        return width, height
    short = max(1, math.floor(min(width, height) * scale))
    # A strip of one pixel's height may be as long as the area allows.
    long = min(math.floor(max(width, height) * scale), side * side // short)
    return (long, short) if width >= height else (short, long)


def _lossless_webp(data: bytes) -> bool:
    """Whether a WebP file's first picture is coded without loss. Chunks are a name, a length, bytes."""
    if data[8:12] != b"WEBP":
        return False
    place = 12
    while place + 8 <= len(data):
        name = data[place : place + 4]
        if name in (b"VP8 ", b"VP8L"):
            return name == b"VP8L"
        length = int.from_bytes(data[place + 4 : place + 8], "little")
        inside = name == b"ANMF"  # a frame's header of 16 bytes, and then chunks again
        place += 8 + (16 if inside else length + length % 2)
    return False
