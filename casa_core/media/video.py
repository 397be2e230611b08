"""Encoded video → the frames on screen at given times, decoded with PyAV in one process.

Time 0 is the video's first picture, whatever the file's own clock shows there; where parts with clocks of
their own were joined, time goes on (:mod:`casa_core.media.video_clock`). Frames are upright, in the
shape they are displayed in, and of one size: that of the first.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from casa_core.errors import MediaError, cause
from casa_core.media.upright import UPRIGHT, Turn, matrix_turn
from casa_core.media.video_clock import Clock, Extent, extent, may_be_joined

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

Rgb = NDArray[np.uint8]

# Demuxers that can name other files or addresses (HLS, concat, …) are left out.
CONTAINERS = "mov,mp4,matroska,webm,avi,mpeg,mpegts,flv,ogg,asf,gif,3gp"
TIME_ZERO = "casa_time_zero"
"""Metadata key of a clip cut out of a video: when the whole video's first picture was shown, seconds."""
_TIME_TOLERANCE = 1e-4
_GRID_TOLERANCE = 1e-6
_END_TOLERANCE = 0.5
"""Seconds that the last frame may be asked for after it began: sound often outlasts the picture a little."""
_MISSING_SECONDS = 1.0
"""A file that ends this much before the time its header states was cut off."""

# Colour matrices by their number in ITU-T H.273.
_BT709, _UNSPECIFIED, _BT601 = 1, 2, 5
_HD_LINES = 720
_BT601_UNLESS_STATED = frozenset({"vp8", "vp9", "av1"})
_WIDEST_PIXEL = 10.0

LIVE_FPS = 2.0
"""Frames of a video per second that a model is shown live, as in its training."""


def frame_times(start: float, end: float, fps: float) -> list[float]:
    """The grid on which videos are sampled: ``start + n / fps`` for each n before ``end``, at least one.

    Args:
        start, end: The clip, seconds in the video.
        fps: Frames per second.
    """
    count = max(1, math.ceil((end - start) * fps - _GRID_TOLERANCE))
    return [start + number / fps for number in range(count)]


class VideoFrames:
    """Frames of one video by time; a context manager.

    Args:
        data: The encoded file, or its path.

    Attributes:
        height, width: Pixels of a frame, upright, its pixels made square.
        begin: Where time 0 lies on the file's own clock, seconds: at the first picture, or where a clip's
            metadata say it was in the whole video.

    Raises:
        MediaError: ``empty_file``, ``not_a_video``, or ``truncated_video`` where no frame can be decoded.
    """

    def __init__(self, data: bytes | Path) -> None:
        size = data.stat().st_size if isinstance(data, Path) else len(data)
        if size == 0:
            raise MediaError("empty_file", "The video file is empty.", "It has no bytes.")
        self._data = data
        self._container, self._stream = open_track(data)
        try:
            decoded = self._decode()
            first = next(decoded, None)
        except MediaError:
            self.close()
            raise
        if first is None:
            self.close()
            raise self._damaged("It has a picture track, but no frame of it could be decoded.")
        # Kept until the frames are asked for. The rest goes on from the same iterator: where a file ends,
        # decoders hand out several frames at once, and another one would not see them.
        self._whole: Iterator[Any] | None = chain([first], decoded)
        self._first_begin = _begin(first)
        self.begin = _time_zero(self._container, self._first_begin)
        self._turn = _turn(first)
        self._shape = _displayed(first, self._stream)
        self.height, self.width = self._turn.size(*self._shape)

    def __enter__(self) -> VideoFrames:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Frees the decoder."""
        self._container.close()

    @cached_property
    def duration(self) -> float:
        """Seconds from time 0 to the end of the last picture.

        As the header states it for the picture track. Where it states nothing of that track (Matroska, WebM,
        MPEG-TS, fragmented MP4), all packets are looked at, none is decoded; sound that outlasts the picture
        does not count, and a file cut off before the end it states has the length that it states.
        """
        stream = self._stream
        if stream.frames and stream.duration and stream.time_base is not None:
            return self._first_begin + float(stream.duration * stream.time_base) - self.begin
        found = self._extent
        stated = 0 if found.joined else (self._container.duration or 0) / 1_000_000
        return (stated if found.file_end < stated - _MISSING_SECONDS else found.picture_end) - self.begin

    @cached_property
    def _extent(self) -> Extent:
        with open_container(self._data) as container:
            return extent(container, self._stream.index, self._first_begin)

    def at(self, timestamps: Iterable[float]) -> Iterator[Rgb]:
        """The frame on screen at each time, one by one: the last whose presentation time is not after it.

        At most two decoded frames and one converted one are in memory. Times that rise cost one pass over
        the video, each step back a new one. One iteration at a time.

        Args:
            timestamps: Seconds in the video, in any order; a time before the first frame gives the first.

        Yields:
            A uint8 array of (height, width, 3) per timestamp; neighbours that show one frame share it.

        Raises:
            MediaError: ``truncated_video`` where the pictures end or break before a timestamp.
        """
        previous, interval = math.inf, 0.0
        frames: Iterator[Any] = iter(())
        shown: Any = None
        upcoming: Any = None
        pixels: Rgb | None = None
        for timestamp in timestamps:
            time = self.begin + timestamp + _TIME_TOLERANCE
            if time < previous:
                frames = self._frames_from(time)
                shown, upcoming, pixels, interval = next(frames, None), next(frames, None), None, 0.0
            previous = time
            while upcoming is not None and _begin(upcoming) <= time:
                interval = _begin(upcoming) - _begin(shown)
                shown, upcoming, pixels = upcoming, next(frames, None), None
            if shown is None or (upcoming is None and time > _begin(shown) + self._hold(shown, interval)):
                raise self._ended(shown, timestamp)
            if pixels is None:
                pixels = self._rgb(shown)
            yield pixels

    def _frames_from(self, time: float) -> Iterator[Any]:
        """Decoded frames in order, from one not after ``time``, on the file's clock, on."""
        if time > self._first_begin + 2 * _TIME_TOLERANCE and not self._joined and self._seek(time):
            decoded = self._decode()
            first = next(decoded, None)
            # Without a key frame there the decoder makes up what it refers to.
            if first is not None and first.key_frame and _begin(first) <= time:
                return chain([first], decoded)
        elif self._whole is not None:
            whole, self._whole = self._whole, None
            return whole
        self._whole = None
        self._container.close()
        self._container, self._stream = open_track(self._data)
        return self._decode()

    def _seek(self, time: float) -> bool:
        from av.error import FFmpegError

        self._whole = None
        try:
            assert self._stream.time_base is not None
            self._container.seek(int(time / self._stream.time_base), stream=self._stream, backward=True)
        except FFmpegError:
            return False
        return True

    def _decode(self) -> Iterator[Any]:
        """Decoded frames in order from where the container stands; those of a joined file on one clock."""
        frames = self._pictures()
        for first in frames:
            yield first
            if self._joined:
                rate = self._stream.average_rate
                length = float(1 / rate) if rate else 0.0
                clock = Clock()
                clock.joins(_begin(first), length)
                frames = clock.continued(frames, length)
            yield from frames

    @property
    def _joined(self) -> bool:
        return may_be_joined(self._container) and self._extent.joined

    def _pictures(self) -> Iterator[Any]:
        from av.error import FFmpegError

        try:
            for frame in self._container.decode(self._stream):
                if frame.pts is not None:
                    yield frame
        except FFmpegError as error:
            raise self._damaged(_cause(error)) from error

    def _rgb(self, frame: Any) -> Rgb:
        height, width = self._shape
        options: dict[str, Any] = {"format": "rgb24", "width": width, "height": height, "threads": 1}
        if frame.colorspace == _UNSPECIFIED and not frame.format.is_rgb:
            options["src_colorspace"] = self._unstated_matrix(frame.height)
        return np.ascontiguousarray(self._turn.of(frame.to_ndarray(**options)))

    def _unstated_matrix(self, lines: int) -> int:
        """As browsers guess it: BT.709 from 720 lines on, except for the codecs whose files state it."""
        hd = lines >= _HD_LINES and self._stream.codec_context.name not in _BT601_UNLESS_STATED
        return _BT709 if hd else _BT601

    def _hold(self, last: Any, interval: float) -> float:
        """Seconds that the last frame stays on screen: its own duration, else as long as the one before."""
        rate = self._stream.average_rate
        own = last.duration * last.time_base if last.duration else max(interval, 1 / rate if rate else 0)
        return max(float(own), _END_TOLERANCE) + _TIME_TOLERANCE

    def _damaged(self, why: str) -> MediaError:
        return MediaError(
            "truncated_video",
            "The video cannot be decoded up to the frames asked for.",
            why,
            "Fetch the file again, or leave the record out.",
        )

    def _ended(self, last: Any | None, time: float) -> MediaError:
        end = (
            "no frame could be decoded"
            if last is None
            else f"the last frame begins at {_begin(last) - self.begin:.2f} s"
        )
        return MediaError(
            "truncated_video",
            f"The video has no frame at {time:.2f} s.",
            f"It should last {self.duration:.2f} s, and {end}.",
            "Fetch the file again, or correct the record's times.",
        )


def open_track(data: bytes | Path, containers: str = CONTAINERS) -> tuple[InputContainer, VideoStream]:
    """The file, opened, and its first picture track that can be decoded.

    Args:
        data: The encoded file, or its path.
        containers: FFmpeg's names of the containers that may be opened.

    Raises:
        MediaError: ``not_a_video``.
    """
    container = open_container(data, containers)
    # FFmpeg lists tracks whose codec it does not know, too; those have no decoder.
    tracks = [track for track in container.streams.video if track.codec_context is not None]
    if not tracks:
        container.close()
        raise MediaError(
            "not_a_video",
            "The file has no video track that can be decoded.",
            "Use H.264, VP9, AV1 or MPEG-4.",
        )
    tracks[0].codec_context.thread_count = 1  # callers decode many videos in parallel
    return container, tracks[0]


def open_container(data: bytes | Path, containers: str = CONTAINERS) -> InputContainer:
    """The file, opened for reading; nothing that it names is opened with it.

    Raises:
        MediaError: ``not_a_video``.
    """
    import av
    from av.error import FFmpegError

    file = str(data) if isinstance(data, Path) else io.BytesIO(data)
    options = {"format_whitelist": containers, "protocol_whitelist": "file"}
    try:
        return av.open(file, "r", options=options, metadata_errors="replace")  # titles in any encoding
    except FFmpegError as error:
        raise MediaError(
            "not_a_video",
            "The file cannot be opened as a video.",
            _cause(error),
            "Use MP4, WebM/Matroska, AVI or MPEG-TS.",
        ) from error


def _cause(error: Any) -> str:
    """FFmpeg's error as a cause, without the file's name: it may be a temporary one, or ``<none>``."""
    return cause(error).removesuffix(f": {error.filename!r}")


def _time_zero(container: InputContainer, first: float) -> float:
    try:
        return float(container.metadata.get(TIME_ZERO, first))
    except ValueError:
        return first


def _begin(frame: Any) -> float:
    """Presentation time of a decoded frame on the file's clock, seconds."""
    return float(frame.pts * frame.time_base)


def _turn(frame: Any) -> Turn:
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            return matrix_turn(struct.unpack("=9i", bytes(data)[:36]))
    return UPRIGHT


def _displayed(frame: Any, stream: VideoStream) -> tuple[int, int]:
    """Height and width of a frame with its pixels made square, which enlarges one side of it."""
    aspect = float(stream.sample_aspect_ratio or 1)
    if not 1 / _WIDEST_PIXEL <= aspect <= _WIDEST_PIXEL:
        aspect = 1.0
    if aspect >= 1:
        return frame.height, round(frame.width * aspect)
    return round(frame.height / aspect), frame.width
