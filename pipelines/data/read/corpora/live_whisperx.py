"""Live-WhisperX: JSONL of clips with a spoken commentary, each word with its times.

A line is ``[user, assistant]``; the user's content is a video span and a query (with ``previous``, ``title``
and ``category``, any of which may be absent), the assistant's a ``text_stream`` of ``[start, end, word]``.
All times count from the video's first picture. Words are ordered by when they begin; one without a start
(null or NaN: aligners leave numbers untimed) takes the end of the word before it, or the next one's start. A
clip without a word is rejected. **The last line is the list of line offsets**
(:mod:`pipelines.data.read.formats.lines`). Clips are short parts of long videos: only the part is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from casa_core.media.video import LIVE_FPS, frame_times
from casa_core.types import Image, Part, Text
from pipelines.data.read.corpora.base import CorpusReader
from pipelines.data.read.corpora.video import cut_clip
from pipelines.data.read.corpora.videos import VIDEO_BYTES, VIDEO_SUFFIXES, Videos
from pipelines.data.read.formats.lines import json_lines, line_spans
from pipelines.data.read.source.base import (
    BadRecord,
    Place,
    RawMedia,
    Record,
    Span,
    collect,
)
from pipelines.data.store.quarantine import Rejected

_TIME_TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class LiveWhisperXReader(CorpusReader):
    """Reads Live-WhisperX's layout.

    A sample's meta holds the clip (``video``, ``video_start``, ``video_end``, ``fps``), ``previous``,
    ``title`` and ``category`` where known, and ``untimed_words``, how many words had no time of their own.

    Attributes:
        fps: Frames sampled per second, from the clip's start on; each is followed by the words that begin
            before the next.
        context: What precedes the query, one line each where it is known: ``title``, ``category``, and
            ``previous``, the commentary before the clip.
    """

    suffixes = (".jsonl",)
    media = VIDEO_SUFFIXES

    fps: float = LIVE_FPS
    context: tuple[str, ...] = ()

    def spans(self, split: str) -> list[Span]:
        """Spans of up to 64 lines.

        Raises:
            DataError: Where the last line's offsets contradict the file.
        """
        return line_spans(self.files, self.names(split), VIDEO_BYTES)

    def read(self, span: Span) -> Iterator[Record | Rejected]:
        """The records of the span's lines."""
        videos = Videos(self.files)
        lines = json_lines(self.files, span)
        return collect(self.source, span, lines, lambda place, line: self._parse(place, line, videos))

    def _parse(self, place: Place, line: Any, videos: Videos) -> Record:
        video, query, stream = _layout(line)
        start, end = _seconds(video, "video_start"), _seconds(video, "video_end")
        if end <= start or start < 0:
            raise BadRecord("bad_record", f"the clip runs from {start} to {end} seconds")
        times = frame_times(start, end, self.fps)
        words, untimed = _timed(_words(stream))
        if not words:
            raise BadRecord("missing_text", "no word is spoken in the clip")
        frames = words_by_frame(words, start, end, self.fps)
        parts: list[Part] = [Text(role="user", text=self._prompt(query))]
        for time, words in zip(times, frames, strict=True):
            parts.append(Image(role="assistant", timestamp=time))
            parts.append(Text(role="assistant", text=" ".join(words), trained=True))
        data = cut_clip(videos.read(video["video"]), start, end)
        known = {name: query[name] for name in ("previous", "title", "category") if query.get(name)}
        known |= {"untimed_words": untimed} if untimed else {}
        return place.record(
            tuple(parts),
            (RawMedia(kind="video", data=data, name=video["video"]),),
            {"video": video["video"], "video_start": start, "video_end": end, "fps": self.fps} | known,
        )

    def _prompt(self, query: dict[str, Any]) -> str:
        lines = [f"{name.capitalize()}: {query[name]}" for name in self.context if query.get(name)]
        return "\n".join([*lines, query["text"]])


def words_by_frame(
    words: Sequence[tuple[float, str]], start: float, end: float, fps: float
) -> list[list[str]]:
    """Assigns words to the frames sampled at ``start + n / fps`` before ``end``.

    Args:
        words: ``(absolute start in seconds, word)``.
        start, end: The clip, absolute seconds.
        fps: Frames per second.

    Returns:
        One list per frame: the words that begin from it on and before the next. A word that begins up to one
        frame outside the clip belongs to its nearest frame.

    Raises:
        BadRecord: ``word_outside_clip`` for one farther out.
    """
    frames: list[list[str]] = [[] for _ in frame_times(start, end, fps)]
    for time, word in words:
        number = math.floor((time - start) * fps + _TIME_TOLERANCE)
        if not -1 <= number <= len(frames):
            raise BadRecord(
                "word_outside_clip", f"{word!r} at {time} s; the clip runs from {start} to {end} s"
            )
        frames[min(max(number, 0), len(frames) - 1)].append(word)
    return frames


def _layout(line: Any) -> tuple[dict[str, Any], dict[str, Any], list[Any]]:
    """The video span, the query and the word stream of one line."""
    try:
        user, assistant = line
        video = next(entry for entry in user["content"] if entry["type"] == "video")
        query = next(entry for entry in user["content"] if entry["type"] == "text")
        stream = assistant["content"][0]["text_stream"]
    except (StopIteration, TypeError, KeyError, ValueError, IndexError) as error:
        raise BadRecord("bad_record", f"not [user, assistant] as documented: {error!r}") from error
    if not isinstance(query.get("text"), str) or not isinstance(video.get("video"), str):
        raise BadRecord("bad_record", "the query or the video's path is not a string")
    return video, query, stream


class _Word(NamedTuple):
    text: str
    start: float | None
    end: float | None


def _words(stream: Any) -> list[_Word]:
    """The words of a stream, blank ones left out; a time that is no number is None."""
    words = []
    for entry in stream if isinstance(stream, list) else [None]:
        if not (isinstance(entry, list) and len(entry) == 3 and isinstance(entry[2], str)):
            raise BadRecord("bad_record", f"a word is not [start, end, text]: {entry!r}")
        if entry[2].strip():
            words.append(_Word(entry[2].strip(), _time(entry[0]), _time(entry[1])))
    return words


def _timed(words: Sequence[_Word]) -> tuple[list[tuple[float, str]], int]:
    """``(start, word)`` by time, and how many had no start of their own.

    Such a word takes the end of the word before it, no later than the next one's start; the first ones take
    the next one's start.

    Raises:
        BadRecord: ``missing_text`` where no word has a start.
    """
    starts = [word.start for word in words]
    untimed = sum(start is None for start in starts)
    if words and untimed == len(words):
        raise BadRecord("missing_text", f"none of the clip's {len(words)} words has a time")
    timed: list[tuple[float, str]] = []
    for number, word in enumerate(words):
        following = next((start for start in starts[number:] if start is not None), math.inf)
        start = word.start
        if start is None and timed:
            before, ends = timed[-1][0], words[number - 1].end
            start = min(max(before, ends if ends is not None else before), max(before, following))
        timed.append((following if start is None else start, word.text))
    return sorted(timed, key=lambda entry: entry[0]), untimed


def _time(value: Any) -> float | None:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return _number(value, "a word's time")


def _seconds(video: dict[str, Any], name: str) -> float:
    return _number(video.get(name), name)


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRecord("bad_record", f"{name} is not a time in seconds: {value!r}")
    return float(value)
