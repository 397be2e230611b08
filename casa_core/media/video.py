"""Encoded video → the frames on screen at given times, decoded with PyAV in one process."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from casa_core.errors import MediaError, cause

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

# Demuxers that can name other files or addresses (HLS, concat, …) are left out.
_CONTAINERS = "mov,mp4,matroska,webm,avi,mpeg,mpegts,flv,ogg,asf,gif,3gp"
_TIME_TOLERANCE = 1e-4
_END_TOLERANCE = 0.5
"""Seconds that the last frame may be asked for after it began: sound often outlasts the picture a little."""
_SEEK_FROM = 4.0
"""Seconds from which seeking to a key frame pays; before, decoding from the start is as fast."""


class VideoFrames:
    """Frames of one video by time; a context manager.

    Args:
        data: The encoded file, or its path.

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
        self._stream.codec_context.thread_count = 1  # callers decode many videos in parallel
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

    def at(self, timestamps: Sequence[float]) -> list[NDArray[np.uint8]]:
        """The frame on screen at each time: the last one whose presentation time is not after it.

        Args:
            timestamps: Seconds in the video, in any order; a time before the first frame gives the first.

        Returns:
            One uint8 array of (height, width, 3) per timestamp; equal ones share their memory.

        Raises:
            MediaError: ``truncated_video`` where the pictures end or break before a timestamp.
        """
        pictures: dict[float, NDArray[np.uint8]] = {}
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
                cause(error),
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
            cause(error),
            "Use MP4, WebM/Matroska, AVI or MPEG-TS.",
        ) from error


def _begin(frame: Any) -> float:
    """Presentation time of a decoded frame, seconds."""
    return float(frame.pts * frame.time_base)
