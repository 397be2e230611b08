"""Files of a video benchmark: frames at the paper's times, and subtitles, from a folder beside the table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath

from casa_core.errors import DataError
from casa_core.media.video import VideoFrames, frame_times
from casa_core.types import Image
from pipelines.data.read.corpora.video import clip_times
from pipelines.storage.uri import Folder

FPS = 2.0
SUFFIXES = (".mp4", ".MP4", ".mkv", ".webm", ".avi", ".mov")
PICTURES = (".jpg", ".jpeg", ".png")
_TAG = re.compile(r"<[^>]*>")
_TIME = re.compile(r"(\d+):(\d\d):(\d\d)[,.](\d{1,3})")


@dataclass(frozen=True)
class VideoFolder:
    """Videos and subtitles under a folder.

    A video's frames are those that training sees: two a second, 20 evenly spread ones of a video below 10 s.

    Attributes:
        folder: Path or URI of the unpacked files, in the layout of the benchmark's archives.
        fps: Frames a second.
    """

    folder: Folder
    fps: float = FPS

    def frames(self, name: str, start: float = 0.0, until: float | None = None) -> tuple[Image, ...]:
        """The frames of a video, or of a part of it; a name without its suffix is tried with each of
        ``SUFFIXES``.

        Raises:
            DataError: Where there is no such video, or it has ended before ``start``.
            MediaError: Where it cannot be decoded.
        """
        data, end = self._part(name, start, until)
        times = dict.fromkeys(clip_times(start, end, self.fps))  # all the same where start is the end
        return tuple(Image(role="user", data=data, timestamp=time) for time in times)

    def live(self, name: str, start: float, until: float) -> tuple[Image, ...]:
        """The frames of a clip on the grid of live captions, whatever its length; errors as `frames`."""
        data, end = self._part(name, start, until)
        times = frame_times(start, end, self.fps)
        return tuple(Image(role="assistant", data=data, timestamp=time) for time in times)

    def _part(self, name: str, start: float, until: float | None) -> tuple[bytes, float]:
        """A video's bytes, and where a part of it ends."""
        data, duration = _video(self, name)
        end = duration if until is None else min(until, duration)
        if start > end:
            raise DataError(
                f"The video {name} has no frame from {start:g} to {until or duration:g} s.",
                f"It lasts {duration:g} s.",
                "Take the files of the data set itself, whole.",
            )
        return data, end

    def pictures(self, folder: str, fps: float) -> tuple[Image, ...]:
        """The pictures of a folder in the order of their names, which were taken ``fps`` times a second.

        Raises:
            DataError: Where there are none.
        """
        path = self.folder / _inside(folder)
        names = (
            sorted(p.name for p in path.iterdir() if p.suffix.lower() in PICTURES) if path.is_dir() else []
        )
        if not names:
            raise _missing(f"{path} holds no pictures.", folder)
        chosen = [int(time * fps) for time in clip_times(0.0, len(names) / fps, self.fps)]
        return tuple(
            Image(role="user", data=(path / names[at]).read_bytes(), media=number)
            for number, at in enumerate(chosen)
        )

    def text(self, name: str) -> str | None:
        """A text file; None where there is none."""
        path = self.folder / _inside(name)
        return path.read_bytes().decode("utf-8", "replace") if path.is_file() else None

    def read(self, name: str) -> bytes:
        """The bytes of a video.

        Raises:
            DataError: Where there is no such video.
        """
        inside = _inside(name)
        stem = str(inside.with_suffix("")) if inside.suffix in SUFFIXES else str(inside)
        for candidate in (str(inside), *(f"{stem}{suffix}" for suffix in SUFFIXES)):
            path = self.folder / candidate
            if path.is_file():
                return path.read_bytes()
        raise _missing(f"There is no video {name} in {self.folder}.", name)


@lru_cache(maxsize=1)  # the questions about one video are neighbours
def _video(source: VideoFolder, name: str) -> tuple[bytes, float]:
    data = source.read(name)
    with VideoFrames(data) as video:
        return data, video.duration


def _inside(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise _missing(f"The name {name!r} leads out of the folder of the videos.", name)
    return path


def _missing(what: str, name: str) -> DataError:
    return DataError(
        what,
        f"The table names {name}, and the files of the benchmark come in archives of their own.",
        "Unpack all archives of the data set into the folder, with the folders that are in them.",
    )


def subtitles_at(srt: str, times: Sequence[float]) -> str:
    """The subtitles that are on screen at any of the times, a line each, without markup, in their order.

    Args:
        srt: A SubRip file's text.
        times: Seconds in the video.
    """
    shown = []
    for block in re.split(r"\n\s*\n", srt.replace("\r\n", "\n").strip()):
        lines = block.strip().split("\n")
        at = next((number for number, line in enumerate(lines) if "-->" in line), None)
        if at is None:
            continue
        ends = [_seconds(*match) for match in _TIME.findall(lines[at])]
        text = " ".join(line for raw in lines[at + 1 :] if (line := _TAG.sub("", raw).strip()))
        if text and len(ends) == 2 and any(ends[0] <= time < ends[1] for time in times):
            shown.append(text)
    return "\n".join(shown)


def _seconds(hours: str, minutes: str, seconds: str, fraction: str) -> float:
    return 3600 * int(hours) + 60 * int(minutes) + int(seconds) + float(f"0.{fraction}")
