"""Encoded bytes → pixels: one way to read a picture or a frame, for training, evaluation and serving alike.

Every oddity of real files is settled here: EXIF orientation, alpha, palettes, CMYK, 16-bit grey, animations,
truncated files, decompression bombs. What cannot be read raises ``MediaError`` with a stable reason.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from casa_core import types
from casa_core.errors import MediaError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

Rgb = NDArray[np.uint8]

# Formats are named so that no plugin that calls another program (EPS → Ghostscript) sees untrusted bytes.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "ICO", "TGA", "JPEG2000")
_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"II*\x00", b"MM\x00*", b"BM")
_ORIENTATION = 0x0112
_TURNED = frozenset({5, 6, 7, 8})
_MAX_PIXELS = 178_956_970

# What Pillow's decoders raise for damaged bytes, as found by flipping bits in every format above.
_DECODER_ERRORS = (
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

# Demuxers that can name other files or addresses (HLS, concat, …) are left out.
_CONTAINERS = "mov,mp4,matroska,webm,avi,mpeg,mpegts,flv,ogg,asf,gif,3gp"
_TIME_TOLERANCE = 1e-4
_END_TOLERANCE = 0.5
"""Seconds that the last frame may be asked for after it began: sound often outlasts the picture a little."""
_SEEK_FROM = 4.0
"""Seconds from which seeking to a key frame pays; before, decoding from the start is as fast."""


def decode_image(data: bytes, *, max_pixels: int = _MAX_PIXELS) -> Rgb:
    """Decodes a picture to RGB.

    EXIF orientation is applied, transparency lies on white, of an animation the first frame counts, 16-bit
    grey keeps its upper 8 bits.

    Args:
        data: The encoded file (PNG, JPEG, WebP, GIF, BMP, TIFF, …).
        max_pixels: Refuse a larger picture before anything is allocated for it.

    Returns:
        uint8 array of (height, width, 3).

    Raises:
        MediaError: ``empty_file``, ``not_an_image``, ``truncated_image`` or ``decompression_bomb``.
    """
    image = _open(data, max_pixels)
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
        return np.array(flattened(upright), dtype=np.uint8)
    except Image.DecompressionBombError as error:
        raise _bomb(str(error)) from error
    except _DECODER_ERRORS as error:
        raise _truncated(data, error) from error


def encode_png(rgb: Rgb) -> bytes:
    """Pixels → a PNG file, without loss.

    Args:
        rgb: (height, width, 3).
    """
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, format="PNG")
    return file.getvalue()


def image_dimensions(data: bytes, *, max_pixels: int = _MAX_PIXELS) -> tuple[int, int]:
    """Height and width of the picture that ``decode_image`` returns, from its header where the format allows.

    Raises:
        MediaError: As ``decode_image``; damage behind the header may go unnoticed.
    """
    image = _open(data, max_pixels)
    width, height = image.size
    try:
        # Pillow turns a TIFF by itself, its size already at opening.
        turned = image.format != "TIFF" and image.getexif().get(_ORIENTATION) in _TURNED
    except _DECODER_ERRORS as error:
        raise _truncated(data, error) from error
    return (width, height) if turned else (height, width)


class VideoFrames:
    """Frames of one video by time; a context manager.

    Args:
        data: The encoded file, or where it lies.

    Attributes:
        height, width: Pixels of a frame, upright.
        duration: Seconds, as the container states them.

    Raises:
        MediaError: ``empty_file`` or ``not_a_video``.
    """

    def __init__(self, data: bytes | Path) -> None:
        size = data.stat().st_size if isinstance(data, Path) else len(data)
        if size == 0:
            raise MediaError("empty_file", "The video file is empty.", "It has no bytes.")
        self._container = _open_container(data)
        # FFmpeg lists tracks whose codec it does not know, too; those have no decoder.
        tracks = [track for track in self._container.streams.video if track.codec_context is not None]
        if not tracks:
            self._container.close()
            raise MediaError(
                "not_a_video",
                "The file has no video track that can be decoded.",
                "Use H.264, VP9, AV1 or MPEG-4.",
            )
        self._stream: VideoStream = tracks[0]
        self._stream.codec_context.thread_count = 1  # callers run a video a process, not a process a video
        self._touched = False
        self.height: int = self._stream.height
        self.width: int = self._stream.width
        self.duration: float = self._stated_duration()

    def __enter__(self) -> VideoFrames:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Frees the decoder."""
        self._container.close()

    def at(self, timestamps: Sequence[float]) -> list[Rgb]:
        """The frame on screen at each time: the last one whose presentation time is not after it.

        Args:
            timestamps: Seconds in the video, in any order. Before the first frame counts as on it.

        Returns:
            One uint8 array of (height, width, 3) a timestamp; equal ones share their memory.

        Raises:
            MediaError: ``truncated_video`` where the pictures end or break before a timestamp.
        """
        pictures: dict[float, Rgb] = {}
        if not timestamps:
            return []
        wanted = sorted(set(timestamps))
        frames = self._frames_from(wanted[0])
        shown, picture, upcoming = next(frames, None), None, next(frames, None)
        for time in wanted:
            while upcoming is not None and _begin(upcoming) <= time + _TIME_TOLERANCE:
                shown, picture, upcoming = upcoming, None, next(frames, None)
            if shown is None or (upcoming is None and time > _begin(shown) + self._last_frame_seconds()):
                raise self._ended(shown, time)
            if picture is None:
                picture = shown.to_ndarray(format="rgb24")
            pictures[time] = picture
        return [pictures[time] for time in timestamps]

    def _frames_from(self, time: float) -> Iterator[Any]:
        """Decoded frames in order, from one not after ``time`` on."""
        from av.error import FFmpegError

        try:
            if time >= _SEEK_FROM:
                self._seek(time)
                first = next(self._decode(), None)
                if first is not None and _begin(first) <= time + _TIME_TOLERANCE:
                    yield first
                    yield from self._decode()
                    return
            if self._touched:
                self._seek(0.0)
            yield from self._decode()
        except FFmpegError as error:
            raise MediaError(
                "truncated_video",
                "The video cannot be decoded up to the frames asked for.",
                f"{type(error).__name__}: {error}",
                "Fetch the file again, or leave the record out.",
            ) from error

    def _seek(self, time: float) -> None:
        assert self._stream.time_base is not None
        self._container.seek(int(time / self._stream.time_base), stream=self._stream, backward=True)

    def _decode(self) -> Iterator[Any]:
        self._touched = True
        return (frame for frame in self._container.decode(self._stream) if frame.pts is not None)

    def _last_frame_seconds(self) -> float:
        rate = self._stream.average_rate
        return max(_END_TOLERANCE, 1.0 / float(rate) if rate else 0.0) + _TIME_TOLERANCE

    def _stated_duration(self) -> float:
        if self._stream.duration is not None and self._stream.time_base is not None:
            return float(self._stream.duration * self._stream.time_base)
        return (self._container.duration or 0) / 1_000_000

    def _ended(self, last: Any | None, time: float) -> MediaError:
        end = (
            "no frame could be decoded" if last is None else f"the last frame begins at {_begin(last):.2f} s"
        )
        return MediaError(
            "truncated_video",
            f"The video has no frame at {time:.2f} s.",
            f"Its header states {self.duration:.2f} s, and {end}.",
            "Fetch the file again, or correct the record's times.",
        )


def decode_images(sample: types.Sample) -> list[Rgb]:
    """Pixels of every image of a sample, in order; frames of one video are decoded in one pass.

    Raises:
        MediaError: If bytes are missing or cannot be decoded.
    """
    images = [part for part in sample.parts if isinstance(part, types.Image)]
    frames: dict[int, list[float]] = {}
    videos: dict[int, bytes] = {}
    for image in images:
        if image.data is None:
            raise MediaError(
                "missing_image", f"sample {sample.sample_id!r} names an image but carries no bytes"
            )
        if image.timestamp is not None:
            frames.setdefault(image.media, []).append(image.timestamp)
            videos[image.media] = image.data
    decoded = {media: iter(VideoFrames(videos[media]).at(times)) for media, times in frames.items()}
    return [
        decode_image(image.data) if image.timestamp is None else next(decoded[image.media])
        for image in images
        if image.data is not None
    ]


def _open(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise MediaError("empty_file", "The image file is empty.", "It has no bytes.")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise _bomb(str(error)) from error
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
        raise _truncated(data, error) from error
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


def _truncated(data: bytes, error: BaseException) -> MediaError:
    return MediaError(
        "truncated_image",
        "The image is truncated or damaged.",
        f"{len(data)} bytes, {type(error).__name__}: {error}",
        "Fetch the file again, or leave the record out.",
    )


def _bomb(why: str) -> MediaError:
    return MediaError(
        "decompression_bomb",
        "The image is too large to decode.",
        why,
        "Shrink it, or raise max_pixels if you trust its origin.",
    )


def _open_container(data: bytes | Path) -> InputContainer:
    import av
    from av.error import FFmpegError

    file = str(data) if isinstance(data, Path) else io.BytesIO(data)
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
    try:
        return av.open(file, "r", options=options, metadata_errors="replace")  # titles in any encoding
    except FFmpegError as error:
        raise MediaError(
            "not_a_video",
            "The file cannot be opened as a video.",
            f"{type(error).__name__}: {error}",
            "Use MP4, WebM/Matroska, AVI or MPEG-TS.",
        ) from error


def _begin(frame: Any) -> float:
    """Presentation time of a decoded frame, seconds."""
    return float(frame.pts * frame.time_base)
