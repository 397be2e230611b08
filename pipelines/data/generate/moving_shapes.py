"""Short clips of moving shapes with a spoken commentary, written in Live-WhisperX's layout.

A shape drifts over a pale ground and is replaced every 1.5 to 3 seconds by one of another colour and name. In
half of the clips it stays, and goes when the second after it appears: two are on screen, one in each half.
The commentary names each shape as it appears ("a red circle") and is silent otherwise. Its timing can be
learnt from frames sampled at 2 fps from ``video_start`` on: a shape appears 0.05 to 0.2 s *before* a sampling
time, and its first two words start right *after* it, so the frame that "a red" belongs to already shows the
shape; the third word falls into the next frame. A third of the clips start inside a longer video: their times
are absolute.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.video.stream import VideoStream

from pipelines.data.generate.shapes import SIZES, Rgb, Shape, draw_ground, draw_shape, render

SIDE = 64
"""Pixels of the square picture."""
SIZES_OF_TWO = (SIZES[0], 0.42)
"""Range of a shape's width as a share of the side where half of the picture is its own."""
GRID = 0.5
"""Seconds between sampled frames (2 fps)."""
QUERIES = ("describe what you see live", "comment on the video as it plays", "say what appears")
CATEGORIES = ("Education", "Entertainment")


@dataclass(frozen=True, slots=True)
class Appearance:
    """A shape on screen from ``begin`` to ``end`` seconds, drifting from ``origin`` to ``goal`` (pixels)."""

    shape: Shape
    begin: float
    end: float
    origin: tuple[float, float]
    goal: tuple[float, float]

    def center(self, time: float) -> tuple[float, float]:
        """Where the shape's centre is; it eases between its two ends."""
        progress = (time - self.begin) / (self.end - self.begin)
        eased = progress * progress * (3 - 2 * progress)
        (x, y), (goal_x, goal_y) = self.origin, self.goal
        return x + (goal_x - x) * eased, y + (goal_y - y) * eased


@dataclass(frozen=True, slots=True)
class Clip:
    """One video and the commentary on its part from ``start`` to ``end`` (seconds in the video).

    Attributes:
        words: ``(start, end, word)``, absolute seconds in the video.
        previous: The commentary before ``start``.
    """

    start: float
    end: float
    ground: tuple[int, int, int]
    appearances: tuple[Appearance, ...]
    words: tuple[tuple[float, float, str], ...]
    previous: str


def write_moving_shapes(
    output: Path,
    *,
    seed: int,
    train_clips: int,
    test_clips: int,
    seconds: float,
    fps: int,
    faults: bool = True,
    progress: Callable[[float, float, str], None] = lambda done, total, message: None,
) -> dict[str, list[str]]:
    """Writes ``{train,test}.jsonl`` and ``videos/*.mp4`` under ``output``.

    Args:
        seed: Training and held-out clips come from two streams of it that share nothing.
        train_clips: Clips to train on.
        test_clips: Held-out clips.
        seconds: Length of each clip's commented part; a multiple of 0.5.
        fps: Frames per second in the video files; even, so that sampling times fall on frames.
        faults: Adds to the training clips one whose video file is empty.
        progress: Called as ``(done, total, message)``.

    Returns:
        The annotation file of each split, relative to ``output``.
    """
    videos = output / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    codec = pick_codec()
    total = train_clips + test_clips
    done = 0
    files: dict[str, list[str]] = {}
    for split, count in (("train", train_clips), ("test", test_clips)):
        records = []
        for number in range(count):
            rng = random.Random(f"moving-shapes/{split}/{seed}/{number}")
            clip = make_clip(rng, seconds)
            name = f"videos/{split}-{number:05d}.mp4"
            encode_video(output / name, frames(clip, fps), fps, codec)
            records.append(_record(name, clip, rng))
            done += 1
            if done % 16 == 0 or done == total:
                progress(done, total, f"moving shapes {split}")
        if faults and split == "train":
            records.insert(count // 2, _empty_video(output, seconds))
        write_live_whisperx(output / f"{split}.jsonl", records)
        files[split] = [f"{split}.jsonl"]
    return files


def make_clip(rng: random.Random, seconds: float) -> Clip:
    """A clip's plot: which shapes appear when, and the commentary."""
    start = rng.choice((0.0, 0.0, rng.randint(4, 8) * GRID + rng.randrange(2) * 0.1))
    steps = round(seconds / GRID)
    appearances: list[Appearance] = []
    previous = ""
    if start > 0:  # what came before the clip: a shape already commented on and gone
        earlier = draw_shape(rng, SIDE)
        appearances.append(_appear(rng, earlier, 0.1, start - rng.uniform(0.25, 0.45), (0, SIDE)))
        previous = earlier.caption
    marks = [rng.randint(0, 2)]
    while (following := marks[-1] + rng.randint(3, 6)) <= steps - 2:
        marks.append(following)
    words: list[tuple[float, float, str]] = []
    together = rng.choice((1, 2))
    halves = ((0, SIDE // 2), (SIDE // 2, SIDE)) if together == 2 else ((0, SIDE),)
    begins = [max(0.0, start + mark * GRID - rng.uniform(0.05, 0.2)) for mark in marks]
    ends = [*begins[together:], *[start + seconds + 1.0] * together]
    for number, (mark, begin, end) in enumerate(zip(marks, begins, ends, strict=False)):
        others = [appearance.shape for appearance in appearances[-together:]]
        shape = draw_shape(rng, SIDE, others, SIZES if together == 1 else SIZES_OF_TWO)
        appearances.append(_appear(rng, shape, begin, end, halves[number % together]))
        words += _speak(rng, shape, start + mark * GRID)
    return Clip(start, start + seconds, draw_ground(rng), tuple(appearances), tuple(words), previous)


def frames(clip: Clip, fps: int) -> Iterator[Rgb]:
    """Every picture of the video, from 0 to the clip's end; (64, 64, 3) each."""
    for number in range(round(clip.end * fps)):
        time = number / fps
        shown = [each for each in clip.appearances if each.begin <= time < each.end]
        yield render(SIDE, clip.ground, *((each.shape, each.center(time)) for each in shown))


def pick_codec() -> str:
    """H.264 where this build of FFmpeg has it, otherwise MPEG-4 part 2."""
    return "libx264" if "libx264" in av.codecs_available else "mpeg4"


def encode_video(path: Path, pictures: Iterator[Rgb], fps: int, codec: str) -> None:
    """Writes an mp4 whose n-th frame is shown from n / ``fps`` seconds on; same input, same bytes."""
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        options = (
            {"crf": "18", "preset": "ultrafast", "threads": "1", "g": str(fps)}
            if codec == "libx264"
            else {"qscale": "2"}
        )
        stream = container.add_stream(codec, rate=fps, options=options)
        assert isinstance(stream, VideoStream)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        stream.time_base = Fraction(1, fps)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number
            frame.time_base = Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_live_whisperx(path: Path, records: Sequence[Any]) -> None:
    """Writes one JSON document a line, then the list of line offsets as the last line, without a newline."""
    lines = [json.dumps(record) + "\n" for record in records]
    offsets = [0]
    for line in lines:
        offsets.append(offsets[-1] + len(line))
    path.write_text("".join(lines) + json.dumps(offsets[:-1]), encoding="ascii")


def _appear(
    rng: random.Random, shape: Shape, begin: float, end: float, columns: tuple[int, int]
) -> Appearance:
    """A shape that drifts between two places inside ``columns``."""

    def place() -> tuple[float, float]:
        half_width, half_height = shape.width / 2 + 1, shape.height / 2 + 1
        left, right = columns
        return rng.uniform(left + half_width, right - half_width), rng.uniform(
            half_height, SIDE - half_height
        )

    return Appearance(shape, begin, end, place(), place())


def _speak(rng: random.Random, shape: Shape, grid_time: float) -> list[tuple[float, float, str]]:
    """Three words, about three a second: two before the next sampling time, one after it."""
    offsets = (rng.uniform(0.02, 0.06), rng.uniform(0.25, 0.4), rng.uniform(0.6, 0.75))
    starts = [grid_time + offset for offset in offsets]
    ends = [*starts[1:], starts[-1] + rng.uniform(0.2, 0.24)]
    words = ("a", shape.color, shape.name)
    return [(round(s, 2), round(e, 2), word) for s, e, word in zip(starts, ends, words, strict=True)]


def _record(video: str, clip: Clip, rng: random.Random) -> list[dict[str, Any]]:
    text: dict[str, Any] = {"type": "text", "text": rng.choice(QUERIES), "previous": clip.previous}
    text["title"] = "Moving shapes" if rng.random() < 0.8 else ""
    if rng.random() < 0.7:
        text["category"] = rng.choice(CATEGORIES)
    span = {
        "type": "video",
        "video": video,
        "video_start": round(clip.start, 2),
        "video_end": round(clip.end, 2),
    }
    answer = {"type": "text_stream", "text_stream": [list(word) for word in clip.words]}
    return [{"role": "user", "content": [span, text]}, {"role": "assistant", "content": [answer]}]


def _empty_video(output: Path, seconds: float) -> list[dict[str, Any]]:
    name = "videos/train-empty.mp4"
    (output / name).write_bytes(b"")
    clip = make_clip(random.Random("moving-shapes/empty"), seconds)
    return _record(name, clip, random.Random(0))
