"""Small pictures and videos in every shape they come in."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from casa_core.errors import MediaError
from pipelines.data.generate.moving_shapes import encode_video, pick_codec

SIDE = 64


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    """The bytes of a picture file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def scene(height: int = 24, width: int = 40) -> np.ndarray:
    """A picture without symmetry: a horizontal and a vertical ramp, and a dark corner at the top left."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[..., 0] = np.linspace(60, 250, width)
    rgb[..., 1] = np.linspace(60, 250, height)[:, None]
    rgb[: height // 4, : width // 4] = 0
    return rgb


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header promises any size, with no pixels behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 64)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def grey_level(number: int) -> int:
    """The grey that frame ``number`` of ``counting_video`` is filled with."""
    return 20 + 5 * number


def counting_video(path: Path, frames: int = 40, fps: int = 10) -> bytes:
    """An mp4 whose every frame has its own grey, so that a frame can be told by its colour."""
    pictures = (np.full((SIDE, SIDE, 3), grey_level(number), np.uint8) for number in range(frames))
    encode_video(path, pictures, fps, pick_codec())
    return path.read_bytes()


def reason_of(call: Callable[..., object], *arguments: Any, **options: Any) -> str:
    """The reason of the ``MediaError`` that a call raises, which survives pickling."""
    with pytest.raises(MediaError) as caught:
        call(*arguments, **options)
    assert pickle.loads(pickle.dumps(caught.value)).reason == caught.value.reason
    return caught.value.reason


def reason_if_any(call: Callable[..., object], *arguments: Any, **options: Any) -> str | None:
    """The reason of the ``MediaError`` that a call raises; ``None`` where it raises none."""
    try:
        call(*arguments, **options)
    except MediaError as error:
        return error.reason
    return None
