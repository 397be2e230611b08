"""WebP and AVIF files with zeros in the place of their end are refused; those that rightly end so are not."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from casa_core.media.decode import decode_image, verify_image
from tests.support.data.media import encode, reason_if_any, reason_of

SIDE = 512
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "WebP": ("WEBP", {"quality": 80}),
    "WebP, fast": ("WEBP", {"quality": 30, "method": 0}),
    "WebP without loss": ("WEBP", {"lossless": True}),
    "WebP without loss, fast": ("WEBP", {"lossless": True, "method": 0, "quality": 0}),
    "AVIF": ("AVIF", {"quality": 80}),
    "AVIF in tiles": ("AVIF", {"quality": 80, "tile_rows": 1, "tile_cols": 1}),
}


def photo() -> Image.Image:
    """Blots of all sizes, as in a photograph."""
    rng = np.random.default_rng(0)
    total = np.zeros((SIDE, SIDE, 3))
    for cells in (4, 16, 64, 256):
        blots = Image.fromarray(rng.integers(0, 255, (cells, cells, 3), np.uint8))
        total += np.asarray(blots.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / cells**0.7
    return Image.fromarray((255 * total / total.max()).astype(np.uint8))


def blank_below(upper: str) -> Image.Image:
    """A picture whose lower half is of one colour: its file may end in thousands of zeros."""
    pixels = np.zeros((2 * SIDE, 2 * SIDE, 3), np.uint8)
    if upper == "checks":
        pixels[: SIDE // 2] = (np.indices((SIDE // 2, 2 * SIDE)).sum(0) % 2 * 255)[..., None]
    elif upper == "noise":
        pixels[:SIDE] = np.random.default_rng(0).integers(0, 255, (SIDE, 2 * SIDE, 3), np.uint8)
    elif upper == "a page":
        pixels[:] = 255
        pixels[100:200, 100:800] = 0
    return Image.fromarray(pixels)


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_whose_end_was_never_written_is_refused(kind, share):
    data = encode(photo(), KINDS[kind][0], **KINDS[kind][1])
    written = int(share * len(data))
    zeroed = data[:written] + bytes(len(data) - written)
    assert reason_of(decode_image, zeroed) == reason_of(verify_image, zeroed) == "truncated_image"


@pytest.mark.parametrize("transparent", [False, True])
def test_so_is_one_with_metadata_behind_its_pixels(transparent):
    picture = photo()
    if transparent:
        picture.putalpha(
            Image.fromarray(np.arange(SIDE * SIDE, dtype=np.uint32).astype(np.uint8).reshape(SIDE, SIDE))
        )
    exif = Image.Exif()
    exif[0x010E] = "a description"
    data = encode(picture, "WEBP", exif=exif, xmp=b"<x/>")
    assert reason_if_any(decode_image, data) is None
    assert (
        reason_of(decode_image, data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
        == "truncated_image"
    )


@pytest.mark.parametrize("upper", ["checks", "noise", "a page", "nothing"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_that_is_blank_below_is_whole_though_its_file_ends_in_zeros(kind, upper):
    data = encode(blank_below(upper), KINDS[kind][0], **KINDS[kind][1])
    assert reason_if_any(decode_image, data) is None
    assert reason_if_any(verify_image, data) is None


def test_such_files_do_end_in_zeros():
    data = encode(blank_below("checks"), "WEBP", lossless=True, method=0, quality=0)
    assert data.endswith(bytes(1000))


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_behind_the_file_are_no_damage(kind):
    data = encode(photo(), KINDS[kind][0], **KINDS[kind][1]) + bytes(5000)
    assert reason_if_any(decode_image, data) is None


def test_zeros_in_a_free_box_or_behind_metadata_are_no_damage():
    avif = encode(photo(), "AVIF", quality=80) + struct.pack(">I4s", 4096, b"free") + bytes(4088)
    assert reason_if_any(decode_image, avif) is None
    exif = Image.Exif()
    exif[0x010E] = "x" * 10 + "\0" * 500
    assert reason_if_any(decode_image, encode(photo(), "WEBP", exif=exif)) is None
