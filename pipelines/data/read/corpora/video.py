"""Frame sampling times of a video, and cutting a clip out of a video without encoding it again.

The times (paper, B.1 and B.2): two frames per second; 20 evenly spread frames of clips shorter than 10 s. At
10 s both give the same times. Live captions always use the grid of two frames per second.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from typing import Any

SHORT_SECONDS = 10.0
SHORT_FRAMES = 20
CUT_FROM_BYTES = 1 << 20
"""Smaller files are never cut: there is little to save."""
CUT_TO_SHARE = 0.5
"""A clip is cut out where its pictures take at most this share of the file."""
_TIME_TOLERANCE = 1e-6
_CONTAINERS = "mov,mp4,matroska,webm"
"""Videos in other containers are never cut: their packets change on the way into an MP4 file."""


def frame_times(start: float, end: float, fps: float) -> list[float]:
    """The grid: ``start + n / fps`` for every n that lies before ``end``, at least one.

    Args:
        start, end: The clip, seconds in the video.
        fps: Frames per second.
    """
    count = max(1, math.ceil((end - start) * fps - _TIME_TOLERANCE))
    return [start + number / fps for number in range(count)]


def clip_times(start: float, end: float, fps: float) -> list[float]:
    """The times at which a whole clip is sampled: the grid, or 20 frames if it is shorter than 10 s.

    The 20 lie at ``start + n * (end - start) / 20``: the first at the start, none at the end, where a video
    often has no picture any more.
    """
    if end - start < SHORT_SECONDS:
        return [start + number * (end - start) / SHORT_FRAMES for number in range(SHORT_FRAMES)]
    return frame_times(start, end, fps)


def cut_clip(data: bytes, start: float, end: float) -> bytes:
    """The part of a video from ``start`` to ``end``, its pictures as they are encoded, its times unchanged.

    It begins with the key frame before ``start`` and ends after the first frame from ``end`` on; sound is
    left out. The cut is read back: unless every packet in it is the original's, with the same time, the whole
    video is returned. So are small files, and videos of which the clip is more than half.

    Args:
        data: An encoded video, whole or damaged.
        start, end: Seconds in the video; what is needed of it lies in between.

    Returns:
        An MP4 file in which every time from ``start`` to ``end`` shows the picture it shows in ``data``; or
        ``data`` itself.
    """
    from av.error import FFmpegError

    if len(data) < CUT_FROM_BYTES:
        return data
    try:
        packets, template = _packets(data, start, end)
        if not packets or sum(packet.size for packet in packets) > CUT_TO_SHARE * len(data):
            return data
        expected = [_identity(packet) for packet in packets]
        clip = _remux(template, packets)
        written = [_identity(packet) for packet in _demux(_open(clip))]
    except (FFmpegError, ValueError):
        return data  # the decoder, which reads all of it, reports what is wrong
    same = written == expected and _first_picture(clip) == _first_picture(data, start)
    return clip if same else data


def _packets(data: bytes, start: float, end: float) -> tuple[list[Any], Any]:
    """The packets between two times in decoding order, and the stream they come from."""
    container = _open(data)
    stream = container.streams.video[0]
    if start > 0:
        container.seek(int(start / stream.time_base), stream=stream, backward=True)
    kept: list[Any] = []
    after: Any = None
    for packet in _demux(container):
        if packet.pts is None or packet.dts is None or packet.is_discard:
            return [], stream  # without its times a packet cannot be placed inside the clip
        if after is not None and packet.dts > after:
            break  # pictures are decoded no later than they are shown: all others come after the end
        kept.append(packet)
        if packet.pts * packet.time_base >= end:
            after = packet.pts if after is None else min(after, packet.pts)
    begins = kept[0].pts * kept[0].time_base if kept and kept[0].is_keyframe else math.inf
    return (kept if begins <= max(start, 0.0) + _TIME_TOLERANCE else []), stream


def _remux(template: Any, packets: Sequence[Any]) -> bytes:
    """The packets in an MP4 file whose clock ticks as the original's does, so that no time is rounded."""
    import av

    ticks = str(template.time_base.denominator)
    # An edit list keeps the time before the first picture; it counts in the movie's ticks, not in the
    # track's.
    options = {"movie_timescale": ticks, "video_track_timescale": ticks, "avoid_negative_ts": "disabled"}
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options=options) as container:
        stream = container.add_stream_from_template(template)
        stream.time_base = template.time_base
        for packet in packets:
            packet.stream = stream
            container.mux(packet)
    return buffer.getvalue()


def _identity(packet: Any) -> tuple[Any, Any, bool, bytes]:
    return packet.pts * packet.time_base, packet.dts * packet.time_base, packet.is_keyframe, bytes(packet)


def _first_picture(data: bytes, time: float = 0.0) -> tuple[Any, int, bytes] | None:
    """Time, rotation and pixels of the first frame decoded from a time on."""
    container = _open(data)
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    if time > 0:
        container.seek(int(time / stream.time_base), stream=stream, backward=True)
    frame = next(iter(container.decode(stream)), None)
    if frame is None or frame.pts is None:
        return None
    return frame.pts * frame.time_base, frame.rotation, frame.to_ndarray(format="rgb24").tobytes()


def _demux(container: Any) -> Iterator[Any]:
    """The first video stream's packets from where the container stands; the empty one at the end left out."""
    return (packet for packet in container.demux(container.streams.video[0]) if packet.size)


def _open(data: bytes) -> Any:
    import av

    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
    container = av.open(io.BytesIO(data), "r", options=options, metadata_errors="replace")
    if not container.streams.video or container.streams.video[0].codec_context is None:
        raise ValueError("there is no picture track that can be decoded")
    return container
