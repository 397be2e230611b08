"""Encoded bytes → pixels: one way to read a picture or a frame, for training, evaluation and serving alike.

All variants of real files are handled here: EXIF orientation, alpha, palettes, CMYK, 16-bit grey, animations,
truncated files, decompression bombs. What cannot be read raises ``MediaError`` with a stable reason.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from casa_core import types
from casa_core.errors import MediaError, cause
from casa_core.media.colour import colour_profile, to_rgb
from casa_core.media.formats import FORMATS, damaged, refused_format, refused_raw, unidentified, unwritten
from casa_core.media.jpeg import mended, without_reserve
from casa_core.media.limits import MAX_PIXELS, PILLOW_PIXELS
from casa_core.media.reader import BoundedReader
from casa_core.media.upright import UPRIGHT, Turn, exif_turn
from casa_core.media.video import VideoFrames
from casa_core.media.zeroed import ends_in_zeros

Rgb = NDArray[np.uint8]
Grey = NDArray[np.uint8]

# Pillow warns of every odd tag of a TIFF, which may have 65,535; what matters is an error.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")
_Result = TypeVar("_Result")
_ORIENTATION = 0x0112
_JPEG_QUALITY = 95
_DRAFT = 8
"""A JPEG is decoded at least this much larger than its thumbnail: then its thumbnail is an average, too."""
_SAMPLES = 32
"""Most pixels of the picture, in a row or a column, that one pixel of its thumbnail averages."""

# How Pillow words the ValueError for a PNG whose compressed text or colour profile is a bomb.
_UNPACKS_WITHOUT_END = ("Decompressed data too large", "Too much memory used in text chunks")
_BREAKS_OFF = "image file is truncated"
# What Pillow's decoders raise for damaged bytes, as found by flipping bits in every format.
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

    EXIF orientation is applied, an animation gives its first frame. For transparency, profiles and deep grey
    see :func:`casa_core.media.colour.to_rgb`; for a JPEG without its end, :mod:`casa_core.media.jpeg`.

    Args:
        data: The encoded file (PNG, JPEG, WebP, GIF, BMP, TIFF, …).
        max_pixels: Refuse a larger picture before anything is allocated for it.

    Returns:
        uint8 array of (height, width, 3).

    Raises:
        MediaError: ``empty_file``, ``not_an_image``, ``unsupported_format``, ``truncated_image`` or
            ``decompression_bomb``.
    """
    return _loaded(data, max_pixels, lambda image: None, lambda image: to_rgb(image, _turn(image)))


def pillow_to_rgb(image: Image.Image) -> Rgb:
    """Pixels of a Pillow image, as ``decode_image`` would give them of its file.

    Raises:
        MediaError: As ``decode_image``, where it comes from a file and cannot be loaded.
    """
    try:
        _leave_xmp_aside(image)
        image.load()
        return to_rgb(image, _turn(image))
    except _DECODER_ERRORS as error:
        raise _damaged(b"", error) from error


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
    rows, columns = thumbnail
    size = (0, 0)
    reduced = False

    def stored_shape(image: Image.Image) -> tuple[int, int]:
        return (rows, columns) if _turn(image).swap else (columns, rows)  # Pillow's order: width, height

    def prepare(image: Image.Image) -> None:
        nonlocal size, reduced
        size = image.size
        width, height = stored_shape(image)
        # In grey where that is the picture's lightness: a profile applies to its colours.
        mode = "L" if colour_profile(image) is None else None
        reduced = image.draft(mode, (width * _DRAFT, height * _DRAFT)) is not None

    def finish(image: Image.Image) -> Verified:
        turn = _turn(image)
        width, height = size if reduced else image.size  # some formats know it only now
        height, width = turn.size(height, width)
        small = turn.of(np.asarray(_small_grey(image, stored_shape(image))))
        return Verified(height, width, image.format or "", np.array(small, dtype=np.uint8))

    return _loaded(data, max_pixels, prepare, finish)


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
    try:
        return _turn(image).size(image.height, image.width)
    except _DECODER_ERRORS as error:
        raise _damaged(data, error) from error


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
            yield decode_image(data, max_pixels=PILLOW_PIXELS)  # its size was judged where it came in
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
    if (refusal := refused_format(data)) is not None:
        raise refusal
    try:
        image = Image.open(BoundedReader(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise unidentified(data, error) from error
    except _DECODER_ERRORS as error:
        raise _damaged(data, error) from error
    if (refusal := refused_raw(image)) is not None:
        raise refusal
    if image.width * image.height > max_pixels:
        raise _bomb(f"{image.width} x {image.height} pixels are more than the {max_pixels} allowed.")
    _leave_xmp_aside(image)
    return image


def _loaded(
    data: bytes,
    max_pixels: int,
    prepare: Callable[[Image.Image], None],
    finish: Callable[[Image.Image], _Result],
) -> _Result:
    """What ``finish`` makes of a picture, its pixels decoded as ``prepare`` sets it up."""
    data = without_reserve(data)
    image = _open(data, max_pixels)
    try:
        prepare(image)
        try:
            image.load()
        except OSError as error:
            jpeg = image.format in ("JPEG", "MPO") and str(error).startswith(_BREAKS_OFF)
            whole = mended(data) if jpeg else None
            if whole is None:
                raise
            image = _open(whole, max_pixels)
            prepare(image)
            image.load()
        if ends_in_zeros(data, image.format):
            raise unwritten(data)
        return finish(image)
    except _DECODER_ERRORS as error:
        raise _damaged(data, error) from error


def _leave_xmp_aside(image: Image.Image) -> None:
    """Browsers do not look for an orientation in XMP; Pillow does as it loads a TIFF."""
    if image.format == "TIFF":
        image.info.pop("xmp", None)


def _turn(image: Image.Image) -> Turn:
    """How the stored picture becomes upright: as EXIF states it, or AVIF's own boxes; not as XMP does."""
    if image.format == "TIFF":  # Pillow turns a TIFF by itself, its size already at opening
        return UPRIGHT
    image.getexif()  # looks for it behind a PNG's pixels, too
    exif = Image.Exif()
    exif.load(image.info.get("exif", b""))
    return exif_turn(exif.get(_ORIENTATION, 1))


def _small_grey(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A picture of any mode → grey of (width, height), each pixel an average of its part of the picture."""
    # For a large picture a grid of pixels is averaged, a thousand for each of the result: ten times cheaper.
    width, height = (min(side, _SAMPLES * own) for side, own in zip(image.size, size, strict=True))
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.NEAREST)
    if image.mode not in ("L", "RGB") or "transparency" in image.info or colour_profile(image) is not None:
        image = Image.fromarray(to_rgb(image))  # averages of raw values mean nothing, or something else
    return image.resize(size, Image.Resampling.BOX).convert("L")


def _damaged(data: bytes, error: Exception) -> MediaError | MemoryError:
    """What a decoder raised → what it means for the file; too little memory means nothing for it."""
    if isinstance(error, MediaError):
        return error
    if isinstance(error, OSError) and "out of memory" in str(error):
        return MemoryError(str(error))
    if isinstance(error, Image.DecompressionBombError) or str(error).startswith(_UNPACKS_WITHOUT_END):
        return _bomb(cause(error))
    return damaged(data, error)


def _bomb(why: str) -> MediaError:
    return MediaError(
        "decompression_bomb",
        "The image is too large to decode.",
        why,
        "Shrink it, or raise max_pixels if you trust its origin.",
    )
