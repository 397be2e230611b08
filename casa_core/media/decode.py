"""Encoded bytes → pixels: one way to read a picture or a frame, for training, evaluation and serving alike.

All variants of real files are handled here: EXIF orientation, alpha, palettes, CMYK, 16-bit grey, animations,
truncated files, decompression bombs. What cannot be read raises ``MediaError`` with a stable reason.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from casa_core import types
from casa_core.errors import MediaError, cause
from casa_core.media.video import VideoFrames

Rgb = NDArray[np.uint8]
Grey = NDArray[np.uint8]

# Formats are named so that no plugin that calls another program (EPS → Ghostscript) sees untrusted bytes.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "ICO", "TGA", "JPEG2000")
_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"II*\x00", b"MM\x00*", b"BM")
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = frozenset({5, 6, 7, 8})
_JPEG_QUALITY = 95
MAX_PIXELS = 178_956_970
_DRAFT = 8
"""A JPEG is decoded at least this much larger than its thumbnail: then its thumbnail is an average, too."""
_SAMPLES = 32
"""Most pixels of the picture, in a row or a column, that one pixel of its thumbnail averages."""

# How Pillow words the ValueError for a PNG whose compressed text or colour profile is a bomb.
_UNPACKS_WITHOUT_END = ("Decompressed data too large", "Too much memory used in text chunks")

# What Pillow's decoders raise for damaged bytes, as found by flipping bits in every format above.
_DECODER_ERRORS = (
    Image.DecompressionBombError,
    ArithmeticError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Rgb:
    """Decodes a picture to RGB.

    EXIF orientation is applied, transparency is laid on white, an animation gives its first frame, 16-bit
    grey keeps its upper 8 bits.

    Args:
        data: The encoded file (PNG, JPEG, WebP, GIF, BMP, TIFF, …).
        max_pixels: Refuse a larger picture before anything is allocated for it.

    Returns:
        uint8 array of (height, width, 3).

    Raises:
        MediaError: ``empty_file``, ``not_an_image``, ``truncated_image`` or ``decompression_bomb``.
    """
    return np.array(load_image(data, max_pixels=max_pixels), dtype=np.uint8)


def load_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """As ``decode_image``, but as a Pillow image of mode RGB."""
    image = _open(data, max_pixels)
    try:
        image.load()
        return flattened(_upright(image, _orientation(image)))
    except _DECODER_ERRORS as error:
        raise _damaged(data, error) from error


@dataclass(frozen=True, slots=True)
class Verified:
    """What :func:`verify_image` finds of a good picture.

    Attributes:
        height, width: Size of the array that ``decode_image`` returns.
        format: Pillow's name of the file's format.
        thumbnail: The upright picture in grey, averaged; (rows, columns) as asked for.
    """

    height: int
    width: int
    format: str
    thumbnail: Grey


def verify_image(
    data: bytes, *, max_pixels: int = MAX_PIXELS, thumbnail: tuple[int, int] = (8, 9)
) -> Verified:
    """Decodes a picture once to find out whether ``decode_image`` would, without building its RGB array.

    All of a JPEG's coefficients are read, which is where damage shows, but pixels are made at an eighth of
    its size, in grey: most of a full decoding's time and memory is saved.

    Args:
        data, max_pixels: As for ``decode_image``.
        thumbnail: Rows and columns of the thumbnail wanted.

    Raises:
        MediaError: As ``decode_image``, for the same files.
    """
    image = _open(data, max_pixels)
    rows, columns = thumbnail
    try:
        orientation = _orientation(image)
        turned = orientation in _TURNED
        stored = (rows, columns) if turned else (columns, rows)  # Pillow's order: width, height
        size = image.size
        reduced = image.draft("L", (stored[0] * _DRAFT, stored[1] * _DRAFT)) is not None
        image.load()
        width, height = size if reduced else image.size  # some formats know it only now
        small = _upright(_small_grey(image, stored), orientation)
    except _DECODER_ERRORS as error:
        raise _damaged(data, error) from error
    if turned:
        height, width = width, height
    return Verified(height, width, image.format or "", np.array(small, dtype=np.uint8))


def encode_png(rgb: Rgb) -> bytes:
    """Pixels (height, width, 3) → a PNG file, without loss."""
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, format="PNG")
    return file.getvalue()


def encode_jpeg(rgb: Rgb) -> bytes:
    """Pixels (height, width, 3) → a JPEG file of quality 95, with full colour resolution."""
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, format="JPEG", quality=_JPEG_QUALITY, subsampling="4:4:4")
    return file.getvalue()


def image_header(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[str, int]:
    """Pillow's name of a picture's format, and how many pixels it claims to have; nothing is decoded.

    Raises:
        MediaError: As ``decode_image``, as far as the header shows it.
    """
    image = _open(data, max_pixels)
    return image.format or "", image.width * image.height


def image_dimensions(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width of the picture that ``decode_image`` returns, from its header where the format allows.

    Raises:
        MediaError: As ``decode_image``; damage behind the header may go unnoticed.
    """
    image = _open(data, max_pixels)
    width, height = image.size
    try:
        turned = _orientation(image) in _TURNED
    except _DECODER_ERRORS as error:
        raise _damaged(data, error) from error
    return (width, height) if turned else (height, width)


def image_sizes(sample: types.Sample) -> list[tuple[int, int]]:
    """(height, width) of every image of a sample, in order, from the headers of pictures and videos.

    Raises:
        MediaError: If bytes are missing or are no picture or video.
    """
    videos: dict[bytes, tuple[int, int]] = {}
    sizes = []
    for data, time in _encoded(sample):
        if time is None:
            sizes.append(image_dimensions(data))
            continue
        if data not in videos:
            with VideoFrames(data) as video:
                videos[data] = video.height, video.width
        sizes.append(videos[data])
    return sizes


def decode_images(sample: types.Sample) -> Iterator[Rgb]:
    """Pixels of every image of a sample, in order, one at a time: see :func:`decode_pictures`.

    Raises:
        MediaError: If bytes are missing or cannot be decoded.
    """
    yield from decode_pictures(_encoded(sample))


def _encoded(sample: types.Sample) -> list[tuple[bytes, float | None]]:
    """The encoded file and the time of every image of a sample."""
    pictures: list[tuple[bytes, float | None]] = []
    for image in sample.parts:
        if isinstance(image, types.Image):
            if image.data is None:
                raise MediaError(
                    "missing_image", f"Sample {sample.sample_id!r} names an image but holds no bytes of it."
                )
            pictures.append((image.data, image.timestamp))
    return pictures


def decode_pictures(pictures: Sequence[tuple[bytes, float | None]]) -> Iterator[Rgb]:
    """Pixels of still pictures and video frames, in order; each video is opened once for all its frames.

    One picture is in memory at a time: resize or copy what you need of it before you ask for the next.

    Args:
        pictures: The encoded file of each, and its time in seconds; ``None`` for a still picture.

    Raises:
        MediaError: At the picture, or at the first frame of the video, that cannot be decoded.
    """
    times: dict[bytes, list[float]] = {}
    for data, time in pictures:
        if time is not None:
            times.setdefault(data, []).append(time)
    frames: dict[bytes, Iterator[Rgb]] = {}
    for data, time in pictures:
        if time is None:
            yield decode_image(data)
            continue
        if data not in frames:
            frames[data] = _frames(data, tuple(times[data]))
        yield next(frames[data])
        times[data].pop()
        if not times[data]:
            del frames[data]  # with its decoder, which keeps frames of its own


def _frames(data: bytes, times: Sequence[float]) -> Iterator[Rgb]:
    with VideoFrames(data) as video:
        yield from video.at(times)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise MediaError("empty_file", "The image file is empty.", "It has no bytes.")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        if data.startswith(_MAGIC):
            raise _truncated(data, error) from error
        raise MediaError(
            "not_an_image",
            "The bytes are not an image.",
            f"They begin with {data[:8]!r}, which no supported format does.",
            "Use PNG, JPEG, WebP, GIF, BMP or TIFF.",
        ) from error
    except _DECODER_ERRORS as error:
        raise _damaged(data, error) from error
    if image.width * image.height > max_pixels:
        raise _bomb(f"{image.width} x {image.height} pixels are more than the {max_pixels} allowed.")
    return image


def flattened(image: Image.Image) -> Image.Image:
    """A picture of any Pillow mode → RGB, transparency on white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey_to_rgb(image)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)
        layer = image.convert(straight).convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _deep_grey_to_rgb(image: Image.Image) -> Image.Image:
    """Integer grey counts as 16-bit; floating-point grey as 0 to 1 if it stays within, otherwise to 255."""
    grey = np.asarray(image, dtype=np.float64)
    if image.mode == "F":
        scaled = grey * 255.0 if grey.size and grey.max() <= 1.0 else grey
    else:
        scaled = np.floor(grey / 256.0)
    return Image.fromarray(np.clip(np.nan_to_num(scaled), 0, 255).astype(np.uint8)).convert("RGB")


def _orientation(image: Image.Image) -> int:
    """EXIF's number for how the stored picture must be turned; 1 where it stands upright."""
    if image.format == "TIFF":  # Pillow turns a TIFF by itself, its size already at opening
        return 1
    return image.getexif().get(_ORIENTATION, 1)


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    method = _UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)


def _small_grey(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A picture of any mode → grey of (width, height), each pixel an average of its part of the picture."""
    if image.mode not in ("L", "RGB", "RGBA") or "transparency" in image.info:
        image = flattened(image)  # palettes, 16 bits, CMYK: averages of their raw values mean nothing
    # For a large picture a grid of pixels is averaged, a thousand for each of the result: ten times cheaper.
    width, height = (min(side, _SAMPLES * own) for side, own in zip(image.size, size, strict=True))
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.NEAREST)
    return flattened(image.resize(size, Image.Resampling.BOX)).convert("L")


def _damaged(data: bytes, error: Exception) -> MediaError | MemoryError:
    """What a decoder raised → what it means for the file; too little memory means nothing for it."""
    if isinstance(error, OSError) and "out of memory" in str(error):
        return MemoryError(str(error))
    if isinstance(error, Image.DecompressionBombError) or str(error).startswith(_UNPACKS_WITHOUT_END):
        return _bomb(cause(error))
    return _truncated(data, error)


def _truncated(data: bytes, error: BaseException) -> MediaError:
    why = f"{len(data)} bytes, {cause(error)}"
    return MediaError(
        "truncated_image",
        "The image is truncated or damaged.",
        why,
        "Fetch the file again, or leave the record out.",
    )


def _bomb(why: str) -> MediaError:
    return MediaError(
        "decompression_bomb",
        "The image is too large to decode.",
        why,
        "Shrink it, or raise max_pixels if you trust its origin.",
    )
