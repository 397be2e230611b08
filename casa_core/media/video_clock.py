"""A video file's clock: where its pictures end, and one rising time where files were joined.

MPEG transport and program streams may be joined as bytes (``cat a.ts b.ts``): each part keeps its own clock,
so that times go back, or forward by a gap. There is no mark for it; a step back, or one of more than a second
and ten frames, is taken for a join. From there on time goes on one frame after the last one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from av.container import InputContainer

_JOIN_SECONDS = 1.0
_JOIN_FRAMES = 10
_MAY_RESTART = 0x0200
"""FFmpeg's ``AVFMT_TS_DISCONT``: times of the container may start anew (MPEG-TS, MPEG-PS, Ogg)."""


@dataclass
class Clock:
    """Turns times of a joined file, in order, into one rising time.

    Attributes:
        shift: Seconds to add to the file's times from here on.
        step: Seconds between the last two pictures of one part.
    """

    shift: float = 0.0
    _last: float | None = None
    step: float = 0.0

    def joins(self, time: float, length: float) -> bool:
        """Goes on to a picture's time on the file's clock; whether another part begins with it.

        Args:
            time: Seconds.
            length: How long the picture lasts, as far as the file says; 0 if it does not.
        """
        last, self._last = self._last, time
        if last is None:
            return False
        usual = self.step or length
        if 0 <= time - last <= max(_JOIN_SECONDS, _JOIN_FRAMES * usual):
            self.step = time - last or self.step
            return False
        self.shift += last + usual - time
        return True

    def continued(self, frames: Iterator[Any], length: float) -> Iterator[Any]:
        """Decoded frames with their times moved onto the one clock."""
        for frame in frames:
            self.joins(float(frame.pts * frame.time_base), length)
            frame.pts += round(self.shift / frame.time_base)
            yield frame


class Extent(NamedTuple):
    """When the last picture of a track ends, and when anything in the file does, on the file's clock; whether
    the file consists of joined parts: then on the clock of its first part."""

    picture_end: float
    file_end: float
    joined: bool


def may_be_joined(container: InputContainer) -> bool:
    """Whether files of a container's format can be joined as bytes."""
    return bool(container.format.flags & _MAY_RESTART)


def extent(container: InputContainer, track: int, begin: float) -> Extent:
    """Looks at all packets of a file; none is decoded.

    Args:
        container: The file, opened anew.
        track: The picture track's number.
        begin: When its first picture is shown.
    """
    from av.error import FFmpegError

    last = before = begin
    held = file_end = 0.0
    clock, joined = Clock(), False
    first = decoded_end = None
    try:
        for packet in container.demux():
            time = packet.pts if packet.pts is not None else packet.dts
            if time is None or not packet.size or packet.is_discard or packet.time_base is None:
                continue
            start = float(time * packet.time_base)
            length = float((packet.duration or 0) * packet.time_base)
            file_end = max(file_end, start + length)
            if packet.stream.index != track:
                continue
            if packet.dts is not None:  # in the order of decoding these rise, whatever the order of showing
                order = float(packet.dts * packet.time_base)
                joined = clock.joins(order, length) or joined
                first = order if first is None else first
                decoded_end = order + clock.shift + (length or clock.step) - first
            if start > last:
                last, before, held = start, last, length
            elif start == last:
                held = length
            else:
                before = max(before, start)
    except FFmpegError:
        pass  # the decoder, which reads as far, reports what is wrong
    if joined and decoded_end is not None and may_be_joined(container):
        return Extent(begin + decoded_end, begin + decoded_end, True)
    end = last + (held or last - before)
    return Extent(end, max(file_end, end), False)
