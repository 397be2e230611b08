"""Videos in the shapes that recorders, phones and streams leave behind."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import av
import numpy as np

HEIGHT, WIDTH = 32, 64
RED, BLUE = (200, 30, 30), (30, 30, 200)
_ONE = 1 << 16
MATRICES = {  # what becomes of a picture → the nine integers of an MP4's display matrix
    "as it is": (_ONE, 0, 0, _ONE),
    "a quarter to the right": (0, _ONE, -_ONE, 0),
    "half": (-_ONE, 0, 0, -_ONE),
    "a quarter to the left": (0, -_ONE, _ONE, 0),
    "mirrored": (-_ONE, 0, 0, _ONE),
    "upside down": (_ONE, 0, 0, -_ONE),
    "swapped": (0, _ONE, _ONE, 0),
    "swapped and turned": (0, -_ONE, -_ONE, 0),
}
_COLOURS = {"bt709": (0.2126, 0.0722, 1), "bt601": (0.299, 0.114, 5)}  # Kr, Kb (ITU-R), number in H.273


def halves() -> np.ndarray:
    """Left half red, right half blue, its upper left corner white."""
    pixels = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:, : WIDTH // 2], pixels[:, WIDTH // 2 :] = RED, BLUE
    pixels[:16, :16] = 255
    return pixels


def greys(count: int) -> list[np.ndarray]:
    """Frames whose grey is 20 + 2k."""
    return [np.full((HEIGHT, WIDTH, 3), 20 + 2 * number, np.uint8) for number in range(count)]


class _Pipe:
    """A sink that cannot seek: a container's header cannot be completed at the end."""

    def __init__(self, buffer: io.BytesIO) -> None:
        self.write = buffer.write


def video(
    pictures: Iterable[np.ndarray],
    *,
    container: str = "mp4",
    codec: str = "libx264",
    fps: int = 10,
    start: float = 0.0,
    last_seconds: float | None = None,
    sound_seconds: float = 0.0,
    piped: bool = False,
    index_first: bool = False,
    aspect: Fraction | None = None,
    **options: str,
) -> bytes:
    """An encoded video.

    Args:
        pictures: (height, width, 3) of each frame.
        start: When the first frame is shown, seconds.
        last_seconds: How long the last frame is held; by default as long as the others. Without B-frames.
        sound_seconds: Seconds of silence beside it; none by default.
        piped: Write to a sink that cannot seek.
        index_first: Write an MP4's index before its pictures.
        aspect: Width of a pixel, as a multiple of its height.
        options: The encoder's.
    """
    buffer = io.BytesIO()
    layout = {"moov_size": "16384"} if index_first else {}
    with av.open(_Pipe(buffer) if piped else buffer, "w", format=container, options=layout) as file:
        exact = {"crf": "4"} if codec == "libx264" else {}
        stream: Any = file.add_stream(codec, rate=fps, options=exact | options)
        stream.thread_count = 1
        sound: Any = None
        if sound_seconds:
            sound = file.add_stream("aac" if container == "mp4" else "libopus", rate=48000)
        stream.pix_fmt = "yuv420p"
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        packets = []
        for number, pixels in enumerate(pictures):
            if not number:
                stream.height, stream.width = pixels.shape[:2]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(start * fps) + number, Fraction(1, fps)
            packets += stream.encode(frame)
        packets += stream.encode()
        if last_seconds is not None:
            packets[-1].duration = round(last_seconds / packets[-1].time_base)
        file.mux(packets)
        if sound is not None:
            for number in range(round(sound_seconds * 50)):
                silence = av.AudioFrame.from_ndarray(np.zeros((2, 960), np.float32), format="fltp")
                silence.sample_rate, silence.pts = 48000, 960 * number
                file.mux(sound.encode(silence))
            file.mux(sound.encode())
    return buffer.getvalue()


def turned(mp4: bytes, name: str) -> bytes:
    """An MP4 file with one of ``MATRICES`` in its track's header."""
    a, b, c, d = MATRICES[name]
    at = mp4.index(b"tkhd") + 44  # behind version, times, number, duration, layer and volume
    return mp4[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + mp4[at + 36 :]


def solid(
    rgb: tuple[int, int, int] = RED,
    *,
    matrix: str = "bt709",
    stated: bool = True,
    full: bool = False,
    bits: int = 8,
    container: str = "mp4",
    codec: str = "libx264",
    size: tuple[int, int] = (128, 128),
) -> bytes:
    """Frames of one colour, its Y, Cb and Cr computed here (ITU-R BT.709 and BT.601).

    Args:
        stated: Whether the stream names its matrix.
        full: Luma from 0 to 255 instead of 16 to 235.
        size: Height and width.
    """
    kr, kb, number = _COLOURS[matrix]
    red, green, blue = (value / 255 for value in rgb)
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    chroma = ((blue - luma) / (2 * (1 - kb)), (red - luma) / (2 * (1 - kr)))
    scale = 1 << (bits - 8)
    values = [(255 if full else 219) * luma + (0 if full else 16)]
    values += [(255 if full else 224) * part + 128 for part in chroma]
    kind = np.uint8 if bits == 8 else np.uint16
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream: Any = file.add_stream(codec, rate=10)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p" if bits == 8 else "yuv420p10le"
        stream.codec_context.color_range = 2 if full else 1
        if stated:
            context = stream.codec_context
            context.colorspace = number
            context.color_primaries = context.color_trc = 1 if matrix == "bt709" else 6
        for count in range(10):
            frame = av.VideoFrame(size[1], size[0], stream.pix_fmt)
            for plane, value in zip(frame.planes, values, strict=True):
                plane.update(
                    np.full(plane.buffer_size // kind().itemsize, round(scale * value), kind).tobytes()
                )
            frame.pts, frame.time_base, frame.color_range = count, Fraction(1, 10), 2 if full else 1
            if stated:
                frame.colorspace = number
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return buffer.getvalue()
