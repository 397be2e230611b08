"""A video with its captions written into the picture."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from casa_core.media.video import VideoFrames, frame_times
from infra.subtitles import Caption, cues

MOST_FPS = 30
LETTERS = 24
"""The picture's height is so many times that of its letters."""


def burn(video: Path, captions: Sequence[Caption], output: Path) -> None:
    """Write a video as an MP4 with the captions at their times; it appears once it is whole.

    The frames are those that the model would see at their times: upright, of even pace. The sound is copied
    where MP4 can hold it.

    Raises:
        MediaError: As :class:`VideoFrames`.
    """
    part = output.with_name(f".{output.name}.part")
    try:
        with av.open(str(part), "w", format="mp4", options={"movflags": "+faststart"}) as target:
            _write(video, captions, target)
        os.replace(part, output)
    finally:
        part.unlink(missing_ok=True)


def _write(video: Path, captions: Sequence[Caption], target: Any) -> None:
    with VideoFrames(video) as frames, av.open(str(video)) as source:
        rate = source.streams.video[0].average_rate
        fps = min(float(rate), MOST_FPS) if rate else MOST_FPS
        pace = Fraction(fps).limit_denominator(1000)
        stream = target.add_stream("libx264", rate=pace)
        stream.height, stream.width = (size + size % 2 for size in (frames.height, frames.width))
        stream.pix_fmt = "yuv420p"
        sound = source.streams.best("audio")
        copied = target.add_stream_from_template(sound) if sound is not None and _fits_mp4(sound) else None
        times = frame_times(0.0, frames.duration, float(pace))
        shown = _captioned(zip(times, frames.at(times), strict=True), captions)
        for number, pixels in enumerate(shown):
            frame = av.VideoFrame.from_ndarray(_even(pixels), format="rgb24")
            frame.pts, frame.time_base = number, 1 / pace
            target.mux(stream.encode(frame))
        target.mux(stream.encode())
        if copied is not None:
            _copy_sound(source, sound, copied, target, frames.begin)


def _captioned(
    frames: Iterator[tuple[float, NDArray[np.uint8]]], captions: Sequence[Caption]
) -> Iterator[NDArray[np.uint8]]:
    waiting = cues(captions)
    for time, pixels in frames:
        while waiting and waiting[0][1] <= time:
            waiting = waiting[1:]
        is_due = bool(waiting) and waiting[0][0] <= time
        yield _with_text(pixels, waiting[0][2]) if is_due else pixels


def _with_text(pixels: NDArray[np.uint8], text: str) -> NDArray[np.uint8]:
    """The text in white on black at the bottom, on as many lines as it needs."""
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(max(image.height / LETTERS, 8))
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and draw.textlength(longer, font=font) <= 0.9 * image.width:
            lines[-1] = longer
        else:
            lines.append(word)
    block = "\n".join(lines)
    gap = image.height / LETTERS / 2
    place = (image.width / 2, image.height - gap)
    box = draw.multiline_textbbox(place, block, font=font, anchor="md", align="center")
    edges = (box[0] - gap, box[1] - gap / 2, box[2] + gap, min(box[3] + gap / 2, image.height))
    draw.rectangle([math.floor(edge) for edge in edges], fill="black")
    draw.multiline_text(place, block, font=font, anchor="md", align="center", fill="white")
    return np.asarray(image)


def _even(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """H.264 wants even sides; the last row or column is repeated."""
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _fits_mp4(sound: Any) -> bool:
    return sound.codec_context.name in ("aac", "mp3", "mp3float", "ac3", "eac3", "opus", "alac")


def _copy_sound(source: Any, sound: Any, copied: Any, target: Any, begin: float) -> None:
    """Its packets as they are, from the video's time 0 on."""
    source.seek(0)
    offset = round(begin / sound.time_base)
    for packet in source.demux(sound):
        if packet.dts is None or packet.pts < offset:
            continue
        packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
        packet.stream = copied
        target.mux(packet)
