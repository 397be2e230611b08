"""WebP and AVIF files whose end was never written: zeros stand there, and decoders do not complain.

Programs that reserve a download's size leave such files. Zeros are valid codes: the rest of the picture comes
out flat, or as a repetition. A long run of zeros at the end of the pixels' data is looked into with a second
decoding; other files cost nothing.

* AVIF's arithmetic coder ends in a one: zeros that the picture depends on are damage.
* WebP's coders may end in zeros where a picture's lower part is of one colour, but need all of them: damaged
  is a file from which some can be cut off without the decoder missing them.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image

_RUN = 64
"""Zeros at the end that are looked into; decoders read up to 8 bytes ahead."""
_CUT = 32
_PIXELS = (b"VP8 ", b"VP8L")
_MOST_BOXES = 1024


def ends_in_zeros(data: bytes, image_format: str | None) -> bool:
    """Whether a file that its decoder takes for whole has zeros in the place of its last pixels' data."""
    if image_format == "WEBP":
        return _webp(data)
    if image_format == "AVIF":
        return _avif(data)
    return False


def _webp(data: bytes) -> bool:
    """Whether a still picture's chunks stop in zeros, or its pixels' chunk has more of them than it needs."""
    for kind, begin, end in _chunks(data):
        if kind == b"\0\0\0\0":
            return True
        if kind in _PIXELS and _zeros(data, end) >= _RUN:
            size = (end - _CUT - begin) & ~1  # an odd one would need a byte behind it
            head = data[8 : begin - 4] + struct.pack("<I", size) + data[begin : begin + size]
            whole = b"RIFF" + struct.pack("<I", len(head)) + head
            return _pixels(whole) is not None
    return False


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, begin and end of each chunk inside the size that the file states."""
    last = min(len(data), 8 + struct.unpack("<I", data[4:8])[0])
    at = 12
    while at + 8 <= last:
        size = struct.unpack("<I", data[at + 4 : at + 8])[0]
        yield data[at : at + 4], at + 8, min(at + 8 + size, last)
        at += 8 + size + size % 2


def _avif(data: bytes) -> bool:
    """Whether the picture changes with the zeros at the end of the media data."""
    end = 0
    for kind, stop in _boxes(data):
        end = stop if kind == b"mdat" else end
    zeros = _zeros(data, end)
    if zeros < _RUN:
        return False
    noise = np.random.default_rng(0).integers(1, 256, zeros, np.uint8).tobytes()
    seen = _pixels(data[: end - zeros] + noise + data[end:])
    return seen is None or seen != _pixels(data)


def _boxes(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Kind and end of each box at the top level."""
    at = 0
    for _ in range(_MOST_BOXES):
        if at + 16 > len(data):
            return
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        if size == 1:
            size = struct.unpack(">Q", data[at + 8 : at + 16])[0]
        stop = len(data) if size == 0 else min(at + size, len(data))
        if stop <= at:
            return
        yield kind, stop
        at = stop


def _zeros(data: bytes, end: int) -> int:
    """How many zeros stand before a place."""
    return end - len(data[:end].rstrip(b"\0"))


def _pixels(data: bytes) -> bytes | None:
    """A picture's pixels as its decoder gives them; None where it refuses the file."""
    try:
        with Image.open(io.BytesIO(data), formats=("WEBP", "AVIF")) as image:
            return image.tobytes()
    except (OSError, ValueError, SyntaxError, RuntimeError):
        return None
