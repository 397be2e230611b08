"""Times at which a corpus's videos are sampled, and cutting a clip out of a video without encoding it again.

The times (paper, B.1 and B.2): two frames per second; 20 evenly spread frames of clips shorter than 10 s. At
10 s both give the same times. Live captions always use the grid of two frames per second.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from typing import Any

from casa_core.errors import MediaError
from casa_core.media.video import TIME_ZERO, VideoFrames, frame_times, open_track

SHORT_SECONDS = 10.0
SHORT_FRAMES = 20
CUT_FROM_BYTES = 1 << 20
"""Smaller files are never cut: there is little to save."""
CUT_TO_SHARE = 0.5
"""A clip is cut out where its pictures take at most this share of the file."""
_TIME_TOLERANCE = 1e-6
_CONTAINERS = "mov,mp4,matroska,webm"
"""Videos in other containers are never cut: their packets change on the way into an MP4 file."""


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
    left out, and its metadata name the time of the video's first picture, from which times count. The cut is
    read back: unless every packet in it is the original's, with the same time, and shows the same, the whole
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
        with VideoFrames(data) as video:
            begin = video.begin
        packets, stream = _packets(data, begin + max(start, 0.0), begin + end)
        if not packets or sum(packet.size for packet in packets) > CUT_TO_SHARE * len(data):
            return data
        expected = [_identity(packet) for packet in packets]
        shown = float(packets[0].pts * stream.time_base) - begin
        clip = _remux(stream, packets, begin)
        written = [_identity(packet) for packet in _demux(*open_track(clip))]
        same = written == expected and _looks(clip, shown) == _looks(data, shown)
    except (FFmpegError, MediaError, ValueError):
        return data  # the decoder, which reads all of it, reports what is wrong
    return clip if same else data


def _packets(data: bytes, start: float, end: float) -> tuple[list[Any], Any]:
    """The packets of a clip in decoding order, and their stream; none where they cannot be told apart.

    Args:
        data: The video.
        start, end: The clip, seconds on the file's clock.
    """
    container, stream = open_track(data, _CONTAINERS)
    assert stream.time_base is not None
    if start > 0:
        container.seek(int(start / stream.time_base), stream=stream, backward=True)
    kept: list[Any] = []
    after: Any = None
    for packet in _demux(container, stream):
        if packet.pts is None or packet.dts is None or packet.is_discard:
            return [], stream  # without its times a packet cannot be placed inside the clip
        if after is not None and packet.dts > after:
            break  # pictures are decoded no later than they are shown: all others come after the end
        kept.append(packet)
        if packet.pts * packet.time_base >= end:
            after = packet.pts if after is None else min(after, packet.pts)
    begins = kept[0].pts * kept[0].time_base if kept and kept[0].is_keyframe else math.inf
    return (kept if begins <= start + _TIME_TOLERANCE else []), stream


def _remux(template: Any, packets: Sequence[Any], begin: float) -> bytes:
    """The packets in an MP4 file whose clock ticks as the original's does, so that no time is rounded."""
    import av

    ticks = str(template.time_base.denominator)
    # An edit list keeps the time before the first picture; it counts in the movie's ticks, not in the
    # track's.
    options = {"movie_timescale": ticks, "video_track_timescale": ticks, "avoid_negative_ts": "disabled"}
    options["movflags"] = "use_metadata_tags"  # otherwise only names that players know are written
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options=options) as container:
        container.metadata[TIME_ZERO] = repr(begin)
        stream = container.add_stream_from_template(template)
        stream.time_base = template.time_base
        for packet in packets:
            packet.stream = stream
            container.mux(packet)
    return buffer.getvalue()


def _identity(packet: Any) -> tuple[Any, Any, bool, bytes]:
    return packet.pts * packet.time_base, packet.dts * packet.time_base, packet.is_keyframe, bytes(packet)


def _looks(data: bytes, time: float) -> tuple[float, bytes]:
    """When a video begins, and its upright picture at a time."""
    with VideoFrames(data) as video:
        return video.begin, next(video.at([time])).tobytes()


def _demux(container: Any, stream: Any) -> Iterator[Any]:
    """A track's packets from where the container stands; the empty one at the end left out."""
    return (packet for packet in container.demux(stream) if packet.size)
